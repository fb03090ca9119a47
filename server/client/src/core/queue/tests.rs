//! A scripted server answers the actions.

use super::*;
use ringmq_format::frame::Codec;
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_protocol::fetch::put_entry;
use zerocopy::FromZeros;
use zerocopy::little_endian::{I64, U16};

fn core(prefetch: u32, partitions: u32) -> QueueCore {
    let mut core = QueueCore::new(QueueCoreConfig {
        prefetch,
        max_bytes: 1 << 20,
        invisible_ms: 10_000,
        wait_ms: 5_000,
        auto_renew: true,
        renew_for_us: 60_000_000,
        retry_for_us: 20_000_000,
        seed: 1,
    });
    core.set_partitions((0..partitions).map(|index| (PartitionId(10 + index), target(index))));
    core
}

fn target(partition: u32) -> Target {
    Target { topic: Arc::from("t"), partition }
}

fn actions(core: &mut QueueCore, now_us: u64) -> Vec<QueueAction> {
    let mut actions = Vec::new();
    core.next_actions(now_us, &mut actions);
    assert!(core.deadline_us() > now_us, "something is due after all was done");
    actions
}

/// Entries and leases of single records at these offsets.
fn answer(offsets: &[u64], attempt: u16) -> (Vec<Lease>, Bytes) {
    let mut bytes = Vec::new();
    let mut leases = Vec::new();
    for offset in offsets {
        let mut builder = FrameBuilder::new(0, 1 << 20);
        builder.push(&Record { body: offset.to_string().as_bytes(), ..Record::default() }).unwrap();
        let frame = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
        let late = super::super::late::Late {
            txn: 0,
            due_ms: 1,
            check_after_ms: 0,
            group: Arc::from(""),
            alone: true,
        };
        // A frame that was bound: its own header knows no offset.
        put_entry(&mut bytes, &FetchEntryHeader::new(*offset, 5, 0, 1));
        bytes.extend_from_slice(&late.wrap(&frame));
        leases.push(Lease { handle: LeaseHandle::new(*offset, attempt, 1), expires_ms: I64::new(0) });
    }
    (leases, Bytes::from(bytes))
}

fn receive(core: &mut QueueCore, now_us: u64, offsets: &[u64]) {
    let asked = actions(core, now_us);
    let [QueueAction::Receive { request, .. }] = asked[..] else { panic!("{asked:?}") };
    let (leases, bytes) = answer(offsets, 1);
    core.received(now_us, request, &leases, &bytes);
}

fn take(core: &mut QueueCore, now_us: u64) -> Vec<Delivery> {
    std::iter::from_fn(|| core.next_delivery(now_us)).collect()
}

fn changed(handle: LeaseHandle) -> ChangedLease {
    ChangedLease { lease: Lease { handle, expires_ms: I64::ZERO }, ..ChangedLease::new_zeroed() }
}

#[test]
fn credit_is_shared_by_partitions_and_bounds_what_is_unsettled() {
    let mut core = core(10, 2);
    let asked = actions(&mut core, 0);
    let shares: Vec<_> = asked
        .iter()
        .map(|action| match action {
            QueueAction::Receive { max_records, wait_ms, .. } => (*max_records, *wait_ms),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(shares, [(5, 5_000), (5, 5_000)]);
    let QueueAction::Receive { request, .. } = asked[0] else { panic!() };
    let (leases, bytes) = answer(&[0, 1, 2], 1);
    core.received(0, request, &leases, &bytes);
    assert_eq!(core.outstanding(), 8);
    // What is left of the credit goes to the partition that has answered, never more.
    assert!(matches!(actions(&mut core, 0)[..], [QueueAction::Receive { max_records: 2, .. }]));
    assert_eq!(core.outstanding(), 10);
    let taken = take(&mut core, 0);
    assert_eq!(taken.iter().map(|delivery| delivery.record.offset).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(taken[1].record.body, "1");
    // Taken is not settled: no credit comes back.
    assert!(actions(&mut core, 0).is_empty());
}

#[test]
fn with_less_credit_than_partitions_each_has_its_turn() {
    let mut core = core(2, 5);
    let mut turns = BTreeMap::new();
    let mut now = 0;
    for _ in 0..10 {
        for action in actions(&mut core, now) {
            let QueueAction::Receive { request, target, max_records, wait_ms } = action else { panic!() };
            assert_eq!((max_records, wait_ms), (1, CROWDED_WAIT_MS));
            *turns.entry(target.partition).or_insert(0) += 1;
            core.received(now, request, &[], &Bytes::new());
        }
        now += 1_000;
    }
    assert_eq!(turns.into_values().collect::<Vec<_>>(), [4; 5]);
}

#[test]
fn acks_of_a_partition_go_together_and_are_told_once() {
    let mut core = core(3, 1);
    receive(&mut core, 0, &[0, 1, 2]);
    let taken = take(&mut core, 0);
    taken.iter().for_each(|delivery| assert!(core.settle(1, delivery.token, Settle::Ack)));
    let asked = actions(&mut core, 1);
    let [QueueAction::Ack { request, ref leases, .. }] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(leases.len(), 3);
    let stale = Outcome::failed(ErrorCode::StaleHandle, 0);
    core.acked(2, request, &[Outcome::DONE, stale, Outcome::DONE]);
    let told: Vec<_> = std::iter::from_fn(|| core.next_completion()).collect();
    assert_eq!(told[0], (taken[0].token, Settled::Done));
    assert!(
        matches!(&told[1], (_, Settled::Refused(refused)) if refused.code() == Some(ErrorCode::StaleHandle))
    );
    assert_eq!((told.len(), core.outstanding()), (3, 0));
    assert!(!core.settle(3, taken[0].token, Settle::Ack), "it is gone");
}

#[test]
fn what_has_lost_its_answer_is_said_again() {
    let stale = || ErrorCode::StaleHandle;
    let is_stale = |told| matches!(told, Some((_, Settled::Refused(refused))) if refused.code() == Some(ErrorCode::StaleHandle));
    for settle in [Settle::Ack, Settle::Retry] {
        let mut core = core(1, 1);
        receive(&mut core, 0, &[7]);
        let token = take(&mut core, 0)[0].token;
        core.settle(0, token, settle);
        let request = |actions: Vec<QueueAction>| match actions[..] {
            [QueueAction::Ack { request, .. } | QueueAction::Change { request, .. }] => request,
            _ => panic!("{actions:?}"),
        };
        let asked = request(actions(&mut core, 0));
        core.lost(10, asked, false);
        assert_eq!(core.next_completion(), None);
        let now = core.deadline_us();
        let asked = request(actions(&mut core, now));
        if settle == Settle::Ack {
            // One that was done is done again: stale is somebody else's.
            core.acked(now, asked, &[Outcome::failed(stale(), 0)]);
            assert!(is_stale(core.next_completion()));
        } else {
            core.changed(now, asked, &[ChangedLease::failed(stale(), 0)]);
            assert_eq!(core.next_completion(), Some((token, Settled::OutcomeUnknown)));
        }
    }
}

#[test]
fn what_was_received_before_a_connection_ended_is_handed_back_and_not_out() {
    let mut core = core(3, 2);
    let mut asked: Vec<u64> = Vec::new();
    for action in actions(&mut core, 0) {
        let QueueAction::Receive { request, .. } = action else { panic!("{action:?}") };
        asked.push(request);
    }
    let receive = |core: &mut QueueCore, now, request, offset| {
        let (leases, bytes) = answer(&[offset], 1);
        core.received(now, request, &leases, &bytes);
    };
    receive(&mut core, 1, asked[0], 7);
    core.doubt_leases(2);
    // On its way before the connection ended, and heard after it.
    receive(&mut core, 3, asked[1], 8);
    assert_eq!(core.next_delivery(3), None);
    let released = actions(&mut core, 3).into_iter().filter_map(|action| match action {
        QueueAction::Change { changes, .. } => Some(changes),
        _ => None,
    });
    let released: Vec<LeaseChange> = released.flatten().collect();
    let handed_back = |offset| LeaseChange::after(LeaseHandle::new(offset, 1, 1), 0);
    assert_eq!(released, [handed_back(7), handed_back(8)]);
}

#[test]
fn leases_are_renewed_until_the_record_is_settled() {
    let mut core = core(1, 1);
    receive(&mut core, 0, &[7]);
    let token = take(&mut core, 0)[0].token;
    assert_eq!(core.deadline_us(), 5_000_000);
    let asked = actions(&mut core, 5_000_000);
    let [QueueAction::Change { request, ref changes, .. }] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(changes[0], LeaseChange::extend(LeaseHandle::new(7, 1, 1), 10_000));
    // The caller acks while the renewal is on its way: it waits, because the handle changes.
    core.settle(5_000_001, token, Settle::Ack);
    assert!(actions(&mut core, 5_000_001).is_empty());
    let renewed = LeaseHandle::new(7, 1, 2);
    core.changed(5_000_002, request, &[changed(renewed)]);
    let asked = actions(&mut core, 5_000_002);
    let [QueueAction::Ack { ref leases, .. }] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(leases[..], [renewed]);
}

#[test]
fn a_record_that_nobody_took_is_not_given_out_after_its_lease() {
    let mut core = core(1, 1);
    core.config.auto_renew = false;
    receive(&mut core, 0, &[7]);
    assert_eq!(core.next_delivery(10_000_000), None);
    assert_eq!(core.outstanding(), 0);
}

#[test]
fn a_record_that_the_caller_forgets_gives_its_credit_back_in_the_end() {
    let mut core = core(1, 1);
    core.config.auto_renew = false;
    receive(&mut core, 0, &[7]);
    let token = take(&mut core, 0)[0].token;
    assert!(actions(&mut core, 15_000_000).is_empty(), "an ack may still be taken");
    assert!(matches!(actions(&mut core, 20_000_000)[..], [QueueAction::Receive { .. }]));
    assert!(!core.settle(20_000_000, token, Settle::Ack));
}

#[test]
fn a_last_attempt_is_told() {
    let mut core = core(1, 1);
    receive(&mut core, 0, &[7]);
    let token = take(&mut core, 0)[0].token;
    core.settle(0, token, Settle::Retry);
    let [QueueAction::Change { request, .. }] = actions(&mut core, 0)[..] else { panic!() };
    let dead = ChangedLease { flags: U16::new(1), ..ChangedLease::new_zeroed() };
    core.changed(0, request, &[dead]);
    assert_eq!(core.next_completion(), Some((token, Settled::Dead)));
}

#[test]
fn a_throttled_partition_is_asked_again_when_it_may_be() {
    let mut core = core(4, 1);
    let [QueueAction::Receive { request, .. }] = actions(&mut core, 0)[..] else { panic!() };
    core.refused(0, request, Refused { retry_after_ms: 700, ..Refused::new(ErrorCode::Throttled) });
    assert_eq!((core.deadline_us(), core.take_failure()), (700_000, None));
    let [QueueAction::Receive { request, .. }] = actions(&mut core, 700_000)[..] else { panic!() };
    core.refused(700_000, request, Refused::new(ErrorCode::NotAMember));
    assert!(core.take_doubt() && !core.take_doubt());
    assert_eq!(core.outstanding(), 0);
}

#[test]
fn damaged_records_and_leases_that_do_not_fit_are_not_given_out() {
    for spoil in [0, 1] {
        let mut core = core(4, 1);
        let [QueueAction::Receive { request, .. }] = actions(&mut core, 0)[..] else { panic!() };
        let (mut leases, bytes) = answer(&[3, 4], 1);
        let mut bytes = bytes.to_vec();
        if spoil == 0 {
            let last = bytes.len() - 9;
            bytes[last] ^= 1;
        } else {
            leases[1].handle = LeaseHandle::new(5, 1, 1);
        }
        core.received(0, request, &leases, &Bytes::from(bytes));
        assert!(matches!(core.take_failure(), Some(QueueFailure::Received(..))));
        assert_eq!((core.next_delivery(0), core.outstanding()), (None, 0));
    }
}

#[test]
fn closing_hands_back_what_is_buffered() {
    let mut core = core(2, 1);
    receive(&mut core, 0, &[7, 8]);
    let taken = core.next_delivery(0).unwrap();
    core.close();
    assert_eq!(actions(&mut core, 1), []);
    core.hand_back(1);
    let asked = actions(&mut core, 1);
    let [QueueAction::Change { request, ref changes, .. }] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(changes[..], [LeaseChange::after(LeaseHandle::new(8, 1, 1), 0)]);
    core.changed(2, request, &[changed(LeaseHandle::new(8, 1, 2))]);
    assert!(core.is_settled());
    // What the caller has is still the caller's to settle.
    assert!(core.settle(3, taken.token, Settle::Ack));
    assert!(!core.is_settled());
}

#[test]
fn nothing_is_handed_back_to_a_receive_that_is_on_its_way() {
    let mut core = core(4, 1);
    receive(&mut core, 0, &[7, 8]);
    let asked = actions(&mut core, 0);
    let [QueueAction::Receive { request, .. }] = asked[..] else { panic!("{asked:?}") };
    core.close();
    assert_eq!(actions(&mut core, 1), [], "the RECEIVE that waits would get them");
    assert!(core.is_receiving());
    // It was answered before the member had left.
    let (leases, bytes) = answer(&[9], 1);
    core.received(2, request, &leases, &bytes);
    assert_eq!((core.is_receiving(), actions(&mut core, 2)), (false, vec![]));
    core.hand_back(3);
    let asked = actions(&mut core, 3);
    let [QueueAction::Change { ref changes, .. }] = asked[..] else { panic!("{asked:?}") };
    let expected = [7, 8, 9].map(|offset| LeaseChange::after(LeaseHandle::new(offset, 1, 1), 0));
    assert_eq!(changes[..], expected);
}
