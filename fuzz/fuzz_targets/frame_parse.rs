//! See `ringmq_fuzz::frame_parse`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmq_fuzz::frame_parse(data));
