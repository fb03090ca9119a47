//! A fresh data directory out of frames: what salvage, import and restore write. It is as if a server had taken these
//! frames and had been stopped cleanly: sealed segments with sidecars, one active segment, two equal checkpoints.
//!
//! Invariants  B1  The file `identity` comes last: a directory without it was not finished, and no server takes it.
//!             B2  Frames keep their bytes, and with them partition, offset, time and producer. Offsets that no frame
//!                 has stay so: the checkpoint says where each partition ends.
//!             B3  Nothing that was there is touched: the directory must not exist, or be empty.

use crate::group::next_chain;
use crate::late::LateState;
use crate::state::Partition;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::checkpoint::{CheckpointFacts, Chunk, ChunkKind, PartitionItem, SegmentItem, SegmentRef};
use ringmq_format::frame::{FrameHeader, FrameKind, encode};
use ringmq_format::group::{BodyCrc, GroupFields, GroupHeader, GroupKind, encode_empty, group_size};
use ringmq_format::identity::Identity;
use ringmq_format::limits::{
    BLOCK_SIZE, CHECKPOINT_CHUNK_TARGET, GROUP_HEADER_SIZE, GROUP_SIZE_TARGET_MIN, SEGMENT_SIZES,
};
use ringmq_format::segment::{FIRST_GROUP, SegmentFacts};
use ringmq_format::sidecar::{self, IndexEntry};
use ringmq_format::superblock::{Durability, Superblock};
use ringmq_format::{Epoch, Lsn, Offset, PartitionId, SegmentSeq, ShardId, SlotId};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const ZEROS: usize = 1 << 20;

/// What a new directory is like.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it will be.
    pub path: PathBuf,
    /// Shards.
    pub shards: u16,
    /// How its groups will become durable.
    pub durability: Durability,
    /// When it was made, Unix milliseconds.
    pub now_ms: i64,
    /// First LSN of each shard's log: behind every LSN that a frame may speak of.
    pub bases: Vec<Lsn>,
    /// Random numbers instead of the kernel's, for tests that compare bytes.
    pub seed: Option<u64>,
}

/// What a shard's checkpoint says.
struct Tables<'a> {
    topics: Vec<&'a TopicEntry>,
    partitions: &'a BTreeMap<u32, Partition>,
    late: &'a LateState,
}

/// Writes a data directory.
#[derive(Debug)]
pub struct Builder {
    target: Target,
    node_id: u128,
    random: Random,
    writers: Vec<Writer>,
    topics: BTreeMap<u32, TopicEntry>,
}

#[derive(Debug)]
struct Random(Option<u64>);

impl Random {
    fn next(&mut self) -> io::Result<u64> {
        if let Some(state) = &mut self.0 {
            // SplitMix64.
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            return Ok(mixed ^ mixed >> 31);
        }
        let mut bytes = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The log of one shard that is being written.
#[derive(Debug)]
struct Writer {
    shard: ShardId,
    shards: u32,
    path: PathBuf,
    node_id: u128,
    now_ms: i64,
    base: Lsn,
    chain: u64,
    seq: u64,
    open: Option<Open>,
    sealed: Vec<SegmentItem>,
    refs: BTreeMap<u32, Vec<SegmentRef>>,
    /// Frames of the next group.
    frames: Vec<u8>,
    count: u32,
    /// Where what waits was put, by identity.
    waiting: BTreeMap<u64, Lsn>,
}

#[derive(Debug)]
struct Open {
    facts: SegmentFacts,
    file: File,
    position: u64,
    entries: Vec<IndexEntry>,
    last_time: i64,
    frame_bytes: u64,
}

impl Builder {
    /// Begins a directory (B3).
    pub fn create(target: Target) -> io::Result<Self> {
        assert!(target.bases.len() == usize::from(target.shards), "each shard's log has a first LSN");
        if std::fs::read_dir(&target.path).is_ok_and(|mut entries| entries.next().is_some()) {
            let text = format!("{} is there and is not empty", target.path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let mut random = Random(target.seed);
        let node_id = u128::from(random.next()?) << 64 | u128::from(random.next()?);
        let mut writers = Vec::new();
        for shard in 0..target.shards {
            let path = target.path.join(format!("shard-{shard:02}"));
            std::fs::create_dir_all(path.join("log"))?;
            writers.push(Writer {
                shard: ShardId(shard),
                shards: u32::from(target.shards),
                path,
                node_id,
                now_ms: target.now_ms,
                base: target.bases[usize::from(shard)],
                chain: 0,
                seq: 0,
                open: None,
                sealed: Vec::new(),
                refs: BTreeMap::new(),
                frames: Vec::new(),
                count: 0,
                waiting: BTreeMap::new(),
            });
        }
        Ok(Self { target, node_id, random, writers, topics: BTreeMap::new() })
    }

    /// Logs a topic where it belongs, unless that is known.
    pub fn topic(&mut self, entry: &TopicEntry) -> io::Result<()> {
        if self.topics.get(&entry.topic.0) == Some(entry) {
            return Ok(());
        }
        self.topics.insert(entry.topic.0, entry.clone());
        let mut payload = Vec::new();
        entry.encode(&mut payload);
        let frame = encode(FrameKind::Topic, 1, &payload);
        let shards = self.target.shards;
        let owners: std::collections::BTreeSet<u16> =
            entry.partition_ids().take(usize::from(shards)).map(|id| id.shard(shards).0).chain([0]).collect();
        owners.into_iter().try_for_each(|shard| self.frame(usize::from(shard), &frame).map(drop))
    }

    /// Topics so far.
    pub fn topics(&self) -> &BTreeMap<u32, TopicEntry> {
        &self.topics
    }

    /// Appends a frame to a shard's log; answers its place.
    pub fn frame(&mut self, shard: usize, bytes: &[u8]) -> io::Result<Lsn> {
        let writer = &mut self.writers[shard];
        if writer.frames.len() + bytes.len() > GROUP_SIZE_TARGET_MIN && writer.count > 0 {
            writer.close_group()?;
        }
        let at = writer.push(&mut self.random, bytes)?;
        if let Ok((header, _)) = FrameHeader::ref_from_prefix(bytes)
            && matches!(header.kind(), FrameKind::Half | FrameKind::Delay)
        {
            writer.waiting.insert(header.aux.get(), at);
        }
        Ok(at)
    }

    /// Makes everything durable and the directory valid. `partitions` says, for each shard, where partitions begin
    /// and end and which producers they remember; `late` what waits, of which the frames were given.
    pub fn finish(mut self, partitions: &[BTreeMap<u32, Partition>], late: &[LateState]) -> io::Result<()> {
        for ((writer, partitions), late) in self.writers.iter_mut().zip(partitions).zip(late) {
            let own: Vec<&TopicEntry> = self
                .topics
                .values()
                .filter(|topic| {
                    let mut ids = topic.partition_ids().take(usize::from(self.target.shards));
                    writer.shard.0 == 0 || ids.any(|id| id.shard(self.target.shards) == writer.shard)
                })
                .collect();
            let tables = Tables { topics: own, partitions, late };
            writer.finish(&mut self.random, &tables, self.target.durability)?;
        }
        let identity =
            Identity { shards: self.target.shards, node_id: self.node_id, created_ms: self.target.now_ms };
        sync_directory(&self.target.path)?;
        write_file(&self.target.path.join("identity"), &identity.encode())?; // B1
        sync_directory(&self.target.path)?;
        match self.target.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
            _ => sync_directory(Path::new(".")),
        }
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Writer {
    fn push(&mut self, random: &mut Random, bytes: &[u8]) -> io::Result<Lsn> {
        self.make_room(random, bytes.len())?;
        let at = self.frames.len();
        self.frames.extend_from_slice(bytes);
        self.count += 1;
        let Some(open) = &mut self.open else { return Ok(Lsn(0)) };
        let position = open.position + (GROUP_HEADER_SIZE + at) as u64;
        let Ok((header, _)) = FrameHeader::ref_from_prefix(bytes) else {
            return Err(io::Error::other("a frame without a header"));
        };
        if crate::sidecar::is_indexed(header.kind) && header.partition.get() != 0 {
            open.entries.push(IndexEntry {
                partition: header.partition,
                len: header.len,
                first_offset: header.base_offset,
                timestamp: header.timestamp,
                position: (position as u32).into(),
                count: header.count,
            });
        }
        open.last_time = open.last_time.max(header.timestamp.get());
        open.frame_bytes += bytes.len() as u64;
        Ok(open.facts.base.plus(position))
    }

    /// Opens a segment if there is none with room for the group with so many more bytes, and the seal.
    fn make_room(&mut self, random: &mut Random, more: usize) -> io::Result<()> {
        let need = group_size(self.frames.len() + more) as u64 + BLOCK_SIZE as u64;
        if self.open.as_ref().is_some_and(|open| open.position + need > open.facts.capacity) {
            self.close_group()?;
            let need = group_size(more) as u64 + BLOCK_SIZE as u64;
            if self.open.as_ref().is_some_and(|open| open.position + need > open.facts.capacity) {
                self.seal()?;
            }
        }
        if self.open.is_none() {
            self.activate(random)?;
        }
        Ok(())
    }

    fn activate(&mut self, random: &mut Random) -> io::Result<()> {
        let slot = SlotId(self.sealed.len() as u32);
        let step = (slot.0 as usize).saturating_sub(1) / 3;
        self.seq += 1;
        let facts = SegmentFacts {
            shard: self.shard,
            slot,
            seq: SegmentSeq(self.seq),
            incarnation: random.next()? | 1,
            base: self.base,
            previous_seq: SegmentSeq(self.seq - 1),
            previous_chain: self.chain,
            capacity: SEGMENT_SIZES[step.min(SEGMENT_SIZES.len() - 1)],
            created_ms: self.now_ms,
            node_id: self.node_id,
            epoch: Epoch(1),
        };
        let path = self.path.join("log").join(format!("{:03}.seg", slot.0));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.write_all_at(&facts.encode(), 0)?;
        self.base = facts.end();
        self.open = Some(Open {
            facts,
            file,
            position: FIRST_GROUP,
            entries: Vec::new(),
            last_time: 0,
            frame_bytes: 0,
        });
        Ok(())
    }

    fn fields(&self, open: &Open, kind: GroupKind) -> GroupFields {
        let lsn = open.facts.base.plus(open.position);
        GroupFields {
            segment_seq: open.facts.seq,
            lsn,
            durable_lsn: lsn,
            used: GROUP_HEADER_SIZE,
            total: BLOCK_SIZE,
            frames: 0,
            body_crc: 0,
            chain: self.chain,
            epoch: Epoch(1),
            kind,
        }
    }

    fn close_group(&mut self) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let Some(open) = &self.open else { return Ok(()) };
        let mut crc = BodyCrc::new(open.facts.incarnation);
        ringmq_format::frame::frames(&self.frames).flatten().for_each(|frame| crc.add(frame.header));
        let fields = GroupFields {
            used: GROUP_HEADER_SIZE + self.frames.len(),
            total: group_size(self.frames.len()),
            frames: self.count,
            body_crc: crc.finish(),
            ..self.fields(open, GroupKind::Data)
        };
        let header = GroupHeader::new(&fields, open.facts.incarnation);
        let mut bytes = Vec::with_capacity(fields.total);
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&self.frames);
        bytes.resize(fields.total, 0);
        self.frames.clear();
        self.count = 0;
        self.write_group(&header, &bytes)
    }

    fn write_group(&mut self, header: &GroupHeader, bytes: &[u8]) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.file.write_all_at(bytes, open.position)?;
        open.position += bytes.len() as u64;
        self.chain = next_chain(header);
        Ok(())
    }

    fn empty_group(&mut self, kind: GroupKind) -> io::Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let mut block = vec![0; BLOCK_SIZE];
        let header = encode_empty(&self.fields(open, kind), open.facts.incarnation, &mut block);
        self.write_group(&header, &block)
    }

    /// Seals the open segment and writes its sidecar.
    fn seal(&mut self) -> io::Result<()> {
        self.empty_group(GroupKind::Seal)?;
        let Some(open) = self.open.take() else { return Ok(()) };
        fill(&open)?;
        let facts = open.facts;
        let end = facts.base.plus(open.position);
        let entries = sidecar::sort(open.entries);
        let bytes = sidecar::encode(facts.seq, facts.incarnation, facts.base, end, &entries);
        write_file(&self.path.join("log").join(format!("{:03}.idx", facts.slot.0)), &bytes)?;
        let mut last = None;
        for (index, entry) in entries.iter().enumerate() {
            let partition = entry.partition.get();
            if last != Some(partition) {
                last = Some(partition);
                self.refs.entry(partition).or_default().push(SegmentRef {
                    first_offset: entry.first_offset,
                    segment: (facts.seq.0 as u32).into(),
                    entry: (index as u32).into(),
                });
            }
        }
        let mut item = SegmentItem::new_zeroed();
        item.slot = facts.slot.0.into();
        item.has_sidecar = 1;
        item.segment_seq = facts.seq.0.into();
        item.end_lsn = end.0.into();
        item.last_time = open.last_time.into();
        item.frame_bytes = open.frame_bytes.into();
        self.sealed.push(item);
        Ok(())
    }

    fn finish(&mut self, random: &mut Random, tables: &Tables<'_>, durability: Durability) -> io::Result<()> {
        self.close_group()?;
        if self.open.is_none()
            && (!tables.partitions.is_empty() || !self.sealed.is_empty() || self.base.0 > 0)
        {
            self.activate(random)?;
        }
        // The last group has a witness, as after five idle milliseconds.
        if self.open.as_ref().is_some_and(|open| open.position > FIRST_GROUP) {
            self.empty_group(GroupKind::Heartbeat)?;
        }
        let mut superblock = Superblock {
            shard: self.shard,
            node_id: self.node_id,
            sequence: 1,
            durability,
            epoch: Epoch(1),
            clean: true,
            durable_lsn: Lsn(0),
            log_start: Lsn(0),
            log_start_seq: SegmentSeq(1),
            checkpoint: None,
            active_seq: SegmentSeq(0),
            active_base: Lsn(0),
            quarantine: Vec::new(),
        };
        if let Some(open) = self.open.take() {
            fill(&open)?;
            superblock.durable_lsn = open.facts.base.plus(open.position);
            superblock.log_start = match self.sealed.is_empty() {
                true => open.facts.base,
                false => self.first_base(&open),
            };
            superblock.active_seq = open.facts.seq;
            superblock.active_base = open.facts.base;
            superblock.checkpoint = Some((2, 2));
            for (sequence, name) in [(1, "checkpoint.a"), (2, "checkpoint.b")] {
                let bytes = self.checkpoint(sequence, &open, superblock.durable_lsn, tables);
                write_file(&self.path.join(name), &bytes)?;
            }
        }
        sync_directory(&self.path.join("log"))?;
        write_file(&self.path.join("superblock"), &superblock.encode())?;
        sync_directory(&self.path)
    }

    fn first_base(&self, open: &Open) -> Lsn {
        let sizes = (0..self.sealed.len()).map(|slot| {
            let step = slot.saturating_sub(1) / 3;
            SEGMENT_SIZES[step.min(SEGMENT_SIZES.len() - 1)]
        });
        Lsn(open.facts.base.0 - sizes.sum::<u64>())
    }

    fn checkpoint(&self, sequence: u64, open: &Open, end: Lsn, tables: &Tables<'_>) -> Vec<u8> {
        let Tables { topics, partitions, late } = tables;
        let mut bytes = vec![0; BLOCK_SIZE];
        let mut chunks = 0;
        let mut push = |kind, keys: (u32, u32), items, payload: &[u8]| {
            let (first_key, last_key) = (PartitionId(keys.0), PartitionId(keys.1));
            let chunk = Chunk { kind, stamp: end, first_key, last_key, items, payload };
            bytes.extend_from_slice(&chunk.encode(sequence, chunks));
            chunks += 1;
        };
        push(ChunkKind::Segments, (0, 0), self.sealed.len() as u32, self.sealed.as_bytes());
        let (mut payload, mut items) = (Vec::new(), 0);
        for topic in topics {
            topic.encode(&mut payload);
            items += 1;
            if payload.len() >= CHECKPOINT_CHUNK_TARGET {
                push(ChunkKind::Topics, (0, 0), items, &payload);
                (items, payload) = (0, Vec::new());
            }
        }
        push(ChunkKind::Topics, (0, 0), items, &payload);
        let (mut payload, mut items, mut first) = (Vec::new(), 0, None);
        let mut known: BTreeMap<u32, Partition> = BTreeMap::new();
        for topic in topics.iter().filter(|topic| !topic.deleted) {
            for id in topic.partition_ids().filter(|id| id.0 % self.shards == u32::from(self.shard.0)) {
                known.insert(id.0, partitions.get(&id.0).cloned().unwrap_or_default());
            }
        }
        for (id, partition) in &known {
            let segments = self.refs.get(id).cloned().unwrap_or_default();
            let first_kept = segments.first().map(|first| first.first_offset.get());
            let in_active = open.entries.iter().find(|entry| entry.partition.get() == *id);
            let first_kept = first_kept.or(in_active.map(|entry| entry.first_offset.get()));
            let item = PartitionItem {
                partition: PartitionId(*id),
                start_offset: Offset(
                    first_kept.unwrap_or(partition.next).max(partition.start.min(partition.next)),
                ),
                next_offset: Offset(partition.next),
                last_time: partition.last_time,
                segments,
                producers: partition.producers.clone(),
            };
            first.get_or_insert(*id);
            item.encode(&mut payload);
            items += 1;
            if payload.len() >= CHECKPOINT_CHUNK_TARGET {
                push(ChunkKind::Partitions, (first.unwrap_or(*id), *id), items, &payload);
                (items, payload, first) = (0, Vec::new(), None);
            }
        }
        if let (Some(first), Some((last, _))) = (first, known.last_key_value()) {
            push(ChunkKind::Partitions, (first, *last), items, &payload);
        }
        for (kind, items, payload) in late.items(&self.waiting) {
            push(kind, (0, 0), items, &payload);
        }
        push(ChunkKind::ActiveIndex, (0, 0), open.entries.len() as u32, open.entries.as_bytes());
        let facts = CheckpointFacts {
            shard: self.shard,
            sequence,
            chunks,
            scan_start: end,
            scan_chain: self.chain,
            scan_seq: open.facts.seq,
            durable_lsn: end,
            total: bytes.len() as u64,
        };
        bytes[..BLOCK_SIZE].copy_from_slice(&facts.encode());
        bytes
    }
}

/// Zeros to the end of a slot file: a server writes only where something was written before.
fn fill(open: &Open) -> io::Result<()> {
    let zeros = vec![0; ZEROS];
    let mut position = open.position;
    while position < open.facts.capacity {
        let len = ZEROS.min((open.facts.capacity - position) as usize);
        open.file.write_all_at(&zeros[..len], position)?;
        position += len as u64;
    }
    open.file.sync_all()
}
