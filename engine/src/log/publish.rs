//! Writes a whole derived file in the background: sidecars and checkpoints.
//!
//! Open, write in pieces with one in flight, sync, sync the directory. Nobody believes the file before that: a
//! sidecar is used, a checkpoint is named, only after `complete` has answered [`Progress::Done`].

use crate::ring::{BufRange, BufferId, Errno, FileId, Op, Ring, Token};
use ringmq_format::limits::{BLOCK_SIZE, PREWRITE_CHUNK};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Open,
    Write(usize),
    Sync,
    SyncDirectory,
    Done,
}

/// A file being written.
#[derive(Debug)]
pub struct Publish {
    room: u8,
    path: PathBuf,
    file: Option<FileId>,
    bytes: Vec<u8>,
    buffer: BufferId,
    step: Step,
    in_flight: bool,
}

/// Where a file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not finished.
    Going,
    /// Durable, with its name.
    Done(FileId),
    /// Given up; the file's content is not to be believed.
    Failed(Errno),
}

impl Publish {
    /// Begins to write `bytes` (a multiple of 4 KiB) to `path`; `file` if it is open already.
    pub fn new(
        ring: &mut Ring,
        room: u8,
        path: PathBuf,
        file: Option<FileId>,
        bytes: Vec<u8>,
    ) -> Option<Self> {
        assert!(bytes.len().is_multiple_of(BLOCK_SIZE), "{} bytes are not whole blocks", bytes.len());
        let buffer = ring.memory.alloc(PREWRITE_CHUNK, false)?;
        let step = if file.is_some() { Step::Write(0) } else { Step::Open };
        Some(Self { room, path, file, bytes, buffer, step, in_flight: false })
    }

    /// The next step is a write.
    pub fn wants_write(&self) -> bool {
        !self.in_flight && matches!(self.step, Step::Write(_))
    }

    /// Takes the next step. Bytes are written if the log says `may_write`.
    pub fn step(&mut self, ring: &mut Ring, may_write: bool) {
        if self.in_flight {
            return;
        }
        let op = match (self.step, self.file) {
            (Step::Done, _) => return,
            (Step::Open, _) => Op::Open { path: self.path.clone(), create: true },
            (Step::Write(position), Some(file)) => {
                if !may_write {
                    return;
                }
                let len = (self.bytes.len() - position).min(PREWRITE_CHUNK);
                let from = BufRange::new(self.buffer, 0, len);
                ring.memory.bytes_mut(from).copy_from_slice(&self.bytes[position..position + len]);
                Op::Write { file, from, position: position as u64, durable: false }
            }
            (Step::Sync, Some(file)) => Op::SyncAll { file },
            (Step::SyncDirectory, _) => {
                let directory = self.path.parent().unwrap_or(&self.path).to_owned();
                Op::SyncDir { path: directory }
            }
            (step, None) => panic!("step {step:?} without a file"),
        };
        self.in_flight = true;
        ring.submit(Token::new(self.room, 0, 0), op);
    }

    /// Takes the completion of the op in flight.
    pub fn complete(&mut self, ring: &mut Ring, result: Result<u32, Errno>) -> Progress {
        assert!(self.in_flight, "a completion that nobody waited for");
        self.in_flight = false;
        let result = match (result, self.step) {
            (Ok(0), Step::Write(_)) => Err(Errno::IO), // no progress
            (result, _) => result,
        };
        let value = match result {
            Ok(value) => value,
            Err(error) => {
                self.finish(ring);
                return Progress::Failed(error);
            }
        };
        self.step = match self.step {
            Step::Open => {
                self.file = Some(FileId(value));
                Step::Write(0)
            }
            Step::Write(position) => {
                let position = position + value as usize / BLOCK_SIZE * BLOCK_SIZE;
                if position < self.bytes.len() { Step::Write(position) } else { Step::Sync }
            }
            Step::Sync => Step::SyncDirectory,
            Step::SyncDirectory | Step::Done => Step::Done,
        };
        match (self.step, self.file) {
            (Step::Done, Some(file)) => {
                self.finish(ring);
                Progress::Done(file)
            }
            _ => Progress::Going,
        }
    }

    fn finish(&mut self, ring: &mut Ring) {
        self.step = Step::Done;
        self.bytes = Vec::new();
        ring.memory.free(self.buffer);
    }

    /// The file, once it is open: kept open for ever, even after a failure.
    pub fn file(&self) -> Option<FileId> {
        self.file
    }
}
