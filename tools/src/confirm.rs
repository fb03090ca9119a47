//! Asking before something is changed that does not come back.

use crate::failure::Failure;
use std::io::{self, IsTerminal, Write};

/// Goes on if `yes` was said, or is said now at a terminal. Elsewhere nobody can be asked, and nothing is done.
pub(crate) fn confirmed(yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::wrong_use("nothing was changed: nobody can be asked here")
            .cure("say --yes to do it, or --dry-run to see what it would do"));
    }
    if asked(question)? { Ok(()) } else { Err(Failure::failed("nothing was changed")) }
}

/// The answer of a person.
pub(crate) fn asked(question: &str) -> io::Result<bool> {
    let mut err = io::stderr().lock();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
