//! Messages that wait for their time: listed, peeked at, cancelled, rescheduled, purged.
//!
//! A pending message is named by its partition and its identity, the LSN at which it was stored in the partition's
//! shard; the outcome of its PRODUCE says both.

use crate::fields::{Fields, put, put_string};
use crate::items::{Item, Items};
use crate::limits::{LIST_TIMERS_MAX, NAME_STRING_MAX};
use crate::request::wire;
use zerocopy::little_endian::{I64, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

wire! {
    /// LIST_TIMERS; then the topic's name.
    ListTimersHead = 32 {
        after_due_ms: I64, after_lsn: U64, after_partition: U32, limit: U32, reserved: U64,
    }
    /// Answer to LIST_TIMERS; then `count` timers.
    TimersHead = 16 { pending: U64, flags: U32, count: U32, }
    /// A timer; then the topic's name.
    TimerHead = 32 { due_ms: I64, lsn: U64, partition: U32, index: U32, count: U32, len: U32, }
    /// CHANGE_TIMER; then the topic's name.
    ChangeTimerHead = 24 { lsn: U64, due_ms: I64, partition: U32, kind: u8, reserved: [u8; 3], }
    /// Answer to CHANGE_TIMER.
    TimerChangedWire = 16 { changed: U64, flags: U32, reserved: U32, }
    /// PEEK_MESSAGE.
    PeekMessageWire = 16 { lsn: U64, partition: U32, reserved: U32, }
    /// Answer to PEEK_MESSAGE; then the topic's name, and the frame.
    PeekedHead = 40 {
        txn: U128, due_ms: I64, partition: U32, index: U32, count: U32, reserved: U32,
    }
}

const MORE: u32 = 1;

/// Asks for a page of pending messages, in the order of due time, partition and identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListTimers<'a> {
    /// Go on behind the one of this due time, partition id and identity; 0, 0, 0: from the start.
    pub after: (i64, u32, u64),
    /// Only those of this topic; empty: of all.
    pub topic: &'a str,
    /// Messages of the page at most; 0 leaves it to the server.
    pub limit: u32,
}

impl<'a> ListTimers<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<ListTimersHead>()?;
        let after = (head.after_due_ms.get(), head.after_partition.get(), head.after_lsn.get());
        let list = Self { after, topic: fields.string(NAME_STRING_MAX)?, limit: head.limit.get() };
        fields.end(list).filter(|_| head.reserved == U64::ZERO)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let (due_ms, partition, lsn) = self.after;
        put(
            out,
            &ListTimersHead {
                after_due_ms: I64::new(due_ms),
                after_lsn: U64::new(lsn),
                after_partition: U32::new(partition),
                limit: U32::new(self.limit),
                reserved: U64::ZERO,
            },
        );
        put_string(out, self.topic, NAME_STRING_MAX);
    }
}

/// A pending message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerEntry<'a> {
    /// The topic.
    pub topic: &'a str,
    /// Index of the partition in the topic.
    pub index: u32,
    /// Id of the partition.
    pub partition: u32,
    /// Its identity in the partition's shard.
    pub lsn: u64,
    /// When it becomes visible, Unix milliseconds.
    pub due_ms: i64,
    /// Records.
    pub count: u32,
    /// Bytes of its frame.
    pub len: u32,
}

impl<'a> Item<'a> for TimerEntry<'a> {
    fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<TimerHead>()?;
        Some(Self {
            topic: fields.string(NAME_STRING_MAX)?,
            index: head.index.get(),
            partition: head.partition.get(),
            lsn: head.lsn.get(),
            due_ms: head.due_ms.get(),
            count: head.count.get(),
            len: head.len.get(),
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &TimerHead {
                due_ms: I64::new(self.due_ms),
                lsn: U64::new(self.lsn),
                partition: U32::new(self.partition),
                index: U32::new(self.index),
                count: U32::new(self.count),
                len: U32::new(self.len),
            },
        );
        put_string(out, self.topic, NAME_STRING_MAX);
    }
}

/// Answer to LIST_TIMERS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerPage<'a> {
    /// The messages.
    pub timers: Items<'a, TimerEntry<'a>>,
    /// How many are pending in all; `u64::MAX` if not known.
    pub pending: u64,
    /// There are more behind the last one.
    pub more: bool,
}

impl<'a> TimerPage<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<TimersHead>()?;
        Some(Self {
            timers: fields.items(head.count.get(), LIST_TIMERS_MAX)?,
            pending: head.pending.get(),
            more: head.flags.get() & MORE != 0,
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let (flags, count) = (U32::new(if self.more { MORE } else { 0 }), U32::new(self.timers.len() as u32));
        put(out, &TimersHead { pending: U64::new(self.pending), flags, count });
        self.timers.put(out);
    }
}

/// What to do with pending messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerChange<'a> {
    /// It never becomes visible.
    Cancel {
        /// Id of its partition.
        partition: u32,
        /// Its identity.
        lsn: u64,
    },
    /// It becomes visible at another time.
    Reschedule {
        /// Id of its partition.
        partition: u32,
        /// Its identity.
        lsn: u64,
        /// When, Unix milliseconds.
        due_ms: i64,
    },
    /// All of a topic are cancelled, as many as fit into one request; the answer says whether there are more.
    Purge {
        /// The topic.
        topic: &'a str,
    },
}

impl<'a> TimerChange<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<ChangeTimerHead>()?;
        let topic = fields.string(NAME_STRING_MAX)?;
        let (partition, lsn, due_ms) = (head.partition.get(), head.lsn.get(), head.due_ms.get());
        let change = match (head.kind, partition, lsn, due_ms, topic.is_empty()) {
            (1, 1.., _, 0, true) => Self::Cancel { partition, lsn },
            (2, 1.., _, 1.., true) => Self::Reschedule { partition, lsn, due_ms },
            (3, 0, 0, 0, false) => Self::Purge { topic },
            _ => return None,
        };
        fields.end(change).filter(|_| head.reserved == [0; 3])
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let (kind, partition, lsn, due_ms, topic) = match *self {
            Self::Cancel { partition, lsn } => (1, partition, lsn, 0, ""),
            Self::Reschedule { partition, lsn, due_ms } => (2, partition, lsn, due_ms, ""),
            Self::Purge { topic } => (3, 0, 0, 0, topic),
        };
        put(
            out,
            &ChangeTimerHead {
                lsn: U64::new(lsn),
                due_ms: I64::new(due_ms),
                partition: U32::new(partition),
                kind,
                reserved: [0; 3],
            },
        );
        put_string(out, topic, NAME_STRING_MAX);
    }
}

/// Answer to CHANGE_TIMER: done, and durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerChanged {
    /// Messages that were changed.
    pub changed: u64,
    /// Purge: there are more; ask again.
    pub more: bool,
}

impl TimerChanged {
    pub(crate) fn take(fields: &mut Fields<'_>) -> Option<Self> {
        let wire = fields.take::<TimerChangedWire>()?;
        Some(Self { changed: wire.changed.get(), more: wire.flags.get() & MORE != 0 })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = U32::new(if self.more { MORE } else { 0 });
        put(out, &TimerChangedWire { changed: U64::new(self.changed), flags, reserved: U32::ZERO });
    }
}

/// Asks for the frame of a message that is not visible: pending, or a half of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeekMessage {
    /// Id of its partition.
    pub partition: u32,
    /// Its identity.
    pub lsn: u64,
}

impl PeekMessage {
    pub(crate) fn take(mut fields: Fields<'_>) -> Option<Self> {
        let wire = fields.take::<PeekMessageWire>()?;
        let peek = Self { partition: wire.partition.get(), lsn: wire.lsn.get() };
        fields.end(peek).filter(|_| wire.reserved == U32::ZERO)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let (lsn, partition) = (U64::new(self.lsn), U32::new(self.partition));
        put(out, &PeekMessageWire { lsn, partition, reserved: U32::ZERO });
    }
}

/// Answer to PEEK_MESSAGE; the frame follows the own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peeked<'a> {
    /// The topic for which it is.
    pub topic: &'a str,
    /// Index of the partition in the topic.
    pub index: u32,
    /// Id of the partition.
    pub partition: u32,
    /// The transaction of a half; otherwise 0.
    pub txn: u128,
    /// When it becomes visible, Unix milliseconds; 0 for a half that does at its commit.
    pub due_ms: i64,
    /// Records.
    pub count: u32,
}

impl<'a> Peeked<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<PeekedHead>()?;
        Some(Self {
            topic: fields.string(NAME_STRING_MAX)?,
            index: head.index.get(),
            partition: head.partition.get(),
            txn: head.txn.get(),
            due_ms: head.due_ms.get(),
            count: head.count.get(),
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &PeekedHead {
                txn: U128::new(self.txn),
                due_ms: I64::new(self.due_ms),
                partition: U32::new(self.partition),
                index: U32::new(self.index),
                count: U32::new(self.count),
                reserved: U32::ZERO,
            },
        );
        put_string(out, self.topic, NAME_STRING_MAX);
    }

    /// Appends the whole answer, with the frame.
    pub fn encode(&self, correlation: u64, frame: &[u8], out: &mut Vec<u8>) {
        use crate::header::{Flags, HEADER_SIZE, Op, begin, end};
        let start = begin(out);
        self.put(out);
        let fields_len = out.len() - start - HEADER_SIZE;
        out.extend_from_slice(frame);
        end(out, start, Op::PeekMessage as u8, Flags::RESPONSE, correlation, 0, fields_len, 0);
    }
}
