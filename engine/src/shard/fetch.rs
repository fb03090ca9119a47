//! Reading a partition: from the arena where the frame is still there, from cold pages where it is not.

use super::Shard;
use crate::log::Segment;
use crate::partition::{FrameRef, Place};
use crate::planted::Bug;
use crate::reader::{Look, PageKey};
use crate::ring::{Errno, FileId, Ring};
use ringmq_format::frame::{Frame, FrameHeader, FrameKind};
use ringmq_format::late::Bind;
use ringmq_format::limits::{BLOCK_SIZE, COLD_PAGE_SIZE};
use ringmq_format::sidecar::{BLOCK_ENTRIES, IndexEntry, parse_block};
use ringmq_format::{Offset, PartitionId, SegmentSeq};

/// Where a frame says its kind.
const KIND_AT: usize = std::mem::offset_of!(FrameHeader, kind);
/// Pages read ahead of a reader that goes forward.
const READ_AHEAD: u32 = 8;

/// What a reader is told about a frame, besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Offset of the first record that is delivered.
    pub base_offset: Offset,
    /// Since when consumers may see it, Unix milliseconds.
    pub visible_time: i64,
    /// Index of that record in the frame.
    pub first_record: u32,
    /// Records.
    pub count: u32,
}

/// How a fetch ended. Frames may have been delivered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The byte limit is reached; go on at this offset.
    Limit(Offset),
    /// Everything that is visible was delivered; go on at this offset when more is.
    AtEnd(Offset),
    /// What comes next is being read from the disk; again after `take_cold_progress`.
    Cold(Offset),
    /// The offset is below `start` or above `visible`.
    OutOfRange {
        /// First offset that is kept.
        start: Offset,
        /// Consumers may read below it.
        visible: Offset,
    },
    /// These offsets cannot be read; what lies behind them can.
    Damaged {
        /// First offset.
        from: Offset,
        /// Offset behind the last.
        to: Offset,
    },
    /// No such partition on this shard.
    UnknownPartition,
}

/// The time of no record.
pub const NO_TIME: i64 = -1;

/// Answer to a look-up by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeLookup {
    /// First offset that was appended at or after the time, and its append time; the end and
    /// [`NO_TIME`] if there is none.
    At(Offset, i64),
    /// An index is being read from the disk; again after `take_cold_progress`.
    Cold,
    /// No such partition on this shard.
    UnknownPartition,
    /// The index is damaged.
    Damaged,
}

/// What came of one frame.
pub(super) enum Step {
    Taken(Offset),
    Cold,
    Damaged(Offset),
}

/// What came of looking for the frame that holds an offset.
pub(super) enum Found {
    Frame(FrameRef),
    Cold,
    /// Up to this offset.
    Damaged(Offset),
}

enum Index<T> {
    Found(T),
    /// No such entry.
    Nothing,
    Coming,
    Damaged,
}

/// Bytes of a segment, where they are in its file.
#[derive(Clone, Copy)]
pub(super) struct FilePlace {
    pub(super) file: FileId,
    pub(super) segment: SegmentSeq,
    pub(super) position: u64,
    pub(super) len: usize,
}

impl Shard {
    /// Delivers frames from the one that holds `offset` on, at least one if any is at hand, until `max_bytes`.
    ///
    /// The first frame may begin below `offset`: frames are delivered whole.
    pub fn fetch(
        &mut self,
        ring: &Ring,
        id: PartitionId,
        offset: Offset,
        max_bytes: usize,
        sink: &mut dyn FnMut(&Delivered, &[u8]),
    ) -> Fetched {
        let Some(partition) = self.partition(id) else { return Fetched::UnknownPartition };
        let (start, visible) = (partition.start(), partition.visible());
        if offset < start || offset > visible {
            return Fetched::OutOfRange { start, visible };
        }
        let mut next = offset;
        let mut taken = 0;
        while next < visible {
            let mut frame_len = 0;
            let mut counted = |delivered: &Delivered, bytes: &[u8]| {
                frame_len = bytes.len();
                sink(delivered, bytes);
            };
            if taken > 0 && taken >= max_bytes {
                return Fetched::Limit(next);
            }
            match self.fetch_one(ring, id, next, max_bytes.saturating_sub(taken), taken == 0, &mut counted) {
                Some(Step::Taken(end)) => next = end,
                None => return Fetched::Limit(next),
                Some(Step::Cold) if taken > 0 => return Fetched::Limit(next),
                Some(Step::Cold) => return Fetched::Cold(next),
                Some(Step::Damaged(_)) if taken > 0 => return Fetched::Limit(next),
                Some(Step::Damaged(to)) => {
                    self.stats.damaged += 1;
                    return Fetched::Damaged { from: next, to };
                }
            }
            taken += frame_len;
        }
        Fetched::AtEnd(next)
    }

    /// `None` if the frame is larger than the room that is left and is not the first.
    fn fetch_one(
        &mut self,
        ring: &Ring,
        id: PartitionId,
        offset: Offset,
        room: usize,
        is_first: bool,
        sink: &mut dyn FnMut(&Delivered, &[u8]),
    ) -> Option<Step> {
        let frame = match self.find_frame(ring, id, offset) {
            Found::Frame(frame) => frame,
            Found::Cold => return Some(Step::Cold),
            Found::Damaged(to) => return Some(Step::Damaged(to)),
        };
        if !is_first && frame.len as usize > room {
            return None;
        }
        let delivered = Delivered {
            base_offset: frame.first_offset,
            visible_time: frame.timestamp,
            first_record: 0,
            count: frame.count,
        };
        let room = (!is_first).then_some(room);
        if let Some(range) = self.log.arena().find(frame.lsn, frame.len as usize) {
            let bytes = ring.memory.bytes(range);
            if bytes.get(KIND_AT) == Some(&(FrameKind::Bind as u8)) {
                let bind = Frame::parse(bytes).and_then(|frame| Bind::parse(&frame));
                let Ok(bind) = bind else { return Some(Step::Damaged(frame.end_offset())) };
                return self.fetch_bound(ring, &bind, &frame, room, sink);
            }
            sink(&delivered, bytes);
            self.stats.tail_frames += 1;
            return Some(Step::Taken(frame.end_offset()));
        }
        self.fetch_cold(ring, id, &frame, &delivered, room, sink)
    }

    /// Where the frame is that holds an offset below `visible`.
    pub(super) fn find_frame(&mut self, ring: &Ring, id: PartitionId, offset: Offset) -> Found {
        let Some(partition) = self.partition(id) else { return Found::Damaged(offset) };
        let visible = partition.visible();
        match partition.locate(&self.frames, offset) {
            Place::Frame(frame) if frame.first_offset > offset => Found::Damaged(frame.first_offset),
            Place::Frame(frame) => Found::Frame(frame),
            Place::Nowhere => Found::Damaged(visible),
            Place::Sidecar(segment, first) => match self
                .find_entry(ring, segment, first, id, |entry| entry.first_offset.get() <= offset.0)
            {
                Index::Found(Entry { entry, base, .. }) if entry.end_offset() > offset => {
                    Found::Frame(FrameRef {
                        first_offset: Offset(entry.first_offset.get()),
                        lsn: base.plus(u64::from(entry.position.get())),
                        timestamp: entry.timestamp.get(),
                        len: entry.len.get(),
                        count: entry.count.get(),
                    })
                }
                Index::Found(Entry { next: Some(next), .. }) => Found::Damaged(next),
                Index::Found(_) | Index::Nothing | Index::Damaged => {
                    Found::Damaged(self.end_of_segment(id, segment))
                }
                Index::Coming => Found::Cold,
            },
        }
    }

    fn fetch_cold(
        &mut self,
        ring: &Ring,
        id: PartitionId,
        frame: &FrameRef,
        delivered: &Delivered,
        room: Option<usize>,
        sink: &mut dyn FnMut(&Delivered, &[u8]),
    ) -> Option<Step> {
        // The index says where to look and may be wrong: what it leads to has to be in the log at all.
        let frame_end = frame.lsn.plus(u64::from(frame.len));
        let found = self.log.segment_at(frame.lsn);
        let Some(segment) = found.filter(|found| frame_end <= found.end && frame_end <= self.log.durable())
        else {
            return Some(Step::Damaged(frame.end_offset()));
        };
        let place = FilePlace {
            file: self.log.slots()[segment.slot].file,
            segment: segment.facts.seq,
            position: segment.facts.position(frame.lsn),
            len: frame.len as usize,
        };
        // Kept from frame to frame: memory as large as this comes from the kernel page by page.
        let mut bytes = std::mem::take(&mut self.cold_frame);
        bytes.clear();
        let step = match self.gather(ring, &place, &mut bytes) {
            Ok(true) => self.deliver_cold(ring, id, frame, delivered, room, &bytes, sink),
            Ok(false) => Some(Step::Cold),
            Err(_) => Some(Step::Damaged(frame.end_offset())),
        };
        self.cold_frame = bytes;
        step
    }

    #[allow(clippy::too_many_arguments)]
    fn deliver_cold(
        &mut self,
        ring: &Ring,
        id: PartitionId,
        frame: &FrameRef,
        delivered: &Delivered,
        room: Option<usize>,
        bytes: &[u8],
        sink: &mut dyn FnMut(&Delivered, &[u8]),
    ) -> Option<Step> {
        // C3: the index only says where to look.
        let good = Frame::parse(bytes).is_ok_and(|found| {
            found.header.partition() == id
                && found.header.base_offset() == frame.first_offset
                && found.header.count.get() == frame.count
                && found.header.timestamp.get() == frame.timestamp
                && found.bytes.len() == bytes.len()
                && found.verify_payload().is_ok()
        });
        if !good && !self.options.planted.has(Bug::IndexBelieved) {
            return Some(Step::Damaged(frame.end_offset()));
        }
        if bytes.get(KIND_AT) == Some(&(FrameKind::Bind as u8)) {
            let bind = Frame::parse(bytes).and_then(|frame| Bind::parse(&frame));
            let Ok(bind) = bind else { return Some(Step::Damaged(frame.end_offset())) };
            return self.fetch_bound(ring, &bind, frame, room, sink);
        }
        sink(delivered, bytes);
        self.stats.cold_frames += 1;
        Some(Step::Taken(frame.end_offset()))
    }

    /// Collects bytes of a file from cold pages. `false`: some are still to come, and nothing was collected.
    pub(super) fn gather(
        &mut self,
        ring: &Ring,
        place: &FilePlace,
        out: &mut Vec<u8>,
    ) -> Result<bool, Errno> {
        let page_size = COLD_PAGE_SIZE as u64;
        let end = place.position + place.len as u64;
        let (first, last) = (place.position / page_size, (end - 1) / page_size);
        let part = |page: u64| {
            let key = PageKey { file: place.file, segment: place.segment, page: page as u32 };
            let from = place.position.max(page * page_size) - page * page_size;
            let to = end.min((page + 1) * page_size) - page * page_size;
            (key, from as usize, to as usize)
        };
        let mut complete = true;
        for page in first..=last {
            let (key, from, to) = part(page);
            match self.cold.look(key, from, to) {
                Look::Here(_) => {}
                Look::Coming => complete = false,
                Look::Failed(error) => return Err(error),
            }
        }
        // Copied only when all of it is here: a frame of many pages is looked at again with each that comes.
        for page in (first..=last).filter(|_| complete) {
            let (key, from, to) = part(page);
            if let Look::Here(range) = self.cold.look(key, from, to) {
                out.extend_from_slice(&ring.memory.bytes(range)[from..to]);
            }
        }
        if first > 0 {
            // Whoever has read the page before goes forward.
            let before = PageKey { file: place.file, segment: place.segment, page: first as u32 - 1 };
            if self.cold.knows(before) && self.read_ahead_is_useful(place, last) {
                for ahead in 1..READ_AHEAD {
                    let page = last as u32 + ahead;
                    if self.page_is_in_log(place, page) {
                        self.cold.want(PageKey { page, ..before });
                    }
                }
            }
        }
        Ok(complete)
    }

    fn read_ahead_is_useful(&self, place: &FilePlace, last: u64) -> bool {
        let next = PageKey { file: place.file, segment: place.segment, page: last as u32 + 1 };
        !self.cold.knows(next)
    }

    fn page_is_in_log(&self, place: &FilePlace, page: u32) -> bool {
        let start = u64::from(page) * COLD_PAGE_SIZE as u64;
        self.log.segment(place.segment).is_some_and(|segment| {
            self.log.slots()[segment.slot].file == place.file
                && segment.facts.base.plus(start) < segment.end.min(self.log.durable())
        })
    }

    /// The last entry of the partition in a segment, from entry `first` of its sidecar on, for which `before`
    /// holds.
    fn find_entry(
        &mut self,
        ring: &Ring,
        segment: SegmentSeq,
        first: u32,
        id: PartitionId,
        before: impl Fn(&IndexEntry) -> bool,
    ) -> Index<Entry> {
        let Some(known) = self.log.segment(segment) else { return Index::Damaged };
        let facts = known.facts;
        let Some((file, entries)) = known.sidecar else { return find_in_ram(known, id, before) };
        let holds = |entry: &IndexEntry| {
            let partition = PartitionId(entry.partition.get());
            partition < id || partition == id && before(entry)
        };
        // Binary search over [low, high): `holds` is true below some point and false from there on.
        let (mut low, mut high) = (first, entries);
        let (mut best, mut behind) = (None, None);
        while low < high {
            let middle = low + (high - low) / 2;
            let block = middle / BLOCK_ENTRIES as u32;
            let position = BLOCK_SIZE as u64 * (1 + u64::from(block));
            let key = PageKey { file, segment, page: (position / COLD_PAGE_SIZE as u64) as u32 };
            let in_page = (position % COLD_PAGE_SIZE as u64) as usize;
            let range = match self.cold.look(key, in_page, in_page + BLOCK_SIZE) {
                Look::Here(range) => range,
                Look::Coming => return Index::Coming,
                Look::Failed(_) => {
                    self.lose_index(segment);
                    return Index::Coming;
                }
            };
            let bytes = &ring.memory.bytes(range)[in_page..];
            let Ok(found) = parse_block(bytes, facts.seq, facts.incarnation, block) else {
                self.lose_index(segment);
                return Index::Coming;
            };
            // Everything that this block can decide, at once.
            let block_start = block * BLOCK_ENTRIES as u32;
            let from = low.max(block_start) - block_start;
            let to = (high.min(block_start + found.len() as u32)).saturating_sub(block_start);
            let Some(slice) = found.get(from as usize..to as usize).filter(|slice| !slice.is_empty()) else {
                self.lose_index(segment);
                return Index::Coming;
            };
            let true_count = slice.partition_point(&holds) as u32;
            if true_count > 0 {
                best = Some(slice[true_count as usize - 1]);
            }
            behind = slice.get(true_count as usize).copied().or(behind);
            if true_count == to - from {
                low = block_start + to;
            } else if true_count == 0 {
                high = block_start + from;
            } else {
                break;
            }
        }
        match best {
            Some(entry) if entry.partition.get() == id.0 => {
                let next = behind.filter(|behind| behind.partition.get() == id.0);
                let next = next.map(|next| Offset(next.first_offset.get()));
                Index::Found(Entry { entry, base: facts.base, next })
            }
            _ => Index::Nothing,
        }
    }

    /// First offset behind the partition's frames of a segment.
    fn end_of_segment(&self, id: PartitionId, segment: SegmentSeq) -> Offset {
        let Some(partition) = self.partition(id) else { return Offset(0) };
        let refs = partition.segments();
        let index = refs.partition_point(|known| u64::from(known.segment.get()) <= segment.0);
        match refs.get(index) {
            Some(next) => Offset(next.first_offset.get()),
            None => {
                partition.oldest_frame(&self.frames).map_or(partition.visible(), |frame| frame.first_offset)
            }
        }
    }

    /// First offset appended at or after a time.
    pub fn offset_at_time(&mut self, ring: &Ring, id: PartitionId, time_ms: i64) -> TimeLookup {
        let Some(partition) = self.partition(id) else { return TimeLookup::UnknownPartition };
        let visible = partition.visible();
        let in_ram = partition.oldest_frame(&self.frames).map(|frame| frame.first_offset);
        let refs: Vec<_> = partition.segments().to_vec();
        for reference in refs {
            if in_ram.is_some_and(|first| first.0 <= reference.first_offset.get()) {
                break; // its frames are still in RAM
            }
            let seq = SegmentSeq(u64::from(reference.segment.get()));
            if self.log.segment(seq).is_none_or(|segment| segment.last_time < time_ms) {
                continue;
            }
            let first = reference.entry.get();
            match self.find_entry(ring, seq, first, id, |entry| entry.timestamp.get() < time_ms) {
                Index::Coming => return TimeLookup::Cold,
                Index::Damaged => return TimeLookup::Damaged,
                // No entry is older: the first one is it.
                Index::Nothing => {
                    return self.at_offset(ring, seq, first, id, reference.first_offset.get());
                }
                Index::Found(Entry { entry: older, .. }) => {
                    let next = older.end_offset();
                    // The frame behind it may already be in the next segment or in RAM, which is as good.
                    if next < self.end_of_segment(id, seq) {
                        return self.at_offset(ring, seq, first, id, next.0);
                    }
                }
            }
        }
        let Some(partition) = self.partition(id) else { return TimeLookup::UnknownPartition };
        match partition.first_frame_since(&self.frames, time_ms) {
            Some(frame) if frame.first_offset < visible => {
                TimeLookup::At(frame.first_offset, frame.timestamp)
            }
            _ => TimeLookup::At(visible, NO_TIME),
        }
    }

    /// Since when the first record at or behind `offset` is visible; the end and [`NO_TIME`] if there is none.
    pub fn visible_since(&mut self, ring: &Ring, id: PartitionId, offset: Offset) -> TimeLookup {
        let Some(partition) = self.partition(id) else { return TimeLookup::UnknownPartition };
        let visible = partition.visible();
        let offset = offset.max(partition.start());
        if offset >= visible {
            return TimeLookup::At(visible, NO_TIME);
        }
        match partition.locate(&self.frames, offset) {
            Place::Frame(frame) => TimeLookup::At(offset.max(frame.first_offset), frame.timestamp),
            Place::Nowhere => TimeLookup::Damaged,
            Place::Sidecar(segment, first) => {
                match self.find_entry(ring, segment, first, id, |entry| entry.first_offset.get() <= offset.0)
                {
                    Index::Found(Entry { entry, .. }) => TimeLookup::At(offset, entry.timestamp.get()),
                    Index::Coming => TimeLookup::Cold,
                    Index::Nothing | Index::Damaged => TimeLookup::Damaged,
                }
            }
        }
    }

    /// The frame that begins at `offset`, found in the index of its segment, with its own time.
    fn at_offset(
        &mut self,
        ring: &Ring,
        seq: SegmentSeq,
        first: u32,
        id: PartitionId,
        offset: u64,
    ) -> TimeLookup {
        match self.find_entry(ring, seq, first, id, |entry| entry.first_offset.get() <= offset) {
            Index::Coming => TimeLookup::Cold,
            Index::Found(Entry { entry, .. }) => TimeLookup::At(Offset(offset), entry.timestamp.get()),
            Index::Damaged | Index::Nothing => TimeLookup::Damaged,
        }
    }
}

/// A frame's entry in the index of a segment.
#[derive(Clone, Copy, Debug)]
struct Entry {
    entry: IndexEntry,
    /// Of the segment.
    base: ringmq_format::Lsn,
    /// First offset of the partition's next frame in the segment.
    next: Option<Offset>,
}

/// As `find_entry`, in a segment that has no sidecar now. Its entries of one partition are in the order of offsets.
fn find_in_ram(segment: &Segment, id: PartitionId, before: impl Fn(&IndexEntry) -> bool) -> Index<Entry> {
    if segment.index_lost {
        return Index::Coming;
    }
    let mut entries = segment.entries.iter().filter(|entry| entry.partition.get() == id.0);
    let mut best = None;
    let next = loop {
        match entries.next() {
            Some(entry) if before(entry) => best = Some(*entry),
            other => break other.map(|entry| Offset(entry.first_offset.get())),
        }
    };
    best.map_or(Index::Nothing, |entry| Index::Found(Entry { entry, base: segment.facts.base, next }))
}
