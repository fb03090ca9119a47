//! Ops in flight: a slab that owns what the kernel looks at until their completion arrives.
//!
//! Invariants  R1  paths stay here, unmoved, until the completion; lent buffers are named here
//!             R3  `user_data` carries the slot's generation: an arrival for an earlier one finds nothing

use super::super::{BufferId, Token};
use io_uring::squeue;
use std::ffi::CString;
use std::os::fd::OwnedFd;

/// What is left to do when the kernel has answered.
#[derive(Debug)]
pub(super) enum Job {
    /// Nothing: its result is the op's result.
    Plain,
    /// A descriptor will arrive and get a slot. The path is the kernel's until then.
    Open { _path: CString },
    /// A directory will arrive, to be synced.
    OpenDir { _path: CString },
    /// The sync of a directory, which is closed when this is dropped.
    SyncDir { _dir: OwnedFd },
    /// A connection will arrive and get a slot.
    Accept,
}

pub(super) struct Flight {
    pub(super) token: Token,
    pub(super) job: Job,
    /// Slot of the descriptor that it works on.
    pub(super) slot: Option<u32>,
    pub(super) lent: Option<BufferId>,
    /// To submit it again after EINTR or EAGAIN.
    pub(super) entry: squeue::Entry,
    pub(super) tries: u8,
}

#[derive(Default)]
struct Seat {
    generation: u32,
    flight: Option<Flight>,
}

#[derive(Default)]
pub(super) struct Flights {
    seats: Vec<Seat>,
    free: Vec<u32>,
}

const GENERATION_MASK: u32 = 0x00ff_ffff;

impl Flights {
    /// Takes a flight in and marks its entry.
    pub(super) fn insert(&mut self, mut flight: Flight) -> squeue::Entry {
        let index = self.free.pop().unwrap_or_else(|| {
            self.seats.push(Seat::default());
            self.seats.len() as u32 - 1
        });
        let seat = &mut self.seats[index as usize];
        assert!(seat.flight.is_none(), "seat {index} is free and taken");
        flight.entry.set_user_data(u64::from(seat.generation) << 32 | u64::from(index));
        let entry = flight.entry.clone();
        seat.flight = Some(flight);
        entry
    }

    fn seat(&mut self, user_data: u64) -> Option<&mut Seat> {
        let seat = self.seats.get_mut(user_data as u32 as usize)?;
        (seat.generation == (user_data >> 32) as u32 & GENERATION_MASK).then_some(seat) // R3
    }

    pub(super) fn get(&mut self, user_data: u64) -> Option<&mut Flight> {
        self.seat(user_data)?.flight.as_mut()
    }

    pub(super) fn remove(&mut self, user_data: u64) -> Option<Flight> {
        let seat = self.seat(user_data)?;
        let flight = seat.flight.take()?;
        seat.generation = (seat.generation + 1) & GENERATION_MASK;
        self.free.push(user_data as u32);
        Some(flight)
    }

    pub(super) fn len(&self) -> usize {
        self.seats.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_arrival_of_a_reused_seat_finds_nothing() {
        let flight = || Flight {
            token: Token::new(1, 2, 3),
            job: Job::Plain,
            slot: None,
            lent: None,
            entry: io_uring::opcode::Nop::new().build(),
            tries: 0,
        };
        let mut flights = Flights::default();
        let first = flights.insert(flight()).get_user_data();
        assert!(flights.remove(first).is_some());
        let second = flights.insert(flight()).get_user_data();
        assert_eq!(first as u32, second as u32, "the same seat");
        assert!(flights.get(first).is_none() && flights.remove(first).is_none());
        assert_eq!(flights.len(), 1);
        assert!(flights.remove(second).is_some());
        assert_eq!(flights.len(), 0);
    }
}
