//! Transactions, delays and settings of topics against a real server, with the client library: what is visible and
//! when, who is asked, and what a `kill -9` leaves.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{Chance, Launch, Server, free_ports, scratch};
use ringmq_client::{
    CheckedTransaction, Client, ClientConfig, ClientError, ConsumerConfig, ErrorCode, GroupConfig,
    ProducerConfig, RecordBuf, Resolution, SendError, StreamConfig, TopicKind, TopicSettings,
    TransactionConfig, TransactionEnd, TransactionError, TransactionState, TransactionalProducer,
};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, sleep, timeout};

/// Whatever takes longer has hung.
const HUNG: Duration = Duration::from_secs(60);
/// What is not visible yet is looked for so long.
const WHILE: Duration = Duration::from_millis(300);

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(HUNG, test).await.unwrap() })
}

async fn connect(server: &Server) -> Client {
    Client::connect(ClientConfig::new(server.address.to_string())).await.unwrap()
}

fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

type Asked = Arc<Mutex<Vec<CheckedTransaction>>>;

async fn transactional(client: &Client, answer: Resolution) -> (TransactionalProducer, Asked) {
    let asked = Asked::default();
    let log = asked.clone();
    let checker = move |checked: CheckedTransaction| {
        log.lock().unwrap().push(checked);
        async move { answer }
    };
    let producer = client.transactional_producer("payments", TransactionConfig::default(), checker).await;
    (producer.unwrap(), asked)
}

/// Bodies of all that is visible in a topic now.
async fn visible(client: &Client, topic: &str) -> Vec<String> {
    let partitions = client.describe_topic(topic).await.unwrap().partitions;
    let wanted: u64 = partitions.iter().map(|partition| partition.visible_end - partition.log_start).sum();
    let mut consumer = client.consumer(topic, ConsumerConfig::default()).await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..wanted {
        let record = consumer.next().await.unwrap();
        bodies.push(String::from_utf8(record.body.to_vec()).unwrap());
    }
    // What became visible meanwhile.
    while let Ok(record) = timeout(Duration::from_millis(20), consumer.next()).await {
        bodies.push(String::from_utf8(record.unwrap().body.to_vec()).unwrap());
    }
    bodies.sort();
    bodies
}

async fn eventually_visible(client: &Client, topic: &str, wanted: &[&str]) {
    loop {
        let found = visible(client, topic).await;
        if found == wanted {
            return;
        }
        assert!(found.len() <= wanted.len(), "{topic}: {found:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn code<T>(result: Result<T, ClientError>) -> Option<ErrorCode> {
    match result {
        Err(ClientError::Refused(refused)) => refused.code(),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    }
}

fn launch(dir: &tempfile::TempDir, args: &[&str]) -> Launch {
    Launch::new(&dir.path().join("data")).args(args)
}

#[test]
fn all_of_a_transaction_is_visible_or_nothing() {
    for shards in [1, 2, 4] {
        let dir = scratch();
        let launch = launch(&dir, &[&format!("--shards={shards}"), "--memory=256M"]);
        let Some(server) = launch.ready() else { return };
        run(async {
            let client = connect(&server).await;
            client.create_topic("orders", 6, false).await.unwrap();
            client.create_topic("mail", 1, false).await.unwrap();
            let (producer, _) = transactional(&client, Resolution::Unknown).await;
            let transaction = producer.begin();
            for partition in 0..6 {
                let record = RecordBuf::new(format!("order {partition}"));
                transaction.send("orders", record, Some(partition)).await.unwrap().await.unwrap();
            }
            let mail = transaction.send("mail", RecordBuf::new("thanks"), None).await.unwrap().await.unwrap();
            // Nobody waits for it, and nobody sees it.
            let plain = client.producer("mail", ProducerConfig::default()).await.unwrap();
            plain.send(RecordBuf::new("plain"), None).await.unwrap().await.unwrap();
            sleep(WHILE).await;
            assert_eq!(visible(&client, "orders").await, Vec::<String>::new());
            assert_eq!(visible(&client, "mail").await, ["plain"]);
            // An operator does.
            let id = transaction.id().unwrap();
            let (shown, halves) = client.show_transaction(id).await.unwrap();
            assert_eq!((shown.state, shown.halves, &*shown.group), (TransactionState::Open, 7, "payments"));
            assert_eq!(shown.participants.count_ones(), shards);
            assert_eq!(halves.len(), 7);
            let peeked = client.peek_message(mail.handle).await.unwrap();
            assert_eq!((&*peeked.topic, peeked.transaction), ("mail", Some(id)));
            assert_eq!(&peeked.records[0].body[..], b"thanks");
            let page = client.list_transactions("payments", None, None, 0).await.unwrap();
            assert_eq!(page.transactions, std::slice::from_ref(&shown));
            let none = client.list_transactions("", Some(TransactionState::Parked), None, 0).await.unwrap();
            assert!(none.transactions.is_empty());

            let committed = transaction.commit().await.unwrap();
            assert_eq!(committed.halves, 7);
            let orders: Vec<_> = (0..6).map(|partition| format!("order {partition}")).collect();
            let wanted: Vec<_> = orders.iter().map(String::as_str).collect();
            eventually_visible(&client, "orders", &wanted).await;
            eventually_visible(&client, "mail", &["plain", "thanks"]).await;
            let shown = client.show_transaction(id).await.unwrap().0;
            assert!(matches!(shown.state, TransactionState::Committed | TransactionState::Decided));
            assert_eq!((shown.halves, shown.since_ms > 0), (7, true));

            // Rolled back, by hand or by dropping it.
            let transaction = producer.begin();
            for partition in 0..6 {
                drop(transaction.send("orders", RecordBuf::new("never"), Some(partition)).await.unwrap());
            }
            transaction.rollback().await.unwrap();
            let transaction = producer.begin();
            transaction.send("mail", RecordBuf::new("never"), None).await.unwrap().await.unwrap();
            drop(transaction);
            while !client.list_transactions("", None, None, 0).await.unwrap().transactions.is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(visible(&client, "orders").await, orders);
            let stats = client.topic_stats("mail").await.unwrap();
            assert_eq!((stats.open_halves, stats.records), (Some(0), Some(2)));
        });
        server.stop_cleanly();
        let Some(server) = launch.ready() else { return };
        run(async {
            let client = connect(&server).await;
            assert_eq!(visible(&client, "orders").await.len(), 6);
            assert_eq!(visible(&client, "mail").await, ["plain", "thanks"]);
        });
    }
}

#[test]
fn ends_are_answered_truthfully() {
    let dir = scratch();
    let Some(server) = launch(&dir, &[]).ready() else { return };
    run(async {
        let client = connect(&server).await;
        client.create_topic("t", 4, false).await.unwrap();
        let (producer, _) = transactional(&client, Resolution::Unknown).await;
        for commit in [true, false] {
            let transaction = producer.begin();
            for partition in 0..4 {
                transaction.send("t", RecordBuf::new("x"), Some(partition)).await.unwrap().await.unwrap();
            }
            let id = transaction.id().unwrap();
            let (same, opposite) = match commit {
                true => (TransactionEnd::Commit, TransactionEnd::Abort),
                false => (TransactionEnd::Abort, TransactionEnd::Commit),
            };
            client.resolve_transaction(id, same).await.unwrap();
            client.resolve_transaction(id, same).await.unwrap();
            let refused = client.resolve_transaction(id, opposite).await;
            assert_eq!(code(refused), Some(ErrorCode::TransactionResolved));
            // The producer finds out; and what it sends now comes too late.
            let late = transaction.send("t", RecordBuf::new("late"), Some(0)).await.unwrap().await;
            assert!(
                matches!(&late, Err(SendError::Refused(refused)) if refused.code() == Some(ErrorCode::TransactionEnded)),
                "{late:?}"
            );
            match (commit, transaction.rollback().await) {
                (true, Err(TransactionError::Resolved(refused))) => {
                    assert!(refused.message.contains("committed"), "{refused:?}");
                }
                (false, Ok(())) => {}
                (_, other) => panic!("{other:?}"),
            }
        }
        let unknown = ringmq_client::TransactionId(12_345);
        for end in [TransactionEnd::Commit, TransactionEnd::Abort, TransactionEnd::Recheck] {
            let refused = client.resolve_transaction(unknown, end).await;
            assert_eq!(code(refused), Some(ErrorCode::UnknownTransaction), "{end:?}");
        }
        assert_eq!(visible(&client, "t").await.len(), 4);
    });
}

#[test]
fn another_producer_of_the_group_is_asked_what_a_dead_one_left_open() {
    let dir = scratch();
    let quick = ["--check-after=200ms", "--check-every=250ms", "--checks-max=3"];
    let launch = launch(&dir, &quick).port(free_ports(2));
    let Some(server) = launch.ready() else { return };
    let id = run(async {
        let client = connect(&server).await;
        client.create_topic("t", 2, false).await.unwrap();
        let (dying, asked) = transactional(&client, Resolution::Commit).await;
        let transaction = dying.begin();
        for partition in 0..2 {
            let record = RecordBuf::new("left").key("order 7");
            transaction.send("t", record, Some(partition)).await.unwrap().await.unwrap();
        }
        // Its own process still works on it: it is asked, and does not know yet.
        sleep(Duration::from_millis(350)).await;
        assert!(asked.lock().unwrap().is_empty(), "the checker is not asked about what is still open here");
        let id = transaction.id().unwrap();
        let shown = client.show_transaction(id).await.unwrap().0;
        assert!(shown.attempts > 0, "{shown:?}");
        transaction.leave();
        id
    });
    // The process is gone; the server dies as well.
    server.kill();
    let Some(server) = launch.ready() else { return };
    run(async {
        let client = connect(&server).await;
        // Nobody of its group is there: that does not count, however long it lasts.
        let before = client.show_transaction(id).await.unwrap().0;
        sleep(Duration::from_millis(700)).await;
        let after = client.show_transaction(id).await.unwrap().0;
        assert_eq!(before.attempts, after.attempts);
        assert!(before.attempts > 0 && after.state == TransactionState::Open, "{after:?}");
        let (unsure, unsure_asked) = transactional(&client, Resolution::Unknown).await;
        while client.show_transaction(id).await.unwrap().0.state != TransactionState::Parked {
            sleep(Duration::from_millis(20)).await;
        }
        let attempts: Vec<u16> = unsure_asked.lock().unwrap().iter().map(|asked| asked.attempt).collect();
        assert_eq!(*attempts.last().unwrap(), 3, "{attempts:?}");
        drop(unsure);
        sleep(Duration::from_millis(100)).await;
        // Parked: asked no more, until an operator says so.
        let (_sure, asked) = transactional(&client, Resolution::Commit).await;
        sleep(Duration::from_millis(500)).await;
        assert!(asked.lock().unwrap().is_empty());
        assert_eq!(visible(&client, "t").await.len(), 0);
        client.resolve_transaction(id, TransactionEnd::Recheck).await.unwrap();
        eventually_visible(&client, "t", &["left", "left"]).await;
        let asked = asked.lock().unwrap();
        assert_eq!((asked[0].id, asked[0].topic.as_str(), asked[0].halves), (id, "t", 2));
        assert_eq!((asked[0].attempt, asked[0].attempts_max), (1, 3));
        let record = &asked[0].records[0];
        assert_eq!((&record.body[..], record.key.as_deref()), (&b"left"[..], Some(&b"order 7"[..])));
    });
}

#[test]
fn a_killed_server_keeps_transactions_whole() {
    let dir = scratch();
    let launch = launch(&dir, &["--shards=3", "--memory=192M"]).port(free_ports(3));
    let mut committed: BTreeSet<u32> = BTreeSet::new();
    let mut aborted: BTreeSet<u32> = BTreeSet::new();
    // Those whose messages were all acknowledged.
    let mut whole: BTreeSet<u32> = BTreeSet::new();
    let mut unsure: BTreeMap<u32, ringmq_client::TransactionId> = BTreeMap::new();
    let mut number: u32 = 0;
    let mut chance = Chance::new();
    for round in 0..6 {
        let Some(server) = launch.ready() else { return };
        let mut server = Some(server);
        run(async {
            let client = connect(server.as_ref().unwrap()).await;
            if round == 0 {
                client.create_topic("t", 6, false).await.unwrap();
            }
            // What had no answer is found out by asking again, and is true for ever.
            for (number, id) in std::mem::take(&mut unsure) {
                match code(client.resolve_transaction(id, TransactionEnd::Commit).await) {
                    None => committed.insert(number),
                    Some(ErrorCode::TransactionResolved) => aborted.insert(number),
                    other => panic!("{number}: {other:?}"),
                };
            }
            let quick = Some(Duration::from_millis(100));
            let producer = ProducerConfig { retry_for: quick, ..ProducerConfig::default() };
            let quick = TransactionConfig { producer, retry_for: quick, ..TransactionConfig::default() };
            let checker = |_: CheckedTransaction| async { Resolution::Unknown };
            let producer = client.transactional_producer("g", quick, checker).await.unwrap();
            let until = Instant::now() + Duration::from_millis(400);
            let mut tasks = tokio::task::JoinSet::new();
            loop {
                for _ in 0..8 {
                    number += 1;
                    let transaction = producer.begin();
                    tasks.spawn(async move {
                        for partition in 0..6 {
                            let record = RecordBuf::new(number.to_string());
                            let sent = transaction.send("t", record, Some(partition)).await;
                            let Ok(sent) = sent else { return (number, transaction.leave(), None, false) };
                            if sent.await.is_err() {
                                return (number, transaction.leave(), None, false);
                            }
                        }
                        let id = transaction.id();
                        let commit = !number.is_multiple_of(4);
                        let result = match commit {
                            true => transaction.commit().await.map(drop),
                            false => transaction.rollback().await,
                        };
                        (number, id, result.ok().map(|()| commit), true)
                    });
                }
                if Instant::now() >= until {
                    break;
                }
                sleep(Duration::from_millis(15)).await;
            }
            // In the middle of the last ones, at another place each time.
            sleep(Duration::from_micros(chance.below(12_000))).await;
            server.take().unwrap().kill();
            while let Some(done) = tasks.join_next().await {
                let (number, id, ended, is_whole) = done.unwrap();
                if is_whole {
                    whole.insert(number);
                }
                match (id, ended) {
                    (_, Some(true)) => drop(committed.insert(number)),
                    (_, Some(false)) => drop(aborted.insert(number)),
                    (Some(id), None) => drop(unsure.insert(number, id)),
                    (None, None) => {}
                }
            }
        });
        // Those may be unknown to the server.
        let Some(server) = launch.ready() else { return };
        run(async {
            let client = connect(&server).await;
            let mut known = BTreeMap::new();
            for (number, id) in std::mem::take(&mut unsure) {
                match client.show_transaction(id).await {
                    Ok(_) => drop(known.insert(number, id)),
                    Err(ClientError::Refused(refused)) => {
                        assert_eq!(refused.code(), Some(ErrorCode::UnknownTransaction));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            unsure = known;
        });
        server.kill();
    }
    println!("{} committed, {} aborted, {} open", committed.len(), aborted.len(), unsure.len());
    assert!(committed.len() > 20 && aborted.len() > 5, "{} {}", committed.len(), aborted.len());
    let Some(server) = launch.ready() else { return };
    run(async {
        let client = connect(&server).await;
        let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
        for body in visible(&client, "t").await {
            *seen.entry(body.parse().unwrap()).or_default() += 1;
        }
        for number in &committed {
            let count = seen.remove(number).unwrap_or(0);
            // One that had not all its messages acknowledged was committed by this test as it was.
            let least = if whole.contains(number) { 6 } else { 1 };
            assert!((least..=6).contains(&count), "{number} was committed, and is there {count} times");
        }
        for number in &aborted {
            assert_eq!(seen.remove(number), None, "{number} was aborted");
        }
        for (number, id) in &unsure {
            let state = client.show_transaction(*id).await.unwrap().0.state;
            let whole = seen.remove(number).is_some();
            let is_committed = matches!(state, TransactionState::Committed | TransactionState::Decided);
            assert_eq!(whole, is_committed, "{number}: {state:?}");
        }
        assert!(seen.is_empty(), "never ended: {seen:?}");
    });
}

#[test]
fn delays_come_at_their_time_and_can_be_changed_until_then() {
    let dir = scratch();
    let launch = launch(&dir, &["--delay-max=50d"]).port(free_ports(2));
    let Some(server) = launch.ready() else { return };
    let (near, late) = run(async {
        let client = connect(&server).await;
        client.create_topic("t", 4, false).await.unwrap();
        client.create_topic("other", 1, false).await.unwrap();
        let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
        let mut due = BTreeMap::new();
        for number in 0..40u32 {
            let due_ms = wall_ms() + 100 + i64::from(number) * 10;
            let record = RecordBuf::new(number.to_string());
            producer.send_at(record, Some(number % 4), due_ms).await.unwrap().await.unwrap();
            due.insert(number.to_string(), due_ms);
        }
        let past = producer.send_at(RecordBuf::new("past"), Some(0), 5).await.unwrap().await.unwrap();
        let mut consumer = client.consumer("t", ConsumerConfig::default()).await.unwrap();
        due.insert("past".to_owned(), 5);
        for _ in 0..41 {
            let record = consumer.next().await.unwrap();
            let due_ms = due.remove(std::str::from_utf8(&record.body).unwrap()).unwrap();
            assert!(wall_ms() >= due_ms && record.timestamp_ms >= due_ms, "early by {}", due_ms - wall_ms());
        }
        // Changed, and exactly so.
        let hour = Duration::from_secs(3_600);
        let mut handles = Vec::new();
        for number in 0..4u32 {
            let record = RecordBuf::new(format!("later {number}"));
            let sent = producer.send_after(record, Some(number), hour * (number + 1)).await.unwrap();
            handles.push(sent.await.unwrap().handle);
        }
        assert_eq!(code(client.cancel_timer(past.handle).await), Some(ErrorCode::TimerDelivered));
        client.cancel_timer(handles[0]).await.unwrap();
        client.cancel_timer(handles[0]).await.unwrap();
        let refused = client.reschedule_timer(handles[0], wall_ms()).await;
        assert_eq!(code(refused), Some(ErrorCode::UnknownTimer));
        let nobody = ringmq_client::PendingHandle { lsn: 8, ..handles[0] };
        assert_eq!(code(client.cancel_timer(nobody).await), Some(ErrorCode::UnknownTimer));
        client.reschedule_timer(handles[1], wall_ms()).await.unwrap();
        assert_eq!(&consumer.next().await.unwrap().body[..], b"later 1");
        let peeked = client.peek_message(handles[2]).await.unwrap();
        assert_eq!((&peeked.records[0].body[..], peeked.transaction), (&b"later 2"[..], None));
        // Listed in the order of their time, page by page.
        let first = client.list_timers("t", None, 1).await.unwrap();
        assert_eq!((first.timers[0].handle, first.pending, first.more), (handles[2], Some(2), true));
        let second = client.list_timers("", first.timers.last(), 5).await.unwrap();
        assert_eq!((second.timers[0].handle, second.timers.len(), second.more), (handles[3], 1, false));
        assert!(client.list_timers("other", None, 0).await.unwrap().timers.is_empty());
        // Too far away, for the server or for the topic.
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let refused = |result: Result<_, SendError>| match result {
            Err(SendError::Refused(refused)) => refused.code(),
            Err(error) => panic!("{error}"),
            Ok(_) => None,
        };
        let far = producer.send_after(RecordBuf::new("far"), Some(0), days(51)).await.unwrap().await;
        assert_eq!(refused(far), Some(ErrorCode::DelayTooLong));
        let near =
            producer.send_after(RecordBuf::new("near"), Some(0), days(49)).await.unwrap().await.unwrap();
        let limited = TopicSettings { delay_max_ms: Some(60_000), ..TopicSettings::default() };
        client.alter_topic("t", false, limited).await.unwrap();
        let far = producer.send_after(RecordBuf::new("far"), Some(1), days(1)).await.unwrap().await;
        assert_eq!(refused(far), Some(ErrorCode::DelayTooLong));
        let reschedule = client.reschedule_timer(near.handle, wall_ms() + 86_400_000).await;
        assert_eq!(code(reschedule), Some(ErrorCode::DelayTooLong));
        let soon = Duration::from_millis(400);
        let late = producer.send_after(RecordBuf::new("over a restart"), Some(3), soon).await.unwrap();
        (near.handle, late.await.unwrap().handle)
    });
    server.kill();
    sleep_blocking(Duration::from_millis(500));
    let Some(server) = launch.ready() else { return };
    run(async {
        let client = connect(&server).await;
        let mut tries = 0;
        let stats = loop {
            let stats = client.topic_stats("t").await.unwrap();
            // It leaves the pending ones when it is bound, and is counted when that is durable.
            tries += 1;
            if (stats.pending_delays, stats.records) == (Some(3), Some(43)) || tries == 2_000 {
                break stats;
            }
            sleep(Duration::from_millis(5)).await;
        };
        assert_eq!((stats.pending_delays, stats.records), (Some(3), Some(43)));
        assert_eq!(stats.open_halves, Some(0));
        assert_eq!(code(client.cancel_timer(late).await), Some(ErrorCode::TimerDelivered));
        assert_eq!(client.purge_timers("t").await.unwrap(), 3);
        assert_eq!(client.purge_timers("t").await.unwrap(), 0);
        client.cancel_timer(near).await.unwrap();
        assert!(client.list_timers("", None, 0).await.unwrap().timers.is_empty());
    });
}

fn sleep_blocking(time: Duration) {
    std::thread::sleep(time);
}

#[test]
fn thousands_of_delays_are_purged_in_steps_and_those_of_others_stay() {
    let dir = scratch();
    let Some(server) = launch(&dir, &[]).ready() else { return };
    run(async {
        let client = connect(&server).await;
        client.create_topic("many", 3, false).await.unwrap();
        client.create_topic("few", 1, false).await.unwrap();
        let hour = Duration::from_secs(3_600);
        let few = client.producer("few", ProducerConfig::default()).await.unwrap();
        few.send_after(RecordBuf::new("stays"), None, hour / 2).await.unwrap().await.unwrap();
        let many = client.producer("many", ProducerConfig::default()).await.unwrap();
        let mut sent = Vec::new();
        for number in 0..5_000u32 {
            let record = RecordBuf::new(number.to_string());
            sent.push(many.send_after(record, Some(number % 3), hour).await.unwrap());
        }
        for sent in sent {
            sent.await.unwrap();
        }
        let mut listed = 0;
        let mut after = None;
        loop {
            let page = client.list_timers("many", after.as_ref(), 0).await.unwrap();
            listed += page.timers.len();
            after = page.timers.last().cloned();
            if !page.more {
                break;
            }
        }
        assert_eq!(listed, 5_000);
        assert_eq!(client.purge_timers("many").await.unwrap(), 5_000);
        assert_eq!(client.list_timers("", None, 0).await.unwrap().timers.len(), 1);
    });
}

#[test]
fn a_half_with_a_due_time_waits_for_both() {
    let dir = scratch();
    let Some(server) = launch(&dir, &[]).ready() else { return };
    run(async {
        let client = connect(&server).await;
        client.create_topic("t", 2, false).await.unwrap();
        let (producer, _) = transactional(&client, Resolution::Unknown).await;
        let transaction = producer.begin();
        let due_ms = wall_ms() + 500;
        for partition in 0..2 {
            let record = RecordBuf::new("due");
            transaction.send_at("t", record, Some(partition), due_ms).await.unwrap().await.unwrap();
        }
        assert!(client.list_timers("t", None, 0).await.unwrap().timers.is_empty());
        transaction.commit().await.unwrap();
        while client.list_timers("t", None, 0).await.unwrap().timers.len() < 2 {
            assert!(wall_ms() < due_ms);
        }
        let mut consumer = client.consumer("t", ConsumerConfig::default()).await.unwrap();
        for _ in 0..2 {
            let record = consumer.next().await.unwrap();
            assert!(wall_ms() >= due_ms && &record.body[..] == b"due");
        }
        let transaction = producer.begin();
        transaction.send_at("t", RecordBuf::new("never"), None, wall_ms() + 50).await.unwrap().await.unwrap();
        transaction.rollback().await.unwrap();
        sleep(WHILE).await;
        assert_eq!(visible(&client, "t").await, ["due", "due"]);
    });
}

#[test]
fn topics_keep_their_settings_and_take_what_these_say() {
    let dir = scratch();
    let launch = launch(&dir, &["--shards=3", "--memory=192M"]).port(free_ports(3));
    let Some(server) = launch.ready() else { return };
    run(async {
        let client = connect(&server).await;
        let none = TopicSettings::default();
        assert_eq!(code(client.alter_topic("t", false, none).await), Some(ErrorCode::UnknownTopic));
        let made = TopicSettings { partitions: Some(4), ttl_ms: Some(9_000), ..none };
        let (topic, settings) = client.alter_topic("t", true, made).await.unwrap();
        assert_eq!(
            (topic.partitions, settings.ttl_ms, settings.kind),
            (4, Some(9_000), Some(TopicKind::Mixed))
        );
        let more = TopicSettings { partitions: Some(5), ..none };
        match client.alter_topic("t", false, more).await {
            Err(ClientError::Refused(refused)) => {
                assert_eq!(refused.code(), Some(ErrorCode::InvalidSettings));
                assert!(refused.message.contains("partitions"), "{refused:?}");
            }
            other => panic!("{other:?}"),
        }
        let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
        let hour = Duration::from_secs(3_600);
        let timer = producer.send_after(RecordBuf::new("d"), Some(3), hour).await.unwrap().await.unwrap();
        let kind = |kind| TopicSettings { kind: Some(kind), ..none };
        let pending = client.alter_topic("t", false, kind(TopicKind::Fifo)).await;
        assert_eq!(code(pending), Some(ErrorCode::InvalidSettings));
        client.cancel_timer(timer.handle).await.unwrap();
        client.alter_topic("t", false, kind(TopicKind::Fifo)).await.unwrap();
        let refused = |result: Result<_, SendError>| match result {
            Err(SendError::Refused(refused)) => refused.code(),
            Err(error) => panic!("{error}"),
            Ok(_) => None,
        };
        // Each partition by itself: a frame that was given up begins a new epoch there.
        for partition in 0..4 {
            let keyed = RecordBuf::new("k").key("1");
            assert_eq!(refused(producer.send(keyed.clone(), Some(partition)).await.unwrap().await), None);
            let plain = producer.send(RecordBuf::new("no key"), Some(partition)).await.unwrap().await;
            assert_eq!(refused(plain), Some(ErrorCode::WrongTopicKind));
        }
        let delayed = producer.send_after(RecordBuf::new("d").key("1"), Some(0), hour).await.unwrap().await;
        assert!(
            matches!(&delayed, Err(SendError::Refused(refused)) if refused.code() == Some(ErrorCode::WrongTopicKind))
        );
        let (sender, _) = transactional(&client, Resolution::Unknown).await;
        let transaction = sender.begin();
        let half = transaction.send("t", RecordBuf::new("h").key("1"), Some(0)).await.unwrap().await;
        assert!(
            matches!(&half, Err(SendError::Refused(refused)) if refused.code() == Some(ErrorCode::WrongTopicKind))
        );
        drop(transaction);
        let small = TopicSettings { record_size_max: Some(100), kind: Some(TopicKind::Mixed), ..none };
        client.alter_topic("t", false, small).await.unwrap();
        let large = producer.send(RecordBuf::new(vec![b'x'; 200]), Some(1)).await.unwrap().await;
        assert_eq!(refused(large), Some(ErrorCode::FrameTooLarge));
    });
    server.kill();
    let Some(server) = launch.ready() else { return };
    run(async {
        let client = connect(&server).await;
        let (_, settings) = client.alter_topic("t", false, TopicSettings::default()).await.unwrap();
        assert_eq!((settings.ttl_ms, settings.record_size_max), (Some(9_000), Some(100)));
        let stats = client.topic_stats("t").await.unwrap();
        assert_eq!((stats.records, stats.settings), (Some(4), settings));
        assert!(stats.times_ms.0 > 0 && stats.times_ms.0 <= stats.times_ms.1);
    });
}

#[test]
fn rates_hold_producers_back_without_losing_anything() {
    let dir = scratch();
    let Some(server) = launch(&dir, &[]).ready() else { return };
    run(async {
        let client = connect(&server).await;
        let none = TopicSettings::default();
        for (name, settings) in [
            ("records", TopicSettings { rate_records: Some(400), ..none }),
            ("bytes", TopicSettings { rate_bytes: Some(200_000), ..none }),
            ("producer", TopicSettings { producer_rate_bytes: Some(200_000), ..none }),
        ] {
            client.alter_topic(name, true, settings).await.unwrap();
            let config = ProducerConfig { batch_records: 1, ..ProducerConfig::default() };
            let producer = client.producer(name, config).await.unwrap();
            let started = Instant::now();
            let mut sent = Vec::new();
            for number in 0..500u32 {
                let body = format!("{number:0>400}");
                sent.push(producer.send(RecordBuf::new(body), Some(0)).await.unwrap());
            }
            for (number, sent) in sent.into_iter().enumerate() {
                assert_eq!(sent.await.unwrap().offset, number as u64, "{name}");
            }
            // 500 records, or about 250 kB: a second's worth and a quarter of one that is saved up.
            let took = started.elapsed();
            assert!(took >= Duration::from_millis(700), "{name}: {took:?}");
            let stats = client.topic_stats(name).await.unwrap();
            assert_eq!(stats.appended.0, Some(500), "{name}");
        }
        // Far beyond it: told so.
        let slow = TopicSettings { rate_bytes: Some(1_000), ..none };
        client.alter_topic("bytes", false, slow).await.unwrap();
        let producer = client.producer("bytes", ProducerConfig::default()).await.unwrap();
        for _ in 0..2 {
            producer.send(RecordBuf::new(vec![b'x'; 2_000]), Some(0)).await.unwrap().await.unwrap();
        }
        assert!(client.topic_stats("bytes").await.unwrap().throttled.unwrap() > 0);
    });
}

#[test]
fn topics_keep_as_long_as_they_say() {
    let dir = scratch();
    let launch = launch(&dir, &[]).port(free_ports(2));
    let Some(server) = launch.ready() else { return };
    run(async {
        let client = connect(&server).await;
        client.create_topic("aged", 2, false).await.unwrap();
        client.create_topic("sized", 1, false).await.unwrap();
        client.create_topic("kept", 1, false).await.unwrap();
        for topic in ["aged", "sized", "kept"] {
            let producer = client.producer(topic, ProducerConfig::default()).await.unwrap();
            for _ in 0..100 {
                producer.send(RecordBuf::new(vec![b'x'; 1_000]), Some(0)).await.unwrap().await.unwrap();
            }
        }
        let none = TopicSettings::default();
        client.alter_topic("aged", false, TopicSettings { retention_ms: Some(1_000), ..none }).await.unwrap();
        client
            .alter_topic("sized", false, TopicSettings { retention_bytes: Some(50_000), ..none })
            .await
            .unwrap();
        let aged = client.producer("aged", ProducerConfig::default()).await.unwrap();
        let sized = client.producer("sized", ProducerConfig::default()).await.unwrap();
        for _ in 0..100 {
            sized.send(RecordBuf::new(vec![b'x'; 1_000]), Some(0)).await.unwrap().await.unwrap();
        }
        sleep(Duration::from_millis(2_500)).await;
        aged.send(RecordBuf::new("new"), Some(0)).await.unwrap().await.unwrap();
        let start = async |topic| client.describe_topic(topic).await.unwrap().partitions[0];
        while start("aged").await.log_start < 100 || start("sized").await.log_start < 150 {
            sleep(Duration::from_millis(50)).await;
        }
        let (aged, sized, kept) = (start("aged").await, start("sized").await, start("kept").await);
        assert!((100..=101).contains(&aged.log_start) && aged.visible_end == 101, "{aged:?}");
        assert!((150..170).contains(&sized.log_start) && sized.visible_end == 200, "{sized:?}");
        assert_eq!(kept.log_start, 0);
        assert_eq!(visible(&client, "kept").await.len(), 100);
    });
    // Over a restart.
    server.stop_cleanly();
    let Some(server) = launch.ready() else { return };
    run(async {
        let client = connect(&server).await;
        let sized = client.describe_topic("sized").await.unwrap().partitions[0];
        assert!((150..170).contains(&sized.log_start), "{sized:?}");
    });
}

#[test]
fn space_comes_back_when_topics_keep_nothing_of_a_segment() {
    let dir = scratch();
    let Some(server) = launch(&dir, &["--shards=1", "--segment-size=4M"]).ready() else { return };
    run(async {
        let client = connect(&server).await;
        let keep = TopicSettings { retention_bytes: Some(4 << 20), ..TopicSettings::default() };
        client.alter_topic("t", true, keep).await.unwrap();
        let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
        for _ in 0..40 {
            for _ in 0..100 {
                drop(producer.send(RecordBuf::new(vec![b'x'; 20_000]), Some(0)).await.unwrap());
            }
            producer.flush().await.unwrap();
        }
        while server.metric("ringmq_retention_removed_segments_total") < 3.0 {
            producer.send(RecordBuf::new(vec![b'x'; 20_000]), Some(0)).await.unwrap().await.unwrap();
            sleep(Duration::from_millis(20)).await;
        }
    });
    server.stop_cleanly();
}

#[test]
fn what_is_consumed_and_what_is_made_of_it_become_true_together() {
    let dir = scratch();
    let launch = launch(&dir, &["--shards=3", "--memory=192M"]).port(free_ports(3));
    let mut rolled_back = 0;
    for round in 0..4 {
        let Some(server) = launch.ready() else { return };
        let mut server = Some(server);
        run(async {
            let client = connect(server.as_ref().unwrap()).await;
            if round == 0 {
                client.create_topic("in", 4, false).await.unwrap();
                client.create_topic("out", 3, false).await.unwrap();
                let source = client.producer("in", ProducerConfig::default()).await.unwrap();
                for number in 0..200u32 {
                    let record = RecordBuf::new(number.to_string());
                    source.send(record, Some(number % 4)).await.unwrap().await.unwrap();
                }
            }
            // What a killed process left open is as good as not consumed: its positions did not move.
            let (producer, _) = transactional(&client, Resolution::Rollback).await;
            for open in client.list_transactions("", None, None, 0).await.unwrap().transactions {
                let ended = client.resolve_transaction(open.id, TransactionEnd::Abort).await;
                assert!(matches!(code(ended), None | Some(ErrorCode::TransactionResolved)));
            }
            let config = GroupConfig::new("step").topic("in");
            let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
            let mut consumer = client.group_consumer(config, by_hand).await.unwrap();
            for step in 0..60u32 {
                let Ok(record) = timeout(Duration::from_millis(1_000), consumer.next()).await else { break };
                let record = record.unwrap();
                let transaction = producer.begin();
                let made = RecordBuf::new(record.body.clone());
                let sent = transaction.send("out", made, Some(record.partition % 3)).await.unwrap();
                sent.await.unwrap();
                transaction.send_offsets(&consumer.processed().unwrap()).await.unwrap();
                if step == 30 && round < 3 {
                    // Dies between the half and its commit: this record is consumed again.
                    transaction.leave();
                    rolled_back += 1;
                    server.take().unwrap().kill();
                    return;
                }
                transaction.commit().await.unwrap();
            }
        });
    }
    let Some(server) = launch.ready() else { return };
    run(async {
        let client = connect(&server).await;
        let (producer, _) = transactional(&client, Resolution::Rollback).await;
        for open in client.list_transactions("", None, None, 0).await.unwrap().transactions {
            client.resolve_transaction(open.id, TransactionEnd::Abort).await.unwrap();
        }
        let config = GroupConfig::new("step").topic("in");
        let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
        let mut consumer = client.group_consumer(config, by_hand).await.unwrap();
        while let Ok(record) = timeout(Duration::from_millis(1_500), consumer.next()).await {
            let record = record.unwrap();
            let transaction = producer.begin();
            let made = RecordBuf::new(record.body.clone());
            transaction.send("out", made, Some(record.partition % 3)).await.unwrap().await.unwrap();
            transaction.send_offsets(&consumer.processed().unwrap()).await.unwrap();
            transaction.commit().await.unwrap();
        }
        let mut made = visible(&client, "out").await;
        made.sort_by_key(|body| body.parse::<u32>().unwrap());
        let wanted: Vec<_> = (0..200u32).map(|number| number.to_string()).collect();
        assert_eq!(made, wanted, "each record once, though {rolled_back} steps were left in the middle");
    });
}
