//! `kill -9` under load, again and again on the same directory: what was acknowledged is there exactly once, in
//! order, byte for byte. It says nothing about the flush (a killed process loses no page cache): the simulator does.
//!
//! RINGMQ_TEST_KILLS: rounds (12). RINGMQ_TEST_LINES: lines of the large file (1,000,000).

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{
    Chance, Launch, Publisher, Raw, Reaped, VALUES, Values, client, eventually, free_ports, read_topic,
    scratch, values, verify,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap())
}

#[test]
fn acknowledged_lines_survive_kills() {
    let rounds = setting("RINGMQ_TEST_KILLS", 12);
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data")).port(free_ports(2));
    let Some(mut server) = launch.ready() else { return };
    let address = server.address;
    let mut raw = Raw::greeted(address);
    raw.create("one", 1);
    raw.create("four", 4);
    raw.create("keyed", 3);
    drop(raw);
    let start = |topic: &str, name: &str, args: &[&str]| {
        Publisher::start(address, topic, dir.path(), name, args, 300, true)
    };
    // Those that stay for all rounds, by topic.
    let lasting = [
        ("one", start("one", "a", &[])),
        ("four", start("four", "b", &["--partition=3"])),
        ("four", start("four", "c", &[])),
        ("keyed", start("keyed", "d", &["--key=k"])),
    ];
    let mut published: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    let follower = Follower::start(address, "four", dir.path());
    let mut chance = Chance::new();
    for round in 0..rounds {
        // One more that is killed itself in the middle.
        let name = format!("r{round}");
        let short = start("four", &name, &[]);
        let before: Vec<_> = lasting.iter().map(|(_, publisher)| publisher.acked()).collect();
        std::thread::sleep(Duration::from_millis(chance.below(400)));
        if round % 3 == 0 {
            published.entry("four").or_default().push(short.kill());
            end(server, round);
        } else {
            end(server, round);
            published.entry("four").or_default().push(short.kill());
        }
        // Sometimes a start is cut short, too.
        if round % 4 == 2 {
            drop(launch.ready());
        }
        server = launch.ready().unwrap();
        for ((topic, publisher), before) in lasting.iter().zip(before) {
            eventually(&format!("acknowledgements of {topic} go on"), || publisher.acked() > before);
        }
    }
    for (topic, publisher) in lasting {
        published.entry(topic).or_default().push(publisher.finish());
    }
    let mut followed = None;
    for (topic, published) in &published {
        let found = read_topic(&server, topic);
        let records: usize = found.values().map(|(_, values)| values.len()).sum();
        let acked: usize = published.iter().map(|one| one.acks.len()).sum();
        println!("{topic}: {acked} lines acknowledged, {records} found");
        assert!(found.values().all(|(first, _)| *first == 0));
        verify(&found, published);
        if *topic == "four" {
            followed = Some((records, found));
        }
    }
    let (records, found) = followed.unwrap();
    assert!(follower.finish(records) == found, "whoever read all the while has read the same");
    server.stop_cleanly();
}

/// Every third round ends in a drain, which answers what is in flight and exits with 0.
fn end(server: harness::Server, round: u64) {
    if round % 3 == 2 { server.stop_cleanly() } else { server.kill() }
}

/// `ringmq sub` from before the first kill to behind the last.
struct Follower {
    child: Reaped,
    path: std::path::PathBuf,
}

impl Follower {
    fn start(server: std::net::SocketAddr, topic: &str, dir: &Path) -> Self {
        let path = dir.join("followed");
        let child = client(server, &["sub", topic, "--retry-for", "10m", "-f", VALUES])
            .stdout(File::create(&path).unwrap())
            .spawn()
            .unwrap();
        Self { child: Reaped(child), path }
    }

    fn read(&self) -> String {
        String::from_utf8(std::fs::read(&self.path).unwrap()).unwrap()
    }

    fn finish(mut self, records: usize) -> Values {
        eventually("the follower has everything", || {
            assert!(self.child.0.try_wait().unwrap().is_none(), "the follower ended");
            self.read().lines().count() >= records
        });
        self.child.end();
        // Partitions come interleaved.
        values(&self.read())
    }
}

/// Lines of every kind, the last one without its newline.
fn write_large(path: &Path, lines: u64) {
    let mut chance = Chance::new();
    let mut out = BufWriter::new(File::create(path).unwrap());
    for n in 1..=lines {
        match n % 10 {
            0 => {}
            1 => write!(out, "\r\n\r{n}\r").map(|()| ()).unwrap(),
            2 => out.write_all(b"\0\0nul\0").unwrap(),
            3 => {
                let junk: Vec<u8> = (0..chance.below(80)).map(|_| chance.below(256) as u8).collect();
                let junk: Vec<u8> = junk.into_iter().filter(|byte| *byte != b'\n').collect();
                out.write_all(&junk).unwrap();
            }
            4 => out.write_all(b"\xff\xfe\x00 \xc3\x28").unwrap(),
            5 if n % 10_000 == 5 => out.write_all(&vec![b'L'; 200_000]).unwrap(),
            _ => write!(out, "{n} a line like most of them").unwrap(),
        }
        if n < lines {
            out.write_all(b"\n").unwrap();
        }
    }
    out.write_all(b" end").unwrap();
    out.flush().unwrap();
}

/// A large file through `pub` and back through `sub`, with the server killed in the middle.
#[test]
fn a_large_file_comes_back_byte_for_byte() {
    let lines = setting("RINGMQ_TEST_LINES", 1_000_000);
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data")).args(&["--segment-size=32M"]).port(free_ports(2));
    let Some(server) = launch.ready() else { return };
    let address = server.address;
    let (file, acks, copy) = (dir.path().join("file"), dir.path().join("acks"), dir.path().join("copy"));
    write_large(&file, lines);
    let mut publisher = client(address, &["pub", "t", "--acks-to"])
        .arg(&acks)
        .stdin(File::open(&file).unwrap())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let size = || std::fs::metadata(&acks).map_or(0, |file| file.len());
    let mut server = Some(server);
    // "0, 500000\n" is 10 bytes.
    for share in [3, 2] {
        eventually("a part of the file is acknowledged", || size() > lines * 9 / (2 * share));
        if let Some(server) = server.take() {
            server.kill();
        }
        server = Some(launch.ready().unwrap());
    }
    assert!(harness::wait(&mut publisher).success());
    assert_eq!(std::fs::read_to_string(&acks).unwrap().lines().count() as u64, file_lines(&file));
    let server = server.unwrap();
    let mut reader = server.client(&["sub", "t", "--from", "earliest", "--until", "end"]);
    assert!(reader.stdout(File::create(&copy).unwrap()).status().unwrap().success());
    let mut expected = std::fs::read(&file).unwrap();
    expected.push(b'\n');
    let found = std::fs::read(&copy).unwrap();
    let differs = expected.iter().zip(&found).position(|(a, b)| a != b);
    assert_eq!((differs, expected.len()), (None, found.len()), "first difference, length");
    server.stop_cleanly();
}

fn file_lines(path: &Path) -> u64 {
    std::fs::read(path).unwrap().iter().filter(|byte| **byte == b'\n').count() as u64 + 1
}
