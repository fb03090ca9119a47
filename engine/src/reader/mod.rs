//! Cold reads: pages of segments and sidecars that are not in the log's arena.
//!
//! A fetch asks for a page; if it is not here the fetch is parked and the page is read. Pages live in an arena of
//! their own, so that a reader who catches up can never evict the tail.
//!
//! Invariants  C1  A page that is being read is looked at by nobody.
//!             C2  While commits are going on, one read is in flight, and they come at a bounded rate; more only
//!                 when the shard has been idle.
//!             C3  Every frame that leaves here was checked: header, place and payload. The index is never believed.
//! Ignorant of partitions' states and connections.

use crate::log::arena::PIECE_SIZE;
use crate::log::room;
use crate::ring::{BufRange, BufferId, Completion, Errno, FileId, Op, Ring, Token};
use ringmq_format::SegmentSeq;
use ringmq_format::limits::{BLOCK_SIZE, COLD_GROWTH_PERIOD_US, COLD_PAGE_SIZE, COLD_RATE_BUSY};
use std::collections::{HashMap, VecDeque};

/// Reads in flight when nothing else is going on: together 1 MiB.
const READS_IDLE: usize = 8;
/// Time from one read to the next while commits go on.
const READ_PERIOD_US: u64 = COLD_PAGE_SIZE as u64 * 1_000_000 / COLD_RATE_BUSY;
/// Pages that may be asked for and not read yet.
const WANTED_MAX: usize = 4096;
/// Smallest cold arena.
pub const COLD_SIZE_MIN: usize = 8 << 20;
/// Pages of it: two of the largest frames fit.
const PAGES_MIN: usize = COLD_SIZE_MIN / COLD_PAGE_SIZE;
/// Pages by which the arena grows: as much memory as is registered with the kernel at once.
const GROWTH_PAGES: usize = PIECE_SIZE / COLD_PAGE_SIZE;

/// One page of a file. The segment's number makes a recycled slot's pages different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageKey {
    /// The file.
    pub file: FileId,
    /// The segment that lives in it.
    pub segment: SegmentSeq,
    /// Which page.
    pub page: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageState {
    Reading,
    /// So many bytes may be looked at.
    Ready(usize),
    Failed(Errno),
}

#[derive(Clone, Copy, Debug)]
struct Page {
    key: Option<PageKey>,
    state: PageState,
    /// Looked at since the hand has passed.
    used: bool,
    generation: u32,
    /// Bytes of the page that are good to read; less than a page at the end of the log, or of the file.
    durable: usize,
    /// Bytes of it that were read: a read may be cut short.
    read: usize,
    /// Read block by block, because the medium does not give some of it.
    careful: bool,
    /// One bit for each block that it does not give.
    bad: u32,
}

const _: () = assert!(COLD_PAGE_SIZE / BLOCK_SIZE <= u32::BITS as usize);

impl Page {
    const EMPTY: Self = Self {
        key: None,
        state: PageState::Ready(0),
        used: false,
        generation: 0,
        durable: 0,
        read: 0,
        careful: false,
        bad: 0,
    };

    fn is_bad(&self, from: usize, to: usize) -> bool {
        (from / BLOCK_SIZE..to.div_ceil(BLOCK_SIZE)).any(|block| self.bad >> block & 1 == 1)
    }
}

/// What a look at a page gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Its bytes; fewer than a page at the end of a file.
    Here(BufRange),
    /// Being read, or asked for now.
    Coming,
    /// The medium does not give it.
    Failed(Errno),
}

/// The cold arena and its reads.
#[derive(Debug)]
pub struct ColdCache {
    buffer: BufferId,
    pages: Vec<Page>,
    by_key: HashMap<PageKey, u32, std::hash::BuildHasherDefault<KeyHasher>>,
    wanted: VecDeque<PageKey>,
    in_flight: usize,
    /// Not before this, while commits go on.
    next_read_us: u64,
    /// Goes round the pages; one that was not used since it has passed is given up.
    hand: usize,
    /// Pages that may be used, and how many of them have been: the others are memory that was never touched.
    open: usize,
    fresh: usize,
    /// Not before this, while commits go on, may more be used.
    grow_at_us: u64,
    reads: u64,
    progressed: bool,
}

/// Keys are few small numbers and not chosen by peers; a deterministic hash keeps the engine deterministic.
#[derive(Default, Debug)]
pub struct KeyHasher(u64);

impl std::hash::Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl ColdCache {
    /// A cold arena of `size` bytes; `None` when the kernel has no memory.
    pub fn new(ring: &mut Ring, size: usize) -> Option<Self> {
        let count = size.max(COLD_SIZE_MIN) / COLD_PAGE_SIZE;
        let buffer = ring.memory.alloc(count * COLD_PAGE_SIZE, true)?;
        Some(Self {
            buffer,
            pages: vec![Page::EMPTY; count],
            by_key: HashMap::default(),
            wanted: VecDeque::new(),
            in_flight: 0,
            next_read_us: 0,
            hand: 0,
            open: PAGES_MIN,
            fresh: 0,
            grow_at_us: 0,
            reads: 0,
            progressed: false,
        })
    }

    fn range(&self, index: u32, len: usize) -> BufRange {
        BufRange::new(self.buffer, index as usize * COLD_PAGE_SIZE, len)
    }

    /// Looks at the bytes `from..to` of a page; asks for it if they are not here. The range begins with the page.
    pub fn look(&mut self, key: PageKey, from: usize, to: usize) -> Look {
        let Some(index) = self.by_key.get(&key).copied() else {
            self.want(key);
            return Look::Coming;
        };
        let page = &mut self.pages[index as usize];
        page.used = true;
        let (gone, look) = match page.state {
            PageState::Ready(len) if to <= len && page.is_bad(from, to) => (false, Look::Failed(Errno::IO)),
            PageState::Ready(len) if to <= len => (false, Look::Here(self.range(index, len))),
            PageState::Reading => (false, Look::Coming),
            // Read before the log had come this far: the page is read again.
            PageState::Ready(_) => (true, Look::Coming),
            // The next look tries again: an error may have been of the moment.
            PageState::Failed(error) => (true, Look::Failed(error)),
        };
        if gone {
            let page = &mut self.pages[index as usize];
            page.key = None;
            page.state = PageState::Ready(0);
            self.by_key.remove(&key);
            if look == Look::Coming {
                self.want(key);
            }
        }
        look
    }

    /// Asks for a page that will be needed soon.
    pub fn want(&mut self, key: PageKey) {
        if self.wanted.len() < WANTED_MAX && !self.by_key.contains_key(&key) && !self.wanted.contains(&key) {
            self.wanted.push_back(key);
        }
    }

    /// Is this page here or coming?
    pub fn knows(&self, key: PageKey) -> bool {
        self.by_key.contains_key(&key)
    }

    /// Submits reads: one while the log is busy, and at a bounded rate; more when it is not (C2).
    ///
    /// `durable` answers how many bytes of a file are durable: what lies behind may change under the read.
    pub fn turn(&mut self, ring: &mut Ring, log_is_busy: bool, durable: &dyn Fn(&PageKey) -> u64) {
        let limit = if log_is_busy { 1 } else { READS_IDLE };
        let now = ring.now().mono_us;
        while self.in_flight < limit && (!log_is_busy || now >= self.next_read_us) {
            let Some(key) = self.wanted.pop_front() else { return };
            let Some(index) = self.victim(now, log_is_busy) else {
                self.wanted.push_front(key);
                return;
            };
            if let Some(old) = self.pages[index].key.take() {
                self.by_key.remove(&old);
            }
            let generation = self.pages[index].generation.wrapping_add(1) & 0x00ff_ffff;
            let start = u64::from(key.page) * COLD_PAGE_SIZE as u64;
            let durable = durable(&key).saturating_sub(start).min(COLD_PAGE_SIZE as u64) as usize;
            let durable = durable / BLOCK_SIZE * BLOCK_SIZE;
            let state = if durable == 0 { PageState::Failed(Errno::IO) } else { PageState::Reading };
            self.pages[index] =
                Page { key: Some(key), state, used: true, generation, durable, ..Page::EMPTY };
            self.by_key.insert(key, index as u32);
            if durable == 0 {
                self.progressed = true; // nothing there: whoever waits is told
                continue;
            }
            self.submit(ring, index as u32);
            self.in_flight += 1;
            self.reads += 1;
            // What was not used of the rate is lost, but for one read.
            let from =
                if log_is_busy { self.next_read_us.max(now.saturating_sub(READ_PERIOD_US)) } else { now };
            self.next_read_us = from + READ_PERIOD_US;
        }
    }

    /// Reads what is missing of a page.
    fn submit(&self, ring: &mut Ring, index: u32) {
        let page = &self.pages[index as usize];
        let Some(key) = page.key else { panic!("page {index} is read for nobody") };
        let end = if page.careful { page.read + BLOCK_SIZE } else { page.durable };
        let into = self.range(index, end).skip(page.read);
        let position = u64::from(key.page) * COLD_PAGE_SIZE as u64 + page.read as u64;
        ring.submit(
            Token::new(room::COLD, page.generation, index),
            Op::Read { file: key.file, into, position },
        );
    }

    /// A page for the next read: a new one where the arena may grow, else one that was not used lately.
    fn victim(&mut self, now: u64, log_is_busy: bool) -> Option<usize> {
        let may_grow = !log_is_busy || now >= self.grow_at_us;
        if self.fresh == self.open && self.open < self.pages.len() && may_grow {
            self.open = (self.open + GROWTH_PAGES).min(self.pages.len());
            self.grow_at_us = now + COLD_GROWTH_PERIOD_US;
        }
        if self.fresh < self.open {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        // In the first round every page may turn out to be used; in the second none is.
        for _ in 0..2 * self.open {
            let index = self.hand;
            self.hand = (index + 1) % self.open;
            let page = &mut self.pages[index];
            if page.state != PageState::Reading && !std::mem::take(&mut page.used) {
                return Some(index);
            }
        }
        None
    }

    /// When a read that is wanted may be submitted, if no completion brings the turn that does.
    pub fn deadline(&self) -> Option<u64> {
        (self.in_flight == 0 && !self.wanted.is_empty()).then_some(self.next_read_us)
    }

    /// Takes the completion of a read.
    pub fn complete(&mut self, ring: &mut Ring, completion: &Completion) {
        let page = &mut self.pages[completion.token.slot as usize];
        assert_eq!(page.generation, completion.token.generation, "a read of another life of the page"); // R3
        page.state = match completion.result {
            Ok(0) => PageState::Failed(Errno::IO), // the file has become shorter
            Err(error) if error != Errno::IO => PageState::Failed(error),
            result => {
                match result {
                    Ok(len) => page.read += len as usize / BLOCK_SIZE * BLOCK_SIZE,
                    // One bad sector does not take its neighbours with it.
                    Err(_) if page.careful => {
                        page.bad |= 1 << (page.read / BLOCK_SIZE);
                        page.read += BLOCK_SIZE;
                    }
                    Err(_) => page.careful = true,
                }
                if page.read < page.durable {
                    return self.submit(ring, completion.token.slot);
                }
                PageState::Ready(page.durable)
            }
        };
        self.in_flight -= 1;
        self.progressed = true;
    }

    /// Parked fetches may go on for another reason.
    pub fn note_progress(&mut self) {
        self.progressed = true;
    }

    /// A page has come since the last call: parked fetches may go on.
    pub fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    /// Reads so far.
    pub fn reads(&self) -> u64 {
        self.reads
    }

    /// Reads are in flight or wanted.
    pub fn is_busy(&self) -> bool {
        self.in_flight > 0 || !self.wanted.is_empty()
    }
}
