//! Directories in memory, byte for byte what a server could have written.

#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ringmq_format::catalogue::TopicEntry;
use ringmq_format::frame::{Codec, Frame, FrameHeader, FrameKind, encode};
use ringmq_format::group::{BodyCrc, GroupFields, GroupHeader, GroupKind, encode_empty, group_size};
use ringmq_format::identity::Identity;
use ringmq_format::limits::{BLOCK_SIZE, GROUP_HEADER_SIZE};
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};
use ringmq_format::segment::{FIRST_GROUP, SegmentFacts};
use ringmq_format::superblock::{Durability, Superblock};
use ringmq_format::{Epoch, Lsn, Offset, PartitionId, ProducerId, SegmentSeq, ShardId, SlotId, TopicId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use zerocopy::IntoBytes;

pub(crate) const NODE_ID: u128 = 0x5eed;
pub(crate) const SEGMENT: &str = "data/shard-00/log/000.seg";
pub(crate) const TIME: i64 = 1_795_328_984_000;

/// A frame of the segment: where it is in the file, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) position: u64,
    pub(crate) len: u64,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) count: u32,
}

/// A segment that is full to its last byte.
pub(crate) struct Full {
    pub(crate) bytes: Vec<u8>,
    pub(crate) frames: Vec<Made>,
    /// Groups: position, used, total.
    pub(crate) groups: Vec<(u64, u64, u64)>,
    pub(crate) end: Lsn,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

pub(crate) fn facts(capacity: u64) -> SegmentFacts {
    SegmentFacts {
        shard: ShardId(0),
        slot: SlotId(0),
        seq: SegmentSeq(1),
        incarnation: 0x1122_3344_5566_7788,
        base: Lsn(0),
        previous_seq: SegmentSeq(0),
        previous_chain: 0,
        capacity,
        created_ms: TIME,
        node_id: NODE_ID,
        epoch: Epoch(1),
    }
}

pub(crate) fn topic() -> TopicEntry {
    TopicEntry {
        topic: TopicId(1),
        first_partition: PartitionId(1),
        partitions: 3,
        deleted: false,
        created_ms: TIME,
        name: "orders".to_owned(),
        settings: Default::default(),
        revision: 0,
    }
}

pub(crate) fn data(partition: u32, offset: u64, bodies: &[Vec<u8>], time: i64) -> Vec<u8> {
    let mut builder = FrameBuilder::new(time - 5, 1 << 20);
    for (index, body) in bodies.iter().enumerate() {
        let key = format!("key-{}", (offset + index as u64) % 7);
        let record = Record {
            key: (index % 2 == 0).then_some(key.as_bytes()),
            tag: (index % 3 == 0).then_some(b"tag"),
            properties: if index == 1 { &[(b"name", b"value")] } else { &[] },
            time_ms: time - 5,
            body,
        };
        builder.push(&record).unwrap();
    }
    let producer =
        ProducerStamp { id: ProducerId(u64::from(partition) * 1000), epoch: 0, base_sequence: offset as u32 };
    let codec = if offset.is_multiple_of(3) { Codec::Zstd } else { Codec::None };
    let mut frame = builder.finish(producer, codec, &mut |raw| zstd::bulk::compress(raw, 1).ok());
    let mut header = *FrameHeader::parse(&frame).unwrap();
    header.stamp(PartitionId(partition), Offset(offset), time);
    frame[..64].copy_from_slice(header.as_bytes());
    frame
}

/// Groups of a few frames until only the seal fits.
pub(crate) fn full_segment(capacity: u64) -> Full {
    let facts = facts(capacity);
    let mut bytes = facts.encode();
    let (mut frames, mut groups) = (Vec::new(), Vec::new());
    let mut random = Random(7);
    let mut next = [0u64; 4];
    let mut chain = 0;
    let mut write = |bytes: &mut Vec<u8>, body: Vec<Vec<u8>>, total: usize, kind: GroupKind| {
        let lsn = facts.base.plus(bytes.len() as u64);
        let mut crc = BodyCrc::new(facts.incarnation);
        body.iter().for_each(|frame| crc.add(Frame::parse(frame).unwrap().header));
        let used = GROUP_HEADER_SIZE + body.iter().map(Vec::len).sum::<usize>();
        let fields = GroupFields {
            segment_seq: facts.seq,
            lsn,
            durable_lsn: lsn,
            used,
            total,
            frames: body.len() as u32,
            body_crc: crc.finish(),
            chain,
            epoch: Epoch(1),
            kind,
        };
        let start = bytes.len();
        if body.is_empty() {
            let mut block = vec![0; total];
            let header = encode_empty(&fields, facts.incarnation, &mut block);
            bytes.extend_from_slice(&block);
            chain = header.next_chain();
        } else {
            let header = GroupHeader::new(&fields, facts.incarnation);
            bytes.extend_from_slice(header.as_bytes());
            body.iter().for_each(|frame| bytes.extend_from_slice(frame));
            bytes.resize(start + total, 0);
            chain = header.next_chain();
        }
        (start as u64, used as u64, total as u64)
    };
    let mut payload = Vec::new();
    topic().encode(&mut payload);
    let first = encode(FrameKind::Topic, 1, &payload);
    let len = first.len() as u64;
    frames.push(Made { position: FIRST_GROUP + 64, len, partition: 0, offset: 0, count: 1 });
    groups.push(write(&mut bytes, vec![first], BLOCK_SIZE, GroupKind::Data));
    let mut time = TIME;
    loop {
        let mut body = Vec::new();
        let mut at = bytes.len() as u64 + 64;
        for _ in 0..=random.below(4) {
            let partition = 1 + random.below(3) as u32;
            let bodies: Vec<Vec<u8>> = (0..=random.below(5))
                .map(|n| (0..random.below(900)).map(|b| (b / 3 * (n + 1)) as u8).collect())
                .collect();
            time += 1;
            let offset = &mut next[partition as usize];
            let frame = data(partition, *offset, &bodies, time);
            let (len, count) = (frame.len() as u64, bodies.len() as u32);
            frames.push(Made { position: at, len, partition, offset: *offset, count });
            *offset += bodies.len() as u64;
            at += len;
            body.push(frame);
        }
        let total = group_size(body.iter().map(Vec::len).sum());
        let left = capacity as usize - bytes.len();
        if total + BLOCK_SIZE > left {
            let gone = body.len();
            frames.truncate(frames.len() - gone);
            while capacity as usize - bytes.len() > BLOCK_SIZE {
                groups.push(write(&mut bytes, Vec::new(), BLOCK_SIZE, GroupKind::Heartbeat));
            }
            groups.push(write(&mut bytes, Vec::new(), BLOCK_SIZE, GroupKind::Seal));
            break;
        }
        groups.push(write(&mut bytes, body, total, GroupKind::Data));
    }
    assert_eq!(bytes.len() as u64, capacity);
    Full { bytes, frames, groups, end: Lsn(capacity) }
}

pub(crate) fn superblock(end: Lsn) -> Superblock {
    Superblock {
        shard: ShardId(0),
        node_id: NODE_ID,
        sequence: 1,
        durability: Durability::Flush,
        epoch: Epoch(1),
        clean: false,
        durable_lsn: end,
        log_start: Lsn(0),
        log_start_seq: SegmentSeq(1),
        checkpoint: None,
        active_seq: SegmentSeq(1),
        active_base: Lsn(0),
        quarantine: Vec::new(),
    }
}

/// A directory of one shard around a segment.
pub(crate) fn files(segment: &Full) -> BTreeMap<PathBuf, Vec<u8>> {
    let identity = Identity { shards: 1, node_id: NODE_ID, created_ms: TIME };
    BTreeMap::from([
        (PathBuf::from("data/identity"), identity.encode()),
        (PathBuf::from("data/shard-00/superblock"), superblock(segment.end).encode()),
        (PathBuf::from(SEGMENT), segment.bytes.clone()),
    ])
}
