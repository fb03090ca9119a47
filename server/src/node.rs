//! The shards of one data directory: their threads, and what the control plane sees of them.
//!
//! ```text
//! start: lock directory -> identity -> threads: ring, listeners -> (all ports known) -> recovery -> serve
//! ```
//!
//! Invariants  X1  One process has a data directory: the lock is taken first and held to the end.
//!             X2  The identity is written once, before any shard exists.

pub use crate::exit_code::{Fatal, FatalReason};
use crate::limits::CONNECTION_MEMORY_SHARE;
use crate::shard::mailbox::{Mailboxes, mesh};
use crate::shard::{LateOptions, ServerOptions, ShardServer};
use ringmq_engine::planted::Planted;
use ringmq_engine::recovery::{OpenError, choose_durability};
use ringmq_engine::ring::{BufRange, Doorbell, Errno, FileId, Op, Ring, RingConfig};
use ringmq_engine::shard::{MEMORY_MIN, Shard, ShardOptions};
use ringmq_format::ShardId;
use ringmq_format::identity::Identity;
use ringmq_format::limits::{CHECKPOINT_INTERVAL, SHARDS_MAX, frame_size_max};
use ringmq_format::superblock::Durability as Mode;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a group becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Each write carries RWF_DSYNC.
    Dsync,
    /// Writes, then one flush that covers them.
    Flush,
}

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The data directory, created if it is not there.
    pub data: PathBuf,
    /// The base address; shard i listens on its port + 1 + i. Port 0 gives each a free one.
    pub listen: SocketAddr,
    /// None: the directory's, or the default for a new one.
    pub shards: Option<u16>,
    /// Bytes of memory of all shards together.
    pub memory: u64,
    /// Bytes of disk of all shards together.
    pub disk_limit: Option<u64>,
    /// The largest slot file.
    pub segment_size: u64,
    /// Age at which sealed segments are removed.
    pub retain_time_ms: Option<u64>,
    /// Stored bytes above which the oldest sealed segments are removed.
    pub retain_size: Option<u64>,
    /// A topic appears at its first use, with one partition.
    pub auto_create_topics: bool,
    /// Connections of all shards together.
    pub connections_max: u32,
    /// Transactions and delays.
    pub late: LateOptions,
    /// None: measured when the directory is created.
    pub durability: Option<Durability>,
    /// Pin each shard to a core.
    pub pin: bool,
}

/// What a shard is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ShardState {
    /// Opening its files and its ring.
    Starting,
    /// Scanning its log.
    Recovering,
    /// Serving.
    Ready,
    /// Answering what is in flight.
    Draining,
    /// Sealed and stopped.
    Stopped,
    /// Recovery refused it; see the detail.
    Refused,
    /// A write or flush failed; reads go on.
    Poisoned,
}

impl ShardState {
    const ALL: [Self; 7] = [
        Self::Starting,
        Self::Recovering,
        Self::Ready,
        Self::Draining,
        Self::Stopped,
        Self::Refused,
        Self::Poisoned,
    ];
}

/// Everything that a shard counts, read without stopping it.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ShardCounters {
    pub records_appended: u64,
    pub bytes_appended: u64,
    pub groups: u64,
    pub heartbeats: u64,
    pub acks: u64,
    pub frames_served: u64,
    pub bytes_served: u64,
    pub cold_reads: u64,
    pub connections_open: u64,
    pub connections_total: u64,
    pub requests: u64,
    pub request_errors: u64,
    pub segments_free: u64,
    pub segments_used: u64,
    pub disk_bytes: u64,
    pub durable_lsn: u64,
    pub poisoned: u64,
    pub ring_enters: u64,
    pub ring_submitted: u64,
    pub syncs: u64,
    pub retention_removed_segments: u64,
    pub memory_bytes: u64,
    pub connection_bytes: u64,
    pub closed_slow: u64,
    pub closed_idle: u64,
    pub descriptor_failures: u64,
}

/// Names of the counters, in the order of [`ShardStatus::counters`].
macro_rules! counters {
    ($($name:ident),+ $(,)?) => {
        #[derive(Debug, Default)]
        struct CounterCells { $($name: AtomicU64,)+ }

        impl CounterCells {
            fn store(&self, counters: &ShardCounters) {
                $(self.$name.store(counters.$name, Ordering::Relaxed);)+
            }

            fn load(&self) -> ShardCounters {
                ShardCounters { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    records_appended, bytes_appended, groups, heartbeats, acks, frames_served, bytes_served, cold_reads,
    connections_open, connections_total, requests, request_errors, segments_free, segments_used, disk_bytes,
    durable_lsn, poisoned, ring_enters, ring_submitted, syncs, retention_removed_segments, memory_bytes,
    connection_bytes, closed_slow, closed_idle, descriptor_failures,
}

/// A shard's state, shared with the control thread.
#[derive(Debug, Default)]
pub struct ShardStatus {
    state: AtomicU8,
    recovery_done: AtomicU64,
    recovery_total: AtomicU64,
    counters: CounterCells,
    detail: Mutex<String>,
}

impl ShardStatus {
    /// What the shard is doing.
    pub fn state(&self) -> ShardState {
        ShardState::ALL[usize::from(self.state.load(Ordering::Acquire)).min(6)]
    }

    /// Bytes of log scanned, and to scan.
    pub fn recovery_progress(&self) -> (u64, u64) {
        (self.recovery_done.load(Ordering::Relaxed), self.recovery_total.load(Ordering::Relaxed))
    }

    /// Everything counted so far.
    pub fn counters(&self) -> ShardCounters {
        self.counters.load()
    }

    /// Why the shard is refused or poisoned.
    pub fn detail(&self) -> String {
        self.detail.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Moves the shard to `state`.
    pub fn set_state(&self, state: ShardState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Records how far recovery is.
    pub fn set_recovery_progress(&self, done: u64, total: u64) {
        self.recovery_total.store(total, Ordering::Relaxed);
        self.recovery_done.store(done, Ordering::Relaxed);
    }

    /// Says why the shard is refused or poisoned.
    pub fn set_detail(&self, detail: String) {
        *self.detail.lock().unwrap_or_else(PoisonError::into_inner) = detail;
    }
}

/// Where clients reach the node.
#[derive(Clone, Debug)]
pub struct NodeAddresses {
    /// Any shard answers here.
    pub base: SocketAddr,
    /// The port of each shard, on the same host.
    pub shard_ports: Vec<u16>,
}

/// What was found when the node started.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Name of the file system under the data directory.
    pub filesystem: String,
    /// Alignment of direct I/O.
    pub dio_align: u32,
    /// Version of the running kernel.
    pub kernel: String,
    /// What the ring had to do without, one sentence each.
    pub fallbacks: Vec<String>,
    /// How groups become durable.
    pub durability: Durability,
    /// Identity of the data directory.
    pub node_id: u128,
    /// The directory was created by this start.
    pub new_directory: bool,
}

/// What the control thread tells a shard.
#[derive(Clone, Copy, Debug)]
enum Command {
    Drain,
    Retention { time_ms: Option<u64>, size: Option<u64> },
}

/// Commands that a shard may have waiting.
const COMMANDS_MAX: usize = 64;

struct Handle {
    commands: rtrb::Producer<Command>,
    doorbell: Doorbell,
    thread: JoinHandle<()>,
}

/// What a thread reports when its ring and listeners are there.
struct Prepared {
    doorbell: Doorbell,
    base: Option<SocketAddr>,
    port: u16,
    fallbacks: Vec<String>,
}

/// What a thread needs to go on.
struct Go {
    mailboxes: Mailboxes,
    doorbells: Vec<Doorbell>,
    ports: Vec<u16>,
}

/// What all threads share.
struct Shared {
    options: NodeOptions,
    identity: Identity,
    /// What new shards are made with: the same for all.
    durability: Mode,
    drained: Arc<AtomicU16>,
    connections: Arc<AtomicUsize>,
    stop_now: AtomicBool,
}

/// The running shards of one data directory.
pub struct Node {
    shards: Vec<Arc<ShardStatus>>,
    handles: Vec<Handle>,
    shared: Arc<Shared>,
    addresses: NodeAddresses,
    facts: NodeFacts,
    /// Holds the lock of the directory (X1).
    _lock: Ring,
}

impl Node {
    /// Spawns the shards and returns at once; recovery goes on in their threads.
    pub fn start(options: &NodeOptions) -> Result<Self, Fatal> {
        let config = RingConfig { entries: 32, descriptors_max: 16, register_buffers: false };
        let mut ring = Ring::uring(config).map_err(io_uring_refused)?;
        let directory = open_directory(&mut ring, options)?;
        let shards = directory.identity.shards;
        if let Some(asked) = options.shards
            && asked != shards
        {
            return Err(Fatal::new(
                FatalReason::Other,
                format!(
                    "{} was made with {shards} shards and that number is fixed; start without --shards, or with \
                     --shards {shards}",
                    options.data.display()
                ),
            ));
        }
        let directories: Vec<PathBuf> =
            (0..shards).map(|shard| shard_directory(&options.data, shard)).collect();
        let asked = options.durability.map(mode);
        let durability = choose_durability(&mut ring, &directories, directory.identity.node_id, asked)
            .map_err(|error| match error {
                OpenError::Io { during, path, error } => directory_error(during, &path, error),
                error => Fatal::new(FatalReason::Other, error.to_string()),
            })?;
        let shared = Arc::new(Shared {
            options: options.clone(),
            identity: directory.identity,
            durability,
            drained: Arc::new(AtomicU16::new(0)),
            connections: Arc::new(AtomicUsize::new(0)),
            stop_now: AtomicBool::new(false),
        });
        let statuses: Vec<_> = (0..shards).map(|_| Arc::new(ShardStatus::default())).collect();
        let mut threads = Vec::new();
        for (index, status) in (0..shards).zip(&statuses) {
            threads.push(spawn(index, Arc::clone(&shared), Arc::clone(status))?);
        }
        // Every thread reports before any goes on: the first error ends the start, and dropping the channels ends
        // the other threads.
        let mut prepared = Vec::new();
        for thread in &threads {
            prepared.push(thread.prepared.recv().unwrap_or_else(|_| {
                Err(Fatal::new(FatalReason::Other, "a shard's thread ended while it was starting"))
            })?);
        }
        let ports: Vec<u16> = prepared.iter().map(|prepared| prepared.port).collect();
        let doorbells: Vec<Doorbell> = prepared.iter().map(|prepared| prepared.doorbell.clone()).collect();
        let mut handles = Vec::new();
        for ((thread, mailboxes), doorbell) in threads.into_iter().zip(mesh(shards)).zip(&doorbells) {
            let go = Go { mailboxes, doorbells: doorbells.clone(), ports: ports.clone() };
            let _ = thread.go.send(go);
            handles.push(Handle {
                commands: thread.commands,
                doorbell: doorbell.clone(),
                thread: thread.thread,
            });
        }
        let first = prepared.into_iter().next();
        let base = first.as_ref().and_then(|first| first.base).unwrap_or(options.listen);
        let facts = NodeFacts {
            filesystem: filesystem_name(&options.data),
            dio_align: directory.dio_align,
            kernel: ring.report().kernel,
            fallbacks: first.map(|first| first.fallbacks).unwrap_or_default(),
            durability: match durability {
                Mode::Dsync => Durability::Dsync,
                Mode::Flush => Durability::Flush,
            },
            node_id: directory.identity.node_id,
            new_directory: directory.is_new,
        };
        let addresses = NodeAddresses { base, shard_ports: ports };
        Ok(Self { shards: statuses, handles, shared, addresses, facts, _lock: ring })
    }

    /// The state of each shard, by its number.
    pub fn shards(&self) -> &[Arc<ShardStatus>] {
        &self.shards
    }

    /// Where clients reach the node; known right after the start.
    pub fn addresses(&self) -> NodeAddresses {
        self.addresses.clone()
    }

    /// What was found when the node started.
    pub fn facts(&self) -> NodeFacts {
        self.facts.clone()
    }

    fn tell(&mut self, command: Command) {
        for handle in &mut self.handles {
            // A shard that does not take its commands is not going to take one more.
            let _ = handle.commands.push(command);
            handle.doorbell.ring();
        }
    }

    /// Retention from now on, after the configuration was read again.
    pub fn set_retention(&mut self, time_ms: Option<u64>, size: Option<u64>) {
        let size = size.map(|size| size / self.shards.len() as u64);
        self.tell(Command::Retention { time_ms, size });
    }

    /// Stops accepting, answers what is in flight, seals and checkpoints, stops.
    pub fn drain(&mut self) {
        self.tell(Command::Drain);
    }

    /// Stops without waiting for anything.
    pub fn stop_now(&mut self) {
        self.shared.stop_now.store(true, Ordering::Release);
        self.handles.iter().for_each(|handle| handle.doorbell.ring());
    }

    /// Waits for the shards' threads. Ok: all of them stopped cleanly.
    pub fn join(self, deadline: Duration) -> Result<(), Fatal> {
        let until = Instant::now() + deadline;
        for (number, handle) in self.handles.into_iter().enumerate() {
            while !handle.thread.is_finished() {
                if Instant::now() >= until {
                    return Err(Fatal::new(
                        FatalReason::Other,
                        format!("shard {number} did not stop in time; nothing that was acknowledged is lost"),
                    ));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            if handle.thread.join().is_err() {
                return Err(Fatal::new(FatalReason::Other, format!("the thread of shard {number} panicked")));
            }
        }
        Ok(())
    }
}

// -- the data directory ------------------------------------------------------------------------------------

struct Directory {
    identity: Identity,
    dio_align: u32,
    is_new: bool,
}

fn io_uring_refused(error: Errno) -> Fatal {
    Fatal::new(
        FatalReason::IoUringRefused,
        format!(
            "the kernel refuses io_uring ({error}). Linux 5.19 or newer is needed, kernel.io_uring_disabled must be 0, \
             and in a container the seccomp profile must allow io_uring_setup, io_uring_enter and io_uring_register \
             (Docker: --security-opt seccomp=FILE); \"cannot allocate memory\" means that RLIMIT_MEMLOCK is too small \
             (`ulimit -l`). `ringmq doctor` tells which it is"
        ),
    )
}

fn directory_error(during: &str, path: &Path, error: Errno) -> Fatal {
    let (reason, advice) = match error {
        Errno::ACCES | Errno::PERM => {
            (FatalReason::NotWritable, "make it writable for this user, or name another with --data")
        }
        Errno::ROFS => (
            FatalReason::NotWritable,
            "the file system is read-only; mount it read-write, or name another directory with --data",
        ),
        Errno::INVAL | Errno::OPNOTSUPP => (
            FatalReason::NoDirectIo,
            "the file system has no O_DIRECT; ext4 and xfs have, name a directory there with --data",
        ),
        error if error.is_no_space() => {
            (FatalReason::NotWritable, "free some space, or name another directory with --data")
        }
        _ => (FatalReason::NotWritable, "see `ringmq doctor`"),
    };
    Fatal::new(reason, format!("{during} {}: {error}; {advice}", path.display()))
}

/// Locks the directory and reads or makes its identity (X1, X2).
fn open_directory(ring: &mut Ring, options: &NodeOptions) -> Result<Directory, Fatal> {
    let data = &options.data;
    ring.make_dirs(data).map_err(|error| directory_error("making", data, error))?;
    ring.lock_dir(data).map_err(|error| match error {
        Errno::BUSY | Errno::AGAIN => Fatal::new(
            FatalReason::DataDirectoryInUse,
            format!(
                "another server runs on {}; stop it, or name another directory with --data",
                data.display()
            ),
        ),
        error => directory_error("locking", data, error),
    })?;
    let entries = ring.list_dir(data).map_err(|error| directory_error("listing", data, error))?;
    let has_shards = entries.iter().any(|entry| entry.is_dir && entry.name.starts_with("shard-"));
    let path = data.join("identity");
    let open = Op::Open { path: path.clone(), create: true };
    let file = FileId(ring.run(open).map_err(|error| directory_error("opening", &path, error))?);
    let facts = ring.file_facts(file).map_err(|error| directory_error("examining", &path, error))?;
    if facts.dio_align > 4096 {
        return Err(Fatal::new(
            FatalReason::NoDirectIo,
            format!(
                "{} asks for direct I/O in units of {} bytes; 4096 is the most",
                path.display(),
                facts.dio_align
            ),
        ));
    }
    let result = read_or_make_identity(ring, options, file, &path, has_shards);
    ring.run(Op::Close { file }).map_err(|error| directory_error("closing", &path, error))?;
    let (identity, is_new) = result?;
    Ok(Directory { identity, dio_align: facts.dio_align, is_new })
}

fn read_or_make_identity(
    ring: &mut Ring,
    options: &NodeOptions,
    file: FileId,
    path: &Path,
    has_shards: bool,
) -> Result<(Identity, bool), Fatal> {
    const SIZE: usize = 8192;
    let fail = |during, error| directory_error(during, path, error);
    let buffer = ring
        .memory
        .alloc(SIZE, false)
        .ok_or_else(|| Fatal::new(FatalReason::Other, "the kernel has no memory left"))?;
    let range = BufRange::new(buffer, 0, SIZE);
    ring.run(Op::SyncAll { file }).map_err(|error| fail("syncing", error))?;
    let read =
        ring.run(Op::Read { file, into: range, position: 0 }).map_err(|error| fail("reading", error))?;
    let found = Identity::parse(&ring.memory.bytes(range)[..(read as usize).min(SIZE)]);
    let result = match found {
        Ok(identity) => Ok((identity, false)),
        Err(corruption) if has_shards => Err(Fatal::new(
            FatalReason::DamagedShard,
            format!(
                "{} cannot be read: {corruption}; the shards beside it are left as they are",
                path.display()
            ),
        )),
        Err(corruption) if corruption.damage == ringmq_format::Damage::Version => Err(Fatal::new(
            FatalReason::Other,
            format!(
                "{} was made by format version {}; this binary reads up to version {}",
                path.display(),
                corruption.found,
                corruption.expected
            ),
        )),
        Err(_) => {
            let identity = Identity {
                shards: options.shards.unwrap_or_else(|| default_shards(options.memory)),
                node_id: u128::from(ring.random()) << 64 | u128::from(ring.random()),
                created_ms: ring.now().wall_ms,
            };
            ring.memory.bytes_mut(range).copy_from_slice(&identity.encode());
            sync_names_above(ring, &options.data)?;
            let op = Op::Write { file, from: range, position: 0, durable: false };
            let written = ring.run(op).map_err(|error| fail("writing", error))?;
            if written as usize != SIZE {
                return Err(fail("writing", Errno::NOSPC));
            }
            ring.run(Op::SyncAll { file }).map_err(|error| fail("syncing", error))?;
            ring.run(Op::SyncDir { path: options.data.clone() }).map_err(|error| fail("syncing", error))?;
            Ok((identity, true))
        }
    };
    ring.memory.free(buffer);
    result
}

/// Makes the name of the data directory durable, and the names of directories above it that may have been made with
/// it. Before the identity is written: where there is one, this was done.
fn sync_names_above(ring: &mut Ring, data: &Path) -> Result<(), Fatal> {
    for (level, above) in data.ancestors().skip(1).enumerate() {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match ring.run(Op::SyncDir { path: above.to_owned() }) {
            Ok(_) => {}
            // Whoever may not read a directory cannot sync it, and further up nothing was made in most cases.
            Err(error) if level > 0 || error == Errno::ACCES => {}
            Err(error) => return Err(directory_error("syncing", above, error)),
        }
    }
    Ok(())
}

/// One shard for each core that this process may use, as far as the memory goes.
fn default_shards(memory: u64) -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let by_memory = (memory / crate::limits::MEMORY_PER_SHARD_MIN) as usize;
    cores.min(by_memory).clamp(1, usize::from(SHARDS_MAX)) as u16
}

/// Name of the file system, for the banner.
fn filesystem_name(path: &Path) -> String {
    const KNOWN: [(u64, &str); 7] = [
        (0xef53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0x0102_1994, "tmpfs"),
        (0x794c_7630, "overlay"),
        (0x2fc1_2fc1, "zfs"),
        (0xf2f5_2010, "f2fs"),
    ];
    let Ok(found) = rustix::fs::statfs(path) else { return "unknown".into() };
    let magic = found.f_type as u64 & 0xffff_ffff;
    KNOWN.iter().find(|known| known.0 == magic).map_or_else(|| format!("{magic:#x}"), |known| known.1.into())
}

// -- a shard's thread --------------------------------------------------------------------------------------

struct Thread {
    thread: JoinHandle<()>,
    prepared: mpsc::Receiver<Result<Prepared, Fatal>>,
    go: mpsc::Sender<Go>,
    commands: rtrb::Producer<Command>,
}

fn spawn(index: u16, shared: Arc<Shared>, status: Arc<ShardStatus>) -> Result<Thread, Fatal> {
    let (report, prepared) = mpsc::channel();
    let (go, wait_for_go) = mpsc::channel();
    let (commands, take_commands) = rtrb::RingBuffer::new(COMMANDS_MAX);
    let thread = std::thread::Builder::new()
        .name(format!("shard-{index:02}"))
        .spawn(move || {
            let _crash = PanicIsCrash;
            if shared.options.pin {
                pin(index);
            }
            let (ring, listeners) = match prepare(index, &shared.options) {
                Ok((ring, listeners, prepared)) => {
                    let _ = report.send(Ok(prepared));
                    (ring, listeners)
                }
                Err(fatal) => {
                    let _ = report.send(Err(fatal));
                    return;
                }
            };
            // Without a word to go on, another thread has failed and the node does not start.
            let Ok(go) = wait_for_go.recv() else { return };
            serve(index, &shared, &status, ring, listeners, go, take_commands);
        })
        .map_err(|error| Fatal::new(FatalReason::Other, format!("a shard's thread cannot start: {error}")))?;
    Ok(Thread { thread, prepared, go, commands })
}

/// A shard that has met a bug stops the process, as the release profile does anyway: recovery is what crashes are
/// for, and the other shards could not go on without it.
struct PanicIsCrash;

impl Drop for PanicIsCrash {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Binds the thread to a core; several shards may share one.
fn pin(index: u16) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    let cores: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    if cores.is_empty() {
        return;
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(cores[usize::from(index) % cores.len()]);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

type Listeners = Vec<ringmq_engine::ring::SocketId>;

fn prepare(index: u16, options: &NodeOptions) -> Result<(Ring, Listeners, Prepared), Fatal> {
    let config = RingConfig { descriptors_max: options.connections_max + 4096, ..RingConfig::default() };
    let mut ring = Ring::uring(config).map_err(io_uring_refused)?;
    let mut listeners = Vec::new();
    let mut base = None;
    let mut address = options.listen;
    if index == 0 {
        let (listener, bound) = ring.listen(address).map_err(|error| cannot_listen(address, error))?;
        listeners.push(listener);
        base = Some(bound);
    }
    if address.port() != 0 {
        let port =
            address.port().checked_add(1 + index).ok_or_else(|| cannot_listen(address, Errno::INVAL))?;
        address.set_port(port);
    }
    let (listener, bound) = ring.listen(address).map_err(|error| cannot_listen(address, error))?;
    listeners.push(listener);
    let prepared =
        Prepared { doorbell: ring.doorbell(), base, port: bound.port(), fallbacks: ring.report().fallbacks };
    Ok((ring, listeners, prepared))
}

fn cannot_listen(address: SocketAddr, error: Errno) -> Fatal {
    let reason = if error == Errno::ADDRINUSE { FatalReason::AddressInUse } else { FatalReason::Other };
    Fatal::new(
        reason,
        format!(
            "cannot listen on {address}: {error}. Choose another with --listen ADDR (shard i takes the port 1 + i above \
             it), or free ports with --listen 127.0.0.1:0"
        ),
    )
}

fn shard_directory(data: &Path, index: u16) -> PathBuf {
    data.join(format!("shard-{index:02}"))
}

fn mode(durability: Durability) -> Mode {
    match durability {
        Durability::Dsync => Mode::Dsync,
        Durability::Flush => Mode::Flush,
    }
}

fn shard_options(index: u16, shared: &Shared) -> ShardOptions {
    let options = &shared.options;
    let shards = u64::from(shared.identity.shards);
    let share = |bytes: Option<u64>| bytes.map(|bytes| bytes / shards);
    // A quarter is left for connections.
    let memory = (options.memory / shards / 4 * 3) as usize;
    ShardOptions {
        directory: shard_directory(&options.data, index),
        shard: ShardId(index),
        shards: shared.identity.shards,
        node_id: shared.identity.node_id,
        memory: memory.max(MEMORY_MIN),
        segment_size: options.segment_size,
        disk_limit: share(options.disk_limit),
        retain_time_ms: options.retain_time_ms,
        retain_size: share(options.retain_size),
        checkpoint_interval: CHECKPOINT_INTERVAL,
        durability: Some(shared.durability),
        planted: Planted::default(),
    }
}

fn serve(
    index: u16,
    shared: &Shared,
    status: &ShardStatus,
    mut ring: Ring,
    listeners: Listeners,
    go: Go,
    mut commands: rtrb::Consumer<Command>,
) {
    status.set_state(ShardState::Recovering);
    let mut fallbacks_told = ring.report().fallbacks.len();
    let options = shard_options(index, shared);
    let opened = ring
        .make_dirs(&options.directory)
        .and_then(|()| ring.run(Op::SyncDir { path: shared.options.data.clone() }))
        .map_err(|error| OpenError::Io { during: "making", path: options.directory.clone(), error })
        .and_then(|_| {
            Shard::open(&mut ring, options, &mut |done, total| status.set_recovery_progress(done, total))
        });
    let (shard, report) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            status.set_detail(error.to_string());
            status.set_state(ShardState::Refused);
            // The others would wait for this one for ever: for its partitions, and for the catalogue if it is shard 0.
            shared.stop_now.store(true, Ordering::Release);
            go.doorbells.iter().for_each(Doorbell::ring);
            return;
        }
    };
    tracing::info!(
        shard = index,
        clean = report.clean,
        groups = report.groups,
        bytes = report.bytes,
        durability = shard.log().durability().name(),
        end = shard.log().end().0,
        damaged_frames = report.damaged_frames.len(),
        "recovered"
    );
    for (path, position) in &report.damaged_frames {
        tracing::error!(file = %path.display(), position, "a frame is damaged; its offsets answer Damaged");
    }
    if let Some(asked) = shared.options.durability.map(mode)
        && asked != shard.log().durability()
    {
        let kept = shard.log().durability().name();
        tracing::warn!(
            shard = index,
            kept,
            "--durability is chosen when a directory is made; this one keeps its own"
        );
    }
    let mut mailboxes = go.mailboxes;
    mailboxes.set_doorbells(&go.doorbells);
    let server_options = ServerOptions {
        auto_create_topics: shared.options.auto_create_topics,
        connections_max: shared.options.connections_max as usize,
        connections: Arc::clone(&shared.connections),
        descriptors_max: crate::process::descriptors_max()
            .map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX)),
        connection_memory: (shared.options.memory
            / u64::from(shared.identity.shards)
            / CONNECTION_MEMORY_SHARE) as usize,
        shard_ports: go.ports,
        frame_size_max: frame_size_max(shared.options.segment_size) as u32,
        node_id: shared.identity.node_id,
        late: shared.options.late,
        planted: crate::planted::Planted::default(),
    };
    let drained = Arc::clone(&shared.drained);
    let mut server = ShardServer::new(ring, shard, server_options, listeners, mailboxes, drained);
    let mut poison_told = false;
    let mut shortage = Shortage::default();
    let mut turns = 0u64;
    while !server.is_stopped() && !shared.stop_now.load(Ordering::Acquire) {
        while let Ok(command) = commands.pop() {
            match command {
                Command::Drain => {
                    server.begin_drain();
                    status.set_state(ShardState::Draining);
                }
                Command::Retention { time_ms, size } => server.set_retention(time_ms, size),
            }
        }
        server.turn();
        publish(status, &server);
        if turns.is_multiple_of(FALLBACKS_EVERY) {
            tell_fallbacks(index, server.ring(), &mut fallbacks_told);
        }
        shortage.tell(index, &server);
        turns += 1;
        if status.state() == ShardState::Recovering && server.is_ready() {
            status.set_state(ShardState::Ready);
        }
        if !poison_told && let Some(poison) = server.shard().poisoned() {
            poison_told = true;
            let detail =
                format!("{}: {}; a restart reads what is really on the disk", poison.during, poison.error);
            tracing::error!(shard = index, %detail, "the log is poisoned: nothing is acknowledged any more");
            status.set_detail(detail);
            status.set_state(ShardState::Poisoned);
        }
        if !server.is_stopped() {
            server.wait();
        }
    }
    publish(status, &server);
    tell_fallbacks(index, server.ring(), &mut fallbacks_told);
    if !poison_told {
        status.set_state(ShardState::Stopped);
    }
}

/// Least time between two lines about the same shortage.
const SHORTAGE_LINE_EVERY_US: u64 = 10_000_000;

/// Says that slots cannot be made or descriptors are used up, not too often.
#[derive(Default)]
struct Shortage {
    next_at_us: u64,
    failures_told: u64,
}

impl Shortage {
    fn tell(&mut self, index: u16, server: &ShardServer) {
        let failures = server.shard().stats().descriptor_failures + server.stats().accept_failures;
        let disk_error = server.shard().log().disk_error();
        let now = server.ring().now().mono_us;
        if (failures == self.failures_told && disk_error.is_none()) || now < self.next_at_us {
            return;
        }
        self.next_at_us = now + SHORTAGE_LINE_EVERY_US;
        if failures > self.failures_told {
            self.failures_told = failures;
            tracing::error!(
                shard = index,
                failures,
                "no descriptor is left for a file or a connection; raise RLIMIT_NOFILE or lower --connections-max"
            );
        }
        if let Some(error) = disk_error {
            let refuses = server.shard().log().is_disk_full();
            tracing::error!(shard = index, %error, refuses, "no further slot can be made; it is tried again");
        }
    }
}

/// Turns between two looks at what the ring had to do without.
const FALLBACKS_EVERY: u64 = 64;

/// Says what the ring has given up since the start: buffers are registered, and refused, at their first use.
fn tell_fallbacks(index: u16, ring: &Ring, told: &mut usize) {
    let fallbacks = ring.report().fallbacks;
    for fallback in fallbacks.iter().skip(*told) {
        tracing::warn!(shard = index, fallback, "io_uring: going on without");
    }
    *told = fallbacks.len();
}

fn publish(status: &ShardStatus, server: &ShardServer) {
    let (shard, counts) = (server.shard().stats(), server.stats());
    let (log, ring) = (server.shard().log(), server.ring().stats());
    status.counters.store(&ShardCounters {
        records_appended: shard.records,
        bytes_appended: shard.frame_bytes,
        groups: shard.log.groups - shard.log.heartbeats,
        heartbeats: shard.log.heartbeats,
        acks: counts.acks,
        frames_served: shard.tail_frames + shard.cold_frames,
        bytes_served: counts.bytes_served,
        cold_reads: shard.cold_reads,
        connections_open: counts.connections_open,
        connections_total: counts.connections_total,
        requests: counts.requests,
        request_errors: counts.request_errors,
        segments_free: log.free_slots() as u64,
        segments_used: log.segments().len() as u64,
        disk_bytes: log.disk_bytes(),
        durable_lsn: log.durable().0,
        poisoned: u64::from(log.poisoned().is_some()),
        ring_enters: ring.enters,
        ring_submitted: ring.submitted,
        syncs: ring.syncs,
        retention_removed_segments: shard.log.retired,
        memory_bytes: server.ring().memory.mapped() as u64,
        connection_bytes: counts.connection_bytes,
        closed_slow: counts.closed_slow,
        closed_idle: counts.closed_idle,
        descriptor_failures: shard.descriptor_failures + counts.accept_failures,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_engine::ring::sim::{CrashModel, NodeId, SimConfig, World};

    /// Whether a data directory, made two levels deep, is there after a power loss that keeps nothing by chance.
    fn survives_power_loss(synced: bool) -> bool {
        let mut config = SimConfig::default();
        config.disk.roots = vec!["/srv".into()];
        let crash =
            CrashModel { lose_all: 1, keep_all: 0, whole_writes: 0, prefix: 0, ..CrashModel::default() };
        config.disk.crash = CrashModel { suffix: 0, runs: 0, sectors: 0, ..crash };
        let world = World::new(1, config);
        let data = Path::new("/srv/ringmq/data");
        let mut ring = world.ring(NodeId(1));
        assert_eq!(ring.make_dirs(data), Ok(()));
        if synced {
            assert!(sync_names_above(&mut ring, data).is_ok());
        }
        world.power_off(NodeId(1));
        world.ring(NodeId(1)).list_dir(data).is_ok()
    }

    #[test]
    fn the_name_of_a_new_data_directory_survives_a_power_loss() {
        assert!(survives_power_loss(true));
        assert!(!survives_power_loss(false));
    }
}
