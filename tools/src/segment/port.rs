//! `ringmq segment export` and `import`, `ringmq data backup` and `restore`: a portable file, both ways.

use super::filter::Moment;
use super::place::{Io, Place, Reading, is_stopped};
use super::salvage::{check, now_ms};
use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, Failure};
use crate::format::time;
use crate::screen::{Ink, Screen, bytes_bar, thousands};
use ringmq_format::Lsn;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::frame::FrameKind;
use ringmq_format::name::check_topic_name;
use ringmq_format::superblock::Durability;
use ringmq_segment::build::{Builder, Target};
use ringmq_segment::container::{self, Head, Piece, Totals, Writer};
use ringmq_segment::directory::node_name;
use ringmq_segment::late::LateState;
use ringmq_segment::rescue::{Partitions, Report, Sink, Tables, Wanted, take};
use ringmq_segment::state::{Partition, State};
use ringmq_server::units::Size;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};

const EXPORT_EXAMPLES: &str = "\
Examples:
  ringmq segment export /var/lib/ringmq --topic orders --to orders.rmqx
  ringmq segment export /var/lib/ringmq --topic orders --from-offset 1000 --until-offset 2000 --to part.rmqx
  ringmq segment import orders.rmqx                                     what is in it, and whether it is whole

The file holds frames as they are in the log: compressed, with offsets, times and producers; every chunk is checksummed.
Offsets bound whole frames: a frame that has one wanted record is taken whole.
Exit codes: 0 done; 1 failed; 2 wrong use; 3 something was damaged and is missing in the file.";

const IMPORT_EXAMPLES: &str = "\
Examples:
  ringmq segment import orders.rmqx                                check it and say what is in it
  ringmq segment import orders.rmqx --to /var/lib/ringmq-new       make a data directory of it
  ringmq segment import orders.rmqx --to dir --rename orders=orders-old

Exit codes: 0 done; 1 failed; 2 wrong use; 3 the file is damaged, and nothing was made.";

const BACKUP_EXAMPLES: &str = "\
Examples:
  ringmq data backup /var/lib/ringmq --to monday.rmqx         a server may run on it
  ringmq data restore monday.rmqx                             is it whole, and what is in it?

Each shard is taken up to a point at which everything before it was on the disk. The file is synced, then read back and
checked whole. Exit codes: 0 done; 1 failed; 3 something was damaged and is missing in the file.";

const RESTORE_EXAMPLES: &str = "\
Examples:
  ringmq data restore monday.rmqx --to /var/lib/ringmq                              then start the server on it
  ringmq data restore monday.rmqx --to /tmp/before --until-time 2026-11-22T06:29:44Z     as it was at that time
  ringmq data restore monday.rmqx --to /tmp/copy --rename orders=orders-restored

The new directory must not exist, or be empty. It has a name of its own, and is read back and checked. Transactions and
delays that are open go with it, but not to an earlier time.
Exit codes: 0 done; 1 failed; 2 wrong use; 3 the file is damaged, and nothing was made.";

/// What to export.
#[derive(Debug, clap::Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    reading: Reading,
    /// The file to write; it must not exist.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// The topic.
    #[arg(long, value_name = "NAME")]
    topic: String,
    /// Only this partition of it.
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// From the frame with this offset on.
    #[arg(long, value_name = "OFFSET")]
    from_offset: Option<u64>,
    /// Up to the frame before this offset.
    #[arg(long, value_name = "OFFSET")]
    until_offset: Option<u64>,
    /// What was appended from then on.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from_time: Option<Moment>,
    /// What was appended before.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until_time: Option<Moment>,
}

/// What to back up.
#[derive(Debug, clap::Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    reading: Reading,
    /// The file to write; it must not exist.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// What to make of a file.
#[derive(Debug, clap::Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    made: Making,
}

/// What to make of a backup.
#[derive(Debug, clap::Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    made: Making,
}

#[derive(Debug, clap::Args)]
struct Making {
    /// The file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The data directory to make. Without it, the file is checked and described.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Give a topic another name.
    #[arg(long, value_name = "OLD=NEW", value_parser = rename)]
    rename: Vec<(String, String)>,
    /// Leave out what was appended from then on.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until_time: Option<Moment>,
    /// How files are read.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    io: Io,
}

fn rename(text: &str) -> Result<(String, String), String> {
    let (old, new) = text.split_once('=').ok_or("it wants OLD=NEW")?;
    check_topic_name(new.as_bytes()).map_err(|error| format!("{new}: {error}"))?;
    Ok((old.to_owned(), new.to_owned()))
}

/// Exports a topic.
pub(crate) fn export(args: &ExportArgs, common: &Common) -> Result<(), Failure> {
    let wanted = Wanted {
        topic: Some(args.topic.clone()),
        partition: args.partition,
        from_offset: args.from_offset,
        until_offset: args.until_offset,
        from_time: args.from_time.map(|moment| moment.0),
        until_time: args.until_time.map(|moment| moment.0),
    };
    write(&args.reading, &args.to, &wanted, common)
}

/// Backs a directory up.
pub(crate) fn backup(args: &BackupArgs, common: &Common) -> Result<(), Failure> {
    // Beside a running server: nothing that one shard has and that another shard caused later.
    let wanted = Wanted { until_time: Some(now_ms() + 1), ..Wanted::default() };
    write(&args.reading, &args.to, &wanted, common)
}

fn write(reading: &Reading, to: &Path, wanted: &Wanted, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let place = Place::open(reading)?;
    let directory = &place.directory;
    let whole = wanted.topic.is_none();
    let shown = to.display();
    let file = File::options().write(true).create_new(true).open(to);
    let file = file.map_err(|error| Failure::failed(format!("cannot write {shown}: {error}")))?;
    let head = Head {
        shards: directory.identity.shards,
        whole,
        node_id: directory.identity.node_id,
        time_ms: now_ms(),
    };
    let bar = place.bar(if whole { "backup" } else { "export" }, common);
    let written = (|| -> io::Result<(Report, Totals)> {
        let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, file), &head)?;
        let (tables, report) = take(&place.source, directory, wanted, &mut writer, &mut |read| {
            bar.inc(read);
            is_stopped()
        })?;
        if whole {
            write_tables(&mut writer, &tables)?;
        }
        let (out, totals) = writer.finish()?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok((report, totals))
    })();
    bar.finish_and_clear();
    let (report, totals) = match written {
        Ok((report, totals)) if !report.stopped => (report, totals),
        Ok(_) => {
            let _ = std::fs::remove_file(to);
            return Err(Failure::failed("stopped: no file was written"));
        }
        Err(error) => {
            let _ = std::fs::remove_file(to);
            return Err(Failure::failed(format!("cannot write {shown}: {error}")));
        }
    };
    if totals.topics == 0
        && let Some(topic) = &wanted.topic
    {
        let _ = std::fs::remove_file(to);
        return Err(Failure::failed(format!("there is no topic {topic} in {}", directory.path.display()))
            .cure("`ringmq data topics DIR` lists them"));
    }
    // What was written is read back.
    let back = read_file(to, common, &mut |_| Ok(()), &mut |_| Ok(()))?;
    if back.1 != totals {
        return Err(Failure::failed(format!("{shown} does not read back as it was written")));
    }
    let lost = !report.missing.is_empty() || !report.other_damage.is_empty();
    for missing in &report.missing {
        let text = format!(
            "partition id {}: offsets {} to {} are damaged and missing in the file",
            missing.partition,
            missing.from,
            missing.to - 1
        );
        if screen.json {
            screen.object(&json!({"missing": missing.partition, "from": missing.from, "to": missing.to}))?;
        } else {
            screen.line(&format!("{} {text}", screen.paint(Ink::Red, "missing")))?;
        }
    }
    if screen.json {
        screen.object(&json!({
            "file": shown.to_string(), "frames": totals.frames, "records": report.records, "bytes": totals.bytes,
            "topics": totals.topics, "records_missing": report.records_missing(),
            "last_time": time(report.last_time), "verified": true,
        }))?;
    } else {
        screen.line(&format!(
            "{} {} records of {} topics in {} frames ({}) into {shown}, checked",
            screen.paint(Ink::Green, "written:"),
            thousands(report.records),
            thousands(totals.topics),
            thousands(totals.frames),
            Size(totals.bytes)
        ))?;
    }
    if lost { Err(Failure::said(EXIT_DAMAGE)) } else { Ok(()) }
}

fn write_tables(writer: &mut Writer<BufWriter<File>>, tables: &Tables) -> io::Result<()> {
    for (shard, late) in tables.late.iter().enumerate() {
        writer.late(shard as u16, late)?;
    }
    for (shard, partitions) in tables.partitions.iter().enumerate() {
        for (id, partition) in partitions {
            writer.partition(shard as u16, *id, partition)?;
        }
    }
    Ok(())
}

/// Reads and checks a file. Damage in it is damage.
fn read_file(
    path: &Path,
    common: &Common,
    begin: &mut dyn FnMut(&Head) -> io::Result<()>,
    each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
) -> Result<(Head, Totals), Failure> {
    let shown = path.display();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => Failure::damage(format!("{shown}: {error}")),
        _ => Failure::failed(format!("{shown}: {error}")),
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(Failure::failed(format!("{shown} is no file")));
    }
    let bar = bytes_bar(metadata.len(), "reading", common);
    let file = File::open(path).map_err(failed)?;
    let mut input = bar.wrap_read(BufReader::with_capacity(1 << 20, file));
    let read = container::read(&mut input, begin, each).map_err(failed)?;
    bar.finish_and_clear();
    let mut more = [0];
    if input.read(&mut more).map_err(failed)? > 0 {
        return Err(Failure::damage(format!("{shown}: there is more behind its end")));
    }
    Ok(read)
}

/// Imports a file.
pub(crate) fn import(args: &ImportArgs, common: &Common) -> Result<(), Failure> {
    make(&args.made, common)
}

/// Restores a backup.
pub(crate) fn restore(args: &RestoreArgs, common: &Common) -> Result<(), Failure> {
    make(&args.made, common)
}

/// What is being made of a file.
struct Made {
    builder: Option<Builder>,
    states: Vec<State>,
    tables: Vec<BTreeMap<u32, Partition>>,
    late: Vec<LateState>,
    /// Partitions of which something was left out, with the first offset of that.
    cut: BTreeMap<u32, u64>,
    records: u64,
    frames: u64,
    renamed: u64,
}

fn make(args: &Making, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let mut topics = State::default();
    let mut counts: BTreeMap<u32, (u64, u64, i64)> = BTreeMap::new();
    // All of it is checked before anything is made of it.
    let (head, totals) = read_file(&args.file, common, &mut |_| Ok(()), &mut |piece| {
        match piece {
            Piece::Topic(topic) => topics.enter_topic(topic),
            Piece::Frame(_, frame) => {
                if let Ok((header, _)) = ringmq_segment::group::frame_header(frame, 0, false) {
                    let count = counts.entry(header.partition.get()).or_default();
                    *count = (count.0 + u64::from(header.count.get()), count.1 + 1, header.timestamp.get());
                }
            }
            Piece::Partition(..) | Piece::Late(..) => {}
        }
        Ok(())
    })?;
    for (old, new) in &args.rename {
        if topics.topics.values().all(|topic| topic.deleted || topic.name != *old) {
            return Err(Failure::wrong_use(format!("{} holds no topic {old}", args.file.display())));
        }
        if topics.topics.values().any(|topic| !topic.deleted && topic.name == *new) {
            return Err(Failure::wrong_use(format!("{} holds a topic {new}, too", args.file.display())));
        }
    }
    let Some(to) = &args.to else { return describe(screen, &args.file, &head, &totals, &topics, &counts) };
    let shards = usize::from(head.shards);
    let bases = vec![Lsn(1 << 40); shards];
    let mut made = Made {
        builder: None,
        states: vec![State::new(false); shards],
        tables: vec![BTreeMap::new(); shards],
        late: vec![LateState::default(); shards],
        cut: BTreeMap::new(),
        records: 0,
        frames: 0,
        renamed: 0,
    };
    let goal = Target {
        path: to.clone(),
        shards: head.shards,
        durability: Durability::Flush,
        now_ms: now_ms(),
        bases,
        seed: None,
    };
    made.builder = Some(Builder::create(goal).map_err(|error| Failure::failed(error.to_string()))?);
    read_file(&args.file, common, &mut |_| Ok(()), &mut |piece| {
        if is_stopped() {
            return Err(io::Error::other(
                "stopped: the new directory is not finished, and no server takes it",
            ));
        }
        made.piece(args, piece)
    })?;
    let partitions = made.settle(args.until_time.is_some());
    if let Some(builder) = made.builder.take() {
        builder.finish(&partitions, &made.late)?;
    }
    check(to, args.io, made.frames)?;
    if screen.json {
        screen.object(&json!({
            "to": to.display().to_string(), "frames": made.frames, "records": made.records,
            "renamed": made.renamed, "verified": true,
        }))?;
    } else {
        screen.line(&format!(
            "{} {} records in {} frames into {}, checked",
            screen.paint(Ink::Green, "made:"),
            thousands(made.records),
            thousands(made.frames),
            to.display()
        ))?;
        screen.line(&format!("next: ringmq server --data {}", to.display()))?;
    }
    Ok(())
}

impl Made {
    fn piece(&mut self, args: &Making, piece: Piece<'_>) -> io::Result<()> {
        let Some(builder) = &mut self.builder else { return Ok(()) };
        match piece {
            Piece::Topic(mut topic) => {
                if args.until_time.is_some_and(|until| topic.created_ms >= until.0) {
                    return Ok(());
                }
                // As of an earlier time a topic that was deleted since may have lived; its frames are gone.
                if let Some((_, new)) =
                    args.rename.iter().find(|(old, _)| *old == topic.name && !topic.deleted)
                {
                    topic = TopicEntry { name: new.clone(), ..topic };
                    self.renamed += 1;
                }
                self.states.iter_mut().for_each(|state| state.enter_topic(topic.clone()));
                Sink::topic(builder, &topic)
            }
            Piece::Frame(shard, bytes) => {
                let (header, _) = ringmq_segment::group::frame_header(bytes, 0, false)
                    .map_err(|fault| io::Error::other(fault.to_string()))?;
                let waits = matches!(header.kind(), FrameKind::Half | FrameKind::Delay);
                if waits && args.until_time.is_some() {
                    return Ok(()); // what waited then is not known
                }
                if args.until_time.is_some_and(|until| header.timestamp.get() >= until.0) {
                    self.cut.entry(header.partition.get()).or_insert(header.base_offset.get());
                    return Ok(());
                }
                let view = ringmq_segment::group::FrameView {
                    position: 0,
                    lsn: Lsn(0),
                    header,
                    bytes,
                    header_fault: None,
                    payload_fault: None,
                };
                self.states[usize::from(shard)].take(&view);
                self.records += u64::from(header.count.get());
                self.frames += 1;
                Sink::frame(builder, shard, bytes)
            }
            Piece::Late(shard, kind, items, payload) => {
                if args.until_time.is_none() {
                    self.late[usize::from(shard)].restore_items(kind, items, payload);
                }
                Ok(())
            }
            Piece::Partition(shard, item) => {
                let partition = Partition {
                    start: item.start_offset.0,
                    next: item.next_offset.0,
                    last_time: item.last_time,
                    producers: item.producers,
                    ..Partition::default()
                };
                self.tables[usize::from(shard)].insert(item.partition.0, partition);
                Ok(())
            }
        }
    }

    /// What the file says of a partition counts unless something of it was left out.
    fn settle(&mut self, past: bool) -> Partitions {
        let states = std::mem::take(&mut self.states);
        let tables = std::mem::take(&mut self.tables);
        let both = states.into_iter().zip(tables);
        both.map(|(state, tables)| {
            let mut partitions = state.partitions;
            for (id, table) in tables {
                match (self.cut.get(&id), partitions.get(&id)) {
                    (None, _) if !past => {
                        partitions.insert(id, table);
                    }
                    (None, _) => {
                        partitions.entry(id).or_insert(table);
                    }
                    (Some(_), Some(_)) => {}
                    (Some(first), None) => {
                        let (start, next) = (*first, *first);
                        partitions.insert(id, Partition { start, next, ..Partition::default() });
                    }
                }
            }
            partitions
        })
        .collect()
    }
}

fn describe(
    screen: Screen,
    path: &Path,
    head: &Head,
    totals: &Totals,
    topics: &State,
    counts: &BTreeMap<u32, (u64, u64, i64)>,
) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for topic in topics.topics.values().filter(|topic| !topic.deleted) {
        let own = topic.partition_ids().filter_map(|id| counts.get(&id.0));
        let (records, frames, last) =
            own.fold((0, 0, 0), |sum, own| (sum.0 + own.0, sum.1 + own.1, sum.2.max(own.2)));
        if screen.json {
            screen.object(&json!({
                "topic": topic.name, "partitions": topic.partitions, "records": records, "frames": frames,
                "last_time": (last > 0).then(|| time(last)),
            }))?;
        } else {
            rows.push(vec![
                screen.cell(Ink::Bold, &topic.name),
                comfy_table::Cell::new(topic.partitions),
                comfy_table::Cell::new(thousands(records)),
                comfy_table::Cell::new(if last > 0 { time(last) } else { String::new() }),
            ]);
        }
    }
    if screen.json {
        return Ok(screen.object(&json!({
            "file": path.display().to_string(), "whole": true, "written": time(head.time_ms), "shards": head.shards,
            "node_id": node_name(head.node_id), "frames": totals.frames, "bytes": totals.bytes,
            "kind": if head.whole { "backup" } else { "export" },
        }))?);
    }
    screen.table(&["topic", "partitions", "records", "last"], rows)?;
    Ok(screen.line(&format!(
        "{} {} of directory {}, written {}: {} frames, {}",
        screen.paint(Ink::Green, "whole:"),
        if head.whole { "a backup" } else { "an export" },
        node_name(head.node_id),
        time(head.time_ms),
        thousands(totals.frames),
        Size(totals.bytes)
    ))?)
}
