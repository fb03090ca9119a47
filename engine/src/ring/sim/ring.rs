//! One ring of the world: lends buffers, and checks what happened to them (W3).

use super::disk::{PAGE, Page, Pages, normal};
use super::state::{Data, Delivered, Payload, State};
use super::{NodeId, RingId};
use crate::ring::{
    BufRange, Completion, DirEntry, Doorbell, DoorbellBack, Errno, FileFacts, FileId, Memory, Now, Op,
    RingReport, RingStats, SocketId, Token,
};
use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A buffer that the world has.
enum Lent {
    /// A write: must come back as it went.
    Pages(BufRange, Pages),
    /// A send, likewise.
    Bytes(BufRange, Rc<Vec<u8>>),
    /// A read or receive: its first bytes are this one until it completes.
    Into(BufRange, usize, u8),
    /// One that will be refused.
    Refused(BufRange),
}

impl Lent {
    fn range(&self) -> BufRange {
        match *self {
            Self::Pages(range, _) | Self::Bytes(range, _) | Self::Into(range, ..) | Self::Refused(range) => {
                range
            }
        }
    }
}

/// The simulator's side of a [`Ring`](crate::ring::Ring).
pub struct SimRing {
    state: Rc<RefCell<State>>,
    id: RingId,
    lent: BTreeMap<u64, Lent>,
    now: Now,
    bell: Arc<AtomicBool>,
    zero: Rc<Page>,
}

/// Wakes a ring of the world. From any thread, but only one thread makes it deterministic.
#[derive(Clone)]
pub struct SimDoorbell(Arc<AtomicBool>);

impl SimDoorbell {
    /// Makes the ring runnable.
    pub fn ring(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Which buffer an op lends.
fn buffer(op: &Op) -> Option<BufRange> {
    match *op {
        Op::Write { from, .. } | Op::Send { from, .. } => Some(from),
        Op::Read { into, .. } | Op::Recv { into, .. } => Some(into),
        _ => None,
    }
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Write { .. } => "a write",
        Op::Read { .. } => "a read",
        Op::SyncData { .. } | Op::SyncAll { .. } | Op::SyncDir { .. } => "a sync",
        Op::Open { .. } => "an open",
        Op::Allocate { .. } => "an allocation",
        Op::Close { .. } | Op::CloseSocket { .. } => "a close",
        Op::Accept { .. } => "an accept",
        Op::Recv { .. } => "a receive",
        Op::Send { .. } => "a send",
        Op::Shutdown { .. } => "a shutdown",
    }
}

impl SimRing {
    pub(super) fn new(state: Rc<RefCell<State>>, id: RingId, bell: Arc<AtomicBool>) -> Self {
        let zero = Rc::new([0; PAGE]);
        let mut ring = Self { state, id, lent: BTreeMap::new(), now: Now::default(), bell, zero };
        ring.read_clock();
        ring
    }

    pub(crate) fn id(&self) -> RingId {
        self.id
    }

    fn world(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    fn node(&self) -> NodeId {
        self.world().ring(self.id).node
    }

    /// A dead process gets nothing more (W4).
    fn alive(&self) -> Result<(), Errno> {
        if self.world().ring(self.id).alive { Ok(()) } else { Err(Errno::POWER_OFF) }
    }

    fn capture(&self, bytes: &[u8]) -> Pages {
        let page = |page: &Page| if *page == *self.zero { Rc::clone(&self.zero) } else { Rc::new(*page) };
        Rc::new(bytes.as_chunks().0.iter().map(page).collect())
    }

    fn queue(&mut self, memory: &mut Memory, token: Option<Token>, op: Op) {
        let mut world = self.state.borrow_mut();
        let id = world.next_op();
        let mut payload = Payload::None;
        if let Some(range) = buffer(&op) {
            memory.lend(range);
            let lent = match op {
                Op::Write { position, .. }
                    if !position.is_multiple_of(PAGE as u64)
                        || !range.len().is_multiple_of(PAGE)
                        || !range.start().is_multiple_of(PAGE) =>
                {
                    Lent::Refused(range)
                }
                Op::Write { .. } => {
                    let pages = self.capture(memory.bytes(range));
                    payload = Payload::Pages(Rc::clone(&pages));
                    Lent::Pages(range, pages)
                }
                Op::Send { .. } => {
                    let bytes = Rc::new(memory.bytes(range).to_vec());
                    payload = Payload::Bytes(Rc::clone(&bytes));
                    Lent::Bytes(range, bytes)
                }
                _ => {
                    // Behind the end of a file nothing can come, and reads of whole windows would cost the most.
                    let can_come = world.can_come(self.id, &op).min(range.len());
                    let scribble = 0xa1 + (id % 89) as u8;
                    memory.bytes_mut(range)[..can_come].fill(scribble);
                    Lent::Into(range, can_come, scribble)
                }
            };
            self.lent.insert(id, lent);
        }
        world.queue(self.id, id, token, op, payload);
    }

    /// Takes the buffer of a completion back.
    fn finish(&mut self, memory: &mut Memory, delivered: Delivered) -> Result<u32, Errno> {
        if let Some(lent) = self.lent.remove(&delivered.id) {
            let range = lent.range();
            match &lent {
                Lent::Pages(_, pages) => {
                    let now = memory.bytes(range).chunks_exact(PAGE);
                    let same = now.zip(pages.iter()).all(|(now, then)| now == &then[..]);
                    assert!(same, "buffer changed while lent: {range:?} of a write"); // W3
                }
                Lent::Bytes(_, bytes) => {
                    let same = memory.bytes(range) == &bytes[..];
                    assert!(same, "buffer changed while lent: {range:?} of a send"); // W3
                }
                Lent::Into(_, can_come, scribble) => {
                    let bytes = memory.bytes_mut(range);
                    let same = bytes[..*can_come].iter().step_by(61).all(|byte| byte == scribble);
                    assert!(same, "buffer changed while lent: {range:?} of a read"); // W3
                    match &delivered.data {
                        Data::None => {}
                        Data::Bytes(data) => bytes[..data.len()].copy_from_slice(data),
                        Data::Pages(pages, len) => {
                            for (target, page) in bytes[..*len].chunks_mut(PAGE).zip(pages) {
                                target.copy_from_slice(&page[..target.len()]);
                            }
                        }
                    }
                }
                Lent::Refused(_) => {}
            }
            memory.give_back(range.buffer);
        }
        delivered.result
    }

    /// The process is gone, and so is its kernel: all buffers come home unchecked.
    pub(crate) fn release(&mut self, memory: &mut Memory) {
        for lent in std::mem::take(&mut self.lent).into_values() {
            memory.give_back(lent.range().buffer);
        }
    }

    pub(crate) fn submit(&mut self, memory: &mut Memory, token: Token, op: Op) {
        if self.alive().is_ok() {
            self.queue(memory, Some(token), op);
        }
    }

    pub(crate) fn wait(&mut self, memory: &mut Memory, until_us: Option<u64>) {
        let alive = self.world().wait(self.id, until_us);
        if !alive {
            self.release(memory);
        }
        self.read_clock();
    }

    pub(crate) fn reap(&mut self, memory: &mut Memory, out: &mut Vec<Completion>, max: usize) {
        // The simulator's `wait` returns before time passes: it ends here.
        self.read_clock();
        for _ in 0..max {
            let Some((token, delivered)) = self.world().take_done(self.id) else { break };
            let result = self.finish(memory, delivered);
            out.push(Completion { token, result });
        }
    }

    pub(crate) fn run(&mut self, memory: &mut Memory, op: Op) -> Result<u32, Errno> {
        self.alive()?;
        let words = name(&op);
        self.queue(memory, None, op);
        self.world().run_begins(self.id);
        let result = loop {
            let mut world = self.state.borrow_mut();
            if !world.ring(self.id).alive {
                drop(world);
                self.release(memory);
                break Err(Errno::POWER_OFF);
            }
            if let Some(delivered) = world.take_run_done(self.id) {
                drop(world);
                break self.finish(memory, delivered);
            }
            assert!(world.next_happens(), "{words} never completes: nothing is left to happen");
        };
        self.read_clock();
        result
    }

    pub(crate) fn now(&self) -> Now {
        self.now
    }

    pub(crate) fn read_clock(&mut self) -> Now {
        let now = self.world().clocks(self.id);
        self.now = now;
        now
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.world().random.engine.next()
    }

    pub(crate) fn doorbell(&mut self) -> Doorbell {
        Doorbell(DoorbellBack::Sim(SimDoorbell(Arc::clone(&self.bell))))
    }

    pub(crate) fn make_dirs(&mut self, path: &Path) -> Result<(), Errno> {
        self.alive()?;
        let node = self.node();
        self.world().node(node).disk.make_dirs(path)
    }

    pub(crate) fn list_dir(&mut self, path: &Path) -> Result<Vec<DirEntry>, Errno> {
        self.alive()?;
        let node = self.node();
        let found = self.world().node(node).disk.list(path)?;
        Ok(found.into_iter().map(|(name, is_dir, size)| DirEntry { name, is_dir, size }).collect())
    }

    pub(crate) fn lock_dir(&mut self, path: &Path) -> Result<(), Errno> {
        self.alive()?;
        self.world().lock_dir(self.id, path)
    }

    pub(crate) fn file_facts(&mut self, file: FileId) -> Result<FileFacts, Errno> {
        self.alive()?;
        self.world().file_facts(self.id, file)
    }

    pub(crate) fn disk_free(&mut self, path: &Path) -> Result<u64, Errno> {
        self.alive()?;
        let node = self.node();
        let mut world = self.world();
        let disk = &world.node(node).disk;
        match disk.is_dir(&normal(path)) {
            Err(Errno::NOENT) => Err(Errno::NOENT),
            _ => Ok(disk.free()),
        }
    }

    pub(crate) fn listen(&mut self, addr: SocketAddr) -> Result<(SocketId, SocketAddr), Errno> {
        self.alive()?;
        self.world().listen(self.id, addr)
    }

    pub(crate) fn peer(&mut self, socket: SocketId) -> Option<SocketAddr> {
        self.world().peer(self.id, socket)
    }

    pub(crate) fn stats(&self) -> RingStats {
        self.world().ring(self.id).stats
    }

    pub(crate) fn report(&self) -> RingReport {
        RingReport { kernel: "simulated".to_owned(), fallbacks: Vec::new() }
    }
}

impl Drop for SimRing {
    /// The ring's thread ends, and with it its descriptors and locks; what was in flight happens or does not.
    fn drop(&mut self) {
        // Unwinding may come from inside the world.
        if let Ok(mut world) = self.state.try_borrow_mut() {
            world.ring_ends(self.id);
        }
    }
}
