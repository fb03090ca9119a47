//! Groups that consume record by record: what is out under a lease, what comes again and when, dead letters; and what
//! groups of any mode leave out or have to wait for.
//!
//! `lease` decides (a machine without I/O), `receive` hands out, `settle` takes acknowledgements and logs them,
//! `replay` puts dead letters back, `select` picks records of frames, `rate` counts, `requests` is the way from a
//! connection to these and back.

mod lease;
mod rate;
mod receive;
mod replay;
mod requests;
mod select;
mod settle;

use super::ShardServer;
use super::mail::{Answer, ConnectionKey, Origin, Work};
use crate::filter::Filter;
use lease::{Handle, LeaseTable};
use rate::{Budget, Loan, Purse, Rates};
use receive::Receiving;
pub(super) use requests::{QUEUE_TAG, QueuePending};
use ringmq_format::consumer_group::GroupOptions;
use ringmq_format::{GroupId, Offset, PartitionId};
use ringmq_protocol::{ChangedLease, ErrorCode, LeaseChange, Outcome, Replayed};
use settle::{Batch, Reply};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A table of which nothing is out is given back after a time.
const SWEEP_PERIOD_US: u64 = 1_000_000;
/// Dead letters whose topic is not there are tried again.
const BURY_AGAIN_US: u64 = 1_000_000;

/// A group in a partition.
type Key = (GroupId, PartitionId);

/// Work for the shard that has it.
#[derive(Debug)]
pub(super) enum QueueWork {
    Receive {
        partition: PartitionId,
        receive: Box<Receiving>,
    },
    Ack {
        partition: PartitionId,
        group: GroupId,
        leases: Vec<Handle>,
    },
    Change {
        partition: PartitionId,
        group: GroupId,
        changes: Vec<LeaseChange>,
    },
    Replay {
        partition: PartitionId,
        dry_run: bool,
        offsets: Vec<Offset>,
    },
    /// For the coordinator: some of the group's rate.
    Borrow {
        group: GroupId,
        want: Loan,
    },
}

/// What comes back.
#[derive(Debug)]
pub(super) enum QueueAnswer {
    Acked(Vec<Outcome>),
    Changed(Vec<ChangedLease>),
    Replayed(Vec<Replayed>),
    Failed(ErrorCode),
    Lent { group: GroupId, loan: Loan },
}

/// A group in a partition of this shard.
#[derive(Debug)]
struct Queue {
    table: LeaseTable,
    filter: Arc<Filter>,
    rates: Rates,
    invisible_ms: u32,
    /// RECEIVEs in the order in which they came.
    waiting: VecDeque<Origin>,
    /// Pages are on the way.
    cold: bool,
    /// The group's rate is used up.
    starved: bool,
    /// In `QueueState::timers`.
    timer_us: Option<u64>,
    used_us: u64,
}

/// What a shard keeps for it.
#[derive(Debug, Default)]
pub(super) struct QueueState {
    queues: BTreeMap<Key, Queue>,
    by_partition: BTreeMap<PartitionId, BTreeSet<GroupId>>,
    receives: BTreeMap<Origin, (Key, Receiving)>,
    deadlines: BTreeSet<(u64, Origin)>,
    timers: BTreeSet<(u64, Key)>,
    /// To be served.
    ready: BTreeSet<Key>,
    /// The last that was served.
    served: Option<Key>,
    /// With news for the log.
    dirty: BTreeSet<Key>,
    /// With records that are about to become dead letters, and when that is tried again.
    dying: BTreeSet<Key>,
    dying_at_us: Option<u64>,
    /// For the next batch.
    binds: Vec<ringmq_engine::shard::NewBind>,
    replies: Vec<Reply>,
    outbox: VecDeque<Batch>,
    /// Since when the log has no room for the first of them.
    stuck_since_us: Option<u64>,
    /// Answers on the way to other shards, and the RECEIVEs that wait until they have left.
    answering: BTreeMap<(u16, ConnectionKey), Vec<Origin>>,
    /// Generations of leases.
    counter: u32,
    next_tag: u64,
    filters: BTreeMap<Key, Arc<Filter>>,
    purses: BTreeMap<GroupId, Purse>,
    budgets: BTreeMap<GroupId, Budget>,
    /// Groups whose rate is used up here while somebody waits.
    starving: BTreeMap<GroupId, Rates>,
    /// Their readers.
    starved_readers: BTreeMap<GroupId, Vec<Origin>>,
    sweep_at_us: u64,
}

impl QueueState {
    /// When `turn_queues` wants to be called though nothing has completed.
    pub(super) fn deadline(&self) -> Option<u64> {
        let sweep = (!self.queues.is_empty()).then_some(self.sweep_at_us);
        let waits = !self.replies.is_empty() || self.outbox.iter().any(|batch| batch.replies() > 0);
        let stuck = self.stuck_since_us.filter(|_| waits).map(|since_us| since_us + settle::STUCK_US);
        let starving = self.starving.keys().filter_map(|group| self.purses.get(group)?.again_us()).min();
        self.timers
            .first()
            .map(|(at, _)| *at)
            .into_iter()
            .chain(self.deadlines.first().map(|(at, _)| *at))
            .chain(self.dying_at_us)
            .chain(sweep)
            .chain(starving)
            .chain(stuck)
            .min()
    }

    /// `turn_queues` again without sleeping.
    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty() || (self.outbox.is_empty() && !self.dirty.is_empty())
    }

    /// Everything that is kept for somebody's request.
    pub(super) fn count(&self) -> usize {
        let stuck: usize = self.outbox.iter().map(Batch::replies).sum();
        self.receives.len() + self.replies.len() + stuck
    }

    /// More of a partition is visible.
    pub(super) fn wake_partition(&mut self, partition: PartitionId) {
        for group in self.by_partition.get(&partition).into_iter().flatten() {
            let key = (*group, partition);
            if self.queues.get(&key).is_some_and(|queue| !queue.waiting.is_empty()) {
                self.ready.insert(key);
            }
        }
    }

    /// Pages have come.
    pub(super) fn wake_cold(&mut self) {
        for (key, queue) in &mut self.queues {
            if std::mem::take(&mut queue.cold) {
                self.ready.insert(*key);
            }
        }
        if !self.dying.is_empty() {
            self.dying_at_us = Some(0);
        }
    }

    /// An answer has left: the next one may go.
    pub(super) fn go(&mut self, origin: Origin) {
        if origin.tag < QUEUE_TAG {
            return;
        }
        let next = self.answering.remove(&(origin.shard, origin.connection)).unwrap_or_default();
        for origin in next.into_iter().chain([origin]) {
            if let Some((key, receive)) = self.receives.get_mut(&origin) {
                receive.blocked = false;
                self.ready.insert(*key);
            }
        }
    }

    fn purse(&self, group: GroupId) -> Purse {
        self.purses.get(&group).copied().unwrap_or_default()
    }

    fn set_purse(&mut self, group: GroupId, purse: Purse, rates: Rates) {
        if rates.is_limited() {
            self.purses.insert(group, purse);
        }
    }

    /// A reader of a group waits for its rate.
    pub(super) fn starve(&mut self, group: GroupId, rates: Rates, reader: Origin) {
        self.starving.insert(group, rates);
        let readers = self.starved_readers.entry(group).or_default();
        if !readers.contains(&reader) {
            readers.push(reader);
        }
    }

    /// Takes a queue away with all that it has; its RECEIVEs come back.
    fn remove_queue(&mut self, key: Key) -> VecDeque<Origin> {
        let Some(queue) = self.queues.remove(&key) else { return VecDeque::new() };
        if let Some(at) = queue.timer_us {
            self.timers.remove(&(at, key));
        }
        if let Some(groups) = self.by_partition.get_mut(&key.1) {
            groups.remove(&key.0);
            if groups.is_empty() {
                self.by_partition.remove(&key.1);
            }
        }
        self.ready.remove(&key);
        self.dirty.remove(&key);
        self.dying.remove(&key);
        queue.waiting
    }

    /// Ends a RECEIVE.
    fn take_receive(&mut self, origin: Origin) -> Option<(Key, Receiving)> {
        let (key, receive) = self.receives.remove(&origin)?;
        self.deadlines.remove(&(receive.until_us, origin));
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.waiting.retain(|waiting| *waiting != origin);
        }
        Some((key, receive))
    }
}

impl QueueWork {
    /// The partition that it is about.
    pub(super) fn partition(&self) -> Option<PartitionId> {
        match self {
            Self::Receive { partition, .. }
            | Self::Ack { partition, .. }
            | Self::Change { partition, .. }
            | Self::Replay { partition, .. } => Some(*partition),
            Self::Borrow { .. } => None,
        }
    }
}

fn rates_of(options: &GroupOptions) -> Rates {
    Rates { records: u64::from(options.rate_records), bytes: options.rate_bytes }
}

impl ShardServer {
    /// Does what a shard has asked of this one.
    pub(super) fn execute_queues(&mut self, origin: Origin, work: QueueWork) {
        match work {
            QueueWork::Receive { partition, receive } => self.open_receive(origin, partition, *receive),
            QueueWork::Ack { partition, group, leases } => self.ack(origin, (group, partition), &leases),
            QueueWork::Change { partition, group, changes } => {
                self.change_leases(origin, (group, partition), changes);
            }
            QueueWork::Replay { partition, dry_run, offsets } => {
                self.replay_dead_letters(origin, partition, dry_run, offsets);
            }
            QueueWork::Borrow { group, want } => {
                let now_us = self.ring.now().mono_us;
                let rates = self.group(group).map(|known| rates_of(&known.entry.options));
                let loan = match rates {
                    Ok(rates) => {
                        let budgets = &mut self.queues.budgets;
                        budgets.entry(group).or_insert_with(|| Budget::new(now_us)).lend(rates, want, now_us)
                    }
                    Err(_) => Loan { wait_us: 100_000, ..Loan::default() },
                };
                self.reply(origin, Answer::Queue(QueueAnswer::Lent { group, loan }));
            }
        }
    }

    /// How long the records of a partition are delivered after they became visible; 0: for ever.
    fn ttl_ms(&self, partition: PartitionId) -> u64 {
        self.topics.by_partition(partition).map_or(0, |topic| topic.settings.ttl_ms)
    }

    /// The filter of a group's subscription to the topic of a partition, and the group's rates.
    pub(super) fn filter_of(
        &mut self,
        group: GroupId,
        partition: PartitionId,
    ) -> Result<(Arc<Filter>, Rates), ErrorCode> {
        let topic = self.topics.by_partition(partition).ok_or_else(|| self.no_such_partition())?;
        let known = self.group(group)?;
        let rates = rates_of(&known.entry.options);
        let text = known.filter(&topic.name).ok_or(ErrorCode::NotPermitted)?;
        if let Some(filter) = self.queues.filters.get(&(group, partition)) {
            return Ok((filter.clone(), rates));
        }
        let filter = Arc::new(Filter::parse(text).map_err(|_| ErrorCode::InvalidFilter)?);
        self.queues.filters.insert((group, partition), filter.clone());
        Ok((filter, rates))
    }

    /// A coordinator has lent something of a group's rate.
    fn take_loan(&mut self, group: GroupId, loan: Loan) {
        let now_us = self.ring.now().mono_us;
        let Ok(rates) = self.group(group).map(|known| rates_of(&known.entry.options)) else {
            self.queues.purses.remove(&group);
            self.queues.starving.remove(&group);
            return self.wake_starved(group);
        };
        let mut purse = self.queues.purse(group);
        purse.take(rates, loan, now_us);
        self.queues.purses.insert(group, purse);
        if purse.records(rates) > 0 {
            self.queues.starving.remove(&group);
            self.wake_starved(group);
        }
    }

    fn wake_starved(&mut self, group: GroupId) {
        for origin in self.queues.starved_readers.remove(&group).unwrap_or_default() {
            self.readers.wake(origin);
        }
        let first = (group, PartitionId(0));
        for (key, queue) in self.queues.queues.range_mut(first..).take_while(|(key, _)| key.0 == group) {
            if std::mem::take(&mut queue.starved) {
                self.queues.ready.insert(*key);
            }
        }
    }

    fn turn_starving(&mut self) {
        let now_us = self.ring.now().mono_us;
        for (group, rates) in self.queues.starving.clone() {
            let mut purse = self.queues.purse(group);
            if let Some(want) = purse.wants(rates, now_us) {
                self.queues.purses.insert(group, purse);
                let connection = super::requests::NOBODY;
                let origin = Origin { shard: self.own, connection, tag: u64::from(group.0) };
                let coordinator = group.coordinator(self.mail.shards()).0;
                self.dispatch(origin, coordinator, Work::Queue(QueueWork::Borrow { group, want }));
            }
        }
    }

    /// Once a turn, after readers: what has moved is known then.
    pub(super) fn turn_queues(&mut self) {
        self.take_queue_events();
        self.turn_timers();
        self.turn_ready();
        self.turn_deadlines();
        self.turn_starving();
        self.turn_dying();
        self.flush_queues();
    }

    fn take_queue_events(&mut self) {
        use super::groups::GroupEvent;
        for event in self.group_events().to_vec() {
            match event {
                GroupEvent::Changed(group) => self.group_has_changed(group),
                GroupEvent::Removed(group) => {
                    for key in self.queue_keys(group) {
                        self.drop_queue(key, ErrorCode::UnknownGroup);
                    }
                    self.queues.filters.retain(|key, _| key.0 != group);
                    self.queues.budgets.remove(&group);
                    self.queues.starving.remove(&group);
                    self.queues.purses.remove(&group);
                    self.wake_starved(group);
                    for batch in &mut self.queues.outbox {
                        batch.forget(|key| key.0 == group);
                    }
                }
                GroupEvent::MemberGone { group, member, .. } => {
                    let is_its = |(_, (key, receive)): &(&Origin, &(Key, Receiving))| {
                        key.0 == group && receive.member == member
                    };
                    let receives = self.queues.receives.iter().filter(is_its).map(|entry| *entry.0);
                    for origin in receives.collect::<Vec<_>>() {
                        self.refuse_receive(origin, ErrorCode::NotAMember);
                    }
                }
                GroupEvent::Reset { group, partition } => {
                    // What was given out or said before is void; RECEIVEs begin anew.
                    let key = (group, partition);
                    for batch in &mut self.queues.outbox {
                        batch.forget(|other| other == key);
                    }
                    for origin in self.queues.remove_queue(key) {
                        self.enqueue_again(origin);
                    }
                }
            }
        }
    }

    fn queue_keys(&self, group: GroupId) -> Vec<Key> {
        let first = (group, PartitionId(0));
        self.queues.queues.range(first..).map(|(key, _)| *key).take_while(|key| key.0 == group).collect()
    }

    fn group_has_changed(&mut self, group: GroupId) {
        self.queues.filters.retain(|key, _| key.0 != group);
        for key in self.queue_keys(group) {
            let Ok(known) = self.group(group) else { return };
            let options = known.entry.options.clone();
            let is_queue = known.is_queue();
            let filter = self.filter_of(group, key.1);
            let Some(queue) = self.queues.queues.get_mut(&key) else { continue };
            let (Ok((filter, rates)), true) = (filter, is_queue) else {
                self.drop_queue(key, ErrorCode::NotPermitted);
                continue;
            };
            if queue.table.is_ordered() != options.ordered {
                // Keys of what is out are not known: the leases end.
                for origin in self.queues.remove_queue(key) {
                    self.enqueue_again(origin);
                }
                continue;
            }
            queue.table.set_rules(settle::rules_of(&options));
            (queue.filter, queue.rates, queue.invisible_ms) = (filter, rates, options.invisible_ms);
            self.queues.ready.insert(key);
        }
        if self.queues.starving.contains_key(&group)
            && let Ok(rates) = self.group(group).map(|known| rates_of(&known.entry.options))
        {
            self.queues.starving.insert(group, rates);
            if self.queues.purse(group).records(rates) > 0 {
                self.queues.starving.remove(&group);
                self.wake_starved(group);
            }
        }
    }

    /// A connection, of this shard or of another, is gone. What was put into its output stays leased.
    pub(super) fn forget_in_queues(&mut self, shard: u16, connection: ConnectionKey) {
        let first = Origin { shard, connection, tag: 0 };
        let last = Origin { shard, connection, tag: u64::MAX };
        let gone: Vec<_> = self.queues.receives.range(first..=last).map(|(origin, _)| *origin).collect();
        for origin in gone {
            self.queues.take_receive(origin);
        }
        self.queues.answering.remove(&(shard, connection));
    }

    /// Records out under a lease, and dead letters made since the group's table was loaded.
    pub(super) fn queue_counts(&self, group: GroupId, partition: PartitionId) -> (u32, u64) {
        let table = self.queues.queues.get(&(group, partition)).map(|queue| &queue.table);
        table.map_or((0, 0), |table| (table.in_flight() as u32, table.dead_letters()))
    }
}
