//! Settings of a consumer group, each of which may be left out: a group that is made takes the default then, one
//! that is altered keeps what it has. In answers all are given.

use crate::fields::{Fields, put};
use crate::limits::BACKOFF_STEPS_MAX;
use crate::request::wire;
pub use ringmq_format::consumer_group::GroupStart;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

wire! {
    /// Settings of a group; then `backoff_steps` steps of four bytes, milliseconds.
    GroupSettingsHead = 48 {
        set: U32, invisible_default_ms: U32, start_value: I64, rate_bytes: U64, rate_records: U32, concurrency: U32,
        max_attempts: U16, backoff_steps: U16, ordered: u8, start: u8, reserved: [u8; 10],
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct GroupSettings<'a> {
    /// Deliveries of a record before it becomes a dead letter (default 16).
    pub max_attempts: Option<u16>,
    /// Pause after each failed attempt, milliseconds; the last one repeats (default RocketMQ's steps from 10 s on).
    pub backoff_ms: Option<&'a [U32]>,
    /// Time for which a received record is not given to anybody else, unless the receiver says (default 60,000).
    pub invisible_default_ms: Option<u32>,
    /// One record of a key is in flight at a time (default no).
    pub ordered: Option<bool>,
    /// Bytes a second over all members; 0 is no limit (the default).
    pub rate_bytes: Option<u64>,
    /// Records a second over all members; 0 is no limit (the default).
    pub rate_records: Option<u32>,
    /// Records in flight over all members, for each partition; 0 is no limit (the default).
    pub concurrency: Option<u32>,
    /// Where it starts (default earliest).
    pub start: Option<GroupStart>,
}

const MAX_ATTEMPTS: u32 = 1;
const BACKOFF: u32 = 1 << 1;
const INVISIBLE: u32 = 1 << 2;
const ORDERED: u32 = 1 << 3;
const RATE_BYTES: u32 = 1 << 4;
const RATE_RECORDS: u32 = 1 << 5;
const CONCURRENCY: u32 = 1 << 6;
const START: u32 = 1 << 7;
const ALL: u32 = (1 << 8) - 1;

impl<'a> GroupSettings<'a> {
    /// `strict` in requests, where a setting that is not known is refused; a later server may send one.
    pub(crate) fn take(fields: &mut Fields<'a>, strict: bool) -> Option<Self> {
        let head = fields.take::<GroupSettingsHead>()?;
        let (set, steps) = (head.set.get(), usize::from(head.backoff_steps.get()));
        let unknown = set & !ALL != 0 || head.ordered > 1 || head.reserved != [0; 10];
        if steps > BACKOFF_STEPS_MAX || (strict && unknown) {
            return None;
        }
        let steps = fields.slice::<U32>(steps)?;
        let start = match set & START {
            0 => None,
            _ => Some(GroupStart::parse(head.start, head.start_value.get())?),
        };
        let given = |bit| set & bit != 0;
        let settings = Self {
            max_attempts: given(MAX_ATTEMPTS).then(|| head.max_attempts.get()),
            backoff_ms: given(BACKOFF).then_some(steps),
            invisible_default_ms: given(INVISIBLE).then(|| head.invisible_default_ms.get()),
            ordered: given(ORDERED).then_some(head.ordered == 1),
            rate_bytes: given(RATE_BYTES).then(|| head.rate_bytes.get()),
            rate_records: given(RATE_RECORDS).then(|| head.rate_records.get()),
            concurrency: given(CONCURRENCY).then(|| head.concurrency.get()),
            start,
        };
        // What is not given is zero.
        (!strict || settings.head().as_bytes() == head.as_bytes()).then_some(settings)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(out, &self.head());
        put(out, self.backoff_ms.unwrap_or_default());
    }

    fn head(&self) -> GroupSettingsHead {
        let bit = |given: bool, bit| if given { bit } else { 0 };
        let set = bit(self.max_attempts.is_some(), MAX_ATTEMPTS)
            | bit(self.backoff_ms.is_some(), BACKOFF)
            | bit(self.invisible_default_ms.is_some(), INVISIBLE)
            | bit(self.ordered.is_some(), ORDERED)
            | bit(self.rate_bytes.is_some(), RATE_BYTES)
            | bit(self.rate_records.is_some(), RATE_RECORDS)
            | bit(self.concurrency.is_some(), CONCURRENCY)
            | bit(self.start.is_some(), START);
        let steps = self.backoff_ms.unwrap_or_default();
        let (start, start_value) = self.start.map_or((0, 0), GroupStart::parts);
        GroupSettingsHead {
            set: U32::new(set),
            invisible_default_ms: U32::new(self.invisible_default_ms.unwrap_or(0)),
            start_value: I64::new(start_value),
            rate_bytes: U64::new(self.rate_bytes.unwrap_or(0)),
            rate_records: U32::new(self.rate_records.unwrap_or(0)),
            concurrency: U32::new(self.concurrency.unwrap_or(0)),
            max_attempts: U16::new(self.max_attempts.unwrap_or(0)),
            backoff_steps: U16::new(steps.len() as u16),
            ordered: u8::from(self.ordered == Some(true)),
            start,
            reserved: [0; 10],
        }
    }
}
