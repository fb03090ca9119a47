//! One socket and the task that owns it: connects when there is something to do, and again after a loss.
//!
//! Invariants  L1  Every command is answered once: by the server, or as lost (it may have had an effect), or as not
//!                 sent (it had none).
//!             L2  Commands go out in the order in which they came.
//! States      idle -(command)-> connecting -> serving -(GOODBYE)-> draining -> idle; any error leads to idle
//! Ignorant of what producers and consumers make of the answers. A loss is not retried here: whoever gave the
//! command decides.

use crate::clock::{Alarm, Clock};
use crate::config::ClientConfig;
use crate::core::Refused;
use crate::core::connection::{
    Connection, ConnectionConfig, ConnectionError, Event, FrameOutcome, Message, ServerInfo, Target,
};
use crate::core::output::Output;
use crate::error::ClientError;
use crate::limits;
use bytes::{Bytes, BytesMut};
use ringmq_protocol::{
    Bounds, CreateTopic, DescribeTopic, FetchFields, ListTopics, Metadata, NamesBuf, OffsetSpec, Request,
    Response,
};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// A request that is answered by one message.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Ping,
    Metadata { names: Vec<String>, auto_create: bool },
    CreateTopic { name: String, partitions: u32, if_not_exists: bool },
    DeleteTopic(String),
    DescribeTopic { name: String, first_partition: u32 },
    ListTopics { after: String },
    ListOffsets { target: Target, what: OffsetSpec },
    Fetch { target: Target, offset: u64, max_bytes: u32, max_wait_ms: u32 },
    Any(AnyCall),
}

/// Gives a request, built from what it owns, to a caller; the first argument is the handle, if there is a target.
pub(crate) type Build = dyn Fn(u32, &mut dyn FnMut(&Request<'_>)) + Send + Sync;

/// A request of any kind.
#[derive(Clone)]
pub(crate) struct AnyCall {
    /// The partition whose handle the request needs.
    pub(crate) target: Option<Target>,
    /// Time that the server may take before it answers.
    pub(crate) wait_ms: u32,
    pub(crate) build: Arc<Build>,
}

impl std::fmt::Debug for AnyCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnyCall").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Call {
    /// A request that concerns no partition's handle.
    pub(crate) fn any(build: impl Fn(&mut dyn FnMut(&Request<'_>)) + Send + Sync + 'static) -> Self {
        Self::Any(AnyCall { target: None, wait_ms: 0, build: Arc::new(move |_, ask| build(ask)) })
    }

    /// A request that needs the handle of a partition.
    pub(crate) fn at(
        target: Target,
        build: impl Fn(u32, &mut dyn FnMut(&Request<'_>)) + Send + Sync + 'static,
    ) -> Self {
        Self::Any(AnyCall { target: Some(target), wait_ms: 0, build: Arc::new(build) })
    }

    /// The server may take this long before it answers.
    pub(crate) fn waiting(mut self, wait_ms: u32) -> Self {
        if let Self::Any(call) = &mut self {
            call.wait_ms = wait_ms;
        }
        self
    }
}

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub(crate) enum CallError {
    Refused(Refused),
    Lost(ClientError),
    NotSent(ClientError),
}

/// What became of a frame.
#[derive(Debug)]
pub(crate) enum ProduceEvent {
    Outcome(u64, FrameOutcome),
    Lost(u64),
    NotSent(u64),
}

/// What a partition's reader hears.
#[derive(Debug)]
pub(crate) enum ReadEvent {
    Resolved(u64),
    Subscribed(Bounds),
    Pushed(FetchFields, Bytes),
    Refused(Refused),
    Lost,
}

/// Who reads: events go to `sink` with partition and attempt.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) consumer: u64,
    pub(crate) partition: u32,
    pub(crate) attempt: u64,
    pub(crate) sink: mpsc::UnboundedSender<(u32, u64, ReadEvent)>,
}

impl Reader {
    fn tell(&self, event: ReadEvent) -> bool {
        self.sink.send((self.partition, self.attempt, event)).is_ok()
    }
}

/// What one who answers checks hears.
#[derive(Debug)]
pub(crate) enum CheckEvent {
    Registered,
    Check(Message),
    Refused(Refused),
    Lost,
}

#[derive(Debug)]
pub(crate) enum Command {
    Call {
        call: Call,
        reply: oneshot::Sender<Result<Message, CallError>>,
    },
    Produce {
        target: Target,
        batch: u64,
        frame: Bytes,
        sink: mpsc::UnboundedSender<ProduceEvent>,
    },
    Resolve {
        target: Target,
        what: OffsetSpec,
        reader: Reader,
    },
    /// `group` is 0 for nobody in particular.
    Subscribe {
        target: Target,
        offset: u64,
        credit: u64,
        group: u32,
        reader: Reader,
    },
    /// Stays until the sink is dropped or the connection ends.
    Register {
        group: Arc<str>,
        sink: mpsc::UnboundedSender<CheckEvent>,
    },
    /// The sink of this group's registration was dropped.
    EndRegistrations,
    Credit {
        consumer: u64,
        attempt: u64,
        bytes: u64,
    },
    Unsubscribe {
        consumer: u64,
        attempt: u64,
    },
    CloseConsumer(u64),
}

/// What a connection gives back with an answer.
#[derive(Debug)]
enum Tag {
    Call(oneshot::Sender<Result<Message, CallError>>),
    Produce(Vec<(u64, mpsc::UnboundedSender<ProduceEvent>)>),
    Resolve(Reader),
    Subscribe(u32, Reader),
    Register(mpsc::UnboundedSender<CheckEvent>),
    Unsubscribe,
}

/// What all links of a client know.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: ClientConfig,
    pub(crate) clock: Clock,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Where tasks live, whoever asks for one.
    pub(crate) runtime: Handle,
    info: Mutex<Arc<ServerInfo>>,
    /// Counts the connections that have ended: with each of them the server may have begun a new life.
    losses: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let address = || ClientError::Address(Arc::from(config.server.as_str()));
        let (host, port) = config.server.rsplit_once(':').ok_or_else(address)?;
        let port = port.parse().map_err(|_| address())?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(address());
        }
        Ok(Self {
            clock: Clock::new(),
            runtime: Handle::current(),
            host,
            port,
            info: Mutex::default(),
            losses: watch::Sender::default(),
            config,
        })
    }

    /// Changes whenever a connection has ended.
    pub(crate) fn losses(&self) -> watch::Receiver<u64> {
        self.losses.subscribe()
    }

    pub(crate) fn info(&self) -> Arc<ServerInfo> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_info(&self, info: ServerInfo) {
        *self.info.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(info);
    }

    /// Port of a shard; the base port if there is none.
    fn shard_port(&self, shard: Option<u16>) -> u16 {
        let info = self.info();
        let port = shard.and_then(|shard| info.shard_ports.get(usize::from(shard)).copied()).unwrap_or(0);
        if port == 0 { self.port } else { port }
    }
}

/// A way to give commands; the task ends when the last one is dropped.
pub(crate) type LinkSender = mpsc::UnboundedSender<Command>;

/// Starts a link to a shard, or to the base port.
pub(crate) fn spawn(shared: Arc<Shared>, shard: Option<u16>) -> LinkSender {
    let (sender, commands) = mpsc::unbounded_channel();
    let runtime = shared.runtime.clone();
    let link = Link { shared, shard, commands, waiting: VecDeque::new() };
    runtime.spawn(link.run());
    sender
}

struct Link {
    shared: Arc<Shared>,
    shard: Option<u16>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Commands that were taken and not yet given to a connection.
    waiting: VecDeque<Command>,
}

impl Link {
    async fn run(mut self) {
        while let Some(command) = self.commands.recv().await {
            self.waiting.push_back(command);
            let error = match self.dial().await {
                Ok(stream) => self.serve(stream).await,
                Err(error) => Some(error),
            };
            let Some(error) = error else { return };
            while let Ok(command) = self.commands.try_recv() {
                self.waiting.push_back(command);
            }
            self.waiting.drain(..).for_each(|command| not_sent(command, &error));
        }
    }

    /// Dials the shard's port, then the base port: ports may have changed with a restart, or only the base port may be
    /// reachable. Any connection works for any partition.
    async fn dial(&self) -> Result<TcpStream, ClientError> {
        let port = self.shared.shard_port(self.shard);
        match self.dial_port(port).await {
            Err(_) if port != self.shared.port => self.dial_port(self.shared.port).await,
            result => result,
        }
    }

    async fn dial_port(&self, port: u16) -> Result<TcpStream, ClientError> {
        let host = self.shared.host.as_str();
        let connect = timeout(self.shared.config.connect_timeout, TcpStream::connect((host, port)));
        let stream = match connect.await {
            Ok(Ok(stream)) => stream.set_nodelay(true).map(|()| stream),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
        };
        stream.map_err(|source| ClientError::Connect {
            address: Arc::from(format!("{host}:{port}")),
            source: Arc::new(source),
        })
    }

    /// Works until the connection ends, and says why; `None` if nobody needs it any more.
    async fn serve(&mut self, mut stream: TcpStream) -> Option<ClientError> {
        let config = &self.shared.config;
        let clock = self.shared.clock;
        let connection = Connection::new(
            ConnectionConfig {
                name: config.name.clone(),
                hello_timeout_us: config.connect_timeout.as_micros() as u64,
                request_timeout_us: config.request_timeout.as_micros() as u64,
                ping_after_us: limits::PING_AFTER_US,
            },
            clock.now_us(),
        );
        let mut session = Session {
            shared: self.shared.clone(),
            connection,
            subscriptions: BTreeMap::new(),
            numbers: BTreeMap::new(),
            registrations: BTreeMap::new(),
            drain_until_us: u64::MAX,
        };
        let mut alarm = Alarm::new(clock);
        let mut input = BytesMut::with_capacity(limits::READ_SIZE);
        let mut out = Output::default();
        let mut taken = Vec::new();
        let (mut reader, mut writer) = stream.split();
        let error = loop {
            session.connection.take_output(&mut out);
            let takes = session.connection.is_ready() && out.len() < limits::OUTPUT_BYTES_MAX;
            if input.capacity() - input.len() < limits::READ_SIZE / 8 {
                input.reserve(limits::READ_SIZE);
            }
            tokio::select! {
                read = reader.read_buf(&mut input) => match read {
                    Ok(0) => break ClientError::Lost(None),
                    Ok(_) => {
                        if let Err(error) = session.receive(&mut input) {
                            break ClientError::Connection(error);
                        }
                    }
                    Err(error) => break ClientError::Lost(Some(Arc::new(error))),
                },
                wrote = writer.write_buf(&mut out), if !out.is_empty() => match wrote {
                    Ok(0) => break ClientError::Lost(None),
                    Ok(_) => {}
                    Err(error) => break ClientError::Lost(Some(Arc::new(error))),
                },
                count = self.commands.recv_many(&mut taken, limits::COMMANDS_AT_ONCE), if takes => {
                    if count == 0 {
                        session.close(&ClientError::Closed);
                        return None;
                    }
                    self.waiting.extend(taken.drain(..));
                }
                () = alarm.wait(session.deadline_us()) => {
                    if let Err(error) = session.connection.tick(clock.now_us()) {
                        break ClientError::Connection(error);
                    }
                }
            }
            if session.connection.is_ready() {
                session.take(&mut self.waiting);
            }
            if session.is_drained() {
                break ClientError::Lost(None);
            }
        };
        // Before anybody hears of it from an answer.
        self.shared.losses.send_modify(|losses| *losses += 1);
        session.close(&error);
        Some(error)
    }
}

/// A connection with what its tags and subscriptions mean.
struct Session {
    shared: Arc<Shared>,
    connection: Connection<Tag>,
    subscriptions: BTreeMap<u32, Reader>,
    /// Number of the subscription of each consumer's attempt.
    numbers: BTreeMap<(u64, u64), u32>,
    /// Who answers checks, and of which producer group.
    registrations: BTreeMap<u32, (Arc<str>, mpsc::UnboundedSender<CheckEvent>)>,
    drain_until_us: u64,
}

impl Session {
    fn deadline_us(&self) -> u64 {
        self.connection.deadline_us().min(self.drain_until_us)
    }

    fn is_drained(&self) -> bool {
        self.connection.is_draining()
            && (self.connection.pending() == 0 || self.shared.clock.now_us() >= self.drain_until_us)
    }

    /// Gives commands to the connection, in order (L2).
    fn take(&mut self, waiting: &mut VecDeque<Command>) {
        let now_us = self.shared.clock.now_us();
        while let Some(command) = waiting.pop_front() {
            match command {
                Command::Call { call, reply } => self.call(now_us, &call, reply),
                Command::Produce { .. } => {
                    waiting.push_front(command);
                    self.produce(now_us, waiting);
                }
                Command::Resolve { target, what, reader } => {
                    self.connection.list_offsets(now_us, Tag::Resolve(reader), &target, what);
                }
                Command::Register { group, sink } => {
                    let tag = Tag::Register(sink.clone());
                    let number = self.connection.register_producer(now_us, tag, &group);
                    self.registrations.insert(number, (group, sink));
                }
                Command::EndRegistrations => self.end_registrations(now_us),
                Command::Subscribe { target, offset, credit, group, reader } => {
                    let key = (reader.consumer, reader.attempt);
                    let number = self.connection.next_subscription();
                    self.numbers.insert(key, number);
                    self.subscriptions.insert(number, reader.clone());
                    self.connection.subscribe_for(
                        now_us,
                        Tag::Subscribe(number, reader),
                        &target,
                        offset,
                        credit,
                        group,
                    );
                }
                Command::Credit { consumer, attempt, bytes } => {
                    if let Some(number) = self.numbers.get(&(consumer, attempt)) {
                        self.connection.credit(*number, bytes);
                    }
                }
                Command::Unsubscribe { consumer, attempt } => {
                    if let Some(number) = self.numbers.get(&(consumer, attempt)) {
                        self.unsubscribe(now_us, *number);
                    }
                }
                Command::CloseConsumer(consumer) => {
                    let of = self.numbers.range((consumer, 0)..=(consumer, u64::MAX));
                    let numbers: Vec<u32> = of.map(|entry| *entry.1).collect();
                    numbers.into_iter().for_each(|number| self.unsubscribe(now_us, number));
                }
            }
        }
    }

    fn call(&mut self, now_us: u64, call: &Call, reply: oneshot::Sender<Result<Message, CallError>>) {
        let tag = Tag::Call(reply);
        let connection = &mut self.connection;
        match call {
            Call::Ping => connection.call(now_us, tag, &Request::Ping),
            Call::Metadata { names, auto_create } => {
                let names: NamesBuf = names.iter().map(String::as_str).collect();
                let metadata = Metadata { names: names.names(), auto_create: *auto_create };
                connection.call(now_us, tag, &Request::Metadata(metadata));
            }
            Call::CreateTopic { name, partitions, if_not_exists } => {
                let (partitions, if_not_exists) = (*partitions, *if_not_exists);
                let create = CreateTopic { name, partitions, if_not_exists };
                connection.call(now_us, tag, &Request::CreateTopic(create));
            }
            Call::DeleteTopic(name) => connection.call(now_us, tag, &Request::DeleteTopic(name)),
            Call::DescribeTopic { name, first_partition } => {
                let describe = DescribeTopic { name, first_partition: *first_partition, limit: 0 };
                connection.call(now_us, tag, &Request::DescribeTopic(describe));
            }
            Call::ListTopics { after } => {
                connection.call(now_us, tag, &Request::ListTopics(ListTopics { after, limit: 0 }));
            }
            Call::ListOffsets { target, what } => connection.list_offsets(now_us, tag, target, *what),
            Call::Fetch { target, offset, max_bytes, max_wait_ms } => {
                connection.fetch(now_us, tag, target, *offset, *max_bytes, *max_wait_ms);
            }
            Call::Any(AnyCall { target, wait_ms, build }) => {
                let extra_us = u64::from(*wait_ms) * 1_000;
                match target {
                    Some(target) => {
                        connection.call_at(now_us, tag, target, extra_us, |handle, ask| build(handle, ask));
                    }
                    None => connection.call_for(now_us, tag, extra_us, |ask| build(0, ask)),
                }
            }
        }
    }

    /// Puts the frames at the front of `waiting` into one request, as many as belong into one.
    fn produce(&mut self, now_us: u64, waiting: &mut VecDeque<Command>) {
        let mut frames: Vec<(Target, Bytes)> = Vec::new();
        let mut tags = Vec::new();
        let mut bytes = 0;
        while bytes < limits::REQUEST_BYTES_TARGET && frames.len() < limits::REQUEST_FRAMES_MAX {
            match waiting.pop_front() {
                Some(Command::Produce { target, batch, frame, sink }) => {
                    bytes += frame.len();
                    frames.push((target, frame));
                    tags.push((batch, sink));
                }
                Some(other) => {
                    waiting.push_front(other);
                    break;
                }
                None => break,
            }
        }
        let frames = frames.iter().map(|frame| (&frame.0, frame.1.clone()));
        self.connection.produce(now_us, Tag::Produce(tags), frames);
    }

    /// Ends the registrations that nobody listens to any more.
    fn end_registrations(&mut self, now_us: u64) {
        let over = self.registrations.extract_if(.., |_, registered| registered.1.is_closed());
        for (number, (group, _)) in over.collect::<Vec<_>>() {
            if self.connection.is_ready() {
                self.connection.end_registration(now_us, Tag::Unsubscribe, number, &group);
            }
        }
    }

    fn unsubscribe(&mut self, now_us: u64, number: u32) {
        self.forget(number);
        if self.connection.is_ready() {
            self.connection.unsubscribe(now_us, Tag::Unsubscribe, number);
        }
    }

    fn forget(&mut self, number: u32) -> Option<Reader> {
        let reader = self.subscriptions.remove(&number)?;
        self.numbers.remove(&(reader.consumer, reader.attempt));
        Some(reader)
    }

    fn receive(&mut self, input: &mut BytesMut) -> Result<(), ConnectionError> {
        let now_us = self.shared.clock.now_us();
        let result = self.connection.receive(now_us, input);
        while let Some(event) = self.connection.next_event() {
            self.event(now_us, event);
        }
        result
    }

    fn event(&mut self, now_us: u64, event: Event<Tag>) {
        match event {
            Event::Ready(info) => self.shared.set_info(info),
            Event::Answer { tag, result } => self.answer(tag, result),
            Event::Produced { tag: Tag::Produce(tags), result: Ok(outcomes) } => {
                for ((batch, sink), outcome) in tags.into_iter().zip(outcomes) {
                    let _ = sink.send(ProduceEvent::Outcome(batch, outcome));
                }
            }
            Event::Produced { tag: Tag::Produce(tags), result: Err(refused) } => {
                for (batch, sink) in tags {
                    let _ = sink.send(ProduceEvent::Outcome(batch, Err(refused.clone())));
                }
            }
            Event::Produced { .. } => {}
            Event::Push { subscription, fields, entries } => {
                let heard = self
                    .subscriptions
                    .get(&subscription)
                    .map(|reader| reader.tell(ReadEvent::Pushed(fields, entries)));
                if heard == Some(false) {
                    self.unsubscribe(now_us, subscription);
                }
            }
            Event::Ended { subscription, refused } => {
                if let Some(reader) = self.forget(subscription) {
                    reader.tell(ReadEvent::Refused(refused));
                }
            }
            Event::Check { registration, message } => {
                // One that nobody hears is asked again, of somebody else.
                if let Some((_, sink)) = self.registrations.get(&registration) {
                    let _ = sink.send(CheckEvent::Check(message));
                }
            }
            Event::Goodbye => self.drain_until_us = now_us + limits::DRAIN_MAX_US,
        }
    }

    fn answer(&mut self, tag: Tag, result: Result<Message, Refused>) {
        match (tag, result) {
            (Tag::Call(reply), result) => drop(reply.send(result.map_err(CallError::Refused))),
            (Tag::Subscribe(number, reader), Ok(message)) => match message.response() {
                Ok(Response::Subscribed(bounds)) => {
                    reader.tell(ReadEvent::Subscribed(bounds));
                }
                _ => drop(self.forget(number)),
            },
            (Tag::Subscribe(number, reader), Err(refused)) => {
                self.forget(number);
                reader.tell(ReadEvent::Refused(refused));
            }
            (Tag::Resolve(reader), Ok(message)) => {
                if let Ok(Response::ListedOffset(listed)) = message.response() {
                    reader.tell(ReadEvent::Resolved(listed.offset));
                }
            }
            (Tag::Resolve(reader), Err(refused)) => {
                reader.tell(ReadEvent::Refused(refused));
            }
            (Tag::Register(sink), result) => {
                let event = result.map_or_else(CheckEvent::Refused, |_| CheckEvent::Registered);
                let _ = sink.send(event);
            }
            (Tag::Produce(_) | Tag::Unsubscribe, _) => {}
        }
    }

    /// Tells everybody that the connection is gone (L1).
    fn close(self, error: &ClientError) {
        for tag in self.connection.close() {
            match tag {
                Tag::Call(reply) => drop(reply.send(Err(CallError::Lost(error.clone())))),
                Tag::Produce(tags) => {
                    for (batch, sink) in tags {
                        let _ = sink.send(ProduceEvent::Lost(batch));
                    }
                }
                Tag::Resolve(reader) => {
                    reader.tell(ReadEvent::Lost);
                }
                Tag::Subscribe(..) | Tag::Register(_) | Tag::Unsubscribe => {}
            }
        }
        for (_, sink) in self.registrations.into_values() {
            let _ = sink.send(CheckEvent::Lost);
        }
        for reader in self.subscriptions.into_values() {
            reader.tell(ReadEvent::Lost);
        }
    }
}

fn not_sent(command: Command, error: &ClientError) {
    match command {
        Command::Call { reply, .. } => drop(reply.send(Err(CallError::NotSent(error.clone())))),
        Command::Produce { batch, sink, .. } => drop(sink.send(ProduceEvent::NotSent(batch))),
        Command::Resolve { reader, .. } | Command::Subscribe { reader, .. } => {
            reader.tell(ReadEvent::Lost);
        }
        Command::Register { sink, .. } => drop(sink.send(CheckEvent::Lost)),
        Command::Credit { .. }
        | Command::Unsubscribe { .. }
        | Command::CloseConsumer(_)
        | Command::EndRegistrations => {}
    }
}
