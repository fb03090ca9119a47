//! Root of a shard's state: four copies of 4 KiB in the file `superblock`.
//!
//! An update writes copies 0 and 1, flushes, writes copies 2 and 3, flushes: whatever a crash tears, two whole
//! copies of the old or the new state are left. The highest valid sequence wins.

use crate::FormatVersion;
use crate::checksum::crc32c;
use crate::corruption::{Corruption, Damage, demand, demand_zero};
use crate::ids::{Epoch, Lsn, SegmentSeq, ShardId};
use crate::limits::{BLOCK_SIZE, QUARANTINE_MAX};
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "superblock";
/// `RINGSUPR`
pub const SUPERBLOCK_MAGIC: u64 = u64::from_le_bytes(*b"RINGSUPR");
/// Copies in the file.
pub const COPIES: usize = 4;
/// Bytes of the file.
pub const SUPERBLOCK_FILE_SIZE: usize = COPIES * BLOCK_SIZE;

/// Largest number of a copy that is believed: half of what fits.
const COUNT_MAX: u64 = u64::MAX / 2;
/// ... and largest epoch.
const EPOCH_MAX: u32 = u32::MAX / 2;

/// How a group becomes durable. Chosen when the directory is made, by measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Durability {
    /// Plain writes, and one flush that covers those completed before it.
    Flush = 1,
    /// Each write is durable by itself (RWF_DSYNC).
    Dsync = 2,
}

impl Durability {
    /// The mode with this number.
    pub fn parse(number: u8) -> Option<Self> {
        [Self::Flush, Self::Dsync].into_iter().find(|mode| *mode as u8 == number)
    }

    /// As flags and banners call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flush => "flush",
            Self::Dsync => "dsync",
        }
    }
}

/// A range of the log that an operator has set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct QuarantineEntry {
    /// First LSN.
    pub start: U64,
    /// LSN behind the last.
    pub end: U64,
    /// Chain with which the log goes on at `end`.
    pub chain: U64,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SuperblockCopy {
    /// [`SUPERBLOCK_MAGIC`].
    pub magic: U64,
    /// [`FormatVersion`].
    pub version: U16,
    /// Shard.
    pub shard: U16,
    /// 0..4: a copy that was written to another's place is not valid.
    pub copy: u8,
    /// [`Durability`].
    pub durability: u8,
    /// 1 after a clean stop: `durable_lsn` is the end of the log.
    pub clean: u8,
    /// Which checkpoint file is named: 0 none, 1 `checkpoint.a`, 2 `checkpoint.b`.
    pub checkpoint_file: u8,
    /// One more at each update.
    pub sequence: U64,
    /// Data directory.
    pub node_id: U128,
    /// Life of the shard: one more at each start.
    pub epoch: U32,
    /// Entries of `quarantine`.
    pub quarantined: U32,
    /// Everything below was acknowledged durable when this was written.
    pub durable_lsn: U64,
    /// First LSN of the oldest segment that is kept.
    pub log_start: U64,
    /// Number of that segment.
    pub log_start_seq: U64,
    /// Sequence of the named checkpoint.
    pub checkpoint_sequence: U64,
    /// Number of the newest segment that was activated.
    pub active_seq: U64,
    /// LSN of its first byte.
    pub active_base: U64,
    /// Ranges set aside.
    pub quarantine: [QuarantineEntry; QUARANTINE_MAX],
    /// Zero.
    pub reserved: [u8; 4096 - 100 - 24 * QUARANTINE_MAX],
    /// CRC-32C of bytes 0..4092.
    pub crc: U32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<SuperblockCopy>() == BLOCK_SIZE);
    assert!(offset_of!(SuperblockCopy, sequence) == 16);
    assert!(offset_of!(SuperblockCopy, durable_lsn) == 48);
    assert!(offset_of!(SuperblockCopy, quarantine) == 96);
    assert!(offset_of!(SuperblockCopy, crc) == 4092);
};

/// A shard's root, as values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Shard.
    pub shard: ShardId,
    /// Data directory.
    pub node_id: u128,
    /// One more at each update.
    pub sequence: u64,
    /// How groups become durable.
    pub durability: Durability,
    /// Life of the shard.
    pub epoch: Epoch,
    /// `durable_lsn` is the end of the log.
    pub clean: bool,
    /// Everything below was durable.
    pub durable_lsn: Lsn,
    /// First LSN of the oldest segment that is kept.
    pub log_start: Lsn,
    /// Number of that segment.
    pub log_start_seq: SegmentSeq,
    /// The named checkpoint: file (1 or 2) and sequence.
    pub checkpoint: Option<(u8, u64)>,
    /// Newest segment that was activated, 0 for none.
    pub active_seq: SegmentSeq,
    /// LSN of its first byte.
    pub active_base: Lsn,
    /// Ranges set aside: start, end, chain at the end.
    pub quarantine: Vec<(Lsn, Lsn, u64)>,
}

impl Superblock {
    /// All four copies, ready to be written in two steps.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.quarantine.len() <= QUARANTINE_MAX, "{} ranges in quarantine", self.quarantine.len());
        let mut copy = SuperblockCopy::new_zeroed();
        copy.magic = U64::new(SUPERBLOCK_MAGIC);
        copy.version = U16::new(FormatVersion::CURRENT as u16);
        copy.shard = U16::new(self.shard.0);
        copy.durability = self.durability as u8;
        copy.clean = u8::from(self.clean);
        copy.checkpoint_file = self.checkpoint.map_or(0, |checkpoint| checkpoint.0);
        copy.sequence = U64::new(self.sequence);
        copy.node_id = U128::new(self.node_id);
        copy.epoch = U32::new(self.epoch.0);
        copy.quarantined = U32::new(self.quarantine.len() as u32);
        copy.durable_lsn = U64::new(self.durable_lsn.0);
        copy.log_start = U64::new(self.log_start.0);
        copy.log_start_seq = U64::new(self.log_start_seq.0);
        copy.checkpoint_sequence = U64::new(self.checkpoint.map_or(0, |checkpoint| checkpoint.1));
        copy.active_seq = U64::new(self.active_seq.0);
        copy.active_base = U64::new(self.active_base.0);
        for (entry, (start, end, chain)) in copy.quarantine.iter_mut().zip(&self.quarantine) {
            *entry =
                QuarantineEntry { start: U64::new(start.0), end: U64::new(end.0), chain: U64::new(*chain) };
        }
        let mut bytes = Vec::with_capacity(SUPERBLOCK_FILE_SIZE);
        for index in 0..COPIES {
            copy.copy = index as u8;
            copy.crc = U32::new(crc32c(&copy.as_bytes()[..BLOCK_SIZE - 4]));
            bytes.extend_from_slice(copy.as_bytes());
        }
        bytes
    }

    /// The valid copy with the highest sequence; the error is the first copy's if none is valid.
    pub fn parse(bytes: &[u8], node_id: u128, shard: ShardId) -> Result<Self, Corruption> {
        let mut first_error = None;
        let mut best: Option<Self> = None;
        for index in 0..COPIES {
            let copy = bytes.get(index * BLOCK_SIZE..).unwrap_or(&[]);
            match Self::parse_copy(copy, index, node_id, shard) {
                Ok(found) if best.as_ref().is_none_or(|best| best.sequence < found.sequence) => {
                    best = Some(found);
                }
                Ok(_) => {}
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        match (best, first_error) {
            (Some(best), _) => Ok(best),
            (None, Some(error)) => Err(error),
            (None, None) => unreachable!("each copy is valid or not"),
        }
    }

    /// The half of the file, 0 or 1, that the next update writes first: one without which this state, that of the
    /// highest valid copy, is still there. An update that a crash cut short may have left only the other half good.
    pub fn spare_half(&self, bytes: &[u8]) -> usize {
        let is_kept = |index: usize| {
            let copy = bytes.get(index * BLOCK_SIZE..).unwrap_or(&[]);
            let parsed = Self::parse_copy(copy, index, self.node_id, self.shard);
            parsed.is_ok_and(|found| found.sequence == self.sequence)
        };
        usize::from(!(COPIES / 2..COPIES).any(is_kept))
    }

    fn parse_copy(bytes: &[u8], index: usize, node_id: u128, shard: ShardId) -> Result<Self, Corruption> {
        let Ok((copy, _)) = SuperblockCopy::ref_from_prefix(bytes) else {
            return Err(Corruption::new(
                WHAT,
                "copy",
                Damage::Truncated,
                BLOCK_SIZE as u64,
                bytes.len() as u64,
            ));
        };
        demand(WHAT, "magic", Damage::Magic, SUPERBLOCK_MAGIC, copy.magic.get())?;
        let crc = crc32c(&copy.as_bytes()[..BLOCK_SIZE - 4]);
        demand(WHAT, "crc", Damage::HeaderCrc, u64::from(crc), u64::from(copy.crc.get()))?;
        if FormatVersion::parse(copy.version.get()).is_none() {
            let (current, found) = (FormatVersion::CURRENT as u64, u64::from(copy.version.get()));
            return Err(Corruption::new(WHAT, "version", Damage::Version, current, found));
        }
        demand(WHAT, "copy", Damage::Misplaced, index as u64, u64::from(copy.copy))?;
        demand(WHAT, "shard", Damage::Misplaced, u64::from(shard.0), u64::from(copy.shard.get()))?;
        demand(WHAT, "node_id", Damage::Misplaced, node_id as u64, copy.node_id.get() as u64)?;
        demand_zero(WHAT, "reserved", &copy.reserved)?;
        let field = |name, limit: u64, found: u64| Corruption::new(WHAT, name, Damage::Field, limit, found);
        let durability = Durability::parse(copy.durability)
            .ok_or_else(|| field("durability", 2, u64::from(copy.durability)))?;
        let quarantined = copy.quarantined.get() as usize;
        if quarantined > QUARANTINE_MAX {
            return Err(field("quarantined", QUARANTINE_MAX as u64, quarantined as u64));
        }
        if copy.checkpoint_file > 2 {
            return Err(field("checkpoint_file", 2, u64::from(copy.checkpoint_file)));
        }
        // Numbers that are counted on from here. None of them gets that far by counting.
        for (name, number) in [
            ("sequence", copy.sequence.get()),
            ("durable_lsn", copy.durable_lsn.get()),
            ("log_start", copy.log_start.get()),
            ("log_start_seq", copy.log_start_seq.get()),
            ("checkpoint_sequence", copy.checkpoint_sequence.get()),
            ("active_seq", copy.active_seq.get()),
            ("active_base", copy.active_base.get()),
        ] {
            if number > COUNT_MAX {
                return Err(field(name, COUNT_MAX, number));
            }
        }
        if copy.epoch.get() > EPOCH_MAX {
            return Err(field("epoch", u64::from(EPOCH_MAX), u64::from(copy.epoch.get())));
        }
        if copy.checkpoint_file != 0 && copy.checkpoint_sequence.get() == 0 {
            return Err(field("checkpoint_sequence", 1, 0));
        }
        if let Some(bad) =
            copy.quarantine[..quarantined].iter().find(|range| range.start.get() >= range.end.get())
        {
            return Err(field("quarantine", bad.end.get(), bad.start.get()));
        }
        let quarantine = copy.quarantine[..quarantined]
            .iter()
            .map(|entry| (Lsn(entry.start.get()), Lsn(entry.end.get()), entry.chain.get()))
            .collect();
        Ok(Self {
            shard,
            node_id,
            sequence: copy.sequence.get(),
            durability,
            epoch: Epoch(copy.epoch.get()),
            clean: copy.clean == 1,
            durable_lsn: Lsn(copy.durable_lsn.get()),
            log_start: Lsn(copy.log_start.get()),
            log_start_seq: SegmentSeq(copy.log_start_seq.get()),
            checkpoint: (copy.checkpoint_file != 0)
                .then_some((copy.checkpoint_file, copy.checkpoint_sequence.get())),
            active_seq: SegmentSeq(copy.active_seq.get()),
            active_base: Lsn(copy.active_base.get()),
            quarantine,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(sequence: u64) -> Superblock {
        Superblock {
            shard: ShardId(1),
            node_id: 77,
            sequence,
            durability: Durability::Flush,
            epoch: Epoch(3),
            clean: false,
            durable_lsn: Lsn(5),
            log_start: Lsn(0),
            log_start_seq: SegmentSeq(1),
            checkpoint: Some((2, 9)),
            active_seq: SegmentSeq(4),
            active_base: Lsn(1 << 20),
            quarantine: vec![(Lsn(1), Lsn(2), 3)],
        }
    }

    #[test]
    fn the_highest_valid_copy_wins_at_every_stage_of_an_update() {
        let parse = |bytes: &[u8]| Superblock::parse(bytes, 77, ShardId(1)).map(|found| found.sequence);
        let (old, new) = (sample(7).encode(), sample(8).encode());
        for torn in 0..COPIES {
            let mut bytes = old.clone();
            bytes[..torn * BLOCK_SIZE].copy_from_slice(&new[..torn * BLOCK_SIZE]);
            bytes[torn * BLOCK_SIZE..][..100].fill(0xee);
            assert_eq!(parse(&bytes), Ok(if torn == 0 { 7 } else { 8 }), "torn copy {torn}");
        }
        assert_eq!(Superblock::parse(&new, 77, ShardId(1)), Ok(sample(8)));
        assert!(Superblock::parse(&new, 78, ShardId(1)).is_err());
        assert!(Superblock::parse(&[0; SUPERBLOCK_FILE_SIZE], 77, ShardId(1)).is_err());
    }

    #[test]
    fn an_update_begins_with_the_half_that_is_not_needed() {
        let state = sample(8);
        let (old, new) = (sample(7).encode(), state.encode());
        let half = SUPERBLOCK_FILE_SIZE / 2;
        assert_eq!(state.spare_half(&new), 0);
        // Cut short between the halves, and in the second one.
        let mut bytes = [&new[..half], &old[half..]].concat();
        assert_eq!(state.spare_half(&bytes), 1);
        bytes[half..][..100].fill(0xee);
        bytes[half + BLOCK_SIZE..][..100].fill(0xee);
        assert_eq!(state.spare_half(&bytes), 1);
        // The first half was written over before that, and torn.
        assert_eq!(state.spare_half(&[&old[..half], &new[half..]].concat()), 0);
    }

    #[test]
    fn numbers_that_nobody_has_counted_to_are_refused() {
        let refused = |change: &dyn Fn(&mut Superblock)| {
            let mut state = sample(8);
            change(&mut state);
            let found = Superblock::parse(&state.encode(), 77, ShardId(1));
            assert_eq!(found.map_err(|corruption| corruption.damage), Err(Damage::Field), "{state:?}");
        };
        refused(&|state| state.checkpoint = Some((1, 0)));
        refused(&|state| state.sequence = u64::MAX);
        refused(&|state| state.epoch = Epoch(u32::MAX));
        refused(&|state| state.durable_lsn = Lsn(u64::MAX));
        refused(&|state| state.quarantine = vec![(Lsn(2), Lsn(2), 0)]);
    }

    #[test]
    fn a_copy_in_anothers_place_is_refused() {
        let bytes = sample(1).encode();
        assert_eq!(
            Superblock::parse(&bytes[BLOCK_SIZE..2 * BLOCK_SIZE], 77, ShardId(1)).unwrap_err().damage,
            Damage::Misplaced
        );
    }
}
