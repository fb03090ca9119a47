//! What a server says on stdout: a few lines for people, or the same as one JSON object each.
//!
//! Scripts find the ports in the `ready` object. A closed stdout never stops a server: errors are dropped.

use crate::exit_code::Fatal;
use crate::node::{Durability, NodeAddresses, NodeFacts, ShardState};
use crate::units::Size;
use serde_json::{Value, json};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A shard that does not serve: its number, its state and why.
pub type Casualty = (usize, ShardState, String);

/// Every state of a shard, for dashboards.
pub const STATES: [ShardState; 7] = [
    ShardState::Starting,
    ShardState::Recovering,
    ShardState::Ready,
    ShardState::Draining,
    ShardState::Stopped,
    ShardState::Refused,
    ShardState::Poisoned,
];

/// The voice of one server.
#[derive(Clone, Copy, Debug)]
pub struct Banner {
    json: bool,
}

/// What the first line says.
#[derive(Clone, Debug)]
pub struct Opening<'a> {
    /// The data directory.
    pub data: &'a PathBuf,
    /// Memory budget in bytes.
    pub memory: u64,
    /// Number of shards.
    pub shards: usize,
    /// What the node found.
    pub facts: &'a NodeFacts,
}

impl Banner {
    /// People's lines, or JSON.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    fn say(self, human: &str, event: Value) {
        let mut out = std::io::stdout().lock();
        let text = if self.json { event.to_string() } else { human.to_owned() };
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// Started; recovery may still go on.
    pub fn start(self, opening: &Opening<'_>) {
        let Opening { data, memory, shards, facts } = opening;
        let mut human = format!(
            "ringmq {}  data {} ({}, O_DIRECT {}{})  io_uring {} ok  {shards} shard{}  memory {}",
            env!("CARGO_PKG_VERSION"),
            data.display(),
            facts.filesystem,
            facts.dio_align,
            if facts.new_directory { ", new" } else { "" },
            facts.kernel,
            if *shards == 1 { "" } else { "s" },
            Size(*memory),
        );
        for fallback in &facts.fallbacks {
            human += &format!("\nnote: {fallback}");
        }
        self.say(
            &human,
            json!({
                "event": "start",
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "data": data.display().to_string(),
                "new_directory": facts.new_directory,
                "filesystem": facts.filesystem,
                "dio_align": facts.dio_align,
                "kernel": facts.kernel,
                "durability": durability_name(facts.durability),
                "node_id": format!("{:032x}", facts.node_id),
                "shards": shards,
                "memory": memory,
                "fallbacks": facts.fallbacks,
            }),
        );
    }

    /// Clients are served.
    pub fn ready(
        self,
        elapsed: Duration,
        addresses: &NodeAddresses,
        admin: Option<SocketAddr>,
        casualties: &[Casualty],
        dev: Option<&Path>,
    ) {
        let mut human = format!("ready in {:.2} s\n  native     {}", elapsed.as_secs_f64(), addresses.base);
        human += &ports_line(&addresses.shard_ports);
        if let Some(admin) = admin {
            human += &format!("\n  admin      http://{admin}   /metrics  /livez  /readyz");
        }
        for (shard, state, detail) in casualties {
            human += &format!("\n  shard {shard}    {}: {detail}", state_name(*state).to_uppercase());
        }
        if dev.is_some() {
            let server = server_argument(addresses.base);
            human += &format!(
                "\ntry:  ringmq pub {server}hello 'first message'      ringmq sub {server}hello      ringmq demo"
            );
        }
        let casualties = casualties.iter().map(casualty_json).collect::<Vec<_>>();
        self.say(
            &human,
            json!({
                "event": "ready",
                "seconds": elapsed.as_secs_f64(),
                "native": addresses.base.to_string(),
                "shard_ports": addresses.shard_ports,
                "admin": admin.map(|address| address.to_string()),
                "degraded": casualties,
            }),
        );
    }

    /// A signal was heard and the drain begins.
    pub fn draining(self, signal: &str, deadline: Duration) {
        let seconds = deadline.as_secs();
        self.say(
            &format!("{signal}: draining, at most {seconds} s; once more stops now"),
            json!({"event": "draining", "signal": signal, "deadline_seconds": seconds}),
        );
    }

    /// The end. `how` says what happened when it was not clean.
    pub fn stopped(self, elapsed: Duration, how: Option<&str>) {
        let seconds = elapsed.as_secs_f64();
        let human = match how {
            None => format!("stopped cleanly in {seconds:.2} s"),
            Some(how) => format!("stopped: {how}"),
        };
        self.say(&human, json!({"event": "stopped", "clean": how.is_none(), "seconds": seconds, "how": how}));
    }

    /// Cannot go on: a line on stderr and, for programs, an object on stdout.
    pub fn fatal(self, fatal: &Fatal) {
        let code = fatal.reason.exit_code();
        let _ = writeln!(std::io::stderr().lock(), "ringmq: {fatal} (exit {code})");
        if self.json {
            self.say(
                "",
                json!({
                    "event": "fatal",
                    "reason": fatal.reason.name(),
                    "exit_code": code,
                    "message": fatal.message,
                }),
            );
        }
    }
}

/// Only where there is something to choose: several shards.
fn ports_line(ports: &[u16]) -> String {
    let dense = ports.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1]));
    match ports {
        [] | [_] => String::new(),
        [first, .., last] if dense => format!("   shards on ports {first} to {last}"),
        _ => {
            let list = ports.iter().map(u16::to_string).collect::<Vec<_>>();
            format!("   shards on ports {}", list.join(" "))
        }
    }
}

/// `--server ADDR ` where clients would not find the server by themselves.
fn server_argument(base: SocketAddr) -> String {
    if base.to_string() == crate::limits::LISTEN_DEFAULT {
        String::new()
    } else {
        format!("--server {base} ")
    }
}

/// A word for programs.
pub fn state_name(state: ShardState) -> &'static str {
    match state {
        ShardState::Starting => "starting",
        ShardState::Recovering => "recovering",
        ShardState::Ready => "ready",
        ShardState::Draining => "draining",
        ShardState::Stopped => "stopped",
        ShardState::Refused => "refused",
        ShardState::Poisoned => "poisoned",
    }
}

/// The name of a durability call, as the flag takes it.
pub fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Dsync => "dsync",
        Durability::Flush => "flush",
    }
}

fn casualty_json((shard, state, detail): &Casualty) -> Value {
    json!({"shard": shard, "state": state_name(*state), "detail": detail})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_range_or_a_list() {
        assert_eq!(ports_line(&[7701]), "");
        assert_eq!(ports_line(&[7701, 7702, 7703]), "   shards on ports 7701 to 7703");
        assert_eq!(ports_line(&[40_001, 39_000]), "   shards on ports 40001 39000");
    }

    #[test]
    fn hints_name_the_server_only_where_needed() {
        assert_eq!(server_argument(([127, 0, 0, 1], 7700).into()), "");
        assert_eq!(server_argument(([127, 0, 0, 1], 9000).into()), "--server 127.0.0.1:9000 ");
    }
}
