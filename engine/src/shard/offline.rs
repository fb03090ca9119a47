//! What a start would find, and what is wrong with a shard that does not start, as an operator needs to know it.

use super::replay::Replay;
use crate::recovery::offline::{Looked, Refused, change_superblock, look, read_superblock};
use crate::recovery::{OpenError, OpenOptions};
use crate::ring::Ring;
use ringmq_format::superblock::Superblock;
use ringmq_format::{Offset, PartitionId, SegmentSeq};

/// Every range of the log that recovery refuses, each as if those before it were set aside; nothing is written.
/// Empty: the shard would start. An error: it would not, and setting ranges aside does not help.
/// `progress` is told the bytes read and those there may be at most, of each look.
pub fn find_refused(
    ring: &mut Ring,
    options: &OpenOptions,
    shards: u16,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Refused>, OpenError> {
    let mut found: Vec<Refused> = Vec::new();
    loop {
        let ranges: Vec<_> = found.iter().map(|one| (one.start, one.end, one.chain)).collect();
        let mut replay = Replay::new(options.shard, shards, progress);
        match look(ring, options, &ranges, &mut replay)? {
            Looked::Refused(refused) => found.push(refused),
            Looked::Sound(_) => {
                return match replay.finish() {
                    Ok(_) => Ok(found),
                    Err(corruption) => Err(super::undeleted(options, corruption)),
                };
            }
        }
    }
}

/// What a start of the shard would find: recovery's own steps, and nothing is written.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Whether it would start, and what it would report.
    pub looked: Looked,
    /// If it would: live topics, and each partition's first and next offset.
    pub topics: usize,
    /// By id.
    pub partitions: Vec<(PartitionId, Offset, Offset)>,
}

/// Recovers without writing anything. An error is a refusal that no quarantine can help.
pub fn check(
    ring: &mut Ring,
    options: &OpenOptions,
    shards: u16,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Checked, OpenError> {
    let mut replay = Replay::new(options.shard, shards, progress);
    let looked = look(ring, options, &[], &mut replay)?;
    if matches!(looked, Looked::Refused(_)) {
        return Ok(Checked { looked, topics: 0, partitions: Vec::new() });
    }
    let mut replayed = replay.finish().map_err(|corruption| super::undeleted(options, corruption))?;
    let kept = read_superblock(ring, options)?.log_start_seq;
    for partition in replayed.partitions.iter_mut().flatten() {
        // As `Shard::open` does.
        partition.retire(&replayed.frames, SegmentSeq(kept.0.saturating_sub(1)));
        partition.settle(&replayed.frames);
    }
    let partitions = replayed.partitions.iter().flatten();
    Ok(Checked {
        looked,
        topics: replayed.catalogue.all().filter(|topic| !topic.deleted).count(),
        partitions: partitions
            .map(|partition| (partition.id(), partition.start(), partition.next()))
            .collect(),
    })
}

/// Sets the ranges aside: recovery goes on behind each. Durable when this returns.
pub fn set_aside(
    ring: &mut Ring,
    options: &OpenOptions,
    ranges: &[Refused],
) -> Result<(Superblock, Superblock), OpenError> {
    change_superblock(ring, options, |superblock| {
        let new = ranges.iter().map(|range| (range.start, range.end, range.chain));
        superblock.quarantine.extend(new);
    })
}
