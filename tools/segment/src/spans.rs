//! Every byte of a structure, with the field that it belongs to and what it says.

use crate::layout::{self, Field};
use ringmq_format::frame::{Codec, FrameHeader, FrameKind};
use ringmq_format::group::GroupKind;
use ringmq_format::limits::{BLOCK_SIZE, FRAME_HEADER_SIZE, GROUP_HEADER_SIZE};
use ringmq_format::record::{BLOCK_HEADER_SIZE, PAYLOAD_HEADER_SIZE};

/// A field where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte, counted from where the caller began.
    pub at: usize,
    /// Bytes.
    pub len: usize,
    /// The structure that it is part of.
    pub structure: String,
    /// Its name.
    pub field: String,
    /// What it says.
    pub value: Value,
    /// What FORMAT.md says of it.
    pub meaning: String,
}

/// What a field says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u128),
    /// A signed number that is a time in Unix milliseconds.
    Time(i64),
    /// A number that is a checksum, a chain or a random name.
    Hex(u128, usize),
    /// A number with a name.
    Named(u64, String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// So many zeros.
    Zeros,
    /// Bytes that are shown elsewhere, or not at all.
    Opaque,
}

/// Spans of a structure of the layout tables at `at`.
pub fn structure(name: &str, bytes: &[u8], at: usize) -> Vec<Span> {
    let Some(known) = layout::structure(name) else { return Vec::new() };
    let whole = known.fields.iter().filter(|field| field.offset + field.size <= bytes.len());
    whole
        .map(|field| Span {
            at: at + field.offset,
            len: field.size,
            structure: name.to_owned(),
            field: field.name.clone(),
            value: value(name, field, &bytes[field.offset..field.offset + field.size]),
            meaning: field.meaning.clone(),
        })
        .collect()
}

fn value(structure: &str, field: &Field, bytes: &[u8]) -> Value {
    let name = field.name.as_str();
    if bytes.len() > 16 || !matches!(bytes.len(), 1 | 2 | 4 | 8 | 16) {
        return if bytes.iter().all(|byte| *byte == 0) { Value::Zeros } else { Value::Bytes(bytes.to_vec()) };
    }
    let mut wide = [0; 16];
    wide[..bytes.len()].copy_from_slice(bytes);
    let number = u128::from_le_bytes(wide);
    let named =
        |text: Option<String>| Value::Named(number as u64, text.unwrap_or_else(|| "unknown".to_owned()));
    match (structure, name) {
        (_, "magic") => Value::Bytes(bytes.to_vec()),
        ("FrameHeader", "kind") => named(FrameKind::parse(bytes[0]).map(|kind| format!("{kind:?}"))),
        ("FrameHeader", "codec") => named(Codec::parse(bytes[0]).map(|codec| format!("{codec:?}"))),
        ("GroupHeader", "kind") => named(GroupKind::parse(bytes[0]).map(|kind| format!("{kind:?}"))),
        (_, "timestamp" | "base_time" | "last_time" | "created_ms" | "due_ms" | "time_ms") => {
            Value::Time(number as i64)
        }
        (_, name)
            if name.contains("crc")
                || name.contains("chain")
                || ["incarnation", "node_id", "producer_id", "producer", "txn"].contains(&name) =>
        {
            Value::Hex(number, bytes.len())
        }
        _ => Value::Number(number),
    }
}

/// Spans of a group: its header, its frames, its padding.
pub fn group(bytes: &[u8], frames: &[(usize, &[u8])], used: usize) -> Vec<Span> {
    let mut spans = structure("GroupHeader", bytes, 0);
    for (at, frame) in frames {
        spans.extend(self::frame(frame, *at));
    }
    if used < bytes.len() {
        spans.push(rest("group", "padding", used, &bytes[used..]));
    }
    fill(&mut spans, GROUP_HEADER_SIZE.min(bytes.len()), bytes.len());
    spans
}

/// Spans of a frame, down to the records' table.
pub fn frame(bytes: &[u8], at: usize) -> Vec<Span> {
    let mut spans = structure("FrameHeader", bytes, at);
    let Ok((header, _)) = zerocopy::Ref::<_, FrameHeader>::from_prefix(bytes) else { return spans };
    let kind = FrameKind::parse(header.kind);
    let extension = usize::from(header.extension_len.get()).min(bytes.len() - FRAME_HEADER_SIZE);
    let payload = FRAME_HEADER_SIZE + extension;
    if extension > 0 {
        let known = structure("LateExtension", &bytes[FRAME_HEADER_SIZE..payload], at + FRAME_HEADER_SIZE);
        spans.extend(known);
    }
    let body = &bytes[payload..];
    let start = at + payload;
    match kind {
        Some(FrameKind::Data | FrameKind::Half | FrameKind::Delay | FrameKind::Bound) => {
            records(body, start, header.count.get(), &mut spans);
        }
        Some(FrameKind::Topic) => spans.extend(structure("TopicEntryHeader", body, start)),
        Some(FrameKind::Bind) => spans.extend(structure("BindPayload", body, start)),
        Some(FrameKind::Timer) => {
            for at in (0..body.len()).step_by(24).take(header.count.get() as usize) {
                spans.extend(structure("TimerItem", &body[at..], start + at));
            }
        }
        Some(
            FrameKind::Commit
            | FrameKind::Abort
            | FrameKind::Decision
            | FrameKind::Apply
            | FrameKind::Done
            | FrameKind::Check,
        ) => spans.extend(structure("TransactionMark", body, start)),
        Some(FrameKind::Group) => spans.extend(structure("ConsumerGroupHeader", body, start)),
        Some(FrameKind::Cursor) => {
            spans.extend(structure("CursorHeader", body, start));
            for at in (24..body.len().saturating_sub(23)).step_by(24) {
                spans.extend(structure("CursorEntry", &body[at..], start + at));
            }
        }
        Some(FrameKind::Ack) => spans.extend(structure("AckHeader", body, start)),
        // Kinds that come with a structure of that name.
        Some(kind) => spans.extend(structure(&format!("{kind:?}Payload"), body, start)),
        None => {}
    }
    fill(&mut spans, at + FRAME_HEADER_SIZE, at + bytes.len());
    spans
}

fn records(body: &[u8], start: usize, count: u32, spans: &mut Vec<Span>) {
    let header = structure("PayloadHeader", body, start);
    let number = |field: &str| {
        header.iter().find(|span| span.field == field).map_or(0, |span| match span.value {
            Value::Number(number) => number as usize,
            _ => 0,
        })
    };
    let (table_len, blocks, bodies_len) = (number("table_len"), number("blocks"), number("bodies_len"));
    spans.extend(header);
    let Some(table) = body.get(PAYLOAD_HEADER_SIZE..PAYLOAD_HEADER_SIZE.saturating_add(table_len)) else {
        return;
    };
    let mut reader = Reader { bytes: table, at: 0, start: start + PAYLOAD_HEADER_SIZE };
    for index in 0..count {
        if reader.record(index, spans).is_none() {
            break;
        }
    }
    let mut at = PAYLOAD_HEADER_SIZE + table_len;
    for _ in 0..blocks {
        let Some(block) = body.get(at..at + BLOCK_HEADER_SIZE) else { return };
        spans.extend(structure("BlockHeader", block, start + at));
        at += BLOCK_HEADER_SIZE;
    }
    if let Some(bodies) = body.get(at..at.saturating_add(bodies_len)) {
        spans.push(span("bodies", "bodies", start + at, bodies.len(), Value::Opaque, "bodies as stored"));
        let padding = &body[at + bodies_len..];
        if !padding.is_empty() {
            spans.push(rest("payload", "padding", start + at + bodies_len, padding));
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    start: usize,
}

impl Reader<'_> {
    fn varint(&mut self) -> Option<(usize, usize, u64)> {
        let (from, mut value) = (self.at, 0u64);
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some((self.start + from, self.at - from, value));
            }
        }
        None
    }

    fn record(&mut self, index: u32, spans: &mut Vec<Span>) -> Option<()> {
        let name = format!("record {index}");
        let flags = *self.bytes.get(self.at)?;
        spans.push(span(
            &name,
            "flags",
            self.start + self.at,
            1,
            Value::Number(flags.into()),
            "1 key, 2 tag, 4 properties",
        ));
        self.at += 1;
        let (at, len, body) = self.varint()?;
        spans.push(span(
            &name,
            "body_len",
            at,
            len,
            Value::Number(body.into()),
            "bytes of the body, uncompressed",
        ));
        let (at, len, raw) = self.varint()?;
        let delta = (raw >> 1) as i64 ^ -((raw & 1) as i64);
        let text = Value::Named(raw, format!("{delta:+} ms"));
        spans.push(span(&name, "time", at, len, text, "the producer's clock, from base_time on"));
        for (flag, part) in [(1, "key"), (2, "tag"), (4, "properties")] {
            if flags & flag == 0 {
                continue;
            }
            let (at, len, size) = self.varint()?;
            let size = usize::try_from(size).ok()?;
            spans.push(span(&name, &format!("{part}_len"), at, len, Value::Number(size as u128), ""));
            let bytes = self.bytes.get(self.at..self.at.checked_add(size)?)?;
            spans.push(span(&name, part, self.start + self.at, size, Value::Bytes(bytes.to_vec()), ""));
            self.at += size;
        }
        Some(())
    }
}

fn span(structure: &str, field: &str, at: usize, len: usize, value: Value, meaning: &str) -> Span {
    Span {
        at,
        len,
        structure: structure.to_owned(),
        field: field.to_owned(),
        value,
        meaning: meaning.to_owned(),
    }
}

fn rest(structure: &str, field: &str, at: usize, bytes: &[u8]) -> Span {
    let zeros = bytes.iter().all(|byte| *byte == 0);
    span(structure, field, at, bytes.len(), if zeros { Value::Zeros } else { Value::Opaque }, "zero")
}

/// Bytes that no span has, between the others.
fn fill(spans: &mut Vec<Span>, from: usize, to: usize) {
    spans.sort_by_key(|span| span.at);
    let (mut gaps, mut end) = (Vec::new(), from);
    for known in spans.iter().filter(|known| known.at + known.len > from) {
        if known.at > end {
            gaps.push(span("payload", "bytes", end, known.at - end, Value::Opaque, ""));
        }
        end = end.max(known.at + known.len);
    }
    if end < to {
        gaps.push(span("payload", "bytes", end, to - end, Value::Opaque, ""));
    }
    spans.extend(gaps);
    spans.sort_by_key(|span| span.at);
}

/// The structure that a file begins with, by its magic number.
pub fn head_of(bytes: &[u8]) -> Option<&'static str> {
    Some(match bytes.get(..8)? {
        b"RINGSEG1" => "SegmentHeader",
        b"RINGSUPR" => "SuperblockCopy",
        b"RINGMQID" => "IdentityBlock",
        b"RINGIDX1" => "SidecarHeader",
        b"RINGCKPT" => "CheckpointHeader",
        _ => return None,
    })
}

/// Copies of that structure in the file.
pub fn copies_of(head: &str) -> usize {
    match head {
        "SegmentHeader" | "IdentityBlock" => 2,
        "SuperblockCopy" => 4,
        _ => 1,
    }
}

const _: () = assert!(BLOCK_SIZE == 4096);

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_format::record::{FrameBuilder, ProducerStamp, Record};

    #[test]
    fn every_byte_of_a_frame_has_one_field() {
        let mut builder = FrameBuilder::new(5, 4096);
        let props: &[(&[u8], &[u8])] = &[(b"a", b"1")];
        let full = Record { key: Some(b"k"), tag: Some(b"t"), properties: props, time_ms: 4, body: b"body" };
        builder.push(&full).unwrap_or_default();
        builder.push(&Record { body: b"x", ..Record::default() }).unwrap_or_default();
        let bytes = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
        for cut in [bytes.len(), bytes.len() - 9, 90, 64] {
            let spans = frame(&bytes[..cut], 100);
            let mut end = 100;
            for span in &spans {
                assert_eq!(span.at, end, "{span:?} of {cut}");
                end += span.len;
            }
            assert_eq!(end, 100 + cut);
        }
        let key = frame(&bytes, 0).into_iter().find(|span| span.field == "key");
        assert_eq!(key.map(|key| key.value), Some(Value::Bytes(b"k".to_vec())));
    }
}
