//! The tokio shell against a server in memory: real sockets, faults on request.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

#[allow(dead_code)] // Each test binary uses its part of the fake.
mod fake;

use fake::Server;
use ringmq_client::{
    Client, ClientConfig, ClientError, Codec, ConsumeError, ConsumerConfig, ErrorCode, Halt, OffsetSpec,
    OutOfRange, Partitions, ProducerConfig, RecordBuf, SendError, Start,
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

async fn client(server: &Server) -> Client {
    Client::connect(ClientConfig::new(&server.address)).await.unwrap()
}

fn earliest() -> ConsumerConfig {
    ConsumerConfig::default()
}

#[tokio::test]
async fn topics_are_made_found_described_and_removed() {
    let server = Server::start().await;
    let client = client(&server).await;
    assert_eq!(client.server().version, "fake");
    client.ping().await.unwrap();
    for name in ["a", "b", "c", "d", "e"] {
        assert_eq!(client.create_topic(name, 5, false).await.unwrap().partitions, 5);
    }
    assert!(matches!(client.create_topic("a", 1, false).await, Err(ClientError::Refused(refused))
        if refused.code() == Some(ErrorCode::TopicExists)));
    assert_eq!(client.create_topic("a", 1, true).await.unwrap().partitions, 5);
    let names: Vec<_> =
        client.list_topics().await.unwrap().into_iter().map(|topic| topic.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    let described = client.describe_topic("c").await.unwrap();
    assert_eq!((described.partitions.len(), described.partitions[4].bytes), (5, None));
    client.delete_topic("c").await.unwrap();
    let found = client.metadata(&["b", "c"], false).await.unwrap();
    assert!(found[0].is_ok() && found[1].is_err());
    assert!(matches!(client.topic("c", false).await, Err(ClientError::Refused(_))));
    assert_eq!(client.topic("c", true).await.unwrap().partitions, 1);
    assert!(matches!(client.topic("no/name", true).await, Err(ClientError::Topic(_))));
    assert_eq!(client.list_offsets("a", 4, OffsetSpec::Latest).await.unwrap().offset, 0);
    assert!(
        matches!(client.list_offsets("a", 5, OffsetSpec::Latest).await, Err(ClientError::Refused(refused))
        if refused.code() == Some(ErrorCode::UnknownPartition))
    );
}

#[tokio::test]
async fn what_is_sent_is_read_in_every_codec() {
    let server = Server::start().await;
    let client = client(&server).await;
    for (name, codec) in [("none", Codec::None), ("lz4", Codec::Lz4), ("zstd", Codec::Zstd)] {
        client.create_topic(name, 4, false).await.unwrap();
        let config = ProducerConfig { codec, linger: Duration::from_millis(1), ..ProducerConfig::default() };
        let producer = client.producer(name, config).await.unwrap();
        let mut futures = Vec::new();
        for number in 0..2_000u32 {
            let record =
                RecordBuf::new(format!("body {number}")).key(format!("key {}", number % 17)).tag("t");
            futures.push(producer.send(record.property("n", number.to_string()), None).await.unwrap());
        }
        let mut sent = BTreeMap::new();
        for (number, future) in futures.into_iter().enumerate() {
            let ack = future.await.unwrap();
            assert!(!ack.duplicate);
            assert!(sent.insert((ack.partition, ack.offset), number).is_none());
        }
        producer.close().await.unwrap();
        let mut consumer = client.consumer(name, earliest()).await.unwrap();
        let ends = consumer.ends().await.unwrap();
        assert_eq!(ends.values().sum::<u64>(), 2_000);
        let mut next = BTreeMap::new();
        while !consumer.reached(&ends) {
            let record = consumer.next().await.unwrap();
            let expected = next.entry(record.partition).or_insert(0);
            assert_eq!(record.offset, *expected);
            *expected += 1;
            let number = sent.remove(&(record.partition, record.offset)).unwrap();
            assert_eq!(record.body, format!("body {number}"));
            assert_eq!(record.key.unwrap(), format!("key {}", number % 17));
            assert_eq!(record.properties.get(b"n"), Some(number.to_string().as_bytes()));
        }
        assert!(sent.is_empty());
    }
}

#[tokio::test]
async fn a_lost_answer_doubles_nothing() {
    let server = Server::start().await;
    let client = client(&server).await;
    let producer = client
        .producer("t", ProducerConfig { auto_create: true, ..ProducerConfig::default() })
        .await
        .unwrap();
    producer.send(RecordBuf::new("0"), None).await.unwrap().await.unwrap();
    server.faults.lose_answers.store(1, SeqCst);
    let ack = producer.send(RecordBuf::new("1"), None).await.unwrap().await.unwrap();
    assert_eq!((ack.offset, ack.duplicate), (1, true));
    let ack = producer.send(RecordBuf::new("2"), None).await.unwrap().await.unwrap();
    assert_eq!((ack.offset, ack.duplicate), (2, false));
    assert_eq!(server.records("t", 0), 3);
}

#[tokio::test]
async fn a_killed_server_loses_doubles_and_reorders_nothing() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 3, false).await.unwrap();
    let config = ProducerConfig { batch_bytes: 500, ..ProducerConfig::default() };
    let producer = client.producer("t", config).await.unwrap();
    let mut consumer =
        client.consumer("t", ConsumerConfig { credit_bytes: 4_000, ..earliest() }).await.unwrap();
    let publish = async {
        let mut futures = Vec::new();
        for number in 0..3_000u32 {
            futures.push(producer.send(RecordBuf::new(number.to_string()), Some(number % 3)).await.unwrap());
            if number % 50 == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        for (number, future) in futures.into_iter().enumerate() {
            let ack = future.await.unwrap();
            assert_eq!((ack.partition, ack.offset), (number as u32 % 3, number as u64 / 3));
        }
    };
    let disturb = async {
        for round in 0..8 {
            tokio::time::sleep(Duration::from_millis(12)).await;
            match round % 4 {
                0 => server.faults.lose_answers.store(2, SeqCst),
                1 => server.say_goodbye(),
                2 => server.faults.refuse.lock().unwrap().extend([ErrorCode::DiskFull, ErrorCode::Throttled]),
                _ => {
                    server.kill();
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    server.restart().await;
                }
            }
        }
    };
    let consume = async {
        let mut next = [0u64; 3];
        while next.iter().sum::<u64>() < 3_000 {
            let record = consumer.next().await.unwrap();
            let partition = record.partition as usize;
            assert_eq!(record.offset, next[partition]);
            assert_eq!(record.body, (next[partition] * 3 + partition as u64).to_string());
            next[partition] += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(publish, disturb, consume) })
        .await
        .unwrap();
    assert!((0..3).all(|partition| server.records("t", partition) == 1_000));
}

#[tokio::test]
async fn a_producer_goes_on_where_another_stopped() {
    let server = Server::start().await;
    let client = client(&server).await;
    let first = client
        .producer("t", ProducerConfig { auto_create: true, ..ProducerConfig::default() })
        .await
        .unwrap();
    let before = first.identity();
    first.send(RecordBuf::new("a"), None).await.unwrap().await.unwrap();
    let after = first.close().await.unwrap();
    // It had not noted that "a" was acknowledged, and sends it again.
    let config = |identity| ProducerConfig { identity: Some(identity), ..ProducerConfig::default() };
    let again = client.producer("t", config(before)).await.unwrap();
    assert!(again.send(RecordBuf::new("a"), None).await.unwrap().await.unwrap().duplicate);
    let on = client.producer("t", config(after)).await.unwrap();
    assert_eq!(on.send(RecordBuf::new("b"), None).await.unwrap().await.unwrap().offset, 1);
}

#[tokio::test]
async fn failures_are_told_and_pass() {
    let server = Server::start().await;
    let client = client(&server).await;
    let producer = client
        .producer("t", ProducerConfig { auto_create: true, ..ProducerConfig::default() })
        .await
        .unwrap();
    server.faults.refuse.lock().unwrap().push_back(ErrorCode::NotPermitted);
    let refused = producer.send(RecordBuf::new("x"), None).await.unwrap().await;
    assert!(
        matches!(refused, Err(SendError::Refused(refused)) if refused.code() == Some(ErrorCode::NotPermitted))
    );
    assert!(matches!(producer.flush().await, Err(SendError::Refused(_))));
    producer.flush().await.unwrap();
    assert_eq!(producer.send(RecordBuf::new("y"), None).await.unwrap().await.unwrap().offset, 0);
    let large = producer.send(RecordBuf::new(vec![0; 2 << 20]), None).await;
    assert!(matches!(large, Err(SendError::Record(_))));
    assert!(matches!(
        producer.send(RecordBuf::new("z"), Some(1)).await,
        Err(SendError::UnknownPartition { .. })
    ));

    server.kill();
    let short =
        ClientConfig { request_timeout: Duration::from_millis(200), ..ClientConfig::new(&server.address) };
    assert!(matches!(Client::connect(short).await, Err(ClientError::Connect { .. })));
    assert!(matches!(Client::connect(ClientConfig::new("nowhere")).await, Err(ClientError::Address(_))));
}

#[tokio::test]
async fn a_server_that_stays_away_ends_in_a_typed_error() {
    let server = Server::start().await;
    let client = client(&server).await;
    let short = Some(Duration::from_millis(300));
    let producer = client
        .producer("t", ProducerConfig { auto_create: true, retry_for: short, ..ProducerConfig::default() })
        .await
        .unwrap();
    let mut consumer = client.consumer("t", ConsumerConfig { retry_for: short, ..earliest() }).await.unwrap();
    consumer.ends().await.unwrap();
    server.kill();
    let failed = producer.send(RecordBuf::new("x"), None).await.unwrap().await;
    assert!(matches!(failed, Err(SendError::Expired(_) | SendError::OutcomeUnknown(_))), "{failed:?}");
    assert!(matches!(consumer.next().await, Err(ConsumeError::Halted { halt: Halt::Unreachable, .. })));
    assert_eq!(consumer.next().await, Err(ConsumeError::AllHalted));
    server.restart().await;
    assert_eq!(producer.send(RecordBuf::new("y"), None).await.unwrap().await.unwrap().offset, 0);
    assert!(consumer.seek(0, 0));
    assert_eq!(consumer.next().await.unwrap().body, "y");
}

#[tokio::test]
async fn room_is_waited_for() {
    let server = Server::start().await;
    let client = client(&server).await;
    let config = ProducerConfig { auto_create: true, max_buffered_bytes: 2_000, ..ProducerConfig::default() };
    let producer = client.producer("t", config).await.unwrap();
    let body = vec![1u8; 900];
    server.kill();
    let kept = producer.send(RecordBuf::new(body.clone()), None).await.unwrap();
    drop(producer.send(RecordBuf::new(body.clone()), None).await.unwrap());
    assert!(matches!(producer.try_send(&RecordBuf::new(body.clone()), None), Err(SendError::Full)));
    let third = producer.send(RecordBuf::new(body.clone()), None);
    tokio::pin!(third);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut third).await.is_err());
    server.restart().await;
    assert_eq!(kept.await.unwrap().offset, 0);
    assert_eq!(third.await.unwrap().await.unwrap().offset, 2);
    for _ in 0..200 {
        drop(producer.send(RecordBuf::new(body.clone()), None).await.unwrap());
        assert!(producer.buffered() <= 2_000);
    }
    producer.flush().await.unwrap();
    assert_eq!(server.records("t", 0), 203);
}

#[tokio::test]
async fn starts_ends_positions_and_partitions() {
    let server = Server::start().await;
    let client = client(&server).await;
    let topic = client.create_topic("t", 3, false).await.unwrap();
    let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
    for number in 0..30u32 {
        drop(producer.send(RecordBuf::new(number.to_string()), Some(number % 3)).await.unwrap());
    }
    producer.flush().await.unwrap();
    let one = |start| ConsumerConfig { partitions: Partitions::Some(vec![1]), start, ..earliest() };
    for (start, expected) in [(Start::Earliest, 0), (Start::Offset(4), 4), (Start::TimeMs(6), 6)] {
        let mut consumer = client.consumer("t", one(start)).await.unwrap();
        let record = consumer.next().await.unwrap();
        assert_eq!((record.partition, record.offset), (1, expected));
        assert_eq!((consumer.position(1), consumer.position(0)), (Some(expected + 1), None));
        let rest = consumer.next_batch(100).await.unwrap();
        assert_eq!(rest.last().unwrap().offset, 9);
    }
    let mut consumer = client.consumer("t", one(Start::Latest)).await.unwrap();
    assert_eq!(consumer.ends().await.unwrap(), BTreeMap::from([(1, 10)]));
    assert_eq!(consumer.try_next().unwrap(), None);
    drop(producer.send(RecordBuf::new("new"), Some(1)).await.unwrap());
    assert_eq!(consumer.next().await.unwrap().body, "new");
    assert!(
        client
            .consumer("t", ConsumerConfig { partitions: Partitions::Some(vec![3]), ..earliest() })
            .await
            .is_err()
    );
    let fetched = client.fetch(&topic, 2, 5, 1, Duration::ZERO).await.unwrap();
    assert_eq!((fetched.records[0].offset, fetched.visible_end), (5, 10));
}

#[tokio::test]
async fn retention_that_overtakes_a_reader_is_told_or_followed() {
    let server = Server::start().await;
    let client = client(&server).await;
    let config = ProducerConfig { auto_create: true, batch_records: 1, ..ProducerConfig::default() };
    let producer = client.producer("t", config).await.unwrap();
    for number in 0..10 {
        drop(producer.send(RecordBuf::new(number.to_string()), None).await.unwrap());
    }
    producer.flush().await.unwrap();
    server.trim("t", 0, 4);
    let start = |out_of_range| ConsumerConfig { start: Start::Offset(1), out_of_range, ..earliest() };
    let mut consumer = client.consumer("t", start(OutOfRange::Fail)).await.unwrap();
    assert!(matches!(
        consumer.next().await,
        Err(ConsumeError::Halted { position: 1, halt: Halt::OutOfRange { .. }, .. })
    ));
    let mut consumer = client.consumer("t", start(OutOfRange::Earliest)).await.unwrap();
    assert_eq!(consumer.next().await.unwrap().offset, 4);
}

#[tokio::test]
async fn a_flipped_bit_on_the_way_is_read_again() {
    let server = Server::start().await;
    let client = client(&server).await;
    let producer = client
        .producer("t", ProducerConfig { auto_create: true, ..ProducerConfig::default() })
        .await
        .unwrap();
    producer.send(RecordBuf::new("whole"), None).await.unwrap().await.unwrap();
    server.faults.corrupt_pushes.store(2, SeqCst);
    let mut consumer = client.consumer("t", earliest()).await.unwrap();
    assert_eq!(consumer.next().await.unwrap().body, "whole");
    server.faults.corrupt_pushes.store(usize::MAX, SeqCst);
    let mut consumer = client.consumer("t", earliest()).await.unwrap();
    assert!(matches!(
        consumer.next().await,
        Err(ConsumeError::Halted { position: 0, halt: Halt::Received(_), .. })
    ));
}

#[tokio::test]
async fn each_shard_gets_one_connection() {
    let server = Server::start().await;
    let client = client(&server).await;
    client.create_topic("t", 8, false).await.unwrap();
    let producer = client.producer("t", ProducerConfig::default()).await.unwrap();
    let mut consumer = client.consumer("t", earliest()).await.unwrap();
    for number in 0..80u32 {
        drop(producer.send(RecordBuf::new(number.to_string()), Some(number % 8)).await.unwrap());
    }
    producer.flush().await.unwrap();
    for _ in 0..80 {
        consumer.next().await.unwrap();
    }
    // The base port and two shards.
    assert_eq!(server.faults.connections.load(SeqCst), 3);
}

#[tokio::test]
async fn what_the_api_gives_can_move_between_threads() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let server = Server::start().await;
    let client = is_send(Client::connect(ClientConfig::new(&server.address))).await.unwrap();
    let config = ProducerConfig { auto_create: true, ..ProducerConfig::default() };
    let producer = is_send(is_send(client.producer("t", config)).await.unwrap());
    let ack = is_send(producer.send(RecordBuf::new("x"), None)).await.unwrap();
    is_send(ack).await.unwrap();
    let mut consumer = is_send(is_send(client.consumer("t", earliest())).await.unwrap());
    is_send(consumer.next()).await.unwrap();
}
