//! Consumer groups and positions of a shard: logged here, entered at once, durable with the log.
//!
//! What a look-up answers may not be durable yet; [`crate::cursors::Position::lsn`] says where it stands in the log.

use super::{AppendError, Shard, Stopping};
use crate::cursors::{CursorCapture, Cursors, groups::GroupTable};
use crate::log::Refused;
use crate::ring::Ring;
use ringmq_format::checkpoint::ChunkKind;
use ringmq_format::consumer_group::ConsumerGroup;
use ringmq_format::cursor::{AckChange, CursorChange, CursorEntry, encode_acks, encode_cursors};
use ringmq_format::frame::{Frame, FrameKind, encode};
use ringmq_format::limits::{CHECKPOINT_CHUNK_TARGET, frame_size_max};
use ringmq_format::{GroupId, Lsn, PartitionId};

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
        Self { groups: Some(GroupId(0)), cursors: CursorCapture::Pending(None) }
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
        let (_, end) = self.log_state(ring, FrameKind::Group, 1, &payload)?;
        self.groups.enter(entry.clone());
        Ok(end)
    }

    /// Logs positions, at most [`CURSORS_PER_FRAME_MAX`], in one frame, and enters them: at once, or (`txn` is not 0)
    /// when that transaction is committed here. Those of partitions that are not here are logged and change nothing.
    /// Answers where it is durable.
    pub fn log_cursors(
        &mut self,
        ring: &mut Ring,
        txn: u128,
        changes: &[CursorChange],
    ) -> Result<Lsn, AppendError> {
        if changes.len() > CURSORS_PER_FRAME_MAX {
            return Err(AppendError::TooLarge);
        }
        if txn != 0 && !self.cursors.takes_pending(txn, changes.len()) {
            return Err(AppendError::TooManyPending);
        }
        let payload = encode_cursors(txn, changes);
        let (lsn, end) = self.log_state(ring, FrameKind::Cursor, changes.len() as u32, &payload)?;
        let entries: Vec<CursorEntry> = changes.iter().map(|change| (*change).into()).collect();
        let (partitions, shards) = (&self.partitions, self.options.shards);
        self.cursors.apply_cursors(lsn, txn, &entries, |id| super::is_here(partitions, shards, id));
        Ok(end)
    }

    /// Logs what groups have consumed, in one frame, and enters it; each entry adds to what is known unless it
    /// replaces. [`AppendError::TooLarge`] where an entry would pass the bounds of its partition (ask
    /// [`Cursors::takes_ack`] before) or all of them those of a frame. Answers where it is durable.
    pub fn log_acks(&mut self, ring: &mut Ring, changes: &[AckChange]) -> Result<Lsn, AppendError> {
        if !changes.iter().all(|change| self.cursors.takes_ack(change)) {
            return Err(AppendError::TooLarge);
        }
        let (lsn, end) = self.log_state(ring, FrameKind::Ack, changes.len() as u32, &encode_acks(changes))?;
        self.enter_acks(lsn, changes);
        Ok(end)
    }

    /// Enters what an ACK frame says that was logged at `lsn`.
    pub(super) fn enter_acks(&mut self, lsn: Lsn, changes: &[AckChange]) {
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
        let lsn = self.log.append(ring, frame.header, &bytes, None).map_err(|refused| match refused {
            Refused::Busy | Refused::PayloadCrc => AppendError::Busy,
            Refused::DiskFull => AppendError::DiskFull,
            Refused::Poisoned => AppendError::Poisoned,
        })?;
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

/// The partitions of a topic that is no more.
pub(super) fn forget_partitions(cursors: &mut Cursors, first: PartitionId, count: u32) {
    cursors.remove_partitions(|id| (first.0..first.0 + count).contains(&id.0));
}
