//! The five scenarios through the client library over TCP, against a real server: the same parts that the demo plays.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;
#[path = "../src/demo/scenarios/mod.rs"]
mod scenarios;

use harness::{Launch, scratch};
use scenarios::{Report, Stage, Trouble};
use std::future::Future;

fn check(part: impl AsyncFnOnce(&Stage) -> Result<Report, Trouble>) {
    let dir = scratch();
    let launch = Launch::new(&dir.path().join("data")).args(&["--shards=2", "--memory=128M"]);
    let Some(server) = launch.ready() else { return };
    let stage = Stage { address: server.address.to_string(), tag: String::new(), fast: true, kills: false };
    let report = run(part(&stage)).unwrap();
    println!("{}: {}\n{}", report.title, report.story, report.picture.join("\n"));
    for claim in &report.claims {
        println!("{} {}: {}", claim.held, claim.name, claim.figures);
    }
    assert!(report.claims.len() >= 4, "claims something");
    assert!(report.claims.iter().all(|claim| claim.held), "{:?}", report.claims);
    server.stop_cleanly();
}

fn run<T>(part: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(part)
}

#[test]
fn a_registration_waits_for_nobody() {
    check(async |stage| scenarios::registration::play(stage).await);
}

#[test]
fn an_order_is_whole_or_not_there() {
    check(async |stage| scenarios::order::play(stage).await);
}

#[test]
fn a_users_changes_come_one_by_one() {
    check(async |stage| scenarios::status::play(stage).await);
}

#[test]
fn a_burst_is_worked_off_at_leisure() {
    check(async |stage| scenarios::flash_sale::play(stage).await);
}

#[test]
fn every_cache_has_every_price() {
    check(async |stage| scenarios::price_feed::play(stage).await);
}
