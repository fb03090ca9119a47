//! See `ringmq_fuzz::files::superblock_identity`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmq_fuzz::files::superblock_identity(data));
