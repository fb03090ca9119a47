//! What shards say to each other about groups.

use super::membership::{Change, Joining};
use super::settings::Given;
use ringmq_format::consumer_group::{ConsumerGroup, GroupStart};
use ringmq_format::{GroupId, Offset, PartitionId, TopicId};
use ringmq_protocol::{ErrorCode, FetchedOffset, GroupPosition, ItemsBuf, Outcome, ResetEntry};
use std::collections::BTreeSet;

/// Why something was not done, with what a client is told.
pub(in crate::shard) type Refused = (ErrorCode, String);

/// Work for the shard that has it.
#[derive(Debug)]
pub(in crate::shard) enum GroupWork {
    // For the coordinator.
    Join(Box<Join>),
    Heartbeat {
        group: GroupId,
        member: u64,
        generation: u64,
        wait_ms: u32,
        reported: Option<Vec<(PartitionId, u64)>>,
    },
    Leave {
        group: GroupId,
        member: u64,
        forget: bool,
    },
    Set {
        name: String,
        make: bool,
        alter: bool,
        given: Box<Given>,
    },
    Delete {
        name: String,
        force: bool,
    },
    Members {
        group: GroupId,
        after: Option<(PartitionId, u64)>,
        limit: usize,
        with_members: bool,
    },
    // For the owner of partitions.
    Commit(Box<Commit>),
    FetchOffsets(Box<FetchOffsets>),
    Forget {
        group: GroupId,
        instance: u64,
    },
    Positions(Box<Positions>),
    Lags {
        groups: Vec<GroupId>,
    },
    Reset(Box<Reset>),
    /// From a coordinator to everybody, in order.
    Tell {
        coordinator: u16,
        epoch: u32,
        notices: Vec<Notice>,
    },
}

#[derive(Debug)]
pub(in crate::shard) struct Join {
    pub(super) group: String,
    pub(super) create: bool,
    pub(super) given: Given,
    pub(super) join: Joining,
}

#[derive(Debug)]
pub(in crate::shard) struct Commit {
    pub(super) group: GroupId,
    pub(super) member: u64,
    pub(super) generation: u64,
    pub(super) instance: u64,
    pub(super) txn: u128,
    /// With the place in the request.
    pub(super) positions: Vec<(u32, PartitionId, Offset)>,
}

#[derive(Debug)]
pub(in crate::shard) struct FetchOffsets {
    pub(super) group: GroupId,
    pub(super) member: u64,
    pub(super) generation: u64,
    pub(super) instance: u64,
    pub(super) claim: bool,
    /// With the place in the request.
    pub(super) partitions: Vec<(u32, PartitionId)>,
}

#[derive(Debug)]
pub(in crate::shard) struct Positions {
    pub(super) group: GroupId,
    pub(super) after: Option<(PartitionId, u64)>,
    pub(super) limit: usize,
    /// Where subscribers without a stable name say that they stand.
    pub(super) reported: Vec<(PartitionId, u64, u64)>,
}

#[derive(Debug)]
pub(in crate::shard) struct Reset {
    pub(super) group: GroupId,
    pub(super) instance: u64,
    pub(super) to: GroupStart,
    pub(super) dry_run: bool,
    /// With the place in the answer.
    pub(super) partitions: Vec<(u32, PartitionId)>,
}

/// Something that every shard has to know.
#[derive(Clone, Debug)]
pub(in crate::shard) enum Notice {
    /// A group, made, changed or deleted; durable.
    Group(Box<ConsumerGroup>),
    /// Members that came and went, in this order.
    Members { group: GroupId, changes: Vec<Change> },
    /// That is all that there was at the coordinator's start.
    Complete,
}

/// What comes back.
#[derive(Debug)]
pub(in crate::shard) enum GroupAnswer {
    Refused(Refused),
    Joined(Box<Joined>),
    Beat { generation: u64, heartbeat_ms: u32, assignments: ItemsBuf },
    Left,
    Set { group: GroupId },
    Deleted,
    Members(Box<Members>),
    Committed(Vec<(u32, Outcome)>),
    Fetched(Vec<(u32, FetchedOffset)>),
    Positions(Box<FoundPositions>),
    Lags(Vec<Lag>),
    Reset(Vec<(u32, ResetEntry)>),
    // To a coordinator.
    Told,
    Logged { durable: bool },
    Forgotten { failed: Option<ErrorCode> },
}

#[derive(Debug)]
pub(in crate::shard) struct Joined {
    pub(super) group: GroupId,
    pub(super) member: u64,
    pub(super) instance: u64,
    pub(super) generation: u64,
    pub(super) session_ms: u32,
    pub(super) assignments: ItemsBuf,
    /// Somebody is just giving up what this member gets.
    pub(super) hands_over: bool,
}

/// What a coordinator knows of a group.
#[derive(Debug)]
pub(in crate::shard) struct Members {
    pub(super) generation: u64,
    pub(super) count: u32,
    pub(super) members: ItemsBuf,
    /// Who has which partition, by partition; as far as the page may need it.
    pub(super) owners: Vec<(PartitionId, u64)>,
    /// Which member is which broadcast instance.
    pub(super) instances: Vec<(u64, u64)>,
    /// Where subscribers without a stable name say that they stand: partition, member, offset.
    pub(super) reported: Vec<(PartitionId, u64, u64)>,
}

/// Records and time that a group is behind, over all partitions of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::shard) struct Lag {
    pub(super) topics: BTreeSet<TopicId>,
    /// `u64::MAX`: not known.
    pub(super) records: u64,
    pub(super) ms: u64,
}

impl Lag {
    /// Adds another one.
    pub(super) fn add(&mut self, other: &Self) {
        self.topics.extend(other.topics.iter().copied());
        let unknown = self.records == u64::MAX || other.records == u64::MAX;
        self.records = if unknown { u64::MAX } else { self.records.saturating_add(other.records) };
        self.ms = self.ms.max(other.ms);
    }
}

#[derive(Debug)]
pub(in crate::shard) struct FoundPositions {
    /// With partition and instance, in this order.
    pub(super) rows: Vec<(PartitionId, u64, GroupPosition)>,
    pub(super) lag: Lag,
}

impl GroupWork {
    /// The partition that it is about; of several, the one that was made last.
    pub(in crate::shard) fn partition(&self) -> Option<PartitionId> {
        match self {
            Self::Commit(commit) => commit.positions.iter().map(|entry| entry.1).max(),
            Self::FetchOffsets(fetch) => fetch.partitions.iter().map(|entry| entry.1).max(),
            Self::Reset(reset) => reset.partitions.iter().map(|entry| entry.1).max(),
            _ => None,
        }
    }
}
