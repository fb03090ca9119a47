//! A scripted server: a model of what PROTOCOL.md says about sequences, and a random one that loses answers.

use super::*;
use std::collections::HashMap;

fn config() -> ProducerCoreConfig {
    ProducerCoreConfig {
        linger_us: 0,
        batch_bytes: 1_000,
        batch_records: 100,
        frame_size_max: 4_096,
        codec: Codec::None,
        block_per_record: false,
        max_buffered_bytes: 1 << 20,
        retry_for_us: 120_000_000,
        identity: ProducerIdentity::new(9),
        seed: 3,
    }
}

fn record(body: &[u8]) -> Record<'_> {
    Record { body, ..Record::default() }
}

/// What one partition of a server knows about one producer.
#[derive(Default)]
struct Model {
    stored: Vec<Vec<u8>>,
    epoch: u16,
    next: u32,
    window: VecDeque<(u16, u32, u64)>,
}

impl Model {
    fn produce(&mut self, frame: &Bytes) -> FrameOutcome {
        let header = FrameHeader::parse(frame).unwrap();
        let (epoch, sequence) = (header.producer_epoch.get(), header.base_sequence.get());
        let known = self.window.iter().find(|known| (known.0, known.1) == (epoch, sequence));
        if let Some(known) = known {
            return Ok(Stored { base_offset: known.2, timestamp_ms: 0, duplicate: true });
        }
        if epoch < self.epoch {
            return Err(Refused::new(ErrorCode::ProducerFenced));
        }
        let next = if epoch > self.epoch { 0 } else { self.next };
        if epoch == self.epoch && sequence < next {
            return Err(Refused::new(ErrorCode::DuplicateUnknownOffset));
        }
        if sequence != next {
            return Err(Refused::new(ErrorCode::OutOfOrderSequence));
        }
        let base_offset = self.stored.len() as u64;
        let mut records = VecDeque::new();
        let entry = ringmq_protocol::FetchEntryHeader::new(base_offset, 0, 0, header.count.get());
        super::super::decode::decode_frame(0, &entry, frame, 0, &mut records).unwrap();
        self.stored.extend(records.iter().map(|record| record.body.to_vec()));
        self.epoch = epoch;
        self.next = sequence.wrapping_add(header.count.get());
        self.window.push_back((epoch, sequence, base_offset));
        if self.window.len() > FRAMES_IN_FLIGHT_MAX {
            self.window.pop_front();
        }
        Ok(Stored { base_offset, timestamp_ms: 0, duplicate: false })
    }
}

fn poll(core: &mut ProducerCore, now_us: u64) -> Vec<Outgoing> {
    let mut sends = Vec::new();
    core.poll(now_us, &mut sends);
    assert!(
        core.deadline_us() > now_us,
        "something is due at {} after a poll at {now_us}",
        core.deadline_us()
    );
    sends
}

fn sequence(send: &Outgoing) -> (u16, u32) {
    let header = FrameHeader::parse(&send.frame).unwrap();
    assert_eq!(header.producer_id.get(), 9);
    (header.producer_epoch.get(), header.base_sequence.get())
}

fn refused(code: ErrorCode) -> FrameOutcome {
    Err(Refused::new(code))
}

/// Pushes one record per frame and sends them.
fn fly(core: &mut ProducerCore, bodies: &[&[u8]]) -> Vec<Outgoing> {
    bodies
        .iter()
        .flat_map(|body| {
            core.push(0, 0, &record(body)).unwrap();
            poll(core, 0)
        })
        .collect()
}

fn completions(core: &mut ProducerCore) -> Vec<(u64, Result<u64, Failure>)> {
    std::iter::from_fn(|| core.next_completion())
        .map(|done| (done.batch, done.result.map(|stored| stored.base_offset)))
        .collect()
}

#[test]
fn a_batch_waits_for_its_linger_or_until_it_is_full() {
    let mut core = ProducerCore::new(ProducerCoreConfig { linger_us: 5_000, ..config() });
    let first = core.push(100, 0, &record(b"a")).unwrap();
    let second = core.push(200, 0, &record(b"b")).unwrap();
    assert_eq!((first.batch, first.index, first.wakes), (0, 0, true));
    assert_eq!((second.batch, second.index, second.wakes), (0, 1, false));
    assert_eq!(core.deadline_us(), 5_100);
    assert!(poll(&mut core, 5_099).is_empty());
    assert_eq!(poll(&mut core, 5_100).len(), 1);
    // Full by size: sealed at once, and the next record opens another.
    core.push(6_000, 0, &record(&[1; 700])).unwrap();
    assert_eq!(core.push(6_000, 0, &record(&[2; 700])).unwrap().batch, 2);
    assert_eq!(poll(&mut core, 6_000).len(), 1);
    core.flush();
    assert_eq!(poll(&mut core, 6_000).len(), 1);
}

#[test]
fn at_most_five_frames_of_a_partition_are_in_flight() {
    let mut core = ProducerCore::new(config());
    let sends = fly(&mut core, &[b"a", b"b", b"c", b"d", b"e", b"f", b"g"]);
    assert_eq!(sends.iter().map(sequence).collect::<Vec<_>>(), [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]);
    // What came meanwhile was collected.
    core.outcome(1, sends[0].batch, Ok(Stored { base_offset: 0, timestamp_ms: 0, duplicate: false }));
    let next = poll(&mut core, 1);
    assert_eq!(next.len(), 1);
    assert_eq!(FrameHeader::parse(&next[0].frame).unwrap().count.get(), 2);
    assert_eq!(sequence(&next[0]), (0, 5));
    // Another partition has its own five.
    core.push(1, 1, &record(b"x")).unwrap();
    assert_eq!(poll(&mut core, 1).len(), 1);
}

#[test]
fn a_lost_connection_resends_the_same_sequences_in_order() {
    let mut core = ProducerCore::new(config());
    let mut model = Model::default();
    let sends = fly(&mut core, &[b"a", b"b", b"c"]);
    // The first two arrived, no answer did.
    sends[..2].iter().for_each(|send| drop(model.produce(&send.frame)));
    sends.iter().for_each(|send| core.lost(10, send.batch));
    assert!(poll(&mut core, 10).is_empty());
    let now = core.deadline_us();
    let again = poll(&mut core, now);
    assert_eq!(
        again.iter().map(|send| (send.batch, sequence(send))).collect::<Vec<_>>(),
        [(0, (0, 0)), (1, (0, 1)), (2, (0, 2))]
    );
    for send in &again {
        let outcome = model.produce(&send.frame);
        assert_eq!(outcome.as_ref().unwrap().duplicate, send.batch < 2);
        core.outcome(20, send.batch, outcome);
    }
    assert_eq!(completions(&mut core), [(0, Ok(0)), (1, Ok(1)), (2, Ok(2))]);
    assert_eq!(model.stored, [b"a", b"b", b"c"]);
    assert!(core.is_empty() && core.buffered() == 0);
}

#[test]
fn what_stands_behind_a_refused_frame_follows_it_again_in_order() {
    let mut core = ProducerCore::new(config());
    let sends = fly(&mut core, &[b"a", b"b", b"c"]);
    core.outcome(0, 0, Err(Refused { retry_after_ms: 50, ..Refused::new(ErrorCode::DiskFull) }));
    core.outcome(0, 1, refused(ErrorCode::OutOfOrderSequence));
    assert!(poll(&mut core, 60_000).is_empty(), "sent while a frame is unanswered");
    core.outcome(0, 2, refused(ErrorCode::OutOfOrderSequence));
    assert!(poll(&mut core, 49_999).is_empty());
    let again = poll(&mut core, 50_000);
    assert_eq!(
        again.iter().map(sequence).collect::<Vec<_>>(),
        sends.iter().map(sequence).collect::<Vec<_>>()
    );
    assert_eq!(core.epochs_given_up(), 0);
}

#[test]
fn a_frame_that_is_never_taken_fails_alone_and_the_rest_gets_a_new_epoch() {
    let mut core = ProducerCore::new(config());
    fly(&mut core, &[b"a", b"b", b"c"]);
    core.outcome(0, 0, refused(ErrorCode::Throttled));
    core.outcome(0, 1, refused(ErrorCode::FrameInvalid));
    core.lost(0, 2);
    let now = core.deadline_us();
    // The one in front keeps its number and goes first, alone.
    let first = poll(&mut core, now);
    assert_eq!(first.iter().map(|send| (send.batch, sequence(send))).collect::<Vec<_>>(), [(0, (0, 0))]);
    core.outcome(now, 0, Ok(Stored { base_offset: 4, timestamp_ms: 0, duplicate: false }));
    let second = poll(&mut core, now + 1_000_000);
    assert_eq!(second.iter().map(|send| (send.batch, sequence(send))).collect::<Vec<_>>(), [(2, (1, 0))]);
    let done = completions(&mut core);
    assert_eq!(done, [(1, Err(Failure::Refused(Refused::new(ErrorCode::FrameInvalid)))), (0, Ok(4))]);
}

#[test]
fn a_server_that_forgot_the_producer_gets_a_new_epoch() {
    for code in [ErrorCode::OutOfOrderSequence, ErrorCode::ProducerUnknown] {
        let mut identity = ProducerIdentity::new(9);
        identity.partitions.insert(0, (4, 77));
        let mut core = ProducerCore::new(ProducerCoreConfig { identity, ..config() });
        let sends = fly(&mut core, &[b"a"]);
        assert_eq!(sequence(&sends[0]), (4, 77));
        core.outcome(0, 0, refused(code));
        let now = core.deadline_us();
        let again = poll(&mut core, now);
        assert_eq!(sequence(&again[0]), (5, 0));
        core.outcome(0, 0, Ok(Stored { base_offset: 1, timestamp_ms: 0, duplicate: false }));
        assert_eq!(completions(&mut core), [(0, Ok(1))]);
        assert_eq!(core.identity().partitions[&0], (5, 1));
    }
}

#[test]
fn what_may_have_been_stored_never_gets_a_new_number() {
    let mut core = ProducerCore::new(config());
    fly(&mut core, &[b"a", b"b", b"c"]);
    core.lost(0, 0);
    core.lost(0, 1);
    core.not_sent(0, 2);
    let end = 120_000_000;
    core.push(1, 0, &record(b"d")).unwrap();
    let sends = poll(&mut core, end);
    let unknown = || Err(Failure::OutcomeUnknown { last: None });
    assert_eq!(
        completions(&mut core),
        [(0, unknown()), (1, unknown()), (2, Err(Failure::Expired { last: None }))]
    );
    // Only what was never sent goes on, under a new epoch.
    assert_eq!(sends.iter().map(|send| (send.batch, sequence(send))).collect::<Vec<_>>(), [(3, (1, 0))]);
}

#[test]
fn a_fenced_producer_stops() {
    let mut core = ProducerCore::new(config());
    fly(&mut core, &[b"a", b"b"]);
    core.push(0, 0, &record(b"c")).unwrap();
    core.outcome(0, 0, refused(ErrorCode::ProducerFenced));
    let fenced = completions(&mut core);
    assert_eq!(fenced.len(), 3);
    assert!(fenced.iter().all(|done| done.1 == Err(Failure::Fenced)));
    assert_eq!(core.push(0, 0, &record(b"d")), Err(PushError::Fenced));
    core.outcome(0, 1, refused(ErrorCode::ProducerFenced));
    assert!(core.is_empty() && core.buffered() == 0);
}

#[test]
fn memory_is_bounded_and_comes_back() {
    let mut core = ProducerCore::new(ProducerCoreConfig { max_buffered_bytes: 500, ..config() });
    // One record may be larger than the bound when nothing else is there.
    core.push(0, 0, &record(&[0; 600])).unwrap();
    assert_eq!(core.push(0, 1, &record(b"x")), Err(PushError::Full));
    let sends = poll(&mut core, 0);
    core.outcome(0, sends[0].batch, Ok(Stored { base_offset: 0, timestamp_ms: 0, duplicate: false }));
    core.push(0, 1, &record(b"x")).unwrap();
    // Larger than any frame.
    assert_eq!(core.push(0, 2, &record(&[0; 300])).unwrap().batch, 2);
    let mut core = ProducerCore::new(config());
    assert_eq!(core.push(0, 0, &record(&[0; 5_000])), Err(PushError::Record(RecordError::FrameFull)));
    assert_eq!(core.push(0, 0, &record(&[0; 3_000])).unwrap().batch, 0);
    assert_eq!(core.buffered(), 3_000 + RECORD_OVERHEAD);
}

#[test]
fn whole_frames_keep_their_place_among_records() {
    let mut core = ProducerCore::new(config());
    core.push(0, 0, &record(b"a")).unwrap();
    let mut builder = FrameBuilder::new(0, 4_096);
    builder.push(&record(b"b")).unwrap();
    builder.push(&record(b"c")).unwrap();
    let frame = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
    core.push_frame(0, 0, Bytes::from(frame)).unwrap();
    core.push(0, 0, &record(b"d")).unwrap();
    let mut model = Model::default();
    let sends = poll(&mut core, 0);
    assert_eq!(sends.iter().map(sequence).collect::<Vec<_>>(), [(0, 0), (0, 1), (0, 3)]);
    sends.iter().for_each(|send| drop(model.produce(&send.frame)));
    assert_eq!(model.stored, [b"a", b"b", b"c", b"d"]);
    assert_eq!(core.push_frame(0, 0, Bytes::from_static(b"no frame")), Err(PushError::Frame));
}

#[test]
fn sequences_wrap_around() {
    let mut identity = ProducerIdentity::new(9);
    identity.partitions.insert(0, (0, u32::MAX));
    let mut core = ProducerCore::new(ProducerCoreConfig { identity, ..config() });
    let sends = fly(&mut core, &[b"a", b"b"]);
    assert_eq!(sends.iter().map(sequence).collect::<Vec<_>>(), [(0, u32::MAX), (0, 0)]);
}

/// Many seeds of a server that loses requests and answers, refuses, and answers late: what is acknowledged is stored
/// once, in order; what failed for certain is not stored; nothing hangs.
#[test]
fn whatever_the_network_does_nothing_is_lost_doubled_or_reordered() {
    let seeds = std::env::var("RINGMQ_SEEDS").map_or(400, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let retry_for_us = if seed % 3 == 0 { 150_000 } else { 120_000_000 };
        let mut core = ProducerCore::new(ProducerCoreConfig { retry_for_us, batch_bytes: 200, ..config() });
        let mut models = [Model::default(), Model::default()];
        let mut pushed: HashMap<u64, Vec<(u32, Vec<u8>)>> = HashMap::new();
        let mut done: HashMap<u64, Completion> = HashMap::new();
        // Requests on their way to the server, then answers on their way back.
        let mut wire: VecDeque<Outgoing> = VecDeque::new();
        let mut back: VecDeque<(u64, FrameOutcome)> = VecDeque::new();
        let mut ghosts: VecDeque<Outgoing> = VecDeque::new();
        let (mut now, mut count, mut steps) = (0, 0u32, 0);
        while count < 60 || !core.is_empty() {
            steps += 1;
            assert!(steps < 20_000, "seed {seed} hangs");
            let calm = count >= 60 && steps > 2_000;
            match random.next_u64() % 10 {
                0..=2 if count < 60 => {
                    let partition = (random.next_u64() % 2) as u32;
                    let body = count.to_be_bytes().to_vec();
                    let to = core.push(now, partition, &record(&body)).unwrap();
                    pushed.entry(to.batch).or_default().push((partition, body));
                    count += 1;
                }
                3 => now += random.next_u64() % 30_000,
                4 | 5 => {
                    if let Some(send) = wire.pop_front() {
                        let outcome = match random.next_u64() % 12 {
                            0 if !calm => refused(ErrorCode::DiskFull),
                            1 if !calm && seed % 2 == 0 => refused(ErrorCode::FrameInvalid),
                            // Refused or stored, and nobody knows.
                            2 if !calm => {
                                if random.next_u64().is_multiple_of(2) {
                                    drop(models[send.partition as usize].produce(&send.frame));
                                }
                                refused(ErrorCode::OutcomeUnknown)
                            }
                            _ => models[send.partition as usize].produce(&send.frame),
                        };
                        back.push_back((send.batch, outcome));
                    }
                }
                6 | 7 => {
                    if let Some((batch, outcome)) = back.pop_front() {
                        core.outcome(now, batch, outcome);
                    }
                }
                8 if !calm && random.next_u64().is_multiple_of(4) => {
                    // The connection breaks. What was on its way there may still arrive, even long after.
                    for (batch, _) in back.drain(..) {
                        core.lost(now, batch);
                    }
                    for outgoing in wire.drain(..) {
                        core.lost(now, outgoing.batch);
                        ghosts.push_back(outgoing);
                    }
                    ghosts.truncate(random.next_u64() as usize % (ghosts.len() + 1));
                }
                9 if !ghosts.is_empty() => {
                    if let Some(ghost) = ghosts.pop_front() {
                        drop(models[ghost.partition as usize].produce(&ghost.frame));
                    }
                }
                _ => wire.extend(poll(&mut core, now)),
            }
            while let Some(completion) = core.next_completion() {
                assert!(done.insert(completion.batch, completion).is_none(), "P5");
            }
        }
        assert_eq!(core.buffered(), 0);
        assert_eq!(done.len(), pushed.len());
        for (index, model) in models.iter().enumerate() {
            let stored: Vec<u32> =
                model.stored.iter().map(|body| u32::from_be_bytes(body[..].try_into().unwrap())).collect();
            assert!(stored.is_sorted_by(|a, b| a < b), "seed {seed}: doubled or reordered: {stored:?}");
            for (batch, records) in pushed.iter().filter(|entry| entry.1[0].0 as usize == index) {
                for (at, (_, body)) in records.iter().enumerate() {
                    let found = model.stored.iter().position(|other| other == body);
                    match &done[batch].result {
                        Ok(at_offset) => {
                            assert_eq!(found, Some(at_offset.base_offset as usize + at), "seed {seed}: lost");
                        }
                        Err(Failure::Refused(_) | Failure::Expired { .. }) => {
                            assert_eq!(
                                found, None,
                                "seed {seed}: batch {batch} failed for certain, but is there"
                            );
                        }
                        Err(Failure::StoredOffsetUnknown) => {
                            panic!("seed {seed}: more than the server's window was sent")
                        }
                        Err(_) => {}
                    }
                }
            }
        }
    }
}
