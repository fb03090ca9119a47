//! Scenes: one node, connections by hand, no chance. Each shows one promise of the server to its connections.

use super::client::{BASE_PORT, NODE};
use super::{Harness, Plan, Stop, Thread};
use ringmq_client::{Codec, ErrorCode, FrameBuilder, ProducerStamp, Record};
use ringmq_engine::ring::sim::{ClientSocket, SimConfig};
use ringmq_protocol::{
    CreateTopic, Fetch, HEADER_SIZE, Header, Hello, LeaseHandle, Open, Produce, ProduceSlot, Request,
    Response, decode_response,
};
use ringmq_server::shard::{ServerStats, ShardServer};
use zerocopy::little_endian::U32;

/// A node that serves, and nothing else happens.
pub(crate) struct Scene(Harness);

/// A connection by hand.
pub(crate) struct Wire {
    pub(crate) socket: ClientSocket,
    received: Vec<u8>,
    correlation: u64,
}

/// What an answer says, as far as scenes look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Error(Option<ErrorCode>),
    Produced(Vec<Option<ErrorCode>>),
    Fetched(usize),
    /// Group, member, generation, and the id of the first partition.
    Joined(u32, u64, u64, u32),
    Received(Vec<LeaseHandle>),
    Acked(Vec<Option<ErrorCode>>),
    Other,
}

/// Correlation of what is encoded by hand.
pub(crate) const PRODUCED: u64 = 77;

pub(crate) fn encoded(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(PRODUCED, &mut bytes);
    bytes
}

/// A frame with one record of `len` bytes.
pub(crate) fn frame(len: usize) -> Vec<u8> {
    let mut builder = FrameBuilder::new(0, len + 4096);
    let _ = builder.push(&Record { body: &vec![b'x'; len], ..Record::default() });
    builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None)
}

/// A PRODUCE of one frame behind handle 1.
pub(crate) fn produce(frame: &[u8]) -> Vec<u8> {
    let slots = [ProduceSlot { handle: U32::new(1), len: U32::new(frame.len() as u32) }];
    let mut bytes = encoded(&Request::Produce(Produce { slots: &slots }));
    let header = *Header::parse(&bytes, 24 << 20).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(header.message_len(), bytes.len() + frame.len());
    bytes.extend_from_slice(frame);
    bytes
}

impl Scene {
    pub(crate) fn new(shards: u16, change: impl FnOnce(&mut Plan)) -> Self {
        let sim = SimConfig { trace_lines: 200, ..SimConfig::default() };
        let mut plan = Plan {
            shards,
            segment_size: 8 << 20,
            checkpoint_interval: 1 << 40,
            retain_size: None,
            disk_limit: None,
            connections_max: 10_000,
            errors: false,
            breaks: false,
            producers: 0,
            plain_producers: 0,
            subscribers: 0,
            fetchers: 0,
            admins: 0,
            hostiles: 0,
            groups: Vec::new(),
            sim,
            ..Plan::draw(1)
        };
        change(&mut plan);
        let mut harness = Harness::new(plan);
        harness.peers.clear();
        let mut scene = match harness.start() {
            Ok(()) => Self(harness),
            Err(_) => panic!("the node does not start"),
        };
        scene.until("every shard is ready", |own| own.servers().all(ShardServer::is_ready));
        scene
    }

    pub(crate) fn world(&self) -> &ringmq_engine::ring::sim::World {
        &self.0.world
    }

    pub(crate) fn servers(&self) -> impl Iterator<Item = &ShardServer> {
        self.0.threads.iter().filter_map(|thread: &Thread| thread.server.as_ref())
    }

    pub(crate) fn total(&self, of: impl Fn(&ServerStats) -> u64) -> u64 {
        self.servers().map(|server| of(&server.stats())).sum()
    }

    fn pump(&mut self) {
        match self.0.pump() {
            Ok(()) => {}
            Err(Stop::Died) => panic!("the process died"),
            Err(Stop::Wrong(wrong)) => panic!("{}: {}", wrong.check, wrong.details),
        }
    }

    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begun = self.0.world.now_us();
        while !done(self) {
            assert!(self.0.world.now_us() < begun + 600_000_000, "{what}: never");
            self.pump();
        }
    }

    /// Lets virtual time pass.
    pub(crate) fn pass(&mut self, us: u64) {
        let until = self.0.world.now_us() + us;
        while self.0.world.now_us() < until {
            self.pump();
        }
    }

    /// A connection on which HELLO was answered.
    pub(crate) fn greet(&mut self, shard: u16) -> Wire {
        let socket = self.0.world.connect(NODE, BASE_PORT + 1 + shard);
        let mut wire = Wire { socket, received: Vec::new(), correlation: 0 };
        let hello = Hello { version_min: 1, version_max: 1, name: "scene" };
        let asked = self.ask(&mut wire, &Request::Hello(hello));
        assert_eq!(self.answer(&mut wire, asked), Said::Other);
        wire
    }

    pub(crate) fn send(&self, wire: &Wire, bytes: &[u8]) {
        self.0.world.client_send(wire.socket, bytes);
    }

    pub(crate) fn ask(&self, wire: &mut Wire, request: &Request<'_>) -> u64 {
        wire.correlation += 1;
        let mut bytes = Vec::new();
        request.encode(wire.correlation, &mut bytes);
        self.send(wire, &bytes);
        wire.correlation
    }

    /// Makes topic `t`, and opens handle 1 for a partition of it.
    pub(crate) fn open(&mut self, wire: &mut Wire, partition: u32) {
        let create = CreateTopic { name: "t", partitions: 4, if_not_exists: true };
        let created = self.ask(wire, &Request::CreateTopic(create));
        assert_eq!(self.answer(wire, created), Said::Other);
        let opened = self.ask(wire, &Request::Open(Open { handle: 1, topic: "t", partition }));
        assert_eq!(self.answer(wire, opened), Said::Other);
    }

    pub(crate) fn fetch(&self, wire: &mut Wire, offset: u64, max_wait_ms: u32) -> u64 {
        let fetch = Fetch { handle: 1, offset, max_bytes: 1 << 20, max_wait_ms, group: 0 };
        self.ask(wire, &Request::Fetch(fetch))
    }

    /// Everything that has come, or the end: the answers with their correlations.
    pub(crate) fn heard(&self, wire: &mut Wire) -> Vec<(u64, Said)> {
        wire.received.extend(self.0.world.client_recv(wire.socket));
        let mut found = Vec::new();
        while wire.received.len() >= HEADER_SIZE {
            let header = *Header::parse(&wire.received, 24 << 20).unwrap_or_else(|error| panic!("{error}"));
            if wire.received.len() < header.message_len() {
                break;
            }
            let message: Vec<u8> = wire.received.drain(..header.message_len()).collect();
            let (fields, frames) = message[HEADER_SIZE..].split_at(header.fields_len());
            let response = decode_response(&header, fields).unwrap_or_else(|error| panic!("{error}"));
            let said = match response {
                Response::Error(body) => Said::Error(body.error_code()),
                Response::Produced(outcomes) => Said::Produced(
                    outcomes.iter().map(|outcome| ErrorCode::parse(outcome.code.get())).collect(),
                ),
                Response::Fetched(_) => Said::Fetched(frames.len()),
                Response::Joined(joined) => {
                    let first = joined.assignments.iter().next();
                    let partition = first.map_or(0, |assignment| assignment.base_partition.0);
                    Said::Joined(joined.group, joined.member, joined.generation, partition)
                }
                Response::Received(received) => {
                    Said::Received(received.leases.iter().map(|lease| lease.handle).collect())
                }
                Response::Acked(outcomes) => {
                    Said::Acked(outcomes.iter().map(|outcome| ErrorCode::parse(outcome.code.get())).collect())
                }
                _ => Said::Other,
            };
            found.push((header.correlation(), said));
        }
        found
    }

    /// The answer to a request; others that come meanwhile are dropped.
    pub(crate) fn answer(&mut self, wire: &mut Wire, correlation: u64) -> Said {
        let mut found = None;
        self.until("an answer", |own| {
            found = own.heard(wire).into_iter().find(|(of, _)| *of == correlation).map(|(_, said)| said);
            assert!(found.is_some() || !own.is_closed(wire), "closed without an answer to {correlation}");
            found.is_some()
        });
        found.unwrap_or(Said::Other)
    }

    pub(crate) fn is_closed(&self, wire: &Wire) -> bool {
        self.0.world.client_closed(wire.socket)
    }

    /// Waits for the end, which is no reset, and answers what was said before.
    pub(crate) fn end(&mut self, wire: &mut Wire) -> Vec<(u64, Said)> {
        let mut said = Vec::new();
        self.until("the end of a connection", |own| {
            said.extend(own.heard(wire));
            own.is_closed(wire)
        });
        assert!(!self.0.world.client_was_reset(wire.socket), "reset after {said:?}");
        said
    }
}
