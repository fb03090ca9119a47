//! The index sidecar `NNN.idx` of a sealed segment: one entry per frame, sorted by partition and offset.
//!
//! Written in the background, rebuildable from the segment, never evidence about it: a reader checks each frame
//! that an entry leads to.
//!
//! ```text
//! | header 4 KiB | block 4 KiB: 32-byte header, 127 entries | block | ... |
//! ```

use crate::FormatVersion;
use crate::checksum::crc32c_seeded;
use crate::corruption::{Corruption, Damage, demand, demand_zero};
use crate::ids::{Lsn, Offset, PartitionId, SegmentSeq};
use crate::limits::BLOCK_SIZE;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "sidecar";
/// `RINGIDX1`
pub const SIDECAR_MAGIC: u64 = u64::from_le_bytes(*b"RINGIDX1");
/// `IBLK`
pub const SIDECAR_BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"IBLK");
/// Entries of a full block.
pub const BLOCK_ENTRIES: usize = (BLOCK_SIZE - 32) / 32;

/// Where one frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IndexEntry {
    /// Partition.
    pub partition: U32,
    /// Bytes of the frame.
    pub len: U32,
    /// Offset of its first record.
    pub first_offset: U64,
    /// Append time, Unix milliseconds.
    pub timestamp: I64,
    /// Position of the frame in the segment's file.
    pub position: U32,
    /// Records.
    pub count: U32,
}

impl IndexEntry {
    /// Sort key: partition, then offset.
    pub fn key(&self) -> (PartitionId, Offset) {
        (PartitionId(self.partition.get()), Offset(self.first_offset.get()))
    }

    /// First offset behind the frame.
    pub fn end_offset(&self) -> Offset {
        Offset(self.first_offset.get()).plus(u64::from(self.count.get()))
    }
}

/// Sorts entries that are in log order: by partition, and so by offset. A counting sort over the digits of the
/// partition in which any two differ, because hundreds of thousands of entries are sorted between two commits.
pub fn sort(entries: Vec<IndexEntry>) -> Vec<IndexEntry> {
    const DIGIT: u32 = 11;
    let (mut from, mut to) = (entries, Vec::new());
    for shift in (0..u32::BITS).step_by(DIGIT as usize) {
        let digit = |entry: &IndexEntry| (entry.partition.get() >> shift) as usize % (1 << DIGIT);
        let mut ends = vec![0u32; 1 << DIGIT];
        from.iter().for_each(|entry| ends[digit(entry)] += 1);
        if ends.iter().any(|count| *count as usize == from.len()) {
            continue; // the same in all of them
        }
        let mut sum = 0;
        for end in &mut ends {
            sum += std::mem::replace(end, sum);
        }
        to.resize(from.len(), IndexEntry::new_zeroed());
        for entry in &from {
            let place = &mut ends[digit(entry)];
            to[*place as usize] = *entry;
            *place += 1;
        }
        std::mem::swap(&mut from, &mut to);
    }
    from
}

/// First 4 KiB of the file.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SidecarHeader {
    /// [`SIDECAR_MAGIC`].
    pub magic: U64,
    /// [`FormatVersion`].
    pub version: U16,
    /// Zero.
    pub reserved_low: [u8; 6],
    /// Segment that it describes.
    pub segment_seq: U64,
    /// The segment's incarnation; seeds all checksums here.
    pub incarnation: U64,
    /// LSN of the segment's first byte.
    pub base_lsn: U64,
    /// LSN behind the last group that it covers.
    pub end_lsn: U64,
    /// All entries.
    pub entries: U64,
    /// Blocks behind this one.
    pub blocks: U32,
    /// Zero.
    pub reserved: [u8; 4096 - 64],
    /// CRC-32C of the incarnation and bytes 0..4092.
    pub crc: U32,
}

/// First 32 bytes of a block of entries.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SidecarBlockHeader {
    /// [`SIDECAR_BLOCK_MAGIC`].
    pub magic: U32,
    /// CRC-32C of the incarnation and bytes 8..4096 of the block.
    pub crc: U32,
    /// Segment that it describes.
    pub segment_seq: U64,
    /// Index of the block, from 0.
    pub index: U32,
    /// Entries in it.
    pub count: U32,
    /// Zero.
    pub reserved: U64,
}

const _: () = {
    assert!(size_of::<IndexEntry>() == 32);
    assert!(size_of::<SidecarHeader>() == BLOCK_SIZE);
    assert!(size_of::<SidecarBlockHeader>() == 32);
    assert!(BLOCK_ENTRIES == 127);
};

/// A sidecar's header as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SidecarFacts {
    /// Segment that it describes.
    pub segment_seq: SegmentSeq,
    /// The segment's incarnation.
    pub incarnation: u64,
    /// LSN of the segment's first byte.
    pub base: Lsn,
    /// LSN behind the last group covered.
    pub end: Lsn,
    /// All entries.
    pub entries: u64,
    /// Blocks of entries.
    pub blocks: u32,
}

/// The whole file for sorted `entries`.
pub fn encode(
    segment_seq: SegmentSeq,
    incarnation: u64,
    base: Lsn,
    end: Lsn,
    entries: &[IndexEntry],
) -> Vec<u8> {
    assert!(entries.is_sorted_by_key(IndexEntry::key), "index entries are not sorted");
    let blocks = entries.len().div_ceil(BLOCK_ENTRIES);
    let mut header = SidecarHeader::new_zeroed();
    header.magic = U64::new(SIDECAR_MAGIC);
    header.version = U16::new(FormatVersion::CURRENT as u16);
    header.segment_seq = U64::new(segment_seq.0);
    header.incarnation = U64::new(incarnation);
    header.base_lsn = U64::new(base.0);
    header.end_lsn = U64::new(end.0);
    header.entries = U64::new(entries.len() as u64);
    header.blocks = U32::new(blocks as u32);
    header.crc = U32::new(crc32c_seeded(incarnation, &header.as_bytes()[..BLOCK_SIZE - 4]));
    let mut bytes = Vec::with_capacity((1 + blocks) * BLOCK_SIZE);
    bytes.extend_from_slice(header.as_bytes());
    for (index, chunk) in entries.chunks(BLOCK_ENTRIES).enumerate() {
        let start = bytes.len();
        let mut block = SidecarBlockHeader {
            magic: U32::new(SIDECAR_BLOCK_MAGIC),
            crc: U32::ZERO,
            segment_seq: U64::new(segment_seq.0),
            index: U32::new(index as u32),
            count: U32::new(chunk.len() as u32),
            reserved: U64::ZERO,
        };
        bytes.extend_from_slice(block.as_bytes());
        bytes.extend_from_slice(chunk.as_bytes());
        bytes.resize(start + BLOCK_SIZE, 0);
        block.crc = U32::new(crc32c_seeded(incarnation, &bytes[start + 8..]));
        bytes[start + 4..start + 8].copy_from_slice(block.crc.as_bytes());
    }
    bytes
}

/// Bytes of a sidecar with so many entries.
pub fn size(entries: u32) -> u64 {
    (1 + u64::from(entries).div_ceil(BLOCK_ENTRIES as u64)) * BLOCK_SIZE as u64
}

/// Checks the first 4 KiB against the segment that the sidecar should describe.
pub fn parse_header(
    bytes: &[u8],
    segment_seq: SegmentSeq,
    incarnation: u64,
) -> Result<SidecarFacts, Corruption> {
    let Ok((header, _)) = SidecarHeader::ref_from_prefix(bytes) else {
        return Err(Corruption::new(WHAT, "header", Damage::Truncated, 4096, bytes.len() as u64));
    };
    demand(WHAT, "magic", Damage::Magic, SIDECAR_MAGIC, header.magic.get())?;
    let crc = crc32c_seeded(incarnation, &header.as_bytes()[..BLOCK_SIZE - 4]);
    demand(WHAT, "crc", Damage::HeaderCrc, u64::from(crc), u64::from(header.crc.get()))?;
    if FormatVersion::parse(header.version.get()).is_none() {
        let (current, found) = (FormatVersion::CURRENT as u64, u64::from(header.version.get()));
        return Err(Corruption::new(WHAT, "version", Damage::Version, current, found));
    }
    demand(WHAT, "segment_seq", Damage::Stale, segment_seq.0, header.segment_seq.get())?;
    demand(WHAT, "incarnation", Damage::Stale, incarnation, header.incarnation.get())?;
    demand_zero(WHAT, "reserved", &header.reserved_low)?;
    demand_zero(WHAT, "reserved", &header.reserved)?;
    Ok(SidecarFacts {
        segment_seq,
        incarnation,
        base: Lsn(header.base_lsn.get()),
        end: Lsn(header.end_lsn.get()),
        entries: header.entries.get(),
        blocks: header.blocks.get(),
    })
}

/// Checks one block and gives its entries.
pub fn parse_block(
    bytes: &[u8],
    segment_seq: SegmentSeq,
    incarnation: u64,
    index: u32,
) -> Result<&[IndexEntry], Corruption> {
    let Some(bytes) = bytes.get(..BLOCK_SIZE) else {
        return Err(Corruption::new(WHAT, "block", Damage::Truncated, 4096, bytes.len() as u64));
    };
    let Ok((header, rest)) = SidecarBlockHeader::ref_from_prefix(bytes) else {
        return Err(Corruption::new(WHAT, "block", Damage::Truncated, 4096, bytes.len() as u64));
    };
    demand(
        WHAT,
        "block magic",
        Damage::Magic,
        u64::from(SIDECAR_BLOCK_MAGIC),
        u64::from(header.magic.get()),
    )?;
    let crc = crc32c_seeded(incarnation, &bytes[8..]);
    demand(WHAT, "block crc", Damage::BodyCrc, u64::from(crc), u64::from(header.crc.get()))?;
    demand(WHAT, "block segment_seq", Damage::Stale, segment_seq.0, header.segment_seq.get())?;
    demand(WHAT, "block index", Damage::Misplaced, u64::from(index), u64::from(header.index.get()))?;
    demand(WHAT, "block reserved", Damage::Padding, 0, header.reserved.get())?;
    let count = header.count.get() as usize;
    match <[IndexEntry]>::ref_from_prefix_with_elems(rest, count) {
        Ok((entries, behind)) if count <= BLOCK_ENTRIES => {
            demand_zero(WHAT, "block padding", behind)?;
            Ok(entries)
        }
        _ => Err(Corruption::new(WHAT, "block count", Damage::Field, BLOCK_ENTRIES as u64, count as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_in_log_order_are_sorted_by_partition_and_offset() {
        let mut random = 1u64;
        for highest in [1, 100, 5000, 1 << 20, u32::MAX] {
            let mut next = std::collections::BTreeMap::new();
            let entries: Vec<_> = (0..5000u32)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let partition = (random >> 32) as u32 % highest;
                    let offset = next.entry(partition).or_insert(0u64);
                    *offset += 1;
                    let mut entry = IndexEntry::new_zeroed();
                    entry.partition = partition.into();
                    entry.first_offset = (*offset).into();
                    entry
                })
                .collect();
            let sorted = sort(entries.clone());
            assert_eq!(sorted.len(), entries.len());
            assert!(sorted.is_sorted_by_key(IndexEntry::key), "{highest}");
        }
        assert_eq!(sort(Vec::new()), Vec::new());
    }

    #[test]
    fn entries_come_back_and_every_flipped_bit_is_found() {
        let entries: Vec<_> = (0..200u32)
            .map(|n| IndexEntry {
                partition: U32::new(n / 50),
                len: U32::new(64),
                first_offset: U64::new(u64::from(n % 50)),
                timestamp: I64::new(7),
                position: U32::new(n * 64),
                count: U32::new(1),
            })
            .collect();
        let bytes = encode(SegmentSeq(4), 99, Lsn(0), Lsn(4096), &entries);
        let read = |bytes: &[u8]| -> Result<Vec<IndexEntry>, Corruption> {
            let facts = parse_header(bytes, SegmentSeq(4), 99)?;
            let mut all = Vec::new();
            for index in 0..facts.blocks {
                let block = &bytes[(1 + index as usize) * BLOCK_SIZE..];
                all.extend_from_slice(parse_block(block, SegmentSeq(4), 99, index)?);
            }
            Ok(all)
        };
        assert_eq!(read(&bytes).unwrap(), entries);
        // Reserved bytes and padding are demanded to be zero even under a checksum that holds.
        for (block, at) in [(0, 10), (0, 64), (1, 24), (1, 31), (2, BLOCK_SIZE - 1)] {
            let mut sealed = bytes.clone();
            let bytes = &mut sealed[block * BLOCK_SIZE..][..BLOCK_SIZE];
            bytes[at] = 1;
            let (covered, place) =
                if block == 0 { (0..BLOCK_SIZE - 4, BLOCK_SIZE - 4) } else { (8..BLOCK_SIZE, 4) };
            let crc = crc32c_seeded(99, &bytes[covered]);
            bytes[place..place + 4].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(read(&sealed).unwrap_err().damage, Damage::Padding, "block {block}, byte {at}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit}");
        }
    }
}
