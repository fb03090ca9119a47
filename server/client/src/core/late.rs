//! Frames whose records become visible later: with a transaction (HALF), or at a due time (DELAY).

use bytes::Bytes;
use ringmq_format::checksum::crc32c;
use ringmq_format::frame::{FrameHeader, FrameKind};
use ringmq_format::limits::{FRAME_ALIGN, FRAME_HEADER_SIZE};
use std::sync::Arc;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// When records become visible, if not at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// The transaction; 0 for a delay without one.
    pub txn: u128,
    /// Due time, Unix milliseconds; 0 in a transaction: at its commit.
    pub due_ms: i64,
    /// Time to the first check of the transaction; 0 leaves it to the server.
    pub check_after_ms: u32,
    /// The producer group that answers checks; empty for a delay.
    pub group: Arc<str>,
    /// Nothing else goes into the frame: a delayed message is cancelled by frame.
    pub alone: bool,
}

impl Late {
    /// Bytes that it adds to a frame.
    pub fn size(&self) -> usize {
        32 + self.group.len().next_multiple_of(FRAME_ALIGN)
    }

    /// Whether records of both may share a frame.
    pub fn shares(&self, other: &Self) -> bool {
        !self.alone && self == other
    }

    /// A frame of records as one that is late.
    pub fn wrap(&self, frame: &[u8]) -> Bytes {
        let mut extension = Vec::with_capacity(self.size());
        extension.extend_from_slice(&self.txn.to_le_bytes());
        extension.extend_from_slice(&self.due_ms.to_le_bytes());
        extension.extend_from_slice(&self.check_after_ms.to_le_bytes());
        extension.extend_from_slice(&(self.group.len() as u16).to_le_bytes());
        extension.extend_from_slice(&[0; 2]);
        extension.extend_from_slice(self.group.as_bytes());
        extension.resize(self.size(), 0);
        let mut bytes = Vec::with_capacity(frame.len() + extension.len());
        bytes.extend_from_slice(&frame[..FRAME_HEADER_SIZE]);
        bytes.extend_from_slice(&extension);
        bytes.extend_from_slice(&frame[FRAME_HEADER_SIZE..]);
        let (len, crc) = (bytes.len() as u32, crc32c(&bytes[FRAME_HEADER_SIZE..]));
        if let Ok((header, _)) = FrameHeader::mut_from_prefix(bytes.as_mut_bytes()) {
            header.kind = if self.txn == 0 { FrameKind::Delay } else { FrameKind::Half } as u8;
            header.len = U32::new(len);
            header.extension_len = U16::new(extension.len() as u16);
            header.payload_crc = U32::new(crc);
            header.seal();
        }
        Bytes::from(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_format::frame::{Codec, Frame};
    use ringmq_format::record::{FrameBuilder, Payload, ProducerStamp, Record};

    #[test]
    fn a_late_frame_keeps_its_records() {
        let mut builder = FrameBuilder::new(0, 1 << 20);
        builder.push(&Record { body: b"body", key: Some(b"k"), ..Record::default() }).unwrap();
        let data = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
        for (txn, group, kind) in [(7u128, "payments", FrameKind::Half), (0, "", FrameKind::Delay)] {
            let late = Late { txn, due_ms: 5, check_after_ms: 3, group: Arc::from(group), alone: false };
            let bytes = late.wrap(&data);
            let frame = Frame::parse(&bytes).unwrap();
            frame.verify_payload().unwrap();
            assert_eq!((frame.header.kind(), bytes.len()), (kind, data.len() + late.size()));
            assert_eq!(frame.payload(), Frame::parse(&data).unwrap().payload());
            assert_eq!(Payload::parse(&frame).unwrap().entries().count(), 1);
            assert_eq!(&frame.extension()[..16], txn.to_le_bytes());
            assert_eq!(&frame.extension()[32..32 + group.len()], group.as_bytes());
        }
    }
}
