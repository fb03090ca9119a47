//! `ringmq data trace`: one record's life, as far as the log knows it.

use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, EXIT_FAILED, Failure};
use crate::format::{harmless, time};
use crate::screen::{Ink, Screen};
use crate::segment::dump::name_of;
use crate::segment::filter::each_group;
use crate::segment::place::{Place, Reading, is_stopped};
use ringmq_format::frame::FrameKind;
use ringmq_segment::group::FrameView;
use ringmq_segment::late;
use ringmq_segment::records::for_each;
use ringmq_segment::state::State;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

const EXAMPLES: &str = "\
Examples:
  ringmq data trace /var/lib/ringmq --topic orders --partition 2 --offset 5
  ringmq data trace /var/lib/ringmq --topic orders --key customer-7
  ringmq data trace /var/lib/ringmq --id 1048640            a half or delayed message, by its identity

All of the log is read. Exit codes: 0 found; 1 failed, or not found; 2 wrong use; 3 damage was met.";

/// Whose life.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    reading: Reading,
    /// Topic of the record.
    #[arg(long, value_name = "NAME", required_unless_present = "id")]
    topic: Option<String>,
    /// Its partition.
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Its offset.
    #[arg(long, value_name = "OFFSET", requires = "partition")]
    offset: Option<u64>,
    /// Every record with this key.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["offset", "id"])]
    key: Option<String>,
    /// Identity of a half or delayed message: what its producer was answered.
    #[arg(long, value_name = "ID", conflicts_with = "offset")]
    id: Option<u64>,
}

/// A record that was looked for.
struct Hit {
    offset: u64,
    key: Option<Vec<u8>>,
    created: i64,
    body: Vec<u8>,
}

struct Trace<'a> {
    args: &'a TraceArgs,
    screen: Screen,
    /// Identities that are followed, by shard.
    followed: BTreeSet<(u16, u64)>,
    /// Transactions that they are part of.
    txns: BTreeSet<u128>,
    /// Records that are followed: partition id, offset.
    records: BTreeSet<(u32, u64)>,
    /// Groups that are known to have passed a record.
    passed: BTreeSet<((u32, u64), String)>,
    found: u64,
    damaged: u64,
}

/// Traces.
pub(crate) fn run(args: &TraceArgs, common: &Common) -> Result<(), Failure> {
    if args.id.is_none() && args.offset.is_none() && args.key.is_none() {
        return Err(Failure::wrong_use("which record? --partition and --offset, --key, or --id"));
    }
    let place = Place::open(&args.reading)?;
    let bar = place.bar("trace", common);
    let mut trace = Trace {
        args,
        screen: Screen::new(common),
        followed: BTreeSet::new(),
        txns: BTreeSet::new(),
        records: BTreeSet::new(),
        passed: BTreeSet::new(),
        found: 0,
        damaged: 0,
    };
    let met = each_group(&place, &bar, &mut |shard, state, view| {
        for frame in &view.frames {
            trace.frame(shard.shard.0, state, frame)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    bar.finish_and_clear();
    if met.damaged > 0 {
        eprintln!("note: {} damaged places; `ringmq segment verify` names them", met.damaged);
    }
    if trace.damaged > 0 {
        return Err(Failure::said(EXIT_DAMAGE));
    }
    if is_stopped() {
        return Err(Failure::said(EXIT_FAILED));
    }
    if trace.found == 0 {
        let failure = Failure::failed("no such record is in the log");
        return Err(if met.damaged > 0 {
            failure.cure("it may be one of those that are damaged")
        } else {
            failure
        });
    }
    Ok(())
}

impl Trace<'_> {
    fn frame(&mut self, shard: u16, state: &State, frame: &FrameView<'_>) -> std::io::Result<()> {
        let header = &frame.header;
        let id = header.partition.get();
        match header.kind() {
            FrameKind::Data | FrameKind::Bound => self.written(shard, state, frame),
            FrameKind::Half | FrameKind::Delay => {
                let identity = late::identity(frame);
                let named = self.args.id == Some(identity);
                if named || self.holds_key(state, frame) {
                    self.followed.insert((shard, identity));
                    self.txns.extend(late::txn_of(frame));
                    self.event(
                        shard,
                        state,
                        frame,
                        if header.kind() == FrameKind::Half { "half" } else { "delayed" },
                    )?;
                }
                Ok(())
            }
            FrameKind::Bind => {
                let target = late::identity(frame);
                let by_offset = self.args.offset.is_some_and(|offset| {
                    self.fits_partition(state, id)
                        && (header.base_offset.get()..frame.end_offset().0).contains(&offset)
                });
                if by_offset || self.followed.contains(&(shard, target)) {
                    self.records
                        .extend((header.base_offset.get()..frame.end_offset().0).map(|offset| (id, offset)));
                    self.event(shard, state, frame, "bound")?;
                }
                Ok(())
            }
            FrameKind::Commit
            | FrameKind::Abort
            | FrameKind::Decision
            | FrameKind::Apply
            | FrameKind::Done
                if late::txn_of(frame).is_some_and(|txn| self.txns.contains(&txn)) =>
            {
                let name = format!("{:?}", header.kind()).to_lowercase();
                self.event(shard, state, frame, &name)
            }
            _ => {
                for (what, partition, from, to) in late::touches(frame) {
                    let passed = self.records.range((partition, from)..(partition, to)).copied().next();
                    // Each group passes it once.
                    if let Some(record) = passed
                        && (what.starts_with("failed") || self.passed.insert((record, what.clone())))
                    {
                        self.event(shard, state, frame, &what)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn fits_partition(&self, state: &State, id: u32) -> bool {
        let topic = state.topic_of(id);
        let named =
            self.args.topic.as_ref().is_none_or(|name| topic.is_some_and(|topic| topic.0.name == *name));
        let number = match (&self.args.topic, topic) {
            (Some(_), Some((_, number))) => number,
            _ => id,
        };
        named && self.args.partition.is_none_or(|wanted| wanted == number)
    }

    fn holds_key(&self, state: &State, frame: &FrameView<'_>) -> bool {
        let (Some(key), Some(whole)) = (&self.args.key, frame.frame()) else { return false };
        let mut found = false;
        let _ = for_each(&whole, false, &mut |record| found |= record.entry.key == Some(key.as_bytes()));
        found && self.fits_partition(state, frame.header.partition.get())
    }

    fn written(&mut self, shard: u16, state: &State, frame: &FrameView<'_>) -> std::io::Result<()> {
        let header = &frame.header;
        let (id, base) = (header.partition.get(), header.base_offset.get());
        if !self.fits_partition(state, id) {
            return Ok(());
        }
        let wanted = self.args.offset;
        if wanted.is_some_and(|offset| !(base..frame.end_offset().0).contains(&offset))
            || self.args.id.is_some()
        {
            return Ok(());
        }
        let Some(whole) = frame.frame() else {
            if wanted.is_some() {
                self.found += 1;
                self.damaged += 1;
                self.event(shard, state, frame, "written, and damaged since")?;
            }
            return Ok(());
        };
        let mut hits: Vec<Hit> = Vec::new();
        let _ = for_each(&whole, true, &mut |record| {
            let offset = base + u64::from(record.index);
            let key = self.args.key.as_ref().is_none_or(|key| record.entry.key == Some(key.as_bytes()));
            if key && wanted.is_none_or(|wanted| wanted == offset) {
                let key = record.entry.key.map(<[u8]>::to_vec);
                hits.push(Hit { offset, key, created: record.entry.time_ms, body: record.body.to_vec() });
            }
        });
        for Hit { offset, key, created, body } in hits {
            self.records.insert((id, offset));
            let (topic, partition) = name_of(state, id);
            if self.screen.json {
                let mut object = self.object(shard, state, frame, "written");
                object["offset"] = offset.into();
                object["created"] = time(created).into();
                object["key"] = key.as_deref().map(harmless).into();
                object["size"] = body.len().into();
                self.screen.object(&object)?;
            } else {
                let shown = harmless(&body[..body.len().min(60)]);
                self.screen.line(&format!(
                    "{}  {topic}[{partition}]@{offset}  {shown}{}",
                    time(header.timestamp.get()),
                    if body.len() > 60 { "..." } else { "" }
                ))?;
                self.screen.line(&format!("  created   {} by the producer's clock", time(created)))?;
            }
            self.event(shard, state, frame, "written")?;
        }
        Ok(())
    }

    fn object(&self, shard: u16, state: &State, frame: &FrameView<'_>, what: &str) -> Value {
        let mut object = crate::segment::dump::frame_json(shard, state, frame);
        object["event"] = what.into();
        object
    }

    fn event(&mut self, shard: u16, state: &State, frame: &FrameView<'_>, what: &str) -> std::io::Result<()> {
        self.found += 1;
        let header = &frame.header;
        if self.screen.json {
            return match what {
                "written" => Ok(()), // said with the record
                _ => self.screen.object(&self.object(shard, state, frame, what)),
            };
        }
        let mut line = format!(
            "  {}  {}  shard {shard}, position {} of the log, byte {} of its file, {} bytes",
            self.screen.paint(Ink::Bold, &format!("{what:<8}")),
            if header.timestamp.get() > 0 {
                time(header.timestamp.get())
            } else {
                "at an unknown time".to_owned()
            },
            frame.lsn,
            frame.position,
            frame.bytes.len(),
        );
        if header.producer_id.get() != 0 {
            line += &format!(
                ", producer {:#x} sequence {}",
                header.producer_id.get(),
                header.base_sequence.get()
            );
        }
        if header.kind() == FrameKind::Bind {
            let (topic, partition) = name_of(state, header.partition.get());
            line += &format!(", as {topic}[{partition}]@{}", header.base_offset.get());
        }
        for (name, value) in late::details(frame) {
            line += &format!(", {name} {}", harmless(value.as_bytes()));
        }
        self.screen.line(&line)
    }
}
