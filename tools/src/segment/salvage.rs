//! `ringmq segment salvage`: every undamaged record into a fresh directory, and a report of what is missing.

use super::place::{Place, Reading, is_stopped};
use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, Failure};
use crate::screen::{Ink, Screen, thousands};
use ringmq_format::Lsn;
use ringmq_format::superblock::Durability;
use ringmq_segment::build::{Builder, Target};
use ringmq_segment::directory::Directory;
use ringmq_segment::rescue::{Report, Wanted, take};
use ringmq_segment::state::State;
use ringmq_server::units::Size;
use serde_json::json;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  ringmq segment salvage /var/lib/ringmq --to /mnt/saved        then: ringmq server --data /mnt/saved
  ringmq segment salvage /var/lib/ringmq --to /mnt/saved --json > missing.jsonl

Records keep topic, partition, offset, time and producer. Halves of open transactions and delayed messages are taken,
too; what was bound becomes an ordinary record. What is missing is named with its offsets; consumers are told
Damaged there. Nothing is written to the damaged directory. The new one must not exist, or be empty; it is checked at
the end. A server takes it only if it was finished.
Exit codes: 0 nothing was missing; 1 failed; 3 something is missing, and everything else is in the new directory.";

/// From where to where.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SalvageArgs {
    #[command(flatten)]
    reading: Reading,
    /// The new directory.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

/// Saves.
pub(crate) fn run(args: &SalvageArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let place = Place::open(&args.reading)?;
    let directory = &place.directory;
    if directory
        .path
        .canonicalize()
        .ok()
        .is_some_and(|path| args.to.canonicalize().is_ok_and(|to| to == path))
    {
        return Err(Failure::wrong_use("the new directory is the damaged one"));
    }
    let mut builder =
        Builder::create(target(directory, &args.to)).map_err(|error| Failure::failed(error.to_string()))?;
    let bar = place.bar("salvage", common);
    let (tables, report) = take(&place.source, directory, &Wanted::default(), &mut builder, &mut |read| {
        bar.inc(read);
        is_stopped()
    })?;
    bar.finish_and_clear();
    if report.stopped {
        return Err(Failure::failed("stopped: the new directory is not finished, and no server takes it")
            .cure(format!("remove it: rm -r {}", args.to.display())));
    }
    let mut topics = State::default();
    builder.topics().values().for_each(|topic| topics.enter_topic(topic.clone()));
    builder.finish(&tables.partitions, &tables.late)?;
    show(screen, &topics, &report)?;
    check(&args.to, args.reading.io, report.frames)?;
    let lost = !report.missing.is_empty() || !report.other_damage.is_empty();
    if screen.json {
        screen.object(&json!({
            "summary": true, "frames": report.frames, "records": report.records, "bytes": report.bytes,
            "waiting": report.waiting, "records_missing": report.records_missing(), "missing_ranges": report.missing.len(),
            "more_missing": report.missing_cut, "stale_frames": report.stale, "made_up_topics": report.made_up,
            "to": args.to.display().to_string(), "verified": true,
        }))?;
    } else {
        let head =
            if lost { screen.paint(Ink::Yellow, "saved:") } else { screen.paint(Ink::Green, "saved all:") };
        screen.line(&format!(
            "{head} {} records in {} frames ({}) into {}, checked. Missing: {} records",
            thousands(report.records),
            thousands(report.frames),
            Size(report.bytes),
            args.to.display(),
            thousands(report.records_missing())
        ))?;
        screen.line(&format!("next: ringmq server --data {}", args.to.display()))?;
    }
    if lost { Err(Failure::said(EXIT_DAMAGE)) } else { Ok(()) }
}

/// A directory like that one: as many shards, behind all positions that its frames may speak of.
pub(crate) fn target(directory: &Directory, to: &Path) -> Target {
    let mut bases = vec![Lsn(0); usize::from(directory.identity.shards)];
    let mut durability = Durability::Flush;
    for shard in &directory.shards {
        let ends = shard.slots.iter().filter_map(|slot| slot.facts).map(|facts| facts.end().0);
        let end = ends.max().unwrap_or(0);
        // A terabyte-aligned start shows at a glance that a log was saved; any multiple of a block would do.
        bases[usize::from(shard.shard.0)] = Lsn(end.next_multiple_of(1 << 30));
        durability = shard.superblock.as_ref().map_or(durability, |superblock| superblock.durability);
    }
    Target {
        path: to.to_owned(),
        shards: directory.identity.shards,
        durability,
        now_ms: now_ms(),
        bases,
        seed: None,
    }
}

/// The wall clock, Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn show(screen: Screen, topics: &State, report: &Report) -> std::io::Result<()> {
    for missing in &report.missing {
        let name = match topics.topic_of(missing.partition) {
            Some((topic, number)) => format!("{}[{number}]", topic.name),
            None => format!("partition id {}", missing.partition),
        };
        if screen.json {
            screen.object(&json!({
                "missing": name, "shard": missing.shard, "partition_id": missing.partition, "from": missing.from,
                "to": missing.to, "records": missing.to - missing.from, "reason": missing.reason,
            }))?;
        } else {
            let head = screen.paint(Ink::Red, "missing");
            screen.line(&format!(
                "{head} {name} offsets {} to {}: {}",
                missing.from,
                missing.to - 1,
                missing.reason
            ))?;
        }
    }
    for damage in &report.other_damage {
        if screen.json {
            screen.object(&json!({"damage": damage}))?;
        } else {
            screen.line(&format!("{} {damage}", screen.paint(Ink::Yellow, "damage")))?;
        }
    }
    Ok(())
}

/// Reads a directory that was just written, checking every checksum.
pub(crate) fn check(to: &Path, io: super::place::Io, frames: u64) -> Result<(), Failure> {
    let place = Place::open(&Reading { path: to.to_owned(), shard: None, io })?;
    let mut found = 0;
    let bar = indicatif::ProgressBar::hidden();
    let met = super::filter::each_group(&place, &bar, &mut |_, _, view| {
        let frames =
            view.frames.iter().filter(|frame| frame.header.kind() != ringmq_format::frame::FrameKind::Topic);
        found += frames.count() as u64;
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    let roots =
        place.directory.faults.len() + place.directory.shards.iter().map(|s| s.faults.len()).sum::<usize>();
    if met.damaged + met.torn > 0 || roots > 0 || found != frames {
        return Err(Failure::failed(format!(
            "{} does not read back: {found} of {frames} frames, {} damaged groups",
            to.display(),
            met.damaged + met.torn
        ))
        .cure("the disk under the new directory is not to be trusted"));
    }
    Ok(())
}
