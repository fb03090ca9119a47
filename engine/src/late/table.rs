//! Entries by identity, for tables of a million: slots that do not move, and an index of 4 bytes each.
//!
//! Invariants  I1  A slot keeps its entry until that is removed: whoever goes through the slots in their order sees
//!                 every entry that was there from the beginning to the end.
//!             I2  The index leads to a slot exactly while that is used. Identity 0 is a free slot.

/// Slots of a piece of memory: the table grows by so many and never moves.
const PIECE: usize = 1024;
/// Smallest index.
const INDEX_MIN: usize = 64;

/// What an entry is found by; never 0.
pub(super) trait Keyed: Copy {
    /// A free slot: its identity is 0.
    const FREE: Self;
    /// Its identity.
    fn identity(&self) -> u64;
}

/// The table.
#[derive(Debug, Clone)]
pub(super) struct IdTable<T> {
    pieces: Vec<Vec<T>>,
    free: Vec<u32>,
    /// Slots + 1, by hash, the next free place where one is taken; 0 for none.
    index: Vec<u32>,
    len: usize,
}

impl<T> Default for IdTable<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), free: Vec::new(), index: Vec::new(), len: 0 }
    }
}

impl<T: Keyed> IdTable<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Slots that were ever used, free ones too.
    pub(super) fn slots(&self) -> u32 {
        self.pieces.last().map_or(0, |last| ((self.pieces.len() - 1) * PIECE + last.len()) as u32)
    }

    /// The entry of a slot, if one is there.
    pub(super) fn at(&self, slot: u32) -> Option<&T> {
        let entry = self.pieces.get(slot as usize / PIECE)?.get(slot as usize % PIECE)?;
        (entry.identity() != 0).then_some(entry)
    }

    fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        let entry = self.pieces.get_mut(slot as usize / PIECE)?.get_mut(slot as usize % PIECE)?;
        (entry.identity() != 0).then_some(entry)
    }

    fn home(&self, identity: u64) -> usize {
        let bits = self.index.len().trailing_zeros();
        (identity.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize
    }

    fn identity_at(&self, place: usize) -> Option<u64> {
        let slot = self.index[place].checked_sub(1)?;
        self.at(slot).map(T::identity)
    }

    /// Where the index leads to this identity.
    fn place(&self, identity: u64) -> Option<usize> {
        if self.index.is_empty() {
            return None;
        }
        let mut place = self.home(identity);
        loop {
            match self.identity_at(place) {
                None => return None,
                Some(found) if found == identity => return Some(place),
                Some(_) => place = (place + 1) & (self.index.len() - 1),
            }
        }
    }

    /// The slot of an entry.
    pub(super) fn slot(&self, identity: u64) -> Option<u32> {
        self.place(identity).map(|place| self.index[place] - 1)
    }

    pub(super) fn get(&self, identity: u64) -> Option<&T> {
        self.at(self.slot(identity)?)
    }

    pub(super) fn get_mut(&mut self, identity: u64) -> Option<&mut T> {
        let slot = self.slot(identity)?;
        self.at_mut(slot)
    }

    /// Enters an entry whose identity is not there; answers its slot.
    pub(super) fn insert(&mut self, entry: T) -> u32 {
        assert!(entry.identity() != 0, "an entry without identity");
        assert!(self.slot(entry.identity()).is_none(), "{} is there already", entry.identity()); // I2
        if (self.len + 1) * 8 > self.index.len() * 7 {
            self.grow();
        }
        let slot = match self.free.pop() {
            Some(slot) => {
                self.pieces[slot as usize / PIECE][slot as usize % PIECE] = entry;
                slot
            }
            None => {
                if self.pieces.last().is_none_or(|last| last.len() == PIECE) {
                    self.pieces.push(Vec::with_capacity(PIECE));
                }
                let slot = self.slots_if_full();
                let Some(last) = self.pieces.last_mut() else { panic!("a piece was just made") };
                last.push(entry);
                slot
            }
        };
        self.enter(entry.identity(), slot);
        self.len += 1;
        slot
    }

    fn slots_if_full(&self) -> u32 {
        let last = self.pieces.last().map_or(0, Vec::len);
        ((self.pieces.len() - 1) * PIECE + last) as u32
    }

    fn enter(&mut self, identity: u64, slot: u32) {
        let mut place = self.home(identity);
        while self.index[place] != 0 {
            place = (place + 1) & (self.index.len() - 1);
        }
        self.index[place] = slot + 1;
    }

    fn grow(&mut self) {
        let size = (self.index.len() * 2).max(INDEX_MIN);
        let old = std::mem::replace(&mut self.index, vec![0; size]);
        for slot in old.into_iter().filter_map(|place| place.checked_sub(1)) {
            if let Some(identity) = self.at(slot).map(T::identity) {
                self.enter(identity, slot);
            }
        }
    }

    /// Removes an entry. Memory comes back when the last one goes.
    pub(super) fn remove(&mut self, identity: u64) -> Option<T> {
        let mut hole = self.place(identity)?;
        let slot = self.index[hole] - 1;
        // What stands behind the hole and could stand nearer to its home moves up.
        let mask = self.index.len() - 1;
        let mut place = hole;
        loop {
            place = (place + 1) & mask;
            let Some(found) = self.identity_at(place) else { break };
            let home = self.home(found);
            if (place.wrapping_sub(home) & mask) >= (place.wrapping_sub(hole) & mask) {
                self.index[hole] = self.index[place];
                hole = place;
            }
        }
        self.index[hole] = 0;
        let entry =
            std::mem::replace(&mut self.pieces[slot as usize / PIECE][slot as usize % PIECE], T::FREE);
        self.len -= 1;
        if self.len == 0 {
            *self = Self::default();
        } else {
            self.free.push(slot);
        }
        Some(entry)
    }

    /// All entries, in the order of their slots.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten().filter(|entry| entry.identity() != 0)
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.pieces.len() * PIECE * size_of::<T>() + (self.free.capacity() + self.index.capacity()) * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Pair(u64, u64);

    impl Keyed for Pair {
        const FREE: Self = Self(0, 0);
        fn identity(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn it_is_a_map() {
        let mut random = 7u64;
        let mut draw = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        let (mut table, mut model) = (IdTable::default(), BTreeMap::new());
        for step in 0..60_000u64 {
            // Grows, shrinks to nothing, grows again.
            let growing = step % 20_000 < 9_000;
            let identity = 8192 + 8 * draw(3_000);
            if draw(10) < if growing { 8 } else { 2 } {
                if model.insert(identity, step).is_none() {
                    table.insert(Pair(identity, step));
                } else if let Some(entry) = table.get_mut(identity) {
                    entry.1 = step;
                }
            } else {
                assert_eq!(table.remove(identity).map(|entry| entry.1), model.remove(&identity));
            }
            assert_eq!(table.get(identity).map(|entry| entry.1), model.get(&identity).copied());
            assert_eq!(table.len(), model.len());
            if step % 1_000 == 0 {
                let mut found: Vec<_> = table.iter().map(|entry| (entry.0, entry.1)).collect();
                found.sort_unstable();
                assert!(found.into_iter().eq(model.iter().map(|(key, value)| (*key, *value))));
                assert!(model.keys().all(|key| table.get(*key).is_some()));
            }
        }
    }
}
