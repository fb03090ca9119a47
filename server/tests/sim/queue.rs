//! A member of a group in queue mode: receives, works for a while, and acknowledges, or says that it has failed, hands
//! back, prolongs, does nothing at all, leaves, or dies with records in its hands.

use super::client::{Context, Core, Role, Tag};
use super::groups::{Enrolment, GroupPlan};
use super::ledger::{Asked, Key, judge_refused};
use super::model::{Checked, wrong};
use bytes::Bytes;
use ringmq_client::ErrorCode;
use ringmq_client::core::Refused;
use ringmq_client::core::connection::{Event, Message, ServerInfo, Target};
use ringmq_client::core::decode::{ConsumedRecord, check_entry, decode_frame};
use ringmq_client::core::queue::{QueueAction, QueueCore, QueueCoreConfig, QueueFailure, Settle, Settled};
use ringmq_engine::format::PartitionId;
use ringmq_protocol::{
    Ack, ChangeInvisible, LeaseChange, LeaseHandle, Receive, Received, Request, Response, entries,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What was asked of the server.
enum Question {
    Receive(Asked, u32),
    /// With the life of the server in which it was asked.
    Ack(Key, Vec<LeaseHandle>, u64),
    Change(Key, Vec<LeaseChange>, (u64, u64)),
}

/// A record in its hands.
struct Hand {
    partition: PartitionId,
    offset: u64,
    at_us: u64,
    said: Option<Settle>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// LEAVE_GROUP is on its way.
    Asked,
    Left,
    HandedBack,
}

pub(crate) struct Queueing {
    enrolment: Enrolment,
    config: QueueCoreConfig,
    core: QueueCore,
    /// Group and member, as the server numbers them.
    ids: Option<(u32, u64)>,
    generation: u64,
    partitions: BTreeMap<Target, PartitionId>,
    questions: BTreeMap<u64, Question>,
    hands: BTreeMap<u64, Hand>,
    leaving: Leaving,
    /// Begins anew when its connection is gone.
    ends: bool,
    leaves: bool,
    linked: bool,
    act_at: u64,
    away_until: u64,
}

impl Queueing {
    pub(crate) fn new(cx: &mut Context<'_>, plan: &GroupPlan, number: u32) -> Self {
        // With fewer, partitions take turns, which takes time.
        let partitions: u32 = plan.topics.iter().map(|topic| topic.1).sum();
        let config = QueueCoreConfig {
            prefetch: cx.draw.pick(&[1, 4, 16]) * partitions,
            max_bytes: cx.draw.pick(&[1, 3_000, 60_000]),
            invisible_ms: plan.invisible_ms,
            wait_ms: cx.draw.pick(&[20, 200, 1_000]),
            auto_renew: cx.draw.one_in(2),
            renew_for_us: cx.draw.pick(&[100_000, 3_000_000]),
            retry_for_us: if cx.draw.one_in(4) { 300_000 } else { 3_600_000_000 },
            seed: cx.draw.next(),
        };
        Self {
            enrolment: Enrolment::new(cx, plan, number, ""),
            core: QueueCore::new(config.clone()),
            config,
            ids: None,
            generation: 0,
            partitions: BTreeMap::new(),
            questions: BTreeMap::new(),
            hands: BTreeMap::new(),
            leaving: Leaving::No,
            ends: false,
            leaves: false,
            linked: false,
            act_at: cx.now,
            away_until: 0,
        }
    }

    /// A new program in place of this one.
    fn begin_anew(&mut self, cx: &mut Context<'_>) {
        self.enrolment.begin_anew(cx);
        self.config.seed = cx.draw.next();
        self.core = QueueCore::new(self.config.clone());
        (self.ids, self.generation, self.leaving, self.ends) = (None, 0, Leaving::No, false);
        self.questions.clear();
        self.hands.clear();
        self.away_until = cx.now + if cx.calm { 0 } else { cx.draw.below(1_500_000) };
    }

    /// Takes over what the membership says.
    fn follow(&mut self) {
        let Some(membership) = self.enrolment.membership() else { return };
        if self.ids == Some((membership.group, membership.member)) && self.generation == membership.generation
        {
            return;
        }
        self.generation = membership.generation;
        self.ids = Some((membership.group, membership.member));
        self.partitions = membership
            .topics
            .iter()
            .flat_map(|topic| {
                topic.assigned.iter().map(|index| {
                    (Target { topic: topic.name.clone(), partition: *index }, topic.partition_id(*index))
                })
            })
            .collect();
        self.core.set_partitions(self.partitions.iter().map(|(target, id)| (*id, target.clone())));
    }

    fn ask(&mut self, cx: &mut Context<'_>, link: &mut Core, action: QueueAction) {
        let Some((group, member)) = self.ids else { return };
        let key = |target: &Target| (group, self.partitions.get(target).copied().unwrap_or(PartitionId(0)));
        match action {
            QueueAction::Receive { request, target, max_records, wait_ms } => {
                let (max_bytes, invisible_ms) = (self.config.max_bytes, self.config.invisible_ms);
                let asked = Asked { key: key(&target), at_us: cx.now, invisible_ms };
                self.questions.insert(request, Question::Receive(asked, target.partition));
                link.call_at(
                    cx.now,
                    Tag::Queue(request),
                    &target,
                    u64::from(wait_ms) * 1_000,
                    |handle, ask| {
                        ask(&Request::Receive(Receive {
                            handle,
                            group,
                            member,
                            max_records,
                            max_bytes,
                            invisible_ms,
                            wait_ms,
                        }));
                    },
                );
            }
            QueueAction::Ack { request, target, leases } => {
                let key = key(&target);
                cx.note(|| format!("{} acks {} {:x?}", self.enrolment.name(), key.1, short(&leases)));
                cx.model.ledger.ack_asked(key, &leases);
                link.call_at(cx.now, Tag::Queue(request), &target, 0, |handle, ask| {
                    ask(&Request::Ack(Ack { handle, group, member, leases: &leases }));
                });
                self.questions.insert(request, Question::Ack(key, leases, cx.model.lives));
            }
            QueueAction::Change { request, target, changes } => {
                let key = key(&target);
                cx.note(|| {
                    let handles: Vec<_> = changes.iter().map(|change| change.handle).collect();
                    let kinds: Vec<_> = changes.iter().map(|change| (change.kind, change.after_ms)).collect();
                    format!("{} changes {} {:x?} {kinds:?}", self.enrolment.name(), key.1, short(&handles))
                });
                cx.model.ledger.change_asked(key, &changes);
                link.call_at(cx.now, Tag::Queue(request), &target, 0, |handle, ask| {
                    ask(&Request::ChangeInvisible(ChangeInvisible {
                        handle,
                        group,
                        member,
                        changes: &changes,
                    }));
                });
                self.questions.insert(request, Question::Change(key, changes, (cx.model.lives, cx.now)));
            }
        }
    }

    fn hear(&mut self, cx: &mut Context<'_>, request: u64, result: Result<Message, Refused>) -> Checked {
        let question = self.questions.remove(&request);
        let message = match result {
            Ok(message) => message,
            Err(refused) => {
                cx.note(|| format!("{}: {refused:?}", self.enrolment.name()));
                if !matches!(question, Some(Question::Receive(..))) {
                    judge_refused(&refused, || self.enrolment.name().to_owned())?;
                }
                self.core.refused(cx.now, request, refused);
                return Ok(());
            }
        };
        match (message.response(), question) {
            (Ok(Response::Received(received)), Some(Question::Receive(asked, partition))) => {
                self.received(cx, asked, partition, &received, &message.frames)?;
                self.core.received(cx.now, request, received.leases, &message.frames);
            }
            (Ok(Response::Acked(outcomes)), Some(Question::Ack(key, handles, asked_in))) => {
                if outcomes.len() != handles.len() {
                    return Err(wrong("answers are what was asked for", "as many outcomes as handles"));
                }
                cx.note(|| {
                    let codes: Vec<_> = outcomes.iter().map(|outcome| outcome.code.get()).collect();
                    format!("{} acked {} {:x?} {codes:?}", self.enrolment.name(), key.1, short(&handles))
                });
                for (handle, outcome) in handles.iter().zip(outcomes) {
                    let plan = &self.enrolment.plan;
                    cx.model.acknowledged(plan, key, handle, outcome, asked_in, cx.now)?;
                }
                self.core.acked(cx.now, request, outcomes);
            }
            (Ok(Response::Changed(leases)), Some(Question::Change(key, changes, asked))) => {
                if leases.len() != changes.len() {
                    return Err(wrong("answers are what was asked for", "as many leases as changes"));
                }
                for (change, changed) in changes.iter().zip(leases) {
                    cx.note(|| {
                        let code = (changed.code.get(), changed.flags.get());
                        let new = changed.lease.handle.generation.get();
                        format!(
                            "{} changed {} {:x?} {code:?} {new:x}",
                            self.enrolment.name(),
                            key.1,
                            short(&[change.handle])
                        )
                    });
                    cx.model.changed(&self.enrolment.plan, key, change, changed, asked)?;
                }
                self.core.changed(cx.now, request, leases);
            }
            _ => return Err(wrong("answers are what was asked for", "of a queue")),
        }
        Ok(())
    }

    fn received(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked,
        partition: u32,
        received: &Received<'_>,
        frames: &Bytes,
    ) -> Checked {
        let id = asked.key.1;
        cx.model.bounds(id, received.log_start, received.visible_end, 0)?;
        let bad = |what: String| wrong("what is received is whole", format!("{id}: {what}"));
        let mut records: VecDeque<ConsumedRecord> = VecDeque::new();
        for entry in entries(frames) {
            let entry = entry.map_err(|error| bad(error.to_string()))?;
            let base = entry.header.base_offset.get();
            check_entry(&entry, id, base).map_err(|error| bad(error.to_string()))?;
            let bytes = frames.slice_ref(entry.frame.bytes);
            decode_frame(partition, entry.header, &bytes, 0, &mut records)
                .map_err(|error| bad(error.to_string()))?;
        }
        let offsets = records.iter().map(|record| record.offset);
        if !offsets.eq(received.leases.iter().map(|lease| lease.handle.offset.get())) {
            return Err(bad("leases are not those of the records".to_owned()));
        }
        let handles: Vec<LeaseHandle> = received.leases.iter().map(|lease| lease.handle).collect();
        if !handles.is_empty() {
            cx.note(|| format!("{} receives {id} {:x?}", self.enrolment.name(), short(&handles)));
        }
        for (record, handle) in records.iter().zip(&handles) {
            let record = cx.model.read(id, record)?;
            let plan = &self.enrolment.plan;
            cx.model.delivered(plan, asked, handle, record, received.log_start, cx.now)?;
        }
        Ok(())
    }

    /// What became of what was said.
    fn complete(&mut self, cx: &mut Context<'_>) -> Checked {
        while let Some((token, settled)) = self.core.next_completion() {
            let Some(hand) = self.hands.get_mut(&token) else { continue };
            let said = hand.said.take();
            let key = (self.ids.map_or(0, |ids| ids.0), hand.partition);
            if said == Some(Settle::Ack)
                && settled == Settled::Done
                && cx.model.ledger.is_open(key, hand.offset)
            {
                let details = format!("{}: {}@{}", self.enrolment.name(), hand.partition, hand.offset);
                return Err(wrong("the client says done when the server has", details));
            }
            match (said, settled) {
                (Some(Settle::Extend(_)), Settled::Done) => hand.at_us = cx.pause(),
                _ => drop(self.hands.remove(&token)),
            }
        }
        match self.core.take_failure() {
            None => Ok(()),
            Some(QueueFailure::Refused(_, refused)) if refused.code() == Some(ErrorCode::UnknownGroup) => {
                Ok(())
            }
            Some(failure) => {
                Err(wrong("what is there can be received", format!("{}: {failure:?}", self.enrolment.name())))
            }
        }
    }

    /// Works: takes records, and says something about those in its hands.
    fn work(&mut self, cx: &mut Context<'_>) {
        for _ in 0..1 + cx.draw.below(6) {
            let Some(delivery) = self.core.next_delivery(cx.now) else { break };
            let target = Target { topic: Arc::clone(&delivery.topic), partition: delivery.record.partition };
            let partition = self.partitions.get(&target).copied().unwrap_or(PartitionId(0));
            let at_us = cx.pause();
            let hand = Hand { partition, offset: delivery.record.offset, at_us, said: None };
            self.hands.insert(delivery.token, hand);
        }
        let due =
            self.hands.iter().filter(|(_, hand)| hand.said.is_none() && (cx.calm || hand.at_us <= cx.now));
        for token in due.map(|due| *due.0).collect::<Vec<_>>() {
            let settle = match cx.draw.below(12) {
                _ if cx.calm || !self.enrolment.plan.restless => Settle::Ack,
                0..=5 => Settle::Ack,
                6 | 7 => Settle::Retry,
                8 => Settle::Release(cx.draw.pick(&[0, 0, 50, 400])),
                9 | 10 => Settle::Extend(cx.draw.pick(&[1, 50, 1_000])),
                _ => {
                    if let Some(hand) = self.hands.get_mut(&token) {
                        hand.at_us = cx.now + cx.draw.below(5_000_000);
                    }
                    continue;
                }
            };
            if !self.core.settle(cx.now, token, settle) {
                self.hands.remove(&token);
            } else if let Some(hand) = self.hands.get_mut(&token) {
                hand.said = Some(settle);
            }
        }
    }

    /// Leaves, dies or stalls now and then.
    fn mood(&mut self, cx: &mut Context<'_>, link: &mut Core) {
        if cx.calm || !self.enrolment.plan.restless || self.leaving != Leaving::No || self.ids.is_none() {
            return;
        }
        match cx.draw.below(400) {
            0 => (self.ends, self.leaves) = (true, true),
            1 => {
                self.core.close();
                let asked = self.enrolment.leave(cx, link, false);
                self.leaving = if asked { Leaving::Asked } else { Leaving::Left };
                self.hands.clear();
            }
            2 => self.act_at = cx.now + cx.draw.below(8_000_000),
            _ => {}
        }
    }

    fn go_on_leaving(&mut self, cx: &mut Context<'_>) {
        if self.leaving == Leaving::Left && !self.core.is_receiving() {
            self.core.hand_back(cx.now);
            self.leaving = Leaving::HandedBack;
        }
        if self.leaving == Leaving::HandedBack && self.core.is_settled() {
            (self.ends, self.leaves) = (true, true);
        }
    }
}

/// Handles, for a trace.
fn short(handles: &[LeaseHandle]) -> Vec<(u64, u64, u16)> {
    handles.iter().map(|one| (one.offset.get(), one.generation.get(), one.attempt.get())).collect()
}

impl Role for Queueing {
    fn ready(&mut self, _: &mut Context<'_>, _: &ServerInfo) {
        self.linked = true;
    }

    fn event(&mut self, cx: &mut Context<'_>, _: &mut Core, event: Event<Tag>) -> Checked {
        match event {
            Event::Answer { tag: Tag::Member, result } => self.enrolment.hear(cx, result)?,
            Event::Answer { tag: Tag::Leave, .. } => self.leaving = Leaving::Left,
            Event::Answer { tag: Tag::Queue(request), result } => self.hear(cx, request, result)?,
            _ => {}
        }
        self.complete(cx)
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
                Tag::Leave => self.leaving = Leaving::Left,
                Tag::Queue(request) => {
                    self.questions.remove(&request);
                    self.core.lost(cx.now, request, false);
                }
                _ => {}
            }
        }
        self.complete(cx)
    }

    fn drive(&mut self, cx: &mut Context<'_>, link: Option<&mut Core>) -> Checked {
        let Some(link) = link.filter(|_| cx.now >= self.away_until) else { return Ok(()) };
        if !cx.model.is_founded(&cx.plan.topics) {
            self.away_until = cx.now + 5_000;
            return Ok(());
        }
        if self.leaving == Leaving::No {
            self.enrolment.ask(cx, link, &[]);
            self.follow();
        }
        if cx.now >= self.act_at {
            self.act_at = cx.pause();
            if self.leaving == Leaving::No {
                self.work(cx);
                self.mood(cx, link);
            }
        }
        self.go_on_leaving(cx);
        if self.ids.is_some() {
            let mut actions = Vec::new();
            self.core.next_actions(cx.now, &mut actions);
            actions.into_iter().for_each(|action| self.ask(cx, link, action));
        }
        if self.core.take_doubt() {
            self.enrolment.doubt(cx);
        }
        self.complete(cx)
    }

    fn deadline(&self) -> u64 {
        if !self.linked {
            return u64::MAX;
        }
        let core = if self.ids.is_some() { self.core.deadline_us() } else { u64::MAX };
        let member = if self.leaving == Leaving::No { self.enrolment.deadline() } else { u64::MAX };
        self.act_at.min(core).min(member).max(self.away_until)
    }

    fn is_idle(&self) -> bool {
        self.hands.is_empty() && self.core.is_settled() && self.leaving == Leaving::No
    }

    fn is_of_group(&self) -> bool {
        true
    }

    fn leaves(&mut self) -> bool {
        std::mem::take(&mut self.leaves)
    }

    fn name(&self) -> String {
        let (hands, leaving) = (self.hands.len(), self.leaving);
        format!("{}: {hands} in its hands, {leaving:?}, {:?}", self.enrolment.name(), self.ids)
    }
}
