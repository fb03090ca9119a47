//! The demo's clients: one that publishes while the server is killed under it, one that reads all of it back.

use super::evidence::{Acked, Judge, Published, Verified, body};
use crate::child::{ServerProcess, Workspace};
use crate::cli::Target;
use crate::failure::Failure;
use crate::link;
use indicatif::ProgressBar;
use ringmq_client::{Ack, ConsumerConfig, Producer, ProducerConfig, RecordBuf, SendFuture};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::task::{JoinError, JoinHandle};

/// Partitions of the demo's topic.
pub(super) const PARTITIONS: u32 = 4;
const TOPIC: &str = "demo";
/// Records under way: enough that a kill always meets some.
const UNDER_WAY: usize = 256;
/// The producer goes on for so long while the server is away.
const RETRY_FOR: Duration = Duration::from_secs(20);

/// What became of the kill.
struct Comeback {
    server: ServerProcess,
    absence: Duration,
}

/// Publishes `records`, kills the server when four in ten are acknowledged, and goes on while another one starts on
/// the same directory and address.
pub(super) async fn publish(
    target: &Target,
    records: u32,
    server: ServerProcess,
    workspace: &Workspace,
    port: u16,
    bar: &ProgressBar,
) -> Result<(Published, ServerProcess), Failure> {
    let failure = |error| link::client_failure(&error, target, Some(TOPIC));
    let client = link::connect(target, RETRY_FOR).await?;
    client.create_topic(TOPIC, PARTITIONS, true).await.map_err(failure)?;
    let producer = client.producer(TOPIC, ProducerConfig::default()).await.map_err(failure)?;

    let kill_at = records * 4 / 10;
    let mut server = Some(server);
    let mut comeback: Option<JoinHandle<Result<Comeback, Failure>>> = None;
    let mut came_back: Option<Comeback> = None;
    let mut waiting: VecDeque<(u32, Instant, SendFuture)> = VecDeque::new();
    let mut published = Published {
        acks: Vec::with_capacity(records as usize),
        recognised: 0,
        acked_at_kill: 0,
        under_way_at_kill: 0,
        killed: Instant::now(),
        absence: Duration::ZERO,
        recovered_after: Duration::ZERO,
    };
    let mut next = 0;
    while published.acks.len() < records as usize {
        while next < records && waiting.len() < UNDER_WAY {
            waiting.push_back((next, Instant::now(), send(&producer, next, target).await?));
            next += 1;
        }
        if published.acks.len() >= kill_at as usize
            && let Some(server) = server.take()
        {
            published.acked_at_kill = u32::try_from(published.acks.len()).unwrap_or(u32::MAX);
            published.under_way_at_kill = waiting.len();
            published.killed = Instant::now();
            let (data, log) = (workspace.data(), workspace.log());
            comeback = Some(tokio::task::spawn_blocking(move || {
                let since = Instant::now();
                server.kill()?;
                let server = super::start(&data, port, &log)?;
                Ok(Comeback { server, absence: since.elapsed() })
            }));
        }
        let Some((id, sent, future)) = waiting.pop_front() else { break };
        let ack = acknowledged(id, future, &mut comeback, &mut came_back).await?;
        published.recognised += u32::from(ack.duplicate);
        let (partition, offset) = (ack.partition, ack.offset);
        published.acks.push(Acked { id, partition, offset, sent, acked: Instant::now() });
        bar.set_position(published.acks.len() as u64);
    }
    let comeback = match (came_back, comeback) {
        (Some(comeback), _) => comeback,
        (None, Some(task)) => joined(task.await)?,
        (None, None) => return Err(Failure::failed("the server was never killed")),
    };
    published.absence = comeback.absence;
    published.recovered_after = comeback.server.ready_after;
    Ok((published, comeback.server))
}

/// The acknowledgement; or, at once, why the server did not come back.
async fn acknowledged(
    id: u32,
    mut future: SendFuture,
    comeback: &mut Option<JoinHandle<Result<Comeback, Failure>>>,
    came_back: &mut Option<Comeback>,
) -> Result<Ack, Failure> {
    loop {
        tokio::select! {
            ack = &mut future => {
                return ack.map_err(|error| Failure::failed(format!("record {id} was not stored: {error}")));
            }
            result = async { match comeback { Some(task) => task.await, None => std::future::pending().await } } => {
                *comeback = None;
                *came_back = Some(joined(result)?);
            }
        }
    }
}

fn joined(result: Result<Result<Comeback, Failure>, JoinError>) -> Result<Comeback, Failure> {
    result.map_err(|error| Failure::failed(format!("the restart failed: {error}")))?
}

async fn send(producer: &Producer, id: u32, target: &Target) -> Result<SendFuture, Failure> {
    let sent = producer.send(RecordBuf::new(body(id)), Some(id % PARTITIONS)).await;
    sent.map_err(|error| Failure::failed(format!("{}: {error}", link::place(target, Some(TOPIC)))))
}

/// Reads the whole topic and judges it.
pub(super) async fn verify(
    target: &Target,
    published: &Published,
    bar: &ProgressBar,
) -> Result<Verified, Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let consumer = client.consumer(TOPIC, ConsumerConfig::default()).await;
    let mut consumer = consumer.map_err(|error| link::client_failure(&error, target, Some(TOPIC)))?;
    let failure = |error| Failure::failed(format!("{}: {error}", link::place(target, Some(TOPIC))));
    let ends = consumer.ends().await.map_err(failure)?;
    let mut judge = Judge::new(&published.acks, PARTITIONS);
    let mut count = 0;
    while !consumer.reached(&ends) {
        for record in consumer.next_batch(1_024).await.map_err(failure)? {
            judge.take(record.partition, record.offset, &record.body);
            count += 1;
        }
        bar.set_position(count);
    }
    Ok(judge.verdict())
}
