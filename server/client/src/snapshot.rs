//! The latest value of each key, then what follows: what a cache needs when it starts.

use crate::client::Client;
use crate::clock::wall_ms;
use crate::config::ConsumerConfig;
use crate::consumer::Consumer;
use crate::core::consumer::Start;
use crate::core::decode::ConsumedRecord;
use crate::error::{ClientError, ConsumeError};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The latest value of each key of a topic at one point, and a consumer that goes on right behind it.
pub struct Snapshot {
    /// The last record of each key; keys whose last record has an empty body are left out. Records without a key are
    /// not in it.
    pub latest: BTreeMap<Bytes, ConsumedRecord>,
    /// `None`: every key that was ever written is in it. Otherwise records older than this (Unix milliseconds, the
    /// server's clock) are gone in some partition, and a key that was last written before may be missing.
    pub complete_since_ms: Option<i64>,
    /// The point, for each partition: the first offset that is not in it.
    pub ends: BTreeMap<u32, u64>,
    /// Goes on there: no record is missing between the two, and none comes twice.
    pub follow: Consumer,
}

/// A snapshot that was not taken.
#[derive(Clone, Debug)]
pub enum SnapshotError {
    /// A call failed.
    Client(ClientError),
    /// A partition cannot be read. If retention has overtaken the reader, take another one.
    Consume(ConsumeError),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => error.fmt(f),
            Self::Consume(error) => write!(f, "{error}; take the snapshot again"),
        }
    }
}

impl std::error::Error for SnapshotError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Client(error) => Some(error),
            Self::Consume(error) => Some(error),
        }
    }
}

impl From<ClientError> for SnapshotError {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<ConsumeError> for SnapshotError {
    fn from(error: ConsumeError) -> Self {
        Self::Consume(error)
    }
}

impl Client {
    /// Reads what a topic retains up to its end now, keeping the last record of each key, and hands over a consumer
    /// that goes on from there. `config.start` is not heeded.
    ///
    /// ```no_run
    /// # use ringmq_client::{Client, ConsumerConfig};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut snapshot = client.latest_then_follow("prices", ConsumerConfig::default()).await?;
    /// let mut cache: std::collections::BTreeMap<_, _> =
    ///     snapshot.latest.into_iter().map(|(key, record)| (key, record.body)).collect();
    /// loop {
    ///     let record = snapshot.follow.next().await?;
    ///     let Some(key) = record.key else { continue };
    ///     match record.body.is_empty() {
    ///         true => cache.remove(&key),
    ///         false => cache.insert(key, record.body),
    ///     };
    /// }
    /// # }
    /// ```
    pub async fn latest_then_follow(
        &self,
        topic: &str,
        config: ConsumerConfig,
    ) -> Result<Snapshot, SnapshotError> {
        let config = ConsumerConfig { start: Start::Earliest, ..config };
        let mut follow = self.consumer(topic, config).await?;
        let ends = follow.ends().await?;
        let mut latest: BTreeMap<Bytes, ConsumedRecord> = BTreeMap::new();
        let mut first: BTreeMap<u32, (u64, i64)> = BTreeMap::new();
        // Partitions that were read beyond the point while others had not reached it: they go on from it.
        let mut ahead = BTreeSet::new();
        while !follow.reached(&ends) {
            let record = follow.next().await?;
            first.entry(record.partition).or_insert((record.offset, record.timestamp_ms));
            if ends.get(&record.partition).is_none_or(|end| record.offset >= *end) {
                ahead.insert(record.partition);
                continue;
            }
            match (record.key.clone(), record.body.is_empty()) {
                (Some(key), true) => drop(latest.remove(&key)),
                (Some(key), false) => drop(latest.insert(key, record)),
                (None, _) => {}
            }
        }
        for partition in ahead {
            if let Some(end) = ends.get(&partition) {
                follow.seek(partition, *end);
            }
        }
        // Where the first record that is there is not the first that ever was, older ones are gone.
        let bounds = follow.bounds().unwrap_or_default();
        let since = bounds
            .iter()
            .filter(|(_, bounds)| bounds.log_start > 0)
            .map(|(partition, _)| first.get(partition).map_or_else(wall_ms, |first| first.1));
        Ok(Snapshot { latest, complete_since_ms: since.max(), ends, follow })
    }
}
