//! Fuzzy checkpoints: chunks taken one a turn, each with the LSN that it reflects.
//!
//! States  idle -[begin]-> capturing -[all chunks taken]-> waiting -[durable >= highest stamp]-> publishing
//!         -[file durable]-> naming -[superblock durable]-> idle

use super::groups::GroupCapture;
use super::{Shard, Stopping};
use crate::late::CaptureCursor;
use crate::log::publish::{Progress, Publish};
use crate::log::room;
use crate::planted::Bug;
use crate::recovery::{checkpoint_file, checkpoint_number};
use crate::ring::{Errno, FileId, Ring};
use ringmq_format::checkpoint::{CheckpointFacts, Chunk, ChunkKind, SegmentItem};
use ringmq_format::limits::{BLOCK_SIZE, CHECKPOINT_CHUNK_TARGET};
use ringmq_format::{Lsn, PartitionId};
use zerocopy::{FromZeros, IntoBytes};

/// How long a checkpoint that failed is left alone.
const RETRY_US: u64 = 1_000_000;
/// Least time between the begins of two: with a log at full speed a start has little to read all the same.
const SPACING_US: u64 = 100_000;

#[derive(Debug)]
struct Capture {
    facts: CheckpointFacts,
    bytes: Vec<u8>,
    next_partition: usize,
    groups: GroupCapture,
    /// How far it is with what waits, once the partitions are taken.
    late: Option<CaptureCursor>,
    clean: bool,
    done: bool,
}

#[derive(Debug)]
enum Step {
    Idle,
    Capturing(Capture),
    Publishing(CheckpointFacts, Publish),
    Naming(CheckpointFacts),
}

/// The checkpointer.
#[derive(Debug)]
pub(super) struct Checkpointing {
    step: Step,
    sequence: u64,
    /// First segment that the last two checkpoints read again.
    covered: [u64; 2],
    last_begin: Lsn,
    files: [Option<FileId>; 2],
    retry_at_us: u64,
}

impl Checkpointing {
    /// After a start on top of checkpoint `sequence`, which reads again from segment `scan_seq`.
    pub(super) fn after(sequence: u64, scan_seq: u64) -> Self {
        Self {
            step: Step::Idle,
            sequence,
            covered: [0, scan_seq],
            last_begin: Lsn(0),
            files: [None; 2],
            retry_at_us: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.step, Step::Idle)
    }

    /// When a checkpoint that is wanted may be begun.
    pub(super) fn retry_at_us(&self) -> u64 {
        self.retry_at_us
    }

    pub(super) fn is_capturing(&self) -> bool {
        matches!(&self.step, Step::Capturing(capture) if !capture.done)
    }

    /// Segments below this number are covered by two checkpoints.
    pub(super) fn covered(&self) -> u64 {
        self.covered[0].min(self.covered[1])
    }
}

impl Shard {
    /// Begins a checkpoint. A clean one is taken at the end of a quiet log and carries the active segment's index.
    pub(super) fn begin_checkpoint(&mut self, clean: bool) {
        assert!(self.checkpointing.is_idle(), "a checkpoint is being taken");
        let first_unindexed = self.log.segments().iter().find(|segment| segment.sidecar.is_none());
        let last = self.log.segments().back();
        let Some(scanned) = (if clean { last } else { first_unindexed.or(last) }) else { return };
        let facts = CheckpointFacts {
            shard: self.options.shard,
            sequence: self.checkpointing.sequence + 1,
            chunks: 0,
            scan_start: if clean {
                self.log.durable()
            } else {
                scanned.facts.base.plus(ringmq_format::segment::FIRST_GROUP)
            },
            scan_chain: if clean { self.log.chain() } else { scanned.facts.previous_chain },
            scan_seq: scanned.facts.seq,
            durable_lsn: Lsn(0),
            total: 0,
        };
        self.checkpointing.last_begin = self.log.end();
        self.wants_checkpoint = false;
        let mut capture = Capture {
            facts,
            bytes: vec![0; BLOCK_SIZE],
            next_partition: 0,
            groups: GroupCapture::new(),
            late: None,
            clean,
            done: false,
        };
        self.capture_segments(&mut capture);
        self.capture_topics(&mut capture);
        self.checkpointing.step = Step::Capturing(capture);
    }

    fn push_chunk(
        &self,
        capture: &mut Capture,
        kind: ChunkKind,
        keys: (PartitionId, PartitionId),
        items: u32,
        payload: &[u8],
    ) {
        let stamp = self.log.end();
        let chunk = Chunk { kind, stamp, first_key: keys.0, last_key: keys.1, items, payload };
        capture.bytes.extend_from_slice(&chunk.encode(capture.facts.sequence, capture.facts.chunks));
        capture.facts.chunks += 1;
        capture.facts.durable_lsn = stamp;
    }

    fn capture_segments(&self, capture: &mut Capture) {
        let mut payload = Vec::new();
        let mut items = 0;
        for segment in self.log.segments() {
            if segment.facts.seq >= capture.facts.scan_seq || segment.sidecar.is_none() {
                continue;
            }
            let mut item = SegmentItem::new_zeroed();
            item.slot = segment.facts.slot.0.into();
            item.has_sidecar = 1;
            item.segment_seq = segment.facts.seq.0.into();
            item.end_lsn = segment.end.0.into();
            item.last_time = segment.last_time.into();
            item.frame_bytes = segment.frame_bytes.into();
            payload.extend_from_slice(item.as_bytes());
            items += 1;
        }
        self.push_chunk(capture, ChunkKind::Segments, (PartitionId(0), PartitionId(0)), items, &payload);
    }

    fn capture_topics(&self, capture: &mut Capture) {
        let mut payload = Vec::new();
        let mut items = 0;
        let forgotten = self.options.planted.has(Bug::TopicsForgotten);
        for topic in self.catalogue.all().filter(|_| !forgotten) {
            topic.encode(&mut payload);
            items += 1;
            if payload.len() >= CHECKPOINT_CHUNK_TARGET {
                let keys = (PartitionId(0), PartitionId(0));
                self.push_chunk(capture, ChunkKind::Topics, keys, items, &payload);
                payload.clear();
                items = 0;
            }
        }
        self.push_chunk(capture, ChunkKind::Topics, (PartitionId(0), PartitionId(0)), items, &payload);
    }

    /// One chunk of partitions.
    fn capture_partitions(&self, capture: &mut Capture) {
        let mut payload = Vec::new();
        let mut items = 0;
        let mut keys: Option<(PartitionId, PartitionId)> = None;
        while capture.next_partition < self.partitions.len() && payload.len() < CHECKPOINT_CHUNK_TARGET {
            if let Some(partition) = &self.partitions[capture.next_partition] {
                let mut item = partition.item();
                if self.options.planted.has(Bug::ProducersForgotten) {
                    item.producers.clear();
                }
                item.encode(&mut payload);
                items += 1;
                keys = Some((keys.map_or(partition.id(), |keys| keys.0), partition.id()));
            }
            capture.next_partition += 1;
        }
        if let Some(keys) = keys {
            self.push_chunk(capture, ChunkKind::Partitions, keys, items, &payload);
        }
        if capture.next_partition >= self.partitions.len() {
            capture.late = Some(CaptureCursor::default());
        }
    }

    /// One chunk of what waits, what became of it, and where bodies are; at the end of a quiet log also of the active
    /// segment's index.
    fn capture_late(&self, capture: &mut Capture, mut cursor: CaptureCursor) {
        let planted = self.options.planted;
        if let Some((kind, items, payload)) = self.late.capture(&mut cursor) {
            capture.late = Some(cursor);
            let forgotten = match kind {
                ChunkKind::Pending => planted.has(Bug::PendingForgotten),
                ChunkKind::Bodies => planted.has(Bug::BodiesForgotten),
                ChunkKind::EndedTimers | ChunkKind::EndedTransactions => planted.has(Bug::EndsForgotten),
                _ => false,
            };
            if items > 0 && !forgotten {
                self.push_chunk(capture, kind, (PartitionId(0), PartitionId(0)), items, &payload);
            }
            return;
        }
        // Behind transactions, whose positions take effect when they are committed.
        if !capture.groups.is_done() {
            let (kind, chunks) = self.capture_groups(&mut capture.groups);
            let forgotten = self.options.planted.has(Bug::CursorsForgotten);
            for (items, payload) in chunks.into_iter().filter(|_| !forgotten) {
                self.push_chunk(capture, kind, (PartitionId(0), PartitionId(0)), items, &payload);
            }
            return;
        }
        if capture.clean
            && let Some(active) = self.log.segments().back()
        {
            let items = active.entries.len() as u32;
            let keys = (PartitionId(0), PartitionId(0));
            self.push_chunk(capture, ChunkKind::ActiveIndex, keys, items, active.entries.as_bytes());
        }
        capture.done = true;
    }

    pub(super) fn turn_checkpoint(&mut self, ring: &mut Ring) {
        let now = ring.now().mono_us;
        match std::mem::replace(&mut self.checkpointing.step, Step::Idle) {
            Step::Idle => {
                let begun = self.checkpointing.last_begin;
                let grown = self.log.end().0.saturating_sub(begun.0);
                let interval = self.options.checkpoint_interval;
                // A sidecar on its way is waited for: with it, the next start has one segment less to read.
                let due = grown >= interval && (self.sidecars_are_done() || grown >= 2 * interval);
                let wanted = due || self.wants_checkpoint;
                // Also before the log is ready: that may need a slot, which retention frees, which needs this.
                if wanted
                    && self.stopping == Stopping::No
                    && now >= self.checkpointing.retry_at_us
                    && !self.log.segments().is_empty()
                {
                    self.begin_checkpoint(false);
                    self.checkpointing.retry_at_us = now + SPACING_US;
                }
            }
            Step::Capturing(mut capture) => {
                match capture.late {
                    _ if capture.done => {}
                    None => self.capture_partitions(&mut capture),
                    Some(cursor) => self.capture_late(&mut capture, cursor),
                }
                // What a chunk reflects must be durable before the chunk may be believed.
                let ahead = self.options.planted.has(Bug::CheckpointAheadOfLog);
                let ready = self.log.durable() >= capture.facts.durable_lsn || ahead;
                self.checkpointing.step = if capture.done && ready {
                    self.publish(ring, capture)
                } else {
                    Step::Capturing(capture)
                };
            }
            Step::Publishing(facts, mut publish) => {
                let may_write = publish.wants_write() && self.log.take_background_write(ring);
                publish.step(ring, may_write);
                self.checkpointing.step = Step::Publishing(facts, publish);
            }
            Step::Naming(facts) => {
                if self.log.superblock().checkpoint.is_some_and(|(_, sequence)| sequence == facts.sequence) {
                    self.checkpointing.sequence = facts.sequence;
                    self.checkpointing.covered = [self.checkpointing.covered[1], facts.scan_seq.0];
                    self.stats.checkpoints += 1;
                } else {
                    self.checkpointing.step = Step::Naming(facts);
                }
            }
        }
    }

    fn publish(&mut self, ring: &mut Ring, capture: Capture) -> Step {
        let Capture { mut facts, mut bytes, .. } = capture;
        facts.total = bytes.len() as u64;
        self.log.note_checkpoint(facts.total);
        bytes[..BLOCK_SIZE].copy_from_slice(&facts.encode());
        let number = checkpoint_number(facts.sequence);
        let path = self.options.directory.join(checkpoint_file(number));
        let file = self.checkpointing.files[usize::from(number) - 1];
        match Publish::new(ring, room::CHECKPOINT, path, file, bytes) {
            Some(mut publish) => {
                let may_write = publish.wants_write() && self.log.take_background_write(ring);
                publish.step(ring, may_write);
                Step::Publishing(facts, publish)
            }
            None => Step::Idle,
        }
    }

    pub(super) fn complete_checkpoint(&mut self, ring: &mut Ring, result: Result<u32, Errno>) {
        let Step::Publishing(facts, mut publish) =
            std::mem::replace(&mut self.checkpointing.step, Step::Idle)
        else {
            panic!("a completion that no checkpoint waited for");
        };
        let number = checkpoint_number(facts.sequence);
        let progress = publish.complete(ring, result);
        self.checkpointing.files[usize::from(number) - 1] = publish.file();
        match progress {
            Progress::Going => self.checkpointing.step = Step::Publishing(facts, publish),
            // The one before stays named; this one is tried again with the next turn that wants one.
            Progress::Failed(error) => {
                self.stats.descriptor_failures += u64::from(error.is_no_descriptor());
                self.wants_checkpoint = true;
                self.checkpointing.retry_at_us = ring.now().mono_us + RETRY_US;
            }
            Progress::Done(_) => {
                let durable = self.log.durable();
                self.log.update_superblock(|superblock| {
                    superblock.checkpoint = Some((number, facts.sequence));
                    superblock.durable_lsn = superblock.durable_lsn.max(durable);
                });
                self.checkpointing.step = Step::Naming(facts);
            }
        }
    }
}
