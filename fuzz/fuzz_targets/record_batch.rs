//! See `ringmq_fuzz::batch::record_batch`.
#![no_main]

use cap::Cap;
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

libfuzzer_sys::fuzz_target!(
    |data: &[u8]| ringmq_fuzz::batch::record_batch(data, || ALLOCATOR.total_allocated())
);
