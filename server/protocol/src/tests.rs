//! Every message survives the way there and back; no bytes make the codec panic.

use crate::queue::leases_match;
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
            Request::Fetch(Fetch { handle: a, offset: c, max_bytes: b, max_wait_ms: a, group: a }),
            Request::Subscribe(Subscribe { handle: a, subscription: b, offset: c, credit: d, group: 0 }),
            Request::Subscribe(Subscribe { handle: a, subscription: b, offset: c, credit: d, group: b }),
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

fn group_settings(steps: &[U32], number: u64, given: u16) -> GroupSettings<'_> {
    let bit = |at: u32| given & (1 << at) != 0;
    let starts = [
        GroupStart::Earliest,
        GroupStart::Latest,
        GroupStart::Time(number as i64),
        GroupStart::Offset(number),
    ];
    GroupSettings {
        max_attempts: bit(0).then_some(number as u16),
        backoff_ms: bit(1).then_some(steps),
        invisible_default_ms: bit(2).then_some(number as u32),
        ordered: bit(3).then_some(number & 1 == 1),
        rate_bytes: bit(4).then_some(number),
        rate_records: bit(5).then_some(number as u32),
        concurrency: bit(6).then_some(number as u32),
        start: bit(7).then_some(starts[(number % 4) as usize]),
    }
}

fn topic_settings(number: u64, given: u16) -> TopicSettings {
    let bit = |at: u32| given & (1 << at) != 0;
    TopicSettings {
        kind: bit(0).then_some(TopicKind::parse((number % 5) as u8).unwrap()),
        partitions: bit(1).then_some(number as u32),
        retention_ms: bit(2).then_some(number),
        retention_bytes: bit(3).then_some(number),
        delay_max_ms: bit(4).then_some(number),
        ttl_ms: bit(5).then_some(number),
        rate_bytes: bit(6).then_some(number),
        rate_records: bit(7).then_some(number as u32),
        producer_rate_bytes: bit(8).then_some(number),
        record_size_max: bit(9).then_some(number as u32),
    }
}

fn handles(numbers: &[u64]) -> Vec<LeaseHandle> {
    numbers.iter().map(|n| LeaseHandle::new(*n, *n as u16, !*n)).collect()
}

proptest! {
    #[test]
    fn requests_about_groups_survive(
        name in name(), other in name(), pairs in proptest::collection::vec((name(), name()), 1..20), a: u32, b in 1u32..,
        c: u64, d: u64, flag: bool, given: u16, mode in 1u8..4, numbers in proptest::collection::vec(any::<u64>(), 1..30),
        txn: u128,
    ) {
        let subscriptions: ItemsBuf =
            pairs.iter().map(|(topic, filter)| Subscription { topic, filter }).collect();
        let found: Vec<_> = subscriptions.items::<Subscription<'_>>().iter().collect();
        prop_assert_eq!(found.len(), pairs.len());
        let steps: Vec<_> = numbers.iter().map(|n| U32::new(*n as u32)).collect();
        let positions: Vec<_> = numbers.iter().map(|n| PositionEntry::new(PartitionId(a), *n)).collect();
        let leases = handles(&numbers);
        let changes: Vec<_> = leases
            .iter()
            .map(|lease| match (flag, a % 2) {
                (false, _) => LeaseChange::retry(*lease),
                (true, 0) => LeaseChange::after(*lease, a),
                (true, _) => LeaseChange::extend(*lease, a),
            })
            .collect();
        let offsets: Vec<_> = numbers.iter().map(|n| U64::new(*n)).collect();
        let settings = group_settings(&steps, c, given);
        let set_modes = [SetGroupMode::Upsert, SetGroupMode::Create, SetGroupMode::Alter];
        for request in [
            Request::JoinGroup(JoinGroup {
                group: &name, mode: GroupMode::parse(mode).unwrap(), member: c, name: &other, instance: &name,
                session_ms: a, create: flag, settings, subscriptions: subscriptions.items(),
            }),
            Request::Heartbeat(Heartbeat { group: a, member: c, generation: d, wait_ms: b, positions: &positions }),
            Request::Heartbeat(Heartbeat { group: a, member: c, generation: d, wait_ms: b, positions: &[] }),
            Request::LeaveGroup(LeaveGroup { group: a, member: c, forget: flag }),
            Request::CommitOffsets(CommitOffsets {
                group: a, member: c, generation: d, instance: d, txn, positions: &positions,
            }),
            Request::FetchOffsets(FetchOffsets {
                group: a, member: c, generation: d, instance: d, claim: flag, partitions: &steps,
            }),
            Request::Receive(Receive {
                handle: a, group: b, member: c, max_records: b, max_bytes: a, invisible_ms: a, wait_ms: b,
            }),
            Request::Ack(Ack { handle: a, group: b, member: c, leases: &leases }),
            Request::ChangeInvisible(ChangeInvisible { handle: a, group: b, member: c, changes: &changes }),
            Request::ListGroups(ListGroups { after: &name, limit: a }),
            Request::DescribeGroup(DescribeGroup {
                name: &name, after: (TopicId(a), b, c), limit: a, with_members: flag,
            }),
            Request::SetGroup(SetGroup { name: &name, mode: set_modes[(c % 3) as usize], settings }),
            Request::ResetGroup(ResetGroup {
                group: &name, topic: &other, first_partition: a, partitions: b, to: GroupStart::Offset(c), instance: d,
                dry_run: flag,
            }),
            Request::DeleteGroup(DeleteGroup { name: &name, force: flag }),
            Request::ReplayDeadLetters(ReplayDeadLetters { handle: a, dry_run: flag, offsets: &offsets }),
        ] {
            request_roundtrip(request);
        }
    }

    #[test]
    fn requests_about_transactions_timers_and_topics_survive(
        name in name(), a: u32, b in 1u32.., c: u64, flag: bool, given: u16, due in 1i64.., txn in 1u128.., state in 0u8..6,
    ) {
        use {EndSource as S, TransactionEnd as E};
        let ends = [
            (E::Commit, S::Producer), (E::Abort, S::Producer), (E::Commit, S::Check), (E::Abort, S::Check),
            (E::Unknown, S::Check), (E::Commit, S::Operator), (E::Abort, S::Operator), (E::Recheck, S::Operator),
        ];
        for (resolution, source) in ends {
            request_roundtrip(Request::EndTransaction(EndTransaction {
                txn, resolution, source, group: &name, halves: a, positions: b, attempt: a as u16,
            }));
        }
        for request in [
            Request::RegisterProducer(RegisterProducer { registration: b, group: &name, end: flag }),
            Request::ListTimers(ListTimers { after: (due, a, c), topic: &name, limit: a }),
            Request::ChangeTimer(TimerChange::Cancel { partition: b, lsn: c }),
            Request::ChangeTimer(TimerChange::Reschedule { partition: b, lsn: c, due_ms: due }),
            Request::ChangeTimer(TimerChange::Purge { topic: "t" }),
            Request::AlterTopic(AlterTopic { name: &name, create: flag, settings: topic_settings(c, given) }),
            Request::ListTransactions(ListTransactions {
                txn, one: flag, state: TransactionState::parse(state), group: &name, limit: a,
            }),
            Request::PeekMessage(PeekMessage { partition: a, lsn: c }),
            Request::TopicStats(&name),
        ] {
            request_roundtrip(request);
        }
    }

    #[test]
    fn responses_about_groups_survive(
        name in name(), other in name(), a: u32, b: u16, c: u64, d: u64, flag: bool, given: u16, mode in 1u8..4, time: i64,
        numbers in proptest::collection::vec(any::<u64>(), 0..30), txn: u128, state in 1u8..6,
    ) {
        let indices: Vec<_> = numbers.iter().map(|n| U32::new(*n as u32)).collect();
        let assignment = |assigned| Assignment {
            topic: TopicId(a), name: &name, base_partition: PartitionId(a), partitions: a, assigned,
        };
        let assignments: ItemsBuf = [assignment(None), assignment(Some(&indices))].into_iter().collect();
        let group = GroupEntry {
            group: a, name: &name, mode: GroupMode::parse(mode % 4), members: a, topics: a, created_ms: time,
            lag_records: c, lag_ms: d,
        };
        let groups: ItemsBuf = [group, group].into_iter().collect();
        let subscriptions: ItemsBuf = [Subscription { topic: &name, filter: &other }].into_iter().collect();
        let members: ItemsBuf = numbers
            .iter()
            .map(|n| MemberEntry {
                member: *n, name: &other, instance: c, instance_name: &name, joined_ms: time, partitions: a, silent_ms: a,
            })
            .collect();
        let positions: Vec<_> = numbers
            .iter()
            .map(|n| GroupPosition { watermark: U64::new(*n), topic: U32::new(a), ..GroupPosition::default() })
            .collect();
        let resets: Vec<_> = numbers
            .iter()
            .map(|n| ResetEntry { before: U64::new(*n), partition: U32::new(a), ..ResetEntry::default() })
            .collect();
        let leases: Vec<_> =
            handles(&numbers).into_iter().map(|handle| Lease { handle, expires_ms: I64::new(time) }).collect();
        let changed: Vec<_> = leases
            .iter()
            .map(|lease| ChangedLease { lease: *lease, flags: U16::new(u16::from(flag)), ..ChangedLease::default() })
            .collect();
        let outcomes: Vec<_> =
            numbers.iter().map(|n| Outcome { code: U16::new(*n as u16), ..Outcome::default() }).collect();
        let fetched: Vec<_> =
            numbers.iter().map(|n| FetchedOffset { offset: U64::new(*n), ..FetchedOffset::default() }).collect();
        let replayed: Vec<_> =
            numbers.iter().map(|n| Replayed { offset: U64::new(*n), ..Replayed::default() }).collect();
        let transaction = TransactionEntry {
            txn, group: &name, state: TransactionState::parse(state).unwrap(), since_ms: time, next_check_ms: time,
            attempts: b, halves: a, bytes: c, participants: d,
        };
        let transactions: ItemsBuf = [transaction].into_iter().collect();
        let half = HalfEntry { topic: &name, index: a, partition: a, lsn: c, len: a, count: a, due_ms: time };
        let halves: ItemsBuf = [half, half, half].into_iter().collect();
        let timer = TimerEntry { topic: &name, index: a, partition: a, lsn: c, due_ms: time, count: a, len: a };
        let timers: ItemsBuf = [timer, timer].into_iter().collect();
        let topic = entry_of(&name, a);
        for response in [
            Response::Joined(Joined {
                group: a, member: c, instance: d, generation: c, session_ms: a, heartbeat_ms: a,
                assignments: assignments.items(),
            }),
            Response::Heartbeat(HeartbeatAnswer { generation: c, heartbeat_ms: a, assignments: assignments.items() }),
            Response::Left,
            Response::Committed(&outcomes),
            Response::FetchedOffsets(&fetched),
            Response::Received(Received { log_start: c, visible_end: d, leases: &leases }),
            Response::Acked(&outcomes),
            Response::Changed(&changed),
            Response::Ended(Ended { time_ms: time, halves: a, earlier: flag }),
            Response::Registered(Registered { check_after_ms: a, check_every_ms: a, checks_max: b }),
            Response::Check(Check {
                txn, group: &name, since_ms: time, halves: a, attempt: b, attempts_max: b, topic: &other, partition: a,
            }),
            Response::Timers(TimerPage { timers: timers.items(), pending: c, more: flag }),
            Response::TimerChanged(TimerChanged { changed: c, more: flag }),
            Response::Groups(GroupPage { groups: groups.items(), more: flag }),
            Response::DescribedGroup(DescribedGroup {
                group, generation: c, settings: group_settings(&indices, c, given), subscriptions: subscriptions.items(),
                members: members.items(), positions: &positions, more: flag,
            }),
            Response::GroupSet(a),
            Response::GroupReset(GroupReset { first_partition: a, entries: &resets }),
            Response::GroupDeleted,
            Response::AlteredTopic(AlteredTopic { topic, settings: topic_settings(c, given) }),
            Response::Transactions(TransactionPage {
                transactions: transactions.items(), halves: halves.items(), more: flag,
            }),
            Response::Replayed(&replayed),
            Response::Peeked(Peeked { topic: &name, index: a, partition: a, txn, due_ms: time, count: a }),
            Response::TopicStats(TopicStats {
                topic, settings: topic_settings(d, given), created_ms: time, records: c, bytes: c, first_time_ms: time,
                last_time_ms: time, appended_records: c, appended_bytes: d, read_bytes: c, records_per_second: d,
                bytes_per_second: c, pending_delays: d, open_halves: c, pinned_bytes: d, throttled: c, groups: a,
            }),
        ] {
            response_roundtrip(response);
        }
    }

    #[test]
    fn runs_of_one_frame_share_its_bytes(runs in proptest::collection::vec((0u32..8, 1u32..4), 1..10)) {
        let mut out = Vec::new();
        for (index, (first, count)) in runs.iter().enumerate() {
            let header = FetchEntryHeader::new(u64::from(index as u32) * 100, 9, *first, *count);
            fetch::put_entry(&mut out, &if index == 0 { header } else { header.in_same_frame() });
            if index == 0 {
                out.extend_from_slice(&frame::encode(FrameKind::Data, 11, &[7; 40]));
            }
        }
        let read: Vec<_> = entries(&out)
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.header.first(), entry.header.count.get(), entry.frame.bytes.len()))
            .collect();
        prop_assert_eq!(read, runs.iter().map(|run| (run.0, run.1, 104)).collect::<Vec<_>>());
        // Nothing in front: there is no frame to share.
        let alone = FetchEntryHeader::new(0, 0, 0, 1).in_same_frame();
        prop_assert!(entries(alone.as_bytes()).next().unwrap().is_err());
    }
}

fn entry_of(name: &str, number: u32) -> TopicEntry<'_> {
    let (topic, base_partition) = (TopicId(number), PartitionId(number));
    TopicEntry { code: 0, topic, base_partition, partitions: number, name }
}

#[test]
fn leases_belong_to_the_records_of_the_entries() {
    let lease = |offset| Lease { handle: LeaseHandle::new(offset, 1, 3), expires_ms: I64::new(9) };
    let entries = [FetchEntryHeader::new(5, 0, 2, 2), FetchEntryHeader::new(9, 0, 6, 1).in_same_frame()];
    assert!(leases_match(&[lease(5), lease(6), lease(9)], &entries));
    assert!(!leases_match(&[lease(5), lease(6), lease(8)], &entries));
    assert!(!leases_match(&[lease(5), lease(6)], &entries));
}

#[test]
fn an_answer_to_receive_has_leases_and_entries() {
    let lease = Lease { handle: LeaseHandle::new(5, 1, 3), expires_ms: I64::new(9) };
    let mut entries_of = Vec::new();
    fetch::put_entry(&mut entries_of, &FetchEntryHeader::new(5, 0, 0, 1));
    entries_of.extend_from_slice(&frame::encode(FrameKind::Data, 1, b"payload"));
    let received = Received { log_start: 1, visible_end: 8, leases: &[lease] };
    let mut out = Vec::new();
    received.encode(4, 6, &entries_of, 0, &mut out);
    let header = Header::parse(&out, limits::RESPONSE_SIZE_MAX).unwrap();
    let (fields, frames) = out[HEADER_SIZE..].split_at(header.fields_len());
    assert_eq!((header.correlation(), header.handle()), (4, 6));
    assert_eq!(decode_response(header, fields), Ok(Response::Received(received)));
    assert_eq!(entries(frames).filter(Result::is_ok).count(), 1);
}

#[test]
fn what_a_request_about_groups_may_not_be_is_refused() {
    let sealed = |request: Request<'_>, change: &dyn Fn(&mut Vec<u8>)| {
        let mut wire = Vec::new();
        request.encode(1, &mut wire);
        let header = Header::parse(&wire, limits::REQUEST_SIZE_MAX).unwrap();
        let mut fields = wire[HEADER_SIZE..].to_vec();
        change(&mut fields);
        let header = Header::new(header.op, Flags::REQUEST, 1, header.handle(), &fields, 0);
        decode_request(&header, &fields).map(drop).map_err(|refusal| refusal.code)
    };
    let malformed = Err(ErrorCode::MalformedRequest);
    let subscriptions: ItemsBuf = [Subscription { topic: "t", filter: "*" }].into_iter().collect();
    let join = |subscriptions| {
        Request::JoinGroup(JoinGroup {
            group: "g",
            mode: GroupMode::Queue,
            member: 0,
            name: "m",
            instance: "",
            session_ms: 0,
            create: true,
            settings: GroupSettings::default(),
            subscriptions,
        })
    };
    assert_eq!(sealed(join(subscriptions.items()), &|_| {}), Ok(()));
    assert_eq!(sealed(join(Items::default()), &|_| {}), malformed);
    assert_eq!(sealed(join(subscriptions.items()), &|fields| fields[16] = 4), malformed); // mode
    assert_eq!(sealed(join(subscriptions.items()), &|fields| fields[17] = 2), malformed); // flags
    assert_eq!(sealed(join(subscriptions.items()), &|fields| fields[18] = 1), malformed); // reserved
    assert_eq!(sealed(join(subscriptions.items()), &|fields| fields.push(0)), malformed);
    // A setting that is not known must not be dropped in silence.
    assert_eq!(sealed(join(subscriptions.items()), &|fields| fields[24 + 3 + 3 + 2 + 1] = 1), malformed);
    let end = |resolution, source| {
        let (halves, positions, attempt) = (1, 0, 0);
        Request::EndTransaction(EndTransaction {
            txn: 1,
            resolution,
            source,
            group: "g",
            halves,
            positions,
            attempt,
        })
    };
    assert_eq!(sealed(end(TransactionEnd::Commit, EndSource::Producer), &|_| {}), Ok(()));
    assert_eq!(sealed(end(TransactionEnd::Unknown, EndSource::Producer), &|_| {}), malformed);
    assert_eq!(sealed(end(TransactionEnd::Recheck, EndSource::Check), &|_| {}), malformed);
    assert_eq!(sealed(end(TransactionEnd::Commit, EndSource::Producer), &|fields| fields[0] = 0), malformed);
    let ack = Request::Ack(Ack { handle: 1, group: 1, member: 1, leases: &[] });
    assert_eq!(sealed(ack, &|_| {}), malformed);
    let receive =
        Receive { handle: 1, group: 1, member: 1, max_records: 0, max_bytes: 1, invisible_ms: 0, wait_ms: 0 };
    assert_eq!(sealed(Request::Receive(receive), &|_| {}), malformed);
    let change = LeaseChange { after_ms: U32::new(5), ..LeaseChange::retry(LeaseHandle::new(1, 1, 1)) };
    let change =
        Request::ChangeInvisible(ChangeInvisible { handle: 1, group: 1, member: 1, changes: &[change] });
    assert_eq!(sealed(change, &|_| {}), malformed);
    let cancel = Request::ChangeTimer(TimerChange::Cancel { partition: 0, lsn: 1 });
    assert_eq!(sealed(cancel, &|_| {}), malformed);
    let purge = Request::ChangeTimer(TimerChange::Purge { topic: "" });
    assert_eq!(sealed(purge, &|_| {}), malformed);
    let fetch = Request::Fetch(Fetch { handle: 1, offset: 0, max_bytes: 1, max_wait_ms: 0, group: 7 });
    assert_eq!(sealed(fetch, &|_| {}), Ok(()));
    assert_eq!(sealed(fetch, &|fields| fields[16] = 0), malformed);
}
