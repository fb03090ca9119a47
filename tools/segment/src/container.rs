//! The portable file of `export` and `backup`: frames as they are in the log, with topics and tables, in checksummed
//! chunks. `tools/README.md` describes every byte.
//!
//! ```text
//! | magic 8 | version u32 | zero u32 | chunk | chunk | ... | chunk of kind End |
//! chunk: | magic u32 | kind u8 | zero u8 | shard u16 | len u32 | items u32 | crc u32 | zero u32 | payload |
//! ```
//! A chunk's crc is CRC-32C of its first 16 bytes, the crc of the chunk before, and its payload: a chunk that is cut
//! out or exchanged breaks the chain. A file without its End is not whole.

use crate::build::Builder;
use crate::crc::{crc32c, crc32c_append};
use crate::group::frame_header;
use crate::late::LateState;
use crate::rescue::Sink;
use crate::state::Partition;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::checkpoint::{ChunkKind, PartitionItem};
use ringmq_format::limits::FRAME_SIZE_MAX;
use ringmq_format::{Offset, PartitionId};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"RINGMQEX";
const VERSION: u32 = 1;
const CHUNK_MAGIC: u32 = u32::from_le_bytes(*b"XCHK");
const CHUNK_HEADER: usize = 24;
const FRAMES_TARGET: usize = 1 << 20;
/// A partition's item is bounded by its producers, a chunk of frames by target and largest frame.
const CHUNK_MAX: usize = FRAMES_TARGET + FRAME_SIZE_MAX;

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Head = 1,
    Topic = 2,
    Frames = 3,
    Partition = 4,
    End = 5,
    Late = 6,
}

/// What a file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Shards of the directory.
    pub shards: u16,
    /// 1: everything of a directory, with the tables of its partitions.
    pub whole: bool,
    /// Name of the directory.
    pub node_id: u128,
    /// When it was written, Unix milliseconds.
    pub time_ms: i64,
}

/// Counts at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Topics.
    pub topics: u64,
}

/// Writes a file.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    crc: u32,
    shard: u16,
    frames: Vec<u8>,
    count: u32,
    totals: Totals,
    /// Topics as they were written last.
    topics: BTreeMap<u32, TopicEntry>,
}

impl<W: Write> Writer<W> {
    /// Begins.
    pub fn new(mut out: W, head: &Head) -> io::Result<Self> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        out.write_all(&bytes)?;
        let mut own = Self {
            out,
            crc: crc32c(&bytes),
            shard: 0,
            frames: Vec::new(),
            count: 0,
            totals: Totals::default(),
            topics: BTreeMap::new(),
        };
        let mut payload = head.shards.to_le_bytes().to_vec();
        payload.push(u8::from(head.whole));
        payload.extend_from_slice(&[0; 5]);
        payload.extend_from_slice(&head.node_id.to_le_bytes());
        payload.extend_from_slice(&head.time_ms.to_le_bytes());
        own.chunk(Kind::Head, 0, 1, &payload)?;
        Ok(own)
    }

    fn chunk(&mut self, kind: Kind, shard: u16, items: u32, payload: &[u8]) -> io::Result<()> {
        let mut header = CHUNK_MAGIC.to_le_bytes().to_vec();
        header.extend_from_slice(&[kind as u8, 0]);
        header.extend_from_slice(&shard.to_le_bytes());
        header.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        header.extend_from_slice(&items.to_le_bytes());
        self.crc = chunk_crc(&header, self.crc, payload);
        header.extend_from_slice(&self.crc.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        self.out.write_all(&header)?;
        self.out.write_all(payload)
    }

    fn flush_frames(&mut self) -> io::Result<()> {
        if self.count > 0 {
            let frames = std::mem::take(&mut self.frames);
            self.chunk(Kind::Frames, self.shard, self.count, &frames)?;
            self.count = 0;
        }
        Ok(())
    }

    /// The table of a partition.
    pub fn partition(&mut self, shard: u16, id: u32, partition: &Partition) -> io::Result<()> {
        self.flush_frames()?;
        let item = PartitionItem {
            partition: PartitionId(id),
            start_offset: Offset(partition.start),
            next_offset: Offset(partition.next),
            last_time: partition.last_time,
            segments: Vec::new(),
            producers: partition.producers.clone(),
        };
        let mut payload = Vec::new();
        item.encode(&mut payload);
        self.chunk(Kind::Partition, shard, 1, &payload)
    }

    /// What waits on a shard.
    pub fn late(&mut self, shard: u16, late: &LateState) -> io::Result<()> {
        self.flush_frames()?;
        for (kind, items, payload) in late.items(&late.places()) {
            self.chunk(Kind::Late, shard, items, &[&[kind as u8], &payload[..]].concat())?;
        }
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self) -> io::Result<(W, Totals)> {
        self.flush_frames()?;
        let mut payload = Vec::new();
        for number in [self.totals.frames, self.totals.bytes, self.totals.topics] {
            payload.extend_from_slice(&number.to_le_bytes());
        }
        self.chunk(Kind::End, 0, 1, &payload)?;
        self.out.flush()?;
        Ok((self.out, self.totals))
    }
}

fn chunk_crc(header: &[u8], before: u32, payload: &[u8]) -> u32 {
    crc32c_append(crc32c_append(crc32c(header), &before.to_le_bytes()), payload)
}

impl<W: Write> Sink for Writer<W> {
    fn topic(&mut self, topic: &TopicEntry) -> io::Result<()> {
        if self.topics.get(&topic.topic.0) == Some(topic) {
            return Ok(()); // each shard that owns a part of it logs it
        }
        self.topics.insert(topic.topic.0, topic.clone());
        self.flush_frames()?;
        let mut payload = Vec::new();
        topic.encode(&mut payload);
        self.totals.topics += 1;
        self.chunk(Kind::Topic, 0, 1, &payload)
    }

    fn frame(&mut self, shard: u16, bytes: &[u8]) -> io::Result<()> {
        if self.shard != shard || self.frames.len() + bytes.len() > FRAMES_TARGET {
            self.flush_frames()?;
        }
        self.shard = shard;
        self.frames.extend_from_slice(bytes);
        self.count += 1;
        self.totals.frames += 1;
        self.totals.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// A piece of a file.
#[derive(Debug)]
pub enum Piece<'a> {
    /// A topic.
    Topic(TopicEntry),
    /// Frames of a shard, one behind the other, each checked.
    Frame(u16, &'a [u8]),
    /// The table of a partition.
    Partition(u16, PartitionItem),
    /// What waits on a shard: items of a checkpoint's chunk.
    Late(u16, ChunkKind, u32, &'a [u8]),
}

/// Reads a whole file, checking all of it; each piece is shown as it comes.
pub fn read(
    input: &mut dyn Read,
    begin: &mut dyn FnMut(&Head) -> io::Result<()>,
    each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
) -> io::Result<(Head, Totals)> {
    let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let mut start = [0; 16];
    input.read_exact(&mut start).map_err(|_| bad("it is too short to be an export or a backup"))?;
    if &start[..8] != MAGIC {
        return Err(bad("it is no export or backup: the magic number is missing"));
    }
    let version = u32::from_le_bytes([start[8], start[9], start[10], start[11]]);
    if version != VERSION {
        return Err(bad(&format!("its version is {version}, and this binary reads {VERSION}")));
    }
    if start[12..] != [0; 4] {
        return Err(bad("its reserved bytes are not zero"));
    }
    let mut crc = crc32c(&start);
    let (mut head, mut totals): (Option<Head>, Totals) = (None, Totals::default());
    let mut at = start.len() as u64;
    loop {
        let here = at;
        let broken = |text: &str| bad(&format!("it is damaged in the chunk at byte {here}: {text}"));
        let mut header = [0; CHUNK_HEADER];
        input.read_exact(&mut header).map_err(|_| broken("it ends before its end"))?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (len, items) = (word(8) as usize, word(12));
        let shard = u16::from_le_bytes([header[6], header[7]]);
        if word(0) != CHUNK_MAGIC || header[5] != 0 || word(20) != 0 || len > CHUNK_MAX {
            return Err(broken("its header cannot be"));
        }
        let mut payload = Vec::new();
        // What is there decides how much memory is taken, not what the header claims.
        input.take(len as u64).read_to_end(&mut payload)?;
        crc = chunk_crc(&header[..16], crc, &payload);
        if payload.len() != len || crc != word(16) {
            return Err(broken(if payload.len() == len {
                "its checksum differs"
            } else {
                "it is cut short"
            }));
        }
        at += (CHUNK_HEADER + len) as u64;
        let kinds = [Kind::Head, Kind::Topic, Kind::Frames, Kind::Partition, Kind::End, Kind::Late];
        let kind =
            kinds.into_iter().find(|kind| *kind as u8 == header[4]).ok_or_else(|| broken("unknown kind"))?;
        match (kind, &head) {
            (Kind::Head, None) => {
                let found = parse_head(&payload).ok_or_else(|| broken("the head cannot be"))?;
                begin(&found)?;
                head = Some(found);
            }
            (Kind::Topic, Some(_)) => {
                let topic =
                    TopicEntry::take(&mut &payload[..]).map_err(|error| broken(&error.to_string()))?;
                totals.topics += 1;
                each(Piece::Topic(topic))?;
            }
            (Kind::Frames, Some(head)) if shard < head.shards => {
                let mut rest = &payload[..];
                for _ in 0..items {
                    let (header, _) =
                        frame_header(rest, 0, false).map_err(|fault| broken(&fault.to_string()))?;
                    let (frame, behind) = rest.split_at(header.len());
                    if crc32c(&frame[64..]) != header.payload_crc.get() {
                        return Err(broken("a frame's checksum differs"));
                    }
                    totals.frames += 1;
                    totals.bytes += frame.len() as u64;
                    each(Piece::Frame(shard, frame))?;
                    rest = behind;
                }
                if !rest.is_empty() {
                    return Err(broken("there is more in it than it says"));
                }
            }
            (Kind::Partition, Some(head)) if shard < head.shards => {
                let item =
                    PartitionItem::take(&mut &payload[..]).map_err(|error| broken(&error.to_string()))?;
                each(Piece::Partition(shard, item))?;
            }
            (Kind::Late, Some(head)) if shard < head.shards => {
                let (kind, rest) = payload.split_first().ok_or_else(|| broken("it is empty"))?;
                let kind = ChunkKind::parse(*kind).ok_or_else(|| broken("unknown items"))?;
                each(Piece::Late(shard, kind, items, rest))?;
            }
            (Kind::End, Some(head)) => {
                let said: Vec<u64> = payload
                    .chunks_exact(8)
                    .map(|number| u64::from_le_bytes(number.try_into().unwrap_or_default()))
                    .collect();
                if said != [totals.frames, totals.bytes, totals.topics] {
                    return Err(broken("the counts at its end differ from what was read"));
                }
                return Ok((*head, totals));
            }
            _ => return Err(broken("a chunk out of place")),
        }
    }
}

fn parse_head(payload: &[u8]) -> Option<Head> {
    let shards = u16::from_le_bytes(payload.get(..2)?.try_into().ok()?);
    let known = (1..=ringmq_format::limits::SHARDS_MAX).contains(&shards) && payload.len() == 32;
    known.then_some(Head {
        shards,
        whole: payload[2] == 1,
        node_id: u128::from_le_bytes(payload.get(8..24)?.try_into().ok()?),
        time_ms: i64::from_le_bytes(payload.get(24..32)?.try_into().ok()?),
    })
}

impl Sink for Builder {
    fn topic(&mut self, topic: &TopicEntry) -> io::Result<()> {
        Self::topic(self, topic)
    }

    fn frame(&mut self, shard: u16, bytes: &[u8]) -> io::Result<()> {
        Self::frame(self, usize::from(shard), bytes).map(drop)
    }
}
