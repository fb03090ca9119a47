//! Log lines: structured, on stderr, never one per message.
//!
//! Human on a terminal and JSON otherwise, unless told; the level can change while the server runs.

use crate::config::{LogFormat, LogLevel};
use std::io::IsTerminal;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

/// Changes the level of the running log.
#[derive(Debug)]
pub struct LevelHandle(Option<reload::Handle<LevelFilter, Registry>>);

/// Starts logging. Where the process logs already (tests), it goes on as it was.
pub fn start(level: LogLevel, format: LogFormat) -> LevelHandle {
    let terminal = std::io::stderr().is_terminal();
    let human = match format {
        LogFormat::Human => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let (filter, handle) = reload::Layer::new(filter_of(level));
    let registry = tracing_subscriber::registry().with(filter);
    let started = if human {
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        registry
            .with(fmt::layer().with_writer(std::io::stderr).with_ansi(colour).with_target(false))
            .try_init()
    } else {
        registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).with_target(false))
            .try_init()
    };
    LevelHandle(started.is_ok().then_some(handle))
}

impl LevelHandle {
    /// Logs from `level` on.
    pub fn set(&self, level: LogLevel) {
        if let Some(handle) = &self.0 {
            let _ = handle.reload(filter_of(level));
        }
    }
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
