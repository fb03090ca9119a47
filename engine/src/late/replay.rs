//! What frames found in the log mean, in their order. Nothing here depends on how much of it the tables have already
//! (B1).

use super::{Late, Position};
use crate::format::corruption::{Corruption, Damage};
use crate::format::frame::{Frame, FrameKind};
use crate::format::late::{Bind, Late as LateFields, Mark, parse_timers};
use crate::format::{Lsn, PartitionId};

/// What replay has to do besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replayed {
    /// Nothing.
    Done,
    /// The frame is one of a producer's sequence for this partition.
    Sequence(PartitionId),
    /// Its records have offsets.
    Offsets,
    /// These positions take effect.
    Positions(Vec<Position>),
    /// It is none of those that wait or end waiting.
    Foreign,
}

impl Late {
    /// Replays a frame at `lsn`, in the segment that begins at `segment_base`. The payload of a frame that was stored
    /// again is not looked at.
    pub(crate) fn replay(
        &mut self,
        lsn: Lsn,
        segment_base: Lsn,
        frame: &Frame<'_>,
    ) -> Result<Replayed, Corruption> {
        let header = frame.header;
        match header.kind() {
            FrameKind::Bind => {
                let bind = Bind::parse(frame)?;
                self.bound(&bind, lsn, segment_base, header.timestamp.get(), Lsn(0));
                return Ok(Replayed::Offsets);
            }
            FrameKind::Half | FrameKind::Delay | FrameKind::Bound if header.aux.get() != 0 => {
                self.moved(Lsn(header.aux.get()), lsn);
            }
            FrameKind::Half | FrameKind::Delay => {
                let late = LateFields::parse(frame)?;
                let (own, partition) = (header.base_offset().0, header.partition());
                if own != lsn.0 {
                    return Err(Corruption::new("log", "identity", Damage::Field, lsn.0, own));
                }
                self.stored(header, &late, lsn);
                return Ok(Replayed::Sequence(partition));
            }
            FrameKind::Commit | FrameKind::Apply => {
                return Ok(Replayed::Positions(self.committed(&Mark::parse(frame)?, Lsn(0))));
            }
            FrameKind::Abort => self.aborted(&Mark::parse(frame)?, Lsn(0)),
            FrameKind::Decision => self.decided(&Mark::parse(frame)?, Lsn(0)),
            FrameKind::Done => self.done(Mark::parse(frame)?.txn),
            FrameKind::Check => self.checked(&Mark::parse(frame)?),
            FrameKind::Timer => {
                for item in parse_timers(frame)? {
                    let identity = Lsn(item.identity.get());
                    self.timer(identity, item.due_ms.get(), item.time_ms.get(), Lsn(0));
                }
            }
            _ => return Ok(Replayed::Foreign),
        }
        Ok(Replayed::Done)
    }
}
