//! What shards say to each other. The queues that carry it are in `mailbox`.

use super::groups::{GroupAnswer, GroupWork};
use super::late::{LateAnswer, LateWork, SettingsPatch};
use super::queues::{QueueAnswer, QueueWork};
use super::topics::{NewTopic, TopicState};
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::{GroupId, Offset, PartitionId};
use ringmq_protocol::{ErrorCode, ProduceOutcome};

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
    Fetch { correlation: u64, handle: u32, max_bytes: u32, wait_ms: u32, group: GroupId },
    /// Goes on while there is credit.
    Push { subscription: u32, credit: u64, group: GroupId },
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
    Group(GroupWork),
    /// For groups that consume record by record.
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
    Group(GroupAnswer),
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
