//! `ringmq man`.

use crate::cli::Cli;
use crate::failure::Failure;
use clap::CommandFactory;
use clap_mangen::Man;
use std::io::Write;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  ringmq man | man -l -                    read it
  ringmq man /usr/local/share/man/man1     install a page for each verb";

/// The manual.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ManArgs {
    /// Write one page per verb into this directory, which is made if it is not there.
    dir: Option<PathBuf>,
}

/// Prints the page of `ringmq`, or writes all of them.
pub(crate) fn run(args: &ManArgs) -> Result<(), Failure> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        Man::new(Cli::command()).render(&mut page)?;
        return Ok(std::io::stdout().write_all(&page)?);
    };
    std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir)).map_err(
        |error| Failure::failed(format!("cannot write manual pages into {}: {error}", dir.display())),
    )
}
