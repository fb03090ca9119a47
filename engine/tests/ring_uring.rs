//! The io_uring back end against a real kernel: a disk that takes direct I/O, loopback, other threads.
//!
//! Prints "skipped: why" and passes where the environment lacks something.

#![allow(clippy::unwrap_used)] // Helpers of tests, which clippy does not take for tests.

use ringmq_engine::ring::uring::kernel_workers;
use ringmq_engine::ring::{
    BufRange, BufferId, Completion, Errno, FileId, Op, Ring, RingConfig, SocketId, Token,
};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const BLOCK: usize = 4096;

fn small() -> RingConfig {
    RingConfig { entries: 8, descriptors_max: 64, register_buffers: true }
}

fn ring_of(config: RingConfig) -> Option<Ring> {
    match Ring::uring(config) {
        Ok(ring) => Some(ring),
        Err(errno) => {
            println!("skipped: no io_uring here: {errno}");
            None
        }
    }
}

/// A ring and a directory that takes direct I/O, beside the build output.
fn disk() -> Option<(Ring, TempDir)> {
    disk_of(small())
}

fn disk_of(config: RingConfig) -> Option<(Ring, TempDir)> {
    let mut ring = ring_of(config)?;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    match ring.run(Op::Open { path: dir.path().join("probe"), create: true }) {
        Ok(_) => Some((ring, dir)),
        Err(Errno::INVAL) => {
            println!("skipped: no direct I/O in {}", dir.path().display());
            None
        }
        Err(errno) => panic!("open: {errno}"),
    }
}

fn open(ring: &mut Ring, dir: &TempDir, name: &str) -> FileId {
    FileId(ring.run(Op::Open { path: dir.path().join(name), create: true }).unwrap())
}

fn token(slot: u32) -> Token {
    Token::new(7, 1, slot)
}

fn filled(ring: &mut Ring, buffer: BufferId, start: usize, len: usize, byte: u8) -> BufRange {
    let range = BufRange::new(buffer, start, len);
    ring.memory.bytes_mut(range).fill(byte);
    range
}

/// Waits until `count` completions are there.
fn reap(ring: &mut Ring, count: usize) -> Vec<Completion> {
    let mut out = Vec::new();
    let begin = Instant::now();
    while out.len() < count {
        ring.wait(None);
        let missing = count - out.len();
        ring.reap(&mut out, missing);
        assert!(begin.elapsed() < Duration::from_secs(60), "{} of {count} completions", out.len());
    }
    out
}

fn check_write_sync_read(arena: bool, register_buffers: bool) {
    let Some((mut ring, dir)) = disk_of(RingConfig { register_buffers, ..small() }) else { return };
    let file = open(&mut ring, &dir, "log");
    let out = ring.memory.alloc(8 * BLOCK, arena).unwrap();
    let back = ring.memory.alloc(8 * BLOCK, arena).unwrap();
    for (at, durable) in [(0, false), (3, true)] {
        let from = filled(&mut ring, out, BLOCK, 2 * BLOCK, 0x40 + at as u8);
        let position = (at * BLOCK) as u64;
        assert_eq!(ring.run(Op::Write { file, from, position, durable }), Ok(2 * BLOCK as u32));
        assert_eq!(ring.run(Op::SyncData { file }), Ok(0));
        let into = BufRange::new(back, 0, 2 * BLOCK);
        assert_eq!(ring.run(Op::Read { file, into, position }), Ok(2 * BLOCK as u32));
        assert!(ring.memory.bytes(into) == ring.memory.bytes(from), "what was read is what was written");
    }
    let into = BufRange::new(back, 0, 4 * BLOCK);
    assert_eq!(
        ring.run(Op::Read { file, into, position: 4 * BLOCK as u64 }),
        Ok(BLOCK as u32),
        "short at the end"
    );
    assert_eq!(ring.run(Op::SyncAll { file }), Ok(0));
    assert_eq!(ring.run(Op::SyncDir { path: dir.path().into() }), Ok(0));
    assert_eq!(ring.run(Op::Close { file }), Ok(0));
    let fixed = ring.stats().fixed;
    if !arena || !register_buffers {
        assert_eq!(fixed, 0);
    } else if let Some(line) =
        ring.report().fallbacks.iter().find(|line| line.contains("registered buffers off"))
    {
        println!("skipped: {line}");
    } else {
        assert_eq!(fixed, 5, "every read and write");
    }
    ring.memory.free(out);
    ring.memory.free(back);
}

#[test]
fn what_was_written_and_synced_is_read_back() {
    check_write_sync_read(false, true);
}

#[test]
fn what_was_written_from_a_registered_arena_is_read_back() {
    check_write_sync_read(true, true);
}

#[test]
fn what_was_written_from_an_unregistered_arena_is_read_back() {
    check_write_sync_read(true, false);
}

#[test]
fn a_range_across_two_registered_pieces_is_written_unregistered() {
    let Some((mut ring, dir)) = disk() else { return };
    let file = open(&mut ring, &dir, "log");
    let arena = ring.memory.alloc(4 << 20, true).unwrap();
    let from = filled(&mut ring, arena, (2 << 20) - BLOCK, 2 * BLOCK, 9);
    assert_eq!(ring.run(Op::Write { file, from, position: 0, durable: false }), Ok(2 * BLOCK as u32));
    assert_eq!(ring.stats().fixed, 0);
}

#[test]
fn an_arena_at_the_place_of_a_freed_one_is_registered_anew() {
    let Some((mut ring, dir)) = disk() else { return };
    let file = open(&mut ring, &dir, "log");
    for round in 1..=4u8 {
        // The kernel likes to give the same address again, with other pages.
        let arena = ring.memory.alloc(2 << 20, true).unwrap();
        let from = filled(&mut ring, arena, 0, BLOCK, round);
        assert_eq!(ring.run(Op::Write { file, from, position: 0, durable: false }), Ok(BLOCK as u32));
        let plain = ring.memory.alloc(BLOCK, false).unwrap();
        let into = BufRange::new(plain, 0, BLOCK);
        assert_eq!(ring.run(Op::Read { file, into, position: 0 }), Ok(BLOCK as u32));
        assert!(ring.memory.bytes(into).iter().all(|byte| *byte == round), "pages of round {round}");
        ring.memory.free(plain);
        ring.memory.free(arena);
    }
}

#[test]
fn two_writes_complete_in_any_order() {
    let Some((mut ring, dir)) = disk() else { return };
    let file = open(&mut ring, &dir, "log");
    let buffer = ring.memory.alloc(2 * BLOCK, false).unwrap();
    for slot in 0..2 {
        let from = filled(&mut ring, buffer, slot * BLOCK, BLOCK, slot as u8);
        let position = ((1 - slot) * BLOCK) as u64;
        ring.submit(token(slot as u32), Op::Write { file, from, position, durable: false });
    }
    let mut done = reap(&mut ring, 2);
    done.sort_by_key(|completion| completion.token);
    let all = Ok(BLOCK as u32);
    let expected = [0, 1].map(|slot| Completion { token: token(slot), result: all });
    assert_eq!(done, expected);
}

#[test]
fn more_ops_than_the_queue_holds_all_complete() {
    let Some((mut ring, dir)) = disk() else { return };
    let file = open(&mut ring, &dir, "log");
    let buffer = ring.memory.alloc(BLOCK, false).unwrap();
    let from = filled(&mut ring, buffer, 0, BLOCK, 3);
    assert_eq!(ring.run(Op::Write { file, from, position: 0, durable: false }), Ok(BLOCK as u32));
    let count = 10_000;
    let into = BufRange::new(buffer, 0, BLOCK);
    // Never reaped on the way: both queues of the ring overflow.
    for slot in 0..count {
        ring.submit(token(slot), Op::Read { file, into, position: 0 });
    }
    let mut done = reap(&mut ring, count as usize);
    done.sort_by_key(|completion| completion.token);
    for (slot, completion) in done.iter().enumerate() {
        assert_eq!(*completion, Completion { token: token(slot as u32), result: Ok(BLOCK as u32) });
    }
    assert_eq!(ring.run(Op::Close { file }), Ok(0));
    ring.memory.free(buffer); // Asserts that nothing is lent.
}

#[test]
fn run_keeps_other_completions() {
    let Some((mut ring, dir)) = disk() else { return };
    let file = open(&mut ring, &dir, "log");
    let buffer = ring.memory.alloc(2 * BLOCK, false).unwrap();
    let from = filled(&mut ring, buffer, 0, BLOCK, 3);
    ring.submit(token(1), Op::Write { file, from, position: 0, durable: false });
    assert_eq!(ring.run(Op::SyncData { file }), Ok(0));
    assert_eq!(ring.run(Op::Open { path: dir.path().join("none"), create: false }), Err(Errno::NOENT));
    assert_eq!(reap(&mut ring, 1), [Completion { token: token(1), result: Ok(BLOCK as u32) }]);
}

#[test]
fn a_failed_op_names_its_error() {
    let Some((mut ring, dir)) = disk() else { return };
    assert_eq!(ring.run(Op::SyncDir { path: dir.path().join("none") }), Err(Errno::NOENT));
    let file = open(&mut ring, &dir, "log");
    let refused = ring.run(Op::Allocate { file, len: 1 << 62 }).unwrap_err();
    assert!(refused.is_no_space(), "{refused}");
    assert_eq!(ring.run(Op::Allocate { file, len: 1 << 20 }), Ok(0));
    assert_eq!(ring.file_facts(file).unwrap().size, 1 << 20);
}

/// Runs a test again in a process of its own, where no other test has kernel workers. `true`: this is it.
fn alone(test: &str) -> bool {
    if std::env::var_os("RING_URING_ALONE").is_some() {
        return true;
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let status = again.args([test, "--exact", "--nocapture"]).env("RING_URING_ALONE", "1").status().unwrap();
    assert!(status.success());
    false
}

#[test]
fn overwrites_of_written_blocks_need_no_kernel_worker() {
    if !alone("overwrites_of_written_blocks_need_no_kernel_worker") {
        return;
    }
    let size = 4 << 20;
    // Creating and pre-writing do need some; they end with their thread.
    let prepare = std::thread::spawn(move || {
        let (mut ring, dir) = disk()?;
        let file = open(&mut ring, &dir, "log");
        let buffer = ring.memory.alloc(size, false).unwrap();
        let from = filled(&mut ring, buffer, 0, size, 0);
        ring.run(Op::Write { file, from, position: 0, durable: false }).unwrap();
        ring.run(Op::SyncAll { file }).unwrap();
        Some(dir)
    });
    let (Some(dir), Some(mut ring)) = (prepare.join().unwrap(), ring_of(small())) else { return };
    let begin = Instant::now();
    while kernel_workers() > 0 && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(kernel_workers(), 0, "those of the other thread have left");
    let file = FileId(ring.run(Op::Open { path: dir.path().join("log"), create: false }).unwrap());
    let edges = ring.file_facts(file).unwrap().extent_edges;
    let arena = ring.memory.alloc(2 << 20, true).unwrap();
    let from = filled(&mut ring, arena, 0, 16 * BLOCK, 1);
    let mut took = Vec::new();
    for position in (0..size as u64).step_by(16 * BLOCK) {
        if edges.iter().any(|edge| (position + 1..position + 16 * BLOCK as u64).contains(edge)) {
            continue;
        }
        let begin = Instant::now();
        let durable = position % (32 * BLOCK as u64) == 0;
        assert_eq!(ring.run(Op::Write { file, from, position, durable }), Ok(16 * BLOCK as u32));
        took.push(begin.elapsed());
    }
    let workers = kernel_workers();
    ring.run(Op::SyncData { file }).unwrap();
    let after_sync = kernel_workers();
    took.sort();
    println!(
        "{} writes, p50 {:?}; workers {workers}, after a sync {after_sync}",
        took.len(),
        took[took.len() / 2]
    );
    let filesystem = rustix::fs::statfs(dir.path()).unwrap().f_type;
    if filesystem as u64 != 0xef53 {
        println!("skipped: in place on ext4, maybe not on {filesystem:#x}");
        return;
    }
    assert_eq!(workers, 0, "a write went through a kernel worker");
    assert!(after_sync > 0, "a sync does");
}

#[test]
fn edges_of_extents_are_inside_the_file_and_ascend() {
    let Some((mut ring, dir)) = disk() else { return };
    let file = open(&mut ring, &dir, "log");
    let size = 64 * BLOCK as u64;
    assert_eq!(ring.run(Op::Allocate { file, len: size }), Ok(0));
    let buffer = ring.memory.alloc(8 * BLOCK, false).unwrap();
    let from = filled(&mut ring, buffer, 0, 8 * BLOCK, 3);
    let position = 16 * BLOCK as u64;
    assert_eq!(ring.run(Op::Write { file, from, position, durable: true }), Ok(8 * BLOCK as u32));
    let facts = ring.file_facts(file).unwrap();
    assert_eq!(facts.size, size);
    assert!(facts.dio_align >= 512 && facts.dio_align <= BLOCK as u32, "{facts:?}");
    assert!(facts.extent_edges.is_sorted(), "{facts:?}");
    assert!(facts.extent_edges.iter().all(|edge| *edge > 0 && *edge < size), "{facts:?}");
    if facts.extent_edges.is_empty() {
        println!("skipped: this file system tells no extents");
        return;
    }
    for edge in [position, position + 8 * BLOCK as u64] {
        assert!(facts.extent_edges.contains(&edge), "written and unwritten meet at {edge}: {facts:?}");
    }
    assert!(ring.disk_free(dir.path()).unwrap() > 0);
}

#[test]
fn names_in_a_directory_are_sorted() {
    let Some((mut ring, dir)) = disk() else { return };
    ring.make_dirs(&dir.path().join("b/c")).unwrap();
    std::fs::write(dir.path().join("a"), "abc").unwrap();
    let entries = ring.list_dir(dir.path()).unwrap();
    let seen: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.is_dir)).collect();
    assert_eq!(seen, [("a", false), ("b", true), ("probe", false)]);
    assert_eq!(entries[0].size, 3);
    assert_eq!(ring.list_dir(&dir.path().join("none")), Err(Errno::NOENT));
}

#[test]
fn a_locked_directory_refuses_a_second_ring() {
    let (Some((mut first, dir)), Some(mut second)) = (disk(), ring_of(small())) else { return };
    first.lock_dir(dir.path()).unwrap();
    assert_eq!(second.lock_dir(dir.path()), Err(Errno::BUSY));
    drop(first);
    second.lock_dir(dir.path()).unwrap();
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let Some(mut ring) = ring_of(small()) else { return };
    for wait_us in [0, 1, 500, 20_000] {
        let begin = Instant::now();
        let until = ring.read_clock().mono_us + wait_us;
        ring.wait(Some(until));
        assert!(ring.now().mono_us >= until, "woken {} us too early", until - ring.now().mono_us);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?} for {wait_us} us", begin.elapsed());
    }
    let begin = Instant::now();
    ring.wait(Some(0));
    assert!(begin.elapsed() < Duration::from_secs(1));
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    assert!((ring.now().wall_ms - wall).abs() < 5_000);
}

/// As another user with `ulimit -l 64` it has fewer queue entries, and a line for that.
#[test]
fn a_ring_of_the_default_size_says_what_it_lacks() {
    let Some((ring, _dir)) = disk_of(RingConfig::default()) else { return };
    let report = ring.report();
    assert!(report.kernel.contains('.'), "{report:?}");
    println!("Linux {}: {:?}", report.kernel, report.fallbacks);
}

#[test]
fn random_numbers_differ() {
    let Some(mut ring) = ring_of(small()) else { return };
    let drawn: std::collections::HashSet<u64> = (0..1000).map(|_| ring.random()).collect();
    assert_eq!(drawn.len(), 1000);
}

#[test]
fn a_doorbell_wakes_a_sleeping_wait() {
    let Some(mut ring) = ring_of(small()) else { return };
    let bell = ring.doorbell();
    let ringer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        bell.ring();
    });
    let begin = Instant::now();
    ring.wait(Some(ring.now().mono_us + 20_000_000));
    assert!(begin.elapsed() < Duration::from_secs(10), "woken by the deadline");
    assert!(begin.elapsed() >= Duration::from_millis(20), "woken by nothing");
    ringer.join().unwrap();
    let mut out = Vec::new();
    ring.reap(&mut out, 10);
    assert_eq!(out, [], "a doorbell is no completion");
}

#[test]
fn a_doorbell_rung_before_the_wait_is_not_lost() {
    let Some(mut ring) = ring_of(small()) else { return };
    for _ in 0..3 {
        ring.doorbell().ring();
        let begin = Instant::now();
        ring.wait(Some(ring.now().mono_us + 20_000_000));
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    // And rings once: the next wait sleeps.
    let until = ring.read_clock().mono_us + 20_000;
    ring.wait(Some(until));
    assert!(ring.now().mono_us >= until);
}

#[test]
fn no_doorbell_is_lost_between_two_rings() {
    let (ready, started) = std::sync::mpsc::channel();
    let rounds = 20_000u64;
    let shared = std::sync::Arc::new([const { std::sync::atomic::AtomicU64::new(0) }; 2]);
    let play = |ring: &mut Ring, own: usize, bell: &ringmq_engine::ring::Doorbell| {
        use std::sync::atomic::Ordering::{Acquire, Release};
        for round in 0..rounds {
            if own == 0 {
                shared[0].store(round + 1, Release);
                bell.ring();
            }
            let begin = Instant::now();
            while shared[1 - own].load(Acquire) <= round {
                ring.wait(None);
                assert!(begin.elapsed() < Duration::from_secs(30), "round {round}");
            }
            if own == 1 {
                shared[1].store(round + 1, Release);
                bell.ring();
            }
        }
    };
    std::thread::scope(|scope| {
        let (give, take) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let Some(mut ring) = ring_of(small()) else { return };
            ready.send(ring.doorbell()).unwrap();
            play(&mut ring, 1, &take.recv().unwrap());
        });
        let (Ok(other), Some(mut ring)) = (started.recv(), ring_of(small())) else { return };
        give.send(ring.doorbell()).unwrap();
        let begin = Instant::now();
        play(&mut ring, 0, &other);
        println!("{rounds} rounds, {:?} each", begin.elapsed() / rounds as u32);
    });
}

/// A ring, a listener, its own end of a connection and the peer's.
fn connected() -> Option<(Ring, SocketId, SocketId, TcpStream)> {
    let mut ring = ring_of(small())?;
    let (listener, address) = ring.listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let client = TcpStream::connect(address).unwrap();
    let socket = SocketId(ring.run(Op::Accept { listener }).unwrap());
    assert_eq!(ring.peer(socket), Some(client.local_addr().unwrap()));
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    Some((ring, listener, socket, client))
}

#[test]
fn a_connection_echoes_until_the_peer_closes() {
    let Some((mut ring, listener, socket, mut client)) = connected() else { return };
    let buffer = ring.memory.alloc(BLOCK, false).unwrap();
    let into = BufRange::new(buffer, 0, BLOCK);
    for round in 0..100u8 {
        ring.submit(token(1), Op::Recv { socket, into });
        let enters = ring.stats().enters;
        ring.wait(Some(ring.now().mono_us + 1000));
        assert!(ring.stats().enters - enters <= 1, "a receive without data does not spin");
        client.write_all(&[round; 100]).unwrap();
        let got = reap(&mut ring, 1)[0].result.unwrap() as usize;
        assert_eq!(got, 100);
        let from = BufRange::new(buffer, 0, got);
        assert_eq!(ring.run(Op::Send { socket, from }), Ok(100));
        let mut echo = [0; 100];
        client.read_exact(&mut echo).unwrap();
        assert_eq!(echo, [round; 100]);
    }
    drop(client);
    assert_eq!(ring.run(Op::Recv { socket, into }), Ok(0));
    assert_eq!(ring.run(Op::CloseSocket { socket }), Ok(0));
    assert_eq!(ring.run(Op::CloseSocket { socket: listener }), Ok(0));
    ring.memory.free(buffer);
}

#[test]
fn closing_a_socket_ends_what_is_in_flight_on_it_first() {
    let Some((mut ring, listener, socket, mut client)) = connected() else { return };
    let into = ring.memory.alloc(BLOCK, false).unwrap();
    let full = ring.memory.alloc(32 << 20, false).unwrap();
    ring.submit(token(1), Op::Recv { socket, into: BufRange::new(into, 0, BLOCK) });
    // More than the socket takes: the second one stays in flight.
    ring.submit(token(2), Op::Send { socket, from: BufRange::new(full, 0, 32 << 20) });
    assert!(reap(&mut ring, 1)[0].result.is_ok());
    ring.submit(token(3), Op::Send { socket, from: BufRange::new(full, 0, 32 << 20) });
    ring.wait(Some(0));
    // And one that the kernel has not seen yet.
    ring.submit(token(4), Op::Recv { socket, into: BufRange::new(into, 0, BLOCK) });
    ring.submit(token(5), Op::CloseSocket { socket });
    let done = reap(&mut ring, 4);
    assert_eq!(done[3], Completion { token: token(5), result: Ok(0) }, "{done:?}");
    ring.memory.free(into);
    ring.memory.free(full);
    let mut sink = Vec::new();
    let _ = client.read_to_end(&mut sink);

    ring.submit(token(6), Op::Accept { listener });
    ring.wait(Some(0));
    ring.submit(token(7), Op::Accept { listener });
    ring.submit(token(8), Op::CloseSocket { socket: listener });
    let done = reap(&mut ring, 3);
    assert!(done[0].result.is_err() && done[1].result.is_err(), "{done:?}");
    assert_eq!(done[2], Completion { token: token(8), result: Ok(0) });
}

#[test]
fn a_slot_is_used_again_after_its_socket_was_closed() {
    let Some(mut ring) = ring_of(small()) else { return };
    let (listener, address) = ring.listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let mut first = None;
    for _ in 0..200 {
        let client = TcpStream::connect(address).unwrap();
        let socket = SocketId(ring.run(Op::Accept { listener }).unwrap());
        assert_eq!(*first.get_or_insert(socket), socket);
        drop(client);
        assert_eq!(ring.run(Op::CloseSocket { socket }), Ok(0));
    }
}

#[test]
fn a_full_table_refuses_connections_and_recovers() {
    let Some(mut ring) = ring_of(RingConfig { descriptors_max: 3, ..small() }) else { return };
    let (listener, address) = ring.listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let _clients = [0; 3].map(|_| TcpStream::connect(address).unwrap());
    let socket = SocketId(ring.run(Op::Accept { listener }).unwrap());
    ring.run(Op::Accept { listener }).unwrap();
    assert_eq!(ring.run(Op::Accept { listener }), Err(Errno::MFILE));
    ring.run(Op::CloseSocket { socket }).unwrap();
    assert_eq!(ring.run(Op::Accept { listener }), Ok(socket.0));
}

#[test]
fn a_port_is_free_again_when_its_ring_was_dropped() {
    let Some((mut ring, listener, socket, _client)) = connected() else { return };
    let buffer = ring.memory.alloc(BLOCK, false).unwrap();
    ring.submit(token(1), Op::Recv { socket, into: BufRange::new(buffer, 0, BLOCK) });
    ring.submit(token(2), Op::Accept { listener });
    ring.wait(Some(0));
    let begin = Instant::now();
    drop(ring);
    assert!(begin.elapsed() < Duration::from_secs(5), "in flight for {:?}", begin.elapsed());
    let Some(mut ring) = ring_of(small()) else { return };
    let (_, address) = ring.listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    drop(ring);
    let Some(mut ring) = ring_of(small()) else { return };
    assert_eq!(ring.listen(address).map(|(_, bound)| bound), Ok(address));
    assert_eq!(ring.listen(address), Err(Errno::ADDRINUSE));
}
