//! Every byte that RingMQ keeps on disk, and the frame that travels on the wire unchanged.
//!
//! Owns ids, limits, checksums and the codec of identity, superblock, segment, group, frame, record table,
//! index sidecar and checkpoint. `FORMAT.md` in the engine's folder describes the same bytes in prose; the
//! golden test of [`layout`] keeps the two honest.
//!
//! Ignorant of files, sockets, clocks and threads: bytes in, values or a [`Corruption`] out.
//!
//! Reading order: [`ids`], [`limits`], [`checksum`], [`frame`] and [`record`] (what is stored), [`late`],
//! [`group`] (what is written at once), [`segment`], [`superblock`], [`checkpoint`], [`sidecar`].

pub mod catalogue;
pub mod checkpoint;
pub mod checksum;
pub mod consumer_group;
pub mod corruption;
pub mod cursor;
pub mod frame;
pub mod group;
pub mod identity;
pub mod ids;
pub mod late;
pub mod layout;
pub mod limits;
pub mod name;
pub mod record;
pub mod segment;
pub mod sidecar;
pub mod superblock;
mod varint;

pub use corruption::{Corruption, Damage};
pub use ids::*;

/// Versions of the bytes at rest. A newer binary reads the previous version; an older one refuses and names
/// both. Each variant's text is the changelog of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum FormatVersion {
    /// First version: identity, superblock, segment, group, frame, record table, sidecar, checkpoint.
    V1 = 1,
}

impl FormatVersion {
    /// What this binary writes.
    pub const CURRENT: Self = Self::V1;

    /// The version that a number on disk names, if this binary can read it.
    pub fn parse(number: u16) -> Option<Self> {
        (number == Self::V1 as u16).then_some(Self::V1)
    }
}
