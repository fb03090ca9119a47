//! What shards say to each other: bounded single-producer single-consumer queues, one for each ordered pair.
//!
//! Invariants  M1  A queue has a bound. What does not fit waits in `outbox`, which is bounded by the requests that
//!                 were admitted, because only answers and notices of admitted work go there.
//!             M2  A peer that sleeps is rung once a turn, after everything was pushed.

use super::groups::{GroupAnswer, GroupWork};
use super::late::{LateAnswer, LateWork, SettingsPatch};
use super::queues::{QueueAnswer, QueueWork};
use super::topics::{NewTopic, TopicState};
use ringmq_engine::ring::Doorbell;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::{Offset, PartitionId};
use ringmq_protocol::{ErrorCode, ProduceOutcome};
use std::collections::VecDeque;

/// Messages that a queue holds.
const QUEUE_MESSAGES: usize = 1024;

/// A connection of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ConnectionKey {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// Who asked: the shard that holds the connection, the connection, and the asker's own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Origin {
    pub(super) shard: u16,
    pub(super) connection: ConnectionKey,
    pub(super) tag: u64,
}

/// What a reader does. Its origin's tag is the reader's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadKind {
    /// Answers once.
    Fetch { correlation: u64, handle: u32, max_bytes: u32, wait_ms: u32 },
    /// Goes on while there is credit.
    Push { subscription: u32, credit: u64 },
}

/// Work for the shard that owns a partition, or for shard 0, which owns the catalogue.
#[derive(Debug)]
pub(super) enum Work {
    Append {
        partition: PartitionId,
        frame: Vec<u8>,
    },
    Bounds {
        partition: PartitionId,
    },
    OffsetAtTime {
        partition: PartitionId,
        time_ms: i64,
    },
    Fetch {
        partition: PartitionId,
        offset: Offset,
        kind: ReadKind,
    },
    /// `Answer::Bounds` goes to the tag `pending`, and in front of everything that is delivered.
    Subscribe {
        partition: PartitionId,
        offset: Offset,
        kind: ReadKind,
        pending: u32,
    },
    Credit {
        bytes: u64,
    },
    Unsubscribe,
    /// What was delivered to this reader has left the connection's buffer.
    Go,
    /// The connection is gone with all its readers.
    Gone,
    CreateTopic(NewTopic),
    AlterTopic {
        name: String,
        patch: SettingsPatch,
    },
    DeleteTopic {
        name: String,
    },
    /// Shard 0 tells: this topic is durable (or deleted) there.
    EnterTopic {
        entry: TopicEntry,
    },
    /// Shard 0 has told all its topics.
    CatalogueComplete,
    /// For groups: membership, positions, settings.
    #[allow(dead_code, reason = "its room is being built")]
    Group(GroupWork),
    /// For groups that consume record by record.
    #[allow(dead_code, reason = "its room is being built")]
    Queue(QueueWork),
    /// For transactions, delays and the settings of topics.
    Late(LateWork),
}

/// What comes back.
#[derive(Debug)]
pub(super) enum Answer {
    /// With the bytes of the frame, which nobody holds any more.
    Appended(ProduceOutcome, usize),
    Bounds(Result<(Offset, Offset), ErrorCode>),
    OffsetAtTime(Result<(Offset, i64), ErrorCode>),
    /// A whole message for the connection. `again`: the reader goes on after `Work::Go`; otherwise it is gone.
    Delivered {
        /// The shard that the reader is at.
        from: u16,
        bytes: Vec<u8>,
        again: bool,
        is_last: bool,
    },
    Topic(Result<TopicEntry, ErrorCode>),
    TopicEntered {
        state: TopicState,
        /// It is durable there; otherwise nobody knows.
        durable: bool,
    },
    #[allow(dead_code, reason = "its room is being built")]
    Group(GroupAnswer),
    #[allow(dead_code, reason = "its room is being built")]
    Queue(QueueAnswer),
    Late(LateAnswer),
}

impl Work {
    /// The partition that it is about.
    pub(super) fn partition(&self) -> Option<PartitionId> {
        match self {
            Self::Append { partition, .. }
            | Self::Bounds { partition }
            | Self::OffsetAtTime { partition, .. }
            | Self::Fetch { partition, .. }
            | Self::Subscribe { partition, .. } => Some(*partition),
            Self::Group(work) => work.partition(),
            Self::Queue(work) => work.partition(),
            Self::Late(work) => work.partition(),
            _ => None,
        }
    }
}

/// A message between shards.
#[derive(Debug)]
pub(super) enum Mail {
    Work(Origin, Work),
    Answer(Origin, Answer),
}

/// One shard's ends of the queues to and from another.
struct Peer {
    to: rtrb::Producer<Mail>,
    from: rtrb::Consumer<Mail>,
    doorbell: Option<Doorbell>,
    outbox: VecDeque<Mail>,
    pushed: bool,
}

/// The queues of one shard.
pub struct Mailboxes {
    own: u16,
    peers: Vec<Option<Peer>>,
}

/// The queues between `shards` shards, in the order of the shards.
pub fn mesh(shards: u16) -> Vec<Mailboxes> {
    let count = usize::from(shards);
    let mut to: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    for (sender, ends) in to.iter_mut().enumerate() {
        for (receiver, arrivals) in from.iter_mut().enumerate() {
            let ends_of_pair = (sender != receiver).then(|| rtrb::RingBuffer::new(QUEUE_MESSAGES)).unzip();
            ends.push(ends_of_pair.0);
            arrivals.push(ends_of_pair.1);
        }
    }
    to.into_iter()
        .zip(from)
        .zip(0..shards)
        .map(|((to, from), own)| {
            let peers = to.into_iter().zip(from).map(|(to, from)| {
                let (to, from) = to.zip(from)?;
                Some(Peer { to, from, doorbell: None, outbox: VecDeque::new(), pushed: false })
            });
            Mailboxes { own, peers: peers.collect() }
        })
        .collect()
}

impl Mailboxes {
    /// The shard that these belong to.
    pub fn own(&self) -> u16 {
        self.own
    }

    /// Shards in all.
    pub(super) fn shards(&self) -> u16 {
        self.peers.len() as u16
    }

    /// How to wake each shard, in the order of the shards.
    pub fn set_doorbells(&mut self, doorbells: &[Doorbell]) {
        for (peer, doorbell) in self.peers.iter_mut().zip(doorbells) {
            if let Some(peer) = peer {
                peer.doorbell = Some(doorbell.clone());
            }
        }
    }

    /// Sends, or keeps for the next turn what does not fit now.
    pub(super) fn send(&mut self, shard: u16, mail: Mail) {
        let Some(Some(peer)) = self.peers.get_mut(usize::from(shard)) else {
            panic!("shard {} has no queue to shard {shard}", self.own);
        };
        peer.pushed = true;
        if peer.outbox.is_empty() {
            if let Err(rtrb::PushError::Full(mail)) = peer.to.push(mail) {
                peer.outbox.push_back(mail);
            }
        } else {
            peer.outbox.push_back(mail);
        }
    }

    /// The queue to a shard is full: admit nothing new for it.
    pub(super) fn is_full(&self, shard: u16) -> bool {
        self.peers
            .get(usize::from(shard))
            .and_then(Option::as_ref)
            .is_some_and(|peer| !peer.outbox.is_empty())
    }

    /// The next message from any shard.
    pub(super) fn receive(&mut self) -> Option<Mail> {
        self.peers.iter_mut().flatten().find_map(|peer| peer.from.pop().ok())
    }

    /// Sends what was kept and wakes the shards that were sent something (M2). Answers whether anything is left.
    pub(super) fn flush(&mut self) -> bool {
        let mut left = false;
        for peer in self.peers.iter_mut().flatten() {
            while let Some(mail) = peer.outbox.pop_front() {
                if let Err(rtrb::PushError::Full(mail)) = peer.to.push(mail) {
                    peer.outbox.push_front(mail);
                    break;
                }
                peer.pushed = true;
            }
            left |= !peer.outbox.is_empty();
            if std::mem::take(&mut peer.pushed)
                && let Some(doorbell) = &peer.doorbell
            {
                doorbell.ring();
            }
        }
        left
    }
}
