//! A bounded number of simulated nodes; the binary `sim` runs as many as one likes.

#[path = "../src/bin/sim/knobs.rs"]
#[allow(dead_code)] // the binary prints
mod knobs;
#[path = "../src/bin/sim/shrink.rs"]
mod shrink;
#[path = "../../server/tests/sim/mod.rs"]
mod sim;

use ringmq_engine::planted::{Bug, Planted};
use sim::{Plan, run};
use std::time::{Duration, Instant};

/// Other seeds than those of the server's own test.
const SEEDS: std::ops::Range<u64> = 1_000..1_040;
/// Known to fail. 1016: the disk is at its limit and the oldest segment, which holds bodies that wait, cannot be given up
/// (README, "Not yet"). 1022: a subscriber behind a black hole does not get the last records before the harness runs out of
/// turns; whose fault that is, is not known.
const OPEN: [u64; 2] = [1_016, 1_022];

#[test]
fn nodes_keep_what_they_promise() {
    for seed in SEEDS.filter(|seed| !OPEN.contains(seed)) {
        if let Some(wrong) = run(Plan::draw(seed)).found {
            panic!("seed {seed}: {}: {}\nagain: sim --replay {seed}", wrong.check, wrong.details);
        }
    }
}

/// What is printed of a failing seed is enough to see it fail again, with less around it.
#[test]
fn a_planted_bug_is_found_and_its_smallest_run_fails_again() {
    let planted = |seed| Plan { planted: Planted::bug(Bug::FlushLeftOut), ..Plan::draw(seed) };
    let failing = SEEDS.map(planted).find_map(|plan| {
        let outcome = run(plan.clone());
        outcome.found.is_some().then_some((plan, outcome))
    });
    let Some((plan, outcome)) = failing else { panic!("a flush that is left out is not found") };
    let check = outcome.found.as_ref().map(|wrong| wrong.check);
    let (seed, turns) = (plan.seed, outcome.counts.turns);
    let small = shrink::shrink(plan, outcome, Instant::now() + Duration::from_secs(20));
    assert!(small.outcome.counts.turns < turns, "{} turns of {turns}", small.outcome.counts.turns);
    // As `--replay SEED --with ... --plant FlushLeftOut` does.
    let mut again = planted(seed);
    let with = knobs::difference(&small.plan, &again);
    assert!(!with.is_empty() && knobs::apply(&mut again, &with).is_ok(), "{with}");
    let again = run(again);
    assert_eq!(again.found.map(|wrong| wrong.check), check);
    assert_eq!(again.hash, small.outcome.hash);
}

/// A number that is changed is seen in the trace, so equal traces say that nothing was.
#[test]
fn every_plan_leaves_its_own_trace() {
    let plan = Plan::draw(1_000);
    let mut other = plan.clone();
    assert!(knobs::apply(&mut other, "records=1").is_ok());
    assert_eq!(run(plan.clone()).hash, run(plan.clone()).hash);
    assert_ne!(run(plan).hash, run(other).hash);
    assert!(knobs::apply(&mut Plan::draw(1), "nothing=1").is_err());
}
