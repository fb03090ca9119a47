//! Slots in the order of their due times: a sorted list in chunks of 4-byte entries, whose keys are elsewhere.
//!
//! Invariant  D1  No chunk is empty, and the keys rise through all of them.

use super::TimerKey;
use std::collections::VecDeque;

/// Entries of a chunk at most.
const CHUNK: usize = 512;

/// The list.
#[derive(Debug, Default, Clone)]
pub(super) struct DueOrder {
    chunks: VecDeque<VecDeque<u32>>,
    len: usize,
}

impl DueOrder {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The chunk in which a key is or would be, and the place of the first entry that is not before it.
    fn find(&self, key: TimerKey, of: &impl Fn(u32) -> TimerKey) -> (usize, usize) {
        let not_behind = |chunk: &VecDeque<u32>| chunk.front().is_some_and(|first| of(*first) <= key);
        let chunk = self.chunks.partition_point(not_behind).saturating_sub(1);
        let at = self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(|slot| of(*slot) < key));
        (chunk, at)
    }

    /// Enters a slot whose key is not there.
    pub(super) fn insert(&mut self, slot: u32, of: impl Fn(u32) -> TimerKey) {
        self.len += 1;
        let key = of(slot);
        // Most come in the order of their due times.
        let is_last = self.chunks.back().and_then(|last| last.back()).is_none_or(|last| of(*last) < key);
        if is_last {
            if self.chunks.back().is_none_or(|last| last.len() == CHUNK) {
                self.chunks.push_back(VecDeque::with_capacity(CHUNK));
            }
            if let Some(last) = self.chunks.back_mut() {
                last.push_back(slot);
            }
            return;
        }
        let (mut chunk, mut at) = self.find(key, &of);
        if self.chunks[chunk].len() == CHUNK {
            let mut behind = VecDeque::with_capacity(CHUNK);
            behind.extend(self.chunks[chunk].drain(CHUNK / 2..));
            self.chunks.insert(chunk + 1, behind);
            if at > CHUNK / 2 {
                (chunk, at) = (chunk + 1, at - CHUNK / 2);
            }
        }
        self.chunks[chunk].insert(at, slot);
    }

    /// Removes a slot, whose key is still what it was.
    pub(super) fn remove(&mut self, slot: u32, of: impl Fn(u32) -> TimerKey) {
        let (chunk, at) = self.find(of(slot), &of);
        let found = self.chunks.get_mut(chunk).and_then(|chunk| chunk.remove(at));
        assert_eq!(found, Some(slot), "a slot that is not in the order");
        self.len -= 1;
        let len = self.chunks[chunk].len();
        if self.len == 0 {
            *self = Self::default();
        } else if len == 0 {
            self.chunks.remove(chunk); // D1
        } else if self.chunks.get(chunk + 1).is_some_and(|next| next.len() + len <= CHUNK / 2)
            && let Some(next) = self.chunks.remove(chunk + 1)
        {
            self.chunks[chunk].extend(next);
        }
    }

    pub(super) fn first(&self) -> Option<u32> {
        self.chunks.front()?.front().copied()
    }

    /// Slots behind a key, in order.
    pub(super) fn after(
        &self,
        key: TimerKey,
        of: impl Fn(u32) -> TimerKey,
    ) -> impl Iterator<Item = u32> + '_ {
        let (chunk, at) = self.find(key, &of);
        let skip =
            self.chunks.get(chunk).and_then(|chunk| chunk.get(at)).is_some_and(|slot| of(*slot) == key);
        let at = at + usize::from(skip);
        self.chunks
            .iter()
            .enumerate()
            .skip(chunk)
            .flat_map(move |(index, slots)| slots.iter().skip(if index == chunk { at } else { 0 }).copied())
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let chunks: usize = self.chunks.iter().map(|chunk| chunk.capacity() * 4).sum();
        chunks + self.chunks.capacity() * size_of::<VecDeque<u32>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Lsn, PartitionId};
    use std::collections::BTreeSet;

    #[test]
    fn it_is_a_sorted_set() {
        let mut random = 7u64;
        let mut draw = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        let keys: Vec<TimerKey> =
            (0..8_000u64).map(|slot| (draw(500) as i64, PartitionId(draw(3) as u32), Lsn(slot))).collect();
        let of = |slot: u32| keys[slot as usize];
        let (mut order, mut model) = (DueOrder::default(), BTreeSet::new());
        for step in 0..80_000 {
            let slot = draw(keys.len() as u64) as u32;
            let growing = step % 30_000 < 15_000;
            match (model.contains(&(of(slot), slot)), draw(10) < if growing { 8 } else { 3 }) {
                (false, true) => {
                    order.insert(slot, of);
                    model.insert((of(slot), slot));
                }
                (true, false) => {
                    order.remove(slot, of);
                    model.remove(&(of(slot), slot));
                }
                _ => {}
            }
            assert_eq!(order.len(), model.len());
            assert_eq!(order.first(), model.first().map(|first| first.1));
            if step % 500 == 0 {
                let key = of(draw(keys.len() as u64) as u32);
                let found: Vec<_> = order.after(key, of).collect();
                let expected: Vec<_> =
                    model.iter().filter(|(other, _)| *other > key).map(|(_, slot)| *slot).collect();
                assert_eq!(found, expected);
            }
        }
    }
}
