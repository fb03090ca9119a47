//! Records from a pipe: one a line, split at `\n` only, every other byte kept.
//!
//! CR, NUL and bytes that are not UTF-8 belong to the record; an empty line is an empty record; a last line without
//! a newline is a record, an empty rest after the last newline is none. Lines come in batches, as they arrive: what
//! one read brought is one batch, so that a slow input waits for nothing and a fast one is cheap. Nothing is copied
//! after the read but an unfinished line.

use bytes::{Bytes, BytesMut};
use std::io::{self, Read};

/// Bytes read at once.
const READ_SIZE: usize = 256 << 10;

/// A line as a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// What lay before the separator.
    pub(crate) key: Option<Bytes>,
    /// The rest.
    pub(crate) body: Bytes,
}

/// Why there is no next batch.
#[derive(Debug)]
pub(crate) enum LineError {
    /// The input failed.
    Input(io::Error),
    /// This line, counted from 1, is longer than any record may be. All before it were given out.
    TooLong(u64),
}

/// Splits an input into records.
pub(crate) struct Lines<R> {
    input: R,
    separator: Option<Vec<u8>>,
    size_max: usize,
    scratch: Vec<u8>,
    unfinished: BytesMut,
    number: u64,
    too_long: bool,
}

impl<R: Read> Lines<R> {
    /// With a separator, what lies before its first place in a line is the key; a line without it has none.
    pub(crate) fn new(input: R, separator: Option<&str>, size_max: usize) -> Self {
        Self {
            input,
            separator: separator.filter(|text| !text.is_empty()).map(|text| text.as_bytes().to_vec()),
            size_max,
            scratch: vec![0; READ_SIZE],
            unfinished: BytesMut::new(),
            number: 0,
            too_long: false,
        }
    }

    /// The next lines, at least one; none at the end.
    pub(crate) fn next_batch(&mut self) -> Result<Option<Vec<Line>>, LineError> {
        loop {
            if self.too_long || self.unfinished.len() > self.size_max {
                return Err(LineError::TooLong(self.number + 1));
            }
            let read = match self.input.read(&mut self.scratch) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LineError::Input(error)),
            };
            let fresh = &self.scratch[..read];
            if fresh.is_empty() {
                let rest = std::mem::take(&mut self.unfinished).freeze();
                return Ok(if rest.is_empty() { None } else { Some(self.split(&rest)) });
            }
            let Some(end) = memchr::memrchr(b'\n', fresh) else {
                self.unfinished.extend_from_slice(fresh);
                continue;
            };
            self.unfinished.extend_from_slice(&fresh[..=end]);
            let whole = std::mem::take(&mut self.unfinished).freeze();
            self.unfinished.extend_from_slice(&self.scratch[end + 1..read]);
            let lines = self.split(&whole);
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
    }

    /// Up to the first line that is too long.
    fn split(&mut self, whole: &Bytes) -> Vec<Line> {
        let mut lines = Vec::with_capacity(whole.len() / 64 + 1);
        let rest_end = (whole.last() != Some(&b'\n')).then_some(whole.len());
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', whole).chain(rest_end) {
            if end - start > self.size_max {
                self.too_long = true;
                break;
            }
            lines.push(self.line(whole.slice(start..end)));
            start = end + 1;
        }
        self.number += lines.len() as u64;
        lines
    }

    fn line(&self, line: Bytes) -> Line {
        let place = self.separator.as_ref().and_then(|separator| {
            memchr::memmem::find(&line, separator).map(|at| (at, at + separator.len()))
        });
        match place {
            Some((end, start)) => Line { key: Some(line.slice(..end)), body: line.slice(start..) },
            None => Line { key: None, body: line },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives as many bytes at once as each step says.
    struct Steps<'a>(&'a [u8], usize);

    impl Read for Steps<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(into.len());
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn all(input: &[u8], step: usize, separator: Option<&str>) -> (Vec<Line>, Option<u64>) {
        let mut lines = Lines::new(Steps(input, step), separator, 100);
        let mut found = Vec::new();
        loop {
            match lines.next_batch() {
                Ok(Some(batch)) => {
                    assert!(!batch.is_empty());
                    found.extend(batch);
                }
                Ok(None) => return (found, None),
                Err(LineError::TooLong(number)) => return (found, Some(number)),
                Err(LineError::Input(error)) => panic!("{error}"),
            }
        }
    }

    fn check(input: &[u8], expected: &[&[u8]]) {
        for step in [1, 2, 3, 1000] {
            let (lines, too_long) = all(input, step, None);
            let bodies = lines.iter().map(|line| &line.body[..]).collect::<Vec<_>>();
            assert_eq!((bodies, too_long), (expected.to_vec(), None), "{input:?} by {step}");
        }
    }

    #[test]
    fn only_newlines_split() {
        check(b"", &[]);
        check(b"\n", &[b""]);
        check(b"\n\n", &[b"", b""]);
        check(b"a\r\n\0\xff\n\nlast", &[b"a\r", b"\0\xff", b"", b"last"]);
        check(b"a\nb\n", &[b"a", b"b"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_named_and_those_before_are_kept() {
        let mut input = vec![b'x'; 100];
        input.extend(b"\nshort\n");
        input.extend([b'y'; 101]);
        for ending in [&b""[..], b"\n", b"\nmore\n"] {
            let input = [&input[..], ending].concat();
            for step in [7, 1000] {
                let (lines, too_long) = all(&input, step, None);
                // Without a newline the end of the input decides, and then it is too long as well.
                assert_eq!((lines.len(), too_long), (2, Some(3)), "{ending:?} by {step}");
            }
        }
    }

    #[test]
    fn keys_lie_before_the_first_separator() {
        for (line, key, body) in [
            ("k:v", Some("k"), "v"),
            ("k:v:w", Some("k"), "v:w"),
            (":v", Some(""), "v"),
            ("v", None, "v"),
            ("", None, ""),
        ] {
            let (lines, _) = all(format!("{line}\n").as_bytes(), 1000, Some(":"));
            let key = key.map(|key| Bytes::from_static(key.as_bytes()));
            assert_eq!(lines, [Line { key, body: Bytes::from(body.to_owned()) }], "{line}");
        }
        let (lines, _) = all(b"k => v", 1000, Some(" => "));
        assert_eq!((lines[0].key.as_deref(), &lines[0].body[..]), (Some(&b"k"[..]), &b"v"[..]));
    }
}
