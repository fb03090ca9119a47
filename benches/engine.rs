//! The storage shard on a real ring and a real disk: append and group close, index look-up, reading the tail.
//!
//! Where io_uring or O_DIRECT is refused the benches are skipped with a word.

#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringmq_benches::{BODY, frame, noise};
use ringmq_engine::planted::Planted;
use ringmq_engine::ring::{Ring, RingConfig};
use ringmq_engine::shard::{AppendError, Fetched, Shard, ShardOptions};
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::frame::Frame;
use ringmq_format::limits::CHECKPOINT_INTERVAL;
use ringmq_format::{Offset, PartitionId, ShardId, TopicId};

const PARTITIONS: u32 = 1024;

struct Bench {
    ring: Ring,
    shard: Shard,
    completions: Vec<ringmq_engine::ring::Completion>,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// A shard on a directory beside the target, which is on a disk and not in RAM.
    fn open() -> Result<Self, String> {
        let base =
            std::env::var("CARGO_TARGET_TMPDIR").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").into());
        let directory = tempfile::tempdir_in(base).map_err(|error| error.to_string())?;
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

    fn turn(&mut self) {
        self.shard.turn(&mut self.ring);
        let until = self.shard.deadline().unwrap_or(u64::MAX).min(self.ring.now().mono_us + 1_000);
        self.ring.wait(Some(until));
        self.ring.reap(&mut self.completions, 512);
        for completion in self.completions.drain(..) {
            self.shard.complete(&mut self.ring, &completion);
        }
    }

    fn append(&mut self, partition: u32, bytes: &[u8]) -> ringmq_format::Lsn {
        let frame = Frame::parse(bytes).unwrap();
        loop {
            match self.shard.append(&mut self.ring, PartitionId(partition), &frame) {
                Ok(appended) => return appended.durable_at,
                Err(AppendError::Busy | AppendError::DiskFull) => self.turn(),
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    fn append_durable(&mut self, partition: u32, bytes: &[u8]) {
        let durable_at = self.append(partition, bytes);
        while self.shard.durable() < durable_at {
            self.turn();
        }
    }
}

fn benches(criterion: &mut Criterion) {
    let mut bench = match Bench::open() {
        Ok(bench) => bench,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let small = frame(1, &noise(BODY));
    let large = frame(64, &noise(BODY));
    let mut group = criterion.benchmark_group("engine");

    group.throughput(Throughput::Bytes(large.len() as u64));
    group.bench_function("log_append_frame_64k", |run| run.iter(|| bench.append(1, &large)));
    group.throughput(Throughput::Bytes(100 * small.len() as u64));
    group.bench_function("log_append_100_partitions_1k", |run| {
        run.iter(|| (0..100).map(|n| bench.append(1 + n * 10, &small)).max());
    });
    group.bench_function("log_append_group_flush_1k", |run| run.iter(|| bench.append_durable(2, &small)));

    // A tail of 64 KiB frames, all of it in the arena.
    for _ in 0..64 {
        bench.append_durable(3, &large);
    }
    let visible = bench.shard.extent(PartitionId(3)).unwrap().visible;
    let start = Offset(visible.0 - 32 * 64);
    let mut out = Vec::with_capacity(4 << 20);
    group.throughput(Throughput::Bytes(32 * large.len() as u64));
    group.bench_function("reader_tail_cached_2m", |run| {
        run.iter(|| {
            out.clear();
            let mut sink = |_: &_, bytes: &[u8]| out.extend_from_slice(bytes);
            let fetched = bench.shard.fetch(&bench.ring, PartitionId(3), start, usize::MAX, &mut sink);
            assert_eq!(fetched, Fetched::AtEnd(visible));
        });
    });

    // One record a frame: the look-up is what is left.
    for _ in 0..4096 {
        bench.append(4, &small);
    }
    bench.append_durable(4, &small);
    let visible = bench.shard.extent(PartitionId(4)).unwrap().visible;
    group.throughput(Throughput::Elements(1));
    group.bench_function("partition_locate_one_of_4096", |run| {
        let mut at = 0;
        run.iter_batched(
            || {
                at = (at + 997) % 4096;
                Offset(visible.0 - 1 - at)
            },
            |offset| {
                bench.shard.fetch(&bench.ring, PartitionId(4), offset, 1, &mut |delivered, _| {
                    assert_eq!(delivered.base_offset, offset);
                })
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
    // Nothing may be in flight when the ring goes.
    bench.shard.begin_stop();
    while !bench.shard.is_stopped() {
        bench.turn();
    }
}

criterion_group!(engine, benches);
criterion_main!(engine);
