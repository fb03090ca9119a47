//! The control thread's loop: signals, readiness, drain. It looks at the shards' atomics and calls the node.
//!
//! States  starting -[every shard settled]-> serving -[SIGTERM, SIGINT]-> draining -[every shard over]-> ended
//!         starting, serving -[no shard left]-> ended; draining -[second signal, deadline]-> ended, forced
//! A shard is settled when it serves, is refused or is poisoned. Refused and poisoned shards are said once, loudly;
//! the others go on. SIGHUP reads the configuration again in every state but draining.
//! Ignorant of clients and of what shards do. Tests: tools/tests/server.rs, with the binary.

use crate::banner::{Banner, Casualty, state_name};
use crate::config::Config;
use crate::limits;
use crate::node::{Node, ShardState};
use crate::notify;
use crate::run::Reload;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Drained; joining the threads says whether cleanly.
    Drained,
    /// A second signal came.
    SecondSignal,
    /// The drain was not over at its deadline.
    Deadline,
    /// Every shard was refused, poisoned before serving, or ended by itself.
    NoShardLeft,
}

/// Everything that the loop works on.
pub struct Control<'a> {
    /// The shards.
    pub node: &'a mut Node,
    /// Where lines for people and programs go.
    pub banner: Banner,
    /// What holds now.
    pub config: Config,
    /// How to read the configuration again.
    pub reload: Reload,
    /// The admin address, once bound.
    pub admin: Option<SocketAddr>,
    /// Told when the drain begins.
    pub draining: Arc<AdminDraining>,
    /// When the process started.
    pub started: Instant,
    /// When the drain began.
    pub drain_started: Option<Instant>,
    told: Vec<ShardState>,
}

/// The flag that turns `/readyz` to 503.
pub type AdminDraining = AtomicBool;

/// Signals are heard from before the shards start, so that none is lost.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

enum Heard {
    Stop(&'static str),
    Reload,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP. Needs the runtime.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn hear(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Heard::Stop("SIGINT"),
            _ = self.hangup.recv() => Heard::Reload,
        }
    }
}

impl<'a> Control<'a> {
    /// A loop for `node`.
    pub fn new(
        node: &'a mut Node,
        banner: Banner,
        config: Config,
        reload: Reload,
        admin: Option<SocketAddr>,
        draining: Arc<AdminDraining>,
        started: Instant,
    ) -> Self {
        let told = vec![ShardState::Starting; node.shards().len()];
        Self { node, banner, config, reload, admin, draining, started, drain_started: None, told }
    }

    /// Runs until the node is to be joined.
    pub async fn run(&mut self, signals: &mut Signals) -> Ending {
        if let Some(ending) = self.start(signals).await {
            return ending;
        }
        self.serve(signals).await
    }

    /// Until every shard is settled.
    async fn start(&mut self, signals: &mut Signals) -> Option<Ending> {
        let mut told_at: Option<Instant> = None;
        loop {
            self.tell_states();
            let states = self.states();
            if states.iter().all(|state| matches!(state, ShardState::Refused | ShardState::Poisoned)) {
                return Some(Ending::NoShardLeft);
            }
            if states.contains(&ShardState::Stopped) {
                return Some(Ending::NoShardLeft);
            }
            if !states.iter().any(|state| matches!(state, ShardState::Starting | ShardState::Recovering)) {
                let dev = self.config.dev.then_some(Path::new(&self.config.node.data));
                let (addresses, casualties) = (self.node.addresses(), self.casualties());
                self.banner.ready(self.started.elapsed(), &addresses, self.admin, &casualties, dev);
                notify::ready(&self.status_line());
                return None;
            }
            if told_at.is_none_or(|at| at.elapsed() >= limits::STATUS_INTERVAL) {
                told_at = Some(Instant::now());
                notify::starting(&self.recovery_line());
            }
            tokio::select! {
                heard = signals.hear() => match heard {
                    Heard::Stop(name) => return Some(self.drain(name, signals).await),
                    Heard::Reload => self.reload(),
                },
                () = sleep(limits::POLL_BUSY) => {}
            }
        }
    }

    /// Until a signal, or until no shard is left.
    async fn serve(&mut self, signals: &mut Signals) -> Ending {
        loop {
            tokio::select! {
                heard = signals.hear() => match heard {
                    Heard::Stop(name) => return self.drain(name, signals).await,
                    Heard::Reload => self.reload(),
                },
                () = sleep(limits::POLL_IDLE) => {}
            }
            if self.tell_states() {
                notify::status(&self.status_line());
            }
            if self.states().contains(&ShardState::Stopped) {
                return Ending::NoShardLeft;
            }
        }
    }

    async fn drain(&mut self, name: &str, signals: &mut Signals) -> Ending {
        let since = Instant::now();
        self.drain_started = Some(since);
        self.draining.store(true, Ordering::Release);
        self.banner.draining(name, limits::DRAIN_DEADLINE);
        notify::stopping("draining");
        self.node.drain();
        let over = |state: &ShardState| {
            matches!(state, ShardState::Stopped | ShardState::Refused | ShardState::Poisoned)
        };
        while !self.states().iter().all(over) {
            if since.elapsed() + limits::STOP_DEADLINE >= limits::DRAIN_DEADLINE {
                return Ending::Deadline;
            }
            tokio::select! {
                heard = signals.hear() => match heard {
                    Heard::Stop(_) => return Ending::SecondSignal,
                    Heard::Reload => tracing::warn!("SIGHUP while draining: nothing is read again"),
                },
                () = sleep(limits::POLL_BUSY) => {}
            }
        }
        self.tell_states();
        Ending::Drained
    }

    /// Applies what may change while the server runs, and names what needs a restart.
    fn reload(&mut self) {
        notify::reloading();
        match self.reload.read() {
            Err(error) => tracing::error!("SIGHUP: the configuration is refused, the old one holds: {error}"),
            Ok(newer) => self.apply(newer),
        }
        notify::ready(&self.status_line());
    }

    fn apply(&mut self, newer: Config) {
        let restart = self.config.needs_restart(&newer);
        let mut applied = Vec::new();
        if self.config.log_level != newer.log_level {
            self.reload.level.set(newer.log_level);
            self.config.log_level = newer.log_level;
            applied.push("log-level");
        }
        let retention = |config: &Config| (config.node.retain_time_ms, config.node.retain_size);
        if retention(&self.config) != retention(&newer) {
            let (time_ms, size) = retention(&newer);
            self.node.set_retention(time_ms, size);
            (self.config.node.retain_time_ms, self.config.node.retain_size) = (time_ms, size);
            applied.push("retention");
        }
        let applied = if applied.is_empty() { "nothing".to_owned() } else { applied.join(", ") };
        if restart.is_empty() {
            tracing::info!(applied, "SIGHUP: the configuration was read again");
        } else {
            let restart = restart.join(", ");
            tracing::warn!(
                applied,
                restart,
                "SIGHUP: the configuration was read again; some keys need a restart"
            );
        }
    }

    fn states(&self) -> Vec<ShardState> {
        self.node.shards().iter().map(|shard| shard.state()).collect()
    }

    /// Says each refusal and each poisoning once. True if there was one.
    fn tell_states(&mut self) -> bool {
        let mut news = false;
        for (number, shard) in self.node.shards().iter().enumerate() {
            let state = shard.state();
            if std::mem::replace(&mut self.told[number], state) == state {
                continue;
            }
            match state {
                ShardState::Refused => {
                    tracing::error!(shard = number, detail = shard.detail(), "recovery refused a shard");
                    news = true;
                }
                // The shard has logged it.
                ShardState::Poisoned => news = true,
                _ => {}
            }
        }
        news
    }

    /// The shards that do not serve.
    fn casualties(&self) -> Vec<Casualty> {
        let shards = self.node.shards().iter().enumerate();
        shards
            .filter(|(_, shard)| matches!(shard.state(), ShardState::Refused | ShardState::Poisoned))
            .map(|(number, shard)| (number, shard.state(), shard.detail()))
            .collect()
    }

    fn status_line(&self) -> String {
        let addresses = self.node.addresses();
        let mut line = format!("serving on {}", addresses.base);
        for (number, state, _) in self.casualties() {
            line += &format!("; shard {number} {}", state_name(state));
        }
        line
    }

    fn recovery_line(&self) -> String {
        let progress = self.node.shards().iter().map(|shard| shard.recovery_progress());
        let (done, total) = progress.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        match (done * 100).checked_div(total) {
            Some(percent) => format!("recovering, {percent} %"),
            None => "starting".to_owned(),
        }
    }
}

/// What is left of the time for a drain that began at `since`.
pub fn time_left(since: Instant) -> Duration {
    limits::DRAIN_DEADLINE.saturating_sub(since.elapsed()).max(limits::STOP_DEADLINE / 2)
}
