//! The real server on a file system that loses what was not flushed. Killing a process proves nothing about flushes,
//! because the page cache outlives it; here it does not.
//!
//! A case is a number of lives on one file system: each ends with the power going off under load. Every second case
//! has something else go wrong as well.

use super::disk::{Chance, Faults};
use super::{Shared, missing};
use crate::server::{Published, Publisher, must_start, text, verify};
use crate::sweep::{Swept, sweep};
use crate::{Options, Ran};
use std::time::{Duration, Instant};

const CASES: u64 = 10_000;
const LIVES: u64 = 5;

fn faults(chance: &mut Chance, case: u64) -> Faults {
    let mut faults = Faults::default();
    match case % 8 {
        1 => faults.flush_error = Some(20 + chance.below(200)),
        3 => faults.write_error = Some(40 + chance.below(400)),
        5 => faults.short_every = Some(2 + chance.below(20)),
        7 => faults.budget = Some((18 + chance.below(16)) << 20),
        _ => {}
    }
    faults
}

/// Why a life could not be judged, or what is wrong.
fn case(options: &Options, number: u64) -> Result<u64, String> {
    let mut chance = Chance(number);
    let scratch = tempfile::tempdir().map_err(text)?;
    let mount_point = scratch.path().join("mnt");
    std::fs::create_dir(&mount_point).map_err(text)?;
    let data = mount_point.join("data");
    let shared = Shared::new();
    let mut published: Vec<Published> = Vec::new();
    for life in 0..LIVES {
        let lies = options.plant.as_deref() == Some("LyingDisk");
        shared.lock().faults = Faults { lies, ..faults(&mut chance, number) };
        let mounted = shared.mount(&mount_point)?;
        match must_start(&options.binary, &data, scratch.path(), &[]) {
            Ok(mut server) => {
                let is_empty = published.iter().all(|one| one.acks.is_empty());
                let made = server.make_topic();
                if made.is_ok() {
                    verify(&server.read()?, &published)?;
                } else if !is_empty && number.is_multiple_of(2) {
                    made?;
                }
                let publisher = Publisher::start(&server, scratch.path(), &format!("p{life}"))?;
                std::thread::sleep(Duration::from_millis(20 + chance.below(300)));
                shared.lock().power_fails();
                server.kill();
                published.push(publisher.end()?);
            }
            // Something was made to fail, and it may say so.
            Err(Some(_)) if number % 2 == 1 => shared.lock().power_fails(),
            Err(why) => return Err(why.unwrap_or_default()),
        }
        drop(mounted);
        shared.lock().power_returns(&mut chance);
    }
    shared.lock().faults = Faults::default();
    let mounted = shared.mount(&mount_point)?;
    let server =
        must_start(&options.binary, &data, scratch.path(), &[]).map_err(Option::unwrap_or_default)?;
    server.make_topic()?;
    verify(&server.read()?, &published)?;
    let publisher = Publisher::start(&server, scratch.path(), "last")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::metadata(&publisher.acks).map_or(0, |file| file.len()) == 0 {
        if Instant::now() > deadline {
            return Err(format!("nothing is acknowledged on a good disk: {}", server.said()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    published.push(publisher.end()?);
    server.stop()?;
    drop(mounted);
    let acked: usize = published.iter().map(|one| one.acks.len()).sum();
    if acked == 0 { Err("nothing was ever acknowledged".to_owned()) } else { Ok(LIVES) }
}

pub(crate) fn run(options: &Options) -> Ran {
    if let Some(why) = missing() {
        return Ran::Skipped(format!("FUSE: {why}"));
    }
    if !options.binary.exists() {
        return Ran::Skipped(format!("no server at {}", options.binary.display()));
    }
    let swept: Swept = sweep(options, CASES, "power losses", || (), |(), number| case(options, number));
    Ran::Done(swept)
}
