//! Body of the fuzz target `client_session`: the client's state machines, and a server that says anything.

use crate::input::Input;
use bytes::{Bytes, BytesMut};
use ringmq_client::core::Refused;
use ringmq_client::core::connection::{Connection, ConnectionConfig, Event, Message, Target};
use ringmq_client::core::consumer::{Action, ConsumerCore, ConsumerCoreConfig, Next, OutOfRange, Start};
use ringmq_client::core::member::{MemberAction, MemberCore};
use ringmq_client::core::output::Output;
use ringmq_client::core::queue::{QueueAction, QueueCore, QueueCoreConfig, Settle};
use ringmq_format::PartitionId;
use ringmq_format::frame::{Codec, FrameHeader, FrameKind, encode};
use ringmq_format::limits::FRAME_HEADER_SIZE;
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_protocol::{
    Ack, ChangeInvisible, FetchEntryHeader, FetchFields, Flags, GroupMode, GroupSettings, Header, Heartbeat,
    HelloAnswer, Items, JoinGroup, Op, Receive, Request, Response, fetch,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Partitions that are consumed: index and id.
const PARTITIONS: [(u32, PartitionId); 2] = [(0, PartitionId(1)), (1, PartitionId(2))];
/// Connections of one input.
const CONNECTIONS_MAX: u32 = 4;
/// Requests on the way at which nothing more is asked: an input is about answers.
const OPEN_MAX: usize = 64;

/// What a request was for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Resolve { partition: u32, attempt: u64 },
    Subscribe { partition: u32, attempt: u64 },
    Receive(u64),
    Settle(u64),
    Member,
    Produce { frames: usize },
    Other,
}

struct Client {
    now: u64,
    connection: Option<Connection<u32>>,
    connections: u32,
    input: BytesMut,
    consumer: ConsumerCore,
    queue: QueueCore,
    member: MemberCore,
    open: BTreeMap<u32, Asked>,
    last_tag: u32,
    /// Partition and attempt of each subscription.
    subscriptions: BTreeMap<u32, (u32, u64)>,
    /// The next offset of each partition.
    next: [u64; 2],
    /// It was told that it must not go on: what follows is not what was there before.
    halted: bool,
}

fn target(partition: u32) -> Target {
    Target { topic: Arc::from("t"), partition }
}

impl Client {
    fn new() -> Self {
        let consumer = ConsumerCoreConfig {
            credit: 1 << 20,
            retry_for_us: 60_000_000,
            out_of_range: OutOfRange::Fail,
            filtered: false,
            seed: 1,
        };
        let queue = QueueCoreConfig {
            prefetch: 8,
            max_bytes: 1 << 20,
            invisible_ms: 30_000,
            wait_ms: 100,
            auto_renew: true,
            renew_for_us: 600_000_000,
            retry_for_us: 60_000_000,
            seed: 2,
        };
        let mut own = Self {
            now: 0,
            connection: None,
            connections: 0,
            input: BytesMut::new(),
            consumer: ConsumerCore::new(consumer, PARTITIONS, Start::Offset(0)),
            queue: QueueCore::new(queue),
            member: MemberCore::new(3),
            open: BTreeMap::new(),
            last_tag: 0,
            subscriptions: BTreeMap::new(),
            next: [0; 2],
            halted: false,
        };
        own.queue.set_partitions([(PartitionId(3), target(2))]);
        own.connect();
        own
    }

    fn connect(&mut self) {
        if self.connections < CONNECTIONS_MAX {
            self.connections += 1;
            let config = ConnectionConfig {
                name: "fuzz".into(),
                hello_timeout_us: 1_000_000,
                request_timeout_us: 10_000_000,
                ping_after_us: 3_000_000,
            };
            self.connection = Some(Connection::new(config, self.now));
            self.input.clear();
        }
    }

    fn tag(&mut self, asked: Asked) -> u32 {
        self.last_tag += 1;
        self.open.insert(self.last_tag, asked);
        self.last_tag
    }

    /// The server has sent these bytes.
    fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let Some(connection) = &mut self.connection else { return };
        let followed = connection.receive(self.now, &mut self.input);
        self.events();
        if followed.is_err() {
            self.end();
        } else {
            self.work();
        }
    }

    fn pass(&mut self, us: u64) {
        self.now += us;
        let Some(connection) = &mut self.connection else { return };
        if connection.tick(self.now).is_err() {
            self.end();
        }
        self.work();
    }

    /// Every tag comes back once (C2).
    fn end(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        for tag in connection.close() {
            let Some(asked) = self.open.remove(&tag) else { panic!("tag {tag} comes back twice") };
            match asked {
                Asked::Resolve { partition, attempt } | Asked::Subscribe { partition, attempt } => {
                    self.consumer.lost(self.now, partition, attempt);
                }
                Asked::Receive(request) | Asked::Settle(request) => self.queue.lost(self.now, request, false),
                Asked::Member => self.member.lost(self.now),
                Asked::Produce { .. } | Asked::Other => {}
            }
        }
        assert!(self.open.is_empty(), "{:?} never come back", self.open);
        for (partition, attempt) in std::mem::take(&mut self.subscriptions).into_values() {
            self.consumer.lost(self.now, partition, attempt);
        }
        self.connect();
    }

    fn events(&mut self) {
        while let Some(event) = self.connection.as_mut().and_then(Connection::next_event) {
            match event {
                Event::Ready(info) => assert!(info.shard_ports.len() < 1 << 16),
                Event::Answer { tag, result } => {
                    let Some(asked) = self.open.remove(&tag) else { panic!("tag {tag} comes back twice") };
                    self.answer(asked, result);
                }
                Event::Produced { tag, result } => {
                    let Some(Asked::Produce { frames }) = self.open.remove(&tag) else {
                        panic!("tag {tag} comes back twice")
                    };
                    assert!(result.is_err() || result.is_ok_and(|outcomes| outcomes.len() == frames));
                }
                Event::Push { subscription, fields, entries } => {
                    if let Some((partition, attempt)) = self.subscriptions.get(&subscription).copied() {
                        self.consumer.pushed(self.now, partition, attempt, &fields, &entries);
                    }
                }
                Event::Ended { subscription, refused } => {
                    if let Some((partition, attempt)) = self.subscriptions.remove(&subscription) {
                        self.consumer.refused(self.now, partition, attempt, refused);
                    }
                }
                Event::Check { message, .. } => assert!(message.response().is_ok()),
                Event::Goodbye => {}
            }
        }
        self.take();
    }

    fn answer(&mut self, asked: Asked, result: Result<Message, Refused>) {
        let now = self.now;
        let message = match result {
            Ok(message) => message,
            Err(refused) => {
                return match asked {
                    Asked::Resolve { partition, attempt } | Asked::Subscribe { partition, attempt } => {
                        self.consumer.refused(now, partition, attempt, refused);
                    }
                    Asked::Receive(request) | Asked::Settle(request) => {
                        self.queue.refused(now, request, refused);
                    }
                    Asked::Member => self.member.refused(now, refused),
                    Asked::Produce { .. } | Asked::Other => {}
                };
            }
        };
        let Ok(response) = message.response() else { panic!("an answer of impossible fields came through") };
        match (asked, response) {
            (Asked::Resolve { partition, attempt }, Response::ListedOffset(listed)) => {
                self.consumer.resolved(partition, attempt, listed.offset);
            }
            (Asked::Subscribe { partition, attempt }, Response::Subscribed(bounds)) => {
                self.consumer.subscribed(partition, attempt, bounds);
            }
            (Asked::Receive(request), Response::Received(received)) => {
                self.queue.received(now, request, received.leases, &message.frames);
            }
            (Asked::Settle(request), Response::Acked(outcomes)) => self.queue.acked(now, request, outcomes),
            (Asked::Settle(request), Response::Changed(leases)) => self.queue.changed(now, request, leases),
            (Asked::Member, Response::Joined(joined)) => self.member.joined(now, &joined),
            (Asked::Member, Response::Heartbeat(answer)) => self.member.heartbeat(now, &answer),
            (asked, response) => panic!("{response:?} came for {asked:?}"),
        }
    }

    /// What was received, in order and without a gap, whatever the server pushes.
    fn take(&mut self) {
        let mut records = VecDeque::new();
        loop {
            match self.consumer.take(&mut records) {
                Next::Records => {}
                Next::Halted { partition, position, halt } => {
                    let known = self.next[partition as usize % 2];
                    assert!(self.halted || position == known, "{halt:?} at {position}, not {known}");
                    self.halted = true;
                    assert!(self.consumer.seek(partition, known));
                }
                Next::Nothing => break,
            }
            for record in records.drain(..) {
                let next = &mut self.next[record.partition as usize % 2];
                assert_eq!(record.offset, *next, "partition {}", record.partition);
                *next += 1;
            }
        }
        while let Some(delivery) = self.queue.next_delivery(self.now) {
            let settles = [Settle::Ack, Settle::Retry, Settle::Release(5), Settle::Extend(1_000)];
            self.queue.settle(self.now, delivery.token, settles[delivery.token as usize % settles.len()]);
        }
        while self.queue.next_completion().is_some() {}
        self.queue.take_failure();
        if self.queue.take_doubt() {
            self.member.doubt(self.now);
        }
    }

    /// Asks what is to be asked.
    fn work(&mut self) {
        let now = self.now;
        while self.connection.as_ref().is_some_and(Connection::is_ready) && self.open.len() < OPEN_MAX {
            let Some(action) = self.consumer.next_action(now) else { break };
            self.act(action);
        }
        let mut actions = Vec::new();
        if self.connection.as_ref().is_some_and(Connection::is_ready) && self.open.len() < OPEN_MAX {
            self.queue.next_actions(now, &mut actions);
            actions.into_iter().for_each(|action| self.act_queue(action));
            if let Some(action) = self.member.next_action(now) {
                self.act_member(action);
            }
        }
        if let Some(connection) = &mut self.connection {
            let mut out = Output::default();
            connection.take_output(&mut out);
        }
    }

    fn act(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Resolve { partition, attempt, what } => {
                let tag = self.tag(Asked::Resolve { partition, attempt });
                let Some(connection) = &mut self.connection else { return };
                connection.list_offsets(now, tag, &target(partition), what);
            }
            Action::Subscribe { partition, attempt, offset, credit } => {
                let tag = self.tag(Asked::Subscribe { partition, attempt });
                let Some(connection) = &mut self.connection else { return };
                let number = connection.subscribe(now, tag, &target(partition), offset, credit);
                self.subscriptions.insert(number, (partition, attempt));
            }
            Action::Credit { partition, attempt, bytes } => {
                let found = self.subscriptions.iter().find(|known| *known.1 == (partition, attempt));
                let number = found.map(|found| *found.0);
                if let (Some(connection), Some(number)) = (&mut self.connection, number) {
                    connection.credit(number, bytes);
                }
            }
            Action::Unsubscribe { partition, attempt } => {
                let found = self.subscriptions.iter().find(|known| *known.1 == (partition, attempt));
                let Some(number) = found.map(|found| *found.0) else { return };
                self.subscriptions.remove(&number);
                let tag = self.tag(Asked::Other);
                let Some(connection) = &mut self.connection else { return };
                connection.unsubscribe(now, tag, number);
            }
        }
    }

    fn act_queue(&mut self, action: QueueAction) {
        let now = self.now;
        match action {
            QueueAction::Receive { request, target, max_records, wait_ms } => {
                let tag = self.tag(Asked::Receive(request));
                let Some(connection) = &mut self.connection else { return };
                connection.call_at(now, tag, &target, u64::from(wait_ms) * 1_000, |handle, ask| {
                    ask(&Request::Receive(Receive {
                        handle,
                        group: 1,
                        member: 1,
                        max_records,
                        max_bytes: 1 << 20,
                        invisible_ms: 30_000,
                        wait_ms,
                    }));
                });
            }
            QueueAction::Ack { request, target, leases } => {
                let tag = self.tag(Asked::Settle(request));
                let Some(connection) = &mut self.connection else { return };
                connection.call_at(now, tag, &target, 0, |handle, ask| {
                    ask(&Request::Ack(Ack { handle, group: 1, member: 1, leases: &leases }));
                });
            }
            QueueAction::Change { request, target, changes } => {
                let tag = self.tag(Asked::Settle(request));
                let Some(connection) = &mut self.connection else { return };
                connection.call_at(now, tag, &target, 0, |handle, ask| {
                    ask(&Request::ChangeInvisible(ChangeInvisible {
                        handle,
                        group: 1,
                        member: 1,
                        changes: &changes,
                    }));
                });
            }
        }
    }

    fn act_member(&mut self, action: MemberAction) {
        let now = self.now;
        let tag = self.tag(Asked::Member);
        let Some(connection) = &mut self.connection else { return };
        connection.call_for(now, tag, 0, |ask| match action {
            MemberAction::Join { member } => ask(&Request::JoinGroup(JoinGroup {
                group: "g",
                mode: GroupMode::Queue,
                member,
                name: "fuzz",
                instance: "",
                session_ms: 0,
                create: true,
                settings: GroupSettings::default(),
                subscriptions: Items::default(),
            })),
            MemberAction::Heartbeat { group, member, generation, wait_ms } => {
                let positions = &[];
                ask(&Request::Heartbeat(Heartbeat { group, member, generation, wait_ms, positions }));
            }
        });
    }

    fn produce(&mut self, frames: usize) {
        if !self.connection.as_ref().is_some_and(Connection::is_ready) || self.open.len() >= OPEN_MAX {
            return;
        }
        let tag = self.tag(Asked::Produce { frames });
        let (frame, targets) = (Bytes::from(encode(FrameKind::Data, 0, &[])), [target(0), target(1)]);
        let frames = (0..frames).map(|number| (&targets[number % 2], frame.clone()));
        let now = self.now;
        if let Some(connection) = &mut self.connection {
            connection.produce(now, tag, frames);
        }
    }
}

/// What the server says, one step after the other. Whatever it is: every request comes back once, and a consumer gets
/// each record of a partition once and in order or is told that it does not.
pub fn client_session(data: &[u8]) {
    let mut input = Input::new(data);
    let mut client = Client::new();
    while !input.is_empty() {
        match input.byte() % 8 {
            0 => client.receive(&hello()),
            1 => client.receive(input.piece()),
            2 => client.pass(1 << (input.byte() % 25)),
            3 => client.produce(1 + usize::from(input.byte() % 3)),
            // A message with a good header; of what, in answer to what.
            4 | 5 => {
                let (op, flags, correlation) = (input.byte(), input.byte(), input.byte());
                let (handle, fields, frames) = (u32::from(input.byte()), input.piece(), input.piece());
                let flags = Flags(Flags::RESPONSE.0 | u16::from(flags) & Flags::ERROR.0);
                let len = frames.len();
                let header = Header::new(op, flags, u64::from(correlation), handle, fields, len);
                client.receive(&[header.as_bytes(), fields, frames].concat());
            }
            // Frames that are whole, pushed or in an answer.
            6 => client.receive(&pushed(&mut input)),
            _ => {
                if client.connection.is_some() {
                    client.end();
                }
            }
        }
    }
    client.end();
}

fn hello() -> Vec<u8> {
    let hello = HelloAnswer {
        version: 1,
        shard: 0,
        shard_ports: &[7701.into()],
        frame_size_max: 4 << 20,
        request_size_max: 16 << 20,
        server: "fuzz",
        node: 7,
    };
    let mut out = Vec::new();
    Response::Hello(hello).encode(1, 0, &mut out);
    out
}

/// `subscription u8, next offset u8, entries u8`, and for each entry `offset u8, first record u8, count u8, partition u8,
/// frame offset u8, records u8, same u8`.
fn pushed(input: &mut Input<'_>) -> Vec<u8> {
    let (subscription, next) = (u32::from(input.byte()), u64::from(input.byte()));
    let mut out = Vec::new();
    let start = fetch::fetch_begin(&mut out);
    for _ in 0..input.byte() % 5 {
        let (offset, first, count) = (input.byte(), input.byte(), input.byte());
        let (partition, base, records, same) = (input.byte(), input.byte(), input.byte(), input.byte());
        let entry = FetchEntryHeader::new(u64::from(offset), 5, u32::from(first), u32::from(count));
        if same % 4 == 3 {
            fetch::put_entry(&mut out, &entry.in_same_frame());
            continue;
        }
        fetch::put_entry(&mut out, &entry);
        let mut frame = records_of(records % 9);
        if let Ok(header) = FrameHeader::parse(&frame) {
            let mut header = *header;
            header.stamp(PartitionId(u32::from(partition)), ringmq_format::Offset(u64::from(base)), 5);
            header.seal();
            frame[..FRAME_HEADER_SIZE].copy_from_slice(header.as_bytes());
        }
        out.extend_from_slice(&frame);
    }
    let fields = FetchFields::new(0, 255, next);
    fetch::fetch_end(&mut out, start, Op::Push, 0, subscription, &fields, 0);
    out
}

fn records_of(count: u8) -> Vec<u8> {
    let mut builder = FrameBuilder::new(5, 1 << 16);
    for number in 0..count {
        let pushed = builder.push(&Record { body: &[number; 3], time_ms: 6, ..Record::default() });
        assert!(pushed.is_ok());
    }
    builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None)
}

/// Where the corpus starts. `responses` are good answers.
pub(crate) fn seeds(responses: &[(String, Vec<u8>)]) -> Vec<(&'static str, String, Vec<u8>)> {
    use ringmq_protocol::{HEADER_SIZE, limits};
    let mut seeds = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>| seeds.push(("client_session", name.to_owned(), bytes));
    let mut all = vec![0];
    for (name, bytes) in responses {
        let Ok(header) = Header::parse(bytes, limits::RESPONSE_SIZE_MAX) else { continue };
        let (fields, frames) = bytes[HEADER_SIZE..].split_at(header.fields_len());
        if fields.len() > 255 || frames.len() > 255 {
            continue;
        }
        let flags = header.flags.get() as u8;
        let mut step = vec![4, header.op, flags, 3, header.handle() as u8, fields.len() as u8];
        step.extend_from_slice(fields);
        step.push(frames.len() as u8);
        step.extend_from_slice(frames);
        add(name, [&[0][..], &step].concat());
        all.extend_from_slice(&step);
    }
    add("all_of_them", all);
    // OPEN and SUBSCRIBE of both partitions have correlations 2 to 5; the first subscription is number 1.
    const SUBSCRIBED: u8 = Op::Subscribe as u8;
    let subscribed = [&[4, SUBSCRIBED, 0, 3, 1, 16][..], &[0; 8], &[9, 0, 0, 0, 0, 0, 0, 0], &[0]].concat();
    let entry = |offset: u8, records: u8| [offset, 0, records, 1, offset, records, 0];
    let push = |next: u8, entries: &[[u8; 7]]| {
        let head = [6, 1, next, entries.len() as u8];
        [&head[..], &entries.concat()].concat()
    };
    for (name, steps) in [
        ("pushes", vec![vec![0], subscribed.clone(), push(5, &[entry(0, 3), entry(3, 2)])]),
        ("a_gap", vec![vec![0], subscribed.clone(), push(3, &[entry(0, 3)]), push(9, &[entry(5, 4)])]),
        ("twice", vec![vec![0], subscribed.clone(), push(3, &[entry(0, 3)]), push(3, &[entry(0, 3)])]),
        ("lost_in_between", vec![vec![0], subscribed, push(3, &[entry(0, 3)]), vec![7, 2, 20, 0, 2, 24]]),
        ("produce", vec![vec![0, 3, 1, 2, 10]]),
        ("silence", vec![vec![0, 2, 24, 2, 24, 0, 2, 24]]),
        ("no_hello", vec![push(3, &[entry(0, 3)])]),
        ("http", vec![[&[1, 24][..], b"HTTP/1.1 400 Bad Request"].concat()]),
    ] {
        add(name, steps.concat());
    }
    seeds
}
