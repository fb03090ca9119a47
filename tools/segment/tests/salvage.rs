//! What salvage makes of crash images, a shard starts on: with the same partitions, the same ends, and the same halves
//! and delays that wait. Of damaged ones it has everything but what the report names.
//!
//! `RINGMQ_SALVAGES` for more than a few.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../../engine/tests/sim/mod.rs"]
mod sim;

use ringmq_engine::ring::sim::{DiskImage, SimConfig, World};
use ringmq_engine::ring::{FileId, Op};
use ringmq_engine::shard::{MEMORY_MIN, Shard, ShardOptions};
use ringmq_format::identity::Identity;
use ringmq_format::superblock::Durability;
use ringmq_format::{Lsn, PartitionId, ShardId};
use ringmq_segment::build::{Builder, Target};
use ringmq_segment::directory::Directory;
use ringmq_segment::log::{Step, walk};
use ringmq_segment::rescue::{Report, Wanted, take};
use ringmq_segment::source::Source;
use sim::plan::{Draw, Plan};
use sim::{Harness, NODE, NODE_ID, directory};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where partitions end, and how much waits.
type Found = (BTreeMap<u32, u64>, u64, u64, u64);

fn config(shards: u16) -> SimConfig {
    let mut config = SimConfig::default();
    config.disk.roots = (0..usize::from(shards)).map(directory).collect();
    config
}

fn start(world: &World, shard: u16, shards: u16, node_id: u128) -> Option<Found> {
    let mut ring = world.ring(NODE);
    let options = ShardOptions {
        directory: directory(usize::from(shard)),
        shard: ShardId(shard),
        shards,
        node_id,
        memory: MEMORY_MIN,
        segment_size: 8 << 20,
        disk_limit: None,
        retain_time_ms: None,
        retain_size: None,
        checkpoint_interval: 1 << 40,
        durability: Some(Durability::Flush),
        planted: Default::default(),
    };
    let (shard, _) = Shard::open(&mut ring, options, &mut |_, _| {}).ok()?;
    let ends = (1..5_000).map(PartitionId).filter_map(|id| Some((id.0, shard.extent(id)?.visible.0)));
    let counts = shard.late().counts();
    Some((ends.collect(), counts.pending.delays, counts.pending.halves, counts.transactions))
}

fn memory(image: &DiskImage, shards: u16) -> (Source, Directory) {
    let world = World::with_disk_image(7, config(shards), NODE, image);
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for (path, size) in world.files(NODE) {
        files.insert(path.clone(), world.peek(NODE, &path, 0, size as usize).unwrap());
    }
    files.insert(
        PathBuf::from("/data/identity"),
        Identity { shards, node_id: NODE_ID, created_ms: 0 }.encode(),
    );
    let source = Source::Memory(Arc::new(files));
    let directory = Directory::open(&source, Path::new("/data")).unwrap();
    (source, directory)
}

fn salvage(source: &Source, directory: &Directory, to: &Path) -> Report {
    let ends = |shard: u16| {
        let shard = directory.shards.iter().find(|own| own.shard.0 == shard);
        let facts = shard.into_iter().flat_map(|shard| &shard.slots).filter_map(|slot| slot.facts);
        Lsn(facts.map(|facts| facts.end().0).max().unwrap_or(0).next_multiple_of(1 << 20))
    };
    let target = Target {
        path: to.to_owned(),
        shards: directory.identity.shards,
        durability: Durability::Flush,
        now_ms: 1,
        bases: (0..directory.identity.shards).map(ends).collect(),
        seed: Some(3),
    };
    let mut builder = Builder::create(target).unwrap();
    let (tables, report) = take(source, directory, &Wanted::default(), &mut builder, &mut |_| false).unwrap();
    builder.finish(&tables.partitions, &tables.late).unwrap();
    report
}

/// The new directory on a simulated disk.
fn loaded(from: &Path, shards: u16) -> World {
    let world = World::new(9, config(shards));
    let mut ring = world.ring(NODE);
    for shard in 0..shards {
        let to = directory(usize::from(shard));
        let own = from.join(format!("shard-{shard:02}"));
        ring.make_dirs(&to.join("log")).unwrap();
        for folder in ["", "log"] {
            for entry in std::fs::read_dir(own.join(folder)).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    continue;
                }
                let path = to.join(folder).join(entry.file_name());
                let file = FileId(ring.run(Op::Open { path: path.clone(), create: true }).unwrap());
                let bytes = std::fs::read(entry.path()).unwrap();
                world.poke(NODE, &path, bytes.len() as u64 - 1, &bytes[bytes.len() - 1..]).unwrap();
                for (index, page) in
                    bytes.chunks(4096).enumerate().filter(|page| page.1.iter().any(|byte| *byte != 0))
                {
                    world.poke(NODE, &path, index as u64 * 4096, page).unwrap();
                }
                ring.run(Op::SyncAll { file }).unwrap();
                ring.run(Op::Close { file }).unwrap();
            }
            ring.run(Op::SyncDir { path: to.join(folder) }).unwrap();
        }
    }
    drop(ring);
    world
}

/// Frames with offsets, by partition and first offset, and what is wrong.
fn offsets(source: &Source, directory: &Directory) -> (BTreeMap<(u32, u64), u32>, u64) {
    let (mut found, mut wrong) = (BTreeMap::new(), 0);
    for shard in &directory.shards {
        let durable =
            shard.checkpoint(source, &mut Vec::new()).map(|checkpoint| checkpoint.facts.durable_lsn);
        walk(source, shard, durable, None, &mut |step| {
            match step {
                Step::Group(_, view) => {
                    wrong += view.all_faults().len() as u64;
                    for frame in &view.frames {
                        let header = &frame.header;
                        if ringmq_segment::sidecar::is_indexed(header.kind) {
                            found.insert(
                                (header.partition.get(), header.base_offset.get()),
                                header.count.get(),
                            );
                        }
                    }
                }
                Step::Missing(..) | Step::Joint(..) | Step::Unreadable(..) => wrong += 1,
                _ => {}
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    }
    (found, wrong)
}

#[test]
fn a_shard_starts_on_what_was_salvaged() {
    let wanted: usize = std::env::var("RINGMQ_SALVAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    let (mut done, mut seed, mut waited, mut lost) = (0, 1, 0, 0);
    while done < wanted {
        let mut plan = Plan::draw(seed);
        plan.crashes = 1;
        let shards = plan.shards;
        if shards > 1 {
            // Simulated shards give topic ids of their own, which shards of one directory share.
            seed += 1;
            continue;
        }
        let mut harness = Harness::new(plan);
        harness.world.record_crash_points(NODE, true);
        harness.run().unwrap();
        let points = harness.world.take_crash_points(NODE);
        let mut draw = Draw::new(seed);
        seed += 1;
        for round in 0..4 {
            let point = &points[points.len() / 2 + draw.below(points.len() as u64 / 2) as usize];
            let outcomes: Vec<usize> =
                point.outcomes().iter().map(|choices| draw.below(*choices as u64) as usize).collect();
            let mut image = point.image(&outcomes);
            let world = World::with_disk_image(7, config(shards), NODE, &image);
            let starts: Vec<_> = (0..shards).map(|shard| start(&world, shard, shards, NODE_ID)).collect();
            if round == 3 {
                // A flipped bit somewhere in the first segment.
                let world = World::with_disk_image(7, config(shards), NODE, &image);
                let path = directory(0).join("log/000.seg");
                if world.flip_bit(NODE, &path, (8192 + draw.below(40_000)) * 8).is_ok() {
                    image = world.disk_image(NODE);
                }
            }
            let (source, from) = memory(&image, shards);
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let to = dir.path().join("saved");
            let report = salvage(&source, &from, &to);
            done += 1;
            lost += report.missing.len();
            // It reads back whole, and has every frame but those that are named.
            let saved = Directory::open(&Source::Threads, &to).unwrap();
            let (kept, wrong) = offsets(&Source::Threads, &saved);
            assert_eq!(wrong, 0, "seed {seed}");
            assert!(saved.faults.is_empty() && saved.shards.iter().all(|shard| shard.faults.is_empty()));
            let live =
                saved.shards.iter().flat_map(|shard| shard.checkpoint(&Source::Threads, &mut Vec::new()));
            assert_eq!(live.count(), saved.shards.iter().filter(|shard| !shard.slots.is_empty()).count());
            assert_eq!(kept.len() as u64 + report.waiting, report.frames, "seed {seed}");
            let world = loaded(&to, shards);
            for (shard, before) in starts.iter().enumerate() {
                let Some(after) = start(&world, shard as u16, shards, saved.identity.node_id) else {
                    panic!(
                        "seed {seed} round {round}: a shard does not start on what was salvaged: {report:?}"
                    );
                };
                let Some(before) = before else { continue };
                if round == 3 {
                    continue;
                }
                waited += before.1 + before.2;
                // A torn tail's whole frames are taken, too: ends may lie further.
                for (id, end) in &before.0 {
                    let now = after.0.get(id).copied();
                    assert!(
                        now.is_some_and(|now| now >= *end),
                        "seed {seed} partition {id}: {end} and {now:?}"
                    );
                }
                assert_eq!(
                    (after.1, after.2, after.3),
                    (before.1, before.2, before.3),
                    "seed {seed} {report:?}"
                );
            }
            if round < 3 {
                assert_eq!(report.missing, Vec::new(), "seed {seed}");
            }
        }
    }
    println!("{done} salvaged; {waited} halves and delays waited, {lost} ranges were lost");
    assert!(waited > 0);
}
