//! Names that users give: what is allowed, and the one place that decides it.

use crate::limits::TOPIC_NAME_MAX;
use std::fmt;

/// Why a name was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// No characters.
    Empty,
    /// More than [`TOPIC_NAME_MAX`] bytes.
    TooLong,
    /// A character outside `A-Z a-z 0-9 _ - . %`, at this byte.
    Character(usize),
    /// `.` and `..` would be directories in exports.
    Dots,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the name is empty"),
            Self::TooLong => write!(f, "the name is longer than {TOPIC_NAME_MAX} bytes"),
            Self::Character(at) => {
                write!(f, "the name has a character at byte {at} that is not one of A-Z a-z 0-9 _ - . %")
            }
            Self::Dots => f.write_str("'.' and '..' are not names"),
        }
    }
}

impl std::error::Error for NameError {}

/// Checks a topic name: 1 to [`TOPIC_NAME_MAX`] bytes of `A-Z a-z 0-9 _ - . %` (RocketMQ's set and the dot).
pub fn check_topic_name(name: &[u8]) -> Result<&str, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > TOPIC_NAME_MAX {
        return Err(NameError::TooLong);
    }
    if let Some(at) = name.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b"_-.%".contains(byte)) {
        return Err(NameError::Character(at));
    }
    if name == b"." || name == b".." {
        return Err(NameError::Dots);
    }
    std::str::from_utf8(name).map_err(|error| NameError::Character(error.valid_up_to()))
}

/// A number for a name, the same for ever: it places a group at its coordinator and numbers the instances of a
/// broadcast. FNV-1a, 64 bits, and MurmurHash3's finalizer; never 0.
pub fn name_hash(name: &str) -> u64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (hash ^ (hash >> 33)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_name_is_what_it_was() {
        assert_eq!(name_hash(""), 0xefd0_1f60_ba99_2926);
        assert_eq!(name_hash("invoices"), 1_271_343_091_932_067_093);
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = [b'a'; TOPIC_NAME_MAX + 1];
        for (name, error) in [
            (&b""[..], NameError::Empty),
            (b"..", NameError::Dots),
            (b"a/b", NameError::Character(1)),
            (b"a\0", NameError::Character(1)),
            (b"\x1b[31m", NameError::Character(0)),
            ("größe".as_bytes(), NameError::Character(2)),
            (&long, NameError::TooLong),
        ] {
            assert_eq!(check_topic_name(name), Err(error), "{name:?}");
        }
        assert_eq!(check_topic_name(&long[1..]), Ok(&*"a".repeat(TOPIC_NAME_MAX)));
        assert_eq!(check_topic_name(b"order.created-v1%retry_2"), Ok("order.created-v1%retry_2"));
    }
}
