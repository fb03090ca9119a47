//! One connection to a server: framing, HELLO, correlation, handles and deadlines.
//!
//! Invariants  C1  HELLO is the first request and nothing else is asked before it was answered.
//!             C2  Every tag that was handed in comes back once: in an event, or from `close`.
//!             C3  A handle that was asked for stands in front of every request that uses it.
//! States      greeting -(HELLO answered)-> ready -(GOODBYE)-> draining; any error ends it
//! Ignorant of what the tags mean, of topics' contents and of other connections.

use super::Refused;
use super::output::Output;
use bytes::{Bytes, BytesMut};
use ringmq_protocol::{
    Credit, ErrorCode, Fetch, FetchFields, FramingError, HEADER_SIZE, Header, Hello, ListOffsets, OffsetSpec,
    Op, Open, PROTOCOL_VERSION, Produce, ProduceOutcome, ProduceSlot, RegisterProducer, Request, Response,
    ResponseError, Subscribe, decode_response, limits,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use zerocopy::little_endian::U32;

/// How a connection behaves.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// What the client calls itself.
    pub name: String,
    /// Time for the answer to HELLO.
    pub hello_timeout_us: u64,
    /// Time for any other answer.
    pub request_timeout_us: u64,
    /// Silence after which the server is probed.
    pub ping_after_us: u64,
}

/// What the server said about itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ServerInfo {
    /// The shard that this connection landed on.
    pub shard: u16,
    /// Port of each shard.
    pub shard_ports: Vec<u16>,
    /// Largest frame that is taken.
    pub frame_size_max: usize,
    /// Version of the server, for people.
    pub version: String,
    /// Which data directory it serves.
    pub node: u128,
}

/// A partition of a topic, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The topic.
    pub topic: Arc<str>,
    /// Index of the partition.
    pub partition: u32,
}

/// An answer that is not an error; its own fields are checked.
#[derive(Clone, Debug)]
pub struct Message {
    header: Header,
    fields: Bytes,
    /// What follows the own fields.
    pub frames: Bytes,
}

impl Message {
    /// Number of the operation.
    pub fn op(&self) -> u8 {
        self.header.op
    }

    /// The answer.
    pub fn response(&self) -> Result<Response<'_>, ResponseError> {
        decode_response(&self.header, &self.fields)
    }
}

/// What became of one frame.
pub type FrameOutcome = Result<Stored, Refused>;

/// A frame on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Offset of its first record.
    pub base_offset: u64,
    /// Append time, Unix milliseconds.
    pub timestamp_ms: i64,
    /// It was there before this request.
    pub duplicate: bool,
}

/// What a connection has to say.
#[derive(Debug)]
pub enum Event<T> {
    /// HELLO was answered: requests may follow.
    Ready(ServerInfo),
    /// A request was answered.
    Answer {
        /// The request's.
        tag: T,
        /// The answer.
        result: Result<Message, Refused>,
    },
    /// A PRODUCE was answered.
    Produced {
        /// The request's.
        tag: T,
        /// One for each frame, or one refusal for all.
        result: Result<Vec<FrameOutcome>, Refused>,
    },
    /// Entries of a subscription.
    Push {
        /// The subscription.
        subscription: u32,
        /// Where they stand.
        fields: FetchFields,
        /// The entries.
        entries: Bytes,
    },
    /// A subscription was ended by the server.
    Ended {
        /// The subscription.
        subscription: u32,
        /// Why.
        refused: Refused,
    },
    /// The server asks what became of a transaction.
    Check {
        /// The registration.
        registration: u32,
        /// The question; its frames are the first half's.
        message: Message,
    },
    /// The server drains: ask nothing more and reconnect.
    Goodbye,
}

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionError {
    /// The stream cannot be followed.
    Framing(FramingError),
    /// A response is not what it should be.
    Response(ResponseError),
    /// The server ended the connection with this error.
    Refused(Refused),
    /// An answer to nothing that was asked, or of the wrong shape.
    Unexpected,
    /// No answer in time.
    Silent,
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Framing(error) => write!(f, "{error}; is this the port of a RingMQ server?"),
            Self::Response(error) => error.fmt(f),
            Self::Refused(refused) => refused.fmt(f),
            Self::Unexpected => f.write_str("the server answered something that was not asked; report a bug"),
            Self::Silent => {
                f.write_str("the server did not answer in time; see whether it is overloaded or gone")
            }
        }
    }
}

impl std::error::Error for ConnectionError {}

#[derive(Debug)]
enum Pending<T> {
    Hello,
    Ping,
    Open(u32),
    Call(T),
    Produce { tag: T, handles: Vec<u32> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Ready,
    Draining,
}

/// The state machine. `T` is what a caller wants back with an answer.
#[derive(Debug)]
pub struct Connection<T> {
    config: ConnectionConfig,
    state: State,
    next_correlation: u64,
    /// With the deadline and the operation of each.
    pending: BTreeMap<u64, (Pending<T>, u64, Op)>,
    /// Deadline and correlation of each pending request.
    deadlines: BTreeSet<(u64, u64)>,
    handles: BTreeMap<Target, u32>,
    /// Opened handles that the server refused, and why.
    refused_handles: BTreeMap<u32, Refused>,
    next_handle: u32,
    next_subscription: u32,
    heard_us: u64,
    ping_pending: bool,
    output: Output,
    events: VecDeque<Event<T>>,
    slots: Vec<ProduceSlot>,
}

impl<T> Connection<T> {
    /// A fresh connection; its first output is HELLO.
    pub fn new(config: ConnectionConfig, now_us: u64) -> Self {
        let mut connection = Self {
            state: State::Greeting,
            next_correlation: 1,
            pending: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            handles: BTreeMap::new(),
            refused_handles: BTreeMap::new(),
            next_handle: 1,
            next_subscription: 1,
            heard_us: now_us,
            ping_pending: false,
            output: Output::default(),
            events: VecDeque::new(),
            slots: Vec::new(),
            config,
        };
        let name = connection.config.name.clone();
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION, name: &name };
        connection.ask(now_us, Pending::Hello, 0, &Request::Hello(hello));
        connection
    }

    /// HELLO was answered and no GOODBYE came.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// GOODBYE came.
    pub fn is_draining(&self) -> bool {
        self.state == State::Draining
    }

    /// Requests without an answer.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Bytes that `take_output` would give.
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Moves what is to be sent behind `out`.
    pub fn take_output(&mut self, out: &mut Output) {
        out.append(&mut self.output);
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<Event<T>> {
        self.events.pop_front()
    }

    /// When `tick` is next needed.
    pub fn deadline_us(&self) -> u64 {
        let first = self.deadlines.first().map_or(u64::MAX, |entry| entry.0);
        if self.state == State::Ready && !self.ping_pending {
            first.min(self.heard_us + self.config.ping_after_us)
        } else {
            first
        }
    }

    /// Fails if an answer is overdue; probes a silent server.
    pub fn tick(&mut self, now_us: u64) -> Result<(), ConnectionError> {
        if self.deadlines.first().is_some_and(|entry| entry.0 <= now_us) {
            return Err(ConnectionError::Silent);
        }
        let probe = self.state == State::Ready && !self.ping_pending;
        if probe && now_us >= self.heard_us + self.config.ping_after_us {
            self.ping_pending = true;
            self.ask(now_us, Pending::Ping, 0, &Request::Ping);
        }
        Ok(())
    }

    /// Asks something that concerns no handle.
    pub fn call(&mut self, now_us: u64, tag: T, request: &Request<'_>) {
        self.ask(now_us, Pending::Call(tag), 0, request);
    }

    /// Asks for an offset of a partition.
    pub fn list_offsets(&mut self, now_us: u64, tag: T, target: &Target, what: OffsetSpec) {
        let handle = self.handle(now_us, target);
        self.ask(now_us, Pending::Call(tag), 0, &Request::ListOffsets(ListOffsets { handle, what }));
    }

    /// Asks something about a partition: `request` gets its handle. `extra_us` is time that the server may take.
    pub fn call_at(
        &mut self,
        now_us: u64,
        tag: T,
        target: &Target,
        extra_us: u64,
        request: impl FnOnce(u32, &mut dyn FnMut(&Request<'_>)),
    ) {
        let handle = self.handle(now_us, target); // C3
        self.call_for(now_us, tag, extra_us, |ask| request(handle, ask));
    }

    /// Asks something that concerns no handle, once. `extra_us` is time that the server may take.
    pub fn call_for(
        &mut self,
        now_us: u64,
        tag: T,
        extra_us: u64,
        request: impl FnOnce(&mut dyn FnMut(&Request<'_>)),
    ) {
        let mut tag = Some(tag);
        request(&mut |request| {
            let Some(tag) = tag.take() else { return };
            self.ask(now_us, Pending::Call(tag), extra_us, request);
        });
        assert!(tag.is_none(), "nothing was asked"); // C2
    }

    /// Registers for the checks of a producer group and answers the number of the registration.
    pub fn register_producer(&mut self, now_us: u64, tag: T, group: &str) -> u32 {
        let registration = self.next_subscription;
        self.next_subscription += 1;
        let register = RegisterProducer { registration, group, end: false };
        self.ask(now_us, Pending::Call(tag), 0, &Request::RegisterProducer(register));
        registration
    }

    /// Ends a registration.
    pub fn end_registration(&mut self, now_us: u64, tag: T, registration: u32, group: &str) {
        let register = RegisterProducer { registration, group, end: true };
        self.ask(now_us, Pending::Call(tag), 0, &Request::RegisterProducer(register));
    }

    /// Reads frames of a partition.
    pub fn fetch(
        &mut self,
        now_us: u64,
        tag: T,
        target: &Target,
        offset: u64,
        max_bytes: u32,
        max_wait_ms: u32,
    ) {
        let handle = self.handle(now_us, target);
        let fetch = Fetch { handle, offset, max_bytes, max_wait_ms, group: 0 };
        self.ask(now_us, Pending::Call(tag), u64::from(max_wait_ms) * 1_000, &Request::Fetch(fetch));
    }

    /// The number that the next subscription will have.
    pub fn next_subscription(&self) -> u32 {
        self.next_subscription
    }

    /// Has frames pushed and answers the number of the subscription.
    pub fn subscribe(&mut self, now_us: u64, tag: T, target: &Target, offset: u64, credit: u64) -> u32 {
        self.subscribe_for(now_us, tag, target, offset, credit, 0)
    }

    /// As `subscribe`, for a consumer group whose filter counts.
    pub fn subscribe_for(
        &mut self,
        now_us: u64,
        tag: T,
        target: &Target,
        offset: u64,
        credit: u64,
        group: u32,
    ) -> u32 {
        let handle = self.handle(now_us, target);
        let subscription = self.next_subscription;
        self.next_subscription += 1;
        let subscribe = Subscribe { handle, subscription, offset, credit, group };
        self.ask(now_us, Pending::Call(tag), 0, &Request::Subscribe(subscribe));
        subscription
    }

    /// Adds to the credit of a subscription.
    pub fn credit(&mut self, subscription: u32, bytes: u64) {
        let request = Request::Credit(Credit { subscription, bytes });
        self.output.push_with(|out| request.encode(0, out));
    }

    /// Ends a subscription.
    pub fn unsubscribe(&mut self, now_us: u64, tag: T, subscription: u32) {
        self.ask(now_us, Pending::Call(tag), 0, &Request::Unsubscribe(subscription));
    }

    /// Stores frames, in one request.
    pub fn produce<'a>(&mut self, now_us: u64, tag: T, frames: impl Iterator<Item = (&'a Target, Bytes)>) {
        let mut slots = std::mem::take(&mut self.slots);
        let mut bodies = Vec::new();
        let mut handles = Vec::new();
        slots.clear();
        for (target, frame) in frames {
            let handle = self.handle(now_us, target); // C3
            handles.push(handle);
            slots.push(ProduceSlot { handle: U32::new(handle), len: U32::new(frame.len() as u32) });
            bodies.push(frame);
        }
        assert!(slots.len() <= limits::PRODUCE_FRAMES_MAX, "{} frames in one request", slots.len());
        self.ask(now_us, Pending::Produce { tag, handles }, 0, &Request::Produce(Produce { slots: &slots }));
        bodies.into_iter().for_each(|frame| self.output.push(frame));
        self.slots = slots;
    }

    fn handle(&mut self, now_us: u64, target: &Target) -> u32 {
        if let Some(handle) = self.handles.get(target) {
            return *handle;
        }
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(target.clone(), handle);
        let open = Open { handle, topic: &target.topic, partition: target.partition };
        self.ask(now_us, Pending::Open(handle), 0, &Request::Open(open));
        handle
    }

    fn ask(&mut self, now_us: u64, pending: Pending<T>, extra_us: u64, request: &Request<'_>) {
        let greets = matches!(pending, Pending::Hello);
        assert_eq!(self.state == State::Greeting, greets, "{:?} while {:?}", request.op(), self.state); // C1
        let correlation = self.next_correlation;
        self.next_correlation += 1;
        let timeout_us = if greets { self.config.hello_timeout_us } else { self.config.request_timeout_us };
        let deadline = now_us + timeout_us + extra_us;
        self.pending.insert(correlation, (pending, deadline, request.op()));
        self.deadlines.insert((deadline, correlation));
        self.output.push_with(|out| request.encode(correlation, out));
    }

    /// Takes whole messages from the front of `input` and leaves the rest, with room reserved for what is missing.
    pub fn receive(&mut self, now_us: u64, input: &mut BytesMut) -> Result<(), ConnectionError> {
        self.heard_us = now_us;
        while input.len() >= HEADER_SIZE {
            let header =
                *Header::parse(input, limits::RESPONSE_SIZE_MAX).map_err(ConnectionError::Framing)?;
            let len = header.message_len();
            if input.len() < len {
                input.reserve(len - input.len());
                break;
            }
            let mut fields = input.split_to(len).freeze().split_off(HEADER_SIZE);
            let frames = fields.split_off(header.fields_len());
            self.message(Message { header, fields, frames })?;
        }
        Ok(())
    }

    fn message(&mut self, message: Message) -> Result<(), ConnectionError> {
        let response = message.response().map_err(ConnectionError::Response)?;
        let correlation = message.header.correlation();
        match response {
            Response::Push(fields) => {
                let (subscription, entries) = (message.header.handle(), message.frames);
                self.events.push_back(Event::Push { subscription, fields, entries });
                return Ok(());
            }
            Response::Check(_) => {
                let registration = message.header.handle();
                self.events.push_back(Event::Check { registration, message });
                return Ok(());
            }
            Response::Goodbye(_) => {
                if self.state == State::Ready {
                    self.state = State::Draining;
                    self.events.push_back(Event::Goodbye);
                }
                return Ok(());
            }
            Response::Error(body) if correlation == 0 => {
                let refused = Refused::from_body(&body);
                if message.header.op() != Some(Op::Push) {
                    return Err(ConnectionError::Refused(refused));
                }
                self.events.push_back(Event::Ended { subscription: message.header.handle(), refused });
                return Ok(());
            }
            _ => {}
        }
        let asked = self.pending.get(&correlation).map(|entry| entry.2);
        if asked.is_none_or(|asked| !message.header.is_error() && message.header.op() != Some(asked)) {
            return Err(ConnectionError::Unexpected);
        }
        let (pending, deadline, _) = self.pending.remove(&correlation).ok_or(ConnectionError::Unexpected)?;
        self.deadlines.remove(&(deadline, correlation));
        self.answer(pending, &response, &message)
    }

    fn answer(
        &mut self,
        pending: Pending<T>,
        response: &Response<'_>,
        message: &Message,
    ) -> Result<(), ConnectionError> {
        match (pending, response) {
            (Pending::Hello, Response::Hello(hello)) if hello.version == PROTOCOL_VERSION => {
                self.state = State::Ready;
                self.events.push_back(Event::Ready(ServerInfo {
                    shard: hello.shard,
                    shard_ports: hello.shard_ports.iter().map(|port| port.get()).collect(),
                    frame_size_max: hello.frame_size_max as usize,
                    version: hello.server.to_owned(),
                    node: hello.node,
                }));
            }
            (Pending::Hello, Response::Error(body)) => {
                return Err(ConnectionError::Refused(Refused::from_body(body)));
            }
            (Pending::Ping, Response::Pong | Response::Error(_)) => self.ping_pending = false,
            (Pending::Open(_), Response::Opened(_)) => {}
            (Pending::Open(handle), Response::Error(body)) => {
                // The next use asks again under a new number.
                self.handles.retain(|_, known| *known != handle);
                self.refused_handles.insert(handle, Refused::from_body(body));
            }
            (Pending::Call(tag), Response::Error(body)) => {
                let refused = self.explain(message.header.handle(), Refused::from_body(body));
                self.events.push_back(Event::Answer { tag, result: Err(refused) });
            }
            (Pending::Call(tag), _) => {
                self.events.push_back(Event::Answer { tag, result: Ok(message.clone()) });
            }
            (Pending::Produce { tag, .. }, Response::Error(body)) => {
                self.events.push_back(Event::Produced { tag, result: Err(Refused::from_body(body)) });
            }
            (Pending::Produce { tag, handles }, Response::Produced(outcomes))
                if outcomes.len() == handles.len() =>
            {
                let outcomes = handles
                    .iter()
                    .zip(*outcomes)
                    .map(|(handle, outcome)| self.outcome(*handle, outcome))
                    .collect();
                self.events.push_back(Event::Produced { tag, result: Ok(outcomes) });
            }
            (pending, _) => {
                // C2: `close` gives the tag back.
                let op = message.header.op().unwrap_or(Op::Ping);
                self.pending.insert(message.header.correlation(), (pending, 0, op));
                return Err(ConnectionError::Unexpected);
            }
        }
        Ok(())
    }

    fn outcome(&self, handle: u32, outcome: &ProduceOutcome) -> FrameOutcome {
        if outcome.is_stored() {
            return Ok(Stored {
                base_offset: outcome.base_offset.get(),
                timestamp_ms: outcome.timestamp.get(),
                duplicate: outcome.is_duplicate(),
            });
        }
        let (number, retry_after_ms) = (outcome.code.get(), outcome.retry_after_ms.get());
        Err(self.explain(handle, Refused { number, retry_after_ms, message: Arc::from("") }))
    }

    /// Says why the handle is not known, when its OPEN was refused.
    fn explain(&self, handle: u32, refused: Refused) -> Refused {
        match self.refused_handles.get(&handle) {
            Some(why) if refused.code() == Some(ErrorCode::UnknownHandle) => why.clone(),
            _ => refused,
        }
    }

    /// Ends the connection: the tags of all that was not answered, in the order in which it was asked, and whether
    /// each may have had an effect.
    pub fn close(self) -> Vec<T> {
        let tag = |(pending, _, _)| match pending {
            Pending::Call(tag) | Pending::Produce { tag, .. } => Some(tag),
            Pending::Hello | Pending::Ping | Pending::Open(_) => None,
        };
        let events = self.events.into_iter().filter_map(|event| match event {
            Event::Answer { tag, .. } | Event::Produced { tag, .. } => Some(tag),
            _ => None,
        });
        events.chain(self.pending.into_values().filter_map(tag)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_protocol::{Bounds, ErrorBody, Goodbye, HelloAnswer, Opened, decode_request};
    use zerocopy::little_endian::U16;

    fn config() -> ConnectionConfig {
        ConnectionConfig {
            name: "test".into(),
            hello_timeout_us: 1_000,
            request_timeout_us: 1_000,
            ping_after_us: 10_000,
        }
    }

    /// What the client sent: operation, correlation, handle.
    fn sent(connection: &mut Connection<u32>) -> Vec<(String, u64, u32)> {
        use bytes::Buf;
        let mut out = Output::default();
        connection.take_output(&mut out);
        let bytes = out.copy_to_bytes(out.remaining());
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let header = Header::parse(&bytes[at..], limits::REQUEST_SIZE_MAX).unwrap();
            let fields = &bytes[at + HEADER_SIZE..][..header.fields_len()];
            let request = decode_request(header, fields).unwrap();
            found.push((format!("{:?}", request.op()), header.correlation(), header.handle()));
            at += header.message_len();
        }
        found
    }

    fn hello() -> Vec<u8> {
        let mut out = Vec::new();
        Response::Hello(HelloAnswer {
            version: 1,
            shard: 1,
            shard_ports: &[U16::new(1), U16::new(2)],
            frame_size_max: 4096,
            request_size_max: 8192,
            server: "test",
            node: 7,
        })
        .encode(1, 0, &mut out);
        out
    }

    fn ready() -> Connection<u32> {
        let mut connection = Connection::new(config(), 0);
        assert_eq!(sent(&mut connection), [("Hello".into(), 1, 0)]);
        // One byte at a time: nothing happens before a message is whole.
        let mut input = BytesMut::new();
        for byte in hello() {
            assert!(!connection.is_ready());
            input.extend_from_slice(&[byte]);
            connection.receive(0, &mut input).unwrap();
        }
        assert!(matches!(connection.next_event(), Some(Event::Ready(info)) if info.shard_ports == [1, 2]));
        connection
    }

    fn receive(connection: &mut Connection<u32>, bytes: &[u8]) -> Result<(), ConnectionError> {
        connection.receive(0, &mut BytesMut::from(bytes))
    }

    fn target(partition: u32) -> Target {
        Target { topic: Arc::from("t"), partition }
    }

    #[test]
    fn a_partition_is_opened_once_and_in_front_of_its_first_use() {
        let mut connection = ready();
        let frame = Bytes::from(ringmq_format::frame::encode(ringmq_format::frame::FrameKind::Data, 0, b""));
        connection.produce(0, 10, [(&target(3), frame.clone()), (&target(4), frame.clone())].into_iter());
        connection.produce(0, 11, [(&target(3), frame)].into_iter());
        connection.list_offsets(0, 12, &target(4), OffsetSpec::Latest);
        let ops: Vec<_> = sent(&mut connection).into_iter().map(|entry| (entry.0, entry.2)).collect();
        let expected = [("Open", 1), ("Open", 2), ("Produce", 0), ("Produce", 0), ("ListOffsets", 2)];
        assert_eq!(ops, expected.map(|(op, handle)| (op.to_owned(), handle)));
        assert_eq!(connection.close(), [10, 11, 12]);
    }

    #[test]
    fn a_refused_open_explains_the_unknown_handle_and_is_tried_anew() {
        let mut connection = ready();
        let frame = Bytes::from(ringmq_format::frame::encode(ringmq_format::frame::FrameKind::Data, 0, b""));
        connection.produce(0, 10, [(&target(3), frame.clone())].into_iter());
        let mut out = Vec::new();
        ErrorBody { code: ErrorCode::UnknownTopic as u16, retry_after_ms: 0, message: "t" }
            .encode(8, 2, 1, &mut out);
        Response::Produced(&[ProduceOutcome::failed(ErrorCode::UnknownHandle, 0)]).encode(3, 0, &mut out);
        receive(&mut connection, &out).unwrap();
        let Some(Event::Produced { tag: 10, result: Ok(outcomes) }) = connection.next_event() else {
            panic!()
        };
        assert_eq!(outcomes[0].as_ref().unwrap_err().code(), Some(ErrorCode::UnknownTopic));
        sent(&mut connection);
        connection.produce(0, 11, [(&target(3), frame)].into_iter());
        assert_eq!(sent(&mut connection)[0], ("Open".into(), 4, 2));
    }

    #[test]
    fn answers_out_of_order_find_their_tags() {
        let mut connection = ready();
        connection.call(0, 20, &Request::Ping);
        connection.call(0, 21, &Request::DeleteTopic("x"));
        let mut out = Vec::new();
        Response::Deleted.encode(3, 0, &mut out);
        Response::Pong.encode(2, 0, &mut out);
        receive(&mut connection, &out).unwrap();
        for expected in [21, 20] {
            let Some(Event::Answer { tag, result: Ok(_) }) = connection.next_event() else { panic!() };
            assert_eq!(tag, expected);
        }
        assert_eq!(connection.pending(), 0);
    }

    #[test]
    fn silence_is_probed_and_then_ends_the_connection() {
        let mut connection = ready();
        assert_eq!(connection.deadline_us(), 10_000);
        connection.tick(10_000).unwrap();
        assert_eq!(sent(&mut connection), [("Ping".into(), 2, 0)]);
        assert_eq!(connection.deadline_us(), 11_000);
        assert_eq!(connection.tick(11_000), Err(ConnectionError::Silent));
    }

    #[test]
    fn what_cannot_be_followed_ends_the_connection() {
        let mut connection = ready();
        let http = receive(&mut connection, b"HTTP/1.1 400 Bad Request\r\nServer: x");
        assert_eq!(http, Err(ConnectionError::Framing(FramingError::HeaderCrc)));

        let mut connection = ready();
        let mut out = Vec::new();
        Response::Pong.encode(9, 0, &mut out);
        assert_eq!(receive(&mut connection, &out), Err(ConnectionError::Unexpected));

        let mut connection = ready();
        connection.call(0, 30, &Request::Ping);
        let mut out = Vec::new();
        ErrorBody { code: ErrorCode::HeaderCrc as u16, retry_after_ms: 0, message: "" }
            .encode(0, 0, 0, &mut out);
        assert!(matches!(receive(&mut connection, &out), Err(ConnectionError::Refused(_))));
        assert_eq!(connection.close(), [30]);
    }

    #[test]
    fn goodbye_and_the_end_of_a_subscription_are_told() {
        let mut connection = ready();
        let subscription = connection.subscribe(0, 40, &target(0), 5, 100);
        let mut out = Vec::new();
        let bounds = Bounds { log_start: 0, visible_end: 9 };
        Response::Opened(Opened { partition: ringmq_format::PartitionId(1), bounds }).encode(2, 1, &mut out);
        Response::Subscribed(bounds).encode(3, 1, &mut out);
        ErrorBody { code: ErrorCode::Damaged as u16, retry_after_ms: 0, message: "5 to 7" }.encode(
            Op::Push as u8,
            0,
            subscription,
            &mut out,
        );
        Response::Goodbye(Goodbye { grace_ms: 100 }).encode(0, 0, &mut out);
        receive(&mut connection, &out).unwrap();
        assert!(matches!(connection.next_event(), Some(Event::Answer { tag: 40, .. })));
        assert!(matches!(connection.next_event(), Some(Event::Ended { refused, .. })
            if refused.code() == Some(ErrorCode::Damaged)));
        assert!(matches!(connection.next_event(), Some(Event::Goodbye)));
        assert!(connection.is_draining());
    }
}
