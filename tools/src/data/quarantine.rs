//! `ringmq data quarantine`: sets aside what recovery refuses, while no server runs on the directory.

use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, Failure};
use crate::offline::Offline;
use crate::screen::{self, Ink, Screen, thousands};
use ringmq_engine::recovery::OpenOptions;
use ringmq_engine::recovery::offline::Refused;
use ringmq_engine::shard::offline::{find_refused, set_aside};
use ringmq_server::units::Size;
use serde_json::json;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  ringmq data quarantine /var/lib/ringmq            what the server refuses, and what setting it aside would cost
  ringmq data quarantine /var/lib/ringmq --yes      set it aside

A server that ends with exit code 14 has found damage in what it had acknowledged, in a place that decides what the
log means. Try a copy of the disk or a backup first. What is set aside is not removed: its bytes stay where they are
until retention reaches the segment, but no server reads them again, and there is no way back.
Offsets of records in it answer Damaged. As many offsets as it may have held are left out at the ends of partitions
of which nothing later is found, so that none is given twice.
Exit codes: 0 no damage, or set aside; 1 failed; 3 damage found, and nothing was changed.";

/// Which directory.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct QuarantineArgs {
    /// The data directory; no server may run on it.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Do it. Without, only say what would be lost.
    #[arg(long)]
    yes: bool,
}

/// Shows what would be lost, or sets it aside.
pub(crate) fn run(args: &QuarantineArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let mut offline = Offline::open(&args.dir)?;
    let shards = offline.identity.shards;
    // Every shard is looked at before any is changed.
    let mut damaged: Vec<(OpenOptions, Vec<Refused>)> = Vec::new();
    let mut hopeless = 0;
    for options in offline.shards() {
        let bar = screen::progress(0, &format!("shard {}", options.shard.0), common);
        let found = find_refused(&mut offline.ring, &options, shards, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        match found {
            Ok(refused) if refused.is_empty() => {}
            Ok(refused) => damaged.push((options, refused)),
            Err(error) => {
                hopeless += 1;
                show_hopeless(&options, &error.to_string(), screen)?;
            }
        }
    }
    for (options, refused) in &damaged {
        for one in refused {
            show(options, one, screen)?;
        }
    }
    if hopeless > 0 {
        return Err(Failure::damage(format!(
            "{hopeless} of {shards} shards cannot be helped by setting ranges aside"
        ))
        .cure("restore the files named above from a copy; nothing was changed"));
    }
    if damaged.is_empty() {
        return if screen.json {
            Ok(screen.object(&json!({"damaged_shards": 0, "set_aside": 0}))?)
        } else {
            Ok(screen.line("no damage that recovery refuses: nothing to set aside")?)
        };
    }
    let ranges: usize = damaged.iter().map(|(_, refused)| refused.len()).sum();
    if !args.yes {
        if !screen.json {
            screen.line(&format!(
                "nothing was changed. To lose this and start without it:\n  ringmq data quarantine {} --yes",
                args.dir.display()
            ))?;
        }
        return Err(Failure::said(EXIT_DAMAGE));
    }
    for (options, refused) in &damaged {
        set_aside(&mut offline.ring, options, refused).map_err(|error| Failure::failed(error.to_string()))?;
    }
    if screen.json {
        screen.object(&json!({"damaged_shards": damaged.len(), "set_aside": ranges}))?;
    } else {
        screen.line(&format!(
            "{} {ranges} ranges set aside, durably. Next: start the server. It serves everything else; consumers are \
             told Damaged where records were.",
            screen.paint(Ink::Green, "done:")
        ))?;
    }
    Ok(())
}

fn show_hopeless(options: &OpenOptions, error: &str, screen: Screen) -> Result<(), Failure> {
    if screen.json {
        screen.object(&json!({"shard": options.shard.0, "refused": error, "can_be_set_aside": false}))?;
    } else {
        screen.line(&format!("{} shard {}: {error}", screen.paint(Ink::Red, "refused"), options.shard.0))?;
    }
    Ok(())
}

fn show(options: &OpenOptions, one: &Refused, screen: Screen) -> Result<(), Failure> {
    let bytes = one.end.0 - one.start.0;
    let corruption = one.corruption.map(|corruption| corruption.to_string());
    if screen.json {
        let partitions = one.recognised.partitions.iter().map(|(partition, (frames, records))| {
            json!({"partition": partition.0, "frames": frames, "records": records})
        });
        let partitions = partitions.collect::<Vec<_>>();
        screen.object(&json!({
            "shard": options.shard.0, "row": format!("{:?}", one.row), "file": one.path.display().to_string(),
            "segment": one.segment.0, "position": one.position, "start_lsn": one.start.0, "end_lsn": one.end.0,
            "bytes": bytes, "reason": one.reason, "corruption": corruption, "recognised_partitions": partitions,
            "recognised_topic_changes": one.recognised.topics,
            "recognised_group_changes": one.recognised.groups, "can_be_set_aside": true,
        }))?;
        return Ok(());
    }
    screen.line(&format!(
        "{} shard {}, row {:?}: {} at byte {}: {}{}",
        screen.paint(Ink::Red, "refused"),
        options.shard.0,
        one.row,
        one.path.display(),
        one.position,
        one.reason,
        corruption.map_or_else(String::new, |corruption| format!(" ({corruption})")),
    ))?;
    screen.line(&format!(
        "  would be lost: bytes {} to {} of the file ({}), positions {} to {} of the log, segment {}",
        one.position,
        one.position + bytes,
        Size(bytes),
        one.start.0,
        one.end.0,
        one.segment.0,
    ))?;
    for (partition, (frames, records)) in &one.recognised.partitions {
        screen.line(&format!(
            "  recognised in it: partition id {}, {} records in {frames} frames",
            partition.0,
            thousands(*records)
        ))?;
    }
    if one.recognised.topics > 0 {
        screen.line(&format!("  recognised in it: {} topics made or removed", one.recognised.topics))?;
    }
    if one.recognised.groups > 0 {
        let changes = one.recognised.groups;
        screen.line(&format!("  recognised in it: {changes} changes of groups and their positions"))?;
    }
    Ok(screen.line(&screen.paint(Ink::Dim, "  there may have been more in it that can no longer be told"))?)
}
