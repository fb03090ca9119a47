//! What the benches against a server have in common: where to, how long, and how the figures are shown.

use super::floor::Floors;
use super::latency::{Latencies, Quantiles, format_us, write_hlog};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, SystemTime};

const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Arguments of every bench against a server.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Target {
    /// Address of the server.
    #[arg(long, value_name = "ADDR", env = "RINGMQ_SERVER", default_value = "127.0.0.1:7700")]
    pub(super) server: String,
    /// Topic to use.
    #[arg(long, default_value = "bench")]
    pub(super) topic: String,
    /// Core for the load thread; the server should run on another.
    #[arg(long, value_name = "CORE")]
    pub(super) pin: Option<usize>,
    /// Figures of `ringmq bench machine --out`, to print ratios to the floor.
    #[arg(long, value_name = "FILE", env = "RINGMQ_FLOOR")]
    pub(super) floor: Option<PathBuf>,
    /// Write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// Write the latencies as an HdrHistogram log.
    #[arg(long, value_name = "FILE")]
    pub(super) hlog: Option<PathBuf>,
}

impl Target {
    /// Read before the load starts: a file that cannot be read must not cost the run.
    pub(super) fn floors(&self) -> Result<Option<Floors>, String> {
        self.floor.as_deref().map(Floors::load).transpose()
    }

    /// Writes the files that were asked for, and prints the figures.
    pub(super) fn deliver(
        &self,
        report: &impl Serialize,
        latencies: &[(&str, &Latencies)],
        took: Duration,
        text: &str,
        json: bool,
    ) -> Result<(), String> {
        let line = serde_json::to_string(report).map_err(|e| e.to_string())?;
        if let Some(path) = &self.out {
            std::fs::write(path, &line).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
        if let Some(path) = &self.hlog {
            write_hlog(latencies, path, SystemTime::now() - took, took)?;
        }
        super::print_line(if json { &line } else { text.trim_end() });
        Ok(())
    }
}

/// `10s`, `500ms`, `2m` or a number of seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" => 60.0,
        _ => return Err(format!("unknown unit {unit:?}: use ms, s or m")),
    };
    let number: f64 = number.parse().map_err(|_| format!("not a number: {number:?}"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| format!("not a duration: {text:?}"))
}

/// `1024`, `64K`, `1M`; `KiB` and `MiB` mean the same.
pub(super) fn parse_size(text: &str) -> Result<usize, String> {
    let (number, unit) = split_unit(text);
    let shift = match unit {
        "" | "B" => 0,
        "k" | "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return Err(format!("unknown unit {unit:?}: use K, M or G")),
    };
    let number: usize = number.parse().map_err(|_| format!("not a number: {number:?}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("too much: {text}"))
}

fn split_unit(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(at)
}

/// A bar on stderr, if that is a terminal, while a load thread works.
pub(super) struct Progress {
    bar: ProgressBar,
    pub(super) records: AtomicU64,
    /// Unix nanoseconds between which what happens is counted, for whoever watches the load from another thread.
    pub(super) count_from_ns: AtomicU64,
    pub(super) count_until_ns: AtomicU64,
}

impl Progress {
    /// `total` is records, or 0 if a duration bounds the run.
    pub(super) fn new(show: bool, total: u64, duration: Duration) -> Self {
        let length = if total > 0 { total } else { duration.as_millis() as u64 };
        let bar = if show { ProgressBar::new(length) } else { ProgressBar::hidden() };
        let template = if total > 0 { "{bar:30} {msg} {eta}" } else { "{bar:30} {msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let never = || AtomicU64::new(u64::MAX);
        Self { bar, records: AtomicU64::new(0), count_from_ns: never(), count_until_ns: never() }
    }

    /// Shows the records until the thread ends, then answers what it found.
    pub(super) fn watch<T>(
        &self,
        thread: ScopedJoinHandle<'_, Result<T, String>>,
        by_records: bool,
    ) -> Result<T, String> {
        let started = std::time::Instant::now();
        if !self.bar.is_hidden() {
            while !thread.is_finished() {
                std::thread::sleep(PROGRESS_EVERY);
                let records = self.records.load(Ordering::Relaxed);
                let elapsed = started.elapsed();
                self.bar.set_position(if by_records { records } else { elapsed.as_millis() as u64 });
                let rate = records as f64 / elapsed.as_secs_f64();
                self.bar.set_message(format!("{records} records, {rate:.0}/s"));
            }
        }
        let result = thread.join().unwrap_or_else(|_| Err("the load thread panicked".to_owned()));
        self.bar.finish_and_clear();
        result
    }
}

/// Latencies as the line and bars of a report.
pub(super) fn latency_text(title: &str, latencies: &Latencies) -> String {
    let Quantiles { count, mean, p50, p90, p99, p99_9, max } = latencies.quantiles();
    if count == 0 {
        return String::new();
    }
    let values = [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p99_9), ("max", max), ("mean", mean)];
    let values: Vec<_> = values.iter().map(|(name, us)| format!("{name} {}", format_us(*us))).collect();
    format!("{title}  {}\n{}", values.join("  "), latencies.bars())
}

/// A ratio to the floor, and what the floor is.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ratio {
    pub(super) what: &'static str,
    /// Of which percentile, for a latency.
    pub(super) at: &'static str,
    /// Above 1 is better for rates, below 1 for latencies.
    pub(super) ratio: f64,
    pub(super) floor: f64,
}

impl Ratio {
    pub(super) fn of(what: &'static str, measured: f64, floor: Option<f64>) -> Option<Self> {
        let floor = floor.filter(|floor| *floor > 0.0)?;
        Some(Self { what, at: "", ratio: measured / floor, floor })
    }

    pub(super) fn at(self, at: &'static str) -> Self {
        Self { at, ..self }
    }
}

/// Ratios as lines of a report. Without a floor it says how to get one.
pub(super) fn ratio_text(ratios: &[Ratio], floors: Option<&Floors>) -> String {
    if floors.is_none() {
        return "floor    not known: `ringmq bench machine --out floors.json`, then --floor floors.json\n"
            .to_owned();
    }
    let line = |r: &Ratio| {
        let at = if r.at.is_empty() { String::new() } else { format!(" at {}", r.at) };
        format!("floor    {:.2} × {}{at} ({:.1})\n", r.ratio, r.what, r.floor)
    };
    ratios.iter().map(line).collect()
}

/// Above this share of its core a load generator has measured itself.
pub(super) const BOUND_PERCENT: f64 = 90.0;

/// How busy the threads of a load generator were, and whether they were the limit. `shared`: they run on one core.
pub(super) fn generator_bound(percents: &[f64], shared: bool) -> bool {
    let together = percents.iter().sum::<f64>();
    percents.iter().any(|percent| *percent > BOUND_PERCENT) || shared && together > BOUND_PERCENT
}

/// The line of a report on that.
pub(super) fn load_text(threads: &[(&str, f64)], bound: bool) -> String {
    let threads: Vec<_> =
        threads.iter().map(|(name, percent)| format!("{name}{percent:.0} % of a core")).collect();
    let bound = if bound { "  generator-bound: the server could do more" } else { "" };
    format!("load     {}{bound}\n", threads.join("  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_is_the_limit_is_called_so() {
        assert!(!generator_bound(&[89.0], false) && generator_bound(&[91.0], false));
        assert!(!generator_bound(&[60.0, 60.0], false) && generator_bound(&[60.0, 60.0], true));
        assert!(load_text(&[("", 95.0)], true).contains("95 % of a core  generator-bound"));
        assert!(ratio_text(&[], None).contains("bench machine"));
    }

    #[test]
    fn durations_and_sizes_with_units() {
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "-1", "1h", "1.2.3", "999999999999999999999999999"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_size("1024"), Ok(1024));
        assert_eq!(parse_size("64K"), Ok(64 << 10));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        for bad in ["", "K", "1T", "1.5K", "99999999999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
