//! The client's state machines: records into frames, frames into records.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringmq_benches::client::{decode, entry, produce_and_settle, producer};
use ringmq_benches::{frame, noise, result};
use std::collections::VecDeque;
use std::hint::black_box;

const SMALL: usize = 100;

fn client(c: &mut Criterion) {
    let body = noise(SMALL);
    let mut group = c.benchmark_group("client");
    for (shape, records) in [("x1", 1u64), ("x1000", 1000)] {
        group.throughput(Throughput::Elements(records));
        let mut core = producer();
        group.bench_function(format!("client_push_poll_100b_{shape}"), |b| {
            b.iter(|| produce_and_settle(&mut core, black_box(&body), records));
        });
        let bytes = Bytes::from(frame(records as usize, &body));
        result(&format!("client_decode_100b_{shape}"), &bytes);
        let mut out = VecDeque::with_capacity(records as usize);
        assert_eq!(decode(&entry(records as u32), &bytes, &mut out), records as usize);
        group.bench_function(format!("client_decode_100b_{shape}"), |b| {
            b.iter(|| {
                out.clear();
                decode(&entry(records as u32), black_box(&bytes), &mut out)
            });
        });
    }
}

criterion_group!(benches, client);
criterion_main!(benches);
