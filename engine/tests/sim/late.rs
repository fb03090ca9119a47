//! What the harness remembers of halves, delays and transactions: their states as the log has them, kept twice, as far
//! as it is acknowledged and as far as it was appended. A crash takes what lies between.

use super::model::{Checked, Wrong, wrong};
use ringmq_engine::format::late::BindReason;
use ringmq_engine::format::{Lsn, PartitionId};
use ringmq_engine::late::Late;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Half,
    Delay,
    /// It has offsets; by its due time, or else by its commit.
    Bound {
        due: bool,
    },
    /// With its transaction: aborted, or committed for a partition that is gone.
    Void,
    Cancelled,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Body {
    pub(crate) digest: u64,
    pub(crate) count: u32,
    pub(crate) len: u32,
    pub(crate) partition: PartitionId,
    pub(crate) txn: u128,
    pub(crate) due_ms: i64,
    pub(crate) state: State,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Txn {
    pub(crate) halves: Vec<u64>,
    pub(crate) attempts: u16,
    pub(crate) parked: bool,
    /// Decided and not done.
    pub(crate) decided: bool,
    pub(crate) end: Option<bool>,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Stored(u64, Body),
    Bound(u64, BindReason),
    /// With the halves whose partitions are gone.
    Committed(u128, Vec<u64>),
    Aborted(u128),
    Decided(u128),
    Done(u128),
    Checked(u128, u16, bool),
    Timer(u64, Option<i64>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) bodies: BTreeMap<u64, Body>,
    pub(crate) txns: BTreeMap<u128, Txn>,
}

impl Tables {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Stored(identity, body) => {
                self.bodies.insert(*identity, *body);
                if body.txn != 0 {
                    self.txns.entry(body.txn).or_default().halves.push(*identity);
                }
            }
            Event::Bound(identity, reason) => {
                if let (Some(body), BindReason::Commit | BindReason::Due) =
                    (self.bodies.get_mut(identity), reason)
                {
                    body.state = State::Bound { due: *reason == BindReason::Due };
                }
            }
            Event::Committed(txn, gone) => {
                let txn = self.txns.entry(*txn).or_default();
                txn.end = Some(true);
                for identity in &txn.halves {
                    let Some(body) = self.bodies.get_mut(identity) else { continue };
                    if body.state == State::Half {
                        let delayed = body.due_ms > 0;
                        body.state = match (delayed, gone.contains(identity)) {
                            (true, _) => State::Delay,
                            (false, true) => State::Void,
                            (false, false) => State::Half, // which is wrong
                        };
                    }
                }
            }
            Event::Aborted(txn) => {
                let txn = self.txns.entry(*txn).or_default();
                txn.end = Some(false);
                for identity in &txn.halves {
                    if let Some(body) = self.bodies.get_mut(identity) {
                        body.state = State::Void;
                    }
                }
            }
            Event::Decided(txn) => {
                let txn = self.txns.entry(*txn).or_default();
                (txn.decided, txn.end) = (true, Some(true));
            }
            Event::Done(txn) => self.txns.entry(*txn).or_default().decided = false,
            Event::Checked(txn, attempts, parked) => {
                let txn = self.txns.entry(*txn).or_default();
                (txn.attempts, txn.parked) = (*attempts, *parked);
            }
            Event::Timer(identity, due_ms) => {
                if let Some(body) = self.bodies.get_mut(identity) {
                    match due_ms {
                        Some(due_ms) => body.due_ms = *due_ms,
                        None => body.state = State::Cancelled,
                    }
                }
            }
        }
    }

    /// Of a transaction whose end is in the log every half is bound, void or a delay; of another one none is.
    fn check_whole(&self) -> Checked {
        for (id, txn) in &self.txns {
            let states: Vec<_> = txn.halves.iter().filter_map(|half| self.bodies.get(half)).collect();
            let waits = states.iter().filter(|body| body.state == State::Half).count();
            // Decided and not applied yet: all wait.
            let applied = txn.end.is_some() && !(txn.decided && waits == states.len());
            if waits != if applied { 0 } else { states.len() } {
                let details = format!("{id:x}: {txn:?}: {states:?}");
                return Err(wrong("a transaction is all or nothing", details));
            }
        }
        Ok(())
    }
}

/// Of one shard.
#[derive(Clone, Default)]
pub(crate) struct LateModel {
    base: Tables,
    pub(crate) now: Tables,
    events: VecDeque<(Lsn, Event)>,
}

impl Event {
    /// How a transaction or a delay has ended, if it says so.
    fn ends(&self) -> Option<(u128, u64)> {
        match self {
            Self::Committed(txn, _) | Self::Aborted(txn) | Self::Decided(txn) => Some((*txn, 0)),
            Self::Bound(identity, BindReason::Due) | Self::Timer(identity, None) => Some((0, *identity)),
            _ => None,
        }
    }
}

impl LateModel {
    /// Something was appended that ends at `durable_at`.
    pub(crate) fn note(&mut self, durable_at: Lsn, event: Event) {
        self.now.apply(&event);
        self.events.push_back((durable_at, event));
    }

    /// Everything up to here is acknowledged.
    pub(crate) fn settle(&mut self, durable: Lsn) {
        while self.events.front().is_some_and(|(at, _)| *at <= durable)
            && let Some((_, event)) = self.events.pop_front()
        {
            self.base.apply(&event);
        }
    }

    /// A start has found the log up to here.
    pub(crate) fn recover(&mut self, found: Lsn) -> Checked {
        self.settle(found);
        self.events.clear();
        self.now = self.base.clone();
        self.now.check_whole()
    }

    /// An end may be told when `at` is durable: is it itself then? `what` is a transaction, or a delay behind 0.
    pub(crate) fn check_told(&self, what: (u128, u64), at: Lsn) -> Checked {
        // What was decided is applied later: what was said first counts.
        if self.base.txns.get(&what.0).is_some_and(|txn| txn.end.is_some()) {
            return Ok(());
        }
        let end = self.events.iter().find(|(_, event)| event.ends() == Some(what)).map(|(end, _)| *end);
        match end {
            Some(end) if end > at => {
                Err(wrong("an end is told when it is durable", format!("{what:x?}: {end}, told at {at}")))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn by_digest(&self, digest: u64) -> Option<(u64, &Body)> {
        self.now.bodies.iter().find(|(_, body)| body.digest == digest).map(|(id, body)| (*id, body))
    }

    pub(crate) fn open_txns(&self) -> Vec<u128> {
        self.now.txns.iter().filter(|(_, txn)| txn.end.is_none()).map(|(id, _)| *id).collect()
    }

    /// A BIND that the shard has appended: whether it may. `wall_ms` is the latest time that it can have seen.
    pub(crate) fn check_bind(
        &self,
        identity: u64,
        reason: BindReason,
        wall_ms: i64,
        timestamp: i64,
    ) -> Result<(), Wrong> {
        let body = self.now.bodies.get(&identity);
        let say = |what: &str| format!("{identity}: {what}: {reason:?} at {wall_ms}, {timestamp}: {body:?}");
        match (reason, body) {
            (BindReason::DeadLetter | BindReason::Replay, _) => Ok(()),
            (_, None) => Err(wrong("nothing is invented", say("a body that nobody sent"))),
            (BindReason::Commit, Some(Body { state: State::Half, due_ms: 0, .. })) => Ok(()),
            (BindReason::Commit, _) => Err(wrong("no half twice or by itself", say("bound"))),
            (BindReason::Due, Some(Body { state: State::Delay, due_ms, .. })) => {
                if *due_ms > wall_ms || timestamp < *due_ms {
                    return Err(wrong("no delay early", say("bound")));
                }
                Ok(())
            }
            (BindReason::Due, _) => Err(wrong("no delay twice", say("bound"))),
        }
    }

    /// What the shard says of everything against what was sent and acknowledged. `live` are the partitions that are
    /// there; `remembers`: no clock has gone so far that ends are forgotten.
    pub(crate) fn check(&self, late: &Late, live: &BTreeSet<PartitionId>, remembers: bool) -> Checked {
        let mut waiting = 0;
        for (identity, body) in &self.now.bodies {
            if !live.contains(&body.partition) {
                continue;
            }
            let found = late.waiting(Lsn(*identity));
            let waits = matches!(body.state, State::Half | State::Delay);
            waiting += usize::from(waits);
            let same = match found {
                Some(found) => {
                    waits
                        && found.is_half() == (body.state == State::Half)
                        && (found.due_ms, found.partition, found.len, found.count)
                            == (body.due_ms, body.partition, body.len, body.count)
                        && late.transaction_of(found).is_none_or(|part| part.txn == body.txn)
                }
                None => !waits,
            };
            if !same {
                let details = format!("{identity}: {found:?} instead of {body:?}");
                return Err(wrong("what waits is what was sent", details));
            }
            let end = late.timer_end(Lsn(*identity));
            let expected = match body.state {
                State::Bound { due: true } => Some(true),
                State::Cancelled => Some(false),
                _ => None,
            };
            if end.map(|end| end.delivered) != expected && (end.is_some() || remembers) {
                let details = format!("{identity}: {end:?} instead of {expected:?}: {body:?}");
                return Err(wrong("how delays ended is remembered", details));
            }
        }
        let halves = late.transactions_after(0).flat_map(|part| late.halves(part.txn));
        let all = late.timers_after((i64::MIN, PartitionId(0), Lsn(0))).chain(halves);
        let found = all.filter(|found| live.contains(&found.partition)).count();
        if found != waiting {
            return Err(wrong("what waits is what was sent", format!("{found} wait instead of {waiting}")));
        }
        for (id, txn) in &self.now.txns {
            let part = late.transaction(*id);
            let end = late.resolution(*id).map(|end| end.committed);
            if end != txn.end && (end.is_some() || remembers) {
                let details = format!("{id:x}: {end:?} instead of {:?}", txn.end);
                return Err(wrong("how transactions ended is remembered", details));
            }
            let waits = txn
                .halves
                .iter()
                .filter(|half| self.now.bodies.get(half).is_some_and(|body| body.state == State::Half));
            let waits: Vec<Lsn> = waits.map(|half| Lsn(*half)).collect();
            let expected = txn.end.is_none() || txn.decided;
            let same = match part {
                Some(part) => {
                    expected
                        && part.halves == waits
                        && part.decision.is_some() == txn.decided
                        && (part.attempts, part.parked) == (txn.attempts, txn.parked)
                }
                None => !expected,
            };
            if !same {
                let details = format!("{id:x}: {part:?} instead of {txn:?}");
                return Err(wrong("transactions are what they were", details));
            }
        }
        Ok(())
    }
}
