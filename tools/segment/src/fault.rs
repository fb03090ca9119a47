//! What is wrong with bytes, and where.

use crate::layout;
use ringmq_format::{Corruption, Damage};
use std::fmt;

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Byte of the file: of the flipped bit if one explains it all, else of the field.
    pub position: u64,
    /// The structure's type.
    pub structure: &'static str,
    /// Its field, or part.
    pub field: &'static str,
    /// Which condition failed.
    pub damage: Damage,
    /// The value that was demanded.
    pub expected: u64,
    /// The value that was found.
    pub found: u64,
    /// The one bit of that byte that, turned back, makes the checksum hold.
    pub flipped_bit: Option<u8>,
}

impl Fault {
    /// In the field of a structure that begins at `start`.
    pub fn field(
        start: u64,
        structure: &'static str,
        field: &'static str,
        corruption: (Damage, u64, u64),
    ) -> Self {
        let known =
            layout::structure(structure).and_then(|s| s.fields.iter().find(|known| known.name == field));
        let offset = known.map_or(0, |field| field.offset as u64);
        let (damage, expected, found) = corruption;
        Self { position: start + offset, structure, field, damage, expected, found, flipped_bit: None }
    }

    /// From what `ringmq_format` says of a structure that begins at `start`.
    pub fn of(start: u64, structure: &'static str, corruption: &Corruption) -> Self {
        let (damage, expected, found) = (corruption.damage, corruption.expected, corruption.found);
        Self::field(start, structure, corruption.field, (damage, expected, found))
    }

    /// One flipped bit explains it.
    pub fn flip(mut self, position: u64, bit: u8, field: &'static str) -> Self {
        self.position = position;
        self.field = field;
        self.flipped_bit = Some(bit);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at byte {}: ", self.structure, self.field, self.position)?;
        match self.flipped_bit {
            Some(bit) => write!(f, "bit {bit} is flipped ({})", self.damage),
            None => write!(f, "{} (expected {:#x}, found {:#x})", self.damage, self.expected, self.found),
        }
    }
}
