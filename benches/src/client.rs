//! The client's cores, without sockets.

use bytes::Bytes;
use ringmq_client::core::connection::Stored;
use ringmq_client::core::decode::{ConsumedRecord, decode_frame};
use ringmq_client::core::producer::{Outgoing, ProducerCore, ProducerCoreConfig, ProducerIdentity};
use ringmq_client::{Codec, Record, limits};
use ringmq_format::limits::FRAME_SIZE_MAX;
use ringmq_protocol::FetchEntryHeader;
use std::collections::VecDeque;

/// A producer that batches as a program's does.
pub fn producer() -> ProducerCore {
    ProducerCore::new(ProducerCoreConfig {
        linger_us: 0,
        batch_bytes: limits::BATCH_BYTES,
        batch_records: limits::BATCH_RECORDS as u32,
        frame_size_max: FRAME_SIZE_MAX,
        codec: Codec::None,
        block_per_record: false,
        max_buffered_bytes: limits::BUFFERED_BYTES,
        retry_for_us: 10_000_000,
        identity: ProducerIdentity::new(7),
        seed: 7,
    })
}

/// Pushes records, takes the frames that are to be sent, and answers them as stored.
///
/// # Panics
/// If a record is refused, or a batch does not complete.
pub fn produce_and_settle(core: &mut ProducerCore, body: &[u8], records: u64) {
    let record = Record { body, ..Record::default() };
    for _ in 0..records {
        let pushed = core.push(1, 0, &record);
        assert!(pushed.is_ok(), "{pushed:?}");
    }
    let mut sends: Vec<Outgoing> = Vec::new();
    while !core.is_empty() {
        core.poll(1, &mut sends);
        assert!(!sends.is_empty(), "nothing is sent and something is left");
        for sent in sends.drain(..) {
            let stored = Stored { base_offset: 0, timestamp_ms: 1, duplicate: false };
            core.outcome(1, sent.batch, Ok(stored));
        }
        while core.next_completion().is_some() {}
    }
}

/// The entry of a frame with so many records at offset 0.
pub fn entry(records: u32) -> FetchEntryHeader {
    FetchEntryHeader::new(0, 1, 0, records)
}

/// Records of a frame; answers how many there are.
pub fn decode(entry: &FetchEntryHeader, bytes: &Bytes, out: &mut VecDeque<ConsumedRecord>) -> usize {
    match decode_frame(0, entry, bytes, 0, out) {
        Ok(()) => out.len(),
        Err(_) => 0,
    }
}
