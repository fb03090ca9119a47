//! Order: the changes of a user's status arrive one by one, while other users' go on over many consumers.

use super::{
    Report, Stage, Trouble, columns, count, number, passes, producer, publish, row, said, span, until,
};
use ringmq_client::{Client, GroupConfig, GroupOptions, QueueConfig, QueueConsumer, QueueRecord, RecordBuf};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const PARTITIONS: u32 = 2;
const CONSUMERS: usize = 3;
/// What it takes to write a status down.
const WORK: Duration = Duration::from_millis(2);

/// Where a user stands.
#[derive(Debug, Default)]
struct User {
    /// Changes that were acknowledged; the answer may be under way.
    said: u64,
    /// Changes whose acknowledgement was answered.
    done: u64,
    in_flight: u32,
}

#[derive(Debug, Default)]
struct Ledger {
    users: BTreeMap<Vec<u8>, User>,
    records: [u64; CONSUMERS],
    again: u64,
    misordered: u64,
    together: u64,
    in_flight: u32,
    in_flight_max: u32,
    consumed: u64,
    trouble: Option<Trouble>,
}

type Shared = Arc<Mutex<Ledger>>;

fn on<T>(ledger: &Shared, work: impl FnOnce(&mut Ledger) -> T) -> T {
    work(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Ledger {
    fn begin(&mut self, consumer: usize, key: &[u8], change: u64, attempt: u16, kills: bool) {
        let user = self.users.entry(key.to_vec()).or_default();
        // Until its acknowledgement is answered the same one may come again, if somebody was killed.
        let expected = change == user.said || (kills && user.done <= change && change < user.said);
        self.misordered += u64::from(!expected);
        self.together += u64::from(user.in_flight > 0);
        user.in_flight += 1;
        self.records[consumer] += 1;
        self.again += u64::from(attempt > 1);
        self.in_flight += 1;
        self.in_flight_max = self.in_flight_max.max(self.in_flight);
    }

    /// The work is over, and that was said, or that it failed.
    fn end(&mut self, key: &[u8], change: u64, failed: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let user = self.users.entry(key.to_vec()).or_default();
        user.in_flight = user.in_flight.saturating_sub(1);
        if !failed {
            user.said = user.said.max(change + 1);
        }
    }

    /// An acknowledgement was answered.
    fn acknowledged(&mut self, key: &[u8], change: u64) {
        let user = self.users.entry(key.to_vec()).or_default();
        self.consumed += (change + 1).saturating_sub(user.done);
        user.done = user.done.max(change + 1);
    }
}

async fn consumer(
    client: Client,
    number_of: usize,
    config: GroupConfig,
    ledger: Shared,
    kills: bool,
) -> Result<JoinHandle<()>, Trouble> {
    let few = QueueConfig { prefetch: 16, ..QueueConfig::default() };
    let mut consumer = client.queue_consumer(config, few).await.map_err(said("join"))?;
    let (worked, mut done) = mpsc::unbounded_channel::<QueueRecord>();
    Ok(tokio::spawn(async move {
        loop {
            let record = tokio::select! {
                record = consumer.next() => record,
                Some(record) = done.recv() => {
                    settle(&consumer, &record, &ledger);
                    continue;
                }
            };
            let record = match record {
                Ok(record) => record,
                Err(error) if passes(&error) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                Err(error) => {
                    on(&ledger, |ledger| ledger.trouble = Some(error.to_string()));
                    return;
                }
            };
            let (Some(change), Some(key)) = (number(&record.body), &record.key) else { continue };
            on(&ledger, |ledger| ledger.begin(number_of, key, change, record.attempt, kills));
            // The work overlaps with that for other users.
            let worked = worked.clone();
            tokio::spawn(async move {
                tokio::time::sleep(WORK).await;
                let _ = worked.send(record);
            });
        }
    }))
}

fn settle(consumer: &QueueConsumer, record: &QueueRecord, ledger: &Shared) {
    let (Some(change), Some(key)) = (number(&record.body), record.key.clone()) else { return };
    // Every fifth change of some users fails the first time: it is tried again in its place.
    let fails = record.attempt == 1 && change % 5 == 4 && key.last().is_some_and(|byte| byte % 4 == 0);
    on(ledger, |ledger| ledger.end(&key, change, fails));
    if fails {
        drop(consumer.retry(record));
        return;
    }
    let settled = consumer.ack(record);
    let ledger = ledger.clone();
    tokio::spawn(async move {
        // Stale: somebody else has it since a kill, and acknowledges it.
        if settled.await.is_ok() {
            on(&ledger, |ledger| ledger.acknowledged(&key, change));
        }
    });
}

/// Plays it.
pub(crate) async fn play(stage: &Stage) -> Result<Report, Trouble> {
    let users = u64::from(stage.size(100, 20));
    let changes = u64::from(stage.size(20, 10));
    let client = stage.client().await?;
    let topic = stage.topic(&client, "status", PARTITIONS).await?;
    let group = stage.name("status");
    let producer = producer(&client, &topic).await?;
    let records = (0..changes).flat_map(|change| {
        (0..users)
            .map(move |user| RecordBuf::new(format!("{change} of user {user}")).key(format!("user-{user}")))
    });
    let (sent, _) = publish(&producer, records).await?;

    let ledger = Shared::default();
    let options = GroupOptions {
        ordered: Some(true),
        backoff: Some(vec![Duration::from_millis(20)]),
        invisible: Some(Duration::from_secs(5)),
        max_attempts: Some(100),
        ..GroupOptions::default()
    };
    let since = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..CONSUMERS {
        let config = GroupConfig::new(group.clone()).topic(topic.clone()).options(options.clone());
        tasks.push(consumer(stage.client().await?, number, config, ledger.clone(), stage.kills).await?);
    }
    until("all changes consumed", async || {
        if let Some(trouble) = on(&ledger, |ledger| ledger.trouble.clone()) {
            return Err(trouble);
        }
        Ok(on(&ledger, |ledger| ledger.consumed) >= sent)
    })
    .await?;
    let took = since.elapsed();
    tasks.iter().for_each(JoinHandle::abort);

    let mut report = Report {
        title: "status",
        story: format!(
            "{} changes of {} users' status, {CONSUMERS} consumers on {PARTITIONS} partitions",
            count(sent),
            count(users)
        ),
        picture: Vec::new(),
        claims: Vec::new(),
    };
    on(&ledger, |ledger| {
        let mut rows = vec![row([&"consumer", &"changes"])];
        for (number, records) in ledger.records.iter().enumerate() {
            rows.push(row([&format!("{}", number + 1), &count(*records)]));
        }
        report.picture = columns(&rows);
        report.claim(
            "every change of every user",
            ledger.consumed >= sent,
            format!("{} of {} in {}", count(ledger.consumed), count(sent), span(took)),
        );
        report.claim(
            "in order for each user",
            ledger.misordered == 0,
            format!("{} out of order, {} tried again in their place", ledger.misordered, count(ledger.again)),
        );
        if !stage.kills {
            // A lease is forgotten by a restart, so that its record may be with two consumers then.
            report.claim(
                "one change of a user at a time",
                ledger.together == 0,
                format!("{} twice in flight", ledger.together),
            );
        }
        report.claim(
            "other users go on meanwhile",
            ledger.in_flight_max > PARTITIONS && ledger.records.iter().all(|records| *records > 0),
            format!(
                "up to {} users in flight at once, where a lock per queue allows {PARTITIONS}",
                ledger.in_flight_max
            ),
        );
    });
    Ok(report)
}
