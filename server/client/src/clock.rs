//! The shell's clock and its one kind of timer.

use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, Sleep, sleep_until};

/// Microseconds since the client was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }

    fn instant(&self, at_us: u64) -> Instant {
        // "Never" is a day: far enough, and no overflow.
        self.0 + Duration::from_micros(at_us.min(self.now_us() + 86_400_000_000))
    }
}

/// A timer that is moved only when it must ring earlier; ringing too early is harmless to the cores.
pub(crate) struct Alarm {
    clock: Clock,
    at_us: u64,
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, at_us: u64::MAX, sleep: Box::pin(sleep_until(clock.instant(u64::MAX))) }
    }

    /// Rings at `at_us` or earlier.
    pub(crate) async fn wait(&mut self, at_us: u64) {
        if at_us < self.at_us {
            self.at_us = at_us;
            self.sleep.as_mut().reset(self.clock.instant(at_us));
        }
        self.sleep.as_mut().await;
        self.at_us = u64::MAX;
        // One that has rung would ring again at once.
        self.sleep.as_mut().reset(self.clock.instant(u64::MAX));
    }
}

/// Unix milliseconds.
pub(crate) fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// A number that nobody else has drawn: std seeds its hashers from the system.
pub(crate) fn random_u64() -> u64 {
    RandomState::new().hash_one((std::process::id(), SystemTime::now()))
}
