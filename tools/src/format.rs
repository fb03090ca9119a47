//! How `sub` shows a record: `-f` formats, JSON, and the decorated line of a terminal.
//!
//! A format writes a record's bytes as they are. The terminal's line does not: what a stranger published must not
//! move the cursor or recolour the screen, so control characters are shown escaped.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::io::{self, Write};

/// A record as `sub` got it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a> {
    /// Name of its topic.
    pub(crate) topic: &'a str,
    /// Its partition.
    pub(crate) partition: u32,
    /// Its offset.
    pub(crate) offset: u64,
    /// When it was published, Unix milliseconds.
    pub(crate) time_ms: i64,
    /// Its key, if it has one.
    pub(crate) key: Option<&'a [u8]>,
    /// Its body.
    pub(crate) value: &'a [u8],
    /// Names and values.
    pub(crate) headers: &'a [(&'a [u8], &'a [u8])],
}

/// A parsed `-f`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Format(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Time,
    Millis,
    Key,
    Value,
    ValueLength,
    Headers,
}

/// The directives, for `--help`.
pub(crate) const DIRECTIVES: &str = "\
Directives of -f: %t topic, %p partition, %o offset, %k key, %v value, %h headers, %T time, %M time in ms,
%S size of the value, %% a percent sign; \\n \\t \\r \\0 \\\\ and \\xHH are bytes.";

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '\\' => plain.push(escaped(&mut letters)?),
                '%' => {
                    let piece = match letters.next() {
                        Some('%') => {
                            plain.push(b'%');
                            continue;
                        }
                        Some('t') => Piece::Topic,
                        Some('p') => Piece::Partition,
                        Some('o') => Piece::Offset,
                        Some('T') => Piece::Time,
                        Some('M') => Piece::Millis,
                        Some('k') => Piece::Key,
                        Some('v') => Piece::Value,
                        Some('S') => Piece::ValueLength,
                        Some('h') => Piece::Headers,
                        Some(other) => {
                            return Err(format!(
                                "'%{other}' is not a directive; there are %t %p %o %k %v %h %T %M %S %%"
                            ));
                        }
                        None => return Err("it ends in a single %; write %% for a percent sign".to_owned()),
                    };
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    }
                    pieces.push(piece);
                }
                other => plain.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }
}

fn escaped(letters: &mut std::str::Chars<'_>) -> Result<u8, String> {
    match letters.next() {
        Some('n') => Ok(b'\n'),
        Some('t') => Ok(b'\t'),
        Some('r') => Ok(b'\r'),
        Some('0') => Ok(0),
        Some('\\') => Ok(b'\\'),
        Some('x') => {
            let rest = letters.as_str();
            let digits = rest.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
            let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            let byte = byte.ok_or("\\x wants two hexadecimal digits, like \\x1f")?;
            letters.nth(1);
            Ok(byte)
        }
        Some(other) => Err(format!("'\\{other}' is not an escape; there are \\n \\t \\r \\0 \\\\ \\xHH")),
        None => Err("it ends in a single \\; write \\\\ for a backslash".to_owned()),
    }
}

impl Format {
    /// Only the value and a newline: what a pipe gets.
    pub(crate) fn plain() -> Self {
        Self(vec![Piece::Value, Piece::Text(vec![b'\n'])])
    }

    /// Appends one record to `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>, record: &Shown<'_>) -> io::Result<()> {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Topic => out.extend_from_slice(record.topic.as_bytes()),
                Piece::Partition => write!(out, "{}", record.partition)?,
                Piece::Offset => write!(out, "{}", record.offset)?,
                Piece::Time => out.extend_from_slice(time(record.time_ms).as_bytes()),
                Piece::Millis => write!(out, "{}", record.time_ms)?,
                Piece::Key => out.extend_from_slice(record.key.unwrap_or_default()),
                Piece::Value => out.extend_from_slice(record.value),
                Piece::ValueLength => write!(out, "{}", record.value.len())?,
                Piece::Headers => {
                    for (at, (name, value)) in record.headers.iter().enumerate() {
                        out.extend_from_slice(if at == 0 { b"" } else { b"," });
                        out.extend_from_slice(name);
                        out.push(b'=');
                        out.extend_from_slice(value);
                    }
                }
            }
        }
        Ok(())
    }
}

/// `2026-11-22T06:29:44.120Z`.
pub(crate) fn time(unix_ms: i64) -> String {
    Timestamp::from_millisecond(unix_ms).map_or_else(|_| format!("{unix_ms} ms"), |time| format!("{time:.3}"))
}

/// The record as an object. Bytes that are not UTF-8 go into `…_base64` instead.
pub(crate) fn to_json(record: &Shown<'_>) -> Value {
    let mut object = Map::new();
    object.insert("topic".to_owned(), record.topic.into());
    object.insert("partition".to_owned(), record.partition.into());
    object.insert("offset".to_owned(), record.offset.into());
    object.insert("time".to_owned(), time(record.time_ms).into());
    if let Some(key) = record.key {
        insert_bytes(&mut object, "key", key);
    }
    insert_bytes(&mut object, "value", record.value);
    if !record.headers.is_empty() {
        let headers = record.headers.iter().map(|(name, value)| {
            let mut header = Map::new();
            insert_bytes(&mut header, "name", name);
            insert_bytes(&mut header, "value", value);
            Value::Object(header)
        });
        object.insert("headers".to_owned(), headers.collect());
    }
    json!(object)
}

fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), base64(bytes).into()),
    };
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let padded = [three[0], three.get(1).copied().unwrap_or(0), three.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, padded[0], padded[1], padded[2]]);
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at > three.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

/// Bytes for a terminal: text as it is, everything that could act on the terminal escaped.
pub(crate) fn harmless(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\t' => text.push(letter),
                letter if letter.is_control() => text.extend(letter.escape_default()),
                letter => text.push(letter),
            }
        }
        for byte in chunk.invalid() {
            text += &format!("\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Shown<'_> = Shown {
        topic: "logs",
        partition: 3,
        offset: 42,
        time_ms: 1_795_328_984_120,
        key: Some(b"k\0"),
        value: b"va\xfflue",
        headers: &[(b"a", b"1"), (b"b", b"2")],
    };

    fn formatted(format: &str) -> Vec<u8> {
        let mut out = Vec::new();
        format.parse::<Format>().unwrap().write(&mut out, &RECORD).unwrap();
        out
    }

    #[test]
    fn directives_write_bytes_as_they_are() {
        assert_eq!(formatted("%t %p %o %k %v\\n"), b"logs 3 42 k\0 va\xfflue\n");
        assert_eq!(formatted("%h|%S|100%%\\t\\x00\\\\"), b"a=1,b=2|6|100%\t\0\\");
        assert_eq!(formatted("%T %M"), b"2026-11-22T06:29:44.120Z 1795328984120");
        assert_eq!(formatted("größe"), "größe".as_bytes());
    }

    #[test]
    fn wrong_formats_say_what_there_is() {
        for (format, part) in [
            ("%q", "'%q' is not a directive"),
            ("100%", "single %"),
            ("\\q", "is not an escape"),
            ("\\", "single \\"),
            ("\\xg0", "two hexadecimal"),
            ("\\x+1", "two hexadecimal"),
            ("\\x1é", "two hexadecimal"),
        ] {
            let error = format.parse::<Format>().unwrap_err();
            assert!(error.contains(part), "{format}: {error}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_become_base64() {
        let object = to_json(&RECORD);
        assert_eq!(object["value_base64"], "dmH/bHVl");
        assert_eq!(object["key"], "k\0");
        assert_eq!(object["headers"][1]["value"], "2");
        for (bytes, text) in
            [(&b""[..], ""), (b"f", "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes), text);
        }
    }

    #[test]
    fn nothing_acts_on_the_terminal() {
        assert_eq!(harmless(b"\x1b[2Jred\x07\r\nb\xff \xc3\xb6\t."), "\\u{1b}[2Jred\\u{7}\\r\\nb\\xff ö\t.");
        assert_eq!(harmless("\u{9b}2J".as_bytes()), "\\u{9b}2J");
    }
}
