//! What a server is told: defaults, then the file of `--config`, then flags; and the relations between them.
//!
//! Owns      every key, its default and its check. A key has the same name as a flag and in the file.
//! Invariant C1  A `Config` is checked: whatever holds one may start a node with it.
//! Ignorant  of clap (the flags are in tools/src/server.rs), of shards, of what is on the disk.

use crate::limits;
use crate::node::{Durability, NodeOptions};
use crate::shard::{LateOptions, Timings};
use crate::units::{Size, Span};
use ringmq_format::limits as format_limits;
use serde::Deserialize;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// Why a configuration was refused: what is wrong, where, and what to do. Wrong use, exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

fn refuse<T>(message: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(message.into()))
}

/// Least severe line that is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One object a line.
    Json,
}

/// Every key, as far as it was said: in the file, or on the command line.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Said {
    pub dev: Option<bool>,
    pub data: Option<PathBuf>,
    pub listen: Option<String>,
    pub admin_listen: Option<String>,
    pub insecure: Option<bool>,
    pub shards: Option<u16>,
    pub memory: Option<Size>,
    pub disk_limit: Option<Size>,
    pub segment_size: Option<Size>,
    pub retain_time: Option<Span>,
    pub retain_size: Option<Size>,
    pub auto_create_topics: Option<bool>,
    pub connections_max: Option<u32>,
    pub delay_max: Option<Span>,
    pub check_after: Option<Span>,
    pub check_every: Option<Span>,
    pub checks_max: Option<u16>,
    #[serde(deserialize_with = "durability")]
    #[serde(default)]
    pub durability: Option<Durability>,
    pub pin: Option<bool>,
    pub log_level: Option<LogLevel>,
    pub log_format: Option<LogFormat>,
}

/// The keys of the file, which are the names of the flags.
pub const KEYS: [&str; 21] = [
    "dev",
    "data",
    "listen",
    "admin-listen",
    "insecure",
    "shards",
    "memory",
    "disk-limit",
    "segment-size",
    "retain-time",
    "retain-size",
    "auto-create-topics",
    "connections-max",
    "delay-max",
    "check-after",
    "check-every",
    "checks-max",
    "durability",
    "pin",
    "log-level",
    "log-format",
];

fn durability<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Durability>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "dsync" => Ok(Some(Durability::Dsync)),
        "flush" => Ok(Some(Durability::Flush)),
        other => Err(serde::de::Error::custom(format!("'{other}' is not a durability call; dsync or flush"))),
    }
}

impl Said {
    /// Reads the file of `--config`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display();
        let metadata = std::fs::metadata(path)
            .map_err(|error| ConfigError(format!("cannot read the configuration {shown}: {error}")))?;
        if metadata.len() > limits::CONFIG_SIZE_MAX {
            return refuse(format!("{shown} has {}; no configuration is that large", Size(metadata.len())));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError(format!("cannot read the configuration {shown}: {error}")))?;
        Self::parse(&text, &shown.to_string())
    }

    /// Reads TOML; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| ConfigError(format!("{origin}: {error}")))?;
        for key in table.get_ref().keys() {
            let name = key.get_ref().as_ref();
            if !KEYS.contains(&name) {
                let line = text[..key.span().start].matches('\n').count() + 1;
                return refuse(format!(
                    "{origin}, line {line}: unknown key '{name}'{}",
                    unknown_key_cure(name)
                ));
            }
        }
        toml::from_str(text).map_err(|error| ConfigError(format!("{origin}: {error}")))
    }

    /// What is said here wins over `below`.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            dev: self.dev.or(below.dev),
            data: self.data.or(below.data),
            listen: self.listen.or(below.listen),
            admin_listen: self.admin_listen.or(below.admin_listen),
            insecure: self.insecure.or(below.insecure),
            shards: self.shards.or(below.shards),
            memory: self.memory.or(below.memory),
            disk_limit: self.disk_limit.or(below.disk_limit),
            segment_size: self.segment_size.or(below.segment_size),
            retain_time: self.retain_time.or(below.retain_time),
            retain_size: self.retain_size.or(below.retain_size),
            auto_create_topics: self.auto_create_topics.or(below.auto_create_topics),
            connections_max: self.connections_max.or(below.connections_max),
            delay_max: self.delay_max.or(below.delay_max),
            check_after: self.check_after.or(below.check_after),
            check_every: self.check_every.or(below.check_every),
            checks_max: self.checks_max.or(below.checks_max),
            durability: self.durability.or(below.durability),
            pin: self.pin.or(below.pin),
            log_level: self.log_level.or(below.log_level),
            log_format: self.log_format.or(below.log_format),
        }
    }
}

fn unknown_key_cure(name: &str) -> String {
    let nearest = KEYS.iter().map(|key| (edit_distance(name, key), key)).min();
    match nearest {
        Some((distance, key)) if distance <= 1 + key.len() / 3 => format!("; did you mean '{key}'?"),
        _ => format!("; the keys are {}", KEYS.join(", ")),
    }
}

/// Letters to insert, delete or replace; `_` counts as `-`.
fn edit_distance(a: &str, b: &str) -> usize {
    let b = b.chars().collect::<Vec<_>>();
    let mut row = (0..=b.len()).collect::<Vec<_>>();
    for (i, mut letter) in a.chars().map(|c| c.to_ascii_lowercase()).enumerate() {
        if letter == '_' {
            letter = '-';
        }
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A checked configuration (C1).
#[derive(Clone, Debug)]
pub struct Config {
    /// What the node is started with.
    pub node: NodeOptions,
    /// Where operators look; none with `--admin-listen none`.
    pub admin_listen: Option<SocketAddr>,
    /// Loopback only, topics on first use.
    pub dev: bool,
    /// Least severe line that is logged.
    pub log_level: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Config {
    /// Fills in the defaults and checks the relations.
    pub fn new(said: Said) -> Result<Self, ConfigError> {
        let dev = said.dev.unwrap_or(false);
        let late = late_options(&said)?;
        let data = match said.data {
            Some(data) if data.as_os_str().is_empty() => {
                return refuse("data: the name of a directory is empty");
            }
            Some(data) => data,
            None if dev => PathBuf::from(limits::DATA_DEV),
            None => {
                return refuse(format!(
                    "no data directory: say where with --data DIR (or `data` in the file of --config), \
                     or try it out with --dev, which uses {}",
                    limits::DATA_DEV
                ));
            }
        };
        let listen = address("listen", said.listen.as_deref().unwrap_or(limits::LISTEN_DEFAULT))?;
        let admin_listen = match said.admin_listen.as_deref().unwrap_or(limits::ADMIN_LISTEN_DEFAULT) {
            "none" => None,
            text => Some(address("admin-listen", text)?),
        };
        let insecure = said.insecure.unwrap_or(false);
        check_reach("listen", listen.ip(), dev, insecure)?;
        if let Some(admin) = admin_listen {
            check_reach("admin-listen", admin.ip(), dev, insecure)?;
        }
        let node = NodeOptions {
            data,
            listen,
            shards: said.shards,
            memory: said
                .memory
                .map_or(if dev { limits::MEMORY_DEV } else { limits::MEMORY_DEFAULT }, |size| size.0),
            disk_limit: said.disk_limit.map(|size| size.0),
            segment_size: said.segment_size.map_or(limits::SEGMENT_SIZE_DEFAULT, |size| size.0),
            retain_time_ms: said.retain_time.map(|span| span.0),
            retain_size: said.retain_size.map(|size| size.0),
            auto_create_topics: said.auto_create_topics.unwrap_or(dev),
            connections_max: said.connections_max.unwrap_or(limits::CONNECTIONS_DEFAULT),
            late,
            durability: said.durability,
            pin: said.pin.unwrap_or(true),
        };
        check_sizes(&node)?;
        check_ports(&node, admin_listen)?;
        let (log_level, log_format) =
            (said.log_level.unwrap_or_default(), said.log_format.unwrap_or_default());
        Ok(Self { node, admin_listen, dev, log_level, log_format })
    }

    /// Names of the keys that `newer` says otherwise and that only a restart can apply.
    pub fn needs_restart(&self, newer: &Self) -> Vec<&'static str> {
        let (a, b) = (&self.node, &newer.node);
        [
            ("data", a.data != b.data),
            ("listen", a.listen != b.listen),
            ("admin-listen", self.admin_listen != newer.admin_listen),
            ("dev", self.dev != newer.dev),
            ("shards", a.shards != b.shards),
            ("memory", a.memory != b.memory),
            ("disk-limit", a.disk_limit != b.disk_limit),
            ("segment-size", a.segment_size != b.segment_size),
            ("auto-create-topics", a.auto_create_topics != b.auto_create_topics),
            ("connections-max", a.connections_max != b.connections_max),
            ("delay-max", a.late.delay_max_ms != b.late.delay_max_ms),
            ("check-after", a.late.timings.first_ms != b.late.timings.first_ms),
            ("check-every", a.late.timings.every_ms != b.late.timings.every_ms),
            ("checks-max", a.late.timings.checks_max != b.late.timings.checks_max),
            ("durability", a.durability != b.durability),
            ("pin", a.pin != b.pin),
            ("log-format", self.log_format != newer.log_format),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

fn late_options(said: &Said) -> Result<LateOptions, ConfigError> {
    let default = LateOptions::default();
    let millis = |key: &str, span: Option<Span>, default: u32| match span {
        None => Ok(default),
        Some(Span(ms)) if ms > 0 && ms <= limits::CHECK_SPAN_MAX_MS => Ok(ms as u32),
        Some(span) => {
            refuse(format!("{key}: {span} is not between 1ms and {}", Span(limits::CHECK_SPAN_MAX_MS)))
        }
    };
    let timings = Timings {
        first_ms: millis("check-after", said.check_after, default.timings.first_ms)?,
        every_ms: millis("check-every", said.check_every, default.timings.every_ms)?,
        checks_max: said.checks_max.unwrap_or(default.timings.checks_max),
    };
    if timings.checks_max == 0 {
        return refuse("checks-max: 0 would park a transaction before anybody was asked");
    }
    let delay_max_ms = said.delay_max.map_or(default.delay_max_ms, |span| span.0);
    if delay_max_ms == 0 || delay_max_ms > limits::DELAY_MAX_MS {
        return refuse(format!("delay-max: not between 1ms and {}", Span(limits::DELAY_MAX_MS)));
    }
    Ok(LateOptions { timings, delay_max_ms })
}

fn address(key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| {
        ConfigError(format!(
            "{key}: '{text}' is not an address; write IP:PORT like {}, or [::1]:7700 (port 0: a free one)",
            limits::LISTEN_DEFAULT
        ))
    })
}

fn check_reach(key: &str, ip: IpAddr, dev: bool, insecure: bool) -> Result<(), ConfigError> {
    if ip.is_loopback() {
        return Ok(());
    }
    if dev {
        return refuse(format!("{key}: {ip} can be reached from outside; --dev listens on loopback only"));
    }
    if insecure {
        return Ok(());
    }
    refuse(format!(
        "{key}: {ip} can be reached from outside, and there is no TLS and no login yet. Ways out: listen on \
         127.0.0.1 and reach it through an SSH tunnel or a TLS proxy; or, on a network where everybody may read and \
         write everything, say --insecure (`insecure = true` in the file)"
    ))
}

fn check_sizes(node: &NodeOptions) -> Result<(), ConfigError> {
    let shards = u64::from(node.shards.unwrap_or(1));
    if node.shards.is_some_and(|shards| shards == 0 || shards > format_limits::SHARDS_MAX) {
        return refuse(format!("shards: {shards} is not between 1 and {}", format_limits::SHARDS_MAX));
    }
    let memory_min = limits::MEMORY_PER_SHARD_MIN * shards;
    if node.memory < memory_min {
        return refuse(format!(
            "memory: {} is too little for {}; at least {}",
            Size(node.memory),
            plural(shards, "shard"),
            Size(memory_min)
        ));
    }
    let (smallest, largest) = (format_limits::SEGMENT_SIZE_MIN, format_limits::SEGMENT_SIZE_MAX);
    if node.segment_size < smallest || node.segment_size > largest {
        return refuse(format!(
            "segment-size: {} is not between {} and {}",
            Size(node.segment_size),
            Size(smallest),
            Size(largest)
        ));
    }
    if !node.segment_size.is_multiple_of(format_limits::BLOCK_SIZE as u64) {
        return refuse(format!("segment-size: {} bytes is not a multiple of 4K", node.segment_size));
    }
    if let Some(disk_limit) = node.disk_limit {
        let disk_min = limits::DISK_PER_SHARD_MIN * shards;
        if disk_limit < disk_min {
            return refuse(format!(
                "disk-limit: {} is too little for {}; at least {}",
                Size(disk_limit),
                plural(shards, "shard"),
                Size(disk_min)
            ));
        }
        if let Some(retain_size) = node.retain_size.filter(|size| *size >= disk_limit) {
            return refuse(format!(
                "retain-size: {} is not below disk-limit ({}), so producers would be stopped before anything is \
                 removed; lower retain-size or raise disk-limit",
                Size(retain_size),
                Size(disk_limit)
            ));
        }
    }
    if node.retain_size == Some(0) || node.retain_time_ms == Some(0) {
        return refuse(
            "retain-size and retain-time: 0 would keep nothing; leave them out to keep everything",
        );
    }
    if node.connections_max == 0 || node.connections_max > limits::CONNECTIONS_MAX {
        return refuse(format!(
            "connections-max: {} is not between 1 and {}",
            node.connections_max,
            limits::CONNECTIONS_MAX
        ));
    }
    Ok(())
}

fn check_ports(node: &NodeOptions, admin: Option<SocketAddr>) -> Result<(), ConfigError> {
    let (base, shards) = (node.listen.port(), node.shards.unwrap_or(1));
    if base == 0 {
        return Ok(());
    }
    let Some(last) = base.checked_add(shards) else {
        return refuse(format!(
            "listen: shard i listens on port {base} + 1 + i, which passes 65535 with {}; choose a lower port",
            plural(shards.into(), "shard")
        ));
    };
    match admin {
        Some(admin) if admin.port() != 0 && (base..=last).contains(&admin.port()) => refuse(format!(
            "admin-listen: port {} is one of the ports {base} to {last} that the shards listen on; choose another",
            admin.port()
        )),
        _ => Ok(()),
    }
}

/// `1 shard`, `2 shards`.
pub fn plural(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
