//! Transactions: their end, the check-back, and looking at them.
//!
//! A transaction begins with the first HALF frame or half position that names it; its id is drawn by the producer and
//! names its coordinator: the low 16 bits modulo the number of shards.

use crate::fields::{Fields, put, put_string};
use crate::items::{Item, Items};
use crate::limits::{LIST_HALVES_MAX, LIST_TRANSACTIONS_MAX, NAME_STRING_MAX};
use crate::request::{flag, wire};
use zerocopy::little_endian::{I64, U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

wire! {
    /// END_TRANSACTION; then the producer group's name.
    EndTransactionHead = 32 {
        txn: U128, halves: U32, positions: U32, resolution: u8, source: u8, attempt: U16, reserved: U32,
    }
    /// Answer to END_TRANSACTION.
    EndedWire = 16 { time_ms: I64, halves: U32, flags: U32, }
    /// REGISTER_PRODUCER; then the producer group's name.
    RegisterProducerHead = 8 { flags: U32, reserved: U32, }
    /// Answer to REGISTER_PRODUCER.
    RegisteredWire = 16 { check_after_ms: U32, check_every_ms: U32, checks_max: U16, reserved: [u8; 6], }
    /// CHECK; then the producer group's and the topic's name, and the frame.
    CheckHead = 40 {
        txn: U128, since_ms: I64, halves: U32, partition: U32, attempt: U16, attempts_max: U16, reserved: U32,
    }
    /// LIST_TRANSACTIONS; then the producer group's name.
    ListTransactionsHead = 24 { txn: U128, limit: U32, state: u8, flags: u8, reserved: U16, }
    /// Answer to LIST_TRANSACTIONS; then `count` transactions and `halves` halves.
    TransactionsHead = 16 { flags: U32, count: U32, halves: U32, reserved: U32, }
    /// A transaction; then the producer group's name.
    TransactionHead = 64 {
        txn: U128, since_ms: I64, next_check_ms: I64, bytes: U64, participants: U64, halves: U32, attempts: U16,
        state: u8, reserved: [u8; 9],
    }
    /// A half; then the topic's name.
    HalfHead = 32 {
        due_ms: I64, lsn: U64, partition: U32, index: U32, len: U32, count: U32,
    }
}

/// REGISTER_PRODUCER: the registration ends.
pub const REGISTER_END: u32 = 1;
/// In the answer to END_TRANSACTION: it had been resolved the same way before.
pub const ENDED_EARLIER: u32 = 1;
/// LIST_TRANSACTIONS: this transaction alone, with its halves; otherwise those behind it.
pub const LIST_TRANSACTION_ONE: u8 = 1;
const MORE: u32 = 1;

/// What is to become of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TransactionEnd {
    /// All of it becomes visible.
    Commit = 1,
    /// None of it ever does.
    Abort = 2,
    /// The checker does not know yet; it is asked again. Only as the answer to a check.
    Unknown = 3,
    /// A parked transaction is checked again, its attempts counted anew. Only for an operator.
    Recheck = 4,
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EndSource {
    /// The producer that began it.
    Producer = 0,
    /// A producer of the group, as the answer to a check.
    Check = 1,
    /// An operator; the group's name may be empty.
    Operator = 2,
}

/// Ends a transaction. Answered when that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndTransaction<'a> {
    /// Which one.
    pub txn: u128,
    /// What is to become of it.
    pub resolution: TransactionEnd,
    /// Who says so.
    pub source: EndSource,
    /// The producer group to which it belongs; another one is refused.
    pub group: &'a str,
    /// HALF frames that were acknowledged; 0 if not known. A coordinator that knows fewer waits or refuses.
    pub halves: u32,
    /// Positions that were acknowledged; 0 if not known or none.
    pub positions: u32,
    /// The attempt of the check that this answers; otherwise 0.
    pub attempt: u16,
}

impl<'a> EndTransaction<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        use TransactionEnd::{Abort, Commit, Recheck, Unknown};
        let head = fields.take::<EndTransactionHead>()?;
        let (resolution, source) = match (head.resolution, head.source) {
            (1, 0) => (Commit, EndSource::Producer),
            (2, 0) => (Abort, EndSource::Producer),
            (1, 1) => (Commit, EndSource::Check),
            (2, 1) => (Abort, EndSource::Check),
            (3, 1) => (Unknown, EndSource::Check),
            (1, 2) => (Commit, EndSource::Operator),
            (2, 2) => (Abort, EndSource::Operator),
            (4, 2) => (Recheck, EndSource::Operator),
            _ => return None,
        };
        let end = Self {
            txn: head.txn.get(),
            resolution,
            source,
            group: fields.string(NAME_STRING_MAX)?,
            halves: head.halves.get(),
            positions: head.positions.get(),
            attempt: head.attempt.get(),
        };
        fields.end(end).filter(|end| end.txn != 0 && head.reserved == U32::ZERO)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &EndTransactionHead {
                txn: U128::new(self.txn),
                halves: U32::new(self.halves),
                positions: U32::new(self.positions),
                resolution: self.resolution as u8,
                source: self.source as u8,
                attempt: U16::new(self.attempt),
                reserved: U32::ZERO,
            },
        );
        put_string(out, self.group, NAME_STRING_MAX);
    }
}

/// Answer to END_TRANSACTION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// When it was resolved, Unix milliseconds.
    pub time_ms: i64,
    /// HALF frames that it had.
    pub halves: u32,
    /// It had been resolved the same way before this request.
    pub earlier: bool,
}

impl Ended {
    pub(crate) fn take(fields: &mut Fields<'_>) -> Option<Self> {
        let wire = fields.take::<EndedWire>()?;
        let earlier = wire.flags.get() & ENDED_EARLIER != 0;
        Some(Self { time_ms: wire.time_ms.get(), halves: wire.halves.get(), earlier })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = U32::new(if self.earlier { ENDED_EARLIER } else { 0 });
        put(out, &EndedWire { time_ms: I64::new(self.time_ms), halves: U32::new(self.halves), flags });
    }
}

/// Says that this connection can answer checks of a producer group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterProducer<'a> {
    /// Number of the registration, chosen by the client; not 0. CHECK carries it.
    pub registration: u32,
    /// The producer group.
    pub group: &'a str,
    /// The registration ends.
    pub end: bool,
}

impl<'a> RegisterProducer<'a> {
    pub(crate) fn take(registration: u32, mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<RegisterProducerHead>()?;
        let end = flag(head.flags, REGISTER_END)?;
        let register = Self { registration, group: fields.string(NAME_STRING_MAX)?, end };
        fields.end(register).filter(|_| registration != 0 && head.reserved == U32::ZERO)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = U32::new(if self.end { REGISTER_END } else { 0 });
        put(out, &RegisterProducerHead { flags, reserved: U32::ZERO });
        put_string(out, self.group, NAME_STRING_MAX);
    }
}

/// Answer to REGISTER_PRODUCER: how the server checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Age of a transaction at its first check.
    pub check_after_ms: u32,
    /// Time between two checks.
    pub check_every_ms: u32,
    /// Checks after which it is parked.
    pub checks_max: u16,
}

impl Registered {
    pub(crate) fn take(fields: &mut Fields<'_>) -> Option<Self> {
        let wire = fields.take::<RegisteredWire>()?;
        Some(Self {
            check_after_ms: wire.check_after_ms.get(),
            check_every_ms: wire.check_every_ms.get(),
            checks_max: wire.checks_max.get(),
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &RegisteredWire {
                check_after_ms: U32::new(self.check_after_ms),
                check_every_ms: U32::new(self.check_every_ms),
                checks_max: U16::new(self.checks_max),
                reserved: [0; 6],
            },
        );
    }
}

/// Asks a producer what became of a transaction. The frame of the first half follows the own fields; there is none if
/// the transaction holds positions only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check<'a> {
    /// Which one.
    pub txn: u128,
    /// The producer group.
    pub group: &'a str,
    /// When its first half was stored, Unix milliseconds.
    pub since_ms: i64,
    /// HALF frames that it has.
    pub halves: u32,
    /// Which check this is: 1 is the first.
    pub attempt: u16,
    /// Checks after which it is parked.
    pub attempts_max: u16,
    /// Topic of the first half.
    pub topic: &'a str,
    /// Index of the first half's partition in the topic.
    pub partition: u32,
}

impl<'a> Check<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<CheckHead>()?;
        Some(Self {
            txn: head.txn.get(),
            group: fields.string(NAME_STRING_MAX)?,
            topic: fields.string(NAME_STRING_MAX)?,
            since_ms: head.since_ms.get(),
            halves: head.halves.get(),
            attempt: head.attempt.get(),
            attempts_max: head.attempts_max.get(),
            partition: head.partition.get(),
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &CheckHead {
                txn: U128::new(self.txn),
                since_ms: I64::new(self.since_ms),
                halves: U32::new(self.halves),
                partition: U32::new(self.partition),
                attempt: U16::new(self.attempt),
                attempts_max: U16::new(self.attempts_max),
                reserved: U32::ZERO,
            },
        );
        put_string(out, self.group, NAME_STRING_MAX);
        put_string(out, self.topic, NAME_STRING_MAX);
    }

    /// Appends the whole message, with the frame of the first half.
    pub fn encode(&self, registration: u32, frame: &[u8], out: &mut Vec<u8>) {
        use crate::header::{Flags, HEADER_SIZE, Op, begin, end};
        let start = begin(out);
        self.put(out);
        let fields_len = out.len() - start - HEADER_SIZE;
        out.extend_from_slice(frame);
        end(out, start, Op::Check as u8, Flags::RESPONSE, 0, registration, fields_len, 0);
    }
}

/// Where a transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TransactionState {
    /// Nobody has said how it ends.
    Open = 1,
    /// The checks are used up: it waits for an operator.
    Parked = 2,
    /// It commits; not every shard has made its part visible yet.
    Decided = 3,
    /// It has been committed.
    Committed = 4,
    /// It has been aborted.
    Aborted = 5,
}

impl TransactionState {
    /// The state with this number.
    pub fn parse(number: u8) -> Option<Self> {
        [Self::Open, Self::Parked, Self::Decided, Self::Committed, Self::Aborted]
            .into_iter()
            .find(|state| *state as u8 == number)
    }
}

/// Asks for a page of the transactions that are not resolved, in the order of their ids, or for one with its halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListTransactions<'a> {
    /// Go on behind this id; 0: from the start. With `one`: the transaction.
    pub txn: u128,
    /// That one alone, resolved or not, with its halves.
    pub one: bool,
    /// Only those in this state.
    pub state: Option<TransactionState>,
    /// Only those of this producer group; empty: of all.
    pub group: &'a str,
    /// Transactions of the page at most; 0 leaves it to the server.
    pub limit: u32,
}

impl<'a> ListTransactions<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<ListTransactionsHead>()?;
        let state = match head.state {
            0 => None,
            number => Some(TransactionState::parse(number)?),
        };
        let list = Self {
            txn: head.txn.get(),
            one: head.flags == LIST_TRANSACTION_ONE,
            state,
            group: fields.string(NAME_STRING_MAX)?,
            limit: head.limit.get(),
        };
        let valid = head.flags <= LIST_TRANSACTION_ONE && head.reserved == U16::ZERO;
        fields.end(list).filter(|list| valid && (!list.one || list.txn != 0))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &ListTransactionsHead {
                txn: U128::new(self.txn),
                limit: U32::new(self.limit),
                state: self.state.map_or(0, |state| state as u8),
                flags: if self.one { LIST_TRANSACTION_ONE } else { 0 },
                reserved: U16::ZERO,
            },
        );
        put_string(out, self.group, NAME_STRING_MAX);
    }
}

/// A transaction in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionEntry<'a> {
    /// Its id.
    pub txn: u128,
    /// Its producer group.
    pub group: &'a str,
    /// Where it stands.
    pub state: TransactionState,
    /// When its first half was stored, Unix milliseconds.
    pub since_ms: i64,
    /// When it is checked next, Unix milliseconds; 0 if it is not.
    pub next_check_ms: i64,
    /// Checks that were handed over.
    pub attempts: u16,
    /// HALF frames.
    pub halves: u32,
    /// Bytes of its HALF frames.
    pub bytes: u64,
    /// Shards that take part: bit i is shard i.
    pub participants: u64,
}

impl<'a> Item<'a> for TransactionEntry<'a> {
    fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<TransactionHead>()?;
        Some(Self {
            txn: head.txn.get(),
            group: fields.string(NAME_STRING_MAX)?,
            state: TransactionState::parse(head.state)?,
            since_ms: head.since_ms.get(),
            next_check_ms: head.next_check_ms.get(),
            attempts: head.attempts.get(),
            halves: head.halves.get(),
            bytes: head.bytes.get(),
            participants: head.participants.get(),
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &TransactionHead {
                txn: U128::new(self.txn),
                since_ms: I64::new(self.since_ms),
                next_check_ms: I64::new(self.next_check_ms),
                bytes: U64::new(self.bytes),
                participants: U64::new(self.participants),
                halves: U32::new(self.halves),
                attempts: U16::new(self.attempts),
                state: self.state as u8,
                reserved: [0; 9],
            },
        );
        put_string(out, self.group, NAME_STRING_MAX);
    }
}

/// A half of a transaction. Its body is read with PEEK_MESSAGE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfEntry<'a> {
    /// The topic for which it is.
    pub topic: &'a str,
    /// Index of the partition in the topic.
    pub index: u32,
    /// Id of the partition.
    pub partition: u32,
    /// Its identity in the partition's shard.
    pub lsn: u64,
    /// Bytes of its frame.
    pub len: u32,
    /// Records.
    pub count: u32,
    /// When it becomes visible after a commit, Unix milliseconds; 0: at once.
    pub due_ms: i64,
}

impl<'a> Item<'a> for HalfEntry<'a> {
    fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<HalfHead>()?;
        Some(Self {
            topic: fields.string(NAME_STRING_MAX)?,
            index: head.index.get(),
            partition: head.partition.get(),
            lsn: head.lsn.get(),
            len: head.len.get(),
            count: head.count.get(),
            due_ms: head.due_ms.get(),
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &HalfHead {
                due_ms: I64::new(self.due_ms),
                lsn: U64::new(self.lsn),
                partition: U32::new(self.partition),
                index: U32::new(self.index),
                len: U32::new(self.len),
                count: U32::new(self.count),
            },
        );
        put_string(out, self.topic, NAME_STRING_MAX);
    }
}

/// Answer to LIST_TRANSACTIONS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionPage<'a> {
    /// The transactions.
    pub transactions: Items<'a, TransactionEntry<'a>>,
    /// Of the one that was asked for, at most 2,048.
    pub halves: Items<'a, HalfEntry<'a>>,
    /// There are more behind the last one.
    pub more: bool,
}

impl<'a> TransactionPage<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<TransactionsHead>()?;
        Some(Self {
            transactions: fields.items(head.count.get(), LIST_TRANSACTIONS_MAX)?,
            halves: fields.items(head.halves.get(), LIST_HALVES_MAX)?,
            more: head.flags.get() & MORE != 0,
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &TransactionsHead {
                flags: U32::new(if self.more { MORE } else { 0 }),
                count: U32::new(self.transactions.len() as u32),
                halves: U32::new(self.halves.len() as u32),
                reserved: U32::ZERO,
            },
        );
        self.transactions.put(out);
        self.halves.put(out);
    }
}
