//! Bounds of the control plane and the defaults of a server.

use std::time::Duration;

/// Where clients connect unless told otherwise.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:7700";
/// Where operators look unless told otherwise.
pub const ADMIN_LISTEN_DEFAULT: &str = "127.0.0.1:7780";
/// The data directory of `--dev`.
pub const DATA_DEV: &str = "./ringmq-data";

/// Memory of a server: an upper bound, not what is touched at start.
pub const MEMORY_DEFAULT: u64 = 1 << 30;
/// Memory with `--dev`.
pub const MEMORY_DEV: u64 = 256 << 20;
/// Part of the memory that is for connections: one in so many.
pub const CONNECTION_MEMORY_SHARE: u64 = 4;
/// A connection that holds so little may count on all of that,
pub const CONNECTION_MEMORY_SMALL: usize = 64 << 10;
/// one that holds so much on three quarters of it, and one that holds more on half.
pub const CONNECTION_MEMORY_LARGE: usize = 1 << 20;
/// Least memory of one shard: the open group, the groups in flight and a tail worth reading.
pub const MEMORY_PER_SHARD_MIN: u64 = 32 << 20;
/// Largest slot file by default; smaller ones come first.
pub const SEGMENT_SIZE_DEFAULT: u64 = 256 << 20;
/// Least disk of one shard: two slots in reserve, one active, one being pre-written, all of the smallest size, and
/// superblock, sidecars and checkpoints.
pub const DISK_PER_SHARD_MIN: u64 = 4 * (8 << 20) + (1 << 20);

/// Longest time to and between checks of a transaction.
pub const CHECK_SPAN_MAX_MS: u64 = 24 * 60 * 60 * 1000;
/// Longest delay that `--delay-max` may allow: ten years.
pub const DELAY_MAX_MS: u64 = 3_650 * 24 * 60 * 60 * 1000;

/// Connections of a server.
pub const CONNECTIONS_DEFAULT: u32 = 1024;
/// Connections that `--connections-max` may ask for.
pub const CONNECTIONS_MAX: u32 = 65_536;
/// Descriptors kept for everything that is not a client's connection: slot files, sidecars, rings, listeners.
pub const DESCRIPTORS_RESERVED: u64 = 192;
/// Of these, kept free of connections however many files the log has by then: for its next ones, listeners, rings and
/// the admin address.
pub const DESCRIPTORS_KEPT: usize = 128;
/// Connections below which a server is not worth starting.
pub const CONNECTIONS_MIN: u64 = 16;

/// The kernel takes a killed server's ring apart in the background, and until then its sockets still listen: a start
/// that finds the address taken tries again for so long.
pub const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two such attempts.
pub const ADDRESS_PAUSE: Duration = Duration::from_millis(20);
/// A drain must be over by then.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// What is left of the deadline for threads that are told to stop at once.
pub const STOP_DEADLINE: Duration = Duration::from_millis(500);
/// How often the control thread looks at the shards while they recover or drain.
pub const POLL_BUSY: Duration = Duration::from_millis(2);
/// How often it looks when they only serve.
pub const POLL_IDLE: Duration = Duration::from_millis(250);
/// How often systemd is told about progress.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Connections to the admin address that are served at once; more wait.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;
/// An admin request must be answered by then.
pub const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
/// A configuration file is never larger.
pub const CONFIG_SIZE_MAX: u64 = 1 << 20;

const _: () = {
    assert!(MEMORY_DEV >= MEMORY_PER_SHARD_MIN);
    assert!(MEMORY_DEFAULT >= MEMORY_DEV);
    assert!(STOP_DEADLINE.as_millis() < DRAIN_DEADLINE.as_millis());
};
