//! Everything that is small: all workloads of up to three operations, at every I/O boundary, with every subset of
//! what was not durable there.
//!
//! A workload is a state of the disk to begin with, a durability call, a pace of the disk, a gap between operations, and
//! operations.
//! Only the boundaries behind its last operation are its own: those before it belong to the shorter workload. A
//! state is an image of the disk together with what had been promised by then; each different one is given to a real
//! start, judged by the model, and read back.

use crate::Options;
use crate::sim::model::{Checked, TopicState, digest, wrong};
use crate::sim::plan::{Draw, Plan};
use crate::sim::{Harness, Known, NODE, quietly};
use crate::sweep::{Swept, sweep};
use ringmq_engine::format::ProducerId;
use ringmq_engine::format::frame::{Codec, Frame};
use ringmq_engine::format::limits::BLOCK_SIZE;
use ringmq_engine::format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_engine::format::superblock::Durability;
use ringmq_engine::planted::Planted;
use ringmq_engine::ring::sim::{CrashModel, CrashPoint, DiskImage, Latency, World};
use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A small segment, so that it is full soon.
const SEGMENT_SIZE: u64 = 32 * BLOCK_SIZE as u64;
/// More choices than these are enumerated in ten runs, and one by one.
const CHOICES_MAX: usize = 10;
/// Turns and events in which something must have happened.
const PATIENCE: usize = 20_000;
/// What becomes due within this time is waited for.
const HORIZON_US: u64 = 200_000;
/// Between workloads that follow each other in a sweep; no divisor of their number, so that any part is a fair sample.
const STRIDE: u64 = 7_919;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    /// Nothing on the disk.
    Nothing,
    /// A topic, and everything quiet.
    Calm,
    /// The active segment has no room left.
    Brim,
    /// As `Brim`, with recycled slots, two checkpoints and retention.
    Worn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Do {
    /// A frame of one sector.
    Small,
    /// A frame of several sectors, to the other partition.
    Large,
    /// An idempotent producer's next frame.
    Next,
    /// Its last one again.
    Again,
    MakeTopic,
    DeleteTopic,
    /// Time for a heartbeat and all that waits in the background.
    Idle,
    /// Clean stop and start.
    Stop,
    /// The process dies and is started.
    Kill,
    /// The power goes, nothing that is not durable survives, and a start.
    Cut,
}

const DOS: [Do; 10] = [
    Do::Small,
    Do::Large,
    Do::Next,
    Do::Again,
    Do::MakeTopic,
    Do::DeleteTopic,
    Do::Idle,
    Do::Stop,
    Do::Kill,
    Do::Cut,
];

/// What happens between two operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gap {
    /// Nothing: they may share a group.
    None,
    /// The first is in flight.
    InFlight,
    /// The first is durable, and the background has rested.
    Durable,
}

const GAPS: [Gap; 3] = [Gap::None, Gap::InFlight, Gap::Durable];

/// Which of two operations of the disk is done first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Mostly the one that was asked for first.
    Even,
    /// Some writes take very long: later ones, and flushes, overtake them.
    Uneven,
}

#[derive(Clone, Debug)]
struct Workload {
    base: Base,
    durability: Durability,
    pace: Pace,
    gap: Gap,
    ops: Vec<Do>,
}

/// Sequences of operations with their gaps: none, one, then two and three with each gap.
fn sequences() -> Vec<(Gap, Vec<Do>)> {
    let mut all = vec![(Gap::None, Vec::new())];
    all.extend(DOS.iter().map(|op| (Gap::None, vec![*op])));
    for gap in GAPS {
        for first in DOS {
            for second in DOS {
                all.push((gap, vec![first, second]));
                all.extend(DOS.iter().map(|third| (gap, vec![first, second, *third])));
            }
        }
    }
    all
}

fn workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for durability in [Durability::Flush, Durability::Dsync] {
        for pace in [Pace::Even, Pace::Uneven] {
            all.push(Workload { base: Base::Nothing, durability, pace, gap: Gap::None, ops: Vec::new() });
            for base in [Base::Calm, Base::Brim, Base::Worn] {
                let of_base = |(gap, ops)| Workload { base, durability, pace, gap, ops };
                all.extend(sequences().into_iter().map(of_base));
            }
        }
    }
    all
}

/// A disk to begin with, and what is known of it.
struct Start {
    plan: Plan,
    image: DiskImage,
    known: Vec<Known>,
}

fn plan(base: Base, durability: Durability, pace: Pace, planted: Planted) -> Plan {
    let mut plan = Plan::calm();
    plan.planted = planted;
    (plan.segment_size, plan.durability, plan.seed) = (SEGMENT_SIZE, durability, 11);
    plan.sim.disk.crash = CrashModel {
        keep_all: 0,
        lose_all: 1,
        whole_writes: 0,
        prefix: 0,
        suffix: 0,
        runs: 0,
        sectors: 0,
        ..CrashModel::default()
    };
    if pace == Pace::Uneven {
        plan.sim.disk.write = Latency { min_us: 20, spread_us: 50, tail_ppm: 250_000, tail_us: 20_000 };
        plan.sim.disk.sync = Latency::even(10, 20);
    }
    if base == Base::Worn {
        plan.checkpoint_interval = SEGMENT_SIZE;
        plan.retain_size = Some(2 * SEGMENT_SIZE);
        plan.disk_limit = Some(7 * SEGMENT_SIZE);
    }
    plan
}

impl Start {
    fn make(base: Base, durability: Durability, pace: Pace, planted: Planted) -> Result<Self, String> {
        let plan = plan(base, durability, pace, planted);
        let mut driver = Driver::new(Harness::new(plan.clone()));
        let made = (|| {
            if base != Base::Nothing {
                driver.start()?;
                driver.make_topic()?;
                driver.settle()?;
            }
            let segments = match base {
                Base::Worn => 7,
                Base::Brim => 1,
                Base::Nothing | Base::Calm => 0,
            };
            for _ in 0..segments {
                driver.fill_segment()?;
                if base == Base::Worn {
                    // Retention looks once a second.
                    driver.settle()?;
                    driver.harness.pass(1_200_000)?;
                }
            }
            driver.settle()
        })();
        made.map_err(|wrong| format!("making {base:?}: {}: {}", wrong.check, wrong.details))?;
        driver.harness.world.kill(NODE);
        driver.harness.bury();
        if base == Base::Worn && driver.harness.counts.retired == 0 {
            return Err("making Worn: nothing was retired".to_owned());
        }
        let image = driver.harness.world.disk_image(NODE);
        Ok(Self { plan, image, known: driver.harness.known.clone() })
    }

    fn harness(&self, image: &DiskImage, known: &[Known], seed: u64) -> Harness {
        let mut harness = Harness::new(self.plan.clone());
        harness.world = World::with_disk_image(seed, self.plan.sim.clone(), NODE, image);
        harness.known = known.to_vec();
        harness.bury();
        harness
    }

    /// A whole start on an image: what is there is what must and may be there, and all of it is read.
    fn judge(&self, image: &DiskImage, known: &[Known]) -> Checked {
        let mut harness = self.harness(image, known, self.plan.seed);
        match quietly(|| harness.try_start()) {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => return Err(wrong("it starts", error.to_string())),
            Ok(Err(wrong)) => return Err(wrong),
            Err(panic) => return Err(wrong("assertion", panic)),
        }
        let lost = |report: &ringmq_engine::recovery::RecoveryReport| {
            report.checkpoint_lost || !report.damaged_frames.is_empty()
        };
        match harness.reports.iter().find(|report| lost(report)) {
            Some(report) => Err(wrong("nothing is damaged", format!("{report:?}"))),
            None => Ok(()),
        }
    }
}

/// Drives a harness step by step, and judges what a power loss could leave at each.
struct Driver<'a> {
    harness: Harness,
    judge: Option<(&'a Start, &'a Counts)>,
    seen: HashSet<u64>,
    states: u64,
    draw: Draw,
    /// What the idempotent producer has sent.
    sent: Vec<Vec<u8>>,
    sequence: u32,
}

/// Of a whole sweep.
#[derive(Default)]
struct Counts {
    points: AtomicU64,
    /// Points with more choices than are enumerated.
    wide: AtomicU64,
    widest: AtomicU64,
}

impl<'a> Driver<'a> {
    fn new(harness: Harness) -> Self {
        let (seen, sent) = (HashSet::new(), Vec::new());
        Self { harness, judge: None, seen, states: 0, draw: Draw::new(5), sent, sequence: 0 }
    }

    /// From here on power losses are judged.
    fn record(&mut self, start: &'a Start, counts: &'a Counts) {
        self.judge = Some((start, counts));
        self.harness.world.record_crash_points(NODE, true);
    }

    fn collect(&mut self) -> Checked {
        let Some((start, counts)) = self.judge else { return Ok(()) };
        for point in self.harness.world.take_crash_points(NODE) {
            counts.points.fetch_add(1, Ordering::Relaxed);
            counts.widest.fetch_max(point.choices() as u64, Ordering::Relaxed);
            counts.wide.fetch_add(u64::from(point.choices() > CHOICES_MAX), Ordering::Relaxed);
            let promised = promised(&self.harness.known);
            for outcomes in subsets(&point) {
                let image = point.image(&outcomes);
                if !self.seen.insert(image.digest_since(&start.image) ^ promised) {
                    continue;
                }
                self.states += 1;
                start.judge(&image, &self.harness.known).map_err(|found| {
                    let at = self.harness.world.io_events(NODE);
                    wrong(found.check, format!("{} (about disk event {at}, {outcomes:?})", found.details))
                })?;
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Checked {
        self.harness.step_once()?;
        self.collect()
    }

    fn until(&mut self, what: &'static str, done: impl Fn(&Harness) -> bool) -> Checked {
        for _ in 0..PATIENCE {
            if done(&self.harness) {
                return Ok(());
            }
            self.step()?;
        }
        Err(wrong("progress", format!("{what} never happens")))
    }

    /// Until nothing is on its way and nothing becomes due soon.
    fn settle(&mut self) -> Checked {
        self.until("rest", |harness| {
            let world = &harness.world;
            let due = world.next_deadline().is_some_and(|at| at <= world.now_us() + HORIZON_US);
            world.runnable().is_empty() && world.next_event().is_none() && !due
        })
    }

    fn start(&mut self) -> Checked {
        let opened = self.harness.open();
        self.collect()?;
        opened.map_err(|error| wrong("it starts", error.to_string()))?;
        self.harness.adopt_all()?;
        self.until("being ready", |harness| harness.live.iter().all(|live| live.shard.is_ready()))
    }

    /// The first topic that may be used.
    fn topic(&self) -> Option<usize> {
        let usable = |state| matches!(state, TopicState::Live | TopicState::Creating(_));
        self.harness.known[0].topics.iter().position(|topic| usable(topic.state))
    }

    fn make_topic(&mut self) -> Checked {
        for _ in 0..PATIENCE {
            if self.harness.make_topic(0, 2).is_ok() {
                return Ok(());
            }
            self.step()?;
        }
        Err(wrong("progress", "a topic is never taken".to_owned()))
    }

    fn frame(&mut self, size: usize, stamp: ProducerStamp) -> Vec<u8> {
        let mut body = vec![0; size];
        for chunk in body.chunks_mut(8) {
            chunk.copy_from_slice(&self.draw.next().to_le_bytes()[..chunk.len()]);
        }
        let mut builder = FrameBuilder::new(1000, BLOCK_SIZE * 4);
        let pushed = builder.push(&Record { body: &body, time_ms: 1000, ..Record::default() });
        assert!(pushed.is_ok(), "a record of {size} bytes");
        builder.finish(stamp, Codec::None, &mut |_| None)
    }

    /// Sends a frame until it is taken.
    fn send(&mut self, partition: usize, bytes: &[u8]) -> Checked {
        for _ in 0..PATIENCE {
            let Some(topic) = self.topic() else { return self.make_topic() };
            if self.harness.append(0, topic, partition, bytes)?.is_some() {
                return Ok(());
            }
            self.step()?;
        }
        Err(wrong("progress", "a frame is never taken".to_owned()))
    }

    fn send_new(&mut self, partition: usize, size: usize) -> Checked {
        let bytes = self.frame(size, ProducerStamp::default());
        self.send(partition, &bytes)
    }

    /// As a client does: first what is not there, then something new.
    fn send_next(&mut self, again: bool) -> Checked {
        let sent = self.sent.clone();
        for bytes in &sent {
            let Ok(frame) = Frame::parse(bytes) else { panic!("a frame just made does not parse") };
            let known = self.topic().is_some_and(|topic| {
                self.harness.known[0].topics[topic].partitions[0].find(digest(&frame)).is_some()
            });
            if !known {
                self.send(0, bytes)?;
            }
        }
        match sent.last() {
            Some(last) if again => self.send(0, last),
            _ => {
                let stamp = ProducerStamp { id: ProducerId(77), epoch: 0, base_sequence: self.sequence };
                let bytes = self.frame(100, stamp);
                self.sequence += 1;
                self.sent.push(bytes.clone());
                self.send(0, &bytes)
            }
        }
    }

    fn delete_topic(&mut self) -> Checked {
        let Some(index) = self.topic() else { return self.make_topic() };
        for _ in 0..PATIENCE {
            let mut entry = self.harness.known[0].topics[index].entry.clone();
            entry.deleted = true;
            let live = &mut self.harness.live[0];
            if let Ok(at) = live.shard.append_topic(&mut live.ring, &entry) {
                self.harness.known[0].topics[index].state = TopicState::Deleting(at);
                // Its producer is gone with it.
                self.sent.clear();
                self.sequence = 0;
                return Ok(());
            }
            self.step()?;
        }
        Err(wrong("progress", "a deletion is never taken".to_owned()))
    }

    /// Frames until a segment has no room for another block, everything durable.
    fn fill_segment(&mut self) -> Checked {
        let room = |harness: &Harness| {
            let segment = harness.live[0].shard.log().segments().back();
            segment.map_or(0, |segment| segment.facts.end().0 - segment.end.0)
        };
        let rolls = room(&self.harness) < 3 * BLOCK_SIZE as u64;
        for turn in 0..PATIENCE {
            let left = room(&self.harness);
            if left < 3 * BLOCK_SIZE as u64 && !(rolls && turn == 0) {
                return Ok(());
            }
            self.send_new(turn % 2, 2_000)?;
            self.harness.turn_all()?;
            // No heartbeat in between: it would take a block.
            self.until("durability", |harness| {
                let log = harness.live[0].shard.log();
                log.durable() >= log.end()
            })?;
        }
        Err(wrong("progress", "a segment is never full".to_owned()))
    }

    fn restart(&mut self) -> Checked {
        self.harness.bury();
        self.start()
    }

    fn act(&mut self, op: Do) -> Checked {
        match op {
            Do::Small => self.send_new(0, 100),
            Do::Large => self.send_new(1, 3_000),
            Do::Next => self.send_next(false),
            Do::Again => self.send_next(true),
            Do::MakeTopic => self.make_topic(),
            Do::DeleteTopic => self.delete_topic(),
            Do::Idle => self.settle(),
            Do::Stop => {
                self.harness.live.iter_mut().for_each(|live| live.shard.begin_stop());
                self.harness.turn_all()?;
                self.collect()?;
                self.until("the stop", |harness| harness.live.iter().all(|live| live.shard.is_stopped()))?;
                self.harness.world.kill(NODE);
                self.restart()
            }
            Do::Kill => {
                self.harness.world.kill(NODE);
                self.restart()
            }
            Do::Cut => {
                self.harness.world.power_off(NODE);
                self.restart()
            }
        }
    }

    fn pause(&mut self, gap: Gap) -> Checked {
        match gap {
            Gap::None => Ok(()),
            Gap::InFlight => {
                self.harness.turn_all()?;
                self.collect()
            }
            Gap::Durable => self.settle(),
        }
    }
}

/// What the model demands at this moment, as a number.
fn promised(known: &[Known]) -> u64 {
    let mut hash = 17u64;
    let mut mix = |word: u64| hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    for topic in known.iter().flat_map(|known| &known.topics) {
        mix(u64::from(topic.entry.topic.0));
        mix(match topic.state {
            TopicState::Creating(_) => 1,
            TopicState::Live => 2,
            TopicState::Deleting(_) => 3,
            TopicState::Deleted => 4,
        });
        for partition in &topic.partitions {
            let acked =
                partition.frames.iter().rev().find(|frame| frame.acked).map_or(0, |frame| frame.end());
            [partition.next, partition.seen, acked].into_iter().for_each(&mut mix);
        }
    }
    hash
}

/// All outcomes of a power loss. Where there are too many choices: all subsets of ten runs of neighbours, and each
/// choice alone, kept and lost.
fn subsets(point: &CrashPoint) -> Vec<Vec<usize>> {
    let outcomes = point.outcomes();
    if outcomes.len() <= CHOICES_MAX {
        let mut all = vec![Vec::new()];
        for count in outcomes {
            all = all
                .iter()
                .flat_map(|one| (0..count).map(move |outcome| [&one[..], &[outcome]].concat()))
                .collect();
        }
        return all;
    }
    let run = outcomes.len().div_ceil(CHOICES_MAX);
    let of_mask = |mask: u32| {
        let kept = |index: usize| mask >> (index / run) & 1 == 1;
        outcomes.iter().enumerate().map(|(index, count)| if kept(index) { count - 1 } else { 0 }).collect()
    };
    let mut all: Vec<Vec<usize>> = (0..1 << outcomes.len().div_ceil(run)).map(of_mask).collect();
    for one in 0..outcomes.len() {
        let only = |index, count: &usize| if index == one { count - 1 } else { 0 };
        let but = |index, count: &usize| if index == one { 0 } else { count - 1 };
        all.push(outcomes.iter().enumerate().map(|(index, count)| only(index, count)).collect());
        all.push(outcomes.iter().enumerate().map(|(index, count)| but(index, count)).collect());
    }
    all
}

/// Answers how many states were judged.
fn case(start: &Start, workload: &Workload, seed: u64, counts: &Counts) -> Result<u64, String> {
    let mut driver = Driver::new(start.harness(&start.image, &start.known, seed));
    let ran = quietly(|| {
        let Some((last, before)) = workload.ops.split_last() else {
            driver.record(start, counts);
            driver.start()?;
            return driver.settle();
        };
        driver.start()?;
        driver.settle()?;
        for op in before {
            driver.act(*op)?;
            driver.pause(workload.gap)?;
        }
        driver.record(start, counts);
        driver.act(*last)?;
        driver.harness.turn_all()?;
        driver.collect()?;
        driver.settle()
    });
    match ran {
        Ok(Ok(())) => Ok(driver.states),
        Ok(Err(wrong)) => Err(format!("{workload:?}: {}: {}", wrong.check, wrong.details)),
        Err(panic) => Err(format!("{workload:?}: {panic}")),
    }
}

/// One start for each base, durability call and pace, made when it is first needed.
#[derive(Default)]
struct Starts(Vec<((Base, Durability, Pace), Start)>);

impl Starts {
    fn get(&mut self, workload: &Workload, planted: Planted) -> Result<&Start, String> {
        let Workload { base, durability, pace, .. } = *workload;
        let found = self.0.iter().position(|one| one.0 == (base, durability, pace));
        let index = match found {
            Some(index) => index,
            None => {
                self.0.push(((base, durability, pace), Start::make(base, durability, pace, planted)?));
                self.0.len() - 1
            }
        };
        Ok(&self.0[index].1)
    }
}

/// The sweep over all workloads.
pub(crate) fn run(options: &Options) -> Swept {
    let workloads = workloads();
    let counts = Counts::default();
    let total = workloads.len() as u64;
    let slowest = Mutex::new((0, 0));
    let mut swept = sweep(options, total, "states", Starts::default, |starts, number| {
        // Its own seed, so that operations of the disk take turns in another way in each.
        let workload = &workloads[(number * STRIDE % total) as usize];
        let states = case(starts.get(workload, options.planted())?, workload, number, &counts)?;
        let mut most = slowest.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *most = (*most).max((states, number));
        Ok(states)
    });
    let (most, number) = slowest.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    swept.notes.push(format!(
        "{} I/O boundaries; {} with more than {CHOICES_MAX} choices, {} at most; {most} states in case {number}",
        counts.points.into_inner(),
        counts.wide.into_inner(),
        counts.widest.into_inner(),
    ));
    swept
}
