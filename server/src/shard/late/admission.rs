//! What a PRODUCE has to pass before the log: what its topic takes, and how fast.
//!
//! Rates are buckets that may go into debt: a frame passes while there is something in them, whatever its size, and
//! who comes next waits until the debt is paid. A topic's rate is divided among its shards by the partitions that
//! they own. A producer that is too fast is first not read for a while, which slows it down without an error, and
//! then told how long to wait.

use super::settings::ShardTopicStats;
use crate::shard::ShardServer;
use crate::shard::mail::ConnectionKey;
use ringmq_engine::shard::AppendError;
use ringmq_format::catalogue::{TopicEntry, TopicKind, TopicSettings};
use ringmq_format::frame::{Frame, FrameKind};
use ringmq_format::late::Late;
use ringmq_format::record::Payload;
use ringmq_format::{Lsn, PartitionId, TopicId};
use ringmq_protocol::ErrorCode;
use std::collections::BTreeMap;

/// How long a connection that is too fast is not read before it is told.
pub(in crate::shard) const HOLD_US: u64 = 200_000;
/// What is saved up in a bucket at most: so much of a second's worth.
const BURST_US: u64 = 250_000;
/// Over how long rates are counted.
const WINDOW_US: u64 = 1_000_000;
/// Sent to be tried again when a transaction is just about to be resolved.
const ENDING_RETRY_MS: u32 = 20;

/// Why a frame was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum NotAppended {
    Error(AppendError),
    Refused(ErrorCode, u32),
    /// Too fast: so long to wait.
    Wait(u64),
}

impl From<AppendError> for NotAppended {
    fn from(error: AppendError) -> Self {
        Self::Error(error)
    }
}

/// A rate, in units a second.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    rate: u64,
    /// Units times 1,000,000, so that no time is lost to rounding.
    level: i128,
    at_us: u64,
}

impl Bucket {
    fn set_rate(&mut self, rate: u64) {
        if rate != self.rate {
            *self = Self { rate, level: i128::from(rate) * i128::from(BURST_US), at_us: self.at_us };
        }
    }

    /// How long until something may pass; 0: now.
    fn wait_us(&mut self, now_us: u64) -> u64 {
        if self.rate == 0 {
            return 0;
        }
        let passed = i128::from(now_us.saturating_sub(self.at_us)).min(i128::from(u32::MAX) * 1_000);
        let most = i128::from(self.rate) * i128::from(BURST_US);
        self.level = (self.level + passed * i128::from(self.rate)).min(most);
        self.at_us = now_us;
        if self.level > 0 {
            return 0;
        }
        (-self.level / i128::from(self.rate)) as u64 + 1
    }

    fn take(&mut self, units: u64) {
        if self.rate > 0 {
            self.level -= i128::from(units) * 1_000_000;
        }
    }
}

/// A topic as producers of this shard's partitions meet it.
#[derive(Debug)]
struct Topic {
    first: PartitionId,
    partitions: u32,
    /// Of these, on this shard.
    owned: u32,
    settings: TopicSettings,
    bytes: Bucket,
    records: Bucket,
    appended_records: u64,
    appended_bytes: u64,
    read_bytes: u64,
    throttled: u64,
    window_us: u64,
    window: (u64, u64),
    last: (u64, u64),
}

impl Topic {
    fn roll(&mut self, now_us: u64) {
        let passed = now_us.saturating_sub(self.window_us);
        if passed < WINDOW_US {
            return;
        }
        let a_second = |count: u64| (u128::from(count) * 1_000_000 / u128::from(passed)) as u64;
        self.last = (a_second(self.window.0), a_second(self.window.1));
        self.window = (0, 0);
        self.window_us = now_us;
    }
}

/// The topics of this shard's partitions.
#[derive(Debug, Default)]
pub(super) struct Topics {
    topics: Vec<Topic>,
    /// By the index of the partition on this shard.
    of_partition: Vec<Option<u32>>,
}

impl Topics {
    fn known(&self, index: usize) -> Option<usize> {
        self.of_partition.get(index).copied().flatten().map(|at| at as usize)
    }

    fn enter(&mut self, index: usize, entry: &TopicEntry, owned: u32) -> usize {
        let found = self.topics.iter().rposition(|topic| topic.first == entry.first_partition);
        let at = found.unwrap_or_else(|| {
            self.topics.push(Topic {
                first: entry.first_partition,
                partitions: entry.partitions,
                owned,
                settings: TopicSettings::default(),
                bytes: Bucket::default(),
                records: Bucket::default(),
                appended_records: 0,
                appended_bytes: 0,
                read_bytes: 0,
                throttled: 0,
                window_us: 0,
                window: (0, 0),
                last: (0, 0),
            });
            self.topics.len() - 1
        });
        self.topics[at].set(entry.settings);
        if self.of_partition.len() <= index {
            self.of_partition.resize(index + 1, None);
        }
        self.of_partition[index] = Some(at as u32);
        at
    }

    /// The settings of a topic were changed.
    fn change(&mut self, entry: &TopicEntry) {
        if let Some(topic) = self.topics.iter_mut().find(|topic| topic.first == entry.first_partition) {
            topic.set(entry.settings);
        }
    }

    /// Adds what is counted of the topic that begins with this partition.
    pub(super) fn count_into(&mut self, first: PartitionId, now_us: u64, stats: &mut ShardTopicStats) {
        let Some(topic) = self.topics.iter_mut().find(|topic| topic.first == first) else { return };
        topic.roll(now_us);
        stats.appended_records += topic.appended_records;
        stats.appended_bytes += topic.appended_bytes;
        stats.read_bytes += topic.read_bytes;
        stats.throttled += topic.throttled;
        stats.records_per_second += topic.last.0;
        stats.bytes_per_second += topic.last.1;
    }
}

impl Topic {
    /// This shard's part of the topic's rates is as large as its part of the partitions, and at least one unit.
    fn set(&mut self, settings: TopicSettings) {
        self.settings = settings;
        let (owned, all) = (u128::from(self.owned), u128::from(self.partitions.max(1)));
        let part = |rate: u64| match rate {
            0 => 0,
            rate => (u128::from(rate) * owned / all).max(1) as u64,
        };
        self.bytes.set_rate(part(settings.rate_bytes));
        self.records.set_rate(part(u64::from(settings.rate_records)));
    }
}

/// What single connections may produce into a topic, and when those that were held may go on.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    /// Some topic has such a limit.
    any: bool,
    buckets: BTreeMap<(ConnectionKey, TopicId), Bucket>,
    wake_us: Option<u64>,
}

impl Quotas {
    pub(super) fn wake_us(&self) -> Option<u64> {
        self.wake_us
    }

    /// Connections that were held are looked at early in every turn: whether their time has come, so that the next turn
    /// has to follow at once.
    pub(super) fn turn(&mut self, now_us: u64) -> bool {
        self.wake_us.take_if(|at_us| *at_us <= now_us).is_some()
    }

    pub(super) fn remove_connection(&mut self, connection: ConnectionKey) {
        if self.any {
            self.buckets.retain(|(key, _), _| *key != connection);
        }
    }
}

impl ShardServer {
    /// A topic was made, altered or deleted.
    pub(in crate::shard) fn topic_changed_in_late(&mut self, entry: &TopicEntry) {
        self.late.topics.change(entry);
        self.late.quotas.any |= entry.settings.producer_rate_bytes > 0;
    }

    /// The place of a partition's topic in the table; the partition is of this shard.
    fn topic_at(&mut self, partition: PartitionId) -> Option<usize> {
        let shards = self.mail.shards();
        let index = partition.0 as usize / usize::from(shards);
        if let Some(at) = self.late.topics.known(index) {
            return Some(at);
        }
        let entry =
            self.topics.by_partition(partition).or_else(|| self.shard.catalogue().by_partition(partition))?;
        let entry = entry.clone();
        let owned = self.owned((entry.first_partition, entry.partitions)).count() as u32;
        Some(self.late.topics.enter(index, &entry, owned))
    }

    /// Has a connection that is too fast looked at again then.
    pub(in crate::shard) fn hold_until(&mut self, at_us: u64) {
        let wake_us = &mut self.late.quotas.wake_us;
        *wake_us = Some(wake_us.map_or(at_us, |known| known.min(at_us)));
    }

    /// How long a connection has to wait before it may produce into a partition's topic; 0: not at all. If not, `len`
    /// bytes are taken for it.
    pub(in crate::shard) fn charge_producer(
        &mut self,
        connection: ConnectionKey,
        partition: PartitionId,
        len: usize,
    ) -> u64 {
        if !self.late.quotas.any {
            return 0;
        }
        let Some(topic) = self.topics.by_partition(partition) else { return 0 };
        let (id, rate) = (topic.topic, topic.settings.producer_rate_bytes);
        if rate == 0 {
            return 0;
        }
        let now_us = self.ring.now().mono_us;
        let bucket = self.late.quotas.buckets.entry((connection, id)).or_default();
        bucket.set_rate(rate);
        let wait_us = bucket.wait_us(now_us);
        if wait_us == 0 {
            bucket.take(len as u64);
        }
        wait_us
    }

    /// Whether a frame may be appended to a partition of this shard; the place of its topic for `count_append`.
    pub(in crate::shard) fn admit(
        &mut self,
        partition: PartitionId,
        frame: &Frame<'_>,
    ) -> Result<Option<usize>, NotAppended> {
        let Some(at) = self.topic_at(partition) else { return Ok(None) };
        let now = self.ring.now();
        let delay_max_ms = self.late.options.delay_max_ms;
        let topic = &mut self.late.topics.topics[at];
        let settings = topic.settings;
        let refuse = |code| Err(NotAppended::Refused(code, 0));
        let kind = frame.header.kind();
        let mut txn = 0;
        if matches!(kind, FrameKind::Half | FrameKind::Delay) {
            let late = Late::parse(frame).map_err(AppendError::Invalid)?;
            let delayed = late.due_ms != 0;
            let taken = (!delayed || settings.kind.takes_delays())
                && (late.txn == 0 || settings.kind.takes_transactions());
            if !taken {
                return refuse(ErrorCode::WrongTopicKind);
            }
            let longest_ms = if settings.delay_max_ms == 0 { delay_max_ms } else { settings.delay_max_ms };
            if delayed && is_beyond(late.due_ms, now.wall_ms, longest_ms) {
                return refuse(ErrorCode::DelayTooLong);
            }
            txn = late.txn;
        }
        if settings.kind == TopicKind::Fifo || settings.record_size_max > 0 {
            let payload = Payload::parse(frame).map_err(AppendError::Invalid)?;
            for entry in payload.entries() {
                if settings.kind == TopicKind::Fifo && entry.key.is_none() {
                    return refuse(ErrorCode::WrongTopicKind);
                }
                let size = entry.body_len
                    + entry.key.map_or(0, <[u8]>::len)
                    + entry.tag.map_or(0, <[u8]>::len)
                    + entry.properties.len();
                if settings.record_size_max > 0 && size > settings.record_size_max as usize {
                    return refuse(ErrorCode::FrameTooLarge);
                }
            }
        }
        let wait_us = topic.bytes.wait_us(now.mono_us).max(topic.records.wait_us(now.mono_us));
        if wait_us > 0 {
            return Err(NotAppended::Wait(wait_us));
        }
        if txn != 0 && !self.takes_for_transaction(txn) {
            return Err(NotAppended::Refused(ErrorCode::Throttled, ENDING_RETRY_MS));
        }
        Ok(Some(at))
    }

    /// A frame was appended.
    pub(in crate::shard) fn count_append(&mut self, at: Option<usize>, frame: &Frame<'_>, durable_at: Lsn) {
        let now_us = self.ring.now().mono_us;
        if let Some(topic) = at.and_then(|at| self.late.topics.topics.get_mut(at)) {
            let (records, bytes) = (u64::from(frame.header.count.get()), frame.bytes.len() as u64);
            topic.roll(now_us);
            topic.bytes.take(bytes);
            topic.records.take(records);
            topic.appended_records += records;
            topic.appended_bytes += bytes;
            topic.window.0 += records;
            topic.window.1 += bytes;
        }
        if frame.header.kind() == FrameKind::Half
            && let Ok(late) = Late::parse(frame)
        {
            self.tell_of_transaction(late.txn, durable_at);
        }
    }

    /// A producer was told to wait.
    pub(in crate::shard) fn count_throttled(&mut self, partition: PartitionId) {
        if let Some(at) = self.topic_at(partition) {
            self.late.topics.topics[at].throttled += 1;
        }
    }

    /// Frames of a partition were delivered.
    pub(in crate::shard) fn count_read(&mut self, partition: PartitionId, bytes: usize) {
        if let Some(at) = self.topic_at(partition) {
            self.late.topics.topics[at].read_bytes += bytes as u64;
        }
    }

    /// Whether a due time is further away than a partition's topic allows.
    pub(super) fn is_too_long(&self, partition: PartitionId, due_ms: i64) -> bool {
        let longest_ms = match self.settings_of(partition).delay_max_ms {
            0 => self.late.options.delay_max_ms,
            own => own,
        };
        is_beyond(due_ms, self.ring.now().wall_ms, longest_ms)
    }
}

fn is_beyond(due_ms: i64, now_ms: i64, longest_ms: u64) -> bool {
    due_ms.saturating_sub(now_ms) > i64::try_from(longest_ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_through_its_rate_and_what_it_saved() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.wait_us(0), 0);
        bucket.take(u64::MAX); // no limit
        assert_eq!(bucket.wait_us(0), 0);
        bucket.set_rate(1_000);
        let (mut now_us, mut passed) = (0, 0);
        while now_us < 10_000_000 {
            match bucket.wait_us(now_us) {
                0 => {
                    bucket.take(100);
                    passed += 100;
                }
                wait_us => now_us += wait_us,
            }
        }
        // Ten seconds' worth, the quarter of one that was saved up, and one frame of debt.
        assert!((10_200..=10_400).contains(&passed), "{passed}");
        // Silence saves no more than that.
        assert_eq!(bucket.wait_us(100_000_000), 0);
        bucket.take(350);
        assert_eq!(bucket.wait_us(100_000_000), 100_001);
    }
}
