//! Header of a segment: the first two blocks of a slot file, the same 4 KiB twice, written together.
//!
//! One copy is enough to read the segment. A header that is torn in both copies was never durable, because no
//! group is submitted before it is.

use crate::FormatVersion;
use crate::checksum::crc32c;
use crate::corruption::{Corruption, Damage, demand, demand_zero};
use crate::ids::{Epoch, Lsn, SegmentSeq, ShardId, SlotId};
use crate::limits::{BLOCK_SIZE, SEGMENT_HEADER_SIZE, SEGMENT_SIZE_MAX};
use zerocopy::little_endian::{I64, U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "segment header";
/// `RINGSEG1`
pub const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"RINGSEG1");
/// Position of a segment's first group.
pub const FIRST_GROUP: u64 = SEGMENT_HEADER_SIZE as u64;

/// One 4 KiB copy of the header.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentHeader {
    /// [`SEGMENT_MAGIC`].
    pub magic: U64,
    /// [`FormatVersion`].
    pub version: U16,
    /// Shard that owns the slot.
    pub shard: U16,
    /// Unit of groups: 4096.
    pub block_size: U32,
    /// Number of this life.
    pub segment_seq: U64,
    /// Random; seeds every group checksum of this life.
    pub incarnation: U64,
    /// LSN of the file's first byte.
    pub base_lsn: U64,
    /// Segment before, or 0.
    pub previous_seq: U64,
    /// `next_chain` of the last group of the segment before: the first group's `chain`.
    pub previous_chain: U64,
    /// Bytes of the file.
    pub capacity: U64,
    /// Wall clock at activation, Unix milliseconds.
    pub created_ms: I64,
    /// Data directory that the slot belongs to.
    pub node_id: U128,
    /// Life of the shard.
    pub epoch: U32,
    /// Slot file.
    pub slot: U32,
    /// Zero.
    pub reserved: [u8; 4096 - 100],
    /// CRC-32C of bytes 0..4092.
    pub crc: U32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<SegmentHeader>() == BLOCK_SIZE);
    assert!(2 * size_of::<SegmentHeader>() == SEGMENT_HEADER_SIZE);
    assert!(offset_of!(SegmentHeader, segment_seq) == 16);
    assert!(offset_of!(SegmentHeader, node_id) == 72);
    assert!(offset_of!(SegmentHeader, slot) == 92);
    assert!(offset_of!(SegmentHeader, crc) == 4092);
};

/// A segment header's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFacts {
    /// Shard that owns the slot.
    pub shard: ShardId,
    /// Slot file.
    pub slot: SlotId,
    /// Number of this life.
    pub seq: SegmentSeq,
    /// Seeds every group checksum of this life.
    pub incarnation: u64,
    /// LSN of the file's first byte.
    pub base: Lsn,
    /// Segment before, or 0.
    pub previous_seq: SegmentSeq,
    /// The first group's `chain`.
    pub previous_chain: u64,
    /// Bytes of the file.
    pub capacity: u64,
    /// Wall clock at activation.
    pub created_ms: i64,
    /// Data directory.
    pub node_id: u128,
    /// Life of the shard.
    pub epoch: Epoch,
}

impl SegmentFacts {
    /// LSN behind the segment's last byte: base of the next.
    pub fn end(&self) -> Lsn {
        self.base.plus(self.capacity)
    }

    /// Position in the file of an LSN in this segment.
    pub fn position(&self, lsn: Lsn) -> u64 {
        let position = lsn.since(self.base);
        assert!(position <= self.capacity, "{lsn} lies behind segment {}", self.seq);
        position
    }

    /// Both copies, ready to be written.
    pub fn encode(&self) -> Vec<u8> {
        let mut header = SegmentHeader::new_zeroed();
        header.magic = U64::new(SEGMENT_MAGIC);
        header.version = U16::new(FormatVersion::CURRENT as u16);
        header.shard = U16::new(self.shard.0);
        header.block_size = U32::new(BLOCK_SIZE as u32);
        header.segment_seq = U64::new(self.seq.0);
        header.incarnation = U64::new(self.incarnation);
        header.base_lsn = U64::new(self.base.0);
        header.previous_seq = U64::new(self.previous_seq.0);
        header.previous_chain = U64::new(self.previous_chain);
        header.capacity = U64::new(self.capacity);
        header.created_ms = I64::new(self.created_ms);
        header.node_id = U128::new(self.node_id);
        header.epoch = U32::new(self.epoch.0);
        header.slot = U32::new(self.slot.0);
        header.crc = U32::new(crc32c(&header.as_bytes()[..BLOCK_SIZE - 4]));
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_within(..);
        bytes
    }

    /// The header from either copy in the first 8 KiB of a slot file; the error is the first copy's.
    pub fn parse(bytes: &[u8]) -> Result<Self, Corruption> {
        Self::parse_copy(bytes)
            .or_else(|first| Self::parse_copy(bytes.get(BLOCK_SIZE..).unwrap_or(&[])).map_err(|_| first))
    }

    /// One copy.
    pub fn parse_copy(bytes: &[u8]) -> Result<Self, Corruption> {
        let Ok((header, _)) = SegmentHeader::ref_from_prefix(bytes) else {
            return Err(Corruption::new(
                WHAT,
                "header",
                Damage::Truncated,
                BLOCK_SIZE as u64,
                bytes.len() as u64,
            ));
        };
        demand(WHAT, "magic", Damage::Magic, SEGMENT_MAGIC, header.magic.get())?;
        let crc = crc32c(&header.as_bytes()[..BLOCK_SIZE - 4]);
        demand(WHAT, "crc", Damage::HeaderCrc, u64::from(crc), u64::from(header.crc.get()))?;
        if FormatVersion::parse(header.version.get()).is_none() {
            let (current, found) = (FormatVersion::CURRENT as u64, u64::from(header.version.get()));
            return Err(Corruption::new(WHAT, "version", Damage::Version, current, found));
        }
        demand_zero(WHAT, "reserved", &header.reserved)?;
        demand(WHAT, "block_size", Damage::Field, BLOCK_SIZE as u64, u64::from(header.block_size.get()))?;
        let capacity = header.capacity.get();
        if capacity > SEGMENT_SIZE_MAX || !capacity.is_multiple_of(BLOCK_SIZE as u64) || capacity == 0 {
            return Err(Corruption::new(WHAT, "capacity", Damage::Field, SEGMENT_SIZE_MAX, capacity));
        }
        if header.base_lsn.get().checked_add(capacity).is_none() {
            return Err(Corruption::new(WHAT, "base_lsn", Damage::Field, 0, header.base_lsn.get()));
        }
        Ok(Self {
            shard: ShardId(header.shard.get()),
            slot: SlotId(header.slot.get()),
            seq: SegmentSeq(header.segment_seq.get()),
            incarnation: header.incarnation.get(),
            base: Lsn(header.base_lsn.get()),
            previous_seq: SegmentSeq(header.previous_seq.get()),
            previous_chain: header.previous_chain.get(),
            capacity,
            created_ms: header.created_ms.get(),
            node_id: header.node_id.get(),
            epoch: Epoch(header.epoch.get()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_copy_is_enough_and_every_bit_counts() {
        let facts = SegmentFacts {
            shard: ShardId(1),
            slot: SlotId(2),
            seq: SegmentSeq(3),
            incarnation: 4,
            base: Lsn(5 << 20),
            previous_seq: SegmentSeq(2),
            previous_chain: 6,
            capacity: 8 << 20,
            created_ms: 7,
            node_id: 8,
            epoch: Epoch(9),
        };
        let bytes = facts.encode();
        assert_eq!(SegmentFacts::parse(&bytes), Ok(facts));
        for bit in 0..BLOCK_SIZE * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentFacts::parse_copy(&bad).is_err(), "bit {bit}");
            assert_eq!(SegmentFacts::parse(&bad), Ok(facts), "bit {bit}");
        }
    }
}
