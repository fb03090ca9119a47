//! A server from its configuration to its exit code.

use crate::admin::{self, AdminState};
use crate::banner::{Banner, Opening};
use crate::config::{Config, ConfigError, Said};
use crate::control::{Control, Ending, Signals, time_left};
use crate::exit_code::{Fatal, FatalReason};
use crate::logging::{self, LevelHandle};
use crate::metrics::Metrics;
use crate::node::{Node, NodeOptions, ShardState};
use crate::{descriptors, limits};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Wrong use of the command line or of the configuration.
pub const EXIT_WRONG_USE: u8 = 2;

/// What the command line asks for.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// Keys said by flags.
    pub flags: Said,
    /// The file of `--config`.
    pub config_file: Option<PathBuf>,
    /// The banner as JSON.
    pub json: bool,
}

impl Launch {
    /// Flags beat the file, the file beats the defaults.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let file = self.config_file.as_deref().map(Said::read).transpose()?.unwrap_or_default();
        Config::new(self.flags.clone().over(file))
    }
}

/// How the configuration is read again, and what of it is applied to the log.
#[derive(Debug)]
pub struct Reload {
    launch: Launch,
    /// The level of the running log.
    pub level: LevelHandle,
}

impl Reload {
    /// The configuration as the file says now.
    pub fn read(&self) -> Result<Config, ConfigError> {
        self.launch.config()
    }
}

/// Runs a server until it is told to stop, or cannot go on.
///
/// The caller must leave the process with what this returns: after a forced stop, threads may still run.
pub fn run(launch: Launch) -> ExitCode {
    panics_are_crashes();
    let banner = Banner::new(launch.json);
    let config = match launch.config() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("ringmq: {error}");
            return ExitCode::from(EXIT_WRONG_USE);
        }
    };
    match run_config(launch, config, banner) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            banner.fatal(&fatal);
            ExitCode::from(fatal.reason.exit_code())
        }
    }
}

/// In every build, not only where the profile says so: a server with a dead shard must not look alive.
fn panics_are_crashes() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn run_config(launch: Launch, config: Config, banner: Banner) -> Result<(), Fatal> {
    let started = Instant::now();
    let level = logging::start(config.log_level, config.log_format);
    let connections_asked = config.node.connections_max;
    let mut options = config.node.clone();
    options.connections_max = descriptors::raise(connections_asked)?;
    if options.connections_max < connections_asked {
        tracing::warn!(
            asked = connections_asked,
            fit = options.connections_max,
            "RLIMIT_NOFILE leaves room for fewer connections than connections-max"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Fatal::new(FatalReason::Other, format!("the control thread cannot start: {error}"))
    })?;
    let _in_runtime = runtime.enter();
    let mut signals = Signals::new()
        .map_err(|error| Fatal::new(FatalReason::Other, format!("signals cannot be heard: {error}")))?;

    // The node first: of two servers on one directory, the second should hear about the directory, not a port.
    let mut node = start_node(&options, started)?;
    let facts = node.facts();
    let admin = match config.admin_listen.map(admin_bind).transpose() {
        Ok(admin) => admin,
        Err(fatal) => {
            node.stop_now();
            let _ = node.join(limits::STOP_DEADLINE);
            return Err(fatal);
        }
    };
    for fallback in &facts.fallbacks {
        tracing::warn!(fallback, "io_uring: going on without");
    }
    let shards = node.shards().len();
    banner.start(&Opening { data: &config.node.data, memory: config.node.memory, shards, facts: &facts });

    let state = Arc::new(AdminState {
        shards: node.shards().to_vec(),
        metrics: Metrics::new(node.shards(), &facts, started),
        draining: Arc::new(AtomicBool::new(false)),
    });
    let draining = Arc::clone(&state.draining);
    let admin = admin.map(|(listener, address)| {
        runtime.spawn(async move {
            if let Err(error) = admin::serve(listener, state).await {
                tracing::error!(%error, "the admin listener ended");
            }
        });
        address
    });
    let reload = Reload { launch, level };
    let mut control = Control::new(&mut node, banner, config, reload, admin, draining, started);
    let ending = runtime.block_on(control.run(&mut signals));
    let drain_started = control.drain_started.unwrap_or_else(Instant::now);
    finish(node, ending, drain_started, banner)
}

/// Starts the shards. A server that was killed a moment ago may still hold the address (see the limit).
fn start_node(options: &NodeOptions, started: Instant) -> Result<Node, Fatal> {
    loop {
        match Node::start(options) {
            Err(fatal)
                if fatal.reason == FatalReason::AddressInUse
                    && started.elapsed() < limits::ADDRESS_PATIENCE =>
            {
                tracing::debug!(%fatal, "trying again");
                std::thread::sleep(limits::ADDRESS_PAUSE);
            }
            result => return result,
        }
    }
}

fn admin_bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Fatal> {
    let bound =
        TcpListener::bind(address).and_then(|listener| listener.local_addr().map(|at| (listener, at)));
    bound.map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => FatalReason::AddressInUse,
            _ => FatalReason::Other,
        };
        Fatal::new(
            reason,
            format!(
                "the admin page cannot listen on {address}: {error}. Choose another with --admin-listen ADDR, a free \
                 port with --admin-listen 127.0.0.1:0, or none with --admin-listen none"
            ),
        )
    })
}

/// Joins the shards and says how it went.
fn finish(mut node: Node, ending: Ending, drain_started: Instant, banner: Banner) -> Result<(), Fatal> {
    let shards = node.shards().to_vec();
    let joined = match ending {
        Ending::Drained => node.join(time_left(drain_started)),
        Ending::SecondSignal | Ending::Deadline | Ending::NoShardLeft => {
            node.stop_now();
            node.join(limits::STOP_DEADLINE)
        }
    };
    let casualty = shards.iter().enumerate().find_map(|(number, shard)| {
        let reason = match shard.state() {
            ShardState::Refused => FatalReason::DamagedShard,
            ShardState::Poisoned => FatalReason::LogPoisoned,
            _ => return None,
        };
        Some(Fatal::new(reason, format!("shard {number}: {}", shard.detail())))
    });
    let forced = |how: &str| {
        banner.stopped(drain_started.elapsed(), Some(how));
        Err(Fatal::new(
            FatalReason::Other,
            format!("{how}; nothing acknowledged is lost, the next start recovers"),
        ))
    };
    match (ending, joined, casualty) {
        (Ending::SecondSignal, ..) => forced("a second signal stopped the server before it was drained"),
        (Ending::Deadline, ..) => forced(&format!(
            "the drain was not over after {} s and was cut",
            limits::DRAIN_DEADLINE.as_secs()
        )),
        (_, Err(fatal), _) | (_, Ok(()), Some(fatal)) => {
            banner.stopped(drain_started.elapsed(), Some(fatal.reason.title()));
            Err(fatal)
        }
        (Ending::NoShardLeft, Ok(()), None) => forced("a shard ended by itself"),
        (Ending::Drained, Ok(()), None) => {
            banner.stopped(drain_started.elapsed(), None);
            Ok(())
        }
    }
}
