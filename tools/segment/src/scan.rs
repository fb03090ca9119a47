//! The groups of one segment, in order, past what is damaged.
//!
//! At each place the question of recovery is asked: is what stands here whole, and if not, does a *witness* prove that
//! it had been durable? With one, the scan goes on behind the damage; without one the log ends here. Differences from
//! recovery: nothing is refused, and of a torn tail the intact frames are shown, marked as such.
//!
//! Invariants  A1  Positions only grow, and each round moves by at least a block: a scan of any bytes ends.
//!             A2  What looks like damage is read anew once: beside a live server it may just have been written.

use crate::fault::Fault;
use crate::group::{GroupView, examine, group_header, next_chain, recognise};
use crate::source::Window;
use ringmq_format::group::{GroupHeader, GroupKind};
use ringmq_format::limits::{BLOCK_SIZE, GROUP_HEADER_SIZE, GROUP_SIZE_MAX};
use ringmq_format::segment::{FIRST_GROUP, SegmentFacts};
use ringmq_format::{Damage, Lsn};
use std::io;
use std::ops::ControlFlow;

/// Where a scan stands, as recovery's does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Start of the next group.
    pub lsn: Lsn,
    /// Its `chain` must be this.
    pub chain: u64,
    /// Its epoch must be at least this.
    pub epoch: u32,
}

/// What is known of the log beyond this segment.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Everything below had been durable: superblock, checkpoint, or a segment that continues this one.
    pub durable: Lsn,
    /// From this LSN on, groups of an epoch below this are none.
    pub cut: Option<(Lsn, u32)>,
    /// Ranges set aside: start, end, chain.
    pub quarantine: Vec<(Lsn, Lsn, u64)>,
}

/// Why a scan ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At a seal.
    Sealed,
    /// At the end of the file.
    Full,
    /// Nothing of this life stands here, and nothing should: zeros, or what an earlier life has left.
    Clean,
    /// Here something begins that is not whole and was never proven durable.
    Torn(Fault),
    /// The slot got another segment meanwhile.
    Recycled,
    /// The visitor has seen enough.
    Stopped,
}

/// The end of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Behind the last group.
    pub point: Point,
    /// Why there.
    pub end: End,
}

/// What a scan shows.
#[derive(Debug)]
pub enum Event<'a> {
    /// A group, or a hole with what is recognised in it.
    Group(&'a GroupView<'a>),
    /// A range that an operator has set aside.
    SetAside(Lsn, Lsn),
}

/// Scans from the point on.
pub fn scan(
    window: &mut Window,
    facts: &SegmentFacts,
    mut point: Point,
    context: &Context,
    visit: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> io::Result<Scanned> {
    let mut again = None;
    loop {
        let aside = context.quarantine.iter().find(|aside| aside.0 == point.lsn && aside.1 > aside.0);
        if let Some((start, end, chain)) = aside.copied() {
            point = Point { lsn: end.min(facts.end()), chain, ..point };
            if visit(Event::SetAside(start, end)).is_break() {
                return Ok(Scanned { point, end: End::Stopped });
            }
            continue;
        }
        if let Some((from, epoch)) = context.cut
            && point.lsn >= from
        {
            point.epoch = point.epoch.max(epoch);
        }
        let position = point.lsn.0 - facts.base.0;
        if position + GROUP_HEADER_SIZE as u64 > facts.capacity {
            return Ok(Scanned { point, end: End::Full });
        }
        let found = at(window, facts, &point, position)?;
        if let Ok((header, None)) = &found {
            let view = examine(facts, point.lsn, *header, None, window.bytes(position, header.total()));
            if view.is_whole() {
                let flow = visit(Event::Group(&view));
                point = behind(&point, header);
                match (flow.is_break(), header.kind() == GroupKind::Seal) {
                    (true, _) => return Ok(Scanned { point, end: End::Stopped }),
                    (false, true) => return Ok(Scanned { point, end: End::Sealed }),
                    (false, false) => continue,
                }
            }
        }
        if again != Some(position) {
            again = Some(position);
            if is_recycled(window, facts)? {
                return Ok(Scanned { point, end: End::Recycled });
            }
            window.restart(position); // A2
            continue;
        }
        match found {
            Ok((header, fault)) => {
                let witness = proven(window, facts, point.lsn, context)?;
                window.load(position, header.total())?;
                let bytes = window.bytes(position, header.total());
                let mut view = examine(facts, point.lsn, header, fault, bytes);
                view.torn = !witness;
                let torn = view.torn.then(|| view.all_faults().first().copied().cloned()).flatten();
                let flow = visit(Event::Group(&view));
                if let Some(fault) = torn {
                    return Ok(Scanned { point, end: End::Torn(fault) });
                }
                point = behind(&point, &header);
                let end = match (flow.is_break(), header.kind() == GroupKind::Seal) {
                    (true, _) => End::Stopped,
                    (false, true) => End::Sealed,
                    (false, false) => continue,
                };
                return Ok(Scanned { point, end });
            }
            Err(fault) => {
                if !proven(window, facts, point.lsn, context)? {
                    return Ok(Scanned { point, end: tail(window, facts, position, fault)? });
                }
                let next = resume(window, facts, &point, position)?;
                let flow = hole(window, facts, position, next.lsn.0 - facts.base.0, fault, visit)?;
                point = next;
                if flow.is_break() {
                    return Ok(Scanned { point, end: End::Stopped });
                }
            }
        }
    }
}

fn behind(point: &Point, header: &GroupHeader) -> Point {
    Point { lsn: point.lsn.plus(header.total() as u64), chain: next_chain(header), epoch: header.epoch.get() }
}

/// The header at the point, with one flipped bit turned back at most, and all of its group in the window.
#[allow(clippy::type_complexity)]
fn at(
    window: &mut Window,
    facts: &SegmentFacts,
    point: &Point,
    position: u64,
) -> io::Result<Result<(GroupHeader, Option<Fault>), Fault>> {
    let bytes = window.load(position, BLOCK_SIZE)?;
    let field = |field, damage, expected, found| {
        Fault::field(position, "GroupHeader", field, (damage, expected, found))
    };
    let parsed = group_header(bytes, facts, point.lsn, true);
    if let Some(bad) = window.unreadable(position, BLOCK_SIZE) {
        return Ok(Err(unreadable(bad)));
    }
    let (header, fault) = match parsed {
        Ok(parsed) => parsed,
        Err(fault) => return Ok(Err(fault)),
    };
    if header.chain.get() != point.chain {
        return Ok(Err(field("chain", Damage::Chain, point.chain, header.chain.get())));
    }
    if header.epoch.get() < point.epoch {
        return Ok(Err(field("epoch", Damage::Stale, u64::from(point.epoch), u64::from(header.epoch.get()))));
    }
    let end = position + header.total() as u64;
    if end > facts.capacity {
        return Ok(Err(field("total", Damage::Field, facts.capacity, end)));
    }
    let len = window.load(position, header.total())?.len();
    if len < header.total() {
        return Ok(Err(field("total", Damage::Truncated, header.total() as u64, len as u64)));
    }
    match window.unreadable(position, header.total()) {
        Some(bad) => Ok(Err(unreadable(bad))),
        None => Ok(Ok((header, fault))),
    }
}

fn unreadable(position: u64) -> Fault {
    Fault {
        position,
        structure: "medium",
        field: "sector cannot be read",
        damage: Damage::Truncated,
        expected: BLOCK_SIZE as u64,
        found: 0,
        flipped_bit: None,
    }
}

fn is_recycled(window: &Window, facts: &SegmentFacts) -> io::Result<bool> {
    let bytes = window.file().read(0, FIRST_GROUP as usize)?;
    let now = SegmentFacts::parse(&bytes);
    Ok(now.is_ok_and(|now| now.incarnation != facts.incarnation || now.seq != facts.seq))
}

/// Is there proof that what stands at `lsn` had been durable?
fn proven(window: &mut Window, facts: &SegmentFacts, lsn: Lsn, context: &Context) -> io::Result<bool> {
    if context.durable > lsn {
        return Ok(true);
    }
    let from = lsn.0 - facts.base.0 + BLOCK_SIZE as u64;
    let found = search(window, facts, from, &mut |_, header| header.durable_lsn.get() > lsn.0)?;
    Ok(found.is_some())
}

/// Where the scan goes on behind a damaged place: at the next header of this segment that holds, else in the next.
fn resume(window: &mut Window, facts: &SegmentFacts, point: &Point, position: u64) -> io::Result<Point> {
    let from = position + BLOCK_SIZE as u64;
    let found = search(window, facts, from, &mut |_, header| header.epoch.get() >= point.epoch)?;
    Ok(match found {
        Some((position, header)) => {
            Point { lsn: facts.base.plus(position), chain: header.chain.get(), epoch: header.epoch.get() }
        }
        None => Point { lsn: facts.end(), ..*point },
    })
}

/// The first header of this life (G1 to G4) from `position` on that pleases.
fn search(
    window: &mut Window,
    facts: &SegmentFacts,
    mut position: u64,
    pleases: &mut dyn FnMut(u64, &GroupHeader) -> bool,
) -> io::Result<Option<(u64, GroupHeader)>> {
    while position < facts.capacity {
        let block = window.load(position, BLOCK_SIZE)?;
        if block.len() < GROUP_HEADER_SIZE {
            return Ok(None);
        }
        if let Ok((header, None)) = group_header(block, facts, facts.base.plus(position), false)
            && pleases(position, &header)
        {
            return Ok(Some((position, header)));
        }
        position += BLOCK_SIZE as u64;
    }
    Ok(None)
}

/// Shows what is recognised in `[from, to)`, at most a group's length at a time.
fn hole(
    window: &mut Window,
    facts: &SegmentFacts,
    from: u64,
    to: u64,
    fault: Fault,
    visit: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let mut at = from;
    let mut fault = Some(fault);
    while at < to {
        let len = GROUP_SIZE_MAX.min((to - at) as usize);
        let got = window.load(at, len)?.len();
        if got == 0 {
            break;
        }
        let bytes = window.bytes(at, got);
        let (view, end) = recognise(facts, facts.base.plus(at), bytes, fault.take());
        let flow = visit(Event::Group(&view));
        at += end as u64;
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// What stands behind the last whole group of a log.
fn tail(window: &mut Window, facts: &SegmentFacts, position: u64, fault: Fault) -> io::Result<End> {
    let block = window.load(position, BLOCK_SIZE)?;
    let of_this_life = group_header(block, facts, facts.base.plus(position), true).is_ok();
    let zeros = block.iter().all(|byte| *byte == 0);
    // A header of this life that does not continue the chain is what a cut has left behind.
    Ok(match (zeros, of_this_life, fault.damage) {
        (false, true, Damage::Chain | Damage::Stale) | (true, ..) => End::Clean,
        (false, true, _) => End::Torn(fault),
        // Another life's group, or nothing known: a slot is full of them.
        (false, false, _) if fault.structure == "medium" => End::Torn(fault),
        (false, false, _) => End::Clean,
    })
}
