//! Arenas, registered with the kernel in pieces of 2 MiB on first use.
//!
//! Invariants  R1  a registration names the buffer's serial: pages of a freed buffer are never used for the next
//!                 one, even at the same address

use super::super::{BufRange, BufferId, Memory};
use super::kernel::memlock_limit;
use io_uring::Submitter;

/// A huge page, and few enough segments for one request of the block layer.
const PIECE_SIZE: usize = 2 << 20;
/// The kernel's own limit: 32 GiB of arenas.
const PIECES_MAX: u32 = 16 * 1024;

struct Registered {
    serial: u64,
    /// Index in the kernel's table, by piece.
    indexes: Vec<Option<u16>>,
}

pub(super) struct Pieces {
    enabled: bool,
    by_buffer: Vec<Option<Registered>>,
    free: Vec<u16>,
    next: u32,
}

impl Pieces {
    pub(super) fn new(submitter: &Submitter<'_>, wanted: bool, fallbacks: &mut Vec<String>) -> Self {
        let mut pieces = Self { enabled: wanted, by_buffer: Vec::new(), free: Vec::new(), next: 0 };
        if wanted && let Err(error) = submitter.register_buffers_sparse(PIECES_MAX) {
            pieces.give_up(&error.to_string(), fallbacks);
        }
        pieces
    }

    fn give_up(&mut self, why: &str, fallbacks: &mut Vec<String>) {
        self.enabled = false;
        let limit = memlock_limit();
        fallbacks.push(format!("registered buffers off: {why}, RLIMIT_MEMLOCK is {limit}; slower"));
    }

    /// The registered buffer that holds the whole range at `address`, if there is one or can be.
    pub(super) fn index(
        &mut self,
        submitter: &Submitter<'_>,
        memory: &Memory,
        range: BufRange,
        address: *mut u8,
        fallbacks: &mut Vec<String>,
    ) -> Option<u16> {
        if !memory.is_arena(range.buffer) || range.is_empty() {
            return None;
        }
        let piece = range.start() / PIECE_SIZE;
        if piece != (range.start() + range.len() - 1) / PIECE_SIZE {
            return None;
        }
        let serial = memory.serial(range.buffer)?;
        let known = match self.by_buffer.get(range.buffer.0 as usize) {
            Some(Some(registered)) if registered.serial == serial => {
                registered.indexes.get(piece).copied().flatten()
            }
            _ => None,
        };
        if known.is_some() || !self.enabled {
            return known;
        }
        self.forget_freed(submitter, memory);
        let index = self.free.pop().or_else(|| {
            self.next += 1;
            (self.next <= PIECES_MAX).then(|| self.next as u16 - 1)
        });
        let Some(index) = index else {
            self.give_up("the kernel's table is full", fallbacks);
            return None;
        };
        let len = PIECE_SIZE.min(memory.len(range.buffer) - piece * PIECE_SIZE);
        let base = address.wrapping_sub(range.start() - piece * PIECE_SIZE);
        let piece_vector = libc::iovec { iov_base: base.cast(), iov_len: len };
        // SAFETY: the piece lies inside a mapping of `memory`. The kernel pins its pages, so that even a mapping
        // that is gone harms nobody; the serial keeps such pages from being used again (R1).
        match unsafe { submitter.register_buffers_update(u32::from(index), &[piece_vector], None) } {
            Ok(()) => {
                self.remember(range.buffer, serial, piece, index);
                Some(index)
            }
            Err(error) => {
                self.free.push(index);
                self.give_up(&error.to_string(), fallbacks);
                None
            }
        }
    }

    fn remember(&mut self, buffer: BufferId, serial: u64, piece: usize, index: u16) {
        let at = buffer.0 as usize;
        if self.by_buffer.len() <= at {
            self.by_buffer.resize_with(at + 1, || None);
        }
        let registered = self.by_buffer[at].get_or_insert_with(|| Registered { serial, indexes: Vec::new() });
        assert_eq!(registered.serial, serial, "{buffer:?} has pieces of an earlier buffer"); // R1
        if registered.indexes.len() <= piece {
            registered.indexes.resize(piece + 1, None);
        }
        registered.indexes[piece] = Some(index);
    }

    /// Unpins what belonged to buffers that are gone.
    fn forget_freed(&mut self, submitter: &Submitter<'_>, memory: &Memory) {
        for (id, entry) in self.by_buffer.iter_mut().enumerate() {
            let gone = |old: &mut Registered| memory.serial(BufferId(id as u32)) != Some(old.serial);
            let Some(old) = entry.take_if(gone) else { continue };
            for index in old.indexes.into_iter().flatten() {
                let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
                // SAFETY: empties an entry of the table; `Memory::free` asserted that nothing of the buffer was in
                // flight (R1).
                let _ = unsafe { submitter.register_buffers_update(u32::from(index), &[nothing], None) };
                self.free.push(index);
            }
        }
    }
}
