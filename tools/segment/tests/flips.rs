//! One flipped bit at every byte of a segment of 1 MiB: it is found and named, byte and bit, and salvage loses the frame
//! that it touched, if any, and nothing else.
//!
//! `RINGMQ_FLIPS=all` for every byte, `=16` for every 16th; without, every structure's header bytes and a share of the rest.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Full, Made, SEGMENT, files, full_segment};
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::frame::FrameHeader;
use ringmq_segment::directory::Directory;
use ringmq_segment::fault::Fault;
use ringmq_segment::log::{Step, walk};
use ringmq_segment::rescue::{Report, Sink, Wanted, take};
use ringmq_segment::source::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Default)]
struct Kept(BTreeSet<(u32, u64)>);

impl Sink for Kept {
    fn topic(&mut self, _: &TopicEntry) -> std::io::Result<()> {
        Ok(())
    }

    fn frame(&mut self, _: u16, bytes: &[u8]) -> std::io::Result<()> {
        let header = FrameHeader::parse(bytes).unwrap();
        assert!(self.0.insert((header.partition.get(), header.base_offset.get())), "a frame comes once");
        Ok(())
    }
}

fn faults(source: &Source, directory: &Directory) -> Vec<Fault> {
    let shard = &directory.shards[0];
    let mut found: Vec<Fault> = shard.faults.iter().map(|(_, fault)| fault.clone()).collect();
    walk(source, shard, None, None, &mut |step| {
        match step {
            Step::Group(_, view) => found.extend(view.all_faults().into_iter().cloned()),
            Step::Missing(..) | Step::Joint(..) | Step::Unreadable(..) => panic!("{step:?}"),
            _ => {}
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

fn salvage(source: &Source, directory: &Directory) -> (Kept, Report) {
    let mut kept = Kept::default();
    let (_, report) = take(source, directory, &Wanted::default(), &mut kept, &mut |_| false).unwrap();
    (kept, report)
}

fn memory(files: BTreeMap<PathBuf, Vec<u8>>) -> (Source, Directory) {
    let source = Source::Memory(Arc::new(files));
    let directory = Directory::open(&source, Path::new("data")).unwrap();
    (source, directory)
}

fn all(full: &Full) -> BTreeSet<(u32, u64)> {
    full.frames.iter().filter(|made| made.partition > 0).map(|made| (made.partition, made.offset)).collect()
}

fn check(full: &Full, byte: u64, bit: u8) {
    let mut damaged = files(full);
    damaged.get_mut(Path::new(SEGMENT)).unwrap()[byte as usize] ^= 1 << bit;
    let (source, directory) = memory(damaged);
    let place = format!("bit {bit} of byte {byte}");
    let found = faults(&source, &directory);
    let named = found.iter().any(|fault| fault.position == byte && fault.flipped_bit == Some(bit));
    assert!(named, "{place} is not named: {found:?}");
    let touched: Option<&Made> =
        full.frames.iter().find(|made| (made.position..made.position + made.len).contains(&byte));
    let (kept, report) = salvage(&source, &directory);
    let mut expected = all(full);
    let mut missing = Vec::new();
    if let Some(made) = touched.filter(|made| made.partition > 0) {
        expected.remove(&(made.partition, made.offset));
        missing.push((made.partition, made.offset, made.offset + u64::from(made.count)));
    }
    assert_eq!(kept.0, expected, "{place}");
    let said: Vec<_> = report.missing.iter().map(|one| (one.partition, one.from, one.to)).collect();
    assert_eq!(said, missing, "{place}: {report:?}");
    let others = usize::from(touched.is_some_and(|made| made.partition == 0));
    assert_eq!((report.other_damage.len(), report.stale), (others, 0), "{place}: {report:?}");
}

#[test]
fn every_flipped_bit_is_named_and_costs_only_the_frame_it_touched() {
    let full = full_segment(1 << 20);
    let (source, directory) = memory(files(&full));
    assert_eq!(faults(&source, &directory), Vec::new());
    assert_eq!(salvage(&source, &directory).0.0, all(&full));
    let capacity = full.bytes.len() as u64;
    if let Ok(value) = std::env::var("RINGMQ_FLIPS") {
        let step = value.parse().unwrap_or(1);
        (0..capacity).step_by(step).for_each(|byte| check(&full, byte, (byte * 7 % 8) as u8));
        return;
    }
    let mut bytes: BTreeSet<u64> = (0..capacity).step_by(4099).collect();
    // Every bit's byte of one group's header, of a frame's, and what lies around each border.
    let (group, frame) = (full.groups[5], full.frames[40]);
    bytes.extend(group.0..group.0 + 64);
    bytes.extend(frame.position..frame.position + 100);
    for (start, used, total) in full.groups.iter().step_by(23) {
        bytes.extend(
            [start + used - 1, start + used, start + total - 1].map(|byte| byte.min(start + total - 1)),
        );
    }
    bytes.extend([0, 8, 4091, 4092, 4095, 4096, 8191, capacity - 4096, capacity - 1]);
    bytes.into_iter().for_each(|byte| check(&full, byte, (byte * 7 % 8) as u8));
}

/// What is beyond one bit: whole sectors gone, of headers too.
#[test]
fn smashed_places_cost_what_lies_in_them() {
    let full = full_segment(1 << 20);
    for (index, group) in full.groups.iter().enumerate().step_by(7).filter(|group| group.1.1 > 64) {
        for (from, len) in [(group.0, 64), (group.0 + 40, 200), (group.0 + 64, 30)] {
            let mut damaged = files(&full);
            let bytes =
                &mut damaged.get_mut(Path::new(SEGMENT)).unwrap()[from as usize..(from + len) as usize];
            bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 37 + index) as u8);
            let (source, directory) = memory(damaged);
            assert!(!faults(&source, &directory).is_empty(), "group {index} from {from}");
            let (kept, report) = salvage(&source, &directory);
            let lost = |made: &&Made| made.position < from + len && from < made.position + made.len;
            let touched: BTreeSet<_> =
                full.frames.iter().filter(lost).map(|made| (made.partition, made.offset)).collect();
            let expected: BTreeSet<_> = all(&full).difference(&touched).copied().collect();
            assert_eq!(kept.0, expected, "group {index} from {from}: {report:?}");
            let records: u64 = full
                .frames
                .iter()
                .filter(|made| made.partition > 0 && touched.contains(&(made.partition, made.offset)))
                .map(|made| u64::from(made.count))
                .sum();
            // The last frame of a partition leaves no trace if its header is gone.
            assert!(report.records_missing() <= records, "group {index} from {from}: {report:?}");
        }
    }
}
