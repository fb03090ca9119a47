//! What recovery finds, turned into partitions and topics.

use crate::catalogue::Catalogue;
use crate::cursors::Cursors;
use crate::cursors::groups::GroupTable;
use crate::late::{Late, Position, Replayed as Effect};
use crate::partition::index::FrameIndex;
use crate::partition::producers::Original;
use crate::partition::{FrameRef, Partition};
use crate::recovery::Visitor;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::checkpoint::{Chunk, ChunkKind, PartitionItem};
use ringmq_format::consumer_group::ConsumerGroup;
use ringmq_format::corruption::{Corruption, Damage};
use ringmq_format::cursor::{CursorChange, decode_acks, decode_cursors};
use ringmq_format::frame::{Frame, FrameHeader, FrameKind};
use ringmq_format::late::BIND_SIZE;
use ringmq_format::limits::FRAME_RECORDS_MAX;
use ringmq_format::sidecar::IndexEntry;
use ringmq_format::{Lsn, Offset, PartitionId, SegmentSeq, ShardId};
use zerocopy::FromBytes;

/// Records that get offsets in a byte of the log, at most: a BIND may give them to as many as a frame holds.
const RECORDS_PER_BYTE_MAX: u64 = FRAME_RECORDS_MAX as u64 / BIND_SIZE as u64 + 1;

/// Enters a topic and makes or removes the partitions of it that this shard owns.
pub(super) fn enter_topic(
    catalogue: &mut Catalogue,
    partitions: &mut Vec<Option<Partition>>,
    shard: ShardId,
    shards: u16,
    entry: TopicEntry,
) {
    let deleted = entry.deleted || catalogue.by_id(entry.topic).is_some_and(|known| known.deleted);
    for id in entry.partition_ids().filter(|id| id.shard(shards) == shard) {
        let index = id.0 as usize / usize::from(shards);
        if partitions.len() <= index {
            partitions.resize_with(index + 1, || None);
        }
        if deleted {
            partitions[index] = None;
        } else if partitions[index].is_none() {
            partitions[index] = Some(Partition::new(id));
        }
    }
    catalogue.enter(entry);
}

/// How much of a partition the checkpoint reflects. Its chunks are of different times: a topic may be in the one of
/// the topics and its partitions not in theirs (deleted between the two), or the other way round (made between).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reflected {
    /// Nothing: made by a frame of the log.
    #[default]
    Nothing,
    /// Everything before this LSN.
    Until(Lsn),
    /// The topic is there, the partition is not: a frame of the log will delete it, and nothing before counts.
    Deleted,
}

/// Replays checkpoint and log.
pub(super) struct Replay<'a> {
    shard: ShardId,
    shards: u16,
    partitions: Vec<Option<Partition>>,
    frames: FrameIndex,
    catalogue: Catalogue,
    groups: GroupTable,
    cursors: Cursors,
    /// By the index of the partition.
    reflected: Vec<Reflected>,
    /// By the index of the partition: records that it may have had in ranges set aside, at most, since its last
    /// frame.
    lost: Vec<u64>,
    late: Late,
    /// Where the segment begins whose frames come now.
    segment_base: Lsn,
    progress: &'a mut dyn FnMut(u64, u64),
}

pub(super) struct Replayed {
    pub(super) partitions: Vec<Option<Partition>>,
    pub(super) frames: FrameIndex,
    pub(super) catalogue: Catalogue,
    pub(super) groups: GroupTable,
    pub(super) cursors: Cursors,
    pub(super) late: Late,
}

impl<'a> Replay<'a> {
    pub(super) fn new(shard: ShardId, shards: u16, progress: &'a mut dyn FnMut(u64, u64)) -> Self {
        Self {
            shard,
            shards,
            partitions: Vec::new(),
            frames: FrameIndex::default(),
            catalogue: Catalogue::default(),
            groups: GroupTable::default(),
            cursors: Cursors::default(),
            reflected: Vec::new(),
            lost: Vec::new(),
            late: Late::default(),
            segment_base: Lsn(0),
            progress,
        }
    }

    /// What was found; fails if a partition that the checkpoint knew as deleted was not.
    pub(super) fn finish(mut self) -> Result<Replayed, Corruption> {
        for (partition, reflected) in self.partitions.iter().zip(&self.reflected) {
            if let (Some(partition), Reflected::Deleted) = (partition, reflected) {
                let id = u64::from(partition.id().0);
                return Err(Corruption::new("checkpoint", "partition", Damage::Field, 0, id));
            }
        }
        // No offset is given twice: what may have been lost at the end is left out, and answers `Damaged`.
        for (partition, lost) in self.partitions.iter_mut().zip(&self.lost) {
            if let Some(partition) = partition {
                let next = partition.next().0.checked_add(*lost);
                let next =
                    next.ok_or_else(|| Corruption::new("superblock", "quarantine", Damage::Field, 0, *lost))?;
                partition.skip_to(Offset(next));
            }
        }
        let Self { partitions, frames, catalogue, late, groups, cursors, .. } = self;
        Ok(Replayed { partitions, frames, catalogue, late, groups, cursors })
    }

    fn index(&self, id: PartitionId) -> usize {
        id.0 as usize / usize::from(self.shards)
    }

    fn get(&mut self, id: PartitionId) -> Option<(&mut Partition, &mut FrameIndex)> {
        let index = self.index(id);
        let partition = self.partitions.get_mut(index)?.as_mut().filter(|partition| partition.id() == id)?;
        Some((partition, &mut self.frames))
    }

    fn enter_topic(&mut self, entry: TopicEntry) {
        if entry.deleted {
            super::groups::forget_partitions(&mut self.cursors, entry.first_partition, entry.partitions);
        }
        enter_topic(&mut self.catalogue, &mut self.partitions, self.shard, self.shards, entry);
        self.reflected.resize(self.partitions.len(), Reflected::Nothing);
    }

    /// A topic of the checkpoint, whose partitions are to follow.
    fn expect_topic(&mut self, entry: TopicEntry) {
        let ids: Vec<_> = entry.partition_ids().filter(|id| id.shard(self.shards) == self.shard).collect();
        self.enter_topic(entry);
        for id in ids {
            let index = self.index(id);
            self.reflected[index] = Reflected::Deleted;
        }
    }

    fn restore_partition(&mut self, item: &PartitionItem, stamp: Lsn, scan: SegmentSeq) {
        if item.partition.shard(self.shards) != self.shard {
            return;
        }
        let index = self.index(item.partition);
        if self.partitions.len() <= index {
            self.partitions.resize_with(index + 1, || None);
            self.reflected.resize(index + 1, Reflected::Nothing);
        }
        self.partitions[index] = Some(Partition::from_item(item, scan));
        self.reflected[index] = Reflected::Until(stamp);
    }
}

impl Replay<'_> {
    /// A frame whose records have offsets.
    fn enter_frame(&mut self, lsn: Lsn, header: &FrameHeader) -> Result<(), Corruption> {
        let id = header.partition();
        let index = self.index(id);
        let reflected = self.reflected.get(index).copied().unwrap_or_default();
        // A partition that is not known was deleted.
        let known = self.partitions.get_mut(index).and_then(Option::as_mut);
        let Some(partition) = known.filter(|partition| partition.id() == id) else { return Ok(()) };
        match reflected {
            Reflected::Deleted => return Ok(()),
            Reflected::Until(stamp) if lsn < stamp => {
                let frame = FrameRef::new(header, lsn);
                if !partition.continues(&self.frames, &frame) {
                    return Err(out_of_order("log", &frame));
                }
                partition.push_index(&mut self.frames, frame);
                return Ok(());
            }
            Reflected::Until(_) | Reflected::Nothing => {}
        }
        let lost = self.lost.get_mut(index).map_or(0, std::mem::take);
        let skipped = header.base_offset().0.checked_sub(partition.next().0);
        if skipped.is_some_and(|skipped| skipped <= lost) {
            partition.skip_to(header.base_offset());
        }
        if header.base_offset() != partition.next() {
            return Err(contradiction("base_offset", partition.next(), header.base_offset()));
        }
        let frame = FrameRef::new(header, lsn);
        if !partition.continues(&self.frames, &frame) {
            return Err(out_of_order("log", &frame));
        }
        partition.push(&mut self.frames, header, lsn);
        take_sequence(partition, header);
        Ok(())
    }

    /// A producer's frame whose records have no offsets yet.
    fn enter_sequence(&mut self, lsn: Lsn, header: &FrameHeader) {
        let index = self.index(header.partition());
        let reflected = self.reflected.get(index).copied().unwrap_or_default();
        let counted = match reflected {
            Reflected::Deleted => true,
            Reflected::Until(stamp) => lsn < stamp,
            Reflected::Nothing => false,
        };
        if let Some((partition, _)) = self.get(header.partition()).filter(|_| !counted) {
            take_sequence(partition, header);
        }
    }

    /// Positions of groups take effect: the transaction that they belong to was committed.
    fn apply_positions(&mut self, lsn: Lsn, positions: &[Position]) {
        let changes: Vec<_> = positions.iter().map(super::groups::change_of).collect();
        self.apply_cursors(lsn, &changes);
    }

    fn apply_cursors(&mut self, lsn: Lsn, changes: &[CursorChange]) {
        let (partitions, shards) = (&self.partitions, self.shards);
        self.cursors.apply_cursors(lsn, changes.iter().copied(), |id| super::is_here(partitions, shards, id));
    }
}

/// Remembers a producer's frame.
fn take_sequence(partition: &mut Partition, header: &FrameHeader) {
    let original =
        Original { base_offset: header.base_offset(), timestamp: header.timestamp.get(), end_lsn: Lsn(0) };
    partition.producers.take(header, original);
}

fn contradiction(field: &'static str, expected: Offset, found: Offset) -> Corruption {
    Corruption::new("log", field, Damage::Field, expected.0, found.0)
}

/// A frame that cannot stand behind those before it.
fn out_of_order(what: &'static str, frame: &FrameRef) -> Corruption {
    Corruption::new(what, "first_offset", Damage::Field, frame.lsn.0, frame.first_offset.0)
}

impl Visitor for Replay<'_> {
    fn chunk(&mut self, chunk: &Chunk<'_>, scan: SegmentSeq, scan_base: Lsn) -> Result<(), Corruption> {
        let mut rest = chunk.payload;
        match chunk.kind {
            ChunkKind::Segments => {}
            ChunkKind::Topics => {
                for _ in 0..chunk.items {
                    let entry = TopicEntry::take(&mut rest)?;
                    self.expect_topic(entry);
                }
            }
            ChunkKind::Groups => {
                for _ in 0..chunk.items {
                    self.groups.enter(ConsumerGroup::take(&mut rest)?);
                }
            }
            ChunkKind::Cursors => self.cursors.restore(rest, chunk.items)?,
            ChunkKind::Partitions => {
                for _ in 0..chunk.items {
                    let item = PartitionItem::take(&mut rest)?;
                    self.restore_partition(&item, chunk.stamp, scan);
                }
            }
            ChunkKind::ActiveIndex => {
                for entry in <[IndexEntry]>::ref_from_bytes(chunk.payload).unwrap_or(&[]) {
                    let frame = FrameRef {
                        first_offset: Offset(entry.first_offset.get()),
                        lsn: scan_base.plus(u64::from(entry.position.get())),
                        timestamp: entry.timestamp.get(),
                        len: entry.len.get(),
                        count: entry.count.get(),
                    };
                    if let Some((partition, frames)) = self.get(PartitionId(entry.partition.get())) {
                        if !partition.continues(frames, &frame) {
                            return Err(out_of_order("checkpoint", &frame));
                        }
                        partition.push_index(frames, frame);
                    }
                }
            }
            kind => self.late.restore(kind, chunk.items, chunk.payload)?,
        }
        Ok(())
    }

    fn segment(&mut self, base: Lsn) {
        self.segment_base = base;
    }

    fn gap(&mut self, start: Lsn, end: Lsn) {
        self.lost.resize(self.partitions.len(), 0);
        for (index, partition) in self.partitions.iter().enumerate() {
            let reflected = self.reflected.get(index).copied().unwrap_or_default();
            // What the checkpoint says of a partition may already count what lay here.
            let counted = matches!(reflected, Reflected::Until(stamp) if stamp >= end);
            if partition.is_some() && !counted {
                let lost = (end.0 - start.0).saturating_mul(RECORDS_PER_BYTE_MAX);
                self.lost[index] = self.lost[index].saturating_add(lost);
            }
        }
    }

    fn frame(&mut self, lsn: Lsn, frame: &Frame<'_>) -> Result<(), Corruption> {
        let header = frame.header;
        match header.kind() {
            FrameKind::Topic => {
                let mut payload = frame.payload();
                let entry = TopicEntry::take(&mut payload)?;
                self.enter_topic(entry);
            }
            FrameKind::Group => self.groups.enter(ConsumerGroup::take(&mut frame.payload())?),
            FrameKind::Cursor => {
                let (txn, entries) = decode_cursors(frame.payload())?;
                let changes: Vec<CursorChange> = entries.iter().map(|entry| (*entry).into()).collect();
                if txn == 0 {
                    self.apply_cursors(lsn, &changes);
                } else {
                    let positions = super::groups::waiting_positions(&changes);
                    self.late.add_positions(txn, "", header.timestamp.get(), &positions);
                }
            }
            FrameKind::Ack => {
                let (partitions, shards) = (&self.partitions, self.shards);
                for change in decode_acks(frame.payload())? {
                    self.cursors.apply_ack(lsn, &change, |id| super::is_here(partitions, shards, id));
                }
            }
            FrameKind::Data => self.enter_frame(lsn, header)?,
            // What waits, and what ends that, whatever has become of the partition.
            kind => match self.late.replay(lsn, self.segment_base, frame)? {
                Effect::Done => {}
                Effect::Sequence(_) => self.enter_sequence(lsn, header),
                Effect::Offsets => self.enter_frame(lsn, header)?,
                Effect::Positions(positions) => self.apply_positions(lsn, &positions),
                Effect::Foreign => {
                    let (expected, found) = (FrameKind::Data as u64, kind as u64);
                    return Err(Corruption::new("frame", "kind", Damage::Field, expected, found));
                }
            },
        }
        Ok(())
    }

    fn progress(&mut self, done: u64, total: u64) {
        (self.progress)(done, total);
    }
}
