//! From the bytes of a frame to records, after every check. Uncompressed records are slices of the received
//! buffer; nothing is copied.

use bytes::Bytes;
use ringmq_format::frame::{Codec, Frame, FrameKind};
use ringmq_format::record::{BlockHeader, Payload, properties};
use ringmq_format::{Corruption, PartitionId};
use ringmq_protocol::{Entry, FetchEntryHeader};
use std::collections::VecDeque;
use std::fmt;

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    /// Index of its partition in the topic.
    pub partition: u32,
    /// Its number in the partition.
    pub offset: u64,
    /// When it became visible: the server's clock, Unix milliseconds.
    pub timestamp_ms: i64,
    /// When it was made: the producer's clock, Unix milliseconds.
    pub time_ms: i64,
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// Its tag, if it has one.
    pub tag: Option<Bytes>,
    /// Its properties.
    pub properties: Properties,
    /// The message.
    pub body: Bytes,
}

/// Properties of a record, read from their bytes when asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties(Bytes);

impl Properties {
    /// Names and values in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        properties(&self.0)
    }

    /// The first value of this name.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|property| property.0 == name).map(|property| property.1)
    }

    /// As they are stored: what [`ringmq_format::record::properties`] walks.
    pub fn encoded(&self) -> &[u8] {
        &self.0
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What was received is not what was stored. Nothing of it was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiveError {
    /// A checksum differs or a field is impossible.
    Corrupt(Corruption),
    /// A body block does not decompress to the length that it names.
    Decompress(Codec),
    /// Records are missing between what was expected and what came.
    Gap {
        /// The next offset.
        expected: u64,
        /// The offset that came.
        found: u64,
    },
    /// Leases that are not those of the records that came with them.
    Leases {
        /// How many leases.
        leases: usize,
        /// How many records.
        records: usize,
    },
    /// A frame of another partition.
    Misplaced {
        /// The partition that was read.
        expected: PartitionId,
        /// The partition of the frame.
        found: PartitionId,
    },
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt(corruption) => write!(f, "received bytes are damaged: {corruption}"),
            Self::Decompress(codec) => {
                write!(f, "a {codec:?} block does not decompress to the length it names")
            }
            Self::Gap { expected, found } => write!(f, "offset {found} came where {expected} was next"),
            Self::Leases { leases, records } => {
                write!(f, "{leases} leases came with {records} records that are not theirs")
            }
            Self::Misplaced { expected, found } => {
                write!(f, "a frame of partition {found} came where partition {expected} is read")
            }
        }
    }
}

impl std::error::Error for ReceiveError {}

impl From<Corruption> for ReceiveError {
    fn from(corruption: Corruption) -> Self {
        Self::Corrupt(corruption)
    }
}

/// Checks an entry for `partition` of which offset `expected` is next: both checksums, that its numbers agree with
/// the frame's, and that nothing is missing. `parse` has checked the header.
pub fn check_entry(entry: &Entry<'_>, partition: PartitionId, expected: u64) -> Result<(), ReceiveError> {
    entry.frame.verify_payload()?;
    let found = entry.header.base_offset.get();
    if found > expected {
        return Err(ReceiveError::Gap { expected, found });
    }
    let header = entry.frame.header;
    if header.kind() == FrameKind::Data {
        if header.partition() != partition {
            return Err(ReceiveError::Misplaced { expected: partition, found: header.partition() });
        }
        let stamped = header.base_offset().0.checked_add(u64::from(entry.header.first()));
        if stamped != Some(found) {
            return Err(ReceiveError::Gap { expected: stamped.unwrap_or(u64::MAX), found });
        }
    }
    Ok(())
}

/// Appends the records of a checked frame from offset `from` on: all of them, or none and an error.
pub fn decode_frame(
    partition: u32,
    entry: &FetchEntryHeader,
    bytes: &Bytes,
    from: u64,
    out: &mut VecDeque<ConsumedRecord>,
) -> Result<(), ReceiveError> {
    let before = out.len();
    let decoded = decode_blocks(partition, entry, bytes, from, out);
    if decoded.is_err() {
        out.truncate(before);
    }
    decoded
}

fn decode_blocks(
    partition: u32,
    entry: &FetchEntryHeader,
    bytes: &Bytes,
    from: u64,
    out: &mut VecDeque<ConsumedRecord>,
) -> Result<(), ReceiveError> {
    let frame = Frame::parse(bytes)?;
    let codec = frame.header.codec();
    let payload = Payload::parse(&frame)?;
    let first = u64::from(entry.first());
    let wanted = first..first + u64::from(entry.count.get());
    let mut records = payload.entries();
    let mut index = 0u64;
    for (block, stored) in payload.blocks() {
        let block_end = index + u64::from(block.records.get());
        let needed = index < wanted.end && block_end > wanted.start;
        let mut bodies =
            if needed { decompress(codec, block, bytes.slice_ref(stored))? } else { Bytes::new() };
        for record in records.by_ref().take(block.records.get() as usize) {
            let body = if needed { bodies.split_to(record.body_len) } else { Bytes::new() };
            if wanted.contains(&index) {
                let offset = entry.base_offset.get() + (index - first);
                if offset >= from {
                    out.push_back(ConsumedRecord {
                        partition,
                        offset,
                        timestamp_ms: entry.visible_time.get(),
                        time_ms: record.time_ms,
                        key: record.key.map(|key| bytes.slice_ref(key)),
                        tag: record.tag.map(|tag| bytes.slice_ref(tag)),
                        properties: Properties(match record.properties {
                            [] => Bytes::new(),
                            properties => bytes.slice_ref(properties),
                        }),
                        body,
                    });
                }
            }
            index += 1;
        }
    }
    Ok(())
}

/// A block's bodies. `Payload::parse` has bounded `raw_len` and checked that it is the sum of its records', so no
/// block can claim more room than `RAW_BODIES_MAX`, and none gets more than it claims.
fn decompress(codec: Codec, block: &BlockHeader, stored: Bytes) -> Result<Bytes, ReceiveError> {
    let raw_len = block.raw_len.get() as usize;
    let raw = match codec {
        Codec::None => return Ok(stored),
        Codec::Lz4 => {
            let mut raw = vec![0; raw_len];
            let len = lz4_flex::block::decompress_into(&stored, &mut raw);
            if !len.is_ok_and(|len| len == raw_len) {
                return Err(ReceiveError::Decompress(codec));
            }
            raw
        }
        Codec::Zstd => {
            zstd::bulk::decompress(&stored, raw_len).map_err(|_| ReceiveError::Decompress(codec))?
        }
    };
    if raw.len() == raw_len { Ok(Bytes::from(raw)) } else { Err(ReceiveError::Decompress(codec)) }
}

/// Compresses a body block, or gives up.
pub(crate) fn compress(codec: Codec, raw: &[u8]) -> Option<Vec<u8>> {
    match codec {
        Codec::None => None,
        Codec::Lz4 => Some(lz4_flex::block::compress(raw)),
        Codec::Zstd => zstd::bulk::compress(raw, 1).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};

    fn frame(codec: Codec, bodies: &[&[u8]]) -> Bytes {
        let mut builder = FrameBuilder::new(5, 1 << 20);
        for body in bodies {
            let properties: &[(&[u8], &[u8])] = &[(b"a", b"1"), (b"b", b"2")];
            let record = Record { key: Some(b"k"), tag: None, properties, time_ms: 6, body };
            builder.push(&record).unwrap();
        }
        Bytes::from(builder.finish(ProducerStamp::default(), codec, &mut |raw| compress(codec, raw)))
    }

    #[test]
    fn every_codec_gives_back_what_was_put_in() {
        let bodies: [&[u8]; 4] = [&[1; 3000], b"", &[2; 500], b"x"];
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            let bytes = frame(codec, &bodies);
            assert_eq!(Frame::parse(&bytes).unwrap().header.codec(), codec);
            let mut out = VecDeque::new();
            decode_frame(3, &FetchEntryHeader::new(100, 9, 0, 4), &bytes, 101, &mut out).unwrap();
            assert_eq!(out.iter().map(|record| record.offset).collect::<Vec<_>>(), [101, 102, 103]);
            assert_eq!(out.iter().map(|record| &record.body[..]).collect::<Vec<_>>(), &bodies[1..]);
            assert_eq!((out[0].partition, out[0].timestamp_ms, out[0].time_ms), (3, 9, 6));
            assert_eq!(out[0].key.as_deref(), Some(&b"k"[..]));
            assert_eq!(out[0].properties.get(b"b"), Some(&b"2"[..]));
        }
    }

    #[test]
    fn a_slice_of_a_frame_is_numbered_by_its_entry() {
        let bytes = frame(Codec::None, &[b"a", b"b", b"c"]);
        let mut out = VecDeque::new();
        decode_frame(0, &FetchEntryHeader::new(50, 0, 1, 2), &bytes, 0, &mut out).unwrap();
        let found: Vec<_> = out.iter().map(|record| (record.offset, &record.body[..])).collect();
        assert_eq!(found, [(50, &b"b"[..]), (51, b"c")]);
    }

    #[test]
    fn uncompressed_bodies_are_not_copied() {
        let bytes = frame(Codec::None, &[&[7; 100]]);
        let mut out = VecDeque::new();
        decode_frame(0, &FetchEntryHeader::new(0, 0, 0, 1), &bytes, 0, &mut out).unwrap();
        assert!(bytes.as_ptr_range().contains(&out[0].body.as_ptr()));
    }

    #[test]
    fn nothing_of_a_frame_is_delivered_whose_second_block_is_damaged() {
        use ringmq_format::frame::FrameHeader;
        use zerocopy::IntoBytes;
        let mut builder = FrameBuilder::new(5, 1 << 20).block_per_record();
        for body in [&[1u8; 300][..], &[2; 300]] {
            builder.push(&Record { body, ..Record::default() }).unwrap();
        }
        let bytes =
            builder.finish(ProducerStamp::default(), Codec::Lz4, &mut |raw| compress(Codec::Lz4, raw));
        let entry = FetchEntryHeader::new(0, 0, 0, 2);
        let mut out = VecDeque::new();
        decode_frame(0, &entry, &Bytes::from(bytes.clone()), 0, &mut out).unwrap();
        assert_eq!(out.len(), 2);
        // The checksums hold: it was stored so.
        let mut bad = bytes;
        let at = bad.iter().rposition(|byte| *byte == 2).unwrap();
        bad[at - 6..=at].fill(0xff);
        let mut header = *FrameHeader::parse(&bad).unwrap();
        header.payload_crc = ringmq_format::checksum::crc32c(&bad[64..]).into();
        header.seal();
        bad[..64].copy_from_slice(header.as_bytes());
        let result = decode_frame(0, &entry, &Bytes::from(bad), 0, &mut out);
        assert_eq!(result, Err(ReceiveError::Decompress(Codec::Lz4)));
        assert_eq!(out.len(), 2, "what was there before stays, and nothing is added");
    }

    #[test]
    fn a_bomb_gets_no_more_than_it_claims() {
        use ringmq_format::frame::{FrameHeader, FrameKind, encode};
        use zerocopy::IntoBytes;
        let bodies = [&[0u8; 1 << 16][..]];
        for codec in [Codec::Lz4, Codec::Zstd] {
            // A frame that claims 10 bytes and holds a block that would become 64 KiB.
            let packed = compress(codec, bodies[0]).unwrap();
            let mut payload = Vec::new();
            payload.extend_from_slice(&0i64.to_le_bytes());
            for number in [3, 1, packed.len() as u32, 0] {
                payload.extend_from_slice(&number.to_le_bytes());
            }
            payload.extend_from_slice(&[0, 10, 0]);
            for number in [10, packed.len() as u32, 1] {
                payload.extend_from_slice(&number.to_le_bytes());
            }
            payload.extend_from_slice(&packed);
            let mut bytes = encode(FrameKind::Data, 1, &payload);
            let mut header = *FrameHeader::parse(&bytes).unwrap();
            header.codec = codec as u8;
            header.seal();
            bytes[..64].copy_from_slice(header.as_bytes());
            let mut out = VecDeque::new();
            let result =
                decode_frame(0, &FetchEntryHeader::new(0, 0, 0, 1), &Bytes::from(bytes), 0, &mut out);
            assert_eq!(result, Err(ReceiveError::Decompress(codec)));
            assert!(out.is_empty());
        }
    }
}
