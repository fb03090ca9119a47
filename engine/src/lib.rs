//! The storage engine of RingMQ: one log per shard, durable in groups, recovered after any crash.
//!
//! Under construction: see ARCHITECTURE.md.

pub mod catalogue;
pub mod log;
pub mod partition;
pub mod planted;
pub mod reader;
pub mod recovery;
pub mod ring;
pub mod shard;

pub use ringmq_format as format;
