//! Body of the fuzz target `server_session`: a whole server, and clients that say anything in pieces of any size.

use crate::input::Input;
use crate::world::{NODE, NODE_ID, Node, PARTITIONS, SEGMENT_SIZE, Store, TOPIC, store, world};
use ringmq_engine::ring::sim::{ClientSocket, SimConfig, World};
use ringmq_format::frame::{FrameKind, encode};
use ringmq_format::limits::frame_size_max;
use ringmq_protocol::{
    CreateTopic, Fetch, Flags, HEADER_SIZE, Header, Hello, Op, Open, Produce, ProduceSlot, Request, Response,
    Subscribe, decode_response, limits,
};
use ringmq_server::shard::mailbox::mesh;
use ringmq_server::shard::{Held, LateOptions, ServerOptions, ShardServer};
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use zerocopy::IntoBytes;

const PORT: u16 = 7700;
/// Clients of one input.
const WIRES: usize = 3;
/// Events and turns between two steps of an input.
const EVENTS: usize = 200;
/// Virtual time in which everything that was held for clients has gone.
const PATIENCE_US: u64 = 600_000_000;
/// Bytes that the shard may hold for connections; one answer may come beyond it, and what one request needs.
const CONNECTION_MEMORY: usize = 8 << 20;
const OVERDRAFT: usize = 64 << 20;

thread_local! {
    static STORE: OnceCell<Store> = const { OnceCell::new() };
}

struct Serving {
    world: World,
    server: ShardServer,
}

impl Serving {
    fn start(store: &Store, packet_max: usize) -> Self {
        let mut config = SimConfig::default();
        config.net.packet_max = packet_max;
        let world = world(config, Some(&store.image));
        let Ok(Node { mut ring, shard, .. }) = Node::open(&world) else { panic!("the store does not open") };
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
        let Ok((listener, _)) = ring.listen(address) else { panic!("no listener") };
        let options = ServerOptions {
            auto_create_topics: true,
            connections_max: 1_000,
            connections: Arc::default(),
            descriptors_max: usize::MAX,
            connection_memory: CONNECTION_MEMORY,
            shard_ports: vec![PORT],
            frame_size_max: frame_size_max(SEGMENT_SIZE) as u32,
            node_id: NODE_ID,
            late: LateOptions::default(),
            planted: Default::default(),
        };
        let Some(mail) = mesh(1).pop() else { panic!("no mail") };
        let server = ShardServer::new(ring, shard, options, vec![listener], mail, Arc::default());
        let mut own = Self { world, server };
        own.until("being ready", |own| own.server.is_ready());
        own
    }

    /// One turn, or the next event.
    fn step(&mut self) {
        if self.world.runnable().is_empty() {
            if !self.world.step() {
                self.world.advance(1_000);
            }
        } else {
            self.server.turn();
            self.server.wait();
        }
        assert!(self.server.shard().poisoned().is_none(), "{:?}", self.server.shard().poisoned());
        let held = self.server.stats().connection_bytes as usize;
        assert!(held <= CONNECTION_MEMORY + OVERDRAFT, "{held} bytes are held for connections");
    }

    fn pass(&mut self, us: u64) {
        let until = self.world.now_us() + us;
        while self.world.now_us() < until {
            self.step();
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begun = self.world.now_us();
        while !done(self) {
            assert!(self.world.now_us() < begun + PATIENCE_US, "{what}: never; {:?}", self.server.held());
            self.step();
        }
    }
}

/// A client's end.
struct Wire {
    socket: ClientSocket,
    received: Vec<u8>,
    /// Correlations of what was asked in whole messages and not answered.
    open: BTreeSet<u64>,
    last: u64,
    /// Bytes went out that are no messages: what is answered cannot be foretold.
    is_garbled: bool,
}

impl Wire {
    fn new(world: &World) -> Self {
        let socket = world.connect(NODE, PORT);
        Self { socket, received: Vec::new(), open: BTreeSet::new(), last: 0, is_garbled: false }
    }

    fn correlation(&mut self) -> u64 {
        self.last += 1;
        self.open.insert(self.last);
        self.last
    }

    fn ask(&mut self, world: &World, request: &Request<'_>, behind: &[u8]) {
        let mut bytes = Vec::new();
        request.encode(self.correlation(), &mut bytes);
        bytes.extend_from_slice(behind);
        world.client_send(self.socket, &bytes);
    }

    /// Takes what has come: each message can be followed, and answers something that was asked, once.
    fn hear(&mut self, world: &World) -> bool {
        self.received.extend(world.client_recv(self.socket));
        let mut at = 0;
        let mut pong = false;
        while self.received.len() - at >= HEADER_SIZE {
            let header = match Header::parse(&self.received[at..], limits::RESPONSE_SIZE_MAX) {
                Ok(header) => *header,
                Err(error) => panic!("what the server sends cannot be followed: {error}"),
            };
            let Some(message) = self.received[at..].get(HEADER_SIZE..header.message_len()) else { break };
            let response = match decode_response(&header, &message[..header.fields_len()]) {
                Ok(response) => response,
                Err(error) => panic!("op {} of the server: {error}", header.op),
            };
            pong |= matches!(response, Response::Pong);
            let correlation = header.correlation();
            let known = correlation == 0 || self.open.remove(&correlation) || self.is_garbled;
            assert!(known, "{correlation} was not asked, or is answered twice: {response:?}");
            at += header.message_len();
        }
        self.received.drain(..at);
        pong
    }
}

/// What clients do, one step after the other; the first byte says how small packets are. Whatever it is: the server
/// goes on, what it says can be followed, everything is answered at most once, nothing is held for clients that are
/// gone, and the next client is served.
pub fn server_session(data: &[u8]) {
    let mut input = Input::new(data);
    let packet_max = 1usize << (input.byte() % 15);
    STORE.with(|made| {
        let mut serving = Serving::start(made.get_or_init(|| store(false)), packet_max);
        let mut wires: [Option<Wire>; WIRES] = [const { None }; WIRES];
        let mut at = 0;
        while !input.is_empty() {
            step(&mut input, &mut serving, &mut wires, &mut at);
            for _ in 0..EVENTS {
                serving.step();
            }
        }
        for wire in wires.iter_mut().flatten() {
            wire.hear(&serving.world);
            serving.world.client_close(wire.socket);
        }
        serving.until("the end of all that was held", |own| {
            own.server.held() == Held::default() && own.server.stats().connection_bytes == 0
        });
        let mut wire = Wire::new(&serving.world);
        greet(&serving.world, &mut wire);
        wire.ask(&serving.world, &Request::Ping, &[]);
        let world = serving.world.clone();
        serving.until("an answer to somebody else", |_| wire.hear(&world));
    });
}

fn greet(world: &World, wire: &mut Wire) {
    let hello = Hello { version_min: 1, version_max: 1, name: "fuzz" };
    wire.ask(world, &Request::Hello(hello), &[]);
}

fn step(input: &mut Input<'_>, serving: &mut Serving, wires: &mut [Option<Wire>; WIRES], at: &mut usize) {
    let what = input.byte() % 10;
    match what {
        0 => *at = usize::from(input.byte()) % WIRES,
        1 => return serving.pass(1 << (input.byte() % 26)),
        _ => {}
    }
    let world = &serving.world;
    let wire = wires[*at].get_or_insert_with(|| Wire::new(world));
    match what {
        2 => greet(world, wire),
        // Anything.
        3 => {
            wire.is_garbled = true;
            world.client_send(wire.socket, input.piece());
        }
        // A message with a good header.
        4 | 5 => {
            let (op, handle) = (input.byte(), u32::from(input.byte()));
            let (fields, behind) = (input.piece(), if what == 5 { input.piece() } else { &[] });
            let header = Header::new(op, Flags::REQUEST, wire.correlation(), handle, fields, behind.len());
            world.client_send(wire.socket, &[header.as_bytes(), fields, behind].concat());
        }
        // Frames with good checksums.
        6 => {
            let handle = u32::from(input.byte());
            let kind = FrameKind::parse(input.byte()).unwrap_or(FrameKind::Data);
            let frame = encode(kind, u32::from(input.byte()), input.piece());
            let slot = ProduceSlot { handle: handle.into(), len: (frame.len() as u32).into() };
            let slots = vec![slot; 1 + usize::from(input.byte() % 3)];
            let frames = frame.repeat(slots.len());
            wire.ask(world, &Request::Produce(Produce { slots: &slots }), &frames);
        }
        7 => drop(wire.hear(world)),
        8 => world.client_finish(wire.socket),
        9 => {
            world.drop_connection(wire.socket);
            wires[*at] = None;
        }
        _ => {}
    }
}

/// Where the corpus starts: requests as they are sent, one by one and together.
pub(crate) fn seeds(requests: &[(String, Vec<u8>)]) -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>| seeds.push(("server_session", name.to_owned(), bytes));
    const BEGIN: [u8; 2] = [14, 2];
    let mut all = BEGIN.to_vec();
    for (name, bytes) in requests {
        let Ok(header) = Header::parse(bytes, limits::REQUEST_SIZE_MAX) else { continue };
        let (fields, behind) = bytes[HEADER_SIZE..].split_at(header.fields_len());
        if header.op == Op::Hello as u8 || fields.len() > 255 || behind.len() > 255 {
            continue;
        }
        let mut step = vec![5, header.op, header.handle() as u8, fields.len() as u8];
        step.extend_from_slice(fields);
        step.push(behind.len() as u8);
        step.extend_from_slice(behind);
        add(name, [&BEGIN[..], &step].concat());
        all.extend_from_slice(&step);
    }
    add("all_of_them", all);
    let message = |request: &Request<'_>| {
        let mut bytes = Vec::new();
        request.encode(1, &mut bytes);
        let mut step = vec![4, bytes[5], bytes[16], (bytes.len() - HEADER_SIZE) as u8];
        step.extend_from_slice(&bytes[HEADER_SIZE..]);
        step
    };
    let open = message(&Request::Open(Open { handle: 1, topic: TOPIC, partition: PARTITIONS - 1 }));
    let fetch = message(&Request::Fetch(Fetch {
        handle: 1,
        offset: 0,
        max_bytes: 1 << 20,
        max_wait_ms: 500,
        group: 0,
    }));
    let subscribe = Subscribe { handle: 1, subscription: 4, offset: 0, credit: 1 << 20, group: 0 };
    let subscribe = message(&Request::Subscribe(subscribe));
    let create =
        message(&Request::CreateTopic(CreateTopic { name: "u", partitions: 3, if_not_exists: true }));
    let delete = message(&Request::DeleteTopic(TOPIC));
    let produce = [&[6, 1, 1, 0, 24][..], &[0; 24], &[0]].concat();
    let begin = &BEGIN[..];
    for (name, steps) in [
        ("fetch_and_read", vec![begin, &open, &fetch, &[1, 20, 7]]),
        ("subscribe_and_go", vec![begin, &open, &subscribe, &[9, 2], &open, &subscribe, &[8]]),
        ("produce", vec![begin, &open, &produce, &[1, 14, 7], &produce, &produce]),
        ("two_clients", vec![begin, &open, &[0, 1, 2], &delete, &[0, 0], &fetch, &[0, 1], &create]),
        ("garbage", vec![&[0, 3, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 25][..]]),
        ("half_a_hello", vec![&[2, 3, 20, 0, 0, 0, 0, 1, 1][..], &[1, 24, 8]]),
        ("a_byte_at_a_time", vec![&[0, 2][..], &open, &fetch, &subscribe, &[1, 22]]),
        ("no_hello", vec![&[14][..], &open, &fetch]),
    ] {
        add(name, steps.concat());
    }
    seeds
}
