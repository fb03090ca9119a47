//! Makes a failing plan smaller while it fails in the same way.

use crate::knobs::KNOBS;
use crate::sim::{Outcome, Plan, run};
use std::time::Instant;

/// A plan that fails, and how.
pub(crate) struct Failing {
    pub(crate) plan: Plan,
    pub(crate) outcome: Outcome,
    /// Runs that were tried.
    pub(crate) tried: u32,
}

/// Turns one number after the other down, to its least or by halves, and keeps what fails by the same check with no
/// more turns; until nothing more can be turned down, or the time is over.
pub(crate) fn shrink(plan: Plan, outcome: Outcome, until: Instant) -> Failing {
    let mut best = Failing { plan, outcome, tried: 0 };
    loop {
        let mut smaller = false;
        for knob in KNOBS {
            let mut low = knob.least;
            // From the least value up to the one that is there: most can be left out at once.
            while low < (knob.get)(&best.plan) {
                if Instant::now() >= until {
                    return best;
                }
                let mut plan = best.plan.clone();
                (knob.set)(&mut plan, low);
                let outcome = run(plan.clone());
                best.tried += 1;
                let same = match (&outcome.found, &best.outcome.found) {
                    (Some(found), Some(known)) => found.check == known.check,
                    _ => false,
                };
                if same && outcome.counts.turns <= best.outcome.counts.turns {
                    best = Failing { plan, outcome, tried: best.tried };
                    smaller = true;
                    break;
                }
                low += ((knob.get)(&best.plan) - low).div_ceil(2);
            }
        }
        if !smaller {
            return best;
        }
    }
}
