//! `ringmq segment dump`: records or frames, as lines.

use super::filter::{Filter, each_group};
use super::place::{Place, Reading, is_stopped};
use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, EXIT_FAILED, Failure};
use crate::format::{self, DIRECTIVES, Format, Shown, base64, harmless, time};
use crate::screen::Screen;
use ringmq_format::frame::FrameKind;
use ringmq_format::record::properties;
use ringmq_segment::group::FrameView;
use ringmq_segment::late::txn_of;
use ringmq_segment::records::{RecordView, for_each};
use ringmq_segment::state::State;
use serde_json::{Value, json};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;

/// Examples, with the directives of -f.
const EXAMPLES: &str = "\
Examples:
  ringmq segment dump /var/lib/ringmq --topic orders                    its records, a line each
  ringmq segment dump /var/lib/ringmq --topic orders --json | jq .value
  ringmq segment dump /var/lib/ringmq --topic orders -f '%p %o %k %v\\n' > orders.txt
  ringmq segment dump data/shard-00/log/003.seg --frames --type topic
  ringmq segment dump /var/lib/ringmq --key customer-7 --from-time -1h --payload hex

Records come shard by shard in the order of the log. Compressed ones are decompressed; damaged ones are left out.
Exit codes: 0 done; 1 failed, or stopped by Ctrl-C; 3 some records are damaged and left out.";

/// How bodies and keys are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Encoding {
    /// Text; what is none is escaped, or base64 in JSON.
    Utf8,
    /// Hexadecimal.
    Hex,
    /// Base64.
    Base64,
    /// Not at all: only lengths.
    None,
}

/// What to dump.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{DIRECTIVES}"))]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    reading: Reading,
    /// Frames instead of records.
    #[arg(long)]
    frames: bool,
    /// A line's format; see below.
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "frames")]
    format: Option<Format>,
    /// How bodies are shown.
    #[arg(long, value_name = "HOW", default_value = "utf8")]
    payload: Encoding,
    /// At most so many lines.
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    #[command(flatten)]
    filter: Filter,
}

struct Dump<'a> {
    args: &'a DumpArgs,
    screen: Screen,
    out: BufWriter<io::StdoutLock<'static>>,
    line: Vec<u8>,
    left: u64,
    bad: u64,
}

/// Dumps.
pub(crate) fn run(args: &DumpArgs, common: &Common) -> Result<(), Failure> {
    let place = Place::open(&args.reading)?;
    let bar = place.bar("dump", common);
    if Screen::new(common).terminal {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let mut dump = Dump {
        args,
        screen: Screen::new(common),
        out: BufWriter::with_capacity(256 << 10, io::stdout().lock()),
        line: Vec::new(),
        left: args.count.unwrap_or(u64::MAX),
        bad: 0,
    };
    if dump.left == 0 {
        return Ok(());
    }
    let met = each_group(&place, &bar, &mut |shard, state, view| {
        for frame in &view.frames {
            if dump.frame(shard.shard.0, state, frame)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    dump.out.flush()?;
    bar.finish_and_clear();
    if met.damaged + dump.bad > 0 {
        eprintln!("note: {} damaged places; `ringmq segment verify` names them", met.damaged + dump.bad);
        return Err(Failure::said(EXIT_DAMAGE));
    }
    if is_stopped() {
        return Err(Failure::said(EXIT_FAILED));
    }
    Ok(())
}

impl Dump<'_> {
    fn frame(&mut self, shard: u16, state: &State, frame: &FrameView<'_>) -> io::Result<ControlFlow<()>> {
        if !self.args.filter.frame(frame, state) {
            return Ok(ControlFlow::Continue(()));
        }
        if self.args.frames {
            let object = frame_json(shard, state, frame);
            if self.screen.json {
                serde_json::to_writer(&mut self.out, &object)?;
                self.out.write_all(b"\n")?;
            } else {
                writeln!(self.out, "{}", frame_line(shard, state, frame))?;
            }
            return self.count();
        }
        let with_records = [FrameKind::Data, FrameKind::Half, FrameKind::Delay, FrameKind::Bound];
        if !with_records.contains(&frame.header.kind()) {
            return Ok(ControlFlow::Continue(()));
        }
        let Some(whole) = frame.frame() else {
            self.bad += 1;
            return Ok(ControlFlow::Continue(()));
        };
        let mut result = Ok(ControlFlow::Continue(()));
        let walked = for_each(&whole, self.args.payload != Encoding::None, &mut |record| {
            if matches!(result, Ok(ControlFlow::Continue(()))) {
                result = self.record(shard, state, frame, &record);
            }
        });
        if let Err(error) = walked {
            self.bad += 1;
            eprintln!("note: frame at byte {}: {error}", frame.position);
        }
        result
    }

    fn count(&mut self) -> io::Result<ControlFlow<()>> {
        self.left -= 1;
        Ok(if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn record(
        &mut self,
        shard: u16,
        state: &State,
        frame: &FrameView<'_>,
        record: &RecordView<'_>,
    ) -> io::Result<ControlFlow<()>> {
        let header = &frame.header;
        // HALF and DELAY have their own place where offsets would be.
        let has_offset = matches!(header.kind(), FrameKind::Data | FrameKind::Bound);
        let offset = header.base_offset.get().saturating_add(u64::from(record.index));
        if !self.args.filter.record(has_offset.then_some(offset), &record.entry) {
            return Ok(ControlFlow::Continue(()));
        }
        let (topic, partition) = name_of(state, header.partition.get());
        let properties: Vec<(&[u8], &[u8])> = properties(record.entry.properties).collect();
        let encoded = encode(self.args.payload, &record.body);
        let shown = Shown {
            topic: &topic,
            partition,
            offset,
            time_ms: header.timestamp.get(),
            key: record.entry.key,
            value: encoded.as_deref().unwrap_or(&record.body),
            headers: &properties,
        };
        self.line.clear();
        if let Some(format) = &self.args.format {
            if self.screen.terminal {
                // What a stranger published must not act on the terminal; a pipe gets it as it is.
                let (key, value) = (shown.key.map(harmless), harmless(shown.value));
                let key = key.as_deref().map(str::as_bytes);
                format
                    .write(&mut self.line, &Shown { key, value: value.as_bytes(), headers: &[], ..shown })?;
            } else {
                format.write(&mut self.line, &shown)?;
            }
        } else if self.screen.json {
            let mut object = format::to_json(&shown);
            object["shard"] = shard.into();
            object["lsn"] = frame.lsn.0.into();
            object["created"] = time(record.entry.time_ms).into();
            object["size"] = record.entry.body_len.into();
            if !has_offset {
                object["offset"] = Value::Null;
                object["identity"] = header.base_offset.get().into();
            }
            if header.kind() != FrameKind::Data {
                object["type"] = format!("{:?}", header.kind()).to_lowercase().into();
            }
            if let Some(tag) = record.entry.tag {
                object["tag"] = String::from_utf8_lossy(tag).into();
            }
            if header.producer_id.get() != 0 {
                object["producer"] = format!("{:#x}", header.producer_id.get()).into();
                object["sequence"] = header.base_sequence.get().wrapping_add(record.index).into();
            }
            if let Some(txn) = txn_of(frame) {
                object["txn"] = format!("{txn:032x}").into();
            }
            serde_json::to_writer(&mut self.line, &object)?;
            self.line.push(b'\n');
        } else {
            let place =
                if has_offset { format!("@{offset}") } else { format!(" {:?}@{offset}", header.kind()) };
            write!(self.line, "{topic}[{partition}]{place}  {}", time(shown.time_ms))?;
            if let Some(key) = shown.key {
                write!(self.line, "  {}", harmless(key))?;
            }
            writeln!(self.line, "  {}", harmless(shown.value))?;
        }
        self.out.write_all(&self.line)?;
        self.count()
    }
}

fn encode(encoding: Encoding, body: &[u8]) -> Option<Vec<u8>> {
    match encoding {
        Encoding::Utf8 => None,
        Encoding::Hex => Some(body.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()),
        Encoding::Base64 => Some(base64(body).into_bytes()),
        Encoding::None => Some(Vec::new()),
    }
}

/// Topic and number of a partition; an unknown one has its id for a name.
pub(crate) fn name_of(state: &State, id: u32) -> (String, u32) {
    match state.topic_of(id) {
        Some((topic, number)) => (topic.name.clone(), number),
        None => (format!("id {id}"), 0),
    }
}

/// A frame as an object.
pub(crate) fn frame_json(shard: u16, state: &State, frame: &FrameView<'_>) -> Value {
    let header = &frame.header;
    let mut object = json!({
        "shard": shard, "lsn": frame.lsn.0, "position": frame.position, "len": header.len.get(),
        "type": format!("{:?}", header.kind()).to_lowercase(), "codec": format!("{:?}", header.codec()).to_lowercase(),
        "partition_id": header.partition.get(), "base_offset": header.base_offset.get(), "count": header.count.get(),
        "aux": header.aux.get(), "intact": frame.is_intact(),
    });
    if let Some((topic, number)) = state.topic_of(header.partition.get()) {
        object["topic"] = topic.name.clone().into();
        object["partition"] = number.into();
    }
    if header.timestamp.get() != 0 {
        object["time"] = time(header.timestamp.get()).into();
    }
    if header.producer_id.get() != 0 {
        object["producer"] = format!("{:#x}", header.producer_id.get()).into();
        object["producer_epoch"] = header.producer_epoch.get().into();
        object["sequence"] = header.base_sequence.get().into();
    }
    if let Some(txn) = txn_of(frame) {
        object["txn"] = format!("{txn:032x}").into();
    }
    for (name, value) in ringmq_segment::late::details(frame) {
        object[name] = value.into();
    }
    object
}

fn frame_line(shard: u16, state: &State, frame: &FrameView<'_>) -> String {
    let header = &frame.header;
    let (topic, partition) = name_of(state, header.partition.get());
    let mut line = format!("{shard}:{}  {:?}  {} bytes", frame.lsn, header.kind(), header.len.get());
    if header.partition.get() != 0 {
        line += &format!("  {topic}[{partition}]@{}+{}", header.base_offset.get(), header.count.get());
    }
    if header.timestamp.get() != 0 {
        line += &format!("  {}", time(header.timestamp.get()));
    }
    for (name, value) in ringmq_segment::late::details(frame) {
        line += &format!("  {name} {}", harmless(value.as_bytes()));
    }
    if !frame.is_intact() {
        line += "  damaged";
    }
    line
}
