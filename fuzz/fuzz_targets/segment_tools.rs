//! See `ringmq_fuzz::tools`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmq_fuzz::tools::segment_tools(data));
