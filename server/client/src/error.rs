//! What can go wrong, one enum for each kind of work. Every message says what to do.

use crate::core::Refused;
use crate::core::connection::ConnectionError;
use crate::core::consumer::Halt;
use crate::core::decode::ReceiveError;
use crate::core::producer::Failure;
use ringmq_format::name::NameError;
use ringmq_format::record::RecordError;
use ringmq_protocol::ResponseError;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

/// A call that failed.
#[derive(Clone, Debug)]
pub enum ClientError {
    /// The server's address is not `host:port`.
    Address(Arc<str>),
    /// No connection to this address.
    Connect {
        /// `host:port`.
        address: Arc<str>,
        /// Why.
        source: Arc<io::Error>,
    },
    /// The peer does not speak as it should, or refused the connection.
    Connection(ConnectionError),
    /// The connection ended before the answer came: it may have been done.
    Lost(Option<Arc<io::Error>>),
    /// The server said no.
    Refused(Refused),
    /// Tried for as long as `request_timeout` says; this came last.
    TimedOut(Box<ClientError>),
    /// Not the name of a topic.
    Topic(NameError),
    /// Not the name of a group, or of an instance.
    Name {
        /// Of what.
        of: &'static str,
        /// Why not.
        error: NameError,
    },
    /// The server's answer is not what it should be.
    Response(ResponseError),
    /// What was read is damaged.
    Receive(ReceiveError),
    /// The topic has no partition of this index.
    UnknownPartition {
        /// The index.
        partition: u32,
        /// How many it has.
        partitions: u32,
    },
    /// The client's task is gone, because its runtime ended.
    Closed,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "'{address}' is not an address; give host:port"),
            Self::Connect { address, source } => {
                write!(f, "no connection to {address}: {source}; is the server running there?")
            }
            Self::Connection(error) => error.fmt(f),
            Self::Lost(_) => f.write_str(
                "the connection ended before the answer came; look whether it was done, then try again",
            ),
            Self::Refused(refused) => refused.fmt(f),
            Self::TimedOut(last) => write!(f, "gave up after request_timeout; last: {last}"),
            Self::Topic(error) => write!(f, "{error}; choose another name for the topic"),
            Self::Name { of, error } => write!(f, "{error}; choose another name for the {of}"),
            Self::Response(error) => error.fmt(f),
            Self::Receive(error) => error.fmt(f),
            Self::UnknownPartition { partition, partitions } => {
                write!(f, "there is no partition {partition}; the topic has {partitions}, counted from 0")
            }
            Self::Closed => {
                f.write_str("the client has ended; make a new one inside a running tokio runtime")
            }
        }
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connect { source, .. } | Self::Lost(Some(source)) => Some(&**source),
            Self::Connection(error) => Some(error),
            Self::Refused(error) => Some(error),
            Self::TimedOut(error) => Some(&**error),
            Self::Topic(error) | Self::Name { error, .. } => Some(error),
            Self::Response(error) => Some(error),
            Self::Receive(error) => Some(error),
            Self::Address(_) | Self::Lost(None) | Self::UnknownPartition { .. } | Self::Closed => None,
        }
    }
}

/// A record that was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendError {
    /// No record can be like this.
    Record(RecordError),
    /// The bytes are not a frame of records, or larger than the server takes.
    NotAFrame,
    /// The topic has no partition of this index.
    UnknownPartition {
        /// The index.
        partition: u32,
        /// How many it has.
        partitions: u32,
    },
    /// The memory bound is reached (only `try_send` says so; `send` waits).
    Full,
    /// The server refuses it; it is not stored.
    Refused(Refused),
    /// Tried for as long as `retry_for` says; it is not stored.
    Expired(Option<Refused>),
    /// Tried for as long as `retry_for` says; it may be stored.
    OutcomeUnknown(Option<Refused>),
    /// It is stored, but the server does not know any more where.
    StoredOffsetUnknown,
    /// Another program produces under this identity.
    Fenced,
    /// The producer was closed, or its runtime ended; what was not acknowledged may be stored.
    Closed,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(error) => write!(f, "{error}; make the record smaller"),
            Self::NotAFrame => {
                f.write_str("not a frame of records that the server takes; build it with FrameBuilder")
            }
            Self::UnknownPartition { partition, partitions } => {
                write!(f, "there is no partition {partition}; the topic has {partitions}, counted from 0")
            }
            Self::Full => f.write_str("max_buffered_bytes are unacknowledged; wait for acknowledgements"),
            Self::Refused(refused) => write!(f, "not stored: {refused}"),
            Self::Expired(last) => {
                f.write_str("not stored: gave up after retry_for; send it again")?;
                last.as_ref().map_or(Ok(()), |last| write!(f, "; last: {last}"))
            }
            Self::OutcomeUnknown(last) => {
                f.write_str("gave up after retry_for without an answer; look whether it was stored before sending it again")?;
                last.as_ref().map_or(Ok(()), |last| write!(f, "; last: {last}"))
            }
            Self::StoredOffsetUnknown => {
                f.write_str("stored earlier, at an offset that is not known; do not send it again")
            }
            Self::Fenced => f.write_str("another program produces under this identity; stop one of the two"),
            Self::Closed => f.write_str("the producer is closed; make a new one"),
        }
    }
}

impl Error for SendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Record(error) => Some(error),
            Self::Refused(refused) | Self::Expired(Some(refused)) | Self::OutcomeUnknown(Some(refused)) => {
                Some(refused)
            }
            _ => None,
        }
    }
}

impl From<Failure> for SendError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refused) => Self::Refused(refused),
            Failure::Expired { last } => Self::Expired(last),
            Failure::OutcomeUnknown { last } => Self::OutcomeUnknown(last),
            Failure::StoredOffsetUnknown => Self::StoredOffsetUnknown,
            Failure::Fenced => Self::Fenced,
        }
    }
}

/// A partition that is not read any further. The others go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumeError {
    /// Halted until `seek`.
    Halted {
        /// Which partition.
        partition: u32,
        /// The offset that would have come next.
        position: u64,
        /// Why.
        halt: Halt,
    },
    /// Every partition is halted, which was told before.
    AllHalted,
}

impl fmt::Display for ConsumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Halted { partition, position, halt } => {
                write!(f, "partition {partition} stopped at offset {position}: ")?;
                match halt {
                    Halt::Refused(refused) => refused.fmt(f),
                    Halt::OutOfRange { log_start } => write!(
                        f,
                        "it is not in the log (which began at {log_start} when last seen); seek, or choose OutOfRange::Earliest"
                    ),
                    Halt::Received(error) => {
                        write!(f, "{error}; seek behind it, and run `ringmq segment verify`")
                    }
                    Halt::Unreachable => {
                        f.write_str("the server was away for longer than retry_for; seek to try again")
                    }
                }
            }
            Self::AllHalted => f.write_str("all partitions are halted; seek, or make a new consumer"),
        }
    }
}

impl Error for ConsumeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Halted { halt: Halt::Refused(refused), .. } => Some(refused),
            Self::Halted { halt: Halt::Received(error), .. } => Some(error),
            _ => None,
        }
    }
}

/// A transaction that did not end as asked.
#[derive(Clone, Debug)]
pub enum TransactionError {
    /// A message could not be stored; the transaction is being rolled back.
    Send(SendError),
    /// Positions of a group could not be stored; the transaction is being rolled back.
    Offsets(Refused),
    /// It was resolved the other way before: by an answer to a check, or by an operator. The message says which.
    Resolved(Refused),
    /// The server does not know it, or no longer. If an earlier attempt to end it was not answered, it may have been
    /// done.
    Unknown(Refused),
    /// The server refuses.
    Refused(Refused),
    /// Tried for as long as `retry_for` says; what became of it is not known. The checker will be asked.
    OutcomeUnknown(Box<ClientError>),
    /// Something else failed before anything was decided.
    Client(ClientError),
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(error) => write!(f, "the transaction was rolled back: {error}"),
            Self::Offsets(refused) => write!(f, "the transaction was rolled back: positions: {refused}"),
            Self::Resolved(refused) | Self::Unknown(refused) | Self::Refused(refused) => refused.fmt(f),
            Self::OutcomeUnknown(last) => write!(
                f,
                "gave up after retry_for without an answer; the checker will be asked what became of the transaction; last: {last}"
            ),
            Self::Client(error) => error.fmt(f),
        }
    }
}

impl Error for TransactionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Send(error) => Some(error),
            Self::Offsets(refused)
            | Self::Resolved(refused)
            | Self::Unknown(refused)
            | Self::Refused(refused) => Some(refused),
            Self::OutcomeUnknown(error) => Some(&**error),
            Self::Client(error) => Some(error),
        }
    }
}

impl From<ClientError> for TransactionError {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// A consumer of a group that cannot go on, or something that it was asked and did not do.
#[derive(Clone, Debug)]
pub enum GroupError {
    /// The server does not take it as a member, for good: another mode or other subscriptions than the others, no such
    /// group, a filter that cannot be read.
    Refused(Refused),
    /// A newer owner has this partition: what was not committed in it, that one reads again. The consumer goes on with
    /// what it has.
    Fenced {
        /// The topic.
        topic: Arc<str>,
        /// Index of the partition.
        partition: u32,
    },
    /// A partition is not read any further; the others go on.
    Partition {
        /// The topic.
        topic: Arc<str>,
        /// Why.
        error: ConsumeError,
    },
    /// Records of a partition cannot be received; they come again, and the other partitions go on.
    Receive {
        /// The topic.
        topic: Arc<str>,
        /// Index of the partition.
        partition: u32,
        /// Why.
        error: ReceiveError,
    },
    /// Not a member at this moment: the group is being joined again, and there is nothing to commit for.
    NotAMember,
    /// The record was settled before, or its lease has ended and somebody else has got it.
    Stale,
    /// Tried for as long as `retry_for` says, without an answer.
    OutcomeUnknown,
    /// A call failed.
    Client(ClientError),
    /// The consumer was closed, or its runtime ended.
    Closed,
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => refused.fmt(f),
            Self::Fenced { topic, partition } => write!(
                f,
                "{topic}[{partition}] has a newer owner: drop what you hold of it, that one reads it again"
            ),
            Self::Partition { topic, error } => write!(f, "topic {topic}: {error}"),
            Self::Receive { topic, partition, error } => {
                write!(f, "{topic}[{partition}]: {error}; run `ringmq segment verify`")
            }
            Self::NotAMember => f.write_str("not a member of the group at this moment; try again soon"),
            Self::Stale => f.write_str(
                "the record is no longer yours: its lease has ended, or it was settled before; drop it",
            ),
            Self::OutcomeUnknown => f.write_str(
                "gave up after retry_for without an answer; the record comes again unless it was done",
            ),
            Self::Client(error) => error.fmt(f),
            Self::Closed => f.write_str("the consumer is closed; make a new one"),
        }
    }
}

impl Error for GroupError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Refused(refused) => Some(refused),
            Self::Partition { error, .. } => Some(error),
            Self::Receive { error, .. } => Some(error),
            Self::Client(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ClientError> for GroupError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refused) => Self::Refused(refused),
            error => Self::Client(error),
        }
    }
}
