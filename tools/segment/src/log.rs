//! A shard's log from one end to the other: its segments in order, joined by their chain.

use crate::directory::{Shard, Slot};
use crate::fault::Fault;
use crate::group::{GroupView, group_header};
use crate::scan::{Context, End, Event, Point, Scanned, scan};
use crate::source::{Source, Window};
use ringmq_format::limits::BLOCK_SIZE;
use ringmq_format::segment::{FIRST_GROUP, SegmentFacts};
use ringmq_format::{Damage, Lsn};
use std::io;
use std::ops::ControlFlow;

/// Headers that are followed one by one before a segment is searched for a witness.
const QUICK_STEPS: usize = 16;

/// What a walk shows.
#[derive(Debug)]
pub enum Step<'a> {
    /// A segment begins.
    Segment(&'a Slot, &'a SegmentFacts),
    /// A group of it, or a hole.
    Group(&'a Slot, &'a GroupView<'a>),
    /// A range that an operator has set aside.
    SetAside(Lsn, Lsn),
    /// The log has bytes here that no file holds.
    Missing(Lsn, Lsn),
    /// The segment ends.
    End(&'a Slot, &'a Scanned),
    /// What joins this segment to the one before is wrong.
    Joint(&'a Slot, Fault),
    /// The file cannot be read any further.
    Unreadable(&'a Slot, &'a io::Error),
}

/// Where a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Behind the last group.
    pub point: Point,
    /// Why there; none without any segment.
    pub end: Option<End>,
}

/// Everything that is known to have been durable, from the roots.
pub fn durable_claim(shard: &Shard, checkpoint: Option<Lsn>) -> Lsn {
    let superblock = shard.superblock.as_ref().map_or(Lsn(0), |superblock| superblock.durable_lsn);
    superblock.max(checkpoint.unwrap_or_default())
}

/// Walks the log from its start, or from a point inside it.
pub fn walk(
    source: &Source,
    shard: &Shard,
    checkpoint_durable: Option<Lsn>,
    from: Option<Point>,
    visit: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
) -> io::Result<Walked> {
    let slots = shard.log();
    let claim = durable_claim(shard, checkpoint_durable);
    let mut walked = Walked { point: from.unwrap_or(Point { lsn: Lsn(0), chain: 0, epoch: 0 }), end: None };
    // The segment before: its end, its number, and whether its chain is known to the end.
    let mut before: Option<(Lsn, u64, bool)> = None;
    for (index, slot) in slots.iter().enumerate() {
        let Some(facts) = slot.facts else { continue };
        if from.is_some_and(|from| facts.end() <= from.lsn) {
            continue;
        }
        let first = facts.base.plus(FIRST_GROUP);
        let point = match from.filter(|from| from.lsn > first && from.lsn < facts.end()) {
            Some(from) => from,
            None => Point { lsn: first, chain: facts.previous_chain, epoch: walked.point.epoch },
        };
        if let Some((end, seq, chain_known)) = before {
            let joint = |field, damage, expected, found| {
                Step::Joint(slot, Fault::field(0, "SegmentHeader", field, (damage, expected, found)))
            };
            let step = if facts.base > end {
                Some(Step::Missing(end, facts.base))
            } else if facts.previous_seq.0 != seq {
                Some(joint("previous_seq", Damage::Chain, seq, facts.previous_seq.0))
            } else if chain_known && facts.previous_chain != walked.point.chain {
                Some(joint("previous_chain", Damage::Chain, walked.point.chain, facts.previous_chain))
            } else {
                None
            };
            if step.is_some_and(|step| visit(step).is_break()) {
                return Ok(Walked { end: Some(End::Stopped), ..walked });
            }
        }
        let mut context = Context {
            durable: claim,
            cut: shard.superblock.as_ref().map(|superblock| (superblock.durable_lsn, superblock.epoch.0)),
            quarantine: shard.superblock.as_ref().map(|s| s.quarantine.clone()).unwrap_or_default(),
        };
        for later in &slots[index + 1..] {
            if context.durable >= facts.end() {
                break;
            }
            context.durable = context.durable.max(witness(source, later));
        }
        if visit(Step::Segment(slot, &facts)).is_break() {
            return Ok(Walked { end: Some(End::Stopped), ..walked });
        }
        let mut damaged = false;
        let scanned = source.open(&slot.path).and_then(|file| {
            let mut window = Window::new(file, facts.capacity);
            scan(&mut window, &facts, point, &context, &mut |event| match event {
                Event::Group(view) => {
                    damaged |= view.header.is_none();
                    visit(Step::Group(slot, view))
                }
                Event::SetAside(start, end) => visit(Step::SetAside(start, end)),
            })
        });
        let scanned = match scanned {
            Ok(scanned) => scanned,
            Err(error) => {
                if visit(Step::Unreadable(slot, &error)).is_break() {
                    return Ok(Walked { end: Some(End::Stopped), ..walked });
                }
                before = Some((facts.end(), facts.seq.0, false));
                continue;
            }
        };
        let flow = visit(Step::End(slot, &scanned));
        walked = Walked { point: scanned.point, end: Some(scanned.end.clone()) };
        let goes_on = match scanned.end {
            End::Sealed | End::Full | End::Recycled => true,
            End::Stopped => false,
            // Without a seal the log ends here, unless it is proven that it went on.
            End::Clean | End::Torn(_) => context.durable >= facts.end(),
        };
        if flow.is_break() || !goes_on {
            return Ok(walked);
        }
        let chain_known = scanned.end == End::Sealed && scanned.point.lsn <= facts.end();
        before =
            Some((facts.end(), facts.seq.0, chain_known && !(damaged && scanned.point.lsn >= facts.end())));
    }
    Ok(walked)
}

/// What the headers of a later segment say had been durable: of the first groups, until one says that everything
/// before this segment was.
fn witness(source: &Source, slot: &Slot) -> Lsn {
    let Some(facts) = slot.facts else { return Lsn(0) };
    let Ok(file) = source.open(&slot.path) else { return Lsn(0) };
    let (mut position, mut durable) = (FIRST_GROUP, Lsn(0));
    let here = |position: u64, block: &[u8]| group_header(block, &facts, facts.base.plus(position), false);
    for _ in 0..QUICK_STEPS {
        let block = file.read(position, BLOCK_SIZE).unwrap_or_default();
        let Ok((header, _)) = here(position, &block) else { break };
        durable = durable.max(Lsn(header.durable_lsn.get()));
        position += header.total() as u64;
        if durable >= facts.base {
            return durable;
        }
    }
    let mut window = Window::new(file, facts.capacity);
    while position < facts.capacity && durable < facts.base {
        let Ok(block) = window.load(position, BLOCK_SIZE) else { break };
        if block.is_empty() {
            break;
        }
        if let Ok((header, _)) = here(position, block) {
            durable = durable.max(Lsn(header.durable_lsn.get()));
        }
        position += BLOCK_SIZE as u64;
    }
    durable
}
