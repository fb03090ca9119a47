use super::*;
use std::collections::VecDeque;

const SHARDS: u16 = 3;
const NOW: i64 = 1_000_000;

fn part(halves: u32) -> Part {
    Part { halves, positions: 0, bytes: 10, group: "g".to_owned(), since_ms: NOW, check_after_ms: 0 }
}

fn end(asker: u32, resolution: TransactionEnd, source: EndSource, group: &str, halves: u32) -> End<u32> {
    End { asker, resolution, source, group: group.to_owned(), halves, positions: 0 }
}

fn commit(asker: u32) -> End<u32> {
    end(asker, TransactionEnd::Commit, EndSource::Producer, "g", 0)
}

fn abort(asker: u32) -> End<u32> {
    end(asker, TransactionEnd::Abort, EndSource::Producer, "g", 0)
}

/// A coordinator at shard 0 with transaction 3, which has halves on these shards; END was asked and all have said.
fn prepared(parts: [u32; 3], ends: Vec<End<u32>>) -> Coordinator<u32> {
    let mut coordinator = Coordinator::new(0, SHARDS, Timings::default());
    for (shard, halves) in (0..).zip(parts).filter(|(_, halves)| *halves > 0) {
        coordinator.opened(NOW, shard, 3, &part(halves), true, None);
    }
    for end in ends {
        coordinator.end(NOW, 3, end, None);
    }
    coordinator.take_actions();
    for (shard, halves) in (0..).zip(parts) {
        let part = if halves == 0 { Part::default() } else { part(halves) };
        coordinator.prepared(NOW, shard, 3, 1, &part);
    }
    coordinator
}

/// Halves and whether it was so earlier.
type Said = Result<(u32, bool), ErrorCode>;

fn answers(actions: &[Action<u32>]) -> Vec<(u32, Said)> {
    let answers = actions.iter().filter_map(|action| match action {
        Action::Answer { asker, outcome: Outcome::Done { halves, earlier, .. } } => {
            Some((*asker, Ok((*halves, *earlier))))
        }
        Action::Answer { asker, outcome: Outcome::Refused { code, .. } } => Some((*asker, Err(*code))),
        _ => None,
    });
    answers.collect()
}

#[test]
fn one_shard_is_one_frame_and_several_are_told_after_the_decision_is_durable() {
    let mut coordinator = prepared([2, 0, 0], vec![commit(1)]);
    let actions = coordinator.take_actions();
    let Some(Action::Log { decision, .. }) = actions.last() else { panic!("{actions:?}") };
    assert!(coordinator.is_alone(decision) && decision.halves == 2 && answers(&actions).is_empty());
    coordinator.logged(3);
    let actions = coordinator.take_actions();
    assert_eq!(answers(&actions), [(1, Ok((2, false)))]);
    assert_eq!(actions.len(), 1);

    let mut coordinator = prepared([1, 2, 0], vec![commit(1)]);
    let actions = coordinator.take_actions();
    assert!(matches!(&actions[..], [Action::Log { decision, .. }] if decision.participants == 0b11));
    coordinator.logged(3);
    let actions = coordinator.take_actions();
    assert_eq!(answers(&actions), [(1, Ok((3, false)))]);
    for shard in [0, 1] {
        assert!(actions.contains(&Action::Resolve { shard, txn: 3, commit: true, time_ms: NOW }));
    }
    coordinator.applied(1, 3);
    assert_eq!(coordinator.list(0).next().unwrap().state, ringmq_protocol::TransactionState::Decided);
    coordinator.end(NOW, 3, commit(2), None);
    coordinator.end(NOW, 3, abort(3), None);
    let said = [(2, Ok((3, true))), (3, Err(ErrorCode::TransactionResolved))];
    assert_eq!(answers(&coordinator.take_actions()), said);
    coordinator.applied(0, 3);
    assert_eq!(coordinator.take_actions(), [Action::LogDone { txn: 3 }]);
    assert!(coordinator.list(0).next().is_none());
}

#[test]
fn ends_are_answered_truthfully() {
    // The opposite, asked for while the first is on its way.
    let mut coordinator = prepared([1, 1, 0], vec![abort(1), commit(2), abort(3)]);
    coordinator.logged(3);
    let said = [(1, Ok((2, false))), (3, Ok((2, true))), (2, Err(ErrorCode::TransactionResolved))];
    assert_eq!(answers(&coordinator.take_actions()), said);
    // What the log remembers.
    let known = Resolved { commit: true, time_ms: 5, halves: 2, group: "g".to_owned() };
    for (end, said) in [
        (commit(1), Ok((2, true))),
        (abort(1), Err(ErrorCode::TransactionResolved)),
        (end(1, TransactionEnd::Commit, EndSource::Producer, "g", 3), Err(ErrorCode::TransactionResolved)),
        (end(1, TransactionEnd::Commit, EndSource::Producer, "other", 0), Err(ErrorCode::NotPermitted)),
        (end(1, TransactionEnd::Commit, EndSource::Operator, "", 0), Ok((2, true))),
        (end(1, TransactionEnd::Recheck, EndSource::Operator, "", 0), Err(ErrorCode::TransactionResolved)),
        (end(1, TransactionEnd::Unknown, EndSource::Check, "g", 0), Ok((2, true))),
    ] {
        coordinator.end(NOW, 3, end.clone(), Some(&known));
        assert_eq!(answers(&coordinator.take_actions()), [(1, said)], "{end:?}");
    }
    // Never heard of, by no shard.
    let mut coordinator = prepared([0, 0, 0], vec![commit(1)]);
    assert_eq!(answers(&coordinator.take_actions()), [(1, Err(ErrorCode::UnknownTransaction))]);
    // Of somebody else's, told at once or when the shards have said.
    let stranger = end(2, TransactionEnd::Commit, EndSource::Producer, "other", 0);
    let mut coordinator = prepared([1, 1, 0], vec![]);
    coordinator.end(NOW, 3, stranger.clone(), None);
    assert_eq!(answers(&coordinator.take_actions()), [(2, Err(ErrorCode::NotPermitted))]);
    let mut coordinator = Coordinator::new(0, 1, Timings::default());
    coordinator.end(NOW, 3, stranger, None);
    coordinator.take_actions();
    coordinator.prepared(NOW, 0, 3, 1, &part(1));
    let actions = coordinator.take_actions();
    assert_eq!(answers(&actions), [(2, Err(ErrorCode::NotPermitted))]);
    assert!(actions.contains(&Action::GoOn { shard: 0, txn: 3 }) && coordinator.takes(3));
}

#[test]
fn what_is_missing_is_refused_and_nothing_is_done() {
    let more = end(1, TransactionEnd::Commit, EndSource::Producer, "g", 4);
    let mut coordinator = prepared([1, 2, 0], vec![more]);
    let actions = coordinator.take_actions();
    assert_eq!(answers(&actions), [(1, Err(ErrorCode::Recovering))]);
    for shard in [0, 1] {
        assert!(actions.contains(&Action::GoOn { shard, txn: 3 }));
    }
    assert!(coordinator.takes(3));
    // Answers of that round count no more.
    coordinator.end(NOW, 3, commit(2), None);
    coordinator.take_actions();
    for shard in 0..SHARDS {
        coordinator.prepared(NOW, shard, 3, 1, &part(1));
    }
    assert!(coordinator.take_actions().is_empty());
    // A log that takes nothing more leaves it open.
    let mut coordinator = prepared([1, 0, 0], vec![commit(1)]);
    coordinator.take_actions();
    coordinator.not_logged(NOW, 3, ErrorCode::DiskFull, 0);
    assert_eq!(answers(&coordinator.take_actions()), [(1, Err(ErrorCode::DiskFull))]);
    assert!(coordinator.takes(3));
    // One that fails behind the frame leaves it to a restart.
    let mut coordinator = prepared([1, 0, 0], vec![commit(1)]);
    coordinator.lost(3);
    coordinator.end(NOW, 3, abort(2), None);
    let said = [(1, Err(ErrorCode::OutcomeUnknown)), (2, Err(ErrorCode::ShardPoisoned))];
    assert_eq!(answers(&coordinator.take_actions()), said);
}

#[test]
fn a_check_counts_when_it_was_handed_over_and_the_last_one_parks() {
    let timings = Timings { first_ms: 10, every_ms: 100, checks_max: 2 };
    let mut coordinator: Coordinator<u32> = Coordinator::new(0, SHARDS, timings);
    let quick = Part { check_after_ms: 5, ..part(1) };
    coordinator.opened(NOW, 1, 7, &quick, true, None);
    coordinator.opened(NOW, 1, 3, &part(1), true, None);
    coordinator.take_actions();
    assert_eq!(coordinator.deadline_ms(), Some(NOW + 5));
    coordinator.turn(NOW + 9);
    assert_eq!(coordinator.take_actions(), [Action::Check { txn: 7, attempt: 1 }]);
    // Nobody is there: it does not count, however long.
    coordinator.checked(NOW + 9, 7, Checked::Nobody);
    coordinator.turn(NOW + 9_000);
    assert_eq!(coordinator.take_actions(), [Action::Check { txn: 3, attempt: 1 }]);
    coordinator.producer_came(NOW + 9_000, "g");
    coordinator.turn(NOW + 9_000);
    assert_eq!(coordinator.take_actions(), [Action::Check { txn: 7, attempt: 1 }]);
    coordinator.checked(NOW + 9_000, 7, Checked::Failed);
    let mut now = NOW + 9_000 + CHECK_AGAIN_MS;
    for attempt in 1..=2 {
        coordinator.turn(now);
        assert_eq!(coordinator.take_actions(), [Action::Check { txn: 7, attempt }]);
        coordinator.checked(now, 7, Checked::Handed);
        let logged = Action::LogCheck { txn: 7, attempts: attempt, parked: false, answer: None };
        assert_eq!(coordinator.take_actions(), [logged]);
        now += 100;
    }
    coordinator.turn(now);
    let parked = Action::LogCheck { txn: 7, attempts: 2, parked: true, answer: None };
    assert_eq!(coordinator.take_actions(), [parked]);
    coordinator.turn(now + 1_000_000);
    assert!(coordinator.take_actions().is_empty());
    // An operator has it checked anew; and can end it.
    let recheck = end(1, TransactionEnd::Recheck, EndSource::Operator, "", 0);
    coordinator.end(now, 7, recheck, None);
    coordinator.turn(now);
    let anew = Action::LogCheck { txn: 7, attempts: 0, parked: false, answer: Some(1) };
    assert_eq!(coordinator.take_actions(), [anew, Action::Check { txn: 7, attempt: 1 }]);
    // Found after a start, when the shards tell of it.
    let mut coordinator: Coordinator<u32> = Coordinator::new(0, SHARDS, timings);
    coordinator.recovered_checks(7, 2, true);
    coordinator.recovered_checks(3, 1, false);
    assert!(coordinator.list(0).next().is_none());
    coordinator.opened(NOW, 1, 7, &quick, true, None);
    coordinator.opened(NOW, 1, 3, &part(1), true, None);
    assert_eq!(coordinator.deadline_ms(), Some(NOW + 100));
    assert_eq!(coordinator.list_one(7).unwrap().state, ringmq_protocol::TransactionState::Parked);
}

// -- random interleavings ----------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Entry {
    Half { txn: u128, half: u64 },
    Resolve { txn: u128, commit: bool, time_ms: i64, halves: u32 },
    Decision(Decision),
    Done { txn: u128 },
    Check { txn: u128, attempts: u16, parked: bool },
}

#[derive(Clone, Debug)]
enum Letter {
    Freeze { txn: u128, round: u64 },
    GoOn { txn: u128 },
    Resolve { txn: u128, commit: bool },
    Opened { txn: u128, part: Part, restarted: bool },
    Started,
    Prepared { txn: u128, round: u64, part: Part },
    Applied { txn: u128 },
}

/// What happens when the log is durable.
#[derive(Clone, Debug)]
enum Then {
    Ack { half: u64 },
    Tell { txn: u128, restarted: bool },
    Send { to: u16, letter: Letter },
    Logged { txn: u128 },
}

struct Shard {
    log: Vec<Entry>,
    durable: usize,
    then: VecDeque<(usize, Then)>,
    // Tables of the log.
    open: BTreeMap<u128, Vec<u64>>,
    resolved: BTreeMap<u128, Resolved>,
    decisions: BTreeMap<u128, Decision>,
    checks: BTreeMap<u128, (u16, bool)>,
    visible: Vec<u64>,
    // Volatile.
    frozen: BTreeSet<u128>,
    coordinator: Coordinator<u32>,
}

impl Shard {
    fn new(own: u16) -> Self {
        let timings = Timings { first_ms: 50, every_ms: 100, checks_max: 3 };
        Self {
            log: Vec::new(),
            durable: 0,
            then: VecDeque::new(),
            open: BTreeMap::new(),
            resolved: BTreeMap::new(),
            decisions: BTreeMap::new(),
            checks: BTreeMap::new(),
            visible: Vec::new(),
            frozen: BTreeSet::new(),
            coordinator: Coordinator::new(own, SHARDS, timings),
        }
    }

    fn append(&mut self, entry: Entry) {
        self.apply(&entry);
        self.log.push(entry);
    }

    fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Half { txn, half } => self.open.entry(*txn).or_default().push(*half),
            Entry::Resolve { txn, commit, time_ms, halves } => {
                let (commit, time_ms, halves) = (*commit, *time_ms, *halves);
                let part = self.open.remove(txn).unwrap_or_default();
                if commit {
                    self.visible.extend(part);
                }
                self.checks.remove(txn);
                let resolved = Resolved { commit, time_ms, halves, group: "g".to_owned() };
                let before = self.resolved.insert(*txn, resolved);
                assert!(before.is_none_or(|before| before.commit == commit), "{txn} is resolved both ways");
            }
            Entry::Decision(decision) => {
                let Decision { txn, commit, time_ms, halves, .. } = *decision;
                let resolved = Resolved { commit, time_ms, halves, group: "g".to_owned() };
                assert!(self.resolved.insert(txn, resolved).is_none(), "{txn} is resolved twice");
                self.decisions.insert(txn, *decision);
            }
            Entry::Done { txn } => drop(self.decisions.remove(txn)),
            Entry::Check { txn, attempts, parked } => {
                if self.open.contains_key(txn) || !self.resolved.contains_key(txn) {
                    self.checks.insert(*txn, (*attempts, *parked));
                }
            }
        }
    }

    fn part(&self, txn: u128) -> Part {
        self.open.get(&txn).map_or(Part::default(), |halves| part(halves.len() as u32))
    }

    fn when_durable(&mut self, then: Then) {
        self.then.push_back((self.log.len(), then));
    }
}

#[derive(Default)]
struct Known {
    /// Acknowledged halves.
    acked: BTreeSet<u64>,
    /// Those at the time of the first END that may have had an effect.
    first: Option<BTreeSet<u64>>,
    /// ENDs without an answer; one that a crash took away is never answered.
    asking: u32,
    resolved: bool,
    told: Option<bool>,
}

struct World {
    shards: Vec<Shard>,
    mail: BTreeMap<(u16, u16), VecDeque<Letter>>,
    half_of: BTreeMap<u64, (u128, u16)>,
    /// By asker: transaction, commit.
    asked: Vec<(u128, bool)>,
    transactions: BTreeMap<u128, Known>,
    handed: BTreeMap<u128, u16>,
    now: i64,
    random: u64,
    planted: bool,
}

impl World {
    fn new(seed: u64, planted: bool) -> Self {
        Self {
            shards: (0..SHARDS).map(Shard::new).collect(),
            mail: BTreeMap::new(),
            half_of: BTreeMap::new(),
            asked: Vec::new(),
            transactions: BTreeMap::new(),
            handed: BTreeMap::new(),
            now: NOW,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            planted,
        }
    }

    fn draw(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) as usize % bound
    }

    fn send(&mut self, from: u16, to: u16, letter: Letter) {
        self.mail.entry((from, to)).or_default().push_back(letter);
    }

    fn home(txn: u128) -> u16 {
        (txn % u128::from(SHARDS)) as u16
    }

    fn half(&mut self, txn: u128, at: u16) {
        let shard = &mut self.shards[usize::from(at)];
        let ended = shard.resolved.contains_key(&txn) || shard.frozen.contains(&txn);
        if ended || (Self::home(txn) == at && !shard.coordinator.takes(txn)) {
            return;
        }
        let half = self.half_of.len() as u64;
        self.half_of.insert(half, (txn, at));
        shard.append(Entry::Half { txn, half });
        if shard.open[&txn].len() == 1 {
            shard.when_durable(Then::Tell { txn, restarted: false });
        }
        shard.when_durable(Then::Ack { half });
    }

    fn end(&mut self, txn: u128, commit: bool, claims: bool) {
        let known = self.transactions.entry(txn).or_default();
        let acked = known.acked.clone();
        let halves = if claims { acked.len() as u32 } else { 0 };
        let asker = self.asked.len() as u32;
        known.asking += 1;
        known.first.get_or_insert(acked);
        self.asked.push((txn, commit));
        let resolution = if commit { TransactionEnd::Commit } else { TransactionEnd::Abort };
        let at = usize::from(Self::home(txn));
        let shard = &mut self.shards[at];
        let known = shard.resolved.get(&txn).cloned();
        let end = end(asker, resolution, EndSource::Producer, "g", halves);
        shard.coordinator.end(self.now, txn, end, known.as_ref());
        self.act(at as u16);
    }

    fn act(&mut self, at: u16) {
        loop {
            let actions = self.shards[usize::from(at)].coordinator.take_actions();
            if actions.is_empty() {
                return;
            }
            actions.into_iter().for_each(|action| self.carry_out(at, action));
        }
    }

    fn carry_out(&mut self, at: u16, action: Action<u32>) {
        let now = self.now;
        match action {
            Action::Freeze { shard, txn, round } => self.send(at, shard, Letter::Freeze { txn, round }),
            Action::GoOn { shard, txn } => self.send(at, shard, Letter::GoOn { txn }),
            Action::Resolve { shard, txn, commit, .. } => {
                self.send(at, shard, Letter::Resolve { txn, commit })
            }
            Action::Log { decision, .. } => {
                let refuse = self.draw(10) == 0;
                let shard = &mut self.shards[usize::from(at)];
                let Decision { txn, commit, time_ms, halves, .. } = decision;
                if refuse {
                    return shard.coordinator.not_logged(now, txn, ErrorCode::DiskFull, 0);
                }
                if commit && !shard.coordinator.is_alone(&decision) {
                    shard.append(Entry::Decision(decision));
                } else {
                    shard.append(Entry::Resolve { txn, commit, time_ms, halves });
                }
                if self.planted {
                    shard.coordinator.logged(txn);
                } else {
                    shard.when_durable(Then::Logged { txn });
                }
            }
            Action::LogDone { txn } => self.shards[usize::from(at)].append(Entry::Done { txn }),
            Action::LogCheck { txn, attempts, parked, .. } => {
                let most = self.handed.get(&txn).copied().unwrap_or(0);
                assert!(attempts <= most, "{attempts} checks count, {most} were handed over");
                self.shards[usize::from(at)].append(Entry::Check { txn, attempts, parked });
            }
            Action::Check { txn, .. } => {
                let checked = [Checked::Handed, Checked::Nobody, Checked::Failed][self.draw(3)];
                if checked == Checked::Handed {
                    *self.handed.entry(txn).or_default() += 1;
                }
                self.shards[usize::from(at)].coordinator.checked(now, txn, checked);
            }
            Action::Answer { asker, outcome } => self.answered(asker, &outcome),
        }
    }

    fn answered(&mut self, asker: u32, outcome: &Outcome) {
        // Half of the answers are lost on their way.
        let lost = self.draw(2) == 0;
        let (txn, commit) = self.asked[asker as usize];
        let known = self.transactions.entry(txn).or_default();
        known.asking -= 1;
        let done = matches!(outcome, Outcome::Done { .. });
        known.resolved |= done
            || matches!(outcome, Outcome::Refused { code, .. } if *code == ErrorCode::TransactionResolved);
        if known.asking == 0 && !known.resolved {
            known.first = None;
        }
        if done && !lost {
            assert_eq!(*known.told.get_or_insert(commit), commit, "{txn} was told to be resolved both ways");
        }
    }

    fn deliver(&mut self, from: u16, to: u16) {
        let Some(letter) = self.mail.get_mut(&(from, to)).and_then(VecDeque::pop_front) else { return };
        let now = self.now;
        let shard = &mut self.shards[usize::from(to)];
        let known = |shard: &Shard, txn| shard.resolved.get(&txn).cloned();
        match letter {
            Letter::Freeze { txn, round } => {
                let part = shard.part(txn);
                if !part.is_empty() {
                    shard.frozen.insert(txn);
                }
                let letter = Letter::Prepared { txn, round, part };
                shard.when_durable(Then::Send { to: from, letter });
            }
            Letter::GoOn { txn } => drop(shard.frozen.remove(&txn)),
            Letter::Resolve { txn, commit } => {
                shard.frozen.remove(&txn);
                if let Some(halves) = shard.open.get(&txn).map(|part| part.len() as u32) {
                    shard.append(Entry::Resolve { txn, commit, time_ms: now, halves });
                }
                shard.when_durable(Then::Send { to: from, letter: Letter::Applied { txn } });
            }
            Letter::Opened { txn, part, restarted } => {
                let known = known(shard, txn);
                shard.coordinator.opened(now, from, txn, &part, restarted, known.as_ref());
            }
            Letter::Started => shard.coordinator.shard_started(from),
            Letter::Prepared { txn, round, part } => {
                shard.coordinator.prepared(now, from, txn, round, &part);
            }
            Letter::Applied { txn } => shard.coordinator.applied(from, txn),
        }
        self.act(to);
        self.flush(to, 0);
    }

    fn flush(&mut self, at: u16, more: usize) {
        let shard = &mut self.shards[usize::from(at)];
        shard.durable = (shard.durable + more).min(shard.log.len());
        while let Some((_, then)) = {
            let durable = self.shards[usize::from(at)].durable;
            self.shards[usize::from(at)].then.pop_front_if(|(until, _)| *until <= durable)
        } {
            match then {
                Then::Ack { half } => {
                    let txn = self.half_of[&half].0;
                    self.transactions.entry(txn).or_default().acked.insert(half);
                }
                Then::Tell { txn, restarted } => self.tell(at, txn, restarted),
                Then::Send { to, letter } => self.send(at, to, letter),
                Then::Logged { txn } => {
                    self.shards[usize::from(at)].coordinator.logged(txn);
                    self.act(at);
                }
            }
        }
    }

    fn tell(&mut self, at: u16, txn: u128, restarted: bool) {
        let part = self.shards[usize::from(at)].part(txn);
        if !part.is_empty() {
            self.send(at, Self::home(txn), Letter::Opened { txn, part, restarted });
        }
    }

    /// A shard loses what is not durable, or not all of that, and starts again.
    fn crash(&mut self, at: u16) {
        let kept = {
            let shard = &self.shards[usize::from(at)];
            let (durable, undecided) = (shard.durable, shard.log.len() - shard.durable);
            durable + self.draw(undecided + 1)
        };
        for (pair, letters) in &mut self.mail {
            if pair.0 == at || pair.1 == at {
                letters.clear();
            }
        }
        let mut log = std::mem::take(&mut self.shards[usize::from(at)].log);
        log.truncate(kept);
        let mut shard = Shard::new(at);
        log.iter().for_each(|entry| shard.apply(entry));
        shard.durable = log.len();
        shard.log = log;
        shard.frozen = shard.open.keys().copied().collect();
        for decision in shard.decisions.values() {
            shard.coordinator.recovered_decision(*decision, "g");
        }
        for (txn, (attempts, parked)) in &shard.checks {
            shard.coordinator.recovered_checks(*txn, *attempts, *parked);
        }
        self.shards[usize::from(at)] = shard;
        for other in 0..SHARDS {
            let shard = &mut self.shards[usize::from(other)];
            shard.then.retain(|(_, then)| !matches!(then, Then::Send { to, .. } if *to == at));
            let open: Vec<u128> = shard.open.keys().copied().collect();
            for txn in open.into_iter().filter(|txn| other == at || Self::home(*txn) == at) {
                self.shards[usize::from(other)].frozen.insert(txn);
                // What is not durable yet tells when it is.
                if other == at
                    || self.shards[usize::from(other)].log.len() == self.shards[usize::from(other)].durable
                {
                    self.tell(other, txn, true);
                } else {
                    self.shards[usize::from(other)].when_durable(Then::Tell { txn, restarted: true });
                }
            }
            self.send(at, other, Letter::Started);
        }
        self.act(at);
    }

    fn settle(&mut self) {
        for _ in 0..1_000 {
            for at in 0..SHARDS {
                self.flush(at, usize::MAX / 2);
                for from in 0..SHARDS {
                    while self.mail.get(&(from, at)).is_some_and(|letters| !letters.is_empty()) {
                        self.deliver(from, at);
                    }
                }
            }
            let quiet = self.mail.values().all(VecDeque::is_empty)
                && self.shards.iter().all(|shard| shard.then.is_empty());
            if quiet {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn check(&self) {
        let mut visible: BTreeMap<u64, usize> = BTreeMap::new();
        for half in self.shards.iter().flat_map(|shard| &shard.visible) {
            *visible.entry(*half).or_default() += 1;
        }
        assert!(visible.values().all(|times| *times == 1), "applied twice: {visible:?}");
        for (txn, known) in &self.transactions {
            let seen: BTreeSet<u64> =
                visible.keys().copied().filter(|half| self.half_of[half].0 == *txn).collect();
            match &known.told {
                Some(true) => assert!(!seen.is_empty(), "{txn} was committed"),
                Some(false) => assert!(seen.is_empty(), "{txn} was aborted: {seen:?}"),
                None => {}
            }
            if let (Some(first), false) = (&known.first, seen.is_empty()) {
                assert!(first.is_subset(&seen), "{txn}: {first:?} but {seen:?}");
            }
            let home = &self.shards[usize::from(Self::home(*txn))];
            match home.resolved.get(txn) {
                Some(resolved) if resolved.commit => {}
                _ => assert!(seen.is_empty(), "{txn} was not committed: {seen:?}"),
            }
            // Nothing is left behind.
            if home.resolved.contains_key(txn) {
                let left = self.shards.iter().any(|shard| shard.open.contains_key(txn));
                assert!(!left, "{txn} is resolved, and open");
            }
        }
        assert!(self.shards.iter().all(|shard| shard.decisions.is_empty()), "a decision without its DONE");
    }
}

fn run(seed: u64, planted: bool) {
    let mut world = World::new(seed, planted);
    let crashes = !seed.is_multiple_of(3);
    for _ in 0..400 {
        let txn = 100 + world.draw(6) as u128;
        let (at, other) = (world.draw(3) as u16, world.draw(3) as u16);
        match world.draw(100) {
            0..25 => world.half(txn, at),
            25..33 => {
                let (commit, claims) = (world.draw(3) > 0, world.draw(2) == 0);
                world.end(txn, commit, claims);
            }
            33..70 => world.deliver(at, other),
            70..92 => {
                let more = world.draw(4);
                world.flush(at, more);
            }
            92..97 => {
                world.now += 20;
                let now = world.now;
                world.shards[usize::from(at)].coordinator.turn(now);
                world.act(at);
            }
            97..99 if crashes => world.crash(at),
            99 if crashes => (0..SHARDS).for_each(|at| world.crash(at)),
            _ => {}
        }
    }
    world.settle();
    world.check();
    // Whatever is open can still be ended.
    for txn in 100..106 {
        world.end(txn, true, false);
        world.settle();
    }
    (0..SHARDS).for_each(|at| world.crash(at));
    world.settle();
    world.check();
}

#[test]
fn no_interleaving_and_no_crash_resolves_a_transaction_twice_or_by_halves() {
    for seed in 0..10_000 {
        let result = std::panic::catch_unwind(|| run(seed, false));
        assert!(result.is_ok(), "seed {seed}");
    }
}

#[test]
fn the_interleavings_find_an_answer_that_comes_before_the_disk() {
    let found = (0..300).any(|seed| std::panic::catch_unwind(|| run(seed, true)).is_err());
    assert!(found);
}
