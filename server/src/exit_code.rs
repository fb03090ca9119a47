//! Why a server cannot go on, and the exit code that says so to scripts and service managers.
//!
//! Codes are never reused: a gap is a retired reason. 0 is a clean stop, 1 anything without a number of its
//! own (a forced stop too), 2 wrong use.

use std::fmt;

/// The environment is beyond repair; one exit code each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatalReason {
    /// The kernel, a seccomp profile or `kernel.io_uring_disabled` refuses io_uring.
    IoUringRefused,
    /// Another process holds the lock of the data directory.
    DataDirectoryInUse,
    /// The data directory, or a file in it, cannot be written.
    NotWritable,
    /// The file system has no O_DIRECT, or asks for an alignment above 4 KiB.
    NoDirectIo,
    /// Recovery refuses a shard; doubt never deletes data.
    DamagedShard,
    /// A listening address is taken.
    AddressInUse,
    /// A write or flush of the log failed while the server ran.
    LogPoisoned,
    /// RLIMIT_NOFILE leaves too few file descriptors to start.
    TooFewDescriptors,
    /// Anything else.
    Other,
}

impl FatalReason {
    /// Every reason with a number of its own, in the order in which `ringmq server --help` lists them.
    pub const NUMBERED: [Self; 8] = [
        Self::IoUringRefused,
        Self::DataDirectoryInUse,
        Self::NotWritable,
        Self::NoDirectIo,
        Self::DamagedShard,
        Self::AddressInUse,
        Self::LogPoisoned,
        Self::TooFewDescriptors,
    ];

    /// What the process exits with.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::IoUringRefused => 10,
            Self::DataDirectoryInUse => 11,
            Self::NotWritable => 12,
            Self::NoDirectIo => 13,
            Self::DamagedShard => 14,
            Self::AddressInUse => 15,
            Self::LogPoisoned => 16,
            Self::TooFewDescriptors => 17,
            Self::Other => 1,
        }
    }

    /// A few words for people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::IoUringRefused => "io_uring refused",
            Self::DataDirectoryInUse => "data directory in use",
            Self::NotWritable => "data directory not writable",
            Self::NoDirectIo => "no O_DIRECT",
            Self::DamagedShard => "damaged shard",
            Self::AddressInUse => "address in use",
            Self::LogPoisoned => "log poisoned",
            Self::TooFewDescriptors => "too few file descriptors",
            Self::Other => "cannot go on",
        }
    }

    /// A word for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUringRefused => "io_uring_refused",
            Self::DataDirectoryInUse => "data_directory_in_use",
            Self::NotWritable => "not_writable",
            Self::NoDirectIo => "no_direct_io",
            Self::DamagedShard => "damaged_shard",
            Self::AddressInUse => "address_in_use",
            Self::LogPoisoned => "log_poisoned",
            Self::TooFewDescriptors => "too_few_descriptors",
            Self::Other => "other",
        }
    }
}

/// The server cannot start or cannot go on.
#[derive(Clone, Debug)]
pub struct Fatal {
    /// What kind of trouble, and so the exit code.
    pub reason: FatalReason,
    /// What is wrong, where, and what to do about it.
    pub message: String,
}

impl Fatal {
    /// A reason and its story.
    pub fn new(reason: FatalReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.title(), self.message)
    }
}

impl std::error::Error for Fatal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_reasons_start_at_ten_and_are_dense() {
        for (at, reason) in FatalReason::NUMBERED.into_iter().enumerate() {
            assert_eq!(usize::from(reason.exit_code()), 10 + at, "{reason:?}");
        }
    }
}
