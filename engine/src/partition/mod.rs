//! A partition: dense offsets, where its frames are, and the producers it remembers.
//!
//! Invariants  N1  start <= visible <= next. `next` moves at append, `visible` when the log is durable, `start`
//!                 when a segment is retired; none ever goes back.
//!             N2  `frames` is sorted, and contiguous up to `next` but for what lay in a range set aside (`skip_to`).
//!             N3  An offset is given once: `next` comes from the log or a checkpoint, never from a guess.
//! Ignorant of files, groups and connections.

pub mod producers;

use producers::Producers;
use ringmq_format::checkpoint::{PartitionItem, SegmentRef};
use ringmq_format::frame::FrameHeader;
use ringmq_format::{Lsn, Offset, PartitionId, SegmentSeq};
use std::collections::VecDeque;

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

/// A partition's state.
#[derive(Clone, Debug)]
pub struct Partition {
    id: PartitionId,
    start: Offset,
    visible: Offset,
    next: Offset,
    last_time: i64,
    frames: VecDeque<FrameRef>,
    segments: Vec<SegmentRef>,
    /// Idempotent producers.
    pub producers: Producers,
}

impl Partition {
    /// An empty partition.
    pub fn new(id: PartitionId) -> Self {
        Self {
            id,
            start: Offset(0),
            visible: Offset(0),
            next: Offset(0),
            last_time: 0,
            frames: VecDeque::new(),
            segments: Vec::new(),
            producers: Producers::default(),
        }
    }

    /// From a checkpoint. Segments from `scan_seq` on are read again and left out.
    pub fn from_item(item: &PartitionItem, scan_seq: SegmentSeq) -> Self {
        let known = item.segments.iter().filter(|segment| u64::from(segment.segment.get()) < scan_seq.0);
        Self {
            id: item.partition,
            start: item.start_offset,
            visible: item.next_offset,
            next: item.next_offset,
            last_time: item.last_time,
            frames: VecDeque::new(),
            segments: known.copied().collect(),
            producers: Producers::from_items(&item.producers),
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
    pub fn push(&mut self, header: &FrameHeader, lsn: Lsn) {
        assert_eq!(header.base_offset(), self.next, "partition {}: offsets are dense", self.id); // N3
        self.next = header.end_offset();
        self.last_time = self.last_time.max(header.timestamp.get());
        self.push_index(FrameRef::new(header, lsn));
    }

    /// Enters a frame whose effect is known already (from a checkpoint) but whose place is not.
    pub fn push_index(&mut self, frame: FrameRef) {
        if let Some(last) = self.frames.back() {
            assert!(last.end_offset() <= frame.first_offset, "partition {}: frames are in order", self.id); // N2
        }
        self.frames.push_back(frame);
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
    pub fn settle(&mut self) {
        self.visible = self.next;
        self.update_start();
    }

    /// Where the record at `offset` is; the frame behind it if its own was lost.
    pub fn locate(&self, offset: Offset) -> Place {
        if let Some(first) = self.frames.front()
            && offset >= first.first_offset
        {
            let index = self.frames.partition_point(|frame| frame.end_offset() <= offset);
            return self.frames.get(index).map_or(Place::Nowhere, |frame| Place::Frame(*frame));
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

    /// First frame in RAM with an append time of at least `time_ms`, and the first frame in RAM at all.
    pub fn first_frame_since(&self, time_ms: i64) -> Option<FrameRef> {
        let index = self.frames.partition_point(|frame| frame.timestamp < time_ms);
        self.frames.get(index).copied()
    }

    /// A sidecar knows this partition's frames of a sealed segment now; what lies before `floor` is forgotten here.
    pub fn enter_sidecar(&mut self, segment: SegmentRef, floor: Lsn) {
        match self.segments.binary_search_by_key(&segment.segment.get(), |known| known.segment.get()) {
            // Made again: the frames are what they were, their places in the sidecar may not be.
            Ok(index) => self.segments[index].entry = segment.entry,
            Err(index) => self.segments.insert(index, segment),
        }
        assert!(
            self.segments.is_sorted_by_key(|known| known.first_offset.get()),
            "partition {}: segments are in order",
            self.id
        );
        self.forget_before(floor);
    }

    /// Forgets the places of frames before `floor`, which sidecars know.
    pub fn forget_before(&mut self, floor: Lsn) {
        while self.frames.pop_front_if(|frame| frame.lsn < floor).is_some() {}
    }

    /// A segment was retired.
    pub fn retire(&mut self, seq: SegmentSeq, kept_from: Lsn) {
        let gone = self.segments.partition_point(|segment| u64::from(segment.segment.get()) <= seq.0);
        self.segments.drain(..gone);
        self.forget_before(kept_from);
        self.update_start();
    }

    fn update_start(&mut self) {
        let first = match (self.segments.first(), self.frames.front()) {
            (Some(segment), _) => Offset(segment.first_offset.get()),
            (None, Some(frame)) => frame.first_offset,
            (None, None) => self.next,
        };
        self.start = self.start.max(first); // N1
    }
}
