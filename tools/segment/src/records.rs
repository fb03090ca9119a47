//! Records of a frame, decompressed.

use ringmq_format::frame::{Codec, Frame};
use ringmq_format::record::{BlockHeader, Payload, RecordEntry};
use std::borrow::Cow;

/// A record where it stands.
#[derive(Clone, Debug)]
pub struct RecordView<'a> {
    /// Its number in the frame.
    pub index: u32,
    /// Its entry in the record table.
    pub entry: RecordEntry<'a>,
    /// Its body.
    pub body: Cow<'a, [u8]>,
}

/// Calls `each` for every record of a frame that carries some, or says what is wrong with it. Bodies are decompressed
/// a block at a time; with `bodies` false not at all, and they are empty.
pub fn for_each<'a>(
    frame: &Frame<'a>,
    bodies: bool,
    each: &mut dyn FnMut(RecordView<'a>),
) -> Result<(), String> {
    let payload = Payload::parse(frame).map_err(|corruption| corruption.to_string())?;
    let mut entries = payload.entries();
    let mut index = 0;
    for (block, stored) in payload.blocks() {
        let raw = if bodies { Some(decompress(frame.header.codec(), block, stored)?) } else { None };
        let mut at = 0;
        for entry in entries.by_ref().take(block.records.get() as usize) {
            let range = at..at + entry.body_len;
            let body = match &raw {
                None => Cow::Borrowed(&[][..]),
                // `Payload::parse` has checked that a block's length is the sum of its records'.
                Some(Cow::Borrowed(raw)) => Cow::Borrowed(&raw[range]),
                Some(Cow::Owned(raw)) => Cow::Owned(raw[range].to_vec()),
            };
            at += entry.body_len;
            each(RecordView { index, entry, body });
            index += 1;
        }
    }
    Ok(())
}

fn decompress<'a>(codec: Codec, block: &BlockHeader, stored: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
    let len = block.raw_len.get() as usize;
    let raw = match codec {
        Codec::None => return Ok(Cow::Borrowed(stored)),
        Codec::Lz4 => {
            let mut raw = vec![0; len];
            let got = lz4_flex::block::decompress_into(stored, &mut raw);
            raw.truncate(got.map_err(|error| format!("LZ4: {error}"))?);
            raw
        }
        Codec::Zstd => zstd::bulk::decompress(stored, len).map_err(|error| format!("Zstandard: {error}"))?,
    };
    if raw.len() == len {
        Ok(Cow::Owned(raw))
    } else {
        Err(format!("a block of {len} bytes has {} once decompressed", raw.len()))
    }
}
