//! A disk that is full: producers get an error that says "later", consumers go on, and when space returns so does
//! the server, by itself, with everything acknowledged.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{
    Launch, Outcome, Publisher, Raw, Server, can_mount, eventually, frame, read_topic, scratch, skip, verify,
    works,
};
use ringmq_protocol::ErrorCode;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Mounts that nobody else sees, kept by a process that sleeps in their namespace.
struct Mount {
    holder: Child,
}

impl Mount {
    /// None where the script does not work here.
    fn new(script: &str, dir: &Path) -> Option<Self> {
        let script = format!("{script} && echo mounted && exec sleep 1000000");
        let mut holder = Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .env("DIR", dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mount = Self { holder };
        (line == "mounted\n").then_some(mount)
    }

    fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    fn launch(&self, data: &Path) -> Launch {
        Launch::new(data).args(&["--segment-size=4M", "--shards=1"]).wrap(&[
            "nsenter",
            "-m",
            "-t",
            &self.pid(),
        ])
    }

    /// Runs a command inside.
    fn run(&self, command: &[&str]) {
        let (pid, mut inside) = (self.pid(), vec!["nsenter", "-m", "-t"]);
        inside.push(&pid);
        inside.extend(command);
        assert!(works(&inside), "{command:?}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The code with which a small frame is refused now, or none.
fn refusal(raw: &mut Raw) -> Option<ErrorCode> {
    let outcome = raw.produce(&[(1, &frame(&[&[b'p'; 100_000]]))]).outcomes()[0];
    ErrorCode::parse(outcome.code.get())
}

fn probe(server: &Server) -> Raw {
    let mut raw = Raw::greeted(server.address);
    raw.create("probe", 1);
    raw.open(1, "probe", 0);
    raw
}

/// Publishes until the disk is full.
fn fill(server: &Server, raw: &mut Raw) {
    eventually("the disk is full", || match refusal(raw) {
        None => false,
        Some(ErrorCode::DiskFull) => true,
        other => panic!("{other:?} {}", server.stderr()),
    });
}

fn fills_and_recovers(mount: &Mount, data: &Path, more_space: impl FnOnce()) {
    let launch = mount.launch(data);
    let mut server = match launch.start() {
        Outcome::Ready(server) => server,
        Outcome::Ended(ended) if ended.code == Some(harness::IO_URING_REFUSED) => {
            return skip("io_uring is refused here");
        }
        Outcome::Ended(ended) => panic!("{:?} {}", ended.code, ended.err),
    };
    let acks = scratch();
    let mut raw = probe(&server);
    let mut publisher = Publisher::start(server.address, "t", acks.path(), "a", &[], 2000, false);
    fill(&server, &mut raw);
    // Refused with "later", and nothing else is hurt: the publisher waits, readers read all that was acknowledged.
    assert!(publisher.is_running());
    let acked = publisher.acked();
    assert!(acked > 0);
    let found = read_topic(&server, "t");
    assert!(found.values().map(|(_, values)| values.len()).sum::<usize>() >= acked);
    assert!(server.is_running());
    assert_eq!(server.metric("ringmq_poisoned"), 0.0);
    let outcome = raw.produce(&[(1, &frame(&[b"again"]))]).outcomes()[0];
    if outcome.code.get() != 0 {
        assert_eq!(ErrorCode::parse(outcome.code.get()), Some(ErrorCode::DiskFull));
        assert!(outcome.retry_after_ms.get() > 0, "it says when to try again");
    }
    let said = raw.create("new-when-full", 1);
    assert!(said.error().is_none_or(|code| code == ErrorCode::DiskFull), "{:?}", said.response());
    // A restart finds room for what it must write, and everything.
    let published = publisher.kill();
    server.kill();
    server = launch.ready().unwrap();
    let mut raw = probe(&server);
    let published = [published];
    verify(&read_topic(&server, "t"), &published);
    fill(&server, &mut raw);

    let publisher = Publisher::start(server.address, "t", acks.path(), "b", &[], 2000, false);
    more_space();
    eventually("producing goes on by itself", || refusal(&mut raw).is_none());
    eventually("the publisher goes on by itself", || publisher.acked() > 1000);
    let [first] = published;
    let published = [first, publisher.finish()];
    verify(&read_topic(&server, "t"), &published);
    server.stop_cleanly();
    let server = launch.ready().unwrap();
    verify(&read_topic(&server, "t"), &published);
}

fn can_enter() -> bool {
    can_mount()
        && (works(&["nsenter", "--version"]) || {
            skip("no nsenter");
            false
        })
}

#[test]
fn a_full_tmpfs() {
    if !can_enter() {
        return;
    }
    let dir = scratch();
    let Some(mount) = Mount::new("mount -t tmpfs -o size=64M none \"$DIR\"", dir.path()) else {
        return skip("no tmpfs");
    };
    let path = dir.path().display().to_string();
    fills_and_recovers(&mount, &dir.path().join("data"), || {
        mount.run(&["mount", "-o", "remount,size=256M", &path]);
    });
}

#[test]
fn a_full_ext4() {
    if !can_enter() {
        return;
    }
    let dir = scratch();
    let (image, at) = (dir.path().join("image"), dir.path().join("mount"));
    std::fs::create_dir(&at).unwrap();
    std::fs::File::create(&image).unwrap().set_len(200 << 20).unwrap();
    if !works(&["mkfs.ext4", "-q", "-F", "-m", "0", image.to_str().unwrap()]) {
        return skip("no mkfs.ext4");
    }
    let script =
        format!("mount -o loop '{}' \"$DIR\" && fallocate -l 110M \"$DIR/ballast\"", image.display());
    let Some(mount) = Mount::new(&script, &at) else { return skip("no loop devices") };
    let ballast: PathBuf = at.join("ballast");
    fills_and_recovers(&mount, &at.join("data"), || {
        mount.run(&["rm", ballast.to_str().unwrap()]);
    });
}

/// `--disk-limit` of the test: with superblocks, sidecars and checkpoints.
const LIMIT: u64 = 48 << 20;

/// The limit that was asked for counts like the end of the disk; retention makes space again.
#[test]
fn a_full_budget() {
    let dir = scratch();
    let config = dir.path().join("ringmq.toml");
    std::fs::write(&config, "").unwrap();
    let data = dir.path().join("data");
    let launch = Launch::new(&data).args(&[
        "--shards=1",
        "--segment-size=4M",
        "--disk-limit=48M",
        &format!("--config={}", config.display()),
    ]);
    let Some(server) = launch.ready() else { return };
    let mut raw = probe(&server);
    let publisher = Publisher::start(server.address, "t", dir.path(), "a", &[], 2000, false);
    fill(&server, &mut raw);
    let used = disk_use(&data);
    println!("{} MiB used of 48", used >> 20);
    assert!(used <= LIMIT, "{used} bytes are above the limit");
    let acked = publisher.acked();
    let found = read_topic(&server, "t");
    assert!(found[&0].0 == 0 && found[&0].1.len() >= acked, "the budget itself removes nothing");
    std::fs::write(&config, "retain-size = '16M'").unwrap();
    server.signal("HUP");
    eventually("retention makes space", || refusal(&mut raw).is_none());
    eventually("the publisher goes on by itself", || publisher.acked() > acked + 5000);
    let published = [publisher.finish()];
    let found = read_topic(&server, "t");
    assert!(found[&0].0 > 0, "retention has removed the oldest");
    assert!(disk_use(&data) <= LIMIT);
    verify(&found, &published);
    assert_eq!(found[&0].0 + found[&0].1.len() as u64, published[0].acks.len() as u64);
    server.stop_cleanly();
}

/// Bytes that the files below take.
fn disk_use(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.metadata().unwrap() {
            metadata if metadata.is_dir() => disk_use(&entry.path()),
            metadata => metadata.blocks() * 512,
        })
        .sum()
}
