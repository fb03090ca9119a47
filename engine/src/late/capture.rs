//! The tables as chunks of a checkpoint, and back. They are taken while the tables change: replay makes up for it (B1),
//! because every change from the first chunk on is in a frame that replay reads.

use super::transactions::{Decision, Part, Position};
use super::{Body, Late, Resolution, TimerEnd, Waiting};
use crate::format::checkpoint::{
    BodyItem, ChunkKind, EndedTimerItem, EndedTransactionItem, PendingItem, PositionItem, TransactionItem,
};
use crate::format::corruption::{Corruption, Damage};
use crate::format::limits::CHECKPOINT_CHUNK_TARGET;
use crate::format::{Lsn, PartitionId};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Slots that one step looks at, at most.
const SLOTS_PER_STEP: u32 = 4096;

/// How far a checkpoint has come with the tables.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CaptureCursor {
    table: usize,
    next: u64,
}

const TABLES: [ChunkKind; 5] = [
    ChunkKind::Pending,
    ChunkKind::Transactions,
    ChunkKind::Bodies,
    ChunkKind::EndedTimers,
    ChunkKind::EndedTransactions,
];

impl Late {
    /// The next items, at most a chunk of them, perhaps none; `None` when all were taken.
    pub(crate) fn capture(&self, cursor: &mut CaptureCursor) -> Option<(ChunkKind, u32, Vec<u8>)> {
        let kind = *TABLES.get(cursor.table)?;
        let mut out = Vec::new();
        let mut items = 0;
        let end = match kind {
            ChunkKind::Pending => u64::from(self.waiting.slots()),
            ChunkKind::Transactions => u64::from(self.transactions.numbers()),
            ChunkKind::Bodies => u64::from(self.bodies.slots()),
            _ => u64::MAX,
        };
        let mut steps = 0;
        let mut last = true;
        while out.len() < CHECKPOINT_CHUNK_TARGET && cursor.next < end {
            steps += 1;
            last = steps <= SLOTS_PER_STEP;
            if !last {
                break;
            }
            let slot = cursor.next as u32;
            cursor.next += 1;
            let taken = match kind {
                ChunkKind::Pending => {
                    self.waiting.at(slot).map(|waiting| self.put_waiting(waiting, &mut out))
                }
                ChunkKind::Transactions => self.transactions.at(slot).map(|part| put_part(part, &mut out)),
                ChunkKind::Bodies => self.bodies.at(slot).map(|body| put_body(body, &mut out)),
                ChunkKind::EndedTimers => {
                    let Some((next, identity, end)) = self.ended_timers.from(cursor.next - 1).next() else {
                        break;
                    };
                    cursor.next = next;
                    put_timer_end(*identity, end, &mut out);
                    Some(())
                }
                _ => {
                    let Some((next, txn, end)) = self.ended_transactions.from(cursor.next - 1).next() else {
                        break;
                    };
                    cursor.next = next;
                    put_resolution(*txn, end, &mut out);
                    Some(())
                }
            };
            items += u32::from(taken.is_some());
        }
        if last && out.len() < CHECKPOINT_CHUNK_TARGET {
            *cursor = CaptureCursor { table: cursor.table + 1, next: 0 };
        }
        Some((kind, items, out))
    }

    fn put_waiting(&self, waiting: &Waiting, out: &mut Vec<u8>) {
        let item = PendingItem {
            txn: self.transaction_of(waiting).map_or(0, |part| part.txn).into(),
            identity: waiting.identity.0.into(),
            at: waiting.at.0.into(),
            due_ms: waiting.due_ms.into(),
            partition: waiting.partition.0.into(),
            len: waiting.len.into(),
            count: waiting.count.into(),
            payload_crc: waiting.payload_crc.into(),
        };
        out.extend_from_slice(item.as_bytes());
    }

    /// Takes the items of a chunk that `capture` has made.
    pub(crate) fn restore(&mut self, kind: ChunkKind, items: u32, payload: &[u8]) -> Result<(), Corruption> {
        let mut rest = payload;
        for _ in 0..items {
            match kind {
                ChunkKind::Pending => self.restore_waiting(take(&mut rest)?),
                ChunkKind::Transactions => self.restore_part(&mut rest)?,
                ChunkKind::Bodies => self.restore_body(take(&mut rest)?),
                ChunkKind::EndedTimers => {
                    let item: &EndedTimerItem = take(&mut rest)?;
                    let delivered = end_of(item.end)?;
                    let end = TimerEnd { delivered, time_ms: item.time_ms.get(), durable_at: Lsn(0) };
                    self.ended_timers.insert(item.identity.get(), end);
                }
                ChunkKind::EndedTransactions => {
                    let item: &EndedTransactionItem = take(&mut rest)?;
                    let resolution = Resolution {
                        committed: end_of(item.end)?,
                        time_ms: item.time_ms.get(),
                        halves: item.halves.get(),
                        positions: item.positions.get(),
                        durable_at: Lsn(0),
                    };
                    self.ended_transactions.insert(item.txn.get(), resolution);
                }
                _ => return Err(wrong("chunk kind", kind as u64)),
            }
        }
        Ok(())
    }

    fn restore_waiting(&mut self, item: &PendingItem) {
        let txn = item.txn.get();
        let identity = Lsn(item.identity.get());
        let number = if txn == 0 {
            0
        } else {
            let (number, part) = self.transactions.ensure(txn);
            part.insert(identity, item.len.get());
            number + 1
        };
        self.put(Waiting {
            identity,
            at: Lsn(item.at.get()),
            due_ms: item.due_ms.get(),
            partition: PartitionId(item.partition.get()),
            len: item.len.get(),
            count: item.count.get(),
            payload_crc: item.payload_crc.get(),
            txn: number,
        });
    }

    fn restore_body(&mut self, item: &BodyItem) {
        let body = Body {
            identity: Lsn(item.identity.get()),
            at: Lsn(item.at.get()),
            last_bind: Lsn(item.last_bind.get()),
            len: item.len.get(),
            payload_crc: item.payload_crc.get(),
        };
        if self.bodies.get(body.identity.0).is_none() {
            self.bodies.insert(body);
            self.body_bytes += u64::from(body.len);
        }
    }

    fn restore_part(&mut self, rest: &mut &[u8]) -> Result<(), Corruption> {
        let item: &TransactionItem = take(rest)?;
        let group_len = usize::from(item.group_len);
        let (group, behind) =
            rest.split_at_checked(group_len).ok_or_else(|| wrong("group_len", group_len as u64))?;
        let group = std::str::from_utf8(group).map_err(|_| wrong("group", group_len as u64))?;
        *rest = behind;
        let mut positions = Vec::new();
        for _ in 0..item.positions.get() {
            let position: &PositionItem = take(rest)?;
            positions.push(Position {
                group: position.group.get(),
                instance: position.instance.get(),
                partition: PartitionId(position.partition.get()),
                offset: position.offset.get(),
            });
        }
        let (_, part) = self.transactions.ensure(item.txn.get());
        part.group = group.into();
        part.since_ms = item.since_ms.get();
        part.check_after_ms = item.check_after_ms.get();
        part.attempts = item.attempts.get();
        part.parked = item.parked == 1;
        part.positions = positions;
        part.decision = (item.decided_ms.get() != 0).then(|| Decision {
            participants: item.participants.get(),
            time_ms: item.decided_ms.get(),
            halves: item.decided_halves.get(),
            positions: item.decided_positions.get(),
        });
        Ok(())
    }
}

fn wrong(field: &'static str, found: u64) -> Corruption {
    Corruption::new("checkpoint", field, Damage::Field, 0, found)
}

fn take<'a, T>(rest: &mut &'a [u8]) -> Result<&'a T, Corruption>
where
    T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    let (item, behind) = T::ref_from_prefix(rest).map_err(|_| wrong("item", rest.len() as u64))?;
    *rest = behind;
    Ok(item)
}

/// 1 is what was meant to happen, 2 is not.
fn end_of(end: u8) -> Result<bool, Corruption> {
    match end {
        1 => Ok(true),
        2 => Ok(false),
        other => Err(wrong("end", u64::from(other))),
    }
}

fn put_part(part: &Part, out: &mut Vec<u8>) {
    let mut item = TransactionItem::new_zeroed();
    item.txn = part.txn.into();
    item.since_ms = part.since_ms.into();
    if let Some(decision) = &part.decision {
        item.decided_ms = decision.time_ms.into();
        item.participants = decision.participants.into();
        item.decided_halves = decision.halves.into();
        item.decided_positions = decision.positions.into();
    }
    item.check_after_ms = part.check_after_ms.into();
    item.positions = (part.positions.len() as u32).into();
    item.attempts = part.attempts.into();
    item.parked = u8::from(part.parked);
    item.group_len = part.group.len() as u8;
    out.extend_from_slice(item.as_bytes());
    out.extend_from_slice(part.group.as_bytes());
    for position in &part.positions {
        let item = PositionItem {
            group: position.group.into(),
            instance: position.instance.into(),
            offset: position.offset.into(),
            partition: position.partition.0.into(),
            reserved: 0.into(),
        };
        out.extend_from_slice(item.as_bytes());
    }
}

fn put_body(body: &Body, out: &mut Vec<u8>) {
    let item = BodyItem {
        identity: body.identity.0.into(),
        at: body.at.0.into(),
        last_bind: body.last_bind.0.into(),
        len: body.len.into(),
        payload_crc: body.payload_crc.into(),
    };
    out.extend_from_slice(item.as_bytes());
}

fn put_timer_end(identity: u64, end: &TimerEnd, out: &mut Vec<u8>) {
    let item = EndedTimerItem {
        identity: identity.into(),
        time_ms: end.time_ms.into(),
        end: if end.delivered { 1 } else { 2 },
        reserved: [0; 7],
    };
    out.extend_from_slice(item.as_bytes());
}

fn put_resolution(txn: u128, end: &Resolution, out: &mut Vec<u8>) {
    let item = EndedTransactionItem {
        txn: txn.into(),
        time_ms: end.time_ms.into(),
        halves: end.halves.into(),
        positions: end.positions.into(),
        end: if end.committed { 1 } else { 2 },
        reserved: [0; 7],
    };
    out.extend_from_slice(item.as_bytes());
}
