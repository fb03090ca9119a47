//! A bounded number of simulated nodes; the binary `sim` runs as many as one likes.

#[path = "../../server/tests/sim/mod.rs"]
mod sim;

use sim::{Plan, run};

/// Other seeds than those of the server's own test.
const SEEDS: std::ops::Range<u64> = 1_000..1_040;

#[test]
fn nodes_keep_what_they_promise() {
    for seed in SEEDS {
        if let Some(wrong) = run(Plan::draw(seed)).found {
            panic!("seed {seed}: {}: {}\nagain: sim --replay {seed}", wrong.check, wrong.details);
        }
    }
}
