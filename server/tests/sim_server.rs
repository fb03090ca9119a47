//! A whole node under simulated clients, crashes and drains: whatever happens, what was acknowledged is there, once,
//! in order, and every request is answered.
//!
//! `RINGMQ_SIM_SEEDS=n` runs so many seeds from `RINGMQ_SIM_FIRST=s` on, `RINGMQ_SIM_SEED=s` one seed with its
//! trace, `RINGMQ_SIM_SURVEY=1` goes on after a finding.

mod sim;

use sim::{Counts, Plan, Wrong, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn fail(seed: u64, wrong: &Wrong) -> ! {
    let mut plan = Plan::draw(seed);
    plan.sim.trace_lines = number("RINGMQ_SIM_LINES").unwrap_or(120) as usize;
    for line in &run(plan).trace {
        eprintln!("{line}");
    }
    panic!(
        "seed {seed}: {}: {}\nagain: RINGMQ_SIM_SEED={seed} cargo test -p ringmq-server --test sim_server",
        wrong.check, wrong.details
    );
}

#[test]
fn nothing_is_lost_invented_reordered_or_left_unanswered() {
    if let Some(seed) = number("RINGMQ_SIM_SEED") {
        let outcome = run(Plan::draw(seed));
        println!("{:?} {:?}", Plan::draw(seed), outcome.counts);
        if let Some(wrong) = &outcome.found {
            fail(seed, wrong);
        }
        return;
    }
    let begun = std::time::Instant::now();
    let first = number("RINGMQ_SIM_FIRST").unwrap_or(0);
    let seeds = number("RINGMQ_SIM_SEEDS").unwrap_or(60);
    let mut total = Counts::default();
    for seed in first..first + seeds {
        let outcome = run(Plan::draw(seed));
        if let Some(wrong) = &outcome.found {
            if number("RINGMQ_SIM_SURVEY").is_none() {
                fail(seed, wrong);
            }
            let details: String = wrong.details.chars().take(400).collect();
            println!("seed {seed}: {}: {details}", wrong.check);
        }
        total.add(&outcome.counts);
    }
    println!("{seeds} seeds in {:.1} s: {total:?}", begun.elapsed().as_secs_f64());
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in 0..5 {
        assert_eq!(run(Plan::draw(seed)).hash, run(Plan::draw(seed)).hash, "seed {seed}");
    }
}
