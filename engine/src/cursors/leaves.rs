//! A sorted table of positions in leaves that are filled well: a tree whose nodes grow by a few places at a time,
//! because there are millions of entries and each may cost 40 bytes.

use ringmq_format::cursor::CursorKey;
use ringmq_format::{GroupId, Lsn, Offset, PartitionId};
use std::collections::BTreeMap;

/// Entries of a leaf.
const LEAF_MAX: usize = 256;
/// Places by which a leaf grows.
const LEAF_STEP: usize = 16;
/// Every leaf's first key is at least this.
const FIRST: CursorKey = CursorKey { group: GroupId(0), partition: PartitionId(0), instance: 0 };

/// A position. 32 bytes: no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    instance: u64,
    offset: u64,
    lsn: u64,
    group: u32,
    partition: u32,
}

const _: () = assert!(size_of::<Slot>() == 32);

impl Slot {
    pub(super) fn new(key: CursorKey, offset: Offset, lsn: Lsn) -> Self {
        Self {
            instance: key.instance,
            offset: offset.0,
            lsn: lsn.0,
            group: key.group.0,
            partition: key.partition.0,
        }
    }

    pub(super) fn key(&self) -> CursorKey {
        CursorKey {
            group: GroupId(self.group),
            partition: PartitionId(self.partition),
            instance: self.instance,
        }
    }

    pub(super) fn offset(&self) -> Offset {
        Offset(self.offset)
    }

    pub(super) fn lsn(&self) -> Lsn {
        Lsn(self.lsn)
    }
}

/// The table. A leaf stands under a key that is at most its first one, and above all of the leaf before.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    leaves: BTreeMap<CursorKey, Vec<Slot>>,
    len: usize,
}

impl Leaves {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn memory(&self) -> usize {
        let leaf = |leaf: &Vec<Slot>| leaf.capacity() * size_of::<Slot>();
        // A node of the map keeps its keys and values in line; half filled at worst.
        let nodes = self.leaves.len() * 2 * (size_of::<CursorKey>() + size_of::<Vec<Slot>>());
        self.leaves.values().map(leaf).sum::<usize>() + nodes
    }

    pub(super) fn get(&self, key: CursorKey) -> Option<&Slot> {
        let (_, leaf) = self.leaves.range(..=key).next_back()?;
        leaf.binary_search_by_key(&key, Slot::key).ok().map(|at| &leaf[at])
    }

    pub(super) fn set(&mut self, slot: Slot) {
        let key = slot.key();
        if self.leaves.is_empty() {
            self.leaves.insert(FIRST, Vec::new());
        }
        let Some((_, leaf)) = self.leaves.range_mut(..=key).next_back() else { return };
        match leaf.binary_search_by_key(&key, Slot::key) {
            Ok(at) => leaf[at] = slot,
            Err(at) => {
                if leaf.len() == leaf.capacity() {
                    leaf.reserve_exact(LEAF_STEP);
                }
                leaf.insert(at, slot);
                self.len += 1;
                if leaf.len() >= LEAF_MAX {
                    // Keys that count up fill their leaves; others find them half empty.
                    let from = if at + 1 == leaf.len() { at } else { leaf.len() / 2 };
                    let tail = leaf[from..].to_vec();
                    leaf.truncate(from);
                    leaf.shrink_to(from + LEAF_STEP);
                    self.leaves.insert(tail[0].key(), tail);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, key: CursorKey) {
        let Some((first, leaf)) = self.leaves.range_mut(..=key).next_back() else { return };
        let first = *first;
        if let Ok(at) = leaf.binary_search_by_key(&key, Slot::key) {
            leaf.remove(at);
            self.len -= 1;
            if leaf.is_empty() && first != FIRST {
                self.leaves.remove(&first);
            } else if leaf.len() + 2 * LEAF_STEP < leaf.capacity() {
                leaf.shrink_to(leaf.len() + LEAF_STEP);
            }
        }
    }

    pub(super) fn retain(&mut self, keeps: impl Fn(&Slot) -> bool) {
        let mut len = 0;
        self.leaves.retain(|first, leaf| {
            leaf.retain(&keeps);
            leaf.shrink_to(leaf.len() + LEAF_STEP);
            len += leaf.len();
            !leaf.is_empty() || *first == FIRST
        });
        self.len = len;
    }

    /// From a key on, or from behind it.
    pub(super) fn range(&self, from: CursorKey, behind: bool) -> impl Iterator<Item = &Slot> {
        let first = self.leaves.range(..=from).next_back().map_or(FIRST, |(first, _)| *first);
        self.leaves
            .range(first..)
            .flat_map(|(_, leaf)| leaf)
            .skip_while(move |slot| slot.key() < from || (behind && slot.key() == from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> CursorKey {
        CursorKey { group: GroupId(1), partition: PartitionId((number % 3) as u32), instance: number / 3 }
    }

    #[test]
    fn a_position_costs_at_most_forty_bytes() {
        for step in [1, 7_919] {
            let mut leaves = Leaves::default();
            let count = 200_000;
            for number in 0..count {
                leaves.set(Slot::new(key(number * step % count), Offset(number), Lsn(number)));
            }
            assert_eq!(leaves.len() as u64, count);
            let each = leaves.memory() as f64 / count as f64;
            assert!(each <= 40.0, "{each} bytes each, in steps of {step}");
            assert_eq!(leaves.range(FIRST, false).count() as u64, count);
            assert!(leaves.range(FIRST, false).is_sorted_by_key(Slot::key));
        }
    }

    #[test]
    fn it_does_what_a_map_does() {
        let mut leaves = Leaves::default();
        let mut map = BTreeMap::new();
        let mut random = 1u64;
        for round in 0..20_000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = key((random >> 33) % 3_000);
            if (random >> 20).is_multiple_of(3) {
                leaves.remove(key);
                map.remove(&key);
            } else {
                leaves.set(Slot::new(key, Offset(round), Lsn(round)));
                map.insert(key, round);
            }
            assert_eq!(leaves.get(key).map(|slot| slot.offset().0), map.get(&key).copied());
        }
        leaves.retain(|slot| slot.key().instance % 5 != 0);
        map.retain(|key, _| key.instance % 5 != 0);
        let from = key(1_000);
        let expected: Vec<_> = map.range(from..).skip(1).map(|(key, round)| (*key, *round)).collect();
        let expected: Vec<_> = match map.contains_key(&from) {
            true => expected,
            false => map.range(from..).map(|(key, round)| (*key, *round)).collect(),
        };
        let found: Vec<_> = leaves.range(from, true).map(|slot| (slot.key(), slot.offset().0)).collect();
        assert_eq!(found, expected);
        assert_eq!(leaves.len(), map.len());
    }
}
