//! Transactions as their coordinator sees them. Events and time in, actions out: no I/O, no clock, no randomness.
//!
//! ```text
//! open -[END]-> preparing: every shard freezes its part, and says what of it is durable
//!      -[all have said]-> logging: COMMIT (nothing but the coordinator's own part), DECISION (other shards take
//!                         part) or ABORT is appended
//!      -[durable]-> answered; COMMIT, ABORT: gone.  DECISION: decided -[applied by all]-> DONE is appended, gone
//! preparing -[something that was acknowledged is missing]-> open again, nothing done
//! open -[nobody ends it]-> checked, again and again -[the checks are used up]-> parked
//! ```
//!
//! Invariants  C1  A resolution is answered, and told to participants, only when its frame is durable.
//!             C2  From *logging* on there is no way back but the log refusing the frame: never two resolutions.
//!             C3  All that takes part is named before anything is logged; a part that comes later is discarded by
//!                 its shard, and never made visible.
//!             C4  A check counts only when it was handed over.
//! What is resolved is remembered by the log's tables, which the caller asks; it is not kept here twice. Mail between
//! shards is not lost while both live; a shard that starts again tells its open transactions and then `shard_started`.

use ringmq_protocol::{EndSource, ErrorCode, TransactionEnd};
use std::collections::{BTreeMap, BTreeSet};

/// How transactions are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Age at the first check, unless the first half says otherwise.
    pub first_ms: u32,
    /// Time between two checks.
    pub every_ms: u32,
    /// Checks after which a transaction is parked.
    pub checks_max: u16,
}

impl Default for Timings {
    fn default() -> Self {
        Self { first_ms: 6_000, every_ms: 30_000, checks_max: 15 }
    }
}

/// The longest that a producer may have its first check put off.
pub(super) const CHECK_AFTER_MAX_MS: u32 = 12 * 60 * 60 * 1000;
/// When a check that found its producer unwilling is tried again.
const CHECK_AGAIN_MS: i64 = 1_000;
/// Sent to be tried again when a part of a transaction is missing.
const MISSING_RETRY_MS: u32 = 100;

/// The shards in a set of participants.
pub(super) fn shards_in(set: u64) -> impl Iterator<Item = u16> {
    (0..64).filter(move |shard| set & (1 << shard) != 0)
}

/// What a shard has of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::shard) struct Part {
    pub(super) halves: u32,
    pub(super) positions: u32,
    pub(super) bytes: u64,
    pub(super) group: String,
    /// When its first half or position was stored, Unix milliseconds.
    pub(super) since_ms: i64,
    /// As the first half asks; 0 leaves it to the server.
    pub(super) check_after_ms: u32,
}

impl Part {
    fn is_empty(&self) -> bool {
        self.halves == 0 && self.positions == 0
    }
}

/// A transaction that was resolved, as the log's tables know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) commit: bool,
    pub(super) time_ms: i64,
    /// 2³²−1 if it is not known any more.
    pub(super) halves: u32,
    /// Empty if it is not known any more.
    pub(super) group: String,
}

/// An END_TRANSACTION. `asker` is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End<A> {
    pub(super) asker: A,
    pub(super) resolution: TransactionEnd,
    pub(super) source: EndSource,
    pub(super) group: String,
    pub(super) halves: u32,
    /// Counted as often as they were sent: only whether there are any can be compared.
    pub(super) positions: u32,
}

/// What becomes of an END_TRANSACTION.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::shard) enum Outcome {
    Done { time_ms: i64, halves: u32, earlier: bool },
    Refused { code: ErrorCode, message: String, retry_after_ms: u32 },
}

fn refused(code: ErrorCode, message: impl Into<String>) -> Outcome {
    Outcome::Refused { code, message: message.into(), retry_after_ms: 0 }
}

/// How a transaction is resolved in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) txn: u128,
    pub(super) commit: bool,
    /// Shards with a part of it.
    pub(super) participants: u64,
    pub(super) time_ms: i64,
    pub(super) halves: u32,
    pub(super) positions: u32,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action<A> {
    /// `shard` is to take nothing more for the transaction and to say, in this round, what of it is durable.
    Freeze { shard: u16, txn: u128, round: u64 },
    /// `shard` takes more for it again, or goes on taking.
    GoOn { shard: u16, txn: u128 },
    /// `shard` is to resolve its part, and to say when that is durable.
    Resolve { shard: u16, txn: u128, commit: bool, time_ms: i64 },
    /// To be appended: COMMIT, if it commits and nobody else takes part; else DECISION, or ABORT. Then `logged`,
    /// `not_logged` or `lost`.
    Log { decision: Decision, group: String },
    /// To be appended: everybody has applied it.
    LogDone { txn: u128 },
    /// To be appended: so many checks were handed over. `answer` is told when it is durable.
    LogCheck { txn: u128, attempts: u16, parked: bool, answer: Option<A> },
    /// One live producer of the group is to be asked, then `checked`.
    Check { txn: u128, attempt: u16 },
    /// The answer to an END_TRANSACTION.
    Answer { asker: A, outcome: Outcome },
}

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// It was handed to a producer.
    Handed,
    /// Nobody of the group is there: again when somebody comes.
    Nobody,
    /// Somebody was there and could not be told: again soon.
    Failed,
}

#[derive(Debug)]
struct Preparing<A> {
    commit: bool,
    round: u64,
    missing: u64,
    participants: u64,
    found: Part,
    askers: Vec<End<A>>,
}

#[derive(Debug)]
enum State<A> {
    Open,
    Preparing(Preparing<A>),
    /// Its frame is appended, or waits for room in the log.
    Logging {
        decision: Decision,
        askers: Vec<End<A>>,
    },
    /// The log failed after its frame was appended: a restart finds out.
    Lost,
    /// It commits: DECISION is durable.
    Decided {
        decision: Decision,
        missing: u64,
    },
}

#[derive(Debug)]
struct Transaction<A> {
    group: String,
    since_ms: i64,
    check_after_ms: u32,
    /// Shards that have said that they have a part, with what they had.
    parts: BTreeMap<u16, (u32, u64)>,
    /// Shards whose part came too late (C3).
    late: u64,
    attempts: u16,
    parked: bool,
    next_check_ms: Option<i64>,
    state: State<A>,
}

/// Where a transaction stands, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::shard) struct Listed {
    pub(super) txn: u128,
    pub(super) group: String,
    pub(super) state: ringmq_protocol::TransactionState,
    pub(super) since_ms: i64,
    pub(super) next_check_ms: i64,
    pub(super) attempts: u16,
    pub(super) halves: u32,
    pub(super) bytes: u64,
    pub(super) participants: u64,
}

/// The transactions that a shard coordinates and that are not resolved everywhere.
#[derive(Debug)]
pub(super) struct Coordinator<A> {
    own: u16,
    shards: u16,
    timings: Timings,
    transactions: BTreeMap<u128, Transaction<A>>,
    due: BTreeSet<(i64, u128)>,
    /// Checks that wait for a producer of their group.
    unattended: BTreeMap<String, BTreeSet<u128>>,
    round: u64,
    actions: Vec<Action<A>>,
}

impl<A: Clone> Coordinator<A> {
    pub(super) fn new(own: u16, shards: u16, timings: Timings) -> Self {
        Self {
            own,
            shards,
            timings,
            transactions: BTreeMap::new(),
            due: BTreeSet::new(),
            unattended: BTreeMap::new(),
            round: 0,
            actions: Vec::new(),
        }
    }

    pub(super) fn timings(&self) -> Timings {
        self.timings
    }

    pub(super) fn take_actions(&mut self) -> Vec<Action<A>> {
        std::mem::take(&mut self.actions)
    }

    /// When `turn` wants to be called, Unix milliseconds.
    pub(super) fn deadline_ms(&self) -> Option<i64> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whether this shard itself takes more for a transaction. Others are frozen by mail; this one is at once, so that
    /// no part of its own ever comes too late (C3).
    pub(super) fn takes(&self, txn: u128) -> bool {
        self.transactions.get(&txn).is_none_or(|transaction| matches!(transaction.state, State::Open))
    }

    /// Requests that wait for an answer.
    pub(super) fn waiting(&self) -> usize {
        let askers = |transaction: &Transaction<A>| match &transaction.state {
            State::Preparing(preparing) => preparing.askers.len(),
            State::Logging { askers, .. } => askers.len(),
            _ => 0,
        };
        self.transactions.values().map(askers).sum()
    }

    fn all_shards(&self) -> u64 {
        if self.shards >= 64 { u64::MAX } else { (1 << self.shards) - 1 }
    }

    // -- what shards say -----------------------------------------------------------------------------------

    /// A decision of the log without its DONE: what this shard finds when it starts.
    pub(super) fn recovered_decision(&mut self, decision: Decision, group: &str) {
        let mut transaction = Transaction::new(group.to_owned(), decision.time_ms, 0);
        transaction.state = State::Decided { decision, missing: decision.participants };
        self.transactions.insert(decision.txn, transaction);
        for shard in shards_in(decision.participants) {
            let Decision { txn, time_ms, .. } = decision;
            self.actions.push(Action::Resolve { shard, txn, commit: true, time_ms });
        }
    }

    /// What the log knows of the checks of a transaction, before any shard has told of it.
    pub(super) fn recovered_checks(&mut self, txn: u128, attempts: u16, parked: bool) {
        let transaction =
            self.transactions.entry(txn).or_insert_with(|| Transaction::new(String::new(), i64::MAX, 0));
        transaction.attempts = attempts;
        transaction.parked = parked;
    }

    /// A shard has a part of a transaction: a half or position has become durable, or (`restarted`) was found when the
    /// shard started, and takes nothing more until it is told. `known`: how the log's tables say that it was resolved.
    pub(super) fn opened(
        &mut self,
        now_ms: i64,
        shard: u16,
        txn: u128,
        part: &Part,
        restarted: bool,
        known: Option<&Resolved>,
    ) {
        let bit = 1 << shard;
        if let Some(transaction) = self.transactions.get_mut(&txn) {
            transaction.merge(part);
            let late = match &mut transaction.state {
                State::Open => {
                    transaction.parts.insert(shard, (part.halves, part.bytes));
                    if restarted {
                        self.actions.push(Action::GoOn { shard, txn });
                    }
                    false
                }
                State::Preparing(preparing) if preparing.missing & bit != 0 => {
                    // It has started again meanwhile, and does not know that it was asked.
                    if restarted {
                        let round = preparing.round;
                        self.actions.push(Action::Freeze { shard, txn, round });
                    }
                    false
                }
                State::Preparing(preparing) => preparing.participants & bit == 0,
                State::Logging { decision, .. } => decision.participants & bit == 0,
                State::Decided { decision, missing } => {
                    let (commit, time_ms) = (*missing & bit != 0, decision.time_ms); // C3
                    self.actions.push(Action::Resolve { shard, txn, commit, time_ms });
                    false
                }
                State::Lost => false,
            };
            if late {
                transaction.late |= bit;
            }
            self.schedule_first(now_ms, txn);
            return;
        }
        if let Some(Resolved { time_ms, .. }) = known {
            // Whoever takes part in a commit has applied it before it left the table above (C3).
            let time_ms = *time_ms;
            self.actions.push(Action::Resolve { shard, txn, commit: false, time_ms });
            return;
        }
        let mut transaction = Transaction::new(part.group.clone(), part.since_ms, part.check_after_ms);
        transaction.parts.insert(shard, (part.halves, part.bytes));
        self.transactions.insert(txn, transaction);
        if restarted {
            self.actions.push(Action::GoOn { shard, txn });
        }
        self.schedule_first(now_ms, txn);
    }

    /// A shard has started (again) and has told all its open transactions: what it was asked before is asked anew.
    pub(super) fn shard_started(&mut self, shard: u16) {
        let bit = 1 << shard;
        for (txn, transaction) in &self.transactions {
            match &transaction.state {
                State::Preparing(preparing) if preparing.missing & bit != 0 => {
                    self.actions.push(Action::Freeze { shard, txn: *txn, round: preparing.round });
                }
                State::Decided { decision, missing } if missing & bit != 0 => {
                    let (txn, time_ms) = (*txn, decision.time_ms);
                    self.actions.push(Action::Resolve { shard, txn, commit: true, time_ms });
                }
                _ => {}
            }
        }
    }

    /// A shard has frozen its part, and all that is counted of it is durable.
    pub(super) fn prepared(&mut self, now_ms: i64, shard: u16, txn: u128, round: u64, part: &Part) {
        let Some(transaction) = self.transactions.get_mut(&txn) else { return };
        let State::Preparing(preparing) = &mut transaction.state else { return };
        let bit = 1 << shard;
        if preparing.round != round || preparing.missing & bit == 0 {
            return;
        }
        preparing.missing &= !bit;
        if !part.is_empty() {
            preparing.participants |= bit;
            preparing.found.halves += part.halves;
            preparing.found.positions += part.positions;
            transaction.parts.insert(shard, (part.halves, part.bytes));
        }
        let all = preparing.missing == 0;
        if !part.is_empty() {
            transaction.merge(part);
        }
        if all {
            self.decide(now_ms, txn);
        }
    }

    /// A shard has resolved its part, and that is durable.
    pub(super) fn applied(&mut self, shard: u16, txn: u128) {
        let Some(transaction) = self.transactions.get_mut(&txn) else { return };
        let State::Decided { missing, .. } = &mut transaction.state else { return };
        *missing &= !(1 << shard);
        if *missing == 0 {
            self.remove(txn);
            self.actions.push(Action::LogDone { txn });
        }
    }

    // -- how it ends ---------------------------------------------------------------------------------------

    /// Somebody says how a transaction ends. `known`: how the log's tables say that it was resolved.
    pub(super) fn end(&mut self, now_ms: i64, txn: u128, end: End<A>, known: Option<&Resolved>) {
        if let Some(transaction) = self.transactions.get_mut(&txn) {
            if !permitted(&end, &transaction.group) {
                let outcome = not_permitted(&transaction.group);
                self.answer(end.asker, outcome);
                return;
            }
            match (&mut transaction.state, end.resolution) {
                (State::Lost, _) => self.answer(end.asker, refused(ErrorCode::ShardPoisoned, POISONED)),
                (State::Decided { decision, .. }, _) => {
                    let resolved = Resolved {
                        commit: decision.commit,
                        time_ms: decision.time_ms,
                        halves: decision.halves,
                        group: transaction.group.clone(),
                    };
                    self.answer_resolved(end, &resolved);
                }
                (_, TransactionEnd::Unknown) => {
                    let halves = transaction.halves();
                    self.answer(end.asker, Outcome::Done { time_ms: 0, halves, earlier: false });
                }
                (_, TransactionEnd::Recheck) => self.recheck(now_ms, txn, end.asker),
                (State::Open, _) => self.prepare(txn, end),
                (State::Preparing(preparing), _) => preparing.askers.push(end),
                (State::Logging { askers, .. }, _) => askers.push(end),
            }
            return;
        }
        match (known, end.resolution) {
            (Some(known), _) => self.answer_resolved(end, known),
            (None, TransactionEnd::Unknown | TransactionEnd::Recheck) => {
                self.answer(end.asker, unknown_transaction());
            }
            // No shard has told of it yet, but one may have it.
            (None, _) => {
                self.transactions.insert(txn, Transaction::new(String::new(), i64::MAX, 0));
                self.prepare(txn, end);
            }
        }
    }

    fn answer(&mut self, asker: A, outcome: Outcome) {
        self.actions.push(Action::Answer { asker, outcome });
    }

    fn answer_resolved(&mut self, end: End<A>, resolved: &Resolved) {
        if !resolved.group.is_empty() && !permitted(&end, &resolved.group) {
            self.answer(end.asker, not_permitted(&resolved.group));
            return;
        }
        let outcome = judge(&end, resolved, true);
        self.answer(end.asker, outcome);
    }

    fn prepare(&mut self, txn: u128, end: End<A>) {
        self.round += 1;
        let (round, missing) = (self.round, self.all_shards());
        let Some(transaction) = self.transactions.get_mut(&txn) else { return };
        let commit = end.resolution == TransactionEnd::Commit;
        let (participants, found, askers) = (0, Part::default(), vec![end]);
        transaction.state =
            State::Preparing(Preparing { commit, round, missing, participants, found, askers });
        for shard in 0..self.shards {
            self.actions.push(Action::Freeze { shard, txn, round });
        }
    }

    /// Every shard has said what it has.
    fn decide(&mut self, now_ms: i64, txn: u128) {
        let Some(transaction) = self.transactions.get_mut(&txn) else { return };
        let State::Preparing(preparing) = std::mem::replace(&mut transaction.state, State::Open) else {
            return;
        };
        let Preparing { commit, participants, found, askers, .. } = preparing;
        let nothing = found.is_empty();
        let mut willing = Vec::new();
        let mut others = Vec::new();
        for end in askers {
            let (halves, positions) = (found.halves, found.positions);
            let same = (end.resolution == TransactionEnd::Commit) == commit;
            let outcome = if nothing {
                unknown_transaction()
            } else if !permitted(&end, &transaction.group) {
                not_permitted(&transaction.group)
            } else if same && commit && (end.halves > halves || (end.positions > 0 && positions == 0)) {
                Outcome::Refused {
                    code: ErrorCode::Recovering,
                    message: format!(
                        "of this transaction {halves} messages and {positions} positions are there, not {} and {}; \
                         nothing was done",
                        end.halves, end.positions
                    ),
                    retry_after_ms: MISSING_RETRY_MS,
                }
            } else if same {
                willing.push(end);
                continue;
            } else {
                others.push(end);
                continue;
            };
            self.actions.push(Action::Answer { asker: end.asker, outcome });
        }
        if nothing && transaction.late == 0 {
            self.remove(txn);
            return;
        }
        if willing.is_empty() {
            self.reopen(now_ms, txn, participants);
            for end in others {
                self.end(now_ms, txn, end, None);
            }
            return;
        }
        willing.append(&mut others);
        let Part { halves, positions, .. } = found;
        let decision = Decision { txn, commit, participants, time_ms: now_ms, halves, positions };
        transaction.state = State::Logging { decision, askers: willing };
        let group = transaction.group.clone();
        self.unschedule(txn);
        self.actions.push(Action::Log { decision, group });
    }

    /// Nothing was done: it is open as before.
    fn reopen(&mut self, now_ms: i64, txn: u128, participants: u64) {
        let Some(transaction) = self.transactions.get_mut(&txn) else { return };
        transaction.state = State::Open;
        let late = std::mem::take(&mut transaction.late);
        for shard in shards_in(late) {
            transaction.parts.entry(shard).or_insert((0, 0));
        }
        for shard in shards_in(participants | late) {
            self.actions.push(Action::GoOn { shard, txn });
        }
        if transaction.next_check_ms.is_none() {
            self.schedule_first(now_ms, txn);
        }
    }

    /// Nothing but this shard's own part makes it visible: one group of its log does.
    pub(super) fn is_alone(&self, decision: &Decision) -> bool {
        decision.participants == 1 << self.own
    }

    /// The frame that resolves a transaction stands in the log, with this time.
    pub(super) fn appended(&mut self, txn: u128, at_ms: i64) {
        if let Some(Transaction { state: State::Logging { decision, .. }, .. }) =
            self.transactions.get_mut(&txn)
        {
            decision.time_ms = at_ms;
        }
    }

    /// The frame that resolves a transaction is durable (C1).
    pub(super) fn logged(&mut self, txn: u128) {
        let Some(transaction) = self.transactions.get_mut(&txn) else { return };
        let State::Logging { decision, .. } = &transaction.state else { return };
        let decision = *decision;
        let (group, late) = (transaction.group.clone(), std::mem::take(&mut transaction.late));
        let missing = decision.participants;
        let after = State::Decided { decision, missing };
        let State::Logging { askers, .. } = std::mem::replace(&mut transaction.state, after) else { return };
        let (commit, time_ms, halves) = (decision.commit, decision.time_ms, decision.halves);
        let resolved = Resolved { commit, time_ms, halves, group };
        for (index, end) in askers.into_iter().enumerate() {
            let outcome = judge(&end, &resolved, index > 0);
            self.answer(end.asker, outcome);
        }
        let alone = self.is_alone(&decision);
        if alone || !commit {
            self.remove(txn);
        }
        for shard in shards_in(decision.participants) {
            // COMMIT and ABORT have resolved what this shard has.
            if shard != self.own || (commit && !alone) {
                self.actions.push(Action::Resolve { shard, txn, commit, time_ms });
            }
        }
        for shard in shards_in(late) {
            self.actions.push(Action::Resolve { shard, txn, commit: false, time_ms }); // C3
        }
    }

    /// The log has refused the frame: nothing was done.
    pub(super) fn not_logged(&mut self, now_ms: i64, txn: u128, code: ErrorCode, retry_after_ms: u32) {
        let Some(transaction) = self.transactions.get_mut(&txn) else { return };
        let State::Logging { decision, askers } = std::mem::replace(&mut transaction.state, State::Open)
        else {
            return;
        };
        for end in askers {
            let outcome = Outcome::Refused { code, message: code.text().to_owned(), retry_after_ms };
            self.answer(end.asker, outcome);
        }
        self.reopen(now_ms, txn, decision.participants);
    }

    /// The log failed after the frame was appended: a restart finds out what became of it.
    pub(super) fn lost(&mut self, txn: u128) {
        let Some(transaction) = self.transactions.get_mut(&txn) else { return };
        let State::Logging { askers, .. } = std::mem::replace(&mut transaction.state, State::Lost) else {
            return;
        };
        for end in askers {
            self.answer(end.asker, refused(ErrorCode::OutcomeUnknown, ErrorCode::OutcomeUnknown.text()));
        }
    }

    fn remove(&mut self, txn: u128) {
        self.unschedule(txn);
        self.transactions.remove(&txn);
    }

    // -- checks --------------------------------------------------------------------------------------------

    fn unschedule(&mut self, txn: u128) {
        let Some(transaction) = self.transactions.get_mut(&txn) else { return };
        if let Some(at) = transaction.next_check_ms.take() {
            self.due.remove(&(at, txn));
        }
        if let Some(waiting) = self.unattended.get_mut(&transaction.group) {
            waiting.remove(&txn);
            if waiting.is_empty() {
                self.unattended.remove(&transaction.group);
            }
        }
    }

    fn schedule(&mut self, txn: u128, at_ms: i64) {
        self.unschedule(txn);
        if let Some(transaction) = self.transactions.get_mut(&txn) {
            transaction.next_check_ms = Some(at_ms);
            self.due.insert((at_ms, txn));
        }
    }

    /// When a transaction that is open and has no check ahead of it is checked.
    fn schedule_first(&mut self, now_ms: i64, txn: u128) {
        let timings = self.timings;
        let Some(transaction) = self.transactions.get(&txn) else { return };
        let waits = self.unattended.get(&transaction.group).is_some_and(|waiting| waiting.contains(&txn));
        let open = matches!(transaction.state, State::Open);
        if !open || transaction.parked || transaction.next_check_ms.is_some() || waits {
            return;
        }
        let after_ms = match transaction.check_after_ms {
            0 => timings.first_ms,
            asked => asked.min(CHECK_AFTER_MAX_MS),
        };
        let at_ms = match transaction.attempts {
            0 => transaction.since_ms.min(now_ms) + i64::from(after_ms),
            _ => now_ms + i64::from(timings.every_ms),
        };
        self.schedule(txn, at_ms);
    }

    /// Time has passed: checks that are due.
    pub(super) fn turn(&mut self, now_ms: i64) {
        while let Some((at_ms, txn)) = self.due.pop_first() {
            if at_ms > now_ms {
                self.due.insert((at_ms, txn));
                return;
            }
            let checks_max = self.timings.checks_max;
            let Some(transaction) = self.transactions.get_mut(&txn) else { continue };
            transaction.next_check_ms = None;
            if !matches!(transaction.state, State::Open) || transaction.parked {
                continue;
            }
            let attempts = transaction.attempts;
            if attempts >= checks_max {
                transaction.parked = true;
                self.actions.push(Action::LogCheck { txn, attempts, parked: true, answer: None });
            } else {
                self.actions.push(Action::Check { txn, attempt: attempts + 1 });
            }
        }
    }

    /// What became of a check.
    pub(super) fn checked(&mut self, now_ms: i64, txn: u128, checked: Checked) {
        let every_ms = i64::from(self.timings.every_ms);
        let Some(transaction) = self.transactions.get_mut(&txn) else { return };
        if matches!(transaction.state, State::Lost | State::Decided { .. }) {
            return;
        }
        match checked {
            Checked::Handed => {
                transaction.attempts = transaction.attempts.saturating_add(1); // C4
                let attempts = transaction.attempts;
                self.actions.push(Action::LogCheck { txn, attempts, parked: false, answer: None });
                self.schedule(txn, now_ms + every_ms);
            }
            Checked::Nobody => {
                let group = transaction.group.clone();
                self.unschedule(txn);
                self.unattended.entry(group).or_default().insert(txn);
            }
            Checked::Failed => self.schedule(txn, now_ms + CHECK_AGAIN_MS),
        }
    }

    /// A producer of a group can be asked from now on.
    pub(super) fn producer_came(&mut self, now_ms: i64, group: &str) {
        for txn in self.unattended.remove(group).unwrap_or_default() {
            self.schedule(txn, now_ms);
        }
    }

    fn recheck(&mut self, now_ms: i64, txn: u128, asker: A) {
        if let Some(transaction) = self.transactions.get_mut(&txn) {
            transaction.attempts = 0;
            transaction.parked = false;
            self.actions.push(Action::LogCheck { txn, attempts: 0, parked: false, answer: Some(asker) });
            self.schedule(txn, now_ms);
        }
    }

    // -- looking -------------------------------------------------------------------------------------------

    /// What a check says of a transaction: its group, since when, with how many halves, and a shard that has one.
    pub(super) fn facts(&self, txn: u128) -> Option<(&str, i64, u32, Option<u16>)> {
        let transaction = self.transactions.get(&txn)?;
        let first = transaction.parts.iter().find(|(_, part)| part.0 > 0).map(|(shard, _)| *shard);
        Some((&transaction.group, transaction.since_ms, transaction.halves(), first))
    }

    pub(super) fn list_one(&self, txn: u128) -> Option<Listed> {
        self.transactions.get(&txn).and_then(|transaction| transaction.listed(txn))
    }

    /// Those behind `after`, in the order of their ids.
    pub(super) fn list(&self, after: u128) -> impl Iterator<Item = Listed> + use<'_, A> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let from = if after == 0 { Included(0) } else { Excluded(after) };
        self.transactions.range((from, Unbounded)).filter_map(|(txn, transaction)| transaction.listed(*txn))
    }
}

const POISONED: &str = "the log failed while this was resolved; a restart finds out";

fn permitted<A>(end: &End<A>, group: &str) -> bool {
    let operator = end.source == EndSource::Operator && end.group.is_empty();
    operator || group.is_empty() || end.group == group
}

fn not_permitted(group: &str) -> Outcome {
    refused(ErrorCode::NotPermitted, format!("the transaction belongs to the producer group '{group}'"))
}

fn unknown_transaction() -> Outcome {
    refused(ErrorCode::UnknownTransaction, ErrorCode::UnknownTransaction.text())
}

/// The truth about a transaction that is resolved.
fn judge<A>(end: &End<A>, resolved: &Resolved, earlier: bool) -> Outcome {
    let Resolved { commit, time_ms, halves, .. } = *resolved;
    let was = if commit { "committed" } else { "aborted" };
    match end.resolution {
        TransactionEnd::Commit if commit && end.halves > halves => refused(
            ErrorCode::TransactionResolved,
            format!("it was committed at {time_ms} ms with {halves} of these {} messages", end.halves),
        ),
        TransactionEnd::Commit if commit => Outcome::Done { time_ms, halves, earlier },
        TransactionEnd::Abort if !commit => Outcome::Done { time_ms, halves, earlier },
        // Whoever was checked does not know: there is nothing to be found out any more.
        TransactionEnd::Unknown => Outcome::Done { time_ms, halves, earlier },
        TransactionEnd::Commit | TransactionEnd::Abort | TransactionEnd::Recheck => {
            refused(ErrorCode::TransactionResolved, format!("it was {was} at {time_ms} ms"))
        }
    }
}

impl<A> Transaction<A> {
    fn new(group: String, since_ms: i64, check_after_ms: u32) -> Self {
        Self {
            group,
            since_ms,
            check_after_ms,
            parts: BTreeMap::new(),
            late: 0,
            attempts: 0,
            parked: false,
            next_check_ms: None,
            state: State::Open,
        }
    }

    /// Takes over what a shard says of the whole.
    fn merge(&mut self, part: &Part) {
        if self.group.is_empty() {
            self.group.clone_from(&part.group);
        }
        if part.since_ms < self.since_ms {
            self.since_ms = part.since_ms;
            self.check_after_ms = part.check_after_ms;
        }
    }

    fn halves(&self) -> u32 {
        match &self.state {
            State::Logging { decision, .. } | State::Decided { decision, .. } => decision.halves,
            _ => self.parts.values().map(|part| part.0).sum(),
        }
    }

    /// `None` for one of which no shard has told yet.
    fn listed(&self, txn: u128) -> Option<Listed> {
        use ringmq_protocol::TransactionState as Wire;
        let state = match &self.state {
            State::Decided { .. } => Wire::Decided,
            State::Lost => Wire::Open,
            _ if self.parts.is_empty() => return None,
            _ if self.parked => Wire::Parked,
            _ => Wire::Open,
        };
        let participants = match &self.state {
            State::Logging { decision, .. } | State::Decided { decision, .. } => decision.participants,
            _ => self.parts.keys().fold(0, |set, shard| set | 1 << shard),
        };
        Some(Listed {
            txn,
            group: self.group.clone(),
            state,
            since_ms: self.since_ms,
            next_check_ms: self.next_check_ms.unwrap_or(0),
            attempts: self.attempts,
            halves: self.halves(),
            bytes: self.parts.values().map(|part| part.1).sum(),
            participants,
        })
    }
}

#[cfg(test)]
#[path = "coordinator_tests.rs"]
mod tests;
