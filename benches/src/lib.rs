//! Inputs of the benches and the line that says whether two runs did the same work.
//!
//! A bench is named `room_action_shape`. `cargo bench -p ringmq-benches` measures; `cargo test` runs each body
//! once, on the same inputs.

pub mod client;
pub mod shard;

use ringmq_format::checksum::crc32c;
use ringmq_format::frame::Codec;
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};

/// Bytes of a record's body in most benches.
pub const BODY: usize = 1024;
const TIME_MS: i64 = 1_700_000_000_000;

/// Bytes that do not compress, the same in every run.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A DATA frame of `records` records with `body` as body and a key each.
///
/// # Panics
/// If they do not fit into a frame.
pub fn frame(records: usize, body: &[u8]) -> Vec<u8> {
    let mut builder = FrameBuilder::new(TIME_MS, usize::MAX);
    for index in 0..records {
        let key = (index as u32).to_le_bytes();
        let record = Record { key: Some(&key), time_ms: TIME_MS, body, ..Record::default() };
        let pushed = builder.push(&record);
        assert_eq!(pushed, Ok(()), "record {index} of {records}");
    }
    builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None)
}

/// Prints a hash of what a bench computes: a faster run with another hash is no faster run.
pub fn result(bench: &str, bytes: &[u8]) {
    println!("{bench}: result {:08x} over {} bytes", crc32c(bytes), bytes.len());
}
