//! How another thread wakes a ring's `wait`, without a system call while that ring is awake.
//!
//! States  awake -[sleep_begin]-> asleep -[wait ends]-> awake, and from either -[ring]-> rung -[wait ends]-> awake.
//! Only a `ring` that finds it asleep writes to the eventfd. None is lost: `sleep_begin` fails on rung, and a write
//! that comes before the kernel sleeps is found by its poll.

use super::super::Errno;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const RUNG: u32 = 2;

struct Bell {
    state: AtomicU32,
    /// Counts up and is never read: the ring polls for the edge, and 2^64 rings do not happen.
    event: OwnedFd,
}

/// Wakes the ring that made it.
#[derive(Clone)]
pub struct UringDoorbell(Arc<Bell>);

impl UringDoorbell {
    pub(super) fn new() -> Result<Self, Errno> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(super::errno_of)?;
        Ok(Self(Arc::new(Bell { state: AtomicU32::new(AWAKE), event })))
    }

    /// Makes the ring's current or next `wait` return.
    pub fn ring(&self) {
        // SeqCst: what was queued before this is seen by whoever sees RUNG, and a sleeper is never overlooked.
        if self.0.state.swap(RUNG, Ordering::SeqCst) != ASLEEP {
            return;
        }
        while rustix::io::write(&self.0.event, &1u64.to_ne_bytes()) == Err(rustix::io::Errno::INTR) {}
    }

    /// Called by the ring before it sleeps; `false`: it was rung, do not.
    pub(super) fn sleep_begin(&self) -> bool {
        self.0.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Called by the ring at the end of each wait.
    pub(super) fn wait_end(&self) {
        self.0.state.swap(AWAKE, Ordering::SeqCst);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
