//! The client's logic, without I/O: state machines that take bytes and time and give bytes and deadlines.
//!
//! Owns what must be right whatever the network does: correlation and handles ([`connection`]), order, sequence
//! numbers and retries ([`producer`]), positions, credit and checks of what was received ([`consumer`]), being in a
//! consumer group ([`member`]), leases of records ([`queue`]), frames that become visible later ([`late`]).
//!
//! Ignorant of sockets, clocks and randomness: `now_us` is a parameter (microseconds of any clock that never goes
//! back) and a seed is given at the start. The same inputs give the same outputs, so a simulator can drive them.

pub mod connection;
pub mod consumer;
pub mod decode;
pub mod late;
pub mod member;
pub mod output;
pub mod producer;
pub mod queue;

use crate::limits::{BACKOFF_MAX_US, BACKOFF_MIN_US};
use ringmq_protocol::{ErrorBody, ErrorCode, Retry};
use std::fmt;
use std::sync::Arc;

/// What the server said instead of doing what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Number of the [`ErrorCode`]; a newer server may have sent one that is not known here.
    pub number: u16,
    /// How long it asks to wait.
    pub retry_after_ms: u32,
    /// What exactly was wrong.
    pub message: Arc<str>,
}

impl Refused {
    /// A refusal with the code's own text.
    pub fn new(code: ErrorCode) -> Self {
        Self { number: code as u16, retry_after_ms: 0, message: Arc::from("") }
    }

    pub(crate) fn from_body(body: &ErrorBody<'_>) -> Self {
        Self { number: body.code, retry_after_ms: body.retry_after_ms, message: Arc::from(body.message) }
    }

    /// The code, if it is known.
    pub fn code(&self) -> Option<ErrorCode> {
        ErrorCode::parse(self.number)
    }

    /// What may be done. An unknown code may mean anything.
    pub fn retry(&self) -> Retry {
        self.code().map_or(Retry::OutcomeUnknown, ErrorCode::retry)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code() {
            Some(code) => write!(f, "{code}")?,
            None => write!(f, "error {} that this client does not know; upgrade it", self.number)?,
        }
        // The server's own words for a code add nothing.
        let known = self.code().is_some_and(|code| *self.message == *code.to_string());
        if self.message.is_empty() || known { Ok(()) } else { write!(f, " ({})", self.message) }
    }
}

impl std::error::Error for Refused {}

/// Random numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number that is not 0.
    pub fn next_nonzero(&mut self) -> u64 {
        loop {
            let number = self.next_u64();
            if number != 0 {
                return number;
            }
        }
    }
}

/// Pause before attempt number `attempts + 1`: doubled each time, shortened by up to a quarter at random so that
/// many clients do not return at once, and never shorter than what the server asked for.
pub fn backoff_us(attempts: u32, retry_after_ms: u32, random: &mut Random) -> u64 {
    let doubled = BACKOFF_MIN_US.saturating_mul(1 << attempts.min(16)).min(BACKOFF_MAX_US);
    let jittered = doubled - random.next_u64() % (doubled / 4);
    jittered.max(u64::from(retry_after_ms) * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_heed_the_server() {
        let mut random = Random::new(1);
        for attempts in 0..40 {
            let pause = backoff_us(attempts, 0, &mut random);
            let nominal = (BACKOFF_MIN_US << attempts.min(16)).min(BACKOFF_MAX_US);
            assert!(pause <= nominal && pause >= nominal * 3 / 4, "{attempts}: {pause}");
        }
        assert_eq!(backoff_us(0, 7_000, &mut random), 7_000_000);
    }
}
