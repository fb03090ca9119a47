//! The handles of a connection. Clients number them; those that count up are found by their number alone.

use ringmq_format::PartitionId;
use std::collections::BTreeMap;

/// Numbers that a new one may leave out and still stand in the table: so much more memory than was asked for.
const GAP_MAX: usize = 8;

/// A partition behind a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) partition: PartitionId,
    pub(super) shard: u16,
}

/// The handles of a connection.
#[derive(Debug, Default)]
pub(super) struct Handles {
    table: Vec<Option<Handle>>,
    /// Those whose numbers are too far apart for the table.
    scattered: BTreeMap<u32, Handle>,
    count: usize,
}

impl Handles {
    /// What a number stands for.
    pub(super) fn get(&self, number: u32) -> Option<Handle> {
        match self.table.get(number as usize) {
            Some(Some(handle)) => Some(*handle),
            _ if self.scattered.is_empty() => None,
            _ => self.scattered.get(&number).copied(),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Has a number stand for something from now on.
    pub(super) fn insert(&mut self, number: u32, handle: Handle) {
        self.remove(number);
        self.count += 1;
        let at = number as usize;
        if at > self.table.len() + GAP_MAX {
            self.scattered.insert(number, handle);
            return;
        }
        if at >= self.table.len() {
            self.table.resize(at + 1, None);
        }
        self.table[at] = Some(handle);
    }

    /// Has a number stand for nothing.
    pub(super) fn remove(&mut self, number: u32) {
        let listed = self.table.get_mut(number as usize).and_then(Option::take);
        if listed.or_else(|| self.scattered.remove(&number)).is_some() {
            self.count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_near_and_far_are_found_until_they_are_removed() {
        let handle = |n: u32| Handle { partition: PartitionId(n), shard: 0 };
        let mut handles = Handles::default();
        // The second of a pair comes to lie in the table, though the first was too far ahead of it.
        let numbers = [1, 2, 30, 9, 17, 25, 33, 41, u32::MAX, 0, 40, 1_000_000];
        for (count, number) in numbers.into_iter().enumerate() {
            assert_eq!(handles.get(number), None);
            handles.insert(number, handle(number));
            assert_eq!(handles.len(), count + 1);
        }
        handles.insert(30, handle(7));
        assert_eq!((handles.get(30), handles.len()), (Some(handle(7)), numbers.len()));
        assert!(handles.table.len() < 64, "a number far ahead takes no room in the table");
        for number in numbers {
            assert!(handles.get(number).is_some());
            handles.remove(number);
            assert_eq!(handles.get(number), None);
        }
        assert_eq!(handles.len(), 0);
    }
}
