//! What becomes visible later than it was stored: halves of transactions and delays that wait, how they ended, and
//! where the bodies are that BINDs name.
//!
//! ```text
//!  HALF  -> half of a transaction -[COMMIT, APPLY]-> bound, or a delay if it has a due time
//!                                 -[ABORT]---------> gone
//!  DELAY -> delay -[due]-> bound    -[TIMER]-> another time, or gone
//! ```
//! A body is stored once. Its *identity* is the LSN at which it was stored first; it keeps that when retention moves
//! it, which a HALF or DELAY frame with `aux`, or a BOUND frame, says.
//!
//! Invariants  B1  Replay converges: the state of an identity and of a transaction is what the last frame that speaks
//!                 of it has said, by absolute values. Frames from anywhere before a checkpoint, replayed in their
//!                 order on what that checkpoint has, end where the log ends; so chunks need no stamps.
//!             B2  A body that a BIND in a kept segment names is found: at its identity while both are in one segment,
//!                 else by its entry in `bodies`.
//!             B3  Everything has a bound: what comes in is refused there, what goes on never is.
//! Ignorant of files, groups, partitions' offsets and clocks.

mod capture;
mod order;
mod remembered;
mod replay;
mod table;
#[cfg(test)]
mod tests;
mod transactions;

use crate::format::frame::{FrameHeader, FrameKind};
use crate::format::late::{Bind, BindReason, Late as LateFields, Mark};
use crate::format::{Lsn, PartitionId};
pub(crate) use capture::CaptureCursor;
use order::DueOrder;
use remembered::Remembered;
pub(crate) use replay::Replayed;
use std::collections::{BTreeMap, BTreeSet};
use table::{IdTable, Keyed};
use transactions::Transactions;
pub use transactions::{Decision, Part, Position};

/// Due time, partition and identity: the order in which delays are listed.
pub type TimerKey = (i64, PartitionId, Lsn);

/// How long it is remembered what became of a transaction or a delay.
pub const REMEMBER_MS: i64 = 24 * 3600 * 1000;
/// ... and of how many of each, the newest ones.
pub const REMEMBERED_MAX: usize = 1 << 18;
/// HALF frames of a transaction on one shard: all of its BINDs go into one group.
pub const TRANSACTION_HALVES_MAX: usize = 2_048;
/// Remembered ends that are forgotten in one turn at most.
const FORGET_PER_TURN: usize = 256;

/// Bounds of what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateLimits {
    /// Halves and delays that wait.
    pub pending: usize,
    /// Bodies that BINDs of other segments name.
    pub bodies: usize,
    /// Bytes of the frames of both: retention may have to move them.
    pub bytes: u64,
    /// Transactions that are not resolved.
    pub transactions: usize,
    /// HALF frames of one transaction, at most [`TRANSACTION_HALVES_MAX`].
    pub halves: usize,
}

impl Default for LateLimits {
    fn default() -> Self {
        Self {
            pending: 1 << 20,
            bodies: 1 << 22,
            bytes: u64::MAX,
            transactions: 1 << 16,
            halves: TRANSACTION_HALVES_MAX,
        }
    }
}

/// A half or a delay that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// LSN at which it was stored first.
    pub identity: Lsn,
    /// LSN at which it is now.
    pub at: Lsn,
    /// Due time, Unix milliseconds; 0 for none.
    pub due_ms: i64,
    /// Partition for which it is.
    pub partition: PartitionId,
    /// Bytes of its frame.
    pub len: u32,
    /// Records.
    pub count: u32,
    /// Payload checksum of its frame.
    pub payload_crc: u32,
    /// Number of its transaction + 1; 0 for a delay.
    txn: u32,
}

const _: () = assert!(size_of::<Waiting>() == 48);

impl Waiting {
    /// It belongs to a transaction that is not resolved.
    pub fn is_half(&self) -> bool {
        self.txn != 0
    }

    /// Where it stands in lists.
    pub fn key(&self) -> TimerKey {
        (self.due_ms, self.partition, self.identity)
    }

    fn new(header: &FrameHeader, due_ms: i64, at: Lsn, txn: u32) -> Self {
        Self {
            identity: Lsn(header.base_offset().0),
            at,
            due_ms,
            partition: header.partition(),
            len: header.len.get(),
            count: header.count.get(),
            payload_crc: header.payload_crc.get(),
            txn,
        }
    }
}

impl Keyed for Waiting {
    const FREE: Self = Self {
        identity: Lsn(0),
        at: Lsn(0),
        due_ms: 0,
        partition: PartitionId(0),
        len: 0,
        count: 0,
        payload_crc: 0,
        txn: 0,
    };
    fn identity(&self) -> u64 {
        self.identity.0
    }
}

/// A body that a BIND of another segment names, or that was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Body {
    identity: Lsn,
    at: Lsn,
    last_bind: Lsn,
    len: u32,
    payload_crc: u32,
}

impl Keyed for Body {
    const FREE: Self = Self { identity: Lsn(0), at: Lsn(0), last_bind: Lsn(0), len: 0, payload_crc: 0 };
    fn identity(&self) -> u64 {
        self.identity.0
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Committed, or else aborted.
    pub committed: bool,
    /// When, Unix milliseconds.
    pub time_ms: i64,
    /// HALF frames that it had: on this shard, or on all if this one has decided.
    pub halves: u32,
    /// Positions that it had, likewise.
    pub positions: u32,
    /// It may be told when `durable` has reached this.
    pub durable_at: Lsn,
}

/// What became of a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerEnd {
    /// It became visible, or else was cancelled.
    pub delivered: bool,
    /// When, Unix milliseconds.
    pub time_ms: i64,
    /// It may be told when `durable` has reached this.
    pub durable_at: Lsn,
}

/// What waits for one partition, or in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingCount {
    /// Delays, in frames.
    pub delays: u64,
    /// Halves, in frames.
    pub halves: u64,
    /// Bytes of both.
    pub bytes: u64,
}

/// Counts for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LateCounts {
    /// What waits.
    pub pending: PendingCount,
    /// Transactions that are not resolved, and decisions that are not done.
    pub transactions: u64,
    /// Bodies that BINDs of other segments name.
    pub bodies: u64,
    /// Their bytes.
    pub body_bytes: u64,
    /// Ends of transactions that are remembered.
    pub ended_transactions: u64,
    /// Ends of delays that are remembered.
    pub ended_timers: u64,
    /// Bytes of memory of the tables for halves, delays and bodies.
    pub table_bytes: u64,
}

/// Why a half or a delay is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LateRefusal {
    TooManyPending,
    Ended,
    Ending,
    TooLarge,
    OtherGroup,
}

/// A body that has to be moved before its segment is retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Movable {
    pub(crate) identity: Lsn,
    pub(crate) at: Lsn,
    pub(crate) len: u32,
    pub(crate) payload_crc: u32,
    /// It waits; otherwise a BIND names it.
    pub(crate) waits: bool,
}

/// Goes through everything that may have to be moved.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Walk {
    waiting: u32,
    body: u32,
}

/// The tables of one shard.
#[derive(Debug, Clone)]
pub struct Late {
    limits: LateLimits,
    waiting: IdTable<Waiting>,
    /// Delays; halves are not in it.
    order: DueOrder,
    bodies: IdTable<Body>,
    body_bytes: u64,
    transactions: Transactions,
    /// Transactions that take no further halves for now.
    frozen: BTreeSet<u128>,
    ended_transactions: Remembered<u128, Resolution>,
    ended_timers: Remembered<u64, TimerEnd>,
    by_partition: BTreeMap<PartitionId, PendingCount>,
    total: PendingCount,
    /// Bodies below `floor` are being moved; those that get there meanwhile.
    floor: Option<Lsn>,
    below_floor: Vec<Lsn>,
    /// Where the next look for bodies that no kept BIND names goes on.
    sweep: u32,
    log_start: Lsn,
}

impl Default for Late {
    fn default() -> Self {
        Self {
            limits: LateLimits::default(),
            waiting: IdTable::default(),
            order: DueOrder::default(),
            bodies: IdTable::default(),
            body_bytes: 0,
            transactions: Transactions::default(),
            frozen: BTreeSet::new(),
            ended_transactions: Remembered::new(REMEMBERED_MAX),
            ended_timers: Remembered::new(REMEMBERED_MAX),
            by_partition: BTreeMap::new(),
            total: PendingCount::default(),
            floor: None,
            below_floor: Vec::new(),
            sweep: 0,
            log_start: Lsn(0),
        }
    }
}

// -- looking -----------------------------------------------------------------------------------------------

impl Late {
    /// The part that a transaction has on this shard, as long as it is not resolved, or decided and not done.
    pub fn transaction(&self, txn: u128) -> Option<&Part> {
        self.transactions.get(txn)
    }

    /// Those behind an id, in the order of ids.
    pub fn transactions_after(&self, txn: u128) -> impl Iterator<Item = &Part> {
        self.transactions.after(txn)
    }

    /// The halves that a transaction has on this shard, in the order in which they were stored.
    pub fn halves(&self, txn: u128) -> impl Iterator<Item = &Waiting> {
        let halves = self.transactions.get(txn).map_or(&[][..], |part| &part.halves);
        halves.iter().filter_map(|identity| self.waiting.get(identity.0))
    }

    /// What became of a transaction: committed here or decided here, or aborted, within the last day.
    pub fn resolution(&self, txn: u128) -> Option<&Resolution> {
        self.ended_transactions.get(&txn)
    }

    /// Transactions that this shard has decided to commit and of which not every participant is known to have
    /// applied it. After a start, `apply` has to be asked of them again, and then `done` of this shard.
    pub fn decisions(&self) -> impl Iterator<Item = (&Part, &Decision)> {
        self.transactions.after(0).filter_map(|part| Some((part, part.decision.as_ref()?)))
    }

    /// A half or a delay that waits.
    pub fn waiting(&self, identity: Lsn) -> Option<&Waiting> {
        self.waiting.get(identity.0)
    }

    /// The transaction of a half.
    pub fn transaction_of(&self, waiting: &Waiting) -> Option<&Part> {
        self.transactions.at(waiting.txn.checked_sub(1)?)
    }

    /// What became of a delay, within the last day.
    pub fn timer_end(&self, identity: Lsn) -> Option<&TimerEnd> {
        self.ended_timers.get(&identity.0)
    }

    /// Delays behind a key, in the order of due time, partition and identity. All of them: `(i64::MIN, ..)`.
    pub fn timers_after(&self, key: TimerKey) -> impl Iterator<Item = &Waiting> {
        self.order.after(key, |slot| self.key_of(slot)).filter_map(|slot| self.waiting.at(slot))
    }

    /// What waits for a partition.
    pub fn pending_of(&self, partition: PartitionId) -> PendingCount {
        self.by_partition.get(&partition).copied().unwrap_or_default()
    }

    /// Counts.
    pub fn counts(&self) -> LateCounts {
        LateCounts {
            pending: self.total,
            transactions: self.transactions.len() as u64,
            bodies: self.bodies.len() as u64,
            body_bytes: self.body_bytes,
            ended_transactions: self.ended_transactions.len() as u64,
            ended_timers: self.ended_timers.len() as u64,
            table_bytes: (self.waiting.bytes() + self.order.bytes() + self.bodies.bytes()) as u64,
        }
    }

    /// Bounds.
    pub fn limits(&self) -> LateLimits {
        self.limits
    }

    pub(crate) fn set_limits(&mut self, limits: LateLimits) {
        let halves = limits.halves.min(TRANSACTION_HALVES_MAX);
        self.limits = LateLimits { halves, ..limits };
    }

    /// Where a body is now.
    pub(crate) fn locate(&self, identity: Lsn) -> Lsn {
        match (self.bodies.get(identity.0), self.waiting.get(identity.0)) {
            (Some(body), _) => body.at,
            (None, Some(waiting)) => waiting.at,
            (None, None) => identity, // B2
        }
    }

    /// The delay that is due first.
    pub(crate) fn first_due(&self) -> Option<&Waiting> {
        self.waiting.at(self.order.first()?)
    }

    fn key_of(&self, slot: u32) -> TimerKey {
        self.waiting.at(slot).map_or((i64::MAX, PartitionId(u32::MAX), Lsn(u64::MAX)), Waiting::key)
    }

    /// Whether a frame is refused that wants to wait. `len` are its bytes.
    pub(crate) fn refuses(&self, late: &LateFields<'_>, len: usize) -> Option<LateRefusal> {
        let bytes = self.total.bytes + self.body_bytes + len as u64;
        let full = self.waiting.len() >= self.limits.pending
            || self.bodies.len() >= self.limits.bodies
            || bytes > self.limits.bytes;
        if full {
            return Some(LateRefusal::TooManyPending); // B3
        }
        if late.txn == 0 {
            return None;
        }
        if self.ended_transactions.contains(&late.txn) {
            return Some(LateRefusal::Ended);
        }
        if self.frozen.contains(&late.txn) {
            return Some(LateRefusal::Ending);
        }
        match self.transactions.get(late.txn) {
            Some(part) if part.decision.is_some() => Some(LateRefusal::Ended),
            Some(part) if part.halves.len() >= self.limits.halves => Some(LateRefusal::TooLarge),
            Some(part) if !part.group.is_empty() && *part.group != *late.group => {
                Some(LateRefusal::OtherGroup)
            }
            Some(_) => None,
            None if self.transactions.len() >= self.limits.transactions => Some(LateRefusal::TooManyPending),
            None => None,
        }
    }

    /// A transaction takes no further halves for now; the process forgets it at its end.
    pub(crate) fn freeze(&mut self, txn: u128) {
        self.frozen.insert(txn);
    }

    pub(crate) fn unfreeze(&mut self, txn: u128) {
        self.frozen.remove(&txn);
    }

    /// Does it take no further halves for now?
    pub fn is_frozen(&self, txn: u128) -> bool {
        self.frozen.contains(&txn)
    }
}

// -- frames, when they are appended and when they are replayed -----------------------------------------------

impl Late {
    fn count(&mut self, waiting: &Waiting, sign: i64) {
        let known = self.by_partition.entry(waiting.partition).or_default();
        for count in [&mut *known, &mut self.total] {
            let frames = if waiting.is_half() { &mut count.halves } else { &mut count.delays };
            *frames = frames.wrapping_add_signed(sign);
            count.bytes = count.bytes.wrapping_add_signed(sign * i64::from(waiting.len));
        }
        if *known == PendingCount::default() {
            self.by_partition.remove(&waiting.partition);
        }
    }

    /// Enters what waits, in place of what was known of it.
    fn put(&mut self, waiting: Waiting) {
        self.take(waiting.identity);
        let slot = self.waiting.insert(waiting);
        self.count(&waiting, 1);
        if !waiting.is_half() {
            let Self { order, waiting, .. } = self;
            order.insert(slot, |slot| waiting.at(slot).map_or((0, PartitionId(0), Lsn(0)), Waiting::key));
        }
    }

    fn take(&mut self, identity: Lsn) -> Option<Waiting> {
        let slot = self.waiting.slot(identity.0)?;
        let found = *self.waiting.at(slot)?;
        if !found.is_half() {
            let Self { order, waiting, .. } = self;
            order.remove(slot, |slot| waiting.at(slot).map_or((0, PartitionId(0), Lsn(0)), Waiting::key));
        }
        self.count(&found, -1);
        self.waiting.remove(identity.0)
    }

    /// A HALF or DELAY frame, stored for the first time at `lsn`.
    pub(crate) fn stored(&mut self, header: &FrameHeader, late: &LateFields<'_>, lsn: Lsn) {
        if header.kind() == FrameKind::Delay {
            self.put(Waiting::new(header, late.due_ms, lsn, 0));
            return;
        }
        let (number, part) = self.transactions.ensure(late.txn);
        part.add_half(Lsn(header.base_offset().0), header, late);
        self.put(Waiting::new(header, late.due_ms, lsn, number + 1));
    }

    /// A HALF, DELAY or BOUND frame that holds a body stored earlier.
    pub(crate) fn moved(&mut self, identity: Lsn, lsn: Lsn) {
        if let Some(waiting) = self.waiting.get_mut(identity.0) {
            waiting.at = lsn;
        }
        if let Some(body) = self.bodies.get_mut(identity.0) {
            body.at = lsn;
        }
    }

    /// A BIND at `lsn`, in the segment that begins at `segment_base`.
    pub(crate) fn bound(&mut self, bind: &Bind, lsn: Lsn, segment_base: Lsn, time_ms: i64, durable_at: Lsn) {
        let waited = match bind.reason {
            BindReason::Commit | BindReason::Due => self.take(bind.target),
            BindReason::DeadLetter | BindReason::Replay => None,
        };
        if bind.reason == BindReason::Due {
            let end = TimerEnd { delivered: true, time_ms, durable_at };
            self.ended_timers.insert(bind.target.0, end);
        }
        let known = self.bodies.get(bind.target.0);
        let at = waited.map(|waiting| waiting.at).or(known.map(|body| body.at)).unwrap_or(bind.target);
        self.note_below(bind.target, at);
        match self.bodies.get_mut(bind.target.0) {
            Some(body) => {
                body.at = at;
                body.last_bind = body.last_bind.max(lsn);
            }
            // Both go with their segment.
            None if at == bind.target && at >= segment_base => {}
            None => {
                let (identity, payload_crc) = (bind.target, bind.target_crc);
                let body = Body { identity, at, last_bind: lsn, len: bind.target_len, payload_crc };
                self.bodies.insert(body);
                self.body_bytes += u64::from(body.len);
            }
        }
    }

    /// A COMMIT or APPLY: what waits for it becomes a delay if it has a due time; what was bound is gone already.
    /// Answers the positions that take effect with it.
    pub(crate) fn committed(&mut self, mark: &Mark<'_>, durable_at: Lsn) -> Vec<Position> {
        self.frozen.remove(&mark.txn);
        self.resolve(mark, true, durable_at);
        let Some((halves, positions)) = self.transactions.take_contents(mark.txn) else { return Vec::new() };
        for identity in halves {
            let Some(half) = self.take(identity) else { continue };
            if half.due_ms > 0 {
                self.put(Waiting { txn: 0, ..half });
            }
        }
        self.transactions.remove_if_over(mark.txn);
        positions
    }

    /// An ABORT.
    pub(crate) fn aborted(&mut self, mark: &Mark<'_>, durable_at: Lsn) {
        self.frozen.remove(&mark.txn);
        self.resolve(mark, false, durable_at);
        let Some((halves, _)) = self.transactions.take_contents(mark.txn) else { return };
        for identity in halves {
            self.take(identity);
        }
        self.transactions.remove_if_over(mark.txn);
    }

    /// A DECISION.
    pub(crate) fn decided(&mut self, mark: &Mark<'_>, durable_at: Lsn) {
        self.resolve(mark, true, durable_at);
        let (_, part) = self.transactions.ensure(mark.txn);
        part.note(mark);
        part.decision = Some(Decision {
            participants: mark.participants,
            time_ms: mark.time_ms,
            halves: mark.halves,
            positions: mark.positions,
        });
    }

    /// A DONE.
    pub(crate) fn done(&mut self, txn: u128) {
        self.frozen.remove(&txn);
        if let Some(part) = self.transactions.get_mut(txn) {
            part.decision = None;
            self.transactions.remove_if_over(txn);
        }
    }

    /// A CHECK.
    pub(crate) fn checked(&mut self, mark: &Mark<'_>) {
        let (_, part) = self.transactions.ensure(mark.txn);
        part.note(mark);
        (part.attempts, part.parked, part.checked_ms) = (mark.attempts, mark.parked, mark.time_ms);
    }

    /// Positions of groups that take effect with their transaction. `group` is the producer group.
    pub fn add_positions(&mut self, txn: u128, group: &str, time_ms: i64, positions: &[Position]) {
        let (_, part) = self.transactions.ensure(txn);
        part.note(&Mark { txn, time_ms, group, ..Mark::default() });
        for position in positions {
            part.add_position(*position);
        }
    }

    /// An item of a TIMER frame.
    pub(crate) fn timer(&mut self, identity: Lsn, due_ms: i64, time_ms: i64, durable_at: Lsn) {
        let Some(delay) = self.waiting.get(identity.0).copied().filter(|waiting| !waiting.is_half()) else {
            return;
        };
        if due_ms > 0 {
            self.put(Waiting { due_ms, ..delay });
        } else {
            self.take(identity);
            self.ended_timers.insert(identity.0, TimerEnd { delivered: false, time_ms, durable_at });
        }
    }

    fn resolve(&mut self, mark: &Mark<'_>, committed: bool, durable_at: Lsn) {
        let Mark { txn, time_ms, halves, positions, .. } = *mark;
        let resolution = Resolution { committed, time_ms, halves, positions, durable_at };
        self.ended_transactions.insert(txn, resolution);
    }

    /// What is due for a partition that is gone. No frame says so: replay finds it again, and it goes again.
    pub(crate) fn drop_due(&mut self, identity: Lsn, time_ms: i64) {
        if self.take(identity).is_some() {
            let end = TimerEnd { delivered: false, time_ms, durable_at: Lsn(0) };
            self.ended_timers.insert(identity.0, end);
        }
    }
}

// -- bodies and segments -------------------------------------------------------------------------------------

impl Late {
    /// Nothing waits and no BIND names a body of another segment.
    pub(crate) fn has_bodies(&self) -> bool {
        self.waiting.len() > 0 || self.bodies.len() > 0
    }

    /// Begins to move bodies below `floor`, where the oldest segment ends.
    pub(crate) fn begin_moving(&mut self, floor: Lsn) -> Walk {
        self.floor = Some(floor);
        self.below_floor.clear();
        Walk::default()
    }

    /// A body below the floor that somebody still needs, within `steps` entries; `None` and no more to walk: all
    /// were found.
    pub(crate) fn next_movable(&mut self, walk: &mut Walk, steps: usize) -> (Option<Movable>, bool) {
        let Some(floor) = self.floor else { return (None, true) };
        for _ in 0..steps {
            if walk.waiting < self.waiting.slots() {
                walk.waiting += 1;
                let found = self.waiting.at(walk.waiting - 1).filter(|waiting| waiting.at < floor);
                if let Some(movable) = found.and_then(|waiting| self.movable(waiting.identity)) {
                    return (Some(movable), false);
                }
            } else if walk.body < self.bodies.slots() {
                walk.body += 1;
                let found = self.bodies.at(walk.body - 1).filter(|body| body.at < floor);
                if let Some(movable) = found.and_then(|body| self.movable(body.identity)) {
                    return (Some(movable), false);
                }
            } else if let Some(identity) = self.below_floor.pop() {
                if let Some(movable) = self.movable(identity) {
                    return (Some(movable), false);
                }
            } else {
                return (None, true);
            }
        }
        (None, false)
    }

    /// What of this identity has to be moved now, if anything has.
    pub(crate) fn movable(&self, identity: Lsn) -> Option<Movable> {
        let floor = self.floor?;
        let here = |at: Lsn| at < floor && at >= self.log_start;
        if let Some(waiting) = self.waiting.get(identity.0).filter(|waiting| here(waiting.at)) {
            let Waiting { at, len, payload_crc, .. } = *waiting;
            return Some(Movable { identity, at, len, payload_crc, waits: true });
        }
        let named = |body: &&Body| here(body.at) && body.last_bind >= floor;
        let Body { at, len, payload_crc, .. } = *self.bodies.get(identity.0).filter(named)?;
        Some(Movable { identity, at, len, payload_crc, waits: false })
    }

    /// A body may have got below the floor behind the walk.
    fn note_below(&mut self, identity: Lsn, at: Lsn) {
        if self.floor.is_some_and(|floor| at < floor) {
            self.below_floor.push(identity);
        }
    }

    /// The walk is over, or was given up.
    pub(crate) fn end_moving(&mut self) {
        self.floor = None;
        self.below_floor = Vec::new();
    }

    /// A segment was retired: the log begins at `log_start`.
    pub(crate) fn retired(&mut self, log_start: Lsn) {
        self.log_start = log_start;
        self.sweep = 0;
    }

    /// Forgets, a few at a time, bodies that no kept BIND names, and ends that are old.
    pub(crate) fn turn(&mut self, now_ms: i64) {
        let end = (self.sweep + FORGET_PER_TURN as u32).min(self.bodies.slots());
        for slot in self.sweep..end {
            self.sweep_one(slot);
        }
        self.sweep = end;
        let before = now_ms - REMEMBER_MS;
        self.ended_transactions.forget(FORGET_PER_TURN, |end| end.time_ms < before);
        self.ended_timers.forget(FORGET_PER_TURN, |end| end.time_ms < before);
    }

    fn sweep_one(&mut self, slot: u32) {
        let gone = self.bodies.at(slot).filter(|body| body.last_bind < self.log_start).copied();
        if let Some(body) = gone {
            self.bodies.remove(body.identity.0);
            self.body_bytes -= u64::from(body.len);
        }
    }

    /// After recovery: the log begins at `log_start`.
    pub(crate) fn settle(&mut self, log_start: Lsn) {
        self.log_start = log_start;
        for slot in 0..self.bodies.slots() {
            self.sweep_one(slot);
        }
        self.transactions.settle();
    }
}
