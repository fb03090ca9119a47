//! Consumer groups and how far they are: positions of groups and of broadcast instances, what queue groups have
//! consumed above theirs, positions that wait for a transaction.
//!
//! Invariants  C1  Replay converges: each position remembers the LSN that changed it last, and a frame before that
//!                 changes nothing. So every frame from any earlier place on may be replayed onto a checkpoint.
//!             C2  A checkpoint takes positions that wait for a transaction first: one that ends meanwhile is found
//!                 among these or among the positions. A position and what lies above it are taken in one turn.
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
use ringmq_format::cursor::{
    AckChange, CursorChange, CursorChunkKind, CursorEntry, CursorItem, CursorKey, PendingCursorItem,
};
use ringmq_format::limits::{
    ACK_SPAN_MAX, ACK_STATE_SIZE_MAX, CHECKPOINT_CHUNK_TARGET, PENDING_CURSORS_MAX, TRANSACTION_CURSORS_MAX,
};
use ringmq_format::{GroupId, Lsn, Offset, PartitionId};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use zerocopy::little_endian::U128;
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
    pending: BTreeMap<u128, BTreeMap<CursorKey, Offset>>,
    pending_count: usize,
}

/// How far a checkpoint has come with the table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CursorCapture {
    /// Transactions above this one are next.
    Pending(Option<u128>),
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

    /// Positions.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty() && self.pending.is_empty()
    }

    /// Bytes that positions take in memory, without what lies above them.
    pub fn memory(&self) -> usize {
        self.positions.memory()
    }

    /// Positions that wait for a transaction.
    pub fn pending(&self, txn: u128) -> impl Iterator<Item = CursorChange> {
        let kept = self.pending.get(&txn).into_iter().flatten();
        kept.map(|(key, offset)| CursorChange { key: *key, offset: Some(*offset) })
    }

    /// How many these are.
    pub fn pending_count(&self, txn: u128) -> usize {
        self.pending.get(&txn).map_or(0, BTreeMap::len)
    }

    /// Whether a transaction may have so many positions more.
    pub fn takes_pending(&self, txn: u128, more: usize) -> bool {
        self.pending_count(txn) + more <= TRANSACTION_CURSORS_MAX
            && self.pending_count + more <= PENDING_CURSORS_MAX
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

    /// Takes the entries of a CURSOR frame.
    pub(crate) fn apply_cursors<'a>(
        &mut self,
        lsn: Lsn,
        txn: u128,
        entries: impl IntoIterator<Item = &'a CursorEntry>,
        is_known: impl Fn(PartitionId) -> bool,
    ) {
        for entry in entries {
            let change = CursorChange::from(*entry);
            if !is_known(change.key.partition) {
                continue;
            }
            if txn == 0 {
                self.set(lsn, change);
            } else {
                self.keep(txn, change);
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

    /// Keeps a position until its transaction ends; the last one of a key counts. A transaction forgets none: what
    /// it had set might come again at replay (C1).
    fn keep(&mut self, txn: u128, change: CursorChange) {
        let Some(offset) = change.offset else { return };
        let kept = self.pending.entry(txn).or_default();
        self.pending_count += usize::from(kept.insert(change.key, offset).is_none());
    }

    /// The transaction is committed by the frame at `lsn`. Nothing may be kept for it any more.
    pub fn commit(&mut self, txn: u128, lsn: Lsn) {
        for (key, offset) in self.take_pending(txn) {
            self.set(lsn, CursorChange { key, offset: Some(offset) });
        }
    }

    /// The transaction is void. Nothing may be kept for it any more.
    pub fn abort(&mut self, txn: u128) {
        self.take_pending(txn);
    }

    fn take_pending(&mut self, txn: u128) -> BTreeMap<CursorKey, Offset> {
        let changes = self.pending.remove(&txn).unwrap_or_default();
        self.pending_count -= changes.len();
        changes
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
        self.pending.retain(|_, changes| {
            changes.retain(|key, _| keeps(*key));
            !changes.is_empty()
        });
        self.pending_count = self.pending.values().map(BTreeMap::len).sum();
    }

    // -- checkpoints ---------------------------------------------------------------------------------------

    /// Items of the next chunks: their number and their bytes. None when a stage had nothing (more).
    pub(crate) fn capture(&self, capture: &mut CursorCapture) -> Vec<(u32, Vec<u8>)> {
        let full = |out: &ChunkItems| out.bytes.len() >= CHECKPOINT_CHUNK_TARGET;
        match *capture {
            CursorCapture::Pending(after) => {
                let mut pending = ChunkItems::default();
                *capture = CursorCapture::Positions(None);
                for (txn, changes) in self.pending.range((after.map_or(Unbounded, Excluded), Unbounded)) {
                    for (key, offset) in changes {
                        let entry = CursorChange { key: *key, offset: Some(*offset) }.into();
                        let item = PendingCursorItem { txn: U128::new(*txn), entry };
                        pending.add(CursorChunkKind::Pending).extend_from_slice(item.as_bytes());
                    }
                    if full(&pending) {
                        *capture = CursorCapture::Pending(Some(*txn));
                        break;
                    }
                }
                pending.chunk().into_iter().collect()
            }
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
                CursorChunkKind::Pending => {
                    let (item, rest) =
                        PendingCursorItem::read_from_prefix(bytes).map_err(|_| short(bytes.len()))?;
                    self.keep(item.txn.get(), item.entry.into());
                    bytes = rest;
                }
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
