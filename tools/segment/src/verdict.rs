//! What recovery would decide about a shard, by the same table, without recovery: for where that cannot run, and so
//! that a test can hold the two against each other.

use crate::directory::{Directory, Shard, SlotState};
use crate::fault::Fault;
use crate::group::{FrameView, GroupView};
use crate::log::{Step, walk};
use crate::scan::{End, Point};
use crate::source::Source;
use crate::state::{State, Took};
use ringmq_format::Lsn;
use ringmq_format::frame::{Frame, FrameHeader, FrameKind};
use ringmq_format::late::Late;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use zerocopy::FromBytes;

/// What recovery would decide.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Why the shard would not start.
    pub refused: Option<Refused>,
    /// Where the log would end.
    pub end: Lsn,
    /// It was stopped cleanly.
    pub clean: bool,
    /// Groups that would be read.
    pub groups: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What is cut off at the end, if something begins there.
    pub cut: Option<Fault>,
    /// Frames that would answer `Damaged`.
    pub damaged_frames: Vec<(PathBuf, u64)>,
    /// Groups of which only the padding is damaged.
    pub damaged_padding: u64,
    /// Ranges set aside.
    pub set_aside: Vec<(Lsn, Lsn)>,
    /// Neither of the checkpoints that could be used is whole.
    pub checkpoint_lost: bool,
    /// Tables as they would be.
    pub state: State,
}

/// Why a shard would not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Row of the table; none for a root structure.
    pub row: Option<char>,
    /// The file.
    pub path: PathBuf,
    /// Byte of it.
    pub position: u64,
    /// In words.
    pub reason: String,
}

/// Judges a shard. Reads from the checkpoint on, as recovery does.
pub fn judge(
    source: &Source,
    directory: &Directory,
    shard: &Shard,
    progress: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Verdict> {
    let mut verdict = Verdict::default();
    let log = shard.path.join("log");
    let root =
        |path: PathBuf, reason: &str| Refused { row: None, path, position: 0, reason: reason.to_owned() };
    let foreign = shard.slots.iter().find(|slot| slot.state == SlotState::Foreign);
    if let Some(slot) = foreign {
        verdict.refused = Some(root(slot.path.clone(), "the file belongs to another place"));
        return Ok(verdict);
    }
    if let Some(slot) =
        shard.slots.iter().find(|slot| slot.facts.is_some_and(|facts| facts.capacity > slot.len))
    {
        verdict.refused = Some(root(slot.path.clone(), "the file is shorter than its header says"));
        return Ok(verdict);
    }
    let gap = shard.slots.iter().enumerate().find(|(index, slot)| slot.slot as usize != *index);
    if let Some((_, slot)) = gap {
        verdict.refused = Some(root(slot.path.clone(), "a slot file before this one is missing"));
        return Ok(verdict);
    }
    let Some(superblock) = &shard.superblock else {
        if !shard.slots.is_empty() {
            let path = shard.path.join("superblock");
            verdict.refused = Some(root(path, "none of the four superblock copies is valid"));
        }
        return Ok(verdict);
    };
    verdict.clean = superblock.clean;
    verdict.end = superblock.log_start;
    let mut faults = Vec::new();
    let checkpoint = shard.checkpoint(source, &mut faults);
    verdict.checkpoint_lost = !faults.is_empty();
    if checkpoint.is_none() && superblock.checkpoint.is_some() && superblock.log_start > Lsn(0) {
        let reason = "neither checkpoint can be read, and the log before it is gone";
        verdict.refused = Some(root(shard.path.join("checkpoint.a"), reason));
        return Ok(verdict);
    }
    verdict.state = State::new(superblock.log_start == Lsn(0));
    let from = checkpoint.as_ref().map(|checkpoint| {
        verdict.state.restore(checkpoint, shard.shard, directory.identity.shards);
        let facts = &checkpoint.facts;
        Point { lsn: facts.scan_start, chain: facts.scan_chain, epoch: 0 }
    });
    if let Some(from) = from {
        verdict.end = from.lsn;
    }
    let durable = checkpoint.as_ref().map(|checkpoint| checkpoint.facts.durable_lsn);
    let mut scanned_to = None;
    let walked = walk(source, shard, durable, from, &mut |step| {
        let mut refuse = |row, path: PathBuf, position, reason: String| {
            verdict.refused.get_or_insert(Refused { row, path, position, reason });
        };
        let mut read = 0;
        match &step {
            Step::Group(slot, view) => {
                read = view.bytes.len() as u64;
                if !view.torn {
                    if let Some((row, position, reason)) = refused_group(view) {
                        refuse(Some(row), slot.path.clone(), position, reason);
                    } else {
                        take_group(&mut verdict, slot.path.clone(), view);
                    }
                }
            }
            Step::SetAside(start, end) => verdict.set_aside.push((*start, *end)),
            Step::Missing(..) | Step::Joint(..) => {
                let reason = "the segment behind a sealed one is missing or does not continue it".to_owned();
                refuse(Some('B'), log.clone(), 0, reason);
            }
            Step::Unreadable(slot, error) => {
                refuse(Some('C'), slot.path.clone(), 0, error.to_string());
            }
            Step::End(slot, scanned) => {
                verdict.end = scanned.point.lsn;
                scanned_to = slot.facts.map(|facts| facts.seq);
                if let End::Torn(fault) = &scanned.end {
                    verdict.cut = Some(fault.clone());
                }
            }
            Step::Segment(..) => {}
        }
        if progress(read) || verdict.refused.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    if verdict.refused.is_none() {
        let claim = superblock.durable_lsn.max(durable.unwrap_or_default());
        let ended = matches!(walked.end, Some(End::Sealed | End::Full));
        let known = |seq| shard.slots.iter().any(|slot| slot.facts.is_some_and(|facts| facts.seq == seq));
        let needed = superblock.active_seq >= superblock.log_start_seq && superblock.active_seq.0 > 0;
        if walked.end.is_none() && needed && from.is_none_or(|from| claim > from.lsn) {
            verdict.refused = Some(root(log, "the first segment has no valid header"));
        } else if (ended && claim > walked.point.lsn && claim.0 > end_of(shard, walked.point.lsn))
            || (needed
                && scanned_to.is_none_or(|seq| seq < superblock.active_seq)
                && !known(superblock.active_seq))
        {
            verdict.refused = Some(root(log, "the active segment has no valid header"));
        }
    }
    Ok(verdict)
}

fn end_of(shard: &Shard, lsn: Lsn) -> u64 {
    let facts = shard.log().iter().filter_map(|slot| slot.facts).find(|f| f.base <= lsn && lsn <= f.end());
    facts.map_or(lsn.0, |facts| facts.end().0)
}

/// Row, position and words, if recovery refuses a shard with this group proven durable in it.
fn refused_group(view: &GroupView<'_>) -> Option<(char, u64, String)> {
    let row = view.row();
    let first = view.all_faults().first().map(ToString::to_string).unwrap_or_default();
    if row == 'B' {
        let unreadable = view.faults.iter().any(|fault| fault.structure == "medium");
        return Some((if unreadable { 'C' } else { 'B' }, view.position, first));
    }
    let state_lost = view.frames.iter().find(|frame| !frame.is_intact() && changes_state(frame));
    state_lost
        .map(|frame| ('B', frame.position, "a frame that changes the shard's state is damaged".to_owned()))
}

/// Whether a frame whose payload is damaged leaves the shard's state unknown.
fn changes_state(view: &FrameView<'_>) -> bool {
    match view.header.kind() {
        FrameKind::Data | FrameKind::Bound => false,
        FrameKind::Half | FrameKind::Delay if view.header.aux.get() != 0 => false,
        // Its extension has a check of its own: these wait, and answer `Damaged` when they are bound.
        FrameKind::Half | FrameKind::Delay => match FrameHeader::ref_from_prefix(view.bytes) {
            Ok((header, _)) => Late::parse(&Frame { header, bytes: view.bytes }).is_err(),
            Err(_) => true,
        },
        _ => true,
    }
}

fn take_group(verdict: &mut Verdict, path: PathBuf, view: &GroupView<'_>) {
    verdict.groups += 1;
    verdict.bytes += view.bytes.len() as u64;
    verdict.damaged_padding += u64::from(view.row() == 'P');
    for frame in &view.frames {
        if !frame.is_intact() {
            verdict.damaged_frames.push((path.clone(), frame.position));
        }
        let took = verdict.state.take(frame);
        let aside = !verdict.set_aside.is_empty();
        if matches!(took, Took::Old) || (matches!(took, Took::Hole(..)) && !aside) {
            verdict.refused.get_or_insert(Refused {
                row: Some('B'),
                path: path.clone(),
                position: frame.position,
                reason: "a frame contradicts the ones before it".to_owned(),
            });
        }
    }
}
