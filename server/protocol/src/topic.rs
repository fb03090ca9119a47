//! Settings and statistics of a topic.

use crate::fields::{Fields, put, put_string};
use crate::limits::NAME_STRING_MAX;
use crate::request::{flag, wire};
use crate::response::TopicEntry;
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

wire! {
    /// ALTER_TOPIC; then the name and the settings.
    AlterTopicHead = 8 { flags: U32, reserved: U32, }
    /// Settings of a topic.
    TopicSettingsWire = 80 {
        set: U32, partitions: U32, retention_ms: U64, retention_bytes: U64, delay_max_ms: U64, ttl_ms: U64,
        rate_bytes: U64, rate_records: U32, record_size_max: U32, producer_rate_bytes: U64, kind: u8,
        reserved: [u8; 15],
    }
    /// Answer to TOPIC_STATS; then the topic and its settings.
    TopicStatsHead = 120 {
        created_ms: I64, records: U64, bytes: U64, first_time_ms: I64, last_time_ms: I64, appended_records: U64,
        appended_bytes: U64, read_bytes: U64, records_per_second: U64, bytes_per_second: U64, pending_delays: U64,
        open_halves: U64, pinned_bytes: U64, throttled: U64, groups: U32, reserved: U32,
    }
}

/// ALTER_TOPIC: make the topic if it does not exist.
pub const ALTER_TOPIC_CREATE: u32 = 1;

pub use ringmq_format::catalogue::TopicKind;

/// Settings of a topic, each of which may be left out: a topic that is made takes the default then, one that is
/// altered keeps what it has. In answers all are given. For times and sizes 0 is "no limit of its own".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TopicSettings {
    /// Which messages it takes (default all). Cannot be changed while messages of the other kind are pending.
    pub kind: Option<TopicKind>,
    /// Partitions (default 1). Only ever more: keys then go to other partitions.
    pub partitions: Option<u32>,
    /// Age at which records may go.
    pub retention_ms: Option<u64>,
    /// Size above which the oldest records may go.
    pub retention_bytes: Option<u64>,
    /// Longest delay of a message.
    pub delay_max_ms: Option<u64>,
    /// Age after which a record is not delivered to groups any more.
    pub ttl_ms: Option<u64>,
    /// Bytes a second that are taken from all producers.
    pub rate_bytes: Option<u64>,
    /// Records a second that are taken from all producers.
    pub rate_records: Option<u32>,
    /// Bytes a second that are taken from one connection.
    pub producer_rate_bytes: Option<u64>,
    /// Largest record: body, key, tag and properties.
    pub record_size_max: Option<u32>,
}

const KIND: u32 = 1;
const PARTITIONS: u32 = 1 << 1;
const RETENTION_MS: u32 = 1 << 2;
const RETENTION_BYTES: u32 = 1 << 3;
const DELAY_MAX: u32 = 1 << 4;
const TTL: u32 = 1 << 5;
const RATE_BYTES: u32 = 1 << 6;
const RATE_RECORDS: u32 = 1 << 7;
const PRODUCER_RATE: u32 = 1 << 8;
const RECORD_SIZE: u32 = 1 << 9;
const ALL: u32 = (1 << 10) - 1;

impl TopicSettings {
    /// `strict` in requests, where a setting that is not known is refused; a later server may send one.
    pub(crate) fn take(fields: &mut Fields<'_>, strict: bool) -> Option<Self> {
        let wire = fields.take::<TopicSettingsWire>()?;
        let set = wire.set.get();
        if strict && (set & !ALL != 0 || wire.reserved != [0; 15]) {
            return None;
        }
        let given = |bit| set & bit != 0;
        let kind = if given(KIND) { Some(TopicKind::parse(wire.kind)?) } else { None };
        let settings = Self {
            kind,
            partitions: given(PARTITIONS).then(|| wire.partitions.get()),
            retention_ms: given(RETENTION_MS).then(|| wire.retention_ms.get()),
            retention_bytes: given(RETENTION_BYTES).then(|| wire.retention_bytes.get()),
            delay_max_ms: given(DELAY_MAX).then(|| wire.delay_max_ms.get()),
            ttl_ms: given(TTL).then(|| wire.ttl_ms.get()),
            rate_bytes: given(RATE_BYTES).then(|| wire.rate_bytes.get()),
            rate_records: given(RATE_RECORDS).then(|| wire.rate_records.get()),
            producer_rate_bytes: given(PRODUCER_RATE).then(|| wire.producer_rate_bytes.get()),
            record_size_max: given(RECORD_SIZE).then(|| wire.record_size_max.get()),
        };
        // What is not given is zero.
        (!strict || settings.wire().as_bytes() == wire.as_bytes()).then_some(settings)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(out, &self.wire());
    }

    fn wire(&self) -> TopicSettingsWire {
        let bit = |given: bool, bit| if given { bit } else { 0 };
        let set = bit(self.kind.is_some(), KIND)
            | bit(self.partitions.is_some(), PARTITIONS)
            | bit(self.retention_ms.is_some(), RETENTION_MS)
            | bit(self.retention_bytes.is_some(), RETENTION_BYTES)
            | bit(self.delay_max_ms.is_some(), DELAY_MAX)
            | bit(self.ttl_ms.is_some(), TTL)
            | bit(self.rate_bytes.is_some(), RATE_BYTES)
            | bit(self.rate_records.is_some(), RATE_RECORDS)
            | bit(self.producer_rate_bytes.is_some(), PRODUCER_RATE)
            | bit(self.record_size_max.is_some(), RECORD_SIZE);
        let u64_of = |value: Option<u64>| U64::new(value.unwrap_or(0));
        let u32_of = |value: Option<u32>| U32::new(value.unwrap_or(0));
        TopicSettingsWire {
            set: U32::new(set),
            partitions: u32_of(self.partitions),
            retention_ms: u64_of(self.retention_ms),
            retention_bytes: u64_of(self.retention_bytes),
            delay_max_ms: u64_of(self.delay_max_ms),
            ttl_ms: u64_of(self.ttl_ms),
            rate_bytes: u64_of(self.rate_bytes),
            rate_records: u32_of(self.rate_records),
            record_size_max: u32_of(self.record_size_max),
            producer_rate_bytes: u64_of(self.producer_rate_bytes),
            kind: self.kind.map_or(0, |kind| kind as u8),
            reserved: [0; 15],
        }
    }
}

/// Changes the settings of a topic; with nothing given it only reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlterTopic<'a> {
    /// The topic.
    pub name: &'a str,
    /// Make it if it does not exist.
    pub create: bool,
    /// The settings; those that are not given stay, or take their defaults.
    pub settings: TopicSettings,
}

impl<'a> AlterTopic<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<AlterTopicHead>()?;
        let alter = Self {
            name: fields.string(NAME_STRING_MAX)?,
            create: flag(head.flags, ALTER_TOPIC_CREATE)?,
            settings: TopicSettings::take(&mut fields, true)?,
        };
        fields.end(alter).filter(|_| head.reserved == U32::ZERO)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = U32::new(if self.create { ALTER_TOPIC_CREATE } else { 0 });
        put(out, &AlterTopicHead { flags, reserved: U32::ZERO });
        put_string(out, self.name, NAME_STRING_MAX);
        self.settings.put(out);
    }
}

/// Answer to ALTER_TOPIC: the topic with all its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlteredTopic<'a> {
    /// The topic.
    pub topic: TopicEntry<'a>,
    /// Its settings, all of them.
    pub settings: TopicSettings,
}

impl<'a> AlteredTopic<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        Some(Self { topic: TopicEntry::take(fields)?, settings: TopicSettings::take(fields, false)? })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        self.topic.put(out);
        self.settings.put(out);
    }
}

/// Answer to TOPIC_STATS. `u64::MAX` is "not known".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicStats<'a> {
    /// The topic.
    pub topic: TopicEntry<'a>,
    /// Its settings, all of them.
    pub settings: TopicSettings,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Records that can be read.
    pub records: u64,
    /// Bytes of their frames on disk.
    pub bytes: u64,
    /// When the first of them became visible, Unix milliseconds; 0 if there is none.
    pub first_time_ms: i64,
    /// When the last of them became visible, Unix milliseconds; 0 if there is none.
    pub last_time_ms: i64,
    /// Records taken since the server started.
    pub appended_records: u64,
    /// Bytes of frames taken since the server started.
    pub appended_bytes: u64,
    /// Bytes of frames read since the server started.
    pub read_bytes: u64,
    /// Records a second lately.
    pub records_per_second: u64,
    /// Bytes of frames a second lately.
    pub bytes_per_second: u64,
    /// Messages that wait for their time.
    pub pending_delays: u64,
    /// HALF frames of transactions that are not resolved.
    pub open_halves: u64,
    /// Bytes on disk of both.
    pub pinned_bytes: u64,
    /// Requests that were throttled since the server started.
    pub throttled: u64,
    /// Groups that have a position in it.
    pub groups: u32,
}

impl<'a> TopicStats<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<TopicStatsHead>()?;
        Some(Self {
            topic: TopicEntry::take(fields)?,
            settings: TopicSettings::take(fields, false)?,
            created_ms: head.created_ms.get(),
            records: head.records.get(),
            bytes: head.bytes.get(),
            first_time_ms: head.first_time_ms.get(),
            last_time_ms: head.last_time_ms.get(),
            appended_records: head.appended_records.get(),
            appended_bytes: head.appended_bytes.get(),
            read_bytes: head.read_bytes.get(),
            records_per_second: head.records_per_second.get(),
            bytes_per_second: head.bytes_per_second.get(),
            pending_delays: head.pending_delays.get(),
            open_halves: head.open_halves.get(),
            pinned_bytes: head.pinned_bytes.get(),
            throttled: head.throttled.get(),
            groups: head.groups.get(),
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &TopicStatsHead {
                created_ms: I64::new(self.created_ms),
                records: U64::new(self.records),
                bytes: U64::new(self.bytes),
                first_time_ms: I64::new(self.first_time_ms),
                last_time_ms: I64::new(self.last_time_ms),
                appended_records: U64::new(self.appended_records),
                appended_bytes: U64::new(self.appended_bytes),
                read_bytes: U64::new(self.read_bytes),
                records_per_second: U64::new(self.records_per_second),
                bytes_per_second: U64::new(self.bytes_per_second),
                pending_delays: U64::new(self.pending_delays),
                open_halves: U64::new(self.open_halves),
                pinned_bytes: U64::new(self.pinned_bytes),
                throttled: U64::new(self.throttled),
                groups: U32::new(self.groups),
                reserved: U32::ZERO,
            },
        );
        self.topic.put(out);
        self.settings.put(out);
    }
}
