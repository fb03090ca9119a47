//! Groups and their positions: what clients do with them, and what the harness remembers, kept twice: as far as it is
//! acknowledged and as far as it was appended. After each start the tables are exactly what the log that was found says.

use super::model::{Checked, wrong};
use super::{Harness, Live, Step};
use ringmq_engine::format::consumer_group::{ConsumerGroup, GroupOptions};
use ringmq_engine::format::cursor::{AckChange, CursorChange, CursorKey, Retry};
use ringmq_engine::format::{GroupId, Lsn, Offset, PartitionId, ShardId};
use ringmq_engine::shard::{AppendError, Shard};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const GROUPS: u64 = 5;
const INSTANCES: u64 = 4;

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Set(Vec<CursorChange>),
    Waits(u128, Vec<CursorChange>),
    Ended(u128, bool),
    Acked(Vec<AckChange>),
    /// Of a group in a partition: everything.
    Gone(Vec<PartitionId>),
    Group(ConsumerGroup),
}

#[derive(Clone, Debug, Default)]
struct Acks {
    acked: BTreeSet<u64>,
    retries: BTreeMap<u64, (u16, i64)>,
}

#[derive(Clone, Debug, Default)]
struct Tables {
    positions: BTreeMap<CursorKey, u64>,
    acks: BTreeMap<(GroupId, PartitionId), Acks>,
    waits: BTreeMap<u128, BTreeMap<CursorKey, u64>>,
    gone: BTreeSet<PartitionId>,
    groups: BTreeMap<GroupId, ConsumerGroup>,
}

impl Tables {
    fn set(&mut self, change: &CursorChange) {
        if self.gone.contains(&change.key.partition) {
            return;
        }
        match change.offset {
            Some(offset) => self.positions.insert(change.key, offset.0),
            None => self.positions.remove(&change.key),
        };
        if change.key.instance == 0 {
            self.acks.remove(&(change.key.group, change.key.partition));
        }
    }

    fn ack(&mut self, change: &AckChange) {
        let key = CursorKey::shared(change.group, change.partition);
        if self.gone.contains(&change.partition) {
            return;
        }
        let watermark = self.positions.entry(key).or_insert(change.watermark.0);
        let state = self.acks.entry((change.group, change.partition)).or_default();
        if change.replaces {
            (*watermark, *state) = (change.watermark.0, Acks::default());
        }
        *watermark = change.watermark.0.max(*watermark);
        change.ranges.iter().for_each(|(start, end)| state.acked.extend(start.0..end.0));
        for retry in &change.retries {
            if retry.attempt == 0 {
                state.retries.remove(&retry.offset.0);
            } else {
                state.retries.insert(retry.offset.0, (retry.attempt, retry.visible_ms));
            }
        }
        while state.acked.contains(watermark) {
            *watermark += 1;
        }
        let at = *watermark;
        state.acked.retain(|offset| *offset >= at);
        while state.acked.remove(watermark) {
            *watermark += 1;
        }
        let at = *watermark;
        let Acks { acked, retries } = state;
        retries.retain(|offset, _| *offset >= at && !acked.contains(offset));
        if state.acked.is_empty() && state.retries.is_empty() {
            self.acks.remove(&(change.group, change.partition));
        }
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Set(changes) => changes.iter().for_each(|change| self.set(change)),
            Event::Waits(txn, changes) => {
                let waits = self.waits.entry(*txn).or_default();
                let offset = |change: &CursorChange| change.offset.map(|offset| (change.key, offset.0));
                waits.extend(changes.iter().filter_map(offset));
            }
            Event::Ended(txn, committed) => {
                for (key, offset) in self.waits.remove(txn).unwrap_or_default() {
                    if *committed {
                        self.set(&CursorChange { key, offset: Some(Offset(offset)) });
                    }
                }
            }
            Event::Acked(changes) => changes.iter().for_each(|change| self.ack(change)),
            Event::Gone(partitions) => {
                self.gone.extend(partitions);
                self.positions.retain(|key, _| !partitions.contains(&key.partition));
                self.acks.retain(|key, _| !partitions.contains(&key.1));
            }
            Event::Group(group) => {
                if group.deleted {
                    self.groups.remove(&group.group);
                } else {
                    self.groups.insert(group.group, group.clone());
                }
            }
        }
    }
}

/// Of one shard.
#[derive(Clone, Default)]
pub(crate) struct CursorModel {
    base: Tables,
    now: Tables,
    events: VecDeque<(Lsn, Event)>,
    highest: GroupId,
}

impl CursorModel {
    /// Something was appended that ends at `durable_at`.
    pub(crate) fn note(&mut self, durable_at: Lsn, event: Event) {
        self.now.apply(&event);
        self.events.push_back((durable_at, event));
    }

    /// Everything up to here is acknowledged.
    pub(crate) fn settle(&mut self, durable: Lsn) {
        while self.events.front().is_some_and(|(at, _)| *at <= durable)
            && let Some((_, event)) = self.events.pop_front()
        {
            if let Event::Group(group) = &event {
                self.highest = self.highest.max(group.group);
            }
            self.base.apply(&event);
        }
    }

    /// A start has found the log up to here.
    pub(crate) fn recover(&mut self, found: Lsn) {
        self.settle(found);
        self.events.clear();
        self.now = self.base.clone();
    }

    /// What a shard says of everything.
    pub(crate) fn check(&self, shard: &Shard, own: ShardId, shards: u16) -> Checked {
        let cursors = shard.cursors();
        let mut found = BTreeMap::new();
        let mut after = GroupId(0);
        while let Some(group) = cursors.group_behind(after) {
            found.extend(cursors.of_group(group, None).map(|(key, position)| (key, position.offset.0)));
            after = group;
        }
        if found != self.now.positions || cursors.len() != found.len() {
            let details = format!("{found:?} instead of {:?}", self.now.positions);
            return Err(wrong("positions stay and do not go back", details));
        }
        for key in self.now.positions.keys() {
            let expected = self.now.acks.get(&(key.group, key.partition)).cloned().unwrap_or_default();
            let known = cursors.acks(key.group, key.partition).cloned().unwrap_or_default();
            let acked: BTreeSet<u64> = known.ranges().flat_map(|(start, end)| start.0..end.0).collect();
            let retries: BTreeMap<u64, (u16, i64)> =
                known.retries().map(|retry| (retry.offset.0, (retry.attempt, retry.visible_ms))).collect();
            if acked != expected.acked || retries != expected.retries {
                return Err(wrong("what is consumed stays so", format!("{known:?} instead of {expected:?}")));
            }
        }
        let groups: BTreeMap<GroupId, ConsumerGroup> =
            shard.groups().live().map(|group| (group.group, group.clone())).collect();
        if groups != self.now.groups {
            return Err(wrong("groups stay", format!("{groups:?} instead of {:?}", self.now.groups)));
        }
        let next = shard.groups().next_id(own, shards);
        if next.is_none_or(|next| next <= self.highest) {
            return Err(wrong("ids of groups are given once", format!("{next:?} after {}", self.highest)));
        }
        Ok(())
    }
}

impl Harness {
    fn draw_key(&mut self, shard: usize) -> Option<CursorKey> {
        let (topic, partition) = self.any_partition(shard)?;
        let partition = self.known[shard].topics[topic].partitions[partition].id;
        let instance = if self.draw.one_in(2) { 0 } else { self.draw.below(INSTANCES) };
        Some(CursorKey { group: GroupId(1 + self.draw.below(GROUPS) as u32), partition, instance })
    }

    pub(super) fn act_groups(&mut self, shard: usize) -> Step<()> {
        match self.draw.below(8) {
            0..=2 => self.act_commit(shard, 0),
            3 => {
                let remembers = self.plan.sim.clock.jump_ms_max < 10_000_000;
                let open = self.known[shard].late.open_txns();
                if remembers && !open.is_empty() {
                    let txn = open[self.draw.below(open.len() as u64) as usize];
                    self.act_commit(shard, txn);
                }
            }
            4..=6 => self.act_ack(shard),
            _ => self.act_group(shard),
        }
        Ok(())
    }

    fn act_commit(&mut self, shard: usize, txn: u128) {
        let mut changes = Vec::new();
        for _ in 0..1 + self.draw.below(6) {
            let Some(key) = self.draw_key(shard) else { return };
            let forgets = txn == 0 && self.draw.one_in(8);
            changes.push(CursorChange { key, offset: (!forgets).then(|| Offset(self.draw.below(200))) });
        }
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let logged = live.log_cursors(ring, txn, &changes);
        self.world.note(&format!("positions of {txn:x} {changes:?}: {logged:?}"));
        if let Ok(at) = logged {
            let event = if txn == 0 { Event::Set(changes) } else { Event::Waits(txn, changes) };
            self.known[shard].cursors.note(at, event);
        }
    }

    fn act_ack(&mut self, shard: usize) {
        let mut changes = Vec::new();
        for _ in 0..1 + self.draw.below(3) {
            let Some(key) = self.draw_key(shard) else { return };
            let mut change = AckChange::new(key.group, key.partition, Offset(self.draw.below(40)));
            change.replaces = self.draw.one_in(10);
            for _ in 0..self.draw.below(4) {
                let from = self.draw.below(200);
                change.ranges.push((Offset(from), Offset(from + 1 + self.draw.below(5))));
            }
            for _ in 0..self.draw.below(3) {
                let (offset, attempt) = (Offset(self.draw.below(200)), self.draw.below(3) as u16);
                change.retries.push(Retry { offset, attempt, visible_ms: self.draw.below(9) as i64 });
            }
            changes.push(change);
        }
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let logged = live.log_acks(ring, &changes);
        self.world.note(&format!("acks {changes:?}: {logged:?}"));
        if let Ok(at) = logged {
            self.known[shard].cursors.note(at, Event::Acked(changes));
        }
    }

    fn act_group(&mut self, shard: usize) {
        let known: Vec<ConsumerGroup> = self.known[shard].cursors.now.groups.values().cloned().collect();
        let number = self.draw.next();
        let group = if known.is_empty() || (known.len() < 4 && self.draw.one_in(2)) {
            let next = self.live[shard].shard.groups().next_id(ShardId(shard as u16), self.plan.shards);
            ConsumerGroup {
                group: next.unwrap(),
                name: format!("g{number}"),
                deleted: false,
                mode: None,
                created_ms: 1,
                options: GroupOptions::default(),
                subscriptions: Vec::new(),
            }
        } else {
            let mut group = known[self.draw.below(known.len() as u64) as usize].clone();
            group.deleted = self.draw.one_in(2);
            group.options.rate_bytes = number;
            group
        };
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let logged: Result<Lsn, AppendError> = live.log_group(ring, &group);
        self.world.note(&format!("group {group:?}: {logged:?}"));
        if let Ok(at) = logged {
            self.known[shard].cursors.note(at, Event::Group(group));
        }
    }

    /// The tables of a shard against the model.
    pub(super) fn check_groups(&self, shard: usize) -> Checked {
        self.known[shard].cursors.check(&self.live[shard].shard, ShardId(shard as u16), self.plan.shards)
    }
}
