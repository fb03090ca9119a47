//! The client library: publish to and read from a RingMQ server.
//!
//! Map of rooms: [`core`] is the logic without I/O (connections, producing, consuming as state machines; a
//! simulator drives the same ones), the rest is a thin tokio shell: `link` owns a socket, `membership` keeps a member
//! in its group, and what a program holds is [`Client`], [`Producer`], [`TransactionalProducer`], [`Consumer`],
//! [`GroupConsumer`] (stream and broadcast) and [`QueueConsumer`]. It runs on a current-thread runtime as well as on many threads and
//! needs no io_uring.
//!
//! What it promises
//! - An acknowledged record is on disk.
//! - A record is stored once, whatever connections or servers do meanwhile: it is sent again with the same producer,
//!   epoch and sequence, and the server answers with the first offset. Records of a partition keep their order.
//! - A consumer gets every record of a partition once and in order, checked by both checksums of its frame.
//! - A transaction that is committed is visible, all of it; one that is not never is; what nobody ended is asked of the
//!   checker.
//! - A record that was acknowledged by a group is not delivered to it again.
//! - Memory is bounded: `send` waits for room, a consumer is only sent what it has credit for.
//!
//! ```no_run
//! use ringmq_client::{Client, ClientConfig, ConsumerConfig, ProducerConfig, RecordBuf};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::new("127.0.0.1:7700")).await?;
//!
//! let producer = client.producer("orders", ProducerConfig { auto_create: true, ..Default::default() }).await?;
//! let ack = producer.send(RecordBuf::new("first message").key("customer-7"), None).await?.await?;
//! println!("orders[{}]@{} is on disk", ack.partition, ack.offset);
//!
//! let mut consumer = client.consumer("orders", ConsumerConfig::default()).await?;
//! let record = consumer.next().await?;
//! println!("{}: {:?}", record.offset, record.body);
//! # Ok(())
//! # }
//! ```

mod admin;
mod client;
mod clock;
mod config;
mod consumer;
pub mod core;
mod error;
mod group;
pub mod limits;
mod link;
mod membership;
mod partitioner;
mod producer;
mod queue;
mod snapshot;
mod transaction;

pub use crate::core::Refused;
pub use crate::core::connection::{FrameOutcome, ServerInfo, Stored};
pub use crate::core::consumer::{Halt, OutOfRange, Start};
pub use crate::core::decode::{ConsumedRecord, Properties, ReceiveError};
pub use crate::core::producer::ProducerIdentity;
pub use admin::{
    DeadLetterOrigin, GroupDescription, GroupInfo, GroupOptions, HalfInfo, HandleError, MemberInfo,
    PeekedMessage, PendingHandle, PositionInfo, ReplayOutcome, ResetInfo, TimerInfo, TimerPage,
    TopicStatistics, TransactionId, TransactionInfo, TransactionPage,
};
pub use client::{Client, Fetched, PartitionInfo, TopicDescription, TopicInfo};
pub use config::{ClientConfig, ConsumerConfig, Partitions, ProducerConfig};
pub use consumer::Consumer;
pub use error::{ClientError, ConsumeError, GroupError, SendError, TransactionError};
pub use group::{BroadcastStart, GroupConsumer, GroupRecord, Offsets, StreamConfig};
pub use membership::GroupConfig;
pub use partitioner::partition_of_key;
pub use producer::{Ack, LateAck, LateFuture, Producer, RecordBuf, SendFuture};
pub use queue::{QueueConfig, QueueConsumer, QueueRecord, SettleFuture, SettleOutcome};
pub use ringmq_format::frame::Codec;
pub use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};
pub use ringmq_protocol::{
    ErrorCode, GroupMode, GroupStart, OffsetSpec, Retry, SetGroupMode, TopicKind, TopicSettings,
    TransactionEnd, TransactionState,
};
pub use snapshot::{Snapshot, SnapshotError};
pub use transaction::{
    CheckedTransaction, Committed, InTransactionError, Resolution, Transaction, TransactionConfig,
    TransactionalProducer,
};
