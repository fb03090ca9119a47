//! Settings of topics, and what is counted of them.

use super::{Gather, Partitions};
use crate::shard::ShardServer;
use crate::shard::connection::{Connection, Pending};
use crate::shard::mail::{ConnectionKey, Origin, Work};
use crate::shard::requests::wire_entry;
use crate::shard::topics::NewTopic;
use ringmq_engine::shard::TimeLookup;
use ringmq_format::PartitionId;
use ringmq_format::catalogue::{TopicEntry, TopicSettings};
use ringmq_format::limits::TOPIC_PARTITIONS_MAX;
use ringmq_format::name::check_topic_name;
use ringmq_protocol::{AlterTopic, AlteredTopic, ErrorCode, Op, Response, TopicSettings as Wire, TopicStats};

/// Partitions of a topic whose first record is looked up for its statistics.
const TIMES_LOOKED_UP: usize = 256;

/// Settings that are given; the others stay.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::shard) struct SettingsPatch(Wire);

impl SettingsPatch {
    /// What a topic with `before` has then.
    pub(in crate::shard) fn apply(&self, before: TopicSettings) -> TopicSettings {
        let given = &self.0;
        TopicSettings {
            kind: given.kind.unwrap_or(before.kind),
            retention_ms: given.retention_ms.unwrap_or(before.retention_ms),
            retention_bytes: given.retention_bytes.unwrap_or(before.retention_bytes),
            delay_max_ms: given.delay_max_ms.unwrap_or(before.delay_max_ms),
            ttl_ms: given.ttl_ms.unwrap_or(before.ttl_ms),
            rate_bytes: given.rate_bytes.unwrap_or(before.rate_bytes),
            rate_records: given.rate_records.unwrap_or(before.rate_records),
            record_size_max: given.record_size_max.unwrap_or(before.record_size_max),
            producer_rate_bytes: given.producer_rate_bytes.unwrap_or(before.producer_rate_bytes),
        }
    }
}

fn wire_settings(entry: &TopicEntry) -> Wire {
    let settings = &entry.settings;
    Wire {
        kind: Some(settings.kind),
        partitions: Some(entry.partitions),
        retention_ms: Some(settings.retention_ms),
        retention_bytes: Some(settings.retention_bytes),
        delay_max_ms: Some(settings.delay_max_ms),
        ttl_ms: Some(settings.ttl_ms),
        rate_bytes: Some(settings.rate_bytes),
        rate_records: Some(settings.rate_records),
        producer_rate_bytes: Some(settings.producer_rate_bytes),
        record_size_max: Some(settings.record_size_max),
    }
}

/// Answers an ALTER_TOPIC.
pub(in crate::shard) fn answer_altered(connection: &mut Connection, correlation: u64, entry: &TopicEntry) {
    let altered = AlteredTopic { topic: wire_entry(entry), settings: wire_settings(entry) };
    Response::AlteredTopic(altered).encode(correlation, 0, &mut connection.out);
}

/// What one shard counts of a topic.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::shard) struct ShardTopicStats {
    records: u64,
    /// 0 if there is none.
    first_ms: i64,
    last_ms: i64,
    pub(super) appended_records: u64,
    pub(super) appended_bytes: u64,
    pub(super) read_bytes: u64,
    pub(super) records_per_second: u64,
    pub(super) bytes_per_second: u64,
    delays: u64,
    halves: u64,
    pending_bytes: u64,
    pub(super) throttled: u64,
}

impl ShardTopicStats {
    pub(super) fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.first_ms = match (self.first_ms, other.first_ms) {
            (0, known) | (known, 0) => known,
            (ours, theirs) => ours.min(theirs),
        };
        self.last_ms = self.last_ms.max(other.last_ms);
        self.appended_records += other.appended_records;
        self.appended_bytes += other.appended_bytes;
        self.read_bytes += other.read_bytes;
        self.records_per_second += other.records_per_second;
        self.bytes_per_second += other.bytes_per_second;
        self.delays += other.delays;
        self.halves += other.halves;
        self.pending_bytes += other.pending_bytes;
        self.throttled += other.throttled;
    }
}

impl ShardServer {
    /// The settings of a partition's topic.
    #[allow(dead_code, reason = "groups ask for them")]
    pub(in crate::shard) fn settings_of(&self, partition: PartitionId) -> TopicSettings {
        self.topics.by_partition(partition).map_or(TopicSettings::default(), |topic| topic.settings)
    }

    pub(super) fn request_alter_topic(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        alter: &AlterTopic<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let AlterTopic { name, create, settings } = *alter;
        check_topic_name(name.as_bytes())
            .map_err(|_| (ErrorCode::InvalidTopicName, ErrorCode::InvalidTopicName.text()))?;
        let invalid = |message| Err((ErrorCode::InvalidSettings, message));
        if settings.partitions.is_some_and(|partitions| !(1..=TOPIC_PARTITIONS_MAX).contains(&partitions)) {
            return invalid("partitions: 1 to 65536");
        }
        let patch = SettingsPatch(settings);
        let Some(topic) = self.topics.by_name(name) else {
            if !create {
                return Err((ErrorCode::UnknownTopic, ErrorCode::UnknownTopic.text()));
            }
            let new = NewTopic {
                name: name.to_owned(),
                partitions: settings.partitions.unwrap_or(1),
                if_not_exists: true,
                settings: patch.apply(TopicSettings::default()),
            };
            self.ask_catalogue(connection, correlation, Op::AlterTopic, Work::CreateTopic(new));
            return Ok(());
        };
        if settings.partitions.is_some_and(|partitions| partitions != topic.partitions) {
            return invalid("partitions: their number cannot be changed; make another topic");
        }
        if patch.apply(topic.settings) == topic.settings {
            answer_altered(connection, correlation, topic);
            return Ok(());
        }
        let kind = settings.kind.unwrap_or(topic.settings.kind);
        let narrows = kind != topic.settings.kind && !(kind.takes_delays() && kind.takes_transactions());
        let of = (topic.first_partition, topic.partitions);
        let name = name.to_owned();
        if narrows {
            let gather = Gather::Alter { name, patch, stats: ShardTopicStats::default() };
            self.ask_stats(connection, correlation, gather, of);
        } else {
            self.ask_catalogue(connection, correlation, Op::AlterTopic, Work::AlterTopic { name, patch });
        }
        Ok(())
    }

    fn ask_stats(&mut self, connection: &mut Connection, correlation: u64, gather: Gather, of: Partitions) {
        let shards = self.shards_of(of);
        self.ask_all(connection, correlation, gather, &shards, || super::LateWork::Stats { of });
    }

    /// Goes on with an ALTER_TOPIC that changes the kind, when what is pending is known.
    pub(super) fn alter_if_empty(
        &mut self,
        key: ConnectionKey,
        correlation: u64,
        name: String,
        patch: SettingsPatch,
        stats: &ShardTopicStats,
    ) {
        let kind = patch.0.kind.unwrap_or_default();
        let other =
            (stats.delays > 0 && !kind.takes_delays()) || (stats.halves > 0 && !kind.takes_transactions());
        if other {
            let message = "kind: messages that the new kind does not take are still pending";
            self.refuse(key, correlation, Op::AlterTopic, ErrorCode::InvalidSettings, message, 0);
            return;
        }
        let own = self.own;
        let Some(connection) = self.connection(key) else { return };
        let pending = connection.keep(Pending::Topic { correlation, op: Op::AlterTopic as u8 });
        if own != 0 {
            connection.known_to.insert(0);
        }
        let origin = Origin { shard: own, connection: key, tag: u64::from(pending) };
        self.dispatch(origin, 0, Work::AlterTopic { name, patch });
    }

    pub(super) fn request_topic_stats(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        name: &str,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let unknown = (ErrorCode::UnknownTopic, ErrorCode::UnknownTopic.text());
        let topic = self.topics.by_name(name).ok_or(unknown)?;
        let of = (topic.first_partition, topic.partitions);
        let gather = Gather::Stats { name: name.to_owned(), stats: ShardTopicStats::default() };
        self.ask_stats(connection, correlation, gather, of);
        Ok(())
    }

    /// What this shard counts of a topic.
    pub(super) fn topic_stats_here(&mut self, of: Partitions) -> ShardTopicStats {
        let mut stats = ShardTopicStats::default();
        for (index, partition) in self.owned(of).enumerate() {
            let Some(extent) = self.shard.extent(partition) else { continue };
            stats.records += extent.visible.0.saturating_sub(extent.start.0);
            let pending = self.shard.late().pending_of(partition);
            stats.delays += pending.delays;
            stats.halves += pending.halves;
            stats.pending_bytes += pending.bytes;
            if extent.visible <= extent.start {
                continue;
            }
            stats.last_ms = stats.last_ms.max(self.shard.last_time(partition));
            // What lies in a page that has to be read first is left out.
            if index < TIMES_LOOKED_UP
                && let TimeLookup::At(_, first_ms) =
                    self.shard.offset_at_time(&self.ring, partition, i64::MIN)
            {
                stats.add(&ShardTopicStats { first_ms, ..ShardTopicStats::default() });
            }
        }
        let now_us = self.ring.now().mono_us;
        self.late.topics.count_into(of.0, now_us, &mut stats);
        stats
    }

    pub(super) fn answer_topic_stats(
        &mut self,
        key: ConnectionKey,
        correlation: u64,
        name: &str,
        stats: &ShardTopicStats,
    ) {
        let Some(entry) = self.topics.by_name(name).cloned() else {
            let code = ErrorCode::UnknownTopic;
            self.refuse(key, correlation, Op::TopicStats, code, code.text(), 0);
            return;
        };
        let wire = TopicStats {
            topic: wire_entry(&entry),
            settings: wire_settings(&entry),
            created_ms: entry.created_ms,
            records: stats.records,
            // Segments are shared by all topics.
            bytes: u64::MAX,
            first_time_ms: stats.first_ms.max(0),
            last_time_ms: stats.last_ms,
            appended_records: stats.appended_records,
            appended_bytes: stats.appended_bytes,
            read_bytes: stats.read_bytes,
            records_per_second: stats.records_per_second,
            bytes_per_second: stats.bytes_per_second,
            pending_delays: stats.delays,
            open_halves: stats.halves,
            pinned_bytes: stats.pending_bytes,
            throttled: stats.throttled,
            groups: 0,
        };
        self.respond(key, correlation, &Response::TopicStats(wire));
    }
}
