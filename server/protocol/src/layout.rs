//! The whole wire as text: every header, operation, error code and limit. A golden test holds it, so that no
//! number changes by accident.

use crate::error_code::{ErrorCode, Retry};
use crate::fetch::{FetchEntryHeader, FetchFields};
use crate::header::{Header, Op};
use crate::produce::{ProduceHead, ProduceOutcome, ProduceSlot};
use crate::request::{
    CreateTopicHead, CreditWire, DescribeTopicHead, FetchWire, HelloHead, ListOffsetsWire, ListTopicsHead,
    MetadataHead, OpenHead, SubscribeWire,
};
use crate::response::{
    BoundsWire, DescribedHead, ErrorHead, GoodbyeWire, HelloAnswerHead, ListedOffsetWire, OpenedWire,
    PartitionEntry, TopicHead, TopicsHead,
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
        HELLO_STRING_MAX NAME_STRING_MAX ERROR_MESSAGE_MAX
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
