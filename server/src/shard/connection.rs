//! One client connection: bytes in, messages out, and what is open between the two.
//!
//! Invariants  K1  Input is bounded by the largest message, output by `OUT_HARD` and one message; at the bound the
//!                 connection is not read.
//!             K2  A message is parsed only when it is whole, and its length is believed only after its header's
//!                 checksum.
//! Ignorant of what requests mean.

use super::groups::GroupPending;
use super::handles::{Handle, Handles};
use super::late::LatePending;
use super::mail::ConnectionKey;
use super::queues::QueuePending;
use ringmq_engine::ring::{BufRange, BufferId, Op, Ring, SocketId, Token};
use ringmq_format::catalogue::TopicEntry;
use ringmq_protocol::HEADER_SIZE;
use ringmq_protocol::ProduceOutcome;
use std::collections::{BTreeSet, HashMap};

/// Rooms of the server in completion tokens.
pub(super) mod room {
    pub(in crate::shard) const ACCEPT: u8 = 16;
    pub(in crate::shard) const RECEIVE: u8 = 17;
    pub(in crate::shard) const SEND: u8 = 18;
    pub(in crate::shard) const CLOSE: u8 = 19;
    pub(in crate::shard) const CLOSE_LISTENER: u8 = 20;
    pub(in crate::shard) const SHUTDOWN: u8 = 21;
}

/// First size of a connection's input.
pub(super) const INPUT_MIN: usize = 8 << 10;
/// A larger input is given back when nothing is in it: a receive would hold it for as long as the peer is silent.
const INPUT_KEPT: usize = 2 << 20;
/// Output above which readers pause and requests are not parsed.
pub(super) const OUT_SOFT: usize = 512 << 10;

/// Largest memory of an output that is kept for the next one, while the connection is in use.
const SPARE_MAX: usize = 4 * OUT_SOFT;

/// A subscription of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) shard: u16,
    /// Of its reader. A number may be used again while something of its last bearer is on the way; a tag is not.
    pub(super) tag: u64,
}

/// A request that waits for something.
#[derive(Debug)]
pub(super) enum Pending {
    Produce { correlation: u64, outcomes: Vec<ProduceOutcome>, remaining: u32, bytes: usize },
    Open { correlation: u64, handle: u32, target: Handle },
    Subscribe { correlation: u64, handle: u32, subscription: u32, tag: u64, offset: u64 },
    ListOffsets { correlation: u64, handle: u32, latest: Option<bool> },
    Topic { correlation: u64, op: u8 },
    Metadata { correlation: u64, names: Vec<(String, Result<TopicEntry, u16>)>, remaining: u32 },
    Describe { correlation: u64, topic: TopicEntry, first: u32, bounds: Vec<(u64, u64)>, remaining: u32 },
    Group(GroupPending),
    Queue(QueuePending),
    Late(LatePending),
}

/// A PRODUCE that is being carried out: the message stays at the front of the input until it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub(super) pending: u32,
    /// Next slot.
    pub(super) next: usize,
    /// Where its frame is, behind the own fields.
    pub(super) frame_at: usize,
    /// Highest LSN that a frame of it is durable at.
    pub(super) durable_at: u64,
    /// Since when the connection is not read because it is too fast.
    pub(super) held_us: Option<u64>,
    /// That has lasted long enough: what is too fast from now on is told so.
    pub(super) was_held: bool,
    /// The frame that is next was counted against what the connection may produce.
    pub(super) charged: bool,
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// HELLO has not been said.
    Fresh,
    /// Serving.
    Open,
    /// No more input; when the output has gone the sending side is shut down.
    Finishing,
    /// Nothing more is sent. What still comes is thrown away, for a bounded time and amount: a socket that is closed
    /// with input unread resets the connection, and takes the last answers away from the peer.
    Lingering,
    /// CloseSocket is in flight.
    Closing,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: ConnectionKey,
    pub(super) socket: SocketId,
    pub(super) life: Life,
    pub(super) since_us: u64,
    pub(super) input: Vec<u8>,
    /// Bytes of `input` that were received.
    pub(super) filled: usize,
    receiving: Option<BufferId>,
    pub(super) out: Vec<u8>,
    sending: Option<(BufferId, BufRange)>,
    spare: Vec<u8>,
    pub(super) handles: Handles,
    pub(super) subscriptions: HashMap<u32, Subscription>,
    /// Other shards that know this connection.
    pub(super) known_to: BTreeSet<u16>,
    pending: Vec<Option<Pending>>,
    pending_free: Vec<u32>,
    pub(super) in_flight: usize,
    pub(super) in_flight_bytes: usize,
    pub(super) current: Option<Current>,
    /// Readers that wait for the output to drain: shard and tag.
    pub(super) blocked: Vec<(u16, u64)>,
    /// Waits for room in the log or in a queue.
    pub(super) stalled: bool,
    pub(super) peer_finished: bool,
    /// What is in the input is not a whole message, and no bound is met: only then more is received (K1).
    pub(super) wants_input: bool,
    /// When the peer was last heard of.
    pub(super) heard_us: u64,
    /// Since when the rest of a message is waited for.
    pub(super) message_since_us: Option<u64>,
    /// When the output last moved, or since when the connection finishes or lingers.
    pub(super) moved_us: u64,
    /// Bytes that were thrown away.
    pub(super) lingered: usize,
    /// Waits for memory: its input is full and may not grow.
    pub(super) starved: bool,
    /// Bytes of buffers that are with the kernel: input, output.
    lent: [usize; 2],
    /// Bytes that the budget counts for it.
    charged: usize,
}

impl Connection {
    pub(super) fn new(key: ConnectionKey, socket: SocketId, now_us: u64) -> Self {
        Self {
            key,
            socket,
            life: Life::Fresh,
            since_us: now_us,
            input: Vec::new(),
            filled: 0,
            receiving: None,
            out: Vec::new(),
            sending: None,
            spare: Vec::new(),
            handles: Handles::default(),
            subscriptions: HashMap::new(),
            known_to: BTreeSet::new(),
            pending: Vec::new(),
            pending_free: Vec::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            current: None,
            blocked: Vec::new(),
            stalled: false,
            peer_finished: false,
            wants_input: true,
            heard_us: now_us,
            message_since_us: None,
            moved_us: now_us,
            lingered: 0,
            starved: false,
            lent: [0; 2],
            charged: 0,
        }
    }

    fn token(&self, room: u8) -> Token {
        Token::new(room, self.key.generation, self.key.slot)
    }

    /// Keeps a request until its answer; the number comes back with it.
    pub(super) fn keep(&mut self, pending: Pending) -> u32 {
        self.in_flight += 1;
        match self.pending_free.pop() {
            Some(slot) => {
                self.pending[slot as usize] = Some(pending);
                slot
            }
            None => {
                self.pending.push(Some(pending));
                self.pending.len() as u32 - 1
            }
        }
    }

    /// A request that waits.
    pub(super) fn pending_mut(&mut self, slot: u32) -> Option<&mut Pending> {
        self.pending.get_mut(slot as usize)?.as_mut()
    }

    /// A request that waits no longer.
    pub(super) fn take_pending(&mut self, slot: u32) -> Option<Pending> {
        let pending = self.pending.get_mut(slot as usize)?.take()?;
        self.pending_free.push(slot);
        self.in_flight -= 1;
        Some(pending)
    }

    /// Receives, unless something says that nothing more is to be taken in.
    pub(super) fn receive(&mut self, ring: &mut Ring) {
        let closed = matches!(self.life, Life::Finishing | Life::Closing);
        let lingers = self.life == Life::Lingering;
        let busy = self.stalled || self.starved || self.current.is_some() || !self.wants_input;
        if self.receiving.is_some() || closed || (busy && !lingers) || self.peer_finished {
            return;
        }
        if self.filled == 0 && self.input.len() > INPUT_KEPT {
            self.input = Vec::new();
        }
        if self.input.is_empty() {
            self.input.reserve_exact(INPUT_MIN);
            self.input.resize(INPUT_MIN, 0);
        }
        if lingers {
            self.filled = 0;
        } else if self.filled > 0 {
            self.message_since_us.get_or_insert(ring.now().mono_us);
        }
        assert!(self.filled < self.input.len(), "the input of {} bytes is full", self.input.len()); // K1
        let len = self.input.len();
        self.lent[0] = self.input.capacity();
        let buffer = ring.memory.adopt(std::mem::take(&mut self.input));
        self.receiving = Some(buffer);
        let into = BufRange::new(buffer, self.filled, len - self.filled);
        ring.submit(self.token(room::RECEIVE), Op::Recv { socket: self.socket, into });
    }

    /// The receive has completed: the input is ours again.
    pub(super) fn received(&mut self, ring: &mut Ring, bytes: usize) {
        if let Some(buffer) = self.receiving.take() {
            self.input = ring.memory.release(buffer);
            self.lent[0] = 0;
        }
        self.filled += bytes;
        if bytes > 0 {
            self.heard_us = ring.now().mono_us;
        }
    }

    /// The input is with the kernel.
    pub(super) fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }

    /// Removes a message from the front of the input.
    pub(super) fn consume(&mut self, start: usize) {
        self.input.copy_within(start..self.filled, 0);
        self.filled -= start;
        self.message_since_us = None;
    }

    /// Bytes that the input lacks for a message of `len` bytes, and for what follows it in a pipeline. Memory follows
    /// what has come, not what a header promises.
    pub(super) fn lacks(&self, len: usize) -> usize {
        let want = (len + HEADER_SIZE).next_power_of_two().min((4 * self.filled).max(INPUT_MIN));
        want.saturating_sub(self.input.len())
    }

    pub(super) fn grow(&mut self, more: usize) {
        self.input.reserve_exact(more);
        self.input.resize(self.input.len() + more, 0);
    }

    /// The input has no room for another byte.
    pub(super) fn is_full(&self) -> bool {
        self.filled == self.input.len()
    }

    /// Gives memory back that nothing is in.
    pub(super) fn shrink(&mut self) {
        if self.receiving.is_none() && self.input.len() > INPUT_MIN && self.filled < INPUT_MIN {
            let mut input = Vec::new();
            if self.filled > 0 {
                input.reserve_exact(INPUT_MIN);
                input.extend_from_slice(&self.input[..self.filled]);
                input.resize(INPUT_MIN, 0);
            }
            self.input = input;
        }
        if self.backlog() == 0 {
            self.spare = Vec::new();
            self.out = Vec::new();
        }
    }

    /// Bytes of memory that its buffers have.
    pub(super) fn held(&self) -> usize {
        let own = self.input.capacity() + self.out.capacity() + self.spare.capacity();
        own + self.lent[0] + self.lent[1]
    }

    /// What the budget has counted, and what it has to count now.
    pub(super) fn recharge(&mut self) -> (usize, usize) {
        let now = self.held();
        (std::mem::replace(&mut self.charged, now), now)
    }

    /// What the budget has counted.
    pub(super) fn charged(&self) -> usize {
        self.charged
    }

    /// Bytes that have not left yet.
    pub(super) fn backlog(&self) -> usize {
        self.out.len() + self.sending.map_or(0, |(_, rest)| rest.len())
    }

    /// Sends what has been collected.
    pub(super) fn send(&mut self, ring: &mut Ring) {
        if self.sending.is_some() || self.out.is_empty() || self.is_ending() {
            return;
        }
        let bytes = std::mem::replace(&mut self.out, std::mem::take(&mut self.spare));
        let len = bytes.len();
        self.lent[1] = bytes.capacity();
        let buffer = ring.memory.adopt(bytes);
        let from = BufRange::new(buffer, 0, len);
        self.sending = Some((buffer, from));
        self.moved_us = ring.now().mono_us;
        ring.submit(self.token(room::SEND), Op::Send { socket: self.socket, from });
    }

    /// A send has completed. `None` for an error: the rest is dropped.
    pub(super) fn sent(&mut self, ring: &mut Ring, bytes: Option<usize>) {
        let Some((buffer, rest)) = self.sending.take() else { return };
        self.moved_us = ring.now().mono_us;
        match bytes {
            Some(bytes) if bytes < rest.len() && self.life != Life::Closing => {
                let from = rest.skip(bytes);
                self.sending = Some((buffer, from));
                ring.submit(self.token(room::SEND), Op::Send { socket: self.socket, from });
            }
            _ => {
                let mut bytes = ring.memory.release(buffer);
                self.lent[1] = 0;
                bytes.clear();
                // With room for the largest frames of common size: memory like that comes page by page.
                if bytes.capacity() <= SPARE_MAX {
                    self.spare = bytes;
                }
            }
        }
    }

    /// Nothing will move by itself: the peer leaves its answers where they are, or what is asked is no more of use. A
    /// peer that only finished sending may still wait for the answers to what it asked.
    pub(super) fn is_stuck(&self) -> bool {
        let asked = self.in_flight > 0 || self.current.is_some();
        self.sending.is_some() || (self.out.is_empty() && !(self.peer_finished && asked))
    }

    /// Output is with the kernel.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Everything was sent and nothing waits for an answer.
    pub(super) fn is_quiet(&self) -> bool {
        self.backlog() == 0 && self.in_flight == 0 && self.current.is_none()
    }

    /// Nothing is outstanding either way.
    pub(super) fn is_idle(&self) -> bool {
        self.is_quiet() && self.subscriptions.is_empty() && self.filled == 0
    }

    /// Nothing more is sent.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.life, Life::Lingering | Life::Closing)
    }

    /// Takes no more input, and ends when its output has gone.
    pub(super) fn finish(&mut self, now_us: u64) {
        if matches!(self.life, Life::Fresh | Life::Open) {
            self.life = Life::Finishing;
            self.moved_us = now_us;
            self.subscriptions.clear();
        }
    }

    /// Everything was sent: says so, and waits until the peer has finished too.
    pub(super) fn linger(&mut self, ring: &mut Ring) {
        if self.peer_finished {
            self.close(ring);
            return;
        }
        self.life = Life::Lingering;
        if self.receiving.is_none() {
            self.input = Vec::new();
        }
        self.moved_us = ring.now().mono_us;
        ring.submit(self.token(room::SHUTDOWN), Op::Shutdown { socket: self.socket });
    }

    /// Begins to close. Whatever is in flight on the socket completes first.
    pub(super) fn close(&mut self, ring: &mut Ring) {
        if self.life != Life::Closing {
            self.life = Life::Closing;
            ring.submit(self.token(room::CLOSE), Op::CloseSocket { socket: self.socket });
        }
    }
}
