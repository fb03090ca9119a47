//! What clients may get wrong, or do on purpose, against a real server: each is answered with the code and the words
//! that help, nobody else notices, and the server stays up. Bytes that are no messages are in `hostile_input`.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{Launch, Raw, Server, free_ports, reseal, scratch};
use ringmq_client::{
    BroadcastStart, Client, ClientConfig, ClientError, ConsumerConfig, ErrorCode, GroupConfig, GroupError,
    GroupOptions, GroupStart, ProducerConfig, QueueConfig, QueueConsumer, QueueRecord, RecordBuf, Resolution,
    SendError, SetGroupMode, SettleOutcome, StreamConfig, TopicSettings, TransactionConfig, TransactionError,
    TransactionId, TransactionState,
};
use ringmq_protocol::{
    Ack, ChangeInvisible, CommitOffsets, EndSource, EndTransaction, GroupMode, GroupSettings, HEADER_SIZE,
    Heartbeat, ItemsBuf, JoinGroup, LeaseChange, LeaseHandle, LeaveGroup, PositionEntry, Receive, Request,
    Response, Subscription, TransactionEnd,
};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Whatever takes longer has hung.
const SOON: Duration = Duration::from_secs(30);
/// What must not come is waited for so long.
const WHILE: Duration = Duration::from_millis(300);
/// Nobody else gets a record for so long.
const INVISIBLE: Duration = Duration::from_millis(500);

async fn connect(address: SocketAddr) -> Client {
    Client::connect(ClientConfig::new(address.to_string())).await.unwrap()
}

/// A server with topic `t`, and a client of it. `None` where io_uring is refused.
async fn serve(dir: &tempfile::TempDir, partitions: u32) -> Option<(Server, Client)> {
    let server = Launch::new(&dir.path().join("data")).ready()?;
    let client = connect(server.address).await;
    client.create_topic("t", partitions, false).await.unwrap();
    Some((server, client))
}

/// Record `number` goes to the partition of that number; its body is its number.
async fn publish(client: &Client, topic: &str, partitions: u32, numbers: std::ops::Range<u32>) {
    let producer = client.producer(topic, ProducerConfig::default()).await.unwrap();
    for number in numbers {
        drop(producer.send(RecordBuf::new(number.to_string()), Some(number % partitions)).await.unwrap());
    }
    producer.close().await.unwrap();
}

fn number(body: &[u8]) -> u32 {
    std::str::from_utf8(body).unwrap().parse().unwrap()
}

fn group(name: &str) -> GroupConfig {
    let options = GroupOptions { backoff: Some(vec![Duration::from_millis(50)]), ..GroupOptions::default() };
    GroupConfig::new(name).topic("t").options(options)
}

fn by_hand() -> StreamConfig {
    StreamConfig { auto_commit: None, ..StreamConfig::default() }
}

/// A member that prolongs nothing by itself.
fn forgetful() -> QueueConfig {
    QueueConfig { prefetch: 4, invisible: Some(INVISIBLE), auto_renew: None, ..QueueConfig::default() }
}

async fn next(consumer: &mut QueueConsumer) -> QueueRecord {
    timeout(SOON, consumer.next()).await.unwrap().unwrap()
}

/// The refusal, with the words that a user reads.
#[track_caller]
fn refused<T>(result: Result<T, GroupError>) -> (Option<ErrorCode>, String) {
    match result.err().unwrap() {
        GroupError::Refused(refused) | GroupError::Client(ClientError::Refused(refused)) => {
            (refused.code(), refused.to_string())
        }
        other => panic!("{other}"),
    }
}

#[track_caller]
fn code<T>(result: Result<T, ClientError>) -> Option<ErrorCode> {
    match result.err().unwrap() {
        ClientError::Refused(refused) => refused.code(),
        other => panic!("{other}"),
    }
}

/// Whatever was done before: the server serves, and stops as it should.
async fn is_well(server: Server, client: &Client) {
    let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
    let ack = producer.send(RecordBuf::new("0"), Some(0)).await.unwrap().await.unwrap();
    let mut consumer = client.consumer("t", ConsumerConfig::default()).await.unwrap();
    loop {
        let record = timeout(SOON, consumer.next()).await.unwrap().unwrap();
        if (record.partition, record.offset) == (0, ack.offset) {
            break;
        }
    }
    server.stop_cleanly();
}

// -- members that say whatever they like -------------------------------------------------------------------

/// A member in queue mode that speaks the protocol by itself. Handle `n` of its connection is partition `n - 1`.
struct Hand {
    raw: Raw,
    group: u32,
    member: u64,
}

/// JOIN_GROUP: the group, the member, the generation.
fn join(
    raw: &mut Raw,
    mode: GroupMode,
    (group, name, instance): (&str, &str, &str),
    member: u64,
    session_ms: u32,
) -> Result<(u32, u64, u64), (ErrorCode, String)> {
    let subscription = Subscription { topic: "t", filter: "*" };
    let list: ItemsBuf = std::iter::once(subscription).collect();
    let settings = GroupSettings::default();
    let create = true;
    let subscriptions = list.items();
    let join = JoinGroup { group, mode, member, name, instance, session_ms, create, settings, subscriptions };
    let message = raw.ask(&Request::JoinGroup(join));
    match message.response() {
        Response::Joined(joined) => Ok((joined.group, joined.member, joined.generation)),
        Response::Error(body) => Err((body.error_code().unwrap(), body.message.to_owned())),
        other => panic!("{other:?}"),
    }
}

impl Hand {
    fn join(server: &Server, name: &str, group: &str, partitions: u32) -> Self {
        let mut raw = Raw::greeted(server.address);
        for partition in 0..partitions {
            raw.open(partition + 1, "t", partition);
        }
        let (group, member, _) = join(&mut raw, GroupMode::Queue, (group, name, ""), 0, 60_000).unwrap();
        Self { raw, group, member }
    }

    fn receive(&mut self, handle: u32, max_records: u32, invisible: Duration) -> Vec<LeaseHandle> {
        let (group, member) = (self.group, self.member);
        let invisible_ms = invisible.as_millis() as u32;
        let receive =
            Receive { handle, group, member, max_records, max_bytes: 1 << 20, invisible_ms, wait_ms: 10_000 };
        let message = self.raw.ask(&Request::Receive(receive));
        let Response::Received(received) = message.response() else { panic!("{message:?}") };
        received.leases.iter().map(|lease| lease.handle).collect()
    }

    /// What an acknowledgement is refused with.
    fn ack(&mut self, handle: u32, lease: LeaseHandle) -> Option<ErrorCode> {
        let (group, member) = (self.group, self.member);
        let message = self.raw.ask(&Request::Ack(Ack { handle, group, member, leases: &[lease] }));
        match message.response() {
            Response::Acked(outcomes) => ErrorCode::parse(outcomes[0].code.get()),
            Response::Error(body) => body.error_code(),
            other => panic!("{other:?}"),
        }
    }

    /// What a change of a lease is refused with.
    fn change(&mut self, handle: u32, change: LeaseChange) -> Option<ErrorCode> {
        let (group, member) = (self.group, self.member);
        let changes = &[change];
        let message =
            self.raw.ask(&Request::ChangeInvisible(ChangeInvisible { handle, group, member, changes }));
        match message.response() {
            Response::Changed(changed) => ErrorCode::parse(changed[0].code.get()),
            Response::Error(body) => body.error_code(),
            other => panic!("{other:?}"),
        }
    }

    /// Everything that can be said by a handle is refused alike.
    #[track_caller]
    fn refuses(&mut self, handle: u32, lease: LeaseHandle, code: ErrorCode) {
        let place =
            format!("offset {} attempt {} generation {:#x}", lease.offset, lease.attempt, lease.generation);
        assert_eq!(self.ack(handle, lease), Some(code), "ack of {place}");
        assert_eq!(self.change(handle, LeaseChange::retry(lease)), Some(code), "retry of {place}");
        for after_ms in [0, 60_000] {
            let change = LeaseChange::after(lease, after_ms);
            assert_eq!(self.change(handle, change), Some(code), "{after_ms} ms more of {place}");
        }
    }
}

// -- leases ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_stale_handle_is_refused_and_who_has_the_record_keeps_it() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 1).await else { return };
    publish(&client, "t", 1, 0..3).await;
    let mut slow = Hand::join(&server, "slow", "g", 1);
    let mut quick = Hand::join(&server, "quick", "g", 1);
    let stale = slow.receive(1, 1, INVISIBLE)[0];
    assert_eq!((stale.offset.get(), stale.attempt.get()), (0, 1));
    let mut others = quick.receive(1, 2, Duration::from_secs(60));
    assert_eq!(others.iter().map(|lease| lease.offset.get()).collect::<Vec<_>>(), [1, 2]);
    let again = quick.receive(1, 1, Duration::from_secs(60))[0];
    assert_eq!((again.offset.get(), again.attempt.get()), (0, 2), "its time was over");

    slow.refuses(1, stale, ErrorCode::StaleHandle);
    let described = client.describe_group("g").await.unwrap();
    assert_eq!((described.positions[0].watermark, described.positions[0].in_flight), (0, 3));
    others.push(again);
    others.iter().for_each(|lease| assert_eq!(quick.ack(1, *lease), None, "{lease:?}"));
    // Consumed by another delivery: that one's acknowledgement is nobody else's.
    slow.refuses(1, stale, ErrorCode::StaleHandle);
    assert_eq!(client.describe_group("g").await.unwrap().group.lag_records, Some(0));
    is_well(server, &client).await;
}

#[tokio::test]
async fn a_forged_handle_is_refused_and_moves_nothing() {
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data")).port(free_ports(2));
    let Some(server) = launch.ready() else { return };
    let client = connect(server.address).await;
    client.create_topic("t", 1, false).await.unwrap();
    client.create_topic("u", 1, false).await.unwrap();
    publish(&client, "t", 1, 0..10).await;
    let mut hand = Hand::join(&server, "hand", "g", 1);
    let real = hand.receive(1, 2, Duration::from_secs(60));
    let generation = real[0].generation.get();
    let future = generation + (1 << 32);
    let forged = [
        ((0, 2, generation), ErrorCode::StaleHandle), // another delivery of what is leased
        ((0, 1, generation ^ 1), ErrorCode::StaleHandle),
        ((0, 1, generation ^ 0x8000_0000), ErrorCode::StaleHandle),
        ((0, 0, generation), ErrorCode::UnknownLease),
        ((0, 1, future), ErrorCode::UnknownLease), // of a life to come
        ((0, 1, u64::MAX), ErrorCode::UnknownLease),
        ((0, 1, 0), ErrorCode::StaleHandle),
        ((7, 1, 0), ErrorCode::UnknownLease), // of a life that never was
        ((7, 1, 5), ErrorCode::UnknownLease),
        ((7, 1, generation), ErrorCode::UnknownLease), // nobody has got it
        ((1_000, 1, generation), ErrorCode::UnknownLease),
        ((u64::MAX, u16::MAX, u64::MAX), ErrorCode::UnknownLease),
    ];
    for ((offset, attempt, generation), code) in forged {
        hand.refuses(1, LeaseHandle::new(offset, attempt, generation), code);
    }
    // Not the handle's group, not its partition, no handle of this connection.
    let other = Hand::join(&server, "other", "h", 1).group;
    let stream = join(&mut hand.raw, GroupMode::Stream, ("s", "s", ""), 0, 60_000).unwrap().0;
    hand.raw.open(2, "u", 0);
    let own = std::mem::replace(&mut hand.group, other);
    hand.refuses(1, real[0], ErrorCode::UnknownLease);
    hand.group = stream;
    hand.refuses(1, real[0], ErrorCode::NotPermitted);
    hand.group = 4_000_000;
    hand.refuses(1, real[0], ErrorCode::UnknownGroup);
    hand.group = own;
    hand.refuses(2, real[0], ErrorCode::NotPermitted);
    hand.refuses(77, real[0], ErrorCode::UnknownHandle);
    let described = client.describe_group("g").await.unwrap();
    assert_eq!((described.positions[0].watermark, described.positions[0].in_flight), (0, 2));
    assert_eq!(hand.ack(1, real[0]), None, "the true one is still good");

    // The life before is over: its handles are good for what nobody has got since, and no others are.
    server.kill();
    let server = launch.ready().unwrap();
    let mut hand = Hand::join(&server, "hand", "g", 1);
    let forged = [
        ((1, 2, generation), ErrorCode::StaleHandle),
        ((7, 9, generation), ErrorCode::StaleHandle),
        ((1, 1, future + (1 << 32)), ErrorCode::UnknownLease),
        ((7, 1, 0), ErrorCode::UnknownLease),
    ];
    for ((offset, attempt, generation), code) in forged {
        hand.refuses(1, LeaseHandle::new(offset, attempt, generation), code);
    }
    assert_eq!(hand.ack(1, real[1]), None);
    let rest = hand.receive(1, 10, Duration::from_secs(60));
    assert_eq!(rest.iter().map(|lease| lease.offset.get()).collect::<Vec<_>>(), (2..10).collect::<Vec<_>>());
    is_well(server, &client).await;
}

#[tokio::test]
async fn a_consumer_that_never_acknowledges_delays_nobody_and_what_it_has_comes_again() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 1).await else { return };
    publish(&client, "t", 1, 0..40).await;
    let mut silent = client.queue_consumer(group("g"), forgetful()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(next(&mut silent).await);
    }
    assert!(timeout(WHILE, silent.next()).await.is_err(), "no more than its prefetch");
    // However slow the machine: what this one has stays its own.
    let patient = QueueConfig { invisible: Some(Duration::from_secs(60)), ..forgetful() };
    let mut others = client.queue_consumer(group("g"), patient).await.unwrap();
    let (mut first, mut again) = (BTreeSet::new(), BTreeSet::new());
    while first.len() + again.len() < 40 {
        let record = next(&mut others).await;
        let seen = if record.attempt == 1 { &mut first } else { &mut again };
        assert!(seen.insert(number(&record.body)), "{record:?}");
        assert_eq!(others.ack(&record).await.unwrap(), SettleOutcome::Done);
    }
    let kept: BTreeSet<u32> = held.iter().map(|record| number(&record.body)).collect();
    assert_eq!((again, first.len()), (kept, 36), "what it kept came to the other, as a second delivery");
    for record in &held {
        let late = silent.ack(record).await.err().unwrap();
        assert!(matches!(late, GroupError::Stale), "{late:?}");
        assert!(late.to_string().contains("no longer yours"), "{late}");
    }
    let described = client.describe_group("g").await.unwrap();
    assert_eq!((described.group.lag_records, described.positions[0].in_flight), (Some(0), 0));
    is_well(server, &client).await;
}

#[tokio::test]
async fn a_member_that_stalls_loses_its_partitions_and_can_commit_no_more() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 2).await else { return };
    publish(&client, "t", 2, 0..20).await;
    let address = server.address;
    let brief = || GroupConfig { session: Some(Duration::from_millis(400)), ..group("g") };
    let (reading, read) = tokio::sync::oneshot::channel();
    let (wake, woken) = std::sync::mpsc::channel();
    // Its whole thread stands still, heartbeats and all, with records in its hands.
    let stalled = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = connect(address).await;
            let mut member = client.group_consumer(brief(), by_hand()).await.unwrap();
            for _ in 0..20 {
                timeout(SOON, member.next()).await.unwrap().unwrap();
            }
            reading.send(()).unwrap();
            woken.recv().unwrap();
            let late = member.commit().await.err().map(|error| error.to_string());
            // It has heard of it, and joins again instead of failing.
            let back = async {
                while member.generation().is_none() || member.commit().await.is_err() {
                    let _ = timeout(Duration::from_millis(20), member.next()).await;
                }
            };
            timeout(SOON, back).await.unwrap();
            late
        })
    });
    read.await.unwrap();
    // Another one that stalls, without the library.
    let mut raw = Raw::greeted(address);
    let base = raw.open(1, "t", 0).partition;
    let stream = GroupMode::Stream;
    let (group_id, deaf, old) = join(&mut raw, stream, ("g", "deaf", ""), 0, 400).unwrap();

    let mut heir = client.group_consumer(group("g"), by_hand()).await.unwrap();
    let mut found = BTreeSet::new();
    while found.len() < 20 {
        found.insert(number(&timeout(SOON, heir.next()).await.unwrap().unwrap().body));
    }
    heir.commit().await.unwrap();
    let watermarks = async || -> Vec<u64> {
        let described = client.describe_group("g").await.unwrap();
        described.positions.iter().map(|position| position.watermark).collect()
    };
    assert_eq!(watermarks().await, [10, 10]);
    let commit = |raw: &mut Raw, member, generation| {
        let positions = &[PositionEntry::new(base, 0)];
        let (group, instance, txn) = (group_id, 0, 0);
        let commit = CommitOffsets { group, member, generation, instance, txn, positions };
        let message = raw.ask(&Request::CommitOffsets(commit));
        match message.response() {
            Response::Committed(outcomes) => ErrorCode::parse(outcomes[0].code.get()),
            Response::Error(body) => body.error_code(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(commit(&mut raw, deaf, old), Some(ErrorCode::NotAMember), "its session is over");
    let (_, again, new) = join(&mut raw, stream, ("g", "deaf", ""), deaf, 60_000).unwrap();
    assert!(again == deaf && new > old);
    for generation in [old, 0, 1, new - (1 << 32)] {
        let refused = commit(&mut raw, deaf, generation);
        assert_eq!(refused, Some(ErrorCode::StaleGeneration), "{generation:#x} of {new:#x}");
    }
    wake.send(()).unwrap();
    let late = tokio::task::spawn_blocking(move || stalled.join().unwrap()).await.unwrap();
    let late = late.expect("a stalled member has committed");
    assert!(late.contains("newer owner") || late.contains("not a member"), "{late}");
    assert_eq!(watermarks().await, [10, 10], "no position has moved");
    drop(heir);
    is_well(server, &client).await;
}

// -- groups ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn members_with_different_subscriptions_are_told_which_member_and_which_difference() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 1).await else { return };
    client.create_topic("u", 1, false).await.unwrap();
    let named = |name: &str, filter: &str| {
        let config = GroupConfig { subscriptions: Vec::new(), ..group("g") };
        GroupConfig { name: name.to_owned(), ..config.filtered("t", filter) }
    };
    let mut alice = client.queue_consumer(named("alice", "red || green"), forgetful()).await.unwrap();
    let both = named("bob", "red || green").topic("u");
    let elsewhere = GroupConfig { subscriptions: vec![("u".into(), "*".into())], ..both.clone() };
    let cases: [(GroupConfig, &[&str]); 4] = [
        (named("bob", "red"), &["'alice'", "'t'", "'red || green'", "'red'"]),
        (named("bob", "a > 5"), &["'alice'", "'t'", "'red || green'", "'a > 5'"]),
        (both, &["'alice'", "does not consume 'u'"]),
        (elsewhere, &["'alice'", "consumes 't'"]),
    ];
    for (config, words) in cases {
        let (code, said) = refused(client.queue_consumer(config, forgetful()).await);
        assert_eq!(code, Some(ErrorCode::SubscriptionConflict), "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
    }
    let same = named("bob", "red || green");
    let (code, said) = refused(client.group_consumer(same.clone(), by_hand()).await);
    assert_eq!(code, Some(ErrorCode::SubscriptionConflict));
    assert!(said.contains("'alice' consumes in queue mode, this one in stream mode"), "{said}");
    let broadcast = client.broadcast(same.clone(), Some("i"), BroadcastStart::Resume, by_hand()).await;
    assert_eq!(refused(broadcast).0, Some(ErrorCode::SubscriptionConflict));
    // What they have asked for has changed nothing for the one that was there, and the same joins.
    let described = client.describe_group("g").await.unwrap();
    assert_eq!(described.subscriptions, [("t".to_owned(), "red || green".to_owned())]);
    assert_eq!(described.members.len(), 1);
    let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
    for tag in ["blue", "green"] {
        producer.send(RecordBuf::new("7").tag(tag), None).await.unwrap().await.unwrap();
    }
    let record = next(&mut alice).await;
    assert_eq!(record.tag.as_deref(), Some(&b"green"[..]));
    alice.ack(&record).await.unwrap();
    client.queue_consumer(same, forgetful()).await.unwrap().close().await;
    is_well(server, &client).await;
}

#[tokio::test]
async fn a_filter_that_cannot_be_read_is_refused_with_its_column_and_makes_no_group() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 1).await else { return };
    let deep = format!("{}a = 1{}", "(".repeat(2_000), ")".repeat(2_000));
    let many = vec!["tag"; 1_000].join(" || ");
    let long = format!("a = '{}'", "x".repeat(5_000));
    let filters = [
        "red ||",
        "|| red",
        "red || green blue",
        "red | green",
        "a =",
        "a = 'x",
        "a BETWEEN 1",
        "a IN (",
        "(a = 1",
        "a = 1)",
        "a = 1 AND",
        "a > > 1",
        "a LIKE",
        "= 5",
        "a = 1; DROP",
        "a IS",
        "\u{0}",
        "a = \u{1b}[31m",
        "'a' 'b'",
        "a = 1e999999",
        &deep,
        &many,
        &long,
    ];
    for filter in filters {
        let shown = &filter[..filter.len().min(30)];
        let config = || GroupConfig { subscriptions: Vec::new(), ..group("refused") }.filtered("t", filter);
        let queue = client.queue_consumer(config(), forgetful()).await;
        let stream = client.group_consumer(config(), by_hand()).await;
        let broadcast = client.broadcast(config(), Some("i"), BroadcastStart::Resume, by_hand()).await;
        for (code, said) in [refused(queue), refused(stream), refused(broadcast)] {
            assert_eq!(code, Some(ErrorCode::InvalidFilter), "{shown}: {said}");
            assert!(said.contains("column") || said.contains("longer than"), "{shown}: {said}");
            assert!(!said.contains(['\u{0}', '\u{1b}']), "{shown}: {said:?}");
        }
    }
    assert_eq!(code(client.describe_group("refused").await), Some(ErrorCode::UnknownGroup));
    is_well(server, &client).await;
}

#[tokio::test]
async fn an_unknown_group_is_named_as_such_in_all_that_can_be_asked_of_one() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 1).await else { return };
    let unknown = Some(ErrorCode::UnknownGroup);
    let options = GroupOptions { concurrency: Some(1), ..GroupOptions::default() };
    assert_eq!(code(client.describe_group("nobody").await), unknown);
    assert_eq!(code(client.set_group("nobody", SetGroupMode::Alter, &options).await), unknown);
    assert_eq!(code(client.delete_group("nobody", true).await), unknown);
    assert_eq!(code(client.reset_group("nobody", "t", GroupStart::Latest, false).await), unknown);
    let existing = || GroupConfig { create: None, ..group("nobody") };
    assert_eq!(refused(client.queue_consumer(existing(), forgetful()).await).0, unknown);
    assert_eq!(refused(client.group_consumer(existing(), by_hand()).await).0, unknown);
    let broadcast = client.broadcast(existing(), None, BroadcastStart::Newest, by_hand()).await;
    let (broadcast, said) = refused(broadcast);
    assert_eq!(broadcast, unknown);
    assert!(said.contains("create it first"), "{said}");
    assert_eq!(
        code(client.replay_dead_letters("%DLQ%nobody", 0, &[0], false).await),
        Some(ErrorCode::UnknownTopic)
    );

    // By number, and one that was removed while somebody consumed.
    let mut hand = Hand::join(&server, "hand", "gone", 1);
    publish(&client, "t", 1, 0..1).await;
    let lease = hand.receive(1, 1, Duration::from_secs(60))[0];
    client.delete_group("gone", true).await.unwrap();
    for group in [hand.group, 0, 4_000_000, u32::MAX] {
        let (member, generation) = (hand.member, 1);
        hand.group = group;
        hand.refuses(1, lease, ErrorCode::UnknownGroup);
        let receive =
            Receive { handle: 1, group, member, max_records: 1, max_bytes: 1, invisible_ms: 0, wait_ms: 0 };
        let beat = Heartbeat { group, member, generation, wait_ms: 0, positions: &[] };
        let leave = LeaveGroup { group, member, forget: false };
        for request in [Request::Receive(receive), Request::Heartbeat(beat), Request::LeaveGroup(leave)] {
            assert_eq!(hand.raw.error(&request), ErrorCode::UnknownGroup, "{request:?}");
        }
    }
    assert_eq!(client.list_groups().await.unwrap(), []);
    is_well(server, &client).await;
}

// -- names -------------------------------------------------------------------------------------------------

/// No names of topics, groups or instances.
fn hostile_names() -> Vec<String> {
    let names = [
        ".",
        "..",
        "/",
        "../x",
        "a/b",
        "a b",
        " ",
        "a\0b",
        "a\nb",
        "\x1b[31mred\x1b[0m",
        "\u{7f}",
        "\u{202e}",
        "ä",
        "*",
        "%s'; DROP",
        "a\\b",
        "a:b",
    ];
    names.map(str::to_owned).into_iter().chain([128, 255, 256, 70_000].map(|len| "x".repeat(len))).collect()
}

fn says_why(name: &str, error: &dyn Display) {
    let said = error.to_string();
    let shown = &name[..name.len().min(20)];
    let helps = ["is empty", "longer than 127", "character at byte", "are not names"];
    assert!(helps.iter().any(|words| said.contains(words)), "{shown:?}: {said}");
    assert!(!said.contains(char::is_control), "{shown:?}: {said:?}");
}

#[tokio::test]
async fn hostile_names_of_groups_topics_and_instances_are_refused_with_the_reason() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 1).await else { return };
    let mut raw = Raw::greeted(server.address);
    let with = |name: &str| GroupConfig { group: name.to_owned(), ..group("g") };
    for name in hostile_names().iter().map(String::as_str).chain([""]) {
        let queue = client.queue_consumer(with(name), forgetful()).await.err().unwrap();
        let stream = client.group_consumer(with(name), by_hand()).await.err().unwrap();
        let topic = GroupConfig { subscriptions: vec![(name.to_owned(), "*".to_owned())], ..group("g") };
        let topic = client.queue_consumer(topic, forgetful()).await.err().unwrap();
        for error in [queue, stream, topic] {
            says_why(name, &error);
        }
        let options = GroupOptions::default();
        let checker = |_| async { Resolution::Unknown };
        let config = TransactionConfig::default();
        let producer = client.transactional_producer(name, config, checker).await.err().unwrap();
        let set = client.set_group(name, SetGroupMode::Create, &options).await.err().unwrap();
        let create = client.create_topic(name, 1, true).await.err().unwrap();
        for error in [producer, set, create] {
            says_why(name, &error);
        }
        if !name.is_empty() {
            // Two that differ behind the end of what is kept would be one.
            let instance = client.broadcast(group("b"), Some(name), BroadcastStart::Resume, by_hand()).await;
            says_why(name, &instance.err().unwrap());
        }
        if name.len() < 256 {
            // One that does not use the library.
            let session = 60_000;
            let (code, said) =
                join(&mut raw, GroupMode::Stream, (name, "raw", ""), 0, session).err().unwrap();
            assert_eq!(code, ErrorCode::InvalidGroupName, "{name:?}");
            says_why(name, &said);
            if !name.is_empty() {
                let named = ("b", "raw", name);
                let (code, said) = join(&mut raw, GroupMode::Broadcast, named, 0, session).err().unwrap();
                assert_eq!(code, ErrorCode::InvalidGroupName, "{name:?}: {said}");
                assert!(said.contains("instance"), "{said}");
            }
        }
    }
    // The longest one that leaves room for the topic of dead letters, and one more.
    let longest = "g".repeat(122);
    client.queue_consumer(with(&longest), forgetful()).await.unwrap().close().await;
    let (code, said) = refused(client.queue_consumer(with(&format!("{longest}g")), forgetful()).await);
    assert!(code == Some(ErrorCode::InvalidGroupName) && said.contains("at most 122"), "{said}");

    // Bytes that are no text, where the wire has text.
    let mut message = Vec::new();
    let list: ItemsBuf = std::iter::once(Subscription { topic: "t", filter: "*" }).collect();
    let request = Request::JoinGroup(JoinGroup {
        group: "GROUP",
        mode: GroupMode::Broadcast,
        member: 0,
        name: "MEMBER",
        instance: "INSTANCE",
        session_ms: 0,
        create: true,
        settings: GroupSettings::default(),
        subscriptions: list.items(),
    });
    request.encode(9_000, &mut message);
    for (number, word) in [&b"GROUP"[..], b"MEMBER", b"INSTANCE"].into_iter().enumerate() {
        let mut message = message.clone();
        let at = message.windows(word.len()).position(|part| part == word).unwrap();
        message[at + 1] = 0xff;
        message[8] = number as u8;
        let correlation = u64::from_le_bytes(message[8..16].try_into().unwrap());
        assert!(at > HEADER_SIZE);
        reseal(&mut message);
        raw.send(&message);
        assert_eq!(raw.answer(correlation).error(), Some(ErrorCode::MalformedRequest));
        raw.lives();
    }
    let groups: Vec<_> = client.list_groups().await.unwrap().into_iter().map(|group| group.name).collect();
    assert_eq!(groups, [longest.into()], "nothing else was made");
    is_well(server, &client).await;
}

#[tokio::test]
async fn keys_and_tags_are_any_bytes_up_to_their_length_and_filters_meet_them_unharmed() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 1).await else { return };
    let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
    let refused = [
        (RecordBuf::new("0").key(vec![b'k'; 4_097]), "the key is longer than 4096"),
        (RecordBuf::new("0").tag(vec![b't'; 256]), "the tag is longer than 255"),
        (RecordBuf::new("0").property("p", vec![0; 16_384]), "16384 bytes"),
        ((0..129).fold(RecordBuf::new("0"), |record, _| record.property("p", "v")), "128 properties"),
    ];
    for (record, words) in refused {
        let said = producer.send(record, None).await.err().unwrap().to_string();
        assert!(said.contains(words) && said.contains("make the record smaller"), "{said}");
    }
    let hostile: [&[u8]; 6] = [b"", b"\0", b"\xff\xfe", b"\x1b[31m", b"a || b", b"'; DROP"];
    let long = vec![0xff; 255];
    for bytes in hostile.iter().copied().chain([&long[..]]) {
        let record = RecordBuf::new("0").key(bytes.to_vec()).tag(bytes.to_vec());
        producer.send(record.property(bytes.to_vec(), bytes.to_vec()), None).await.unwrap().await.unwrap();
    }
    producer.send(RecordBuf::new("7").tag("a").property("a", "5"), None).await.unwrap().await.unwrap();
    let mut all = client.consumer("t", ConsumerConfig::default()).await.unwrap();
    for bytes in hostile.iter().copied().chain([&long[..]]) {
        let record = timeout(SOON, all.next()).await.unwrap().unwrap();
        assert_eq!(record.key.as_deref().unwrap_or_default(), bytes, "exactly as it was given");
        assert_eq!(record.tag.as_deref().unwrap_or_default(), bytes);
        assert_eq!(record.properties.get(bytes), Some(bytes));
    }
    for (name, filter) in
        [("tags", "a || b"), ("sql", "a = '5' OR a = 5"), ("both", "TAGS = 'a' AND a IS NOT NULL")]
    {
        let config = GroupConfig { subscriptions: Vec::new(), ..group(name) }.filtered("t", filter);
        let mut consumer = client.queue_consumer(config, forgetful()).await.unwrap();
        let record = next(&mut consumer).await;
        assert_eq!(number(&record.body), 7, "{filter}");
        consumer.ack(&record).await.unwrap();
        consumer.close().await;
        assert_eq!(client.describe_group(name).await.unwrap().group.lag_records, Some(0), "{filter}");
    }
    is_well(server, &client).await;
}

#[tokio::test]
async fn a_topic_named_as_dead_letters_are_is_no_place_to_forge_or_to_lose_one() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 2).await else { return };
    publish(&client, "t", 2, 0..2).await;
    let options = GroupOptions { max_attempts: Some(1), ..group("g").create.unwrap() };
    let config = || GroupConfig { create: Some(options.clone()), ..group("g") };
    // Somebody was there first, with too few partitions for the shards: the group says so instead of keeping its
    // dead letters for ever.
    client.create_topic("%DLQ%g", 1, false).await.unwrap();
    let (code, said) = refused(client.queue_consumer(config(), forgetful()).await);
    assert!(said.contains("%DLQ%g") && said.contains("dead letters"), "{code:?} {said}");
    client.delete_topic("%DLQ%g").await.unwrap();

    let mut consumer = client.queue_consumer(config(), forgetful()).await.unwrap();
    for _ in 0..2 {
        let record = next(&mut consumer).await;
        assert_eq!(consumer.retry(&record).await.unwrap(), SettleOutcome::DeadLetter);
    }
    // What was published there is a record, and no dead letter.
    let forger = client.producer("%DLQ%g", ProducerConfig::default()).await.unwrap();
    let forged = forger.send(RecordBuf::new("7"), Some(0)).await.unwrap().await.unwrap();
    let outcomes = client.replay_dead_letters("%DLQ%g", 0, &[forged.offset, 1_000], false).await.unwrap();
    for outcome in outcomes {
        let ringmq_client::ReplayOutcome::Refused(refused) = outcome else { panic!("{outcome:?}") };
        assert_eq!(refused.code(), Some(ErrorCode::NotADeadLetter));
    }
    let described = client.describe_topic("%DLQ%g").await.unwrap();
    let ends: Vec<u64> = described.partitions.iter().map(|partition| partition.visible_end).collect();
    assert_eq!(ends, [2, 1], "one letter of each shard, and the forged one");
    is_well(server, &client).await;
}

// -- transactions and delays -------------------------------------------------------------------------------

#[tokio::test]
async fn a_transaction_of_another_producer_group_cannot_be_ended() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 2).await else { return };
    let checker = |_| async { Resolution::Unknown };
    let producer =
        client.transactional_producer("payments", TransactionConfig::default(), checker).await.unwrap();
    let transaction = producer.begin();
    transaction.send("t", RecordBuf::new("1"), Some(0)).await.unwrap().await.unwrap();
    transaction.send("t", RecordBuf::new("2"), Some(1)).await.unwrap().await.unwrap();
    let id = transaction.id().unwrap();
    let end = |raw: &mut Raw, txn: u128, group: &str, resolution, source| {
        let (halves, positions, attempt) = (2, 0, u16::from(source == EndSource::Check));
        let end = EndTransaction { txn, resolution, source, group, halves, positions, attempt };
        let message = raw.ask(&Request::EndTransaction(end));
        match message.response() {
            Response::Ended(_) => Ok(()),
            Response::Error(body) => Err((body.error_code().unwrap(), body.message.to_owned())),
            other => panic!("{other:?}"),
        }
    };
    for address in [server.address, server.shard(1)] {
        let mut raw = Raw::greeted(address);
        for resolution in [TransactionEnd::Commit, TransactionEnd::Abort] {
            for source in [EndSource::Producer, EndSource::Check, EndSource::Operator] {
                let (code, said) = end(&mut raw, id.0, "thieves", resolution, source).unwrap_err();
                assert_eq!(code, ErrorCode::NotPermitted, "{resolution:?} {source:?}: {said}");
                assert!(said.contains("'payments'"), "{said}");
            }
            for invented in [1, id.0 ^ 1 << 64, u128::MAX] {
                let (code, _) =
                    end(&mut raw, invented, "payments", resolution, EndSource::Producer).unwrap_err();
                assert_eq!(code, ErrorCode::UnknownTransaction, "{invented:#x}");
            }
        }
    }
    assert_eq!(code(client.show_transaction(TransactionId(1)).await), Some(ErrorCode::UnknownTransaction));
    let (shown, _) = client.show_transaction(id).await.unwrap();
    assert_eq!((shown.state, shown.halves), (TransactionState::Open, 2), "nobody has touched it");
    let ends = async || -> u64 {
        let described = client.describe_topic("t").await.unwrap();
        described.partitions.iter().map(|partition| partition.visible_end).sum()
    };
    assert_eq!(ends().await, 0);
    assert_eq!(transaction.commit().await.unwrap().halves, 2);
    let mut raw = Raw::greeted(server.address);
    // Its end is nobody else's either; its own group hears what became of it.
    let foreign = end(&mut raw, id.0, "thieves", TransactionEnd::Commit, EndSource::Producer).unwrap_err();
    assert_eq!(foreign.0, ErrorCode::NotPermitted);
    assert_eq!(end(&mut raw, id.0, "payments", TransactionEnd::Commit, EndSource::Producer), Ok(()));
    let (code, said) =
        end(&mut raw, id.0, "payments", TransactionEnd::Abort, EndSource::Producer).unwrap_err();
    assert!(code == ErrorCode::TransactionResolved && said.contains("commit"), "{said}");
    let deadline = Instant::now() + SOON;
    while ends().await < 2 {
        assert!(Instant::now() < deadline, "committed, and not visible");
        sleep(Duration::from_millis(10)).await;
    }
    is_well(server, &client).await;
}

#[tokio::test]
async fn a_delay_beyond_the_limit_is_refused_and_changes_nothing() {
    let dir = scratch();
    let Some((server, client)) = serve(&dir, 1).await else { return };
    client.create_topic("brief", 1, false).await.unwrap();
    let limit = TopicSettings { delay_max_ms: Some(60_000), ..TopicSettings::default() };
    client.alter_topic("brief", false, limit).await.unwrap();
    let day = Duration::from_secs(86_400);
    let cases: [(&str, &[Duration], &[Duration]); 2] = [
        ("brief", &[Duration::from_secs(30)], &[Duration::from_secs(70), day, Duration::MAX]),
        ("t", &[day, 39 * day], &[366 * day, 100_000 * day, Duration::MAX]),
    ];
    let mut pending = 0;
    for (topic, fine, beyond) in cases {
        let producer = client.producer(topic, ProducerConfig::default()).await.unwrap();
        let send = async |delay| match producer.send_after(RecordBuf::new("1"), None, delay).await {
            Ok(sent) => sent.await,
            Err(error) => Err(error),
        };
        for delay in beyond {
            let error = send(*delay).await.err().unwrap();
            let SendError::Refused(refused) = &error else { panic!("{error:?}") };
            assert_eq!(refused.code(), Some(ErrorCode::DelayTooLong), "{topic} {delay:?}");
            let said = error.to_string();
            assert!(said.contains("not stored") && said.contains("longer than the topic allows"), "{said}");
        }
        for delay in fine {
            let handle = send(*delay).await.unwrap().handle;
            pending += 1;
            let due_ms = i64::MAX / 2;
            assert_eq!(code(client.reschedule_timer(handle, due_ms).await), Some(ErrorCode::DelayTooLong));
        }
        // In a transaction nothing of it is done.
        let checker = |_| async { Resolution::Unknown };
        let config = TransactionConfig::default();
        let transactional = client.transactional_producer("p", config, checker).await.unwrap();
        let transaction = transactional.begin();
        transaction.send(topic, RecordBuf::new("2"), None).await.unwrap().await.unwrap();
        let late = transaction.send_at(topic, RecordBuf::new("3"), None, i64::MAX / 2).await.unwrap();
        assert!(
            matches!(late.await, Err(SendError::Refused(refused)) if refused.code() == Some(ErrorCode::DelayTooLong))
        );
        let id = transaction.id().unwrap();
        let error = transaction.commit().await.err().unwrap();
        assert!(matches!(&error, TransactionError::Send(_)), "{error:?}");
        assert!(error.to_string().contains("rolled back"), "{error}");
        let deadline = Instant::now() + SOON;
        while client.show_transaction(id).await.unwrap().0.state != TransactionState::Aborted {
            assert!(Instant::now() < deadline, "it is not rolled back");
            sleep(Duration::from_millis(10)).await;
        }
    }
    let timers = client.list_timers("", None, 0).await.unwrap();
    assert_eq!((timers.timers.len(), timers.pending), (pending, Some(pending as u64)));
    let forgotten = ringmq_client::PendingHandle { lsn: 1 << 40, ..timers.timers[0].handle };
    assert_eq!(code(client.cancel_timer(forgotten).await), Some(ErrorCode::UnknownTimer));
    assert_eq!(client.describe_topic("t").await.unwrap().partitions[0].visible_end, 0);
    is_well(server, &client).await;
}
