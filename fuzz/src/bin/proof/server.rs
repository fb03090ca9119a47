//! The real server from outside: started on a directory, fed by `ringmq pub`, read by `ringmq sub`, and what the two
//! say compared. The history knows lines and acknowledgements, and nothing of the server.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Whatever takes longer has hung.
pub(crate) const HUNG: Duration = Duration::from_secs(60);
/// Exit code of a server that is refused io_uring.
const IO_URING_REFUSED: i32 = 10;
/// Exit code of a server that finds another one on its directory.
const DIRECTORY_IN_USE: i32 = 11;
pub(crate) const TOPIC: &str = "history";
const PARTITIONS: &str = "3";

/// The binary beside this one, as a release if there is one.
pub(crate) fn default_binary() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| crate::ledger::beside("../target"), PathBuf::from);
    let release = target.join("release/ringmq");
    if release.exists() { release } else { target.join("debug/ringmq") }
}

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A command that must succeed.
pub(crate) fn command(words: &[&str]) -> Result<String, String> {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", words[0]))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Is a command there?
pub(crate) fn have(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).exists()))
}

/// How a start can end.
pub(crate) enum Started {
    Ready(Server),
    /// Exit code, and what it said.
    Ended(Option<i32>, String),
}

/// A running server, killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    address: String,
    binary: PathBuf,
    err: PathBuf,
}

/// Starts a server behind the words of a wrapper, on one shard or more, and waits until it serves or ends.
pub(crate) fn start(
    binary: &Path,
    data: &Path,
    scratch: &Path,
    wrapper: &[&str],
    args: &[&str],
) -> Result<Started, String> {
    let mut words: Vec<&std::ffi::OsStr> = wrapper.iter().map(std::ffi::OsStr::new).collect();
    words.push(binary.as_os_str());
    let err = scratch.join("server.err");
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .args([
            "server",
            "--json",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--auto-create-topics",
        ])
        .args(["--shards=1", "--memory=64M", "--segment-size=4M", "--data"])
        .arg(data)
        .args(args)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&err).map_err(text)?)
        .spawn()
        .map_err(|error| format!("{}: {error}", binary.display()))?;
    let (sender, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut server = Server { child, address: String::new(), binary: binary.to_owned(), err };
    loop {
        match lines.recv_timeout(HUNG) {
            Ok(line) => {
                let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if event["event"] == "ready" {
                    server.address = event["native"].as_str().unwrap_or_default().to_owned();
                    return Ok(Started::Ready(server));
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(format!("it neither serves nor ends: {}", server.said()));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = server.wait()?;
                return Ok(Started::Ended(status.code(), server.said()));
            }
        }
    }
}

/// As `start`, of a server that must serve. `Err(None)`: io_uring is refused here. A process that was killed behind a
/// tracer may hold the directory for a moment longer.
pub(crate) fn must_start(
    binary: &Path,
    data: &Path,
    scratch: &Path,
    args: &[&str],
) -> Result<Server, Option<String>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match start(binary, data, scratch, &[], args).map_err(Some)? {
            Started::Ready(server) => return Ok(server),
            Started::Ended(Some(IO_URING_REFUSED), _) => return Err(None),
            Started::Ended(Some(DIRECTORY_IN_USE), _) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Started::Ended(code, said) => {
                return Err(Some(format!("it does not start, exit {code:?}: {said}")));
            }
        }
    }
}

impl Server {
    pub(crate) fn said(&self) -> String {
        let said = std::fs::read_to_string(&self.err).unwrap_or_default();
        let from = said.char_indices().rev().nth(2_000).map_or(0, |(at, _)| at);
        said[from..].to_owned()
    }

    pub(crate) fn wait(&mut self) -> Result<ExitStatus, String> {
        let deadline = Instant::now() + HUNG;
        loop {
            if let Some(status) = self.child.try_wait().map_err(text)? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(format!("it does not end: {}", self.said()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9`, of the server behind a wrapper too; it is gone then.
    pub(crate) fn kill(&mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        for pid in children.split_whitespace() {
            let _ = command(&["kill", "-9", pid]);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let deadline = Instant::now() + HUNG;
        for pid in children.split_whitespace() {
            while lives(pid) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// SIGTERM; it must end cleanly.
    pub(crate) fn stop(mut self) -> Result<(), String> {
        command(&["kill", "-TERM", &self.child.id().to_string()])?;
        let status = self.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a stop ended with {status}: {}", self.said())) }
    }

    pub(crate) fn client(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env("RINGMQ_SERVER", &self.address).stdin(Stdio::null());
        command
    }

    /// The topic of the history, made if it is not there.
    pub(crate) fn make_topic(&self) -> Result<(), String> {
        let output =
            self.client(&["topic", "create", TOPIC, "--partitions", PARTITIONS]).output().map_err(text)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let is_there = output.status.success() || said.contains("exists");
        if is_there { Ok(()) } else { Err(format!("topic create: {said}")) }
    }

    /// Everything in the topic: partition, offset, line.
    pub(crate) fn read(&self) -> Result<Vec<(u32, u64, String)>, String> {
        let mut reader =
            self.client(&["sub", TOPIC, "--from", "earliest", "--until", "end", "-f", "%p %o %v\\n"]);
        let output = reader.output().map_err(text)?;
        if !output.status.success() {
            return Err(format!("sub: {}: {}", String::from_utf8_lossy(&output.stderr), self.said()));
        }
        let written = String::from_utf8(output.stdout).map_err(|_| "sub: bytes nobody sent".to_owned())?;
        let parse = |line: &str| {
            let mut parts = line.splitn(3, ' ');
            Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.to_owned()))
        };
        written.lines().map(|line| parse(line).ok_or_else(|| format!("sub wrote {line:?}"))).collect()
    }
}

/// A process that is there and no zombie.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The n-th line of a publisher.
fn line(name: &str, n: u64) -> String {
    let pad = (n.wrapping_mul(7_919) % 400) as usize;
    format!("{name} {n} {}", "x".repeat(pad))
}

/// `ringmq pub`, fed with lines.
pub(crate) struct Publisher {
    name: String,
    child: Child,
    pub(crate) acks: PathBuf,
    stop: Arc<AtomicBool>,
    feeder: JoinHandle<u64>,
}

impl Publisher {
    pub(crate) fn start(server: &Server, scratch: &Path, name: &str) -> Result<Self, String> {
        let acks = scratch.join(format!("acks-{name}"));
        let mut child = server
            .client(&["pub", TOPIC, "--acks-to"])
            .arg(&acks)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(text)?;
        let mut stdin = BufWriter::with_capacity(4 << 10, child.stdin.take().ok_or("no stdin")?);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, feeding) = (Arc::clone(&stop), name.to_owned());
        let feeder = std::thread::spawn(move || {
            let mut n = 0;
            while !stopped.load(Ordering::Relaxed) && writeln!(stdin, "{}", line(&feeding, n)).is_ok() {
                n += 1;
                if n % 20 == 0 {
                    let _ = stdin.flush();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            n
        });
        Ok(Self { name: name.to_owned(), child, acks, stop, feeder })
    }

    /// `kill -9`: what was acknowledged is there, the rest may be.
    pub(crate) fn end(mut self) -> Result<Published, String> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stop.store(true, Ordering::Relaxed);
        let lines = self.feeder.join().map_err(|_| "the feeder panicked".to_owned())?;
        let acks = read_acks(&self.acks)?;
        let _ = std::fs::remove_file(&self.acks);
        Ok(Published { name: self.name, lines, acks })
    }
}

/// Acknowledgements in the order of the lines: partition, offset.
pub(crate) fn read_acks(path: &Path) -> Result<Vec<(u32, u64)>, String> {
    let written = std::fs::read_to_string(path).unwrap_or_default();
    // A line without its end was being written.
    let whole = written.rfind('\n').map_or("", |end| &written[..end]);
    let parse = |line: &str| {
        let (partition, offset) = line.split_once(", ")?;
        Some((partition.parse().ok()?, offset.parse().ok()?))
    };
    whole.lines().map(|line| parse(line).ok_or_else(|| format!("pub wrote {line:?}"))).collect()
}

/// What a publisher was fed, and what was acknowledged to it.
#[derive(Clone)]
pub(crate) struct Published {
    name: String,
    lines: u64,
    pub(crate) acks: Vec<(u32, u64)>,
}

/// Each acknowledged line is there exactly once, where its acknowledgement says and as it was given; nothing is there
/// twice or invented; offsets are dense; the lines of a publisher stand in order in each partition.
pub(crate) fn verify(found: &[(u32, u64, String)], published: &[Published]) -> Result<(), String> {
    let by_name: HashMap<&str, &Published> = published.iter().map(|one| (one.name.as_str(), one)).collect();
    let mut places: HashMap<(&str, u64), (u32, u64)> = HashMap::new();
    let mut next: HashMap<u32, u64> = HashMap::new();
    let mut last: HashMap<(u32, &str), u64> = HashMap::new();
    for (partition, offset, value) in found {
        let place = format!("partition {partition}, offset {offset}");
        let expected = next.insert(*partition, offset + 1).unwrap_or(0);
        if expected != *offset {
            return Err(format!("{place}: {expected} was next"));
        }
        let mut parts = value.splitn(3, ' ');
        let name = parts.next().and_then(|name| by_name.get(name));
        let n = parts.next().and_then(|n| n.parse::<u64>().ok());
        let (Some(one), Some(n)) = (name, n) else {
            return Err(format!("{place}: nobody published {value:?}"));
        };
        if n >= one.lines || *value != line(&one.name, n) {
            return Err(format!("{place}: not as it was given: {value:?}"));
        }
        if places.insert((&one.name, n), (*partition, *offset)).is_some() {
            return Err(format!("{place}: line {n} of {} is there twice", one.name));
        }
        if last.insert((*partition, &one.name), n).is_some_and(|before| before >= n) {
            return Err(format!("{place}: line {n} of {} is out of order", one.name));
        }
    }
    for one in published {
        for (n, place) in (0..).zip(&one.acks) {
            let found = places.get(&(one.name.as_str(), n));
            if found != Some(place) {
                return Err(format!(
                    "line {n} of {} was acknowledged at {place:?} and is at {found:?}",
                    one.name
                ));
            }
        }
    }
    Ok(())
}
