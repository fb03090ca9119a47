//! The log under simulated crashes: whatever happens, what was acknowledged is there, once, in order.
//!
//! `RINGMQ_SIM_SEEDS=n` runs so many seeds, `RINGMQ_SIM_SEED=s` one seed with its trace,
//! `RINGMQ_SIM_CRASHES=n` so many ends of a process in each, `RINGMQ_SIM_SURVEY=1` goes on after a finding.

#![allow(clippy::unwrap_used)] // helpers of tests

mod sim;

use sim::plan::Plan;
use sim::{Counts, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn plan(seed: u64) -> Plan {
    let mut plan = Plan::draw(seed);
    if let Some(crashes) = number("RINGMQ_SIM_CRASHES") {
        plan.crashes = crashes as u32;
    }
    plan
}

fn fail(seed: u64, wrong: &sim::model::Wrong) -> ! {
    let mut again = plan(seed);
    again.sim.trace_lines = number("RINGMQ_SIM_TRACE").unwrap_or(150) as usize;
    let outcome = run(again);
    for line in &outcome.trace {
        eprintln!("{line}");
    }
    panic!("seed {seed}: {}: {}\nagain: RINGMQ_SIM_SEED={seed}", wrong.check, wrong.details);
}

#[test]
fn nothing_is_lost_invented_reordered_or_given_twice() {
    if let Some(seed) = number("RINGMQ_SIM_SEED") {
        let outcome = run(plan(seed));
        println!("{:?} {:?}", plan(seed), outcome.counts);
        if let Some(wrong) = &outcome.found {
            fail(seed, wrong);
        }
        return;
    }
    let begun = std::time::Instant::now();
    let first = number("RINGMQ_SIM_FIRST").unwrap_or(0);
    let seeds = number("RINGMQ_SIM_SEEDS").unwrap_or(200);
    let mut total = Counts::default();
    for seed in first..first + seeds {
        let outcome = run(plan(seed));
        if let Some(wrong) = &outcome.found {
            if number("RINGMQ_SIM_SURVEY").is_none() {
                fail(seed, wrong);
            }
            println!("seed {seed}: {}: {}", wrong.check, wrong.details);
        }
        total.add(&outcome.counts);
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{seeds} seeds in {seconds:.1} s, {:.0} crashes/s: {total:?}", total.crashes as f64 / seconds);
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in 0..20 {
        assert_eq!(run(plan(seed)).hash, run(plan(seed)).hash, "seed {seed}");
    }
}
