//! Some records of a frame for one reader: which, and as which entries.

use super::rate::Rates;
use crate::filter::Filter;
use crate::planted::{Bug, Planted};
use crate::shard::ShardServer;
use ringmq_engine::shard::{Delivered, Fetched};
use ringmq_format::frame::{Codec, Frame};
use ringmq_format::record::{Payload, RecordEntry};
use ringmq_format::{GroupId, Offset, PartitionId};
use ringmq_protocol::FetchEntryHeader;
use ringmq_protocol::fetch::put_entry;

/// Frames up to this size are delivered whole: cutting costs more than it saves.
const CUT_MIN: usize = 1 << 10;
/// Entries after which an answer ends: one frame more may have as many again.
const ENTRIES_MAX: usize = ringmq_protocol::limits::FETCH_ENTRIES_MAX / 2;
/// Bytes of frames looked through in one go for a reader that wants few of their records.
const SCAN_BYTES: usize = 1 << 20;

const _: () = assert!(ringmq_format::limits::FRAME_RECORDS_MAX / 2 <= ENTRIES_MAX);

/// What a reader wants.
pub(in crate::shard) struct Wants<'a> {
    pub(super) filter: &'a Filter,
    /// Records that have been visible for so long are not delivered any more; 0: for ever.
    pub(super) ttl_ms: u64,
    pub(super) now_ms: i64,
    pub(super) planted: Planted,
}

impl Wants<'_> {
    pub(super) fn wants(&self, delivered: &Delivered, record: &RecordEntry<'_>) -> bool {
        let age_ms = self.now_ms.saturating_sub(delivered.visible_time);
        let is_over = self.ttl_ms > 0 && u64::try_from(age_ms).is_ok_and(|age| age >= self.ttl_ms);
        let drops = self.planted.has(Bug::FilterDrops) && delivered.base_offset.0 % 16 == 5;
        !is_over && !drops && self.filter.matches(record)
    }
}

/// Bytes of a record, as a group's rate counts them.
pub(super) fn record_size(record: &RecordEntry<'_>) -> usize {
    let len = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    record.body_len + len(record.key) + len(record.tag) + record.properties.len()
}

/// Appends the entries of those records, given by index in the frame. Answers how many entries.
pub(super) fn put_chosen(
    out: &mut Vec<u8>,
    delivered: &Delivered,
    frame: &Frame<'_>,
    payload: &Payload<'_>,
    chosen: &[u32],
) -> usize {
    if chosen.is_empty() {
        return 0;
    }
    let first = delivered.first_record;
    let header = |index: u32, place: u32, count: u32| {
        let offset = delivered.base_offset.0 + u64::from(index - first);
        FetchEntryHeader::new(offset, delivered.visible_time, place, count)
    };
    if chosen.len() == delivered.count as usize {
        put_entry(out, &header(first, first, delivered.count));
        out.extend_from_slice(frame.bytes);
        return 1;
    }
    let in_blocks = frame.header.codec() == Codec::None || payload.blocks().nth(1).is_some();
    let cuts =
        in_blocks && frame.bytes.len() > CUT_MIN && chosen.len() * 2 <= frame.header.count.get() as usize;
    let mut places = Vec::new();
    let slice =
        cuts.then(|| payload.cut(frame.header, &|index| chosen.binary_search(&index).is_ok(), &mut places));
    let places = if cuts { &places[..] } else { chosen };
    let bytes = slice.as_deref().unwrap_or(frame.bytes);
    let (mut at, mut entries) = (0, 0);
    while at < chosen.len() {
        let run = (at + 1..chosen.len())
            .take_while(|next| {
                let step = (next - at) as u32;
                chosen[*next] == chosen[at] + step && places[*next] == places[at] + step
            })
            .count()
            + 1;
        let entry = header(chosen[at], places[at], run as u32);
        if entries == 0 {
            put_entry(out, &entry);
            out.extend_from_slice(bytes);
        } else {
            put_entry(out, &entry.in_same_frame());
        }
        at += run;
        entries += 1;
    }
    entries
}

/// What came of reading for a group.
pub(in crate::shard) struct GroupFetched {
    pub(in crate::shard) fetched: Fetched,
    /// The group's rate is used up.
    pub(in crate::shard) starved: bool,
}

impl ShardServer {
    /// As `Shard::fetch`, for a group: what its filter, its time and its rate leave of the records from `from` on. The
    /// offset in the answer is where to go on.
    pub(in crate::shard) fn fetch_for_group(
        &mut self,
        group: GroupId,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
        (filter, rates): (&Filter, Rates),
        out: &mut Vec<u8>,
    ) -> GroupFetched {
        let start = out.len();
        let (ttl_ms, planted) = (self.ttl_ms(partition), self.options.planted);
        let wants = Wants { filter, ttl_ms, now_ms: self.ring.now().wall_ms, planted };
        let (mut next, mut scanned, mut entries) = (from, 0, 0);
        loop {
            let visible = self.shard.extent(partition).map_or(from, |extent| extent.visible);
            let mut purse = self.queues.purse(group);
            let (mut records_left, mut bytes_left) = (purse.records(rates), purse.bytes(rates));
            if records_left == 0 && next < visible {
                return GroupFetched { fetched: Fetched::Limit(next), starved: true };
            }
            let taken = out.len() - start;
            if scanned >= SCAN_BYTES || (taken > 0 && taken >= max_bytes) || entries >= ENTRIES_MAX {
                return GroupFetched { fetched: Fetched::Limit(next), starved: false };
            }
            let (mut spent, mut damaged, mut end) = ((0, 0), false, next);
            let fetched = self.shard.fetch(&self.ring, partition, next, 1, &mut |delivered, bytes| {
                scanned += bytes.len();
                let parsed = Frame::parse(bytes).and_then(|frame| Ok((frame, Payload::parse(&frame)?)));
                let Ok((frame, payload)) = parsed else {
                    damaged = true;
                    return;
                };
                let first = delivered.first_record as usize;
                let skip = next.0.saturating_sub(delivered.base_offset.0) as usize;
                let records = payload.entries().enumerate().skip(first).take(delivered.count as usize);
                let mut chosen = Vec::new();
                for (index, record) in records.skip(skip) {
                    if wants.wants(delivered, &record) {
                        if records_left == 0 || bytes_left == 0 {
                            break;
                        }
                        let size = record_size(&record);
                        records_left -= 1;
                        bytes_left = bytes_left.saturating_sub(size);
                        spent = (spent.0 + 1, spent.1 + size);
                        chosen.push(index as u32);
                    }
                    end = Offset(delivered.base_offset.0 + (index - first) as u64 + 1);
                }
                entries += put_chosen(out, delivered, &frame, &payload, &chosen);
            });
            purse.spend(rates, spent.0, spent.1);
            self.queues.set_purse(group, purse, rates);
            let at_hand = out.len() > start;
            match fetched {
                Fetched::Limit(to) | Fetched::AtEnd(to) if damaged => {
                    let fetched =
                        if at_hand { Fetched::Limit(next) } else { Fetched::Damaged { from: next, to } };
                    return GroupFetched { fetched, starved: false };
                }
                Fetched::Limit(to) => next = end.min(to),
                Fetched::AtEnd(to) if end < to => next = end,
                Fetched::AtEnd(to) => return GroupFetched { fetched: Fetched::AtEnd(to), starved: false },
                // What lies in front of it first.
                Fetched::Damaged { .. } if at_hand => {
                    return GroupFetched { fetched: Fetched::Limit(next), starved: false };
                }
                other => return GroupFetched { fetched: other, starved: false },
            }
        }
    }
}
