//! The shape of the command line: the verbs, and what all of them share.

use crate::{
    bench, completions, data, dead_letters, demo, doctor, group, man, publish, segment, server, subscribe,
    timer, topic, transaction,
};
use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ringmq_server::limits::LISTEN_DEFAULT;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Two commands to begin with:
  ringmq server --dev                      a server on ./ringmq-data, loopback only
  ringmq pub hello 'first message'         ... and `ringmq sub hello` reads it

Exit codes: 0 done, 1 failed, 2 wrong use, 3 damage found;
`ringmq server --help` lists those of the server.";

/// A durable message log on io_uring: an acknowledged message is on disk.
#[derive(Parser)]
#[command(
    name = "ringmq",
    version,
    styles = STYLES,
    after_help = EXAMPLES,
    disable_help_subcommand = true,
    propagate_version = true
)]
pub(crate) struct Cli {
    /// What every verb takes.
    #[command(flatten)]
    pub(crate) common: Common,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// Answer in JSON: one object, or one a line for lists.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Colour: by default on a terminal, unless NO_COLOR is set.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColourChoice,
}

/// Where client verbs find the server.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// The server's address; any of its ports will do.
    #[arg(long, value_name = "ADDR", env = "RINGMQ_SERVER", default_value = LISTEN_DEFAULT)]
    pub(crate) server: String,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColourChoice {
    Auto,
    Always,
    Never,
}

/// The verbs.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Run a server.
    Server(Box<server::ServerArgs>),
    /// Publish one record, or one a line from stdin.
    Pub(Box<publish::PubArgs>),
    /// Read a topic, each partition in order.
    Sub(Box<subscribe::SubArgs>),
    /// Make, list, show, change and remove topics.
    Topic(topic::TopicArgs),
    /// Consumer groups: members, positions and lag.
    Group(group::GroupArgs),
    /// Transactions that are open or parked.
    Txn(transaction::TxnArgs),
    /// Messages that wait for their time.
    Timer(timer::TimerArgs),
    /// Dead letters, and putting them back.
    Dlq(dead_letters::DlqArgs),
    /// Walk `kill -9` and five scenarios with real clients in under 30 seconds, and prove each claim.
    Demo(demo::DemoArgs),
    /// Check whether this machine is fit for a server, and say what to do where it is not.
    Doctor(doctor::DoctorArgs),
    /// See, check and save what is on the disk; a server may run on it.
    Segment(segment::SegmentArgs),
    /// What is in a data directory as a whole; repair, back up, restore.
    Data(data::DataArgs),
    /// Measure this machine, and how near a server comes to it.
    Bench(Box<bench::BenchArgs>),
    /// Print a completion script for a shell.
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write all pages into a directory.
    Man(man::ManArgs),
}

impl Common {
    /// Whether to colour what goes to a stream that is, or is not, a terminal.
    pub(crate) fn colour(&self, terminal: bool) -> bool {
        match self.color {
            ColourChoice::Always => true,
            ColourChoice::Never => false,
            ColourChoice::Auto => {
                terminal
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_key_of_the_configuration_is_a_flag() {
        let command = Cli::command();
        let server = command.find_subcommand("server").unwrap();
        for key in ringmq_server::config::KEYS {
            assert!(server.get_arguments().any(|arg| arg.get_long() == Some(key)), "--{key}");
        }
    }

    #[test]
    fn every_verb_shows_examples() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.has_subcommands() {
                command.get_subcommands().for_each(|verb| check(verb, &path));
            } else {
                let help = command.get_after_help().unwrap_or_default().to_string();
                assert!(help.contains("ringmq "), "{path} has no example");
            }
        }
        check(&Cli::command(), "");
    }
}
