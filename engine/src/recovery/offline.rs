//! What an operator does to a shard that is not served: look what recovery refuses and how far it reaches, change
//! the superblock, measure the device anew. Blocking, through the ring like all of recovery; the caller holds the
//! directory's lock.

use super::decide::{Finding, Row};
use super::scan::ScanPoint;
use super::{Calibration, OpenError, OpenOptions, Recovery, RecoveryReport, Visitor, Window, calibrate, io};
use crate::ring::{BufRange, FileId, Op, Ring};
use ringmq_format::corruption::Corruption;
use ringmq_format::frame::{FrameHeader, FrameKind};
use ringmq_format::group::GroupHeader;
use ringmq_format::limits::{BLOCK_SIZE, FRAME_ALIGN, FRAME_HEADER_SIZE, QUARANTINE_MAX};
use ringmq_format::segment::SegmentFacts;
use ringmq_format::superblock::{SUPERBLOCK_FILE_SIZE, Superblock};
use ringmq_format::{Lsn, PartitionId, SegmentSeq};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A range of the log that recovery refuses, and where the log can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Row of the decision table.
    pub row: Row,
    /// Segment file.
    pub path: PathBuf,
    /// Its segment.
    pub segment: SegmentSeq,
    /// Byte of the file at which the range begins.
    pub position: u64,
    /// What is wrong there.
    pub corruption: Option<Corruption>,
    /// In words.
    pub reason: &'static str,
    /// First LSN of the range: a group begins here.
    pub start: Lsn,
    /// LSN behind it: the next whole group, the end of the segment, or the end of the log.
    pub end: Lsn,
    /// Chain with which the log goes on at `end`.
    pub chain: u64,
    /// What can still be recognised in it. There may have been more.
    pub recognised: Recognised,
}

/// Frames in a damaged range whose own headers are intact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recognised {
    /// By partition: frames and records.
    pub partitions: BTreeMap<PartitionId, (u64, u64)>,
    /// Frames that made or removed topics.
    pub topics: u64,
    /// Changes of consumer groups and of their positions.
    pub groups: u64,
}

/// What recovery would find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looked {
    /// The shard would start.
    Sound(RecoveryReport),
    /// It would not, because of this; there may be more behind it.
    Refused(Refused),
}

/// Recovers without writing anything, as if `set_aside` (start, end, chain) stood in the superblock, too.
/// An error is a refusal that no quarantine can help: a root structure is damaged, or the files cannot be read.
pub fn look(
    ring: &mut Ring,
    options: &OpenOptions,
    set_aside: &[(Lsn, Lsn, u64)],
    visitor: &mut dyn Visitor,
) -> Result<Looked, OpenError> {
    let mut recovery = Recovery::new(ring, options, visitor, true)?;
    let buffer = recovery.buffer;
    let looked = recovery.look(set_aside);
    let files: Vec<FileId> = recovery.slots.iter().map(|slot| slot.file).collect();
    ring.memory.free(buffer);
    close(ring, &files, &options.directory)?;
    looked
}

/// Reads the superblock.
pub fn read_superblock(ring: &mut Ring, options: &OpenOptions) -> Result<Superblock, OpenError> {
    with_superblock(ring, options, |_, _, superblock| Ok(superblock.clone()))
}

/// Changes the superblock, durably: the one before and the one after. What it says counts from the next start on,
/// which has an epoch of its own. The epoch stays as it is here: by V4 a newer one would make the groups behind the
/// superblock's `durable_lsn` those of an earlier life.
pub fn change_superblock(
    ring: &mut Ring,
    options: &OpenOptions,
    change: impl FnOnce(&mut Superblock),
) -> Result<(Superblock, Superblock), OpenError> {
    with_superblock(ring, options, |recovery, (file, path), before| {
        let mut after = before.clone();
        change(&mut after);
        after.sequence = before.sequence + 1;
        recovery.write_superblock(file, path, &after)?;
        Ok((before.clone(), after))
    })
}

/// Measures the durability call on the device under `path`, a scratch file that is made and may be removed.
pub fn measure_durability(ring: &mut Ring, path: &Path) -> Result<Calibration, OpenError> {
    let buffer = ring.memory.alloc(BLOCK_SIZE, false).ok_or(OpenError::NoMemory)?;
    let open = Op::Open { path: path.to_owned(), create: true };
    let opened = ring.run(open).map(FileId).map_err(|error| io("opening", path, error));
    let measured = opened.and_then(|file| {
        // Once ahead: the first write allocates, and a log never writes into a hole.
        let from = BufRange::new(buffer, 0, BLOCK_SIZE);
        ring.memory.bytes_mut(from).fill(0);
        let write = Op::Write { file, from, position: 0, durable: false };
        let prepared = ring.run(write).and_then(|_| ring.run(Op::SyncAll { file }));
        let measured = match prepared {
            Ok(_) => calibrate(ring, buffer, file, path),
            Err(error) => Err(io("writing", path, error)),
        };
        close(ring, &[file], path)?;
        measured
    });
    ring.memory.free(buffer);
    measured
}

fn close(ring: &mut Ring, files: &[FileId], path: &Path) -> Result<(), OpenError> {
    for file in files {
        ring.run(Op::Close { file: *file }).map_err(|error| io("closing", path, error))?;
    }
    Ok(())
}

fn with_superblock<T>(
    ring: &mut Ring,
    options: &OpenOptions,
    work: impl FnOnce(&mut Recovery<'_>, (FileId, &Path), &Superblock) -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    let mut nobody = Nobody;
    let mut recovery = Recovery::new(ring, options, &mut nobody, true)?;
    let buffer = recovery.buffer;
    let path = options.directory.join("superblock");
    let opened = recovery.open_file(&path);
    let result = opened.and_then(|file| {
        let found = recovery.parse_superblock(file, &path);
        let result = found.and_then(|superblock| work(&mut recovery, (file, &path), &superblock));
        close(recovery.ring, &[file], &path)?;
        result
    });
    ring.memory.free(buffer);
    result
}

/// Where nothing is replayed.
struct Nobody;

impl Visitor for Nobody {
    fn chunk(
        &mut self,
        _: &ringmq_format::checkpoint::Chunk<'_>,
        _: SegmentSeq,
        _: Lsn,
    ) -> Result<(), Corruption> {
        Ok(())
    }

    fn segment(&mut self, _: Lsn) {}
    fn gap(&mut self, _: Lsn, _: Lsn) {}

    fn frame(&mut self, _: Lsn, _: &ringmq_format::frame::Frame<'_>) -> Result<(), Corruption> {
        Ok(())
    }

    fn progress(&mut self, _: u64, _: u64) {}
}

impl Recovery<'_> {
    fn look(&mut self, set_aside: &[(Lsn, Lsn, u64)]) -> Result<Looked, OpenError> {
        let log_dir = self.options.directory.join("log");
        self.open_slots(&log_dir)?;
        let path = self.options.directory.join("superblock");
        let file = self.open_file(&path)?;
        let found = self.parse_superblock(file, &path);
        close(self.ring, &[file], &path)?;
        let mut superblock = found?;
        superblock.quarantine.extend_from_slice(set_aside);
        if superblock.quarantine.len() > QUARANTINE_MAX {
            return Err(self.root_damage(&path, "more ranges are damaged than a superblock can set aside"));
        }
        match self.recover(&superblock) {
            Ok(start) => {
                self.slots = start.slots;
                Ok(Looked::Sound(std::mem::take(&mut self.report)))
            }
            Err(OpenError::Damaged { row: Some(row), path, position, corruption, reason }) => {
                let Some((slot, facts, point)) = self.at.take() else {
                    return Err(OpenError::Damaged { row: Some(row), path, position, corruption, reason });
                };
                let (end, chain) = self.end_of_damage(slot, &facts, &point, &superblock)?;
                let recognised = self.recognise(slot, &facts, point.lsn, end)?;
                let position = facts.position(point.lsn);
                let (start, segment) = (point.lsn, facts.seq);
                Ok(Looked::Refused(Refused {
                    row,
                    path,
                    segment,
                    position,
                    corruption,
                    reason,
                    start,
                    end,
                    chain,
                    recognised,
                }))
            }
            Err(error) => Err(error),
        }
    }

    fn parse_superblock(&mut self, file: FileId, path: &Path) -> Result<Superblock, OpenError> {
        let len = self.read(file, 0, SUPERBLOCK_FILE_SIZE).map_err(|error| io("reading", path, error))?;
        let parsed = Superblock::parse(self.bytes(len), self.options.node_id, self.options.shard);
        self.spare_half = parsed.as_ref().map_or(0, |found| found.spare_half(self.bytes(len)));
        parsed.map_err(|corruption| OpenError::Damaged {
            row: None,
            path: path.to_owned(),
            position: 0,
            corruption: Some(corruption),
            reason: "none of the four superblock copies is valid",
        })
    }

    /// Where the log can go on behind a group that is refused, and with which chain: at the next group of this
    /// segment of which the headers hold; else where the next segment begins; else behind everything that is known
    /// to have been written.
    fn end_of_damage(
        &mut self,
        slot: usize,
        facts: &SegmentFacts,
        point: &ScanPoint,
        superblock: &Superblock,
    ) -> Result<(Lsn, u64), OpenError> {
        let file = self.slots[slot].file;
        let mut window = Window { file, position: 0, len: 0, unreadable: Vec::new() };
        let mut written = (superblock.durable_lsn.max(point.lsn.plus(BLOCK_SIZE as u64)), point.chain);
        let mut position = facts.position(point.lsn) + BLOCK_SIZE as u64;
        while position < facts.capacity {
            let lsn = facts.base.plus(position);
            if self.load(&mut window, position, BLOCK_SIZE)?
                && let Ok(header) = GroupHeader::parse(
                    self.window_bytes(&window, position),
                    facts.incarnation,
                    facts.seq,
                    lsn,
                )
                && header.epoch.get() >= point.epoch.0
            {
                let header = *header;
                let here = ScanPoint { lsn, chain: header.chain.get(), epoch: point.epoch };
                let examined = self.examine_at(&mut window, facts, &here, position)?;
                if matches!(examined.finding, Finding::Whole | Finding::PaddingBad | Finding::PayloadBad) {
                    return Ok((lsn, here.chain));
                }
                if examined.header.is_some() {
                    written = written.max((lsn.plus(header.total() as u64), header.next_chain()));
                }
            }
            position += BLOCK_SIZE as u64;
        }
        let mut next = self
            .headers
            .iter()
            .map(|(_, next)| next)
            .filter(|next| next.base == facts.end() && next.previous_seq == facts.seq);
        if let Some(next) = next.next_back() {
            return Ok((facts.end(), next.previous_chain));
        }
        Ok((written.0.min(facts.end()), written.1))
    }

    /// Frames whose headers hold, wherever they stand in the range.
    fn recognise(
        &mut self,
        slot: usize,
        facts: &SegmentFacts,
        start: Lsn,
        end: Lsn,
    ) -> Result<Recognised, OpenError> {
        let file = self.slots[slot].file;
        let mut window = Window { file, position: 0, len: 0, unreadable: Vec::new() };
        let mut found = Recognised::default();
        let (mut position, end) = (facts.position(start), facts.position(end));
        while position + FRAME_HEADER_SIZE as u64 <= end {
            let block = position / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
            let needed = (position - block) as usize + FRAME_HEADER_SIZE;
            if !self.load(&mut window, block, needed)? {
                position = block + BLOCK_SIZE as u64;
                continue;
            }
            let bytes = &self.window_bytes(&window, block)[(position - block) as usize..];
            let step = match FrameHeader::parse(bytes) {
                Ok(header) => {
                    match header.kind() {
                        FrameKind::Topic => found.topics += 1,
                        FrameKind::Group | FrameKind::Cursor | FrameKind::Ack => found.groups += 1,
                        kind if !kind.has_offsets() => {}
                        _ => {
                            let known = found.partitions.entry(header.partition()).or_default();
                            known.0 += 1;
                            known.1 += u64::from(header.count.get());
                        }
                    }
                    u64::from(header.len.get()).max(FRAME_HEADER_SIZE as u64)
                }
                Err(_) => FRAME_ALIGN as u64,
            };
            position += step.next_multiple_of(FRAME_ALIGN as u64);
        }
        Ok(found)
    }
}
