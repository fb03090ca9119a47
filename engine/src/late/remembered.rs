//! What was, for those who ask about it later: the newest so many, for a day.

use std::collections::{BTreeMap, VecDeque};

/// Values by key, in the order in which they came.
#[derive(Debug, Clone)]
pub(super) struct Remembered<K, V> {
    entries: VecDeque<(K, V)>,
    /// Number of the first entry.
    first: u64,
    by_key: BTreeMap<K, u64>,
    max: usize,
}

impl<K: Ord + Copy, V> Remembered<K, V> {
    pub(super) fn new(max: usize) -> Self {
        Self { entries: VecDeque::new(), first: 0, by_key: BTreeMap::new(), max }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        let number = self.by_key.get(key)?;
        self.entries.get((number - self.first) as usize).map(|entry| &entry.1)
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.by_key.contains_key(key)
    }

    /// Remembers a value, unless there is one for the key: what was said first stays.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.contains(&key) {
            return;
        }
        if self.entries.len() == self.max {
            self.pop();
        }
        self.by_key.insert(key, self.first + self.entries.len() as u64);
        self.entries.push_back((key, value));
    }

    fn pop(&mut self) {
        if let Some((key, _)) = self.entries.pop_front() {
            self.by_key.remove(&key);
            self.first += 1;
        }
    }

    /// Forgets the oldest, at most so many, as long as they are old enough.
    pub(super) fn forget(&mut self, max: usize, is_old: impl Fn(&V) -> bool) {
        for _ in 0..max {
            match self.entries.front() {
                Some((_, value)) if is_old(value) => self.pop(),
                _ => return,
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entries from number `next` on, each with the number behind it.
    pub(super) fn from(&self, next: u64) -> impl Iterator<Item = (u64, &K, &V)> {
        let skip = next.saturating_sub(self.first) as usize;
        let entries = self.entries.iter().enumerate().skip(skip);
        entries.map(|(index, (key, value))| (self.first + index as u64 + 1, key, value))
    }
}
