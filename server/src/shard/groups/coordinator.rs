//! The coordinator of groups: makes, changes and deletes them, admits members, and tells every shard.
//!
//! ```text
//! request -> membership, GROUP frame if the group changes -[durable]-> told to every shard -[all have it]-> answer
//! ```
//!
//! Invariants  O1  A group is told to others only when it is durable here.
//!             O2  One message to the other shards is on its way at a time; what changes meanwhile is in the next one.
//!             O3  What changed first is told first.
//!             O4  Who gets partitions of a living member is answered a moment after that one was told, so that it can
//!                 commit what it has done: otherwise that would be read twice.

use super::membership::{Beat, Member, Membership, Now, Refusal, Released, Shape};
use super::work::{GroupAnswer, GroupWork, Join, Joined, Members, Notice, Refused};
use crate::shard::mail::{Answer, ConnectionKey, Origin, Work};
use crate::shard::requests::NOBODY;
use crate::shard::topics::{NewTopic, Topics};
use crate::shard::{Ack, AckTarget, Draining, ShardServer};
use ringmq_engine::shard::AppendError;
use ringmq_format::catalogue::{TopicEntry, TopicSettings};
use ringmq_format::consumer_group::{ConsumerGroup, GroupMode, GroupOptions};
use ringmq_format::limits::{GROUPS_MAX, TOPIC_NAME_MAX};
use ringmq_format::{GroupId, Lsn, PartitionId};
use ringmq_protocol::limits::DESCRIBE_MEMBERS_MAX;
use ringmq_protocol::{Assignment, ErrorCode, ItemsBuf, MemberEntry};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use zerocopy::little_endian::U32;

/// In front of a group's name, the name of the topic of its dead letters.
const DEAD_LETTERS: &str = "%DLQ%";
/// See O4.
const HAND_OVER_US: u64 = 50_000;
/// Positions that subscribers without a stable name may report to one coordinator, over all of them.
const REPORTED_MAX: usize = 1 << 20;

#[derive(Debug)]
struct Coordinated {
    members: Membership<Origin>,
    timer: Option<u64>,
    /// Positions that its members report, as they were counted last.
    reported: usize,
}

/// What waits for the disk: then it is told, and then somebody is answered.
#[derive(Debug, Default)]
struct Staged {
    notices: Vec<Notice>,
    reply: Option<(Origin, GroupAnswer)>,
    /// The topic of a group's dead letters has to be there before the answer.
    topic: Option<(String, GroupId, u64)>,
}

/// See O2.
#[derive(Debug, Default)]
struct Teller {
    sequence: u64,
    notices: Vec<Notice>,
    replies: Vec<(Origin, GroupAnswer)>,
    /// Shards that have not answered, and who is answered then.
    on_the_way: Option<(usize, Vec<(Origin, GroupAnswer)>)>,
}

/// A subscriber's position is being forgotten everywhere.
#[derive(Debug)]
struct Forgetting {
    asked: Origin,
    missing: u16,
    failed: Option<ErrorCode>,
}

/// What a shard keeps as a coordinator.
#[derive(Debug, Default)]
pub(super) struct Coordinator {
    epoch: u32,
    started: bool,
    groups: BTreeMap<GroupId, Coordinated>,
    timers: BTreeSet<(u64, GroupId)>,
    members_made: u32,
    /// Connections whose heartbeats are held back.
    holding: BTreeSet<(u16, ConnectionKey, GroupId, u64)>,
    reported: usize,
    /// Where the last GROUP frame ends.
    logged_until: Lsn,
    staged: BTreeMap<u64, Staged>,
    awaiting_topic: BTreeMap<u64, (Origin, GroupAnswer, GroupId, u64)>,
    forgetting: BTreeMap<u64, Forgetting>,
    next_ticket: u64,
    teller: Teller,
    /// What the log had no room for.
    deferred: VecDeque<(Origin, GroupWork)>,
    /// See O4: when, whom, and what was to be answered.
    handing_over: VecDeque<(u64, Origin, Box<Joined>)>,
    topics_changed: BTreeSet<String>,
}

impl Coordinator {
    pub(super) fn deadline(&self) -> Option<u64> {
        let hand_over = self.handing_over.front().map(|(at, ..)| *at);
        self.timers.first().map(|(at, _)| *at).into_iter().chain(hand_over).min()
    }

    pub(super) fn has_work(&self) -> bool {
        !self.topics_changed.is_empty()
    }

    /// Everything that is kept for somebody's request.
    pub(super) fn count(&self) -> usize {
        let on_the_way = self.teller.on_the_way.as_ref().map_or(0, |(_, replies)| replies.len());
        self.holding.len()
            + self.staged.len()
            + self.awaiting_topic.len()
            + self.forgetting.len()
            + self.teller.replies.len()
            + on_the_way
            + self.deferred.len()
            + self.handing_over.len()
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// A number that no member has had, in any life.
    fn fresh_member(&mut self) -> u64 {
        self.members_made += 1;
        u64::from(self.epoch) << 32 | u64::from(self.members_made)
    }

    pub(super) fn topic_changed(&mut self, name: &str) {
        if self.groups.values().any(|group| !group.members.is_empty()) {
            self.topics_changed.insert(name.to_owned());
        }
    }
}

fn shape_of(topics: &Topics, name: &str) -> Option<Shape> {
    topics.by_name(name).map(|entry| Shape {
        topic: entry.topic,
        name: entry.name.clone(),
        base: entry.first_partition,
        partitions: entry.partitions,
    })
}

fn assignments(members: &Membership<Origin>, member: u64) -> ItemsBuf {
    let mut items = ItemsBuf::default();
    for (shape, ids) in members.assignment(member) {
        let indices: Option<Vec<U32>> =
            ids.map(|ids| ids.iter().map(|id| U32::new(id - shape.base.0)).collect());
        items.push(&Assignment {
            topic: shape.topic,
            name: &shape.name,
            base_partition: shape.base,
            partitions: shape.partitions,
            assigned: indices.as_deref(),
        });
    }
    items
}

fn heartbeat_ms(session_ms: u32) -> u32 {
    (session_ms / 3).max(1)
}

fn log_failure(error: AppendError) -> Refused {
    let code = match error {
        AppendError::DiskFull => ErrorCode::DiskFull,
        AppendError::Poisoned => ErrorCode::ShardPoisoned,
        _ => ErrorCode::Internal,
    };
    (code, code.text().to_owned())
}

pub(super) fn refused(code: ErrorCode) -> Refused {
    (code, code.text().to_owned())
}

impl ShardServer {
    fn groups_now(&self) -> Now {
        let now = self.ring.now();
        Now { mono_us: now.mono_us, wall_ms: now.wall_ms }
    }

    pub(super) fn turn_coordinator(&mut self) {
        if !self.groups.coordinator.started && self.shard.is_ready() {
            self.groups.coordinator.started = true;
            self.groups.coordinator.epoch = self.shard.log().epoch().0;
            let group = |group: &ConsumerGroup| Notice::Group(Box::new(group.clone()));
            let mut notices: Vec<Notice> = self.shard.groups().live().map(group).collect();
            notices.push(Notice::Complete);
            self.tell(notices, None);
        }
        while let Some((origin, work)) = self.groups.coordinator.deferred.pop_front() {
            if let Some(again) = self.coordinate(origin, work) {
                self.groups.coordinator.deferred.push_front((origin, again));
                break;
            }
        }
        self.turn_topics_of_groups();
        let now = self.groups_now();
        while let Some((at, group)) = self.groups.coordinator.timers.first().copied()
            && at <= now.mono_us
        {
            self.groups.coordinator.timers.pop_first();
            if let Some(known) = self.groups.coordinator.groups.get_mut(&group) {
                known.timer = None;
                known.members.tick(now);
            }
            self.settle_group(group, Staged::default());
        }
        let drains = self.draining != Draining::No;
        while let Some((_, origin, joined)) =
            self.groups.coordinator.handing_over.pop_front_if(|(at, ..)| *at <= now.mono_us || drains)
        {
            self.hand_partitions_over(origin, joined);
        }
        if drains && !self.groups.coordinator.holding.is_empty() {
            let holding: BTreeSet<GroupId> =
                self.groups.coordinator.holding.iter().map(|held| held.2).collect();
            for group in holding {
                if let Some(known) = self.groups.coordinator.groups.get_mut(&group) {
                    known.members.release_all();
                }
                self.settle_group(group, Staged::default());
            }
        }
    }

    /// Groups that consume topics that were made, deleted or changed.
    fn turn_topics_of_groups(&mut self) {
        let changed = std::mem::take(&mut self.groups.coordinator.topics_changed);
        if changed.is_empty() {
            return;
        }
        let groups: Vec<GroupId> = self.groups.coordinator.groups.keys().copied().collect();
        for group in groups {
            let Some(known) = self.groups.coordinator.groups.get_mut(&group) else { continue };
            if !known.members.consumes(&changed) {
                continue;
            }
            let topics = &self.topics;
            known.members.topics_changed(&|name| shape_of(topics, name));
            self.settle_group(group, Staged::default());
        }
    }

    /// Does what a coordinator is asked for, or gives it back when the log has no room.
    pub(super) fn coordinate(&mut self, origin: Origin, work: GroupWork) -> Option<GroupWork> {
        if !self.groups.coordinator.started {
            self.reply_group(origin, GroupAnswer::Refused(refused(ErrorCode::Recovering)));
            return None;
        }
        let done = match work {
            GroupWork::Join(join) => match self.join_group(origin, join) {
                Ok(again) => return again.map(GroupWork::Join),
                Err(refused) => Err(refused),
            },
            GroupWork::Set { name, make, alter, given } => {
                match self.set_group(origin, &name, make, alter, &given) {
                    Ok(true) => Ok(()),
                    Ok(false) => return Some(GroupWork::Set { name, make, alter, given }),
                    Err(refused) => Err(refused),
                }
            }
            GroupWork::Delete { name, force } => match self.delete_group(origin, &name, force) {
                Ok(true) => Ok(()),
                Ok(false) => return Some(GroupWork::Delete { name, force }),
                Err(refused) => Err(refused),
            },
            GroupWork::Heartbeat { group, member, generation, wait_ms, reported } => {
                self.beat_group(origin, group, (member, generation, wait_ms), reported)
            }
            GroupWork::Leave { group, member, forget } => self.leave_group(origin, group, member, forget),
            GroupWork::Members { group, after, limit, with_members } => {
                self.describe_members(origin, group, after, limit, with_members)
            }
            _ => Ok(()),
        };
        if let Err(refused) = done {
            self.reply_group(origin, GroupAnswer::Refused(refused));
        }
        None
    }

    /// Keeps what the log had no room for, behind what else it had none for.
    pub(super) fn defer_group_work(&mut self, origin: Origin, work: GroupWork) {
        self.groups.coordinator.deferred.push_back((origin, work));
    }

    pub(super) fn reply_group(&mut self, origin: Origin, answer: GroupAnswer) {
        self.reply(origin, Answer::Group(answer));
    }

    /// Logs a group; `Ok(false)`: the log has no room.
    fn log_group(&mut self, entry: &ConsumerGroup) -> Result<bool, Refused> {
        match self.shard.log_group(&mut self.ring, entry) {
            Ok(end) => {
                self.groups.coordinator.logged_until = end;
                Ok(true)
            }
            Err(AppendError::Busy) if self.draining == Draining::No => Ok(false),
            Err(AppendError::Busy) => Err(refused(ErrorCode::ShuttingDown)),
            Err(error) => Err(log_failure(error)),
        }
    }

    /// The entry of a group that could be made now.
    fn plan_group(&self, name: &str) -> Result<ConsumerGroup, Refused> {
        let shards = self.mail.shards();
        let group = self.shard.groups().next_id(ringmq_format::ShardId(self.own), shards);
        let group = group.filter(|_| self.groups.registry.len() < GROUPS_MAX);
        Ok(ConsumerGroup {
            group: group.ok_or_else(|| refused(ErrorCode::TooManyGroups))?,
            name: name.to_owned(),
            deleted: false,
            mode: None,
            created_ms: self.ring.now().wall_ms,
            options: GroupOptions::default(),
            subscriptions: Vec::new(),
        })
    }

    fn join_group(&mut self, origin: Origin, join: Box<Join>) -> Result<Option<Box<Join>>, Refused> {
        let known = self.shard.groups().by_name(&join.group).cloned();
        let is_new = known.is_none();
        let mut entry = match known {
            Some(entry) => entry,
            None if join.create => self.plan_group(&join.group)?,
            None => return Err(refused(ErrorCode::UnknownGroup)),
        };
        if is_new {
            join.given.apply(&mut entry.options);
        }
        let group = entry.group;
        let mode = join.join.mode;
        let dead_letters = format!("{DEAD_LETTERS}{}", entry.name);
        if mode == GroupMode::Queue && dead_letters.len() > TOPIC_NAME_MAX {
            let most = TOPIC_NAME_MAX - DEAD_LETTERS.len();
            let text = format!(
                "a group in queue mode has a name of at most {most} bytes: the topic of its dead letters is named after it"
            );
            return Err((ErrorCode::InvalidGroupName, text));
        }
        if mode == GroupMode::Queue
            && let Some(topic) = self.topics.by_name(&dead_letters)
        {
            // Made by somebody else. A shard without a partition in it would keep what it cannot bury for ever.
            let shards = self.mail.shards();
            let covered: BTreeSet<_> = topic.partition_ids().map(|id| id.shard(shards)).collect();
            if covered.len() < usize::from(shards) {
                let text = format!(
                    "the topic '{dead_letters}' of the group's dead letters needs a partition on each of {shards} \
                     shards; delete it, or give it more partitions"
                );
                return Err((ErrorCode::InvalidGroupName, text));
            }
        }
        if let Some(known) = self.groups.coordinator.groups.get(&group) {
            known.members.admits(&join.join).map_err(|refusal| match refusal {
                Refusal::Conflict(text) => (ErrorCode::SubscriptionConflict, text),
                Refusal::TooManyMembers => refused(ErrorCode::TooManyMembers),
            })?;
        }
        let changes = is_new || entry.mode != Some(mode) || entry.subscriptions != join.join.subscriptions;
        let mut staged = Staged::default();
        if changes {
            entry.mode = Some(mode);
            entry.subscriptions.clone_from(&join.join.subscriptions);
            if !self.log_group(&entry)? {
                return Ok(Some(join));
            }
            staged.notices.push(Notice::Group(Box::new(entry)));
        }
        let now = self.groups_now();
        let (fresh, epoch) = (self.groups.coordinator.fresh_member(), self.groups.coordinator.epoch);
        let instance = join.join.instance;
        let topics = &self.topics;
        let known = self.groups.coordinator.groups.entry(group);
        let known = known.or_insert_with(|| Coordinated {
            members: Membership::new(epoch),
            timer: None,
            reported: 0,
        });
        let (member, hands_over) = known.members.join(now, fresh, join.join, &|name| shape_of(topics, name));
        let session_ms = known.members.members().get(&member).map_or(1, |known| known.session_ms);
        let joined = Joined {
            group,
            member,
            instance,
            generation: known.members.generation(),
            session_ms,
            assignments: assignments(&known.members, member),
            hands_over,
        };
        staged.reply = Some((origin, GroupAnswer::Joined(Box::new(joined))));
        if mode == GroupMode::Queue && self.topics.by_name(&dead_letters).is_none() {
            staged.topic = Some((dead_letters, group, member));
        }
        self.settle_group(group, staged);
        Ok(None)
    }

    fn set_group(
        &mut self,
        origin: Origin,
        name: &str,
        make: bool,
        alter: bool,
        given: &super::settings::Given,
    ) -> Result<bool, Refused> {
        let mut entry = match self.shard.groups().by_name(name) {
            Some(_) if !alter => return Err(refused(ErrorCode::GroupExists)),
            Some(entry) => entry.clone(),
            None if make => self.plan_group(name)?,
            None => return Err(refused(ErrorCode::UnknownGroup)),
        };
        given.apply(&mut entry.options);
        let group = entry.group;
        let changed = self.shard.groups().by_id(group) != Some(&entry);
        if changed && !self.log_group(&entry)? {
            return Ok(false);
        }
        let notices = if changed { vec![Notice::Group(Box::new(entry))] } else { Vec::new() };
        let reply = Some((origin, GroupAnswer::Set { group }));
        self.stage(Staged { notices, reply, topic: None });
        Ok(true)
    }

    fn delete_group(&mut self, origin: Origin, name: &str, force: bool) -> Result<bool, Refused> {
        let Some(entry) = self.shard.groups().by_name(name).cloned() else {
            return Err(refused(ErrorCode::UnknownGroup));
        };
        let group = entry.group;
        let known = self.groups.coordinator.groups.get(&group);
        if !force && known.is_some_and(|known| !known.members.is_empty()) {
            return Err(refused(ErrorCode::GroupInUse));
        }
        let entry = ConsumerGroup { deleted: true, subscriptions: Vec::new(), ..entry };
        if !self.log_group(&entry)? {
            return Ok(false);
        }
        if let Some(known) = self.groups.coordinator.groups.get_mut(&group) {
            known.members.clear();
        }
        let notices = vec![Notice::Group(Box::new(entry))];
        self.settle_group(
            group,
            Staged { notices, reply: Some((origin, GroupAnswer::Deleted)), topic: None },
        );
        if let Some(Coordinated { timer: Some(at), .. }) = self.groups.coordinator.groups.remove(&group) {
            self.groups.coordinator.timers.remove(&(at, group));
        }
        Ok(true)
    }

    fn coordinated(&mut self, group: GroupId) -> Result<&mut Coordinated, Refused> {
        if self.shard.groups().by_id(group).is_none() {
            return Err(refused(ErrorCode::UnknownGroup));
        }
        self.groups.coordinator.groups.get_mut(&group).ok_or_else(|| refused(ErrorCode::NotAMember))
    }

    fn beat_group(
        &mut self,
        origin: Origin,
        group: GroupId,
        (member, generation, wait_ms): (u64, u64, u32),
        reported: Option<Vec<(PartitionId, u64)>>,
    ) -> Result<(), Refused> {
        let now = self.groups_now();
        let wait_ms = if self.draining == Draining::No { wait_ms } else { 0 };
        let room = REPORTED_MAX - self.groups.coordinator.reported.min(REPORTED_MAX);
        let known = self.coordinated(group)?;
        // Only those count that nobody else keeps.
        let of_member = known.members.members().get(&member);
        let before = of_member.map_or(0, |member| member.reported.len());
        let reported = reported.filter(|list| {
            of_member.is_some_and(|member| member.instance == 0) && list.len() <= room + before
        });
        let beat = known.members.heartbeat(now, member, generation, wait_ms, reported, origin);
        let answer = match beat {
            Beat::NotAMember => return Err(refused(ErrorCode::NotAMember)),
            Beat::Answer { changed } => Some(beat_answer(&known.members, member, changed)),
            Beat::Held => None,
        };
        self.settle_group(group, Staged::default());
        match answer {
            Some(answer) => self.reply_group(origin, answer),
            None => {
                let held = (origin.shard, origin.connection, group, member);
                self.groups.coordinator.holding.insert(held);
            }
        }
        Ok(())
    }

    fn leave_group(
        &mut self,
        origin: Origin,
        group: GroupId,
        member: u64,
        forget: bool,
    ) -> Result<(), Refused> {
        let known = self.coordinated(group)?;
        let instance = known.members.leave(member).ok_or_else(|| refused(ErrorCode::NotAMember))?;
        if !forget || instance == 0 {
            let reply = Some((origin, GroupAnswer::Left));
            self.settle_group(group, Staged { reply, ..Staged::default() });
            return Ok(());
        }
        self.settle_group(group, Staged::default());
        let shards = self.mail.shards();
        let ticket = self.groups.coordinator.ticket();
        let forgetting = Forgetting { asked: origin, missing: shards, failed: None };
        self.groups.coordinator.forgetting.insert(ticket, forgetting);
        let own = Origin { shard: self.own, connection: NOBODY, tag: ticket };
        for shard in 0..shards {
            self.dispatch(own, shard, Work::Group(GroupWork::Forget { group, instance }));
        }
        Ok(())
    }

    fn describe_members(
        &mut self,
        origin: Origin,
        group: GroupId,
        after: Option<(PartitionId, u64)>,
        limit: usize,
        with_members: bool,
    ) -> Result<(), Refused> {
        if self.shard.groups().by_id(group).is_none() {
            return Err(refused(ErrorCode::UnknownGroup));
        }
        let now = self.groups_now();
        let mut found = Members {
            generation: 0,
            count: 0,
            members: ItemsBuf::default(),
            owners: Vec::new(),
            instances: Vec::new(),
            reported: Vec::new(),
        };
        if let Some(known) = self.groups.coordinator.groups.get(&group)
            && !known.members.is_empty()
        {
            let members = known.members.members();
            found.generation = known.members.generation();
            found.count = members.len() as u32;
            for (number, member) in members.iter().take(if with_members { DESCRIBE_MEMBERS_MAX } else { 0 }) {
                found.members.push(&MemberEntry {
                    member: *number,
                    name: &member.name,
                    instance: member.instance,
                    instance_name: &member.instance_name,
                    joined_ms: member.joined_ms,
                    partitions: known.members.share(member),
                    silent_ms: ((now.mono_us - member.heard_us) / 1_000).min(u64::from(u32::MAX)) as u32,
                });
            }
            found.add_positions(members, after, limit);
        }
        self.reply_group(origin, GroupAnswer::Members(Box::new(found)));
        Ok(())
    }

    /// After something happened to a group: who waited is answered, others are told, the timer is set.
    fn settle_group(&mut self, group: GroupId, mut staged: Staged) {
        let coordinator = &mut self.groups.coordinator;
        let mut answers = Vec::new();
        if let Some(known) = coordinator.groups.get_mut(&group) {
            let changes = known.members.take_changes();
            if !changes.is_empty() {
                staged.notices.push(Notice::Members { group, changes });
            }
            for Released { token, member, gone, changed } in known.members.take_released() {
                coordinator.holding.remove(&(token.shard, token.connection, group, member));
                answers.push(match gone {
                    true => (token, GroupAnswer::Refused(refused(ErrorCode::NotAMember))),
                    false => (token, beat_answer(&known.members, member, changed)),
                });
            }
            coordinator.reported = coordinator.reported + known.members.reported() - known.reported;
            known.reported = known.members.reported();
            let due = known.members.deadline_us();
            if due != known.timer {
                if let Some(at) = known.timer {
                    coordinator.timers.remove(&(at, group));
                }
                known.timer = due;
                coordinator.timers.extend(due.map(|at| (at, group)));
            }
        }
        for (origin, answer) in answers {
            self.reply_group(origin, answer);
        }
        if !staged.notices.is_empty() || staged.reply.is_some() {
            self.stage(staged);
        }
    }

    /// Goes on when everything logged so far is durable (O1, O3).
    fn stage(&mut self, staged: Staged) {
        let durable_at = self.groups.coordinator.logged_until;
        let is_durable = self.shard.durable() >= durable_at;
        if self.groups.coordinator.staged.is_empty() && (is_durable || self.shard.poisoned().is_some()) {
            self.staged_is_logged(staged, is_durable);
            return;
        }
        let ticket = self.groups.coordinator.ticket();
        self.groups.coordinator.staged.insert(ticket, staged);
        let origin = Origin { shard: self.own, connection: NOBODY, tag: ticket };
        let answer = |durable| Box::new(Answer::Group(GroupAnswer::Logged { durable }));
        let target = AckTarget::Reply { origin, durable: answer(true), unknown: answer(false) };
        self.acks.push_back(Ack { durable_at, target });
    }

    pub(super) fn group_is_logged(&mut self, ticket: u64, durable: bool) {
        if let Some(staged) = self.groups.coordinator.staged.remove(&ticket) {
            self.staged_is_logged(staged, durable);
        }
    }

    fn staged_is_logged(&mut self, staged: Staged, durable: bool) {
        let Staged { mut notices, mut reply, topic } = staged;
        if !durable {
            // What was logged may or may not be found after a restart.
            notices.retain(|notice| !matches!(notice, Notice::Group(_)));
            if let Some((_, answer)) = &mut reply {
                *answer = GroupAnswer::Refused(refused(ErrorCode::OutcomeUnknown));
            }
        }
        let awaited = topic.filter(|(name, ..)| durable && self.topics.by_name(name).is_none());
        if let Some((name, group, member)) = awaited
            && let Some((origin, answer)) = reply.take()
        {
            let ticket = self.groups.coordinator.ticket();
            self.groups.coordinator.awaiting_topic.insert(ticket, (origin, answer, group, member));
            let asks = Origin { shard: self.own, connection: NOBODY, tag: ticket };
            let partitions = u32::from(self.mail.shards());
            let settings = TopicSettings::default();
            let new = NewTopic { name, partitions, if_not_exists: true, settings };
            self.dispatch(asks, 0, Work::CreateTopic(new));
        }
        self.tell(notices, reply);
    }

    /// The topic of a group's dead letters is there, or cannot be.
    pub(in crate::shard) fn take_dead_letter_topic(
        &mut self,
        ticket: u64,
        result: Result<TopicEntry, ErrorCode>,
    ) {
        let Some((origin, answer, group, member)) = self.groups.coordinator.awaiting_topic.remove(&ticket)
        else {
            return;
        };
        let answer = match result {
            Ok(_) => answer,
            Err(code) => {
                if let Some(known) = self.groups.coordinator.groups.get_mut(&group) {
                    known.members.leave(member);
                }
                let text = format!("the topic of the group's dead letters cannot be made: {}", code.text());
                GroupAnswer::Refused((code, text))
            }
        };
        self.settle_group(group, Staged { reply: Some((origin, answer)), ..Staged::default() });
    }

    /// A shard has forgotten a subscriber's positions.
    pub(super) fn position_is_forgotten(&mut self, ticket: u64, failed: Option<ErrorCode>) {
        let Some(forgetting) = self.groups.coordinator.forgetting.get_mut(&ticket) else { return };
        forgetting.missing -= 1;
        forgetting.failed = forgetting.failed.or(failed);
        if forgetting.missing > 0 {
            return;
        }
        if let Some(Forgetting { asked, failed, .. }) = self.groups.coordinator.forgetting.remove(&ticket) {
            let answer = failed.map_or(GroupAnswer::Left, |code| GroupAnswer::Refused(refused(code)));
            self.stage(Staged { reply: Some((asked, answer)), ..Staged::default() });
        }
    }

    // -- telling -------------------------------------------------------------------------------------------

    fn tell(&mut self, notices: Vec<Notice>, reply: Option<(Origin, GroupAnswer)>) {
        self.groups.coordinator.teller.notices.extend(notices);
        self.groups.coordinator.teller.replies.extend(reply);
        self.turn_teller();
    }

    fn turn_teller(&mut self) {
        if self.groups.coordinator.teller.on_the_way.is_some() {
            return; // O2
        }
        let teller = &mut self.groups.coordinator.teller;
        let (notices, replies) = (std::mem::take(&mut teller.notices), std::mem::take(&mut teller.replies));
        let peers = usize::from(self.mail.shards()) - 1;
        if !notices.is_empty() {
            teller.sequence += 1;
            let origin = Origin { shard: self.own, connection: NOBODY, tag: teller.sequence };
            let (coordinator, epoch) = (self.own, self.groups.coordinator.epoch);
            for shard in (0..self.mail.shards()).filter(|shard| *shard != coordinator) {
                let notices = notices.clone();
                self.dispatch(origin, shard, Work::Group(GroupWork::Tell { coordinator, epoch, notices }));
            }
            self.take_notices(coordinator, epoch, notices);
            if peers > 0 {
                self.groups.coordinator.teller.on_the_way = Some((peers, replies));
                return;
            }
        }
        self.reply_to_all(replies);
    }

    fn reply_to_all(&mut self, replies: Vec<(Origin, GroupAnswer)>) {
        for (origin, answer) in replies {
            match answer {
                GroupAnswer::Joined(joined) if joined.hands_over => {
                    let at = self.ring.now().mono_us + HAND_OVER_US;
                    self.groups.coordinator.handing_over.push_back((at, origin, joined)); // O4
                }
                answer => self.reply_group(origin, answer),
            }
        }
    }

    /// Answers a JOIN_GROUP with what the member has by now.
    fn hand_partitions_over(&mut self, origin: Origin, mut joined: Box<Joined>) {
        let known = self.groups.coordinator.groups.get(&joined.group);
        let answer = match known.filter(|known| known.members.members().contains_key(&joined.member)) {
            Some(known) => {
                joined.generation = known.members.generation();
                joined.assignments = assignments(&known.members, joined.member);
                GroupAnswer::Joined(joined)
            }
            None => GroupAnswer::Refused(refused(ErrorCode::NotAMember)),
        };
        self.reply_group(origin, answer);
    }

    /// A shard knows what it was told.
    pub(super) fn notices_were_taken(&mut self, sequence: u64) {
        let teller = &mut self.groups.coordinator.teller;
        let Some((missing, _)) = teller.on_the_way.as_mut().filter(|_| teller.sequence == sequence) else {
            return;
        };
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        let (_, replies) = teller.on_the_way.take().unwrap_or_default();
        self.reply_to_all(replies);
        self.turn_teller();
    }

    /// Nobody waits for heartbeats of this connection any more.
    pub(super) fn forget_heartbeats(&mut self, shard: u16, connection: ConnectionKey) {
        let coordinator = &mut self.groups.coordinator;
        let first = (shard, connection, GroupId(0), 0);
        let last = (shard, connection, GroupId(u32::MAX), u64::MAX);
        let gone: Vec<_> = coordinator.holding.range(first..=last).copied().collect();
        for held in gone {
            coordinator.holding.remove(&held);
            let (_, _, group, member) = held;
            if let Some(known) = coordinator.groups.get_mut(&group) {
                known.members.forget(member, |token| token.shard == shard && token.connection == connection);
            }
        }
    }
}

fn beat_answer(members: &Membership<Origin>, member: u64, changed: bool) -> GroupAnswer {
    let session_ms = members.members().get(&member).map_or(1, |member| member.session_ms);
    GroupAnswer::Beat {
        generation: members.generation(),
        heartbeat_ms: heartbeat_ms(session_ms),
        assignments: if changed { assignments(members, member) } else { ItemsBuf::default() },
    }
}

impl Joined {
    pub(super) fn heartbeat_ms(&self) -> u32 {
        heartbeat_ms(self.session_ms)
    }
}

impl Members {
    /// Who has what, as far as a page of positions behind `after` may need it.
    fn add_positions(
        &mut self,
        members: &BTreeMap<u64, Member<Origin>>,
        after: Option<(PartitionId, u64)>,
        limit: usize,
    ) {
        let behind =
            |partition: PartitionId, instance: u64| after.is_none_or(|after| (partition, instance) > after);
        let from = after.map_or(PartitionId(0), |after| after.0);
        for (number, member) in members {
            let ids = member.assigned.iter().map(|id| PartitionId(*id)).filter(|id| *id >= from);
            self.owners.extend(ids.map(|id| (id, *number)));
            if member.instance != 0 {
                self.instances.push((member.instance, *number));
            } else {
                let reported = member.reported.iter().filter(|(id, _)| behind(*id, *number));
                self.reported.extend(reported.map(|(id, offset)| (*id, *number, *offset)));
            }
        }
        self.owners.sort_unstable();
        self.owners.truncate(limit + 1);
        self.reported.sort_unstable();
        self.reported.truncate(limit + 1);
        self.instances.sort_unstable();
    }
}
