//! Sizes and durations as people write them: `256M`, `7d`, `1h30m`.
//!
//! Sizes are powers of 1024 and say so (`256M` and `256MiB` are the same); `MB` is refused, because half of its
//! readers would be wrong about it. What is printed can be read back.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A span of time in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub u64);

/// Why a size or a duration was not understood: a sentence that says what would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError(String);

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnitError {}

const SIZE_UNITS: [(&str, u64); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];
const SPAN_UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (&text[..digits], text[digits..].trim_start());
        let number = number.parse::<u64>().map_err(|_| size_error(text))?;
        let unit = unit.to_ascii_uppercase();
        if unit.len() == 2 && unit.ends_with('B') && SIZE_UNITS.iter().any(|(name, _)| unit.starts_with(name))
        {
            let letter = &unit[..1];
            return Err(UnitError(format!(
                "'{text}' could mean two things; write {number}{letter} for powers of 1024"
            )));
        }
        let letter = unit.strip_suffix("IB").unwrap_or(&unit);
        let scale = match letter {
            "" | "B" => 1,
            _ => SIZE_UNITS.iter().find(|(name, _)| *name == letter).ok_or_else(|| size_error(text))?.1,
        };
        number
            .checked_mul(scale)
            .map(Self)
            .ok_or_else(|| UnitError(format!("'{text}' is larger than 16 EiB")))
    }
}

fn size_error(text: &str) -> UnitError {
    UnitError(format!("'{text}' is not a size; write a whole number and K, M, G or T, like 256M"))
}

impl fmt::Display for Size {
    /// Exact when it is a whole number of some unit, else one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, scale) in SIZE_UNITS {
            if self.0 >= scale {
                return if self.0.is_multiple_of(scale) {
                    write!(f, "{} {name}iB", self.0 / scale)
                } else {
                    write!(f, "{:.1} {name}iB", self.0 as f64 / scale as f64)
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        let wrong = || {
            UnitError(format!(
                "'{text}' is not a duration; write a number and ms, s, m, h, d or w, like 7d or 1h30m"
            ))
        };
        let (mut rest, mut total) = (text, 0_u64);
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number = rest[..digits].parse::<u64>().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let scale = SPAN_UNITS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or_else(wrong)?.1;
            rest = &rest[letters..];
            total = number
                .checked_mul(scale)
                .and_then(|part| total.checked_add(part))
                .ok_or_else(|| UnitError(format!("'{text}' is too long")))?;
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (name, scale) in SPAN_UNITS {
            if rest >= scale {
                write!(f, "{}{name}", rest / scale)?;
                rest %= scale;
            }
        }
        Ok(())
    }
}

/// In TOML a size is a text like "256M" or a plain number of bytes.
impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size like \"256M\" or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size cannot be negative"))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("256M", 256 << 20),
            ("256MiB", 256 << 20),
            ("1 g", 1 << 30),
            ("2t", 2 << 40),
            ("16K", 16 << 10),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "256MB", "10X", "99999999999T", "1 000"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert!("256MB".parse::<Size>().unwrap_err().to_string().contains("256M for powers of 1024"));
    }

    #[test]
    fn spans_add_up() {
        for (text, ms) in
            [("7d", 604_800_000), ("1h30m", 5_400_000), ("500ms", 500), ("2w", 1_209_600_000), ("0s", 0)]
        {
            assert_eq!(text.parse(), Ok(Span(ms)), "{text}");
        }
        for text in ["", "7", "d", "7 d", "1.5h", "3y", "99999999999999w"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        for bytes in [0, 1, 1023, 1024, 256 << 20, 5 << 40] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        for ms in [0, 1, 999, 61_001, 604_800_000, 90_061_007] {
            assert_eq!(Span(ms).to_string().parse(), Ok(Span(ms)));
        }
        assert_eq!(Size((3 << 30) / 2).to_string(), "1.5 GiB");
    }
}
