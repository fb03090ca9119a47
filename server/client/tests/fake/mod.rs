//! A server in memory that speaks the protocol and misbehaves on request. It stands for what PROTOCOL.md demands of
//! a server, with as little as that takes; partitions live in two shards with ports of their own.

mod groups;

use bytes::{Bytes, BytesMut};
use groups::{Groups, Waiting};
use ringmq_client::ErrorCode;
use ringmq_format::frame::{Frame, FrameHeader};
use ringmq_format::name::check_topic_name;
use ringmq_format::record::Payload;
use ringmq_format::{Offset, PartitionId, TopicId};
use ringmq_protocol::fetch::{fetch_begin, fetch_end, put_entry};
use ringmq_protocol::{
    Bounds, DescribedTopic, ErrorBody, FetchEntryHeader, FetchFields, Goodbye, HEADER_SIZE, Header,
    HelloAnswer, ListedOffset, OffsetSpec, Op, Opened, PartitionEntry, ProduceOutcome, Request, Response,
    TopicEntriesBuf, TopicEntry, TopicPage, decode_request, limits,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

#[derive(Clone)]
struct Topic {
    id: u32,
    base: u32,
    partitions: u32,
}

#[derive(Default)]
struct Producer {
    epoch: u16,
    next: u32,
    window: VecDeque<(u32, u64)>,
}

#[derive(Default)]
struct Log {
    frames: Vec<(u64, Bytes)>,
    start: u64,
    end: u64,
    producers: BTreeMap<u64, Producer>,
}

#[derive(Default)]
struct Data {
    topics: BTreeMap<String, Topic>,
    logs: BTreeMap<u32, Log>,
    next_partition: u32,
    groups: Groups,
}

/// What goes wrong next.
#[derive(Default)]
pub(crate) struct Faults {
    /// So many produce requests are stored and then answered by closing the connection.
    pub(crate) lose_answers: AtomicUsize,
    /// So many frames are refused with this code.
    pub(crate) refuse: Mutex<VecDeque<ErrorCode>>,
    /// So many pushes have a flipped bit.
    pub(crate) corrupt_pushes: AtomicUsize,
    /// Frames per PRODUCE seen so far, and most frames of a partition in one request.
    pub(crate) requests: AtomicUsize,
    /// Connections accepted.
    pub(crate) connections: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Signal {
    Data,
    Goodbye(u64),
    Kill(u64),
}

pub(crate) struct Server {
    data: Arc<Mutex<Data>>,
    pub(crate) faults: Arc<Faults>,
    signal: watch::Sender<Signal>,
    pub(crate) address: String,
    ports: Vec<u16>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listeners = [listener(0).await, listener(0).await, listener(0).await];
        let ports: Vec<u16> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let server = Self {
            data: Arc::default(),
            faults: Arc::default(),
            signal: watch::channel(Signal::Data).0,
            address: format!("127.0.0.1:{}", ports[0]),
            ports,
            tasks: Mutex::default(),
        };
        listeners.into_iter().for_each(|listener| server.accept(listener));
        // Time passes for delays, checks and requests that wait.
        let bell = server.signal.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                bell.send_if_modified(|signal| *signal == Signal::Data);
            }
        });
        server
    }

    fn accept(&self, listener: TcpListener) {
        let session = Session {
            data: self.data.clone(),
            faults: self.faults.clone(),
            ports: self.ports[1..].to_vec(),
            handles: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            registrations: BTreeMap::new(),
            waiting: Vec::new(),
            greeted: false,
        };
        let signal = self.signal.clone();
        self.tasks.lock().unwrap().push(tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                session.faults.connections.fetch_add(1, SeqCst);
                tokio::spawn(session.clone().serve(stream, signal.subscribe(), signal.clone()));
            }
        }));
    }

    /// As SIGKILL: connections end, ports are closed. What was stored stays.
    pub(crate) fn kill(&self) {
        self.tasks.lock().unwrap().drain(..).for_each(|task| task.abort());
        self.signal.send_replace(Signal::Kill(self.faults.connections.load(SeqCst)));
    }

    pub(crate) async fn restart(&self) {
        for port in &self.ports {
            self.accept(listener(*port).await);
        }
    }

    pub(crate) fn say_goodbye(&self) {
        self.signal.send_replace(Signal::Goodbye(self.faults.connections.load(SeqCst)));
    }

    /// Bodies of uncompressed single-record frames do not matter here: how many records a partition has.
    pub(crate) fn records(&self, topic: &str, partition: u32) -> u64 {
        let data = self.data.lock().unwrap();
        data.logs[&(data.topics[topic].base + partition)].end
    }

    /// Drops whole frames from the front, as retention does.
    pub(crate) fn trim(&self, topic: &str, partition: u32, below: u64) {
        let mut data = self.data.lock().unwrap();
        let pid = data.topics[topic].base + partition;
        let log = data.logs.get_mut(&pid).unwrap();
        log.frames
            .retain(|(base, bytes)| base + u64::from(FrameHeader::parse(bytes).unwrap().count.get()) > below);
        log.start = below;
    }
}

async fn listener(port: u16) -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], port).into()).unwrap();
    socket.listen(64).unwrap()
}

#[derive(Clone)]
struct Subscription {
    pid: u32,
    next: u64,
    credit: i64,
    group: u32,
}

#[derive(Clone)]
struct Session {
    data: Arc<Mutex<Data>>,
    faults: Arc<Faults>,
    ports: Vec<u16>,
    handles: BTreeMap<u32, u32>,
    subscriptions: BTreeMap<u32, Subscription>,
    /// Producer groups for which this connection answers checks.
    registrations: BTreeMap<u32, String>,
    waiting: Vec<Waiting>,
    greeted: bool,
}

impl Session {
    async fn serve(
        mut self,
        mut stream: TcpStream,
        mut signal: watch::Receiver<Signal>,
        bell: watch::Sender<Signal>,
    ) {
        let number = self.faults.connections.load(SeqCst);
        let mut input = BytesMut::new();
        loop {
            let mut out = Vec::new();
            tokio::select! {
                read = stream.read_buf(&mut input) => {
                    if read.unwrap_or(0) == 0 {
                        return;
                    }
                    while let Some(message) = whole(&mut input) {
                        let (header, body) = message;
                        let stored = header.op() == Some(Op::Produce);
                        self.request(&header, &body, &mut out);
                        if stored {
                            bell.send_replace(Signal::Data);
                            let lose = self.faults.lose_answers.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
                            if lose.is_ok() {
                                return;
                            }
                        }
                    }
                }
                changed = signal.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    match *signal.borrow_and_update() {
                        Signal::Kill(last) if number <= last => return,
                        Signal::Goodbye(last) if number <= last => {
                            Response::Goodbye(Goodbye { grace_ms: 1_000 }).encode(0, 0, &mut out);
                        }
                        _ => {}
                    }
                }
            }
            self.push(&mut out);
            if stream.write_all(&out).await.is_err() {
                return;
            }
        }
    }

    fn request(&mut self, header: &Header, body: &Bytes, out: &mut Vec<u8>) {
        let (fields, frames) = body.split_at(header.fields_len());
        let request = match decode_request(header, fields) {
            Ok(request) => request,
            Err(refusal) => return refusal.encode(header, out),
        };
        let greets = matches!(request, Request::Hello(_));
        if greets == self.greeted {
            return error(header, ErrorCode::HelloRequired, out);
        }
        let (correlation, handle) = (header.correlation(), header.handle());
        if let Err(code) = self.answer(&request, frames, correlation, handle, out) {
            error(header, code, out);
        }
    }

    fn answer(
        &mut self,
        request: &Request<'_>,
        frames: &[u8],
        correlation: u64,
        handle: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), ErrorCode> {
        let data = self.data.clone();
        let mut data = data.lock().unwrap();
        match request {
            Request::Hello(_) => {
                self.greeted = true;
                let ports: Vec<U16> = self.ports.iter().map(|port| U16::new(*port)).collect();
                Response::Hello(HelloAnswer {
                    version: 1,
                    shard: 0,
                    shard_ports: &ports,
                    frame_size_max: 1 << 20,
                    request_size_max: limits::REQUEST_SIZE_MAX as u32,
                    server: "fake",
                    node: 1,
                })
                .encode(correlation, 0, out);
            }
            Request::Ping => Response::Pong.encode(correlation, 0, out),
            Request::Metadata(metadata) => {
                let mut topics = TopicEntriesBuf::default();
                for name in metadata.names.iter() {
                    if metadata.auto_create && !data.topics.contains_key(name) {
                        data.create(name, 1);
                    }
                    topics.push(&data.entry(name));
                }
                Response::Metadata(topics.entries()).encode(correlation, 0, out);
            }
            Request::CreateTopic(create) => {
                check_topic_name(create.name.as_bytes()).map_err(|_| ErrorCode::InvalidTopicName)?;
                if data.topics.contains_key(create.name) {
                    if !create.if_not_exists {
                        return Err(ErrorCode::TopicExists);
                    }
                } else {
                    data.create(create.name, create.partitions);
                }
                Response::Created(data.entry(create.name)).encode(correlation, 0, out);
            }
            Request::DeleteTopic(name) => {
                data.topics.remove(*name).ok_or(ErrorCode::UnknownTopic)?;
                Response::Deleted.encode(correlation, 0, out);
            }
            Request::DescribeTopic(describe) => {
                let topic = data.topics.get(describe.name).cloned().ok_or(ErrorCode::UnknownTopic)?;
                // Two partitions a page, so that clients have to turn it.
                let indices = (describe.first_partition..topic.partitions).take(2);
                let partitions: Vec<_> = indices
                    .map(|index| &data.logs[&(topic.base + index)])
                    .map(|log| PartitionEntry {
                        log_start: U64::new(log.start),
                        visible_end: U64::new(log.end),
                        bytes: U64::new(u64::MAX),
                    })
                    .collect();
                Response::Described(DescribedTopic {
                    topic: data.entry(describe.name),
                    created_ms: 5,
                    first_partition: describe.first_partition,
                    partitions: &partitions,
                })
                .encode(correlation, 0, out);
            }
            Request::ListTopics(list) => {
                let mut topics = TopicEntriesBuf::default();
                let mut behind = data.topics.keys().filter(|name| name.as_str() > list.after);
                behind.by_ref().take(2).for_each(|name| topics.push(&data.entry(name)));
                let more = behind.next().is_some();
                Response::Listed(TopicPage { topics: topics.entries(), more }).encode(correlation, 0, out);
            }
            Request::Open(open) => {
                let topic = data.topics.get(open.topic).ok_or(ErrorCode::UnknownTopic)?;
                if open.partition >= topic.partitions {
                    return Err(ErrorCode::UnknownPartition);
                }
                let pid = topic.base + open.partition;
                self.handles.insert(open.handle, pid);
                let opened = Opened { partition: PartitionId(pid), bounds: data.logs[&pid].bounds() };
                Response::Opened(opened).encode(correlation, handle, out);
            }
            Request::Produce(produce) => {
                self.faults.requests.fetch_add(1, SeqCst);
                let outcomes: Vec<ProduceOutcome> = produce
                    .ranges()
                    .map(|(slot, range)| {
                        let refused = self.faults.refuse.lock().unwrap().pop_front();
                        let pid = self.handles.get(&slot.handle.get());
                        let data = &mut *data;
                        match (refused, pid.and_then(|pid| Some((*pid, data.logs.get_mut(pid)?)))) {
                            (Some(code), _) => ProduceOutcome::failed(code, 0),
                            (None, None) => ProduceOutcome::failed(ErrorCode::UnknownHandle, 0),
                            (None, Some((pid, log))) => {
                                log.append(pid, &frames[range.clone()], &mut data.groups)
                            }
                        }
                    })
                    .collect();
                Response::Produced(&outcomes).encode(correlation, 0, out);
            }
            Request::Fetch(fetch) => {
                let pid = *self.handles.get(&handle).ok_or(ErrorCode::UnknownHandle)?;
                let log = &data.logs[&pid];
                log.check(fetch.offset)?;
                let start = fetch_begin(out);
                let next = log.entries(fetch.offset, u64::from(fetch.max_bytes), out);
                let fields = FetchFields::new(log.start, log.end, next);
                fetch_end(out, start, Op::Fetch, correlation, handle, &fields, 0);
            }
            Request::Subscribe(subscribe) => {
                let pid = *self.handles.get(&handle).ok_or(ErrorCode::UnknownHandle)?;
                let log = &data.logs[&pid];
                log.check(subscribe.offset)?;
                let (next, credit) = (subscribe.offset, subscribe.credit as i64);
                let group = subscribe.group;
                self.subscriptions.insert(subscribe.subscription, Subscription { pid, next, credit, group });
                Response::Subscribed(log.bounds()).encode(correlation, handle, out);
            }
            Request::Credit(credit) => {
                if let Some(subscription) = self.subscriptions.get_mut(&handle) {
                    subscription.credit += credit.bytes as i64;
                }
            }
            Request::Unsubscribe(subscription) => {
                self.subscriptions.remove(subscription);
                Response::Unsubscribed.encode(correlation, handle, out);
            }
            Request::ListOffsets(list) => {
                let pid = *self.handles.get(&handle).ok_or(ErrorCode::UnknownHandle)?;
                let log = &data.logs[&pid];
                let offset = match list.what {
                    OffsetSpec::Earliest => log.start,
                    OffsetSpec::Latest => log.end,
                    OffsetSpec::Time(time) => time as u64,
                };
                Response::ListedOffset(ListedOffset { offset, timestamp: -1 }).encode(
                    correlation,
                    handle,
                    out,
                );
            }
            _ => return self.group_request(&mut data, request, correlation, handle, out),
        }
        Ok(())
    }

    fn push(&mut self, out: &mut Vec<u8>) {
        let data = self.data.clone();
        let mut data = data.lock().unwrap();
        data.tick();
        self.serve_waiting(&mut data, out);
        self.push_checks(&mut data, out);
        for (number, subscription) in &mut self.subscriptions {
            let Some(log) = data.logs.get(&subscription.pid) else { continue };
            while subscription.credit > 0 && subscription.next < log.end {
                let start = fetch_begin(out);
                let filter = data.groups.filter(subscription.group, &data.topics, subscription.pid);
                let credit = (subscription.credit as u64).min(20_000);
                let next = match filter {
                    Some(filter) => log.matching(&filter, subscription.next, credit, out),
                    None => log.entries(subscription.next, credit, out),
                };
                let bytes = out.len() - start - HEADER_SIZE - 24;
                let corrupt = self
                    .faults
                    .corrupt_pushes
                    .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
                    .is_ok();
                if corrupt {
                    let last = out.len() - 9;
                    out[last] ^= 4;
                }
                fetch_end(out, start, Op::Push, 0, *number, &FetchFields::new(log.start, log.end, next), 0);
                subscription.next = next;
                subscription.credit -= bytes as i64;
            }
        }
    }
}

impl Data {
    fn create(&mut self, name: &str, partitions: u32) {
        let base = self.next_partition + 1;
        self.next_partition += partitions;
        (base..base + partitions).for_each(|pid| drop(self.logs.insert(pid, Log::default())));
        self.topics.insert(name.to_owned(), Topic { id: base, base, partitions });
    }

    fn entry<'a>(&self, name: &'a str) -> TopicEntry<'a> {
        let topic = self.topics.get(name);
        TopicEntry {
            code: if topic.is_some() { 0 } else { ErrorCode::UnknownTopic as u16 },
            topic: TopicId(topic.map_or(0, |topic| topic.id)),
            base_partition: PartitionId(topic.map_or(0, |topic| topic.base)),
            partitions: topic.map_or(0, |topic| topic.partitions),
            name,
        }
    }
}

impl Log {
    fn bounds(&self) -> Bounds {
        Bounds { log_start: self.start, visible_end: self.end }
    }

    fn check(&self, offset: u64) -> Result<(), ErrorCode> {
        if (self.start..=self.end).contains(&offset) { Ok(()) } else { Err(ErrorCode::OffsetOutOfRange) }
    }

    fn append(&mut self, pid: u32, bytes: &[u8], groups: &mut Groups) -> ProduceOutcome {
        let Ok(frame) = Frame::parse(bytes) else {
            return ProduceOutcome::failed(ErrorCode::FrameInvalid, 0);
        };
        if frame.verify_payload().is_err() {
            return ProduceOutcome::failed(ErrorCode::FrameInvalid, 0);
        }
        let mut header = *frame.header;
        let producer = self.producers.entry(header.producer_id().0).or_default();
        let (epoch, sequence) = (header.producer_epoch.get(), header.base_sequence.get());
        if epoch > producer.epoch {
            *producer = Producer { epoch, ..Producer::default() };
        }
        if epoch < producer.epoch {
            return ProduceOutcome::failed(ErrorCode::ProducerFenced, 0);
        }
        if let Some(known) = producer.window.iter().find(|known| known.0 == sequence) {
            return ProduceOutcome::stored(known.1, 7, true);
        }
        if sequence != producer.next {
            return ProduceOutcome::failed(ErrorCode::OutOfOrderSequence, 0);
        }
        let late = match groups.take_late(pid, &frame) {
            Ok(late) => late,
            Err(code) => return ProduceOutcome::failed(code, 0),
        };
        producer.next = sequence.wrapping_add(header.count.get());
        producer.window.push_back((sequence, late.unwrap_or(self.end)));
        if producer.window.len() > 5 {
            producer.window.pop_front();
        }
        if let Some(lsn) = late {
            return ProduceOutcome::stored(lsn, 7, false);
        }
        let base = self.end;
        header.stamp(PartitionId(pid), Offset(base), 7);
        let mut stamped = bytes.to_vec();
        stamped[..64].copy_from_slice(header.as_bytes());
        self.frames.push((base, Bytes::from(stamped)));
        self.end = base + u64::from(header.count.get());
        ProduceOutcome::stored(base, 7, false)
    }

    /// Gives offsets to a body that was stored before.
    fn bind(&mut self, bytes: &Bytes) {
        let count = FrameHeader::parse(bytes).unwrap().count.get();
        self.frames.push((self.end, bytes.clone()));
        self.end += u64::from(count);
    }

    /// Runs of the records whose tag is one of `tags`, from `from` on; answers where to go on.
    fn matching(&self, tags: &[String], from: u64, max_bytes: u64, out: &mut Vec<u8>) -> u64 {
        let begin = out.len();
        let mut next = from;
        for (base, bytes) in self.frames.iter().filter(|frame| frame_end(frame) > from) {
            if (out.len() - begin) as u64 >= max_bytes {
                break;
            }
            let frame = Frame::parse(bytes).unwrap();
            let payload = Payload::parse(&frame).unwrap();
            let mut first = true;
            for (index, record) in payload.entries().enumerate() {
                let offset = base + index as u64;
                let tag = String::from_utf8_lossy(record.tag.unwrap_or_default()).into_owned();
                if offset < from || !tags.contains(&tag) {
                    continue;
                }
                let entry = FetchEntryHeader::new(offset, 7, index as u32, 1);
                put_entry(out, &if first { entry } else { entry.in_same_frame() });
                if first {
                    out.extend_from_slice(bytes);
                }
                first = false;
            }
            next = frame_end(&(*base, bytes.clone()));
        }
        next
    }

    /// Whole frames from the one that holds `from` on; answers where to go on.
    fn entries(&self, from: u64, max_bytes: u64, out: &mut Vec<u8>) -> u64 {
        let begin = out.len();
        let mut next = from;
        for (base, bytes) in &self.frames {
            let count = FrameHeader::parse(bytes).unwrap().count.get();
            let end = base + u64::from(count);
            if end <= from {
                continue;
            }
            put_entry(out, &FetchEntryHeader::new(*base, 7, 0, count));
            out.extend_from_slice(bytes);
            next = end;
            if (out.len() - begin) as u64 >= max_bytes {
                break;
            }
        }
        next
    }
}

fn frame_end(frame: &(u64, Bytes)) -> u64 {
    frame.0 + u64::from(FrameHeader::parse(&frame.1).unwrap().count.get())
}

fn whole(input: &mut BytesMut) -> Option<(Header, Bytes)> {
    let header = *Header::parse(input, limits::REQUEST_SIZE_MAX).ok()?;
    if input.len() < header.message_len() {
        return None;
    }
    let body = input.split_to(header.message_len()).freeze().slice(HEADER_SIZE..);
    Some((header, body))
}

fn error(header: &Header, code: ErrorCode, out: &mut Vec<u8>) {
    ErrorBody { code: code as u16, retry_after_ms: 0, message: "" }.encode(
        header.op,
        header.correlation(),
        header.handle(),
        out,
    );
}
