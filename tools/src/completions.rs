//! `ringmq completions`.

use crate::cli::Cli;
use crate::failure::Failure;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::Write;

const EXAMPLES: &str = "\
Examples:
  ringmq completions bash > /usr/share/bash-completion/completions/ringmq
  ringmq completions zsh  > ~/.zfunc/_ringmq
  ringmq completions fish > ~/.config/fish/completions/ringmq.fish";

/// A script for one shell.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    // Into memory first: the generator panics where stdout is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ringmq", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
