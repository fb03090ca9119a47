//! What the server promises to single connections, shown on the simulator's clock: ends in time, last answers, bounds.

#![allow(clippy::unwrap_used)] // helpers of tests

mod sim;

use ringmq_client::ErrorCode;
use ringmq_engine::format::PartitionId;
use ringmq_protocol::{
    Ack, CommitOffsets, GroupMode, GroupSettings, ItemsBuf, JoinGroup, PositionEntry, Receive, Request,
    Subscribe, Subscription, limits,
};
use sim::scenes::{PRODUCED, Said, Scene, Wire, encoded, frame, produce};

const SECOND: u64 = 1_000_000;

#[test]
fn half_a_message_ends_its_connection_and_no_other() {
    let mut scene = Scene::new(1, |_| {});
    let mut slow = scene.greet(0);
    let mut quick = scene.greet(0);
    let message = encoded(&Request::DeleteTopic("no-such-topic"));
    // A byte now and then does not help: the time is the whole message's.
    let begun = scene.world().now_us();
    for byte in &message[..20] {
        scene.send(&slow, &[*byte]);
        scene.pass(SECOND);
    }
    assert!(!scene.is_closed(&slow));
    assert_eq!(scene.end(&mut slow), [(0, Said::Error(Some(ErrorCode::Timeout)))]);
    let took = scene.world().now_us() - begun;
    assert!((30..34).contains(&(took / SECOND)), "{took} us");
    assert_eq!(scene.total(|stats| stats.closed_slow), 1);
    let ping = scene.ask(&mut quick, &Request::Ping);
    assert_eq!(scene.answer(&mut quick, ping), Said::Other);
}

#[test]
fn silence_ends_a_connection_unless_something_is_outstanding() {
    let mut scene = Scene::new(2, |_| {});
    let mut silent = scene.greet(0);
    let mut pinging = scene.greet(1);
    let mut subscribed = scene.greet(0);
    scene.open(&mut subscribed, 1);
    let subscribe = Subscribe { handle: 1, subscription: 1, offset: 0, credit: 1 << 20, group: 0 };
    let answer = scene.ask(&mut subscribed, &Request::Subscribe(subscribe));
    assert_eq!(scene.answer(&mut subscribed, answer), Said::Other);
    for _ in 0..4 {
        scene.pass(limits::IDLE_TIME_MS * 1000 / 4 + SECOND);
        scene.ask(&mut pinging, &Request::Ping);
    }
    assert_eq!(scene.end(&mut silent), []);
    scene.pass(10 * SECOND);
    assert_eq!(scene.total(|stats| stats.closed_idle), 1);
    assert!(!scene.is_closed(&pinging) && !scene.is_closed(&subscribed));
}

#[test]
fn who_only_finished_sending_gets_the_answers_that_are_outstanding() {
    let mut scene = Scene::new(2, |_| {});
    for partition in [0, 1] {
        let mut waiting = scene.greet(0);
        scene.open(&mut waiting, partition);
        let poll = scene.fetch(&mut waiting, 0, 20_000);
        scene.world().client_finish(waiting.socket);
        scene.pass(10 * SECOND);
        assert!(!scene.is_closed(&waiting), "cut off while its poll is outstanding");
        let mut producer = scene.greet(1);
        scene.open(&mut producer, partition);
        scene.send(&producer, &produce(&frame(100)));
        let said = scene.end(&mut waiting);
        assert!(matches!(said[..], [(of, Said::Fetched(bytes))] if of == poll && bytes > 100), "{said:?}");
    }
}

#[test]
fn the_last_answer_is_not_torn_away_by_input_that_nobody_reads() {
    for rest in [1, 10_000, 300_000] {
        let mut scene = Scene::new(1, |_| {});
        let mut wire = scene.greet(0);
        scene.send(&wire, &[0xa5; 32]);
        scene.send(&wire, &vec![0x5a; rest]);
        scene.pass(300_000);
        assert_eq!(
            scene.end(&mut wire),
            [(0, Said::Error(Some(ErrorCode::HeaderCrc)))],
            "{rest} bytes behind"
        );
    }
}

#[test]
fn a_commit_that_is_said_twice_in_a_turn_is_answered_once_the_first_is_durable() {
    let mut scene = Scene::new(1, |_| {});
    let mut wire = scene.greet(0);
    scene.open(&mut wire, 0);
    scene.send(&wire, &produce(&frame(100)));
    assert_eq!(scene.answer(&mut wire, 77), Said::Produced(vec![None]));
    let subscriptions: ItemsBuf = [Subscription { topic: "t", filter: "*" }].into_iter().collect();
    let join = JoinGroup {
        group: "g",
        mode: GroupMode::Stream,
        member: 0,
        name: "m",
        instance: "",
        session_ms: 0,
        create: true,
        settings: GroupSettings::default(),
        subscriptions: subscriptions.items(),
    };
    let join = scene.ask(&mut wire, &Request::JoinGroup(join));
    let Said::Joined(group, member, generation, partition) = scene.answer(&mut wire, join) else {
        panic!("not a member")
    };
    let positions = [PositionEntry::new(PartitionId(partition), 1)];
    let commit = CommitOffsets { group, member, generation, instance: 0, txn: 0, positions: &positions };
    let mut both = Vec::new();
    for correlation in [1_001, 1_002] {
        Request::CommitOffsets(commit).encode(correlation, &mut both);
    }
    scene.send(&wire, &both);
    let mut heard = Vec::new();
    scene.until("both answers", |own| {
        heard.extend(own.heard(&mut wire));
        heard.len() == 2
    });
    assert_eq!(heard, [(1_001, Said::Other), (1_002, Said::Other)], "in the order in which they are durable");
}

#[test]
fn half_requests_of_many_clients_stay_within_the_budget_and_others_get_through() {
    const BUDGET: usize = 8 << 20;
    let mut scene = Scene::new(2, |plan| plan.connection_memory = BUDGET);
    let mut healthy = scene.greet(0);
    scene.open(&mut healthy, 1);
    let large = produce(&frame(3 << 19));
    let greedy: Vec<_> = (0..40)
        .map(|_| {
            let mut wire = scene.greet(0);
            scene.open(&mut wire, 0);
            scene.send(&wire, &large[..large.len() - 1]);
            wire
        })
        .collect();
    let mut peak = 0;
    for round in 0..20 {
        scene.pass(SECOND / 2);
        scene.send(&healthy, &produce(&frame(100)));
        let said = scene.answer(&mut healthy, PRODUCED);
        assert_eq!(said, Said::Produced(vec![None]), "round {round}");
        peak = peak.max(scene.servers().map(|server| server.stats().connection_bytes).max().unwrap());
    }
    // The budget, and one request beyond it.
    assert!(peak > BUDGET as u64 / 2 && peak < BUDGET as u64 + (8 << 20), "{peak} bytes held");
    // Whole requests get through one after the other, however many there are.
    for wire in &greedy {
        scene.send(wire, &large[large.len() - 1..]);
    }
    for mut wire in greedy {
        assert_eq!(scene.answer(&mut wire, PRODUCED), Said::Produced(vec![None]));
    }
    scene.pass(5 * SECOND);
    let held = scene.servers().map(|server| server.stats().connection_bytes).max().unwrap();
    assert!(held < BUDGET as u64 / 2, "{held} bytes are still held");
}

#[test]
fn an_acknowledgement_is_answered_though_the_disk_is_full() {
    let mut scene = Scene::new(1, |plan| {
        plan.segment_size = 128 << 10;
        plan.disk_limit = Some(12 * plan.segment_size);
    });
    let mut wire = scene.greet(0);
    scene.open(&mut wire, 0);
    let subscriptions: ItemsBuf = [Subscription { topic: "t", filter: "*" }].into_iter().collect();
    let join = scene.ask(
        &mut wire,
        &Request::JoinGroup(JoinGroup {
            group: "g",
            mode: GroupMode::Queue,
            member: 0,
            name: "m",
            instance: "",
            session_ms: 3_600_000,
            create: true,
            settings: GroupSettings::default(),
            subscriptions: subscriptions.items(),
        }),
    );
    let Said::Joined(group, member, ..) = scene.answer(&mut wire, join) else { panic!("not joined") };
    // Small records to acknowledge, and large ones until nothing more fits.
    let sizes = std::iter::repeat_n(8, 300).chain(std::iter::repeat_n(16 << 10, 200));
    let is_full = sizes.into_iter().any(|len| {
        scene.send(&wire, &produce(&frame(len)));
        scene.answer(&mut wire, PRODUCED) == Said::Produced(vec![Some(ErrorCode::DiskFull)])
    });
    assert!(is_full);
    let receive = |scene: &mut Scene, wire: &mut Wire| {
        let (handle, max_records, max_bytes, invisible_ms, wait_ms) = (1, 1, 1, 3_600_000, 0);
        let receive = Receive { handle, group, member, max_records, max_bytes, invisible_ms, wait_ms };
        let asked = scene.ask(wire, &Request::Receive(receive));
        match scene.answer(wire, asked) {
            Said::Received(leases) => leases,
            other => panic!("{other:?}"),
        }
    };
    // What is kept free for acknowledgements is used up, too.
    for _ in 0..300 {
        let leases = receive(&mut scene, &mut wire);
        let begun = scene.world().now_us();
        let ack = Ack { handle: 1, group, member, leases: &leases };
        let asked = scene.ask(&mut wire, &Request::Ack(ack));
        let Said::Acked(outcomes) = scene.answer(&mut wire, asked) else { panic!("no acknowledgement") };
        if outcomes == [None] {
            continue;
        }
        assert_eq!(outcomes, [Some(ErrorCode::OutcomeUnknown)]);
        let took = scene.world().now_us() - begun;
        assert!((4 * SECOND..7 * SECOND).contains(&took), "{took} us");
        return;
    }
    panic!("the disk is never full for acknowledgements");
}
