//! See `ringmq_fuzz::protocol_decode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmq_fuzz::protocol_decode(data));
