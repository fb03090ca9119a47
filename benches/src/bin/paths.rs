//! Goes every hot path a counted number of times: `paths DIRECTORY [N]`, under callgrind.
//!
//! Each path is a function `path_…` that is called three times: with N, so that everything is loaded and grown, then
//! with N and with 2 N. The difference of the last two, divided by N, is the cost of one step without that of the call.
//! It prints `path n` for each call, in order. What a path needs is made ready outside of it.

use bytes::Bytes;
use ringmq_benches::client::{decode, entry, produce_and_settle, producer};
use ringmq_benches::shard::Bench;
use ringmq_benches::{BODY, frame, noise};
use ringmq_client::core::producer::ProducerCore;
use ringmq_engine::partition::producers::{Original, Producers, Verdict};
use ringmq_engine::shard::Fetched;
use ringmq_format::checksum::{Crc32c, crc32c};
use ringmq_format::frame::{Frame, FrameHeader, frames};
use ringmq_format::group::{BodyCrc, BodyState, GroupFields, GroupHeader, GroupKind, check_body, group_size};
use ringmq_format::limits::{BLOCK_SIZE, GROUP_HEADER_SIZE};
use ringmq_format::record::Payload;
use ringmq_format::{Epoch, Lsn, Offset, PartitionId, SegmentSeq};
use ringmq_protocol::{
    FetchEntryHeader, FetchFields, HEADER_SIZE, Header, Op, Produce, ProduceOutcome, ProduceSlot, Request,
    Response, decode_request, decode_response, entries, fetch, limits,
};
use std::collections::VecDeque;
use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;

const STEPS: usize = 64;
const INCARNATION: u64 = 0x1234_5678_9abc_def0;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(directory) = arguments.next() else {
        eprintln!("usage: paths DIRECTORY [N]");
        return ExitCode::from(2);
    };
    let steps = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(STEPS);
    format_paths(steps);
    protocol_paths(steps);
    client_paths(steps);
    partition_paths(steps);
    match Bench::open(Path::new(&directory)) {
        Ok(bench) => shard_paths(bench, steps),
        Err(why) => println!("skipped: {why}"),
    }
    ExitCode::SUCCESS
}

/// Calls a path with N, N and 2 N steps, each on what `prepare` makes.
fn go<T>(name: &str, steps: usize, mut prepare: impl FnMut(usize) -> T, path: impl Fn(&mut T, usize)) {
    for n in [steps, steps, 2 * steps] {
        let mut input = prepare(n);
        path(black_box(&mut input), n);
        println!("{name} {n}");
    }
}

// --- frames, records, groups ------------------------------------------------------------------------------------

fn format_paths(steps: usize) {
    let body = noise(BODY);
    let small = noise(100);
    let block = noise(4096);
    let one = frame(1, &body);
    go("checksum_4k", steps, |_| (), |(), n| path_checksum_4k(&block, n));
    let mut to = vec![0; 64 << 10];
    let large = noise(64 << 10);
    for n in [steps, steps, 2 * steps] {
        path_copy_checksum_fused_64k(&mut to, &large, n);
        println!("copy_checksum_fused_64k {n}");
    }
    for n in [steps, steps, 2 * steps] {
        path_copy_checksum_two_passes_64k(&mut to, &large, n);
        println!("copy_checksum_two_passes_64k {n}");
    }
    go("frame_parse_verify_1k", steps, |_| (), |(), n| path_frame_parse_verify_1k(&one, n));
    go("record_encode_100b", steps, |_| (), |(), n| path_record_encode_100b(&small, n));
    go("record_walk_100b", steps, |n| frame(n, &small), |bytes, _| path_record_walk_100b(bytes));
    let group = |n: usize| {
        let used = GROUP_HEADER_SIZE + n * one.len();
        let mut bytes = vec![0; GROUP_HEADER_SIZE];
        bytes.extend_from_slice(&one.repeat(n));
        bytes.resize(group_size(n * one.len()), 0);
        let header = close(&mut bytes, used);
        (bytes, used, header)
    };
    go("group_close_1k_frames", steps, group, |group, _| path_group_close_1k_frames(&mut group.0, group.1));
    go("group_check_1k_frames", steps, group, |group, _| path_group_check_1k_frames(&group.0, &group.2));
}

#[inline(never)]
fn path_checksum_4k(block: &[u8], n: usize) {
    for _ in 0..n {
        black_box(crc32c(black_box(block)));
    }
}

#[inline(never)]
fn path_copy_checksum_fused_64k(to: &mut [u8], from: &[u8], n: usize) {
    for _ in 0..n {
        let mut crc = Crc32c::new();
        for (to, from) in black_box(&mut *to).chunks_mut(BLOCK_SIZE).zip(black_box(from).chunks(BLOCK_SIZE)) {
            to.copy_from_slice(from);
            crc.update(to);
        }
        black_box(crc.finish());
    }
}

#[inline(never)]
fn path_copy_checksum_two_passes_64k(to: &mut [u8], from: &[u8], n: usize) {
    for _ in 0..n {
        black_box(&mut *to).copy_from_slice(black_box(from));
        black_box(crc32c(to));
    }
}

#[inline(never)]
fn path_frame_parse_verify_1k(bytes: &[u8], n: usize) {
    for _ in 0..n {
        let whole = Frame::parse(black_box(bytes)).is_ok_and(|frame| frame.verify_payload().is_ok());
        assert!(black_box(whole));
    }
}

#[inline(never)]
fn path_record_encode_100b(body: &[u8], n: usize) {
    black_box(frame(n, black_box(body)));
}

#[inline(never)]
fn path_record_walk_100b(bytes: &[u8]) {
    let Ok(frame) = Frame::parse(bytes) else { panic!("a frame") };
    let Ok(payload) = Payload::parse(&frame) else { panic!("a payload") };
    black_box(payload.entries().map(|entry| entry.body_len).sum::<usize>());
}

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

#[inline(never)]
fn path_group_close_1k_frames(bytes: &mut [u8], used: usize) {
    black_box(close(bytes, used));
}

#[inline(never)]
fn path_group_check_1k_frames(bytes: &[u8], header: &GroupHeader) {
    assert_eq!(check_body(header, bytes, INCARNATION), BodyState::Whole);
}

// --- the wire ---------------------------------------------------------------------------------------------------

fn protocol_paths(steps: usize) {
    let one = frame(1, &noise(BODY));
    let message = |n: usize| {
        let slot =
            |handle: usize| ProduceSlot { handle: (handle as u32).into(), len: (one.len() as u32).into() };
        let slots: Vec<ProduceSlot> = (1..=n).map(slot).collect();
        let mut message = Vec::new();
        Request::Produce(Produce { slots: &slots }).encode(7, &mut message);
        message
    };
    go("protocol_decode_produce_slot", steps, message, |message, _| {
        path_protocol_decode_produce_slot(message)
    });
    go(
        "protocol_decode_produce_request",
        steps,
        |_| message(1),
        |message, n| {
            path_protocol_decode_produce_request(message, n);
        },
    );
    let outcomes = |n: usize| -> Vec<ProduceOutcome> {
        (0..n as u64).map(|at| ProduceOutcome::stored(at, 9, false)).collect()
    };
    go("protocol_answer_outcome", steps, outcomes, |outcomes, _| path_protocol_answer_outcome(outcomes));
    let push = |n: usize| {
        let mut message = Vec::new();
        let start = fetch::fetch_begin(&mut message);
        for offset in 0..n as u64 {
            fetch::put_entry(&mut message, &FetchEntryHeader::new(offset, 9, 0, 1));
            message.extend_from_slice(&one);
        }
        fetch::fetch_end(&mut message, start, Op::Push, 0, 3, &FetchFields::new(0, n as u64, n as u64), 0);
        message
    };
    go("protocol_walk_push_frame", steps, push, |message, n| path_protocol_walk_push_frame(message, n));
}

#[inline(never)]
fn path_protocol_decode_produce_slot(message: &[u8]) {
    black_box(decode_produce(message));
}

#[inline(never)]
fn path_protocol_decode_produce_request(message: &[u8], n: usize) {
    for _ in 0..n {
        black_box(decode_produce(black_box(message)));
    }
}

fn decode_produce(message: &[u8]) -> usize {
    let Ok(header) = Header::parse(message, limits::REQUEST_SIZE_MAX) else { panic!("a header") };
    match decode_request(header, &message[HEADER_SIZE..HEADER_SIZE + header.fields_len()]) {
        Ok(Request::Produce(produce)) => produce.ranges().map(|(_, range)| range.len()).sum(),
        _ => panic!("a PRODUCE"),
    }
}

#[inline(never)]
fn path_protocol_answer_outcome(outcomes: &[ProduceOutcome]) {
    let mut out = Vec::with_capacity(16 << 10);
    Response::Produced(black_box(outcomes)).encode(7, 0, &mut out);
    black_box(out);
}

#[inline(never)]
fn path_protocol_walk_push_frame(message: &[u8], n: usize) {
    let Ok(header) = Header::parse(message, limits::RESPONSE_SIZE_MAX) else { panic!("a header") };
    let (fields, frames) = message[HEADER_SIZE..].split_at(header.fields_len());
    let Ok(Response::Push(_)) = decode_response(header, fields) else { panic!("a PUSH") };
    assert_eq!(entries(frames).flatten().count(), n);
}

// --- the client -------------------------------------------------------------------------------------------------

fn client_paths(steps: usize) {
    let small = noise(100);
    let mut core = producer();
    for n in [steps, steps, 2 * steps] {
        path_client_push_100b(&mut core, &small, n);
        println!("client_push_100b {n}");
    }
    let input = |n: usize| (entry(n as u32), Bytes::from(frame(n, &small)), VecDeque::with_capacity(n));
    go("client_decode_100b", steps, input, |(entry, bytes, out), _| {
        path_client_decode_100b(entry, bytes, out)
    });
}

#[inline(never)]
fn path_client_push_100b(core: &mut ProducerCore, body: &[u8], n: usize) {
    produce_and_settle(core, body, n as u64);
}

#[inline(never)]
fn path_client_decode_100b(
    entry: &FetchEntryHeader,
    bytes: &Bytes,
    out: &mut VecDeque<ringmq_client::ConsumedRecord>,
) {
    assert!(decode(entry, bytes, out) > 0);
}

// --- partitions and the shard -----------------------------------------------------------------------------------

fn partition_paths(steps: usize) {
    let bytes = frame(1, &noise(BODY));
    let headers = |n: usize| {
        let Ok(frame) = Frame::parse(&bytes) else { panic!("a frame") };
        let header = |sequence: u32| {
            let mut header: FrameHeader = *frame.header;
            header.producer_id = 9.into();
            header.base_sequence = sequence.into();
            header
        };
        ((0..n as u32).map(header).collect::<Vec<_>>(), Producers::default())
    };
    go("producers_judge_take", steps, headers, |(headers, producers), _| {
        path_producers_judge_take(producers, headers);
    });
}

#[inline(never)]
fn path_producers_judge_take(producers: &mut Producers, headers: &[FrameHeader]) {
    for (at, header) in headers.iter().enumerate() {
        assert_eq!(producers.judge(header, Lsn(u64::MAX)), Verdict::Append);
        let original = Original { base_offset: Offset(at as u64), timestamp: 1, end_lsn: Lsn(1) };
        producers.take(header, original);
    }
}

fn shard_paths(mut bench: Bench, steps: usize) {
    let small = frame(1, &noise(BODY));
    let large = frame(64, &noise(BODY));
    // Slots and the first segment are there once something is durable.
    bench.append_durable(1, &small);
    for (name, bytes, spread) in [
        ("shard_append_1k", &small, 1),
        ("shard_append_64k", &large, 1),
        ("shard_append_1k_to_64_partitions", &small, 64),
        ("shard_append_1k_to_1000_partitions", &small, 1000),
    ] {
        // Few large ones, so that none waits for room.
        let steps = if name.ends_with("64k") { steps.div_ceil(8) } else { steps };
        for n in [steps, steps, 2 * steps] {
            let at = match name {
                "shard_append_1k" => path_shard_append_1k(&mut bench, bytes, n),
                "shard_append_64k" => path_shard_append_64k(&mut bench, bytes, n),
                "shard_append_1k_to_64_partitions" => {
                    path_shard_append_1k_to_64_partitions(&mut bench, bytes, n, spread)
                }
                _ => path_shard_append_1k_to_1000_partitions(&mut bench, bytes, n, spread),
            };
            println!("{name} {n}");
            bench.settle(at);
        }
    }
    for _ in 0..2 * steps {
        let at = bench.append(3, &large);
        bench.settle(at);
    }
    let visible = bench.visible(3);
    for n in [steps, steps, 2 * steps] {
        let start = Offset(visible.0 - (n * 64) as u64);
        path_shard_fetch_tail_64k(&mut bench, start, visible);
        println!("shard_fetch_tail_64k {n}");
    }
    for _ in 0..2 * steps {
        bench.append(2, &small);
    }
    let at = bench.append(2, &small);
    bench.settle(at);
    let visible = bench.visible(2);
    for n in [steps, steps, 2 * steps] {
        path_shard_fetch_tail_1k(&mut bench, Offset(visible.0 - n as u64), visible);
        println!("shard_fetch_tail_1k {n}");
    }
    bench.close();
}

#[inline(never)]
fn path_shard_append_1k(bench: &mut Bench, bytes: &[u8], n: usize) -> Lsn {
    append(bench, bytes, n, 1)
}

#[inline(never)]
fn path_shard_append_64k(bench: &mut Bench, bytes: &[u8], n: usize) -> Lsn {
    append(bench, bytes, n, 1)
}

#[inline(never)]
fn path_shard_append_1k_to_64_partitions(bench: &mut Bench, bytes: &[u8], n: usize, spread: usize) -> Lsn {
    append(bench, bytes, n, spread)
}

#[inline(never)]
fn path_shard_append_1k_to_1000_partitions(bench: &mut Bench, bytes: &[u8], n: usize, spread: usize) -> Lsn {
    append(bench, bytes, n, spread)
}

#[inline(always)]
fn append(bench: &mut Bench, bytes: &[u8], n: usize, spread: usize) -> Lsn {
    let mut last = Lsn(0);
    for at in 0..n {
        // Far apart, so that no two share a line of memory.
        last = bench.append(1 + (at * 7 % spread) as u32, bytes);
    }
    last
}

#[inline(never)]
fn path_shard_fetch_tail_64k(bench: &mut Bench, start: Offset, visible: Offset) {
    fetch_tail(bench, 3, start, visible);
}

#[inline(never)]
fn path_shard_fetch_tail_1k(bench: &mut Bench, start: Offset, visible: Offset) {
    fetch_tail(bench, 2, start, visible);
}

#[inline(always)]
fn fetch_tail(bench: &mut Bench, partition: u32, start: Offset, visible: Offset) {
    let mut bytes = 0;
    let mut sink = |_: &_, frame: &[u8]| bytes += frame.len();
    let fetched = bench.shard.fetch(&bench.ring, PartitionId(partition), start, usize::MAX, &mut sink);
    assert_eq!(fetched, Fetched::AtEnd(visible));
    black_box(bytes);
}
