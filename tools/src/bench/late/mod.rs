//! `ringmq bench transactions` and `ringmq bench delays`: messages that become visible later, through the client
//! library, because what they cost is a protocol of several steps that a program would not write itself.
//!
//! A run takes messages one after the other: in a closed loop as many at a time as are allowed in flight, in an open
//! loop at their intended times, which a thread of its own keeps to the microsecond (the client's runtime knows
//! milliseconds). `--plain` publishes the same records the ordinary way, so that the two can be compared.
//!
//! T1 latency counts from the intended time to the answer that says durable: of the commit, or of the delayed record;
//! T2 every record has a number of its own; what was acknowledged must be read once, what was rolled back never, and
//!    what is delayed never before it is due;
//! T3 how late a delayed record is, is the time of its arrival here less the time it was due, by one clock.

mod ledger;

use super::cpu::{self, Busy};
use super::floor::Floors;
use super::latency::{Latencies, Quantiles, format_rate};
use super::report::{
    Progress, Ratio, Target, generator_bound, latency_text, load_text, parse_duration, parse_size, ratio_text,
};
use super::stamp::{STAMP_SIZE, Stamp, random, wall_ns};
use ledger::{Fate, LateVerdict, Ledger};
use ringmq_client::{
    CheckedTransaction, Client, ClientConfig, Consumer, ConsumerConfig, Producer, ProducerConfig, RecordBuf,
    Resolution, Start, Transaction, TransactionConfig, TransactionalProducer,
};
use serde::Serialize;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::LocalSet;

/// Messages under way in an open loop, unless said otherwise.
const OPEN_LOOP_IN_FLIGHT: usize = 1024;
/// First check of a transaction that is left open on purpose.
const LEFT_OPEN: Duration = Duration::from_secs(3_600);
/// How long what is due may take to arrive once everything else is over.
const ARRIVAL: Duration = Duration::from_secs(10);

const TRANSACTION_EXAMPLES: &str = "\
Examples:
  ringmq bench transactions --in-flight 128 --verify
  ringmq bench transactions --in-flight 128 --plain          the same records without transactions
  ringmq bench transactions --halves 4 --rate 500 --rollback 10
  ringmq bench transactions --open 100000 --in-flight 256    left open, to see what those cost

A message counts when its commit was answered.";

const DELAY_EXAMPLES: &str = "\
Examples:
  ringmq bench delays --delay 2s --rate 5000 --verify
  ringmq bench delays --delay 1s --in-flight 128 --plain     the same records at once
  ringmq bench delays --pending 1000000 --delay 1h --in-flight 256

How late a record is, is its arrival here less the time that it was due.";

/// What both have in common.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct LateArgs {
    #[command(flatten)]
    target: Target,
    /// Partitions to write to, in turn; the topic is made with so many if it does not exist.
    #[arg(long, value_name = "N", default_value_t = 1)]
    partitions: u32,
    /// Bytes of one record's body.
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "1K")]
    record_size: usize,
    /// Clients, each with connections of its own.
    #[arg(long, value_name = "N", default_value_t = 1)]
    connections: usize,
    /// Messages, or transactions, under way at a time, over all clients [default: 1, or 1024 with --rate].
    #[arg(long, value_name = "N")]
    in_flight: Option<usize>,
    /// Messages, or transactions, per second: an open loop, with latency from the intended time of sending.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Load before anything is counted.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2s")]
    warmup: Duration,
    /// Load that is counted.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
    /// Publish the same records the ordinary way.
    #[arg(long)]
    plain: bool,
    /// Read everything back: what was acknowledged is there once, and nothing is that must not be.
    #[arg(long)]
    verify: bool,
}

/// Publish in transactions: half messages and their commits.
#[derive(clap::Args, Clone, Debug)]
#[command(about = "Publish in transactions: half messages and their commits", long_about = None, after_help = TRANSACTION_EXAMPLES)]
pub(super) struct TransactionArgs {
    #[command(flatten)]
    late: LateArgs,
    /// Messages in a transaction.
    #[arg(long, value_name = "N", default_value_t = 1)]
    halves: u32,
    /// Of a hundred transactions so many are rolled back.
    #[arg(long, value_name = "PERCENT", default_value_t = 0)]
    rollback: u32,
    /// Begin so many transactions and leave all of them open, instead of a duration, with no warm-up.
    #[arg(long, value_name = "N")]
    open: Option<u64>,
}

/// Publish what becomes visible later, and measure how exactly it does.
#[derive(clap::Args, Clone, Debug)]
#[command(about = "Publish what becomes visible later, and measure how exactly it does", long_about = None, after_help = DELAY_EXAMPLES)]
pub(super) struct DelayArgs {
    #[command(flatten)]
    late: LateArgs,
    /// How long after its sending a record is due.
    #[arg(long, value_name = "TIME", value_parser = parse_delay, default_value = "1s")]
    delay: Duration,
    /// Stop after so many records instead of a duration, with no warm-up: to fill a server with pending ones.
    #[arg(long, value_name = "N")]
    pending: Option<u64>,
    /// Read nothing: what is measured of the server is publishing and becoming visible alone. It ends when all is due.
    #[arg(long)]
    unread: bool,
}

/// As other durations, and hours.
fn parse_delay(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('h') {
        Some(hours) => parse_duration(hours).map(|seconds| seconds * 3600),
        None => parse_duration(text),
    }
}

impl LateArgs {
    fn check(&self) -> Result<(), String> {
        for (name, value) in [
            ("--partitions", self.partitions as usize),
            ("--connections", self.connections),
            ("--in-flight", self.in_flight.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(format!("{name} must be at least 1"));
            }
        }
        if self.record_size < STAMP_SIZE {
            return Err(format!("--record-size must be at least {STAMP_SIZE}: every record has a number"));
        }
        if self.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            return Err("--rate must be above 0".to_owned());
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.in_flight.unwrap_or(if self.rate.is_some() { OPEN_LOOP_IN_FLIGHT } else { 1 })
    }
}

impl TransactionArgs {
    /// What can be known to be wrong before connecting.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.halves == 0 {
            return Err("--halves must be at least 1".to_owned());
        }
        if self.rollback > 100 || self.plain_with_rollback() {
            return Err("--rollback is 0 to 100 per cent, and 0 with --plain".to_owned());
        }
        if self.open.is_some() && (self.late.plain || self.late.verify || self.rollback > 0) {
            return Err("--open ends nothing: not with --plain, --verify or --rollback".to_owned());
        }
        self.late.check()
    }

    fn plain_with_rollback(&self) -> bool {
        self.late.plain && self.rollback > 0
    }
}

impl DelayArgs {
    /// What can be known to be wrong before connecting.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.pending.is_some() && self.late.verify {
            return Err("--verify waits for everything, which --pending is not meant for".to_owned());
        }
        if self.unread && self.late.verify {
            return Err("--verify reads everything, --unread nothing".to_owned());
        }
        self.late.check()
    }
}

/// What is done with each message.
#[derive(Clone, Copy, Debug)]
enum Work {
    Plain {
        records: u32,
    },
    Transaction {
        halves: u32,
        rollback: u32,
    },
    /// Transactions that nobody ends.
    Open {
        halves: u32,
    },
    Delay {
        after: Duration,
        read: bool,
    },
}

pub(super) fn run_transactions(args: &TransactionArgs, json: bool) -> Result<(), String> {
    let (halves, rollback) = (args.halves, args.rollback);
    let work = match (args.late.plain, args.open) {
        (true, _) => Work::Plain { records: halves },
        (false, Some(_)) => Work::Open { halves },
        (false, None) => Work::Transaction { halves, rollback },
    };
    run("transactions", &args.late, work, args.open, json)
}

pub(super) fn run_delays(args: &DelayArgs, json: bool) -> Result<(), String> {
    let work = match args.late.plain {
        true => Work::Plain { records: 1 },
        false => Work::Delay { after: args.delay, read: !args.unread },
    };
    run("delays", &args.late, work, args.pending, json)
}

fn run(
    bench: &'static str,
    args: &LateArgs,
    work: Work,
    stop_after: Option<u64>,
    json: bool,
) -> Result<(), String> {
    let floors = args.target.floors()?;
    let outcome = load(args, work, stop_after, !json)?;
    let report = report(bench, args, work, &outcome, floors.as_ref());
    let text = text(&report, &outcome, floors.as_ref());
    let latencies = [("", &outcome.latencies), ("late", &outcome.late)];
    args.target.deliver(&report, &latencies, outcome.window, &text, json)?;
    match report.verdict {
        Some(verdict) if !verdict.holds() => Err(format!("verification failed: {}", verdict.text())),
        _ => Ok(()),
    }
}

/// What a load left behind.
pub(super) struct Outcome {
    server: String,
    shards: usize,
    latencies: Latencies,
    late: Latencies,
    window: Duration,
    requests: u64,
    records: u64,
    rolled_back: u64,
    failed: Vec<String>,
    busy_percent: f64,
    verdict: Option<LateVerdict>,
}

struct Shared {
    args: LateArgs,
    work: Work,
    ledger: RefCell<Ledger>,
    tally: RefCell<Tally>,
    body: Vec<u8>,
    measure_at: Instant,
    stop_at: Instant,
}

struct Tally {
    latencies: Latencies,
    late: Latencies,
    requests: u64,
    records: u64,
    rolled_back: u64,
    /// First few errors.
    failed: Vec<String>,
    failures: u64,
}

/// One client and what it publishes with.
struct Lane {
    producer: Producer,
    transactional: Option<TransactionalProducer>,
}

impl Lane {
    fn begin(&self) -> Result<Transaction, String> {
        let producer = self.transactional.as_ref().ok_or("no transactional producer")?;
        Ok(producer.begin())
    }
}

fn load(args: &LateArgs, work: Work, stop_after: Option<u64>, show: bool) -> Result<Outcome, String> {
    let progress = Progress::new(show, stop_after.unwrap_or(0), args.warmup + args.duration);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Some(core) = args.target.pin {
                cpu::pin(core)?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| format!("no runtime: {e}"))?;
            LocalSet::new().block_on(&runtime, drive(args, work, stop_after, &progress))
        });
        progress.watch(thread, stop_after.is_some())
    })
}

async fn drive(
    args: &LateArgs,
    work: Work,
    stop_after: Option<u64>,
    progress: &Progress,
) -> Result<Outcome, String> {
    let config =
        || ClientConfig { name: "ringmq bench".to_owned(), ..ClientConfig::new(&args.target.server) };
    let connect = async || Client::connect(config()).await.map_err(|e| e.to_string());
    let topic = args.target.topic.as_str();
    let first = connect().await?;
    let found = first.create_topic(topic, args.partitions, true).await.map_err(|e| e.to_string())?;
    if found.partitions < args.partitions {
        return Err(format!("topic {topic} has {} partitions, fewer than --partitions", found.partitions));
    }
    let mut lanes = Vec::with_capacity(args.connections);
    for number in 0..args.connections {
        let client = connect().await?;
        // A record a frame: what is compared is the cost of a message.
        let alone = || ProducerConfig { batch_records: 1, ..ProducerConfig::default() };
        let producer = client.producer(topic, alone()).await.map_err(|e| e.to_string())?;
        let mut transactional = None;
        if matches!(work, Work::Transaction { .. } | Work::Open { .. }) {
            // What is left open on purpose is not to be asked about while the others are made.
            let check_after = matches!(work, Work::Open { .. }).then_some(LEFT_OPEN);
            let config = TransactionConfig { producer: alone(), check_after, ..TransactionConfig::default() };
            // Else nothing is left open but by a crash, and then nobody knows.
            let checker = |_: CheckedTransaction| std::future::ready(Resolution::Unknown);
            let group = format!("bench-{number}");
            let made = client.transactional_producer(&group, config, checker).await;
            transactional = Some(made.map_err(|e| e.to_string())?);
        }
        lanes.push(Lane { producer, transactional });
    }
    let reads = args.verify || matches!(work, Work::Delay { read: true, .. }) && stop_after.is_none();
    let mut consumer = None;
    if reads {
        let config = ConsumerConfig { start: Start::Latest, ..ConsumerConfig::default() };
        consumer = Some(first.consumer(topic, config).await.map_err(|e| e.to_string())?);
    }

    let now = Instant::now();
    let warmup = if stop_after.is_some() { Duration::ZERO } else { args.warmup };
    let measure_at = now + warmup;
    let count_from_ns = wall_ns() + warmup.as_nanos() as u64;
    let forever = Duration::from_secs(86_400 * 365);
    let shared = Rc::new(Shared {
        args: args.clone(),
        work,
        ledger: RefCell::new(Ledger::new(random())),
        tally: RefCell::new(Tally {
            latencies: Latencies::new()?,
            late: Latencies::new()?,
            requests: 0,
            records: 0,
            rolled_back: 0,
            failed: Vec::new(),
            failures: 0,
        }),
        body: (0..args.record_size)
            .map(|at| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
            .collect(),
        measure_at,
        stop_at: measure_at + if stop_after.is_some() { forever } else { args.duration },
    });
    let reading = consumer.map(|consumer| {
        let shared = Rc::clone(&shared);
        tokio::task::spawn_local(read(consumer, shared, count_from_ns))
    });

    let lanes: Rc<Vec<Lane>> = Rc::new(lanes);
    let permits = Arc::new(Semaphore::new(args.in_flight()));
    let mut schedule = args.rate.map(|rate| due_times(rate, now, shared.stop_at));
    let mut busy = Busy::start();
    let mut measuring = false;
    let mut number = 0u64;
    while stop_after.is_none_or(|most| number < most) {
        let intended = match &mut schedule {
            Some(due) => match due.recv().await {
                Some(intended) => intended,
                None => break,
            },
            None => Instant::now(),
        };
        // In an open loop the time that a message waits here is part of its latency (T1).
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { break };
        let now = Instant::now();
        if now >= shared.stop_at {
            break;
        }
        if !measuring && now >= measure_at {
            measuring = true;
            busy = Busy::start();
        }
        progress.records.store(shared.tally.borrow().records, Ordering::Relaxed);
        let (shared, lanes) = (Rc::clone(&shared), Rc::clone(&lanes));
        tokio::task::spawn_local(async move {
            let lane = &lanes[number as usize % lanes.len()];
            shared.one(lane, number, intended).await;
            drop(permit);
        });
        number += 1;
    }
    let mut busy_percent = busy.percent();
    // All permits are back when everything was answered. What is answered behind the end is not counted.
    let _all = permits.acquire_many(args.in_flight() as u32).await;
    let mut window = Instant::now().min(shared.stop_at).saturating_duration_since(measure_at);
    if stop_after.is_some() {
        (window, busy_percent) = (measure_at.elapsed(), busy.percent());
    }
    let mut verdict = None;
    if let Some(reading) = reading {
        let after = if let Work::Delay { after, .. } = work { after } else { Duration::ZERO };
        let give_up_at = Instant::now() + after + ARRIVAL;
        while !shared.ledger.borrow().all_found() && Instant::now() < give_up_at {
            if reading.is_finished() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What must not come is given a moment to come.
        tokio::time::sleep(Duration::from_millis(200)).await;
        reading.abort();
        if let Ok(why) = reading.await {
            return Err(why);
        }
        verdict = args.verify.then(|| shared.ledger.borrow().verdict());
    } else if let Work::Delay { after, read: false } = work
        && stop_after.is_none()
    {
        // The last of it becomes visible before anybody looks at what the server has done.
        tokio::time::sleep(after + Duration::from_millis(200)).await;
    }
    let info = first.server();
    let tally = shared.tally.replace(Tally {
        latencies: Latencies::new()?,
        late: Latencies::new()?,
        requests: 0,
        records: 0,
        rolled_back: 0,
        failed: Vec::new(),
        failures: 0,
    });
    if tally.failures > 0 && tally.latencies.quantiles().count == 0 {
        return Err(tally.failed.join("; "));
    }
    Ok(Outcome {
        server: info.version.clone(),
        shards: info.shard_ports.len().max(1),
        latencies: tally.latencies,
        late: tally.late,
        window,
        requests: tally.requests,
        records: tally.records,
        rolled_back: tally.rolled_back,
        failed: tally.failed,
        busy_percent,
        verdict,
    })
}

/// Intended times, each handed over when it has come, by a thread whose timer is exact.
fn due_times(rate: f64, start: Instant, stop_at: Instant) -> mpsc::UnboundedReceiver<Instant> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        cpu::precise_timers();
        for number in 0u64.. {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if due >= stop_at || sender.send(due).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Shared {
    fn record(&self, partition: u32, number: u64, due_ns: u64) -> RecordBuf {
        let mut body = self.body.clone();
        let run = self.ledger.borrow().run;
        Stamp { run, writer: 0, partition, sequence: number, sent_ns: due_ns }.write(&mut body);
        RecordBuf::new(body)
    }

    /// One message, or one transaction.
    async fn one(&self, lane: &Lane, number: u64, intended: Instant) {
        let result = match self.work {
            Work::Plain { records } => self.plain(lane, number, records).await,
            Work::Transaction { halves, rollback } => self.transaction(lane, number, halves, rollback).await,
            Work::Open { halves } => self.left_open(lane, number, halves).await,
            Work::Delay { after, .. } => self.delayed(lane, number, after).await,
        };
        let now = Instant::now();
        let mut tally = self.tally.borrow_mut();
        match result {
            Ok((records, rolled_back)) => {
                if intended >= self.measure_at {
                    tally.latencies.record(now.saturating_duration_since(intended)); // T1
                }
                if (self.measure_at..self.stop_at).contains(&now) {
                    tally.requests += 1;
                    tally.records += records;
                    tally.rolled_back += u64::from(rolled_back);
                }
            }
            Err(why) => {
                tally.failures += 1;
                if tally.failed.len() < 3 && !tally.failed.contains(&why) {
                    tally.failed.push(why);
                }
            }
        }
    }

    fn partition(&self, number: u64) -> u32 {
        (number % u64::from(self.args.partitions)) as u32
    }

    async fn plain(&self, lane: &Lane, number: u64, records: u32) -> Result<(u64, bool), String> {
        let partition = self.partition(number);
        let mut sent = Vec::with_capacity(records as usize);
        for _ in 0..records {
            let number = self.ledger.borrow_mut().sent();
            let record = self.record(partition, number, 0);
            let future = lane.producer.send(record, Some(partition)).await.map_err(|e| e.to_string())?;
            sent.push((number, future));
        }
        for (number, future) in sent {
            future.await.map_err(|e| e.to_string())?;
            self.ledger.borrow_mut().became(number, Fate::Acknowledged);
        }
        Ok((u64::from(records), false))
    }

    async fn transaction(
        &self,
        lane: &Lane,
        number: u64,
        halves: u32,
        rollback: u32,
    ) -> Result<(u64, bool), String> {
        let transaction = lane.begin()?;
        let mut numbers = Vec::with_capacity(halves as usize);
        for half in 0..halves {
            let partition = self.partition(number * u64::from(halves) + u64::from(half));
            let id = self.ledger.borrow_mut().sent();
            let record = self.record(partition, id, 0);
            // Commit and rollback wait for what was sent.
            let sent = transaction.send(&self.args.target.topic, record, Some(partition)).await;
            drop(sent.map_err(|e| e.to_string())?);
            numbers.push(id);
        }
        let fate = if number % 100 < u64::from(rollback) {
            transaction.rollback().await.map_err(|e| e.to_string())?;
            Fate::RolledBack
        } else {
            transaction.commit().await.map_err(|e| e.to_string())?;
            Fate::Acknowledged
        };
        let mut ledger = self.ledger.borrow_mut();
        for id in numbers {
            ledger.became(id, fate);
        }
        let rolled_back = fate == Fate::RolledBack;
        Ok((if rolled_back { 0 } else { u64::from(halves) }, rolled_back))
    }

    async fn left_open(&self, lane: &Lane, number: u64, halves: u32) -> Result<(u64, bool), String> {
        let transaction = lane.begin()?;
        for half in 0..halves {
            let partition = self.partition(number * u64::from(halves) + u64::from(half));
            let id = self.ledger.borrow_mut().sent();
            let record = self.record(partition, id, 0);
            let sent = transaction.send(&self.args.target.topic, record, Some(partition)).await;
            sent.map_err(|e| e.to_string())?.await.map_err(|e| e.to_string())?;
        }
        transaction.leave();
        Ok((u64::from(halves), false))
    }

    async fn delayed(&self, lane: &Lane, number: u64, after: Duration) -> Result<(u64, bool), String> {
        let partition = self.partition(number);
        let id = self.ledger.borrow_mut().sent();
        let due_ms = (wall_ns() / 1_000_000) as i64 + after.as_millis() as i64;
        let record = self.record(partition, id, due_ms as u64 * 1_000_000);
        let sent = lane.producer.send_at(record, Some(partition), due_ms).await.map_err(|e| e.to_string())?;
        sent.await.map_err(|e| e.to_string())?;
        self.ledger.borrow_mut().became(id, Fate::Acknowledged);
        Ok((1, false))
    }
}

/// Reads until it is stopped; answers only when it cannot go on, and why.
async fn read(mut consumer: Consumer, shared: Rc<Shared>, count_from_ns: u64) -> String {
    let delay_ns = match shared.work {
        Work::Delay { after, .. } => after.as_nanos() as u64,
        _ => 0,
    };
    loop {
        let record = match consumer.next().await {
            Ok(record) => record,
            Err(e) => return format!("cannot read back: {e}"),
        };
        let Some(stamp) = Stamp::read(&record.body) else { continue };
        let due_ns = if delay_ns > 0 { stamp.sent_ns } else { 0 };
        let now_ns = wall_ns();
        let mut ledger = shared.ledger.borrow_mut();
        if delay_ns > 0 && stamp.run == ledger.run && due_ns.saturating_sub(delay_ns) >= count_from_ns {
            shared.tally.borrow_mut().late.record(stamp.age(now_ns)); // T3
        }
        ledger.read(&stamp, now_ns, due_ns); // T2
    }
}

/// All figures of a run.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    /// `plain`: the same records without.
    variant: &'static str,
    server: String,
    shards: usize,
    topic: String,
    partitions: u32,
    record_size: usize,
    connections: usize,
    in_flight: usize,
    rate: Option<f64>,
    halves: Option<u32>,
    delay_ms: Option<u64>,
    seconds: f64,
    /// Transactions, or delayed messages, that were answered.
    requests: u64,
    records: u64,
    records_s: f64,
    mb_s: f64,
    rolled_back: u64,
    /// From the intended time of sending to the answer that says durable.
    latency_us: Quantiles,
    latency_curve: Vec<(f64, f64)>,
    /// From the time when a record was due to its arrival.
    late_us: Quantiles,
    failed: Vec<String>,
    load_cpu_percent: f64,
    generator_bound: bool,
    ratios: Vec<Ratio>,
    verdict: Option<LateVerdict>,
}

fn report(
    bench: &'static str,
    args: &LateArgs,
    work: Work,
    outcome: &Outcome,
    floors: Option<&Floors>,
) -> Report {
    let seconds = outcome.window.as_secs_f64();
    let records_s = if seconds > 0.0 { outcome.records as f64 / seconds } else { 0.0 };
    let mb_s = records_s * args.record_size as f64 / 1e6;
    let (mut halves, mut delay_ms) = (None, None);
    match work {
        Work::Plain { records } => halves = (bench == "transactions").then_some(records),
        Work::Transaction { halves: n, .. } | Work::Open { halves: n } => halves = Some(n),
        Work::Delay { after, .. } => delay_ms = Some(after.as_millis() as u64),
    }
    Report {
        bench,
        variant: if args.plain { "plain" } else { "" },
        server: outcome.server.clone(),
        shards: outcome.shards,
        topic: args.target.topic.clone(),
        partitions: args.partitions,
        record_size: args.record_size,
        connections: args.connections,
        in_flight: args.in_flight(),
        rate: args.rate,
        halves,
        delay_ms,
        seconds,
        requests: outcome.requests,
        records: outcome.records,
        records_s,
        mb_s,
        rolled_back: outcome.rolled_back,
        latency_us: outcome.latencies.quantiles(),
        latency_curve: outcome.latencies.curve(),
        late_us: outcome.late.quantiles(),
        failed: outcome.failed.clone(),
        load_cpu_percent: outcome.busy_percent,
        generator_bound: generator_bound(&[outcome.busy_percent], false),
        ratios: Ratio::of("floor-pipe, MB/s", mb_s, floors.and_then(Floors::pipe_mb_s)).into_iter().collect(),
        verdict: outcome.verdict,
    }
}

fn text(report: &Report, outcome: &Outcome, floors: Option<&Floors>) -> String {
    let what = match (report.halves, report.delay_ms) {
        (_, _) if report.variant == "plain" => "published the ordinary way".to_owned(),
        (Some(halves), _) => format!("{halves} a transaction"),
        (_, delay) => format!("due {} ms later", delay.unwrap_or(0)),
    };
    let mut text = format!(
        "{}  {} B, {what}, {} partitions, {} clients, {} in flight, {}\n\
         rate     {:.0} records/s  {}  ({} answered, {} rolled back) over {:.1} s\n",
        report.bench,
        report.record_size,
        report.partitions,
        report.connections,
        report.in_flight,
        report.rate.map_or("closed loop".to_owned(), |rate| format!("open loop at {rate}/s")),
        report.records_s,
        format_rate(report.mb_s),
        report.requests,
        report.rolled_back,
        report.seconds,
    );
    text += &latency_text("latency", &outcome.latencies);
    text += &latency_text("late by", &outcome.late);
    text += &load_text(&[("", report.load_cpu_percent)], report.generator_bound);
    text += &ratio_text(&report.ratios, floors);
    for why in &report.failed {
        text += &format!("failed   {why}\n");
    }
    if let Some(verdict) = report.verdict {
        text += &format!(
            "verified {} acknowledged, {} found: {}\n",
            verdict.acknowledged,
            verdict.found,
            verdict.text()
        );
    }
    text
}

#[cfg(test)]
mod tests;
