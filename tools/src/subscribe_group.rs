//! `ringmq sub --group` and `--latest-per-key`: as a member of a group, or from a snapshot on.
//!
//! Invariant Y1  A record is acknowledged, or its position committed, after its line was written and flushed: what a
//!               reader did not get comes again.

use crate::cli::Common;
use crate::failure::{EXIT_FAILED, Failure};
use crate::group::group_start;
use crate::link;
use crate::subscribe::{Mode, Printer, SubArgs, Until, consume_failure};
use ringmq_client::{
    BroadcastStart, Client, ConsumedRecord, ConsumerConfig, ErrorCode, GroupConfig, GroupConsumer,
    GroupError, GroupOptions, GroupRecord, QueueConfig, QueueConsumer, QueueRecord, Refused, Retry,
    SnapshotError, StreamConfig,
};
use std::io::Write;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

/// Records written, and settled, at once.
const BATCH: u64 = 1_024;
/// Pause after an error that goes away by itself.
const PAUSE: Duration = Duration::from_millis(100);

/// Reads as a member of a group.
pub(crate) async fn read(
    args: &SubArgs,
    group: &str,
    client: &Client,
    common: &Common,
) -> Result<(), Failure> {
    let start = args.from.map(group_start);
    let config = GroupConfig::new(group)
        .filtered(args.topic.as_str(), args.filter.as_deref().unwrap_or("*"))
        .options(GroupOptions { start, ..GroupOptions::default() });
    let printer = Printer::new(args, common);
    let failure = |error: GroupError| group_failure(&error, args, group);
    let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
    match args.mode.unwrap_or_default() {
        Mode::Stream => {
            let consumer = client.group_consumer(config, by_hand).await.map_err(failure)?;
            stream(args, group, consumer, &printer).await
        }
        Mode::Broadcast => {
            let newest = matches!(args.from, Some(crate::start::From::Latest));
            let start = if newest { BroadcastStart::Newest } else { BroadcastStart::Resume };
            let consumer = client.broadcast(config, args.instance.as_deref(), start, by_hand).await;
            stream(args, group, consumer.map_err(failure)?, &printer).await
        }
        Mode::Queue => {
            let few = args.count.and_then(|count| u32::try_from(count).ok());
            let prefetch =
                few.map_or(QueueConfig::default().prefetch, |few| few.min(QueueConfig::default().prefetch));
            let consumer =
                client.queue_consumer(config, QueueConfig { prefetch, ..QueueConfig::default() }).await;
            queue(args, group, consumer.map_err(failure)?, &printer).await
        }
    }
}

fn group_failure(error: &GroupError, args: &SubArgs, group: &str) -> Failure {
    let name = crate::format::harmless(group.as_bytes());
    let place = format!("group '{name}' on {}", args.target.server);
    match error {
        GroupError::Refused(refused) => link::refused_failure(refused, &place, Some(&args.topic)),
        GroupError::Client(error) => link::failure_about(error, &args.target, "group", group),
        _ => Failure::failed(format!("{place}: {error}")),
    }
}

/// Whether the consumer goes on by itself. Then it is said, and no more.
fn passes(error: &GroupError) -> bool {
    // A group may wait for a topic that does not exist yet.
    let later =
        |refused: &Refused| refused.retry() != Retry::No || refused.code() == Some(ErrorCode::UnknownTopic);
    match error {
        GroupError::Refused(refused) => later(refused),
        GroupError::Fenced { .. }
        | GroupError::NotAMember
        | GroupError::OutcomeUnknown
        | GroupError::Stale => true,
        GroupError::Partition { .. }
        | GroupError::Receive { .. }
        | GroupError::Client(_)
        | GroupError::Closed => false,
    }
}

fn note(error: &GroupError) {
    static LAST: Mutex<String> = Mutex::new(String::new());
    // The same again and again is said once.
    let text = error.to_string();
    if std::mem::replace(&mut *LAST.lock().unwrap_or_else(PoisonError::into_inner), text.clone()) == text {
        return;
    }
    let _ = writeln!(std::io::stderr().lock(), "note: {text}");
}

/// The first record, and what else is there without waiting. The second is false when it was interrupted.
async fn batch<T>(
    max: u64,
    mut next: impl AsyncFnMut() -> Result<T, GroupError>,
    fatal: impl Fn(&GroupError) -> Failure,
) -> Result<(Vec<T>, bool), Failure> {
    let mut records = Vec::new();
    loop {
        let result = if records.is_empty() {
            tokio::select! {
                result = next() => Some(result),
                _ = tokio::signal::ctrl_c() => return Ok((records, false)),
            }
        } else {
            let mut ready = pin!(next());
            std::future::poll_fn(|context| {
                Poll::Ready(match ready.as_mut().poll(context) {
                    Poll::Ready(result) => Some(result),
                    Poll::Pending => None,
                })
            })
            .await
        };
        match result {
            Some(Ok(record)) => records.push(record),
            Some(Err(error)) if passes(&error) => {
                note(&error);
                if !records.is_empty() {
                    return Ok((records, true));
                }
                tokio::time::sleep(PAUSE).await;
            }
            Some(Err(error)) => return Err(fatal(&error)),
            None => return Ok((records, true)),
        }
        if records.len() as u64 >= max {
            return Ok((records, true));
        }
    }
}

async fn stream(
    args: &SubArgs,
    group: &str,
    mut consumer: GroupConsumer,
    printer: &Printer<'_>,
) -> Result<(), Failure> {
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut going_on = true;
    while left > 0 && going_on {
        let fatal = |error: &GroupError| group_failure(error, args, group);
        let (records, more) = batch(left.min(BATCH), async || consumer.next().await, fatal).await?;
        going_on = more;
        left -= printer.print(records.iter().map(|it: &GroupRecord| &it.record))?;
        match consumer.commit().await {
            Ok(()) => {}
            // Who reads there now gets these records again.
            Err(error) if passes(&error) => note(&error),
            Err(error) => return Err(fatal(&error)),
        }
    }
    // What could not be said is not lost: it comes again.
    let _ = consumer.close(false).await;
    Ok(())
}

async fn queue(
    args: &SubArgs,
    group: &str,
    mut consumer: QueueConsumer,
    printer: &Printer<'_>,
) -> Result<(), Failure> {
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut going_on = true;
    let mut unsettled = 0_u64;
    while left > 0 && going_on {
        let fatal = |error: &GroupError| group_failure(error, args, group);
        let (records, more) = batch(left.min(BATCH), async || consumer.next().await, fatal).await?;
        going_on = more;
        left -= printer.print(records.iter().map(|it: &QueueRecord| &it.record))?; // Y1
        let settled = records.iter().map(|record| consumer.ack(record)).collect::<Vec<_>>();
        for settled in settled {
            match settled.await {
                Ok(_) => {}
                Err(error) if passes(&error) => {
                    unsettled += 1;
                    note(&error);
                }
                Err(error) => return Err(fatal(&error)),
            }
        }
    }
    consumer.close().await;
    if unsettled > 0 {
        let _ = writeln!(std::io::stderr().lock(), "{unsettled} records may come again");
        return Err(Failure::said(EXIT_FAILED));
    }
    Ok(())
}

/// The latest value of each key, then what comes.
pub(crate) async fn latest(args: &SubArgs, client: &Client, common: &Common) -> Result<(), Failure> {
    let config = ConsumerConfig { auto_create: true, ..ConsumerConfig::default() };
    let snapshot = client.latest_then_follow(&args.topic, config).await;
    let mut snapshot = snapshot.map_err(|error| match &error {
        SnapshotError::Client(error) => link::client_failure(error, &args.target, Some(&args.topic)),
        SnapshotError::Consume(error) => consume_failure(error, args),
    })?;
    let printer = Printer::new(args, common);
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut records = snapshot.latest.values().collect::<Vec<&ConsumedRecord>>();
    records.sort_unstable_by_key(|record| (record.partition, record.offset));
    left -= printer.print(records.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)))?;
    if let Some(since) = snapshot.complete_since_ms {
        let since = crate::format::time(since);
        let _ = writeln!(std::io::stderr().lock(), "note: keys last written before {since} may be missing");
    }
    if matches!(args.until, Some(Until::End)) {
        return Ok(());
    }
    while left > 0 {
        let max = usize::try_from(left.min(BATCH)).unwrap_or(1);
        let batch = snapshot.follow.next_batch(max).await.map_err(|error| consume_failure(&error, args))?;
        left -= printer.print(batch.iter())?;
    }
    Ok(())
}
