//! Faults that a test plans: which op, the how-manieth, and what becomes of it.

use crate::ring::Errno;

/// Kinds of ops that a [`Fault`] can be about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpKind {
    /// `Read`.
    Read,
    /// `Write`, durable or not.
    Write,
    /// `SyncData` and `SyncAll`.
    Sync,
    /// `SyncDir`.
    SyncDir,
    /// `Open`.
    Open,
    /// `Allocate`.
    Allocate,
    /// `Accept`.
    Accept,
    /// `Recv`.
    Recv,
    /// `Send`.
    Send,
}

/// What becomes of an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Harm {
    /// It fails. A write may have changed any of its sectors, unless the error says "try again" (`EAGAIN`,
    /// `EINTR`, `ECANCELED`) or "no space"; a sync drops or keeps what it should have covered, by chance.
    Error(Errno),
    /// A sync fails, and what it should have covered never becomes durable, whatever later syncs say.
    SyncDrops(Errno),
    /// A sync fails, and what it should have covered stays dirty, for a later sync to cover.
    SyncKeeps(Errno),
    /// A read, write or send moves fewer bytes than asked, at least one; a read of a file a multiple of 512.
    Short,
    /// A write or sync is acknowledged and does not happen.
    Lost,
    /// A write is acknowledged and lands in another place of the disk.
    Misdirected,
    /// A read finds one stored bit flipped, as will all later ones.
    Rot,
    /// A read returns one bit flipped, this time only.
    Flip,
    /// It takes so much longer, and is done well.
    Delay(u64),
}

/// A planned fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Ops of this kind.
    pub op: OpKind,
    /// What becomes of them.
    pub harm: Harm,
    /// So many that fit go by first.
    pub skip: u64,
    /// So many are harmed; `u64::MAX`: all from then on.
    pub times: u64,
    /// Only files whose path contains this.
    pub path: Option<String>,
}

impl Fault {
    /// The next op of its kind, once.
    pub fn new(op: OpKind, harm: Harm) -> Self {
        Self { op, harm, skip: 0, times: 1, path: None }
    }

    /// After `skip` others.
    #[must_use]
    pub fn after(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// And all later ones.
    #[must_use]
    pub fn sticky(self) -> Self {
        Self { times: u64::MAX, ..self }
    }

    /// Only of files whose path contains `part`.
    #[must_use]
    pub fn on(self, part: &str) -> Self {
        Self { path: Some(part.to_owned()), ..self }
    }
}

/// Faults that happened in a world, planned or by themselves, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct FaultCounts {
    pub power_losses: u64,
    pub kills: u64,
    pub read_errors: u64,
    pub write_errors: u64,
    /// Of files and directories.
    pub sync_errors: u64,
    /// Of all other ops.
    pub other_errors: u64,
    pub short_reads: u64,
    pub short_writes: u64,
    /// Writes and syncs that were acknowledged and never happened.
    pub lost_writes: u64,
    pub misdirected_writes: u64,
    /// Stored bits.
    pub rotten_bits: u64,
    /// Bits of what a read returned.
    pub flipped_bits: u64,
    pub delays: u64,
    /// Connections that broke by themselves.
    pub broken_connections: u64,
    /// Directions of connections in which nothing arrived any more.
    pub black_holes: u64,
    pub refused_connections: u64,
}

impl FaultCounts {
    /// Names and counts.
    pub fn named(&self) -> [(&'static str, u64); 16] {
        [
            ("power losses", self.power_losses),
            ("kills", self.kills),
            ("read errors", self.read_errors),
            ("write errors", self.write_errors),
            ("sync errors", self.sync_errors),
            ("other errors", self.other_errors),
            ("short reads", self.short_reads),
            ("short writes", self.short_writes),
            ("lost writes", self.lost_writes),
            ("misdirected writes", self.misdirected_writes),
            ("rotten bits", self.rotten_bits),
            ("flipped bits", self.flipped_bits),
            ("delays", self.delays),
            ("broken connections", self.broken_connections),
            ("black holes", self.black_holes),
            ("refused connections", self.refused_connections),
        ]
    }

    /// An op of this kind was harmed.
    pub(super) fn count(&mut self, kind: OpKind, harm: Harm) {
        let count = match (harm, kind) {
            (Harm::Error(_), OpKind::Read) => &mut self.read_errors,
            (Harm::Error(_), OpKind::Write) => &mut self.write_errors,
            (Harm::Error(_), OpKind::Sync | OpKind::SyncDir) => &mut self.sync_errors,
            (Harm::SyncDrops(_) | Harm::SyncKeeps(_), _) => &mut self.sync_errors,
            (Harm::Error(_), _) => &mut self.other_errors,
            (Harm::Short, OpKind::Read | OpKind::Recv) => &mut self.short_reads,
            (Harm::Short, _) => &mut self.short_writes,
            (Harm::Lost, _) => &mut self.lost_writes,
            (Harm::Misdirected, _) => &mut self.misdirected_writes,
            (Harm::Rot, _) => &mut self.rotten_bits,
            (Harm::Flip, _) => &mut self.flipped_bits,
            (Harm::Delay(_), _) => &mut self.delays,
        };
        *count += 1;
    }
}

/// A fault with its counts.
#[derive(Clone, Debug)]
pub(super) struct Armed {
    fault: Fault,
    passed: u64,
    done: u64,
}

impl Armed {
    pub(super) fn new(fault: Fault) -> Self {
        Self { fault, passed: 0, done: 0 }
    }

    /// Counts an op, and says what becomes of it.
    pub(super) fn strike(&mut self, op: OpKind, path: &str) -> Option<Harm> {
        let fits = self.fault.op == op && self.fault.path.as_deref().is_none_or(|part| path.contains(part));
        if !fits || self.done == self.fault.times {
            return None;
        }
        if self.passed < self.fault.skip {
            self.passed += 1;
            return None;
        }
        self.done = self.done.saturating_add(1).min(self.fault.times);
        Some(self.fault.harm)
    }
}
