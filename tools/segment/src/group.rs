//! A group and its frames out of bytes, with what is wrong with them. Checks what `ringmq_format` checks (G1 to G8, F1
//! to F6), with the other checksums, and goes on where that stops: a header with one flipped bit still tells where
//! its structure ends, and behind a header that is beyond that the next frame is looked for.
//!
//! Invariants  E1  A frame counts as intact only if both its checksums hold over the bytes as they are stored.
//!             E2  What is believed of a damaged header serves to find its end and to name what is lost, no more.
//! Ignorant of files; any bytes may come.

use crate::crc::{Flip, crc32c, crc32c_append, crc32c_seeded, crc64, find_flip};
use crate::fault::Fault;
use crate::layout::field_at;
use ringmq_format::Damage;
use ringmq_format::frame::{Codec, FrameHeader, FrameKind};
use ringmq_format::group::{GROUP_MAGIC, GroupHeader, GroupKind};
use ringmq_format::limits::{
    BLOCK_SIZE, FRAME_ALIGN, FRAME_EXTENSION_MAX, FRAME_HEADER_SIZE, FRAME_RECORDS_MAX, FRAME_SIZE_MAX,
    GROUP_HEADER_SIZE, GROUP_SIZE_MAX,
};
use ringmq_format::segment::SegmentFacts;
use ringmq_format::{Lsn, Offset};
use zerocopy::{FromBytes, IntoBytes};

const GROUP: &str = "GroupHeader";
const FRAME: &str = "FrameHeader";

/// A frame where it stands.
#[derive(Clone, Debug)]
pub struct FrameView<'a> {
    /// Byte of the file.
    pub position: u64,
    /// Place in the log.
    pub lsn: Lsn,
    /// Its header; if that has a flipped bit, with the bit turned back.
    pub header: FrameHeader,
    /// All its bytes as stored.
    pub bytes: &'a [u8],
    /// What is wrong with the header.
    pub header_fault: Option<Fault>,
    /// What is wrong with extension and payload.
    pub payload_fault: Option<Fault>,
}

impl<'a> FrameView<'a> {
    /// Both checksums hold (E1).
    pub fn is_intact(&self) -> bool {
        self.header_fault.is_none() && self.payload_fault.is_none()
    }

    /// As the codec takes it; none unless it is intact.
    pub fn frame(&self) -> Option<ringmq_format::frame::Frame<'a>> {
        if !self.is_intact() {
            return None;
        }
        let (header, _) = FrameHeader::ref_from_prefix(self.bytes).ok()?;
        Some(ringmq_format::frame::Frame { header, bytes: self.bytes })
    }

    /// First offset behind it.
    pub fn end_offset(&self) -> Offset {
        Offset(self.header.base_offset.get().saturating_add(u64::from(self.header.count.get())))
    }
}

/// Bytes of a group in which no frame can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Byte of the file.
    pub position: u64,
    /// Bytes.
    pub len: u64,
}

/// A group, or a place where one was.
#[derive(Clone, Debug)]
pub struct GroupView<'a> {
    /// Byte of the file.
    pub position: u64,
    /// Place in the log.
    pub lsn: Lsn,
    /// Its header as far as it can be believed; none in a hole between groups.
    pub header: Option<GroupHeader>,
    /// All its bytes.
    pub bytes: &'a [u8],
    /// Its frames, intact and damaged, in order.
    pub frames: Vec<FrameView<'a>>,
    /// What is wrong with it apart from its frames.
    pub faults: Vec<Fault>,
    /// Where frames were and none can be told.
    pub lost: Vec<Lost>,
    /// Frames that are known to have been there and cannot be told.
    pub lost_frames: u32,
    /// Nothing proves that it was ever durable: recovery cuts here.
    pub torn: bool,
}

impl GroupView<'_> {
    /// Nothing at all is wrong.
    pub fn is_whole(&self) -> bool {
        self.header.is_some() && self.faults.is_empty() && self.frames.iter().all(FrameView::is_intact)
    }

    /// Everything that is wrong, in order of position.
    pub fn all_faults(&self) -> Vec<&Fault> {
        let frames =
            self.frames.iter().flat_map(|frame| frame.header_fault.iter().chain(&frame.payload_fault));
        let mut all: Vec<_> = self.faults.iter().chain(frames).collect();
        all.sort_by_key(|fault| fault.position);
        all
    }

    /// Its kind.
    pub fn kind(&self) -> Option<GroupKind> {
        self.header.map(|header| header.kind())
    }

    /// Row of the recovery table, where it is proven durable.
    pub fn row(&self) -> char {
        let headers = self.header.is_some()
            && self.faults.iter().all(|fault| fault.field == "padding")
            && self.frames.iter().all(|frame| frame.header_fault.is_none());
        match headers {
            _ if self.is_whole() => 'W',
            _ if self.torn => 'D',
            false => 'B',
            true if self.frames.iter().any(|frame| frame.payload_fault.is_some()) => 'A',
            true => 'P',
        }
    }
}

/// CRC-64 of a group's header: the next one's `chain`.
pub fn next_chain(header: &GroupHeader) -> u64 {
    crc64(header.as_bytes())
}

/// The header of the group that should start at `lsn`: G1 to G4. With `repair`, one flipped bit is turned back and
/// comes as a fault; anything else is the error.
pub fn group_header(
    bytes: &[u8],
    facts: &SegmentFacts,
    lsn: Lsn,
    repair: bool,
) -> Result<(GroupHeader, Option<Fault>), Fault> {
    let position = lsn.0.saturating_sub(facts.base.0);
    let fault =
        |field, damage, expected, found| Fault::field(position, GROUP, field, (damage, expected, found));
    let Ok((mut header, _)) = GroupHeader::read_from_prefix(bytes) else {
        return Err(fault("magic", Damage::Truncated, GROUP_HEADER_SIZE as u64, bytes.len() as u64));
    };
    let crc = crc32c_seeded(facts.incarnation, &header.as_bytes()[8..]);
    let (magic, stored) = (header.magic.get(), header.header_crc.get());
    let mut flipped = None;
    if magic != GROUP_MAGIC || stored != crc {
        let broken = if magic != GROUP_MAGIC {
            fault("magic", Damage::Magic, u64::from(GROUP_MAGIC), u64::from(magic))
        } else {
            fault("header_crc", Damage::HeaderCrc, u64::from(crc), u64::from(stored))
        };
        let place = match (magic ^ GROUP_MAGIC).count_ones() {
            _ if !repair => None,
            0 => match find_flip(GROUP_HEADER_SIZE - 8, crc, stored) {
                Some(Flip::Covered(byte, bit)) => Some((8 + byte, bit)),
                Some(Flip::Stored(bit)) => Some((4 + usize::from(bit / 8), bit % 8)),
                None => None,
            },
            1 if stored == crc => {
                let bit = (magic ^ GROUP_MAGIC).trailing_zeros() as u8;
                Some((usize::from(bit / 8), bit % 8))
            }
            _ => None,
        };
        let Some((byte, bit)) = place else { return Err(broken) };
        header.as_mut_bytes()[byte] ^= 1 << bit;
        flipped = Some(broken.flip(position + byte as u64, bit, field_at(GROUP, byte)));
    }
    let zero = header.reserved.iter().all(|byte| *byte == 0);
    let checks = [
        ("reserved", Damage::Padding, zero, 0, u64::from(u16::from_le_bytes(header.reserved))),
        ("flags", Damage::Padding, header.flags == 0, 0, u64::from(header.flags)),
        ("kind", Damage::Field, GroupKind::parse(header.kind).is_some(), 0, u64::from(header.kind)),
        (
            "total",
            Damage::Field,
            (BLOCK_SIZE..=GROUP_SIZE_MAX).contains(&header.total())
                && header.total().is_multiple_of(BLOCK_SIZE),
            GROUP_SIZE_MAX as u64,
            header.total() as u64,
        ),
        (
            "used",
            Damage::Field,
            (GROUP_HEADER_SIZE..=header.total()).contains(&header.used()),
            header.total() as u64,
            header.used() as u64,
        ),
        (
            "frames",
            Damage::Field,
            header.kind == GroupKind::Data as u8
                || (header.frames.get() == 0 && header.used() == GROUP_HEADER_SIZE),
            0,
            u64::from(header.frames.get()),
        ),
        (
            "segment_seq",
            Damage::Stale,
            header.segment_seq.get() == facts.seq.0,
            facts.seq.0,
            header.segment_seq.get(),
        ),
        ("lsn", Damage::Misplaced, header.lsn.get() == lsn.0, lsn.0, header.lsn.get()),
        ("durable_lsn", Damage::Field, header.durable_lsn.get() <= lsn.0, lsn.0, header.durable_lsn.get()),
    ];
    match checks.into_iter().find(|check| !check.2) {
        Some((field, damage, _, expected, found)) => Err(fault(field, damage, expected, found)),
        None => Ok((header, flipped)),
    }
}

/// The header of the frame at the front of `bytes`, which end where its group's frames do: F1 to F5, otherwise as
/// [`group_header`].
pub fn frame_header(
    bytes: &[u8],
    position: u64,
    repair: bool,
) -> Result<(FrameHeader, Option<Fault>), Fault> {
    let fault =
        |field, damage, expected, found| Fault::field(position, FRAME, field, (damage, expected, found));
    let Ok((mut header, _)) = FrameHeader::read_from_prefix(bytes) else {
        return Err(fault("len", Damage::Truncated, FRAME_HEADER_SIZE as u64, bytes.len() as u64));
    };
    let crc = crc32c(&header.as_bytes()[..FRAME_HEADER_SIZE - 4]);
    let stored = header.header_crc.get();
    let mut flipped = None;
    if crc != stored {
        let broken = fault("header_crc", Damage::HeaderCrc, u64::from(crc), u64::from(stored));
        let (byte, bit) = match find_flip(FRAME_HEADER_SIZE - 4, crc, stored) {
            Some(Flip::Covered(byte, bit)) if repair => (byte, bit),
            Some(Flip::Stored(bit)) if repair => (60 + usize::from(bit / 8), bit % 8),
            _ => return Err(broken),
        };
        header.as_mut_bytes()[byte] ^= 1 << bit;
        flipped = Some(broken.flip(position + byte as u64, bit, field_at(FRAME, byte)));
    }
    let (len, extension) = (header.len(), usize::from(header.extension_len.get()));
    let checks = [
        ("kind", Damage::Field, FrameKind::parse(header.kind).is_some(), 0, u64::from(header.kind)),
        ("codec", Damage::Field, Codec::parse(header.codec).is_some(), 2, u64::from(header.codec)),
        ("flags", Damage::Padding, header.flags.get() == 0, 0, u64::from(header.flags.get())),
        (
            "len",
            Damage::Field,
            (FRAME_HEADER_SIZE..=FRAME_SIZE_MAX).contains(&len) && len.is_multiple_of(FRAME_ALIGN),
            FRAME_SIZE_MAX as u64,
            len as u64,
        ),
        (
            "extension_len",
            Damage::Field,
            extension <= FRAME_EXTENSION_MAX.min(len.saturating_sub(FRAME_HEADER_SIZE))
                && extension.is_multiple_of(FRAME_ALIGN),
            FRAME_EXTENSION_MAX as u64,
            extension as u64,
        ),
        (
            "count",
            Damage::Field,
            header.count.get() as usize <= FRAME_RECORDS_MAX,
            FRAME_RECORDS_MAX as u64,
            u64::from(header.count.get()),
        ),
        ("len", Damage::Truncated, len <= bytes.len(), len as u64, bytes.len() as u64),
    ];
    match checks.into_iter().find(|check| !check.2) {
        Some((field, damage, _, expected, found)) => Err(fault(field, damage, expected, found)),
        None => Ok((header, flipped)),
    }
}

/// The frame with a header that is believed, and its payload checked.
fn view<'a>(
    bytes: &'a [u8],
    position: u64,
    lsn: Lsn,
    header: FrameHeader,
    header_fault: Option<Fault>,
) -> FrameView<'a> {
    let covered = &bytes[FRAME_HEADER_SIZE..];
    let (crc, stored) = (crc32c(covered), header.payload_crc.get());
    let payload_fault = (crc != stored).then(|| {
        let part = |byte: usize| {
            if byte < usize::from(header.extension_len.get()) { "extension" } else { "payload" }
        };
        let fault = Fault {
            position: position + FRAME_HEADER_SIZE as u64,
            structure: "frame",
            field: part(usize::MAX),
            damage: Damage::PayloadCrc,
            expected: u64::from(stored),
            found: u64::from(crc),
            flipped_bit: None,
        };
        match find_flip(covered.len(), crc, stored) {
            Some(Flip::Covered(byte, bit)) => {
                fault.flip(position + (FRAME_HEADER_SIZE + byte) as u64, bit, part(byte))
            }
            _ => fault,
        }
    });
    FrameView { position, lsn, header, bytes, header_fault, payload_fault }
}

/// Checks G6 to G8 of a group whose header is believed. `bytes` are all of it.
pub fn examine<'a>(
    facts: &SegmentFacts,
    lsn: Lsn,
    header: GroupHeader,
    header_fault: Option<Fault>,
    bytes: &'a [u8],
) -> GroupView<'a> {
    assert!(bytes.len() == header.total(), "{} of {} bytes of a group", bytes.len(), header.total());
    let position = lsn.0 - facts.base.0;
    let mut faults: Vec<Fault> = header_fault.into_iter().collect();
    let (frames, lost) = walk(&bytes[..header.used()], GROUP_HEADER_SIZE, position, lsn, true, &mut faults);
    let body =
        |field, damage, expected, found| Fault::field(position, GROUP, field, (damage, expected, found));
    let lost_frames = header.frames.get().saturating_sub(frames.len() as u32);
    if lost.is_empty() {
        let crc = frames.iter().fold(crc32c_seeded(facts.incarnation, &[]), |crc, frame| {
            crc32c_append(crc, frame.header.as_bytes())
        });
        let (stored, count) = (header.body_crc.get(), header.frames.get());
        if crc != stored {
            faults.push(body("body_crc", Damage::BodyCrc, u64::from(crc), u64::from(stored)));
        } else if count as usize != frames.len() {
            faults.push(body("frames", Damage::Field, u64::from(count), frames.len() as u64));
        }
    }
    if let Some(at) = bytes[header.used()..].iter().position(|byte| *byte != 0) {
        let byte = bytes[header.used() + at];
        let fault = Fault {
            position: position + (header.used() + at) as u64,
            structure: "group",
            field: "padding",
            damage: Damage::Padding,
            expected: 0,
            found: u64::from(byte),
            flipped_bit: None,
        };
        let alone = byte.count_ones() == 1 && bytes[header.used() + at + 1..].iter().all(|byte| *byte == 0);
        let (at, bit) = (fault.position, byte.trailing_zeros() as u8);
        faults.push(if alone { fault.flip(at, bit, "padding") } else { fault });
    }
    GroupView { position, lsn, header: Some(header), bytes, frames, faults, lost, lost_frames, torn: false }
}

/// What can be recognised in a hole: bytes of the log in which no group header can be believed. Answers the place
/// where it stopped, too: a frame that begins there reaches beyond `bytes`.
pub fn recognise<'a>(
    facts: &SegmentFacts,
    lsn: Lsn,
    bytes: &'a [u8],
    fault: Option<Fault>,
) -> (GroupView<'a>, usize) {
    let position = lsn.0 - facts.base.0;
    let mut faults: Vec<Fault> = fault.into_iter().collect();
    let (mut frames, mut end, mut at) = (Vec::new(), bytes.len(), 0);
    while at + FRAME_HEADER_SIZE <= bytes.len() {
        match frame_header(&bytes[at..], position + at as u64, false) {
            Ok((header, _)) => {
                let whole = &bytes[at..at + header.len()];
                frames.push(view(whole, position + at as u64, lsn.plus(at as u64), header, None));
                at += header.len();
            }
            Err(fault) if fault.field == "len" && fault.damage == Damage::Truncated && at > 0 => {
                end = at;
                break;
            }
            Err(_) => at += FRAME_ALIGN,
        }
    }
    let lost = if frames.is_empty() { vec![Lost { position, len: end as u64 }] } else { Vec::new() };
    faults.truncate(1);
    let bytes = &bytes[..end];
    (GroupView { position, lsn, header: None, bytes, frames, faults, lost, lost_frames: 0, torn: false }, end)
}

/// Frames one behind the other from `at` to the end of `bytes`.
fn walk<'a>(
    bytes: &'a [u8],
    mut at: usize,
    position: u64,
    lsn: Lsn,
    repair: bool,
    faults: &mut Vec<Fault>,
) -> (Vec<FrameView<'a>>, Vec<Lost>) {
    let (mut frames, mut lost) = (Vec::new(), Vec::new());
    while at < bytes.len() {
        let place = position + at as u64;
        match frame_header(&bytes[at..], place, repair) {
            Ok((header, fault)) => {
                let whole = &bytes[at..at + header.len()];
                at += header.len();
                frames.push(view(whole, place, lsn.plus(place - position), header, fault));
            }
            Err(fault) => {
                // The next place from which valid headers lead on.
                let next =
                    (at + FRAME_ALIGN..bytes.len()).step_by(FRAME_ALIGN).find(|next| leads_on(bytes, *next));
                let next = next.unwrap_or(bytes.len());
                faults.push(fault);
                lost.push(Lost { position: place, len: (next - at) as u64 });
                at = next;
            }
        }
    }
    (frames, lost)
}

/// A header holds here, and another one, or the end, stands where its frame ends. Bytes that a producer has put into
/// a record look like that only if they end where the damaged frame does.
fn leads_on(bytes: &[u8], at: usize) -> bool {
    let Ok((header, _)) = frame_header(&bytes[at..], 0, false) else { return false };
    let behind = at + header.len();
    behind == bytes.len() || frame_header(&bytes[behind..], 0, false).is_ok()
}
