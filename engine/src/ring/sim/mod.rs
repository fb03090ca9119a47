//! A deterministic world: disks, clocks, sockets and time from one seed, behind the same [`Ring`](super::Ring) as
//! the kernel.
//!
//! A [`World`] is one thread's. Each node in it has one disk and one wall clock, and any number of rings (the
//! shards of its process). A harness runs rings and world in turns:
//! ```text
//! loop {
//!     let runnable = world.runnable();
//!     if runnable.is_empty() { if !world.step() { break } }      // time passes, one event happens
//!     else { tick(runnable[world.pick(runnable.len())]) }        // one turn of that ring's shard
//! }
//! ```
//!
//! Invariants  W1  nothing depends on anything but the seed, the configuration and the calls made
//!             W2  time moves only in `step`, `advance` and `run`
//!             W3  what a write or send takes is what the buffer held at submission, and the buffer still holds it
//!                 when it is given back; a buffer that is read into holds garbage until then
//!             W4  a ring of a node that was killed or lost power gets nothing any more, and changes nothing
//! States      of a node: its process runs -[kill]-> dead, completed writes stay · -[power_off]-> dead, and what was
//!             not durable has a fate each; [`World::ring`] starts the next process on what is left
//! Where the rules of the disk are: `disk`; of the network: `net`; what can be asked for: [`SimConfig`].
//! Tests       engine/tests/ring_sim.rs

mod config;
mod disk;
mod fault;
mod net;
mod ring;
mod rng;
mod state;

pub use config::{ClockConfig, CrashModel, DiskConfig, DiskFaults, Fresh, Latency, NetConfig, SimConfig};
pub use disk::{CrashPoint, DiskImage};
pub use fault::{Fault, FaultCounts, Harm, OpKind};
pub use net::ClientSocket;
pub use ring::{SimDoorbell, SimRing};

use super::{Errno, Ring};
use state::{Ending, State};
use std::cell::{Ref, RefCell, RefMut};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A machine: one disk, one wall clock, one process at a time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u32);

impl From<u32> for NodeId {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

/// A ring of the world, in the order of their making; never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RingId(pub u32);

/// The handle of a world; clones are the same world.
#[derive(Clone)]
pub struct World {
    state: Rc<RefCell<State>>,
}

impl World {
    /// A world with empty disks.
    pub fn new(seed: u64, config: SimConfig) -> Self {
        Self { state: Rc::new(RefCell::new(State::new(seed, config))) }
    }

    /// A world in which one node has a disk already.
    pub fn with_disk_image(seed: u64, config: SimConfig, node: impl Into<NodeId>, image: &DiskImage) -> Self {
        let world = Self::new(seed, config);
        world.set_disk_image(node, image);
        world
    }

    fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    fn state_mut(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    // Rings and time.

    /// A new ring of the node's process. After a kill or power loss the first one starts the next process.
    pub fn ring(&self, node: impl Into<NodeId>) -> Ring {
        let (id, bell) = self.state_mut().add_ring(node.into());
        Ring::sim(SimRing::new(Rc::clone(&self.state), id, bell))
    }

    /// Virtual time.
    pub fn now_us(&self) -> u64 {
        self.state().now
    }

    /// The next thing happens: an event (completion, packet, connection), or time reaches the deadline of a ring
    /// that sleeps. False if nothing will ever happen by itself.
    pub fn step(&self) -> bool {
        self.state_mut().step()
    }

    /// Time passes and everything due in it happens.
    pub fn advance(&self, us: u64) {
        self.state_mut().advance(us);
    }

    /// Whether a ring would return from its `wait` now: it never waited, has completions or something queued, its
    /// doorbell rang, or its deadline is reached.
    pub fn ring_is_runnable(&self, ring: RingId) -> bool {
        self.state().is_runnable(ring)
    }

    /// All such rings, ascending.
    pub fn runnable(&self) -> Vec<RingId> {
        let state = self.state();
        state.living().iter().copied().filter(|&ring| state.is_runnable(ring)).collect()
    }

    /// Whether the ring's process lives.
    pub fn ring_is_alive(&self, ring: RingId) -> bool {
        self.state().ring(ring).alive
    }

    /// When the first sleeping ring wants to be woken, in virtual time.
    pub fn next_deadline(&self) -> Option<u64> {
        self.state().next_deadline()
    }

    /// When the next event happens, in virtual time.
    pub fn next_event(&self) -> Option<u64> {
        self.state().next_event()
    }

    /// A choice among `count`, from the stream of the schedule: which ring goes next.
    pub fn pick(&self, count: usize) -> usize {
        self.state_mut().random.schedule.below(count as u64) as usize
    }

    /// A random number for whoever drives the world: what to send, when to crash.
    pub fn random(&self) -> u64 {
        self.state_mut().random.workload.next()
    }

    /// As `random`, below a bound.
    pub fn random_below(&self, bound: u64) -> u64 {
        self.state_mut().random.workload.below(bound)
    }

    // What happened.

    /// A hash over everything that happened so far, in order: equal seeds give equal hashes.
    pub fn trace_hash(&self) -> u64 {
        self.state().trace.hash
    }

    /// The last events in words, oldest first; empty unless the configuration keeps some.
    pub fn trace(&self) -> Vec<String> {
        self.state().trace.lines.iter().cloned().collect()
    }

    /// What went wrong so far, in all nodes.
    pub fn faults(&self) -> FaultCounts {
        self.state().faults
    }

    /// A line of the harness's own in the trace.
    pub fn note(&self, text: &str) {
        self.state_mut().note(text);
    }

    /// Submissions and completions of the node's disk ops so far, over all its processes.
    pub fn io_events(&self, node: impl Into<NodeId>) -> u64 {
        self.state_mut().node(node.into()).io_events
    }

    // Ends of a process.

    /// The power goes off right after the `event`th disk event of the node (as [`World::io_events`] counts); at
    /// once if that is past. Works inside `run` too. A later call replaces an earlier one.
    pub fn crash_at(&self, node: impl Into<NodeId>, event: u64) {
        self.state_mut().end_at(node.into(), event, Ending::PowerOff);
    }

    /// As `crash_at`, but only the process dies.
    pub fn kill_at(&self, node: impl Into<NodeId>, event: u64) {
        self.state_mut().end_at(node.into(), event, Ending::Kill);
    }

    /// The power goes off, now.
    pub fn power_off(&self, node: impl Into<NodeId>) {
        self.state_mut().end_process(node.into(), Ending::PowerOff);
    }

    /// The process dies, now: completed writes stay, not durable; submitted ones happen or do not.
    pub fn kill(&self, node: impl Into<NodeId>) {
        self.state_mut().end_process(node.into(), Ending::Kill);
    }

    // Disks.

    /// The disk as it is: what completed, with what of it is durable. Ops in flight are not in it.
    pub fn disk_image(&self, node: impl Into<NodeId>) -> DiskImage {
        DiskImage(self.state_mut().node(node.into()).disk.clone())
    }

    /// The disk as one power loss now would leave it; `crash_seed` chooses which. The world goes on untouched, so
    /// that one run gives as many crashes as are wanted.
    pub fn crashed_image(&self, node: impl Into<NodeId>, crash_seed: u64) -> DiskImage {
        DiskImage(self.state_mut().crashed_disk(node.into(), crash_seed))
    }

    /// From now on each disk event of the node leaves a [`CrashPoint`], for [`World::take_crash_points`].
    pub fn record_crash_points(&self, node: impl Into<NodeId>, wanted: bool) {
        self.state_mut().node(node.into()).crash_points = wanted.then(Vec::new);
    }

    /// Every moment at which the power could have gone off since the last call, one for each disk event.
    pub fn take_crash_points(&self, node: impl Into<NodeId>) -> Vec<CrashPoint> {
        self.state_mut().node(node.into()).crash_points.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Puts a disk into a node whose process does not run.
    pub fn set_disk_image(&self, node: impl Into<NodeId>, image: &DiskImage) {
        self.state_mut().set_disk(node.into(), image);
    }

    /// Files of a node with their sizes, by path.
    pub fn files(&self, node: impl Into<NodeId>) -> Vec<(PathBuf, u64)> {
        self.state_mut().node(node.into()).disk.files()
    }

    /// Bytes of a file as a read would see them, up to its end.
    pub fn peek(
        &self,
        node: impl Into<NodeId>,
        path: impl AsRef<Path>,
        position: u64,
        len: usize,
    ) -> Result<Vec<u8>, Errno> {
        self.state_mut().node(node.into()).disk.peek(path.as_ref(), position, len)
    }

    /// Changes bytes of a file behind everybody's back, durably; grows it where it must.
    pub fn poke(
        &self,
        node: impl Into<NodeId>,
        path: impl AsRef<Path>,
        position: u64,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        self.state_mut().node(node.into()).disk.poke(path.as_ref(), position, bytes)
    }

    /// Flips one stored bit, counted from the file's first.
    pub fn flip_bit(&self, node: impl Into<NodeId>, path: impl AsRef<Path>, bit: u64) -> Result<(), Errno> {
        let mut state = self.state_mut();
        let disk = &mut state.node(node.into()).disk;
        let ino = disk.lookup(path.as_ref())?;
        disk.rot(ino, bit)
    }

    /// Cuts a file behind everybody's back, durably.
    pub fn truncate(&self, node: impl Into<NodeId>, path: impl AsRef<Path>, len: u64) -> Result<(), Errno> {
        self.state_mut().node(node.into()).disk.truncate(path.as_ref(), len)
    }

    /// Removes a file behind everybody's back, durably.
    pub fn remove(&self, node: impl Into<NodeId>, path: impl AsRef<Path>) -> Result<(), Errno> {
        self.state_mut().node(node.into()).disk.remove(path.as_ref())
    }

    /// Makes the sectors of a range give `EIO` until they are written again.
    pub fn make_unreadable(
        &self,
        node: impl Into<NodeId>,
        path: impl AsRef<Path>,
        position: u64,
        len: u64,
    ) -> Result<(), Errno> {
        self.state_mut().node(node.into()).disk.make_unreadable(path.as_ref(), position, len)
    }

    /// Where a file's extents end; instead of the configured edges.
    pub fn set_extent_edges(
        &self,
        node: impl Into<NodeId>,
        path: impl AsRef<Path>,
        edges: Vec<u64>,
    ) -> Result<(), Errno> {
        let mut state = self.state_mut();
        let disk = &mut state.node(node.into()).disk;
        let ino = disk.lookup(path.as_ref())?;
        disk.file_mut(ino)?.extent_edges = Some(edges);
        Ok(())
    }

    /// Bytes that the node's files may take from now on.
    pub fn set_budget(&self, node: impl Into<NodeId>, bytes: u64) {
        self.state_mut().node(node.into()).disk.budget = bytes;
    }

    /// Bytes that the node's files take.
    pub fn disk_taken(&self, node: impl Into<NodeId>) -> u64 {
        self.state_mut().node(node.into()).disk.taken()
    }

    /// Plans a fault; each planned one counts the ops it fits from now on.
    pub fn inject(&self, node: impl Into<NodeId>, fault: Fault) {
        self.state_mut().node(node.into()).faults.push(fault::Armed::new(fault));
    }

    /// Forgets all planned faults of a node, and lets nothing more fail by itself anywhere: for the phase in which
    /// progress is demanded.
    pub fn heal(&self) {
        self.state_mut().heal();
    }

    /// Changes the configuration of faults, latencies and crashes from now on.
    pub fn configure(&self, change: impl FnOnce(&mut SimConfig)) {
        change(&mut self.state_mut().config);
    }

    // Clocks.

    /// The node's wall clock, Unix milliseconds.
    pub fn wall_ms(&self, node: impl Into<NodeId>) -> i64 {
        self.state_mut().wall_ms(node.into())
    }

    /// Sets a node's wall clock forward or back.
    pub fn jump_clock(&self, node: impl Into<NodeId>, ms: i64) {
        self.state_mut().node(node.into()).clock_ms += ms;
    }

    // Clients.

    /// A client dials a port of a node. Refusal is seen as [`World::client_closed`].
    pub fn connect(&self, node: impl Into<NodeId>, port: u16) -> ClientSocket {
        self.state_mut().client_connect(node.into(), port)
    }

    /// Gives bytes to the client's side, which sends them as the connection takes them.
    pub fn client_send(&self, socket: ClientSocket, bytes: &[u8]) {
        self.state_mut().client_send(socket, bytes);
    }

    /// Bytes of `client_send` that the connection has not taken yet.
    pub fn client_unsent(&self, socket: ClientSocket) -> usize {
        self.state().client_unsent(socket)
    }

    /// Takes all that arrived.
    pub fn client_recv(&self, socket: ClientSocket) -> Vec<u8> {
        self.state_mut().client_recv(socket, usize::MAX)
    }

    /// Takes up to `max` bytes of what arrived: a slow client.
    pub fn client_recv_some(&self, socket: ClientSocket, max: usize) -> Vec<u8> {
        self.state_mut().client_recv(socket, max)
    }

    /// Bytes that arrived and were not taken.
    pub fn client_readable(&self, socket: ClientSocket) -> usize {
        self.state().client_readable(socket)
    }

    /// The server has taken the connection.
    pub fn client_accepted(&self, socket: ClientSocket) -> bool {
        self.state().client_accepted(socket)
    }

    /// Nothing will arrive any more: the server has finished and all was taken, or the connection was reset or
    /// refused.
    pub fn client_closed(&self, socket: ClientSocket) -> bool {
        self.state().client_closed(socket)
    }

    /// The connection was reset or refused.
    pub fn client_was_reset(&self, socket: ClientSocket) -> bool {
        self.state().client_was_reset(socket)
    }

    /// The client has sent all it will (after what is unsent), and still reads.
    pub fn client_finish(&self, socket: ClientSocket) {
        self.state_mut().client_finish(socket);
    }

    /// The client closes: what is unsent still goes, what arrives later is answered by a reset.
    pub fn client_close(&self, socket: ClientSocket) {
        self.state_mut().client_close(socket);
    }

    /// The connection breaks, for both sides.
    pub fn drop_connection(&self, socket: ClientSocket) {
        self.state_mut().drop_connection(socket);
    }

    /// From now on nothing arrives on either side, and nobody is told.
    pub fn black_hole(&self, socket: ClientSocket) {
        self.state_mut().black_hole(socket);
    }
}
