//! A directory of each format version, healthy and damaged, and what the tools say of it, byte for byte. A newer binary
//! must go on saying the same.
//!
//! `RINGMQ_BLESS=1` writes what is said now; look at the difference before it is committed.
//! `RINGMQ_GOLDEN_NEW=v2` makes a new directory with a real server, for a new format version.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{BINARY, Launch, Raw, scratch};
use ringmq_format::ProducerId;
use ringmq_format::frame::Codec;
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const VERSIONS: [&str; 1] = ["v1"];

/// Name of the expected output, and what is asked.
const ASKED: [(&str, &[&str]); 13] = [
    ("ls", &["segment", "ls", "data", "--json"]),
    ("records", &["segment", "dump", "data", "--json", "--topic", "mixed"]),
    ("frames", &["segment", "dump", "data", "--json", "--frames"]),
    ("verify", &["segment", "verify", "data", "--json"]),
    ("stats", &["segment", "stats", "data", "--json"]),
    ("topics", &["data", "topics", "data", "--json", "--all"]),
    ("offsets", &["data", "offsets", "data", "--json", "--count"]),
    ("producers", &["data", "producers", "data", "--json", "--topic", "mixed"]),
    ("trace", &["data", "trace", "data", "--json", "--topic", "mixed", "--key", "key-1"]),
    ("inspect", &["segment", "inspect", "data/shard-00/log/000.seg", "--json"]),
    ("group", &["segment", "inspect", "data/shard-00/log/000.seg:8192", "--json", "--hex"]),
    ("superblock", &["segment", "inspect", "data/shard-00/superblock", "--hex"]),
    ("check", &["data", "check", "data", "--json"]),
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// All files of a directory, one behind the other, compressed.
fn pack(data: &Path, to: &Path) {
    let mut bytes = Vec::new();
    let mut directories = vec![data.to_owned()];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path())
            } else {
                files.push(entry.path())
            }
        }
    }
    files.sort();
    for file in files {
        let name = file.strip_prefix(data).unwrap().to_str().unwrap();
        let content = std::fs::read(&file).unwrap();
        bytes.extend(format!("{name}\n{}\n", content.len()).into_bytes());
        bytes.extend(content);
    }
    std::fs::write(to, zstd::bulk::compress(&bytes, 19).unwrap()).unwrap();
}

fn line(bytes: &mut &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    let (line, rest) = bytes.split_at(end);
    *bytes = &rest[1..];
    String::from_utf8(line.to_vec()).unwrap()
}

fn unpack(from: &Path, data: &Path) {
    let bytes = zstd::bulk::decompress(&std::fs::read(from).unwrap(), 256 << 20).unwrap();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let path = data.join(line(&mut rest));
        let len: usize = line(&mut rest).parse().unwrap();
        let (content, behind) = rest.split_at(len);
        rest = behind;
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = std::fs::File::create(path).unwrap();
        file.set_len(len as u64).unwrap();
        // What is zero stays a hole.
        for (block, bytes) in
            content.chunks(4096).enumerate().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0))
        {
            file.write_all_at(bytes, block as u64 * 4096).unwrap();
        }
    }
}

/// Bytes that are changed in the damaged directory: file, byte, mask.
fn damage(version: &str, data: &Path) {
    let list = std::fs::read_to_string(golden().join(version).join("damage.txt")).unwrap();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let (at, mask): (u64, u8) = (parts[1].parse().unwrap(), parts[2].parse().unwrap());
        let file = std::fs::File::options().read(true).write(true).open(data.join(parts[0])).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ mask], at).unwrap();
    }
}

/// What is said, without what differs from run to run.
fn ask(directory: &Path, args: &[&str]) -> String {
    let mut command = Command::new(BINARY);
    let output = command.args(args).current_dir(directory).stdin(Stdio::null()).output().unwrap();
    let code = output.status.code().unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    text += &format!("exit {code}\n");
    let steady =
        text.lines().map(|line| match line.starts_with("{\"bytes\"") && line.contains("\"summary\":true") {
            true => {
                let mut object: serde_json::Value = serde_json::from_str(line).unwrap();
                let fields = object.as_object_mut().unwrap();
                fields.remove("seconds");
                fields.remove("bytes_per_second");
                object.to_string()
            }
            false => line.to_owned(),
        });
    steady.collect::<Vec<_>>().join("\n") + "\n"
}

fn compare(version: &str, kind: &str, directory: &Path) {
    let mut differs = Vec::new();
    for (name, args) in ASKED {
        let said = ask(directory, args);
        let path = golden().join(version).join(format!("{kind}-{name}.txt"));
        if std::env::var_os("RINGMQ_BLESS").is_some() {
            std::fs::write(&path, &said).unwrap();
            continue;
        }
        // The order in which things are read is no matter of the reader.
        let threads = ask(directory, &[args, &["--io", "threads"]].concat());
        let threads = threads.replace("\"decided_by\":\"the tools\"", "\"decided_by\":\"recovery\"");
        assert!(
            name == "check" || threads == said,
            "{name} by threads says something else:\n{threads}\n{said}"
        );
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        if said != expected {
            let first = said.lines().zip(expected.lines()).find(|(said, expected)| said != expected);
            differs.push(format!("{kind} {name}: {first:?}"));
        }
    }
    assert!(differs.is_empty(), "{}", differs.join("\n"));
}

#[test]
fn what_the_tools_say_of_each_version_stays_as_it_is() {
    if let Ok(version) = std::env::var("RINGMQ_GOLDEN_NEW") {
        make(&version);
    }
    for version in VERSIONS {
        let dir = scratch();
        let packed = golden().join(version).join("directory.zst");
        unpack(&packed, &dir.path().join("data"));
        compare(version, "healthy", dir.path());
        damage(version, &dir.path().join("data"));
        compare(version, "damaged", dir.path());
    }
}

/// Records of every shape: keys, tags, properties, codecs, an empty one, bytes that are no text.
fn frame(number: u32, codec: Codec) -> Vec<u8> {
    let time = 1_795_328_984_000 + i64::from(number);
    let mut builder = FrameBuilder::new(time, 1 << 20);
    let text = format!("record {number} {}", "again and ".repeat(20));
    let key = format!("key-{}", number % 3);
    let hostile: &[u8] = b"\x1b[2J\xff\x00 bytes";
    for (index, body) in [text.as_bytes(), b"", hostile].into_iter().enumerate() {
        builder
            .push(&Record {
                key: (index < 2).then_some(key.as_bytes()),
                tag: (index == 0).then_some(b"red"),
                properties: if index == 2 { &[(b"from", b"golden")] } else { &[] },
                time_ms: time + index as i64,
                body,
            })
            .unwrap();
    }
    let producer = ProducerStamp { id: ProducerId(77), epoch: 1, base_sequence: number * 3 };
    builder.finish(producer, codec, &mut |raw| match codec {
        Codec::Zstd => zstd::bulk::compress(raw, 1).ok(),
        _ => Some(lz4_flex::block::compress(raw)),
    })
}

fn make(version: &str) {
    let dir = scratch();
    let data = dir.path().join("data");
    let launch = Launch::new(&data).args(&["--shards=2", "--segment-size=4M"]);
    let server = launch.ready().unwrap();
    let mut raw = Raw::greeted(server.address);
    for (name, partitions) in [("mixed", 2), ("gone", 1), ("lines", 3)] {
        raw.create(name, partitions);
    }
    raw.open(1, "mixed", 0);
    raw.open(2, "mixed", 1);
    for number in 0..12 {
        let codec = [Codec::None, Codec::Zstd, Codec::Lz4][number as usize % 3];
        raw.produce(&[(1 + number % 2, &frame(number / 2, codec))]);
    }
    let lines: String = (0..60_000).map(|n| format!("{}:line {n} {}\n", n % 50, "x".repeat(120))).collect();
    server.ok(&["pub", "lines", "-K", ":"], lines.as_bytes());
    server.ok(&["topic", "rm", "gone", "--yes"], b"");
    drop(raw);
    server.stop_cleanly();
    let server = launch.ready().unwrap();
    server.ok(&["pub", "mixed", "--key", "key-1", "after the restart"], b"");
    std::thread::sleep(std::time::Duration::from_millis(100));
    server.kill();
    std::fs::create_dir_all(golden().join(version)).unwrap();
    pack(&data, &golden().join(version).join("directory.zst"));
}
