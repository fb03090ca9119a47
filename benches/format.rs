//! Frames, record tables, groups and checksums.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringmq_benches::{BODY, frame, noise, result};
use ringmq_format::checksum::{Crc32c, crc32c};
use ringmq_format::frame::{Frame, frames};
use ringmq_format::group::{BodyCrc, BodyState, GroupFields, GroupHeader, GroupKind, check_body, group_size};
use ringmq_format::limits::{BLOCK_SIZE, GROUP_HEADER_SIZE};
use ringmq_format::record::Payload;
use ringmq_format::{Epoch, Lsn, SegmentSeq};
use std::hint::black_box;

const INCARNATION: u64 = 0x1234_5678_9abc_def0;

fn checksum(c: &mut Criterion) {
    for (name, len) in
        [("checksum_crc32c_64", 64), ("checksum_crc32c_4k", 4 << 10), ("checksum_crc32c_1m", 1 << 20)]
    {
        let bytes = noise(len);
        result(name, &crc32c(&bytes).to_le_bytes());
        let mut group = c.benchmark_group("checksum");
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(name, |b| b.iter(|| crc32c(black_box(&bytes))));
    }
}

/// What an append does with a payload: a block at a time copied and checksummed while it is near, against one pass for
/// each.
fn copies(c: &mut Criterion) {
    for (shape, len) in [("1k", 1 << 10), ("64k", 64 << 10), ("1m", 1 << 20)] {
        let bytes = noise(len);
        let mut to = vec![0; len];
        let fused = |to: &mut [u8], from: &[u8]| {
            let mut crc = Crc32c::new();
            for (to, from) in to.chunks_mut(BLOCK_SIZE).zip(from.chunks(BLOCK_SIZE)) {
                to.copy_from_slice(from);
                crc.update(to);
            }
            crc.finish()
        };
        let two_passes = |to: &mut [u8], from: &[u8]| {
            to.copy_from_slice(from);
            crc32c(to)
        };
        assert_eq!(fused(&mut to, &bytes), two_passes(&mut to, &bytes));
        let mut group = c.benchmark_group("copy");
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("copy_checksum_fused_{shape}"), |b| {
            b.iter(|| fused(black_box(&mut to), black_box(&bytes)));
        });
        group.bench_function(format!("copy_checksum_two_passes_{shape}"), |b| {
            b.iter(|| two_passes(black_box(&mut to), black_box(&bytes)));
        });
    }
}

fn frame_rooms(c: &mut Criterion) {
    let body = noise(BODY);
    for (shape, records) in [("1k_x1", 1), ("1k_x1000", 1000)] {
        let bytes = frame(records, &body);
        result(&format!("frame_encode_{shape}"), &bytes);
        let mut group = c.benchmark_group("frame");
        group.throughput(Throughput::Bytes((records * BODY) as u64));
        group
            .bench_function(format!("frame_encode_{shape}"), |b| b.iter(|| frame(records, black_box(&body))));
        group.bench_function(format!("frame_parse_verify_{shape}"), |b| {
            b.iter(|| Frame::parse(black_box(&bytes)).map(|frame| frame.verify_payload()).is_ok());
        });
        group.bench_function(format!("record_table_walk_{shape}"), |b| {
            b.iter(|| walk(black_box(&bytes)));
        });
        assert_eq!(walk(&bytes), records * BODY);
    }
}

/// Bytes of all bodies, from the table alone.
fn walk(bytes: &[u8]) -> usize {
    let Ok(frame) = Frame::parse(bytes) else { return 0 };
    let Ok(payload) = Payload::parse(&frame) else { return 0 };
    payload.entries().map(|entry| entry.body_len + entry.key.map_or(0, <[u8]>::len) - 4).sum()
}

/// Writes the header of a group whose frames stand in `bytes` already.
fn close(bytes: &mut [u8], used: usize) -> GroupHeader {
    let mut crc = BodyCrc::new(INCARNATION);
    let mut count = 0;
    for frame in frames(&bytes[GROUP_HEADER_SIZE..used]).flatten() {
        crc.add(frame.header);
        count += 1;
    }
    let fields = GroupFields {
        segment_seq: SegmentSeq(1),
        lsn: Lsn(4096),
        durable_lsn: Lsn(4096),
        used,
        total: bytes.len(),
        frames: count,
        body_crc: crc.finish(),
        chain: 7,
        epoch: Epoch(1),
        kind: GroupKind::Data,
    };
    GroupHeader::new(&fields, INCARNATION)
}

fn group_rooms(c: &mut Criterion) {
    let one = frame(1, &noise(BODY));
    for (shape, count) in [("1_frame", 1), ("256_frames", 256)] {
        let used = GROUP_HEADER_SIZE + count * one.len();
        let mut bytes = vec![0; GROUP_HEADER_SIZE];
        bytes.extend_from_slice(&one.repeat(count));
        bytes.resize(group_size(count * one.len()), 0);
        let header = close(&mut bytes, used);
        assert_eq!(check_body(&header, &bytes, INCARNATION), BodyState::Whole);
        result(&format!("group_close_{shape}"), &header.next_chain().to_le_bytes());
        let mut group = c.benchmark_group("group");
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("group_close_{shape}"), |b| {
            b.iter(|| close(black_box(&mut bytes), used));
        });
        group.bench_function(format!("group_check_{shape}"), |b| {
            b.iter(|| check_body(black_box(&header), black_box(&bytes), INCARNATION));
        });
    }
}

criterion_group!(benches, checksum, copies, frame_rooms, group_rooms);
criterion_main!(benches);
