//! Buffers that the kernel reads and writes, and the lending that keeps both sides honest.
//!
//! Invariants  R1  A lent range is not freed, and is not changed (write, send) or looked at (read, recv) by the
//!                 engine until its completion was reaped. `lend` and `give_back` count; `free` asserts.
//! Buffers are page-aligned anonymous mappings: pages are touched on first use, so that a budget is an upper
//! bound and not what is taken.

#![allow(unsafe_code)]

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ptr::NonNull;

/// A buffer of [`Memory`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BufferId(pub u32);

/// Bytes of a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufRange {
    /// Which buffer.
    pub buffer: BufferId,
    /// First byte.
    pub start: u32,
    /// Bytes.
    pub len: u32,
}

impl BufRange {
    /// `len` bytes of `buffer` from `start`.
    pub fn new(buffer: BufferId, start: usize, len: usize) -> Self {
        let to_u32 = |value: usize| u32::try_from(value).unwrap_or_else(|_| panic!("range of {value} bytes"));
        Self { buffer, start: to_u32(start), len: to_u32(len) }
    }

    /// First byte.
    pub fn start(self) -> usize {
        self.start as usize
    }

    /// Bytes.
    pub fn len(self) -> usize {
        self.len as usize
    }

    /// No bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Without its first `bytes`.
    #[must_use]
    pub fn skip(self, bytes: usize) -> Self {
        assert!(bytes <= self.len(), "skipping {bytes} of {} bytes", self.len);
        Self::new(self.buffer, self.start() + bytes, self.len() - bytes)
    }
}

#[derive(Debug)]
struct Buffer {
    base: NonNull<u8>,
    len: usize,
    lent: u32,
    /// A log arena: registered with the ring piece by piece.
    arena: bool,
    /// Never used twice, so that a registration of an earlier buffer of the same id is recognised.
    serial: u64,
    /// Owner of the bytes, where they are not a mapping of ours.
    adopted: Option<Vec<u8>>,
}

fn map(len: usize, arena: bool) -> Option<NonNull<u8>> {
    #[cfg(feature = "sim")]
    if !arena && let Some(base) = spare::take(len) {
        return Some(base);
    }
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours (R1).
    let base =
        unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags).ok()? };
    let base = NonNull::new(base.cast::<u8>())?;
    // A simulated life touches a few pages of its arenas: clearing huge ones would be most of what it costs.
    if arena && cfg!(not(feature = "sim")) {
        // SAFETY: advice about the mapping just made; failing only costs speed (R1).
        let _ = unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxHugepage) };
    }
    Some(base)
}

/// Nothing of the mapping may be lent, and no slice of it may live.
fn unmap(base: NonNull<u8>, len: usize, arena: bool) {
    #[cfg(feature = "sim")]
    if !arena && spare::keep(base, len) {
        return;
    }
    #[cfg(not(feature = "sim"))]
    let _ = arena;
    // SAFETY: the mapping is ours, nothing is lent, and no slice outlives a borrow of its `Memory` (R1).
    let _ = unsafe { munmap(base.as_ptr().cast(), len) };
}

/// Mappings kept for the next buffer of their size: thousands of simulated lives a second would otherwise spend
/// most of their time in page faults. Never of arenas, which are not touched as a whole.
#[cfg(feature = "sim")]
mod spare {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::ptr::NonNull;

    const BYTES_MAX: usize = 32 << 20;

    #[derive(Default)]
    struct Spare {
        by_len: BTreeMap<usize, Vec<NonNull<u8>>>,
        bytes: usize,
    }

    impl Drop for Spare {
        fn drop(&mut self) {
            for (len, bases) in std::mem::take(&mut self.by_len) {
                for base in bases {
                    // SAFETY: whoever gave the mapping to `keep` has given it up (R1).
                    let _ = unsafe { rustix::mm::munmap(base.as_ptr().cast(), len) };
                }
            }
        }
    }

    thread_local! {
        static SPARE: RefCell<Spare> = RefCell::default();
    }

    pub(super) fn take(len: usize) -> Option<NonNull<u8>> {
        let base = SPARE.with_borrow_mut(|spare| {
            let base = spare.by_len.get_mut(&len)?.pop()?;
            spare.bytes -= len;
            Some(base)
        })?;
        // SAFETY: a mapping of `len` bytes that nobody else has (R1).
        unsafe { base.as_ptr().write_bytes(0, len) };
        Some(base)
    }

    /// Whether the mapping was taken over.
    pub(super) fn keep(base: NonNull<u8>, len: usize) -> bool {
        // A thread that ends may have dropped its spare ones already.
        let kept = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            let room = spare.bytes + len <= BYTES_MAX;
            if room {
                spare.bytes += len;
                spare.by_len.entry(len).or_default().push(base);
            }
            room
        });
        kept.unwrap_or(false)
    }
}

/// All buffers of one ring.
#[derive(Debug, Default)]
pub struct Memory {
    buffers: Vec<Option<Buffer>>,
    free: Vec<u32>,
    mapped: usize,
    serials: u64,
}

impl Memory {
    /// A zeroed buffer of at least `len` bytes, rounded up to pages. `arena` asks for registration and huge pages.
    /// `None` when the kernel has no memory left to give.
    pub fn alloc(&mut self, len: usize, arena: bool) -> Option<BufferId> {
        let len = len.next_multiple_of(4096).max(4096);
        let base = map(len, arena)?;
        self.mapped += len;
        self.serials += 1;
        Some(self.enter(Buffer { base, len, lent: 0, arena, serial: self.serials, adopted: None }))
    }

    fn enter(&mut self, buffer: Buffer) -> BufferId {
        match self.free.pop() {
            Some(slot) => {
                self.buffers[slot as usize] = Some(buffer);
                BufferId(slot)
            }
            None => {
                self.buffers.push(Some(buffer));
                BufferId(self.buffers.len() as u32 - 1)
            }
        }
    }

    /// Makes a buffer of bytes that somebody has collected, for one send or receive; `release` gives them back.
    pub fn adopt(&mut self, mut bytes: Vec<u8>) -> BufferId {
        assert!(!bytes.is_empty(), "a buffer has bytes");
        self.serials += 1;
        let (base, len) = (NonNull::from(bytes.as_mut_slice()).cast(), bytes.len());
        self.enter(Buffer { base, len, lent: 0, arena: false, serial: self.serials, adopted: Some(bytes) })
    }

    /// The bytes of an adopted buffer of which nothing is lent.
    pub fn release(&mut self, id: BufferId) -> Vec<u8> {
        let buffer = self.buffers.get_mut(id.0 as usize).and_then(Option::take);
        let Some(Buffer { lent, adopted: Some(bytes), .. }) = buffer else {
            panic!("{id:?} was not adopted");
        };
        assert_eq!(lent, 0, "{id:?} is released while the kernel has it"); // R1
        self.free.push(id.0);
        bytes
    }

    /// Unmaps a buffer of which nothing is lent.
    pub fn free(&mut self, id: BufferId) {
        let Some(buffer) = self.buffers.get_mut(id.0 as usize).and_then(Option::take) else {
            panic!("{id:?} is freed twice");
        };
        assert!(buffer.adopted.is_none(), "{id:?} is released, not freed");
        assert_eq!(buffer.lent, 0, "{id:?} is freed while the kernel has it"); // R1
        self.mapped -= buffer.len;
        self.free.push(id.0);
        unmap(buffer.base, buffer.len, buffer.arena);
    }

    fn get(&self, id: BufferId) -> &Buffer {
        match self.buffers.get(id.0 as usize) {
            Some(Some(buffer)) => buffer,
            _ => panic!("{id:?} does not exist"),
        }
    }

    fn check(&self, range: BufRange) -> &Buffer {
        let buffer = self.get(range.buffer);
        let end = range.start() + range.len();
        assert!(end <= buffer.len, "{range:?} ends behind the {} bytes of its buffer", buffer.len);
        buffer
    }

    /// Size of a buffer.
    pub fn len(&self, id: BufferId) -> usize {
        self.get(id).len
    }

    /// No buffers.
    pub fn is_empty(&self) -> bool {
        self.mapped == 0
    }

    /// Bytes of address space in all buffers: the bound of what they can take.
    pub fn mapped(&self) -> usize {
        self.mapped
    }

    /// Whether a buffer was made as an arena.
    pub fn is_arena(&self, id: BufferId) -> bool {
        self.get(id).arena
    }

    /// Which of all buffers that ever were has this id now; `None` if it was freed.
    pub(super) fn serial(&self, id: BufferId) -> Option<u64> {
        Some(self.buffers.get(id.0 as usize)?.as_ref()?.serial)
    }

    /// The bytes of a range.
    pub fn bytes(&self, range: BufRange) -> &[u8] {
        let buffer = self.check(range);
        // SAFETY: inside one mapping that lives as long as `self`; the kernel writes only to ranges that were
        // lent to a read and that nobody looks at before the completion (R1).
        unsafe { std::slice::from_raw_parts(buffer.base.as_ptr().add(range.start()), range.len()) }
    }

    /// The bytes of a range, to change.
    pub fn bytes_mut(&mut self, range: BufRange) -> &mut [u8] {
        let buffer = self.check(range);
        // SAFETY: as `bytes`; `&mut self` excludes every other slice (R1).
        unsafe { std::slice::from_raw_parts_mut(buffer.base.as_ptr().add(range.start()), range.len()) }
    }

    /// Copies inside one buffer; the ranges may overlap.
    pub fn copy_within(&mut self, buffer: BufferId, from: usize, to: usize, len: usize) {
        let size = self.len(buffer);
        self.bytes_mut(BufRange::new(buffer, 0, size)).copy_within(from..from + len, to);
    }

    /// Two ranges of different buffers, the second to change.
    pub fn pair(&mut self, from: BufRange, to: BufRange) -> (&[u8], &mut [u8]) {
        assert_ne!(from.buffer, to.buffer, "a pair is of two buffers");
        let source = self.check(from).base.as_ptr();
        let target = self.check(to).base.as_ptr();
        // SAFETY: two ranges of two distinct mappings, both inside (R1); `&mut self` excludes other slices.
        unsafe {
            (
                std::slice::from_raw_parts(source.add(from.start()), from.len()),
                std::slice::from_raw_parts_mut(target.add(to.start()), to.len()),
            )
        }
    }

    /// The address of a range that is being lent to the kernel; counted until `give_back`.
    pub(super) fn lend(&mut self, range: BufRange) -> *mut u8 {
        let base = self.check(range).base.as_ptr();
        if let Some(Some(buffer)) = self.buffers.get_mut(range.buffer.0 as usize) {
            buffer.lent += 1;
        }
        // SAFETY: `check` has shown that the range lies inside the mapping (R1).
        unsafe { base.add(range.start()) }
    }

    /// The kernel has finished with a range of this buffer.
    pub(super) fn give_back(&mut self, id: BufferId) {
        match self.buffers.get_mut(id.0 as usize) {
            Some(Some(buffer)) if buffer.lent > 0 => buffer.lent -= 1,
            _ => panic!("{id:?} came back without having been lent"),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for buffer in self.buffers.drain(..).flatten() {
            // A ring that is dropped with ops in flight leaks their buffers: the kernel may still write there.
            match (buffer.lent, buffer.adopted) {
                (0, None) => unmap(buffer.base, buffer.len, buffer.arena),
                (0, Some(bytes)) => drop(bytes),
                (_, adopted) => std::mem::forget(adopted),
            }
        }
    }
}
