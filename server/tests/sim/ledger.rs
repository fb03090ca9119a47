//! What groups in queue mode were given and have said, judged from outside.
//!
//! Clients hear of a delivery late, or never, so nothing is judged by when it was heard. Handles tell the order: in a
//! partition the generation of a later delivery is larger, over all lives of the server. So a durable answer to an
//! acknowledgement forbids every delivery with a larger generation, whenever that is heard of.
//!
//! Where a record may also have died unseen, in deliveries of which nobody heard, there is a *doubt*; at the end the
//! dead letters are read, and what is not among them was wrong.

use super::groups::GroupPlan;
use super::model::{Checked, Model, RecordId, key_of, wrong};
use ringmq_client::core::Refused;
use ringmq_client::core::decode::ConsumedRecord;
use ringmq_client::{ErrorCode, Retry};
use ringmq_engine::format::PartitionId;
use ringmq_engine::format::frame::{Frame, FrameKind};
use ringmq_protocol::{ChangedLease, FetchEntryHeader, LeaseChange, LeaseHandle, Outcome};
use std::collections::{BTreeMap, BTreeSet};

/// A group, by its id, in a partition.
pub(crate) type Key = (u32, PartitionId);

#[derive(Clone, Copy, Debug)]
struct Delivered {
    attempt: u16,
    /// Until then nobody else may get the record in this life: virtual time, on the safe side.
    until_us: u64,
    life: u64,
}

#[derive(Debug, Default)]
struct Facts {
    /// By generation.
    deliveries: BTreeMap<u64, Delivered>,
    /// Acknowledgements asked for, by generation of the handle: how often.
    acks: BTreeMap<u64, u32>,
    /// Attempts of which somebody asked that they should not count.
    softened: BTreeSet<u16>,
    /// Somebody asked to change a lease of it.
    changed: bool,
    /// It is consumed, or dead, and nothing above this generation is delivered.
    consumed: Option<u64>,
    /// So many deliveries have failed for certain, and the handle of the last of them.
    failed: (u16, u64),
    told_dead: bool,
}

impl Facts {
    /// As far as clients know it may be consumed.
    fn may_be_consumed(&self) -> bool {
        self.consumed.is_some() || !self.acks.is_empty() || self.told_dead
    }
}

/// Wrong, unless the record turns out to be a dead letter.
#[derive(Debug)]
struct Doubt {
    group: u32,
    partition: PartitionId,
    id: RecordId,
    check: &'static str,
    details: String,
}

/// A RECEIVE.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) key: Key,
    pub(crate) at_us: u64,
    pub(crate) invisible_ms: u32,
}

/// Everything that members of queue groups were told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    facts: BTreeMap<Key, BTreeMap<u64, Facts>>,
    /// Ids that a group had.
    ids: BTreeMap<&'static str, BTreeSet<u32>>,
    /// Groups that somebody asked to be removed.
    removing: BTreeSet<&'static str>,
    /// Resets that were asked for and not answered, and the time from which on a RECEIVE is of the time after one.
    resetting: BTreeSet<Key>,
    reset_at: BTreeMap<Key, u64>,
    /// How often a record of a group may have died, beyond once.
    again: BTreeMap<&'static str, u32>,
    /// Dead letters, and in how many places each is.
    dead: BTreeMap<(&'static str, RecordId), u32>,
    doubts: Vec<Doubt>,
    pub(crate) deliveries: u64,
    pub(crate) consumed: u64,
    pub(crate) dead_letters: u64,
}

fn epoch(generation: u64) -> u64 {
    generation >> 32
}

impl Ledger {
    /// A group has this id, says the server.
    pub(crate) fn known(&mut self, name: &'static str, group: u32) -> Checked {
        let ids = self.ids.entry(name).or_default();
        if !ids.is_empty() && !ids.contains(&group) && !self.removing.contains(name) {
            return Err(wrong("a group keeps its id", format!("{name}: {ids:?}, then {group}")));
        }
        if ids.insert(group) {
            *self.again.entry(name).or_default() += 1;
        }
        Ok(())
    }

    /// Somebody is about to ask that a group be removed.
    pub(crate) fn removal_asked(&mut self, name: &'static str) {
        self.removing.insert(name);
    }

    /// Somebody is about to ask for a reset: what was known is void, and nothing is judged until it is answered.
    pub(crate) fn reset_asked(&mut self, name: &'static str, key: Key) {
        self.resetting.insert(key);
        *self.again.entry(name).or_default() += 1;
        self.forget(key);
    }

    /// It was done, or not: then what was known before is missing, and nothing more is judged there.
    pub(crate) fn reset_answered(&mut self, key: Key, done: bool, now_us: u64) {
        if done {
            self.resetting.remove(&key);
        }
        self.reset_at.insert(key, now_us);
        self.forget(key);
    }

    fn forget(&mut self, key: Key) {
        self.facts.remove(&key);
        self.doubts.retain(|doubt| (doubt.group, doubt.partition) != key);
    }

    /// What was asked then is of the time before a reset, or of nobody knows when.
    fn is_void(&self, key: Key, asked_us: u64) -> bool {
        self.resetting.contains(&key) || self.reset_at.get(&key).is_some_and(|at| asked_us <= *at)
    }

    /// Id of a group, as members were told last.
    pub(crate) fn id_of(&self, name: &str) -> Option<u32> {
        self.ids.get(name).and_then(BTreeSet::last).copied()
    }

    fn of(&mut self, key: Key, offset: u64) -> &mut Facts {
        self.facts.entry(key).or_default().entry(offset).or_default()
    }

    /// It was delivered, and nobody was told that it is consumed.
    pub(crate) fn is_open(&self, key: Key, offset: u64) -> bool {
        let facts = self.facts.get(&key).and_then(|facts| facts.get(&offset));
        facts.is_some_and(|facts| facts.consumed.is_none() && !facts.deliveries.is_empty())
    }

    pub(crate) fn ack_asked(&mut self, key: Key, handles: &[LeaseHandle]) {
        for handle in handles {
            let facts = self.of(key, handle.offset.get());
            *facts.acks.entry(handle.generation.get()).or_default() += 1;
        }
    }

    pub(crate) fn change_asked(&mut self, key: Key, changes: &[LeaseChange]) {
        for change in changes {
            let facts = self.of(key, change.handle.offset.get());
            facts.changed = true;
            if change.kind == ringmq_protocol::queue::CHANGE_AFTER {
                facts.softened.insert(change.handle.attempt.get());
            }
        }
    }
}

impl Facts {
    /// It is consumed, as somebody with this handle was told by a server of this epoch.
    fn consume(&mut self, generation: u64, told_in: u64) {
        // Or by somebody with a newer handle who has asked, too.
        let newest = self.acks.keys().next_back().copied().unwrap_or(0);
        // Which of the deliveries of earlier lives was the last is not known after a start.
        let of_before = if epoch(generation) < told_in { (told_in << 32) - 1 } else { 0 };
        let bound = generation.max(newest).max(of_before);
        self.consumed = Some(self.consumed.map_or(bound, |known| known.min(bound)));
    }

    /// A delivery that should not be.
    fn too_new(&self) -> Option<(u64, Delivered)> {
        let bound = self.consumed?;
        self.deliveries.range(bound + 1..).next().map(|(generation, delivered)| (*generation, *delivered))
    }
}

impl Model {
    /// A record was delivered to a group.
    pub(crate) fn delivered(
        &mut self,
        plan: &GroupPlan,
        asked: Asked,
        lease: &LeaseHandle,
        id: RecordId,
        log_start: u64,
        now_us: u64,
    ) -> Checked {
        let (offset, generation, attempt) = (lease.offset.get(), lease.generation.get(), lease.attempt.get());
        let what = || format!("{}: {}@{offset} {id:?} as {generation:x}", plan.name, asked.key.1);
        self.ledger.deliveries += 1;
        if !plan.sieve.takes(id) {
            return Err(wrong("a filter leaves out what does not match", what()));
        }
        if attempt == 0 || attempt > plan.max_attempts {
            let details = format!("{}: attempt {attempt} of {}", what(), plan.max_attempts);
            return Err(wrong("a record has at most its attempts", details));
        }
        if self.ledger.is_void(asked.key, asked.at_us) {
            return Ok(());
        }
        // The server's clock may be faster than ours by a little.
        let until_us = asked.at_us + u64::from(asked.invisible_ms) * 990;
        let life = self.lives;
        let facts = self.ledger.of(asked.key, offset);
        // What was delivered before may be heard of later.
        if attempt <= facts.failed.0 && generation > facts.failed.1 {
            let details = format!("{}: attempt {attempt}, {:x?} have failed", what(), facts.failed);
            return Err(wrong("a failed delivery counts, durably", details));
        }
        if facts.deliveries.insert(generation, Delivered { attempt, until_us, life }).is_some() {
            return Err(wrong("each delivery has its own handle", what()));
        }
        if let Some((newer, _)) = facts.too_new() {
            let details = format!("{}: {newer:x} after {:x?} was acknowledged", what(), facts.consumed);
            let check = "what is acknowledged is not delivered again";
            let (group, partition) = asked.key;
            self.ledger.doubts.push(Doubt { group, partition, id, check, details });
        }
        let facts = self.ledger.of(asked.key, offset);
        let before = facts.deliveries.range(..generation).next_back().map(|found| (*found.0, *found.1));
        let after = facts.deliveries.range(generation + 1..).next().map(|found| (*found.0, *found.1));
        let this = (generation, facts.deliveries[&generation]);
        for (first, second) in
            before.map(|before| (before, this)).into_iter().chain(after.map(|after| (this, after)))
        {
            if epoch(first.0) != epoch(second.0) {
                continue; // What was not durable of the life before is forgotten.
            }
            let softened = facts.softened.contains(&first.1.attempt);
            let least = first.1.attempt + u16::from(!softened);
            if second.1.attempt < least {
                let details = format!("{}: {first:x?}, then {second:x?}", what());
                return Err(wrong("a failed delivery counts", details));
            }
            let is_free = facts.changed || facts.acks.contains_key(&first.0);
            if !is_free && now_us < first.1.until_us && second.0 == generation {
                let details = format!("{}: {first:x?}, then {second:x?} at {now_us}", what());
                return Err(wrong("what is leased is not given to anybody else", details));
            }
        }
        if plan.ordered {
            self.check_order(plan, asked.key, (offset, generation), id, log_start)
        } else {
            Ok(())
        }
    }

    /// In an ordered group: nothing of the same key in front of it is open, nothing behind it was delivered before.
    fn check_order(
        &mut self,
        plan: &GroupPlan,
        key: Key,
        (offset, generation): (u64, u64),
        id: RecordId,
        log_start: u64,
    ) -> Checked {
        let Some(records) = self.partitions.get(&key.1) else { return Ok(()) };
        let Some(record_key) = key_of(id) else { return Ok(()) };
        let is_alike = |other: RecordId| key_of(other) == Some(record_key) && plan.sieve.takes(other);
        let facts = self.ledger.facts.get(&key);
        let of = |offset: u64| facts.and_then(|facts| facts.get(&offset));
        for (behind, other) in records.at.range(offset + 1..).filter(|(_, other)| is_alike(**other)) {
            let this_life = epoch(generation) << 32;
            let earlier = of(*behind).and_then(|facts| facts.deliveries.range(this_life..generation).next());
            if let Some((earlier, _)) = earlier {
                let details = format!(
                    "{}: {}@{behind} {other:?} as {earlier:x}, then {offset} as {generation:x}",
                    plan.name, key.1
                );
                return Err(wrong("records of a key are delivered in their order", details));
            }
        }
        for (before, other) in records.at.range(log_start.min(offset)..offset) {
            if is_alike(*other) && !of(*before).is_some_and(Facts::may_be_consumed) {
                let details = format!(
                    "{}: {}@{offset} as {generation:x} while {before} {other:?} is open",
                    plan.name, key.1
                );
                let check = "of a key one record is in flight";
                let (group, partition) = key;
                self.ledger.doubts.push(Doubt { group, partition, id: *other, check, details });
            }
        }
        Ok(())
    }

    /// Epoch of a partition's shard in a life of the server.
    fn epoch_in(&self, life: u64, partition: PartitionId) -> u64 {
        let shards = self.epochs.keys().map(|key| key.1 + 1).max().unwrap_or(1);
        self.epochs.get(&(life, partition.shard(shards).0)).copied().unwrap_or(0)
    }

    /// An acknowledgement was answered.
    pub(crate) fn acknowledged(
        &mut self,
        plan: &GroupPlan,
        key: Key,
        handle: &LeaseHandle,
        outcome: &Outcome,
        asked_in: u64,
        now_us: u64,
    ) -> Checked {
        let (offset, generation) = (handle.offset.get(), handle.generation.get());
        let code = ErrorCode::parse(outcome.code.get());
        let what = || format!("{}: {}@{offset} {generation:x}: {code:?}", plan.name, key.1);
        let id = self.partitions.get(&key.1).and_then(|facts| facts.at.get(&offset)).copied();
        let start = self.partitions.get(&key.1).map_or(0, |facts| facts.start);
        let life = self.lives;
        let told_in = self.epoch_in(asked_in, key.1);
        let facts = self.ledger.of(key, offset);
        // A handle of the time before a reset tells nothing of the time after.
        if outcome.is_done() && facts.deliveries.is_empty() {
            return Ok(());
        }
        if outcome.is_done() {
            let is_news = facts.consumed.is_none();
            facts.consume(generation, told_in);
            let newer = facts.too_new();
            self.ledger.consumed += u64::from(is_news);
            if let (Some(newer), Some(id)) = (newer, id) {
                let details = format!("{}: delivered as {newer:x?}", what());
                let check = "only the last lease acknowledges";
                let (group, partition) = key;
                self.ledger.doubts.push(Doubt { group, partition, id, check, details });
            }
            return Ok(());
        }
        let is_stale = matches!(code, Some(ErrorCode::StaleHandle | ErrorCode::UnknownLease));
        if is_stale {
            let newest = facts.deliveries.keys().next_back() == Some(&generation);
            let holds = facts.deliveries.get(&generation).is_some_and(|delivered| {
                delivered.life == life && asked_in == life && now_us < delivered.until_us
            });
            let once = facts.acks.get(&generation) == Some(&1) && facts.acks.len() == 1 && !facts.changed;
            if newest && holds && once && offset >= start && facts.consumed.is_none() {
                return Err(wrong("a lease is good until its time", what()));
            }
            return Ok(());
        }
        judge_refusal(code, what)
    }

    /// A change of a lease was answered.
    pub(crate) fn changed(
        &mut self,
        plan: &GroupPlan,
        key: Key,
        change: &LeaseChange,
        changed: &ChangedLease,
        (asked_in, asked_us): (u64, u64),
    ) -> Checked {
        let (offset, attempt) = (change.handle.offset.get(), change.handle.attempt.get());
        let code = ErrorCode::parse(changed.code.get());
        let what = || format!("{}: {}@{offset} attempt {attempt}: {changed:?}", plan.name, key.1);
        if changed.code.get() != 0 {
            let is_stale = matches!(code, Some(ErrorCode::StaleHandle | ErrorCode::UnknownLease));
            return if is_stale { Ok(()) } else { judge_refusal(code, what) };
        }
        let told_in = self.epoch_in(asked_in, key.1);
        if self.ledger.is_void(key, asked_us) {
            return Ok(());
        }
        let facts = self.ledger.of(key, offset);
        if change.kind == ringmq_protocol::queue::CHANGE_RETRY {
            facts.failed = facts.failed.max((attempt, change.handle.generation.get()));
            if changed.is_dead() {
                facts.consume(change.handle.generation.get(), told_in);
                facts.told_dead = true;
                self.ledger.dead_letters += 1;
            }
        }
        if changed.is_dead() && attempt != plan.max_attempts {
            return Err(wrong("a record dies of its last attempt", what()));
        }
        Ok(())
    }

    /// A dead letter was read.
    pub(crate) fn dead_letter(
        &mut self,
        group: &'static str,
        partition: PartitionId,
        read: &ConsumedRecord,
        entry: &FetchEntryHeader,
        frame: &Frame<'_>,
    ) -> Checked {
        let id = self.identify(partition, read)?;
        let what = || format!("{group}: {partition}@{} {id:?}", read.offset);
        let at = &mut self.facts(partition).at;
        if at.insert(read.offset, id).is_some_and(|known| known != id) {
            return Err(wrong("an offset never names another record", what()));
        }
        // The frame of a half or a delay has no offset of its own.
        let has_offset = frame.header.kind() == FrameKind::Bound && !self.is_late(id);
        if has_offset && let Some((origin, offset)) = self.places.get(&id) {
            let index = read.offset - entry.base_offset.get() + u64::from(entry.first());
            let told = (frame.header.partition(), frame.header.base_offset().0 + index);
            if told != (*origin, *offset) {
                let details = format!("{}: says {told:?}, and is of {origin}@{offset}", what());
                return Err(wrong("a dead letter says where it came from", details));
            }
        }
        let most = self.ledger.again.get(group).copied().unwrap_or(0).max(1);
        let places = self.ledger.dead.entry((group, id)).or_default();
        *places += 1;
        if *places > most {
            return Err(wrong("a record dies once", what()));
        }
        Ok(())
    }

    /// Everything has ended and was read: what is wrong for lack of a dead letter, and what was lost.
    pub(crate) fn check_queue(&self, plan: &GroupPlan, retains: bool) -> Checked {
        let is_dead = |id: RecordId| self.ledger.dead.contains_key(&(plan.name, id));
        let newest = self.ledger.id_of(plan.name);
        let doubts = self.ledger.doubts.iter().filter(|doubt| Some(doubt.group) == newest && !retains);
        if let Some(doubt) = doubts.into_iter().find(|doubt| !is_dead(doubt.id)) {
            return Err(wrong(doubt.check, doubt.details.clone()));
        }
        let Some(group) = self.ledger.id_of(plan.name) else { return Ok(()) };
        for (topic, count) in &plan.topics {
            for partition in (0..*count).filter_map(|index| self.partition(topic, index)) {
                let Some(records) = self.partitions.get(&partition) else { continue };
                if self.ledger.resetting.contains(&(group, partition)) {
                    continue;
                }
                let facts = self.ledger.facts.get(&(group, partition));
                for (offset, id) in records.at.range(records.start..) {
                    let facts = facts.and_then(|facts| facts.get(offset));
                    let what = || format!("{}: {partition}@{offset} {id:?}: {facts:x?}", plan.name);
                    let is_known = facts.is_some_and(Facts::may_be_consumed);
                    if plan.sieve.takes(*id) && !is_known && !is_dead(*id) && !retains {
                        return Err(wrong("every record is consumed or a dead letter", what()));
                    }
                    if facts.is_some_and(|facts| facts.told_dead) && !is_dead(*id) && !retains {
                        return Err(wrong("what was told dead is a dead letter", what()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Only what may pass is an answer.
pub(crate) fn judge_refusal(code: Option<ErrorCode>, what: impl Fn() -> String) -> Checked {
    match code.map_or(Retry::OutcomeUnknown, ErrorCode::retry) {
        Retry::No => Err(wrong("what was delivered can be settled", what())),
        Retry::Yes | Retry::OutcomeUnknown => Ok(()),
    }
}

/// As [`judge_refusal`], of a request as a whole.
pub(crate) fn judge_refused(refused: &Refused, what: impl Fn() -> String) -> Checked {
    let passes = [ErrorCode::NotAMember, ErrorCode::UnknownLease, ErrorCode::UnknownGroup];
    if refused.code().is_some_and(|code| passes.contains(&code)) {
        return Ok(());
    }
    judge_refusal(refused.code(), || format!("{}: {refused:?}", what()))
}
