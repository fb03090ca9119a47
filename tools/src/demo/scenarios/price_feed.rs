//! Broadcast: every cache gets every price once; one dies and goes on where it was, one joins late from a snapshot.

use super::{
    Report, Stage, Trouble, columns, count, number, passes, percentile, producer, row, said, span, until,
};
use ringmq_client::{
    BroadcastStart, Client, ConsumerConfig, GroupConfig, GroupOptions, GroupStart, RecordBuf, StreamConfig,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const SUBSCRIBERS: usize = 50;
const SYMBOLS: u64 = 20;
/// The subscriber that dies.
const MORTAL: usize = 7;
/// Between two commits of a subscriber's position.
const COMMIT_EVERY: u64 = 64;

/// A cache in some machine.
#[derive(Debug, Default)]
struct Cache {
    prices: BTreeMap<Vec<u8>, u64>,
    /// The tick that must come next.
    next: u64,
    received: u64,
    gaps: u64,
    repeats: u64,
    /// Everything below it is committed, for sure.
    committed: u64,
    /// Came although it was committed.
    after_commit: u64,
    latencies: Vec<Duration>,
    trouble: Option<Trouble>,
}

type Shared = Arc<Mutex<Cache>>;

fn on<T>(cache: &Shared, work: impl FnOnce(&mut Cache) -> T) -> T {
    work(&mut cache.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Cache {
    fn take(&mut self, key: &[u8], body: &[u8], since: Instant) {
        let Some(tick) = number(body) else { return };
        self.received += 1;
        self.gaps += u64::from(tick > self.next);
        self.repeats += u64::from(tick < self.next);
        self.after_commit += u64::from(tick < self.committed);
        self.next = self.next.max(tick + 1);
        self.prices.insert(key.to_vec(), tick);
        let sent = std::str::from_utf8(body).ok().and_then(|text| text.split(' ').nth(1)?.parse().ok());
        if let Some(sent) = sent.map(Duration::from_micros) {
            self.latencies.push(since.elapsed().saturating_sub(sent));
        }
    }
}

/// A subscriber; it ends by itself, with its position committed, when it has `until` ticks.
async fn subscribe(
    client: Client,
    group: String,
    topic: String,
    instance: String,
    cache: Shared,
    since: Instant,
    ticks: u64,
) -> Result<JoinHandle<()>, Trouble> {
    let options = GroupOptions { start: Some(GroupStart::Earliest), ..GroupOptions::default() };
    let config = GroupConfig::new(group).topic(topic).options(options);
    let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
    let consumer = client.broadcast(config, Some(&instance), BroadcastStart::Resume, by_hand).await;
    let mut consumer = consumer.map_err(said("subscribe"))?;
    Ok(tokio::spawn(async move {
        loop {
            let (next, committed) = on(&cache, |cache| (cache.next, cache.committed));
            let last = next >= ticks;
            let error = if last || (next.is_multiple_of(COMMIT_EVERY) && next > committed) {
                match consumer.commit().await {
                    Ok(()) => {
                        on(&cache, |cache| cache.committed = next);
                        if last {
                            return;
                        }
                        continue;
                    }
                    Err(error) => error,
                }
            } else {
                match consumer.next().await {
                    Ok(record) => {
                        let key = record.key.as_deref().unwrap_or_default();
                        on(&cache, |cache| cache.take(key, &record.body, since));
                        continue;
                    }
                    Err(error) => error,
                }
            };
            if !passes(&error) {
                on(&cache, |cache| cache.trouble = Some(error.to_string()));
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }))
}

/// Plays it.
pub(crate) async fn play(stage: &Stage) -> Result<Report, Trouble> {
    let ticks = u64::from(stage.size(2_000, 300));
    let client = stage.client().await?;
    let topic = stage.topic(&client, "prices", 1).await?;
    let group = stage.name("caches");
    let since = Instant::now();
    let caches = (0..SUBSCRIBERS).map(|_| Shared::default()).collect::<Vec<_>>();
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(stage.client().await?);
    }
    let subscriber = async |at: usize, until: u64| {
        let (client, cache) = (clients[at % clients.len()].clone(), caches[at].clone());
        let instance = format!("cache-{at:02}");
        subscribe(client, group.clone(), topic.clone(), instance, cache, since, until).await
    };
    let mut tasks = Vec::new();
    let mut mortal = None;
    for at in 0..SUBSCRIBERS {
        if at == MORTAL {
            // It has committed a third of the way when it dies.
            mortal = Some(subscriber(at, ticks / 3).await?);
        } else {
            tasks.push(subscriber(at, ticks).await?);
        }
    }

    let producer = producer(&client, &topic).await?;
    let pace = Duration::from_micros(u64::from(stage.size(500, 1_000)));
    let mut returned = None;
    let mut late = None;
    let mut acks = Vec::new();
    for tick in 0..ticks {
        let body = format!("{tick} {} {}", since.elapsed().as_micros(), 100 + tick % 7);
        let record = RecordBuf::new(body).key(format!("symbol-{:02}", tick % SYMBOLS));
        acks.push(producer.send(record, None).await.map_err(said("publish"))?);
        tokio::time::sleep(pace).await;
        if tick == ticks * 2 / 3 {
            // It was away for a third of all; the program is started again under its name. A server that was killed may
            // have kept it from dying in time.
            if let Some(mortal) = mortal.take() {
                mortal.await.map_err(said("die"))?;
            }
            tasks.push(subscriber(MORTAL, ticks).await?);
            returned = Some(on(&caches[MORTAL], |cache| cache.next));
        }
        if tick == ticks / 2 {
            let (client, topic) = (stage.client().await?, topic.clone());
            late = Some(tokio::spawn(async move { join_late(&client, &topic, since, ticks).await }));
        }
    }
    for ack in acks {
        ack.await.map_err(said("publish"))?;
    }
    until("every cache has every price", async || {
        for cache in &caches {
            if let Some(trouble) = on(cache, |cache| cache.trouble.clone()) {
                return Err(trouble);
            }
        }
        Ok(caches.iter().all(|cache| on(cache, |cache| cache.next) >= ticks))
    })
    .await?;
    let Some(late) = late else { return Err("nobody joined late".to_owned()) };
    let (late, from_snapshot, complete) = late.await.map_err(said("late"))??;
    tasks.iter().for_each(JoinHandle::abort);

    let mut report = Report {
        title: "price feed",
        story: format!("{} prices to {SUBSCRIBERS} caches, each from the one stored copy", count(ticks)),
        picture: Vec::new(),
        claims: Vec::new(),
    };
    let mut latencies = caches.iter().enumerate().filter(|(at, _)| *at != MORTAL);
    let mut all =
        latencies.by_ref().flat_map(|(_, cache)| on(cache, |it| it.latencies.clone())).collect::<Vec<_>>();
    all.sort_unstable();
    let sum = |what: fn(&Cache) -> u64| caches.iter().map(|cache| on(cache, |it| what(it))).sum::<u64>();
    let (received, gaps, repeats) = (sum(|it| it.received), sum(|it| it.gaps), sum(|it| it.repeats));
    let mortal = on(&caches[MORTAL], |it| (it.received, it.gaps + it.repeats));
    report.picture = columns(&[
        row([&"subscriber", &"prices", &"gaps", &"repeats"]),
        row([
            &format!("{} that stayed", SUBSCRIBERS - 1),
            &count(received - mortal.0),
            &gaps,
            &(repeats - on(&caches[MORTAL], |it| it.repeats)),
        ]),
        row([
            &"one that died and returned",
            &count(mortal.0),
            &on(&caches[MORTAL], |it| it.gaps),
            &on(&caches[MORTAL], |it| it.repeats),
        ]),
        row([&"one that joined late", &count(late.received), &late.gaps, &late.repeats]),
    ]);
    report.claim(
        "every subscriber gets every price",
        gaps == 0 && caches.iter().all(|cache| on(cache, |it| it.next) == ticks),
        format!(
            "{} delivered, {gaps} missing; p50 {}, p99 {}",
            count(received),
            span(percentile(&all, 50)),
            span(percentile(&all, 99))
        ),
    );
    let after_commit = sum(|it| it.after_commit);
    report.claim(
        "and once, in order",
        after_commit + repeats == 0,
        format!("{repeats} came twice, {after_commit} of them committed"),
    );
    let returned = returned.unwrap_or_default();
    report.claim(
        "who comes back goes on where it was",
        returned >= ticks / 3 && mortal == (ticks, 0),
        format!(
            "died at {}, away for {}, then all of them",
            count(returned),
            count(ticks * 2 / 3 - returned.min(ticks * 2 / 3))
        ),
    );
    let same = caches.iter().all(|cache| on(cache, |it| it.prices == late.prices));
    report.claim(
        "who joins late has a cache at once",
        same && late.gaps + late.repeats == 0 && complete,
        format!(
            "{from_snapshot} keys from the snapshot, then {} prices without gap or repeat",
            count(late.received)
        ),
    );
    Ok(report)
}

/// A machine that joins late: the latest price of each symbol, then what comes.
async fn join_late(
    client: &Client,
    topic: &str,
    since: Instant,
    ticks: u64,
) -> Result<(Cache, usize, bool), Trouble> {
    let snapshot = client.latest_then_follow(topic, ConsumerConfig::default()).await;
    let mut snapshot = snapshot.map_err(said("snapshot"))?;
    let mut cache = Cache::default();
    for (key, record) in &snapshot.latest {
        if let Some(tick) = number(&record.body) {
            cache.prices.insert(key.to_vec(), tick);
        }
    }
    cache.next = snapshot.ends.values().copied().max().unwrap_or(0);
    while cache.next < ticks {
        let record = snapshot.follow.next().await.map_err(said("follow"))?;
        cache.take(record.key.as_deref().unwrap_or_default(), &record.body, since);
    }
    Ok((cache, snapshot.latest.len(), snapshot.complete_since_ms.is_none()))
}
