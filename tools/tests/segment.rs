//! The segment tools as an operator has them: on anything at all, beside a running server, and after damage.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{BINARY, Launch, Raw, frame, scratch, wait};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn ringmq(args: &[&str]) -> Output {
    let child = Command::new(BINARY)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.wait_with_output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn objects(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every verb that reads, with what it takes behind the path.
const READING: [&[&str]; 14] = [
    &["segment", "ls"],
    &["segment", "verify"],
    &["segment", "inspect"],
    &["segment", "dump"],
    &["segment", "stats"],
    &["segment", "import"],
    &["data", "topics"],
    &["data", "offsets"],
    &["data", "producers"],
    &["data", "txns"],
    &["data", "timers"],
    &["data", "check"],
    &["data", "trace", "--id", "5"],
    &["data", "restore"],
];

#[test]
fn anything_at_all_gets_a_clear_answer() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name);
    let random: Vec<u8> = (0..3 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut hostile = ringmq_format::segment::SegmentFacts {
        shard: ringmq_format::ShardId(0),
        slot: ringmq_format::SlotId(0),
        seq: ringmq_format::SegmentSeq(1),
        incarnation: 1,
        base: ringmq_format::Lsn(0),
        previous_seq: ringmq_format::SegmentSeq(0),
        previous_chain: 0,
        capacity: 1 << 30,
        created_ms: 0,
        node_id: 1,
        epoch: ringmq_format::Epoch(1),
    }
    .encode();
    std::fs::write(path("short-segment"), &hostile).unwrap();
    hostile.extend_from_slice(&random);
    std::fs::write(path("empty"), b"").unwrap();
    std::fs::write(path("one-byte"), b"R").unwrap();
    std::fs::write(path("text"), "\x1b[2J\x1b]0;title\x07 not a segment\n".repeat(1000)).unwrap();
    std::fs::write(path("random"), &random).unwrap();
    std::fs::write(path("zeros"), vec![0; 1 << 20]).unwrap();
    std::fs::write(path("segment-of-noise"), &hostile).unwrap();
    std::fs::write(path("export-of-noise"), [b"RINGMQEX\x01\0\0\0\0\0\0\0", &random[..]].concat()).unwrap();
    let huge_chunk =
        [b"RINGMQEX\x01\0\0\0\0\0\0\0XCHK\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", &[0; 8][..]].concat();
    std::fs::write(path("export-huge"), huge_chunk).unwrap();
    std::fs::create_dir_all(path("folder/shard-00/log")).unwrap();
    std::fs::write(path("folder/shard-00/log/000.seg"), &random).unwrap();
    std::fs::write(path("folder/shard-00/log/004.seg"), b"").unwrap();
    std::fs::create_dir_all(path("folder/shard-00/superblock")).unwrap();
    std::fs::create_dir_all(path("bare")).unwrap();
    assert!(Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
    let names = [
        "short-segment",
        "empty",
        "one-byte",
        "text",
        "random",
        "zeros",
        "segment-of-noise",
        "export-of-noise",
        "export-huge",
        "folder",
        "bare",
        "fifo",
        "missing",
    ];
    for verb in READING {
        for name in names {
            let (first, rest) = verb.split_at(2);
            let target = path(name);
            let args = [first, &[text(&target)], rest].concat();
            let mut child = Command::new(BINARY)
                .args(&args)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            wait(&mut child); // says so if it hangs
            let output = child.wait_with_output().unwrap();
            let said = said(&output);
            let code = output.status.code();
            assert!(matches!(code, Some(0..=3)), "{args:?}: {code:?} {said}");
            assert!(!said.contains("panicked"), "{args:?}: {said}");
            assert!(!said.contains('\x1b'), "{args:?} acts on the terminal: {said}");
            if code != Some(0) {
                assert!(!said.trim().is_empty(), "{args:?} says nothing");
            }
        }
    }
}

#[test]
fn beside_a_running_server_everything_is_whole() {
    let dir = scratch();
    let data = dir.path().join("data");
    let launch = Launch::new(&data).args(&["--shards=2", "--segment-size=4M"]);
    let Some(server) = launch.ready() else { return };
    let lines: String = (0..40_000).map(|n| format!("line {n} {}\n", "y".repeat(200))).collect();
    let writer = {
        let mut child = server.client(&["pub", "busy"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let lines = lines.clone();
        std::thread::spawn(move || {
            use std::io::Write;
            for chunk in lines.as_bytes().chunks(200_000) {
                input.write_all(chunk).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            drop(input);
            assert!(wait(&mut child).success());
        })
    };
    let mut backed_up = 0;
    while !writer.is_finished() {
        for args in [
            &["segment", "verify"][..],
            &["segment", "ls"],
            &["data", "check"],
            &["data", "offsets"],
            &["segment", "stats"],
        ] {
            let output = ringmq(&[args, &[text(&data), "--json"]].concat());
            assert_eq!(output.status.code(), Some(0), "{args:?}: {}", said(&output));
            objects(&output);
        }
        let file = dir.path().join(format!("backup-{backed_up}.rmqx"));
        let output = ringmq(&["data", "backup", text(&data), "--to", text(&file)]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        backed_up += 1;
    }
    writer.join().unwrap();
    // No lock was taken, and what was backed up is a prefix.
    for number in 0..backed_up {
        let to = dir.path().join(format!("restored-{number}"));
        let file = dir.path().join(format!("backup-{number}.rmqx"));
        let output = ringmq(&["data", "restore", text(&file), "--to", text(&to)]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let dumped = ringmq(&["segment", "dump", text(&to), "--topic", "busy", "-f", "%v\\n"]);
        assert!(lines.as_bytes().starts_with(&dumped.stdout), "backup {number} is no prefix");
    }
    server.stop_cleanly();
    let dumped = ringmq(&["segment", "dump", text(&data), "--topic", "busy", "-f", "%v\\n"]);
    assert!(dumped.stdout == lines.as_bytes());
}

#[test]
fn what_is_saved_is_served_and_what_is_lost_is_said() {
    let dir = scratch();
    let data = dir.path().join("data");
    let launch = Launch::new(&data).args(&["--shards=1"]);
    let Some(server) = launch.ready() else { return };
    let mut raw = Raw::greeted(server.address);
    raw.create("kept", 1);
    raw.create("hurt", 1);
    raw.open(1, "kept", 0);
    raw.open(2, "hurt", 0);
    for number in 0..30u32 {
        raw.produce(&[(1, &frame(&[format!("kept {number}").as_bytes()]))]);
        raw.produce(&[(2, &frame(&[format!("hurt {number}").as_bytes(), b"second"]))]);
    }
    drop(raw);
    server.kill();
    // Offsets 20 and 21 of `hurt`: a flipped bit in the frame's header, which a server refuses.
    let listed = ringmq(&[
        "segment",
        "dump",
        text(&data),
        "--frames",
        "--json",
        "--topic",
        "hurt",
        "--from-offset",
        "20",
        "-n",
        "1",
    ]);
    let position = objects(&listed)[0]["position"].as_u64().unwrap();
    let path = data.join("shard-00/log/000.seg");
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position + 20).unwrap();
    file.write_all_at(&[byte[0] ^ 4], position + 20).unwrap();
    file.sync_all().unwrap();
    assert_eq!(launch.refused().unwrap().code, Some(14));

    let verified = ringmq(&["segment", "verify", text(&data), "--json"]);
    assert_eq!(verified.status.code(), Some(3));
    let found = objects(&verified);
    assert_eq!(found[0]["position"], position + 20);
    assert_eq!((&found[0]["flipped_bit"], &found[0]["field"]), (&Value::from(2), &Value::from("count")));
    assert_eq!(found[0]["cost"]["first_offset"], 20);
    let checked = ringmq(&["data", "check", text(&data), "--json"]);
    assert_eq!((checked.status.code(), &objects(&checked)[0]["row"]), (Some(3), &Value::from("B")));

    let saved = dir.path().join("saved");
    let output = ringmq(&["segment", "salvage", text(&data), "--to", text(&saved), "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let report = objects(&output);
    assert_eq!(
        (&report[0]["missing"], &report[0]["from"], &report[0]["to"]),
        (&"hurt[0]".into(), &20.into(), &22.into())
    );
    assert_eq!(report.last().unwrap()["records_missing"], 2);
    // A second time into the same place is refused.
    assert_eq!(ringmq(&["segment", "salvage", text(&data), "--to", text(&saved)]).status.code(), Some(1));

    let server = Launch::new(&saved).args(&["--shards=1"]).ready().unwrap();
    let kept = server.ok(&["sub", "kept", "--until", "end"], b"");
    assert_eq!(kept.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count(), 30);
    let before = server.client(&["sub", "hurt", "--until", "end"]).output().unwrap();
    assert_eq!(before.status.code(), Some(3), "{}", said(&before));
    assert!(said(&before).contains("offsets 20 to 21"), "{}", said(&before));
    let behind = server.ok(&["sub", "hurt", "--until", "end", "--from=22"], b"");
    assert!(behind.starts_with(b"hurt 11\n"), "{}", String::from_utf8_lossy(&behind));
    // It goes on where the log ended.
    server.ok(&["pub", "hurt", "after"], b"");
    let last = server.ok(&["sub", "hurt", "--until", "end", "--from=60", "-f", "%o %v\\n"], b"");
    assert_eq!(last, b"60 after\n");
    server.kill();
    let server = Launch::new(&saved).args(&["--shards=1"]).ready().unwrap();
    assert_eq!(server.ok(&["sub", "kept", "--until", "end"], b""), kept);
    server.stop_cleanly();
    let verified = ringmq(&["segment", "verify", text(&saved)]);
    // The hole is said, and nothing is wrong.
    assert_eq!(verified.status.code(), Some(0), "{}", said(&verified));
    assert!(said(&verified).contains("offsets 20 to 21 were lost before"), "{}", said(&verified));

    // An earlier moment, under another name.
    let moment = objects(&ringmq(&[
        "segment",
        "dump",
        text(&data),
        "--json",
        "--topic",
        "kept",
        "--from-offset",
        "15",
        "-n",
        "1",
    ]));
    let moment = moment[0]["time"].as_str().unwrap().to_owned();
    let (export, restored) = (dir.path().join("kept.rmqx"), dir.path().join("restored"));
    let output = ringmq(&["segment", "export", text(&data), "--topic", "kept", "--to", text(&export)]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let output = ringmq(&[
        "segment",
        "import",
        text(&export),
        "--to",
        text(&restored),
        "--rename",
        "kept=other",
        "--until-time",
        &moment,
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let server = Launch::new(&restored).args(&["--shards=1"]).ready().unwrap();
    let lines = server.ok(&["sub", "other", "--until", "end", "-f", "%o %v\\n"], b"");
    let lines = String::from_utf8(lines).unwrap();
    assert!(lines.starts_with("0 kept 0\n") && !lines.contains("kept 15"), "{lines}");
    server.stop_cleanly();
    // A changed byte of the file is found, wherever it is.
    let whole = std::fs::read(&export).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 60 + 1) {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        std::fs::write(&export, bad).unwrap();
        let output = ringmq(&["segment", "import", text(&export)]);
        assert_eq!(output.status.code(), Some(3), "byte {at}: {}", said(&output));
    }
}
