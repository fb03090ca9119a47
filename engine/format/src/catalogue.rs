//! A topic at rest: payload of TOPIC frames and item of checkpoints.

use crate::corruption::{Corruption, Damage, demand_zero};
use crate::ids::{PartitionId, TopicId};
use crate::limits::TOPIC_PARTITIONS_MAX;
use crate::name::check_topic_name;
use zerocopy::little_endian::{I64, U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "topic entry";

/// In front of a topic's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TopicEntryHeader {
    /// Topic.
    pub topic: U32,
    /// First partition; the others follow.
    pub first_partition: U32,
    /// Number of partitions.
    pub partitions: U32,
    /// Bytes of the name behind this header.
    pub name_len: U16,
    /// 1 live, 2 deleted.
    pub state: u8,
    /// Zero.
    pub reserved: [u8; 9],
    /// Wall clock at creation, Unix milliseconds.
    pub created_ms: I64,
}

const _: () = assert!(size_of::<TopicEntryHeader>() == 32);

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicEntry {
    /// Topic.
    pub topic: TopicId,
    /// First partition; the others follow.
    pub first_partition: PartitionId,
    /// Number of partitions.
    pub partitions: u32,
    /// Deleted: its ids stay taken, its name may be given to a new topic.
    pub deleted: bool,
    /// Wall clock at creation.
    pub created_ms: i64,
    /// Name, checked.
    pub name: String,
}

impl TopicEntry {
    /// Appends the entry: header and name, unpadded.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let header = TopicEntryHeader {
            topic: U32::new(self.topic.0),
            first_partition: U32::new(self.first_partition.0),
            partitions: U32::new(self.partitions),
            name_len: U16::new(self.name.len() as u16),
            state: if self.deleted { 2 } else { 1 },
            reserved: [0; 9],
            created_ms: I64::new(self.created_ms),
        };
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(self.name.as_bytes());
    }

    /// Takes an entry off the front of `bytes`.
    pub fn take(bytes: &mut &[u8]) -> Result<Self, Corruption> {
        let field = |name, found: u64| Corruption::new(WHAT, name, Damage::Field, 0, found);
        let (header, rest) =
            TopicEntryHeader::read_from_prefix(bytes).map_err(|_| field("header", bytes.len() as u64))?;
        demand_zero(WHAT, "reserved", &header.reserved)?;
        let name_len = usize::from(header.name_len.get());
        let (name, rest) =
            rest.split_at_checked(name_len).ok_or_else(|| field("name_len", name_len as u64))?;
        let name = check_topic_name(name).map_err(|_| field("name", name_len as u64))?.to_owned();
        let partitions = header.partitions.get();
        if partitions == 0 || partitions > TOPIC_PARTITIONS_MAX {
            return Err(field("partitions", u64::from(partitions)));
        }
        let first = header.first_partition.get();
        if first == 0 || first.checked_add(partitions).is_none() || header.topic.get() == 0 {
            return Err(field("first_partition", u64::from(first)));
        }
        if !(1..=2).contains(&header.state) {
            return Err(field("state", u64::from(header.state)));
        }
        *bytes = rest;
        Ok(Self {
            topic: TopicId(header.topic.get()),
            first_partition: PartitionId(first),
            partitions,
            deleted: header.state == 2,
            created_ms: header.created_ms.get(),
            name,
        })
    }

    /// The ids of its partitions.
    pub fn partition_ids(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (self.first_partition.0..self.first_partition.0 + self.partitions).map(PartitionId)
    }
}
