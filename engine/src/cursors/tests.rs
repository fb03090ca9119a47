use super::*;
use proptest::prelude::*;
use ringmq_format::cursor::Retry;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
enum Do {
    Set { txn: u128, key: CursorKey, offset: Option<Offset> },
    Commit(u128),
    Abort(u128),
    Ack(AckChange),
    DeletePartition(PartitionId),
}

fn keys() -> impl Strategy<Value = CursorKey> {
    (1..3u32, 1..4u32, 0..3u64).prop_map(|(group, partition, instance)| CursorKey {
        group: GroupId(group),
        partition: PartitionId(partition),
        instance,
    })
}

fn ops() -> impl Strategy<Value = Do> {
    let offset = (0..40u64).prop_map(Offset);
    let ranges = prop::collection::vec((0..40u64, 1..4u64), 0..3);
    let retries = prop::collection::vec((0..40u64, 0..3u16, 0..9i64), 0..3);
    let ack = (keys(), 0..20u64, prop::bool::weighted(0.1), ranges, retries).prop_map(
        |(key, watermark, replaces, ranges, retries)| {
            let ranges = ranges.into_iter().map(|(from, len)| (Offset(from), Offset(from + len))).collect();
            let retry = |(offset, attempt, visible_ms)| Retry { offset: Offset(offset), attempt, visible_ms };
            let retries = retries.into_iter().map(retry).collect();
            let new = AckChange::new(key.group, key.partition, Offset(watermark));
            Do::Ack(AckChange { replaces, ranges, retries, ..new })
        },
    );
    prop_oneof![
        4 => (keys(), prop::option::weighted(0.8, offset.clone()))
            .prop_map(|(key, offset)| Do::Set { txn: 0, key, offset }),
        3 => (1..9u128, keys(), offset)
            .prop_map(|(txn, key, offset)| Do::Set { txn, key, offset: Some(offset) }),
        1 => (1..9u128).prop_map(Do::Commit),
        1 => (1..9u128).prop_map(Do::Abort),
        6 => ack,
        1 => (1..4u32).prop_map(|number| Do::DeletePartition(PartitionId(number))),
    ]
}

/// What waits for transactions, as the room that keeps them has it.
type Waiting = BTreeMap<u128, BTreeMap<CursorKey, Option<Offset>>>;

/// A frame of the log, as replay sees it.
fn apply(
    cursors: &mut Cursors,
    waiting: &mut Waiting,
    gone: &mut BTreeSet<PartitionId>,
    lsn: Lsn,
    what: &Do,
) {
    match what {
        Do::Set { txn: 0, key, offset } => {
            let change = CursorChange { key: *key, offset: *offset };
            cursors.apply_cursors(lsn, [change], |partition| !gone.contains(&partition));
        }
        Do::Set { txn, key, offset } => {
            waiting.entry(*txn).or_default().insert(*key, *offset);
        }
        Do::Commit(txn) => {
            let changes = waiting.remove(txn).unwrap_or_default().into_iter();
            let changes = changes.map(|(key, offset)| CursorChange { key, offset });
            cursors.apply_cursors(lsn, changes, |partition| !gone.contains(&partition));
        }
        Do::Abort(txn) => drop(waiting.remove(txn)),
        Do::Ack(change) => cursors.apply_ack(lsn, change, |partition| !gone.contains(&partition)),
        Do::DeletePartition(partition) => {
            gone.insert(*partition);
            cursors.remove_partitions(|other| other == *partition);
        }
    }
}

fn text(cursors: &Cursors) -> String {
    let first = CursorKey { group: GroupId(0), partition: PartitionId(0), instance: 0 };
    let positions: Vec<_> = cursors.positions.range(first, false).collect();
    format!("{positions:?}\n{:?}", cursors.acks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// C1 and C2. A checkpoint is taken a stage at a time while the log goes on; replay begins anywhere before it.
    #[test]
    fn a_checkpoint_and_the_log_from_any_earlier_place_give_the_same_table(
        history in prop::collection::vec(ops(), 1..60),
        mut stages in prop::collection::vec(0..60usize, 2),
        from in 0..60usize,
    ) {
        stages.sort_unstable();
        let mut ended = BTreeSet::new();
        let history: Vec<Do> = history
            .into_iter()
            .filter(|what| match what {
                Do::Set { txn, .. } => !ended.contains(txn),
                Do::Commit(txn) | Do::Abort(txn) => ended.insert(*txn),
                _ => true,
            })
            .collect();
        let from = from.min(stages[0]).min(history.len());
        let mut exact = Cursors::default();
        let mut gone = BTreeSet::new();
        let (mut waiting, mut waiting_taken) = (Waiting::new(), None);
        let mut chunks = Vec::new();
        let mut capture = CursorCapture::Positions(None);
        // Transactions first, then positions.
        let mut take = |cursors: &Cursors, waiting: &Waiting| match waiting_taken {
            None => waiting_taken = Some(waiting.clone()),
            Some(_) => chunks.extend(cursors.capture(&mut capture)),
        };
        let mut gone_at_begin = BTreeSet::new();
        for (at, what) in history.iter().enumerate() {
            stages.iter().filter(|stage| **stage == at).for_each(|_| take(&exact, &waiting));
            if at == from {
                gone_at_begin.clone_from(&gone);
            }
            apply(&mut exact, &mut waiting, &mut gone, Lsn(at as u64), what);
        }
        stages.iter().filter(|stage| **stage >= history.len()).for_each(|_| take(&exact, &waiting));
        prop_assert!(matches!(capture, CursorCapture::Done));

        let mut waiting = waiting_taken.unwrap_or_default();
        let mut replayed = Cursors::default();
        for (items, bytes) in &chunks {
            replayed.restore(bytes, *items).unwrap();
        }
        if from == history.len() {
            gone_at_begin = gone;
        }
        for (at, what) in history.iter().enumerate().skip(from) {
            apply(&mut replayed, &mut waiting, &mut gone_at_begin, Lsn(at as u64), what);
        }
        prop_assert_eq!(text(&replayed), text(&exact));
    }

    /// What is known of a partition against a set of offsets.
    #[test]
    fn acks_are_a_set_above_a_watermark(history in prop::collection::vec(ops(), 1..60)) {
        let (group, partition) = (GroupId(1), PartitionId(1));
        let mut cursors = Cursors::default();
        let mut model: Option<(u64, BTreeSet<u64>, BTreeMap<u64, u16>)> = None;
        for (at, what) in history.iter().enumerate() {
            let Do::Ack(change) = what else { continue };
            let change = AckChange { group, partition, ..change.clone() };
            cursors.apply_ack(Lsn(at as u64), &change, |_| true);
            let known = model.get_or_insert_with(|| (change.watermark.0, BTreeSet::new(), BTreeMap::new()));
            if change.replaces {
                *known = (change.watermark.0, BTreeSet::new(), BTreeMap::new());
            }
            let (watermark, acked, retries) = known;
            *watermark = change.watermark.0.max(*watermark);
            change.ranges.iter().for_each(|(start, end)| acked.extend(start.0..end.0));
            for retry in &change.retries {
                retries.insert(retry.offset.0, retry.attempt);
            }
            while acked.remove(watermark) {
                *watermark += 1;
            }
            acked.retain(|offset| offset >= watermark);
            while acked.remove(watermark) {
                *watermark += 1;
            }
            retries.retain(|offset, attempt| *attempt > 0 && offset >= watermark && !acked.contains(offset));

            let position = cursors.position(CursorKey::shared(group, partition)).unwrap();
            prop_assert_eq!(position.offset.0, *watermark);
            let state = cursors.acks(group, partition).cloned().unwrap_or_default();
            let found: Vec<u64> = state.ranges().flat_map(|(start, end)| start.0..end.0).collect();
            prop_assert_eq!(found, acked.iter().copied().collect::<Vec<_>>());
            let runs = acked.iter().filter(|offset| !acked.contains(&(**offset + 1))).count();
            prop_assert_eq!(state.ranges().count(), runs, "ranges neither touch nor overlap");
            let found: BTreeMap<u64, u16> =
                state.retries().map(|retry| (retry.offset.0, retry.attempt)).collect();
            prop_assert_eq!(&found, &*retries);
            prop_assert_eq!(cursors.acks.is_empty(), acked.is_empty() && retries.is_empty());
        }
    }
}

#[test]
fn what_would_pass_a_bound_is_found_before_it_is_taken() {
    let (group, partition) = (GroupId(1), PartitionId(1));
    let mut cursors = Cursors::default();
    let mut lsn = 0;
    let mut ack = |cursors: &mut Cursors, from: u64, to: u64| {
        let mut change = AckChange::new(group, partition, Offset(0));
        change.ranges = vec![(Offset(from), Offset(to))];
        let fits = cursors.takes_ack(&change);
        if fits {
            lsn += 1;
            cursors.apply_ack(Lsn(lsn), &change, |_| true);
        }
        fits
    };
    assert!(!ack(&mut cursors, 1, ACK_SPAN_MAX + 1));
    let mut offset = 1;
    while ack(&mut cursors, offset, offset + 1) {
        offset += 2;
    }
    let state = cursors.acks(group, partition).unwrap();
    assert!(state.size() <= ACK_STATE_SIZE_MAX && state.size() + 64 > ACK_STATE_SIZE_MAX);
    // What closes a gap makes it smaller.
    assert!(ack(&mut cursors, 2, 3));
    assert!(ack(&mut cursors, 0, 1));
}
