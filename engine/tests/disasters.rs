//! What has happened to others, each as a test: it passes as the code is, and the same steps with the bug planted end
//! in the disaster. The names say who and the number of the report, the lines above what happened.

#![allow(clippy::unwrap_used)] // helpers of tests

mod sim;

use ringmq_engine::format::frame::{Codec, Frame};
use ringmq_engine::format::group::{GroupHeader, group_frames};
use ringmq_engine::format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_engine::format::segment::{FIRST_GROUP, SegmentFacts};
use ringmq_engine::planted::{Bug, Planted};
use ringmq_engine::recovery::OpenError;
use ringmq_engine::ring::Errno;
use ringmq_engine::ring::sim::{CrashModel, Fault, Harm, Latency, OpKind};
use sim::model::{Checked, wrong};
use sim::plan::Plan;
use sim::{Harness, NODE, directory, run};
use std::path::PathBuf;
use std::time::Instant;

/// Nothing that is not durable survives a power loss.
const LOSE_ALL: CrashModel = CrashModel {
    keep_all: 0,
    lose_all: 1,
    whole_writes: 0,
    prefix: 0,
    suffix: 0,
    runs: 0,
    sectors: 0,
    shorn: false,
    zeros: false,
    garbage: false,
    unreadable_ppm: 0,
};

/// A calm shard with a topic of two partitions.
fn shard(bug: Option<Bug>, tune: fn(&mut Plan)) -> Harness {
    let mut plan = Plan::calm();
    plan.planted = bug.map_or_else(Planted::default, Planted::bug);
    plan.sim.disk.crash = LOSE_ALL;
    tune(&mut plan);
    let mut harness = Harness::new(plan);
    harness.try_start().unwrap().unwrap();
    while harness.make_topic(0, 2).is_err() {
        harness.pass(1_000).unwrap();
    }
    harness.pass(20_000).unwrap();
    harness
}

fn as_it_is(_: &mut Plan) {}

/// Small segments, and checkpoints whenever one is sealed.
fn small_segments(plan: &mut Plan) {
    plan.segment_size = 32 * 4096;
    plan.checkpoint_interval = plan.segment_size;
}

/// Sends frames one after the other; each is acknowledged before the next.
fn send(harness: &mut Harness, frames: u32) -> Checked {
    for frame in 0..frames {
        let bytes = harness.frame(ProducerStamp::default());
        for _ in 0..1_000 {
            if harness.append(0, 0, frame as usize % 2, &bytes)?.is_some() {
                break;
            }
            harness.pass(1_000)?;
        }
        harness.pass(1_500)?;
    }
    Ok(())
}

/// Starts; a refusal is a finding.
fn start(harness: &mut Harness) -> Checked {
    harness.try_start()?.map_err(|error| wrong("it starts", error.to_string()))
}

fn restart_after_power_loss(harness: &mut Harness) -> Checked {
    harness.crash();
    start(harness)
}

fn path_of(name: &str) -> PathBuf {
    directory(0).join(name)
}

/// The steps hold as the code is, and find the bug when it is planted. Prints what `proof planted` reads.
fn disaster(bug: Bug, steps: impl Fn(Option<Bug>) -> Checked) {
    steps(None).unwrap();
    let begun = Instant::now();
    let found = match sim::quietly(|| steps(Some(bug))) {
        Ok(Ok(())) => panic!("{bug:?} is planted, and nothing happens"),
        Ok(Err(found)) => found,
        Err(panic) => wrong("assertion", panic),
    };
    let details: String = found.details.chars().take(160).collect();
    let seconds = begun.elapsed().as_secs_f64();
    println!("{bug:?}: found by \"{}\" after 1 seeds, 1 crashes, {seconds:.2} s: {details}", found.check);
}

/// As `disaster`, with seeds of a whole workload instead of steps.
fn disaster_of_seeds(bug: Bug, seeds: u64, tune: fn(&mut Plan)) {
    let begun = Instant::now();
    let mut crashes = 0;
    for seed in 0..seeds {
        let mut plan = Plan::draw(seed);
        tune(&mut plan);
        plan.planted = Planted::bug(bug);
        let with = run(plan.clone());
        crashes += with.counts.crashes;
        let Some(found) = with.found else { continue };
        plan.planted = Planted::default();
        let without = run(plan).found;
        assert!(without.is_none(), "seed {seed}: {without:?}");
        let (seeds, seconds) = (seed + 1, begun.elapsed().as_secs_f64());
        let details: String = found.details.chars().take(160).collect();
        println!(
            "{bug:?}: found by \"{}\" after {seeds} seeds, {crashes} crashes, {seconds:.2} s: {details}",
            found.check
        );
        return;
    }
    panic!("{bug:?} was not found in {seeds} seeds");
}

/// NATS #7564, beanstalkd #546: messages are acknowledged before they are flushed; a power cut takes them.
#[test]
fn nats_7564_acknowledged_and_never_flushed() {
    disaster(Bug::FlushLeftOut, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 5)?;
        restart_after_power_loss(&mut harness)
    });
}

/// Redis #8111, RocketMQ #2706: the return value of a flush is not looked at, and the client hears "stored".
#[test]
fn redis_8111_the_error_of_a_flush_is_ignored() {
    disaster(Bug::FlushErrorIgnored, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 3)?;
        harness.world.inject(NODE, Fault::new(OpKind::Sync, Harm::SyncDrops(Errno::IO)).on(".seg"));
        send(&mut harness, 1)?;
        restart_after_power_loss(&mut harness)
    });
}

/// RocketMQ #9714, PostgreSQL's fsync of 2018: a flush fails, the next one says "fine", and the pages are gone.
#[test]
fn rocketmq_9714_a_failed_flush_is_tried_again() {
    disaster(Bug::FlushRetried, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 3)?;
        harness.world.inject(NODE, Fault::new(OpKind::Sync, Harm::SyncDrops(Errno::IO)).on(".seg"));
        send(&mut harness, 1)?;
        restart_after_power_loss(&mut harness)
    });
}

/// Positions of groups with frames in a slot, and the end of the last group.
fn groups(harness: &Harness, slot: u32) -> (Vec<u64>, u64) {
    let path = directory(0).join(format!("log/{slot:03}.seg"));
    let bytes = harness.world.peek(NODE, path, 0, 1 << 30).unwrap();
    let facts = SegmentFacts::parse(&bytes).unwrap();
    let (mut found, mut position) = (Vec::new(), FIRST_GROUP);
    while let Some(rest) = bytes.get(position as usize..) {
        let lsn = facts.base.plus(position);
        let Ok(header) = GroupHeader::parse(rest, facts.incarnation, facts.seq, lsn) else { break };
        if group_frames(header, rest).next().is_some() {
            found.push(position);
        }
        position += header.total() as u64;
    }
    (found, position)
}

/// NATS #7549, Kafka in FAST'17: one flipped bit in the middle of the log, and everything behind it is cut off.
#[test]
fn nats_7549_one_bit_in_the_middle_takes_all_behind_it() {
    disaster(Bug::TruncateOnDoubt, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 12)?;
        harness.pass(20_000)?;
        harness.crash();
        let (groups, _) = groups(&harness, 0);
        harness.world.flip_bit(NODE, path_of("log/000.seg"), (groups[4] + 200) * 8).unwrap();
        harness.damage_is_expected = true;
        start(&mut harness)
    });
}

/// NATS #7549, Iggy #3970: the index is believed, and what it leads to is served though the log says otherwise.
#[test]
fn iggy_3970_the_index_is_evidence_about_the_log() {
    disaster(Bug::IndexBelieved, |bug| {
        let mut harness = shard(bug, small_segments);
        send(&mut harness, 150)?;
        harness.pass(300_000)?;
        harness.stop_cleanly()?;
        let (groups, _) = groups(&harness, 0);
        for group in &groups[3..6] {
            harness.world.flip_bit(NODE, path_of("log/000.seg"), (group + 300) * 8).unwrap();
        }
        harness.damage_is_expected = true;
        start(&mut harness)?;
        if harness.damaged.is_empty() && bug.is_none() {
            return Err(wrong("damage is told", "three frames are damaged".to_owned()));
        }
        Ok(())
    });
}

/// NATS #7556, #6888: metadata cannot be read, so there is none, so the data is nobody's. Here: nothing is written
/// to a directory in doubt, and once the superblock is back so is everything.
#[test]
fn nats_7556_doubt_about_metadata_deletes_the_data() {
    disaster(Bug::DoubtStartsAfresh, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 12)?;
        harness.pass(20_000)?;
        harness.crash();
        let path = path_of("superblock");
        let good = harness.world.peek(NODE, &path, 0, 1 << 20).unwrap();
        for copy in 0..4 {
            harness.world.flip_bit(NODE, &path, (copy * 4096 + 100) * 8).unwrap();
        }
        let known = harness.known.clone();
        match harness.try_start()? {
            Err(OpenError::Damaged { .. }) => {}
            Ok(()) => return Err(wrong("doubt refuses", "it starts with nothing".to_owned())),
            Err(error) => return Err(wrong("doubt refuses", error.to_string())),
        }
        harness.known = known;
        harness.world.poke(NODE, &path, 0, &good).unwrap();
        start(&mut harness)
    });
}

/// NATS #5876: a restart, the data is on the disk, and the streams are invisible.
#[test]
fn nats_5876_topics_are_invisible_after_a_restart() {
    disaster(Bug::TopicsForgotten, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 4)?;
        harness.stop_cleanly()?;
        start(&mut harness)
    });
}

/// RocketMQ #7437: the checksum does not cover all of a message, so a torn one is accepted.
#[test]
fn rocketmq_7437_a_torn_message_passes_its_checksum() {
    disaster(Bug::PayloadCrcUnchecked, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 6)?;
        let bytes = harness.frame(ProducerStamp::default());
        harness.append(0, 0, 0, &bytes)?;
        harness.live[0].tick();
        // Everything of the last group has arrived but a few bytes at its end.
        let end = groups(&harness, 0).1;
        while groups(&harness, 0).1 == end {
            assert!(harness.world.step(), "the group is written");
        }
        harness.world.kill(NODE);
        harness.bury();
        let (groups, _) = groups(&harness, 0);
        let last = groups[groups.len() - 1];
        let inside = last + 64 + bytes.len() as u64 - 8;
        harness.world.poke(NODE, path_of("log/000.seg"), inside, &[0x5a; 8]).unwrap();
        start(&mut harness)
    });
}

/// RocketMQ #467, #1434, #405: the checkpoint is ahead of what it is about, and messages in the log are never seen.
#[test]
fn rocketmq_467_the_checkpoint_is_ahead_of_the_log() {
    disaster_of_seeds(Bug::CheckpointAheadOfLog, 100, |plan| {
        plan.checkpoint_interval = 4096;
        plan.durability = ringmq_engine::format::superblock::Durability::Dsync;
        (plan.body_max, plan.burst, plan.life) = (5_000, 4, 300);
        plan.sim.disk.write = Latency { min_us: 20, spread_us: 50, tail_ppm: 100_000, tail_us: 100_000 };
        plan.sim.disk.sync = Latency::even(10, 20);
    });
}

/// Iggy #3975: a consumer has seen a message; after a crash another one has its offset.
#[test]
fn iggy_3975_an_offset_names_two_messages() {
    disaster(Bug::VisibleBeforeDurable, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 3)?;
        let bytes = harness.frame(ProducerStamp::default());
        harness.append(0, 0, 0, &bytes)?;
        harness.turn_all()?;
        restart_after_power_loss(&mut harness)
    });
}

/// Iggy #3793, #4128: what was purged comes back, because the purge was believed before it was durable.
#[test]
fn iggy_3793_purged_data_comes_back() {
    disaster_of_seeds(Bug::RetirementNotAwaited, 100, |plan| {
        plan.late = false;
        plan.segment_size = 32 * 4096;
        plan.checkpoint_interval = plan.segment_size;
        plan.retain_size = Some(3 * plan.segment_size);
        plan.disk_limit = Some(6 * plan.segment_size);
        (plan.body_max, plan.burst, plan.pause_us, plan.life) = (30_000, 12, 12_000, 900);
        plan.sim.disk.sync = Latency::even(3_000, 20_000);
        plan.sim.disk.write = Latency::even(300, 20_000);
    });
}

/// Iggy #2572, Kafka-3919: a crash while a segment is closed and the next one begun; no start works any more.
#[test]
fn iggy_2572_a_crash_at_a_roll_is_the_end() {
    disaster_of_seeds(Bug::HeaderNotAwaited, 100, |plan| {
        plan.segment_size = 32 * 4096;
        (plan.body_max, plan.burst, plan.pause_us, plan.life) = (30_000, 12, 400, 300);
        plan.sim.disk.write = Latency { min_us: 20, spread_us: 50, tail_ppm: 200_000, tail_us: 20_000 };
        plan.sim.disk.sync = Latency::even(10, 20);
    });
}

/// ClickHouse #116316: flushed entries stand in a file whose name was never made durable.
#[test]
fn clickhouse_116316_a_new_file_without_its_directory() {
    disaster_of_seeds(Bug::DirectoryNotSynced, 100, |_| {});
}

/// Commonware #3940, TigerBeetle, Redpanda #10495: a start decides on bytes that are readable and not durable.
#[test]
fn commonware_3940_a_start_believes_what_was_never_flushed() {
    disaster_of_seeds(Bug::NoSyncBeforeRead, 100, |_| {});
}

/// Kafka's and Pulsar's duplicates after a restart: what is known of producers is lost with the process.
#[test]
fn the_producers_window_is_forgotten_by_a_restart() {
    disaster_of_seeds(Bug::ProducersForgotten, 100, |_| {});
}

/// Iggy #1887: index entries of what is read again after a restart are there twice.
#[test]
fn iggy_1887_index_entries_are_there_twice_after_a_restart() {
    disaster(Bug::IndexedTwice, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 10)?;
        for _ in 0..3 {
            restart_after_power_loss(&mut harness)?;
            let log = harness.live[0].shard.log();
            let entries: usize = log.segments().iter().map(|segment| segment.entries.len()).sum();
            if entries != 10 {
                return Err(wrong("an index entry for each frame", format!("{entries} for 10 frames")));
            }
        }
        Ok(())
    });
}

/// NodeDB #76: behind a short write the next position is not aligned, and direct I/O refuses it.
#[test]
fn nodedb_76_the_write_behind_a_short_one_is_not_aligned() {
    disaster(Bug::ShortWriteUnaligned, |bug| {
        let mut harness = shard(bug, |plan| plan.body_max = 12_000);
        for _ in 0..12 {
            harness.world.inject(NODE, Fault::new(OpKind::Write, Harm::Short).on(".seg"));
            send(&mut harness, 1)?;
            // A write that does not even take a block poisons, which is another story.
            let poison = harness.live[0].shard.poisoned();
            if let Some(poison) = poison.filter(|poison| poison.error == Errno::INVAL) {
                return Err(wrong("a write that the kernel refuses is never made", format!("{poison:?}")));
            }
            restart_after_power_loss(&mut harness)?;
        }
        Ok(())
    });
}

/// A frame whose payload has this checksum: the checksum is linear in the last four bytes of the body.
fn frame_with_payload_crc(wanted: u32) -> Vec<u8> {
    let make = |tail: u32| {
        let mut body = vec![0x42; 200];
        body[196..].copy_from_slice(&tail.to_le_bytes());
        let mut builder = FrameBuilder::new(1000, 1 << 16);
        builder.push(&Record { body: &body, time_ms: 1000, ..Record::default() }).unwrap();
        builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None)
    };
    let crc = |tail: u32| Frame::parse(&make(tail)).unwrap().header.payload_crc.get();
    let zero = crc(0);
    // Each row: what a set of bits of the tail changes in the checksum, and the set.
    let mut rows: Vec<(u32, u32)> = (0..32).map(|bit| (crc(1 << bit) ^ zero, 1 << bit)).collect();
    let (mut rest, mut tail) = (zero ^ wanted, 0);
    for bit in (0..32).rev() {
        let Some(index) = rows.iter().position(|row| row.0 >> bit & 1 == 1) else { continue };
        let pivot = rows.swap_remove(index);
        for row in rows.iter_mut().filter(|row| row.0 >> bit & 1 == 1) {
            *row = (row.0 ^ pivot.0, row.1 ^ pivot.1);
        }
        if rest >> bit & 1 == 1 {
            (rest, tail) = (rest ^ pivot.0, tail ^ pivot.1);
        }
    }
    assert_eq!(crc(tail), wanted);
    make(tail)
}

/// Redpanda #4113: a checksum that happens to be zero is read as "here the log ends".
#[test]
fn redpanda_4113_a_checksum_of_zero_ends_the_log() {
    let bytes = frame_with_payload_crc(0);
    disaster(Bug::ZeroCrcIsTheEnd, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 2)?;
        harness.append(0, 0, 0, &bytes)?;
        harness.pass(5_000)?;
        send(&mut harness, 2)?;
        restart_after_power_loss(&mut harness)
    });
}

/// Redpanda #4638: a store that is started again and again does not match its checksum any more. Here forty starts,
/// each ended another way, find the same.
#[test]
fn redpanda_4638_starts_again_and_again() {
    disaster(Bug::EpochNotRaised, |bug| {
        let mut harness = shard(bug, small_segments);
        let mut epochs = Vec::new();
        for round in 0..40 {
            send(&mut harness, 3)?;
            epochs.push(harness.live[0].shard.log().epoch());
            match round % 3 {
                0 => harness.stop_cleanly()?,
                1 => harness.crash(),
                _ => {
                    harness.world.kill(NODE);
                    harness.bury();
                }
            }
            start(&mut harness)?;
        }
        if !epochs.is_sorted_by(|earlier, later| earlier < later) {
            return Err(wrong("each life has its own epoch", format!("{epochs:?}")));
        }
        Ok(())
    });
}

/// Ours, found by `proof small`: a group is torn in its padding only and is cut. The next group overwrites it, and a power
/// loss keeps nothing of that one but its own padding: the cut group is whole, and would be found.
#[test]
fn ringmq_a_cut_group_is_made_whole_by_the_padding_of_the_next() {
    disaster(Bug::CutForgotten, |bug| {
        let mut harness = shard(bug, as_it_is);
        send(&mut harness, 3)?;
        harness.append(0, 0, 0, &frame_with_payload_crc(1))?;
        harness.live[0].tick();
        let at = groups(&harness, 0).1;
        while groups(&harness, 0).1 == at {
            assert!(harness.world.step(), "the group is written");
        }
        harness.world.kill(NODE);
        harness.bury();
        let (path, padding) = (path_of("log/000.seg"), at + 4096 - 512);
        harness.world.poke(NODE, &path, padding, &[0x5a; 512]).unwrap();
        harness.open().unwrap();
        harness.adopt_all()?;
        harness.crash();
        harness.world.poke(NODE, &path, padding, &[0; 512]).unwrap();
        start(&mut harness)
    });
}
