//! Files and sockets by slot, mirrored in the kernel's table of registered files where it has one.
//!
//! Invariants  R2  a descriptor is closed only when nothing is in flight on it; its slot is reused after that
//! States      open -[close_begin]-> closing -[last op arrived]-> closed; files go from open to closed at once

use super::super::{Errno, RingReport, Token};
use io_uring::{Submitter, types};
use rustix::process::{Resource, getrlimit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    File,
    Listener,
    Connection,
}

/// How an entry names a descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Registered(types::Fixed),
    Plain(types::Fd),
}

struct Descriptor {
    fd: OwnedFd,
    role: Role,
    registered: bool,
    /// `user_data` of each op in flight.
    flying: Vec<u64>,
    /// Who is told when it is closed.
    closing: Option<Token>,
}

pub(super) struct Descriptors {
    slots: Vec<Option<Descriptor>>,
    free: Vec<u32>,
    max: usize,
    registers: bool,
}

impl Descriptors {
    pub(super) fn new(submitter: &Submitter<'_>, wanted: u32, report: &mut RingReport) -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let max = u64::from(wanted).min(limit) as u32;
        if max < wanted {
            report.fallbacks.push(format!("{max} files and sockets instead of {wanted}: RLIMIT_NOFILE"));
        }
        let registers = match submitter.register_files_sparse(max) {
            Ok(()) => true,
            Err(error) => {
                report.fallbacks.push(format!("registered files off: {error}"));
                false
            }
        };
        Self { slots: Vec::new(), free: Vec::new(), max: max as usize, registers }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() == self.max
    }

    /// Gives a descriptor a slot, or closes it when there is none.
    pub(super) fn insert(
        &mut self,
        submitter: &Submitter<'_>,
        fd: OwnedFd,
        role: Role,
    ) -> Result<u32, Errno> {
        if self.is_full() {
            return Err(Errno::MFILE);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        // A slot that the kernel refuses is used by its plain descriptor.
        let registered =
            self.registers && matches!(submitter.register_files_update(slot, &[fd.as_raw_fd()]), Ok(1));
        let taken = self.slots[slot as usize].replace(Descriptor {
            fd,
            role,
            registered,
            flying: Vec::new(),
            closing: None,
        });
        assert!(taken.is_none(), "slot {slot} is free and taken");
        Ok(slot)
    }

    fn get(&self, slot: u32) -> &Descriptor {
        match self.slots.get(slot as usize) {
            Some(Some(descriptor)) => descriptor,
            _ => panic!("descriptor {slot} is not open"), // R2
        }
    }

    fn get_mut(&mut self, slot: u32) -> &mut Descriptor {
        match self.slots.get_mut(slot as usize) {
            Some(Some(descriptor)) => descriptor,
            _ => panic!("descriptor {slot} is not open"), // R2
        }
    }

    /// How an op names the descriptor. `ECANCELED` when that is being closed.
    pub(super) fn target(&self, slot: u32, role: Role) -> Result<Target, Errno> {
        let descriptor = self.get(slot);
        assert_eq!(descriptor.role, role, "descriptor {slot} is of another kind");
        if descriptor.closing.is_some() {
            return Err(Errno::CANCELED);
        }
        Ok(match descriptor.registered {
            true => Target::Registered(types::Fixed(slot)),
            false => Target::Plain(types::Fd(descriptor.fd.as_raw_fd())),
        })
    }

    pub(super) fn take_off(&mut self, slot: u32, user_data: u64) {
        self.get_mut(slot).flying.push(user_data);
    }

    /// An op has arrived. Says whether it was the last one of a descriptor that waits to be closed.
    pub(super) fn land(&mut self, slot: u32, user_data: u64) -> bool {
        let descriptor = self.get_mut(slot);
        match descriptor.flying.iter().position(|flying| *flying == user_data) {
            Some(at) => descriptor.flying.swap_remove(at),
            None => panic!("descriptor {slot} has no op {user_data:#x} in flight"),
        };
        descriptor.flying.is_empty() && descriptor.closing.is_some()
    }

    pub(super) fn is_closing(&self, slot: u32) -> bool {
        self.get(slot).closing.is_some()
    }

    /// No op is taken from now on. Returns those to be waited for.
    pub(super) fn close_begin(&mut self, slot: u32, token: Token) -> Vec<u64> {
        let descriptor = self.get_mut(slot);
        assert_ne!(descriptor.role, Role::File, "file {slot} is closed as a socket");
        assert!(descriptor.closing.is_none(), "socket {slot} is closed twice");
        descriptor.closing = Some(token);
        descriptor.flying.clone()
    }

    /// What is in flight on all sockets: it may never end by itself.
    pub(super) fn flying_on_sockets(&self) -> Vec<u64> {
        let sockets = self.slots.iter().flatten().filter(|descriptor| descriptor.role != Role::File);
        sockets.flat_map(|descriptor| descriptor.flying.iter().copied()).collect()
    }

    /// Closes a descriptor on which nothing is in flight; returns who is to be told.
    pub(super) fn close(
        &mut self,
        submitter: &Submitter<'_>,
        slot: u32,
    ) -> (Option<Token>, Result<u32, Errno>) {
        let flying = self.get(slot).flying.len();
        assert_eq!(flying, 0, "descriptor {slot} is closed while the kernel uses it"); // R2
        let Some(descriptor) = self.slots.get_mut(slot as usize).and_then(Option::take) else {
            panic!("descriptor {slot} is not open");
        };
        if descriptor.registered {
            let _ = submitter.register_files_update(slot, &[-1]);
        }
        self.free.push(slot);
        // SAFETY: the descriptor was owned by the slot, which is empty now, and nothing is in flight on it (R2).
        // Closed by hand because `OwnedFd` hides an error that the file system reports last.
        let closed = unsafe { libc::close(descriptor.fd.into_raw_fd()) };
        let result = match closed {
            0 => Ok(0),
            _ => Err(super::errno_of(std::io::Error::last_os_error())),
        };
        (descriptor.closing, result)
    }

    pub(super) fn fd(&self, slot: u32) -> BorrowedFd<'_> {
        self.get(slot).fd.as_fd()
    }

    pub(super) fn role(&self, slot: u32) -> Role {
        self.get(slot).role
    }
}
