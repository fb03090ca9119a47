//! Surroundings that are not what a server needs: each has its exit code and a message that says what to do, and
//! costs nothing that is stored. What needs root says so where there is none.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{BINARY, Ended, Launch, Outcome, Raw, Server, can_mount, is_root, scratch, skip, works};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// A user that owns nothing.
const NOBODY: u32 = 65_534;

fn check(ended: &Ended, code: i32, reason: &str, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{} {}", ended.out, ended.err);
    assert!(ended.out.contains(&format!("\"reason\":\"{reason}\"")), "{}", ended.out);
    for part in parts {
        assert!(ended.err.contains(part), "{part:?} is not in {}", ended.err);
    }
}

/// Publishes a line and reads everything back.
fn is_served(server: &Server, topic: &str, expected: &[&str]) {
    let line = expected.last().unwrap();
    server.ok(&["pub", topic, line], b"");
    let found = server.ok(&["sub", topic, "--until", "end"], b"");
    assert_eq!(String::from_utf8(found).unwrap(), expected.join("\n") + "\n");
}

/// Path and content of every file below.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.append(&mut content(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

/// Runs what follows as a user that owns nothing; none where that cannot be.
fn as_nobody() -> Option<[&'static str; 4]> {
    const WRAPPER: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if !is_root() {
        skip("becoming another user needs root");
        return None;
    }
    let mut command = WRAPPER.to_vec();
    command.extend([BINARY, "--version"]);
    if !works(&command) {
        skip("no setpriv, or another user cannot reach the binary");
        return None;
    }
    Some(WRAPPER)
}

/// A scratch directory that other users can pass through.
fn open_scratch() -> tempfile::TempDir {
    let dir = scratch();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn a_second_server_on_the_directory_is_refused() {
    let dir = scratch();
    let data = dir.path().join("data");
    let Some(first) = Launch::new(&data).ready() else { return };
    is_served(&first, "t", &["one"]);
    for _ in 0..3 {
        let second = Launch::new(&data).refused().unwrap();
        check(&second, 11, "data_directory_in_use", &[&data.display().to_string(), "--data"]);
    }
    // Under another name it is still the same directory.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&data, &link).unwrap();
    check(&Launch::new(&link).refused().unwrap(), 11, "data_directory_in_use", &[]);
    is_served(&first, "t", &["one", "two"]);
    first.kill();
    let third = Launch::new(&data).ready().unwrap();
    is_served(&third, "t", &["one", "two", "three"]);
    third.stop_cleanly();
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let Some(nobody) = as_nobody() else { return };
    let dir = open_scratch();
    // Not there and not to be made; there and empty; a file in its place.
    let data = dir.path().join("data");
    let Some(ended) = Launch::new(&data).wrap(&nobody).refused() else { return };
    check(&ended, 12, "not_writable", &[&data.display().to_string(), "--data"]);
    assert!(!data.exists());
    std::fs::create_dir(&data).unwrap();
    let ended = Launch::new(&data).wrap(&nobody).refused().unwrap();
    check(&ended, 12, "not_writable", &[&data.display().to_string()]);
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let ended = Launch::new(&file).refused().unwrap();
    check(&ended, 12, "not_writable", &[&file.display().to_string()]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");

    // Made by root, and now somebody else starts: nothing changes.
    let root = Launch::new(&data).ready().unwrap();
    is_served(&root, "t", &["one"]);
    root.stop_cleanly();
    let before = content(&data);
    let ended = Launch::new(&data).wrap(&nobody).refused().unwrap();
    check(&ended, 12, "not_writable", &[&data.display().to_string()]);
    assert!(content(&data) == before, "a refused start changed something");
}

#[test]
fn a_read_only_mount_is_refused() {
    if !can_mount() {
        return;
    }
    let dir = scratch();
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && shift && exec \"$@\"";
    let mount = dir.path().display().to_string();
    let wrapper = ["unshare", "-m", "sh", "-c", script, "sh", &mount];
    let data = dir.path().join("data");
    let Some(ended) = Launch::new(&data).wrap(&wrapper).refused() else { return };
    check(&ended, 12, "not_writable", &[&data.display().to_string(), "read-only"]);
    let server = Launch::new(&data).ready().unwrap();
    is_served(&server, "t", &["one"]);
    server.stop_cleanly();
    let before = content(&data);
    let ended = Launch::new(&data).wrap(&wrapper).refused().unwrap();
    check(&ended, 12, "not_writable", &["read-only"]);
    assert!(content(&data) == before);
    is_served(&Launch::new(&data).ready().unwrap(), "t", &["one", "two"]);
}

#[test]
fn a_file_system_without_direct_io_is_refused() {
    if !can_mount() {
        return;
    }
    let dir = scratch();
    let mount = dir.path().display().to_string();
    let script = "mount -t ramfs none \"$1\" && shift && exec \"$@\"";
    let launch =
        Launch::new(&dir.path().join("data")).wrap(&["unshare", "-m", "sh", "-c", script, "sh", &mount]);
    let Some(ended) = launch.refused() else { return };
    check(&ended, 13, "no_direct_io", &["O_DIRECT", "--data"]);
}

#[test]
fn a_taken_address_is_named() {
    let dir = scratch();
    let base = harness::free_ports(2);
    // The base, and the port of the last shard.
    for port in [base, base + 2] {
        let mut taken = None;
        harness::eventually("the port can be taken", || {
            taken = TcpListener::bind(("127.0.0.1", port)).ok();
            taken.is_some()
        });
        let Some(ended) = Launch::new(&dir.path().join("data")).port(base).refused() else { return };
        check(&ended, 15, "address_in_use", &[&format!("127.0.0.1:{port}"), "--listen"]);
        drop(taken);
    }
    let server = Launch::new(&dir.path().join("data")).port(base).ready().unwrap();
    assert_eq!(server.ports, [base + 1, base + 2]);
    is_served(&server, "t", &["one"]);
}

#[test]
fn few_descriptors_are_refused_or_enough() {
    if !works(&["prlimit", "--version"]) {
        return skip("no prlimit");
    }
    for descriptors in [64, 207] {
        let dir = scratch();
        let limit = format!("--nofile={descriptors}:{descriptors}");
        let data = dir.path().join("data");
        let ended = Launch::new(&data).wrap(&["prlimit", &limit]).refused().unwrap();
        check(&ended, 17, "too_few_descriptors", &["RLIMIT_NOFILE", "ulimit"]);
        assert!(!data.exists());
    }
    for descriptors in [208, 256] {
        let dir = scratch();
        let limit = format!("--nofile={descriptors}:{descriptors}");
        let launch = Launch::new(&dir.path().join("data")).wrap(&["prlimit", &limit]);
        let Some(server) = launch.ready() else { return };
        is_served(&server, "t", &["one"]);
        // More clients than descriptors: the surplus is refused or waits, and storage does not suffer.
        let crowd: Vec<_> = (0..descriptors + 50).map(|_| Raw::dial(server.address)).collect();
        drop(crowd);
        is_served(&server, "t", &["one", "two"]);
        server.stop_cleanly();
    }
}

/// Installs a filter that answers these system calls with an error, then becomes the server.
const SECCOMP: &str = r#"
import ctypes, os, struct, sys
errno, calls, command = int(sys.argv[1]), [int(n) for n in sys.argv[2].split(",")], sys.argv[3:]
code = struct.pack("HBBI", 0x20, 0, 0, 0)
for call in calls:
    code += struct.pack("HBBI", 0x15, 0, 1, call) + struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | errno)
code += struct.pack("HBBI", 0x06, 0, 0, 0x7fff0000)
buffer = ctypes.create_string_buffer(code, len(code))
program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.create_string_buffer(program, len(program)), 0, 0):
    sys.exit(99)
os.execv(command[0], command)
"#;

#[test]
fn refused_io_uring_has_its_exit_code_and_a_cure() {
    const SETUP: &str = "425";
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return skip("the numbers of the system calls are not known here");
    }
    if !works(&["python3", "-c", SECCOMP, "1", SETUP, "/bin/true"]) {
        return skip("no python3, or no seccomp filters");
    }
    // EPERM is Docker's and io_uring_disabled's; ENOSYS an old kernel's or gVisor's.
    for errno in ["1", "38"] {
        let dir = scratch();
        let data = dir.path().join("data");
        let launch = Launch::new(&data).wrap(&["python3", "-c", SECCOMP, errno, SETUP]);
        let Outcome::Ended(ended) = launch.start() else { panic!("it serves without io_uring") };
        check(&ended, 10, "io_uring_refused", &["io_uring_disabled", "seccomp", "doctor"]);
        assert_eq!(ended.err.trim().lines().count(), 1, "{}", ended.err);
        assert!(!data.exists(), "a refused start makes nothing");
    }
    // Only a part of it is allowed: clear as well, or it works.
    for calls in ["426", "427"] {
        let dir = scratch();
        let launch = Launch::new(&dir.path().join("data")).wrap(&["python3", "-c", SECCOMP, "1", calls]);
        match launch.start() {
            Outcome::Ended(ended) => check(&ended, 10, "io_uring_refused", &["seccomp"]),
            Outcome::Ready(server) => is_served(&server, "t", &["one"]),
        }
    }
}

#[test]
fn little_locked_memory_is_a_fallback() {
    let Some(nobody) = as_nobody() else { return };
    if !works(&["prlimit", "--version"]) {
        return skip("no prlimit");
    }
    let dir = open_scratch();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
    let limited = |bytes: u32| {
        let limit = format!("--memlock={bytes}:{bytes}");
        Launch::new(&data).wrap(&["prlimit", &limit]).wrap(&nobody)
    };
    let Some(server) = limited(64 << 10).ready() else { return };
    let lines = "line\n".repeat(20_000);
    server.ok(&["pub", "t"], lines.as_bytes());
    let said = server.start["fallbacks"].to_string();
    let ended = server.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    // Buffers are registered at their first use, and it is said then.
    let said = said + &ended.err;
    assert!(said.contains("registered buffers off") && said.contains("RLIMIT_MEMLOCK"), "{said}");
    // None at all: whether a ring can be had then, depends on the kernel.
    match limited(0).start() {
        Outcome::Ended(ended) => check(&ended, 10, "io_uring_refused", &["RLIMIT_MEMLOCK"]),
        Outcome::Ready(server) => server.stop_cleanly(),
    }
    let server = Launch::new(&data).wrap(&nobody).ready().unwrap();
    assert_eq!(server.ok(&["sub", "t", "--until", "end"], b"").len(), 20_000 * 5);
}

// -- damage ------------------------------------------------------------------------------------------------

/// Positions of group headers in a segment file.
fn groups(bytes: &[u8]) -> Vec<usize> {
    (8192..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(b"RGRP")).collect()
}

/// The segment of a shard with the most groups.
fn fullest_segment(shard: &Path) -> (PathBuf, Vec<u8>) {
    let files =
        content(&shard.join("log")).into_iter().filter(|(path, _)| path.extension() == Some("seg".as_ref()));
    files.max_by_key(|(_, bytes)| groups(bytes).len()).unwrap()
}

fn flip(path: &Path, position: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[position] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// Publishes so that a shard has many groups.
fn fill(server: &Server, topic: &str, partition: u32) {
    let mut raw = Raw::greeted(server.address);
    raw.open(1, topic, partition);
    for n in 0..100 {
        let record = harness::frame(&[format!("record {n:03} of {partition}").as_bytes(), &[b'.'; 3000]]);
        assert!(raw.produce(&[(1, &record)]).outcomes()[0].is_stored());
    }
}

#[test]
fn a_damaged_group_refuses_the_shard_and_changes_nothing() {
    let dir = scratch();
    let data = dir.path().join("data");
    let one = || Launch::new(&data).args(&["--shards=1"]);
    let Some(server) = one().ready() else { return };
    Raw::greeted(server.address).create("t", 1);
    fill(&server, "t", 0);
    server.kill();
    let (segment, bytes) = fullest_segment(&data.join("shard-00"));
    let groups = groups(&bytes);
    let position = groups[groups.len() / 2];
    // Magic, checksum, LSN, length, chain.
    for field in [0, 5, 17, 37, 50] {
        flip(&segment, position + field);
        let before = content(&data);
        let ended = one().refused().unwrap();
        check(
            &ended,
            14,
            "damaged_shard",
            &["shard 0", &segment.display().to_string(), &position.to_string()],
        );
        let after = content(&data);
        let changed: Vec<_> = before.iter().filter(|(path, bytes)| after.get(*path) != Some(bytes)).collect();
        let changed: Vec<_> = changed.into_iter().map(|(path, _)| path).collect();
        assert!(changed.is_empty(), "field at {field}: {changed:?} changed");
        assert_eq!(before.len(), after.len(), "nothing is deleted or made");
        flip(&segment, position + field);
    }
    let server = one().ready().unwrap();
    let count = server.ok(&["sub", "t", "--until", "end", "-f", "%o\\n"], b"");
    assert_eq!(count.split(|byte| *byte == b'\n').count() - 1, 200, "repaired, everything is there");
}

#[test]
fn a_damaged_record_costs_only_itself() {
    let dir = scratch();
    let data = dir.path().join("data");
    let one = || Launch::new(&data).args(&["--shards=1"]);
    let Some(server) = one().ready() else { return };
    Raw::greeted(server.address).create("t", 1);
    fill(&server, "t", 0);
    server.kill();
    let (segment, bytes) = fullest_segment(&data.join("shard-00"));
    let needle = b"record 050 of 0";
    let position = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    flip(&segment, position);
    let server = one().ready().unwrap();
    let output = server.client(&["sub", "t", "--until", "end", "-f", "%o\\n"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "the damage is not passed over in silence");
    assert!(err.contains("100") && err.to_lowercase().contains("damage"), "{err}");
    assert_eq!(output.stdout.split(|byte| *byte == b'\n').count() - 1, 100, "what is before it is delivered");
    let behind = server.ok(&["sub", "t", "--from", "102", "--until", "end", "-f", "%o\\n"], b"");
    assert_eq!(behind.split(|byte| *byte == b'\n').count() - 1, 98, "what is behind it is there");
    is_served_from(&server, "t", 200);
    server.stop_cleanly();
}

/// A new record gets the offset that is due.
fn is_served_from(server: &Server, topic: &str, offset: u64) {
    let said = server.ok(&["pub", topic, "more", "--json"], b"");
    assert!(String::from_utf8(said).unwrap().contains(&format!("\"offset\":{offset}")));
}

/// One of two shards is refused: the others could not do without it, so the server says which and ends.
#[test]
fn a_refused_shard_is_named_and_nobody_waits_for_it() {
    for damaged in [1, 0] {
        let dir = scratch();
        let data = dir.path().join("data");
        let Some(server) = Launch::new(&data).ready() else { return };
        Raw::greeted(server.address).create("t", 2);
        fill(&server, "t", 0);
        fill(&server, "t", 1);
        server.kill();
        let (segment, bytes) = fullest_segment(&data.join(format!("shard-{damaged:02}")));
        let groups = groups(&bytes);
        let position = groups[groups.len() / 2] + 5;
        flip(&segment, position);
        let ended = Launch::new(&data).refused().unwrap();
        check(&ended, 14, "damaged_shard", &[&format!("shard {damaged}"), &segment.display().to_string()]);
        // The other one was not hurt by being started beside it.
        flip(&segment, position);
        let server = Launch::new(&data).ready().unwrap();
        let mut raw = Raw::greeted(server.address);
        for handle in [1, 2] {
            raw.open(handle, "t", handle - 1);
            assert_eq!(raw.read_all(handle).len(), 100);
        }
        server.stop_cleanly();
    }
}
