use super::*;
use proptest::prelude::*;

const SESSION: u32 = 1_000;

fn subscriptions(topics: &[&str]) -> Vec<GroupSubscription> {
    let one = |topic: &&str| GroupSubscription { topic: (*topic).to_owned(), filter: "*".to_owned() };
    topics.iter().map(one).collect()
}

fn joining(member: u64, mode: GroupMode) -> Joining {
    Joining {
        member,
        name: format!("name {member}"),
        instance_name: String::new(),
        instance: 0,
        session_ms: SESSION,
        mode,
        subscriptions: subscriptions(&["a", "b"]),
    }
}

fn at(mono_us: u64) -> Now {
    Now { mono_us, wall_ms: 7 }
}

/// Topics `a` and `b` with so many partitions; 0: it does not exist.
fn topics(a: u32, b: u32) -> impl Fn(&str) -> Option<Shape> {
    move |name| {
        let (number, partitions) = if name == "a" { (1, a) } else { (2, b) };
        let base = PartitionId(number * 1_000);
        (partitions > 0).then(|| Shape { topic: TopicId(number), name: name.to_owned(), base, partitions })
    }
}

#[derive(Clone, Debug)]
enum Do {
    Join(u64),
    Leave(u64),
    Beat { member: u64, knows_newest: bool, wait: bool },
    Pass(u64),
    Topics(u32, u32),
}

fn ops() -> impl Strategy<Value = Do> {
    let member = 1..7u64;
    prop_oneof![
        4 => member.clone().prop_map(Do::Join),
        1 => member.clone().prop_map(Do::Leave),
        6 => (member, any::<bool>(), any::<bool>())
            .prop_map(|(member, knows_newest, wait)| Do::Beat { member, knows_newest, wait }),
        3 => (0..700u64).prop_map(|ms| Do::Pass(ms * 1_000)),
        1 => (0..9u32, 0..5u32).prop_map(|(a, b)| Do::Topics(a, b)),
    ]
}

/// Everything that the group gives, by member.
fn shares(group: &Membership<u64>) -> BTreeMap<u64, BTreeSet<u32>> {
    let of = |number: u64| -> BTreeSet<u32> {
        let all = |shape: &Shape| shape.ids().collect();
        group
            .assignment(number)
            .into_iter()
            .flat_map(|(shape, ids)| ids.unwrap_or_else(|| all(shape)))
            .collect()
    };
    group.members().keys().map(|number| (*number, of(*number))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// E1 to E5 against a model that only knows who was heard when.
    #[test]
    fn a_group_keeps_its_promises(history in prop::collection::vec(ops(), 1..80)) {
        let mut group: Membership<u64> = Membership::new(3);
        let mut heard: BTreeMap<u64, u64> = BTreeMap::new();
        let mut known: BTreeMap<u64, u64> = BTreeMap::new();
        let mut held: BTreeMap<u64, u64> = BTreeMap::new();
        let mut alive: BTreeSet<u64> = BTreeSet::new();
        let (mut now, mut a, mut b, mut token) = (0, 5, 3, 0);
        for what in history {
            let (before, generation) = (shares(&group), group.generation());
            match what {
                Do::Join(member) => {
                    group.admits(&joining(member, GroupMode::Stream)).unwrap();
                    let joined = group.join(at(now), 99, joining(member, GroupMode::Stream), &topics(a, b));
                    let after = shares(&group);
                    let lost = before.iter().any(|(other, had)| *other != member && after[other] != *had);
                    prop_assert_eq!(joined, (member, lost));
                    heard.insert(member, now);
                    known.insert(member, group.generation());
                }
                Do::Leave(member) => {
                    prop_assert_eq!(group.leave(member).is_some(), heard.remove(&member).is_some());
                }
                Do::Beat { member, knows_newest, wait } => {
                    token += 1;
                    let known = if knows_newest { group.generation() } else { 1 };
                    let wait_ms = if wait { 400 } else { 0 };
                    let beat = group.heartbeat(at(now), member, known, wait_ms, None, token);
                    match heard.get_mut(&member) {
                        None => prop_assert_eq!(beat, Beat::NotAMember),
                        Some(heard) => {
                            *heard = now;
                            let expected = match (knows_newest, wait) {
                                (false, _) => Beat::Answer { changed: true },
                                (true, false) => Beat::Answer { changed: false },
                                (true, true) => Beat::Held,
                            };
                            prop_assert_eq!(beat, expected);
                        }
                    }
                    if beat == Beat::Held {
                        held.insert(token, now + 400_000);
                    }
                }
                Do::Pass(us) => {
                    now += us;
                    if group.deadline_us().is_some_and(|at| at <= now) {
                        group.tick(at(now));
                    }
                    heard.retain(|_, at| *at + u64::from(SESSION) * 1_000 > now);
                }
                Do::Topics(more_a, more_b) => {
                    (a, b) = (more_a, more_b);
                    group.topics_changed(&topics(a, b));
                }
            }
            // E4
            let members: Vec<u64> = group.members().keys().copied().collect();
            prop_assert_eq!(&members, &heard.keys().copied().collect::<Vec<_>>());
            for change in group.take_changes() {
                match change {
                    Change::Joined(member) => prop_assert!(alive.insert(member)),
                    Change::Gone { member, .. } => prop_assert!(alive.remove(&member)),
                }
            }
            prop_assert_eq!(&alive.iter().copied().collect::<Vec<_>>(), &members);
            // E1, E3
            let after = shares(&group);
            let all: Vec<u32> = after.values().flatten().copied().collect();
            let distinct: BTreeSet<u32> = all.iter().copied().collect();
            prop_assert_eq!(all.len(), distinct.len());
            if !after.is_empty() {
                prop_assert_eq!(distinct.len() as u32, a + b);
                let sizes: Vec<usize> = after.values().map(BTreeSet::len).collect();
                prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            }
            // What was with a member who is still there moves only if that member had more than its share.
            let share = (a + b) as usize / after.len().max(1);
            for (member, had) in &before {
                let Some(has) = after.get(member) else { continue };
                let lost = had.iter().filter(|id| distinct.contains(id) && !has.contains(id)).count();
                prop_assert!(lost == 0 || had.len() - lost >= share, "{} lost {}", member, lost);
            }
            // E2
            prop_assert!(group.generation() >= generation && group.generation() >> 32 == 3);
            for (member, had) in &before {
                if after.get(member).is_some_and(|has| has != had) {
                    prop_assert!(group.generation() > generation);
                }
            }
            // E5
            for released in group.take_released() {
                let until = held.remove(&released.token);
                prop_assert!(until.is_some());
                if released.changed {
                    prop_assert!(group.generation() > generation);
                }
            }
            prop_assert_eq!(group.held(), held.len());
            prop_assert!(held.is_empty() || group.deadline_us().is_some());
            if group.generation() > generation {
                prop_assert!(held.is_empty(), "somebody does not know the new generation");
            }
        }
    }
}

#[test]
fn a_conflict_names_the_member_and_the_difference() {
    let mut group: Membership<u64> = Membership::new(1);
    group.join(at(0), 1, joining(0, GroupMode::Stream), &topics(2, 2));
    let said = |join: Joining| match group.admits(&join) {
        Err(Refusal::Conflict(text)) => text,
        other => panic!("{other:?}"),
    };
    let other = joining(0, GroupMode::Queue);
    assert_eq!(said(other), "member 'name 0' consumes in stream mode, this one in queue mode");
    let fewer = Joining { subscriptions: subscriptions(&["a"]), ..joining(0, GroupMode::Stream) };
    assert_eq!(said(fewer), "member 'name 0' consumes 'b', this one does not");
    let more = Joining { subscriptions: subscriptions(&["a", "b", "c"]), ..joining(0, GroupMode::Stream) };
    assert_eq!(said(more), "member 'name 0' does not consume 'c', this one does");
    let mut filtered = joining(0, GroupMode::Stream);
    filtered.subscriptions[0].filter = "x".to_owned();
    let text = "member 'name 0' consumes 'a' with filter '*', this one with 'x'";
    assert_eq!(said(filtered.clone()), text);
    // The order does not matter, and a member may change its own mind while it is alone.
    let mut turned = joining(0, GroupMode::Stream);
    turned.subscriptions.reverse();
    assert_eq!(group.admits(&turned), Ok(()));
    assert_eq!(group.admits(&Joining { member: 1, ..filtered }), Ok(()));
}

#[test]
fn an_instance_in_its_next_life_takes_the_place_of_the_one_before() {
    let mut group: Membership<u64> = Membership::new(1);
    let named = Joining { instance: 5, instance_name: "i".to_owned(), ..joining(0, GroupMode::Broadcast) };
    group.join(at(0), 1, named.clone(), &topics(2, 2));
    group.join(at(0), 2, joining(0, GroupMode::Broadcast), &topics(2, 2));
    let generation = group.generation();
    group.take_changes();
    assert_eq!(group.join(at(1), 3, named, &topics(2, 2)), (3, false));
    let gone = Change::Gone { member: 1, left: false };
    assert_eq!(group.take_changes(), [gone, Change::Joined(3)]);
    assert_eq!(group.generation(), generation, "everybody has everything as before");
    assert!(group.assignment(3).iter().all(|(_, ids)| ids.is_none()));
}

#[test]
fn dropped_and_deleted_members_are_told() {
    let mut group: Membership<u64> = Membership::new(1);
    group.join(at(0), 1, joining(0, GroupMode::Stream), &topics(2, 2));
    let generation = group.generation();
    assert_eq!(group.heartbeat(at(1), 1, generation, 9_999, None, 8), Beat::Held);
    // A lost connection asks for nothing any more.
    group.forget(1, |token| token == 9);
    assert_eq!(group.held(), 1);
    group.clear();
    assert_eq!(group.take_released(), [Released { token: 8, member: 1, gone: true, changed: false }]);
    assert!(group.is_empty() && group.deadline_us().is_none());
}
