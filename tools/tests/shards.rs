//! One, two and four shards, whatever the machine has: any connection reaches any partition.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{Launch, Raw, Server, frame, scratch};
use ringmq_protocol::{DescribeTopic, Fetch, Open, Request, Response, entries};
use std::collections::BTreeSet;

#[test]
fn the_base_port_reaches_every_partition() {
    for shards in [1, 2, 4] {
        let dir = scratch();
        let args = [&format!("--shards={shards}"), "--memory=256M"];
        let launch = Launch::new(&dir.path().join("data")).args(&args);
        let Some(server) = launch.ready() else { return };
        assert_eq!(server.ports.len(), shards);
        assert_eq!(server.ports.iter().collect::<BTreeSet<_>>().len(), shards);
        sixty_four_partitions(&server);
        command_line(&server);
        server.kill();
        let server = launch.ready().unwrap();
        let mut raw = Raw::greeted(server.address);
        for partition in 0..64 {
            raw.open(partition + 1, "t", partition);
            assert_eq!(raw.read_all(partition + 1).len(), 3, "{shards} shards, partition {partition}");
        }
        server.stop_cleanly();
    }
}

/// Written through the base port and read there, and through every other port.
fn sixty_four_partitions(server: &Server) {
    let mut base = Raw::greeted(server.address);
    base.create("t", 64);
    let ids: BTreeSet<_> =
        (0..64).map(|partition| base.open(partition + 1, "t", partition).partition).collect();
    assert_eq!(ids.len(), 64);
    let bodies: Vec<_> = (0..64).map(|partition| format!("of partition {partition}")).collect();
    let frames: Vec<_> = bodies.iter().map(|body| frame(&[body.as_bytes()])).collect();
    let slots: Vec<_> = (1..).zip(&frames).map(|(handle, frame)| (handle, &frame[..])).collect();
    for offset in 0..3 {
        let outcomes = base.produce(&slots).outcomes();
        assert_eq!(outcomes.len(), 64);
        for outcome in outcomes {
            assert!(outcome.is_stored() && outcome.base_offset.get() == offset, "{outcome:?}");
        }
    }
    for port in
        std::iter::once(server.address).chain((0..server.ports.len()).map(|shard| server.shard(shard)))
    {
        let mut raw = Raw::greeted(port);
        for (partition, body) in (0..64).zip(&bodies) {
            assert_eq!(raw.open(partition + 1, "t", partition).bounds.visible_end, 3);
            for (_, frame) in raw.read_all(partition + 1) {
                let found = String::from_utf8_lossy(&frame).contains(body.as_str());
                assert!(found, "port {port}, partition {partition}");
            }
        }
    }
}

fn command_line(server: &Server) {
    server.ok(&["topic", "create", "keyed", "--partitions", "64"], b"");
    let lines: String = (0..5000).map(|n| format!("key-{}:value {n}\n", n % 500)).collect();
    server.ok(&["pub", "keyed", "-K", ":"], lines.as_bytes());
    let found = server.ok(&["sub", "keyed", "--until", "end", "-f", "%p %k:%v\\n"], b"");
    let found = String::from_utf8(found).unwrap();
    let partitions: BTreeSet<_> = found.lines().map(|line| line.split_once(' ').unwrap().0).collect();
    assert!(partitions.len() > 32, "{} partitions were used", partitions.len());
    // Per key everything, in order.
    for key in 0..500 {
        let of_key = |line: &&str| line.starts_with(&format!("key-{key}:"));
        let given: Vec<_> = lines.lines().filter(of_key).collect();
        let read: Vec<_> = found.lines().map(|line| line.split_once(' ').unwrap().1).filter(of_key).collect();
        assert_eq!(given, read);
    }
}

#[test]
fn ten_thousand_partitions_on_one_connection() {
    const PARTITIONS: u32 = 10_000;
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data"));
    let Some(server) = launch.ready() else { return };
    let mut raw = Raw::greeted(server.address);
    raw.create("many", PARTITIONS);
    for first in (0..PARTITIONS).step_by(1000) {
        let opens: Vec<_> = (first..first + 1000)
            .map(|partition| {
                raw.tell(&Request::Open(Open { handle: partition + 1, topic: "many", partition }))
            })
            .collect();
        for correlation in opens {
            assert!(raw.answer(correlation).error().is_none());
        }
    }
    let body = vec![b'm'; 1000];
    let frame = frame(&[&body]);
    for round in 0..2 {
        let told: Vec<_> = (0..PARTITIONS)
            .step_by(100)
            .map(|first| {
                // A stride that is prime to the number, so that a request meets partitions from everywhere.
                let handles = (first..first + 100).map(|n| n * 7919 % PARTITIONS + 1);
                raw.tell_produce(&handles.map(|handle| (handle, &frame[..])).collect::<Vec<_>>())
            })
            .collect();
        let mut left: BTreeSet<u64> = told.into_iter().collect();
        while !left.is_empty() {
            let answer = raw.next().unwrap();
            assert!(left.remove(&answer.header.correlation()));
            for outcome in answer.outcomes() {
                assert!(outcome.is_stored() && outcome.base_offset.get() == round, "{outcome:?}");
            }
        }
    }
    ends_are_two(&mut raw, PARTITIONS);
    for partition in (0..PARTITIONS).step_by(997) {
        let fetch = Fetch { handle: partition + 1, offset: 1, max_bytes: 1 << 20, max_wait_ms: 0, group: 0 };
        let answer = raw.ask(&Request::Fetch(fetch));
        assert_eq!(entries(&answer.frames).count(), 1, "partition {partition}: {:?}", answer.response());
    }
    server.kill();
    let server = launch.ready().unwrap();
    ends_are_two(&mut Raw::greeted(server.address), PARTITIONS);
    server.stop_cleanly();
    let server = launch.ready().unwrap();
    ends_are_two(&mut Raw::greeted(server.address), PARTITIONS);
}

fn ends_are_two(raw: &mut Raw, partitions: u32) {
    let mut first = 0;
    while first < partitions {
        let describe = DescribeTopic { name: "many", first_partition: first, limit: 0 };
        let answer = raw.ask(&Request::DescribeTopic(describe));
        let Response::Described(page) = answer.response() else { panic!("{:?}", answer.response()) };
        assert_eq!(page.topic.partitions, partitions);
        for (partition, found) in (first..).zip(page.partitions) {
            assert_eq!(found.visible_end.get(), 2, "partition {partition}");
        }
        first += page.partitions.len() as u32;
    }
}

/// Frames for one partition are appended in the order in which they stand in the stream, also through a port that
/// forwards them, also when the log is busy, also when some are much larger than others.
#[test]
fn forwarded_frames_keep_their_order() {
    const FRAMES: u32 = 600;
    let dir = scratch();
    let Some(server) = Launch::new(&dir.path().join("data")).ready() else { return };
    for topic in ["a", "b"] {
        Raw::greeted(server.address).create(topic, 2);
        for shard in [0, 1] {
            let mut raw = Raw::greeted(server.shard(shard));
            raw.open(1, topic, 0);
            let large = vec![b'l'; 700_000];
            let mut told = Vec::new();
            for n in 0..FRAMES {
                let number = format!("number {n:05} through {shard};");
                let body = [number.as_bytes(), if n % 7 == 0 { &large[..] } else { b"" }].concat();
                let frame = frame(&[&body]);
                told.push(raw.tell_produce(&[(1, &frame)]));
                // At most half of what a connection may have in flight, so that nobody stops reading.
                if told.len() >= 60 {
                    assert!(raw.outcomes_of(told.len()).iter().all(|outcome| outcome.is_stored()));
                    told.clear();
                }
            }
            assert!(raw.outcomes_of(told.len()).iter().all(|outcome| outcome.is_stored()));
            let found = raw.read_all(1);
            let mine: Vec<u32> = found
                .iter()
                .filter_map(|(_, frame)| {
                    let text = String::from_utf8_lossy(&frame[64..200.min(frame.len())]).into_owned();
                    let (before, _) = text.split_once(&format!(" through {shard};"))?;
                    before[before.len() - 5..].parse().ok()
                })
                .collect();
            let sorted: Vec<u32> = (0..FRAMES).collect();
            let wrong = mine.iter().zip(&sorted).position(|(a, b)| a != b);
            assert_eq!(
                (wrong, mine.len()),
                (None, sorted.len()),
                "topic {topic} through shard {shard}: first in the wrong place"
            );
        }
    }
    server.stop_cleanly();
}
