//! Delays: listed, looked at, cancelled, put to another time. They are delivered by the engine.

use super::transactions::code_of;
use super::{Durable, Gather, LateAnswer, LateWork, Partitions, TimerKey, TimerWalk, changed};
use crate::shard::connection::Connection;
use crate::shard::mail::{ConnectionKey, Origin, Work};
use crate::shard::{Ack, AckTarget, ShardServer};
use ringmq_engine::shard::{LateError, Peeked, TimerChange as EngineChange, TimerOutcome};
use ringmq_format::{Lsn, PartitionId};
use ringmq_protocol::limits::LIST_TIMERS_MAX;
use ringmq_protocol::{
    ErrorCode, ItemsBuf, ListTimers, Op, PeekMessage, Peeked as PeekedWire, Response, TimerChange,
    TimerEntry, TimerPage,
};

/// Delays that a list or a purge looks at in one turn.
const STEPS_PER_TURN: usize = 20_000;
/// Delays that one purge cancels on a shard.
const PURGED_AT_ONCE: usize = 1_000;

const START: TimerKey = (i64::MIN, PartitionId(0), Lsn(0));

/// A delay, for lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) struct Timer {
    pub(super) key: TimerKey,
    pub(super) len: u32,
    pub(super) count: u32,
}

/// A frame that is not visible.
#[derive(Debug)]
pub(in crate::shard) struct PeekedFrame {
    txn: u128,
    due_ms: i64,
    partition: PartitionId,
    count: u32,
    bytes: Vec<u8>,
}

impl ShardServer {
    fn partitions_of(&self, topic: &str) -> Result<Partitions, (ErrorCode, &'static str)> {
        let unknown = (ErrorCode::UnknownTopic, ErrorCode::UnknownTopic.text());
        self.topics.by_name(topic).map(|topic| (topic.first_partition, topic.partitions)).ok_or(unknown)
    }

    pub(super) fn request_timers(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        list: &ListTimers<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let of = if list.topic.is_empty() { None } else { Some(self.partitions_of(list.topic)?) };
        let limit = match list.limit as usize {
            0 => LIST_TIMERS_MAX,
            limit => limit.min(LIST_TIMERS_MAX),
        };
        let after = match list.after {
            (0, 0, 0) => START,
            (due_ms, partition, lsn) => (due_ms, PartitionId(partition), Lsn(lsn)),
        };
        let shards = of.map_or_else(|| self.every_shard(), |of| self.shards_of(of));
        let gather = Gather::Timers { found: Vec::new(), pending: 0, limit, more: false };
        self.ask_all(connection, correlation, gather, &shards, || {
            LateWork::ListTimers(Box::new(TimerWalk { of, after, limit, found: Vec::new() }))
        });
        Ok(())
    }

    pub(super) fn request_change_timer(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        change: TimerChange<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let (partition, lsn, due_ms) = match change {
            TimerChange::Cancel { partition, lsn } => (PartitionId(partition), lsn, None),
            TimerChange::Reschedule { partition, lsn, due_ms } => (PartitionId(partition), lsn, Some(due_ms)),
            TimerChange::Purge { topic } => {
                let of = self.partitions_of(topic)?;
                let shards = self.shards_of(of);
                let gather = Gather::Purge { changed: 0, more: false, failed: None };
                self.ask_all(connection, correlation, gather, &shards, || {
                    let (after, limit) = (START, PURGED_AT_ONCE);
                    LateWork::Purge(Box::new(TimerWalk { of: Some(of), after, limit, found: Vec::new() }))
                });
                return Ok(());
            }
        };
        let shard = partition.shard(self.mail.shards()).0;
        let work = LateWork::ChangeTimer { partition, lsn, due_ms };
        self.ask_one(connection, correlation, Op::ChangeTimer, shard, work);
        Ok(())
    }

    pub(super) fn request_peek(&mut self, connection: &mut Connection, correlation: u64, peek: PeekMessage) {
        let PeekMessage { partition, lsn } = peek;
        let partition = PartitionId(partition);
        let shard = partition.shard(self.mail.shards()).0;
        self.ask_one(connection, correlation, Op::PeekMessage, shard, LateWork::Peek { partition, lsn });
    }

    /// Goes on with a list or a purge for one turn; whether it is through.
    fn walk_timers(&self, walk: &mut TimerWalk) -> bool {
        let of = walk.of;
        let wanted = |partition: PartitionId| {
            of.is_none_or(|(first, count)| partition.0.wrapping_sub(first.0) < count)
        };
        for (steps, waiting) in self.shard.late().timers_after(walk.after).enumerate() {
            if walk.found.len() > walk.limit {
                return true;
            }
            if steps == STEPS_PER_TURN {
                return false;
            }
            walk.after = waiting.key();
            if wanted(waiting.partition) && self.shard.extent(waiting.partition).is_some() {
                let (len, count) = (waiting.len, waiting.count);
                walk.found.push(Timer { key: waiting.key(), len, count });
            }
        }
        true
    }

    fn pending_here(&self, of: Option<Partitions>) -> u64 {
        let late = self.shard.late();
        match of {
            None => late.counts().pending.delays,
            Some(of) => self.owned(of).map(|partition| late.pending_of(partition).delays).sum(),
        }
    }

    /// Partitions of a topic that this shard owns.
    pub(super) fn owned(&self, (first, count): Partitions) -> impl Iterator<Item = PartitionId> + use<> {
        let (own, shards) = (u32::from(self.own), u32::from(self.mail.shards()));
        let skip = (own + shards - first.0 % shards) % shards;
        (first.0 + skip..first.0 + count).step_by(shards as usize).map(PartitionId)
    }

    pub(super) fn list_timers(&mut self, origin: Origin, mut walk: TimerWalk) {
        if !self.walk_timers(&mut walk) {
            self.late.later.push_back((origin, LateWork::ListTimers(Box::new(walk))));
            return;
        }
        let more = walk.found.len() > walk.limit;
        walk.found.truncate(walk.limit);
        let pending = self.pending_here(walk.of);
        self.answer_late(origin, LateAnswer::Timers { found: walk.found, pending, more });
    }

    /// Cancels what a purge has found.
    pub(super) fn purge_timers(&mut self, origin: Origin, mut walk: TimerWalk) {
        if self.pending_here(walk.of) == 0 {
            self.answer_late(origin, LateAnswer::Purged(Ok((0, false))));
            return;
        }
        if !self.walk_timers(&mut walk) {
            self.late.later.push_back((origin, LateWork::Purge(Box::new(walk))));
            return;
        }
        let more = walk.found.len() > walk.limit;
        walk.found.truncate(walk.limit);
        let changes: Vec<EngineChange> = walk
            .found
            .iter()
            .map(|timer| EngineChange { identity: timer.key.2, partition: timer.key.1, due_ms: None })
            .collect();
        match self.shard.change_timers(&mut self.ring, &changes) {
            Ok((outcomes, durable_at)) => {
                let done = outcomes.iter().filter(|outcome| **outcome == TimerOutcome::Done).count();
                let answer = LateAnswer::Purged(Ok((done as u64, more)));
                let lost = LateAnswer::Purged(Err(ErrorCode::OutcomeUnknown));
                self.reply_when_durable(origin, durable_at, answer, lost);
            }
            Err(LateError::Busy) => {
                // From the start: what was found may have been delivered meanwhile.
                let walk = TimerWalk { after: START, found: Vec::new(), ..walk };
                self.park_in_late(origin, LateWork::Purge(Box::new(walk)));
            }
            Err(error) => self.answer_late(origin, LateAnswer::Purged(Err(code_of(error)))),
        }
    }

    pub(super) fn change_timer(
        &mut self,
        origin: Origin,
        partition: PartitionId,
        lsn: u64,
        due_ms: Option<i64>,
    ) {
        let refusal = if self.shard.extent(partition).is_none() {
            Some(self.no_such_partition())
        } else {
            let too_long = |due_ms: i64| self.is_too_long(partition, due_ms);
            due_ms.filter(|due_ms| too_long(*due_ms)).map(|_| ErrorCode::DelayTooLong)
        };
        if let Some(code) = refusal {
            self.answer_late(origin, LateAnswer::Changed(Err(code)));
            return;
        }
        let change = EngineChange { identity: Lsn(lsn), partition, due_ms };
        match self.shard.change_timers(&mut self.ring, &[change]) {
            Ok((outcomes, durable_at)) => {
                let outcome = outcomes.first().copied().unwrap_or(TimerOutcome::Unknown);
                let durable_at = match outcome {
                    TimerOutcome::Delivered(at) | TimerOutcome::Cancelled(at) => durable_at.max(at),
                    _ => durable_at,
                };
                let answer = LateAnswer::Changed(changed(outcome, due_ms.is_none()));
                let lost = LateAnswer::Changed(Err(ErrorCode::OutcomeUnknown));
                self.reply_when_durable(origin, durable_at, answer, lost);
            }
            Err(LateError::Busy) => {
                self.park_in_late(origin, LateWork::ChangeTimer { partition, lsn, due_ms });
            }
            Err(error) => self.answer_late(origin, LateAnswer::Changed(Err(code_of(error)))),
        }
    }

    /// Again when the log has room.
    fn park_in_late(&mut self, origin: Origin, work: LateWork) {
        self.deferred.push_back((origin, Work::Late(work)));
    }

    fn reply_when_durable(&mut self, origin: Origin, durable_at: Lsn, answer: LateAnswer, lost: LateAnswer) {
        let target = AckTarget::Late(Box::new(Durable::Reply { origin, answer, lost }));
        self.acks.push_back(Ack { durable_at, target });
    }

    pub(super) fn peek_message(&mut self, origin: Origin, partition: PartitionId, lsn: u64) {
        let mut bytes = Vec::new();
        let sink = &mut |frame: &[u8]| bytes.extend_from_slice(frame);
        let answer = match self.shard.peek(&self.ring, partition, Lsn(lsn), sink) {
            Peeked::Frame(waiting) => {
                let txn = self.shard.late().transaction_of(&waiting).map_or(0, |part| part.txn);
                let (due_ms, count) = (waiting.due_ms, waiting.count);
                Ok(Box::new(PeekedFrame { txn, due_ms, partition, count, bytes }))
            }
            Peeked::Cold => {
                self.readers.park(origin, Work::Late(LateWork::Peek { partition, lsn }));
                return;
            }
            Peeked::Damaged => Err(ErrorCode::Damaged),
            Peeked::Unknown => Err(ErrorCode::UnknownTimer),
        };
        self.answer_late(origin, LateAnswer::Peeked(answer));
    }

    pub(super) fn answer_peek(&mut self, key: ConnectionKey, correlation: u64, peeked: &PeekedFrame) {
        let Some(topic) = self.topics.by_partition(peeked.partition).cloned() else {
            let code = ErrorCode::UnknownTimer;
            self.refuse(key, correlation, Op::PeekMessage, code, code.text(), 0);
            return;
        };
        let wire = PeekedWire {
            topic: &topic.name,
            index: peeked.partition.0 - topic.first_partition.0,
            partition: peeked.partition.0,
            txn: peeked.txn,
            due_ms: peeked.due_ms,
            count: peeked.count,
        };
        if let Some(connection) = self.connection(key) {
            wire.encode(correlation, &peeked.bytes, &mut connection.out);
        }
    }

    pub(super) fn answer_timers(
        &mut self,
        key: ConnectionKey,
        correlation: u64,
        mut found: Vec<Timer>,
        pending: u64,
        limit: usize,
        more: bool,
    ) {
        found.sort_unstable_by_key(|timer| timer.key);
        let more = more || found.len() > limit;
        found.truncate(limit);
        let mut timers = ItemsBuf::default();
        for Timer { key: (due_ms, partition, lsn), len, count } in found {
            let Some(topic) = self.topics.by_partition(partition) else { continue };
            timers.push(&TimerEntry {
                topic: &topic.name,
                index: partition.0 - topic.first_partition.0,
                partition: partition.0,
                lsn: lsn.0,
                due_ms,
                count,
                len,
            });
        }
        let page = TimerPage { timers: timers.items(), pending, more };
        self.respond(key, correlation, &Response::Timers(page));
    }
}
