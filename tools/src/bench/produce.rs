//! `ringmq bench produce`: loads a server with durable publishes from one thread.
//!
//! Requests are encoded once; what changes from one to the next (sequences, stamps) is written into them in
//! place. In a closed loop each connection keeps so many requests in flight; in an open loop requests have an
//! intended time, and latency counts from there, so that a server that stalls cannot hide the wait.
//!
//! P1 the requests of a connection are sent one behind the other and answered once each;
//! P2 latency is that of requests whose intended time lies behind the warm-up; rates count answers between the
//!    end of the warm-up and the end of the load.

use super::cpu::{self, Busy};
use super::floor::Floors;
use super::latency::{Latencies, Quantiles, format_rate};
use super::report::{
    Progress, Ratio, Target, generator_bound, latency_text, load_text, parse_duration, parse_size, ratio_text,
};
use super::stamp::{Judge, STAMP_SIZE, Stamp, Verdict, random, wall_ns};
use super::wire::{Conn, Place, Poller, Received, describe_code, describe_error, handle_of, locate};
use super::{consume, wire};
use ringmq_format::checksum::crc32c;
use ringmq_format::frame::{Codec, Frame, FrameHeader};
use ringmq_format::limits::{FRAME_HEADER_SIZE, FRAME_SIZE_MAX, PRODUCER_WINDOW};
use ringmq_format::record::{FrameBuilder, Payload, ProducerStamp, Record};
use ringmq_protocol::{ErrorCode, Produce, ProduceSlot, Request, Response, Retry, limits};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Requests in flight on each connection of an open loop, unless said otherwise.
const OPEN_LOOP_IN_FLIGHT: usize = 64;
/// How long the answers to the last requests are waited for.
const DRAIN: Duration = Duration::from_secs(10);
/// Longest time without looking at the clock.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Pause of the load after a refusal that may be retried, if the server names none.
const PAUSE: Duration = Duration::from_millis(1);

const EXAMPLES: &str = "\
Examples:
  ringmq bench produce --pin 1 --floor floors.json
  ringmq bench produce --batch 1 --connections 128 --verify
  ringmq bench produce --partitions 10000 --frames 100 --batch 1 --in-flight 8
  ringmq bench produce --batch 10 --rate 50000 --hlog latency.hlog";

/// Publish as fast as the server takes it, or at a given rate.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ProduceArgs {
    #[command(flatten)]
    pub(super) target: Target,
    /// Partitions to write to, in turn; the topic is made with so many if it does not exist.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) partitions: u32,
    /// Bytes of one record's body.
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "1K")]
    pub(super) record_size: usize,
    /// Records in a frame.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) batch: u32,
    /// Frames in a request, each to the next partition.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) frames: usize,
    /// Connections, all served by one thread.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) connections: usize,
    /// Unanswered requests on each connection [default: 1, or 64 with --rate].
    #[arg(long, value_name = "N")]
    pub(super) in_flight: Option<usize>,
    /// Records per second over all connections: an open loop, with latency from the intended time of sending.
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<f64>,
    /// Load before anything is counted.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2s")]
    pub(super) warmup: Duration,
    /// Load that is counted.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    pub(super) duration: Duration,
    /// Stop after so many records instead of a duration, warm-up not counted.
    #[arg(long, value_name = "N")]
    pub(super) records: Option<u64>,
    /// Write with a producer id and sequences, as the client library does.
    #[arg(long)]
    pub(super) idempotent: bool,
    /// Stamp every record, read everything back afterwards and check order, loss and duplicates.
    #[arg(long)]
    pub(super) verify: bool,
    /// Stamp every record for readers that run beside the load.
    #[arg(skip)]
    pub(super) stamped: bool,
}

pub(super) fn run(args: &ProduceArgs, json: bool) -> Result<(), String> {
    let floors = args.target.floors()?;
    let outcome = load(args, !json)?;
    let report = report(args, &outcome, floors.as_ref());
    let took = outcome.tally.window();
    let text = text(&report, &outcome, floors.as_ref());
    args.target.deliver(&report, &[("", &outcome.tally.latencies)], took, &text, json)?;
    report.verdict.map_or(Ok(()), demand)
}

/// Fails if the verdict is a bad one.
pub(super) fn demand(verdict: Verdict) -> Result<(), String> {
    if verdict.holds() {
        return Ok(());
    }
    Err(format!(
        "verification failed: {} lost, {} duplicated, {} out of order, {} invented",
        verdict.lost, verdict.duplicated, verdict.out_of_order, verdict.invented
    ))
}

/// The verdict as a line of a report.
pub(super) fn verdict_text(verdict: Verdict) -> String {
    format!(
        "verified {} acknowledged, {} found: {} lost, {} duplicated, {} out of order, {} invented\n",
        verdict.acknowledged,
        verdict.found,
        verdict.lost,
        verdict.duplicated,
        verdict.out_of_order,
        verdict.invented
    )
}

/// All figures of a run.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    server: String,
    shards: usize,
    topic: String,
    partitions: u32,
    record_size: usize,
    batch: u32,
    frames: usize,
    connections: usize,
    in_flight: usize,
    idempotent: bool,
    /// Records per second that were intended, in an open loop.
    rate: Option<f64>,
    seconds: f64,
    requests: u64,
    records: u64,
    records_s: f64,
    /// Bodies of records.
    mb_s: f64,
    /// With all headers, as sent.
    wire_mb_s: f64,
    latency_us: Quantiles,
    /// Percentiles and their values in microseconds.
    latency_curve: Vec<(f64, f64)>,
    /// Frames that were refused, by the name of the error.
    refused: BTreeMap<String, u64>,
    /// Requests that had no answer at the end.
    unanswered: u64,
    load_cpu_percent: f64,
    generator_bound: bool,
    ratios: Vec<Ratio>,
    verdict: Option<Verdict>,
}

/// What a load left behind.
pub(super) struct Outcome {
    place: Place,
    in_flight: usize,
    tally: Tally,
    pub(super) verdict: Option<Verdict>,
}

#[cfg(test)]
impl Outcome {
    pub(super) fn latencies(&self) -> &Latencies {
        &self.tally.latencies
    }
}

/// Counted while the load runs.
pub(super) struct Tally {
    pub(super) latencies: Latencies,
    /// Of the measured window.
    started: Option<Instant>,
    ended: Option<Instant>,
    requests: u64,
    pub(super) records: u64,
    wire_bytes: u64,
    refused: BTreeMap<u16, u64>,
    pub(super) unanswered: u64,
    pub(super) busy_percent: f64,
}

impl Tally {
    pub(super) fn window(&self) -> Duration {
        match (self.started, self.ended) {
            (Some(started), Some(ended)) => ended.saturating_duration_since(started),
            _ => Duration::ZERO,
        }
    }

    /// Frames that were refused, by the name of the error.
    pub(super) fn refused(&self) -> BTreeMap<String, u64> {
        let name =
            |code: &u16| ErrorCode::parse(*code).map_or_else(|| code.to_string(), |c| c.name().to_owned());
        self.refused.iter().map(|(code, frames)| (name(code), *frames)).collect()
    }
}

/// A frame as it is sent, and where its records are in it.
struct Template {
    frame: Vec<u8>,
    bodies: Range<usize>,
}

impl Template {
    fn new(args: &ProduceArgs) -> Result<Self, String> {
        // Bytes that no compression anywhere between here and the disk makes cheaper.
        let mut noise = random();
        let mut body = vec![0; args.record_size];
        for byte in &mut body {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            *byte = noise as u8;
        }
        let now_ms = (wall_ns() / 1_000_000) as i64;
        let mut builder = FrameBuilder::new(now_ms, FRAME_SIZE_MAX);
        for _ in 0..args.batch {
            builder.push(&Record { time_ms: now_ms, body: &body, ..Record::default() }).map_err(|e| {
                format!("a frame of {} records of {} bytes: {e}", args.batch, args.record_size)
            })?;
        }
        let frame = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
        let parsed = Frame::parse(&frame).map_err(|e| e.to_string())?;
        let payload = Payload::parse(&parsed).map_err(|e| e.to_string())?;
        // One block, uncompressed: the bodies stand one behind the other.
        let (_, bodies) = payload.blocks().next().ok_or("a frame without records")?;
        let from = bodies.as_ptr() as usize - frame.as_ptr() as usize;
        let bodies = from..from + bodies.len();
        Ok(Self { frame, bodies })
    }
}

impl ProduceArgs {
    /// Unanswered requests on each connection.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.unwrap_or(if self.rate.is_some() { OPEN_LOOP_IN_FLIGHT } else { 1 })
    }

    /// What can be known to be wrong before connecting.
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, value) in [
            ("--partitions", self.partitions as usize),
            ("--batch", self.batch as usize),
            ("--frames", self.frames),
            ("--connections", self.connections),
            ("--in-flight", self.in_flight()),
        ] {
            if value == 0 {
                return Err(format!("{name} must be at least 1"));
            }
        }
        if self.frames > limits::PRODUCE_FRAMES_MAX {
            return Err(format!("--frames is at most {}", limits::PRODUCE_FRAMES_MAX));
        }
        if self.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            return Err("--rate must be above 0".to_owned());
        }
        if self.verify && self.record_size < STAMP_SIZE {
            return Err(format!("--verify needs a --record-size of at least {STAMP_SIZE}"));
        }
        Template::new(self).map(|_| ())
    }
}

/// A load that is ready to run: everything is known of the server, nothing is sent yet.
pub(super) struct Plan<'a> {
    args: &'a ProduceArgs,
    template: Template,
    in_flight: usize,
    pub(super) control: Conn,
    pub(super) place: Place,
    pub(super) partitions: Vec<u32>,
}

impl<'a> Plan<'a> {
    /// Finds the topic, or makes it, and checks that the requests are what the server takes.
    pub(super) fn new(args: &'a ProduceArgs) -> Result<Self, String> {
        let in_flight = args.in_flight();
        let template = Template::new(args)?;
        let (control, place) = locate(&args.target.server, &args.target.topic, Some(args.partitions))?;
        if place.partitions < args.partitions {
            return Err(format!(
                "topic {} has {} partitions, fewer than --partitions {}; choose another --topic",
                args.target.topic, place.partitions, args.partitions
            ));
        }
        let request_len = args.frames * (template.frame.len() + 8) + 8;
        if place.request_size_max > 0 && request_len > place.request_size_max {
            return Err(format!(
                "a request would have {request_len} bytes, the server takes {}: lower --frames or --batch",
                place.request_size_max
            ));
        }
        if place.frame_size_max > 0 && template.frame.len() > place.frame_size_max {
            return Err(format!(
                "a frame would have {} bytes, the server takes {}: lower --batch",
                template.frame.len(),
                place.frame_size_max
            ));
        }
        let partitions: Vec<u32> = (0..args.partitions).collect();
        Ok(Self { args, template, in_flight, control, place, partitions })
    }

    /// Loads the server from this thread.
    pub(super) fn drive(&self, progress: &Progress) -> Result<(Tally, Option<Judge>), String> {
        if let Some(core) = self.args.target.pin {
            cpu::pin(core)?;
        }
        let lanes = (0..self.args.connections)
            .map(|number| Lane::new(self.args, self.in_flight, &self.place, &self.template, number))
            .collect::<Result<Vec<_>, _>>()?;
        Driver::new(self.args, &self.template, self.in_flight, lanes, progress)?.run()
    }
}

/// Runs the load and, if asked to, the verification.
pub(super) fn load(args: &ProduceArgs, show: bool) -> Result<Outcome, String> {
    let mut plan = Plan::new(args)?;
    let starts: Vec<u64> = if args.verify {
        let opened = plan.control.open(&args.target.topic, &plan.partitions)?;
        opened.iter().map(|o| o.bounds.visible_end).collect()
    } else {
        Vec::new()
    };
    let progress = Progress::new(show, args.records.unwrap_or(0), args.warmup + args.duration);
    let shared = &plan;
    let (tally, judge) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| shared.drive(&progress));
        progress.watch(thread, args.records.is_some())
    })?;
    let verdict = match judge {
        Some(mut judge) => {
            for (partition, start) in plan.partitions.iter().zip(&starts) {
                consume::read_back(&mut plan.control, *partition, *start, &mut judge)?;
            }
            Some(judge.verdict())
        }
        None => None,
    };
    Ok(Outcome { place: plan.place, in_flight: plan.in_flight, tally, verdict })
}

/// A request without an answer yet.
struct Sent {
    correlation: u64,
    intended: Instant,
    /// Index in the lane's partitions of the first frame's, and, when verifying, the frames' numbers.
    first: usize,
    numbers: Vec<u64>,
}

/// One connection and the request that is being sent on it.
struct Lane {
    number: u32,
    conn: Conn,
    /// Partitions in turn.
    partitions: Vec<u32>,
    next_partition: usize,
    /// Next sequence in each of them, when idempotent.
    sequences: Vec<u32>,
    producer: u64,
    slots: Vec<ProduceSlot>,
    head: Vec<u8>,
    frames: Vec<u8>,
    /// Bytes of the request that the socket has taken; `None` between requests.
    sending: Option<usize>,
    blocked: bool,
    in_flight: VecDeque<Sent>,
}

impl Lane {
    fn new(
        args: &ProduceArgs,
        in_flight: usize,
        place: &Place,
        template: &Template,
        number: usize,
    ) -> Result<Self, String> {
        let shards = place.shards.len();
        // With a connection for each shard nothing has to be forwarded; with fewer, the server forwards.
        let shard = if args.connections >= shards { number % shards } else { place.shard_of(0) };
        let mut partitions: Vec<u32> = (0..args.partitions).collect();
        if args.connections >= shards && args.partitions as usize >= shards {
            partitions.retain(|partition| place.shard_of(*partition) == shard);
        }
        let shard = if partitions.len() == 1 { place.shard_of(partitions[0]) } else { shard };
        let unanswered = (in_flight * args.frames).div_ceil(partitions.len());
        if args.idempotent && unanswered > PRODUCER_WINDOW {
            return Err(format!(
                "--idempotent allows {PRODUCER_WINDOW} unanswered frames per partition, this would be {unanswered}: \
                 lower --in-flight or --frames, or raise --partitions"
            ));
        }
        // Connections start at different partitions.
        let turn = (number * partitions.len() / args.connections) % partitions.len();
        partitions.rotate_left(turn);
        let (mut conn, _) = Conn::dial(place.shards[shard])?;
        conn.open(&args.target.topic, &partitions)?;
        Ok(Self {
            number: number as u32,
            conn,
            sequences: vec![0; partitions.len()],
            partitions,
            next_partition: 0,
            producer: if args.idempotent { random() } else { 0 },
            slots: Vec::with_capacity(args.frames),
            head: Vec::new(),
            frames: template.frame.repeat(args.frames),
            sending: None,
            blocked: false,
            in_flight: VecDeque::new(),
        })
    }

    /// Prepares the next request.
    fn start(
        &mut self,
        args: &ProduceArgs,
        template: &Template,
        intended: Instant,
        judge: Option<(&mut Judge, u64)>,
    ) {
        assert!(self.sending.is_none(), "one request at a time is being sent (P1)");
        let first = self.next_partition;
        let frame_len = template.frame.len();
        self.slots.clear();
        for index in 0..args.frames {
            let partition = self.partitions[(first + index) % self.partitions.len()];
            let slot = ProduceSlot { handle: handle_of(partition).into(), len: (frame_len as u32).into() };
            self.slots.push(slot);
        }
        let mut numbers = Vec::new();
        if judge.is_some() || self.producer != 0 {
            numbers = self.restamp(args, template, first, intended, judge);
        }
        self.next_partition = (first + args.frames) % self.partitions.len();
        self.head.clear();
        let correlation = self.conn.next_correlation();
        Request::Produce(Produce { slots: &self.slots }).encode(correlation, &mut self.head);
        self.in_flight.push_back(Sent { correlation, intended, first, numbers });
        self.sending = Some(0);
    }

    /// Writes stamps and sequences into the frames, with their checksums.
    fn restamp(
        &mut self,
        args: &ProduceArgs,
        template: &Template,
        first: usize,
        intended: Instant,
        mut judge: Option<(&mut Judge, u64)>,
    ) -> Vec<u64> {
        let mut numbers = Vec::new();
        // What reads it counts from the intended time of sending, as this side does.
        let late = intended.elapsed().as_nanos() as u64;
        let sent_ns = if judge.is_some() { wall_ns().saturating_sub(late) } else { 0 };
        for (index, frame) in self.frames.chunks_exact_mut(template.frame.len()).enumerate() {
            let at = (first + index) % self.partitions.len();
            let partition = self.partitions[at];
            if let Some((judge, run)) = &mut judge {
                let number = judge.sent(self.number, partition);
                numbers.push(number);
                let bodies = frame[template.bodies.clone()].chunks_exact_mut(args.record_size);
                for (record, body) in bodies.enumerate() {
                    let sequence = number * u64::from(args.batch) + record as u64;
                    Stamp { run: *run, writer: self.number, partition, sequence, sent_ns }.write(body);
                }
                let crc = crc32c(&frame[FRAME_HEADER_SIZE..]);
                put(frame, offset_of!(FrameHeader, payload_crc), &crc.to_le_bytes());
            }
            if self.producer != 0 {
                put(frame, offset_of!(FrameHeader, producer_id), &self.producer.to_le_bytes());
                put(frame, offset_of!(FrameHeader, base_sequence), &self.sequences[at].to_le_bytes());
                self.sequences[at] = self.sequences[at].wrapping_add(args.batch);
            }
            let crc = crc32c(&frame[..FRAME_HEADER_SIZE - 4]);
            put(frame, offset_of!(FrameHeader, header_crc), &crc.to_le_bytes());
        }
        numbers
    }

    /// Sends what the socket takes; `true` if the request is out.
    fn push(&mut self) -> Result<bool, String> {
        let Some(mut at) = self.sending else { return Ok(true) };
        let len = self.head.len() + self.frames.len();
        while at < len {
            let head = &self.head[at.min(self.head.len())..];
            let frames = &self.frames[at.saturating_sub(self.head.len())..];
            let taken = self.conn.send(head, frames)?;
            at += taken;
            if taken == 0 {
                self.sending = Some(at);
                return Ok(false);
            }
        }
        self.sending = None;
        Ok(true)
    }

    fn request_bytes(&self) -> u64 {
        (self.head.len() + self.frames.len()) as u64
    }

    /// The request that an answer belongs to.
    fn answered(&mut self, correlation: u64) -> Option<Sent> {
        let at = self.in_flight.iter().position(|sent| sent.correlation == correlation)?;
        self.in_flight.remove(at)
    }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The load thread.
struct Driver<'a> {
    args: &'a ProduceArgs,
    template: &'a Template,
    in_flight: usize,
    lanes: Vec<Lane>,
    poller: Option<Poller>,
    progress: &'a Progress,
    judge: Option<(Judge, u64)>,
    tally: Tally,
    measure_at: Instant,
    stop_at: Instant,
    /// Requests that may still be started, once measuring, if records bound the run.
    requests_left: Option<u64>,
    /// Open loop: intended time of the next request, and the time from one to the next.
    schedule: Option<(Instant, Duration)>,
    next_lane: usize,
    paused_until: Option<Instant>,
    busy: Busy,
}

impl<'a> Driver<'a> {
    fn new(
        args: &'a ProduceArgs,
        template: &'a Template,
        in_flight: usize,
        lanes: Vec<Lane>,
        progress: &'a Progress,
    ) -> Result<Self, String> {
        let poller = if lanes.len() == 1 && args.rate.is_none() {
            lanes[0].conn.blocking(WAIT_MAX)?;
            None
        } else {
            let poller = Poller::new()?;
            for (number, lane) in lanes.iter().enumerate() {
                lane.conn.nonblocking()?;
                poller.add(&lane.conn, number)?;
            }
            Some(poller)
        };
        if args.rate.is_some() {
            cpu::precise_timers();
        }
        let per_request = u64::from(args.batch) * args.frames as u64;
        let now = Instant::now();
        let measure_at = now + args.warmup;
        progress.count_from_ns.store(wall_ns() + args.warmup.as_nanos() as u64, Ordering::Relaxed);
        let run = random();
        Ok(Self {
            args,
            template,
            in_flight,
            lanes,
            poller,
            progress,
            judge: (args.verify || args.stamped).then(|| (Judge::new(run, args.batch), run)),
            tally: Tally {
                latencies: Latencies::new()?,
                started: None,
                ended: None,
                requests: 0,
                records: 0,
                wire_bytes: 0,
                refused: BTreeMap::new(),
                unanswered: 0,
                busy_percent: 0.0,
            },
            measure_at,
            stop_at: measure_at + args.duration,
            requests_left: args.records.map(|records| records.div_ceil(per_request)),
            schedule: args.rate.map(|rate| (now, Duration::from_secs_f64(per_request as f64 / rate))),
            next_lane: 0,
            paused_until: None,
            busy: Busy::start(),
        })
    }

    fn run(mut self) -> Result<(Tally, Option<Judge>), String> {
        let mut attention: Vec<usize> = (0..self.lanes.len()).collect();
        let mut give_up_at = None;
        loop {
            let now = Instant::now();
            if self.tally.started.is_none() && now >= self.measure_at {
                self.tally.started = Some(now);
                self.busy = Busy::start();
            }
            let loading = self.loading(now);
            if loading {
                self.start_requests(now, &attention)?;
            } else {
                for lane in &attention {
                    self.push(*lane)?;
                }
                let idle = self.lanes.iter().all(|lane| lane.in_flight.is_empty());
                // Bounded by records, the window lasts to the last answer.
                if self.tally.ended.is_none() && (idle || self.requests_left.is_none()) {
                    self.end(now);
                }
                if idle || now >= *give_up_at.get_or_insert(now + DRAIN) {
                    break;
                }
            }
            attention.clear();
            self.wait(loading, &mut attention)?;
            self.receive(&attention)?;
        }
        if self.tally.ended.is_none() {
            self.end(Instant::now());
        }
        self.tally.unanswered = self.lanes.iter().map(|lane| lane.in_flight.len() as u64).sum();
        Ok((self.tally, self.judge.map(|judge| judge.0)))
    }

    /// The end of the measured window.
    fn end(&mut self, now: Instant) {
        self.tally.ended = Some(now);
        self.tally.busy_percent = self.busy.percent();
        self.progress.count_until_ns.store(wall_ns(), Ordering::Relaxed);
    }

    fn loading(&self, now: Instant) -> bool {
        match self.requests_left {
            Some(left) => left > 0,
            None => now < self.stop_at,
        }
    }

    fn start_requests(&mut self, now: Instant, attention: &[usize]) -> Result<(), String> {
        if self.paused_until.is_some_and(|until| now < until) {
            for lane in attention {
                self.push(*lane)?;
            }
            return Ok(());
        }
        let resumed = self.paused_until.take().is_some();
        if self.schedule.is_some() {
            for lane in attention {
                self.push(*lane)?;
            }
            return self.start_due(now);
        }
        // After a pause no answer is due on most connections: look at all.
        let all: Vec<usize>;
        let lanes = if resumed {
            all = (0..self.lanes.len()).collect();
            &all
        } else {
            attention
        };
        for number in lanes {
            while self.push(*number)? && self.may_start(*number) {
                self.start(*number, Instant::now());
            }
        }
        Ok(())
    }

    /// Open loop: starts every request whose time has come, on the next connection that has room.
    fn start_due(&mut self, now: Instant) -> Result<(), String> {
        while let Some((due, every)) = self.schedule.filter(|(due, _)| *due <= now) {
            let lanes = self.lanes.len();
            let free = (0..lanes).map(|step| (self.next_lane + step) % lanes).find(|n| self.may_start(*n));
            let Some(number) = free else { return Ok(()) };
            self.next_lane = (number + 1) % lanes;
            self.start(number, due);
            self.schedule = Some((due + every, every));
            self.push(number)?;
            if !self.loading(now) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn may_start(&self, number: usize) -> bool {
        let lane = &self.lanes[number];
        lane.sending.is_none() && lane.in_flight.len() < self.in_flight && self.requests_left != Some(0)
    }

    fn start(&mut self, number: usize, intended: Instant) {
        let judge = self.judge.as_mut().map(|(judge, run)| (judge, *run));
        self.lanes[number].start(self.args, self.template, intended, judge);
        if intended >= self.measure_at
            && let Some(left) = &mut self.requests_left
        {
            *left -= 1;
        }
    }

    /// Sends on; keeps the poller's interest in step.
    fn push(&mut self, number: usize) -> Result<bool, String> {
        let lane = &mut self.lanes[number];
        let out = lane.push()?;
        if let Some(poller) = &self.poller
            && lane.blocked == out
        {
            lane.blocked = !out;
            poller.watch_send(&lane.conn, number, !out)?;
        }
        Ok(out)
    }

    fn wait(&mut self, loading: bool, ready: &mut Vec<usize>) -> Result<(), String> {
        let pause = |until: Option<Instant>| {
            until.map_or(WAIT_MAX, |until| until.saturating_duration_since(Instant::now()).min(WAIT_MAX))
        };
        match &mut self.poller {
            // One connection in a closed loop: the read itself waits.
            None => {
                let lane = &self.lanes[0];
                if lane.in_flight.is_empty() && loading {
                    std::thread::sleep(pause(self.paused_until).min(PAUSE));
                }
                ready.push(0);
                Ok(())
            }
            Some(poller) => {
                let mut timeout = pause(self.paused_until);
                if loading && let Some((due, _)) = self.schedule {
                    let until = due.saturating_duration_since(Instant::now());
                    // Already due and not started: every connection is full, so wait for an answer.
                    if !until.is_zero() {
                        timeout = timeout.min(until);
                    }
                }
                poller.wait(timeout, ready)
            }
        }
    }

    fn receive(&mut self, ready: &[usize]) -> Result<(), String> {
        for number in ready {
            let lane = &mut self.lanes[*number];
            if lane.in_flight.is_empty() && self.poller.is_none() {
                continue;
            }
            if lane.conn.receive()? == Received::Nothing {
                continue;
            }
            let now = Instant::now();
            while let Some(message) = self.lanes[*number].conn.next_message()? {
                self.answer(*number, &message, now)?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, number: usize, message: &wire::Message, now: Instant) -> Result<(), String> {
        let lane = &mut self.lanes[number];
        let sent = lane.answered(message.header.correlation());
        let outcomes = match lane.conn.response(message)? {
            Response::Produced(outcomes) => outcomes,
            Response::Goodbye(_) => return Ok(()),
            Response::Error(error) => {
                let retry = error.error_code().map_or(Retry::No, ErrorCode::retry);
                if sent.is_none() || self.args.idempotent || retry != Retry::Yes {
                    return Err(describe_error(&error));
                }
                *self.tally.refused.entry(error.code).or_default() += self.args.frames as u64;
                let wait = Duration::from_millis(u64::from(error.retry_after_ms)).max(PAUSE);
                self.paused_until = Some(now + wait);
                return Ok(());
            }
            _ => return Err("the server answered something else than PRODUCE".to_owned()),
        };
        let sent = sent.ok_or("the server answered a request that was not sent (P1)")?;
        if outcomes.len() != self.args.frames {
            return Err(format!("{} outcomes for {} frames", outcomes.len(), self.args.frames));
        }
        let mut stored = 0u64;
        for (index, outcome) in outcomes.iter().enumerate() {
            let code = outcome.code.get();
            if code != 0 {
                let retry = ErrorCode::parse(code).map_or(Retry::No, ErrorCode::retry);
                if self.args.idempotent || retry != Retry::Yes {
                    return Err(describe_code(code));
                }
                *self.tally.refused.entry(code).or_default() += 1;
                let wait = Duration::from_millis(u64::from(outcome.retry_after_ms.get())).max(PAUSE);
                self.paused_until = Some(now + wait);
                continue;
            }
            stored += u64::from(self.args.batch);
            if let (Some((judge, _)), Some(frame)) = (&mut self.judge, sent.numbers.get(index)) {
                let partition = lane.partitions[(sent.first + index) % lane.partitions.len()];
                judge.acked(lane.number, partition, *frame, outcome.base_offset.get());
            }
        }
        self.progress.records.fetch_add(stored, Ordering::Relaxed);
        if stored > 0 && sent.intended >= self.measure_at {
            self.tally.latencies.record(now.saturating_duration_since(sent.intended));
        }
        if self.tally.started.is_some() && self.tally.ended.is_none() {
            self.tally.requests += 1;
            self.tally.records += stored;
            self.tally.wire_bytes += lane.request_bytes();
        }
        Ok(())
    }
}

fn report(args: &ProduceArgs, outcome: &Outcome, floors: Option<&Floors>) -> Report {
    let tally = &outcome.tally;
    let seconds = tally.window().as_secs_f64();
    let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
    let mb_s = per_second(tally.records as f64 * args.record_size as f64 / 1e6);
    let latency_us = tally.latencies.quantiles();
    let mut ratios = Vec::new();
    if let Some(floors) = floors {
        ratios.extend(Ratio::of("floor-pipe, MB/s", mb_s, floors.pipe_mb_s()));
        if args.connections == 1 && outcome.in_flight == 1 && args.batch == 1 && args.frames == 1 {
            let (p50, p99) = floors.one_thread_us().unzip();
            let one = "one thread: receive, 4 KiB write + sync, answer, µs";
            ratios.extend(Ratio::of(one, latency_us.p50, p50).map(|r| r.at("p50")));
            ratios.extend(Ratio::of(one, latency_us.p99, p99).map(|r| r.at("p99")));
            let floor = floors.one_in_flight_us();
            ratios.extend(
                Ratio::of("round trip and 4 KiB write + sync, µs", latency_us.p50, floor)
                    .map(|r| r.at("p50")),
            );
        }
    }
    Report {
        bench: "produce",
        server: outcome.place.server.clone(),
        shards: outcome.place.shards.len(),
        topic: args.target.topic.clone(),
        partitions: args.partitions,
        record_size: args.record_size,
        batch: args.batch,
        frames: args.frames,
        connections: args.connections,
        in_flight: outcome.in_flight,
        idempotent: args.idempotent,
        rate: args.rate,
        seconds,
        requests: tally.requests,
        records: tally.records,
        records_s: per_second(tally.records as f64),
        mb_s,
        wire_mb_s: per_second(tally.wire_bytes as f64 / 1e6),
        latency_us,
        latency_curve: tally.latencies.curve(),
        refused: tally.refused(),
        unanswered: tally.unanswered,
        load_cpu_percent: tally.busy_percent,
        generator_bound: generator_bound(&[tally.busy_percent], false),
        ratios,
        verdict: outcome.verdict,
    }
}

fn text(report: &Report, outcome: &Outcome, floors: Option<&Floors>) -> String {
    let mut text = format!(
        "produce  {} B × {} × {} frames, {} partitions, {} connections × {} in flight, {}\n\
         rate     {:.0} records/s  {}  ({} with headers) over {:.1} s\n",
        report.record_size,
        report.batch,
        report.frames,
        report.partitions,
        report.connections,
        report.in_flight,
        report.rate.map_or("closed loop".to_owned(), |rate| format!("open loop at {rate} records/s")),
        report.records_s,
        format_rate(report.mb_s),
        format_rate(report.wire_mb_s),
        report.seconds,
    );
    text += &latency_text("latency", &outcome.tally.latencies);
    text += &load_text(&[("", report.load_cpu_percent)], report.generator_bound);
    text += &ratio_text(&report.ratios, floors);
    for (name, frames) in &report.refused {
        text += &format!("refused  {frames} frames: {name}\n");
    }
    if report.unanswered > 0 {
        text += &format!("lost     {} requests without an answer\n", report.unanswered);
    }
    text += &report.verdict.map_or_else(String::new, verdict_text);
    text
}
