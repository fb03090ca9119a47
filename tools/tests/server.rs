//! The life of a server as operators see it: banner, admin pages, signals, exit codes.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

mod common;

use common::{BINARY, Server, get, ringmq, text};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn starts_answers_and_stops_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(&dir.path().join("data"), &["--shards", "2"]) else { return };
    assert!(server.ready["native"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(server.ready["shard_ports"].as_array().unwrap().len(), 2);
    let admin = server.admin();
    assert_eq!(get(admin, "/livez").0, 200);
    let (status, body) = get(admin, "/readyz");
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("\"ready\":true"), "{body}");
    let (status, metrics) = get(admin, "/metrics");
    assert_eq!(status, 200);
    for family in ["ringmq_records_appended_total{shard=\"1\"} 0", "ringmq_build_info{", "# EOF"] {
        assert!(metrics.contains(family), "{family}");
    }
    assert_eq!(get(admin, "/nothing").0, 404);

    let asked = Instant::now();
    server.signal("TERM");
    let (code, out, err) = server.wait();
    assert_eq!(code, Some(0), "{out} {err}");
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert!(out.contains("\"event\":\"draining\"") && out.contains("\"clean\":true"), "{out}");
}

#[test]
fn interrupt_stops_too_and_a_second_start_finds_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let Some(server) = Server::start(dir.path(), &["--shards", "1", "--admin-listen=none"]) else {
            return;
        };
        assert!(server.ready["admin"].is_null());
        server.signal("INT");
        assert_eq!(server.wait().0, Some(0));
    }
}

#[test]
fn a_taken_admin_address_has_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = ringmq()
        .args(["server", "--json", "--listen", "127.0.0.1:0", "--admin-listen", &address, "--data"])
        .arg(dir.path().join("data"))
        .output()
        .unwrap();
    if output.status.code() == Some(common::IO_URING_REFUSED) {
        println!("skipped: io_uring is refused here");
        return;
    }
    assert_eq!(output.status.code(), Some(15), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--admin-listen none"));
    assert!(text(&output.stdout).contains("\"reason\":\"address_in_use\""));
}

#[test]
fn too_few_descriptors_have_their_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let script =
        format!("ulimit -n 64 && exec '{BINARY}' server --data '{}'", dir.path().join("d").display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(17), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("LimitNOFILE"));
    assert!(!dir.path().join("d").exists());
}

#[test]
fn hangup_reads_the_configuration_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ringmq.toml");
    std::fs::write(&file, "shards = 1").unwrap();
    let config = format!("--config={}", file.display());
    let Some(server) = Server::start(&dir.path().join("data"), &[&config, "--log-format=json"]) else {
        return;
    };
    let pause = || std::thread::sleep(Duration::from_millis(200));
    std::fs::write(&file, "shards = 1\nretain-time = '1d'\nmemory = '2G'").unwrap();
    server.signal("HUP");
    pause();
    std::fs::write(&file, "shards = 1\nretained = '1d'").unwrap();
    server.signal("HUP");
    pause();
    server.signal("TERM");
    let (code, _, err) = server.wait();
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("\"applied\":\"retention\"") && err.contains("\"restart\":\"memory\""), "{err}");
    assert!(err.contains("unknown key 'retained'"), "{err}");
}
