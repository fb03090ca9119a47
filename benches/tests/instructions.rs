//! Instructions of each hot path, counted by callgrind, against a budget.
//!
//! A count has no noise: the same build counts the same on every machine of its kind, busy or not. The budget is of one
//! compiler and one profile and says so; with another, or without valgrind, the test says `skipped` and why.
//! `RINGMQ_BUDGET=write cargo test -p ringmq-benches --test instructions` writes what it counts into the budget;
//! `RINGMQ_COUNTS=FILE` writes the counts as results that `ringmq bench report` and `compare` read.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A count may exceed its budget by a tenth: inlining moves that much when something else changes.
const SLACK: f64 = 1.10;

fn budget_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.budget")
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "dev" } else { "release" }
}

/// `rustc 1.95.0 (59807616e 2026-04-14) x86_64 dev`: what a count is of.
fn origin() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("-V").output().ok()?;
    let version = String::from_utf8(version.stdout).ok()?;
    Some(format!("{} {} {}", version.trim(), std::env::consts::ARCH, profile()))
}

/// Steps of each path in instructions; an error is why it cannot be known here.
fn count() -> Result<BTreeMap<String, f64>, String> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = directory.path().join("calls");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-line=no"])
        // Two patterns, because callgrind keeps one set of options for each.
        .args(["--toggle-collect=*::path_*", "--dump-after=paths::path_*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env!("CARGO_BIN_EXE_paths"))
        .arg(directory.path())
        .output()
        .map_err(|e| format!("valgrind: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if let Some(why) = said.lines().find_map(|line| line.strip_prefix("skipped: ")) {
        return Err(why.to_owned());
    }
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let calls: Vec<(&str, u64)> = said
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, n)| (name, n.parse().unwrap()))
        .collect();
    let cost = |call: usize| {
        let dump = std::fs::read_to_string(format!("{}.{}", out.display(), call + 1)).unwrap();
        let total =
            dump.lines().find_map(|line| line.strip_prefix("summary: ").or(line.strip_prefix("totals: ")));
        total.unwrap().trim().parse::<u64>().unwrap()
    };
    // In the order in which the paths were gone: to grow, then N and 2 N steps.
    let mut counts = BTreeMap::new();
    for (at, call) in calls.chunks(3).enumerate() {
        assert!(call.len() == 3 && call[1].1 * 2 == call[2].1, "{call:?}");
        let (once, twice) = (cost(at * 3 + 1), cost(at * 3 + 2));
        assert!(
            twice > once && once > 0,
            "{}: {once} and {twice}: the dumps are not those of the calls",
            call[0].0
        );
        counts.insert(call[0].0.to_owned(), (twice - once) as f64 / call[1].1 as f64);
    }
    Ok(counts)
}

/// Budgets by origin, then by path.
fn read(text: &str) -> BTreeMap<String, BTreeMap<String, f64>> {
    let mut budgets: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    let mut origin = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            origin = header.to_owned();
        } else {
            let (path, count) = line.rsplit_once(' ').unwrap();
            budgets.entry(origin.clone()).or_default().insert(path.trim().to_owned(), count.parse().unwrap());
        }
    }
    budgets
}

fn write(budgets: &BTreeMap<String, BTreeMap<String, f64>>) -> String {
    let mut text = "# Instructions of one step of each hot path (src/bin/paths.rs), by callgrind, which emulates a processor\n\
                    # without AVX-512. Written by `RINGMQ_BUDGET=write cargo test [--release] -p ringmq-benches --test instructions`.\n"
        .to_owned();
    for (origin, counts) in budgets {
        let _ = writeln!(text, "\n[{origin}]");
        for (path, count) in counts {
            let _ = writeln!(text, "{path:<36} {count:.0}");
        }
    }
    text
}

/// What is over its budget, and what has none.
fn complaints(counts: &BTreeMap<String, f64>, budget: &BTreeMap<String, f64>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, count) in counts {
        match budget.get(path) {
            Some(budget) if *count <= budget * SLACK => {}
            Some(budget) => {
                complaints.push(format!("{path}: {count:.0} instructions, {budget:.0} are its budget"))
            }
            None => complaints.push(format!("{path}: {count:.0} instructions, and it has no budget")),
        }
    }
    complaints
}

#[test]
fn no_hot_path_exceeds_its_budget() {
    let Some(origin) = origin() else { return println!("skipped: no rustc to ask for its version") };
    let counts = match count() {
        Ok(counts) => counts,
        Err(why) => return println!("skipped: {why}"),
    };
    let text = std::fs::read_to_string(budget_file()).unwrap_or_default();
    let mut budgets = read(&text);
    if std::env::var("RINGMQ_BUDGET").is_ok_and(|value| value == "write") {
        budgets.retain(|known, _| known.rsplit(' ').next() != Some(profile()));
        budgets.insert(origin.clone(), counts.clone());
        std::fs::write(budget_file(), write(&budgets)).unwrap();
    }
    let budget = budgets.get(&origin);
    if let Some(file) = std::env::var_os("RINGMQ_COUNTS") {
        let mut lines = String::new();
        for (path, count) in &counts {
            let budget =
                budget.and_then(|budget| budget.get(path)).map_or("null".to_owned(), |n| format!("{n:.0}"));
            let _ = writeln!(
                lines,
                "{{\"bench\":\"instructions\",\"path\":\"{path}\",\"variant\":\"{}\",\"instructions\":{count:.1},\"budget\":{budget}}}",
                profile()
            );
        }
        std::fs::write(file, lines).unwrap();
    }
    for (path, count) in &counts {
        println!("{path:<36} {count:>8.1}");
    }
    let Some(budget) = budget else {
        return println!("skipped: there is no budget of {origin}");
    };
    let complaints = complaints(&counts, budget);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    for (path, budget) in budget {
        assert!(counts.contains_key(path), "{path} has a budget of {budget:.0} and is gone");
    }
}

#[test]
fn a_path_over_its_budget_is_named() {
    let counts = |n: f64| BTreeMap::from([("a".to_owned(), n), ("b".to_owned(), 10.0)]);
    let budgets = BTreeMap::from([("rustc x dev".to_owned(), counts(100.0))]);
    assert_eq!(read(&write(&budgets)), budgets);
    let budget = &budgets["rustc x dev"];
    assert!(complaints(&counts(109.0), budget).is_empty());
    assert_eq!(complaints(&counts(111.0), budget), ["a: 111 instructions, 100 are its budget"]);
    assert_eq!(complaints(&BTreeMap::from([("c".to_owned(), 1.0)]), budget).len(), 1);
}
