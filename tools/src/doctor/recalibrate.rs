//! `ringmq doctor --recalibrate`: measures the durability call anew and writes the choice into every superblock.

use crate::cli::Common;
use crate::failure::Failure;
use crate::offline::Offline;
use crate::screen::{Ink, Screen, duration};
use ringmq_engine::recovery::offline::{change_superblock, measure_durability, read_superblock};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// A disk that was exchanged, or a directory that was moved, may want another call than the one of its first start.
pub(super) fn run(data: &Path, dry_run: bool, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let mut offline = Offline::open(data)?;
    let scratch = data.join(format!(".ringmq-doctor-{}", std::process::id()));
    let measured = measure_durability(&mut offline.ring, &scratch);
    let _ = std::fs::remove_file(&scratch);
    let failed = |error: ringmq_engine::recovery::OpenError| Failure::failed(error.to_string());
    let measured = measured.map_err(failed)?;
    let choice = measured.choice();
    if !screen.json {
        screen.line(&format!(
            "a durable write of 4 KiB: write + flush {}, RWF_DSYNC {}",
            duration(Duration::from_micros(measured.flush_us)),
            duration(Duration::from_micros(measured.dsync_us))
        ))?;
    }
    // All are read before any is written: a directory is changed whole, or not for a reason seen beforehand.
    let shards = offline.shards();
    let mut found = Vec::new();
    for options in &shards {
        found.push(read_superblock(&mut offline.ring, options).map_err(failed)?);
    }
    for (options, before) in shards.iter().zip(found) {
        let change = before.durability != choice;
        if change && !dry_run {
            change_superblock(&mut offline.ring, options, |block| block.durability = choice)
                .map_err(failed)?;
        }
        // What is written counts from the next start on.
        let epoch = before.epoch.0 + 1;
        let (from, to) = (before.durability.name(), choice.name());
        if screen.json {
            screen.object(&json!({
                "shard": options.shard.0, "before": from, "after": to, "epoch": epoch, "dry_run": dry_run,
                "changed": change && !dry_run, "flush_us": measured.flush_us, "dsync_us": measured.dsync_us,
            }))?;
            continue;
        }
        let what = match (change, dry_run) {
            (false, _) => format!("{from}, as before"),
            (true, true) => format!("{from} → {to}, if this were no dry run"),
            (true, false) => format!("{from} → {to}, from epoch {epoch} on"),
        };
        screen.line(&format!("{} shard {}: {what}", screen.paint(Ink::Green, "ok  "), options.shard.0))?;
    }
    Ok(())
}
