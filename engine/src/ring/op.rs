//! What the rooms ask of the world, as plain data: no pointers, no descriptors, no callbacks.
//!
//! A room fills in an [`Op`], gives it a [`Token`] and finds the same token on the [`Completion`]. Which back end
//! carries it out, the kernel or the simulator, no room can tell.

use super::memory::BufRange;
use std::fmt;
use std::path::PathBuf;

/// Routes a completion: the room that asked, its slot there, and the slot's generation, so that a late
/// completion of a reused slot is recognised. Travels as `user_data`: room 8 bits, generation 24, slot 32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Token {
    /// Which room. Numbers below 16 belong to the engine; 255 is the ring's own.
    pub room: u8,
    /// Generation of the slot; the upper 8 bits are not kept.
    pub generation: u32,
    /// Slot in the room's own table.
    pub slot: u32,
}

impl Token {
    /// A token of `room`.
    pub fn new(room: u8, generation: u32, slot: u32) -> Self {
        Self { room, generation: generation & 0x00ff_ffff, slot }
    }

    /// As `user_data`.
    pub fn pack(self) -> u64 {
        u64::from(self.room) << 56 | u64::from(self.generation & 0x00ff_ffff) << 32 | u64::from(self.slot)
    }

    /// From `user_data`.
    pub fn unpack(user_data: u64) -> Self {
        Self {
            room: (user_data >> 56) as u8,
            generation: (user_data >> 32) as u32 & 0x00ff_ffff,
            slot: user_data as u32,
        }
    }
}

/// An open file in the ring's table. One descriptor for the file's whole life, so that an error of an earlier
/// write-back is never missed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FileId(pub u32);

/// A listening or connected socket in the ring's table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SocketId(pub u32);

/// One thing to be done. Reads and writes of files are direct: position, length and buffer are multiples of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes; with `durable` the completion means "on the medium" (RWF_DSYNC). Result: bytes written, which may
    /// be fewer than asked.
    Write {
        /// Where to.
        file: FileId,
        /// What; unchanged until reaped (R1).
        from: BufRange,
        /// Byte of the file.
        position: u64,
        /// RWF_DSYNC.
        durable: bool,
    },
    /// Reads. Result: bytes read; fewer than asked at the end of the file.
    Read {
        /// Where from.
        file: FileId,
        /// Where to; nobody looks at it until reaped (R1).
        into: BufRange,
        /// Byte of the file.
        position: u64,
    },
    /// fdatasync: makes durable what was *completed* on this file before this was submitted, and nothing else.
    SyncData {
        /// Which file.
        file: FileId,
    },
    /// fsync: as `SyncData`, with size and all metadata.
    SyncAll {
        /// Which file.
        file: FileId,
    },
    /// Opens a directory, makes its names durable, closes it.
    SyncDir {
        /// Which directory.
        path: PathBuf,
    },
    /// Opens a file for direct reads and writes. Result: its [`FileId`].
    Open {
        /// Which file.
        path: PathBuf,
        /// Make it if it is missing.
        create: bool,
    },
    /// fallocate from 0 to `len`; sets the size. Result 0.
    Allocate {
        /// Which file.
        file: FileId,
        /// Its new size.
        len: u64,
    },
    /// Closes a file with no op in flight.
    Close {
        /// Which file.
        file: FileId,
    },
    /// Takes one connection off a listener. Result: its [`SocketId`].
    Accept {
        /// The listener.
        listener: SocketId,
    },
    /// Receives what is there, up to the whole range. Result: bytes; 0 when the peer has finished. One at a time on
    /// each connection.
    Recv {
        /// Which connection.
        socket: SocketId,
        /// Where to.
        into: BufRange,
    },
    /// Sends. Result: bytes taken, which may be fewer than asked. One at a time on each connection.
    Send {
        /// Which connection.
        socket: SocketId,
        /// What.
        from: BufRange,
    },
    /// Finishes sending on a connection with no send in flight: the peer reads to the end of what was sent, and what
    /// the peer sends can still be received. Result 0.
    Shutdown {
        /// Which connection.
        socket: SocketId,
    },
    /// Closes a socket. Whatever is in flight on it completes first (as cancelled or as it may), then this.
    CloseSocket {
        /// Which socket, listener or connection.
        socket: SocketId,
    },
}

/// What became of an [`Op`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As given to `submit`.
    pub token: Token,
    /// The op's result, or the kernel's error.
    pub result: Result<u32, Errno>,
}

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub i32);

impl Errno {
    /// No space left on the device.
    pub const NOSPC: Self = Self(libc::ENOSPC);
    /// Disk quota exceeded.
    pub const DQUOT: Self = Self(libc::EDQUOT);
    /// File larger than the limit.
    pub const FBIG: Self = Self(libc::EFBIG);
    /// Input or output error.
    pub const IO: Self = Self(libc::EIO);
    /// Try again.
    pub const AGAIN: Self = Self(libc::EAGAIN);
    /// Interrupted.
    pub const INTR: Self = Self(libc::EINTR);
    /// Cancelled.
    pub const CANCELED: Self = Self(libc::ECANCELED);
    /// No such file or directory.
    pub const NOENT: Self = Self(libc::ENOENT);
    /// Exists already.
    pub const EXIST: Self = Self(libc::EEXIST);
    /// Not permitted.
    pub const PERM: Self = Self(libc::EPERM);
    /// Access denied.
    pub const ACCES: Self = Self(libc::EACCES);
    /// Invalid argument: what O_DIRECT gives where it is not supported.
    pub const INVAL: Self = Self(libc::EINVAL);
    /// Read-only file system.
    pub const ROFS: Self = Self(libc::EROFS);
    /// Address in use.
    pub const ADDRINUSE: Self = Self(libc::EADDRINUSE);
    /// Too many open files in this process.
    pub const MFILE: Self = Self(libc::EMFILE);
    /// Too many open files in the whole system.
    pub const NFILE: Self = Self(libc::ENFILE);
    /// Not supported.
    pub const OPNOTSUPP: Self = Self(libc::EOPNOTSUPP);
    /// Resource held by another process (the lock of a data directory).
    pub const BUSY: Self = Self(libc::EBUSY);
    /// The simulator's power is off. Never from a kernel.
    pub const POWER_OFF: Self = Self(-1);

    /// No room on the disk, whatever the reason: quota and size limits are space too.
    pub fn is_no_space(self) -> bool {
        [Self::NOSPC, Self::DQUOT, Self::FBIG].contains(&self)
    }

    /// No descriptor left, in this process or in the system.
    pub fn is_no_descriptor(self) -> bool {
        [Self::MFILE, Self::NFILE].contains(&self)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::POWER_OFF {
            return f.write_str("simulated power loss");
        }
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({})", self.0)
    }
}

impl std::error::Error for Errno {}
