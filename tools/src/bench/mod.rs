//! `ringmq bench`: how fast this machine is at most, and how near the server comes.
//!
//! [`machine`] measures the floor without a server; [`produce`], [`consume`] and [`end_to_end`] load one over the wire
//! protocol, [`late`] and [`drain`] do so through the client library. They print their figures as ratios to it; [`goals`] does all
//! of that for everything that is promised. All of them say how busy their own threads were: a generator at 100 % measured itself.

mod chart;
mod compare;
mod consume;
mod cpu;
mod drain;
mod end_to_end;
#[cfg(test)]
mod fake_server;
mod floor;
mod goals;
mod late;
mod latency;
mod machine;
mod page;
mod pipe;
mod produce;
mod report;
mod results;
mod stamp;
mod stats;
mod wire;

pub(crate) use cpu::pin;

use end_to_end::Kind;
use std::io::Write;
use std::process::ExitCode;

/// Measure the machine, or a server against it.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Machine(machine::MachineArgs),
    Produce(Box<produce::ProduceArgs>),
    Consume(Box<consume::ConsumeArgs>),
    EndToEnd(Box<end_to_end::EndToEndArgs>),
    /// Publish to many subscribers, each of which gets every record.
    FanOut(Box<end_to_end::EndToEndArgs>),
    /// Publish, subscribe, and read the past, all at once.
    Mixed(Box<end_to_end::EndToEndArgs>),
    Transactions(Box<late::TransactionArgs>),
    Delays(Box<late::DelayArgs>),
    Drain(Box<drain::DrainArgs>),
    Goals(Box<goals::GoalsArgs>),
    Compare(compare::CompareArgs),
    Report(page::ReportArgs),
}

/// It was tried and failed.
const EXIT_FAILED: u8 = 1;
/// It could not be tried, because it was asked for wrongly.
const EXIT_WRONG_USE: u8 = 2;

/// Runs one bench; prints its report on stdout and, if it failed, why on stderr.
pub(crate) fn run(args: BenchArgs, json: bool) -> ExitCode {
    let wrong_use = match &args.command {
        Command::Machine(_) | Command::Report(_) | Command::Drain(_) => Ok(()),
        Command::Produce(args) => args.check(),
        Command::Consume(args) => args.check(),
        Command::EndToEnd(args) | Command::FanOut(args) | Command::Mixed(args) => args.check(),
        Command::Transactions(args) => args.check(),
        Command::Delays(args) => args.check(),
        Command::Goals(args) => args.check(),
        Command::Compare(args) => args.check(),
    };
    let result = wrong_use.map_err(|why| (why, EXIT_WRONG_USE)).and_then(|()| {
        match args.command {
            Command::Machine(args) => machine::run(&args, json).map(|()| 0),
            Command::Produce(args) => produce::run(&args, json).map(|()| 0),
            Command::Consume(args) => consume::run(&args, json).map(|()| 0),
            Command::EndToEnd(args) => end_to_end::run(Kind::EndToEnd, &args, json).map(|()| 0),
            Command::FanOut(args) => end_to_end::run(Kind::FanOut, &args, json).map(|()| 0),
            Command::Mixed(args) => end_to_end::run(Kind::Mixed, &args, json).map(|()| 0),
            Command::Transactions(args) => late::run_transactions(&args, json).map(|()| 0),
            Command::Delays(args) => late::run_delays(&args, json).map(|()| 0),
            Command::Drain(args) => drain::run(&args, json).map(|()| 0),
            Command::Goals(args) => goals::run(*args, json),
            Command::Compare(args) => compare::run(&args, json),
            Command::Report(args) => page::run(&args, json).map(|()| 0),
        }
        .map_err(|why| (why, EXIT_FAILED))
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err((why, code)) => {
            if json {
                eprintln!("{}", serde_json::json!({"error": why, "exit_code": code}));
            } else {
                eprintln!("error: {why}");
            }
            ExitCode::from(code)
        }
    }
}

/// Prints to stdout; a reader that has gone away is no failure.
fn print_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
