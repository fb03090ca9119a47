//! Consumer groups and how far they are: positions of groups and of broadcast instances, and what queue groups have
//! consumed above theirs. Positions that wait for a transaction are in [`crate::late`] until it is committed.
//!
//! Invariants  C1  Replay converges: each position remembers the LSN that changed it last, and a frame before that
//!                 changes nothing. So every frame from any earlier place on may be replayed onto a checkpoint.
//!             C2  A checkpoint takes transactions before positions: those of one that ends meanwhile are found with
//!                 it or here. A position and what lies above it are taken in one turn.
//!             C3  What is known above a position lies above it, and its ranges neither touch nor overlap.
//!             C4  A position costs 32 bytes and its share of a leaf: there are millions.
//! Ignorant of who asks, of members and of what a group's settings mean.

pub mod acks;
pub mod groups;
mod leaves;
#[cfg(test)]
mod tests;

use acks::AckState;
use leaves::{Leaves, Slot};
use ringmq_format::corruption::{Corruption, Damage};
use ringmq_format::cursor::{AckChange, CursorChange, CursorChunkKind, CursorItem, CursorKey};
use ringmq_format::limits::{ACK_SPAN_MAX, ACK_STATE_SIZE_MAX, CHECKPOINT_CHUNK_TARGET};
use ringmq_format::{GroupId, Lsn, Offset, PartitionId};
use std::collections::BTreeMap;
use zerocopy::{FromBytes, IntoBytes};

/// Where somebody stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// First offset that is not consumed.
    pub offset: Offset,
    /// The frame that set it: it is durable when `durable` lies above this.
    pub lsn: Lsn,
}

/// All positions in the partitions of a shard.
#[derive(Debug, Default)]
pub struct Cursors {
    positions: Leaves,
    acks: BTreeMap<(GroupId, PartitionId), AckState>,
}

/// How far a checkpoint has come with the table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CursorCapture {
    /// Positions above this one are next.
    Positions(Option<CursorKey>),
    /// All were taken.
    Done,
}

impl Cursors {
    /// Where somebody stands.
    pub fn position(&self, key: CursorKey) -> Option<Position> {
        self.positions.get(key).map(|slot| Position { offset: slot.offset(), lsn: slot.lsn() })
    }

    /// What a group has consumed above its position, and what is to be delivered to it again; `None` is nothing.
    pub fn acks(&self, group: GroupId, partition: PartitionId) -> Option<&AckState> {
        self.acks.get(&(group, partition))
    }

    /// Positions of a group behind `after`, by partition and instance.
    pub fn of_group(
        &self,
        group: GroupId,
        after: Option<(PartitionId, u64)>,
    ) -> impl Iterator<Item = (CursorKey, Position)> {
        let first = CursorKey { group, partition: PartitionId(0), instance: 0 };
        let from = after.map_or(first, |(partition, instance)| CursorKey { group, partition, instance });
        self.positions
            .range(from, after.is_some())
            .map(|slot| (slot.key(), Position { offset: slot.offset(), lsn: slot.lsn() }))
            .take_while(move |(key, _)| key.group == group)
    }

    /// The next group that has a position here.
    pub fn group_behind(&self, group: GroupId) -> Option<GroupId> {
        let group = GroupId(group.0.checked_add(1)?);
        let from = CursorKey { group, partition: PartitionId(0), instance: 0 };
        self.positions.range(from, false).next().map(|slot| slot.key().group)
    }

    /// Positions.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Bytes that positions take in memory, without what lies above them.
    pub fn memory(&self) -> usize {
        self.positions.memory()
    }

    /// Whether what is known of the partition would keep its bounds.
    pub fn takes_ack(&self, change: &AckChange) -> bool {
        let known = self.acks(change.group, change.partition);
        let at = self.position(CursorKey::shared(change.group, change.partition));
        let mut watermark = at.map_or(change.watermark, |position| position.offset);
        let known_size = known.map_or(AckChange::size(0, 0), AckState::size);
        let roughly = known_size + AckChange::size(change.ranges.len(), change.retries.len());
        let last = change.ranges.iter().map(|range| range.1).max();
        let span = last.map_or(0, |last| last.0.saturating_sub(watermark.0.max(change.watermark.0)));
        if roughly <= ACK_STATE_SIZE_MAX && span <= ACK_SPAN_MAX {
            return true;
        }
        let mut state = known.cloned().unwrap_or_default();
        state.apply(&mut watermark, change);
        state.size() <= ACK_STATE_SIZE_MAX && state.span(watermark) <= ACK_SPAN_MAX
    }

    /// Takes positions that the frame at `lsn` sets, by itself or by committing their transaction.
    pub(crate) fn apply_cursors(
        &mut self,
        lsn: Lsn,
        changes: impl IntoIterator<Item = CursorChange>,
        is_known: impl Fn(PartitionId) -> bool,
    ) {
        for change in changes {
            if is_known(change.key.partition) {
                self.set(lsn, change);
            }
        }
    }

    fn set(&mut self, lsn: Lsn, change: CursorChange) {
        let CursorChange { key, offset } = change;
        if self.positions.get(key).is_some_and(|known| known.lsn() > lsn) {
            return; // C1
        }
        match offset {
            Some(offset) => self.positions.set(Slot::new(key, offset, lsn)),
            None => self.positions.remove(key),
        }
        if key.instance == 0 {
            self.acks.remove(&(key.group, key.partition));
        }
    }

    /// Takes an entry of an ACK frame.
    pub(crate) fn apply_ack(&mut self, lsn: Lsn, change: &AckChange, is_known: impl Fn(PartitionId) -> bool) {
        let key = CursorKey::shared(change.group, change.partition);
        let known = self.position(key);
        if !is_known(change.partition) || known.is_some_and(|known| known.lsn > lsn) {
            return; // C1
        }
        let mut watermark = known.map_or(change.watermark, |known| known.offset);
        let state = self.acks.entry((change.group, change.partition)).or_default();
        state.apply(&mut watermark, change);
        if state.is_empty() {
            self.acks.remove(&(change.group, change.partition));
        }
        self.positions.set(Slot::new(key, watermark, lsn));
    }

    /// Forgets a group that is no more.
    pub(crate) fn remove_group(&mut self, group: GroupId) {
        self.retain(|key| key.group != group);
    }

    /// Forgets partitions that are no more.
    pub(crate) fn remove_partitions(&mut self, is_gone: impl Fn(PartitionId) -> bool) {
        self.retain(|key| !is_gone(key.partition));
    }

    fn retain(&mut self, keeps: impl Fn(CursorKey) -> bool) {
        self.positions.retain(|slot| keeps(slot.key()));
        self.acks.retain(|(group, partition), _| keeps(CursorKey::shared(*group, *partition)));
    }

    // -- checkpoints ---------------------------------------------------------------------------------------

    /// Items of the next chunks: their number and their bytes. None when a stage had nothing (more).
    pub(crate) fn capture(&self, capture: &mut CursorCapture) -> Vec<(u32, Vec<u8>)> {
        let full = |out: &ChunkItems| out.bytes.len() >= CHECKPOINT_CHUNK_TARGET;
        match *capture {
            CursorCapture::Positions(after) => {
                let (mut positions, mut acks) = (ChunkItems::default(), ChunkItems::default());
                *capture = CursorCapture::Done;
                let first = CursorKey { group: GroupId(0), partition: PartitionId(0), instance: 0 };
                for slot in self.positions.range(after.unwrap_or(first), after.is_some()) {
                    let key = slot.key();
                    let item = CursorItem::new(key, slot.offset(), slot.lsn());
                    positions.add(CursorChunkKind::Positions).extend_from_slice(item.as_bytes());
                    if key.instance == 0
                        && let Some(state) = self.acks(key.group, key.partition)
                    {
                        let out = acks.add(CursorChunkKind::Acks);
                        out.extend_from_slice(&slot.lsn().0.to_le_bytes());
                        state.all(key.group, key.partition, slot.offset()).encode(out); // C2
                    }
                    if full(&positions) || full(&acks) {
                        *capture = CursorCapture::Positions(Some(key));
                        break;
                    }
                }
                positions.chunk().into_iter().chain(acks.chunk()).collect()
            }
            CursorCapture::Done => Vec::new(),
        }
    }

    /// Takes the items of a chunk.
    pub(crate) fn restore(&mut self, mut bytes: &[u8], items: u32) -> Result<(), Corruption> {
        let short = |len: usize| Corruption::new("checkpoint", "cursors", Damage::Field, 0, len as u64);
        let kind = CursorChunkKind::take(&mut bytes)?;
        for _ in 0..items {
            match kind {
                CursorChunkKind::Positions => {
                    let (item, rest) = CursorItem::read_from_prefix(bytes).map_err(|_| short(bytes.len()))?;
                    let offset = Some(Offset(item.offset.get()));
                    self.set(Lsn(item.lsn.get()), CursorChange { key: item.key(), offset });
                    bytes = rest;
                }
                CursorChunkKind::Acks => {
                    let (lsn, rest) = bytes.split_first_chunk().ok_or_else(|| short(bytes.len()))?;
                    bytes = rest;
                    let change = AckChange::take(&mut bytes)?;
                    self.apply_ack(Lsn(u64::from_le_bytes(*lsn)), &change, |_| true);
                }
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct ChunkItems {
    count: u32,
    bytes: Vec<u8>,
}

impl ChunkItems {
    /// Where one more is to be appended.
    fn add(&mut self, kind: CursorChunkKind) -> &mut Vec<u8> {
        if self.count == 0 {
            kind.encode(&mut self.bytes);
        }
        self.count += 1;
        &mut self.bytes
    }

    fn chunk(self) -> Option<(u32, Vec<u8>)> {
        (self.count > 0).then_some((self.count, self.bytes))
    }
}
