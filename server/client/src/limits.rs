//! Bounds and defaults of the client. Time inside the cores is in microseconds.

use ringmq_format::limits::{FRAME_SIZE_MAX, PRODUCER_WINDOW};
use ringmq_protocol::limits::{CREDIT_MAX, PRODUCE_FRAMES_MAX, REQUEST_SIZE_MAX};
use std::time::Duration;

/// Frames of a partition that may be unanswered.
pub const FRAMES_IN_FLIGHT_MAX: usize = PRODUCER_WINDOW;
/// Default of `batch_bytes`.
pub const BATCH_BYTES: usize = 256 << 10;
/// Default of `batch_records`.
pub const BATCH_RECORDS: usize = 8_192;
/// Default of `max_buffered_bytes`.
pub const BUFFERED_BYTES: usize = 32 << 20;
/// What a record costs in the budget beside its bytes.
pub const RECORD_OVERHEAD: usize = 32;
/// Frames of one PRODUCE, so that an answer comes soon and a request never passes the server's limit.
pub const REQUEST_FRAMES_MAX: usize = 1_024;
/// Bytes of frames after which a PRODUCE is closed.
pub const REQUEST_BYTES_TARGET: usize = 1 << 20;
/// Frames up to this size are copied next to their header; larger ones are sent from where they are.
pub const GATHER_COPY_MAX: usize = 4 << 10;
/// Output of a connection above which no further commands are taken.
pub const OUTPUT_BYTES_MAX: usize = 8 << 20;
/// Room asked for in front of each read.
pub const READ_SIZE: usize = 128 << 10;
/// Commands waiting for a connection.
pub const COMMANDS_AT_ONCE: usize = 256;
/// Default credit of a consumer, shared by its partitions.
pub const CREDIT_BYTES: u64 = 8 << 20;
/// Least credit of one partition.
pub const CREDIT_PARTITION_MIN: u64 = 64 << 10;

/// Checks of transactions that are answered at once.
pub const CHECKS_AT_ONCE: usize = 64;
/// Default of `prefetch`.
pub const PREFETCH: u32 = 32;
/// Time between two commits of a consumer of a group that commits by itself.
pub const AUTO_COMMIT: Duration = Duration::from_secs(1);
/// Time for which nobody else gets a received record, where neither the caller nor the group says.
pub const INVISIBLE: Duration = Duration::from_secs(60);

/// First pause before something is tried again; doubled each time.
pub const BACKOFF_MIN_US: u64 = 20_000;
/// Longest pause before something is tried again.
pub const BACKOFF_MAX_US: u64 = 1_000_000;
/// Silence after which a connection is probed.
pub const PING_AFTER_US: u64 = 10_000_000;
/// How long a draining connection is kept for what it still owes.
pub const DRAIN_MAX_US: u64 = 5_000_000;

/// Default of `connect_timeout`.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Default of `request_timeout`.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Default of `retry_for`.
pub const RETRY_FOR: Duration = Duration::from_secs(120);

const _: () = {
    assert!(BATCH_BYTES <= FRAME_SIZE_MAX);
    assert!(REQUEST_BYTES_TARGET + FRAME_SIZE_MAX + 64 * REQUEST_FRAMES_MAX <= REQUEST_SIZE_MAX);
    assert!(REQUEST_FRAMES_MAX <= PRODUCE_FRAMES_MAX);
    assert!(BUFFERED_BYTES >= FRAMES_IN_FLIGHT_MAX * BATCH_BYTES);
    assert!(CREDIT_PARTITION_MIN <= CREDIT_BYTES && CREDIT_BYTES <= CREDIT_MAX);
    assert!(BACKOFF_MIN_US < BACKOFF_MAX_US);
};
