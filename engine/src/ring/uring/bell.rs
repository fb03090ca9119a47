//! Who wakes whom, without the descriptor: the three states of a ring that may sleep.
//!
//! States  awake -[sleep_begin]-> asleep -[wait_end]-> awake, and from either -[ring]-> rung -[wait_end]-> awake.
//! None is lost: `sleep_begin` fails on rung, `ring` says when somebody sleeps and has to be woken, and what was queued
//! before a `ring` is seen by whoever looks behind the next `wait_end`.
//!
//! The atomics are those of the module above, so that the same lines run on `std`'s and on those of model checkers
//! (`fuzz/tests/loom.rs`, `fuzz/tests/shuttle.rs`).

use super::atomic::{AtomicU32, Ordering};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const RUNG: u32 = 2;

pub(super) struct Bell {
    state: AtomicU32,
}

impl Bell {
    pub(super) fn new() -> Self {
        Self { state: AtomicU32::new(AWAKE) }
    }

    /// Makes the current or the next wait end. `true`: it sleeps, and has to be woken.
    pub(super) fn ring(&self) -> bool {
        // SeqCst: what was queued before this is seen by whoever sees RUNG, and a sleeper is never overlooked.
        self.state.swap(RUNG, Ordering::SeqCst) == ASLEEP
    }

    /// Called before sleeping; `false`: it was rung, do not.
    pub(super) fn sleep_begin(&self) -> bool {
        self.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Called at the end of each wait, before anything is looked at.
    pub(super) fn wait_end(&self) {
        self.state.swap(AWAKE, Ordering::SeqCst);
    }
}
