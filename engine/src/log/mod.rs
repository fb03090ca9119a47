//! The log of a shard: groups of frames, appended to segments, durable in order.
//!
//! ```text
//!  append -> open group -[close]-> write in flight -> written -[flush]-> durable -> window (tail cache)
//! ```
//!
//! Invariants  L1  `durable` moves only over groups that are durable, in log order, without a gap.
//!             L2  A flush counts only for writes that completed before it was submitted, on the same file.
//!             L3  No group is submitted to a segment whose header is not durable.
//!             L4  A write stays inside one extent, inside the file, and on whole blocks.
//!             L5  After a failed write or flush nothing becomes durable any more, and nothing is tried again.
//!             L6  A slot is reused only when the superblock says that its content is retired.
//! States of a segment: `blank -[activate]-> active -[seal]-> sealed -[retire]-> free`; see [`slots`].
//! Ignorant of records, partitions and connections: what a frame is for is in its header, and nobody here asks.
//! Tests: `engine/tests/sim_log.rs`.

pub mod arena;
pub mod publish;
pub mod slots;
pub mod superblock;

use crate::planted::{Bug, Planted};
use crate::ring::{BufRange, Completion, Errno, FileId, Op, Ring, Token};
use arena::Arena;
use ringmq_format::checksum::Crc32c;
use ringmq_format::frame::{FrameHeader, FrameKind};
use ringmq_format::group::{BodyCrc, GroupFields, GroupHeader, GroupKind, encode_empty};
use ringmq_format::limits::{
    BACKGROUND_PERIOD_US, BLOCK_SIZE, COLD_HOLDBACK_US, FRAME_HEADER_SIZE, FREE_SLOTS_RESERVE,
    GROUP_HEADER_SIZE, GROUP_SIZE_TARGET_MAX, GROUP_SIZE_TARGET_MIN, GROUPS_IN_FLIGHT_MAX,
    HEARTBEAT_DELAY_US, PREWRITE_CHUNK, PREWRITE_CHUNK_URGENT, SEGMENT_HEADER_SIZE, block_align,
};
use ringmq_format::segment::{FIRST_GROUP, SegmentFacts};
use ringmq_format::sidecar::IndexEntry;
use ringmq_format::superblock::{Durability, Superblock};
use ringmq_format::{Epoch, Lsn, Offset, SegmentSeq, ShardId, SlotId};
use slots::{Prewriter, Slot, SlotState};
use std::collections::VecDeque;
use std::path::PathBuf;
use superblock::SuperblockWriter;
use zerocopy::IntoBytes;

/// Rooms of the engine in completion tokens.
pub mod room {
    /// Writes of groups.
    pub const GROUP: u8 = 1;
    /// Flushes of groups.
    pub const FLUSH: u8 = 2;
    /// Headers of segments.
    pub const ACTIVATE: u8 = 3;
    /// The superblock.
    pub const SUPERBLOCK: u8 = 4;
    /// The pre-writer.
    pub const PREWRITE: u8 = 5;
    /// Sidecars.
    pub const SIDECAR: u8 = 6;
    /// Checkpoints.
    pub const CHECKPOINT: u8 = 7;
    /// Cold reads.
    pub const COLD: u8 = 8;
    /// First number that is not the engine's.
    pub const FOREIGN: u8 = 16;
}

/// What poisoned a log. Only a restart, which reads what is really on the medium, leaves this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poison {
    /// What failed.
    pub during: &'static str,
    /// How.
    pub error: Errno,
}

/// Why a frame was not taken. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Groups in flight fill the arena, or a slot is being made: again after the next completion.
    Busy,
    /// The disk budget is reached.
    DiskFull,
    /// The log is poisoned.
    Poisoned,
    /// The payload is not what its checksum says.
    PayloadCrc,
}

/// A segment that is kept, sealed or active.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its header.
    pub facts: SegmentFacts,
    /// Index in the table of slots.
    pub slot: usize,
    /// Behind its last group; while it is active: behind the last group that was closed.
    pub end: Lsn,
    /// Newest append time in it.
    pub last_time: i64,
    /// Bytes of frames in it.
    pub frame_bytes: u64,
    /// Its frames until the sidecar is durable: in log order, and by partition once the sidecar is being made.
    pub entries: Vec<IndexEntry>,
    /// The sidecar's file and its number of entries, once it is durable.
    pub sidecar: Option<(FileId, u32)>,
    /// Sealed: it will not grow.
    pub sealed: bool,
    /// Its sidecar cannot be read: the index is to be made again from the segment.
    pub index_lost: bool,
}

/// Where a group finds room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Here; a larger one may have so many bytes.
    Here(usize),
    /// Behind the edge of an extent, so many bytes ahead.
    BehindEdge(usize),
    /// In the next segment.
    Roll,
}

#[derive(Debug)]
struct OpenGroup {
    lsn: Lsn,
    arena_start: usize,
    used: usize,
    /// Bytes that the group may reach, with padding.
    cap: usize,
    frames: u32,
    body_crc: BodyCrc,
    touched: Vec<(u32, Offset)>,
}

#[derive(Debug)]
struct Flight {
    number: u32,
    lsn: Lsn,
    end: Lsn,
    file: FileId,
    range: BufRange,
    position: u64,
    /// Bytes written so far.
    written: usize,
    durable: bool,
    kind: GroupKind,
    touched: Vec<(u32, Offset)>,
}

impl Flight {
    fn is_written(&self) -> bool {
        self.written == self.range.len()
    }
}

/// What a log needs to know.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The shard's directory.
    pub directory: PathBuf,
    /// The shard.
    pub shard: ShardId,
    /// The data directory's name.
    pub node_id: u128,
    /// Bytes of the arena.
    pub arena_size: usize,
    /// Largest capacity of a slot.
    pub segment_size: u64,
    /// Bytes that all slots together may have.
    pub disk_limit: Option<u64>,
    /// Frames of one segment: their index is in RAM until the segment is sealed, so it is sealed at this number.
    pub frames_per_segment_max: usize,
    /// A bug planted by a test.
    pub planted: Planted,
}

/// Where the log goes on.
#[derive(Debug)]
pub struct LogStart {
    /// All slot files.
    pub slots: Vec<Slot>,
    /// Segments that are kept, oldest first; the last one is active unless it is sealed.
    pub segments: VecDeque<Segment>,
    /// `chain` of the next group.
    pub chain: u64,
    /// Highest segment number ever seen.
    pub seq_max: SegmentSeq,
    /// The superblock with the new epoch, durable.
    pub superblock: Superblock,
    /// Its file.
    pub superblock_file: FileId,
    /// Bytes of the larger checkpoint file.
    pub checkpoint_bytes: u64,
    /// The log was made just now: there is nothing to recover and no RECOVERY group.
    pub fresh: bool,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Groups submitted, all kinds.
    pub groups: u64,
    /// Of these: heartbeats.
    pub heartbeats: u64,
    /// Bytes submitted.
    pub bytes_written: u64,
    /// Flushes submitted.
    pub flushes: u64,
    /// Segments activated.
    pub activations: u64,
    /// Segments retired.
    pub retired: u64,
    /// Slots that could not be opened for want of a descriptor.
    pub descriptor_failures: u64,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    options: LogOptions,
    durability: Durability,
    epoch: Epoch,
    slots: Vec<Slot>,
    segments: VecDeque<Segment>,
    seq_max: SegmentSeq,
    prewriter: Prewriter,
    superblock: SuperblockWriter,
    arena: Arena,
    chain: u64,
    open: Option<OpenGroup>,
    flights: VecDeque<Flight>,
    next_flight: u32,
    /// Flush in flight: covers flights up to this number, on this file.
    flush: Option<(u32, FileId)>,
    /// Header of the active segment: written bytes, `None` once durable (L3).
    activating: Option<usize>,
    header_buffer: crate::ring::BufferId,
    /// A RECOVERY group must come before everything else.
    recovery_due: bool,
    /// No heartbeats: a clean stop has begun.
    stopping: bool,
    durable: Lsn,
    /// Position in the active segment of the next group; `None` without an active segment.
    position: Option<u64>,
    target: usize,
    last_kind: GroupKind,
    last_durable_us: u64,
    /// When the background may write though groups are in flight.
    background_at_us: u64,
    /// Bytes of the log at which the pre-writer's next piece is due.
    prewrite_at: u64,
    poisoned: Option<Poison>,
    stats: LogStats,
    /// Slots whose segments wait for the superblock (L6), with the log start that frees them.
    retiring: Vec<(usize, Lsn)>,
    /// Bytes of the larger checkpoint file: part of the disk budget.
    checkpoint_bytes: u64,
    /// Partitions whose durable end has moved since `take_visible`.
    visible: Vec<(u32, Offset)>,
}

impl Log {
    /// A log that goes on where recovery has ended; `None` when the kernel has no memory.
    pub fn new(ring: &mut Ring, options: LogOptions, start: LogStart) -> Option<Self> {
        let arena = Arena::new(&mut ring.memory, options.arena_size)?;
        let log_dir = options.directory.join("log");
        let prewriter = Prewriter::new(
            ring,
            &log_dir,
            options.shard,
            options.node_id,
            options.segment_size,
            options.disk_limit,
            options.planted.has(Bug::DirectoryNotSynced),
        )?;
        let active = start.segments.back().filter(|segment| !segment.sealed);
        let position = active.map(|segment| segment.facts.position(segment.end));
        let durable = start.segments.back().map_or(Lsn(0), |segment| segment.end);
        Some(Self {
            durability: start.superblock.durability,
            epoch: start.superblock.epoch,
            header_buffer: ring.memory.alloc(SEGMENT_HEADER_SIZE, false)?,
            superblock: SuperblockWriter::new(ring, start.superblock_file, start.superblock)?,
            slots: start.slots,
            segments: start.segments,
            seq_max: start.seq_max,
            prewriter,
            arena,
            chain: start.chain,
            open: None,
            flights: VecDeque::new(),
            next_flight: 0,
            flush: None,
            activating: None,
            recovery_due: !start.fresh,
            stopping: false,
            durable,
            position,
            target: GROUP_SIZE_TARGET_MIN,
            last_kind: GroupKind::Heartbeat,
            last_durable_us: 0,
            background_at_us: 0,
            prewrite_at: 0,
            poisoned: None,
            stats: LogStats::default(),
            retiring: Vec::new(),
            checkpoint_bytes: start.checkpoint_bytes,
            visible: Vec::new(),
            options,
        })
    }

    /// Everything below is on the medium.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Behind the last frame that was taken.
    pub fn end(&self) -> Lsn {
        match (&self.open, self.segments.back()) {
            (Some(open), _) if open.frames > 0 => open.lsn.plus(open.used as u64),
            (_, Some(segment)) => segment.end,
            (_, None) => Lsn(0),
        }
    }

    /// Why nothing becomes durable any more.
    pub fn poisoned(&self) -> Option<Poison> {
        self.poisoned
    }

    /// The RECOVERY group is durable: the log may be served. Where the disk has no room for it the log may be
    /// read, for what was found is durable; nothing is taken before there is room.
    pub fn is_ready(&self) -> bool {
        if self.recovery_due {
            return self.waits_for_disk();
        }
        !self.flights.iter().any(|flight| flight.kind == GroupKind::Recovery)
    }

    /// The RECOVERY group needs a slot, and there will be none for now.
    fn waits_for_disk(&self) -> bool {
        !self.has_room_for_block() && self.free_slots() == 0 && self.prewriter.is_exhausted()
    }

    /// Counts since the start.
    pub fn stats(&self) -> LogStats {
        LogStats { descriptor_failures: self.prewriter.descriptor_failures(), ..self.stats }
    }

    /// This life of the shard.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The durability call.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// The tail cache.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Where the bytes of a frame are, if its group is in the window or still open.
    pub fn find(&self, lsn: Lsn, len: usize) -> Option<BufRange> {
        let open = self.open.as_ref().filter(|open| open.lsn <= lsn);
        let within = |open: &&OpenGroup| lsn.plus(len as u64) <= open.lsn.plus(open.used as u64);
        match open.filter(within) {
            Some(open) => {
                let start = open.arena_start + lsn.since(open.lsn) as usize;
                Some(BufRange::new(self.arena.buffer(), start, len))
            }
            None => self.arena.find(lsn, len),
        }
    }

    /// Segments that are kept, oldest first.
    pub fn segments(&self) -> &VecDeque<Segment> {
        &self.segments
    }

    /// A segment by its number.
    pub fn segment(&self, seq: SegmentSeq) -> Option<&Segment> {
        let first = self.segments.front()?.facts.seq;
        // Numbers may have gaps (a start that was cut short), so the guess is only a guess.
        let guess = seq.0.checked_sub(first.0)? as usize;
        match self.segments.get(guess) {
            Some(segment) if segment.facts.seq == seq => Some(segment),
            _ => self.segments.iter().find(|segment| segment.facts.seq == seq),
        }
    }

    /// The segment that an LSN lies in.
    pub fn segment_at(&self, lsn: Lsn) -> Option<&Segment> {
        let index = self.segments.partition_point(|segment| segment.facts.base <= lsn).checked_sub(1)?;
        self.segments.get(index)
    }

    /// A segment by its number, to change its index.
    pub fn segment_mut(&mut self, seq: SegmentSeq) -> Option<&mut Segment> {
        self.segments.iter_mut().find(|segment| segment.facts.seq == seq)
    }

    /// Remembers the file of a slot's sidecar: it stays open, whatever segment lives in the slot.
    pub fn set_sidecar_file(&mut self, slot: usize, file: FileId) {
        self.slots[slot].sidecar = Some(file);
    }

    /// A sidecar of so many bytes is about to be written. The file never shrinks.
    pub fn note_sidecar(&mut self, slot: usize, bytes: u64) {
        let slot = &mut self.slots[slot];
        slot.sidecar_bytes = slot.sidecar_bytes.max(bytes);
    }

    /// A checkpoint of so many bytes is about to be written. The file never shrinks.
    pub fn note_checkpoint(&mut self, bytes: u64) {
        self.checkpoint_bytes = self.checkpoint_bytes.max(bytes);
    }

    /// All slot files.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// `chain` of the next group.
    pub fn chain(&self) -> u64 {
        self.chain
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        self.superblock.durable()
    }

    /// Asks for a change of the superblock.
    pub fn update_superblock(&mut self, change: impl FnOnce(&mut Superblock)) {
        self.superblock.update(change);
    }

    /// The superblock is as it was asked to be.
    pub fn superblock_settled(&self) -> bool {
        self.superblock.is_settled()
    }

    /// Free slots.
    pub fn free_slots(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == SlotState::Free).count()
    }

    /// The disk budget is reached: bodies are refused.
    pub fn is_disk_full(&self) -> bool {
        self.prewriter.is_exhausted() && self.free_slots() <= FREE_SLOTS_RESERVE
    }

    /// Why no further slot could be made, when the disk said so.
    pub fn disk_error(&self) -> Option<Errno> {
        self.prewriter.last_error()
    }

    /// Nothing is in flight and nothing waits to be written.
    pub fn is_quiet(&self) -> bool {
        self.flights.is_empty()
            && self.open.as_ref().is_none_or(|open| open.frames == 0)
            && self.activating.is_none()
            && self.flush.is_none()
    }

    /// Groups are in flight.
    pub fn has_flights(&self) -> bool {
        !self.flights.is_empty()
    }

    /// May the background write now? While groups are in flight it is kept back, but for one write a period: under
    /// load that never ends there have to be checkpoints and slots too.
    pub fn take_background_write(&mut self, ring: &Ring) -> bool {
        let now = ring.now().mono_us;
        let may = self.flights.is_empty() || now >= self.background_at_us;
        if may {
            self.background_at_us = now + BACKGROUND_PERIOD_US;
        }
        may
    }

    /// Groups are in flight, or were a moment ago: readers of the disk hold back.
    pub fn is_busy(&self, now_us: u64) -> bool {
        !self.flights.is_empty() || now_us < self.last_durable_us + COLD_HOLDBACK_US
    }

    /// When `turn` wants to be called though nothing has completed.
    pub fn deadline(&self) -> Option<u64> {
        if self.poisoned.is_some() {
            return None;
        }
        self.heartbeat_at().into_iter().chain(self.prewriter.deadline()).min()
    }

    /// Moves the partitions whose durable end has moved, with that end, to `out`.
    pub fn take_visible(&mut self, out: &mut Vec<(u32, Offset)>) {
        out.append(&mut self.visible);
    }

    /// Appends a frame under a header that the shard has stamped and sealed. `touched` is the partition's index in
    /// the shard's table with its new end. Answers the frame's LSN; it is durable when `durable()` has passed its
    /// end.
    pub fn append(
        &mut self,
        ring: &mut Ring,
        header: &FrameHeader,
        frame: &[u8],
        touched: Option<(u32, Offset)>,
    ) -> Result<Lsn, Refused> {
        assert_eq!(frame.len(), header.len(), "the header is not this frame's");
        if self.poisoned.is_some() {
            return Err(Refused::Poisoned);
        }
        self.make_room(ring, frame.len())?;
        let buffer = self.arena.buffer();
        let Some(open) = &mut self.open else { return Err(Refused::Busy) };
        let target = BufRange::new(buffer, open.arena_start + open.used, frame.len());
        copy_checked(ring.memory.bytes_mut(target), header, frame)?;
        let lsn = open.lsn.plus(open.used as u64);
        open.used += frame.len();
        open.frames += 1;
        open.body_crc.add(header);
        if let Some((partition, end)) = touched {
            match open.touched.last_mut() {
                Some(last) if last.0 == partition => last.1 = end,
                _ => open.touched.push((partition, end)),
            }
            if self.options.planted.has(Bug::VisibleBeforeDurable) {
                self.visible.push((partition, end));
            }
        }
        let position = open.lsn.plus((open.used - frame.len()) as u64);
        if let Some(segment) = self.segments.back_mut() {
            segment.last_time = segment.last_time.max(header.timestamp.get());
            segment.frame_bytes += frame.len() as u64;
            let planted = self.options.planted.has(Bug::HalvesIndexed) && header.partition.get() != 0;
            if has_offsets(header) || planted {
                segment.entries.push(index_entry(header, segment.facts.position(position)));
            }
        }
        Ok(lsn)
    }

    /// Makes sure that the open group takes frames of `len` bytes together, so that appending them cannot fail and they
    /// are one write. Answers the LSN of the first of them.
    pub fn reserve(&mut self, ring: &mut Ring, len: usize) -> Result<Lsn, Refused> {
        if self.poisoned.is_some() {
            return Err(Refused::Poisoned);
        }
        self.make_room(ring, len)?;
        self.open.as_ref().map(|open| open.lsn.plus(open.used as u64)).ok_or(Refused::Busy)
    }

    /// Closes the open group where it stands: a bug that tests plant.
    pub fn split(&mut self, ring: &mut Ring) {
        let has_frames = self.open.as_ref().is_some_and(|open| open.frames > 0);
        if has_frames && self.flights.len() < GROUPS_IN_FLIGHT_MAX && !self.awaits_header() {
            self.close_group(ring);
        }
    }

    /// Makes sure that the open group takes `frame_len` bytes more.
    #[inline(always)]
    fn make_room(&mut self, ring: &mut Ring, frame_len: usize) -> Result<(), Refused> {
        if self.recovery_due {
            return Err(if self.waits_for_disk() { Refused::DiskFull } else { Refused::Busy });
        }
        loop {
            if let Some(open) = &self.open {
                if block_align(open.used + frame_len) <= open.cap {
                    return Ok(());
                }
                if open.frames == 0 {
                    self.open = None;
                    continue;
                }
                let saturated = self.flights.len() >= GROUPS_IN_FLIGHT_MAX;
                if saturated || self.awaits_header() {
                    return Err(Refused::Busy);
                }
                self.target = (self.target * 2).min(GROUP_SIZE_TARGET_MAX);
                self.close_group(ring);
                continue;
            }
            let need = block_align(GROUP_HEADER_SIZE + frame_len);
            match self.room_for(need) {
                Room::Here(room) => return self.open_group(need.max(self.target.min(room))),
                room => self.leave(ring, room)?,
            }
        }
    }

    /// Where a group of `need` bytes finds room.
    fn room_for(&self, need: usize) -> Room {
        let (Some(position), Some(segment)) = (self.position, self.segments.back()) else {
            return Room::Roll;
        };
        let end = segment.facts.capacity - BLOCK_SIZE as u64; // one block is kept for the seal
        let need = need as u64;
        if position + need > end || segment.entries.len() >= self.options.frames_per_segment_max {
            return Room::Roll;
        }
        let edges = &self.slots[segment.slot].edges;
        let mut ahead = edges.iter().copied().filter(|edge| *edge > position && *edge < end);
        let Some(edge) = ahead.next() else { return Room::Here((end - position) as usize) };
        if position + need <= edge {
            Room::Here((edge - position) as usize)
        } else if edge + need <= ahead.next().unwrap_or(end) {
            Room::BehindEdge((edge - position) as usize)
        } else {
            // Extents as small as this do not hold it: a write that a kernel worker does is better than none.
            Room::Here(need as usize)
        }
    }

    fn has_room_for_block(&self) -> bool {
        matches!(self.room_for(BLOCK_SIZE), Room::Here(_))
    }

    /// Moves on to a place with more room: behind the edge of an extent, or in the next segment.
    fn leave(&mut self, ring: &mut Ring, room: Room) -> Result<(), Refused> {
        if self.flights.len() >= GROUPS_IN_FLIGHT_MAX || self.activating.is_some() {
            return Err(Refused::Busy);
        }
        match room {
            Room::BehindEdge(len) => self.submit_empty(ring, GroupKind::Pad, len),
            Room::Here(_) | Room::Roll => self.roll(ring),
        }
    }

    /// Seals the active segment and activates the next slot.
    fn roll(&mut self, ring: &mut Ring) -> Result<(), Refused> {
        assert!(self.open.is_none(), "rolling with an open group");
        let Some(slot) = self.slots.iter().position(|slot| slot.state == SlotState::Free) else {
            return Err(if self.prewriter.is_exhausted() { Refused::DiskFull } else { Refused::Busy });
        };
        if self.position.is_some() {
            self.submit_empty(ring, GroupKind::Seal, BLOCK_SIZE)?;
            self.position = None;
            if let Some(segment) = self.segments.back_mut() {
                segment.sealed = true;
            }
        }
        let previous = self.segments.back();
        let incarnation = if self.options.planted.has(Bug::IncarnationReused) { 1 } else { ring.random() };
        self.seq_max = SegmentSeq(self.seq_max.0 + 1);
        let facts = SegmentFacts {
            shard: self.options.shard,
            slot: self.slots[slot].id,
            seq: self.seq_max,
            incarnation,
            base: previous.map_or(self.superblock.durable().log_start, |segment| segment.facts.end()),
            previous_seq: previous.map_or(SegmentSeq(0), |segment| segment.facts.seq),
            previous_chain: self.chain,
            capacity: self.slots[slot].capacity,
            created_ms: ring.now().wall_ms,
            node_id: self.options.node_id,
            epoch: self.epoch,
        };
        self.slots[slot].state = SlotState::InUse;
        self.segments.push_back(Segment {
            facts,
            slot,
            end: facts.base.plus(FIRST_GROUP),
            last_time: 0,
            frame_bytes: 0,
            entries: Vec::new(),
            sidecar: None,
            sealed: false,
            index_lost: false,
        });
        self.position = Some(FIRST_GROUP);
        self.stats.activations += 1;
        let range = BufRange::new(self.header_buffer, 0, SEGMENT_HEADER_SIZE);
        ring.memory.bytes_mut(range).copy_from_slice(&facts.encode());
        self.activating = Some(0);
        self.submit_header(ring, 0);
        Ok(())
    }

    fn submit_header(&self, ring: &mut Ring, written: usize) {
        let Some(segment) = self.segments.back() else { return };
        let from = BufRange::new(self.header_buffer, written, SEGMENT_HEADER_SIZE - written);
        let file = self.slots[segment.slot].file;
        let op = Op::Write { file, from, position: written as u64, durable: true };
        ring.submit(Token::new(room::ACTIVATE, segment.facts.seq.0 as u32, 0), op);
    }

    fn open_group(&mut self, cap: usize) -> Result<(), Refused> {
        let cap = block_align(cap);
        let arena_start = self.arena.reserve(cap, self.durable).ok_or(Refused::Busy)?;
        let Some(segment) = self.segments.back() else { return Err(Refused::Busy) };
        self.open = Some(OpenGroup {
            lsn: segment.end,
            arena_start,
            used: GROUP_HEADER_SIZE,
            cap,
            frames: 0,
            body_crc: BodyCrc::new(segment.facts.incarnation),
            touched: Vec::new(),
        });
        Ok(())
    }

    /// Writes the open group.
    fn close_group(&mut self, ring: &mut Ring) {
        let Some(open) = self.open.take() else { return };
        assert!(open.frames > 0, "an open group has frames");
        let total = block_align(open.used);
        let buffer = self.arena.buffer();
        let fields = self.group_fields(open.lsn, open.used, total, GroupKind::Data);
        let fields = GroupFields { frames: open.frames, body_crc: open.body_crc.finish(), ..fields };
        let header = GroupHeader::new(&fields, self.incarnation());
        let bytes = ring.memory.bytes_mut(BufRange::new(buffer, open.arena_start, total));
        bytes[..GROUP_HEADER_SIZE].copy_from_slice(header.as_bytes());
        bytes[open.used..].fill(0);
        self.submit(ring, &header, open.arena_start, open.touched);
    }

    /// Groups wait for the header of their segment (L3).
    fn awaits_header(&self) -> bool {
        self.activating.is_some() && !self.options.planted.has(Bug::HeaderNotAwaited)
    }

    fn incarnation(&self) -> u64 {
        self.segments.back().map_or(0, |segment| segment.facts.incarnation)
    }

    fn group_fields(&self, lsn: Lsn, used: usize, total: usize, kind: GroupKind) -> GroupFields {
        GroupFields {
            segment_seq: self.segments.back().map_or(SegmentSeq(0), |segment| segment.facts.seq),
            lsn,
            durable_lsn: self.durable.min(lsn),
            used,
            total,
            frames: 0,
            body_crc: 0,
            chain: self.chain,
            epoch: self.epoch,
            kind,
        }
    }

    /// Writes a group without frames.
    fn submit_empty(&mut self, ring: &mut Ring, kind: GroupKind, total: usize) -> Result<(), Refused> {
        // An open group that has taken nothing (its first frame was refused) gives up its place.
        assert!(self.open.as_ref().is_none_or(|open| open.frames == 0), "an open group with frames");
        self.open = None;
        let start = self.arena.reserve(total, self.durable).ok_or(Refused::Busy)?;
        let lsn = self.segments.back().map_or(Lsn(0), |segment| segment.end);
        let fields = self.group_fields(lsn, GROUP_HEADER_SIZE, total, kind);
        let range = BufRange::new(self.arena.buffer(), start, total);
        let header = encode_empty(&fields, self.incarnation(), ring.memory.bytes_mut(range));
        self.submit(ring, &header, start, Vec::new());
        Ok(())
    }

    fn submit(
        &mut self,
        ring: &mut Ring,
        header: &GroupHeader,
        arena_start: usize,
        touched: Vec<(u32, Offset)>,
    ) {
        let total = header.total();
        let lsn = Lsn(header.lsn.get());
        assert!(!self.awaits_header(), "group {lsn} before its segment's header is durable"); // L3
        let Some(segment) = self.segments.back_mut() else { panic!("group {lsn} without a segment") };
        let position = segment.facts.position(lsn);
        assert_eq!(segment.end, lsn, "groups are contiguous");
        assert!(position + total as u64 <= segment.facts.capacity, "group {lsn} ends behind its segment"); // L4
        segment.end = lsn.plus(total as u64);
        let file = self.slots[segment.slot].file;
        self.position = Some(position + total as u64);
        self.chain = header.next_chain();
        self.last_kind = header.kind();
        self.arena.push(lsn, arena_start, header.used(), total);
        self.stats.groups += 1;
        self.stats.bytes_written += total as u64;
        self.stats.heartbeats += u64::from(header.kind() == GroupKind::Heartbeat);
        let flight = Flight {
            number: self.next_flight,
            lsn,
            end: lsn.plus(total as u64),
            file,
            range: BufRange::new(self.arena.buffer(), arena_start, total),
            position,
            written: 0,
            durable: false,
            kind: header.kind(),
            touched,
        };
        self.next_flight = self.next_flight.wrapping_add(1);
        self.submit_write(ring, &flight);
        self.flights.push_back(flight);
    }

    fn submit_write(&self, ring: &mut Ring, flight: &Flight) {
        let op = Op::Write {
            file: flight.file,
            from: flight.range.skip(flight.written),
            position: flight.position + flight.written as u64,
            durable: self.durability == Durability::Dsync,
        };
        ring.submit(Token::new(room::GROUP, 0, flight.number), op);
    }

    /// Takes a completion of one of the log's rooms.
    pub fn complete(&mut self, ring: &mut Ring, completion: &Completion) {
        let Completion { token, result } = *completion;
        let outcome = match token.room {
            room::GROUP => self.complete_write(ring, token.slot, result),
            room::FLUSH => self.complete_flush(ring, result),
            room::ACTIVATE => self.complete_header(ring, result),
            room::SUPERBLOCK => self
                .superblock
                .complete(ring, token, result)
                .map_err(|error| Poison { during: "writing the superblock", error }),
            room::PREWRITE => {
                self.prewriter.complete(ring, &mut self.slots, result);
                Ok(())
            }
            other => panic!("completion of room {other} at the log"),
        };
        if let Err(poison) = outcome {
            // L5: the first reason is the one that is told.
            self.poisoned.get_or_insert(poison);
        }
    }

    fn complete_write(
        &mut self,
        ring: &mut Ring,
        number: u32,
        result: Result<u32, Errno>,
    ) -> Result<(), Poison> {
        let first = self.flights.front().map_or(0, |flight| flight.number);
        let index = number.wrapping_sub(first) as usize;
        let value = result.map_err(|error| Poison { during: "writing a group", error })? as usize;
        let short_is_whole = self.options.planted.has(Bug::ShortWriteIgnored);
        let Some(flight) = self.flights.get_mut(index) else {
            panic!("write {number} is not in flight");
        };
        flight.written += if short_is_whole {
            flight.range.len()
        } else if self.options.planted.has(Bug::ShortWriteUnaligned) {
            value
        } else {
            value / BLOCK_SIZE * BLOCK_SIZE
        };
        flight.written = flight.written.min(flight.range.len());
        if !flight.is_written() {
            if value == 0 {
                return Err(Poison { during: "writing a group: no progress", error: Errno::IO });
            }
            // Goes on from the last whole block: a block that was written in part gets the same bytes again.
            let flight = &self.flights[index];
            self.submit_write(ring, flight);
            return Ok(());
        }
        let durable_now = self.durability == Durability::Dsync || self.options.planted.has(Bug::FlushLeftOut);
        self.flights[index].durable = durable_now;
        self.advance(ring);
        Ok(())
    }

    fn complete_flush(&mut self, ring: &mut Ring, result: Result<u32, Errno>) -> Result<(), Poison> {
        let Some((covers, file)) = self.flush.take() else { panic!("a flush that was not in flight") };
        if let Err(error) = result
            && !self.options.planted.has(Bug::FlushErrorIgnored)
        {
            if self.options.planted.has(Bug::FlushRetried) {
                self.flush = Some((covers, file));
                ring.submit(Token::new(room::FLUSH, 0, 0), Op::SyncData { file });
                return Ok(());
            }
            return Err(Poison { during: "flushing a group", error });
        }
        let covers_later = self.options.planted.has(Bug::FlushCoversLaterWrites);
        for flight in &mut self.flights {
            let covered = flight.number.wrapping_sub(covers) as i32 <= 0; // L2
            if flight.file == file && flight.is_written() && (covered || covers_later) {
                flight.durable = true;
            }
        }
        self.advance(ring);
        Ok(())
    }

    fn complete_header(&mut self, ring: &mut Ring, result: Result<u32, Errno>) -> Result<(), Poison> {
        let value = result.map_err(|error| Poison { during: "writing a segment header", error })?;
        let Some(written) = self.activating else { return Ok(()) };
        if value == 0 {
            return Err(Poison { during: "writing a segment header: no progress", error: Errno::IO });
        }
        let written = written + value as usize / BLOCK_SIZE * BLOCK_SIZE;
        if written < SEGMENT_HEADER_SIZE {
            self.activating = Some(written);
            self.submit_header(ring, written);
            return Ok(());
        }
        self.activating = None;
        // Only now: recovery takes a segment that the superblock names and that has no header for damage.
        if let Some(facts) = self.segments.back().map(|segment| segment.facts) {
            self.superblock.update(|superblock| {
                superblock.active_seq = facts.seq;
                superblock.active_base = facts.base;
            });
        }
        Ok(())
    }

    /// Moves `durable` over the groups at the front that are durable (L1).
    fn advance(&mut self, ring: &mut Ring) {
        if self.poisoned.is_some() {
            return; // L5
        }
        while let Some(flight) = self.flights.pop_front_if(|flight| flight.durable) {
            assert!(flight.lsn >= self.durable, "{} is behind what is durable", flight.lsn);
            self.durable = flight.end;
            self.visible.extend_from_slice(&flight.touched);
            self.last_durable_us = ring.now().mono_us;
        }
    }

    /// The end of a tick: closes the open group if the rule says so, flushes, and lets the background go on.
    pub fn turn(&mut self, ring: &mut Ring) {
        if self.poisoned.is_some() {
            return;
        }
        self.turn_recovery(ring);
        self.turn_group(ring);
        self.turn_flush(ring);
        self.turn_heartbeat(ring);
        self.free_retired();
        self.turn_superblock(ring);
        if self.prewriter.wants_write() {
            let write_max = if self.free_slots() == 0 {
                PREWRITE_CHUNK_URGENT
            } else if self.prewrite_is_due() {
                self.prewrite_at = self.stats.bytes_written + PREWRITE_CHUNK_URGENT as u64;
                PREWRITE_CHUNK_URGENT
            } else if self.take_background_write(ring) {
                PREWRITE_CHUNK
            } else {
                0
            };
            self.prewriter.step(ring, &mut self.slots, write_max, self.checkpoint_bytes);
        } else {
            self.prewriter.step(ring, &mut self.slots, 0, self.checkpoint_bytes);
        }
    }

    /// With the last free slot the pre-writer keeps step with the log, byte for byte: a little later for every commit
    /// is better than a stop of the log until a whole slot is written.
    fn prewrite_is_due(&self) -> bool {
        self.free_slots() <= 1 && self.stats.bytes_written >= self.prewrite_at
    }

    /// Begins to write what the superblock was asked to say.
    pub fn turn_superblock(&mut self, ring: &mut Ring) {
        self.superblock.step(ring);
    }

    /// No timer: with nothing in flight a group goes at once; otherwise it grows until something completes or the
    /// target is reached.
    fn turn_group(&mut self, ring: &mut Ring) {
        let Some(open) = &self.open else { return };
        if open.frames == 0 || self.awaits_header() {
            return;
        }
        let idle = self.flights.is_empty();
        if idle || (open.used >= self.target && self.flights.len() < GROUPS_IN_FLIGHT_MAX) {
            if idle && open.used < self.target / 4 {
                self.target = (self.target / 2).max(GROUP_SIZE_TARGET_MIN);
            }
            self.close_group(ring);
        }
    }

    /// At most one flush, for the writes at the front that have completed and lie in one file.
    fn turn_flush(&mut self, ring: &mut Ring) {
        if self.durability == Durability::Dsync || self.flush.is_some() {
            return;
        }
        let Some(first) = self.flights.front().filter(|flight| flight.is_written()) else { return };
        let (file, mut covers) = (first.file, first.number);
        for flight in self.flights.iter().take_while(|flight| flight.is_written() && flight.file == file) {
            covers = flight.number;
        }
        self.flush = Some((covers, file));
        self.stats.flushes += 1;
        ring.submit(Token::new(room::FLUSH, 0, 0), Op::SyncData { file });
    }

    fn turn_recovery(&mut self, ring: &mut Ring) {
        if !self.recovery_due || self.awaits_header() {
            return;
        }
        if !self.has_room_for_block() && self.roll(ring).is_err() {
            return; // no slot yet
        }
        if !self.awaits_header() && self.submit_empty(ring, GroupKind::Recovery, BLOCK_SIZE).is_ok() {
            self.recovery_due = false;
        }
    }

    /// When the next heartbeat is due, if one is.
    fn heartbeat_at(&self) -> Option<u64> {
        if self.poisoned.is_some() || !self.is_quiet() || self.position.is_none() || self.recovery_due {
            return None;
        }
        if self.stopping {
            // The superblock will be the witness; only a segment without any group still needs one.
            return (self.durable < self.end()).then_some(0);
        }
        (self.last_kind != GroupKind::Heartbeat).then_some(self.last_durable_us + HEARTBEAT_DELAY_US)
    }

    /// The last group has no witness of its durability until a later one says so.
    fn turn_heartbeat(&mut self, ring: &mut Ring) {
        if self.heartbeat_at().is_none_or(|at| ring.now().mono_us < at) {
            return;
        }
        if self.has_room_for_block() {
            let _ = self.submit_empty(ring, GroupKind::Heartbeat, BLOCK_SIZE);
        } else {
            // Where no block is left the superblock is the witness.
            let durable = self.durable;
            self.superblock.update(|superblock| superblock.durable_lsn = superblock.durable_lsn.max(durable));
            self.last_kind = GroupKind::Heartbeat;
        }
    }

    /// No heartbeats any more: the end of the log is about to be written down.
    pub fn begin_stop(&mut self) {
        self.stopping = true;
    }

    /// Gives up the oldest segment. Its slot is free when the superblock says so (L6).
    pub fn retire_oldest(&mut self) -> Option<Segment> {
        if self.segments.len() < 2 || self.segments.front().is_none_or(|segment| !segment.sealed) {
            return None;
        }
        let segment = self.segments.pop_front()?;
        assert!(segment.end <= self.durable, "segment {} is not durable", segment.facts.seq);
        let (start, seq) = self
            .segments
            .front()
            .map_or((segment.facts.end(), SegmentSeq(0)), |next| (next.facts.base, next.facts.seq));
        let durable = self.durable;
        self.superblock.update(|superblock| {
            superblock.log_start = start;
            superblock.log_start_seq = seq;
            superblock.durable_lsn = superblock.durable_lsn.max(durable);
        });
        self.slots[segment.slot].state = SlotState::Retiring;
        self.retiring.push((segment.slot, start));
        self.stats.retired += 1;
        Some(segment)
    }

    fn free_retired(&mut self) {
        let start = self.superblock.durable().log_start;
        let at_once = self.options.planted.has(Bug::RetirementNotAwaited);
        let slots = &mut self.slots;
        self.retiring.retain(|(slot, frees)| {
            let keep = *frees > start && !at_once;
            if !keep {
                slots[*slot].state = SlotState::Free;
            }
            keep
        });
    }

    /// Bytes of all slot files.
    pub fn disk_bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.capacity).sum()
    }

    /// Path of a slot's sidecar.
    pub fn sidecar_path(&self, slot: SlotId) -> PathBuf {
        self.options.directory.join("log").join(slots::sidecar_file(slot))
    }

    /// The options it was made with.
    pub fn options(&self) -> &LogOptions {
        &self.options
    }
}

/// Does this frame belong into the index of its partition?
#[inline]
pub fn has_offsets(header: &FrameHeader) -> bool {
    header.kind == FrameKind::Data as u8 || header.kind == FrameKind::Bind as u8
}

/// The index entry of a frame at `position` of its segment.
pub fn index_entry(header: &FrameHeader, position: u64) -> IndexEntry {
    IndexEntry {
        partition: header.partition,
        len: header.len,
        first_offset: header.base_offset,
        timestamp: header.timestamp,
        position: (position as u32).into(),
        count: header.count,
    }
}

/// Copies a frame to its place in the arena, a block at a time and each block checksummed while it is in the
/// nearest cache.
fn copy_checked(target: &mut [u8], header: &FrameHeader, frame: &[u8]) -> Result<(), Refused> {
    let mut crc = Crc32c::new();
    let body = &frame[FRAME_HEADER_SIZE..];
    for (to, from) in target[FRAME_HEADER_SIZE..].chunks_mut(BLOCK_SIZE).zip(body.chunks(BLOCK_SIZE)) {
        to.copy_from_slice(from);
        crc.update(to);
    }
    if crc.finish() != header.payload_crc.get() {
        return Err(Refused::PayloadCrc);
    }
    target[..FRAME_HEADER_SIZE].copy_from_slice(header.as_bytes());
    Ok(())
}
