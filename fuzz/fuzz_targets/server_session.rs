//! See `ringmq_fuzz::session::server_session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmq_fuzz::session::server_session(data));
