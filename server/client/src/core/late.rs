//! Frames whose records become visible later: with a transaction (HALF), or at a due time (DELAY).

use bytes::Bytes;
use std::sync::Arc;

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
    fn fields(&self) -> ringmq_format::late::Late<'_> {
        let Self { txn, due_ms, check_after_ms, .. } = *self;
        ringmq_format::late::Late { txn, due_ms, check_after_ms, group: &self.group }
    }

    /// Bytes that it adds to a frame.
    pub fn size(&self) -> usize {
        self.fields().size()
    }

    /// Whether records of both may share a frame.
    pub fn shares(&self, other: &Self) -> bool {
        !self.alone && self == other
    }

    /// A frame of records as one that is late.
    pub fn wrap(&self, frame: &[u8]) -> Bytes {
        Bytes::from(self.fields().wrap(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_format::frame::{Codec, Frame, FrameKind};
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
