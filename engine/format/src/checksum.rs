//! Checksums: CRC-32C for bytes, CRC-64/NVME for the chain of groups.
//!
//! The hot path uses `crc-fast` (carry-less multiplication, about memory speed); tests and offline tools compute
//! the same values with `crc32c`, so that a bug in one cannot hide in both.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C (Castagnoli) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC-32C of `seed` followed by `bytes`. The seed of everything in a segment is its incarnation, so that what a
/// recycled file still holds can never pass.
pub fn crc32c_seeded(seed: u64, bytes: &[u8]) -> u32 {
    let mut digest = Crc32c::new();
    digest.update(&seed.to_le_bytes());
    digest.update(bytes);
    digest.finish()
}

/// CRC-64/NVME of `bytes`: the chain value of a group is that of the header before it.
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// CRC-32C fed in pieces, while each is still in the nearest cache.
#[derive(Clone, Debug)]
pub struct Crc32c(Digest);

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// Nothing fed yet.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Feeds the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all that was fed.
    pub fn finish(&self) -> u32 {
        self.0.finalize() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_implementations_agree(bytes in proptest::collection::vec(any::<u8>(), 0..5000), cut in 0usize..5000) {
            let cut = cut.min(bytes.len());
            let mut digest = Crc32c::new();
            digest.update(&bytes[..cut]);
            digest.update(&bytes[cut..]);
            prop_assert_eq!(digest.finish(), ::crc32c::crc32c(&bytes));
            prop_assert_eq!(crc32c(&bytes), ::crc32c::crc32c(&bytes));
        }
    }

    #[test]
    fn check_values_of_the_standards() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc64(b"123456789"), 0xae8b_1486_0a79_9888);
    }
}
