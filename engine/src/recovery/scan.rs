//! Reads groups out of bytes. No I/O here: the caller brings the bytes, fuzzing brings any.

use super::decide::Finding;
use crate::planted::{Bug, Planted};
use ringmq_format::corruption::{Corruption, Damage};
use ringmq_format::group::{BodyState, GroupHeader, check_body, group_frames};
use ringmq_format::limits::{BLOCK_SIZE, GROUP_HEADER_SIZE};
use ringmq_format::segment::SegmentFacts;
use ringmq_format::{Epoch, Lsn};

/// Where a scan stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanPoint {
    /// Start of the next group.
    pub lsn: Lsn,
    /// Its `chain` must be this.
    pub chain: u64,
    /// Its epoch must be at least this.
    pub epoch: Epoch,
}

/// What stands at a scan point.
#[derive(Clone, Debug)]
pub struct Examined {
    /// For the decision table.
    pub finding: Finding,
    /// The group's header, if it is one of this place and chain.
    pub header: Option<GroupHeader>,
    /// The first thing wrong.
    pub corruption: Option<Corruption>,
    /// Positions in the group of frames with a bad payload.
    pub bad_frames: Vec<usize>,
}

impl Examined {
    fn nothing(corruption: Corruption) -> Self {
        Self { finding: Finding::NoGroup, header: None, corruption: Some(corruption), bad_frames: Vec::new() }
    }
}

/// Bytes that the group at the point takes, if its header is good (G1 to G5).
pub fn group_len(facts: &SegmentFacts, point: &ScanPoint, bytes: &[u8]) -> Result<GroupHeader, Corruption> {
    let header = GroupHeader::parse(bytes, facts.incarnation, facts.seq, point.lsn)?;
    if header.chain.get() != point.chain {
        return Err(Corruption::new("group", "chain", Damage::Chain, point.chain, header.chain.get()));
    }
    if header.epoch.get() < point.epoch.0 {
        let (expected, found) = (u64::from(point.epoch.0), u64::from(header.epoch.get()));
        return Err(Corruption::new("group", "epoch", Damage::Stale, expected, found));
    }
    let end = facts.position(point.lsn) + header.total() as u64;
    if end > facts.capacity {
        return Err(Corruption::new("group", "total", Damage::Field, facts.capacity, end));
    }
    Ok(*header)
}

/// Examines the group at the point. `bytes` start there and hold all of it if its header is good.
pub fn examine(facts: &SegmentFacts, point: &ScanPoint, bytes: &[u8], planted: Planted) -> Examined {
    let header = match group_len(facts, point, bytes) {
        Ok(header) => header,
        Err(corruption) => return Examined::nothing(corruption),
    };
    let Some(bytes) = bytes.get(..header.total()) else {
        let (need, found) = (header.total() as u64, bytes.len() as u64);
        return Examined::nothing(Corruption::new("group", "total", Damage::Truncated, need, found));
    };
    if planted.has(Bug::ZeroCrcIsTheEnd)
        && group_frames(&header, bytes).any(|(_, frame)| frame.header.payload_crc.get() == 0)
    {
        return Examined::nothing(Corruption::new("group", "frames", Damage::Truncated, 1, 0));
    }
    let (finding, corruption, bad_frames) = match check_body(&header, bytes, facts.incarnation) {
        BodyState::Whole => (Finding::Whole, None, Vec::new()),
        BodyState::PayloadsBad(_) if planted.has(Bug::PayloadCrcUnchecked) => {
            (Finding::Whole, None, Vec::new())
        }
        BodyState::PayloadsBad(bad) => {
            (Finding::PayloadBad, bad.first().map(|first| first.2), bad.iter().map(|frame| frame.1).collect())
        }
        BodyState::HeadersBad(corruption) => (Finding::FrameHeadersBad, Some(corruption), Vec::new()),
        BodyState::PaddingBad(corruption) => (Finding::PaddingBad, Some(corruption), Vec::new()),
    };
    Examined { finding, header: Some(header), corruption, bad_frames }
}

/// The highest `durable_lsn` that any group header in `bytes` speaks of; `bytes` start at `position` of the segment.
/// Only headers are looked at: a witness needs no body (G1 to G4).
pub fn highest_witness(facts: &SegmentFacts, position: u64, bytes: &[u8]) -> Option<Lsn> {
    assert!(position.is_multiple_of(BLOCK_SIZE as u64), "position {position} is not a block's");
    bytes
        .chunks(BLOCK_SIZE)
        .enumerate()
        .filter(|(_, block)| block.len() >= GROUP_HEADER_SIZE)
        .filter_map(|(index, block)| {
            let lsn = facts.base.plus(position + (index * BLOCK_SIZE) as u64);
            let header = GroupHeader::parse(block, facts.incarnation, facts.seq, lsn).ok()?;
            Some(Lsn(header.durable_lsn.get()))
        })
        .max()
}
