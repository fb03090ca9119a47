//! The command line without a server: help, exit codes, errors that say what to do.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

mod common;

use common::{BINARY, ringmq, run, text};
use std::process::{Command, Stdio};

const VERBS: [&str; 15] = [
    "server",
    "pub",
    "sub",
    "topic",
    "group",
    "txn",
    "timer",
    "dlq",
    "segment",
    "demo",
    "doctor",
    "data",
    "bench",
    "completions",
    "man",
];

#[test]
fn every_verb_has_help() {
    for verb in VERBS {
        let output = run(&[verb, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{verb}");
        assert!(text(&output.stdout).contains("Usage: ringmq"), "{verb}");
        assert!(output.stderr.is_empty(), "{verb}");
    }
    let help = text(&run(&["--help"]).stdout);
    for verb in VERBS {
        assert!(help.contains(verb), "{verb}");
    }
    assert!(text(&run(&["--version"]).stdout).starts_with("ringmq "));
}

#[test]
fn wrong_use_is_exit_code_2() {
    for args in [
        &[][..],
        &["serve"],
        &["server", "--datas", "x"],
        &["server", "--memory", "lots"],
        &["server", "--memory", "256MB"],
        &["server", "--retain-time", "7"],
        &["completions", "csh"],
        &["doctor", "--color", "sometimes"],
        &["group", "set", "mail"],
        &["group", "reset", "mail", "--topic", "users", "--to", "sometime"],
        &["txn", "show", "not-hexadecimal"],
        &["timer", "cancel", "3"],
        &["timer", "reschedule", "3@4096"],
        &["dlq", "replay", "mail", "--where", "a ="],
        &["pub", "t", "v", "--delay", "1s", "--at", "2026-12-24"],
        &["sub", "t", "--mode", "queue"],
        &["sub", "t", "--group", "g", "--filter", "a ="],
        &["topic", "alter", "t"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn server_configuration_is_refused_with_the_ways_out() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ringmq.toml");
    let check = |config: &str, args: &[&str], parts: &[&str]| {
        std::fs::write(&file, config).unwrap();
        let mut command = ringmq();
        command.current_dir(dir.path()).args(["server", "--config"]).arg(&file).args(args);
        let output = command.output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{err}");
        for part in parts {
            assert!(err.contains(part), "{part}: {err}");
        }
    };
    check("", &[], &["--data DIR", "--dev"]);
    check("data = 'd'\nsegmentsize = '8M'", &[], &["line 2", "'segmentsize'", "'segment-size'"]);
    check("data = 'd'", &["--listen", "0.0.0.0:7700"], &["--insecure", "127.0.0.1"]);
    check("data = 'd'", &["--dev", "--listen", "0.0.0.0:7700", "--insecure"], &["loopback only"]);
    check("data = 'd'\nmemory = '1M'", &[], &["at least"]);
    check("memory = ", &["--data", "d"], &["ringmq.toml", "line 1"]);
    assert!(!dir.path().join("d").exists(), "a refused configuration makes nothing");
    let output = run(&["server", "--config", "/nowhere/at/all.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/nowhere/at/all.toml"));
}

#[test]
fn completions_and_manual_pages_are_generated() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success() && output.stdout.len() > 1000, "{shell}");
    }
    assert!(text(&run(&["man"]).stdout).contains(".TH ringmq 1"));
    let dir = tempfile::tempdir().unwrap();
    assert!(ringmq().arg("man").arg(dir.path().join("man1")).status().unwrap().success());
    for page in
        ["ringmq.1", "ringmq-server.1", "ringmq-doctor.1", "ringmq-bench-goals.1", "ringmq-data-quarantine.1"]
    {
        assert!(dir.path().join("man1").join(page).is_file(), "{page}");
    }
    let output = run(&["man", "/proc/nowhere"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/proc/nowhere"));
}

#[test]
fn doctor_answers_in_json_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let output = ringmq().args(["doctor", "--json", "--data"]).arg(dir.path()).output().unwrap();
    let checks = text(&output.stdout);
    let checks = checks.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let checks = checks.collect::<Vec<_>>();
    let failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!(output.status.code(), Some(i32::from(failed)));
    for name in ["kernel", "io_uring", "memlock", "nofile", "filesystem", "space", "device"] {
        assert_eq!(checks.iter().filter(|check| check["check"] == name).count(), 1, "{name}");
    }
    for check in &checks {
        assert_eq!(check["cure"].is_null(), check["status"] == "ok", "{check}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn doctor_fails_where_nothing_can_be_written() {
    let output = run(&["doctor", "--data", "/proc/self"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("not fit"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for args in ["man", "completions bash", "doctor", "--help"] {
        let script = format!("'{BINARY}' {args} | true; echo ${{PIPESTATUS[0]}}");
        let output = Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).output().unwrap();
        assert_eq!(text(&output.stdout), "0\n", "{args}");
        assert!(output.stderr.is_empty(), "{args}: {}", text(&output.stderr));
    }
}

#[test]
fn errors_for_programs_are_json() {
    let output = run(&["man", "/proc/nowhere", "--json"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["exit_code"], 1);
    assert!(error["error"].as_str().unwrap().contains("/proc/nowhere"));
}

#[test]
fn colour_is_for_terminals_unless_asked_for() {
    assert!(!text(&run(&["doctor"]).stdout).contains('\x1b'));
    assert!(text(&run(&["doctor", "--color", "always"]).stdout).contains('\x1b'));
}
