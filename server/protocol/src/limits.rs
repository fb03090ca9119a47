//! Every bound of the wire and the relations between them. A server may lower one, never raise it.

use crate::header::HEADER_SIZE;
use ringmq_format::limits::{FRAME_ALIGN, FRAME_SIZE_MAX, SHARDS_MAX, TOPIC_NAME_MAX};

/// Bytes after the header of a message before HELLO was answered.
pub const PRE_HELLO_SIZE_MAX: usize = 8 << 10;
/// Time a fresh connection has to say HELLO.
pub const PRE_HELLO_TIME_MS: u64 = 5_000;
/// Time from the first byte of a request to its last, while the server receives.
pub const MESSAGE_TIME_MS: u64 = 30_000;
/// Silence after which the server closes a connection on which nothing is outstanding: no request, no subscription.
pub const IDLE_TIME_MS: u64 = 300_000;

/// Bytes after the header of a request.
pub const REQUEST_SIZE_MAX: usize = 16 << 20;
/// Own fields of a message, either way.
pub const FIELDS_SIZE_MAX: usize = 1 << 20;
/// Bytes after the header of what the server sends: what was asked for, and one frame that overshoots.
pub const RESPONSE_SIZE_MAX: usize = 24 << 20;
/// Largest `max_bytes` of a FETCH that is honoured; more is treated as this.
pub const FETCH_SIZE_MAX: usize = 16 << 20;
/// Largest `max_wait_ms` of a FETCH that is honoured; more is treated as this.
pub const FETCH_WAIT_MS_MAX: u32 = 30_000;
/// Entries in front of the frames of one FETCH response or PUSH.
pub const FETCH_ENTRIES_MAX: usize = 65_536;

/// Frames of one PRODUCE.
pub const PRODUCE_FRAMES_MAX: usize = 4_096;
/// Bytes of requests that a connection may have unanswered. At the bound the server stops reading.
pub const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// Requests that a connection may have unanswered. At the bound the server stops reading.
pub const IN_FLIGHT_REQUESTS_MAX: usize = 4_096;
/// Handles that a connection may have open.
pub const HANDLES_MAX: usize = 16_384;
/// Subscriptions that a connection may have open.
pub const SUBSCRIPTIONS_MAX: usize = 16_384;
/// Credit that a subscription may hold, in bytes of entries; more is treated as this.
pub const CREDIT_MAX: u64 = 1 << 30;

/// Topic names of one METADATA.
pub const METADATA_NAMES_MAX: usize = 1_024;
/// Topics of one LIST_TOPICS page.
pub const LIST_TOPICS_MAX: usize = 1_024;
/// Partitions of one DESCRIBE_TOPIC page.
pub const DESCRIBE_PARTITIONS_MAX: usize = 4_096;
/// The client's or server's name and version in HELLO.
pub const HELLO_STRING_MAX: usize = 255;
/// A topic name on the wire. Longer than what a name may be, so that a name a little too long is answered
/// `InvalidTopicName` and not `MalformedRequest`.
pub const NAME_STRING_MAX: usize = 255;
/// Text of an error answer.
pub const ERROR_MESSAGE_MAX: usize = 1_024;

/// Subscriptions of a member.
pub const SUBSCRIPTIONS_OF_MEMBER_MAX: usize = 64;
/// A filter expression.
pub const FILTER_STRING_MAX: usize = 4 << 10;
/// Partitions of one topic that are named in an assignment. A topic with all its partitions assigned needs no names.
pub const TOPIC_PARTITIONS_ASSIGNED_MAX: usize = 65_536;
/// Partitions that are named in one assignment, over all topics.
pub const PARTITIONS_ASSIGNED_MAX: usize = 131_072;
/// Positions of one HEARTBEAT.
pub const HEARTBEAT_POSITIONS_MAX: usize = 4_096;
/// Positions of one COMMIT_OFFSETS, partitions of one FETCH_OFFSETS.
pub const OFFSETS_MAX: usize = 16_384;
/// Steps of a group's backoff.
pub const BACKOFF_STEPS_MAX: usize = 64;
/// Longest wait of a RECEIVE or HEARTBEAT that is honoured; more is treated as this.
pub const RECEIVE_WAIT_MS_MAX: u32 = 30_000;
/// Longest invisible time that is honoured; more is treated as this. RocketMQ's 12 hours.
pub const INVISIBLE_MS_MAX: u32 = 43_200_000;
/// Leases of one answer to RECEIVE.
pub const LEASES_MAX: usize = 4_096;
/// Handles of one ACK, changes of one CHANGE_INVISIBLE.
pub const ACKS_MAX: usize = 4_096;
/// Offsets of one REPLAY_DEAD_LETTERS.
pub const REPLAY_MAX: usize = 1_024;
/// Groups of one LIST_GROUPS page.
pub const LIST_GROUPS_MAX: usize = 1_024;
/// Members of one DESCRIBE_GROUP answer.
pub const DESCRIBE_MEMBERS_MAX: usize = 1_024;
/// Positions of one DESCRIBE_GROUP page.
pub const DESCRIBE_POSITIONS_MAX: usize = 1_024;
/// Partitions of one RESET_GROUP answer.
pub const RESET_PARTITIONS_MAX: usize = 16_384;
/// Messages of one LIST_TIMERS page.
pub const LIST_TIMERS_MAX: usize = 1_024;
/// Transactions of one LIST_TRANSACTIONS page.
pub const LIST_TRANSACTIONS_MAX: usize = 1_024;
/// Halves of the transaction that LIST_TRANSACTIONS was asked for.
pub const LIST_HALVES_MAX: usize = 2_048;
/// Registrations of producer groups that a connection may have.
pub const REGISTRATIONS_MAX: usize = 1_024;

const _: () = {
    // Every answer fits the own fields.
    assert!(
        64 + SUBSCRIPTIONS_OF_MEMBER_MAX * (24 + NAME_STRING_MAX) + PARTITIONS_ASSIGNED_MAX * 4
            <= FIELDS_SIZE_MAX
    );
    assert!(
        4_096 + SUBSCRIPTIONS_OF_MEMBER_MAX * (4 + NAME_STRING_MAX + FILTER_STRING_MAX) <= FIELDS_SIZE_MAX
    );
    assert!(TOPIC_PARTITIONS_ASSIGNED_MAX <= PARTITIONS_ASSIGNED_MAX);
    assert!(64 + OFFSETS_MAX * 32 <= FIELDS_SIZE_MAX && 64 + RESET_PARTITIONS_MAX * 40 <= FIELDS_SIZE_MAX);
    assert!(64 + HEARTBEAT_POSITIONS_MAX * 16 <= FIELDS_SIZE_MAX);
    assert!(64 + LEASES_MAX * 32 <= FIELDS_SIZE_MAX && 64 + ACKS_MAX * 40 <= FIELDS_SIZE_MAX);
    assert!(64 + LIST_GROUPS_MAX * (40 + NAME_STRING_MAX) <= FIELDS_SIZE_MAX);
    let described = SUBSCRIPTIONS_OF_MEMBER_MAX * (4 + NAME_STRING_MAX + FILTER_STRING_MAX);
    let members = DESCRIBE_MEMBERS_MAX * (36 + 2 * NAME_STRING_MAX);
    assert!(4_096 + described + members + DESCRIBE_POSITIONS_MAX * 88 <= FIELDS_SIZE_MAX);
    assert!(64 + LIST_TIMERS_MAX * (34 + NAME_STRING_MAX) <= FIELDS_SIZE_MAX);
    let halves = LIST_HALVES_MAX * (34 + NAME_STRING_MAX);
    assert!(64 + 66 + NAME_STRING_MAX + halves <= FIELDS_SIZE_MAX);
    assert!(64 + LIST_TRANSACTIONS_MAX * (66 + NAME_STRING_MAX) <= FIELDS_SIZE_MAX);
};

const _: () = {
    // The largest frame fits a request with its own fields, and a bounded connection takes several such requests.
    assert!(FRAME_SIZE_MAX + 16 <= REQUEST_SIZE_MAX);
    assert!(2 * (REQUEST_SIZE_MAX + HEADER_SIZE) <= IN_FLIGHT_BYTES_MAX + 2 * HEADER_SIZE);
    assert!(8 + PRODUCE_FRAMES_MAX * 8 <= FIELDS_SIZE_MAX);
    // A fetch at its limit, one frame that overshoots and the entries' headers.
    assert!(FETCH_SIZE_MAX + FRAME_SIZE_MAX + 24 + FETCH_ENTRIES_MAX * 24 <= RESPONSE_SIZE_MAX);
    assert!(FIELDS_SIZE_MAX <= REQUEST_SIZE_MAX && REQUEST_SIZE_MAX <= u32::MAX as usize);
    assert!(TOPIC_NAME_MAX < NAME_STRING_MAX && NAME_STRING_MAX <= u16::MAX as usize);
    assert!(8 + METADATA_NAMES_MAX * (2 + NAME_STRING_MAX) <= FIELDS_SIZE_MAX);
    assert!(8 + LIST_TOPICS_MAX * (16 + NAME_STRING_MAX) <= FIELDS_SIZE_MAX);
    assert!(64 + DESCRIBE_PARTITIONS_MAX * 24 + NAME_STRING_MAX <= FIELDS_SIZE_MAX);
    // HELLO, its answer and any error answer fit what is allowed before HELLO.
    assert!(8 + HELLO_STRING_MAX <= PRE_HELLO_SIZE_MAX);
    assert!(64 + SHARDS_MAX as usize * 2 + HELLO_STRING_MAX <= PRE_HELLO_SIZE_MAX);
    assert!(16 + ERROR_MESSAGE_MAX <= PRE_HELLO_SIZE_MAX);
    assert!(HEADER_SIZE.is_multiple_of(FRAME_ALIGN));
};
