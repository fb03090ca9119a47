//! Makes the proof, a row at a time, and writes down what was done: `proof ROW [--from N] [--count N] [--minutes M]`.
//!
//! Each row numbers its cases, so that a run goes on where an earlier one ended. What was done is added to
//! `fuzz/LEDGER.json` with `--record`; `proof page` makes `fuzz/PROOF.md` and `fuzz/PLANTED.md` from it. Ends with
//! status 1 at the first case that fails, and says how to run that case alone.

mod corrupt;
mod fuse;
mod kill;
mod ledger;
mod page;
mod planted;
mod server;
#[path = "../../../../engine/tests/sim/mod.rs"]
mod sim;
mod small;
mod sweep;

use ledger::Ledger;
use ringmq_engine::planted::{Bug, Planted};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use sweep::Swept;

const USAGE: &str = "usage: proof ROW [--from N] [--count N] [--minutes M] [--threads N] [--binary RINGMQ] [--record]
             [--plant BUG]
rows:
  small        every workload of up to 3 operations x every I/O boundary x every subset of what is not flushed
  flips        every bit of the valid extent of a 4 MiB segment, through the scan and the reader
  flips-full   the same bits, by a start of a whole shard that reads everything back
  cuts         every byte length of the last MiB of a segment, by a start of a whole shard
  sectors      every sector of a 64 MiB store x {zeros, ones, random, an older generation, another partition's}
  sectors-full the same sectors, by a start of a whole shard that reads everything back
  kills        the real server, killed at its n-th io_uring_enter under load (needs strace)
  power        the real server on a FUSE file system that loses what was not flushed (needs root and FUSE)
  blocks       ext4 and xfs images on a loop device over that file system, replayed at every flush (needs loop devices)
  planted      reads what `cargo test -p ringmq-engine --test sim_planted -- --nocapture` prints
  page         writes PROOF.md and PLANTED.md; with --check only says whether they are what it would write
With --plant the row has to fail: a bug of the engine by its name (small, flips, sectors), or LyingDisk (power).";

/// What a row is asked to do.
#[derive(Clone, Debug)]
struct Options {
    /// First case.
    from: u64,
    /// So many cases at most.
    count: u64,
    /// No new case after this.
    deadline: Option<Instant>,
    threads: usize,
    /// The server's binary.
    binary: PathBuf,
    record: bool,
    /// Something is wrong on purpose.
    plant: Option<String>,
}

/// Bugs that rows of this binary find.
const PLANTABLE: [Bug; 9] = [
    Bug::FlushLeftOut,
    Bug::FlushCoversLaterWrites,
    Bug::HeaderNotAwaited,
    Bug::RetirementNotAwaited,
    Bug::CheckpointAheadOfLog,
    Bug::DirectoryNotSynced,
    Bug::NoSyncBeforeRead,
    Bug::VisibleBeforeDurable,
    Bug::PayloadCrcUnchecked,
];

impl Options {
    /// The bug of the engine that is planted, if one is.
    fn planted(&self) -> Planted {
        let name = self.plant.as_deref().unwrap_or_default();
        let bug = PLANTABLE.into_iter().find(|bug| format!("{bug:?}") == name);
        bug.map_or_else(Planted::default, Planted::bug)
    }
}

/// What came of a row.
enum Ran {
    Done(Swept),
    Skipped(String),
}

fn options(mut words: impl Iterator<Item = String>) -> Option<Options> {
    let mut found = Options {
        from: 0,
        count: u64::MAX,
        deadline: None,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        binary: server::default_binary(),
        record: false,
        plant: None,
    };
    while let Some(word) = words.next() {
        let mut number = || words.next()?.parse::<u64>().ok();
        match word.as_str() {
            "--from" => found.from = number()?,
            "--count" => found.count = number()?,
            "--minutes" => found.deadline = Some(Instant::now() + Duration::from_secs(60 * number()?)),
            "--threads" => found.threads = number()?.max(1) as usize,
            "--binary" => found.binary = PathBuf::from(words.next()?),
            "--record" => found.record = true,
            "--plant" => found.plant = words.next(),
            _ => return None,
        }
    }
    Some(found)
}

fn run(row: &str, options: &Options) -> Option<Ran> {
    Some(match row {
        "small" => Ran::Done(small::run(options)),
        "flips" => Ran::Done(corrupt::flips(options)),
        "flips-full" => Ran::Done(corrupt::flips_full(options)),
        "cuts" => Ran::Done(corrupt::cuts(options)),
        "sectors" => Ran::Done(corrupt::sectors(options)),
        "sectors-full" => Ran::Done(corrupt::sectors_full(options)),
        "kills" => kill::run(options),
        "power" => fuse::power::run(options),
        "blocks" => fuse::blocks::run(options),
        "planted" => Ran::Done(planted::read()),
        _ => return None,
    })
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let row = words.next().unwrap_or_default();
    if row == "page" {
        let made = match words.next().as_deref() {
            None => page::write(),
            Some("--check") => page::check(),
            Some(_) => Err(USAGE.to_owned()),
        };
        return match made {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let begun = Instant::now();
    let Some(options) = options(words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let swept = match run(&row, &options) {
        Some(Ran::Done(swept)) => swept,
        Some(Ran::Skipped(why)) => {
            println!("skipped: {why}");
            return ExitCode::SUCCESS;
        }
        None => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let wall = begun.elapsed();
    println!(
        "{row}: cases {}..{} of {}, {} {}, {:.1} s",
        swept.from,
        swept.to,
        swept.total,
        swept.count,
        swept.what,
        wall.as_secs_f64()
    );
    swept.notes.iter().for_each(|note| println!("{note}"));
    if let Some((case, finding)) = &swept.finding {
        println!("case {case}: {finding}\nagain: proof {row} --from {case} --count 1");
        return ExitCode::FAILURE;
    }
    if options.record
        && let Err(error) = Ledger::read().and_then(|ledger| ledger.add(&swept.run(&row), wall))
    {
        eprintln!("the ledger: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
