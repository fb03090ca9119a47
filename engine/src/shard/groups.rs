//! Consumer groups and positions of a shard: logged here, entered at once, durable with the log.
//!
//! What a look-up answers may not be durable yet; [`crate::cursors::Position::lsn`] says where it stands in the log.

use super::{AppendError, Bound, LateError, NewBind, Shard, Stopping};
use crate::cursors::{CursorCapture, Cursors, groups::GroupTable};
use crate::late::Position;
use crate::ring::Ring;
use ringmq_format::checkpoint::ChunkKind;
use ringmq_format::consumer_group::ConsumerGroup;
use ringmq_format::cursor::{AckChange, CursorChange, CursorKey, encode_acks, encode_cursors};
use ringmq_format::frame::{Frame, FrameKind, encode};
use ringmq_format::limits::{
    CHECKPOINT_CHUNK_TARGET, FRAME_HEADER_SIZE, TRANSACTION_POSITIONS_MAX, frame_size_max,
};
use ringmq_format::{GroupId, Lsn, Offset, PartitionId};

/// Positions of one call of [`Shard::log_cursors`].
pub const CURSORS_PER_FRAME_MAX: usize = 16_384;

/// How far a checkpoint has come with groups and positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupCapture {
    /// Groups above this one are next; `None` when all were taken.
    groups: Option<GroupId>,
    cursors: CursorCapture,
}

impl GroupCapture {
    pub(super) fn new() -> Self {
        Self { groups: Some(GroupId(0)), cursors: CursorCapture::Positions(None) }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.cursors, CursorCapture::Done)
    }
}

impl Shard {
    /// The groups that this shard coordinates.
    pub fn groups(&self) -> &GroupTable {
        &self.groups
    }

    /// Positions in the partitions of this shard.
    pub fn cursors(&self) -> &Cursors {
        &self.cursors
    }

    /// Logs a consumer group, made, changed or deleted, and enters it. Answers where it is durable.
    pub fn log_group(&mut self, ring: &mut Ring, entry: &ConsumerGroup) -> Result<Lsn, AppendError> {
        let mut payload = Vec::new();
        entry.encode(&mut payload);
        let (_, end) = self.log_state(ring, FrameKind::Group, 1, 0, &payload)?;
        self.groups.enter(entry.clone());
        Ok(end)
    }

    /// Logs positions, at most [`CURSORS_PER_FRAME_MAX`], in one frame, and enters them: at once, or (`txn` is not 0)
    /// when that transaction is committed here; a transaction forgets no position. Those of partitions that are not
    /// here are logged and change nothing. Answers where it is durable.
    pub fn log_cursors(
        &mut self,
        ring: &mut Ring,
        txn: u128,
        changes: &[CursorChange],
    ) -> Result<Lsn, AppendError> {
        if changes.len() > CURSORS_PER_FRAME_MAX {
            return Err(AppendError::TooLarge);
        }
        if txn != 0 {
            self.takes_positions(txn, changes)?;
        }
        let time_ms = if txn == 0 { 0 } else { ring.now().wall_ms };
        let payload = encode_cursors(txn, changes);
        let (lsn, end) = self.log_state(ring, FrameKind::Cursor, changes.len() as u32, time_ms, &payload)?;
        if txn == 0 {
            let (partitions, shards) = (&self.partitions, self.options.shards);
            self.cursors
                .apply_cursors(lsn, changes.iter().copied(), |id| super::is_here(partitions, shards, id));
        } else {
            self.late.add_positions(txn, "", time_ms, &waiting_positions(changes));
        }
        Ok(end)
    }

    fn takes_positions(&self, txn: u128, changes: &[CursorChange]) -> Result<(), AppendError> {
        if self.late.resolution(txn).is_some() {
            return Err(AppendError::TransactionEnded);
        }
        if self.late.is_frozen(txn) {
            return Err(AppendError::TransactionEnding);
        }
        let known = self.late.transaction(txn).map_or(0, |part| part.positions.len());
        if known + changes.len() > TRANSACTION_POSITIONS_MAX {
            return Err(AppendError::TransactionTooLarge);
        }
        Ok(())
    }

    /// Positions of groups take effect with the frame at `lsn`, which commits the transaction that they belong to.
    pub(super) fn apply_positions(&mut self, lsn: Lsn, positions: &[Position]) {
        let (partitions, shards) = (&self.partitions, self.options.shards);
        let changes = positions.iter().map(change_of);
        self.cursors.apply_cursors(lsn, changes, |id| super::is_here(partitions, shards, id));
    }

    /// Logs what groups have consumed, in one frame, and enters it; each entry adds to what is known unless it
    /// replaces. [`AppendError::TooLarge`] where an entry would pass the bounds of its partition (ask
    /// [`Cursors::takes_ack`] before) or all of them those of a frame. Answers where it is durable.
    pub fn log_acks(&mut self, ring: &mut Ring, changes: &[AckChange]) -> Result<Lsn, AppendError> {
        if !changes.iter().all(|change| self.cursors.takes_ack(change)) {
            return Err(AppendError::TooLarge);
        }
        let (lsn, end) =
            self.log_state(ring, FrameKind::Ack, changes.len() as u32, 0, &encode_acks(changes))?;
        self.enter_acks(lsn, changes);
        Ok(end)
    }

    /// Binds bodies and logs what groups have consumed with that, all in one group of the log: what becomes a dead
    /// letter counts as consumed at its origin with the same write. Bounds as in [`Shard::log_acks`].
    pub fn bind_with_acks(
        &mut self,
        ring: &mut Ring,
        binds: &[NewBind],
        changes: &[AckChange],
    ) -> Result<Bound, LateError> {
        let payload = encode_acks(changes);
        let fits = payload.len() + FRAME_HEADER_SIZE <= frame_size_max(self.options.segment_size);
        if !fits || !changes.iter().all(|change| self.cursors.takes_ack(change)) {
            return Err(LateError::TooLarge);
        }
        let frame = encode(FrameKind::Ack, changes.len() as u32, &payload);
        let bound = self.bind(ring, binds, Some(&frame))?;
        if let Some(lsn) = bound.also {
            self.enter_acks(lsn, changes);
        }
        Ok(bound)
    }

    /// Enters what an ACK frame says that was logged at `lsn`.
    fn enter_acks(&mut self, lsn: Lsn, changes: &[AckChange]) {
        let (partitions, shards) = (&self.partitions, self.options.shards);
        for change in changes {
            self.cursors.apply_ack(lsn, change, |id| super::is_here(partitions, shards, id));
        }
    }

    /// Forgets the positions of a group that is no more. Nothing is logged: a start finds them again, and is told
    /// again that the group is no more.
    pub fn forget_group(&mut self, group: GroupId) {
        self.cursors.remove_group(group);
    }

    /// Logs a frame that changes the shard's state. Answers where it stands and where it ends.
    fn log_state(
        &mut self,
        ring: &mut Ring,
        kind: FrameKind,
        count: u32,
        time_ms: i64,
        payload: &[u8],
    ) -> Result<(Lsn, Lsn), AppendError> {
        if self.stopping != Stopping::No {
            return Err(AppendError::Busy);
        }
        let bytes = encode(kind, count, payload);
        if bytes.len() > frame_size_max(self.options.segment_size) {
            return Err(AppendError::TooLarge);
        }
        let Ok(frame) = Frame::parse(&bytes) else { panic!("a frame just encoded does not parse") };
        let mut header = *frame.header;
        header.timestamp = time_ms.into();
        header.seal();
        let lsn = self.log.append(ring, &header, &bytes, None)?;
        Ok((lsn, lsn.plus(bytes.len() as u64)))
    }

    /// The next chunks of groups and positions: their kind, number of items and bytes.
    pub(super) fn capture_groups(&self, capture: &mut GroupCapture) -> (ChunkKind, Vec<(u32, Vec<u8>)>) {
        let Some(after) = capture.groups else {
            return (ChunkKind::Cursors, self.cursors.capture(&mut capture.cursors));
        };
        let (mut items, mut payload) = (0, Vec::new());
        capture.groups = None;
        for group in self.groups.all().filter(|group| group.group > after) {
            group.encode(&mut payload);
            items += 1;
            if payload.len() >= CHECKPOINT_CHUNK_TARGET {
                capture.groups = Some(group.group);
                break;
            }
        }
        (ChunkKind::Groups, if items > 0 { vec![(items, payload)] } else { Vec::new() })
    }
}

/// As they wait for a transaction.
pub(super) fn waiting_positions(changes: &[CursorChange]) -> Vec<Position> {
    let position = |change: &CursorChange| {
        let CursorKey { group, partition, instance } = change.key;
        change.offset.map(|offset| Position {
            group: u64::from(group.0),
            instance,
            partition,
            offset: offset.0,
        })
    };
    changes.iter().filter_map(position).collect()
}

/// As they take effect.
pub(super) fn change_of(position: &Position) -> CursorChange {
    let Position { group, instance, partition, offset } = *position;
    CursorChange {
        key: CursorKey { group: GroupId(group as u32), partition, instance },
        offset: Some(Offset(offset)),
    }
}

/// The partitions of a topic that is no more.
pub(super) fn forget_partitions(cursors: &mut Cursors, first: PartitionId, count: u32) {
    cursors.remove_partitions(|id| (first.0..first.0 + count).contains(&id.0));
}
