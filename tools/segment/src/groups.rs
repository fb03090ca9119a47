//! Consumer groups and their positions, as recovery would rebuild them.

use ringmq_format::checkpoint::ChunkKind;
use ringmq_format::consumer_group::ConsumerGroup;
use ringmq_format::cursor::{
    AckChange, CursorChange, CursorChunkKind, CursorItem, CursorKey, decode_acks, decode_cursors,
};
use ringmq_format::frame::{Frame, FrameKind};
use ringmq_format::limits::CHECKPOINT_CHUNK_TARGET;
use ringmq_format::{GroupId, Lsn, Offset, PartitionId};
use std::collections::BTreeMap;
use zerocopy::{FromBytes, IntoBytes};

/// Tables of one shard.
#[derive(Clone, Debug, Default)]
pub struct GroupState {
    /// Groups by id, deleted ones too.
    pub groups: BTreeMap<u32, ConsumerGroup>,
    /// Positions by group, partition and instance: set by the frame at this LSN.
    pub positions: BTreeMap<(u32, u32, u64), (Lsn, Offset)>,
    /// What was consumed record by record, by group and partition.
    pub acks: BTreeMap<(u32, u32), (Lsn, AckChange)>,
}

impl GroupState {
    /// Items of a checkpoint's chunk; those of other kinds are passed over.
    pub(crate) fn restore(&mut self, kind: ChunkKind, items: u32, mut rest: &[u8]) {
        match kind {
            ChunkKind::Groups => {
                for _ in 0..items {
                    let Ok(group) = ConsumerGroup::take(&mut rest) else { return };
                    self.groups.insert(group.group.0, group);
                }
            }
            ChunkKind::Cursors => {
                let Ok(what) = CursorChunkKind::take(&mut rest) else { return };
                for _ in 0..items {
                    if self.restore_one(what, &mut rest).is_none() {
                        return;
                    }
                }
            }
            _ => {}
        }
    }

    fn restore_one(&mut self, what: CursorChunkKind, rest: &mut &[u8]) -> Option<()> {
        match what {
            CursorChunkKind::Positions => {
                let (item, behind) = CursorItem::read_from_prefix(rest).ok()?;
                *rest = behind;
                let key = item.key();
                let place = (key.group.0, key.partition.0, key.instance);
                self.positions.insert(place, (Lsn(item.lsn.get()), Offset(item.offset.get())));
            }
            CursorChunkKind::Acks => {
                let (lsn, behind) = rest.split_at_checked(8)?;
                let lsn = u64::from_le_bytes(lsn.try_into().ok()?);
                *rest = behind;
                let ack = AckChange::take(rest).ok()?;
                self.acks.insert((ack.group.0, ack.partition.0), (Lsn(lsn), ack));
            }
        }
        Some(())
    }

    /// As chunks of items.
    pub(crate) fn items(&self) -> Vec<(ChunkKind, u32, Vec<u8>)> {
        let mut chunks = Vec::new();
        let mut payload = Vec::new();
        let mut count = 0;
        let mut close = |kind, count: &mut u32, payload: &mut Vec<u8>, always: bool| {
            if *count > 0 && (always || payload.len() >= CHECKPOINT_CHUNK_TARGET) {
                chunks.push((kind, std::mem::take(count), std::mem::take(payload)));
            }
        };
        for group in self.groups.values() {
            group.encode(&mut payload);
            count += 1;
            close(ChunkKind::Groups, &mut count, &mut payload, false);
        }
        close(ChunkKind::Groups, &mut count, &mut payload, true);
        for ((group, partition, instance), (lsn, offset)) in &self.positions {
            if payload.is_empty() {
                CursorChunkKind::Positions.encode(&mut payload);
            }
            let (group, partition) = (GroupId(*group), PartitionId(*partition));
            let key = CursorKey { group, partition, instance: *instance };
            payload.extend_from_slice(CursorItem::new(key, *offset, *lsn).as_bytes());
            count += 1;
            close(ChunkKind::Cursors, &mut count, &mut payload, false);
        }
        close(ChunkKind::Cursors, &mut count, &mut payload, true);
        for (lsn, ack) in self.acks.values() {
            if payload.is_empty() {
                CursorChunkKind::Acks.encode(&mut payload);
            }
            payload.extend_from_slice(&lsn.0.to_le_bytes());
            AckChange { replaces: true, ..ack.clone() }.encode(&mut payload);
            count += 1;
            close(ChunkKind::Cursors, &mut count, &mut payload, false);
        }
        close(ChunkKind::Cursors, &mut count, &mut payload, true);
        chunks
    }

    /// A GROUP, CURSOR or ACK frame. Answers the transaction with which positions take effect, and those.
    pub(crate) fn take(&mut self, lsn: Lsn, frame: &Frame<'_>) -> Option<(u128, Vec<CursorChange>)> {
        match frame.header.kind() {
            FrameKind::Group => {
                if let Ok(group) = ConsumerGroup::take(&mut frame.payload()) {
                    self.groups.insert(group.group.0, group);
                }
            }
            FrameKind::Cursor => {
                let (txn, entries) = decode_cursors(frame.payload()).ok()?;
                let changes: Vec<CursorChange> =
                    entries.iter().map(|entry| CursorChange::from(*entry)).collect();
                if txn != 0 {
                    return Some((txn, changes));
                }
                changes.iter().for_each(|change| self.set(lsn, change));
            }
            FrameKind::Ack => {
                for change in decode_acks(frame.payload()).unwrap_or_default() {
                    self.acknowledge(lsn, change);
                }
            }
            _ => {}
        }
        None
    }

    /// A position is set or forgotten, unless a later frame has spoken of it.
    pub(crate) fn set(&mut self, lsn: Lsn, change: &CursorChange) {
        let key = (change.key.group.0, change.key.partition.0, change.key.instance);
        if self.positions.get(&key).is_some_and(|known| known.0 > lsn) {
            return;
        }
        match change.offset {
            Some(offset) => drop(self.positions.insert(key, (lsn, offset))),
            None => drop(self.positions.remove(&key)),
        }
    }

    fn acknowledge(&mut self, lsn: Lsn, change: AckChange) {
        let key = (change.group.0, change.partition.0);
        match self.acks.get_mut(&key) {
            Some(known) if known.0 > lsn => {}
            Some(known) if !change.replaces => {
                known.0 = lsn;
                unite(&mut known.1, &change);
            }
            _ => drop(self.acks.insert(key, (lsn, change))),
        }
    }
}

/// The watermark only rises, ranges are united, a retry replaces the one of its offset and ends when that is consumed.
fn unite(known: &mut AckChange, change: &AckChange) {
    known.watermark = known.watermark.max(change.watermark);
    known.ranges.extend_from_slice(&change.ranges);
    known.ranges.sort_unstable();
    let mut united: Vec<(Offset, Offset)> = Vec::with_capacity(known.ranges.len());
    for (start, end) in known.ranges.drain(..) {
        let start = start.max(known.watermark);
        match united.last_mut() {
            _ if start >= end => {}
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => united.push((start, end)),
        }
    }
    if let Some(first) = united.first().copied().filter(|first| first.0 == known.watermark) {
        known.watermark = first.1;
        united.remove(0);
    }
    known.ranges = united;
    for retry in &change.retries {
        known.retries.retain(|old| old.offset != retry.offset);
        known.retries.extend((retry.attempt > 0).then_some(*retry));
    }
    let consumed = |offset: Offset| {
        offset < known.watermark || known.ranges.iter().any(|range| range.0 <= offset && offset < range.1)
    };
    let mut retries = std::mem::take(&mut known.retries);
    retries.retain(|retry| !consumed(retry.offset));
    retries.sort_by_key(|retry| retry.offset);
    known.retries = retries;
}
