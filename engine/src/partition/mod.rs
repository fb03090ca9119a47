//! A partition: dense offsets, where its frames are, and the producers it remembers.
//!
//! Invariants  N1  start <= visible <= next. `next` moves at append, `visible` when the log is durable, `start`
//!                 when a segment is retired or the topic keeps less; none ever goes back.
//!             N2  The frames in RAM are in order, and contiguous up to `next` but for what lay in a range set aside
//!                 (`skip_to`).
//!             N3  An offset is given once: `next` comes from the log or a checkpoint, never from a guess.
//! Ignorant of files, groups and connections.

pub mod index;
pub mod producers;

use index::FrameIndex;
use producers::Producers;
use ringmq_format::checkpoint::{PartitionItem, SegmentRef};
use ringmq_format::frame::FrameHeader;
use ringmq_format::{Lsn, Offset, PartitionId, SegmentSeq};

/// One frame in so many of a partition is marked: a search takes as many steps at most from a mark.
const MARK_EVERY: u32 = 16;

/// Where one frame is, for frames that are not only in sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRef {
    /// Offset of its first record.
    pub first_offset: Offset,
    /// Where it is in the log.
    pub lsn: Lsn,
    /// Append time.
    pub timestamp: i64,
    /// Bytes.
    pub len: u32,
    /// Records.
    pub count: u32,
}

impl FrameRef {
    /// Of the frame with this header at `lsn`.
    pub fn new(header: &FrameHeader, lsn: Lsn) -> Self {
        Self {
            first_offset: header.base_offset(),
            lsn,
            timestamp: header.timestamp.get(),
            len: header.len.get(),
            count: header.count.get(),
        }
    }

    /// First offset behind it.
    pub fn end_offset(&self) -> Offset {
        self.first_offset.plus(u64::from(self.count))
    }
}

/// Where to look for an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This frame holds it.
    Frame(FrameRef),
    /// The sidecar of this segment knows, from this entry on.
    Sidecar(SegmentSeq, u32),
    /// Nothing at or behind it.
    Nowhere,
}

/// A partition's state. What an append touches comes first and fills one cache line.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Partition {
    next: Offset,
    visible: Offset,
    last_time: i64,
    /// Number of its newest frame in the index; 0 without one.
    newest: u64,
    /// Behind its newest frame in the index.
    indexed_end: Offset,
    start: Offset,
    id: PartitionId,
    /// Frames entered since the last mark.
    unmarked: u32,
    /// Numbers of every 16th of its frames in the index.
    marks: Vec<u64>,
    segments: Vec<SegmentRef>,
    /// Idempotent producers.
    pub producers: Producers,
}

const _: () = assert!(size_of::<Partition>() == 128 && size_of::<Option<Partition>>() == 128);

impl Partition {
    /// Begins at `offset` from now on, or where it ends if that is less.
    pub fn trim(&mut self, offset: Offset) {
        self.start = self.start.max(offset.min(self.visible)); // N1
    }

    /// It has frames in this segment, which has a sidecar and is the oldest, and not all of them are known to lie in
    /// front of its start.
    pub fn may_be_read_in(&self, segment: SegmentSeq) -> bool {
        let mut refs = self.segments.iter();
        let Some(_) = refs.next().filter(|first| u64::from(first.segment.get()) <= segment.0) else {
            return false;
        };
        let end = refs.next().map_or(self.next, |behind| Offset(behind.first_offset.get()));
        self.start < end
    }

    /// When its newest frame was appended; 0 without one.
    pub fn last_time(&self) -> i64 {
        self.last_time
    }

    /// An empty partition.
    pub fn new(id: PartitionId) -> Self {
        Self {
            next: Offset(0),
            visible: Offset(0),
            last_time: 0,
            newest: 0,
            indexed_end: Offset(0),
            start: Offset(0),
            id,
            unmarked: 0,
            marks: Vec::new(),
            segments: Vec::new(),
            producers: Producers::default(),
        }
    }

    /// From a checkpoint. Segments from `scan_seq` on are read again and left out.
    pub fn from_item(item: &PartitionItem, scan_seq: SegmentSeq) -> Self {
        let known = item.segments.iter().filter(|segment| u64::from(segment.segment.get()) < scan_seq.0);
        Self {
            start: item.start_offset,
            visible: item.next_offset,
            next: item.next_offset,
            last_time: item.last_time,
            segments: known.copied().collect(),
            producers: Producers::from_items(&item.producers),
            ..Self::new(item.partition)
        }
    }

    /// For a checkpoint.
    pub fn item(&self) -> PartitionItem {
        PartitionItem {
            partition: self.id,
            start_offset: self.start,
            next_offset: self.next,
            last_time: self.last_time,
            segments: self.segments.clone(),
            producers: self.producers.items(),
        }
    }

    /// Its id.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// First offset that is kept.
    pub fn start(&self) -> Offset {
        self.start
    }

    /// Consumers may read below it.
    pub fn visible(&self) -> Offset {
        self.visible
    }

    /// Offset of the next record.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Append time for a record taken at `now_ms`: never less than the last one's.
    pub fn stamp(&self, now_ms: i64) -> i64 {
        self.last_time.max(now_ms)
    }

    /// Enters a frame that was appended, or found by recovery.
    pub fn push(&mut self, index: &mut FrameIndex, header: &FrameHeader, lsn: Lsn) {
        assert_eq!(header.base_offset(), self.next, "partition {}: offsets are dense", self.id); // N3
        self.next = header.end_offset();
        self.last_time = self.last_time.max(header.timestamp.get());
        self.push_index(index, FrameRef::new(header, lsn));
    }

    /// Whether a frame may be entered behind what is: what a checkpoint or a log says against it contradicts itself.
    pub fn continues(&self, index: &FrameIndex, frame: &FrameRef) -> bool {
        let in_order = self.newest == 0 || self.indexed_end <= frame.first_offset;
        let ends = frame.first_offset.0.checked_add(u64::from(frame.count)).is_some();
        in_order && ends && index.takes(frame.lsn)
    }

    /// Enters a frame whose effect is known already (from a checkpoint) but whose place is not.
    pub fn push_index(&mut self, index: &mut FrameIndex, frame: FrameRef) {
        if self.newest != 0 {
            assert!(self.indexed_end <= frame.first_offset, "partition {}: frames are in order", self.id); // N2
        }
        self.newest = index.push(frame, self.newest);
        self.indexed_end = frame.end_offset();
        self.unmarked += 1;
        if self.unmarked == MARK_EVERY {
            self.unmarked = 0;
            self.marks.push(self.newest);
        }
    }

    /// Leaves out offsets whose records are in a range of the log that an operator has set aside.
    pub fn skip_to(&mut self, next: Offset) {
        assert!(next >= self.next, "next goes back from {} to {next}", self.next);
        self.next = next;
    }

    /// Moves what consumers may read.
    pub fn set_visible(&mut self, visible: Offset) {
        assert!(visible >= self.visible, "visible goes back from {} to {visible}", self.visible); // N1
        assert!(visible <= self.next, "visible {visible} is ahead of next {}", self.next);
        self.visible = visible;
    }

    /// After recovery: all that was found is durable, and nothing below what was found is kept.
    pub fn settle(&mut self, index: &FrameIndex) {
        self.visible = self.next;
        self.update_start(index);
    }

    /// Where the record at `offset` is; the frame behind it if its own was lost.
    pub fn locate(&self, index: &FrameIndex, offset: Offset) -> Place {
        if index.keeps(self.newest) && offset >= self.indexed_end {
            return Place::Nowhere;
        }
        let in_ram = |oldest: FrameRef| oldest.first_offset <= offset;
        if let Some(frame) = self.first_frame(index, |frame| frame.end_offset() > offset)
            && (frame.first_offset <= offset || self.oldest_frame(index).is_some_and(in_ram))
        {
            return Place::Frame(frame);
        }
        let index = self.segments.partition_point(|segment| segment.first_offset.get() <= offset.0);
        match index.checked_sub(1).and_then(|index| self.segments.get(index)) {
            Some(segment) => {
                Place::Sidecar(SegmentSeq(u64::from(segment.segment.get())), segment.entry.get())
            }
            None => Place::Nowhere,
        }
    }

    /// Sealed segments with its frames, oldest first.
    pub fn segments(&self) -> &[SegmentRef] {
        &self.segments
    }

    /// First frame in RAM with an append time of at least `time_ms`.
    pub fn first_frame_since(&self, index: &FrameIndex, time_ms: i64) -> Option<FrameRef> {
        self.first_frame(index, |frame| frame.timestamp >= time_ms)
    }

    /// First frame in RAM at all.
    pub fn oldest_frame(&self, index: &FrameIndex) -> Option<FrameRef> {
        self.first_frame(index, |_| true)
    }

    /// First frame in RAM for which `holds`, which does for all behind it too.
    fn first_frame(&self, index: &FrameIndex, holds: impl Fn(&FrameRef) -> bool) -> Option<FrameRef> {
        let marked = |number: &u64| index.get(*number).is_some_and(|(frame, _)| holds(&frame));
        let mark = self.marks.partition_point(|number| !marked(number));
        let mut number = self.marks.get(mark).copied().unwrap_or(self.newest);
        let mut found = None;
        while let Some((frame, before)) = index.get(number).filter(|(frame, _)| holds(frame)) {
            found = Some(frame);
            number = before;
        }
        found
    }

    /// A sidecar knows this partition's frames of a sealed segment now.
    pub fn enter_sidecar(&mut self, index: &FrameIndex, segment: SegmentRef) {
        match self.segments.binary_search_by_key(&segment.segment.get(), |known| known.segment.get()) {
            // Made again: the frames are what they were, their places in the sidecar may not be.
            Ok(at) => self.segments[at].entry = segment.entry,
            Err(at) => {
                self.segments.insert(at, segment);
                let around = &self.segments[at.saturating_sub(1)..self.segments.len().min(at + 2)];
                let sorted = around.is_sorted_by_key(|known| known.first_offset.get());
                assert!(sorted, "partition {}: segments are in order", self.id);
            }
        }
        self.forget_marks(index);
    }

    /// A segment was retired.
    pub fn retire(&mut self, index: &FrameIndex, seq: SegmentSeq) {
        let gone = self.segments.partition_point(|segment| u64::from(segment.segment.get()) <= seq.0);
        self.segments.drain(..gone);
        self.forget_marks(index);
        self.update_start(index);
    }

    /// Gives the memory of marks back that lead to forgotten frames.
    fn forget_marks(&mut self, index: &FrameIndex) {
        let gone = self.marks.partition_point(|number| !index.keeps(*number));
        if gone > 0 {
            self.marks.drain(..gone);
            self.marks.shrink_to(2 * self.marks.len());
        }
    }

    fn update_start(&mut self, index: &FrameIndex) {
        let first = match self.segments.first() {
            Some(segment) => Offset(segment.first_offset.get()),
            None => self.oldest_frame(index).map_or(self.next, |frame| frame.first_offset),
        };
        self.start = self.start.max(first); // N1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_no_order_is_not_taken_for_an_index() {
        let (mut index, mut partition) = (FrameIndex::default(), Partition::new(PartitionId(1)));
        let frame = |offset: u64, lsn: u64| {
            let (first_offset, lsn) = (Offset(offset), Lsn(lsn));
            FrameRef { first_offset, lsn, timestamp: 0, len: 64, count: 2 }
        };
        assert!(partition.continues(&index, &frame(4, 8192)));
        partition.push_index(&mut index, frame(4, 8192));
        assert!(partition.continues(&index, &frame(6, 8256)));
        for bad in [frame(5, 8256), frame(6, 8192), frame(6, 64), frame(u64::MAX - 1, 8256)] {
            assert!(!partition.continues(&index, &bad), "{bad:?}");
        }
    }

    #[test]
    fn frames_of_many_partitions_are_found_until_they_are_forgotten() {
        let mut random = 7u64;
        let mut draw = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        let mut index = FrameIndex::default();
        let mut partitions: Vec<_> = (0..20).map(|id| Partition::new(PartitionId(id + 1))).collect();
        let mut model: Vec<Vec<FrameRef>> = vec![Vec::new(); partitions.len()];
        let (mut lsn, mut floor) = (Lsn(8192), Lsn(0));
        for step in 0..30_000 {
            // The first takes half of all frames, the last ones few: marks are many here and none there.
            let at = if draw(2) == 0 { 0 } else { draw(20) as usize };
            let partition = &mut partitions[at];
            let count = 1 + draw(3) as u32;
            let timestamp = partition.stamp(step / 10);
            let frame = FrameRef { first_offset: partition.next(), lsn, timestamp, len: 64, count };
            partition.next = frame.end_offset();
            partition.last_time = timestamp;
            partition.push_index(&mut index, frame);
            model[at].push(frame);
            lsn = lsn.plus(64);
            if step % 5_000 == 4_999 {
                floor = Lsn(floor.0 + draw(lsn.0 - floor.0 + 1));
                index.forget_before(floor);
                partitions.iter_mut().for_each(|partition| partition.forget_marks(&index));
            }
            let at = draw(20) as usize;
            let (partition, frames) = (&partitions[at], &model[at]);
            let kept = &frames[frames.partition_point(|frame| frame.lsn < floor)..];
            assert_eq!(partition.oldest_frame(&index), kept.first().copied());
            let offset = Offset(draw(partition.next().0 + 2));
            let holds = |frame: &&FrameRef| frame.first_offset <= offset && offset < frame.end_offset();
            let expected = kept.iter().find(holds).map_or(Place::Nowhere, |frame| Place::Frame(*frame));
            assert_eq!(partition.locate(&index, offset), expected, "step {step} partition {at} {offset}");
            let time = draw(step as u64 / 10 + 2) as i64;
            let expected = kept.iter().find(|frame| frame.timestamp >= time).copied();
            assert_eq!(partition.first_frame_since(&index, time), expected, "step {step} time {time}");
        }
        index.forget_before(lsn);
        assert!(partitions.iter().all(|partition| partition.oldest_frame(&index).is_none()));
    }
}
