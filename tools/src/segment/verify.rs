//! `ringmq segment verify`: everything that can be checked, and what each damage costs.

use super::place::{Place, Reading, is_stopped};
use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, Failure};
use crate::screen::{Ink, Screen, duration, thousands};
use ringmq_format::Corruption;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::consumer_group::ConsumerGroup;
use ringmq_format::cursor::{decode_acks, decode_cursors};
use ringmq_format::frame::FrameKind;
use ringmq_format::late::{Bind, Late, Mark, parse_timers};
use ringmq_format::record::Payload;
use ringmq_segment::bodies::Bodies;
use ringmq_segment::directory::{Shard, Slot};
use ringmq_segment::fault::Fault;
use ringmq_segment::group::{FrameView, GroupView};
use ringmq_segment::late::bind_of;
use ringmq_segment::log::{Step, walk};
use ringmq_segment::scan::End;
use ringmq_segment::sidecar::{Sum, check_sidecar};
use ringmq_segment::state::{State, Took};
use ringmq_server::units::Size;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  ringmq segment verify /var/lib/ringmq                           the whole directory, a server may run on it
  ringmq segment verify /var/lib/ringmq/shard-00/log/003.seg      one file
  ringmq segment verify /var/lib/ringmq --json | jq 'select(.damage)'

Every damage is named with file, byte and field; where one flipped bit explains it, the bit. `row` is what recovery
would decide (FORMAT.md, section 14). A torn tail is no damage: it was never acknowledged.
Checksums are computed by another implementation than the server's.
Exit codes: 0 whole; 1 could not be read, or stopped by Ctrl-C; 3 damage found.";

/// What to check.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Default)]
struct Tally {
    segments: u64,
    groups: u64,
    frames: u64,
    records: u64,
    bytes: u64,
    damages: u64,
    frames_lost: u64,
    records_lost: u64,
    torn: u64,
}

struct Verify<'a> {
    screen: Screen,
    tally: &'a mut Tally,
    shard: u16,
    of: &'a Shard,
    bodies: Bodies,
    state: State,
    /// Holes are those of a range set aside.
    aside: bool,
    /// Something of this log is damaged.
    broken: bool,
    index: Sum,
    error: Option<std::io::Error>,
}

/// Checks.
pub(crate) fn run(args: &VerifyArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let place = Place::open(&args.reading)?;
    let bar = place.bar("verify", common);
    let begun = Instant::now();
    let mut tally = Tally::default();
    for (path, fault) in &place.directory.faults {
        root_fault(screen, &mut tally, None, path, fault)?;
    }
    for shard in &place.directory.shards {
        check_shard(&place, shard, &mut tally, screen, &bar)?;
        if is_stopped() {
            break;
        }
    }
    bar.finish_and_clear();
    let seconds = begun.elapsed();
    let rate = tally.bytes as f64 / seconds.as_secs_f64().max(1e-6);
    if screen.json {
        screen.object(&json!({
            "summary": true, "segments": tally.segments, "groups": tally.groups, "frames": tally.frames,
            "records": tally.records, "bytes": tally.bytes, "damages": tally.damages,
            "frames_lost": tally.frames_lost, "records_lost": tally.records_lost, "torn_tails": tally.torn,
            "seconds": seconds.as_secs_f64(), "bytes_per_second": rate as u64, "complete": !is_stopped(),
        }))?;
    } else {
        let verdict = match (tally.damages, is_stopped()) {
            (0, false) => screen.paint(Ink::Green, "whole:"),
            (0, true) => screen.paint(Ink::Yellow, "stopped, whole so far:"),
            _ => screen.paint(Ink::Red, &format!("{} damages:", thousands(tally.damages))),
        };
        screen.line(&format!(
            "{verdict} {} segments, {} groups, {} frames, {} records, {} in {} ({}/s)",
            thousands(tally.segments),
            thousands(tally.groups),
            thousands(tally.frames),
            thousands(tally.records),
            Size(tally.bytes),
            duration(seconds),
            Size(rate as u64)
        ))?;
        if tally.damages > 0 {
            screen.line(&format!(
                "cost: {} frames with {} records. `ringmq segment salvage` takes everything else into a new directory",
                thousands(tally.frames_lost),
                thousands(tally.records_lost)
            ))?;
        }
    }
    match (tally.damages, is_stopped()) {
        (0, false) => Ok(()),
        (0, true) => Err(Failure::said(crate::failure::EXIT_FAILED)),
        _ => Err(Failure::said(EXIT_DAMAGE)),
    }
}

fn check_shard(
    place: &Place,
    shard: &Shard,
    tally: &mut Tally,
    screen: Screen,
    bar: &indicatif::ProgressBar,
) -> Result<(), Failure> {
    for (path, fault) in &shard.faults {
        root_fault(screen, tally, Some(shard.shard.0), path, fault)?;
    }
    let mut faults = Vec::new();
    let checkpoint = place.file.is_none().then(|| shard.checkpoint(&place.source, &mut faults)).flatten();
    for (path, fault) in &faults {
        root_fault(screen, tally, Some(shard.shard.0), path, fault)?;
    }
    let mut state = State::new(starts_at_zero(shard));
    if let Some(checkpoint) = &checkpoint {
        state.restore(checkpoint, shard.shard, place.directory.identity.shards);
        state.forget_partitions();
    }
    let durable = checkpoint.as_ref().map(|checkpoint| checkpoint.facts.durable_lsn);
    let mut verify = Verify {
        screen,
        tally,
        shard: shard.shard.0,
        of: shard,
        bodies: Bodies::new(checkpoint.as_ref()),
        state,
        aside: false,
        broken: false,
        index: Sum::default(),
        error: None,
    };
    walk(&place.source, shard, durable, None, &mut |step| {
        let begun = match &step {
            Step::Group(_, view) => view.bytes.len() as u64,
            _ => 0,
        };
        bar.inc(begun);
        if let Err(error) = verify.step(place, &step) {
            verify.error = Some(error);
            return ControlFlow::Break(());
        }
        if is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    verify.error.map_or(Ok(()), |error| Err(error.into()))
}

/// The log is kept from its first byte on.
pub(crate) fn starts_at_zero(shard: &Shard) -> bool {
    shard.log().first().and_then(|slot| slot.facts).is_some_and(|facts| facts.base.0 == 0)
}

fn root_fault(
    screen: Screen,
    tally: &mut Tally,
    shard: Option<u16>,
    path: &Path,
    fault: &Fault,
) -> std::io::Result<()> {
    tally.damages += 1;
    if screen.json {
        let mut object = fault_json(path, fault);
        object["shard"] = shard.into();
        object["cost"] = json!("none while another copy is whole");
        return screen.object(&object);
    }
    screen.line(&format!("{} {}: {fault}", screen.paint(Ink::Red, "damaged"), path.display()))
}

/// A fault as an object.
pub(crate) fn fault_json(path: &Path, fault: &Fault) -> Value {
    json!({
        "damage": fault.damage.to_string(), "file": path.display().to_string(), "position": fault.position,
        "structure": fault.structure, "field": fault.field, "expected": fault.expected, "found": fault.found,
        "flipped_bit": fault.flipped_bit,
    })
}

/// What is wrong with the contents of a frame whose checksums hold.
fn contents(view: &FrameView<'_>) -> Option<(&'static str, Corruption)> {
    let frame = view.frame()?;
    let records = || Payload::parse(&frame).err().map(|corruption| ("payload", corruption));
    match view.header.kind() {
        FrameKind::Data | FrameKind::Bound => records(),
        FrameKind::Half | FrameKind::Delay => {
            let late = Late::parse(&frame).err().map(|corruption| ("LateExtension", corruption));
            late.or_else(records)
        }
        FrameKind::Bind => Bind::parse(&frame).err().map(|corruption| ("BindPayload", corruption)),
        FrameKind::Timer => parse_timers(&frame).err().map(|corruption| ("TimerItem", corruption)),
        FrameKind::Topic => {
            TopicEntry::take(&mut frame.payload()).err().map(|error| ("TopicEntryHeader", error))
        }
        FrameKind::Group => ConsumerGroup::take(&mut frame.payload())
            .err()
            .map(|corruption| ("ConsumerGroupHeader", corruption)),
        FrameKind::Cursor => {
            decode_cursors(frame.payload()).err().map(|corruption| ("CursorHeader", corruption))
        }
        FrameKind::Ack => decode_acks(frame.payload()).err().map(|corruption| ("AckHeader", corruption)),
        FrameKind::Commit
        | FrameKind::Abort
        | FrameKind::Decision
        | FrameKind::Apply
        | FrameKind::Done
        | FrameKind::Check => Mark::parse(&frame).err().map(|corruption| ("TransactionMark", corruption)),
        _ => None,
    }
}

impl Verify<'_> {
    fn step(&mut self, place: &Place, step: &Step<'_>) -> std::io::Result<()> {
        match step {
            Step::Segment(..) => {
                self.tally.segments += 1;
                self.index = Sum::default();
            }
            Step::Group(slot, view) => self.group(place, slot, view)?,
            Step::SetAside(start, end) => {
                self.aside = true;
                self.note("set aside", &format!("positions {start} to {end} of the log, by an operator"))?;
            }
            Step::Missing(from, to) => {
                self.broken = true;
                self.tally.damages += 1;
                let text = format!("no file holds positions {from} to {to} of the log");
                self.bad(&text, json!({"damage": "segment missing", "from": from.0, "to": to.0}))?;
            }
            Step::Joint(slot, fault) => {
                self.broken = true;
                self.tally.damages += 1;
                self.bad(&format!("{}: {fault}", slot.path.display()), fault_json(&slot.path, fault))?;
            }
            Step::Unreadable(slot, error) => {
                self.broken = true;
                self.tally.damages += 1;
                let text = format!("{} cannot be read: {error}", slot.path.display());
                self.bad(&text, json!({"damage": "unreadable", "file": slot.path.display().to_string()}))?;
            }
            Step::End(slot, scanned) => match &scanned.end {
                End::Torn(fault) if fault.flipped_bit.is_none() => {
                    self.tally.torn += 1;
                    let text = format!("{}: {fault}: a torn tail, never acknowledged", slot.path.display());
                    self.note("cut here", &text)?;
                }
                End::Recycled => {
                    self.note("note", &format!("{} was recycled meanwhile", slot.path.display()))?
                }
                End::Sealed | End::Full if place.file.is_none() => {
                    for (path, fault) in check_sidecar(&place.source, slot, &self.index) {
                        self.tally.damages += 1;
                        let text = format!("{}: {fault}: the server makes it anew", path.display());
                        self.bad(&text, fault_json(&path, &fault))?;
                    }
                }
                _ => {}
            },
        }
        Ok(())
    }

    fn group(&mut self, place: &Place, slot: &Slot, view: &GroupView<'_>) -> std::io::Result<()> {
        self.broken |= !view.is_whole();
        self.tally.groups += u64::from(view.header.is_some());
        self.tally.bytes += view.bytes.len() as u64;
        for frame in &view.frames {
            self.tally.frames += 1;
            self.tally.records += u64::from(frame.header.count.get());
            self.index.add_frame(frame);
            self.bodies.see(frame);
            if let Some((structure, corruption)) = contents(frame) {
                self.tally.damages += 1;
                let fault = Fault::of(frame.position + 64, structure, &corruption);
                let text = format!("{}: {fault}, though its checksum holds", slot.path.display());
                self.bad(&text, fault_json(&slot.path, &fault))?;
            }
            if place.file.is_none()
                && let Some(bind) = bind_of(frame)
                && let Err(reason) = self.bodies.find(&place.source, self.of, &bind)
            {
                self.tally.damages += 1;
                self.tally.records_lost += u64::from(bind.count);
                let name = self.partition_name(frame);
                let text = format!(
                    "{}: the BIND at byte {} of {name}: {reason}",
                    slot.path.display(),
                    frame.position
                );
                let object = json!({
                    "damage": "reference", "file": slot.path.display().to_string(), "position": frame.position,
                    "partition_id": frame.header.partition.get(), "first_offset": frame.header.base_offset.get(),
                    "records": bind.count, "target": bind.target.0, "reason": reason,
                });
                self.bad(&text, object)?;
            }
            if view.torn && !frame.is_intact() {
                continue;
            }
            match self.state.take(frame) {
                Took::Fits => {}
                Took::Hole(from, to) if self.aside => {
                    let name = self.partition_name(frame);
                    self.note("set aside", &format!("{name}: offsets {from} to {}", to - 1))?;
                }
                // An unbroken chain has lost nothing: they were lost before it was written.
                Took::Hole(from, to) if !self.broken => {
                    let name = self.partition_name(frame);
                    let text =
                        format!("{name}: offsets {from} to {} were lost before this log was made", to - 1);
                    self.note("note", &text)?;
                }
                Took::Hole(from, to) => {
                    self.tally.damages += 1;
                    self.tally.records_lost += to - from;
                    let name = self.partition_name(frame);
                    let text = format!("{name}: offsets {from} to {} are missing", to - 1);
                    let partition = frame.header.partition.get();
                    let object = json!({
                        "damage": "offsets missing", "file": slot.path.display().to_string(),
                        "position": frame.position, "partition_id": partition, "from": from, "to": to,
                    });
                    self.bad(&text, object)?;
                }
                Took::Old => {
                    self.tally.damages += 1;
                    let name = self.partition_name(frame);
                    let fault = Fault::field(
                        frame.position,
                        "FrameHeader",
                        "base_offset",
                        (ringmq_format::Damage::Field, 0, frame.header.base_offset.get()),
                    );
                    let text = format!("{}: {fault}: {name} had that offset before", slot.path.display());
                    self.bad(&text, fault_json(&slot.path, &fault))?;
                }
            }
        }
        if view.is_whole() {
            return Ok(());
        }
        if view.torn && view.all_faults().iter().all(|fault| fault.flipped_bit.is_none()) {
            return Ok(()); // said at the end
        }
        for fault in view.all_faults() {
            self.tally.damages += 1;
            let touched = view.frames.iter().find(|frame| {
                [&frame.header_fault, &frame.payload_fault].into_iter().flatten().any(|own| own == fault)
            });
            let (cost, lost) = self.cost(view, touched, fault);
            let row = view.row();
            if self.screen.json {
                let mut object = fault_json(&slot.path, fault);
                object["shard"] = self.shard.into();
                object["row"] = row.to_string().into();
                object["group"] = view.position.into();
                object["lsn"] = view.lsn.0.into();
                object["cost"] = lost;
                self.screen.object(&object)?;
            } else {
                let head = self.screen.paint(Ink::Red, "damaged");
                self.screen.line(&format!("{head} row {row}: {}: {fault}", slot.path.display()))?;
                self.screen.line(&format!("  cost: {cost}"))?;
            }
        }
        for frame in view.frames.iter().filter(|frame| !frame.is_intact()) {
            self.tally.frames_lost += 1;
            self.tally.records_lost += u64::from(frame.header.count.get());
        }
        self.tally.frames_lost += u64::from(view.lost_frames);
        Ok(())
    }

    fn cost(&self, view: &GroupView<'_>, touched: Option<&FrameView<'_>>, fault: &Fault) -> (String, Value) {
        match touched {
            Some(frame) => {
                let (from, to) = (frame.header.base_offset.get(), frame.end_offset().0);
                let kind = frame.header.kind();
                let name = self.partition_name(frame);
                let text = if frame.header.count.get() > 0 && frame.header.partition.get() != 0 {
                    format!("a {kind:?} frame of {name}, offsets {from} to {}", to.saturating_sub(1))
                } else {
                    format!("a {kind:?} frame")
                };
                let object = json!({
                    "frame": frame.position, "kind": format!("{kind:?}"), "partition_id": frame.header.partition.get(),
                    "first_offset": from, "records": frame.header.count.get(),
                });
                (text, object)
            }
            None if view.header.is_none() => {
                let text = format!("unknown; {} frames are recognised in it", view.frames.len());
                (text, json!({"unknown": true, "recognised_frames": view.frames.len()}))
            }
            None if view.lost_frames > 0 && fault.structure == "FrameHeader" => {
                let text = format!("{} frames that cannot be told any more", view.lost_frames);
                (text, json!({"frames": view.lost_frames}))
            }
            None => ("nothing: every frame is intact".to_owned(), json!("nothing")),
        }
    }

    fn partition_name(&self, frame: &FrameView<'_>) -> String {
        let id = frame.header.partition.get();
        match self.state.topic_of(id) {
            Some((topic, number)) => format!("{}[{number}]", topic.name),
            None => format!("partition id {id}"),
        }
    }

    fn bad(&self, text: &str, mut object: Value) -> std::io::Result<()> {
        if self.screen.json {
            object["shard"] = self.shard.into();
            return self.screen.object(&object);
        }
        self.screen.line(&format!("{} {text}", self.screen.paint(Ink::Red, "damaged")))
    }

    fn note(&self, head: &str, text: &str) -> std::io::Result<()> {
        if self.screen.json {
            return self.screen.object(&json!({"note": head, "shard": self.shard, "text": text}));
        }
        self.screen.line(&format!("{} {text}", self.screen.paint(Ink::Yellow, head)))
    }
}
