//! What topics themselves say of how long they keep: the start of a partition moves at once, and space comes back when
//! whole segments are given up.
//!
//! Age is looked up in the index. Size is counted as frames are appended, in a few marks for each partition that needs
//! them, and only from this start on: what an earlier process has left goes when as much again has been appended.

use super::{Shard, TimeLookup};
use crate::ring::Ring;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::{Offset, PartitionId};
use std::collections::{BTreeMap, VecDeque};

/// Partitions whose age is looked at in one pass; the next pass goes on behind them.
const LOOKED_AT_ONCE: usize = 1_024;
/// Marks over the size that a partition may keep: so exactly is it kept.
const MARKS: u64 = 16;

/// How much of a partition was appended behind each of some offsets.
#[derive(Debug, Default)]
struct Sizes {
    keep: u64,
    total: u64,
    /// Offset, and what had been appended in all in front of it.
    marks: VecDeque<(Offset, u64)>,
}

impl Sizes {
    fn add(&mut self, first: Offset, len: u64) {
        let last = self.marks.back().map_or(0, |mark| mark.1);
        if self.marks.is_empty() || self.total - last >= self.keep / MARKS {
            self.marks.push_back((first, self.total));
        }
        self.total += len;
    }

    /// Where a partition begins that keeps no more than it may.
    fn start(&mut self) -> Option<Offset> {
        let mut start = None;
        while let Some((_, before)) = self.marks.front().copied()
            && self.total - before > self.keep
            && self.marks.len() > 1
        {
            self.marks.pop_front();
            start = self.marks.front().map(|mark| mark.0);
        }
        start
    }
}

/// Topics that say themselves how long they keep.
#[derive(Debug, Default)]
pub(super) struct TopicRetention {
    any: bool,
    /// By the index of the partition.
    sizes: BTreeMap<usize, Sizes>,
    /// Where the next pass begins.
    next: PartitionId,
}

impl TopicRetention {
    /// Some topic says so.
    pub(super) fn is_needed(&self) -> bool {
        self.any
    }

    /// A frame was appended to a partition.
    #[inline]
    pub(super) fn appended(&mut self, index: usize, first: Offset, len: u64) {
        if self.any
            && let Some(sizes) = self.sizes.get_mut(&index)
        {
            sizes.add(first, len);
        }
    }
}

impl Shard {
    /// A topic was made, altered or deleted, or found at the start.
    pub(super) fn retain_topic(&mut self, entry: &TopicEntry) {
        let settings = &entry.settings;
        let keep = if entry.deleted { 0 } else { settings.retention_bytes };
        self.topic_retention.any |= !entry.deleted && (settings.retention_ms > 0 || keep > 0);
        if !self.topic_retention.any {
            return;
        }
        let keep = keep.div_ceil(u64::from(entry.partitions));
        let (shard, shards) = (self.options.shard, self.options.shards);
        for id in entry.partition_ids().filter(|id| id.shard(shards) == shard) {
            let index = self.index(id);
            if keep == 0 {
                self.topic_retention.sizes.remove(&index);
            } else {
                self.topic_retention.sizes.entry(index).or_default().keep = keep;
            }
        }
        self.retention_at_us = 0;
    }

    /// Moves the starts of partitions whose topics keep less than the shard does.
    pub(super) fn turn_topic_retention(&mut self, ring: &Ring) {
        if !self.topic_retention.any {
            return;
        }
        let mut sizes = std::mem::take(&mut self.topic_retention.sizes);
        for (index, sizes) in &mut sizes {
            if let (Some(start), Some(Some(partition))) = (sizes.start(), self.partitions.get_mut(*index)) {
                partition.trim(start);
            }
        }
        self.topic_retention.sizes = sizes;
        let now_ms = ring.now().wall_ms;
        let (shard, shards) = (self.options.shard, self.options.shards);
        let aged = self.catalogue.all().filter(|topic| !topic.deleted && topic.settings.retention_ms > 0);
        let partitions = aged.flat_map(|topic| {
            let since_ms = now_ms.saturating_sub_unsigned(topic.settings.retention_ms);
            topic.partition_ids().map(move |id| (id, since_ms))
        });
        let next = self.topic_retention.next;
        let owned: Vec<(PartitionId, i64)> = partitions
            .filter(|(id, _)| *id >= next && id.shard(shards) == shard)
            .take(LOOKED_AT_ONCE)
            .collect();
        // Behind the last of them, or from the first again.
        self.topic_retention.next = match owned.last() {
            Some((last, _)) if owned.len() == LOOKED_AT_ONCE => PartitionId(last.0 + 1),
            _ => PartitionId(0),
        };
        for (id, since_ms) in owned {
            let index = self.index(id);
            let known = self.partitions.get(index).and_then(Option::as_ref);
            let is_old = known.is_some_and(|partition| partition.start() < partition.visible());
            // A page that has to be read first is there in the next pass.
            if is_old
                && let TimeLookup::At(offset, _) = self.offset_at_time(ring, id, since_ms)
                && let Some(Some(partition)) = self.partitions.get_mut(index)
            {
                partition.trim(offset);
            }
        }
    }

    /// No partition can be read in the oldest segment any more, because their topics keep less.
    pub(super) fn oldest_is_dead(&self) -> bool {
        let Some(oldest) = self.log.segments().front().filter(|oldest| oldest.sealed) else { return false };
        let seq = oldest.facts.seq;
        let dead = |partition: &crate::partition::Partition| !partition.may_be_read_in(seq);
        self.topic_retention.any && self.partitions.iter().flatten().all(dead) && self.moving_frees_space()
    }

    /// Less than half of what is kept is bodies that would have to be moved. Otherwise giving up segments that hold
    /// nothing else would move the same bodies round and round.
    fn moving_frees_space(&self) -> bool {
        let counts = self.late.counts();
        let kept: u64 = self.log.segments().iter().map(|segment| segment.frame_bytes).sum();
        2 * (counts.pending.bytes + counts.body_bytes) <= kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_keeps_what_it_may_to_a_sixteenth() {
        let mut sizes = Sizes { keep: 16_000, ..Sizes::default() };
        let mut start = 0;
        for number in 0..10_000u64 {
            sizes.add(Offset(number), 100);
            start = sizes.start().map_or(start, |start| start.0);
            let kept = (number + 1 - start) * 100;
            assert!(kept <= 16_000, "{kept} bytes at {number}");
            assert!(number < 200 || kept >= 14_900, "{kept} bytes at {number}");
        }
        assert!(sizes.marks.len() <= 18);
    }
}
