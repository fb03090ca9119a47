//! `ringmq`: server, clients and tools in one binary.
//!
//! One file per noun of the command line; this one only chooses. A verb takes its arguments and [`cli::Common`] and
//! returns a result; [`failure::Failure`] turns an error into a line that says what, where and what to do, and into
//! an exit code.

mod bench;
mod child;
mod cli;
mod completions;
mod confirm;
mod data;
mod dead_letters;
mod demo;
mod doctor;
mod failure;
mod format;
mod group;
mod lines;
mod link;
mod man;
mod offline;
mod publish;
mod screen;
mod segment;
mod server;
mod start;
mod subscribe;
mod subscribe_group;
mod timer;
mod topic;
mod topic_settings;
mod transaction;

use clap::Parser;
use cli::{Cli, Verb};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Cli { common, verb } = Cli::parse();
    let result = match verb {
        Verb::Server(args) => return server::run(*args, &common),
        Verb::Bench(args) => return bench::run(*args, common.json),
        Verb::Pub(args) => publish::run(&args, &common),
        Verb::Sub(args) => subscribe::run(&args, &common),
        Verb::Topic(args) => topic::run(&args, &common),
        Verb::Group(args) => group::run(&args, &common),
        Verb::Txn(args) => transaction::run(&args, &common),
        Verb::Timer(args) => timer::run(&args, &common),
        Verb::Dlq(args) => dead_letters::run(&args, &common),
        Verb::Demo(args) => demo::run(&args, &common),
        Verb::Doctor(args) => doctor::run(&args, &common),
        Verb::Segment(args) => segment::run(&args, &common),
        Verb::Data(args) => data::run(&args, &common),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man(args) => man::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(&common),
    }
}
