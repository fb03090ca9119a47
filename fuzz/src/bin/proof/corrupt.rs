//! Damage everywhere: each bit, each length, each sector of what a log has written.
//!
//! Fast rows look only at what a change can reach: the group that is hit and its neighbours, through the same scan
//! that recovery uses, and the frame that is hit, through the same checks as a reader's. Full rows start a whole shard
//! on the changed disk and read everything back through the model, which knows what was sent and none of the engine's
//! checksums.

use crate::Options;
use crate::sim::model::{Checked, wrong};
use crate::sim::plan::{Draw, Plan};
use crate::sim::{Harness, NODE, directory, quietly};
use crate::sweep::{Swept, sweep};
use ringmq_engine::format::frame::{Codec, Frame};
use ringmq_engine::format::group::{GroupHeader, group_frames};
use ringmq_engine::format::limits::{BLOCK_SIZE, FRAME_HEADER_SIZE, GROUP_HEADER_SIZE, SECTOR_SIZE};
use ringmq_engine::format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_engine::format::segment::{FIRST_GROUP, SegmentFacts};
use ringmq_engine::format::{Epoch, PartitionId};
use ringmq_engine::planted::Planted;
use ringmq_engine::recovery::OpenError;
use ringmq_engine::recovery::decide::{Decision, Finding, decide};
use ringmq_engine::recovery::scan::{ScanPoint, examine, highest_witness};
use ringmq_engine::ring::sim::DiskImage;
use std::ops::Range;
use std::path::PathBuf;

const PARTITIONS: u32 = 4;
/// Of the segment whose bits are flipped and whose tail is cut.
const SEGMENT_SIZE: u64 = 4 << 20;
const TAIL: u64 = 1 << 20;
/// Of the store whose sectors are replaced: it keeps eight segments of 8 MiB, and a few slots wait for the next ones.
const STORE_SEGMENT_SIZE: u64 = 8 << 20;
const STORE_KEPT: u64 = 8;
const STORE_SLOTS: u64 = STORE_KEPT + 4;

/// A frame of a group, as it was written.
struct Place {
    /// Bytes of the segment.
    range: Range<usize>,
    partition: PartitionId,
    offset: u64,
}

/// A group, as it was written.
struct Group {
    range: Range<usize>,
    point: ScanPoint,
    frames: Vec<Place>,
    /// A later group says that it was durable.
    witness: bool,
}

/// A segment's bytes, and what they mean.
struct Layout {
    path: PathBuf,
    facts: SegmentFacts,
    bytes: Vec<u8>,
    groups: Vec<Group>,
    /// A bug of the scan, on purpose.
    planted: Planted,
}

impl Layout {
    fn read(harness: &Harness, path: PathBuf) -> Option<Self> {
        let bytes = harness.world.peek(NODE, &path, 0, 1 << 30).ok()?;
        let facts = SegmentFacts::parse(&bytes).ok().filter(|facts| facts.seq.0 > 0)?;
        let mut groups: Vec<Group> = Vec::new();
        let mut position = FIRST_GROUP as usize;
        let (mut chain, mut epoch) = (facts.previous_chain, Epoch(0));
        while let Some(rest) = bytes.get(position..).filter(|rest| rest.len() >= GROUP_HEADER_SIZE) {
            let lsn = facts.base.plus(position as u64);
            let Ok(header) = GroupHeader::parse(rest, facts.incarnation, facts.seq, lsn) else { break };
            let frames = group_frames(header, rest).map(|(at, frame)| Place {
                range: position + at..position + at + frame.bytes.len(),
                partition: frame.header.partition(),
                offset: frame.header.base_offset.get(),
            });
            groups.push(Group {
                range: position..position + header.total(),
                point: ScanPoint { lsn, chain, epoch },
                frames: frames.collect(),
                witness: false,
            });
            chain = header.next_chain();
            epoch = Epoch(header.epoch.get());
            position += header.total();
        }
        for group in &mut groups {
            let behind = bytes.get(group.range.end..).unwrap_or(&[]);
            let highest = highest_witness(&facts, group.range.end as u64, behind);
            group.witness = highest.is_some_and(|durable| durable > group.point.lsn);
        }
        Some(Self { path, facts, bytes, groups, planted: Planted::default() })
    }

    /// Bytes that say something: header, groups, padding.
    fn extent(&self) -> usize {
        self.groups.last().map_or(FIRST_GROUP as usize, |group| group.range.end)
    }

    fn group_at(&self, byte: usize) -> Option<usize> {
        let index = self.groups.partition_point(|group| group.range.end <= byte);
        self.groups.get(index).filter(|group| group.range.contains(&byte)).map(|_| index)
    }

    /// Is a group, whose bytes differ from what was written within `changed`, told apart, named, and nothing of it
    /// served that is not what was sent?
    fn check_group(&self, index: usize, bytes: &[u8], changed: &Range<usize>) -> Result<(), String> {
        let group = &self.groups[index];
        let found = examine(&self.facts, &group.point, &bytes[group.range.clone()], self.planted);
        let within = changed.start.max(group.range.start)..changed.end.min(group.range.end);
        if within.is_empty() || bytes[within.clone()] == self.bytes[within.clone()] {
            return match found.finding {
                Finding::Whole => Ok(()),
                finding => Err(format!("an untouched group is {finding:?}")),
            };
        }
        let say = |what: &str| Err(format!("{what}: {found:?}"));
        if found.corruption.is_none() {
            return say("damage without a name");
        }
        let (_, decision) = decide(found.finding, group.witness);
        let touched = |range: &Range<usize>| bytes[range.clone()] != self.bytes[range.clone()];
        match decision {
            Decision::Refuse => Ok(()),
            Decision::Cut if !group.witness => Ok(()),
            Decision::Accept | Decision::AcceptDamaged if found.finding != Finding::Whole => {
                for place in &group.frames {
                    let named = found.bad_frames.contains(&(place.range.start - group.range.start));
                    let near = place.range.start < changed.end && changed.start < place.range.end;
                    if named != (near && touched(&place.range)) {
                        return say(if named { "a good frame is given up" } else { "a bad frame is served" });
                    }
                }
                Ok(())
            }
            _ => say("damage is not seen"),
        }
    }

    /// Does a reader, who is told by an index where a frame stands, see that it is not what was written?
    fn check_reader(&self, index: usize, bytes: &[u8], changed: &Range<usize>) -> Result<(), String> {
        for place in &self.groups[index].frames {
            if place.range.end <= changed.start || changed.end <= place.range.start {
                continue;
            }
            let frame = &bytes[place.range.clone()];
            if *frame == self.bytes[place.range.clone()] || place.partition.0 == 0 {
                continue;
            }
            // As `Shard::fetch` does.
            let good = Frame::parse(frame).is_ok_and(|frame| {
                frame.bytes.len() == place.range.len()
                    && frame.header.partition() == place.partition
                    && frame.header.base_offset.get() == place.offset
                    && frame.verify_payload().is_ok()
            });
            if good {
                return Err(format!("a reader takes the damaged frame at {}", place.range.start));
            }
        }
        Ok(())
    }
}

/// A shard with a topic, and frames of all sizes in groups of all sizes.
struct Store {
    harness: Harness,
    draw: Draw,
}

impl Store {
    fn new(plan: Plan) -> Result<Self, String> {
        let mut harness = Harness::new(plan);
        let started = harness.try_start().map_err(|wrong| wrong.details)?;
        started.map_err(|error| error.to_string())?;
        let mut store = Self { harness, draw: Draw::new(3) };
        for _ in 0..10_000 {
            if store.harness.make_topic(0, PARTITIONS).is_ok() {
                return Ok(store);
            }
            store.pass(1_000)?;
        }
        Err("a topic is never taken".to_owned())
    }

    fn pass(&mut self, us: u64) -> Result<(), String> {
        self.harness.pass(us).map_err(|wrong| format!("{}: {}", wrong.check, wrong.details))
    }

    fn frame(&mut self, bodies: u64, size_max: u64) -> Vec<u8> {
        let mut builder = FrameBuilder::new(1000, 1 << 20);
        for _ in 0..1 + self.draw.below(bodies) {
            let mut body = vec![0; 1 + self.draw.below(size_max) as usize];
            for chunk in body.chunks_mut(8) {
                chunk.copy_from_slice(&self.draw.next().to_le_bytes()[..chunk.len()]);
            }
            let pushed = builder.push(&Record { body: &body, time_ms: 1000, ..Record::default() });
            assert!(pushed.is_ok(), "records of {size_max} bytes fit a frame");
        }
        builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None)
    }

    /// Appends until so many bytes were taken.
    fn fill(&mut self, bytes: u64, size_max: u64) -> Result<(), String> {
        let mut taken = 0;
        let mut refused = 0;
        while taken < bytes {
            for _ in 0..1 + self.draw.below(12) {
                let frame = self.frame(3, size_max);
                let partition = self.draw.below(u64::from(PARTITIONS)) as usize;
                let appended = self.harness.append(0, 0, partition, &frame);
                match appended.map_err(|wrong| format!("{}: {}", wrong.check, wrong.details))? {
                    Some(_) => (taken, refused) = (taken + frame.len() as u64, 0),
                    None => refused += 1,
                }
                if refused > 100_000 {
                    return Err("frames are never taken".to_owned());
                }
            }
            let us = if self.draw.one_in(4) { 8_000 } else { 600 };
            self.pass(us)?;
        }
        self.pass(3_000_000)
    }

    fn image(&self) -> DiskImage {
        self.harness.world.disk_image(NODE)
    }
}

fn segment_path(slot: u64) -> PathBuf {
    directory(0).join("log").join(format!("{slot:03}.seg"))
}

/// One sealed segment of 4 MiB, and a bit of the next.
fn segment_store() -> Result<Store, String> {
    let mut plan = Plan::calm();
    plan.segment_size = SEGMENT_SIZE;
    let mut store = Store::new(plan)?;
    store.fill(SEGMENT_SIZE + (200 << 10), 12_000)?;
    store.harness.crash();
    Ok(store)
}

/// What a thread of a fast row works with.
struct Bench {
    layout: Layout,
    bytes: Vec<u8>,
}

fn must<T>(made: Result<T, String>) -> T {
    made.unwrap_or_else(|error| panic!("the store cannot be made: {error}"))
}

fn layout_of(harness: &Harness, slot: u64) -> Layout {
    let layout = Layout::read(harness, segment_path(slot));
    layout.unwrap_or_else(|| panic!("slot {slot} holds no segment"))
}

/// Each bit of a byte, flipped.
fn flip_byte(bench: &mut Bench, byte: usize) -> Result<u64, String> {
    for bit in 0..8 {
        bench.bytes[byte] ^= 1 << bit;
        let checked = match bench.layout.group_at(byte) {
            Some(index) => {
                let changed = byte..byte + 1;
                let scanned = bench.layout.check_group(index, &bench.bytes, &changed);
                scanned.and_then(|()| bench.layout.check_reader(index, &bench.bytes, &changed))
            }
            // One of the two headers: the other one is as good.
            None => match SegmentFacts::parse(&bench.bytes) {
                Ok(facts) if facts == bench.layout.facts => Ok(()),
                other => Err(format!("the segment's header: {other:?}")),
            },
        };
        bench.bytes[byte] ^= 1 << bit;
        checked.map_err(|found| format!("bit {bit} of byte {byte}: {found}"))?;
    }
    Ok(8)
}

/// Every bit of the valid extent. A case is a byte; their order is scattered, so that any part is a fair sample.
pub(crate) fn flips(options: &Options) -> Swept {
    let bench = || {
        let mut layout = layout_of(&must(segment_store()).harness, 0);
        layout.planted = options.planted();
        Bench { bytes: layout.bytes.clone(), layout }
    };
    let first = bench();
    let (extent, groups) = (first.layout.extent() as u64, first.layout.groups.len());
    let mut swept = sweep(options, extent, "flipped bits", bench, |bench, n| {
        flip_byte(bench, scatter(n, extent) as usize)
    });
    swept.notes.push(format!("{extent} bytes in {groups} groups"));
    swept
}

/// A permutation of `0..total`.
fn scatter(number: u64, total: u64) -> u64 {
    // A prime above every total that occurs, and near no power of two.
    (u128::from(number) * 2_654_435_761 % u128::from(total)) as u64
}

/// What a thread of a full row works with.
struct Full {
    store: Store,
    image: DiskImage,
}

impl Full {
    fn new(store: Result<Store, String>) -> Self {
        let store = must(store);
        let image = store.image();
        Self { store, image }
    }

    /// Starts a shard on the disk with damage in it: it serves what was sent, or says what is wrong.
    fn judge(&self, damage: impl FnOnce(&Harness) -> Checked) -> Result<Outcome, String> {
        let mut harness = self.store.harness.on_image(&self.image);
        let started = quietly(|| {
            damage(&harness)?;
            harness.try_start()
        });
        match started {
            Ok(Ok(Ok(()))) => Ok(Outcome::Served { damaged: harness.damaged.len() }),
            Ok(Ok(Err(OpenError::Damaged { path, .. }))) => Ok(Outcome::Refused(path)),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(wrong)) => Err(format!("{}: {}", wrong.check, wrong.details)),
            Err(panic) => Err(panic),
        }
    }
}

enum Outcome {
    Served { damaged: usize },
    Refused(PathBuf),
}

fn io(error: ringmq_engine::ring::Errno) -> crate::sim::model::Wrong {
    wrong("surgery", error.to_string())
}

/// Bits, by a start of a whole shard. A case is a bit.
pub(crate) fn flips_full(options: &Options) -> Swept {
    let extent = layout_of(&must(segment_store()).harness, 0).extent() as u64 * 8;
    let context = || Full::new(segment_store());
    sweep(options, extent, "flipped bits", context, |full, number| {
        let bit = scatter(number, extent);
        let outcome = full.judge(|harness| harness.world.flip_bit(NODE, segment_path(0), bit).map_err(io));
        match outcome {
            Ok(Outcome::Served { damaged: 0 | 1 }) => Ok(1),
            Ok(Outcome::Refused(path)) if path == segment_path(0) => Ok(1),
            Ok(Outcome::Refused(path)) => Err(format!("bit {bit}: it names {}", path.display())),
            Ok(Outcome::Served { damaged }) => Err(format!("bit {bit}: {damaged} frames are given up")),
            Err(found) => Err(format!("bit {bit}: {found}")),
        }
    })
}

/// Lengths of the last MiB of a sealed segment and of the active one. A case is a length of one of them.
pub(crate) fn cuts(options: &Options) -> Swept {
    let context = || {
        let full = Full::new(segment_store());
        let layouts = [0, 1].map(|slot| layout_of(&full.store.harness, slot));
        (full, layouts)
    };
    sweep(options, 2 * TAIL, "lengths", context, |(full, layouts), number| {
        let slot = number % 2;
        let len = SEGMENT_SIZE - 1 - scatter(number / 2, TAIL);
        let say = |found: String| format!("slot {slot} cut to {len} bytes: {found}");
        // The scan, given only so many bytes of the group.
        let layout = &layouts[slot as usize];
        if let Some(index) = layout.group_at(len as usize) {
            let group = &layout.groups[index];
            let found = examine(
                &layout.facts,
                &group.point,
                &layout.bytes[group.range.start..len as usize],
                Planted::default(),
            );
            if found.finding == Finding::Whole || found.corruption.is_none() {
                return Err(say(format!("{found:?}")));
            }
        }
        let cut = full.judge(|harness| harness.world.truncate(NODE, segment_path(slot), len).map_err(io));
        match cut.map_err(say)? {
            Outcome::Refused(path) if path == segment_path(slot) => Ok(1),
            Outcome::Refused(path) => Err(say(format!("it names {}", path.display()))),
            Outcome::Served { .. } => Err(say("it is served".to_owned())),
        }
    })
}

/// What a sector is replaced by.
const KINDS: u64 = 5;

/// A store of 64 MiB whose slots have held something else before.
struct TwoLives {
    full: Full,
    /// The slots in an earlier life.
    before: Vec<Vec<u8>>,
    layouts: Vec<Option<Layout>>,
    /// Bytes of each slot now, changed and put right again.
    bytes: Vec<Vec<u8>>,
}

fn two_lives() -> TwoLives {
    let mut plan = Plan::calm();
    plan.segment_size = STORE_SEGMENT_SIZE;
    plan.checkpoint_interval = STORE_SEGMENT_SIZE;
    plan.disk_limit = Some(STORE_SLOTS * STORE_SEGMENT_SIZE);
    plan.retain_size = Some(STORE_KEPT * STORE_SEGMENT_SIZE);
    let mut store = must(Store::new(plan));
    must(store.fill((STORE_KEPT + 1) * STORE_SEGMENT_SIZE, 60_000));
    let read = |store: &Store, slot| {
        store.harness.world.peek(NODE, segment_path(slot), 0, 1 << 30).unwrap_or_default()
    };
    let slots = |store: &Store| {
        let all = store.harness.world.files(NODE);
        all.iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "seg")).count() as u64
    };
    let before: Vec<_> = (0..slots(&store)).map(|slot| read(&store, slot)).collect();
    must(store.fill(STORE_KEPT * STORE_SEGMENT_SIZE, 60_000));
    store.harness.crash();
    let slots = slots(&store);
    let bytes: Vec<_> = (0..slots).map(|slot| read(&store, slot)).collect();
    let layouts = (0..slots).map(|slot| Layout::read(&store.harness, segment_path(slot))).collect();
    TwoLives { full: Full::new(Ok(store)), before, layouts, bytes }
}

impl TwoLives {
    /// What stands in the sector instead.
    fn replacement(&self, slot: usize, at: usize, kind: u64) -> Vec<u8> {
        let mut draw = Draw::new(at as u64 ^ kind << 56);
        match kind {
            0 => vec![0; SECTOR_SIZE],
            1 => vec![0xff; SECTOR_SIZE],
            2 => (0..SECTOR_SIZE / 8).flat_map(|_| draw.next().to_le_bytes()).collect(),
            3 => {
                let earlier = self.before.get(slot).and_then(|bytes| bytes.get(at..at + SECTOR_SIZE));
                earlier.map_or_else(|| vec![0; SECTOR_SIZE], <[u8]>::to_vec)
            }
            _ => self.foreign(slot, at, &mut draw).unwrap_or_else(|| vec![0xa5; SECTOR_SIZE]),
        }
    }

    /// A sector of a frame of another partition, its header in front where there is one in the sector replaced.
    fn foreign(&self, slot: usize, at: usize, draw: &mut Draw) -> Option<Vec<u8>> {
        let layout = self.layouts[slot].as_ref()?;
        let own = layout.group_at(at)?;
        let own = layout.groups[own].frames.iter().find(|place| place.range.end > at)?;
        let others: Vec<&Place> = layout
            .groups
            .iter()
            .flat_map(|group| &group.frames)
            .filter(|place| place.partition != own.partition && place.range.len() > 2 * SECTOR_SIZE)
            .collect();
        let other = others.get(draw.below(others.len().max(1) as u64) as usize)?;
        let inside = at.saturating_sub(own.range.start) % (other.range.len() - SECTOR_SIZE);
        let from = other.range.start + inside;
        Some(layout.bytes[from..from + SECTOR_SIZE].to_vec())
    }

    fn place(&self, sector: u64) -> (usize, usize) {
        let per_slot = STORE_SEGMENT_SIZE / SECTOR_SIZE as u64;
        ((sector / per_slot) as usize, (sector % per_slot) as usize * SECTOR_SIZE)
    }

    fn sectors(&self) -> u64 {
        self.bytes.len() as u64 * STORE_SEGMENT_SIZE / SECTOR_SIZE as u64
    }

    /// All replacements of a sector, seen by the scan of its group and its neighbours and by readers.
    fn check(&mut self, sector: u64) -> Result<u64, String> {
        let (slot, at) = self.place(sector);
        let mut count = 0;
        for kind in 0..KINDS {
            let with = self.replacement(slot, at, kind);
            // A slot that never held a segment says nothing that could be wrong.
            let Some(layout) = &self.layouts[slot] else { continue };
            count += 1;
            let changed = at..at + SECTOR_SIZE;
            let bytes = &mut self.bytes[slot];
            let was = bytes[changed.clone()].to_vec();
            bytes[changed.clone()].copy_from_slice(&with);
            let checked = check_sector(layout, bytes, &changed);
            bytes[changed].copy_from_slice(&was);
            checked.map_err(|found| format!("{} at {at}, kind {kind}: {found}", layout.path.display()))?;
        }
        Ok(count)
    }
}

fn check_sector(layout: &Layout, bytes: &[u8], changed: &Range<usize>) -> Result<(), String> {
    if changed.start < FIRST_GROUP as usize {
        return match SegmentFacts::parse(bytes) {
            Ok(facts) if facts == layout.facts => Ok(()),
            other => Err(format!("the segment's header: {other:?}")),
        };
    }
    let Some(index) = layout.group_at(changed.start) else {
        // Behind the end: nothing may be found there that continues the log.
        let end = layout.extent();
        let Some(last) = layout.groups.last().filter(|_| changed.start < end + BLOCK_SIZE) else {
            return Ok(());
        };
        let Ok(header) = GroupHeader::parse(
            &layout.bytes[last.range.start..],
            layout.facts.incarnation,
            layout.facts.seq,
            last.point.lsn,
        ) else {
            return Err("the last group is gone".to_owned());
        };
        let point = ScanPoint {
            lsn: layout.facts.base.plus(end as u64),
            chain: header.next_chain(),
            epoch: Epoch(header.epoch.get()),
        };
        let found = examine(&layout.facts, &point, &bytes[end..], Planted::default()).finding;
        return if found == Finding::NoGroup {
            Ok(())
        } else {
            Err(format!("a group behind the end: {found:?}"))
        };
    };
    for near in index.saturating_sub(1)..(index + 2).min(layout.groups.len()) {
        layout.check_group(near, bytes, changed)?;
    }
    layout.check_reader(index, bytes, changed)
}

/// Sectors of the store. A case is a sector, with all that it is replaced by.
pub(crate) fn sectors(options: &Options) -> Swept {
    let total = two_lives().sectors();
    let mut swept = sweep(options, total, "replaced sectors", two_lives, |store, number| {
        let sector = scatter(number, total);
        store.check(sector)
    });
    let mib = (total * SECTOR_SIZE as u64) >> 20;
    swept.notes.push(format!("{mib} MiB of slots; those that never held a segment are not counted"));
    swept
}

/// Sectors of the store, by a start of a whole shard. A case is a sector with one replacement.
pub(crate) fn sectors_full(options: &Options) -> Swept {
    let total = two_lives().sectors() * KINDS;
    sweep(options, total, "replaced sectors", two_lives, |store, number| {
        let (sector, kind) = (scatter(number / KINDS, total / KINDS), number % KINDS);
        let (slot, at) = store.place(sector);
        let with = store.replacement(slot, at, kind);
        let path = segment_path(slot as u64);
        let outcome =
            store.full.judge(|harness| harness.world.poke(NODE, &path, at as u64, &with).map_err(io));
        outcome.map(|_| 1).map_err(|found| format!("{} at {at}, kind {kind}: {found}", path.display()))
    })
}

const _: () = assert!(FRAME_HEADER_SIZE < SECTOR_SIZE);
