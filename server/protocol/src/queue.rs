//! Consuming record by record: leases, acknowledgements, dead letters.
//!
//! A lease says that a record was given to somebody until a time. Its handle is what is acknowledged; a handle of an
//! earlier delivery is stale as soon as the record was delivered again.

use crate::fields::{Fields, put};
use crate::limits::{ACKS_MAX, LEASES_MAX, REPLAY_MAX};
use crate::request::{flag, wire, wire_open};
use crate::{ErrorCode, FetchEntryHeader};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

wire! {
    /// RECEIVE.
    ReceiveWire = 32 {
        member: U64, group: U32, max_records: U32, max_bytes: U32, invisible_ms: U32, wait_ms: U32, reserved: U32,
    }
    /// Answer to RECEIVE; then `leases` leases, and entries.
    ReceivedHead = 24 { log_start: U64, visible_end: U64, leases: U32, reserved: U32, }
    /// ACK; then `count` handles.
    AckHead = 16 { member: U64, group: U32, count: U32, }
    /// CHANGE_INVISIBLE; then `count` changes.
    ChangeInvisibleHead = 16 { member: U64, group: U32, count: U32, }
    /// REPLAY_DEAD_LETTERS; then `count` offsets of eight bytes.
    ReplayHead = 8 { flags: U32, count: U32, }
}

wire_open! {
    /// Names one delivery of one record to one group.
    LeaseHandle = 24 {
        /// The record.
        offset: U64,
        /// Life of the lease table that gave it; tells deliveries before a restart from those after.
        generation: U64,
        /// Which delivery of the record: 1 is the first.
        attempt: U16,
        /// Zero.
        reserved: [u8; 6],
    }
    /// A record in the hands of a receiver.
    Lease = 32 {
        /// To acknowledge it by.
        handle: LeaseHandle,
        /// When it is given to somebody else unless it was acknowledged, Unix milliseconds by the server's clock.
        expires_ms: I64,
    }
    /// A change of a lease.
    LeaseChange = 32 {
        /// Which lease.
        handle: LeaseHandle,
        /// [`CHANGE_AFTER`], [`CHANGE_EXTEND`], or 0: with [`CHANGE_RETRY`] the group's own backoff counts.
        after_ms: U32,
        /// [`CHANGE_AFTER`], [`CHANGE_RETRY`] or [`CHANGE_EXTEND`].
        kind: u8,
        /// Zero.
        reserved: [u8; 3],
    }
    /// What became of a change.
    ChangedLease = 40 {
        /// 0, or number of an [`ErrorCode`].
        code: U16,
        /// [`LEASE_DEAD`].
        flags: U16,
        /// With a retriable code: how long to wait at least; 0 leaves it to the client.
        retry_after_ms: U32,
        /// The lease now; the old handle is stale.
        lease: Lease,
    }
    /// What became of a dead letter.
    Replayed = 32 {
        /// 0, or number of an [`ErrorCode`].
        code: U16,
        /// [`REPLAYED_EARLIER`].
        flags: U16,
        /// With a retriable code: how long to wait at least; 0 leaves it to the client.
        retry_after_ms: U32,
        /// Where it is now, in the partition that it came from; 0 in a dry run.
        offset: U64,
        /// Its offset in the partition that it came from.
        origin_offset: U64,
        /// Id of that partition; 0 if it is no dead letter.
        origin_partition: U32,
        /// How often it had been delivered when it was given up.
        attempts: U32,
    }
}

/// Receivable again after a time; the delivery does not count as failed. This is how a record is handed back.
pub const CHANGE_AFTER: u8 = 1;
/// This delivery has failed: the next one comes after the group's backoff, or the record becomes a dead letter.
pub const CHANGE_RETRY: u8 = 2;
/// The lease ends after a time, at least 1 ms, from now. If it does, the delivery has failed.
pub const CHANGE_EXTEND: u8 = 3;
/// In [`ChangedLease`]: it was the last attempt; the record is a dead letter now.
pub const LEASE_DEAD: u16 = 1;
/// REPLAY_DEAD_LETTERS: only say which would be replayed.
pub const REPLAY_DRY_RUN: u32 = 1;
/// In [`Replayed`]: it was replayed before this request, which did nothing.
pub const REPLAYED_EARLIER: u16 = 1;

/// Receives records of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive {
    /// Of this partition.
    pub handle: u32,
    /// Id of the group.
    pub group: u32,
    /// The member.
    pub member: u64,
    /// Records at most, not 0; the server may give fewer.
    pub max_records: u32,
    /// Bytes of entries at most; the first record is delivered whatever its size.
    pub max_bytes: u32,
    /// Time for which nobody else gets them; 0: the group's default.
    pub invisible_ms: u32,
    /// With nothing to receive: how long to wait for something.
    pub wait_ms: u32,
}

impl Receive {
    pub(crate) fn take(handle: u32, mut fields: Fields<'_>) -> Option<Self> {
        let wire = fields.take::<ReceiveWire>()?;
        let receive = Self {
            handle,
            group: wire.group.get(),
            member: wire.member.get(),
            max_records: wire.max_records.get(),
            max_bytes: wire.max_bytes.get(),
            invisible_ms: wire.invisible_ms.get(),
            wait_ms: wire.wait_ms.get(),
        };
        fields.end(receive).filter(|receive| receive.max_records > 0 && wire.reserved == U32::ZERO)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &ReceiveWire {
                member: U64::new(self.member),
                group: U32::new(self.group),
                max_records: U32::new(self.max_records),
                max_bytes: U32::new(self.max_bytes),
                invisible_ms: U32::new(self.invisible_ms),
                wait_ms: U32::new(self.wait_ms),
                reserved: U32::ZERO,
            },
        );
    }
}

/// Own fields of the answer to RECEIVE. Entries follow as in the answer to FETCH; the leases are those of their
/// records, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// First offset that can be read.
    pub log_start: u64,
    /// First offset that cannot be read yet.
    pub visible_end: u64,
    /// One for each record of the entries.
    pub leases: &'a [Lease],
}

impl<'a> Received<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<ReceivedHead>()?;
        let count = head.leases.get() as usize;
        if count > LEASES_MAX {
            return None;
        }
        Some(Self {
            log_start: head.log_start.get(),
            visible_end: head.visible_end.get(),
            leases: fields.slice(count)?,
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        assert!(self.leases.len() <= LEASES_MAX, "{} leases", self.leases.len());
        put(
            out,
            &ReceivedHead {
                log_start: U64::new(self.log_start),
                visible_end: U64::new(self.visible_end),
                leases: U32::new(self.leases.len() as u32),
                reserved: U32::ZERO,
            },
        );
        put(out, self.leases);
    }

    /// Appends the whole answer. `entries` are the bytes of the entries (see [`crate::fetch::put_entry`]), of which
    /// the last `outside` are not in it but are sent by the caller right behind `out`.
    pub fn encode(&self, correlation: u64, handle: u32, entries: &[u8], outside: usize, out: &mut Vec<u8>) {
        use crate::header::{Flags, HEADER_SIZE, Op, begin, end};
        let start = begin(out);
        self.put(out);
        let fields_len = out.len() - start - HEADER_SIZE;
        out.extend_from_slice(entries);
        end(out, start, Op::Receive as u8, Flags::RESPONSE, correlation, handle, fields_len, outside);
    }
}

/// Says that records are consumed. Answered when that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Of this partition.
    pub handle: u32,
    /// Id of the group.
    pub group: u32,
    /// The member.
    pub member: u64,
    /// Which deliveries.
    pub leases: &'a [LeaseHandle],
}

impl<'a> Ack<'a> {
    pub(crate) fn take(handle: u32, mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<AckHead>()?;
        let count = head.count.get() as usize;
        if count == 0 || count > ACKS_MAX {
            return None;
        }
        let leases = fields.slice::<LeaseHandle>(count)?;
        let valid = leases.iter().all(LeaseHandle::is_valid);
        let ack = Self { handle, group: head.group.get(), member: head.member.get(), leases };
        fields.end(ack).filter(|_| valid)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let count = U32::new(self.leases.len() as u32);
        put(out, &AckHead { member: U64::new(self.member), group: U32::new(self.group), count });
        put(out, self.leases);
    }
}

/// Prolongs leases, hands records back, or says that deliveries have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeInvisible<'a> {
    /// Of this partition.
    pub handle: u32,
    /// Id of the group.
    pub group: u32,
    /// The member.
    pub member: u64,
    /// The changes.
    pub changes: &'a [LeaseChange],
}

impl<'a> ChangeInvisible<'a> {
    pub(crate) fn take(handle: u32, mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<ChangeInvisibleHead>()?;
        let count = head.count.get() as usize;
        if count == 0 || count > ACKS_MAX {
            return None;
        }
        let changes = fields.slice::<LeaseChange>(count)?;
        let valid = changes.iter().all(|change| {
            let after = match change.kind {
                CHANGE_AFTER => true,
                CHANGE_RETRY => change.after_ms.get() == 0,
                CHANGE_EXTEND => change.after_ms.get() > 0,
                _ => false,
            };
            after && change.reserved == [0; 3] && change.handle.is_valid()
        });
        let change = Self { handle, group: head.group.get(), member: head.member.get(), changes };
        fields.end(change).filter(|_| valid)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let count = U32::new(self.changes.len() as u32);
        put(out, &ChangeInvisibleHead { member: U64::new(self.member), group: U32::new(self.group), count });
        put(out, self.changes);
    }
}

/// Puts dead letters back into the partitions that they came from, each at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayDeadLetters<'a> {
    /// Of this partition of a dead-letter topic.
    pub handle: u32,
    /// Only say which would be replayed.
    pub dry_run: bool,
    /// Their offsets there.
    pub offsets: &'a [U64],
}

impl<'a> ReplayDeadLetters<'a> {
    pub(crate) fn take(handle: u32, mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<ReplayHead>()?;
        let count = head.count.get() as usize;
        if count == 0 || count > REPLAY_MAX {
            return None;
        }
        let replay =
            Self { handle, dry_run: flag(head.flags, REPLAY_DRY_RUN)?, offsets: fields.slice(count)? };
        fields.end(replay)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = U32::new(if self.dry_run { REPLAY_DRY_RUN } else { 0 });
        put(out, &ReplayHead { flags, count: U32::new(self.offsets.len() as u32) });
        put(out, self.offsets);
    }
}

impl LeaseHandle {
    /// From plain numbers.
    pub fn new(offset: u64, attempt: u16, generation: u64) -> Self {
        Self {
            offset: U64::new(offset),
            generation: U64::new(generation),
            attempt: U16::new(attempt),
            reserved: [0; 6],
        }
    }

    fn is_valid(&self) -> bool {
        self.reserved == [0; 6]
    }
}

impl LeaseChange {
    /// Receivable again after `after_ms`, without a failed attempt.
    pub fn after(handle: LeaseHandle, after_ms: u32) -> Self {
        Self { handle, after_ms: U32::new(after_ms), kind: CHANGE_AFTER, reserved: [0; 3] }
    }

    /// The lease ends `after_ms`, at least 1, from now.
    pub fn extend(handle: LeaseHandle, after_ms: u32) -> Self {
        Self { handle, after_ms: U32::new(after_ms.max(1)), kind: CHANGE_EXTEND, reserved: [0; 3] }
    }

    /// This delivery has failed.
    pub fn retry(handle: LeaseHandle) -> Self {
        Self { handle, after_ms: U32::ZERO, kind: CHANGE_RETRY, reserved: [0; 3] }
    }
}

impl ChangedLease {
    /// Not changed, or not known to be.
    pub fn failed(code: ErrorCode, retry_after_ms: u32) -> Self {
        Self { code: U16::new(code as u16), retry_after_ms: U32::new(retry_after_ms), ..Self::new_zeroed() }
    }

    /// The record is a dead letter now.
    pub fn is_dead(&self) -> bool {
        self.flags.get() & LEASE_DEAD != 0
    }
}

impl Replayed {
    /// Not replayed, or not known to be.
    pub fn failed(code: ErrorCode, retry_after_ms: u32) -> Self {
        Self { code: U16::new(code as u16), retry_after_ms: U32::new(retry_after_ms), ..Self::new_zeroed() }
    }

    /// It was replayed before this request.
    pub fn was_earlier(&self) -> bool {
        self.flags.get() & REPLAYED_EARLIER != 0
    }
}

/// The leases of an answer next to the offsets of its entries: whether they belong together.
pub fn leases_match(leases: &[Lease], entries: &[FetchEntryHeader]) -> bool {
    let offsets = entries.iter().flat_map(|entry| entry.base_offset.get()..entry.end_offset());
    leases.iter().map(|lease| lease.handle.offset.get()).eq(offsets)
}
