//! What the harness remembers of what it was told, judged without any of the engine's own checksums.

use ringmq_engine::format::catalogue::TopicEntry;
use ringmq_engine::format::frame::Frame;
use ringmq_engine::format::{Lsn, PartitionId};
use ringmq_engine::shard::{Delivered, Extent};
use std::collections::VecDeque;

/// What was found wrong: the name of the check, and details.
#[derive(Clone, Debug)]
pub(crate) struct Wrong {
    pub(crate) check: &'static str,
    pub(crate) details: String,
}

pub(crate) type Checked = Result<(), Wrong>;

pub(crate) fn wrong(check: &'static str, details: String) -> Wrong {
    Wrong { check, details }
}

/// Hash of what a producer gave: everything behind the frame's header, and who sent it.
pub(crate) fn digest(frame: &Frame<'_>) -> u64 {
    let header = frame.header;
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut mix = |word: u64| hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    mix(header.producer_id.get());
    mix(u64::from(header.base_sequence.get()));
    mix(u64::from(header.count.get()));
    for chunk in frame.bytes[64..].chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(u64::from_le_bytes(word));
    }
    hash
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) digest: u64,
    pub(crate) offset: u64,
    pub(crate) count: u64,
    pub(crate) timestamp: i64,
    pub(crate) lsn: Lsn,
    pub(crate) durable_at: Lsn,
    pub(crate) acked: bool,
    /// It stands there by a BIND, from this record of the body on.
    pub(crate) bound: Option<u32>,
}

impl Stored {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.count
    }
}

/// A frame of an idempotent producer that was not answered yet.
#[derive(Clone, Debug)]
pub(crate) struct Unanswered {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: u64,
    /// Taken by the process that lives now; answered when this is durable.
    pub(crate) durable_at: Option<Lsn>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Producer {
    pub(crate) id: u64,
    pub(crate) next_sequence: u32,
    pub(crate) unanswered: VecDeque<Unanswered>,
}

/// One partition.
#[derive(Clone, Debug)]
pub(crate) struct PartitionModel {
    pub(crate) id: PartitionId,
    /// Dense from the first offset ever, but for what retention has taken.
    pub(crate) frames: VecDeque<Stored>,
    pub(crate) next: u64,
    /// Highest `visible` that was ever answered.
    pub(crate) seen: u64,
    /// Highest `start` that this process has answered.
    pub(crate) start: u64,
    pub(crate) producers: Vec<Producer>,
}

impl PartitionModel {
    pub(crate) fn new(id: PartitionId) -> Self {
        Self { id, frames: VecDeque::new(), next: 0, seen: 0, start: 0, producers: Vec::new() }
    }

    pub(crate) fn push(&mut self, stored: Stored) -> Checked {
        if stored.offset != self.next {
            let details = format!("{}: offset {} after {}", self.id, stored.offset, self.next);
            return Err(wrong("offsets are dense", details));
        }
        self.next = stored.end();
        self.frames.push_back(stored);
        Ok(())
    }

    /// The frame that holds an offset.
    pub(crate) fn at(&self, offset: u64) -> Option<&Stored> {
        let index = self.frames.partition_point(|frame| frame.end() <= offset);
        self.frames.get(index).filter(|frame| frame.offset <= offset)
    }

    pub(crate) fn find(&self, digest: u64) -> Option<&Stored> {
        self.frames.iter().rev().find(|frame| frame.digest == digest && frame.bound.is_none())
    }

    /// While the shard runs: nothing goes back, nothing is shown before it is durable.
    pub(crate) fn check_extent(&mut self, extent: Extent, durable: Lsn) -> Checked {
        let (start, visible) = (extent.start.0, extent.visible.0);
        if visible < self.seen || start < self.start {
            let details = format!("{}: {start}..{visible} after {}..{}", self.id, self.start, self.seen);
            return Err(wrong("extents never go back", details));
        }
        if visible > self.next {
            let details = format!("{}: visible {visible}, written {}", self.id, self.next);
            return Err(wrong("nothing is invented", details));
        }
        (self.start, self.seen) = (start, visible);
        let last = visible.checked_sub(1).and_then(|last| self.at(last));
        if let Some(last) = last.filter(|last| last.durable_at > durable) {
            let details = format!("{}: {} is visible, durable is {durable}", self.id, last.durable_at);
            return Err(wrong("visible never before durable", details));
        }
        Ok(())
    }

    /// Something that a fetch has delivered.
    pub(crate) fn check_delivered(&self, next: &mut u64, delivered: &Delivered, bytes: &[u8]) -> Checked {
        let say = |what: &str| format!("{}: {what} at {}", self.id, delivered.base_offset);
        let Ok(frame) = Frame::parse(bytes) else {
            return Err(wrong("bytes are what was sent", say("no frame")));
        };
        let offset = delivered.base_offset.0;
        let follows = offset <= *next && offset + u64::from(delivered.count) > *next;
        let Some(stored) = self.at(offset).filter(|stored| stored.offset == offset) else {
            return Err(wrong("nothing is invented", say("a frame nobody sent")));
        };
        let placed = frame.header.base_offset.get() == offset && frame.header.partition() == self.id;
        if !follows || !placed && stored.bound.is_none() {
            return Err(wrong("order per partition", say(&format!("instead of {next}, this"))));
        }
        let records = (stored.bound.unwrap_or(0), stored.count);
        if (delivered.first_record, u64::from(delivered.count)) != records {
            return Err(wrong("an offset never names another record", say("other records")));
        }
        if digest(&frame) != stored.digest {
            return Err(wrong("an offset never names another record", say("other bytes")));
        }
        if delivered.visible_time != stored.timestamp {
            return Err(wrong("an offset never names another record", say("another time")));
        }
        *next = stored.end();
        Ok(())
    }

    /// After a restart: what is there now, against what must and may be there. What is gone and was promised to
    /// nobody is forgotten.
    pub(crate) fn recover(&mut self, extent: Extent, log_start: Lsn, retains: bool) -> Checked {
        let (start, visible) = (extent.start.0, extent.visible.0);
        let acked = self.frames.iter().rev().find(|frame| frame.acked).map_or(0, Stored::end);
        if visible < acked {
            let details = format!("{}: visible {visible}, acknowledged below {acked}", self.id);
            return Err(wrong("no acknowledged record is lost", details));
        }
        if visible < self.seen {
            let details = format!("{}: visible {visible}, seen {}", self.id, self.seen);
            return Err(wrong("what was seen stays", details));
        }
        if visible > self.next {
            let details = format!("{}: visible {visible}, written {}", self.id, self.next);
            return Err(wrong("nothing is invented", details));
        }
        while self.frames.back().is_some_and(|last| last.offset >= visible) {
            self.frames.pop_back();
        }
        if self.frames.back().map_or(visible > 0 && start < visible, |last| last.end() != visible) {
            return Err(wrong("frames are whole", format!("{}: visible {visible} is inside one", self.id)));
        }
        self.next = visible;
        self.seen = visible;
        self.start = start;
        for frame in &mut self.frames {
            (frame.acked, frame.durable_at) = (true, Lsn(0));
        }
        for producer in &mut self.producers {
            for unanswered in &mut producer.unanswered {
                unanswered.durable_at = None;
            }
        }
        self.check_start(extent, log_start, retains)
    }

    /// Retention takes whole segments from the front, and nothing else is missing.
    pub(crate) fn check_start(&self, extent: Extent, log_start: Lsn, retains: bool) -> Checked {
        let kept = self.frames.iter().find(|frame| frame.lsn >= log_start);
        let expected = kept.map_or(self.next, |frame| frame.offset);
        let start = extent.start.0;
        if start != expected || start > 0 && !retains {
            let details = format!("{}: starts at {start}, the log keeps {expected}", self.id);
            return Err(wrong("only retention takes, and whole segments", details));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TopicState {
    Creating(Lsn),
    Live,
    Deleting(Lsn),
    Deleted,
}

#[derive(Clone, Debug)]
pub(crate) struct TopicModel {
    pub(crate) entry: TopicEntry,
    pub(crate) state: TopicState,
    pub(crate) partitions: Vec<PartitionModel>,
}
