//! Bodies of the fuzz targets that decode files at rest as the engine does: `checkpoint_sidecar` and
//! `superblock_identity`.
//!
//! An input is a byte for [`Repair`], one that says which structure, then chunks of `len u16, bytes`, each put at the
//! start of a block and padded with zeros. What is understood says the same once encoded again.

use crate::Repair;
use crate::input::Input;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::checkpoint::{
    CHECKPOINT_MAGIC, CHUNK_HEADER_SIZE, CHUNK_MAGIC, CheckpointFacts, CheckpointHeader, Chunk, ChunkHeader,
    ChunkKind, PartitionItem, ProducerItem, SegmentRef,
};
use ringmq_format::checksum::{crc32c, crc32c_seeded};
use ringmq_format::consumer_group::ConsumerGroup;
use ringmq_format::corruption::Corruption;
use ringmq_format::cursor::{
    AckChange, CursorChange, CursorChunkKind, CursorItem, CursorKey, Retry, decode_acks, decode_cursors,
    encode_acks, encode_cursors,
};
use ringmq_format::frame::{Frame, FrameKind, encode};
use ringmq_format::identity::{IDENTITY_MAGIC, Identity, IdentityBlock};
use ringmq_format::late::{Bind, BindReason, Late, Mark, encode_timers, parse_timers};
use ringmq_format::limits::BLOCK_SIZE;
use ringmq_format::segment::SegmentFacts;
use ringmq_format::sidecar::{self, IndexEntry, SIDECAR_BLOCK_MAGIC, SIDECAR_MAGIC, SidecarBlockHeader};
use ringmq_format::superblock::{
    COPIES, Durability, SUPERBLOCK_FILE_SIZE, SUPERBLOCK_MAGIC, Superblock, SuperblockCopy,
};
use ringmq_format::{Epoch, GroupId, Lsn, Offset, PartitionId, SegmentSeq, ShardId, TopicId};
use std::fmt::Debug;
use std::mem::offset_of;
use zerocopy::{FromBytes, FromZeros};

const SHARD: ShardId = ShardId(1);
const NODE_ID: u128 = 5;
const SEQ: SegmentSeq = SegmentSeq(4);
const INCARNATION: u64 = 99;
/// Of the checkpoint.
const SEQUENCE: u64 = 7;
/// Blocks that an input can describe.
const BLOCKS_MAX: usize = 64;

/// A sidecar (`0`), a checkpoint (`1`), or the items of a chunk or frame by themselves.
pub fn checkpoint_sidecar(data: &[u8]) {
    let Some((repair, rest)) = Repair::split(data) else { return };
    let mut input = Input::new(rest);
    match input.byte() % 9 {
        0 => sidecar_file(&mut blocks(&mut input), repair),
        1 => checkpoint_file(&mut blocks(&mut input), repair),
        2 => takes(input.rest(), TopicEntry::take, TopicEntry::encode),
        3 => takes(input.rest(), ConsumerGroup::take, ConsumerGroup::encode),
        4 => takes(input.rest(), PartitionItem::take, PartitionItem::encode),
        5 => takes(input.rest(), AckChange::take, AckChange::encode),
        6 => cursors(input.rest()),
        7 => acks(input.rest()),
        _ => late(&mut input.rest().to_vec(), repair),
    }
}

/// A superblock (`0`), an identity (`1`), or a segment's header.
pub fn superblock_identity(data: &[u8]) {
    let Some((repair, rest)) = Repair::split(data) else { return };
    let mut input = Input::new(rest);
    let what = input.byte() % 3;
    let mut bytes = blocks(&mut input);
    match what {
        0 => superblock_file(&mut bytes, repair),
        1 => identity_file(&mut bytes, repair),
        _ => segment_header(&mut bytes, repair),
    }
}

fn blocks(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !input.is_empty() && bytes.len() < BLOCKS_MAX * BLOCK_SIZE {
        let len = usize::from(input.short());
        bytes.extend_from_slice(input.take(len));
        bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE), 0);
    }
    bytes
}

fn put_long(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

/// Sets a header's last four bytes to the checksum over the bytes before.
fn seal_block(block: &mut [u8], seed: u64) {
    let crc = crc32c_seeded(seed, &block[..BLOCK_SIZE - 4]);
    crate::put(block, BLOCK_SIZE - 4, crc);
}

fn sidecar_file(bytes: &mut [u8], repair: Repair) {
    if repair != Repair::None {
        for (index, block) in bytes.chunks_exact_mut(BLOCK_SIZE).enumerate() {
            if index == 0 {
                if repair == Repair::Lengths {
                    put_long(block, offset_of!(sidecar::SidecarHeader, magic), SIDECAR_MAGIC);
                    put_long(block, offset_of!(sidecar::SidecarHeader, segment_seq), SEQ.0);
                    put_long(block, offset_of!(sidecar::SidecarHeader, incarnation), INCARNATION);
                }
                seal_block(block, INCARNATION);
                continue;
            }
            if repair == Repair::Lengths {
                crate::put(block, offset_of!(SidecarBlockHeader, magic), SIDECAR_BLOCK_MAGIC);
                crate::put(block, offset_of!(SidecarBlockHeader, index), index as u32 - 1);
                put_long(block, offset_of!(SidecarBlockHeader, segment_seq), SEQ.0);
            }
            let crc = crc32c_seeded(INCARNATION, &block[8..]);
            crate::put(block, offset_of!(SidecarBlockHeader, crc), crc);
        }
    }
    let Ok(facts) = sidecar::parse_header(bytes, SEQ, INCARNATION) else { return };
    let mut entries: Vec<IndexEntry> = Vec::new();
    for index in 0..facts.blocks {
        let at = (1 + index as usize).saturating_mul(BLOCK_SIZE);
        let Some(block) = bytes.get(at..).filter(|block| !block.is_empty()) else { return };
        match sidecar::parse_block(block, SEQ, INCARNATION, index) {
            Ok(found) => {
                assert!(found.len() <= sidecar::BLOCK_ENTRIES);
                entries.extend_from_slice(found);
            }
            Err(corruption) => return named(&corruption),
        }
    }
    let is_whole = facts.entries == entries.len() as u64 && entries.is_sorted_by_key(IndexEntry::key);
    if is_whole && entries.len().div_ceil(sidecar::BLOCK_ENTRIES) == facts.blocks as usize {
        let again = sidecar::encode(SEQ, INCARNATION, facts.base, facts.end, &entries);
        let read = sidecar::parse_header(&again, SEQ, INCARNATION);
        assert_eq!(read, Ok(facts));
    }
}

fn named(corruption: &Corruption) {
    assert!(!corruption.to_string().is_empty());
}

fn checkpoint_file(bytes: &mut [u8], repair: Repair) {
    repair_checkpoint(bytes, repair, SEQUENCE);
    let Ok(facts) = CheckpointFacts::parse(bytes, SHARD, SEQUENCE) else { return };
    assert_eq!(facts.encode(), &bytes[..BLOCK_SIZE]);
    let mut rest = &bytes[BLOCK_SIZE..];
    for index in 0..facts.chunks {
        let before = rest;
        let chunk = match Chunk::take(&mut rest, SEQUENCE, index) {
            Ok(chunk) => chunk,
            Err(corruption) => return named(&corruption),
        };
        assert_eq!(chunk.encode(SEQUENCE, index), &before[..before.len() - rest.len()]);
        items(&chunk);
    }
}

/// Puts a checkpoint of this number right.
pub(crate) fn repair_checkpoint(bytes: &mut [u8], repair: Repair, sequence: u64) {
    if repair == Repair::None || bytes.len() < BLOCK_SIZE {
        return;
    }
    let (header, mut rest) = bytes.split_at_mut(BLOCK_SIZE);
    let mut chunks = 0;
    while rest.len() >= CHUNK_HEADER_SIZE {
        if repair == Repair::Lengths {
            crate::put(rest, offset_of!(ChunkHeader, magic), CHUNK_MAGIC);
            crate::put(rest, offset_of!(ChunkHeader, index), chunks);
        }
        put_long(rest, offset_of!(ChunkHeader, sequence), sequence);
        let len = get(rest, offset_of!(ChunkHeader, len)) as usize;
        let Some(payload) = rest.get(CHUNK_HEADER_SIZE..CHUNK_HEADER_SIZE + len) else { break };
        let crc = crc32c_seeded(sequence, payload);
        crate::put(rest, offset_of!(ChunkHeader, payload_crc), crc);
        let crc = crc32c_seeded(sequence, &rest[8..CHUNK_HEADER_SIZE]);
        crate::put(rest, offset_of!(ChunkHeader, header_crc), crc);
        chunks += 1;
        rest = rest.split_at_mut((CHUNK_HEADER_SIZE + len).next_multiple_of(BLOCK_SIZE).min(rest.len())).1;
    }
    if repair == Repair::Lengths {
        put_long(header, offset_of!(CheckpointHeader, magic), CHECKPOINT_MAGIC);
        crate::put(header, offset_of!(CheckpointHeader, chunks), chunks);
    }
    put_long(header, offset_of!(CheckpointHeader, sequence), sequence);
    seal_block(header, sequence);
}

/// Items of a chunk, as far as they are variable.
fn items(chunk: &Chunk<'_>) {
    match chunk.kind {
        ChunkKind::Topics => takes(chunk.payload, TopicEntry::take, TopicEntry::encode),
        ChunkKind::Partitions => takes(chunk.payload, PartitionItem::take, PartitionItem::encode),
        ChunkKind::Groups => takes(chunk.payload, ConsumerGroup::take, ConsumerGroup::encode),
        ChunkKind::Cursors => {
            let mut rest = chunk.payload;
            match CursorChunkKind::take(&mut rest) {
                Ok(CursorChunkKind::Positions) => {
                    let _ = CursorItem::ref_from_prefix(rest).map(|(item, _)| item.key());
                }
                Ok(CursorChunkKind::Acks) => {
                    takes(rest.get(8..).unwrap_or(&[]), AckChange::take, AckChange::encode)
                }
                Err(corruption) => named(&corruption),
            }
        }
        _ => {}
    }
}

/// Items one behind the other. Each is the same once encoded.
fn takes<T: PartialEq + Debug>(
    bytes: &[u8],
    take: impl Fn(&mut &[u8]) -> Result<T, Corruption>,
    encode: impl Fn(&T, &mut Vec<u8>),
) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let before = rest.len();
        let item = match take(&mut rest) {
            Ok(item) => item,
            Err(corruption) => return named(&corruption),
        };
        assert!(rest.len() < before, "an item of no bytes: {item:?}");
        let mut again = Vec::new();
        encode(&item, &mut again);
        assert_eq!(take(&mut &again[..]).as_ref(), Ok(&item));
    }
}

fn cursors(bytes: &[u8]) {
    let Ok((txn, entries)) = decode_cursors(bytes) else { return };
    let changes: Vec<CursorChange> = entries.iter().map(|entry| (*entry).into()).collect();
    let again = encode_cursors(txn, &changes);
    assert_eq!(decode_cursors(&again), Ok((txn, entries)));
}

fn acks(bytes: &[u8]) {
    let Ok(changes) = decode_acks(bytes) else { return };
    assert_eq!(decode_acks(&encode_acks(&changes)), Ok(changes));
}

/// What is bound late, in one frame.
fn late(bytes: &mut [u8], repair: Repair) {
    if repair != Repair::None {
        crate::repair_frames(bytes);
    }
    let Ok(frame) = Frame::parse(bytes) else { return };
    if let Ok(bind) = Bind::parse(&frame) {
        let header = frame.header;
        let again = bind.encode(header.partition(), header.base_offset(), header.timestamp.get());
        assert_eq!(Frame::parse(&again).and_then(|frame| Bind::parse(&frame)), Ok(bind));
    }
    if let Ok(mark) = Mark::parse(&frame) {
        let again = mark.encode(frame.header.kind());
        assert_eq!(again.len(), mark.frame_size());
        let Ok(frame) = Frame::parse(&again) else { panic!("a mark that was encoded does not parse") };
        assert_eq!(Mark::parse(&frame).as_ref(), Ok(&mark));
    }
    if let Ok(items) = parse_timers(&frame) {
        let again = encode_timers(items);
        let Ok(frame) = Frame::parse(&again) else { panic!("timers that were encoded do not parse") };
        assert_eq!(parse_timers(&frame), Ok(items));
    }
    if let Ok(late) = Late::parse(&frame) {
        assert!(late.size() <= frame.bytes.len());
    }
}

fn superblock_file(bytes: &mut Vec<u8>, repair: Repair) {
    bytes.truncate(SUPERBLOCK_FILE_SIZE);
    if repair != Repair::None {
        for (index, copy) in bytes.chunks_exact_mut(BLOCK_SIZE).enumerate() {
            if repair == Repair::Lengths {
                put_long(copy, offset_of!(SuperblockCopy, magic), SUPERBLOCK_MAGIC);
                copy[offset_of!(SuperblockCopy, copy)] = index as u8;
            }
            let crc = crc32c(&copy[..BLOCK_SIZE - 4]);
            crate::put(copy, BLOCK_SIZE - 4, crc);
        }
    }
    let superblock = match Superblock::parse(bytes, NODE_ID, SHARD) {
        Ok(superblock) => superblock,
        Err(corruption) => return named(&corruption),
    };
    assert_eq!(Superblock::parse(&superblock.encode(), NODE_ID, SHARD).as_ref(), Ok(&superblock));
    // No copy that is valid by itself is newer.
    let half = superblock.spare_half(bytes);
    assert!(half < 2);
    for index in 0..COPIES {
        let mut alone = vec![0; SUPERBLOCK_FILE_SIZE];
        let place = index * BLOCK_SIZE..(index + 1) * BLOCK_SIZE;
        let Some(copy) = bytes.get(place.clone()) else { continue };
        alone[place].copy_from_slice(copy);
        let Ok(found) = Superblock::parse(&alone, NODE_ID, SHARD) else { continue };
        assert!(found.sequence <= superblock.sequence);
    }
    // The half that is written first is not the only one with this state.
    let mut torn = bytes.clone();
    torn.resize(SUPERBLOCK_FILE_SIZE, 0);
    torn[half * SUPERBLOCK_FILE_SIZE / 2..][..SUPERBLOCK_FILE_SIZE / 2].fill(0xee);
    let left = Superblock::parse(&torn, NODE_ID, SHARD);
    assert_eq!(left.map(|left| left.sequence), Ok(superblock.sequence), "half {half} is not to spare");
}

fn identity_file(bytes: &mut [u8], repair: Repair) {
    if repair != Repair::None {
        for block in bytes.chunks_exact_mut(BLOCK_SIZE) {
            if repair == Repair::Lengths {
                put_long(block, offset_of!(IdentityBlock, magic), IDENTITY_MAGIC);
            }
            let crc = crc32c(&block[..BLOCK_SIZE - 4]);
            crate::put(block, BLOCK_SIZE - 4, crc);
        }
    }
    match Identity::parse(bytes) {
        Ok(identity) => assert_eq!(Identity::parse(&identity.encode()), Ok(identity)),
        Err(corruption) => named(&corruption),
    }
}

fn segment_header(bytes: &mut [u8], repair: Repair) {
    if repair != Repair::None {
        for block in bytes.chunks_exact_mut(BLOCK_SIZE) {
            let crc = crc32c(&block[..BLOCK_SIZE - 4]);
            crate::put(block, BLOCK_SIZE - 4, crc);
        }
    }
    match SegmentFacts::parse(bytes) {
        Ok(facts) => {
            assert_eq!(SegmentFacts::parse(&facts.encode()), Ok(facts));
            // Places in it can be reckoned.
            assert!(facts.end() >= facts.base);
        }
        Err(corruption) => named(&corruption),
    }
}

/// Chunks of an input: each block without the zeros at its end.
fn chunks(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for block in bytes.chunks(BLOCK_SIZE) {
        let len = block.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
        out.extend_from_slice(&(len as u16).to_le_bytes());
        out.extend_from_slice(&block[..len]);
    }
    out
}

/// As [`chunks`], without the checksum in a block's last bytes: it makes no short chunk, and is put right.
fn unsealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.chunks_exact_mut(BLOCK_SIZE).for_each(|block| block[BLOCK_SIZE - 4..].fill(0));
    chunks(&bytes)
}

/// Where the corpora start.
pub(crate) fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, head: [u8; 2], bytes: &[u8]| {
        seeds.push((target, name.to_owned(), [&head[..], bytes].concat()));
    };
    const FILES: &str = "checkpoint_sidecar";
    let entries: Vec<_> = (0..130u32)
        .map(|number| IndexEntry {
            partition: (number / 50).into(),
            len: 64.into(),
            first_offset: u64::from(number % 50).into(),
            timestamp: 7.into(),
            position: (number * 64).into(),
            count: 1.into(),
        })
        .collect();
    let few = sidecar::encode(SEQ, INCARNATION, Lsn(0), Lsn(1 << 16), &entries[..3]);
    let many = sidecar::encode(SEQ, INCARNATION, Lsn(0), Lsn(1 << 16), &entries);
    add(FILES, "sidecar", [1, 0], &unsealed(&few));
    add(FILES, "sidecar_blocks", [1, 0], &unsealed(&many));
    add(FILES, "sidecar_as_one", [2, 0], &unsealed(&few));
    add(FILES, "checkpoint", [1, 1], &unsealed(&checkpoint()));
    add(FILES, "checkpoint_as_one", [2, 1], &unsealed(&checkpoint()));
    for (what, (name, item)) in (2..).zip(sample_items()) {
        add(FILES, name, [0, what], &item);
    }
    for (name, frame) in sample_frames() {
        add(FILES, name, [0, 8], &frame);
        add(FILES, &format!("{name}_repaired"), [1, 8], &frame);
    }
    const ROOTS: &str = "superblock_identity";
    let superblock = sample_superblock();
    let newer = Superblock { sequence: 9, checkpoint: None, quarantine: Vec::new(), ..superblock.clone() };
    let (old, new) = (superblock.encode(), newer.encode());
    let half = SUPERBLOCK_FILE_SIZE / 2;
    add(ROOTS, "superblock", [1, 0], &unsealed(&old));
    add(ROOTS, "superblock_as_one", [2, 0], &unsealed(&old[..BLOCK_SIZE]));
    add(ROOTS, "superblock_first_half_newer", [1, 0], &unsealed(&[&new[..half], &old[half..]].concat()));
    add(ROOTS, "superblock_second_half_newer", [1, 0], &unsealed(&[&old[..half], &new[half..]].concat()));
    add(ROOTS, "superblock_two_copies", [1, 0], &unsealed(&new[..half]));
    add(ROOTS, "superblock_unsealed", [0, 0], &unsealed(&new));
    let identity = Identity { shards: 2, node_id: NODE_ID, created_ms: 1_700_000_000_000 }.encode();
    add(ROOTS, "identity", [1, 1], &unsealed(&identity));
    add(ROOTS, "identity_as_one", [2, 1], &unsealed(&identity[..BLOCK_SIZE]));
    let many_shards = Identity { shards: u16::MAX, node_id: NODE_ID, created_ms: 0 }.encode();
    add(ROOTS, "identity_of_too_many", [1, 1], &unsealed(&many_shards));
    let segment = crate::SEGMENT.encode();
    add(ROOTS, "segment", [1, 2], &unsealed(&segment));
    add(ROOTS, "segment_second_copy", [1, 2], &[&[1, 0, 0][..], &unsealed(&segment[BLOCK_SIZE..])].concat());
    let far = SegmentFacts { base: Lsn(u64::MAX - 4096), ..crate::SEGMENT };
    add(ROOTS, "segment_at_the_end_of_numbers", [1, 2], &unsealed(&far.encode()));
    seeds
}

fn sample_superblock() -> Superblock {
    Superblock {
        shard: SHARD,
        node_id: NODE_ID,
        sequence: 8,
        durability: Durability::Flush,
        epoch: Epoch(3),
        clean: true,
        durable_lsn: Lsn(1 << 20),
        log_start: Lsn(0),
        log_start_seq: SegmentSeq(1),
        checkpoint: Some((2, SEQUENCE)),
        active_seq: SEQ,
        active_base: Lsn(1 << 19),
        quarantine: vec![(Lsn(4096), Lsn(8192), 3)],
    }
}

/// One item for each of the kinds 2 to 7 of [`checkpoint_sidecar`].
fn sample_items() -> [(&'static str, Vec<u8>); 6] {
    let topic = TopicEntry {
        topic: TopicId(3),
        first_partition: PartitionId(9),
        partitions: 4,
        deleted: false,
        created_ms: 77,
        name: "orders".to_owned(),
        revision: 0,
        settings: ringmq_format::catalogue::TopicSettings::default(),
    };
    let group = ConsumerGroup {
        group: GroupId(65),
        name: "billing".to_owned(),
        deleted: false,
        mode: None,
        created_ms: 77,
        options: ringmq_format::consumer_group::GroupOptions::default(),
        subscriptions: vec![ringmq_format::consumer_group::GroupSubscription {
            topic: "orders".to_owned(),
            filter: "a = 5".to_owned(),
        }],
    };
    let partition = PartitionItem {
        partition: PartitionId(9),
        start_offset: Offset(1),
        next_offset: Offset(9),
        last_time: 3,
        segments: vec![SegmentRef { first_offset: 1.into(), segment: 2.into(), entry: 3.into() }],
        producers: vec![ProducerItem::new_zeroed()],
    };
    let ack = AckChange {
        replaces: true,
        ranges: vec![(Offset(7), Offset(9))],
        retries: vec![Retry { offset: Offset(11), attempt: 2, visible_ms: 1_000 }],
        ..AckChange::new(GroupId(65), PartitionId(9), Offset(5))
    };
    let key = CursorKey::shared(GroupId(65), PartitionId(9));
    let changes = [
        CursorChange { key, offset: Some(Offset(4)) },
        CursorChange { key: CursorKey { instance: 1, ..key }, offset: None },
    ];
    let encoded = |encode: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        encode(&mut out);
        out
    };
    [
        ("topic", encoded(&|out| topic.encode(out))),
        ("group", encoded(&|out| group.encode(out))),
        ("partition", encoded(&|out| partition.encode(out))),
        ("ack", encoded(&|out| ack.encode(out))),
        ("cursors", encode_cursors(1 << 100, &changes)),
        ("acks", encode_acks(&[ack.clone(), AckChange::new(GroupId(1), PartitionId(2), Offset(3))])),
    ]
}

/// Frames of what is bound late.
fn sample_frames() -> Vec<(&'static str, Vec<u8>)> {
    let timers = [ringmq_format::late::TimerItem::new_zeroed(); 2];
    let bind = Bind {
        target: Lsn(8256),
        target_len: 96,
        target_crc: 7,
        first_record: 0,
        count: 1,
        reason: BindReason::Commit,
        origin: Some((PartitionId(9), Offset(3))),
        detail: 1,
        owner: 65,
    };
    let mark =
        Mark { txn: 1 << 100, time_ms: 5, participants: 3, halves: 2, group: "billing", ..Mark::default() };
    let half = Late { txn: 1 << 100, due_ms: 0, check_after_ms: 5, group: "billing" };
    vec![
        ("timers", encode_timers(&timers)),
        ("bind", bind.encode(PartitionId(9), Offset(4), 1_000).to_vec()),
        ("mark", mark.encode(FrameKind::Decision)),
        ("half", half.wrap(&encode(FrameKind::Data, 0, &[]))),
    ]
}

/// A checkpoint with a chunk of each kind of variable items.
fn checkpoint() -> Vec<u8> {
    let [topic, group, partition, ack, ..] = sample_items().map(|(_, item)| item);
    let mut acks = Vec::new();
    CursorChunkKind::Acks.encode(&mut acks);
    acks.extend_from_slice(&4096u64.to_le_bytes());
    acks.extend_from_slice(&ack);
    let chunks = [
        (ChunkKind::Segments, 0, Vec::new()),
        (ChunkKind::Topics, 1, topic),
        (ChunkKind::Partitions, 1, partition),
        (ChunkKind::Groups, 1, group),
        (ChunkKind::Cursors, 1, acks),
    ];
    let facts = CheckpointFacts {
        shard: SHARD,
        sequence: SEQUENCE,
        chunks: chunks.len() as u32,
        scan_start: Lsn(8192),
        scan_chain: 1,
        scan_seq: SEQ,
        durable_lsn: Lsn(1 << 16),
        total: (1 + chunks.len() as u64) * BLOCK_SIZE as u64,
    };
    let mut bytes = facts.encode();
    for (index, (kind, items, payload)) in chunks.iter().enumerate() {
        let keys = (PartitionId(0), PartitionId(9));
        let chunk = Chunk {
            kind: *kind,
            stamp: Lsn(1 << 16),
            first_key: keys.0,
            last_key: keys.1,
            items: *items,
            payload,
        };
        bytes.extend_from_slice(&chunk.encode(SEQUENCE, index as u32));
    }
    bytes
}
