//! Every bug that can be planted is found by the harness, and soon: a harness that finds nothing proves nothing.

#![allow(clippy::unwrap_used)] // helpers of tests

mod sim;

use ringmq_engine::format::superblock::Durability;
use ringmq_engine::planted::{Bug, Planted};
use ringmq_engine::ring::sim::{DiskFaults, Latency};
use sim::plan::Plan;
use sim::run;

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

fn as_drawn(_: &mut Plan) {}

/// Rolls all the time, retention every second, superblocks that take long.
fn retiring(plan: &mut Plan) {
    plan.segment_size = 32 * 4096;
    plan.checkpoint_interval = plan.segment_size;
    plan.retain_size = Some(3 * plan.segment_size);
    plan.disk_limit = None;
    (plan.body_max, plan.burst, plan.pause_us, plan.life) = (30_000, 12, 12_000, 900);
    plan.sim.disk.sync = Latency::even(3_000, 20_000);
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
    (plan.life, plan.crashes, plan.body_max) = (60, 60, 700);
    (plan.errors, plan.sim.disk.faults) = (false, DiskFaults::default());
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
    a_flush_that_covers_later_writes_is_found: FlushCoversLaterWrites in 300 seeds as_drawn,
    an_unchecked_payload_is_found: PayloadCrcUnchecked in 100 seeds as_drawn,
    a_header_that_is_not_awaited_is_found: HeaderNotAwaited in 300 seeds as_drawn,
    a_retirement_that_is_not_awaited_is_found: RetirementNotAwaited in 100 seeds retiring,
    a_flush_tried_again_is_found: FlushRetried in 300 seeds as_drawn,
    a_short_write_taken_for_a_whole_one_is_found: ShortWriteIgnored in 100 seeds as_drawn,
    a_checkpoint_ahead_of_the_log_is_found: CheckpointAheadOfLog in 100 seeds checkpointing,
    producers_left_out_of_checkpoints_are_found: ProducersForgotten in 100 seeds as_drawn,
    an_epoch_that_stays_is_found: EpochNotRaised in 200 seeds restarting,
    a_directory_that_is_not_synced_is_found: DirectoryNotSynced in 100 seeds as_drawn,
    files_not_synced_before_they_are_read_are_found: NoSyncBeforeRead in 100 seeds as_drawn,
    records_shown_before_they_are_durable_are_found: VisibleBeforeDurable in 50 seeds as_drawn,
}

#[test]
fn tuned_plans_find_nothing_where_nothing_is_planted() {
    for tune in [retiring, checkpointing, restarting] {
        for seed in 0..40 {
            let mut plan = Plan::draw(seed);
            tune(&mut plan);
            let found = run(plan).found;
            assert!(found.is_none(), "seed {seed}: {found:?}");
        }
    }
}
