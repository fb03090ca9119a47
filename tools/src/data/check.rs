//! `ringmq data check`: what recovery would decide at this moment. Recovery's own code is asked; where it cannot run,
//! the tools' reading of the same table, and that is said.

use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, EXIT_FAILED, Failure};
use crate::offline::{DESCRIPTORS_MAX, holder};
use crate::screen::{Ink, Screen, bytes_bar, thousands};
use crate::segment::place::{Io, Place, Reading, is_stopped};
use ringmq_engine::recovery::offline::Looked;
use ringmq_engine::recovery::{OpenError, OpenOptions};
use ringmq_engine::ring::{Errno, Ring, RingConfig};
use ringmq_engine::shard::offline::check;
use ringmq_segment::directory::Shard;
use ringmq_segment::source::Source;
use ringmq_segment::verdict::{Refused, Verdict, judge};
use ringmq_server::limits::SEGMENT_SIZE_DEFAULT;
use serde_json::json;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  ringmq data check /var/lib/ringmq            would a server start on it, and what would it lose?
  ringmq data check /var/lib/ringmq --json     an object for each shard

Rows are those of FORMAT.md, section 14. A torn tail (row D) is what a crash leaves: it was never acknowledged.
A server may run: then this is what a start would find if it were killed now.
Exit codes: 0 every shard would start, whole; 1 failed; 3 damage: a shard would be refused, or serve around damage.";

/// Tries again beside a server, whose log moves.
const TRIES: usize = 3;

/// Which directory.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    reading: Reading,
}

/// What was found, however it was found.
struct Found {
    refused: Option<Refused>,
    clean: bool,
    groups: u64,
    bytes: u64,
    cut: Option<(u64, String)>,
    damaged_frames: Vec<(PathBuf, u64)>,
    damaged_padding: u64,
    set_aside: Vec<(u64, u64)>,
    checkpoint_lost: bool,
    topics: usize,
    partitions: usize,
    records: u64,
    by: &'static str,
}

/// Checks.
pub(crate) fn run(args: &CheckArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let place = Place::open(&args.reading)?;
    if place.file.is_some() {
        return Err(Failure::wrong_use(
            "recovery is about a directory: name the one that `ringmq server --data` has",
        )
        .cure("`ringmq segment verify` checks a single file"));
    }
    let server = holder(&place.directory.path);
    if let Some(pid) = server
        && !screen.json
    {
        screen.line(&format!("a server runs on it (process {pid}): this is what a start would find now"))?;
    }
    let config = RingConfig { entries: 64, descriptors_max: DESCRIPTORS_MAX, register_buffers: false };
    let mut ring = match (&place.source, args.reading.io) {
        (Source::Uring, Io::Auto | Io::Uring) => Ring::uring(config).ok(),
        _ => None,
    };
    let mut worst = 0;
    let identity_bad = !place.directory.faults.is_empty()
        && ringmq_format::identity::Identity::parse(
            &std::fs::read(place.directory.path.join("identity")).unwrap_or_default(),
        )
        .is_err();
    if identity_bad {
        worst = EXIT_DAMAGE;
        let text = "the file identity cannot be read: the server refuses to start";
        if screen.json {
            screen.object(&json!({"refused": text}))?;
        } else {
            screen.line(&format!("{} {text}", screen.paint(Ink::Red, "refused")))?;
        }
    }
    for shard in &place.directory.shards {
        let mut found = look(&place, shard, ring.as_mut(), common)?;
        for _ in 1..TRIES {
            if server.is_none() || found.refused.is_none() {
                break;
            }
            let again = Place::open(&args.reading)?;
            let Some(shard) = again.directory.shards.iter().find(|other| other.shard == shard.shard) else {
                break;
            };
            found = look(&again, shard, ring.as_mut(), common)?;
        }
        if found.refused.is_some() || !found.damaged_frames.is_empty() || found.damaged_padding > 0 {
            worst = EXIT_DAMAGE;
        }
        show(screen, shard, &found)?;
        if is_stopped() {
            return Err(Failure::said(EXIT_FAILED));
        }
    }
    let missing = usize::from(place.directory.identity.shards) - place.directory.shards.len();
    if missing > 0 && args.reading.shard.is_none() && !screen.json {
        screen.line(&format!("{missing} shards have no directory yet: they are made at the start"))?;
    }
    if worst == 0 { Ok(()) } else { Err(Failure::said(worst)) }
}

fn look(place: &Place, shard: &Shard, ring: Option<&mut Ring>, common: &Common) -> Result<Found, Failure> {
    let bar = bytes_bar(0, &format!("shard {}", shard.shard), common);
    // One without both is made at the start, and there is nothing to recover.
    let is_made = !shard.slots.is_empty() || shard.superblock.is_some();
    if let Some(ring) = ring.filter(|_| is_made) {
        let options = OpenOptions {
            directory: shard.path.clone(),
            shard: shard.shard,
            node_id: place.directory.identity.node_id,
            segment_size: SEGMENT_SIZE_DEFAULT,
            durability: None,
            planted: Default::default(),
        };
        let shards = place.directory.identity.shards;
        let checked = check(ring, &options, shards, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        match checked {
            // It opens files for writing, though it writes nothing; and a shard may not be made yet.
            Err(OpenError::Io { error, .. })
                if [Errno::PERM, ACCESS, READ_ONLY, Errno::NOENT].contains(&error) => {}
            Err(OpenError::Io { during, path, error }) => {
                return Err(Failure::failed(format!("{during} {}: {error}", path.display())));
            }
            Err(OpenError::NoMemory) => return Err(Failure::failed("no memory for recovery's buffers")),
            Err(OpenError::Damaged { row, path, position, corruption, reason }) => {
                bar.finish_and_clear();
                let row = row.map(|row| format!("{row:?}")).and_then(|row| row.chars().next());
                let reason = corruption
                    .map_or_else(|| reason.to_owned(), |corruption| format!("{reason} ({corruption})"));
                return Ok(Found::refused(Refused { row, path, position, reason }, "recovery"));
            }
            Ok(checked) => {
                bar.finish_and_clear();
                return Ok(Found::looked(checked));
            }
        }
    }
    let verdict = judge(&place.source, &place.directory, shard, &mut |read| {
        bar.inc(read);
        is_stopped()
    })?;
    bar.finish_and_clear();
    Ok(Found::judged(verdict))
}

const ACCESS: Errno = Errno(libc::EACCES);
const READ_ONLY: Errno = Errno(libc::EROFS);

impl Found {
    fn refused(refused: Refused, by: &'static str) -> Self {
        Self {
            refused: Some(refused),
            clean: false,
            groups: 0,
            bytes: 0,
            cut: None,
            damaged_frames: Vec::new(),
            damaged_padding: 0,
            set_aside: Vec::new(),
            checkpoint_lost: false,
            topics: 0,
            partitions: 0,
            records: 0,
            by,
        }
    }

    fn looked(checked: ringmq_engine::shard::offline::Checked) -> Self {
        match checked.looked {
            Looked::Refused(refused) => {
                let reason = refused.corruption.map_or_else(
                    || refused.reason.to_owned(),
                    |corruption| format!("{} ({corruption})", refused.reason),
                );
                let row = format!("{:?}", refused.row).chars().next();
                let (path, position) = (refused.path, refused.position);
                Self::refused(Refused { row, path, position, reason }, "recovery")
            }
            Looked::Sound(report) => Self {
                refused: None,
                clean: report.clean,
                groups: report.groups,
                bytes: report.bytes,
                cut: report.cut.map(|(lsn, corruption)| (lsn.0, corruption.to_string())),
                damaged_frames: report.damaged_frames,
                damaged_padding: report.damaged_padding,
                set_aside: report.set_aside.iter().map(|(start, end)| (start.0, end.0)).collect(),
                checkpoint_lost: report.checkpoint_lost,
                topics: checked.topics,
                partitions: checked.partitions.len(),
                records: checked
                    .partitions
                    .iter()
                    .map(|(_, start, next)| next.0.saturating_sub(start.0))
                    .sum(),
                by: "recovery",
            },
        }
    }

    fn judged(verdict: Verdict) -> Self {
        const BY: &str = "the tools";
        if let Some(refused) = verdict.refused {
            return Self::refused(refused, BY);
        }
        Self {
            refused: None,
            clean: verdict.clean,
            groups: verdict.groups,
            bytes: verdict.bytes,
            cut: verdict.cut.map(|fault| (verdict.end.0, fault.to_string())),
            damaged_frames: verdict.damaged_frames,
            damaged_padding: verdict.damaged_padding,
            set_aside: verdict.set_aside.iter().map(|(start, end)| (start.0, end.0)).collect(),
            checkpoint_lost: verdict.checkpoint_lost,
            topics: verdict.state.topics.values().filter(|topic| !topic.deleted).count(),
            partitions: verdict.state.partitions.len(),
            records: verdict.state.partitions.values().map(|own| own.next.saturating_sub(own.start)).sum(),
            by: BY,
        }
    }
}

fn show(screen: Screen, shard: &Shard, found: &Found) -> std::io::Result<()> {
    let number = shard.shard.0;
    if screen.json {
        let damaged: Vec<_> = found
            .damaged_frames
            .iter()
            .map(|(path, position)| json!({"file": path.display().to_string(), "position": position}))
            .collect();
        return screen.object(&json!({
            "shard": number, "starts": found.refused.is_none(), "decided_by": found.by,
            "row": found.refused.as_ref().and_then(|refused| refused.row).map(|row| row.to_string()),
            "refused": found.refused.as_ref().map(|refused| json!({
                "file": refused.path.display().to_string(), "position": refused.position, "reason": refused.reason,
            })),
            "clean": found.clean, "groups_read": found.groups, "bytes_read": found.bytes,
            "cut": found.cut.as_ref().map(|(lsn, why)| json!({"lsn": lsn, "found": why})),
            "damaged_frames": damaged, "damaged_padding": found.damaged_padding, "set_aside": found.set_aside,
            "checkpoint_lost": found.checkpoint_lost, "topics": found.topics, "partitions": found.partitions,
            "records": found.records,
        }));
    }
    let by = if found.by == "recovery" {
        String::new()
    } else {
        format!(" (by {}' reading of the table)", found.by)
    };
    if let Some(refused) = &found.refused {
        let row = refused.row.map_or("a root structure".to_owned(), |row| format!("row {row}"));
        screen.line(&format!(
            "{} shard {number}, {row}: {} at byte {}: {}{by}",
            screen.paint(Ink::Red, "refused"),
            refused.path.display(),
            refused.position,
            refused.reason
        ))?;
        return screen.line(
            "  nothing was changed. `ringmq segment verify` names all damage; `data quarantine` or `segment salvage` go on",
        );
    }
    screen.line(&format!(
        "{} shard {number}: {}, {} groups to read, {} topics, {} partitions, {} records{by}",
        screen.paint(Ink::Green, "starts"),
        if found.clean { "stopped cleanly" } else { "not stopped cleanly" },
        thousands(found.groups),
        thousands(found.topics as u64),
        thousands(found.partitions as u64),
        thousands(found.records)
    ))?;
    // Zeros are what normally stands behind the end.
    if let Some((lsn, why)) = found.cut.as_ref().filter(|(_, why)| !why.ends_with("found 0x0)")) {
        screen.line(&format!("  row D: the log ends at position {lsn}; what stands behind it: {why}"))?;
    }
    for (path, position) in &found.damaged_frames {
        let head = screen.paint(Ink::Red, "row A:");
        screen
            .line(&format!("  {head} {} at byte {position}: this frame answers Damaged", path.display()))?;
    }
    if found.damaged_padding > 0 {
        screen.line(&format!(
            "  row P: {} groups with damaged padding, which cost nothing",
            found.damaged_padding
        ))?;
    }
    for (start, end) in &found.set_aside {
        screen.line(&format!("  set aside: positions {start} to {end}"))?;
    }
    if found.checkpoint_lost {
        screen.line("  the newest checkpoint cannot be read: an older one, or all of the log, is")?;
    }
    Ok(())
}
