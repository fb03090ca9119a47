//! Two threads, the queue and the bell between shards, as fast as they can: for the sanitizers, which see a race that
//! did no harm. `RINGMQ_TEST_MESSAGES`: so many (100,000).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32 as Count, Ordering as Order};

mod atomic {
    pub(crate) use std::sync::atomic::{AtomicU32, Ordering};
}

#[path = "../../../engine/src/ring/uring/bell.rs"]
mod bell;

use bell::Bell;

struct Shared {
    bell: Bell,
    /// Stands for the eventfd.
    event: Count,
}

/// Without the test harness, whose own queues are not instrumented and look like races.
fn main() {
    two_threads_pass_every_message_and_wake_each_other();
    println!("every message came, in order");
}

fn two_threads_pass_every_message_and_wake_each_other() {
    let messages = std::env::var("RINGMQ_TEST_MESSAGES").ok().and_then(|count| count.parse().ok());
    let messages: u64 = messages.unwrap_or(if cfg!(miri) { 300 } else { 100_000 });
    let shared = Arc::new(Shared { bell: Bell::new(), event: Count::new(0) });
    let (mut to, mut from) = rtrb::RingBuffer::<Vec<u64>>::new(16);
    let sender = Arc::clone(&shared);
    let receiver = std::thread::current();
    let sending = std::thread::spawn(move || {
        for message in 0..messages {
            let mut value = vec![message; 3];
            while let Err(rtrb::PushError::Full(back)) = to.push(value) {
                value = back;
                std::thread::yield_now();
            }
            if sender.bell.ring() {
                sender.event.fetch_add(1, Order::Release);
                receiver.unpark();
            }
        }
    });
    let (mut next, mut seen) = (0, 0);
    while next < messages {
        while let Ok(value) = from.pop() {
            assert_eq!(value, [next; 3]);
            next += 1;
        }
        if next < messages && shared.bell.sleep_begin() {
            while shared.event.load(Order::Acquire) == seen {
                std::thread::park();
            }
            seen = shared.event.load(Order::Acquire);
        }
        shared.bell.wait_end();
    }
    assert!(sending.join().is_ok());
}
