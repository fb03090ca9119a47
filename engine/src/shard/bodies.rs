//! Bodies that BINDs name: reading them wherever they are, and moving them out of a segment that is to be retired.
//!
//! Invariants  M1  A body leaves here only if length, payload checksum and identity are what its BIND says.
//!             M2  A segment is retired only when everything of it that somebody still needs is durable elsewhere.

use super::fetch::{FilePlace, Step};
use super::{Shard, Stopping};
use crate::format::frame::{Frame, FrameHeader, FrameKind};
use crate::format::late::Bind;
use crate::format::limits::FRAME_HEADER_SIZE;
use crate::format::{Lsn, SegmentSeq};
use crate::late::Walk;
use crate::partition::FrameRef;
use crate::planted::Bug;
use crate::ring::Ring;
use crate::shard::Delivered;
use zerocopy::IntoBytes;

/// Entries that the search for bodies looks at in one turn.
const STEPS_PER_TURN: usize = 2048;
/// Bytes that are moved in one turn, at most, and one body.
const BYTES_PER_TURN: u64 = 256 << 10;

/// What came of reading a place of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Here,
    /// Asked for.
    Cold,
    /// Not in the log, not given by the medium, or not what it should be.
    Damaged,
}

/// What moving waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    Cold,
    Room,
}

/// Moving bodies out of the oldest segment.
#[derive(Clone, Copy, Debug)]
struct Job {
    segment: SegmentSeq,
    walk: Walk,
    /// The one that waits for its bytes, or for room in the log.
    current: Option<Lsn>,
    /// All were found.
    walked: bool,
    /// A completion brings the next turn.
    blocked: bool,
    /// Behind the last one that was moved.
    copied: Lsn,
}

#[derive(Debug, Default)]
pub(super) struct Moving {
    job: Option<Job>,
    bytes: Vec<u8>,
}

/// Is what stands at `at` the body that a BIND or a table speaks of?
fn is_body(header: &FrameHeader, identity: Lsn, at: Lsn, len: u32, payload_crc: u32) -> bool {
    let (aux, own) = (header.aux.get(), header.base_offset().0);
    let same = match header.kind() {
        FrameKind::Data => at == identity,
        FrameKind::Half | FrameKind::Delay => own == identity.0 && (at == identity || aux == identity.0),
        FrameKind::Bound => aux == identity.0,
        _ => false,
    };
    same && header.len.get() == len && header.payload_crc.get() == payload_crc
}

impl Shard {
    /// Reads bytes of the log; `out` has them only if they are here. They are not checked if they were cold.
    pub(super) fn read_log(&mut self, ring: &Ring, lsn: Lsn, len: usize, out: &mut Vec<u8>) -> Reading {
        out.clear();
        if let Some(range) = self.log.find(lsn, len) {
            out.extend_from_slice(ring.memory.bytes(range));
            return Reading::Here;
        }
        let end = lsn.plus(len as u64);
        let found = self.log.segment_at(lsn);
        let Some(segment) = found.filter(|found| end <= found.end && end <= self.log.durable()) else {
            return Reading::Damaged;
        };
        let place = FilePlace {
            file: self.log.slots()[segment.slot].file,
            segment: segment.facts.seq,
            position: segment.facts.position(lsn),
            len,
        };
        match self.gather(ring, &place, out) {
            Ok(true) => Reading::Here,
            Ok(false) => Reading::Cold,
            Err(_) => Reading::Damaged,
        }
    }

    /// Reads a body wherever it is, and checks it (M1).
    pub(super) fn read_body(
        &mut self,
        ring: &Ring,
        identity: Lsn,
        len: u32,
        payload_crc: u32,
        out: &mut Vec<u8>,
    ) -> Reading {
        let at = self.late.locate(identity);
        let read = self.read_log(ring, at, len as usize, out);
        if read != Reading::Here {
            return read;
        }
        let good = Frame::parse(out).is_ok_and(|frame| {
            is_body(frame.header, identity, at, len, payload_crc) && frame.verify_payload().is_ok()
        });
        if good || self.options.planted.has(Bug::BodyUnchecked) { Reading::Here } else { Reading::Damaged }
    }

    /// Hands out the body that a BIND names. `frame` is the BIND's place; `None` if the body is larger than `room`.
    pub(super) fn fetch_bound(
        &mut self,
        ring: &Ring,
        bind: &Bind,
        frame: &FrameRef,
        room: Option<usize>,
        sink: &mut dyn FnMut(&Delivered, &[u8]),
    ) -> Option<Step> {
        if room.is_some_and(|room| bind.target_len as usize > room) {
            return None;
        }
        let delivered = Delivered {
            base_offset: frame.first_offset,
            visible_time: frame.timestamp,
            first_record: bind.first_record,
            count: bind.count,
        };
        let at = self.late.locate(bind.target);
        if let Some(range) = self.log.find(at, bind.target_len as usize) {
            // What was checked when it came in goes out as it is.
            let bytes = ring.memory.bytes(range);
            if let Ok(header) = FrameHeader::parse(bytes)
                && header.kind() != FrameKind::Data
                && is_body(header, bind.target, at, bind.target_len, bind.target_crc)
            {
                sink(&delivered, bytes);
                self.stats.tail_frames += 1;
                return Some(Step::Taken(frame.end_offset()));
            }
        }
        let mut bytes = std::mem::take(&mut self.moving.bytes);
        let read = self.read_body(ring, bind.target, bind.target_len, bind.target_crc, &mut bytes);
        let step = match read {
            Reading::Here => {
                name_body(&mut bytes, bind.target);
                sink(&delivered, &bytes);
                self.stats.cold_frames += 1;
                Step::Taken(frame.end_offset())
            }
            Reading::Cold => Step::Cold,
            Reading::Damaged => Step::Damaged(frame.end_offset()),
        };
        self.moving.bytes = bytes;
        Some(step)
    }

    // -- moving --------------------------------------------------------------------------------------------

    /// Is there nothing in the oldest segment that somebody still needs (M2)? Begins to move it, if there may be.
    pub(super) fn bodies_are_moved(&mut self) -> bool {
        let mut segments = self.log.segments().iter().map(|segment| segment.facts);
        let (Some(oldest), Some(next)) = (segments.next(), segments.next()) else { return false };
        if !self.late.has_bodies() || self.options.planted.has(Bug::BodiesNotMoved) {
            self.moving.job = None;
            self.late.end_moving();
            return true;
        }
        if self.moving.job.is_none_or(|job| job.segment != oldest.seq) {
            let walk = self.late.begin_moving(next.base);
            self.moving.job = Some(Job {
                segment: oldest.seq,
                walk,
                current: None,
                walked: false,
                blocked: false,
                copied: Lsn(0),
            });
            return false;
        }
        let done = self.moved_everything();
        if done {
            self.moving.job = None;
            self.late.end_moving();
        }
        done
    }

    fn moved_everything(&self) -> bool {
        let awaited = !self.options.planted.has(Bug::RelocationNotAwaited);
        self.moving.job.is_some_and(|job| job.walked && (self.log.durable() >= job.copied || !awaited))
    }

    /// There is more to look for than the last turn has done.
    pub(super) fn is_moving(&self) -> bool {
        self.stopping == Stopping::No && self.moving.job.is_some_and(|job| !job.walked && !job.blocked)
    }

    /// Goes on with moving.
    pub(super) fn turn_moving(&mut self, ring: &mut Ring) {
        if self.stopping != Stopping::No {
            return;
        }
        let Some(mut job) = self.moving.job else { return };
        // What came below the floor since the walk ended is found by going on with it.
        job.blocked = false;
        let mut moved = 0;
        while moved < BYTES_PER_TURN {
            let identity = match job.current.take() {
                Some(identity) => identity,
                None => match self.late.next_movable(&mut job.walk, STEPS_PER_TURN) {
                    (Some(movable), _) => {
                        job.walked = false;
                        movable.identity
                    }
                    (None, over) => {
                        job.walked = over;
                        break;
                    }
                },
            };
            match self.move_body(ring, identity) {
                Ok(Some(end)) => {
                    moved += end.1;
                    job.copied = job.copied.max(end.0);
                }
                Ok(None) => {}
                Err(blocked) => {
                    (job.current, job.blocked, job.walked) = (Some(identity), true, false);
                    self.timers.starves |= blocked == Blocked::Room && moved == 0 && self.log.has_flights();
                    break;
                }
            }
        }
        self.moving.job = Some(job);
        if self.moved_everything() {
            self.retention_at_us = 0;
        }
    }

    /// Appends a body again, if that is still needed. Answers where its copy ends and its bytes; an error: again later.
    fn move_body(&mut self, ring: &mut Ring, identity: Lsn) -> Result<Option<(Lsn, u64)>, Blocked> {
        let Some(movable) = self.late.movable(identity) else { return Ok(None) };
        let mut bytes = std::mem::take(&mut self.moving.bytes);
        let read = self.read_body(ring, identity, movable.len, movable.payload_crc, &mut bytes);
        let result = match read {
            Reading::Cold => Err(Blocked::Cold),
            // Nobody can have it any more: whoever asks is told so.
            Reading::Damaged => {
                self.stats.damaged += 1;
                Ok(None)
            }
            Reading::Here => {
                if !movable.waits {
                    name_body(&mut bytes, identity);
                }
                self.append_moved(ring, identity, &bytes)
            }
        };
        self.moving.bytes = bytes;
        result
    }

    fn append_moved(
        &mut self,
        ring: &mut Ring,
        identity: Lsn,
        bytes: &[u8],
    ) -> Result<Option<(Lsn, u64)>, Blocked> {
        let Ok(header) = FrameHeader::parse(bytes) else { return Ok(None) };
        let mut header = *header;
        header.aux = identity.0.into();
        header.seal();
        let lsn = self.log.append(ring, &header, bytes, None).map_err(|_| Blocked::Room)?;
        self.late.moved(identity, lsn);
        self.stats.bytes_relocated += bytes.len() as u64;
        Ok(Some((lsn.plus(bytes.len() as u64), bytes.len() as u64)))
    }
}

/// Makes the header of a body say that it is one that a BIND names: of DATA, HALF and DELAY alike when it was moved, of
/// DATA also when it is handed out. Partition and offset stay what they were.
fn name_body(bytes: &mut [u8], identity: Lsn) {
    let Ok(header) = FrameHeader::parse(bytes) else { return };
    let mut header = *header;
    if header.kind() == FrameKind::Bound {
        return;
    }
    header.kind = FrameKind::Bound as u8;
    header.aux = identity.0.into();
    header.seal();
    bytes[..FRAME_HEADER_SIZE].copy_from_slice(header.as_bytes());
}
