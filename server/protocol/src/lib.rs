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
//! Reading order: [`limits`], [`header`], [`error_code`], [`request`], [`response`], [`produce`], [`fetch`].
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
pub mod header;
pub mod layout;
pub mod limits;
pub mod produce;
pub mod request;
pub mod response;
#[cfg(test)]
mod tests;

pub use error_code::{ErrorCode, Retry};
pub use fetch::{Entry, FetchEntryHeader, FetchFields, entries};
pub use header::{Flags, FramingError, HEADER_SIZE, Header, Op, begin, end};
pub use produce::{OUTCOME_DUPLICATE, ProduceOutcome, ProduceSlot};
pub use request::{
    CreateTopic, Credit, DescribeTopic, Fetch, Hello, ListOffsets, ListTopics, Metadata, Names, NamesBuf,
    OffsetSpec, Open, Produce, Refusal, Request, Subscribe, decode_request,
};
pub use response::{
    Bounds, DescribedTopic, ErrorBody, Goodbye, HelloAnswer, ListedOffset, Opened, PartitionEntry, Response,
    ResponseError, TopicEntries, TopicEntriesBuf, TopicEntry, TopicPage, decode_response,
};

/// The version that this crate speaks, and the only one there is.
pub const PROTOCOL_VERSION: u8 = 1;
