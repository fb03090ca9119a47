//! Idempotence: what a partition remembers of each producer, and what it answers to a frame.
//!
//! ```text
//! epoch lower                -> Fenced                sequence = next              -> append
//! epoch higher, sequence 0   -> append, window anew   inside the window, same size -> Duplicate (original offset)
//! epoch higher, sequence > 0 -> OutOfOrder            below the window             -> DuplicateUnknownOffset
//! unknown, sequence 0        -> append                anything else                -> OutOfOrder
//! unknown, sequence > 0      -> Unknown                 next, five not durable yet  -> TooManyInFlight
//! ```

use ringmq_format::checkpoint::{ProducerFrame, ProducerItem};
use ringmq_format::frame::FrameHeader;
use ringmq_format::limits::{PRODUCER_WINDOW, PRODUCERS_PER_PARTITION_MAX};
use ringmq_format::{Lsn, Offset, ProducerId};
use zerocopy::FromZeros;

/// A frame that was taken before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Append time.
    pub timestamp: i64,
    /// Behind its last byte: the answer waits until this is durable. 0 after a restart.
    pub end_lsn: Lsn,
}

/// What a frame's sequence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// New: to be appended.
    Append,
    /// Taken before, still remembered.
    Duplicate(Original),
    /// Taken before, no longer remembered.
    DuplicateUnknownOffset,
    /// A gap.
    OutOfOrder {
        /// The sequence that was expected.
        expected: u32,
    },
    /// As many frames of it as the window holds are not durable yet.
    TooManyInFlight,
    /// A newer epoch of this producer is known.
    Fenced,
    /// Nothing is remembered of this producer, and it is not at its beginning.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    base_sequence: u32,
    count: u32,
    original: Original,
}

impl Taken {
    const NONE: Self = Self {
        base_sequence: 0,
        count: 0,
        original: Original { base_offset: Offset(0), timestamp: 0, end_lsn: Lsn(0) },
    };
}

#[derive(Clone, Debug)]
struct Producer {
    id: ProducerId,
    last_time: i64,
    next_sequence: u32,
    epoch: u16,
    /// Frames in the window.
    filled: u16,
    /// Oldest first; here and not in memory of its own, because most partitions have one producer.
    frames: [Taken; PRODUCER_WINDOW],
}

/// Producers of a partition up to which no memory is kept for more.
const EXACT_MAX: usize = 4;

/// The producers of one partition, the one used last at the end.
#[derive(Clone, Debug, Default)]
pub struct Producers {
    /// Few, mostly one: searched from the end.
    table: Vec<Producer>,
}

impl Producers {
    /// Judges a frame; everything below `durable` is on the medium. Changes nothing.
    pub fn judge(&self, header: &FrameHeader, durable: Lsn) -> Verdict {
        let (id, epoch) = (header.producer_id(), header.producer_epoch.get());
        if id.0 == 0 {
            return Verdict::Append;
        }
        let (sequence, count) = (header.base_sequence.get(), header.count.get());
        let Some(producer) = self.table.iter().rev().find(|producer| producer.id == id) else {
            return if sequence == 0 { Verdict::Append } else { Verdict::Unknown };
        };
        if epoch < producer.epoch {
            return Verdict::Fenced;
        }
        if epoch > producer.epoch {
            return if sequence == 0 { Verdict::Append } else { Verdict::OutOfOrder { expected: 0 } };
        }
        if sequence == producer.next_sequence {
            // The window must hold every frame that may be asked about again, and that is all unanswered ones.
            let oldest = producer.window().first().filter(|_| producer.window().len() == PRODUCER_WINDOW);
            let full = oldest.is_some_and(|oldest| oldest.original.end_lsn > durable);
            return if full { Verdict::TooManyInFlight } else { Verdict::Append };
        }
        let taken = producer.window().iter().find(|taken| taken.base_sequence == sequence);
        match taken {
            Some(taken) if taken.count == count => Verdict::Duplicate(taken.original),
            Some(_) => Verdict::OutOfOrder { expected: producer.next_sequence },
            // Sequences wrap: "before" means the nearer half of the circle.
            None if producer.next_sequence.wrapping_sub(sequence) < u32::MAX / 2 => {
                Verdict::DuplicateUnknownOffset
            }
            None => Verdict::OutOfOrder { expected: producer.next_sequence },
        }
    }

    /// Remembers a frame that was appended.
    pub fn take(&mut self, header: &FrameHeader, original: Original) {
        let (id, epoch) = (header.producer_id(), header.producer_epoch.get());
        if id.0 == 0 {
            return;
        }
        match self.table.iter().rposition(|producer| producer.id == id) {
            Some(known) => self.table[known..].rotate_left(1),
            None => self.add(Producer::new(id, epoch)),
        }
        let Some(producer) = self.table.last_mut() else { panic!("a producer was just found or added") };
        if producer.epoch != epoch {
            producer.epoch = epoch;
            producer.filled = 0;
        }
        let (base_sequence, count) = (header.base_sequence.get(), header.count.get());
        producer.next_sequence = base_sequence.wrapping_add(count);
        producer.last_time = original.timestamp;
        producer.push(Taken { base_sequence, count, original });
    }

    fn add(&mut self, producer: Producer) {
        if self.table.len() == PRODUCERS_PER_PARTITION_MAX {
            self.table.remove(0);
        } else if self.table.len() < EXACT_MAX {
            self.table.reserve_exact(1);
        }
        self.table.push(producer);
    }

    /// As items of a checkpoint, the one used last at the end.
    pub fn items(&self) -> Vec<ProducerItem> {
        self.table.iter().map(Producer::item).collect()
    }

    /// From the items of a checkpoint.
    pub fn from_items(items: &[ProducerItem]) -> Self {
        Self { table: items.iter().map(Producer::from_item).collect() }
    }
}

impl Producer {
    fn new(id: ProducerId, epoch: u16) -> Self {
        Self { id, last_time: 0, next_sequence: 0, epoch, filled: 0, frames: [Taken::NONE; PRODUCER_WINDOW] }
    }

    fn window(&self) -> &[Taken] {
        &self.frames[..usize::from(self.filled)]
    }

    fn push(&mut self, taken: Taken) {
        if usize::from(self.filled) == PRODUCER_WINDOW {
            self.frames.rotate_left(1);
            self.filled -= 1;
        }
        self.frames[usize::from(self.filled)] = taken;
        self.filled += 1;
    }

    fn item(&self) -> ProducerItem {
        let mut item = ProducerItem::new_zeroed();
        item.producer = self.id.0.into();
        item.epoch = self.epoch.into();
        item.filled = self.filled.into();
        item.next_sequence = self.next_sequence.into();
        item.last_time = self.last_time.into();
        for (frame, taken) in item.window.iter_mut().zip(self.window()) {
            *frame = ProducerFrame {
                base_sequence: taken.base_sequence.into(),
                count: taken.count.into(),
                base_offset: taken.original.base_offset.0.into(),
                timestamp: taken.original.timestamp.into(),
            };
        }
        item
    }

    fn from_item(item: &ProducerItem) -> Self {
        let filled = usize::from(item.filled.get()).min(PRODUCER_WINDOW);
        let mut producer = Self::new(item.id(), item.epoch.get());
        producer.next_sequence = item.next_sequence.get();
        producer.last_time = item.last_time.get();
        for frame in &item.window[..filled] {
            producer.push(Taken {
                base_sequence: frame.base_sequence.get(),
                count: frame.count.get(),
                original: Original {
                    base_offset: Offset(frame.base_offset.get()),
                    timestamp: frame.timestamp.get(),
                    end_lsn: Lsn(0),
                },
            });
        }
        producer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_format::frame::FrameKind;

    fn header(id: u64, epoch: u16, sequence: u32, count: u32) -> FrameHeader {
        let mut header = FrameHeader::new(FrameKind::Data, 64, count);
        header.producer_id = id.into();
        header.producer_epoch = epoch.into();
        header.base_sequence = sequence.into();
        header
    }

    fn original(offset: u64) -> Original {
        Original { base_offset: Offset(offset), timestamp: 1, end_lsn: Lsn(0) }
    }

    #[test]
    fn the_table_of_verdicts_holds_before_and_after_a_restart() {
        let mut producers = Producers::default();
        for n in 0..7 {
            let header = header(9, 3, n * 10, 10);
            assert_eq!(producers.judge(&header, Lsn(0)), Verdict::Append);
            producers.take(&header, original(u64::from(n) * 10));
        }
        let restored = Producers::from_items(&producers.items());
        for producers in [&producers, &restored] {
            let judge =
                |id, epoch, sequence, count| producers.judge(&header(id, epoch, sequence, count), Lsn(0));
            assert_eq!(judge(9, 3, 70, 1), Verdict::Append);
            assert_eq!(judge(9, 3, 20, 10), Verdict::Duplicate(original(20)));
            assert_eq!(judge(9, 3, 60, 10), Verdict::Duplicate(original(60)));
            assert_eq!(judge(9, 3, 60, 9), Verdict::OutOfOrder { expected: 70 });
            assert_eq!(judge(9, 3, 10, 10), Verdict::DuplicateUnknownOffset);
            assert_eq!(judge(9, 3, 80, 1), Verdict::OutOfOrder { expected: 70 });
            assert_eq!(judge(9, 2, 70, 1), Verdict::Fenced);
            assert_eq!(judge(9, 4, 0, 1), Verdict::Append);
            assert_eq!(judge(9, 4, 5, 1), Verdict::OutOfOrder { expected: 0 });
            assert_eq!(judge(8, 0, 0, 1), Verdict::Append);
            assert_eq!(judge(8, 0, 5, 1), Verdict::Unknown);
            assert_eq!(judge(0, 0, 5, 1), Verdict::Append);
        }
    }

    #[test]
    fn the_producer_unused_for_longest_is_forgotten_first() {
        let mut producers = Producers::default();
        for id in 1..=PRODUCERS_PER_PARTITION_MAX as u64 {
            producers.take(&header(id, 0, 0, 1), original(id));
        }
        producers.take(&header(1, 0, 1, 1), original(0));
        producers.take(&header(u64::MAX, 0, 0, 1), original(0));
        assert_eq!(producers.judge(&header(2, 0, 1, 1), Lsn(0)), Verdict::Unknown);
        assert_eq!(producers.judge(&header(1, 0, 2, 1), Lsn(0)), Verdict::Append);
    }

    #[test]
    fn a_sixth_frame_waits_until_the_first_is_durable() {
        let mut producers = Producers::default();
        for n in 0..5 {
            let taken = Original { end_lsn: Lsn(100 + u64::from(n)), ..original(0) };
            assert_eq!(producers.judge(&header(1, 0, n, 1), Lsn(0)), Verdict::Append);
            producers.take(&header(1, 0, n, 1), taken);
        }
        assert_eq!(producers.judge(&header(1, 0, 5, 1), Lsn(99)), Verdict::TooManyInFlight);
        assert_eq!(producers.judge(&header(1, 0, 5, 1), Lsn(100)), Verdict::Append);
    }

    #[test]
    fn sequences_wrap() {
        let mut producers = Producers::default();
        producers.take(&header(1, 0, u32::MAX - 1, 4), original(0));
        assert_eq!(producers.judge(&header(1, 0, 2, 1), Lsn(0)), Verdict::Append);
        assert_eq!(
            producers.judge(&header(1, 0, u32::MAX - 100, 1), Lsn(0)),
            Verdict::DuplicateUnknownOffset
        );
    }
}
