//! `ringmq data`: a data directory as a whole. Everything but `quarantine` only reads, beside a server too.

mod check;
mod quarantine;
mod tables;
mod trace;

use crate::cli::Common;
use crate::failure::Failure;
use crate::segment::{place, port};

/// A data directory as a whole: what is in it, what a start would find; repair, back up, restore.
#[derive(Debug, clap::Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    verb: DataVerb,
}

#[derive(Debug, clap::Subcommand)]
enum DataVerb {
    /// List topics, as recovery would rebuild them.
    Topics(tables::TablesArgs),
    /// List partitions with their offsets, as recovery would rebuild them.
    Offsets(tables::OffsetsArgs),
    /// List idempotent producers with their windows, as recovery would rebuild them.
    Producers(tables::ProducersArgs),
    /// List transactions with their halves, as recovery would rebuild them.
    Txns(tables::TxnsArgs),
    /// List delayed messages, as recovery would rebuild them.
    Timers(tables::TimersArgs),
    /// Say what recovery would decide at this moment; nothing is written.
    Check(check::CheckArgs),
    /// Tell one record's whole life.
    Trace(trace::TraceArgs),
    /// Write everything into a portable, checksummed file; a server may run.
    Backup(port::BackupArgs),
    /// Make a data directory of a backup.
    Restore(port::RestoreArgs),
    /// Set aside the ranges of the log that recovery refuses, so that the server starts and serves the rest.
    Quarantine(quarantine::QuarantineArgs),
}

/// Runs one verb.
pub(crate) fn run(args: &DataArgs, common: &Common) -> Result<(), Failure> {
    if !matches!(args.verb, DataVerb::Quarantine(_)) {
        place::stop_on_interrupt();
    }
    match &args.verb {
        DataVerb::Topics(args) => tables::topics(args, common),
        DataVerb::Offsets(args) => tables::offsets(args, common),
        DataVerb::Producers(args) => tables::producers(args, common),
        DataVerb::Txns(args) => tables::txns(args, common),
        DataVerb::Timers(args) => tables::timers(args, common),
        DataVerb::Check(args) => check::run(args, common),
        DataVerb::Trace(args) => trace::run(args, common),
        DataVerb::Backup(args) => port::backup(args, common),
        DataVerb::Restore(args) => port::restore(args, common),
        DataVerb::Quarantine(args) => quarantine::run(args, common),
    }
}
