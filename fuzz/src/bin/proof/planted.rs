//! Which check found which planted bug, and how fast: read from what the planted tests print, so that a bug that is
//! planted anywhere stands in the table.

use crate::sweep::Swept;
use std::collections::BTreeMap;
use std::io::BufRead;

/// Tests print one such line for each bug, whatever the test harness puts in front:
/// `FlushLeftOut: found by "no acknowledged record is lost" after 1 seeds, 4 crashes, 0.02 s: details`.
pub(crate) fn read() -> Swept {
    let mut rows = BTreeMap::new();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        if let Some((before, found)) = line.split_once(": found by \"")
            && let Some((check, rest)) = found.split_once("\" after ")
            && let Some(bug) = before.rsplit(|letter: char| !letter.is_ascii_alphanumeric()).next()
        {
            let cost = rest.split_once(": ").map_or(rest, |(cost, _)| cost);
            rows.entry(bug.to_owned()).or_insert_with(|| format!("{bug}|{check}|{cost}"));
        }
    }
    let (count, notes) = (rows.len() as u64, rows.into_values().collect());
    Swept { to: count, total: count, count, what: "planted bugs found", notes, ..Swept::default() }
}
