//! The two queues that are shared with the kernel, and the call that moves both.
//!
//! Nothing pushed is lost: what finds the submission queue full and the kernel short of memory waits in `backlog`.

use super::super::{Errno, RingConfig, RingReport};
use super::errno_of;
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};
use rustix::process::{Resource, getrlimit};
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// What an `enter` is for, beside handing over what is queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sleep {
    /// Nothing: make room in the queue.
    Submit,
    /// Let the kernel finish what has arrived, without sleeping.
    Poll,
    /// Sleep until a completion is there, at most so long.
    AtMost(Option<Duration>),
}

/// One entry of the completion queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) more: bool,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgument {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_us: u32,
    timeout: u64,
}

/// `struct io_uring_rsrc_update`, here for the ring's own descriptor.
#[repr(C)]
struct RingDescriptor {
    offset: u32,
    reserved: u32,
    descriptor: u64,
}

// From linux/io_uring.h; the crate keeps both behind a `Submitter` that does not outlive a borrow.
const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;

pub(super) struct Kernel {
    ring: IoUring,
    /// Index of the ring's own descriptor in the thread's table of registered rings.
    registered: Option<u32>,
    /// The kernel raises a flag in shared memory when an `enter` would find work.
    announces_work: bool,
    backlog: VecDeque<squeue::Entry>,
    pub(super) enters: u64,
}

impl Kernel {
    pub(super) fn new(config: RingConfig, report: &mut RingReport) -> Result<Self, Errno> {
        let (ring, announces_work) = set_up(config.entries, report)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(errno_of)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::ReadFixed::CODE,
            opcode::WriteFixed::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::OpenAt::CODE,
            opcode::Accept::CODE,
            opcode::Recv::CODE,
            opcode::Send::CODE,
            opcode::PollAdd::CODE,
            opcode::AsyncCancel::CODE,
        ];
        let params = ring.params();
        // Waiting with a deadline, no lost completions, and 5.13 by name: polls that stay armed.
        let complete =
            params.is_feature_ext_arg() && params.is_feature_nodrop() && params.is_feature_resource_tagging();
        if !complete || !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(Errno(libc::ENOSYS));
        }
        let mut kernel = Self { ring, registered: None, announces_work, backlog: VecDeque::new(), enters: 0 };
        kernel.register_ring(report);
        // fsync and fallocate always go to kernel workers; more than two at once only compete for the disk.
        if kernel.ring.submitter().register_iowq_max_workers(&mut [2, 2]).is_err() {
            report.fallbacks.push("number of kernel workers not limited: needs Linux 5.15".into());
        }
        Ok(kernel)
    }

    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    fn register_ring(&mut self, report: &mut RingReport) {
        let mut update =
            RingDescriptor { offset: u32::MAX, reserved: 0, descriptor: self.ring.as_raw_fd() as u64 };
        let fd = self.ring.as_raw_fd();
        // SAFETY: the kernel reads and writes one `RingDescriptor` that lives through the call; the descriptor is
        // ours and is taken out again before it is closed (R2).
        let done = unsafe {
            libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_RING_FDS, &raw mut update, 1u32)
        };
        if done == 1 {
            self.registered = Some(update.offset);
        } else {
            let errno = errno_of(std::io::Error::last_os_error());
            report.fallbacks.push(format!("the ring's own descriptor is not registered: {errno}"));
        }
    }

    /// Queues an entry; it reaches the kernel with the next `enter`.
    ///
    /// # Safety
    /// What the entry points to must stay where it is, and its descriptor open, until its completion arrived
    /// (R1, R2).
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: the caller's promise (R1, R2).
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            let _ = self.enter(Sleep::Submit);
        }
        self.backlog.push_back(entry);
        self.fill();
    }

    /// Moves as much of the backlog to the queue as fits.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: promised to `push`, and not yet arrived (R1, R2).
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Entries that the kernel does not know yet.
    pub(super) fn queued(&mut self) -> usize {
        self.ring.submission().len() + self.backlog.len()
    }

    /// Whether an `enter` that does not sleep would do anything.
    pub(super) fn wants_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty()
            || !self.backlog.is_empty()
            || queue.taskrun()
            || queue.cq_overflow()
            || !self.announces_work
    }

    /// One `io_uring_enter`, or as many as the backlog needs, of which only the last may sleep. An end of the time,
    /// a signal and passing shortages are results; whatever else the kernel says is a bug here.
    pub(super) fn enter(&mut self, sleep: Sleep) -> Result<(), Errno> {
        self.fill();
        while !self.backlog.is_empty() {
            let before = self.queued();
            self.enter_once(Sleep::Submit)?;
            self.fill();
            if self.queued() >= before {
                return Err(Errno::AGAIN);
            }
        }
        self.enter_once(sleep)
    }

    /// One call that does nothing: is it allowed?
    pub(super) fn probe(&mut self) -> Result<(), Errno> {
        self.enter_once(Sleep::Poll)
    }

    fn enter_once(&mut self, sleep: Sleep) -> Result<(), Errno> {
        let (mut flags, wanted, limit) = match sleep {
            Sleep::Submit => (EnterFlags::empty(), 0u32, None),
            Sleep::Poll => (EnterFlags::GETEVENTS, 0, None),
            Sleep::AtMost(limit) => (EnterFlags::GETEVENTS | EnterFlags::EXT_ARG, 1, limit),
        };
        let seconds = |limit: Duration| i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        let timespec = limit.map(|limit| [seconds(limit), i64::from(limit.subsec_nanos())]);
        let timeout = timespec.as_ref().map_or(0, |timespec| std::ptr::from_ref(timespec) as u64);
        let argument = WaitArgument { sigmask: 0, sigmask_size: 0, min_wait_us: 0, timeout };
        let (pointer, size) = match flags.contains(EnterFlags::EXT_ARG) {
            true => (&raw const argument, size_of::<WaitArgument>()),
            false => (std::ptr::null(), 0),
        };
        let fd = match self.registered {
            Some(index) => {
                flags |= EnterFlags::REGISTERED_RING;
                index as i32
            }
            None => self.ring.as_raw_fd(),
        };
        let queued = self.ring.submission().len() as u32;
        self.enters += 1;
        // SAFETY: argument and timespec outlive the call; every queued entry was promised to `push` to stay valid
        // until it has arrived (R1, R2).
        let taken = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, fd, queued, wanted, flags.bits(), pointer, size)
        };
        if taken >= 0 {
            return Ok(());
        }
        let errno = errno_of(std::io::Error::last_os_error());
        match errno.0 {
            libc::ETIME | libc::EINTR => Ok(()),
            libc::EAGAIN | libc::EBUSY | libc::ENOMEM => Err(errno),
            // A seccomp profile that allows the setup and not the use: only the first call can meet it.
            libc::EPERM | libc::EACCES | libc::ENOSYS if self.enters == 1 => Err(errno),
            _ => panic!("io_uring_enter of {queued} entries: {errno} ({errno:?})"),
        }
    }

    /// Are completions to be picked up without asking the kernel?
    pub(super) fn has_arrived(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Moves everything from the completion queue to `out`.
    pub(super) fn arrived(&mut self, out: &mut Vec<Arrived>) {
        out.extend(self.ring.completion().map(|entry| Arrived {
            user_data: entry.user_data(),
            result: entry.result(),
            more: io_uring::cqueue::more(entry.flags()),
        }));
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let Some(offset) = self.registered else { return };
        let mut update = RingDescriptor { offset, reserved: 0, descriptor: 0 };
        let fd = self.ring.as_raw_fd();
        // SAFETY: one `RingDescriptor` that lives through the call. Left registered, the ring would live as long
        // as the thread (R2).
        let _ = unsafe {
            libc::syscall(libc::SYS_io_uring_register, fd, UNREGISTER_RING_FDS, &raw mut update, 1u32)
        };
    }
}

/// From the best ring to the plainest. EINVAL, the answer to a flag not known, goes on to the next; where locked
/// memory is short (the queues count from Linux 6.14 on), the queues get smaller.
fn set_up(wanted: u32, report: &mut RingReport) -> Result<(IoUring, bool), Errno> {
    const ENTRIES_MIN: u32 = 32;
    const MISSING: [&str; 3] = [
        "submission goes through an index array: without it needs Linux 6.6",
        "completions interrupt (COOP_TASKRUN): DEFER_TASKRUN needs Linux 6.1",
        "completions interrupt, and one bad entry ends a batch: COOP_TASKRUN needs Linux 5.19",
    ];
    let mut step = 0;
    let mut entries = wanted;
    let ring = loop {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries.saturating_mul(4)).setup_clamp();
        if step < MISSING.len() {
            builder.setup_submit_all().setup_taskrun_flag();
        }
        match step {
            0 => builder.setup_single_issuer().setup_defer_taskrun().setup_no_sqarray(),
            1 => builder.setup_single_issuer().setup_defer_taskrun(),
            2 => builder.setup_coop_taskrun(),
            _ => &mut builder,
        };
        match builder.build(entries).map_err(errno_of) {
            Ok(ring) => break ring,
            Err(Errno::INVAL) if step < MISSING.len() => step += 1,
            Err(Errno(libc::ENOMEM)) if entries / 2 >= ENTRIES_MIN => entries /= 2,
            Err(errno) => return Err(errno),
        }
    };
    report.fallbacks.extend(step.checked_sub(1).map(|last| MISSING[last].to_owned()));
    if entries < wanted {
        let limit = memlock_limit();
        report
            .fallbacks
            .push(format!("{entries} queue entries instead of {wanted}: RLIMIT_MEMLOCK is {limit}"));
    }
    Ok((ring, step < MISSING.len()))
}

/// How much memory may be locked, in words.
pub(super) fn memlock_limit() -> String {
    match getrlimit(Resource::Memlock).current {
        Some(bytes) => format!("{} KiB", bytes / 1024),
        None => "unlimited".into(),
    }
}
