//! A server of a few lines that keeps frames in memory: enough of the protocol to load it, and it can be told to
//! misbehave.

use super::end_to_end::{self, EndToEndArgs, Kind};
use super::{consume, produce};
use clap::Parser;
use ringmq_format::frame::{Frame, FrameHeader};
use ringmq_format::{Offset, PartitionId, TopicId};
use ringmq_protocol::{
    Bounds, ErrorCode, FetchEntryHeader, FetchFields, HEADER_SIZE, Header, HelloAnswer, Op, Opened,
    ProduceOutcome, Request, Response, TopicEntriesBuf, TopicEntry, decode_request, fetch, limits,
};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What goes wrong, by the number of the produced frame (from 0, over all connections).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// Acknowledged and not stored.
    pub(super) lose: Option<u64>,
    /// Stored twice.
    pub(super) double: Option<u64>,
    /// Refused with a code that may be retried.
    pub(super) refuse: Option<u64>,
    /// The whole server stands still for so long.
    pub(super) stall: Option<(u64, Duration)>,
}

#[derive(Default)]
struct Partition {
    /// Base offset, count and frame.
    frames: Vec<(u64, u32, Vec<u8>)>,
    end: u64,
}

#[derive(Default)]
struct State {
    partitions: Vec<Partition>,
    frames_seen: u64,
    faults: Faults,
    /// Producer, partition: next sequence.
    sequences: HashMap<(u64, u32), u32>,
}

pub(super) struct FakeServer {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl FakeServer {
    pub(super) fn start(faults: Faults) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { faults, ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { address, state }
    }

    pub(super) fn records(&self) -> u64 {
        self.state.lock().unwrap().partitions.iter().map(|partition| partition.end).sum()
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    stream.set_nodelay(true).unwrap();
    // Handle: partition. Subscription: partition, next offset, credit.
    let mut handles: HashMap<u32, u32> = HashMap::new();
    let mut subscriptions: HashMap<u32, (u32, u64, u64)> = HashMap::new();
    let mut head = [0; HEADER_SIZE];
    loop {
        // With subscriptions a connection may not wait for requests alone.
        let idle = subscriptions.is_empty();
        stream.set_read_timeout((!idle).then_some(Duration::from_millis(1))).unwrap();
        let peeked = stream.peek(&mut head);
        stream.set_read_timeout(None).unwrap();
        let mut out = Vec::new();
        if peeked.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock) {
            push(&state.lock().unwrap(), &mut subscriptions, &mut out);
            if stream.write_all(&out).is_err() {
                return;
            }
            continue;
        }
        if stream.read_exact(&mut head).is_err() {
            return;
        }
        let header = *Header::parse(&head, limits::REQUEST_SIZE_MAX).unwrap();
        let mut body = vec![0; header.message_len() - HEADER_SIZE];
        stream.read_exact(&mut body).unwrap();
        let (fields, frames) = body.split_at(header.fields_len());
        let request = decode_request(&header, fields).unwrap();
        let mut state = state.lock().unwrap();
        answer(&header, &request, frames, &mut state, &mut handles, &mut subscriptions, &mut out);
        push(&state, &mut subscriptions, &mut out);
        drop(state);
        if stream.write_all(&out).is_err() {
            return;
        }
    }
}

/// What subscribers have credit for.
fn push(state: &State, subscriptions: &mut HashMap<u32, (u32, u64, u64)>, out: &mut Vec<u8>) {
    for (number, (partition, next, credit)) in subscriptions {
        while *credit > 0 && *next < state.partitions[*partition as usize].end {
            let sent = entries(state, *partition, next, *credit, Op::Push, 0, *number, out);
            *credit = credit.saturating_sub(sent);
        }
    }
}

fn answer(
    header: &Header,
    request: &Request<'_>,
    frames: &[u8],
    state: &mut State,
    handles: &mut HashMap<u32, u32>,
    subscriptions: &mut HashMap<u32, (u32, u64, u64)>,
    out: &mut Vec<u8>,
) {
    let bounds = |state: &State, partition: u32| Bounds {
        log_start: 0,
        visible_end: state.partitions[partition as usize].end,
    };
    let partitions = state.partitions.len() as u32;
    let topic = |code: Option<ErrorCode>, partitions| TopicEntry {
        code: code.map_or(0, |code| code as u16),
        topic: TopicId(1),
        base_partition: PartitionId(1),
        partitions,
        name: "t",
    };
    let response = match request {
        Request::Hello(_) => Response::Hello(HelloAnswer {
            version: 1,
            shard: 0,
            shard_ports: &[],
            frame_size_max: 4 << 20,
            request_size_max: limits::REQUEST_SIZE_MAX as u32,
            server: "fake",
            node: 1,
        }),
        Request::CreateTopic(create) => {
            if partitions == 0 {
                state.partitions.resize_with(create.partitions as usize, Partition::default);
            }
            Response::Created(topic(None, state.partitions.len() as u32))
        }
        Request::Metadata(_) => {
            let mut topics = TopicEntriesBuf::default();
            let code = (partitions == 0).then_some(ErrorCode::UnknownTopic);
            topics.push(&topic(code, partitions));
            return Response::Metadata(topics.entries()).encode(header.correlation(), 0, out);
        }
        Request::Open(open) => {
            handles.insert(open.handle, open.partition);
            let partition = PartitionId(open.partition + 1);
            Response::Opened(Opened { partition, bounds: bounds(state, open.partition) })
        }
        Request::Produce(produce) => {
            let outcomes: Vec<ProduceOutcome> = produce
                .ranges()
                .map(|(slot, range)| store(state, handles[&slot.handle.get()], &frames[range]))
                .collect();
            return Response::Produced(&outcomes).encode(header.correlation(), 0, out);
        }
        Request::Fetch(fetch) => {
            let mut next = fetch.offset;
            let (partition, max) = (handles[&fetch.handle], u64::from(fetch.max_bytes));
            entries(state, partition, &mut next, max, Op::Fetch, header.correlation(), fetch.handle, out);
            return;
        }
        Request::Subscribe(subscribe) => {
            let partition = handles[&subscribe.handle];
            subscriptions.insert(subscribe.subscription, (partition, subscribe.offset, subscribe.credit));
            Response::Subscribed(bounds(state, partition))
        }
        Request::Credit(credit) => {
            subscriptions.get_mut(&credit.subscription).unwrap().2 += credit.bytes;
            return;
        }
        other => panic!("the fake server does not know {other:?}"),
    };
    response.encode(header.correlation(), header.handle(), out);
}

fn store(state: &mut State, partition: u32, bytes: &[u8]) -> ProduceOutcome {
    let frame = Frame::parse(bytes).unwrap();
    frame.verify_payload().unwrap();
    ringmq_format::record::Payload::parse(&frame).unwrap();
    let count = frame.header.count.get();
    let producer = frame.header.producer_id().get();
    if producer != 0 {
        let next = state.sequences.entry((producer, partition)).or_default();
        assert_eq!(frame.header.base_sequence.get(), *next);
        *next += count;
    }
    let number = Some(state.frames_seen);
    state.frames_seen += 1;
    if let Some((at, time)) = state.faults.stall
        && number == Some(at)
    {
        std::thread::sleep(time);
    }
    if number == state.faults.refuse {
        return ProduceOutcome::failed(ErrorCode::DiskFull, 2);
    }
    let home = &mut state.partitions[partition as usize];
    let base = home.end;
    let copies = if number == state.faults.double { 2 } else { 1 };
    for _ in 0..if number == state.faults.lose { 0 } else { copies } {
        let mut stamped: FrameHeader = *frame.header;
        stamped.stamp(PartitionId(partition + 1), Offset(home.end), 1);
        home.frames.push((home.end, count, bytes.to_vec()));
        home.end += u64::from(count);
    }
    // A lost frame takes an offset that nobody will ever see.
    ProduceOutcome::stored(if number == state.faults.lose { base + (1 << 40) } else { base }, 1, false)
}

/// Writes one FETCH answer or PUSH with at most `max` bytes of entries; answers how many.
#[allow(clippy::too_many_arguments)]
fn entries(
    state: &State,
    partition: u32,
    next: &mut u64,
    max: u64,
    op: Op,
    correlation: u64,
    handle: u32,
    out: &mut Vec<u8>,
) -> u64 {
    let home = &state.partitions[partition as usize];
    let start = fetch::fetch_begin(out);
    let mut sent = 0;
    for (base, count, frame) in &home.frames {
        if *base + u64::from(*count) <= *next || sent >= max {
            continue;
        }
        fetch::put_entry(out, &FetchEntryHeader::new(*base, 1, 0, *count));
        out.extend_from_slice(frame);
        sent += (fetch::FETCH_ENTRY_SIZE + frame.len()) as u64;
        *next = *base + u64::from(*count);
    }
    fetch::fetch_end(out, start, op, correlation, handle, &FetchFields::new(0, home.end, *next), 0);
    sent
}

/// Arguments as from a command line; the server is filled in.
fn args<T: clap::Args>(server: &FakeServer, line: &str) -> T {
    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Cli<T: clap::Args> {
        #[command(flatten)]
        args: T,
    }
    let line = format!("bench --server {} --topic t {line}", server.address);
    Cli::parse_from(line.split_whitespace()).args
}

fn produce(server: &FakeServer, line: &str) -> Result<produce::Outcome, String> {
    let args: produce::ProduceArgs = args(server, &format!("--warmup 20ms --duration 80ms {line}"));
    args.check()?;
    produce::load(&args, false)
}

fn verdict(faults: Faults, line: &str) -> super::stamp::Verdict {
    let server = FakeServer::start(faults);
    produce(&server, &format!("--verify {line}")).unwrap().verdict.unwrap()
}

#[test]
fn every_shape_of_load_stores_what_it_says() {
    for line in [
        "--batch 10",
        "--batch 1 --record-size 40 --in-flight 4",
        "--batch 3 --frames 5 --partitions 7 --in-flight 3",
        "--batch 2 --frames 4 --partitions 2 --connections 5 --in-flight 2",
        "--batch 10 --rate 20000 --connections 3",
        "--batch 10 --idempotent --in-flight 5",
        "--batch 4 --frames 3 --partitions 3 --idempotent --in-flight 2 --connections 2",
        "--batch 10 --records 505 --warmup 0s",
    ] {
        let server = FakeServer::start(Faults::default());
        let outcome = produce(&server, &format!("{line} --verify")).unwrap();
        let verdict = outcome.verdict.unwrap();
        assert!(verdict.holds(), "{line}: {verdict:?}");
        assert!(verdict.acknowledged > 0, "{line}: {verdict:?}");
        assert_eq!(verdict.found, verdict.acknowledged, "{line}");
        assert_eq!(verdict.found, server.records(), "{line}");
        if line.contains("--records") {
            assert_eq!(verdict.found, 510, "whole batches");
        }
    }
}

#[test]
fn loss_and_doubles_are_found_and_refusals_are_neither() {
    let lost = verdict(Faults { lose: Some(3), ..Faults::default() }, "--batch 5");
    assert_eq!((lost.lost, lost.duplicated), (5, 0), "{lost:?}");
    let doubled = verdict(Faults { double: Some(3), ..Faults::default() }, "--batch 5 --in-flight 3");
    assert_eq!((doubled.lost, doubled.duplicated), (0, 5), "{doubled:?}");
    let refuse = Faults { refuse: Some(3), ..Faults::default() };
    assert!(verdict(refuse, "--batch 5 --connections 2").holds());
    let server = FakeServer::start(refuse);
    let Err(why) = produce(&server, "--batch 5 --idempotent") else { panic!("a gap in a sequence") };
    assert!(why.contains("DiskFull"), "{why}");
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let server = FakeServer::start(Faults::default());
    produce(&server, "--batch 1 --rate 1000 --warmup 0s --duration 300ms").unwrap();
    let records = server.records();
    assert!((150..=302).contains(&records), "{records} records in 0.3 s at 1,000/s");
}

/// The reason for the open loop: requests that were due while the server stood still count with the time that they
/// waited. A closed loop sends none of them and reports one slow request.
#[test]
fn an_open_loop_shows_a_stall_and_a_closed_one_hides_it() {
    let stalled = Faults { stall: Some((300, Duration::from_millis(250))), ..Faults::default() };
    let line = "--batch 1 --record-size 64 --warmup 0s --duration 1s";
    let slow = |outcome: &produce::Outcome| {
        let q = outcome.latencies().quantiles();
        (q, outcome.latencies().count_from(Duration::from_millis(100)))
    };
    let server = FakeServer::start(stalled);
    let open = produce(&server, &format!("{line} --rate 1000")).unwrap();
    let (q, waited) = slow(&open);
    assert!(q.p99_9 >= 200_000.0, "{q:?}");
    // Of the 250 that were due meanwhile those of the first 150 ms.
    assert!((100..400).contains(&waited), "{waited} of {q:?}");

    let server = FakeServer::start(stalled);
    let closed = produce(&server, line).unwrap();
    let (q, waited) = slow(&closed);
    assert!(q.max >= 200_000.0, "{q:?}");
    assert!(waited <= 3, "{waited} of {q:?}: the stall is one request here");
}

fn end_to_end(kind: Kind, server: &FakeServer, line: &str) -> Result<end_to_end::Outcome, String> {
    let args: EndToEndArgs = args(server, &format!("--warmup 20ms --duration 150ms {line}"));
    args.check()?;
    end_to_end::load(kind, &args, false)
}

#[test]
fn every_subscriber_gets_every_record_with_its_latency() {
    for (kind, subscribers, line) in [
        (Kind::EndToEnd, 1, "--batch 1 --rate 1000 --record-size 100"),
        (Kind::EndToEnd, 1, "--batch 4 --partitions 3 --frames 2 --connections 2"),
        (Kind::FanOut, 5, "--batch 2 --rate 2000 --subscribers 5 --credit 4K"),
        (Kind::Mixed, 1, "--batch 10 --rate 5000 --partitions 2"),
    ] {
        let server = FakeServer::start(Faults::default());
        let outcome = end_to_end(kind, &server, &format!("{line} --verify")).unwrap();
        let verdict = outcome.verdict.unwrap();
        assert!(verdict.holds() && verdict.acknowledged > 0, "{line}: {verdict:?}");
        assert_eq!(verdict.found, subscribers * server.records(), "{line}");
        assert_eq!(outcome.delivered.behind, 0, "{line}");
        let latencies = outcome.delivered.latencies.quantiles();
        assert!(latencies.count > 0 && latencies.p50 > 0.0, "{line}: {latencies:?}");
    }
}

#[test]
fn a_subscriber_finds_loss_and_doubles_and_sees_a_stall() {
    let lose = Faults { lose: Some(3), ..Faults::default() };
    let line = "--batch 5 --verify --subscribers 2";
    let verdict = end_to_end(Kind::FanOut, &FakeServer::start(lose), line).unwrap().verdict.unwrap();
    assert_eq!((verdict.lost, verdict.duplicated), (10, 0), "both lack one frame: {verdict:?}");
    let double = Faults { double: Some(3), ..Faults::default() };
    let verdict = end_to_end(Kind::EndToEnd, &FakeServer::start(double), line).unwrap().verdict.unwrap();
    assert_eq!((verdict.lost, verdict.duplicated), (0, 10), "{verdict:?}");
    let refuse = Faults { refuse: Some(3), ..Faults::default() };
    assert!(end_to_end(Kind::EndToEnd, &FakeServer::start(refuse), line).unwrap().verdict.unwrap().holds());
    let stall = Faults { stall: Some((100, Duration::from_millis(200))), ..Faults::default() };
    let line = "--batch 1 --record-size 64 --rate 1000 --duration 400ms --warmup 0s";
    let outcome = end_to_end(Kind::EndToEnd, &FakeServer::start(stall), line).unwrap();
    let q = outcome.delivered.latencies.quantiles();
    assert!(q.p99 >= 150_000.0, "a subscriber counts from the intended time too: {q:?}");
}

#[test]
fn a_reader_gets_every_record_in_both_modes() {
    let server = FakeServer::start(Faults::default());
    produce(&server, "--batch 10 --partitions 4 --frames 2 --records 2000 --warmup 0s").unwrap();
    for line in [
        "",
        "--mode fetch",
        "--credit 20K",
        "--mode fetch --credit 1",
        "--connections 3",
        "--connections 9 --mode fetch",
        "--partition 0,1,2,3",
        "--follow --duration 200ms",
    ] {
        let (_, tally) = consume::load(&args(&server, line), false).unwrap();
        assert_eq!(tally.records, 2000, "{line}");
    }
    let (_, tally) = consume::load(&args(&server, "--again --duration 100ms"), false).unwrap();
    assert!(tally.records > 2000, "{} records in several passes", tally.records);
    let (_, tally) = consume::load(&args(&server, "--verify"), false).unwrap();
    assert_eq!(tally.followed(), Some(super::stamp::Followed::default()), "no stamps, nothing to say");
    let doubled = FakeServer::start(Faults { double: Some(2), lose: Some(4), ..Faults::default() });
    produce(&doubled, "--batch 10 --records 100 --warmup 0s --verify").unwrap();
    let (_, tally) = consume::load(&args(&doubled, "--verify"), false).unwrap();
    let followed = tally.followed().unwrap();
    assert_eq!((followed.found, followed.duplicated, followed.missing), (90, 10, 10), "{followed:?}");
    assert!(!followed.holds());
    let (_, tally) = consume::load(&args(&server, "--partition 2"), false).unwrap();
    assert_eq!(tally.records, 500);
    let (_, tally) = consume::load(&args(&server, "--from latest --duration 50ms"), false).unwrap();
    assert_eq!(tally.records, 0);
    let (_, tally) = consume::load(&args(&server, "--partition 1 --from 255"), false).unwrap();
    assert_eq!(tally.records, 250, "from the frame that holds the offset");
}

#[test]
fn wrong_use_is_refused_with_a_reason() {
    let server = FakeServer::start(Faults::default());
    for (line, part) in [
        ("--batch 0", "--batch"),
        ("--in-flight 0", "--in-flight"),
        ("--frames 5000", "4096"),
        ("--verify --record-size 10", "40"),
        ("--rate 0", "--rate"),
        ("--idempotent --in-flight 6", "--in-flight"),
        ("--batch 1000 --record-size 1M", "does not fit"),
        ("--batch 1 --record-size 1M --frames 100", "--frames"),
    ] {
        let Err(why) = produce(&server, line) else { panic!("{line}") };
        assert!(why.contains(part), "{line}: {why}");
    }
    let nobody = FakeServer { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), state: Arc::default() };
    let Err(why) = produce(&nobody, "") else { panic!("connected") };
    assert!(why.contains("ringmq server"), "{why}");
    let empty = FakeServer::start(Faults::default());
    let Err(why) = consume::load(&args(&empty, ""), false) else { panic!("read") };
    assert!(why.contains("UnknownTopic"), "{why}");
}

#[test]
fn reports_say_what_was_measured() {
    let server = FakeServer::start(Faults::default());
    let folder = std::env::temp_dir().join(format!("ringmq-bench-report-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let (json, hlog) = (folder.join("figures.json"), folder.join("latency.hlog"));
    let line = format!("--batch 10 --out {} --hlog {}", json.display(), hlog.display());
    let produce_args = args(&server, &format!("{line} --warmup 10ms --duration 50ms --verify"));
    produce::run(&produce_args, false).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["bench"], "produce");
    assert!(report["records_s"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["latency_us"]["p99"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["verdict"]["lost"], 0);
    assert!(std::fs::read_to_string(&hlog).unwrap().contains("StartTime"), "an interval log");
    consume::run(&args(&server, &format!("--out {}", json.display())), true).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&report["bench"], &report["caught_up"]), (&"consume".into(), &true.into()));
    std::fs::remove_dir_all(&folder).unwrap();
}
