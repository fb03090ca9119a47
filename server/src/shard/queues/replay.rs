//! Dead letters go back to where they came from.
//!
//! Invariants  D1  A dead letter is replayed at most once: that it was is an acknowledgement of its group in the
//!                 partition of dead letters, in the same write as the BIND that replays it.

use super::{QueueAnswer, QueueWork};
use crate::shard::mail::{Origin, Work};
use crate::shard::{Draining, ShardServer};
use ringmq_engine::shard::{BodyRef, FoundBody, LateError, NewBind};
use ringmq_format::cursor::{AckChange, CursorKey};
use ringmq_format::late::BindReason;
use ringmq_format::{GroupId, Lsn, Offset, PartitionId};
use ringmq_protocol::queue::REPLAYED_EARLIER;
use ringmq_protocol::{ErrorCode, Replayed};
use std::collections::BTreeMap;
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32, U64};

impl ShardServer {
    pub(super) fn replay_dead_letters(
        &mut self,
        origin: Origin,
        partition: PartitionId,
        dry_run: bool,
        offsets: Vec<Offset>,
    ) {
        let mut answers = Vec::with_capacity(offsets.len());
        let (mut binds, mut places) = (Vec::new(), Vec::new());
        let mut changes: BTreeMap<GroupId, AckChange> = BTreeMap::new();
        let mut durable_at = Lsn(0);
        for (index, offset) in offsets.iter().enumerate() {
            let body = match self.shard.find_body(&self.ring, partition, *offset) {
                FoundBody::Body(body) => body,
                FoundBody::Cold => {
                    let work = QueueWork::Replay { partition, dry_run, offsets };
                    return self.readers.park(origin, Work::Queue(work));
                }
                FoundBody::Damaged => {
                    answers.push(Replayed::failed(ErrorCode::Damaged, 0));
                    continue;
                }
                FoundBody::OutOfRange | FoundBody::UnknownPartition => {
                    answers.push(Replayed::failed(ErrorCode::NotADeadLetter, 0));
                    continue;
                }
            };
            let of = |answer: Replayed| with_origin(answer, &body);
            let (group, target) = match self.dead_letter_of(&body) {
                Ok(found) => found,
                Err(code) => {
                    answers.push(of(Replayed::failed(code, 0)));
                    continue;
                }
            };
            let key = CursorKey::shared(group, partition);
            let known = self.shard.cursors().position(key);
            let acks = self.shard.cursors().acks(group, partition);
            let before = known.is_some_and(|known| *offset < known.offset)
                || acks.is_some_and(|acks| acks.range_of(*offset).is_some());
            let again = offsets[..index].contains(offset);
            if before || again {
                durable_at = durable_at.max(known.map_or(Lsn(0), |known| known.lsn.plus(1)));
                answers.push(of(Replayed { flags: U16::new(REPLAYED_EARLIER), ..Replayed::new_zeroed() }));
                continue;
            }
            answers.push(of(Replayed::new_zeroed()));
            places.push(index);
            binds.push(NewBind {
                partition: target,
                body: BodyRef { count: 1, ..body },
                reason: BindReason::Replay,
                origin: (partition, *offset),
                detail: 0,
                owner: u64::from(group.0),
            });
            let watermark = known.map_or(Offset(0), |known| known.offset);
            let change = changes.entry(group).or_insert_with(|| AckChange::new(group, partition, watermark));
            change.ranges.push((*offset, offset.plus(1)));
        }
        if dry_run || binds.is_empty() {
            return self.answer_replayed(origin, durable_at, QueueAnswer::Replayed(answers));
        }
        let changes: Vec<AckChange> = changes.into_values().collect();
        // D1
        let code = match self.bind_now(&binds, &changes) {
            Ok(bound) => {
                for (place, offset) in places.iter().zip(&bound.offsets) {
                    answers[*place].offset = U64::new(offset.0);
                }
                let durable_at = durable_at.max(bound.durable_at);
                return self.answer_replayed(origin, durable_at, QueueAnswer::Replayed(answers));
            }
            Err(LateError::Busy) if self.draining == Draining::No => {
                let work = QueueWork::Replay { partition, dry_run, offsets };
                self.deferred.push_back((origin, Work::Queue(work)));
                self.retry_deferred = false;
                return;
            }
            Err(LateError::Busy) => ErrorCode::ShuttingDown,
            Err(LateError::DiskFull) => ErrorCode::DiskFull,
            Err(LateError::Poisoned) => ErrorCode::ShardPoisoned,
            Err(LateError::BodyGone | LateError::UnknownPartition) => ErrorCode::NotADeadLetter,
            Err(LateError::TooLarge) => ErrorCode::Throttled,
            Err(_) => ErrorCode::Internal,
        };
        for place in places {
            let retry_after_ms = if code == ErrorCode::DiskFull { 1_000 } else { 0 };
            answers[place].code = U16::new(code as u16);
            answers[place].retry_after_ms = U32::new(retry_after_ms);
        }
        self.reply_queue(origin, QueueAnswer::Replayed(answers));
    }

    /// The group that gave up a record, and where it came from.
    fn dead_letter_of(&self, body: &BodyRef) -> Result<(GroupId, PartitionId), ErrorCode> {
        let dead = body.bind.filter(|bind| bind.reason == BindReason::DeadLetter);
        let (bind, (partition, _)) =
            dead.and_then(|bind| Some((bind, bind.origin?))).ok_or(ErrorCode::NotADeadLetter)?;
        let group = u32::try_from(bind.owner).map(GroupId).map_err(|_| ErrorCode::NotADeadLetter)?;
        match self.group(group) {
            Ok(_) if self.shard.extent(partition).is_some() => Ok((group, partition)),
            Err(ErrorCode::Recovering) => Err(ErrorCode::Recovering),
            _ => Err(ErrorCode::NotADeadLetter), // where it came from, or who gave it up, is gone
        }
    }
}

/// Says where a dead letter came from; of anything else nothing.
fn with_origin(answer: Replayed, body: &BodyRef) -> Replayed {
    let dead = body.bind.filter(|bind| bind.reason == BindReason::DeadLetter);
    let Some((bind, (partition, offset))) = dead.and_then(|bind| Some((bind, bind.origin?))) else {
        return answer;
    };
    Replayed {
        origin_offset: U64::new(offset.0),
        origin_partition: U32::new(partition.0),
        attempts: U32::new(bind.detail),
        ..answer
    }
}
