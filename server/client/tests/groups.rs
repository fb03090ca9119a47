//! Groups, transactions, delays and broadcast through real sockets, against a server in memory.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

#[allow(dead_code)] // Each test binary uses its part of the fake.
mod fake;

use fake::Server;
use ringmq_client::{
    BroadcastStart, CheckedTransaction, Client, ClientConfig, ClientError, ConsumerConfig, ErrorCode,
    GroupConfig, GroupConsumer, GroupError, GroupOptions, ProducerConfig, QueueConfig, QueueConsumer,
    RecordBuf, Resolution, SettleOutcome, StreamConfig, TransactionConfig, TransactionError,
    TransactionalProducer,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(20);
const SESSION: Duration = Duration::from_millis(150);

async fn client(server: &Server) -> Client {
    Client::connect(ClientConfig::new(&server.address)).await.unwrap()
}

fn group(name: &str) -> GroupConfig {
    GroupConfig { session: Some(SESSION), ..GroupConfig::new(name).topic("t") }
}

async fn publish(client: &Client, partitions: u32, numbers: std::ops::Range<u32>) {
    let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
    for number in numbers {
        let tag = if number % 2 == 0 { "even" } else { "odd" };
        let record = RecordBuf::new(number.to_string()).key(format!("k{}", number % 5)).tag(tag);
        drop(producer.send(record, Some(number % partitions)).await.unwrap());
    }
    producer.close().await.unwrap();
}

fn number(body: &[u8]) -> u32 {
    std::str::from_utf8(body).unwrap().parse().unwrap()
}

async fn take(consumer: &mut GroupConsumer, count: usize) -> Vec<u32> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let record = timeout(SOON, consumer.next()).await.unwrap().unwrap();
        numbers.push(number(&record.body));
    }
    numbers
}

fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

// -- stream ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_group_goes_on_where_it_committed() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    publish(&client, 1, 0..10).await;
    let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
    let mut consumer = client.group_consumer(group("g"), by_hand.clone()).await.unwrap();
    assert_eq!(take(&mut consumer, 4).await, [0, 1, 2, 3]);
    consumer.commit().await.unwrap();
    assert_eq!(server.committed("g", "t", 0), Some(4));
    assert_eq!(take(&mut consumer, 2).await, [4, 5]);
    consumer.close(false).await.unwrap();
    // Not committed, so it comes again.
    let mut consumer = client.group_consumer(group("g"), by_hand).await.unwrap();
    assert_eq!(take(&mut consumer, 6).await, [4, 5, 6, 7, 8, 9]);
    // Another group has a position of its own.
    let mut other = client.group_consumer(group("other"), StreamConfig::default()).await.unwrap();
    assert_eq!(take(&mut other, 1).await, [0]);
}

#[tokio::test]
async fn partitions_change_hands_without_a_loss() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 4, false).await.unwrap();
    publish(&client, 4, 0..200).await;
    let auto = StreamConfig { auto_commit: Some(Duration::from_millis(5)), ..StreamConfig::default() };
    let mut first = client.group_consumer(group("g"), auto.clone()).await.unwrap();
    let mut seen: BTreeSet<u32> = take(&mut first, 50).await.into_iter().collect();
    assert_eq!(first.positions().count(), 4);
    let mut second = client.group_consumer(group("g"), auto).await.unwrap();
    while seen.len() < 200 {
        tokio::select! {
                    record = first.next() => match record {
                        Ok(record) => {
         seen.insert(number(&record.body));
        }
                        Err(error) => assert!(matches!(error, GroupError::Fenced { .. }), "{error}"),
                    },
                    record = second.next() => {
         seen.insert(number(&record.unwrap().body));
        }
                    () = sleep(SOON) => panic!("{} of 200", seen.len()),
                }
    }
    while first.positions().count() + second.positions().count() != 4 {
        let _ = timeout(Duration::from_millis(20), first.next()).await;
        let _ = timeout(Duration::from_millis(20), second.next()).await;
    }
    assert_eq!(first.positions().count(), 2);
    second.close(false).await.unwrap();
    while first.positions().count() != 4 {
        let _ = timeout(Duration::from_millis(20), first.next()).await;
    }
}

#[tokio::test]
async fn a_stale_owner_cannot_commit() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    publish(&client, 1, 0..10).await;
    let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
    let slow = GroupConfig { session: Some(Duration::from_secs(600)), ..group("g") };
    let mut first = client.group_consumer(slow, by_hand.clone()).await.unwrap();
    take(&mut first, 3).await;
    // The server loses sight of the first member; its partition gets a new owner, which commits further.
    server.forget_members();
    let mut second = client.group_consumer(group("g"), by_hand).await.unwrap();
    take(&mut second, 6).await;
    second.commit().await.unwrap();
    let refused = first.commit().await.unwrap_err();
    assert!(matches!(refused, GroupError::NotAMember | GroupError::Fenced { .. }), "{refused}");
    assert_eq!(server.committed("g", "t", 0), Some(6));
}

#[tokio::test]
async fn a_group_survives_a_restart_of_the_server() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 2, false).await.unwrap();
    publish(&client, 2, 0..60).await;
    let auto = StreamConfig { auto_commit: Some(Duration::ZERO), ..StreamConfig::default() };
    let mut consumer = client.group_consumer(group("g"), auto).await.unwrap();
    let mut seen: BTreeSet<u32> = take(&mut consumer, 20).await.into_iter().collect();
    server.kill();
    server.forget_members();
    sleep(Duration::from_millis(30)).await;
    server.restart().await;
    while seen.len() < 60 {
        match timeout(SOON, consumer.next()).await.unwrap() {
            Ok(record) => {
                seen.insert(number(&record.body));
            }
            Err(GroupError::NotAMember | GroupError::Fenced { .. }) => sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_restart_of_the_server_makes_nobody_read_twice_and_a_commit_waits_for_it() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 2, false).await.unwrap();
    publish(&client, 2, 0..60).await;
    let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
    let mut consumer = client.group_consumer(group("g"), by_hand).await.unwrap();
    let mut seen = take(&mut consumer, 10).await;
    consumer.commit().await.unwrap();
    seen.extend(take(&mut consumer, 20).await);
    server.kill();
    server.forget_members();
    let restart = async || {
        sleep(Duration::from_millis(30)).await;
        server.restart().await;
    };
    let (committed, ()) = tokio::join!(consumer.commit(), restart());
    committed.unwrap();
    let committed = |partition| server.committed("g", "t", partition).unwrap_or(0);
    assert_eq!(committed(0) + committed(1), 30, "all that was handed out");
    seen.extend(take(&mut consumer, 10).await);
    server.kill();
    server.forget_members();
    restart().await;
    seen.extend(take(&mut consumer, 20).await);
    seen.sort_unstable();
    assert_eq!(seen, (0..60).collect::<Vec<_>>(), "each once");
    // Somebody moves the group meanwhile: that is what counts then, and the consumer is told.
    server.kill();
    server.forget_members();
    let behind = (0..2).find(|partition| committed(*partition) < 30).unwrap();
    server.commit("g", "t", behind, committed(behind) + 1);
    restart().await;
    publish(&client, 2, 60..62).await;
    let told = loop {
        match timeout(SOON, consumer.next()).await.unwrap() {
            Ok(_) => {}
            told => break told,
        }
    };
    assert!(matches!(told, Err(GroupError::Fenced { partition, .. }) if partition == behind), "{told:?}");
}

#[tokio::test]
async fn only_what_matches_comes_and_the_rest_counts_as_consumed() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    publish(&client, 1, 0..20).await;
    let filtered = GroupConfig { subscriptions: vec![("t".into(), "odd".into())], ..group("g") };
    let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
    let mut consumer = client.group_consumer(filtered, by_hand).await.unwrap();
    assert_eq!(take(&mut consumer, 10).await, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]);
    publish(&client, 1, 20..21).await;
    assert!(timeout(Duration::from_millis(100), consumer.next()).await.is_err());
    consumer.commit().await.unwrap();
    assert_eq!(server.committed("g", "t", 0), Some(21));
}

#[tokio::test]
async fn a_member_with_other_subscriptions_is_told() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    let _first = client.group_consumer(group("g"), StreamConfig::default()).await.unwrap();
    let other = GroupConfig { subscriptions: vec![("t".into(), "odd".into())], ..group("g") };
    let conflict = |error| matches!(error, GroupError::Refused(refused) if refused.code() == Some(ErrorCode::SubscriptionConflict));
    assert!(client.group_consumer(other, StreamConfig::default()).await.is_err_and(conflict));
    assert!(client.queue_consumer(group("g"), QueueConfig::default()).await.is_err_and(conflict));
    let missing = GroupConfig { create: None, ..group("nobody") };
    assert!(
        matches!(client.group_consumer(missing, StreamConfig::default()).await, Err(GroupError::Refused(refused))
        if refused.code() == Some(ErrorCode::UnknownGroup))
    );
}

// -- queue -----------------------------------------------------------------------------------------------------

fn attempts(name: &str, max_attempts: u16) -> GroupConfig {
    group(name).options(GroupOptions { max_attempts: Some(max_attempts), ..GroupOptions::default() })
}

fn queue() -> QueueConfig {
    QueueConfig { wait: Duration::from_millis(200), ..QueueConfig::default() }
}

async fn drain(consumer: &mut QueueConsumer, seen: &Mutex<BTreeMap<u32, u32>>, count: usize) {
    while seen.lock().unwrap().len() < count {
        let Ok(record) = timeout(Duration::from_millis(50), consumer.next()).await else { continue };
        let record = record.unwrap();
        consumer.ack(&record).await.unwrap();
        *seen.lock().unwrap().entry(number(&record.body)).or_default() += 1;
    }
}

#[tokio::test]
async fn consumers_share_a_partition_and_get_each_record_once() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    publish(&client, 1, 0..300).await;
    let mut first = client.queue_consumer(group("g"), queue()).await.unwrap();
    let mut second = client.queue_consumer(group("g"), queue()).await.unwrap();
    let seen = Mutex::default();
    timeout(SOON, async { tokio::join!(drain(&mut first, &seen, 300), drain(&mut second, &seen, 300)) })
        .await
        .unwrap();
    assert!(seen.into_inner().unwrap().into_values().all(|count| count == 1));
    first.close().await;
}

#[tokio::test]
async fn a_failed_record_comes_again_and_then_is_a_dead_letter() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    publish(&client, 1, 0..3).await;
    let mut consumer = client.queue_consumer(attempts("g", 3), queue()).await.unwrap();
    let mut tries = Vec::new();
    while tries.len() < 3 {
        let record = timeout(SOON, consumer.next()).await.unwrap().unwrap();
        if number(&record.body) == 1 {
            tries.push((record.attempt, consumer.retry(&record).await.unwrap()));
        } else {
            consumer.ack(&record).await.unwrap();
        }
    }
    assert_eq!(tries, [(1, SettleOutcome::Done), (2, SettleOutcome::Done), (3, SettleOutcome::DeadLetter)]);
    assert_eq!(server.dead_letters("g", "t"), [1]);
}

#[tokio::test]
async fn a_lease_is_renewed_as_long_as_the_record_is_held() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    publish(&client, 1, 0..1).await;
    let short = QueueConfig { invisible: Some(Duration::from_millis(80)), ..queue() };
    let mut holder = client.queue_consumer(group("g"), short.clone()).await.unwrap();
    let record = timeout(SOON, holder.next()).await.unwrap().unwrap();
    let mut other = client.queue_consumer(group("g"), short.clone()).await.unwrap();
    assert!(timeout(Duration::from_millis(400), other.next()).await.is_err());
    holder.ack(&record).await.unwrap();
    assert!(matches!(holder.ack(&record).await, Err(GroupError::Stale)));

    // Without renewal somebody else gets it, and the first one's ack has no effect.
    publish(&client, 1, 1..2).await;
    let plain = QueueConfig { auto_renew: None, ..short };
    let mut forgetful = client.queue_consumer(group("g2"), plain.clone()).await.unwrap();
    let record = timeout(SOON, forgetful.next()).await.unwrap().unwrap();
    let mut heir = client.queue_consumer(group("g2"), QueueConfig { prefetch: 1, ..plain }).await.unwrap();
    let again = loop {
        let again = timeout(SOON, heir.next()).await.unwrap().unwrap();
        if again.offset == record.offset {
            break again;
        }
        heir.ack(&again).await.unwrap();
    };
    assert!(again.attempt > record.attempt);
    assert!(matches!(forgetful.ack(&record).await, Err(GroupError::Stale)));
}

#[tokio::test]
async fn an_ack_is_said_again_after_a_lost_answer_and_never_called_done_without_one() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    publish(&client, 1, 0..2).await;
    let mut consumer = client.queue_consumer(group("g"), queue()).await.unwrap();
    let first = timeout(SOON, consumer.next()).await.unwrap().unwrap();
    let second = timeout(SOON, consumer.next()).await.unwrap().unwrap();
    server.lose_acks(1);
    // Said again it is done.
    let lost = timeout(SOON, consumer.ack(&first)).await.unwrap();
    assert!(matches!(lost, Ok(SettleOutcome::Done)), "{lost:?}");
    server.kill();
    let ack = consumer.ack(&second);
    sleep(Duration::from_millis(30)).await;
    server.restart().await;
    let ack = timeout(SOON, ack).await.unwrap();
    assert!(matches!(ack, Ok(_) | Err(GroupError::OutcomeUnknown)), "{ack:?}");
}

#[tokio::test]
async fn what_was_not_handed_out_is_handed_back() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    publish(&client, 1, 0..10).await;
    let long = QueueConfig { invisible: Some(Duration::from_secs(600)), ..queue() };
    let mut leaving = client.queue_consumer(group("g"), long.clone()).await.unwrap();
    let record = timeout(SOON, leaving.next()).await.unwrap().unwrap();
    leaving.ack(&record).await.unwrap();
    leaving.close().await;
    // A RECEIVE was waiting: what is handed back before the member has left goes to that one, and to nobody.
    let mut in_order = vec!["leave"];
    in_order.resize(10, "hand back");
    assert_eq!((server.asked_of_groups(), server.leased("g", "t")), (in_order, 0));
    let mut staying = client.queue_consumer(group("g"), long).await.unwrap();
    for _ in 0..9 {
        let record = timeout(SOON, staying.next()).await.unwrap().unwrap();
        assert_eq!(record.attempt, 1, "handing back is no failed delivery");
        staying.ack(&record).await.unwrap();
    }
}

// -- transactions ----------------------------------------------------------------------------------------------

async fn transactional(
    client: &Client,
    answer: Resolution,
) -> (TransactionalProducer, Arc<Mutex<Vec<CheckedTransaction>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let checker = move |checked: CheckedTransaction| {
        log.lock().unwrap().push(checked);
        async move { answer }
    };
    let producer = client.transactional_producer("p", TransactionConfig::default(), checker).await.unwrap();
    (producer, asked)
}

#[tokio::test]
async fn a_transaction_is_visible_at_its_commit_and_never_after_a_rollback() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 3, false).await.unwrap();
    client.create_topic("u", 1, false).await.unwrap();
    let (producer, _) = transactional(&client, Resolution::Unknown).await;
    let transaction = producer.begin();
    for partition in 0..3 {
        transaction.send("t", RecordBuf::new(partition.to_string()), Some(partition)).await.unwrap();
    }
    transaction.send("u", RecordBuf::new("u"), None).await.unwrap().await.unwrap();
    assert_eq!((server.records("t", 0), server.records("u", 0)), (0, 0));
    let committed = transaction.commit().await.unwrap();
    assert_eq!(committed.halves, 4);
    assert_eq!(((0..3).map(|index| server.records("t", index)).sum::<u64>(), server.records("u", 0)), (3, 1));
    // What was bound is read like anything else.
    let mut consumer = client.consumer("u", ConsumerConfig::default()).await.unwrap();
    assert_eq!(timeout(SOON, consumer.next()).await.unwrap().unwrap().body, "u");

    let failed = producer
        .in_transaction(async |transaction| {
            drop(transaction.send("u", RecordBuf::new("never"), None).await.unwrap());
            Err::<(), _>("no money")
        })
        .await;
    assert!(failed.is_err_and(|error| error.to_string().contains("no money")));
    producer.in_transaction(async |_| Ok::<_, String>(())).await.unwrap();
    assert_eq!(server.records("u", 0), 1);
}

#[tokio::test]
async fn what_a_dead_producer_left_open_is_asked_of_the_next_one() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    let (dying, never_asked) = transactional(&client, Resolution::Rollback).await;
    let transaction = dying.begin();
    transaction.send("t", RecordBuf::new("left").key("order 7"), None).await.unwrap().await.unwrap();
    let id = transaction.leave().unwrap();
    drop(dying);
    sleep(Duration::from_millis(100)).await;
    never_asked.lock().unwrap().clear();
    // Another process of the group.
    let next = self::client(&server).await;
    let (_producer, asked) = transactional(&next, Resolution::Commit).await;
    timeout(SOON, async {
        while server.records("t", 0) == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(never_asked.lock().unwrap().is_empty(), "a producer that is gone is not asked");
    let asked = asked.lock().unwrap();
    assert_eq!((asked[0].id, asked[0].topic.as_str(), asked[0].halves), (id, "t", 1));
    assert_eq!(
        (&asked[0].records[0].body[..], asked[0].records[0].key.as_deref()),
        (&b"left"[..], Some(&b"order 7"[..]))
    );
}

#[tokio::test]
async fn a_transaction_that_is_still_open_here_is_no_question_for_the_checker() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    let (producer, asked) = transactional(&client, Resolution::Rollback).await;
    let transaction = producer.begin();
    transaction.send("t", RecordBuf::new("slow"), None).await.unwrap().await.unwrap();
    sleep(Duration::from_millis(250)).await;
    assert!(asked.lock().unwrap().is_empty());
    transaction.commit().await.unwrap();
    assert_eq!(server.records("t", 0), 1);
}

#[tokio::test]
async fn ends_are_truthful_and_survive_lost_connections() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    let (producer, _) = transactional(&client, Resolution::Unknown).await;
    let transaction = producer.begin();
    transaction.send("t", RecordBuf::new("a"), None).await.unwrap().await.unwrap();
    let id = transaction.id().unwrap();
    // An operator is quicker, the other way.
    client.resolve_transaction(id, ringmq_client::TransactionEnd::Abort).await.unwrap();
    let error = transaction.commit().await.unwrap_err();
    assert!(matches!(error, TransactionError::Resolved(_)), "{error}");

    let transaction = producer.begin();
    transaction.send("t", RecordBuf::new("b"), None).await.unwrap().await.unwrap();
    server.kill();
    let commit = tokio::spawn(transaction.commit());
    sleep(Duration::from_millis(50)).await;
    server.restart().await;
    timeout(SOON, commit).await.unwrap().unwrap().unwrap();
    assert_eq!(server.records("t", 0), 1);
}

#[tokio::test]
async fn consuming_and_producing_become_true_together() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    client.create_topic("u", 1, false).await.unwrap();
    publish(&client, 1, 0..3).await;
    let (producer, _) = transactional(&client, Resolution::Unknown).await;
    let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
    let mut consumer = client.group_consumer(group("g"), by_hand).await.unwrap();
    for rolls_back in [true, false] {
        let record = timeout(SOON, consumer.next()).await.unwrap().unwrap();
        let transaction = producer.begin();
        transaction.send("u", RecordBuf::new(record.body.clone()), None).await.unwrap().await.unwrap();
        transaction.send_offsets(&consumer.processed().unwrap()).await.unwrap();
        assert_eq!(server.committed("g", "t", 0), None);
        match rolls_back {
            true => transaction.rollback().await.unwrap(),
            false => {
                transaction.commit().await.unwrap();
            }
        }
    }
    assert_eq!((server.committed("g", "t", 0), server.records("u", 0)), (Some(2), 1));
}

// -- delays ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_delayed_record_comes_at_its_time_and_can_be_cancelled_until_then() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 1, false).await.unwrap();
    let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
    let due_ms = wall_ms() + 150;
    let soon = producer.send_at(RecordBuf::new("soon"), None, due_ms).await.unwrap().await.unwrap();
    let hour = Duration::from_secs(3_600);
    let first = producer.send_after(RecordBuf::new("later"), None, hour).await.unwrap();
    let second = producer.send_after(RecordBuf::new("much later"), None, hour).await.unwrap();
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_ne!(first.handle, second.handle, "each can be cancelled by itself");
    assert_eq!(client.list_timers("", None, 0).await.unwrap().timers.len(), 3);
    let mut consumer = client.consumer("t", ConsumerConfig::default()).await.unwrap();
    let record = timeout(SOON, consumer.next()).await.unwrap().unwrap();
    assert!(wall_ms() >= due_ms);
    assert_eq!((&record.body[..], record.offset), (&b"soon"[..], 0));

    let code = |result: Result<(), ClientError>| match result {
        Err(ClientError::Refused(refused)) => refused.code(),
        _ => None,
    };
    assert_eq!(code(client.cancel_timer(soon.handle).await), Some(ErrorCode::TimerDelivered));
    let parsed = first.handle.to_string().parse().unwrap();
    client.cancel_timer(parsed).await.unwrap();
    assert_eq!(code(client.cancel_timer(first.handle).await), Some(ErrorCode::UnknownTimer));
    client.reschedule_timer(second.handle, wall_ms()).await.unwrap();
    assert_eq!(timeout(SOON, consumer.next()).await.unwrap().unwrap().body, "much later");
    assert_eq!(server.records("t", 0), 2);
}

// -- broadcast -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn every_subscriber_gets_every_record_once_and_goes_on_where_it_was() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 2, false).await.unwrap();
    publish(&client, 2, 0..20).await;
    let auto = StreamConfig { auto_commit: Some(Duration::ZERO), ..StreamConfig::default() };
    let mut seen: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
    for instance in ["a", "b", "c"] {
        let mut subscriber =
            client.broadcast(group("g"), Some(instance), BroadcastStart::Resume, auto.clone()).await.unwrap();
        assert_eq!(subscriber.positions().count(), 2);
        let numbers = take(&mut subscriber, 20).await;
        seen.entry(instance).or_default().extend(&numbers);
        assert_eq!(seen[instance].len(), 20, "{instance} gets each once");
        subscriber.close(false).await.unwrap();
    }
    publish(&client, 2, 20..30).await;
    let mut back =
        client.broadcast(group("g"), Some("b"), BroadcastStart::Resume, auto.clone()).await.unwrap();
    let numbers: BTreeSet<u32> = take(&mut back, 10).await.into_iter().collect();
    assert_eq!(numbers, (20..30).collect());
    let mut newest =
        client.broadcast(group("g"), Some("c"), BroadcastStart::Newest, auto.clone()).await.unwrap();
    let mut nobody = client.broadcast(group("g"), None, BroadcastStart::Resume, auto).await.unwrap();
    publish(&client, 2, 30..31).await;
    assert_eq!(take(&mut newest, 1).await, [30]);
    assert_eq!(take(&mut back, 1).await, [30]);
    assert_eq!(take(&mut nobody, 31).await.len(), 31);
}

#[tokio::test]
async fn a_cache_gets_the_latest_values_and_then_what_follows() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 2, false).await.unwrap();
    let producer = Arc::new(
        client.producer("t", ProducerConfig { batch_records: 3, ..ProducerConfig::default() }).await.unwrap(),
    );
    for number in 0..100u32 {
        let key = number % 7;
        let body = if key == 3 { String::new() } else { number.to_string() };
        drop(producer.send(RecordBuf::new(body).key(format!("k{key}")), None).await.unwrap());
    }
    producer.flush().await.unwrap();
    // Others go on writing meanwhile.
    let written = Arc::new(AtomicUsize::new(0));
    let (writer, count) = (producer.clone(), written.clone());
    let writing = tokio::spawn(async move {
        for number in 100..400u32 {
            let record = RecordBuf::new(number.to_string()).key(format!("k{}", number % 7));
            writer.send(record, None).await.unwrap().await.unwrap();
            count.fetch_add(1, SeqCst);
        }
    });
    let mut snapshot = client.latest_then_follow("t", ConsumerConfig::default()).await.unwrap();
    assert_eq!(snapshot.complete_since_ms, None);
    let end: u64 = snapshot.ends.values().sum();
    let mut cache: BTreeMap<String, u32> = BTreeMap::new();
    for (key, record) in &snapshot.latest {
        cache.insert(String::from_utf8(key.to_vec()).unwrap(), number(&record.body));
    }
    let mut positions: BTreeMap<u32, u64> = snapshot.ends.clone();
    for _ in 0..400 - end {
        let record = timeout(SOON, snapshot.follow.next()).await.unwrap().unwrap();
        let next = positions.get_mut(&record.partition).unwrap();
        assert_eq!(record.offset, *next, "neither a gap nor a repeat");
        *next += 1;
        if !record.body.is_empty() {
            cache.insert(String::from_utf8(record.key.unwrap().to_vec()).unwrap(), number(&record.body));
        }
    }
    writing.await.unwrap();
    assert_eq!(cache.into_values().collect::<BTreeSet<_>>(), (393..400).collect());
    assert_eq!(written.load(SeqCst), 300);

    let trimmed = positions.keys().copied().find(|partition| server.records("t", *partition) > 10).unwrap();
    server.trim("t", trimmed, 5);
    let snapshot = client.latest_then_follow("t", ConsumerConfig::default()).await.unwrap();
    assert_eq!(snapshot.complete_since_ms, Some(7));
}
