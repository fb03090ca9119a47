//! A checkpoint: the state that recovery would rebuild, so that it need not read the log from its start.
//!
//! ```text
//! | header 4 KiB | chunk, from a multiple of 4 KiB | chunk | ... |        files checkpoint.a and checkpoint.b
//! ```
//!
//! It is fuzzy: chunks are taken one after the other while the log goes on, and each carries the LSN that it
//! reflects. Replay applies a frame to a chunk's items only if the frame lies at or behind that stamp. The
//! superblock names a checkpoint only after all of it is durable; one that is not named does not exist.

use crate::FormatVersion;
use crate::checksum::crc32c_seeded;
use crate::corruption::{Corruption, Damage, demand, demand_zero};
use crate::ids::{Lsn, Offset, PartitionId, ProducerId, SegmentSeq, ShardId, SlotId};
use crate::limits::{BLOCK_SIZE, PRODUCER_WINDOW, block_align};
use zerocopy::little_endian::{I64, U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "checkpoint";
/// `RINGCKPT`
pub const CHECKPOINT_MAGIC: u64 = u64::from_le_bytes(*b"RINGCKPT");
/// `CHNK`
pub const CHUNK_MAGIC: u32 = u32::from_le_bytes(*b"CHNK");
/// Largest offset that is believed: nobody has counted further.
const OFFSET_MAX: u64 = u64::MAX / 2;
/// Bytes in front of a chunk's items.
pub const CHUNK_HEADER_SIZE: usize = 64;

/// What the items of a chunk are. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChunkKind {
    /// [`SegmentItem`]: every segment that is kept.
    Segments = 1,
    /// [`crate::catalogue::TopicEntry`].
    Topics = 2,
    /// [`PartitionItem`], by ascending partition.
    Partitions = 3,
    /// [`crate::sidecar::IndexEntry`] of the active segment; only in the checkpoint of a clean stop.
    ActiveIndex = 4,
    /// [`PendingItem`]: halves and delays.
    Pending = 5,
    /// [`TransactionItem`]: transactions that are not resolved, and decisions that are not done.
    Transactions = 6,
    /// [`BodyItem`]: bodies that a BIND of another segment names, or that were moved.
    Bodies = 7,
    /// [`crate::consumer_group::ConsumerGroup`].
    Groups = 8,
    /// [`crate::cursor::CursorChunkHeader`], then items of the kind that it names.
    Cursors = 9,
    /// [`EndedTimerItem`]: delays that were delivered or cancelled, for those who ask.
    EndedTimers = 10,
    /// [`EndedTransactionItem`]: transactions that were resolved, for those who ask.
    EndedTransactions = 11,
}

impl ChunkKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Segments,
        Self::Topics,
        Self::Partitions,
        Self::ActiveIndex,
        Self::Pending,
        Self::Transactions,
        Self::Bodies,
        Self::Groups,
        Self::Cursors,
        Self::EndedTimers,
        Self::EndedTransactions,
    ];

    /// The kind with this number.
    pub fn parse(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// First 4 KiB of the file; written after all chunks are.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CheckpointHeader {
    /// [`CHECKPOINT_MAGIC`].
    pub magic: U64,
    /// [`FormatVersion`].
    pub version: U16,
    /// Shard.
    pub shard: U16,
    /// Chunks.
    pub chunks: U32,
    /// One more at each checkpoint; seeds the checksums of the file.
    pub sequence: U64,
    /// First LSN that recovery has to read: start of a group.
    pub scan_start: U64,
    /// `chain` of the group there.
    pub scan_chain: U64,
    /// Segment that holds `scan_start`.
    pub scan_seq: U64,
    /// Highest stamp of a chunk: all below was durable.
    pub durable_lsn: U64,
    /// Bytes of the file.
    pub total: U64,
    /// Zero.
    pub reserved: [u8; 4096 - 68],
    /// CRC-32C of the sequence and bytes 0..4092.
    pub crc: U32,
}

/// First 64 bytes of a chunk.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunkHeader {
    /// [`CHUNK_MAGIC`].
    pub magic: U32,
    /// CRC-32C of the sequence and bytes 8..64.
    pub header_crc: U32,
    /// Checkpoint it belongs to.
    pub sequence: U64,
    /// Index of the chunk, from 0.
    pub index: U32,
    /// Items in it.
    pub items: U32,
    /// Bytes of the items.
    pub len: U32,
    /// CRC-32C of the sequence and the items.
    pub payload_crc: U32,
    /// The items reflect every frame below this LSN.
    pub stamp: U64,
    /// [`ChunkKind`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 7],
    /// First partition that the chunk speaks for (kind Partitions).
    pub first_key: U32,
    /// Last partition that the chunk speaks for.
    pub last_key: U32,
    /// Zero.
    pub reserved_high: U64,
}

/// A segment that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentItem {
    /// Slot file.
    pub slot: U32,
    /// 1: its sidecar is durable.
    pub has_sidecar: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Number of this life.
    pub segment_seq: U64,
    /// LSN behind its last group; 0 while it is active.
    pub end_lsn: U64,
    /// Newest append time in it, Unix milliseconds.
    pub last_time: I64,
    /// Bytes of frames in it.
    pub frame_bytes: U64,
}

/// In front of a partition's variable part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PartitionItemHeader {
    /// Partition.
    pub partition: U32,
    /// Number of [`SegmentRef`]s behind this header.
    pub segments: U32,
    /// Number of [`ProducerItem`]s behind those.
    pub producers: U32,
    /// Zero.
    pub reserved: U32,
    /// First offset that is kept.
    pub start_offset: U64,
    /// Offset that the next record gets.
    pub next_offset: U64,
    /// Newest append time, Unix milliseconds.
    pub last_time: I64,
}

/// Where a partition's frames of one sealed segment begin in its sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentRef {
    /// First offset of the partition in the segment.
    pub first_offset: U64,
    /// Segment, modulo 2^32.
    pub segment: U32,
    /// Index of its first entry in the sidecar.
    pub entry: U32,
}

/// What is remembered of an idempotent producer in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ProducerItem {
    /// Producer.
    pub producer: U64,
    /// Its epoch.
    pub epoch: U16,
    /// Filled entries of `window`.
    pub filled: U16,
    /// Sequence that its next frame must have.
    pub next_sequence: U32,
    /// Append time of its last frame.
    pub last_time: I64,
    /// Last frames, newest last.
    pub window: [ProducerFrame; PRODUCER_WINDOW],
}

/// One frame of a producer's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ProducerFrame {
    /// Sequence of its first record.
    pub base_sequence: U32,
    /// Records.
    pub count: U32,
    /// Offset of its first record.
    pub base_offset: U64,
    /// Append time.
    pub timestamp: I64,
}

/// A half or a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PendingItem {
    /// Its transaction, while that is not resolved; otherwise 0.
    pub txn: U128,
    /// Identity: LSN at which it was stored first.
    pub identity: U64,
    /// LSN at which it is now.
    pub at: U64,
    /// Due time, Unix milliseconds; 0 for none.
    pub due_ms: I64,
    /// Partition for which it is.
    pub partition: U32,
    /// Bytes of its frame.
    pub len: U32,
    /// Records.
    pub count: U32,
    /// Payload checksum of its frame.
    pub payload_crc: U32,
}

/// A transaction that is not resolved, or whose decision is not done; then the producer group's name, then
/// `positions` × [`PositionItem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TransactionItem {
    /// The transaction.
    pub txn: U128,
    /// When its first half was stored, Unix milliseconds.
    pub since_ms: I64,
    /// When it was decided to commit it, Unix milliseconds; 0: it was not.
    pub decided_ms: I64,
    /// Shards that take part in the decision.
    pub participants: U64,
    /// HALF frames of the decision, on all shards.
    pub decided_halves: U32,
    /// Positions of the decision, on all shards.
    pub decided_positions: U32,
    /// Time to the first check that its first half asks for.
    pub check_after_ms: U32,
    /// Positions behind the group's name.
    pub positions: U32,
    /// Checks that were handed over.
    pub attempts: U16,
    /// 1: it is asked no more.
    pub parked: u8,
    /// Bytes of the group's name behind this.
    pub group_len: u8,
    /// Zero.
    pub reserved: U32,
}

/// A position of a group that is part of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PositionItem {
    /// The group.
    pub group: U64,
    /// Its instance; 0 for none.
    pub instance: U64,
    /// First offset that is not consumed.
    pub offset: U64,
    /// The partition.
    pub partition: U32,
    /// Zero.
    pub reserved: U32,
}

/// A body that a BIND of another segment names, or that was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BodyItem {
    /// Identity: LSN at which it was stored first.
    pub identity: U64,
    /// LSN at which it is now.
    pub at: U64,
    /// LSN of the newest BIND that names it.
    pub last_bind: U64,
    /// Bytes of its frame.
    pub len: U32,
    /// Payload checksum of its frame.
    pub payload_crc: U32,
}

/// A delay that was delivered or cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EndedTimerItem {
    /// Its identity.
    pub identity: U64,
    /// When, Unix milliseconds.
    pub time_ms: I64,
    /// 1 delivered, 2 cancelled.
    pub end: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// A transaction that was resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EndedTransactionItem {
    /// The transaction.
    pub txn: U128,
    /// When, Unix milliseconds.
    pub time_ms: I64,
    /// HALF frames that it had.
    pub halves: U32,
    /// Positions that it had.
    pub positions: U32,
    /// 1 committed, 2 aborted.
    pub end: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

const _: () = {
    assert!(size_of::<PendingItem>() == 56);
    assert!(size_of::<TransactionItem>() == 64);
    assert!(size_of::<PositionItem>() == 32);
    assert!(size_of::<BodyItem>() == 32);
    assert!(size_of::<EndedTimerItem>() == 24);
    assert!(size_of::<EndedTransactionItem>() == 40);
    assert!(size_of::<CheckpointHeader>() == BLOCK_SIZE);
    assert!(size_of::<ChunkHeader>() == CHUNK_HEADER_SIZE);
    assert!(size_of::<SegmentItem>() == 40);
    assert!(size_of::<PartitionItemHeader>() == 40);
    assert!(size_of::<SegmentRef>() == 16);
    assert!(size_of::<ProducerFrame>() == 24);
    assert!(size_of::<ProducerItem>() == 24 + 24 * PRODUCER_WINDOW);
};

/// A partition's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionItem {
    /// Partition.
    pub partition: PartitionId,
    /// First offset that is kept.
    pub start_offset: Offset,
    /// Offset that the next record gets.
    pub next_offset: Offset,
    /// Newest append time.
    pub last_time: i64,
    /// Sealed segments with its frames, oldest first.
    pub segments: Vec<SegmentRef>,
    /// Idempotent producers.
    pub producers: Vec<ProducerItem>,
}

impl PartitionItem {
    /// Appends the item.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let header = PartitionItemHeader {
            partition: U32::new(self.partition.0),
            segments: U32::new(self.segments.len() as u32),
            producers: U32::new(self.producers.len() as u32),
            reserved: U32::ZERO,
            start_offset: U64::new(self.start_offset.0),
            next_offset: U64::new(self.next_offset.0),
            last_time: I64::new(self.last_time),
        };
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(self.segments.as_bytes());
        out.extend_from_slice(self.producers.as_bytes());
    }

    /// Takes an item off the front of `bytes`.
    pub fn take(bytes: &mut &[u8]) -> Result<Self, Corruption> {
        let short = |bytes: &[u8]| Corruption::new(WHAT, "partition", Damage::Field, 0, bytes.len() as u64);
        let (header, rest) = PartitionItemHeader::read_from_prefix(bytes).map_err(|_| short(bytes))?;
        let (segments, rest) =
            <[SegmentRef]>::ref_from_prefix_with_elems(rest, header.segments.get() as usize)
                .map_err(|_| short(bytes))?;
        let (producers, rest) =
            <[ProducerItem]>::ref_from_prefix_with_elems(rest, header.producers.get() as usize)
                .map_err(|_| short(bytes))?;
        if producers.iter().any(|producer| usize::from(producer.filled.get()) > PRODUCER_WINDOW) {
            return Err(short(bytes));
        }
        let (start, next) = (header.start_offset.get(), header.next_offset.get());
        if start > next || next > OFFSET_MAX {
            return Err(Corruption::new(WHAT, "partition next_offset", Damage::Field, start, next));
        }
        let item = Self {
            partition: PartitionId(header.partition.get()),
            start_offset: Offset(header.start_offset.get()),
            next_offset: Offset(header.next_offset.get()),
            last_time: header.last_time.get(),
            segments: segments.to_vec(),
            producers: producers.to_vec(),
        };
        *bytes = rest;
        Ok(item)
    }
}

/// The producer that an item speaks of.
impl ProducerItem {
    /// Which producer.
    pub fn id(&self) -> ProducerId {
        ProducerId(self.producer.get())
    }
}

impl SegmentItem {
    /// The segment's number.
    pub fn seq(&self) -> SegmentSeq {
        SegmentSeq(self.segment_seq.get())
    }

    /// The slot file.
    pub fn slot_id(&self) -> SlotId {
        SlotId(self.slot.get())
    }
}

/// A checkpoint's header as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointFacts {
    /// Shard.
    pub shard: ShardId,
    /// One more at each checkpoint.
    pub sequence: u64,
    /// Chunks.
    pub chunks: u32,
    /// First LSN that recovery has to read.
    pub scan_start: Lsn,
    /// `chain` of the group there.
    pub scan_chain: u64,
    /// Segment that holds it.
    pub scan_seq: SegmentSeq,
    /// All below was durable.
    pub durable_lsn: Lsn,
    /// Bytes of the file.
    pub total: u64,
}

impl CheckpointFacts {
    /// The first 4 KiB of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut header = CheckpointHeader::new_zeroed();
        header.magic = U64::new(CHECKPOINT_MAGIC);
        header.version = U16::new(FormatVersion::CURRENT as u16);
        header.shard = U16::new(self.shard.0);
        header.chunks = U32::new(self.chunks);
        header.sequence = U64::new(self.sequence);
        header.scan_start = U64::new(self.scan_start.0);
        header.scan_chain = U64::new(self.scan_chain);
        header.scan_seq = U64::new(self.scan_seq.0);
        header.durable_lsn = U64::new(self.durable_lsn.0);
        header.total = U64::new(self.total);
        header.crc = U32::new(crc32c_seeded(self.sequence, &header.as_bytes()[..BLOCK_SIZE - 4]));
        header.as_bytes().to_vec()
    }

    /// Checks the first 4 KiB of the checkpoint that the superblock names.
    pub fn parse(bytes: &[u8], shard: ShardId, sequence: u64) -> Result<Self, Corruption> {
        let Ok((header, _)) = CheckpointHeader::ref_from_prefix(bytes) else {
            return Err(Corruption::new(WHAT, "header", Damage::Truncated, 4096, bytes.len() as u64));
        };
        demand(WHAT, "magic", Damage::Magic, CHECKPOINT_MAGIC, header.magic.get())?;
        let crc = crc32c_seeded(header.sequence.get(), &header.as_bytes()[..BLOCK_SIZE - 4]);
        demand(WHAT, "crc", Damage::HeaderCrc, u64::from(crc), u64::from(header.crc.get()))?;
        if FormatVersion::parse(header.version.get()).is_none() {
            let (current, found) = (FormatVersion::CURRENT as u64, u64::from(header.version.get()));
            return Err(Corruption::new(WHAT, "version", Damage::Version, current, found));
        }
        demand(WHAT, "sequence", Damage::Stale, sequence, header.sequence.get())?;
        demand(WHAT, "shard", Damage::Misplaced, u64::from(shard.0), u64::from(header.shard.get()))?;
        demand_zero(WHAT, "reserved", &header.reserved)?;
        Ok(Self {
            shard,
            sequence,
            chunks: header.chunks.get(),
            scan_start: Lsn(header.scan_start.get()),
            scan_chain: header.scan_chain.get(),
            scan_seq: SegmentSeq(header.scan_seq.get()),
            durable_lsn: Lsn(header.durable_lsn.get()),
            total: header.total.get(),
        })
    }
}

/// A chunk as values; `payload` holds the items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// What the items are.
    pub kind: ChunkKind,
    /// The items reflect every frame below this LSN.
    pub stamp: Lsn,
    /// First partition that it speaks for.
    pub first_key: PartitionId,
    /// Last partition that it speaks for.
    pub last_key: PartitionId,
    /// Number of items.
    pub items: u32,
    /// The items.
    pub payload: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// The chunk's bytes, padded to 4 KiB.
    pub fn encode(&self, sequence: u64, index: u32) -> Vec<u8> {
        let mut header = ChunkHeader::new_zeroed();
        header.magic = U32::new(CHUNK_MAGIC);
        header.sequence = U64::new(sequence);
        header.index = U32::new(index);
        header.items = U32::new(self.items);
        header.len = U32::new(self.payload.len() as u32);
        header.payload_crc = U32::new(crc32c_seeded(sequence, self.payload));
        header.stamp = U64::new(self.stamp.0);
        header.kind = self.kind as u8;
        header.first_key = U32::new(self.first_key.0);
        header.last_key = U32::new(self.last_key.0);
        header.header_crc = U32::new(crc32c_seeded(sequence, &header.as_bytes()[8..]));
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(self.payload);
        bytes.resize(block_align(bytes.len()), 0);
        bytes
    }

    /// Takes chunk `index` off the front of `bytes`, which start at a multiple of 4 KiB.
    pub fn take(bytes: &mut &'a [u8], sequence: u64, index: u32) -> Result<Self, Corruption> {
        let (header, rest) = ChunkHeader::ref_from_prefix(bytes)
            .map_err(|_| Corruption::new(WHAT, "chunk", Damage::Truncated, 64, bytes.len() as u64))?;
        demand(WHAT, "chunk magic", Damage::Magic, u64::from(CHUNK_MAGIC), u64::from(header.magic.get()))?;
        let crc = crc32c_seeded(sequence, &header.as_bytes()[8..]);
        let found = u64::from(header.header_crc.get());
        demand(WHAT, "chunk header_crc", Damage::HeaderCrc, u64::from(crc), found)?;
        demand(WHAT, "chunk index", Damage::Misplaced, u64::from(index), u64::from(header.index.get()))?;
        demand_zero(WHAT, "chunk reserved", &header.reserved)?;
        demand(WHAT, "chunk reserved_high", Damage::Padding, 0, header.reserved_high.get())?;
        let len = header.len.get() as usize;
        let payload = rest.get(..len).ok_or_else(|| {
            Corruption::new(WHAT, "chunk len", Damage::Truncated, len as u64, rest.len() as u64)
        })?;
        let crc = crc32c_seeded(sequence, payload);
        let found = u64::from(header.payload_crc.get());
        demand(WHAT, "chunk payload_crc", Damage::BodyCrc, u64::from(crc), found)?;
        let total = block_align(CHUNK_HEADER_SIZE + len);
        let padding = bytes.get(CHUNK_HEADER_SIZE + len..total).unwrap_or(&[]);
        demand_zero(WHAT, "chunk padding", padding)?;
        let kind = ChunkKind::parse(header.kind)
            .ok_or_else(|| Corruption::new(WHAT, "chunk kind", Damage::Field, 11, u64::from(header.kind)))?;
        *bytes = bytes.get(total..).unwrap_or(&[]);
        Ok(Self {
            kind,
            stamp: Lsn(header.stamp.get()),
            first_key: PartitionId(header.first_key.get()),
            last_key: PartitionId(header.last_key.get()),
            items: header.items.get(),
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_back_and_every_flipped_bit_is_found() {
        let item = PartitionItem {
            partition: PartitionId(5),
            start_offset: Offset(1),
            next_offset: Offset(9),
            last_time: 3,
            segments: vec![SegmentRef {
                first_offset: U64::new(1),
                segment: U32::new(2),
                entry: U32::new(3),
            }],
            producers: vec![ProducerItem::new_zeroed()],
        };
        let mut payload = Vec::new();
        item.encode(&mut payload);
        let chunk = Chunk {
            kind: ChunkKind::Partitions,
            stamp: Lsn(4096),
            first_key: PartitionId(5),
            last_key: PartitionId(5),
            items: 1,
            payload: &payload,
        };
        let bytes = chunk.encode(7, 0);
        // Reserved bytes are demanded to be zero even under a checksum that holds.
        for at in (std::mem::offset_of!(ChunkHeader, reserved)..).take(7).chain(56..64) {
            let mut sealed = bytes.clone();
            sealed[at] = 1;
            let crc = crc32c_seeded(7, &sealed[8..CHUNK_HEADER_SIZE]);
            sealed[4..8].copy_from_slice(&crc.to_le_bytes());
            let found = Chunk::take(&mut &sealed[..], 7, 0).unwrap_err();
            assert_eq!(found.damage, Damage::Padding, "byte {at}");
        }
        let mut rest = &bytes[..];
        assert_eq!(Chunk::take(&mut rest, 7, 0), Ok(chunk));
        assert!(rest.is_empty());
        assert_eq!(PartitionItem::take(&mut &payload[..]), Ok(item.clone()));
        for (start, next) in [(9, 8), (1, u64::MAX)] {
            let item =
                PartitionItem { start_offset: Offset(start), next_offset: Offset(next), ..item.clone() };
            let mut payload = Vec::new();
            item.encode(&mut payload);
            assert!(PartitionItem::take(&mut &payload[..]).is_err(), "{start} to {next}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Chunk::take(&mut &bad[..], 7, 0).is_err(), "bit {bit}");
        }
    }
}
