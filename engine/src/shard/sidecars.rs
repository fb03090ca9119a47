//! Index sidecars of sealed segments, one at a time, oldest first; and their index made again from the segment
//! where a sidecar cannot be read.

use super::Shard;
use super::fetch::FilePlace;
use crate::log::publish::{Progress, Publish};
use crate::log::{has_offsets, index_entry, room};
use crate::ring::{Errno, Ring};
use ringmq_format::checkpoint::SegmentRef;
use ringmq_format::group::{GroupHeader, group_frames};
use ringmq_format::limits::BLOCK_SIZE;
use ringmq_format::segment::FIRST_GROUP;
use ringmq_format::sidecar::{self, IndexEntry};
use ringmq_format::{Lsn, PartitionId, SegmentSeq};

/// A sidecar being written.
#[derive(Debug)]
pub(super) struct SidecarJob {
    segment: SegmentSeq,
    publish: Publish,
    refs: Vec<(PartitionId, SegmentRef)>,
    entries: u32,
    /// After a failure: not before this.
    retry_at_us: Option<u64>,
}

/// An index being made again from its segment.
#[derive(Debug)]
pub(super) struct Reindex {
    segment: SegmentSeq,
    /// The next group; `None` before the first.
    next: Option<Lsn>,
    entries: Vec<IndexEntry>,
}

const RETRY_US: u64 = 1_000_000;

/// The first entry of each partition.
fn refs_of(segment: SegmentSeq, entries: &[IndexEntry]) -> Vec<(PartitionId, SegmentRef)> {
    let mut refs: Vec<(PartitionId, SegmentRef)> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let partition = PartitionId(entry.partition.get());
        if refs.last().is_none_or(|last| last.0 != partition) {
            let reference = SegmentRef {
                first_offset: entry.first_offset,
                segment: (segment.0 as u32).into(),
                entry: (index as u32).into(),
            };
            refs.push((partition, reference));
        }
    }
    refs
}

impl Shard {
    pub(super) fn sidecars_are_done(&self) -> bool {
        self.log.segments().iter().all(|segment| !segment.sealed || segment.sidecar.is_some())
    }

    /// The last attempt has failed, and the next one is some time ahead.
    pub(super) fn sidecar_has_failed(&self) -> bool {
        self.sidecar.as_ref().is_some_and(|job| job.retry_at_us.is_some())
    }

    pub(super) fn sidecar_deadline(&self) -> Option<u64> {
        self.sidecar.as_ref().and_then(|job| job.retry_at_us)
    }

    pub(super) fn turn_sidecar(&mut self, ring: &mut Ring) {
        let now = ring.now().mono_us;
        if let Some(job) = &mut self.sidecar {
            if job.retry_at_us.is_some_and(|at| now < at) {
                return;
            }
            if job.retry_at_us.take().is_some() {
                self.sidecar = None; // begun anew below
            } else {
                let may_write = job.publish.wants_write() && self.log.take_background_write(ring);
                job.publish.step(ring, may_write);
                return;
            }
        }
        let durable = self.log.durable();
        let next = self
            .log
            .segments()
            .iter()
            .find(|segment| segment.sealed && segment.sidecar.is_none() && segment.end <= durable);
        let Some(segment) = next else { return };
        if segment.index_lost {
            let seq = segment.facts.seq;
            if self.turn_reindex(ring, seq) {
                self.turn_sidecar(ring);
            }
            return;
        }
        let facts = segment.facts;
        let (end, slot) = (segment.end, segment.slot);
        let file = self.log.slots()[slot].sidecar;
        let path = self.log.sidecar_path(facts.slot);
        // Sorted for good: a partition's entries are in the order of offsets either way.
        let entries = match self.log.segment_mut(facts.seq) {
            Some(segment) => {
                segment.entries = sidecar::sort(std::mem::take(&mut segment.entries));
                &segment.entries
            }
            None => return,
        };
        let bytes = sidecar::encode(facts.seq, facts.incarnation, facts.base, end, entries);
        let (refs, entries) = (refs_of(facts.seq, entries), entries.len() as u32);
        self.log.note_sidecar(slot, bytes.len() as u64);
        let Some(mut publish) = Publish::new(ring, room::SIDECAR, path, file, bytes) else { return };
        let may_write = publish.wants_write() && self.log.take_background_write(ring);
        publish.step(ring, may_write);
        self.sidecar = Some(SidecarJob { segment: facts.seq, publish, refs, entries, retry_at_us: None });
    }

    pub(super) fn complete_sidecar(&mut self, ring: &mut Ring, result: Result<u32, Errno>) {
        let Some(job) = &mut self.sidecar else { panic!("a completion that no sidecar waited for") };
        let progress = job.publish.complete(ring, result);
        if let (Some(file), Some(segment)) = (job.publish.file(), self.log.segment(job.segment)) {
            let slot = segment.slot;
            self.log.set_sidecar_file(slot, file);
        }
        match progress {
            Progress::Going => {}
            // A sidecar is derived: the frames stay in the RAM index, and it is tried again.
            Progress::Failed(error) => {
                self.stats.descriptor_failures += u64::from(error.is_no_descriptor());
                job.retry_at_us = Some(ring.now().mono_us + RETRY_US);
            }
            Progress::Done(file) => {
                let Some(job) = self.sidecar.take() else { return };
                let Some(segment) = self.log.segment_mut(job.segment) else { return };
                segment.sidecar = Some((file, job.entries));
                segment.entries = Vec::new();
                self.frames.forget_before(self.index_floor());
                for (id, reference) in job.refs {
                    let index = self.index(id);
                    if let Some(Some(partition)) = self.partitions.get_mut(index)
                        && partition.id() == id
                    {
                        partition.enter_sidecar(&self.frames, reference);
                    }
                }
            }
        }
    }

    /// Frames below it are known to sidecars and are not in the arena.
    fn index_floor(&self) -> Lsn {
        let unindexed = self
            .log
            .segments()
            .iter()
            .find(|segment| segment.sidecar.is_none())
            .map_or(self.log.end(), |segment| segment.facts.base);
        self.log.arena().window_start().map_or(unindexed, |window| window.min(unindexed))
    }

    /// The sidecar of this segment cannot be read: it is made again.
    pub(super) fn lose_index(&mut self, seq: SegmentSeq) {
        if let Some(segment) = self.log.segment_mut(seq) {
            segment.sidecar = None;
            segment.index_lost = true;
        }
    }

    /// Reads a segment for its index, page by page. What cannot be reached any more answers `Damaged`.
    /// Answers whether it is finished.
    fn turn_reindex(&mut self, ring: &mut Ring, seq: SegmentSeq) -> bool {
        let mut job = match self.reindex.take() {
            Some(job) if job.segment == seq => job,
            _ => Reindex { segment: seq, next: None, entries: Vec::new() },
        };
        let Some((facts, end, file)) = self
            .log
            .segment(seq)
            .map(|segment| (segment.facts, segment.end, self.log.slots()[segment.slot].file))
        else {
            return false;
        };
        let mut lsn = job.next.unwrap_or(facts.base.plus(FIRST_GROUP));
        let mut bytes = Vec::new();
        while lsn < end {
            let place = |len| FilePlace { file, segment: seq, position: facts.position(lsn), len };
            bytes.clear();
            let mut found = self.gather(ring, &place(BLOCK_SIZE), &mut bytes);
            let mut header = None;
            if found == Ok(true) {
                header = GroupHeader::parse(&bytes, facts.incarnation, seq, lsn).ok().copied();
                if let Some(header) = header
                    && lsn.plus(header.total() as u64) <= end
                {
                    bytes.clear();
                    found = self.gather(ring, &place(header.total()), &mut bytes);
                }
            }
            let header = match (found, header) {
                (Ok(false), _) => {
                    job.next = Some(lsn);
                    self.reindex = Some(job);
                    return false;
                }
                (Ok(true), Some(header)) if bytes.len() == header.total() => header,
                _ => break,
            };
            for (at, frame) in group_frames(&header, &bytes) {
                if has_offsets(frame.header) {
                    job.entries.push(index_entry(frame.header, facts.position(lsn) + at as u64));
                }
            }
            lsn = lsn.plus(header.total() as u64);
        }
        if let Some(segment) = self.log.segment_mut(seq) {
            segment.entries = job.entries;
            segment.index_lost = false;
        }
        self.cold.note_progress();
        true
    }
}
