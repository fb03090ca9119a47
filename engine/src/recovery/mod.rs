//! From whatever a crash has left to a log that may be served, or a refusal that says why.
//!
//! ```text
//! sync files and directory -> superblock -> checkpoint -> scan forward, one decision per group
//!   -> new epoch durable in the superblock -> (log) RECOVERY group durable -> serve
//! ```
//!
//! Invariants  V1  Nothing is read before it was synced: what an earlier process wrote and did not flush could be
//!                 seen now and be gone later.
//!             V2  Until the superblock with the new epoch, nothing is written: a crash here changes nothing.
//!             V3  What has a witness is never cut. What has none and is not whole is never served.
//!             V4  What one start has cut, no later one finds: behind the end that the superblock's epoch began at, a
//!                 group of an earlier epoch is none, even if padding of a lost RECOVERY group makes it whole.
//! Ignorant of connections and of what frames mean: a visitor replays them.

pub mod decide;
pub mod offline;
pub mod scan;

use crate::log::slots::{Slot, SlotState, block_edges, capacity_of, parse_name, sidecar_file, slot_file};
use crate::log::{LogStart, Segment, has_offsets, index_entry};
use crate::planted::{Bug, Planted};
use crate::ring::{BufRange, BufferId, Errno, FileId, Op, Ring};
use decide::{Decision, Finding, Row, decide};
use ringmq_format::checkpoint::{CheckpointFacts, Chunk, ChunkKind, SegmentItem};
use ringmq_format::corruption::Corruption;
use ringmq_format::frame::{Frame, FrameKind};
use ringmq_format::group::{GroupHeader, GroupKind, group_frames};
use ringmq_format::late::Late;
use ringmq_format::limits::{BLOCK_SIZE, GROUP_HEADER_SIZE, GROUP_SIZE_MAX, SEGMENT_HEADER_SIZE};
use ringmq_format::segment::{FIRST_GROUP, SegmentFacts};
use ringmq_format::sidecar::{self, IndexEntry};
use ringmq_format::superblock::{Durability, SUPERBLOCK_FILE_SIZE, Superblock};
use ringmq_format::{Epoch, Lsn, SegmentSeq, ShardId, SlotId};
use scan::{ScanPoint, examine, group_len, highest_witness};
use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use zerocopy::FromBytes;

/// Unit of the scan's reads: one in flight, and large enough that the device works on several parts at once.
const READ_SIZE: usize = 4 << 20;
/// Writes of each kind by which the durability call of a new directory is chosen, and their time.
const CALIBRATION_WRITES: usize = 25;
const CALIBRATION_TIME_US: u64 = 15_000;
/// Reads of less than a block in a row after which the file is taken to end there, and likewise of writes.
const SHORT_MAX: usize = 16;

/// Why a shard does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The kernel refused an operation on a file.
    Io {
        /// What was being done.
        during: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the kernel said.
        error: Errno,
    },
    /// The bytes are not what they were, and it is proven that they had been durable (rows B and C), or a root
    /// structure is gone.
    Damaged {
        /// Row of the decision table, or `None` for a root structure.
        row: Option<Row>,
        /// Which file.
        path: PathBuf,
        /// From which byte.
        position: u64,
        /// What is wrong with it.
        corruption: Option<Corruption>,
        /// In words.
        reason: &'static str,
    },
    /// The kernel has no memory.
    NoMemory,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { during, path, error } => write!(f, "{during} {}: {error}", path.display()),
            Self::Damaged { row, path, position, corruption, reason } => {
                write!(f, "{} is damaged at byte {position}: {reason}", path.display())?;
                if let Some(corruption) = corruption {
                    write!(f, " ({corruption})")?;
                }
                match row {
                    Some(row) => write!(f, " [recovery table, row {row:?}]"),
                    None => Ok(()),
                }
            }
            Self::NoMemory => f.write_str("the kernel has no memory for the shard's buffers"),
        }
    }
}

impl std::error::Error for OpenError {}

/// What was found, for the log and for `data check`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Groups that were read.
    pub groups: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Where the log was cut, if there was something behind its end.
    pub cut: Option<(Lsn, Corruption)>,
    /// Frames that answer `Damaged`: file, position.
    pub damaged_frames: Vec<(PathBuf, u64)>,
    /// Groups of which only the padding is damaged.
    pub damaged_padding: u64,
    /// Ranges that an operator has set aside, as far as the scan met them.
    pub set_aside: Vec<(Lsn, Lsn)>,
    /// The shard was stopped cleanly.
    pub clean: bool,
    /// The named checkpoint could not be read and the one before was used, or everything was read.
    pub checkpoint_lost: bool,
}

/// What a shard needs to be opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The shard's directory, which exists.
    pub directory: PathBuf,
    /// The shard.
    pub shard: ShardId,
    /// The data directory's name.
    pub node_id: u128,
    /// Largest capacity of a slot.
    pub segment_size: u64,
    /// The durability call of a new shard; `None` measures.
    pub durability: Option<Durability>,
    /// A bug planted by a test.
    pub planted: Planted,
}

/// Takes what recovery reads.
pub trait Visitor {
    /// A chunk of the checkpoint, in the order of the file. `scan` is the first segment that is read again.
    fn chunk(&mut self, chunk: &Chunk<'_>, scan: SegmentSeq, scan_base: Lsn) -> Result<(), Corruption>;
    /// The frames that come now lie in the segment that begins here.
    fn segment(&mut self, base: Lsn);
    /// What lay between two places of the log is set aside by an operator, and nothing is known of it.
    fn gap(&mut self, start: Lsn, end: Lsn);
    /// A frame of the log, in log order. Payloads of damaged frames are not to be looked at.
    fn frame(&mut self, lsn: Lsn, frame: &Frame<'_>) -> Result<(), Corruption>;
    /// Bytes read so far and bytes there may be at most, for progress.
    fn progress(&mut self, done: u64, total: u64);
}

struct Recovery<'a> {
    ring: &'a mut Ring,
    options: &'a OpenOptions,
    visitor: &'a mut dyn Visitor,
    report: RecoveryReport,
    buffer: BufferId,
    slots: Vec<Slot>,
    /// Headers of slots that hold or held a segment: index in `slots`, facts.
    headers: Vec<(usize, SegmentFacts)>,
    bytes_total: u64,
    /// Group that is being examined: index in `slots`, its segment, its place.
    at: Option<(usize, SegmentFacts, ScanPoint)>,
    /// Nothing is made and nothing is written.
    read_only: bool,
    /// The half of the superblock that may be written first.
    spare_half: usize,
}

/// How long durable writes took, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// Median of a write and a flush, in microseconds.
    pub flush_us: u64,
    /// Median of a write with RWF_DSYNC, in microseconds.
    pub dsync_us: u64,
}

impl Calibration {
    /// `flush` unless `dsync` clearly wins, because flushes of several groups can be one.
    pub fn choice(self) -> Durability {
        if self.dsync_us * 10 < self.flush_us * 7 { Durability::Dsync } else { Durability::Flush }
    }
}

/// Opens the log of a shard. Blocks; completions of other ops stay in the ring.
pub fn open(
    ring: &mut Ring,
    options: &OpenOptions,
    visitor: &mut dyn Visitor,
) -> Result<(LogStart, RecoveryReport), OpenError> {
    let mut recovery = Recovery::new(ring, options, visitor, false)?;
    let buffer = recovery.buffer;
    let start = recovery.run();
    let report = std::mem::take(&mut recovery.report);
    ring.memory.free(buffer);
    Ok((start?, report))
}

/// The durability call of a node with its shards in `directories`: the one that a shard was made with already, or
/// `asked`, or the one that is measured, on the first shard's superblock before anything is in it. Blocks.
pub fn choose_durability(
    ring: &mut Ring,
    directories: &[PathBuf],
    node_id: u128,
    asked: Option<Durability>,
) -> Result<Durability, OpenError> {
    let buffer = ring.memory.alloc(SUPERBLOCK_FILE_SIZE, false).ok_or(OpenError::NoMemory)?;
    let chosen = choose(ring, buffer, directories, node_id, asked);
    ring.memory.free(buffer);
    chosen
}

fn choose(
    ring: &mut Ring,
    buffer: BufferId,
    directories: &[PathBuf],
    node_id: u128,
    asked: Option<Durability>,
) -> Result<Durability, OpenError> {
    let range = BufRange::new(buffer, 0, SUPERBLOCK_FILE_SIZE);
    for (shard, directory) in directories.iter().enumerate() {
        let path = directory.join("superblock");
        let file = match ring.run(Op::Open { path: path.clone(), create: false }) {
            Ok(file) => FileId(file),
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(io("opening", &path, error)),
        };
        let read = ring.run(Op::Read { file, into: range, position: 0 });
        ring.run(Op::Close { file }).map_err(|error| io("closing", &path, error))?;
        // What cannot be read is for the shard's recovery to judge.
        let len = read.map_or(0, |len| (len as usize).min(SUPERBLOCK_FILE_SIZE));
        let bytes = &ring.memory.bytes(range)[..len];
        if let Ok(superblock) = Superblock::parse(bytes, node_id, ShardId(shard as u16)) {
            return Ok(superblock.durability);
        }
    }
    let (Some(first), None) = (directories.first(), asked) else {
        return Ok(asked.unwrap_or(Durability::Flush));
    };
    let log_dir = first.join("log");
    ring.make_dirs(&log_dir).map_err(|error| io("making", &log_dir, error))?;
    if !ring.list_dir(&log_dir).map_err(|error| io("listing", &log_dir, error))?.is_empty() {
        return Ok(Durability::Flush); // there is a log, so its superblock is damaged: nothing is written there
    }
    let path = first.join("superblock");
    let open = Op::Open { path: path.clone(), create: true };
    let file = FileId(ring.run(open).map_err(|error| io("opening", &path, error))?);
    let measured = measure(ring, buffer, file, &path);
    ring.run(Op::Close { file }).map_err(|error| io("closing", &path, error))?;
    measured
}

/// Measures on a file that nothing is in, and that is left with zeros.
fn measure(ring: &mut Ring, buffer: BufferId, file: FileId, path: &Path) -> Result<Durability, OpenError> {
    let allocate = Op::Allocate { file, len: SUPERBLOCK_FILE_SIZE as u64 };
    ring.run(allocate).map_err(|error| io("allocating", path, error))?;
    let zeros = BufRange::new(buffer, 0, SUPERBLOCK_FILE_SIZE);
    ring.memory.bytes_mut(zeros).fill(0);
    let write = Op::Write { file, from: zeros, position: 0, durable: false };
    ring.run(write).map_err(|error| io("writing", path, error))?;
    ring.run(Op::SyncAll { file }).map_err(|error| io("syncing", path, error))?;
    Ok(calibrate(ring, buffer, file, path)?.choice())
}

impl<'a> Recovery<'a> {
    fn new(
        ring: &'a mut Ring,
        options: &'a OpenOptions,
        visitor: &'a mut dyn Visitor,
        read_only: bool,
    ) -> Result<Self, OpenError> {
        let buffer = ring.memory.alloc(GROUP_SIZE_MAX + READ_SIZE, false).ok_or(OpenError::NoMemory)?;
        Ok(Self {
            ring,
            options,
            visitor,
            report: RecoveryReport::default(),
            buffer,
            slots: Vec::new(),
            headers: Vec::new(),
            bytes_total: 0,
            at: None,
            read_only,
            spare_half: 0,
        })
    }

    fn run(&mut self) -> Result<LogStart, OpenError> {
        let log_dir = self.options.directory.join("log");
        self.ring.make_dirs(&log_dir).map_err(|error| io("making", &log_dir, error))?;
        self.sync_dir(&self.options.directory.clone())?;
        self.sync_dir(&log_dir)?;
        self.open_slots(&log_dir)?;
        let path = self.options.directory.join("superblock");
        let file = self.open_file(&path)?;
        let superblock = match self.read_superblock(file, &path)? {
            Some(superblock) => superblock,
            None => return self.create(file, &path),
        };
        let start = self.recover(&superblock)?;
        self.begin_epoch(file, &path, superblock, start)
    }

    // -- files ---------------------------------------------------------------------------------------------

    fn sync_dir(&mut self, path: &Path) -> Result<(), OpenError> {
        if self.options.planted.has(Bug::NoSyncBeforeRead) {
            return Ok(());
        }
        let op = Op::SyncDir { path: path.to_owned() };
        self.ring.run(op).map(drop).map_err(|error| io("syncing", path, error)) // V1
    }

    /// Opens a file and makes durable what may be in a cache (V1).
    fn open_file(&mut self, path: &Path) -> Result<FileId, OpenError> {
        let op = Op::Open { path: path.to_owned(), create: !self.read_only };
        let file = FileId(self.ring.run(op).map_err(|error| io("opening", path, error))?);
        if !self.options.planted.has(Bug::NoSyncBeforeRead) {
            self.ring.run(Op::SyncAll { file }).map_err(|error| io("syncing", path, error))?;
        }
        Ok(file)
    }

    /// Reads up to `len` bytes; fewer at the end of the file.
    fn read(&mut self, file: FileId, position: u64, len: usize) -> Result<usize, Errno> {
        let (mut done, mut stuck) = (0, 0);
        while done < len && stuck < SHORT_MAX {
            let into = BufRange::new(self.buffer, done, len - done);
            match self.ring.run(Op::Read { file, into, position: position + done as u64 })? as usize {
                0 => break,
                // Interrupted, or the file ends inside a block.
                read if read < BLOCK_SIZE => stuck += 1,
                read => {
                    done += read / BLOCK_SIZE * BLOCK_SIZE;
                    stuck = 0;
                }
            }
        }
        Ok(done)
    }

    fn bytes(&self, len: usize) -> &[u8] {
        self.ring.memory.bytes(BufRange::new(self.buffer, 0, len))
    }

    fn path_of(&self, slot: usize) -> PathBuf {
        self.options.directory.join("log").join(slot_file(self.slots[slot].id))
    }

    // -- slots ---------------------------------------------------------------------------------------------

    fn open_slots(&mut self, log_dir: &Path) -> Result<(), OpenError> {
        let entries = self.ring.list_dir(log_dir).map_err(|error| io("listing", log_dir, error))?;
        let mut ids: Vec<SlotId> = entries
            .iter()
            .filter(|entry| !entry.is_dir)
            .filter_map(|entry| parse_name(&entry.name))
            .filter_map(|(slot, is_segment)| is_segment.then_some(slot))
            .collect();
        ids.sort_unstable();
        for (index, id) in ids.iter().enumerate() {
            let path = log_dir.join(slot_file(*id));
            if id.0 as usize != index {
                return Err(self.root_damage(&path, "a slot file before this one is missing"));
            }
            let file = self.open_file(&path)?;
            let facts = self.ring.file_facts(file).map_err(|error| io("examining", &path, error))?;
            let (len, unreadable) = self.read_slot_header(file, &path)?;
            let mut capacity = capacity_of(*id, self.options.segment_size);
            let mut state = SlotState::Making;
            match SegmentFacts::parse(self.bytes(len)) {
                Ok(found) if found.node_id != self.options.node_id => {
                    return Err(self.root_damage(&path, "the file belongs to another data directory"));
                }
                Ok(found) if found.shard != self.options.shard || found.slot != *id => {
                    return Err(self.root_damage(&path, "the file belongs to another place"));
                }
                Ok(found) if facts.size >= found.capacity => {
                    capacity = found.capacity;
                    state = SlotState::Free;
                    if found.seq.0 > 0 {
                        self.headers.push((index, found));
                    }
                }
                Ok(_) => return Err(self.root_damage(&path, "the file is shorter than its header says")),
                Err(corruption) if corruption.damage == ringmq_format::Damage::Version => {
                    return Err(OpenError::Damaged {
                        row: None,
                        path,
                        position: 0,
                        corruption: Some(corruption),
                        reason: "written by a version of RingMQ that this one cannot read",
                    });
                }
                Err(corruption) if unreadable => {
                    return Err(OpenError::Damaged {
                        row: Some(Row::C),
                        path,
                        position: 0,
                        corruption: Some(corruption),
                        reason: "neither copy of the segment's header can be read",
                    });
                }
                Err(_) if self.bytes(len).iter().any(|byte| *byte != 0) && facts.size >= capacity => {
                    // Torn while being activated, or damaged. If the log needs it the chain of segments ends
                    // too early, and that is noticed.
                    state = SlotState::Free;
                }
                Err(_) => {}
            }
            let edges = block_edges(&facts.extent_edges);
            let sidecar = sidecar_file(*id);
            let sidecar_bytes =
                entries.iter().find(|entry| entry.name == sidecar).map_or(0, |entry| entry.size);
            self.slots.push(Slot { id: *id, file, capacity, edges, sidecar: None, sidecar_bytes, state });
        }
        self.headers.sort_by_key(|(_, facts)| (facts.base, facts.seq));
        Ok(())
    }

    /// Reads both copies of a slot's header, apart if they cannot be read together: either is enough. Answers the
    /// bytes that are there, and whether some could not be read.
    fn read_slot_header(&mut self, file: FileId, path: &Path) -> Result<(usize, bool), OpenError> {
        match self.read(file, 0, SEGMENT_HEADER_SIZE) {
            Ok(len) => return Ok((len, false)),
            Err(Errno::IO) => {}
            Err(error) => return Err(io("reading", path, error)),
        }
        let mut window = Window { file, position: 0, len: 0, unreadable: Vec::new() };
        self.load_blocks(&mut window, SEGMENT_HEADER_SIZE)?;
        Ok((window.len, !window.unreadable.is_empty()))
    }

    fn root_damage(&self, path: &Path, reason: &'static str) -> OpenError {
        OpenError::Damaged { row: None, path: path.to_owned(), position: 0, corruption: None, reason }
    }

    // -- superblock ----------------------------------------------------------------------------------------

    /// `None` if there has never been one.
    fn read_superblock(&mut self, file: FileId, path: &Path) -> Result<Option<Superblock>, OpenError> {
        let len = self.read(file, 0, SUPERBLOCK_FILE_SIZE).map_err(|error| io("reading", path, error))?;
        match Superblock::parse(self.bytes(len), self.options.node_id, self.options.shard) {
            Ok(superblock) => {
                self.spare_half = superblock.spare_half(self.bytes(len));
                Ok(Some(superblock))
            }
            // It is durable before the first slot is made, so without slots there was nothing yet.
            Err(_) if self.slots.is_empty() || self.options.planted.has(Bug::DoubtStartsAfresh) => Ok(None),
            Err(corruption) => Err(OpenError::Damaged {
                row: None,
                path: path.to_owned(),
                position: 0,
                corruption: Some(corruption),
                reason: "none of the four superblock copies is valid",
            }),
        }
    }

    fn create(&mut self, file: FileId, path: &Path) -> Result<LogStart, OpenError> {
        let allocate = Op::Allocate { file, len: SUPERBLOCK_FILE_SIZE as u64 };
        self.ring.run(allocate).map_err(|error| io("allocating", path, error))?;
        let zeros = BufRange::new(self.buffer, 0, SUPERBLOCK_FILE_SIZE);
        self.ring.memory.bytes_mut(zeros).fill(0);
        self.write(file, path, 0, SUPERBLOCK_FILE_SIZE)?;
        self.ring.run(Op::SyncAll { file }).map_err(|error| io("syncing", path, error))?;
        let durability = match self.options.durability {
            Some(durability) => durability,
            None => calibrate(self.ring, self.buffer, file, path)?.choice(),
        };
        let superblock = Superblock {
            shard: self.options.shard,
            node_id: self.options.node_id,
            sequence: 1,
            durability,
            epoch: Epoch(1),
            clean: false,
            durable_lsn: Lsn(0),
            log_start: Lsn(0),
            log_start_seq: SegmentSeq(1),
            checkpoint: None,
            active_seq: SegmentSeq(0),
            active_base: Lsn(0),
            quarantine: Vec::new(),
        };
        self.write_superblock(file, path, &superblock)?;
        self.sync_dir(&self.options.directory.clone())?;
        Ok(LogStart {
            checkpoint_bytes: 0,
            slots: std::mem::take(&mut self.slots),
            segments: VecDeque::new(),
            chain: 0,
            seq_max: SegmentSeq(0),
            superblock,
            superblock_file: file,
            fresh: true,
        })
    }

    fn write(&mut self, file: FileId, path: &Path, position: u64, len: usize) -> Result<(), OpenError> {
        let (mut done, mut stuck) = (0, 0);
        while done < len {
            let from = BufRange::new(self.buffer, done, len - done);
            let op = Op::Write { file, from, position: position + done as u64, durable: false };
            let written = self.ring.run(op).map_err(|error| io("writing", path, error))? as usize;
            // Less than a block is written again; a disk that never takes one is broken.
            stuck = if written < BLOCK_SIZE { stuck + 1 } else { 0 };
            if stuck == SHORT_MAX {
                return Err(io("writing", path, Errno::IO));
            }
            done += written / BLOCK_SIZE * BLOCK_SIZE;
        }
        Ok(())
    }

    fn write_superblock(
        &mut self,
        file: FileId,
        path: &Path,
        superblock: &Superblock,
    ) -> Result<(), OpenError> {
        let half = SUPERBLOCK_FILE_SIZE / 2;
        let bytes = superblock.encode();
        // Never first the half that alone holds what was found: this update may be cut short too.
        for step in [self.spare_half, 1 - self.spare_half] {
            let range = BufRange::new(self.buffer, 0, half);
            self.ring.memory.bytes_mut(range).copy_from_slice(&bytes[step * half..][..half]);
            self.write(file, path, (step * half) as u64, half)?;
            self.ring.run(Op::SyncAll { file }).map_err(|error| io("syncing", path, error))?;
        }
        Ok(())
    }

    /// The new epoch is durable before anything of it is written (V2).
    fn begin_epoch(
        &mut self,
        file: FileId,
        path: &Path,
        old: Superblock,
        mut start: LogStart,
    ) -> Result<LogStart, OpenError> {
        let end = start.segments.back().map_or(old.durable_lsn, |segment| segment.end);
        let raise = u32::from(!self.options.planted.has(Bug::EpochNotRaised));
        let active = start.segments.back().map(|segment| segment.facts);
        let superblock = Superblock {
            sequence: old.sequence + 1,
            epoch: Epoch(old.epoch.0 + raise),
            clean: false,
            durable_lsn: end.max(old.durable_lsn),
            // A segment behind the cut is none any more, and its slot will be used again.
            active_seq: active.map_or(SegmentSeq(0), |facts| facts.seq),
            active_base: active.map_or(Lsn(0), |facts| facts.base),
            // One that cannot be read is the one to be overwritten next, not the one before it.
            checkpoint: start.superblock.checkpoint,
            ..old
        };
        self.write_superblock(file, path, &superblock)?;
        start.superblock = superblock;
        start.superblock_file = file;
        Ok(start)
    }

    // -- checkpoint and scan -------------------------------------------------------------------------------

    fn recover(&mut self, superblock: &Superblock) -> Result<LogStart, OpenError> {
        self.report.clean = superblock.clean;
        let seq_max = self.headers.iter().map(|(_, facts)| facts.seq).max().unwrap_or_default();
        let seq_max = seq_max.max(superblock.active_seq);
        let mut segments = VecDeque::new();
        let checkpoint = self.load_checkpoint(superblock, &mut segments)?;
        let checkpoint_used =
            checkpoint.as_ref().map(|(facts, _)| (checkpoint_number(facts.sequence), facts.sequence));
        let mut durable_claim = superblock.durable_lsn;
        let (first_seq, mut point) = match &checkpoint {
            Some((facts, _)) => {
                durable_claim = durable_claim.max(facts.durable_lsn);
                let point = ScanPoint { lsn: facts.scan_start, chain: facts.scan_chain, epoch: Epoch(0) };
                (facts.scan_seq, point)
            }
            None => {
                let first = self.find_first(superblock);
                if first.is_none() && superblock.active_seq >= superblock.log_start_seq {
                    let path = self.options.directory.join("log");
                    return Err(self.root_damage(&path, "the first segment has no valid header"));
                }
                let lsn = first.map_or(superblock.log_start, |facts| facts.base.plus(FIRST_GROUP));
                let chain = first.map_or(0, |facts| facts.previous_chain);
                (first.map_or(SegmentSeq(0), |facts| facts.seq), ScanPoint { lsn, chain, epoch: Epoch(0) })
            }
        };
        let active_index = checkpoint.map(|(_, index)| index).unwrap_or_default();
        let mut current =
            self.headers.iter().find(|(_, facts)| facts.seq == first_seq && facts.base <= point.lsn).copied();
        self.bytes_total = self
            .headers
            .iter()
            .filter(|(_, facts)| facts.end() > point.lsn)
            .map(|(_, facts)| facts.capacity)
            .sum();
        if current.is_none() && first_seq.0 > 0 && durable_claim > point.lsn {
            let path = self.options.directory.join("log");
            return Err(self.root_damage(&path, "the segment at which the log begins has no valid header"));
        }
        let mut entries = active_index;
        let mut skipped_to_scan = true;
        while let Some((slot, facts)) = current {
            let mut segment = Segment {
                facts,
                slot,
                end: point.lsn.max(facts.base.plus(FIRST_GROUP)),
                last_time: entries.iter().map(|entry| entry.timestamp.get()).max().unwrap_or(0),
                frame_bytes: entries.iter().map(|entry| u64::from(entry.len.get())).sum(),
                entries: std::mem::take(&mut entries),
                sidecar: None,
                sealed: false,
                index_lost: false,
            };
            if !skipped_to_scan {
                point.lsn = facts.base.plus(FIRST_GROUP);
            }
            skipped_to_scan = false;
            self.scan_segment(&mut segment, &mut point, durable_claim, superblock)?;
            self.slots[slot].state = SlotState::InUse;
            let sealed = segment.sealed;
            segments.push_back(segment);
            if !sealed {
                current = None;
                continue;
            }
            current = self.find_next(&facts, point.chain);
            if current.is_none() {
                self.refuse_if_more(&facts, facts.end(), durable_claim)?;
            }
        }
        let last = segments.back().map_or(SegmentSeq(0), |segment: &Segment| segment.facts.seq);
        if superblock.active_seq > last && superblock.active_seq >= superblock.log_start_seq {
            // The header of that segment was durable before the superblock named it.
            let known = self.headers.iter().any(|(_, facts)| facts.seq == superblock.active_seq);
            if !known {
                let path = self.options.directory.join("log");
                return Err(self.root_damage(&path, "the active segment has no valid header"));
            }
        }
        let files = self.ring.list_dir(&self.options.directory).unwrap_or_default();
        let checkpoints = files.iter().filter(|file| file.name.starts_with("checkpoint."));
        let checkpoint_bytes = checkpoints.map(|file| file.size).max().unwrap_or(0);
        Ok(LogStart {
            checkpoint_bytes,
            slots: std::mem::take(&mut self.slots),
            segments,
            chain: point.chain,
            seq_max,
            superblock: Superblock { checkpoint: checkpoint_used, ..superblock.clone() },
            superblock_file: FileId(0),
            fresh: false,
        })
    }

    fn find_first(&self, superblock: &Superblock) -> Option<SegmentFacts> {
        self.headers
            .iter()
            .map(|(_, facts)| *facts)
            .find(|facts| facts.base == superblock.log_start && facts.seq == superblock.log_start_seq)
            .or_else(|| {
                // Before anything was retired, an activation that was cut short may have taken the first number.
                let first_life = superblock.log_start == Lsn(0);
                self.headers
                    .iter()
                    .map(|(_, facts)| *facts)
                    .filter(|facts| first_life && facts.base == Lsn(0) && facts.previous_seq.0 == 0)
                    .max_by_key(|facts| facts.seq)
            })
    }

    /// The segment that continues a sealed one. Headers of activations that were cut short stay behind: only the
    /// one with the right chain counts.
    fn find_next(&self, facts: &SegmentFacts, chain: u64) -> Option<(usize, SegmentFacts)> {
        self.headers
            .iter()
            .filter(|(_, next)| next.base == facts.end() && next.previous_seq == facts.seq)
            .filter(|(_, next)| next.previous_chain == chain)
            .max_by_key(|(_, next)| next.seq)
            .copied()
    }

    /// Reads the named checkpoint, or the one before it, or nothing where the log is still whole.
    #[allow(clippy::type_complexity)]
    fn load_checkpoint(
        &mut self,
        superblock: &Superblock,
        segments: &mut VecDeque<Segment>,
    ) -> Result<Option<(CheckpointFacts, Vec<IndexEntry>)>, OpenError> {
        let Some((named, sequence)) = superblock.checkpoint else { return Ok(None) };
        for (file, sequence) in [(named, sequence), (3 - named, sequence - 1)] {
            if sequence == 0 {
                continue;
            }
            let path = self.options.directory.join(checkpoint_file(file));
            match self.read_checkpoint(&path, sequence)? {
                Ok((facts, bytes)) => {
                    let entries = self.replay_checkpoint(&facts, &bytes, &path, superblock, segments)?;
                    return Ok(Some((facts, entries)));
                }
                Err(_) => self.report.checkpoint_lost = true,
            }
        }
        if superblock.log_start == Lsn(0) {
            return Ok(None);
        }
        let path = self.options.directory.join(checkpoint_file(named));
        Err(self.root_damage(&path, "neither checkpoint can be read, and the log before it is gone"))
    }

    /// Reads a checkpoint and checks all of it before any of it is used.
    #[allow(clippy::type_complexity)]
    fn read_checkpoint(
        &mut self,
        path: &Path,
        sequence: u64,
    ) -> Result<Result<(CheckpointFacts, Vec<u8>), Corruption>, OpenError> {
        let file = match self.open_file(path) {
            Err(OpenError::Io { error: Errno::NOENT, .. }) => {
                return Ok(CheckpointFacts::parse(&[], self.options.shard, sequence)
                    .map(|facts| (facts, Vec::new())));
            }
            opened => opened?,
        };
        let mut bytes = Vec::new();
        let read = loop {
            match self.read(file, bytes.len() as u64, READ_SIZE) {
                Ok(0) => break Ok(()),
                Ok(read) => {
                    bytes.extend_from_slice(self.ring.memory.bytes(BufRange::new(self.buffer, 0, read)))
                }
                Err(error) => break Err(error),
            }
        };
        self.ring.run(Op::Close { file }).map_err(|error| io("closing", path, error))?;
        match read {
            Ok(()) => {}
            Err(Errno::IO) => bytes.clear(),
            Err(error) => return Err(io("reading", path, error)),
        }
        let checked = CheckpointFacts::parse(&bytes, self.options.shard, sequence).and_then(|facts| {
            let mut rest = bytes.get(BLOCK_SIZE..).unwrap_or(&[]);
            for index in 0..facts.chunks {
                Chunk::take(&mut rest, sequence, index)?;
            }
            Ok(facts)
        });
        Ok(checked.map(|facts| (facts, bytes)))
    }

    fn replay_checkpoint(
        &mut self,
        facts: &CheckpointFacts,
        bytes: &[u8],
        path: &Path,
        superblock: &Superblock,
        segments: &mut VecDeque<Segment>,
    ) -> Result<Vec<IndexEntry>, OpenError> {
        let damaged = |corruption| OpenError::Damaged {
            row: None,
            path: path.to_owned(),
            position: 0,
            corruption: Some(corruption),
            reason: "an item of the checkpoint makes no sense though its checksum holds",
        };
        let mut entries = Vec::new();
        let scan = self.headers.iter().find(|(_, header)| header.seq == facts.scan_seq);
        let scan_base = scan.map_or(Lsn(0), |(_, header)| header.base);
        let mut rest = &bytes[BLOCK_SIZE..];
        for index in 0..facts.chunks {
            let chunk = Chunk::take(&mut rest, facts.sequence, index).map_err(damaged)?;
            match chunk.kind {
                ChunkKind::Segments => {
                    let items = <[SegmentItem]>::ref_from_bytes(chunk.payload).unwrap_or(&[]);
                    for item in items {
                        self.adopt_segment(item, facts.scan_seq, superblock, segments)?;
                    }
                }
                ChunkKind::ActiveIndex => {
                    let items = <[IndexEntry]>::ref_from_bytes(chunk.payload).unwrap_or(&[]);
                    entries.extend_from_slice(items);
                    self.visitor.chunk(&chunk, facts.scan_seq, scan_base).map_err(damaged)?;
                }
                _ => {
                    self.visitor.chunk(&chunk, facts.scan_seq, scan_base).map_err(damaged)?;
                }
            }
        }
        Ok(entries)
    }

    /// A sealed segment that is not read again.
    fn adopt_segment(
        &mut self,
        item: &SegmentItem,
        scan_seq: SegmentSeq,
        superblock: &Superblock,
        segments: &mut VecDeque<Segment>,
    ) -> Result<(), OpenError> {
        if item.seq() >= scan_seq || item.seq() < superblock.log_start_seq {
            return Ok(());
        }
        let found = self.headers.iter().find(|(_, facts)| facts.seq == item.seq()).copied();
        let Some((slot, facts)) = found else {
            let path = self.options.directory.join("log").join(slot_file(item.slot_id()));
            return Err(self.root_damage(&path, "a segment that is kept has no valid header"));
        };
        self.slots[slot].state = SlotState::InUse;
        let mut segment = Segment {
            facts,
            slot,
            end: Lsn(item.end_lsn.get()),
            last_time: item.last_time.get(),
            frame_bytes: item.frame_bytes.get(),
            entries: Vec::new(),
            sidecar: None,
            sealed: true,
            index_lost: false,
        };
        if self.read_only {
            segments.push_back(segment); // no frame of it is asked for
            return Ok(());
        }
        let path = self.options.directory.join("log").join(sidecar_file(facts.slot));
        let file = self.open_file(&path)?;
        self.slots[slot].sidecar = Some(file);
        let len = match self.read(file, 0, BLOCK_SIZE) {
            Err(Errno::IO) => 0,
            read => read.map_err(|error| io("reading", &path, error))?,
        };
        match sidecar::parse_header(self.bytes(len), facts.seq, facts.incarnation) {
            Ok(found) => segment.sidecar = Some((file, found.entries as u32)),
            // Derived, and made again from the segment while the shard runs.
            Err(_) => segment.index_lost = true,
        }
        segments.push_back(segment);
        Ok(())
    }

    /// Reads a segment from the point to its seal or to the end of the log.
    fn scan_segment(
        &mut self,
        segment: &mut Segment,
        point: &mut ScanPoint,
        durable_claim: Lsn,
        superblock: &Superblock,
    ) -> Result<(), OpenError> {
        let facts = segment.facts;
        let file = self.slots[segment.slot].file;
        let mut window = Window { file, position: 0, len: 0, unreadable: Vec::new() };
        self.visitor.segment(facts.base);
        loop {
            while let Some((start, end, chain)) =
                superblock.quarantine.iter().find(|(start, end, _)| *start == point.lsn && end > start)
            {
                self.report.set_aside.push((*start, *end));
                self.visitor.gap(*start, *end);
                point.lsn = *end;
                point.chain = *chain;
            }
            if point.lsn >= superblock.durable_lsn && !self.options.planted.has(Bug::CutForgotten) {
                // V4: the last start let the log end at or before this place.
                point.epoch = point.epoch.max(superblock.epoch);
            }
            segment.end = point.lsn;
            let position = facts.position(point.lsn);
            self.at = None;
            if position >= facts.capacity {
                segment.sealed = true;
                return Ok(());
            }
            self.at = Some((segment.slot, facts, *point));
            let examined = self.examine_at(&mut window, &facts, point, position)?;
            let mut witness = false;
            if examined.finding != Finding::Whole {
                // After a clean stop nothing was written behind the end, and nobody need look.
                let known_end = self.report.clean && durable_claim == point.lsn;
                witness = durable_claim > point.lsn || (!known_end && self.has_witness(&facts, point.lsn)?);
                window.len = 0; // the search has used the buffer
            }
            let (row, decision) =
                if self.options.planted.has(Bug::TruncateOnDoubt) && examined.finding != Finding::Whole {
                    (Row::D, Decision::Cut)
                } else {
                    decide(examined.finding, witness)
                };
            let path = self.path_of(segment.slot);
            match (decision, examined.header) {
                (Decision::Cut, _) => {
                    // Old content of a recycled slot and zeros are what normally stands behind the end.
                    self.report.cut = examined.corruption.map(|corruption| (point.lsn, corruption));
                    self.at = None;
                    return Ok(());
                }
                (Decision::Refuse, _) | (_, None) => {
                    return Err(OpenError::Damaged {
                        row: Some(row),
                        path,
                        position,
                        corruption: examined.corruption,
                        reason: "what stands here was acknowledged, and its headers cannot be read",
                    });
                }
                (Decision::Accept | Decision::AcceptDamaged, Some(header)) => {
                    self.report.damaged_padding += u64::from(row == Row::P);
                    for at in &examined.bad_frames {
                        self.report.damaged_frames.push((path.clone(), position + *at as u64));
                    }
                    if !self.load(&mut window, position, header.total())? {
                        return Err(io("reading", &path, Errno::IO));
                    }
                    self.accept(&mut window, segment, &header, position, &examined.bad_frames)?;
                    point.lsn = point.lsn.plus(header.total() as u64);
                    point.chain = header.next_chain();
                    point.epoch = Epoch(header.epoch.get());
                    segment.end = point.lsn;
                    self.report.groups += 1;
                    self.report.bytes += header.total() as u64;
                    self.visitor.progress(self.report.bytes, self.bytes_total);
                    if header.kind() == GroupKind::Seal {
                        self.at = None;
                        segment.sealed = true;
                        return Ok(());
                    }
                }
            }
        }
    }

    fn examine_at(
        &mut self,
        window: &mut Window,
        facts: &SegmentFacts,
        point: &ScanPoint,
        position: u64,
    ) -> Result<scan::Examined, OpenError> {
        let unreadable = scan::Examined {
            finding: Finding::Unreadable,
            header: None,
            corruption: None,
            bad_frames: Vec::new(),
        };
        if !self.load(window, position, BLOCK_SIZE)? {
            return Ok(unreadable);
        }
        let planted = self.options.planted;
        let total = match group_len(facts, point, self.window_bytes(window, position)) {
            Ok(header) => header.total(),
            Err(_) => GROUP_HEADER_SIZE,
        };
        if !self.load(window, position, total)? {
            return Ok(unreadable);
        }
        Ok(examine(facts, point, self.window_bytes(window, position), planted))
    }

    fn accept(
        &mut self,
        window: &mut Window,
        segment: &mut Segment,
        header: &GroupHeader,
        position: u64,
        bad_frames: &[usize],
    ) -> Result<(), OpenError> {
        let path = self.path_of(segment.slot);
        let offset = (position - window.position) as usize;
        let range = BufRange::new(self.buffer, offset, header.total());
        let bytes = self.ring.memory.bytes(range);
        for (at, frame) in group_frames(header, bytes) {
            let is_bad = bad_frames.contains(&at);
            let damaged = |corruption, reason| OpenError::Damaged {
                row: Some(Row::B),
                path: path.clone(),
                position: position + at as u64,
                corruption,
                reason,
            };
            if is_bad && !lacks_records_alone(&frame) {
                return Err(damaged(None, "a frame that changes the shard's state is damaged"));
            }
            let lsn = Lsn(header.lsn.get()).plus(at as u64);
            self.visitor
                .frame(lsn, &frame)
                .map_err(|corruption| damaged(Some(corruption), "a frame contradicts the ones before it"))?;
            if has_offsets(frame.header) {
                segment.entries.push(index_entry(frame.header, position + at as u64));
                if self.options.planted.has(Bug::IndexedTwice) {
                    segment.entries.push(index_entry(frame.header, position + at as u64));
                }
            }
            segment.frame_bytes += frame.bytes.len() as u64;
            segment.last_time = segment.last_time.max(frame.header.timestamp.get());
        }
        Ok(())
    }

    /// Makes `[position, position + len)` part of the window. `false` if the medium does not give it.
    fn load(&mut self, window: &mut Window, position: u64, len: usize) -> Result<bool, OpenError> {
        let end = position + len as u64;
        if position < window.position || end > window.position + window.len as u64 {
            window.position = position;
            window.unreadable.clear();
            let want = len.next_multiple_of(BLOCK_SIZE).clamp(READ_SIZE, GROUP_SIZE_MAX + READ_SIZE);
            match self.read(window.file, position, want) {
                Ok(read) => window.len = read,
                Err(Errno::IO) => self.load_blocks(window, want)?,
                Err(error) => {
                    return Err(io("reading", &self.options.directory.join("log"), error));
                }
            }
        }
        let within = end <= window.position + window.len as u64;
        let readable = !window.unreadable.iter().any(|bad| *bad + BLOCK_SIZE as u64 > position && *bad < end);
        Ok(within && readable)
    }

    /// Block by block, so that one bad sector does not hide its neighbours.
    fn load_blocks(&mut self, window: &mut Window, want: usize) -> Result<(), OpenError> {
        window.len = 0;
        let mut stuck = 0;
        while window.len < want && stuck < SHORT_MAX {
            let into = BufRange::new(self.buffer, window.len, BLOCK_SIZE);
            let position = window.position + window.len as u64;
            match self.ring.run(Op::Read { file: window.file, into, position }) {
                Ok(0) => break,
                Ok(read) if (read as usize) < BLOCK_SIZE => {
                    stuck += 1;
                    continue;
                }
                Ok(_) => {}
                Err(Errno::IO) => {
                    window.unreadable.push(position);
                    self.ring.memory.bytes_mut(into).fill(0);
                }
                Err(error) => return Err(io("reading", &self.options.directory.join("log"), error)),
            }
            stuck = 0;
            window.len += BLOCK_SIZE;
        }
        Ok(())
    }

    fn window_bytes(&self, window: &Window, position: u64) -> &[u8] {
        let offset = (position - window.position) as usize;
        self.ring.memory.bytes(BufRange::new(self.buffer, offset, window.len - offset))
    }

    /// Is there, anywhere behind X, a group header that says X had been durable?
    fn has_witness(&mut self, facts: &SegmentFacts, x: Lsn) -> Result<bool, OpenError> {
        let later: Vec<(usize, SegmentFacts)> =
            self.headers.iter().filter(|(_, other)| other.base >= facts.base).copied().collect();
        for (slot, other) in later {
            let from =
                if other.seq == facts.seq { facts.position(x) + BLOCK_SIZE as u64 } else { FIRST_GROUP };
            let mut window =
                Window { file: self.slots[slot].file, position: 0, len: 0, unreadable: Vec::new() };
            let mut position = from.min(other.capacity);
            while position < other.capacity {
                let len = READ_SIZE.min((other.capacity - position) as usize);
                window.len = 0;
                self.load(&mut window, position, len)?;
                if window.len == 0 {
                    break;
                }
                let bytes = self.window_bytes(&window, position);
                if highest_witness(&other, position, bytes).is_some_and(|durable| durable > x) {
                    return Ok(true);
                }
                position += window.len as u64;
            }
        }
        Ok(false)
    }

    /// A seal with nothing behind it is the end of the log, unless something says that there was more.
    fn refuse_if_more(
        &mut self,
        sealed: &SegmentFacts,
        next_base: Lsn,
        durable_claim: Lsn,
    ) -> Result<(), OpenError> {
        if durable_claim <= next_base && !self.has_witness_behind(sealed, next_base)? {
            return Ok(());
        }
        Err(OpenError::Damaged {
            row: Some(Row::B),
            path: self.options.directory.join("log"),
            position: 0,
            corruption: None,
            reason: "the segment behind a sealed one is missing or has no valid header, and it was acknowledged",
        })
    }

    fn has_witness_behind(&mut self, sealed: &SegmentFacts, next_base: Lsn) -> Result<bool, OpenError> {
        let last_block = sealed.end().0 - BLOCK_SIZE as u64;
        let _ = next_base;
        self.has_witness(sealed, Lsn(last_block))
    }
}

/// Everything that replay needs of this frame is in its header, or in an extension with a checksum of its own: of a
/// frame whose payload is bad only the records are lost.
fn lacks_records_alone(frame: &Frame<'_>) -> bool {
    match frame.header.kind() {
        FrameKind::Data | FrameKind::Bound => true,
        // Stored again by retention, or whole as far as it matters.
        FrameKind::Half | FrameKind::Delay => frame.header.aux.get() != 0 || Late::parse(frame).is_ok(),
        _ => false,
    }
}

/// How soon each call makes a small write durable on this device. Writes over the first block of a file that has it.
fn calibrate(ring: &mut Ring, buffer: BufferId, file: FileId, path: &Path) -> Result<Calibration, OpenError> {
    let mut medians = [0u64; 2];
    for (median, durable) in medians.iter_mut().zip([false, true]) {
        let begun = ring.read_clock().mono_us;
        let mut times = Vec::with_capacity(CALIBRATION_WRITES);
        while times.len() < CALIBRATION_WRITES {
            let before = ring.read_clock().mono_us;
            if times.len() > 2 && before - begun > CALIBRATION_TIME_US {
                break;
            }
            let from = BufRange::new(buffer, 0, BLOCK_SIZE);
            let op = Op::Write { file, from, position: 0, durable };
            ring.run(op).map_err(|error| io("writing", path, error))?;
            if !durable {
                ring.run(Op::SyncData { file }).map_err(|error| io("syncing", path, error))?;
            }
            times.push(ring.read_clock().mono_us - before);
        }
        times.sort_unstable();
        *median = times[times.len() / 2];
    }
    let [flush_us, dsync_us] = medians;
    Ok(Calibration { flush_us, dsync_us })
}

#[derive(Debug)]
struct Window {
    file: FileId,
    /// Byte of the file at which the buffer begins.
    position: u64,
    len: usize,
    /// Blocks in it that the medium does not give.
    unreadable: Vec<u64>,
}

fn io(during: &'static str, path: &Path, error: Errno) -> OpenError {
    OpenError::Io { during, path: path.to_owned(), error }
}

/// The file, 1 or 2, of the checkpoint with this sequence.
pub fn checkpoint_number(sequence: u64) -> u8 {
    if sequence.is_multiple_of(2) { 2 } else { 1 }
}

/// Name of checkpoint file 1 or 2.
pub fn checkpoint_file(number: u8) -> &'static str {
    if number == 1 { "checkpoint.a" } else { "checkpoint.b" }
}
