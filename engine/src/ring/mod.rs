//! The only room that talks to the kernel: every syscall, descriptor, clock and random number is here.
//!
//! Other rooms push [`Op`]s and take [`Completion`]s. Two back ends carry them out: [`uring`], the kernel's
//! io_uring, and `sim`, a deterministic world of disks, clocks and sockets (only with the feature `sim`). Without
//! the feature one variant is left and the `match` costs nothing.
//!
//! Invariants  R1  a lent buffer is untouched until its completion was reaped (see [`memory`])
//!             R2  a descriptor outlives its ops: `Close` and `CloseSocket` complete last
//!             R3  a token's generation matches its slot, or the completion is dropped by the room
//! Ignorant of what the bytes mean: no room of the engine but this one is without `format`.

pub mod memory;
pub mod op;
#[cfg(feature = "sim")]
pub mod sim;
pub mod uring;

pub use memory::{BufRange, BufferId, Memory};
pub use op::{Completion, Errno, FileId, Op, SocketId, Token};

use std::path::Path;

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, microseconds since the ring was made. Deadlines and ages use this one.
    pub mono_us: u64,
    /// Wall clock, Unix milliseconds. May jump; only stamped and shown, never trusted.
    pub wall_ms: i64,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// Without its directory.
    pub name: String,
    /// Is it a directory?
    pub is_dir: bool,
    /// Bytes.
    pub size: u64,
}

/// What the file system says of an open file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// Bytes.
    pub size: u64,
    /// Alignment that direct I/O asks of positions and lengths; at least 512. 4096 where the kernel does not say.
    pub dio_align: u32,
    /// Positions at which one extent ends and another begins, ascending, without 0 and the end: a write that
    /// crosses one is handed to a kernel worker.
    pub extent_edges: Vec<u64>,
}

/// What a ring does in its life, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Ops submitted.
    pub submitted: u64,
    /// Completions reaped.
    pub reaped: u64,
    /// Ops whose buffer was registered.
    pub fixed: u64,
    /// Syncs submitted: each goes through a kernel worker by the kernel's design.
    pub syncs: u64,
}

/// What was asked for and could not be had, in words for the banner. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingReport {
    /// "6.18", from uname.
    pub kernel: String,
    /// One line each: "registered buffers off: RLIMIT_MEMLOCK is 64 KiB".
    pub fallbacks: Vec<String>,
}

/// How big a ring is made.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Submission entries; a power of two. Completions have four times as many.
    pub entries: u32,
    /// Files and sockets open at once.
    pub descriptors_max: u32,
    /// Register buffers of arenas with the kernel.
    pub register_buffers: bool,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self { entries: 1024, descriptors_max: 16 * 1024, register_buffers: true }
    }
}

// One per thread: the size is of no weight, an indirection would be.
#[allow(clippy::large_enum_variant)]
enum Back {
    Uring(uring::UringRing),
    #[cfg(feature = "sim")]
    Sim(sim::SimRing),
}

/// One thread's door to the world.
pub struct Ring {
    /// Its buffers; a field of its own so that rooms can look at bytes while they push ops.
    pub memory: Memory,
    back: Back,
}

macro_rules! back {
    ($self:ident, $ring:ident => $call:expr) => {
        match &mut $self.back {
            Back::Uring($ring) => $call,
            #[cfg(feature = "sim")]
            Back::Sim($ring) => $call,
        }
    };
}

impl Ring {
    /// A ring of the kernel. Fails with [`Errno::PERM`] (seccomp or `io_uring_disabled`) or
    /// `ENOSYS` where io_uring is refused.
    pub fn uring(config: RingConfig) -> Result<Self, Errno> {
        Ok(Self { memory: Memory::default(), back: Back::Uring(uring::UringRing::new(config)?) })
    }

    #[cfg(feature = "sim")]
    pub(crate) fn sim(ring: sim::SimRing) -> Self {
        Self { memory: Memory::default(), back: Back::Sim(ring) }
    }

    /// Which ring of the simulated world this is; `None` for one of the kernel.
    #[cfg(feature = "sim")]
    pub fn sim_id(&self) -> Option<sim::RingId> {
        match &self.back {
            Back::Uring(_) => None,
            Back::Sim(ring) => Some(ring.id()),
        }
    }

    /// Queues an op; it reaches the kernel with the next `wait` (or earlier, when the queue is full). Lends its
    /// buffer.
    pub fn submit(&mut self, token: Token, op: Op) {
        let memory = &mut self.memory;
        back!(self, ring => ring.submit(memory, token, op));
    }

    /// Submits what is queued and sleeps until a completion is there, a doorbell rings or the monotonic clock
    /// reaches `until_us`; with `Some(0)` it does not sleep. The simulator never sleeps: it notes the deadline and
    /// returns.
    pub fn wait(&mut self, until_us: Option<u64>) {
        let memory = &mut self.memory;
        back!(self, ring => ring.wait(memory, until_us));
    }

    /// Moves up to `max` completions to `out`; their buffers are the caller's again.
    pub fn reap(&mut self, out: &mut Vec<Completion>, max: usize) {
        let memory = &mut self.memory;
        back!(self, ring => ring.reap(memory, out, max));
    }

    /// Carries out one op and waits for it, for start and recovery, where nothing else is to be done. Completions
    /// of other ops stay for `reap`.
    pub fn run(&mut self, op: Op) -> Result<u32, Errno> {
        let memory = &mut self.memory;
        back!(self, ring => ring.run(memory, op))
    }

    /// Both clocks, as of the last `wait`, `run` or `read_clock`.
    pub fn now(&self) -> Now {
        match &self.back {
            Back::Uring(ring) => ring.now(),
            #[cfg(feature = "sim")]
            Back::Sim(ring) => ring.now(),
        }
    }

    /// Reads the clocks anew.
    pub fn read_clock(&mut self) -> Now {
        back!(self, ring => ring.read_clock())
    }

    /// A random number: the kernel's, or drawn from the simulator's seed.
    pub fn random(&mut self) -> u64 {
        back!(self, ring => ring.random())
    }

    /// A handle with which other threads wake this ring's `wait`.
    pub fn doorbell(&mut self) -> Doorbell {
        back!(self, ring => ring.doorbell())
    }

    /// Makes a directory and those above it. Blocking; at start only.
    pub fn make_dirs(&mut self, path: &Path) -> Result<(), Errno> {
        back!(self, ring => ring.make_dirs(path))
    }

    /// What is in a directory, sorted by name. Blocking; at start only.
    pub fn list_dir(&mut self, path: &Path) -> Result<Vec<DirEntry>, Errno> {
        back!(self, ring => ring.list_dir(path))
    }

    /// Takes an exclusive lock that ends with the process. [`Errno::BUSY`] if another process has it.
    pub fn lock_dir(&mut self, path: &Path) -> Result<(), Errno> {
        back!(self, ring => ring.lock_dir(path))
    }

    /// Size, alignment and extents of an open file. Blocking, but only metadata.
    pub fn file_facts(&mut self, file: FileId) -> Result<FileFacts, Errno> {
        back!(self, ring => ring.file_facts(file))
    }

    /// Bytes that the file system around `path` has left for us.
    pub fn disk_free(&mut self, path: &Path) -> Result<u64, Errno> {
        back!(self, ring => ring.disk_free(path))
    }

    /// A listening socket and the port it got. `addr` like `127.0.0.1:7700`; port 0 takes a free one.
    pub fn listen(&mut self, addr: std::net::SocketAddr) -> Result<(SocketId, std::net::SocketAddr), Errno> {
        back!(self, ring => ring.listen(addr))
    }

    /// Address of the peer of a connection, for logs.
    pub fn peer(&mut self, socket: SocketId) -> Option<std::net::SocketAddr> {
        back!(self, ring => ring.peer(socket))
    }

    /// Counts since the ring was made.
    pub fn stats(&self) -> RingStats {
        match &self.back {
            Back::Uring(ring) => ring.stats(),
            #[cfg(feature = "sim")]
            Back::Sim(ring) => ring.stats(),
        }
    }

    /// What could not be had.
    pub fn report(&self) -> RingReport {
        match &self.back {
            Back::Uring(ring) => ring.report(),
            #[cfg(feature = "sim")]
            Back::Sim(ring) => ring.report(),
        }
    }
}

/// A simulated kernel does nothing to buffers once its ring is gone: they are freed, not leaked, so that
/// thousands of crashes fit into one process.
#[cfg(feature = "sim")]
impl Drop for Ring {
    fn drop(&mut self) {
        if let Back::Sim(ring) = &mut self.back {
            ring.release(&mut self.memory);
        }
    }
}

/// Wakes the ring that made it, from any thread. Cloned freely.
#[derive(Clone)]
pub struct Doorbell(DoorbellBack);

#[derive(Clone)]
enum DoorbellBack {
    Uring(uring::UringDoorbell),
    #[cfg(feature = "sim")]
    Sim(sim::SimDoorbell),
}

impl Doorbell {
    /// Makes the ring's current or next `wait` return.
    pub fn ring(&self) {
        match &self.0 {
            DoorbellBack::Uring(bell) => bell.ring(),
            #[cfg(feature = "sim")]
            DoorbellBack::Sim(bell) => bell.ring(),
        }
    }
}
