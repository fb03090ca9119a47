//! `pub`, `sub`, `topic` and `demo` against a real server, as scripts use them.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

mod common;

use common::{Server, ringmq, text};
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

struct Bench {
    server: Server,
    address: String,
    dir: tempfile::TempDir,
}

impl Bench {
    fn start() -> Option<Self> {
        Self::start_at(0)
    }

    fn start_at(port: u16) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let listen = format!("--listen=127.0.0.1:{port}");
        let small = [&listen, "--shards=2", "--memory=128M", "--segment-size=8M", "--auto-create-topics"];
        let server = Server::start(&data, &small)?;
        let address = server.ready["native"].as_str().unwrap().to_owned();
        Some(Self { server, address, dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = ringmq()
            .args(args)
            .env("RINGMQ_SERVER", &self.address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A child that refuses its input must not hang the test.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// stdout of a run that must succeed.
    fn ok(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.run(args, input);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        output.stdout
    }

    /// stderr of a run that must end so.
    fn fails(&self, code: i32, args: &[&str], input: &[u8]) -> String {
        let output = self.run(args, input);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
        err
    }
}

#[test]
fn lines_come_back_byte_for_byte() {
    let Some(bench) = Bench::start() else { return };
    let input = b"plain\ncarriage return\r\n\nnul\0 and \xff\xfe\nlast without newline";
    let acks = bench.path().join("acks");
    let acks = acks.to_str().unwrap();
    bench.ok(&["pub", "t", "--acks-to", acks], input);
    assert_eq!(std::fs::read_to_string(acks).unwrap(), "0, 0\n0, 1\n0, 2\n0, 3\n0, 4\n");
    let back = bench.ok(&["sub", "t", "--from", "start", "--until", "end"], b"");
    assert_eq!(back, [&input[..], b"\n"].concat());
    bench.ok(&["pub", "t", "--acks-to", acks], b"one more\n");
    assert!(std::fs::read_to_string(acks).unwrap().ends_with("0, 4\n0, 5\n"), "it appends");
    assert_eq!(bench.ok(&["sub", "t", "--from", "5", "-n", "1"], b""), b"one more\n");
    assert_eq!(bench.ok(&["pub", "t"], b""), b"", "no line, no record");
}

#[test]
fn one_record_shows_where_it_went() {
    let Some(bench) = Bench::start() else { return };
    let out = text(&bench.ok(&["pub", "hello", "first message"], b""));
    assert!(out.starts_with("hello[0]@0  acked, on disk, "), "{out}");
    let out: serde_json::Value =
        serde_json::from_slice(&bench.ok(&["pub", "hello", "second", "--json"], b"")).unwrap();
    assert_eq!((&out["partition"], &out["offset"]), (&0.into(), &1.into()));
    assert_eq!(bench.ok(&["sub", "hello", "-n", "1"], b""), b"first message\n");
}

#[test]
fn keys_headers_and_formats() {
    let Some(bench) = Bench::start() else { return };
    bench.ok(&["pub", "t", "--key", "k1", "-H", "a=1", "-H", "b=x=y", "v1"], b"");
    bench.ok(&["pub", "t", "-K", ":"], b"k2:v2:w\nno key\n");
    let format = ["sub", "t", "--until", "end", "-f", "%t|%p|%o|%k|%v|%h\\n"];
    assert_eq!(text(&bench.ok(&format, b"")), "t|0|0|k1|v1|a=1,b=x=y\nt|0|1|k2|v2:w|\nt|0|2||no key|\n");
    let lines = text(&bench.ok(&["sub", "t", "--until", "end", "--json"], b""));
    let records = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let records = records.collect::<Vec<_>>();
    assert_eq!(records.len(), 3);
    assert_eq!((&records[0]["key"], &records[0]["headers"][1]["value"]), (&"k1".into(), &"x=y".into()));
    assert!(records[2]["key"].is_null());
    assert!(bench.fails(2, &["sub", "t", "-f", "%q"], b"").contains("not a directive"));
    assert!(bench.fails(2, &["pub", "t", "-H", "novalue", "v"], b"").contains("NAME=VALUE"));
}

#[test]
fn equal_keys_meet_in_one_partition_and_keep_their_order() {
    let Some(bench) = Bench::start() else { return };
    bench.ok(&["topic", "create", "orders", "--partitions", "8"], b"");
    let input = (0..5000).map(|n| format!("key-{}:{n}\n", n % 50)).collect::<String>();
    bench.ok(&["pub", "orders", "-K", ":"], input.as_bytes());
    let out = text(&bench.ok(&["sub", "orders", "--until", "end", "-f", "%p %k %v\\n"], b""));
    let mut last = std::collections::HashMap::new();
    for line in out.lines() {
        let fields = line.split(' ').collect::<Vec<_>>();
        let number = fields[2].parse::<u32>().unwrap();
        if let Some((partition, before)) = last.insert(fields[1].to_owned(), (fields[0].to_owned(), number)) {
            assert_eq!(partition, fields[0], "{line}");
            assert!(before < number, "{line}");
        }
    }
    assert_eq!((out.lines().count(), last.len()), (5000, 50));
    let only = text(&bench.ok(&["sub", "orders", "-p", "3", "--until", "end", "-f", "%p"], b""));
    assert!(only.chars().all(|partition| partition == '3'));
    assert!(bench.fails(2, &["pub", "orders", "-p", "8", "x"], b"").contains("no partition 8"));
    assert!(bench.fails(2, &["sub", "orders", "-p", "8"], b"").contains("no partition 8"));
}

#[test]
fn readers_start_where_they_are_told() {
    let Some(bench) = Bench::start() else { return };
    bench.ok(&["pub", "t"], b"a\nb\nc\n");
    let read = |from: &str| bench.ok(&["sub", "t", "--from", from, "--until", "end"], b"");
    assert_eq!(read("earliest"), b"a\nb\nc\n");
    assert_eq!(read("latest"), b"");
    assert_eq!(read("1"), b"b\nc\n");
    assert_eq!(read("-1h"), b"a\nb\nc\n");
    assert_eq!(read("2000-01-01"), b"a\nb\nc\n");
    assert!(bench.fails(1, &["sub", "t", "--from", "99", "-n", "1"], b"").contains("--from"));
    assert!(bench.fails(2, &["sub", "t", "--from", "someday"], b"").contains("someday"));
    assert_eq!(bench.ok(&["sub", "t", "-n", "0"], b""), b"");
}

#[test]
fn a_record_that_is_too_large_names_its_line() {
    let Some(bench) = Bench::start() else { return };
    let mut input = b"small\n".to_vec();
    input.resize(input.len() + (6 << 20), b'x');
    input.extend(b"\nnever read\n");
    let err = bench.fails(1, &["pub", "t"], &input);
    assert!(err.contains("line 2"), "{err}");
    assert!(err.contains("1 record acked"), "{err}");
    assert_eq!(bench.ok(&["sub", "t", "--until", "end"], b""), b"small\n");
    // Below the hard bound, above what this server's segments take.
    let mut input = b"a\nb\n".to_vec();
    input.resize(input.len() + (3 << 20), b'y');
    assert!(bench.fails(1, &["pub", "u"], &input).contains("line 3"));
}

#[test]
fn topics_are_made_listed_shown_and_removed() {
    let Some(bench) = Bench::start() else { return };
    assert_eq!(bench.ok(&["topic", "ls"], b""), b"");
    bench.ok(&["topic", "create", "orders", "--partitions", "3"], b"");
    assert!(bench.fails(1, &["topic", "create", "orders"], b"").contains("--if-not-exists"));
    bench.ok(&["topic", "create", "orders", "--if-not-exists"], b"");
    bench.ok(&["pub", "orders", "-p", "2", "x"], b"");
    let listed = text(&bench.ok(&["topic", "ls", "--long", "--json"], b""));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed["topic"], &listed["records"]), (&"orders".into(), &1.into()));
    let shown: serde_json::Value =
        serde_json::from_slice(&bench.ok(&["topic", "show", "orders", "--json"], b"")).unwrap();
    assert_eq!(shown["partitions"][2]["end"], 1);
    assert!(text(&bench.ok(&["topic", "rm", "orders", "--dry-run"], b"")).contains("would remove"));
    bench.ok(&["topic", "rm", "orders", "--yes"], b"");
    assert!(bench.fails(1, &["topic", "show", "orders"], b"").contains("topic create orders"));
    for name in ["", "a/b", "\u{1b}[2J", ".."] {
        let err = bench.fails(2, &["topic", "create", name], b"");
        assert!(!err.contains('\u{1b}'), "{err:?}");
    }
}

#[test]
fn without_a_server_the_way_out_is_named() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for args in [&["pub", "t", "v"][..], &["sub", "t"], &["topic", "ls"]] {
        let output = ringmq().args(args).args(["--server", &free]).output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains(&free) && err.contains("ringmq server --dev"), "{err}");
    }
    let output = ringmq().args(["topic", "ls", "--server", "nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
fn a_kill_in_the_middle_of_pub_loses_and_doubles_nothing() {
    // Ports that the kernel gives to nobody by itself: the second server must get them again.
    let free =
        |base: &u16| (*base..base + 3).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
    let port = (10_000 + std::process::id() as u16 % 9_000..20_000).find(free).unwrap();
    let Some(mut bench) = Bench::start_at(port) else { return };
    let input = (0..200_000).map(|n| format!("line {n}\n")).collect::<String>();
    let acks = bench.path().join("acks");
    let mut child = ringmq()
        .args(["pub", "logs", "--acks-to", acks.to_str().unwrap(), "--server", &bench.address])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text_in = input.clone();
    let writer = std::thread::spawn(move || {
        for part in text_in.as_bytes().chunks(40_000) {
            stdin.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    std::thread::sleep(Duration::from_millis(150));
    bench.server.child.kill().unwrap();
    bench.server.child.wait().unwrap();
    let listen = format!("--listen={}", bench.address);
    let data = bench.path().join("data");
    let small = [listen.as_str(), "--memory=128M", "--segment-size=8M", "--auto-create-topics"];
    bench.server = Server::start(&data, &small).unwrap();
    writer.join().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(acks).unwrap().lines().count(), 200_000);
    let back = bench.ok(&["sub", "logs", "--until", "end"], b"");
    assert!(back == input.as_bytes(), "what came back differs");
}

#[test]
fn the_demo_holds() {
    let dir = tempfile::tempdir().unwrap();
    let output = ringmq().args(["demo", "--fast", "--json", "--dir"]).arg(dir.path()).output().unwrap();
    let err = text(&output.stderr);
    if err.contains("O_DIRECT") || err.contains("io_uring") {
        println!("skipped: {err}");
        return;
    }
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out} {err}");
    let out: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&out["held"], &out["records"]), (&true.into(), &1000.into()));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it leaves nothing behind");
}
