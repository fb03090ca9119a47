//! The catalogue over all shards. Shard 0 owns it; the others hold a copy.
//!
//! ```text
//! CREATE -> shard 0: TOPIC frame -[durable]-> told to every shard -> each logs the partitions it owns -[durable]->
//!        shard 0: all have answered -> the client is answered
//! ```
//!
//! Invariants  W1  A topic is told to other shards only when it is durable at shard 0.
//!             W2  A client is answered only when every shard knows the topic and every owner has it durable.
//! At a start shard 0 tells all its topics again, which finishes what a crash has cut short.

use super::late::SettingsPatch;
use super::mail::{Answer, Origin, Work};
use super::requests::NOBODY;
use super::{Ack, AckTarget, ShardServer};
use ringmq_engine::catalogue::{Catalogue, CatalogueError};
use ringmq_engine::shard::AppendError;
use ringmq_format::catalogue::{TopicEntry, TopicSettings};
use ringmq_format::{PartitionId, TopicId};
use ringmq_protocol::ErrorCode;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A topic that is on its way to every shard.
#[derive(Debug)]
struct Change {
    entry: TopicEntry,
    /// Shards that have not answered yet.
    missing: usize,
    asked: Vec<Origin>,
}

/// Of a topic, what may be told of it more than once: made, altered, deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicState {
    pub(super) topic: TopicId,
    deleted: bool,
    revision: u32,
}

impl TopicState {
    fn of(entry: &TopicEntry) -> Self {
        Self { topic: entry.topic, deleted: entry.deleted, revision: entry.revision }
    }
}

/// A topic to be made.
#[derive(Clone, Debug)]
pub(super) struct NewTopic {
    pub(super) name: String,
    pub(super) partitions: u32,
    pub(super) if_not_exists: bool,
    pub(super) settings: TopicSettings,
}

/// Something to be logged when the log has room.
#[derive(Debug)]
enum ToLog {
    Change(TopicId),
    Entry(TopicEntry),
}

/// A shard's view of the catalogue.
#[derive(Debug)]
pub(super) struct Topics {
    own: u16,
    shards: u16,
    /// What clients of this shard are told.
    known: Catalogue,
    /// Shard 0 has told all that it had at its start.
    complete: bool,
    /// And all of that is logged: from then on it stays so.
    ready: bool,
    /// Partitions below were told of.
    partitions_end: u32,
    told: bool,
    changes: BTreeMap<TopicId, Change>,
    /// Topics that a failed log kept from one of their owners.
    broken: BTreeSet<TopicId>,
    to_log: VecDeque<ToLog>,
}

impl Topics {
    pub(super) fn new(own: u16, shards: u16) -> Self {
        Self {
            own,
            shards,
            known: Catalogue::default(),
            complete: false,
            ready: false,
            partitions_end: 0,
            told: false,
            changes: BTreeMap::new(),
            broken: BTreeSet::new(),
            to_log: VecDeque::new(),
        }
    }

    /// Every topic that shard 0 had at its start is known here.
    pub(super) fn is_complete(&self) -> bool {
        self.ready
    }

    fn enter(&mut self, entry: TopicEntry) {
        self.partitions_end = self.partitions_end.max(entry.first_partition.0 + entry.partitions);
        self.known.enter(entry);
    }

    /// Topics on their way.
    pub(super) fn unfinished(&self) -> usize {
        self.changes.len() + self.to_log.len()
    }

    pub(super) fn set_complete(&mut self) {
        self.complete = true;
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&TopicEntry> {
        self.known.by_name(name)
    }

    /// A topic, live or deleted.
    pub(super) fn by_id(&self, topic: TopicId) -> Option<&TopicEntry> {
        self.known.by_id(topic)
    }

    /// The topic of a partition, live or deleted.
    pub(super) fn by_partition(&self, partition: PartitionId) -> Option<&TopicEntry> {
        self.known.by_partition(partition)
    }

    pub(super) fn live_after<'a>(&'a self, after: &str) -> impl Iterator<Item = &'a TopicEntry> + use<'a> {
        self.known.live_after(after)
    }
}

impl ShardServer {
    pub(super) fn turn_topics(&mut self) {
        if self.own == 0 && !self.topics.told && self.shard.is_ready() {
            self.topics.told = true;
            self.topics.complete = true;
            self.tell_all_topics();
        }
        while let Some(next) = self.topics.to_log.pop_front() {
            let entry = match &next {
                ToLog::Change(topic) => self.topics.changes.get(topic).map(|change| change.entry.clone()),
                ToLog::Entry(entry) => Some(entry.clone()),
            };
            let Some(entry) = entry else { continue };
            match (self.shard.append_topic(&mut self.ring, &entry), next) {
                (Ok(durable_at), ToLog::Change(topic)) => {
                    self.acks.push_back(Ack { durable_at, target: AckTarget::Topic(topic) });
                }
                (Ok(durable_at), ToLog::Entry(entry)) => {
                    let target = AckTarget::TopicEntered(TopicState::of(&entry));
                    self.acks.push_back(Ack { durable_at, target });
                    self.entered(entry);
                }
                (Err(AppendError::Poisoned), ToLog::Change(topic)) => {
                    self.topic_failed(topic, ErrorCode::ShardPoisoned);
                }
                (Err(AppendError::DiskFull), ToLog::Change(topic)) => {
                    self.topic_failed(topic, ErrorCode::DiskFull);
                }
                (Err(AppendError::Poisoned), ToLog::Entry(entry)) => {
                    self.topic_entered_here(TopicState::of(&entry), false);
                    self.entered(entry);
                }
                (Err(_), again) => {
                    self.topics.to_log.push_front(again);
                    return;
                }
            }
            self.retry_deferred = true;
        }
        self.topics.ready |= self.topics.complete;
    }

    /// A topic is known here from now on; whoever was early may go on.
    fn entered(&mut self, entry: TopicEntry) {
        self.wake_deleted(&entry);
        self.topic_changed_in_late(&entry);
        self.groups.topic_changed(&entry);
        self.topics.enter(entry);
        for (origin, work) in std::mem::take(&mut self.early) {
            self.execute(origin, work);
        }
    }

    /// A topic with this partition is known to other shards, and shard 0 is about to tell this one.
    pub(super) fn is_early(&self, partition: PartitionId) -> bool {
        partition.0 >= self.topics.partitions_end && self.shard.extent(partition).is_none()
    }

    /// At a start: every topic, to every shard, in the order of their ids.
    fn tell_all_topics(&mut self) {
        let entries: Vec<TopicEntry> = self.shard.catalogue().all().cloned().collect();
        for entry in &entries {
            self.topic_changed_in_late(entry);
            self.topics.enter(entry.clone());
        }
        let origin = Origin { shard: self.own, connection: NOBODY, tag: 0 };
        for shard in 1..self.topics.shards {
            for entry in &entries {
                self.dispatch(origin, shard, Work::EnterTopic { entry: entry.clone() });
            }
            self.dispatch(origin, shard, Work::CatalogueComplete);
        }
    }

    pub(super) fn create_topic(&mut self, origin: Origin, new: NewTopic) {
        let NewTopic { name, partitions, if_not_exists, settings } = &new;
        let (partitions, if_not_exists) = (*partitions, *if_not_exists);
        let catalogue = self.shard.catalogue();
        let planned = match catalogue.plan(name, partitions, self.ring.now().wall_ms) {
            Err(CatalogueError::Exists) => {
                let Some(known) = catalogue.by_name(name).cloned() else { return };
                if !if_not_exists {
                    self.reply(origin, Answer::Topic(Err(ErrorCode::TopicExists)));
                } else if let Some(change) = self.topics.changes.get_mut(&known.topic) {
                    change.asked.push(origin); // W2
                } else if self.topics.broken.contains(&known.topic) {
                    self.reply(origin, Answer::Topic(Err(ErrorCode::ShardPoisoned)));
                } else {
                    self.reply(origin, Answer::Topic(Ok(known)));
                }
                return;
            }
            Ok(_) if self.shard.log().is_disk_full() => Err(ErrorCode::DiskFull),
            Ok(planned) => Ok(TopicEntry { settings: *settings, ..planned }),
            Err(CatalogueError::Partitions) => Err(ErrorCode::InvalidPartitions),
            Err(CatalogueError::PartitionsUsedUp) => Err(ErrorCode::TooManyPartitions),
            Err(CatalogueError::Full | CatalogueError::Unknown) => Err(ErrorCode::TooManyTopics),
        };
        // A topic that is planned and not logged yet has taken its name and ids, too.
        let waits = self
            .topics
            .changes
            .values_mut()
            .find(|change| !change.entry.deleted && change.entry.name == *name);
        match (planned, waits) {
            (Ok(_), Some(change)) if if_not_exists => change.asked.push(origin),
            (Ok(_), Some(_)) => self.reply(origin, Answer::Topic(Err(ErrorCode::TopicExists))),
            (Ok(_), None) if !self.topics.to_log.is_empty() => {
                self.deferred.push_back((origin, Work::CreateTopic(new)));
            }
            (Ok(entry), None) => self.begin_change(entry, origin),
            (Err(code), _) => self.reply(origin, Answer::Topic(Err(code))),
        }
    }

    pub(super) fn delete_topic(&mut self, origin: Origin, name: &str) {
        let Some(known) = self.shard.catalogue().by_name(name).cloned() else {
            self.reply(origin, Answer::Topic(Err(ErrorCode::UnknownTopic)));
            return;
        };
        if self.topics.changes.contains_key(&known.topic) || !self.topics.to_log.is_empty() {
            self.deferred.push_back((origin, Work::DeleteTopic { name: name.to_owned() }));
            return;
        }
        self.begin_change(TopicEntry { deleted: true, ..known }, origin);
    }

    /// Changes settings of a topic; `patch` takes what it has and answers what it is to have.
    pub(super) fn alter_topic(&mut self, origin: Origin, name: String, patch: SettingsPatch) {
        let Some(known) = self.shard.catalogue().by_name(&name).cloned() else {
            self.reply(origin, Answer::Topic(Err(ErrorCode::UnknownTopic)));
            return;
        };
        if self.topics.changes.contains_key(&known.topic) || !self.topics.to_log.is_empty() {
            self.deferred.push_back((origin, Work::AlterTopic { name, patch }));
            return;
        }
        let settings = patch.apply(known.settings);
        if settings == known.settings {
            self.reply(origin, Answer::Topic(Ok(known)));
        } else if self.shard.log().is_disk_full() {
            self.reply(origin, Answer::Topic(Err(ErrorCode::DiskFull)));
        } else {
            let revision = known.revision + 1;
            self.begin_change(TopicEntry { revision, settings, ..known }, origin);
        }
    }

    fn begin_change(&mut self, entry: TopicEntry, origin: Origin) {
        let topic = entry.topic;
        let missing = usize::from(self.topics.shards) - 1;
        self.topics.changes.insert(topic, Change { entry, missing, asked: vec![origin] });
        self.topics.to_log.push_back(ToLog::Change(topic));
        self.turn_topics();
    }

    /// Shard 0 has it on disk (W1).
    pub(super) fn topic_is_durable(&mut self, topic: TopicId) {
        let Some(change) = self.topics.changes.get(&topic) else { return };
        let entry = change.entry.clone();
        self.entered(entry.clone());
        let origin = Origin { shard: self.own, connection: NOBODY, tag: 0 };
        for shard in 1..self.topics.shards {
            self.dispatch(origin, shard, Work::EnterTopic { entry: entry.clone() });
        }
        self.finish_change(topic);
    }

    pub(super) fn topic_failed(&mut self, topic: TopicId, code: ErrorCode) {
        if let Some(change) = self.topics.changes.remove(&topic) {
            self.retry_deferred = true;
            if code == ErrorCode::OutcomeUnknown {
                self.topics.broken.insert(topic);
            }
            for origin in change.asked {
                self.reply(origin, Answer::Topic(Err(code)));
            }
        }
    }

    /// Shard 0 tells this shard of a topic.
    pub(super) fn enter_topic(&mut self, entry: TopicEntry) {
        let owns = entry.partition_ids().any(|id| id.shard(self.topics.shards).0 == self.topics.own);
        let logged = self.shard.catalogue().by_id(entry.topic);
        let is_logged = logged
            .is_some_and(|logged| logged.deleted || (!entry.deleted && logged.revision >= entry.revision));
        if owns && !is_logged {
            self.topics.to_log.push_back(ToLog::Entry(entry));
            self.turn_topics();
            return;
        }
        let state = TopicState::of(&entry);
        self.entered(entry);
        self.topic_entered_here(state, true);
    }

    /// Tells shard 0 what became of a topic that it has told of.
    pub(super) fn topic_entered_here(&mut self, state: TopicState, durable: bool) {
        let origin = Origin { shard: 0, connection: NOBODY, tag: 0 };
        self.reply(origin, Answer::TopicEntered { state, durable });
    }

    /// Readers of a deleted topic find out.
    fn wake_deleted(&mut self, entry: &TopicEntry) {
        if entry.deleted {
            for partition in entry.partition_ids() {
                self.readers.wake_partition(partition);
            }
        }
    }

    /// A shard has entered a topic.
    pub(super) fn topic_was_entered(&mut self, state: TopicState, durable: bool) {
        let topic = state.topic;
        if let Some(change) = self.topics.changes.get_mut(&topic)
            && TopicState::of(&change.entry) == state
        {
            if !durable {
                self.topic_failed(topic, ErrorCode::OutcomeUnknown);
                return;
            }
            change.missing = change.missing.saturating_sub(1);
            self.finish_change(topic);
        }
    }

    fn finish_change(&mut self, topic: TopicId) {
        let done = self.topics.changes.get(&topic).is_some_and(|change| {
            change.missing == 0 && self.topics.known.by_id(topic) == Some(&change.entry)
        });
        if !done {
            return;
        }
        if let Some(change) = self.topics.changes.remove(&topic) {
            self.retry_deferred = true;
            for origin in change.asked {
                self.reply(origin, Answer::Topic(Ok(change.entry.clone())));
            }
        }
    }
}
