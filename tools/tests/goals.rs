//! `ringmq bench goals` on tiny sizes: that it measures, what it says and what it leaves behind. Not the figures.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

mod common;

use common::{IO_URING_REFUSED, ringmq, run, text};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROWS: [&str; 22] = [
    "batched-publish",
    "one-in-flight",
    "many-partitions",
    "tail-consume",
    "fan-out",
    "cold-alone",
    "cold-consumer",
    "syscalls",
    "punts",
    "disk-bytes",
    "idle",
    "start",
    "memory",
    "transactions",
    "delays",
    "pending-delays",
    "open-halves",
    "broadcast-cursors",
    "idle-connections",
    "idle-partitions",
    "flash-sale",
    "neighbour",
];

/// Figures that are taken once in a run.
const ONCE: [&str; 6] = [
    "with everything stored",
    "more resident than before",
    "a cursor",
    "a connection",
    "a partition, never written",
    "a partition, written once",
];
/// Rows of which a figure may be nothing: of so few things the memory does not grow.
const MAY_BE_NONE: [&str; 7] = [
    "punts",
    "idle",
    "pending-delays",
    "open-halves",
    "broadcast-cursors",
    "idle-connections",
    "idle-partitions",
];

/// On the disk, where O_DIRECT is; none where io_uring is refused.
fn directory() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data = dir.path().join("probe");
    let server = common::Server::start(&data, &["--memory=64M", "--segment-size=8M"]);
    if server.is_none() {
        println!("skipped: io_uring is refused here (exit code {IO_URING_REFUSED})");
        return None;
    }
    drop(server);
    std::fs::remove_dir_all(&data).unwrap();
    Some(dir)
}

fn is_gone(dir: &tempfile::TempDir) {
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it leaves nothing behind");
}

#[test]
fn every_promise_is_measured_and_judged() {
    let Some(dir) = directory() else { return };
    let out = dir.path().join("goals.json");
    let output = ringmq()
        .args(["bench", "goals", "--json", "--tiny", "--pairs", "2", "--seconds", "0.2", "--data"])
        .arg(dir.path())
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    assert_eq!(std::fs::read(&out).unwrap(), output.stdout.trim_ascii_end());
    std::fs::remove_file(&out).unwrap();
    is_gone(&dir);
    assert_eq!(report["machine"]["cores"].as_u64().map(|cores| cores > 0), Some(true));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["row"].as_str().unwrap()).collect::<Vec<_>>(), ROWS);
    let mut missed = false;
    for row in rows {
        assert!(row["failed"].is_null() && row["skipped"].is_null(), "{row}");
        let verdicts = ["reported", "reached", "not_shown", "missed"];
        assert!(verdicts.contains(&row["verdict"].as_str().unwrap()), "{row}");
        missed |= row["verdict"] == "missed";
        for figure in row["figures"].as_array().unwrap() {
            let ratio = |name: &str| figure["ratio"][name].as_f64().unwrap();
            assert!(ratio("low") <= ratio("median") && ratio("median") <= ratio("high"), "{figure}");
            let of_a_pair = !ONCE.contains(&figure["what"].as_str().unwrap());
            assert_eq!(ratio("n"), if of_a_pair { 2.0 } else { 1.0 }, "{figure}");
            assert!(
                figure["a"]
                    .as_f64()
                    .is_some_and(|a| a > 0.0 || MAY_BE_NONE.contains(&row["row"].as_str().unwrap())),
                "{figure}"
            );
        }
    }
    let punts = rows.iter().find(|row| row["row"] == "punts").unwrap();
    assert!(punts["notes"][0].as_str().unwrap().starts_with("method: "), "{punts}");
    assert_eq!(output.status.code(), Some(i32::from(missed)));
}

#[test]
fn an_interrupted_run_ends_its_servers_and_removes_its_data() {
    let Some(dir) = directory() else { return };
    let mut child = ringmq()
        .args(["bench", "goals", "--json", "--tiny", "--row", "start", "--pairs", "500", "--data"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stored = || {
        let mut workspaces = std::fs::read_dir(dir.path()).unwrap().flatten();
        workspaces.next().is_some_and(|workspace| workspace.path().join("stored/shard-00").exists())
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !stored() {
        assert!(Instant::now() < deadline, "no server was started");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    is_gone(&dir);
    let running = Command::new("pgrep").args(["-f", &format!("data {}", dir.path().display())]).output();
    assert!(running.is_ok_and(|output| output.stdout.is_empty()), "a server still runs");
}

#[test]
fn the_rows_are_listed_and_wrong_use_is_refused() {
    let list = text(&run(&["bench", "goals", "--list"]).stdout);
    for row in ROWS {
        assert!(list.contains(row), "{row}");
    }
    for args in [&["--row", "speed"][..], &["--pairs", "0"], &["--seconds", "0"], &["--server-cpu", "4000"]] {
        let output = ringmq().args(["bench", "goals"]).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}
