//! What the simulated world promises, and how bad it is allowed to be.

#![allow(clippy::unwrap_used)] // helpers of tests

use ringmq_engine::ring::sim::{
    ClientSocket, CrashModel, Fault, Fresh, Harm, NodeId, OpKind, RingId, SimConfig, World,
};
use ringmq_engine::ring::{BufRange, BufferId, Completion, Errno, FileId, Op, Ring, SocketId, Token};
use std::path::{Path, PathBuf};

const NODE: NodeId = NodeId(1);
const PAGE: usize = 4096;
const FILE: &str = "/data/log";

fn token(slot: u32) -> Token {
    Token::new(1, 0, slot)
}

fn open(ring: &mut Ring, path: &str) -> FileId {
    FileId(ring.run(Op::Open { path: PathBuf::from(path), create: true }).unwrap())
}

/// A file of so many pages, with all of that durable.
fn durable_file(ring: &mut Ring, path: &str, pages: usize) -> FileId {
    let file = open(ring, path);
    ring.run(Op::Allocate { file, len: (pages * PAGE) as u64 }).unwrap();
    ring.run(Op::SyncAll { file }).unwrap();
    let path = Path::new(path).parent().unwrap().to_path_buf();
    ring.run(Op::SyncDir { path }).unwrap();
    file
}

fn filled(ring: &mut Ring, pages: usize, byte: u8) -> BufRange {
    let buffer = ring.memory.alloc(pages * PAGE, false).unwrap();
    let range = BufRange::new(buffer, 0, pages * PAGE);
    ring.memory.bytes_mut(range).fill(byte);
    range
}

fn write(file: FileId, from: BufRange, position: u64) -> Op {
    Op::Write { file, from, position, durable: false }
}

fn write_run(ring: &mut Ring, file: FileId, pages: usize, byte: u8, position: u64) -> Result<u32, Errno> {
    let from = filled(ring, pages, byte);
    let result = ring.run(write(file, from, position));
    ring.memory.free(from.buffer);
    result
}

fn read(ring: &mut Ring, file: FileId, position: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let buffer = ring.memory.alloc(len, false).unwrap();
    let into = BufRange::new(buffer, 0, len);
    let result = ring.run(Op::Read { file, into, position });
    let bytes = result.map(|bytes| ring.memory.bytes(BufRange::new(buffer, 0, bytes as usize)).to_vec());
    ring.memory.free(buffer);
    bytes
}

/// Steps until so many completions are there.
fn reap(world: &World, ring: &mut Ring, count: usize) -> Vec<Completion> {
    let mut out = Vec::new();
    ring.wait(None);
    loop {
        ring.reap(&mut out, 64);
        if out.len() >= count {
            return out;
        }
        assert!(world.step(), "{} of {count} completions", out.len());
    }
}

/// Only this style of crash, without damage.
fn only(style: impl FnOnce(&mut CrashModel)) -> SimConfig {
    let mut config = SimConfig::default();
    let mut crash = CrashModel {
        keep_all: 0,
        lose_all: 0,
        whole_writes: 0,
        prefix: 0,
        suffix: 0,
        runs: 0,
        sectors: 0,
        shorn: false,
        zeros: false,
        garbage: false,
        unreadable_ppm: 0,
    };
    style(&mut crash);
    config.disk.crash = crash;
    config
}

/// How many of 100 seeds satisfy this.
fn seeds(check: impl Fn(u64) -> bool) -> usize {
    (0..100).filter(|&seed| check(seed)).count()
}

#[test]
fn a_completed_write_is_read_back() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let file = open(&mut ring, FILE);
    assert_eq!(write_run(&mut ring, file, 3, 7, PAGE as u64), Ok(3 * PAGE as u32));
    let bytes = read(&mut ring, file, 0, 8 * PAGE).unwrap();
    assert_eq!(bytes.len(), 4 * PAGE, "the file ends there");
    assert!(bytes[..PAGE].iter().all(|&byte| byte == 0) && bytes[PAGE..].iter().all(|&byte| byte == 7));
    assert_eq!(ring.file_facts(file).unwrap().size, 4 * PAGE as u64);
    assert_eq!(read(&mut ring, file, 64 * PAGE as u64, PAGE).unwrap().len(), 0);
}

#[test]
fn an_unsynced_write_may_vanish_at_power_off_and_may_stay() {
    let survivors = seeds(|seed| {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        write_run(&mut ring, file, 1, 7, 0).unwrap();
        world.power_off(NODE);
        assert_eq!(read(&mut ring, file, 0, PAGE), Err(Errno::POWER_OFF));
        let mut ring = world.ring(NODE);
        let file = open(&mut ring, FILE);
        read(&mut ring, file, 0, PAGE).unwrap() == [7; PAGE]
    });
    assert!((10..90).contains(&survivors), "{survivors} of 100");
}

#[test]
fn a_synced_write_never_vanishes() {
    for all in [false, true] {
        let survivors = seeds(|seed| {
            let world = World::new(seed, SimConfig::default());
            let mut ring = world.ring(NODE);
            let file = durable_file(&mut ring, FILE, 4);
            write_run(&mut ring, file, 1, 7, 0).unwrap();
            ring.run(if all { Op::SyncAll { file } } else { Op::SyncData { file } }).unwrap();
            // A later write elsewhere is at risk, this one is not.
            write_run(&mut ring, file, 1, 8, PAGE as u64).unwrap();
            world.power_off(NODE);
            world.peek(NODE, FILE, 0, PAGE).unwrap() == [7; PAGE]
        });
        assert_eq!(survivors, 100);
    }
}

#[test]
fn a_write_in_flight_when_the_sync_was_submitted_is_not_covered() {
    let (mut lost, mut reported) = (0, 0);
    for seed in 0..100 {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        let from = filled(&mut ring, 1, 7);
        ring.submit(token(1), write(file, from, 0));
        ring.submit(token(2), Op::SyncData { file });
        // Both are reported as done: the write before the sync, as it happens.
        let done = reap(&world, &mut ring, 2);
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        reported += usize::from(done[0].token == token(1));
        world.power_off(NODE);
        lost += usize::from(world.peek(NODE, FILE, 0, PAGE).unwrap() != [7; PAGE]);
    }
    assert!(lost > 10 && reported > 10, "lost {lost}, write first in {reported}");
}

#[test]
fn a_durable_write_survives_and_covers_nothing_else() {
    let mut lost = 0;
    for seed in 0..100 {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        write_run(&mut ring, file, 1, 6, PAGE as u64).unwrap();
        let from = filled(&mut ring, 1, 7);
        ring.run(Op::Write { file, from, position: 0, durable: true }).unwrap();
        world.power_off(NODE);
        assert_eq!(world.peek(NODE, FILE, 0, PAGE).unwrap(), [7; PAGE]);
        lost += usize::from(world.peek(NODE, FILE, PAGE as u64, PAGE).unwrap() != [6; PAGE]);
    }
    assert!(lost > 10, "lost {lost}");
}

#[test]
fn a_durable_write_is_not_undone_by_a_sync_of_what_it_overwrote() {
    for seed in 0..100 {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        write_run(&mut ring, file, 1, 6, 0).unwrap();
        let from = filled(&mut ring, 1, 7);
        ring.submit(token(1), Op::SyncData { file });
        ring.submit(token(2), Op::Write { file, from, position: 0, durable: true });
        reap(&world, &mut ring, 2);
        world.power_off(NODE);
        assert_eq!(world.peek(NODE, FILE, 0, PAGE).unwrap(), [7; PAGE]);
    }
}

#[test]
fn kill_keeps_completed_writes_and_a_later_power_off_may_drop_them() {
    let survivors = seeds(|seed| {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        write_run(&mut ring, file, 1, 7, 0).unwrap();
        world.kill(NODE);
        let mut ring = world.ring(NODE);
        let file = open(&mut ring, FILE);
        assert_eq!(read(&mut ring, file, 0, PAGE).unwrap(), [7; PAGE], "the page cache outlives the process");
        world.power_off(NODE);
        world.peek(NODE, FILE, 0, PAGE).unwrap() == [7; PAGE]
    });
    assert!((10..90).contains(&survivors), "{survivors} of 100");
}

#[test]
fn a_sync_after_a_kill_saves_what_the_dead_process_wrote() {
    for seed in 0..100 {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        write_run(&mut ring, file, 1, 7, 0).unwrap();
        world.kill(NODE);
        let mut ring = world.ring(NODE);
        let file = open(&mut ring, FILE);
        ring.run(Op::SyncData { file }).unwrap();
        world.power_off(NODE);
        assert_eq!(world.peek(NODE, FILE, 0, PAGE).unwrap(), [7; PAGE]);
    }
}

#[test]
fn a_write_in_flight_at_a_kill_happens_wholly_partly_or_not() {
    let (mut whole, mut part, mut none) = (0, 0, 0);
    for seed in 0..100 {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        let from = filled(&mut ring, 4, 7);
        ring.submit(token(1), write(file, from, 0));
        ring.wait(None);
        world.kill(NODE);
        match world.peek(NODE, FILE, 0, 4 * PAGE).unwrap().iter().filter(|&&byte| byte == 7).count() {
            0 => none += 1,
            all if all == 4 * PAGE => whole += 1,
            _ => part += 1,
        }
    }
    assert!(whole > 5 && part > 5 && none > 5, "whole {whole}, part {part}, none {none}");
}

#[test]
fn sectors_tear_in_every_way() {
    let (mut old, mut new, mut zeros, mut shorn, mut garbage, mut middle) = (0, 0, 0, 0, 0, 0);
    for seed in 0..300 {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        write_run(&mut ring, file, 4, 1, 0).unwrap();
        ring.run(Op::SyncData { file }).unwrap();
        write_run(&mut ring, file, 4, 2, 0).unwrap();
        let from = filled(&mut ring, 4, 3);
        ring.submit(token(1), write(file, from, 0));
        ring.wait(None);
        world.power_off(NODE);
        for sector in world.peek(NODE, FILE, 0, 4 * PAGE).unwrap().chunks(512) {
            let plain = |byte: u8| sector.iter().all(|&other| other == byte);
            match () {
                () if plain(1) => old += 1,
                () if plain(2) => middle += 1,
                () if plain(3) => new += 1,
                () if plain(0) => zeros += 1,
                () if sector.iter().all(|byte| (0..4).contains(byte)) => shorn += 1,
                () => garbage += 1,
            }
        }
    }
    let counts = [old, middle, new, zeros, shorn, garbage];
    assert!(counts.iter().all(|&count| count > 20), "old middle new zeros shorn garbage: {counts:?}");
}

#[test]
fn a_prefix_crash_keeps_a_prefix_of_a_write() {
    let mut torn = 0;
    for seed in 0..100 {
        let world = World::new(seed, only(|crash| crash.prefix = 1));
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        write_run(&mut ring, file, 4, 7, 0).unwrap();
        world.power_off(NODE);
        let bytes = world.peek(NODE, FILE, 0, 4 * PAGE).unwrap();
        let kept = bytes.chunks(512).take_while(|sector| sector == &[7; 512]).count();
        let later = bytes.chunks(512).skip(kept + 2).filter(|sector| sector != &[0; 512]).count();
        assert_eq!(later, 0);
        torn += usize::from(kept > 0 && kept < 32);
    }
    assert!(torn > 50, "torn {torn}");
}

#[test]
fn a_name_without_sync_of_its_directory_may_vanish() {
    let found = seeds(|seed| {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = open(&mut ring, FILE);
        write_run(&mut ring, file, 1, 7, 0).unwrap();
        ring.run(Op::SyncAll { file }).unwrap();
        world.power_off(NODE);
        let mut ring = world.ring(NODE);
        match ring.run(Op::Open { path: PathBuf::from(FILE), create: false }) {
            Ok(file) => {
                assert_eq!(read(&mut ring, FileId(file), 0, PAGE).unwrap(), [7; PAGE]);
                true
            }
            Err(error) => {
                assert_eq!(error, Errno::NOENT);
                false
            }
        }
    });
    assert!((10..90).contains(&found), "{found} of 100");
}

#[test]
fn a_directory_vanishes_with_all_that_is_in_it_unless_its_parent_was_synced() {
    for synced in [false, true] {
        let found = seeds(|seed| {
            let world = World::new(seed, SimConfig::default());
            let mut ring = world.ring(NODE);
            ring.make_dirs(Path::new("/data/shard-00/log")).unwrap();
            durable_file(&mut ring, "/data/shard-00/log/1.seg", 1);
            if synced {
                ring.run(Op::SyncDir { path: "/data/shard-00".into() }).unwrap();
                ring.run(Op::SyncDir { path: "/data".into() }).unwrap();
            }
            world.power_off(NODE);
            let mut ring = world.ring(NODE);
            assert!(ring.list_dir(Path::new("/data")).is_ok(), "the root is there from the start");
            ring.list_dir(Path::new("/data/shard-00/log")).is_ok_and(|names| names[0].name == "1.seg")
        });
        assert!(if synced { found == 100 } else { (5..80).contains(&found) }, "{found} of 100");
    }
}

#[test]
fn a_size_without_sync_may_vanish_and_bytes_may_outlive_it() {
    let (mut short, mut ghosts) = (0, 0);
    for seed in 0..100 {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 1);
        write_run(&mut ring, file, 1, 7, PAGE as u64).unwrap();
        world.power_off(NODE);
        let mut ring = world.ring(NODE);
        let file = open(&mut ring, FILE);
        if ring.file_facts(file).unwrap().size == PAGE as u64 {
            short += 1;
            ring.run(Op::Allocate { file, len: 2 * PAGE as u64 }).unwrap();
            ghosts += usize::from(read(&mut ring, file, PAGE as u64, PAGE).unwrap().contains(&7));
        }
    }
    assert!(short > 10 && ghosts > 1, "short {short}, ghosts {ghosts}");
}

#[test]
fn files_of_two_nodes_are_two() {
    let world = World::new(1, SimConfig::default());
    let mut one = world.ring(1);
    let mut two = world.ring(2);
    durable_file(&mut one, FILE, 1);
    assert_eq!(two.run(Op::Open { path: FILE.into(), create: false }), Err(Errno::NOENT));
    world.power_off(2);
    assert!(one.run(Op::SyncDir { path: "/data".into() }).is_ok());
    assert!(two.run(Op::SyncDir { path: "/data".into() }).is_err());
}

/// A little of everything; the hash and what the disk holds in the end.
fn busy_world(seed: u64, config: SimConfig) -> (u64, Vec<u8>) {
    let world = World::new(seed, config);
    for round in 0..5 {
        let mut ring = world.ring(NODE);
        let Ok(file) = ring.run(Op::Open { path: FILE.into(), create: true }) else { continue };
        let file = FileId(file);
        let (listener, _) = ring.listen("127.0.0.1:7700".parse().unwrap()).unwrap();
        ring.submit(token(1000), Op::Accept { listener });
        let client = world.connect(NODE, 7700);
        world.client_send(client, &[round; 1000]);
        let range = filled(&mut ring, 16, round + 1);
        for slot in 0..20 {
            let position = world.random_below(16) * PAGE as u64;
            ring.submit(token(slot), write(file, BufRange::new(range.buffer, 0, PAGE), position));
            ring.submit(token(slot + 100), Op::SyncData { file });
        }
        if round % 2 == 0 {
            world.crash_at(NODE, world.io_events(NODE) + world.random_below(60));
        }
        ring.wait(None);
        let mut out = Vec::new();
        while world.step() {
            ring.reap(&mut out, 3);
        }
        let _ = ring.read_clock();
        let _ = ring.random();
        world.kill(NODE);
    }
    let mut image = Vec::new();
    for (path, size) in world.files(NODE) {
        image.extend(world.peek(NODE, path, 0, size as usize).unwrap());
    }
    (world.trace_hash(), image)
}

#[test]
fn one_seed_gives_one_history() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let first = busy_world(seed, SimConfig::swarm(seed));
        assert_eq!(first, busy_world(seed, SimConfig::swarm(seed)), "seed {seed}");
        hashes.insert(first.0);
    }
    assert_eq!(hashes.len(), 50, "and other seeds give other ones");
}

#[test]
fn text_of_the_trace_does_not_change_what_happens() {
    let quiet = SimConfig::default();
    let talking = SimConfig { trace_lines: 10, ..quiet.clone() };
    assert_eq!(busy_world(3, quiet), busy_world(3, talking.clone()));
    let world = World::new(3, talking);
    let mut ring = world.ring(NODE);
    durable_file(&mut ring, FILE, 4);
    assert_eq!(world.trace().len(), 8);
    assert!(world.trace()[0].contains("open of /data/log"), "{:?}", world.trace());
}

#[test]
#[should_panic(expected = "buffer changed while lent")]
fn changing_the_buffer_of_a_write_is_found() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let file = durable_file(&mut ring, FILE, 4);
    let from = filled(&mut ring, 2, 7);
    ring.submit(token(1), write(file, from, 0));
    ring.wait(None);
    ring.memory.bytes_mut(from)[5000] = 8;
    reap(&world, &mut ring, 1);
}

#[test]
#[should_panic(expected = "buffer changed while lent")]
fn changing_the_buffer_of_a_send_is_found() {
    let (world, mut ring, _, socket) = connected(1, SimConfig::default());
    let from = filled(&mut ring, 1, 7);
    ring.submit(token(1), Op::Send { socket, from });
    ring.memory.bytes_mut(from)[0] = 8;
    reap(&world, &mut ring, 1);
}

#[test]
fn a_buffer_that_is_read_into_holds_garbage_until_it_is_reaped() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let file = durable_file(&mut ring, FILE, 4);
    write_run(&mut ring, file, 1, 7, 0).unwrap();
    let into = filled(&mut ring, 1, 7);
    ring.submit(token(1), Op::Read { file, into, position: 0 });
    ring.wait(None);
    assert_ne!(ring.memory.bytes(into)[0], 7);
    while world.step() {}
    assert_ne!(ring.memory.bytes(into)[0], 7);
    reap(&world, &mut ring, 1);
    assert_eq!(ring.memory.bytes(into), [7; PAGE]);
}

#[test]
fn buffers_come_home_from_a_dead_world() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let file = durable_file(&mut ring, FILE, 4);
    let from = filled(&mut ring, 1, 7);
    ring.submit(token(1), write(file, from, 0));
    ring.wait(None);
    world.power_off(NODE);
    ring.submit(token(2), Op::SyncData { file });
    ring.wait(Some(1_000_000));
    let mut out = Vec::new();
    ring.reap(&mut out, 10);
    assert_eq!((out.len(), world.step()), (0, false));
    ring.memory.free(from.buffer);
}

#[test]
fn power_goes_off_inside_run_at_each_event() {
    let total = {
        let world = World::new(9, SimConfig::default());
        let mut ring = world.ring(NODE);
        durable_file(&mut ring, FILE, 4);
        world.io_events(NODE)
    };
    assert_eq!(total, 8, "four ops, submitted and completed");
    for event in 0..=total {
        let world = World::new(9, SimConfig::default());
        let mut ring = world.ring(NODE);
        world.crash_at(NODE, event);
        let mut done = 0;
        let ops = [
            Op::Open { path: FILE.into(), create: true },
            Op::Allocate { file: FileId(0), len: 4096 },
            Op::SyncAll { file: FileId(0) },
            Op::SyncDir { path: "/data".into() },
        ];
        for op in ops {
            match ring.run(op) {
                Ok(_) => done += 1,
                Err(error) => assert_eq!(error, Errno::POWER_OFF),
            }
        }
        assert_eq!(done, (event.max(1) - 1) / 2, "event {event}");
        assert!(!world.ring_is_alive(ring.sim_id().unwrap()));
        assert_eq!(ring.make_dirs(Path::new("/data/x")), Err(Errno::POWER_OFF));
        // And again in the next life.
        let mut ring = world.ring(NODE);
        world.crash_at(NODE, world.io_events(NODE) + 1);
        assert_eq!(ring.run(Op::SyncDir { path: "/data".into() }), Err(Errno::POWER_OFF));
    }
}

#[test]
fn a_failed_sync_is_told_once_and_its_data_may_be_gone_for_good() {
    let mut lost = [0, 0];
    for seed in 0..100 {
        for (case, harm) in [Harm::SyncDrops(Errno::IO), Harm::SyncKeeps(Errno::IO)].into_iter().enumerate() {
            let world = World::new(seed, SimConfig::default());
            let mut ring = world.ring(NODE);
            let file = durable_file(&mut ring, FILE, 4);
            write_run(&mut ring, file, 1, 7, 0).unwrap();
            world.inject(NODE, Fault::new(OpKind::Sync, harm));
            assert_eq!(ring.run(Op::SyncData { file }), Err(Errno::IO));
            assert_eq!(ring.run(Op::SyncData { file }), Ok(0), "the kernel has forgotten");
            assert_eq!(
                read(&mut ring, file, 0, PAGE).unwrap(),
                [7; PAGE],
                "and shows the data as if it were good"
            );
            world.power_off(NODE);
            lost[case] += usize::from(world.peek(NODE, FILE, 0, PAGE).unwrap() != [7; PAGE]);
        }
    }
    assert!(lost[0] > 10 && lost[1] == 0, "lost {lost:?}");
}

#[test]
fn each_descriptor_open_at_the_failure_hears_of_it_and_later_ones_do_not() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let first = durable_file(&mut ring, FILE, 4);
    let second = open(&mut ring, FILE);
    world.inject(NODE, Fault::new(OpKind::Sync, Harm::SyncKeeps(Errno::IO)).on("log"));
    assert_eq!(ring.run(Op::SyncData { file: first }), Err(Errno::IO));
    let third = open(&mut ring, FILE);
    let told: Vec<_> = [first, second, third, second].map(|file| ring.run(Op::SyncData { file })).into();
    assert_eq!(told, [Ok(0), Err(Errno::IO), Ok(0), Ok(0)]);
}

#[test]
fn faults_strike_the_op_they_are_planned_for() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let file = durable_file(&mut ring, FILE, 8);
    let other = durable_file(&mut ring, "/data/other", 8);
    world.inject(NODE, Fault::new(OpKind::Write, Harm::Error(Errno::IO)).after(1).on("/data/log"));
    let results = [file, other, file, file].map(|file| write_run(&mut ring, file, 1, 1, 0));
    assert_eq!(results, [Ok(4096), Ok(4096), Err(Errno::IO), Ok(4096)]);
    world.inject(NODE, Fault::new(OpKind::Read, Harm::Error(Errno::IO)).sticky());
    assert_eq!([0, 1].map(|_| read(&mut ring, file, 0, PAGE)), [Err(Errno::IO), Err(Errno::IO)]);
    world.heal();
    assert!(read(&mut ring, file, 0, PAGE).is_ok());
    world.inject(NODE, Fault::new(OpKind::Write, Harm::Short));
    let short = write_run(&mut ring, file, 4, 9, 0).unwrap() as usize;
    assert!(short < 4 * PAGE && short > 0);
    let bytes = read(&mut ring, file, 0, 4 * PAGE).unwrap();
    assert_eq!(bytes.iter().filter(|&&byte| byte == 9).count(), short);
    world.inject(NODE, Fault::new(OpKind::Read, Harm::Short));
    assert!(read(&mut ring, file, 0, 4 * PAGE).unwrap().len() < 4 * PAGE);
    world.inject(NODE, Fault::new(OpKind::Open, Harm::Error(Errno::MFILE)));
    assert_eq!(ring.run(Op::Open { path: FILE.into(), create: false }), Err(Errno::MFILE));
    world.inject(NODE, Fault::new(OpKind::Sync, Harm::Delay(5_000_000)));
    let before = world.now_us();
    ring.run(Op::SyncData { file }).unwrap();
    assert!(world.now_us() - before >= 5_000_000);
}

#[test]
fn damage_is_what_it_says() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let file = durable_file(&mut ring, FILE, 8);
    write_run(&mut ring, file, 8, 1, 0).unwrap();
    let different = |ring: &mut Ring| {
        let bytes = read(ring, file, 0, 8 * PAGE).unwrap();
        bytes.iter().map(|byte| (byte ^ 1).count_ones()).sum::<u32>()
    };
    world.inject(NODE, Fault::new(OpKind::Read, Harm::Flip));
    assert_eq!([different(&mut ring), different(&mut ring)], [1, 0], "for once");
    world.inject(NODE, Fault::new(OpKind::Read, Harm::Rot));
    assert_eq!([different(&mut ring), different(&mut ring)], [1, 1], "for good");
    write_run(&mut ring, file, 8, 1, 0).unwrap();
    world.inject(NODE, Fault::new(OpKind::Write, Harm::Lost));
    assert_eq!(write_run(&mut ring, file, 1, 2, 0), Ok(PAGE as u32));
    assert_eq!(different(&mut ring), 0, "never written");
    world.inject(NODE, Fault::new(OpKind::Write, Harm::Misdirected));
    assert_eq!(write_run(&mut ring, file, 1, 2, 1 << 30), Ok(PAGE as u32));
    let bytes = read(&mut ring, file, 0, 8 * PAGE).unwrap();
    assert_eq!(bytes.chunks(PAGE).filter(|page| page == &[2; PAGE]).count(), 1, "somewhere else");
    world.make_unreadable(NODE, FILE, PAGE as u64, 512).unwrap();
    assert_eq!([0, 1].map(|_| read(&mut ring, file, 0, 2 * PAGE)), [Err(Errno::IO), Err(Errno::IO)]);
    assert!(read(&mut ring, file, 0, PAGE).is_ok());
    write_run(&mut ring, file, 1, 1, PAGE as u64).unwrap();
    assert!(read(&mut ring, file, 0, 2 * PAGE).is_ok(), "writing heals");
}

#[test]
fn a_full_disk_refuses_until_it_grows() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    world.set_budget(NODE, 8 * PAGE as u64);
    let file = durable_file(&mut ring, FILE, 6);
    assert_eq!(ring.disk_free(Path::new("/data")), Ok(2 * PAGE as u64));
    let other = open(&mut ring, "/data/other");
    assert_eq!(ring.run(Op::Allocate { file: other, len: 1 << 20 }), Err(Errno::NOSPC));
    assert!(write_run(&mut ring, file, 6, 1, 0).is_ok(), "reserved space is ours");
    let room = ring.disk_free(Path::new("/data")).unwrap() as u32;
    let start = ring.file_facts(file).unwrap().size;
    if room > 0 {
        assert_eq!(write_run(&mut ring, file, 4, 1, start), Ok(room), "as far as it goes");
    }
    let end = start + u64::from(room);
    assert_eq!(write_run(&mut ring, file, 1, 1, end), Err(Errno::NOSPC));
    assert!(Errno::NOSPC.is_no_space());
    world.set_budget(NODE, 1 << 30);
    assert_eq!(write_run(&mut ring, file, 1, 1, end), Ok(PAGE as u32));
    assert_eq!(ring.run(Op::Allocate { file: other, len: 1 << 20 }), Ok(0));
    assert_eq!(world.disk_taken(NODE), (1 << 20) + end + PAGE as u64);
}

#[test]
fn misaligned_ops_and_unknown_descriptors_are_refused() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let file = durable_file(&mut ring, FILE, 4);
    let range = filled(&mut ring, 2, 1);
    let halves = BufRange::new(range.buffer, 0, 512);
    let shifted = BufRange::new(range.buffer, 512, PAGE);
    for (from, position) in [(halves, 0), (shifted, 0), (range, 512)] {
        assert_eq!(ring.run(write(file, from, position)), Err(Errno::INVAL));
        assert_eq!(ring.run(Op::Read { file, into: from, position }), Err(Errno::INVAL));
    }
    assert!(ring.run(Op::SyncData { file: FileId(77) }).is_err());
    ring.run(Op::Close { file }).unwrap();
    assert!(ring.run(Op::SyncData { file }).is_err());
    assert_eq!(open(&mut ring, FILE), file, "the lowest free slot is used again");
}

#[test]
fn never_written_space_is_zeros_or_garbage() {
    for (fresh, zeros) in [(Fresh::Zeros, true), (Fresh::Garbage, false)] {
        let mut config = SimConfig::default();
        config.disk.fresh = fresh;
        let world = World::new(1, config);
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 16);
        let bytes = read(&mut ring, file, 0, 16 * PAGE).unwrap();
        assert_eq!(bytes.iter().all(|&byte| byte == 0), zeros);
        assert_eq!(read(&mut ring, file, 0, 16 * PAGE).unwrap(), bytes, "the same each time");
    }
}

#[test]
fn extent_edges_are_where_the_configuration_puts_them() {
    let mut config = SimConfig::default();
    config.disk.extent_every = 8192;
    let world = World::new(1, config);
    let mut ring = world.ring(NODE);
    let file = durable_file(&mut ring, FILE, 5);
    assert_eq!(ring.file_facts(file).unwrap().extent_edges, [8192, 16384]);
    world.set_extent_edges(NODE, FILE, vec![4096]).unwrap();
    assert_eq!(ring.file_facts(file).unwrap().extent_edges, [4096]);
}

#[test]
fn completions_come_out_of_order() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let file = durable_file(&mut ring, FILE, 16);
    let range = filled(&mut ring, 16, 1);
    for slot in 0..16 {
        let page = BufRange::new(range.buffer, slot * PAGE, PAGE);
        ring.submit(token(slot as u32), write(file, page, (slot * PAGE) as u64));
    }
    let done = reap(&world, &mut ring, 16);
    assert!(!done.is_sorted_by_key(|completion| completion.token));
    assert_eq!(ring.stats().reaped, ring.stats().submitted);
}

#[test]
fn a_read_beside_a_write_may_see_half_of_it() {
    let mixed = seeds(|seed| {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        let from = filled(&mut ring, 1, 7);
        let into = filled(&mut ring, 1, 0);
        ring.submit(token(1), write(file, from, 0));
        ring.submit(token(2), Op::Read { file, into, position: 0 });
        reap(&world, &mut ring, 2);
        let bytes = ring.memory.bytes(into);
        bytes.contains(&7) && bytes.contains(&0)
    });
    assert!(mixed > 20, "{mixed}");
}

#[test]
fn locks_end_with_their_process() {
    let world = World::new(1, SimConfig::default());
    let dir = Path::new("/data");
    let mut first = world.ring(NODE);
    assert_eq!(first.lock_dir(Path::new("/nowhere")), Err(Errno::NOENT));
    assert_eq!(first.lock_dir(dir), Ok(()));
    let mut second = world.ring(NODE);
    assert_eq!(second.lock_dir(dir), Err(Errno::BUSY));
    drop(first);
    assert_eq!(second.lock_dir(dir), Ok(()));
    world.kill(NODE);
    assert_eq!(world.ring(NODE).lock_dir(dir), Ok(()));
}

#[test]
fn names_are_listed_in_order() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    ring.make_dirs(Path::new("/data/b/c")).unwrap();
    durable_file(&mut ring, "/data/a", 3);
    durable_file(&mut ring, "/data/b/d", 1);
    let names = ring.list_dir(Path::new("/data/")).unwrap();
    let plain: Vec<_> = names.iter().map(|entry| (&*entry.name, entry.is_dir, entry.size)).collect();
    assert_eq!(plain, [("a", false, 3 * PAGE as u64), ("b", true, 0)]);
    assert!(ring.run(Op::Open { path: "/data/b".into(), create: true }).is_err());
    assert_eq!(ring.run(Op::Open { path: "/data/x/y".into(), create: true }), Err(Errno::NOENT));
}

#[test]
fn disk_images_fork() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let file = durable_file(&mut ring, FILE, 256);
    write_run(&mut ring, file, 256, 1, 0).unwrap();
    ring.run(Op::SyncData { file }).unwrap();
    write_run(&mut ring, file, 1, 2, 0).unwrap();
    let image = world.disk_image(NODE);
    write_run(&mut ring, file, 1, 3, 0).unwrap();
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let fork = World::with_disk_image(seed, SimConfig::default(), NODE, &image);
        assert_eq!(fork.peek(NODE, FILE, 0, PAGE).unwrap(), [2; PAGE]);
        fork.power_off(NODE);
        let byte = fork.peek(NODE, FILE, 0, PAGE).unwrap()[0];
        outcomes.insert(byte);
        fork.poke(NODE, FILE, 5, &[9; 10_000]).unwrap();
        fork.truncate(NODE, FILE, 6000).unwrap();
        assert_eq!(fork.files(NODE), [(PathBuf::from(FILE), 6000)]);
        // A crash of the first world, taken without disturbing it.
        let crashed =
            World::with_disk_image(seed, SimConfig::default(), NODE, &world.crashed_image(NODE, seed));
        outcomes.insert(crashed.peek(NODE, FILE, 0, PAGE).unwrap()[0]);
    }
    assert!([1, 2, 3].iter().all(|byte| outcomes.contains(byte)), "{outcomes:?}");
    assert_eq!(world.peek(NODE, FILE, 0, PAGE).unwrap(), [3; PAGE], "the first world knows nothing of it");
    assert_eq!(world.peek(NODE, FILE, 255 * PAGE as u64, PAGE).unwrap(), [1; PAGE]);
    world.flip_bit(NODE, FILE, 8 * PAGE as u64 + 1).unwrap();
    assert_eq!(world.peek(NODE, FILE, PAGE as u64, 1).unwrap(), [3]);
}

// Rings and time.

#[test]
fn a_ring_is_runnable_when_its_wait_would_return() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let id: RingId = ring.sim_id().unwrap();
    let bell = ring.doorbell();
    assert!(world.ring_is_runnable(id), "it never waited");
    ring.wait(None);
    assert!(world.runnable().is_empty() && !world.step());
    bell.ring();
    assert_eq!(world.runnable(), [id]);
    ring.wait(Some(500));
    assert!(world.ring_is_runnable(id), "that wait was woken, the next one sleeps");
    ring.wait(Some(500));
    assert_eq!((world.runnable().len(), world.next_deadline()), (0, Some(500)));
    assert!(world.step() && world.ring_is_runnable(id));
    assert_eq!(ring.read_clock().mono_us, 500);
    ring.wait(Some(0));
    assert!(!world.ring_is_runnable(id), "polling takes a moment, so that the world goes on");
    assert!(world.step() && world.ring_is_runnable(id));
    ring.wait(None);
    ring.submit(token(1), Op::SyncDir { path: "/data".into() });
    assert!(world.ring_is_runnable(id), "it has something to submit");
    ring.wait(None);
    assert!(!world.ring_is_runnable(id));
    assert!(world.step() && world.ring_is_runnable(id));
    let mut out = Vec::new();
    ring.reap(&mut out, 1);
    assert_eq!(out, [Completion { token: token(1), result: Ok(0) }]);
}

#[test]
fn run_leaves_completions_of_others_for_reap() {
    let world = World::new(1, SimConfig::default());
    let (mut one, mut two) = (world.ring(NODE), world.ring(NODE));
    let (first, second) = (durable_file(&mut one, FILE, 1), durable_file(&mut two, FILE, 1));
    one.submit(token(1), Op::SyncData { file: first });
    two.submit(token(2), Op::SyncData { file: second });
    two.wait(None);
    for _ in 0..10 {
        one.run(Op::SyncData { file: first }).unwrap();
    }
    let (mut of_one, mut of_two) = (Vec::new(), Vec::new());
    one.reap(&mut of_one, 10);
    two.reap(&mut of_two, 10);
    assert_eq!((of_one[0].token, of_two[0].token), (token(1), token(2)));
    assert_eq!((of_one.len(), of_two.len()), (1, 1));
}

#[test]
fn wall_clocks_jump_and_monotonic_ones_do_not() {
    let mut config = SimConfig::default();
    config.clock.jump_every_us = 1_000_000;
    config.clock.jump_ms_max = 100_000;
    config.clock.offset_ms_max = 1000;
    let world = World::new(1, config);
    let mut ring = world.ring(NODE);
    let (mut last, mut back) = (ring.read_clock(), 0);
    for _ in 0..100 {
        world.advance(1_000_000);
        assert_eq!(ring.now(), last, "as of the last reading");
        let now = ring.read_clock();
        assert_eq!(now.mono_us, last.mono_us + 1_000_000);
        back += usize::from(now.wall_ms < last.wall_ms);
        last = now;
    }
    assert!(back > 10);
    let before = world.wall_ms(NODE);
    world.jump_clock(NODE, -86_400_000);
    assert_eq!(world.wall_ms(NODE), before - 86_400_000);
}

// Sockets.

fn connected(seed: u64, config: SimConfig) -> (World, Ring, ClientSocket, SocketId) {
    let world = World::new(seed, config);
    let mut ring = world.ring(NODE);
    let (listener, addr) = ring.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    assert!(ring.listen(addr).is_err());
    let client = world.connect(NODE, addr.port());
    let socket = SocketId(ring.run(Op::Accept { listener }).unwrap());
    assert!(ring.peer(socket).is_some() && world.client_accepted(client));
    (world, ring, client, socket)
}

#[test]
fn bytes_arrive_in_order_in_pieces_of_any_size() {
    let sent: Vec<u8> = (0..100_000u32).map(|n| (n * 7 + n / 256) as u8).collect();
    for seed in 0..10 {
        let (world, mut ring, client, socket) = connected(seed, SimConfig::default());
        world.client_send(client, &sent);
        world.client_finish(client);
        assert!(world.client_unsent(client) > 0, "more than a socket buffer");
        let buffer: BufferId = ring.memory.alloc(PAGE, false).unwrap();
        let into = BufRange::new(buffer, 0, PAGE);
        let (mut received, mut pieces) = (Vec::new(), 0);
        loop {
            let bytes = ring.run(Op::Recv { socket, into }).unwrap() as usize;
            if bytes == 0 {
                break;
            }
            pieces += 1;
            received.extend_from_slice(&ring.memory.bytes(into)[..bytes]);
        }
        assert!(received == sent && pieces > sent.len() / PAGE, "{pieces} pieces");
        // And back, to a client that reads slowly.
        let whole = filled(&mut ring, 25, 0);
        ring.memory.bytes_mut(whole)[..sent.len()].copy_from_slice(&sent);
        let (mut done, mut received, mut short, mut waited) = (0, Vec::new(), 0, 0);
        while done < sent.len() {
            let from = BufRange::new(whole.buffer, done, sent.len() - done);
            ring.submit(token(1), Op::Send { socket, from });
            let mut out = Vec::new();
            ring.wait(None);
            while out.is_empty() {
                if !world.step() {
                    waited += 1;
                    received.extend(world.client_recv_some(client, 3000));
                }
                ring.reap(&mut out, 1);
            }
            let taken = out[0].result.unwrap() as usize;
            short += usize::from(taken < from.len());
            done += taken;
        }
        ring.run(Op::CloseSocket { socket }).unwrap();
        while !world.client_closed(client) {
            received.extend(world.client_recv(client));
            world.step();
        }
        assert!(received == sent && short > 0 && waited > 0, "short {short}, waited {waited}");
        assert!(!world.client_was_reset(client));
    }
}

#[test]
fn closing_a_socket_cancels_what_waits_on_it_first() {
    let (world, mut ring, client, socket) = connected(1, SimConfig::default());
    let into = filled(&mut ring, 1, 0);
    ring.submit(token(1), Op::Recv { socket, into });
    ring.submit(token(2), Op::CloseSocket { socket });
    let done = reap(&world, &mut ring, 2);
    assert_eq!(done[0], Completion { token: token(1), result: Err(Errno::CANCELED) });
    assert_eq!(done[1], Completion { token: token(2), result: Ok(0) });
    while world.step() {}
    assert!(world.client_closed(client));
    let (listener, addr) = ring.listen("127.0.0.1:9000".parse().unwrap()).unwrap();
    ring.submit(token(3), Op::Accept { listener });
    ring.submit(token(4), Op::CloseSocket { socket: listener });
    assert_eq!(reap(&world, &mut ring, 2)[0].result, Err(Errno::CANCELED));
    let refused = world.connect(NODE, addr.port());
    while world.step() {}
    assert!(world.client_closed(refused) && world.client_was_reset(refused));
}

#[test]
fn connections_end_with_the_process_and_with_their_client() {
    for off in [false, true] {
        let (world, _ring, client, _) = connected(1, SimConfig::default());
        if off {
            world.power_off(NODE);
        } else {
            world.kill(NODE);
        }
        while world.step() {}
        assert!(world.client_closed(client));
    }
    let (world, mut ring, client, socket) = connected(1, SimConfig::default());
    let into = filled(&mut ring, 1, 0);
    world.client_send(client, b"bye");
    world.client_close(client);
    let mut total = 0;
    while let bytes @ 1.. = ring.run(Op::Recv { socket, into }).unwrap() {
        total += bytes;
    }
    assert_eq!(total, 3);
    let from = filled(&mut ring, 1, 1);
    ring.run(Op::Send { socket, from }).unwrap();
    world.advance(10_000);
    assert!(ring.run(Op::Send { socket, from }).is_err(), "the closed client has answered with a reset");
    let (world, mut ring, client, socket) = connected(1, SimConfig::default());
    world.drop_connection(client);
    let into = filled(&mut ring, 1, 0);
    assert!(ring.run(Op::Recv { socket, into }).is_err() && world.client_was_reset(client));
}

#[test]
fn a_black_hole_tells_nobody() {
    let (world, mut ring, client, socket) = connected(1, SimConfig::default());
    world.black_hole(client);
    world.client_send(client, b"hello");
    let into = filled(&mut ring, 1, 0);
    ring.submit(token(1), Op::Recv { socket, into });
    ring.wait(None);
    while world.step() {}
    let mut out = Vec::new();
    ring.reap(&mut out, 1);
    assert!(out.is_empty() && !world.client_closed(client));
}

#[test]
fn a_crash_cycle_of_a_small_log_costs_microseconds() {
    let before = std::time::Instant::now();
    let cycles = 2000;
    let mut config = SimConfig::default();
    config.disk.budget = 1 << 30;
    let world = World::new(5, config.clone());
    let mut ring = world.ring(NODE);
    let file = durable_file(&mut ring, FILE, 512);
    write_run(&mut ring, file, 512, 1, 0).unwrap();
    ring.run(Op::SyncData { file }).unwrap();
    let image = world.disk_image(NODE);
    let mut torn = 0;
    for seed in 0..cycles {
        let world = World::with_disk_image(seed, config.clone(), NODE, &image);
        let mut ring = world.ring(NODE);
        let file = open(&mut ring, FILE);
        let range = filled(&mut ring, 16, 2);
        for slot in 0..8 {
            ring.submit(token(slot), write(file, range, u64::from(slot) * 16 * PAGE as u64));
        }
        ring.wait(None);
        world.crash_at(NODE, world.io_events(NODE) + world.random_below(8));
        while world.step() {}
        world.power_off(NODE);
        drop(ring);
        let mut ring = world.ring(NODE);
        let file = open(&mut ring, FILE);
        ring.run(Op::SyncData { file }).unwrap();
        let bytes = read(&mut ring, file, 0, 1 << 20).unwrap();
        torn += usize::from(bytes.iter().any(|&byte| byte > 2));
    }
    let each = before.elapsed().as_micros() as u64 / cycles;
    eprintln!("{each} us for each crash cycle, {torn} of {cycles} with garbage");
    assert!(torn > 0 && each < 20_000, "{each} us");
}

#[test]
fn two_writes_of_one_place_at_one_time_may_mix() {
    let mut outcomes = [0, 0, 0];
    for seed in 0..100 {
        let world = World::new(seed, SimConfig::default());
        let mut ring = world.ring(NODE);
        let file = durable_file(&mut ring, FILE, 4);
        for (slot, byte) in [(1, 1), (2, 2)] {
            let from = filled(&mut ring, 2, byte);
            ring.submit(token(slot), write(file, from, 0));
        }
        reap(&world, &mut ring, 2);
        let bytes = world.peek(NODE, FILE, 0, 2 * PAGE).unwrap();
        let ones = bytes.iter().filter(|&&byte| byte == 1).count();
        assert_eq!(bytes.iter().filter(|&&byte| byte == 2).count(), bytes.len() - ones, "one or the other");
        outcomes[usize::from(ones > 0) + usize::from(ones == bytes.len())] += 1;
    }
    assert!(outcomes[1] > 50, "{outcomes:?}");
}
