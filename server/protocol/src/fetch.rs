//! The fixed parts of a FETCH answer and of a PUSH, and the walk over their entries.
//!
//! An entry is a [`FetchEntryHeader`] and, right behind it, a frame. The entry's numbers count, not the frame's: a
//! bound frame was written before it had an offset. An entry with [`ENTRY_SAME_FRAME`] has no frame of its own: it is
//! a further run of records of the frame of the entry in front of it.

use crate::fields::put;
use crate::header::{Flags, HEADER_SIZE, Op, begin, end};
use ringmq_format::Corruption;
use ringmq_format::frame::Frame;
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Own fields of a FETCH answer and of a PUSH.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FetchFields {
    /// First offset that can be read.
    pub log_start: U64,
    /// First offset that cannot be read yet.
    pub visible_end: U64,
    /// Where to go on: behind the last entry.
    pub next_offset: U64,
}

/// In front of each frame.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FetchEntryHeader {
    /// Offset of the entry's first record.
    pub base_offset: U64,
    /// When it became visible, Unix milliseconds.
    pub visible_time: I64,
    /// Index in the frame of the entry's first record, and the bit [`ENTRY_SAME_FRAME`]: see
    /// [`FetchEntryHeader::first`].
    pub first_record: U32,
    /// Records of the entry.
    pub count: U32,
}

/// Bit of [`FetchEntryHeader::first_record`]: no frame follows, the one of the entry in front of it is meant.
pub const ENTRY_SAME_FRAME: u32 = 1 << 31;

/// Bytes of [`FetchFields`].
pub const FETCH_FIELDS_SIZE: usize = 24;
/// Bytes of [`FetchEntryHeader`].
pub const FETCH_ENTRY_SIZE: usize = 24;

const _: () = {
    assert!(size_of::<FetchFields>() == FETCH_FIELDS_SIZE);
    assert!(size_of::<FetchEntryHeader>() == FETCH_ENTRY_SIZE);
    assert!(std::mem::offset_of!(FetchEntryHeader, first_record) == 16);
};

impl FetchFields {
    /// From plain numbers.
    pub fn new(log_start: u64, visible_end: u64, next_offset: u64) -> Self {
        Self {
            log_start: U64::new(log_start),
            visible_end: U64::new(visible_end),
            next_offset: U64::new(next_offset),
        }
    }
}

impl FetchEntryHeader {
    /// From plain numbers.
    pub fn new(base_offset: u64, visible_time: i64, first_record: u32, count: u32) -> Self {
        Self {
            base_offset: U64::new(base_offset),
            visible_time: I64::new(visible_time),
            first_record: U32::new(first_record),
            count: U32::new(count),
        }
    }

    /// A further run of records of the frame of the entry in front of this one.
    #[must_use]
    pub fn in_same_frame(mut self) -> Self {
        self.first_record |= U32::new(ENTRY_SAME_FRAME);
        self
    }

    /// Index in the frame of the entry's first record.
    pub fn first(&self) -> u32 {
        self.first_record.get() & !ENTRY_SAME_FRAME
    }

    /// No frame follows this header.
    pub fn is_in_same_frame(&self) -> bool {
        self.first_record.get() & ENTRY_SAME_FRAME != 0
    }

    /// First offset behind the entry; saturates on hostile numbers.
    pub fn end_offset(&self) -> u64 {
        self.base_offset.get().saturating_add(u64::from(self.count.get()))
    }
}

/// An entry with its frame.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where its records are.
    pub header: &'a FetchEntryHeader,
    /// The frame; its header is checked, its payload is not.
    pub frame: Frame<'a>,
}

/// Starts a FETCH answer or a PUSH in `out` and answers where. Append entries (header, then frame), then call
/// [`fetch_end`].
pub fn fetch_begin(out: &mut Vec<u8>) -> usize {
    let start = begin(out);
    out.resize(start + HEADER_SIZE + FETCH_FIELDS_SIZE, 0);
    start
}

/// Ends what [`fetch_begin`] started at `start`. `outside` is the bytes of entries that the caller sends from
/// elsewhere, right behind `out`. For a PUSH, `correlation` is 0 and `handle` is the subscription.
pub fn fetch_end(
    out: &mut [u8],
    start: usize,
    op: Op,
    correlation: u64,
    handle: u32,
    fields: &FetchFields,
    outside: usize,
) {
    let at = start + HEADER_SIZE;
    out[at..at + FETCH_FIELDS_SIZE].copy_from_slice(fields.as_bytes());
    end(out, start, op as u8, Flags::RESPONSE, correlation, handle, FETCH_FIELDS_SIZE, outside);
}

/// Appends the header of an entry; the frame's bytes come next.
pub fn put_entry(out: &mut Vec<u8>, header: &FetchEntryHeader) {
    put(out, header);
}

/// The entries in the frames part of an answer or PUSH. Ends after the first that is not valid.
pub fn entries(bytes: &[u8]) -> impl Iterator<Item = Result<Entry<'_>, Corruption>> {
    let mut rest = bytes;
    let mut frame = None;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let entry = entry(&mut rest, frame);
        match &entry {
            Ok(entry) => frame = Some(entry.frame),
            Err(_) => rest = &[],
        }
        Some(entry)
    })
}

fn entry<'a>(rest: &mut &'a [u8], last: Option<Frame<'a>>) -> Result<Entry<'a>, Corruption> {
    use ringmq_format::Damage;
    let bad = |field, damage, expected: u64, found: u64| {
        Corruption::new("fetch entry", field, damage, expected, found)
    };
    let bytes = *rest;
    let (header, behind) = FetchEntryHeader::ref_from_prefix(bytes)
        .map_err(|_| bad("header", Damage::Truncated, FETCH_ENTRY_SIZE as u64, bytes.len() as u64))?;
    let frame = match last {
        Some(frame) if header.is_in_same_frame() => frame,
        None if header.is_in_same_frame() => return Err(bad("first_record", Damage::Field, 0, 1)),
        _ => Frame::parse(behind)?,
    };
    let count = u64::from(frame.header.count.get());
    let end = u64::from(header.first()) + u64::from(header.count.get());
    if end > count {
        return Err(bad("count", Damage::Field, count, end));
    }
    if header.base_offset.get().checked_add(u64::from(header.count.get())).is_none() {
        return Err(bad("base_offset", Damage::Field, u64::MAX, header.base_offset.get()));
    }
    *rest = if header.is_in_same_frame() { behind } else { &behind[frame.bytes.len()..] };
    Ok(Entry { header, frame })
}
