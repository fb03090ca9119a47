//! Consuming record by record: which partitions to ask, how much, and what is still to be said about each record.
//!
//! Invariants  Q1  Records that are buffered here, in the caller's hands or asked for are at most `prefetch`.
//!             Q2  About one record at most one request is on its way: its handle changes with the answer.
//!             Q3  What the caller says about a record is said to the server until that has answered, or the time to
//!                 try is over; the caller hears of it once.
//!             Q4  With `auto_renew` a lease is prolonged at half its time, until the caller has settled the record or
//!                 `renew_for` is over. A buffered record whose lease has ended is not given out.
//!             Q5  A record that the caller neither settles nor holds a lease of is forgotten one lease time later:
//!                 until then the server may still take an ack, if nobody else has got the record.
//!             Q6  What was not handed out is handed back only when no RECEIVE is on its way any more: it would come
//!                 with that one's answer, to nobody.
//!             Q7  A record that was buffered when a connection ended is handed back and not handed out: the server may
//!                 have begun a new life, in which somebody else has it, and what follows it of its key.
//! States      of a record: buffered -(next)-> taken -(ack, retry, release)-> settling -(answered)-> gone
//! Ignorant of connections and of membership: what a shell should do comes out as actions, numbered by request.

use super::connection::Target;
use super::decode::{ConsumedRecord, ReceiveError, check_entry, decode_frame};
use super::{Random, Refused, backoff_us};
use bytes::Bytes;
use ringmq_format::PartitionId;
use ringmq_protocol::queue::leases_match;
use ringmq_protocol::{
    ChangedLease, ErrorCode, FetchEntryHeader, Lease, LeaseChange, LeaseHandle, Outcome, Retry, entries,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Records asked for at once.
const RECEIVE_RECORDS_MAX: u32 = 32;
/// Wait of a RECEIVE when there is not enough credit for all partitions at once.
const CROWDED_WAIT_MS: u32 = 200;
/// Longest time between two renewals.
const RENEW_US_MAX: u64 = 1_800_000_000;

/// How records are received.
#[derive(Clone, Debug)]
pub struct QueueCoreConfig {
    /// Records that may be unsettled here.
    pub prefetch: u32,
    /// Bytes that one request may bring.
    pub max_bytes: u32,
    /// Time for which nobody else gets a record.
    pub invisible_ms: u32,
    /// How long the server may wait for a first record.
    pub wait_ms: u32,
    /// Prolongs leases.
    pub auto_renew: bool,
    /// How long a record's lease is prolonged at most.
    pub renew_for_us: u64,
    /// How long what is said about a record is tried.
    pub retry_for_us: u64,
    /// Seeds the jitter of pauses.
    pub seed: u64,
}

/// What is said about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// It is consumed.
    Ack,
    /// This delivery has failed.
    Retry,
    /// It may be received again after so many milliseconds, without counting as failed.
    Release(u32),
    /// The lease ends so many milliseconds from now; the record stays with the caller.
    Extend(u32),
}

/// What became of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Done, and durable.
    Done,
    /// It was the last attempt: the record is a dead letter now.
    Dead,
    /// The server refuses; a stale handle says that somebody else has got the record meanwhile.
    Refused(Refused),
    /// Tried for as long as `retry_for` says, without an answer.
    OutcomeUnknown,
}

/// A record in the caller's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Names it here.
    pub token: u64,
    /// Its topic.
    pub topic: Arc<str>,
    /// The record.
    pub record: ConsumedRecord,
    /// Which delivery of the record this is: 1 is the first.
    pub attempt: u16,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueAction {
    /// RECEIVE.
    Receive {
        /// To be given back with the answer.
        request: u64,
        /// The partition.
        target: Target,
        /// Records at most.
        max_records: u32,
        /// How long to wait for a first one.
        wait_ms: u32,
    },
    /// ACK.
    Ack {
        /// To be given back with the answer.
        request: u64,
        /// The partition.
        target: Target,
        /// The leases.
        leases: Vec<LeaseHandle>,
    },
    /// CHANGE_INVISIBLE.
    Change {
        /// To be given back with the answer.
        request: u64,
        /// The partition.
        target: Target,
        /// The changes.
        changes: Vec<LeaseChange>,
    },
}

#[derive(Debug)]
struct Slot {
    target: Target,
    asked: bool,
    due_us: u64,
    retries: u32,
}

#[derive(Debug)]
struct Held {
    partition: PartitionId,
    handle: LeaseHandle,
    /// Not given to the caller yet.
    buffered: bool,
    /// When the lease ends by this side's clock: as counted from before it was asked for.
    expires_us: u64,
    /// When it is looked after next: renewed, or forgotten.
    look_us: u64,
    forget_us: u64,
    renew_until_us: u64,
    /// A request about it is on its way (Q2).
    asked: bool,
    settle: Option<Settle>,
    since_us: u64,
    due_us: u64,
    retries: u32,
    /// The last request may have had its effect.
    uncertain: bool,
}

#[derive(Debug)]
enum Asked {
    Receive {
        partition: PartitionId,
        reserved: u32,
        /// A connection has ended since (Q7).
        doubtful: bool,
    },
    /// With what was said about each.
    Settle { tokens: Vec<(u64, Settle)>, sent_us: u64 },
}

/// The state machine.
#[derive(Debug)]
pub struct QueueCore {
    config: QueueCoreConfig,
    slots: BTreeMap<PartitionId, Slot>,
    held: BTreeMap<u64, Held>,
    /// Held records by the time at which something is to be said about them.
    todo: BTreeSet<(u64, u64)>,
    asked: BTreeMap<u64, Asked>,
    buffer: VecDeque<Delivery>,
    completions: VecDeque<(u64, Settled)>,
    reserved: u32,
    next_request: u64,
    next_token: u64,
    next_slot: PartitionId,
    closed: bool,
    /// To be handed back, once closed.
    unread: Vec<u64>,
    doubtful: bool,
    failed: Option<QueueFailure>,
    random: Random,
}

/// Why a partition brings nothing; the others go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueFailure {
    /// The server refuses.
    Refused(Target, Refused),
    /// What came is damaged; the records come again when their leases have ended.
    Received(Target, ReceiveError),
}

impl QueueCore {
    /// Without partitions.
    pub fn new(config: QueueCoreConfig) -> Self {
        Self {
            random: Random::new(config.seed),
            config,
            slots: BTreeMap::new(),
            held: BTreeMap::new(),
            todo: BTreeSet::new(),
            asked: BTreeMap::new(),
            buffer: VecDeque::new(),
            completions: VecDeque::new(),
            reserved: 0,
            next_request: 1,
            next_token: 1,
            next_slot: PartitionId(0),
            closed: false,
            unread: Vec::new(),
            doubtful: false,
            failed: None,
        }
    }

    /// Receives from these partitions from now on.
    pub fn set_partitions(&mut self, partitions: impl IntoIterator<Item = (PartitionId, Target)>) {
        let mut before = std::mem::take(&mut self.slots);
        for (id, target) in partitions {
            let slot = before.remove(&id);
            let fresh = || Slot { target, asked: false, due_us: 0, retries: 0 };
            self.slots.insert(id, slot.unwrap_or_else(fresh));
        }
    }

    /// Asks for nothing more. What is buffered is handed back by [`QueueCore::hand_back`].
    pub fn close(&mut self) {
        self.closed = true;
        self.unread.extend(self.buffer.drain(..).map(|delivery| delivery.token));
    }

    /// A delivery that the caller did not get, closed.
    pub fn unread(&mut self, token: u64) {
        self.unread.push(token);
    }

    /// A connection has ended: hands back what is buffered, and what is asked for (Q7).
    pub fn doubt_leases(&mut self, now_us: u64) {
        for delivery in std::mem::take(&mut self.buffer) {
            self.give_back(now_us, delivery.token);
        }
        for asked in self.asked.values_mut() {
            if let Asked::Receive { doubtful, .. } = asked {
                *doubtful = true;
            }
        }
    }

    /// Hands back a delivery that the caller did not get.
    pub fn give_back(&mut self, now_us: u64, token: u64) {
        self.settle(now_us, token, Settle::Release(0));
    }

    /// The server may still answer a RECEIVE.
    pub fn is_receiving(&self) -> bool {
        self.asked.values().any(|asked| matches!(asked, Asked::Receive { .. }))
    }

    /// Hands back what was not handed out, when the member has left and nothing is on its way (Q6).
    pub fn hand_back(&mut self, now_us: u64) {
        assert!(self.closed && !self.is_receiving(), "handed back while more may come");
        for token in std::mem::take(&mut self.unread) {
            self.give_back(now_us, token);
        }
    }

    /// Nothing that the caller has said waits for an answer.
    pub fn is_settled(&self) -> bool {
        self.held.values().all(|held| held.settle.is_none())
    }

    /// The server has said that this is no member, since this was last asked.
    pub fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubtful)
    }

    /// A partition that brings nothing, since this was last asked.
    pub fn take_failure(&mut self) -> Option<QueueFailure> {
        self.failed.take()
    }

    /// The next record.
    pub fn next_delivery(&mut self, now_us: u64) -> Option<Delivery> {
        while let Some(delivery) = self.buffer.pop_front() {
            let Some(held) = self.held.get_mut(&delivery.token) else { continue };
            if held.expires_us <= now_us && !held.asked {
                self.forget(delivery.token); // Q4
                continue;
            }
            held.buffered = false;
            return Some(delivery);
        }
        None
    }

    /// Says something about a record; [`QueueCore::next_completion`] has the answer. What is said before the last
    /// was answered takes its place. `false` if the record is not here.
    pub fn settle(&mut self, now_us: u64, token: u64, settle: Settle) -> bool {
        let Some(held) = self.held.get_mut(&token) else { return false };
        held.settle = Some(settle);
        held.since_us = now_us;
        held.retries = 0;
        held.uncertain = false;
        self.due(token, now_us);
        true
    }

    /// What became of something that was said.
    pub fn next_completion(&mut self) -> Option<(u64, Settled)> {
        self.completions.pop_front()
    }

    fn due(&mut self, token: u64, at_us: u64) {
        let Some(held) = self.held.get_mut(&token) else { return };
        self.todo.remove(&(held.due_us, token));
        held.due_us = at_us;
        if at_us != u64::MAX {
            self.todo.insert((at_us, token));
        }
    }

    fn forget(&mut self, token: u64) {
        if let Some(held) = self.held.remove(&token) {
            self.todo.remove(&(held.due_us, token));
        }
    }

    /// When `next_actions` will have something although nothing else happened.
    pub fn deadline_us(&self) -> u64 {
        let free = self.free() > 0 && !self.closed;
        let slots = self.slots.values().filter(|slot| free && !slot.asked).map(|slot| slot.due_us).min();
        let first = self.todo.first().map_or(u64::MAX, |due| due.0);
        first.min(slots.unwrap_or(u64::MAX))
    }

    /// Records that may still be asked for (Q1).
    fn free(&self) -> u32 {
        self.config.prefetch.saturating_sub(self.reserved + self.held.len() as u32)
    }

    /// Appends what is to be done now.
    pub fn next_actions(&mut self, now_us: u64, actions: &mut Vec<QueueAction>) {
        self.settle_due(now_us, actions);
        if !self.closed {
            self.receive_due(now_us, actions);
        }
    }

    fn receive_due(&mut self, now_us: u64, actions: &mut Vec<QueueAction>) {
        let ready = |slot: &Slot| !slot.asked && slot.due_us <= now_us;
        // Beginning behind the one that was asked last, so that with little credit each has its turn.
        let behind = self.slots.range(self.next_slot..).chain(self.slots.range(..self.next_slot));
        let waiting: Vec<PartitionId> = behind.filter(|slot| ready(slot.1)).map(|slot| *slot.0).collect();
        let crowded = self.config.prefetch < self.slots.len() as u32;
        let wait_ms = if crowded { self.config.wait_ms.min(CROWDED_WAIT_MS) } else { self.config.wait_ms };
        for (index, id) in waiting.iter().enumerate() {
            let free = self.free();
            if free == 0 {
                return;
            }
            let left = (waiting.len() - index) as u32;
            let max_records = (free / left).clamp(1, RECEIVE_RECORDS_MAX);
            let request = self.next_request;
            let Some(slot) = self.slots.get_mut(id) else { continue };
            slot.asked = true;
            self.next_request += 1;
            self.reserved += max_records;
            self.next_slot = PartitionId(id.0.wrapping_add(1));
            let asked = Asked::Receive { partition: *id, reserved: max_records, doubtful: false };
            self.asked.insert(request, asked);
            let target = slot.target.clone();
            actions.push(QueueAction::Receive { request, target, max_records, wait_ms });
        }
    }

    /// One ACK and one CHANGE_INVISIBLE for each partition about which something is to be said.
    fn settle_due(&mut self, now_us: u64, actions: &mut Vec<QueueAction>) {
        let mut acks: BTreeMap<PartitionId, Vec<(u64, Settle)>> = BTreeMap::new();
        let mut changes: BTreeMap<PartitionId, Vec<(u64, Settle)>> = BTreeMap::new();
        while let Some((at_us, token)) = self.todo.first().copied() {
            if at_us > now_us {
                break;
            }
            self.todo.remove(&(at_us, token));
            let Some(held) = self.held.get_mut(&token) else { continue };
            held.due_us = u64::MAX;
            if held.asked {
                continue; // Q2: the answer brings it back.
            }
            let forget_us = held.forget_us;
            let settle = match held.settle {
                Some(settle) => settle,
                None if now_us < held.expires_us => Settle::Extend(self.config.invisible_ms),
                None if now_us < forget_us => {
                    self.due(token, forget_us);
                    continue;
                }
                None => {
                    self.forget(token); // Q5
                    continue;
                }
            };
            held.asked = true;
            let list = if settle == Settle::Ack { &mut acks } else { &mut changes };
            list.entry(held.partition).or_default().push((token, settle));
        }
        for (partition, tokens) in acks {
            for tokens in tokens.chunks(ringmq_protocol::limits::ACKS_MAX) {
                let leases =
                    tokens.iter().filter_map(|token| Some(self.held.get(&token.0)?.handle)).collect();
                let Some(target) = self.target(partition, tokens) else { continue };
                let request = self.ask(now_us, tokens.to_vec());
                actions.push(QueueAction::Ack { request, target, leases });
            }
        }
        for (partition, tokens) in changes {
            for tokens in tokens.chunks(ringmq_protocol::limits::ACKS_MAX) {
                let changes =
                    tokens.iter().filter_map(|token| Some(change(self.held.get(&token.0)?, token.1)));
                let changes = changes.collect();
                let Some(target) = self.target(partition, tokens) else { continue };
                let request = self.ask(now_us, tokens.to_vec());
                actions.push(QueueAction::Change { request, target, changes });
            }
        }
    }

    /// The target of a partition. If it is received from no longer, its records are let go: their leases end.
    fn target(&mut self, partition: PartitionId, tokens: &[(u64, Settle)]) -> Option<Target> {
        if let Some(slot) = self.slots.get(&partition) {
            return Some(slot.target.clone());
        }
        for (token, _) in tokens {
            self.complete(*token, Settled::Refused(Refused::new(ErrorCode::UnknownPartition)), true);
        }
        None
    }

    fn ask(&mut self, now_us: u64, tokens: Vec<(u64, Settle)>) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        self.asked.insert(request, Asked::Settle { tokens, sent_us: now_us });
        request
    }

    /// RECEIVE was answered.
    pub fn received(&mut self, now_us: u64, request: u64, leases: &[Lease], bytes: &Bytes) {
        let Some(Asked::Receive { partition, reserved, doubtful }) = self.asked.remove(&request) else {
            return;
        };
        self.reserved -= reserved;
        let Some(slot) = self.slots.get_mut(&partition) else { return };
        slot.asked = false;
        slot.due_us = now_us;
        slot.retries = 0;
        let target = slot.target.clone();
        match decode(partition, &target, leases, bytes) {
            Err(error) => {
                self.failed = Some(QueueFailure::Received(target, error));
                self.pause_slot(now_us, partition, 0);
            }
            Ok(records) => {
                let kept = self.buffer.len();
                for (record, lease) in records.into_iter().zip(leases) {
                    self.hold(now_us, partition, &target, record, lease);
                }
                if doubtful {
                    for delivery in self.buffer.split_off(kept) {
                        self.give_back(now_us, delivery.token);
                    }
                }
            }
        }
    }

    fn hold(
        &mut self,
        now_us: u64,
        partition: PartitionId,
        target: &Target,
        record: ConsumedRecord,
        lease: &Lease,
    ) {
        let token = self.next_token;
        self.next_token += 1;
        let handle = lease.handle;
        let mut held = Held {
            partition,
            handle,
            buffered: true,
            expires_us: 0,
            look_us: 0,
            forget_us: 0,
            renew_until_us: now_us.saturating_add(self.config.renew_for_us),
            asked: false,
            settle: None,
            since_us: now_us,
            due_us: u64::MAX,
            retries: 0,
            uncertain: false,
        };
        // When the server began the lease is not known, because RECEIVE may have waited; the way back is short against
        // the half of it that is left for renewing.
        self.lease_from(&mut held, now_us, self.config.invisible_ms);
        let look_us = held.look_us;
        self.held.insert(token, held);
        self.due(token, look_us);
        if self.closed {
            self.unread.push(token); // Q6
        } else {
            let attempt = handle.attempt.get();
            self.buffer.push_back(Delivery { token, topic: target.topic.clone(), record, attempt });
        }
    }

    fn lease_from(&self, held: &mut Held, from_us: u64, ms: u32) {
        let lease_us = u64::from(ms) * 1_000;
        held.expires_us = from_us.saturating_add(lease_us);
        let renew_us = from_us.saturating_add((lease_us / 2).clamp(1, RENEW_US_MAX));
        let renews = self.config.auto_renew && renew_us < held.renew_until_us;
        held.forget_us = held.expires_us.saturating_add(lease_us);
        held.look_us = if renews { renew_us } else { held.forget_us };
    }

    /// ACK was answered.
    pub fn acked(&mut self, now_us: u64, request: u64, outcomes: &[Outcome]) {
        let Some(Asked::Settle { tokens, .. }) = self.asked.remove(&request) else { return };
        for (index, (token, settle)) in tokens.into_iter().enumerate() {
            match outcomes.get(index) {
                Some(outcome) if outcome.is_done() => {
                    self.answered(now_us, token, settle, Settled::Done, None)
                }
                Some(outcome) => {
                    let (code, retry_after_ms) = (outcome.code.get(), outcome.retry_after_ms.get());
                    self.settle_refused(now_us, token, settle, refusal(code, retry_after_ms));
                }
                None => self.settle_refused(now_us, token, settle, Refused::new(ErrorCode::Internal)),
            }
        }
    }

    /// CHANGE_INVISIBLE was answered.
    pub fn changed(&mut self, now_us: u64, request: u64, leases: &[ChangedLease]) {
        let Some(Asked::Settle { tokens, sent_us }) = self.asked.remove(&request) else { return };
        for (index, (token, settle)) in tokens.into_iter().enumerate() {
            let Some(changed) = leases.get(index) else {
                self.settle_refused(now_us, token, settle, Refused::new(ErrorCode::Internal));
                continue;
            };
            if changed.code.get() != 0 {
                let refused = refusal(changed.code.get(), changed.retry_after_ms.get());
                self.settle_refused(now_us, token, settle, refused);
                continue;
            }
            let settled = if changed.is_dead() { Settled::Dead } else { Settled::Done };
            self.answered(now_us, token, settle, settled, Some((changed.lease.handle, sent_us)));
        }
    }

    /// A request about a record was carried out.
    fn answered(
        &mut self,
        now_us: u64,
        token: u64,
        said: Settle,
        settled: Settled,
        lease: Option<(LeaseHandle, u64)>,
    ) {
        let Some(mut held) = self.held.remove(&token) else { return };
        self.todo.remove(&(held.due_us, token));
        held.asked = false;
        held.due_us = u64::MAX;
        let current = held.settle == Some(said);
        if let (Settle::Extend(ms), Some((handle, sent_us))) = (said, lease) {
            held.handle = handle;
            self.lease_from(&mut held, sent_us, ms);
            held.retries = 0;
            if current {
                held.settle = None;
                self.completions.push_back((token, settled));
            }
            let due_us = if held.settle.is_some() { now_us } else { held.look_us };
            self.held.insert(token, held);
            self.due(token, due_us);
            return;
        }
        // The record is gone. What was said after that comes too late, which the caller hears.
        if current {
            self.completions.push_back((token, settled));
        } else if held.settle.is_some() {
            self.completions.push_back((token, Settled::Refused(Refused::new(ErrorCode::StaleHandle))));
        }
    }

    fn settle_refused(&mut self, now_us: u64, token: u64, said: Settle, refused: Refused) {
        let Some(held) = self.held.get_mut(&token) else { return };
        held.asked = false;
        let current = held.settle == Some(said);
        match refused.retry() {
            // An acknowledgement that is repeated is done if it was. Of anything else stale says that it was done, or that
            // it was not and somebody else has got the record since.
            Retry::No if held.uncertain && stale(&refused) && current && said != Settle::Ack => {
                self.complete(token, Settled::OutcomeUnknown, true);
            }
            Retry::No if refused.code() == Some(ErrorCode::NotAMember) => {
                self.doubtful = true;
                self.again(now_us, token, refused.retry_after_ms, false);
            }
            Retry::No => {
                let gone = stale(&refused) || current;
                if current || gone {
                    self.complete(token, Settled::Refused(refused), gone);
                }
            }
            Retry::Yes => self.again(now_us, token, refused.retry_after_ms, false),
            Retry::OutcomeUnknown => self.again(now_us, token, refused.retry_after_ms, true),
        }
    }

    /// Ends what was said about a record.
    fn complete(&mut self, token: u64, settled: Settled, gone: bool) {
        let Some(held) = self.held.get_mut(&token) else { return };
        held.asked = false;
        if held.settle.take().is_some() {
            self.completions.push_back((token, settled));
        }
        if gone {
            self.buffer.retain(|delivery| delivery.token != token);
            self.forget(token);
        }
    }

    fn again(&mut self, now_us: u64, token: u64, retry_after_ms: u32, uncertain: bool) {
        let Some(held) = self.held.get_mut(&token) else { return };
        held.asked = false;
        held.uncertain |= uncertain;
        if held.settle.is_some() && now_us.saturating_sub(held.since_us) > self.config.retry_for_us {
            return self.complete(token, Settled::OutcomeUnknown, true);
        }
        let pause_us = backoff_us(held.retries, retry_after_ms, &mut self.random);
        held.retries += 1;
        self.due(token, now_us + pause_us);
    }

    /// The server refused a request as a whole.
    pub fn refused(&mut self, now_us: u64, request: u64, refused: Refused) {
        match self.asked.remove(&request) {
            None => {}
            Some(Asked::Receive { partition, reserved, .. }) => {
                self.reserved -= reserved;
                self.doubtful |= refused.code() == Some(ErrorCode::NotAMember);
                let retry_after_ms = refused.retry_after_ms;
                let told = refused.retry() == Retry::No && refused.code() != Some(ErrorCode::NotAMember);
                if let Some(slot) = self.slots.get(&partition).filter(|_| told) {
                    self.failed = Some(QueueFailure::Refused(slot.target.clone(), refused));
                }
                self.pause_slot(now_us, partition, retry_after_ms);
            }
            Some(Asked::Settle { tokens, .. }) => {
                for (token, settle) in tokens {
                    self.settle_refused(now_us, token, settle, refused.clone());
                }
            }
        }
    }

    /// There is no answer; the request may have had its effect unless it was `not_sent`.
    pub fn lost(&mut self, now_us: u64, request: u64, not_sent: bool) {
        match self.asked.remove(&request) {
            None => {}
            Some(Asked::Receive { partition, reserved, .. }) => {
                self.reserved -= reserved;
                self.pause_slot(now_us, partition, 0);
            }
            Some(Asked::Settle { tokens, .. }) => {
                for (token, _) in tokens {
                    self.again(now_us, token, 0, !not_sent);
                }
            }
        }
    }

    fn pause_slot(&mut self, now_us: u64, partition: PartitionId, retry_after_ms: u32) {
        let Some(slot) = self.slots.get_mut(&partition) else { return };
        slot.asked = false;
        slot.due_us = now_us + backoff_us(slot.retries, retry_after_ms, &mut self.random);
        slot.retries += 1;
    }

    /// Records that are buffered, in the caller's hands or asked for.
    pub fn outstanding(&self) -> u32 {
        self.reserved + self.held.len() as u32
    }
}

fn change(held: &Held, settle: Settle) -> LeaseChange {
    match settle {
        Settle::Retry | Settle::Ack => LeaseChange::retry(held.handle),
        Settle::Release(ms) => LeaseChange::after(held.handle, ms),
        Settle::Extend(ms) => LeaseChange::extend(held.handle, ms),
    }
}

fn refusal(number: u16, retry_after_ms: u32) -> Refused {
    Refused { number, retry_after_ms, message: Arc::from("") }
}

fn stale(refused: &Refused) -> bool {
    matches!(refused.code(), Some(ErrorCode::StaleHandle | ErrorCode::UnknownLease))
}

/// Checks everything before anything is kept.
fn decode(
    partition: PartitionId,
    target: &Target,
    leases: &[Lease],
    bytes: &Bytes,
) -> Result<VecDeque<ConsumedRecord>, ReceiveError> {
    let mut headers: Vec<FetchEntryHeader> = Vec::new();
    let mut records = VecDeque::new();
    for entry in entries(bytes) {
        let entry = entry?;
        check_entry(&entry, partition, entry.header.base_offset.get())?;
        let frame = bytes.slice_ref(entry.frame.bytes);
        decode_frame(target.partition, entry.header, &frame, 0, &mut records)?;
        headers.push(*entry.header);
    }
    if !leases_match(leases, &headers) {
        return Err(ReceiveError::Leases { leases: leases.len(), records: records.len() });
    }
    Ok(records)
}

#[cfg(test)]
mod tests;
