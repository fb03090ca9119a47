//! The pages that a release shows, made from the ledger: `PROOF.md` and `PLANTED.md`.

use crate::ledger::{Ledger, Total, beside};
use std::fmt::Write;

/// Row of the ledger, what it shows, what is left out of it.
const ROWS: [(&str, &str); 10] = [
    ("sim", "whole servers, their clients and all kinds of faults, from seeds"),
    (
        "small",
        "every workload of up to 3 operations, at every I/O boundary, with every subset of what is not durable",
    ),
    ("flips", "every bit of the valid extent of a 4 MiB segment, through the scan and the reader"),
    ("flips-full", "the same bits, by a start of a whole shard that reads everything back"),
    ("cuts", "every byte length of the last MiB of a sealed and of an active segment"),
    ("sectors", "every sector of a 64 MiB store, replaced in five ways"),
    ("sectors-full", "the same sectors, by a start of a whole shard that reads everything back"),
    ("kills", "the real server, killed at its n-th io_uring_enter under load"),
    ("power", "the real server, power loss on a file system that forgets what was not flushed"),
    ("blocks", "ext4 and xfs images, replayed at flush points of the real server"),
];

/// What happens, and what is done about it. The tests hold each of them.
const FAULTS: [(&str, &str, &str); 14] = [
    (
        "power loss at any I/O",
        "what was acknowledged is there, once, in order; the rest whole or not",
        "`proof small`, `sim_log`, `proof power`",
    ),
    (
        "power loss while recovering",
        "as if recovery had not begun",
        "`proof small` (Kill, Cut), `sim_log` (nested)",
    ),
    (
        "a write or flush fails",
        "the log is poisoned: nothing more is acknowledged, nothing is tried again, reads go on",
        "`sim_damage`, `proof power`",
    ),
    ("a short write", "the rest is written; no progress poisons", "`sim_planted` (ShortWriteIgnored)"),
    (
        "the disk is full",
        "`DiskFull`, before it is; nothing is lost, and it goes on when space returns",
        "`sim_damage`, `full_disk`",
    ),
    (
        "a sector cannot be read",
        "never taken for a torn tail: the shard is refused, or that page answers `Damaged`",
        "`sim_damage`",
    ),
    ("a bit flips in a payload", "those offsets answer `Damaged`; all others are served", "`proof flips`"),
    ("a bit flips in a header", "with a witness the shard is refused, and the place named", "`proof flips`"),
    ("a bit flips in padding", "counted; everything is served", "`proof flips`"),
    ("a sector of something older, or of another partition", "as damage; never served", "`proof sectors`"),
    ("a file is shorter than it was", "refused, and the file named", "`proof cuts`"),
    ("an index is wrong", "made again from the log; never believed", "`sim_damage`, `disasters`"),
    (
        "a checkpoint or superblock copy is wrong",
        "the other is used; without any the shard is refused",
        "`sim_damage`, `disasters`",
    ),
    (
        "the process dies at any io_uring_enter",
        "as power loss, but completed writes stay",
        "`proof kills`, `kill_9`",
    ),
];

fn hours(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3_600.0),
    }
}

fn row(page: &mut String, name: &str, shows: &str, total: Option<&Total>) {
    let line = match total {
        None => format!("| `{name}` | {shows} | not run yet | | | |"),
        Some(total) => {
            let share = 100.0 * total.covered() as f64 / total.cases.max(1) as f64;
            format!(
                "| `{name}` | {shows} | {} {} | {} of {} cases ({share:.1} %) | {} | {} |",
                total.count,
                total.what,
                total.covered(),
                total.cases,
                hours(total.wall_s),
                total.commits.join(", "),
            )
        }
    };
    page.push_str(&line);
    page.push('\n');
}

/// Tests of `engine/tests/disasters.rs`: what happened to others, by name.
fn disasters() -> Vec<(String, String)> {
    let source = std::fs::read_to_string(beside("../engine/tests/disasters.rs")).unwrap_or_default();
    let mut found = Vec::new();
    let mut words: Vec<&str> = Vec::new();
    let mut is_test = false;
    for line in source.lines() {
        if let Some(doc) = line.strip_prefix("/// ") {
            words.push(doc);
        } else if line == "#[test]" {
            is_test = true;
        } else if !line.starts_with('#') {
            // What only helps the tests is no disaster.
            if let Some(name) = line.strip_prefix("fn ").filter(|_| is_test && !words.is_empty()) {
                let name = name.split('(').next().unwrap_or_default();
                found.push((name.to_owned(), words.join(" ")));
            }
            words.clear();
            is_test = false;
        }
    }
    found
}

/// Writes both pages beside the ledger.
pub(crate) fn write() -> Result<(), String> {
    for (name, text) in pages()? {
        std::fs::write(beside(name), text).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// Bugs that the engine can be planted with, by name.
fn bugs() -> Result<Vec<String>, String> {
    let path = beside("../engine/src/planted.rs");
    let source = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let body = source.split_once("pub enum Bug {").and_then(|(_, behind)| behind.split_once("\n}"));
    let (body, _) = body.ok_or_else(|| format!("{} has no list of bugs", path.display()))?;
    let names = body.lines().filter_map(|line| line.trim().strip_suffix(',')).map(str::to_owned);
    Ok(names.filter(|name| name.chars().all(char::is_alphanumeric)).collect())
}

/// Fails if a page is not what `write` would make: the ledger, a disaster, a fault or the list of bugs was changed
/// without it. Nothing is run for it; what was measured stands in the ledger.
pub(crate) fn check() -> Result<(), String> {
    let found = Ledger::read()?.last_notes("planted");
    let is_found = |bug: &String| found.iter().any(|line| line.split('|').next() == Some(bug.as_str()));
    let missing: Vec<String> = bugs()?.into_iter().filter(|bug| !is_found(bug)).collect();
    if !missing.is_empty() {
        return Err(format!(
            "fuzz/PLANTED.md does not say who finds {}; run `cargo test -p ringmq-engine -- --nocapture | \
             cargo run --manifest-path fuzz/Cargo.toml --bin proof -- planted --record`, then `proof page`",
            missing.join(", ")
        ));
    }
    for (name, text) in pages()? {
        let found = std::fs::read_to_string(beside(name)).map_err(|error| format!("{name}: {error}"))?;
        if found == text {
            continue;
        }
        let mut lines = found.lines().zip(text.lines()).zip(1..);
        let differs = lines.find(|((found, due), _)| found != due);
        let (found, due, line) = match differs {
            Some(((found, due), line)) => (found, due, line),
            None => ("", "", found.lines().count().min(text.lines().count()) + 1),
        };
        return Err(format!(
            "fuzz/{name} is out of date; run `cargo run --manifest-path fuzz/Cargo.toml --bin proof -- page`\n\
             line {line} is:     {found}\nit would be: {due}"
        ));
    }
    Ok(())
}

/// Both pages, by their names.
fn pages() -> Result<[(&'static str, String); 2], String> {
    let ledger = Ledger::read()?;
    let totals = ledger.totals();
    let mut page = String::from(
        "# Proof\n\nMade by `proof page` from `LEDGER.json`; not to be edited. Each row is run by \
         `cargo run --release --manifest-path fuzz/Cargo.toml --bin proof -- ROW --record`, from any case on with \
         `--from`, and everything in it was clean: a finding ends a run and is not recorded, but for `sim`, which names the seeds that \
         failed. What counts is the \
         commit that a row names: frames of groups, transactions and delays came after 3fb0772547, and rows of commits \
         before them say nothing of those.\n\n\
         | row | what | done | covered | time | commits |\n|---|---|---|---|---|---|\n",
    );
    for (name, shows) in ROWS {
        row(&mut page, name, shows, totals.get(name));
    }
    for (name, total) in &totals {
        if name != "planted" && !ROWS.iter().any(|(known, _)| known == name) {
            row(&mut page, name, "", Some(total));
        }
    }
    for name in totals.keys().filter(|name| *name != "planted") {
        for note in ledger.last_notes(name) {
            let _ = write!(page, "\n`{name}`: {note}.");
        }
    }
    page.push_str("\n\n## Faults\n\n| what happens | what is done | shown by |\n|---|---|---|\n");
    for (fault, behaviour, test) in FAULTS {
        let _ = writeln!(page, "| {fault} | {behaviour} | {test} |");
    }
    page.push_str(
        "\n## What happened to others\n\nEach is a test of `engine/tests/disasters.rs`, which passes as the code is \
         and fails with the bug planted.\n\n| test | what |\n|---|---|\n",
    );
    for (name, words) in disasters() {
        let _ = writeln!(page, "| `{name}` | {words} |");
    }
    let planted = ledger.last_notes("planted");
    let _ = writeln!(
        page,
        "\n## Planted bugs\n\n{} of them, all found: [PLANTED.md](PLANTED.md).",
        planted.len()
    );
    let mut table = String::from(
        "# Planted bugs\n\nMade by `proof page`; not to be edited. A harness that finds nothing proves nothing: each \
         of these bugs is planted by a test and must be found.\n\n| bug | found by the check | after |\n|---|---|---|\n",
    );
    for line in &planted {
        let _ = writeln!(table, "| {} |", line.replace('|', " | "));
    }
    Ok([("PROOF.md", page), ("PLANTED.md", table)])
}
