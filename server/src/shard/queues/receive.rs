//! RECEIVE: handing records out under leases, now or when there are some.

use super::lease::Seen;
use super::requests::put_error;
use super::select::{Wants, put_chosen, record_size};
use super::settle::rules_of;
use super::{BURY_AGAIN_US, Key, Queue, SWEEP_PERIOD_US};
use crate::planted::Bug;
use crate::shard::ShardServer;
use crate::shard::connection::{INPUT_MIN, OUT_SOFT};
use crate::shard::groups::Found;
use crate::shard::mail::{Answer, Origin};
use ringmq_engine::shard::Fetched;
use ringmq_format::cursor::CursorKey;
use ringmq_format::frame::Frame;
use ringmq_format::record::Payload;
use ringmq_format::{Offset, PartitionId};
use ringmq_protocol::{ErrorCode, Lease, LeaseHandle, Op, Received};
use std::collections::VecDeque;
use std::ops::Bound;
use zerocopy::little_endian::I64;

/// Queues served in one turn, so that acknowledgements never wait long.
const SERVED_PER_TURN: usize = 64;
/// Frames looked at for one RECEIVE in one turn.
const FRAMES_PER_SERVE: usize = 256;
/// Beyond its time a RECEIVE waits for pages, and for a loan that is on its way.
const LITTLE_US: u64 = 2_000;
/// A table of which nothing is out and nobody has asked for so long is given back.
const IDLE_US: u64 = 300_000_000;

/// A RECEIVE that waits.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Receiving {
    pub(super) correlation: u64,
    pub(super) handle: u32,
    pub(super) group: ringmq_format::GroupId,
    pub(super) member: u64,
    pub(super) max_records: u32,
    pub(super) max_bytes: u32,
    /// 0: the group's.
    pub(super) invisible_ms: u32,
    pub(super) wait_ms: u32,
    pub(super) until_us: u64,
    /// Until the output of its connection has drained.
    pub(super) blocked: bool,
}

/// What came of filling an answer.
enum Filled {
    /// There is something, or there is nothing at hand.
    Done,
    /// Pages are on the way.
    Cold,
    /// The group's rate is used up.
    Starved,
    /// Other queues first.
    Again,
    Failed(ErrorCode, String),
}

#[derive(Default)]
struct Filling {
    entries: Vec<u8>,
    leases: Vec<Lease>,
}

/// What is left of the pause after a failed delivery, when the server starts again. The wall clock may have been set
/// back meanwhile: it is never longer than a pause of the group can be.
fn pause_left_us(visible_ms: i64, now_ms: i64, backoff_ms: &[u32]) -> u64 {
    let ahead_ms = u64::try_from(visible_ms.saturating_sub(now_ms)).unwrap_or(0);
    let longest_ms = u64::from(backoff_ms.iter().copied().max().unwrap_or(0));
    ahead_ms.min(longest_ms) * 1_000
}

impl ShardServer {
    pub(super) fn open_receive(&mut self, origin: Origin, partition: PartitionId, mut receive: Receiving) {
        receive.until_us = self.ring.now().mono_us + u64::from(receive.wait_ms) * 1_000;
        let key = (receive.group, partition);
        self.queues.receives.insert(origin, (key, receive));
        self.queues.deadlines.insert((receive.until_us, origin));
        self.enqueue_again(origin);
    }

    /// Puts a RECEIVE into the line of its queue, which is made if there is none.
    pub(super) fn enqueue_again(&mut self, origin: Origin) {
        let Some((key, receive)) = self.queues.receives.get(&origin).copied() else { return };
        let refusal = match self.group(key.0) {
            Err(code) => Some(code),
            Ok(known) if !known.is_member(receive.member) => Some(ErrorCode::NotAMember),
            Ok(known) if !known.is_queue() => Some(ErrorCode::NotPermitted),
            Ok(_) => None,
        };
        if let Some(code) = refusal {
            return self.refuse_receive(origin, code);
        }
        match self.load_queue(key, true) {
            Found::Is(_) => {
                let now_us = self.ring.now().mono_us;
                if let Some(queue) = self.queues.queues.get_mut(&key) {
                    queue.waiting.push_back(origin);
                    queue.used_us = now_us;
                }
                self.queues.ready.insert(key);
            }
            Found::Cold => {
                // Asked again when the page has come.
                self.queues.take_receive(origin);
                let work = super::QueueWork::Receive { partition: key.1, receive: Box::new(receive) };
                self.readers.park(origin, crate::shard::mail::Work::Queue(work));
            }
            Found::Not(code) => self.refuse_receive(origin, code),
        }
    }

    /// Makes sure that a queue is there. Without `starts`, only where the group has a position: `Is(false)` otherwise.
    pub(super) fn load_queue(&mut self, key: Key, starts: bool) -> Found<bool> {
        if self.queues.queues.contains_key(&key) {
            return Found::Is(true);
        }
        let (group, partition) = key;
        let Some(extent) = self.shard.extent(partition) else { return Found::Not(self.no_such_partition()) };
        let options = match self.group(group) {
            Ok(known) if known.is_queue() => known.entry.options.clone(),
            Ok(_) => return Found::Not(ErrorCode::NotPermitted),
            Err(code) => return Found::Not(code),
        };
        let (filter, rates) = match self.filter_of(group, partition) {
            Ok(found) => found,
            Err(code) => return Found::Not(code),
        };
        let position = self.shard.cursors().position(CursorKey::shared(group, partition));
        let watermark = match position {
            Some(position) => position.offset,
            None if !starts => return Found::Is(false),
            None => match self.start_at(partition, extent, options.start) {
                Found::Is(start) => start,
                Found::Cold => return Found::Cold,
                Found::Not(code) => return Found::Not(code),
            },
        };
        let now = self.ring.now();
        let acks = self.shard.cursors().acks(group, partition);
        let ranges = acks.map(|acks| acks.ranges().collect::<Vec<_>>()).unwrap_or_default();
        let retries = acks.map(|acks| acks.retries().collect::<Vec<_>>()).unwrap_or_default();
        let planted = self.options.planted;
        let ranges = if planted.has(Bug::AcksForgotten) { Vec::new() } else { ranges };
        let retries = if planted.has(Bug::RetriesForgotten) { Vec::new() } else { retries };
        let at_us =
            |visible_ms: i64| now.mono_us + pause_left_us(visible_ms, now.wall_ms, &options.backoff_ms);
        let mut table = super::LeaseTable::new(
            self.shard.log().epoch().0,
            rules_of(&options),
            watermark,
            position.is_some(),
            ranges.into_iter(),
            retries.into_iter().map(|retry| (retry.offset.0, retry.attempt, at_us(retry.visible_ms))),
        );
        table.plant(planted);
        if position.is_none() {
            // Where it starts is remembered from now on: "latest" is another place tomorrow.
            self.queues.dirty.insert(key);
        }
        let queue = Queue {
            table,
            filter,
            rates,
            invisible_ms: options.invisible_ms,
            waiting: VecDeque::new(),
            cold: false,
            starved: false,
            timer_us: None,
            used_us: now.mono_us,
        };
        self.queues.queues.insert(key, queue);
        self.queues.by_partition.entry(partition).or_default().insert(group);
        self.queues.sweep_at_us = self.queues.sweep_at_us.max(now.mono_us + 1);
        Found::Is(true)
    }

    /// Ends a queue: the group or the partition is no more.
    pub(super) fn drop_queue(&mut self, key: Key, code: ErrorCode) {
        for origin in self.queues.remove_queue(key) {
            self.refuse_receive(origin, code);
        }
    }

    pub(super) fn refuse_receive(&mut self, origin: Origin, code: ErrorCode) {
        self.fail_receive(origin, code, code.text(), 0);
    }

    fn fail_receive(&mut self, origin: Origin, code: ErrorCode, message: &str, retry_after_ms: u32) {
        let Some((_, receive)) = self.queues.take_receive(origin) else { return };
        let mut out = Vec::new();
        put_error(&mut out, Op::Receive, receive.correlation, receive.handle, code, message, retry_after_ms);
        self.stats.request_errors += 1;
        self.deliver_received(origin, &out);
    }

    // -- turns ---------------------------------------------------------------------------------------------

    pub(super) fn turn_timers(&mut self) {
        let now_us = self.ring.now().mono_us;
        while let Some((at, key)) = self.queues.timers.first().copied().filter(|timer| timer.0 <= now_us) {
            self.queues.timers.remove(&(at, key));
            let Some(queue) = self.queues.queues.get_mut(&key) else { continue };
            queue.timer_us = None;
            if queue.table.expire(now_us) {
                self.queues.dirty.insert(key);
                if queue.table.dying().next().is_some() {
                    self.queues.dying.insert(key);
                    self.queues.dying_at_us = Some(0);
                }
            }
            self.queues.ready.insert(key);
        }
        if now_us >= self.queues.sweep_at_us && !self.queues.queues.is_empty() {
            self.queues.sweep_at_us = now_us + SWEEP_PERIOD_US;
            self.sweep_queues(now_us);
        }
    }

    /// RECEIVEs that have waited long enough.
    pub(super) fn turn_deadlines(&mut self) {
        let now_us = self.ring.now().mono_us;
        while let Some((at, origin)) = self.queues.deadlines.first().copied().filter(|at| at.0 <= now_us) {
            self.queues.deadlines.remove(&(at, origin));
            let Some((key, receive)) = self.queues.receives.get_mut(&origin) else { continue };
            let key = *key;
            let again_us = self.queues.purses.get(&key.0).copied().unwrap_or_default().again_us();
            let queue = self.queues.queues.get(&key);
            let is_starved = queue.is_some_and(|queue| queue.starved);
            // Whether there is something is about to be known.
            if queue.is_some_and(|queue| queue.cold)
                || self.queues.ready.contains(&key)
                || (is_starved && again_us.is_none())
            {
                receive.until_us = now_us + LITTLE_US;
                self.queues.deadlines.insert((receive.until_us, origin));
            } else if is_starved {
                let retry_us = again_us.unwrap_or(0).saturating_sub(now_us);
                let (code, after_ms) = (ErrorCode::Throttled, (retry_us / 1_000 + 1) as u32);
                self.fail_receive(origin, code, code.text(), after_ms);
            } else {
                self.finish_receive(origin, &Filling::default());
            }
        }
    }

    /// Logs watermarks that have only passed over what nobody wants, and gives back what is not used.
    fn sweep_queues(&mut self, now_us: u64) {
        let mut idle = Vec::new();
        for (key, queue) in &self.queues.queues {
            if queue.table.is_ahead_of_log() {
                self.queues.dirty.insert(*key);
            } else if queue.waiting.is_empty()
                && queue.table.is_idle()
                && now_us.saturating_sub(queue.used_us) > IDLE_US
            {
                idle.push(*key);
            }
        }
        for key in idle {
            self.queues.remove_queue(key);
        }
    }

    pub(super) fn turn_ready(&mut self) {
        for _ in 0..SERVED_PER_TURN {
            // Behind the last one, so that each has its turn.
            let behind = self.queues.served.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.queues.ready.range((behind, Bound::Unbounded)).next();
            let Some(key) = next.or_else(|| self.queues.ready.first()).copied() else { return };
            self.queues.ready.remove(&key);
            self.queues.served = Some(key);
            self.serve_queue(key);
            self.file_timer(key);
        }
    }

    /// When the queue has to be looked at though nothing happens.
    pub(super) fn file_timer(&mut self, key: Key) {
        let now_us = self.ring.now().mono_us;
        let Some(queue) = self.queues.queues.get_mut(&key) else { return };
        let timer_us = queue.table.timer_us(now_us, !queue.waiting.is_empty());
        if queue.timer_us == timer_us {
            return;
        }
        if let Some(before) = std::mem::replace(&mut queue.timer_us, timer_us) {
            self.queues.timers.remove(&(before, key));
        }
        if let Some(at) = timer_us {
            self.queues.timers.insert((at, key));
        }
    }

    fn serve_queue(&mut self, key: Key) {
        let Some(extent) = self.shard.extent(key.1) else {
            let code = self.no_such_partition();
            return self.drop_queue(key, code);
        };
        let Some(queue) = self.queues.queues.get_mut(&key) else { return };
        queue.table.advance(extent.start);
        // Each once: those whose connection takes nothing now keep their place.
        for origin in queue.waiting.iter().copied().collect::<Vec<_>>() {
            let Some((_, receive)) = self.queues.receives.get(&origin).copied() else { continue };
            if !self.takes_received(origin) {
                continue;
            }
            let mut filling = Filling::default();
            let filled = self.fill(key, &receive, &mut filling);
            if !filling.leases.is_empty() {
                self.finish_receive(origin, &filling);
                continue;
            }
            let Some(queue) = self.queues.queues.get_mut(&key) else { return };
            match filled {
                Filled::Done => return,
                Filled::Again => {
                    self.queues.ready.insert(key);
                    return;
                }
                Filled::Cold => {
                    queue.cold = true;
                    return;
                }
                Filled::Starved => {
                    queue.starved = true;
                    let rates = queue.rates;
                    self.queues.starving.insert(key.0, rates);
                    return;
                }
                Filled::Failed(code, message) => self.fail_receive(origin, code, &message, 0),
            }
        }
    }

    /// Leases what is at hand, frame by frame.
    fn fill(&mut self, key: Key, receive: &Receiving, filling: &mut Filling) -> Filled {
        let (group, partition) = key;
        let Some(mut queue) = self.queues.queues.remove(&key) else { return Filled::Done };
        let mut purse = self.queues.purse(group);
        self.queues.counter = self.queues.counter.wrapping_add(1);
        let epoch = u64::from(self.shard.log().epoch().0);
        let generation = epoch << 32 | u64::from(self.queues.counter);
        let filled = self.fill_from(partition, &mut queue, &mut purse, generation, receive, filling);
        self.queues.set_purse(group, purse, queue.rates);
        self.queues.queues.insert(key, queue);
        filled
    }

    fn fill_from(
        &mut self,
        partition: PartitionId,
        queue: &mut Queue,
        purse: &mut super::Purse,
        generation: u64,
        receive: &Receiving,
        filling: &mut Filling,
    ) -> Filled {
        let now = self.ring.now();
        let invisible_ms = if receive.invisible_ms == 0 { queue.invisible_ms } else { receive.invisible_ms };
        let invisible_ms = invisible_ms.clamp(1, ringmq_protocol::limits::INVISIBLE_MS_MAX);
        let early = self.options.planted.has(Bug::LeaseEndsEarly);
        let expires_us = now.mono_us + u64::from(invisible_ms) * if early { 500 } else { 1_000 };
        let expires_ms = I64::new(now.wall_ms + i64::from(invisible_ms));
        let (ttl_ms, planted) = (self.ttl_ms(partition), self.options.planted);
        let wants = Wants { filter: &queue.filter, ttl_ms, now_ms: now.wall_ms, planted };
        let (table, rates) = (&mut queue.table, queue.rates);
        let max_bytes = receive.max_bytes as usize;
        for _ in 0..FRAMES_PER_SERVE {
            let room = receive.max_records as usize - filling.leases.len();
            let full = !filling.leases.is_empty() && filling.entries.len() >= max_bytes;
            if room == 0 || full || !table.has_room() {
                return Filled::Done;
            }
            let due = table.due_now(now.mono_us, room);
            let visible = self.shard.extent(partition).map_or(Offset(0), |extent| extent.visible);
            let from = match due.first() {
                Some(offset) => Offset(*offset),
                None if table.next() < visible && table.may_look() => table.next(),
                None => return Filled::Done,
            };
            let mut records_left = purse.records(rates).min(room);
            if records_left == 0 {
                return Filled::Starved;
            }
            let mut bytes_left =
                purse.bytes(rates).min(max_bytes.saturating_sub(filling.entries.len()).max(1));
            let (mut spent, mut broken) = ((0, 0), false);
            let fetched = self.shard.fetch(&self.ring, partition, from, 1, &mut |delivered, bytes| {
                let parsed = Frame::parse(bytes).and_then(|frame| Ok((frame, Payload::parse(&frame)?)));
                let Ok((frame, payload)) = parsed else {
                    broken = true;
                    return;
                };
                let first = delivered.first_record as usize;
                let skip = from.0.saturating_sub(delivered.base_offset.0) as usize;
                let records = payload.entries().enumerate().skip(first).take(delivered.count as usize);
                let mut chosen = Vec::new();
                for (index, record) in records.skip(skip) {
                    let offset = delivered.base_offset.0 + (index - first) as u64;
                    if records_left == 0 || bytes_left == 0 || !table.has_room() {
                        break;
                    }
                    let is_ready = if offset < table.next().0 {
                        due.binary_search(&offset).is_ok()
                    } else {
                        let wanted = wants.wants(delivered, &record);
                        if offset > table.next().0 || !table.may_look() {
                            break;
                        }
                        table.look(wanted, record.key, now.mono_us) == Seen::Ready
                    };
                    if !is_ready {
                        continue;
                    }
                    let attempt = table.lease(offset, generation, expires_us);
                    let handle = LeaseHandle::new(offset, attempt, generation);
                    filling.leases.push(Lease { handle, expires_ms });
                    chosen.push(index as u32);
                    let size = record_size(&record);
                    spent = (spent.0 + 1, spent.1 + size);
                    records_left -= 1;
                    bytes_left = bytes_left.saturating_sub(size.max(1));
                }
                put_chosen(&mut filling.entries, delivered, &frame, &payload, &chosen);
            });
            purse.spend(rates, spent.0, spent.1);
            match fetched {
                Fetched::Limit(_) | Fetched::AtEnd(_) if !broken => {}
                Fetched::Cold(_) => return Filled::Cold,
                Fetched::UnknownPartition | Fetched::OutOfRange { .. } => return Filled::Done,
                Fetched::Damaged { to, .. } | Fetched::Limit(to) | Fetched::AtEnd(to) => {
                    let last = to.0.saturating_sub(1);
                    let message = format!("offsets {from} to {last} are damaged on disk");
                    return Filled::Failed(ErrorCode::Damaged, message);
                }
            }
        }
        Filled::Again
    }

    // -- answers -------------------------------------------------------------------------------------------

    /// Whether the connection, here or at its shard, takes an answer now; if not, it says when.
    fn takes_received(&mut self, origin: Origin) -> bool {
        if origin.shard != self.own {
            return match self.queues.answering.get_mut(&(origin.shard, origin.connection)) {
                Some(line) => {
                    if !line.contains(&origin) {
                        line.push(origin);
                    }
                    false
                }
                None => true,
            };
        }
        if self.queues.receives.get(&origin).is_some_and(|(_, receive)| receive.blocked) {
            return false;
        }
        let Some(connection) = self.connection(origin.connection) else { return false };
        let (backlog, held) = (connection.backlog(), connection.held());
        if backlog < OUT_SOFT && self.budget.grants(origin.connection, held, INPUT_MIN) {
            return true;
        }
        self.block(origin, backlog, held);
        if let Some((_, receive)) = self.queues.receives.get_mut(&origin) {
            receive.blocked = true;
        }
        false
    }

    fn finish_receive(&mut self, origin: Origin, filling: &Filling) {
        let Some((key, receive)) = self.queues.take_receive(origin) else { return };
        let extent = self.shard.extent(key.1);
        let (log_start, visible_end) = extent.map_or((0, 0), |extent| (extent.start.0, extent.visible.0));
        let received = Received { log_start, visible_end, leases: &filling.leases };
        let mut out = Vec::new();
        received.encode(receive.correlation, receive.handle, &filling.entries, 0, &mut out);
        self.stats.bytes_served += filling.entries.len() as u64;
        self.deliver_received(origin, &out);
    }

    fn deliver_received(&mut self, origin: Origin, message: &[u8]) {
        if origin.shard != self.own {
            self.queues.answering.entry((origin.shard, origin.connection)).or_default();
            let (from, bytes) = (self.own, message.to_vec());
            self.reply(origin, Answer::Delivered { from, bytes, again: false, is_last: true });
            return;
        }
        if let Some(connection) = self.connection(origin.connection) {
            connection.out.extend_from_slice(message);
            connection.in_flight = connection.in_flight.saturating_sub(1);
            self.recharge(origin.connection);
            self.touched.push(origin.connection.slot);
        }
    }

    /// Looks again at what could not be buried.
    pub(super) fn bury_again_at(&self) -> u64 {
        self.ring.now().mono_us + BURY_AGAIN_US
    }
}

#[cfg(test)]
mod tests {
    use super::pause_left_us;

    #[test]
    fn a_clock_that_was_set_back_makes_no_pause_longer() {
        let backoff_ms = [10, 700, 100];
        assert_eq!(pause_left_us(1_000, 400, &backoff_ms), 600_000);
        assert_eq!(pause_left_us(1_000, 2_000, &backoff_ms), 0, "it is over");
        assert_eq!(pause_left_us(86_400_000, 0, &backoff_ms), 700_000, "a day back");
        assert_eq!(pause_left_us(i64::MAX, i64::MIN, &[]), 0);
    }
}
