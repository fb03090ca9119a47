//! `ringmq bench consume`: reads as fast as the server gives, from one thread, checking what a client checks:
//! both checksums of every frame, the record table, and that offsets go on without a gap.

use super::cpu::{self, Busy};
use super::floor::Floors;
use super::latency::{Latencies, Quantiles, format_rate};
use super::report::{
    Progress, Ratio, Target, generator_bound, latency_text, load_text, parse_duration, parse_size, ratio_text,
};
use super::stamp::{Followed, Judge, Stamp, Watcher, wall_ns};
use super::wire::{Conn, Message, Place, Poller, Received, describe_error, handle_of, locate};
use ringmq_format::frame::{Codec, Frame};
use ringmq_format::record::Payload;
use ringmq_protocol::{Credit, Entry, Fetch, Request, Response, Subscribe, entries, limits};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const WAIT_MAX: Duration = Duration::from_millis(100);
/// A reader that has not reached the end gives up after so long without a record.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Time without records that a fetch at the end waits for some.
const FETCH_WAIT_MS: u32 = 500;
/// One fetch while verifying.
const READ_BACK_BYTES: u32 = 1 << 20;

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Earliest,
    Latest,
    Offset(u64),
}

fn parse_from(text: &str) -> Result<From, String> {
    match text {
        "earliest" => Ok(From::Earliest),
        "latest" => Ok(From::Latest),
        _ => text.parse().map(From::Offset).map_err(|_| "use earliest, latest or an offset".to_owned()),
    }
}

/// How records are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    /// Subscriptions with credit.
    Push,
    /// One fetch at a time for each partition.
    Fetch,
}

const EXAMPLES: &str = "\
Examples:
  ringmq bench consume --from earliest
  ringmq bench consume --from latest --duration 30s";

/// Read a topic as fast as the server gives.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ConsumeArgs {
    #[command(flatten)]
    pub(super) target: Target,
    /// Partitions to read [default: all].
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub(super) partition: Vec<u32>,
    /// Where to start: earliest, latest or an offset.
    #[arg(long, value_parser = parse_from, default_value = "earliest")]
    pub(super) from: From,
    /// Go on at the end, for --duration; without it, stop at the ends seen at the start.
    #[arg(long)]
    pub(super) follow: bool,
    /// How records are asked for.
    #[arg(long, value_enum, default_value_t = Mode::Push)]
    pub(super) mode: Mode,
    /// Bytes that the server may push ahead on a partition, or that one fetch asks for.
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "4M")]
    pub(super) credit: usize,
    /// Connections, all served by one thread; partitions are dealt out to them.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) connections: usize,
    /// Stop after this time [default: none, or 10s with --follow or --from latest].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) duration: Option<Duration>,
    /// Start over at the end, until --duration is over: to read what fits into memory for longer than it takes once.
    #[arg(long, requires = "duration", conflicts_with = "follow")]
    pub(super) again: bool,
    /// Stop after so many records.
    #[arg(long, value_name = "N")]
    pub(super) records: Option<u64>,
    /// Check order and duplicates by the stamps of a verifying producer, and count what is missing between them.
    #[arg(long)]
    pub(super) verify: bool,
}

pub(super) fn run(args: &ConsumeArgs, json: bool) -> Result<(), String> {
    let floors = args.target.floors()?;
    let (place, tally) = load(args, !json)?;
    let report = report(args, &place, &tally, floors.as_ref());
    let text = text(&report, &tally, floors.as_ref());
    args.target.deliver(&report, &[("", &tally.latencies)], tally.took, &text, json)?;
    match report.verdict {
        Some(verdict) if !verdict.holds() => Err(format!(
            "verification failed: {} duplicated, {} out of order, {} invented",
            verdict.duplicated, verdict.out_of_order, verdict.invented
        )),
        _ => Ok(()),
    }
}

/// All figures of a run.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    server: String,
    shards: usize,
    topic: String,
    mode: Mode,
    connections: usize,
    partitions: usize,
    follow: bool,
    seconds: f64,
    frames: u64,
    records: u64,
    records_s: f64,
    /// Bodies of records, decompressed.
    mb_s: f64,
    /// As received.
    wire_mb_s: f64,
    /// Whether every partition was read to the end that was seen at the start.
    caught_up: bool,
    /// From the stamp of a verifying producer on this machine to here, once per frame; with `follow`.
    end_to_end_us: Quantiles,
    latency_curve: Vec<(f64, f64)>,
    load_cpu_percent: f64,
    generator_bound: bool,
    ratios: Vec<Ratio>,
    verdict: Option<Followed>,
}

/// Counted while reading.
pub(super) struct Tally {
    latencies: Latencies,
    took: Duration,
    frames: u64,
    pub(super) records: u64,
    pub(super) body_bytes: u64,
    wire_bytes: u64,
    caught_up: bool,
    pub(super) busy_percent: f64,
    watcher: Option<Watcher>,
}

impl Tally {
    /// One pass more. Connecting is in no pass.
    fn add(&mut self, next: &Self) {
        let share = |tally: &Self| tally.busy_percent * tally.took.as_secs_f64();
        let busy = share(self) + share(next);
        self.took += next.took;
        self.busy_percent = busy / self.took.as_secs_f64().max(1e-9);
        self.frames += next.frames;
        self.records += next.records;
        self.body_bytes += next.body_bytes;
        self.wire_bytes += next.wire_bytes;
        self.caught_up |= next.caught_up;
    }

    /// What the reader can say of order and duplicates, if it was asked to.
    pub(super) fn followed(&self) -> Option<Followed> {
        self.watcher.as_ref().map(Watcher::followed)
    }
}

/// A partition being read.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) partition: u32,
    pub(super) next: u64,
    /// Visible end at the start.
    end: u64,
    /// Bytes that were pushed and not yet given back as credit.
    owed: u64,
    first: bool,
}

impl Part {
    /// Checks an entry against the position, and moves it.
    fn advance(&mut self, entry: &Entry<'_>) -> Result<(), String> {
        let base = entry.header.base_offset.get();
        // The first frame is the one that holds the offset that was asked for.
        let expected = if self.first { base <= self.next } else { base == self.next };
        if !expected || entry.header.end_offset() <= self.next {
            return Err(format!(
                "partition {}: records {base}..{} where {} should come next",
                self.partition,
                entry.header.end_offset(),
                self.next
            ));
        }
        self.next = entry.header.end_offset();
        self.first = false;
        Ok(())
    }

    fn caught_up(&self) -> bool {
        self.next >= self.end
    }
}

impl ConsumeArgs {
    /// What can be known to be wrong before connecting.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.connections == 0 {
            return Err("--connections must be at least 1".to_owned());
        }
        if self.credit == 0 || self.credit as u64 > limits::CREDIT_MAX {
            return Err(format!("--credit is 1 to {} bytes", limits::CREDIT_MAX));
        }
        Ok(())
    }
}

/// Reads, and answers where and what.
pub(super) fn load(args: &ConsumeArgs, show: bool) -> Result<(Place, Tally), String> {
    let begun = Instant::now();
    let (place, mut tally) = load_once(args, show)?;
    while let Some(left) = args.duration.filter(|_| args.again).map(|all| all.saturating_sub(begun.elapsed()))
    {
        if left.is_zero() || tally.records == 0 {
            break;
        }
        let (_, next) = load_once(&ConsumeArgs { duration: Some(left), ..args.clone() }, false)?;
        tally.add(&next);
    }
    Ok((place, tally))
}

fn load_once(args: &ConsumeArgs, show: bool) -> Result<(Place, Tally), String> {
    let (_control, place) = locate(&args.target.server, &args.target.topic, None)?;
    let partitions = if args.partition.is_empty() {
        (0..place.partitions).collect()
    } else {
        let mut partitions = args.partition.clone();
        partitions.sort_unstable();
        partitions.dedup();
        partitions
    };
    let follow = args.follow || args.from == From::Latest;
    let progress = Progress::new(show, args.records.unwrap_or(0), args.duration.unwrap_or_default());
    let tally = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Some(core) = args.target.pin {
                cpu::pin(core)?;
            }
            let connections = args.connections.min(partitions.len());
            let readers = (0..connections)
                .map(|number| {
                    let own: Vec<u32> =
                        partitions.iter().copied().skip(number).step_by(connections).collect();
                    Reader::new(&args.target.topic, args.from, &place, &own)
                })
                .collect::<Result<Vec<_>, _>>()?;
            Loader { args, follow, readers, progress: &progress }.run()
        });
        progress.watch(thread, args.records.is_some())
    })?;
    Ok((place, tally))
}

/// How a reader asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    pub(super) mode: Mode,
    pub(super) credit: usize,
    /// Go on at the end.
    pub(super) follow: bool,
}

/// One connection and the partitions that are read over it.
pub(super) struct Reader {
    pub(super) conn: Conn,
    pub(super) parts: Vec<Part>,
    /// Index in `parts` by handle, which is also the number of the subscription.
    by_handle: HashMap<u32, usize>,
}

impl Reader {
    pub(super) fn new(topic: &str, from: From, place: &Place, partitions: &[u32]) -> Result<Self, String> {
        let shard = partitions.first().map_or(0, |partition| place.shard_of(*partition));
        let (mut conn, _) = Conn::dial(place.shards[shard])?;
        let opened = conn.open(topic, partitions)?;
        let parts: Vec<Part> = partitions
            .iter()
            .zip(&opened)
            .map(|(partition, opened)| {
                let next = match from {
                    From::Earliest => opened.bounds.log_start,
                    From::Latest => opened.bounds.visible_end,
                    From::Offset(offset) => offset,
                };
                Part { partition: *partition, next, end: opened.bounds.visible_end, owed: 0, first: true }
            })
            .collect();
        let by_handle = parts.iter().enumerate().map(|(at, part)| (handle_of(part.partition), at)).collect();
        Ok(Self { conn, parts, by_handle })
    }

    pub(super) fn ask(&mut self, asking: Asking, at: usize) {
        let part = &self.parts[at];
        let handle = handle_of(part.partition);
        let request = match asking.mode {
            Mode::Push => Request::Subscribe(Subscribe {
                handle,
                subscription: handle,
                offset: part.next,
                credit: asking.credit as u64,
                group: 0,
            }),
            Mode::Fetch => Request::Fetch(Fetch {
                handle,
                offset: part.next,
                max_bytes: asking.credit as u32,
                max_wait_ms: if asking.follow { FETCH_WAIT_MS } else { 0 },
                group: 0,
            }),
        };
        self.conn.queue(&request);
    }

    /// Checks an answer, hands each frame over and asks for more. Answers whether there were records.
    pub(super) fn take(
        &mut self,
        message: &Message,
        asking: Asking,
        mut each: impl FnMut(u32, &Entry<'_>, &Payload<'_>),
    ) -> Result<bool, String> {
        match self.conn.response(message)? {
            Response::Push(_) | Response::Fetched(_) => {}
            Response::Subscribed(_) | Response::Goodbye(_) => return Ok(false),
            Response::Error(error) => return Err(describe_error(&error)),
            _ => return Err("the server sent something that was not asked for".to_owned()),
        }
        let handle = message.header.handle();
        let at = self.by_handle.get(&handle).copied();
        let at = at.ok_or_else(|| format!("records for {handle}, which was not asked for"))?;
        let part = &mut self.parts[at];
        let frames = self.conn.frames(message);
        for entry in entries(frames) {
            let entry = entry.map_err(|e| format!("partition {}: {e}", part.partition))?;
            part.advance(&entry)?;
            let payload = checked(&entry.frame).map_err(|e| format!("partition {}: {e}", part.partition))?;
            each(part.partition, &entry, &payload);
        }
        let more = asking.follow || !part.caught_up();
        match asking.mode {
            Mode::Push => {
                part.owed += frames.len() as u64;
                if more && part.owed * 2 >= asking.credit as u64 {
                    let bytes = std::mem::take(&mut part.owed);
                    self.conn.queue(&Request::Credit(Credit { subscription: handle, bytes }));
                }
            }
            Mode::Fetch if more => self.ask(asking, at),
            Mode::Fetch => {}
        }
        Ok(true)
    }
}

struct Loader<'a> {
    args: &'a ConsumeArgs,
    follow: bool,
    readers: Vec<Reader>,
    progress: &'a Progress,
}

impl Loader<'_> {
    fn run(mut self) -> Result<Tally, String> {
        let mut poller = None;
        if self.readers.len() == 1 {
            self.readers[0].conn.blocking(WAIT_MAX)?;
        } else {
            let several = Poller::new()?;
            for (number, reader) in self.readers.iter().enumerate() {
                reader.conn.nonblocking()?;
                several.add(&reader.conn, number)?;
            }
            poller = Some(several);
        }
        let mut tally = Tally {
            latencies: Latencies::new()?,
            took: Duration::ZERO,
            frames: 0,
            records: 0,
            body_bytes: 0,
            wire_bytes: 0,
            caught_up: false,
            busy_percent: 0.0,
            watcher: self.args.verify.then(Watcher::default),
        };
        let asking = self.asking();
        let busy = Busy::start();
        let started = Instant::now();
        let ten_seconds = self.follow.then_some(Duration::from_secs(10));
        let stop_at = self.args.duration.or(ten_seconds).map(|duration| started + duration);
        let mut last = (0, started);
        for reader in &mut self.readers {
            for at in 0..reader.parts.len() {
                if self.follow || !reader.parts[at].caught_up() {
                    reader.ask(asking, at);
                }
            }
        }
        let mut ready: Vec<usize> = (0..self.readers.len()).collect();
        loop {
            for number in &ready {
                self.read(*number, &mut tally)?;
            }
            let now = Instant::now();
            tally.caught_up = self.readers.iter().flat_map(|reader| &reader.parts).all(Part::caught_up);
            let enough = self.args.records.is_some_and(|records| tally.records >= records);
            if enough || stop_at.is_some_and(|at| now >= at) || (tally.caught_up && !self.follow) {
                break;
            }
            if last.0 != tally.records {
                last = (tally.records, now);
            } else if !self.follow && now - last.1 > STALL_MAX {
                return Err(format!("nothing came for {} s before the end", STALL_MAX.as_secs()));
            }
            match &mut poller {
                // The read itself waits.
                None => {}
                Some(poller) => {
                    ready.clear();
                    // An outbox that the socket did not take whole is tried again in a while.
                    poller.wait(WAIT_MAX, &mut ready)?;
                    if ready.is_empty() {
                        ready.extend(0..self.readers.len());
                    }
                }
            }
        }
        tally.took = started.elapsed();
        tally.busy_percent = busy.percent();
        Ok(tally)
    }

    fn read(&mut self, number: usize, tally: &mut Tally) -> Result<(), String> {
        self.readers[number].conn.flush()?;
        if self.readers[number].conn.receive()? == Received::Nothing {
            return Ok(());
        }
        while let Some(message) = self.readers[number].conn.next_message()? {
            self.take(number, &message, tally)?;
        }
        self.readers[number].conn.flush()?;
        Ok(())
    }

    fn asking(&self) -> Asking {
        Asking { mode: self.args.mode, credit: self.args.credit, follow: self.follow }
    }

    fn take(&mut self, number: usize, message: &Message, tally: &mut Tally) -> Result<(), String> {
        let records_before = tally.records;
        let now_ns = if self.follow { wall_ns() } else { 0 };
        let (follow, asking) = (self.follow, self.asking());
        let counted = self.readers[number].take(message, asking, |partition, entry, payload| {
            tally.frames += 1;
            tally.records += u64::from(entry.header.count.get());
            tally.body_bytes += body_bytes(payload);
            if follow && let Some(stamp) = first_stamp(payload) {
                tally.latencies.record(stamp.age(now_ns));
            }
            if let Some(watcher) = &mut tally.watcher {
                each_body(entry, payload, |body| watcher.found(partition, body));
            }
        })?;
        if counted {
            tally.wire_bytes += message.header.message_len() as u64;
            self.progress.records.fetch_add(tally.records - records_before, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Bytes of all bodies of a frame, decompressed.
pub(super) fn body_bytes(payload: &Payload<'_>) -> u64 {
    payload.blocks().map(|block| u64::from(block.0.raw_len.get())).sum()
}

/// The stamp of a frame's first record.
pub(super) fn first_stamp(payload: &Payload<'_>) -> Option<Stamp> {
    Stamp::read(payload.blocks().next()?.1)
}

/// The records of a frame, after the checks that the client makes.
fn checked<'a>(frame: &Frame<'a>) -> Result<Payload<'a>, ringmq_format::Corruption> {
    frame.verify_payload()?;
    Payload::parse(frame)
}

/// Reads a partition from `start` to its end and hands every record to the judge. The partition is open on the
/// connection under its usual handle.
pub(super) fn read_back(
    conn: &mut Conn,
    partition: u32,
    start: u64,
    judge: &mut Judge,
) -> Result<(), String> {
    let mut part = Part { partition, next: start, end: 0, owed: 0, first: true };
    loop {
        let fetch = Fetch {
            handle: handle_of(partition),
            offset: part.next,
            max_bytes: READ_BACK_BYTES,
            max_wait_ms: 0,
            group: 0,
        };
        conn.queue(&Request::Fetch(fetch));
        conn.flush_all()?;
        let message = conn.wait_message().map_err(|e| format!("verify partition {partition}: {e}"))?;
        let Response::Fetched(fields) = conn.response(&message)? else {
            return Err("the server answered something else than FETCH".to_owned());
        };
        if fields.log_start.get() > part.next {
            return Err(format!(
                "retention removed records of partition {partition} before they could be verified"
            ));
        }
        let visible_end = fields.visible_end.get();
        let before = part.next;
        for entry in entries(conn.frames(&message)) {
            let bad = |e: &dyn std::fmt::Display| format!("partition {partition}: {e}");
            let entry = entry.map_err(|e| bad(&e))?;
            let payload = checked(&entry.frame).map_err(|e| bad(&e))?;
            part.advance(&entry)?;
            each_body(&entry, &payload, |body| {
                judge.found(partition, body);
            });
        }
        if part.next >= visible_end {
            return Ok(());
        }
        if part.next == before {
            return Err(format!(
                "partition {partition}: nothing at {before} although records to {visible_end} are visible"
            ));
        }
    }
}

/// The bodies of the records that an entry delivers.
pub(super) fn each_body(entry: &Entry<'_>, payload: &Payload<'_>, mut each: impl FnMut(&[u8])) {
    // A compressed frame is none of this generator's.
    if entry.frame.header.codec() != Codec::None {
        return;
    }
    let wanted = entry.header.first()..entry.header.first() + entry.header.count.get();
    let mut bodies = payload.entries();
    let mut index = 0;
    for (block, mut stored) in payload.blocks() {
        for record in bodies.by_ref().take(block.records.get() as usize) {
            let (body, rest) = stored.split_at(record.body_len);
            stored = rest;
            if wanted.contains(&index) {
                each(body);
            }
            index += 1;
        }
    }
}

fn report(args: &ConsumeArgs, place: &Place, tally: &Tally, floors: Option<&Floors>) -> Report {
    let seconds = tally.took.as_secs_f64();
    let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
    let mb_s = per_second(tally.body_bytes as f64 / 1e6);
    let follow = args.follow || args.from == From::Latest;
    let (what, limit) = match follow {
        true => ("loopback copy, MB/s", floors.and_then(Floors::copy_mb_s)),
        false => ("direct read or loopback copy, MB/s", floors.and_then(Floors::consume_mb_s)),
    };
    Report {
        bench: "consume",
        server: place.server.clone(),
        shards: place.shards.len(),
        topic: args.target.topic.clone(),
        mode: args.mode,
        connections: args.connections,
        partitions: if args.partition.is_empty() { place.partitions as usize } else { args.partition.len() },
        follow,
        seconds,
        frames: tally.frames,
        records: tally.records,
        records_s: per_second(tally.records as f64),
        mb_s,
        wire_mb_s: per_second(tally.wire_bytes as f64 / 1e6),
        caught_up: tally.caught_up,
        end_to_end_us: tally.latencies.quantiles(),
        latency_curve: tally.latencies.curve(),
        load_cpu_percent: tally.busy_percent,
        generator_bound: generator_bound(&[tally.busy_percent], false),
        ratios: Ratio::of(what, mb_s, limit).into_iter().collect(),
        verdict: tally.followed(),
    }
}

fn text(report: &Report, tally: &Tally, floors: Option<&Floors>) -> String {
    let mut text = format!(
        "consume  {} records in {} frames, {} partitions, {} connections, {}\n\
         rate     {:.0} records/s  {}  ({} with headers) over {:.1} s\n",
        report.records,
        report.frames,
        report.partitions,
        report.connections,
        if report.caught_up { "read to the end" } else { "stopped before the end" },
        report.records_s,
        format_rate(report.mb_s),
        format_rate(report.wire_mb_s),
        report.seconds,
    );
    text += &latency_text("end to end", &tally.latencies);
    text += &load_text(&[("", report.load_cpu_percent)], report.generator_bound);
    text += &ratio_text(&report.ratios, floors);
    if let Some(verdict) = report.verdict {
        text += &format!(
            "verified {} stamped records: {} duplicated, {} out of order, {} invented; {} missing between others \
             (lost, or refused to the producer)\n",
            verdict.found, verdict.duplicated, verdict.out_of_order, verdict.invented, verdict.missing
        );
    }
    text
}
