//! Index sidecars of sealed segments, one at a time, oldest first.

use super::Shard;
use crate::log::publish::{Progress, Publish};
use crate::log::room;
use crate::ring::{Errno, Ring};
use ringmq_format::checkpoint::SegmentRef;
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

    pub(super) fn turn_sidecar(&mut self, ring: &mut Ring) {
        let now = ring.now().mono_us;
        if let Some(job) = &mut self.sidecar {
            if job.retry_at_us.is_some_and(|at| now < at) {
                return;
            }
            if job.retry_at_us.take().is_some() {
                self.sidecar = None; // begun anew below
            } else {
                job.publish.step(ring, !self.log.has_flights());
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
        let facts = segment.facts;
        let mut entries = segment.entries.clone();
        entries.sort_unstable_by_key(IndexEntry::key);
        let bytes = sidecar::encode(facts.seq, facts.incarnation, facts.base, segment.end, &entries);
        let path = self.log.sidecar_path(facts.slot);
        let Some(publish) = Publish::new(ring, room::SIDECAR, path, None, bytes) else { return };
        let refs = refs_of(facts.seq, &entries);
        self.sidecar = Some(SidecarJob {
            segment: facts.seq,
            publish,
            refs,
            entries: entries.len() as u32,
            retry_at_us: None,
        });
    }

    pub(super) fn complete_sidecar(&mut self, ring: &mut Ring, result: Result<u32, Errno>) {
        let Some(job) = &mut self.sidecar else { panic!("a completion that no sidecar waited for") };
        match job.publish.complete(ring, result) {
            Progress::Going => {}
            // A sidecar is derived: the frames stay in the RAM index, and it is tried again.
            Progress::Failed(_) => job.retry_at_us = Some(ring.now().mono_us + RETRY_US),
            Progress::Done(file) => {
                let Some(job) = self.sidecar.take() else { return };
                let Some(segment) = self.log.segment_mut(job.segment) else { return };
                segment.sidecar = Some((file, job.entries));
                segment.entries = Vec::new();
                let floor = self.index_floor();
                for (id, reference) in job.refs {
                    let index = self.index(id);
                    if let Some(Some(partition)) = self.partitions.get_mut(index)
                        && partition.id() == id
                    {
                        partition.enter_sidecar(reference, floor);
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
}
