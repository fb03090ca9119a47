//! `kill -9` in a loop while all five scenarios run: whatever a client was told stays true.
//!
//! `RINGMQ_KILL_ROUNDS` says how many rounds, 2 if it does not. In each, the five scenarios are played at once on the
//! same directory, under names of their own, while the server is killed and started again under them at random moments.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;
#[path = "../src/demo/scenarios/mod.rs"]
mod scenarios;

use harness::{Chance, Launch, free_ports, scratch};
use scenarios::{Report, Stage, Trouble};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SHARDS: u16 = 2;

#[test]
fn the_scenarios_hold_through_kill_9() {
    let rounds: u64 = std::env::var("RINGMQ_KILL_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let dir = scratch();
    let args = ["--shards=2", "--memory=128M", "--segment-size=8M", "--check-every=1s"];
    let launch = Launch::new(&dir.path().join("data")).port(free_ports(SHARDS)).args(&args);
    let Some(server) = launch.ready() else { return };
    let address = server.address.to_string();
    let over = Arc::new(AtomicBool::new(false));
    let kills = Arc::new(AtomicU64::new(0));
    let killer = {
        let (over, kills) = (over.clone(), kills.clone());
        std::thread::spawn(move || {
            let mut chance = Chance::new();
            let mut server = server;
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(150 + chance.below(600)));
                server.kill();
                kills.fetch_add(1, Ordering::Relaxed);
                server = launch.ready().unwrap();
            }
            server
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut failures = Vec::new();
    for round in 0..rounds {
        let since = Instant::now();
        let stage = Stage { address: address.clone(), tag: format!("-{round}"), fast: true, kills: true };
        let (registration, order, status, sale, feed) = runtime.block_on(async {
            tokio::join!(
                scenarios::registration::play(&stage),
                scenarios::order::play(&stage),
                scenarios::status::play(&stage),
                scenarios::flash_sale::play(&stage),
                scenarios::price_feed::play(&stage),
            )
        });
        let results = [
            ("registration", registration),
            ("order", order),
            ("status", status),
            ("flash sale", sale),
            ("price feed", feed),
        ];
        for (name, result) in results {
            failures.extend(broken(round, name, result));
        }
        let kills = kills.load(Ordering::Relaxed);
        println!("round {round}: {:.1} s, {kills} kills so far", since.elapsed().as_secs_f64());
        if !failures.is_empty() {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
    killer.join().unwrap().stop_cleanly();
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(kills.load(Ordering::Relaxed) > 0, "somebody was killed");
}

fn broken(round: u64, name: &str, result: Result<Report, Trouble>) -> Vec<String> {
    match result {
        Ok(report) => {
            let broken = report.claims.iter().filter(|claim| !claim.held);
            let said = |claim: &scenarios::Claim| {
                let (title, story) = (report.title, &report.story);
                format!("round {round}, {title} ({story}): {}: {}", claim.name, claim.figures)
            };
            broken.map(said).collect()
        }
        Err(trouble) => vec![format!("round {round}, {name}: {trouble}")],
    }
}
