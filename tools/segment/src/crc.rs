//! Checksums that share nothing with the engine's: CRC-32C by the crate `crc32c`, CRC-64/NVME by a table made here.
//! And what a checksum knows beyond yes and no: which single bit, turned back, would make it hold.

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// CRC-32C of the seed's eight bytes and then `bytes`.
pub fn crc32c_seeded(seed: u64, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(::crc32c::crc32c(&seed.to_le_bytes()), bytes)
}

/// CRC-32C of what `crc` covers and then `bytes`.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, bytes)
}

const CRC64_TABLE: [u64; 256] = {
    const POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5; // NVME, reflected
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

/// CRC-64/NVME of `bytes`.
pub fn crc64(bytes: &[u8]) -> u64 {
    !bytes.iter().fold(!0, |crc, byte| CRC64_TABLE[(crc as u8 ^ byte) as usize] ^ crc >> 8)
}

/// Where the one bit is that was flipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    /// In the bytes that the checksum covers: byte, bit.
    Covered(usize, u8),
    /// In the checksum as it is stored: bit.
    Stored(u8),
}

/// Which one flipped bit explains that `len` bytes have the checksum `computed` and not `stored`. None: it was more
/// than one. By linearity the difference of two checksums is that of the messages' difference, and CRC-32C tells all
/// single bits of a frame apart.
pub fn find_flip(len: usize, computed: u32, stored: u32) -> Option<Flip> {
    const POLYNOMIAL: u32 = 0x82f6_3b78; // reflected
    let difference = computed ^ stored;
    if difference.count_ones() == 1 {
        return Some(Flip::Stored(difference.trailing_zeros() as u8));
    }
    // What the last bit of the message leaves in the checksum; each earlier bit is one step further.
    let mut syndrome = 1u32;
    for from_end in 0..len * 8 {
        syndrome = if syndrome & 1 == 1 { syndrome >> 1 ^ POLYNOMIAL } else { syndrome >> 1 };
        if syndrome == difference {
            let bit = len * 8 - 1 - from_end;
            return Some(Flip::Covered(bit / 8, (bit % 8) as u8));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_implementations_agree(bytes in proptest::collection::vec(any::<u8>(), 0..600), seed: u64) {
            prop_assert_eq!(crc32c(&bytes), ringmq_format::checksum::crc32c(&bytes));
            prop_assert_eq!(crc32c_seeded(seed, &bytes), ringmq_format::checksum::crc32c_seeded(seed, &bytes));
            prop_assert_eq!(crc64(&bytes), ringmq_format::checksum::crc64(&bytes));
        }
    }

    #[test]
    fn every_single_flip_is_located_and_two_are_not_taken_for_one() {
        let good: Vec<u8> = (0..90u32).map(|n| (n * 37) as u8).collect();
        let crc = crc32c(&good);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(find_flip(90, crc32c(&bad), crc), Some(Flip::Covered(bit / 8, (bit % 8) as u8)));
            bad[(bit / 8 + 41) % 90] ^= 4;
            assert_eq!(find_flip(90, crc32c(&bad), crc), None, "bit {bit}");
        }
        for bit in 0..32 {
            assert_eq!(find_flip(90, crc, crc ^ 1 << bit), Some(Flip::Stored(bit)));
        }
    }
}
