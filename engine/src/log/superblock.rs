//! Writes the superblock: copies 0 and 1, durable, then copies 2 and 3, durable. One update at a time; what is
//! asked for meanwhile goes with the next.

use super::room;
use crate::ring::{BufRange, BufferId, Errno, FileId, Op, Ring, Token};
use ringmq_format::limits::BLOCK_SIZE;
use ringmq_format::superblock::{SUPERBLOCK_FILE_SIZE, Superblock};

const HALF: usize = SUPERBLOCK_FILE_SIZE / 2;

/// The superblock and its writer.
#[derive(Debug)]
pub struct SuperblockWriter {
    file: FileId,
    buffer: BufferId,
    /// What the next update writes.
    next: Superblock,
    /// What is durable.
    durable: Superblock,
    /// Update that is being written: its state and the half in flight.
    writing: Option<(Superblock, usize)>,
    /// Changed since the last update was begun.
    dirty: bool,
}

impl SuperblockWriter {
    /// A writer on top of what recovery has found or made.
    pub fn new(ring: &mut Ring, file: FileId, current: Superblock) -> Option<Self> {
        let buffer = ring.memory.alloc(SUPERBLOCK_FILE_SIZE, false)?;
        Some(Self { file, buffer, next: current.clone(), durable: current, writing: None, dirty: false })
    }

    /// What is durable.
    pub fn durable(&self) -> &Superblock {
        &self.durable
    }

    /// Changes the next update; `step` writes it.
    pub fn update(&mut self, change: impl FnOnce(&mut Superblock)) {
        change(&mut self.next);
        self.dirty = true;
    }

    /// Everything asked for is durable.
    pub fn is_settled(&self) -> bool {
        !self.dirty && self.writing.is_none()
    }

    /// Begins an update if one is wanted and none is in flight.
    pub fn step(&mut self, ring: &mut Ring) {
        if self.writing.is_some() || !self.dirty {
            return;
        }
        self.dirty = false;
        self.next.sequence = self.durable.sequence + 1;
        let range = BufRange::new(self.buffer, 0, SUPERBLOCK_FILE_SIZE);
        ring.memory.bytes_mut(range).copy_from_slice(&self.next.encode());
        self.writing = Some((self.next.clone(), 0));
        self.submit(ring, 0, HALF);
    }

    fn submit(&self, ring: &mut Ring, position: usize, len: usize) {
        let from = BufRange::new(self.buffer, position, len);
        let op = Op::Write { file: self.file, from, position: position as u64, durable: true };
        ring.submit(Token::new(room::SUPERBLOCK, 0, position as u32), op);
    }

    /// Takes a completion. An error poisons the shard: what the disk holds now is not known.
    pub fn complete(
        &mut self,
        ring: &mut Ring,
        token: Token,
        result: Result<u32, Errno>,
    ) -> Result<(), Errno> {
        let value = result?;
        if value == 0 {
            return Err(Errno::IO);
        }
        let written = value as usize / BLOCK_SIZE * BLOCK_SIZE;
        let Some((state, half)) = self.writing.take() else {
            panic!("a completion that the superblock did not wait for");
        };
        let done = token.slot as usize + written;
        let end = (half + 1) * HALF;
        if done < end {
            self.writing = Some((state, half));
            self.submit(ring, done, end - done);
        } else if half == 0 {
            self.writing = Some((state, 1));
            self.submit(ring, HALF, HALF);
        } else {
            self.durable = state;
        }
        Ok(())
    }
}
