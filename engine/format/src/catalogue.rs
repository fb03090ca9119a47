//! A topic at rest: payload of TOPIC frames and item of checkpoints.

use crate::corruption::{Corruption, Damage, demand_zero};
use crate::ids::{PartitionId, TopicId};
use crate::limits::TOPIC_PARTITIONS_MAX;
use crate::name::check_topic_name;
use zerocopy::little_endian::{I64, U16, U32, U64};
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
    /// 1: [`TopicSettingsItem`] stands behind the name; 0: all settings are the default.
    pub settings: u8,
    /// How often its settings were changed.
    pub revision: U32,
    /// Zero.
    pub reserved: [u8; 4],
    /// Wall clock at creation, Unix milliseconds.
    pub created_ms: I64,
}

/// Settings of a topic, behind its name. 0 is no limit of its own, everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TopicSettingsItem {
    /// Age at which records may go, milliseconds.
    pub retention_ms: U64,
    /// Bytes above which the oldest records may go.
    pub retention_bytes: U64,
    /// Longest delay of a message, milliseconds.
    pub delay_max_ms: U64,
    /// Age after which groups get a record no more, milliseconds.
    pub ttl_ms: U64,
    /// Bytes a second from all producers.
    pub rate_bytes: U64,
    /// Bytes a second from one connection.
    pub producer_rate_bytes: U64,
    /// Records a second from all producers.
    pub rate_records: U32,
    /// Largest record in bytes.
    pub record_size_max: U32,
    /// [`TopicKind`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

const _: () = {
    assert!(size_of::<TopicEntryHeader>() == 32);
    assert!(size_of::<TopicSettingsItem>() == 64);
};

/// Which messages a topic takes. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum TopicKind {
    /// All of them.
    #[default]
    Mixed = 0,
    /// Neither delayed nor transactional ones.
    Normal = 1,
    /// Only those with a key: groups deliver them in order.
    Fifo = 2,
    /// Delayed ones too.
    Delay = 3,
    /// Transactional ones too.
    Transaction = 4,
}

impl TopicKind {
    /// The kind with this number.
    pub fn parse(number: u8) -> Option<Self> {
        [Self::Mixed, Self::Normal, Self::Fifo, Self::Delay, Self::Transaction]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }

    /// Whether it takes messages with a due time.
    pub fn takes_delays(self) -> bool {
        matches!(self, Self::Mixed | Self::Delay)
    }

    /// Whether it takes messages of transactions.
    pub fn takes_transactions(self) -> bool {
        matches!(self, Self::Mixed | Self::Transaction)
    }
}

/// Settings of a topic. 0 is no limit of its own, everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "as TopicSettingsItem says")]
pub struct TopicSettings {
    pub kind: TopicKind,
    pub retention_ms: u64,
    pub retention_bytes: u64,
    pub delay_max_ms: u64,
    pub ttl_ms: u64,
    pub rate_bytes: u64,
    pub rate_records: u32,
    pub record_size_max: u32,
    pub producer_rate_bytes: u64,
}

impl TopicSettings {
    fn item(&self) -> TopicSettingsItem {
        TopicSettingsItem {
            retention_ms: self.retention_ms.into(),
            retention_bytes: self.retention_bytes.into(),
            delay_max_ms: self.delay_max_ms.into(),
            ttl_ms: self.ttl_ms.into(),
            rate_bytes: self.rate_bytes.into(),
            producer_rate_bytes: self.producer_rate_bytes.into(),
            rate_records: self.rate_records.into(),
            record_size_max: self.record_size_max.into(),
            kind: self.kind as u8,
            reserved: [0; 7],
        }
    }

    fn from_item(item: &TopicSettingsItem) -> Result<Self, Corruption> {
        demand_zero(WHAT, "settings.reserved", &item.reserved)?;
        let kind = TopicKind::parse(item.kind)
            .ok_or_else(|| Corruption::new(WHAT, "kind", Damage::Field, 0, u64::from(item.kind)))?;
        Ok(Self {
            kind,
            retention_ms: item.retention_ms.get(),
            retention_bytes: item.retention_bytes.get(),
            delay_max_ms: item.delay_max_ms.get(),
            ttl_ms: item.ttl_ms.get(),
            rate_bytes: item.rate_bytes.get(),
            rate_records: item.rate_records.get(),
            record_size_max: item.record_size_max.get(),
            producer_rate_bytes: item.producer_rate_bytes.get(),
        })
    }
}

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
    /// How often its settings were changed.
    pub revision: u32,
    /// Its settings.
    pub settings: TopicSettings,
}

impl TopicEntry {
    /// Appends the entry: header, name, and settings if they are not all the default; unpadded.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let has_settings = self.settings != TopicSettings::default();
        let header = TopicEntryHeader {
            topic: U32::new(self.topic.0),
            first_partition: U32::new(self.first_partition.0),
            partitions: U32::new(self.partitions),
            name_len: U16::new(self.name.len() as u16),
            state: if self.deleted { 2 } else { 1 },
            settings: u8::from(has_settings),
            revision: U32::new(self.revision),
            reserved: [0; 4],
            created_ms: I64::new(self.created_ms),
        };
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(self.name.as_bytes());
        if has_settings {
            out.extend_from_slice(self.settings.item().as_bytes());
        }
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
        let (settings, rest) = match header.settings {
            0 => (TopicSettings::default(), rest),
            1 => {
                let (item, rest) = TopicSettingsItem::ref_from_prefix(rest)
                    .map_err(|_| field("settings", rest.len() as u64))?;
                (TopicSettings::from_item(item)?, rest)
            }
            other => return Err(field("settings", u64::from(other))),
        };
        *bytes = rest;
        Ok(Self {
            topic: TopicId(header.topic.get()),
            first_partition: PartitionId(first),
            partitions,
            deleted: header.state == 2,
            created_ms: header.created_ms.get(),
            name,
            revision: header.revision.get(),
            settings,
        })
    }

    /// The ids of its partitions.
    pub fn partition_ids(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (self.first_partition.0..self.first_partition.0 + self.partitions).map(PartitionId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_with_and_without_settings() {
        let plain = TopicEntry {
            topic: TopicId(3),
            first_partition: PartitionId(9),
            partitions: 4,
            deleted: false,
            created_ms: 77,
            name: "orders".to_owned(),
            revision: 0,
            settings: TopicSettings::default(),
        };
        let settings = TopicSettings {
            kind: TopicKind::Delay,
            retention_ms: 1,
            retention_bytes: 2,
            delay_max_ms: 3,
            ttl_ms: 4,
            rate_bytes: 5,
            rate_records: 6,
            record_size_max: 7,
            producer_rate_bytes: 8,
        };
        let altered = TopicEntry { revision: 5, settings, ..plain.clone() };
        let mut bytes = Vec::new();
        plain.encode(&mut bytes);
        assert_eq!(bytes.len(), 32 + 6);
        altered.encode(&mut bytes);
        let mut rest = &bytes[..];
        assert_eq!(TopicEntry::take(&mut rest).unwrap(), plain);
        assert_eq!(TopicEntry::take(&mut rest).unwrap(), altered);
        assert!(rest.is_empty());
        for cut in 39..bytes.len() {
            assert!(TopicEntry::take(&mut &bytes[38..cut]).is_err(), "{cut}");
        }
    }
}
