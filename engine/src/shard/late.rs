//! Frames that wait, what ends their waiting, and BINDs.
//!
//! Invariants  E1  All BINDs of a transaction on this shard and the mark that ends it are one group: one write.
//!             E2  Nothing here needs the disk budget but new bodies: what ends something goes on in the reserve.
//!             E3  Who asks again is told what became of it when that is durable, not before.

use super::bodies::Reading;
use super::fetch::Found;
use super::{AppendError, Appended, Shard, Stopping, check_frame, judge};
use crate::format::frame::{Frame, FrameKind};
use crate::format::late::{BIND_SIZE, Bind, BindReason, Late as LateFields, Mark, TimerItem, encode_timers};
use crate::format::limits::frame_size_max;
use crate::format::{Lsn, Offset, PartitionId};
use crate::late::{Late, LateLimits, LateRefusal, Resolution, Waiting};
use crate::log::Refused;
use crate::partition::producers::Original;
use crate::planted::Bug;
use crate::ring::Ring;

/// Delays that become visible in one turn, at most: a million that are due at once must not keep appends waiting.
const TIMERS_PER_TURN: usize = 256;
/// A clock that was set is noticed within this time while delays wait.
const CLOCK_PERIOD_US: u64 = 1_000_000;
/// Delays that one TIMER frame changes, at most.
pub const TIMER_CHANGES_MAX: usize = 4_096;

/// Why something that ends a transaction or a delay, or binds, was not done. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateError {
    /// Again after the next completion: the input has to wait.
    Busy,
    /// Even the reserve of the disk budget is used up.
    DiskFull,
    /// The log is poisoned.
    Poisoned,
    /// Nothing is known of this transaction here.
    UnknownTransaction,
    /// It was resolved the other way. It may be told when `durable` has reached the resolution's `durable_at`.
    Resolved(Resolution),
    /// No such partition on this shard.
    UnknownPartition,
    /// The body is not in the log any more.
    BodyGone,
    /// More at once than one group holds.
    TooLarge,
}

impl From<Refused> for LateError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Busy | Refused::PayloadCrc => Self::Busy,
            Refused::DiskFull => Self::DiskFull,
            Refused::Poisoned => Self::Poisoned,
        }
    }
}

/// A transaction has ended, or is decided, on this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The answer may go when `durable` has reached this.
    pub durable_at: Lsn,
    /// When it was resolved, Unix milliseconds.
    pub time_ms: i64,
    /// HALF frames that it had, as its resolution says.
    pub halves: u32,
    /// It had been resolved the same way before.
    pub earlier: bool,
}

/// What became of a change of a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerOutcome {
    /// Done.
    Done,
    /// It became visible before; may be told when `durable` has reached this.
    Delivered(Lsn),
    /// It was cancelled before; may be told when `durable` has reached this.
    Cancelled(Lsn),
    /// It is a half of a transaction that is not resolved.
    InTransaction,
    /// It never was, or ended longer ago than is remembered.
    Unknown,
}

/// A change of a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerChange {
    /// Its identity.
    pub identity: Lsn,
    /// Its partition.
    pub partition: PartitionId,
    /// The new due time, Unix milliseconds; `None` cancels.
    pub due_ms: Option<i64>,
}

/// Records of a body, as a BIND can name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyRef {
    /// Identity of the body.
    pub identity: Lsn,
    /// Bytes of its frame.
    pub len: u32,
    /// Payload checksum of its frame.
    pub payload_crc: u32,
    /// Index in the body of the first record.
    pub first_record: u32,
    /// Records from that one on that stand one behind the other at the place that was asked for.
    pub count: u32,
    /// If it stands there by a BIND: that.
    pub bind: Option<Bind>,
}

/// Answer to a look for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBody {
    /// Here.
    Body(BodyRef),
    /// A page is being read from the disk; again after `take_cold_progress`.
    Cold,
    /// The offset is not kept, or not visible.
    OutOfRange,
    /// It cannot be read.
    Damaged,
    /// No such partition on this shard.
    UnknownPartition,
}

/// A BIND to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewBind {
    /// Partition in which the records get offsets; of this shard.
    pub partition: PartitionId,
    /// What is bound, as `find_body` has answered it; `first_record` and `count` say which records.
    pub body: BodyRef,
    /// Dead letter or replay.
    pub reason: BindReason,
    /// Where the record was before.
    pub origin: (PartitionId, Offset),
    /// How often it was delivered, or what else the group wants to find here.
    pub detail: u32,
    /// The group.
    pub owner: u64,
}

/// What `bind` has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// First offset of each BIND, in their order.
    pub offsets: Vec<Offset>,
    /// LSN of the frame that went with them.
    pub also: Option<Lsn>,
    /// All of it is durable when `durable` has reached this.
    pub durable_at: Lsn,
}

/// Answer to a look at a frame that is not visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peeked {
    /// The frame was delivered; what is known of it.
    Frame(Waiting),
    /// A page is being read from the disk; again after `take_cold_progress`.
    Cold,
    /// Nothing waits under this identity for this partition.
    Unknown,
    /// It cannot be read.
    Damaged,
}

/// A BIND that was appended, for tests: shards bind by themselves.
#[cfg(feature = "sim")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindTrace {
    /// Its partition.
    pub partition: PartitionId,
    /// First offset that it gives.
    pub base_offset: Offset,
    /// Its append time.
    pub timestamp: i64,
    /// What it says.
    pub bind: Bind,
    /// Where it is.
    pub lsn: Lsn,
}

/// When delays want to be looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TimerState {
    /// Not before this, on the steady clock.
    at_us: Option<u64>,
    /// More are due than one turn has taken.
    more: bool,
    /// The log had no room for the first one, or for what is moved: producers leave the next room to it.
    pub(super) starves: bool,
}

impl Shard {
    /// What waits, what became of it, and counts.
    pub fn late(&self) -> &Late {
        &self.late
    }

    /// BINDs that were appended since the last call.
    #[cfg(feature = "sim")]
    pub fn take_bind_trace(&mut self) -> Vec<BindTrace> {
        std::mem::take(&mut self.bind_trace)
    }

    /// Changes the bounds of what waits.
    pub fn set_late_limits(&mut self, limits: LateLimits) {
        // All BINDs of a transaction must fit a group, and a group a segment.
        let halves = (self.options.segment_size / 4) as usize / BIND_SIZE - 1;
        self.late.set_limits(LateLimits { halves: limits.halves.min(halves), ..limits });
    }

    /// A HALF or DELAY frame of a producer.
    pub(super) fn append_waiting(
        &mut self,
        ring: &mut Ring,
        id: PartitionId,
        frame: &Frame<'_>,
    ) -> Result<Appended, AppendError> {
        let index = self.index(id);
        let Some(partition) = self.partition(id) else { return Err(AppendError::UnknownPartition) };
        if let Some(taken) = judge(partition, frame, &self.log)? {
            return Ok(taken);
        }
        check_frame(frame, self.options.segment_size)?;
        let late = LateFields::parse(frame).map_err(AppendError::Invalid)?;
        if late.txn != 0 && late.group.is_empty() {
            let damage = ringmq_format::Damage::Field;
            let empty = ringmq_format::Corruption::new("frame", "producer group", damage, 1, 0);
            return Err(AppendError::Invalid(empty));
        }
        if let Some(refusal) = self.late.refuses(&late, frame.bytes.len()) {
            return Err(match refusal {
                LateRefusal::TooManyPending => AppendError::TooManyPending,
                LateRefusal::Ended => AppendError::TransactionEnded,
                LateRefusal::Ending => AppendError::TransactionEnding,
                LateRefusal::TooLarge => AppendError::TransactionTooLarge,
                LateRefusal::OtherGroup => AppendError::OtherGroup,
            });
        }
        let lsn = self.log.reserve(ring, frame.bytes.len())?;
        let mut header = *frame.header;
        let timestamp = ring.now().wall_ms;
        header.aux = 0.into();
        header.stamp(id, Offset(lsn.0), timestamp);
        let at = self.log.append(ring, &header, frame.bytes, None)?;
        assert_eq!(at, lsn, "a reserved frame stands elsewhere");
        let durable_at = lsn.plus(frame.bytes.len() as u64);
        let base_offset = Offset(lsn.0);
        if let Some(Some(partition)) = self.partitions.get_mut(index) {
            partition.producers.take(&header, Original { base_offset, timestamp, end_lsn: durable_at });
        }
        self.late.stored(&header, &late, lsn);
        self.stats.late_frames += 1;
        self.stats.frame_bytes += frame.bytes.len() as u64;
        Ok(Appended { base_offset, timestamp, durable_at, duplicate: false })
    }

    fn takes_marks(&self) -> Result<(), LateError> {
        if self.stopping == Stopping::No { Ok(()) } else { Err(LateError::Busy) }
    }

    /// What is to be answered about a transaction that is resolved already.
    fn resolved(&self, txn: u128, commit: bool) -> Option<Result<Ended, LateError>> {
        let resolution = *self.late.resolution(txn)?;
        if resolution.committed != commit {
            return Some(Err(LateError::Resolved(resolution)));
        }
        let Resolution { time_ms, halves, durable_at, .. } = resolution;
        let durable_at = if self.options.planted.has(Bug::EndToldEarly) { Lsn(0) } else { durable_at };
        Some(Ok(Ended { durable_at, time_ms, halves, earlier: true })) // E3
    }

    /// A transaction takes no further halves on this shard, until it ends or `unfreeze`: its coordinator is about to
    /// decide. Not remembered over a restart.
    pub fn freeze(&mut self, txn: u128) {
        self.late.freeze(txn);
    }

    /// It takes halves again.
    pub fn unfreeze(&mut self, txn: u128) {
        self.late.unfreeze(txn);
    }

    /// Commits a transaction that has all its halves and positions on this shard, which coordinates it: its halves
    /// without due time get offsets, the others become delays. All of it is one group.
    pub fn commit(&mut self, ring: &mut Ring, txn: u128) -> Result<Ended, LateError> {
        self.takes_marks()?;
        if let Some(resolved) = self.resolved(txn, true) {
            return resolved;
        }
        if self.late.transaction(txn).is_none() {
            return Err(LateError::UnknownTransaction);
        }
        let time_ms = ring.now().wall_ms;
        self.end_with_binds(ring, FrameKind::Commit, txn, time_ms)
    }

    /// Applies on this shard what its coordinator has durably decided. `time_ms` is the decision's. A transaction of
    /// which nothing is known any more had been applied: `earlier`.
    pub fn apply(&mut self, ring: &mut Ring, txn: u128, time_ms: i64) -> Result<Ended, LateError> {
        self.takes_marks()?;
        let waits = self
            .late
            .transaction(txn)
            .is_some_and(|part| !part.halves.is_empty() || !part.positions.is_empty());
        if !waits {
            // Behind whatever of it may still be on its way to the disk.
            let durable_at = self.log.end();
            return match self.resolved(txn, true) {
                Some(Ok(ended)) => Ok(Ended { durable_at: durable_at.max(ended.durable_at), ..ended }),
                Some(other) => other,
                None => Ok(Ended { durable_at, time_ms, halves: 0, earlier: true }),
            };
        }
        if let Some(Err(other_way)) = self.resolved(txn, true) {
            return Err(other_way);
        }
        self.end_with_binds(ring, FrameKind::Apply, txn, time_ms)
    }

    /// Appends the BINDs of a transaction's halves and the mark behind them, in one group (E1).
    fn end_with_binds(
        &mut self,
        ring: &mut Ring,
        kind: FrameKind,
        txn: u128,
        time_ms: i64,
    ) -> Result<Ended, LateError> {
        let part = self.late.transaction(txn);
        let (halves, positions) = part.map_or((0, 0), |part| (part.halves.len(), part.positions.len()));
        let visible: Vec<Waiting> = self
            .late
            .halves(txn)
            .filter(|half| half.due_ms == 0 && self.partition(half.partition).is_some())
            .copied()
            .collect();
        let mark =
            Mark { txn, time_ms, halves: halves as u32, positions: positions as u32, ..Mark::default() };
        let bytes = mark.encode(kind);
        self.log.reserve(ring, visible.len() * BIND_SIZE + bytes.len())?;
        for half in &visible {
            let bound = self.bind_waiting(ring, half, BindReason::Commit);
            if self.options.planted.has(Bug::CommitSplit) {
                bound?;
                self.log.split(ring);
                continue;
            }
            assert!(bound.is_ok(), "{bound:?} though room is reserved"); // E1
        }
        let durable_at = self.append_mark(ring, &bytes)?;
        let positions = self.late.committed(&mark, durable_at);
        self.apply_positions(Lsn(durable_at.0 - bytes.len() as u64), &positions);
        Ok(Ended { durable_at, time_ms, halves: halves as u32, earlier: false })
    }

    fn append_mark(&mut self, ring: &mut Ring, bytes: &[u8]) -> Result<Lsn, LateError> {
        let Ok(frame) = Frame::parse(bytes) else { panic!("a frame just encoded does not parse") };
        let lsn = self.log.append(ring, frame.header, bytes, None)?;
        Ok(lsn.plus(bytes.len() as u64))
    }

    /// Aborts a transaction: its halves on this shard are void, and it is remembered as aborted. At its coordinator and
    /// at every shard that has halves of it; `halves` is how many it has, for the resolution.
    pub fn abort(&mut self, ring: &mut Ring, txn: u128, halves: u32) -> Result<Ended, LateError> {
        self.takes_marks()?;
        if let Some(resolved) = self.resolved(txn, false) {
            return resolved;
        }
        let time_ms = ring.now().wall_ms;
        let mark = Mark { txn, time_ms, halves, ..Mark::default() };
        let durable_at = self.append_mark(ring, &mark.encode(FrameKind::Abort))?;
        self.late.aborted(&mark, durable_at);
        Ok(Ended { durable_at, time_ms, halves, earlier: false })
    }

    /// Writes down, at its coordinator, that a transaction commits on all its participants: the commit point, once
    /// durable. Then, and not before, `apply` at each of them, this one too if it takes part; then `done` here.
    /// `mark` says transaction, participants, counts over all shards and the producer group; its time is set here.
    pub fn decide(&mut self, ring: &mut Ring, mark: &Mark<'_>) -> Result<Ended, LateError> {
        self.takes_marks()?;
        if let Some(resolved) = self.resolved(mark.txn, true) {
            return resolved;
        }
        let mark = Mark { time_ms: ring.now().wall_ms, attempts: 0, parked: false, ..*mark };
        let durable_at = self.append_mark(ring, &mark.encode(FrameKind::Decision))?;
        self.late.decided(&mark, durable_at);
        Ok(Ended { durable_at, time_ms: mark.time_ms, halves: mark.halves, earlier: false })
    }

    /// Every participant has durably applied a decision of this shard: nobody need ask again.
    pub fn done(&mut self, ring: &mut Ring, txn: u128) -> Result<Lsn, LateError> {
        self.takes_marks()?;
        if self.late.transaction(txn).is_none_or(|part| part.decision.is_none()) {
            return Ok(self.log.end());
        }
        let mark = Mark { txn, time_ms: ring.now().wall_ms, ..Mark::default() };
        let durable_at = self.append_mark(ring, &mark.encode(FrameKind::Done))?;
        self.late.done(txn);
        Ok(durable_at)
    }

    /// Writes down, at its coordinator, that a check was handed over, or that a transaction is parked or counts anew.
    pub fn note_check(
        &mut self,
        ring: &mut Ring,
        txn: u128,
        group: &str,
        attempts: u16,
        parked: bool,
    ) -> Result<Lsn, LateError> {
        self.takes_marks()?;
        if let Some(resolution) = self.late.resolution(txn) {
            return Err(LateError::Resolved(*resolution));
        }
        let mark = Mark { txn, time_ms: ring.now().wall_ms, attempts, parked, group, ..Mark::default() };
        let durable_at = self.append_mark(ring, &mark.encode(FrameKind::Check))?;
        self.late.checked(&mark);
        Ok(durable_at)
    }

    // -- delays --------------------------------------------------------------------------------------------

    /// Cancels delays or puts them to another time, at most [`TIMER_CHANGES_MAX`] at once. Answers what became of
    /// each, and where it is durable: an answer that says `Done` may go then.
    pub fn change_timers(
        &mut self,
        ring: &mut Ring,
        changes: &[TimerChange],
    ) -> Result<(Vec<TimerOutcome>, Lsn), LateError> {
        self.takes_marks()?;
        if changes.len() > TIMER_CHANGES_MAX {
            return Err(LateError::TooLarge);
        }
        let time_ms = ring.now().wall_ms;
        let outcomes: Vec<_> = changes.iter().map(|change| self.judge_change(change)).collect();
        let items: Vec<TimerItem> = changes
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| **outcome == TimerOutcome::Done)
            .map(|(change, _)| TimerItem {
                identity: change.identity.0.into(),
                due_ms: change.due_ms.map_or(0, |due_ms| due_ms.max(1)).into(),
                time_ms: time_ms.into(),
            })
            .collect();
        if items.is_empty() {
            return Ok((outcomes, self.log.end()));
        }
        let durable_at = self.append_mark(ring, &encode_timers(&items))?;
        for item in &items {
            self.late.timer(Lsn(item.identity.get()), item.due_ms.get(), time_ms, durable_at);
        }
        Ok((outcomes, durable_at))
    }

    fn judge_change(&self, change: &TimerChange) -> TimerOutcome {
        match (self.late.waiting(change.identity), self.late.timer_end(change.identity)) {
            (Some(found), _) if found.partition != change.partition => TimerOutcome::Unknown,
            (Some(found), _) if found.is_half() => TimerOutcome::InTransaction,
            (Some(_), _) => TimerOutcome::Done,
            (None, Some(end)) if end.delivered => TimerOutcome::Delivered(end.durable_at),
            (None, Some(end)) => TimerOutcome::Cancelled(end.durable_at),
            (None, None) => TimerOutcome::Unknown,
        }
    }

    /// What is due becomes visible.
    pub(super) fn turn_timers(&mut self, ring: &mut Ring) {
        self.timers = TimerState::default();
        if self.stopping != Stopping::No {
            return;
        }
        let now = ring.now();
        self.late.turn(now.wall_ms);
        for taken in 0..TIMERS_PER_TURN {
            let Some(first) = self.late.first_due().copied() else { return };
            if first.due_ms > now.wall_ms && !self.options.planted.has(Bug::DelayEarly) {
                let ahead_us = first.due_ms.abs_diff(now.wall_ms).saturating_mul(1000);
                self.timers.at_us = Some(now.mono_us + ahead_us.min(CLOCK_PERIOD_US));
                return;
            }
            if self.partition(first.partition).is_none() {
                self.late.drop_due(first.identity, now.wall_ms);
            } else if let Err(error) = self.bind_waiting(ring, &first, BindReason::Due) {
                // A completion, or a slot, brings the next turn.
                self.timers.starves = taken == 0 && error == LateError::Busy && self.log.has_flights();
                return;
            }
        }
        self.timers.more = true;
    }

    /// When `turn_timers` wants to be called.
    pub(super) fn timer_deadline(&self) -> Option<u64> {
        self.timers.at_us
    }

    pub(super) fn has_due_timers(&self) -> bool {
        self.timers.more
    }

    /// Gives a half or a delay its offsets.
    fn bind_waiting(
        &mut self,
        ring: &mut Ring,
        waiting: &Waiting,
        reason: BindReason,
    ) -> Result<(Offset, Lsn), LateError> {
        let bind = Bind {
            target: waiting.identity,
            target_len: waiting.len,
            target_crc: waiting.payload_crc,
            first_record: 0,
            count: waiting.count,
            reason,
            origin: None,
            detail: 0,
            owner: 0,
        };
        self.append_bind(ring, waiting.partition, &bind)
    }

    fn append_bind(
        &mut self,
        ring: &mut Ring,
        id: PartitionId,
        bind: &Bind,
    ) -> Result<(Offset, Lsn), LateError> {
        let index = self.index(id);
        let Some(partition) =
            self.partitions.get_mut(index).and_then(Option::as_mut).filter(|partition| partition.id() == id)
        else {
            return Err(LateError::UnknownPartition);
        };
        let base_offset = partition.next();
        let timestamp = partition.stamp(ring.now().wall_ms);
        let bytes = bind.encode(id, base_offset, timestamp);
        let Ok(frame) = Frame::parse(&bytes) else { panic!("a frame just encoded does not parse") };
        let touched = Some((index as u32, frame.header.end_offset()));
        let lsn = self.log.append(ring, frame.header, &bytes, touched)?;
        partition.push(&mut self.frames, frame.header, lsn);
        self.topic_retention.appended(index, base_offset, u64::from(bind.target_len));
        let durable_at = lsn.plus(BIND_SIZE as u64);
        let segment_base = self.log.segments().back().map_or(lsn, |segment| segment.facts.base);
        self.late.bound(bind, lsn, segment_base, timestamp, durable_at);
        #[cfg(feature = "sim")]
        self.bind_trace.push(BindTrace { partition: id, base_offset, timestamp, bind: *bind, lsn });
        self.stats.binds += 1;
        self.stats.records += u64::from(bind.count);
        Ok((base_offset, durable_at))
    }

    // -- binds of what is visible --------------------------------------------------------------------------

    /// The body of the record at an offset of a partition, as a BIND can name it: of a DATA frame, or what the BIND
    /// there names.
    pub fn find_body(&mut self, ring: &Ring, id: PartitionId, offset: Offset) -> FoundBody {
        let Some(partition) = self.partition(id) else { return FoundBody::UnknownPartition };
        if offset < partition.start() || offset >= partition.visible() {
            return FoundBody::OutOfRange;
        }
        let frame = match self.find_frame(ring, id, offset) {
            Found::Frame(frame) => frame,
            Found::Cold => return FoundBody::Cold,
            Found::Damaged(_) => return FoundBody::Damaged,
        };
        let skip = (offset.0 - frame.first_offset.0) as u32;
        let len = (frame.len as usize).min(BIND_SIZE);
        let mut bytes = Vec::new();
        match self.read_log(ring, frame.lsn, len, &mut bytes) {
            Reading::Here => {}
            Reading::Cold => return FoundBody::Cold,
            Reading::Damaged => return FoundBody::Damaged,
        }
        let Ok(header) = ringmq_format::frame::FrameHeader::parse(&bytes) else { return FoundBody::Damaged };
        if header.partition() != id || header.base_offset() != frame.first_offset || skip >= frame.count {
            return FoundBody::Damaged;
        }
        match header.kind() {
            FrameKind::Data => FoundBody::Body(BodyRef {
                identity: frame.lsn,
                len: header.len.get(),
                payload_crc: header.payload_crc.get(),
                first_record: skip,
                count: frame.count - skip,
                bind: None,
            }),
            FrameKind::Bind => {
                let parsed = Frame::parse(&bytes).and_then(|frame| {
                    frame.verify_payload()?;
                    Bind::parse(&frame)
                });
                match parsed {
                    Ok(bind) => FoundBody::Body(BodyRef {
                        identity: bind.target,
                        len: bind.target_len,
                        payload_crc: bind.target_crc,
                        first_record: bind.first_record + skip,
                        count: bind.count - skip,
                        bind: Some(bind),
                    }),
                    Err(_) => FoundBody::Damaged,
                }
            }
            _ => FoundBody::Damaged,
        }
    }

    /// Binds records that are visible already to further partitions of this shard, and appends `also`, a whole frame of
    /// another kind, in the same group: all of it, or none. Whoever gives `also` enters what it means.
    pub fn bind(
        &mut self,
        ring: &mut Ring,
        binds: &[NewBind],
        also: Option<&[u8]>,
    ) -> Result<Bound, LateError> {
        self.takes_marks()?;
        for new in binds {
            let at = self.late.locate(new.body.identity);
            if self.log.segments().front().is_none_or(|oldest| at < oldest.facts.base) {
                return Err(LateError::BodyGone);
            }
            if self.partition(new.partition).is_none() {
                return Err(LateError::UnknownPartition);
            }
        }
        let bytes = binds.len() * BIND_SIZE + also.map_or(0, <[u8]>::len);
        if bytes > frame_size_max(self.options.segment_size) {
            return Err(LateError::TooLarge);
        }
        self.log.reserve(ring, bytes)?;
        let mut offsets = Vec::with_capacity(binds.len());
        let mut durable_at = self.log.end();
        for new in binds {
            let bind = Bind {
                target: new.body.identity,
                target_len: new.body.len,
                target_crc: new.body.payload_crc,
                first_record: new.body.first_record,
                count: new.body.count,
                reason: new.reason,
                origin: Some(new.origin),
                detail: new.detail,
                owner: new.owner,
            };
            let (offset, end) = self.append_bind(ring, new.partition, &bind)?;
            offsets.push(offset);
            durable_at = end;
        }
        let mut also_at = None;
        if let Some(bytes) = also {
            durable_at = self.append_mark(ring, bytes)?;
            also_at = Some(Lsn(durable_at.0 - bytes.len() as u64));
        }
        Ok(Bound { offsets, also: also_at, durable_at })
    }

    /// Hands the frame of a half or a delay to `sink`.
    pub fn peek(
        &mut self,
        ring: &Ring,
        partition: PartitionId,
        identity: Lsn,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Peeked {
        let Some(waiting) = self.late.waiting(identity).filter(|found| found.partition == partition).copied()
        else {
            return Peeked::Unknown;
        };
        let mut bytes = std::mem::take(&mut self.cold_frame);
        let read = self.read_body(ring, identity, waiting.len, waiting.payload_crc, &mut bytes);
        let peeked = match read {
            Reading::Here => {
                sink(&bytes);
                Peeked::Frame(waiting)
            }
            Reading::Cold => Peeked::Cold,
            Reading::Damaged => Peeked::Damaged,
        };
        self.cold_frame = bytes;
        peeked
    }
}
