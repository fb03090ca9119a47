//! How much of a group's rate there is: a bucket at the group's coordinator, and what shards have borrowed from it.
//!
//! One bucket for the whole group makes the rate hold in sum, whichever partitions are busy. Shards take it in parts
//! of [`PARTS`] a second, so that borrowing costs little. Machines without I/O and clock.

/// Parts of a second's worth that a shard borrows at once.
const PARTS: u64 = 20;
/// Parts of a second's worth that a bucket holds at most.
const HELD: u64 = 5;
const MICROS: u128 = 1_000_000;
/// Waits are at least this long, so that asking again costs little.
const WAIT_MIN_US: u64 = 1_000;

/// Both rates of a group; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::shard) struct Rates {
    pub(in crate::shard) records: u64,
    pub(in crate::shard) bytes: u64,
}

impl Rates {
    pub(super) fn is_limited(self) -> bool {
        self != Self::default()
    }
}

/// What is asked for, or lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::shard) struct Loan {
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// When there is more.
    pub(super) wait_us: u64,
}

/// Fills with time.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Millionths.
    held: u128,
    at_us: u64,
}

impl Bucket {
    /// As much of `want` as there is, and when there is more of what is lacking.
    fn take(&mut self, rate: u64, want: u64, now_us: u64) -> (u64, u64) {
        if rate == 0 || want == 0 {
            return (want, 0);
        }
        let passed = u128::from(now_us.saturating_sub(self.at_us));
        self.at_us = self.at_us.max(now_us);
        let max = u128::from((rate / HELD).max(1)) * MICROS;
        self.held = (self.held + passed * u128::from(rate)).min(max);
        let given = u128::from(want).min(self.held / MICROS);
        self.held -= given * MICROS;
        if given > 0 {
            return (given as u64, 0);
        }
        let lacks = u128::from(want.min((rate / PARTS).max(1))) * MICROS - self.held;
        (0, (lacks.div_ceil(u128::from(rate)) as u64).max(WAIT_MIN_US))
    }
}

/// At the coordinator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    records: Bucket,
    bytes: Bucket,
}

impl Budget {
    pub(super) fn new(now_us: u64) -> Self {
        let bucket = Bucket { held: 0, at_us: now_us };
        Self { records: bucket, bytes: bucket }
    }

    /// Lends as much as there is.
    pub(super) fn lend(&mut self, rates: Rates, want: Loan, now_us: u64) -> Loan {
        let (records, records_wait) = self.records.take(rates.records, want.records, now_us);
        let (bytes, bytes_wait) = self.bytes.take(rates.bytes, want.bytes, now_us);
        Loan { records, bytes, wait_us: records_wait.max(bytes_wait) }
    }
}

/// What a shard has borrowed and not used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Purse {
    records: i64,
    /// Below 0: a record was larger than what was left.
    bytes: i64,
    /// A loan is on its way.
    asked: bool,
    /// Not to be asked for before.
    again_us: u64,
}

impl Purse {
    /// Records that may be given now; none without bytes.
    pub(super) fn records(&self, rates: Rates) -> usize {
        if rates.bytes > 0 && self.bytes <= 0 {
            return 0;
        }
        if rates.records == 0 { usize::MAX } else { self.records.max(0) as usize }
    }

    /// Bytes that may be given now; the last record may be larger.
    pub(super) fn bytes(&self, rates: Rates) -> usize {
        if rates.bytes == 0 { usize::MAX } else { self.bytes.max(0) as usize }
    }

    pub(super) fn spend(&mut self, rates: Rates, records: usize, bytes: usize) {
        if rates.records > 0 {
            self.records -= records as i64;
        }
        if rates.bytes > 0 {
            self.bytes -= bytes as i64;
        }
    }

    /// What to ask for, unless that is on its way or would come too early.
    pub(super) fn wants(&mut self, rates: Rates, now_us: u64) -> Option<Loan> {
        if self.asked || now_us < self.again_us {
            return None;
        }
        self.asked = true;
        let part = |rate: u64, held: i64| {
            let debt = held.min(0).unsigned_abs();
            if rate == 0 || held > 0 { 0 } else { (rate / PARTS).max(1) + debt }
        };
        Some(Loan {
            records: part(rates.records, self.records),
            bytes: part(rates.bytes, self.bytes),
            wait_us: 0,
        })
    }

    pub(super) fn take(&mut self, rates: Rates, loan: Loan, now_us: u64) {
        self.asked = false;
        self.again_us = now_us + loan.wait_us;
        if rates.records > 0 {
            self.records += loan.records as i64;
        }
        if rates.bytes > 0 {
            self.bytes += loan.bytes as i64;
        }
    }

    /// When to ask again.
    pub(super) fn again_us(&self) -> Option<u64> {
        (!self.asked).then_some(self.again_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What several shards get in `seconds`, each wanting as much as it can have, in records of `size` bytes.
    fn run(rates: impl Fn(u64) -> Rates, shards: usize, seconds: u64, size: usize) -> (usize, usize) {
        let mut budget = Budget::new(0);
        let mut purses = vec![Purse::default(); shards];
        let mut used = 0;
        for now_us in (0..seconds * 1_000_000).step_by(500) {
            let rates = rates(now_us);
            // Whoever comes first is another one each time, and the last one is idle.
            for turn in 0..shards {
                let place = (turn + now_us as usize / 500) % shards;
                if place == shards - 1 && shards > 1 {
                    continue;
                }
                let purse = &mut purses[place];
                let records = purse.records(rates).min(1_000);
                if records > 0 {
                    let count = records.min(purse.bytes(rates).div_ceil(size));
                    purse.spend(rates, count, count * size);
                    used += count;
                } else if let Some(want) = purse.wants(rates, now_us) {
                    let loan = budget.lend(rates, want, now_us);
                    purse.take(rates, loan, now_us);
                }
            }
        }
        (used, used * size)
    }

    fn near(found: usize, expected: usize) {
        assert!(found.abs_diff(expected) * 20 <= expected, "{found} is not near {expected}");
    }

    #[test]
    fn the_rate_holds_in_sum_over_shards() {
        for shards in [1, 2, 5] {
            for rate in [3, 100, 1_234, 50_000] {
                near(run(|_| Rates { records: rate, bytes: 0 }, shards, 20, 100).0, rate as usize * 20);
                let bytes = rate * 1_000;
                near(run(|_| Rates { records: 0, bytes }, shards, 20, 700).1, bytes as usize * 20);
            }
            // The lower one counts.
            near(run(|_| Rates { records: 1_000, bytes: 50_000 }, shards, 20, 100).0, 500 * 20);
            near(run(|_| Rates { records: 100, bytes: 50_000 }, shards, 20, 100).0, 100 * 20);
        }
    }

    #[test]
    fn a_rate_that_is_changed_counts_at_once() {
        let changed = |now_us| Rates { records: if now_us < 10_000_000 { 100 } else { 1_000 }, bytes: 0 };
        near(run(changed, 3, 20, 1).0, 11_000);
    }

    #[test]
    fn records_that_are_larger_than_the_rate_come_all_the_same() {
        near(run(|_| Rates { records: 0, bytes: 1_000 }, 1, 40, 10_000).1, 40_000);
    }
}
