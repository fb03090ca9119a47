//! The fixed parts of PRODUCE and its answer. Both are arrays of zerocopy structs, so that neither side allocates
//! per frame.

use crate::error_code::ErrorCode;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// In front of the slots of a PRODUCE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ProduceHead {
    /// Slots, and frames behind the own fields.
    pub frames: U32,
    /// Zero.
    pub reserved: U32,
}

/// Says where one frame of a PRODUCE belongs and how long it is. Frames stand in the order of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ProduceSlot {
    /// Handle of the partition.
    pub handle: U32,
    /// Bytes of the frame, as in its own header.
    pub len: U32,
}

/// The frame was stored earlier; the offset is the original one.
pub const OUTCOME_DUPLICATE: u16 = 1;

/// What became of one frame. The answer to PRODUCE is an array of these, one for each slot, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ProduceOutcome {
    /// 0, or number of an [`ErrorCode`].
    pub code: U16,
    /// [`OUTCOME_DUPLICATE`] or 0.
    pub flags: U16,
    /// With a retriable code: how long to wait at least; 0 leaves it to the client.
    pub retry_after_ms: U32,
    /// Offset of the frame's first record.
    pub base_offset: U64,
    /// Append time, Unix milliseconds.
    pub timestamp: I64,
}

const _: () = {
    assert!(size_of::<ProduceHead>() == 8);
    assert!(size_of::<ProduceSlot>() == 8);
    assert!(size_of::<ProduceOutcome>() == 24);
    assert!(std::mem::offset_of!(ProduceOutcome, base_offset) == 8);
};

impl ProduceOutcome {
    /// On disk.
    pub fn stored(base_offset: u64, timestamp: i64, duplicate: bool) -> Self {
        Self {
            code: U16::ZERO,
            flags: U16::new(if duplicate { OUTCOME_DUPLICATE } else { 0 }),
            retry_after_ms: U32::ZERO,
            base_offset: U64::new(base_offset),
            timestamp: I64::new(timestamp),
        }
    }

    /// Not stored, or not known to be.
    pub fn failed(code: ErrorCode, retry_after_ms: u32) -> Self {
        Self { code: U16::new(code as u16), retry_after_ms: U32::new(retry_after_ms), ..Self::new_zeroed() }
    }

    /// The frame is on disk.
    pub fn is_stored(&self) -> bool {
        self.code.get() == 0
    }

    /// It was there before this request.
    pub fn is_duplicate(&self) -> bool {
        self.flags.get() & OUTCOME_DUPLICATE != 0
    }
}
