//! Positions of groups in the partitions of this shard: committed, claimed, asked for, reset.
//!
//! Invariants  P1  An answer that says "committed", and a position that is told, are durable.
//!             P2  Once a partition was claimed under a generation, or reset, an older owner neither commits there nor
//!                 pushes the position back.
//!             P3  A member's commit never lowers a position.
//! All positions that were committed in a turn are one frame of the log.

use super::registry::{GroupEvent, KnownGroup};
use super::work::FoundPositions;
use super::work::{Commit, FetchOffsets, GroupAnswer, GroupWork, Lag, Notice, Positions, Reset};
use crate::planted::Bug;
use crate::shard::mail::{Answer, Origin, Work};
use crate::shard::{Ack, AckTarget, Draining, ShardServer};
use ringmq_engine::cursors::Position;
use ringmq_engine::shard::{AppendError, CURSORS_PER_FRAME_MAX, Extent, NO_TIME, TimeLookup};
use ringmq_format::consumer_group::{GroupMode, GroupStart};
use ringmq_format::cursor::{AckChange, CursorChange, CursorKey};
use ringmq_format::{GroupId, Lsn, Offset, PartitionId};
use ringmq_protocol::group::FETCHED_COMMITTED;
use ringmq_protocol::{ErrorCode, FetchedOffset, GroupPosition, Outcome, ResetEntry};
use std::collections::{BTreeMap, VecDeque};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32, U64};

/// Sent to be tried again when the disk budget is reached.
const DISK_FULL_RETRY_MS: u32 = 1_000;
/// Positions of a group beyond which its lag over all partitions is not looked up on the disk,
const LAG_EXACT_MAX: usize = 4_096;
/// or not counted at all.
const LAG_MAX: usize = 65_536;

/// Who may commit in a partition.
#[derive(Clone, Copy, Debug, Default)]
struct Claim {
    generation: u64,
    /// The position was reset: whoever commits has to ask for it first.
    void: bool,
}

/// Positions that go into one frame.
#[derive(Debug, Default)]
struct Batch {
    txn: u128,
    changes: BTreeMap<CursorKey, Offset>,
    waiting: Vec<(Origin, Vec<(u32, Outcome)>)>,
}

/// What a shard keeps for positions in its partitions.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    batches: VecDeque<Batch>,
    claims: BTreeMap<CursorKey, Claim>,
}

impl Offsets {
    pub(super) fn count(&self) -> usize {
        self.batches.iter().map(|batch| batch.waiting.len()).sum()
    }

    pub(super) fn forget_group(&mut self, group: GroupId) {
        self.claims.retain(|key, _| key.group != group);
    }

    pub(super) fn forget_partitions(&mut self, gone: impl Fn(PartitionId) -> bool) {
        self.claims.retain(|key, _| !gone(key.partition));
    }

    fn waiting(&self, key: CursorKey) -> Option<Offset> {
        let batches = self.batches.iter().rev().filter(|batch| batch.txn == 0);
        batches.filter_map(|batch| batch.changes.get(&key)).next().copied()
    }
}

/// What a look-up has come to.
pub(in crate::shard) enum Found<T> {
    Is(T),
    /// Pages are on the way.
    Cold,
    Not(ErrorCode),
}

fn failed(code: ErrorCode) -> Outcome {
    Outcome::failed(code, if code == ErrorCode::DiskFull { DISK_FULL_RETRY_MS } else { 0 })
}

fn with_outcome(outcomes: &[(u32, Outcome)], code: ErrorCode) -> Vec<(u32, Outcome)> {
    let change =
        |(index, outcome): &(u32, Outcome)| (*index, if outcome.is_done() { failed(code) } else { *outcome });
    outcomes.iter().map(change).collect()
}

impl ShardServer {
    /// Answers when the log is durable up to `durable_at` (P1).
    fn answer_when_durable(
        &mut self,
        origin: Origin,
        durable_at: Lsn,
        durable: GroupAnswer,
        unknown: GroupAnswer,
    ) {
        if self.shard.durable() >= durable_at || self.options.planted.has(Bug::CommitBeforeDurable) {
            self.reply_group(origin, durable);
            return;
        }
        let boxed = |answer| Box::new(Answer::Group(answer));
        let target = AckTarget::Reply { origin, durable: boxed(durable), unknown: boxed(unknown) };
        self.acks.push_back(Ack { durable_at, target });
    }

    // -- committing ----------------------------------------------------------------------------------------

    pub(super) fn commit_offsets(&mut self, origin: Origin, commit: &Commit) {
        let shards = self.mail.shards();
        let known =
            self.groups.registry.get(commit.group, shards).map(|known| (known.epoch, known.is_queue()));
        let mut outcomes = Vec::with_capacity(commit.positions.len());
        let mut changes: Vec<(CursorKey, Offset)> = Vec::new();
        let mut durable_at = Lsn(0);
        for (index, partition, offset) in &commit.positions {
            let key = CursorKey { group: commit.group, partition: *partition, instance: commit.instance };
            let checked = known.and_then(|(epoch, is_queue)| match is_queue {
                true => Err(ErrorCode::NotPermitted), // its positions follow from acks
                false => self.may_commit(commit, key, *offset, epoch),
            });
            let outcome = match checked {
                Err(code) => failed(code),
                Ok(()) => {
                    let committed = self.shard.cursors().position(key);
                    if commit.member == 0 || commit.txn != 0 || self.options.planted.has(Bug::CommitGoesBack)
                    {
                        // A transaction's position counts when it takes effect.
                        changes.push((key, *offset));
                    } else if let Some(waiting) = self.groups.offsets.waiting(key) {
                        // P3; said again, so that the answer waits for it (P1).
                        changes.push((key, waiting.max(*offset)));
                    } else if let Some(position) = committed.filter(|position| position.offset >= *offset) {
                        durable_at = durable_at.max(position.lsn.plus(1)); // P3
                    } else {
                        changes.push((key, *offset));
                    }
                    Outcome::DONE
                }
            };
            outcomes.push((*index, outcome));
        }
        if changes.is_empty() {
            let unknown = with_outcome(&outcomes, ErrorCode::OutcomeUnknown);
            let answer = GroupAnswer::Committed;
            self.answer_when_durable(origin, durable_at, answer(outcomes), answer(unknown));
            return;
        }
        let fits = |batch: &&mut Batch| {
            batch.txn == commit.txn && batch.changes.len() + changes.len() <= CURSORS_PER_FRAME_MAX
        };
        let batches = &mut self.groups.offsets.batches;
        match batches.back_mut().filter(fits) {
            Some(batch) => {
                batch.changes.extend(changes);
                batch.waiting.push((origin, outcomes));
            }
            None => batches.push_back(Batch {
                txn: commit.txn,
                changes: changes.into_iter().collect(),
                waiting: vec![(origin, outcomes)],
            }),
        }
    }

    fn may_commit(
        &self,
        commit: &Commit,
        key: CursorKey,
        offset: Offset,
        epoch: u32,
    ) -> Result<(), ErrorCode> {
        let extent = self.shard.extent(key.partition).ok_or_else(|| self.no_such_partition())?;
        // P2
        let claim = self.groups.offsets.claims.get(&key).copied().unwrap_or_default();
        let of_this_life = commit.member == 0 || commit.generation >> 32 == u64::from(epoch);
        let is_stale = !of_this_life || claim.void || claim.generation > commit.generation;
        if is_stale && !self.options.planted.has(Bug::StaleCommitTaken) {
            return Err(ErrorCode::StaleGeneration);
        }
        if offset > extent.visible {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        Ok(())
    }

    /// Logs what was committed since the last time, as far as the log has room. Answers whether all of it is.
    pub(super) fn flush_offsets(&mut self) -> bool {
        while let Some(batch) = self.groups.offsets.batches.pop_front() {
            let changes: Vec<CursorChange> = batch
                .changes
                .iter()
                .map(|(key, offset)| CursorChange { key: *key, offset: Some(*offset) })
                .collect();
            let result = match batch.txn == 0 || self.takes_for_transaction(batch.txn) {
                true => self.shard.log_cursors(&mut self.ring, batch.txn, &changes),
                false => Err(AppendError::TransactionEnding),
            };
            let code = match result {
                Ok(durable_at) => {
                    if batch.txn != 0 {
                        self.tell_of_transaction(batch.txn, durable_at);
                    }
                    for (origin, outcomes) in batch.waiting {
                        let unknown = with_outcome(&outcomes, ErrorCode::OutcomeUnknown);
                        let answer = GroupAnswer::Committed;
                        self.answer_when_durable(origin, durable_at, answer(outcomes), answer(unknown));
                    }
                    continue;
                }
                Err(AppendError::Busy) if self.draining == Draining::No || self.draining_connections() => {
                    self.groups.offsets.batches.push_front(batch);
                    return false;
                }
                Err(AppendError::Busy) => ErrorCode::ShuttingDown,
                Err(AppendError::DiskFull) => ErrorCode::DiskFull,
                Err(AppendError::Poisoned) => ErrorCode::ShardPoisoned,
                Err(AppendError::TransactionEnded) => ErrorCode::TransactionEnded,
                Err(AppendError::TransactionEnding) => ErrorCode::Throttled,
                Err(AppendError::TransactionTooLarge) => ErrorCode::TransactionTooLarge,
                Err(_) => ErrorCode::Internal,
            };
            for (origin, outcomes) in batch.waiting {
                self.reply_group(origin, GroupAnswer::Committed(with_outcome(&outcomes, code)));
            }
        }
        true
    }

    /// Logs one change now; the positions that came before it are logged.
    fn log_change(&mut self, change: CursorChange) -> Result<Lsn, AppendError> {
        self.shard.log_cursors(&mut self.ring, 0, &[change])
    }

    // -- asking --------------------------------------------------------------------------------------------

    pub(super) fn fetch_offsets(&mut self, origin: Origin, fetch: Box<FetchOffsets>) {
        // What was committed before counts, and a claim comes behind it.
        if !self.flush_offsets() {
            self.deferred.push_back((origin, Work::Group(GroupWork::FetchOffsets(fetch))));
            return;
        }
        let shards = self.mail.shards();
        let known = self.groups.registry.get(fetch.group, shards);
        let known = known.map(|known| (known.epoch, known.entry.options.start));
        let mut found = Vec::with_capacity(fetch.partitions.len());
        let mut durable_at = Lsn(0);
        for (index, partition) in &fetch.partitions {
            let one = match known {
                Ok((epoch, start)) => self.fetch_offset(&fetch, *partition, epoch, start, &mut durable_at),
                Err(code) => Found::Not(code),
            };
            match one {
                Found::Is(one) => found.push((*index, one)),
                Found::Not(code) => {
                    let retry = if code == ErrorCode::DiskFull { DISK_FULL_RETRY_MS } else { 0 };
                    found.push((*index, FetchedOffset::failed(code, retry)));
                }
                Found::Cold => {
                    self.readers.park(origin, Work::Group(GroupWork::FetchOffsets(fetch)));
                    return;
                }
            }
        }
        let unknown = |(index, one): &(u32, FetchedOffset)| match one.code.get() {
            0 => (*index, FetchedOffset::failed(ErrorCode::OutcomeUnknown, 0)),
            _ => (*index, *one),
        };
        let unknown = GroupAnswer::Fetched(found.iter().map(unknown).collect());
        self.answer_when_durable(origin, durable_at, GroupAnswer::Fetched(found), unknown);
    }

    fn fetch_offset(
        &mut self,
        fetch: &FetchOffsets,
        partition: PartitionId,
        epoch: u32,
        start: GroupStart,
        durable_at: &mut Lsn,
    ) -> Found<FetchedOffset> {
        let key = CursorKey { group: fetch.group, partition, instance: fetch.instance };
        let Some(extent) = self.shard.extent(partition) else { return Found::Not(self.no_such_partition()) };
        let claim = self.groups.offsets.claims.get(&key).copied().unwrap_or_default();
        let stale = fetch.generation >> 32 != u64::from(epoch) || claim.generation > fetch.generation;
        if fetch.claim && stale {
            return Found::Not(ErrorCode::StaleGeneration); // P2
        }
        let mut committed = self.shard.cursors().position(key);
        let mut offset = committed.map(|position| position.offset);
        if offset.is_none() {
            let starts = match self.start_at(partition, extent, start) {
                Found::Is(starts) => starts,
                Found::Cold => return Found::Cold,
                Found::Not(code) => return Found::Not(code),
            };
            offset = Some(starts);
            // A start that moves is held fast, or what comes until the first commit could be left out.
            let holds_fast = fetch.member != 0 && (fetch.claim || fetch.instance != 0);
            if holds_fast && matches!(start, GroupStart::Latest) {
                match self.log_change(CursorChange { key, offset }) {
                    Ok(_) => committed = self.shard.cursors().position(key),
                    Err(AppendError::Poisoned) => return Found::Not(ErrorCode::ShardPoisoned),
                    Err(AppendError::DiskFull) => return Found::Not(ErrorCode::DiskFull),
                    Err(_) => return Found::Not(ErrorCode::Throttled),
                }
            }
        }
        let asks_for_itself = fetch.claim || (fetch.instance != 0 && fetch.member != 0);
        if fetch.claim {
            self.groups.offsets.claims.insert(key, Claim { generation: fetch.generation, void: false });
        } else if asks_for_itself && claim.void {
            self.groups.offsets.claims.remove(&key);
        }
        if let Some(position) = committed {
            *durable_at = (*durable_at).max(position.lsn.plus(1)); // P1
        }
        let generation = if fetch.claim { fetch.generation } else { claim.generation };
        Found::Is(FetchedOffset {
            flags: U16::new(if committed.is_some() { FETCHED_COMMITTED } else { 0 }),
            offset: U64::new(offset.unwrap_or(extent.start).0),
            generation: U64::new(generation),
            visible_end: U64::new(extent.visible.0),
            ..FetchedOffset::new_zeroed()
        })
    }

    /// Where something begins in a partition.
    pub(in crate::shard) fn start_at(
        &mut self,
        partition: PartitionId,
        extent: Extent,
        start: GroupStart,
    ) -> Found<Offset> {
        Found::Is(match start {
            GroupStart::Earliest => extent.start,
            GroupStart::Latest => extent.visible,
            GroupStart::Offset(offset) => Offset(offset).clamp(extent.start, extent.visible),
            GroupStart::Time(time_ms) => match self.shard.offset_at_time(&self.ring, partition, time_ms) {
                TimeLookup::At(offset, _) => offset.clamp(extent.start, extent.visible),
                TimeLookup::Cold => return Found::Cold,
                TimeLookup::Damaged => return Found::Not(ErrorCode::Damaged),
                TimeLookup::UnknownPartition => return Found::Not(self.no_such_partition()),
            },
        })
    }

    // -- looking -------------------------------------------------------------------------------------------

    /// Records that are not consumed, and since when the first of them is visible. `patient`: waits for the disk.
    fn lag_of(&mut self, key: CursorKey, watermark: Offset, patient: bool) -> Found<(u64, u64)> {
        let Some(extent) = self.shard.extent(key.partition) else {
            return Found::Not(ErrorCode::UnknownTopic);
        };
        let from = watermark.max(extent.start);
        let acked = match key.instance {
            0 => self.shard.cursors().acks(key.group, key.partition).map_or(0, |acks| acks.acked()),
            _ => 0,
        };
        let records = extent.visible.0.saturating_sub(from.0).saturating_sub(acked);
        if records == 0 {
            return Found::Is((0, 0));
        }
        let now_ms = self.ring.now().wall_ms;
        let ms = match self.shard.visible_since(&self.ring, key.partition, from) {
            TimeLookup::At(_, NO_TIME) => 0,
            TimeLookup::At(_, time) => u64::try_from(now_ms.saturating_sub(time)).unwrap_or(0),
            TimeLookup::Cold if patient => return Found::Cold,
            TimeLookup::Cold | TimeLookup::Damaged | TimeLookup::UnknownPartition => u64::MAX,
        };
        Found::Is((records, ms))
    }

    /// Partitions of this shard in which a group stands or would start, behind `after`, with the offset of its
    /// position; at most `limit`.
    fn standing(
        &self,
        group: GroupId,
        after: Option<(PartitionId, u64)>,
        limit: usize,
    ) -> BTreeMap<(PartitionId, u64), Option<Offset>> {
        let shards = self.mail.shards();
        let positions = self.shard.cursors().of_group(group, after);
        let positions =
            positions.filter(|(key, _)| !self.is_own_dead_letters(group, key.partition)).take(limit);
        let mut standing: BTreeMap<_, _> =
            positions.map(|(key, position)| ((key.partition, key.instance), Some(position.offset))).collect();
        let Ok(known) = self.groups.registry.get(group, shards) else { return standing };
        if known.entry.mode != Some(GroupMode::Broadcast) {
            let mut more = 0;
            for one in &known.entry.subscriptions {
                let Some(topic) = self.topics.by_name(&one.topic) else { continue };
                let own = topic.partition_ids().filter(|id| id.shard(shards).0 == self.own);
                for partition in own.filter(|id| after.is_none_or(|after| (*id, 0) > after)) {
                    standing.entry((partition, 0)).or_insert(None);
                    more += 1;
                    if more >= limit {
                        break;
                    }
                }
                more = 0;
            }
        }
        while standing.len() > limit {
            standing.pop_last();
        }
        standing
    }

    /// A group stands in its own dead letters too, without consuming them: what was replayed counts as consumed there.
    fn is_own_dead_letters(&self, group: GroupId, partition: PartitionId) -> bool {
        let Some(topic) = self.topics.by_partition(partition) else { return false };
        let Some(name) = topic.name.strip_prefix("%DLQ%") else { return false };
        let known = self.groups.registry.get(group, self.mail.shards());
        known.is_ok_and(|known| known.entry.name == name && known.filter(&topic.name).is_none())
    }

    fn watermark_of(
        &mut self,
        group: GroupId,
        partition: PartitionId,
        offset: Option<Offset>,
    ) -> Found<Offset> {
        if let Some(offset) = offset {
            return Found::Is(offset);
        }
        let start =
            self.groups.registry.get(group, self.mail.shards()).map(|known| known.entry.options.start);
        match (self.shard.extent(partition), start) {
            (Some(extent), Ok(start)) => self.start_at(partition, extent, start),
            _ => Found::Not(ErrorCode::UnknownTopic),
        }
    }

    pub(super) fn find_positions(&mut self, origin: Origin, asked: Box<Positions>) {
        let mut standing = self.standing(asked.group, asked.after, asked.limit + 1);
        let mut reported = BTreeMap::new();
        for (partition, member, offset) in &asked.reported {
            if partition.shard(self.mail.shards()).0 == self.own {
                standing.insert((*partition, *member), Some(Offset(*offset)));
                reported.insert((*partition, *member), *member);
            }
        }
        let mut rows = Vec::new();
        for ((partition, instance), offset) in standing {
            let key = CursorKey { group: asked.group, partition, instance };
            let watermark = match self.watermark_of(asked.group, partition, offset) {
                Found::Is(watermark) => watermark,
                Found::Not(_) => continue,
                Found::Cold => return self.readers.park(origin, Work::Group(GroupWork::Positions(asked))),
            };
            let (records, ms) = match self.lag_of(key, watermark, true) {
                Found::Is(lag) => lag,
                Found::Not(_) => continue,
                Found::Cold => return self.readers.park(origin, Work::Group(GroupWork::Positions(asked))),
            };
            let Some(topic) = self.topics.by_partition(partition) else { continue };
            let acks = (instance == 0).then(|| self.shard.cursors().acks(asked.group, partition)).flatten();
            let (in_flight, dead_letters) = self.queue_counts(asked.group, partition);
            let row = GroupPosition {
                instance: U64::new(instance),
                topic: U32::new(topic.topic.0),
                partition: U32::new(partition.0 - topic.first_partition.0),
                watermark: U64::new(watermark.0),
                visible_end: U64::new(self.shard.extent(partition).map_or(0, |extent| extent.visible.0)),
                lag_records: U64::new(records),
                lag_ms: U64::new(ms),
                acked_above: U64::new(acks.map_or(0, |acks| acks.acked())),
                member: U64::new(reported.get(&(partition, instance)).copied().unwrap_or(0)),
                generation: U64::new(
                    self.groups.offsets.claims.get(&key).map_or(0, |claim| claim.generation),
                ),
                in_flight: U32::new(in_flight),
                retries: U32::new(acks.map_or(0, |acks| acks.retry_count() as u32)),
                dead_letters: U64::new(dead_letters),
            };
            rows.push((partition, instance, row));
        }
        let lag = match self.survey(asked.group) {
            Found::Is(lag) => lag,
            _ => return self.readers.park(origin, Work::Group(GroupWork::Positions(asked))),
        };
        self.reply_group(origin, GroupAnswer::Positions(Box::new(FoundPositions { rows, lag })));
    }

    /// How far a group is behind, over all partitions of this shard.
    fn survey(&mut self, group: GroupId) -> Found<Lag> {
        let standing = self.standing(group, None, LAG_MAX + 1);
        let mut lag = Lag::default();
        if standing.len() > LAG_MAX {
            (lag.records, lag.ms) = (u64::MAX, u64::MAX);
        }
        let patient = standing.len() <= LAG_EXACT_MAX;
        for ((partition, instance), offset) in standing {
            let key = CursorKey { group, partition, instance };
            if let Some(topic) = self.topics.by_partition(partition) {
                lag.topics.insert(topic.topic);
            }
            let watermark = match self.watermark_of(group, partition, offset) {
                Found::Is(watermark) => watermark,
                Found::Cold => return Found::Cold,
                Found::Not(_) => continue,
            };
            match self.lag_of(key, watermark, patient) {
                Found::Is((records, ms)) => lag.add(&Lag { topics: [].into(), records, ms }),
                Found::Cold => return Found::Cold,
                Found::Not(_) => {}
            }
        }
        Found::Is(lag)
    }

    pub(super) fn find_lags(&mut self, origin: Origin, groups: Vec<GroupId>) {
        let mut lags = Vec::with_capacity(groups.len());
        for group in &groups {
            match self.survey(*group) {
                Found::Is(lag) => lags.push(lag),
                _ => return self.readers.park(origin, Work::Group(GroupWork::Lags { groups })),
            }
        }
        self.reply_group(origin, GroupAnswer::Lags(lags));
    }

    // -- changing ------------------------------------------------------------------------------------------

    pub(super) fn reset_offsets(&mut self, origin: Origin, reset: Box<Reset>) {
        if !self.flush_offsets() {
            self.deferred.push_back((origin, Work::Group(GroupWork::Reset(reset))));
            return;
        }
        let known = self.groups.registry.get(reset.group, self.mail.shards()).map(KnownGroup::is_queue);
        let mut entries = Vec::with_capacity(reset.partitions.len());
        let (mut changes, mut replacements) = (Vec::new(), Vec::new());
        for (index, partition) in &reset.partitions {
            let key = CursorKey { group: reset.group, partition: *partition, instance: reset.instance };
            let mut entry = ResetEntry::new_zeroed();
            let Some(extent) = self.shard.extent(*partition) else {
                entry.code = U16::new(self.no_such_partition() as u16);
                entries.push((*index, entry));
                continue;
            };
            (entry.log_start, entry.visible_end) = (U64::new(extent.start.0), U64::new(extent.visible.0));
            let before = self.shard.cursors().position(key).map(|position: Position| position.offset);
            let found = match (self.watermark_of(reset.group, *partition, before), known) {
                (Found::Is(before), Ok(_)) => match self.start_at(*partition, extent, reset.to) {
                    Found::Is(after) => Found::Is((before, after)),
                    Found::Cold => Found::Cold,
                    Found::Not(code) => Found::Not(code),
                },
                (Found::Cold, _) => Found::Cold,
                (Found::Not(code), _) | (_, Err(code)) => Found::Not(code),
            };
            match found {
                Found::Cold => return self.readers.park(origin, Work::Group(GroupWork::Reset(reset))),
                Found::Not(code) => entry.code = U16::new(code as u16),
                Found::Is((before, after)) => {
                    (entry.before, entry.after) = (U64::new(before.0), U64::new(after.0));
                    changes.push(CursorChange { key, offset: Some(after) });
                    let new = AckChange::new(reset.group, *partition, after);
                    replacements.push(AckChange { replaces: true, ..new });
                }
            }
            entries.push((*index, entry));
        }
        if reset.dry_run || changes.is_empty() {
            self.reply_group(origin, GroupAnswer::Reset(entries));
            return;
        }
        let logged = match known {
            Ok(true) => self.shard.log_acks(&mut self.ring, &replacements),
            _ => self.shard.log_cursors(&mut self.ring, 0, &changes),
        };
        let with_code = |code: ErrorCode| {
            let change = |(index, entry): &(u32, ResetEntry)| {
                let code = if entry.code.get() == 0 { U16::new(code as u16) } else { entry.code };
                (*index, ResetEntry { code, ..*entry })
            };
            GroupAnswer::Reset(entries.iter().map(change).collect())
        };
        let code = match logged {
            Ok(durable_at) => {
                for change in &changes {
                    // P2
                    let claim = self.groups.offsets.claims.entry(change.key).or_default();
                    claim.void = true;
                    let (group, partition) = (change.key.group, change.key.partition);
                    self.groups.registry.events.push(GroupEvent::Reset { group, partition });
                }
                let unknown = with_code(ErrorCode::OutcomeUnknown);
                self.answer_when_durable(origin, durable_at, GroupAnswer::Reset(entries), unknown);
                return;
            }
            Err(AppendError::Busy) if self.draining == Draining::No => {
                self.deferred.push_back((origin, Work::Group(GroupWork::Reset(reset))));
                return;
            }
            Err(AppendError::Busy) => ErrorCode::ShuttingDown,
            Err(AppendError::DiskFull) => ErrorCode::DiskFull,
            Err(AppendError::Poisoned) => ErrorCode::ShardPoisoned,
            Err(_) => ErrorCode::Internal,
        };
        let answer = with_code(code);
        self.reply_group(origin, answer);
    }

    /// A subscriber does not want to be remembered.
    pub(super) fn forget_instance(&mut self, origin: Origin, group: GroupId, instance: u64) {
        if !self.flush_offsets() {
            self.deferred.push_back((origin, Work::Group(GroupWork::Forget { group, instance })));
            return;
        }
        // By partition: of the instances there may be millions.
        let shards = self.mail.shards();
        let known = self.groups.registry.get(group, shards);
        let topics = known.iter().flat_map(|known| &known.entry.subscriptions);
        let partitions =
            topics.filter_map(|one| self.topics.by_name(&one.topic)).flat_map(|topic| topic.partition_ids());
        let keys = partitions.map(|partition| CursorKey { group, partition, instance });
        let kept = keys.filter(|key| self.shard.cursors().position(*key).is_some());
        let changes: Vec<CursorChange> = kept.map(|key| CursorChange { key, offset: None }).collect();
        let mut durable_at = Lsn(0);
        for part in changes.chunks(CURSORS_PER_FRAME_MAX) {
            match self.shard.log_cursors(&mut self.ring, 0, part) {
                Ok(end) => durable_at = end,
                Err(AppendError::Busy) if self.draining == Draining::No => {
                    self.deferred.push_back((origin, Work::Group(GroupWork::Forget { group, instance })));
                    return;
                }
                Err(error) => {
                    let code = match error {
                        AppendError::Poisoned => ErrorCode::ShardPoisoned,
                        AppendError::DiskFull => ErrorCode::DiskFull,
                        _ => ErrorCode::ShuttingDown,
                    };
                    self.reply_group(origin, GroupAnswer::Forgotten { failed: Some(code) });
                    return;
                }
            }
        }
        self.groups.offsets.claims.retain(|key, _| (key.group, key.instance) != (group, instance));
        let answer = |failed| GroupAnswer::Forgotten { failed };
        self.answer_when_durable(origin, durable_at, answer(None), answer(Some(ErrorCode::OutcomeUnknown)));
    }

    /// Takes what a coordinator tells.
    pub(super) fn take_notices(&mut self, coordinator: u16, epoch: u32, notices: Vec<Notice>) {
        let was_complete = self.groups.registry.is_complete(coordinator);
        let removed = self.groups.registry.take(coordinator, epoch, notices);
        for group in removed {
            self.shard.forget_group(group);
            self.groups.offsets.forget_group(group);
        }
        if was_complete || !self.groups.registry.is_complete(coordinator) {
            return;
        }
        // What a start has found of groups that are no more.
        let shards = self.mail.shards();
        let mut after = GroupId(0);
        while let Some(group) = self.shard.cursors().group_behind(after) {
            after = group;
            let here = group.coordinator(shards).0 == coordinator;
            if here && self.groups.registry.get(group, shards).is_err() {
                self.shard.forget_group(group);
            }
        }
    }
}
