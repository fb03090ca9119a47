//! Everything that one core owns: its log, its partitions, its catalogue, and the background work between them.
//!
//! The owner of the ring calls [`Shard::complete`] for every completion of an engine room, then [`Shard::turn`]
//! once, then sleeps until [`Shard::deadline`].
//!
//! Invariants  H1  Nothing is acknowledged and nothing is shown before `durable` has passed it.
//!             H2  Background writes are kept back, all but a few, while groups are in flight.
//!             H3  A segment is retired only when two checkpoints cover it.
//! Ignorant of connections, requests and other shards.

mod bodies;
mod checkpoint;
mod fetch;
mod groups;
mod late;
pub mod offline;
mod replay;
mod retention;
mod sidecars;

use crate::catalogue::Catalogue;
use crate::cursors::Cursors;
use crate::cursors::groups::GroupTable;
use crate::late::{Late, LateLimits};
use crate::log::arena::ARENA_SIZE_MIN;
use crate::log::{Log, LogOptions, LogStats, Poison, Refused, Segment, room};
use crate::partition::Partition;
use crate::partition::index::{Entry, FrameIndex};
use crate::partition::producers::{Original, Verdict};
use crate::planted::Planted;
use crate::reader::{COLD_SIZE_MIN, ColdCache};
use crate::recovery::{self, OpenError, OpenOptions, RecoveryReport};
use crate::ring::{Completion, Ring};
use checkpoint::Checkpointing;
pub use fetch::{Delivered, Fetched, NO_TIME, TimeLookup};
pub use groups::CURSORS_PER_FRAME_MAX;
#[cfg(feature = "sim")]
pub use late::BindTrace;
pub use late::{
    BodyRef, Bound, Ended, FoundBody, LateError, NewBind, Peeked, TIMER_CHANGES_MAX, TimerChange,
    TimerOutcome,
};
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::corruption::Corruption;
use ringmq_format::frame::{Frame, FrameKind, encode};
#[cfg(doc)]
use ringmq_format::limits::CHECKPOINT_INTERVAL;
use ringmq_format::limits::{FRAME_HEADER_SIZE, frame_size_max};
use ringmq_format::record::Payload;
use ringmq_format::sidecar;
use ringmq_format::superblock::Durability;
use ringmq_format::{Lsn, Offset, PartitionId, ShardId};
use sidecars::{Reindex, SidecarJob};
use std::path::PathBuf;

/// Smallest memory budget of a shard: its log arena and its cold arena.
pub const MEMORY_MIN: usize = ARENA_SIZE_MIN + COLD_SIZE_MIN;
/// What a frame of an unsealed segment costs in RAM: its entry of the sidecar to be and its place in the index. A third
/// of the arenas' memory, on top of them, is the most that one segment's index takes.
const INDEX_BYTES_PER_FRAME: usize = size_of::<sidecar::IndexEntry>() + size_of::<Entry>();
/// How often retention is looked at, and at most one segment is given up for its age.
const RETENTION_PERIOD_US: u64 = 1_000_000;

/// How a shard is opened.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// The shard's directory.
    pub directory: PathBuf,
    /// Which shard.
    pub shard: ShardId,
    /// Shards of the data directory.
    pub shards: u16,
    /// The data directory's name.
    pub node_id: u128,
    /// Bytes for log arena and cold arena together.
    pub memory: usize,
    /// Largest capacity of a slot.
    pub segment_size: u64,
    /// Bytes that all slots of this shard together may have.
    pub disk_limit: Option<u64>,
    /// Segments whose newest record is older are given up.
    pub retain_time_ms: Option<u64>,
    /// The oldest segments are given up while the shard keeps more bytes than this.
    pub retain_size: Option<u64>,
    /// Log between two checkpoints, in bytes; [`CHECKPOINT_INTERVAL`] but for tests.
    pub checkpoint_interval: u64,
    /// The durability call of a new shard; `None` measures.
    pub durability: Option<Durability>,
    /// A bug planted by a test.
    pub planted: Planted,
}

/// A frame that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Append time, Unix milliseconds.
    pub timestamp: i64,
    /// The answer may go when `durable` has reached this.
    pub durable_at: Lsn,
    /// The frame had been taken before.
    pub duplicate: bool,
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Again after the next completion: the input has to wait.
    Busy,
    /// The disk budget is reached.
    DiskFull,
    /// The log is poisoned.
    Poisoned,
    /// No such partition on this shard.
    UnknownPartition,
    /// Larger than this directory's segments allow.
    TooLarge,
    /// Not a frame of records, or its table makes no sense.
    Invalid(Corruption),
    /// The payload's checksum differs.
    PayloadCrc,
    /// Taken before, and its offset is forgotten.
    DuplicateUnknownOffset,
    /// A gap in the producer's sequence.
    OutOfOrder {
        /// The sequence that was expected.
        expected: u32,
    },
    /// Five frames of the producer are not durable yet.
    TooManyInFlight,
    /// A newer epoch of the producer is known.
    Fenced,
    /// Nothing is remembered of the producer, and it is not at its beginning.
    ProducerUnknown,
    /// As many halves and delays wait as may: later there may be room.
    TooManyPending,
    /// The transaction is resolved.
    TransactionEnded,
    /// The transaction is about to be resolved: whether it takes more will be known soon.
    TransactionEnding,
    /// The transaction has as many halves on this shard as it may.
    TransactionTooLarge,
    /// The transaction belongs to another producer group.
    OtherGroup,
}

impl From<Refused> for AppendError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Busy => Self::Busy,
            Refused::DiskFull => Self::DiskFull,
            Refused::Poisoned => Self::Poisoned,
            Refused::PayloadCrc => Self::PayloadCrc,
        }
    }
}

/// Where a partition begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First offset that is kept.
    pub start: Offset,
    /// Consumers may read below it.
    pub visible: Offset,
}

/// Stages of a clean stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    No,
    Draining,
    Checkpointing,
    Naming,
    Stopped,
}

/// Counts for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// The log's.
    pub log: LogStats,
    /// Records appended.
    pub records: u64,
    /// Bytes of frames appended.
    pub frame_bytes: u64,
    /// Frames served from the arena.
    pub tail_frames: u64,
    /// Frames served from the disk.
    pub cold_frames: u64,
    /// Page reads.
    pub cold_reads: u64,
    /// Checkpoints named.
    pub checkpoints: u64,
    /// Frames that could not be served because they are damaged.
    pub damaged: u64,
    /// Files that could not be opened for want of a descriptor.
    pub descriptor_failures: u64,
    /// Halves and delays appended, in frames.
    pub late_frames: u64,
    /// BINDs appended.
    pub binds: u64,
    /// Bytes of bodies that were moved so that their segment could be retired.
    pub bytes_relocated: u64,
}

/// One core's storage.
#[derive(Debug)]
pub struct Shard {
    options: ShardOptions,
    log: Log,
    cold: ColdCache,
    /// Bytes of the cold frame that was delivered last.
    cold_frame: Vec<u8>,
    /// By `id / shards`.
    partitions: Vec<Option<Partition>>,
    /// Frames of the window and of segments without a sidecar.
    frames: FrameIndex,
    catalogue: Catalogue,
    groups: GroupTable,
    cursors: Cursors,
    late: Late,
    timers: late::TimerState,
    moving: bodies::Moving,
    #[cfg(feature = "sim")]
    bind_trace: Vec<late::BindTrace>,
    sidecar: Option<SidecarJob>,
    reindex: Option<Reindex>,
    checkpointing: Checkpointing,
    stopping: Stopping,
    retention_at_us: u64,
    topic_retention: retention::TopicRetention,
    wants_checkpoint: bool,
    stats: ShardStats,
    visible_scratch: Vec<(u32, Offset)>,
    moved: Vec<PartitionId>,
}

impl Shard {
    /// Opens a shard: recovery, blocking, then ready for `turn`. `progress` is told bytes read and bytes at most.
    pub fn open(
        ring: &mut Ring,
        options: ShardOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let open_options = OpenOptions {
            directory: options.directory.clone(),
            shard: options.shard,
            node_id: options.node_id,
            segment_size: options.segment_size,
            durability: options.durability,
            planted: options.planted,
        };
        let mut replay = replay::Replay::new(options.shard, options.shards, progress);
        let (start, report) = recovery::open(ring, &open_options, &mut replay)?;
        let replay::Replayed { mut partitions, frames, catalogue, mut late, groups, cursors } =
            replay.finish().map_err(|corruption| undeleted(&open_options, corruption))?;
        let log_start_seq = start.superblock.log_start_seq;
        for partition in partitions.iter_mut().flatten() {
            // A checkpoint may still speak of segments that were retired after it.
            partition.retire(&frames, ringmq_format::SegmentSeq(log_start_seq.0.saturating_sub(1)));
            partition.settle(&frames);
        }
        let log_start = start.segments.front().map_or(start.superblock.log_start, |first| first.facts.base);
        late.settle(log_start);
        let covered = start.superblock.checkpoint.map_or((0, 0), |(_, sequence)| {
            let scanned = start.segments.iter().find(|segment| segment.sidecar.is_none());
            (sequence, scanned.map_or(0, |segment| segment.facts.seq.0))
        });
        let log_options = LogOptions {
            directory: options.directory.clone(),
            shard: options.shard,
            node_id: options.node_id,
            arena_size: options.memory.saturating_sub(options.memory / 3).max(ARENA_SIZE_MIN),
            segment_size: options.segment_size,
            disk_limit: options.disk_limit,
            frames_per_segment_max: options.memory / 3 / INDEX_BYTES_PER_FRAME,
            planted: options.planted,
        };
        let log = Log::new(ring, log_options, start).ok_or(OpenError::NoMemory)?;
        let cold = ColdCache::new(ring, options.memory / 3).ok_or(OpenError::NoMemory)?;
        let shard = Self {
            options,
            log,
            cold,
            cold_frame: Vec::new(),
            partitions,
            frames,
            catalogue,
            groups,
            cursors,
            late,
            timers: late::TimerState::default(),
            moving: bodies::Moving::default(),
            #[cfg(feature = "sim")]
            bind_trace: Vec::new(),
            sidecar: None,
            reindex: None,
            checkpointing: Checkpointing::after(covered.0, covered.1),
            stopping: Stopping::No,
            retention_at_us: 0,
            topic_retention: retention::TopicRetention::default(),
            wants_checkpoint: false,
            stats: ShardStats::default(),
            visible_scratch: Vec::new(),
            moved: Vec::new(),
        };
        let mut shard = shard;
        let bytes = waiting_bytes_max(&shard.options);
        shard.set_late_limits(LateLimits { bytes, ..LateLimits::default() });
        let topics: Vec<TopicEntry> = shard.catalogue.all().cloned().collect();
        topics.iter().for_each(|topic| shard.retain_topic(topic));
        Ok((shard, report))
    }

    /// The RECOVERY group is durable: requests may be served.
    pub fn is_ready(&self) -> bool {
        self.log.is_ready()
    }

    /// Everything below is on the medium.
    pub fn durable(&self) -> Lsn {
        self.log.durable()
    }

    /// Why nothing becomes durable any more.
    pub fn poisoned(&self) -> Option<Poison> {
        self.log.poisoned()
    }

    /// The log, for reports.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The topics that this shard knows.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Counts since the start.
    pub fn stats(&self) -> ShardStats {
        let log = self.log.stats();
        let descriptor_failures = self.stats.descriptor_failures + log.descriptor_failures;
        ShardStats { log, cold_reads: self.cold.reads(), descriptor_failures, ..self.stats }
    }

    /// The options it was opened with.
    pub fn options(&self) -> &ShardOptions {
        &self.options
    }

    /// Changes retention while it runs.
    pub fn set_retention(&mut self, time_ms: Option<u64>, size: Option<u64>) {
        self.options.retain_time_ms = time_ms;
        self.options.retain_size = size;
        self.set_late_limits(LateLimits { bytes: waiting_bytes_max(&self.options), ..self.late.limits() });
    }

    fn index(&self, partition: PartitionId) -> usize {
        partition.0 as usize / usize::from(self.options.shards)
    }

    fn partition(&self, id: PartitionId) -> Option<&Partition> {
        partition_of(&self.partitions, self.options.shards, id)
    }

    /// Where a partition begins and ends; `None` if it is not here.
    pub fn extent(&self, id: PartitionId) -> Option<Extent> {
        let partition = self.partition(id)?;
        Some(Extent { start: partition.start(), visible: partition.visible() })
    }

    /// When something was last appended to a partition, Unix milliseconds; 0 if nothing ever was.
    pub fn last_time(&self, id: PartitionId) -> i64 {
        self.partition(id).map_or(0, Partition::last_time)
    }

    /// Appends a producer's frame. `frame` is whole and its header was parsed (F1 to F5).
    pub fn append(
        &mut self,
        ring: &mut Ring,
        id: PartitionId,
        frame: &Frame<'_>,
    ) -> Result<Appended, AppendError> {
        // What is due, or moved, goes first where the log is always full: it asks for little.
        if self.stopping != Stopping::No || self.timers.starves {
            return Err(AppendError::Busy);
        }
        let kind = frame.header.kind;
        if kind == FrameKind::Half as u8 || kind == FrameKind::Delay as u8 {
            return self.append_waiting(ring, id, frame);
        }
        let index = self.index(id);
        let Some(partition) =
            self.partitions.get_mut(index).and_then(Option::as_mut).filter(|partition| partition.id() == id)
        else {
            return Err(AppendError::UnknownPartition);
        };
        if let Some(taken) = judge(partition, frame, &self.log)? {
            return Ok(taken);
        }
        check_frame(frame, self.options.segment_size)?;
        let mut header = *frame.header;
        let base_offset = partition.next();
        let timestamp = partition.stamp(ring.now().wall_ms);
        header.aux = 0.into();
        header.stamp(id, base_offset, timestamp);
        let touched = Some((index as u32, header.end_offset()));
        let lsn = self.log.append(ring, &header, frame.bytes, touched)?;
        let durable_at = lsn.plus(frame.bytes.len() as u64);
        partition.push(&mut self.frames, &header, lsn);
        self.topic_retention.appended(index, base_offset, frame.bytes.len() as u64);
        partition.producers.take(&header, Original { base_offset, timestamp, end_lsn: durable_at });
        self.stats.records += u64::from(header.count.get());
        self.stats.frame_bytes += frame.bytes.len() as u64;
        Ok(Appended { base_offset, timestamp, durable_at, duplicate: false })
    }

    /// Logs a topic, made or deleted, and enters it. Answers where it is durable.
    pub fn append_topic(&mut self, ring: &mut Ring, entry: &TopicEntry) -> Result<Lsn, AppendError> {
        let mut payload = Vec::new();
        entry.encode(&mut payload);
        let bytes = encode(FrameKind::Topic, 1, &payload);
        let Ok(frame) = Frame::parse(&bytes) else { panic!("a frame just encoded does not parse") };
        let lsn = self.log.append(ring, frame.header, &bytes, None).map_err(|refused| match refused {
            Refused::Busy | Refused::PayloadCrc => AppendError::Busy,
            Refused::DiskFull => AppendError::DiskFull,
            Refused::Poisoned => AppendError::Poisoned,
        })?;
        replay::enter_topic(
            &mut self.catalogue,
            &mut self.partitions,
            self.options.shard,
            self.options.shards,
            entry.clone(),
        );
        self.retain_topic(entry);
        if entry.deleted {
            groups::forget_partitions(&mut self.cursors, entry.first_partition, entry.partitions);
        }
        Ok(lsn.plus(bytes.len() as u64))
    }

    /// Takes a completion of an engine room.
    pub fn complete(&mut self, ring: &mut Ring, completion: &Completion) {
        match completion.token.room {
            room::SIDECAR => self.complete_sidecar(ring, completion.result),
            room::CHECKPOINT => self.complete_checkpoint(ring, completion.result),
            room::COLD => self.cold.complete(ring, completion),
            _ => self.log.complete(ring, completion),
        }
    }

    /// The end of a tick.
    pub fn turn(&mut self, ring: &mut Ring) {
        if self.log.poisoned().is_none() {
            // Before the log's turn, which closes the group that they append to.
            self.turn_timers(ring);
            self.turn_moving(ring);
        } else {
            self.timers = late::TimerState::default();
        }
        self.log.turn(ring);
        self.turn_visible();
        if self.log.poisoned().is_none() {
            self.turn_sidecar(ring);
            self.turn_checkpoint(ring);
            self.turn_retention(ring);
            self.turn_stop();
            self.log.turn_superblock(ring);
        }
        self.turn_cold(ring);
    }

    /// Consumers see what became durable (H1).
    fn turn_visible(&mut self) {
        self.log.take_visible(&mut self.visible_scratch);
        for (index, end) in self.visible_scratch.drain(..) {
            if let Some(Some(partition)) = self.partitions.get_mut(index as usize)
                && end > partition.visible()
            {
                partition.set_visible(end);
                self.moved.push(partition.id());
            }
        }
    }

    fn turn_cold(&mut self, ring: &mut Ring) {
        let log = &self.log;
        let durable = |key: &crate::reader::PageKey| match log.segment(key.segment) {
            Some(segment) if log.slots()[segment.slot].file == key.file => {
                log.durable().min(segment.end).0.saturating_sub(segment.facts.base.0)
            }
            Some(Segment { sidecar: Some((file, entries)), .. }) if *file == key.file => {
                sidecar::size(*entries)
            }
            _ => 0,
        };
        self.cold.turn(ring, log.is_busy(ring.now().mono_us), &durable);
    }

    /// Moves the partitions whose visible end has moved to `out`; some may be named twice.
    pub fn take_moved(&mut self, out: &mut Vec<PartitionId>) {
        out.append(&mut self.moved);
    }

    /// A page that fetches were parked for has come.
    pub fn take_cold_progress(&mut self) -> bool {
        self.cold.take_progress()
    }

    /// When `turn` wants to be called though nothing has completed.
    pub fn deadline(&self) -> Option<u64> {
        let cold = self.cold.deadline();
        if self.log.poisoned().is_some() {
            return cold;
        }
        let running = self.stopping == Stopping::No;
        let retains = self.options.retain_time_ms.is_some()
            || self.options.retain_size.is_some()
            || self.topic_retention.is_needed();
        let retention = (running && retains).then_some(self.retention_at_us);
        let checkpoint = (running && self.wants_checkpoint && self.checkpointing.is_idle())
            .then_some(self.checkpointing.retry_at_us());
        let own = [retention, checkpoint, self.sidecar_deadline(), self.timer_deadline(), cold];
        self.log.deadline().into_iter().chain(own.into_iter().flatten()).min()
    }

    /// More is to be done than what completions will bring: `turn` again without sleeping.
    pub fn has_work(&self) -> bool {
        self.checkpointing.is_capturing() || self.has_due_timers() || self.is_moving()
    }

    // -- retention -----------------------------------------------------------------------------------------

    fn turn_retention(&mut self, ring: &mut Ring) {
        let now = ring.now();
        if now.mono_us < self.retention_at_us || self.stopping != Stopping::No {
            return;
        }
        self.retention_at_us = now.mono_us + RETENTION_PERIOD_US;
        self.turn_topic_retention(ring);
        let by_age = self.oldest_has_expired(now.wall_ms);
        loop {
            let kept: u64 = self.log.segments().iter().map(|segment| segment.facts.capacity).sum();
            let by_size = self.options.retain_size.is_some_and(|size| kept > size);
            if !(by_size || by_age || self.oldest_is_dead()) || self.log.segments().len() < 2 {
                return;
            }
            let Some(oldest) = self.log.segments().front() else { return };
            if oldest.facts.seq.0 >= self.checkpointing.covered() || oldest.sidecar.is_none() {
                self.wants_checkpoint = true; // H3
                return;
            }
            if !self.bodies_are_moved() {
                return;
            }
            let Some(segment) = self.log.retire_oldest() else { return };
            let kept_from = self.log.segments().front().map_or(segment.end, |next| next.facts.base);
            self.late.retired(kept_from);
            self.frames.forget_before(kept_from);
            for partition in self.partitions.iter_mut().flatten() {
                partition.retire(&self.frames, segment.facts.seq);
            }
            if !by_size {
                return; // one a period: a clock that jumps ahead empties nothing at once
            }
        }
    }

    fn oldest_has_expired(&self, now_ms: i64) -> bool {
        let (Some(retain), Some(oldest)) = (self.options.retain_time_ms, self.log.segments().front()) else {
            return false;
        };
        let newest = oldest.last_time.max(oldest.facts.created_ms);
        oldest.sealed && now_ms.saturating_sub(newest) > i64::try_from(retain).unwrap_or(i64::MAX)
    }

    // -- stop ----------------------------------------------------------------------------------------------

    /// Begins a clean stop: takes nothing more, makes durable what was taken, writes a checkpoint with which the
    /// next start has nothing to read.
    pub fn begin_stop(&mut self) {
        if self.stopping == Stopping::No {
            self.stopping = Stopping::Draining;
            self.log.begin_stop();
        }
    }

    /// The stop is complete (or the log is poisoned and there is nothing more to do).
    pub fn is_stopped(&self) -> bool {
        self.stopping == Stopping::Stopped || (self.stopping != Stopping::No && self.log.poisoned().is_some())
    }

    fn turn_stop(&mut self) {
        // As far as it goes: no completion may come that would bring another turn.
        loop {
            let before = self.stopping;
            self.step_stop();
            if self.stopping == before {
                return;
            }
        }
    }

    fn step_stop(&mut self) {
        self.stopping = match self.stopping {
            Stopping::Draining
                if self.log.is_quiet() && self.log.is_ready() && self.checkpointing.is_idle() =>
            {
                let has_active = self.log.segments().back().is_some_and(|segment| !segment.sealed);
                if self.log.durable() < self.log.end() {
                    Stopping::Draining
                } else if !has_active || self.sidecar_has_failed() {
                    // Without sidecars, or without a segment to go on in, no checkpoint can stand for the log: the
                    // next start reads more.
                    Stopping::Checkpointing
                } else if self.sidecars_are_done() {
                    self.begin_checkpoint(true);
                    Stopping::Checkpointing
                } else {
                    Stopping::Draining
                }
            }
            Stopping::Checkpointing if self.checkpointing.is_idle() && self.log.is_quiet() => {
                let durable = self.log.durable();
                self.log.update_superblock(|superblock| {
                    superblock.clean = true;
                    superblock.durable_lsn = superblock.durable_lsn.max(durable);
                });
                Stopping::Naming
            }
            Stopping::Naming if self.log.superblock_settled() => Stopping::Stopped,
            other => other,
        };
    }
}

fn partition_of(partitions: &[Option<Partition>], shards: u16, id: PartitionId) -> Option<&Partition> {
    let index = id.0 as usize / usize::from(shards);
    partitions.get(index)?.as_ref().filter(|partition| partition.id() == id)
}

/// Whether a partition is among these.
fn is_here(partitions: &[Option<Partition>], shards: u16, id: PartitionId) -> bool {
    partition_of(partitions, shards, id).is_some()
}

/// Whether a producer's frame may be taken at all; what is to be answered, if it was taken before.
#[inline(always)]
fn judge(partition: &Partition, frame: &Frame<'_>, log: &Log) -> Result<Option<Appended>, AppendError> {
    match partition.producers.judge(frame.header, log.durable()) {
        Verdict::Append => {}
        Verdict::Duplicate(original) => {
            return Ok(Some(Appended {
                base_offset: original.base_offset,
                timestamp: original.timestamp,
                durable_at: original.end_lsn,
                duplicate: true,
            }));
        }
        Verdict::DuplicateUnknownOffset => return Err(AppendError::DuplicateUnknownOffset),
        Verdict::OutOfOrder { expected } => return Err(AppendError::OutOfOrder { expected }),
        Verdict::TooManyInFlight => return Err(AppendError::TooManyInFlight),
        Verdict::Fenced => return Err(AppendError::Fenced),
        Verdict::Unknown => return Err(AppendError::ProducerUnknown),
    }
    if log.is_disk_full() { Err(AppendError::DiskFull) } else { Ok(None) }
}

/// Bytes that may wait or be named by BINDs of later segments: retention moves them, and half of what it keeps is enough.
fn waiting_bytes_max(options: &ShardOptions) -> u64 {
    options.disk_limit.into_iter().chain(options.retain_size).min().map_or(u64::MAX, |kept| kept / 2)
}

/// A producer's frame that may be stored: records, at least one, a table that makes sense, no larger than segments allow.
#[inline(always)]
fn check_frame(frame: &Frame<'_>, segment_size: u64) -> Result<(), AppendError> {
    let header = frame.header;
    let invalid = |field, found: u64| {
        let damage = ringmq_format::Damage::Field;
        AppendError::Invalid(Corruption::new("frame", field, damage, 0, found))
    };
    if frame.bytes.len() > frame_size_max(segment_size) {
        return Err(AppendError::TooLarge);
    }
    let waits = match header.kind() {
        FrameKind::Data => false,
        FrameKind::Half | FrameKind::Delay => true,
        _ => return Err(invalid("kind", u64::from(header.kind))),
    };
    if header.count.get() == 0 {
        return Err(invalid("count", 0));
    }
    // The shard's own fields: a producer that fills them has misunderstood something.
    if header.base_offset.get() != 0 || header.partition.get() != 0 || header.timestamp.get() != 0 {
        return Err(invalid("base_offset, partition or timestamp", header.base_offset.get()));
    }
    if header.extension_len.get() != 0 && !waits {
        return Err(invalid("extension_len", u64::from(header.extension_len.get())));
    }
    debug_assert!(frame.bytes.len() >= FRAME_HEADER_SIZE);
    Payload::parse(frame).map(drop).map_err(AppendError::Invalid)
}

fn undeleted(options: &OpenOptions, corruption: ringmq_format::Corruption) -> OpenError {
    OpenError::Damaged {
        row: None,
        path: options.directory.clone(),
        position: 0,
        corruption: Some(corruption),
        reason: "the log does not delete a partition that the checkpoint knows as deleted",
    }
}
