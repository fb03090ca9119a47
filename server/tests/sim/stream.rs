//! A member of a group that reads partition by partition: in stream mode what it is assigned, in broadcast mode, as an
//! instance with a name, everything. It claims, reads, commits, hands over, and like everybody stalls, leaves and dies.
//!
//! What the client library does between its cores is done here as `group.rs` does it, as steps.

use super::client::{Context, Core, Role, Tag};
use super::groups::{Enrolment, GroupPlan};
use super::model::{Checked, wrong};
use super::positions::{Floor, Place};
use ringmq_client::core::Refused;
use ringmq_client::core::connection::{Event, Message, ServerInfo, Target};
use ringmq_client::core::consumer::{
    Action, ConsumerCore, ConsumerCoreConfig, Halt, Next, OutOfRange, Start,
};
use ringmq_client::core::member::Membership;
use ringmq_client::{ErrorCode, Retry};
use ringmq_engine::format::PartitionId;
use ringmq_protocol::{CommitOffsets, FetchOffsets, GroupMode, PositionEntry, Request, Response};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use zerocopy::little_endian::U32;

#[derive(Debug)]
struct Progress {
    /// Everything below was handed out, or passed over.
    next: u64,
    committed: Option<u64>,
    /// What was known when it was claimed.
    claimed_at: Floor,
}

/// What waits for an answer; one at a time, as in the library.
#[derive(Debug)]
enum Doing {
    Nothing,
    Claiming(Vec<(PartitionId, Floor)>),
    /// With the generation under which it commits.
    Committing(Vec<(PartitionId, u64, Floor, Floor)>, u64),
    Leaving,
}

pub(crate) struct Streaming {
    enrolment: Enrolment,
    core: ConsumerCore,
    config: ConsumerCoreConfig,
    /// What was followed last.
    seen: Option<Arc<Membership>>,
    targets: BTreeMap<PartitionId, Target>,
    progress: BTreeMap<PartitionId, Progress>,
    unclaimed: BTreeSet<PartitionId>,
    subscriptions: BTreeMap<u32, (u32, u64)>,
    doing: Doing,
    /// What is lost with the newest assignment was committed.
    handed_over: bool,
    claim_at: u64,
    commit_at: u64,
    act_at: u64,
    /// Does nothing before.
    away_until: u64,
    /// The first thing that it does when it wakes is to commit.
    stalled: bool,
    ends: bool,
    leaves: bool,
    linked: bool,
    settled: bool,
}

impl Streaming {
    pub(crate) fn new(cx: &mut Context<'_>, plan: &GroupPlan, number: u32) -> Self {
        let broadcast = plan.mode == GroupMode::Broadcast;
        let instance = if broadcast { format!("instance-{number}") } else { String::new() };
        let config = ConsumerCoreConfig {
            credit: cx.draw.pick(&[1, 2_000, 40_000, 1 << 20]),
            retry_for_us: 3_600_000_000,
            out_of_range: if cx.plan.retains() { OutOfRange::Earliest } else { OutOfRange::Fail },
            filtered: true,
            seed: cx.draw.next(),
        };
        Self {
            enrolment: Enrolment::new(cx, plan, number, &instance),
            core: ConsumerCore::new(config.clone(), [], Start::Earliest),
            config,
            seen: None,
            targets: BTreeMap::new(),
            progress: BTreeMap::new(),
            unclaimed: BTreeSet::new(),
            subscriptions: BTreeMap::new(),
            doing: Doing::Nothing,
            handed_over: false,
            claim_at: 0,
            commit_at: 0,
            act_at: cx.now,
            away_until: 0,
            stalled: false,
            ends: false,
            leaves: false,
            linked: false,
            settled: false,
        }
    }

    fn is_broadcast(&self) -> bool {
        self.enrolment.plan.mode == GroupMode::Broadcast
    }

    fn begin_anew(&mut self, cx: &mut Context<'_>) {
        self.enrolment.begin_anew(cx);
        self.config.seed = cx.draw.next();
        self.core = ConsumerCore::new(self.config.clone(), [], Start::Earliest);
        self.seen = None;
        self.progress.clear();
        self.unclaimed.clear();
        self.subscriptions.clear();
        (self.doing, self.handed_over, self.ends, self.stalled) = (Doing::Nothing, false, false, false);
        self.away_until = cx.now + if cx.calm { 0 } else { cx.draw.below(2_000_000) };
    }

    fn place(&self, membership: &Membership, partition: PartitionId) -> Place {
        self.enrolment.place(membership, partition)
    }

    // -- following the assignment --------------------------------------------------------------------------

    /// Takes over the newest assignment, once nothing is being asked.
    fn follow(&mut self, cx: &mut Context<'_>, link: &mut Core) {
        let Some(membership) = self.enrolment.membership().cloned() else { return };
        let same = self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &membership));
        if same || !matches!(self.doing, Doing::Nothing) {
            return;
        }
        let assigned: BTreeMap<PartitionId, Target> = membership
            .topics
            .iter()
            .flat_map(|topic| {
                topic.assigned.iter().map(|index| {
                    (topic.partition_id(*index), Target { topic: topic.name.clone(), partition: *index })
                })
            })
            .collect();
        // With a generation missed, somebody else may have had what is still ours, and have gone further.
        let missed = self.seen.as_ref().is_none_or(|seen| {
            membership.generation.wrapping_sub(seen.generation) > 1 || seen.group != membership.group
        });
        let keeps = self.is_broadcast() || !missed;
        let gone: Vec<PartitionId> =
            self.progress.keys().filter(|id| !keeps || !assigned.contains_key(id)).copied().collect();
        if !gone.is_empty() && !missed && !self.handed_over && cx.draw.one_in(2) {
            // Under the generation under which they were read: if the new owner is quicker, it is refused.
            self.handed_over = true;
            if self.commit(cx, link, &gone) {
                return;
            }
        }
        self.handed_over = false;
        for id in gone {
            self.progress.remove(&id);
            self.core.remove(id.0);
        }
        self.unclaimed.retain(|id| assigned.contains_key(id));
        let fresh = assigned.keys().filter(|id| !self.progress.contains_key(id));
        self.unclaimed.extend(fresh);
        self.targets.extend(assigned);
        self.claim_at = cx.now;
        self.seen = Some(membership);
    }

    fn claim(&mut self, cx: &mut Context<'_>, link: &mut Core) {
        let Some(membership) = self.seen.clone() else { return };
        let ids: Vec<PartitionId> = self.unclaimed.iter().copied().collect();
        let floors =
            ids.iter().map(|id| (*id, cx.model.positions.floor(self.place(&membership, *id)))).collect();
        let partitions: Vec<U32> = ids.iter().map(|id| U32::new(id.0)).collect();
        let Membership { group, member, generation, instance, .. } = *membership;
        let claim = !self.is_broadcast();
        link.call_for(cx.now, Tag::Positions, 0, |ask| {
            let partitions = &partitions[..];
            ask(&Request::FetchOffsets(FetchOffsets {
                group,
                member,
                generation,
                instance,
                claim,
                partitions,
            }));
        });
        self.doing = Doing::Claiming(floors);
    }

    fn claimed(
        &mut self,
        cx: &mut Context<'_>,
        message: &Message,
        asked: &[(PartitionId, Floor)],
    ) -> Checked {
        let Ok(Response::FetchedOffsets(offsets)) = message.response() else {
            return Err(wrong("answers are what was asked for", "no offsets"));
        };
        if offsets.len() != asked.len() {
            return Err(wrong("answers are what was asked for", "as many offsets as partitions"));
        }
        let Some(membership) = self.seen.clone() else { return Ok(()) };
        for ((id, floor), fetched) in asked.iter().zip(offsets) {
            let place = self.place(&membership, *id);
            let code = ErrorCode::parse(fetched.code.get());
            if fetched.code.get() != 0 {
                match code {
                    Some(ErrorCode::StaleGeneration | ErrorCode::UnknownGroup) => self.enrolment.doubt(cx),
                    _ => super::ledger::judge_refusal(code, || format!("{place:x?}: {code:?}"))?,
                }
                continue;
            }
            let generation = (!self.is_broadcast()).then_some(membership.generation);
            let retains = cx.plan.retains();
            cx.note(|| format!("{} is at {} of {id}", self.enrolment.name(), fetched.offset));
            cx.model.positions.fetched(&self.enrolment.plan, place, *floor, fetched, generation, retains)?;
            let offset = fetched.offset.get();
            self.core.add(id.0, *id, offset);
            let committed = fetched.is_committed().then_some(offset);
            self.progress.insert(*id, Progress { next: offset, committed, claimed_at: *floor });
            self.unclaimed.remove(id);
        }
        self.claim_at = cx.now + 1_000 + cx.draw.below(50_000);
        Ok(())
    }

    // -- committing ----------------------------------------------------------------------------------------

    /// Commits where it stands in these; `false`: there is nothing to commit.
    fn commit(&mut self, cx: &mut Context<'_>, link: &mut Core, ids: &[PartitionId]) -> bool {
        let Some(membership) = self.seen.clone() else { return false };
        let mut entries = Vec::new();
        let mut asked = Vec::new();
        for id in ids {
            let Some(progress) = self.progress.get_mut(id) else { continue };
            // What the filter left out is consumed, too.
            if let Some(position) = self.core.position(id.0).filter(|position| *position > progress.next) {
                let place = self.enrolment.place(&membership, *id);
                cx.model.positions.passed(place, progress.next, position);
                progress.next = position;
            }
            // At the end it asks again, or it would not learn of a reset.
            if progress.committed == Some(progress.next) && !cx.quiet {
                continue;
            }
            let mut offset = progress.next;
            if !cx.calm && cx.draw.one_in(5) {
                offset -= cx.draw.below(8).min(offset); // An old commit, late.
            }
            let place = self.enrolment.place(&membership, *id);
            let floor = cx.model.positions.floor(place);
            cx.model.positions.commit_asked(place, offset);
            asked.push((*id, offset, floor, progress.claimed_at));
            entries.push(PositionEntry::new(*id, offset));
        }
        if entries.is_empty() {
            return false;
        }
        let Membership { group, member, generation, instance, .. } = *membership;
        cx.note(|| format!("{} commits {asked:?} under {generation:x}", self.enrolment.name()));
        link.call_for(cx.now, Tag::Positions, 0, |ask| {
            let (txn, positions) = (0, &entries[..]);
            ask(&Request::CommitOffsets(CommitOffsets {
                group,
                member,
                generation,
                instance,
                txn,
                positions,
            }));
        });
        self.doing = Doing::Committing(asked, generation);
        true
    }

    fn committed(
        &mut self,
        cx: &mut Context<'_>,
        message: &Message,
        asked: &[(PartitionId, u64, Floor, Floor)],
        generation: u64,
    ) -> Checked {
        let Ok(Response::Committed(outcomes)) = message.response() else {
            return Err(wrong("answers are what was asked for", "nothing committed"));
        };
        if outcomes.len() != asked.len() {
            return Err(wrong("answers are what was asked for", "as many outcomes as positions"));
        }
        let Some(membership) = self.seen.clone() else { return Ok(()) };
        for ((id, offset, floor, claimed_at), outcome) in asked.iter().zip(outcomes) {
            let place = self.place(&membership, *id);
            let plan = &self.enrolment.plan;
            cx.model.positions.committed(plan, place, *floor, *offset, (generation, *claimed_at), outcome)?;
            if outcome.is_done() {
                if let Some(progress) = self.progress.get_mut(id) {
                    progress.committed = Some(*offset);
                }
            } else if outcome.code.get() == ErrorCode::StaleGeneration as u16 {
                // Somebody else has claimed it: it is read no longer, and claimed again if it is still ours.
                self.progress.remove(id);
                self.core.remove(id.0);
                self.unclaimed.insert(*id);
                self.enrolment.doubt(cx);
                self.claim_at = cx.now + 20_000;
            }
        }
        Ok(())
    }

    fn refused(&mut self, cx: &Context<'_>, refused: &Refused) -> Checked {
        match refused.code() {
            Some(ErrorCode::NotAMember | ErrorCode::StaleGeneration | ErrorCode::UnknownGroup) => {
                self.enrolment.doubt(cx);
            }
            _ if refused.retry() == Retry::No => {
                let details = format!("{}: {refused:?}", self.enrolment.name());
                return Err(wrong("a member may ask for its positions", details));
            }
            _ => {}
        }
        Ok(())
    }

    // -- reading -------------------------------------------------------------------------------------------

    fn read(&mut self, cx: &mut Context<'_>, link: &mut Core) {
        let Some(group) = self.seen.as_ref().map(|seen| seen.group) else { return };
        while let Some(action) = self.core.next_action(cx.now) {
            let target = |partition: u32| self.targets.get(&PartitionId(partition)).cloned();
            let numbers = |found: (u32, u64)| {
                self.subscriptions.iter().find(|one| *one.1 == found).map(|(number, _)| *number)
            };
            match action {
                Action::Resolve { partition, attempt, what } => {
                    let Some(target) = target(partition) else { continue };
                    link.list_offsets(cx.now, Tag::Resolve { partition, attempt }, &target, what);
                }
                Action::Subscribe { partition, attempt, offset, credit } => {
                    let Some(target) = target(partition) else { continue };
                    let tag = Tag::Subscribe { partition, attempt };
                    let number = link.subscribe_for(cx.now, tag, &target, offset, credit, group);
                    self.subscriptions.insert(number, (partition, attempt));
                }
                Action::Credit { partition, attempt, bytes } => {
                    if let Some(number) = numbers((partition, attempt)) {
                        link.credit(number, bytes);
                    }
                }
                Action::Unsubscribe { partition, attempt } => {
                    if let Some(number) = numbers((partition, attempt)) {
                        link.unsubscribe(cx.now, Tag::Ignored, number);
                    }
                }
            }
        }
    }

    fn take(&mut self, cx: &mut Context<'_>, frames: u64) -> Checked {
        let Some(membership) = self.seen.clone() else { return Ok(()) };
        let mut records = VecDeque::new();
        for _ in 0..frames {
            match self.core.take(&mut records) {
                Next::Nothing => break,
                Next::Records => {}
                Next::Halted { halt: Halt::OutOfRange { .. }, partition, position } if cx.plan.retains() => {
                    self.core.seek(partition, position);
                }
                // The group was removed; whoever is in the next one claims anew.
                Next::Halted { halt: Halt::Refused(refused), .. }
                    if refused.code() == Some(ErrorCode::UnknownGroup) => {}
                Next::Halted { partition, position, halt } => {
                    let details = format!("{}: {partition}@{position}: {halt:?}", self.enrolment.name());
                    return Err(wrong("streams go on without a gap", details));
                }
            }
        }
        for record in records {
            let partition = PartitionId(record.partition);
            let id = cx.model.read(partition, &record)?;
            let Some(progress) = self.progress.get_mut(&partition) else { continue };
            let place = self.enrolment.place(&membership, partition);
            let plan = &self.enrolment.plan;
            cx.model.positions.streamed(plan, place, id, progress.next, record.offset)?;
            progress.next = record.offset + 1;
        }
        Ok(())
    }

    /// Leaves, dies or stalls now and then.
    fn mood(&mut self, cx: &mut Context<'_>, link: &mut Core) {
        if cx.calm || !self.enrolment.plan.restless || self.seen.is_none() {
            return;
        }
        match cx.draw.below(300) {
            0 => (self.ends, self.leaves) = (true, true),
            1 if matches!(self.doing, Doing::Nothing) => {
                if self.enrolment.leave(cx, link, false) {
                    self.doing = Doing::Leaving;
                } else {
                    (self.ends, self.leaves) = (true, true);
                }
            }
            2 | 3 => {
                self.stalled = true;
                self.away_until = cx.now + cx.draw.below(u64::from(self.enrolment.plan.session_ms) * 3_000);
            }
            _ => {}
        }
    }

    /// Whether all that anybody knows of was read and committed.
    fn is_settled(&self, cx: &Context<'_>) -> bool {
        let Some(seen) = &self.seen else { return false };
        let is_done = |id: PartitionId| {
            let visible = cx.model.partitions.get(&id).map_or(0, |facts| facts.visible);
            self.progress
                .get(&id)
                .is_some_and(|progress| progress.next >= visible && progress.committed == Some(progress.next))
        };
        let ids = seen
            .topics
            .iter()
            .flat_map(|topic| topic.assigned.iter().map(|index| topic.partition_id(*index)));
        cx.quiet && matches!(self.doing, Doing::Nothing) && ids.into_iter().all(is_done)
    }
}

impl Role for Streaming {
    fn ready(&mut self, _: &mut Context<'_>, _: &ServerInfo) {
        self.linked = true;
    }

    fn event(&mut self, cx: &mut Context<'_>, _: &mut Core, event: Event<Tag>) -> Checked {
        match event {
            Event::Answer { tag: Tag::Member, result } => self.enrolment.hear(cx, result)?,
            Event::Answer { tag: Tag::Leave, .. } => (self.ends, self.leaves) = (true, true),
            Event::Answer { tag: Tag::Positions, result } => {
                let doing = std::mem::replace(&mut self.doing, Doing::Nothing);
                match (doing, result) {
                    (Doing::Claiming(asked), Ok(message)) => self.claimed(cx, &message, &asked)?,
                    (Doing::Committing(asked, generation), Ok(message)) => {
                        self.committed(cx, &message, &asked, generation)?;
                    }
                    (_, Err(refused)) => {
                        self.claim_at = cx.now + 20_000;
                        self.refused(cx, &refused)?;
                    }
                    (doing, Ok(_)) => {
                        return Err(wrong("answers are what was asked for", format!("{doing:?}")));
                    }
                }
            }
            Event::Answer { tag: Tag::Resolve { partition, attempt }, result } => match result {
                Ok(message) => {
                    let Ok(Response::ListedOffset(listed)) = message.response() else {
                        return Err(wrong("answers are what was asked for", "no offset listed"));
                    };
                    self.core.resolved(partition, attempt, listed.offset);
                }
                Err(refused) => self.core.refused(cx.now, partition, attempt, refused),
            },
            Event::Answer { tag: Tag::Subscribe { partition, attempt }, result } => match result {
                Ok(message) => {
                    let Ok(Response::Subscribed(bounds)) = message.response() else {
                        return Err(wrong("answers are what was asked for", "not subscribed"));
                    };
                    self.core.subscribed(partition, attempt, bounds);
                    let id = PartitionId(partition);
                    cx.model.bounds(id, bounds.log_start, bounds.visible_end, 0)?;
                }
                Err(refused) => self.core.refused(cx.now, partition, attempt, refused),
            },
            Event::Push { subscription, fields, entries } => {
                let Some((partition, attempt)) = self.subscriptions.get(&subscription).copied() else {
                    return Err(wrong("pushes are of a subscription", format!("{subscription}")));
                };
                self.core.pushed(cx.now, partition, attempt, &fields, &entries);
                let (start, end) = (fields.log_start.get(), fields.visible_end.get());
                cx.model.bounds(PartitionId(partition), start, end, 0)?;
            }
            Event::Ended { subscription, refused } => {
                if let Some((partition, attempt)) = self.subscriptions.remove(&subscription) {
                    self.core.refused(cx.now, partition, attempt, refused);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn lost(&mut self, cx: &mut Context<'_>, tags: Vec<Tag>) -> Checked {
        self.linked = false;
        if self.ends {
            self.begin_anew(cx);
            return Ok(());
        }
        for tag in tags {
            match tag {
                Tag::Member => self.enrolment.lost(cx),
                Tag::Positions => self.doing = Doing::Nothing,
                Tag::Leave => {
                    self.begin_anew(cx);
                    return Ok(());
                }
                Tag::Resolve { partition, attempt } | Tag::Subscribe { partition, attempt } => {
                    self.core.lost(cx.now, partition, attempt);
                }
                _ => {}
            }
        }
        for (partition, attempt) in std::mem::take(&mut self.subscriptions).into_values() {
            self.core.lost(cx.now, partition, attempt);
        }
        Ok(())
    }

    fn drive(&mut self, cx: &mut Context<'_>, link: Option<&mut Core>) -> Checked {
        let Some(link) = link.filter(|_| cx.now >= self.away_until) else { return Ok(()) };
        if !cx.model.is_founded(&cx.plan.topics) {
            self.away_until = cx.now + 5_000;
            return Ok(());
        }
        if matches!(self.doing, Doing::Leaving) {
            self.act_at = cx.now + 100_000;
            return Ok(());
        }
        if std::mem::take(&mut self.stalled) && matches!(self.doing, Doing::Nothing) {
            // It does not know yet that it is no member any more.
            let ids: Vec<PartitionId> = self.progress.keys().copied().collect();
            self.commit(cx, link, &ids);
        }
        let positions: Vec<PositionEntry> =
            self.progress.iter().map(|(id, progress)| PositionEntry::new(*id, progress.next)).collect();
        self.enrolment.ask(cx, link, &positions);
        self.follow(cx, link);
        let free = matches!(self.doing, Doing::Nothing) && !self.handed_over;
        if free && !self.unclaimed.is_empty() && cx.now >= self.claim_at {
            self.claim(cx, link);
        }
        if cx.now >= self.act_at {
            self.act_at = cx.pause();
            let frames = 1 + cx.draw.below(4);
            self.take(cx, frames)?;
            if matches!(self.doing, Doing::Nothing) && cx.now >= self.commit_at {
                self.commit_at = cx.now + cx.draw.below(if cx.quiet { 800_000 } else { 30_000 });
                let ids: Vec<PartitionId> = self.progress.keys().copied().collect();
                self.commit(cx, link, &ids);
            }
            self.mood(cx, link);
            self.settled = self.is_settled(cx);
        }
        self.read(cx, link);
        Ok(())
    }

    fn deadline(&self) -> u64 {
        if !self.linked {
            return u64::MAX;
        }
        if matches!(self.doing, Doing::Leaving) {
            return self.act_at;
        }
        let claim = if self.unclaimed.is_empty() || !matches!(self.doing, Doing::Nothing) {
            u64::MAX
        } else {
            self.claim_at
        };
        let due = self.act_at.min(self.core.deadline_us()).min(self.enrolment.deadline()).min(claim);
        due.max(self.away_until)
    }

    fn is_idle(&self) -> bool {
        self.settled
    }

    fn is_of_group(&self) -> bool {
        true
    }

    fn leaves(&mut self) -> bool {
        std::mem::take(&mut self.leaves)
    }

    fn name(&self) -> String {
        let partitions: Vec<_> = self.progress.iter().map(|(id, progress)| (id.0, progress)).collect();
        format!(
            "{}: {:?}, {partitions:?}, {} unclaimed",
            self.enrolment.name(),
            self.doing,
            self.unclaimed.len()
        )
    }
}
