//! The whole wire as text: every header, operation, error code and limit. A golden test holds it, so that no
//! number changes by accident.

use crate::error_code::{ErrorCode, Retry};
use crate::fetch::{FetchEntryHeader, FetchFields};
use crate::group::{
    AssignmentHead, CommitOffsetsHead, FetchOffsetsHead, FetchedOffset, HeartbeatAnswerHead, HeartbeatHead,
    JoinGroupHead, JoinedHead, LeaveGroupWire, Outcome, PositionEntry,
};
use crate::group_admin::{
    DeleteGroupHead, DescribeGroupHead, DescribedGroupHead, GroupHead, GroupPosition, GroupsHead,
    ListGroupsHead, MemberHead, ResetEntry, ResetGroupHead, ResetHead, SetGroupHead,
};
use crate::group_settings::GroupSettingsHead;
use crate::header::{Header, Op};
use crate::produce::{ProduceHead, ProduceOutcome, ProduceSlot};
use crate::queue::{
    AckHead, ChangeInvisibleHead, ChangedLease, Lease, LeaseChange, LeaseHandle, ReceiveWire, ReceivedHead,
    ReplayHead, Replayed,
};
use crate::request::{
    CreateTopicHead, CreditWire, DescribeTopicHead, FetchWire, ForGroupWire, HelloHead, ListOffsetsWire,
    ListTopicsHead, MetadataHead, OpenHead, SubscribeWire,
};
use crate::response::{
    BoundsWire, DescribedHead, ErrorHead, GoodbyeWire, GroupSetWire, HelloAnswerHead, ListedOffsetWire,
    OpenedWire, PartitionEntry, TopicHead, TopicsHead,
};
use crate::timer::{
    ChangeTimerHead, ListTimersHead, PeekMessageWire, PeekedHead, TimerChangedWire, TimerHead, TimersHead,
};
use crate::topic::{AlterTopicHead, TopicSettingsWire, TopicStatsHead};
use crate::transaction::{
    CheckHead, EndTransactionHead, EndedWire, HalfHead, ListTransactionsHead, RegisterProducerHead,
    RegisteredWire, TransactionHead, TransactionsHead,
};
use crate::{PROTOCOL_VERSION, limits};
use std::fmt::Write;
use std::mem::offset_of;

macro_rules! layouts {
    ($text:ident, $($name:ident { $($field:ident)* })*) => {$(
        let _ = writeln!($text, "{} {} bytes", stringify!($name), size_of::<$name>());
        $(let _ = writeln!($text, "  {:>2} {}", offset_of!($name, $field), stringify!($field));)*
    )*};
}

macro_rules! limits {
    ($text:ident, $($name:ident)*) => {$(
        let _ = writeln!($text, "{} {}", stringify!($name), limits::$name);
    )*};
}

/// The text.
pub fn layout() -> String {
    let mut text = format!("protocol version {PROTOCOL_VERSION}\n\n# layouts\n");
    layouts! { text,
        Header { len version op flags correlation handle aux payload_crc header_crc }
        HelloHead { version_min version_max reserved }
        HelloAnswerHead { version reserved shard frame_size_max request_size_max ports reserved_too node }
        MetadataHead { flags count }
        TopicsHead { flags count }
        TopicHead { code name_len topic base_partition partitions }
        CreateTopicHead { partitions flags }
        DescribeTopicHead { first_partition limit }
        DescribedHead { created_ms first_partition count }
        PartitionEntry { log_start visible_end bytes }
        ListTopicsHead { limit reserved }
        OpenHead { partition reserved }
        OpenedWire { partition reserved log_start visible_end }
        ProduceHead { frames reserved }
        ProduceSlot { handle len }
        ProduceOutcome { code flags retry_after_ms base_offset timestamp }
        FetchWire { offset max_bytes max_wait_ms }
        FetchFields { log_start visible_end next_offset }
        FetchEntryHeader { base_offset visible_time first_record count }
        SubscribeWire { subscription reserved offset credit }
        BoundsWire { log_start visible_end }
        CreditWire { bytes }
        ListOffsetsWire { what reserved time_ms }
        ListedOffsetWire { offset timestamp }
        GoodbyeWire { grace_ms reserved }
        ErrorHead { code reserved retry_after_ms }
        ForGroupWire { group reserved }
        GroupSetWire { group reserved }
        JoinGroupHead { member session_ms subscriptions mode flags reserved }
        JoinedHead { generation member instance group session_ms heartbeat_ms assignments }
        AssignmentHead { topic base_partition partitions assigned name_len flags reserved }
        HeartbeatHead { generation member group wait_ms positions reserved }
        HeartbeatAnswerHead { generation heartbeat_ms assignments }
        LeaveGroupWire { member group flags }
        CommitOffsetsHead { txn generation member instance group count }
        FetchOffsetsHead { generation member instance group count flags reserved }
        PositionEntry { partition reserved offset }
        Outcome { code reserved retry_after_ms }
        FetchedOffset { code flags retry_after_ms offset generation visible_end }
        GroupSettingsHead {
            set invisible_default_ms start_value rate_bytes rate_records concurrency max_attempts backoff_steps
            ordered start reserved
        }
        ReceiveWire { member group max_records max_bytes invisible_ms wait_ms reserved }
        ReceivedHead { log_start visible_end leases reserved }
        AckHead { member group count }
        ChangeInvisibleHead { member group count }
        ReplayHead { flags count }
        LeaseHandle { offset generation attempt reserved }
        Lease { handle expires_ms }
        LeaseChange { handle after_ms kind reserved }
        ChangedLease { code flags retry_after_ms lease }
        Replayed { code flags retry_after_ms offset origin_offset origin_partition attempts }
        EndTransactionHead { txn halves positions resolution source attempt reserved }
        EndedWire { time_ms halves flags }
        RegisterProducerHead { flags reserved }
        RegisteredWire { check_after_ms check_every_ms checks_max reserved }
        CheckHead { txn since_ms halves partition attempt attempts_max reserved }
        ListTransactionsHead { txn limit state flags reserved }
        TransactionsHead { flags count halves reserved }
        TransactionHead { txn since_ms next_check_ms bytes participants halves attempts state reserved }
        HalfHead { due_ms lsn partition index len count }
        ListTimersHead { after_due_ms after_lsn after_partition limit reserved }
        TimersHead { pending flags count }
        TimerHead { due_ms lsn partition index count len }
        ChangeTimerHead { lsn due_ms partition kind reserved }
        TimerChangedWire { changed flags reserved }
        PeekMessageWire { lsn partition reserved }
        PeekedHead { txn due_ms partition index count reserved }
        ListGroupsHead { limit reserved }
        GroupsHead { flags count }
        GroupHead { group members topics name_len mode reserved created_ms lag_records lag_ms }
        DescribeGroupHead { after_instance after_topic after_partition limit flags }
        DescribedGroupHead { generation flags subscriptions members positions }
        MemberHead { member instance joined_ms partitions silent_ms }
        SetGroupHead { flags reserved }
        ResetGroupHead { value instance first_partition partitions flags to reserved }
        ResetHead { first_partition count }
        DeleteGroupHead { flags reserved }
        GroupPosition {
            instance topic partition watermark visible_end lag_records lag_ms acked_above member generation
            in_flight retries dead_letters
        }
        ResetEntry { partition code reserved before after log_start visible_end }
        AlterTopicHead { flags reserved }
        TopicSettingsWire {
            set partitions retention_ms retention_bytes delay_max_ms ttl_ms rate_bytes rate_records record_size_max
            producer_rate_bytes kind reserved
        }
        TopicStatsHead {
            created_ms records bytes first_time_ms last_time_ms appended_records appended_bytes read_bytes
            records_per_second bytes_per_second pending_delays open_halves pinned_bytes throttled groups reserved
        }
    }
    text.push_str("\n# operations\n");
    for op in Op::ALL {
        let _ = writeln!(text, "{:>2} {op:?}", *op as u8);
    }
    text.push_str("\n# error codes\n");
    for code in ErrorCode::ALL {
        let retry = match code.retry() {
            Retry::No => "no",
            Retry::Yes => "retriable",
            Retry::OutcomeUnknown => "outcome unknown",
        };
        let _ = writeln!(text, "{:>2} {} ({retry})", *code as u16, code.name());
    }
    text.push_str("\n# limits\n");
    limits! { text,
        PRE_HELLO_SIZE_MAX PRE_HELLO_TIME_MS REQUEST_SIZE_MAX FIELDS_SIZE_MAX RESPONSE_SIZE_MAX FETCH_SIZE_MAX
        FETCH_WAIT_MS_MAX FETCH_ENTRIES_MAX PRODUCE_FRAMES_MAX IN_FLIGHT_BYTES_MAX IN_FLIGHT_REQUESTS_MAX
        HANDLES_MAX SUBSCRIPTIONS_MAX CREDIT_MAX METADATA_NAMES_MAX LIST_TOPICS_MAX DESCRIBE_PARTITIONS_MAX
        HELLO_STRING_MAX NAME_STRING_MAX ERROR_MESSAGE_MAX SUBSCRIPTIONS_OF_MEMBER_MAX FILTER_STRING_MAX
        TOPIC_PARTITIONS_ASSIGNED_MAX PARTITIONS_ASSIGNED_MAX HEARTBEAT_POSITIONS_MAX OFFSETS_MAX BACKOFF_STEPS_MAX
        RECEIVE_WAIT_MS_MAX INVISIBLE_MS_MAX LEASES_MAX ACKS_MAX REPLAY_MAX LIST_GROUPS_MAX DESCRIBE_MEMBERS_MAX
        DESCRIBE_POSITIONS_MAX RESET_PARTITIONS_MAX LIST_TIMERS_MAX LIST_TRANSACTIONS_MAX LIST_HALVES_MAX
        REGISTRATIONS_MAX
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_wire_is_what_it_was() {
        insta::assert_snapshot!(super::layout());
    }
}
