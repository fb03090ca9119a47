//! The group: what one write puts into a segment.
//!
//! ```text
//! | header 64 B | frame | frame | ... | zeros to a multiple of 4 KiB |      never rewritten
//! ```
//!
//! A group is *whole* if, in this order:
//! - G1 64 bytes are there and the magic number is right,
//! - G2 the header checksum, seeded with the segment's incarnation, holds,
//! - G3 reserved bytes are zero, the kind is known, used and total are possible,
//! - G4 it lies where it says: segment and LSN,
//! - G5 the chain continues the group before, the epoch does not go back,
//! - G6 every frame's header is valid and the body checksum over the frame headers holds,
//! - G7 every frame's payload checksum holds,
//! - G8 everything behind `used` is zero.
//!
//! G1 to G4 make a *witness* of its `durable_lsn`; its body need not be whole for that.

use crate::checksum::{crc32c_seeded, crc64};
use crate::corruption::{Corruption, Damage, demand, demand_zero};
use crate::frame::{Frame, FrameHeader, frames};
use crate::ids::{Epoch, Lsn, SegmentSeq};
use crate::limits::{BLOCK_SIZE, FRAME_HEADER_SIZE, GROUP_HEADER_SIZE, GROUP_SIZE_MAX};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "group";
/// `RGRP`
pub const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"RGRP");

/// What a group is for. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GroupKind {
    /// Frames.
    Data = 1,
    /// Nothing; gives the group before it a witness.
    Heartbeat = 2,
    /// Nothing; reaches to the edge of an extent, which no write may cross.
    Pad = 3,
    /// Nothing; the segment ends here and the log goes on in the next.
    Seal = 4,
    /// Nothing; a checkpoint was named.
    Checkpoint = 5,
    /// Nothing; the log was cut here and a new epoch begins.
    Recovery = 6,
}

impl GroupKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Data, Self::Heartbeat, Self::Pad, Self::Seal, Self::Checkpoint, Self::Recovery];

    /// The kind with this number.
    pub fn parse(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// The first 64 bytes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupHeader {
    /// [`GROUP_MAGIC`].
    pub magic: U32,
    /// CRC-32C of the segment's incarnation and bytes 8..64.
    pub header_crc: U32,
    /// The segment.
    pub segment_seq: U64,
    /// Where this group starts.
    pub lsn: U64,
    /// End of the durable prefix when this group was submitted.
    pub durable_lsn: U64,
    /// Bytes of header and frames.
    pub used: U32,
    /// Bytes with padding; a multiple of 4 KiB.
    pub total: U32,
    /// Number of frames.
    pub frames: U32,
    /// CRC-32C of the incarnation and all frame headers.
    pub body_crc: U32,
    /// CRC-64/NVME of the header of the group before; of a segment's first group: the segment header's
    /// `previous_chain`.
    pub chain: U64,
    /// Life of the shard that wrote it.
    pub epoch: U32,
    /// [`GroupKind`].
    pub kind: u8,
    /// None are defined: zero.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<GroupHeader>() == GROUP_HEADER_SIZE);
    assert!(offset_of!(GroupHeader, segment_seq) == 8);
    assert!(offset_of!(GroupHeader, durable_lsn) == 24);
    assert!(offset_of!(GroupHeader, used) == 32);
    assert!(offset_of!(GroupHeader, chain) == 48);
    assert!(offset_of!(GroupHeader, epoch) == 56);
    assert!(offset_of!(GroupHeader, reserved) == 62);
};

/// Everything that decides a group's header, apart from the checksums.
#[derive(Clone, Copy, Debug)]
pub struct GroupFields {
    /// The segment.
    pub segment_seq: SegmentSeq,
    /// Where the group starts.
    pub lsn: Lsn,
    /// End of the durable prefix now.
    pub durable_lsn: Lsn,
    /// Bytes of header and frames.
    pub used: usize,
    /// Bytes with padding.
    pub total: usize,
    /// Number of frames.
    pub frames: u32,
    /// Checksum over the frame headers, from [`BodyCrc`].
    pub body_crc: u32,
    /// Checksum of the header before.
    pub chain: u64,
    /// Life of the shard.
    pub epoch: Epoch,
    /// What it is for.
    pub kind: GroupKind,
}

impl GroupHeader {
    /// The sealed header for `fields`.
    pub fn new(fields: &GroupFields, incarnation: u64) -> Self {
        assert!(fields.used >= GROUP_HEADER_SIZE, "group uses {} bytes", fields.used);
        assert!(fields.used <= fields.total, "group uses {} of {} bytes", fields.used, fields.total);
        assert!(fields.total.is_multiple_of(BLOCK_SIZE), "group of {} bytes", fields.total);
        assert!(fields.total <= GROUP_SIZE_MAX, "group of {} bytes", fields.total);
        assert!(fields.durable_lsn <= fields.lsn, "{} is durable before {}", fields.durable_lsn, fields.lsn);
        let mut header = Self {
            magic: U32::new(GROUP_MAGIC),
            header_crc: U32::ZERO,
            segment_seq: U64::new(fields.segment_seq.0),
            lsn: U64::new(fields.lsn.0),
            durable_lsn: U64::new(fields.durable_lsn.0),
            used: U32::new(fields.used as u32),
            total: U32::new(fields.total as u32),
            frames: U32::new(fields.frames),
            body_crc: U32::new(fields.body_crc),
            chain: U64::new(fields.chain),
            epoch: U32::new(fields.epoch.0),
            kind: fields.kind as u8,
            flags: 0,
            reserved: [0; 2],
        };
        header.header_crc = U32::new(header.compute_crc(incarnation));
        header
    }

    fn compute_crc(&self, incarnation: u64) -> u32 {
        crc32c_seeded(incarnation, &self.as_bytes()[8..])
    }

    /// Checks G1 to G4 of the group that should start at `lsn` in the segment.
    pub fn parse(
        bytes: &[u8],
        incarnation: u64,
        segment_seq: SegmentSeq,
        lsn: Lsn,
    ) -> Result<&Self, Corruption> {
        let Ok((header, _)) = Self::ref_from_prefix(bytes) else {
            return Err(Corruption::new(
                WHAT,
                "header",
                Damage::Truncated,
                GROUP_HEADER_SIZE as u64,
                bytes.len() as u64,
            ));
        };
        demand(WHAT, "magic", Damage::Magic, u64::from(GROUP_MAGIC), u64::from(header.magic.get()))?;
        let crc = header.compute_crc(incarnation);
        demand(WHAT, "header_crc", Damage::HeaderCrc, u64::from(crc), u64::from(header.header_crc.get()))?;
        demand_zero(WHAT, "reserved", &header.reserved)?;
        demand(WHAT, "flags", Damage::Padding, 0, u64::from(header.flags))?;
        if GroupKind::parse(header.kind).is_none() {
            return Err(Corruption::new(WHAT, "kind", Damage::Field, 6, u64::from(header.kind)));
        }
        let (used, total) = (header.used(), header.total());
        if total == 0 || total > GROUP_SIZE_MAX || !total.is_multiple_of(BLOCK_SIZE) {
            return Err(Corruption::new(WHAT, "total", Damage::Field, GROUP_SIZE_MAX as u64, total as u64));
        }
        if !(GROUP_HEADER_SIZE..=total).contains(&used) {
            return Err(Corruption::new(WHAT, "used", Damage::Field, total as u64, used as u64));
        }
        if header.kind() != GroupKind::Data && (header.frames.get() > 0 || used != GROUP_HEADER_SIZE) {
            return Err(Corruption::new(WHAT, "frames", Damage::Field, 0, u64::from(header.frames.get())));
        }
        demand(WHAT, "segment_seq", Damage::Stale, segment_seq.0, header.segment_seq.get())?;
        demand(WHAT, "lsn", Damage::Misplaced, lsn.0, header.lsn.get())?;
        if header.durable_lsn.get() > lsn.0 {
            return Err(Corruption::new(WHAT, "durable_lsn", Damage::Field, lsn.0, header.durable_lsn.get()));
        }
        Ok(header)
    }

    /// Bytes of header and frames.
    pub fn used(&self) -> usize {
        self.used.get() as usize
    }

    /// Bytes with padding.
    pub fn total(&self) -> usize {
        self.total.get() as usize
    }

    /// The kind; `parse` has checked that it is one.
    pub fn kind(&self) -> GroupKind {
        GroupKind::parse(self.kind).unwrap_or(GroupKind::Data)
    }

    /// What the next group's `chain` must be.
    pub fn next_chain(&self) -> u64 {
        crc64(self.as_bytes())
    }
}

/// Checksum over the frame headers of a group, in their order.
#[derive(Clone, Debug)]
pub struct BodyCrc(crate::checksum::Crc32c);

impl BodyCrc {
    /// No frame yet.
    pub fn new(incarnation: u64) -> Self {
        let mut crc = crate::checksum::Crc32c::new();
        crc.update(&incarnation.to_le_bytes());
        Self(crc)
    }

    /// Adds the next frame's header.
    pub fn add(&mut self, header: &FrameHeader) {
        self.0.update(header.as_bytes());
    }

    /// The checksum.
    pub fn finish(&self) -> u32 {
        self.0.finish()
    }
}

/// What is wrong with a group whose header is good (G1 to G5), worst first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyState {
    /// G6 to G8 hold.
    Whole,
    /// Headers are intact; the payloads of these frames (index in the group, first byte in the group) are not.
    PayloadsBad(Vec<(usize, usize, Corruption)>),
    /// A frame's header or the body checksum is bad (G6): what the group says is unknown.
    HeadersBad(Corruption),
    /// Only the padding is bad (G8): every frame is intact.
    PaddingBad(Corruption),
}

/// Checks G6 to G8 of a whole group's bytes.
pub fn check_body(header: &GroupHeader, bytes: &[u8], incarnation: u64) -> BodyState {
    assert!(bytes.len() >= header.total(), "{} of {} bytes of a group", bytes.len(), header.total());
    let mut crc = BodyCrc::new(incarnation);
    let mut count = 0u32;
    let mut bad_payloads = Vec::new();
    let mut position = GROUP_HEADER_SIZE;
    for frame in frames(&bytes[GROUP_HEADER_SIZE..header.used()]) {
        match frame {
            Ok(frame) => {
                crc.add(frame.header);
                if let Err(corruption) = frame.verify_payload() {
                    bad_payloads.push((count as usize, position, corruption));
                }
                count += 1;
                position += frame.bytes.len();
            }
            Err(corruption) => return BodyState::HeadersBad(corruption),
        }
    }
    if let Err(corruption) =
        demand(WHAT, "body_crc", Damage::BodyCrc, u64::from(crc.finish()), u64::from(header.body_crc.get()))
    {
        return BodyState::HeadersBad(corruption);
    }
    if let Err(corruption) =
        demand(WHAT, "frames", Damage::Field, u64::from(header.frames.get()), u64::from(count))
    {
        return BodyState::HeadersBad(corruption);
    }
    if !bad_payloads.is_empty() {
        return BodyState::PayloadsBad(bad_payloads);
    }
    match demand_zero(WHAT, "padding", &bytes[header.used()..header.total()]) {
        Ok(()) => BodyState::Whole,
        Err(corruption) => BodyState::PaddingBad(corruption),
    }
}

/// The frames of a group with their position in it. Call only after [`check_body`] has found the headers good.
pub fn group_frames<'a>(
    header: &GroupHeader,
    bytes: &'a [u8],
) -> impl Iterator<Item = (usize, Frame<'a>)> + use<'a> {
    let mut position = GROUP_HEADER_SIZE;
    frames(&bytes[GROUP_HEADER_SIZE..header.used()]).map_while(Result::ok).map(move |frame| {
        let at = position;
        position += frame.bytes.len();
        (at, frame)
    })
}

/// A group without frames, zero-padded to `total` bytes.
pub fn encode_empty(fields: &GroupFields, incarnation: u64, out: &mut [u8]) -> GroupHeader {
    assert_eq!(fields.frames, 0, "an empty group has no frames");
    assert_eq!(out.len(), fields.total, "the buffer is the group");
    let header = GroupHeader::new(
        &GroupFields { body_crc: BodyCrc::new(incarnation).finish(), used: GROUP_HEADER_SIZE, ..*fields },
        incarnation,
    );
    out.fill(0);
    out[..GROUP_HEADER_SIZE].copy_from_slice(header.as_bytes());
    header
}

/// Bytes that a group with `frames_len` bytes of frames takes.
pub const fn group_size(frames_len: usize) -> usize {
    crate::limits::block_align(GROUP_HEADER_SIZE + frames_len)
}

const _: () = assert!(FRAME_HEADER_SIZE == 64 && GROUP_HEADER_SIZE == 64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{FrameKind, encode};

    fn sample() -> Vec<u8> {
        let frames = [
            encode(FrameKind::Data, 1, b"first"),
            encode(FrameKind::Data, 2, &[7; 3000]),
            encode(FrameKind::Topic, 1, b"topic"),
        ];
        let mut crc = BodyCrc::new(42);
        let mut body = Vec::new();
        for frame in &frames {
            crc.add(FrameHeader::parse(frame).unwrap());
            body.extend_from_slice(frame);
        }
        let fields = GroupFields {
            segment_seq: SegmentSeq(3),
            lsn: Lsn(8192),
            durable_lsn: Lsn(4096),
            used: GROUP_HEADER_SIZE + body.len(),
            total: group_size(body.len()),
            frames: 3,
            body_crc: crc.finish(),
            chain: 77,
            epoch: Epoch(1),
            kind: GroupKind::Data,
        };
        let mut bytes = GroupHeader::new(&fields, 42).as_bytes().to_vec();
        bytes.extend_from_slice(&body);
        bytes.resize(fields.total, 0);
        bytes
    }

    fn whole(bytes: &[u8]) -> bool {
        GroupHeader::parse(bytes, 42, SegmentSeq(3), Lsn(8192))
            .is_ok_and(|header| check_body(header, bytes, 42) == BodyState::Whole)
    }

    #[test]
    fn every_flipped_bit_of_a_group_is_found() {
        let good = sample();
        assert!(whole(&good));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!whole(&bad), "bit {bit}");
        }
    }

    #[test]
    fn a_group_of_another_life_or_place_is_refused() {
        let good = sample();
        let damage = |incarnation, seq, lsn| {
            GroupHeader::parse(&good, incarnation, SegmentSeq(seq), Lsn(lsn)).unwrap_err().damage
        };
        assert_eq!(damage(43, 3, 8192), Damage::HeaderCrc);
        assert_eq!(damage(42, 4, 8192), Damage::Stale);
        assert_eq!(damage(42, 3, 12288), Damage::Misplaced);
    }

    #[test]
    fn a_bad_payload_is_told_from_a_bad_header() {
        let good = sample();
        let state = |at: usize| {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let header = GroupHeader::parse(&bad, 42, SegmentSeq(3), Lsn(8192)).unwrap();
            check_body(header, &bad, 42)
        };
        assert!(
            matches!(state(64 + 64 + 1), BodyState::PayloadsBad(list) if list.len() == 1 && list[0].1 == 64)
        );
        assert!(matches!(state(64 + 20), BodyState::HeadersBad(_)));
        assert!(matches!(state(4095), BodyState::PaddingBad(_)));
    }
}
