//! The bell between shards under loom: every order of two threads, and every value that weak memory allows, for the
//! very lines that the engine runs. A wake-up that is lost ends in a deadlock, which loom reports.
//!
//! It stands in this workspace and not behind `cfg(loom)`, because the lines take their atomics from the module above
//! them: so it runs with every `cargo test` here.

use loom::sync::atomic::AtomicUsize;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
}

#[path = "../../engine/src/ring/uring/bell.rs"]
mod bell;

use atomic::Ordering;
use bell::Bell;

/// As the eventfd with a poll for its edge: a count, and whoever waits has seen some of it.
struct Event {
    count: Mutex<u32>,
    changed: Condvar,
}

impl Event {
    fn new() -> Self {
        Self { count: Mutex::new(0), changed: Condvar::new() }
    }

    fn write(&self) {
        let Ok(mut count) = self.count.lock() else { panic!("a thread has panicked") };
        *count += 1;
        self.changed.notify_one();
    }

    fn wait_for_edge(&self, seen: &mut u32) {
        let Ok(mut count) = self.count.lock() else { panic!("a thread has panicked") };
        while *count == *seen {
            count = match self.changed.wait(count) {
                Ok(count) => count,
                Err(_) => panic!("a thread has panicked"),
            };
        }
        *seen = *count;
    }
}

/// A ring that sleeps, and what is queued for it: the end of a single-producer queue, published as `rtrb` does.
struct Shared {
    bell: Bell,
    event: Event,
    tails: [AtomicUsize; 2],
}

/// One end of it. Where a model ends in a panic it is left alone: loom takes no drop any more.
struct Held(Option<Arc<Shared>>);

impl Drop for Held {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::mem::forget(self.0.take());
        }
    }
}

impl std::ops::Deref for Held {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        let Some(shared) = &self.0 else { panic!("it is held until it is dropped") };
        shared
    }
}

/// `ring` as the engine does it, after something was queued.
fn send(shared: &Shared, sender: usize, messages: usize) {
    for message in 1..=messages {
        shared.tails[sender].store(message, Ordering::Release);
        if shared.bell.ring() {
            shared.event.write();
        }
    }
}

/// The receiving shard: look, sleep, look. `sleep_begin` is the engine's, or a broken one.
fn receive(shared: &Shared, messages: [usize; 2], sleep_begin: impl Fn(&Bell) -> bool) {
    let mut seen = 0;
    loop {
        let arrived = [0, 1].map(|sender| shared.tails[sender].load(Ordering::Acquire));
        if arrived == messages {
            return;
        }
        if sleep_begin(&shared.bell) {
            shared.event.wait_for_edge(&mut seen);
        }
        shared.bell.wait_end();
    }
}

fn check(messages: [usize; 2], sleep_begin: impl Fn(&Bell) -> bool + Copy + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let tails = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let shared = Arc::new(Shared { bell: Bell::new(), event: Event::new(), tails });
        let senders: Vec<_> = (0..2)
            .filter(|sender| messages[*sender] > 0)
            .map(|sender| {
                let shared = Held(Some(Arc::clone(&shared)));
                thread::spawn(move || send(&shared, sender, messages[sender]))
            })
            .collect();
        let shared = Held(Some(shared));
        receive(&shared, messages, sleep_begin);
        senders.into_iter().for_each(|sender| assert!(sender.join().is_ok()));
    });
}

#[test]
fn one_sender_never_leaves_a_sleeper_asleep() {
    check([2, 0], Bell::sleep_begin);
}

#[test]
fn two_senders_never_leave_a_sleeper_asleep() {
    check([1, 1], Bell::sleep_begin);
}

/// The check can fail: a ring that sleeps though it was rung is found.
#[test]
#[should_panic(expected = "deadlock")]
fn a_ring_that_sleeps_though_it_was_rung_is_found() {
    check([1, 0], |bell| {
        let _ = bell.sleep_begin();
        true
    });
}
