//! The world's heart: nodes, rings, ops in flight, and the queue of events that time walks along.

mod ops;

pub(super) use ops::{Flight, Work};

use super::config::{ClockConfig, DiskFaults, SimConfig};
use super::disk::{CrashPoint, Disk, DiskImage, InFlight, PAGE, Page, Pages, normal};
use super::fault::{Armed, FaultCounts, Harm};
use super::net::{Conn, Listener, Socket};
use super::rng::{Rng, splitmix};
use super::{NodeId, RingId};
use crate::ring::{Errno, FileFacts, FileId, Now, Op, RingStats, Token};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Calls of `wait` between two events after which a loop is taken to spin.
const WAITS_MAX: u32 = 1_000_000;
/// A deadline as far away as this never comes.
const FOREVER_US: u64 = 1 << 60;
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
    /// Calls of `wait` since time last moved, and when that was.
    waits: u32,
    waited_at: u64,
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
    /// One for each disk event, while they are wanted.
    pub(super) crash_points: Option<Vec<CrashPoint>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    Kill,
    PowerOff,
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
    pub(super) faults: FaultCounts,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) rings: Vec<RingState>,
    pub(super) flights: BTreeMap<u64, Flight>,
    /// Those of them that write to files.
    writes: BTreeSet<u64>,
    pub(super) conns: Vec<Conn>,
    seed: u64,
    events: BTreeMap<(u64, u64), Event>,
    event_last: u64,
    op_last: u64,
    /// How often time moved or something happened.
    steps: u64,
    /// Rings whose process lives, ascending.
    living: Vec<RingId>,
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
            faults: FaultCounts::default(),
            nodes: BTreeMap::new(),
            rings: Vec::new(),
            flights: BTreeMap::new(),
            writes: BTreeSet::new(),
            conns: Vec::new(),
            seed,
            events: BTreeMap::new(),
            event_last: 0,
            op_last: 0,
            steps: 0,
            living: Vec::new(),
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
                crash_points: None,
            }
        })
    }

    pub(super) fn ring(&self, id: RingId) -> &RingState {
        &self.rings[id.0 as usize]
    }

    pub(super) fn ring_mut(&mut self, id: RingId) -> &mut RingState {
        &mut self.rings[id.0 as usize]
    }

    pub(super) fn living(&self) -> &[RingId] {
        &self.living
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
            waited_at: 0,
        });
        let id = RingId(self.rings.len() as u32 - 1);
        self.living.push(id);
        (id, bell)
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
        let deadline = |&id: &RingId| match self.ring(id).sleep {
            Sleep::Until(Some(at)) if at > self.now => Some(at),
            _ => None,
        };
        self.living.iter().filter_map(deadline).min()
    }

    fn time_is(&mut self, now: u64) {
        assert!(now >= self.now, "time goes back from {} to {now}", self.now); // W2
        self.now = now;
        self.steps += 1;
    }

    /// The next event, whatever rings wait for.
    pub(super) fn next_happens(&mut self) -> bool {
        let Some(((at, _), event)) = self.events.pop_first() else { return false };
        self.time_is(at);
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
        let (now, steps, poll_us) = (self.now, self.steps, self.config.poll_us.max(1));
        let ring = self.ring_mut(id);
        ring.stats.enters += 1;
        ring.waits = if ring.waited_at == steps { ring.waits + 1 } else { 0 };
        ring.waited_at = steps;
        assert!(
            ring.waits < WAITS_MAX,
            "{id:?} spins: the simulator's wait does not let time pass, run and step do"
        );
        let rung = ring.bell.swap(false, Ordering::AcqRel);
        ring.sleep = if rung || !ring.done.is_empty() {
            Sleep::Awake
        } else {
            let until = until_us.filter(|&us| us < FOREVER_US).map(|us| ring.made_at + us);
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

    /// Bytes that an op may bring at most: the rest of a file, with a page behind it.
    pub(super) fn can_come(&self, id: RingId, op: &Op) -> usize {
        let Op::Read { file, position, .. } = *op else { return usize::MAX };
        let Ok(open) = self.open_file(id, file.0) else { return PAGE };
        let node = self.nodes.get(&self.ring(id).node);
        let size = node.and_then(|node| node.disk.file(open.ino).ok()).map_or(0, |file| file.size);
        size.saturating_sub(position).next_multiple_of(PAGE as u64) as usize + PAGE
    }

    fn open_file(&self, id: RingId, file: u32) -> Result<&OpenFile, Errno> {
        self.ring(id).files.get(file as usize).and_then(Option::as_ref).ok_or(Errno(libc::EBADF))
    }

    fn open_file_mut(&mut self, id: RingId, file: u32) -> Option<&mut OpenFile> {
        self.ring_mut(id).files.get_mut(file as usize)?.as_mut()
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
    pub(super) fn in_flight(&self, node: NodeId, ring: Option<RingId>) -> Vec<InFlight> {
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
        match ending {
            Ending::Kill => self.faults.kills += 1,
            Ending::PowerOff => self.faults.power_losses += 1,
        }
        self.node(node).ends_at = None;
        let in_flight = self.in_flight(node, None);
        let Self { nodes, random, config, .. } = self;
        if let Some(Node { disk, .. }) = nodes.get_mut(&node) {
            match ending {
                Ending::Kill => disk.process_dies(&mut random.crash, &in_flight),
                Ending::PowerOff => disk.power_fails(&mut random.crash, &in_flight, &config.disk.crash),
            }
        }
        for id in self.living.clone() {
            if self.ring(id).node == node {
                self.clear_ring(id, ending == Ending::PowerOff);
            }
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
        self.writes.retain(|op| flights.contains_key(op));
        self.events.retain(|_, event| !matches!(event, Event::Execute(op) if !flights.contains_key(op)));
        self.close_all_sockets(id, abrupt);
        self.living.retain(|&living| living != id);
        let ring = self.ring_mut(id);
        ring.alive = false;
        ring.sockets.clear();
        ring.queue.clear();
        ring.done.clear();
        ring.run_done = None;
        ring.files.clear();
    }

    pub(super) fn set_disk(&mut self, node: NodeId, image: &DiskImage) {
        let running = self.living.iter().any(|&id| self.ring(id).node == node);
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
