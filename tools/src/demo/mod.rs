//! `ringmq demo`: under construction.
use crate::cli::Common;
use crate::failure::Failure;
/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "ringmq demo")]
pub(crate) struct DemoArgs {}
/// Runs it.
pub(crate) fn run(_args: &DemoArgs, _common: &Common) -> Result<(), Failure> {
    Err(Failure::failed("the demo is not there yet"))
}
