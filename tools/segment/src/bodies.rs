//! Finds the bodies that BINDs name: at their identity, or where retention has moved them.

use crate::crc::crc32c;
use crate::directory::{Checkpoint, Shard};
use crate::group::{FrameView, frame_header};
use crate::late::{LateState, identity};
use crate::source::Source;
use ringmq_format::Lsn;
use ringmq_format::frame::FrameKind;
use ringmq_format::late::Bind;
use ringmq_format::limits::FRAME_HEADER_SIZE;
use std::collections::{BTreeMap, VecDeque};

/// Bytes of bodies that are kept because a BIND mostly follows soon.
const RECENT_MAX: usize = 8 << 20;

/// Bodies of one shard.
#[derive(Debug, Default)]
pub struct Bodies {
    recent: BTreeMap<u64, Vec<u8>>,
    order: VecDeque<u64>,
    bytes: usize,
    known: LateState,
}

impl Bodies {
    /// With what a checkpoint knows of where bodies are.
    pub fn new(checkpoint: Option<&Checkpoint>) -> Self {
        let mut own = Self::default();
        if let Some(checkpoint) = checkpoint {
            own.known.restore(checkpoint);
        }
        own
    }

    /// A frame of the log, in its order.
    pub fn see(&mut self, view: &FrameView<'_>) {
        if !matches!(view.header.kind(), FrameKind::Half | FrameKind::Delay | FrameKind::Bound) {
            return;
        }
        let own = identity(view);
        if view.header.aux.get() != 0 {
            self.known.moved.insert(own, view.lsn);
        }
        if view.is_intact() && self.recent.insert(own, view.bytes.to_vec()).is_none() {
            self.order.push_back(own);
            self.bytes += view.bytes.len();
        }
        while self.bytes > RECENT_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.recent.remove(&oldest).map_or(0, |bytes| bytes.len());
        }
    }

    /// The frame that a BIND names, whole and checked; or why it cannot be had.
    pub fn find(&self, source: &Source, shard: &Shard, bind: &Bind) -> Result<Vec<u8>, String> {
        let fits = |bytes: &[u8]| {
            bytes.len() == bind.target_len as usize
                && crc32c(bytes.get(FRAME_HEADER_SIZE..).unwrap_or_default()) == bind.target_crc
        };
        if let Some(bytes) = self.recent.get(&bind.target.0).filter(|bytes| fits(bytes)) {
            return Ok(bytes.clone());
        }
        let places = [self.known.locate(bind.target.0), bind.target];
        for at in places {
            if let Some(bytes) = read_at(source, shard, at, bind.target_len).filter(|bytes| fits(bytes))
                && frame_header(&bytes, 0, false).is_ok()
            {
                return Ok(bytes);
            }
        }
        Err(format!("the body that it names, at position {} of the log, is not there or damaged", places[0]))
    }
}

fn read_at(source: &Source, shard: &Shard, at: Lsn, len: u32) -> Option<Vec<u8>> {
    let slot = shard.log().into_iter().find(|slot| {
        slot.facts.is_some_and(|facts| facts.base <= at && at.0 + u64::from(len) <= facts.end().0)
    })?;
    let facts = slot.facts?;
    source.open(&slot.path).ok()?.read(at.0 - facts.base.0, len as usize).ok()
}
