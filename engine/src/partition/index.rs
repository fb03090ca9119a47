//! Where the frames in RAM are: one list for all partitions of a shard, in log order. Each entry says how far behind
//! it the one before it of the same partition is, so that an append writes to the end of the list and nowhere else.
//!
//! Invariants  X1  Numbers are given once, from 1 on, in the order of LSNs; the newest frames have the highest.
//!             X2  An entry leads to an older one of its partition, or says that there is none.

use super::FrameRef;
use ringmq_format::Lsn;
use std::collections::VecDeque;

/// Entries of a chunk: the list grows and shrinks by so many, and never moves.
const CHUNK: usize = 2048;

/// An entry of the list. Its size is what a frame in RAM costs.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    frame: FrameRef,
    /// So many entries ahead of the partition's one before; 0 without one.
    back: u32,
}

/// The list.
#[derive(Debug, Default)]
pub struct FrameIndex {
    chunks: VecDeque<Vec<Entry>>,
    /// A chunk that was given up and is filled next.
    spare: Option<Vec<Entry>>,
    /// Chunks before the first one that is here.
    chunks_gone: u64,
    /// First number that is kept; those before it are forgotten.
    first: u64,
    /// Last LSN that was entered.
    last: Lsn,
}

impl FrameIndex {
    /// Whether a frame at this LSN may be entered next (X1).
    pub(super) fn takes(&self, lsn: Lsn) -> bool {
        self.last < lsn
    }

    /// Enters a frame behind the one with the number `before` of the same partition, 0 for none. Answers its number.
    pub(super) fn push(&mut self, frame: FrameRef, before: u64) -> u64 {
        assert!(self.last < frame.lsn, "{} is not behind {}", frame.lsn, self.last); // X1
        self.last = frame.lsn;
        if self.chunks.back().is_none_or(|chunk| chunk.len() == CHUNK) {
            let chunk = self.spare.take().unwrap_or_else(|| Vec::with_capacity(CHUNK));
            self.chunks.push_back(chunk);
        }
        let full = self.chunks_gone + self.chunks.len() as u64 - 1;
        let Some(chunk) = self.chunks.back_mut() else { panic!("a chunk was just made") };
        let number = full * CHUNK as u64 + chunk.len() as u64 + 1;
        // A distance that 32 bits do not hold leads to nothing that is kept.
        let kept = before != 0 && before >= self.first;
        let back = if kept { u32::try_from(number - before).unwrap_or(0) } else { 0 };
        chunk.push(Entry { frame, back });
        number
    }

    /// The frame with a number, and the number of the one before it in its partition (0 for none); `None` when it is
    /// forgotten.
    pub(super) fn get(&self, number: u64) -> Option<(FrameRef, u64)> {
        if number == 0 || number < self.first {
            return None;
        }
        let at = number - 1;
        let chunk = self.chunks.get((at / CHUNK as u64).checked_sub(self.chunks_gone)? as usize)?;
        let entry = chunk.get((at % CHUNK as u64) as usize)?;
        let before = if entry.back == 0 { 0 } else { number - u64::from(entry.back) };
        Some((entry.frame, before))
    }

    /// Is the frame with this number kept?
    pub(super) fn keeps(&self, number: u64) -> bool {
        number != 0 && number >= self.first
    }

    /// Forgets the frames before `floor`, which sidecars know.
    pub fn forget_before(&mut self, floor: Lsn) {
        while self.chunks.front().and_then(|chunk| chunk.last()).is_some_and(|last| last.frame.lsn < floor) {
            let Some(mut chunk) = self.chunks.pop_front() else { break };
            self.chunks_gone += 1;
            self.first = self.chunks_gone * CHUNK as u64 + 1;
            chunk.clear();
            self.spare = Some(chunk);
        }
        if let Some(chunk) = self.chunks.front() {
            let gone = chunk.partition_point(|entry| entry.frame.lsn < floor) as u64;
            self.first = self.first.max(self.chunks_gone * CHUNK as u64 + gone + 1);
        }
    }
}
