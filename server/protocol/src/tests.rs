//! Every message survives the way there and back; no bytes make the codec panic.

use crate::*;
use proptest::prelude::*;
use ringmq_format::frame::{self, FrameKind};
use ringmq_format::{PartitionId, TopicId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{I64, U16, U32, U64};

fn request_roundtrip(request: Request<'_>) {
    let mut wire = vec![0xAA; 3];
    request.encode(77, &mut wire);
    let wire = &wire[3..];
    let header = Header::parse(wire, limits::REQUEST_SIZE_MAX).unwrap();
    assert_eq!(header.correlation(), 77);
    assert_eq!(wire.len() + header.frames_len(), header.message_len());
    assert_eq!(decode_request(header, &wire[HEADER_SIZE..]), Ok(request));
}

fn response_roundtrip(response: Response<'_>) {
    let mut wire = Vec::new();
    response.encode(78, 5, &mut wire);
    let header = Header::parse(&wire, limits::RESPONSE_SIZE_MAX).unwrap();
    assert_eq!((header.correlation(), header.handle(), wire.len()), (78, 5, header.message_len()));
    assert_eq!(decode_response(header, &wire[HEADER_SIZE..]), Ok(response));
}

fn name() -> impl Strategy<Value = String> {
    "[a-zé]{0,20}"
}

type OwnedTopic = (u16, u32, u32, u32, String);

fn topic() -> impl Strategy<Value = OwnedTopic> {
    (any::<u16>(), any::<u32>(), any::<u32>(), any::<u32>(), name())
}

fn entry(topic: &OwnedTopic) -> TopicEntry<'_> {
    TopicEntry {
        code: topic.0,
        topic: TopicId(topic.1),
        base_partition: PartitionId(topic.2),
        partitions: topic.3,
        name: &topic.4,
    }
}

proptest! {
    #[test]
    fn requests_survive(
        name in name(), names in proptest::collection::vec(name(), 0..20), a: u32, b in 1u32.., c: u64, d: u64,
        flag: bool, time: i64, low: u8, lens in proptest::collection::vec((any::<u32>(), 8u32..1000), 1..50),
    ) {
        let buf: NamesBuf = names.iter().map(String::as_str).collect();
        prop_assert_eq!(buf.names().iter().collect::<Vec<_>>(), names);
        let slots: Vec<_> =
            lens.iter().map(|(handle, len)| ProduceSlot { handle: U32::new(*handle), len: U32::new(len * 8) }).collect();
        for request in [
            Request::Hello(Hello { version_min: low, version_max: u8::MAX, name: &name }),
            Request::Ping,
            Request::Metadata(Metadata { names: buf.names(), auto_create: flag }),
            Request::CreateTopic(CreateTopic { name: &name, partitions: a, if_not_exists: flag }),
            Request::DeleteTopic(&name),
            Request::DescribeTopic(DescribeTopic { name: &name, first_partition: a, limit: b }),
            Request::ListTopics(ListTopics { after: &name, limit: a }),
            Request::Open(Open { handle: b, topic: &name, partition: a }),
            Request::Produce(Produce { slots: &slots }),
            Request::Fetch(Fetch { handle: a, offset: c, max_bytes: b, max_wait_ms: a }),
            Request::Subscribe(Subscribe { handle: a, subscription: b, offset: c, credit: d }),
            Request::Credit(Credit { subscription: a, bytes: c }),
            Request::Unsubscribe(a),
            Request::ListOffsets(ListOffsets { handle: a, what: OffsetSpec::Earliest }),
            Request::ListOffsets(ListOffsets { handle: a, what: OffsetSpec::Latest }),
            Request::ListOffsets(ListOffsets { handle: a, what: OffsetSpec::Time(time) }),
        ] {
            request_roundtrip(request);
        }
    }

    #[test]
    fn responses_survive(
        name in name(), topics in proptest::collection::vec(topic(), 0..20), a: u32, b: u16, c: u64, d: u64,
        flag: bool, time: i64, node: u128, ports in proptest::collection::vec(any::<u16>(), 0..64),
        numbers in proptest::collection::vec(any::<u64>(), 0..30),
    ) {
        let mut buf = TopicEntriesBuf::default();
        topics.iter().for_each(|topic| buf.push(&entry(topic)));
        prop_assert_eq!(buf.entries().iter().collect::<Vec<_>>(), topics.iter().map(entry).collect::<Vec<_>>());
        let ports: Vec<_> = ports.into_iter().map(U16::new).collect();
        let one = (b, a, a, a, name.clone());
        let partitions: Vec<_> = numbers
            .iter()
            .map(|n| PartitionEntry { log_start: U64::new(*n), visible_end: U64::new(d), bytes: U64::new(c) })
            .collect();
        let outcomes: Vec<_> = numbers.iter().map(|n| ProduceOutcome::stored(*n, time, flag)).collect();
        let bounds = Bounds { log_start: c, visible_end: d };
        for response in [
            Response::Error(ErrorBody { code: b, retry_after_ms: a, message: &name }),
            Response::Hello(HelloAnswer {
                version: 1, shard: b, shard_ports: &ports, frame_size_max: a, request_size_max: a, server: &name, node,
            }),
            Response::Pong,
            Response::Metadata(buf.entries()),
            Response::Created(entry(&one)),
            Response::Deleted,
            Response::Described(DescribedTopic {
                topic: entry(&one), created_ms: time, first_partition: a, partitions: &partitions,
            }),
            Response::Listed(TopicPage { topics: buf.entries(), more: flag }),
            Response::Opened(Opened { partition: PartitionId(a), bounds }),
            Response::Produced(&outcomes),
            Response::Fetched(FetchFields::new(c, d, c)),
            Response::Subscribed(bounds),
            Response::Unsubscribed,
            Response::Push(FetchFields::new(c, d, c)),
            Response::ListedOffset(ListedOffset { offset: c, timestamp: time }),
            Response::Goodbye(Goodbye { grace_ms: a }),
        ] {
            response_roundtrip(response);
        }
    }

    #[test]
    fn hostile_fields_never_panic(
        op: u8, flags in 0u16..4, handle: u32, frames in 0usize..10_000,
        fields in proptest::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..300),
    ) {
        let header = Header::new(op, Flags(flags), 1, handle, &fields, frames);
        let parsed = Header::parse(header.as_bytes(), limits::REQUEST_SIZE_MAX).unwrap();
        if let Err(refusal) = decode_request(parsed, &fields) {
            refusal.encode(parsed, &mut Vec::new());
        }
        let _ = decode_response(parsed, &fields);
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), len_max in 0usize..300) {
        let _ = Header::parse(&bytes, len_max);
        let _ = entries(&bytes).count();
        // With the checksum made good the other conditions are reached.
        if let Ok((mut header, _)) = <Header as zerocopy::FromBytes>::read_from_prefix(&bytes) {
            header.version = PROTOCOL_VERSION;
            header.header_crc = U32::new(header.compute_crc());
            if let Ok(header) = Header::parse(header.as_bytes(), len_max) {
                let fields = &bytes[HEADER_SIZE..];
                let _ = decode_request(header, fields);
                let _ = decode_response(header, fields);
            }
        }
    }

    #[test]
    fn entries_survive_and_a_cut_is_noticed(payloads in proptest::collection::vec(0usize..100, 1..10), cut in 1usize..50) {
        let mut out = Vec::new();
        let start = fetch::fetch_begin(&mut out);
        for (index, len) in payloads.iter().enumerate() {
            fetch::put_entry(&mut out, &FetchEntryHeader::new(index as u64 * 2, 9, 0, 2));
            out.extend_from_slice(&frame::encode(FrameKind::Data, 2, &vec![7; *len]));
        }
        let next = payloads.len() as u64 * 2;
        fetch::fetch_end(&mut out, start, Op::Push, 0, 3, &FetchFields::new(0, next, next), 0);
        let header = Header::parse(&out, limits::RESPONSE_SIZE_MAX).unwrap();
        let (fields, frames) = out[HEADER_SIZE..].split_at(header.fields_len());
        prop_assert_eq!(decode_response(header, fields), Ok(Response::Push(FetchFields::new(0, next, next))));
        let read: Vec<_> = entries(frames).map(|entry| entry.unwrap().header.base_offset.get()).collect();
        prop_assert_eq!(read, (0..payloads.len() as u64).map(|index| index * 2).collect::<Vec<_>>());
        prop_assert!(entries(&frames[..frames.len() - cut]).last().unwrap().is_err());
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_found() {
    let mut wire = Vec::new();
    Request::Ping.encode(1, &mut wire);
    for bit in 0..wire.len() * 8 {
        let mut bad = wire.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Header::parse(&bad, 1000), Err(FramingError::HeaderCrc), "bit {bit}");
    }
}

#[test]
fn conditions_of_a_header_are_checked_in_order() {
    let sealed = |change: &dyn Fn(&mut Header)| {
        let mut header = Header::new(Op::Ping as u8, Flags::REQUEST, 1, 0, &[], 0);
        change(&mut header);
        header.header_crc = U32::new(header.compute_crc());
        Header::parse(header.as_bytes(), 100).err()
    };
    assert_eq!(sealed(&|_| {}), None);
    assert_eq!(sealed(&|header| header.version = 2), Some(FramingError::Version(2)));
    assert_eq!(sealed(&|header| header.flags = U16::new(4)), Some(FramingError::Flags(4)));
    assert_eq!(sealed(&|header| header.aux = U32::new(1)), Some(FramingError::Fields(1)));
    assert_eq!(sealed(&|header| header.len = U32::new(101)), Some(FramingError::TooLong(101)));
    assert_eq!(Header::parse(b"GET / HTTP/1.1\r\nHost: x\r\nAccept: *", 100), Err(FramingError::HeaderCrc));
}

#[test]
fn what_a_request_may_not_be_is_refused() {
    let refused = |op: u8, flags: Flags, handle: u32, fields: &[u8], frames: usize| {
        let header = Header::new(op, flags, 1, handle, fields, frames);
        decode_request(&header, fields).map_err(|refusal| refusal.code).err()
    };
    let malformed = Some(ErrorCode::MalformedRequest);
    assert_eq!(refused(200, Flags::REQUEST, 0, &[], 0), Some(ErrorCode::UnknownOp));
    assert_eq!(refused(0, Flags::REQUEST, 0, &[], 0), Some(ErrorCode::UnknownOp));
    assert_eq!(refused(Op::Ping as u8, Flags::RESPONSE, 0, &[], 0), malformed);
    assert_eq!(refused(Op::Ping as u8, Flags::REQUEST, 0, &[0], 0), malformed);
    assert_eq!(refused(Op::Ping as u8, Flags::REQUEST, 0, &[], 8), malformed);
    assert_eq!(refused(Op::Push as u8, Flags::REQUEST, 0, &[0; 24], 0), malformed);
    let open = [&[0u8; 8][..], &[1, 0, b'a']].concat();
    assert_eq!(refused(Op::Open as u8, Flags::REQUEST, 1, &open, 0), None);
    assert_eq!(refused(Op::Open as u8, Flags::REQUEST, 0, &open, 0), malformed);
    let produce = |slots: &[(u32, u32)], frames: usize| {
        let mut fields = vec![slots.len() as u8, 0, 0, 0, 0, 0, 0, 0];
        for (handle, len) in slots {
            fields.extend_from_slice(&handle.to_le_bytes());
            fields.extend_from_slice(&len.to_le_bytes());
        }
        refused(Op::Produce as u8, Flags::REQUEST, 0, &fields, frames)
    };
    assert_eq!(produce(&[(1, 64), (2, 72)], 136), None);
    assert_eq!(produce(&[(1, 64), (2, 72)], 135), malformed);
    assert_eq!(produce(&[(1, 63)], 63), malformed);
    assert_eq!(produce(&[(1, 56)], 56), malformed);
    assert_eq!(produce(&[], 0), malformed);
    assert_eq!(produce(&[(1, (4 << 20) + 8)], (4 << 20) + 8), Some(ErrorCode::FrameTooLarge));
    // Own fields that changed on the way cost this request only.
    let header = Header::new(Op::Ping as u8, Flags::REQUEST, 1, 0, b"x", 0);
    assert_eq!(decode_request(&header, b"y").map_err(|refusal| refusal.code), Err(ErrorCode::PayloadCrc));
}

#[test]
fn outcomes_say_what_became_of_a_frame() {
    let stored = ProduceOutcome::stored(9, 1, true);
    assert!(stored.is_stored() && stored.is_duplicate());
    assert_eq!((stored.base_offset, stored.timestamp), (U64::new(9), I64::new(1)));
    let failed = ProduceOutcome::failed(ErrorCode::DiskFull, 250);
    assert!(!failed.is_stored() && !failed.is_duplicate());
    assert_eq!(ErrorCode::parse(failed.code.get()), Some(ErrorCode::DiskFull));
}

#[test]
fn error_codes_find_themselves() {
    for code in ErrorCode::ALL {
        assert_eq!(ErrorCode::parse(*code as u16), Some(*code));
    }
    assert!(ErrorCode::ALL.is_sorted());
    assert_eq!(ErrorCode::parse(0), None);
}
