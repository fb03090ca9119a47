//! The wire protocol, as a pure codec: bytes in, typed requests and responses out, and back.
//!
//! Owns the message header, the operations and their own fields, the error codes and every limit of a
//! connection. `PROTOCOL.md` in the server's folder says the same bytes in prose; the golden test of [`layout`]
//! keeps the two honest. Frames are carried, not read: they are `ringmq-format`'s, the same bytes on the wire, in
//! memory and on disk.
//!
//! Ignorant of sockets, clocks, topics that exist and the engine. Never panics on hostile bytes, and allocates
//! nothing while it decodes.
//!
//! Reading order: [`limits`], [`header`], [`error_code`], [`request`], [`response`], [`produce`], [`fetch`]; then,
//! one room for each kind of work, [`group`], [`group_settings`], [`queue`], [`transaction`], [`timer`],
//! [`group_admin`], [`topic`].
//!
//! # A server's side
//! ```
//! use ringmq_protocol::{HEADER_SIZE, Header, Op, Request, Response, decode_request, limits};
//!
//! # let mut wire = Vec::new();
//! # Request::Ping.encode(7, &mut wire);
//! // 1. The first 32 bytes: only now is the length believed.
//! let header = Header::parse(&wire, limits::REQUEST_SIZE_MAX)?;
//! // 2. The own fields, once they are there; what follows them (`header.frames_len()`) is frames.
//! let own_fields = &wire[HEADER_SIZE..HEADER_SIZE + header.fields_len()];
//! let mut out = Vec::new();
//! match decode_request(header, own_fields) {
//!     Ok(Request::Ping) => Response::Pong.encode(header.correlation(), 0, &mut out),
//!     Ok(request) => println!("{:?} is carried out elsewhere", request.op()),
//!     Err(refusal) => refusal.encode(header, &mut out),
//! }
//! # let answer = Header::parse(&out, 1024)?;
//! # assert_eq!((answer.op(), answer.correlation(), answer.is_error()), (Some(Op::Ping), 7, false));
//! # Ok::<(), ringmq_protocol::FramingError>(())
//! ```

pub mod error_code;
pub mod fetch;
mod fields;
pub mod group;
pub mod group_admin;
pub mod group_settings;
pub mod header;
pub mod items;
pub mod layout;
pub mod limits;
pub mod produce;
pub mod queue;
pub mod request;
pub mod response;
#[cfg(test)]
mod tests;
pub mod timer;
pub mod topic;
pub mod transaction;

pub use error_code::{ErrorCode, Retry};
pub use fetch::{ENTRY_SAME_FRAME, Entry, FetchEntryHeader, FetchFields, entries};
pub use group::{
    Assignment, CommitOffsets, FetchOffsets, FetchedOffset, GroupMode, Heartbeat, HeartbeatAnswer, JoinGroup,
    Joined, LeaveGroup, Outcome, PositionEntry, Subscription,
};
pub use group_admin::{
    DeleteGroup, DescribeGroup, DescribedGroup, GroupEntry, GroupPage, GroupPosition, GroupReset, ListGroups,
    MemberEntry, ResetEntry, ResetGroup, SetGroup, SetGroupMode,
};
pub use group_settings::{GroupSettings, GroupStart};
pub use header::{Flags, FramingError, HEADER_SIZE, Header, Op, begin, end};
pub use items::{Item, Items, ItemsBuf};
pub use produce::{OUTCOME_DUPLICATE, ProduceOutcome, ProduceSlot};
pub use queue::{
    Ack, ChangeInvisible, ChangedLease, Lease, LeaseChange, LeaseHandle, Receive, Received,
    ReplayDeadLetters, Replayed,
};
pub use request::{
    CreateTopic, Credit, DescribeTopic, Fetch, Hello, ListOffsets, ListTopics, Metadata, Names, NamesBuf,
    OffsetSpec, Open, Produce, Refusal, Request, Subscribe, decode_request,
};
pub use response::{
    Bounds, DescribedTopic, ErrorBody, Goodbye, HelloAnswer, ListedOffset, Opened, PartitionEntry, Response,
    ResponseError, TopicEntries, TopicEntriesBuf, TopicEntry, TopicPage, decode_response,
};
pub use timer::{ListTimers, PeekMessage, Peeked, TimerChange, TimerChanged, TimerEntry, TimerPage};
pub use topic::{AlterTopic, AlteredTopic, TopicKind, TopicSettings, TopicStats};
pub use transaction::{
    Check, EndSource, EndTransaction, Ended, HalfEntry, ListTransactions, RegisterProducer, Registered,
    TransactionEnd, TransactionEntry, TransactionPage, TransactionState,
};

/// The version that this crate speaks, and the only one there is.
pub const PROTOCOL_VERSION: u8 = 1;
