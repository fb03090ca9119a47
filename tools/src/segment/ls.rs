//! `ringmq segment ls`.

use super::place::{Place, Reading, is_stopped};
use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, Failure};
use crate::format;
use crate::screen::{Ink, Screen, thousands};
use comfy_table::Cell;
use ringmq_segment::directory::{Shard, Slot, SlotState};
use ringmq_segment::log::{Step, walk};
use ringmq_segment::scan::End;
use ringmq_server::units::Size;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const EXAMPLES: &str = "\
Examples:
  ringmq segment ls /var/lib/ringmq              every segment: what is in it, and whether it is whole
  ringmq segment ls /var/lib/ringmq --quick      only what the headers say, at once
  ringmq segment ls /var/lib/ringmq --json | jq 'select(.damaged)'

States: log (part of the log), active (its end), retired (given up, not yet reused), free, making (being prepared),
stray (activated and never used), damaged (its header cannot be read), foreign.
Exit codes: 0 done; 1 failed; 3 something is damaged.";

/// What to list.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    reading: Reading,
    /// Read only headers: nothing is counted.
    #[arg(long)]
    quick: bool,
}

/// What a segment has.
#[derive(Clone, Debug, Default)]
struct Content {
    groups: u64,
    frames: u64,
    records: u64,
    used: u64,
    padding: u64,
    times: Option<(i64, i64)>,
    epochs: Option<(u32, u32)>,
    damages: u64,
    end: Option<&'static str>,
}

/// Lists.
pub(crate) fn run(args: &LsArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let place = Place::open(&args.reading)?;
    let bar = place.bar("reading", common);
    let mut rows = Vec::new();
    let mut damaged = false;
    for shard in &place.directory.shards {
        let contents = if args.quick { BTreeMap::new() } else { read(&place, shard, &bar)? };
        let active = shard.superblock.as_ref().map(|superblock| superblock.active_seq);
        for slot in &shard.slots {
            let content = contents.get(&slot.slot);
            let header_bad =
                slot.state == SlotState::Damaged || shard.faults.iter().any(|(path, _)| *path == slot.path);
            let bad = header_bad || content.is_some_and(|content| content.damages > 0);
            damaged |= bad;
            let state = match slot.facts {
                Some(facts) if slot.state == SlotState::Log && Some(facts.seq) == active => "active",
                _ => slot.state.name(),
            };
            if screen.json {
                screen.object(&object(shard, slot, state, content, bad))?;
            } else {
                rows.push(row(screen, shard, slot, state, content, bad));
            }
        }
    }
    bar.finish_and_clear();
    if !screen.json {
        let header = [
            "shard", "file", "state", "seq", "base LSN", "size", "groups", "frames", "records", "used",
            "padding", "first", "last", "epoch", "damage",
        ];
        let expendable = ["size", "epoch", "padding", "first", "groups", "base LSN", "used"];
        screen.table_without(&header, rows, &expendable)?;
    }
    match (damaged, is_stopped()) {
        (true, _) => Err(Failure::said(EXIT_DAMAGE)),
        (false, true) => Err(Failure::failed("stopped: what was not read yet is shown empty")),
        (false, false) => Ok(()),
    }
}

fn read(
    place: &Place,
    shard: &Shard,
    bar: &indicatif::ProgressBar,
) -> Result<BTreeMap<u32, Content>, Failure> {
    let mut contents: BTreeMap<u32, Content> = BTreeMap::new();
    walk(&place.source, shard, None, None, &mut |step| {
        match step {
            Step::Group(slot, view) => {
                bar.inc(view.bytes.len() as u64);
                let content = contents.entry(slot.slot).or_default();
                content.damages += if view.torn { 0 } else { view.all_faults().len() as u64 };
                if let Some(header) = view.header.filter(|_| !view.torn) {
                    content.groups += 1;
                    content.used += header.used() as u64;
                    content.padding += (header.total() - header.used()) as u64;
                    let epoch = header.epoch.get();
                    let epochs = content.epochs.get_or_insert((epoch, epoch));
                    *epochs = (epochs.0.min(epoch), epochs.1.max(epoch));
                }
                for frame in &view.frames {
                    content.frames += 1;
                    content.records += u64::from(frame.header.count.get());
                    let time = frame.header.timestamp.get();
                    if time > 0 {
                        let times = content.times.get_or_insert((time, time));
                        *times = (times.0.min(time), times.1.max(time));
                    }
                }
            }
            Step::End(slot, scanned) => {
                let content = contents.entry(slot.slot).or_default();
                content.end = Some(match &scanned.end {
                    End::Sealed => "sealed",
                    End::Full => "full",
                    End::Clean => "open",
                    End::Torn(fault) => {
                        content.damages += u64::from(fault.flipped_bit.is_some());
                        "torn"
                    }
                    End::Recycled => "recycled",
                    End::Stopped => "stopped",
                });
            }
            Step::Joint(slot, _) | Step::Unreadable(slot, _) => {
                contents.entry(slot.slot).or_default().damages += 1;
            }
            Step::Segment(..) | Step::SetAside(..) | Step::Missing(..) => {}
        }
        if is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(contents)
}

fn object(shard: &Shard, slot: &Slot, state: &str, content: Option<&Content>, bad: bool) -> Value {
    let mut object = json!({
        "shard": shard.shard.0, "file": slot.path.display().to_string(), "slot": slot.slot, "state": state,
        "file_bytes": slot.len, "damaged": bad,
    });
    if let Some(facts) = slot.facts {
        object["segment"] = facts.seq.0.into();
        object["base_lsn"] = facts.base.0.into();
        object["capacity"] = facts.capacity.into();
        object["previous_segment"] = facts.previous_seq.0.into();
        object["created"] = format::time(facts.created_ms).into();
        object["epoch"] = facts.epoch.0.into();
    }
    if let Some(content) = content {
        object["groups"] = content.groups.into();
        object["frames"] = content.frames.into();
        object["records"] = content.records.into();
        object["used"] = content.used.into();
        object["padding"] = content.padding.into();
        object["first_time"] = content.times.map(|times| format::time(times.0)).into();
        object["last_time"] = content.times.map(|times| format::time(times.1)).into();
        object["damages"] = content.damages.into();
        object["end"] = content.end.into();
    }
    object
}

fn row(
    screen: Screen,
    shard: &Shard,
    slot: &Slot,
    state: &str,
    content: Option<&Content>,
    bad: bool,
) -> Vec<Cell> {
    let name = slot.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let facts = slot.facts.filter(|facts| facts.seq.0 > 0);
    let number = |number: Option<u64>| number.map_or_else(String::new, thousands);
    let size = |number: Option<u64>| number.map_or_else(String::new, |number| Size(number).to_string());
    let time = |time: Option<i64>| time.map_or_else(String::new, format::time);
    let epochs = content.and_then(|content| content.epochs);
    vec![
        Cell::new(shard.shard),
        screen.cell(Ink::Bold, name),
        Cell::new(state),
        Cell::new(facts.map_or_else(String::new, |facts| facts.seq.to_string())),
        Cell::new(facts.map_or_else(String::new, |facts| facts.base.to_string())),
        Cell::new(Size(slot.len)),
        Cell::new(number(content.map(|content| content.groups))),
        Cell::new(number(content.map(|content| content.frames))),
        Cell::new(number(content.map(|content| content.records))),
        Cell::new(size(content.map(|content| content.used))),
        Cell::new(size(content.map(|content| content.padding))),
        Cell::new(time(content.and_then(|content| content.times).map(|times| times.0))),
        Cell::new(time(content.and_then(|content| content.times).map(|times| times.1))),
        Cell::new(match epochs {
            Some((first, last)) if first != last => format!("{first}-{last}"),
            Some((first, _)) => first.to_string(),
            None => String::new(),
        }),
        match (bad, content) {
            (true, Some(content)) if content.damages > 0 => screen.cell(Ink::Red, content.damages),
            (true, _) => screen.cell(Ink::Red, "header"),
            (false, _) => Cell::new(""),
        },
    ]
}
