//! A storage shard on a real ring and a real disk.

use ringmq_engine::planted::Planted;
use ringmq_engine::ring::{Completion, Ring, RingConfig};
use ringmq_engine::shard::{AppendError, Shard, ShardOptions};
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::frame::Frame;
use ringmq_format::limits::CHECKPOINT_INTERVAL;
use ringmq_format::{Lsn, Offset, PartitionId, ShardId, TopicId};
use std::path::Path;

/// Of the topic, numbered from 1.
pub const PARTITIONS: u32 = 1024;

/// A shard with one topic, on a directory of its own.
pub struct Bench {
    /// Its ring.
    pub ring: Ring,
    /// The shard.
    pub shard: Shard,
    completions: Vec<Completion>,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// A shard on a new directory in `parent`, which should be on a disk and not in RAM.
    ///
    /// # Errors
    /// If io_uring or O_DIRECT is refused.
    pub fn open(parent: &Path) -> Result<Self, String> {
        let directory = tempfile::tempdir_in(parent).map_err(|error| error.to_string())?;
        let mut ring = Ring::uring(RingConfig::default()).map_err(|error| format!("io_uring: {error}"))?;
        let options = ShardOptions {
            directory: directory.path().to_owned(),
            shard: ShardId(0),
            shards: 1,
            node_id: 1,
            memory: 96 << 20,
            segment_size: 8 << 20,
            disk_limit: None,
            retain_time_ms: None,
            retain_size: Some(32 << 20),
            checkpoint_interval: CHECKPOINT_INTERVAL,
            durability: None,
            planted: Planted::default(),
        };
        let (shard, _) =
            Shard::open(&mut ring, options, &mut |_, _| {}).map_err(|error| error.to_string())?;
        let mut bench = Self { ring, shard, completions: Vec::new(), _directory: directory };
        let entry = TopicEntry {
            topic: TopicId(1),
            first_partition: PartitionId(1),
            partitions: PARTITIONS,
            deleted: false,
            created_ms: 0,
            name: "bench".into(),
            revision: 0,
            settings: Default::default(),
        };
        while bench.shard.append_topic(&mut bench.ring, &entry).is_err() {
            bench.turn();
        }
        Ok(bench)
    }

    /// One turn of its loop, waiting for what is in flight for at most a millisecond.
    pub fn turn(&mut self) {
        self.shard.turn(&mut self.ring);
        let until = self.shard.deadline().unwrap_or(u64::MAX).min(self.ring.now().mono_us + 1_000);
        self.ring.wait(Some(until));
        self.ring.reap(&mut self.completions, 512);
        for completion in self.completions.drain(..) {
            self.shard.complete(&mut self.ring, &completion);
        }
    }

    /// Appends, and turns while there is no room. Answers where the log must be durable for it.
    ///
    /// # Panics
    /// If the frame is none, or refused.
    pub fn append(&mut self, partition: u32, bytes: &[u8]) -> Lsn {
        let Ok(frame) = Frame::parse(bytes) else { panic!("not a frame") };
        loop {
            match self.shard.append(&mut self.ring, PartitionId(partition), &frame) {
                Ok(appended) => return appended.durable_at,
                Err(AppendError::Busy | AppendError::DiskFull) => self.turn(),
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Appends and waits for the medium.
    pub fn append_durable(&mut self, partition: u32, bytes: &[u8]) {
        let durable_at = self.append(partition, bytes);
        while self.shard.durable() < durable_at {
            self.turn();
        }
    }

    /// Turns until everything is on the medium and visible.
    pub fn settle(&mut self, at: Lsn) {
        while self.shard.durable() < at {
            self.turn();
        }
        self.turn();
    }

    /// What consumers may read of a partition.
    ///
    /// # Panics
    /// If there is no such partition.
    pub fn visible(&self, partition: u32) -> Offset {
        match self.shard.extent(PartitionId(partition)) {
            Some(extent) => extent.visible,
            None => panic!("no partition {partition}"),
        }
    }

    /// Nothing may be in flight when the ring goes.
    pub fn close(mut self) {
        self.shard.begin_stop();
        while !self.shard.is_stopped() {
            self.turn();
        }
    }
}
