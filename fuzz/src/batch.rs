//! Body of the fuzz target `record_batch`: frames of records, decompressed as a consumer and as the tools do it.

use crate::input::Input;
use crate::memory::{Meter, allocated};
use bytes::Bytes;
use ringmq_client::core::decode::{ConsumedRecord, decode_frame};
use ringmq_format::frame::{Frame, FrameHeader, FrameKind, encode};
use ringmq_format::limits::{FRAME_HEADER_SIZE, FRAME_SIZE_MAX};
use ringmq_format::record::{Payload, RAW_BODIES_MAX};
use ringmq_protocol::FetchEntryHeader;
use ringmq_segment::records::for_each;
use std::collections::VecDeque;
use std::ops::Range;
use zerocopy::IntoBytes;

/// Bytes that a reader may allocate for a record beyond its body: the record itself, and the queue that grows to
/// twice and twice again.
const RECORD_MEMORY: usize = 4 * size_of::<ConsumedRecord>();
/// ... for a block ...
const BLOCK_MEMORY: usize = 64;
/// ... and for a frame.
const FRAME_MEMORY: usize = 16 << 10;
/// Blocks that an input can describe.
const BLOCKS_MAX: u8 = 8;

/// A frame, as the first byte says: `0` its bytes as they are, `1` with its checksums put right, `2` from its payload
/// (`codec u8, count u16, payload`), `3` from blocks that are described (see [`described`]).
///
/// Whatever a frame claims: a reader allocates what its record table declares and little more, delivers all that was
/// asked for or nothing, and bodies have the lengths that the table gives.
pub fn record_batch(data: &[u8], meter: Meter) {
    let mut input = Input::new(data);
    let bytes = match input.byte() % 4 {
        0 => input.rest().to_vec(),
        1 => {
            let mut bytes = input.rest().to_vec();
            crate::repair_frames(&mut bytes);
            bytes
        }
        2 => {
            let (codec, count) = (input.byte() % 3, input.short());
            sealed(codec, u32::from(count), input.rest())
        }
        _ => described(&mut input),
    };
    let Ok(frame) = Frame::parse(&bytes) else { return };
    let len = frame.bytes.len();
    let (mut declared, mut blocks) = (0, 0);
    if let Ok(payload) = Payload::parse(&frame) {
        declared = payload.blocks().map(|(block, _)| block.raw_len.get() as usize).sum();
        blocks = payload.blocks().count();
    }
    assert!(declared <= RAW_BODIES_MAX, "{declared} bytes are let through");
    let count = frame.header.count.get();
    let bound = declared + RECORD_MEMORY * count as usize + BLOCK_MEMORY * blocks + FRAME_MEMORY;
    let bytes = Bytes::copy_from_slice(&bytes[..len]);
    consume(&bytes, 0..count, bound, meter);
    // A part of it, as a group with a filter or a slice of a large frame has it.
    consume(&bytes, count / 3..count - count / 3, bound, meter);
    look(&bytes, declared, bound, meter);
}

/// As a consumer reads it.
fn consume(bytes: &Bytes, wanted: Range<u32>, bound: usize, meter: Meter) {
    let entry = FetchEntryHeader::new(100, 7, wanted.start, wanted.end - wanted.start);
    let mut records = VecDeque::new();
    let mut read = Ok(());
    let memory = allocated(meter, || read = decode_frame(0, &entry, bytes, 0, &mut records));
    assert!(memory <= bound, "{memory} bytes are allocated, {bound} at most are declared");
    match read {
        Ok(()) => {
            assert_eq!(records.len(), wanted.len());
            let offsets = records.iter().map(|record| record.offset);
            assert!(offsets.eq(100..100 + wanted.len() as u64));
            let Ok(frame) = Frame::parse(bytes) else { return };
            let Ok(payload) = Payload::parse(&frame) else { panic!("records of no payload") };
            let entries = payload.entries().skip(wanted.start as usize);
            assert!(records.iter().zip(entries).all(|(record, entry)| record.body.len() == entry.body_len));
        }
        Err(error) => assert!(records.is_empty(), "{} records and: {error}", records.len()),
    }
}

/// As the tools read it: each body is there for a moment only.
fn look(bytes: &Bytes, declared: usize, bound: usize, meter: Meter) {
    let Ok(frame) = Frame::parse(bytes) else { return };
    let mut bodies = 0;
    let memory = allocated(meter, || {
        let _ = for_each(&frame, true, &mut |record| bodies += record.body.len());
    });
    assert!(bodies <= declared);
    // A block, and its bodies one by one.
    assert!(memory <= bound + declared, "{memory} bytes are allocated, {bound} at most are declared");
}

/// A frame with good checksums.
fn sealed(codec: u8, count: u32, payload: &[u8]) -> Vec<u8> {
    let longest = FRAME_SIZE_MAX - FRAME_HEADER_SIZE;
    let mut bytes = encode(FrameKind::Data, count, &payload[..payload.len().min(longest)]);
    if let Ok(header) = FrameHeader::parse(&bytes) {
        let mut header = *header;
        header.codec = codec;
        header.seal();
        bytes[..FRAME_HEADER_SIZE].copy_from_slice(header.as_bytes());
    }
    bytes
}

/// A frame from `codec u8, blocks u8`, then for each block `records u8, raw length u8 << u8, how u8`. `how` fills the
/// block with `0` bytes that follow (`piece`), `1` a short LZ4 block that becomes `u8 << u8` bytes, `2` the same for
/// Zstandard: bombs, unless the length that they become is the length that is claimed.
fn described(input: &mut Input<'_>) -> Vec<u8> {
    let codec = input.byte() % 3;
    let (mut table, mut headers, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
    let (mut count, mut blocks) = (0u32, 0u32);
    for _ in 0..input.byte() % (BLOCKS_MAX + 1) {
        let records = u32::from(input.byte() % 5);
        let raw_len = scaled(input);
        let stored = match input.byte() % 3 {
            0 => input.piece().to_vec(),
            1 => lz4_bomb(scaled(input)),
            _ => zstd_bomb(scaled(input)),
        };
        // The first record has what the others have not.
        for record in 0..records {
            let body_len = if record == 0 { raw_len - (records - 1).min(raw_len) } else { raw_len.min(1) };
            table.push(0);
            put_varint(&mut table, body_len);
            table.push(0);
        }
        for number in [raw_len, stored.len() as u32, records] {
            headers.extend_from_slice(&number.to_le_bytes());
        }
        bodies.extend_from_slice(&stored);
        count += records;
        blocks += 1;
    }
    let mut payload = 0i64.to_le_bytes().to_vec();
    for number in [table.len() as u32, blocks, bodies.len() as u32, 0] {
        payload.extend_from_slice(&number.to_le_bytes());
    }
    payload.extend_from_slice(&table);
    payload.extend_from_slice(&headers);
    payload.extend_from_slice(&bodies);
    sealed(codec, count, &payload)
}

/// A length of any magnitude in two bytes.
fn scaled(input: &mut Input<'_>) -> u32 {
    u32::from(input.byte()) << (input.byte() % 25)
}

fn put_varint(out: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// An LZ4 block that becomes `len` zeros, by one match that copies itself; 255 times smaller at most.
fn lz4_bomb(len: u32) -> Vec<u8> {
    let literals = vec![0; len as usize % 32];
    if len < 15 {
        return [&[(len as u8) << 4][..], &literals].concat();
    }
    if len < 32 {
        return [&[0xf0, len as u8 - 15][..], &literals].concat();
    }
    // A literal, a match of at least four bytes and 15 more, and the five literals that a block ends with.
    let mut copied = len - 1 - 19 - 5;
    let mut block = vec![0x1f, 0, 1, 0];
    while copied >= 255 && block.len() < FRAME_SIZE_MAX / 2 {
        block.push(255);
        copied -= 255;
    }
    block.extend_from_slice(&[copied as u8, 0x50, 0, 0, 0, 0, 0]);
    block
}

/// A Zstandard frame that becomes `len` zeros, 128 KiB for each four bytes.
fn zstd_bomb(len: u32) -> Vec<u8> {
    // Magic; content size in four bytes, one segment.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend_from_slice(&len.to_le_bytes());
    let mut left = len;
    loop {
        let run = left.min(128 << 10);
        left -= run;
        let header = run << 3 | 1 << 1 | u32::from(left == 0);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(0);
        if left == 0 {
            return frame;
        }
    }
}

/// Where the corpus starts. `frames` are good ones.
pub(crate) fn seeds(frames: &[(String, Vec<u8>)]) -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>| seeds.push(("record_batch", name.to_owned(), bytes));
    for (name, bytes) in frames {
        add(name, [&[0], &bytes[..]].concat());
    }
    let one = &frames[1].1;
    add("repaired", [&[1], &one[..]].concat());
    add("payload", [&[2, 0, 1, 0], &one[FRAME_HEADER_SIZE..]].concat());
    const LZ4: u8 = 1;
    const ZSTD: u8 = 2;
    for (name, described) in [
        ("plain_blocks", &[0, 2, 1, 3, 0, 0, 3, b'a', b'b', b'c', 2, 2, 0, 0, 2, b'd', b'e'][..]),
        ("lz4_as_claimed", &[LZ4, 1, 3, 200, 4, 1, 200, 4]),
        ("lz4_short", &[LZ4, 1, 1, 9, 0, 1, 9, 0]),
        ("zstd_as_claimed", &[ZSTD, 1, 2, 255, 10, 2, 255, 10]),
        ("lz4_bomb", &[LZ4, 1, 1, 10, 0, 1, 255, 16]),
        ("zstd_bomb", &[ZSTD, 1, 1, 10, 0, 2, 255, 24]),
        ("lz4_claims_more", &[LZ4, 1, 1, 64, 20, 1, 10, 0]),
        ("zstd_claims_more", &[ZSTD, 1, 1, 64, 20, 2, 10, 0]),
        ("claims_too_much", &[LZ4, 1, 1, 255, 24, 1, 10, 0]),
        ("good_then_bomb", &[LZ4, 2, 2, 100, 0, 1, 100, 0, 1, 10, 0, 1, 255, 8]),
        ("no_records", &[ZSTD, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]),
        ("many_claims", &[LZ4, 8, 1, 255, 15, 0, 1, 0, 1, 255, 15, 0, 1, 0, 1, 255, 15, 0, 1, 0]),
    ] {
        add(name, [&[3], described].concat());
    }
    seeds
}
