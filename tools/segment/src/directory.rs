//! A data directory as it lies there: identity, superblocks, slots, checkpoints, and which segments are the log.
//! Nothing here fails because something is damaged: what cannot be read is a fault, and the rest goes on.

use crate::crc::{crc32c, crc32c_seeded};
use crate::fault::Fault;
use crate::layout::field_at;
use crate::source::{Source, SourceFile};
use ringmq_format::checkpoint::{CheckpointFacts, Chunk};
use ringmq_format::identity::{Identity, IdentityBlock};
use ringmq_format::limits::{BLOCK_SIZE, SEGMENT_HEADER_SIZE};
use ringmq_format::segment::{SegmentFacts, SegmentHeader};
use ringmq_format::superblock::{COPIES, SUPERBLOCK_FILE_SIZE, Superblock};
use ringmq_format::{Corruption, Damage, Lsn, ShardId};
use std::io;
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, IntoBytes};

/// A checkpoint larger than this is not read: 64 KiB a chunk and 2^20 partitions do not reach it.
const CHECKPOINT_MAX: u64 = 2 << 30;

/// A data directory.
#[derive(Debug)]
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    /// What it says of itself, or what its shards do if that cannot be read.
    pub identity: Identity,
    /// What is wrong with the file `identity`.
    pub faults: Vec<(PathBuf, Fault)>,
    /// The shards that are there.
    pub shards: Vec<Shard>,
}

/// A shard of it.
#[derive(Debug)]
pub struct Shard {
    /// Its number.
    pub shard: ShardId,
    /// Where it is.
    pub path: PathBuf,
    /// The copy that counts; none if none is valid.
    pub superblock: Option<Superblock>,
    /// Slot files, by number.
    pub slots: Vec<Slot>,
    /// What is wrong with superblock, checkpoints and segment headers.
    pub faults: Vec<(PathBuf, Fault)>,
}

/// A slot file.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The file.
    pub path: PathBuf,
    /// Its number, by its name.
    pub slot: u32,
    /// Its bytes.
    pub len: u64,
    /// What its header says; none if neither copy can be read.
    pub facts: Option<SegmentFacts>,
    /// What it is used for.
    pub state: SlotState,
}

/// What a slot is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Part of the log.
    Log,
    /// Given up by retention; what it holds is not lost yet.
    Retired,
    /// Ready to be used; never was.
    Blank,
    /// Being prepared.
    Making,
    /// Activated, and never part of the log.
    Stray,
    /// Neither copy of its header can be read.
    Damaged,
    /// Belongs to another directory, shard or slot.
    Foreign,
}

impl SlotState {
    /// As tables show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Retired => "retired",
            Self::Blank => "free",
            Self::Making => "making",
            Self::Stray => "stray",
            Self::Damaged => "damaged",
            Self::Foreign => "foreign",
        }
    }
}

impl Directory {
    /// Looks at what is there. An error only if it is no data directory at all.
    pub fn open(source: &Source, path: &Path) -> io::Result<Self> {
        let names = source.list(path)?;
        let mut faults = Vec::new();
        let mut numbers: Vec<u16> = names
            .iter()
            .filter(|(_, is_dir)| *is_dir)
            .filter_map(|(name, _)| name.strip_prefix("shard-")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let file = path.join("identity");
        let identity = read_identity(source, &file, &mut faults);
        if identity.is_none() && numbers.is_empty() {
            let text = format!("{} is no data directory: it has no identity and no shards", path.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        let mut identity = identity;
        let mut shards = Vec::new();
        for number in numbers {
            let directory = path.join(format!("shard-{number:02}"));
            shards.push(Shard::open(source, &directory, ShardId(number), &mut identity)?);
        }
        let identity = identity.unwrap_or(Identity { shards: 0, node_id: 0, created_ms: 0 });
        let shards_count =
            identity.shards.max(shards.iter().map(|shard| shard.shard.0 + 1).max().unwrap_or(1));
        Ok(Self {
            path: path.to_owned(),
            identity: Identity { shards: shards_count, ..identity },
            faults,
            shards,
        })
    }
}

fn read_identity(source: &Source, path: &Path, faults: &mut Vec<(PathBuf, Fault)>) -> Option<Identity> {
    const NAME: &str = "IdentityBlock";
    let bytes = match source.open(path).and_then(|file| file.read(0, 2 * BLOCK_SIZE)) {
        Ok(bytes) => bytes,
        Err(error) => {
            faults.push((path.to_owned(), missing(NAME, &error)));
            return None;
        }
    };
    for copy in 0..2u64 {
        let at = (copy as usize * BLOCK_SIZE).min(bytes.len());
        let at_copy = &bytes[at..];
        let crc = IdentityBlock::ref_from_prefix(at_copy).ok().map(|(block, _)| block.crc.get());
        let fault = check_block(NAME, at as u64, at_copy, crc, None).or_else(|| {
            let parsed = Identity::parse(at_copy.get(..BLOCK_SIZE).unwrap_or(at_copy));
            parsed.err().map(|corruption| Fault::of(at as u64, NAME, &corruption))
        });
        faults.extend(fault.map(|fault| (path.to_owned(), fault)));
    }
    Identity::parse(&bytes).ok()
}

fn missing(structure: &'static str, error: &io::Error) -> Fault {
    Fault {
        position: 0,
        structure,
        field: "file cannot be read",
        damage: Damage::Truncated,
        expected: 0,
        found: error.raw_os_error().unwrap_or(0) as u64,
        flipped_bit: None,
    }
}

/// The checksum of a block whose last four bytes are one, and which bit is flipped if it does not hold.
fn check_block(
    structure: &'static str,
    position: u64,
    bytes: &[u8],
    stored: Option<u32>,
    seed: Option<u64>,
) -> Option<Fault> {
    use crate::crc::{Flip, find_flip};
    let covered = bytes.get(..BLOCK_SIZE - 4)?;
    let stored = stored?;
    let crc = seed.map_or_else(|| crc32c(covered), |seed| crc32c_seeded(seed, covered));
    if crc == stored {
        return None;
    }
    let fault =
        Fault::field(position, structure, "crc", (Damage::HeaderCrc, u64::from(crc), u64::from(stored)));
    let (byte, bit) = match find_flip(covered.len(), crc, stored) {
        Some(Flip::Covered(byte, bit)) => (byte, bit),
        Some(Flip::Stored(bit)) => (BLOCK_SIZE - 4 + usize::from(bit / 8), bit % 8),
        None => return Some(fault),
    };
    Some(fault.flip(position + byte as u64, bit, field_at(structure, byte)))
}

/// Both copies of a segment's header, with what is wrong with each.
pub fn segment_header(bytes: &[u8]) -> (Option<SegmentFacts>, Vec<Fault>) {
    const NAME: &str = "SegmentHeader";
    let mut faults = Vec::new();
    let mut facts = None;
    for at in [0, BLOCK_SIZE] {
        let copy = bytes.get(at..).unwrap_or_default();
        let stored = SegmentHeader::ref_from_prefix(copy).ok().map(|(header, _)| header.crc.get());
        let parsed = SegmentFacts::parse_copy(copy);
        match (check_block(NAME, at as u64, copy, stored, None), parsed) {
            (None, Ok(parsed)) => facts = facts.or(Some(parsed)),
            (Some(fault), _) => faults.push(fault),
            (None, Err(corruption)) => faults.push(Fault::of(at as u64, NAME, &corruption)),
        }
    }
    (facts, faults)
}

impl Shard {
    fn open(
        source: &Source,
        path: &Path,
        shard: ShardId,
        identity: &mut Option<Identity>,
    ) -> io::Result<Self> {
        let mut own =
            Self { shard, path: path.to_owned(), superblock: None, slots: Vec::new(), faults: Vec::new() };
        let names = source.list(&path.join("log")).unwrap_or_default();
        for (name, _) in &names {
            let Some(number) = name.strip_suffix(".seg").filter(|number| number.len() >= 3) else { continue };
            let Ok(slot) = number.parse() else { continue };
            let path = path.join("log").join(name);
            own.open_slot(source, path, slot);
        }
        own.slots.sort_by_key(|slot| slot.slot);
        if identity.is_none() {
            let facts = own.slots.iter().filter_map(|slot| slot.facts).next();
            *identity = facts.map(|facts| Identity { shards: 0, node_id: facts.node_id, created_ms: 0 });
        }
        let node_id = identity.map_or(0, |identity| identity.node_id);
        own.read_superblock(source, node_id);
        for slot in &mut own.slots {
            if slot.facts.is_some_and(|facts| {
                facts.node_id != node_id || facts.shard != shard || facts.slot.0 != slot.slot
            }) {
                slot.state = SlotState::Foreign;
            }
        }
        own.order();
        Ok(own)
    }

    fn open_slot(&mut self, source: &Source, path: PathBuf, slot: u32) {
        let opened = source.open(&path).and_then(|file| Ok((file.len(), file.read(0, SEGMENT_HEADER_SIZE)?)));
        let (len, facts, state) = match opened {
            Ok((len, bytes)) => {
                let (facts, faults) = segment_header(&bytes);
                let zeros = bytes.iter().all(|byte| *byte == 0);
                if !zeros {
                    self.faults.extend(faults.into_iter().map(|fault| (path.clone(), fault)));
                }
                let state = match facts {
                    None if zeros => SlotState::Making,
                    None => SlotState::Damaged,
                    Some(facts) if facts.seq.0 == 0 => SlotState::Blank,
                    Some(_) => SlotState::Stray,
                };
                if let Some(facts) = facts
                    && facts.capacity > len
                {
                    let short = (Damage::Truncated, facts.capacity, len);
                    self.faults.push((path.clone(), Fault::field(0, "SegmentHeader", "capacity", short)));
                }
                (len, facts, state)
            }
            Err(error) => {
                self.faults.push((path.clone(), missing("SegmentHeader", &error)));
                (0, None, SlotState::Damaged)
            }
        };
        self.slots.push(Slot { path, slot, len, facts, state });
    }

    fn read_superblock(&mut self, source: &Source, node_id: u128) {
        const NAME: &str = "SuperblockCopy";
        let path = self.path.join("superblock");
        let bytes = match source.open(&path).and_then(|file| file.read(0, SUPERBLOCK_FILE_SIZE)) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.faults.push((path, missing(NAME, &error)));
                return;
            }
        };
        self.superblock = Superblock::parse(&bytes, node_id, self.shard).ok();
        for copy in 0..COPIES {
            let at = copy * BLOCK_SIZE;
            let block = bytes.get(at..at + BLOCK_SIZE).unwrap_or_default();
            let stored =
                block.get(BLOCK_SIZE - 4..).and_then(|crc| Some(u32::from_le_bytes(crc.try_into().ok()?)));
            // Alone in its place it is valid or not for itself.
            let mut alone = vec![0; SUPERBLOCK_FILE_SIZE];
            alone[at..at + block.len()].copy_from_slice(block);
            let fault = check_block(NAME, at as u64, block, stored, None).or_else(|| {
                Superblock::parse(&alone, node_id, self.shard).is_err().then(|| {
                    let found = Superblock::parse(&bytes[at.min(bytes.len())..], node_id, self.shard);
                    let misplaced = Corruption::new("superblock", "copy", Damage::Misplaced, copy as u64, 0);
                    Fault::of(at as u64, NAME, &found.err().unwrap_or(misplaced))
                })
            });
            self.faults.extend(fault.map(|fault| (path.clone(), fault)));
        }
    }

    /// Which segments are the log, by what superblock and headers say.
    fn order(&mut self) {
        let log_start = self.superblock.as_ref().map_or(Lsn(0), |superblock| superblock.log_start);
        let mut known: Vec<(usize, SegmentFacts)> = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.state == SlotState::Stray)
            .filter_map(|(index, slot)| Some((index, slot.facts?)))
            .collect();
        known.sort_by_key(|(_, facts)| (facts.base, facts.seq));
        for (index, facts) in &known {
            // Of several with one base, the newest; the others were activated and given up.
            let newest =
                known.iter().filter(|(_, other)| other.base == facts.base).map(|(_, other)| other.seq);
            self.slots[*index].state = match newest.max() {
                _ if facts.base < log_start => SlotState::Retired,
                Some(newest) if newest == facts.seq => SlotState::Log,
                _ => SlotState::Stray,
            };
        }
        // What an aborted start has activated behind the log's end says so by its base only if nothing continues it;
        // the scan finds it empty.
    }

    /// Slots of the log, oldest first.
    pub fn log(&self) -> Vec<&Slot> {
        let mut log: Vec<_> = self.slots.iter().filter(|slot| slot.state == SlotState::Log).collect();
        log.sort_by_key(|slot| slot.facts.map(|facts| (facts.base, facts.seq)));
        log
    }

    /// The named checkpoint, or the one before it, wholly checked; what is wrong with each goes to `faults`.
    pub fn checkpoint(&self, source: &Source, faults: &mut Vec<(PathBuf, Fault)>) -> Option<Checkpoint> {
        let (named, sequence) = self.superblock.as_ref()?.checkpoint?;
        for (file, sequence) in [(named, sequence), (3 - named.min(2), sequence.wrapping_sub(1))] {
            if sequence == 0 || sequence == u64::MAX {
                continue;
            }
            let path = self.path.join(if file == 1 { "checkpoint.a" } else { "checkpoint.b" });
            match source.open(&path).and_then(|file| read_all(&file)) {
                Ok(bytes) => match Checkpoint::parse(bytes, self.shard, sequence) {
                    Ok(checkpoint) => return Some(checkpoint),
                    Err(fault) => faults.push((path, *fault)),
                },
                Err(error) => faults.push((path, missing("CheckpointHeader", &error))),
            }
        }
        None
    }
}

fn read_all(file: &SourceFile) -> io::Result<Vec<u8>> {
    if file.len() > CHECKPOINT_MAX {
        return Err(io::Error::other("it is larger than any checkpoint can be"));
    }
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < file.len() {
        let more = file.read(bytes.len() as u64, 4 << 20)?;
        if more.is_empty() {
            break;
        }
        bytes.extend_from_slice(&more);
    }
    Ok(bytes)
}

/// A checkpoint that was checked as a whole.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its header.
    pub facts: CheckpointFacts,
    bytes: Vec<u8>,
}

impl Checkpoint {
    fn parse(bytes: Vec<u8>, shard: ShardId, sequence: u64) -> Result<Self, Box<Fault>> {
        const NAME: &str = "CheckpointHeader";
        let stored = bytes.get(BLOCK_SIZE - 4..BLOCK_SIZE);
        let stored = stored.and_then(|crc| Some(u32::from_le_bytes(crc.try_into().ok()?)));
        if let Some(fault) = check_block(NAME, 0, &bytes, stored, Some(sequence)) {
            return Err(Box::new(fault));
        }
        let facts = CheckpointFacts::parse(&bytes, shard, sequence)
            .map_err(|corruption| Box::new(Fault::of(0, NAME, &corruption)))?;
        let mut rest = bytes.get(BLOCK_SIZE..).unwrap_or_default();
        for index in 0..facts.chunks {
            let at = (bytes.len() - rest.len()) as u64;
            let chunk = Chunk::take(&mut rest, sequence, index);
            chunk.map_err(|corruption| Box::new(Fault::of(at, "ChunkHeader", &corruption)))?;
        }
        Ok(Self { facts, bytes })
    }

    /// Its chunks.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk<'_>> {
        let mut rest = self.bytes.get(BLOCK_SIZE..).unwrap_or_default();
        (0..self.facts.chunks).map_while(move |index| Chunk::take(&mut rest, self.facts.sequence, index).ok())
    }
}

/// A node id as people write it.
pub fn node_name(id: u128) -> String {
    id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}
