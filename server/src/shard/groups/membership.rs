//! Who is a member of a group, and what each has: a state machine without I/O. Time and events in, answers out.
//!
//! Invariants  E1  A partition has at most one member under one generation, and as long as a group has members in
//!                 stream mode every partition has one (unless there are more than several members can be told of).
//!             E2  The generation changes whenever a member's assignment does, and never goes back.
//!             E3  Shares differ by one partition at most, and no more of them move than that takes.
//!             E4  A member that is silent for its session time is out; one that was heard is not.
//!             E5  A heartbeat is held back only while its member has the newest generation, and once at a time.

use ringmq_format::consumer_group::{GroupMode, GroupSubscription};
use ringmq_format::{PartitionId, TopicId};
use ringmq_protocol::limits::PARTITIONS_ASSIGNED_MAX;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Silence after which a member is dropped, unless it asks otherwise.
pub(super) const SESSION_MS_DEFAULT: u32 = 30_000;
const SESSION_MS_MIN: u32 = 100;
const SESSION_MS_MAX: u32 = 3_600_000;
/// A heartbeat's answer is held back no longer.
const HOLD_MS_MAX: u32 = 30_000;
/// Members of a group.
pub(super) const MEMBERS_MAX: usize = 65_536;

/// Both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) mono_us: u64,
    pub(super) wall_ms: i64,
}

/// A topic that a group consumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) topic: TopicId,
    pub(super) name: String,
    pub(super) base: PartitionId,
    pub(super) partitions: u32,
}

impl Shape {
    fn ids(&self) -> std::ops::Range<u32> {
        self.base.0..self.base.0 + self.partitions
    }
}

/// What is known of topics.
pub(super) type Topics<'a> = &'a dyn Fn(&str) -> Option<Shape>;

/// Somebody who wants to be a member.
#[derive(Clone, Debug)]
pub(in crate::shard) struct Joining {
    /// 0, or its number from before.
    pub(super) member: u64,
    pub(super) name: String,
    /// Stable name and number of a broadcast instance; empty and 0 for none.
    pub(super) instance_name: String,
    pub(super) instance: u64,
    pub(super) session_ms: u32,
    pub(super) mode: GroupMode,
    pub(super) subscriptions: Vec<GroupSubscription>,
}

/// Why it cannot be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Names the member and the difference.
    Conflict(String),
    TooManyMembers,
}

/// A member.
#[derive(Debug)]
pub(super) struct Member<T> {
    pub(super) name: String,
    pub(super) instance_name: String,
    pub(super) instance: u64,
    pub(super) session_ms: u32,
    pub(super) joined_ms: i64,
    pub(super) heard_us: u64,
    /// Stream: ids of the partitions that it has, in their order.
    pub(super) assigned: Vec<u32>,
    /// Where it says that it stands.
    pub(super) reported: Vec<(PartitionId, u64)>,
    held: Option<(T, u64)>,
    /// Its entry among the timers.
    timer_us: u64,
}

impl<T> Member<T> {
    fn expires_us(&self) -> u64 {
        self.heard_us + u64::from(self.session_ms) * 1_000
    }

    fn due_us(&self) -> u64 {
        self.held.as_ref().map_or(u64::MAX, |held| held.1).min(self.expires_us())
    }
}

/// What others have to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum Change {
    Joined(u64),
    /// `left`: it said so.
    Gone {
        member: u64,
        left: bool,
    },
}

/// An answer to a heartbeat that was held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Released<T> {
    pub(super) token: T,
    pub(super) member: u64,
    /// It is no member any more.
    pub(super) gone: bool,
    /// There is a generation that it did not know.
    pub(super) changed: bool,
}

/// What becomes of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    NotAMember,
    /// Answer it; `changed`: with the assignment.
    Answer {
        changed: bool,
    },
    Held,
}

/// The members of one group. `T` is whom an answer goes to.
#[derive(Debug)]
pub(super) struct Membership<T> {
    epoch: u32,
    counter: u32,
    members: BTreeMap<u64, Member<T>>,
    mode: GroupMode,
    subscriptions: Vec<GroupSubscription>,
    shapes: Vec<Shape>,
    timers: BTreeSet<(u64, u64)>,
    changes: Vec<Change>,
    released: Vec<Released<T>>,
    reported: usize,
}

impl<T: Copy> Membership<T> {
    /// Nobody yet, in a life of the shard with this epoch.
    pub(super) fn new(epoch: u32) -> Self {
        Self {
            epoch,
            counter: 0,
            members: BTreeMap::new(),
            mode: GroupMode::Stream,
            subscriptions: Vec::new(),
            shapes: Vec::new(),
            timers: BTreeSet::new(),
            changes: Vec::new(),
            released: Vec::new(),
            reported: 0,
        }
    }

    pub(super) fn members(&self) -> &BTreeMap<u64, Member<T>> {
        &self.members
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Generation of the assignment.
    pub(super) fn generation(&self) -> u64 {
        u64::from(self.epoch) << 32 | u64::from(self.counter)
    }

    /// When `tick` has something to do although nothing else happened.
    pub(super) fn deadline_us(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Positions that members report.
    pub(super) fn reported(&self) -> usize {
        self.reported
    }

    /// Heartbeats that are held back.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.members.values().filter(|member| member.held.is_some()).count()
    }

    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub(super) fn take_released(&mut self) -> Vec<Released<T>> {
        std::mem::take(&mut self.released)
    }

    /// What a member has: topics, each with the ids of its partitions; `None` is all of them.
    pub(super) fn assignment(&self, member: u64) -> Vec<(&Shape, Option<Vec<u32>>)> {
        let Some(member) = self.members.get(&member) else { return Vec::new() };
        let part = |shape: &Shape| {
            if self.mode != GroupMode::Stream {
                return None;
            }
            let ids = shape.ids();
            let from = member.assigned.partition_point(|id| *id < ids.start);
            let to = member.assigned.partition_point(|id| *id < ids.end);
            (to - from < ids.len()).then(|| member.assigned[from..to].to_vec())
        };
        self.shapes.iter().map(|shape| (shape, part(shape))).collect()
    }

    /// Partitions that a member has.
    pub(super) fn share(&self, member: &Member<T>) -> u32 {
        match self.mode {
            GroupMode::Stream => member.assigned.len() as u32,
            _ => self.shapes.iter().map(|shape| shape.partitions).sum(),
        }
    }

    /// Whether somebody may join, before anything is changed.
    pub(super) fn admits(&self, join: &Joining) -> Result<(), Refusal> {
        let others = self.members.iter().filter(|(number, member)| !replaces(join, **number, member));
        let Some((_, other)) = others.clone().next() else { return Ok(()) };
        if let Some(difference) = self.difference(join) {
            return Err(Refusal::Conflict(format!("member '{}' {difference}", other.name)));
        }
        if !self.members.contains_key(&join.member) && others.count() >= MEMBERS_MAX {
            return Err(Refusal::TooManyMembers);
        }
        Ok(())
    }

    fn difference(&self, join: &Joining) -> Option<String> {
        if self.mode != join.mode {
            let (theirs, ours) = (mode_name(self.mode), mode_name(join.mode));
            return Some(format!("consumes in {theirs} mode, this one in {ours} mode"));
        }
        let of = |list: &[GroupSubscription]| -> BTreeMap<String, String> {
            list.iter().map(|one| (one.topic.clone(), one.filter.clone())).collect()
        };
        let (theirs, ours) = (of(&self.subscriptions), of(&join.subscriptions));
        for topic in theirs.keys().chain(ours.keys()) {
            return match (theirs.get(topic), ours.get(topic)) {
                (Some(theirs), Some(ours)) if theirs == ours => continue,
                (Some(theirs), Some(ours)) => {
                    Some(format!("consumes '{topic}' with filter '{theirs}', this one with '{ours}'"))
                }
                (Some(_), None) => Some(format!("consumes '{topic}', this one does not")),
                (None, _) => Some(format!("does not consume '{topic}', this one does")),
            };
        }
        None
    }

    /// Makes a member; ask `admits` before. `fresh` is a number that nobody has had. Answers the member's number, and
    /// whether somebody has to give up partitions to it.
    pub(super) fn join(&mut self, now: Now, fresh: u64, join: Joining, topics: Topics<'_>) -> (u64, bool) {
        let number = if join.member == 0 { fresh } else { join.member };
        let replaced: Vec<u64> = self
            .members
            .iter()
            .filter(|(other, member)| **other != number && replaces(&join, **other, member))
            .map(|(other, _)| *other)
            .collect();
        replaced.into_iter().for_each(|other| self.remove(other, false));
        if self.members.is_empty() || self.difference(&join).is_some() {
            self.mode = join.mode;
            self.subscriptions = join.subscriptions;
            self.members.values_mut().for_each(|member| member.assigned.clear());
            self.shapes = self.look_up(topics);
            self.new_generation();
        }
        let session_ms = match join.session_ms {
            0 => SESSION_MS_DEFAULT,
            asked => asked.clamp(SESSION_MS_MIN, SESSION_MS_MAX),
        };
        match self.members.get_mut(&number) {
            Some(member) => {
                member.session_ms = session_ms;
                member.heard_us = now.mono_us;
                (member.name, member.instance_name) = (join.name, join.instance_name);
                member.instance = join.instance;
            }
            None => {
                let member = Member {
                    name: join.name,
                    instance_name: join.instance_name,
                    instance: join.instance,
                    session_ms,
                    joined_ms: now.wall_ms,
                    heard_us: now.mono_us,
                    assigned: Vec::new(),
                    reported: Vec::new(),
                    held: None,
                    timer_us: u64::MAX,
                };
                self.members.insert(number, member);
                self.changes.push(Change::Joined(number));
            }
        }
        self.set_timer(number);
        (number, self.assign())
    }

    /// A member says that it lives. Its answer is held back if nothing is new to it and it is ready to wait.
    pub(super) fn heartbeat(
        &mut self,
        now: Now,
        number: u64,
        generation: u64,
        wait_ms: u32,
        reported: Option<Vec<(PartitionId, u64)>>,
        token: T,
    ) -> Beat {
        let current = self.generation();
        let Some(member) = self.members.get_mut(&number) else { return Beat::NotAMember };
        member.heard_us = now.mono_us; // E4
        if let Some(reported) = reported {
            self.reported = self.reported + reported.len() - member.reported.len();
            member.reported = reported;
        }
        // E5: whoever asks again has given up waiting for the answer before.
        if let Some((before, _)) = member.held.take() {
            self.released.push(Released { token: before, member: number, gone: false, changed: false });
        }
        let beat = if generation != current {
            Beat::Answer { changed: true }
        } else if wait_ms == 0 {
            Beat::Answer { changed: false }
        } else {
            let wait_ms = wait_ms.min(HOLD_MS_MAX).min(member.session_ms / 2);
            member.held = Some((token, now.mono_us + u64::from(wait_ms) * 1_000));
            Beat::Held
        };
        self.set_timer(number);
        beat
    }

    /// A member ends. Answers the instance that it was; `None`: it is none.
    pub(super) fn leave(&mut self, number: u64) -> Option<u64> {
        let instance = self.members.get(&number)?.instance;
        self.remove(number, true);
        self.assign();
        Some(instance)
    }

    /// Drops who was silent for too long, and answers who has waited long enough.
    pub(super) fn tick(&mut self, now: Now) {
        let before = self.members.len();
        while let Some((at, number)) = self.timers.first().copied()
            && at <= now.mono_us
        {
            self.timers.pop_first();
            let Some(member) = self.members.get_mut(&number) else { continue };
            member.timer_us = u64::MAX;
            if member.expires_us() <= now.mono_us {
                self.remove(number, false); // E4
                continue;
            }
            if let Some((token, until)) = member.held
                && until <= now.mono_us
            {
                member.held = None;
                self.released.push(Released { token, member: number, gone: false, changed: false });
            }
            self.set_timer(number);
        }
        if self.members.len() != before {
            self.assign();
        }
    }

    /// A topic was made, deleted or changed.
    pub(super) fn topics_changed(&mut self, topics: Topics<'_>) {
        let shapes = self.look_up(topics);
        if shapes != self.shapes && !self.members.is_empty() {
            self.shapes = shapes;
            if self.mode == GroupMode::Stream {
                self.assign();
            } else {
                self.new_generation();
            }
        }
    }

    /// Whether one of these topics concerns it.
    pub(super) fn consumes(&self, topics: &BTreeSet<String>) -> bool {
        !self.members.is_empty() && self.subscriptions.iter().any(|one| topics.contains(&one.topic))
    }

    /// Everybody is out: the group is no more.
    pub(super) fn clear(&mut self) {
        let all: Vec<u64> = self.members.keys().copied().collect();
        all.into_iter().for_each(|number| self.remove(number, false));
    }

    /// Answers every heartbeat that is held back.
    pub(super) fn release_all(&mut self) {
        for (number, member) in &mut self.members {
            if let Some((token, _)) = member.held.take() {
                self.released.push(Released { token, member: *number, gone: false, changed: false });
            }
        }
    }

    /// Nobody waits for this answer any more.
    pub(super) fn forget(&mut self, number: u64, is_it: impl Fn(T) -> bool) {
        if let Some(member) = self.members.get_mut(&number)
            && member.held.is_some_and(|(token, _)| is_it(token))
        {
            member.held = None;
        }
    }

    fn remove(&mut self, number: u64, left: bool) {
        let Some(member) = self.members.remove(&number) else { return };
        self.timers.remove(&(member.timer_us, number));
        self.reported -= member.reported.len();
        if let Some((token, _)) = member.held {
            self.released.push(Released { token, member: number, gone: true, changed: false });
        }
        self.changes.push(Change::Gone { member: number, left });
    }

    /// Makes sure that `tick` comes in time; it may come early.
    fn set_timer(&mut self, number: u64) {
        let Some(member) = self.members.get_mut(&number) else { return };
        let due = member.due_us();
        if due < member.timer_us {
            self.timers.remove(&(member.timer_us, number));
            member.timer_us = due;
            self.timers.insert((due, number));
        }
    }

    fn look_up(&self, topics: Topics<'_>) -> Vec<Shape> {
        let mut shapes: Vec<Shape> = self.subscriptions.iter().filter_map(|one| topics(&one.topic)).collect();
        shapes.sort_by_key(|shape| shape.base);
        shapes
    }

    fn new_generation(&mut self) {
        self.counter += 1; // E2
        for (number, member) in &mut self.members {
            if let Some((token, _)) = member.held.take() {
                self.released.push(Released { token, member: *number, gone: false, changed: true });
            }
        }
    }

    /// Gives every partition to a member (E1), so that shares are equal and as little moves as that takes (E3). Answers
    /// whether a member has to give up what it had.
    fn assign(&mut self) -> bool {
        if self.mode != GroupMode::Stream || self.members.is_empty() {
            return false;
        }
        let shapes = &self.shapes;
        let exists = |id: u32| {
            let at = shapes.partition_point(|shape| shape.base.0 <= id);
            at > 0 && shapes[at - 1].ids().contains(&id)
        };
        let mut changed = false;
        for member in self.members.values_mut() {
            let before = member.assigned.len();
            member.assigned.retain(|id| exists(*id));
            changed |= member.assigned.len() != before;
        }
        let total: usize = shapes.iter().map(|shape| shape.partitions as usize).sum();
        // One member has all of every topic, which needs no names.
        let most = if self.members.len() == 1 { usize::MAX } else { PARTITIONS_ASSIGNED_MAX - 1 };
        let (share, more) = ((total / self.members.len()).min(most), total % self.members.len());
        // Those that have most keep one more than the others.
        let mut order: Vec<(Reverse<usize>, u64)> =
            self.members.iter().map(|(number, member)| (Reverse(member.assigned.len()), *number)).collect();
        order.sort_unstable();
        let mut taken = BTreeSet::new();
        let mut gives_up = false;
        for (place, (_, number)) in order.iter().enumerate() {
            let Some(member) = self.members.get_mut(number) else { continue };
            let quota = share + usize::from(place < more);
            gives_up |= member.assigned.len() > quota;
            member.assigned.truncate(quota);
            taken.extend(member.assigned.iter().copied());
        }
        let mut free = shapes.iter().flat_map(Shape::ids).filter(|id| !taken.contains(id));
        for (place, (_, number)) in order.iter().enumerate() {
            let Some(member) = self.members.get_mut(number) else { continue };
            let quota = share + usize::from(place < more);
            let lacks = quota - member.assigned.len();
            if lacks > 0 {
                member.assigned.extend(free.by_ref().take(lacks));
                member.assigned.sort_unstable();
                changed = true;
            }
        }
        if changed || gives_up {
            self.new_generation();
        }
        gives_up
    }
}

/// The member is the joining one, or the same broadcast instance in an earlier life.
fn replaces<T>(join: &Joining, number: u64, member: &Member<T>) -> bool {
    number == join.member || (join.instance != 0 && join.instance == member.instance)
}

pub(super) fn mode_name(mode: GroupMode) -> &'static str {
    match mode {
        GroupMode::Stream => "stream",
        GroupMode::Queue => "queue",
        GroupMode::Broadcast => "broadcast",
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
