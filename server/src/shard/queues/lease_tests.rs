#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use ringmq_format::{GroupId, PartitionId};

const RECORDS: u64 = 60;
const VISIBLE: Offset = Offset(RECORDS);
const SECOND: u64 = 1_000_000;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn rules(ordered: bool, concurrency: u32, max_attempts: u16) -> Rules {
    Rules { max_attempts, backoff_ms: vec![1_000, 3_000], ordered, concurrency }
}

fn fresh(rules: Rules) -> LeaseTable {
    LeaseTable::new(7, rules, Offset(0), true, std::iter::empty(), std::iter::empty())
}

/// What the naive model knows of one record.
#[derive(Clone, Copy, Default)]
struct Known {
    failed: u16,
    lease: Option<(Handle, u64, bool)>,
    at_us: u64,
    /// Acknowledged, dead, or not wanted.
    done: bool,
    /// By whom it was acknowledged in this life of the table.
    acked: Option<u64>,
    /// It became a dead letter in this life of the table.
    dead: bool,
    delivered: bool,
}

/// What the log would say.
#[derive(Default)]
struct Logged {
    watermark: u64,
    done: BTreeSet<u64>,
    retries: BTreeMap<u64, (u16, i64)>,
}

struct Trial {
    random: Random,
    rules: Rules,
    table: LeaseTable,
    known: Vec<Known>,
    logged: Logged,
    /// Every handle that was ever given.
    handles: Vec<Handle>,
    now_us: u64,
    epoch: u32,
    counter: u64,
    deliveries: u64,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed * 2 + 1);
        let concurrency = random.below(2) as u32 * 5;
        let rules = rules(random.below(2) == 0, concurrency, 3);
        Self {
            table: fresh(rules.clone()),
            random,
            rules,
            known: vec![Known::default(); RECORDS as usize],
            logged: Logged::default(),
            handles: Vec::new(),
            now_us: SECOND,
            epoch: 7,
            counter: 0,
            deliveries: 0,
        }
    }

    fn wanted(offset: u64) -> bool {
        offset % 7 != 3
    }

    fn key(offset: u64) -> Option<[u8; 1]> {
        (!offset.is_multiple_of(5)).then_some([(offset % 4) as u8])
    }

    fn generation(&mut self) -> u64 {
        self.counter += 1;
        u64::from(self.epoch) << 32 | self.counter
    }

    fn expire(&mut self) {
        self.table.expire(self.now_us);
        let next = self.table.next().0;
        for (offset, known) in self.known.iter_mut().enumerate() {
            if let Some((_, expires_us, lenient)) = known.lease
                && expires_us <= self.now_us
            {
                known.lease = None;
                known.at_us = self.now_us;
                known.failed += u16::from(!lenient);
                // What was not looked at in this life may still be settled by whoever had it before.
                known.delivered = (offset as u64) < next;
            }
        }
        self.bury();
    }

    fn bury(&mut self) {
        for (offset, failed) in self.table.dying().collect::<Vec<_>>() {
            let known = &mut self.known[offset.0 as usize];
            assert_eq!((failed, known.done, known.lease), (self.rules.max_attempts, false, None));
            assert_eq!(known.failed, failed, "only what has failed so often dies");
            (known.done, known.dead) = (true, true);
            self.table.bury(offset);
        }
        assert!(self.known.iter().all(|known| known.done || known.failed < self.rules.max_attempts));
    }

    fn take(&mut self, offset: u64, generation: u64) {
        let expires_us = self.now_us + (1 + self.random.below(5)) * SECOND;
        let attempt = self.table.lease(offset, generation, expires_us);
        let known = self.known[offset as usize];
        assert!(!known.done, "{offset} was consumed");
        assert!(known.lease.is_none(), "{offset} has two leases");
        assert!(known.at_us <= self.now_us, "{offset} came before its time");
        assert_eq!(attempt, known.failed + 1, "deliveries of {offset}");
        if self.rules.ordered
            && let Some(key) = Self::key(offset)
        {
            let before = (0..offset).filter(|o| Self::key(*o) == Some(key) && Self::wanted(*o));
            for other in before {
                assert!(self.known[other as usize].done, "{offset} overtakes {other} of its key");
            }
        }
        let handle = Handle { offset, generation, attempt };
        let known = &mut self.known[offset as usize];
        known.lease = Some((handle, expires_us, false));
        known.delivered = true;
        self.handles.push(handle);
        self.deliveries += 1;
        let leases = self.known.iter().filter(|known| known.lease.is_some()).count();
        assert!(self.rules.concurrency == 0 || leases <= self.rules.concurrency as usize);
    }

    fn receive(&mut self, limit: usize) {
        let generation = self.generation();
        let mut taken = 0;
        for offset in self.table.due_now(self.now_us, limit) {
            if taken < limit && self.table.has_room() {
                self.take(offset, generation);
                taken += 1;
            }
        }
        while taken < limit && self.table.next() < VISIBLE && self.table.has_room() {
            let offset = self.table.next().0;
            let key = Self::key(offset);
            let wanted = Self::wanted(offset);
            self.known[offset as usize].done |= !wanted;
            if self.table.look(wanted, key.as_ref().map(|key| &key[..]), self.now_us) == Seen::Ready {
                self.take(offset, generation);
                taken += 1;
            }
        }
    }

    /// A handle: mostly a live one.
    fn handle(&mut self) -> Option<Handle> {
        let live: Vec<Handle> = self.known.iter().filter_map(|known| Some(known.lease?.0)).collect();
        if !live.is_empty() && self.random.below(3) > 0 {
            return Some(live[self.random.below(live.len() as u64) as usize]);
        }
        let mut any = *self.handles.get(self.random.below(self.handles.len().max(1) as u64) as usize)?;
        match self.random.below(6) {
            0 => any.attempt += 1,
            1 => any.generation = u64::from(self.epoch + 1) << 32,
            2 => any.offset += RECORDS,
            _ => {}
        }
        Some(any)
    }

    /// Whether a handle has to have its effect.
    fn is_good(&self, handle: Handle) -> bool {
        let Some(known) = self.known.get(handle.offset as usize) else { return false };
        let epoch = (handle.generation >> 32) as u32;
        match known.lease {
            Some(lease) => lease.0 == handle,
            None => {
                !known.done && !known.delivered && epoch < self.epoch && known.failed + 1 == handle.attempt
            }
        }
    }

    /// Whether an acknowledgement says done though it has no effect.
    fn is_consumed_by(&self, handle: Handle) -> bool {
        let Some(known) = self.known.get(handle.offset as usize) else { return false };
        let is_known = (handle.generation >> 32) as u32 <= self.epoch;
        let by_another = known.dead || known.acked.is_some_and(|acked| acked != handle.generation);
        is_known && known.done && !by_another
    }

    fn settle(&mut self) {
        let Some(handle) = self.handle() else { return };
        let good = self.is_good(handle);
        let leased = good && self.known[handle.offset as usize].lease.is_some();
        let generation = self.generation();
        let known = handle.offset as usize;
        let now_us = self.now_us;
        match self.random.below(4) {
            0 | 1 => {
                let again = self.is_consumed_by(handle);
                assert_eq!(self.table.ack(handle, VISIBLE).is_ok(), good || again, "{handle:?}");
                if good {
                    let known = &mut self.known[known];
                    (known.done, known.lease, known.acked) = (true, None, Some(handle.generation));
                }
            }
            2 => {
                let dies = good && handle.attempt == self.rules.max_attempts;
                assert_eq!(self.table.would_die(handle, VISIBLE), dies);
                let result = self.table.retry(handle, VISIBLE, now_us);
                assert_eq!(result.ok(), good.then_some(dies), "{handle:?}");
                if good {
                    let pause = if handle.attempt == 1 { 1 } else { 3 };
                    let record = &mut self.known[known];
                    *record = Known {
                        failed: handle.attempt,
                        at_us: now_us + pause * SECOND,
                        delivered: (known as u64) < self.table.next().0,
                        ..Known::default()
                    };
                    self.bury();
                }
            }
            _ => {
                let after_us = self.random.below(3) * SECOND;
                let expected = good && (leased || !self.rules.ordered);
                let lenient = after_us == 0 || self.random.below(2) == 0;
                let result = self.table.postpone(handle, VISIBLE, now_us, after_us, generation, lenient);
                assert_eq!(result.is_ok(), expected, "{handle:?}");
                let Ok(new) = result else { return };
                let record = &mut self.known[known];
                (record.lease, record.at_us) = (None, now_us);
                record.delivered = after_us > 0 || (known as u64) < self.table.next().0;
                if after_us > 0 {
                    record.lease = Some((new, now_us + after_us, lenient));
                    self.handles.push(new);
                }
            }
        }
    }

    fn log(&mut self) {
        let mut change = AckChange::new(GroupId(1), PartitionId(0), Offset(0));
        self.table.take_news(self.now_us, 1_000_000, &mut change);
        assert!(change.watermark.0 >= self.logged.watermark, "the watermark falls");
        self.logged.watermark = change.watermark.0;
        let ranges = change.ranges.iter().flat_map(|(start, end)| start.0..end.0);
        self.logged.done.extend(ranges.chain(0..change.watermark.0));
        for retry in &change.retries {
            self.logged.retries.insert(retry.offset.0, (retry.attempt, retry.visible_ms));
        }
        for (offset, known) in self.known.iter().enumerate() {
            let logged = self.logged.done.contains(&(offset as u64));
            assert!(!logged || known.done, "{offset} is logged as consumed and is not");
            assert!(logged || !known.done || !Self::wanted(offset as u64), "{offset} was not logged");
        }
    }

    fn restart(&mut self) {
        self.epoch += 1;
        for (offset, known) in self.known.iter_mut().enumerate() {
            let offset = offset as u64;
            let (failed, visible_ms) = self.logged.retries.get(&offset).copied().unwrap_or((0, 0));
            let wait_us = (visible_ms - 1_000_000).max(0) as u64 * 1_000;
            *known = Known {
                failed,
                at_us: self.now_us + wait_us,
                done: self.logged.done.contains(&offset),
                ..Known::default()
            };
        }
        let done = self.logged.done.iter().filter(|offset| **offset >= self.logged.watermark);
        let ranges = done.map(|offset| (Offset(*offset), Offset(offset + 1)));
        let open = self.known.iter().enumerate().filter(|(_, known)| !known.done && known.failed > 0);
        let retries = open.map(|(offset, known)| (offset as u64, known.failed, known.at_us));
        let watermark = Offset(self.logged.watermark);
        self.table = LeaseTable::new(self.epoch, self.rules.clone(), watermark, true, ranges, retries);
        // A record that had failed often enough before the restart, and was not buried.
        for known in &mut self.known {
            known.failed = known.failed.min(self.rules.max_attempts - 1);
        }
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..6 => {
                let limit = self.random.below(6) as usize + 1;
                self.receive(limit);
            }
            6..14 => self.settle(),
            14..17 => {
                self.now_us += self.random.below(2_000) * 1_000;
                self.expire();
            }
            17 | 18 => self.log(),
            _ if self.random.below(4) == 0 => {
                if self.random.below(2) == 0 {
                    self.log();
                }
                self.restart();
            }
            _ => {}
        }
        let open = self.known.iter().position(|known| !known.done).unwrap_or(self.known.len());
        assert!(self.table.watermark().0 <= open as u64, "the watermark passes {open}");
    }

    /// In the end everything is consumed, by an ack or as a dead letter.
    fn finish(&mut self) {
        for _ in 0..2_000 {
            self.now_us += SECOND;
            self.expire();
            self.receive(10);
            let live: Vec<Handle> = self.known.iter().filter_map(|known| Some(known.lease?.0)).collect();
            for handle in live {
                assert_eq!(self.table.ack(handle, VISIBLE), Ok(()));
                let known = &mut self.known[handle.offset as usize];
                (known.done, known.lease, known.acked) = (true, None, Some(handle.generation));
            }
            if self.table.watermark() == VISIBLE {
                self.log();
                assert_eq!((self.logged.watermark, self.table.is_idle()), (RECORDS, true));
                assert!(self.table.keys.is_empty() && self.table.failed == 0);
                return;
            }
        }
        panic!("stuck at {} of {RECORDS}", self.table.watermark());
    }
}

#[test]
fn the_table_is_what_the_naive_model_says() {
    let mut deliveries = 0;
    for seed in 0..3_000 {
        let mut trial = Trial::new(seed);
        for _ in 0..300 {
            trial.step();
        }
        trial.finish();
        deliveries += trial.deliveries;
    }
    assert!(deliveries > 3_000 * RECORDS, "the trial hardly delivers again");
}

#[test]
fn a_key_waits_for_its_first_record_and_others_go_on() {
    let mut table = fresh(rules(true, 0, 3));
    assert_eq!(table.look(true, Some(b"a"), 0), Seen::Ready);
    table.lease(0, 1, 100);
    assert_eq!(table.look(true, Some(b"a"), 0), Seen::Passed);
    assert_eq!(table.look(true, Some(b"b"), 0), Seen::Ready);
    table.lease(2, 2, 100);
    assert_eq!(table.look(true, None, 0), Seen::Ready);
    let first = Handle { offset: 0, generation: 1, attempt: 1 };
    table.epoch = 0;
    assert_eq!(table.retry(first, VISIBLE, 5), Ok(false));
    assert_eq!(table.due_now(6, 10), [3], "its key waits with it");
    assert_eq!(table.due_now(1_000_005, 10), [0, 3], "it is retried in place");
    assert_eq!(table.lease(0, 3, 2_000_000), 2);
    assert_eq!(table.ack(Handle { offset: 0, generation: 3, attempt: 2 }, VISIBLE), Ok(()));
    assert_eq!(table.due_now(1_000_005, 10), [1, 3]);
}

#[test]
fn an_acknowledgement_may_be_repeated_and_tells_whose_the_record_was() {
    let mut table = fresh(rules(false, 0, 3));
    table.epoch = 0;
    table.look(true, None, 0);
    assert_eq!(table.lease(0, 1, 10), 1);
    table.expire(10);
    assert_eq!(table.lease(0, 2, 100), 2);
    let (late, right) =
        (Handle { offset: 0, generation: 1, attempt: 1 }, Handle { offset: 0, generation: 2, attempt: 2 });
    assert_eq!(table.ack(late, VISIBLE), Err(NoLease::Stale), "somebody else has it");
    assert_eq!(table.ack(right, VISIBLE), Ok(()));
    assert_eq!(table.ack(right, VISIBLE), Ok(()), "the answer was lost");
    assert_eq!(table.ack(late, VISIBLE), Err(NoLease::Stale), "somebody else had it");
    assert_eq!(table.retry(right, VISIBLE, 20), Err(NoLease::Consumed), "too late");
    // What is acknowledged after it pushes it out of what is remembered: consumed is all that is known then.
    let far = Offset(REMEMBERED_ACKS as u64 + 1);
    while table.next() < far {
        let offset = table.next().0;
        table.look(true, None, 0);
        table.lease(offset, 3, 100);
        assert_eq!(table.ack(Handle { offset, generation: 3, attempt: 1 }, far), Ok(()));
    }
    assert_eq!(table.ack(late, far), Ok(()));
}

#[test]
fn what_cannot_be_logged_is_not_handed_out() {
    let mut table = fresh(rules(false, 0, 3));
    let mut leases = 0u64;
    while table.may_look() {
        let offset = table.next().0;
        assert_eq!(table.look(true, None, 0), Seen::Ready);
        table.lease(offset, 1, SECOND);
        leases += 1;
    }
    assert!((1_000..3_000).contains(&leases), "{leases}");
    // The worst: every second one is acknowledged, all others fail.
    table.epoch = 0;
    for offset in (1..leases).step_by(2) {
        table.ack(Handle { offset, generation: 1, attempt: 1 }, Offset(leases)).unwrap();
    }
    table.expire(SECOND);
    let mut change = AckChange::new(GroupId(1), PartitionId(0), Offset(0));
    table.take_news(SECOND, 0, &mut change);
    assert!(AckChange::size(change.ranges.len(), change.retries.len()) <= ACK_STATE_SIZE_MAX);
    // A record that nobody consumes holds up the others after so many.
    let mut table = fresh(rules(false, 0, 3));
    table.look(true, None, 0);
    while table.may_look() {
        table.look(false, None, 0);
    }
    assert_eq!(table.next().0, ACK_SPAN_MAX);
    assert_eq!(table.due_now(0, 5), [0]);
}
