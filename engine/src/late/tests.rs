//! Replay converges, from wherever it begins; and what a million delays take.

use super::*;
use crate::format::Offset;
use crate::format::frame::{Codec, Frame, encode};
use crate::format::late::{BIND_SIZE, TimerItem, encode_timers};
use crate::format::record::{FrameBuilder, ProducerStamp, Record};
use zerocopy::IntoBytes;

struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize])
    }
}

/// Everything that may be asked of the tables, and where bodies are.
type Seen = (
    Vec<(Waiting, u128)>,
    Vec<(u64, u64, u64)>,
    Vec<Part>,
    Vec<(u128, bool)>,
    Vec<(u64, bool)>,
    PendingCount,
);

fn seen(late: &Late) -> Seen {
    let mut waiting: Vec<_> = late
        .waiting
        .iter()
        .map(|found| {
            let txn = late.transaction_of(found).map_or(0, |part| part.txn);
            (Waiting { txn: 0, ..*found }, txn)
        })
        .collect();
    waiting.sort_unstable_by_key(|found| found.0.identity);
    let delays = late.timers_after((i64::MIN, PartitionId(0), Lsn(0)));
    let keys: Vec<_> = delays.map(Waiting::key).collect();
    assert!(keys.is_sorted(), "{keys:?}");
    assert_eq!(keys.len() as u64, late.total.delays);
    let mut bodies: Vec<_> =
        late.bodies.iter().map(|body| (body.identity.0, body.at.0, body.last_bind.0)).collect();
    bodies.sort_unstable();
    let parts = late.transactions_after(0).map(|part| Part { checked_ms: 0, ..part.clone() }).collect();
    let mut txns: Vec<_> =
        late.ended_transactions.from(0).map(|(_, txn, end)| (*txn, end.committed)).collect();
    txns.sort_unstable();
    let mut timers: Vec<_> =
        late.ended_timers.from(0).map(|(_, timer, end)| (*timer, end.delivered)).collect();
    timers.sort_unstable();
    (waiting, bodies, parts, txns, timers, late.total)
}

/// A log without anything but its frames, and the tables that follow it.
struct Log {
    late: Late,
    frames: Vec<(Lsn, Lsn, Vec<u8>)>,
    end: Lsn,
    base: Lsn,
    time_ms: i64,
    offsets: u64,
}

impl Log {
    fn append(&mut self, bytes: Vec<u8>) {
        let lsn = self.end;
        self.end = lsn.plus(bytes.len() as u64);
        let frame = Frame::parse(&bytes).unwrap();
        let replayed = self.late.replay(lsn, self.base, &frame).unwrap();
        assert_ne!(replayed, Replayed::Foreign);
        self.frames.push((lsn, self.base, bytes));
    }

    fn mark(&mut self, kind: FrameKind, mark: Mark<'_>) {
        let bytes = Mark { time_ms: self.time_ms, ..mark }.encode(kind);
        self.append(bytes);
    }

    fn store(&mut self, txn: u128, due_ms: i64) {
        let mut builder = FrameBuilder::new(0, 4096);
        builder.push(&Record { body: &self.end.0.to_le_bytes(), ..Record::default() }).unwrap();
        let data = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
        let group = if txn == 0 { "" } else { "g" };
        let mut bytes = LateFields { txn, due_ms, check_after_ms: self.end.0 as u32, group }.wrap(&data);
        let mut header = *FrameHeader::parse(&bytes).unwrap();
        header.stamp(PartitionId(1 + (self.end.0 % 3) as u32), Offset(self.end.0), self.time_ms);
        bytes[..64].copy_from_slice(header.as_bytes());
        self.append(bytes);
    }

    fn bind(&mut self, target: Lsn, reason: BindReason) {
        let bind = Bind {
            target,
            target_len: 128,
            target_crc: 1,
            first_record: 0,
            count: 1,
            reason,
            origin: None,
            detail: 0,
            owner: 0,
        };
        self.offsets += 1;
        self.append(bind.encode(PartitionId(1), Offset(self.offsets), self.time_ms).to_vec());
    }

    fn step(&mut self, draw: &mut Draw) {
        self.time_ms += draw.below(3) as i64;
        if draw.below(40) == 0 {
            // The next segment.
            self.end = Lsn(self.end.0.next_multiple_of(1 << 16) + 8192);
            self.base = Lsn(self.end.0 - 8192);
        }
        let open: Vec<_> = self
            .late
            .transactions_after(0)
            .filter(|part| part.decision.is_none())
            .map(|part| part.txn)
            .collect();
        let delays: Vec<_> = self
            .late
            .timers_after((i64::MIN, PartitionId(0), Lsn(0)))
            .map(|waiting| waiting.identity)
            .collect();
        let bodies: Vec<_> = self.late.bodies.iter().map(|body| body.identity).collect();
        let txn = draw.of(&open).filter(|_| open.len() > 5 || draw.below(3) > 0);
        match draw.below(14) {
            0..=2 => {
                let due_ms = if draw.below(3) == 0 { self.time_ms + 5 } else { 0 };
                // An id may come again once it is over.
                let known = self.late.ended_transactions.len() as u128;
                self.store(txn.unwrap_or(known * 64 + u128::from(draw.below(60)) + 1_000), due_ms);
            }
            3 | 4 => self.store(0, self.time_ms + 1 + draw.below(40) as i64),
            5 | 6 => {
                if let Some(first) = self.late.first_due().map(|first| first.identity) {
                    self.bind(first, BindReason::Due);
                }
            }
            7 => {
                if let Some(txn) = txn {
                    self.commit(txn, FrameKind::Commit);
                }
            }
            8 => {
                if let Some(txn) = txn {
                    self.mark(FrameKind::Abort, Mark { txn, ..Mark::default() });
                }
            }
            9 => self.decision(txn, draw),
            10 => {
                if let Some(txn) = txn {
                    let (attempts, parked) = (draw.below(9) as u16, draw.below(2) == 0);
                    self.mark(FrameKind::Check, Mark { txn, attempts, parked, ..Mark::default() });
                }
            }
            11 => {
                if let Some(delay) = draw.of(&delays) {
                    let due_ms = if draw.below(2) == 0 { 0 } else { self.time_ms + 9 };
                    let item = TimerItem {
                        identity: delay.0.into(),
                        due_ms: due_ms.into(),
                        time_ms: self.time_ms.into(),
                    };
                    self.append(encode_timers(&[item]));
                }
            }
            12 => {
                // A dead letter: of a body, or of DATA before the log that is replayed.
                let target = draw.of(&bodies).unwrap_or(Lsn(8 + 8 * draw.below(500)));
                self.bind(target, BindReason::DeadLetter);
            }
            _ => self.move_one(draw, &bodies),
        }
    }

    fn commit(&mut self, txn: u128, kind: FrameKind) {
        let halves: Vec<_> =
            self.late.halves(txn).filter(|half| half.due_ms == 0).map(|half| half.identity).collect();
        for half in halves {
            self.bind(half, BindReason::Commit);
        }
        self.mark(kind, Mark { txn, ..Mark::default() });
    }

    fn decision(&mut self, txn: Option<u128>, draw: &mut Draw) {
        let decided = self.late.decisions().next().map(|(part, _)| (part.txn, part.halves.is_empty()));
        match decided {
            Some((txn, true)) => self.mark(FrameKind::Done, Mark { txn, ..Mark::default() }),
            Some((txn, false)) if draw.below(3) > 0 => self.commit(txn, FrameKind::Apply),
            _ => {
                if let Some(txn) = txn {
                    let participants = 1 + draw.below(8);
                    self.mark(FrameKind::Decision, Mark { txn, participants, group: "g", ..Mark::default() });
                }
            }
        }
    }

    /// Retention stores something again.
    fn move_one(&mut self, draw: &mut Draw, bodies: &[Lsn]) {
        let waiting: Vec<_> = self.late.waiting.iter().map(|waiting| waiting.identity).collect();
        let (identity, kind) = match (draw.of(&waiting), draw.of(bodies)) {
            (Some(identity), None) => (identity, FrameKind::Half),
            (Some(identity), _) if draw.below(2) == 0 => (identity, FrameKind::Delay),
            (_, Some(identity)) => (identity, FrameKind::Bound),
            (None, None) => return,
        };
        let mut bytes = encode(kind, 1, &[0; 64]);
        let mut header = *FrameHeader::parse(&bytes).unwrap();
        header.aux = identity.0.into();
        header.seal();
        bytes[..64].copy_from_slice(header.as_bytes());
        self.append(bytes);
    }
}

/// A checkpoint taken while the log goes on, replayed from a place before it: the tables are what they are.
#[test]
fn replay_converges_from_anywhere_before_a_checkpoint() {
    for seed in 0..400 {
        let mut draw = Draw(seed);
        let mut log = Log {
            late: Late::default(),
            frames: Vec::new(),
            end: Lsn(8192),
            base: Lsn(0),
            time_ms: 1_000,
            offsets: 0,
        };
        for _ in 0..draw.below(300) {
            log.step(&mut draw);
        }
        let scan = draw.below(log.frames.len() as u64 + 1) as usize;
        let mut chunks = Vec::new();
        let mut cursor = CaptureCursor::default();
        while let Some((kind, items, payload)) = log.late.capture(&mut cursor) {
            chunks.push((kind, items, payload));
            for _ in 0..draw.below(20) {
                log.step(&mut draw);
            }
        }
        for _ in 0..draw.below(100) {
            log.step(&mut draw);
        }
        let mut late = Late::default();
        for (kind, items, payload) in &chunks {
            late.restore(*kind, *items, payload).unwrap();
        }
        for (lsn, base, bytes) in &log.frames[scan..] {
            late.replay(*lsn, *base, &Frame::parse(bytes).unwrap()).unwrap();
        }
        assert_eq!(seen(&late), seen(&log.late), "seed {seed}, from frame {scan} of {}", log.frames.len());
        // Once more, from the start and without a checkpoint.
        let mut late = Late::default();
        for (lsn, base, bytes) in &log.frames {
            late.replay(*lsn, *base, &Frame::parse(bytes).unwrap()).unwrap();
        }
        assert_eq!(seen(&late), seen(&log.late), "seed {seed}, from the start");
    }
}

#[test]
fn a_million_delays_take_less_than_64_mib() {
    let mut late = Late::default();
    let mut header = FrameHeader::new(FrameKind::Delay, 512, 1);
    let fields = LateFields { txn: 0, due_ms: 0, check_after_ms: 0, group: "" };
    let mut draw = Draw(1);
    for number in 0..1_000_000u64 {
        let lsn = Lsn(8192 + number * 512);
        header.stamp(PartitionId(1 + (number % 10) as u32), Offset(lsn.0), 0);
        let due_ms = 1_000_000 + draw.below(100_000_000) as i64;
        late.stored(&header, &LateFields { due_ms, ..fields }, lsn);
    }
    let counts = late.counts();
    assert_eq!(counts.pending.delays, 1_000_000);
    println!("{} bytes", counts.table_bytes);
    assert!(counts.table_bytes <= 64 << 20, "{} bytes", counts.table_bytes);
    // They come in the order of their due times, and the memory comes back.
    let mut last = 0;
    while let Some(first) = late.first_due().copied() {
        assert!(first.due_ms >= last);
        last = first.due_ms;
        let bind = Bind {
            target: first.identity,
            target_len: first.len,
            target_crc: 0,
            first_record: 0,
            count: 1,
            reason: BindReason::Due,
            origin: None,
            detail: 0,
            owner: 0,
        };
        late.bound(&bind, Lsn(1 << 40), Lsn(0), last, Lsn((1 << 40) + BIND_SIZE as u64));
    }
    assert_eq!(late.counts().table_bytes, 0);
    assert_eq!(late.counts().ended_timers, REMEMBERED_MAX as u64);
}
