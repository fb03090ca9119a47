//! What the tools read: a data directory, or one segment file in or outside of one. And how: tokio-uring, or threads
//! where io_uring is refused. Nothing is locked and nothing is written.

use crate::cli::Common;
use crate::failure::Failure;
use crate::screen;
use indicatif::ProgressBar;
use ringmq_format::identity::Identity;
use ringmq_format::limits::SEGMENT_HEADER_SIZE;
use ringmq_format::superblock::Superblock;
use ringmq_segment::directory::{Directory, Shard, Slot, SlotState, segment_header};
use ringmq_segment::source::Source;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Which reader of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Io {
    /// io_uring if the kernel allows it, else threads.
    Auto,
    /// io_uring.
    Uring,
    /// Direct reads on a few threads.
    Threads,
}

/// What every verb that reads files takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Reading {
    /// The data directory, or one segment file. A server may run on it.
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Only this shard.
    #[arg(long, value_name = "N")]
    pub(crate) shard: Option<u16>,
    /// How files are read.
    #[arg(long, value_name = "HOW", default_value = "auto", hide_possible_values = false)]
    pub(crate) io: Io,
}

/// A place on the disk that is being read.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) source: Source,
    pub(crate) directory: Directory,
    /// Not a directory: this one file.
    pub(crate) file: Option<PathBuf>,
}

impl Io {
    /// The reader, and a line on stderr if it is not the one that was hoped for.
    pub(crate) fn source(self) -> Result<Source, Failure> {
        match (self, Source::probe()) {
            (Self::Threads, _) => Ok(Source::Threads),
            (_, Ok(source)) => Ok(source),
            (Self::Auto, Err(error)) => {
                eprintln!("note: io_uring is refused ({error}): reading with a few threads instead");
                Ok(Source::Threads)
            }
            (Self::Uring, Err(error)) => Err(Failure::failed(format!("io_uring is refused: {error}"))
                .cure("`--io threads` reads without it; `ringmq doctor` tells why")),
        }
    }
}

impl Place {
    /// Looks at what is there.
    pub(crate) fn open(reading: &Reading) -> Result<Self, Failure> {
        let source = reading.io.source()?;
        let path = &reading.path;
        let shown = path.display();
        let metadata =
            std::fs::metadata(path).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
        let (mut directory, file) = if metadata.is_dir() {
            (Self::open_directory(&source, path)?, None)
        } else {
            (Self::open_file(&source, path)?, Some(path.clone()))
        };
        if let Some(wanted) = reading.shard {
            directory.shards.retain(|shard| shard.shard.0 == wanted);
            if directory.shards.is_empty() {
                return Err(Failure::wrong_use(format!("{shown} has no shard {wanted}")));
            }
        }
        let place = Self { source, directory, file };
        place.warn_buffered();
        Ok(place)
    }

    fn open_directory(source: &Source, path: &Path) -> Result<Directory, Failure> {
        Directory::open(source, path).map_err(|error| {
            let failure = Failure::failed(error.to_string());
            let inside = path.join("log").is_dir() || path.join("000.seg").exists();
            let cure = if inside {
                "that is part of one: name the directory that `ringmq server --data` has"
            } else {
                "name the directory that `ringmq server --data` has, or a segment file"
            };
            failure.cure(cure)
        })
    }

    /// A file by itself, with the superblock of its shard if it lies in a directory.
    fn open_file(source: &Source, path: &Path) -> Result<Directory, Failure> {
        let shown = path.display();
        let failed = |error: io::Error| Failure::failed(format!("{shown}: {error}"));
        let file = source.open(path).map_err(failed)?;
        let bytes = file.read(0, SEGMENT_HEADER_SIZE).map_err(failed)?;
        let (facts, faults) = segment_header(&bytes);
        let Some(facts) = facts else {
            let what = match faults.first() {
                _ if bytes.is_empty() => "it is empty".to_owned(),
                _ if bytes.iter().all(|byte| *byte == 0) => {
                    "it begins with zeros: a slot that was never used".to_owned()
                }
                Some(fault) => format!("{fault}"),
                None => "it has no header".to_owned(),
            };
            return Err(Failure::damage(format!(
                "{shown} is no segment file of a format that is known: {what}"
            )));
        };
        let shard_path = path.parent().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        let superblock = source.open(&shard_path.join("superblock")).and_then(|file| file.read(0, 16 << 10));
        let superblock = superblock.ok().and_then(|b| Superblock::parse(&b, facts.node_id, facts.shard).ok());
        let slot = Slot {
            path: path.to_owned(),
            slot: facts.slot.0,
            len: file.len(),
            facts: Some(facts),
            state: if facts.seq.0 == 0 { SlotState::Blank } else { SlotState::Log },
        };
        let shard = Shard {
            shard: facts.shard,
            path: shard_path,
            superblock,
            slots: vec![slot],
            faults: faults.into_iter().map(|fault| (path.to_owned(), fault)).collect(),
        };
        let identity =
            Identity { shards: facts.shard.0 + 1, node_id: facts.node_id, created_ms: facts.created_ms };
        Ok(Directory { path: path.to_owned(), identity, faults: Vec::new(), shards: vec![shard] })
    }

    fn warn_buffered(&self) {
        let slots = self.directory.shards.iter().flat_map(|shard| &shard.slots);
        if let Some(slot) = slots.into_iter().next()
            && self.source.open(&slot.path).is_ok_and(|file| file.is_buffered())
        {
            eprintln!("note: this file system does not do O_DIRECT: reading through the page cache");
        }
    }

    /// Bytes that a walk over a shard's log reads at most.
    pub(crate) fn log_bytes(shard: &Shard) -> u64 {
        shard.log().iter().filter_map(|slot| slot.facts).map(|facts| facts.capacity).sum()
    }

    /// A bar for reading all shards.
    pub(crate) fn bar(&self, what: &str, common: &Common) -> ProgressBar {
        screen::bytes_bar(self.directory.shards.iter().map(Self::log_bytes).sum(), what, common)
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C lets a verb come to its end early; a second one ends the process.
pub(crate) fn stop_on_interrupt() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if STOP.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    });
}

/// Somebody wants it to end.
pub(crate) fn is_stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}
