//! Runs simulated nodes: `sim SEED...`, `sim --minutes M`, `sim --count N`, `sim --replay SEED`.
//!
//! One seed decides everything. Each seed's line says what is on in it; a seed that fails prints its last events, what
//! was wrong, a command that runs it again, and one for the smallest run that still fails so. Ends with status 1 then.

#[path = "../proof/ledger.rs"]
#[allow(dead_code)] // the page is made by `proof`
mod ledger;
#[path = "../../../../server/tests/sim/mod.rs"]
mod sim;

mod knobs;
mod shrink;

use ledger::{Ledger, Run};
use ringmq_engine::planted::{Bug, Planted};
use sim::{Counts, Outcome, Plan, run};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: sim SEED... | --minutes M | --count N | --replay SEED
  --first SEED     the seed that --minutes and --count begin with (0)
  --twice          runs each seed twice: the same seed must leave the same trace
  --trace          prints the last events
  --quiet          prints no line for each seed
  --keep-going     goes on after a seed that fails
  --with A=N,B=N   changes numbers of the plans; a failing seed prints those that it can do with
  --plant BUG      a bug of the engine by its name: the seeds have to fail
  --record         adds a row to fuzz/LEDGER.json";
const TRACE_LINES: usize = 400;
/// How long a failing seed is made smaller.
const SHRINK_TIME: Duration = Duration::from_secs(60);
/// Seeds of the long run that the row of the ledger is a part of.
const SEEDS_WANTED: u64 = 20_000;
/// Bugs that clients of a whole node can see.
const PLANTABLE: [Bug; 6] = [
    Bug::FlushLeftOut,
    Bug::FlushCoversLaterWrites,
    Bug::ShortWriteIgnored,
    Bug::TruncateOnDoubt,
    Bug::VisibleBeforeDurable,
    Bug::ProducersForgotten,
];

#[derive(Default)]
struct Arguments {
    seeds: Vec<u64>,
    minutes: Option<u64>,
    count: Option<u64>,
    first: u64,
    twice: bool,
    trace: bool,
    quiet: bool,
    keep_going: bool,
    with: String,
    plant: Option<Bug>,
    record: bool,
}

fn arguments() -> Option<Arguments> {
    let mut found = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next()?.parse().ok();
        match word.as_str() {
            "--minutes" => found.minutes = Some(number()?),
            "--count" => found.count = Some(number()?),
            "--first" => found.first = number()?,
            "--replay" => {
                found.seeds.push(number()?);
                found.trace = true;
            }
            "--twice" => found.twice = true,
            "--trace" => found.trace = true,
            "--quiet" => found.quiet = true,
            "--keep-going" => found.keep_going = true,
            "--record" => found.record = true,
            "--with" => found.with = words.next()?,
            "--plant" => {
                let name = words.next()?;
                found.plant = Some(PLANTABLE.into_iter().find(|bug| format!("{bug:?}") == name)?);
            }
            seed => found.seeds.push(seed.parse().ok()?),
        }
    }
    let drawn = found.minutes.is_some() || found.count.is_some();
    // Rows of the ledger are ranges of seeds as they are.
    let plain = found.with.is_empty() && found.plant.is_none() && found.seeds.is_empty();
    (drawn == found.seeds.is_empty() && (plain || !found.record)).then_some(found)
}

impl Arguments {
    fn plan(&self, seed: u64) -> Result<Plan, String> {
        let mut plan = Plan::draw(seed);
        knobs::apply(&mut plan, &self.with)?;
        plan.planted = self.plant.map_or_else(Planted::default, Planted::bug);
        Ok(plan)
    }

    /// What `--replay` needs besides the seed.
    fn again(&self, plan: &Plan) -> String {
        let with = knobs::difference(plan, &Plan::draw(plan.seed));
        let with = if with.is_empty() { with } else { format!(" --with {with}") };
        let plant = self.plant.map_or_else(String::new, |bug| format!(" --plant {bug:?}"));
        format!("sim --replay {}{with}{plant}", plan.seed)
    }
}

/// Sums over all seeds.
#[derive(Default)]
struct Total {
    seeds: u64,
    /// Seeds that failed.
    violations: Vec<u64>,
    counts: Counts,
    simulated_us: u64,
    faults: BTreeMap<&'static str, u64>,
}

impl Total {
    fn add(&mut self, plan: &Plan, outcome: &Outcome) {
        self.seeds += 1;
        self.counts.add(&outcome.counts);
        self.simulated_us += outcome.passed_us;
        let jumps = outcome.passed_us.checked_div(plan.sim.clock.jump_every_us).unwrap_or(0);
        for (name, count) in outcome.faults.named().into_iter().chain([("clock jumps", jumps)]) {
            *self.faults.entry(name).or_default() += count;
        }
    }

    fn simulated(&self) -> String {
        let minutes = self.simulated_us as f64 / 6e7;
        if minutes < 120.0 { format!("{minutes:.1} minutes") } else { format!("{:.1} hours", minutes / 60.0) }
    }

    fn violations(&self) -> String {
        if self.violations.is_empty() { "none".to_owned() } else { format!("seeds {:?}", self.violations) }
    }

    fn faults(&self) -> String {
        let happened = self.faults.iter().filter(|(_, count)| **count > 0);
        happened.map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    }
}

/// Two runs of the same plan must be the same.
fn differs(first: &Outcome, second: &Outcome) -> Option<String> {
    let words = |outcome: &Outcome| format!("{:016x} {:?}", outcome.hash, outcome.counts);
    let same = first.hash == second.hash && words(first) == words(second);
    (!same).then(|| format!("{}\n{}", words(first), words(second)))
}

/// Answers whether all is well.
fn judge(arguments: &Arguments, seed: u64, total: &mut Total) -> Result<bool, String> {
    let plan = arguments.plan(seed)?;
    if !arguments.quiet {
        println!("seed {seed}: {}", knobs::shown(&plan));
    }
    let outcome = run(plan.clone());
    total.add(&plan, &outcome);
    if arguments.trace {
        let (hash, seconds) = (outcome.hash, outcome.passed_us as f64 / 1e6);
        println!("{plan:?}\n{:?}\ntrace {hash:016x}, {seconds:.1} s of simulated time", outcome.counts);
    }
    if outcome.found.is_none() && arguments.twice {
        let again = run(plan.clone());
        if let Some(words) = differs(&outcome, &again) {
            println!(
                "seed {seed} runs another way the second time:\n{words}\nagain: {} --twice",
                arguments.again(&plan)
            );
            return Ok(false);
        }
    }
    if outcome.found.is_none() {
        if arguments.trace {
            events(&plan);
        }
        return Ok(true);
    }
    events(&plan);
    report(seed, &outcome);
    println!("again: {}", arguments.again(&plan));
    let turns = outcome.counts.turns;
    let small = shrink::shrink(plan, outcome, Instant::now() + SHRINK_TIME);
    if small.outcome.counts.turns < turns {
        report(seed, &small.outcome);
        println!(
            "smaller: {} ({} turns of {turns}, after {} runs)",
            arguments.again(&small.plan),
            small.outcome.counts.turns,
            small.tried
        );
    }
    Ok(false)
}

fn report(seed: u64, outcome: &Outcome) {
    if let Some(wrong) = &outcome.found {
        println!("seed {seed}: {}: {}", wrong.check, wrong.details);
    }
}

/// Prints the last events of a run.
fn events(plan: &Plan) {
    let mut plan = plan.clone();
    plan.sim.trace_lines = TRACE_LINES;
    run(plan).trace.iter().for_each(|line| println!("{line}"));
}

fn record(arguments: &Arguments, total: &Total, wall: Duration) -> Result<(), String> {
    let what = if arguments.twice { "seeds, each run twice" } else { "seeds" };
    let row = Run {
        row: "sim",
        from: arguments.first,
        to: arguments.first + total.seeds,
        cases: SEEDS_WANTED,
        count: total.seeds,
        what,
        notes: &[
            format!("{} of simulated time", total.simulated()),
            format!("faults: {}", total.faults()),
            format!("violations: {}", total.violations()),
        ],
    };
    Ledger::read()?.add(&row, wall)
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    let mut total = Total::default();
    let until = arguments.minutes.map(|minutes| begun + Duration::from_secs(60 * minutes));
    let count = if arguments.seeds.is_empty() { arguments.count.unwrap_or(u64::MAX) } else { 0 };
    let drawn = (arguments.first..arguments.first.saturating_add(count))
        .take_while(|_| until.is_none_or(|until| Instant::now() < until));
    for seed in arguments.seeds.iter().copied().chain(drawn) {
        match judge(&arguments, seed, &mut total) {
            Ok(true) => {}
            Ok(false) => total.violations.push(seed),
            Err(words) => {
                eprintln!("{words}");
                return ExitCode::from(2);
            }
        }
        if !total.violations.is_empty() && !arguments.keep_going {
            break;
        }
    }
    let wall = begun.elapsed();
    let twice = if arguments.twice { ", each twice" } else { "" };
    println!(
        "{} seeds{twice} in {:.1} s, {} of simulated time: {:?}\nfaults: {}\nviolations: {}",
        total.seeds,
        wall.as_secs_f64(),
        total.simulated(),
        total.counts,
        total.faults(),
        total.violations()
    );
    if arguments.record
        && let Err(error) = record(&arguments, &total, wall)
    {
        eprintln!("the ledger: {error}");
        return ExitCode::FAILURE;
    }
    if total.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
