//! Runs simulated nodes: `sim SEED...`, `sim --minutes M [--first SEED]`, `sim --replay SEED`, each with `--trace`.
//! Ends with status 1 at the first seed that fails, and says how to replay it.

#[path = "../../../server/tests/sim/mod.rs"]
mod sim;

use sim::{Counts, Plan, run};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: sim [--trace] SEED... | --minutes M [--first SEED] | --replay SEED";
const TRACE_LINES: usize = 400;

struct Arguments {
    seeds: Vec<u64>,
    minutes: Option<u64>,
    first: u64,
    trace: bool,
}

fn arguments() -> Option<Arguments> {
    let mut found = Arguments { seeds: Vec::new(), minutes: None, first: 0, trace: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next()?.parse().ok();
        match word.as_str() {
            "--trace" => found.trace = true,
            "--minutes" => found.minutes = Some(number()?),
            "--first" => found.first = number()?,
            "--replay" => {
                found.seeds.push(number()?);
                found.trace = true;
            }
            seed => found.seeds.push(seed.parse().ok()?),
        }
    }
    (found.minutes.is_some() == found.seeds.is_empty()).then_some(found)
}

/// Answers whether all is well.
fn judge(seed: u64, trace: bool, total: &mut Counts) -> bool {
    let outcome = run(Plan::draw(seed));
    total.add(&outcome.counts);
    if trace {
        println!("seed {seed}: {:?}\n{:?}", Plan::draw(seed), outcome.counts);
    }
    let Some(wrong) = outcome.found else { return true };
    let mut plan = Plan::draw(seed);
    plan.sim.trace_lines = TRACE_LINES;
    run(plan).trace.iter().for_each(|line| println!("{line}"));
    println!("seed {seed}: {}: {}\nagain: sim --replay {seed}", wrong.check, wrong.details);
    false
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    let mut total = Counts::default();
    let mut count = 0;
    let until = arguments.minutes.map(|minutes| begun + Duration::from_secs(60 * minutes));
    let drawn = (arguments.first..).take_while(|_| until.is_some_and(|until| Instant::now() < until));
    for seed in arguments.seeds.iter().copied().chain(drawn) {
        count += 1;
        if !judge(seed, arguments.trace, &mut total) {
            return ExitCode::FAILURE;
        }
    }
    println!("{count} seeds in {:.1} s: {total:?}", begun.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}
