//! One shard's thread: its ring, its storage, its connections, and the work between the three.
//!
//! ```text
//! wait -> completions -> parse and append -> mail -> storage turn -> acks, readers -> sends -> (wait)
//! ```
//!
//! Invariants  S1  An answer that says "stored" leaves after `durable` has passed the frame.
//!             S2  A connection that meets a bound is not read; nothing that was admitted is dropped.
//!             S3  Everything here is decided by completions, mail and the ring's clock: the simulator drives the
//!                 same code.
//! Rooms: `connection` bytes, `handles` partitions by number, `requests` what they mean, `readers` fetches and subscriptions, `topics` the
//! catalogue over all shards, `mail` what shards say to each other, `mailbox` the queues between them.

mod budget;
mod connection;
mod groups;
mod handles;
mod late;
mod mail;
pub mod mailbox;
mod queues;
mod readers;
mod requests;
mod topics;

use crate::limits::DESCRIPTORS_KEPT;
use crate::planted::Planted;
use budget::Budget;
use connection::{Connection, INPUT_MIN, Life, OUT_SOFT, Pending, room};
use groups::GroupState;
pub use late::{LateOptions, Timings};
use late::{LateState, NotAppended};
use mail::{Answer, ConnectionKey, Mail, Origin, Work};
use mailbox::Mailboxes;
use queues::QueueState;
use readers::Readers;
use ringmq_engine::log::room::FOREIGN;
use ringmq_engine::ring::{Completion, Errno, Op, Ring, SocketId, Token};
use ringmq_engine::shard::{AppendError, Shard};
use ringmq_format::{Lsn, Offset, PartitionId};
use ringmq_protocol::limits::{IDLE_TIME_MS, MESSAGE_TIME_MS, PRE_HELLO_TIME_MS};
use ringmq_protocol::{ErrorCode, ProduceOutcome};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use topics::{TopicState, Topics};

/// Completions taken in one turn.
const COMPLETIONS_PER_TURN: usize = 512;
/// How often connections are looked at for age.
const SWEEP_PERIOD_US: u64 = 1_000_000;
/// How long a peer may leave its last answers where they are: from the last byte that it took.
const FINISH_TIME_US: u64 = 5_000_000;
/// How long a peer may take none of what is sent to it, and how long when memory is short: others wait for it.
const UNTAKEN_US: u64 = 30_000_000;
const UNTAKEN_PRESSED_US: u64 = 5_000_000;
/// How long input is thrown away for a peer that does not finish, and how much.
const LINGER_TIME_US: u64 = 1_000_000;
const LINGER_BYTES_MAX: usize = 16 << 20;
/// How long a drain waits for clients to take their answers.
const DRAIN_GRACE_US: u64 = 2_000_000;
/// How long accepting pauses when there are no descriptors.
const ACCEPT_PAUSE_US: u64 = 100_000;

/// What a shard's server is made with.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Topics appear when they are first asked for.
    pub auto_create_topics: bool,
    /// Connections of all shards of the node.
    pub connections_max: usize,
    /// Connections of all shards now.
    pub connections: Arc<AtomicUsize>,
    /// Descriptors that the process may have.
    pub descriptors_max: usize,
    /// Bytes that this shard may hold for its connections.
    pub connection_memory: usize,
    /// Port of each shard.
    pub shard_ports: Vec<u16>,
    /// Largest frame that is taken.
    pub frame_size_max: u32,
    /// Name of the data directory.
    pub node_id: u128,
    /// Transactions and delays.
    pub late: LateOptions,
    /// A bug planted by a test.
    pub planted: Planted,
}

/// An answer that waits for the disk.
#[derive(Debug)]
struct Ack {
    durable_at: Lsn,
    target: AckTarget,
}

#[derive(Debug)]
enum AckTarget {
    /// The local frames of a PRODUCE.
    Produce { connection: ConnectionKey, pending: u32 },
    /// A frame that another shard sent.
    Remote { origin: Origin, outcome: ProduceOutcome, bytes: usize },
    /// A topic that shard 0 logs.
    Topic(ringmq_format::TopicId),
    /// A topic that shard 0 told us.
    TopicEntered(TopicState),
    /// Whatever was asked for: this answer, or the other one when nothing becomes durable any more.
    Reply { origin: Origin, durable: Box<Answer>, unknown: Box<Answer> },
    /// Something of transactions or delays.
    Late(Box<late::Durable>),
}

/// Counts of the server's side, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Connections now.
    pub connections_open: u64,
    /// Connections ever.
    pub connections_total: u64,
    /// Requests.
    pub requests: u64,
    /// Requests answered with an error.
    pub request_errors: u64,
    /// Frames acknowledged.
    pub acks: u64,
    /// Bytes of frames delivered.
    pub bytes_served: u64,
    /// Connections that could not be accepted for want of a descriptor.
    pub accept_failures: u64,
    /// Bytes held for connections now.
    pub connection_bytes: u64,
    /// Connections closed because a message did not become whole, or what was sent was not taken, in time.
    pub closed_slow: u64,
    /// Connections closed because nothing was heard for long and nothing was outstanding.
    pub closed_idle: u64,
}

/// What a shard holds for clients, here or at other shards. Nothing of it when they are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Connections.
    pub connections: usize,
    /// Fetches and subscriptions, and other work that waits for a page.
    pub readers: usize,
    /// Answers that wait for the disk.
    pub acks: usize,
    /// Work that waits for the log or for the catalogue.
    pub waiting: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Draining {
    No,
    Connections { until_us: u64 },
    Peers,
    Storage,
    Done,
}

/// One shard's server.
pub struct ShardServer {
    ring: Ring,
    shard: Shard,
    own: u16,
    options: ServerOptions,
    listeners: Vec<SocketId>,
    connections: Vec<Option<Connection>>,
    generations: Vec<u32>,
    free: Vec<u32>,
    /// Connections with output or room for input, to be looked at before sleeping.
    touched: Vec<u32>,
    stalled: VecDeque<u32>,
    budget: Budget,
    acks: VecDeque<Ack>,
    readers: Readers,
    topics: Topics,
    groups: GroupState,
    queues: QueueState,
    late: LateState,
    mail: Mailboxes,
    local: VecDeque<Mail>,
    /// Frames of other shards that the log was too busy for, and all that came behind the first of them.
    waiting: VecDeque<(Origin, PartitionId, Vec<u8>)>,
    /// Work on topics that waits for other work on topics.
    deferred: VecDeque<(Origin, Work)>,
    /// Some of `deferred` may be done now.
    retry_deferred: bool,
    /// Work on partitions of topics that shard 0 is about to tell this shard of.
    early: Vec<(Origin, Work)>,
    mail_left: bool,
    sweep_at_us: u64,
    accept_at_us: Option<(u64, Vec<SocketId>)>,
    next_fetch_tag: u64,
    next_subscription_tag: u32,
    draining: Draining,
    drained: Arc<AtomicU16>,
    poison_answered: bool,
    stats: ServerStats,
    completions: Vec<Completion>,
    moved: Vec<PartitionId>,
}

impl ShardServer {
    /// A server on top of an opened shard. `listeners` are open; `drained` counts the shards of the node whose
    /// connections are gone.
    pub fn new(
        mut ring: Ring,
        shard: Shard,
        options: ServerOptions,
        listeners: Vec<SocketId>,
        mail: Mailboxes,
        drained: Arc<AtomicU16>,
    ) -> Self {
        for (index, listener) in listeners.iter().enumerate() {
            accept(&mut ring, index, *listener);
        }
        let own = mail.own();
        Self {
            topics: Topics::new(own, mail.shards()),
            readers: Readers::default(),
            groups: GroupState::default(),
            queues: QueueState::default(),
            late: LateState::new(own, mail.shards(), options.late),
            ring,
            shard,
            own,
            budget: Budget::new(options.connection_memory),
            options,
            listeners,
            connections: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            touched: Vec::new(),
            stalled: VecDeque::new(),
            acks: VecDeque::new(),
            mail,
            local: VecDeque::new(),
            waiting: VecDeque::new(),
            deferred: VecDeque::new(),
            retry_deferred: false,
            early: Vec::new(),
            mail_left: false,
            sweep_at_us: 0,
            accept_at_us: None,
            next_fetch_tag: 0,
            next_subscription_tag: 0,
            draining: Draining::No,
            drained,
            poison_answered: false,
            stats: ServerStats::default(),
            completions: Vec::with_capacity(COMPLETIONS_PER_TURN),
            moved: Vec::new(),
        }
    }

    /// The storage, for reports.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The ring, for reports.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Counts since the start.
    pub fn stats(&self) -> ServerStats {
        self.stats
    }

    /// What is held for clients.
    pub fn held(&self) -> Held {
        Held {
            connections: self.connections.iter().flatten().count(),
            readers: self.readers.count(),
            acks: self.acks.len(),
            waiting: self.waiting.len()
                + self.deferred.len()
                + self.early.len()
                + self.local.len()
                + self.topics.unfinished()
                + self.groups.count()
                + self.queues.count()
                + self.late.count(),
        }
    }

    /// Requests are served: storage is ready and the catalogue is complete.
    pub fn is_ready(&self) -> bool {
        self.shard.is_ready() && self.topics.is_complete()
    }

    /// Changes retention while it runs.
    pub fn set_retention(&mut self, time_ms: Option<u64>, size: Option<u64>) {
        self.shard.set_retention(time_ms, size);
    }

    /// Stops accepting, answers what is in flight, then stops the storage cleanly.
    pub fn begin_drain(&mut self) {
        if self.draining != Draining::No {
            return;
        }
        self.draining = Draining::Connections { until_us: self.ring.now().mono_us + DRAIN_GRACE_US };
        self.accept_at_us = None;
        for listener in std::mem::take(&mut self.listeners) {
            let token = Token::new(room::CLOSE_LISTENER, 0, 0);
            self.ring.submit(token, Op::CloseSocket { socket: listener });
        }
        for slot in 0..self.connections.len() {
            if let Some(connection) = &mut self.connections[slot] {
                requests::goodbye(connection);
                self.touched.push(slot as u32);
            }
        }
    }

    /// The drain is complete.
    pub fn is_stopped(&self) -> bool {
        self.draining == Draining::Done
    }

    /// Sleeps until something is to be done.
    pub fn wait(&mut self) {
        let until = if self.has_work() { Some(0) } else { self.deadline() };
        self.ring.wait(until);
    }

    fn has_work(&self) -> bool {
        let deferred = self.retry_deferred && !self.deferred.is_empty();
        self.shard.has_work()
            || self.mail_left
            || deferred
            || !self.local.is_empty()
            || self.readers.has_ready()
            || self.groups.has_work()
            || self.queues.has_work()
            || self.late.has_work()
    }

    fn deadline(&self) -> Option<u64> {
        let drain = match self.draining {
            Draining::Connections { until_us } => Some(until_us),
            Draining::Peers | Draining::Storage => Some(self.ring.now().mono_us + 1_000),
            _ => None,
        };
        let sweep = (self.stats.connections_open > 0).then_some(self.sweep_at_us);
        self.shard
            .deadline()
            .into_iter()
            .chain(drain)
            .chain(sweep)
            .chain(self.readers.deadline())
            .chain(self.accept_at_us.as_ref().map(|(at, _)| *at))
            .chain(self.groups.deadline())
            .chain(self.queues.deadline())
            .chain(self.late.deadline())
            .min()
    }

    /// One turn: everything that has completed or arrived, then the storage, then what may be sent.
    pub fn turn(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.reap(&mut completions, COMPLETIONS_PER_TURN);
        for completion in completions.drain(..) {
            self.complete(&completion);
        }
        self.completions = completions;
        self.turn_topics();
        self.turn_starved();
        self.turn_stalled();
        self.turn_mail();
        self.shard.turn(&mut self.ring);
        if !self.topics.is_complete() {
            self.turn_topics();
        }
        self.turn_acks();
        self.turn_poison();
        self.turn_groups();
        self.turn_late();
        self.turn_readers();
        self.turn_queues();
        self.turn_mail();
        // Pages that readers have asked for and frames that came by mail are submitted before the thread sleeps.
        self.shard.turn(&mut self.ring);
        self.turn_accept();
        self.turn_sweep();
        self.turn_drain();
        self.turn_connections();
        self.mail_left = self.mail.flush();
        self.stats.connection_bytes = self.budget.used() as u64;
    }

    fn complete(&mut self, completion: &Completion) {
        let Completion { token, result } = *completion;
        if token.room < FOREIGN {
            self.shard.complete(&mut self.ring, completion);
            return;
        }
        match token.room {
            room::ACCEPT => self.complete_accept(token.slot as usize, result),
            room::CLOSE_LISTENER | room::SHUTDOWN => {}
            _ => self.complete_connection(token, result),
        }
    }

    // -- connections ---------------------------------------------------------------------------------------

    fn complete_accept(&mut self, index: usize, result: Result<u32, Errno>) {
        let Some(listener) = self.listeners.get(index).copied() else {
            if let Ok(socket) = result {
                let token = Token::new(room::CLOSE_LISTENER, 0, 0);
                self.ring.submit(token, Op::CloseSocket { socket: SocketId(socket) });
            }
            return;
        };
        match result {
            Ok(socket) => {
                self.open_connection(SocketId(socket));
                accept(&mut self.ring, index, listener);
            }
            Err(Errno::CANCELED) => {}
            Err(error) => {
                self.stats.accept_failures += u64::from(error.is_no_descriptor());
                // No descriptors, most likely: whoever waits in the backlog is served when one is free.
                let at = self.ring.now().mono_us + ACCEPT_PAUSE_US;
                self.accept_at_us.get_or_insert((at, Vec::new())).1.push(listener);
            }
        }
    }

    fn turn_accept(&mut self) {
        if self.accept_at_us.as_ref().is_none_or(|(at, _)| self.ring.now().mono_us < *at) {
            return;
        }
        let Some((_, paused)) = self.accept_at_us.take() else { return };
        for listener in paused {
            if let Some(index) = self.listeners.iter().position(|known| *known == listener) {
                accept(&mut self.ring, index, listener);
            }
        }
    }

    fn open_connection(&mut self, socket: SocketId) {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.connections.push(None);
                self.generations.push(0);
                self.connections.len() as u32 - 1
            }
        };
        let generation = self.generations[slot as usize].wrapping_add(1) & 0x00ff_ffff;
        self.generations[slot as usize] = generation;
        let key = ConnectionKey { slot, generation };
        let mut connection = Connection::new(key, socket, self.ring.now().mono_us);
        self.stats.connections_open += 1;
        self.stats.connections_total += 1;
        if self.options.connections.fetch_add(1, Ordering::AcqRel) >= self.connections_max() {
            let message = "the server has as many connections as it takes";
            let now = self.ring.now().mono_us;
            requests::refuse_connection(&mut connection, ErrorCode::TooManyConnections, message, now);
        } else if !self.budget.fits(0, INPUT_MIN) {
            let message = "the server has no memory left for another connection";
            let now = self.ring.now().mono_us;
            requests::refuse_connection(&mut connection, ErrorCode::TooManyConnections, message, now);
        }
        self.connections[slot as usize] = Some(connection);
        self.touched.push(slot);
    }

    /// Connections that the node takes now: what the operator has said, and never so many that the log finds no
    /// descriptor for its next file. Other shards are taken to have as many files as this one.
    fn connections_max(&self) -> usize {
        let files = 2 * self.shard.log().slots().len() * usize::from(self.mail.shards());
        let left = self.options.descriptors_max.saturating_sub(files + DESCRIPTORS_KEPT);
        self.options.connections_max.min(left)
    }

    fn connection(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.connections
            .get_mut(key.slot as usize)?
            .as_mut()
            .filter(|connection| connection.key.generation == key.generation)
    }

    fn complete_connection(&mut self, token: Token, result: Result<u32, Errno>) {
        let slot = token.slot as usize;
        let Some(mut connection) = self.connections.get_mut(slot).and_then(Option::take) else { return };
        assert_eq!(connection.key.generation, token.generation, "a slot is reused after its last completion");
        match (token.room, result) {
            (room::RECEIVE, Ok(bytes)) if bytes > 0 => {
                connection.received(&mut self.ring, bytes as usize);
                if connection.life == Life::Lingering {
                    connection.lingered += bytes as usize;
                }
                self.process(&mut connection);
            }
            (room::RECEIVE, ended) => {
                connection.received(&mut self.ring, 0);
                connection.peer_finished = true;
                // A peer that has only finished sending still gets its answers.
                connection.finish(self.ring.now().mono_us);
                if ended.is_err() || connection.life == Life::Lingering {
                    connection.close(&mut self.ring);
                }
            }
            (room::SEND, Ok(bytes)) => {
                connection.sent(&mut self.ring, Some(bytes as usize));
                self.process(&mut connection);
            }
            (room::SEND, Err(_)) => {
                connection.sent(&mut self.ring, None);
                connection.close(&mut self.ring);
            }
            (room::CLOSE, _) => {
                self.forget(connection);
                return;
            }
            (other, _) => panic!("completion of room {other} at a connection"),
        }
        self.connections[slot] = Some(connection);
        self.touched.push(token.slot);
    }

    /// The last completion of a connection has come.
    fn forget(&mut self, connection: Connection) {
        let key = connection.key;
        self.budget.change(connection.charged(), 0);
        self.budget.settle(key);
        self.stats.connections_open -= 1;
        self.options.connections.fetch_sub(1, Ordering::AcqRel);
        let origin = Origin { shard: self.own, connection: key, tag: 0 };
        self.connection_is_gone(self.own, key);
        for shard in connection.known_to {
            self.mail.send(shard, Mail::Work(origin, Work::Gone));
        }
        self.free.push(key.slot);
    }

    /// Nothing more is done for a connection, of this shard or of another.
    fn connection_is_gone(&mut self, shard: u16, key: ConnectionKey) {
        self.readers.remove_connection(shard, key);
        self.forget_in_groups(shard, key);
        self.forget_in_queues(shard, key);
        self.forget_in_late(shard, key);
        for (origin, work) in std::mem::take(&mut self.early) {
            if origin.shard != shard || origin.connection != key {
                self.early.push((origin, work));
            } else if let Work::Append { frame, .. } = work {
                let outcome = ProduceOutcome::failed(ErrorCode::UnknownTopic, 0);
                self.reply(origin, Answer::Appended(outcome, frame.len()));
            }
        }
    }

    /// Counts what a connection holds now.
    fn settle(&mut self, connection: &mut Connection) {
        let (before, now) = connection.recharge();
        self.budget.change(before, now);
        if now <= 2 * INPUT_MIN {
            self.budget.settle(connection.key);
        }
    }

    /// As `settle`, for a connection in its place.
    fn recharge(&mut self, key: ConnectionKey) {
        if let Some((before, now)) = self.connection(key).map(Connection::recharge) {
            self.budget.change(before, now);
        }
    }

    /// Connections that were refused memory ask again when some was given back.
    fn turn_starved(&mut self) {
        for (_, slot) in self.budget.take_starved() {
            let Some(mut connection) = self.connections.get_mut(slot as usize).and_then(Option::take) else {
                continue;
            };
            connection.starved = false;
            self.process(&mut connection);
            self.settle(&mut connection);
            self.connections[slot as usize] = Some(connection);
            self.touched.push(slot);
        }
    }

    /// Everything that was touched in this turn: parse what waited for output, send, receive, close.
    fn turn_connections(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for slot in touched.drain(..) {
            let Some(mut connection) = self.connections.get_mut(slot as usize).and_then(Option::take) else {
                continue;
            };
            if connection.backlog() < OUT_SOFT {
                for (shard, tag) in std::mem::take(&mut connection.blocked) {
                    let origin = Origin { shard: self.own, connection: connection.key, tag };
                    self.dispatch(origin, shard, Work::Go);
                }
            }
            if !connection.wants_input {
                self.process(&mut connection);
            }
            connection.send(&mut self.ring);
            if connection.life == Life::Finishing && connection.is_quiet() {
                connection.linger(&mut self.ring);
            }
            if connection.life == Life::Lingering && connection.lingered > LINGER_BYTES_MAX {
                connection.close(&mut self.ring);
            }
            if self.budget.is_pressed() {
                connection.shrink();
            }
            connection.receive(&mut self.ring);
            self.settle(&mut connection);
            self.connections[slot as usize] = Some(connection);
        }
        self.touched = touched;
    }

    fn turn_sweep(&mut self) {
        let now = self.ring.now().mono_us;
        if now < self.sweep_at_us {
            return;
        }
        self.sweep_at_us = now + SWEEP_PERIOD_US;
        for slot in 0..self.connections.len() {
            if let Some(mut connection) = self.connections[slot].take() {
                self.sweep(&mut connection, now);
                self.connections[slot] = Some(connection);
            }
        }
    }

    /// Ends a connection that has had its time.
    fn sweep(&mut self, connection: &mut Connection, now: u64) {
        let ms = |since: u64| now.saturating_sub(since) / 1000;
        let waits_ms = connection.message_since_us.filter(|_| connection.is_receiving()).map(ms);
        let still = now.saturating_sub(connection.moved_us);
        let untaken_us = if self.budget.is_pressed() { UNTAKEN_PRESSED_US } else { UNTAKEN_US };
        match connection.life {
            Life::Fresh if ms(connection.since_us) >= PRE_HELLO_TIME_MS => {
                let message = "no HELLO within 5 seconds";
                requests::refuse_connection(connection, ErrorCode::HelloRequired, message, now);
            }
            Life::Open if waits_ms.is_some_and(|ms| ms >= MESSAGE_TIME_MS) => {
                self.stats.closed_slow += 1;
                let message = "the request did not become whole within 30 seconds";
                requests::refuse_connection(connection, ErrorCode::Timeout, message, now);
            }
            Life::Open if connection.is_idle() && ms(connection.heard_us) >= IDLE_TIME_MS => {
                self.stats.closed_idle += 1;
                connection.finish(now);
            }
            Life::Open if connection.is_sending() && still >= untaken_us => {
                self.stats.closed_slow += 1;
                connection.close(&mut self.ring);
            }
            Life::Open => connection.shrink(),
            // A peer that does not take its last answers is not waited for.
            Life::Finishing if still >= FINISH_TIME_US && connection.is_stuck() => {
                connection.close(&mut self.ring);
            }
            Life::Lingering if still >= LINGER_TIME_US => connection.close(&mut self.ring),
            Life::Fresh | Life::Finishing | Life::Lingering | Life::Closing => return,
        }
        self.touched.push(connection.key.slot);
    }

    /// Connections and foreign frames that the log had no room for.
    fn turn_stalled(&mut self) {
        while let Some((origin, partition, bytes)) = self.waiting.pop_front() {
            if !self.append_remote(origin, partition, &bytes) {
                self.waiting.push_front((origin, partition, bytes));
                break;
            }
        }
        self.retry_deferred = false;
        for (origin, work) in std::mem::take(&mut self.deferred) {
            self.execute(origin, work);
        }
        for _ in 0..self.stalled.len() {
            let Some(slot) = self.stalled.pop_front() else { break };
            let Some(mut connection) = self.connections.get_mut(slot as usize).and_then(Option::take) else {
                continue;
            };
            connection.stalled = false;
            self.process(&mut connection);
            self.connections[slot as usize] = Some(connection);
            self.touched.push(slot);
        }
    }

    // -- acknowledgements ----------------------------------------------------------------------------------

    fn turn_acks(&mut self) {
        let durable = self.shard.durable();
        while let Some(ack) = self.acks.pop_front_if(|ack| ack.durable_at <= durable) {
            self.acknowledge(ack.target); // S1
        }
    }

    fn acknowledge(&mut self, target: AckTarget) {
        match target {
            AckTarget::Produce { connection, pending } => self.finish_part(connection, pending, None),
            AckTarget::Remote { origin, outcome, bytes } => {
                self.reply(origin, Answer::Appended(outcome, bytes));
            }
            AckTarget::Topic(topic) => self.topic_is_durable(topic),
            AckTarget::TopicEntered(state) => self.topic_entered_here(state, true),
            AckTarget::Reply { origin, durable, .. } => self.reply(origin, *durable),
            AckTarget::Late(durable) => self.late_is_durable(*durable),
        }
    }

    /// A part of a PRODUCE is done: its local frames, or one foreign frame with its outcome.
    fn finish_part(&mut self, key: ConnectionKey, slot: u32, outcome: Option<(usize, ProduceOutcome)>) {
        let Some(connection) = self.connection(key) else { return };
        let Some(Pending::Produce { outcomes, remaining, .. }) = connection.pending_mut(slot) else { return };
        if let Some((index, outcome)) = outcome
            && let Some(place) = outcomes.get_mut(index)
        {
            *place = outcome;
        }
        *remaining -= 1;
        if *remaining > 0 {
            return;
        }
        if let Some(Pending::Produce { correlation, outcomes, bytes, .. }) = connection.take_pending(slot) {
            connection.in_flight_bytes -= bytes;
            let stored = outcomes.iter().filter(|outcome| outcome.is_stored()).count() as u64;
            requests::answer_produce(connection, correlation, &outcomes);
            self.stats.acks += stored;
        }
        self.touched.push(key.slot);
    }

    /// Nothing will become durable any more: what waits for that may or may not be found after a restart.
    fn turn_poison(&mut self) {
        if self.shard.poisoned().is_none() || (self.poison_answered && self.acks.is_empty()) {
            return;
        }
        self.poison_answered = true;
        let unknown = ProduceOutcome::failed(ErrorCode::OutcomeUnknown, 0);
        for ack in std::mem::take(&mut self.acks) {
            match ack.target {
                AckTarget::Produce { connection: key, pending } => {
                    if let Some(connection) = self.connection(key)
                        && let Some(Pending::Produce { outcomes, .. }) = connection.pending_mut(pending)
                    {
                        for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_stored()) {
                            *outcome = unknown;
                        }
                    }
                    self.finish_part(key, pending, None);
                }
                AckTarget::Remote { origin, bytes, .. } => {
                    self.reply(origin, Answer::Appended(unknown, bytes));
                }
                AckTarget::Topic(topic) => self.topic_failed(topic, ErrorCode::OutcomeUnknown),
                AckTarget::TopicEntered(state) => self.topic_entered_here(state, false),
                AckTarget::Reply { origin, unknown, .. } => self.reply(origin, *unknown),
                AckTarget::Late(durable) => self.late_is_lost(*durable),
            }
        }
    }

    // -- work between shards -------------------------------------------------------------------------------

    /// Has a shard do something.
    fn dispatch(&mut self, origin: Origin, shard: u16, work: Work) {
        let mail = Mail::Work(origin, work);
        if shard == self.own { self.local.push_back(mail) } else { self.mail.send(shard, mail) }
    }

    /// Answers whoever asked.
    fn reply(&mut self, origin: Origin, answer: Answer) {
        let mail = Mail::Answer(origin, answer);
        if origin.shard == self.own { self.local.push_back(mail) } else { self.mail.send(origin.shard, mail) }
    }

    fn turn_mail(&mut self) {
        while let Some(mail) = self.local.pop_front().or_else(|| self.mail.receive()) {
            match mail {
                Mail::Work(origin, work) => self.execute(origin, work),
                Mail::Answer(origin, answer) => self.take_answer(origin, answer),
            }
        }
    }

    /// Does what a connection, here or at another shard, has asked of this shard.
    fn execute(&mut self, origin: Origin, work: Work) {
        if work.partition().is_some_and(|partition| self.is_early(partition)) {
            self.early.push((origin, work));
            return;
        }
        match work {
            Work::Append { partition, frame } => self.execute_append(origin, partition, frame),
            Work::Bounds { partition } => {
                let bounds = self.bounds(partition);
                self.reply(origin, Answer::Bounds(bounds));
            }
            Work::OffsetAtTime { partition, time_ms } => {
                self.execute_offset_at_time(origin, partition, time_ms);
            }
            Work::Fetch { partition, offset, kind } => self.open_reader(origin, partition, offset, kind),
            Work::Subscribe { partition, offset, kind, pending } => {
                self.open_subscription(origin, partition, offset, kind, pending);
            }
            Work::Credit { bytes } => self.readers.add_credit(origin, bytes),
            Work::Unsubscribe => self.readers.remove(origin),
            Work::Go => {
                self.readers.go(origin);
                self.queues.go(origin);
            }
            Work::Gone => self.connection_is_gone(origin.shard, origin.connection),
            Work::CreateTopic(new) => self.create_topic(origin, new),
            Work::AlterTopic { name, patch } => self.alter_topic(origin, name, patch),
            Work::DeleteTopic { name } => self.delete_topic(origin, &name),
            Work::EnterTopic { entry } => self.enter_topic(entry),
            Work::CatalogueComplete => {
                self.topics.set_complete();
                self.turn_topics();
            }
            Work::Group(work) => self.execute_groups(origin, work),
            Work::Queue(work) => self.execute_queues(origin, work),
            Work::Late(work) => self.execute_late(origin, work),
        }
    }

    fn bounds(&self, partition: PartitionId) -> Result<(Offset, Offset), ErrorCode> {
        let extent = self.shard.extent(partition).ok_or_else(|| self.no_such_partition())?;
        Ok((extent.start, extent.visible))
    }

    /// What to say of a partition that is not here. A failed log may have taken it away, or not have made it, and a
    /// restart finds it.
    fn no_such_partition(&self) -> ErrorCode {
        match self.shard.poisoned() {
            Some(_) => ErrorCode::ShardPoisoned,
            None => ErrorCode::UnknownTopic,
        }
    }

    fn execute_append(&mut self, origin: Origin, partition: PartitionId, bytes: Vec<u8>) {
        // A frame never overtakes another of its producer.
        if !self.waiting.is_empty() || !self.append_remote(origin, partition, &bytes) {
            self.waiting.push_back((origin, partition, bytes));
        }
    }

    /// Appends a frame that another shard has sent; `false` if the log is busy.
    fn append_remote(&mut self, origin: Origin, partition: PartitionId, bytes: &[u8]) -> bool {
        match self.append_frame(partition, bytes) {
            Ok((outcome, durable_at)) => {
                let target = AckTarget::Remote { origin, outcome, bytes: bytes.len() };
                self.acks.push_back(Ack { durable_at, target });
            }
            Err(NotAppended::Error(AppendError::Busy))
                if self.draining == Draining::No || self.draining_connections() =>
            {
                return false;
            }
            Err(error) => {
                let outcome = self.not_appended(partition, error);
                self.reply(origin, Answer::Appended(outcome, bytes.len()));
            }
        }
        true
    }

    fn draining_connections(&self) -> bool {
        matches!(self.draining, Draining::Connections { .. })
    }

    // -- drain ---------------------------------------------------------------------------------------------

    fn turn_drain(&mut self) {
        let now = self.ring.now().mono_us;
        self.draining = match self.draining {
            Draining::Connections { until_us } => {
                let late = now >= until_us;
                for slot in 0..self.connections.len() {
                    let Some(connection) = &mut self.connections[slot] else { continue };
                    if late {
                        connection.close(&mut self.ring);
                    } else if connection.is_quiet() && matches!(connection.life, Life::Fresh | Life::Open) {
                        connection.finish(now);
                        self.touched.push(slot as u32);
                    }
                }
                if self.stats.connections_open == 0 {
                    self.drained.fetch_add(1, Ordering::AcqRel);
                    Draining::Peers
                } else {
                    self.draining
                }
            }
            // Other shards may still need this one for their clients' last answers.
            Draining::Peers if self.drained.load(Ordering::Acquire) >= self.mail.shards() => {
                self.shard.begin_stop();
                Draining::Storage
            }
            Draining::Storage if self.shard.is_stopped() => Draining::Done,
            other => other,
        };
    }
}

fn accept(ring: &mut Ring, index: usize, listener: SocketId) {
    ring.submit(Token::new(room::ACCEPT, 0, index as u32), Op::Accept { listener });
}
