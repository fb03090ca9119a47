//! What the load generator writes into records, and the judge that reads it back: order, loss and duplicates.
//!
//! A record of a verified run starts with a stamp that says who wrote it, where to, as which one and when. The
//! judge knows what was sent and what was acknowledged, and holds the log against it:
//! - J1 every record of an acknowledged frame is there, once;
//! - J2 records of one writer stand in the order in which it sent them;
//! - J3 nothing is there that was never sent, or in another partition than it was sent to.
//!
//! A frame without an answer may be there or not.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

const MAGIC: [u8; 8] = *b"RingMQ\x00B";
/// Bytes of a stamp; a verified record is at least as long.
pub(super) const STAMP_SIZE: usize = 40;

/// The front of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Random, one for each run.
    pub(super) run: u64,
    /// Connection of the run.
    pub(super) writer: u32,
    pub(super) partition: u32,
    /// Counted from 0 for each writer and partition.
    pub(super) sequence: u64,
    /// Unix nanoseconds.
    pub(super) sent_ns: u64,
}

impl Stamp {
    pub(super) fn write(&self, body: &mut [u8]) {
        body[..8].copy_from_slice(&MAGIC);
        body[8..16].copy_from_slice(&self.run.to_le_bytes());
        body[16..20].copy_from_slice(&self.writer.to_le_bytes());
        body[20..24].copy_from_slice(&self.partition.to_le_bytes());
        body[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        body[32..40].copy_from_slice(&self.sent_ns.to_le_bytes());
    }

    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let (magic, rest) = body.split_first_chunk::<8>()?;
        if *magic != MAGIC {
            return None;
        }
        let (run, rest) = rest.split_first_chunk()?;
        let (writer, rest) = rest.split_first_chunk()?;
        let (partition, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (sent_ns, _) = rest.split_first_chunk()?;
        Some(Self {
            run: u64::from_le_bytes(*run),
            writer: u32::from_le_bytes(*writer),
            partition: u32::from_le_bytes(*partition),
            sequence: u64::from_le_bytes(*sequence),
            sent_ns: u64::from_le_bytes(*sent_ns),
        })
    }

    /// How long ago it was sent, by this machine's wall clock.
    pub(super) fn age(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(now_ns.saturating_sub(self.sent_ns))
    }
}

/// Unix nanoseconds.
pub(super) fn wall_ns() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A number that differs from run to run, from the seed of the standard library's hasher.
pub(super) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u64(wall_ns());
    hasher.finish() | 1
}

/// Bits by number, growing.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, at: u64) -> bool {
        let word = (at / 64) as usize;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let bit = 1 << (at % 64);
        let was = self.0[word] & bit != 0;
        self.0[word] |= bit;
        was
    }

    fn get(&self, at: u64) -> bool {
        self.0.get((at / 64) as usize).is_some_and(|word| word & (1 << (at % 64)) != 0)
    }
}

/// Frames of one writer in one partition.
#[derive(Default)]
struct Stream {
    frames_sent: u64,
    acked: Bits,
    frames_acked: u64,
    last_ack_offset: Option<u64>,
    seen: Bits,
    last_seen: Option<u64>,
}

/// Holds a log against what was sent and acknowledged.
pub(super) struct Judge {
    run: u64,
    batch: u64,
    streams: HashMap<(u32, u32), Stream>,
    verdict: Verdict,
}

/// What the judge found. All but the first three must be zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Verdict {
    pub(super) acknowledged: u64,
    pub(super) found: u64,
    /// Records without an answer that are there.
    pub(super) found_unacknowledged: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) out_of_order: u64,
    /// Never sent, or in the wrong partition.
    pub(super) invented: u64,
}

impl Verdict {
    pub(super) fn holds(&self) -> bool {
        (self.lost, self.duplicated, self.out_of_order, self.invented) == (0, 0, 0, 0)
    }
}

impl Judge {
    pub(super) fn new(run: u64, batch: u32) -> Self {
        Self { run, batch: u64::from(batch), streams: HashMap::new(), verdict: Verdict::default() }
    }

    /// The number of the frame that this writer sends to this partition next.
    pub(super) fn sent(&mut self, writer: u32, partition: u32) -> u64 {
        let stream = self.streams.entry((writer, partition)).or_default();
        stream.frames_sent += 1;
        stream.frames_sent - 1
    }

    pub(super) fn acked(&mut self, writer: u32, partition: u32, frame: u64, base_offset: u64) {
        let stream = self.streams.entry((writer, partition)).or_default();
        if frame >= stream.frames_sent || stream.acked.set(frame) {
            self.verdict.invented += 1;
            return;
        }
        stream.frames_acked += 1;
        // Answers to one writer and partition come in the order of its requests, and so must the offsets (J2).
        if stream.last_ack_offset.is_some_and(|last| last >= base_offset) {
            self.verdict.out_of_order += 1;
        }
        stream.last_ack_offset = Some(base_offset);
    }

    /// A record that is in the log, in offset order per partition. `false` if another run wrote it.
    pub(super) fn found(&mut self, partition: u32, body: &[u8]) -> bool {
        let Some(stamp) = Stamp::read(body).filter(|stamp| stamp.run == self.run) else { return false };
        let verdict = &mut self.verdict;
        let stream = self.streams.get_mut(&(stamp.writer, stamp.partition));
        let frame = stamp.sequence / self.batch;
        let Some(stream) = stream.filter(|stream| stamp.partition == partition && frame < stream.frames_sent)
        else {
            verdict.invented += 1;
            return true;
        };
        if stream.seen.set(stamp.sequence) {
            verdict.duplicated += 1;
            return true;
        }
        if stream.last_seen.is_some_and(|last| last > stamp.sequence) {
            verdict.out_of_order += 1;
        }
        stream.last_seen = Some(stamp.sequence);
        verdict.found += 1;
        if !stream.acked.get(frame) {
            verdict.found_unacknowledged += 1;
        }
        true
    }

    /// The end of the log was reached everywhere.
    pub(super) fn verdict(mut self) -> Verdict {
        for stream in self.streams.values() {
            self.verdict.acknowledged += stream.frames_acked * self.batch;
            for frame in (0..stream.frames_sent).filter(|frame| stream.acked.get(*frame)) {
                let records = frame * self.batch..(frame + 1) * self.batch;
                self.verdict.lost += records.filter(|record| !stream.seen.get(*record)).count() as u64;
            }
        }
        self.verdict
    }
}

/// Follows what one reader gets of what stamping writers sent. It needs no memory for what comes in order:
/// - O1 the next record of a writer in a partition has the next sequence;
/// - O2 one that is skipped is a gap, until it comes after all: then it is out of order;
/// - O3 one that came before, and is in no gap, is a duplicate.
#[derive(Default)]
pub(super) struct Watcher {
    /// By run, writer and partition.
    streams: HashMap<(u64, u32, u32), Seen>,
    found: u64,
    duplicated: u64,
    out_of_order: u64,
    invented: u64,
}

#[derive(Default)]
struct Seen {
    first: u64,
    next: u64,
    gaps: Vec<std::ops::Range<u64>>,
}

impl Seen {
    fn has(&self, sequence: u64) -> bool {
        (self.first..self.next).contains(&sequence) && !self.gaps.iter().any(|gap| gap.contains(&sequence))
    }
}

/// What a reader can say by itself: a gap may be a loss, or a frame that was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Followed {
    /// Records with a stamp.
    pub(super) found: u64,
    pub(super) duplicated: u64,
    pub(super) out_of_order: u64,
    /// In another partition than they were sent to.
    pub(super) invented: u64,
    /// Sequences that never came, between others that did.
    pub(super) missing: u64,
}

impl Followed {
    pub(super) fn holds(&self) -> bool {
        (self.duplicated, self.out_of_order, self.invented) == (0, 0, 0)
    }
}

impl Watcher {
    /// A record, in offset order per partition. One without a stamp counts as nothing.
    pub(super) fn found(&mut self, partition: u32, body: &[u8]) {
        let Some(stamp) = Stamp::read(body) else { return };
        if stamp.partition != partition {
            self.invented += 1;
            return;
        }
        let key = (stamp.run, stamp.writer, partition);
        let seen = self.streams.entry(key).or_insert_with(|| Seen {
            first: stamp.sequence,
            next: stamp.sequence,
            gaps: Vec::new(),
        });
        if stamp.sequence >= seen.next {
            if stamp.sequence > seen.next {
                seen.gaps.push(seen.next..stamp.sequence); // O2
            }
            seen.next = stamp.sequence + 1; // O1
            self.found += 1;
            return;
        }
        let Some(at) = seen.gaps.iter().position(|gap| gap.contains(&stamp.sequence)) else {
            self.duplicated += 1; // O3
            return;
        };
        let gap = seen.gaps.swap_remove(at);
        let parts = [gap.start..stamp.sequence, stamp.sequence + 1..gap.end];
        seen.gaps.extend(parts.into_iter().filter(|part| !part.is_empty()));
        self.out_of_order += 1;
        self.found += 1;
    }

    /// What can be said without knowing what was sent.
    pub(super) fn followed(&self) -> Followed {
        let gaps = self.streams.values().flat_map(|seen| &seen.gaps);
        Followed {
            found: self.found,
            duplicated: self.duplicated,
            out_of_order: self.out_of_order,
            invented: self.invented,
            missing: gaps.map(|gap| gap.end - gap.start).sum(),
        }
    }

    /// Holds it against a writer's own account. The reader was there before the first record, and has reached the end.
    pub(super) fn against(&self, judge: &Judge) -> Verdict {
        let mut verdict = Verdict {
            duplicated: self.duplicated,
            out_of_order: self.out_of_order + judge.verdict.out_of_order,
            invented: self.invented + judge.verdict.invented,
            ..Verdict::default()
        };
        let nothing = Seen::default();
        for ((writer, partition), stream) in &judge.streams {
            let seen = self.streams.get(&(judge.run, *writer, *partition)).unwrap_or(&nothing);
            verdict.acknowledged += stream.frames_acked * judge.batch;
            verdict.invented += seen.next.saturating_sub(stream.frames_sent * judge.batch);
            for frame in (0..stream.frames_sent).filter(|frame| stream.acked.get(*frame)) {
                let records = frame * judge.batch..(frame + 1) * judge.batch;
                verdict.lost += records.filter(|record| !seen.has(*record)).count() as u64;
            }
        }
        let runs = self.streams.keys().filter(|key| key.0 == judge.run);
        verdict.invented += runs.filter(|key| !judge.streams.contains_key(&(key.1, key.2))).count() as u64;
        verdict.found = self.found;
        verdict.found_unacknowledged =
            verdict.found.saturating_sub(verdict.acknowledged.saturating_sub(verdict.lost));
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two frames of two records in partition 3, both acknowledged; then the log as it was read back.
    fn check(log: &[(u32, u64)], expected: Verdict) {
        let mut judge = Judge::new(7, 2);
        for (frame, offset) in [(0, 10), (1, 12)] {
            assert_eq!(judge.sent(1, 3), frame);
            judge.acked(1, 3, frame, offset);
        }
        assert_eq!(judge.sent(1, 3), 2, "sent, not acknowledged");
        for (partition, sequence) in log {
            let mut body = [0; 50];
            Stamp { run: 7, writer: 1, partition: 3, sequence: *sequence, sent_ns: 1 }.write(&mut body);
            assert!(judge.found(*partition, &body));
        }
        assert_eq!(judge.verdict(), Verdict { acknowledged: 4, ..expected });
    }

    #[test]
    fn the_judge_tells_whole_from_broken() {
        let good = Verdict { found: 4, ..Verdict::default() };
        assert!(good.holds());
        check(&[(3, 0), (3, 1), (3, 2), (3, 3)], good);
        check(
            &[(3, 0), (3, 1), (3, 2), (3, 3), (3, 4)],
            Verdict { found: 5, found_unacknowledged: 1, ..good },
        );
        check(&[(3, 0), (3, 2), (3, 3)], Verdict { found: 3, lost: 1, ..good });
        check(&[], Verdict { found: 0, lost: 4, ..good });
        check(&[(3, 0), (3, 1), (3, 1), (3, 2), (3, 3)], Verdict { duplicated: 1, ..good });
        check(&[(3, 1), (3, 0), (3, 2), (3, 3)], Verdict { out_of_order: 1, ..good });
        check(&[(3, 0), (3, 1), (3, 2), (3, 3), (4, 4)], Verdict { invented: 1, ..good });
        check(&[(3, 0), (3, 1), (3, 2), (3, 3), (3, 6)], Verdict { invented: 1, ..good });
    }

    #[test]
    fn records_of_others_are_left_alone_and_twisted_acks_are_found() {
        let mut judge = Judge::new(7, 1);
        let mut body = [0; STAMP_SIZE];
        assert!(!judge.found(0, &body));
        let stamp = Stamp { run: 8, writer: 0, partition: 0, sequence: 0, sent_ns: 5 };
        stamp.write(&mut body);
        assert_eq!(Stamp::read(&body), Some(stamp));
        assert_eq!(Stamp::read(&body[..STAMP_SIZE - 1]), None);
        assert_eq!(stamp.age(12), Duration::from_nanos(7));
        assert!(!judge.found(0, &body));
        judge.sent(0, 0);
        judge.sent(0, 0);
        judge.acked(0, 0, 0, 5);
        judge.acked(0, 0, 1, 5);
        judge.acked(0, 0, 1, 6);
        let verdict = judge.verdict();
        assert_eq!((verdict.out_of_order, verdict.invented, verdict.lost), (1, 1, 2));
        assert!(!verdict.holds());
        assert_ne!(random(), random());
    }

    /// As `check`, with a reader that follows.
    fn follow(log: &[(u32, u64)], expected: Verdict, missing: u64) {
        let mut judge = Judge::new(7, 2);
        for (frame, offset) in [(0, 10), (1, 12)] {
            assert_eq!(judge.sent(1, 3), frame);
            judge.acked(1, 3, frame, offset);
        }
        judge.sent(1, 3);
        let mut watcher = Watcher::default();
        watcher.found(3, b"no stamp");
        for (partition, sequence) in log {
            let mut body = [0; 50];
            Stamp { run: 7, writer: 1, partition: 3, sequence: *sequence, sent_ns: 1 }.write(&mut body);
            watcher.found(*partition, &body);
        }
        assert_eq!(watcher.against(&judge), Verdict { acknowledged: 4, ..expected }, "{log:?}");
        assert_eq!(watcher.followed().missing, missing, "{log:?}");
    }

    #[test]
    fn a_follower_tells_whole_from_broken() {
        let good = Verdict { found: 4, ..Verdict::default() };
        follow(&[(3, 0), (3, 1), (3, 2), (3, 3)], good, 0);
        let more = Verdict { found: 5, found_unacknowledged: 1, ..good };
        follow(&[(3, 0), (3, 1), (3, 2), (3, 3), (3, 4)], more, 0);
        follow(&[(3, 0), (3, 2), (3, 3)], Verdict { found: 3, lost: 1, ..good }, 1);
        follow(&[(3, 2), (3, 3)], Verdict { found: 2, lost: 2, ..good }, 0);
        follow(&[], Verdict { found: 0, lost: 4, ..good }, 0);
        follow(&[(3, 0), (3, 1), (3, 1), (3, 2), (3, 3)], Verdict { duplicated: 1, ..good }, 0);
        follow(&[(3, 0), (3, 3), (3, 1), (3, 2)], Verdict { out_of_order: 2, ..good }, 0);
        follow(&[(3, 0), (3, 1), (3, 2), (3, 3), (4, 4)], Verdict { invented: 1, ..good }, 0);
        follow(
            &[(3, 0), (3, 1), (3, 2), (3, 3), (3, 6)],
            Verdict { found: 5, found_unacknowledged: 1, invented: 1, ..good },
            2,
        );
    }
}
