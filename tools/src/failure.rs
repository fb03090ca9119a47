//! How a verb ends when it does not end well: what was wrong, where, what to do, and the exit code.

use crate::cli::Common;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// 1: it was tried and failed.
pub(crate) const EXIT_FAILED: u8 = 1;
/// 2: it could not be tried, because it was asked for wrongly. clap's number, too.
pub(crate) const EXIT_WRONG_USE: u8 = 2;

/// 3: damage was found.
pub(crate) const EXIT_DAMAGE: u8 = 3;

/// The end of a verb that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
    cure: Option<String>,
    quiet: bool,
}

impl Failure {
    /// It was tried and failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: EXIT_FAILED, message: message.into(), cure: None, quiet: false }
    }

    /// It was asked for wrongly.
    pub(crate) fn wrong_use(message: impl Into<String>) -> Self {
        Self { code: EXIT_WRONG_USE, ..Self::failed(message) }
    }

    /// Damage was found.
    pub(crate) fn damage(message: impl Into<String>) -> Self {
        Self { code: EXIT_DAMAGE, ..Self::failed(message) }
    }

    /// For verbs whose exit code 0 is a proof: a reader that went away proves nothing.
    #[must_use]
    pub(crate) fn never_zero(mut self) -> Self {
        self.code = self.code.max(EXIT_FAILED);
        self
    }

    /// Everything was said already.
    pub(crate) fn said(code: u8) -> Self {
        Self { code, quiet: true, ..Self::failed("") }
    }

    /// What to do about it.
    #[must_use]
    pub(crate) fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }

    /// Says it on stderr. A closed stderr changes nothing.
    pub(crate) fn report(&self, common: &Common) -> ExitCode {
        if !self.quiet {
            let mut err = io::stderr().lock();
            let _ = if common.json {
                let line =
                    serde_json::json!({"error": self.message, "cure": self.cure, "exit_code": self.code});
                writeln!(err, "{line}")
            } else {
                let colour = common.colour(io::stderr().is_terminal());
                let (red, reset) = if colour { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
                writeln!(err, "{red}error:{reset} {self}")
            };
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.cure.as_ref().map_or(Ok(()), |cure| write!(f, "\n  {cure}"))
    }
}

/// Trouble with the output. A reader that went away (`| head`) is no failure: the verb ends, quietly.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::said(0),
            _ => Self::failed(format!("input or output failed: {error}")),
        }
    }
}
