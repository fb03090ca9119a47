//! Clients that do not behave: garbage, half messages, floods, silence. Each does one thing on one connection; what
//! was asked in a well-formed way is still answered once, and what was not costs the server nothing for long.

use super::client::{BASE_PORT, Context, NODE};
use super::model::{Checked, wrong};
use ringmq_client::{Codec, ErrorCode, FrameBuilder, OffsetSpec, ProducerStamp, Record};
use ringmq_engine::ring::sim::ClientSocket;
use ringmq_protocol::{
    CreateTopic, Credit, DescribeTopic, Fetch, Flags, HEADER_SIZE, Header, Hello, ListOffsets, ListTopics,
    Op, Open, Produce, ProduceSlot, Request, Response, Subscribe, decode_response, entries,
};
use std::collections::{BTreeMap, BTreeSet};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

/// Virtual time in which the server must have done what is expected.
const PATIENCE_US: u64 = 30_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Garbage,
    Silence,
    HalfHello,
    NoHello,
    ImpossibleLength,
    WrongCrc,
    UnknownOp,
    BadFrames,
    Boundaries,
    Storm,
    Burst,
    HalfClose,
    NeverReads,
    Resubscribe,
}

const KINDS: [Kind; 14] = [
    Kind::Garbage,
    Kind::Silence,
    Kind::HalfHello,
    Kind::NoHello,
    Kind::ImpossibleLength,
    Kind::WrongCrc,
    Kind::UnknownOp,
    Kind::BadFrames,
    Kind::Boundaries,
    Kind::Storm,
    Kind::Burst,
    Kind::HalfClose,
    Kind::NeverReads,
    Kind::Resubscribe,
];

/// A subscription of `Resubscribe`: its requests, and where it stands.
#[derive(Clone, Copy, Debug)]
struct Round {
    subscribe: u64,
    unsubscribe: u64,
    partition: u32,
    next: u64,
    begun: bool,
    ended: bool,
}

/// One attack.
struct Attack {
    kind: Kind,
    socket: ClientSocket,
    since: u64,
    received: Vec<u8>,
    /// Requests without an answer, and the code that is due, if one is.
    expected: BTreeMap<u64, Option<ErrorCode>>,
    answered: BTreeSet<u64>,
    /// The server has to close.
    closes: bool,
    /// It is over then, whatever came.
    until: u64,
    reads: bool,
    /// A client-side partition in which everything that is pushed is compared.
    rounds: Vec<Round>,
    excused: bool,
}

pub(crate) struct Hostile {
    attack: Option<Attack>,
    next_at: u64,
    pub(crate) attacks: u64,
}

impl Hostile {
    pub(crate) fn new() -> Self {
        Self { attack: None, next_at: 0, attacks: 0 }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.attack.is_none()
    }

    pub(crate) fn deadline(&self) -> u64 {
        match &self.attack {
            None => self.next_at,
            Some(attack) => attack.until,
        }
    }

    pub(crate) fn is_due(&self, cx: &Context<'_>) -> bool {
        let heard = self.attack.as_ref().is_some_and(|attack| {
            attack.reads
                && (cx.world.client_readable(attack.socket) > 0 || cx.world.client_closed(attack.socket))
        });
        heard || self.deadline() <= cx.now
    }

    /// Ends at once.
    pub(crate) fn stop(&mut self, cx: &Context<'_>) {
        if let Some(attack) = self.attack.take() {
            cx.world.client_close(attack.socket);
        }
        self.next_at = u64::MAX;
    }

    /// The process has died: nothing is expected any more.
    pub(crate) fn excuse(&mut self) {
        if let Some(attack) = &mut self.attack {
            attack.excused = true;
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Checked {
        if let Some(attack) = &mut self.attack {
            if attack.go_on(cx)? {
                cx.world.client_close(attack.socket);
                self.attack = None;
                self.next_at = cx.now + cx.draw.below(30 * cx.plan.pause_us);
            }
        } else if cx.now >= self.next_at {
            self.next_at = cx.now + 1 + cx.draw.below(30 * cx.plan.pause_us);
            if !cx.calm && cx.model.is_founded(&cx.plan.topics) {
                self.attacks += 1;
                self.attack = Some(Attack::begin(cx));
            }
        }
        Ok(())
    }
}

fn hello() -> Vec<u8> {
    let mut out = Vec::new();
    Request::Hello(Hello { version_min: 1, version_max: 1, name: "hostile" }).encode(1, &mut out);
    out
}

fn random_bytes(cx: &mut Context<'_>, len: u64) -> Vec<u8> {
    (0..len).map(|_| cx.draw.next() as u8).collect()
}

impl Attack {
    fn begin(cx: &mut Context<'_>) -> Self {
        let kind = cx.draw.pick(&KINDS);
        let port = BASE_PORT + cx.draw.below(u64::from(cx.plan.shards) + 1) as u16;
        let socket = cx.world.connect(NODE, port);
        cx.note(|| format!("hostile {kind:?} at {port}: {socket:?}"));
        let mut attack = Self {
            kind,
            socket,
            since: cx.now,
            received: Vec::new(),
            expected: BTreeMap::new(),
            answered: BTreeSet::new(),
            closes: false,
            until: cx.now + PATIENCE_US,
            reads: true,
            rounds: Vec::new(),
            excused: cx.plan.sim.net.black_hole_ppm > 0 || cx.plan.connections_max < 100,
        };
        let bytes = attack.bytes(cx);
        cx.world.client_send(socket, &bytes);
        if kind == Kind::HalfClose {
            cx.world.client_finish(socket);
        }
        attack
    }

    fn ask(&mut self, out: &mut Vec<u8>, request: &Request<'_>, code: Option<ErrorCode>) -> u64 {
        let correlation = 2 + self.expected.len() as u64;
        self.expected.insert(correlation, code);
        request.encode(correlation, out);
        correlation
    }

    fn greet(&mut self) -> Vec<u8> {
        self.expected.insert(1, None);
        hello()
    }

    fn open(&mut self, out: &mut Vec<u8>, handle: u32, topic: &str, partition: u32) {
        self.ask(out, &Request::Open(Open { handle, topic, partition }), None);
    }

    fn bytes(&mut self, cx: &mut Context<'_>) -> Vec<u8> {
        let topics = cx.plan.topics.clone();
        let (topic, partitions) = cx.draw.pick(&topics);
        let mut out = Vec::new();
        match self.kind {
            Kind::Garbage => {
                self.closes = true;
                let len = cx.draw.pick(&[1, 31, 32, 33, 500, 9_000]);
                return random_bytes(cx, len);
            }
            Kind::Silence => self.closes = true,
            Kind::HalfHello => {
                self.closes = true;
                out = hello();
                out.truncate(1 + cx.draw.below(out.len() as u64 - 1) as usize);
            }
            Kind::NoHello => {
                self.closes = true;
                self.ask(&mut out, &Request::Ping, Some(ErrorCode::HelloRequired));
                Request::DeleteTopic(topic).encode(9, &mut out); // answered once, and this is too late
            }
            Kind::ImpossibleLength => {
                self.closes = true;
                out = self.greet();
                let len = cx.draw.pick(&[(16 << 20) + 1, 1 << 31]);
                let header = Header::new(Op::Produce as u8, Flags::REQUEST, 9, 0, &[0; 8], len);
                out.extend_from_slice(header.as_bytes());
            }
            Kind::WrongCrc => {
                out = self.greet();
                let at = out.len();
                self.ask(&mut out, &Request::DeleteTopic(topic), Some(ErrorCode::PayloadCrc));
                out[at + HEADER_SIZE] ^= 0x20;
                self.ask(&mut out, &Request::Ping, None);
            }
            Kind::UnknownOp => {
                out = self.greet();
                let fields = random_bytes(cx, 40);
                let op = cx.draw.pick(&[0, 77, 255]);
                out.extend_from_slice(Header::new(op, Flags::REQUEST, 2, 5, &fields, 0).as_bytes());
                out.extend_from_slice(&fields);
                self.expected.insert(2, Some(ErrorCode::UnknownOp));
                self.ask(&mut out, &Request::Ping, None);
            }
            Kind::BadFrames => {
                out = self.greet();
                self.open(&mut out, 1, topic, cx.draw.below(u64::from(partitions)) as u32);
                for _ in 0..1 + cx.draw.below(6) {
                    self.bad_produce(cx, &mut out);
                }
                self.ask(&mut out, &Request::Ping, None);
            }
            Kind::Boundaries => {
                out = self.greet();
                self.boundaries(cx, &mut out, topic, partitions);
            }
            Kind::Storm => {
                self.until = cx.now + cx.draw.below(2_000);
                if cx.draw.one_in(2) {
                    out = self.greet();
                    self.open(&mut out, 1, topic, 0);
                    self.fetch(&mut out, 1, 0, 5_000);
                    self.produce_nothing(&mut out, 1);
                }
            }
            Kind::Burst => {
                out = self.greet();
                let count = if cx.plan.bursts { 500 + cx.draw.below(8_000) } else { cx.draw.below(300) };
                self.open(&mut out, 1, topic, cx.draw.below(u64::from(partitions)) as u32);
                let polls = cx.draw.one_in(2);
                for _ in 0..count {
                    if polls {
                        self.fetch(&mut out, 1, 0, 20);
                    } else {
                        self.ask(&mut out, &Request::Ping, None);
                    }
                }
            }
            Kind::HalfClose => {
                self.closes = true;
                out = self.greet();
                self.open(&mut out, 1, topic, cx.draw.below(u64::from(partitions)) as u32);
                self.ask(&mut out, &Request::Ping, None);
                self.fetch(&mut out, 1, 0, 1);
                let list = ListOffsets { handle: 1, what: OffsetSpec::Latest };
                self.ask(&mut out, &Request::ListOffsets(list), None);
            }
            Kind::NeverReads => {
                self.reads = false;
                self.until = cx.now + cx.draw.below(3_000_000);
                out = self.greet();
                for partition in 0..partitions {
                    self.open(&mut out, 1 + partition, topic, partition);
                    for number in 0..3 {
                        let subscription = 1 + number + 10 * partition;
                        let subscribe = Subscribe {
                            handle: 1 + partition,
                            subscription,
                            offset: 0,
                            credit: u64::MAX,
                            group: 0,
                        };
                        self.ask(&mut out, &Request::Subscribe(subscribe), None);
                        self.fetch(&mut out, 1 + partition, 0, 10_000);
                    }
                }
            }
            Kind::Resubscribe => {
                out = self.greet();
                for partition in 0..partitions {
                    self.open(&mut out, 1 + partition, topic, partition);
                }
                for _ in 0..2 + cx.draw.below(6) {
                    let partition = cx.draw.below(u64::from(partitions)) as u32;
                    let id = cx.model.partition(topic, partition).map_or(0, |id| id.0);
                    let subscribe = Subscribe {
                        handle: 1 + partition,
                        subscription: 7,
                        offset: 0,
                        credit: cx.draw.pick(&[0, 1, 50_000]),
                        group: 0,
                    };
                    let subscribe = self.ask(&mut out, &Request::Subscribe(subscribe), None);
                    Request::Credit(Credit { subscription: 7, bytes: 100_000 }).encode(0, &mut out);
                    for _ in 0..cx.draw.below(4) {
                        self.ask(&mut out, &Request::Ping, None);
                    }
                    let unsubscribe = self.ask(&mut out, &Request::Unsubscribe(7), None);
                    let round =
                        Round { subscribe, unsubscribe, partition: id, next: 0, begun: false, ended: false };
                    self.rounds.push(round);
                }
            }
        }
        out
    }

    fn fetch(&mut self, out: &mut Vec<u8>, handle: u32, offset: u64, max_wait_ms: u32) {
        let fetch = Fetch { handle, offset, max_bytes: 1, max_wait_ms, group: 0 };
        self.ask(out, &Request::Fetch(fetch), None);
    }

    /// A PRODUCE of a frame that nobody has opened a handle for.
    fn produce_nothing(&mut self, out: &mut Vec<u8>, handle: u32) {
        let slots = [ProduceSlot { handle: U32::new(handle + 100), len: U32::new(64) }];
        self.ask(out, &Request::Produce(Produce { slots: &slots }), None);
        out.extend_from_slice(&[0; 64]);
    }

    fn bad_produce(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) {
        let mut builder = FrameBuilder::new(0, 4096);
        let _ = builder.push(&Record { body: b"hostile", ..Record::default() });
        let mut frame = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
        let at = cx.draw.below(frame.len() as u64) as usize;
        frame[at] ^= 1 << cx.draw.below(8);
        if cx.draw.one_in(4) {
            frame.extend_from_slice(&[0; 64]);
        }
        let len = U32::new(frame.len() as u32);
        let slots = [
            ProduceSlot { handle: U32::new(1), len },
            ProduceSlot { handle: U32::new(9), len },
            ProduceSlot { handle: U32::new(1), len },
        ];
        self.ask(out, &Request::Produce(Produce { slots: &slots }), None);
        for _ in slots {
            out.extend_from_slice(&frame);
        }
    }

    fn boundaries(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>, topic: &str, partitions: u32) {
        let unknown = Some(ErrorCode::UnknownHandle);
        let some = cx.draw.below(u64::from(partitions)) as u32;
        self.open(out, 1, topic, some);
        self.open(out, 1, topic, some);
        let other = Open { handle: 1, topic, partition: u32::MAX };
        self.ask(out, &Request::Open(other), Some(ErrorCode::UnknownPartition));
        let no_topic = Open { handle: 2, topic: "no-such-topic", partition: 0 };
        self.ask(out, &Request::Open(no_topic), Some(ErrorCode::UnknownTopic));
        for offset in [u64::MAX, u64::MAX - 1, 1 << 62] {
            let fetch = Fetch { handle: 1, offset, max_bytes: u32::MAX, max_wait_ms: u32::MAX, group: 0 };
            self.ask(out, &Request::Fetch(fetch), Some(ErrorCode::OffsetOutOfRange));
            let subscribe = Subscribe { handle: 1, subscription: 4, offset, credit: u64::MAX, group: 0 };
            self.ask(out, &Request::Subscribe(subscribe), None);
        }
        self.ask(out, &Request::ListOffsets(ListOffsets { handle: 3, what: OffsetSpec::Latest }), unknown);
        for time in [i64::MIN, 0, i64::MAX] {
            let list = ListOffsets { handle: 1, what: OffsetSpec::Time(time) };
            self.ask(out, &Request::ListOffsets(list), None);
        }
        Request::Credit(Credit { subscription: 99, bytes: u64::MAX }).encode(0, out);
        self.ask(out, &Request::Unsubscribe(99), Some(ErrorCode::UnknownSubscription));
        let describe = DescribeTopic { name: topic, first_partition: 0, limit: u32::MAX };
        self.ask(out, &Request::DescribeTopic(describe), None);
        self.ask(out, &Request::ListTopics(ListTopics { after: "", limit: 1 }), None);
        for (name, partitions, code) in [
            ("", 1, ErrorCode::InvalidTopicName),
            ("a/b", 1, ErrorCode::InvalidTopicName),
            ("none", 0, ErrorCode::InvalidPartitions),
            ("many", u32::MAX, ErrorCode::InvalidPartitions),
        ] {
            let create = CreateTopic { name, partitions, if_not_exists: true };
            self.ask(out, &Request::CreateTopic(create), Some(code));
        }
        let create = CreateTopic { name: topic, partitions: 3, if_not_exists: false };
        self.ask(out, &Request::CreateTopic(create), Some(ErrorCode::TopicExists));
        self.ask(out, &Request::DeleteTopic("no-such-topic"), Some(ErrorCode::UnknownTopic));
        self.ask(out, &Request::Ping, None);
    }

    /// Takes what has come. Answers whether it is over.
    fn go_on(&mut self, cx: &mut Context<'_>) -> Result<bool, super::model::Wrong> {
        let late = cx.now >= self.until;
        if self.reads {
            self.received.extend_from_slice(&cx.world.client_recv(self.socket));
            self.parse(cx)?;
        }
        if cx.world.client_closed(self.socket) {
            let unanswered = self.expected.len();
            let whole = !cx.world.client_was_reset(self.socket) && !self.excused && self.reads;
            let due = matches!(self.kind, Kind::HalfClose | Kind::NoHello);
            if whole && due && unanswered > 0 {
                let details = format!("{:?} {:?}: {unanswered} unanswered", self.kind, self.socket);
                return Err(wrong("half-closed: every request is answered", details));
            }
            return Ok(true);
        }
        let answered = self.expected.is_empty() && self.reads;
        if answered && !self.closes {
            return Ok(true);
        }
        if !late {
            return Ok(false);
        }
        let kind = self.kind;
        if !self.excused && kind != Kind::Storm && kind != Kind::NeverReads {
            let open: Vec<_> = self.expected.keys().take(5).collect();
            let details = format!(
                "{kind:?} {:?} since {} us: unanswered {open:?} of {}, closes {}",
                self.socket,
                self.since,
                self.expected.len(),
                self.closes
            );
            return Err(wrong("no client is left without an answer", details));
        }
        Ok(true)
    }

    fn parse(&mut self, cx: &mut Context<'_>) -> Checked {
        let mut at = 0;
        while self.received.len() - at >= HEADER_SIZE {
            let header = match Header::parse(&self.received[at..], 24 << 20) {
                Ok(header) => *header,
                Err(error) => return Err(wrong("answers can be followed", format!("{error}"))),
            };
            if self.received.len() - at < header.message_len() {
                break;
            }
            let message = self.received[at + HEADER_SIZE..at + header.message_len()].to_vec();
            let (fields, frames) = message.split_at(header.fields_len());
            let response = decode_response(&header, fields)
                .map_err(|error| wrong("answers can be followed", format!("{error}")))?;
            self.answer(cx, &header, &response, frames)?;
            at += header.message_len();
        }
        self.received.drain(..at);
        Ok(())
    }

    fn answer(
        &mut self,
        cx: &mut Context<'_>,
        header: &Header,
        response: &Response<'_>,
        frames: &[u8],
    ) -> Checked {
        let correlation = header.correlation();
        if correlation == 0 {
            return self.unasked(cx, header, response, frames);
        }
        let Some(code) = self.expected.remove(&correlation) else {
            let details = format!("{:?} {:?}: {correlation} {response:?}", self.kind, self.socket);
            return Err(wrong("a request is answered once", details));
        };
        self.answered.insert(correlation);
        let is_error = matches!(response, Response::Error(_));
        for round in &mut self.rounds {
            round.begun |= round.subscribe == correlation && !is_error;
            round.ended |= round.unsubscribe == correlation && !is_error;
        }
        if let (Some(code), true) = (code, !self.excused) {
            let found = match response {
                Response::Error(body) => body.error_code(),
                _ => None,
            };
            let busy = [
                ErrorCode::Recovering,
                ErrorCode::ShuttingDown,
                ErrorCode::ShardPoisoned,
                ErrorCode::OutcomeUnknown,
                ErrorCode::DiskFull,
            ];
            if found != Some(code) && !found.is_some_and(|found| busy.contains(&found)) {
                let details = format!("{:?} {correlation}: {code:?} is due, not {response:?}", self.kind);
                return Err(wrong("bad input gets its error", details));
            }
        }
        if let Response::Produced(outcomes) = response
            && outcomes.iter().any(|outcome| outcome.is_stored())
        {
            return Err(wrong("bad input gets its error", "a bad frame was stored"));
        }
        Ok(())
    }

    fn unasked(
        &mut self,
        cx: &mut Context<'_>,
        header: &Header,
        response: &Response<'_>,
        frames: &[u8],
    ) -> Checked {
        if let Response::Error(body) = response
            && body.error_code() == Some(ErrorCode::TooManyConnections)
        {
            // Turned away at the door, for want of memory.
            self.excused = true;
        }
        let Response::Push(fields) = response else { return Ok(()) };
        if self.kind != Kind::Resubscribe {
            return Ok(());
        }
        let details = format!("{:?}: {:?} {:?}", self.socket, fields, self.rounds);
        for entry in entries(frames) {
            let Ok(entry) = entry else { return Err(wrong("streams go on without a gap", details)) };
            let (base, end) = (entry.header.base_offset.get(), entry.header.end_offset());
            let partition = entry.frame.header.partition().0;
            let round = self.rounds.iter_mut().find(|round| round.begun && !round.ended);
            let fits = round.is_some_and(|round| {
                let fits = round.partition == partition && round.next == base && header.handle() == 7;
                round.next = end;
                fits
            });
            if !fits && !cx.plan.retains() {
                return Err(wrong("pushes are of the subscription that is there", details));
            }
        }
        Ok(())
    }
}
