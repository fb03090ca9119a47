//! Frames of what becomes visible late: transactions, delays, binds.

use crate::group::FrameView;
use ringmq_format::frame::FrameKind;
use ringmq_format::limits::FRAME_HEADER_SIZE;

/// The transaction that a frame is part of: the first field of the extension of HALF and DELAY, and of the payload of
/// what ends a transaction. None if it names none.
pub fn txn_of(frame: &FrameView<'_>) -> Option<u128> {
    let extension = usize::from(frame.header.extension_len.get());
    let from = match frame.header.kind() {
        FrameKind::Half | FrameKind::Delay if extension >= 16 => FRAME_HEADER_SIZE,
        FrameKind::Commit | FrameKind::Abort | FrameKind::Decision | FrameKind::Apply | FrameKind::Done => {
            FRAME_HEADER_SIZE + extension
        }
        _ => return None,
    };
    let bytes = frame.bytes.get(from..from + 16)?;
    Some(u128::from_le_bytes(bytes.try_into().ok()?)).filter(|txn| *txn != 0)
}

/// What a frame of one of the other kinds says beyond its header, for people.
pub fn details(frame: &FrameView<'_>) -> Vec<(&'static str, String)> {
    let mut details = Vec::new();
    if frame.header.kind() == FrameKind::Topic
        && let Some(whole) = frame.frame()
        && let Ok(entry) = ringmq_format::catalogue::TopicEntry::take(&mut whole.payload())
    {
        details.push(("name", entry.name));
        details.push(("partitions", entry.partitions.to_string()));
        details.push(("state", if entry.deleted { "deleted" } else { "live" }.to_owned()));
    }
    details
}

/// Identity of a half or delayed message: of HALF and DELAY their own, of a BIND its target's.
pub fn identity(frame: &FrameView<'_>) -> u64 {
    match (frame.header.kind(), frame.header.aux.get()) {
        (FrameKind::Half | FrameKind::Delay, 0) => frame.lsn.0,
        (_, identity) => identity,
    }
}

/// Records that a CURSOR or ACK frame speaks of: what happened, partition, offset.
pub fn touches(_: &FrameView<'_>) -> Vec<(&'static str, u32, u64)> {
    Vec::new()
}
