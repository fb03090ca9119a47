//! Fetches and subscriptions: who reads which partition, from where, and what each waits for.
//!
//! States  ready -[serve]-> waiting (nothing visible) | cold (pages on the way) | broke (no credit)
//!                        | blocked (the connection's output is full) | gone (a fetch was answered, or it failed)
//!         waiting -[partition moved | fetch deadline]-> ready      cold -[page came]-> ready
//!         broke -[credit]-> ready                                  blocked -[output drained]-> ready
//! A reader lives at the shard that owns its partition; its connection may be at another.

use super::ShardServer;
use super::connection::{INPUT_MIN, OUT_SOFT};
use super::mail::{Answer, ConnectionKey, Origin, ReadKind, Work};
use super::requests::{FETCH_TAG, end_subscription};
use ringmq_engine::shard::Fetched;
use ringmq_format::{Offset, PartitionId};
use ringmq_protocol::fetch::{fetch_begin, fetch_end, put_entry};
use ringmq_protocol::response::ErrorBody;
use ringmq_protocol::{ErrorCode, FetchEntryHeader, FetchFields, Op};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes of one PUSH, before the frame that may overshoot.
const PUSH_BYTES: usize = 256 << 10;
/// Readers served in one turn, so that acknowledgements never wait long.
const SERVED_PER_TURN: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Waiting,
    Cold,
    Broke,
    Blocked,
}

#[derive(Debug)]
struct Reader {
    partition: PartitionId,
    next: Offset,
    kind: ReadKind,
    state: State,
    /// Of a fetch that waits.
    until_us: Option<u64>,
}

/// All readers of a shard's partitions. Ordered maps: iteration must not depend on chance.
#[derive(Debug, Default)]
pub(super) struct Readers {
    readers: BTreeMap<Origin, Reader>,
    ready: VecDeque<Origin>,
    waiting: BTreeMap<PartitionId, BTreeSet<Origin>>,
    cold: Vec<Origin>,
    deadlines: BTreeSet<(u64, Origin)>,
    /// Other work that waits for a page.
    parked: Vec<(Origin, Work)>,
    /// Connections of other shards to which a fetch's answer is on its way, and the fetches that wait until it has
    /// left: answers that nobody takes must not pile up there.
    answering: BTreeMap<(u16, ConnectionKey), Vec<Origin>>,
}

impl Readers {
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Everything that is kept for somebody.
    pub(super) fn count(&self) -> usize {
        let waiting: usize = self.waiting.values().map(BTreeSet::len).sum();
        self.readers.len().max(waiting).max(self.deadlines.len()) + self.parked.len()
    }

    /// Work that cannot be done before a page has come.
    pub(super) fn park(&mut self, origin: Origin, work: Work) {
        self.parked.push((origin, work));
    }

    pub(super) fn take_parked(&mut self) -> Vec<(Origin, Work)> {
        std::mem::take(&mut self.parked)
    }

    fn make_ready(&mut self, origin: Origin) {
        if let Some(reader) = self.readers.get_mut(&origin)
            && reader.state != State::Ready
        {
            reader.state = State::Ready;
            self.ready.push_back(origin);
        }
    }

    pub(super) fn add_credit(&mut self, origin: Origin, bytes: u64) {
        let Some(reader) = self.readers.get_mut(&origin) else { return };
        if let ReadKind::Push { credit, .. } = &mut reader.kind {
            *credit = credit.saturating_add(bytes).min(ringmq_protocol::limits::CREDIT_MAX);
        }
        if reader.state == State::Broke {
            self.make_ready(origin);
        }
    }

    pub(super) fn go(&mut self, origin: Origin) {
        if origin.tag >= FETCH_TAG {
            for next in self.answering.remove(&(origin.shard, origin.connection)).unwrap_or_default() {
                self.make_ready(next);
            }
        }
        if self.readers.get(&origin).is_some_and(|reader| reader.state == State::Blocked) {
            self.make_ready(origin);
        }
    }

    pub(super) fn remove(&mut self, origin: Origin) {
        let Some(reader) = self.readers.remove(&origin) else { return };
        if reader.state == State::Waiting {
            self.leave(reader.partition, origin);
        }
        if let Some(until) = reader.until_us {
            self.deadlines.remove(&(until, origin));
        }
    }

    fn leave(&mut self, partition: PartitionId, origin: Origin) {
        if let Some(set) = self.waiting.get_mut(&partition) {
            set.remove(&origin);
            if set.is_empty() {
                self.waiting.remove(&partition);
            }
        }
    }

    pub(super) fn remove_connection(&mut self, shard: u16, connection: ConnectionKey) {
        let first = Origin { shard, connection, tag: 0 };
        let last = Origin { shard, connection, tag: u64::MAX };
        let gone: Vec<_> = self.readers.range(first..=last).map(|(origin, _)| *origin).collect();
        gone.into_iter().for_each(|origin| self.remove(origin));
        self.parked.retain(|(origin, _)| origin.shard != shard || origin.connection != connection);
        self.answering.remove(&(shard, connection));
    }

    /// Readers of a partition of which more is visible.
    pub(super) fn wake_partition(&mut self, partition: PartitionId) {
        for origin in self.waiting.remove(&partition).unwrap_or_default() {
            self.make_ready(origin);
        }
    }

    fn wake_cold(&mut self) {
        for origin in std::mem::take(&mut self.cold) {
            if self.readers.get(&origin).is_some_and(|reader| reader.state == State::Cold) {
                self.make_ready(origin);
            }
        }
    }

    fn wake_expired(&mut self, now_us: u64) {
        while let Some((until, origin)) = self.deadlines.pop_first() {
            if until > now_us {
                self.deadlines.insert((until, origin));
                return;
            }
            if let Some(reader) = self.readers.get(&origin) {
                self.leave(reader.partition, origin);
            }
            self.make_ready(origin);
        }
    }
}

/// What serving a reader has come to.
enum Served {
    /// More may be at hand.
    Again,
    /// In the output, which is full.
    Blocked,
    /// Nothing visible.
    Nothing,
    Cold,
    Broke,
    /// Answered or failed.
    Gone,
}

impl ShardServer {
    pub(super) fn open_reader(
        &mut self,
        origin: Origin,
        partition: PartitionId,
        offset: Offset,
        kind: ReadKind,
    ) {
        let until_us = match kind {
            ReadKind::Fetch { wait_ms, .. } => Some(self.ring.now().mono_us + u64::from(wait_ms) * 1000),
            ReadKind::Push { .. } => None,
        };
        let reader = Reader { partition, next: offset, kind, state: State::Blocked, until_us };
        self.readers.readers.insert(origin, reader);
        self.readers.make_ready(origin);
    }

    /// Answers a SUBSCRIBE and begins to deliver.
    pub(super) fn open_subscription(
        &mut self,
        origin: Origin,
        partition: PartitionId,
        offset: Offset,
        kind: ReadKind,
        pending: u32,
    ) {
        let bounds = self.bounds(partition);
        if bounds.is_ok_and(|(start, visible)| (start..=visible).contains(&offset)) {
            self.open_reader(origin, partition, offset, kind);
        }
        let asked = Origin { tag: u64::from(pending), ..origin };
        self.reply(asked, Answer::Bounds(bounds));
    }

    pub(super) fn turn_readers(&mut self) {
        let mut moved = std::mem::take(&mut self.moved);
        self.shard.take_moved(&mut moved);
        for partition in moved.drain(..) {
            self.readers.wake_partition(partition);
        }
        self.moved = moved;
        if self.shard.take_cold_progress() {
            self.readers.wake_cold();
            for (origin, work) in self.readers.take_parked() {
                self.execute(origin, work);
            }
        }
        self.readers.wake_expired(self.ring.now().mono_us);
        for _ in 0..SERVED_PER_TURN {
            let Some(origin) = self.readers.ready.pop_front() else { return };
            let Some(reader) = self.readers.readers.remove(&origin) else { continue };
            self.serve(origin, reader);
        }
    }

    fn serve(&mut self, origin: Origin, mut reader: Reader) {
        let served = self.serve_once(origin, &mut reader);
        let partition = reader.partition;
        let until_us = reader.until_us;
        reader.state = match served {
            Served::Gone => {
                if let Some(until) = until_us {
                    self.readers.deadlines.remove(&(until, origin));
                }
                return;
            }
            Served::Again => State::Ready,
            Served::Blocked => State::Blocked,
            Served::Nothing => State::Waiting,
            Served::Cold => State::Cold,
            Served::Broke => State::Broke,
        };
        match reader.state {
            State::Ready => self.readers.ready.push_back(origin),
            State::Waiting => {
                self.readers.waiting.entry(partition).or_default().insert(origin);
                if let Some(until) = until_us {
                    self.readers.deadlines.insert((until, origin));
                }
            }
            State::Cold => self.readers.cold.push(origin),
            State::Broke | State::Blocked => {}
        }
        self.readers.readers.insert(origin, reader);
    }

    fn serve_once(&mut self, origin: Origin, reader: &mut Reader) -> Served {
        let (op, correlation, handle, max_bytes) = match reader.kind {
            ReadKind::Fetch { correlation, handle, max_bytes, .. } => {
                (Op::Fetch, correlation, handle, max_bytes as usize)
            }
            ReadKind::Push { credit: 0, .. } => return Served::Broke,
            ReadKind::Push { subscription, credit } => {
                (Op::Push, 0, subscription, PUSH_BYTES.min(credit as usize))
            }
        };
        let is_local = origin.shard == self.own;
        // Straight into the connection's output where it is here; as a message where it is not.
        if !is_local
            && op == Op::Fetch
            && let Some(queue) = self.readers.answering.get_mut(&(origin.shard, origin.connection))
        {
            queue.push(origin);
            return Served::Blocked;
        }
        let mut out = match (is_local, self.connection(origin.connection)) {
            (false, _) => Vec::new(),
            (true, None) => return Served::Gone,
            (true, Some(connection)) => {
                let is_push = op == Op::Push;
                let known = connection.subscriptions.get(&handle);
                if is_push && known.is_none_or(|known| known.tag != origin.tag) {
                    return Served::Gone;
                }
                let (backlog, held) = (connection.backlog(), connection.held());
                if backlog >= OUT_SOFT || !self.budget.grants(origin.connection, held, INPUT_MIN) {
                    self.block(origin, backlog, held);
                    return Served::Blocked;
                }
                match self.connection(origin.connection) {
                    Some(connection) => std::mem::take(&mut connection.out),
                    None => return Served::Gone,
                }
            }
        };
        let start = fetch_begin(&mut out);
        let before = out.len();
        let fetched =
            self.shard.fetch(&self.ring, reader.partition, reader.next, max_bytes, &mut |entry, frame| {
                let (offset, time) = (entry.base_offset.0, entry.visible_time);
                put_entry(&mut out, &FetchEntryHeader::new(offset, time, entry.first_record, entry.count));
                out.extend_from_slice(frame);
            });
        let bytes = out.len() - before;
        let expired = reader.until_us.is_some_and(|until| self.ring.now().mono_us >= until);
        let mut is_last = op == Op::Fetch;
        let served = match fetched {
            Fetched::Limit(next) | Fetched::AtEnd(next) | Fetched::Cold(next) if bytes > 0 => {
                reader.next = next;
                self.end_entries(&mut out, start, op, correlation, handle, reader);
                if let ReadKind::Push { credit, .. } = &mut reader.kind {
                    *credit = credit.saturating_sub(bytes as u64);
                }
                self.stats.bytes_served += bytes as u64;
                self.count_read(reader.partition, bytes);
                if is_last { Served::Gone } else { Served::Again }
            }
            Fetched::AtEnd(_) if op == Op::Fetch && expired => {
                self.end_entries(&mut out, start, op, correlation, handle, reader);
                Served::Gone
            }
            Fetched::AtEnd(_) | Fetched::Limit(_) => {
                out.truncate(start);
                is_last = false;
                Served::Nothing
            }
            Fetched::Cold(_) => {
                out.truncate(start);
                is_last = false;
                Served::Cold
            }
            Fetched::OutOfRange { start: first, visible } => {
                out.truncate(start);
                let message = format!(
                    "offset {} is not between the log's start {first} and its end {visible}",
                    reader.next
                );
                let body = ErrorBody {
                    code: ErrorCode::OffsetOutOfRange as u16,
                    retry_after_ms: 0,
                    message: &message,
                };
                body.encode(op as u8, correlation, handle, &mut out);
                Served::Gone
            }
            Fetched::Damaged { from, to } => {
                out.truncate(start);
                let message = format!("offsets {from} to {} are damaged on disk", to.0.saturating_sub(1));
                let body =
                    ErrorBody { code: ErrorCode::Damaged as u16, retry_after_ms: 0, message: &message };
                body.encode(op as u8, correlation, handle, &mut out);
                Served::Gone
            }
            Fetched::UnknownPartition => {
                out.truncate(start);
                let code = self.no_such_partition();
                let body = ErrorBody { code: code as u16, retry_after_ms: 0, message: code.text() };
                body.encode(op as u8, correlation, handle, &mut out);
                Served::Gone
            }
        };
        self.hand_over(origin, out, is_last, served)
    }

    /// Has a reader of this shard wait until the output of its connection has drained, or until there is memory.
    fn block(&mut self, origin: Origin, backlog: usize, held: usize) {
        if let Some(connection) = self.connection(origin.connection) {
            connection.blocked.push((origin.shard, origin.tag));
        }
        if backlog == 0 {
            self.budget.starve(held, origin.connection.slot);
        }
    }

    fn end_entries(
        &self,
        out: &mut [u8],
        start: usize,
        op: Op,
        correlation: u64,
        handle: u32,
        reader: &Reader,
    ) {
        let extent = self.shard.extent(reader.partition);
        let (log_start, visible) = extent.map_or((0, 0), |extent| (extent.start.0, extent.visible.0));
        let fields = FetchFields::new(log_start, visible, reader.next.0);
        fetch_end(out, start, op, correlation, handle, &fields, 0);
    }

    /// Gives the bytes to the connection, here or at its shard.
    fn hand_over(&mut self, origin: Origin, out: Vec<u8>, is_last: bool, served: Served) -> Served {
        if origin.shard != self.own {
            if out.is_empty() {
                return served;
            }
            // One message at a time: the other shard says when its connection has room for the next.
            let again = matches!(served, Served::Again);
            if is_last {
                self.readers.answering.entry((origin.shard, origin.connection)).or_default();
            }
            self.reply(origin, Answer::Delivered { from: self.own, bytes: out, again, is_last });
            return if again { Served::Blocked } else { served };
        }
        let is_push = origin.tag < FETCH_TAG;
        let gone = matches!(served, Served::Gone);
        if let Some(connection) = self.connection(origin.connection) {
            connection.out = out;
            if is_last {
                connection.in_flight = connection.in_flight.saturating_sub(1);
            }
            if is_push && gone {
                end_subscription(connection, origin.tag as u32, origin.tag);
            }
            self.recharge(origin.connection);
            self.touched.push(origin.connection.slot);
        }
        served
    }
}
