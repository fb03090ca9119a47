//! The rows: what RingMQ promises, and how each promise is measured.

use super::lab::{Figure, Found, Lab, Server, Side, Skip, number};
use super::punts::{Punts, Trace, workers};
use super::{costs, crowd, late, readers, resident};
use crate::bench::stats::{Goal, Interval, Verdict};
use crate::bench::wire;
use ringmq_protocol::Bounds;
use serde::Serialize;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const MIB: f64 = 1024.0 * 1024.0;
/// Records of 1 KiB, a thousand in a frame, four frames under way.
pub(super) const BATCHED: [&str; 2] = ["--batch=1000", "--in-flight=4"];
/// How often worker threads are counted where the kernel cannot be asked.
const SAMPLE: Duration = Duration::from_millis(2);

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Row {
    BatchedPublish,
    OneInFlight,
    ManyPartitions,
    TailConsume,
    FanOut,
    ColdAlone,
    ColdConsumer,
    Syscalls,
    Punts,
    DiskBytes,
    Idle,
    Start,
    Memory,
    Transactions,
    Delays,
    PendingDelays,
    OpenHalves,
    BroadcastCursors,
    IdleConnections,
    IdlePartitions,
    FlashSale,
    Neighbour,
}

/// The server that holds what starts and memory are measured on.
pub(super) struct Stored {
    server: Server,
    /// Right after it had taken everything.
    resident_mib: f64,
}

impl Row {
    pub(super) const ALL: [Self; 22] = [
        Self::BatchedPublish,
        Self::OneInFlight,
        Self::ManyPartitions,
        Self::TailConsume,
        Self::FanOut,
        Self::ColdAlone,
        Self::ColdConsumer,
        Self::Syscalls,
        Self::Punts,
        Self::DiskBytes,
        Self::Idle,
        Self::Start,
        Self::Memory,
        Self::Transactions,
        Self::Delays,
        Self::PendingDelays,
        Self::OpenHalves,
        Self::BroadcastCursors,
        Self::IdleConnections,
        Self::IdlePartitions,
        Self::FlashSale,
        Self::Neighbour,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::BatchedPublish => "batched-publish",
            Self::OneInFlight => "one-in-flight",
            Self::ManyPartitions => "many-partitions",
            Self::TailConsume => "tail-consume",
            Self::FanOut => "fan-out",
            Self::ColdAlone => "cold-alone",
            Self::ColdConsumer => "cold-consumer",
            Self::Syscalls => "syscalls",
            Self::Punts => "punts",
            Self::DiskBytes => "disk-bytes",
            Self::Idle => "idle",
            Self::Start => "start",
            Self::Memory => "memory",
            Self::Transactions => "transactions",
            Self::Delays => "delays",
            Self::PendingDelays => "pending-delays",
            Self::OpenHalves => "open-halves",
            Self::BroadcastCursors => "broadcast-cursors",
            Self::IdleConnections => "idle-connections",
            Self::IdlePartitions => "idle-partitions",
            Self::FlashSale => "flash-sale",
            Self::Neighbour => "neighbour",
        }
    }

    /// What is promised, in a sentence.
    pub(super) fn about(self) -> &'static str {
        match self {
            Self::BatchedPublish => {
                "1 KiB × 1,000, one connection, 4 in flight, one partition, durable: at least 0.8 of floor-pipe: one \
                 thread that receives and writes durably and does nothing else, at its best size and depth"
            }
            Self::OneInFlight => {
                "one durable record of 1 KiB in flight: p50 at most 1.2 ×, p99 at most 1.5 × one thread that receives, \
                 writes 4 KiB durably and answers"
            }
            Self::ManyPartitions => {
                "requests of 100 frames, each one record of 1 KiB to another of 10,000 partitions: at least 0.95 of the \
                 same to one partition"
            }
            Self::TailConsume => "one consumer of what is in memory: at least 0.8 of the loopback copy",
            Self::FanOut => {
                "1 KiB to 100 subscribers: delivered to all of them together at least 0.7 of the loopback copy"
            }
            Self::ColdAlone => {
                "a consumer of a cold backlog of 4 GiB or more, one partition holding it all, with nobody beside it: at \
                 least 0.7 of the smaller of direct read and loopback copy"
            }
            Self::ColdConsumer => {
                "a consumer of a cold backlog of 4 GiB or more beside a producer at half its maximum: the producer's \
                 p99 at most 1.5 × alone, the consumer at least 0.25 of the smaller of direct read and loopback copy"
            }
            Self::Syscalls => {
                "io_uring_enter of the server per record: batched as above below 0.02; with one 128-byte record in \
                 flight on each of 128 connections below 1"
            }
            Self::Punts => {
                "writes of groups that the kernel hands to a worker thread, batched as above: none (a flush always is)"
            }
            Self::DiskBytes => {
                "bytes written to the disk for each byte of records of 100 bytes, batched by 100: at most 1.15"
            }
            Self::Idle => "a server that nobody uses: at most 0.3 % of a core",
            Self::Start => "10 GiB stored: a clean start in 0.2 s, one after kill -9 at full load in 1 s",
            Self::Memory => {
                "resident: `server --dev` at its start at most 48 MiB; with 10 GiB stored at most its --memory"
            }
            Self::Transactions => {
                "a half message and its commit, 128 connections with one in flight each, 1 KiB: the server's time at most \
                 2.5 × (and 2.2 ×) that of a plain publish; the body stored once"
            }
            Self::Delays => {
                "a delayed message until it is visible, likewise: at most 1.5 × (and 1.3 ×); the body stored once; late by \
                 at most 5 ms at p99"
            }
            Self::PendingDelays => {
                "1,000,000 delayed messages that wait: at most 64 MiB resident, and how long starts take"
            }
            Self::OpenHalves => "100,000 half messages that nobody ends: resident, and how long starts take",
            Self::BroadcastCursors => "10,000 subscribers of a broadcast: at most 40 bytes for each cursor",
            Self::IdleConnections => "a connection that does nothing: at most 8 KiB",
            Self::IdlePartitions => "a partition that nobody uses: at most 500 bytes",
            Self::FlashSale => {
                "producers over 128 connections at half of their maximum while a group works off a backlog of 10 GiB at 50 \
                 MB/s: their p99 at most 1.3 × without a backlog"
            }
            Self::Neighbour => {
                "a quiet topic beside a noisy one at half of its maximum, on the same shard: its p99 at most 1.5 × alone"
            }
        }
    }

    /// About how long one pair takes, and what comes before the first, for the time left.
    pub(super) fn estimate(self, lab: &Lab<'_>) -> (Duration, Duration) {
        let side = lab.time + lab.sizes.warmup + Duration::from_millis(300);
        let filled = |bytes: u64| Duration::from_secs_f64(bytes as f64 / 500e6);
        let made = |messages: u64| Duration::from_secs_f64(messages as f64 / 10e3);
        match self {
            Self::BatchedPublish | Self::OneInFlight | Self::ManyPartitions => (2 * side, side / 2),
            Self::TailConsume | Self::FanOut => (2 * side, side),
            Self::ColdAlone => (2 * side, filled(lab.sizes.backlog)),
            Self::ColdConsumer => (3 * side, side + filled(lab.sizes.backlog * 2)),
            Self::Syscalls => (2 * side, side / 2),
            Self::Punts | Self::Idle => (side, side / 2),
            Self::DiskBytes => (side, filled(lab.sizes.retained)),
            Self::Start => (side + Duration::from_secs(2), filled(lab.sizes.stored)),
            Self::Memory => (Duration::from_millis(300), Duration::ZERO),
            Self::Transactions => (4 * side, filled(lab.sizes.retained)),
            Self::Delays => (5 * side + Duration::from_secs(3), filled(lab.sizes.retained)),
            Self::PendingDelays => (Duration::from_secs(3), made(lab.sizes.pending)),
            Self::OpenHalves => (Duration::from_secs(2), made(lab.sizes.halves)),
            Self::BroadcastCursors => (Duration::from_secs(1), made(10 * lab.sizes.cursors)),
            Self::IdleConnections => (Duration::from_secs(2), filled(2 * lab.sizes.memory)),
            Self::IdlePartitions => (Duration::ZERO, filled(2 * lab.sizes.memory)),
            Self::FlashSale => (2 * side + Duration::from_secs(1), filled(lab.sizes.sale_backlog * 2)),
            Self::Neighbour => (3 * side, filled(lab.sizes.retained)),
        }
    }

    pub(super) fn measure(self, lab: &mut Lab<'_>) -> Result<Found, Skip> {
        match self {
            Self::BatchedPublish => batched_publish(lab),
            Self::OneInFlight => one_in_flight(lab),
            Self::ManyPartitions => many_partitions(lab),
            Self::ColdConsumer => cold_consumer(lab),
            Self::TailConsume => readers::tail_consume(lab),
            Self::FanOut => readers::fan_out(lab),
            Self::ColdAlone => readers::cold_alone(lab),
            Self::Syscalls => costs::syscalls(lab),
            Self::DiskBytes => costs::disk_bytes(lab),
            Self::Idle => costs::idle(lab),
            Self::Punts => punts(lab),
            Self::Start => start(lab),
            Self::Memory => memory(lab),
            Self::Transactions => late::transactions(lab),
            Self::Delays => late::delays(lab),
            Self::PendingDelays => late::pending_delays(lab),
            Self::OpenHalves => late::open_halves(lab),
            Self::BroadcastCursors => resident::cursors(lab),
            Self::IdleConnections => resident::connections(lab),
            Self::IdlePartitions => resident::partitions(lab),
            Self::FlashSale => crowd::flash_sale(lab),
            Self::Neighbour => crowd::neighbour(lab),
        }
    }
}

/// Busy shares of load generators, pair by pair.
#[derive(Default)]
pub(super) struct Busy(Vec<f64>);

impl Busy {
    pub(super) fn note(&mut self, reports: &[&Value]) -> Result<(), String> {
        let shares = reports.iter().map(|report| number(report, "load_cpu_percent"));
        self.0.push(shares.sum::<Result<f64, String>>()?);
        Ok(())
    }

    /// Of one report that has several threads.
    pub(super) fn note_all(&mut self, report: &Value, threads: &[&str]) -> Result<(), String> {
        let shares = threads.iter().map(|name| number(report, name));
        self.0.push(shares.sum::<Result<f64, String>>()?);
        Ok(())
    }

    pub(super) fn found(self, figures: Vec<Figure>, notes: Vec<String>) -> Found {
        Found { figures, load_cpu_percent: Some(Interval::of(&self.0).median), notes }
    }
}

/// Room for a server that keeps `Sizes::retained`, with its free slots and what retention lags behind.
pub(super) fn demand_working_space(lab: &Lab<'_>) -> Result<(), Skip> {
    lab.demand_space(lab.sizes.retained + 8 * lab.sizes.segment + lab.sizes.floor_file)
}

fn batched_publish(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let server = lab.server("batched", Some(lab.sizes.retained))?;
    let mut limits = lab.limits()?;
    let mut busy = Busy::default();
    let pairs = lab.pairs(|lab, side| match side {
        Side::A => {
            let report = lab.produce(&server, &BATCHED)?;
            busy.note(&[&report])?;
            number(&report, "mb_s")
        }
        Side::B => limits.pipe_mb_s(lab.time),
    })?;
    let names = ("durable publish", "floor-pipe at its best");
    Ok(busy.found(vec![Figure::ratio(names, "MB/s", &pairs, Goal::AtLeast(0.8))], Vec::new()))
}

fn one_in_flight(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let server = lab.server("single", Some(lab.sizes.retained))?;
    let mut limits = lab.limits()?;
    let mut busy = Busy::default();
    let (mut p99_a, mut p99_b) = (Vec::new(), Vec::new());
    let p50 = lab.pairs(|lab, side| match side {
        Side::A => {
            let report = lab.produce(&server, &["--batch=1", "--in-flight=1"])?;
            busy.note(&[&report])?;
            p99_a.push(number(&report, "latency_us.p99")?);
            number(&report, "latency_us.p50")
        }
        Side::B => {
            let (p50, p99) = limits.one_thread_us(lab.time)?;
            p99_b.push(p99);
            Ok(p50)
        }
    })?;
    // Each pair has put one value into each.
    let p99: Vec<_> = p99_a.into_iter().zip(p99_b).collect();
    let figures = vec![
        Figure::ratio(("p50, one in flight", "one thread, blocking"), "µs", &p50, Goal::AtMost(1.2)),
        Figure::ratio(("p99, one in flight", "one thread, blocking"), "µs", &p99, Goal::AtMost(1.5)),
    ];
    Ok(busy.found(figures, Vec::new()))
}

fn many_partitions(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let server = lab.server("partitions", Some(lab.sizes.retained))?;
    let many = format!("--partitions={}", lab.sizes.partitions);
    let mut busy = Busy::default();
    let pairs = lab.pairs(|lab, side| {
        let (topic, partitions) = match side {
            Side::A => ("--topic=many", many.as_str()),
            Side::B => ("--topic=one", "--partitions=1"),
        };
        let load = [topic, partitions, "--frames=100", "--batch=1", "--in-flight=8"];
        let report = lab.produce(&server, &load)?;
        busy.note(&[&report])?;
        number(&report, "records_s")
    })?;
    let names = ("10,000 partitions", "one partition");
    Ok(busy.found(vec![Figure::ratio(names, "records/s", &pairs, Goal::AtLeast(0.95))], Vec::new()))
}

fn cold_consumer(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let fastest = {
        let server = lab.server("fastest", Some(lab.sizes.retained))?;
        number(&lab.produce(&server, &BATCHED)?, "records_s")?
    };
    let rate = fastest / 2.0;
    // While a consumer reads, retention takes what the producer adds: so much lies before what it reads.
    let side = (lab.time + lab.sizes.warmup + Duration::from_secs(2)).as_secs_f64();
    let margin = (rate * side) as u64;
    let kept = lab.sizes.backlog + (margin << 10) + 2 * lab.sizes.segment;
    lab.demand_space(kept + 8 * lab.sizes.segment + lab.sizes.floor_file)?;
    let server = lab.server("cold", Some(kept))?;
    lab.fill(&server, "bench", kept)?;
    let mut limits = lab.limits()?;
    let mut busy = Busy::default();
    let mut consumer = Vec::new();
    let mut read = 0.0;
    let steady = [format!("--rate={rate}"), "--batch=1000".to_owned()];
    let p99 = lab.pairs(|lab, side| {
        let steady: Vec<&str> = steady.iter().map(String::as_str).collect();
        if side == Side::B {
            return number(&lab.produce(&server, &steady)?, "latency_us.p99");
        }
        let from = log_start(&server)? + margin;
        let seconds = lab.time + lab.sizes.warmup;
        let reading = [format!("--from={from}"), format!("--duration={}ms", seconds.as_millis())];
        let producer = lab.load(&server, "produce", &lab.produce_args(&steady))?;
        let reader = lab.load(&server, "consume", &reading)?;
        let consumed = reader.finish(lab.stop)?;
        let produced = producer.finish(lab.stop)?;
        busy.note(&[&produced, &consumed])?;
        read += number(&consumed, "records")? * 1024.0 / MIB / 1024.0;
        consumer.push((number(&consumed, "mb_s")?, limits.cold_read_mb_s(lab.time)?));
        number(&produced, "latency_us.p99")
    })?;
    let figures = vec![
        Figure::ratio(("producer's p99 beside", "alone"), "µs", &p99, Goal::AtMost(1.5)),
        Figure::ratio(("cold consumer", "direct read, or copy"), "MB/s", &consumer, Goal::AtLeast(0.25)),
    ];
    let notes = vec![format!(
        "producer at {rate:.0} records/s, half of {fastest:.0}; the consumer read {read:.2} GiB cold in all"
    )];
    Ok(busy.found(figures, notes))
}

/// First offset that is kept of the topic's only partition.
pub(super) fn log_start(server: &Server) -> Result<u64, String> {
    bounds(server).map(|bounds| bounds.log_start)
}

/// First offset of the topic's only partition that cannot be read yet.
pub(super) fn log_end(server: &Server) -> Result<u64, String> {
    bounds(server).map(|bounds| bounds.visible_end)
}

fn bounds(server: &Server) -> Result<Bounds, String> {
    let (mut conn, _) = wire::locate(&server.dialled(), "bench", None)?;
    let opened = conn.open("bench", &[0])?;
    opened.first().map(|opened| opened.bounds).ok_or_else(|| "no partition was opened".to_owned())
}

fn punts(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let server = lab.server("punts", Some(lab.sizes.retained))?;
    let untraced = Trace::start(server.pid()).err();
    let mut seen = Punts::default();
    let mut workers_max = 0;
    let (mut busy, mut flushes, mut groups, mut on_path) = (Busy::default(), 0.0, 0.0, 0.0);
    let counts = || -> Result<[f64; 2], String> {
        Ok([server.metric("ringmq_syncs_total")?, server.metric("ringmq_groups_total")?])
    };
    let values = lab.repeats(|lab| {
        let before = counts()?;
        let mut traced = None;
        let most = if untraced.is_none() {
            let trace = Trace::start(server.pid())?;
            busy.note(&[&lab.produce(&server, &BATCHED)?])?;
            traced = Some(trace.finish()?);
            0.0
        } else {
            let (report, most) = watch_workers(server.pid(), || lab.produce(&server, &BATCHED))?;
            busy.note(&[&report])?;
            workers_max = workers_max.max(most);
            most as f64
        };
        let after = counts()?;
        flushes += after[0] - before[0];
        groups += after[1] - before[1];
        let Some(found) = traced else { return Ok(most) };
        seen.add(&found);
        let punted = found.on_write_path(after[1] - before[1]) as f64;
        on_path += punted;
        Ok(punted)
    })?;
    let volume = format!("{flushes:.0} flushes and {groups:.0} groups at the same time");
    let Some(why) = untraced else {
        let mut figure = Figure::value("writes of groups punted", "", values, Goal::AtMost(0.0));
        // None in the middle is not none: every run counts.
        figure.verdict = match seen.overrun {
            _ if on_path > 0.0 => Verdict::Missed,
            0 => Verdict::Reached,
            _ => Verdict::NotShown,
        };
        let mut notes = vec![format!(
            "method: tracepoint io_uring_queue_async_work of the shards' threads; {volume}; punted: {}",
            seen.text()
        )];
        if seen.overrun > 0 {
            notes.push(format!("{} punts more did not fit into the trace", seen.overrun));
        }
        return Ok(busy.found(vec![figure], notes));
    };
    let mut figure = Figure::value("kernel worker threads", "", values, Goal::AtMost(0.0));
    if figure.verdict == Verdict::Missed {
        figure.verdict = Verdict::NotShown;
    }
    let notes = vec![
        format!("method: threads {}* of the server, at most {workers_max} ({why}); {volume}", "iou-wrk-"),
        "one thread is the flush's, which always goes there; only the tracepoint, as root, tells more"
            .to_owned(),
    ];
    Ok(busy.found(vec![figure], notes))
}

/// Runs a load; how many kernel workers the server had at most meanwhile.
fn watch_workers(pid: u32, load: impl FnOnce() -> Result<Value, String>) -> Result<(Value, usize), String> {
    let (over, most) = (AtomicBool::new(false), AtomicUsize::new(0));
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(workers(pid), Ordering::Relaxed);
                std::thread::sleep(SAMPLE);
            }
        });
        let report = load();
        over.store(true, Ordering::Relaxed);
        report
    });
    Ok((report?, most.load(Ordering::Relaxed)))
}

/// Fills a server once; the rows on what is stored share it.
fn stored(lab: &mut Lab<'_>) -> Result<Stored, Skip> {
    if let Some(stored) = lab.stored.take() {
        return Ok(stored);
    }
    // Repeated loads add to it, and retention takes that away again.
    let kept = lab.sizes.stored + 4 * lab.sizes.segment;
    lab.demand_space(kept + 4 * lab.sizes.segment)?;
    let server = lab.server("stored", Some(kept))?;
    lab.fill(&server, "bench", lab.sizes.stored)?;
    let resident_mib = server.resident_mib("VmRSS")?;
    Ok(Stored { server, resident_mib })
}

fn start(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    let mut stored = stored(lab)?;
    let server = &mut stored.server;
    let mut clean = Vec::new();
    let unclean = lab.repeats(|lab| {
        server.stop()?;
        clean.push(server.restart()?);
        let mut load: Vec<String> = BATCHED.map(str::to_owned).into();
        load.extend(["--warmup=0".to_owned(), "--duration=600".to_owned()]);
        let load = lab.load(server, "produce", &load)?;
        std::thread::sleep(lab.time.min(Duration::from_secs(2)));
        server.kill()?;
        drop(load);
        server.restart()
    })?;
    let gib = server.metric("ringmq_segments_used")? * lab.sizes.segment as f64 / MIB / 1024.0;
    lab.stored = Some(stored);
    let figures = vec![
        Figure::value("clean start", "s", clean, Goal::AtMost(0.2)),
        Figure::value("start after kill -9", "s", unclean, Goal::AtMost(1.0)),
    ];
    let notes =
        vec![format!("{gib:.1} GiB in segments at the end; from the process's start to its ready line")];
    Ok(Found { figures, load_cpu_percent: None, notes })
}

fn memory(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    let fresh = lab.repeats(|lab| {
        let server = Server::start(lab, "dev", vec!["--dev".into()])?;
        server.resident_mib("VmRSS")
    })?;
    let mut figures = vec![Figure::value("--dev, at its start", "MiB", fresh, Goal::AtMost(48.0))];
    let stored = match stored(lab) {
        Ok(stored) => stored,
        Err(Skip::Because(why)) => {
            let notes = vec![format!("with {} GiB stored: skipped, {why}", lab.sizes.stored >> 30)];
            return Ok(Found { figures, load_cpu_percent: None, notes });
        }
        Err(failed) => return Err(failed),
    };
    let budget = lab.sizes.memory as f64 / MIB;
    let pair = (stored.resident_mib, budget);
    let names = ("with everything stored", "its --memory");
    figures.push(Figure::ratio(names, "MiB", &[pair], Goal::AtMost(1.0)));
    let peak = stored.server.resident_mib("VmHWM")?;
    let notes = vec![format!("the process that runs now had {peak:.0} MiB at most")];
    lab.stored = Some(stored);
    Ok(Found { figures, load_cpu_percent: None, notes })
}
