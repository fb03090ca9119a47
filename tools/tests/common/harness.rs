//! A real server under a test: started through wrappers, watched from outside, killed; clients of the command line
//! and a raw connection that may say anything. Nothing here asserts how long something takes.

#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use ringmq_format::checksum::crc32c;
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_protocol::{
    CreateTopic, ErrorCode, Fetch, HEADER_SIZE, Header, Hello, Open, Opened, Produce, ProduceOutcome,
    ProduceSlot, Request, Response, decode_response, entries, limits,
};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::{NamedTempFile, TempDir};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_ringmq");
/// Whatever takes longer than this has hung.
pub(crate) const HUNG: Duration = Duration::from_secs(60);
/// Exit code of a server that is refused io_uring.
pub(crate) const IO_URING_REFUSED: i32 = 10;

/// A directory on the file system of the build, which has direct I/O wherever the build has it.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub(crate) fn skip(why: &str) {
    println!("skipped: {why}");
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a command that a test leans on works here.
pub(crate) fn works(command: &[&str]) -> bool {
    let output = Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

/// Says so and answers false where mounts cannot be private.
pub(crate) fn can_mount() -> bool {
    let can = is_root() && works(&["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]);
    if !can {
        skip("mounting in a private namespace needs root");
    }
    can
}

/// Waits for something that must come.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + HUNG;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Numbers from a seed, printed by whoever draws it, so that a failure can be tried again.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new() -> Self {
        let seed = std::env::var("RINGMQ_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_nanos() as u64 ^ u64::from(std::process::id())
        });
        println!("RINGMQ_TEST_SEED={seed}");
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A base port with free ports for so many shards behind it, below those that the kernel hands out.
pub(crate) fn free_ports(shards: u16) -> u16 {
    let mut chance = Chance::new();
    loop {
        let base = 20_000 + chance.below(12_000) as u16;
        let taken = (base..=base + shards).map(|port| TcpListener::bind(("127.0.0.1", port)));
        if taken.collect::<Result<Vec<_>, _>>().is_ok() {
            return base;
        }
    }
}

// -- server ------------------------------------------------------------------------------------------------

/// How to start a server.
pub(crate) struct Launch {
    data: PathBuf,
    args: Vec<String>,
    wrapper: Vec<String>,
    port: u16,
}

/// What became of a start.
pub(crate) enum Outcome {
    Ready(Server),
    Ended(Ended),
}

/// A server that has ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A running server, killed when the test ends.
pub(crate) struct Server {
    child: Child,
    lines: Mutex<mpsc::Receiver<String>>,
    out: String,
    err: NamedTempFile,
    pub(crate) start: Value,
    pub(crate) ready: Value,
    pub(crate) address: SocketAddr,
    pub(crate) ports: Vec<u16>,
}

impl Launch {
    /// Two shards, small, topics on first use.
    pub(crate) fn new(data: &Path) -> Self {
        let small = ["--shards=2", "--memory=128M", "--segment-size=8M", "--auto-create-topics"];
        Self { data: data.to_owned(), args: small.map(str::to_owned).to_vec(), wrapper: Vec::new(), port: 0 }
    }

    /// More flags; later ones win.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// A command that runs the server, which is put behind it.
    pub(crate) fn wrap(mut self, wrapper: &[&str]) -> Self {
        self.wrapper.extend(wrapper.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// A base port instead of a free one.
    pub(crate) fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Starts and waits until it serves, or ends.
    pub(crate) fn start(&self) -> Outcome {
        let mut command = match self.wrapper.split_first() {
            None => Command::new(BINARY),
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(BINARY);
                command
            }
        };
        let err = NamedTempFile::new().unwrap();
        command
            .args(["server", "--json", "--admin-listen", "127.0.0.1:0", "--log-format", "json"])
            .arg(format!("--listen=127.0.0.1:{}", self.port))
            .arg("--data")
            .arg(&self.data)
            .args(&self.args)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(err.reopen().unwrap());
        let mut child = command.spawn().unwrap();
        let lines = Mutex::new(collect_lines(&mut child));
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (start, ready) = (Value::Null, Value::Null);
        let mut server = Server {
            child,
            lines,
            out: String::new(),
            err,
            start,
            ready,
            address: nowhere,
            ports: Vec::new(),
        };
        loop {
            let line = server.lines.get_mut().unwrap().recv_timeout(HUNG);
            match line {
                Ok(line) => {
                    let event: Value = serde_json::from_str(&line).unwrap_or_default();
                    server.out += &line;
                    server.out.push('\n');
                    match event["event"].as_str() {
                        Some("start") => server.start = event,
                        Some("ready") => {
                            server.address = event["native"].as_str().unwrap().parse().unwrap();
                            let ports = event["shard_ports"].as_array().unwrap().iter();
                            server.ports = ports.map(|port| port.as_u64().unwrap() as u16).collect();
                            server.ready = event;
                            return Outcome::Ready(server);
                        }
                        _ => {}
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Outcome::Ended(server.ended()),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("neither ready nor ended: {} {}", server.out, server.stderr())
                }
            }
        }
    }

    /// A server that must start; none where io_uring is refused, after saying so.
    pub(crate) fn ready(&self) -> Option<Server> {
        match self.start() {
            Outcome::Ready(server) => Some(server),
            Outcome::Ended(ended) if ended.code == Some(IO_URING_REFUSED) => {
                skip("io_uring is refused here");
                None
            }
            Outcome::Ended(ended) => panic!("exit {:?}: {} {}", ended.code, ended.out, ended.err),
        }
    }

    /// A server that must not start, and how it ends; none where io_uring is refused, after saying so.
    pub(crate) fn refused(&self) -> Option<Ended> {
        match self.start() {
            Outcome::Ready(server) => panic!("it serves: {}", server.out),
            Outcome::Ended(ended) if ended.code == Some(IO_URING_REFUSED) => {
                skip("io_uring is refused here");
                None
            }
            Outcome::Ended(ended) => Some(ended),
        }
    }
}

fn collect_lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    // Reads on to the end, so that the server never meets a full pipe.
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// A child that does not outlive the test.
pub(crate) struct Reaped(pub(crate) Child);

impl Reaped {
    /// `kill -9`, if it still runs.
    pub(crate) fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        self.end();
    }
}

/// The end of a child, which must come.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + HUNG;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "process {} does not end", child.id());
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: &str) {
        assert!(works(&["kill", &format!("-{signal}"), &self.pid().to_string()]), "kill -{signal}");
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn stop(self) -> Ended {
        self.signal("TERM");
        self.ended()
    }

    /// SIGTERM; it must end cleanly.
    pub(crate) fn stop_cleanly(self) {
        let ended = self.stop();
        assert_eq!(ended.code, Some(0), "{} {}", ended.out, ended.err);
    }

    fn ended(mut self) -> Ended {
        let status = wait(&mut self.child);
        let out = std::mem::take(&mut self.out);
        let out = self.lines.get_mut().unwrap().iter().fold(out, |out, line| out + &line + "\n");
        Ended { code: status.code(), out, err: self.stderr() }
    }

    /// What it has logged so far.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.err.path()).unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The port of a shard.
    pub(crate) fn shard(&self, shard: usize) -> SocketAddr {
        SocketAddr::new(self.address.ip(), self.ports[shard])
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Open sockets. Segment files are not counted: they stay open, and there are more the more is stored.
    pub(crate) fn sockets(&self) -> usize {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// Sum of a metric over its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let mut admin = TcpStream::connect(self.ready["admin"].as_str().unwrap()).unwrap();
        write!(admin, "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        admin.read_to_string(&mut page).unwrap();
        let lines = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// A verb of the command line, for this server.
    pub(crate) fn client(&self, args: &[&str]) -> Command {
        client(self.address, args)
    }

    /// stdout of a verb that must succeed.
    pub(crate) fn ok(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = self.client(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output().unwrap()
        });
        assert!(output.status.success(), "{args:?}: {}", self.stderr());
        output.stdout
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{} {:?} said: {}", self.pid(), self.child.try_wait(), self.stderr());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A verb of the command line.
pub(crate) fn client(server: SocketAddr, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args).env("RINGMQ_SERVER", server.to_string()).stdin(Stdio::null());
    command
}

// -- raw connection ----------------------------------------------------------------------------------------

/// A connection that may say anything.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    correlation: u64,
    /// Answers that came before they were waited for: they come in any order.
    early: HashMap<u64, Message>,
}

/// A message of the server.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) fields: Vec<u8>,
    pub(crate) frames: Vec<u8>,
}

impl Message {
    pub(crate) fn response(&self) -> Response<'_> {
        decode_response(&self.header, &self.fields).unwrap()
    }

    /// The code of an error answer.
    pub(crate) fn error(&self) -> Option<ErrorCode> {
        match self.response() {
            Response::Error(error) => Some(ErrorCode::parse(error.code).unwrap()),
            _ => None,
        }
    }

    pub(crate) fn outcomes(&self) -> Vec<ProduceOutcome> {
        match self.response() {
            Response::Produced(outcomes) => outcomes.to_vec(),
            other => panic!("no answer to PRODUCE: {other:?}"),
        }
    }
}

impl Raw {
    /// Connected, nothing said.
    pub(crate) fn dial(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(HUNG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, correlation: 0, early: HashMap::new() }
    }

    /// Connected, HELLO said and answered.
    pub(crate) fn greeted(address: SocketAddr) -> Self {
        let mut raw = Self::dial(address);
        let answer = raw.ask(&hello());
        assert!(matches!(answer.response(), Response::Hello(_)), "{:?}", answer.response());
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends without waiting; the correlation.
    pub(crate) fn tell(&mut self, request: &Request<'_>) -> u64 {
        self.correlation += 1;
        let mut bytes = Vec::new();
        request.encode(self.correlation, &mut bytes);
        self.send(&bytes);
        self.correlation
    }

    /// Asks and waits for the answer.
    pub(crate) fn ask(&mut self, request: &Request<'_>) -> Message {
        let correlation = self.tell(request);
        self.answer(correlation)
    }

    /// The error that a request must be answered with.
    pub(crate) fn error(&mut self, request: &Request<'_>) -> ErrorCode {
        let answer = self.ask(request);
        answer.error().unwrap_or_else(|| panic!("{request:?} is no error: {:?}", answer.response()))
    }

    /// The answer to a request; pushes in front of it are dropped.
    pub(crate) fn answer(&mut self, correlation: u64) -> Message {
        if let Some(message) = self.early.remove(&correlation) {
            return message;
        }
        loop {
            let message = self.next().unwrap_or_else(|| panic!("closed before answer {correlation}"));
            match message.header.correlation() {
                0 => {}
                found if found == correlation => return message,
                found => drop(self.early.insert(found, message)),
            }
        }
    }

    /// The next message; none when the server has closed.
    pub(crate) fn next(&mut self) -> Option<Message> {
        let mut header = [0; HEADER_SIZE];
        if let Err(error) = self.stream.read_exact(&mut header) {
            let closed = matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset);
            assert!(closed, "neither a message nor an end: {error}");
            return None;
        }
        let header = *Header::parse(&header, limits::RESPONSE_SIZE_MAX).unwrap();
        let mut fields = vec![0; header.fields_len()];
        let mut frames = vec![0; header.frames_len()];
        self.stream.read_exact(&mut fields).unwrap();
        self.stream.read_exact(&mut frames).unwrap();
        Some(Message { header, fields, frames })
    }

    /// The server must close, with nothing more to say.
    pub(crate) fn closed(&mut self) {
        if let Some(message) = self.next() {
            panic!("not closed: {:?}", message.response());
        }
    }

    /// The connection must live.
    pub(crate) fn lives(&mut self) {
        assert_eq!(self.ask(&Request::Ping).response(), Response::Pong);
    }

    pub(crate) fn create(&mut self, name: &str, partitions: u32) -> Message {
        self.ask(&Request::CreateTopic(CreateTopic { name, partitions, if_not_exists: false }))
    }

    pub(crate) fn open(&mut self, handle: u32, topic: &str, partition: u32) -> Opened {
        match self.ask(&Request::Open(Open { handle, topic, partition })).response() {
            Response::Opened(opened) => opened,
            other => panic!("OPEN of {topic}[{partition}]: {other:?}"),
        }
    }

    /// Sends a PRODUCE without waiting; the correlation.
    pub(crate) fn tell_produce(&mut self, frames: &[(u32, &[u8])]) -> u64 {
        self.correlation += 1;
        let slot = |(handle, frame): &(u32, &[u8])| ProduceSlot {
            handle: (*handle).into(),
            len: (frame.len() as u32).into(),
        };
        let slots: Vec<_> = frames.iter().map(slot).collect();
        let mut bytes = Vec::new();
        Request::Produce(Produce { slots: &slots }).encode(self.correlation, &mut bytes);
        frames.iter().for_each(|(_, frame)| bytes.extend_from_slice(frame));
        self.send(&bytes);
        self.correlation
    }

    /// Sends a PRODUCE and waits for its answer.
    pub(crate) fn produce(&mut self, frames: &[(u32, &[u8])]) -> Message {
        let correlation = self.tell_produce(frames);
        self.answer(correlation)
    }

    /// Outcomes of so many answers to PRODUCE, in the order in which they come.
    pub(crate) fn outcomes_of(&mut self, answers: usize) -> Vec<ProduceOutcome> {
        (0..answers).flat_map(|_| self.next().unwrap().outcomes()).collect()
    }

    /// Base offset of each frame in a partition, in the order in which they are read, with its bytes.
    pub(crate) fn read_all(&mut self, handle: u32) -> Vec<(u64, Vec<u8>)> {
        let (mut offset, mut found) = (0, Vec::new());
        loop {
            let fetch = Fetch { handle, offset, max_bytes: 4 << 20, max_wait_ms: 0, group: 0 };
            let answer = self.ask(&Request::Fetch(fetch));
            let Response::Fetched(fields) = answer.response() else {
                panic!("FETCH at {offset}: {:?}", answer.response())
            };
            for entry in entries(&answer.frames) {
                let entry = entry.unwrap();
                assert_eq!(entry.header.base_offset.get(), offset, "entries follow each other");
                entry.frame.verify_payload().unwrap();
                found.push((offset, entry.frame.bytes.to_vec()));
                offset = entry.header.end_offset();
            }
            assert_eq!(fields.next_offset.get(), offset);
            if offset == fields.visible_end.get() {
                return found;
            }
        }
    }
}

pub(crate) fn hello() -> Request<'static> {
    Request::Hello(Hello { version_min: 1, version_max: 1, name: "test" })
}

/// A DATA frame of no idempotent producer.
pub(crate) fn frame(bodies: &[&[u8]]) -> Vec<u8> {
    let mut builder = FrameBuilder::new(0, usize::MAX);
    for body in bodies {
        builder.push(&Record { body, ..Record::default() }).unwrap();
    }
    builder.finish(ProducerStamp::default(), Default::default(), &mut |_| None)
}

/// Makes the checksum of a changed frame header right again.
pub(crate) fn reseal_frame(frame: &mut [u8]) {
    let payload = crc32c(&frame[64..]);
    frame[56..60].copy_from_slice(&payload.to_le_bytes());
    let header = crc32c(&frame[..60]);
    frame[60..64].copy_from_slice(&header.to_le_bytes());
}

/// Makes both checksums of a changed message right again.
pub(crate) fn reseal(message: &mut [u8]) {
    let aux = u32::from_le_bytes(message[20..24].try_into().unwrap()) as usize;
    if let Some(fields) = message.get(HEADER_SIZE..HEADER_SIZE + aux) {
        let payload = crc32c(fields);
        message[24..28].copy_from_slice(&payload.to_le_bytes());
    }
    let header = crc32c(&message[..28]);
    message[28..32].copy_from_slice(&header.to_le_bytes());
}

// -- publishers, and what must have become of what they published -------------------------------------------

/// `ringmq pub` under load: lines are fed to it until it is told to finish.
pub(crate) struct Publisher {
    name: String,
    child: Reaped,
    acks: PathBuf,
    stop: Arc<AtomicBool>,
    feeder: JoinHandle<u64>,
    pad: usize,
}

/// What a publisher was fed and what was acknowledged to it, in order.
pub(crate) struct Published {
    name: String,
    lines: u64,
    pad: usize,
    complete: bool,
    pub(crate) acks: Vec<(u32, u64)>,
}

/// The n-th line of a publisher.
fn line(name: &str, n: u64, pad: usize) -> String {
    let len = if pad == 0 { 0 } else { (n.wrapping_mul(7919) % pad as u64) as usize };
    format!("{name} {n} {}", "x".repeat(len))
}

impl Publisher {
    /// `pad` bounds what stands behind each line's number; `throttled` leaves the processor to others.
    pub(crate) fn start(
        server: SocketAddr,
        topic: &str,
        dir: &Path,
        name: &str,
        args: &[&str],
        pad: usize,
        throttled: bool,
    ) -> Self {
        let acks = dir.join(format!("acks-{name}"));
        let mut child = client(server, &["pub", topic, "--retry-for", "10m", "--acks-to"])
            .arg(&acks)
            .args(args)
            .stdin(Stdio::piped())
            .stderr(std::fs::File::create(dir.join(format!("pub-{name}.err"))).unwrap())
            .spawn()
            .unwrap();
        let mut stdin = std::io::BufWriter::with_capacity(16 << 10, child.stdin.take().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, feeding) = (Arc::clone(&stop), name.to_owned());
        let feeder = std::thread::spawn(move || {
            let mut n = 0;
            while !stopped.load(Ordering::Relaxed) {
                if writeln!(stdin, "{}", line(&feeding, n, pad)).is_err() {
                    break;
                }
                n += 1;
                if throttled && n % 20 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            let _ = stdin.flush();
            n
        });
        Self { name: name.to_owned(), child: Reaped(child), acks, stop, feeder, pad }
    }

    /// Acknowledged so far.
    pub(crate) fn acked(&self) -> usize {
        read_acks(&self.acks).len()
    }

    /// No more lines; all of them must be acknowledged.
    pub(crate) fn finish(mut self) -> Published {
        self.stop.store(true, Ordering::Relaxed);
        let status = wait(&mut self.child.0);
        let err =
            std::fs::read_to_string(self.acks.with_file_name(format!("pub-{}.err", self.name))).unwrap();
        assert!(status.success(), "pub {} {status}: {err}", self.name);
        let published = self.published(true);
        assert_eq!(
            published.acks.len() as u64,
            published.lines,
            "{}: every line is acknowledged",
            published.name
        );
        published
    }

    /// `kill -9`: what was acknowledged is there, the rest may be.
    pub(crate) fn kill(mut self) -> Published {
        self.child.end();
        self.stop.store(true, Ordering::Relaxed);
        self.published(false)
    }

    fn published(self, complete: bool) -> Published {
        let lines = self.feeder.join().unwrap();
        Published { name: self.name, lines, pad: self.pad, complete, acks: read_acks(&self.acks) }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.0.try_wait().unwrap().is_none()
    }
}

fn read_acks(path: &Path) -> Vec<(u32, u64)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // A line without its end was being written when the publisher was killed.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().map(|line| {
        let (partition, offset) = line.split_once(", ").unwrap();
        (partition.parse().unwrap(), offset.parse().unwrap())
    });
    lines.collect()
}

/// Values of each partition, from its first offset; `sub -f '%p %o %v\n'` has written them.
pub(crate) type Values = BTreeMap<u32, (u64, Vec<String>)>;

/// The format that `values` reads.
pub(crate) const VALUES: &str = "%p %o %v\\n";

/// Checks that the offsets of each partition follow each other.
pub(crate) fn values(written: &str) -> Values {
    let mut found = Values::new();
    for line in written.lines() {
        let mut parts = line.splitn(3, ' ');
        let partition: u32 = parts.next().unwrap().parse().unwrap();
        let offset: u64 = parts.next().unwrap().parse().unwrap();
        let (first, values) = found.entry(partition).or_insert((offset, Vec::new()));
        assert_eq!(*first + values.len() as u64, offset, "partition {partition}: offsets follow each other");
        values.push(parts.next().unwrap().to_owned());
    }
    found
}

/// Everything in a topic now.
pub(crate) fn read_topic(server: &Server, topic: &str) -> Values {
    values(&String::from_utf8(server.ok(&["sub", topic, "--until", "end", "-f", VALUES], b"")).unwrap())
}

/// Each acknowledged line is there exactly once, where its acknowledgement says, and as it was given; nothing is
/// there twice or invented; the lines of a publisher stand in order in each partition. Offsets below a partition's
/// first one may have been removed by retention.
pub(crate) fn verify(values: &Values, published: &[Published]) {
    let by_name: HashMap<&str, &Published> = published.iter().map(|one| (one.name.as_str(), one)).collect();
    let mut places: HashMap<&str, HashMap<u64, (u32, u64)>> = HashMap::new();
    for (partition, (first, records)) in values {
        let mut last: HashMap<&str, u64> = HashMap::new();
        for (offset, value) in (*first..).zip(records) {
            let place = format!("partition {partition}, offset {offset}");
            let mut parts = value.splitn(3, ' ');
            let name = parts.next().unwrap();
            let one = by_name.get(name).unwrap_or_else(|| panic!("{place}: nobody published {value:?}"));
            let name = one.name.as_str();
            let n: u64 = parts.next().unwrap().parse().unwrap();
            assert!(n < one.lines, "{place}: {name} has not published line {n}");
            assert_eq!(*value, line(name, n, one.pad), "{place}: not as it was given");
            let before = last.insert(name, n);
            assert!(before < Some(n), "{place}: line {n} of {name} behind line {before:?}");
            let twice = places.entry(name).or_default().insert(n, (*partition, offset));
            assert_eq!(twice, None, "{place}: line {n} of {name} is there twice");
        }
    }
    for one in published {
        let found = places.remove(one.name.as_str()).unwrap_or_default();
        for (n, (partition, offset)) in (0..).zip(&one.acks) {
            if values.get(partition).is_some_and(|(first, _)| first <= offset) {
                let place = found.get(&n);
                assert_eq!(place, Some(&(*partition, *offset)), "line {n} of {} was acknowledged", one.name);
            }
        }
        if one.complete {
            assert!(found.len() <= one.acks.len(), "{}", one.name);
        }
    }
}
