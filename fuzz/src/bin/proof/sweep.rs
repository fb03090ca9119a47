//! Cases by number, over all threads, until they are done or the time is over.

use crate::Options;
use crate::ledger::Run;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// What came of a sweep.
#[derive(Clone, Debug, Default)]
pub(crate) struct Swept {
    /// First case, and the one behind the last.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Cases that there are.
    pub(crate) total: u64,
    /// What was counted in them, and its name.
    pub(crate) count: u64,
    pub(crate) what: &'static str,
    /// The first case that failed, and how.
    pub(crate) finding: Option<(u64, String)>,
    /// Lines for whoever reads along.
    pub(crate) notes: Vec<String>,
}

impl Swept {
    /// For the ledger.
    pub(crate) fn run<'a>(&'a self, row: &'a str) -> Run<'a> {
        let Self { from, to, total, count, what, ref notes, .. } = *self;
        Run { row, from, to, cases: total, count, what, notes }
    }
}

/// Runs cases `from..` on all threads; each thread has a context of its own. A case answers how much it has counted.
pub(crate) fn sweep<C>(
    options: &Options,
    total: u64,
    what: &'static str,
    context: impl Fn() -> C + Sync,
    case: impl Fn(&mut C, u64) -> Result<u64, String> + Sync,
) -> Swept {
    let end = total.min(options.from.saturating_add(options.count));
    let next = AtomicU64::new(options.from.min(end));
    let (counted, stop, finding) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(None));
    let work = || {
        let mut context = context();
        loop {
            let over = options.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if over || stop.load(Ordering::Relaxed) {
                return;
            }
            let taken =
                next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < end).then_some(n + 1));
            let Ok(number) = taken else { return };
            match case(&mut context, number) {
                Ok(count) => {
                    counted.fetch_add(count, Ordering::Relaxed);
                }
                Err(words) => {
                    stop.store(true, Ordering::Relaxed);
                    let mut first = finding.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    if first.as_ref().is_none_or(|(known, _)| number < *known) {
                        *first = Some((number, words));
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..options.threads {
            scope.spawn(work);
        }
        work();
    });
    Swept {
        from: options.from.min(end),
        to: next.into_inner(),
        total,
        count: counted.into_inner(),
        what,
        finding: finding.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()),
        notes: Vec::new(),
    }
}
