//! See `ringmq_fuzz::client::client_session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmq_fuzz::client::client_session(data));
