//! The 32 bytes in front of every message, either way.
//!
//! ```text
//! 0                32                 32+aux             32+len
//! | header         | own fields       | frames           |
//! ```
//!
//! A header is valid if, in this order (`parse` returns the first that fails):
//! - H1 the checksum over bytes 0..28 holds (only now is the length believed),
//! - H2 the version is [`PROTOCOL_VERSION`],
//! - H3 no unknown flag is set,
//! - H4 `aux` is at most `len` and [`FIELDS_SIZE_MAX`],
//! - H5 `len` is at most what the reader takes.
//!
//! H6 (`check_fields`): `payload_crc` is the checksum of the own fields. Frames have checksums of their own.
//! After H1 to H5 failed the stream cannot be followed: the connection ends, at best after one error answer.

use crate::PROTOCOL_VERSION;
use crate::error_code::ErrorCode;
use crate::limits::FIELDS_SIZE_MAX;
use ringmq_format::checksum::crc32c;
use std::fmt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header.
pub const HEADER_SIZE: usize = 32;

/// Bits of the header's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// What a client sends.
    pub const REQUEST: Self = Self(0);
    /// Set on everything that the server sends.
    pub const RESPONSE: Self = Self(1);
    /// Set with RESPONSE: the own fields are an [`crate::ErrorBody`].
    pub const ERROR: Self = Self(2);
    const KNOWN: u16 = Self::RESPONSE.0 | Self::ERROR.0;
}

macro_rules! ops {
    ($($number:literal $name:ident $doc:literal;)*) => {
        /// What a message is about. Numbers are for ever and a gap is never refilled.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Op {
            $(#[doc = $doc] $name = $number,)*
        }

        impl Op {
            /// All operations, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The operation with this number.
            pub fn parse(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

ops! {
    1 Hello "Names the client and agrees on a version. First request of a connection.";
    2 Ping "Asks for an empty answer.";
    3 Metadata "Asks where the partitions of topics are.";
    4 CreateTopic "Makes a topic.";
    5 DeleteTopic "Removes a topic and its records.";
    6 DescribeTopic "Asks for a topic's state, partition by partition.";
    7 ListTopics "Asks for a page of all topics.";
    8 Open "Gives a number to a partition, for this connection.";
    9 Produce "Stores frames; answered when they are on disk.";
    10 Fetch "Reads frames from an offset, waiting for the first if asked to.";
    11 Subscribe "Has frames pushed from an offset as long as there is credit.";
    12 Credit "Adds to a subscription's credit; has no answer.";
    13 Unsubscribe "Ends a subscription.";
    14 Push "Server to client: frames of a subscription, or the error that ended it.";
    15 ListOffsets "Asks for an offset by time, or for the first or last one.";
    16 Goodbye "Server to client: it drains; finish what is open and reconnect.";
    17 JoinGroup "Makes the client a member of a consumer group.";
    18 Heartbeat "Says that a member lives, and asks whether its assignment has changed.";
    19 LeaveGroup "Ends a membership.";
    20 CommitOffsets "Makes positions of a group durable, at once or with a transaction.";
    21 FetchOffsets "Asks where a group stands, and claims partitions for a member.";
    22 Receive "Receives records of a partition, each with a lease, waiting for the first if asked to.";
    23 Ack "Says that received records are consumed; answered when that is durable.";
    24 ChangeInvisible "Prolongs leases, hands records back, or says that deliveries have failed.";
    25 EndTransaction "Commits or aborts a transaction; answered when that is durable.";
    26 RegisterProducer "Says that this connection can answer checks of a producer group.";
    27 Check "Server to client: what became of this transaction?";
    28 ListTimers "Asks for a page of the messages that wait for their time.";
    29 ChangeTimer "Cancels or reschedules a message that waits, or all of a topic.";
    30 ListGroups "Asks for a page of all consumer groups.";
    31 DescribeGroup "Asks for a group's settings, members and positions.";
    32 SetGroup "Makes a consumer group, or alters its settings.";
    33 ResetGroup "Moves a group's positions in a topic, or says what that would do.";
    34 DeleteGroup "Removes a consumer group and its positions.";
    35 AlterTopic "Changes the settings of a topic, or reads them.";
    36 ListTransactions "Asks for a page of the transactions that are not resolved, or for one.";
    37 ReplayDeadLetters "Puts dead letters back into the partitions that they came from.";
    38 PeekMessage "Asks for the frame of a message that is not visible yet.";
    39 TopicStats "Asks for the statistics of a topic.";
}

/// In front of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Bytes behind the header.
    pub len: U32,
    /// [`PROTOCOL_VERSION`].
    pub version: u8,
    /// Number of an [`Op`]. A response repeats its request's.
    pub op: u8,
    /// [`Flags`].
    pub flags: U16,
    /// Chosen by the client and repeated in the answer. 0 where there is no request: PUSH, GOODBYE.
    pub correlation: U64,
    /// Handle or subscription, for operations that have one; otherwise 0.
    pub handle: U32,
    /// Bytes of the own fields; what follows them is frames.
    pub aux: U32,
    /// CRC-32C of the own fields.
    pub payload_crc: U32,
    /// CRC-32C of bytes 0..28.
    pub header_crc: U32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Header>() == HEADER_SIZE);
    assert!(offset_of!(Header, version) == 4);
    assert!(offset_of!(Header, flags) == 6);
    assert!(offset_of!(Header, correlation) == 8);
    assert!(offset_of!(Header, handle) == 16);
    assert!(offset_of!(Header, aux) == 20);
    assert!(offset_of!(Header, payload_crc) == 24);
    assert!(offset_of!(Header, header_crc) == 28);
};

/// A header after which the stream cannot be followed: answer once, with correlation 0, and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingError {
    /// H0: fewer than 32 bytes were given.
    Truncated,
    /// H1.
    HeaderCrc,
    /// H2, with the version that was found.
    Version(u8),
    /// H3, with the flags that were found.
    Flags(u16),
    /// H4, with `aux`.
    Fields(u32),
    /// H5, with `len`.
    TooLong(u32),
}

impl FramingError {
    /// What to answer.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::HeaderCrc => ErrorCode::HeaderCrc,
            Self::Version(_) => ErrorCode::UnsupportedVersion,
            Self::Truncated | Self::Flags(_) | Self::Fields(_) => ErrorCode::MalformedRequest,
            Self::TooLong(_) => ErrorCode::RequestTooLarge,
        }
    }
}

impl fmt::Display for FramingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "fewer than {HEADER_SIZE} bytes where a message header should be"),
            Self::HeaderCrc => {
                f.write_str("the message header's checksum differs: not a RingMQ peer, or bytes changed")
            }
            Self::Version(found) => write!(f, "protocol version {found} where {PROTOCOL_VERSION} is spoken"),
            Self::Flags(found) => write!(f, "unknown flags {found:#06x} in a message header"),
            Self::Fields(found) => write!(f, "impossible length {found} of a message's own fields"),
            Self::TooLong(found) => write!(f, "a message of {found} bytes, longer than allowed"),
        }
    }
}

impl std::error::Error for FramingError {}

impl Header {
    /// The header at the front of `bytes`, if H1 to H5 hold; `len_max` bounds the bytes behind it.
    pub fn parse(bytes: &[u8], len_max: usize) -> Result<&Self, FramingError> {
        let (header, _) = Self::ref_from_prefix(bytes).map_err(|_| FramingError::Truncated)?;
        if header.header_crc.get() != header.compute_crc() {
            return Err(FramingError::HeaderCrc);
        }
        if header.version != PROTOCOL_VERSION {
            return Err(FramingError::Version(header.version));
        }
        if header.flags.get() & !Flags::KNOWN != 0 {
            return Err(FramingError::Flags(header.flags.get()));
        }
        if header.aux > header.len || header.fields_len() > FIELDS_SIZE_MAX {
            return Err(FramingError::Fields(header.aux.get()));
        }
        if header.len.get() as usize > len_max {
            return Err(FramingError::TooLong(header.len.get()));
        }
        Ok(header)
    }

    /// A sealed header for a message whose own fields are `fields`, followed by `frames_len` bytes of frames.
    pub fn new(
        op: u8,
        flags: Flags,
        correlation: u64,
        handle: u32,
        fields: &[u8],
        frames_len: usize,
    ) -> Self {
        assert!(fields.len() <= FIELDS_SIZE_MAX, "{} bytes of own fields", fields.len());
        let len = fields.len() + frames_len;
        assert!(len <= u32::MAX as usize, "a message of {len} bytes");
        let mut header = Self {
            len: U32::new(len as u32),
            version: PROTOCOL_VERSION,
            op,
            flags: U16::new(flags.0),
            correlation: U64::new(correlation),
            handle: U32::new(handle),
            aux: U32::new(fields.len() as u32),
            payload_crc: U32::new(crc32c(fields)),
            header_crc: U32::ZERO,
        };
        header.header_crc = U32::new(header.compute_crc());
        header
    }

    /// CRC-32C of bytes 0..28.
    pub fn compute_crc(&self) -> u32 {
        crc32c(&self.as_bytes()[..HEADER_SIZE - 4])
    }

    /// H6.
    pub fn check_fields(&self, fields: &[u8]) -> Result<(), ErrorCode> {
        let whole = fields.len() == self.fields_len() && crc32c(fields) == self.payload_crc.get();
        if whole { Ok(()) } else { Err(ErrorCode::PayloadCrc) }
    }

    /// The operation, if it is known.
    pub fn op(&self) -> Option<Op> {
        Op::parse(self.op)
    }

    /// The correlation.
    pub fn correlation(&self) -> u64 {
        self.correlation.get()
    }

    /// Handle or subscription.
    pub fn handle(&self) -> u32 {
        self.handle.get()
    }

    /// Sent by the server.
    pub fn is_response(&self) -> bool {
        self.flags.get() & Flags::RESPONSE.0 != 0
    }

    /// The own fields are an error body.
    pub fn is_error(&self) -> bool {
        self.flags.get() & Flags::ERROR.0 != 0
    }

    /// Bytes of the own fields.
    pub fn fields_len(&self) -> usize {
        self.aux.get() as usize
    }

    /// Bytes of frames behind the own fields.
    pub fn frames_len(&self) -> usize {
        self.len.get() as usize - self.fields_len()
    }

    /// Bytes of the whole message, header included.
    pub fn message_len(&self) -> usize {
        HEADER_SIZE + self.len.get() as usize
    }
}

/// Starts a message at the end of `out`: room for the header, filled in by [`end`]. Answers where it starts.
pub fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.resize(start + HEADER_SIZE, 0);
    start
}

/// Fills in the header of the message that [`begin`] started at `start`. The first `fields_len` bytes behind the
/// header are its own fields; the rest of `out` and `frames_outside` further bytes, which the caller sends next
/// from elsewhere, are its frames.
#[allow(clippy::too_many_arguments)]
pub fn end(
    out: &mut [u8],
    start: usize,
    op: u8,
    flags: Flags,
    correlation: u64,
    handle: u32,
    fields_len: usize,
    frames_outside: usize,
) {
    let (head, body) = out[start..].split_at_mut(HEADER_SIZE);
    let (fields, frames) = body.split_at(fields_len);
    let header = Header::new(op, flags, correlation, handle, fields, frames.len() + frames_outside);
    head.copy_from_slice(header.as_bytes());
}
