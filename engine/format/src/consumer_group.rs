//! A consumer group at rest: payload of GROUP frames and item of checkpoints.

use crate::corruption::{Corruption, Damage, demand_zero};
use crate::ids::GroupId;
use crate::limits::{BACKOFF_STEPS_MAX, FILTER_SIZE_MAX, GROUP_SUBSCRIPTIONS_MAX};
use crate::name::check_topic_name;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "consumer group";

/// How the members of a group share what it consumes. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GroupMode {
    /// Each partition has one member, who reads it in order and commits offsets.
    Stream = 1,
    /// Members share partitions record by record: receive, then ack.
    Queue = 2,
    /// Every instance gets every record.
    Broadcast = 3,
}

impl GroupMode {
    /// The mode with this number.
    pub fn parse(number: u8) -> Option<Self> {
        [Self::Stream, Self::Queue, Self::Broadcast].into_iter().find(|mode| *mode as u8 == number)
    }
}

/// Where a group starts in a partition in which it has no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GroupStart {
    /// The first record that is there.
    #[default]
    Earliest,
    /// The next record that comes.
    Latest,
    /// The first record appended at or after this time, Unix milliseconds.
    Time(i64),
    /// This offset, or the nearest that is there.
    Offset(u64),
}

impl GroupStart {
    /// Number and value, as they are stored and sent.
    pub fn parts(self) -> (u8, i64) {
        match self {
            Self::Earliest => (1, 0),
            Self::Latest => (2, 0),
            Self::Time(time) => (3, time),
            Self::Offset(offset) => (4, offset as i64),
        }
    }

    /// From number and value.
    pub fn parse(kind: u8, value: i64) -> Option<Self> {
        match (kind, value) {
            (1, 0) => Some(Self::Earliest),
            (2, 0) => Some(Self::Latest),
            (3, time) => Some(Self::Time(time)),
            (4, offset) => Some(Self::Offset(offset as u64)),
            _ => None,
        }
    }
}

/// In front of a group's name; behind that `backoff_steps` times in four bytes each, then `subscriptions`
/// subscriptions: [`GroupSubscriptionHeader`], topic, filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ConsumerGroupHeader {
    /// Group.
    pub group: U32,
    /// Bytes of the name.
    pub name_len: U16,
    /// 1 live, 2 deleted.
    pub state: u8,
    /// [`GroupMode`]; 0 before it had a member.
    pub mode: u8,
    /// Wall clock at creation, Unix milliseconds.
    pub created_ms: I64,
    /// With `start`.
    pub start_value: I64,
    /// Bytes a second; 0 is no limit.
    pub rate_bytes: U64,
    /// Records a second; 0 is no limit.
    pub rate_records: U32,
    /// Records in flight in a partition; 0 is no limit.
    pub concurrency: U32,
    /// Time for which a received record is not given to anybody else, milliseconds.
    pub invisible_ms: U32,
    /// Deliveries before a record becomes a dead letter.
    pub max_attempts: U16,
    /// Pauses after failed deliveries that follow the name.
    pub backoff_steps: U16,
    /// Subscriptions that follow those.
    pub subscriptions: U16,
    /// [`GroupStart`].
    pub start: u8,
    /// 1: one record of a key is in flight at a time.
    pub ordered: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

/// In front of a subscription's topic and filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupSubscriptionHeader {
    /// Bytes of the topic's name.
    pub topic_len: U16,
    /// Bytes of the filter behind it.
    pub filter_len: U16,
}

const _: () = {
    assert!(size_of::<ConsumerGroupHeader>() == 56);
    assert!(size_of::<GroupSubscriptionHeader>() == 4);
};

/// Settings of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOptions {
    /// Where it starts in a partition in which it has no position.
    pub start: GroupStart,
    /// Deliveries before a record becomes a dead letter.
    pub max_attempts: u16,
    /// Pause after each failed delivery, milliseconds; the last one repeats.
    pub backoff_ms: Vec<u32>,
    /// Time for which a received record is not given to anybody else, milliseconds.
    pub invisible_ms: u32,
    /// One record of a key is in flight at a time.
    pub ordered: bool,
    /// Bytes a second over all members; 0 is no limit.
    pub rate_bytes: u64,
    /// Records a second over all members; 0 is no limit.
    pub rate_records: u32,
    /// Records in flight over all members, for each partition; 0 is no limit.
    pub concurrency: u32,
}

impl Default for GroupOptions {
    /// What is not asked for. The steps are RocketMQ's from the third on, where its retries begin.
    fn default() -> Self {
        let seconds = [10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1_200, 1_800, 3_600, 7_200];
        Self {
            start: GroupStart::Earliest,
            max_attempts: 16,
            backoff_ms: seconds.map(|seconds| seconds * 1_000).to_vec(),
            invisible_ms: 60_000,
            ordered: false,
            rate_bytes: 0,
            rate_records: 0,
            concurrency: 0,
        }
    }
}

/// A topic and which of its records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupSubscription {
    /// The topic's name.
    pub topic: String,
    /// Tag or property expression; empty or `*` is all.
    pub filter: String,
}

/// A consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroup {
    /// Its id.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// It is no more: its id stays taken, its name may be given to another.
    pub deleted: bool,
    /// How it consumes; `None` before it had a member.
    pub mode: Option<GroupMode>,
    /// Wall clock at creation.
    pub created_ms: i64,
    /// Its settings.
    pub options: GroupOptions,
    /// What its members consume.
    pub subscriptions: Vec<GroupSubscription>,
}

impl ConsumerGroup {
    /// Appends the entry, unpadded.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let options = &self.options;
        let (start, start_value) = options.start.parts();
        let header = ConsumerGroupHeader {
            group: U32::new(self.group.0),
            name_len: U16::new(self.name.len() as u16),
            state: if self.deleted { 2 } else { 1 },
            mode: self.mode.map_or(0, |mode| mode as u8),
            created_ms: I64::new(self.created_ms),
            start_value: I64::new(start_value),
            rate_bytes: U64::new(options.rate_bytes),
            rate_records: U32::new(options.rate_records),
            concurrency: U32::new(options.concurrency),
            invisible_ms: U32::new(options.invisible_ms),
            max_attempts: U16::new(options.max_attempts),
            backoff_steps: U16::new(options.backoff_ms.len() as u16),
            subscriptions: U16::new(self.subscriptions.len() as u16),
            start,
            ordered: u8::from(options.ordered),
            reserved: [0; 4],
        };
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(self.name.as_bytes());
        options.backoff_ms.iter().for_each(|step| out.extend_from_slice(&step.to_le_bytes()));
        for subscription in &self.subscriptions {
            let header = GroupSubscriptionHeader {
                topic_len: U16::new(subscription.topic.len() as u16),
                filter_len: U16::new(subscription.filter.len() as u16),
            };
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(subscription.topic.as_bytes());
            out.extend_from_slice(subscription.filter.as_bytes());
        }
    }

    /// Takes an entry off the front of `bytes`.
    pub fn take(bytes: &mut &[u8]) -> Result<Self, Corruption> {
        let field = |name, found: usize| Corruption::new(WHAT, name, Damage::Field, 0, found as u64);
        let (header, mut rest) =
            ConsumerGroupHeader::read_from_prefix(bytes).map_err(|_| field("header", bytes.len()))?;
        demand_zero(WHAT, "reserved", &header.reserved)?;
        let mut part = |name, len: usize| {
            let (part, behind) = rest.split_at_checked(len).ok_or_else(|| field(name, len))?;
            rest = behind;
            Ok::<_, Corruption>(part)
        };
        let name_of =
            |bytes| check_topic_name(bytes).map(str::to_owned).map_err(|_| field("name", bytes.len()));
        let name = name_of(part("name_len", usize::from(header.name_len.get()))?)?;
        let steps = usize::from(header.backoff_steps.get());
        let count = usize::from(header.subscriptions.get());
        if steps > BACKOFF_STEPS_MAX || count > GROUP_SUBSCRIPTIONS_MAX {
            return Err(field("backoff_steps or subscriptions", steps.max(count)));
        }
        let backoff_ms = part("backoff_steps", steps * 4)?
            .chunks_exact(4)
            .map(|step| u32::from_le_bytes([step[0], step[1], step[2], step[3]]))
            .collect();
        let mut subscriptions = Vec::with_capacity(count);
        for _ in 0..count {
            let head = part("subscription", size_of::<GroupSubscriptionHeader>())?;
            let head =
                GroupSubscriptionHeader::read_from_bytes(head).map_err(|_| field("subscription", 0))?;
            let filter_len = usize::from(head.filter_len.get());
            let topic = name_of(part("topic_len", usize::from(head.topic_len.get()))?)?;
            let filter = part("filter_len", filter_len)?;
            if filter_len > FILTER_SIZE_MAX {
                return Err(field("filter_len", filter_len));
            }
            let filter = std::str::from_utf8(filter).map_err(|error| field("filter", error.valid_up_to()))?;
            subscriptions.push(GroupSubscription { topic, filter: filter.to_owned() });
        }
        let mode = match header.mode {
            0 => None,
            number => Some(GroupMode::parse(number).ok_or_else(|| field("mode", usize::from(number)))?),
        };
        let start = GroupStart::parse(header.start, header.start_value.get())
            .ok_or_else(|| field("start", usize::from(header.start)))?;
        let known = (1..=2).contains(&header.state) && header.ordered <= 1 && header.group.get() != 0;
        if !known {
            return Err(field("state, ordered or group", usize::from(header.state)));
        }
        *bytes = rest;
        Ok(Self {
            group: GroupId(header.group.get()),
            name,
            deleted: header.state == 2,
            mode,
            created_ms: header.created_ms.get(),
            options: GroupOptions {
                start,
                max_attempts: header.max_attempts.get(),
                backoff_ms,
                invisible_ms: header.invisible_ms.get(),
                ordered: header.ordered == 1,
                rate_bytes: header.rate_bytes.get(),
                rate_records: header.rate_records.get(),
                concurrency: header.concurrency.get(),
            },
            subscriptions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_comes_back_and_nonsense_is_refused() {
        let group = ConsumerGroup {
            group: GroupId(5),
            name: "invoices".to_owned(),
            deleted: false,
            mode: Some(GroupMode::Queue),
            created_ms: 7,
            options: GroupOptions { start: GroupStart::Time(-3), ordered: true, ..GroupOptions::default() },
            subscriptions: vec![
                GroupSubscription { topic: "orders".to_owned(), filter: "a || b".to_owned() },
                GroupSubscription { topic: "returns".to_owned(), filter: String::new() },
            ],
        };
        let mut bytes = Vec::new();
        group.encode(&mut bytes);
        let mut rest = &bytes[..];
        assert_eq!(ConsumerGroup::take(&mut rest), Ok(group));
        assert!(rest.is_empty());
        for cut in 0..bytes.len() {
            assert!(ConsumerGroup::take(&mut &bytes[..cut]).is_err(), "cut to {cut}");
        }
        for (at, value) in [(0, 0), (6, 3), (7, 4), (50, 0), (51, 2), (52, 1), (46, 65), (48, 65), (56, b'/')]
        {
            let mut bad = bytes.clone();
            bad[at] = value;
            assert!(ConsumerGroup::take(&mut &bad[..]).is_err(), "byte {at} = {value}");
        }
    }
}
