//! The five scenarios for which RingMQ exists, each with real clients against a real server.
//!
//! A scenario is a function that plays a part and returns claims with what was seen. It knows the client library and
//! nothing else, so that the demo, the integration tests and the loop with `kill -9` play the same parts.
//!
//! Invariant W1  A claim is judged by what the clients saw, never by what the server says of itself alone.
//! Invariant W2  What holds without kills and cannot hold with them (latency, leases that a restart forgets) is only
//!               claimed where nobody kills.

pub(crate) mod flash_sale;
pub(crate) mod order;
pub(crate) mod price_feed;
pub(crate) mod registration;
pub(crate) mod status;

use ringmq_client::{
    Client, ClientConfig, ClientError, ErrorCode, GroupError, Producer, ProducerConfig, RecordBuf, Refused,
    Retry, SendFuture,
};
use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

/// What hangs for so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Why a scenario could not be played to its end.
pub(crate) type Trouble = String;

/// Where and how a scenario is played.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// The server.
    pub(crate) address: String,
    /// Ends the names of topics and groups, so that a scenario can be played again on the same server.
    pub(crate) tag: String,
    /// Small numbers.
    pub(crate) fast: bool,
    /// The server is killed and started again meanwhile.
    pub(crate) kills: bool,
}

/// One thing that was shown, or not.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) name: &'static str,
    pub(crate) held: bool,
    pub(crate) figures: String,
}

/// What a scenario has shown.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) title: &'static str,
    /// What was played, in a line.
    pub(crate) story: String,
    /// A small table or a curve.
    pub(crate) picture: Vec<String>,
    pub(crate) claims: Vec<Claim>,
}

impl Report {
    fn claim(&mut self, name: &'static str, held: bool, figures: impl Into<String>) {
        self.claims.push(Claim { name, held, figures: figures.into() });
    }
}

impl Stage {
    fn name(&self, base: &str) -> String {
        format!("{base}{}", self.tag)
    }

    fn size(&self, full: u32, fast: u32) -> u32 {
        if self.fast { fast } else { full }
    }

    async fn client(&self) -> Result<Client, Trouble> {
        let config = ClientConfig {
            retry_for: PATIENCE,
            request_timeout: PATIENCE,
            ..ClientConfig::new(self.address.clone())
        };
        let since = Instant::now();
        loop {
            match Client::connect(config.clone()).await {
                // Killed in the middle of the greeting.
                Err(ClientError::Lost(_) | ClientError::Connect { .. })
                    if self.kills && since.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                connected => return connected.map_err(said("connect")),
            }
        }
    }

    async fn topic(&self, client: &Client, base: &str, partitions: u32) -> Result<String, Trouble> {
        let name = self.name(base);
        client.create_topic(&name, partitions, true).await.map_err(said("make a topic"))?;
        Ok(name)
    }
}

/// What was tried, and what was answered.
fn said<E: Display>(what: &str) -> impl Fn(E) -> Trouble {
    move |error| format!("{what}: {error}")
}

/// A part that must end.
async fn in_time<T>(what: &str, part: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    tokio::time::timeout(PATIENCE, part).await.unwrap_or_else(|_| Err(format!("{what}: not done in time")))
}

/// Waits until it holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool, Trouble>) -> Result<(), Trouble> {
    in_time(what, async {
        while !holds().await? {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    })
    .await
}

/// Whether a consumer goes on by itself after this.
fn passes(error: &GroupError) -> bool {
    // A shard that has not heard of a new topic yet hears of it in a moment.
    let later =
        |refused: &Refused| refused.retry() != Retry::No || refused.code() == Some(ErrorCode::UnknownTopic);
    match error {
        GroupError::Refused(refused) => later(refused),
        GroupError::Client(ClientError::Lost(_) | ClientError::TimedOut(_)) => true,
        GroupError::NotAMember
        | GroupError::Stale
        | GroupError::OutcomeUnknown
        | GroupError::Fenced { .. } => true,
        _ => false,
    }
}

/// Sends all, then waits for all.
async fn publish(
    producer: &Producer,
    records: impl IntoIterator<Item = RecordBuf>,
) -> Result<(u64, Duration), Trouble> {
    let since = Instant::now();
    let mut sent: Vec<SendFuture> = Vec::new();
    for record in records {
        sent.push(producer.send(record, None).await.map_err(said("publish"))?);
    }
    let count = sent.len() as u64;
    for future in sent {
        future.await.map_err(said("publish"))?;
    }
    Ok((count, since.elapsed()))
}

async fn producer(client: &Client, topic: &str) -> Result<Producer, Trouble> {
    client.producer(topic, ProducerConfig::default()).await.map_err(said("produce"))
}

/// The number in front of a body: `17 …`.
fn number(body: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    text.split(' ').next()?.parse().ok()
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// 12345678 as `12,345,678`.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span with the unit that suits it.
fn span(span: Duration) -> String {
    match span.as_secs_f64() {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.01 => format!("{:.0} ms", s * 1e3),
        s => format!("{:.1} ms", s * 1e3),
    }
}

/// A curve of blocks, from nothing to the largest.
fn sparkline(values: &[u64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let top = values.iter().copied().max().unwrap_or(0).max(1);
    values.iter().map(|value| BLOCKS[(value * 7).div_ceil(top).min(7) as usize]).collect()
}

/// Rows in columns as wide as they must be; the first is left, the others right.
fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let wide = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let pad = |(column, cell): (usize, &String)| match column {
        0 => format!("{cell:<width$}", width = wide(0)),
        _ => format!("{cell:>width$}", width = wide(column)),
    };
    rows.iter().map(|row| row.iter().enumerate().map(pad).collect::<Vec<_>>().join("  ")).collect()
}

fn row<const N: usize>(cells: [&dyn Display; N]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}
