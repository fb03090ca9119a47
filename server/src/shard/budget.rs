//! One budget for all that a shard holds for its connections: their input and output buffers, and frames that were
//! forwarded to other shards and have no answer yet.
//!
//! Invariants  G1  Beyond the budget there is one answer that came out larger, and what one connection, the *overdraft*,
//!                 needs for one request: it gives the place free when it holds little again, and the next one gets
//!                 it when the budget is kept again.
//!             G2  Who is refused is asked again when something was given back, those that hold least first.
//! The more a connection would hold, the smaller is the share of the budget that it may count on, so that many large
//! requests that never become whole do not stop small ones.

use super::mail::ConnectionKey;
use crate::limits::{CONNECTION_MEMORY_LARGE, CONNECTION_MEMORY_SMALL};

#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: usize,
    overdraft: Option<ConnectionKey>,
    /// Connections that were refused: what they held, and their slots.
    starved: Vec<(usize, u32)>,
    /// What was used at the last refusal.
    refused_at: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, used: 0, overdraft: None, starved: Vec::new(), refused_at: 0 }
    }

    /// Bytes that are held.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Something is held that could be given back for others.
    pub(super) fn is_pressed(&self) -> bool {
        self.used > self.limit / 2
    }

    /// What was counted as `before` is `now`.
    pub(super) fn change(&mut self, before: usize, now: usize) {
        assert!(before <= self.used, "{before} of {} bytes are given back", self.used);
        self.used = self.used - before + now;
    }

    /// Whether one that holds `holds` may have `more`.
    pub(super) fn fits(&self, holds: usize, more: usize) -> bool {
        let would_hold = holds + more;
        let share = if would_hold <= CONNECTION_MEMORY_SMALL {
            self.limit
        } else if would_hold <= CONNECTION_MEMORY_LARGE {
            self.limit / 4 * 3
        } else {
            self.limit / 2
        };
        self.used + more <= share
    }

    /// As `fits`, and to one connection in any case (G1).
    pub(super) fn grants(&mut self, key: ConnectionKey, holds: usize, more: usize) -> bool {
        if self.fits(holds, more) || self.overdraft == Some(key) {
            return true;
        }
        if self.overdraft.is_none() && self.used <= self.limit {
            self.overdraft = Some(key);
            return true;
        }
        self.refused_at = self.used;
        false
    }

    /// A connection holds little again, or is gone.
    pub(super) fn settle(&mut self, key: ConnectionKey) {
        if self.overdraft == Some(key) {
            self.overdraft = None;
        }
    }

    /// Asks a connection that was refused again later (G2).
    pub(super) fn starve(&mut self, holds: usize, slot: u32) {
        self.starved.push((holds, slot));
    }

    /// Those that may ask again now, those that hold least first.
    pub(super) fn take_starved(&mut self) -> Vec<(usize, u32)> {
        let overdraft = self.overdraft.is_none() && self.used <= self.limit;
        if !overdraft && self.used >= self.refused_at {
            return Vec::new();
        }
        let mut starved = std::mem::take(&mut self.starved);
        starved.sort_unstable();
        starved.dedup();
        starved
    }
}
