//! The enumeration behind `proof small`: a crash point knows everything that a power loss may decide, and each way in
//! which it may be decided is an image.

#![allow(clippy::unwrap_used)] // helpers of tests

use ringmq_engine::ring::sim::{CrashPoint, NodeId, SimConfig, World};
use ringmq_engine::ring::{BufRange, FileId, Op};

const NODE: NodeId = NodeId(1);
const PATH: &str = "/data/file";

/// The file as a power loss would leave it; `None` if its name is gone.
fn after(point: &CrashPoint, outcomes: &[usize]) -> Option<Vec<u8>> {
    let world = World::with_disk_image(1, SimConfig::default(), NODE, &point.image(outcomes));
    world.peek(NODE, PATH, 0, 4096).ok()
}

#[test]
fn every_subset_of_what_is_not_durable_is_an_image() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    world.record_crash_points(NODE, true);
    let file = FileId(ring.run(Op::Open { path: PATH.into(), create: true }).unwrap());
    let points = world.take_crash_points(NODE);
    // On its way, and made: in both cases only the name is at stake.
    assert_eq!(points.iter().map(CrashPoint::choices).collect::<Vec<_>>(), [1, 1]);
    assert!(after(&points[1], &[0]).is_none() && after(&points[1], &[1]).is_some());
    ring.run(Op::Allocate { file, len: 4096 }).unwrap();
    ring.run(Op::SyncAll { file }).unwrap();
    ring.run(Op::SyncDir { path: "/data".into() }).unwrap();
    world.take_crash_points(NODE);

    let buffer = ring.memory.alloc(4096, false).unwrap();
    let range = BufRange::new(buffer, 0, 4096);
    ring.memory.bytes_mut(range).fill(0);
    ring.memory.bytes_mut(range)[7] = 1;
    ring.memory.bytes_mut(range)[3 * 512] = 2;
    ring.run(Op::Write { file, from: range, position: 0, durable: false }).unwrap();
    ring.run(Op::SyncData { file }).unwrap();
    let points = world.take_crash_points(NODE);
    // Two sectors differ from the zeros under them, until the flush is done.
    assert_eq!(points.iter().map(CrashPoint::choices).collect::<Vec<_>>(), [2, 2, 2, 0]);
    for first in 0..2 {
        for second in 0..2 {
            let bytes = after(&points[1], &[first, second]).unwrap();
            assert_eq!((bytes[7], bytes[3 * 512]), (first as u8, 2 * second as u8));
        }
    }
    assert_eq!(after(&points[3], &[]).unwrap()[7], 1);
}

#[test]
fn a_sector_written_twice_may_hold_either() {
    let world = World::new(1, SimConfig::default());
    let mut ring = world.ring(NODE);
    let file = FileId(ring.run(Op::Open { path: PATH.into(), create: true }).unwrap());
    ring.run(Op::Allocate { file, len: 4096 }).unwrap();
    ring.run(Op::SyncAll { file }).unwrap();
    ring.run(Op::SyncDir { path: "/data".into() }).unwrap();
    world.record_crash_points(NODE, true);
    let buffer = ring.memory.alloc(4096, false).unwrap();
    let range = BufRange::new(buffer, 0, 4096);
    for value in 1..=2 {
        ring.memory.bytes_mut(range).fill(0);
        ring.memory.bytes_mut(range)[0] = value;
        ring.run(Op::Write { file, from: range, position: 0, durable: false }).unwrap();
    }
    let points = world.take_crash_points(NODE);
    let last = points.last().unwrap();
    assert_eq!(last.outcomes(), [3]);
    let held: Vec<u8> = (0..3).map(|outcome| after(last, &[outcome]).unwrap()[0]).collect();
    assert_eq!(held, [0, 1, 2]);
    // Only what differs from the first image counts for the digest.
    let image = |outcome| last.image(&[outcome]);
    assert_eq!(image(1).digest_since(&image(0)), image(1).digest_since(&image(0)));
    assert_ne!(image(1).digest_since(&image(0)), image(2).digest_since(&image(0)));
}
