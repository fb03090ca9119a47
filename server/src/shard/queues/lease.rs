//! What a group has out of a partition: leases, retries, what waits for its key. A machine without I/O and clock.
//!
//! States of an offset below `next`: consumed, or *open*:
//! ```text
//! waiting -(lease)-> leased -(ack)-> consumed
//!    ^                 |--(retry, expiry)--> waiting, or dying -(bury)-> consumed
//!    '----(release)----'
//! ```
//! Invariants  L1  A record has at most one live lease, and only its handle has an effect.
//!             L2  Of a key at most one record is leased, the first one that is open.
//!             L3  What is consumed is not leased again.
//!             L4  The watermark is the first open offset: all below it is consumed. It never falls.
//!             L5  Whatever becomes of what is open, it fits the bounds of what can be logged.
//!             L6  Who acknowledges a record again, because the answer was lost, is told that it is consumed, and not
//!                 that somebody else has it.
//! After a restart leases are gone. A handle of the life before is good as long as its record was not delivered in
//! this one.

use crate::planted::{Bug, Planted};
use ringmq_format::Offset;
use ringmq_format::cursor::{AckChange, Retry};
use ringmq_format::limits::{ACK_SPAN_MAX, ACK_STATE_SIZE_MAX};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Acknowledgements of which a table remembers the handles (L6): 16 bytes each.
const REMEMBERED_ACKS: usize = 512;
/// Bytes of what is logged that are left for what is not counted exactly.
const STATE_SLACK: usize = 1 << 10;

/// What a group's settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Deliveries before a record becomes a dead letter.
    pub(super) max_attempts: u16,
    /// Pause after each failed delivery; the last one repeats.
    pub(super) backoff_ms: Vec<u32>,
    /// One record of a key at a time.
    pub(super) ordered: bool,
    /// Leases at a time; 0 is no limit.
    pub(super) concurrency: u32,
}

impl Rules {
    fn backoff_us(&self, attempt: u16) -> u64 {
        let step = usize::from(attempt).saturating_sub(1).min(self.backoff_ms.len().saturating_sub(1));
        self.backoff_ms.get(step).map_or(0, |ms| u64::from(*ms) * 1_000)
    }
}

/// Names a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) struct Handle {
    pub(super) offset: u64,
    /// Epoch of the shard in the high half.
    pub(super) generation: u64,
    pub(super) attempt: u16,
}

/// Why a handle has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoLease {
    /// The record was delivered again, or was consumed under another handle.
    Stale,
    /// The record is consumed, under this handle as far as is known: what was consumed in the life before, or long ago,
    /// may have been so under another.
    Consumed,
    /// No such delivery was made.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be delivered, not before this.
    Waiting(u64),
    Leased {
        generation: u64,
        expires_us: u64,
        /// It was handed back for later: its end is no failed delivery.
        lenient: bool,
    },
    /// Every delivery has failed; it is about to become a dead letter.
    Dying,
}

#[derive(Clone, Debug)]
struct Open {
    state: State,
    /// Deliveries that have failed.
    failed: u16,
    /// It was delivered in this life of the table.
    delivered: bool,
    key: Option<Arc<[u8]>>,
}

/// What became of a look at the next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It may be leased now.
    Ready,
    /// Not wanted, consumed before, or not now.
    Passed,
}

/// A record that may be a handle's.
enum Judged {
    /// Its lease.
    Held,
    /// Of the life before, and not delivered since.
    Earlier,
}

/// See the module.
#[derive(Debug)]
pub(super) struct LeaseTable {
    epoch: u32,
    rules: Rules,
    /// First offset that was not looked at.
    next: u64,
    open: BTreeMap<u64, Open>,
    /// Consumed, at or above `next`: first and behind the last.
    ahead: BTreeMap<u64, u64>,
    /// Failed deliveries of the life before, at or above `next`: how many, and when the next one may be.
    retries: BTreeMap<u64, (u16, u64)>,
    /// Waiting and first of their key, by time.
    due: BTreeSet<(u64, u64)>,
    /// Leases by their end.
    ending: BTreeSet<(u64, u64)>,
    dying: BTreeSet<u64>,
    keys: BTreeMap<Arc<[u8]>, BTreeSet<u64>>,
    /// Open records with failed deliveries.
    failed: usize,
    /// The last that were acknowledged: offset and generation of the handle.
    acked: VecDeque<(u64, u64)>,
    /// What is not logged yet.
    new_acks: BTreeSet<u64>,
    new_retries: BTreeSet<u64>,
    logged_watermark: Option<u64>,
    dead_letters: u64,
    planted: Planted,
}

impl LeaseTable {
    /// Plants a bug of a test.
    pub(super) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
    }

    /// A table for what is known of the group: where it stands, whether that is logged, what is consumed above, and
    /// failed deliveries with the time of the next one.
    pub(super) fn new(
        epoch: u32,
        rules: Rules,
        watermark: Offset,
        is_logged: bool,
        ranges: impl Iterator<Item = (Offset, Offset)>,
        retries: impl Iterator<Item = (u64, u16, u64)>,
    ) -> Self {
        let mut table = Self {
            epoch,
            rules,
            next: watermark.0,
            open: BTreeMap::new(),
            ahead: ranges.map(|(start, end)| (start.0, end.0)).collect(),
            retries: retries.map(|(offset, attempt, at_us)| (offset, (attempt, at_us))).collect(),
            due: BTreeSet::new(),
            ending: BTreeSet::new(),
            dying: BTreeSet::new(),
            keys: BTreeMap::new(),
            failed: 0,
            acked: VecDeque::new(),
            new_acks: BTreeSet::new(),
            new_retries: BTreeSet::new(),
            logged_watermark: is_logged.then_some(watermark.0),
            dead_letters: 0,
            planted: Planted::default(),
        };
        table.pass_ahead();
        table
    }

    /// Other settings; what is ordered stays so.
    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.rules.ordered
    }

    /// First offset that was not looked at.
    pub(super) fn next(&self) -> Offset {
        Offset(self.next)
    }

    /// Everything below is consumed.
    pub(super) fn watermark(&self) -> Offset {
        let first = self.open.first_key_value().map_or(self.next, |(offset, _)| *offset);
        Offset(first.min(self.next)) // L4
    }

    /// Leases now.
    pub(super) fn in_flight(&self) -> usize {
        self.ending.len()
    }

    /// Records that became dead letters, since the table was made.
    pub(super) fn dead_letters(&self) -> u64 {
        self.dead_letters
    }

    /// Nothing is kept here that is not in the log.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty() && !self.has_news()
    }

    /// Records that are about to become dead letters, with their deliveries.
    pub(super) fn dying(&self) -> impl Iterator<Item = (Offset, u16)> {
        self.dying.iter().map(|offset| (Offset(*offset), self.open.get(offset).map_or(0, |open| open.failed)))
    }

    /// Another lease may be given.
    pub(super) fn has_room(&self) -> bool {
        self.rules.concurrency == 0 || self.ending.len() < self.rules.concurrency as usize
    }

    /// The next record may be looked at (L5).
    pub(super) fn may_look(&self) -> bool {
        let ranges = self.open.len() + self.ahead.len() + 2;
        let retries = self.failed + self.ending.len() + self.retries.len() + 1;
        AckChange::size(ranges, retries) + STATE_SLACK <= ACK_STATE_SIZE_MAX
            && self.next - self.watermark().0 < ACK_SPAN_MAX
    }

    /// When something happens by itself: a lease ends, or, if somebody waits, a record is due.
    pub(super) fn timer_us(&self, now_us: u64, somebody_waits: bool) -> Option<u64> {
        let behind_now = (now_us + 1, 0);
        let due = self.due.range(behind_now..).next().filter(|_| somebody_waits).map(|(at, _)| *at);
        self.ending.first().map(|(at, _)| *at).into_iter().chain(due).min()
    }

    /// Retention has taken what lies below.
    pub(super) fn advance(&mut self, start: Offset) {
        while let Some(offset) = self.open.first_key_value().map(|(offset, _)| *offset)
            && offset < start.0
        {
            self.remove(offset);
        }
        self.retries = self.retries.split_off(&start.0);
        if self.next < start.0 {
            self.next = start.0;
            while let Some((first, end)) = self.ahead.first_key_value().map(|(a, b)| (*a, *b))
                && first < start.0
            {
                self.ahead.remove(&first);
                if end > start.0 {
                    self.ahead.insert(start.0, end);
                }
            }
            self.pass_ahead();
        }
    }

    /// Skips what is consumed already.
    fn pass_ahead(&mut self) {
        while let Some((start, end)) = self.ahead.first_key_value().map(|(a, b)| (*a, *b))
            && start <= self.next
        {
            self.ahead.remove(&start);
            self.next = self.next.max(end);
        }
    }

    // -- delivering ----------------------------------------------------------------------------------------

    /// Looks at the record at `next`.
    pub(super) fn look(&mut self, wanted: bool, key: Option<&[u8]>, now_us: u64) -> Seen {
        let offset = self.next;
        self.next += 1;
        let (failed, at_us) = self.retries.remove(&offset).unwrap_or((0, now_us));
        let key = key.filter(|_| self.rules.ordered).map(Arc::from);
        let is_open = if let Some(open) = self.open.get_mut(&offset) {
            open.key.clone_from(&key); // of the life before
            true
        } else if wanted {
            let state = State::Waiting(at_us);
            self.open.insert(offset, Open { state, failed, delivered: false, key: key.clone() });
            self.failed += usize::from(failed > 0);
            true
        } else {
            false
        };
        if is_open && let Some(key) = key {
            self.keys.entry(key).or_default().insert(offset);
        }
        self.pass_ahead();
        if !is_open {
            return Seen::Passed;
        }
        self.make_due(offset);
        if self.is_due(offset, now_us) { Seen::Ready } else { Seen::Passed }
    }

    fn is_due(&self, offset: u64, now_us: u64) -> bool {
        let at = self.open.get(&offset).map(|open| open.state);
        matches!(at, Some(State::Waiting(at)) if at <= now_us && self.due.contains(&(at, offset)))
    }

    /// Records that have waited long enough, by offset, at most `limit`.
    pub(super) fn due_now(&self, now_us: u64, limit: usize) -> Vec<u64> {
        let mut list: Vec<u64> =
            self.due.iter().take_while(|(at, _)| *at <= now_us).map(|due| due.1).take(limit).collect();
        list.sort_unstable();
        list
    }

    /// Leases a record that is ready. Answers which delivery this is.
    pub(super) fn lease(&mut self, offset: u64, generation: u64, expires_us: u64) -> u16 {
        let Some(open) = self.open.get_mut(&offset) else { panic!("offset {offset} is leased and not open") };
        let State::Waiting(at) = open.state else {
            panic!("offset {offset} is leased twice: {:?}", open.state)
        };
        open.state = State::Leased { generation, expires_us, lenient: false }; // L1
        open.delivered = true;
        let attempt = open.failed.saturating_add(1);
        assert!(self.due.remove(&(at, offset)), "offset {offset} is leased before its time"); // L2
        self.ending.insert((expires_us, offset));
        attempt
    }

    /// Puts a waiting record among those that are delivered when their time comes, if it is the first of its key.
    fn make_due(&mut self, offset: u64) {
        let Some(open) = self.open.get(&offset) else { return };
        let State::Waiting(at) = open.state else { return };
        let first = open.key.as_ref().and_then(|key| self.keys.get(key)).and_then(BTreeSet::first);
        let second = self.planted.has(Bug::SecondOfKey);
        if second || first.is_none_or(|first| *first == offset) {
            self.due.insert((at, offset)); // L2
        }
    }

    /// Takes a record out of whatever its state has put it into.
    fn unfile(&mut self, offset: u64, state: State) {
        match state {
            State::Waiting(at) => self.due.remove(&(at, offset)),
            State::Leased { expires_us, .. } => self.ending.remove(&(expires_us, offset)),
            State::Dying => self.dying.remove(&offset),
        };
    }

    /// It is open no more.
    fn remove(&mut self, offset: u64) {
        let Some(open) = self.open.remove(&offset) else { return };
        self.unfile(offset, open.state);
        self.failed -= usize::from(open.failed > 0);
        let Some(key) = open.key else { return };
        if let Some(offsets) = self.keys.get_mut(&key) {
            offsets.remove(&offset);
            match offsets.first().copied() {
                Some(first) => self.make_due(first),
                None => drop(self.keys.remove(&key)),
            }
        }
    }

    /// Leases that have ended: failed deliveries, which may be received again at once. Answers whether there are any.
    pub(super) fn expire(&mut self, now_us: u64) -> bool {
        let mut any = false;
        while let Some((at, offset)) = self.ending.first().copied()
            && at <= now_us
        {
            any = true;
            let lenient = self
                .open
                .get(&offset)
                .is_some_and(|open| matches!(open.state, State::Leased { lenient: true, .. }));
            if lenient { self.wait(offset, now_us, false) } else { self.fail(offset, now_us) }
        }
        any
    }

    /// Another delivery has failed; the next one is due at `at_us`.
    fn fail(&mut self, offset: u64, at_us: u64) {
        let Some(open) = self.open.get(&offset) else { return };
        let attempt = open.failed.saturating_add(1);
        self.wait(offset, at_us, !self.planted.has(Bug::AttemptNotCounted));
        let more = u16::from(self.planted.has(Bug::OneAttemptMore));
        if attempt >= self.rules.max_attempts.saturating_add(more) {
            let failed = self.retries.remove(&offset).map_or(attempt, |retry| retry.0);
            let open = Open { state: State::Dying, failed, delivered: true, key: None };
            match self.open.get_mut(&offset) {
                Some(known) => {
                    known.state = State::Dying;
                    self.due.remove(&(at_us, offset));
                }
                None => {
                    self.open.insert(offset, open);
                    self.failed += 1;
                }
            }
            self.dying.insert(offset);
        }
        self.new_retries.insert(offset);
    }

    /// Back among those that wait. What was not looked at in this life is forgotten until it is.
    fn wait(&mut self, offset: u64, at_us: u64, failed: bool) {
        let Some(open) = self.open.get_mut(&offset) else { return };
        let before = open.state;
        if failed {
            self.failed += usize::from(open.failed == 0);
            open.failed = open.failed.saturating_add(1);
        }
        open.state = State::Waiting(at_us);
        let count = open.failed;
        self.unfile(offset, before);
        if offset >= self.next {
            self.remove(offset);
            if count > 0 {
                self.retries.insert(offset, (count, at_us));
            }
        } else {
            self.make_due(offset);
        }
    }

    // -- settling ------------------------------------------------------------------------------------------

    fn judge(&self, handle: Handle, visible: Offset) -> Result<Judged, NoLease> {
        let Handle { offset, generation, attempt } = handle;
        let epoch = (generation >> 32) as u32;
        if epoch > self.epoch || attempt == 0 || offset >= visible.0 {
            return Err(NoLease::Unknown);
        }
        let is_ahead = self.ahead.range(..=offset).next_back().is_some_and(|range| *range.1 > offset);
        // No life has epoch 0: a handle with nothing in it is none of the life before.
        let of_before = epoch > 0 && epoch < self.epoch;
        match self.open.get(&offset) {
            Some(Open { state: State::Leased { generation: held, .. }, failed, .. })
                if *held == generation && failed.saturating_add(1) == attempt =>
            {
                Ok(Judged::Held) // L1
            }
            Some(Open { state: State::Waiting(_), failed, delivered: false, .. })
                if of_before && failed.saturating_add(1) == attempt =>
            {
                Ok(Judged::Earlier)
            }
            Some(_) if self.planted.has(Bug::StaleHandleAcks) => Ok(Judged::Held),
            Some(_) => Err(NoLease::Stale),
            None if offset < self.next || is_ahead => {
                let acked = self.acked.iter().rev().find(|acked| acked.0 == offset);
                let by_another = acked.is_some_and(|acked| acked.1 != generation);
                Err(if by_another { NoLease::Stale } else { NoLease::Consumed }) // L3
            }
            None if of_before => {
                let failed = self.retries.get(&offset).map_or(0, |retry| retry.0);
                if failed.saturating_add(1) == attempt { Ok(Judged::Earlier) } else { Err(NoLease::Stale) }
            }
            None => Err(NoLease::Unknown),
        }
    }

    /// The record is consumed, now or already (L6).
    pub(super) fn ack(&mut self, handle: Handle, visible: Offset) -> Result<(), NoLease> {
        match self.judge(handle, visible) {
            Ok(_) => {}
            Err(NoLease::Consumed) => return Ok(()),
            Err(no) => return Err(no),
        }
        self.consume(handle.offset);
        self.remember(handle.offset, handle.generation);
        Ok(())
    }

    fn remember(&mut self, offset: u64, generation: u64) {
        if self.acked.len() == REMEMBERED_ACKS {
            self.acked.pop_front();
        }
        self.acked.push_back((offset, generation));
    }

    fn consume(&mut self, offset: u64) {
        self.remove(offset);
        self.retries.remove(&offset);
        if offset >= self.next {
            self.insert_ahead(offset);
            self.pass_ahead();
        }
        self.new_acks.insert(offset);
    }

    fn insert_ahead(&mut self, offset: u64) {
        let (mut start, mut end) = (offset, offset + 1);
        if let Some((first, last)) = self.ahead.range(..=offset).next_back().map(|(a, b)| (*a, *b))
            && last >= offset
        {
            (start, end) = (first, last.max(end));
        }
        if let Some(last) = self.ahead.remove(&end) {
            end = last;
        }
        self.ahead.insert(start, end);
    }

    /// Makes sure that a handle of the life before has an entry.
    fn adopt(&mut self, handle: Handle, judged: &Judged) {
        if matches!(judged, Judged::Held) {
            return;
        }
        let (offset, failed) = (handle.offset, handle.attempt - 1);
        self.retries.remove(&offset);
        match self.open.get_mut(&offset) {
            Some(open) => open.delivered = true,
            None => {
                let state = State::Waiting(0);
                self.open.insert(offset, Open { state, failed, delivered: true, key: None });
                self.failed += usize::from(failed > 0);
            }
        }
    }

    /// This delivery has failed. Answers whether it was the last: the record is dying then.
    pub(super) fn retry(&mut self, handle: Handle, visible: Offset, now_us: u64) -> Result<bool, NoLease> {
        let judged = self.judge(handle, visible)?;
        self.adopt(handle, &judged);
        self.fail(handle.offset, now_us + self.rules.backoff_us(handle.attempt));
        Ok(self.dying.contains(&handle.offset))
    }

    /// Whether a retry of this handle would be the last one.
    pub(super) fn would_die(&self, handle: Handle, visible: Offset) -> bool {
        handle.attempt >= self.rules.max_attempts && self.judge(handle, visible).is_ok()
    }

    /// The lease ends `after_us` from now, and goes on until then under `generation`. `lenient`: that is no failed
    /// delivery.
    pub(super) fn postpone(
        &mut self,
        handle: Handle,
        visible: Offset,
        now_us: u64,
        after_us: u64,
        generation: u64,
        lenient: bool,
    ) -> Result<Handle, NoLease> {
        let judged = self.judge(handle, visible)?;
        if self.rules.ordered && matches!(judged, Judged::Earlier) {
            return Err(NoLease::Stale); // L2: whether it is the first of its key is not known
        }
        self.adopt(handle, &judged);
        if after_us == 0 {
            self.wait(handle.offset, now_us, false);
            return Ok(Handle { generation, ..handle });
        }
        let Some(open) = self.open.get_mut(&handle.offset) else { return Err(NoLease::Stale) };
        let before = open.state;
        let expires_us = now_us + after_us;
        open.state = State::Leased { generation, expires_us, lenient }; // L1
        self.unfile(handle.offset, before);
        self.ending.insert((expires_us, handle.offset));
        Ok(Handle { generation, ..handle })
    }

    /// What was dying is a dead letter, or gone.
    pub(super) fn bury(&mut self, offset: Offset) {
        if self.dying.contains(&offset.0) {
            self.consume(offset.0);
            self.remember(offset.0, 0); // no handle's
            self.dead_letters += 1;
        }
    }

    // -- logging -------------------------------------------------------------------------------------------

    /// Something was said that the log does not know, and somebody may wait for that.
    pub(super) fn has_news(&self) -> bool {
        !self.new_acks.is_empty() || !self.new_retries.is_empty() || self.logged_watermark.is_none()
    }

    /// The log knows a lower watermark, because records were passed over.
    pub(super) fn is_ahead_of_log(&self) -> bool {
        self.logged_watermark.is_none_or(|logged| logged < self.watermark().0)
    }

    /// The news, into an entry for the log. `wall_ms` is the wall clock at `now_us`.
    pub(super) fn take_news(&mut self, now_us: u64, wall_ms: i64, change: &mut AckChange) {
        let watermark = self.watermark();
        change.watermark = watermark;
        self.logged_watermark = Some(watermark.0);
        let mut behind = watermark.0;
        for offset in std::mem::take(&mut self.new_acks) {
            if offset < behind {
                continue;
            }
            // All that is consumed around it is one range, so that the log's ranges are as few as there are here.
            let (start, end) = if offset < self.next {
                let before = self.open.range(..offset).next_back().map_or(0, |open| *open.0 + 1);
                let end = self.open.range(offset..).next().map_or(self.next, |open| (*open.0).min(self.next));
                (before.max(watermark.0), end)
            } else {
                match self.ahead.range(..=offset).next_back() {
                    Some((start, end)) => (*start, *end),
                    None => continue,
                }
            };
            change.ranges.push((Offset(start), Offset(end)));
            behind = end;
        }
        for offset in std::mem::take(&mut self.new_retries) {
            let known = match self.open.get(&offset) {
                Some(Open { state: State::Waiting(at), failed, .. }) => Some((*failed, *at)),
                Some(Open { failed, .. }) => Some((*failed, now_us)),
                None => self.retries.get(&offset).copied(),
            };
            if let Some((attempt, at)) = known.filter(|retry| retry.0 > 0) {
                let visible_ms = wall_ms.saturating_add(at.saturating_sub(now_us) as i64 / 1_000);
                change.retries.push(Retry { offset: Offset(offset), attempt, visible_ms });
            }
        }
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
