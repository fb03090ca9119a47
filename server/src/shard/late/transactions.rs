//! The shell of the coordinator, and a shard's own part in transactions.
//!
//! Invariants  T1  A shard's part is resolved only when its coordinator says so, and the coordinator says so only after
//!                 the decision is durable there.
//!             T2  What is appended for a transaction and cannot be now waits in `to_log`, in order.

use super::coordinator::{Action, Decision, End, Listed, Outcome, Part, Resolved};
use super::{Durable, EndRequest, Gather, LateAnswer, LateWork};
use crate::shard::connection::Connection;
use crate::shard::mail::{ConnectionKey, Origin};
use crate::shard::{Ack, AckTarget, Draining, ShardServer};
use ringmq_engine::shard::LateError;
use ringmq_format::late::Mark;
use ringmq_format::{Lsn, PartitionId};
use ringmq_protocol::limits::{LIST_HALVES_MAX, LIST_TRANSACTIONS_MAX};
use ringmq_protocol::{
    EndTransaction, ErrorCode, HalfEntry, ItemsBuf, ListTransactions, Op, Response, TransactionEntry,
    TransactionPage, TransactionState,
};

/// Transactions that are looked at for one page at most; a rare state then takes more pages.
const LISTED_STEPS: usize = 100_000;
/// With a log that has no room even in its reserve, what has to be appended is tried again so often.
const FULL_RETRY_US: u64 = 1_000_000;
/// A wall clock that was set is noticed within this time while checks are ahead.
const CLOCK_PERIOD_MS: i64 = 1_000;
/// Sent to be tried again when the reserve of the log is used up.
const DISK_FULL_RETRY_MS: u32 = 1_000;

/// Something to be appended.
#[derive(Debug)]
pub(super) enum ToLog {
    Decision {
        decision: Decision,
        group: String,
    },
    Done {
        txn: u128,
    },
    Check {
        txn: u128,
        attempts: u16,
        parked: bool,
        answer: Option<Origin>,
    },
    /// This shard's part; `to` is the coordinator.
    Resolve {
        to: u16,
        txn: u128,
        commit: bool,
        time_ms: i64,
    },
}

/// What follows when the log is durable.
#[derive(Debug)]
pub(in crate::shard) enum TransactionDurable {
    /// Its coordinator hears of a half or a position.
    Tell {
        txn: u128,
    },
    Prepared {
        to: u16,
        txn: u128,
        round: u64,
        part: Part,
    },
    Applied {
        to: u16,
        txn: u128,
    },
    Logged {
        txn: u128,
    },
    Rechecked {
        origin: Origin,
    },
}

/// A half message in the answer to a look at a transaction.
#[derive(Debug)]
pub(in crate::shard) struct Half {
    due_ms: i64,
    lsn: Lsn,
    partition: PartitionId,
    len: u32,
    count: u32,
}

impl ShardServer {
    /// The shard that coordinates a transaction.
    pub(super) fn coordinator_of(&self, txn: u128) -> u16 {
        (txn as u16) % self.mail.shards()
    }

    // -- requests ------------------------------------------------------------------------------------------

    pub(super) fn request_end(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        end: &EndTransaction<'_>,
    ) {
        let request = EndRequest {
            txn: end.txn,
            resolution: end.resolution,
            source: end.source,
            group: end.group.to_owned(),
            halves: end.halves,
            positions: end.positions,
        };
        let shard = self.coordinator_of(end.txn);
        self.ask_one(connection, correlation, Op::EndTransaction, shard, LateWork::End(Box::new(request)));
    }

    pub(super) fn request_transactions(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        list: &ListTransactions<'_>,
    ) {
        let shards = self.every_shard();
        if list.one {
            let txn = list.txn;
            let gather = Gather::Show { listed: None, halves: Vec::new() };
            self.ask_all(connection, correlation, gather, &shards, || LateWork::ShowTransaction { txn });
            return;
        }
        let limit = match list.limit as usize {
            0 => LIST_TRANSACTIONS_MAX,
            limit => limit.min(LIST_TRANSACTIONS_MAX),
        };
        let (after, state, group) = (list.txn, list.state, list.group.to_owned());
        let gather = Gather::Transactions { found: Vec::new(), limit, more: false };
        self.ask_all(connection, correlation, gather, &shards, || LateWork::ListTransactions {
            after,
            state,
            group: group.clone(),
            limit,
        });
    }

    pub(super) fn answer_transactions(
        &mut self,
        key: ConnectionKey,
        correlation: u64,
        mut found: Vec<Listed>,
        limit: usize,
        more: bool,
    ) {
        found.sort_unstable_by_key(|listed| listed.txn);
        let more = more || found.len() > limit;
        found.truncate(limit);
        let transactions: ItemsBuf = found.iter().map(entry).collect();
        let page = TransactionPage { transactions: transactions.items(), halves: Default::default(), more };
        self.respond(key, correlation, &Response::Transactions(page));
    }

    pub(super) fn answer_transaction(
        &mut self,
        key: ConnectionKey,
        correlation: u64,
        listed: Option<Listed>,
        mut halves: Vec<Half>,
    ) {
        let Some(listed) = listed else {
            let code = ErrorCode::UnknownTransaction;
            self.refuse(key, correlation, Op::ListTransactions, code, code.text(), 0);
            return;
        };
        halves.sort_unstable_by_key(|half| (half.partition, half.lsn));
        halves.truncate(LIST_HALVES_MAX);
        let mut items = ItemsBuf::default();
        for half in &halves {
            let Some(topic) = self.topics.by_partition(half.partition) else { continue };
            items.push(&HalfEntry {
                topic: &topic.name,
                index: half.partition.0 - topic.first_partition.0,
                partition: half.partition.0,
                lsn: half.lsn.0,
                len: half.len,
                count: half.count,
                due_ms: half.due_ms,
            });
        }
        let transactions: ItemsBuf = std::iter::once(entry(&listed)).collect();
        let page = TransactionPage { transactions: transactions.items(), halves: items.items(), more: false };
        self.respond(key, correlation, &Response::Transactions(page));
    }

    // -- what shards say to each other -----------------------------------------------------------------------

    pub(super) fn execute_transactions(&mut self, origin: Origin, work: LateWork) {
        let (now_ms, from) = (self.ring.now().wall_ms, origin.shard);
        match work {
            LateWork::Freeze { txn, round } => self.freeze_part(from, txn, round),
            LateWork::GoOn { txn } => self.shard.unfreeze(txn),
            LateWork::Resolve { txn, commit, time_ms } => {
                self.late.to_log.push_back(ToLog::Resolve { to: from, txn, commit, time_ms });
            }
            LateWork::FirstHalf { txn, attempt } => self.look_first_half(origin, txn, attempt),
            LateWork::Opened { txn, part, restarted } => {
                let known = self.resolution(txn);
                self.late.coordinator.opened(now_ms, from, txn, &part, restarted, known.as_ref());
            }
            LateWork::Started => self.late.coordinator.shard_started(from),
            LateWork::Prepared { txn, round, part } => {
                self.late.coordinator.prepared(now_ms, from, txn, round, &part);
            }
            LateWork::Applied { txn } => self.late.coordinator.applied(from, txn),
            LateWork::FoundFirst { txn, attempt, found } => self.send_check(txn, attempt, found),
            LateWork::Checked { txn, handed } => self.check_was_handed(txn, handed),
            LateWork::End(end) => {
                let EndRequest { txn, resolution, source, group, halves, positions } = *end;
                let known = self.resolution(txn);
                let end = End { asker: origin, resolution, source, group, halves, positions };
                self.late.coordinator.end(now_ms, txn, end, known.as_ref());
            }
            LateWork::ListTransactions { after, state, group, limit } => {
                self.list_transactions(origin, after, state, &group, limit);
            }
            LateWork::ShowTransaction { txn } => self.show_transaction(origin, txn),
            _ => {}
        }
        self.carry_out_transactions();
    }

    /// What the log's tables say became of a transaction that this shard coordinates.
    fn resolution(&self, txn: u128) -> Option<Resolved> {
        let resolution = self.shard.late().resolution(txn)?;
        Some(Resolved {
            commit: resolution.committed,
            time_ms: resolution.time_ms,
            halves: resolution.halves,
            group: String::new(),
        })
    }

    /// What this shard has of a transaction.
    fn part(&self, txn: u128) -> Part {
        let part = self.shard.late().transaction(txn);
        part.filter(|part| !part.halves.is_empty() || !part.positions.is_empty()).map_or(
            Part::default(),
            |part| Part {
                halves: part.halves.len() as u32,
                positions: part.positions.len() as u32,
                bytes: part.bytes,
                group: part.group.to_string(),
                since_ms: part.since_ms,
                check_after_ms: part.check_after_ms,
            },
        )
    }

    fn freeze_part(&mut self, to: u16, txn: u128, round: u64) {
        let part = self.part(txn);
        if part != Part::default() {
            self.shard.freeze(txn);
        }
        let durable_at = self.shard.log().end();
        self.when_transaction_durable(durable_at, TransactionDurable::Prepared { to, txn, round, part });
    }

    fn when_transaction_durable(&mut self, durable_at: Lsn, durable: TransactionDurable) {
        let target = AckTarget::Late(Box::new(Durable::Transaction(durable)));
        self.acks.push_back(Ack { durable_at, target });
    }

    /// A half or a position of a transaction was appended: its coordinator hears of it when it is durable.
    pub(in crate::shard) fn tell_of_transaction(&mut self, txn: u128, durable_at: Lsn) {
        if self.late.untold.insert(txn) {
            self.when_transaction_durable(durable_at, TransactionDurable::Tell { txn });
        }
    }

    /// Whether this shard takes more for a transaction, as far as its coordinator here knows; the log's tables have a
    /// say as well.
    pub(in crate::shard) fn takes_for_transaction(&self, txn: u128) -> bool {
        self.late.coordinator.takes(txn)
    }

    pub(super) fn transaction_is_durable(&mut self, durable: TransactionDurable) {
        match durable {
            TransactionDurable::Tell { txn } => {
                self.late.untold.remove(&txn);
                let part = self.part(txn);
                if part != Part::default() {
                    let coordinator = self.coordinator_of(txn);
                    self.tell_shard(coordinator, LateWork::Opened { txn, part, restarted: false });
                }
            }
            TransactionDurable::Prepared { to, txn, round, part } => {
                self.tell_shard(to, LateWork::Prepared { txn, round, part });
            }
            TransactionDurable::Applied { to, txn } => self.tell_shard(to, LateWork::Applied { txn }),
            TransactionDurable::Logged { txn } => {
                self.late.coordinator.logged(txn);
                self.carry_out_transactions();
            }
            TransactionDurable::Rechecked { origin } => {
                let outcome = Outcome::Done { time_ms: 0, halves: 0, earlier: false };
                self.answer_late(origin, LateAnswer::Ended(outcome));
            }
        }
    }

    pub(super) fn transaction_is_lost(&mut self, durable: TransactionDurable) {
        match durable {
            TransactionDurable::Logged { txn } => {
                self.late.coordinator.lost(txn);
                self.carry_out_transactions();
            }
            TransactionDurable::Rechecked { origin } => {
                let code = ErrorCode::OutcomeUnknown;
                let message = code.text().to_owned();
                let outcome = Outcome::Refused { code, message, retry_after_ms: 0 };
                self.answer_late(origin, LateAnswer::Ended(outcome));
            }
            TransactionDurable::Tell { txn } => {
                self.late.untold.remove(&txn);
            }
            // Its coordinator waits; a restart finds out.
            TransactionDurable::Prepared { .. } | TransactionDurable::Applied { .. } => {}
        }
    }

    // -- coordinating ----------------------------------------------------------------------------------------

    /// At a start: what was decided is applied again, and coordinators hear what is open here.
    pub(super) fn start_transactions(&mut self) {
        let late = self.shard.late();
        let mut decisions = Vec::new();
        for (part, decision) in late.decisions() {
            let ringmq_engine::late::Decision { participants, time_ms, halves, positions } = *decision;
            let decision = Decision { txn: part.txn, commit: true, participants, time_ms, halves, positions };
            decisions.push((decision, part.group.to_string()));
        }
        let checks: Vec<_> = late
            .transactions_after(0)
            .filter(|part| part.attempts > 0 || part.parked)
            .map(|part| (part.txn, part.attempts, part.parked))
            .collect();
        let open: Vec<u128> = late.transactions_after(0).map(|part| part.txn).collect();
        for (decision, group) in decisions {
            self.late.coordinator.recovered_decision(decision, &group);
        }
        for (txn, attempts, parked) in checks {
            if self.coordinator_of(txn) == self.own {
                self.late.coordinator.recovered_checks(txn, attempts, parked);
            }
        }
        for txn in open {
            let part = self.part(txn);
            if part != Part::default() {
                self.shard.freeze(txn);
                let coordinator = self.coordinator_of(txn);
                self.tell_shard(coordinator, LateWork::Opened { txn, part, restarted: true });
            }
        }
        for shard in self.every_shard() {
            self.tell_shard(shard, LateWork::Started);
        }
        self.carry_out_transactions();
    }

    pub(super) fn turn_transactions(&mut self) {
        let now = self.ring.now();
        if self.draining == Draining::No {
            self.late.coordinator.turn(now.wall_ms);
        }
        self.carry_out_transactions();
        let check = self.late.coordinator.deadline_ms().map(|at_ms| {
            let ahead_ms = (at_ms - now.wall_ms).clamp(0, CLOCK_PERIOD_MS);
            now.mono_us + ahead_ms as u64 * 1000
        });
        let full = self.shard.log().is_disk_full() && !self.late.to_log.is_empty();
        let retry = full.then_some(now.mono_us + FULL_RETRY_US);
        let checks = if self.draining == Draining::No { check } else { None };
        self.late.wake_us = checks.into_iter().chain(retry).min();
    }

    /// Does what the coordinator wants, and appends what waits for it.
    pub(super) fn carry_out_transactions(&mut self) {
        loop {
            let actions = self.late.coordinator.take_actions();
            let nothing = actions.is_empty();
            for action in actions {
                self.carry_out_transaction(action);
            }
            let logged = self.turn_to_log();
            if nothing && !logged {
                return;
            }
        }
    }

    fn carry_out_transaction(&mut self, action: Action<Origin>) {
        match action {
            Action::Freeze { shard, txn, round } => self.tell_shard(shard, LateWork::Freeze { txn, round }),
            Action::GoOn { shard, txn } => self.tell_shard(shard, LateWork::GoOn { txn }),
            Action::Resolve { shard, txn, commit, time_ms } => {
                self.tell_shard(shard, LateWork::Resolve { txn, commit, time_ms });
            }
            Action::Log { decision, group } => {
                self.late.to_log.push_back(ToLog::Decision { decision, group });
            }
            Action::LogDone { txn } => self.late.to_log.push_back(ToLog::Done { txn }),
            Action::LogCheck { txn, attempts, parked, answer } => {
                self.late.to_log.push_back(ToLog::Check { txn, attempts, parked, answer });
            }
            Action::Check { txn, attempt } => self.begin_check(txn, attempt),
            Action::Answer { asker, outcome } => self.answer_late(asker, LateAnswer::Ended(outcome)),
        }
    }

    /// Appends what waits (T2). Answers whether anything has changed.
    fn turn_to_log(&mut self) -> bool {
        let mut changed = false;
        while let Some(next) = self.late.to_log.pop_front() {
            if let Err(again) = self.log_next(next) {
                self.late.to_log.push_front(again);
                return changed;
            }
            changed = true;
        }
        changed
    }

    /// Appends one; gives it back if the log has no room for it now.
    fn log_next(&mut self, next: ToLog) -> Result<(), ToLog> {
        match next {
            ToLog::Decision { decision, group } => self.log_decision(decision, group),
            ToLog::Done { txn } => match self.shard.done(&mut self.ring, txn) {
                Err(LateError::Busy | LateError::DiskFull) => Err(ToLog::Done { txn }),
                _ => Ok(()),
            },
            ToLog::Check { txn, attempts, parked, answer } => {
                let group = self.late.coordinator.facts(txn).map(|facts| facts.0.to_owned());
                let group = group.unwrap_or_default();
                match self.shard.note_check(&mut self.ring, txn, &group, attempts, parked) {
                    Err(LateError::Busy) => return Err(ToLog::Check { txn, attempts, parked, answer }),
                    Ok(durable_at) => {
                        if let Some(origin) = answer {
                            let durable = TransactionDurable::Rechecked { origin };
                            self.when_transaction_durable(durable_at, durable);
                        }
                    }
                    Err(error) => {
                        if let Some(origin) = answer {
                            let code = code_of(error);
                            let message = code.text().to_owned();
                            let outcome = Outcome::Refused { code, message, retry_after_ms: 0 };
                            self.answer_late(origin, LateAnswer::Ended(outcome));
                        }
                    }
                }
                Ok(())
            }
            ToLog::Resolve { to, txn, commit, time_ms } => self.log_part(to, txn, commit, time_ms),
        }
    }

    fn log_decision(&mut self, decision: Decision, group: String) -> Result<(), ToLog> {
        let Decision { txn, commit, participants, halves, positions, .. } = decision;
        let ended = if !commit {
            self.shard.abort(&mut self.ring, txn, halves)
        } else if self.late.coordinator.is_alone(&decision) {
            self.shard.commit(&mut self.ring, txn)
        } else {
            let mark = Mark { txn, participants, halves, positions, group: &group, ..Mark::default() };
            self.shard.decide(&mut self.ring, &mark)
        };
        match ended {
            Ok(ended) => {
                self.shard.unfreeze(txn);
                self.late.coordinator.appended(txn, ended.time_ms);
                let durable = TransactionDurable::Logged { txn };
                self.when_transaction_durable(ended.durable_at, durable);
            }
            Err(LateError::Busy) => return Err(ToLog::Decision { decision, group }),
            Err(error) => {
                let now_ms = self.ring.now().wall_ms;
                let retry_ms = if error == LateError::DiskFull { DISK_FULL_RETRY_MS } else { 0 };
                self.late.coordinator.not_logged(now_ms, txn, code_of(error), retry_ms);
            }
        }
        Ok(())
    }

    /// Resolves this shard's part (T1).
    fn log_part(&mut self, to: u16, txn: u128, commit: bool, time_ms: i64) -> Result<(), ToLog> {
        let part = self.part(txn);
        if !commit && part == Part::default() {
            self.shard.unfreeze(txn);
            return Ok(());
        }
        let ended = if commit {
            self.shard.apply(&mut self.ring, txn, time_ms)
        } else {
            self.shard.abort(&mut self.ring, txn, part.halves)
        };
        match ended {
            Ok(ended) => {
                self.shard.unfreeze(txn);
                if commit {
                    let durable = TransactionDurable::Applied { to, txn };
                    self.when_transaction_durable(ended.durable_at, durable);
                }
                Ok(())
            }
            Err(LateError::Busy | LateError::DiskFull) => Err(ToLog::Resolve { to, txn, commit, time_ms }),
            // The decision stays without its DONE: the next start applies it again.
            Err(_) => Ok(()),
        }
    }

    // -- looking ---------------------------------------------------------------------------------------------

    fn list_transactions(
        &mut self,
        origin: Origin,
        after: u128,
        state: Option<TransactionState>,
        group: &str,
        limit: usize,
    ) {
        let wanted = |listed: &Listed| {
            state.is_none_or(|state| state == listed.state) && (group.is_empty() || group == listed.group)
        };
        let mut behind = self.late.coordinator.list(after).take(LISTED_STEPS).filter(wanted);
        let found: Vec<Listed> = behind.by_ref().take(limit).collect();
        let more = behind.next().is_some();
        drop(behind);
        self.answer_late(origin, LateAnswer::Transactions { found, more });
    }

    fn show_transaction(&mut self, origin: Origin, txn: u128) {
        let late = self.shard.late();
        let halves = late.halves(txn).take(LIST_HALVES_MAX).map(|half| Half {
            due_ms: half.due_ms,
            lsn: half.identity,
            partition: half.partition,
            len: half.len,
            count: half.count,
        });
        let halves: Vec<Half> = halves.collect();
        let listed = (self.coordinator_of(txn) == self.own).then(|| self.listed(txn)).flatten();
        self.answer_late(origin, LateAnswer::Shown { listed, halves });
    }

    /// Open, or resolved and remembered.
    fn listed(&self, txn: u128) -> Option<Listed> {
        self.late.coordinator.list_one(txn).or_else(|| {
            let resolved = self.resolution(txn)?;
            let state = if resolved.commit { TransactionState::Committed } else { TransactionState::Aborted };
            Some(Listed {
                txn,
                group: resolved.group,
                state,
                since_ms: resolved.time_ms,
                next_check_ms: 0,
                attempts: 0,
                halves: resolved.halves,
                bytes: 0,
                participants: 0,
            })
        })
    }
}

fn entry(listed: &Listed) -> TransactionEntry<'_> {
    TransactionEntry {
        txn: listed.txn,
        group: &listed.group,
        state: listed.state,
        since_ms: listed.since_ms,
        next_check_ms: listed.next_check_ms,
        attempts: listed.attempts,
        halves: listed.halves,
        bytes: listed.bytes,
        participants: listed.participants,
    }
}

/// What somebody is told when the log has not taken what would resolve a transaction or change a delay.
pub(super) fn code_of(error: LateError) -> ErrorCode {
    match error {
        LateError::Busy => ErrorCode::ShuttingDown,
        LateError::DiskFull => ErrorCode::DiskFull,
        LateError::Poisoned => ErrorCode::ShardPoisoned,
        LateError::UnknownTransaction => ErrorCode::UnknownTransaction,
        LateError::Resolved(_) => ErrorCode::TransactionResolved,
        LateError::UnknownPartition => ErrorCode::UnknownTopic,
        LateError::BodyGone => ErrorCode::Damaged,
        LateError::TooLarge => ErrorCode::TransactionTooLarge,
    }
}
