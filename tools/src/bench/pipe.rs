//! `floor-pipe`: what a server could do at most that did nothing but its duty.
//!
//! One thread on the server's core receives into aligned memory and writes each full buffer durably, with one to
//! four writes under way: no parsing, no checksum, no index, no answer. Blocking calls keep one write under way at
//! most, so the writes go through a ring, and through the engine's own: what it costs is paid on both sides.
//!
//! F1 a buffer is filled again only when its bytes are durable: with DSYNC when its write completed, with a flush
//!    when a flush completed that was submitted after its write had completed;
//! F2 what was received and is not durable at the end is not counted, and the clock runs until the last is.

use ringmq_engine::ring::{BufRange, BufferId, Completion, FileId, Op, Ring, RingConfig, Token};
use std::fs::File;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const WRITE: u8 = 1;
const FLUSH: u8 = 2;

/// How a write becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    Flush,
    Dsync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Free,
    Writing,
    /// Waits for the next flush.
    Written,
    /// Under the flush that is outstanding.
    Flushing,
}

/// A ring on the calling thread, with the file and a buffer for each write that may be under way.
pub(super) struct Pipe {
    ring: Ring,
    file: FileId,
    file_len: u64,
    at: u64,
    size: usize,
    sync: Sync,
    buffers: Vec<BufferId>,
    slots: Vec<Slot>,
    completions: Vec<Completion>,
    durable: u64,
}

impl Pipe {
    /// Opens the file a second time, through its descriptor: it has no name.
    pub(super) fn new(
        file: &File,
        file_len: u64,
        size: usize,
        in_flight: usize,
        sync: Sync,
    ) -> Result<Self, String> {
        assert!(size as u64 * in_flight as u64 <= file_len, "writes under way overlap in the file");
        let mut ring = Ring::uring(RingConfig { entries: 32, descriptors_max: 16, register_buffers: true })
            .map_err(|e| format!("no io_uring: {e}"))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        let file = ring.run(Op::Open { path, create: false }).map_err(|e| format!("cannot open: {e}"))?;
        let buffers: Option<Vec<_>> = (0..in_flight).map(|_| ring.memory.alloc(size, true)).collect();
        Ok(Self {
            ring,
            file: FileId(file),
            file_len,
            at: 0,
            size,
            sync,
            buffers: buffers.ok_or("no memory for buffers")?,
            slots: vec![Slot::Free; in_flight],
            completions: Vec::new(),
            durable: 0,
        })
    }

    /// Receives until the peer has finished: bytes that became durable, and in which time. The first buffer starts
    /// the clock.
    pub(super) fn run(&mut self, stream: &mut TcpStream) -> Result<(u64, Duration), String> {
        let mut started = None;
        let mut durable_before = 0;
        loop {
            let slot = loop {
                match self.slots.iter().position(|slot| *slot == Slot::Free) {
                    Some(slot) => break slot,
                    None => self.turn(None)?,
                }
            };
            if !self.fill(slot, stream)? {
                break;
            }
            if started.is_none() {
                started = Some(Instant::now());
                durable_before = self.size as u64;
            }
            self.write(slot);
            self.turn(Some(0))?;
        }
        while self.slots.iter().any(|slot| *slot != Slot::Free) {
            self.turn(None)?; // F2
        }
        let took = started.map_or(Duration::ZERO, |started| started.elapsed());
        Ok((self.durable.saturating_sub(durable_before), took))
    }

    fn range(&self, slot: usize) -> BufRange {
        BufRange::new(self.buffers[slot], 0, self.size)
    }

    /// `false` when the peer finished before the buffer was full.
    fn fill(&mut self, slot: usize, stream: &mut TcpStream) -> Result<bool, String> {
        let range = self.range(slot);
        let mut at = 0;
        while at < self.size {
            match stream.read(&mut self.ring.memory.bytes_mut(range)[at..]) {
                Ok(0) => return Ok(false),
                Ok(n) => at += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("loopback receive: {e}")),
            }
            // A write that completed meanwhile wants its flush.
            if self.sync == Sync::Flush && self.slots.contains(&Slot::Writing) {
                self.turn(Some(0))?;
            }
        }
        Ok(true)
    }

    fn write(&mut self, slot: usize) {
        if self.at + self.size as u64 > self.file_len {
            self.at = 0;
        }
        let (position, durable) = (self.at, self.sync == Sync::Dsync);
        self.at += self.size as u64;
        self.slots[slot] = Slot::Writing;
        let op = Op::Write { file: self.file, from: self.range(slot), position, durable };
        self.ring.submit(Token::new(WRITE, 0, slot as u32), op);
    }

    /// Submits, waits if there is no time limit, and takes what completed.
    fn turn(&mut self, until: Option<u64>) -> Result<(), String> {
        self.ring.wait(until);
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.reap(&mut completions, usize::MAX);
        for Completion { token, result } in completions.drain(..) {
            let done = result.map_err(|e| format!("a write or flush of the pipe: {e}"))?;
            if token.room == FLUSH {
                for slot in 0..self.slots.len() {
                    if self.slots[slot] == Slot::Flushing {
                        self.free(slot);
                    }
                }
            } else if done as usize != self.size {
                return Err(format!("direct write of {} bytes wrote {done}", self.size));
            } else if self.sync == Sync::Dsync {
                self.free(token.slot as usize); // F1
            } else {
                self.slots[token.slot as usize] = Slot::Written;
            }
        }
        self.completions = completions;
        if self.slots.contains(&Slot::Written) && !self.slots.contains(&Slot::Flushing) {
            for slot in self.slots.iter_mut().filter(|slot| **slot == Slot::Written) {
                *slot = Slot::Flushing; // F1
            }
            self.ring.submit(Token::new(FLUSH, 0, 0), Op::SyncData { file: self.file });
            self.ring.wait(Some(0));
        }
        Ok(())
    }

    fn free(&mut self, slot: usize) {
        self.slots[slot] = Slot::Free;
        self.durable += self.size as u64;
    }
}
