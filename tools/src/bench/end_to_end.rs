//! `ringmq bench end-to-end`, `fan-out` and `mixed`: a producer and subscribers at the same time, and how long a
//! record takes from the intended time of its sending to each of them.
//!
//! The producer is that of `bench produce`, with all its shapes; every subscriber has a connection of its own and
//! gets every record. All subscribers are served by one thread. In `mixed`, readers on a third thread read the topic
//! from its start meanwhile, over and over.
//!
//! E1 subscribers stand at the visible ends before the first record is sent, so that each must get every record;
//! E2 a latency counts if the record's intended time lies behind the warm-up, once per frame and subscriber; rates
//!    count what arrives between the end of the warm-up and the end of the load;
//! E3 the run ends when every subscriber has reached the visible ends of after the load, or gives up.

use super::consume::{self, Asking, ConsumeArgs, From, Mode, Reader, body_bytes, each_body, first_stamp};
use super::cpu::{self, Busy};
use super::floor::Floors;
use super::latency::{Latencies, Quantiles, format_rate};
use super::produce::{self, Plan, ProduceArgs, demand, verdict_text};
use super::report::{Progress, Ratio, generator_bound, latency_text, load_text, parse_size, ratio_text};
use super::stamp::{STAMP_SIZE, Verdict, Watcher, wall_ns};
use super::wire::{Place, Poller, Received, locate};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WAIT_MAX: Duration = Duration::from_millis(50);
/// How long subscribers may take to reach the end once the load is over.
const DRAIN: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  ringmq bench end-to-end --batch 1 --rate 5000 --pin 1 --floor floors.json
  ringmq bench fan-out --subscribers 100 --batch 1 --rate 2000 --verify
  ringmq bench mixed --batch 10 --rate 50000 --readers 1

With --pin, producer and subscribers share that core unless --subscriber-pin names another.
A latency is that of a frame at one subscriber, from the intended time of sending.";

/// Which of the three it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    EndToEnd,
    FanOut,
    Mixed,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::EndToEnd => "end-to-end",
            Self::FanOut => "fan-out",
            Self::Mixed => "mixed",
        }
    }

    /// Subscribers and readers of the past, unless said otherwise.
    fn defaults(self) -> (usize, usize) {
        match self {
            Self::EndToEnd => (1, 0),
            Self::FanOut => (100, 0),
            Self::Mixed => (1, 1),
        }
    }
}

/// Publish and subscribe at once: latency from the intended time of sending to every subscriber.
#[derive(clap::Args, Clone, Debug)]
#[command(
    about = "Publish and subscribe at once: latency from the intended time of sending to every subscriber",
    long_about = None,
    after_help = EXAMPLES
)]
pub(super) struct EndToEndArgs {
    #[command(flatten)]
    pub(super) produce: ProduceArgs,
    /// Subscribers, each with a connection of its own, each gets every record [default: 1; fan-out: 100].
    #[arg(long, value_name = "N")]
    pub(super) subscribers: Option<usize>,
    /// Readers that read the topic from its start meanwhile, over and over [default: 0; mixed: 1].
    #[arg(long, value_name = "N")]
    pub(super) readers: Option<usize>,
    /// Bytes that the server may push ahead to a subscriber on a partition.
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "4M")]
    pub(super) credit: usize,
    /// Core for the subscribers' thread [default: that of --pin].
    #[arg(long, value_name = "CORE")]
    pub(super) subscriber_pin: Option<usize>,
}

impl EndToEndArgs {
    /// What can be known to be wrong before connecting.
    pub(super) fn check(&self) -> Result<(), String> {
        self.produce.check()?;
        if self.produce.record_size < STAMP_SIZE {
            return Err(format!("--record-size must be at least {STAMP_SIZE}: every record has a stamp"));
        }
        if self.subscribers == Some(0) {
            return Err("--subscribers must be at least 1".to_owned());
        }
        if self.credit == 0 || self.credit as u64 > ringmq_protocol::limits::CREDIT_MAX {
            return Err(format!("--credit is 1 to {} bytes", ringmq_protocol::limits::CREDIT_MAX));
        }
        Ok(())
    }

    /// Whether the threads of the load generator run on one core.
    fn shares_a_core(&self) -> bool {
        match self.produce.target.pin {
            Some(core) => self.subscriber_pin.is_none_or(|other| other == core),
            None => cpu::allowed_cores().len() == 1,
        }
    }
}

pub(super) fn run(kind: Kind, args: &EndToEndArgs, json: bool) -> Result<(), String> {
    let floors = args.produce.target.floors()?;
    let outcome = load(kind, args, !json)?;
    let report = report(kind, args, &outcome, floors.as_ref());
    let text = text(&report, &outcome, floors.as_ref());
    let latencies = [("", &outcome.delivered.latencies), ("acknowledged", &outcome.produced.latencies)];
    args.produce.target.deliver(&report, &latencies, outcome.produced.window(), &text, json)?;
    report.verdict.map_or(Ok(()), demand)
}

/// All figures of a run.
#[derive(Debug, Serialize)]
struct Report {
    bench: Kind,
    server: String,
    shards: usize,
    topic: String,
    partitions: u32,
    record_size: usize,
    batch: u32,
    frames: usize,
    connections: usize,
    in_flight: usize,
    rate: Option<f64>,
    subscribers: usize,
    readers: usize,
    seconds: f64,
    /// Acknowledged to the producer.
    records: u64,
    records_s: f64,
    mb_s: f64,
    /// Received by all subscribers together.
    delivered_records: u64,
    delivered_records_s: f64,
    delivered_mb_s: f64,
    /// From the intended time of sending to a subscriber, once per frame and subscriber.
    latency_us: Quantiles,
    latency_curve: Vec<(f64, f64)>,
    /// From the intended time of sending to the acknowledgement.
    acknowledged_us: Quantiles,
    /// Of the readers of the past.
    cold_mb_s: Option<f64>,
    refused: BTreeMap<String, u64>,
    unanswered: u64,
    load_cpu_percent: f64,
    subscribers_cpu_percent: f64,
    readers_cpu_percent: f64,
    generator_bound: bool,
    ratios: Vec<Ratio>,
    /// Summed over the subscribers.
    verdict: Option<Verdict>,
}

/// What a run left behind.
pub(super) struct Outcome {
    place: Place,
    pub(super) produced: produce::Tally,
    pub(super) delivered: Delivered,
    /// Bytes that the readers of the past read, and for how long.
    cold: Option<(u64, Duration)>,
    cold_busy_percent: f64,
    pub(super) verdict: Option<Verdict>,
}

/// Counted by the subscribers' thread.
pub(super) struct Delivered {
    pub(super) latencies: Latencies,
    records: u64,
    bytes: u64,
    busy_percent: f64,
    watchers: Vec<Watcher>,
    /// Some subscriber did not reach the end in time.
    pub(super) behind: usize,
}

/// Runs producer and subscribers, and holds what came against what was sent.
pub(super) fn load(kind: Kind, args: &EndToEndArgs, show: bool) -> Result<Outcome, String> {
    let mut produce_args = args.produce.clone();
    produce_args.stamped = true;
    let topic = produce_args.target.topic.clone();
    let plan = Plan::new(&produce_args)?;
    let (subscribers, readers) = kind.defaults();
    let subscribers = args.subscribers.unwrap_or(subscribers);
    let asking = Asking { mode: Mode::Push, credit: args.credit, follow: true };
    let mut readers_of_all = Vec::with_capacity(subscribers);
    for _ in 0..subscribers {
        let mut reader = Reader::new(&topic, From::Latest, &plan.place, &plan.partitions)?;
        for at in 0..reader.parts.len() {
            reader.ask(asking, at);
        }
        reader.conn.flush_all()?; // E1
        readers_of_all.push(reader);
    }
    let progress =
        Progress::new(show, produce_args.records.unwrap_or(0), produce_args.warmup + produce_args.duration);
    let ends: Mutex<Option<Vec<u64>>> = Mutex::new(None);
    let over = AtomicBool::new(false);
    let pin = args.subscriber_pin.or(produce_args.target.pin);
    let mut followers = Followers {
        verify: produce_args.verify,
        asking,
        readers: readers_of_all,
        progress: &progress,
        ends: &ends,
        over: &over,
    };
    let (place, partitions) = (plan.place.clone(), plan.partitions.clone());
    let (produced, delivered, cold) = std::thread::scope(|scope| {
        let following = scope.spawn(|| {
            if let Some(core) = pin {
                cpu::pin(core)?;
            }
            followers.run()
        });
        let reading = (args.readers.unwrap_or(readers) > 0).then(|| {
            let count = args.readers.unwrap_or(readers);
            let target = &args.produce.target;
            let over = &over;
            scope.spawn(move || read_past(target, count, pin, over))
        });
        let produced = {
            let shared = &plan;
            let driving = scope.spawn(|| shared.drive(&progress));
            progress.watch(driving, produce_args.records.is_some())
        };
        over.store(true, Ordering::Relaxed);
        let found = produced.and_then(|produced| {
            let (mut control, _) = locate(&produce_args.target.server, &topic, None)?;
            let opened = control.open(&topic, &partitions)?;
            let visible = opened.iter().map(|opened| opened.bounds.visible_end).collect();
            *ends.lock().unwrap_or_else(PoisonError::into_inner) = Some(visible);
            Ok(produced)
        });
        if found.is_err() {
            // Nobody waits for an end that is not known.
            *ends.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
        }
        let delivered = join(following);
        let cold = reading.map(join).transpose();
        Ok::<_, String>((found?, delivered?, cold?))
    })?;
    let (produced, judge) = produced;
    let verdict = match (&judge, produce_args.verify) {
        (Some(judge), true) => {
            let verdicts = delivered.watchers.iter().map(|watcher| watcher.against(judge));
            verdicts.reduce(add)
        }
        _ => None,
    };
    let cold_busy_percent = cold.as_ref().map_or(0.0, |cold| cold.2);
    let cold = cold.map(|cold| (cold.0, cold.1));
    Ok(Outcome { place, produced, delivered, cold, cold_busy_percent, verdict })
}

fn add(a: Verdict, b: Verdict) -> Verdict {
    Verdict {
        acknowledged: a.acknowledged + b.acknowledged,
        found: a.found + b.found,
        found_unacknowledged: a.found_unacknowledged + b.found_unacknowledged,
        lost: a.lost + b.lost,
        duplicated: a.duplicated + b.duplicated,
        out_of_order: a.out_of_order + b.out_of_order,
        invented: a.invented + b.invented,
    }
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, String>>) -> Result<T, String> {
    thread.join().unwrap_or_else(|_| Err("a load thread panicked".to_owned()))
}

/// Reads the topic from its start until the load is over: bytes of bodies, time and busy share.
fn read_past(
    target: &super::report::Target,
    connections: usize,
    pin: Option<usize>,
    over: &AtomicBool,
) -> Result<(u64, Duration, f64), String> {
    let started = Instant::now();
    let (mut bytes, mut shares) = (0, Vec::new());
    while !over.load(Ordering::Relaxed) {
        let mut target = target.clone();
        target.pin = pin;
        let args = ConsumeArgs {
            target,
            partition: Vec::new(),
            from: From::Earliest,
            follow: false,
            mode: Mode::Push,
            credit: 4 << 20,
            connections,
            // In slices, so that the end of the load is seen.
            duration: Some(Duration::from_millis(500)),
            again: false,
            records: None,
            verify: false,
        };
        let (_, tally) = consume::load(&args, false)?;
        if tally.records == 0 {
            std::thread::sleep(WAIT_MAX);
        }
        bytes += tally.body_bytes;
        shares.push(tally.busy_percent);
    }
    let busy = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    Ok((bytes, started.elapsed(), busy))
}

struct Followers<'a> {
    verify: bool,
    asking: Asking,
    readers: Vec<Reader>,
    progress: &'a Progress,
    /// Visible ends after the load, once known.
    ends: &'a Mutex<Option<Vec<u64>>>,
    over: &'a AtomicBool,
}

impl Followers<'_> {
    fn run(&mut self) -> Result<Delivered, String> {
        let mut poller = Poller::new()?;
        for (number, reader) in self.readers.iter().enumerate() {
            reader.conn.nonblocking()?;
            poller.add(&reader.conn, number)?;
        }
        let mut delivered = Delivered {
            latencies: Latencies::new()?,
            records: 0,
            bytes: 0,
            busy_percent: 0.0,
            watchers: Vec::new(),
            behind: 0,
        };
        delivered.watchers.resize_with(self.readers.len(), Watcher::default);
        let mut busy: Option<Busy> = None;
        let mut give_up_at = None;
        let mut ready: Vec<usize> = (0..self.readers.len()).collect();
        loop {
            for number in &ready {
                self.read(*number, &mut delivered)?;
            }
            let over = self.over.load(Ordering::Relaxed);
            if busy.is_none() && wall_ns() >= self.progress.count_from_ns.load(Ordering::Relaxed) {
                busy = Some(Busy::start());
            }
            if over {
                if let Some(busy) = busy.as_ref().filter(|_| give_up_at.is_none()) {
                    delivered.busy_percent = busy.percent();
                }
                let give_up_at = *give_up_at.get_or_insert_with(|| Instant::now() + DRAIN);
                let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(ends) = ends.as_ref() {
                    let behind = |reader: &&Reader| {
                        let at = |partition: u32| ends.get(partition as usize).copied().unwrap_or(0);
                        reader.parts.iter().any(|part| part.next < at(part.partition))
                    };
                    delivered.behind = self.readers.iter().filter(behind).count(); // E3
                    if delivered.behind == 0 || Instant::now() >= give_up_at {
                        return Ok(delivered);
                    }
                }
            }
            ready.clear();
            poller.wait(WAIT_MAX, &mut ready)?;
            if ready.is_empty() {
                // An outbox that a socket did not take whole.
                ready.extend(0..self.readers.len());
            }
        }
    }

    fn read(&mut self, number: usize, delivered: &mut Delivered) -> Result<(), String> {
        let (verify, asking) = (self.verify, self.asking);
        let reader = &mut self.readers[number];
        reader.conn.flush()?;
        if reader.conn.receive()? == Received::Nothing {
            return Ok(());
        }
        let now_ns = wall_ns();
        let from_ns = self.progress.count_from_ns.load(Ordering::Relaxed);
        let counted = (from_ns..self.progress.count_until_ns.load(Ordering::Relaxed)).contains(&now_ns);
        while let Some(message) = reader.conn.next_message()? {
            reader.take(&message, asking, |partition, entry, payload| {
                let stamp = first_stamp(payload);
                if let Some(stamp) = stamp.filter(|stamp| stamp.sent_ns >= from_ns) {
                    delivered.latencies.record(stamp.age(now_ns)); // E2
                }
                if counted {
                    delivered.records += u64::from(entry.header.count.get());
                    delivered.bytes += body_bytes(payload);
                }
                if verify {
                    let watcher = &mut delivered.watchers[number];
                    each_body(entry, payload, |body| watcher.found(partition, body));
                }
            })?;
        }
        reader.conn.flush()?;
        Ok(())
    }
}

fn report(kind: Kind, args: &EndToEndArgs, outcome: &Outcome, floors: Option<&Floors>) -> Report {
    let (produced, delivered) = (&outcome.produced, &outcome.delivered);
    let seconds = produced.window().as_secs_f64();
    let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
    let mb_s = per_second(produced.records as f64 * args.produce.record_size as f64 / 1e6);
    let delivered_mb_s = per_second(delivered.bytes as f64 / 1e6);
    let ratios = floors.map_or_else(Vec::new, |floors| {
        let published = Ratio::of("floor-pipe, published MB/s", mb_s, floors.pipe_mb_s());
        let received = Ratio::of("loopback copy, delivered MB/s", delivered_mb_s, floors.copy_mb_s());
        published.into_iter().chain(received).collect()
    });
    let (subscribers, readers) = kind.defaults();
    let busy = [produced.busy_percent, delivered.busy_percent, outcome.cold_busy_percent];
    Report {
        bench: kind,
        server: outcome.place.server.clone(),
        shards: outcome.place.shards.len(),
        topic: args.produce.target.topic.clone(),
        partitions: args.produce.partitions,
        record_size: args.produce.record_size,
        batch: args.produce.batch,
        frames: args.produce.frames,
        connections: args.produce.connections,
        in_flight: args.produce.in_flight(),
        rate: args.produce.rate,
        subscribers: args.subscribers.unwrap_or(subscribers),
        readers: args.readers.unwrap_or(readers),
        seconds,
        records: produced.records,
        records_s: per_second(produced.records as f64),
        mb_s,
        delivered_records: delivered.records,
        delivered_records_s: per_second(delivered.records as f64),
        delivered_mb_s,
        latency_us: delivered.latencies.quantiles(),
        latency_curve: delivered.latencies.curve(),
        acknowledged_us: produced.latencies.quantiles(),
        cold_mb_s: outcome.cold.map(|(bytes, took)| bytes as f64 / 1e6 / took.as_secs_f64().max(1e-9)),
        refused: produced.refused(),
        unanswered: produced.unanswered,
        load_cpu_percent: produced.busy_percent,
        subscribers_cpu_percent: delivered.busy_percent,
        readers_cpu_percent: outcome.cold_busy_percent,
        generator_bound: generator_bound(&busy, args.shares_a_core()),
        ratios,
        verdict: outcome.verdict,
    }
}

fn text(report: &Report, outcome: &Outcome, floors: Option<&Floors>) -> String {
    let mut text = format!(
        "{}  {} B × {} × {} frames, {} partitions, {} connections × {} in flight, {}, {} subscribers\n\
         publish  {:.0} records/s  {} over {:.1} s\n\
         deliver  {:.0} records/s  {}\n",
        report.bench.name(),
        report.record_size,
        report.batch,
        report.frames,
        report.partitions,
        report.connections,
        report.in_flight,
        report.rate.map_or("closed loop".to_owned(), |rate| format!("open loop at {rate} records/s")),
        report.subscribers,
        report.records_s,
        format_rate(report.mb_s),
        report.seconds,
        report.delivered_records_s,
        format_rate(report.delivered_mb_s),
    );
    if let Some(mb_s) = report.cold_mb_s {
        text += &format!("past     {} by {} readers from the start\n", format_rate(mb_s), report.readers);
    }
    text += &latency_text("end to end", &outcome.delivered.latencies);
    let acknowledged = latency_text("acknowledged", &outcome.produced.latencies);
    text += acknowledged.lines().next().unwrap_or_default();
    text += "\n";
    let mut threads =
        vec![("producer ", report.load_cpu_percent), ("subscribers ", report.subscribers_cpu_percent)];
    if report.readers > 0 {
        threads.push(("readers ", report.readers_cpu_percent));
    }
    text += &load_text(&threads, report.generator_bound);
    text += &ratio_text(&report.ratios, floors);
    for (name, frames) in &report.refused {
        text += &format!("refused  {frames} frames: {name}\n");
    }
    if report.unanswered > 0 {
        text += &format!("lost     {} requests without an answer\n", report.unanswered);
    }
    if outcome.delivered.behind > 0 {
        text += &format!("behind   {} subscribers did not reach the end\n", outcome.delivered.behind);
    }
    text += &report.verdict.map_or_else(String::new, verdict_text);
    text
}
