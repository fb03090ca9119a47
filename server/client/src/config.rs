//! What a program may choose.

use crate::core::consumer::{OutOfRange, Start};
use crate::core::producer::ProducerIdentity;
use crate::limits;
use ringmq_format::frame::Codec;
use std::time::Duration;

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of the server's base port. Further ports are learned from it; the host stays the one given here.
    pub server: String,
    /// What the client calls itself in the server's lists.
    pub name: String,
    /// Time for a connection, HELLO included.
    pub connect_timeout: Duration,
    /// Time for an answer, and for a call with its repetitions.
    pub request_timeout: Duration,
    /// How long producers and consumers go on trying when the server is away.
    pub retry_for: Duration,
}

impl ClientConfig {
    /// The defaults for this server (`host:port`).
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            name: concat!("ringmq-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: limits::CONNECT_TIMEOUT,
            request_timeout: limits::REQUEST_TIMEOUT,
            retry_for: limits::RETRY_FOR,
        }
    }
}

/// How to publish.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// How long a batch that is not full waits for more records. With 0 a record goes at once, and batches form only
    /// while earlier ones are unanswered, which is right for nearly everybody.
    pub linger: Duration,
    /// Size at which a batch is full.
    pub batch_bytes: usize,
    /// Records at which a batch is full.
    pub batch_records: u32,
    /// Compression of the bodies; keys, tags and properties stay readable to the server.
    pub codec: Codec,
    /// Compresses every record by itself, as topics need it whose records are acknowledged one by one.
    pub block_per_record: bool,
    /// Bytes of records that may be unacknowledged; `send` waits for room.
    pub max_buffered_bytes: usize,
    /// Goes on as this producer; `None` draws a new one.
    pub identity: Option<ProducerIdentity>,
    /// How long a batch is tried; `None` takes the client's.
    pub retry_for: Option<Duration>,
    /// Makes the topic, with one partition, if it does not exist and the server allows it.
    pub auto_create: bool,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            linger: Duration::ZERO,
            batch_bytes: limits::BATCH_BYTES,
            batch_records: limits::BATCH_RECORDS as u32,
            codec: Codec::None,
            block_per_record: false,
            max_buffered_bytes: limits::BUFFERED_BYTES,
            identity: None,
            retry_for: None,
            auto_create: false,
        }
    }
}

/// Which partitions to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Partitions {
    /// All that the topic has when the consumer is made.
    #[default]
    All,
    /// These, by index.
    Some(Vec<u32>),
}

/// How to read.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// Which partitions.
    pub partitions: Partitions,
    /// Where to start.
    pub start: Start,
    /// Bytes that may be on the way or buffered, over all partitions; each gets at least 64 KiB.
    pub credit_bytes: u64,
    /// What to do when retention has overtaken the reader.
    pub out_of_range: OutOfRange,
    /// How long a partition may be away before `next` fails; `None` takes the client's.
    pub retry_for: Option<Duration>,
    /// Makes the topic, with one partition, if it does not exist and the server allows it.
    pub auto_create: bool,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            partitions: Partitions::All,
            start: Start::Earliest,
            credit_bytes: limits::CREDIT_BYTES,
            out_of_range: OutOfRange::Fail,
            retry_for: None,
            auto_create: false,
        }
    }
}
