//! The consumer groups that a shard coordinates: by id for as long as they live, and by name.
//!
//! Invariant  T2  Ids are never given twice: of the deleted groups the one with the highest id stays.
//! Ignorant of members and positions.

use ringmq_format::consumer_group::ConsumerGroup;
use ringmq_format::{GroupId, ShardId};
use std::collections::BTreeMap;

/// The groups of one coordinator.
#[derive(Clone, Debug, Default)]
pub struct GroupTable {
    live: BTreeMap<GroupId, ConsumerGroup>,
    by_name: BTreeMap<String, GroupId>,
    highest: GroupId,
    /// The group with the highest id, when it is deleted.
    tombstone: Option<ConsumerGroup>,
}

impl GroupTable {
    /// The id of the next group; `None` when all are used up.
    pub fn next_id(&self, shard: ShardId, shards: u16) -> Option<GroupId> {
        let counter = self.highest.0 / u32::from(shards) + 1;
        counter.checked_mul(u32::from(shards))?.checked_add(u32::from(shard.0)).map(GroupId)
    }

    /// Enters a group, or what has become of it. Replay may enter what was before what is known, and then enters
    /// all that came after it.
    pub fn enter(&mut self, entry: ConsumerGroup) {
        let id = entry.group;
        if id >= self.highest {
            self.highest = id;
            self.tombstone = entry.deleted.then(|| entry.clone()); // T2
        }
        if !entry.deleted {
            self.by_name.insert(entry.name.clone(), id);
            self.live.insert(id, entry);
        } else if self.live.remove(&id).is_some() && self.by_name.get(&entry.name) == Some(&id) {
            self.by_name.remove(&entry.name);
        }
    }

    /// A live group.
    pub fn by_name(&self, name: &str) -> Option<&ConsumerGroup> {
        self.live.get(self.by_name.get(name)?)
    }

    /// A live group.
    pub fn by_id(&self, group: GroupId) -> Option<&ConsumerGroup> {
        self.live.get(&group)
    }

    /// Every live group, by id.
    pub fn live(&self) -> impl Iterator<Item = &ConsumerGroup> {
        self.live.values()
    }

    /// What a checkpoint keeps.
    pub(crate) fn all(&self) -> impl Iterator<Item = &ConsumerGroup> {
        self.live.values().chain(&self.tombstone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_format::consumer_group::GroupOptions;

    fn group(id: u32, name: &str, deleted: bool) -> ConsumerGroup {
        ConsumerGroup {
            group: GroupId(id),
            name: name.to_owned(),
            deleted,
            mode: None,
            created_ms: 0,
            options: GroupOptions::default(),
            subscriptions: Vec::new(),
        }
    }

    #[test]
    fn ids_are_never_given_twice_and_replay_from_anywhere_gives_the_same() {
        let history = [
            group(5, "a", false),
            group(9, "b", false),
            group(5, "a", true),
            group(13, "a", false),
            group(13, "a", true),
            group(9, "b", true),
        ];
        for end in 1..=history.len() {
            let mut exact = GroupTable::default();
            history[..end].iter().for_each(|entry| exact.enter(entry.clone()));
            let next = exact.next_id(ShardId(1), 4).unwrap();
            assert!(history[..end].iter().all(|entry| entry.group < next));
            assert_eq!(next.coordinator(4), ShardId(1));
            for start in 0..end {
                // A checkpoint that knows everything, and the log from `start` on.
                let mut replayed = GroupTable::default();
                exact.all().cloned().collect::<Vec<_>>().into_iter().for_each(|entry| replayed.enter(entry));
                history[start..end].iter().for_each(|entry| replayed.enter(entry.clone()));
                assert_eq!(format!("{replayed:?}"), format!("{exact:?}"), "{start}..{end}");
            }
        }
    }
}
