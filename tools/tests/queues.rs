//! Groups that consume record by record, over TCP: the client library against a real server that is killed in between.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{Launch, free_ports, scratch};
use ringmq_client::{
    Client, ClientConfig, ConsumerConfig, ErrorCode, GroupConfig, GroupError, GroupOptions, ProducerConfig,
    QueueConfig, QueueConsumer, QueueRecord, RecordBuf, ReplayOutcome, SetGroupMode, SettleOutcome,
    StreamConfig,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(45);

async fn connect(address: SocketAddr) -> Client {
    let config = ClientConfig {
        retry_for: PATIENCE,
        request_timeout: PATIENCE,
        ..ClientConfig::new(address.to_string())
    };
    Client::connect(config).await.unwrap()
}

fn options() -> GroupOptions {
    GroupOptions { backoff: Some(vec![Duration::from_millis(50)]), ..GroupOptions::default() }
}

fn group(name: &str, options: GroupOptions) -> GroupConfig {
    let session = Some(Duration::from_secs(2));
    GroupConfig { session, ..GroupConfig::new(name).topic("t").options(options) }
}

/// Record `number` has key `k<number % 5>`, a tag and properties.
async fn publish(client: &Client, partitions: u32, numbers: std::ops::Range<u32>) {
    let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
    for number in numbers {
        let tag = if number % 2 == 0 { "even" } else { "odd" };
        let record = RecordBuf::new(format!("{number:<100}")).key(format!("k{}", number % 5)).tag(tag);
        let record = record.property("number", number.to_string());
        drop(producer.send(record, Some(number % partitions)).await.unwrap());
    }
    producer.close().await.unwrap();
}

fn number(record: &QueueRecord) -> u32 {
    std::str::from_utf8(&record.body).unwrap().trim().parse().unwrap()
}

async fn next(consumer: &mut QueueConsumer) -> QueueRecord {
    timeout(SOON, consumer.next()).await.unwrap().unwrap()
}

/// What was acknowledged: number -> how often.
type Acked = Arc<Mutex<BTreeMap<u32, u32>>>;

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A member that acknowledges everything, until it is stopped.
fn worker(mut consumer: QueueConsumer, acked: &Acked) -> JoinHandle<()> {
    let acked = acked.clone();
    tokio::spawn(async move {
        loop {
            let record = match consumer.next().await {
                Ok(record) => record,
                Err(GroupError::Closed) => return,
                Err(GroupError::Refused(_)) => continue, // while the server is away
                Err(error) => panic!("{error}"),
            };
            // In doubt it comes again; durable is only what was answered.
            if consumer.ack(&record).await.is_ok() {
                *acked.lock().unwrap().entry(number(&record)).or_default() += 1;
            }
        }
    })
}

#[tokio::test]
async fn members_share_partitions_record_by_record() {
    let dir = scratch();
    let Some(server) = Launch::new(&dir.path().join("data")).port(free_ports(2)).ready() else { return };
    let client = connect(server.address).await;
    client.create_topic("t", 2, false).await.unwrap();
    publish(&client, 2, 0..1_000).await;
    let acked = Acked::default();
    let few = QueueConfig { prefetch: 8, ..QueueConfig::default() };
    let mut workers = Vec::new();
    for _ in 0..3 {
        let client = connect(server.address).await;
        let consumer = client.queue_consumer(group("g", options()), few.clone()).await.unwrap();
        workers.push(worker(consumer, &acked));
    }
    publish(&client, 2, 1_000..2_000).await;
    until("all acknowledged", || acked.lock().unwrap().len() == 2_000).await;
    assert!(acked.lock().unwrap().values().all(|count| *count == 1), "each record once");
    let described = client.describe_group("g").await.unwrap();
    assert_eq!(described.group.lag_records, Some(0));
    workers.into_iter().for_each(|worker| worker.abort());
    server.stop_cleanly();
}

#[tokio::test]
async fn what_fails_comes_again_then_is_a_dead_letter_and_goes_back_once() {
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data")).port(free_ports(2));
    let Some(server) = launch.ready() else { return };
    let client = connect(server.address).await;
    client.create_topic("t", 2, false).await.unwrap();
    publish(&client, 2, 0..4).await;
    let options = GroupOptions { max_attempts: Some(3), ..options() };
    let mut consumer =
        client.queue_consumer(group("g", options.clone()), QueueConfig::default()).await.unwrap();
    let mut attempts: BTreeMap<u32, Vec<u16>> = BTreeMap::new();
    let mut dead = 0;
    while dead < 2 || attempts.len() < 4 {
        let record = next(&mut consumer).await;
        let number = number(&record);
        attempts.entry(number).or_default().push(record.attempt);
        if number < 2 {
            dead += usize::from(consumer.retry(&record).await.unwrap() == SettleOutcome::DeadLetter);
        } else {
            consumer.ack(&record).await.unwrap();
        }
    }
    assert_eq!(attempts.into_values().collect::<Vec<_>>(), [vec![1, 2, 3], vec![1, 2, 3], vec![1], vec![1]]);
    // The dead letters, each in the partition of its shard.
    let mut letters = client.consumer("%DLQ%g", ConsumerConfig::default()).await.unwrap();
    let mut found = BTreeMap::new();
    for _ in 0..2 {
        let record = timeout(SOON, letters.next()).await.unwrap().unwrap();
        found.insert(record.partition, (record.offset, record.key.clone().unwrap()));
    }
    assert_eq!(found.values().map(|letter| letter.0).collect::<Vec<_>>(), [0, 0]);
    let keys: BTreeSet<_> = found.values().map(|letter| letter.1.to_vec()).collect();
    assert_eq!(keys, BTreeSet::from([b"k0".to_vec(), b"k1".to_vec()]));

    // From where, and after how many attempts: to a program, and to whoever looks.
    for partition in 0..2 {
        let origins = client.dead_letter_origins("%DLQ%g", partition, &[0, 7]).await.unwrap();
        let origin = origins[0].unwrap();
        assert_eq!((origin.offset, origin.attempts, origins[1]), (0, 3, None));
    }
    let shown = String::from_utf8(server.ok(&["dlq", "show", "g", "--json"], b"")).unwrap();
    let origins = shown.lines().map(|line| {
        let letter: serde_json::Value = serde_json::from_str(line).unwrap();
        let number: u64 = letter["value"].as_str().unwrap().trim().parse().unwrap();
        (number, letter["origin"].clone())
    });
    let origin = |partition: u64| serde_json::json!({"topic": "t", "partition": partition, "offset": 0, "attempts": 3});
    assert_eq!(origins.collect::<BTreeMap<_, _>>(), BTreeMap::from([(0, origin(0)), (1, origin(1))]));
    let shown = String::from_utf8(server.ok(&["dlq", "show", "g"], b"")).unwrap();
    assert!(shown.contains("from t[0]@0 after 3 attempts"), "{shown}");

    let replay = async |partition, dry_run| {
        client.replay_dead_letters("%DLQ%g", partition, &[0, 7], dry_run).await.unwrap()
    };
    for partition in 0..2 {
        assert!(matches!(replay(partition, true).await[0], ReplayOutcome::Replayed(0)), "a dry run");
        let replayed = replay(partition, false).await;
        assert!(matches!(replayed[0], ReplayOutcome::Replayed(2)), "{replayed:?}");
        assert!(matches!(&replayed[1], ReplayOutcome::Refused(refused)
            if refused.code() == Some(ErrorCode::NotADeadLetter)));
        assert!(matches!(replay(partition, false).await[0], ReplayOutcome::Earlier(_)));
    }
    for _ in 0..2 {
        let record = next(&mut consumer).await;
        assert!(number(&record) < 2 && record.attempt == 1 && record.offset == 2);
        consumer.ack(&record).await.unwrap();
    }
    // Remembered over a crash.
    server.kill();
    let server = launch.ready().unwrap();
    for partition in 0..2 {
        assert!(matches!(replay(partition, false).await[0], ReplayOutcome::Earlier(_)));
    }
    server.stop_cleanly();
}

#[tokio::test]
async fn nothing_acknowledged_comes_again_and_nothing_is_lost_when_the_server_is_killed() {
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data")).port(free_ports(2));
    let Some(mut server) = launch.ready() else { return };
    let client = connect(server.address).await;
    client.create_topic("t", 3, false).await.unwrap();
    let options = GroupOptions { invisible: Some(Duration::from_secs(2)), ..options() };
    let acked = Acked::default();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let client = connect(server.address).await;
        let consumer =
            client.queue_consumer(group("g", options.clone()), QueueConfig::default()).await.unwrap();
        workers.push(worker(consumer, &acked));
    }
    let mut published = 0;
    for _ in 0..3 {
        let publishing = publish(&client, 3, published..published + 1_000);
        let killing = async {
            sleep(Duration::from_millis(60)).await;
            server.kill();
            launch.ready().unwrap()
        };
        let ((), again) = tokio::join!(publishing, killing);
        server = again;
        published += 1_000;
    }
    until("all acknowledged", || acked.lock().unwrap().len() == published as usize).await;
    sleep(Duration::from_secs(3)).await; // leases of what came twice would have ended
    let twice: Vec<_> =
        acked.lock().unwrap().iter().filter(|entry| *entry.1 > 1).map(|entry| *entry.0).collect();
    assert_eq!(twice, Vec::<u32>::new(), "acknowledged, and it came again");
    workers.into_iter().for_each(|worker| worker.abort());
    server.stop_cleanly();
}

#[tokio::test]
async fn an_ordered_group_keeps_the_order_of_a_key_while_others_go_on() {
    let dir = scratch();
    let Some(server) = Launch::new(&dir.path().join("data")).port(free_ports(2)).ready() else { return };
    let client = connect(server.address).await;
    client.create_topic("t", 1, false).await.unwrap();
    publish(&client, 1, 0..300).await;
    let options = GroupOptions { ordered: Some(true), ..options() };
    // Order in which each key was acknowledged, and keys in hand now.
    type Seen = (BTreeMap<u32, Vec<u32>>, BTreeSet<u32>, usize);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut workers = Vec::new();
    for worker in 0..3u32 {
        let client = connect(server.address).await;
        let few = QueueConfig { prefetch: 4, ..QueueConfig::default() };
        let mut consumer = client.queue_consumer(group("g", options.clone()), few).await.unwrap();
        let seen = seen.clone();
        workers.push(tokio::spawn(async move {
            while let Ok(record) = consumer.next().await {
                let number = number(&record);
                let key = number % 5;
                {
                    let mut seen = seen.lock().unwrap();
                    assert!(seen.1.insert(key), "two records of key {key} at a time");
                    seen.2 = seen.2.max(seen.1.len());
                }
                sleep(Duration::from_millis(u64::from((number + worker) % 4))).await;
                // Every seventh fails once: its key waits for it, in place.
                let fails = number.is_multiple_of(7) && record.attempt == 1;
                {
                    let mut seen = seen.lock().unwrap();
                    seen.1.remove(&key);
                    if !fails {
                        seen.0.entry(key).or_default().push(number);
                    }
                }
                let settled = if fails { consumer.retry(&record) } else { consumer.ack(&record) };
                settled.await.unwrap();
            }
        }));
    }
    until("all consumed", || seen.lock().unwrap().0.values().map(Vec::len).sum::<usize>() == 300).await;
    for (key, order) in &seen.lock().unwrap().0 {
        assert!(order.is_sorted(), "key {key}: {order:?}");
    }
    assert!(seen.lock().unwrap().2 > 1, "keys go on side by side");
    for worker in workers {
        assert!(!worker.is_finished(), "a member has failed");
        worker.abort();
    }
    server.stop_cleanly();
}

#[tokio::test]
async fn the_rate_of_a_group_holds_over_partitions_and_can_be_changed() {
    let dir = scratch();
    let Some(server) = Launch::new(&dir.path().join("data")).port(free_ports(2)).ready() else { return };
    let client = connect(server.address).await;
    client.create_topic("t", 4, false).await.unwrap();
    publish(&client, 4, 0..12_000).await;
    let options = GroupOptions { rate_records: Some(300), ..options() };
    let acked = Acked::default();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let client = connect(server.address).await;
        let mut consumer =
            client.queue_consumer(group("g", options.clone()), QueueConfig::default()).await.unwrap();
        let acked = acked.clone();
        // Acknowledgements are not waited for: the rate is to be the limit, and not the disk.
        workers.push(tokio::spawn(async move {
            while let Ok(record) = consumer.next().await {
                drop(consumer.ack(&record));
                acked.lock().unwrap().insert(number(&record), 1);
            }
        }));
    }
    let measure = async || {
        sleep(Duration::from_millis(700)).await;
        let (before, since) = (acked.lock().unwrap().len(), Instant::now());
        sleep(Duration::from_secs(4)).await;
        (acked.lock().unwrap().len() - before) as f64 / since.elapsed().as_secs_f64()
    };
    let first = measure().await;
    let faster = GroupOptions { rate_records: Some(900), ..GroupOptions::default() };
    client.set_group("g", SetGroupMode::Alter, &faster).await.unwrap();
    let second = measure().await;
    println!("{first:.0} of 300 and {second:.0} of 900 records a second");
    assert!((first - 300.0).abs() <= 30.0, "{first}");
    assert!((second - 900.0).abs() <= 90.0, "{second}");
    workers.into_iter().for_each(|worker| worker.abort());

    // A stream of another group, by bytes.
    let options = GroupOptions { rate_bytes: Some(40_000), ..GroupOptions::default() };
    let mut stream = client.group_consumer(group("s", options), StreamConfig::default()).await.unwrap();
    let (mut bytes, mut since) = (0, Instant::now());
    for round in 0..2 {
        let end = Instant::now() + Duration::from_secs(if round == 0 { 1 } else { 4 });
        (bytes, since) = (0, Instant::now());
        while Instant::now() < end {
            if let Ok(record) = timeout(Duration::from_millis(100), stream.next()).await {
                let record = record.unwrap();
                let properties = 1 + 6 + 1 + record.properties.get(b"number").unwrap().len();
                bytes += record.body.len() + 2 + record.tag.as_ref().unwrap().len() + properties;
            }
        }
    }
    let rate = f64::from(u32::try_from(bytes).unwrap()) / since.elapsed().as_secs_f64();
    println!("{rate:.0} of 40000 bytes a second");
    assert!((rate - 40_000.0).abs() <= 4_000.0, "{rate}");
    server.stop_cleanly();
}

#[tokio::test]
async fn filters_are_exact_in_every_mode() {
    let dir = scratch();
    let Some(server) = Launch::new(&dir.path().join("data")).port(free_ports(2)).ready() else { return };
    let client = connect(server.address).await;
    client.create_topic("t", 2, false).await.unwrap();
    publish(&client, 2, 0..600).await;
    let cases: [(&str, &dyn Fn(u32) -> bool); 4] = [
        ("odd || none", &|n| n % 2 == 1),
        ("number BETWEEN 100 AND 199 OR number = 7", &|n| (100..200).contains(&n) || n == 7),
        ("TAGS = 'even' AND number > 580 AND other IS NULL", &|n| n % 2 == 0 && n > 580),
        ("number ENDSWITH '9' AND NOT number STARTSWITH '5'", &|n| {
            n % 10 == 9 && n / 100 != 5 && !(50..60).contains(&n)
        }),
    ];
    for (place, (filter, wanted)) in cases.into_iter().enumerate() {
        let expected: BTreeSet<u32> = (0..600).filter(|number| wanted(*number)).collect();
        let filtered = |name: &str| {
            let config = GroupConfig::new(format!("{name}{place}")).filtered("t", filter);
            GroupConfig { session: Some(Duration::from_secs(2)), ..config.options(options()) }
        };
        let mut queue = client.queue_consumer(filtered("q"), QueueConfig::default()).await.unwrap();
        let mut found = BTreeSet::new();
        while found.len() < expected.len() {
            let record = next(&mut queue).await;
            assert!(found.insert(number(&record)));
            queue.ack(&record).await.unwrap();
        }
        assert_eq!(found, expected, "{filter}");
        assert!(timeout(Duration::from_millis(100), queue.next()).await.is_err(), "{filter}: too many");
        queue.close().await;
        let mut stream = client.group_consumer(filtered("s"), StreamConfig::default()).await.unwrap();
        let mut found = BTreeSet::new();
        while found.len() < expected.len() {
            let record = timeout(SOON, stream.next()).await.unwrap().unwrap();
            found.insert(std::str::from_utf8(&record.body).unwrap().trim().parse().unwrap());
        }
        assert_eq!(found, expected, "{filter}");
        assert!(timeout(Duration::from_millis(100), stream.next()).await.is_err(), "{filter}: too many");
        stream.commit().await.unwrap();
        stream.close(false).await.unwrap();
        // What is left out counts as consumed.
        for name in ["q", "s"] {
            let name = format!("{name}{place}");
            let lag = async {
                while client.describe_group(&name).await.unwrap().group.lag_records != Some(0) {
                    sleep(Duration::from_millis(50)).await;
                }
            };
            timeout(SOON, lag).await.unwrap_or_else(|_| panic!("{filter}: {name} lags"));
        }
    }
    let wrong = GroupConfig::new("wrong").filtered("t", "a = 'x").options(options());
    let refused = client.queue_consumer(wrong, QueueConfig::default()).await.err();
    assert!(matches!(refused, Some(GroupError::Refused(refused))
        if refused.code() == Some(ErrorCode::InvalidFilter) && refused.message.contains("column 5")));
    server.stop_cleanly();
}
