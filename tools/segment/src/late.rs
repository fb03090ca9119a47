//! What becomes visible late: halves of transactions, delays, and how they end. The tables that recovery would rebuild,
//! and what single frames say of it.

use crate::directory::Checkpoint;
use crate::group::FrameView;
use crate::groups::GroupState;
use ringmq_format::checkpoint::{
    BodyItem, ChunkKind, EndedTimerItem, EndedTransactionItem, PendingItem, PositionItem, TransactionItem,
};
use ringmq_format::consumer_group::ConsumerGroup;
use ringmq_format::cursor::{CursorChange, CursorKey, decode_acks, decode_cursors};
use ringmq_format::frame::{Frame, FrameHeader, FrameKind};
use ringmq_format::late::{Bind, BindReason, Late as Fields, Mark, parse_timers};
use ringmq_format::limits::{CHECKPOINT_CHUNK_TARGET, FRAME_HEADER_SIZE};
use ringmq_format::record::{FrameBuilder, ProducerStamp, Record, properties};
use ringmq_format::{GroupId, Lsn, Offset, PartitionId};
use std::collections::BTreeMap;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A half or a delay that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its transaction; 0 for a delay.
    pub txn: u128,
    /// LSN at which it is now.
    pub at: Lsn,
    /// Due time, Unix milliseconds; 0 for none.
    pub due_ms: i64,
    /// Partition for which it is.
    pub partition: u32,
    /// Bytes of its frame.
    pub len: u32,
    /// Records.
    pub count: u32,
    /// Payload checksum of its frame.
    pub payload_crc: u32,
}

/// A transaction that is not over.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// The producer group that answers checks.
    pub group: String,
    /// When its first half was stored here, or its coordinator first spoke of it.
    pub since_ms: i64,
    /// Time to its first check.
    pub check_after_ms: u32,
    /// Checks that were handed over.
    pub attempts: u16,
    /// It is asked no more.
    pub parked: bool,
    /// When its coordinator decided to commit it; 0 if not.
    pub decided_ms: i64,
    /// Shards of the decision.
    pub participants: u64,
    /// Halves and positions of the decision.
    pub decided: (u32, u32),
    /// Positions of groups that take effect with it.
    pub positions: Vec<PositionItem>,
}

/// Tables of one shard.
#[derive(Clone, Debug, Default)]
pub struct LateState {
    /// Halves and delays by identity.
    pub waiting: BTreeMap<u64, Waiting>,
    /// Transactions by id.
    pub txns: BTreeMap<u128, Txn>,
    /// Identities of the halves of each.
    halves: BTreeMap<u128, Vec<u64>>,
    /// Consumer groups and their positions.
    pub groups: GroupState,
    /// Bodies that are not where they were stored first.
    pub moved: BTreeMap<u64, Lsn>,
    /// Delays that ended: when, and whether they were delivered.
    pub ended_timers: BTreeMap<u64, (i64, bool)>,
    /// Transactions that ended: when, whether committed, halves, positions.
    pub ended_txns: BTreeMap<u128, (i64, bool, u32, u32)>,
}

fn take<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(rest: &mut &'a [u8]) -> Option<&'a T> {
    let (item, behind) = T::ref_from_prefix(rest).ok()?;
    *rest = behind;
    Some(item)
}

impl LateState {
    /// Nothing waits and nothing ended lately.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
            && self.txns.is_empty()
            && self.ended_timers.is_empty()
            && self.ended_txns.is_empty()
    }

    /// What a checkpoint says.
    pub fn restore(&mut self, checkpoint: &Checkpoint) {
        for chunk in checkpoint.chunks() {
            self.restore_items(chunk.kind, chunk.items, chunk.payload);
        }
    }

    /// Items of one chunk; those of other kinds are passed over.
    pub fn restore_items(&mut self, kind: ChunkKind, items: u32, mut rest: &[u8]) {
        self.groups.restore(kind, items, rest);
        for _ in 0..items {
            if self.restore_item(kind, &mut rest).is_none() {
                return;
            }
        }
    }

    fn restore_item(&mut self, kind: ChunkKind, rest: &mut &[u8]) -> Option<()> {
        match kind {
            ChunkKind::Pending => {
                let item: &PendingItem = take(rest)?;
                let waiting = Waiting {
                    txn: item.txn.get(),
                    at: Lsn(item.at.get()),
                    due_ms: item.due_ms.get(),
                    partition: item.partition.get(),
                    len: item.len.get(),
                    count: item.count.get(),
                    payload_crc: item.payload_crc.get(),
                };
                self.insert(item.identity.get(), waiting);
            }
            ChunkKind::Transactions => {
                let item: &TransactionItem = take(rest)?;
                let (group, behind) = rest.split_at_checked(usize::from(item.group_len))?;
                *rest = behind;
                let mut positions = Vec::new();
                for _ in 0..item.positions.get() {
                    positions.push(*take::<PositionItem>(rest)?);
                }
                let txn = Txn {
                    group: String::from_utf8_lossy(group).into_owned(),
                    since_ms: item.since_ms.get(),
                    check_after_ms: item.check_after_ms.get(),
                    attempts: item.attempts.get(),
                    parked: item.parked == 1,
                    decided_ms: item.decided_ms.get(),
                    participants: item.participants.get(),
                    decided: (item.decided_halves.get(), item.decided_positions.get()),
                    positions,
                };
                self.txns.insert(item.txn.get(), txn);
            }
            ChunkKind::Bodies => {
                let item: &BodyItem = take(rest)?;
                self.moved.insert(item.identity.get(), Lsn(item.at.get()));
            }
            ChunkKind::EndedTimers => {
                let item: &EndedTimerItem = take(rest)?;
                self.ended_timers.insert(item.identity.get(), (item.time_ms.get(), item.end == 1));
            }
            ChunkKind::EndedTransactions => {
                let item: &EndedTransactionItem = take(rest)?;
                let end = (item.time_ms.get(), item.end == 1, item.halves.get(), item.positions.get());
                self.ended_txns.insert(item.txn.get(), end);
            }
            _ => return None,
        }
        Some(())
    }

    /// As chunks of items of a checkpoint, with each body where `at` says; those that it does not know are left out.
    pub fn items(&self, at: &BTreeMap<u64, Lsn>) -> Vec<(ChunkKind, u32, Vec<u8>)> {
        let mut chunks: Vec<(ChunkKind, u32, Vec<u8>)> = Vec::new();
        let mut put = |kind: ChunkKind, parts: &[&[u8]]| {
            let open =
                chunks.last_mut().filter(|last| last.0 == kind && last.2.len() < CHECKPOINT_CHUNK_TARGET);
            let chunk = match open {
                Some(open) => open,
                None => {
                    chunks.push((kind, 0, Vec::new()));
                    let last = chunks.len() - 1;
                    &mut chunks[last]
                }
            };
            chunk.1 += 1;
            parts.iter().for_each(|part| chunk.2.extend_from_slice(part));
        };
        for (identity, waiting) in &self.waiting {
            let Some(place) = at.get(identity) else { continue };
            let mut item = PendingItem::new_zeroed();
            item.txn = waiting.txn.into();
            item.identity = (*identity).into();
            item.at = place.0.into();
            item.due_ms = waiting.due_ms.into();
            item.partition = waiting.partition.into();
            item.len = waiting.len.into();
            item.count = waiting.count.into();
            item.payload_crc = waiting.payload_crc.into();
            put(ChunkKind::Pending, &[item.as_bytes()]);
        }
        for (id, txn) in &self.txns {
            let mut item = TransactionItem::new_zeroed();
            item.txn = (*id).into();
            item.since_ms = txn.since_ms.into();
            item.decided_ms = txn.decided_ms.into();
            item.participants = txn.participants.into();
            item.decided_halves = txn.decided.0.into();
            item.decided_positions = txn.decided.1.into();
            item.check_after_ms = txn.check_after_ms.into();
            item.positions = (txn.positions.len() as u32).into();
            item.attempts = txn.attempts.into();
            item.parked = u8::from(txn.parked);
            item.group_len = txn.group.len() as u8;
            put(ChunkKind::Transactions, &[item.as_bytes(), txn.group.as_bytes(), txn.positions.as_bytes()]);
        }
        for (identity, (time, delivered)) in &self.ended_timers {
            let mut item = EndedTimerItem::new_zeroed();
            (item.identity, item.time_ms) = ((*identity).into(), (*time).into());
            item.end = if *delivered { 1 } else { 2 };
            put(ChunkKind::EndedTimers, &[item.as_bytes()]);
        }
        for (id, (time, committed, halves, positions)) in &self.ended_txns {
            let mut item = EndedTransactionItem::new_zeroed();
            (item.txn, item.time_ms) = ((*id).into(), (*time).into());
            (item.halves, item.positions) = ((*halves).into(), (*positions).into());
            item.end = if *committed { 1 } else { 2 };
            put(ChunkKind::EndedTransactions, &[item.as_bytes()]);
        }
        chunks.extend(self.groups.items());
        chunks
    }

    /// Where each body is now, by identity.
    pub fn places(&self) -> BTreeMap<u64, Lsn> {
        self.waiting.iter().map(|(identity, waiting)| (*identity, waiting.at)).collect()
    }

    /// A frame of the log, in its order. One whose payload is damaged counts only as far as its header goes.
    pub fn take(&mut self, view: &FrameView<'_>) {
        let header = &view.header;
        let (kind, aux) = (header.kind(), header.aux.get());
        if matches!(kind, FrameKind::Half | FrameKind::Delay | FrameKind::Bound) && aux != 0 {
            self.moved.insert(aux, view.lsn);
            if let Some(waiting) = self.waiting.get_mut(&aux) {
                waiting.at = view.lsn;
            }
            return;
        }
        let Some(frame) = view.frame() else { return };
        match kind {
            FrameKind::Half | FrameKind::Delay => {
                let Ok(late) = Fields::parse(&frame) else { return };
                let waiting = Waiting {
                    txn: late.txn,
                    at: view.lsn,
                    due_ms: late.due_ms,
                    partition: header.partition.get(),
                    len: header.len.get(),
                    count: header.count.get(),
                    payload_crc: header.payload_crc.get(),
                };
                self.insert(view.lsn.0, waiting);
                if late.txn != 0 {
                    let known = self.txns.contains_key(&late.txn);
                    let txn = self.txn(late.txn, late.group, header.timestamp.get());
                    if !known {
                        txn.check_after_ms = late.check_after_ms;
                    }
                }
            }
            FrameKind::Bind => {
                let Ok(bind) = Bind::parse(&frame) else { return };
                if matches!(bind.reason, BindReason::Commit | BindReason::Due) {
                    self.waiting.remove(&bind.target.0);
                }
                if bind.reason == BindReason::Due {
                    self.ended_timers.insert(bind.target.0, (header.timestamp.get(), true));
                }
            }
            FrameKind::Timer => {
                for item in parse_timers(&frame).unwrap_or_default() {
                    let (identity, due) = (item.identity.get(), item.due_ms.get());
                    match self.waiting.get_mut(&identity).filter(|waiting| waiting.txn == 0) {
                        Some(waiting) if due > 0 => waiting.due_ms = due,
                        Some(_) => {
                            self.waiting.remove(&identity);
                            self.ended_timers.insert(identity, (item.time_ms.get(), false));
                        }
                        None => {}
                    }
                }
            }
            FrameKind::Group | FrameKind::Cursor | FrameKind::Ack => {
                if let Some((id, changes)) = self.groups.take(view.lsn, &frame) {
                    // They take effect with their transaction.
                    let txn = self.txn(id, "", i64::MAX);
                    txn.positions.extend(changes.iter().map(position_item));
                }
            }
            _ => {
                if let Ok(mark) = Mark::parse(&frame) {
                    self.mark(kind, &mark, view.lsn);
                }
            }
        }
    }

    fn insert(&mut self, identity: u64, waiting: Waiting) {
        if waiting.txn != 0 {
            self.halves.entry(waiting.txn).or_default().push(identity);
        }
        self.waiting.insert(identity, waiting);
    }

    fn txn(&mut self, id: u128, group: &str, time_ms: i64) -> &mut Txn {
        let txn = self.txns.entry(id).or_insert_with(|| Txn { since_ms: i64::MAX, ..Txn::default() });
        if txn.group.is_empty() {
            group.clone_into(&mut txn.group);
        }
        txn.since_ms = txn.since_ms.min(time_ms);
        txn
    }

    fn mark(&mut self, kind: FrameKind, mark: &Mark<'_>, lsn: Lsn) {
        let end = |committed| (mark.time_ms, committed, mark.halves, mark.positions);
        match kind {
            FrameKind::Commit | FrameKind::Apply | FrameKind::Abort => {
                let committed = kind != FrameKind::Abort;
                self.ended_txns.insert(mark.txn, end(committed));
                for identity in self.halves.remove(&mark.txn).unwrap_or_default() {
                    let Some(mut half) = self.waiting.remove(&identity) else { continue };
                    if committed && half.due_ms > 0 {
                        half.txn = 0;
                        self.waiting.insert(identity, half);
                    }
                }
                if let Some(txn) = self.txns.get_mut(&mark.txn) {
                    for item in txn.positions.drain(..).filter(|_| committed) {
                        self.groups.set(lsn, &position_of(&item));
                    }
                    if txn.decided_ms == 0 {
                        self.txns.remove(&mark.txn);
                    }
                }
            }
            FrameKind::Decision => {
                self.ended_txns.insert(mark.txn, end(true));
                let txn = self.txn(mark.txn, mark.group, mark.time_ms);
                (txn.decided_ms, txn.participants) = (mark.time_ms, mark.participants);
                txn.decided = (mark.halves, mark.positions);
            }
            FrameKind::Done => {
                let open = self.halves.contains_key(&mark.txn);
                if let Some(txn) = self.txns.get_mut(&mark.txn) {
                    txn.decided_ms = 0;
                    if !open && txn.positions.is_empty() {
                        self.txns.remove(&mark.txn);
                    }
                }
            }
            FrameKind::Check => {
                let txn = self.txn(mark.txn, mark.group, mark.time_ms);
                (txn.attempts, txn.parked) = (mark.attempts, mark.parked);
            }
            _ => {}
        }
    }

    /// Where a body is now.
    pub fn locate(&self, identity: u64) -> Lsn {
        let waiting = self.waiting.get(&identity).map(|waiting| waiting.at);
        self.moved.get(&identity).copied().or(waiting).unwrap_or(Lsn(identity))
    }
}

fn position_item(change: &CursorChange) -> PositionItem {
    let mut item = PositionItem::new_zeroed();
    item.group = u64::from(change.key.group.0).into();
    item.instance = change.key.instance.into();
    item.offset = change.offset.map_or(u64::MAX, |offset| offset.0).into();
    item.partition = change.key.partition.0.into();
    item
}

fn position_of(item: &PositionItem) -> CursorChange {
    let (group, partition) = (GroupId(item.group.get() as u32), PartitionId(item.partition.get()));
    let offset = Some(Offset(item.offset.get())).filter(|offset| offset.0 != u64::MAX);
    CursorChange { key: CursorKey { group, partition, instance: item.instance.get() }, offset }
}

/// The transaction that a frame is part of, if it names one.
pub fn txn_of(view: &FrameView<'_>) -> Option<u128> {
    let extension = usize::from(view.header.extension_len.get());
    let from = match view.header.kind() {
        FrameKind::Half | FrameKind::Delay if extension >= 16 => FRAME_HEADER_SIZE,
        FrameKind::Commit
        | FrameKind::Abort
        | FrameKind::Decision
        | FrameKind::Apply
        | FrameKind::Done
        | FrameKind::Check => FRAME_HEADER_SIZE + extension,
        _ => return None,
    };
    let bytes = view.bytes.get(from..from + 16)?;
    Some(u128::from_le_bytes(bytes.try_into().ok()?)).filter(|txn| *txn != 0)
}

/// When what a frame says happened, Unix milliseconds; 0 if it does not say.
pub fn time_of(view: &FrameView<'_>) -> i64 {
    let Some(frame) = view.frame() else { return view.header.timestamp.get() };
    match view.header.kind() {
        FrameKind::Timer => {
            let items = parse_timers(&frame).unwrap_or_default();
            items.iter().map(|item| item.time_ms.get()).max().unwrap_or(0)
        }
        _ if txn_of(view).is_some() && view.header.timestamp.get() == 0 => {
            Mark::parse(&frame).map_or(0, |mark| mark.time_ms)
        }
        _ => view.header.timestamp.get(),
    }
}

/// Identity of the body that a frame is or names.
pub fn identity(view: &FrameView<'_>) -> u64 {
    match (view.header.kind(), view.header.aux.get()) {
        (FrameKind::Half | FrameKind::Delay, 0) => view.lsn.0,
        (_, identity) => identity,
    }
}

/// Why a BIND was made.
pub fn bind_of(view: &FrameView<'_>) -> Option<Bind> {
    Bind::parse(&view.frame()?).ok()
}

/// What a frame says beyond its header, for people.
pub fn details(view: &FrameView<'_>) -> Vec<(&'static str, String)> {
    let mut details = Vec::new();
    let Some(frame) = view.frame() else { return details };
    let mut say = |name, value: String| details.push((name, value));
    match view.header.kind() {
        FrameKind::Topic => {
            if let Ok(entry) = ringmq_format::catalogue::TopicEntry::take(&mut frame.payload()) {
                say("name", entry.name);
                say("partitions", entry.partitions.to_string());
                say("state", if entry.deleted { "deleted" } else { "live" }.to_owned());
            }
        }
        FrameKind::Half | FrameKind::Delay => {
            if let Ok(late) = Fields::parse(&frame) {
                if late.due_ms > 0 {
                    say("due_ms", late.due_ms.to_string());
                }
                if !late.group.is_empty() {
                    say("group", late.group.to_owned());
                }
            }
        }
        FrameKind::Bind => {
            if let Ok(bind) = Bind::parse(&frame) {
                say("target", bind.target.to_string());
                say("reason", format!("{:?}", bind.reason).to_lowercase());
                say("first_record", bind.first_record.to_string());
                if let Some((partition, offset)) = bind.origin {
                    say("origin", format!("partition id {partition} offset {offset}"));
                }
            }
        }
        FrameKind::Timer => {
            let items = parse_timers(&frame).unwrap_or_default();
            let said = items.iter().take(100).map(|item| match item.due_ms.get() {
                0 => format!("{} cancelled", item.identity.get()),
                due => format!("{} due_ms {due}", item.identity.get()),
            });
            say("timers", said.collect::<Vec<_>>().join(", "));
        }
        FrameKind::Group => {
            if let Ok(group) = ConsumerGroup::take(&mut frame.payload()) {
                say("group_id", group.group.to_string());
                say("name", group.name);
                say("state", if group.deleted { "deleted" } else { "live" }.to_owned());
            }
        }
        FrameKind::Cursor => {
            if let Ok((txn, entries)) = decode_cursors(frame.payload()) {
                if txn != 0 {
                    say("txn", format!("{txn:032x}"));
                }
                let said = entries.iter().take(100).map(|entry| {
                    let (group, partition) = (entry.group.get(), entry.partition.get());
                    format!("group {group} partition id {partition} at {}", entry.offset.get() as i64)
                });
                say("positions", said.collect::<Vec<_>>().join(", "));
            }
        }
        FrameKind::Ack => {
            let changes = decode_acks(frame.payload()).unwrap_or_default();
            let said = changes.iter().take(100).map(|change| {
                let (group, partition) = (change.group, change.partition);
                let (ranges, retries) = (change.ranges.len(), change.retries.len());
                format!(
                    "group {group} partition id {partition} below {}, {ranges} ranges, {retries} retries",
                    change.watermark
                )
            });
            say("acks", said.collect::<Vec<_>>().join(", "));
        }
        FrameKind::Commit
        | FrameKind::Abort
        | FrameKind::Decision
        | FrameKind::Apply
        | FrameKind::Done
        | FrameKind::Check => {
            if let Ok(mark) = Mark::parse(&frame) {
                say("halves", mark.halves.to_string());
                if mark.attempts > 0 {
                    say("attempts", mark.attempts.to_string());
                }
                if !mark.group.is_empty() {
                    say("group", mark.group.to_owned());
                }
            }
        }
        _ => {}
    }
    details
}

/// Records that were retried or acknowledged one by one by this frame, and positions behind them: what happened,
/// partition, first offset, behind the last.
pub fn touches(view: &FrameView<'_>) -> Vec<(String, u32, u64, u64)> {
    let Some(frame) = view.frame() else { return Vec::new() };
    let mut touched = Vec::new();
    match view.header.kind() {
        FrameKind::Ack => {
            for change in decode_acks(frame.payload()).unwrap_or_default() {
                let (group, partition) = (change.group, change.partition.0);
                let acked = change.ranges.iter().copied().chain([(Offset(0), change.watermark)]);
                touched.extend(
                    acked.map(|(from, to)| {
                        (format!("acknowledged by group {group}"), partition, from.0, to.0)
                    }),
                );
                touched.extend(change.retries.iter().map(|retry| {
                    let what = format!("failed delivery {} to group {group}", retry.attempt);
                    (what, partition, retry.offset.0, retry.offset.0 + 1)
                }));
            }
        }
        FrameKind::Cursor => {
            let entries = decode_cursors(frame.payload()).map_or(&[][..], |(_, entries)| entries);
            touched.extend(entries.iter().map(|entry| {
                let what = format!("passed by group {}", entry.group.get());
                (what, entry.partition.get(), 0, entry.offset.get())
            }));
        }
        _ => {}
    }
    touched
}

/// An ordinary frame of the records that a BIND gives offsets to: what a consumer would be given.
pub fn unbind(header: &FrameHeader, bind: &Bind, body: &Frame<'_>) -> Result<Vec<u8>, String> {
    let all = bind.first_record == 0 && bind.count == body.header.count.get();
    let payload = if all {
        body.payload().to_vec()
    } else {
        let mut builder = FrameBuilder::new(header.timestamp.get(), ringmq_format::limits::FRAME_SIZE_MAX);
        let wanted = bind.first_record..bind.first_record.saturating_add(bind.count);
        let mut failed = None;
        crate::records::for_each(body, true, &mut |record| {
            if !wanted.contains(&record.index) {
                return;
            }
            let props: Vec<(&[u8], &[u8])> = properties(record.entry.properties).collect();
            let entry = record.entry;
            let taken = Record {
                key: entry.key,
                tag: entry.tag,
                properties: &props,
                time_ms: entry.time_ms,
                body: &record.body,
            };
            if let Err(error) = builder.push(&taken) {
                failed = Some(error.to_string());
            }
        })?;
        if let Some(failed) = failed {
            return Err(failed);
        }
        if builder.count() != bind.count {
            return Err(format!("{} of {} records are in the body", builder.count(), bind.count));
        }
        let bytes =
            builder.finish(ProducerStamp::default(), ringmq_format::frame::Codec::None, &mut |_| None);
        bytes[FRAME_HEADER_SIZE..].to_vec()
    };
    let mut bytes = ringmq_format::frame::encode(FrameKind::Data, bind.count, &payload);
    if let Ok((new, _)) = FrameHeader::mut_from_prefix(bytes.as_mut_slice()) {
        new.codec = if all { body.header.codec } else { 0 };
        new.stamp(
            PartitionId(header.partition.get()),
            Offset(header.base_offset.get()),
            header.timestamp.get(),
        );
    }
    Ok(bytes)
}

/// A frame that waits, as a copy of itself: with its identity where that says so.
pub fn copy_of(view: &FrameView<'_>) -> Vec<u8> {
    let mut bytes = view.bytes.to_vec();
    let own = identity(view);
    if let Ok((header, _)) = FrameHeader::mut_from_prefix(bytes.as_mut_slice()) {
        header.aux = own.into();
        header.seal();
    }
    bytes
}
