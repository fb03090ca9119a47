//! The file `identity`: what a data directory is. Written once, when the directory is made.

use crate::FormatVersion;
use crate::checksum::crc32c;
use crate::corruption::{Corruption, Damage, demand, demand_zero};
use crate::limits::{BLOCK_SIZE, SHARDS_MAX};
use zerocopy::little_endian::{I64, U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "identity";
/// `RINGMQID`
pub const IDENTITY_MAGIC: u64 = u64::from_le_bytes(*b"RINGMQID");

/// One block, stored twice (positions 0 and 4096).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentityBlock {
    /// [`IDENTITY_MAGIC`].
    pub magic: U64,
    /// [`FormatVersion`].
    pub version: U16,
    /// Shards; fixed for ever.
    pub shards: U16,
    /// Zero.
    pub reserved_low: U32,
    /// Random name of the directory; every file in it carries it.
    pub node_id: U128,
    /// Wall clock when it was made, Unix milliseconds.
    pub created_ms: I64,
    /// Zero.
    pub reserved: [u8; 4096 - 44],
    /// CRC-32C of bytes 0..4092.
    pub crc: U32,
}

const _: () = assert!(size_of::<IdentityBlock>() == BLOCK_SIZE);

/// What a data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Shards.
    pub shards: u16,
    /// Random name of the directory.
    pub node_id: u128,
    /// When it was made.
    pub created_ms: i64,
}

impl Identity {
    /// Both copies, ready to be written.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = IdentityBlock::new_zeroed();
        block.magic = U64::new(IDENTITY_MAGIC);
        block.version = U16::new(FormatVersion::CURRENT as u16);
        block.shards = U16::new(self.shards);
        block.node_id = U128::new(self.node_id);
        block.created_ms = I64::new(self.created_ms);
        block.crc = U32::new(crc32c(&block.as_bytes()[..BLOCK_SIZE - 4]));
        let mut bytes = block.as_bytes().to_vec();
        bytes.extend_from_within(..);
        bytes
    }

    /// The identity from either copy; the error is the first copy's.
    pub fn parse(bytes: &[u8]) -> Result<Self, Corruption> {
        Self::parse_copy(bytes)
            .or_else(|first| Self::parse_copy(bytes.get(BLOCK_SIZE..).unwrap_or(&[])).map_err(|_| first))
    }

    fn parse_copy(bytes: &[u8]) -> Result<Self, Corruption> {
        let Ok((block, _)) = IdentityBlock::ref_from_prefix(bytes) else {
            let (need, found) = (BLOCK_SIZE as u64, bytes.len() as u64);
            return Err(Corruption::new(WHAT, "file", Damage::Truncated, need, found));
        };
        demand(WHAT, "magic", Damage::Magic, IDENTITY_MAGIC, block.magic.get())?;
        let crc = crc32c(&block.as_bytes()[..BLOCK_SIZE - 4]);
        demand(WHAT, "crc", Damage::HeaderCrc, u64::from(crc), u64::from(block.crc.get()))?;
        if FormatVersion::parse(block.version.get()).is_none() {
            let (current, found) = (FormatVersion::CURRENT as u64, u64::from(block.version.get()));
            return Err(Corruption::new(WHAT, "version", Damage::Version, current, found));
        }
        demand(WHAT, "reserved", Damage::Padding, 0, u64::from(block.reserved_low.get()))?;
        demand_zero(WHAT, "reserved", &block.reserved)?;
        let shards = block.shards.get();
        if shards == 0 || shards > SHARDS_MAX {
            return Err(Corruption::new(
                WHAT,
                "shards",
                Damage::Field,
                u64::from(SHARDS_MAX),
                u64::from(shards),
            ));
        }
        Ok(Self { shards, node_id: block.node_id.get(), created_ms: block.created_ms.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_copy_is_enough() {
        let identity = Identity { shards: 2, node_id: 7, created_ms: 9 };
        let bytes = identity.encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Identity::parse(&bad), Ok(identity), "bit {bit}");
        }
        assert!(Identity::parse(&[0; 8192]).is_err());
    }
}
