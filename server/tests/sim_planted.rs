//! Every bug that can be planted in what serves consumer groups is found by the harness, and soon: a harness that
//! finds nothing proves nothing.

mod sim;

use ringmq_client::GroupMode;
use ringmq_engine::format::superblock::Durability;
use ringmq_engine::ring::sim::{DiskFaults, Latency};
use ringmq_server::planted::{Bug, Planted};
use sim::groups::{GroupPlan, Sieve};
use sim::{Plan, run};

/// Runs seeds until the bug shows, at most so many; says what found it and when. `tune` makes the trouble likely that
/// the bug is about.
fn find(bug: Bug, checks: &[&str], seeds: u64, tune: fn(&mut Plan)) {
    let begun = std::time::Instant::now();
    for seed in 0..seeds {
        let mut plan = Plan::draw(seed);
        tune(&mut plan);
        plan.planted_in_server = Planted::bug(bug);
        if let Some(found) = run(plan).found {
            let took = begun.elapsed().as_secs_f64();
            println!(
                "{bug:?}: found by '{}' in seed {seed} after {took:.1} s: {}",
                found.check, found.details
            );
            assert!(checks.contains(&found.check), "{bug:?}: found by '{}': {}", found.check, found.details);
            return;
        }
    }
    panic!("{bug:?}: not found in {seeds} seeds");
}

/// One group, a few quick lives, nothing that is not about groups.
fn quick(plan: &mut Plan, mode: GroupMode) {
    let (name, dead_letters) =
        if mode == GroupMode::Queue { ("queue-0", "%DLQ%queue-0") } else { ("group", "") };
    (plan.producers, plan.plain_producers, plan.transactors, plan.admins, plan.hostiles) = (2, 0, 0, 0, 0);
    (plan.subscribers, plan.fetchers, plan.bursts, plan.errors, plan.gives_up) = (0, 0, false, false, false);
    (plan.records, plan.body_max, plan.pause_us, plan.life, plan.lives) = (80, 64, 2_000, 300, 3);
    (plan.retain_size, plan.disk_limit, plan.connections_max) = (None, None, 10_000);
    plan.topics = vec![("alpha", 2), ("beta", 1)];
    plan.sim.disk.faults = DiskFaults::default();
    plan.sim.disk.write = Latency::even(10, 500);
    plan.sim.disk.sync = Latency::even(10, 500);
    plan.durability = Durability::Flush;
    plan.sim.net.black_hole_ppm = 0;
    plan.groups = vec![GroupPlan {
        name,
        dead_letters,
        mode,
        topics: vec![("alpha", 2)],
        sieve: Sieve::All,
        members: 3,
        ordered: false,
        max_attempts: 4,
        backoff_ms: vec![0],
        invisible_ms: 100,
        session_ms: 400,
        concurrency: 0,
        rate_records: 0,
        restless: true,
    }];
}

fn queue(plan: &mut Plan) {
    quick(plan, GroupMode::Queue);
}

fn ordered(plan: &mut Plan) {
    queue(plan);
    plan.groups[0].ordered = true;
}

/// What fails comes again much later, so that a start lies between.
fn patient(plan: &mut Plan) {
    queue(plan);
    plan.lives = 6;
    plan.groups[0].max_attempts = 16;
}

fn filtered(plan: &mut Plan) {
    queue(plan);
    plan.groups[0].sieve = Sieve::RedOrBlue;
}

fn stream(plan: &mut Plan) {
    quick(plan, GroupMode::Stream);
}

fn broadcast(plan: &mut Plan) {
    quick(plan, GroupMode::Broadcast);
}

macro_rules! planted {
    ($($name:ident: $bug:ident in $seeds:literal seeds $tune:ident by $checks:expr,)*) => {
        $(#[test]
        fn $name() {
            find(Bug::$bug, &$checks, $seeds, $tune);
        })*
    };
}

planted! {
    an_ack_answered_early_is_found: AckBeforeDurable in 30 seeds queue
        by ["what is acknowledged is not delivered again", "a failed delivery counts, durably"],
    acks_forgotten_at_a_start_are_found: AcksForgotten in 30 seeds queue
        by ["what is acknowledged is not delivered again", "a failed delivery counts, durably"],
    retries_forgotten_at_a_start_are_found: RetriesForgotten in 30 seeds patient
        by ["a failed delivery counts, durably"],
    a_lease_that_has_ended_and_acks_is_found: StaleHandleAcks in 30 seeds queue
        by ["only the last lease acknowledges", "what is acknowledged is not delivered again"],
    a_second_record_of_a_key_is_found: SecondOfKey in 30 seeds ordered
        by ["records of a key are delivered in their order", "of a key one record is in flight"],
    an_attempt_that_is_not_counted_is_found: AttemptNotCounted in 30 seeds queue
        by ["a failed delivery counts", "a failed delivery counts, durably"],
    an_attempt_too_many_is_found: OneAttemptMore in 30 seeds queue by ["a record has at most its attempts"],
    a_lease_that_ends_early_is_found: LeaseEndsEarly in 30 seeds queue
        by ["what is leased is not given to anybody else", "a lease is good until its time"],
    a_dead_letter_that_is_left_out_is_found: DeadLetterLeftOut in 30 seeds queue
        by ["every record is consumed or a dead letter", "what was told dead is a dead letter"],
    a_filter_that_drops_is_found: FilterDrops in 30 seeds filtered
        by ["every record is consumed or a dead letter"],
    a_filter_that_drops_in_a_stream_is_found: FilterDrops in 30 seeds stream
        by ["every record reaches whoever streams", "a stream has no gaps"],
    a_commit_of_who_was_fenced_is_found: StaleCommitTaken in 30 seeds stream
        by ["a member that was fenced cannot commit"],
    a_commit_that_goes_back_is_found: CommitGoesBack in 30 seeds stream by ["positions never go back"],
    a_commit_answered_early_is_found: CommitBeforeDurable in 30 seeds stream
        by ["positions never go back", "what was committed is remembered"],
    an_instance_that_is_forgotten_is_found: InstanceForgotten in 30 seeds broadcast
        by ["what was committed is remembered", "positions never go back"],
}

#[test]
fn tuned_plans_find_nothing_where_nothing_is_planted() {
    for tune in [queue, ordered, patient, filtered, stream, broadcast] {
        for seed in 0..3 {
            let mut plan = Plan::draw(seed);
            tune(&mut plan);
            let found = run(plan).found;
            assert!(found.is_none(), "seed {seed}: {found:?}");
        }
    }
}
