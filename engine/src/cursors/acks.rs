//! What a group has consumed above its position in a partition, and which deliveries have failed.

use ringmq_format::cursor::{AckChange, Retry};
use ringmq_format::{GroupId, Offset, PartitionId};
use std::collections::BTreeMap;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckState {
    /// First offset -> behind the last; they neither touch nor overlap (C3).
    ranges: BTreeMap<u64, u64>,
    /// Offset -> deliveries, and when the next one may be.
    retries: BTreeMap<u64, (u16, i64)>,
}

impl AckState {
    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.retries.is_empty()
    }

    /// Offsets that are consumed, in ranges: first, and behind the last.
    pub fn ranges(&self) -> impl Iterator<Item = (Offset, Offset)> {
        self.ranges.iter().map(|(start, end)| (Offset(*start), Offset(*end)))
    }

    /// Number of those offsets.
    pub fn acked(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// The range of consumed offsets that this one lies in.
    pub fn range_of(&self, offset: Offset) -> Option<(Offset, Offset)> {
        let (start, end) = self.ranges.range(..=offset.0).next_back()?;
        (*end > offset.0).then_some((Offset(*start), Offset(*end)))
    }

    /// Records whose delivery has failed, by offset.
    pub fn retries(&self) -> impl Iterator<Item = Retry> {
        self.retries.iter().map(|(offset, retry)| retry_of(*offset, *retry))
    }

    /// What is known of one of them.
    pub fn retry(&self, offset: Offset) -> Option<Retry> {
        self.retries.get(&offset.0).map(|retry| retry_of(offset.0, *retry))
    }

    /// How many there are.
    pub fn retry_count(&self) -> usize {
        self.retries.len()
    }

    /// Bytes in a checkpoint.
    pub fn size(&self) -> usize {
        AckChange::size(self.ranges.len(), self.retries.len())
    }

    /// Offsets from the position to the last one that is consumed.
    pub fn span(&self, watermark: Offset) -> u64 {
        self.ranges.last_key_value().map_or(0, |(_, end)| end - watermark.0.min(*end))
    }

    /// All of it, as an entry that replaces.
    pub(super) fn all(&self, group: GroupId, partition: PartitionId, watermark: Offset) -> AckChange {
        AckChange {
            replaces: true,
            ranges: self.ranges().collect(),
            retries: self.retries().collect(),
            ..AckChange::new(group, partition, watermark)
        }
    }

    /// Takes an entry.
    pub(super) fn apply(&mut self, watermark: &mut Offset, change: &AckChange) {
        if change.replaces {
            *self = Self::default();
            *watermark = change.watermark;
        }
        *watermark = change.watermark.max(*watermark);
        for (start, end) in &change.ranges {
            if *end > *watermark {
                self.insert(start.0, end.0);
            }
        }
        for retry in &change.retries {
            if retry.attempt == 0 {
                self.retries.remove(&retry.offset.0);
            } else if self.range_of(retry.offset).is_none() {
                self.retries.insert(retry.offset.0, (retry.attempt, retry.visible_ms));
            }
        }
        // C3
        while let Some((start, end)) = self.ranges.first_key_value().map(|(start, end)| (*start, *end))
            && start <= watermark.0
        {
            self.ranges.remove(&start);
            watermark.0 = watermark.0.max(end);
        }
        while self.retries.first_key_value().is_some_and(|(offset, _)| *offset < watermark.0) {
            self.retries.pop_first();
        }
    }

    fn insert(&mut self, mut start: u64, mut end: u64) {
        while let Some((first, last)) = self.ranges.range(..=end).next_back().map(|(a, b)| (*a, *b))
            && last >= start
        {
            self.ranges.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.ranges.insert(start, end);
        while let Some(offset) = self.retries.range(start..end).next().map(|(offset, _)| *offset) {
            self.retries.remove(&offset);
        }
    }
}

fn retry_of(offset: u64, (attempt, visible_ms): (u16, i64)) -> Retry {
    Retry { offset: Offset(offset), attempt, visible_ms }
}
