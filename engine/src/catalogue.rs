//! The topics: by id for ever, by name while they live.
//!
//! Invariant  T1  Ids of topics and partitions are never given twice: deleted topics stay here.
//! Ignorant of where TOPIC frames are and of who asks.

use ringmq_format::catalogue::{TopicEntry, TopicSettings};
use ringmq_format::limits::{PARTITIONS_MAX, TOPIC_PARTITIONS_MAX, TOPICS_MAX};
use ringmq_format::{PartitionId, TopicId};
use std::collections::BTreeMap;

/// Why a topic cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogueError {
    /// A live topic has this name.
    Exists,
    /// No live topic has this name.
    Unknown,
    /// Zero or more than [`TOPIC_PARTITIONS_MAX`].
    Partitions,
    /// The directory has as many topics as it may ever have.
    Full,
    /// The directory has as many partitions as it may ever have, or would have more with these.
    PartitionsUsedUp,
}

/// All topics.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    topics: BTreeMap<TopicId, TopicEntry>,
    by_name: BTreeMap<String, TopicId>,
    /// By the first of its partitions.
    by_partition: BTreeMap<PartitionId, TopicId>,
    partitions_end: u32,
}

impl Catalogue {
    /// The entry of a topic that could be made now. Nothing is entered.
    pub fn plan(&self, name: &str, partitions: u32, now_ms: i64) -> Result<TopicEntry, CatalogueError> {
        if self.by_name.contains_key(name) {
            return Err(CatalogueError::Exists);
        }
        if partitions == 0 || partitions > TOPIC_PARTITIONS_MAX {
            return Err(CatalogueError::Partitions);
        }
        let first = self.partitions_end.max(1);
        if self.topics.len() >= TOPICS_MAX {
            return Err(CatalogueError::Full);
        }
        if first + partitions > PARTITIONS_MAX {
            return Err(CatalogueError::PartitionsUsedUp);
        }
        let topic = self.topics.last_key_value().map_or(1, |(last, _)| last.0 + 1);
        Ok(TopicEntry {
            topic: TopicId(topic),
            first_partition: PartitionId(first),
            partitions,
            deleted: false,
            created_ms: now_ms,
            name: name.to_owned(),
            revision: 0,
            settings: TopicSettings::default(),
        })
    }

    /// Enters a topic, or what has become of it. Entering twice, or an older state after a newer, changes nothing:
    /// replay may do both.
    pub fn enter(&mut self, entry: TopicEntry) {
        self.partitions_end = self.partitions_end.max(entry.first_partition.0 + entry.partitions);
        let known = self.topics.get(&entry.topic);
        if known.is_some_and(|known| known.deleted || (!entry.deleted && known.revision > entry.revision)) {
            return;
        }
        self.by_partition.insert(entry.first_partition, entry.topic);
        if entry.deleted {
            if self.by_name.get(&entry.name) == Some(&entry.topic) {
                self.by_name.remove(&entry.name);
            }
        } else {
            self.by_name.insert(entry.name.clone(), entry.topic);
        }
        self.topics.insert(entry.topic, entry);
    }

    /// A live topic.
    pub fn by_name(&self, name: &str) -> Option<&TopicEntry> {
        self.topics.get(self.by_name.get(name)?)
    }

    /// A topic, live or deleted.
    pub fn by_id(&self, topic: TopicId) -> Option<&TopicEntry> {
        self.topics.get(&topic)
    }

    /// The topic of a partition, live or deleted.
    pub fn by_partition(&self, partition: PartitionId) -> Option<&TopicEntry> {
        let (_, topic) = self.by_partition.range(..=partition).next_back()?;
        let entry = self.topics.get(topic)?;
        (partition.0 - entry.first_partition.0 < entry.partitions).then_some(entry)
    }

    /// Live topics with a name behind `after`, by name.
    pub fn live_after<'a>(&'a self, after: &str) -> impl Iterator<Item = &'a TopicEntry> + use<'a> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (if after.is_empty() { Unbounded } else { Excluded(after) }, Unbounded);
        self.by_name.range::<str, _>(range).filter_map(|(_, topic)| self.topics.get(topic))
    }

    /// Every topic, deleted ones too, by id.
    pub fn all(&self) -> impl Iterator<Item = &TopicEntry> {
        self.topics.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_used_up_before_topics_are() {
        let mut catalogue = Catalogue::default();
        for number in 0..PARTITIONS_MAX / TOPIC_PARTITIONS_MAX - 1 {
            let topic = catalogue.plan(&format!("t{number}"), TOPIC_PARTITIONS_MAX, 0).unwrap();
            catalogue.enter(topic);
        }
        let too_many = catalogue.plan("more", TOPIC_PARTITIONS_MAX, 0);
        assert_eq!(too_many, Err(CatalogueError::PartitionsUsedUp));
        assert!(catalogue.plan("fewer", TOPIC_PARTITIONS_MAX - 1, 0).is_ok());
    }

    #[test]
    fn ids_are_never_given_twice() {
        let mut catalogue = Catalogue::default();
        let a = catalogue.plan("a", 3, 0).unwrap();
        catalogue.enter(a.clone());
        assert_eq!(catalogue.plan("a", 1, 0), Err(CatalogueError::Exists));
        catalogue.enter(TopicEntry { deleted: true, ..a.clone() });
        catalogue.enter(a); // replayed late
        assert!(catalogue.by_name("a").is_none());
        let again = catalogue.plan("a", 1, 0).unwrap();
        assert_eq!((again.topic, again.first_partition), (TopicId(2), PartitionId(4)));
        let retained = TopicSettings { retention_ms: 9, ..TopicSettings::default() };
        catalogue.enter(TopicEntry { revision: 1, settings: retained, ..again.clone() });
        catalogue.enter(again); // replayed late
        assert_eq!(catalogue.by_name("a").unwrap().settings, retained);
        let named = |partition| catalogue.by_partition(PartitionId(partition)).map(|entry| entry.topic);
        assert_eq!(
            [0, 1, 3, 4, 5].map(named),
            [None, Some(TopicId(1)), Some(TopicId(1)), Some(TopicId(2)), None]
        );
        assert_eq!(catalogue.live_after("").count(), 1);
        assert_eq!(catalogue.live_after("a").count(), 0);
    }
}
