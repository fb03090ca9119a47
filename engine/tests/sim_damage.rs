//! Damage, full disks and failed writes: each has the outcome that the decision table says, and never a wrong byte.

#![allow(clippy::unwrap_used)] // helpers of tests

mod sim;

use proptest::prelude::*;
use ringmq_engine::format::group::GroupHeader;
use ringmq_engine::format::record::ProducerStamp;
use ringmq_engine::format::segment::{FIRST_GROUP, SegmentFacts};
use ringmq_engine::format::superblock::Durability;
use ringmq_engine::format::{Epoch, Lsn, SegmentSeq, ShardId, SlotId};
use ringmq_engine::planted::{Bug, Planted};
use ringmq_engine::recovery::decide::Row;
use ringmq_engine::recovery::offline::{Refused, change_superblock, measure_durability, read_superblock};
use ringmq_engine::recovery::scan::{ScanPoint, examine, highest_witness};
use ringmq_engine::recovery::{OpenError, OpenOptions};
use ringmq_engine::ring::Errno;
use ringmq_engine::ring::sim::{CrashModel, DiskImage, Fault, Harm, OpKind};
use ringmq_engine::shard::AppendError;
use ringmq_engine::shard::offline::{find_refused, set_aside};
use sim::plan::Plan;
use sim::{Harness, NODE, NODE_ID, directory};
use std::path::PathBuf;

/// A shard with a topic of two partitions.
fn shard(plan: Plan) -> Harness {
    let mut harness = Harness::new(plan);
    harness.try_start().unwrap().unwrap();
    while harness.make_topic(0, 2).is_err() {
        harness.pass(1_000).unwrap();
    }
    harness
}

/// Appends frames, each in a group of its own, and waits until the last is acknowledged.
fn fill(harness: &mut Harness, frames: u32) {
    for frame in 0..frames {
        let bytes = harness.frame(ProducerStamp::default());
        while harness.append(0, 0, frame as usize % 2, &bytes).unwrap().is_none() {
            assert_eq!(harness.live[0].shard.poisoned(), None);
            harness.pass(1_000).unwrap();
        }
        harness.pass(1_000).unwrap();
    }
}

/// A harness whose process is gone, with 12 frames that were acknowledged and have a witness.
fn crashed() -> Harness {
    let mut harness = shard(Plan::calm());
    fill(&mut harness, 12);
    harness.pass(20_000).unwrap();
    harness.crash();
    harness
}

/// Several segments with sidecars, two checkpoints.
fn grown(stop: bool) -> Harness {
    let mut plan = Plan::calm();
    plan.segment_size = 32 * 4096;
    plan.checkpoint_interval = 2 * plan.segment_size;
    let mut harness = shard(plan);
    fill(&mut harness, 260);
    harness.pass(50_000).unwrap();
    assert!(harness.live[0].shard.stats().checkpoints >= 2);
    if stop {
        harness.stop_cleanly().unwrap();
    } else {
        harness.crash();
    }
    harness
}

fn segment_path(slot: u32) -> PathBuf {
    directory(0).join("log").join(format!("{slot:03}.seg"))
}

/// Positions and headers of the groups of the segment in a slot.
fn groups(harness: &Harness, slot: u32) -> Vec<(u64, GroupHeader)> {
    let bytes = harness.world.peek(NODE, segment_path(slot), 0, 1 << 30).unwrap();
    let facts = SegmentFacts::parse(&bytes).unwrap();
    let mut found = Vec::new();
    let mut position = FIRST_GROUP;
    while let Ok(header) = GroupHeader::parse(
        bytes.get(position as usize..).unwrap_or(&[]),
        facts.incarnation,
        facts.seq,
        facts.base.plus(position),
    ) {
        found.push((position, *header));
        position += header.total() as u64;
    }
    found
}

fn flip(harness: &Harness, path: PathBuf, byte: u64) {
    harness.world.flip_bit(NODE, path, byte * 8 + 3).unwrap();
}

/// Position of the third group with frames.
fn a_group(harness: &Harness) -> (u64, GroupHeader) {
    groups(harness, 0).into_iter().filter(|(_, header)| header.frames.get() > 0).nth(3).unwrap()
}

fn row_of(harness: &mut Harness) -> Option<Row> {
    harness.damage_is_expected = true;
    match harness.try_start().unwrap() {
        Err(OpenError::Damaged { row, .. }) => row,
        other => panic!("{other:?} instead of damage"),
    }
}

#[test]
fn a_payload_that_is_damaged_answers_so_and_all_others_are_served() {
    let mut harness = crashed();
    let (position, _) = a_group(&harness);
    flip(&harness, segment_path(0), position + 64 + 64 + 5);
    harness.damage_is_expected = true;
    harness.try_start().unwrap().unwrap();
    assert_eq!(harness.reports[0].damaged_frames, [(segment_path(0), position + 64)]);
    assert_eq!(harness.damaged.len(), 1);
    // The shard goes on, and starts again.
    fill(&mut harness, 2);
    harness.damaged.clear();
    harness.stop_cleanly().unwrap();
    harness.try_start().unwrap().unwrap();
    assert_eq!(harness.damaged.len(), 1);
}

#[test]
fn a_damaged_header_with_a_witness_refuses_the_shard() {
    for at in [0, 40, 64 + 8] {
        let mut harness = crashed();
        let (position, _) = a_group(&harness);
        flip(&harness, segment_path(0), position + at);
        assert_eq!(row_of(&mut harness), Some(Row::B), "byte {at} of the group");
    }
}

fn offline(harness: &Harness) -> OpenOptions {
    OpenOptions {
        directory: directory(0),
        shard: ShardId(0),
        node_id: NODE_ID,
        segment_size: harness.plan.segment_size,
        durability: None,
        planted: Planted::default(),
    }
}

/// What an operator would set aside. The ring stays alive to its end.
fn refused(harness: &Harness) -> Vec<Refused> {
    let mut ring = harness.world.ring(NODE);
    let found = find_refused(&mut ring, &offline(harness), harness.plan.shards, &mut |_, _| {});
    found.unwrap()
}

#[test]
fn a_damaged_range_is_set_aside_and_what_lies_behind_it_is_served() {
    for at in [0, 40, 64 + 8] {
        let mut harness = crashed();
        let (position, header) = a_group(&harness);
        flip(&harness, segment_path(0), position + at);
        assert_eq!(row_of(&mut harness), Some(Row::B));
        let found = refused(&harness);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].row, found[0].position), (Row::B, position));
        assert_eq!(found[0].end.0 - found[0].start.0, header.total() as u64, "up to the next group");
        let frames: u64 = found[0].recognised.partitions.values().map(|known| known.0).sum();
        assert_eq!(frames, u64::from(at < 64), "a frame is recognised by its own header");
        assert_eq!(refused(&harness), found, "looking changes nothing");
        let mut ring = harness.world.ring(NODE);
        let (before, after) = set_aside(&mut ring, &offline(&harness), &found).unwrap();
        assert!(after.epoch == before.epoch && after.quarantine.len() == before.quarantine.len() + 1);
        drop(ring);
        harness.world.power_off(NODE); // it is durable already
        assert!(refused(&harness).is_empty());
        harness.world.power_off(NODE);
        // One frame is lost, every other one is compared; first out of RAM, then through sidecars.
        harness.try_start().unwrap().unwrap();
        assert_eq!(harness.reports[0].set_aside, [(found[0].start, found[0].end)]);
        let lost = std::mem::take(&mut harness.damaged);
        assert_eq!(lost.len(), 1, "{lost:?}");
        fill(&mut harness, 8);
        harness.crash();
        harness.try_start().unwrap().unwrap();
        assert_eq!(std::mem::take(&mut harness.damaged), lost);
        fill(&mut harness, 2);
        harness.stop_cleanly().unwrap();
        harness.try_start().unwrap().unwrap();
        assert_eq!(harness.damaged, lost);
    }
}

#[test]
fn a_lost_frame_is_a_hole_in_the_index_of_a_sealed_segment_too() {
    let mut plan = Plan::calm();
    plan.segment_size = 32 * 4096;
    plan.checkpoint_interval = 1 << 30;
    let mut harness = shard(plan);
    fill(&mut harness, 12);
    harness.pass(20_000).unwrap();
    harness.crash();
    let (position, _) = a_group(&harness);
    flip(&harness, segment_path(0), position);
    assert_eq!(row_of(&mut harness), Some(Row::B));
    let found = refused(&harness);
    let mut ring = harness.world.ring(NODE);
    set_aside(&mut ring, &offline(&harness), &found).unwrap();
    drop(ring);
    harness.world.power_off(NODE);
    harness.try_start().unwrap().unwrap();
    let lost = std::mem::take(&mut harness.damaged);
    assert_eq!(lost.len(), 1, "{lost:?}");
    fill(&mut harness, 120);
    harness.pass(100_000).unwrap();
    assert!(harness.live[0].shard.log().segments()[0].sidecar.is_some());
    harness.stop_cleanly().unwrap();
    harness.try_start().unwrap().unwrap();
    assert_eq!(harness.damaged, lost);
}

#[test]
fn two_damaged_ranges_and_one_that_cannot_be_read_are_all_found() {
    let mut harness = crashed();
    let with_frames: Vec<_> =
        groups(&harness, 0).into_iter().filter(|(_, header)| header.frames.get() > 0).collect();
    flip(&harness, segment_path(0), with_frames[2].0);
    flip(&harness, segment_path(0), with_frames[5].0 + 40);
    harness.world.make_unreadable(NODE, segment_path(0), with_frames[8].0, 512).unwrap();
    let found = refused(&harness);
    assert_eq!(found.iter().map(|one| one.row).collect::<Vec<_>>(), [Row::B, Row::B, Row::C]);
    let mut ring = harness.world.ring(NODE);
    set_aside(&mut ring, &offline(&harness), &found).unwrap();
    drop(ring);
    harness.world.power_off(NODE);
    harness.damage_is_expected = true;
    harness.try_start().unwrap().unwrap();
    assert_eq!(harness.damaged.len(), 3);
}

#[test]
fn a_changed_superblock_counts_from_the_next_epoch_and_calibration_leaves_the_log_alone() {
    let mut harness = crashed();
    let mut ring = harness.world.ring(NODE);
    let options = offline(&harness);
    measure_durability(&mut ring, &directory(0).join("scratch")).unwrap();
    let old = read_superblock(&mut ring, &options).unwrap();
    let other = match old.durability {
        Durability::Flush => Durability::Dsync,
        Durability::Dsync => Durability::Flush,
    };
    change_superblock(&mut ring, &options, |superblock| superblock.durability = other).unwrap();
    drop(ring);
    harness.crash();
    harness.try_start().unwrap().unwrap();
    let new = harness.live[0].shard.log().superblock();
    assert!(new.durability == other && new.epoch.0 == old.epoch.0 + 1, "{new:?}");
}

#[test]
fn damaged_padding_is_reported_and_everything_is_served() {
    let mut harness = crashed();
    let (position, header) =
        groups(&harness, 0).into_iter().find(|(_, header)| header.used() < header.total()).unwrap();
    flip(&harness, segment_path(0), position + header.total() as u64 - 1);
    harness.damage_is_expected = true;
    harness.try_start().unwrap().unwrap();
    assert_eq!((harness.reports[0].damaged_padding, harness.damaged.len()), (1, 0));
}

#[test]
fn what_cannot_be_read_is_never_a_torn_tail() {
    let mut harness = crashed();
    let last = *groups(&harness, 0).last().unwrap();
    let end = last.0 + last.1.total() as u64;
    harness.world.make_unreadable(NODE, segment_path(0), end, 512).unwrap();
    assert_eq!(row_of(&mut harness), Some(Row::C));
    let mut harness = crashed();
    harness.world.make_unreadable(NODE, segment_path(0), 0, 8192).unwrap();
    assert_eq!(row_of(&mut harness), Some(Row::C));
    // One copy of the header is enough.
    let mut harness = crashed();
    harness.world.make_unreadable(NODE, segment_path(0), 0, 4096).unwrap();
    harness.try_start().unwrap().unwrap();
}

#[test]
fn a_tail_without_a_witness_is_cut() {
    let mut harness = shard(Plan::calm());
    fill(&mut harness, 6);
    // Submitted, and the power goes before anything says that it is durable.
    let bytes = harness.frame(ProducerStamp::default());
    harness.append(0, 0, 0, &bytes).unwrap().unwrap();
    harness.live[0].tick();
    harness.crash();
    harness.try_start().unwrap().unwrap();
}

#[test]
fn either_copy_of_a_segment_header_is_enough_and_one_is_needed() {
    let mut harness = crashed();
    flip(&harness, segment_path(0), 20);
    harness.try_start().unwrap().unwrap();
    harness.crash();
    flip(&harness, segment_path(0), 4096 + 20);
    assert_eq!(row_of(&mut harness), None);
}

#[test]
fn one_copy_of_four_of_the_superblock_is_enough() {
    let path = directory(0).join("superblock");
    for kept in 0..4 {
        let mut harness = crashed();
        for copy in (0..4).filter(|copy| *copy != kept) {
            flip(&harness, path.clone(), copy * 4096 + 100);
        }
        harness.try_start().unwrap().unwrap();
        harness.crash();
        for copy in 0..4 {
            flip(&harness, path.clone(), copy * 4096 + 200);
        }
        assert_eq!(row_of(&mut harness), None);
    }
}

#[test]
fn a_sidecar_is_made_again_whatever_is_wrong_with_it() {
    for stop in [false, true] {
        for byte in [0, 4096 + 5, 4096 + 100] {
            let mut harness = grown(stop);
            for slot in 0..2 {
                flip(&harness, directory(0).join("log").join(format!("{slot:03}.idx")), byte);
            }
            harness.try_start().unwrap().unwrap();
            harness.pass(50_000).unwrap();
            assert!(harness.live[0].shard.log().segments().iter().all(|segment| !segment.index_lost));
            harness.stop_cleanly().unwrap();
            harness.try_start().unwrap().unwrap();
        }
        let mut harness = grown(stop);
        harness.world.remove(NODE, directory(0).join("log/000.idx")).unwrap();
        harness.try_start().unwrap().unwrap();
    }
}

#[test]
fn the_other_checkpoint_is_used_and_then_none() {
    for stop in [false, true] {
        let before = grown(stop);
        let image = before.world.disk_image(NODE);
        let path = |file: &str| directory(0).join(format!("checkpoint.{file}"));
        let mut lost = 0;
        for file in ["a", "b"] {
            let mut harness = before.on_image(&image);
            flip(&harness, path(file), 4096 + 70);
            harness.try_start().unwrap().unwrap();
            assert!(harness.damaged.is_empty());
            lost += u32::from(harness.reports[0].checkpoint_lost);
        }
        assert_eq!(lost, 1, "one of the two is the named one");
        let mut harness = before.on_image(&image);
        flip(&harness, path("a"), 4096 + 70);
        flip(&harness, path("b"), 4096 + 70);
        harness.try_start().unwrap().unwrap();
        assert!(harness.reports[0].checkpoint_lost && harness.damaged.is_empty());
        fill(&mut harness, 60);
        harness.stop_cleanly().unwrap();
        harness.try_start().unwrap().unwrap();
        assert!(!harness.reports[0].checkpoint_lost);
    }
}

/// One sector anywhere, in one of several ways.
fn harm(harness: &Harness, draw: &mut sim::plan::Draw) -> String {
    let files: Vec<_> = harness.world.files(NODE).into_iter().filter(|(_, size)| *size > 0).collect();
    let (path, size) = files[draw.below(files.len() as u64) as usize].clone();
    // Most of a segment is far from its beginning; the beginning is where it matters.
    let range = if draw.one_in(2) { size } else { size.min(32 << 10) };
    let sector = draw.below(range / 512) * 512;
    let what = draw.below(4);
    match what {
        0 => harness.world.flip_bit(NODE, &path, sector * 8 + draw.below(4096)).unwrap(),
        1 => harness.world.poke(NODE, &path, sector, &[0; 512]).unwrap(),
        2 => {
            let other = draw.below(size / 512) * 512;
            let bytes = harness.world.peek(NODE, &path, other, 512).unwrap();
            harness.world.poke(NODE, &path, sector, &bytes).unwrap();
        }
        _ => {
            let garbage: Vec<u8> = (0..64).flat_map(|_| draw.next().to_le_bytes()).collect();
            harness.world.poke(NODE, &path, sector, &garbage).unwrap();
        }
    }
    format!("{} at {sector}: {what}", path.display())
}

#[test]
fn whatever_sector_is_damaged_no_wrong_byte_is_served() {
    let images: Vec<(Harness, DiskImage)> = [grown(false), grown(true), crashed()]
        .into_iter()
        .map(|harness| {
            let image = harness.world.disk_image(NODE);
            (harness, image)
        })
        .collect();
    let mut draw = sim::plan::Draw::new(7);
    let (mut refused, mut damaged) = (0, 0);
    for round in 0..300 {
        let (harness, image) = &images[round % images.len()];
        let mut harness = harness.on_image(image);
        let place = harm(&harness, &mut draw);
        match sim::quietly(|| harness.try_start()) {
            Ok(Ok(Ok(()))) => damaged += usize::from(!harness.damaged.is_empty()),
            Ok(Ok(Err(OpenError::Damaged { .. }))) => refused += 1,
            other => panic!("round {round}: {place}: {other:?}"),
        }
    }
    println!("of 300: {refused} refused, {damaged} with damaged frames");
    assert!(refused > 0 && damaged > 10, "{refused} refused, {damaged} damaged");
}

/// Cutting where there is doubt loses what was acknowledged, and the harness says so.
#[test]
fn a_tail_cut_on_doubt_is_found() {
    let mut plan = Plan::calm();
    plan.planted = Planted::bug(Bug::TruncateOnDoubt);
    let mut harness = shard(plan);
    fill(&mut harness, 12);
    harness.pass(20_000).unwrap();
    harness.crash();
    let (position, _) = a_group(&harness);
    flip(&harness, segment_path(0), position);
    harness.damage_is_expected = true;
    let wrong = harness.try_start().unwrap_err();
    assert_eq!(wrong.check, "no acknowledged record is lost");
}

#[test]
fn a_full_disk_stops_the_input_and_nothing_else() {
    let mut harness = shard(Plan::calm());
    fill(&mut harness, 20);
    let taken = harness.world.disk_taken(NODE);
    harness.world.set_budget(NODE, taken + 100_000);
    let mut refused = false;
    for _ in 0..2_000 {
        let bytes = harness.frame(ProducerStamp::default());
        let live = &mut harness.live[0];
        let frame = ringmq_engine::format::frame::Frame::parse(&bytes).unwrap();
        let id = harness.known[0].topics[0].partitions[0].id;
        let answer = live.shard.append(&mut live.ring, id, &frame);
        harness.world.note(&format!("{answer:?}"));
        match answer {
            Err(AppendError::DiskFull) => {
                refused = true;
                break;
            }
            Err(AppendError::Busy) => harness.pass(2_000).unwrap(),
            Ok(appended) => {
                let count = u64::from(frame.header.count.get());
                let model = &mut harness.known[0].topics[0].partitions[0];
                model
                    .push(sim::model::Stored {
                        digest: sim::model::digest(&frame),
                        offset: appended.base_offset.0,
                        count,
                        timestamp: appended.timestamp,
                        lsn: Lsn(appended.durable_at.0 - bytes.len() as u64),
                        durable_at: appended.durable_at,
                        acked: false,
                        bound: None,
                    })
                    .unwrap();
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(refused, "the disk was never full");
    // Reads go on, topics are made, and a restart finds all of it.
    harness.make_topic(0, 1).unwrap();
    harness.pass(100_000).unwrap();
    harness.crash();
    harness.try_start().unwrap().unwrap();
    harness.pass(100_000).unwrap();
    let bytes = harness.frame(ProducerStamp::default());
    assert!(harness.append(0, 0, 0, &bytes).unwrap().is_none(), "taken on a full disk");
    // Space returns.
    harness.world.set_budget(NODE, 1 << 40);
    harness.pass(3_000_000).unwrap();
    fill(&mut harness, 20);
    harness.stop_cleanly().unwrap();
    harness.try_start().unwrap().unwrap();
}

#[test]
fn a_failed_write_or_flush_poisons_and_a_restart_has_all_that_was_acknowledged() {
    for op in [OpKind::Write, OpKind::Sync] {
        for error in [Errno::IO, Errno::NOSPC] {
            let mut harness = shard(Plan::calm());
            fill(&mut harness, 8);
            harness.pass(100_000).unwrap();
            harness.world.inject(NODE, Fault::new(op, Harm::Error(error)).on(".seg"));
            let bytes = harness.frame(ProducerStamp::default());
            let appended = harness.append(0, 0, 0, &bytes).unwrap().unwrap();
            harness.pass(100_000).unwrap();
            assert!(harness.live[0].shard.poisoned().is_some(), "{op:?} {error:?}");
            assert!(harness.live[0].shard.durable() < appended.durable_at);
            let again = harness.frame(ProducerStamp::default());
            assert!(harness.append(0, 0, 0, &again).unwrap().is_none());
            let start = harness.live[0].shard.extent(harness.known[0].topics[0].partitions[0].id).unwrap();
            harness.fetch(0, 0, 0, start.start, 1 << 20).unwrap();
            harness.live[0].shard.begin_stop();
            assert!(harness.live[0].shard.is_stopped());
            harness.crash();
            harness.try_start().unwrap().unwrap();
            fill(&mut harness, 4);
        }
    }
}

#[test]
fn without_descriptors_the_input_stops_with_an_error_and_goes_on_when_they_return() {
    let mut plan = Plan::calm();
    plan.segment_size = 32 * 4096;
    let mut harness = shard(plan);
    let id = harness.known[0].topics[0].partitions[0].id;
    for error in [Errno::MFILE, Errno::NFILE] {
        harness.world.inject(NODE, Fault::new(OpKind::Open, Harm::Error(error)).sticky());
        let mut refused = false;
        for _ in 0..2_000 {
            let bytes = harness.frame(ProducerStamp::default());
            if harness.append(0, 0, 0, &bytes).unwrap().is_none() {
                let live = &mut harness.live[0];
                let frame = ringmq_engine::format::frame::Frame::parse(&bytes).unwrap();
                refused |= live.shard.append(&mut live.ring, id, &frame) == Err(AppendError::DiskFull);
            }
            if refused {
                break;
            }
            harness.pass(1_000).unwrap();
        }
        assert!(refused, "{error}: nobody was told");
        assert_eq!(harness.live[0].shard.log().disk_error(), Some(error));
        assert!(harness.live[0].shard.stats().descriptor_failures > 0);
        harness.world.heal();
        harness.pass(5_000_000).unwrap();
        fill(&mut harness, 20);
    }
    harness.stop_cleanly().unwrap();
    harness.try_start().unwrap().unwrap();
}

#[test]
fn a_write_cut_short_at_any_byte_goes_on_and_a_restart_has_it() {
    for seed in 0..16 {
        let mut plan = Plan::calm();
        plan.seed = seed;
        let mut harness = shard(plan);
        fill(&mut harness, 2);
        harness.pass(100_000).unwrap();
        // Groups of one block: a write that is cut short ends inside it.
        let short = Fault { times: 3, ..Fault::new(OpKind::Write, Harm::Short) };
        harness.world.inject(NODE, short.on(".seg"));
        fill(&mut harness, 3);
        harness.pass(100_000).unwrap();
        assert_eq!(harness.live[0].shard.poisoned(), None, "seed {seed}");
        assert!(
            harness.known[0].topics[0].partitions.iter().flat_map(|own| &own.frames).all(|frame| frame.acked)
        );
        harness.crash();
        harness.try_start().unwrap().unwrap();
    }
}

fn facts() -> SegmentFacts {
    SegmentFacts {
        shard: ShardId(0),
        slot: SlotId(0),
        seq: SegmentSeq(1),
        incarnation: 9,
        base: Lsn(0),
        previous_seq: SegmentSeq(0),
        previous_chain: 0,
        capacity: 1 << 20,
        created_ms: 0,
        node_id: 1,
        epoch: Epoch(1),
    }
}

proptest! {
    /// A scan is given whatever the disk holds.
    #[test]
    fn a_scan_of_any_bytes_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..20_000),
        lsn in 2u64..200,
        chain in any::<u64>(),
        epoch in any::<u32>(),
    ) {
        let point = ScanPoint { lsn: Lsn(lsn * 4096), chain, epoch: Epoch(epoch) };
        let _ = examine(&facts(), &point, &bytes, Planted::default());
        let _ = highest_witness(&facts(), 4096, &bytes);
    }

    /// A good group with one place changed: found whole only if nothing was changed.
    #[test]
    fn a_scan_of_a_changed_group_never_takes_it_for_a_whole_one(
        at in 0usize..8192,
        with in any::<u8>(),
        cut in 0usize..=8192,
    ) {
        use ringmq_engine::format::group::{GroupFields, GroupKind, encode_empty};
        let mut bytes = vec![0; 8192];
        let fields = GroupFields {
            segment_seq: SegmentSeq(1),
            lsn: Lsn(8192),
            durable_lsn: Lsn(4096),
            used: 64,
            total: 8192,
            frames: 0,
            body_crc: 0,
            chain: 5,
            epoch: Epoch(2),
            kind: GroupKind::Pad,
        };
        encode_empty(&fields, 9, &mut bytes);
        let good = bytes.clone();
        bytes[at] = with;
        bytes.truncate(cut);
        let point = ScanPoint { lsn: Lsn(8192), chain: 5, epoch: Epoch(2) };
        let found = examine(&facts(), &point, &bytes, Planted::default()).finding;
        let whole = found == ringmq_engine::recovery::decide::Finding::Whole;
        prop_assert_eq!(whole, bytes == good);
        // Another chain or a later epoch makes it no group of this log.
        for point in [ScanPoint { chain: 6, ..point }, ScanPoint { epoch: Epoch(3), ..point }] {
            let found = examine(&facts(), &point, &good, Planted::default()).finding;
            prop_assert_eq!(found, ringmq_engine::recovery::decide::Finding::NoGroup);
        }
    }
}

/// Starts that the power ends, one after the other, at every place of each: what one of them has torn of the
/// superblock, the next one does not need.
#[test]
fn starts_that_end_in_a_row_leave_a_superblock() {
    let mut harness = crashed();
    let mut draw = sim::plan::Draw::new(3);
    let mut ends = 0;
    let crash = &mut harness.plan.sim.disk.crash;
    *crash =
        CrashModel { keep_all: 0, lose_all: 0, whole_writes: 0, prefix: 0, suffix: 0, runs: 0, ..*crash };
    for round in 0..300 {
        let image = harness.world.disk_image(NODE);
        // Another seed for what the ends tear.
        harness.plan.seed = round;
        let mut other = harness.on_image(&image);
        for start in 0..3 {
            let before = other.world.io_events(NODE);
            other.world.crash_at(NODE, before + 43 + draw.below(8));
            match other.open() {
                Ok(()) => {}
                Err(OpenError::Io { error: Errno::POWER_OFF, .. }) => ends += 1,
                Err(refused) => panic!("round {round}, start {start}: {refused}"),
            }
            other.crash();
        }
        other.world.crash_at(NODE, u64::MAX);
        other.try_start().unwrap().unwrap();
        other.crash();
    }
    assert!(ends > 100, "only {ends} ends in a start");
}
