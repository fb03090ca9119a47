//! `ringmq segment inspect`: every field of every structure, its meaning and whether it holds.

use super::place::{Io, Place, Reading, is_stopped};
use super::verify::fault_json;
use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, Failure};
use crate::format::{harmless, time};
use crate::screen::{Ink, Screen, thousands};
use comfy_table::Cell;
use ringmq_format::limits::BLOCK_SIZE;
use ringmq_format::segment::FIRST_GROUP;
use ringmq_segment::fault::Fault;
use ringmq_segment::group::{FrameView, GroupView};
use ringmq_segment::layout;
use ringmq_segment::log::{Step, walk};
use ringmq_segment::spans::{self, Span, Value};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  ringmq segment inspect data/shard-00/log/000.seg            the header, then a line for each group and frame
  ringmq segment inspect data/shard-00/log/000.seg:8192       the group around byte 8192, field by field
  ringmq segment inspect data/shard-00/log/000.seg:0x2040 --hex     ... and every byte with the field it belongs to
  ringmq segment inspect data/shard-00/superblock             superblocks, checkpoints, sidecars and identities, too
  ringmq segment inspect --layout                             the format's tables

A position is what `verify` prints: a byte of the file. Text in records is shown escaped, so that nothing acts on the
terminal. Exit codes: 0 done; 1 failed; 2 wrong use; 3 what was shown is damaged.";

/// What to show.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InspectArgs {
    /// A file of a data directory, and a byte in it: FILE or FILE:POSITION.
    #[arg(value_name = "FILE[:POS]", required_unless_present = "layout")]
    file: Option<String>,
    /// Every byte, with the field that it belongs to.
    #[arg(long)]
    hex: bool,
    /// Print the format's tables instead.
    #[arg(long, conflicts_with_all = ["file", "hex"])]
    layout: bool,
    /// How files are read.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    io: Io,
}

/// Shows.
pub(crate) fn run(args: &InspectArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let Some(name) = args.file.as_ref().filter(|_| !args.layout) else { return show_layout(screen) };
    let (path, position) = split(name)?;
    if path.is_dir() {
        return Err(Failure::wrong_use(format!("{} is a directory", path.display()))
            .cure("`ringmq segment ls` lists its segment files"));
    }
    let source = args.io.source()?;
    let shown = path.display();
    let file = source.open(&path).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
    let head = file.read(0, BLOCK_SIZE).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
    let Some(structure) = spans::head_of(&head) else {
        let second = file.read(BLOCK_SIZE as u64, BLOCK_SIZE).unwrap_or_default();
        if spans::head_of(&second).is_none() {
            let what = match head.iter().all(|byte| *byte == 0) {
                true if head.is_empty() => "it is empty",
                true => "it begins with zeros: a slot that was never used, perhaps",
                false => "it begins with none of the known magic numbers",
            };
            return Err(Failure::damage(format!("{shown} is no file of a data directory: {what}")));
        }
        return inspect_segment(args, &path, position, screen);
    };
    if structure == "SegmentHeader" {
        return inspect_segment(args, &path, position, screen);
    }
    let len = BLOCK_SIZE * spans::copies_of(structure);
    let bytes = file.read(0, len).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
    for (copy, block) in bytes.chunks(BLOCK_SIZE).enumerate() {
        let at = copy * BLOCK_SIZE;
        show_spans(screen, args.hex, &spans::structure(structure, block, at), block, at, 0, &[])?;
    }
    Ok(())
}

/// A position behind the last colon, decimal or with 0x.
fn split(name: &str) -> Result<(PathBuf, Option<u64>), Failure> {
    if Path::new(name).exists() {
        return Ok((PathBuf::from(name), None));
    }
    let Some((file, position)) = name.rsplit_once(':') else {
        return Err(Failure::failed(format!("{name}: no such file")));
    };
    let parsed = match position.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => position.parse(),
    };
    let position = parsed
        .map_err(|_| Failure::wrong_use(format!("'{position}' is no position: FILE:8192 or FILE:0x2000")))?;
    Ok((PathBuf::from(file), Some(position)))
}

fn show_layout(screen: Screen) -> Result<(), Failure> {
    for structure in layout::structures() {
        if screen.json {
            let fields = structure.fields.iter().map(|field| {
                json!({"offset": field.offset, "size": field.size, "field": field.name, "meaning": field.meaning})
            });
            let fields: Vec<_> = fields.collect();
            screen.object(&json!({"structure": structure.name, "size": structure.size, "fields": fields}))?;
            continue;
        }
        screen.line(&screen.paint(Ink::Bold, &format!("{}, {} bytes", structure.name, structure.size)))?;
        let rows = structure.fields.iter().map(|field| {
            vec![
                Cell::new(field.offset),
                Cell::new(field.size),
                screen.cell(Ink::Bold, &field.name),
                Cell::new(&field.meaning),
            ]
        });
        screen.table(&["offset", "size", "field", "meaning"], rows.collect())?;
        screen.line("")?;
    }
    Ok(())
}

fn inspect_segment(
    args: &InspectArgs,
    path: &Path,
    position: Option<u64>,
    screen: Screen,
) -> Result<(), Failure> {
    let reading = Reading { path: path.to_owned(), shard: None, io: args.io };
    let place = Place::open(&reading)?;
    let shard = &place.directory.shards[0];
    let header_faults: Vec<Fault> = shard.faults.iter().map(|(_, fault)| fault.clone()).collect();
    let mut damaged = !header_faults.is_empty();
    if position.is_none_or(|position| position < FIRST_GROUP) {
        let copy = position.map_or(0, |position| position / BLOCK_SIZE as u64) as usize;
        let file = place.source.open(path)?;
        let bytes = file.read((copy * BLOCK_SIZE) as u64, BLOCK_SIZE)?;
        let at = copy * BLOCK_SIZE;
        show_spans(
            screen,
            args.hex,
            &spans::structure("SegmentHeader", &bytes, at),
            &bytes,
            at,
            0,
            &header_faults,
        )?;
        for fault in &header_faults {
            show_fault(screen, path, fault)?;
        }
        if position.is_some() {
            return if damaged { Err(Failure::said(EXIT_DAMAGE)) } else { Ok(()) };
        }
    }
    let mut found = false;
    let mut failed = None;
    let walked = walk(&place.source, shard, None, None, &mut |step| {
        let shown = match &step {
            Step::Group(_, view) => {
                let here = position.is_none_or(|position| {
                    (view.position..view.position + view.bytes.len() as u64).contains(&position)
                });
                if here {
                    found = true;
                    damaged |= !view.is_whole() && !view.torn;
                    match position {
                        Some(_) => show_group(screen, args.hex, path, view),
                        None => show_line(screen, path, view),
                    }
                } else {
                    Ok(())
                }
            }
            Step::SetAside(start, end) if position.is_none() && !screen.json => {
                screen.line(&format!("positions {start} to {end} of the log are set aside"))
            }
            _ => Ok(()),
        };
        match shown {
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
            Ok(()) if is_stopped() || (found && position.is_some()) => ControlFlow::Break(()),
            Ok(()) => ControlFlow::Continue(()),
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if let Some(position) = position
        && !found
    {
        let file = place.source.open(path)?;
        if position >= file.len() {
            return Err(Failure::wrong_use(format!("{} has {} bytes", path.display(), file.len())));
        }
        let end = walked.point.lsn.0 - shard.slots[0].facts.map_or(0, |facts| facts.base.0);
        let text = format!(
            "byte {position} lies behind the end of the log, which is at byte {end}: no group is there"
        );
        if screen.json {
            screen.object(&json!({"position": position, "end": end, "note": text}))?;
        } else {
            screen.line(&text)?;
        }
        let at = position / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
        let bytes = file.read(at, BLOCK_SIZE)?;
        if args.hex && !screen.json {
            hex_rows(screen, at, &bytes, "")?;
        }
    }
    if damaged { Err(Failure::said(EXIT_DAMAGE)) } else { Ok(()) }
}

fn show_line(screen: Screen, path: &Path, view: &GroupView<'_>) -> std::io::Result<()> {
    let frame = |frame: &FrameView<'_>| {
        let header = &frame.header;
        json!({
            "position": frame.position, "len": header.len.get(), "kind": format!("{:?}", header.kind()),
            "codec": format!("{:?}", header.codec()), "partition_id": header.partition.get(),
            "base_offset": header.base_offset.get(), "count": header.count.get(),
            "time": time(header.timestamp.get()), "intact": frame.is_intact(),
        })
    };
    if screen.json {
        return screen.object(&json!({
            "position": view.position, "lsn": view.lsn.0, "bytes": view.bytes.len(),
            "kind": view.kind().map(|kind| format!("{kind:?}")), "row": view.row().to_string(),
            "used": view.header.map(|header| header.used()), "epoch": view.header.map(|header| header.epoch.get()),
            "durable_lsn": view.header.map(|header| header.durable_lsn.get()),
            "frames": view.frames.iter().map(frame).collect::<Vec<_>>(),
            "faults": view.all_faults().iter().map(|fault| fault_json(path, fault)).collect::<Vec<_>>(),
        }));
    }
    let kind = view.kind().map_or("hole".to_owned(), |kind| format!("{kind:?}"));
    let (used, epoch) = view.header.map_or((0, 0), |header| (header.used(), header.epoch.get()));
    let row = if view.is_whole() {
        screen.paint(Ink::Green, "whole")
    } else {
        screen.paint(Ink::Red, &format!("row {}", view.row()))
    };
    screen.line(&format!(
        "{:>10}  {kind:<9} {:>9} bytes, {used:>9} used, {} frames, epoch {epoch}, LSN {}  {row}",
        view.position,
        view.bytes.len(),
        view.frames.len(),
        view.lsn,
    ))?;
    for frame in &view.frames {
        let header = &frame.header;
        let state = if frame.is_intact() { String::new() } else { screen.paint(Ink::Red, "  damaged") };
        screen.line(&format!(
            "{:>12}  {:?} {} bytes, partition id {}, offsets {}+{}, {}{state}",
            frame.position,
            header.kind(),
            header.len.get(),
            header.partition.get(),
            header.base_offset.get(),
            header.count.get(),
            if header.timestamp.get() == 0 { "no time".to_owned() } else { time(header.timestamp.get()) },
        ))?;
    }
    for fault in view.all_faults() {
        show_fault(screen, path, fault)?;
    }
    Ok(())
}

fn show_fault(screen: Screen, path: &Path, fault: &Fault) -> std::io::Result<()> {
    if screen.json {
        return screen.object(&fault_json(path, fault));
    }
    screen.line(&format!("{} {fault}", screen.paint(Ink::Red, "damaged")))
}

fn show_group(screen: Screen, hex: bool, path: &Path, view: &GroupView<'_>) -> std::io::Result<()> {
    let base = view.position;
    let frames: Vec<(usize, &[u8])> =
        view.frames.iter().map(|frame| ((frame.position - base) as usize, frame.bytes)).collect();
    let used = view.header.map_or(view.bytes.len(), |header| header.used());
    let spans = spans::group(view.bytes, &frames, used);
    let faults: Vec<Fault> = view.all_faults().into_iter().cloned().collect();
    if !screen.json {
        show_line(screen, path, view)?;
        screen.line("")?;
    }
    show_spans(screen, hex, &spans, view.bytes, 0, base, &faults)
}

/// `bytes` begin at `from` of the spans' counting, which begins at byte `base` of the file.
fn show_spans(
    screen: Screen,
    hex: bool,
    spans: &[Span],
    bytes: &[u8],
    from: usize,
    base: u64,
    faults: &[Fault],
) -> std::io::Result<()> {
    let state = |span: &Span| {
        let range = base + span.at as u64..base + (span.at + span.len) as u64;
        faults.iter().find(|fault| range.contains(&fault.position))
    };
    if screen.json {
        for span in spans {
            let bytes = &bytes[span.at - from..span.at - from + span.len];
            let mut object = json!({
                "position": base + span.at as u64, "size": span.len, "structure": span.structure, "field": span.field,
                "value": plain(&span.value), "meaning": span.meaning, "fault": state(span).map(ToString::to_string),
            });
            if hex {
                object["hex"] = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
            }
            screen.object(&object)?;
        }
        return Ok(());
    }
    let mut structure = "";
    let mut rows = Vec::new();
    for span in spans {
        let position = base + span.at as u64;
        if hex {
            if span.structure != structure {
                structure = &span.structure;
                screen.line(&screen.paint(Ink::Bold, structure))?;
            }
            let bytes = &bytes[span.at - from..span.at - from + span.len];
            let mut label = format!("{} = {}", span.field, words(&span.value));
            if let Some(fault) = state(span) {
                label += &format!("  {}", screen.paint(Ink::Red, &fault.to_string()));
            }
            hex_rows(screen, position, bytes, &label)?;
            continue;
        }
        rows.push(vec![
            Cell::new(position),
            Cell::new(span.len),
            Cell::new(&span.structure),
            screen.cell(Ink::Bold, &span.field),
            Cell::new(words(&span.value)),
            match state(span) {
                Some(fault) => screen.cell(Ink::Red, fault),
                None => screen.cell(Ink::Green, "ok"),
            },
            Cell::new(&span.meaning),
        ]);
    }
    if !hex {
        screen.table(&["byte", "size", "structure", "field", "value", "state", "meaning"], rows)?;
    }
    Ok(())
}

/// Sixteen bytes a row; rows of zeros after the first are left out.
fn hex_rows(screen: Screen, position: u64, bytes: &[u8], label: &str) -> std::io::Result<()> {
    let mut skipped = 0;
    for (index, row) in bytes.chunks(16).enumerate() {
        if index > 0 && row.iter().all(|byte| *byte == 0) {
            skipped += row.len();
            continue;
        }
        let hex = row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        let text: String =
            row.iter().map(|byte| if (32..127).contains(byte) { char::from(*byte) } else { '.' }).collect();
        let at = position + (index * 16) as u64;
        let label = if index == 0 { label } else { "" };
        screen.line(format!("{at:08x}  {hex:<47}  {text:<16}  {label}").trim_end())?;
    }
    if skipped > 0 {
        screen.line(&screen.paint(Ink::Dim, &format!("          {} zeros", thousands(skipped as u64))))?;
    }
    Ok(())
}

fn words(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::Time(ms) => time(*ms),
        Value::Hex(number, bytes) => format!("0x{number:0width$x}", width = bytes * 2),
        Value::Named(number, name) => format!("{number} {name}"),
        Value::Bytes(bytes) if bytes.len() > 64 => {
            format!("{} bytes: {}...", bytes.len(), harmless(&bytes[..48]))
        }
        Value::Bytes(bytes) => harmless(bytes),
        Value::Zeros => "zeros".to_owned(),
        Value::Opaque => String::new(),
    }
}

fn plain(value: &Value) -> serde_json::Value {
    match value {
        Value::Number(number) => {
            u64::try_from(*number).map_or_else(|_| number.to_string().into(), Into::into)
        }
        Value::Zeros => 0.into(),
        Value::Opaque => serde_json::Value::Null,
        other => words(other).into(),
    }
}
