//! What the demo remembers of what it sent, and how it judges what it reads back. No I/O.

use std::time::{Duration, Instant};

/// Where a record was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acked {
    pub(super) id: u32,
    pub(super) partition: u32,
    pub(super) offset: u64,
    pub(super) sent: Instant,
    pub(super) acked: Instant,
}

/// The publisher's side.
pub(super) struct Published {
    /// In the order of the input.
    pub(super) acks: Vec<Acked>,
    /// Sent again and answered with their first offset.
    pub(super) recognised: u32,
    pub(super) acked_at_kill: u32,
    pub(super) under_way_at_kill: usize,
    pub(super) killed: Instant,
    /// From the kill until the new server was ready.
    pub(super) absence: Duration,
    /// What the new server says it took from its start.
    pub(super) recovered_after: Duration,
}

/// Of records whose time under way does not touch the absence.
pub(super) struct Speed {
    pub(super) acks_per_s: u64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
}

impl Published {
    pub(super) fn speed(&self) -> Speed {
        let before = self.acks.iter().filter(|ack| ack.acked < self.killed).collect::<Vec<_>>();
        let mut latencies = before.iter().map(|ack| ack.acked - ack.sent).collect::<Vec<_>>();
        latencies.sort_unstable();
        let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied().unwrap_or_default();
        let span = before
            .first()
            .zip(before.last())
            .map_or(0.0, |(first, last)| last.acked.saturating_duration_since(first.sent).as_secs_f64());
        Speed { acks_per_s: (before.len() as f64 / span.max(1e-9)) as u64, p50: at(50), p99: at(99) }
    }
}

/// What was found. Every record was acknowledged, so that anything else is wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verified {
    /// Different acknowledged records that were found.
    pub(super) found: u32,
    /// Acknowledged and not found.
    pub(super) lost: u32,
    /// Found more than once.
    pub(super) doubled: u32,
    /// Never published.
    pub(super) unknown: u32,
    /// Found at another place than the acknowledgement says.
    pub(super) elsewhere: u32,
    /// Behind one that was published later in the same partition.
    pub(super) misordered: u32,
    /// Not the bytes that were published.
    pub(super) changed: u32,
    /// Bytes compared.
    pub(super) bytes: u64,
}

impl Verified {
    pub(super) fn holds(&self) -> bool {
        self.lost + self.doubled + self.unknown + self.elsewhere + self.misordered + self.changed == 0
    }
}

/// Takes records as they are read and judges them.
pub(super) struct Judge {
    places: Vec<Option<(u32, u64)>>,
    seen: Vec<bool>,
    /// Next id that may come, by partition.
    next: Vec<u32>,
    verified: Verified,
}

impl Judge {
    pub(super) fn new(acks: &[Acked], partitions: u32) -> Self {
        let records = acks.iter().map(|ack| ack.id as usize + 1).max().unwrap_or(0);
        let mut places = vec![None; records];
        for ack in acks {
            places[ack.id as usize] = Some((ack.partition, ack.offset));
        }
        Self {
            seen: vec![false; records],
            places,
            next: vec![0; partitions as usize],
            verified: Verified::default(),
        }
    }

    pub(super) fn take(&mut self, partition: u32, offset: u64, body: &[u8]) {
        let verified = &mut self.verified;
        verified.bytes += body.len() as u64;
        let id = id_of(body);
        let Some((id, place)) = id.and_then(|id| Some((id, (*self.places.get(id as usize)?)?))) else {
            verified.unknown += 1;
            return;
        };
        verified.changed += u32::from(body != self::body(id));
        if std::mem::replace(&mut self.seen[id as usize], true) {
            verified.doubled += 1;
            return;
        }
        verified.found += 1;
        verified.elsewhere += u32::from(place != (partition, offset));
        if let Some(next) = self.next.get_mut(partition as usize) {
            verified.misordered += u32::from(id < *next);
            *next = (*next).max(id + 1);
        }
    }

    pub(super) fn verdict(mut self) -> Verified {
        let missing = self.places.iter().zip(&self.seen).filter(|(place, seen)| place.is_some() && !**seen);
        self.verified.lost = u32::try_from(missing.count()).unwrap_or(u32::MAX);
        self.verified
    }
}

/// A record's bytes: its number, then 0 to 1,023 bytes that follow from it.
pub(super) fn body(id: u32) -> Vec<u8> {
    let mut state = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let length = (step() % 1024) as usize;
    let mut body = Vec::with_capacity(4 + length + 8);
    body.extend_from_slice(&id.to_be_bytes());
    while body.len() < 4 + length {
        body.extend_from_slice(&step().to_le_bytes());
    }
    body.truncate(4 + length);
    body
}

fn id_of(body: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(body.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Six records over two partitions, as they were acknowledged.
    fn acks() -> Vec<Acked> {
        let now = Instant::now();
        (0..6)
            .map(|id| Acked { id, partition: id % 2, offset: u64::from(id / 2), sent: now, acked: now })
            .collect()
    }

    fn judged(change: impl FnOnce(&mut Vec<(u32, u64, Vec<u8>)>)) -> Verified {
        let acks = acks();
        let mut found = acks.iter().map(|ack| (ack.partition, ack.offset, body(ack.id))).collect();
        change(&mut found);
        let mut judge = Judge::new(&acks, 2);
        found.iter().for_each(|(partition, offset, body)| judge.take(*partition, *offset, body));
        judge.verdict()
    }

    #[test]
    fn what_was_published_holds() {
        let verified = judged(|_| {});
        assert!(verified.holds(), "{verified:?}");
        assert_eq!(verified.found, 6);
    }

    #[test]
    fn each_kind_of_harm_is_seen() {
        assert_eq!(judged(|found| drop(found.remove(2))).lost, 1);
        assert_eq!(judged(|found| found.push(found[1].clone())).doubled, 1);
        assert_eq!(judged(|found| found.push((0, 3, body(77)))).unknown, 1);
        assert_eq!(judged(|found| found.push((0, 3, vec![1]))).unknown, 1);
        assert_eq!(judged(|found| found[3].1 = 9).elsewhere, 1);
        assert_eq!(judged(|found| found.swap(0, 2)).misordered, 1);
        assert_eq!(
            judged(|found| {
                let last = found[5].2.len() - 1;
                found[5].2[last] ^= 1;
            })
            .changed,
            1
        );
    }

    #[test]
    fn bodies_differ_and_repeat() {
        assert_eq!(body(7), body(7));
        assert_ne!(body(7)[4..], body(8)[4..]);
        assert!((0..1000).map(|id| body(id).len()).max().unwrap() > 900);
    }
}
