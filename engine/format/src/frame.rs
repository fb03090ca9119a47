//! The frame: unit of append, checksum and fetch. The same bytes on the wire, in memory and on disk.
//!
//! ```text
//! 0        64            64+ext          len
//! | header | extension   | payload       |      len is a multiple of 8; padding inside the payload is zero
//! ```
//!
//! The producer encodes it with [`crate::record::FrameBuilder`]; the shard stamps offset, partition and time
//! into the header and changes nothing else.
//!
//! A frame is valid if, in this order (`parse` returns the first that fails):
//! - F1 64 bytes are there,
//! - F2 the header checksum over bytes 0..60 holds (only now is anything in it believed),
//! - F3 kind, codec and flags are known,
//! - F4 length, extension length and count are possible,
//! - F5 `len` bytes are there,
//! - F6 (`verify_payload`) the payload checksum over bytes 64..len holds.

use crate::checksum::crc32c;
use crate::corruption::{Corruption, Damage, demand};
use crate::ids::{Offset, PartitionId, ProducerId};
use crate::limits::{FRAME_ALIGN, FRAME_EXTENSION_MAX, FRAME_HEADER_SIZE, FRAME_RECORDS_MAX, FRAME_SIZE_MAX};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "frame";

/// What a frame means. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Records with offsets.
    Data = 1,
    /// Records of an open transaction: no offset yet, invisible.
    Half = 2,
    /// Records that become visible at a due time: no offset yet.
    Delay = 3,
    /// Gives an offset to a body stored earlier.
    Bind = 4,
    /// A body that was bound, moved here by recycling.
    Bound = 5,
    /// End of a transaction: all its binds are valid.
    Commit = 6,
    /// End of a transaction: its halves are void.
    Abort = 7,
    /// A coordinator's commit point for several shards.
    Decision = 8,
    /// A participant's binds for a decision.
    Apply = 9,
    /// A decision that every participant has applied.
    Done = 10,
    /// Positions of groups and subscribers.
    Cursor = 11,
    /// Individual acknowledgements and retries of a group.
    Ack = 12,
    /// A topic made, changed or deleted.
    Topic = 13,
    /// A check of a transaction was handed over.
    Check = 14,
    /// A group made, changed or deleted.
    Group = 15,
    /// Some records of a stored frame, cut out for one reader: on the wire only.
    Slice = 16,
    /// Delays that were cancelled or put to another time.
    Timer = 17,
}

const _: () = {
    let mut index = 0;
    while index < FrameKind::ALL.len() {
        assert!(FrameKind::ALL[index] as usize == index + 1);
        index += 1;
    }
};

impl FrameKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::Data,
        Self::Half,
        Self::Delay,
        Self::Bind,
        Self::Bound,
        Self::Commit,
        Self::Abort,
        Self::Decision,
        Self::Apply,
        Self::Done,
        Self::Cursor,
        Self::Ack,
        Self::Topic,
        Self::Check,
        Self::Group,
        Self::Slice,
        Self::Timer,
    ];

    /// The kind with this number.
    pub fn parse(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Its records have offsets: it is in the index of its partition.
    pub fn has_offsets(self) -> bool {
        matches!(self, Self::Data | Self::Bind)
    }
}

/// How the body blocks of a payload are compressed. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Codec {
    /// Not at all.
    #[default]
    None = 0,
    /// LZ4 block format.
    Lz4 = 1,
    /// Zstandard frames.
    Zstd = 2,
}

impl Codec {
    /// The codec with this number.
    pub fn parse(number: u8) -> Option<Self> {
        [Self::None, Self::Lz4, Self::Zstd].into_iter().find(|codec| *codec as u8 == number)
    }
}

/// The first 64 bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    /// Bytes of the whole frame; a multiple of 8.
    pub len: U32,
    /// [`FrameKind`].
    pub kind: u8,
    /// [`Codec`] of the body blocks.
    pub codec: u8,
    /// None are defined: zero.
    pub flags: U16,
    /// Offset of the first record; 0 until the shard stamps it.
    pub base_offset: U64,
    /// Partition; 0 until the shard stamps it.
    pub partition: U32,
    /// Records in the payload.
    pub count: U32,
    /// Producer, or 0 for one that is not idempotent.
    pub producer_id: U64,
    /// Raised by the producer when it gives up a sequence.
    pub producer_epoch: U16,
    /// Bytes of the extension; a multiple of 8.
    pub extension_len: U16,
    /// Sequence of the first record, counted per producer epoch and partition.
    pub base_sequence: U32,
    /// Append time in Unix milliseconds, never less than the partition's last; 0 until stamped.
    pub timestamp: I64,
    /// Referenced LSN, where the kind has one.
    pub aux: U64,
    /// CRC-32C of bytes 64..len.
    pub payload_crc: U32,
    /// CRC-32C of bytes 0..60.
    pub header_crc: U32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<FrameHeader>() == FRAME_HEADER_SIZE);
    assert!(offset_of!(FrameHeader, base_offset) == 8);
    assert!(offset_of!(FrameHeader, partition) == 16);
    assert!(offset_of!(FrameHeader, producer_id) == 24);
    assert!(offset_of!(FrameHeader, producer_epoch) == 32);
    assert!(offset_of!(FrameHeader, base_sequence) == 36);
    assert!(offset_of!(FrameHeader, timestamp) == 40);
    assert!(offset_of!(FrameHeader, aux) == 48);
    assert!(offset_of!(FrameHeader, payload_crc) == 56);
    assert!(offset_of!(FrameHeader, header_crc) == 60);
};

impl FrameHeader {
    /// A header with everything at zero but kind, length and count. Not sealed.
    pub fn new(kind: FrameKind, len: usize, count: u32) -> Self {
        assert!(len <= FRAME_SIZE_MAX, "frame of {len} bytes");
        assert!(len.is_multiple_of(FRAME_ALIGN), "frame of {len} bytes is not aligned");
        let mut header = Self::new_zeroed();
        header.len = U32::new(len as u32);
        header.kind = kind as u8;
        header.count = U32::new(count);
        header
    }

    /// Parses and checks the header at the front of `bytes` (F1 to F4).
    pub fn parse(bytes: &[u8]) -> Result<&Self, Corruption> {
        let Ok((header, _)) = Self::ref_from_prefix(bytes) else {
            return Err(Corruption::new(
                WHAT,
                "header",
                Damage::Truncated,
                FRAME_HEADER_SIZE as u64,
                bytes.len() as u64,
            ));
        };
        let crc = header.compute_crc();
        demand(WHAT, "header_crc", Damage::HeaderCrc, u64::from(crc), u64::from(header.header_crc.get()))?;
        let field =
            |name, limit: usize, found: u64| Corruption::new(WHAT, name, Damage::Field, limit as u64, found);
        if FrameKind::parse(header.kind).is_none() {
            return Err(field("kind", FrameKind::ALL.len(), u64::from(header.kind)));
        }
        if Codec::parse(header.codec).is_none() {
            return Err(field("codec", 2, u64::from(header.codec)));
        }
        demand(WHAT, "flags", Damage::Padding, 0, u64::from(header.flags.get()))?;
        let len = header.len();
        if !(FRAME_HEADER_SIZE..=FRAME_SIZE_MAX).contains(&len) || !len.is_multiple_of(FRAME_ALIGN) {
            return Err(field("len", FRAME_SIZE_MAX, len as u64));
        }
        let extension_len = usize::from(header.extension_len.get());
        if extension_len > FRAME_EXTENSION_MAX.min(len - FRAME_HEADER_SIZE)
            || !extension_len.is_multiple_of(FRAME_ALIGN)
        {
            return Err(field("extension_len", FRAME_EXTENSION_MAX, extension_len as u64));
        }
        if header.count.get() as usize > FRAME_RECORDS_MAX {
            return Err(field("count", FRAME_RECORDS_MAX, u64::from(header.count.get())));
        }
        Ok(header)
    }

    /// CRC-32C of bytes 0..60.
    pub fn compute_crc(&self) -> u32 {
        crc32c(&self.as_bytes()[..FRAME_HEADER_SIZE - 4])
    }

    /// Writes the header checksum. The last thing done to a header.
    pub fn seal(&mut self) {
        self.header_crc = U32::new(self.compute_crc());
    }

    /// What the shard adds to a producer's frame; seals.
    pub fn stamp(&mut self, partition: PartitionId, base_offset: Offset, timestamp_ms: i64) {
        self.partition = U32::new(partition.0);
        self.base_offset = U64::new(base_offset.0);
        self.timestamp = I64::new(timestamp_ms);
        self.seal();
    }

    /// Bytes of the whole frame.
    pub fn len(&self) -> usize {
        self.len.get() as usize
    }

    /// Never: a frame has at least its header. For lints only.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The kind; `parse` has checked that it is one.
    pub fn kind(&self) -> FrameKind {
        FrameKind::parse(self.kind).unwrap_or(FrameKind::Data)
    }

    /// The codec; `parse` has checked that it is one.
    pub fn codec(&self) -> Codec {
        Codec::parse(self.codec).unwrap_or_default()
    }

    /// The partition.
    pub fn partition(&self) -> PartitionId {
        PartitionId(self.partition.get())
    }

    /// Offset of the first record.
    pub fn base_offset(&self) -> Offset {
        Offset(self.base_offset.get())
    }

    /// First offset behind this frame.
    pub fn end_offset(&self) -> Offset {
        self.base_offset().plus(u64::from(self.count.get()))
    }

    /// The producer.
    pub fn producer_id(&self) -> ProducerId {
        ProducerId(self.producer_id.get())
    }
}

/// A whole frame in a slice.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its header.
    pub header: &'a FrameHeader,
    /// All its bytes, header included.
    pub bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame at the front of `bytes` (F1 to F5; the payload is not looked at).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Corruption> {
        let header = FrameHeader::parse(bytes)?;
        match bytes.get(..header.len()) {
            Some(bytes) => Ok(Self { header, bytes }),
            None => {
                Err(Corruption::new(WHAT, "len", Damage::Truncated, header.len() as u64, bytes.len() as u64))
            }
        }
    }

    /// Checks F6.
    pub fn verify_payload(&self) -> Result<(), Corruption> {
        let crc = crc32c(&self.bytes[FRAME_HEADER_SIZE..]);
        let found = self.header.payload_crc.get();
        demand(WHAT, "payload_crc", Damage::PayloadCrc, u64::from(crc), u64::from(found))
    }

    /// The extension.
    pub fn extension(&self) -> &'a [u8] {
        &self.bytes[FRAME_HEADER_SIZE..FRAME_HEADER_SIZE + usize::from(self.header.extension_len.get())]
    }

    /// The payload behind the extension.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[FRAME_HEADER_SIZE + usize::from(self.header.extension_len.get())..]
    }
}

/// Frames that stand one behind the other in `bytes`. Ends after the first that is not valid (F1 to F5).
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, Corruption>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let frame = Frame::parse(rest);
        rest = match &frame {
            Ok(frame) => &rest[frame.bytes.len()..],
            Err(_) => &[],
        };
        Some(frame)
    })
}

/// Builds a frame of any kind around `payload`, zero-padded, with its checksums.
pub fn encode(kind: FrameKind, count: u32, payload: &[u8]) -> Vec<u8> {
    let len = (FRAME_HEADER_SIZE + payload.len()).next_multiple_of(FRAME_ALIGN);
    let mut bytes = Vec::with_capacity(len);
    bytes.resize(FRAME_HEADER_SIZE, 0);
    bytes.extend_from_slice(payload);
    bytes.resize(len, 0);
    let mut header = FrameHeader::new(kind, len, count);
    header.payload_crc = U32::new(crc32c(&bytes[FRAME_HEADER_SIZE..]));
    header.seal();
    bytes[..FRAME_HEADER_SIZE].copy_from_slice(header.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_found() {
        let good = encode(FrameKind::Data, 1, b"what a payload may be");
        let whole = |bytes: &[u8]| Frame::parse(bytes).and_then(|frame| frame.verify_payload());
        assert_eq!(whole(&good), Ok(()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(whole(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(whole(&good[..len]).is_err(), "cut to {len}");
        }
    }
}
