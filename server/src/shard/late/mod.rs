//! What becomes visible later than it was stored: transactions, delays; and the settings of topics.
//!
//! `coordinator` what becomes of transactions, `transactions` its shell and a shard's part in them, `checks` producers
//! that can be asked, `timers` delays, `settings` settings and statistics of topics, `admission` what a PRODUCE has to
//! pass before the log.

mod admission;
mod checks;
mod coordinator;
mod settings;
mod timers;
mod transactions;

use super::ShardServer;
use super::connection::{Connection, Pending};
use super::mail::{Answer, ConnectionKey, Origin, Work};
use super::requests::NOBODY;
pub(super) use admission::{HOLD_US, NotAppended};
use admission::{Quotas, Topics};
use checks::Registry;
pub use coordinator::Timings;
use coordinator::{Coordinator, Listed, Outcome, Part};
use ringmq_engine::shard::TimerOutcome;
use ringmq_format::{Lsn, PartitionId};
use ringmq_protocol::request::Request;
use ringmq_protocol::response::ErrorBody;
use ringmq_protocol::{EndSource, ErrorCode, Header, Op, Response, TransactionEnd, TransactionState};
pub(super) use settings::{SettingsPatch, answer_altered};
use std::collections::{BTreeSet, VecDeque};
use transactions::{ToLog, TransactionDurable};

/// How what is late is treated, unless a topic or a message says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateOptions {
    /// How transactions are checked.
    pub timings: Timings,
    /// The longest delay, milliseconds.
    pub delay_max_ms: u64,
}

impl Default for LateOptions {
    fn default() -> Self {
        Self { timings: Timings::default(), delay_max_ms: 40 * 24 * 60 * 60 * 1000 }
    }
}

/// Partitions of a topic: the first, and how many.
type Partitions = (PartitionId, u32);

/// A delay in the order of lists: due time, partition, identity.
type TimerKey = (i64, PartitionId, Lsn);

/// A list or purge of delays: where it stands.
#[derive(Debug)]
pub(super) struct TimerWalk {
    of: Option<Partitions>,
    after: TimerKey,
    limit: usize,
    found: Vec<timers::Timer>,
}

/// Work for the shard that has it.
#[derive(Debug)]
pub(super) enum LateWork {
    // To a shard with a part of a transaction.
    Freeze { txn: u128, round: u64 },
    GoOn { txn: u128 },
    Resolve { txn: u128, commit: bool, time_ms: i64 },
    FirstHalf { txn: u128, attempt: u16 },
    // To its coordinator.
    Opened { txn: u128, part: Part, restarted: bool },
    Started,
    Prepared { txn: u128, round: u64, part: Part },
    Applied { txn: u128 },
    FoundFirst { txn: u128, attempt: u16, found: Option<(PartitionId, Vec<u8>)> },
    Checked { txn: u128, handed: bool },
    End(Box<EndRequest>),
    // To every shard, and to the one that has a producer's connection.
    Register { registration: u32, group: Option<String> },
    HandCheck { connection: ConnectionKey, registration: u32, txn: u128, message: Vec<u8> },
    // Looking and changing.
    ListTimers(Box<TimerWalk>),
    Purge(Box<TimerWalk>),
    ChangeTimer { partition: PartitionId, lsn: u64, due_ms: Option<i64> },
    Peek { partition: PartitionId, lsn: u64 },
    ListTransactions { after: u128, state: Option<TransactionState>, group: String, limit: usize },
    ShowTransaction { txn: u128 },
    Stats { of: Partitions },
}

/// An END_TRANSACTION.
#[derive(Debug)]
pub(super) struct EndRequest {
    txn: u128,
    resolution: TransactionEnd,
    source: EndSource,
    group: String,
    halves: u32,
    positions: u32,
}

/// What comes back.
#[derive(Debug)]
pub(super) enum LateAnswer {
    Ended(Outcome),
    Timers { found: Vec<timers::Timer>, pending: u64, more: bool },
    Purged(Result<(u64, bool), ErrorCode>),
    Changed(Result<u64, ErrorCode>),
    Peeked(Result<Box<timers::PeekedFrame>, ErrorCode>),
    Transactions { found: Vec<Listed>, more: bool },
    Shown { listed: Option<Listed>, halves: Vec<transactions::Half> },
    Stats(Box<settings::ShardTopicStats>),
}

/// A request that waits.
#[derive(Debug)]
pub(super) enum LatePending {
    /// For one shard.
    One { correlation: u64, op: Op },
    /// For `remaining` shards.
    Gather { correlation: u64, remaining: u32, gather: Box<Gather> },
}

/// What shards have said so far.
#[derive(Debug)]
pub(super) enum Gather {
    Timers {
        found: Vec<timers::Timer>,
        pending: u64,
        limit: usize,
        more: bool,
    },
    Purge {
        changed: u64,
        more: bool,
        failed: Option<ErrorCode>,
    },
    Transactions {
        found: Vec<Listed>,
        limit: usize,
        more: bool,
    },
    Show {
        listed: Option<Listed>,
        halves: Vec<transactions::Half>,
    },
    Stats {
        name: String,
        stats: settings::ShardTopicStats,
    },
    /// The kind of a topic may change if nothing is pending that the new one does not take.
    Alter {
        name: String,
        patch: SettingsPatch,
        stats: settings::ShardTopicStats,
    },
}

/// What follows when the log is durable.
#[derive(Debug)]
pub(super) enum Durable {
    Transaction(TransactionDurable),
    /// An answer; another one if the log fails.
    Reply {
        origin: Origin,
        answer: LateAnswer,
        lost: LateAnswer,
    },
}

/// What a shard keeps for it.
#[derive(Debug)]
pub(super) struct LateState {
    options: LateOptions,
    coordinator: Coordinator<Origin>,
    started: bool,
    /// Work that came before this shard had started.
    early: Vec<(Origin, LateWork)>,
    /// What is to be appended as soon as the log takes it.
    to_log: VecDeque<ToLog>,
    /// Work that goes on in the next turn.
    later: VecDeque<(Origin, LateWork)>,
    registry: Registry,
    topics: Topics,
    quotas: Quotas,
    wake_us: Option<u64>,
    /// Connections that were held back may go on.
    looks_again: bool,
    /// Transactions of which the coordinator is to hear when the log is durable.
    untold: BTreeSet<u128>,
}

impl LateState {
    pub(super) fn new(own: u16, shards: u16, options: LateOptions) -> Self {
        Self {
            options,
            coordinator: Coordinator::new(own, shards, options.timings),
            started: false,
            early: Vec::new(),
            to_log: VecDeque::new(),
            later: VecDeque::new(),
            registry: Registry::default(),
            topics: Topics::default(),
            quotas: Quotas::default(),
            wake_us: None,
            looks_again: false,
            untold: BTreeSet::new(),
        }
    }

    /// When `turn_late` wants to be called though nothing has completed.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.wake_us.into_iter().chain(self.quotas.wake_us()).min()
    }

    /// `turn_late` again without sleeping.
    pub(super) fn has_work(&self) -> bool {
        self.looks_again || !self.later.is_empty()
    }

    /// Everything that is kept for somebody's request.
    pub(super) fn count(&self) -> usize {
        self.later.len() + self.coordinator.waiting()
    }
}

impl LateWork {
    /// The partition that it is about.
    pub(super) fn partition(&self) -> Option<PartitionId> {
        match self {
            Self::ChangeTimer { partition, .. } | Self::Peek { partition, .. } => Some(*partition),
            _ => None,
        }
    }
}

impl ShardServer {
    /// Carries out a request, or has it carried out where it belongs.
    pub(super) fn request_late(
        &mut self,
        connection: &mut Connection,
        header: &Header,
        request: Request<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let correlation = header.correlation();
        match request {
            Request::EndTransaction(end) => self.request_end(connection, correlation, &end),
            Request::RegisterProducer(register) => {
                return self.register_producer(connection, correlation, &register);
            }
            Request::ListTransactions(list) => self.request_transactions(connection, correlation, &list),
            Request::ListTimers(list) => return self.request_timers(connection, correlation, &list),
            Request::ChangeTimer(change) => {
                return self.request_change_timer(connection, correlation, change);
            }
            Request::PeekMessage(peek) => self.request_peek(connection, correlation, peek),
            Request::AlterTopic(alter) => return self.request_alter_topic(connection, correlation, &alter),
            Request::TopicStats(name) => return self.request_topic_stats(connection, correlation, name),
            _ => return Err((ErrorCode::UnknownOp, ErrorCode::UnknownOp.text())),
        }
        Ok(())
    }

    /// Asks one shard.
    fn ask_one(&mut self, connection: &mut Connection, correlation: u64, op: Op, shard: u16, work: LateWork) {
        let pending = connection.keep(Pending::Late(LatePending::One { correlation, op }));
        let origin = self.origin(connection, u64::from(pending));
        self.ask(connection, origin, shard, Work::Late(work));
    }

    /// Asks all of some shards.
    fn ask_all(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        gather: Gather,
        shards: &[u16],
        mut work: impl FnMut() -> LateWork,
    ) {
        let remaining = shards.len() as u32;
        let gather = Box::new(gather);
        let pending = connection.keep(Pending::Late(LatePending::Gather { correlation, remaining, gather }));
        let origin = self.origin(connection, u64::from(pending));
        for shard in shards {
            self.ask(connection, origin, *shard, Work::Late(work()));
        }
    }

    fn every_shard(&self) -> Vec<u16> {
        (0..self.mail.shards()).collect()
    }

    /// The shards that own some of these partitions.
    fn shards_of(&self, (first, count): Partitions) -> Vec<u16> {
        let shards = self.mail.shards();
        let owners =
            (first.0..first.0 + count.min(u32::from(shards))).map(|id| PartitionId(id).shard(shards).0);
        owners.collect()
    }

    /// Tells another shard, or this one.
    fn tell_shard(&mut self, shard: u16, work: LateWork) {
        let origin = Origin { shard: self.own, connection: NOBODY, tag: 0 };
        self.dispatch(origin, shard, Work::Late(work));
    }

    fn answer_late(&mut self, origin: Origin, answer: LateAnswer) {
        self.reply(origin, Answer::Late(answer));
    }

    /// Does what a shard has asked of this one.
    pub(super) fn execute_late(&mut self, origin: Origin, work: LateWork) {
        if !self.late.started {
            self.late.early.push((origin, work));
            return;
        }
        match work {
            LateWork::Register { registration, group } => self.enter_producer(origin, registration, group),
            LateWork::HandCheck { connection, registration, txn, message } => {
                self.hand_check(origin.shard, connection, registration, txn, &message);
            }
            LateWork::ListTimers(walk) => self.list_timers(origin, *walk),
            LateWork::Purge(walk) => self.purge_timers(origin, *walk),
            LateWork::ChangeTimer { partition, lsn, due_ms } => {
                self.change_timer(origin, partition, lsn, due_ms);
            }
            LateWork::Peek { partition, lsn } => self.peek_message(origin, partition, lsn),
            LateWork::Stats { of } => {
                let stats = Box::new(self.topic_stats_here(of));
                self.answer_late(origin, LateAnswer::Stats(stats));
            }
            work => self.execute_transactions(origin, work),
        }
    }

    /// Takes what came back.
    pub(super) fn take_late_answer(&mut self, origin: Origin, answer: LateAnswer) {
        let slot = origin.tag as u32;
        let Some(connection) = self.connection(origin.connection) else { return };
        let finished = match connection.pending_mut(slot) {
            Some(Pending::Late(LatePending::Gather { remaining, gather, .. })) => {
                gather.take(answer);
                *remaining -= 1;
                if *remaining > 0 {
                    return;
                }
                None
            }
            Some(Pending::Late(LatePending::One { .. })) => Some(answer),
            _ => return,
        };
        match (connection.take_pending(slot), finished) {
            (Some(Pending::Late(LatePending::One { correlation, op })), Some(answer)) => {
                self.finish_one(origin.connection, correlation, op, answer);
            }
            (Some(Pending::Late(LatePending::Gather { correlation, gather, .. })), _) => {
                self.finish_gather(origin.connection, correlation, *gather);
            }
            _ => {}
        }
        self.recharge(origin.connection);
        self.touched.push(origin.connection.slot);
    }

    fn finish_one(&mut self, key: ConnectionKey, correlation: u64, op: Op, answer: LateAnswer) {
        let refusal = match answer {
            LateAnswer::Ended(Outcome::Done { time_ms, halves, earlier }) => {
                let ended = Response::Ended(ringmq_protocol::Ended { time_ms, halves, earlier });
                return self.respond(key, correlation, &ended);
            }
            LateAnswer::Ended(Outcome::Refused { code, message, retry_after_ms }) => {
                return self.refuse(key, correlation, op, code, &message, retry_after_ms);
            }
            LateAnswer::Changed(Ok(changed)) => {
                let changed = ringmq_protocol::TimerChanged { changed, more: false };
                return self.respond(key, correlation, &Response::TimerChanged(changed));
            }
            LateAnswer::Peeked(Ok(peeked)) => return self.answer_peek(key, correlation, &peeked),
            LateAnswer::Changed(Err(code)) | LateAnswer::Peeked(Err(code)) => code,
            _ => return,
        };
        self.refuse(key, correlation, op, refusal, refusal.text(), 0);
    }

    fn finish_gather(&mut self, key: ConnectionKey, correlation: u64, gather: Gather) {
        match gather {
            Gather::Timers { found, pending, limit, more } => {
                self.answer_timers(key, correlation, found, pending, limit, more);
            }
            Gather::Purge { failed: Some(code), .. } => {
                self.refuse(key, correlation, Op::ChangeTimer, code, code.text(), 0);
            }
            Gather::Purge { changed, more, .. } => {
                let changed = ringmq_protocol::TimerChanged { changed, more };
                self.respond(key, correlation, &Response::TimerChanged(changed));
            }
            Gather::Transactions { found, limit, more } => {
                self.answer_transactions(key, correlation, found, limit, more);
            }
            Gather::Show { listed, halves } => self.answer_transaction(key, correlation, listed, halves),
            Gather::Stats { name, stats } => self.answer_topic_stats(key, correlation, &name, &stats),
            Gather::Alter { name, patch, stats } => {
                self.alter_if_empty(key, correlation, name, patch, &stats);
            }
        }
    }

    fn respond(&mut self, key: ConnectionKey, correlation: u64, response: &Response<'_>) {
        if let Some(connection) = self.connection(key) {
            response.encode(correlation, 0, &mut connection.out);
        }
    }

    fn refuse(
        &mut self,
        key: ConnectionKey,
        correlation: u64,
        op: Op,
        code: ErrorCode,
        message: &str,
        retry_after_ms: u32,
    ) {
        self.stats.request_errors += 1;
        if let Some(connection) = self.connection(key) {
            let body = ErrorBody { code: code as u16, retry_after_ms, message };
            body.encode(op as u8, correlation, 0, &mut connection.out);
        }
    }

    /// Once a turn, after acknowledgements.
    pub(super) fn turn_late(&mut self) {
        let now = self.ring.now();
        self.late.looks_again = self.late.quotas.turn(now.mono_us);
        if !self.shard.is_ready() {
            return;
        }
        if !self.late.started {
            self.late.started = true;
            self.start_transactions();
            for (origin, work) in std::mem::take(&mut self.late.early) {
                self.execute_late(origin, work);
            }
        }
        for (origin, work) in std::mem::take(&mut self.late.later) {
            self.execute_late(origin, work);
        }
        self.turn_transactions();
    }

    /// The log is durable as far as something waited for.
    pub(super) fn late_is_durable(&mut self, durable: Durable) {
        match durable {
            Durable::Transaction(durable) => self.transaction_is_durable(durable),
            Durable::Reply { origin, answer, .. } => self.answer_late(origin, answer),
        }
    }

    /// The log has failed before it was durable as far as something waited for.
    pub(super) fn late_is_lost(&mut self, durable: Durable) {
        match durable {
            Durable::Transaction(durable) => self.transaction_is_lost(durable),
            Durable::Reply { origin, lost, .. } => self.answer_late(origin, lost),
        }
    }

    /// A connection, of this shard or of another, is gone.
    pub(super) fn forget_in_late(&mut self, shard: u16, connection: ConnectionKey) {
        self.late.registry.remove_connection(shard, connection);
        self.late.later.retain(|(origin, _)| origin.shard != shard || origin.connection != connection);
        if shard == self.own {
            self.late.quotas.remove_connection(connection);
        }
    }
}

impl Gather {
    fn take(&mut self, answer: LateAnswer) {
        match (self, answer) {
            (
                Self::Timers { found, pending, more, .. },
                LateAnswer::Timers { found: theirs, pending: waiting, more: again },
            ) => {
                found.extend(theirs);
                *pending += waiting;
                *more |= again;
            }
            (Self::Purge { changed, more, failed }, LateAnswer::Purged(result)) => match result {
                Ok((count, again)) => {
                    *changed += count;
                    *more |= again;
                }
                Err(code) => *failed = Some(code),
            },
            (
                Self::Transactions { found, more, .. },
                LateAnswer::Transactions { found: theirs, more: again },
            ) => {
                found.extend(theirs);
                *more |= again;
            }
            (Self::Show { listed, halves }, LateAnswer::Shown { listed: theirs, halves: more }) => {
                *listed = listed.take().or(theirs);
                halves.extend(more);
            }
            (Self::Stats { stats, .. } | Self::Alter { stats, .. }, LateAnswer::Stats(theirs)) => {
                stats.add(&theirs);
            }
            _ => {}
        }
    }
}

/// What a change of a delay is answered with.
fn changed(outcome: TimerOutcome, cancels: bool) -> Result<u64, ErrorCode> {
    match outcome {
        TimerOutcome::Done => Ok(1),
        // Asked again because the first answer was lost, most likely.
        TimerOutcome::Cancelled(_) if cancels => Ok(0),
        TimerOutcome::Delivered(_) => Err(ErrorCode::TimerDelivered),
        TimerOutcome::Cancelled(_) | TimerOutcome::InTransaction | TimerOutcome::Unknown => {
            Err(ErrorCode::UnknownTimer)
        }
    }
}
