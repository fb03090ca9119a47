//! What the tools say of a directory, what `data check` says, and what a shard does at its start are one thing: on crash
//! images of simulated shards, some of them damaged on top.
//!
//! `RINGMQ_IMAGES=10000` for a long run; `RINGMQ_SIM_SEED` begins elsewhere.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../../engine/tests/sim/mod.rs"]
mod sim;

use ringmq_engine::recovery::offline::Looked;
use ringmq_engine::recovery::{OpenError, OpenOptions};
use ringmq_engine::ring::Errno;
use ringmq_engine::ring::sim::{DiskImage, SimConfig, World};
use ringmq_engine::shard::offline::check;
use ringmq_engine::shard::{MEMORY_MIN, Shard, ShardOptions};
use ringmq_format::identity::Identity;
use ringmq_format::{PartitionId, ShardId};
use ringmq_segment::directory::Directory;
use ringmq_segment::source::Source;
use ringmq_segment::verdict::judge;
use sim::plan::{Draw, Plan};
use sim::{Harness, NODE, NODE_ID, directory};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a start leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Row, or none for a root structure.
    Refused(Option<char>),
    /// Frames that answer `Damaged`, and where each partition ends.
    Starts { damaged: Vec<(PathBuf, u64)>, ends: Vec<(u32, u64)> },
}

fn world(image: &DiskImage, shards: u16) -> World {
    let mut config = SimConfig::default();
    config.disk.roots = (0..usize::from(shards)).map(directory).collect();
    World::with_disk_image(7, config, NODE, image)
}

fn row(error: &OpenError) -> Option<char> {
    match error {
        OpenError::Damaged { row, .. } => row.and_then(|row| format!("{row:?}").chars().next()),
        other => panic!("{other}"),
    }
}

fn start(image: &DiskImage, plan: &Plan, shard: u16) -> Outcome {
    let world = world(image, plan.shards);
    let mut ring = world.ring(NODE);
    let options = ShardOptions {
        directory: directory(usize::from(shard)),
        shard: ShardId(shard),
        shards: plan.shards,
        node_id: NODE_ID,
        memory: MEMORY_MIN,
        segment_size: plan.segment_size,
        disk_limit: None,
        retain_time_ms: None,
        retain_size: None,
        checkpoint_interval: 1 << 40,
        durability: Some(plan.durability),
        planted: plan.planted,
    };
    match Shard::open(&mut ring, options, &mut |_, _| {}) {
        Err(error) => Outcome::Refused(row(&error)),
        Ok((shard, report)) => {
            let ids = (1..20_000).map(PartitionId);
            let ends = ids.filter_map(|id| Some((id.0, shard.extent(id)?.visible.0))).collect();
            Outcome::Starts { damaged: report.damaged_frames, ends }
        }
    }
}

fn checked(image: &DiskImage, plan: &Plan, shard: u16) -> Outcome {
    let world = world(image, plan.shards);
    let mut ring = world.ring(NODE);
    let options = OpenOptions {
        directory: directory(usize::from(shard)),
        shard: ShardId(shard),
        node_id: NODE_ID,
        segment_size: plan.segment_size,
        durability: None,
        planted: plan.planted,
    };
    match check(&mut ring, &options, plan.shards, &mut |_, _| {}) {
        // Not made yet.
        Err(OpenError::Io { error: Errno::NOENT, .. }) => {
            Outcome::Starts { damaged: Vec::new(), ends: Vec::new() }
        }
        Err(error) => Outcome::Refused(row(&error)),
        Ok(checked) => match checked.looked {
            Looked::Refused(refused) => Outcome::Refused(format!("{:?}", refused.row).chars().next()),
            Looked::Sound(report) => {
                let ends = checked.partitions.iter().map(|(id, _, next)| (id.0, next.0)).collect();
                Outcome::Starts { damaged: report.damaged_frames, ends }
            }
        },
    }
}

fn judged(image: &DiskImage, plan: &Plan, shard: u16) -> (Outcome, String) {
    let world = world(image, plan.shards);
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for (path, size) in world.files(NODE) {
        files.insert(path.clone(), world.peek(NODE, &path, 0, size as usize).unwrap());
    }
    let identity = Identity { shards: plan.shards, node_id: NODE_ID, created_ms: 0 };
    files.insert(PathBuf::from("/data/identity"), identity.encode());
    let source = Source::Memory(Arc::new(files));
    let directory = Directory::open(&source, Path::new("/data")).unwrap();
    let Some(own) = directory.shards.iter().find(|own| own.shard.0 == shard) else {
        return (Outcome::Starts { damaged: Vec::new(), ends: Vec::new() }, "no shard".to_owned());
    };
    let verdict = judge(&source, &directory, own, &mut |_| false).unwrap();
    let said = format!("{:?} ends at {}, cut {:?}", verdict.refused, verdict.end, verdict.cut);
    let outcome = match verdict.refused {
        Some(refused) => Outcome::Refused(refused.row),
        None => {
            let state = &verdict.state;
            let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
            for topic in state.topics.values().filter(|topic| !topic.deleted) {
                let own = topic.partition_ids().filter(|id| id.shard(plan.shards).0 == shard);
                ends.extend(own.map(|id| (id.0, state.partitions.get(&id.0).map_or(0, |own| own.next))));
            }
            Outcome::Starts { damaged: verdict.damaged_frames, ends: ends.into_iter().collect() }
        }
    };
    (outcome, said)
}

/// Something happens to the bytes behind everybody's back.
fn damage(image: &DiskImage, plan: &Plan, draw: &mut Draw) -> (DiskImage, String) {
    let world = world(image, plan.shards);
    let files: Vec<_> = world.files(NODE).into_iter().filter(|file| file.1 > 0).collect();
    if files.is_empty() {
        return (image.clone(), String::new());
    }
    let mut said = String::new();
    for _ in 0..=draw.below(2) {
        let segments: Vec<_> =
            files.iter().filter(|file| file.0.extension().is_some_and(|ending| ending == "seg")).collect();
        let any = segments.is_empty() || draw.one_in(4);
        let (path, size) = match any {
            true => &files[draw.below(files.len() as u64) as usize],
            false => segments[draw.below(segments.len() as u64) as usize],
        };
        let part = if draw.one_in(2) { *size } else { *size / 8 };
        let at = draw.below(part.max(1));
        said += &format!("{} at {at}; ", path.display());
        if draw.one_in(2) {
            world.flip_bit(NODE, path, at * 8 + draw.below(8)).unwrap();
        } else {
            let at = at / 512 * 512;
            let byte = draw.below(2) as u8 * 0x55;
            world.poke(NODE, path, at, &vec![byte; 512]).unwrap();
        }
    }
    (world.disk_image(NODE), said)
}

#[test]
fn check_and_the_tools_say_what_a_start_does() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
    };
    let (wanted, mut seed) = (number("RINGMQ_IMAGES", 300), number("RINGMQ_SIM_SEED", 1));
    let (mut images, mut refused, mut damaged, mut cut) = (0, 0, 0, 0);
    let mut differs = Vec::new();
    while images < wanted {
        let mut plan = Plan::draw(seed);
        plan.crashes = 1;
        let mut harness = Harness::new(plan.clone());
        harness.world.record_crash_points(NODE, true);
        harness.run().unwrap();
        let points = harness.world.take_crash_points(NODE);
        let mut draw = Draw::new(seed);
        for _ in 0..20.min(points.len()) {
            let point = &points[draw.below(points.len() as u64) as usize];
            let outcomes: Vec<usize> =
                point.outcomes().iter().map(|choices| draw.below(*choices as u64) as usize).collect();
            let mut image = point.image(&outcomes);
            let mut said = String::new();
            if !draw.one_in(3) {
                (image, said) = damage(&image, &plan, &mut draw);
            }
            for shard in 0..plan.shards {
                images += 1;
                let really = start(&image, &plan, shard);
                let check = checked(&image, &plan, shard);
                let (tools, text) = judged(&image, &plan, shard);
                match &really {
                    Outcome::Refused(_) => refused += 1,
                    Outcome::Starts { damaged: frames, .. } => damaged += u64::from(!frames.is_empty()),
                }
                cut += u64::from(text.contains("cut Some"));
                // A shard that is not there yet is made by a start, and cannot be looked at.
                let fresh = matches!(&really, Outcome::Starts { ends, .. } if ends.is_empty());
                if (check != really && !fresh) || tools != really {
                    differs.push(format!(
                        "seed {seed} shard {shard} ({said}): a start {really:?}\n  check {check:?}\n  tools {tools:?} {text}"
                    ));
                }
            }
        }
        seed += 1;
    }
    println!("{images} images: {refused} refused, {damaged} served around damage, {cut} torn");
    assert!(differs.is_empty(), "{} differ:\n{}", differs.len(), differs[..differs.len().min(6)].join("\n"));
    assert!(refused * 100 > images && damaged > 0 && cut > 0, "the images are too tame");
}
