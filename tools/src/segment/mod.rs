//! `ringmq segment`: the bytes on the disk, read without a server and beside one.
//!
//! One file per verb; what reads and judges bytes is the package `ringmq-segment`.

pub(crate) mod dump;
pub(crate) mod filter;
pub(crate) mod inspect;
pub(crate) mod ls;
pub(crate) mod place;
pub(crate) mod port;
pub(crate) mod salvage;
pub(crate) mod stats;
pub(crate) mod verify;

use crate::cli::Common;
use crate::failure::Failure;

/// Look at segments: what is there, whether it is whole, and what can be saved.
#[derive(Debug, clap::Args)]
pub(crate) struct SegmentArgs {
    #[command(subcommand)]
    verb: SegmentVerb,
}

#[derive(Debug, clap::Subcommand)]
enum SegmentVerb {
    /// List the segment files of a data directory.
    Ls(ls::LsArgs),
    /// Show a file's structures field by field, with meaning and validity.
    Inspect(inspect::InspectArgs),
    /// Write records or frames as lines.
    Dump(Box<dump::DumpArgs>),
    /// Sum up sizes, batching, compression and padding.
    Stats(Box<stats::StatsArgs>),
    /// Take every undamaged record of a damaged directory into a fresh one.
    Salvage(salvage::SalvageArgs),
    /// Write a topic, or a range of it, into a portable file.
    Export(port::ExportArgs),
    /// Check such a file, and make a data directory of it.
    Import(port::ImportArgs),
    /// Check every checksum, chain, offset and reference.
    Verify(verify::VerifyArgs),
}

/// Runs one verb.
pub(crate) fn run(args: &SegmentArgs, common: &Common) -> Result<(), Failure> {
    place::stop_on_interrupt();
    match &args.verb {
        SegmentVerb::Ls(args) => ls::run(args, common),
        SegmentVerb::Inspect(args) => inspect::run(args, common),
        SegmentVerb::Dump(args) => dump::run(args, common),
        SegmentVerb::Stats(args) => stats::run(args, common),
        SegmentVerb::Salvage(args) => salvage::run(args, common),
        SegmentVerb::Export(args) => port::export(args, common),
        SegmentVerb::Import(args) => port::import(args, common),
        SegmentVerb::Verify(args) => verify::run(args, common),
    }
}
