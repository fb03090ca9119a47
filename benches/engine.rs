//! The storage shard on a real ring and a real disk: append and group close, index look-up, reading the tail.
//!
//! Where io_uring or O_DIRECT is refused the benches are skipped with a word.

#![allow(missing_docs, reason = "criterion's macros make public items")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringmq_benches::shard::Bench;
use ringmq_benches::{BODY, frame, noise};
use ringmq_engine::partition::producers::{Original, Producers, Verdict};
use ringmq_engine::ring::{Ring, RingConfig};
use ringmq_engine::shard::Fetched;
use ringmq_format::frame::{Frame, FrameHeader};
use ringmq_format::{Lsn, Offset, PartitionId};

fn benches(criterion: &mut Criterion) {
    let mut bench = match Bench::open(std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))) {
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
    let visible = bench.visible(3);
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
    let visible = bench.visible(4);
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
    bench.close();
}

/// What recovery does with each group, and what an idempotent frame costs.
fn rooms(criterion: &mut Criterion) {
    let bytes = frame(1, &noise(BODY));
    let Ok(parsed) = Frame::parse(&bytes) else { panic!("a frame") };
    let mut header: FrameHeader = *parsed.header;
    header.producer_id = 9.into();
    let mut producers = Producers::default();
    let mut sequence = 0u32;
    let mut group = criterion.benchmark_group("rooms");
    group.throughput(Throughput::Elements(1));
    group.bench_function("producers_judge_take", |run| {
        run.iter(|| {
            header.base_sequence = sequence.into();
            sequence = sequence.wrapping_add(1);
            assert_eq!(producers.judge(&header, Lsn(u64::MAX)), Verdict::Append);
            producers.take(&header, Original { base_offset: Offset(1), timestamp: 1, end_lsn: Lsn(1) });
        });
    });
    let mut ring = match Ring::uring(RingConfig::default()) {
        Ok(ring) => ring,
        Err(why) => {
            println!("skipped: io_uring: {why}");
            return;
        }
    };
    // Nothing to do: what a turn costs that asks the kernel and finds nothing.
    group.bench_function("ring_wait_empty", |run| run.iter(|| ring.wait(Some(0))));
}

criterion_group!(engine, benches, rooms);
criterion_main!(engine);
