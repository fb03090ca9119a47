//! What `parse` functions answer when bytes are not what they should be.

use std::fmt;

/// The first condition that did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Damage {
    /// Fewer bytes than the structure needs.
    Truncated,
    /// The magic number of the structure is missing.
    Magic,
    /// Written by a format version that this binary does not read.
    Version,
    /// The header's own checksum differs.
    HeaderCrc,
    /// The checksum over the body differs.
    BodyCrc,
    /// The checksum over a frame's payload differs.
    PayloadCrc,
    /// A length, count or kind that cannot be.
    Field,
    /// Reserved bytes or padding that are not zero.
    Padding,
    /// Valid bytes that belong to another place: shard, segment, position or copy.
    Misplaced,
    /// Valid bytes of an earlier life of this file or shard.
    Stale,
    /// The chain from the structure before is broken.
    Chain,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "cut short",
            Self::Magic => "magic number missing",
            Self::Version => "format version not readable by this binary",
            Self::HeaderCrc => "header checksum differs",
            Self::BodyCrc => "body checksum differs",
            Self::PayloadCrc => "payload checksum differs",
            Self::Field => "impossible field",
            Self::Padding => "reserved bytes or padding not zero",
            Self::Misplaced => "belongs to another place",
            Self::Stale => "left over from an earlier life",
            Self::Chain => "chain from the group before is broken",
        })
    }
}

/// Damage with the structure it was found in and the numbers that disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// Which structure.
    pub what: &'static str,
    /// Which of its fields.
    pub field: &'static str,
    /// Which condition failed.
    pub damage: Damage,
    /// The value that was demanded.
    pub expected: u64,
    /// The value that was found.
    pub found: u64,
}

impl Corruption {
    /// A report of `damage` in `field` of `what`.
    pub fn new(what: &'static str, field: &'static str, damage: Damage, expected: u64, found: u64) -> Self {
        Self { what, field, damage, expected, found }
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {} (expected {:#x}, found {:#x})",
            self.what, self.field, self.damage, self.expected, self.found
        )
    }
}

impl std::error::Error for Corruption {}

/// Fails with a [`Corruption`] unless `found == expected`.
pub(crate) fn demand(
    what: &'static str,
    field: &'static str,
    damage: Damage,
    expected: u64,
    found: u64,
) -> Result<(), Corruption> {
    if expected == found { Ok(()) } else { Err(Corruption::new(what, field, damage, expected, found)) }
}

/// Fails with a [`Corruption`] of kind [`Damage::Padding`] unless all `bytes` are zero.
pub(crate) fn demand_zero(what: &'static str, field: &'static str, bytes: &[u8]) -> Result<(), Corruption> {
    match bytes.iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(at) => Err(Corruption::new(what, field, Damage::Padding, 0, at as u64)),
    }
}
