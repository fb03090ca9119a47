//! The log arena: where groups are built, from where they are written, and the cache of the log's tail.
//!
//! One buffer used as a ring. Groups lie in it in log order, each in one piece; the oldest ones are given up for
//! new ones, and only when they are durable. What is still here is the *window*: readers of the tail never touch
//! the disk.
//!
//! Invariants  A1  A group that is not durable is never given up.
//!             A2  `groups` is sorted by LSN, and its regions do not overlap.
//! Ignorant of what is in a group, of files and of partitions.

use crate::ring::{BufRange, BufferId, Memory};
use ringmq_format::Lsn;
use ringmq_format::limits::{BLOCK_SIZE, GROUP_SIZE_MAX};
use std::collections::VecDeque;

/// Size of the pieces in which an arena is registered: a group inside one piece is written with a registered buffer.
pub const PIECE_SIZE: usize = 2 << 20;
/// Smallest arena: the largest group, four groups in flight at their largest target, and room to turn around.
pub const ARENA_SIZE_MIN: usize = 16 << 20;

const _: () = assert!(ARENA_SIZE_MIN >= 2 * GROUP_SIZE_MAX + 4 * (1 << 20));

#[derive(Clone, Copy, Debug)]
struct Region {
    lsn: Lsn,
    /// Behind the last frame, without padding.
    used_end: Lsn,
    start: usize,
    len: usize,
}

/// The arena's bookkeeping.
#[derive(Debug)]
pub struct Arena {
    buffer: BufferId,
    size: usize,
    groups: VecDeque<Region>,
    /// Where the next group starts.
    head: usize,
}

impl Arena {
    /// An arena of `size` bytes, or `None` when the kernel has no memory.
    pub fn new(memory: &mut Memory, size: usize) -> Option<Self> {
        let size = size.max(ARENA_SIZE_MIN).next_multiple_of(PIECE_SIZE);
        let buffer = memory.alloc(size, true)?;
        Some(Self { buffer, size, groups: VecDeque::new(), head: 0 })
    }

    /// The buffer.
    pub fn buffer(&self) -> BufferId {
        self.buffer
    }

    /// Gives up durable groups until `len` bytes are free at one place, and names the place. `None` when groups
    /// that are not durable are in the way: the input has to wait.
    ///
    /// A region of at most [`PIECE_SIZE`] is put inside one piece, at the price of some unused bytes.
    pub fn reserve(&mut self, len: usize, durable: Lsn) -> Option<usize> {
        assert!(len.is_multiple_of(BLOCK_SIZE), "{len} bytes are not whole blocks");
        assert!(len <= self.size / 2, "{len} bytes of an arena of {}", self.size);
        let mut start = self.head;
        let piece_end = (start / PIECE_SIZE + 1) * PIECE_SIZE;
        if len <= PIECE_SIZE && start + len > piece_end {
            start = piece_end;
        }
        if start + len > self.size {
            start = 0;
        }
        // The region [start, start + len) must be clear, and so must everything skipped between head and start,
        // or the order of the ring would be lost.
        while let Some(oldest) = self.groups.front() {
            let blocked = if start >= self.head {
                oldest.start < start + len && oldest.start + oldest.len > self.head
            } else {
                oldest.start + oldest.len > self.head || oldest.start < start + len
            };
            if !blocked {
                break;
            }
            if oldest.lsn.plus(oldest.len as u64) > durable {
                return None; // A1
            }
            self.groups.pop_front();
        }
        Some(start)
    }

    /// Enters a finished group that was built at `start`.
    pub fn push(&mut self, lsn: Lsn, start: usize, used: usize, len: usize) {
        assert!(self.groups.back().is_none_or(|last| last.lsn < lsn), "{lsn} is not behind the last group"); // A2
        self.groups.push_back(Region { lsn, used_end: lsn.plus(used as u64), start, len });
        self.head = start + len;
    }

    /// Where the bytes of a frame are, if its group is in the window.
    pub fn find(&self, lsn: Lsn, len: usize) -> Option<BufRange> {
        let index = self.groups.partition_point(|group| group.lsn <= lsn).checked_sub(1)?;
        let group = self.groups.get(index)?;
        if lsn.plus(len as u64) > group.used_end {
            return None;
        }
        Some(BufRange::new(self.buffer, group.start + lsn.since(group.lsn) as usize, len))
    }

    /// First LSN in the window; `None` while it is empty.
    pub fn window_start(&self) -> Option<Lsn> {
        self.groups.front().map(|group| group.lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_are_not_durable_are_never_given_up() {
        let mut memory = Memory::default();
        let mut arena = Arena::new(&mut memory, ARENA_SIZE_MIN).unwrap();
        let len = 1 << 20;
        let mut lsn = 8192u64;
        let mut random = 12345u64;
        let mut live: VecDeque<(u64, usize, usize)> = VecDeque::new();
        let mut durable = 0u64;
        let mut waited = 0;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let len = ((random >> 33) as usize % (len / BLOCK_SIZE) + 1) * BLOCK_SIZE;
            let Some(start) = arena.reserve(len, Lsn(durable)) else {
                waited += 1;
                // One group becomes durable.
                let (oldest, _, oldest_len) = live.pop_front().unwrap();
                durable = oldest + oldest_len as u64;
                continue;
            };
            for (_, other, other_len) in &live {
                assert!(start + len <= *other || other + other_len <= start, "overlaps a live group");
            }
            if len <= PIECE_SIZE {
                assert_eq!(start / PIECE_SIZE, (start + len - 1) / PIECE_SIZE);
            }
            arena.push(Lsn(lsn), start, len, len);
            assert_eq!(arena.find(Lsn(lsn), len).map(|range| range.start()), Some(start));
            live.push_back((lsn, start, len));
            lsn += len as u64;
        }
        assert!(waited > 100);
    }
}
