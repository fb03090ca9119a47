//! See `ringmq_fuzz::open::shard_open`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmq_fuzz::open::shard_open(data));
