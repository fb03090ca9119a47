//! The kernel's io_uring as the back end of a [`Ring`](super::Ring).
//!
//! An op becomes an entry of the submission queue and a flight in a slab, which owns all that the kernel looks at.
//! Its completion frees the flight, waits in `ready` until it is reaped, and gives the lent buffer back then.
//!
//! Invariants  R1  what an entry points to (lent buffer, path) stays until its completion has arrived; a ring that is
//!                 dropped waits for that, and leaks what does not arrive
//!             R2  a descriptor has a count of ops in flight; it is closed at zero and not before
//!             R3  `user_data` carries the generation of the flight's seat
//! One thread makes, uses and drops a ring: SINGLE_ISSUER, held by the type (`Memory` is not `Send`).
//! Tests       flights (generations) · engine/tests/ring_uring.rs (behaviour, on a real disk and loopback)

#![allow(unsafe_code)]

mod bell;
mod descriptors;
mod doorbell;
mod files;
mod flights;
mod kernel;
mod pieces;

/// What [`bell`] is made of; model checkers put theirs in this place.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU32, Ordering};
}

use self::descriptors::{Descriptors, Role, Target};
pub use self::doorbell::UringDoorbell;
pub use self::files::kernel_workers;
use self::flights::{Flight, Flights, Job};
use self::kernel::{Arrived, Kernel, Sleep};
use self::pieces::Pieces;
use super::{
    BufRange, BufferId, Completion, DirEntry, Doorbell, DoorbellBack, Errno, FileFacts, FileId, Memory, Now,
    Op, RingConfig, RingReport, RingStats, SocketId, Token,
};
use io_uring::{opcode, squeue, types};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::ffi::CString;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Entries that are the ring's own, above every generation and seat of a flight.
const BELL: u64 = 1 << 63;
const CANCEL: u64 = BELL | 1;

const ROOM: u8 = 255;
/// EINTR and EAGAIN of one op that are dealt with here before a room sees them.
const TRIES_MAX: u8 = 16;
const LISTEN_BACKLOG: i32 = 4096;
/// Silence of a peer after which the kernel probes it, pause between probes, and how many stay unanswered.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// How long a peer may leave bytes that were sent unacknowledged, or take none, before the kernel gives it up.
const UNTAKEN_TIME: Duration = Duration::from_secs(30);
const RANDOM_BLOCK: usize = 64;
/// How long a ring that is dropped waits for the kernel to finish.
const DROP_WAIT: Duration = Duration::from_secs(10);
const BLOCK: usize = 4096;

/// An entry, with the descriptor named in the way that its slot is known to the kernel.
macro_rules! entry {
    ($target:expr, $fd:ident => $entry:expr) => {
        match $target {
            Target::Registered($fd) => $entry,
            Target::Plain($fd) => $entry,
        }
    };
}

fn errno_of(error: impl Into<std::io::Error>) -> Errno {
    Errno(error.into().raw_os_error().unwrap_or(libc::EIO))
}

/// A completion that waits to be reaped, and the buffer that goes back with it.
struct Done {
    completion: Completion,
    lent: Option<BufferId>,
}

/// One io_uring and what it is used on.
pub struct UringRing {
    kernel: Kernel,
    flights: Flights,
    descriptors: Descriptors,
    pieces: Pieces,
    bell: UringDoorbell,
    ready: VecDeque<Done>,
    arrived: Vec<Arrived>,
    locks: Vec<OwnedFd>,
    origin: Duration,
    now: Now,
    random: Vec<u64>,
    runs: u32,
    stats: RingStats,
    report: RingReport,
    /// Being dropped: nothing is tried again.
    closing: bool,
}

impl UringRing {
    /// Makes a ring as good as the kernel has it; what it lacks is in the report.
    pub fn new(config: RingConfig) -> Result<Self, Errno> {
        let mut report = RingReport { kernel: kernel_version(), ..RingReport::default() };
        let mut kernel = Kernel::new(config, &mut report)?;
        kernel.probe()?;
        let descriptors = Descriptors::new(&kernel.submitter(), config.descriptors_max, &mut report);
        let pieces = Pieces::new(&kernel.submitter(), config.register_buffers, &mut report.fallbacks);
        let mut ring = Self {
            kernel,
            flights: Flights::default(),
            descriptors,
            pieces,
            bell: UringDoorbell::new()?,
            ready: VecDeque::new(),
            arrived: Vec::new(),
            locks: Vec::new(),
            origin: monotonic(),
            now: Now::default(),
            random: Vec::new(),
            runs: 0,
            stats: RingStats::default(),
            report,
            closing: false,
        };
        ring.arm_bell();
        ring.read_clock();
        Ok(ring)
    }

    fn arm_bell(&mut self) {
        let fd = types::Fd(self.bell.fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build().user_data(BELL);
        // SAFETY: points to nothing; the eventfd lives as long as the ring (R2).
        unsafe { self.kernel.push(entry) };
    }

    pub(super) fn submit(&mut self, memory: &mut Memory, token: Token, op: Op) {
        self.stats.submitted += 1;
        if let Err(errno) = self.submit_op(memory, token, op) {
            self.finish(token, Err(errno), None);
        }
    }

    /// Fails, with nothing lent and nothing in flight, where the answer is known at once.
    fn submit_op(&mut self, memory: &mut Memory, token: Token, op: Op) -> Result<(), Errno> {
        match op {
            Op::Write { file, from, position, durable } => {
                check_direct(from, position);
                let target = self.descriptors.target(file.0, Role::File)?;
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                let address = memory.lend(from);
                let fixed = self.registered(memory, from, address);
                let entry = entry!(target, fd => match fixed {
                    Some(index) => opcode::WriteFixed::new(fd, address, from.len, index)
                        .offset(position).rw_flags(flags).build(),
                    None => opcode::Write::new(fd, address, from.len).offset(position).rw_flags(flags).build(),
                });
                self.fly(token, Job::Plain, Some(file.0), Some(from.buffer), entry);
            }
            Op::Read { file, into, position } => {
                check_direct(into, position);
                let target = self.descriptors.target(file.0, Role::File)?;
                let address = memory.lend(into);
                let fixed = self.registered(memory, into, address);
                let entry = entry!(target, fd => match fixed {
                    Some(index) => opcode::ReadFixed::new(fd, address, into.len, index).offset(position).build(),
                    None => opcode::Read::new(fd, address, into.len).offset(position).build(),
                });
                self.fly(token, Job::Plain, Some(file.0), Some(into.buffer), entry);
            }
            Op::SyncData { file } => self.sync(token, file, types::FsyncFlags::DATASYNC)?,
            Op::SyncAll { file } => self.sync(token, file, types::FsyncFlags::empty())?,
            Op::SyncDir { path } => {
                let path = c_path(&path)?;
                let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
                    .flags(libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC)
                    .build();
                self.stats.syncs += 1;
                self.fly(token, Job::OpenDir { _path: path }, None, None, entry);
            }
            Op::Open { path, create } => {
                if self.descriptors.is_full() {
                    return Err(Errno::MFILE);
                }
                let path = c_path(&path)?;
                let flags = libc::O_RDWR | libc::O_DIRECT | libc::O_CLOEXEC;
                let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
                    .flags(flags | if create { libc::O_CREAT } else { 0 })
                    .mode(0o600)
                    .build();
                self.fly(token, Job::Open { _path: path }, None, None, entry);
            }
            Op::Allocate { file, len } => {
                let target = self.descriptors.target(file.0, Role::File)?;
                let entry = entry!(target, fd => opcode::Fallocate::new(fd, len).build());
                self.fly(token, Job::Plain, Some(file.0), None, entry);
            }
            Op::Close { file } => {
                assert_eq!(self.descriptors.role(file.0), Role::File, "{file:?} is a socket");
                let (_, result) = self.descriptors.close(&self.kernel.submitter(), file.0);
                self.finish(token, result, None);
            }
            Op::Accept { listener } => {
                if self.descriptors.is_full() {
                    return Err(Errno::MFILE);
                }
                let target = self.descriptors.target(listener.0, Role::Listener)?;
                let nobody = std::ptr::null_mut();
                let entry = entry!(target, fd => opcode::Accept::new(fd, nobody, std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC).build());
                self.fly(token, Job::Accept, Some(listener.0), None, entry);
            }
            Op::Recv { socket, into } => {
                let target = self.descriptors.target(socket.0, Role::Connection)?;
                let address = memory.lend(into);
                let entry = entry!(target, fd => opcode::Recv::new(fd, address, into.len).build());
                self.fly(token, Job::Plain, Some(socket.0), Some(into.buffer), entry);
            }
            Op::Send { socket, from } => {
                let target = self.descriptors.target(socket.0, Role::Connection)?;
                let address = memory.lend(from);
                let entry = entry!(target, fd => opcode::Send::new(fd, address, from.len)
                    .flags(libc::MSG_NOSIGNAL).build());
                self.fly(token, Job::Plain, Some(socket.0), Some(from.buffer), entry);
            }
            Op::Shutdown { socket } => {
                self.descriptors.target(socket.0, Role::Connection)?;
                // Never waits, and as an entry it would be handed to a kernel worker.
                let fd = self.descriptors.fd(socket.0);
                let result = rustix::net::shutdown(fd, rustix::net::Shutdown::Write).map_err(errno_of);
                self.finish(token, result.map(|()| 0), None);
            }
            Op::CloseSocket { socket } => self.close_socket(token, socket),
        }
        Ok(())
    }

    fn sync(&mut self, token: Token, file: FileId, flags: types::FsyncFlags) -> Result<(), Errno> {
        let target = self.descriptors.target(file.0, Role::File)?;
        let entry = entry!(target, fd => opcode::Fsync::new(fd).flags(flags).build());
        self.stats.syncs += 1;
        self.fly(token, Job::Plain, Some(file.0), None, entry);
        Ok(())
    }

    fn registered(&mut self, memory: &Memory, range: BufRange, address: *mut u8) -> Option<u16> {
        let fallbacks = &mut self.report.fallbacks;
        let index = self.pieces.index(&self.kernel.submitter(), memory, range, address, fallbacks)?;
        self.stats.fixed += 1;
        Some(index)
    }

    fn fly(
        &mut self,
        token: Token,
        job: Job,
        slot: Option<u32>,
        lent: Option<BufferId>,
        entry: squeue::Entry,
    ) {
        let entry = self.flights.insert(Flight { token, job, slot, lent, entry, tries: 0 });
        if let Some(slot) = slot {
            self.descriptors.take_off(slot, entry.get_user_data()); // R2
        }
        // SAFETY: the flight owns the path and names the lent buffer until the completion arrived (R1), and counts on
        // its descriptor (R2).
        unsafe { self.kernel.push(entry) };
    }

    fn finish(&mut self, token: Token, result: Result<u32, Errno>, lent: Option<BufferId>) {
        self.ready.push_back(Done { completion: Completion { token, result }, lent });
    }

    /// Ends what is in flight on a socket; the socket itself is closed when the last of it has arrived.
    fn close_socket(&mut self, token: Token, socket: SocketId) {
        let slot = socket.0;
        let flying = self.descriptors.close_begin(slot, token);
        if flying.is_empty() {
            self.close_now(slot);
            return;
        }
        // Wakes receives, sends and accepts that the kernel has; a peer that is gone already is no matter.
        let _ = rustix::net::shutdown(self.descriptors.fd(slot), rustix::net::Shutdown::Both);
        // Queued behind all of them, so that those not handed over yet are met too.
        self.cancel(flying);
    }

    fn cancel(&mut self, flying: Vec<u64>) {
        for user_data in flying {
            let entry = opcode::AsyncCancel::new(user_data).build().user_data(CANCEL);
            // SAFETY: points to nothing; a flight that has ended is not found, by its generation (R3).
            unsafe { self.kernel.push(entry) };
        }
    }

    fn close_now(&mut self, slot: u32) {
        let (token, result) = self.descriptors.close(&self.kernel.submitter(), slot);
        if let Some(token) = token {
            self.finish(token, result, None);
        }
    }

    pub(super) fn wait(&mut self, _memory: &mut Memory, until_us: Option<u64>) {
        self.collect();
        let mut limit = None;
        let mut sleep = self.ready.is_empty();
        if let Some(until_us) = until_us {
            let left = if until_us == 0 { 0 } else { until_us.saturating_sub(self.mono_us()) };
            limit = Some(Duration::from_micros(left));
            sleep = sleep && left > 0;
        }
        if sleep && self.bell.sleep_begin() {
            self.enter(Sleep::AtMost(limit));
        } else if self.kernel.wants_enter() {
            self.enter(Sleep::Poll);
        }
        self.bell.wait_end();
        self.read_clock();
    }

    fn enter(&mut self, sleep: Sleep) {
        if self.kernel.enter(sleep).is_err() && !self.kernel.has_arrived() {
            // The kernel has no memory for requests, and nothing to pick up would free some.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn reap(&mut self, memory: &mut Memory, out: &mut Vec<Completion>, max: usize) {
        if self.ready.len() < max {
            self.collect();
        }
        let count = self.ready.len().min(max);
        for done in self.ready.drain(..count) {
            if let Some(buffer) = done.lent {
                memory.give_back(buffer);
            }
            out.push(done.completion);
        }
        self.stats.reaped += count as u64;
    }

    pub(super) fn run(&mut self, memory: &mut Memory, op: Op) -> Result<u32, Errno> {
        self.runs = self.runs.wrapping_add(1);
        let token = Token::new(ROOM, 0, self.runs);
        let mut from = self.ready.len();
        self.submit(memory, token, op);
        loop {
            let ours = self.ready.iter().skip(from).position(|done| done.completion.token == token);
            if let Some(done) = ours.and_then(|at| self.ready.remove(from + at)) {
                if let Some(buffer) = done.lent {
                    memory.give_back(buffer);
                }
                self.stats.reaped += 1;
                self.read_clock();
                return done.completion.result;
            }
            from = self.ready.len();
            self.collect();
            if self.ready.len() == from {
                self.enter(Sleep::AtMost(None));
            }
        }
    }

    /// Moves what the kernel has finished to `ready`.
    fn collect(&mut self) {
        let mut arrived = mem::take(&mut self.arrived);
        self.kernel.arrived(&mut arrived);
        for entry in arrived.drain(..) {
            match entry.user_data {
                BELL => {
                    if !entry.more && !self.closing {
                        self.arm_bell();
                    }
                }
                CANCEL => {}
                _ => self.land(entry),
            }
        }
        self.arrived = arrived;
    }

    fn land(&mut self, arrived: Arrived) {
        let Some(flight) = self.flights.get(arrived.user_data) else { return }; // R3
        let closing = self.closing || flight.slot.is_some_and(|slot| self.descriptors.is_closing(slot));
        let passing = matches!(-arrived.result, libc::EINTR | libc::EAGAIN)
            || matches!(flight.job, Job::Accept) && arrived.result == -libc::ECONNABORTED;
        if passing && !closing && flight.tries < TRIES_MAX {
            flight.tries += 1;
            let entry = flight.entry.clone();
            // SAFETY: as when it was first pushed; the flight is still there (R1, R2).
            unsafe { self.kernel.push(entry) };
            return;
        }
        let mut result = match u32::try_from(arrived.result) {
            Ok(count) => Ok(count),
            Err(_) => Err(Errno(-arrived.result)),
        };
        if let (Job::OpenDir { .. }, Ok(fd)) = (&flight.job, result) {
            // SAFETY: the kernel has just opened it for this flight; nobody else knows the number (R2).
            let dir = unsafe { OwnedFd::from_raw_fd(fd as i32) };
            let mut entry = opcode::Fsync::new(types::Fd(dir.as_raw_fd())).build();
            entry.set_user_data(arrived.user_data);
            flight.entry = entry.clone();
            flight.job = Job::SyncDir { _dir: dir };
            // SAFETY: points to nothing; the flight owns the directory until this arrives (R2).
            unsafe { self.kernel.push(entry) };
            return;
        }
        let Some(flight) = self.flights.remove(arrived.user_data) else { return };
        if let (Job::Open { .. } | Job::Accept, Ok(fd)) = (&flight.job, result) {
            // SAFETY: the kernel has just opened it for this flight; nobody else knows the number (R2).
            let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
            let role = if flight.slot.is_some() { Role::Connection } else { Role::File };
            if role == Role::File {
                files::leave_access_time(&fd);
            }
            result = match closing {
                true => Err(Errno::CANCELED),
                false => self.descriptors.insert(&self.kernel.submitter(), fd, role),
            };
        }
        self.finish(flight.token, result, flight.lent);
        if let Some(slot) = flight.slot
            && self.descriptors.land(slot, arrived.user_data)
        {
            self.close_now(slot);
        }
    }

    pub(super) fn now(&self) -> Now {
        self.now
    }

    fn mono_us(&self) -> u64 {
        monotonic().saturating_sub(self.origin).as_micros() as u64
    }

    pub(super) fn read_clock(&mut self) -> Now {
        let wall = clock_gettime(ClockId::Realtime);
        self.now = Now { mono_us: self.mono_us(), wall_ms: wall.tv_sec * 1000 + wall.tv_nsec / 1_000_000 };
        self.now
    }

    pub(super) fn random(&mut self) -> u64 {
        loop {
            if let Some(number) = self.random.pop() {
                return number;
            }
            let mut block = [0u64; RANDOM_BLOCK];
            // SAFETY: the kernel fills at most the block, which is ours through the call (R1).
            let filled = unsafe { libc::getrandom(block.as_mut_ptr().cast(), size_of_val(&block), 0) };
            match usize::try_from(filled) {
                Ok(bytes) => self.random.extend(&block[..bytes / size_of::<u64>()]),
                Err(_) => {
                    let errno = errno_of(std::io::Error::last_os_error());
                    assert_eq!(errno, Errno::INTR, "getrandom: {errno}");
                }
            }
        }
    }

    pub(super) fn doorbell(&mut self) -> Doorbell {
        Doorbell(DoorbellBack::Uring(self.bell.clone()))
    }

    pub(super) fn make_dirs(&mut self, path: &Path) -> Result<(), Errno> {
        std::fs::create_dir_all(path).map_err(errno_of)
    }

    pub(super) fn list_dir(&mut self, path: &Path) -> Result<Vec<DirEntry>, Errno> {
        files::list_dir(path)
    }

    pub(super) fn lock_dir(&mut self, path: &Path) -> Result<(), Errno> {
        self.locks.push(files::lock_dir(path)?);
        Ok(())
    }

    pub(super) fn file_facts(&mut self, file: FileId) -> Result<FileFacts, Errno> {
        files::file_facts(self.descriptors.fd(file.0))
    }

    pub(super) fn disk_free(&mut self, path: &Path) -> Result<u64, Errno> {
        files::disk_free(path)
    }

    pub(super) fn listen(&mut self, address: SocketAddr) -> Result<(SocketId, SocketAddr), Errno> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(errno_of)?;
        sockopt::set_socket_reuseaddr(&socket, true).map_err(errno_of)?;
        // Connections inherit all of it. A peer that vanished is found out by probes where nothing is to be sent, and
        // by what it does not take where something is.
        sockopt::set_tcp_nodelay(&socket, true).map_err(errno_of)?;
        sockopt::set_socket_keepalive(&socket, true).map_err(errno_of)?;
        sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE).map_err(errno_of)?;
        sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL).map_err(errno_of)?;
        sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES).map_err(errno_of)?;
        sockopt::set_tcp_user_timeout(&socket, UNTAKEN_TIME.as_millis() as u32).map_err(errno_of)?;
        rustix::net::bind(&socket, &address).map_err(errno_of)?;
        rustix::net::listen(&socket, LISTEN_BACKLOG).map_err(errno_of)?;
        let bound = rustix::net::getsockname(&socket).map_err(errno_of)?;
        let bound = SocketAddr::try_from(bound).map_err(errno_of)?;
        let slot = self.descriptors.insert(&self.kernel.submitter(), socket, Role::Listener)?;
        Ok((SocketId(slot), bound))
    }

    pub(super) fn peer(&mut self, socket: SocketId) -> Option<SocketAddr> {
        let peer = rustix::net::getpeername(self.descriptors.fd(socket.0)).ok()??;
        SocketAddr::try_from(peer).ok()
    }

    pub(super) fn stats(&self) -> RingStats {
        RingStats { enters: self.kernel.enters, ..self.stats }
    }

    pub(super) fn report(&self) -> RingReport {
        self.report.clone()
    }
}

impl Drop for UringRing {
    /// Nothing may arrive in memory that is gone (R1): cancels what can be cancelled and waits for the rest.
    fn drop(&mut self) {
        self.closing = true;
        self.cancel(self.descriptors.flying_on_sockets());
        let begin = Instant::now();
        self.collect();
        while self.flights.len() > 0 && begin.elapsed() < DROP_WAIT {
            self.enter(Sleep::AtMost(Some(Duration::from_millis(100))));
            self.collect();
        }
        if self.flights.len() > 0 {
            // A disk that does not answer. `Memory` leaks what is lent; paths and directories are leaked here.
            mem::forget(mem::take(&mut self.flights));
            return;
        }
        // Otherwise the kernel would let go some time later, and a port or a pinned page would seem taken.
        let _ = self.kernel.submitter().unregister_files();
        let _ = self.kernel.submitter().unregister_buffers();
    }
}

/// Direct I/O in blocks, or it would be carried out by a kernel worker, if at all.
fn check_direct(range: BufRange, position: u64) {
    let aligned = range.start().is_multiple_of(BLOCK)
        && range.len().is_multiple_of(BLOCK)
        && position.is_multiple_of(BLOCK as u64);
    assert!(aligned && !range.is_empty(), "{range:?} at {position} is not of whole blocks");
}

fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// "6.18" of "6.18.44-generic".
fn kernel_version() -> String {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_connection_sends_without_delay_and_finds_out_that_its_peer_is_gone() {
        let mut memory = Memory::default();
        let mut ring = match UringRing::new(RingConfig { entries: 8, ..RingConfig::default() }) {
            Ok(ring) => ring,
            Err(errno) => return println!("skipped: no io_uring: {errno}"),
        };
        let (listener, address) = ring.listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let connection = ring.run(&mut memory, Op::Accept { listener }).unwrap();
        let fd = ring.descriptors.fd(connection);
        assert!(sockopt::tcp_nodelay(fd).unwrap() && sockopt::socket_keepalive(fd).unwrap());
        let times = (sockopt::tcp_keepidle(fd).unwrap(), sockopt::tcp_keepintvl(fd).unwrap());
        assert_eq!(times, (KEEPALIVE_IDLE, KEEPALIVE_INTERVAL));
        assert_eq!(sockopt::tcp_keepcnt(fd).unwrap(), KEEPALIVE_PROBES);
        assert_eq!(u128::from(sockopt::tcp_user_timeout(fd).unwrap()), UNTAKEN_TIME.as_millis());
    }
}
