//! LEB128 for the record table: seven bits a byte, shortest form only, so that equal tables are equal bytes.

/// Appends `value`.
pub(crate) fn put_u64(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed value, zigzag: small magnitudes stay short.
pub(crate) fn put_i64(out: &mut Vec<u8>, value: i64) {
    put_u64(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Bytes that `put_u64` takes for `value`.
pub(crate) fn len_u64(value: u64) -> usize {
    ((70 - (value | 1).leading_zeros()) / 7) as usize
}

/// Takes a value off the front of `bytes`; `None` if cut short, too long or not in shortest form.
pub(crate) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        if index == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            if *byte == 0 && index > 0 {
                return None;
            }
            *bytes = bytes.get(index + 1..)?;
            return Some(value);
        }
    }
    None
}

/// Takes a zigzag value off the front of `bytes`.
pub(crate) fn take_i64(bytes: &mut &[u8]) -> Option<i64> {
    let raw = take_u64(bytes)?;
    Some((raw >> 1) as i64 ^ -((raw & 1) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_put_is_taken(value: u64, signed: i64) {
            let mut out = Vec::new();
            put_u64(&mut out, value);
            prop_assert_eq!(out.len(), len_u64(value));
            put_i64(&mut out, signed);
            let mut rest = &out[..];
            prop_assert_eq!(take_u64(&mut rest), Some(value));
            prop_assert_eq!(take_i64(&mut rest), Some(signed));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut rest = &bytes[..];
            let _ = take_u64(&mut rest);
        }
    }

    #[test]
    fn longer_forms_are_refused() {
        assert_eq!(take_u64(&mut &[0x80, 0x00][..]), None);
        assert_eq!(take_u64(&mut &[0xff; 11][..]), None);
    }
}
