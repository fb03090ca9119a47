//! Bad input over raw connections: each gets a clear error and costs nothing. A healthy client works all the while.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[path = "common/harness.rs"]
mod harness;

use harness::{Launch, Message, Raw, Server, eventually, frame, hello, reseal, reseal_frame, scratch};
use ringmq_protocol::{
    CreateTopic, Credit, DescribeTopic, ErrorCode, Fetch, HEADER_SIZE, Hello, ListOffsets, Metadata,
    NamesBuf, OffsetSpec, Open, Request, Response, Subscribe, limits,
};
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The healthy clients fill the tail cache meanwhile, which is part of the server's memory budget: that is the bound.
const LEFT_BEHIND_MAX: u64 = 256 << 20;

fn server() -> Option<(tempfile::TempDir, Server)> {
    let dir = scratch();
    let server = Launch::new(&dir.path().join("data")).ready()?;
    Some((dir, server))
}

fn encoded(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(7, &mut bytes);
    bytes
}

fn open(handle: u32, topic: &str, partition: u32) -> Request<'_> {
    Request::Open(Open { handle, topic, partition })
}

fn fetch(handle: u32, offset: u64) -> Request<'static> {
    Request::Fetch(Fetch { handle, offset, max_bytes: 1 << 20, max_wait_ms: 0, group: 0 })
}

/// One answer of correlation 0 and operation 0 with this error, then the end.
fn refused_and_closed(raw: &mut Raw, code: ErrorCode) {
    let answer = raw.next().unwrap_or_else(|| panic!("closed without {code:?}"));
    assert_eq!(answer.error(), Some(code), "{:?}", answer.response());
    assert_eq!(answer.header.correlation(), 0, "{code:?}");
    assert_eq!(answer.header.op, 0, "operation of {code:?}");
    raw.closed();
}

fn is_healthy(raw: &mut Raw, handle: u32, count: &mut u64) {
    let frames: Vec<_> = (0..4).map(|n| frame(&[format!("record {}", *count + n).as_bytes()])).collect();
    let slots: Vec<_> = frames.iter().map(|frame| (handle, &frame[..])).collect();
    for outcome in raw.produce(&slots).outcomes() {
        assert!(outcome.is_stored(), "{outcome:?}");
        assert_eq!(outcome.base_offset.get(), *count);
        *count += 1;
    }
    let answer = raw.ask(&fetch(handle, *count - 1));
    assert!(String::from_utf8_lossy(&answer.frames).contains(&format!("record {}", *count - 1)));
}

#[test]
fn bad_input_costs_nothing() {
    let Some((_dir, mut server)) = server() else { return };
    let mut admin = Raw::greeted(server.address);
    admin.create("t", 2);
    admin.create("storm", 2);
    let partition = admin.open(1, "t", 0).partition;
    let stop = AtomicBool::new(false);
    // Warm: what the server keeps for good is there before it is measured.
    for _ in 0..20 {
        drop(Raw::greeted(server.address));
    }
    eventually("the first clients are gone", || server.metric("ringmq_connections_open") == 1.0);
    let (resident, sockets) = (server.resident(), server.sockets());

    std::thread::scope(|scope| {
        let (stop, server) = (&stop, &server);
        let healthy: Vec<_> = [server.address, server.shard(0), server.shard(1)]
            .into_iter()
            .map(|address| {
                let topic = format!("healthy-{}", address.port());
                scope.spawn(move || {
                    let mut raw = Raw::greeted(address);
                    raw.create(&topic, 2);
                    raw.open(1, &topic, 0);
                    raw.open(2, &topic, 1);
                    let (mut first, mut second) = (0, 0);
                    while !stop.load(Ordering::Relaxed) {
                        is_healthy(&mut raw, 1, &mut first);
                        is_healthy(&mut raw, 2, &mut second);
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    first
                })
            })
            .collect();
        let hostile: Vec<_> = [
            ("slow greeting", slow_greeting as fn(&Server)),
            ("garbage", garbage),
            ("half messages", half_messages),
            ("lengths", impossible_headers),
            ("greetings", greetings),
            ("names", hostile_names),
            ("handles and offsets", handles_and_offsets),
            ("storm", storm),
        ]
        .into_iter()
        .map(|(name, attack)| {
            (
                name,
                std::thread::Builder::new()
                    .name(name.into())
                    .spawn_scoped(scope, move || attack(server))
                    .unwrap(),
            )
        })
        .collect();
        let failed: Vec<_> =
            hostile.into_iter().filter_map(|(name, attack)| attack.join().is_err().then_some(name)).collect();
        stop.store(true, Ordering::Relaxed);
        for healthy in healthy {
            assert!(healthy.join().unwrap() > 0, "a healthy client did nothing");
        }
        assert!(failed.is_empty(), "{failed:?}");
    });

    assert!(server.is_running());
    admin.lives();
    assert_eq!(admin.open(1, "t", 0).partition, partition);
    let open = || server.metric("ringmq_connections_open");
    eventually("every connection but one is closed", || open() == 1.0);
    eventually("no socket is left behind", || server.sockets() <= sockets);
    let now = server.resident();
    println!("resident {} MiB before, {} MiB after", resident >> 20, now >> 20);
    assert!(now < resident + LEFT_BEHIND_MAX, "{} MiB left behind", (now - resident) >> 20);
    server.stop_cleanly();
}

fn garbage(server: &Server) {
    for address in [server.address, server.shard(1)] {
        for fresh in [true, false] {
            let dial = || if fresh { Raw::dial(address) } else { Raw::greeted(address) };
            let mut raw = dial();
            raw.send(&[0xa5; HEADER_SIZE]);
            refused_and_closed(&mut raw, ErrorCode::HeaderCrc);
            let mut raw = dial();
            raw.send(b"GET / HTTP/1.1\r\nHost: a.b\r\n\r\n....");
            refused_and_closed(&mut raw, ErrorCode::HeaderCrc);
            let mut raw = dial();
            raw.send(&[0; HEADER_SIZE]);
            refused_and_closed(&mut raw, ErrorCode::HeaderCrc);
            // More than is taken in: the end may come as a reset, before or behind the answer.
            let mut raw = dial();
            let _ = raw.stream.write_all(&vec![0x5a; 4 << 20]);
            while raw.next().is_some() {}
            // A good message whose checksum has one wrong bit.
            let mut raw = dial();
            let mut message = encoded(&hello());
            message[31] ^= 0x80;
            raw.send(&message);
            refused_and_closed(&mut raw, ErrorCode::HeaderCrc);
        }
    }
}

fn half_messages(server: &Server) {
    let message = encoded(&open(9, "t", 0));
    for cut in [1, 4, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 1, message.len() - 1] {
        for fresh in [true, false] {
            let mut raw = if fresh { Raw::dial(server.address) } else { Raw::greeted(server.address) };
            let whole = if fresh { encoded(&hello()) } else { message.clone() };
            raw.send(&whole[..cut.min(whole.len() - 1)]);
            raw.stream.shutdown(Shutdown::Write).unwrap();
            raw.closed();
        }
    }
    // A whole message byte by byte is a message.
    let mut raw = Raw::dial(server.address);
    for byte in encoded(&hello()) {
        raw.send(&[byte]);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(raw.next().unwrap().response(), Response::Hello(_)));
    // A client that only finished sending gets its answers.
    raw.tell(&open(1, "t", 1));
    let ping = raw.tell(&Request::Ping);
    raw.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(raw.answer(ping).response(), Response::Pong);
}

/// HELLO with bytes of its header changed, sealed again.
fn changed(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut message = encoded(&Request::Ping);
    change(&mut message);
    reseal(&mut message);
    message
}

fn impossible_headers(server: &Server) {
    for fresh in [true, false] {
        let greet = || if fresh { Raw::dial(server.address) } else { Raw::greeted(server.address) };
        let longest = if fresh { limits::PRE_HELLO_SIZE_MAX } else { limits::REQUEST_SIZE_MAX } as u32;
        for len in [longest + 1, 1 << 30, u32::MAX] {
            let mut raw = greet();
            raw.send(&changed(|header| header[..4].copy_from_slice(&len.to_le_bytes())));
            refused_and_closed(&mut raw, ErrorCode::RequestTooLarge);
        }
        for aux in [1, u32::MAX] {
            let mut raw = greet();
            raw.send(&changed(|header| header[20..24].copy_from_slice(&aux.to_le_bytes())));
            refused_and_closed(&mut raw, ErrorCode::MalformedRequest);
        }
        let mut raw = greet();
        raw.send(&changed(|header| header[4] = 9));
        refused_and_closed(&mut raw, ErrorCode::UnsupportedVersion);
        let mut raw = greet();
        raw.send(&changed(|header| header[7] = 0x80));
        refused_and_closed(&mut raw, ErrorCode::MalformedRequest);
    }
    let mut raw = Raw::greeted(server.address);
    let too_long_fields = limits::FIELDS_SIZE_MAX as u32 + 1;
    raw.send(&changed(|header| {
        header[..4].copy_from_slice(&too_long_fields.to_le_bytes());
        header[20..24].copy_from_slice(&too_long_fields.to_le_bytes());
    }));
    refused_and_closed(&mut raw, ErrorCode::MalformedRequest);

    // Wrong in itself only: answered, and the connection lives.
    let mut raw = Raw::greeted(server.address);
    let alone = |raw: &mut Raw, message: &[u8], code: ErrorCode| {
        raw.send(message);
        let answer = raw.answer(7);
        assert_eq!(answer.error(), Some(code), "{:?}", answer.response());
        raw.lives();
    };
    // Correlations of `lives` count up from 1 and must not meet that of the messages made here.
    (0..7).for_each(|_| raw.lives());
    let mut message = encoded(&open(1, "t", 0));
    message[24] ^= 1;
    let crc = ringmq_format::checksum::crc32c(&message[..28]);
    message[28..32].copy_from_slice(&crc.to_le_bytes());
    alone(&mut raw, &message, ErrorCode::PayloadCrc);
    let mut message = encoded(&open(1, "t", 0));
    message[HEADER_SIZE + 9] ^= 1;
    alone(&mut raw, &message, ErrorCode::PayloadCrc);
    for op in [0, 40, 99, 255] {
        alone(&mut raw, &changed(|header| header[5] = op), ErrorCode::UnknownOp);
    }
    for flags in [1, 2, 3] {
        alone(&mut raw, &changed(|header| header[6] = flags), ErrorCode::MalformedRequest);
    }
    for op in [14, 16] {
        alone(&mut raw, &changed(|header| header[5] = op), ErrorCode::MalformedRequest);
    }
    // PRODUCE without a frame, with one too many, with lengths that do not add up, with reserved bytes set.
    let mut produce = changed(|_| {});
    produce[5] = 9;
    let with_fields = |fields: &[u8], frames: usize| {
        let mut message = produce[..HEADER_SIZE].to_vec();
        message[..4].copy_from_slice(&((fields.len() + frames) as u32).to_le_bytes());
        message[20..24].copy_from_slice(&(fields.len() as u32).to_le_bytes());
        message.extend_from_slice(fields);
        message.resize(message.len() + frames, 0);
        reseal(&mut message);
        message
    };
    alone(&mut raw, &with_fields(&[0; 8], 0), ErrorCode::MalformedRequest);
    let mut fields = vec![0; 8 + 8 * (limits::PRODUCE_FRAMES_MAX + 1)];
    fields[..4].copy_from_slice(&(limits::PRODUCE_FRAMES_MAX as u32 + 1).to_le_bytes());
    alone(&mut raw, &with_fields(&fields, 0), ErrorCode::MalformedRequest);
    for (len, frames) in [(64, 72), (72, 64), (60, 60), (0, 0), (u32::MAX - 7, 64), (8, 8)] {
        let mut fields = [0; 16];
        fields[0] = 1;
        fields[12..].copy_from_slice(&u32::to_le_bytes(len));
        let code = if len > 4 << 20 { ErrorCode::FrameTooLarge } else { ErrorCode::MalformedRequest };
        alone(&mut raw, &with_fields(&fields, frames), code);
    }
}

fn greetings(server: &Server) {
    let last_and_closed = |raw: &mut Raw, request: &Request<'_>, code| {
        let correlation = raw.tell(request);
        assert_eq!(raw.answer(correlation).error(), Some(code), "{request:?}");
        raw.closed();
    };
    for request in [Request::Ping, open(1, "t", 0), fetch(1, 0), Request::DeleteTopic("t")] {
        last_and_closed(&mut Raw::dial(server.address), &request, ErrorCode::HelloRequired);
    }
    let mut raw = Raw::dial(server.address);
    let bytes = frame(&[b"nobody"]);
    let correlation = raw.tell_produce(&[(1, &bytes)]);
    assert_eq!(raw.answer(correlation).error(), Some(ErrorCode::HelloRequired));
    raw.closed();
    let future = Request::Hello(Hello { version_min: 7, version_max: 9, name: "future" });
    last_and_closed(&mut Raw::dial(server.address), &future, ErrorCode::UnsupportedVersion);
    let mut raw = Raw::dial(server.address);
    let wide = Request::Hello(Hello { version_min: 1, version_max: 200, name: "wide" });
    assert!(matches!(raw.ask(&wide).response(), Response::Hello(_)));
    assert_eq!(raw.error(&hello()), ErrorCode::HelloTwice);
    raw.lives();
}

fn hostile_names(server: &Server) {
    let long = "x".repeat(128);
    let longer = "y".repeat(limits::NAME_STRING_MAX);
    for address in [server.address, server.shard(1)] {
        let mut raw = Raw::greeted(address);
        let names = [
            "",
            ".",
            "..",
            "/",
            "../x",
            "a/b",
            "/etc/passwd",
            "a\0b",
            "a\nb",
            "\x1b[31mred\x1b[0m",
            "a b",
            "ä",
            "\u{202e}",
            "*",
            &long,
            &longer,
        ];
        for name in names {
            let create = CreateTopic { name, partitions: 1, if_not_exists: true };
            assert_eq!(raw.error(&Request::CreateTopic(create)), ErrorCode::InvalidTopicName, "{name:?}");
            let buf = NamesBuf::from_iter([name]);
            let answer = raw.ask(&Request::Metadata(Metadata { names: buf.names(), auto_create: true }));
            let Response::Metadata(found) = answer.response() else { panic!("{:?}", answer.response()) };
            assert_eq!(found.iter().next().unwrap().code, ErrorCode::InvalidTopicName as u16, "{name:?}");
            for request in [
                open(1, name, 0),
                Request::DeleteTopic(name),
                Request::DescribeTopic(DescribeTopic { name, first_partition: 0, limit: 0 }),
            ] {
                let code = raw.error(&request);
                let clear = [ErrorCode::UnknownTopic, ErrorCode::InvalidTopicName].contains(&code);
                assert!(clear, "{name:?} {request:?}: {code:?}");
            }
        }
        // 300 bytes, and bytes that are no UTF-8, are no strings of the wire.
        for name in [vec![b'z'; 300], vec![0xff, 0xfe], b"\xc3\x28".to_vec()] {
            (0..9).for_each(|_| raw.lives());
            let mut message = encoded(&open(1, "", 0));
            message.truncate(HEADER_SIZE + 8);
            message.extend_from_slice(&(name.len() as u16).to_le_bytes());
            message.extend_from_slice(&name);
            let len = (message.len() - HEADER_SIZE) as u32;
            message[..4].copy_from_slice(&len.to_le_bytes());
            message[20..24].copy_from_slice(&len.to_le_bytes());
            reseal(&mut message);
            raw.send(&message);
            assert_eq!(raw.answer(7).error(), Some(ErrorCode::MalformedRequest));
            raw.lives();
        }
        assert_eq!(raw.error(&open(1, "nobody-made-it", 0)), ErrorCode::UnknownTopic);
        assert_eq!(raw.error(&Request::DeleteTopic("nobody-made-it")), ErrorCode::UnknownTopic);
        for partition in [2, 65_536, u32::MAX] {
            assert_eq!(raw.error(&open(1, "t", partition)), ErrorCode::UnknownPartition);
            let describe = DescribeTopic { name: "t", first_partition: partition, limit: 0 };
            assert_eq!(raw.error(&Request::DescribeTopic(describe)), ErrorCode::UnknownPartition);
        }
        for partitions in [0, 65_537, u32::MAX] {
            assert_eq!(raw.create("impossible", partitions).error(), Some(ErrorCode::InvalidPartitions));
        }
        assert_eq!(raw.create("t", 2).error(), Some(ErrorCode::TopicExists));
    }
}

fn handles_and_offsets(server: &Server) {
    for address in [server.shard(0), server.shard(1)] {
        let mut raw = Raw::greeted(address);
        let (good, latest) = (frame(&[b"one"]), ListOffsets { handle: 5, what: OffsetSpec::Latest });
        let subscribe = |handle, subscription, offset| {
            Request::Subscribe(Subscribe { handle, subscription, offset, credit: 1 << 20, group: 0 })
        };
        assert_eq!(raw.error(&fetch(5, 0)), ErrorCode::UnknownHandle);
        assert_eq!(raw.error(&Request::ListOffsets(latest)), ErrorCode::UnknownHandle);
        assert_eq!(raw.error(&subscribe(5, 1, 0)), ErrorCode::UnknownHandle);
        assert_eq!(raw.error(&Request::Unsubscribe(5)), ErrorCode::UnknownSubscription);
        assert_eq!(raw.error(&open(0, "t", 0)), ErrorCode::MalformedRequest);
        raw.tell(&Request::Credit(Credit { subscription: 5, bytes: u64::MAX }));
        raw.lives();
        assert_eq!(outcome(&raw.produce(&[(5, &good)])), Some(ErrorCode::UnknownHandle));

        raw.open(1, "t", 0);
        raw.open(2, "t", 1);
        raw.open(1, "t", 0);
        assert_eq!(raw.error(&open(1, "t", 1)), ErrorCode::HandleInUse);
        for handle in [1, 2] {
            let end = raw.open(handle, "t", handle - 1).bounds.visible_end;
            bad_frames(&mut raw, handle, &good);
            assert_eq!(raw.open(handle, "t", handle - 1).bounds.visible_end, end, "nothing bad was stored");
            for offset in [end + 1, u64::MAX / 2, u64::MAX] {
                assert_eq!(raw.error(&fetch(handle, offset)), ErrorCode::OffsetOutOfRange, "{offset}");
                let correlation = raw.tell(&subscribe(handle, 9, offset));
                // Either answer is allowed; an error must come, now or as the end of the subscription.
                let answer = raw.answer(correlation);
                let code = answer.error().or_else(|| raw.next().unwrap().error());
                assert_eq!(code, Some(ErrorCode::OffsetOutOfRange), "{offset}");
                raw.lives();
            }
            for time in [i64::MIN, -1, 0, i64::MAX] {
                let list = ListOffsets { handle, what: OffsetSpec::Time(time) };
                let answer = raw.ask(&Request::ListOffsets(list));
                assert!(matches!(answer.response(), Response::ListedOffset(_)), "{:?}", answer.response());
            }
            assert!(matches!(raw.ask(&subscribe(handle, 3, end)).response(), Response::Subscribed(_)));
            assert_eq!(raw.error(&subscribe(handle, 3, end)), ErrorCode::SubscriptionInUse);
            assert_eq!(raw.error(&subscribe(handle, 0, end)), ErrorCode::MalformedRequest);
            for _ in 0..3 {
                raw.tell(&Request::Credit(Credit { subscription: 3, bytes: u64::MAX }));
            }
            assert_eq!(raw.ask(&Request::Unsubscribe(3)).response(), Response::Unsubscribed);
        }
        // What cannot be: no bytes, and the longest wait, dropped with the connection.
        let empty = Fetch { handle: 1, offset: 0, max_bytes: 0, max_wait_ms: 0, group: 0 };
        assert!(matches!(raw.ask(&Request::Fetch(empty)).response(), Response::Fetched(_)));
        let end = raw.open(1, "t", 0).bounds.visible_end;
        let forever = Fetch { handle: 1, offset: end, max_bytes: u32::MAX, max_wait_ms: u32::MAX, group: 0 };
        for _ in 0..300 {
            raw.tell(&Request::Fetch(forever));
        }
        raw.lives();
        too_many_handles(address);
    }
}

/// The code with which the only frame of a PRODUCE was refused; none if it was stored.
fn outcome(answer: &Message) -> Option<ErrorCode> {
    let outcomes = answer.outcomes();
    assert_eq!(outcomes.len(), 1);
    ErrorCode::parse(outcomes[0].code.get())
}

/// Frames of which one thing is wrong.
fn bad_frames(raw: &mut Raw, handle: u32, good: &[u8]) {
    let mut wrong = Vec::new();
    let mut refuse = |what: &str, frame: &[u8], code| {
        let found = outcome(&raw.produce(&[(handle, frame)]));
        if found != Some(code) {
            wrong.push(format!("{what}: {found:?}, not {code:?}"));
        }
    };
    let last = good.len() - 1;
    let changed = |at: usize, byte: u8| {
        let mut frame = good.to_vec();
        frame[at] = byte;
        frame
    };
    refuse("payload checksum", &changed(last, 0xee), ErrorCode::FrameInvalid);
    refuse("header checksum", &changed(61, !good[61]), ErrorCode::FrameInvalid);
    refuse("zeros", &[0; 64], ErrorCode::FrameInvalid);
    let sealed = |what: &str, at: usize, bytes: &[u8]| {
        let mut frame = good.to_vec();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        reseal_frame(&mut frame);
        (what.to_owned(), frame)
    };
    // Offsets of the fields: FORMAT.md, frame.
    for (what, frame) in [
        sealed("an offset", 8, &7u64.to_le_bytes()),
        sealed("a partition", 16, &7u32.to_le_bytes()),
        sealed("a time", 40, &7i64.to_le_bytes()),
        sealed("no record", 20, &0u32.to_le_bytes()),
        sealed("too many records", 20, &u32::MAX.to_le_bytes()),
        sealed("records that are not there", 20, &60_000u32.to_le_bytes()),
        sealed("a record table of junk", 64, &[0xff; 16]),
    ] {
        refuse(&what, &frame, ErrorCode::FrameInvalid);
    }
    let mut longer = good.to_vec();
    longer.extend_from_slice(&[0; 8]);
    refuse("a slot longer than its frame", &longer, ErrorCode::FrameInvalid);
    let large = frame(&[&vec![b'x'; (2 << 20) + 1]]);
    refuse("a frame above HELLO's limit", &large, ErrorCode::FrameTooLarge);
    assert!(wrong.is_empty(), "handle {handle}: {wrong:#?}");
    raw.lives();
}

fn too_many_handles(address: SocketAddr) {
    let mut raw = Raw::greeted(address);
    let mut last = 0;
    for handle in 1..=limits::HANDLES_MAX as u32 {
        last = raw.tell(&open(handle, "t", handle % 2));
        if handle % 1024 == 0 {
            assert!(raw.answer(last).error().is_none());
        }
    }
    assert!(last > 0);
    let above = limits::HANDLES_MAX as u32 + 1;
    assert_eq!(raw.error(&open(above, "t", 0)), ErrorCode::TooManyHandles);
    raw.open(1, "t", 1);
    raw.lives();
}

/// Greetings that never come, or come too slowly.
fn slow_greeting(server: &Server) {
    let mut silent: Vec<_> = (0..50).map(|_| Raw::dial(server.address)).collect();
    let mut dribbling: Vec<_> = (0..10).map(|_| Raw::dial(server.shard(1))).collect();
    let message = encoded(&hello());
    let late = std::time::Instant::now();
    // Until the server has closed them; it does that after 5 s, and the test does not mind how much later.
    for byte in message.iter().chain(std::iter::repeat(&0)) {
        let mut open = 0;
        for raw in &mut dribbling {
            open += usize::from(raw.stream.write_all(&[*byte]).is_ok());
        }
        if open == 0 {
            break;
        }
        assert!(late.elapsed() < harness::HUNG, "{open} slow connections are still open");
        std::thread::sleep(Duration::from_millis(250));
    }
    for raw in &mut silent {
        let answer = raw.next().unwrap_or_else(|| panic!("closed without a word"));
        assert_eq!(answer.error(), Some(ErrorCode::HelloRequired));
        raw.closed();
    }
}

/// Connections that come and go in every way.
fn storm(server: &Server) {
    for round in 0..200 {
        let address = if round % 2 == 0 { server.address } else { server.shard(1) };
        let mut stream = TcpStream::connect(address).unwrap();
        match round % 5 {
            0 => {}
            1 => stream.write_all(&encoded(&hello())).unwrap(),
            2 => {
                stream.write_all(&encoded(&hello())).unwrap();
                // A reset instead of an end.
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            }
            3 => stream.write_all(&[0xee; 100]).unwrap(),
            _ => {
                let mut raw = Raw::greeted(address);
                raw.tell(&open(1, "storm", round % 2));
                let subscribe =
                    Subscribe { handle: 1, subscription: 1, offset: 0, credit: 1 << 30, group: 0 };
                raw.tell(&Request::Subscribe(subscribe));
                let record = frame(&[&[b's'; 1000]]);
                raw.tell_produce(&[(1, &record), (1, &record)]);
            }
        }
    }
}

/// A client that asks for much and takes nothing: what it asked for must not pile up.
#[test]
fn answers_that_nobody_takes_do_not_pile_up() {
    const ASKED: usize = 240;
    let Some((_dir, server)) = server() else { return };
    let mut raw = Raw::greeted(server.address);
    raw.create("t", 2);
    for partition in [0, 1] {
        raw.open(partition + 1, "t", partition);
        let record = frame(&[&vec![b'x'; 1 << 20]]);
        for _ in 0..8 {
            assert!(raw.produce(&[(partition + 1, &record)]).outcomes()[0].is_stored());
        }
    }
    for handle in [1, 2] {
        let before = server.resident();
        let mut greedy = Raw::greeted(server.shard(0));
        let forwarded = !greedy.open(handle, "t", handle - 1).partition.0.is_multiple_of(2);
        let all = Fetch { handle, offset: 0, max_bytes: 16 << 20, max_wait_ms: 0, group: 0 };
        let asked: Vec<_> = (0..ASKED).map(|_| greedy.tell(&Request::Fetch(all))).collect();
        let mut peak = before;
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(50));
            peak = peak.max(server.resident());
        }
        println!("forwarded {forwarded}: {} MiB, {} MiB asked for", (peak - before) >> 20, ASKED * 8);
        for correlation in asked {
            let answer = greedy.answer(correlation);
            assert!(matches!(answer.response(), Response::Fetched(_)), "{:?}", answer.response());
        }
        greedy.lives();
        assert!(peak < before + (256 << 20), "{} MiB for one connection", (peak - before) >> 20);
    }
    server.stop_cleanly();
}
