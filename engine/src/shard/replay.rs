//! What recovery finds, turned into partitions and topics.

use crate::catalogue::Catalogue;
use crate::partition::producers::Original;
use crate::partition::{FrameRef, Partition};
use crate::recovery::Visitor;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::checkpoint::{Chunk, ChunkKind, PartitionItem};
use ringmq_format::corruption::{Corruption, Damage};
use ringmq_format::frame::{Frame, FrameKind};
use ringmq_format::sidecar::IndexEntry;
use ringmq_format::{Lsn, Offset, PartitionId, SegmentSeq, ShardId};
use zerocopy::FromBytes;

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

/// Replays checkpoint and log.
pub(super) struct Replay<'a> {
    shard: ShardId,
    shards: u16,
    partitions: Vec<Option<Partition>>,
    catalogue: Catalogue,
    /// Partitions of a checkpoint chunk and the LSN that it reflects, ascending.
    stamps: Vec<(PartitionId, PartitionId, Lsn)>,
    progress: &'a mut dyn FnMut(u64, u64),
}

pub(super) struct Replayed {
    pub(super) partitions: Vec<Option<Partition>>,
    pub(super) catalogue: Catalogue,
}

impl<'a> Replay<'a> {
    pub(super) fn new(shard: ShardId, shards: u16, progress: &'a mut dyn FnMut(u64, u64)) -> Self {
        Self {
            shard,
            shards,
            partitions: Vec::new(),
            catalogue: Catalogue::default(),
            stamps: Vec::new(),
            progress,
        }
    }

    pub(super) fn finish(self) -> Replayed {
        Replayed { partitions: self.partitions, catalogue: self.catalogue }
    }

    fn get(&mut self, id: PartitionId) -> Option<&mut Partition> {
        let index = id.0 as usize / usize::from(self.shards);
        self.partitions.get_mut(index)?.as_mut().filter(|partition| partition.id() == id)
    }

    /// Is the effect of a frame at `lsn` already in the checkpoint?
    fn is_reflected(&self, id: PartitionId, lsn: Lsn) -> bool {
        let index = self.stamps.partition_point(|(_, last, _)| *last < id);
        self.stamps.get(index).is_some_and(|(first, _, stamp)| *first <= id && lsn < *stamp)
    }

    fn enter_topic(&mut self, entry: TopicEntry) {
        enter_topic(&mut self.catalogue, &mut self.partitions, self.shard, self.shards, entry);
    }
}

fn contradiction(field: &'static str, expected: Offset, found: Offset) -> Corruption {
    Corruption::new("log", field, Damage::Field, expected.0, found.0)
}

impl Visitor for Replay<'_> {
    fn chunk(&mut self, chunk: &Chunk<'_>, scan: SegmentSeq, scan_base: Lsn) -> Result<(), Corruption> {
        let mut rest = chunk.payload;
        match chunk.kind {
            ChunkKind::Segments => {}
            ChunkKind::Topics => {
                for _ in 0..chunk.items {
                    let entry = TopicEntry::take(&mut rest)?;
                    self.enter_topic(entry);
                }
            }
            ChunkKind::Partitions => {
                for _ in 0..chunk.items {
                    let item = PartitionItem::take(&mut rest)?;
                    if let Some(partition) = self.get(item.partition) {
                        *partition = Partition::from_item(&item, scan);
                    }
                }
                self.stamps.push((chunk.first_key, chunk.last_key, chunk.stamp));
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
                    if let Some(partition) = self.get(PartitionId(entry.partition.get())) {
                        partition.push_index(frame);
                    }
                }
            }
        }
        Ok(())
    }

    fn frame(&mut self, lsn: Lsn, frame: &Frame<'_>) -> Result<(), Corruption> {
        let header = frame.header;
        match header.kind() {
            FrameKind::Topic => {
                let mut payload = frame.payload();
                let entry = TopicEntry::take(&mut payload)?;
                self.enter_topic(entry);
            }
            FrameKind::Data => {
                let id = header.partition();
                let reflected = self.is_reflected(id, lsn);
                // A partition that is not known was deleted.
                let Some(partition) = self.get(id) else { return Ok(()) };
                if reflected {
                    partition.push_index(FrameRef::new(header, lsn));
                    return Ok(());
                }
                if header.base_offset() != partition.next() {
                    return Err(contradiction("base_offset", partition.next(), header.base_offset()));
                }
                partition.push(header, lsn);
                let original = Original {
                    base_offset: header.base_offset(),
                    timestamp: header.timestamp.get(),
                    end_lsn: Lsn(0),
                };
                partition.producers.take(header, original);
            }
            other => {
                return Err(Corruption::new(
                    "frame",
                    "kind",
                    Damage::Field,
                    FrameKind::Data as u64,
                    other as u64,
                ));
            }
        }
        Ok(())
    }

    fn progress(&mut self, done: u64, total: u64) {
        (self.progress)(done, total);
    }
}
