//! Consumer groups over TCP: the client library against a real server that is killed in between.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{Launch, Raw, Server, free_ports, scratch};
use ringmq_client::{
    BroadcastStart, Client, ClientConfig, ClientError, ErrorCode, GroupConfig, GroupConsumer, GroupError,
    GroupMode, GroupOptions, GroupStart, ProducerConfig, RecordBuf, Resolution, SetGroupMode, StreamConfig,
    TransactionConfig,
};
use ringmq_protocol::{
    CommitOffsets, FetchOffsets, GroupSettings, Heartbeat, ItemsBuf, JoinGroup, Joined, LeaveGroup, Outcome,
    PositionEntry, Request, Response, Subscription,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
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

fn group(name: &str) -> GroupConfig {
    GroupConfig { session: Some(Duration::from_millis(600)), ..GroupConfig::new(name).topic("t") }
}

fn every(ms: u64) -> StreamConfig {
    StreamConfig { auto_commit: Some(Duration::from_millis(ms)), ..StreamConfig::default() }
}

async fn publish(client: &Client, partitions: u32, numbers: std::ops::Range<u32>) {
    let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
    for number in numbers {
        let record = RecordBuf::new(number.to_string());
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

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Option<ErrorCode> {
    match result.unwrap_err() {
        ClientError::Refused(refused) => refused.code(),
        other => panic!("{other}"),
    }
}

/// What all members of a group have seen: number -> how often.
type Seen = Arc<Mutex<BTreeMap<u32, u32>>>;

/// A member that consumes until it is told to stop, whatever happens to the server.
struct Worker {
    task: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    async fn start(client: &Client, name: &str, seen: &Seen) -> Self {
        let mut consumer = client.group_consumer(group(name), every(10)).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, seen) = (stop.clone(), seen.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                match timeout(Duration::from_millis(20), consumer.next()).await {
                    Ok(Ok(record)) => {
                        *seen.lock().unwrap().entry(number(&record.body)).or_default() += 1;
                    }
                    // It goes on with what it has, or joins again.
                    Ok(Err(GroupError::Fenced { .. } | GroupError::NotAMember)) | Err(_) => {}
                    Ok(Err(error)) => panic!("{error}"),
                }
            }
            consumer.close(false).await.unwrap();
        });
        Self { task, stop }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

async fn until_seen(seen: &Seen, count: usize) {
    let all = async {
        while seen.lock().unwrap().len() < count {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = timeout(SOON, all).await;
    assert!(waited.is_ok(), "{} of {count} records were seen", seen.lock().unwrap().len());
}

/// What was committed in each partition, seen again and again from outside, never goes back.
async fn watch_positions(client: Client, name: &'static str, stop: Arc<AtomicBool>) -> BTreeMap<u32, u64> {
    let mut committed: BTreeMap<u32, u64> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(described) = client.describe_group(name).await {
            for position in described.positions {
                let before = committed.insert(position.partition, position.watermark).unwrap_or(0);
                assert!(
                    position.watermark >= before,
                    "partition {} went from {before} back to {}",
                    position.partition,
                    position.watermark
                );
            }
        }
        sleep(Duration::from_millis(3)).await;
    }
    committed
}

#[tokio::test]
async fn a_stream_group_loses_nothing_and_never_goes_back_while_members_come_go_and_the_server_is_killed() {
    const PARTITIONS: u32 = 6;
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data")).port(free_ports(2));
    let Some(mut server) = launch.ready() else { return };
    let address = server.address;
    let client = connect(address).await;
    client.create_topic("t", PARTITIONS, false).await.unwrap();
    let seen = Seen::default();
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = tokio::spawn(watch_positions(connect(address).await, "g", stop.clone()));

    let first = Worker::start(&client, "g", &seen).await;
    publish(&client, PARTITIONS, 0..600).await;
    let second = Worker::start(&connect(address).await, "g", &seen).await;
    publish(&client, PARTITIONS, 600..1_200).await;
    let third = Worker::start(&connect(address).await, "g", &seen).await;
    until_seen(&seen, 1_200).await;
    let described = client.describe_group("g").await.unwrap();
    let shares: Vec<u32> = described.members.iter().map(|member| member.partitions).collect();
    assert_eq!(shares, [2, 2, 2]);
    let owners: BTreeSet<u64> = described.positions.iter().filter_map(|position| position.member).collect();
    assert_eq!(owners.len(), 3);

    for round in 0..3 {
        server = kill_meanwhile(server, &launch, &client, &seen, 1_200 + round * 600).await;
    }
    // One says goodbye, the others take over what it had.
    second.stop().await;
    publish(&client, PARTITIONS, 3_000..3_600).await;
    until_seen(&seen, 3_600).await;
    first.stop().await;
    third.stop().await;
    // Somebody who was told to stop while it was joining is only missed.
    let empty = async {
        while client.describe_group("g").await.unwrap().group.members > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, empty).await.unwrap();
    let described = client.describe_group("g").await.unwrap();
    assert_eq!(described.group.lag_records, Some(0), "who leaves commits what it has done");
    assert_eq!((described.group.lag, described.generation), (Some(Duration::ZERO), 0));
    stop.store(true, Ordering::Relaxed);
    let committed = watcher.await.unwrap();
    assert_eq!(committed.values().sum::<u64>(), 3_600);
    let twice = seen.lock().unwrap().values().filter(|count| **count > 1).count();
    println!("{twice} of 3600 records came more than once");
    server.stop_cleanly();
}

/// Records are published while the server is killed and started again.
async fn kill_meanwhile(server: Server, launch: &Launch, client: &Client, seen: &Seen, from: u32) -> Server {
    let publishing = publish(client, 6, from..from + 600);
    let killing = async {
        sleep(Duration::from_millis(50)).await;
        server.kill();
        launch.ready().unwrap()
    };
    let ((), server) = tokio::join!(publishing, killing);
    until_seen(seen, from as usize + 600).await;
    server
}

#[tokio::test]
async fn subscribers_of_a_broadcast_get_each_record_and_go_on_where_they_were() {
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data")).port(free_ports(2));
    let Some(server) = launch.ready() else { return };
    let address = server.address;
    let client = connect(address).await;
    client.create_topic("t", 3, false).await.unwrap();
    publish(&client, 3, 0..90).await;
    let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
    let subscribe = async |instance: Option<&str>, start| {
        client.broadcast(group("b"), instance, start, by_hand.clone()).await.unwrap()
    };
    let all: Vec<u32> = (0..90).collect();
    let sorted = |mut numbers: Vec<u32>| {
        numbers.sort_unstable();
        numbers
    };
    for instance in ["a", "b"] {
        let mut subscriber = subscribe(Some(instance), BroadcastStart::Resume).await;
        assert_eq!(subscriber.positions().count(), 3, "everybody has every partition");
        assert_eq!(sorted(take(&mut subscriber, 90).await), all);
        subscriber.commit().await.unwrap();
        subscriber.close(false).await.unwrap();
    }
    let mut nobody = subscribe(None, BroadcastStart::Resume).await;
    assert_eq!(sorted(take(&mut nobody, 90).await), all);

    server.kill();
    let server = launch.ready().unwrap();
    publish(&client, 3, 90..120).await;
    let new: Vec<u32> = (90..120).collect();
    // A new process of the instance takes its place at once, however long the session of the one before.
    let patient = GroupConfig { session: Some(Duration::from_secs(600)), ..group("b") };
    let dead = client.broadcast(patient, Some("a"), BroadcastStart::Resume, by_hand.clone()).await.unwrap();
    let mut back = subscribe(Some("a"), BroadcastStart::Resume).await;
    assert_eq!(sorted(take(&mut back, 30).await), new);
    back.commit().await.unwrap();
    drop(dead);
    assert_eq!(sorted(take(&mut nobody, 30).await), new, "who has no name knows by itself");

    let described = client.describe_group("b").await.unwrap();
    assert_eq!(described.group.mode, Some(GroupMode::Broadcast));
    let of = |instance: u64| described.positions.iter().filter(move |one| one.instance == instance);
    let instance = described.members.iter().find(|member| member.instance == "a").unwrap();
    assert_eq!(instance.partitions, 3);
    let instances: BTreeSet<u64> = described.positions.iter().map(|position| position.instance).collect();
    assert!(instances.len() >= 2, "{:?}", described.positions);
    let behind: Vec<Option<u64>> = instances
        .iter()
        .map(|instance| of(*instance).map(|one| one.lag_records).sum::<Option<u64>>())
        .collect();
    assert!(behind.contains(&Some(0)) && behind.contains(&Some(30)), "a has all, b lacks 30: {behind:?}");
    assert!(of(0).count() == 0);

    // Forgotten, it begins where the group does.
    back.close(true).await.unwrap();
    let mut anew = subscribe(Some("a"), BroadcastStart::Resume).await;
    assert_eq!(take(&mut anew, 120).await.len(), 120);
    server.stop_cleanly();
}

#[tokio::test]
async fn a_group_is_made_looked_at_moved_and_removed() {
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data")).args(&["--shards=3"]).port(free_ports(3));
    let Some(server) = launch.ready() else { return };
    let address = server.address;
    let client = connect(address).await;
    client.create_topic("t", 4, false).await.unwrap();
    publish(&client, 4, 0..100).await;
    let from = |start| GroupOptions { start: Some(start), ..GroupOptions::default() };
    client.set_group("g", SetGroupMode::Create, &from(GroupStart::Earliest)).await.unwrap();
    assert_eq!(
        code(client.set_group("g", SetGroupMode::Create, &GroupOptions::default()).await),
        Some(ErrorCode::GroupExists)
    );
    assert_eq!(
        code(client.set_group("h", SetGroupMode::Alter, &GroupOptions::default()).await),
        Some(ErrorCode::UnknownGroup)
    );
    let zero = GroupOptions { max_attempts: Some(0), ..GroupOptions::default() };
    assert_eq!(
        code(client.set_group("g", SetGroupMode::Alter, &zero).await),
        Some(ErrorCode::InvalidSettings)
    );
    assert_eq!(code(client.describe_group("h").await), Some(ErrorCode::UnknownGroup));
    let none = GroupConfig { create: None, ..group("h") };
    assert!(
        matches!(client.group_consumer(none, every(10)).await, Err(GroupError::Refused(refused)) if refused.code() == Some(ErrorCode::UnknownGroup))
    );
    let described = client.describe_group("g").await.unwrap();
    assert_eq!((described.generation, described.group.mode), (0, None));
    assert_eq!((described.options.max_attempts, described.options.backoff.unwrap().len()), (Some(16), 16));

    let mut consumer = client.group_consumer(group("g"), every(5)).await.unwrap();
    take(&mut consumer, 60).await;
    consumer.commit().await.unwrap();
    let described = client.describe_group("g").await.unwrap();
    assert_eq!(described.subscriptions, [("t".to_owned(), "*".to_owned())]);
    assert_eq!(described.positions.len(), 4);
    let partitions: Vec<u32> = described.positions.iter().map(|position| position.partition).collect();
    assert_eq!(partitions, [0, 1, 2, 3], "over three shards in their order");
    let lag = described.group.lag_records.unwrap();
    assert!((40..=41).contains(&lag), "{lag}");
    assert!(described.group.lag.is_some());
    let generation = consumer.generation().unwrap();
    assert!(described.positions.iter().all(|position| position.generation == generation));
    let listed = client.list_groups().await.unwrap();
    assert_eq!((listed.len(), &*listed[0].name, listed[0].members, listed[0].topics), (1, "g", 1, 1));
    assert_eq!(listed[0].lag_records, Some(lag));

    // A dry run changes nothing; a reset moves a member that lives.
    take(&mut consumer, 40).await;
    consumer.commit().await.unwrap();
    let dry = client.reset_group("g", "t", GroupStart::Offset(5), true).await.unwrap();
    assert!(dry.iter().all(|one| one.result == Ok((25, 5)) && one.visible_end == 25));
    assert_eq!(client.describe_group("g").await.unwrap().group.lag_records, Some(0));
    assert_eq!(
        code(client.reset_group("g", "nowhere", GroupStart::Latest, true).await),
        Some(ErrorCode::UnknownTopic)
    );
    client.reset_group("g", "t", GroupStart::Offset(5), false).await.unwrap();
    assert_eq!(client.describe_group("g").await.unwrap().group.lag_records, Some(80));
    publish(&client, 4, 100..104).await;
    let mut again = BTreeSet::new();
    let (mut fenced, from_five) = (0, 80 + 4);
    while again.len() < from_five {
        match timeout(SOON, consumer.next()).await.unwrap() {
            Ok(record) => {
                again.insert(number(&record.body));
            }
            Err(GroupError::Fenced { .. }) => fenced += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(fenced > 0);

    assert_eq!(code(client.delete_group("g", false).await), Some(ErrorCode::GroupInUse));
    drop(consumer);
    let removed = async {
        while client.delete_group("g", false).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, removed).await.unwrap();
    assert_eq!(code(client.describe_group("g").await), Some(ErrorCode::UnknownGroup));
    // A new one of the name knows nothing of it, and one that starts at the end misses nothing from then on.
    let latest = group("g").options(from(GroupStart::Latest));
    let first = client.group_consumer(latest.clone(), every(600_000)).await.unwrap();
    while first.positions().count() < 4 {
        sleep(Duration::from_millis(5)).await;
    }
    drop(first);
    server.kill();
    let server = launch.ready().unwrap();
    publish(&client, 4, 104..108).await;
    let mut second = client.group_consumer(latest, every(5)).await.unwrap();
    let mut numbers = take(&mut second, 4).await;
    numbers.sort_unstable();
    assert_eq!(numbers, [104, 105, 106, 107]);
    server.stop_cleanly();
}

#[tokio::test]
async fn positions_become_true_with_their_transaction_and_never_without() {
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data")).args(&["--shards=2"]).port(free_ports(2));
    let Some(server) = launch.ready() else { return };
    let address = server.address;
    let client = connect(address).await;
    client.create_topic("t", 4, false).await.unwrap();
    client.create_topic("u", 3, false).await.unwrap();
    publish(&client, 4, 0..40).await;
    let checker = |_| async { Resolution::Unknown };
    let producer = client.transactional_producer("p", TransactionConfig::default(), checker).await.unwrap();
    let by_hand = StreamConfig { auto_commit: None, ..StreamConfig::default() };
    let consumed = async || {
        let described = client.describe_group("g").await.unwrap();
        described.positions.iter().map(|position| position.watermark).sum::<u64>()
    };
    // Everything is read, written elsewhere, and rolled back; once more, and committed. A kill in between changes
    // neither what waits nor what is true.
    let mut server = server;
    for (commits, expected) in [(false, 0), (true, 40)] {
        let mut consumer = client.group_consumer(group("g"), by_hand.clone()).await.unwrap();
        let transaction = producer.begin();
        for _ in 0..40 {
            let record = timeout(SOON, consumer.next()).await.unwrap().unwrap();
            let copy = RecordBuf::new(record.body.clone());
            transaction.send("u", copy, Some(number(&record.body) % 3)).await.unwrap().await.unwrap();
        }
        transaction.send_offsets(&consumer.processed().unwrap()).await.unwrap();
        assert_eq!(consumed().await, 0);
        server.kill();
        server = launch.ready().unwrap();
        assert_eq!(consumed().await, 0);
        match commits {
            true => drop(transaction.commit().await.unwrap()),
            false => transaction.rollback().await.unwrap(),
        }
        let applied = async {
            while consumed().await != expected {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, applied).await.unwrap();
        consumer.close(false).await.unwrap();
    }
    server.kill();
    let server = launch.ready().unwrap();
    assert_eq!(consumed().await, 40);
    let ends = client.describe_topic("u").await.unwrap();
    assert_eq!(ends.partitions.iter().map(|partition| partition.visible_end).sum::<u64>(), 40);
    server.stop_cleanly();
}

/// What a member needs to know, from the answer to its JOIN_GROUP.
#[derive(Clone, Copy)]
struct Seat {
    group: u32,
    member: u64,
    generation: u64,
}

fn join(
    raw: &mut Raw,
    group: &str,
    member: u64,
    subscriptions: &[(&str, &str)],
) -> Result<Seat, (ErrorCode, String)> {
    let list: ItemsBuf = subscriptions.iter().map(|(topic, filter)| Subscription { topic, filter }).collect();
    let message = raw.ask(&Request::JoinGroup(JoinGroup {
        group,
        mode: GroupMode::Stream,
        member,
        name: "raw",
        instance: "",
        session_ms: 60_000,
        create: true,
        settings: GroupSettings::default(),
        subscriptions: list.items(),
    }));
    match message.response() {
        Response::Joined(Joined { group, member, generation, .. }) => Ok(Seat { group, member, generation }),
        Response::Error(body) => Err((body.error_code().unwrap(), body.message.to_owned())),
        other => panic!("{other:?}"),
    }
}

fn commit(raw: &mut Raw, seat: Seat, positions: &[(u32, u64)]) -> Vec<u16> {
    let positions: Vec<PositionEntry> = positions
        .iter()
        .map(|(partition, offset)| PositionEntry::new(ringmq_format::PartitionId(*partition), *offset))
        .collect();
    let message = raw.ask(&Request::CommitOffsets(CommitOffsets {
        group: seat.group,
        member: seat.member,
        generation: seat.generation,
        instance: 0,
        txn: 0,
        positions: &positions,
    }));
    let Response::Committed(outcomes) = message.response() else { panic!("{message:?}") };
    outcomes.iter().map(|outcome: &Outcome| outcome.code.get()).collect()
}

#[test]
fn bad_input_and_old_owners_get_their_named_errors() {
    let dir = scratch();
    let Some(server) = Launch::new(&dir.path().join("data")).ready() else { return };
    let mut raw = Raw::greeted(server.address);
    raw.create("t", 2);
    let described = raw.open(1, "t", 0);
    let base = described.partition.0;
    let code = |result: Result<Seat, (ErrorCode, String)>| result.err().map(|error| error.0);
    assert_eq!(code(join(&mut raw, "a/b", 0, &[("t", "*")])), Some(ErrorCode::InvalidGroupName));
    let (filter, said) = join(&mut raw, "g", 0, &[("t", "a || b c")]).err().unwrap();
    assert!(filter == ErrorCode::InvalidFilter && said.contains("column"), "{said}");
    assert_eq!(code(join(&mut raw, "g", 0, &[("t/", "*")])), Some(ErrorCode::InvalidTopicName));
    assert_eq!(code(join(&mut raw, "g", 0, &[("t", "*"), ("t", "x")])), Some(ErrorCode::InvalidSettings));
    let nobody = Seat { group: 4_000_000, member: 1, generation: 1 };
    let heartbeat = |seat: Seat| {
        let Seat { group, member, generation } = seat;
        Request::Heartbeat(Heartbeat { group, member, generation, wait_ms: 0, positions: &[] })
    };
    assert_eq!(raw.error(&heartbeat(nobody)), ErrorCode::UnknownGroup);

    let first = join(&mut raw, "g", 0, &[("t", "*")]).unwrap();
    let (conflict, said) = join(&mut raw, "g", 0, &[("t", "x")]).err().unwrap();
    assert_eq!(conflict, ErrorCode::SubscriptionConflict);
    assert!(said.contains("'raw'") && said.contains("'t'") && said.contains("'x'"), "{said}");
    // An empty filter is everything, as '*' is.
    let second = join(&mut raw, "g", 0, &[("t", "")]).unwrap();
    assert!(second.generation > first.generation);
    assert_eq!(raw.error(&heartbeat(Seat { member: 77, ..first })), ErrorCode::NotAMember);

    let claim = |raw: &mut Raw, seat: Seat| {
        let partitions = [base.into(), 4_000_000.into()];
        let message = raw.ask(&Request::FetchOffsets(FetchOffsets {
            group: seat.group,
            member: seat.member,
            generation: seat.generation,
            instance: 0,
            claim: true,
            partitions: &partitions,
        }));
        let Response::FetchedOffsets(offsets) = message.response() else { panic!("{message:?}") };
        offsets.iter().map(|offset| offset.code.get()).collect::<Vec<_>>()
    };
    let unknown = ErrorCode::UnknownTopic as u16;
    let stale = ErrorCode::StaleGeneration as u16;
    assert_eq!(claim(&mut raw, first), [0, unknown]);
    assert_eq!(
        commit(&mut raw, first, &[(base, 0), (base, 1), (4_000_000, 0)]),
        [0, ErrorCode::OffsetOutOfRange as u16, unknown]
    );
    assert_eq!(claim(&mut raw, second), [0, unknown]);
    assert_eq!(claim(&mut raw, first), [stale, unknown]);
    assert_eq!(commit(&mut raw, first, &[(base, 0)]), [stale], "somebody else has claimed it");
    let earlier = Seat { generation: second.generation - (1 << 32), ..second };
    assert_eq!(commit(&mut raw, earlier, &[(base + 1, 0)]), [stale], "of an earlier life");
    let leave = Request::LeaveGroup(LeaveGroup { group: first.group, member: first.member, forget: false });
    assert!(matches!(raw.ask(&leave).response(), Response::Left));
    assert_eq!(raw.error(&leave), ErrorCode::NotAMember);
    let none: [PositionEntry; 1] = [PositionEntry::new(ringmq_format::PartitionId(base), 0)];
    let gone = CommitOffsets {
        group: first.group,
        member: first.member,
        generation: first.generation,
        instance: 0,
        txn: 0,
        positions: &none,
    };
    assert_eq!(raw.error(&Request::CommitOffsets(gone)), ErrorCode::NotAMember);
    raw.lives();
    server.stop_cleanly();
}
