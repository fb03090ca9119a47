//! What was run, when the code was what: one entry for each run, in `fuzz/LEDGER.json`.
//!
//! The totals of the proof page are sums over it. A row starts again when the format or the recovery that it
//! exercised changes: then its entries are removed by hand, in the commit that changes them.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A file beside this workspace's `Cargo.toml`.
pub(crate) fn beside(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// What a run has done.
pub(crate) struct Run<'a> {
    pub(crate) row: &'a str,
    /// First case, and the one behind the last.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Cases that there are, or that are wanted.
    pub(crate) cases: u64,
    /// What was counted in them, and its name.
    pub(crate) count: u64,
    pub(crate) what: &'a str,
    /// Lines for whoever reads along.
    pub(crate) notes: &'a [String],
}

/// Sum of a row's entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Total {
    pub(crate) runs: u64,
    pub(crate) count: u64,
    pub(crate) what: String,
    pub(crate) wall_s: f64,
    pub(crate) ranges: Vec<(u64, u64)>,
    pub(crate) cases: u64,
    pub(crate) commits: Vec<String>,
}

impl Total {
    /// Different cases in all ranges.
    pub(crate) fn covered(&self) -> u64 {
        let mut ranges = self.ranges.clone();
        ranges.sort_unstable();
        let (mut covered, mut reached) = (0, 0);
        for (from, to) in ranges {
            covered += to.saturating_sub(from.max(reached));
            reached = reached.max(to);
        }
        covered
    }
}

pub(crate) struct Ledger(Vec<Value>);

impl Ledger {
    /// The ledger as it is; an empty one if there is none yet.
    pub(crate) fn read() -> Result<Self, String> {
        let path = beside("LEDGER.json");
        match std::fs::read(&path) {
            Ok(bytes) => {
                let found = serde_json::from_slice(&bytes);
                found.map(Self).map_err(|error| format!("{}: {error}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self(Vec::new())),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// Adds a run and writes the whole, one entry a line.
    pub(crate) fn add(mut self, run: &Run<'_>, wall: Duration) -> Result<(), String> {
        self.0.push(json!({
            "row": run.row,
            "commit": commit(),
            "from": run.from,
            "to": run.to,
            "cases": run.cases,
            "count": run.count,
            "what": run.what,
            "wall_s": (wall.as_secs_f64() * 10.0).round() / 10.0,
            "notes": run.notes,
        }));
        let lines: Vec<String> = self.0.iter().map(Value::to_string).collect();
        let path = beside("LEDGER.json");
        let written = std::fs::write(&path, format!("[\n{}\n]\n", lines.join(",\n")));
        written.map_err(|error| format!("{}: {error}", path.display()))
    }

    pub(crate) fn totals(&self) -> BTreeMap<String, Total> {
        let mut totals = BTreeMap::<String, Total>::new();
        for entry in &self.0 {
            let number = |name: &str| entry[name].as_u64().unwrap_or(0);
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let total = totals.entry(text("row")).or_default();
            total.runs += 1;
            total.count += number("count");
            total.what = text("what");
            total.wall_s += entry["wall_s"].as_f64().unwrap_or(0.0);
            total.ranges.push((number("from"), number("to")));
            total.cases = number("cases");
            let commit = text("commit");
            if !total.commits.contains(&commit) {
                total.commits.push(commit);
            }
        }
        totals
    }

    /// Notes of the last run of a row.
    pub(crate) fn last_notes(&self, row: &str) -> Vec<String> {
        let last = self.0.iter().rfind(|entry| entry["row"] == row);
        let notes = last.and_then(|entry| entry["notes"].as_array());
        notes.into_iter().flatten().filter_map(|note| note.as_str().map(str::to_owned)).collect()
    }
}

/// The commit that is checked out, with a `+` if files differ from it.
fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(args).output();
        output.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = git(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let pages = ["LEDGER.json", "PROOF.md", "PLANTED.md"].map(|page| format!(":(top,exclude)fuzz/{page}"));
    let changed = git(&["status", "--porcelain", "--", ":(top)", &pages[0], &pages[1], &pages[2]]);
    let mark = if changed.is_some_and(|changed| !changed.is_empty()) { "+" } else { "" };
    head + mark
}
