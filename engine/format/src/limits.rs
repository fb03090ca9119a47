//! Every bound of the engine and the relations between them. Options may lower a limit, never raise it.

/// Unit of every write to a log and of its padding. Physical blocks of today's drives are 4 KiB even where the
/// logical ones are 512 bytes.
pub const BLOCK_SIZE: usize = 4096;

/// What a drive writes without tearing.
pub const SECTOR_SIZE: usize = 512;

/// Header of a frame.
pub const FRAME_HEADER_SIZE: usize = 64;
/// Header of a group.
pub const GROUP_HEADER_SIZE: usize = 64;
/// Header of a segment file: one block, twice.
pub const SEGMENT_HEADER_SIZE: usize = 2 * BLOCK_SIZE;

/// A frame with its header. RocketMQ's limit for one message is 4 MiB too.
pub const FRAME_SIZE_MAX: usize = 4 << 20;
/// Records of one frame.
pub const FRAME_RECORDS_MAX: usize = 65_536;
/// Frames start at multiples of this, in a group and on the wire.
pub const FRAME_ALIGN: usize = 8;
/// Extension bytes of a frame (transaction id, due time).
pub const FRAME_EXTENSION_MAX: usize = 256;

/// A group is closed when it has reached the target, which adapts between these two.
pub const GROUP_SIZE_TARGET_MIN: usize = 256 << 10;
/// Upper end of the adaptive target, under saturation.
pub const GROUP_SIZE_TARGET_MAX: usize = 1 << 20;
/// One byte below the target, then the largest frame, then padding.
pub const GROUP_SIZE_MAX: usize = GROUP_SIZE_TARGET_MAX + FRAME_SIZE_MAX;

/// Capacities of the slot files in the order in which they are made; the last one repeats.
/// They grow so that an empty directory is ready at once and a small one stays small.
pub const SEGMENT_SIZES: [u64; 4] = [8 << 20, 32 << 20, 128 << 20, 256 << 20];
/// Smallest `--segment-size`.
pub const SEGMENT_SIZE_MIN: u64 = 4 << 20;
/// Largest `--segment-size`: positions in a segment fit 32 bits.
pub const SEGMENT_SIZE_MAX: u64 = 1 << 30;

/// A frame may take a quarter of a segment, so that rolling wastes little.
pub const fn frame_size_max(segment_size: u64) -> usize {
    let quarter = segment_size / 4;
    if quarter < FRAME_SIZE_MAX as u64 { quarter as usize } else { FRAME_SIZE_MAX }
}

/// Key of a record.
pub const KEY_SIZE_MAX: usize = 4 << 10;
/// Tag of a record.
pub const TAG_SIZE_MAX: usize = 255;
/// Names and values of a record's properties together.
pub const PROPERTIES_SIZE_MAX: usize = 16 << 10;
/// Properties of one record.
pub const PROPERTIES_MAX: usize = 128;
/// Length of a topic name in bytes.
pub const TOPIC_NAME_MAX: usize = 127;
/// Topics of a data directory, deleted ones included.
pub const TOPICS_MAX: usize = 100_000;
/// Partitions of one topic.
pub const TOPIC_PARTITIONS_MAX: u32 = 65_536;
/// Partitions of a data directory.
pub const PARTITIONS_MAX: u32 = 1 << 20;
/// Shards of a data directory.
pub const SHARDS_MAX: u16 = 64;

/// Consumer groups of a data directory.
pub const GROUPS_MAX: usize = 16_384;
/// Topics that a group consumes.
pub const GROUP_SUBSCRIPTIONS_MAX: usize = 64;
/// A filter expression of a group.
pub const FILTER_SIZE_MAX: usize = 4 << 10;
/// Steps of a group's backoff.
pub const BACKOFF_STEPS_MAX: usize = 64;
/// Offsets from the first record that a group has not consumed to the last one that it has, in a partition.
pub const ACK_SPAN_MAX: u64 = 1_000_000;
/// Bytes of what a group has consumed above its position in a partition, as it stands in a checkpoint.
pub const ACK_STATE_SIZE_MAX: usize = 64 << 10;
/// Positions of groups in one transaction, on one shard.
pub const TRANSACTION_POSITIONS_MAX: usize = 4_096;

/// Unanswered produce frames per producer and partition; also the window in which a repeat is recognised.
/// Kafka's number.
pub const PRODUCER_WINDOW: usize = 5;
/// Idempotent producers remembered per partition; the one unused for longest is forgotten first.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 1024;

/// Groups in flight at most (K).
pub const GROUPS_IN_FLIGHT_MAX: usize = 4;
/// Idle time after which a heartbeat group gives the last group a witness.
pub const HEARTBEAT_DELAY_US: u64 = 5_000;
/// Size of one write while a slot is pre-written. Larger ones delay commits (0.4 to 1 ms at p99).
pub const PREWRITE_CHUNK: usize = 128 << 10;
/// ... and while the log is about to wait for the slot: a stop of the log would be worse.
pub const PREWRITE_CHUNK_URGENT: usize = 1 << 20;
/// While groups are in flight the background writes at most once in this time: 64 MB/s in pieces of
/// [`PREWRITE_CHUNK`].
pub const BACKGROUND_PERIOD_US: u64 = 2_000;
/// Log between two checkpoints.
pub const CHECKPOINT_INTERVAL: u64 = 256 << 20;
/// A checkpoint chunk is closed at this size; one item may exceed it.
pub const CHECKPOINT_CHUNK_TARGET: usize = 64 << 10;
/// Free slots at or below which new bodies are refused.
pub const FREE_SLOTS_RESERVE: usize = 2;
/// Time after the last commit for which cold reads go one at a time, at [`COLD_RATE_BUSY`] at most.
pub const COLD_HOLDBACK_US: u64 = 10_000;
/// Bytes of cold reads a second while commits go on, of each shard: what a reader who catches up takes of disk and
/// core is kept from producers.
pub const COLD_RATE_BUSY: u64 = 400_000_000;
/// While commits go on the cold arena takes 2 MiB of new memory at most once in this time: the kernel takes
/// milliseconds to find and pin them where the host has to find them first, and commits wait meanwhile.
pub const COLD_GROWTH_PERIOD_US: u64 = 1_000_000;
/// Unit of a cold read and of the cold cache.
pub const COLD_PAGE_SIZE: usize = 128 << 10;
/// Ranges of the log that an operator has set aside.
pub const QUARANTINE_MAX: usize = 64;

const _: () = {
    assert!(BLOCK_SIZE.is_multiple_of(SECTOR_SIZE));
    assert!(FRAME_HEADER_SIZE.is_multiple_of(FRAME_ALIGN));
    assert!(GROUP_HEADER_SIZE.is_multiple_of(FRAME_ALIGN));
    assert!(FRAME_SIZE_MAX.is_multiple_of(BLOCK_SIZE));
    // The largest group, the header and the seal fit the smallest slot of a default directory.
    assert!(GROUP_SIZE_MAX + SEGMENT_HEADER_SIZE + BLOCK_SIZE <= SEGMENT_SIZES[0] as usize);
    // ... and with --segment-size at its least: one frame at its limit, in a group of its own.
    assert!(frame_size_max(SEGMENT_SIZE_MIN) + 3 * BLOCK_SIZE <= SEGMENT_SIZE_MIN as usize);
    // Positions in a segment and lengths of a group are u32.
    assert!(SEGMENT_SIZE_MAX <= u32::MAX as u64);
    assert!(CHECKPOINT_CHUNK_TARGET >= BLOCK_SIZE);
    assert!(COLD_PAGE_SIZE.is_multiple_of(BLOCK_SIZE));
    assert!(PREWRITE_CHUNK.is_multiple_of(BLOCK_SIZE));
    assert!(PREWRITE_CHUNK_URGENT.is_multiple_of(PREWRITE_CHUNK));
};

/// `bytes` rounded up to whole blocks.
pub const fn block_align(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_SIZE)
}
