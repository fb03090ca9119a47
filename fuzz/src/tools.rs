//! Body of the fuzz target `segment_tools`: the tools' reading of a directory, a single segment, an export.

use crate::Repair;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::frame::FrameHeader;
use ringmq_format::group::{GROUP_MAGIC, GroupHeader};
use ringmq_format::identity::Identity;
use ringmq_format::limits::{BLOCK_SIZE, FRAME_HEADER_SIZE, GROUP_HEADER_SIZE};
use ringmq_format::segment::FIRST_GROUP;
use ringmq_format::superblock::{Durability, Superblock};
use ringmq_format::{Epoch, Lsn, SegmentSeq, ShardId};
use ringmq_segment::container::{Head, Piece, Writer, read};
use ringmq_segment::crc::{crc32c, crc32c_seeded};
use ringmq_segment::directory::Directory;
use ringmq_segment::log::{Step, walk};
use ringmq_segment::rescue::{Sink, Wanted, take};
use ringmq_segment::source::Source;
use ringmq_segment::verdict::judge;
use ringmq_segment::{late, records, spans};
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What has to be read.
const NODE_ID: u128 = 5;

/// The second byte of an input chooses what the rest is: groups behind a good segment header, a segment file, a
/// superblock, a checkpoint, an identity, a sidecar, or an export.
pub fn segment_tools(data: &[u8]) {
    let Some((repair, rest)) = Repair::split(data) else { return };
    let Some((what, rest)) = rest.split_first() else { return };
    match what % 7 {
        0 => directory(&groups(rest, repair), &[]),
        1 => directory(rest, &[]),
        2 => directory(&groups(&[], repair), &[("shard-00/superblock", rest)]),
        3 => directory(&groups(&[], repair), &[("shard-00/checkpoint.a", rest)]),
        4 => directory(&groups(&[], repair), &[("identity", rest)]),
        5 => directory(&groups(&[], repair), &[("shard-00/log/000.idx", rest)]),
        _ => export(rest),
    }
}

/// A segment file with these bytes behind its header.
fn groups(rest: &[u8], repair: Repair) -> Vec<u8> {
    let mut facts = crate::SEGMENT;
    (facts.base, facts.seq, facts.node_id) = (Lsn(0), SegmentSeq(1), NODE_ID);
    (facts.previous_seq, facts.previous_chain) = (SegmentSeq(0), 0);
    facts.capacity = FIRST_GROUP + (rest.len() + 1).next_multiple_of(BLOCK_SIZE) as u64;
    let mut bytes = facts.encode();
    bytes.extend_from_slice(rest);
    bytes.resize(facts.capacity as usize, 0);
    if repair == Repair::None {
        return bytes;
    }
    let mut chain = 0u64;
    for at in (FIRST_GROUP as usize..bytes.len()).step_by(BLOCK_SIZE) {
        if repair == Repair::Lengths {
            let put = |bytes: &mut [u8], field: usize, value: &[u8]| {
                bytes[at + field..at + field + value.len()].copy_from_slice(value);
            };
            put(&mut bytes, offset_of!(GroupHeader, magic), &GROUP_MAGIC.to_le_bytes());
            put(&mut bytes, offset_of!(GroupHeader, segment_seq), &1u64.to_le_bytes());
            put(&mut bytes, offset_of!(GroupHeader, lsn), &(at as u64).to_le_bytes());
            put(&mut bytes, offset_of!(GroupHeader, chain), &chain.to_le_bytes());
            put(&mut bytes, offset_of!(GroupHeader, total), &(BLOCK_SIZE as u32).to_le_bytes());
            let used = u32::from_le_bytes([bytes[at + 32], bytes[at + 33], 0, 0]);
            put(&mut bytes, offset_of!(GroupHeader, used), &used.clamp(64, BLOCK_SIZE as u32).to_le_bytes());
        }
        let block = &mut bytes[at..at + BLOCK_SIZE];
        let mut frame = GROUP_HEADER_SIZE;
        while frame + FRAME_HEADER_SIZE <= BLOCK_SIZE {
            let len =
                u32::from_le_bytes([block[frame], block[frame + 1], block[frame + 2], block[frame + 3]]);
            let len = len as usize;
            if len < FRAME_HEADER_SIZE || frame + len > BLOCK_SIZE || !len.is_multiple_of(8) {
                break;
            }
            let crc = crc32c(&block[frame + FRAME_HEADER_SIZE..frame + len]);
            crate::put(block, frame + offset_of!(FrameHeader, payload_crc), crc);
            let crc = crc32c(&block[frame..frame + FRAME_HEADER_SIZE - 4]);
            crate::put(block, frame + offset_of!(FrameHeader, header_crc), crc);
            frame += len;
        }
        let crc = crc32c_seeded(facts.incarnation, &block[8..GROUP_HEADER_SIZE]);
        crate::put(block, offset_of!(GroupHeader, header_crc), crc);
        chain = ringmq_segment::crc::crc64(&block[..GROUP_HEADER_SIZE]);
    }
    bytes
}

struct Taken(Writer<Vec<u8>>, u64);

impl Sink for Taken {
    fn topic(&mut self, topic: &TopicEntry) -> std::io::Result<()> {
        self.0.topic(topic)
    }

    fn frame(&mut self, shard: u16, bytes: &[u8]) -> std::io::Result<()> {
        self.1 += 1;
        self.0.frame(shard, bytes)
    }
}

fn directory(segment: &[u8], others: &[(&str, &[u8])]) {
    let superblock = Superblock {
        shard: ShardId(0),
        node_id: NODE_ID,
        sequence: 1,
        durability: Durability::Flush,
        epoch: Epoch(1),
        clean: false,
        durable_lsn: Lsn(FIRST_GROUP),
        log_start: Lsn(0),
        log_start_seq: SegmentSeq(1),
        checkpoint: Some((1, 1)),
        active_seq: SegmentSeq(1),
        active_base: Lsn(0),
        quarantine: Vec::new(),
    };
    let identity = Identity { shards: 1, node_id: NODE_ID, created_ms: 0 };
    let data = Path::new("data");
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::from([
        (data.join("identity"), identity.encode()),
        (data.join("shard-00/superblock"), superblock.encode()),
        (data.join("shard-00/log/000.seg"), segment.to_vec()),
    ]);
    files.extend(others.iter().map(|(name, bytes)| (data.join(name), bytes.to_vec())));
    let source = Source::Memory(Arc::new(files));
    let Ok(directory) = Directory::open(&source, data) else { return };
    for shard in &directory.shards {
        let Ok(verdict) = judge(&source, &directory, shard, &mut |_| false) else { continue };
        assert!(verdict.bytes <= segment.len() as u64);
        let mut end = 0;
        let walked = walk(&source, shard, None, None, &mut |step| {
            if let Step::Group(_, view) = step {
                assert!(view.position >= end, "places only grow");
                end = view.position + view.bytes.len() as u64;
                let frames: Vec<_> = view
                    .frames
                    .iter()
                    .map(|frame| ((frame.position - view.position) as usize, frame.bytes))
                    .collect();
                let used = view.header.map_or(view.bytes.len(), |header| header.used());
                let covered: usize =
                    spans::group(view.bytes, &frames, used).iter().map(|span| span.len).sum();
                assert!(covered >= view.bytes.len(), "{covered} of {} bytes have a field", view.bytes.len());
                for frame in &view.frames {
                    let _ = (late::details(frame), late::touches(frame), late::txn_of(frame));
                    if let Some(whole) = frame.frame() {
                        let mut raw = 0;
                        let _ = records::for_each(&whole, true, &mut |record| raw += record.body.len());
                        assert!(raw <= 64 << 20);
                    }
                }
                view.all_faults().iter().for_each(|fault| assert!(!fault.to_string().is_empty()));
            }
            ControlFlow::Continue(())
        });
        let _ = walked;
    }
    // What is taken out of it can be written, and read back.
    let head =
        Head { shards: directory.identity.shards.clamp(1, 64), whole: true, node_id: NODE_ID, time_ms: 0 };
    let Ok(writer) = Writer::new(Vec::new(), &head) else { return };
    let mut taken = Taken(writer, 0);
    let Ok((_, report)) = take(&source, &directory, &Wanted::default(), &mut taken, &mut |_| false) else {
        return;
    };
    assert_eq!(report.frames, taken.1);
    let Ok((bytes, totals)) = taken.0.finish() else { panic!("memory takes everything") };
    let mut frames = 0;
    let back = read(&mut &bytes[..], &mut |_| Ok(()), &mut |piece| {
        frames += u64::from(matches!(piece, Piece::Frame(..)));
        Ok(())
    });
    match back {
        Ok((_, back)) => assert_eq!((back, frames), (totals, report.frames)),
        Err(error) => panic!("what was written does not read back: {error}"),
    }
}

fn export(bytes: &[u8]) {
    let _ = read(&mut &bytes[..], &mut |_| Ok(()), &mut |_| Ok(()));
}

/// Where the corpus starts: small inputs of each shape. `groups` are whole groups of some segment, without padding.
pub fn seeds(groups: &[&[u8]]) -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, repair: u8, what: u8, bytes: &[u8]| {
        seeds.push((name.to_owned(), [&[repair, what], bytes].concat()));
    };
    let mut one = groups[0].to_vec();
    add("group", 0, 0, &one);
    add("group_repaired", 1, 0, &one);
    add("group_as_one_block", 2, 0, &one);
    one.resize(BLOCK_SIZE, 0);
    let two = [&one[..], groups[1]].concat();
    add("groups_as_blocks", 2, 0, &two);
    add("segment", 0, 1, &self::groups(groups[0], Repair::Lengths)[..BLOCK_SIZE / 8]);
    add("superblock", 0, 2, b"RINGSUPR\x01\0\0\0\0\x01\0\0");
    add("checkpoint", 0, 3, b"RINGCKPT\x01\0\0\0\x01\0\0\0");
    add("identity", 0, 4, b"RINGMQID\x01\0\x02\0");
    add("sidecar", 0, 5, b"RINGIDX1\x01\0\0\0\0\0\0\0");
    let head = Head { shards: 2, whole: true, node_id: NODE_ID, time_ms: 1 };
    if let Ok(mut writer) = Writer::new(Vec::new(), &head) {
        let frames = ringmq_format::frame::frames(&groups[0][GROUP_HEADER_SIZE..]).flatten();
        frames.for_each(|frame| drop(writer.frame(1, frame.bytes)));
        if let Ok((bytes, _)) = writer.finish() {
            add("export", 0, 6, &bytes);
            add("export_cut", 0, 6, &bytes[..bytes.len() - 30]);
        }
    }
    seeds
}
