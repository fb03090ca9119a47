//! Bodies of the fuzz targets, as functions, so that the corpora replay on any toolchain without libFuzzer.
//!
//! Checksums stand in a fuzzer's way: almost every mutated input would end at the first one. The first byte of an
//! input therefore chooses what is repaired before parsing ([`Repair`]), and both the checks and what lies behind
//! them are reached.
//!
//! Each body asserts more than "no panic": what parses must encode to the same bytes or read back as the same
//! values.

pub mod batch;
pub mod client;
pub mod files;
mod input;
pub mod memory;
pub mod open;
pub mod seeds;
pub mod session;
pub mod text;
pub mod tools;
mod world;

use ringmq_engine::planted::Planted;
use ringmq_engine::recovery::decide::Finding;
use ringmq_engine::recovery::scan::{ScanPoint, examine, highest_witness};
use ringmq_format::checksum::{crc32c, crc32c_seeded};
use ringmq_format::frame::{Codec, Frame, FrameHeader, FrameKind, encode, frames};
use ringmq_format::group::{BodyCrc, GROUP_MAGIC, GroupHeader, group_frames};
use ringmq_format::limits::{
    BLOCK_SIZE, FRAME_ALIGN, FRAME_HEADER_SIZE, FRAME_RECORDS_MAX, FRAME_SIZE_MAX, GROUP_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
};
use ringmq_format::record::{FrameBuilder, Payload, ProducerStamp, Record, properties};
use ringmq_format::segment::SegmentFacts;
use ringmq_format::{Epoch, Lsn, SegmentSeq, ShardId, SlotId};
use ringmq_protocol::{
    FetchEntryHeader, HEADER_SIZE, Header, Request, Response, decode_request, decode_response, entries,
    limits,
};
use std::mem::offset_of;

/// What is put right in an input before it is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: the input as it came.
    None,
    /// Checksums.
    Checksums,
    /// Checksums and lengths.
    Lengths,
}

impl Repair {
    /// Chosen by the first byte of an input.
    pub fn split(data: &[u8]) -> Option<(Self, &[u8])> {
        let (first, rest) = data.split_first()?;
        let repair = match first % 3 {
            0 => Self::None,
            1 => Self::Checksums,
            _ => Self::Lengths,
        };
        Some((repair, rest))
    }
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// A stream of messages, as a server and as a client would take it.
pub fn protocol_decode(data: &[u8]) {
    let Some((repair, rest)) = Repair::split(data) else { return };
    let mut bytes = rest.to_vec();
    let mut at = 0;
    // A server takes messages one behind the other until one cannot be followed.
    while bytes.len() - at >= HEADER_SIZE {
        repair_message(&mut bytes[at..], repair);
        let Ok(header) = Header::parse(&bytes[at..], limits::RESPONSE_SIZE_MAX) else { return };
        let header = *header;
        let Some(message) = bytes[at..].get(HEADER_SIZE..header.message_len()) else { return };
        let (fields, behind) = message.split_at(header.fields_len());
        assert_eq!(behind.len(), header.frames_len());
        request(&header, fields, &bytes[at..at + HEADER_SIZE], behind);
        response(&header, fields, &bytes[at..at + HEADER_SIZE], behind);
        at += header.message_len();
    }
}

fn repair_message(bytes: &mut [u8], repair: Repair) {
    if repair == Repair::None {
        return;
    }
    if repair == Repair::Lengths {
        // All that is left is this message; the lower half of `aux` is kept, as far as it is possible.
        let len = bytes.len() - HEADER_SIZE;
        let aux = u16::from_le_bytes([bytes[20], bytes[21]]);
        put(bytes, offset_of!(Header, len), len as u32);
        put(bytes, offset_of!(Header, aux), u32::from(aux).min(len as u32));
        bytes[offset_of!(Header, version)] = ringmq_protocol::PROTOCOL_VERSION;
    }
    let aux = u32::from_le_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]) as usize;
    if let Some(fields) = bytes[HEADER_SIZE..].get(..aux) {
        let crc = crc32c(fields);
        put(bytes, offset_of!(Header, payload_crc), crc);
    }
    let crc = crc32c(&bytes[..HEADER_SIZE - 4]);
    put(bytes, offset_of!(Header, header_crc), crc);
}

/// What a server understands says the same once encoded again.
fn request(header: &Header, fields: &[u8], head: &[u8], behind: &[u8]) {
    let request = match decode_request(header, fields) {
        Ok(request) => request,
        Err(refusal) => {
            let mut answer = Vec::new();
            refusal.encode(header, &mut answer);
            let answered = Header::parse(&answer, limits::PRE_HELLO_SIZE_MAX);
            assert!(answered.is_ok_and(|answered| answered.is_error()), "{refusal}");
            return;
        }
    };
    let mut again = Vec::new();
    request.encode(header.correlation(), &mut again);
    // HELLO and the like have no handle: what a client put there is not looked at.
    if request.handle() == header.handle() {
        assert_eq!(&again[..HEADER_SIZE], head, "{request:?}");
    }
    assert_eq!(&again[HEADER_SIZE..], fields, "{request:?}");
    if let Request::Produce(produce) = request {
        let mut end = 0;
        for (slot, range) in produce.ranges() {
            assert_eq!(range.len(), slot.len.get() as usize);
            assert_eq!(range.start, end);
            end = range.end;
            let _ = Frame::parse(&behind[range]);
        }
        assert_eq!(end, behind.len());
    }
}

/// What a client understands can be encoded, and then says the same.
fn response(header: &Header, fields: &[u8], head: &[u8], behind: &[u8]) {
    let Ok(response) = decode_response(header, fields) else { return };
    match response {
        Response::Fetched(_) | Response::Push(_) => fetched(behind),
        Response::Error(_) => {}
        response => {
            let mut again = Vec::new();
            response.encode(header.correlation(), header.handle(), &mut again);
            let header = written(&again);
            let fields = &again[HEADER_SIZE..];
            assert_eq!(header.op, head[offset_of!(Header, op)], "{response:?}");
            assert_eq!(decode_response(&header, fields), Ok(response));
        }
    }
}

/// The header of a message that was encoded here.
fn written(bytes: &[u8]) -> Header {
    match Header::parse(bytes, limits::RESPONSE_SIZE_MAX) {
        Ok(header) => *header,
        Err(e) => panic!("a header that was encoded does not parse: {e}"),
    }
}

fn fetched(behind: &[u8]) {
    let mut walked = 0;
    for entry in entries(behind) {
        let Ok(entry) = entry else { return };
        assert!(entry.header.end_offset() >= entry.header.base_offset.get());
        let last = u64::from(entry.header.first()) + u64::from(entry.header.count.get());
        assert!(last <= u64::from(entry.frame.header.count.get()));
        walked += size_of::<FetchEntryHeader>();
        walked += if entry.header.is_in_same_frame() { 0 } else { entry.frame.bytes.len() };
        payload(&entry.frame);
    }
    assert_eq!(walked, behind.len());
}

/// Frames one behind the other, with their records.
pub fn frame_parse(data: &[u8]) {
    let Some((repair, rest)) = Repair::split(data) else { return };
    // Two implementations of the same polynomial.
    assert_eq!(crc32c(rest), ::crc32c::crc32c(rest));
    let mut bytes = rest.to_vec();
    match repair {
        Repair::None => {}
        Repair::Checksums => repair_frames(&mut bytes),
        // The whole input is the payload of one frame, whose count is the first two bytes.
        Repair::Lengths => {
            let Some((count, rest)) = rest.split_first_chunk::<2>() else { return };
            let longest = FRAME_SIZE_MAX - FRAME_HEADER_SIZE;
            let count = u32::from(u16::from_le_bytes(*count));
            bytes = encode(FrameKind::Data, count, &rest[..rest.len().min(longest)]);
        }
    }
    let mut walked = 0;
    for frame in frames(&bytes) {
        let Ok(frame) = frame else { return };
        let header = frame.header;
        assert_eq!(frame.bytes.len(), header.len());
        assert!((FRAME_HEADER_SIZE..=FRAME_SIZE_MAX).contains(&header.len()));
        assert!(header.len().is_multiple_of(FRAME_ALIGN));
        assert!(header.count.get() as usize <= FRAME_RECORDS_MAX);
        assert_eq!(FRAME_HEADER_SIZE + frame.extension().len() + frame.payload().len(), frame.bytes.len());
        walked += frame.bytes.len();
        payload(&frame);
    }
    assert_eq!(walked, bytes.len());
}

fn repair_frames(bytes: &mut [u8]) {
    let mut at = 0;
    while bytes.len() - at >= FRAME_HEADER_SIZE {
        let rest = &mut bytes[at..];
        let len = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        if let Some(body) = rest.get(FRAME_HEADER_SIZE..len) {
            let crc = crc32c(body);
            put(rest, offset_of!(FrameHeader, payload_crc), crc);
        }
        let crc = crc32c(&rest[..FRAME_HEADER_SIZE - 4]);
        put(rest, offset_of!(FrameHeader, header_crc), crc);
        if len < FRAME_HEADER_SIZE || len > rest.len() {
            return;
        }
        at += len;
    }
}

/// The segment that [`segment_scan`] reads.
pub const SEGMENT: SegmentFacts = SegmentFacts {
    shard: ShardId(0),
    slot: SlotId(0),
    seq: SegmentSeq(5),
    incarnation: 0x1357_9bdf_0246_8ace,
    base: Lsn(64 << 20),
    previous_seq: SegmentSeq(4),
    previous_chain: 77,
    capacity: 8 << 20,
    created_ms: 0,
    node_id: 9,
    epoch: Epoch(3),
};

/// A segment behind its header, as recovery reads it: group by group to the first that is not whole, then a search
/// for a witness. An input is chunks of `length u16, bytes`, each put at the start of a block and padded with zeros,
/// so that inputs stay small.
pub fn segment_scan(data: &[u8]) {
    let Some((repair, rest)) = Repair::split(data) else { return };
    let mut bytes = Vec::new();
    let mut rest = rest;
    while let Some((len, behind)) = rest.split_first_chunk::<2>() {
        let (chunk, behind) = behind.split_at(behind.len().min(usize::from(u16::from_le_bytes(*len))));
        bytes.extend_from_slice(chunk);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE), 0);
        rest = behind;
    }
    if bytes.len() > SEGMENT.capacity as usize - SEGMENT_HEADER_SIZE {
        return;
    }
    let start = SEGMENT.base.plus(SEGMENT_HEADER_SIZE as u64);
    let mut point = ScanPoint { lsn: start, chain: SEGMENT.previous_chain, epoch: SEGMENT.epoch };
    let mut at = 0;
    while at < bytes.len() {
        repair_group(&mut bytes[at..], repair, &point);
        let examined = examine(&SEGMENT, &point, &bytes[at..], Planted::default());
        let Some(header) = examined.header.filter(|_| examined.finding == Finding::Whole) else {
            assert!(examined.corruption.is_some(), "{examined:?}");
            break;
        };
        whole_group(&header, &bytes[at..at + header.total()]);
        at += header.total();
        point = ScanPoint {
            lsn: point.lsn.plus(header.total() as u64),
            chain: header.next_chain(),
            epoch: Epoch(header.epoch.get()),
        };
        assert_eq!(point.lsn, start.plus(at as u64));
        assert!(point.epoch >= SEGMENT.epoch);
    }
    let witness = highest_witness(&SEGMENT, (SEGMENT_HEADER_SIZE + at) as u64, &bytes[at..]);
    // A group cannot know of more durable bytes than lie before it.
    assert!(witness.is_none_or(|lsn| lsn < start.plus(bytes.len() as u64)), "{witness:?}");
}

fn repair_group(bytes: &mut [u8], repair: Repair, point: &ScanPoint) {
    if repair == Repair::None || bytes.len() < BLOCK_SIZE {
        return;
    }
    if repair == Repair::Lengths {
        // One block, all of it used but the zeros at its end.
        let used = bytes[..BLOCK_SIZE].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let used = used.next_multiple_of(FRAME_ALIGN).max(GROUP_HEADER_SIZE);
        put(bytes, offset_of!(GroupHeader, used), used as u32);
        put(bytes, offset_of!(GroupHeader, total), BLOCK_SIZE as u32);
    }
    let at = offset_of!(GroupHeader, used);
    let used = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let mut crc = BodyCrc::new(SEGMENT.incarnation);
    let mut count = 0;
    if let Some(body) = bytes.get_mut(GROUP_HEADER_SIZE..used) {
        repair_frames(body);
        for frame in frames(body).map_while(Result::ok) {
            crc.add(frame.header);
            count += 1;
        }
    }
    put(bytes, offset_of!(GroupHeader, magic), GROUP_MAGIC);
    put(bytes, offset_of!(GroupHeader, frames), count);
    put(bytes, offset_of!(GroupHeader, body_crc), crc.finish());
    let mut put_long = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put_long(offset_of!(GroupHeader, segment_seq), SEGMENT.seq.get());
    put_long(offset_of!(GroupHeader, lsn), point.lsn.get());
    put_long(offset_of!(GroupHeader, chain), point.chain);
    let crc = crc32c_seeded(SEGMENT.incarnation, &bytes[8..GROUP_HEADER_SIZE]);
    put(bytes, offset_of!(GroupHeader, header_crc), crc);
}

/// What recovery calls whole is whole by the other implementation of the checksum, too.
fn whole_group(header: &GroupHeader, bytes: &[u8]) {
    let mut used = GROUP_HEADER_SIZE;
    let mut count = 0;
    for (position, frame) in group_frames(header, bytes) {
        assert_eq!(position, used);
        let stored = frame.header.payload_crc.get();
        assert_eq!(stored, ::crc32c::crc32c(&frame.bytes[FRAME_HEADER_SIZE..]));
        payload(&frame);
        used += frame.bytes.len();
        count += 1;
    }
    assert_eq!((used, count), (header.used(), header.frames.get()));
    assert!(bytes[used..].iter().all(|byte| *byte == 0));
}

/// Records of a frame. If they are whole and uncompressed, a builder makes the same records of them.
fn payload(frame: &Frame<'_>) {
    let whole = frame.verify_payload().is_ok();
    let Ok(payload) = Payload::parse(frame) else { return };
    let entries: Vec<_> = payload.entries().collect();
    assert_eq!(entries.len(), frame.header.count.get() as usize);
    let raw: usize = entries.iter().map(|entry| entry.body_len).sum();
    let blocks: Vec<_> = payload.blocks().collect();
    assert_eq!(raw, blocks.iter().map(|block| block.0.raw_len.get() as usize).sum::<usize>());
    if !whole || frame.header.codec() != Codec::None {
        return;
    }
    let bodies: Vec<u8> = blocks.iter().flat_map(|block| block.1.iter().copied()).collect();
    assert_eq!(raw, bodies.len());
    let mut builder = FrameBuilder::new(payload.base_time_ms(), FRAME_SIZE_MAX);
    let mut at = 0;
    for entry in &entries {
        let props: Vec<_> = properties(entry.properties).collect();
        let body = &bodies[at..at + entry.body_len];
        at += entry.body_len;
        let record =
            Record { key: entry.key, tag: entry.tag, properties: &props, time_ms: entry.time_ms, body };
        // A frame at the limit may not fit again: this one has one block and perhaps shorter varints, never more.
        if let Err(e) = builder.push(&record) {
            panic!("a record that was parsed cannot be written: {e}");
        }
    }
    let again = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
    let Ok(again) = Frame::parse(&again) else { panic!("a frame that was built does not parse") };
    let Ok(again) = Payload::parse(&again) else { panic!("a payload that was built does not parse") };
    assert!(again.entries().eq(entries), "the same records");
}
