//! Drives shards in the simulated world and judges them from outside.

#![allow(dead_code)] // each test uses a part
#![allow(clippy::unwrap_used)] // helpers of tests

pub(crate) mod cursors;
pub(crate) mod late;
mod late_acts;
pub(crate) mod model;
pub(crate) mod plan;

use model::{
    Checked, PartitionModel, Producer, Stored, TopicModel, TopicState, Unanswered, Wrong, digest, wrong,
};
use plan::{Draw, Plan};
use ringmq_engine::format::frame::{Codec, Frame, FrameKind};
use ringmq_engine::format::limits::{FRAME_EXTENSION_MAX, frame_size_max};
use ringmq_engine::format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_engine::format::{Lsn, Offset, PartitionId, ProducerId, ShardId};
use ringmq_engine::recovery::{OpenError, RecoveryReport};
use ringmq_engine::ring::sim::{DiskImage, NodeId, World};
use ringmq_engine::ring::{Completion, Errno, Ring};
use ringmq_engine::shard::{
    AppendError, Appended, Extent, Fetched, MEMORY_MIN, NO_TIME, Shard, ShardOptions, TimeLookup,
};
use std::path::PathBuf;

pub(crate) const NODE: NodeId = NodeId(1);
pub(crate) const NODE_ID: u128 = 0x7269_6e67;
/// Virtual time in which something must have happened.
const PATIENCE_US: u64 = 3_600_000_000;
/// Turns of the loop in which something must have happened.
const PATIENCE_TURNS: u64 = 400_000;
const PRODUCERS: usize = 2;
const UNANSWERED_MAX: usize = 5;

/// A shard that runs.
pub(crate) struct Live {
    pub(crate) ring: Ring,
    pub(crate) shard: Shard,
    done: Vec<Completion>,
}

impl Live {
    pub(crate) fn alive(&self, world: &World) -> bool {
        self.ring.sim_id().is_some_and(|id| world.ring_is_alive(id))
    }

    /// One turn of the owner of a ring.
    pub(crate) fn tick(&mut self) {
        self.done.clear();
        self.ring.reap(&mut self.done, 512);
        for completion in &self.done {
            self.shard.complete(&mut self.ring, completion);
        }
        self.shard.turn(&mut self.ring);
        while self.shard.has_work() {
            self.shard.turn(&mut self.ring);
        }
        let deadline = self.shard.deadline();
        self.ring.wait(Some(deadline.unwrap_or(u64::MAX)));
    }
}

/// What the harness knows of a shard, living or not.
#[derive(Clone, Default)]
pub(crate) struct Known {
    pub(crate) topics: Vec<TopicModel>,
    pub(crate) late: late::LateModel,
    pub(crate) cursors: cursors::CursorModel,
    /// Digests of DATA that was bound a second time, by its identity.
    pub(crate) data: std::collections::BTreeMap<u64, u64>,
    names: u64,
    durable: Lsn,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) crashes: u64,
    pub(crate) nested: u64,
    pub(crate) clean_stops: u64,
    pub(crate) poisons: u64,
    pub(crate) frames: u64,
    pub(crate) duplicates: u64,
    pub(crate) fetched: u64,
    pub(crate) cold: u64,
    pub(crate) retired: u64,
    pub(crate) activations: u64,
    pub(crate) checkpoints: u64,
    pub(crate) groups_scanned: u64,
    pub(crate) late: u64,
    pub(crate) binds: u64,
    pub(crate) relocated: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.crashes, other.crashes),
            (&mut self.nested, other.nested),
            (&mut self.clean_stops, other.clean_stops),
            (&mut self.poisons, other.poisons),
            (&mut self.frames, other.frames),
            (&mut self.duplicates, other.duplicates),
            (&mut self.fetched, other.fetched),
            (&mut self.cold, other.cold),
            (&mut self.retired, other.retired),
            (&mut self.activations, other.activations),
            (&mut self.checkpoints, other.checkpoints),
            (&mut self.groups_scanned, other.groups_scanned),
            (&mut self.late, other.late),
            (&mut self.binds, other.binds),
            (&mut self.relocated, other.relocated),
        ] {
            *mine += theirs;
        }
    }
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

type Step<T> = Result<T, Stop>;

fn flat<T>(step: Step<T>) -> Result<T, Wrong> {
    step.map_err(|stop| match stop {
        Stop::Wrong(wrong) => wrong,
        Stop::Died => wrong("progress", "the process died".to_owned()),
    })
}

pub(crate) struct Harness {
    pub(crate) plan: Plan,
    pub(crate) world: World,
    pub(crate) live: Vec<Live>,
    pub(crate) known: Vec<Known>,
    pub(crate) counts: Counts,
    pub(crate) reports: Vec<RecoveryReport>,
    /// Something was damaged on purpose: frames may answer so, and are noted here with their offsets.
    pub(crate) damage_is_expected: bool,
    pub(crate) damaged: Vec<(PartitionId, u64, u64)>,
    /// The last process was stopped cleanly.
    clean: bool,
    draw: Draw,
}

pub(crate) fn directory(shard: usize) -> PathBuf {
    PathBuf::from(format!("/data/shard-{shard:02}"))
}

impl Harness {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut sim = plan.sim.clone();
        sim.disk.roots = (0..usize::from(plan.shards)).map(directory).collect();
        let world = World::new(plan.seed, sim);
        let known = (0..plan.shards).map(|_| Known::default()).collect();
        let draw = Draw::new(plan.seed ^ 0xabcd);
        Self {
            plan,
            world,
            live: Vec::new(),
            known,
            counts: Counts::default(),
            reports: Vec::new(),
            damage_is_expected: false,
            damaged: Vec::new(),
            clean: false,
            draw,
        }
    }

    /// A harness that knows what another one knew when its disk was taken.
    pub(crate) fn on_image(&self, image: &DiskImage) -> Self {
        let mut other = Self::new(self.plan.clone());
        other.world = World::with_disk_image(self.plan.seed, self.plan.sim.clone(), NODE, image);
        other.known.clone_from(&self.known);
        other.draw = self.draw.clone();
        other.damage_is_expected = true;
        other
    }

    /// Starts a process and reads everything back. The outer error is a finding.
    pub(crate) fn try_start(&mut self) -> Result<Result<(), OpenError>, Wrong> {
        if let Err(error) = self.open() {
            self.world.power_off(NODE);
            self.bury();
            return Ok(Err(error));
        }
        let result = (|| {
            for shard in 0..self.live.len() {
                self.adopt(shard)?;
            }
            self.pump_until("being ready", |own| own.live.iter().all(|live| live.shard.is_ready()))?;
            for shard in 0..self.live.len() {
                self.verify(shard)?;
            }
            Ok(())
        })();
        flat(result).map(Ok)
    }

    /// As a step of a test that expects the process to live.
    pub(crate) fn pass(&mut self, us: u64) -> Checked {
        let until = self.world.now_us() + us;
        for shard in 0..self.live.len() {
            flat(self.tick(shard))?; // what was appended is submitted at the end of a turn
        }
        flat(self.pump_until("time", |own| own.world.now_us() >= until))
    }

    /// One event of the world, or one turn of a shard; whoever steps so sees what was acknowledged at each.
    pub(crate) fn step_once(&mut self) -> Checked {
        flat(self.pump())
    }

    /// One turn of each shard: what was appended is submitted.
    pub(crate) fn turn_all(&mut self) -> Checked {
        (0..self.live.len()).try_for_each(|shard| flat(self.tick(shard)))
    }

    /// Time goes on until nothing is on its way any more; nothing is judged.
    pub(crate) fn turn_some(&mut self) {
        for _ in 0..200 {
            self.live.iter_mut().for_each(Live::tick);
            for _ in 0..50 {
                if !self.world.runnable().is_empty() || !self.world.step() {
                    break;
                }
            }
        }
    }

    /// Compares what `open` has found with what must and may be there.
    pub(crate) fn adopt_all(&mut self) -> Checked {
        (0..self.live.len()).try_for_each(|shard| self.adopt(shard))
    }

    /// Stops the process cleanly; it is gone then.
    pub(crate) fn stop_cleanly(&mut self) -> Checked {
        let result = self.stop();
        self.world.power_off(NODE);
        self.bury();
        flat(result)
    }

    /// The power goes off.
    pub(crate) fn crash(&mut self) {
        self.world.power_off(NODE);
        self.bury();
    }

    fn options(&self, shard: usize) -> ShardOptions {
        ShardOptions {
            directory: directory(shard),
            shard: ShardId(shard as u16),
            shards: self.plan.shards,
            node_id: NODE_ID,
            memory: MEMORY_MIN,
            segment_size: self.plan.segment_size,
            disk_limit: self.plan.disk_limit,
            retain_time_ms: self.plan.retain_time_ms,
            retain_size: self.plan.retain_size,
            checkpoint_interval: self.plan.checkpoint_interval,
            durability: Some(self.plan.durability),
            planted: self.plan.planted,
        }
    }

    /// The process is gone, one way or another.
    pub(crate) fn bury(&mut self) {
        for live in self.live.drain(..) {
            let stats = live.shard.stats();
            self.counts.retired += stats.log.retired;
            self.counts.activations += stats.log.activations;
            self.counts.checkpoints += stats.checkpoints;
            self.counts.cold += stats.cold_frames;
            self.counts.relocated += stats.bytes_relocated;
        }
        for known in &mut self.known {
            known.durable = Lsn(0);
        }
    }

    /// Starts a process once.
    pub(crate) fn open(&mut self) -> Result<(), OpenError> {
        self.reports.clear();
        for shard in 0..usize::from(self.plan.shards) {
            let mut ring = self.world.ring(NODE);
            let (shard, report) = Shard::open(&mut ring, self.options(shard), &mut |_, _| {})?;
            self.counts.groups_scanned += report.groups;
            self.reports.push(report);
            self.live.push(Live { ring, shard, done: Vec::new() });
        }
        Ok(())
    }

    fn check_alive(&self) -> Step<()> {
        if self.live.iter().all(|live| live.alive(&self.world)) { Ok(()) } else { Err(Stop::Died) }
    }

    /// Time goes on until something can be done, and that is done.
    fn pump(&mut self) -> Step<()> {
        let runnable = self.world.runnable();
        if runnable.is_empty() {
            if !self.world.step() {
                self.world.advance(1000);
            }
        } else {
            let id = runnable[self.world.pick(runnable.len())];
            if let Some(shard) = self.live.iter().position(|live| live.ring.sim_id() == Some(id)) {
                self.tick(shard)?;
            }
        }
        self.check_alive()
    }

    fn tick(&mut self, shard: usize) -> Step<()> {
        let before_ms = self.wall_ms();
        self.live[shard].tick();
        self.note_binds(shard, before_ms)?;
        if self.live[shard].alive(&self.world) {
            self.judge(shard)?;
        }
        Ok(())
    }

    /// Pumps until a condition holds.
    fn pump_until(&mut self, what: &'static str, done: impl Fn(&Self) -> bool) -> Step<()> {
        let begun = self.world.now_us();
        for _ in 0..PATIENCE_TURNS {
            if done(self) {
                return Ok(());
            }
            self.pump()?;
            if self.world.now_us() > begun + PATIENCE_US {
                break;
            }
        }
        if self.live.iter().any(|live| live.shard.poisoned().is_some()) {
            return Err(Stop::Died);
        }
        let details = format!("{what} never happens ({} us passed)", self.world.now_us() - begun);
        Err(wrong("progress", details).into())
    }

    /// What must hold after each turn.
    fn judge(&mut self, shard: usize) -> Checked {
        let live = &self.live[shard].shard;
        let known = &mut self.known[shard];
        let durable = live.durable();
        if durable < known.durable {
            return Err(wrong("durable never goes back", format!("{durable} after {}", known.durable)));
        }
        known.durable = durable;
        known.late.settle(durable);
        known.cursors.settle(durable);
        for topic in &mut known.topics {
            topic.state = match topic.state {
                TopicState::Creating(at) if at <= durable => TopicState::Live,
                TopicState::Deleting(at) if at <= durable => TopicState::Deleted,
                other => other,
            };
            if matches!(topic.state, TopicState::Deleting(_) | TopicState::Deleted) {
                continue;
            }
            for partition in &mut topic.partitions {
                let Some(extent) = live.extent(partition.id) else {
                    return Err(wrong("partitions stay", format!("{} is gone", partition.id)));
                };
                partition.check_extent(extent, durable)?;
                for frame in partition.frames.iter_mut().rev().take_while(|frame| !frame.acked) {
                    frame.acked = frame.durable_at <= durable;
                }
                // Groups become durable in order, so the frames behind an acknowledged one are looked at.
                for producer in &mut partition.producers {
                    while producer
                        .unanswered
                        .front()
                        .is_some_and(|first| first.durable_at.is_some_and(|at| at <= durable))
                    {
                        producer.unanswered.pop_front();
                    }
                }
            }
        }
        Ok(())
    }

    // -- work ----------------------------------------------------------------------------------------------

    /// One thing that clients do.
    fn act(&mut self, shard: usize) -> Step<()> {
        if self.plan.groups && self.draw.one_in(3) {
            return self.act_groups(shard);
        }
        if self.plan.late && self.draw.one_in(2) {
            return self.act_late(shard);
        }
        match self.draw.below(20) {
            0 => self.act_topic(shard)?,
            1..=3 => self.act_fetch(shard)?,
            4 => self.act_time(shard)?,
            _ => self.act_append(shard)?,
        }
        Ok(())
    }

    fn live_topics(&self, shard: usize) -> Vec<usize> {
        let topics = self.known[shard].topics.iter().enumerate();
        topics
            .filter(|(_, topic)| matches!(topic.state, TopicState::Live | TopicState::Creating(_)))
            .filter(|(_, topic)| !topic.partitions.is_empty())
            .map(|(index, _)| index)
            .collect()
    }

    pub(crate) fn make_topic(&mut self, shard: usize, partitions: u32) -> Result<(), AppendError> {
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let known = &mut self.known[shard];
        known.names += 1;
        let entry = live.catalogue().plan(&format!("t{}", known.names), partitions, 0).unwrap();
        let at = live.append_topic(ring, &entry)?;
        self.world.note(&format!("topic {} made, durable at {at}", entry.topic));
        let own = ShardId(shard as u16);
        let shards = self.plan.shards;
        let partitions = entry.partition_ids().filter(|id| id.shard(shards) == own);
        let partitions = partitions.map(PartitionModel::new).collect();
        // Of a topic whose making was lost nobody has heard: its number may be given to another.
        known.topics.retain(|topic| topic.entry.topic != entry.topic);
        known.topics.push(TopicModel { entry, state: TopicState::Creating(at), partitions });
        Ok(())
    }

    fn act_topic(&mut self, shard: usize) -> Step<()> {
        let topics = self.live_topics(shard);
        if topics.len() >= 2 && self.draw.one_in(2) {
            let index = topics[self.draw.below(topics.len() as u64) as usize];
            let Live { ring, shard: live, .. } = &mut self.live[shard];
            let topic = &mut self.known[shard].topics[index];
            let mut entry = topic.entry.clone();
            entry.deleted = true;
            if let Ok(at) = live.append_topic(ring, &entry) {
                self.world.note(&format!("topic {} deleted, durable at {at}", entry.topic));
                topic.state = TopicState::Deleting(at);
                let gone = topic.partitions.iter().map(|partition| partition.id).collect();
                self.known[shard].cursors.note(at, cursors::Event::Gone(gone));
            }
        } else if topics.len() < 5 {
            let partitions = 1 + self.draw.below(4) as u32;
            let _ = self.make_topic(shard, partitions);
        }
        Ok(())
    }

    fn any_partition(&mut self, shard: usize) -> Option<(usize, usize)> {
        let topics = self.live_topics(shard);
        if topics.is_empty() {
            return None;
        }
        let topic = topics[self.draw.below(topics.len() as u64) as usize];
        let count = self.known[shard].topics[topic].partitions.len() as u64;
        Some((topic, self.draw.below(count) as usize))
    }

    /// A frame that no other is like.
    pub(crate) fn frame(&mut self, producer: ProducerStamp) -> Vec<u8> {
        let draw = &mut self.draw;
        // Whatever waits needs room for its extension.
        let extension = if self.plan.late { FRAME_EXTENSION_MAX } else { 0 };
        let mut builder = FrameBuilder::new(1000, frame_size_max(self.plan.segment_size) - extension);
        let records = 1 + draw.below(3);
        let body_max = self.plan.body_max;
        for _ in 0..records {
            let len = if draw.one_in(3) { draw.below(64) } else { draw.below(body_max) };
            let mut body = draw.next().to_le_bytes().to_vec();
            while (body.len() as u64) < len {
                body.extend_from_slice(&draw.next().to_le_bytes());
            }
            let pushed = builder.push(&Record { body: &body, time_ms: 1000, ..Record::default() });
            assert!(pushed.is_ok() || builder.count() > 0, "a record of {} bytes", body.len());
        }
        builder.finish(producer, Codec::None, &mut |_| None)
    }

    fn act_append(&mut self, shard: usize) -> Step<()> {
        let burst = 1 + self.draw.below(self.plan.burst);
        for _ in 0..burst {
            let Some((topic, partition)) = self.any_partition(shard) else {
                let partitions = 1 + self.draw.below(4) as u32;
                let _ = self.make_topic(shard, partitions);
                return Ok(());
            };
            let taken = if self.draw.one_in(3) {
                let bytes = self.frame(ProducerStamp::default());
                self.append(shard, topic, partition, &bytes)?.is_some()
            } else {
                self.produce(shard, topic, partition)?
            };
            if !taken {
                break;
            }
        }
        Ok(())
    }

    /// An idempotent producer: first what was not answered, then something new.
    fn produce(&mut self, shard: usize, topic: usize, partition: usize) -> Result<bool, Wrong> {
        let which = self.draw.below(PRODUCERS as u64) as usize;
        let producers = &mut self.known[shard].topics[topic].partitions[partition].producers;
        while producers.len() < PRODUCERS {
            let id = self.draw.next() | 1;
            producers.push(Producer { id, ..Producer::default() });
        }
        let producer = &producers[which];
        if producer.unanswered.len() < UNANSWERED_MAX {
            let (id, base_sequence) = (ProducerId(producer.id), producer.next_sequence);
            let stamp = ProducerStamp { id, epoch: 0, base_sequence };
            let delayed = self.plan.late && self.draw.one_in(4);
            let bytes = if delayed { self.delay_frame(stamp) } else { self.frame(stamp) };
            let frame = Frame::parse(&bytes).unwrap();
            let unanswered = Unanswered { digest: digest(&frame), durable_at: None, bytes: bytes.clone() };
            let producers = &mut self.known[shard].topics[topic].partitions[partition].producers;
            producers[which].next_sequence += frame.header.count.get();
            producers[which].unanswered.push_back(unanswered);
        }
        let mut index = 0;
        loop {
            let producers = &self.known[shard].topics[topic].partitions[partition].producers;
            let Some(unanswered) = producers[which].unanswered.get(index) else { return Ok(true) };
            if unanswered.durable_at.is_none() {
                let bytes = unanswered.bytes.clone();
                let Some(appended) = self.append(shard, topic, partition, &bytes)? else { return Ok(false) };
                let producers = &mut self.known[shard].topics[topic].partitions[partition].producers;
                producers[which].unanswered[index].durable_at = Some(appended.durable_at);
            }
            index += 1;
        }
    }

    /// Sends a frame. `None`: not taken, again later.
    pub(crate) fn append(
        &mut self,
        shard: usize,
        topic: usize,
        partition: usize,
        bytes: &[u8],
    ) -> Result<Option<Appended>, Wrong> {
        let frame = Frame::parse(bytes).unwrap();
        if frame.header.kind() != FrameKind::Data {
            let id = self.known[shard].topics[topic].partitions[partition].id;
            return self.append_late(shard, id, bytes);
        }
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let partition = &mut self.known[shard].topics[topic].partitions[partition];
        let poisoned = live.poisoned().is_some();
        let appended = match live.append(ring, partition.id, &frame) {
            Ok(appended) => appended,
            Err(
                AppendError::Busy
                | AppendError::DiskFull
                | AppendError::Poisoned
                | AppendError::TooManyInFlight,
            ) => return Ok(None),
            Err(error) => {
                let sequence = frame.header.base_sequence.get();
                let details = format!("{}: sequence {sequence}: {error:?}", partition.id);
                return Err(wrong("producers are remembered", details));
            }
        };
        let digest = digest(&frame);
        self.world.note(&format!("append {digest:x} to {}: {appended:?}", partition.id));
        let before = partition.find(digest).copied();
        match (appended.duplicate, before) {
            (true, Some(before)) if before.offset == appended.base_offset.0 => {
                self.counts.duplicates += 1;
            }
            (true, before) => {
                let details = format!("{}: {appended:?}, stored {before:?}", partition.id);
                return Err(wrong("a duplicate is told its offset", details));
            }
            (false, Some(before)) => {
                let details = format!("{}: {appended:?}, stored {before:?}", partition.id);
                return Err(wrong("no record twice", details));
            }
            (false, None) => {
                if poisoned {
                    return Err(wrong("a poisoned log takes nothing", format!("{appended:?}")));
                }
                self.counts.frames += 1;
                let lsn = Lsn(appended.durable_at.0 - bytes.len() as u64);
                partition.push(Stored {
                    digest,
                    offset: appended.base_offset.0,
                    count: u64::from(frame.header.count.get()),
                    timestamp: appended.timestamp,
                    lsn,
                    durable_at: appended.durable_at,
                    acked: false,
                    bound: None,
                })?;
            }
        }
        Ok(Some(appended))
    }

    fn extent(&self, shard: usize, id: PartitionId) -> Result<Extent, Wrong> {
        let extent = self.live[shard].shard.extent(id);
        extent.ok_or_else(|| wrong("partitions stay", format!("{id} is gone")))
    }

    fn act_fetch(&mut self, shard: usize) -> Step<()> {
        let Some((topic, partition)) = self.any_partition(shard) else { return Ok(()) };
        let id = self.known[shard].topics[topic].partitions[partition].id;
        let Extent { start, visible } = self.extent(shard, id)?;
        let offset = start.0 + self.draw.below(visible.0 - start.0 + 1);
        let bytes = 1 << self.draw.below(18);
        self.fetch(shard, topic, partition, Offset(offset), bytes)?;
        Ok(())
    }

    /// Fetches once; what comes is checked. Answers how it ended.
    pub(crate) fn fetch(
        &mut self,
        shard: usize,
        topic: usize,
        partition: usize,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Fetched, Wrong> {
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let model = &self.known[shard].topics[topic].partitions[partition];
        let mut next = offset.0;
        let mut checked = Ok(());
        let mut count = 0;
        let fetched = live.fetch(ring, model.id, offset, max_bytes, &mut |delivered, bytes| {
            count += 1;
            if checked.is_ok() {
                checked = model.check_delivered(&mut next, delivered, bytes);
            }
        });
        self.counts.fetched += count;
        checked?;
        let (Fetched::Limit(told) | Fetched::AtEnd(told) | Fetched::Cold(told)) = fetched else {
            return Ok(fetched);
        };
        if told.0 != next {
            let details = format!("{}: delivered up to {next}, told {fetched:?}", model.id);
            return Err(wrong("order per partition", details));
        }
        Ok(fetched)
    }

    fn act_time(&mut self, shard: usize) -> Step<()> {
        let Some((topic, partition)) = self.any_partition(shard) else { return Ok(()) };
        let model = &self.known[shard].topics[topic].partitions[partition];
        if model.frames.is_empty() {
            return Ok(());
        }
        let some = model.frames[self.draw.below(model.frames.len() as u64) as usize];
        let time = some.timestamp - 1 + self.draw.below(3) as i64;
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let Some(Extent { start, visible }) = live.extent(model.id) else { return Ok(()) };
        let TimeLookup::At(found, timestamp) = live.offset_at_time(ring, model.id, time) else {
            return Ok(());
        };
        let kept = model.frames.iter().filter(|frame| frame.offset >= start.0 && frame.end() <= visible.0);
        let expected = kept
            .clone()
            .find(|frame| frame.timestamp >= time)
            .map_or((visible.0, NO_TIME), |frame| (frame.offset, frame.timestamp));
        if (found.0, timestamp) != expected {
            let details = format!("{}: time {time}: {found}, {timestamp} instead of {expected:?}", model.id);
            return Err(wrong("look-up by time", details).into());
        }
        Ok(())
    }

    // -- lives ---------------------------------------------------------------------------------------------

    /// Compares what a start has found with what must and may be there, before anything else happens.
    fn adopt(&mut self, shard: usize) -> Checked {
        let retains = self.plan.retain_size.is_some() || self.plan.retain_time_ms.is_some();
        let live = &self.live[shard].shard;
        let log_start = live.log().segments().front().map_or(Lsn(0), |segment| segment.facts.base);
        let log_start = log_start.max(live.log().superblock().log_start);
        let known = &mut self.known[shard];
        for topic in &mut known.topics {
            let found = live.catalogue().by_id(topic.entry.topic);
            let same = found.is_some_and(|found| found.name == topic.entry.name);
            let deleted = found.is_some_and(|found| found.deleted);
            topic.state = match topic.state {
                TopicState::Live if !same || deleted => {
                    return Err(wrong("topics stay", format!("{:?} is {found:?}", topic.entry)));
                }
                TopicState::Deleted if !deleted => {
                    return Err(wrong("topics stay deleted", format!("{:?}", topic.entry)));
                }
                TopicState::Creating(_) | TopicState::Deleting(_) if same && !deleted => TopicState::Live,
                TopicState::Creating(_) | TopicState::Deleting(_) => TopicState::Deleted,
                other => other,
            };
        }
        // Whatever became of a topic that nobody was told of is forgotten, so that its number is free.
        known.topics.retain(|topic| live.catalogue().by_id(topic.entry.topic).is_some());
        let found = self.live[shard].shard.durable();
        self.known[shard].late.recover(found)?;
        self.known[shard].cursors.recover(found);
        for index in 0..self.known[shard].topics.len() {
            if self.known[shard].topics[index].state != TopicState::Live {
                continue;
            }
            for partition in 0..self.known[shard].topics[index].partitions.len() {
                let id = self.known[shard].topics[index].partitions[partition].id;
                let extent = self.extent(shard, id)?;
                let model = &mut self.known[shard].topics[index].partitions[partition];
                model.recover(extent, log_start, retains)?;
            }
        }
        Ok(())
    }

    /// Reads everything back and compares.
    fn verify(&mut self, shard: usize) -> Step<()> {
        for topic in self.live_topics(shard) {
            for partition in 0..self.known[shard].topics[topic].partitions.len() {
                self.read_all(shard, topic, partition)?;
            }
        }
        self.check_groups(shard)?;
        self.check_late(shard)
    }

    /// Reads a partition from its start to its end.
    fn read_all(&mut self, shard: usize, topic: usize, partition: usize) -> Step<()> {
        let id = self.known[shard].topics[topic].partitions[partition].id;
        let mut next = None;
        let mut waits = 0;
        loop {
            let extent = self.extent(shard, id)?;
            // Retention may overtake the reader.
            let offset = next.unwrap_or(extent.start).max(extent.start);
            let len = self.known[shard].topics[topic].partitions[partition].frames.len();
            match self.fetch(shard, topic, partition, offset, 64 << 10)? {
                Fetched::AtEnd(_) => return Ok(()),
                Fetched::Limit(at) => next = Some(at),
                Fetched::Cold(at) => {
                    next = Some(at);
                    waits += 1;
                    if waits > 10_000 {
                        return Err(wrong("progress", format!("{id}: {at} of {len} stays cold")).into());
                    }
                    // A fetch is part of a turn: its page is asked for at the end of it.
                    self.tick(shard)?;
                    self.check_alive()?;
                    let mut turns = 0;
                    while !self.live[shard].shard.take_cold_progress() && turns < 1000 {
                        self.pump()?;
                        turns += 1;
                    }
                }
                Fetched::Damaged { from, to } if self.damage_is_expected && to > from => {
                    self.damaged.push((id, from.0, to.0));
                    next = Some(to);
                }
                other => {
                    return Err(wrong("everything is served", format!("{id}: {other:?}")).into());
                }
            }
        }
    }

    /// From the start of a process to its end.
    fn live_once(&mut self) -> Step<()> {
        self.start()?;
        self.work(self.plan.life)?;
        Ok(())
    }

    /// Opens, waits until it may be served, and checks what is there.
    fn start(&mut self) -> Step<()> {
        let clean = std::mem::take(&mut self.clean);
        match self.open() {
            Ok(()) => {}
            Err(OpenError::Io { error: Errno::POWER_OFF, .. }) => return Err(Stop::Died),
            Err(OpenError::Io { .. }) if self.plan.errors => return Err(Stop::Died),
            Err(error) => return Err(wrong("it starts", error.to_string()).into()),
        }
        self.check_alive()?;
        if clean {
            for report in &self.reports {
                if !report.clean || report.groups > 0 {
                    return Err(wrong("after a clean stop nothing is read", format!("{report:?}")).into());
                }
            }
        }
        if self.reports.iter().any(|report| report.checkpoint_lost || !report.damaged_frames.is_empty()) {
            return Err(wrong("nothing is damaged", format!("{:?}", self.reports)).into());
        }
        for shard in 0..self.live.len() {
            self.adopt(shard)?;
        }
        if self.plan.eager {
            for shard in 0..self.live.len() {
                self.tick(shard)?;
                self.act_append(shard)?;
            }
        }
        self.pump_until("being ready", |own| own.live.iter().all(|live| live.shard.is_ready()))?;
        for shard in 0..self.live.len() {
            self.verify(shard)?;
        }
        Ok(())
    }

    /// Clients work for so many I/O events.
    fn work(&mut self, events: u64) -> Step<()> {
        let until = self.world.io_events(NODE) + events;
        let mut next_action = self.world.now_us();
        let mut turns = 0;
        while self.world.io_events(NODE) < until {
            turns += 1;
            if turns > 30 * events {
                return Ok(()); // nothing is taken any more: a full disk, or one that takes its time
            }
            let now = self.world.now_us();
            if now >= next_action {
                let shard = self.draw.below(self.live.len() as u64) as usize;
                self.act(shard)?;
                self.tick(shard)?;
                next_action = now + self.draw.below(self.plan.pause_us);
            } else if !self.world.runnable().is_empty() {
                self.pump()?;
            } else {
                let next = self.world.next_event().into_iter().chain(self.world.next_deadline()).min();
                match next {
                    Some(at) if at <= next_action => drop(self.world.step()),
                    _ => self.world.advance(next_action - now),
                }
            }
            self.check_alive()?;
            if self.live.iter().any(|live| live.shard.poisoned().is_some()) {
                self.counts.poisons += 1;
                if !self.plan.errors {
                    let poisons: Vec<_> = self.live.iter().filter_map(|live| live.shard.poisoned()).collect();
                    return Err(wrong("without errors no log is poisoned", format!("{poisons:?}")).into());
                }
                // Reads go on, and nothing is acknowledged.
                for shard in 0..self.live.len() {
                    self.act_fetch(shard)?;
                }
                return Err(Stop::Died);
            }
        }
        Ok(())
    }

    /// A clean stop.
    fn stop(&mut self) -> Step<()> {
        for live in &mut self.live {
            live.shard.begin_stop();
        }
        for shard in 0..self.live.len() {
            self.tick(shard)?;
        }
        self.check_alive()?;
        self.pump_until("the clean stop", |own| own.live.iter().all(|live| live.shard.is_stopped()))?;
        if self.live.iter().any(|live| live.shard.poisoned().is_some()) {
            return Err(Stop::Died);
        }
        // Errors may keep a sidecar or the checkpoint from being written, and a full disk the log from having a
        // segment to go on in: then there is something to be read.
        self.clean = !self.plan.errors && self.live.iter().all(|live| live.shard.log().free_slots() > 0);
        self.counts.clean_stops += 1;
        Ok(())
    }

    /// One process, ended in one of many ways.
    fn life(&mut self) -> Checked {
        let mut depth = 0;
        loop {
            // The end may come at any event, from the first of the recovery on.
            let kind = self.draw.below(12);
            let soon = depth < 3 && self.draw.one_in(3);
            let after = 1 + if soon { self.draw.below(60) } else { self.draw.below(self.plan.life) };
            let at = self.world.io_events(NODE) + after;
            // A sync that failed may have lost what a reader still sees: only power loss tells.
            let can_kill = !self.plan.errors;
            match kind {
                0..=5 => self.world.crash_at(NODE, at),
                6 | 7 if can_kill => self.world.kill_at(NODE, at),
                _ => {}
            }
            let mut ended = self.live_once();
            if ended.is_ok() && matches!(kind, 8 | 9) {
                ended = self.stop();
            }
            match ended {
                Err(Stop::Wrong(wrong)) => return Err(wrong),
                Err(Stop::Died) | Ok(()) => {}
            }
            if self.clean && self.draw.one_in(2) {
                // What a clean stop leaves needs no power.
            } else if kind == 10 && can_kill {
                self.world.kill(NODE);
            } else {
                self.world.power_off(NODE);
            }
            self.counts.crashes += 1;
            let recovered = !self.live.is_empty();
            self.bury();
            if recovered || depth > 20 {
                return Ok(());
            }
            self.counts.nested += 1;
            depth += 1;
        }
    }

    /// Lives as the plan says, then heals the world and demands progress.
    pub(crate) fn run(&mut self) -> Checked {
        while self.counts.crashes < u64::from(self.plan.crashes) {
            self.life()?;
        }
        self.world.heal();
        self.plan.errors = false;
        // What the last crash has planned is over.
        self.world.crash_at(NODE, u64::MAX);
        flat(self.start())?;
        flat(self.work(100))?;
        flat(self.drain_timers(if self.plan.late { 4_000_000 } else { 0 }))?;
        for shard in 0..self.live.len() {
            flat(self.verify(shard))?;
        }
        flat(self.stop())?;
        self.bury();
        flat(self.start())?;
        flat(self.stop())?;
        self.world.power_off(NODE);
        self.bury();
        flat(self.start())?;
        self.world.power_off(NODE);
        self.bury();
        Ok(())
    }
}

/// What came of a seed.
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    pub(crate) hash: u64,
    pub(crate) found: Option<Wrong>,
    pub(crate) trace: Vec<String>,
}

/// Runs a plan; a panic of the engine is a finding too.
pub(crate) fn run(plan: Plan) -> Outcome {
    let mut harness = Harness::new(plan);
    let result = quietly(|| harness.run());
    let found = match result {
        Ok(Ok(())) => None,
        Ok(Err(wrong)) => Some(wrong),
        Err(message) => Some(wrong("assertion", message)),
    };
    let (hash, trace) = (harness.world.trace_hash(), harness.world.trace());
    Outcome { counts: harness.counts, hash, found, trace }
}

thread_local! {
    static PANIC: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Catches a panic and its words, without printing them.
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
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
