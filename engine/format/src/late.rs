//! What becomes visible later than it was stored: the extension of HALF and DELAY frames, the BIND that gives a body
//! its offset, and the marks by which transactions and delays end.
//!
//! A body is stored once, in a HALF, DELAY or DATA frame. Its *identity* is the LSN at which it was stored first: it
//! keeps that when retention moves it. A BIND names it and gives it a place in a partition.

use crate::checksum::{Crc32c, crc32c};
use crate::corruption::{Corruption, Damage, demand, demand_zero};
use crate::frame::{Frame, FrameHeader, FrameKind, encode};
use crate::ids::{Lsn, Offset, PartitionId};
use crate::limits::{FRAME_ALIGN, FRAME_EXTENSION_MAX, FRAME_HEADER_SIZE, TOPIC_NAME_MAX};
use crate::name::check_topic_name;
use zerocopy::little_endian::{I64, U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "late frame";

/// The extension of HALF and DELAY frames; then the producer group's name, zero-padded to 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LateExtension {
    /// The transaction; 0 in a DELAY.
    pub txn: U128,
    /// Due time, Unix milliseconds; 0 in a HALF: at its commit.
    pub due_ms: I64,
    /// Time to the first check of the transaction; 0 leaves it to the server.
    pub check_after_ms: U32,
    /// Bytes of the group's name behind this.
    pub group_len: U16,
    /// Low half of the CRC-32C of the whole extension, with zero here: where the payload checksum does not hold, this
    /// says whether it is the records that are damaged, and only they.
    pub check: U16,
}

/// Payload of a BIND.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BindPayload {
    /// Identity of the body.
    pub target: U64,
    /// Bytes of its frame.
    pub target_len: U32,
    /// Payload checksum of its frame: what was stored elsewhere since does not pass.
    pub target_crc: U32,
    /// Index in the body of the first record that gets an offset; the header's `count` says how many do.
    pub first_record: U32,
    /// [`BindReason`].
    pub reason: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Offset that the record had before: of a dead letter or a replay.
    pub origin_offset: U64,
    /// Partition of that offset; 0 without one.
    pub origin_partition: U32,
    /// For whoever binds: of a dead letter, how often it was delivered.
    pub detail: U32,
    /// For whoever binds: of a dead letter or a replay, the group.
    pub owner: U64,
}

/// Payload of COMMIT, ABORT, DECISION, APPLY, DONE and CHECK; then the producer group's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TransactionMark {
    /// The transaction.
    pub txn: U128,
    /// When it was resolved, or checked; Unix milliseconds.
    pub time_ms: I64,
    /// Shards that take part, bit i for shard i; in a DECISION, else 0.
    pub participants: U64,
    /// HALF frames: of this shard, in a DECISION of all.
    pub halves: U32,
    /// Positions of groups: of this shard, in a DECISION of all.
    pub positions: U32,
    /// Checks that were handed over; in a CHECK, else 0.
    pub attempts: U16,
    /// 1: parked; in a CHECK, else 0.
    pub parked: u8,
    /// Bytes of the group's name behind this.
    pub group_len: u8,
    /// Zero.
    pub reserved: U32,
}

/// Item of a TIMER frame: a delay is cancelled or put to another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TimerItem {
    /// Identity of the body.
    pub identity: U64,
    /// New due time, Unix milliseconds; 0: cancelled.
    pub due_ms: I64,
    /// When this was said, Unix milliseconds.
    pub time_ms: I64,
}

/// Bytes of a BIND frame.
pub const BIND_SIZE: usize = FRAME_HEADER_SIZE + size_of::<BindPayload>();

const _: () = {
    assert!(size_of::<LateExtension>() == 32);
    assert!(size_of::<BindPayload>() == 48);
    assert!(size_of::<TransactionMark>() == 48);
    assert!(size_of::<TimerItem>() == 24);
    assert!(BIND_SIZE.is_multiple_of(FRAME_ALIGN));
    assert!(size_of::<LateExtension>() + TOPIC_NAME_MAX.next_multiple_of(FRAME_ALIGN) <= FRAME_EXTENSION_MAX);
};

fn field(name: &'static str, found: u64) -> Corruption {
    Corruption::new(WHAT, name, Damage::Field, 0, found)
}

/// `check` of an extension: this structure and what is behind it.
fn extension_check(head: &LateExtension, rest: &[u8]) -> u16 {
    let mut crc = Crc32c::new();
    crc.update(LateExtension { check: U16::ZERO, ..*head }.as_bytes());
    crc.update(rest);
    crc.finish() as u16
}

/// Name of a group behind a structure: `len` bytes, checked, then zeros; empty if it may be.
fn take_group(bytes: &[u8], len: usize) -> Result<&str, Corruption> {
    let (name, padding) = bytes.split_at_checked(len).ok_or_else(|| field("group_len", len as u64))?;
    if padding.len() >= FRAME_ALIGN {
        return Err(field("group_len", len as u64));
    }
    demand_zero(WHAT, "padding", padding)?;
    match name {
        [] => Ok(""),
        name => check_topic_name(name).map_err(|_| field("group", len as u64)),
    }
}

/// When records become visible, if not at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late<'a> {
    /// The transaction; 0 for a delay without one.
    pub txn: u128,
    /// Due time, Unix milliseconds; 0 in a transaction: at its commit.
    pub due_ms: i64,
    /// Time to the first check of the transaction; 0 leaves it to the server.
    pub check_after_ms: u32,
    /// The producer group that answers checks; empty for a delay.
    pub group: &'a str,
}

impl<'a> Late<'a> {
    /// Bytes of the extension.
    pub fn size(&self) -> usize {
        size_of::<LateExtension>() + self.group.len().next_multiple_of(FRAME_ALIGN)
    }

    /// What the extension of a HALF or DELAY frame says.
    pub fn parse(frame: &Frame<'a>) -> Result<Self, Corruption> {
        let bytes = frame.extension();
        let (head, rest) =
            LateExtension::ref_from_prefix(bytes).map_err(|_| field("extension_len", bytes.len() as u64))?;
        let (check, found) = (extension_check(head, rest), head.check.get());
        demand(WHAT, "check", Damage::PayloadCrc, u64::from(check), u64::from(found))?;
        let late = Self {
            txn: head.txn.get(),
            due_ms: head.due_ms.get(),
            check_after_ms: head.check_after_ms.get(),
            group: take_group(rest, usize::from(head.group_len.get()))?,
        };
        let valid = match frame.header.kind() {
            FrameKind::Half => late.txn != 0 && late.due_ms >= 0,
            FrameKind::Delay => late.txn == 0 && late.due_ms > 0 && late.group.is_empty(),
            _ => false,
        };
        if valid { Ok(late) } else { Err(field("txn or due_ms", late.due_ms as u64)) }
    }

    /// A frame of records as one that is late: HALF with a transaction, else DELAY.
    pub fn wrap(&self, frame: &[u8]) -> Vec<u8> {
        let mut head = LateExtension {
            txn: U128::new(self.txn),
            due_ms: I64::new(self.due_ms),
            check_after_ms: U32::new(self.check_after_ms),
            group_len: U16::new(self.group.len() as u16),
            check: U16::ZERO,
        };
        let size = self.size();
        let mut name = self.group.as_bytes().to_vec();
        name.resize(size - size_of::<LateExtension>(), 0);
        head.check = U16::new(extension_check(&head, &name));
        let mut bytes = Vec::with_capacity(frame.len() + size);
        bytes.extend_from_slice(&frame[..FRAME_HEADER_SIZE]);
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(&name);
        bytes.extend_from_slice(&frame[FRAME_HEADER_SIZE..]);
        let (len, crc) = (bytes.len() as u32, crc32c(&bytes[FRAME_HEADER_SIZE..]));
        if let Ok((header, _)) = FrameHeader::mut_from_prefix(bytes.as_mut_slice()) {
            header.kind = if self.txn == 0 { FrameKind::Delay } else { FrameKind::Half } as u8;
            header.len = U32::new(len);
            header.extension_len = U16::new(size as u16);
            header.payload_crc = U32::new(crc);
            header.seal();
        }
        bytes
    }
}

/// Why a body gets an offset. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BindReason {
    /// Its transaction has been committed.
    Commit = 1,
    /// Its due time has come.
    Due = 2,
    /// A group could not consume it.
    DeadLetter = 3,
    /// A dead letter goes back to where it came from.
    Replay = 4,
}

impl BindReason {
    /// The reason with this number.
    pub fn parse(number: u8) -> Option<Self> {
        [Self::Commit, Self::Due, Self::DeadLetter, Self::Replay]
            .into_iter()
            .find(|reason| *reason as u8 == number)
    }
}

/// A BIND as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Identity of the body.
    pub target: Lsn,
    /// Bytes of its frame.
    pub target_len: u32,
    /// Payload checksum of its frame.
    pub target_crc: u32,
    /// Index in the body of the first record that gets an offset.
    pub first_record: u32,
    /// Records that get one.
    pub count: u32,
    /// Why.
    pub reason: BindReason,
    /// Where the record was before; of a dead letter or a replay.
    pub origin: Option<(PartitionId, Offset)>,
    /// For whoever binds.
    pub detail: u32,
    /// For whoever binds.
    pub owner: u64,
}

impl Bind {
    /// The frame, stamped and sealed.
    pub fn encode(&self, partition: PartitionId, base_offset: Offset, timestamp_ms: i64) -> [u8; BIND_SIZE] {
        let (origin_partition, origin_offset) = self.origin.unwrap_or((PartitionId(0), Offset(0)));
        let payload = BindPayload {
            target: U64::new(self.target.0),
            target_len: U32::new(self.target_len),
            target_crc: U32::new(self.target_crc),
            first_record: U32::new(self.first_record),
            reason: self.reason as u8,
            reserved: [0; 3],
            origin_offset: U64::new(origin_offset.0),
            origin_partition: U32::new(origin_partition.0),
            detail: U32::new(self.detail),
            owner: U64::new(self.owner),
        };
        let mut header = FrameHeader::new(FrameKind::Bind, BIND_SIZE, self.count);
        header.aux = U64::new(self.target.0);
        header.payload_crc = U32::new(crc32c(payload.as_bytes()));
        header.stamp(partition, base_offset, timestamp_ms);
        let mut bytes = [0; BIND_SIZE];
        bytes[..FRAME_HEADER_SIZE].copy_from_slice(header.as_bytes());
        bytes[FRAME_HEADER_SIZE..].copy_from_slice(payload.as_bytes());
        bytes
    }

    /// What a BIND frame says, whose payload checksum was verified.
    pub fn parse(frame: &Frame<'_>) -> Result<Self, Corruption> {
        let payload = BindPayload::ref_from_bytes(frame.payload())
            .map_err(|_| field("len", frame.bytes.len() as u64))?;
        demand_zero(WHAT, "reserved", &payload.reserved)?;
        let reason =
            BindReason::parse(payload.reason).ok_or_else(|| field("reason", u64::from(payload.reason)))?;
        if frame.header.kind() != FrameKind::Bind || frame.header.count.get() == 0 {
            return Err(field("count", u64::from(frame.header.count.get())));
        }
        let origin = PartitionId(payload.origin_partition.get());
        Ok(Self {
            target: Lsn(payload.target.get()),
            target_len: payload.target_len.get(),
            target_crc: payload.target_crc.get(),
            first_record: payload.first_record.get(),
            count: frame.header.count.get(),
            reason,
            origin: (origin.0 != 0).then(|| (origin, Offset(payload.origin_offset.get()))),
            detail: payload.detail.get(),
            owner: payload.owner.get(),
        })
    }
}

/// Payload of COMMIT, ABORT, DECISION, APPLY, DONE and CHECK as values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark<'a> {
    /// The transaction.
    pub txn: u128,
    /// When it was resolved, or checked; Unix milliseconds.
    pub time_ms: i64,
    /// Shards that take part, bit i for shard i; in a DECISION.
    pub participants: u64,
    /// HALF frames: of this shard, in a DECISION of all.
    pub halves: u32,
    /// Positions of groups: of this shard, in a DECISION of all.
    pub positions: u32,
    /// Checks that were handed over; in a CHECK.
    pub attempts: u16,
    /// It is asked no more; in a CHECK.
    pub parked: bool,
    /// The producer group, where it is known; in a DECISION and a CHECK.
    pub group: &'a str,
}

impl<'a> Mark<'a> {
    /// Bytes of the frame.
    pub fn frame_size(&self) -> usize {
        (FRAME_HEADER_SIZE + size_of::<TransactionMark>() + self.group.len()).next_multiple_of(FRAME_ALIGN)
    }

    /// The frame.
    pub fn encode(&self, kind: FrameKind) -> Vec<u8> {
        let head = TransactionMark {
            txn: U128::new(self.txn),
            time_ms: I64::new(self.time_ms),
            participants: U64::new(self.participants),
            halves: U32::new(self.halves),
            positions: U32::new(self.positions),
            attempts: U16::new(self.attempts),
            parked: u8::from(self.parked),
            group_len: self.group.len() as u8,
            reserved: U32::ZERO,
        };
        let mut payload = head.as_bytes().to_vec();
        payload.extend_from_slice(self.group.as_bytes());
        encode(kind, 1, &payload)
    }

    /// What a frame of one of these kinds says, whose payload checksum was verified.
    pub fn parse(frame: &Frame<'a>) -> Result<Self, Corruption> {
        let bytes = frame.payload();
        let (head, rest) =
            TransactionMark::ref_from_prefix(bytes).map_err(|_| field("len", bytes.len() as u64))?;
        demand(WHAT, "reserved", Damage::Padding, 0, u64::from(head.reserved.get()))?;
        if head.txn.get() == 0 || head.parked > 1 {
            return Err(field("txn or parked", u64::from(head.parked)));
        }
        Ok(Self {
            txn: head.txn.get(),
            time_ms: head.time_ms.get(),
            participants: head.participants.get(),
            halves: head.halves.get(),
            positions: head.positions.get(),
            attempts: head.attempts.get(),
            parked: head.parked == 1,
            group: take_group(rest, usize::from(head.group_len))?,
        })
    }
}

/// A TIMER frame.
pub fn encode_timers(items: &[TimerItem]) -> Vec<u8> {
    encode(FrameKind::Timer, items.len() as u32, items.as_bytes())
}

/// The items of a TIMER frame, whose payload checksum was verified.
pub fn parse_timers<'a>(frame: &Frame<'a>) -> Result<&'a [TimerItem], Corruption> {
    let items =
        <[TimerItem]>::ref_from_bytes(frame.payload()).map_err(|_| field("len", frame.bytes.len() as u64))?;
    demand(WHAT, "count", Damage::Field, items.len() as u64, u64::from(frame.header.count.get()))?;
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{FrameBuilder, Payload, ProducerStamp, Record};

    #[test]
    fn a_late_frame_keeps_its_records_and_says_when() {
        let mut builder = FrameBuilder::new(0, 1 << 20);
        builder.push(&Record { body: b"body", key: Some(b"k"), ..Record::default() }).unwrap();
        let data = builder.finish(ProducerStamp::default(), crate::frame::Codec::None, &mut |_| None);
        for (txn, group, kind) in [(7u128, "payments", FrameKind::Half), (0, "", FrameKind::Delay)] {
            let late = Late { txn, due_ms: 5, check_after_ms: 3, group };
            let bytes = late.wrap(&data);
            let frame = Frame::parse(&bytes).unwrap();
            frame.verify_payload().unwrap();
            assert_eq!((frame.header.kind(), bytes.len()), (kind, data.len() + late.size()));
            assert_eq!(frame.payload(), Frame::parse(&data).unwrap().payload());
            assert_eq!(Payload::parse(&frame).unwrap().entries().count(), 1);
            assert_eq!(Late::parse(&frame), Ok(late));
        }
        let late = Late { txn: 7, due_ms: 5, check_after_ms: 3, group: "payments" };
        let bytes = late.wrap(&data);
        for bit in 64 * 8..(64 + late.size()) * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Late::parse(&Frame::parse(&bad).unwrap()).is_err(), "bit {bit}");
        }
        for wrong in [
            Late { txn: 0, due_ms: 0, check_after_ms: 0, group: "" },
            Late { txn: 0, due_ms: 1, check_after_ms: 0, group: "g" },
            Late { txn: 1, due_ms: -1, check_after_ms: 0, group: "g" },
            Late { txn: 1, due_ms: 0, check_after_ms: 0, group: "no name" },
        ] {
            let bytes = wrong.wrap(&data);
            assert!(Late::parse(&Frame::parse(&bytes).unwrap()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn binds_marks_and_timers_come_back() {
        let bind = Bind {
            target: Lsn(8256),
            target_len: 128,
            target_crc: 9,
            first_record: 3,
            count: 2,
            reason: BindReason::DeadLetter,
            origin: Some((PartitionId(4), Offset(17))),
            detail: 5,
            owner: 6,
        };
        let bytes = bind.encode(PartitionId(2), Offset(40), 1000);
        let frame = Frame::parse(&bytes).unwrap();
        frame.verify_payload().unwrap();
        assert_eq!(Bind::parse(&frame), Ok(bind));
        assert_eq!(frame.header.end_offset(), Offset(42));
        let mark = Mark {
            txn: 1 << 100,
            time_ms: 7,
            participants: 5,
            halves: 3,
            positions: 2,
            attempts: 1,
            parked: true,
            group: "payments",
        };
        let bytes = mark.encode(FrameKind::Decision);
        assert_eq!(bytes.len(), mark.frame_size());
        assert_eq!(Mark::parse(&Frame::parse(&bytes).unwrap()), Ok(mark));
        let items = [TimerItem { identity: U64::new(8256), due_ms: I64::new(3), time_ms: I64::new(1) }; 3];
        let bytes = encode_timers(&items);
        assert_eq!(parse_timers(&Frame::parse(&bytes).unwrap()), Ok(&items[..]));
    }
}
