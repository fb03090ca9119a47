//! How far groups and subscribers are: payloads of CURSOR and ACK frames, and their items in checkpoints.
//!
//! A CURSOR entry replaces what was known of its key; an ACK entry adds to it, unless it says that it replaces. Each
//! state remembers the LSN of the frame that changed it last, and a frame before that changes nothing: replay may
//! begin anywhere before what a checkpoint reflects.

use crate::corruption::{Corruption, Damage, demand_zero};
use crate::ids::{GroupId, Lsn, Offset, PartitionId};
use zerocopy::little_endian::{I64, U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "cursor";
/// In a [`CursorEntry`]: there is no position any more.
const FORGOTTEN: u64 = u64::MAX;
/// In an [`AckEntryHeader`]: what was known before is void.
const REPLACES: u32 = 1;

/// In front of the entries of a CURSOR frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CursorHeader {
    /// The transaction with which they take effect; 0: at once.
    pub txn: U128,
    /// [`CursorEntry`]s that follow.
    pub entries: U32,
    /// Zero.
    pub reserved: U32,
}

/// A position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CursorEntry {
    /// Broadcast instance; otherwise 0.
    pub instance: U64,
    /// First offset that is not consumed; 2^64 - 1: the position is forgotten.
    pub offset: U64,
    /// Group.
    pub group: U32,
    /// Partition.
    pub partition: U32,
}

/// In front of the entries of an ACK frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AckHeader {
    /// Entries that follow.
    pub entries: U32,
    /// Zero.
    pub reserved: U32,
}

/// What a group has done in a partition; then `ranges` [`AckRange`]s and `retries` [`RetryEntry`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AckEntryHeader {
    /// Group.
    pub group: U32,
    /// Partition.
    pub partition: U32,
    /// Everything below it is consumed.
    pub watermark: U64,
    /// Ranges that follow.
    pub ranges: U32,
    /// Retries that follow those.
    pub retries: U32,
    /// 1: what was known before is void, and the watermark may lie below the one before.
    pub flags: U32,
    /// Zero.
    pub reserved: U32,
}

/// Offsets that are consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AckRange {
    /// The first one.
    pub start: U64,
    /// Behind the last one.
    pub end: U64,
}

/// A record whose delivery has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RetryEntry {
    /// Its offset.
    pub offset: U64,
    /// When it may be delivered again, Unix milliseconds.
    pub visible_ms: I64,
    /// Deliveries so far; 0: nothing is remembered of it any more.
    pub attempt: U16,
    /// Zero.
    pub reserved: [u8; 6],
}

/// In front of the items of a checkpoint's chunk of kind Cursors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CursorChunkHeader {
    /// [`CursorChunkKind`].
    pub what: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// A position with the frame that set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CursorItem {
    /// LSN of the frame that set it.
    pub lsn: U64,
    /// Broadcast instance; otherwise 0.
    pub instance: U64,
    /// First offset that is not consumed.
    pub offset: U64,
    /// Group.
    pub group: U32,
    /// Partition.
    pub partition: U32,
}

const _: () = {
    assert!(size_of::<CursorHeader>() == 24);
    assert!(size_of::<CursorEntry>() == 24);
    assert!(size_of::<AckHeader>() == 8);
    assert!(size_of::<AckEntryHeader>() == 32);
    assert!(size_of::<AckRange>() == 16);
    assert!(size_of::<RetryEntry>() == 24);
    assert!(size_of::<CursorItem>() == 32);
};

/// What the items of a chunk of kind Cursors are. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CursorChunkKind {
    /// [`CursorItem`]s.
    Positions = 1,
    /// An LSN of 8 bytes and an ACK entry that replaces.
    Acks = 2,
}

impl CursorChunkKind {
    /// Takes the header off the front of a chunk's items.
    pub fn take(bytes: &mut &[u8]) -> Result<Self, Corruption> {
        let header: CursorChunkHeader = take(bytes, "chunk header")?;
        demand_zero(WHAT, "reserved", &header.reserved)?;
        [Self::Positions, Self::Acks]
            .into_iter()
            .find(|kind| *kind as u8 == header.what)
            .ok_or_else(|| field("what", u64::from(header.what)))
    }

    /// Appends the header.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(CursorChunkHeader { what: self as u8, reserved: [0; 7] }.as_bytes());
    }
}

/// Whose position, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorKey {
    /// The group.
    pub group: GroupId,
    /// The partition.
    pub partition: PartitionId,
    /// Broadcast instance; otherwise 0.
    pub instance: u64,
}

impl CursorKey {
    /// The position of a group that is not one of an instance.
    pub fn shared(group: GroupId, partition: PartitionId) -> Self {
        Self { group, partition, instance: 0 }
    }
}

/// A position that is set, or forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorChange {
    /// Whose.
    pub key: CursorKey,
    /// First offset that is not consumed; `None`: there is no position any more.
    pub offset: Option<Offset>,
}

impl From<CursorChange> for CursorEntry {
    fn from(change: CursorChange) -> Self {
        Self {
            instance: U64::new(change.key.instance),
            offset: U64::new(change.offset.map_or(FORGOTTEN, |offset| offset.0)),
            group: U32::new(change.key.group.0),
            partition: U32::new(change.key.partition.0),
        }
    }
}

impl From<CursorEntry> for CursorChange {
    fn from(entry: CursorEntry) -> Self {
        let key = CursorKey {
            group: GroupId(entry.group.get()),
            partition: PartitionId(entry.partition.get()),
            instance: entry.instance.get(),
        };
        let offset = entry.offset.get();
        Self { key, offset: (offset != FORGOTTEN).then_some(Offset(offset)) }
    }
}

/// Payload of a CURSOR frame.
pub fn encode_cursors(txn: u128, changes: &[CursorChange]) -> Vec<u8> {
    let header =
        CursorHeader { txn: U128::new(txn), entries: U32::new(changes.len() as u32), reserved: U32::ZERO };
    let mut out = Vec::with_capacity(size_of::<CursorHeader>() + size_of_val(changes));
    out.extend_from_slice(header.as_bytes());
    changes.iter().for_each(|change| out.extend_from_slice(CursorEntry::from(*change).as_bytes()));
    out
}

/// Transaction and entries of a CURSOR frame's payload.
pub fn decode_cursors(mut payload: &[u8]) -> Result<(u128, &[CursorEntry]), Corruption> {
    let header: CursorHeader = take(&mut payload, "header")?;
    demand_zero(WHAT, "reserved", header.reserved.as_bytes())?;
    let entries = slice(&mut payload, header.entries.get(), "entries")?;
    demand_zero(WHAT, "padding", payload)?;
    Ok((header.txn.get(), entries))
}

/// A record whose delivery has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Its offset.
    pub offset: Offset,
    /// Deliveries so far; 0: nothing is remembered of it any more.
    pub attempt: u16,
    /// When it may be delivered again, Unix milliseconds.
    pub visible_ms: i64,
}

/// What a group has done in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckChange {
    /// The group.
    pub group: GroupId,
    /// The partition.
    pub partition: PartitionId,
    /// Everything below it is consumed.
    pub watermark: Offset,
    /// What was known before is void.
    pub replaces: bool,
    /// Offsets that are consumed: first, and behind the last.
    pub ranges: Vec<(Offset, Offset)>,
    /// Records whose delivery has failed.
    pub retries: Vec<Retry>,
}

impl AckChange {
    /// Nothing new but the watermark.
    pub fn new(group: GroupId, partition: PartitionId, watermark: Offset) -> Self {
        Self { group, partition, watermark, replaces: false, ranges: Vec::new(), retries: Vec::new() }
    }

    /// Bytes of so many ranges and retries with their header.
    pub const fn size(ranges: usize, retries: usize) -> usize {
        size_of::<AckEntryHeader>() + ranges * size_of::<AckRange>() + retries * size_of::<RetryEntry>()
    }

    /// Appends the entry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let header = AckEntryHeader {
            group: U32::new(self.group.0),
            partition: U32::new(self.partition.0),
            watermark: U64::new(self.watermark.0),
            ranges: U32::new(self.ranges.len() as u32),
            retries: U32::new(self.retries.len() as u32),
            flags: U32::new(if self.replaces { REPLACES } else { 0 }),
            reserved: U32::ZERO,
        };
        out.extend_from_slice(header.as_bytes());
        for (start, end) in &self.ranges {
            let range = AckRange { start: U64::new(start.0), end: U64::new(end.0) };
            out.extend_from_slice(range.as_bytes());
        }
        for retry in &self.retries {
            let mut entry = RetryEntry::new_zeroed();
            entry.offset = U64::new(retry.offset.0);
            entry.visible_ms = I64::new(retry.visible_ms);
            entry.attempt = U16::new(retry.attempt);
            out.extend_from_slice(entry.as_bytes());
        }
    }

    /// Takes an entry off the front of `bytes`.
    pub fn take(bytes: &mut &[u8]) -> Result<Self, Corruption> {
        let header: AckEntryHeader = take(bytes, "ack")?;
        demand_zero(WHAT, "reserved", header.reserved.as_bytes())?;
        if header.flags.get() > REPLACES {
            return Err(field("flags", u64::from(header.flags.get())));
        }
        let ranges: &[AckRange] = slice(bytes, header.ranges.get(), "ranges")?;
        let retries: &[RetryEntry] = slice(bytes, header.retries.get(), "retries")?;
        if let Some(bad) = ranges.iter().find(|range| range.start.get() >= range.end.get()) {
            return Err(field("range", bad.start.get()));
        }
        retries.iter().try_for_each(|retry| demand_zero(WHAT, "reserved", &retry.reserved))?;
        Ok(Self {
            group: GroupId(header.group.get()),
            partition: PartitionId(header.partition.get()),
            watermark: Offset(header.watermark.get()),
            replaces: header.flags.get() == REPLACES,
            ranges: ranges.iter().map(|range| (Offset(range.start.get()), Offset(range.end.get()))).collect(),
            retries: retries
                .iter()
                .map(|retry| Retry {
                    offset: Offset(retry.offset.get()),
                    attempt: retry.attempt.get(),
                    visible_ms: retry.visible_ms.get(),
                })
                .collect(),
        })
    }
}

/// Payload of an ACK frame.
pub fn encode_acks(changes: &[AckChange]) -> Vec<u8> {
    let header = AckHeader { entries: U32::new(changes.len() as u32), reserved: U32::ZERO };
    let mut out = header.as_bytes().to_vec();
    changes.iter().for_each(|change| change.encode(&mut out));
    out
}

/// Entries of an ACK frame's payload.
pub fn decode_acks(mut payload: &[u8]) -> Result<Vec<AckChange>, Corruption> {
    let header: AckHeader = take(&mut payload, "header")?;
    demand_zero(WHAT, "reserved", header.reserved.as_bytes())?;
    let count = header.entries.get() as usize;
    if count > payload.len() / size_of::<AckEntryHeader>() {
        return Err(field("entries", count as u64));
    }
    let changes = (0..count).map(|_| AckChange::take(&mut payload)).collect::<Result<_, _>>()?;
    demand_zero(WHAT, "padding", payload)?;
    Ok(changes)
}

impl CursorItem {
    /// A position that the frame at `lsn` has set.
    pub fn new(key: CursorKey, offset: Offset, lsn: Lsn) -> Self {
        Self {
            lsn: U64::new(lsn.0),
            instance: U64::new(key.instance),
            offset: U64::new(offset.0),
            group: U32::new(key.group.0),
            partition: U32::new(key.partition.0),
        }
    }

    /// Whose.
    pub fn key(&self) -> CursorKey {
        CursorKey {
            group: GroupId(self.group.get()),
            partition: PartitionId(self.partition.get()),
            instance: self.instance.get(),
        }
    }
}

fn field(name: &'static str, found: u64) -> Corruption {
    Corruption::new(WHAT, name, Damage::Field, 0, found)
}

fn take<T: FromBytes>(bytes: &mut &[u8], name: &'static str) -> Result<T, Corruption> {
    let (value, rest) = T::read_from_prefix(bytes).map_err(|_| field(name, bytes.len() as u64))?;
    *bytes = rest;
    Ok(value)
}

fn slice<'a, T: FromBytes + Immutable + KnownLayout + Unaligned>(
    bytes: &mut &'a [u8],
    count: u32,
    name: &'static str,
) -> Result<&'a [T], Corruption> {
    let (items, rest) = <[T]>::ref_from_prefix_with_elems(bytes, count as usize)
        .map_err(|_| field(name, u64::from(count)))?;
    *bytes = rest;
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_and_acks_come_back_and_nonsense_is_refused() {
        let key = CursorKey { group: GroupId(7), partition: PartitionId(3), instance: 9 };
        let changes = [CursorChange { key, offset: Some(Offset(5)) }, CursorChange { key, offset: None }];
        let bytes = encode_cursors(11, &changes);
        let (txn, entries) = decode_cursors(&bytes).unwrap();
        let back: Vec<CursorChange> = entries.iter().map(|entry| (*entry).into()).collect();
        assert_eq!((txn, &back[..]), (11, &changes[..]));

        let mut change = AckChange::new(GroupId(1), PartitionId(2), Offset(3));
        change.ranges = vec![(Offset(5), Offset(6)), (Offset(8), Offset(10))];
        change.retries = vec![Retry { offset: Offset(4), attempt: 2, visible_ms: -1 }];
        let bytes = encode_acks(&[change.clone(), AckChange { replaces: true, ..change.clone() }]);
        assert_eq!(bytes.len(), 8 + 2 * AckChange::size(2, 1));
        let back = decode_acks(&bytes).unwrap();
        assert_eq!((&back[0], back[1].replaces), (&change, true));

        for cut in 0..bytes.len() {
            assert!(decode_acks(&bytes[..cut]).is_err(), "cut to {cut}");
        }
        let mut many = bytes.clone();
        many[..4].fill(0xff);
        assert!(decode_acks(&many).is_err());
        let empty = AckChange { ranges: vec![(Offset(6), Offset(6))], ..change };
        assert!(decode_acks(&encode_acks(&[empty])).is_err());
    }
}
