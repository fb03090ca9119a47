//! The world's heart: nodes, rings, ops in flight, and the queue of events that time walks along.

use super::config::{ClockConfig, DiskFaults, SimConfig};
use super::disk::{Disk, DiskImage, InFlight, PAGE, Page, Pages, SECTOR, normal};
use super::fault::{Armed, Harm, OpKind};
use super::net::{Conn, Listener, Socket};
use super::rng::{Rng, splitmix};
use super::{NodeId, RingId};
use crate::ring::{Errno, FileFacts, FileId, Now, Op, RingStats, Token};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Calls of `wait` between two events after which a loop is taken to spin.
const WAITS_MAX: u32 = 1_000_000;
/// Ops that a ring queues before it submits without a `wait`.
const QUEUE_MAX: usize = 1024;

/// Multiplier of the trace hash.
const MIX: u64 = 0x517c_c1b7_2722_0a95;

/// One stream for each source of chance.
pub(super) struct Random {
    pub(super) schedule: Rng,
    pub(super) time: Rng,
    pub(super) disk: Rng,
    pub(super) crash: Rng,
    pub(super) net: Rng,
    pub(super) engine: Rng,
    pub(super) workload: Rng,
}

/// What happened, as one number and as the last lines of a text.
pub(super) struct Trace {
    pub(super) hash: u64,
    pub(super) lines: VecDeque<String>,
    lines_max: usize,
}

impl Trace {
    pub(super) fn mix(&mut self, words: &[u64]) {
        for &word in words {
            self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(MIX);
        }
    }

    fn line(&mut self, now: u64, words: impl FnOnce() -> String) {
        if self.lines_max == 0 {
            return;
        }
        if self.lines.len() == self.lines_max {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{now:>10} us  {}", words()));
    }
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(MIX)
    })
}

/// A few words of a page: enough to tell two traces apart.
fn digest(pages: &[Rc<Page>]) -> u64 {
    let mut hash = 0u64;
    for page in pages {
        for chunk in page.chunks_exact(64) {
            let word = chunk[..8].iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
            hash = (hash.rotate_left(5) ^ word).wrapping_mul(MIX);
        }
    }
    hash
}

pub(super) enum Payload {
    None,
    Pages(Pages),
    Bytes(Rc<Vec<u8>>),
}

/// What an op read.
pub(super) enum Data {
    None,
    Bytes(Vec<u8>),
    Pages(Vec<Rc<Page>>, usize),
}

/// A completion on its way to `reap`.
pub(super) struct Delivered {
    pub(super) id: u64,
    pub(super) result: Result<u32, Errno>,
    pub(super) data: Data,
}

struct Queued {
    id: u64,
    token: Option<Token>,
    op: Op,
    payload: Payload,
}

struct OpenFile {
    ino: u64,
    path: PathBuf,
    /// Failed syncs of the file that this descriptor has told of.
    errors_seen: u32,
    in_flight: u32,
}

enum Sleep {
    Awake,
    /// Until this virtual time.
    Until(Option<u64>),
}

pub(super) struct RingState {
    pub(super) node: NodeId,
    pub(super) alive: bool,
    pub(super) stats: RingStats,
    made_at: u64,
    sleep: Sleep,
    queue: VecDeque<Queued>,
    done: VecDeque<(Token, Delivered)>,
    run_done: Option<Delivered>,
    files: Vec<Option<OpenFile>>,
    pub(super) sockets: Vec<Option<Socket>>,
    bell: Arc<AtomicBool>,
    waits: u32,
}

pub(super) struct Node {
    pub(super) disk: Disk,
    pub(super) io_events: u64,
    pub(super) faults: Vec<Armed>,
    /// Added to the wall clock.
    pub(super) clock_ms: i64,
    pub(super) listeners: BTreeMap<u16, Listener>,
    drift_ppm: i64,
    ends_at: Option<(u64, Ending)>,
    locks: BTreeMap<PathBuf, RingId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    Kill,
    PowerOff,
}

/// An op as the world carries it out.
pub(super) enum Work {
    Write { file: u32, ino: u64, position: u64, pages: Pages, durable: bool, contested: Vec<Range<u64>> },
    Read { file: u32, ino: u64, position: u64, len: usize },
    Sync { file: u32, ino: u64, covers: u64 },
    SyncDir { path: PathBuf, covers: u64 },
    Open { path: PathBuf, create: bool },
    Allocate { file: u32, ino: u64, len: u64 },
    Close { file: u32 },
    Accept { socket: u32 },
    Recv { socket: u32, len: usize },
    Send { socket: u32, bytes: Rc<Vec<u8>> },
    CloseSocket { socket: u32 },
    Refused(Errno),
}

impl Work {
    /// Counts as a disk event.
    fn is_disk(&self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::Read { .. }
                | Self::Sync { .. }
                | Self::SyncDir { .. }
                | Self::Open { .. }
                | Self::Allocate { .. }
        )
    }

    fn file(&self) -> Option<u32> {
        match *self {
            Self::Write { file, .. }
            | Self::Read { file, .. }
            | Self::Sync { file, .. }
            | Self::Allocate { file, .. } => Some(file),
            _ => None,
        }
    }

    fn kind(&self) -> Option<OpKind> {
        Some(match self {
            Self::Write { .. } => OpKind::Write,
            Self::Read { .. } => OpKind::Read,
            Self::Sync { .. } => OpKind::Sync,
            Self::SyncDir { .. } => OpKind::SyncDir,
            Self::Open { .. } => OpKind::Open,
            Self::Allocate { .. } => OpKind::Allocate,
            Self::Accept { .. } => OpKind::Accept,
            Self::Recv { .. } => OpKind::Recv,
            Self::Send { .. } => OpKind::Send,
            Self::Close { .. } | Self::CloseSocket { .. } | Self::Refused(_) => return None,
        })
    }

    fn digest(&self) -> [u64; 4] {
        let of_path = |path: &Path| hash(path.as_os_str().as_encoded_bytes());
        match self {
            Self::Write { ino, position, pages, durable, .. } => {
                [1 + u64::from(*durable), *ino, *position, digest(pages) ^ pages.len() as u64]
            }
            Self::Read { ino, position, len, .. } => [3, *ino, *position, *len as u64],
            Self::Sync { ino, covers, .. } => [4, *ino, *covers, 0],
            Self::SyncDir { path, covers } => [5, *covers, of_path(path), 0],
            Self::Open { path, create } => [6, u64::from(*create), of_path(path), 0],
            Self::Allocate { ino, len, .. } => [7, *ino, *len, 0],
            Self::Close { file } => [8, u64::from(*file), 0, 0],
            Self::Accept { socket } => [9, u64::from(*socket), 0, 0],
            Self::Recv { socket, len } => [10, u64::from(*socket), *len as u64, 0],
            Self::Send { socket, bytes } => [11, u64::from(*socket), bytes.len() as u64, hash(bytes)],
            Self::CloseSocket { socket } => [12, u64::from(*socket), 0, 0],
            Self::Refused(errno) => [13, errno.0 as u64, 0, 0],
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Write { ino, position, pages, durable, .. } => {
                let durable = if *durable { "durable " } else { "" };
                format!("{durable}write of inode {ino} at {position}, {} bytes", pages.len() * PAGE)
            }
            Self::Read { ino, position, len, .. } => {
                format!("read of inode {ino} at {position}, {len} bytes")
            }
            Self::Sync { ino, covers, .. } => format!("sync of inode {ino} up to change {covers}"),
            Self::SyncDir { path, .. } => format!("sync of {}", path.display()),
            Self::Open { path, .. } => format!("open of {}", path.display()),
            Self::Allocate { ino, len, .. } => format!("allocation of inode {ino} to {len}"),
            Self::Close { file } => format!("close of file {file}"),
            Self::Accept { socket } => format!("accept on socket {socket}"),
            Self::Recv { socket, len } => format!("receive on socket {socket}, up to {len}"),
            Self::Send { socket, bytes } => format!("send on socket {socket}, {} bytes", bytes.len()),
            Self::CloseSocket { socket } => format!("close of socket {socket}"),
            Self::Refused(errno) => format!("refused op: {errno}"),
        }
    }
}

pub(super) struct Flight {
    pub(super) ring: RingId,
    token: Option<Token>,
    pub(super) work: Work,
    harm: Option<Harm>,
    /// Waits for a packet, room or a connection.
    pub(super) blocked: bool,
}

pub(super) enum Event {
    Execute(u64),
    Packet { conn: usize, direction: usize },
    Connect { conn: usize },
}

pub(super) struct State {
    pub(super) config: SimConfig,
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) trace: Trace,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) rings: Vec<RingState>,
    pub(super) flights: BTreeMap<u64, Flight>,
    pub(super) conns: Vec<Conn>,
    seed: u64,
    events: BTreeMap<(u64, u64), Event>,
    event_last: u64,
    op_last: u64,
}

impl State {
    pub(super) fn new(seed: u64, config: SimConfig) -> Self {
        let random = Random {
            schedule: Rng::new(seed, 1),
            time: Rng::new(seed, 2),
            disk: Rng::new(seed, 3),
            crash: Rng::new(seed, 4),
            net: Rng::new(seed, 5),
            engine: Rng::new(seed, 6),
            workload: Rng::new(seed, 7),
        };
        let trace = Trace { hash: splitmix(seed), lines: VecDeque::new(), lines_max: config.trace_lines };
        Self {
            config,
            now: 0,
            random,
            trace,
            nodes: BTreeMap::new(),
            rings: Vec::new(),
            flights: BTreeMap::new(),
            conns: Vec::new(),
            seed,
            events: BTreeMap::new(),
            event_last: 0,
            op_last: 0,
        }
    }

    // Who is there.

    pub(super) fn node(&mut self, id: NodeId) -> &mut Node {
        let Self { nodes, config, seed, .. } = self;
        nodes.entry(id).or_insert_with(|| {
            let mut rng = Rng::new(*seed, 1000 + u64::from(id.0));
            let either_way =
                |rng: &mut Rng, most: i64| rng.below(2 * most.unsigned_abs() + 1) as i64 - most.abs();
            let clock = &config.clock;
            let (clock_ms, drift_ppm) =
                (either_way(&mut rng, clock.offset_ms_max), either_way(&mut rng, clock.drift_ppm_max));
            let disk = &config.disk;
            Node {
                disk: Disk::new(rng.next(), disk.budget, disk.fresh, &disk.roots),
                io_events: 0,
                faults: Vec::new(),
                clock_ms,
                listeners: BTreeMap::new(),
                drift_ppm,
                ends_at: None,
                locks: BTreeMap::new(),
            }
        })
    }

    pub(super) fn ring(&self, id: RingId) -> &RingState {
        &self.rings[id.0 as usize]
    }

    pub(super) fn ring_mut(&mut self, id: RingId) -> &mut RingState {
        &mut self.rings[id.0 as usize]
    }

    pub(super) fn ring_ids(&self) -> impl Iterator<Item = RingId> + use<> {
        (0..self.rings.len() as u32).map(RingId)
    }

    pub(super) fn add_ring(&mut self, node: NodeId) -> (RingId, Arc<AtomicBool>) {
        self.node(node);
        let bell = Arc::new(AtomicBool::new(false));
        self.rings.push(RingState {
            node,
            alive: true,
            stats: RingStats::default(),
            made_at: self.now,
            sleep: Sleep::Awake,
            queue: VecDeque::new(),
            done: VecDeque::new(),
            run_done: None,
            files: Vec::new(),
            sockets: Vec::new(),
            bell: Arc::clone(&bell),
            waits: 0,
        });
        (RingId(self.rings.len() as u32 - 1), bell)
    }

    pub(super) fn note(&mut self, text: &str) {
        self.trace.mix(&[hash(text.as_bytes())]);
        self.trace.line(self.now, || text.to_owned());
    }

    // Time.

    pub(super) fn schedule(&mut self, at: u64, event: Event) {
        self.event_last += 1;
        self.events.insert((at, self.event_last), event);
    }

    pub(super) fn next_event(&self) -> Option<u64> {
        self.events.first_key_value().map(|(&(at, _), _)| at)
    }

    /// When a living ring that sleeps wants to be woken, if that is still ahead.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let deadline = |ring: &RingState| match ring.sleep {
            Sleep::Until(Some(at)) if ring.alive && at > self.now => Some(at),
            _ => None,
        };
        self.rings.iter().filter_map(deadline).min()
    }

    fn time_is(&mut self, now: u64) {
        assert!(now >= self.now, "time goes back from {} to {now}", self.now); // W2
        self.now = now;
    }

    /// The next event, whatever rings wait for.
    pub(super) fn next_happens(&mut self) -> bool {
        let Some(((at, _), event)) = self.events.pop_first() else { return false };
        self.time_is(at);
        for ring in &mut self.rings {
            ring.waits = 0;
        }
        match event {
            Event::Execute(op) => self.execute(op),
            Event::Packet { conn, direction } => self.packet(conn, direction),
            Event::Connect { conn } => self.arrives(conn),
        }
        true
    }

    pub(super) fn step(&mut self) -> bool {
        match (self.next_event(), self.next_deadline()) {
            (event, Some(deadline)) if event.is_none_or(|event| deadline < event) => {
                self.time_is(deadline);
                true
            }
            _ => self.next_happens(),
        }
    }

    pub(super) fn advance(&mut self, us: u64) {
        let end = self.now + us;
        while self.next_event().is_some_and(|at| at <= end) {
            self.next_happens();
        }
        self.time_is(end);
    }

    pub(super) fn is_runnable(&self, id: RingId) -> bool {
        let ring = self.ring(id);
        let due = match ring.sleep {
            Sleep::Awake => true,
            Sleep::Until(at) => at.is_some_and(|at| at <= self.now),
        };
        ring.alive
            && (due || !ring.done.is_empty() || !ring.queue.is_empty() || ring.bell.load(Ordering::Acquire))
    }

    pub(super) fn wall_ms(&mut self, node: NodeId) -> i64 {
        let (now, seed) = (self.now, self.seed);
        let ClockConfig { base_ms, jump_every_us, jump_ms_max, .. } = self.config.clock;
        let node_state = self.node(node);
        let drift = (i128::from(now) * i128::from(node_state.drift_ppm) / 1_000_000_000) as i64;
        let jump = now.checked_div(jump_every_us).map_or(0, |period| {
            let draw = splitmix(seed ^ splitmix(period) ^ u64::from(node.0));
            (draw % (2 * jump_ms_max.unsigned_abs() + 1)) as i64 - jump_ms_max.abs()
        });
        base_ms + (now / 1000) as i64 + node_state.clock_ms + drift + jump
    }

    pub(super) fn clocks(&mut self, id: RingId) -> Now {
        let node = self.ring(id).node;
        Now { mono_us: self.now - self.ring(id).made_at, wall_ms: self.wall_ms(node) }
    }

    // What rings ask.

    pub(super) fn next_op(&mut self) -> u64 {
        self.op_last += 1;
        self.op_last
    }

    pub(super) fn queue(&mut self, id: RingId, op_id: u64, token: Option<Token>, op: Op, payload: Payload) {
        let ring = self.ring_mut(id);
        ring.queue.push_back(Queued { id: op_id, token, op, payload });
        if ring.queue.len() >= QUEUE_MAX {
            self.push_queue(id);
        }
    }

    fn push_queue(&mut self, id: RingId) {
        while let Some(queued) = self.ring_mut(id).queue.pop_front() {
            self.start(id, queued);
        }
    }

    pub(super) fn run_begins(&mut self, id: RingId) {
        self.ring_mut(id).stats.enters += 1;
        self.push_queue(id);
    }

    /// Whether the ring still lives.
    pub(super) fn wait(&mut self, id: RingId, until_us: Option<u64>) -> bool {
        self.push_queue(id);
        let (now, poll_us) = (self.now, self.config.poll_us.max(1));
        let ring = self.ring_mut(id);
        ring.stats.enters += 1;
        ring.waits += 1;
        assert!(
            ring.waits < WAITS_MAX,
            "{id:?} spins: the simulator's wait does not let time pass, run and step do"
        );
        let rung = ring.bell.swap(false, Ordering::AcqRel);
        ring.sleep = if rung || !ring.done.is_empty() {
            Sleep::Awake
        } else {
            let until = until_us.map(|us| ring.made_at.saturating_add(us));
            Sleep::Until(until.map(|at| at.max(now + poll_us)))
        };
        ring.alive
    }

    pub(super) fn take_done(&mut self, id: RingId) -> Option<(Token, Delivered)> {
        let ring = self.ring_mut(id);
        let done = ring.done.pop_front()?;
        ring.stats.reaped += 1;
        Some(done)
    }

    pub(super) fn take_run_done(&mut self, id: RingId) -> Option<Delivered> {
        let ring = self.ring_mut(id);
        let done = ring.run_done.take()?;
        ring.stats.reaped += 1;
        Some(done)
    }

    pub(super) fn lock_dir(&mut self, id: RingId, path: &Path) -> Result<(), Errno> {
        let node = self.ring(id).node;
        let node = self.node(node);
        let path = normal(path);
        node.disk.is_dir(&path)?;
        if node.locks.contains_key(&path) {
            return Err(Errno::BUSY);
        }
        node.locks.insert(path, id);
        Ok(())
    }

    pub(super) fn file_facts(&mut self, id: RingId, file: FileId) -> Result<FileFacts, Errno> {
        let (ino, node) = (self.open_file(id, file.0)?.ino, self.ring(id).node);
        let (dio_align, every) = (self.config.disk.dio_align, self.config.disk.extent_every);
        let file = self.node(node).disk.file(ino)?;
        let extent_edges = match &file.extent_edges {
            Some(edges) => edges.clone(),
            None if every > 0 => (1..).map(|n| n * every).take_while(|&edge| edge < file.size).collect(),
            None => Vec::new(),
        };
        Ok(FileFacts { size: file.size, dio_align, extent_edges })
    }

    fn open_file(&self, id: RingId, file: u32) -> Result<&OpenFile, Errno> {
        self.ring(id).files.get(file as usize).and_then(Option::as_ref).ok_or(Errno(libc::EBADF))
    }

    fn open_file_mut(&mut self, id: RingId, file: u32) -> Option<&mut OpenFile> {
        self.ring_mut(id).files.get_mut(file as usize)?.as_mut()
    }

    // Ops.

    fn prepare(&mut self, id: RingId, op: Op, payload: Payload) -> Result<Work, Errno> {
        let node = self.ring(id).node;
        let seq = self.node(node).disk.seq;
        let ino = |state: &Self, file: FileId| Ok(state.open_file(id, file.0)?.ino);
        Ok(match (op, payload) {
            (Op::Write { file, position, durable, .. }, Payload::Pages(pages)) => {
                let ino = ino(self, file)?;
                Work::Write { file: file.0, ino, position, pages, durable, contested: Vec::new() }
            }
            (Op::Read { file, into, position }, _) => {
                let ino = ino(self, file)?;
                let aligned = position.is_multiple_of(PAGE as u64)
                    && into.len().is_multiple_of(PAGE)
                    && into.start().is_multiple_of(PAGE);
                if !aligned {
                    return Err(Errno::INVAL);
                }
                Work::Read { file: file.0, ino, position, len: into.len() }
            }
            (Op::SyncData { file } | Op::SyncAll { file }, _) => {
                self.ring_mut(id).stats.syncs += 1;
                Work::Sync { file: file.0, ino: ino(self, file)?, covers: seq }
            }
            (Op::SyncDir { path }, _) => {
                self.ring_mut(id).stats.syncs += 1;
                Work::SyncDir { path, covers: seq }
            }
            (Op::Open { path, create }, _) => Work::Open { path, create },
            (Op::Allocate { file, len }, _) => Work::Allocate { file: file.0, ino: ino(self, file)?, len },
            (Op::Close { file }, _) => {
                let in_flight = self.open_file(id, file.0)?.in_flight;
                assert_eq!(in_flight, 0, "{file:?} is closed with ops in flight"); // R2
                Work::Close { file: file.0 }
            }
            (Op::Accept { listener }, _) => Work::Accept { socket: listener.0 },
            (Op::Recv { socket, into }, _) => Work::Recv { socket: socket.0, len: into.len() },
            (Op::Send { socket, .. }, Payload::Bytes(bytes)) => Work::Send { socket: socket.0, bytes },
            (Op::CloseSocket { socket }, _) => Work::CloseSocket { socket: socket.0 },
            // A write or send whose buffer was not captured is misaligned.
            (Op::Write { .. } | Op::Send { .. }, _) => return Err(Errno::INVAL),
        })
    }

    /// What goes wrong with an op: planned faults first, then chance.
    fn choose_harm(&mut self, id: RingId, work: &Work) -> Option<Harm> {
        let kind = work.kind()?;
        let node = self.ring(id).node;
        let path = match (work, work.file()) {
            (Work::Open { path, .. } | Work::SyncDir { path, .. }, _) => path.clone(),
            (_, Some(file)) if !self.node(node).faults.is_empty() => {
                self.open_file(id, file).ok()?.path.clone()
            }
            _ => PathBuf::new(),
        };
        let path = path.to_string_lossy();
        // Each planned fault counts for itself; the first that strikes wins.
        let mut chosen = None;
        for fault in &mut self.node(node).faults {
            let harm = fault.strike(kind, &path);
            chosen = chosen.or(harm);
        }
        if chosen.is_some() {
            return chosen;
        }
        let DiskFaults {
            read_error_ppm,
            write_error_ppm,
            sync_error_ppm,
            read_short_ppm,
            write_short_ppm,
            lost_write_ppm,
            misdirected_write_ppm,
            rot_ppm,
            read_flip_ppm,
        } = self.config.disk.faults;
        let rng = &mut self.random.disk;
        let table: &[(u32, Harm)] = match kind {
            OpKind::Read => &[
                (read_error_ppm, Harm::Error(Errno::IO)),
                (read_short_ppm, Harm::Short),
                (rot_ppm, Harm::Rot),
                (read_flip_ppm, Harm::Flip),
            ],
            OpKind::Write => &[
                (write_error_ppm, Harm::Error(Errno::IO)),
                (write_short_ppm, Harm::Short),
                (lost_write_ppm, Harm::Lost),
                (misdirected_write_ppm, Harm::Misdirected),
            ],
            OpKind::Sync => &[(sync_error_ppm, Harm::Error(Errno::IO))],
            _ => &[],
        };
        table.iter().find(|&&(ppm, _)| rng.chance(ppm)).map(|&(_, harm)| harm)
    }

    fn start(&mut self, id: RingId, queued: Queued) {
        if !self.ring(id).alive {
            return;
        }
        let Queued { id: op_id, token, op, payload } = queued;
        self.ring_mut(id).stats.submitted += 1;
        let mut work = self.prepare(id, op, payload).unwrap_or_else(Work::Refused);
        let harm = self.choose_harm(id, &work);
        if let (Some(Harm::Misdirected), Work::Write { ino, position, .. }) = (harm, &mut work) {
            let node = self.ring(id).node;
            let Self { nodes, random, .. } = self;
            let stray = nodes.get(&node).and_then(|node| node.disk.stray(&mut random.disk));
            if let Some(target) = stray {
                (*ino, *position) = target;
            }
        }
        let disk = &self.config.disk;
        let time = &mut self.random.time;
        let mut latency = match &work {
            Work::Write { durable: false, .. } => disk.write.draw(time),
            Work::Write { .. } => disk.write.draw(time) + disk.sync.draw(time),
            Work::Read { .. } => disk.read.draw(time),
            Work::Sync { .. } | Work::SyncDir { .. } => disk.sync.draw(time),
            Work::Open { .. } | Work::Allocate { .. } | Work::Close { .. } | Work::Refused(_) => {
                disk.meta.draw(time)
            }
            Work::Accept { .. } | Work::Recv { .. } | Work::Send { .. } | Work::CloseSocket { .. } => {
                self.config.net.op.draw(time)
            }
        };
        if let Some(Harm::Delay(us)) = harm {
            latency += us;
        }
        let [a, b, c, d] = work.digest();
        self.trace.mix(&[self.now, u64::from(id.0), op_id, a, b, c, d]);
        self.trace.line(self.now, || match harm {
            Some(harm) => format!("{id:?} op {op_id} starts: {}, with {harm:?}", work.words()),
            None => format!("{id:?} op {op_id} starts: {}", work.words()),
        });
        if let Some(file) = work.file().and_then(|file| self.open_file_mut(id, file)) {
            file.in_flight += 1;
        }
        let is_disk = work.is_disk();
        self.occupy_socket(id, op_id, &work);
        self.flights.insert(op_id, Flight { ring: id, token, work, harm, blocked: false });
        self.schedule(self.now + latency, Event::Execute(op_id));
        if is_disk {
            self.disk_event(self.ring(id).node);
        }
    }

    /// Counts, and pulls the plug when it was asked for at this event.
    fn disk_event(&mut self, node: NodeId) {
        let state = self.node(node);
        state.io_events += 1;
        if let Some((at, ending)) = state.ends_at
            && state.io_events >= at
        {
            self.end_process(node, ending);
        }
    }

    pub(super) fn deliver(&mut self, op_id: u64, flight: Flight, result: Result<u32, Errno>, data: Data) {
        let id = flight.ring;
        let word = match result {
            Ok(value) => u64::from(value),
            Err(errno) => errno.0 as u64 | 1 << 63,
        };
        self.trace.mix(&[self.now, op_id, word]);
        self.trace
            .line(self.now, || format!("{id:?} op {op_id} is done: {result:?} of {}", flight.work.words()));
        if let Some(file) = flight.work.file().and_then(|file| self.open_file_mut(id, file)) {
            file.in_flight -= 1;
        }
        let delivered = Delivered { id: op_id, result, data };
        let ring = self.ring_mut(id);
        match flight.token {
            Some(token) => ring.done.push_back((token, delivered)),
            None => ring.run_done = Some(delivered),
        }
    }

    fn execute(&mut self, op_id: u64) {
        let Some(mut flight) = self.flights.remove(&op_id) else { return };
        let (id, node) = (flight.ring, self.ring(flight.ring).node);
        let refused = match flight.harm {
            Some(Harm::Error(errno)) => Some(errno),
            _ => None,
        };
        let mut data = Data::None;
        let result = match &mut flight.work {
            Work::Refused(errno) => Err(*errno),
            Work::Write { ino, position, pages, durable, contested, .. } => {
                let (ino, position, durable) = (*ino, *position, *durable);
                self.write(node, ino, position, pages, durable, contested, flight.harm)
            }
            Work::Read { ino, position, len, .. } => {
                let read = self.read(node, *ino, *position, *len, flight.harm);
                read.map(|(pages, bytes)| {
                    data = Data::Pages(pages, bytes);
                    bytes as u32
                })
            }
            Work::Sync { file, ino, covers } => self.sync(id, *file, *ino, *covers, flight.harm).map(|()| 0),
            Work::SyncDir { path, covers } => match (refused, flight.harm) {
                (Some(errno), _) => Err(errno),
                (None, Some(Harm::Lost)) => Ok(0),
                _ => self.node(node).disk.sync_dir(path, *covers).map(|()| 0),
            },
            Work::Open { path, create } => match refused {
                Some(errno) => Err(errno),
                None => self.open(id, path, *create),
            },
            Work::Allocate { ino, len, .. } => match refused {
                Some(errno) => Err(errno),
                None => {
                    let Self { nodes, random, .. } = self;
                    let disk = nodes.get_mut(&node).map(|node| &mut node.disk);
                    disk.map_or(Err(Errno::NOENT), |disk| disk.allocate(*ino, *len, &mut random.disk))
                        .map(|()| 0)
                }
            },
            Work::Close { file } => {
                self.ring_mut(id).files[*file as usize] = None;
                Ok(0)
            }
            Work::Accept { .. } | Work::Recv { .. } | Work::Send { .. } | Work::CloseSocket { .. } => {
                return self.execute_net(op_id, flight, refused);
            }
        };
        let is_disk = flight.work.is_disk();
        self.deliver(op_id, flight, result, data);
        if is_disk {
            self.disk_event(node);
        }
    }

    fn open(&mut self, id: RingId, path: &Path, create: bool) -> Result<u32, Errno> {
        let limit = self.config.descriptors_max;
        let node = self.ring(id).node;
        if self.ring(id).files.iter().flatten().count() >= limit {
            return Err(Errno::MFILE);
        }
        let disk = &mut self.node(node).disk;
        let ino = disk.open(path, create)?;
        let errors_seen = disk.file(ino)?.errors;
        let open = OpenFile { ino, path: normal(path), errors_seen, in_flight: 0 };
        Ok(place(&mut self.ring_mut(id).files, open))
    }

    #[allow(clippy::too_many_arguments)]
    fn write(
        &mut self,
        node: NodeId,
        ino: u64,
        position: u64,
        pages: &[Rc<Page>],
        durable: bool,
        contested: &[Range<u64>],
        harm: Option<Harm>,
    ) -> Result<u32, Errno> {
        if harm == Some(Harm::Lost) {
            return Ok((pages.len() * PAGE) as u32);
        }
        // Two writes of the same place at the same time: the later completion wins only here and there.
        let end = position + (pages.len() * PAGE) as u64;
        for other in self.flights.values_mut() {
            if let Work::Write { ino: its, position: at, pages: more, contested, .. } = &mut other.work {
                let overlap = position.max(*at)..end.min(*at + (more.len() * PAGE) as u64);
                if *its == ino && self.rings[other.ring.0 as usize].node == node && !overlap.is_empty() {
                    contested.push(overlap.start / SECTOR as u64..overlap.end / SECTOR as u64);
                }
            }
        }
        let Self { nodes, random, .. } = self;
        let rng = &mut random.disk;
        let disk = match nodes.get_mut(&node) {
            Some(node) => &mut node.disk,
            None => return Err(Errno::NOENT),
        };
        if let Some(Harm::Error(errno)) = harm {
            let harmless =
                [Errno::AGAIN, Errno::INTR, Errno::CANCELED].contains(&errno) || errno.is_no_space();
            if !harmless && rng.below(4) > 0 {
                let share = rng.below(5);
                let mut keep = |_| rng.below(4) >= share;
                disk.write(ino, position, pages, pages.len() * PAGE, false, &mut keep)?;
            }
            return Err(errno);
        }
        let mut bytes = pages.len() * PAGE;
        if harm == Some(Harm::Short) {
            bytes = short(rng, bytes);
        }
        let room = disk.make_room(ino, position, bytes.div_ceil(PAGE))?;
        if room == 0 && bytes > 0 {
            return Err(Errno::NOSPC);
        }
        bytes = bytes.min(room * PAGE);
        let mut keep = |sector| contested.iter().any(|range| range.contains(&sector)) && rng.coin();
        disk.write(ino, position, pages, bytes, durable, &mut keep)?;
        Ok(bytes as u32)
    }

    fn read(
        &mut self,
        node: NodeId,
        ino: u64,
        position: u64,
        len: usize,
        harm: Option<Harm>,
    ) -> Result<(Vec<Rc<Page>>, usize), Errno> {
        let Self { nodes, random, flights, rings, .. } = self;
        let rng = &mut random.disk;
        let disk = match nodes.get_mut(&node) {
            Some(node) => &mut node.disk,
            None => return Err(Errno::NOENT),
        };
        if let Some(Harm::Error(errno)) = harm {
            return Err(errno);
        }
        let size = disk.file(ino)?.size;
        let mut bytes = size.saturating_sub(position).min(len as u64) as usize;
        if harm == Some(Harm::Short) {
            bytes = short(rng, bytes);
        }
        if disk.is_unreadable(ino, position, bytes as u64) {
            return Err(Errno::IO);
        }
        if bytes == 0 {
            return Ok((Vec::new(), 0));
        }
        if harm == Some(Harm::Rot) {
            disk.rot(ino, position * 8 + rng.below(bytes as u64 * 8))?;
        }
        let file = disk.file(ino)?;
        let first = position / PAGE as u64;
        let numbers = first..first + bytes.div_ceil(PAGE) as u64;
        let mut pages: Vec<_> = numbers.map(|number| disk.page(file, number)).collect();
        // What is being written meanwhile is seen here and there.
        for other in flights.values() {
            let Work::Write { ino: its, position: at, pages: new, .. } = &other.work else { continue };
            let writes_here = *its == ino && rings[other.ring.0 as usize].node == node;
            if !writes_here || other.harm == Some(Harm::Lost) {
                continue;
            }
            for (index, page) in pages.iter_mut().enumerate() {
                let there = (first + index as u64).checked_sub(at / PAGE as u64);
                let Some(new) = there.and_then(|there| new.get(there as usize)) else { continue };
                let draw = rng.next();
                for sector in (0..PAGE / SECTOR).filter(|sector| draw >> sector & 1 == 1) {
                    let range = sector * SECTOR..(sector + 1) * SECTOR;
                    Rc::make_mut(page)[range.clone()].copy_from_slice(&new[range]);
                }
            }
        }
        if harm == Some(Harm::Flip) {
            let bit = rng.below(bytes as u64 * 8) as usize;
            Rc::make_mut(&mut pages[bit / 8 / PAGE])[bit / 8 % PAGE] ^= 1 << (bit % 8);
        }
        Ok((pages, bytes))
    }

    fn sync(
        &mut self,
        id: RingId,
        file: u32,
        ino: u64,
        covers: u64,
        harm: Option<Harm>,
    ) -> Result<(), Errno> {
        let dropped = match harm {
            Some(Harm::Error(errno)) => Some((errno, self.random.disk.coin())),
            Some(Harm::SyncDrops(errno)) => Some((errno, true)),
            Some(Harm::SyncKeeps(errno)) => Some((errno, false)),
            _ => None,
        };
        let node = self.ring(id).node;
        let disk = &mut self.node(node).disk;
        let told = match dropped {
            Some((errno, dropped)) => {
                disk.sync_fails(ino, covers, dropped)?;
                Err(errno)
            }
            None if harm == Some(Harm::Lost) => Ok(()),
            None => disk.sync(ino, covers),
        };
        let errors = disk.file(ino)?.errors;
        let Some(open) = self.open_file_mut(id, file) else { return told };
        // Another descriptor's sync has failed since: this one hears of it, once.
        let unheard = open.errors_seen != errors;
        open.errors_seen = errors;
        if told.is_ok() && unheard { Err(Errno::IO) } else { told }
    }

    // Ends.

    pub(super) fn end_at(&mut self, node: NodeId, event: u64, ending: Ending) {
        let state = self.node(node);
        state.ends_at = Some((event, ending));
        if state.io_events >= event {
            self.end_process(node, ending);
        }
    }

    /// What is in flight for a node's disk, of one ring or all.
    fn in_flight(&self, node: NodeId, ring: Option<RingId>) -> Vec<InFlight> {
        let here = |flight: &Flight| {
            self.ring(flight.ring).node == node
                && ring.is_none_or(|ring| ring == flight.ring)
                && !matches!(flight.harm, Some(Harm::Lost | Harm::Error(_)))
        };
        let op = |flight: &Flight| {
            Some(match &flight.work {
                Work::Write { ino, position, pages, .. } => {
                    InFlight::Write { ino: *ino, position: *position, pages: Rc::clone(pages) }
                }
                Work::Sync { ino, covers, .. } => InFlight::Sync { ino: *ino, covers: *covers },
                Work::SyncDir { path, covers } => InFlight::SyncDir { path: path.clone(), covers: *covers },
                Work::Open { path, create: true } => InFlight::Create { path: path.clone() },
                Work::Allocate { ino, len, .. } => InFlight::Allocate { ino: *ino, len: *len },
                _ => return None,
            })
        };
        self.flights.values().filter(|flight| here(flight)).filter_map(op).collect()
    }

    pub(super) fn crashed_disk(&mut self, node: NodeId, crash_seed: u64) -> Disk {
        let mut disk = self.node(node).disk.clone();
        let in_flight = self.in_flight(node, None);
        disk.power_fails(&mut Rng::new(crash_seed, 8), &in_flight, &self.config.disk.crash);
        disk
    }

    pub(super) fn end_process(&mut self, node: NodeId, ending: Ending) {
        self.trace.mix(&[self.now, u64::from(node.0), ending as u64, 99]);
        self.trace.line(self.now, || format!("{node:?}: {ending:?}"));
        self.node(node).ends_at = None;
        let in_flight = self.in_flight(node, None);
        let Self { nodes, random, config, .. } = self;
        if let Some(Node { disk, .. }) = nodes.get_mut(&node) {
            match ending {
                Ending::Kill => disk.process_dies(&mut random.crash, &in_flight),
                Ending::PowerOff => disk.power_fails(&mut random.crash, &in_flight, &config.disk.crash),
            }
        }
        for id in self
            .ring_ids()
            .filter(|&id| self.ring(id).node == node && self.ring(id).alive)
            .collect::<Vec<_>>()
        {
            self.clear_ring(id, ending == Ending::PowerOff);
        }
        self.node(node).locks.clear();
    }

    /// One ring's thread has ended, the others of the node go on.
    pub(super) fn ring_ends(&mut self, id: RingId) {
        if !self.ring(id).alive {
            return;
        }
        self.trace.mix(&[self.now, u64::from(id.0), 98]);
        self.trace.line(self.now, || format!("{id:?} ends"));
        let node = self.ring(id).node;
        let in_flight = self.in_flight(node, Some(id));
        let Self { nodes, random, .. } = self;
        if let Some(Node { disk, .. }) = nodes.get_mut(&node) {
            disk.process_dies(&mut random.crash, &in_flight);
        }
        self.clear_ring(id, false);
        self.node(node).locks.retain(|_, holder| *holder != id);
    }

    fn clear_ring(&mut self, id: RingId, abrupt: bool) {
        self.flights.retain(|_, flight| flight.ring != id);
        let flights = &self.flights;
        self.events.retain(|_, event| !matches!(event, Event::Execute(op) if !flights.contains_key(op)));
        self.close_all_sockets(id, abrupt);
        let ring = self.ring_mut(id);
        ring.alive = false;
        ring.queue.clear();
        ring.done.clear();
        ring.run_done = None;
        ring.files.clear();
    }

    pub(super) fn set_disk(&mut self, node: NodeId, image: &DiskImage) {
        let running = self.rings.iter().any(|ring| ring.alive && ring.node == node);
        assert!(!running, "{node:?} gets another disk while its process runs");
        self.node(node).disk = image.0.clone();
    }

    pub(super) fn heal(&mut self) {
        for node in self.nodes.values_mut() {
            node.faults.clear();
        }
        let SimConfig { disk, net, .. } = &mut self.config;
        disk.faults = DiskFaults::default();
        (net.drop_ppm, net.black_hole_ppm, net.refuse_ppm) = (0, 0, 0);
        for latency in [&mut disk.read, &mut disk.write, &mut disk.sync, &mut disk.meta, &mut net.delay] {
            latency.tail_ppm = 0;
        }
    }
}

/// Puts something into the lowest free slot of a table.
pub(super) fn place<T>(table: &mut Vec<Option<T>>, thing: T) -> u32 {
    let slot = table.iter().position(Option::is_none).unwrap_or(table.len());
    if slot == table.len() {
        table.push(None);
    }
    table[slot] = Some(thing);
    slot as u32
}

/// Fewer bytes than asked: sectors or whole pages, at least one sector.
fn short(rng: &mut Rng, bytes: usize) -> usize {
    let (sectors, pages) = (bytes / SECTOR, bytes / PAGE);
    if pages > 1 && rng.coin() {
        rng.within(1, pages as u64 - 1) as usize * PAGE
    } else if sectors > 1 {
        rng.within(1, sectors as u64 - 1) as usize * SECTOR
    } else {
        bytes
    }
}
