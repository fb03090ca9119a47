//! Latencies: recorded in nanoseconds with three significant digits, shown in microseconds, written as an
//! interval log that every HdrHistogram tool reads and merges.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// One hour: the longest latency that is told apart.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;
/// Width of the bars on screen.
const BAR_WIDTH: usize = 40;

/// Latencies of one kind.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    histogram: Histogram<u64>,
}

/// What is reported of them, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Quantiles {
    pub(super) count: u64,
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p99_9: f64,
    pub(super) max: f64,
}

impl Latencies {
    pub(super) fn new() -> Result<Self, String> {
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).map_err(|e| e.to_string())?;
        Ok(Self { histogram })
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_MAX_NS);
        self.histogram.saturating_record(ns.max(1));
    }

    pub(super) fn quantiles(&self) -> Quantiles {
        let us = |q: f64| self.histogram.value_at_quantile(q) as f64 / 1e3;
        if self.histogram.is_empty() {
            return Quantiles::default();
        }
        Quantiles {
            count: self.histogram.len(),
            mean: self.histogram.mean() / 1e3,
            p50: us(0.5),
            p90: us(0.9),
            p99: us(0.99),
            p99_9: us(0.999),
            max: self.histogram.max() as f64 / 1e3,
        }
    }

    /// How many took at least so long.
    #[cfg(test)]
    pub(super) fn count_from(&self, latency: Duration) -> u64 {
        self.histogram.count_between(latency.as_nanos() as u64, LATENCY_MAX_NS)
    }

    /// Percentiles with their values in microseconds, for a curve: more of them the nearer to 100.
    pub(super) fn curve(&self) -> Vec<(f64, f64)> {
        if self.histogram.is_empty() {
            return Vec::new();
        }
        let values = self.histogram.iter_quantiles(2);
        values.map(|v| (v.quantile_iterated_to() * 100.0, v.value_iterated_to() as f64 / 1e3)).collect()
    }

    /// Bars over powers of two, from the first bucket that holds anything to the last.
    pub(super) fn bars(&self) -> String {
        let mut buckets = [0u64; 64];
        for value in self.histogram.iter_recorded() {
            let at = 63 - value.value_iterated_to().max(1).leading_zeros() as usize;
            buckets[at] += value.count_since_last_iteration();
        }
        let mut text = String::new();
        let (Some(first), Some(last)) =
            (buckets.iter().position(|n| *n > 0), buckets.iter().rposition(|n| *n > 0))
        else {
            return text;
        };
        let most = buckets.iter().copied().max().unwrap_or(1).max(1);
        for (at, count) in buckets.iter().enumerate().take(last + 1).skip(first) {
            let width = (*count as f64 / most as f64 * BAR_WIDTH as f64).ceil() as usize;
            let below = format_us((1u128 << (at + 1)) as f64 / 1e3);
            let line = format!("  < {below:>9}  {count:>10}  {}", "#".repeat(width));
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

/// Writes an interval log with one interval for each of them, tagged by its name; an empty name is no tag.
pub(super) fn write_hlog(
    latencies: &[(&str, &Latencies)],
    path: &Path,
    started: SystemTime,
    took: Duration,
) -> Result<(), String> {
    let mut bytes = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment("latencies in nanoseconds")
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut bytes, &mut serializer)
        .map_err(|e| e.to_string())?;
    for (name, latencies) in latencies {
        writer
            .write_histogram(
                &latencies.histogram,
                Duration::ZERO,
                took,
                Tag::new(name).filter(|_| !name.is_empty()),
            )
            .map_err(|e| format!("cannot encode the histogram: {e:?}"))?;
    }
    std::fs::write(path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// Microseconds with the unit that reads best.
pub(super) fn format_us(us: f64) -> String {
    match us {
        us if us < 1.0 => format!("{:.0} ns", us * 1e3),
        us if us < 100.0 => format!("{us:.1} µs"),
        us if us < 1e3 => format!("{us:.0} µs"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Bytes per second with the unit that reads best; decimal units, as disks and networks use them.
pub(super) fn format_rate(mb_s: f64) -> String {
    if mb_s >= 1000.0 { format!("{:.2} GB/s", mb_s / 1e3) } else { format!("{mb_s:.1} MB/s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn quantiles_and_bars_tell_what_was_recorded() {
        let mut latencies = Latencies::new().unwrap();
        assert_eq!(latencies.quantiles().count, 0);
        assert_eq!(latencies.bars(), "");
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        latencies.record(Duration::from_secs(1 << 40));
        let q = latencies.quantiles();
        assert_eq!(q.count, 1001);
        assert!((q.p50 - 500.0).abs() < 5.0, "{q:?}");
        assert!((q.p99 - 990.0).abs() < 5.0, "{q:?}");
        assert!(q.max >= 3.5e9, "{q:?}");
        assert!(latencies.bars().lines().count() > 9);
    }

    #[test]
    fn an_hlog_reads_back_with_the_same_counts() {
        let mut latencies = Latencies::new().unwrap();
        for us in 1..=500 {
            latencies.record(Duration::from_micros(us));
        }
        let path = std::env::temp_dir().join(format!("ringmq-bench-{}.hlog", std::process::id()));
        write_hlog(&[("", &latencies)], &path, SystemTime::UNIX_EPOCH, Duration::from_secs(3)).unwrap();
        let text = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let encoded = IntervalLogIterator::new(&text)
            .find_map(|entry| match entry.unwrap() {
                LogEntry::Interval(interval) => Some(interval.encoded_histogram().to_owned()),
                _ => None,
            })
            .unwrap();
        let bytes = base64_decode(&encoded);
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        assert_eq!(read.len(), 500);
    }

    fn base64_decode(text: &str) -> Vec<u8> {
        let value = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let mut out = Vec::new();
        for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
            let bits = chunk.iter().fold(0u32, |bits, c| bits << 6 | u32::from(value(*c)));
            let bits = bits << (6 * (4 - chunk.len()));
            out.extend_from_slice(&bits.to_be_bytes()[1..chunk.len()]);
        }
        out
    }

    #[test]
    fn units_read_well() {
        let texts: Vec<_> = [0.5, 12.34, 345.0, 2_500.0, 3e6].map(format_us).into();
        assert_eq!(texts, ["500 ns", "12.3 µs", "345 µs", "2.50 ms", "3.00 s"]);
        assert_eq!(format_rate(999.96), "1000.0 MB/s");
        assert_eq!(format_rate(2345.0), "2.35 GB/s");
    }
}
