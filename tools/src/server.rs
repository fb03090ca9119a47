//! `ringmq server`: flags into the server's configuration. Defaults and checks are the server's.

use crate::cli::Common;
use clap::ValueEnum;
use ringmq_server::config::{LogFormat, LogLevel, Said};
use ringmq_server::node::Durability;
use ringmq_server::run::Launch;
use ringmq_server::units::{Size, Span};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  ringmq server --dev
  ringmq server --data /var/lib/ringmq --memory 2G --retain-time 7d
  ringmq server --config /etc/ringmq/ringmq.toml --json
  ringmq server --dev --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0      free ports, see the banner

The file of --config is TOML, its keys are the flags' names: `retain-time = \"7d\"`.
Flags win over the file.

Signals: SIGTERM and SIGINT drain (5 s at most), a second one stops at once;
SIGHUP reads --config again.

Exit codes:
   0  stopped cleanly
   1  stopped by force, or failed in a way that has no code of its own
   2  wrong flags or configuration
  10  io_uring refused: the kernel, a seccomp profile or kernel.io_uring_disabled
  11  data directory in use by another server
  12  data directory not writable
  13  the file system has no O_DIRECT
  14  damaged shard: recovery refuses it, nothing was changed
  15  address in use
  16  log poisoned: a write or flush failed while the server ran
  17  too few file descriptors";

/// Run a server.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_override_self = true)]
pub(crate) struct ServerArgs {
    /// Try it out: data in ./ringmq-data, loopback only, topics on first use, 256 MiB.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    dev: Option<bool>,
    /// Read keys from a TOML file; flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory; made if it is not there.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where clients connect [default: 127.0.0.1:7700]. Shard i listens on port + 1 + i; port 0: free ports.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where /livez, /readyz and /metrics are [default: 127.0.0.1:7780]; "none": nowhere.
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<String>,
    /// Allow addresses that can be reached from outside, without TLS and login.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    insecure: Option<bool>,
    /// Number of shards; fixed when the directory is made.
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Memory, at most [default: 1G; with --dev 256M].
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Disk, at most; at the limit producers are refused until space returns [default: the disk].
    #[arg(long, value_name = "SIZE")]
    disk_limit: Option<Size>,
    /// Largest segment file, 4M to 1G [default: 256M].
    #[arg(long, value_name = "SIZE")]
    segment_size: Option<Size>,
    /// Remove sealed segments older than this, like 7d [default: keep].
    #[arg(long, value_name = "TIME")]
    retain_time: Option<Span>,
    /// Remove the oldest sealed segments above this size, all shards together [default: keep].
    #[arg(long, value_name = "SIZE")]
    retain_size: Option<Size>,
    /// Make a topic of one partition when it is first used [default: only with --dev].
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    auto_create_topics: Option<bool>,
    /// Connections, at most [default: 1024].
    #[arg(long, value_name = "N")]
    connections_max: Option<u32>,
    /// Longest delay of a message, unless its topic says otherwise [default: 40d].
    #[arg(long, value_name = "TIME")]
    delay_max: Option<Span>,
    /// Age of a transaction that nobody ended at its first check [default: 6s].
    #[arg(long, value_name = "TIME")]
    check_after: Option<Span>,
    /// Time between two checks of a transaction [default: 30s].
    #[arg(long, value_name = "TIME")]
    check_every: Option<Span>,
    /// Checks after which a transaction waits for an operator [default: 15].
    #[arg(long, value_name = "N")]
    checks_max: Option<u16>,
    /// How writes become durable, for a new directory [default: the faster one, measured].
    #[arg(long, value_name = "CALL")]
    durability: Option<DurabilityFlag>,
    /// Pin each shard to a core [default: true].
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pin: Option<bool>,
    /// Least severe line that is logged [default: info].
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevelFlag>,
    /// Log lines on stderr [default: auto: human on a terminal, else json].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormatFlag>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DurabilityFlag {
    Dsync,
    Flush,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevelFlag {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatFlag {
    Auto,
    Human,
    Json,
}

/// Runs a server until it stops.
pub(crate) fn run(args: ServerArgs, common: &Common) -> ExitCode {
    let config_file = args.config.clone();
    ringmq_server::run::run(Launch { flags: said(args), config_file, json: common.json })
}

fn said(args: ServerArgs) -> Said {
    Said {
        dev: args.dev,
        data: args.data,
        listen: args.listen,
        admin_listen: args.admin_listen,
        insecure: args.insecure,
        shards: args.shards,
        memory: args.memory,
        disk_limit: args.disk_limit,
        segment_size: args.segment_size,
        retain_time: args.retain_time,
        retain_size: args.retain_size,
        auto_create_topics: args.auto_create_topics,
        connections_max: args.connections_max,
        delay_max: args.delay_max,
        check_after: args.check_after,
        check_every: args.check_every,
        checks_max: args.checks_max,
        durability: args.durability.map(|call| match call {
            DurabilityFlag::Dsync => Durability::Dsync,
            DurabilityFlag::Flush => Durability::Flush,
        }),
        pin: args.pin,
        log_level: args.log_level.map(|level| match level {
            LogLevelFlag::Error => LogLevel::Error,
            LogLevelFlag::Warn => LogLevel::Warn,
            LogLevelFlag::Info => LogLevel::Info,
            LogLevelFlag::Debug => LogLevel::Debug,
            LogLevelFlag::Trace => LogLevel::Trace,
        }),
        log_format: args.log_format.map(|format| match format {
            LogFormatFlag::Auto => LogFormat::Auto,
            LogFormatFlag::Human => LogFormat::Human,
            LogFormatFlag::Json => LogFormat::Json,
        }),
    }
}

#[cfg(test)]
mod tests {
    use ringmq_server::exit_code::FatalReason;

    #[test]
    fn help_lists_every_exit_code() {
        for reason in FatalReason::NUMBERED {
            let line = format!("\n  {}  ", reason.exit_code());
            assert!(super::EXAMPLES.contains(&line), "{reason:?}");
        }
    }
}
