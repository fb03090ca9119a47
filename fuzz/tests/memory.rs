//! As `corpus`, for the targets that look at how much is allocated. One test, so that nobody else allocates meanwhile.

#![allow(clippy::unwrap_used)]

mod replay;

use cap::Cap;
use replay::replay;
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

fn meter() -> usize {
    ALLOCATOR.total_allocated()
}

#[test]
fn no_input_is_given_more_memory_than_it_may_claim() {
    let before = meter();
    std::hint::black_box(vec![1u8; 1 << 20]);
    assert!(meter() - before >= 1 << 20, "nothing is counted");
    replay("record_batch", 1, |data| ringmq_fuzz::batch::record_batch(data, meter));
    replay("filter_expression", 1, |data| ringmq_fuzz::text::filter_expression(data, meter));
    replay("config_file", 1, |data| ringmq_fuzz::text::config_file(data, meter));
}
