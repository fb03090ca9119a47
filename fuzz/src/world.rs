//! What the targets need that run a whole shard or server: a store that was made once, and time that passes.

use ringmq_engine::planted::Planted;
use ringmq_engine::recovery::OpenError;
use ringmq_engine::ring::sim::{DiskImage, NodeId, SimConfig, World};
use ringmq_engine::ring::{Completion, Ring};
use ringmq_engine::shard::{AppendError, Fetched, MEMORY_MIN, Shard, ShardOptions};
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::consumer_group::{ConsumerGroup, GroupOptions, GroupSubscription};
use ringmq_format::cursor::{AckChange, CursorChange, CursorKey};
use ringmq_format::frame::{Codec, Frame};
use ringmq_format::late::Late;
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_format::superblock::Durability;
use ringmq_format::{GroupId, Offset, PartitionId, ProducerId, ShardId};
use std::path::PathBuf;

pub(crate) const NODE: NodeId = NodeId(1);
pub(crate) const NODE_ID: u128 = 5;
pub(crate) const SEGMENT_SIZE: u64 = 32 * 4096;
/// Partitions of the topic that every store has.
pub(crate) const PARTITIONS: u32 = 2;
/// Its name.
pub(crate) const TOPIC: &str = "t";
/// Events and turns in which something must have happened.
const PATIENCE: usize = 200_000;

pub(crate) fn directory() -> PathBuf {
    PathBuf::from("/data/shard-00")
}

pub(crate) fn world(mut config: SimConfig, image: Option<&DiskImage>) -> World {
    config.disk.roots = vec![directory()];
    match image {
        Some(image) => World::with_disk_image(1, config, NODE, image),
        None => World::new(1, config),
    }
}

pub(crate) fn options() -> ShardOptions {
    ShardOptions {
        directory: directory(),
        shard: ShardId(0),
        shards: 1,
        node_id: NODE_ID,
        memory: MEMORY_MIN,
        segment_size: SEGMENT_SIZE,
        disk_limit: Some(64 * SEGMENT_SIZE),
        retain_time_ms: None,
        retain_size: None,
        checkpoint_interval: 1 << 40,
        durability: Some(Durability::Flush),
        planted: Planted::default(),
    }
}

/// A shard that runs, without a server.
pub(crate) struct Node {
    pub(crate) world: World,
    pub(crate) ring: Ring,
    pub(crate) shard: Shard,
    done: Vec<Completion>,
}

impl Node {
    pub(crate) fn open(world: &World) -> Result<Self, OpenError> {
        let mut ring = world.ring(NODE);
        let (shard, _) = Shard::open(&mut ring, options(), &mut |_, _| {})?;
        Ok(Self { world: world.clone(), ring, shard, done: Vec::new() })
    }

    pub(crate) fn tick(&mut self) {
        self.done.clear();
        self.ring.reap(&mut self.done, 512);
        for completion in &self.done {
            self.shard.complete(&mut self.ring, completion);
        }
        self.shard.turn(&mut self.ring);
        while self.shard.has_work() {
            self.shard.turn(&mut self.ring);
        }
        self.ring.wait(Some(self.shard.deadline().unwrap_or(u64::MAX)));
    }

    /// Time passes until something has come true; false if the log was poisoned before. It may not take for ever.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        for _ in 0..PATIENCE {
            if done(self) {
                return true;
            }
            if self.shard.poisoned().is_some() {
                return false;
            }
            if !self.world.runnable().is_empty() {
                self.tick();
            } else if !self.world.step() {
                self.world.advance(1_000);
            }
        }
        panic!("{what} never happens");
    }

    /// As `until`, and nothing may be wrong.
    fn must(&mut self, what: &str, done: impl FnMut(&mut Self) -> bool) {
        assert!(self.until(what, done), "{what}: {:?}", self.shard.poisoned());
    }

    /// Everything that a partition delivers: offset and bytes. Damage is stepped over.
    pub(crate) fn read(&mut self, id: PartitionId) -> Records {
        let mut found = Vec::new();
        let mut next = self.shard.extent(id).map_or(Offset(0), |extent| extent.start);
        for _ in 0..10_000 {
            let mut sink = |delivered: &ringmq_engine::shard::Delivered, bytes: &[u8]| {
                found.push((delivered.base_offset.0, bytes.to_vec()));
            };
            next = match self.shard.fetch(&self.ring, id, next, 1 << 20, &mut sink) {
                Fetched::Limit(at) => at,
                Fetched::Damaged { from, to } => {
                    assert!(to > from, "damage from {from} to {to}");
                    to
                }
                Fetched::Cold(at) => {
                    if !self.until("a page", |own| own.shard.take_cold_progress()) {
                        return found;
                    }
                    at
                }
                Fetched::AtEnd(_) | Fetched::OutOfRange { .. } | Fetched::UnknownPartition => return found,
            };
        }
        panic!("partition {id} never ends");
    }

    /// Repeats what the log is too busy for.
    fn append<T>(&mut self, mut work: impl FnMut(&mut Shard, &mut Ring) -> Result<T, AppendError>) -> T {
        let mut taken = None;
        self.must("an append", |own| match work(&mut own.shard, &mut own.ring) {
            Ok(answer) => {
                taken = Some(answer);
                true
            }
            Err(AppendError::Busy) => false,
            Err(error) => panic!("{error:?}"),
        });
        match taken {
            Some(taken) => taken,
            None => panic!("nothing was appended"),
        }
    }

    fn settle(&mut self) {
        let end = self.shard.log().end();
        self.tick();
        self.must("durable", |own| own.shard.durable() >= end);
    }

    fn records(&mut self, count: usize, size: usize) {
        for number in 0..count {
            let id = self.partition(number as u32 % PARTITIONS);
            let bytes = frame(number, size, ProducerStamp::default());
            self.append(|shard, ring| match Frame::parse(&bytes) {
                Ok(frame) => shard.append(ring, id, &frame),
                Err(corruption) => panic!("{corruption}"),
            });
        }
    }

    fn partition(&self, index: u32) -> PartitionId {
        let topic = self.shard.catalogue().by_name(TOPIC);
        PartitionId(topic.map_or(0, |topic| topic.first_partition.0) + index)
    }

    /// One of each kind of frame that a log has.
    fn everything(&mut self) {
        let (first, second) = (self.partition(0), self.partition(1));
        for sequence in 0..3 {
            let stamp = ProducerStamp { id: ProducerId(7), epoch: 1, base_sequence: sequence };
            let bytes = frame(sequence as usize, 100, stamp);
            self.append(|shard, ring| parsed(&bytes, |frame| shard.append(ring, first, frame)));
        }
        for (txn, due_ms) in [(1u128 << 96, 0), (2u128 << 96, 0), (3u128 << 96, 0), (0, i64::MAX / 4)] {
            let group = if txn == 0 { "" } else { "billing" };
            let bytes = frame(9, 60, ProducerStamp::default());
            let bytes = Late { txn, due_ms, check_after_ms: 0, group }.wrap(&bytes);
            self.append(|shard, ring| parsed(&bytes, |frame| shard.append(ring, second, frame)));
        }
        self.settle();
        let ended = self.shard.commit(&mut self.ring, 1 << 96).is_ok()
            && self.shard.abort(&mut self.ring, 2 << 96, 1).is_ok()
            && self.shard.note_check(&mut self.ring, 3 << 96, "billing", 1, false).is_ok();
        assert!(ended, "transactions end");
        let group = ConsumerGroup {
            group: GroupId(1),
            name: "readers".to_owned(),
            deleted: false,
            mode: None,
            created_ms: 1,
            options: GroupOptions::default(),
            subscriptions: vec![GroupSubscription { topic: TOPIC.to_owned(), filter: String::new() }],
        };
        self.append(|shard, ring| shard.log_group(ring, &group));
        let key = CursorKey::shared(GroupId(1), first);
        let position = [CursorChange { key, offset: Some(Offset(1)) }];
        self.append(|shard, ring| shard.log_cursors(ring, 0, &position));
        let ack = AckChange {
            ranges: vec![(Offset(3), Offset(5))],
            ..AckChange::new(GroupId(1), second, Offset(1))
        };
        self.append(|shard, ring| shard.log_acks(ring, std::slice::from_ref(&ack)));
        self.settle();
    }
}

fn parsed<T>(bytes: &[u8], work: impl FnOnce(&Frame<'_>) -> T) -> T {
    match Frame::parse(bytes) {
        Ok(frame) => work(&frame),
        Err(corruption) => panic!("{corruption}"),
    }
}

fn frame(number: usize, size: usize, producer: ProducerStamp) -> Vec<u8> {
    let body: Vec<u8> = (0..size).map(|at| (number * 31 + at * 7) as u8).collect();
    let mut builder = FrameBuilder::new(1_700_000_000_000, 1 << 16);
    let tag = if number.is_multiple_of(2) { "even" } else { "odd" };
    let record =
        Record { tag: Some(tag.as_bytes()), body: &body, time_ms: 1_700_000_000_001, ..Record::default() };
    assert!(builder.push(&record).is_ok(), "a record of {size} bytes fits");
    builder.finish(producer, Codec::None, &mut |_| None)
}

/// Frames of a partition: offset and bytes.
pub(crate) type Records = Vec<(u64, Vec<u8>)>;

/// What a store was left with.
pub(crate) struct Store {
    pub(crate) image: DiskImage,
    /// What was acknowledged, by partition.
    pub(crate) records: Vec<(PartitionId, Records)>,
}

/// A shard with a topic. `full`: several segments with sidecars, and stopped cleanly, so with a checkpoint of everything;
/// otherwise one segment, and the power went off.
pub(crate) fn store(full: bool) -> Store {
    let world = world(SimConfig::default(), None);
    let mut node = match Node::open(&world) {
        Ok(node) => node,
        Err(error) => panic!("an empty store opens: {error}"),
    };
    node.must("being ready", |own| own.shard.is_ready());
    let topic: TopicEntry = match node.shard.catalogue().plan(TOPIC, PARTITIONS, 1) {
        Ok(topic) => topic,
        Err(error) => panic!("{error:?}"),
    };
    node.append(|shard, ring| shard.append_topic(ring, &topic));
    node.settle();
    node.records(if full { 40 } else { 6 }, if full { 8_000 } else { 200 });
    node.everything();
    node.records(4, 300);
    node.settle();
    let ids: Vec<PartitionId> = topic.partition_ids().collect();
    let records = ids.into_iter().map(|id| (id, node.read(id))).collect();
    if full {
        node.shard.begin_stop();
        node.must("the stop", |own| own.shard.is_stopped());
    }
    drop(node);
    world.power_off(NODE);
    Store { image: world.disk_image(NODE), records }
}
