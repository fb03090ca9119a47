//! Producing to the partitions of one topic: batches, order, sequence numbers, retries.
//!
//! Invariants  P1  Frames of a partition are sent in the order in which their records came, never another.
//!             P2  From the first frame of a partition that is not complete to the last one sent there are at most
//!                 `FRAMES_IN_FLIGHT_MAX`, whatever became of those between: so many the server remembers.
//!             P3  A frame that may have been stored is only sent again with the same producer, epoch and sequence;
//!                 a new number is given only to a frame that certainly was not.
//!             P4  After a frame was not stored, nothing behind it is sent before all that is unanswered has come
//!                 back: what was behind it cannot have been stored either (the server refuses a gap).
//!             P5  Every batch completes once.
//!             P6  The bytes of what was pushed and has not completed stay within `max_buffered_bytes`, but for one
//!                 record when nothing else is there.
//! States      of a batch: open -(seal)-> waiting -(poll)-> flying -(outcome)-> complete, or waiting again
//! Ignorant of connections and of where a partition is.

use super::connection::{FrameOutcome, Stored};
use super::decode::compress;
use super::late::Late;
use super::{Random, Refused, backoff_us};
use crate::limits::{FRAMES_IN_FLIGHT_MAX, RECORD_OVERHEAD};
use bytes::Bytes;
use ringmq_format::frame::{Codec, FrameHeader};
use ringmq_format::limits::{FRAME_HEADER_SIZE, FRAME_RECORDS_MAX, FRAME_SIZE_MAX};
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record, RecordError};
use ringmq_protocol::{ErrorCode, Retry};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// How records are collected and sent.
#[derive(Clone, Debug)]
pub struct ProducerCoreConfig {
    /// How long a batch that is not full waits for more records.
    pub linger_us: u64,
    /// Size at which a batch is full.
    pub batch_bytes: usize,
    /// Records at which a batch is full.
    pub batch_records: u32,
    /// Largest frame that the server takes.
    pub frame_size_max: usize,
    /// Compression of the bodies.
    pub codec: Codec,
    /// Every record gets a body block of its own.
    pub block_per_record: bool,
    /// Bytes of records that are not acknowledged.
    pub max_buffered_bytes: usize,
    /// How long a batch is tried, from its first record on.
    pub retry_for_us: u64,
    /// Who produces, and where its sequences stand.
    pub identity: ProducerIdentity,
    /// Seeds the jitter of pauses and, if it must, a new producer id.
    pub seed: u64,
}

/// Who produces. A program that keeps it can go on after a restart without doubling what it had sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerIdentity {
    /// Drawn at random; not 0.
    pub id: u64,
    /// For each partition that was written: epoch, and sequence of its next record.
    pub partitions: BTreeMap<u32, (u16, u32)>,
}

impl ProducerIdentity {
    /// One that has written nothing.
    pub fn new(id: u64) -> Self {
        assert_ne!(id, 0, "0 means \"not idempotent\"");
        Self { id, partitions: BTreeMap::new() }
    }
}

/// Where a record went: its batch, and its place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The batch, numbered from 0 over all partitions.
    pub batch: u64,
    /// Index of the record in the batch.
    pub index: u32,
    /// `poll` may have something, or `deadline_us` may have changed.
    pub wakes: bool,
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The memory bound is reached: wait for completions.
    Full,
    /// The record is not allowed or larger than a frame.
    Record(RecordError),
    /// The bytes are not a frame of records.
    Frame,
    /// Another program produces under this identity with a newer epoch.
    Fenced,
}

/// A frame to send.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its batch.
    pub batch: u64,
    /// Index of its partition.
    pub partition: u32,
    /// Its bytes.
    pub frame: Bytes,
}

/// Why a batch was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server refuses it; nothing was stored.
    Refused(Refused),
    /// It was tried for as long as `retry_for` says and certainly not stored.
    Expired {
        /// What the server said last, if it said anything.
        last: Option<Refused>,
    },
    /// It was tried for as long as `retry_for` says and may have been stored.
    OutcomeUnknown {
        /// What the server said last, if it said anything.
        last: Option<Refused>,
    },
    /// It was stored so long ago that the server does not know the offset any more.
    StoredOffsetUnknown,
    /// Another program produces under this identity with a newer epoch.
    Fenced,
}

/// A batch that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The batch.
    pub batch: u64,
    /// Its partition.
    pub partition: u32,
    /// Where it is, or why it is not.
    pub result: Result<Stored, Failure>,
}

#[derive(Debug)]
struct Open {
    batch: u64,
    builder: FrameBuilder,
    cost: usize,
    first_us: u64,
    flush: bool,
    /// When its records become visible, if not at once.
    late: Option<Late>,
}

#[derive(Debug)]
struct Batch {
    batch: u64,
    frame: Bytes,
    records: u32,
    cost: usize,
    first_us: u64,
    flying: bool,
    /// Set when it is first sent.
    stamp: Option<Stamp>,
    /// An answer was lost: it may have been stored (P3).
    uncertain: bool,
    last: Option<Refused>,
    verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug)]
struct Stamp {
    epoch: u16,
    sequence: u32,
    /// Counts the frames of the partition.
    ordinal: u64,
}

/// What is to be done about a batch once nothing of its partition is in flight.
#[derive(Debug)]
enum Verdict {
    /// The server will never take it.
    GiveUp(Refused),
    /// The server lacks what came before it, although that was acknowledged: a new epoch, from this batch on.
    NewEpoch,
}

#[derive(Debug, Default)]
struct Partition {
    open: Option<Open>,
    /// In the order of their records: first those in flight, then those that wait, but for what P4 says.
    queue: VecDeque<Batch>,
    flying: usize,
    epoch: u16,
    next_sequence: u32,
    next_ordinal: u64,
    /// A batch came back and must go again: nothing is sent until all have come back (P4).
    draining: bool,
    /// A sequence is missing: batches from this one on need a new epoch, once those before it are complete.
    gap: Option<u64>,
    fenced: bool,
    retry_at_us: u64,
    retries: u32,
}

/// The state machine.
#[derive(Debug)]
pub struct ProducerCore {
    config: ProducerCoreConfig,
    partitions: BTreeMap<u32, Partition>,
    /// Partitions that have an open batch or a queue.
    active: BTreeSet<u32>,
    /// Partition of each batch that was sealed and is not complete.
    sealed: BTreeMap<u64, u32>,
    completions: VecDeque<Completion>,
    buffered: usize,
    next_batch: u64,
    random: Random,
    epochs_given_up: u64,
}

impl ProducerCore {
    /// Nothing pushed yet.
    pub fn new(mut config: ProducerCoreConfig) -> Self {
        config.frame_size_max = config.frame_size_max.clamp(FRAME_HEADER_SIZE, FRAME_SIZE_MAX);
        config.batch_bytes = config.batch_bytes.clamp(1, config.frame_size_max);
        config.batch_records = config.batch_records.clamp(1, FRAME_RECORDS_MAX as u32);
        let resumed = |(partition, (epoch, next_sequence)): (&u32, &(u16, u32))| {
            let (epoch, next_sequence) = (*epoch, *next_sequence);
            (*partition, Partition { epoch, next_sequence, ..Partition::default() })
        };
        Self {
            partitions: config.identity.partitions.iter().map(resumed).collect(),
            active: BTreeSet::new(),
            sealed: BTreeMap::new(),
            completions: VecDeque::new(),
            buffered: 0,
            next_batch: 0,
            random: Random::new(config.seed),
            epochs_given_up: 0,
            config,
        }
    }

    /// Who produces, and where its sequences stand if all that is buffered is stored.
    pub fn identity(&self) -> ProducerIdentity {
        let stand =
            |(index, partition): (&u32, &Partition)| (*index, (partition.epoch, partition.next_sequence));
        ProducerIdentity {
            id: self.config.identity.id,
            partitions: self.partitions.iter().map(stand).collect(),
        }
    }

    /// Bytes that are not acknowledged.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// Nothing is left to be done.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// Sequences that were given up and begun anew under another epoch.
    pub fn epochs_given_up(&self) -> u64 {
        self.epochs_given_up
    }

    /// The number that the next batch will have: all records pushed so far are in batches below it.
    pub fn next_batch(&self) -> u64 {
        self.next_batch
    }

    /// Whether a partition collects records in an open batch.
    pub fn has_open_batch(&self, partition: u32) -> bool {
        self.partitions.get(&partition).is_some_and(|partition| partition.open.is_some())
    }

    fn admit(&self, partition: u32, cost: usize) -> Result<(), PushError> {
        if self.partitions.get(&partition).is_some_and(|partition| partition.fenced) {
            return Err(PushError::Fenced);
        }
        if self.buffered > 0 && self.buffered + cost > self.config.max_buffered_bytes {
            return Err(PushError::Full); // P6
        }
        Ok(())
    }

    /// Takes a record for a partition.
    pub fn push(&mut self, now_us: u64, partition: u32, record: &Record<'_>) -> Result<Pushed, PushError> {
        self.push_late(now_us, partition, record, None)
    }

    /// Takes a record for a partition that becomes visible later. What completes its batch is then not an offset but
    /// the identity of the frame.
    pub fn push_late(
        &mut self,
        now_us: u64,
        partition: u32,
        record: &Record<'_>,
        late: Option<&Late>,
    ) -> Result<Pushed, PushError> {
        let cost = record_cost(record);
        self.admit(partition, cost)?;
        let (size_max, per_record) = (self.config.frame_size_max, self.config.block_per_record);
        let slot = self.partitions.entry(partition).or_default();
        let batch_bytes = self.config.batch_bytes;
        let closes = |open: &Open| {
            let shares = match (&open.late, late) {
                (None, None) => true,
                (Some(open), Some(late)) => open.shares(late),
                _ => false,
            };
            !shares || open.builder.size() + cost > batch_bytes
        };
        let sealed = slot.open.as_ref().is_some_and(closes) && self.seal(partition);
        let size_max = size_max - late.map_or(0, Late::size);
        let slot = self.partitions.entry(partition).or_default();
        let fresh = slot.open.is_none();
        let mut open = slot.open.take().unwrap_or_else(|| {
            let builder = FrameBuilder::new(record.time_ms, size_max);
            let builder = if per_record { builder.block_per_record() } else { builder };
            Open {
                batch: self.next_batch,
                builder,
                cost: 0,
                first_us: now_us,
                flush: false,
                late: late.cloned(),
            }
        });
        let pushed = open.builder.push(record);
        if fresh && let Err(error) = pushed {
            return Err(PushError::Record(error));
        }
        if fresh {
            self.next_batch += 1;
            self.active.insert(partition);
        }
        let (batch, count, size) = (open.batch, open.builder.count(), open.builder.size());
        if pushed.is_ok() {
            open.cost += cost;
            self.buffered += cost;
        }
        slot.open = Some(open);
        if let Err(error) = pushed {
            if error != RecordError::FrameFull {
                return Err(PushError::Record(error));
            }
            // Its overhead was underestimated: once more, into an empty frame.
            self.seal(partition);
            let pushed = self.push_late(now_us, partition, record, late);
            return pushed.map(|pushed| Pushed { wakes: true, ..pushed });
        }
        let alone = late.is_some_and(|late| late.alone);
        let full = alone || size >= self.config.batch_bytes || count >= self.config.batch_records;
        if full {
            self.seal(partition);
        }
        Ok(Pushed { batch, index: count - 1, wakes: fresh || full || sealed })
    }

    /// Takes a whole frame, as `FrameBuilder::finish` gives it; producer, epoch and sequence are stamped here.
    pub fn push_frame(&mut self, now_us: u64, partition: u32, frame: Bytes) -> Result<Pushed, PushError> {
        let header = FrameHeader::parse(&frame).map_err(|_| PushError::Frame)?;
        let records = header.count.get();
        if header.len() != frame.len() || records == 0 || frame.len() > self.config.frame_size_max {
            return Err(PushError::Frame);
        }
        let cost = frame.len();
        self.admit(partition, cost)?;
        self.seal(partition); // P1
        let batch = self.next_batch;
        self.next_batch += 1;
        self.buffered += cost;
        self.enqueue(partition, batch, frame, records, cost, now_us);
        Ok(Pushed { batch, index: 0, wakes: true })
    }

    fn seal(&mut self, partition: u32) -> bool {
        let Some(open) = self.partitions.get_mut(&partition).and_then(|slot| slot.open.take()) else {
            return false;
        };
        let codec = self.config.codec;
        let records = open.builder.count();
        let frame = open.builder.finish(ProducerStamp::default(), codec, &mut |raw| compress(codec, raw));
        let frame = match &open.late {
            Some(late) => late.wrap(&frame),
            None => Bytes::from(frame),
        };
        self.enqueue(partition, open.batch, frame, records, open.cost, open.first_us);
        true
    }

    fn enqueue(
        &mut self,
        partition: u32,
        batch: u64,
        frame: Bytes,
        records: u32,
        cost: usize,
        first_us: u64,
    ) {
        let slot = self.partitions.entry(partition).or_default();
        slot.queue.push_back(Batch {
            batch,
            frame,
            records,
            cost,
            first_us,
            flying: false,
            stamp: None,
            uncertain: false,
            last: None,
            verdict: None,
        });
        self.active.insert(partition);
        self.sealed.insert(batch, partition);
    }

    /// Lets no open batch wait any longer for more records.
    pub fn flush(&mut self) {
        for partition in &self.active {
            if let Some(open) = self.partitions.get_mut(partition).and_then(|slot| slot.open.as_mut()) {
                open.flush = true;
            }
        }
    }

    /// Appends the frames to send now; each then waits for `outcome`, `lost` or `not_sent`.
    pub fn poll(&mut self, now_us: u64, sends: &mut Vec<Outgoing>) {
        let active: Vec<u32> = self.active.iter().copied().collect();
        for partition in active {
            self.poll_partition(now_us, partition, sends);
        }
    }

    fn poll_partition(&mut self, now_us: u64, partition: u32, sends: &mut Vec<Outgoing>) {
        let Some(slot) = self.partitions.get_mut(&partition) else { return };
        if slot.draining && slot.flying > 0 {
            return; // P4
        }
        slot.draining = false;
        if slot.flying == 0 {
            self.execute_verdicts(partition);
            self.expire(now_us, partition);
            self.close_gap(partition);
        }
        let linger_us = self.config.linger_us;
        let Some(slot) = self.partitions.get_mut(&partition) else { return };
        if slot.retry_at_us > now_us {
            return;
        }
        // With room for more frames a batch goes when its time has come; without, it goes on collecting.
        let due = |open: &Open| open.flush || now_us >= open.first_us + linger_us;
        if slot.has_room() && slot.open.as_ref().is_some_and(due) {
            self.seal(partition);
        }
        let id = self.config.identity.id;
        let Some(slot) = self.partitions.get_mut(&partition) else { return };
        while slot.can_send() {
            let Some(batch) = slot.queue.get_mut(slot.flying) else { break };
            assert!(!batch.flying, "batch {} flies behind one of {partition} that waits", batch.batch); // P1
            if batch.stamp.is_none() {
                let stamp =
                    Stamp { epoch: slot.epoch, sequence: slot.next_sequence, ordinal: slot.next_ordinal };
                slot.next_sequence = slot.next_sequence.wrapping_add(batch.records);
                slot.next_ordinal += 1;
                batch.stamp = Some(stamp);
                batch.frame = stamped(std::mem::take(&mut batch.frame), id, stamp);
            }
            batch.flying = true;
            slot.flying += 1;
            sends.push(Outgoing { batch: batch.batch, partition, frame: batch.frame.clone() });
        }
    }

    /// Does what was decided while frames were in flight.
    fn execute_verdicts(&mut self, partition: u32) {
        let mut index = 0;
        while let Some(slot) = self.partitions.get_mut(&partition) {
            let Some(batch) = slot.queue.get_mut(index) else { return };
            match batch.verdict.take() {
                None => index += 1,
                Some(Verdict::GiveUp(refused)) => {
                    let failure = if batch.uncertain {
                        Failure::OutcomeUnknown { last: Some(refused) }
                    } else {
                        Failure::Refused(refused)
                    };
                    self.give_up(partition, index, failure);
                }
                Some(Verdict::NewEpoch) => {
                    // The server has not stored it, so it has not stored what came behind it.
                    let gap = batch.batch;
                    slot.queue.iter_mut().skip(index).for_each(|batch| batch.uncertain = false);
                    slot.add_gap(gap);
                    index += 1;
                }
            }
        }
    }

    /// Gives all that waits behind a gap a new epoch, when nothing before the gap is left.
    fn close_gap(&mut self, partition: u32) {
        let Some(slot) = self.partitions.get_mut(&partition) else { return };
        let Some(gap) = slot.gap else { return };
        if slot.queue.front().is_some_and(|batch| batch.batch < gap) {
            return;
        }
        assert_eq!(slot.flying, 0, "frames in flight while the epoch changes"); // P4
        assert!(
            slot.queue.iter().all(|batch| !batch.uncertain),
            "an uncertain frame while the epoch changes"
        ); // P3
        slot.gap = None;
        slot.next_sequence = 0;
        slot.queue.iter_mut().for_each(|batch| batch.stamp = None);
        self.epochs_given_up += 1;
        match slot.epoch.checked_add(1) {
            Some(epoch) => slot.epoch = epoch,
            // The epochs of this id are used up.
            None => self.fence(partition),
        }
    }

    /// When `poll` will have something although nothing else happened.
    pub fn deadline_us(&self) -> u64 {
        let slots = self.active.iter().filter_map(|partition| self.partitions.get(partition));
        slots.map(|slot| self.partition_deadline(slot)).min().unwrap_or(u64::MAX)
    }

    fn partition_deadline(&self, slot: &Partition) -> u64 {
        if slot.draining && slot.flying > 0 {
            return u64::MAX;
        }
        let gives_up = match slot.queue.front() {
            Some(front) if slot.flying == 0 => front.first_us.saturating_add(self.config.retry_for_us),
            _ => u64::MAX,
        };
        let seals = match &slot.open {
            _ if !slot.has_room() => u64::MAX,
            Some(open) if open.flush => slot.retry_at_us,
            Some(open) => (open.first_us + self.config.linger_us).max(slot.retry_at_us),
            None => u64::MAX,
        };
        let undone = slot.flying == 0 && (slot.gap.is_some() || slot.draining);
        let sends = if slot.can_send() || undone { slot.retry_at_us } else { u64::MAX };
        gives_up.min(seals).min(sends)
    }

    /// Gives up batches whose time is over. One that flies is left to its answer, which has a time of its own.
    fn expire(&mut self, now_us: u64, partition: u32) {
        while let Some(slot) = self.partitions.get(&partition) {
            let Some(front) = slot.queue.front() else { return };
            let over = now_us >= front.first_us.saturating_add(self.config.retry_for_us);
            if slot.flying > 0 || !over {
                return;
            }
            let last = front.last.clone();
            let failure =
                if front.uncertain { Failure::OutcomeUnknown { last } } else { Failure::Expired { last } };
            self.give_up(partition, 0, failure);
        }
    }

    /// Ends a batch without success, when nothing is in flight. If it may have been stored, so may those that were
    /// sent behind it: they end too. If not, the gap kept them from being stored.
    fn give_up(&mut self, partition: u32, index: usize, failure: Failure) {
        let Some(slot) = self.partitions.get_mut(&partition) else { return };
        assert_eq!(slot.flying, 0, "a batch is given up while frames are in flight"); // P3
        let mut behind = slot.queue.split_off(index);
        let Some(batch) = behind.pop_front() else { return };
        let mut ended = VecDeque::new();
        if batch.uncertain {
            (ended, behind) = behind.into_iter().partition(|other| other.uncertain);
        } else {
            behind.iter_mut().for_each(|other| other.uncertain = false);
        }
        slot.queue.append(&mut behind);
        if batch.stamp.is_some() {
            slot.add_gap(batch.batch + 1);
        }
        slot.retries = 0;
        self.complete(partition, batch, Err(failure));
        for batch in ended {
            let last = batch.last.clone();
            self.complete(partition, batch, Err(Failure::OutcomeUnknown { last }));
        }
    }

    fn complete(&mut self, partition: u32, batch: Batch, result: Result<Stored, Failure>) {
        assert!(self.buffered >= batch.cost, "{} bytes buffered, {} complete", self.buffered, batch.cost); // P6
        self.buffered -= batch.cost;
        let sealed = self.sealed.remove(&batch.batch);
        assert_eq!(sealed, Some(partition), "batch {} completes twice", batch.batch); // P5
        self.completions.push_back(Completion { batch: batch.batch, partition, result });
        if self.partitions.get(&partition).is_some_and(|slot| slot.queue.is_empty() && slot.open.is_none()) {
            self.active.remove(&partition);
        }
    }

    /// The next batch that is done.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// The server said what became of a batch.
    pub fn outcome(&mut self, now_us: u64, batch: u64, outcome: FrameOutcome) {
        let Some((partition, index)) = self.land(batch) else { return };
        match outcome {
            Ok(stored) => self.stored(partition, index, Ok(stored)),
            Err(refused) => self.refused(now_us, partition, index, refused),
        }
    }

    /// The connection ended before a batch was answered.
    pub fn lost(&mut self, now_us: u64, batch: u64) {
        if let Some((partition, index)) = self.land(batch) {
            self.again(now_us, partition, index, true, None);
        }
    }

    /// A batch was not sent.
    pub fn not_sent(&mut self, now_us: u64, batch: u64) {
        if let Some((partition, index)) = self.land(batch) {
            self.again(now_us, partition, index, false, None);
        }
    }

    fn land(&mut self, batch: u64) -> Option<(u32, usize)> {
        let partition = *self.sealed.get(&batch)?;
        let slot = self.partitions.get_mut(&partition)?;
        let index = slot.queue.iter().position(|other| other.batch == batch && other.flying)?;
        slot.queue[index].flying = false;
        slot.flying -= 1;
        Some((partition, index))
    }

    fn stored(&mut self, partition: u32, index: usize, result: Result<Stored, Failure>) {
        let Some(slot) = self.partitions.get_mut(&partition) else { return };
        slot.retries = 0;
        if let Some(batch) = slot.queue.remove(index) {
            self.complete(partition, batch, result);
        }
    }

    fn refused(&mut self, now_us: u64, partition: u32, index: usize, refused: Refused) {
        let Some(slot) = self.partitions.get(&partition) else { return };
        let uncertain = slot.queue[index].uncertain;
        match refused.code() {
            Some(ErrorCode::DuplicateUnknownOffset) => {
                self.stored(partition, index, Err(Failure::StoredOffsetUnknown));
            }
            Some(ErrorCode::ProducerFenced) => self.fence(partition),
            // Behind a batch that was not stored this is expected; in front it says that the server has lost count.
            Some(ErrorCode::OutOfOrderSequence) if index > 0 => {
                self.again(now_us, partition, index, false, Some(refused));
            }
            Some(ErrorCode::ProducerUnknown) if index > 0 || uncertain => {
                self.again(now_us, partition, index, uncertain, Some(refused));
            }
            Some(ErrorCode::OutOfOrderSequence | ErrorCode::ProducerUnknown) => {
                self.again(now_us, partition, index, false, Some(refused));
                self.judge(partition, index, Verdict::NewEpoch);
            }
            _ => match refused.retry() {
                Retry::Yes => self.again(now_us, partition, index, false, Some(refused)),
                Retry::OutcomeUnknown => self.again(now_us, partition, index, true, Some(refused)),
                Retry::No => self.judge(partition, index, Verdict::GiveUp(refused)),
            },
        }
    }

    fn judge(&mut self, partition: u32, index: usize, verdict: Verdict) {
        let Some(slot) = self.partitions.get_mut(&partition) else { return };
        slot.queue[index].verdict = Some(verdict);
        slot.draining = true;
    }

    /// A batch waits again, and all behind it.
    fn again(
        &mut self,
        now_us: u64,
        partition: u32,
        index: usize,
        uncertain: bool,
        refused: Option<Refused>,
    ) {
        let Some(slot) = self.partitions.get_mut(&partition) else { return };
        let behind = index > 0;
        let batch = &mut slot.queue[index];
        batch.uncertain |= uncertain;
        let retry_after_ms = refused.as_ref().map_or(0, |refused| refused.retry_after_ms);
        batch.last = refused.or(batch.last.take());
        slot.draining = true;
        // One pause for all that came back together, counted by the first of them.
        if !behind || slot.retry_at_us <= now_us {
            slot.retry_at_us =
                slot.retry_at_us.max(now_us + backoff_us(slot.retries, retry_after_ms, &mut self.random));
            slot.retries += u32::from(!behind);
        }
    }

    fn fence(&mut self, partition: u32) {
        let Some(slot) = self.partitions.get_mut(&partition) else { return };
        slot.fenced = true;
        slot.flying = 0;
        let failed = std::mem::take(&mut slot.queue);
        failed.into_iter().for_each(|batch| self.complete(partition, batch, Err(Failure::Fenced)));
        self.seal(partition);
        let Some(slot) = self.partitions.get_mut(&partition) else { return };
        let failed = std::mem::take(&mut slot.queue);
        failed.into_iter().for_each(|batch| self.complete(partition, batch, Err(Failure::Fenced)));
    }
}

impl Partition {
    fn ordinal(&self, batch: Option<&Batch>) -> u64 {
        batch.and_then(|batch| batch.stamp).map_or(self.next_ordinal, |stamp| stamp.ordinal)
    }

    /// Ordinals below this one may be sent (P2).
    fn ordinal_end(&self) -> u64 {
        self.ordinal(self.queue.front()) + FRAMES_IN_FLIGHT_MAX as u64
    }

    /// A batch waits that may go before anything else happens.
    fn can_send(&self) -> bool {
        let next = self.queue.get(self.flying);
        let in_epoch = next.is_some_and(|batch| self.gap.is_none_or(|gap| batch.batch < gap));
        in_epoch && self.ordinal(next) < self.ordinal_end()
    }

    /// A batch that is sealed now may go before anything else happens.
    fn has_room(&self) -> bool {
        if self.gap.is_some() || self.queue.len() >= FRAMES_IN_FLIGHT_MAX {
            return false;
        }
        let unsent = self.queue.iter().filter(|batch| batch.stamp.is_none()).count() as u64;
        self.next_ordinal + unsent < self.ordinal_end()
    }

    fn add_gap(&mut self, from: u64) {
        self.gap = Some(self.gap.map_or(from, |gap| gap.min(from)));
    }
}

/// What a record counts against the memory bound.
pub fn record_cost(record: &Record<'_>) -> usize {
    let properties: usize =
        record.properties.iter().map(|property| property.0.len() + property.1.len() + 4).sum();
    let key = record.key.map_or(0, <[u8]>::len);
    let tag = record.tag.map_or(0, <[u8]>::len);
    RECORD_OVERHEAD + key + tag + properties + record.body.len()
}

/// The frame with a producer's stamp; copied only if someone else still holds it.
fn stamped(frame: Bytes, id: u64, stamp: Stamp) -> Bytes {
    let mut bytes = Vec::from(frame);
    if let Ok((header, _)) = FrameHeader::mut_from_prefix(&mut bytes) {
        header.producer_id = U64::new(id);
        header.producer_epoch = U16::new(stamp.epoch);
        header.base_sequence = U32::new(stamp.sequence);
        header.seal();
    }
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests;
