//! Slot files: made in the background, written once with zeros, recycled for ever.
//!
//! A group may only meet written extents, so a slot is of use when all of it was written and synced, with its
//! name, and says so in a *blank* header (segment number 0).
//!
//! States      `making -[blank header durable]-> free -[activate]-> in use -[retire, superblock durable]-> free`
//! Invariants  P1  Never more than one write in flight, and while a group is, only as the log allows.
//!             P2  No file is removed and none shrinks.
//! Ignorant of groups and partitions.

use super::room;
use crate::ring::{BufRange, BufferId, Errno, FileId, Op, Ring, Token};
use ringmq_format::limits::{
    BLOCK_SIZE, FREE_SLOTS_RESERVE, PREWRITE_CHUNK_URGENT, SEGMENT_HEADER_SIZE, SEGMENT_SIZES,
};
use ringmq_format::segment::SegmentFacts;
use ringmq_format::superblock::SUPERBLOCK_FILE_SIZE;
use ringmq_format::{Epoch, Lsn, SegmentSeq, ShardId, SlotId};
use std::path::{Path, PathBuf};

/// Free slots that the pre-writer keeps ready: one more than the reserve.
pub const FREE_SLOTS_TARGET: usize = FREE_SLOTS_RESERVE + 1;
/// How long the pre-writer waits after the disk had no room.
const NO_SPACE_RETRY_US: u64 = 1_000_000;

/// Capacity of the slot that is made as number `slot`: four of the smallest size, then three of each.
pub fn capacity_of(slot: SlotId, segment_size: u64) -> u64 {
    let step = (slot.0 as usize).saturating_sub(1) / 3;
    SEGMENT_SIZES[step.min(SEGMENT_SIZES.len() - 1)].min(segment_size)
}

/// File name of a slot.
pub fn slot_file(slot: SlotId) -> String {
    format!("{:03}.seg", slot.0)
}

/// File name of a slot's index sidecar.
pub fn sidecar_file(slot: SlotId) -> String {
    format!("{:03}.idx", slot.0)
}

/// The slot that a file name speaks of, and whether it is the segment (not the sidecar).
pub fn parse_name(name: &str) -> Option<(SlotId, bool)> {
    let (number, kind) = name.split_once('.')?;
    let is_segment = match kind {
        "seg" => true,
        "idx" => false,
        _ => return None,
    };
    let slot = SlotId(number.parse().ok()?);
    let canonical = if is_segment { slot_file(slot) } else { sidecar_file(slot) };
    (canonical == name).then_some((slot, is_segment))
}

/// What a slot is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Not wholly pre-written yet.
    Making,
    /// Ready to be activated.
    Free,
    /// Holds a segment of the log.
    InUse,
    /// Holds a segment that is given up; free once the superblock says so.
    Retiring,
}

/// One slot file.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its number.
    pub id: SlotId,
    /// The file, open for the whole life of the process.
    pub file: FileId,
    /// Bytes.
    pub capacity: u64,
    /// Positions that no write should cross.
    pub edges: Vec<u64>,
    /// Its sidecar's file, once it was opened: open for the whole life of the process too.
    pub sidecar: Option<FileId>,
    /// Bytes of that file.
    pub sidecar_bytes: u64,
    /// What it is used for.
    pub state: SlotState,
}

/// Extent edges as the log can keep to them. Those of a file system with blocks below 4 KiB may lie inside a block:
/// the one block that crosses costs a kernel worker, no more.
pub fn block_edges(edges: &[u64]) -> Vec<u64> {
    let mut edges: Vec<u64> = edges.iter().map(|edge| edge.next_multiple_of(BLOCK_SIZE as u64)).collect();
    edges.dedup();
    edges
}

/// A sidecar is expected to have one byte for so many of its segment, until one has shown more.
const SIDECAR_SHARE: u64 = 512;
/// What two checkpoints are expected to have, until they have shown more.
const CHECKPOINTS_MIN: u64 = 64 << 10;

/// Bytes on the disk of slots, and of one more of `next` bytes, with all that belongs to them: the superblock, sidecars
/// that are there or will be, as dense as the densest, and two checkpoints with room to grow, where the larger one has
/// `checkpoint` bytes now.
pub fn disk_need(slots: &[Slot], next: u64, checkpoint: u64) -> u64 {
    let densest =
        slots.iter().max_by_key(|slot| u128::from(slot.sidecar_bytes) * 1024 / u128::from(slot.capacity));
    let expected = |capacity: u64| {
        let known = densest.map_or(0, |slot| {
            (u128::from(capacity) * u128::from(slot.sidecar_bytes) / u128::from(slot.capacity)) as u64
        });
        known.max(capacity / SIDECAR_SHARE).next_multiple_of(BLOCK_SIZE as u64)
    };
    let with_sidecar = |capacity: u64, sidecar: u64| capacity + sidecar.max(expected(capacity));
    let kept: u64 = slots.iter().map(|slot| with_sidecar(slot.capacity, slot.sidecar_bytes)).sum();
    let checkpoints = (2 * checkpoint + checkpoint / 2).max(CHECKPOINTS_MIN);
    kept + with_sidecar(next, 0) + checkpoints + SUPERBLOCK_FILE_SIZE as u64
}

/// What a blank header says.
pub fn blank_header(shard: ShardId, slot: SlotId, capacity: u64, node_id: u128) -> SegmentFacts {
    SegmentFacts {
        shard,
        slot,
        seq: SegmentSeq(0),
        incarnation: 0,
        base: Lsn(0),
        previous_seq: SegmentSeq(0),
        previous_chain: 0,
        capacity,
        created_ms: 0,
        node_id,
        epoch: Epoch(0),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    Opening,
    Allocating,
    Writing(u64),
    Syncing,
    SyncingDirectory,
    Marking,
}

/// Makes slots in the background.
#[derive(Debug)]
pub struct Prewriter {
    log_dir: PathBuf,
    shard: ShardId,
    node_id: u128,
    segment_size: u64,
    disk_limit: Option<u64>,
    step: Step,
    in_flight: bool,
    /// Slot that is being made: index in the table, once its file is open.
    making: Option<usize>,
    zeros: BufferId,
    header: BufferId,
    retry_at_us: Option<u64>,
    /// The disk, or the limit, has no room for another slot.
    exhausted: bool,
    last_error: Option<Errno>,
    /// Slots that could not be opened for want of a descriptor.
    descriptor_failures: u64,
    skip_dir_sync: bool,
}

impl Prewriter {
    /// A pre-writer with its own buffers; `None` when the kernel has no memory.
    pub fn new(
        ring: &mut Ring,
        log_dir: &Path,
        shard: ShardId,
        node_id: u128,
        segment_size: u64,
        disk_limit: Option<u64>,
        skip_dir_sync: bool,
    ) -> Option<Self> {
        Some(Self {
            log_dir: log_dir.to_owned(),
            shard,
            node_id,
            segment_size,
            disk_limit,
            step: Step::Idle,
            in_flight: false,
            making: None,
            zeros: ring.memory.alloc(PREWRITE_CHUNK_URGENT, false)?,
            header: ring.memory.alloc(SEGMENT_HEADER_SIZE, false)?,
            retry_at_us: None,
            exhausted: false,
            last_error: None,
            descriptor_failures: 0,
            skip_dir_sync,
        })
    }

    /// No further slot can be made for now.
    pub fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Why not, when the disk said so.
    pub fn last_error(&self) -> Option<Errno> {
        self.last_error
    }

    /// How often a slot could not be opened for want of a descriptor.
    pub fn descriptor_failures(&self) -> u64 {
        self.descriptor_failures
    }

    /// When to look again.
    pub fn deadline(&self) -> Option<u64> {
        self.retry_at_us
    }

    /// The next step is a write of zeros.
    pub fn wants_write(&self) -> bool {
        !self.in_flight && matches!(self.step, Step::Writing(_))
    }

    /// An op of the pre-writer is in flight.
    pub fn is_busy(&self) -> bool {
        self.in_flight
    }

    /// Takes the next step if there is one to take. At most `write_max` bytes of zeros are written, a multiple of
    /// 4 KiB; 0 while the log wants the disk for itself (P1). `checkpoint` are the bytes of the larger checkpoint.
    pub fn step(&mut self, ring: &mut Ring, slots: &mut [Slot], write_max: usize, checkpoint: u64) {
        if self.in_flight {
            return;
        }
        if let Some(at) = self.retry_at_us {
            if ring.now().mono_us < at {
                return;
            }
            self.retry_at_us = None;
        }
        if self.step == Step::Idle && !self.begin(slots, checkpoint) {
            return;
        }
        let op = match self.step {
            Step::Idle => return,
            Step::Opening => {
                let name = slot_file(SlotId(slots.len() as u32));
                Op::Open { path: self.log_dir.join(name), create: true }
            }
            Step::SyncingDirectory => Op::SyncDir { path: self.log_dir.clone() },
            step => {
                let Some(slot) = self.making.and_then(|index| slots.get(index)) else { return };
                match step {
                    Step::Allocating => Op::Allocate { file: slot.file, len: slot.capacity },
                    Step::Writing(position) => {
                        if write_max == 0 {
                            return;
                        }
                        let len = (slot.capacity - position).min(write_max.min(PREWRITE_CHUNK_URGENT) as u64)
                            as usize;
                        let from = BufRange::new(self.zeros, 0, len);
                        Op::Write { file: slot.file, from, position, durable: false }
                    }
                    Step::Syncing => Op::SyncAll { file: slot.file },
                    _ => {
                        let facts = blank_header(self.shard, slot.id, slot.capacity, self.node_id);
                        let range = BufRange::new(self.header, 0, SEGMENT_HEADER_SIZE);
                        ring.memory.bytes_mut(range).copy_from_slice(&facts.encode());
                        Op::Write { file: slot.file, from: range, position: 0, durable: true }
                    }
                }
            }
        };
        self.in_flight = true;
        ring.submit(Token::new(room::PREWRITE, 0, 0), op);
    }

    /// Chooses what to make, if anything is wanted.
    fn begin(&mut self, slots: &[Slot], checkpoint: u64) -> bool {
        self.making = slots.iter().position(|slot| slot.state == SlotState::Making);
        if self.making.is_some() {
            self.step = Step::Allocating;
            return true;
        }
        let free = slots.iter().filter(|slot| slot.state == SlotState::Free).count();
        if free >= FREE_SLOTS_TARGET {
            self.exhausted = false;
            return false;
        }
        let next = capacity_of(SlotId(slots.len() as u32), self.segment_size);
        if self.disk_limit.is_some_and(|limit| disk_need(slots, next, checkpoint) > limit) {
            self.exhausted = true;
            return false;
        }
        self.step = Step::Opening;
        true
    }

    /// Takes the completion of the op in flight. A slot that is finished becomes free.
    pub fn complete(&mut self, ring: &mut Ring, slots: &mut Vec<Slot>, result: Result<u32, Errno>) {
        assert!(self.in_flight, "a completion that the pre-writer did not wait for");
        self.in_flight = false;
        let result = match (result, self.step) {
            (Ok(0), Step::Writing(_) | Step::Marking) => Err(Errno::IO), // no progress
            (result, _) => result,
        };
        let value = match result {
            Ok(value) => value,
            Err(error) => {
                // Nothing that was acknowledged lies here: the slot stays "making" and is begun anew.
                self.step = Step::Idle;
                self.making = None;
                self.exhausted = true;
                self.last_error = Some(error);
                self.descriptor_failures += u64::from(error.is_no_descriptor());
                self.retry_at_us = Some(ring.now().mono_us + NO_SPACE_RETRY_US);
                return;
            }
        };
        let index = match (self.step, self.making) {
            (Step::Opening, _) => {
                let id = SlotId(slots.len() as u32);
                let capacity = capacity_of(id, self.segment_size);
                let file = FileId(value);
                slots.push(Slot {
                    id,
                    file,
                    capacity,
                    edges: Vec::new(),
                    sidecar: None,
                    sidecar_bytes: 0,
                    state: SlotState::Making,
                });
                self.making = Some(slots.len() - 1);
                slots.len() - 1
            }
            (_, Some(index)) => index,
            (step, None) => panic!("step {step:?} of no slot"),
        };
        let slot = &mut slots[index];
        self.step = match self.step {
            Step::Idle => Step::Idle,
            Step::Opening => Step::Allocating,
            Step::Allocating => Step::Writing(0),
            Step::Writing(position) => {
                // A short write goes on from the last whole block.
                let position = position + u64::from(value) / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
                if position < slot.capacity { Step::Writing(position) } else { Step::Syncing }
            }
            Step::Syncing if self.skip_dir_sync => Step::Marking,
            Step::Syncing => Step::SyncingDirectory,
            Step::SyncingDirectory => Step::Marking,
            Step::Marking if (value as usize) < SEGMENT_HEADER_SIZE => Step::Marking,
            Step::Marking => {
                slot.edges = ring
                    .file_facts(slot.file)
                    .map(|facts| block_edges(&facts.extent_edges))
                    .unwrap_or_default();
                slot.state = SlotState::Free;
                self.making = None;
                self.exhausted = false;
                self.last_error = None;
                Step::Idle
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes() {
        assert_eq!(parse_name("007.seg"), Some((SlotId(7), true)));
        assert_eq!(parse_name("1234.idx"), Some((SlotId(1234), false)));
        for foreign in ["7.seg", "007.sego", "-07.seg", "007.seg.bak", "seg", "+07.seg"] {
            assert_eq!(parse_name(foreign), None, "{foreign}");
        }
        let mib: Vec<_> = (0..12).map(|slot| capacity_of(SlotId(slot), 256 << 20) >> 20).collect();
        assert_eq!(mib, [8, 8, 8, 8, 32, 32, 32, 128, 128, 128, 256, 256]);
        assert_eq!(capacity_of(SlotId(9), 4 << 20), 4 << 20);
        assert_eq!(block_edges(&[1024, 4096, 5120, 133_120]), [4096, 8192, 135_168]);
    }
}
