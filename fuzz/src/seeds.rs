//! Where the corpora start: one small valid input for each shape, and a few that are nearly valid. They come out
//! the same every time; `cargo run --example seeds` writes them, a test holds that they are the committed ones.

use crate::SEGMENT;
use ringmq_format::frame::Codec;
use ringmq_format::group::{BodyCrc, GroupFields, GroupHeader, GroupKind, encode_empty, group_size};
use ringmq_format::limits::{BLOCK_SIZE, GROUP_HEADER_SIZE, SEGMENT_HEADER_SIZE};
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_format::{Lsn, PartitionId, ProducerId, TopicId};
use ringmq_protocol::{
    Bounds, CreateTopic, Credit, DescribeTopic, DescribedTopic, ErrorBody, ErrorCode, Fetch,
    FetchEntryHeader, FetchFields, Goodbye, Hello, HelloAnswer, ListOffsets, ListTopics, ListedOffset,
    Metadata, NamesBuf, OffsetSpec, Op, Open, Opened, PartitionEntry, Produce, ProduceOutcome, ProduceSlot,
    Request, Response, Subscribe, TopicEntriesBuf, TopicEntry, TopicPage, fetch,
};

/// One input of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The fuzz target.
    pub target: &'static str,
    /// Name of the file.
    pub name: String,
    /// Its bytes, as the target says.
    pub bytes: Vec<u8>,
}

/// All of them.
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, repair: u8, bytes: &[u8]| {
        let bytes = [&[repair], bytes].concat();
        seeds.push(Seed { target, name: name.to_owned(), bytes });
    };
    for (name, bytes) in frames() {
        add("frame_parse", &name, 0, &bytes);
        add("frame_parse", &format!("{name}_repaired"), 1, &bytes);
    }
    let (_, one) = frames().swap_remove(1);
    add("frame_parse", "payload_only", 2, &[&[1, 0], &one[64..]].concat());
    add("frame_parse", "cut", 0, &one[..one.len() - 9]);
    for (name, bytes) in requests().into_iter().chain(responses()) {
        add("protocol_decode", &name, 0, &bytes);
    }
    let stream: Vec<u8> = requests().into_iter().take(6).flat_map(|request| request.1).collect();
    add("protocol_decode", "stream", 1, &stream);
    add("protocol_decode", "stream_as_one", 2, &stream);
    add("protocol_decode", "half_header", 0, &stream[..20]);
    let (groups, chunks) = groups();
    add("segment_scan", "groups", 0, &chunks);
    add("segment_scan", "groups_repaired", 1, &chunks);
    add("segment_scan", "groups_cut", 0, &chunks[..chunks.len() - 40]);
    for (index, group) in groups.iter().enumerate() {
        add("segment_scan", &format!("group_{index}_in_first_place"), 0, group);
        add("segment_scan", &format!("group_{index}_as_one_block"), 2, group);
    }
    for (name, bytes) in crate::tools::seeds(&groups.iter().map(|group| &group[2..]).collect::<Vec<_>>()) {
        seeds.push(Seed { target: "segment_tools", name, bytes });
    }
    let (frames, requests, responses) = (frames(), requests(), responses());
    let others = [
        crate::text::seeds(),
        crate::batch::seeds(&frames),
        crate::files::seeds(),
        crate::open::seeds(),
        crate::session::seeds(&requests),
        crate::client::seeds(&responses),
    ];
    for (target, name, bytes) in others.into_iter().flatten() {
        seeds.push(Seed { target, name, bytes });
    }
    let mut add = |target, name: &str, repair: u8, bytes: &[u8]| {
        let bytes = [&[repair], bytes].concat();
        seeds.push(Seed { target, name: name.to_owned(), bytes });
    };
    // The first group is torn, the second one is its witness.
    let mut torn = chunks.clone();
    torn[120] ^= 1;
    add("segment_scan", "torn_with_witness", 0, &torn);
    // A hole where the second group should be.
    add("segment_scan", "hole", 0, &[&groups[0][..], &[1, 0, 0], &groups[1], &groups[2]].concat());
    seeds
}

/// Groups of one segment, as chunks of [`crate::segment_scan`], one by one and all.
fn groups() -> (Vec<Vec<u8>>, Vec<u8>) {
    let start = SEGMENT.base.plus(SEGMENT_HEADER_SIZE as u64);
    let (mut lsn, mut durable_lsn, mut chain) = (start, start, SEGMENT.previous_chain);
    let frames: Vec<Vec<u8>> = frames().into_iter().map(|frame| frame.1).collect();
    let mut chunks = Vec::new();
    for index in 0..4 {
        let frames = match index {
            0 => vec![&frames[1], &frames[2]],
            1 => vec![&frames[3]],
            2 => vec![],
            _ => vec![&frames[4], &frames[0]],
        };
        let mut fields = GroupFields {
            segment_seq: SEGMENT.seq,
            lsn,
            durable_lsn,
            used: GROUP_HEADER_SIZE,
            total: BLOCK_SIZE,
            frames: 0,
            body_crc: 0,
            chain,
            epoch: SEGMENT.epoch,
            kind: if frames.is_empty() { GroupKind::Heartbeat } else { GroupKind::Data },
        };
        let mut bytes = vec![0; BLOCK_SIZE];
        let header = if frames.is_empty() {
            encode_empty(&fields, SEGMENT.incarnation, &mut bytes)
        } else {
            let body: Vec<u8> = frames.into_iter().flatten().copied().collect();
            let mut crc = BodyCrc::new(SEGMENT.incarnation);
            for frame in ringmq_format::frame::frames(&body).flatten() {
                crc.add(frame.header);
                fields.frames += 1;
            }
            fields.used += body.len();
            fields.total = group_size(body.len());
            fields.body_crc = crc.finish();
            bytes[GROUP_HEADER_SIZE..fields.used].copy_from_slice(&body);
            GroupHeader::new(&fields, SEGMENT.incarnation)
        };
        bytes[..GROUP_HEADER_SIZE].copy_from_slice(&group_header_bytes(&header));
        bytes.truncate(header.used());
        chunks.push([&(bytes.len() as u16).to_le_bytes(), &bytes[..]].concat());
        durable_lsn = lsn;
        lsn = Lsn(lsn.get() + header.total() as u64);
        chain = header.next_chain();
    }
    let all = chunks.concat();
    (chunks, all)
}

fn group_header_bytes(header: &GroupHeader) -> [u8; GROUP_HEADER_SIZE] {
    use zerocopy::IntoBytes;
    let mut bytes = [0; GROUP_HEADER_SIZE];
    bytes.copy_from_slice(header.as_bytes());
    bytes
}

fn frames() -> Vec<(String, Vec<u8>)> {
    let record = |body: &'static [u8]| Record { time_ms: 1_700_000_000_007, body, ..Record::default() };
    let rich = Record {
        key: Some(b"key"),
        tag: Some(b"tag"),
        properties: &[(b"name", b"value"), (b"", b"")],
        ..record(b"body")
    };
    let producer = ProducerStamp { id: ProducerId(7), epoch: 1, base_sequence: 3 };
    let build = |records: &[Record<'_>], blocks: bool, codec: Codec| {
        let mut builder = FrameBuilder::new(1_700_000_000_000, 1 << 16);
        if blocks {
            builder = builder.block_per_record();
        }
        for record in records {
            // Small records always fit; a seed without its record would show as changed.
            let _ = builder.push(record);
        }
        builder.finish(producer, codec, &mut |raw| Some(raw[..raw.len() / 2].to_vec()))
    };
    let named = |name: &str, bytes| (name.to_owned(), bytes);
    let two = build(&[rich, record(b"")], false, Codec::None);
    vec![
        named("empty", build(&[], false, Codec::None)),
        named("one", build(&[record(b"hello")], false, Codec::None)),
        named("blocks", build(&[rich, record(b"second"), record(b"third")], true, Codec::None)),
        named("compressed", build(&[record(&[7; 64]), rich], false, Codec::Lz4)),
        named("several", [two.clone(), build(&[rich], false, Codec::None), two].concat()),
    ]
}

fn requests() -> Vec<(String, Vec<u8>)> {
    let names = NamesBuf::from_iter(["orders", "", "a topic with spaces"]);
    let frames: Vec<Vec<u8>> = frames().into_iter().skip(1).take(2).map(|frame| frame.1).collect();
    let slots: Vec<ProduceSlot> = frames
        .iter()
        .zip(1u32..)
        .map(|(frame, handle)| ProduceSlot { handle: handle.into(), len: (frame.len() as u32).into() })
        .collect();
    let list = |what| Request::ListOffsets(ListOffsets { handle: 3, what });
    let requests = [
        ("hello", Request::Hello(Hello { version_min: 1, version_max: 1, name: "fuzz" })),
        ("ping", Request::Ping),
        ("metadata", Request::Metadata(Metadata { names: names.names(), auto_create: true })),
        ("create", Request::CreateTopic(CreateTopic { name: "orders", partitions: 4, if_not_exists: true })),
        ("open", Request::Open(Open { handle: 3, topic: "orders", partition: 2 })),
        (
            "fetch",
            Request::Fetch(Fetch { handle: 3, offset: 9, max_bytes: 4096, max_wait_ms: 100, group: 0 }),
        ),
        ("delete", Request::DeleteTopic("orders")),
        ("describe", Request::DescribeTopic(DescribeTopic { name: "orders", first_partition: 0, limit: 5 })),
        ("list", Request::ListTopics(ListTopics { after: "orders", limit: 0 })),
        (
            "subscribe",
            Request::Subscribe(Subscribe {
                handle: 3,
                subscription: 4,
                offset: 0,
                credit: 1 << 20,
                group: 0,
            }),
        ),
        ("credit", Request::Credit(Credit { subscription: 4, bytes: 512 })),
        ("unsubscribe", Request::Unsubscribe(4)),
        ("offsets_earliest", list(OffsetSpec::Earliest)),
        ("offsets_latest", list(OffsetSpec::Latest)),
        ("offsets_time", list(OffsetSpec::Time(-5))),
        ("produce", Request::Produce(Produce { slots: &slots })),
    ];
    requests
        .iter()
        .map(|(name, request)| {
            let mut bytes = Vec::new();
            request.encode(11, &mut bytes);
            if matches!(request, Request::Produce(_)) {
                frames.iter().for_each(|frame| bytes.extend_from_slice(frame));
            }
            (format!("request_{name}"), bytes)
        })
        .collect()
}

fn responses() -> Vec<(String, Vec<u8>)> {
    let topic = TopicEntry {
        code: 0,
        topic: TopicId(2),
        base_partition: PartitionId(5),
        partitions: 2,
        name: "orders",
    };
    let mut topics = TopicEntriesBuf::default();
    topics.push(&topic);
    topics.push(&TopicEntry { code: ErrorCode::UnknownTopic as u16, partitions: 0, ..topic });
    let partitions = [
        PartitionEntry::default(),
        PartitionEntry { log_start: 1.into(), visible_end: 5.into(), bytes: 900.into() },
    ];
    let bounds = Bounds { log_start: 3, visible_end: 8 };
    let outcomes = [ProduceOutcome::stored(5, 99, true), ProduceOutcome::failed(ErrorCode::DiskFull, 250)];
    let hello = HelloAnswer {
        version: 1,
        shard: 0,
        shard_ports: &[7701.into(), 7702.into()],
        frame_size_max: 4 << 20,
        request_size_max: 16 << 20,
        server: "0.1.0",
        node: 1 << 100,
    };
    let described = DescribedTopic { topic, created_ms: 7, first_partition: 0, partitions: &partitions };
    let page = TopicPage { topics: topics.entries(), more: true };
    let responses = [
        ("hello", Response::Hello(hello)),
        ("pong", Response::Pong),
        ("metadata", Response::Metadata(topics.entries())),
        ("created", Response::Created(topic)),
        ("deleted", Response::Deleted),
        ("described", Response::Described(described)),
        ("listed", Response::Listed(page)),
        ("opened", Response::Opened(Opened { partition: PartitionId(6), bounds })),
        ("produced", Response::Produced(&outcomes)),
        ("subscribed", Response::Subscribed(bounds)),
        ("unsubscribed", Response::Unsubscribed),
        ("offset", Response::ListedOffset(ListedOffset { offset: 4, timestamp: -1 })),
        ("goodbye", Response::Goodbye(Goodbye { grace_ms: 5000 })),
    ];
    let mut all: Vec<(String, Vec<u8>)> = responses
        .iter()
        .map(|(name, response)| {
            let mut bytes = Vec::new();
            response.encode(11, 3, &mut bytes);
            (format!("response_{name}"), bytes)
        })
        .collect();
    for (name, op) in [("fetched", Op::Fetch), ("push", Op::Push)] {
        let mut bytes = Vec::new();
        let start = fetch::fetch_begin(&mut bytes);
        for (_, frame) in frames().iter().skip(1).take(2) {
            fetch::put_entry(&mut bytes, &FetchEntryHeader::new(9, 1_700_000_000_000, 0, 1));
            bytes.extend_from_slice(frame);
        }
        fetch::fetch_end(&mut bytes, start, op, 11, 3, &FetchFields::new(0, 12, 11), 0);
        all.push((format!("response_{name}"), bytes));
    }
    let mut bytes = Vec::new();
    let message = "no such topic; create it first";
    ErrorBody { code: 30, retry_after_ms: 0, message }.encode(Op::Open as u8, 11, 3, &mut bytes);
    all.push(("response_error".to_owned(), bytes));
    all
}
