//! Peak shaving: a burst is taken at once and worked off at the pace of who is behind; the producer never feels it.

use super::{
    Report, Stage, Trouble, columns, count, number, passes, percentile, producer, publish, row, said, span,
    sparkline, until,
};
use ringmq_client::{Client, GroupConfig, GroupOptions, QueueConfig, RecordBuf, SetGroupMode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const PARTITIONS: u32 = 4;
/// Between two requests whose latency is taken.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// A bar of the curve.
const BAR: Duration = Duration::from_millis(100);
/// What a rate may save up before it is spent.
const SAVED: f64 = 0.5;

#[derive(Debug)]
struct Ledger {
    /// By request: how often it was acknowledged.
    acked: Vec<u8>,
    /// When each was received.
    times: Vec<Duration>,
    distinct: u64,
    after_ack: u64,
    trouble: Option<Trouble>,
}

type Shared = Arc<Mutex<Ledger>>;

fn on<T>(ledger: &Shared, work: impl FnOnce(&mut Ledger) -> T) -> T {
    work(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn warehouse(
    client: Client,
    config: GroupConfig,
    since: Instant,
    ledger: Shared,
) -> Result<JoinHandle<()>, Trouble> {
    let many = QueueConfig { prefetch: 4_096, ..QueueConfig::default() };
    let mut consumer = client.queue_consumer(config, many).await.map_err(said("join"))?;
    Ok(tokio::spawn(async move {
        loop {
            let record = match consumer.next().await {
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
            let Some(id) = number(&record.body) else { continue };
            let settled = consumer.ack(&record);
            on(&ledger, |ledger| {
                ledger.times.push(since.elapsed());
                if let Some(acked) = ledger.acked.get(id as usize) {
                    ledger.after_ack += u64::from(*acked > 0);
                }
            });
            let ledger = ledger.clone();
            tokio::spawn(async move {
                if settled.await.is_ok() {
                    on(&ledger, |ledger| {
                        if let Some(acked) = ledger.acked.get_mut(id as usize) {
                            ledger.distinct += u64::from(*acked == 0);
                            *acked = acked.saturating_add(1);
                        }
                    });
                }
            });
        }
    }))
}

/// Latencies of single requests, each durable, at a steady pace, while `meanwhile` goes on.
async fn probe(client: &Client, topic: &str, time: Duration) -> Result<Vec<Duration>, Trouble> {
    let producer = producer(client, topic).await?;
    let since = Instant::now();
    let mut latencies = Vec::new();
    let mut next = since;
    while since.elapsed() < time {
        tokio::time::sleep_until(next.into()).await;
        let ack = producer.send(RecordBuf::new("probe"), None).await.map_err(said("publish"))?;
        ack.await.map_err(said("publish"))?;
        latencies.push(next.elapsed());
        next += PROBE_EVERY;
        // What was missed is not made up for: a stall counts once.
        next = next.max(Instant::now().checked_sub(PROBE_EVERY).unwrap_or(next));
    }
    latencies.sort_unstable();
    Ok(latencies)
}

/// Plays it.
pub(crate) async fn play(stage: &Stage) -> Result<Report, Trouble> {
    let requests = u64::from(stage.size(200_000, 4_000));
    let rate = stage.size(5_000, 1_000);
    let time = Duration::from_millis(u64::from(stage.size(1_500, 500)));
    let client = stage.client().await?;
    let topic = stage.topic(&client, "sale", PARTITIONS).await?;
    // Where latency is taken; a partition of its own would not feel the burst, so it is the same server and log.
    let probed = stage.topic(&client, "sale-probe", PARTITIONS).await?;
    let group = stage.name("warehouse");

    let before = probe(&client, &probed, time).await?;

    let ledger = Arc::new(Mutex::new(Ledger {
        acked: vec![0; requests as usize],
        times: Vec::with_capacity(requests as usize),
        distinct: 0,
        after_ack: 0,
        trouble: None,
    }));
    let options = GroupOptions {
        rate_records: Some(rate),
        invisible: Some(Duration::from_secs(20)),
        ..GroupOptions::default()
    };
    let since = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let config = GroupConfig::new(group.clone()).topic(topic.clone()).options(options.clone());
        tasks.push(warehouse(stage.client().await?, config, since, ledger.clone()).await?);
    }

    let burst_producer = producer(&client, &topic).await?;
    let probing = {
        let (client, probed) = (stage.client().await?, probed.clone());
        tokio::spawn(async move { probe(&client, &probed, time).await })
    };
    let (sent, took) =
        publish(&burst_producer, (0..requests).map(|id| RecordBuf::new(format!("{id} wants one")))).await?;
    let during = probing.await.map_err(said("probe"))??;
    let after = probe(&client, &probed, time).await?;

    let limited = since.elapsed();
    let received = on(&ledger, |ledger| ledger.times.len() as u64);
    let described = client.describe_group(&group).await.map_err(said("describe"))?;
    let backlog = described.group.lag_records.unwrap_or(0);

    // The rush is over, and the warehouse has hired people: the limit goes while all of it runs.
    let unlimited = GroupOptions { rate_records: Some(0), ..GroupOptions::default() };
    let set = client.set_group(&group, SetGroupMode::Alter, &unlimited).await;
    set.map_err(said("group set"))?;
    until("all requests served", async || {
        if let Some(trouble) = on(&ledger, |ledger| ledger.trouble.clone()) {
            return Err(trouble);
        }
        if on(&ledger, |ledger| ledger.distinct) >= requests {
            return Ok(true);
        }
        if stage.kills {
            let described = client.describe_group(&group).await.map_err(said("describe"))?;
            return Ok(described.group.lag_records == Some(0));
        }
        Ok(false)
    })
    .await?;
    let drained = since.elapsed();
    tasks.iter().for_each(JoinHandle::abort);

    let mut report = Report {
        title: "flash sale",
        story: format!(
            "{} requests at once, for a warehouse that takes {}/s",
            count(requests),
            count(rate.into())
        ),
        picture: Vec::new(),
        claims: Vec::new(),
    };
    let bars = on(&ledger, |ledger| {
        let mut bars = vec![0_u64; (drained.as_millis() / BAR.as_millis()) as usize + 1];
        for time in &ledger.times {
            if let Some(bar) = bars.get_mut((time.as_millis() / BAR.as_millis()) as usize) {
                *bar += 1;
            }
        }
        bars
    });
    // At most one bar a column of the screen.
    let wide = bars.len().div_ceil(56).max(1);
    let bars = bars.chunks(wide).map(|bars| bars.iter().sum()).collect::<Vec<u64>>();
    let mut picture = columns(&[
        row([&"producer's latency", &"requests", &"p50", &"p99"]),
        latency_row("before", &before),
        latency_row("during the burst", &during),
        latency_row("backlog being drained", &after),
    ]);
    picture.push(format!("served  {}  the limit goes at {}", sparkline(&bars), span(limited)));
    report.picture = picture;
    report.claim(
        "the burst is taken at once",
        sent == requests,
        format!("{} on disk in {}, {}/s", count(sent), span(took), count(per_second(sent, took))),
    );
    if !stage.kills {
        let allowed = (f64::from(rate) * (limited.as_secs_f64() + SAVED)) as u64;
        report.claim(
            "the warehouse is not run over",
            received <= allowed && received > 0,
            format!("{} served in {}, {} allowed", count(received), span(limited), count(allowed)),
        );
        let (quiet, loaded) = (percentile(&before, 50), percentile(&after, 50));
        report.claim(
            "a backlog does not slow producers",
            loaded <= quiet * 3 + Duration::from_millis(10),
            format!("p50 {} without, {} with {} waiting", span(quiet), span(loaded), count(backlog)),
        );
    }
    let (distinct, after_ack) = on(&ledger, |ledger| (ledger.distinct, ledger.after_ack));
    report.claim(
        "each request is served, none is lost",
        distinct == requests || (stage.kills && distinct <= requests),
        format!(
            "{} of {}, {} after the limit was lifted",
            count(distinct),
            count(requests),
            span(drained - limited)
        ),
    );
    report.claim("what is acknowledged never comes again", after_ack == 0, format!("{after_ack} came again"));
    Ok(report)
}

fn latency_row(what: &str, latencies: &[Duration]) -> Vec<String> {
    row([
        &what,
        &count(latencies.len() as u64),
        &span(percentile(latencies, 50)),
        &span(percentile(latencies, 99)),
    ])
}

fn per_second(number: u64, took: Duration) -> u64 {
    (number as f64 / took.as_secs_f64().max(1e-9)) as u64
}
