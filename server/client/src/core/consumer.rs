//! Reading partitions: where each stands, what it may still be sent, and whether what came is what was stored.
//!
//! Invariants  R1  position <= received: everything below `position` was handed to the caller, everything between
//!                 the two is buffered here and checked.
//!             R2  Granted and unused credit plus buffered bytes stay within the partition's credit, but for one
//!                 frame that the server may send beyond it.
//!             R3  A subscription starts at `received`, so nothing is read twice and nothing is skipped.
//! States      of a partition: unresolved -(resolved)-> waiting -(subscribe)-> asked -(answered)-> live;
//!             a loss leads back to waiting, an error that lasts to halted, and `seek` out of it
//! Ignorant of connections: what a shell should do comes out as actions, numbered by attempt so that what an
//! earlier attempt brings too late is told apart.

use super::decode::{ConsumedRecord, ReceiveError, check_entry, decode_frame};
use super::{Random, Refused, backoff_us};
use bytes::Bytes;
use ringmq_format::PartitionId;
use ringmq_protocol::{Bounds, ErrorCode, FetchEntryHeader, FetchFields, OffsetSpec, Retry, entries};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Attempts to read the same place that bring damaged bytes before the caller is told.
const DAMAGE_ATTEMPTS_MAX: u32 = 3;

/// How partitions are read.
#[derive(Clone, Debug)]
pub struct ConsumerCoreConfig {
    /// Bytes that each partition may have on the way or buffered.
    pub credit: u64,
    /// How long one partition may fail before the caller is told.
    pub retry_for_us: u64,
    /// What to do when the next offset is not in the log any more.
    pub out_of_range: OutOfRange,
    /// For a consumer group: what comes may leave records out, and may be a part of a frame.
    pub filtered: bool,
    /// Seeds the jitter of pauses.
    pub seed: u64,
}

/// What to do when the next offset is not in the log any more, or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OutOfRange {
    /// Tell the caller, who may `seek`. Nothing is skipped in silence.
    #[default]
    Fail,
    /// Go on with the first record that is there.
    Earliest,
    /// Go on with the next record that comes.
    Latest,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for an offset and call [`ConsumerCore::resolved`].
    Resolve {
        /// The partition.
        partition: u32,
        /// To be given back.
        attempt: u64,
        /// Which offset.
        what: OffsetSpec,
    },
    /// Subscribe and call [`ConsumerCore::subscribed`].
    Subscribe {
        /// The partition.
        partition: u32,
        /// To be given back with everything that this subscription brings.
        attempt: u64,
        /// From here.
        offset: u64,
        /// With this much credit.
        credit: u64,
    },
    /// Add to a subscription's credit.
    Credit {
        /// The partition.
        partition: u32,
        /// That of the subscription.
        attempt: u64,
        /// This much.
        bytes: u64,
    },
    /// End a subscription.
    Unsubscribe {
        /// The partition.
        partition: u32,
        /// That of the subscription.
        attempt: u64,
    },
}

/// Why a partition is not read any further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// The server refuses.
    Refused(Refused),
    /// The next offset is not in the log.
    OutOfRange {
        /// First offset that is there, as far as known.
        log_start: u64,
    },
    /// What comes is damaged, again and again.
    Received(ReceiveError),
    /// It could not be reached for as long as `retry_for` says.
    Unreachable,
}

/// What the caller gets next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Records were appended.
    Records,
    /// This partition is halted until `seek`.
    Halted {
        /// The partition.
        partition: u32,
        /// Its next offset.
        position: u64,
        /// Why.
        halt: Halt,
    },
    /// Nothing is here.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unresolved(OffsetSpec),
    Waiting,
    Asked,
    Live,
    Halted,
}

#[derive(Debug)]
struct Reader {
    id: PartitionId,
    state: State,
    /// A resolution is on its way.
    resolving: bool,
    position: u64,
    received: u64,
    /// Frames of this partition in `ready`, in bytes of entries.
    buffered: u64,
    /// Consumed and not yet given back.
    owed: u64,
    attempt: u64,
    retries: u32,
    failing_since_us: Option<u64>,
    damaged: u32,
    bounds: Option<Bounds>,
    /// Started at the earliest record and has delivered nothing: retention may overtake it without a loss.
    earliest: bool,
}

impl Reader {
    fn new(id: PartitionId, state: State, position: u64) -> Self {
        Self {
            id,
            state,
            resolving: false,
            position,
            received: position,
            buffered: 0,
            owed: 0,
            attempt: 0,
            retries: 0,
            failing_since_us: None,
            damaged: 0,
            bounds: None,
            earliest: false,
        }
    }
}

#[derive(Debug)]
enum Ready {
    Frame { partition: u32, entry: FetchEntryHeader, frame: Bytes, size: u64 },
    Halted { partition: u32, halt: Halt },
}

/// The state machine.
#[derive(Debug)]
pub struct ConsumerCore {
    config: ConsumerCoreConfig,
    readers: BTreeMap<u32, Reader>,
    ready: VecDeque<Ready>,
    actions: VecDeque<Action>,
    /// When, and which partition, has something to ask. An entry that its partition has outlived does nothing.
    todo: BTreeSet<(u64, u32)>,
    random: Random,
    next_attempt: u64,
}

impl ConsumerCore {
    /// Reads these partitions (index and id) from `start`.
    pub fn new(
        config: ConsumerCoreConfig,
        partitions: impl IntoIterator<Item = (u32, PartitionId)>,
        start: Start,
    ) -> Self {
        let (state, position) = match start {
            Start::Offset(offset) => (State::Waiting, offset),
            Start::Earliest => (State::Unresolved(OffsetSpec::Earliest), 0),
            Start::Latest => (State::Unresolved(OffsetSpec::Latest), 0),
            Start::TimeMs(time) => (State::Unresolved(OffsetSpec::Time(time)), 0),
        };
        let earliest = start == Start::Earliest;
        let reader = |id| Reader { earliest, ..Reader::new(id, state, position) };
        let readers: BTreeMap<_, _> = partitions.into_iter().map(|(index, id)| (index, reader(id))).collect();
        Self {
            random: Random::new(config.seed),
            todo: readers.keys().map(|partition| (0, *partition)).collect(),
            readers,
            ready: VecDeque::new(),
            actions: VecDeque::new(),
            next_attempt: 1,
            config,
        }
    }

    /// Reads one more partition, from an offset on.
    pub fn add(&mut self, partition: u32, id: PartitionId, offset: u64) {
        self.remove(partition);
        self.readers.insert(partition, Reader::new(id, State::Waiting, offset));
        self.todo.insert((0, partition));
    }

    /// Reads a partition no longer; what is buffered of it is dropped.
    pub fn remove(&mut self, partition: u32) {
        self.drop_ready(partition);
        let Some(reader) = self.readers.remove(&partition) else { return };
        if matches!(reader.state, State::Live | State::Asked) {
            self.actions.push_back(Action::Unsubscribe { partition, attempt: reader.attempt });
        }
    }

    /// The next thing to do. Call until it answers `None`, after anything else was called.
    pub fn next_action(&mut self, now_us: u64) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        loop {
            let due = *self.todo.first().filter(|due| due.0 <= now_us)?;
            self.todo.remove(&due);
            let action = self.due_action(due.1);
            if action.is_some() {
                return action;
            }
        }
    }

    fn due_action(&mut self, partition: u32) -> Option<Action> {
        let reader = self.readers.get_mut(&partition)?;
        let attempt = self.next_attempt;
        match reader.state {
            State::Unresolved(what) if !reader.resolving => {
                reader.resolving = true;
                reader.attempt = attempt;
                self.next_attempt += 1;
                Some(Action::Resolve { partition, attempt, what })
            }
            State::Waiting => {
                reader.state = State::Asked;
                reader.attempt = attempt;
                self.next_attempt += 1;
                reader.owed = 0;
                let credit = self.config.credit.saturating_sub(reader.buffered).max(1); // R2
                Some(Action::Subscribe { partition, attempt, offset: reader.received, credit }) // R3
            }
            _ => None,
        }
    }

    /// When `next_action` will have something although nothing else happened.
    pub fn deadline_us(&self) -> u64 {
        self.todo.first().map_or(u64::MAX, |due| due.0)
    }

    fn current(&mut self, partition: u32, attempt: u64) -> Option<&mut Reader> {
        self.readers
            .get_mut(&partition)
            .filter(|reader| reader.attempt == attempt && reader.state != State::Halted)
    }

    /// The offset that [`Action::Resolve`] asked for.
    pub fn resolved(&mut self, partition: u32, attempt: u64, offset: u64) {
        let Some(reader) = self.current(partition, attempt) else { return };
        if let State::Unresolved(_) = reader.state {
            reader.state = State::Waiting;
            reader.resolving = false;
            reader.received = offset;
            // What was received before is still delivered first (R1).
            if reader.buffered == 0 {
                reader.position = offset;
            }
            self.todo.insert((0, partition));
        }
    }

    /// [`Action::Subscribe`] was done.
    pub fn subscribed(&mut self, partition: u32, attempt: u64, bounds: Bounds) {
        let Some(reader) = self.current(partition, attempt) else { return };
        if reader.state == State::Asked {
            reader.state = State::Live;
        }
        reader.bounds.get_or_insert(bounds);
        reader.failing_since_us = None;
        reader.retries = 0;
    }

    /// Entries of a subscription came.
    pub fn pushed(&mut self, now_us: u64, partition: u32, attempt: u64, fields: &FetchFields, bytes: &Bytes) {
        let filtered = self.config.filtered;
        let Some(reader) = self.current(partition, attempt) else { return };
        let mut checked = Vec::new();
        match check(reader, fields, bytes, filtered, &mut checked) {
            Ok(received) => {
                reader.received = received;
                reader.damaged = 0;
                reader.buffered += checked.iter().map(|frame| frame.2).sum::<u64>();
                if checked.is_empty() && reader.buffered == 0 {
                    reader.position = reader.position.max(received); // All of it was left out.
                }
                for (entry, frame, size) in checked {
                    self.ready.push_back(Ready::Frame { partition, entry, frame, size });
                }
            }
            Err(error) => {
                reader.damaged += 1;
                let halts = reader.damaged >= DAMAGE_ATTEMPTS_MAX;
                self.actions.push_back(Action::Unsubscribe { partition, attempt });
                if halts {
                    self.halt(partition, Halt::Received(error));
                } else {
                    self.retry(now_us, partition, 0);
                }
            }
        }
    }

    /// The server refused what `attempt` asked, or ended its subscription.
    pub fn refused(&mut self, now_us: u64, partition: u32, attempt: u64, refused: Refused) {
        let policy = self.config.out_of_range;
        let Some(reader) = self.current(partition, attempt) else { return };
        if refused.code() == Some(ErrorCode::OffsetOutOfRange) {
            let what = match policy {
                _ if reader.earliest => OffsetSpec::Earliest,
                OutOfRange::Earliest => OffsetSpec::Earliest,
                OutOfRange::Latest => OffsetSpec::Latest,
                OutOfRange::Fail => {
                    let log_start = reader.bounds.map_or(0, |bounds| bounds.log_start);
                    return self.halt(partition, Halt::OutOfRange { log_start });
                }
            };
            reader.state = State::Unresolved(what);
            reader.resolving = false;
            return self.retry(now_us, partition, refused.retry_after_ms);
        }
        if refused.retry() == Retry::No {
            return self.halt(partition, Halt::Refused(refused));
        }
        self.retry(now_us, partition, refused.retry_after_ms);
    }

    /// The connection of `attempt` is gone, or could not be made.
    pub fn lost(&mut self, now_us: u64, partition: u32, attempt: u64) {
        if self.current(partition, attempt).is_some() {
            self.retry(now_us, partition, 0);
        }
    }

    fn retry(&mut self, now_us: u64, partition: u32, retry_after_ms: u32) {
        let Some(reader) = self.readers.get_mut(&partition) else { return };
        let since = *reader.failing_since_us.get_or_insert(now_us);
        if now_us - since > self.config.retry_for_us {
            return self.halt(partition, Halt::Unreachable);
        }
        reader.resolving = false;
        if !matches!(reader.state, State::Unresolved(_)) {
            reader.state = State::Waiting;
        }
        reader.attempt = 0;
        let pause_us = backoff_us(reader.retries, retry_after_ms, &mut self.random);
        reader.retries += 1;
        self.todo.insert((now_us + pause_us, partition));
    }

    fn halt(&mut self, partition: u32, halt: Halt) {
        if let Some(reader) = self.readers.get_mut(&partition) {
            reader.state = State::Halted;
            reader.resolving = false;
            self.ready.push_back(Ready::Halted { partition, halt });
        }
    }

    /// Appends the records of the next frame to `out`.
    pub fn take(&mut self, out: &mut VecDeque<ConsumedRecord>) -> Next {
        loop {
            match self.ready.pop_front() {
                None => return Next::Nothing,
                Some(Ready::Halted { partition, halt }) => {
                    let position = self.readers.get(&partition).map_or(0, |reader| reader.position);
                    return Next::Halted { partition, position, halt };
                }
                Some(Ready::Frame { partition, entry, frame, size }) => {
                    let Some(reader) = self.readers.get_mut(&partition) else { continue };
                    let position = reader.position;
                    if let Err(error) = decode_frame(partition, &entry, &frame, position, out) {
                        // Checksums held, so what was stored is wrong: trying again brings the same.
                        self.drop_ready(partition);
                        self.halt(partition, Halt::Received(error));
                        continue;
                    }
                    assert!(reader.buffered >= size, "{} bytes buffered, {size} taken", reader.buffered); // R2
                    reader.buffered -= size;
                    reader.owed += size;
                    reader.position = entry.end_offset().max(position);
                    if reader.buffered == 0 {
                        reader.position = reader.position.max(reader.received);
                    }
                    reader.earliest = false;
                    if reader.state == State::Live && reader.owed * 4 >= self.config.credit {
                        let (attempt, bytes) = (reader.attempt, std::mem::take(&mut reader.owed));
                        self.actions.push_back(Action::Credit { partition, attempt, bytes });
                    }
                    return Next::Records;
                }
            }
        }
    }

    fn drop_ready(&mut self, partition: u32) {
        self.ready.retain(|ready| match ready {
            Ready::Frame { partition: other, .. } | Ready::Halted { partition: other, .. } => {
                *other != partition
            }
        });
        if let Some(reader) = self.readers.get_mut(&partition) {
            reader.buffered = 0;
        }
    }

    /// Goes on at `offset`, whatever the partition did before. Answers whether it is read here at all.
    pub fn seek(&mut self, partition: u32, offset: u64) -> bool {
        self.drop_ready(partition);
        let Some(reader) = self.readers.get_mut(&partition) else { return false };
        if matches!(reader.state, State::Live | State::Asked) {
            self.actions.push_back(Action::Unsubscribe { partition, attempt: reader.attempt });
        }
        reader.state = State::Waiting;
        reader.resolving = false;
        reader.attempt = 0;
        reader.position = offset;
        reader.received = offset;
        reader.retries = 0;
        reader.failing_since_us = None;
        reader.damaged = 0;
        reader.earliest = false;
        self.todo.insert((0, partition));
        true
    }

    /// A frame can be taken without anything happening before.
    pub fn has_frame(&self) -> bool {
        matches!(self.ready.front(), Some(Ready::Frame { .. }))
    }

    /// The next offset that the caller will get from a partition; `None` until it is known.
    pub fn position(&self, partition: u32) -> Option<u64> {
        let reader = self.readers.get(&partition)?;
        let known = !matches!(reader.state, State::Unresolved(_)) || reader.position > 0;
        known.then_some(reader.position)
    }

    /// All partitions with their positions.
    pub fn positions(&self) -> impl Iterator<Item = (u32, Option<u64>)> {
        self.readers.keys().map(|partition| (*partition, self.position(*partition)))
    }

    /// What each partition held when it was first subscribed to.
    pub fn bounds(&self) -> impl Iterator<Item = (u32, Option<Bounds>)> {
        self.readers.iter().map(|(partition, reader)| (*partition, reader.bounds))
    }

    /// Partitions that are halted.
    pub fn halted(&self) -> usize {
        self.readers.values().filter(|reader| reader.state == State::Halted).count()
    }
}

/// Where reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Start {
    /// The first record that is there.
    #[default]
    Earliest,
    /// The next record that comes.
    Latest,
    /// This offset, in every partition.
    Offset(u64),
    /// The first record appended at or after this time, Unix milliseconds.
    TimeMs(i64),
}

type Checked = Vec<(FetchEntryHeader, Bytes, u64)>;

/// Checks everything before anything is kept; answers the next expected offset.
fn check(
    reader: &Reader,
    fields: &FetchFields,
    bytes: &Bytes,
    filtered: bool,
    checked: &mut Checked,
) -> Result<u64, ReceiveError> {
    let mut expected = reader.received;
    for entry in entries(bytes) {
        let entry = entry?;
        let found = entry.header.base_offset.get();
        // Behind a filter what is missing was left out.
        let next = if filtered { expected.max(found) } else { expected };
        check_entry(&entry, reader.id, next)?;
        if entry.header.end_offset() <= expected {
            continue;
        }
        expected = entry.header.end_offset();
        let shared = entry.header.is_in_same_frame();
        let frame_len = if shared { 0 } else { entry.frame.bytes.len() };
        let size = (size_of::<FetchEntryHeader>() + frame_len) as u64;
        checked.push((*entry.header, bytes.slice_ref(entry.frame.bytes), size));
    }
    let next = fields.next_offset.get();
    if filtered && next >= expected {
        return Ok(next);
    }
    if !bytes.is_empty() && next != expected {
        return Err(ReceiveError::Gap { expected, found: next });
    }
    Ok(expected)
}

#[cfg(test)]
mod tests;
