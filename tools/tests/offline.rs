//! A data directory in an operator's hands: quarantine of a damaged range, and measuring the durability call anew.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{Launch, Raw, client, scratch};
use ringmq_format::group::GroupHeader;
use ringmq_format::segment::{FIRST_GROUP, SegmentFacts};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const DAMAGED_SHARD: i32 = 14;

fn ringmq(args: &[&str], data: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringmq")).args(args).arg(data).stdin(Stdio::null()).output().unwrap()
}

fn objects(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every file of the directory and its bytes, but for zeros at the end.
fn image(data: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut directories = vec![data.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => directories.push(entry.path()),
                false => files.push((entry.path(), std::fs::read(entry.path()).unwrap())),
            }
        }
    }
    files.sort();
    files
}

/// Positions and headers of the groups of a segment file.
fn groups(bytes: &[u8]) -> Vec<(u64, GroupHeader)> {
    let facts = SegmentFacts::parse(bytes).unwrap();
    let (mut found, mut position) = (Vec::new(), FIRST_GROUP);
    while let Some(rest) = bytes.get(position as usize..)
        && let Ok(header) = GroupHeader::parse(rest, facts.incarnation, facts.seq, facts.base.plus(position))
    {
        found.push((position, *header));
        position += header.total() as u64;
    }
    found
}

/// All records of a topic with one partition, and the offsets that answered `Damaged`.
fn read_around(server: &harness::Server, topic: &str) -> (Vec<String>, Vec<(u64, u64)>) {
    let (mut lines, mut damaged, mut from) = (Vec::new(), Vec::new(), 0);
    loop {
        let from_here = format!("--from={from}");
        let output = client(server.address, &["sub", topic, "--until=end", &from_here]).output().unwrap();
        lines.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return (lines, damaged);
        }
        assert_eq!(output.status.code(), Some(3), "{said}");
        let (_, range) = said.split_once("offsets ").unwrap();
        let mut numbers =
            range.split(" are damaged").next().unwrap().split(" to ").map(|n| n.parse().unwrap());
        let range: (u64, u64) = (numbers.next().unwrap(), numbers.next().unwrap());
        from = range.1 + 1;
        damaged.push(range);
    }
}

#[test]
fn a_damaged_range_is_set_aside_and_everything_else_is_served() {
    let dir = scratch();
    let data = dir.path().join("data");
    let launch = Launch::new(&data).args(&["--shards=1"]);
    let Some(server) = launch.ready() else { return };
    let mut raw = Raw::greeted(server.address);
    raw.create("one", 1);
    raw.create("two", 1);
    raw.open(1, "one", 0);
    raw.open(2, "two", 0);
    raw.create("three", 1);
    raw.open(3, "three", 0);
    // Of this one nothing is behind the damage.
    raw.produce(&[(3, &harness::frame(&[b"three 0", b"three 1"]))]);
    for number in 0..40u32 {
        // Each waits for its answer, so each lies in a group of its own.
        raw.produce(&[(1, &harness::frame(&[format!("one {number}").as_bytes()]))]);
        raw.produce(&[(2, &harness::frame(&[format!("two {number}").as_bytes()]))]);
    }
    // In use: refused, and the holder is named.
    let refused = ringmq(&["data", "quarantine"], &data);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("in use") && said.contains(&server.pid().to_string()), "{said}");
    drop(raw);
    server.kill();

    // The header of a group in the middle, which later groups witness.
    let path = data.join("shard-00/log/000.seg");
    let bytes = std::fs::read(&path).unwrap();
    let with_frames: Vec<_> =
        groups(&bytes).into_iter().filter(|(_, header)| header.frames.get() == 1).collect();
    let (position, header) = with_frames[40];
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[bytes[position as usize + 20] ^ 0x10], position + 20).unwrap();
    file.sync_all().unwrap();

    let ended = launch.refused().unwrap();
    assert_eq!(ended.code, Some(DAMAGED_SHARD));
    let before = image(&data);
    let looked = ringmq(&["data", "quarantine", "--json"], &data);
    assert_eq!(looked.status.code(), Some(3), "{}", String::from_utf8_lossy(&looked.stderr));
    assert!(image(&data) == before, "a dry run changes nothing");
    let found = objects(&looked);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0]["shard"].as_u64(), found[0]["row"].as_str()), (Some(0), Some("B")));
    assert_eq!(found[0]["position"], position);
    assert_eq!(found[0]["bytes"], header.total() as u64);
    // The frame's own header is intact: it can be told whose record is lost.
    assert_eq!(found[0]["recognised_partitions"][0]["records"], 1);

    let done = ringmq(&["data", "quarantine", "--yes"], &data);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("Next: start the server"));
    let again = ringmq(&["data", "quarantine", "--json"], &data);
    assert_eq!((again.status.code(), &objects(&again)[0]["damaged_shards"]), (Some(0), &Value::from(0)));

    let mut more = Vec::new();
    for round in 0..3 {
        let server = launch.ready().unwrap();
        // What is published now goes behind what may have been lost, and is there, too.
        let mut raw = Raw::greeted(server.address);
        raw.open(3, "three", 0);
        more.push(format!("more {round}"));
        raw.produce(&[(3, &harness::frame(&[more[round].as_bytes()]))]);
        drop(raw);
        let mut lost = Vec::new();
        for topic in ["one", "two"] {
            let (found, damaged) = read_around(&server, topic);
            let missing: Vec<u64> =
                (0..40).filter(|number| !found.contains(&format!("{topic} {number}"))).collect();
            assert_eq!(
                damaged,
                missing.iter().map(|n| (*n, *n)).collect::<Vec<_>>(),
                "round {round}: {topic}"
            );
            lost.extend(missing);
        }
        assert_eq!(lost.len(), 1, "round {round}: one record was in the range: {lost:?}");
        let (found, damaged) = read_around(&server, "three");
        let expected: Vec<_> =
            ["three 0", "three 1"].map(str::to_owned).into_iter().chain(more.clone()).collect();
        assert_eq!(found, expected);
        // A BIND of 112 bytes may give 65536 offsets: 586 for each byte.
        assert_eq!(damaged, [(2, 2 + header.total() as u64 * 586 - 1)], "no offset is given twice");
        // After a crash and after a clean stop alike.
        if round == 0 { server.kill() } else { server.stop_cleanly() }
    }
}

#[test]
fn the_durability_call_is_measured_anew_and_kept() {
    let dir = scratch();
    let data = dir.path().join("data");
    // As if made on a device where the other call was the faster one: which one that is, is found out below.
    let launch = |call: &str| Launch::new(&data).args(&["--shards=2", call]);
    let Some(server) = launch("--durability=flush").ready() else { return };
    let busy = ringmq(&["doctor", "--recalibrate", "--data"], &data);
    assert_eq!(busy.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&busy.stderr).contains(&format!("(process {})", server.pid())));
    server.stop_cleanly();
    let before = image(&data);
    let dry = ringmq(&["doctor", "--recalibrate", "--dry-run", "--json", "--data"], &data);
    assert_eq!(dry.status.code(), Some(0), "{}", String::from_utf8_lossy(&dry.stderr));
    assert!(image(&data) == before, "a dry run changes nothing and leaves nothing behind");
    assert_eq!(objects(&dry).len(), 2);
    let done = ringmq(&["doctor", "--recalibrate", "--json", "--data"], &data);
    assert_eq!(done.status.code(), Some(0));
    let done = objects(&done);
    assert_eq!(done.len(), 2);
    for shard in &done {
        assert_eq!(shard["before"], "flush");
        let wins = shard["dsync_us"].as_u64().unwrap() * 10 < shard["flush_us"].as_u64().unwrap() * 7;
        assert_eq!(shard["after"], if wins { "dsync" } else { "flush" });
        assert_eq!(shard["changed"], wins);
    }
    let again = objects(&ringmq(&["doctor", "--recalibrate", "--dry-run", "--json", "--data"], &data));
    assert_eq!(again[1]["before"], done[1]["after"], "what was written is what is read");
    assert_eq!(again[1]["epoch"], done[1]["epoch"]);
    launch("--durability=flush").ready().unwrap().stop_cleanly();
    let nothing = ringmq(&["doctor", "--recalibrate", "--data"], dir.path());
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("no data directory"));
}
