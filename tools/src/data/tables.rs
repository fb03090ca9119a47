//! `ringmq data topics`, `offsets` and `producers`: the tables that recovery would rebuild.

use crate::cli::Common;
use crate::failure::{EXIT_DAMAGE, EXIT_FAILED, Failure};
use crate::format::{harmless, time};
use crate::screen::{Ink, Screen, bytes_bar, thousands};
use crate::segment::filter::Moment;
use crate::segment::place::{Place, Reading, is_stopped};
use crate::segment::verify::starts_at_zero;
use comfy_table::Cell;
use ringmq_format::PartitionId;
use ringmq_segment::directory::Shard;
use ringmq_segment::late::{LateState, time_of};
use ringmq_segment::log::{Step, walk};
use ringmq_segment::scan::Point;
use ringmq_segment::state::{Partition, State};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const TOPICS_EXAMPLES: &str = "\
Examples:
  ringmq data topics /var/lib/ringmq                     live topics
  ringmq data topics /var/lib/ringmq --all               deleted ones, too
  ringmq data topics /var/lib/ringmq --at-time -1h       as it was an hour ago

By default the last checkpoint and the log behind it are read, as at a start. With --at-time, --at-lsn or --count all of
the log is read. Exit codes: 0 done; 1 failed; 3 damage was met, and what is shown goes on behind it.";

const OFFSETS_EXAMPLES: &str = "\
Examples:
  ringmq data offsets /var/lib/ringmq                    first and next offset of each partition
  ringmq data offsets /var/lib/ringmq --topic orders --count     ... with what the log holds of each
  ringmq data offsets /var/lib/ringmq --at-lsn 1048576 --shard 0

Exit codes: 0 done; 1 failed; 3 damage was met, and what is shown goes on behind it.";

const PRODUCERS_EXAMPLES: &str = "\
Examples:
  ringmq data producers /var/lib/ringmq                  every producer that is remembered
  ringmq data producers /var/lib/ringmq --topic orders --json

A producer that repeats one of the frames in its window is given the offset that it had.
Exit codes: 0 done; 1 failed; 3 damage was met, and what is shown goes on behind it.";

const TXNS_EXAMPLES: &str = "\
Examples:
  ringmq data txns /var/lib/ringmq                       transactions that are open, with their halves
  ringmq data txns /var/lib/ringmq --all --json | jq 'select(.state == \"committed\")'

A transaction of several shards is shown for each shard. Exit codes: 0 done; 1 failed; 3 damage was met.";

const TIMERS_EXAMPLES: &str = "\
Examples:
  ringmq data timers /var/lib/ringmq                     messages that wait for their due time
  ringmq data timers /var/lib/ringmq --topic orders --all

Exit codes: 0 done; 1 failed; 3 damage was met.";

#[derive(Debug, clap::Args)]
struct As {
    #[command(flatten)]
    reading: Reading,
    /// As of this position of the log.
    #[arg(long, value_name = "LSN", conflicts_with = "at_time")]
    at_lsn: Option<u64>,
    /// As of this time: what was appended before it.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at_time: Option<Moment>,
}

/// Which topics.
#[derive(Debug, clap::Args)]
#[command(after_help = TOPICS_EXAMPLES)]
pub(crate) struct TablesArgs {
    #[command(flatten)]
    at: As,
    /// Deleted topics, too.
    #[arg(long)]
    all: bool,
}

/// Which partitions.
#[derive(Debug, clap::Args)]
#[command(after_help = OFFSETS_EXAMPLES)]
pub(crate) struct OffsetsArgs {
    #[command(flatten)]
    at: As,
    /// Only this topic.
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Read all of the log, and count what it holds of each partition.
    #[arg(long)]
    count: bool,
}

/// Which transactions.
#[derive(Debug, clap::Args)]
#[command(after_help = TXNS_EXAMPLES)]
pub(crate) struct TxnsArgs {
    #[command(flatten)]
    at: As,
    /// Those that ended within a day, too.
    #[arg(long)]
    all: bool,
}

/// Which delayed messages.
#[derive(Debug, clap::Args)]
#[command(after_help = TIMERS_EXAMPLES)]
pub(crate) struct TimersArgs {
    #[command(flatten)]
    at: As,
    /// Only this topic.
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Those that ended within a day, too.
    #[arg(long)]
    all: bool,
}

/// Which producers.
#[derive(Debug, clap::Args)]
#[command(after_help = PRODUCERS_EXAMPLES)]
pub(crate) struct ProducersArgs {
    #[command(flatten)]
    at: As,
    /// Only this topic.
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
}

/// Tables of all shards.
pub(super) struct Tables {
    pub(super) states: Vec<(u16, State)>,
    pub(super) damaged: u64,
    shards: u16,
}

impl Tables {
    fn load(at: &As, all: bool, common: &Common) -> Result<Self, Failure> {
        let place = Place::open(&at.reading)?;
        let bar = bytes_bar(0, "reading", common);
        let mut states = Vec::new();
        let mut damaged = 0;
        for shard in &place.directory.shards {
            let state = load_shard(&place, shard, at, all, &mut damaged, &bar)?;
            states.push((shard.shard.0, state));
        }
        bar.finish_and_clear();
        let shards = if place.file.is_some() { u16::MAX } else { place.directory.identity.shards };
        Ok(Self { states, damaged, shards })
    }

    /// Topics of all shards; shard 0 knows all, and where it is lost the others know theirs.
    pub(super) fn topics(&self) -> State {
        let mut topics = State::default();
        let all = self.states.iter().flat_map(|(_, state)| state.topics.values());
        all.for_each(|topic| topics.enter_topic(topic.clone()));
        topics
    }

    /// Partitions by id with their shard; those in which nothing was ever written, too.
    fn partitions(&self) -> BTreeMap<u32, (u16, Partition)> {
        let mut all = BTreeMap::new();
        for topic in self.topics().topics.values().filter(|topic| !topic.deleted) {
            let read =
                |id: &PartitionId| self.states.iter().any(|(shard, _)| id.shard(self.shards).0 == *shard);
            let ids = topic.partition_ids().filter(read);
            all.extend(ids.map(|id| (id.0, (id.shard(self.shards).0, Partition::default()))));
        }
        for (shard, state) in &self.states {
            all.extend(state.partitions.iter().map(|(id, own)| (*id, (*shard, own.clone()))));
        }
        all
    }

    fn end(&self) -> Result<(), Failure> {
        match (self.damaged, is_stopped()) {
            (0, false) => Ok(()),
            (0, true) => Err(Failure::said(EXIT_FAILED)),
            _ => {
                eprintln!("note: {} damaged places; `ringmq segment verify` names them", self.damaged);
                Err(Failure::said(EXIT_DAMAGE))
            }
        }
    }
}

fn load_shard(
    place: &Place,
    shard: &Shard,
    at: &As,
    all: bool,
    damaged: &mut u64,
    bar: &indicatif::ProgressBar,
) -> Result<State, Failure> {
    let mut state = State::new(starts_at_zero(shard));
    state.late = Some(LateState::default());
    let past = at.at_lsn.is_some() || at.at_time.is_some();
    let checkpoint = place.file.is_none().then(|| shard.checkpoint(&place.source, &mut Vec::new())).flatten();
    let mut from = None;
    if let Some(checkpoint) = &checkpoint {
        state.restore(checkpoint, shard.shard, place.directory.identity.shards);
        if past {
            let before = |created_ms| at.at_time.is_none_or(|time| created_ms < time.0);
            state.topics.retain(|_, topic| before(topic.created_ms));
            state.forget_partitions();
            state.late = Some(LateState::default());
        } else if !all {
            let facts = &checkpoint.facts;
            from = Some(Point { lsn: facts.scan_start, chain: facts.scan_chain, epoch: 0 });
        }
    }
    let capacity: u64 = Place::log_bytes(shard);
    bar.inc_length(capacity);
    walk(
        &place.source,
        shard,
        checkpoint.map(|checkpoint| checkpoint.facts.durable_lsn),
        from,
        &mut |step| {
            match step {
                Step::Group(_, view) => {
                    bar.inc(view.bytes.len() as u64);
                    if at.at_lsn.is_some_and(|lsn| view.lsn.0 >= lsn) {
                        return ControlFlow::Break(());
                    }
                    *damaged += u64::from(!view.torn && !view.is_whole());
                    for frame in view.frames.iter().filter(|_| !view.torn) {
                        let early = at.at_lsn.is_none_or(|lsn| frame.lsn.0 < lsn)
                            && at.at_time.is_none_or(|time| time_of(frame) < time.0);
                        if early {
                            state.take(frame);
                        }
                    }
                }
                Step::Missing(..) | Step::Joint(..) | Step::Unreadable(..) => *damaged += 1,
                Step::Segment(..) | Step::SetAside(..) | Step::End(..) => {}
            }
            if is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    )?;
    Ok(state)
}

/// Lists topics.
pub(crate) fn topics(args: &TablesArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let tables = Tables::load(&args.at, false, common)?;
    let partitions = tables.partitions();
    let mut rows = Vec::new();
    for topic in tables.topics().topics.values().filter(|topic| args.all || !topic.deleted) {
        let own = topic.partition_ids().filter_map(|id| partitions.get(&id.0));
        let (records, last) = own.fold((0u64, 0), |(records, last), (_, own)| {
            (records + own.next.saturating_sub(own.start), last.max(own.last_time))
        });
        if screen.json {
            screen.object(&json!({
                "topic": topic.name, "id": topic.topic.0, "partitions": topic.partitions,
                "first_partition_id": topic.first_partition.0, "deleted": topic.deleted, "records": records,
                "created": time(topic.created_ms), "last_time": (last > 0).then(|| time(last)),
            }))?;
            continue;
        }
        rows.push(vec![
            screen.cell(Ink::Bold, &topic.name),
            Cell::new(topic.topic.0),
            Cell::new(topic.partitions),
            Cell::new(topic.first_partition.0),
            Cell::new(if topic.deleted { "deleted".to_owned() } else { thousands(records) }),
            Cell::new(time(topic.created_ms)),
            Cell::new(if last > 0 { time(last) } else { String::new() }),
        ]);
    }
    if !screen.json {
        screen.table(&["topic", "id", "partitions", "first id", "records", "created", "last"], rows)?;
    }
    tables.end()
}

/// Lists partitions.
pub(crate) fn offsets(args: &OffsetsArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let tables = Tables::load(&args.at, args.count, common)?;
    let topics = tables.topics();
    let mut rows = Vec::new();
    for (id, (shard, own)) in tables.partitions() {
        let topic = topics.topic_of(id);
        if args.topic.as_ref().is_some_and(|name| topic.is_none_or(|topic| topic.0.name != *name)) {
            continue;
        }
        let (name, number) = topic.map_or(("?", 0), |(topic, number)| (topic.name.as_str(), number));
        if screen.json {
            let mut object = json!({
                "topic": topic.map(|topic| &topic.0.name), "partition": number, "partition_id": id, "shard": shard,
                "first": own.start, "next": own.next, "records": own.next.saturating_sub(own.start),
                "last_time": (own.last_time > 0).then(|| time(own.last_time)), "producers": own.producers.len(),
                "holes": own.holes.iter().map(|hole| json!([hole.0, hole.1])).collect::<Vec<Value>>(),
            });
            if args.count {
                object["frames"] = own.frames.into();
                object["bytes"] = own.bytes.into();
                object["records_in_log"] = own.records.into();
            }
            screen.object(&object)?;
            continue;
        }
        let mut row = vec![
            screen.cell(Ink::Bold, name),
            Cell::new(number),
            Cell::new(id),
            Cell::new(shard),
            Cell::new(own.start),
            Cell::new(own.next),
            Cell::new(thousands(own.next.saturating_sub(own.start))),
            Cell::new(own.producers.len()),
            Cell::new(if own.last_time > 0 { time(own.last_time) } else { String::new() }),
        ];
        if args.count {
            row.push(Cell::new(thousands(own.frames)));
            row.push(Cell::new(ringmq_server::units::Size(own.bytes)));
            row.push(Cell::new(own.holes.len()));
        }
        rows.push(row);
    }
    if !screen.json {
        let mut header =
            vec!["topic", "partition", "id", "shard", "first", "next", "records", "producers", "last"];
        if args.count {
            header.extend(["frames", "bytes", "holes"]);
        }
        screen.table_without(&header, rows, &["id", "shard", "producers", "frames", "last"])?;
    }
    tables.end()
}

/// Lists producers.
pub(crate) fn producers(args: &ProducersArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let tables = Tables::load(&args.at, false, common)?;
    let topics = tables.topics();
    let mut rows = Vec::new();
    for (id, (_, own)) in tables.partitions() {
        let topic = topics.topic_of(id);
        if args.topic.as_ref().is_some_and(|name| topic.is_none_or(|topic| topic.0.name != *name)) {
            continue;
        }
        let (name, number) = topic.map_or(("?", 0), |(topic, number)| (topic.name.as_str(), number));
        for producer in own.producers.iter().rev() {
            let filled = usize::from(producer.filled.get()).min(producer.window.len());
            let window = &producer.window[..filled];
            if screen.json {
                let window: Vec<Value> = window
                    .iter()
                    .map(|frame| {
                        json!({
                            "sequence": frame.base_sequence.get(), "count": frame.count.get(),
                            "offset": frame.base_offset.get(), "time": time(frame.timestamp.get()),
                        })
                    })
                    .collect();
                screen.object(&json!({
                    "topic": topic.map(|topic| &topic.0.name), "partition": number, "partition_id": id,
                    "producer": format!("{:#x}", producer.producer.get()), "epoch": producer.epoch.get(),
                    "next_sequence": producer.next_sequence.get(), "last_time": time(producer.last_time.get()),
                    "window": window,
                }))?;
                continue;
            }
            let last = window.last();
            rows.push(vec![
                screen.cell(Ink::Bold, name),
                Cell::new(number),
                Cell::new(format!("{:#018x}", producer.producer.get())),
                Cell::new(producer.epoch.get()),
                Cell::new(producer.next_sequence.get()),
                Cell::new(last.map_or_else(String::new, |last| {
                    format!("{}+{}", last.base_offset.get(), last.count.get())
                })),
                Cell::new(time(producer.last_time.get())),
            ]);
        }
    }
    if !screen.json {
        let header = ["topic", "partition", "producer", "epoch", "next sequence", "last offsets", "last"];
        screen.table_without(&header, rows, &["last", "epoch", "last offsets"])?;
    }
    tables.end()
}

/// Lists transactions.
pub(crate) fn txns(args: &TxnsArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let tables = Tables::load(&args.at, false, common)?;
    let mut rows = Vec::new();
    for (shard, late) in tables.states.iter().filter_map(|(shard, state)| Some((shard, state.late.as_ref()?)))
    {
        for (id, txn) in &late.txns {
            let halves: Vec<_> = late.waiting.iter().filter(|(_, half)| half.txn == *id).collect();
            let records: u64 = halves.iter().map(|(_, half)| u64::from(half.count)).sum();
            let state = match (txn.decided_ms, txn.parked) {
                (0, false) => "open",
                (0, true) => "parked",
                _ => "decided",
            };
            let since = (txn.since_ms > 0 && txn.since_ms < i64::MAX).then(|| time(txn.since_ms));
            if screen.json {
                let identities: Vec<u64> = halves.iter().map(|(identity, _)| **identity).collect();
                screen.object(&json!({
                    "txn": format!("{id:032x}"), "shard": shard, "state": state, "group": txn.group, "since": since,
                    "halves": identities, "records": records, "checks": txn.attempts,
                    "positions": txn.positions.len(), "participants": txn.participants,
                }))?;
                continue;
            }
            rows.push(vec![
                screen.cell(Ink::Bold, format!("{id:032x}")),
                Cell::new(shard),
                Cell::new(state),
                Cell::new(harmless(txn.group.as_bytes())),
                Cell::new(thousands(halves.len() as u64)),
                Cell::new(thousands(records)),
                Cell::new(txn.attempts),
                Cell::new(since.unwrap_or_default()),
            ]);
        }
        for (id, (ended, committed, halves, positions)) in late.ended_txns.iter().filter(|_| args.all) {
            let state = if *committed { "committed" } else { "aborted" };
            if screen.json {
                screen.object(&json!({
                    "txn": format!("{id:032x}"), "shard": shard, "state": state, "ended": time(*ended),
                    "halves_it_had": halves, "positions": positions,
                }))?;
                continue;
            }
            rows.push(vec![
                Cell::new(format!("{id:032x}")),
                Cell::new(shard),
                Cell::new(state),
                Cell::new(""),
                Cell::new(thousands(u64::from(*halves))),
                Cell::new(""),
                Cell::new(""),
                Cell::new(time(*ended)),
            ]);
        }
    }
    if !screen.json {
        screen.table(
            &["transaction", "shard", "state", "group", "halves", "records", "checks", "since"],
            rows,
        )?;
    }
    tables.end()
}

/// Lists delayed messages.
pub(crate) fn timers(args: &TimersArgs, common: &Common) -> Result<(), Failure> {
    let screen = Screen::new(common);
    let tables = Tables::load(&args.at, false, common)?;
    let topics = tables.topics();
    let mut rows = Vec::new();
    for (shard, late) in tables.states.iter().filter_map(|(shard, state)| Some((shard, state.late.as_ref()?)))
    {
        let mut delays: Vec<_> = late.waiting.iter().filter(|(_, waiting)| waiting.txn == 0).collect();
        delays.sort_by_key(|(identity, waiting)| (waiting.due_ms, **identity));
        for (identity, delay) in delays {
            let topic = topics.topic_of(delay.partition);
            if args.topic.as_ref().is_some_and(|name| topic.is_none_or(|topic| topic.0.name != *name)) {
                continue;
            }
            let (name, number) = topic.map_or(("?", 0), |(topic, number)| (topic.name.as_str(), number));
            if screen.json {
                screen.object(&json!({
                    "id": identity, "shard": shard, "state": "waits", "due": time(delay.due_ms),
                    "topic": topic.map(|topic| &topic.0.name), "partition": number, "records": delay.count,
                    "bytes": delay.len, "lsn": delay.at.0,
                }))?;
                continue;
            }
            rows.push(vec![
                screen.cell(Ink::Bold, identity),
                Cell::new(shard),
                Cell::new("waits"),
                Cell::new(time(delay.due_ms)),
                Cell::new(name),
                Cell::new(number),
                Cell::new(delay.count),
            ]);
        }
        for (identity, (ended, delivered)) in late.ended_timers.iter().filter(|_| args.all) {
            let state = if *delivered { "delivered" } else { "cancelled" };
            if screen.json {
                screen.object(
                    &json!({"id": identity, "shard": shard, "state": state, "ended": time(*ended)}),
                )?;
                continue;
            }
            let none = || Cell::new("");
            let row = [Cell::new(identity), Cell::new(shard), Cell::new(state), Cell::new(time(*ended))];
            rows.push(row.into_iter().chain([none(), none(), none()]).collect());
        }
    }
    if !screen.json {
        screen.table(&["id", "shard", "state", "due or ended", "topic", "partition", "records"], rows)?;
    }
    tables.end()
}
