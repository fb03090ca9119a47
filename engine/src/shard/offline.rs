//! What is wrong with a shard that does not start, as an operator needs to know it.

use super::replay::Replay;
use crate::recovery::offline::{Looked, Refused, change_superblock, look};
use crate::recovery::{OpenError, OpenOptions};
use crate::ring::Ring;
use ringmq_format::superblock::Superblock;

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
