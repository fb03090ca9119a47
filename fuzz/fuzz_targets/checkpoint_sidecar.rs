//! See `ringmq_fuzz::files::checkpoint_sidecar`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmq_fuzz::files::checkpoint_sidecar(data));
