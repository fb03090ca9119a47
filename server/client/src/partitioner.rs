//! Which partition a record goes to when the caller does not say.

/// The partition of a key: FNV-1a over its bytes in 64 bits, upper half folded onto the lower, modulo the number of
/// partitions. It never changes, so that equal keys keep meeting in one partition; every client in any language can
/// compute it.
pub fn partition_of_key(key: &[u8], partitions: u32) -> u32 {
    assert!(partitions > 0, "a topic has at least one partition");
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    ((hash ^ (hash >> 32)) as u32) % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_where_they_are_for_ever() {
        let found = ["", "a", "customer-7", "ключ"].map(|key| partition_of_key(key.as_bytes(), 1_000));
        assert_eq!(found, [641, 864, 866, 247]);
    }

    #[test]
    fn keys_spread_evenly() {
        let mut counts = [0u32; 16];
        (0..16_000)
            .for_each(|index: u32| counts[partition_of_key(index.to_string().as_bytes(), 16) as usize] += 1);
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }
}
