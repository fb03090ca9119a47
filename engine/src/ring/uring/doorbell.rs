//! How another thread wakes a ring's `wait`, without a system call while that ring is awake.
//!
//! Only a `ring` that finds it asleep ([`Bell`]) writes to the eventfd, and a write that comes before the kernel sleeps
//! is found by its poll.

use super::super::Errno;
use super::bell::Bell;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

struct Inner {
    bell: Bell,
    /// Counts up and is never read: the ring polls for the edge, and 2^64 rings do not happen.
    event: OwnedFd,
}

/// Wakes the ring that made it.
#[derive(Clone)]
pub struct UringDoorbell(Arc<Inner>);

impl UringDoorbell {
    pub(super) fn new() -> Result<Self, Errno> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(super::errno_of)?;
        Ok(Self(Arc::new(Inner { bell: Bell::new(), event })))
    }

    /// Makes the ring's current or next `wait` return.
    pub fn ring(&self) {
        if !self.0.bell.ring() {
            return;
        }
        while rustix::io::write(&self.0.event, &1u64.to_ne_bytes()) == Err(rustix::io::Errno::INTR) {}
    }

    /// Called by the ring before it sleeps; `false`: it was rung, do not.
    pub(super) fn sleep_begin(&self) -> bool {
        self.0.bell.sleep_begin()
    }

    /// Called by the ring at the end of each wait.
    pub(super) fn wait_end(&self) {
        self.0.bell.wait_end();
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
