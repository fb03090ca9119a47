//! Every bug that can be planted is found by the harness, and soon: a harness that finds nothing proves nothing.

#![allow(clippy::unwrap_used)] // helpers of tests

mod sim;

use ringmq_engine::format::Epoch;
use ringmq_engine::format::frame::Codec;
use ringmq_engine::format::group::{GroupFields, GroupKind, encode_empty};
use ringmq_engine::format::limits::GROUP_HEADER_SIZE;
use ringmq_engine::format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_engine::format::superblock::Durability;
use ringmq_engine::planted::{Bug, Planted};
use ringmq_engine::recovery::OpenError;
use ringmq_engine::recovery::decide::Row;
use ringmq_engine::ring::sim::{CrashModel, DiskFaults, Latency};
use sim::plan::Plan;
use sim::{Harness, NODE, directory, run};

/// Runs seeds until the bug shows, at most so many; says what found it and when. `tune` makes the trouble likely that
/// the bug is about.
fn find(bug: Bug, seeds: u64, tune: fn(&mut Plan)) {
    let begun = std::time::Instant::now();
    let mut crashes = 0;
    for seed in 0..seeds {
        let mut plan = Plan::draw(seed);
        plan.planted = Planted::bug(bug);
        tune(&mut plan);
        let outcome = run(plan);
        crashes += outcome.counts.crashes;
        if let Some(wrong) = outcome.found {
            let details: String = wrong.details.chars().take(160).collect();
            println!(
                "{bug:?}: found by \"{}\" after {} seeds, {crashes} crashes, {:.2} s: {details}",
                wrong.check,
                seed + 1,
                begun.elapsed().as_secs_f64(),
            );
            return;
        }
    }
    panic!("{bug:?} was not found in {seeds} seeds, {crashes} crashes");
}

/// What `find` prints, of a bug that is found by a case made for it.
fn say(bug: Bug, check: &str, begun: std::time::Instant) {
    println!(
        "{bug:?}: found by \"{check}\" after 1 seeds, 1 crashes, {:.2} s",
        begun.elapsed().as_secs_f64()
    );
}

fn as_drawn(_: &mut Plan) {}

/// Rolls all the time, retention every second, superblocks that take long.
fn retiring(plan: &mut Plan) {
    plan.late = false;
    plan.segment_size = 32 * 4096;
    plan.checkpoint_interval = plan.segment_size;
    plan.retain_size = Some(3 * plan.segment_size);
    // No slot but a retired one is left for the next roll.
    plan.disk_limit = Some(6 * plan.segment_size);
    (plan.body_max, plan.burst, plan.pause_us, plan.life) = (30_000, 12, 12_000, 900);
    plan.sim.disk.sync = Latency::even(3_000, 20_000);
    plan.sim.disk.write = Latency::even(300, 20_000);
}

/// Groups that consume, and checkpoints all the time.
fn consuming(plan: &mut Plan) {
    plan.groups = true;
    plan.checkpoint_interval = plan.segment_size;
}

/// Rolls all the time, and single writes that take long.
fn rolling(plan: &mut Plan) {
    plan.segment_size = 32 * 4096;
    (plan.body_max, plan.burst, plan.pause_us, plan.life) = (30_000, 12, 400, 300);
    plan.sim.disk.write = Latency { min_us: 20, spread_us: 50, tail_ppm: 200_000, tail_us: 20_000 };
    plan.sim.disk.sync = Latency::even(10, 20);
}

/// Syncs that fail.
fn failing(plan: &mut Plan) {
    plan.errors = true;
    plan.durability = Durability::Flush;
    plan.sim.disk.faults.sync_error_ppm = 10_000;
}

/// Checkpoints all the time, and single writes that take long.
fn checkpointing(plan: &mut Plan) {
    plan.checkpoint_interval = 4096;
    plan.durability = Durability::Dsync;
    (plan.body_max, plan.burst, plan.life) = (5_000, 4, 300);
    plan.sim.disk.write = Latency { min_us: 20, spread_us: 50, tail_ppm: 100_000, tail_us: 100_000 };
    plan.sim.disk.sync = Latency::even(10, 20);
}

/// Ends right after the start, with frames in flight behind the RECOVERY group.
fn restarting(plan: &mut Plan) {
    plan.eager = true;
    (plan.life, plan.crashes, plan.body_max) = (60, 30, 700);
    (plan.errors, plan.sim.disk.faults) = (false, DiskFaults::default());
}

/// Transactions and delays, checkpoints all the time.
fn waiting(plan: &mut Plan) {
    plan.late = true;
    plan.checkpoint_interval = 4096;
    (plan.body_max, plan.burst, plan.pause_us, plan.life) = (700, 4, 400, 300);
    plan.segment_size = 32 * 4096;
    plan.sim.clock.jump_every_us = 0;
}

/// ... and retention that has to move what waits.
fn moving(plan: &mut Plan) {
    retiring(plan);
    plan.late = true;
    (plan.body_max, plan.pause_us) = (5_000, 3_000);
    plan.disk_limit = None;
    plan.sim.clock.jump_every_us = 0;
}

macro_rules! planted {
    ($($name:ident: $bug:ident in $seeds:literal seeds $tune:ident,)*) => {
        $(#[test]
        fn $name() {
            find(Bug::$bug, $seeds, $tune);
        })*
    };
}

planted! {
    a_flush_that_is_left_out_is_found: FlushLeftOut in 50 seeds as_drawn,
    a_flush_that_covers_later_writes_is_found: FlushCoversLaterWrites in 100 seeds as_drawn,
    an_unchecked_payload_is_found: PayloadCrcUnchecked in 100 seeds as_drawn,
    a_header_that_is_not_awaited_is_found: HeaderNotAwaited in 100 seeds rolling,
    a_retirement_that_is_not_awaited_is_found: RetirementNotAwaited in 100 seeds retiring,
    a_flush_tried_again_is_found: FlushRetried in 100 seeds failing,
    a_short_write_taken_for_a_whole_one_is_found: ShortWriteIgnored in 100 seeds as_drawn,
    a_checkpoint_ahead_of_the_log_is_found: CheckpointAheadOfLog in 100 seeds checkpointing,
    producers_left_out_of_checkpoints_are_found: ProducersForgotten in 100 seeds as_drawn,
    a_directory_that_is_not_synced_is_found: DirectoryNotSynced in 100 seeds as_drawn,
    files_not_synced_before_they_are_read_are_found: NoSyncBeforeRead in 100 seeds as_drawn,
    records_shown_before_they_are_durable_are_found: VisibleBeforeDurable in 50 seeds as_drawn,
    a_commit_of_two_groups_is_found: CommitSplit in 100 seeds waiting,
    positions_left_out_of_checkpoints_are_found: CursorsForgotten in 50 seeds consuming,
    what_waits_left_out_of_checkpoints_is_found: PendingForgotten in 50 seeds waiting,
    ends_left_out_of_checkpoints_are_found: EndsForgotten in 50 seeds waiting,
    places_of_bodies_left_out_of_checkpoints_are_found: BodiesForgotten in 50 seeds moving,
    bodies_that_are_not_moved_are_found: BodiesNotMoved in 50 seeds moving,
    a_move_that_is_not_awaited_is_found: RelocationNotAwaited in 200 seeds moving,
    an_end_told_before_it_is_durable_is_found: EndToldEarly in 50 seeds waiting,
    a_delay_that_is_early_is_found: DelayEarly in 20 seeds waiting,
    halves_in_the_index_are_found: HalvesIndexed in 50 seeds waiting,
}

#[test]
fn tuned_plans_find_nothing_where_nothing_is_planted() {
    for tune in [retiring, rolling, failing, checkpointing, restarting, waiting, moving, consuming] {
        for seed in 0..20 {
            let mut plan = Plan::draw(seed);
            tune(&mut plan);
            let found = run(plan).found;
            assert!(found.is_none(), "seed {seed}: {found:?}");
        }
    }
}

/// A calm shard with one topic, everything durable and its process gone.
fn prepared(bug: Option<Bug>) -> Harness {
    let mut plan = Plan::calm();
    plan.planted = bug.map_or_else(Planted::default, Planted::bug);
    plan.segment_size = 128 * 4096;
    plan.sim.disk.crash = CrashModel { keep_all: 1, ..CrashModel::default() };
    let crash = &mut plan.sim.disk.crash;
    (crash.lose_all, crash.whole_writes, crash.prefix) = (0, 0, 0);
    (crash.suffix, crash.runs, crash.sectors) = (0, 0, 0);
    plan.body_max = 30_000;
    let mut harness = Harness::new(plan);
    harness.try_start().unwrap().unwrap();
    while harness.make_topic(0, 1).is_err() {
        harness.pass(1_000).unwrap();
    }
    harness.pass(20_000).unwrap();
    harness.crash();
    harness
}

/// Whether frames that one start did not find are there at the next one.
///
/// A crash loses the RECOVERY group and keeps the group behind it, both in flight. The next process writes its own
/// RECOVERY group to the same place and ends. If that group were the same as the lost one, the group behind it would
/// belong to the log again.
fn lost_frames_come_back(bug: Option<Bug>) -> bool {
    let mut harness = prepared(bug);
    harness.open().unwrap();
    let path = harness.live[0].shard.log().segments()[0].facts.slot.0;
    let path = directory(0).join("log").join(format!("{path:03}.seg"));
    let recovery_at = harness.live[0].shard.durable().0;
    harness.live[0].tick();
    // More than a group may hold while another one is in flight, so that it is written too.
    for _ in 0..40 {
        let bytes = harness.frame(ProducerStamp::default());
        if harness.append(0, 0, 0, &bytes).unwrap().is_none() {
            break;
        }
    }
    harness.live[0].tick();
    assert!(harness.live[0].shard.durable().0 == recovery_at, "nothing is durable yet");
    while harness.world.peek(NODE, &path, recovery_at + 4096, 4).unwrap() == [0; 4] {
        assert!(harness.world.step(), "the second group is written");
    }
    harness.crash();
    harness.world.poke(NODE, &path, recovery_at, &[0; 4096]).unwrap();
    harness.try_start().unwrap().unwrap();
    harness.crash();
    match harness.try_start() {
        Ok(Ok(())) => false,
        Err(wrong) if wrong.check == "nothing is invented" => true,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_epoch_that_stays_is_found() {
    assert!(!lost_frames_come_back(None));
    let begun = std::time::Instant::now();
    assert!(lost_frames_come_back(Some(Bug::EpochNotRaised)));
    say(Bug::EpochNotRaised, "nothing is invented", begun);
}

/// Whether a producer who guesses the incarnation, and knows everything else, keeps a shard from starting: a body that
/// looks like a later group says that the torn group in front of it had been durable.
fn a_forged_witness_is_believed(bug: Option<Bug>) -> bool {
    let mut harness = prepared(bug);
    harness.try_start().unwrap().unwrap();
    harness.pass(20_000).unwrap();
    let (facts, group) = {
        let log = harness.live[0].shard.log();
        (log.segments().back().unwrap().facts, log.durable())
    };
    // The frame lies behind the header of its group; its body reaches over the next block.
    let build = |body: &[u8]| {
        let mut builder = FrameBuilder::new(0, 64 << 10);
        builder.push(&Record { body, ..Record::default() }).unwrap();
        builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None)
    };
    let mut body = vec![0xa5; 12_000];
    let frame_at = GROUP_HEADER_SIZE;
    let body_at = frame_at + build(&body).iter().position(|byte| *byte == 0xa5).unwrap();
    let lsn = group.plus(4096);
    let fields = GroupFields {
        segment_seq: facts.seq,
        lsn,
        durable_lsn: lsn,
        used: GROUP_HEADER_SIZE,
        total: 4096,
        frames: 0,
        body_crc: 0,
        chain: 0,
        epoch: Epoch(1000),
        kind: GroupKind::Heartbeat,
    };
    encode_empty(&fields, 1, &mut body[4096 - body_at..][..4096]);
    let bytes = build(&body);
    let path = directory(0).join("log").join(format!("{:03}.seg", facts.slot.0));
    harness.append(0, 0, 0, &bytes).unwrap().unwrap();
    harness.live[0].tick();
    while harness.world.peek(NODE, &path, facts.position(group), 4).unwrap() == [0; 4] {
        assert!(harness.world.step(), "the group is written");
    }
    harness.crash();
    // Torn: its first sector did not make it.
    harness.world.poke(NODE, &path, facts.position(group), &[0; 512]).unwrap();
    match harness.try_start().unwrap() {
        Ok(()) => false,
        Err(OpenError::Damaged { row: Some(Row::B), .. }) => true,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_incarnation_used_twice_is_found() {
    assert!(!a_forged_witness_is_believed(None));
    let begun = std::time::Instant::now();
    assert!(a_forged_witness_is_believed(Some(Bug::IncarnationReused)));
    say(Bug::IncarnationReused, "a torn group is no damage", begun);
}
