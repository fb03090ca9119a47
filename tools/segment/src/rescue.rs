//! Takes every undamaged frame out of a data directory, in order, and says exactly what is missing: for salvage,
//! backup and export. Where they go is a [`Sink`].
//!
//! Invariants  T1  A frame is taken only if it is intact and continues its partition: what an earlier life of a slot
//!                 has left, and what a producer made look like a frame, does not.
//!             T2  Offsets that are not taken are reported, each once.

use crate::bodies::Bodies;
use crate::directory::{Checkpoint, Directory, Shard};
use crate::group::{FrameView, GroupView};
use crate::late::{self, LateState, time_of};
use crate::log::{Step, walk};
use crate::scan::Point;
use crate::source::Source;
use crate::state::{Partition, State, Took};
use ringmq_format::TopicId;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::frame::{Frame, FrameKind};
use ringmq_format::late::Bind;
use ringmq_format::{Lsn, PartitionId};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;

/// Missing ranges that are remembered one by one.
const MISSING_MAX: usize = 100_000;

/// Where frames go.
pub trait Sink {
    /// A topic, before its frames if that can be.
    fn topic(&mut self, topic: &TopicEntry) -> io::Result<()>;
    /// A frame, in the order of its shard's log.
    fn frame(&mut self, shard: u16, bytes: &[u8]) -> io::Result<()>;
}

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only this topic.
    pub topic: Option<String>,
    /// Only this partition of it.
    pub partition: Option<u32>,
    /// Only frames with an offset from here on.
    pub from_offset: Option<u64>,
    /// Only frames with an offset before this.
    pub until_offset: Option<u64>,
    /// Only what was appended before, Unix milliseconds.
    pub until_time: Option<i64>,
    /// Only what was appended from then on.
    pub from_time: Option<i64>,
}

impl Wanted {
    /// Everything.
    pub fn is_all(&self) -> bool {
        self.topic.is_none()
            && self.partition.is_none()
            && self.from_offset.is_none()
            && self.until_offset.is_none()
            && self.until_time.is_none()
            && self.from_time.is_none()
    }
}

/// Offsets that could not be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Shard.
    pub shard: u16,
    /// Partition.
    pub partition: u32,
    /// First offset.
    pub from: u64,
    /// Behind the last.
    pub to: u64,
    /// Why.
    pub reason: String,
}

/// What was taken, and what was not.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Frames taken.
    pub frames: u64,
    /// Halves and delayed messages among them.
    pub waiting: u64,
    /// Records that have offsets.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Damaged frames that hold no records, and damaged places in which no frame can be told.
    pub other_damage: Vec<String>,
    /// Offsets that could not be taken.
    pub missing: Vec<Missing>,
    /// There were more of them.
    pub missing_cut: bool,
    /// Frames that look whole and do not belong here.
    pub stale: u64,
    /// Topics that were made up for partitions of which no topic is known.
    pub made_up: Vec<String>,
    /// Append time of the newest frame taken.
    pub last_time: i64,
    /// Somebody stopped it.
    pub stopped: bool,
}

impl Report {
    /// Records that are missing.
    pub fn records_missing(&self) -> u64 {
        self.missing.iter().map(|missing| missing.to - missing.from).sum()
    }

    fn miss(&mut self, missing: Missing) {
        let room = self.missing.len() < MISSING_MAX;
        match self.missing.last_mut() {
            Some(last)
                if last.partition == missing.partition
                    && last.to == missing.from
                    && last.reason == missing.reason =>
            {
                last.to = missing.to;
            }
            _ if room => self.missing.push(missing),
            _ => self.missing_cut = true,
        }
    }
}

/// Where each partition of each shard begins and ends, and what its producers are.
pub type Partitions = Vec<BTreeMap<u32, Partition>>;

/// Tables that go with the frames.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// For each shard.
    pub partitions: Partitions,
    /// What waits on each shard.
    pub late: Vec<LateState>,
}

/// Takes what is wanted. `progress` is told bytes as they are read and may say stop.
pub fn take(
    source: &Source,
    directory: &Directory,
    wanted: &Wanted,
    sink: &mut dyn Sink,
    progress: &mut dyn FnMut(u64) -> bool,
) -> io::Result<(Tables, Report)> {
    let mut report = Report::default();
    let shards = directory.identity.shards;
    let mut partitions: Partitions = vec![BTreeMap::new(); usize::from(shards)];
    let mut late = vec![LateState::default(); usize::from(shards)];
    // What checkpoints know goes first: frames follow their topics.
    let mut topics = State::default();
    let mut known: BTreeMap<u16, (State, Option<Lsn>)> = BTreeMap::new();
    for shard in &directory.shards {
        let mut state = State::new(starts_at_zero(shard));
        let checkpoint = shard.checkpoint(source, &mut Vec::new());
        if let Some(checkpoint) = &checkpoint {
            state.restore(checkpoint, shard.shard, shards);
        }
        state.topics.values().for_each(|topic| topics.enter_topic(topic.clone()));
        known.insert(shard.shard.0, (state, checkpoint.map(|checkpoint| checkpoint.facts.durable_lsn)));
    }
    // Deletions that only the log knows come later and are final.
    let fits = |topic: &TopicEntry| wanted.topic.as_ref().is_none_or(|name| topic.name == *name);
    for topic in topics.topics.values().filter(|topic| fits(topic)) {
        sink.topic(topic)?;
    }
    for shard in &directory.shards {
        let (known, durable) = known.remove(&shard.shard.0).unwrap_or_default();
        let checkpoint = shard.checkpoint(source, &mut Vec::new());
        // What waits goes with a whole directory only.
        if wanted.topic.is_none() {
            late[usize::from(shard.shard.0)] =
                waiting_at_end(source, shard, checkpoint.as_ref(), wanted.until_time)?;
        }
        let mut taking = Taking {
            source,
            shard,
            bodies: Bodies::new(checkpoint.as_ref()),
            waiting: late[usize::from(shard.shard.0)].waiting.keys().copied().collect(),
            wanted,
            sink,
            report: &mut report,
            state: State::new(known.from_zero),
            topics: &mut topics,
            excluded: BTreeMap::new(),
            error: None,
        };
        for topic in known.topics.values() {
            taking.state.enter_topic(topic.clone());
        }
        walk(source, shard, durable, None, &mut |step| {
            taking.step(&step);
            let read = if let Step::Group(_, view) = &step { view.bytes.len() as u64 } else { 0 };
            if progress(read) {
                taking.report.stopped = true;
            }
            if taking.error.is_some() || taking.report.stopped {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        let Taking { state, error, excluded, waiting, .. } = taking;
        for identity in waiting {
            let text =
                format!("shard {}: the half or delayed message {identity} is damaged or lost", shard.shard);
            report.other_damage.push(text);
        }
        if let Some(error) = error {
            return Err(error);
        }
        partitions[usize::from(shard.shard.0)] = settle(shard, state, known, &excluded, wanted, &mut report);
    }
    make_up_topics(&mut topics, &partitions, wanted, sink, &mut report)?;
    for topic in topics.topics.values().filter(|topic| topic.deleted && fits(topic)) {
        sink.topic(topic)?;
    }
    Ok((Tables { partitions, late }, report))
}

/// What waits at the end of a shard's log, or at a time.
fn waiting_at_end(
    source: &Source,
    shard: &Shard,
    checkpoint: Option<&Checkpoint>,
    until: Option<i64>,
) -> io::Result<LateState> {
    let mut late = LateState::default();
    let mut from = None;
    if let Some(checkpoint) = checkpoint {
        late.restore(checkpoint);
        let facts = &checkpoint.facts;
        from = Some(Point { lsn: facts.scan_start, chain: facts.scan_chain, epoch: 0 });
    }
    walk(source, shard, checkpoint.map(|checkpoint| checkpoint.facts.durable_lsn), from, &mut |step| {
        if let Step::Group(_, view) = step
            && !view.torn
        {
            let early = view.frames.iter().filter(|frame| until.is_none_or(|until| time_of(frame) < until));
            early.for_each(|frame| late.take(frame));
        }
        ControlFlow::Continue(())
    })?;
    Ok(late)
}

fn starts_at_zero(shard: &Shard) -> bool {
    shard.log().first().and_then(|slot| slot.facts).is_some_and(|facts| facts.base.0 == 0)
}

struct Taking<'a> {
    source: &'a Source,
    shard: &'a Shard,
    bodies: Bodies,
    /// Identities of what waits at the end, as far as no frame of it was taken.
    waiting: BTreeSet<u64>,
    wanted: &'a Wanted,
    sink: &'a mut dyn Sink,
    report: &'a mut Report,
    /// As far as the log was read.
    state: State,
    /// Of all shards.
    topics: &'a mut State,
    /// First offset of each partition that was left out because it is too late.
    excluded: BTreeMap<u32, u64>,
    error: Option<io::Error>,
}

impl Taking<'_> {
    fn step(&mut self, step: &Step<'_>) {
        match step {
            Step::Group(slot, view) => {
                if !view.torn || view.header.is_some() {
                    self.group(&slot.path.display().to_string(), view);
                }
            }
            Step::Missing(from, to) => {
                self.report.other_damage.push(format!(
                    "shard {}: no file holds positions {from} to {to} of the log",
                    self.shard.shard
                ));
            }
            Step::Unreadable(slot, error) => {
                self.report.other_damage.push(format!("{} cannot be read: {error}", slot.path.display()));
            }
            Step::Segment(..) | Step::SetAside(..) | Step::End(..) | Step::Joint(..) => {}
        }
    }

    fn group(&mut self, file: &str, view: &GroupView<'_>) {
        for lost in &view.lost {
            let text = format!(
                "{file}: bytes {} to {}: no frame can be told",
                lost.position,
                lost.position + lost.len
            );
            self.report.other_damage.push(text);
        }
        for frame in &view.frames {
            if let Err(error) = self.frame(file, frame, view.torn) {
                self.error.get_or_insert(error);
                return;
            }
        }
    }

    fn frame(&mut self, file: &str, frame: &FrameView<'_>, torn: bool) -> io::Result<()> {
        let header = &frame.header;
        let (kind, id) = (header.kind(), header.partition.get());
        let (base, end, time) = (header.base_offset.get(), frame.end_offset().0, header.timestamp.get());
        let has_offsets = matches!(kind, FrameKind::Data | FrameKind::Bind);
        self.bodies.see(frame);
        if torn && self.is_torn_off(frame, has_offsets) {
            return Ok(());
        }
        if matches!(kind, FrameKind::Half | FrameKind::Delay | FrameKind::Bound) {
            self.state.take(frame);
            return self.waits(frame);
        }
        if !frame.is_intact() && !has_offsets {
            let text = format!("{file}: a {kind:?} frame at byte {} is damaged", frame.position);
            self.report.other_damage.push(text);
            return Ok(());
        }
        if has_offsets && self.wanted.until_time.is_some_and(|until| time >= until) {
            self.excluded.entry(id).or_insert(base);
            return Ok(());
        }
        let wanted = self.is_wanted(frame);
        match self.state.take(frame) {
            Took::Old => {
                self.report.stale += 1;
                return Ok(()); // T1
            }
            Took::Hole(from, to) if self.is_wanted_partition(id) => {
                let reason = format!("the frame is lost, before byte {} of {file}", frame.position);
                self.report.miss(Missing { shard: self.shard.shard.0, partition: id, from, to, reason }); // T2
            }
            Took::Hole(..) | Took::Fits => {}
        }
        if kind == FrameKind::Topic {
            if let Some(whole) = frame.frame()
                && let Ok(topic) = TopicEntry::take(&mut whole.payload())
            {
                self.topics.enter_topic(topic.clone());
                if !topic.deleted && self.wanted.topic.as_ref().is_none_or(|name| topic.name == *name) {
                    self.sink.topic(&topic)?;
                }
            }
            return Ok(());
        }
        if !wanted {
            return Ok(());
        }
        if !frame.is_intact() {
            let fault = frame.header_fault.as_ref().or(frame.payload_fault.as_ref());
            let reason = format!("{file}: {}", fault.map_or_else(String::new, ToString::to_string));
            self.report.miss(Missing {
                shard: self.shard.shard.0,
                partition: id,
                from: base,
                to: end,
                reason,
            });
            return Ok(());
        }
        let bytes = match late::bind_of(frame) {
            None => Cow::Borrowed(frame.bytes),
            // Written as an ordinary frame: what it names may not be taken, or lie elsewhere.
            Some(bind) => match self.unbound(frame, &bind) {
                Ok(bytes) => Cow::Owned(bytes),
                Err(reason) => {
                    let reason = format!("{file}: byte {}: {reason}", frame.position);
                    let shard = self.shard.shard.0;
                    self.report.miss(Missing { shard, partition: id, from: base, to: end, reason });
                    return Ok(());
                }
            },
        };
        if !has_offsets {
            return Ok(()); // what ends a transaction or a delay is in the tables
        }
        self.sink.frame(self.shard.shard.0, &bytes)?;
        self.report.frames += 1;
        self.report.records += u64::from(header.count.get());
        self.report.bytes += frame.bytes.len() as u64;
        self.report.last_time = self.report.last_time.max(time);
        Ok(())
    }

    /// A body that waits is taken once, under its identity; one that was bound comes with its BIND.
    fn waits(&mut self, frame: &FrameView<'_>) -> io::Result<()> {
        let own = late::identity(frame);
        if frame.header.kind() == FrameKind::Bound || !frame.is_intact() || !self.waiting.remove(&own) {
            return Ok(());
        }
        self.report.waiting += 1;
        self.report.frames += 1;
        self.report.bytes += frame.bytes.len() as u64;
        self.sink.frame(self.shard.shard.0, &late::copy_of(frame))
    }

    fn unbound(&self, frame: &FrameView<'_>, bind: &Bind) -> Result<Vec<u8>, String> {
        let body = self.bodies.find(self.source, self.shard, bind)?;
        let parsed = Frame::parse(&body).map_err(|corruption| corruption.to_string())?;
        late::unbind(&frame.header, bind, &parsed)
    }

    /// Of a torn tail, what no flipped bit explains was never whole, and what lies behind it in its partition was never
    /// acknowledged: neither is missing.
    fn is_torn_off(&self, frame: &FrameView<'_>, has_offsets: bool) -> bool {
        let faults = [&frame.header_fault, &frame.payload_fault];
        let torn = faults.into_iter().flatten().any(|fault| fault.flipped_bit.is_none());
        let id = frame.header.partition.get();
        let goes_on = match self.state.partitions.get(&id) {
            Some(own) => own.next == frame.header.base_offset.get(),
            None => self.state.topic_of(id).is_some(),
        };
        // Topics are made and deleted by what was proven only: a deletion that recovery cuts would cost all of one.
        torn || !has_offsets || !goes_on
    }

    fn is_wanted_partition(&self, id: u32) -> bool {
        let Some(name) = &self.wanted.topic else {
            return self.wanted.partition.is_none_or(|wanted| wanted == id);
        };
        self.state.topic_of(id).is_some_and(|(topic, number)| {
            topic.name == *name
                && !topic.deleted
                && self.wanted.partition.is_none_or(|wanted| wanted == number)
        })
    }

    fn is_wanted(&self, frame: &FrameView<'_>) -> bool {
        if self.wanted.is_all() {
            return true;
        }
        let header = &frame.header;
        let partial = self.wanted.topic.is_some() || self.wanted.partition.is_some();
        (!partial || self.is_wanted_partition(header.partition.get()))
            && self.wanted.from_offset.is_none_or(|from| frame.end_offset().0 > from)
            && self.wanted.until_offset.is_none_or(|until| header.base_offset.get() < until)
            && self.wanted.from_time.is_none_or(|from| header.timestamp.get() >= from)
    }
}

/// Tables of the partitions of a shard, from the log and what the checkpoint knows beyond it.
fn settle(
    shard: &Shard,
    state: State,
    known: State,
    excluded: &BTreeMap<u32, u64>,
    wanted: &Wanted,
    report: &mut Report,
) -> BTreeMap<u32, Partition> {
    let mut partitions = state.partitions;
    for (id, checkpointed) in known.partitions {
        let own = partitions.entry(id).or_insert_with(|| {
            // Nothing of it is in the log that is kept.
            let next = excluded.get(&id).copied().unwrap_or(checkpointed.next);
            Partition { start: next, next, last_time: checkpointed.last_time, ..Partition::default() }
        });
        if wanted.until_time.is_some_and(|until| checkpointed.last_time >= until) {
            continue; // it is of a later time
        }
        if checkpointed.next > own.next && own.frames > 0 {
            let reason = "the end of the partition, which the checkpoint knows, is lost".to_owned();
            let (partition, from, to) = (id, own.next, checkpointed.next);
            report.miss(Missing { shard: shard.shard.0, partition, from, to, reason });
        }
        own.next = own.next.max(checkpointed.next);
        for producer in checkpointed.producers {
            if own.producers.iter().all(|known| known.producer != producer.producer) {
                own.producers.insert(0, producer);
            }
        }
    }
    partitions
}

/// Partitions of which no topic is known get one each.
fn make_up_topics(
    topics: &mut State,
    partitions: &Partitions,
    wanted: &Wanted,
    sink: &mut dyn Sink,
    report: &mut Report,
) -> io::Result<()> {
    if wanted.topic.is_some() {
        return Ok(());
    }
    let ids: Vec<u32> = partitions.iter().flat_map(BTreeMap::keys).copied().collect();
    for id in ids {
        if topics.topic_of(id).is_some() {
            continue;
        }
        let topic = topics.topics.last_key_value().map_or(1, |last| last.0 + 1);
        let entry = TopicEntry {
            topic: TopicId(topic),
            first_partition: PartitionId(id),
            partitions: 1,
            deleted: false,
            created_ms: 0,
            name: format!("recovered-{id}"),
            settings: Default::default(),
            revision: 0,
        };
        topics.enter_topic(entry.clone());
        report.made_up.push(entry.name.clone());
        sink.topic(&entry)?;
    }
    Ok(())
}
