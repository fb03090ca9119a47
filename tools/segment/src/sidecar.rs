//! Index sidecars against their segments, without holding either: both are sums over their entries, in any order.

use crate::crc::crc64;
use crate::directory::Slot;
use crate::fault::Fault;
use crate::group::FrameView;
use crate::source::{Source, Window};
use ringmq_format::Damage;
use ringmq_format::limits::BLOCK_SIZE;
use ringmq_format::sidecar::{IndexEntry, parse_block, parse_header};
use std::path::PathBuf;
use zerocopy::IntoBytes;

/// A multiset of index entries, as its size and a sum of their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    entries: u64,
    sum: u64,
}

impl Sum {
    /// A frame that the index must have.
    pub fn add_frame(&mut self, frame: &FrameView<'_>) {
        let header = &frame.header;
        if header.partition.get() == 0 || !is_indexed(header.kind) {
            return;
        }
        self.add(&IndexEntry {
            partition: header.partition,
            len: header.len,
            first_offset: header.base_offset,
            timestamp: header.timestamp,
            position: (frame.position as u32).into(),
            count: header.count,
        });
    }

    fn add(&mut self, entry: &IndexEntry) {
        self.entries += 1;
        self.sum = self.sum.wrapping_add(crc64(entry.as_bytes()));
    }
}

/// Kinds of frames whose records have offsets.
pub fn is_indexed(kind: u8) -> bool {
    use ringmq_format::frame::FrameKind;
    [FrameKind::Data, FrameKind::Bind].into_iter().any(|known| known as u8 == kind)
}

/// What is wrong with the sidecar of a sealed segment whose frames have this sum. One that is not there, or an older
/// one, is not wrong: it is still to be made.
pub fn check_sidecar(source: &Source, slot: &Slot, frames: &Sum) -> Vec<(PathBuf, Fault)> {
    let path = slot.path.with_extension("idx");
    let Some(facts) = slot.facts else { return Vec::new() };
    let Ok(file) = source.open(&path) else { return Vec::new() };
    let mut window = Window::new(file.clone(), file.len());
    let header = match window.load(0, BLOCK_SIZE) {
        Ok(bytes) => parse_header(bytes, facts.seq, facts.incarnation),
        Err(_) => return Vec::new(),
    };
    let header = match header {
        Ok(header) => header,
        // Left over from the slot's earlier life, whose seed is not known here.
        Err(corruption) if matches!(corruption.damage, Damage::Stale | Damage::Magic | Damage::Truncated) => {
            return Vec::new();
        }
        Err(corruption) => {
            let stale =
                window.bytes(16, 16) != [facts.seq.0.to_le_bytes(), facts.incarnation.to_le_bytes()].concat();
            let fault = Fault::of(0, "SidecarHeader", &corruption);
            return if stale { Vec::new() } else { vec![(path, fault)] };
        }
    };
    let mut sum = Sum::default();
    for index in 0..header.blocks {
        let at = (1 + u64::from(index)) * BLOCK_SIZE as u64;
        let Ok(bytes) = window.load(at, BLOCK_SIZE) else { return Vec::new() };
        match parse_block(bytes, facts.seq, facts.incarnation, index) {
            Ok(entries) => entries.iter().for_each(|entry| sum.add(entry)),
            Err(corruption) => return vec![(path, Fault::of(at, "SidecarBlockHeader", &corruption))],
        }
    }
    if sum == *frames {
        return Vec::new();
    }
    let differs = (Damage::Field, frames.entries, sum.entries);
    vec![(path, Fault::field(0, "SidecarHeader", "entries", differs))]
}
