//! Body of the fuzz target `shard_open`: a whole shard is opened on files of which some bytes were changed.

use crate::input::Input;
use crate::world::{NODE, Node, Store, directory, store, world};
use ringmq_engine::ring::sim::{SimConfig, World};
use ringmq_format::checksum::{crc32c, crc32c_seeded};
use ringmq_format::group::{BodyCrc, GROUP_MAGIC, GroupHeader};
use ringmq_format::limits::{BLOCK_SIZE, FRAME_HEADER_SIZE, GROUP_HEADER_SIZE};
use ringmq_format::segment::{FIRST_GROUP, SegmentFacts};
use ringmq_format::{Corruption, sidecar};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::path::PathBuf;
use zerocopy::FromBytes;

/// A store and its files.
struct Files {
    store: Store,
    files: Vec<(PathBuf, Vec<u8>)>,
}

thread_local! {
    static STORES: [OnceCell<Files>; 2] = const { [OnceCell::new(), OnceCell::new()] };
}

fn files(full: bool) -> Files {
    let store = store(full);
    let world = world(SimConfig::default(), Some(&store.image));
    let files = world.files(NODE).into_iter().filter(|file| file.1 > 0);
    let files = files.map(|(path, len)| {
        let bytes = world.peek(NODE, &path, 0, len as usize).unwrap_or_default();
        (path, bytes)
    });
    let files = files.collect();
    Files { store, files }
}

/// Changes of one file: `full u8, file u8, sealed u8`, then `at u24, piece` until the end. `sealed` puts the checksums of
/// the file right again, so that what is behind them is reached: then nothing is known of what is served, but a start
/// still ends with a shard or a refusal. Without it, what is served is what was acknowledged.
pub fn shard_open(data: &[u8]) {
    let mut input = Input::new(data);
    let full = input.byte() % 2 == 1;
    STORES.with(|stores| {
        let files = stores[usize::from(full)].get_or_init(|| files(full));
        open(files, &mut input);
    });
}

fn open(files: &Files, input: &mut Input<'_>) {
    let (path, bytes) = &files.files[usize::from(input.byte()) % files.files.len()];
    let sealed = input.byte() % 2 == 1;
    let mut changed = bytes.clone();
    while !input.is_empty() {
        let at = (usize::from(input.short()) | usize::from(input.byte()) << 16) % changed.len();
        let piece = input.piece();
        let room = &mut changed[at..];
        let len = piece.len().min(room.len());
        room[..len].copy_from_slice(&piece[..len]);
    }
    if sealed {
        seal(path, bytes, &mut changed, files);
    }
    let world = world(SimConfig::default(), Some(&files.store.image));
    for (number, (block, before)) in changed.chunks(BLOCK_SIZE).zip(bytes.chunks(BLOCK_SIZE)).enumerate() {
        if block != before {
            let poked = world.poke(NODE, path, (number * BLOCK_SIZE) as u64, block);
            assert!(poked.is_ok(), "{poked:?}");
        }
    }
    judge(&world, files, sealed);
}

fn judge(world: &World, files: &Files, sealed: bool) {
    let mut node = match Node::open(world) {
        Ok(node) => node,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    if !node.until("being ready", |own| own.shard.is_ready()) {
        return;
    }
    for (id, records) in &files.store.records {
        let known: BTreeMap<u64, &Vec<u8>> = records.iter().map(|(offset, bytes)| (*offset, bytes)).collect();
        for (offset, bytes) in node.read(*id) {
            // Of a body that was bound later the header may say where it was; its records are the same.
            let is_same = |known: &&Vec<u8>| known[FRAME_HEADER_SIZE..] == bytes[FRAME_HEADER_SIZE..];
            assert!(
                sealed || known.get(&offset).is_some_and(is_same),
                "partition {id} serves at {offset} what was never acknowledged there"
            );
        }
    }
    node.shard.begin_stop();
    node.until("the stop", |own| own.shard.is_stopped());
}

/// Makes the checksums of a file hold, whatever is in it. `before` are its bytes as they were.
fn seal(path: &std::path::Path, before: &[u8], bytes: &mut [u8], files: &Files) {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name == "superblock" {
        bytes.chunks_exact_mut(BLOCK_SIZE).for_each(|block| seal_block(block, None));
    } else if name.starts_with("checkpoint") {
        let sequence = u64::from_le_bytes([16, 17, 18, 19, 20, 21, 22, 23].map(|at| before[at]));
        crate::files::repair_checkpoint(bytes, crate::Repair::Checksums, sequence);
    } else if let Some(stem) = name.strip_suffix(".idx") {
        let segment = directory().join("log").join(format!("{stem}.seg"));
        let segment = files.files.iter().find(|file| file.0 == segment);
        let Some(Ok(facts)) = segment.map(|file| SegmentFacts::parse(&file.1)) else { return };
        seal_sidecar(bytes, facts.incarnation);
    } else if name.ends_with(".seg") && bytes.len() >= FIRST_GROUP as usize {
        let (header, groups) = bytes.split_at_mut(FIRST_GROUP as usize);
        header.chunks_exact_mut(BLOCK_SIZE).for_each(|block| seal_block(block, None));
        if let Ok(facts) = SegmentFacts::parse(header) {
            seal_groups(groups, &facts);
        }
    }
}

fn seal_block(block: &mut [u8], seed: Option<u64>) {
    let covered = &block[..BLOCK_SIZE - 4];
    let crc = seed.map_or_else(|| crc32c(covered), |seed| crc32c_seeded(seed, covered));
    crate::put(block, BLOCK_SIZE - 4, crc);
}

fn seal_sidecar(bytes: &mut [u8], incarnation: u64) {
    for (index, block) in bytes.chunks_exact_mut(BLOCK_SIZE).enumerate() {
        if index == 0 {
            seal_block(block, Some(incarnation));
        } else {
            let crc = crc32c_seeded(incarnation, &block[8..]);
            crate::put(block, offset_of!(sidecar::SidecarBlockHeader, crc), crc);
        }
    }
}

fn seal_groups(mut bytes: &mut [u8], facts: &SegmentFacts) {
    let mut chain = facts.previous_chain;
    loop {
        let Ok((header, _)) = GroupHeader::read_from_prefix(bytes) else { return };
        if header.magic.get() != GROUP_MAGIC {
            return;
        }
        let (used, total) = (header.used(), header.total());
        if total < BLOCK_SIZE || total > bytes.len() {
            return;
        }
        let mut crc = BodyCrc::new(facts.incarnation);
        let mut count = 0;
        if let Some(body) = bytes.get_mut(GROUP_HEADER_SIZE..used) {
            crate::repair_frames(body);
            for frame in ringmq_format::frame::frames(body).map_while(Result::<_, Corruption>::ok) {
                crc.add(frame.header);
                count += 1;
            }
        }
        crate::put(bytes, offset_of!(GroupHeader, frames), count);
        crate::put(bytes, offset_of!(GroupHeader, body_crc), crc.finish());
        let at = offset_of!(GroupHeader, chain);
        bytes[at..at + 8].copy_from_slice(&chain.to_le_bytes());
        let crc = crc32c_seeded(facts.incarnation, &bytes[8..GROUP_HEADER_SIZE]);
        crate::put(bytes, offset_of!(GroupHeader, header_crc), crc);
        let Ok((header, _)) = GroupHeader::read_from_prefix(bytes) else { return };
        chain = header.next_chain();
        bytes = bytes.split_at_mut(total).1;
    }
}

/// Where the corpus starts: each file of both stores, touched where it has something to say.
pub(crate) fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for full in [false, true] {
        let files = files(full);
        for (number, (path, bytes)) in files.files.iter().enumerate() {
            let name: Vec<_> = path.iter().skip(3).filter_map(|part| part.to_str()).collect();
            let what = if full { "full" } else { "small" };
            let at = bytes.iter().position(|byte| *byte != 0).unwrap_or(0) + 16;
            for sealed in [0, 1] {
                let seal = if sealed == 1 { "_sealed" } else { "" };
                let head = [u8::from(full), number as u8, sealed];
                let change = [at as u8, (at >> 8) as u8, 0, 1, 0x7f];
                let name = format!("{what}_{}{seal}", name.join("_"));
                seeds.push(("shard_open", name, [&head[..], &change].concat()));
            }
        }
    }
    seeds
}
