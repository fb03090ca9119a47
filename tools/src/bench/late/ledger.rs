//! What became of every record of a run, by number, held against what was read: which order they came in says nothing,
//! because transactions end when they end and delays come when they are due.

use crate::bench::stamp::Stamp;
use serde::Serialize;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Sent,
    Acknowledged,
    RolledBack,
}

/// All records of a run by number, and what was read of them.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) run: u64,
    fates: Vec<Fate>,
    found: Vec<u8>,
    early: u64,
    invented: u64,
}

/// What a verification found. All but the first three must be zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::bench) struct LateVerdict {
    pub(super) acknowledged: u64,
    pub(super) found: u64,
    /// Without an answer, and there.
    found_unacknowledged: u64,
    lost: u64,
    duplicated: u64,
    /// Never sent, or rolled back.
    invented: u64,
    /// Read before it was due.
    early: u64,
}

impl LateVerdict {
    pub(super) fn holds(&self) -> bool {
        (self.lost, self.duplicated, self.invented, self.early) == (0, 0, 0, 0)
    }

    pub(super) fn text(&self) -> String {
        format!(
            "{} lost, {} duplicated, {} invented or rolled back, {} before their time",
            self.lost, self.duplicated, self.invented, self.early
        )
    }
}

impl Ledger {
    pub(super) fn new(run: u64) -> Self {
        Self { run, ..Self::default() }
    }

    pub(super) fn sent(&mut self) -> u64 {
        self.fates.push(Fate::Sent);
        self.found.push(0);
        self.fates.len() as u64 - 1
    }

    pub(super) fn became(&mut self, number: u64, fate: Fate) {
        self.fates[number as usize] = fate;
    }

    /// A record that was read, and when. `due_ns` is 0 for one that is not delayed.
    pub(super) fn read(&mut self, stamp: &Stamp, read_ns: u64, due_ns: u64) {
        if stamp.run != self.run {
            return;
        }
        match self.found.get_mut(stamp.sequence as usize) {
            Some(found) => *found = found.saturating_add(1),
            None => self.invented += 1,
        }
        // Due times are whole milliseconds.
        self.early += u64::from(due_ns > 0 && read_ns / 1_000_000 < due_ns / 1_000_000);
    }

    pub(super) fn all_found(&self) -> bool {
        let missing = |(fate, found): (&Fate, &u8)| *fate == Fate::Acknowledged && *found == 0;
        !self.fates.iter().zip(&self.found).any(missing)
    }

    pub(super) fn verdict(&self) -> LateVerdict {
        let mut verdict =
            LateVerdict { early: self.early, invented: self.invented, ..LateVerdict::default() };
        for (fate, found) in self.fates.iter().zip(&self.found) {
            let found = u64::from(*found);
            verdict.found += found;
            verdict.duplicated += found.saturating_sub(1);
            match fate {
                Fate::Sent => verdict.found_unacknowledged += found.min(1),
                Fate::Acknowledged => {
                    verdict.acknowledged += 1;
                    verdict.lost += u64::from(found == 0);
                }
                Fate::RolledBack => verdict.invented += found,
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_tells_whole_from_broken() {
        let mut ledger = Ledger { run: 7, ..Ledger::default() };
        for fate in [Fate::Acknowledged, Fate::Acknowledged, Fate::RolledBack, Fate::Sent] {
            let number = ledger.sent();
            ledger.became(number, fate);
        }
        let stamp = |sequence| Stamp { run: 7, writer: 0, partition: 0, sequence, sent_ns: 0 };
        ledger.read(&Stamp { run: 8, ..stamp(0) }, 0, 0);
        assert!(!ledger.all_found());
        ledger.read(&stamp(0), 0, 0);
        ledger.read(&stamp(1), 5_000_000, 5_999_999);
        assert!(ledger.all_found() && ledger.verdict().holds(), "{:?}", ledger.verdict());
        ledger.read(&stamp(3), 0, 0);
        assert_eq!(ledger.verdict().found_unacknowledged, 1);
        assert!(ledger.verdict().holds());
        for (sequence, read, due) in [(0, 0, 0), (2, 0, 0), (9, 0, 0), (3, 4_999_999, 5_000_000)] {
            ledger.read(&stamp(sequence), read, due);
        }
        let verdict = ledger.verdict();
        assert_eq!((verdict.duplicated, verdict.invented, verdict.early), (2, 2, 1), "{verdict:?}");
        assert!(!verdict.holds());
    }
}
