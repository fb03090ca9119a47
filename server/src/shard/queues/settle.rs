//! ACK and CHANGE_INVISIBLE, dead letters, and the log of what groups have consumed.
//!
//! Invariants  A1  An answer that says done leaves when the entry that says so is durable.
//!             A2  Entries are logged in the order in which they were made: a watermark never passes a record whose
//!                 BIND into the dead letters is not in the log before it or with it.
//!             A3  A record becomes a dead letter and consumed in one write.
//! All that a turn has brought is one frame.

use super::lease::{Handle, NoLease, Rules};
use super::{Key, QueueAnswer, QueueWork};
use crate::planted::Bug;
use crate::shard::groups::Found;
use crate::shard::mail::{Answer, Origin, Work};
use crate::shard::{Ack, AckTarget, Draining, ShardServer};
use ringmq_engine::shard::{AppendError, FoundBody, LateError, NewBind};
use ringmq_format::consumer_group::GroupOptions;
use ringmq_format::cursor::AckChange;
use ringmq_format::late::BindReason;
use ringmq_format::{GroupId, Lsn, Offset, PartitionId};
use ringmq_protocol::queue::{CHANGE_AFTER, CHANGE_RETRY, LEASE_DEAD};
use ringmq_protocol::{ChangedLease, ErrorCode, Lease, LeaseChange, LeaseHandle, Outcome, Replayed};
use std::collections::BTreeSet;
use zerocopy::FromZeros;
use zerocopy::little_endian::{I64, U16};

/// Sent to be tried again when the disk budget is reached.
const DISK_FULL_RETRY_MS: u32 = 1_000;
/// Whoever waits for the log for so long, because the disk is full, is answered that nobody knows.
pub(super) const STUCK_US: u64 = 5_000_000;
/// BINDs of one write.
const BINDS_MAX: usize = 512;
/// Bytes of entries of one write, before the one that passes it.
const CHANGES_SIZE_MAX: usize = 512 << 10;

/// An answer that waits for the log.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) origin: Origin,
    pub(super) answer: QueueAnswer,
}

/// What goes into the log in one write.
#[derive(Debug, Default)]
pub(super) struct Batch {
    binds: Vec<NewBind>,
    changes: Vec<AckChange>,
    replies: Vec<Reply>,
}

impl Batch {
    pub(super) fn replies(&self) -> usize {
        self.replies.len()
    }

    /// What it says of these is void.
    pub(super) fn forget(&mut self, is_void: impl Fn(Key) -> bool) {
        self.changes.retain(|change| !is_void((change.group, change.partition)));
    }
}

pub(super) fn rules_of(options: &GroupOptions) -> Rules {
    Rules {
        max_attempts: options.max_attempts.max(1),
        backoff_ms: options.backoff_ms.clone(),
        ordered: options.ordered,
        concurrency: options.concurrency,
    }
}

pub(super) fn handle_of(wire: &LeaseHandle) -> Handle {
    Handle { offset: wire.offset.get(), generation: wire.generation.get(), attempt: wire.attempt.get() }
}

fn code_of(no: NoLease) -> ErrorCode {
    match no {
        NoLease::Stale | NoLease::Consumed => ErrorCode::StaleHandle,
        NoLease::Unknown => ErrorCode::UnknownLease,
    }
}

fn retry_after(code: ErrorCode) -> u32 {
    if code == ErrorCode::DiskFull { DISK_FULL_RETRY_MS } else { 0 }
}

/// What is said instead of done.
fn with_code(answer: &QueueAnswer, code: ErrorCode) -> QueueAnswer {
    let after = retry_after(code);
    match answer {
        QueueAnswer::Acked(list) => QueueAnswer::Acked(
            list.iter().map(|one| if one.is_done() { Outcome::failed(code, after) } else { *one }).collect(),
        ),
        QueueAnswer::Changed(list) => QueueAnswer::Changed(
            list.iter()
                .map(|one| if one.code.get() == 0 { ChangedLease::failed(code, after) } else { *one })
                .collect(),
        ),
        QueueAnswer::Replayed(list) => QueueAnswer::Replayed(
            list.iter()
                .map(|one| if one.code.get() == 0 { Replayed::failed(code, after) } else { *one })
                .collect(),
        ),
        _ => QueueAnswer::Failed(code),
    }
}

impl ShardServer {
    pub(super) fn reply_queue(&mut self, origin: Origin, answer: QueueAnswer) {
        self.reply(origin, Answer::Queue(answer));
    }

    /// The queue of an acknowledgement; `None`: this was answered.
    fn queue_for(&mut self, origin: Origin, key: Key, work: impl FnOnce() -> QueueWork) -> Option<Offset> {
        let visible = self.shard.extent(key.1).map(|extent| extent.visible);
        let code = match (self.load_queue(key, false), visible) {
            // Nothing more becomes durable: nothing is changed, so that the handle is good after a restart.
            _ if self.shard.poisoned().is_some() => ErrorCode::ShardPoisoned,
            (Found::Is(_), None) => self.no_such_partition(),
            (Found::Is(true), Some(visible)) => {
                let now_us = self.ring.now().mono_us;
                if let Some(queue) = self.queues.queues.get_mut(&key) {
                    queue.used_us = now_us;
                    // What is over is over, though the turn has not come to it.
                    if queue.table.expire(now_us) {
                        self.queues.dirty.insert(key);
                        self.queues.dying.insert(key);
                        self.queues.dying_at_us = Some(0);
                        self.queues.ready.insert(key);
                    }
                }
                return Some(visible);
            }
            (Found::Is(false), _) => ErrorCode::UnknownLease,
            (Found::Cold, _) => {
                self.readers.park(origin, Work::Queue(work()));
                return None;
            }
            (Found::Not(code), _) => code,
        };
        self.reply_queue(origin, QueueAnswer::Failed(code));
        None
    }

    pub(super) fn ack(&mut self, origin: Origin, key: Key, leases: &[Handle]) {
        let again = || QueueWork::Ack { partition: key.1, group: key.0, leases: leases.to_vec() };
        let Some(visible) = self.queue_for(origin, key, again) else { return };
        let Some(queue) = self.queues.queues.get_mut(&key) else { return };
        let outcomes: Vec<Outcome> = leases
            .iter()
            .map(|handle| match queue.table.ack(*handle, visible) {
                Ok(()) => Outcome::DONE,
                Err(no) => Outcome::failed(code_of(no), 0),
            })
            .collect();
        let news = outcomes.iter().any(Outcome::is_done);
        self.settled(origin, key, QueueAnswer::Acked(outcomes), news);
    }

    /// Answers when what was said is durable (A1); at once if nothing of it has to be.
    fn settled(&mut self, origin: Origin, key: Key, answer: QueueAnswer, news: bool) {
        if news {
            self.queues.dirty.insert(key);
            self.queues.replies.push(Reply { origin, answer });
        } else {
            self.reply_queue(origin, answer);
        }
        // A place may have become free, a key, or a lease has another end.
        self.queues.ready.insert(key);
    }

    pub(super) fn change_leases(&mut self, origin: Origin, key: Key, changes: Vec<LeaseChange>) {
        let again = || QueueWork::Change { partition: key.1, group: key.0, changes: changes.clone() };
        let Some(visible) = self.queue_for(origin, key, again) else { return };
        // The bodies of what becomes a dead letter have to be at hand before anything is changed.
        for change in changes.iter().filter(|change| change.kind == CHANGE_RETRY) {
            let handle = handle_of(&change.handle);
            let dies = |queue: &super::Queue| queue.table.would_die(handle, visible);
            if self.queues.queues.get(&key).is_some_and(dies)
                && self.shard.find_body(&self.ring, key.1, Offset(handle.offset)) == FoundBody::Cold
            {
                let work = QueueWork::Change { partition: key.1, group: key.0, changes };
                return self.readers.park(origin, Work::Queue(work));
            }
        }
        self.queues.counter = self.queues.counter.wrapping_add(1);
        let epoch = u64::from(self.shard.log().epoch().0);
        let generation = epoch << 32 | u64::from(self.queues.counter);
        let now = self.ring.now();
        let Some(queue) = self.queues.queues.get_mut(&key) else { return };
        let (mut news, mut dying) = (false, false);
        let mut answers = Vec::with_capacity(changes.len());
        for change in &changes {
            let handle = handle_of(&change.handle);
            let changed = if change.kind == CHANGE_RETRY {
                queue.table.retry(handle, visible, now.mono_us).map(|dies| {
                    news = true;
                    dying |= dies;
                    let flags = U16::new(if dies { LEASE_DEAD } else { 0 });
                    ChangedLease { flags, ..ChangedLease::new_zeroed() }
                })
            } else {
                let after_ms = change.after_ms.get().min(ringmq_protocol::limits::INVISIBLE_MS_MAX);
                let after_us = u64::from(after_ms) * 1_000;
                let lenient = change.kind == CHANGE_AFTER;
                let postponed =
                    queue.table.postpone(handle, visible, now.mono_us, after_us, generation, lenient);
                postponed.map(|new| {
                    let handle = LeaseHandle::new(new.offset, new.attempt, new.generation);
                    let expires_ms = I64::new(now.wall_ms + i64::from(after_ms));
                    ChangedLease { lease: Lease { handle, expires_ms }, ..ChangedLease::new_zeroed() }
                })
            };
            answers.push(changed.unwrap_or_else(|no| ChangedLease::failed(code_of(no), 0)));
        }
        if dying {
            self.queues.dying.insert(key);
            self.bury_dying(key);
            // What could not be buried now is dying all the same, and is no dead letter yet.
            let left: Vec<Offset> = match self.queues.queues.get(&key) {
                Some(queue) => queue.table.dying().map(|record| record.0).collect(),
                None => Vec::new(),
            };
            for (answer, change) in answers.iter_mut().zip(&changes) {
                if left.contains(&Offset(change.handle.offset.get())) {
                    answer.flags = U16::ZERO;
                }
            }
        }
        self.settled(origin, key, QueueAnswer::Changed(answers), news);
    }

    // -- dead letters --------------------------------------------------------------------------------------

    pub(super) fn turn_dying(&mut self) {
        let now_us = self.ring.now().mono_us;
        if self.queues.dying_at_us.is_none_or(|at| at > now_us) {
            return;
        }
        self.queues.dying_at_us = None;
        for key in self.queues.dying.clone() {
            self.bury_dying(key);
        }
        if !self.queues.dying.is_empty() {
            self.queues.dying_at_us = Some(self.bury_again_at());
        }
    }

    /// This shard's partition of a group's dead letters.
    fn dead_letter_partition(&self, group: GroupId) -> Option<PartitionId> {
        let name = format!("%DLQ%{}", self.group(group).ok()?.entry.name);
        let shards = self.mail.shards();
        let topic = self.topics.by_name(&name)?;
        let partition = topic.partition_ids().find(|id| id.shard(shards).0 == self.own)?;
        self.shard.extent(partition).map(|_| partition)
    }

    /// What has failed for the last time becomes a dead letter: the BINDs go with the entry that says so (A3).
    fn bury_dying(&mut self, key: Key) {
        let Some(queue) = self.queues.queues.get(&key) else {
            self.queues.dying.remove(&key);
            return;
        };
        let dying: Vec<(Offset, u16)> = queue.table.dying().collect();
        let target = self.dead_letter_partition(key.0);
        let mut left = false;
        for (offset, attempts) in dying {
            if self.queues.binds.len() >= BINDS_MAX {
                self.flush_queues();
                left |= self.queues.binds.len() >= BINDS_MAX;
            }
            let found = self.shard.find_body(&self.ring, key.1, offset);
            match (found, target) {
                _ if left => break,
                (FoundBody::Body(_), _) if self.options.planted.has(Bug::DeadLetterLeftOut) => {}
                (FoundBody::Body(body), Some(partition)) => self.queues.binds.push(NewBind {
                    partition,
                    body: ringmq_engine::shard::BodyRef { count: 1, ..body },
                    reason: BindReason::DeadLetter,
                    origin: (key.1, offset),
                    detail: u32::from(attempts),
                    owner: u64::from(key.0.0),
                }),
                (FoundBody::Body(_), None) | (FoundBody::Cold, _) => {
                    left = true;
                    continue;
                }
                // Retention was faster, or nobody can read it.
                (FoundBody::OutOfRange | FoundBody::Damaged | FoundBody::UnknownPartition, _) => {}
            }
            if let Some(queue) = self.queues.queues.get_mut(&key) {
                queue.table.bury(offset);
                self.queues.dirty.insert(key);
            }
        }
        if left {
            self.queues.dying_at_us.get_or_insert(self.bury_again_at());
        } else {
            self.queues.dying.remove(&key);
        }
    }

    // -- logging -------------------------------------------------------------------------------------------

    /// Logs what is new, behind what could not be logged before (A2).
    pub(super) fn flush_queues(&mut self) {
        while let Some(batch) = self.queues.outbox.pop_front() {
            if let Some(batch) = self.log_batch(batch) {
                self.queues.outbox.push_front(batch);
                return self.answer_stuck();
            }
        }
        self.queues.stuck_since_us = None;
        let now = self.ring.now();
        while !self.queues.dirty.is_empty() || !self.queues.binds.is_empty() {
            let mut batch = Batch { binds: std::mem::take(&mut self.queues.binds), ..Batch::default() };
            let mut size = 0;
            // What counts as consumed because of a BIND goes with it (A3).
            let bound = batch.binds.iter().map(|bind| (GroupId(bind.owner as u32), bind.origin.0));
            let mut first: BTreeSet<Key> = bound.filter(|key| self.queues.dirty.remove(key)).collect();
            while let Some(key) = first.pop_first().or_else(|| {
                let fits = size < CHANGES_SIZE_MAX;
                fits.then(|| self.queues.dirty.pop_first()).flatten()
            }) {
                let Some(queue) = self.queues.queues.get_mut(&key) else { continue };
                let mut change = AckChange::new(key.0, key.1, Offset(0));
                queue.table.take_news(now.mono_us, now.wall_ms, &mut change);
                size += AckChange::size(change.ranges.len(), change.retries.len());
                batch.changes.push(change);
            }
            if self.queues.dirty.is_empty() {
                batch.replies = std::mem::take(&mut self.queues.replies);
            }
            if let Some(batch) = self.log_batch(batch) {
                self.queues.outbox.push_back(batch);
                return self.answer_stuck();
            }
        }
        let replies = std::mem::take(&mut self.queues.replies);
        if !replies.is_empty() {
            self.log_batch(Batch { replies, ..Batch::default() });
        }
    }

    /// What was said stays said, and is logged when there is room; but nobody waits for that without end.
    fn answer_stuck(&mut self) {
        let now_us = self.ring.now().mono_us;
        let since_us = *self.queues.stuck_since_us.get_or_insert(now_us);
        if now_us < since_us + STUCK_US {
            return;
        }
        let mut replies = std::mem::take(&mut self.queues.replies);
        for batch in &mut self.queues.outbox {
            replies.append(&mut batch.replies);
        }
        for Reply { origin, answer } in replies {
            let answer = with_code(&answer, ErrorCode::OutcomeUnknown);
            self.reply_queue(origin, answer);
        }
    }

    /// `Some`: the log has no room now.
    fn log_batch(&mut self, mut batch: Batch) -> Option<Batch> {
        let waits = self.draining == Draining::No || self.draining_connections();
        let code = loop {
            let logged = if batch.binds.is_empty() && batch.changes.is_empty() {
                Ok(self.shard.log().end())
            } else if batch.binds.is_empty() {
                self.shard.log_acks(&mut self.ring, &batch.changes).map_err(|error| match error {
                    AppendError::Busy => LateError::Busy,
                    AppendError::DiskFull => LateError::DiskFull,
                    AppendError::Poisoned => LateError::Poisoned,
                    _ => LateError::TooLarge,
                })
            } else {
                let bound = self.shard.bind_with_acks(&mut self.ring, &batch.binds, &batch.changes);
                bound.map(|bound| bound.durable_at)
            };
            match logged {
                Ok(durable_at) => {
                    for Reply { origin, answer } in batch.replies {
                        self.answer_settled(origin, durable_at, answer);
                    }
                    return None;
                }
                Err(LateError::Busy) if waits => return Some(batch),
                Err(LateError::Busy) => break ErrorCode::ShuttingDown,
                // The reserve may be free again: what was said is not forgotten.
                Err(LateError::DiskFull) if waits => return Some(batch),
                Err(LateError::DiskFull) => break ErrorCode::DiskFull,
                Err(LateError::Poisoned) => break ErrorCode::OutcomeUnknown,
                Err(LateError::BodyGone | LateError::UnknownPartition) => self.drop_lost_binds(&mut batch),
                Err(_) => break ErrorCode::Internal,
            }
        };
        for Reply { origin, answer } in batch.replies {
            let answer = with_code(&answer, code);
            self.reply_queue(origin, answer);
        }
        None
    }

    /// Retention took a body, or somebody deleted the topic, while the log had no room.
    fn drop_lost_binds(&mut self, batch: &mut Batch) {
        let before = batch.binds.len();
        batch.binds.retain(|bind| {
            let (partition, offset) = bind.origin;
            self.shard.extent(bind.partition).is_some()
                && !matches!(
                    self.shard.find_body(&self.ring, partition, offset),
                    FoundBody::OutOfRange | FoundBody::UnknownPartition | FoundBody::Damaged
                )
        });
        if batch.binds.len() == before {
            batch.binds.clear();
        }
    }

    fn answer_settled(&mut self, origin: Origin, durable_at: Lsn, answer: QueueAnswer) {
        if self.shard.durable() >= durable_at || self.options.planted.has(Bug::AckBeforeDurable) {
            return self.reply_queue(origin, answer);
        }
        let unknown = with_code(&answer, ErrorCode::OutcomeUnknown);
        let boxed = |answer| Box::new(Answer::Queue(answer));
        let target = AckTarget::Reply { origin, durable: boxed(answer), unknown: boxed(unknown) };
        self.acks.push_back(Ack { durable_at, target }); // A1
    }

    /// Logs BINDs of its own with an entry, now. `Err(Busy)`: again later.
    pub(super) fn bind_now(
        &mut self,
        binds: &[NewBind],
        changes: &[AckChange],
    ) -> Result<ringmq_engine::shard::Bound, LateError> {
        self.flush_queues();
        if !self.queues.outbox.is_empty() {
            return Err(LateError::Busy); // A2
        }
        self.shard.bind_with_acks(&mut self.ring, binds, changes)
    }

    pub(super) fn answer_replayed(&mut self, origin: Origin, durable_at: Lsn, answer: QueueAnswer) {
        self.answer_settled(origin, durable_at, answer);
    }
}
