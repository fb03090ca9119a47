//! The wire codec, on the messages that carry load.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringmq_benches::{BODY, frame, noise, result};
use ringmq_protocol::{
    FetchEntryHeader, FetchFields, HEADER_SIZE, Header, Op, Produce, ProduceOutcome, ProduceSlot, Request,
    Response, decode_request, decode_response, entries, fetch, limits,
};
use std::hint::black_box;

fn produce(c: &mut Criterion) {
    let one = frame(1, &noise(BODY));
    for (shape, frames) in [("1_frame", 1u32), ("100_frames", 100)] {
        let slots: Vec<ProduceSlot> = (1..=frames)
            .map(|handle| ProduceSlot { handle: handle.into(), len: (one.len() as u32).into() })
            .collect();
        let encode = |out: &mut Vec<u8>| {
            out.clear();
            Request::Produce(Produce { slots: black_box(&slots) }).encode(7, out);
        };
        let mut message = Vec::new();
        encode(&mut message);
        result(&format!("protocol_encode_produce_{shape}"), &message);
        assert_eq!(decode(&message), frames as usize * one.len());
        let mut group = c.benchmark_group("produce");
        group.throughput(Throughput::Elements(u64::from(frames)));
        let mut out = Vec::new();
        group.bench_function(format!("protocol_encode_produce_{shape}"), |b| b.iter(|| encode(&mut out)));
        group.bench_function(format!("protocol_decode_produce_{shape}"), |b| {
            b.iter(|| decode(black_box(&message)));
        });
        let outcomes: Vec<_> =
            (0..u64::from(frames)).map(|at| ProduceOutcome::stored(at, 9, false)).collect();
        group.bench_function(format!("protocol_answer_produce_{shape}"), |b| {
            b.iter(|| {
                out.clear();
                Response::Produced(black_box(&outcomes)).encode(7, 0, &mut out);
            });
        });
    }
}

/// Bytes of all frames that a PRODUCE announces.
fn decode(message: &[u8]) -> usize {
    let Ok(header) = Header::parse(message, limits::REQUEST_SIZE_MAX) else { return 0 };
    match decode_request(header, &message[HEADER_SIZE..HEADER_SIZE + header.fields_len()]) {
        Ok(Request::Produce(produce)) => produce.ranges().map(|(_, range)| range.len()).sum(),
        _ => 0,
    }
}

fn fetched(c: &mut Criterion) {
    let one = frame(1, &noise(BODY));
    let mut message = Vec::new();
    let start = fetch::fetch_begin(&mut message);
    for offset in 0..100 {
        fetch::put_entry(&mut message, &FetchEntryHeader::new(offset, 9, 0, 1));
        message.extend_from_slice(&one);
    }
    fetch::fetch_end(&mut message, start, Op::Push, 0, 3, &FetchFields::new(0, 100, 100), 0);
    assert_eq!(walk(&message), 100);
    result("protocol_walk_push_100_frames", &message);
    let mut group = c.benchmark_group("push");
    group.throughput(Throughput::Elements(100));
    group.bench_function("protocol_walk_push_100_frames", |b| b.iter(|| walk(black_box(&message))));
}

/// Entries of a PUSH whose frame headers are good.
fn walk(message: &[u8]) -> usize {
    let Ok(header) = Header::parse(message, limits::RESPONSE_SIZE_MAX) else { return 0 };
    let (fields, frames) = message[HEADER_SIZE..].split_at(header.fields_len());
    match decode_response(header, fields) {
        Ok(Response::Push(_)) => entries(frames).flatten().count(),
        _ => 0,
    }
}

criterion_group!(benches, produce, fetched);
criterion_main!(benches);
