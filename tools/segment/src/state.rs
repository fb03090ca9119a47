//! The tables that recovery would rebuild, from checkpoint and log: topics, partitions, producers. Beside them what
//! the log itself shows of each partition, and where offsets are missing.
//!
//! Damage stops nothing: a hole in the offsets is noted, and the next frame counts.

use crate::directory::Checkpoint;
use crate::group::FrameView;
use crate::late::LateState;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::checkpoint::{ChunkKind, PartitionItem, ProducerFrame, ProducerItem};
use ringmq_format::frame::{FrameHeader, FrameKind};
use ringmq_format::limits::{PRODUCER_WINDOW, PRODUCERS_PER_PARTITION_MAX};
use ringmq_format::{Lsn, ShardId};
use std::collections::BTreeMap;
use zerocopy::FromZeros;

/// Holes of a partition that are remembered one by one.
const HOLES_MAX: usize = 10_000;

/// Tables of one shard.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Topics by id, deleted ones too.
    pub topics: BTreeMap<u32, TopicEntry>,
    /// Partitions by id.
    pub partitions: BTreeMap<u32, Partition>,
    /// Everything before this is in it.
    pub until: Lsn,
    /// Newest append time in it.
    pub last_time: i64,
    /// The log begins at its very first byte: partitions begin at offset 0.
    pub from_zero: bool,
    /// What waits, if that is followed.
    pub late: Option<LateState>,
    /// Topics by their first partition.
    by_partition: BTreeMap<u32, u32>,
}

/// A partition's table.
#[derive(Clone, Debug, Default)]
pub struct Partition {
    /// First offset that is kept.
    pub start: u64,
    /// Offset of the next record.
    pub next: u64,
    /// Newest append time.
    pub last_time: i64,
    /// Producers, the one used last at the end.
    pub producers: Vec<ProducerItem>,
    /// Frames of the log that was read.
    pub frames: u64,
    /// Records of them.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Append time of the first of them.
    pub first_time: Option<i64>,
    /// Offsets that no frame has: first, behind the last.
    pub holes: Vec<(u64, u64)>,
    /// A frame of the log was seen.
    pub seen: bool,
    /// The checkpoint reflects every frame before this LSN.
    pub stamp: Option<Lsn>,
}

/// What a frame did to the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Took {
    /// It continued its partition, or has none.
    Fits,
    /// Offsets before it are missing: from, to.
    Hole(u64, u64),
    /// Its offsets were given before: what an earlier life has left, or a contradiction.
    Old,
}

impl State {
    /// Of a log that is kept from its first byte on, or not.
    pub fn new(from_zero: bool) -> Self {
        Self { from_zero, ..Self::default() }
    }

    /// What a checkpoint says.
    pub fn restore(&mut self, checkpoint: &Checkpoint, shard: ShardId, shards: u16) {
        if let Some(late) = &mut self.late {
            late.restore(checkpoint);
        }
        for chunk in checkpoint.chunks() {
            let mut rest = chunk.payload;
            for _ in 0..chunk.items {
                match chunk.kind {
                    ChunkKind::Topics => match TopicEntry::take(&mut rest) {
                        Ok(entry) => self.enter_topic(entry),
                        Err(_) => break,
                    },
                    ChunkKind::Partitions => match PartitionItem::take(&mut rest) {
                        Ok(item) if item.partition.shard(shards) == shard => {
                            self.restore_partition(&item, chunk.stamp);
                        }
                        Ok(_) => {}
                        Err(_) => break,
                    },
                    _ => break,
                }
            }
        }
    }

    fn restore_partition(&mut self, item: &PartitionItem, stamp: Lsn) {
        let partition = self.partitions.entry(item.partition.0).or_default();
        *partition = Partition {
            start: item.start_offset.0,
            next: item.next_offset.0,
            last_time: item.last_time,
            producers: item.producers.clone(),
            stamp: Some(stamp),
            ..Partition::default()
        };
        self.last_time = self.last_time.max(item.last_time);
    }

    /// Forgets what partitions the checkpoint knew, for a state as of an earlier time: only what the log shows counts.
    pub fn forget_partitions(&mut self) {
        self.partitions.clear();
    }

    /// A topic made or deleted.
    pub fn enter_topic(&mut self, entry: TopicEntry) {
        let deleted = entry.deleted || self.topics.get(&entry.topic.0).is_some_and(|known| known.deleted);
        if deleted {
            let (first, count) = (entry.first_partition.0, entry.partitions);
            let gone: Vec<u32> =
                self.partitions.range(first..first.saturating_add(count)).map(|(id, _)| *id).collect();
            gone.iter().for_each(|id| drop(self.partitions.remove(id)));
        }
        let newer = self.topics.get(&entry.topic.0).filter(|known| known.revision > entry.revision);
        let entry = newer.cloned().unwrap_or(entry);
        self.by_partition.insert(entry.first_partition.0, entry.topic.0);
        self.topics.insert(entry.topic.0, TopicEntry { deleted, ..entry });
    }

    /// The topic of a partition, and the partition's number in it.
    pub fn topic_of(&self, partition: u32) -> Option<(&TopicEntry, u32)> {
        let (first, topic) = self.by_partition.range(..=partition).next_back()?;
        let topic = self.topics.get(topic)?;
        let number = partition - first;
        (number < topic.partitions).then_some((topic, number))
    }

    /// A frame of the log whose header is believed.
    pub fn take(&mut self, view: &FrameView<'_>) -> Took {
        let header = &view.header;
        self.until = self.until.max(view.lsn.plus(view.bytes.len() as u64));
        if let Some(late) = &mut self.late {
            late.take(view);
        }
        match header.kind() {
            FrameKind::Topic => {
                if let Some(frame) = view.frame()
                    && let Ok(entry) = TopicEntry::take(&mut frame.payload())
                {
                    self.enter_topic(entry);
                }
                Took::Fits
            }
            FrameKind::Data | FrameKind::Bind => self.take_data(view),
            // One of a producer's sequence, though its records have no offsets yet.
            FrameKind::Half | FrameKind::Delay if header.aux.get() == 0 && view.is_intact() => {
                let id = header.partition.get();
                if self.topic_of(id).is_some_and(|(topic, _)| !topic.deleted) {
                    let own = self.partitions.entry(id).or_default();
                    if own.stamp.is_none_or(|stamp| view.lsn >= stamp) {
                        remember(&mut own.producers, header);
                    }
                }
                Took::Fits
            }
            _ => Took::Fits,
        }
    }

    fn take_data(&mut self, view: &FrameView<'_>) -> Took {
        let header = &view.header;
        let deleted = self.topic_of(header.partition.get()).is_some_and(|(topic, _)| topic.deleted);
        if deleted {
            return Took::Fits;
        }
        let partition = self.partitions.entry(header.partition.get()).or_default();
        let (base, end, time) = (header.base_offset.get(), view.end_offset().0, header.timestamp.get());
        let mut took = Took::Fits;
        let reflected = partition.stamp.is_some_and(|stamp| view.lsn < stamp);
        if !partition.seen && !reflected && partition.stamp.is_none() && !self.from_zero {
            // What lay before the log that is kept.
            partition.start = base;
            partition.next = base;
        }
        if !reflected {
            if base < partition.next {
                return Took::Old;
            }
            if base > partition.next {
                took = Took::Hole(partition.next, base);
                if partition.holes.len() < HOLES_MAX {
                    partition.holes.push((partition.next, base));
                }
            }
            partition.next = end;
            partition.last_time = partition.last_time.max(time);
            remember(&mut partition.producers, header);
        }
        partition.seen = true;
        partition.frames += 1;
        partition.records += u64::from(header.count.get());
        partition.bytes += view.bytes.len() as u64;
        partition.first_time.get_or_insert(time);
        self.last_time = self.last_time.max(time);
        took
    }
}

/// What recovery remembers of a producer.
fn remember(producers: &mut Vec<ProducerItem>, header: &FrameHeader) {
    let (id, epoch) = (header.producer_id.get(), header.producer_epoch);
    if id == 0 {
        return;
    }
    match producers.iter().rposition(|producer| producer.producer.get() == id) {
        Some(known) => producers[known..].rotate_left(1),
        None => {
            if producers.len() == PRODUCERS_PER_PARTITION_MAX {
                producers.remove(0);
            }
            let mut new = ProducerItem::new_zeroed();
            (new.producer, new.epoch) = (id.into(), epoch);
            producers.push(new);
        }
    }
    let Some(producer) = producers.last_mut() else { return };
    if producer.epoch != epoch {
        producer.epoch = epoch;
        producer.filled = 0.into();
        producer.window = FromZeros::new_zeroed();
    }
    producer.next_sequence = header.base_sequence.get().wrapping_add(header.count.get()).into();
    producer.last_time = header.timestamp;
    let mut filled = usize::from(producer.filled.get()).min(PRODUCER_WINDOW);
    if filled == PRODUCER_WINDOW {
        producer.window.rotate_left(1);
        filled -= 1;
    }
    producer.window[filled] = ProducerFrame {
        base_sequence: header.base_sequence,
        count: header.count,
        base_offset: header.base_offset,
        timestamp: header.timestamp,
    };
    producer.filled = (filled as u16 + 1).into();
}
