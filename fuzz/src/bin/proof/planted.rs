//! Which check found which planted bug, and how fast: read from what the planted tests print, so that a bug that is
//! planted anywhere stands in the table.

use crate::sweep::Swept;
use std::io::BufRead;

/// Tests print one such line for each bug:
/// `FlushLeftOut: found by "no acknowledged record is lost" after 1 seeds, 4 crashes, 0.02 s: details`.
pub(crate) fn read() -> Swept {
    let mut rows = Vec::new();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        // A test's name may stand in front, on the same line.
        let line = line.rsplit_once(" ... ").map_or(line.as_str(), |(_, rest)| rest);
        if let Some((bug, found)) = line.split_once(": found by \"")
            && bug.chars().all(|letter| letter.is_ascii_alphanumeric())
            && let Some((check, rest)) = found.split_once("\" after ")
        {
            let cost = rest.split_once(": ").map_or(rest, |(cost, _)| cost);
            rows.push(format!("{bug}|{check}|{cost}"));
        }
    }
    rows.sort();
    let count = rows.len() as u64;
    Swept { to: count, total: count, count, what: "planted bugs found", notes: rows, ..Swept::default() }
}
