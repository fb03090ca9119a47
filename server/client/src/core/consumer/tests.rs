//! A scripted server reads the actions and answers.

use super::*;
use ringmq_format::Offset;
use ringmq_format::frame::{Codec, FrameHeader};
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_protocol::fetch::put_entry;
use zerocopy::IntoBytes;

const ID: PartitionId = PartitionId(70);

fn core(start: Start, out_of_range: OutOfRange) -> ConsumerCore {
    let config = ConsumerCoreConfig {
        credit: 4_000,
        retry_for_us: 10_000_000,
        out_of_range,
        filtered: false,
        seed: 1,
    };
    ConsumerCore::new(config, [(0, ID)], start)
}

/// An entry of `count` records from `base` on.
fn entry(base: u64, count: u32) -> Vec<u8> {
    let mut builder = FrameBuilder::new(0, 1 << 20);
    for index in 0..count {
        let body = (base + u64::from(index)).to_string();
        builder.push(&Record { body: body.as_bytes(), ..Record::default() }).unwrap();
    }
    let mut frame = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
    let mut header = *FrameHeader::parse(&frame).unwrap();
    header.stamp(ID, Offset(base), 5);
    frame[..64].copy_from_slice(header.as_bytes());
    let mut bytes = Vec::new();
    put_entry(&mut bytes, &FetchEntryHeader::new(base, 5, 0, count));
    bytes.extend_from_slice(&frame);
    bytes
}

fn push(core: &mut ConsumerCore, attempt: u64, parts: &[(u64, u32)]) -> u64 {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| entry(part.0, part.1)).collect();
    let next = parts.last().map_or(0, |part| part.0 + u64::from(part.1));
    core.pushed(0, 0, attempt, &FetchFields::new(0, next, next), &Bytes::from(bytes.clone()));
    bytes.len() as u64
}

fn take(core: &mut ConsumerCore) -> Vec<u64> {
    let mut out = VecDeque::new();
    while core.take(&mut out) == Next::Records {}
    for record in &out {
        assert_eq!(record.body, record.offset.to_string().as_bytes());
    }
    out.iter().map(|record| record.offset).collect()
}

fn subscribe(core: &mut ConsumerCore, now_us: u64) -> (u64, u64, u64) {
    match core.next_action(now_us) {
        Some(Action::Subscribe { partition: 0, attempt, offset, credit }) => {
            core.subscribed(0, attempt, Bounds { log_start: 0, visible_end: 100 });
            (attempt, offset, credit)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_start_is_resolved_before_it_is_read() {
    let mut core = core(Start::Earliest, OutOfRange::Fail);
    let Some(Action::Resolve { attempt, what: OffsetSpec::Earliest, .. }) = core.next_action(0) else {
        panic!()
    };
    assert_eq!(core.next_action(0), None);
    assert_eq!(core.positions().next(), Some((0, None)));
    core.resolved(0, attempt, 17);
    assert_eq!(subscribe(&mut core, 0).1, 17);
    assert_eq!(core.positions().next(), Some((0, Some(17))));
}

#[test]
fn records_below_the_position_are_dropped() {
    let mut core = core(Start::Offset(12), OutOfRange::Fail);
    let (attempt, offset, _) = subscribe(&mut core, 0);
    assert_eq!(offset, 12);
    push(&mut core, attempt, &[(10, 5), (15, 2)]);
    assert_eq!(take(&mut core), [12, 13, 14, 15, 16]);
    // The same again, as after a confused server: nothing is read twice.
    push(&mut core, attempt, &[(15, 2)]);
    assert_eq!(take(&mut core), []);
}

#[test]
fn after_a_loss_reading_goes_on_behind_what_was_received() {
    let mut core = core(Start::Offset(0), OutOfRange::Fail);
    let (first, _, credit) = subscribe(&mut core, 0);
    let size = push(&mut core, first, &[(0, 3)]);
    core.lost(1_000, 0, first);
    assert!(core.deadline_us() > 1_000);
    assert_eq!(core.next_action(1_000), None);
    let now = core.deadline_us();
    let (second, offset, again) = subscribe(&mut core, now);
    assert_eq!((offset, again), (3, credit - size));
    // What the first attempt still brings is not taken.
    push(&mut core, first, &[(3, 3)]);
    push(&mut core, second, &[(3, 1)]);
    assert_eq!(take(&mut core), [0, 1, 2, 3]);
}

#[test]
fn credit_is_given_back_as_records_are_taken() {
    let mut core = core(Start::Offset(0), OutOfRange::Fail);
    let (attempt, _, credit) = subscribe(&mut core, 0);
    let (mut offset, mut sent, mut given) = (0, 0, credit);
    for _ in 0..200 {
        sent += push(&mut core, attempt, &[(offset, 4)]);
        offset += 4;
        take(&mut core);
        while let Some(Action::Credit { bytes, .. }) = core.next_action(0) {
            given += bytes;
        }
        assert!(given <= sent + credit);
        assert!(given + credit / 4 >= sent + credit, "{given} given for {sent}");
    }
}

#[test]
fn damaged_bytes_are_not_delivered_and_end_in_an_error() {
    let good = entry(0, 3);
    for at in [30, 90, good.len() - 9] {
        let mut core = core(Start::Offset(0), OutOfRange::Fail);
        let mut bad = good.clone();
        bad[at] ^= 1;
        for attempt in 1..=3 {
            let now = core.deadline_us();
            let (attempt_id, offset, _) = subscribe(&mut core, now);
            assert_eq!(offset, 0, "attempt {attempt}");
            core.pushed(0, 0, attempt_id, &FetchFields::new(0, 3, 3), &Bytes::from(bad.clone()));
            assert_eq!(core.next_action(0), Some(Action::Unsubscribe { partition: 0, attempt: attempt_id }));
        }
        let mut out = VecDeque::new();
        assert!(matches!(core.take(&mut out), Next::Halted { halt: Halt::Received(_), position: 0, .. }));
        assert!(out.is_empty());
    }
}

#[test]
fn a_gap_a_stranger_and_a_wrong_end_are_refused() {
    let refused = |base: u64, next: u64, id: PartitionId| {
        let mut core = core(Start::Offset(0), OutOfRange::Fail);
        core.readers.get_mut(&0).unwrap().id = id;
        let (attempt, ..) = subscribe(&mut core, 0);
        core.pushed(0, 0, attempt, &FetchFields::new(0, next, next), &Bytes::from(entry(base, 2)));
        matches!(core.next_action(0), Some(Action::Unsubscribe { .. })) && take(&mut core).is_empty()
    };
    assert!(!refused(0, 2, ID));
    assert!(refused(1, 3, ID));
    assert!(refused(0, 3, ID));
    assert!(refused(0, 2, PartitionId(71)));
}

#[test]
fn an_offset_that_is_gone_is_told_or_resolved() {
    let gone = || Refused::new(ErrorCode::OffsetOutOfRange);
    let mut failing = core(Start::Offset(5), OutOfRange::Fail);
    let (attempt, ..) = subscribe(&mut failing, 0);
    failing.refused(0, 0, attempt, gone());
    let mut out = VecDeque::new();
    assert!(matches!(
        failing.take(&mut out),
        Next::Halted { halt: Halt::OutOfRange { .. }, position: 5, .. }
    ));
    assert_eq!(failing.next_action(u64::MAX), None);
    assert!(failing.seek(0, 50));
    assert_eq!(subscribe(&mut failing, 0).1, 50);

    let mut earliest = core(Start::Offset(5), OutOfRange::Earliest);
    let (attempt, ..) = subscribe(&mut earliest, 0);
    earliest.refused(0, 0, attempt, gone());
    let now = earliest.deadline_us();
    let Some(Action::Resolve { attempt, .. }) = earliest.next_action(now) else { panic!() };
    earliest.resolved(0, attempt, 40);
    assert_eq!(subscribe(&mut earliest, now).1, 40);
}

#[test]
fn a_partition_that_stays_away_is_told() {
    let mut core = core(Start::Offset(0), OutOfRange::Fail);
    let mut now = 0;
    let mut out = VecDeque::new();
    loop {
        match core.next_action(now) {
            Some(Action::Subscribe { attempt, .. }) => core.lost(now, 0, attempt),
            Some(other) => panic!("{other:?}"),
            None => match core.take(&mut out) {
                Next::Halted { halt, .. } => {
                    assert_eq!(halt, Halt::Unreachable);
                    break;
                }
                _ => now = core.deadline_us(),
            },
        }
    }
    assert!((10_000_000..13_000_000).contains(&now), "{now}");
}

#[test]
fn a_refusal_that_passes_is_waited_out() {
    let mut core = core(Start::Offset(0), OutOfRange::Fail);
    let (attempt, ..) = subscribe(&mut core, 0);
    core.refused(0, 0, attempt, Refused { retry_after_ms: 300, ..Refused::new(ErrorCode::Recovering) });
    assert_eq!(core.deadline_us(), 300_000);
    let (attempt, ..) = subscribe(&mut core, 300_000);
    core.refused(0, 0, attempt, Refused::new(ErrorCode::UnknownTopic));
    let mut out = VecDeque::new();
    assert!(matches!(core.take(&mut out), Next::Halted { halt: Halt::Refused(_), .. }));
}
