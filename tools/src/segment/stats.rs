//! `ringmq segment stats`: what the bytes are spent on.

use super::dump::name_of;
use super::filter::{Filter, each_group};
use super::place::{Place, Reading, is_stopped};
use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, EXIT_FAILED, Failure};
use crate::format::time;
use crate::screen::{Ink, Screen, thousands};
use comfy_table::Cell;
use ringmq_format::frame::{Codec, FrameKind};
use ringmq_format::record::Payload;
use ringmq_segment::group::FrameView;
use ringmq_server::units::Size;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const EXAMPLES: &str = "\
Examples:
  ringmq segment stats /var/lib/ringmq                      sizes, batching, compression, padding
  ringmq segment stats /var/lib/ringmq --topic orders       of one topic
  ringmq segment stats /var/lib/ringmq --json | jq 'select(.topic)'

Write amplification: bytes written to the log for each byte of record bodies as they are stored.
Exit codes: 0 done; 1 failed, or stopped by Ctrl-C; 3 some frames are damaged and left out.";

/// Of what.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    filter: Filter,
}

/// Counts by powers of two.
#[derive(Clone, Debug)]
struct Histogram([u64; 40]);

impl Default for Histogram {
    fn default() -> Self {
        Self([0; 40])
    }
}

impl Histogram {
    fn add(&mut self, value: u64) {
        self.0[(64 - value.leading_zeros()).min(39) as usize] += 1;
    }

    fn rows(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let first = self.0.iter().position(|count| *count > 0).unwrap_or(0);
        let last = self.0.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        (first..last).map(|bit| {
            let from = if bit == 0 { 0 } else { 1u64 << (bit - 1) };
            (from, (1u64 << bit) - 1, self.0[bit])
        })
    }
}

#[derive(Clone, Debug, Default)]
struct Sum {
    frames: u64,
    records: u64,
    bytes: u64,
    raw: u64,
    stored: u64,
    compressed: u64,
    times: Option<(i64, i64)>,
}

impl Sum {
    fn add(&mut self, frame: &FrameView<'_>, raw: u64, stored: u64) {
        let header = &frame.header;
        self.frames += 1;
        self.records += u64::from(header.count.get());
        self.bytes += frame.bytes.len() as u64;
        self.raw += raw;
        self.stored += stored;
        self.compressed += u64::from(header.codec() != Codec::None);
        let time = header.timestamp.get();
        let times = self.times.get_or_insert((time, time));
        *times = (times.0.min(time), times.1.max(time));
    }

    fn ratio(&self) -> f64 {
        if self.stored == 0 { 1.0 } else { self.raw as f64 / self.stored as f64 }
    }

    fn object(&self) -> Value {
        json!({
            "frames": self.frames, "records": self.records, "bytes": self.bytes, "body_bytes": self.raw,
            "stored_bytes": self.stored, "compressed_frames": self.compressed, "compression": self.ratio(),
            "records_per_frame": per(self.records, self.frames),
            "first_time": self.times.map(|times| time(times.0)), "last_time": self.times.map(|times| time(times.1)),
        })
    }
}

fn per(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Sums up.
pub(crate) fn run(args: &StatsArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let place = Place::open(&args.reading)?;
    let bar = place.bar("stats", common);
    let mut partitions: BTreeMap<(String, u32), Sum> = BTreeMap::new();
    let mut kinds: BTreeMap<u8, (FrameKind, u64, u64)> = BTreeMap::new();
    let mut all = Sum::default();
    let (mut groups, mut total, mut used) = (0u64, 0u64, 0u64);
    let mut histograms: [(&str, Histogram); 5] = [
        ("bytes of a group", Histogram::default()),
        ("frames of a group", Histogram::default()),
        ("bytes of a frame", Histogram::default()),
        ("records of a frame", Histogram::default()),
        ("bytes of a record's body", Histogram::default()),
    ];
    let met = each_group(&place, &bar, &mut |_, state, view| {
        if let Some(header) = view.header {
            groups += 1;
            total += header.total() as u64;
            used += header.used() as u64;
            if header.frames.get() > 0 {
                histograms[0].1.add(header.total() as u64);
                histograms[1].1.add(u64::from(header.frames.get()));
            }
        }
        for frame in view.frames.iter().filter(|frame| frame.is_intact()) {
            if !args.filter.frame(frame, state) {
                continue;
            }
            let kind = kinds.entry(frame.header.kind).or_insert((frame.header.kind(), 0, 0));
            kind.1 += 1;
            kind.2 += frame.bytes.len() as u64;
            let Some(whole) = frame.frame() else { continue };
            let carries = [FrameKind::Data, FrameKind::Half, FrameKind::Delay, FrameKind::Bound];
            if !carries.contains(&frame.header.kind()) {
                continue;
            }
            let Ok(payload) = Payload::parse(&whole) else { continue };
            let (mut raw, mut stored) = (0, 0);
            for (block, bytes) in payload.blocks() {
                raw += u64::from(block.raw_len.get());
                stored += bytes.len() as u64;
            }
            histograms[2].1.add(frame.bytes.len() as u64);
            histograms[3].1.add(u64::from(frame.header.count.get()));
            payload.entries().for_each(|entry| histograms[4].1.add(entry.body_len as u64));
            all.add(frame, raw, stored);
            let name = name_of(state, frame.header.partition.get());
            partitions.entry(name).or_default().add(frame, raw, stored);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    bar.finish_and_clear();
    let amplification = per(total, all.stored);
    if screen.json {
        for ((topic, partition), sum) in &partitions {
            let mut object = sum.object();
            object["topic"] = topic.clone().into();
            object["partition"] = (*partition).into();
            screen.object(&object)?;
        }
        let mut object = all.object();
        object["summary"] = true.into();
        object["groups"] = groups.into();
        object["log_bytes"] = total.into();
        object["padding"] = (total - used).into();
        object["write_amplification"] = amplification.into();
        object["kinds"] = kinds
            .values()
            .map(|(kind, frames, bytes)| json!({"type": format!("{kind:?}").to_lowercase(), "frames": frames, "bytes": bytes}))
            .collect();
        object["histograms"] = histograms
            .iter()
            .map(|(name, histogram)| {
                let rows: Vec<Value> = histogram
                    .rows()
                    .map(|(from, to, count)| json!({"from": from, "to": to, "count": count}))
                    .collect();
                json!({"of": name, "buckets": rows})
            })
            .collect();
        screen.object(&object)?;
    } else {
        let sums: Vec<_> =
            partitions.iter().map(|((topic, partition), sum)| row(screen, topic, *partition, sum)).collect();
        let header = [
            "topic",
            "partition",
            "frames",
            "records",
            "bytes",
            "bodies",
            "compression",
            "records/frame",
            "first",
            "last",
        ];
        screen.table_without(&header, sums, &["first", "last", "bodies", "frames"])?;
        screen.line("")?;
        let kinds = kinds.values().map(|(kind, frames, bytes)| {
            vec![Cell::new(format!("{kind:?}")), Cell::new(thousands(*frames)), Cell::new(Size(*bytes))]
        });
        screen.table(&["type", "frames", "bytes"], kinds.collect())?;
        screen.line("")?;
        screen.line(&format!(
            "{} groups, {} of log: {} padding ({:.1} %), write amplification {amplification:.2}, compression {:.2}",
            thousands(groups),
            Size(total),
            Size(total - used),
            per(total - used, total) * 100.0,
            all.ratio()
        ))?;
        for (name, histogram) in &histograms {
            show_histogram(screen, name, histogram)?;
        }
    }
    match (met.damaged, is_stopped()) {
        (0, false) => Ok(()),
        (0, true) => Err(Failure::said(EXIT_FAILED)),
        _ => Err(Failure::said(EXIT_DAMAGE)),
    }
}

fn row(screen: Screen, topic: &str, partition: u32, sum: &Sum) -> Vec<Cell> {
    let moment = |time: Option<i64>| time.map_or_else(String::new, self::time);
    vec![
        screen.cell(Ink::Bold, topic),
        Cell::new(partition),
        Cell::new(thousands(sum.frames)),
        Cell::new(thousands(sum.records)),
        Cell::new(Size(sum.bytes)),
        Cell::new(Size(sum.raw)),
        Cell::new(format!("{:.2}", sum.ratio())),
        Cell::new(format!("{:.1}", per(sum.records, sum.frames))),
        Cell::new(moment(sum.times.map(|times| times.0))),
        Cell::new(moment(sum.times.map(|times| times.1))),
    ]
}

fn show_histogram(screen: Screen, name: &str, histogram: &Histogram) -> std::io::Result<()> {
    let most = histogram.0.iter().copied().max().unwrap_or(0);
    if most == 0 {
        return Ok(());
    }
    screen.line("")?;
    screen.line(&screen.paint(Ink::Bold, name))?;
    for (from, to, count) in histogram.rows() {
        let bar = "█".repeat((count * 40).div_ceil(most) as usize);
        screen.line(format!("{from:>12} to {to:<12} {:>12}  {bar}", thousands(count)).trim_end())?;
    }
    Ok(())
}
