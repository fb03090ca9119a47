//! The queues between shards under shuttle: `server/src/shard/mailbox.rs` as it is, on queues of one place, with the bell
//! of the engine, in thousands of random orders. Every message comes once and in order, and nobody sleeps for ever.

// The file under test names these packages; here they are what follows.
extern crate self as ringmq_engine;
extern crate self as rtrb;

use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread;
use std::collections::VecDeque;

mod atomic {
    pub(crate) use shuttle::sync::atomic::{AtomicU32, Ordering};
}

#[path = "../../engine/src/ring/uring/bell.rs"]
mod bell;
#[allow(dead_code, unreachable_pub, reason = "a test needs a part of it")]
#[path = "../../server/src/shard/mailbox.rs"]
mod mailbox;

mod mail {
    /// What the queues carry here.
    #[derive(Debug)]
    pub(crate) struct Mail {
        pub(crate) from: u16,
        pub(crate) number: u64,
    }
}

use mail::Mail;
use mailbox::{Mailboxes, mesh};

/// Places of a queue: few, so that it is full most of the time.
const PLACES: usize = 1;
const ITERATIONS: usize = 1_500;

pub(crate) enum PushError<T> {
    Full(T),
}

pub(crate) struct RingBuffer;

type Queue<T> = Arc<Mutex<VecDeque<T>>>;

pub(crate) struct Producer<T>(Queue<T>);

pub(crate) struct Consumer<T>(Queue<T>);

fn lock<T>(mutex: &Mutex<T>) -> shuttle::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl RingBuffer {
    #[allow(clippy::new_ret_no_self, reason = "as the package that it stands for")]
    pub(crate) fn new<T>(_: usize) -> (Producer<T>, Consumer<T>) {
        let queue = Arc::new(Mutex::new(VecDeque::new()));
        (Producer(Arc::clone(&queue)), Consumer(queue))
    }
}

impl<T> Producer<T> {
    pub(crate) fn push(&mut self, value: T) -> Result<(), PushError<T>> {
        let mut queue = lock(&self.0);
        if queue.len() == PLACES {
            return Err(PushError::Full(value));
        }
        queue.push_back(value);
        Ok(())
    }
}

impl<T> Consumer<T> {
    pub(crate) fn pop(&mut self) -> Result<T, ()> {
        lock(&self.0).pop_front().ok_or(())
    }
}

pub(crate) mod ring {
    use super::*;

    struct Inner {
        bell: bell::Bell,
        count: Mutex<u32>,
        changed: Condvar,
    }

    #[derive(Clone)]
    pub(crate) struct Doorbell(Arc<Inner>);

    impl Doorbell {
        pub(crate) fn new() -> Self {
            Self(Arc::new(Inner { bell: bell::Bell::new(), count: Mutex::new(0), changed: Condvar::new() }))
        }

        pub(crate) fn ring(&self) {
            if self.0.bell.ring() {
                *lock(&self.0.count) += 1;
                self.0.changed.notify_one();
            }
        }

        /// As the engine's `wait`; `poll`: something is left to do, so that it does not sleep.
        pub(crate) fn wait(&self, seen: &mut u32, poll: bool) {
            if !poll && self.0.bell.sleep_begin() {
                let mut count = lock(&self.0.count);
                while *count == *seen {
                    count = self.0.changed.wait(count).unwrap_or_else(|poisoned| poisoned.into_inner());
                }
                *seen = *count;
            }
            self.0.bell.wait_end();
        }
    }
}

use ring::Doorbell;

/// A shard that sends to all others, and ends when it has everything that they send.
fn shard(mut mail: Mailboxes, doorbell: &Doorbell, shards: u16, messages: u64) {
    let own = mail.own();
    let others: Vec<u16> = (0..shards).filter(|shard| *shard != own).collect();
    let mut received = vec![0; usize::from(shards)];
    let (mut sent, mut seen) = (0, 0);
    loop {
        while let Some(message) = mail.receive() {
            let next = &mut received[usize::from(message.from)];
            assert_eq!(message.number, *next, "messages come once and in order");
            *next += 1;
        }
        if sent < messages {
            others.iter().for_each(|other| mail.send(*other, Mail { from: own, number: sent }));
            sent += 1;
        }
        let left = mail.flush();
        let has_all = others.iter().all(|other| received[usize::from(*other)] == messages);
        if sent == messages && !left && has_all {
            return;
        }
        doorbell.wait(&mut seen, left || sent < messages);
        thread::yield_now();
    }
}

fn run(shards: u16, messages: u64) {
    let doorbells: Vec<Doorbell> = (0..shards).map(|_| Doorbell::new()).collect();
    let threads: Vec<_> = mesh(shards)
        .into_iter()
        .zip(&doorbells)
        .map(|(mut mail, own)| {
            mail.set_doorbells(&doorbells);
            let own = own.clone();
            thread::spawn(move || shard(mail, &own, shards, messages))
        })
        .collect();
    threads.into_iter().for_each(|thread| assert!(thread.join().is_ok()));
}

#[test]
fn messages_between_three_shards_come_once_in_order_and_always() {
    shuttle::check_random(|| run(3, 3), ITERATIONS);
}

#[test]
fn messages_between_two_shards_come_whatever_is_preempted() {
    shuttle::check_pct(|| run(2, 4), ITERATIONS, 4);
}
