//! `ringmq doctor`: is this machine fit for a server, and what to do where it is not.
//!
//! Every check tries the thing itself where it can (a ring, a direct write) and reads the kernel's files where it
//! cannot. It changes nothing: its one file, in the data directory or the nearest one above it, is removed. Only
//! `--recalibrate` writes, and only superblocks.

mod device;
mod disk;
mod machine;
mod recalibrate;

use crate::cli::Common;
use crate::failure::{EXIT_FAILED, Failure};
use crate::screen::{Ink, Screen};
use ringmq_server::limits::DATA_DEV;
use std::path::PathBuf;

pub(crate) use disk::has_direct_io;

const EXAMPLES: &str = "\
Examples:
  ringmq doctor                            for `ringmq server --dev` here
  ringmq doctor --data /var/lib/ringmq
  sudo -u ringmq ringmq doctor --data /var/lib/ringmq --json | jq -c 'select(.status != \"ok\")'
  ringmq doctor --recalibrate --dry-run --data /var/lib/ringmq      after the disk was exchanged

Run it as the user that the server will run as, in the same container: limits and rights are that user's.
--recalibrate needs the directory for itself: stop the server first.
Exit codes: 0 nothing failed, 1 something did.";

/// What to look at.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// The data directory of the server; it need not exist yet.
    #[arg(long, value_name = "DIR", default_value = DATA_DEV)]
    data: PathBuf,
    /// Measure anew which call makes a write durable sooner, and keep the choice for the next start.
    #[arg(long)]
    recalibrate: bool,
    /// Only say what would be chosen.
    #[arg(long, requires = "recalibrate")]
    dry_run: bool,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Fine.
    Ok,
    /// A server runs, but slower, smaller or less safely.
    Warn,
    /// A server will not start, or must not be trusted.
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    name: &'static str,
    status: Status,
    detail: String,
    cure: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), cure: None }
    }

    fn warn(name: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, detail: detail.into(), cure: Some(cure.into()) }
    }

    fn fail(name: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, detail: detail.into(), cure: Some(cure.into()) }
    }
}

/// Checks everything and says what it found.
pub(crate) fn run(args: &DoctorArgs, common: &Common) -> Result<(), Failure> {
    if args.recalibrate {
        return recalibrate::run(&args.data, args.dry_run, common);
    }
    let screen = Screen::new(common);
    let mut checks = machine::checks();
    checks.extend(disk::checks(&args.data));
    for check in &checks {
        show(check, screen)?;
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (warned, failed) = (count(Status::Warn), count(Status::Fail));
    if !screen.json {
        screen.line(&match (failed, warned) {
            (0, 0) => screen.paint(Ink::Green, "fit: nothing to do"),
            (0, warned) => screen.paint(Ink::Yellow, &format!("fit, with {warned} to look at")),
            (failed, _) => screen.paint(Ink::Red, &format!("not fit: {failed} failed")),
        })?;
    }
    if failed > 0 { Err(Failure::said(EXIT_FAILED)) } else { Ok(()) }
}

fn show(check: &Check, screen: Screen) -> Result<(), Failure> {
    let (word, ink) = match check.status {
        Status::Ok => ("ok", Ink::Green),
        Status::Warn => ("warn", Ink::Yellow),
        Status::Fail => ("fail", Ink::Red),
    };
    if screen.json {
        let Check { name, detail, cure, .. } = check;
        screen.object(&serde_json::json!({"check": name, "status": word, "detail": detail, "cure": cure}))?;
        return Ok(());
    }
    screen.line(&format!(
        "{} {:<12} {}",
        screen.paint(ink, &format!("{word:<4}")),
        check.name,
        check.detail
    ))?;
    if let Some(cure) = &check.cure {
        screen.line(&format!("                  {} {cure}", screen.paint(Ink::Dim, "→")))?;
    }
    Ok(())
}
