//! The payload of a frame that carries records: a table that is never compressed, then bodies in blocks.
//!
//! ```text
//! | payload header 24 B | record table | block headers 12 B each | bodies | zeros to a multiple of 8 |
//! ```
//!
//! The server reads the table only: tags, keys and times are there, so filtering needs no decompression.
//! One table entry is `flags u8, body_len varint, time_delta zigzag`, then for each flag that is set a varint
//! length and the bytes: key, tag, properties. Properties are `name_len, name, value_len, value` repeated.
//! Varints are LEB128 in shortest form. Records lie in blocks in the order of the table.

use crate::checksum::crc32c;
use crate::corruption::{Corruption, Damage, demand, demand_zero};
use crate::frame::{Codec, Frame, FrameHeader, FrameKind};
use crate::ids::ProducerId;
use crate::limits::{
    FRAME_ALIGN, FRAME_HEADER_SIZE, FRAME_RECORDS_MAX, FRAME_SIZE_MAX, KEY_SIZE_MAX, PROPERTIES_MAX,
    PROPERTIES_SIZE_MAX, TAG_SIZE_MAX,
};
use crate::varint::{len_u64, put_i64, put_u64, take_i64, take_u64};
use std::fmt;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "payload";
/// Bytes in front of the record table.
pub const PAYLOAD_HEADER_SIZE: usize = 24;
/// Bytes of one block header.
pub const BLOCK_HEADER_SIZE: usize = 12;
/// All bodies of a frame once decompressed; more is refused before anything is allocated.
pub const RAW_BODIES_MAX: usize = 64 << 20;

const HAS_KEY: u8 = 1;
const HAS_TAG: u8 = 2;
const HAS_PROPERTIES: u8 = 4;
const FLAGS_KNOWN: u8 = HAS_KEY | HAS_TAG | HAS_PROPERTIES;

/// In front of the record table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PayloadHeader {
    /// The producer's clock at the first record, Unix milliseconds; records say how much later they are.
    pub base_time: I64,
    /// Bytes of the record table.
    pub table_len: U32,
    /// Body blocks.
    pub blocks: U32,
    /// Bytes of all blocks as stored.
    pub bodies_len: U32,
    /// Zero.
    pub reserved: U32,
}

/// In front of the bodies, one for each block.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlockHeader {
    /// Bytes once decompressed: the sum of the body lengths of its records.
    pub raw_len: U32,
    /// Bytes as stored.
    pub stored_len: U32,
    /// Records whose bodies are in this block.
    pub records: U32,
}

const _: () = {
    assert!(size_of::<PayloadHeader>() == PAYLOAD_HEADER_SIZE);
    assert!(size_of::<BlockHeader>() == BLOCK_HEADER_SIZE);
    assert!(std::mem::offset_of!(PayloadHeader, table_len) == 8);
    assert!(std::mem::offset_of!(PayloadHeader, bodies_len) == 16);
};

/// A record as the user gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record<'a> {
    /// Orders and partitions by it, when there is one.
    pub key: Option<&'a [u8]>,
    /// Filtered by it, when there is one.
    pub tag: Option<&'a [u8]>,
    /// Names and values.
    pub properties: &'a [(&'a [u8], &'a [u8])],
    /// The producer's clock, Unix milliseconds.
    pub time_ms: i64,
    /// The message. Empty means "delete" to readers that keep the latest value per key.
    pub body: &'a [u8],
}

/// A record that a frame cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The key is longer than [`KEY_SIZE_MAX`].
    KeyTooLong,
    /// The tag is longer than [`TAG_SIZE_MAX`].
    TagTooLong,
    /// More properties than [`PROPERTIES_MAX`] or more bytes in them than [`PROPERTIES_SIZE_MAX`].
    PropertiesTooLong,
    /// The frame would pass its size limit. An empty builder that says so has met a record that is too large.
    FrameFull,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyTooLong => write!(f, "the key is longer than {KEY_SIZE_MAX} bytes"),
            Self::TagTooLong => write!(f, "the tag is longer than {TAG_SIZE_MAX} bytes"),
            Self::PropertiesTooLong => write!(
                f,
                "there are more than {PROPERTIES_MAX} properties or {PROPERTIES_SIZE_MAX} bytes in them"
            ),
            Self::FrameFull => f.write_str("the record does not fit into the frame"),
        }
    }
}

impl std::error::Error for RecordError {}

/// Who produces a frame, and its place in the producer's sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerStamp {
    /// 0: not idempotent; the other fields are then 0 too.
    pub id: ProducerId,
    /// Raised when a sequence is given up.
    pub epoch: u16,
    /// Sequence of the frame's first record.
    pub base_sequence: u32,
}

/// Collects records into one DATA frame.
#[derive(Clone, Debug)]
pub struct FrameBuilder {
    base_time: i64,
    size_max: usize,
    block_per_record: bool,
    table: Vec<u8>,
    bodies: Vec<u8>,
    /// Raw length and records of each finished block; the last one is open unless `block_per_record`.
    blocks: Vec<(usize, u32)>,
    count: u32,
}

impl FrameBuilder {
    /// An empty frame. `base_time_ms` is the producer's clock; `size_max` bounds the frame before compression
    /// and is at most [`FRAME_SIZE_MAX`].
    pub fn new(base_time_ms: i64, size_max: usize) -> Self {
        Self {
            base_time: base_time_ms,
            size_max: size_max.min(FRAME_SIZE_MAX),
            block_per_record: false,
            table: Vec::new(),
            bodies: Vec::new(),
            blocks: Vec::new(),
            count: 0,
        }
    }

    /// Puts every record into a block of its own, as topics of type queue, ordered, transaction or delay need it.
    #[must_use]
    pub fn block_per_record(mut self) -> Self {
        assert_eq!(self.count, 0, "decided before the first record");
        self.block_per_record = true;
        self
    }

    /// Adds a record, or says why it cannot be and changes nothing.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), RecordError> {
        if record.key.is_some_and(|key| key.len() > KEY_SIZE_MAX) {
            return Err(RecordError::KeyTooLong);
        }
        if record.tag.is_some_and(|tag| tag.len() > TAG_SIZE_MAX) {
            return Err(RecordError::TagTooLong);
        }
        let properties_len: usize = record.properties.iter().map(|p| property_len(p.0, p.1)).sum();
        if record.properties.len() > PROPERTIES_MAX || properties_len > PROPERTIES_SIZE_MAX {
            return Err(RecordError::PropertiesTooLong);
        }
        let table_before = self.table.len();
        self.push_entry(record, properties_len);
        let blocks = if self.block_per_record || self.blocks.is_empty() {
            self.blocks.len() + 1
        } else {
            self.blocks.len()
        };
        let size = frame_size(self.table.len(), blocks, self.bodies.len() + record.body.len());
        if size > self.size_max || self.count as usize == FRAME_RECORDS_MAX {
            self.table.truncate(table_before);
            return Err(RecordError::FrameFull);
        }
        self.bodies.extend_from_slice(record.body);
        if blocks > self.blocks.len() {
            self.blocks.push((0, 0));
        }
        if let Some(block) = self.blocks.last_mut() {
            block.0 += record.body.len();
            block.1 += 1;
        }
        self.count += 1;
        Ok(())
    }

    fn push_entry(&mut self, record: &Record<'_>, properties_len: usize) {
        let flags = [
            (record.key.is_some(), HAS_KEY),
            (record.tag.is_some(), HAS_TAG),
            (!record.properties.is_empty(), HAS_PROPERTIES),
        ];
        self.table.push(flags.iter().filter(|flag| flag.0).map(|flag| flag.1).sum());
        put_u64(&mut self.table, record.body.len() as u64);
        put_i64(&mut self.table, record.time_ms.wrapping_sub(self.base_time));
        for bytes in [record.key, record.tag].into_iter().flatten() {
            put_u64(&mut self.table, bytes.len() as u64);
            self.table.extend_from_slice(bytes);
        }
        if !record.properties.is_empty() {
            put_u64(&mut self.table, properties_len as u64);
            for (name, value) in record.properties {
                for bytes in [name, value] {
                    put_u64(&mut self.table, bytes.len() as u64);
                    self.table.extend_from_slice(bytes);
                }
            }
        }
    }

    /// Records so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes that the frame takes so far, uncompressed.
    pub fn size(&self) -> usize {
        frame_size(self.table.len(), self.blocks.len(), self.bodies.len())
    }

    /// The finished frame, sealed, with offset, partition and time at zero. `compress` is called for each block
    /// unless `codec` is [`Codec::None`]; the frame stays uncompressed if it answers `None` for any block or wins
    /// nothing.
    pub fn finish(
        self,
        producer: ProducerStamp,
        codec: Codec,
        compress: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>,
    ) -> Vec<u8> {
        let compressed = if codec == Codec::None { None } else { self.compress(compress) };
        let (codec, stored, bodies) = match &compressed {
            Some((stored, bodies)) => (codec, Some(stored), bodies),
            None => (Codec::None, None, &self.bodies),
        };
        let len = frame_size(self.table.len(), self.blocks.len(), bodies.len());
        let mut bytes = Vec::with_capacity(len);
        bytes.resize(FRAME_HEADER_SIZE, 0);
        let payload = PayloadHeader {
            base_time: I64::new(self.base_time),
            table_len: U32::new(self.table.len() as u32),
            blocks: U32::new(self.blocks.len() as u32),
            bodies_len: U32::new(bodies.len() as u32),
            reserved: U32::ZERO,
        };
        bytes.extend_from_slice(payload.as_bytes());
        bytes.extend_from_slice(&self.table);
        for (index, (raw_len, records)) in self.blocks.iter().enumerate() {
            let block = BlockHeader {
                raw_len: U32::new(*raw_len as u32),
                stored_len: U32::new(stored.map_or(*raw_len, |stored| stored[index]) as u32),
                records: U32::new(*records),
            };
            bytes.extend_from_slice(block.as_bytes());
        }
        bytes.extend_from_slice(bodies);
        bytes.resize(len, 0);

        let mut header = FrameHeader::new(FrameKind::Data, len, self.count);
        header.codec = codec as u8;
        header.producer_id = U64::new(producer.id.0);
        header.producer_epoch = U16::new(producer.epoch);
        header.base_sequence = U32::new(producer.base_sequence);
        header.payload_crc = U32::new(crc32c(&bytes[FRAME_HEADER_SIZE..]));
        header.seal();
        bytes[..FRAME_HEADER_SIZE].copy_from_slice(header.as_bytes());
        bytes
    }

    fn compress(&self, compress: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Option<(Vec<usize>, Vec<u8>)> {
        let mut rest = &self.bodies[..];
        let mut stored = Vec::with_capacity(self.blocks.len());
        let mut bodies = Vec::new();
        for (raw_len, _) in &self.blocks {
            let (raw, behind) = rest.split_at(*raw_len);
            let block = compress(raw)?;
            stored.push(block.len());
            bodies.extend_from_slice(&block);
            rest = behind;
        }
        (bodies.len() < self.bodies.len()).then_some((stored, bodies))
    }
}

fn frame_size(table: usize, blocks: usize, bodies: usize) -> usize {
    (FRAME_HEADER_SIZE + PAYLOAD_HEADER_SIZE + table + blocks * BLOCK_HEADER_SIZE + bodies)
        .next_multiple_of(FRAME_ALIGN)
}

fn property_len(name: &[u8], value: &[u8]) -> usize {
    len_u64(name.len() as u64) + name.len() + len_u64(value.len() as u64) + value.len()
}

/// The record part of a frame, checked against the frame's header.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    base_time: i64,
    count: u32,
    table: &'a [u8],
    blocks: &'a [BlockHeader],
    bodies: &'a [u8],
}

/// One entry of the record table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordEntry<'a> {
    /// Key, if the record has one.
    pub key: Option<&'a [u8]>,
    /// Tag, if the record has one.
    pub tag: Option<&'a [u8]>,
    /// Encoded properties; [`properties`] walks them.
    pub properties: &'a [u8],
    /// The producer's clock, Unix milliseconds.
    pub time_ms: i64,
    /// Bytes of the body once decompressed.
    pub body_len: usize,
}

impl<'a> Payload<'a> {
    /// Checks the payload's shape: lengths, counts, every table entry, block sums and padding. Bodies are not
    /// decompressed.
    pub fn parse(frame: &Frame<'a>) -> Result<Self, Corruption> {
        let bytes = frame.payload();
        let cut =
            |need: usize| Corruption::new(WHAT, "length", Damage::Truncated, need as u64, bytes.len() as u64);
        let (header, rest) = PayloadHeader::ref_from_prefix(bytes).map_err(|_| cut(PAYLOAD_HEADER_SIZE))?;
        demand(WHAT, "reserved", Damage::Padding, 0, u64::from(header.reserved.get()))?;
        let table_len = header.table_len.get() as usize;
        let blocks = header.blocks.get() as usize;
        let bodies_len = header.bodies_len.get() as usize;
        let table = rest.get(..table_len).ok_or_else(|| cut(table_len))?;
        let rest = &rest[table_len..];
        let (blocks, rest) =
            <[BlockHeader]>::ref_from_prefix_with_elems(rest, blocks).map_err(|_| cut(blocks))?;
        let bodies = rest.get(..bodies_len).ok_or_else(|| cut(bodies_len))?;
        let padding = &rest[bodies_len..];
        if padding.len() >= FRAME_ALIGN {
            return Err(Corruption::new(WHAT, "padding", Damage::Field, 7, padding.len() as u64));
        }
        demand_zero(WHAT, "padding", padding)?;
        let payload = Self {
            base_time: header.base_time.get(),
            count: frame.header.count.get(),
            table,
            blocks,
            bodies,
        };
        payload.check_table(frame.header.codec())?;
        Ok(payload)
    }

    fn check_table(&self, codec: Codec) -> Result<(), Corruption> {
        let mut stored = 0u64;
        let mut raw = 0u64;
        let mut table = self.table;
        let mut count = 0u64;
        for block in self.blocks {
            let mut block_raw = 0u64;
            // Nobody makes one, and decompressing nothing costs a reader as much as a small block.
            if block.records.get() == 0 {
                return Err(Corruption::new(WHAT, "block records", Damage::Field, 1, 0));
            }
            for _ in 0..block.records.get() {
                let entry = take_entry(&mut table, self.base_time).ok_or_else(|| {
                    Corruption::new(WHAT, "table", Damage::Field, count, table.len() as u64)
                })?;
                block_raw += entry.body_len as u64;
                count += 1;
            }
            demand(WHAT, "block raw_len", Damage::Field, block_raw, u64::from(block.raw_len.get()))?;
            if codec == Codec::None {
                demand(
                    WHAT,
                    "block stored_len",
                    Damage::Field,
                    block_raw,
                    u64::from(block.stored_len.get()),
                )?;
            }
            stored += u64::from(block.stored_len.get());
            raw += block_raw;
        }
        demand(WHAT, "count", Damage::Field, u64::from(self.count), count)?;
        demand(WHAT, "table_len", Damage::Field, 0, table.len() as u64)?;
        demand(WHAT, "bodies_len", Damage::Field, stored, self.bodies.len() as u64)?;
        if raw > RAW_BODIES_MAX as u64 {
            return Err(Corruption::new(WHAT, "raw bodies", Damage::Field, RAW_BODIES_MAX as u64, raw));
        }
        Ok(())
    }

    /// The producer's clock at the first record.
    pub fn base_time_ms(&self) -> i64 {
        self.base_time
    }

    /// The table's entries, in offset order.
    pub fn entries(&self) -> impl Iterator<Item = RecordEntry<'a>> + use<'a> {
        let mut table = self.table;
        let base_time = self.base_time;
        std::iter::from_fn(move || take_entry(&mut table, base_time))
    }

    /// The blocks: header and stored bytes.
    pub fn blocks(&self) -> impl Iterator<Item = (&'a BlockHeader, &'a [u8])> + use<'a> {
        let mut bodies = self.bodies;
        self.blocks.iter().map(move |block| {
            let (stored, behind) = bodies.split_at(block.stored_len.get() as usize);
            bodies = behind;
            (block, stored)
        })
    }
}

impl Payload<'_> {
    /// A SLICE of a frame: its records for which `wanted` says so, by index. Compressed blocks go as they are, with all
    /// of their records, so `places` is told where each wanted record is in the slice.
    pub fn cut(&self, frame: &FrameHeader, wanted: &dyn Fn(u32) -> bool, places: &mut Vec<u32>) -> Vec<u8> {
        let (mut table, mut blocks, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
        let (mut rest, mut index, mut count) = (self.table, 0u32, 0u32);
        let is_plain = frame.codec() == Codec::None;
        for (block, stored) in self.blocks() {
            let records = block.records.get();
            let keeps = is_plain || (index..index + records).any(wanted);
            let mut body_at = 0;
            for index in index..index + records {
                let before = rest;
                let Some(entry) = take_entry(&mut rest, self.base_time) else { break };
                if keeps && (!is_plain || wanted(index)) {
                    table.extend_from_slice(&before[..before.len() - rest.len()]);
                    if wanted(index) {
                        places.push(count);
                    }
                    count += 1;
                    if is_plain {
                        let len = U32::new(entry.body_len as u32);
                        blocks.push(BlockHeader { raw_len: len, stored_len: len, records: U32::new(1) });
                        bodies.extend_from_slice(&stored[body_at..body_at + entry.body_len]);
                    }
                }
                body_at += entry.body_len;
            }
            if keeps && !is_plain {
                blocks.push(*block);
                bodies.extend_from_slice(stored);
            }
            index += records;
        }
        let payload = PayloadHeader {
            base_time: I64::new(self.base_time),
            table_len: U32::new(table.len() as u32),
            blocks: U32::new(blocks.len() as u32),
            bodies_len: U32::new(bodies.len() as u32),
            reserved: U32::ZERO,
        };
        let len = frame_size(table.len(), blocks.len(), bodies.len());
        let mut bytes = Vec::with_capacity(len);
        bytes.resize(FRAME_HEADER_SIZE, 0);
        bytes.extend_from_slice(payload.as_bytes());
        bytes.extend_from_slice(&table);
        bytes.extend_from_slice(blocks.as_bytes());
        bytes.extend_from_slice(&bodies);
        bytes.resize(len, 0);
        let mut header = *frame;
        header.kind = FrameKind::Slice as u8;
        header.len = U32::new(len as u32);
        header.count = U32::new(count);
        header.extension_len = U16::ZERO;
        header.payload_crc = U32::new(crc32c(&bytes[FRAME_HEADER_SIZE..]));
        header.seal();
        bytes[..FRAME_HEADER_SIZE].copy_from_slice(header.as_bytes());
        bytes
    }
}

fn take_entry<'a>(table: &mut &'a [u8], base_time: i64) -> Option<RecordEntry<'a>> {
    let flags = *table.first()?;
    if flags & !FLAGS_KNOWN != 0 {
        return None;
    }
    *table = table.get(1..)?;
    let body_len = usize::try_from(take_u64(table)?).ok().filter(|len| *len <= RAW_BODIES_MAX)?;
    let time_ms = base_time.wrapping_add(take_i64(table)?);
    let key = if flags & HAS_KEY != 0 { Some(take_bytes(table, KEY_SIZE_MAX)?) } else { None };
    let tag = if flags & HAS_TAG != 0 { Some(take_bytes(table, TAG_SIZE_MAX)?) } else { None };
    let properties = if flags & HAS_PROPERTIES != 0 { take_bytes(table, PROPERTIES_SIZE_MAX)? } else { &[] };
    let mut rest = properties;
    let mut properties_count = 0;
    while !rest.is_empty() {
        take_bytes(&mut rest, PROPERTIES_SIZE_MAX)?;
        take_bytes(&mut rest, PROPERTIES_SIZE_MAX)?;
        properties_count += 1;
    }
    if properties_count > PROPERTIES_MAX || (flags & HAS_PROPERTIES != 0 && properties_count == 0) {
        return None;
    }
    Some(RecordEntry { key, tag, properties, time_ms, body_len })
}

fn take_bytes<'a>(bytes: &mut &'a [u8], max: usize) -> Option<&'a [u8]> {
    let len = usize::try_from(take_u64(bytes)?).ok().filter(|len| *len <= max)?;
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

/// Names and values of an entry's properties.
pub fn properties(encoded: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = encoded;
    std::iter::from_fn(move || {
        let name = take_bytes(&mut rest, PROPERTIES_SIZE_MAX)?;
        let value = take_bytes(&mut rest, PROPERTIES_SIZE_MAX)?;
        Some((name, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Owned = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Vec<u8>)>, i64, Vec<u8>);

    fn owned() -> impl Strategy<Value = Owned> {
        let bytes = |max| proptest::collection::vec(any::<u8>(), 0..max);
        (
            proptest::option::of(bytes(20)),
            proptest::option::of(bytes(20)),
            proptest::collection::vec((bytes(8), bytes(8)), 0..3),
            any::<i64>(),
            bytes(100),
        )
    }

    proptest! {
        #[test]
        fn what_was_pushed_is_read(records in proptest::collection::vec(owned(), 1..40), single: bool) {
            let mut builder = FrameBuilder::new(1_000, FRAME_SIZE_MAX);
            if single {
                builder = builder.block_per_record();
            }
            for (key, tag, properties, time_ms, body) in &records {
                let properties: Vec<_> = properties.iter().map(|p| (&p.0[..], &p.1[..])).collect();
                let record = Record {
                    key: key.as_deref(), tag: tag.as_deref(), properties: &properties, time_ms: *time_ms, body,
                };
                prop_assert_eq!(builder.push(&record), Ok(()));
            }
            let size = builder.size();
            let bytes = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
            prop_assert_eq!(bytes.len(), size);
            let frame = Frame::parse(&bytes).unwrap();
            frame.verify_payload().unwrap();
            let payload = Payload::parse(&frame).unwrap();
            let bodies: Vec<u8> = payload.blocks().flat_map(|block| block.1.to_vec()).collect();
            let mut at = 0;
            let entries: Vec<_> = payload.entries().collect();
            prop_assert_eq!(entries.len(), records.len());
            for (entry, (key, tag, props, time_ms, body)) in entries.iter().zip(&records) {
                prop_assert_eq!(entry.key, key.as_deref());
                prop_assert_eq!(entry.tag, tag.as_deref());
                prop_assert_eq!(entry.time_ms, *time_ms);
                let read: Vec<_> = properties(entry.properties).map(|p| (p.0.to_vec(), p.1.to_vec())).collect();
                prop_assert_eq!(&read, props);
                prop_assert_eq!(&bodies[at..at + entry.body_len], &body[..]);
                at += entry.body_len;
            }
        }

        #[test]
        fn a_slice_holds_what_was_wanted(
            records in proptest::collection::vec((owned(), any::<bool>()), 1..20), shape in 0..3,
        ) {
            let mut builder = FrameBuilder::new(1_000, FRAME_SIZE_MAX);
            if shape == 1 {
                builder = builder.block_per_record();
            }
            for ((key, tag, properties, time_ms, body), _) in &records {
                let properties: Vec<_> = properties.iter().map(|p| (&p.0[..], &p.1[..])).collect();
                let record = Record {
                    key: key.as_deref(), tag: tag.as_deref(), properties: &properties, time_ms: *time_ms, body,
                };
                prop_assert_eq!(builder.push(&record), Ok(()));
            }
            // What stands for compression cuts off a zero behind each block.
            let codec = if shape == 2 { Codec::Lz4 } else { Codec::None };
            let bytes = builder.finish(ProducerStamp::default(), codec, &mut |raw| raw.split_last().map(|p| p.1.to_vec()));
            let frame = Frame::parse(&bytes).unwrap();
            let mut places = Vec::new();
            let payload = Payload::parse(&frame).unwrap();
            let cut = payload.cut(frame.header, &|index| records[index as usize].1, &mut places);
            let slice = Frame::parse(&cut).unwrap();
            slice.verify_payload().unwrap();
            prop_assert_eq!((slice.header.kind(), slice.bytes.len()), (FrameKind::Slice, cut.len()));
            let found = Payload::parse(&slice).unwrap();
            let (all, kept): (Vec<_>, Vec<_>) = (payload.entries().collect(), found.entries().collect());
            let wanted: Vec<_> = all.iter().zip(&records).filter(|pair| pair.1.1).map(|pair| *pair.0).collect();
            let named: Vec<_> = places.iter().map(|place| kept[*place as usize]).collect();
            prop_assert_eq!(named, wanted);
            if frame.header.codec() == Codec::None {
                prop_assert_eq!(kept.len(), places.len());
                let bodies: Vec<_> = found.blocks().map(|block| block.1.to_vec()).collect();
                let expected: Vec<_> = records.iter().filter(|r| r.1).map(|r| r.0.4.clone()).collect();
                prop_assert_eq!(bodies, expected);
            }
        }

        #[test]
        fn hostile_payloads_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..200), count in 0u32..4) {
            let bytes = crate::frame::encode(FrameKind::Data, count, &payload);
            let frame = Frame::parse(&bytes).unwrap();
            let _ = Payload::parse(&frame);
        }
    }

    #[test]
    fn a_full_frame_refuses_the_next_record_and_stays_whole() {
        let mut builder = FrameBuilder::new(0, 4096);
        let record = Record { body: &[7; 1000], ..Record::default() };
        let mut pushed = 0;
        while builder.push(&record).is_ok() {
            pushed += 1;
        }
        assert_eq!(pushed, 3);
        let bytes = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(Payload::parse(&frame).unwrap().entries().count(), 3);
    }

    #[test]
    fn compression_that_wins_nothing_is_dropped() {
        let mut builder = FrameBuilder::new(0, 4096);
        builder.push(&Record { body: b"abc", ..Record::default() }).unwrap();
        let bytes =
            builder.clone().finish(ProducerStamp::default(), Codec::Lz4, &mut |raw| Some(raw.to_vec()));
        assert_eq!(Frame::parse(&bytes).unwrap().header.codec(), Codec::None);
        let bytes = builder.finish(ProducerStamp::default(), Codec::Lz4, &mut |_| Some(vec![1]));
        assert_eq!(Frame::parse(&bytes).unwrap().header.codec(), Codec::Lz4);
    }
}
