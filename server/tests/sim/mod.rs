//! Drives a whole node in the simulated world, with its clients, and judges it from outside.

#![allow(dead_code)] // each user uses a part
#![allow(unreachable_pub)]

mod client;
pub(crate) mod groups;
mod hostile;
mod late;
mod ledger;
mod model;
mod overseer;
mod plan;
mod positions;
mod queue;
mod roles;
pub(crate) mod scenes;
mod stream;

use client::{BASE_PORT, Context, NODE, Peer};
use hostile::Hostile;
use late::Transacting;
pub(crate) use model::Wrong;
use model::{Checked, Model, wrong};
use overseer::Overseeing;
use plan::Draw;
pub(crate) use plan::Plan;
use queue::Queueing;
use ringmq_client::GroupMode;
use ringmq_engine::format::ShardId;
use ringmq_engine::recovery::{OpenError, RecoveryReport};
use ringmq_engine::ring::sim::{FaultCounts, World};
use ringmq_engine::ring::{Doorbell, Errno, Ring};
use ringmq_engine::shard::{MEMORY_MIN, Shard, ShardOptions};
use ringmq_server::shard::mailbox::{Mailboxes, mesh};
use ringmq_server::shard::{LateOptions, ServerOptions, ShardServer, Timings};
use roles::{Fetching, PlainProducing, Producing, Subscribing, Tending};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use stream::Streaming;

const NODE_ID: u128 = 0x7269_6e67;
/// Virtual time in which something must have happened.
const PATIENCE_US: u64 = 120_000_000;
/// Turns of the loop in which something must have happened.
const PATIENCE_TURNS: u64 = 3_000_000;

/// Soon, and often, so that some are checked and some are parked.
const CHECKS: Timings = Timings { first_ms: 150, every_ms: 100, checks_max: 4 };

/// How often what happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) crashes: u64,
    pub(crate) kills: u64,
    pub(crate) drains: u64,
    pub(crate) poisons: u64,
    pub(crate) acks: u64,
    pub(crate) duplicates: u64,
    pub(crate) reads: u64,
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    pub(crate) attacks: u64,
    pub(crate) transactions: u64,
    pub(crate) checks: u64,
    pub(crate) turns: u64,
    /// Records that groups in queue mode were given, and what became of them.
    pub(crate) deliveries: u64,
    pub(crate) consumed: u64,
    pub(crate) dead_letters: u64,
    /// Of groups in the other modes: positions asked for, commits, commits refused as stale, records.
    pub(crate) claims: u64,
    pub(crate) commits: u64,
    pub(crate) fenced: u64,
    pub(crate) streamed: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.crashes, other.crashes),
            (&mut self.kills, other.kills),
            (&mut self.drains, other.drains),
            (&mut self.poisons, other.poisons),
            (&mut self.acks, other.acks),
            (&mut self.duplicates, other.duplicates),
            (&mut self.reads, other.reads),
            (&mut self.connections, other.connections),
            (&mut self.requests, other.requests),
            (&mut self.attacks, other.attacks),
            (&mut self.transactions, other.transactions),
            (&mut self.checks, other.checks),
            (&mut self.turns, other.turns),
            (&mut self.deliveries, other.deliveries),
            (&mut self.consumed, other.consumed),
            (&mut self.dead_letters, other.dead_letters),
            (&mut self.claims, other.claims),
            (&mut self.commits, other.commits),
            (&mut self.fenced, other.fenced),
            (&mut self.streamed, other.streamed),
        ] {
            *mine += theirs;
        }
    }
}

/// What a run has come to.
pub(crate) struct Outcome {
    pub(crate) found: Option<Wrong>,
    pub(crate) counts: Counts,
    pub(crate) hash: u64,
    pub(crate) trace: Vec<String>,
    /// Virtual time that passed.
    pub(crate) passed_us: u64,
    pub(crate) faults: FaultCounts,
}

/// The process ended under the harness's hands.
enum Stop {
    Died,
    Wrong(Wrong),
}

impl From<Wrong> for Stop {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

type Step = Result<(), Stop>;

/// What a thread of the node holds.
struct Thread {
    /// Not opened yet.
    waiting: Option<(Ring, Vec<ringmq_engine::ring::SocketId>, Mailboxes)>,
    server: Option<ShardServer>,
    drains: bool,
}

struct Harness {
    plan: Plan,
    world: World,
    threads: Vec<Thread>,
    doorbells: Vec<Doorbell>,
    drained: Arc<AtomicU16>,
    model: Model,
    peers: Vec<Peer>,
    hostiles: Vec<Hostile>,
    draw: Draw,
    counts: Counts,
    calm: bool,
    healed: bool,
    quiet: bool,
    poisoned_at: Option<u64>,
}

fn directory(shard: usize) -> PathBuf {
    PathBuf::from(format!("/data/shard-{shard:02}"))
}

impl Harness {
    fn new(plan: Plan) -> Self {
        let mut sim = plan.sim.clone();
        sim.disk.roots = (0..usize::from(plan.shards)).map(directory).collect();
        let mut harness = Self {
            world: World::new(plan.seed, sim),
            threads: Vec::new(),
            doorbells: Vec::new(),
            drained: Arc::default(),
            model: Model::default(),
            peers: Vec::new(),
            hostiles: Vec::new(),
            draw: Draw::new(plan.seed ^ 0xabcd),
            counts: Counts::default(),
            calm: false,
            healed: false,
            quiet: false,
            poisoned_at: None,
            plan,
        };
        harness.invite();
        harness
    }

    /// Makes the clients.
    fn invite(&mut self) {
        let plan = self.plan.clone();
        let peers = self.with_context(|cx, _, _| {
            let mut peers = vec![Peer::new(Box::new(Tending::founder(&plan.topics)))];
            let topic = |cx: &mut Context<'_>| cx.draw.pick(&plan.topics);
            for _ in 0..plan.producers {
                let (name, partitions) = topic(cx);
                peers.push(Peer::new(Box::new(Producing::new(cx, name, partitions))));
            }
            for _ in 0..plan.plain_producers {
                let (name, partitions) = topic(cx);
                peers.push(Peer::new(Box::new(PlainProducing::new(cx, name, partitions))));
            }
            for _ in 0..plan.subscribers {
                let (name, partitions) = topic(cx);
                peers.push(Peer::new(Box::new(Subscribing::new(cx, name, partitions))));
            }
            for _ in 0..plan.fetchers {
                let (name, partitions) = topic(cx);
                let partition = cx.draw.below(u64::from(partitions)) as u32;
                peers.push(Peer::new(Box::new(Fetching::new(name, partition, false))));
            }
            for _ in 0..plan.transactors {
                peers.push(Peer::new(Box::new(Transacting::new(cx))));
            }
            for group in &plan.groups {
                peers.push(Peer::new(Box::new(Overseeing::new(group))));
                for number in 0..group.members {
                    peers.push(match group.mode {
                        GroupMode::Queue => Peer::new(Box::new(Queueing::new(cx, group, number))),
                        _ => Peer::new(Box::new(Streaming::new(cx, group, number))),
                    });
                }
            }
            for number in 0..plan.admins {
                peers.push(Peer::new(Box::new(Tending::keeper(number))));
            }
            peers
        });
        self.peers = peers;
        self.hostiles = (0..self.plan.hostiles).map(|_| Hostile::new()).collect();
    }

    fn with_context<T>(
        &mut self,
        work: impl FnOnce(&mut Context<'_>, &mut Vec<Peer>, &mut Vec<Hostile>) -> T,
    ) -> T {
        let now = self.world.now_us();
        let Self { model, draw, plan, calm, healed, quiet, world, peers, hostiles, .. } = self;
        let (calm, healed, quiet) = (*calm, *healed, *quiet);
        let mut cx = Context { model, draw, plan, now, calm, healed, quiet, world };
        work(&mut cx, peers, hostiles)
    }

    // -- the node ------------------------------------------------------------------------------------------

    fn options(&self, shard: usize) -> ShardOptions {
        ShardOptions {
            directory: directory(shard),
            shard: ShardId(shard as u16),
            shards: self.plan.shards,
            node_id: NODE_ID,
            memory: MEMORY_MIN,
            segment_size: self.plan.segment_size,
            disk_limit: self.plan.disk_limit,
            retain_time_ms: None,
            retain_size: self.plan.retain_size,
            checkpoint_interval: self.plan.checkpoint_interval,
            durability: Some(self.plan.durability),
            planted: self.plan.planted,
        }
    }

    /// Starts a process: its rings and listeners. Its shards are opened one by one, in any order, while those that
    /// are open serve.
    fn start(&mut self) -> Step {
        self.world.note("the node starts");
        let died = |error: Errno| match error {
            Errno::POWER_OFF => Stop::Died,
            error => wrong("it starts", error.to_string()).into(),
        };
        self.drained = Arc::default();
        self.poisoned_at = None;
        self.model.lives += 1;
        let mut rings = Vec::new();
        for shard in 0..self.plan.shards {
            let mut ring = self.world.ring(NODE);
            let mut listeners = Vec::new();
            let ports = if shard == 0 { vec![BASE_PORT, BASE_PORT + 1] } else { vec![BASE_PORT + 1 + shard] };
            for port in ports {
                let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
                listeners.push(ring.listen(address).map_err(died)?.0);
            }
            rings.push((ring, listeners));
        }
        self.doorbells = rings.iter_mut().map(|(ring, _)| ring.doorbell()).collect();
        self.threads = rings
            .into_iter()
            .zip(mesh(self.plan.shards))
            .map(|((ring, listeners), mut mail)| {
                mail.set_doorbells(&self.doorbells);
                Thread { waiting: Some((ring, listeners, mail)), server: None, drains: false }
            })
            .collect();
        let mut order: Vec<usize> = (0..self.threads.len()).collect();
        for index in (1..order.len()).rev() {
            order.swap(index, self.draw.below(index as u64 + 1) as usize);
        }
        for shard in order {
            self.open(shard)?;
            for _ in 0..self.draw.below(30) {
                self.pump()?;
            }
        }
        Ok(())
    }

    fn open(&mut self, shard: usize) -> Step {
        let Some((mut ring, listeners, mail)) = self.threads[shard].waiting.take() else { return Ok(()) };
        let opened = Shard::open(&mut ring, self.options(shard), &mut |_, _| {});
        let (storage, report) = match opened {
            Ok(opened) => opened,
            Err(OpenError::Io { error: Errno::POWER_OFF, .. }) => return Err(Stop::Died),
            Err(OpenError::Io { .. }) if self.plan.errors && !self.healed => return Err(Stop::Died),
            Err(error) => return Err(wrong("it starts", error.to_string()).into()),
        };
        self.judge_report(shard, &report)?;
        self.model.epochs.insert((self.model.lives, shard as u16), u64::from(storage.log().epoch().0));
        let options = ServerOptions {
            auto_create_topics: true,
            connections_max: self.plan.connections_max,
            connections: Arc::default(),
            descriptors_max: usize::MAX,
            connection_memory: self.plan.connection_memory,
            shard_ports: (0..self.plan.shards).map(|shard| BASE_PORT + 1 + shard).collect(),
            frame_size_max: ringmq_engine::format::limits::frame_size_max(self.plan.segment_size) as u32,
            node_id: NODE_ID,
            late: LateOptions { timings: CHECKS, ..LateOptions::default() },
            planted: self.plan.planted_in_server,
        };
        let drained = Arc::clone(&self.drained);
        self.threads[shard].server = Some(ShardServer::new(ring, storage, options, listeners, mail, drained));
        self.check_alive()
    }

    fn judge_report(&self, shard: usize, report: &RecoveryReport) -> Checked {
        if report.checkpoint_lost || !report.damaged_frames.is_empty() {
            return Err(wrong("nothing is damaged", format!("shard {shard}: {report:?}")));
        }
        Ok(())
    }

    fn check_alive(&self) -> Step {
        let alive = self.threads.iter().filter_map(|thread| thread.server.as_ref()).all(|server| {
            server.is_stopped() || server.ring().sim_id().is_none_or(|id| self.world.ring_is_alive(id))
        });
        if alive { Ok(()) } else { Err(Stop::Died) }
    }

    /// The process is gone, one way or another.
    fn bury(&mut self) -> Checked {
        for thread in self.threads.drain(..) {
            if let Some(server) = thread.server {
                self.counts.connections += server.stats().connections_total;
                self.counts.requests += server.stats().requests;
            }
        }
        self.doorbells.clear();
        for hostile in &mut self.hostiles {
            hostile.excuse();
        }
        Ok(())
    }

    fn tick(&mut self, shard: usize) {
        let thread = &mut self.threads[shard];
        let Some(server) = &mut thread.server else { return };
        if thread.drains {
            server.begin_drain();
        }
        server.turn();
        if !server.is_stopped() {
            server.wait();
        }
    }

    /// Time goes on until something can be done, and that is done.
    fn pump(&mut self) -> Step {
        self.counts.turns += 1;
        self.serve_clients()?;
        let runnable: Vec<usize> = self.runnable();
        if runnable.is_empty() {
            self.let_time_pass();
        } else {
            let shard = runnable[self.world.pick(runnable.len())];
            self.tick(shard);
            if self.poisoned_at.is_none() && self.is_poisoned() {
                self.poisoned_at = Some(self.world.now_us());
                self.counts.poisons += 1;
                self.world.note("a log is poisoned");
                if !self.plan.errors {
                    let servers = self.threads.iter().filter_map(|thread| thread.server.as_ref());
                    let poisons: Vec<_> = servers.filter_map(|server| server.shard().poisoned()).collect();
                    return Err(wrong("without errors no log is poisoned", format!("{poisons:?}")).into());
                }
            }
        }
        self.check_alive()
    }

    fn is_poisoned(&self) -> bool {
        let servers = self.threads.iter().filter_map(|thread| thread.server.as_ref());
        servers.into_iter().any(|server| server.shard().poisoned().is_some())
    }

    /// Shards that would return from their `wait`.
    fn runnable(&self) -> Vec<usize> {
        let runs = |thread: &Thread| {
            let server = thread.server.as_ref().filter(|server| !server.is_stopped());
            let id = server.and_then(|server| server.ring().sim_id());
            id.is_some_and(|id| self.world.ring_is_runnable(id))
        };
        (0..self.threads.len()).filter(|shard| runs(&self.threads[*shard])).collect()
    }

    fn let_time_pass(&mut self) {
        let now = self.world.now_us();
        let peers = self.peers.iter().map(Peer::deadline);
        let client = peers.chain(self.hostiles.iter().map(Hostile::deadline)).min().unwrap_or(u64::MAX);
        let world = self.world.next_event().into_iter().chain(self.world.next_deadline()).min();
        match world {
            Some(at) if at <= client.max(now + 1) => drop(self.world.step()),
            _ => self.world.advance(client.clamp(now + 1, now + 100_000) - now),
        }
    }

    fn serve_clients(&mut self) -> Checked {
        self.with_context(|cx, peers, hostiles| {
            for peer in peers {
                if peer.is_due(cx.world, cx.now) {
                    peer.poll(cx)?;
                }
            }
            for hostile in hostiles {
                if hostile.is_due(cx) {
                    hostile.poll(cx)?;
                }
            }
            Ok(())
        })
    }

    fn pump_until(&mut self, what: &'static str, patience_us: u64, done: impl Fn(&Self) -> bool) -> Step {
        let begun = self.world.now_us();
        for _ in 0..PATIENCE_TURNS {
            if done(self) {
                return Ok(());
            }
            self.pump()?;
            if self.world.now_us() > begun + patience_us {
                break;
            }
        }
        let idle = |peer: &&Peer| !peer.is_idle();
        let busy: Vec<_> = self.peers.iter().filter(idle).map(|peer| peer.role.name()).collect();
        let held: Vec<_> =
            self.threads.iter().filter_map(|thread| thread.server.as_ref()).map(ShardServer::held).collect();
        let passed = self.world.now_us() - begun;
        Err(wrong("progress", format!("{what} never happens ({passed} us); busy: {busy:?}; {held:?}")).into())
    }

    // -- lives ---------------------------------------------------------------------------------------------

    /// One process, ended in one of many ways.
    fn life(&mut self) -> Checked {
        let kind = self.draw.below(12);
        let soon = self.draw.one_in(4);
        let after = 1 + if soon { self.draw.below(40) } else { self.draw.below(self.plan.life) };
        let at = self.world.io_events(NODE) + after;
        // A flush that failed may have lost what a reader still sees: only power loss tells.
        let can_kill = !self.plan.errors;
        match kind {
            0..=4 => self.world.crash_at(NODE, at),
            5 | 6 if can_kill => self.world.kill_at(NODE, at),
            _ => {}
        }
        let ended = self.live_once(kind);
        if let Err(Stop::Wrong(wrong)) = ended {
            return Err(wrong);
        }
        let stopped = ended.is_ok() && self.threads.iter().all(|thread| thread.is_stopped());
        if stopped {
            self.counts.drains += 1;
        }
        if can_kill && (kind == 7 || stopped && self.draw.one_in(2)) {
            self.world.kill(NODE);
            self.counts.kills += 1;
        } else {
            self.world.power_off(NODE);
            self.counts.crashes += 1;
        }
        self.bury()?;
        // For a while nobody answers.
        let down = self.world.now_us() + self.draw.below(60_000);
        while self.world.now_us() < down {
            self.serve_clients()?;
            self.let_time_pass();
        }
        Ok(())
    }

    fn live_once(&mut self, kind: u64) -> Step {
        self.start()?;
        self.work(self.plan.life)?;
        if kind >= 8 {
            self.drain(kind == 11)?;
        }
        Ok(())
    }

    fn work(&mut self, events: u64) -> Step {
        let until = self.world.io_events(NODE) + events;
        let begun = self.world.now_us();
        for _ in 0..200 * events {
            if self.world.io_events(NODE) >= until || self.world.now_us() > begun + 20_000_000 {
                break;
            }
            self.pump()?;
            if let Some(since) = self.poisoned_at
                && self.world.now_us() > since + 100_000
            {
                return Err(Stop::Died);
            }
        }
        Ok(())
    }

    /// Drains; the power may go off in the middle.
    fn drain(&mut self, interrupted: bool) -> Step {
        self.world.note("the node drains");
        self.hostiles.iter_mut().for_each(Hostile::excuse);
        if interrupted {
            let at = self.world.io_events(NODE) + self.draw.below(30);
            self.world.crash_at(NODE, at);
        }
        for shard in 0..self.threads.len() {
            self.threads[shard].drains = true;
            self.doorbells[shard].ring();
            for _ in 0..self.draw.below(4) {
                self.pump()?;
            }
        }
        // The grace of two seconds, and what the disk needs.
        self.pump_until("the drain", 12_000_000, |own| own.threads.iter().all(Thread::is_stopped))
    }

    /// Heals the world and demands that everything ends well.
    fn conclude(&mut self) -> Step {
        self.world.heal();
        self.plan.errors = false;
        self.plan.breaks = false;
        self.plan.connections_max = 10_000;
        self.healed = true;
        if self.plan.disk_limit.is_some() {
            self.plan.retain_size = Some(self.plan.segment_size);
        }
        self.start()?;
        self.pump_until("being founded", PATIENCE_US, |own| own.model.is_founded(&own.plan.topics))?;
        // Some more work in a world that is well, then what is pending ends.
        self.work(self.plan.life / 2)?;
        self.calm = true;
        self.pump_until("the end of all that is pending", PATIENCE_US, |own| {
            let mut others = own.peers.iter().filter(|peer| !peer.is_of_group());
            others.all(Peer::is_idle) && own.hostiles.iter().all(Hostile::is_idle)
        })?;
        self.quiet = true;
        self.pump_until("the end of what groups consume", PATIENCE_US, |own| {
            own.peers.iter().all(Peer::is_idle)
        })?;
        self.world.note("clients go");
        self.with_context(|cx, peers, hostiles| {
            hostiles.iter_mut().for_each(|hostile| hostile.stop(cx));
            peers.iter_mut().try_for_each(|peer| peer.retire(cx))
        })?;
        self.peers.clear();
        self.check_empty()?;
        self.read_everything()?;
        self.drain(false)?;
        // Without a segment to go on in, or files for sidecars, no checkpoint can stand for the log.
        let few_files = self.plan.sim.descriptors_max < 1000;
        let servers = self.threads.iter().filter_map(|thread| thread.server.as_ref());
        let whole = servers
            .map(|server| {
                let log = server.shard().log();
                !few_files && log.free_slots() > 0 && log.segments().back().is_some_and(|last| !last.sealed)
            })
            .collect();
        self.bury()?;
        self.check_clean_start(whole)
    }

    /// Clients are gone: nothing is held for them.
    fn check_empty(&mut self) -> Step {
        self.pump_until("the end of all that was held for clients", 10_000_000, |own| {
            let servers = own.threads.iter().filter_map(|thread| thread.server.as_ref());
            servers
                .into_iter()
                .all(|server| server.held() == Default::default() && server.stats().connection_bytes == 0)
        })
    }

    fn read_everything(&mut self) -> Step {
        self.world.note("everything is read");
        let mut peers = Vec::new();
        for (name, partitions) in self.plan.topics.clone() {
            for partition in 0..partitions {
                peers.push(Peer::new(Box::new(Fetching::new(name, partition, true))));
            }
        }
        for group in self.plan.groups.clone() {
            let Some(topic) = self.model.topics.get(group.dead_letters) else { continue };
            for partition in 0..topic.partitions {
                let mut reading = Fetching::new(group.dead_letters, partition, true);
                reading.dead_letters_of = Some(group.name);
                peers.push(Peer::new(Box::new(reading)));
            }
        }
        self.peers = peers;
        self.pump_until("reading everything", PATIENCE_US, |own| own.peers.iter().all(Peer::is_idle))?;
        self.with_context(|cx, peers, _| peers.iter_mut().try_for_each(|peer| peer.retire(cx)))?;
        self.peers.clear();
        if !self.plan.retains() {
            self.model.check_late()?;
        }
        for group in &self.plan.groups {
            match group.mode {
                GroupMode::Queue => self.model.check_queue(group, self.plan.retains())?,
                _ => self.model.check_positions(group)?,
            }
        }
        Ok(())
    }

    fn check_clean_start(&mut self, whole: Vec<bool>) -> Step {
        for (shard, whole) in whole.into_iter().enumerate() {
            let mut ring = self.world.ring(NODE);
            let (_, report) = Shard::open(&mut ring, self.options(shard), &mut |_, _| {})
                .map_err(|error| wrong("it starts", error.to_string()))?;
            if whole && (!report.clean || report.groups > 0) {
                return Err(wrong("after a drain nothing is read", format!("{report:?}")).into());
            }
        }
        Ok(())
    }

    fn run(&mut self) -> Checked {
        for _ in 0..self.plan.lives {
            self.life()?;
        }
        match self.conclude() {
            Ok(()) => Ok(()),
            Err(Stop::Wrong(wrong)) => Err(wrong),
            Err(Stop::Died) => Err(wrong("progress", "the process died in a healed world")),
        }
    }
}

impl Thread {
    fn is_stopped(&self) -> bool {
        self.server.as_ref().is_some_and(ShardServer::is_stopped)
    }
}

/// Runs one seed, or whatever else a plan says.
pub(crate) fn run(plan: Plan) -> Outcome {
    let mut harness = None;
    let mut world = None;
    let found = quietly(|| {
        let harness = harness.insert(Harness::new(plan));
        world = Some(harness.world.clone());
        harness.run()
    });
    let found = match found {
        Ok(checked) => checked.err(),
        Err(words) => Some(wrong("no panic", words)),
    };
    let Some(mut harness) = harness else {
        let (counts, faults) = (Counts::default(), FaultCounts::default());
        return Outcome { found, counts, hash: 0, trace: Vec::new(), passed_us: 0, faults };
    };
    let hash = harness.world.trace_hash();
    let trace = harness.world.trace();
    let (passed_us, faults) = (harness.world.now_us(), harness.world.faults());
    harness.counts.acks = harness.model.acks;
    harness.counts.reads = harness.model.reads;
    harness.counts.duplicates = harness.model.duplicates;
    harness.counts.transactions = harness.model.transactions;
    harness.counts.checks = harness.model.checks;
    harness.counts.deliveries = harness.model.ledger.deliveries;
    harness.counts.consumed = harness.model.ledger.consumed;
    harness.counts.dead_letters = harness.model.ledger.dead_letters;
    let positions = &harness.model.positions;
    (harness.counts.claims, harness.counts.commits) = (positions.claims, positions.commits);
    (harness.counts.fenced, harness.counts.streamed) = (positions.fenced, positions.streamed);
    harness.counts.attacks = harness.hostiles.iter().map(|hostile| hostile.attacks).sum();
    let counts = harness.counts;
    if found.is_some() {
        // What a panic left behind may panic again.
        let _ = quietly(|| drop(harness));
    }
    Outcome { found, counts, hash, trace, passed_us, faults }
}

thread_local! {
    static PANIC: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Catches a panic and its words, without printing them.
fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                PANIC.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    QUIET.set(false);
    result.map_err(|_| PANIC.take().unwrap_or_default())
}
