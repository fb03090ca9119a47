//! Results of earlier runs, as the benches wrote them: what was run, and what can be compared of it.

use serde_json::{Map, Value};
use std::path::Path;

/// One run, as a bench wrote it.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) value: Value,
}

/// A figure that runs are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Metric {
    /// Path in the JSON.
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) more_is_better: bool,
}

const fn metric(name: &'static str, unit: &'static str, more_is_better: bool) -> Metric {
    Metric { name, unit, more_is_better }
}

/// In the order in which they are shown.
pub(super) const METRICS: [Metric; 11] = [
    metric("records_s", "/s", true),
    metric("mb_s", "MB/s", true),
    metric("delivered_mb_s", "MB/s", true),
    metric("cold_mb_s", "MB/s", true),
    metric("latency_us.p50", "µs", false),
    metric("latency_us.p99", "µs", false),
    metric("latency_us.p99_9", "µs", false),
    metric("end_to_end_us.p50", "µs", false),
    metric("end_to_end_us.p99", "µs", false),
    metric("late_us.p99", "µs", false),
    metric("instructions", "", false),
];

/// What a bench was asked to do; everything else in its report is what it found.
const SHAPE: [&str; 19] = [
    "bench",
    "peer",
    "mode",
    "path",
    "record_size",
    "batch",
    "frames",
    "partitions",
    "connections",
    "in_flight",
    "subscribers",
    "readers",
    "rate",
    "idempotent",
    "follow",
    "delay_ms",
    "halves",
    "topic_kind",
    "variant",
];

/// All runs in a file, or in the files `*.json` and `*.jsonl` of a directory, in the order of their names.
pub(super) fn read(path: &Path) -> Result<Vec<Run>, String> {
    let bad = |e: &dyn std::fmt::Display| format!("cannot read {}: {e}", path.display());
    if path.is_dir() {
        let mut files: Vec<_> = std::fs::read_dir(path)
            .map_err(|e| bad(&e))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|ext| ext == "json" || ext == "jsonl"))
            .collect();
        files.sort();
        let runs = files.iter().map(|file| read(file)).collect::<Result<Vec<_>, _>>()?.concat();
        return if runs.is_empty() { Err(bad(&"no *.json or *.jsonl in it")) } else { Ok(runs) };
    }
    let text = std::fs::read(path).map_err(|e| bad(&e))?;
    let mut runs = Vec::new();
    for value in serde_json::Deserializer::from_slice(&text).into_iter::<Value>() {
        let value = value.map_err(|e| bad(&e))?;
        if !value.is_object() {
            return Err(bad(&"not a result of `ringmq bench`"));
        }
        runs.push(Run { value });
    }
    if runs.is_empty() { Err(bad(&"it is empty")) } else { Ok(runs) }
}

/// Looks up `a.b.c`.
pub(super) fn number(value: &Value, name: &str) -> Option<f64> {
    name.split('.').try_fold(value, |value, part| value.get(part))?.as_f64()
}

impl Run {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.value.get(name)?.as_str()
    }

    pub(super) fn number(&self, name: &str) -> Option<f64> {
        number(&self.value, name)
    }

    pub(super) fn is(&self, bench: &str) -> bool {
        self.text("bench") == Some(bench)
    }

    /// What was asked for, as a key. Runs that name their load are compared by it, whoever was loaded.
    pub(super) fn shape(&self) -> String {
        if let Some(load) = self.text("load") {
            return load.to_owned();
        }
        let mut shape = Map::new();
        for name in SHAPE {
            if let Some(value) = self.value.get(name).filter(|value| !value.is_null()) {
                shape.insert(name.to_owned(), value.clone());
            }
        }
        Value::Object(shape).to_string()
    }

    /// What was asked for, for people.
    pub(super) fn label(&self) -> String {
        if let Some(load) = self.text("load").filter(|load| !load.is_empty()) {
            return load.to_owned();
        }
        let mut text = self.text("peer").or_else(|| self.text("bench")).unwrap_or("run").to_owned();
        if let Some(mode) = self.text("mode").filter(|_| self.value.get("peer").is_some()) {
            text += &format!(" ({mode})");
        }
        let count = |name: &str| self.number(name).unwrap_or(1.0);
        if let Some(size) = self.number("record_size") {
            text += &format!(" {size:.0} B × {:.0}", count("batch"));
        }
        for (name, what) in [
            ("frames", "frames"),
            ("partitions", "partitions"),
            ("connections", "connections"),
            ("subscribers", "subscribers"),
            ("readers", "readers of the past"),
        ] {
            let found = self.number(name);
            if let Some(found) = found.filter(|found| *found > 1.0) {
                text += &format!(", {found:.0} {what}");
            }
        }
        if count("in_flight") > 1.0 {
            text += &format!(", {:.0} in flight", count("in_flight"));
        }
        if let Some(delay) = self.number("delay_ms") {
            text += &format!(", {delay:.0} ms later");
        }
        if let Some(rate) = self.number("rate") {
            text += &format!(", at {rate:.0}/s");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(value: Value) -> Run {
        Run { value }
    }

    #[test]
    fn a_shape_is_what_was_asked_and_not_what_was_found() {
        let value = |rate: Value, found: u64| {
            run(json!({"bench": "produce", "batch": 10, "record_size": 64, "rate": rate, "records_s": found}))
        };
        assert_eq!(value(Value::Null, 1).shape(), value(Value::Null, 2).shape());
        assert_ne!(value(Value::Null, 1).shape(), value(json!(5.0), 1).shape());
        assert_eq!(value(json!(5.0), 1).label(), "produce 64 B × 10, at 5/s");
        assert_eq!(number(&json!({"a": {"b": 2}}), "a.b"), Some(2.0));
        assert_eq!(number(&json!({"a": 1}), "a.b"), None);
    }

    #[test]
    fn files_and_directories_are_read_and_bad_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert!(read(dir.path()).unwrap_err().contains("no *.json"));
        std::fs::write(path("b.jsonl"), "{\"bench\":\"x\"}\n{\"bench\":\"y\"}\n").unwrap();
        std::fs::write(path("a.json"), "{\"bench\":\"w\"}").unwrap();
        std::fs::write(path("c.txt"), "nonsense").unwrap();
        let names: Vec<_> =
            read(dir.path()).unwrap().iter().map(|run| run.text("bench").unwrap().to_owned()).collect();
        assert_eq!(names, ["w", "x", "y"]);
        assert!(read(&path("c.txt")).unwrap_err().contains("c.txt"));
        std::fs::write(path("c.txt"), "[1]").unwrap();
        assert!(read(&path("c.txt")).unwrap_err().contains("not a result"));
        std::fs::write(path("c.txt"), "").unwrap();
        assert!(read(&path("c.txt")).unwrap_err().contains("empty"));
    }
}
