//! Consumer groups of a plan, and being a member of one: what queue, stream and broadcast members share.

use super::client::{Context, Core, Tag};
use super::model::{Checked, RecordId, tag_of, wrong};
use super::plan::Draw;
use super::positions::Place;
use ringmq_client::core::Refused;
use ringmq_client::core::connection::Message;
use ringmq_client::core::member::{MemberAction, MemberCore, Membership};
use ringmq_client::{ErrorCode, Retry};
use ringmq_engine::format::PartitionId;
use ringmq_protocol::{
    GroupMode, GroupSettings, GroupStart, Heartbeat, ItemsBuf, JoinGroup, LeaveGroup, PositionEntry, Request,
    Response, Subscription,
};
use std::sync::Arc;
use zerocopy::little_endian::U32;

/// Which records a group wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sieve {
    All,
    Red,
    RedOrBlue,
    /// By SQL; what has no tag is unknown, and left out.
    NotGreen,
}

impl Sieve {
    fn text(self) -> &'static str {
        match self {
            Self::All => "*",
            Self::Red => "red",
            Self::RedOrBlue => "red || blue",
            Self::NotGreen => "TAGS <> 'green'",
        }
    }

    pub(crate) fn takes(self, id: RecordId) -> bool {
        match (self, tag_of(id)) {
            (Self::All, _) => true,
            (Self::Red, tag) => tag == Some("red"),
            (Self::RedOrBlue | Self::NotGreen, tag) => matches!(tag, Some("red" | "blue")),
        }
    }
}

/// A consumer group.
#[derive(Clone, Debug)]
pub(crate) struct GroupPlan {
    pub(crate) name: &'static str,
    /// Topic of its dead letters, in queue mode.
    pub(crate) dead_letters: &'static str,
    pub(crate) mode: GroupMode,
    pub(crate) topics: Vec<(&'static str, u32)>,
    pub(crate) sieve: Sieve,
    pub(crate) members: u32,
    pub(crate) ordered: bool,
    pub(crate) max_attempts: u16,
    pub(crate) backoff_ms: Vec<u32>,
    pub(crate) invisible_ms: u32,
    pub(crate) session_ms: u32,
    /// Records in flight in a partition; 0 is no limit.
    pub(crate) concurrency: u32,
    /// Records a second; 0 is no limit.
    pub(crate) rate_records: u32,
    /// Members stall, leave, and die with records in their hands.
    pub(crate) restless: bool,
}

impl GroupPlan {
    /// The groups of a run.
    pub(crate) fn draw(seed: u64, topics: &[(&'static str, u32)]) -> Vec<Self> {
        let mut draw = Draw::new(seed ^ 0x6772_6f75_7073);
        let mut groups = Vec::new();
        let names = [("queue-0", "%DLQ%queue-0"), ("queue-1", "%DLQ%queue-1")];
        let queues = [0, 1, 1, 1, 1, 2][draw.below(6) as usize];
        for (name, dead_letters) in names.into_iter().take(queues) {
            groups.push(Self::one(&mut draw, name, dead_letters, GroupMode::Queue, topics));
        }
        if draw.one_in(2) {
            groups.push(Self::one(&mut draw, "stream", "", GroupMode::Stream, topics));
        }
        if draw.one_in(3) {
            groups.push(Self::one(&mut draw, "broadcast", "", GroupMode::Broadcast, topics));
        }
        groups
    }

    fn one(
        draw: &mut Draw,
        name: &'static str,
        dead_letters: &'static str,
        mode: GroupMode,
        topics: &[(&'static str, u32)],
    ) -> Self {
        let topics = if draw.one_in(3) { topics.to_vec() } else { vec![draw.pick(topics)] };
        Self {
            name,
            dead_letters,
            mode,
            topics,
            sieve: draw.pick(&[Sieve::All, Sieve::All, Sieve::Red, Sieve::RedOrBlue, Sieve::NotGreen]),
            members: 1 + draw.below(3) as u32,
            ordered: draw.one_in(2),
            max_attempts: draw.pick(&[1, 2, 3, 5, 16]),
            backoff_ms: if draw.one_in(2) { vec![0] } else { vec![10, 100, 700] },
            invisible_ms: draw.pick(&[30, 200, 1_000, 4_000]),
            session_ms: draw.pick(&[300, 1_500, 6_000]),
            concurrency: draw.pick(&[0, 0, 0, 1, 3]),
            rate_records: draw.pick(&[0, 0, 0, 0, 200]),
            restless: !draw.one_in(3),
        }
    }
}

/// A place in a group, asked for or had.
pub(crate) struct Enrolment {
    pub(crate) plan: GroupPlan,
    name: String,
    /// Stable name of a broadcast instance, and what stands for it here; whatever number the server gives it.
    instance: String,
    number: u64,
    core: MemberCore,
    /// Group and generation that it was told last.
    told: (u32, u64),
}

impl Enrolment {
    pub(crate) fn new(cx: &mut Context<'_>, plan: &GroupPlan, number: u32, instance: &str) -> Self {
        Self {
            plan: plan.clone(),
            name: format!("{}-{number}", plan.name),
            instance: instance.to_owned(),
            number: if instance.is_empty() { 0 } else { u64::from(number) + 1 },
            core: MemberCore::new(cx.draw.next()),
            told: (0, 0),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn membership(&self) -> Option<&Arc<Membership>> {
        self.core.membership()
    }

    /// As a program that was started again.
    pub(crate) fn begin_anew(&mut self, cx: &mut Context<'_>) {
        self.core = MemberCore::new(cx.draw.next());
        self.told = (0, 0);
    }

    pub(crate) fn doubt(&mut self, cx: &Context<'_>) {
        self.core.doubt(cx.now);
    }

    pub(crate) fn deadline(&self) -> u64 {
        self.core.deadline_us()
    }

    /// Joins or says that it lives, when it is time.
    pub(crate) fn ask(&mut self, cx: &Context<'_>, link: &mut Core, positions: &[PositionEntry]) {
        match self.core.next_action(cx.now) {
            None => {}
            Some(MemberAction::Heartbeat { group, member, generation, wait_ms }) => {
                link.call_for(cx.now, Tag::Member, u64::from(wait_ms) * 1_000, |ask| {
                    ask(&Request::Heartbeat(Heartbeat { group, member, generation, wait_ms, positions }));
                });
            }
            Some(MemberAction::Join { member }) => {
                let plan = &self.plan;
                let filter = plan.sieve.text();
                let subscriptions: ItemsBuf =
                    plan.topics.iter().map(|(topic, _)| Subscription { topic, filter }).collect();
                let steps: Vec<U32> = plan.backoff_ms.iter().map(|ms| U32::new(*ms)).collect();
                let settings = GroupSettings {
                    max_attempts: Some(plan.max_attempts),
                    backoff_ms: Some(&steps),
                    invisible_default_ms: Some(plan.invisible_ms),
                    ordered: Some(plan.ordered),
                    rate_bytes: None,
                    rate_records: Some(plan.rate_records),
                    concurrency: Some(plan.concurrency),
                    start: Some(GroupStart::Earliest),
                };
                let join = JoinGroup {
                    group: plan.name,
                    mode: plan.mode,
                    member,
                    name: &self.name,
                    instance: &self.instance,
                    session_ms: plan.session_ms,
                    create: true,
                    settings,
                    subscriptions: subscriptions.items(),
                };
                link.call(cx.now, Tag::Member, &Request::JoinGroup(join));
            }
        }
    }

    pub(crate) fn hear(&mut self, cx: &mut Context<'_>, result: Result<Message, Refused>) -> Checked {
        let message = match result {
            Ok(message) => message,
            Err(refused) => {
                cx.note(|| format!("{} as a member: {refused:?}", self.name));
                let passes = matches!(refused.code(), Some(ErrorCode::NotAMember | ErrorCode::UnknownGroup));
                if refused.retry() == Retry::No && !passes {
                    return Err(wrong("a group takes its members", format!("{}: {refused:?}", self.name)));
                }
                self.core.refused(cx.now, refused);
                return Ok(());
            }
        };
        match message.response() {
            Ok(Response::Joined(joined)) => self.core.joined(cx.now, &joined),
            Ok(Response::Heartbeat(answer)) => self.core.heartbeat(cx.now, &answer),
            _ => return Err(wrong("answers are what was asked for", "nothing of a member")),
        }
        let Some(membership) = self.core.membership() else { return Ok(()) };
        let (group, generation) = (membership.group, membership.generation);
        if self.told.0 == group && generation < self.told.1 {
            let details = format!("{}: {:x} after {:x}", self.name, generation, self.told.1);
            return Err(wrong("generations never go back", details));
        }
        self.told = (group, generation);
        cx.model.ledger.known(self.plan.name, group)?;
        cx.model.positions.assigned(&self.plan, membership, self.number)
    }

    /// A partition that it reads, for itself or for its group.
    pub(crate) fn place(&self, membership: &Membership, partition: PartitionId) -> Place {
        Place { group: membership.group, instance: self.number, partition }
    }

    /// The connection is gone, with a question unanswered.
    pub(crate) fn lost(&mut self, cx: &Context<'_>) {
        self.core.lost(cx.now);
    }

    /// Says goodbye; `false`: there is nothing to leave.
    pub(crate) fn leave(&self, cx: &Context<'_>, link: &mut Core, forget: bool) -> bool {
        let Some(membership) = self.core.membership() else { return false };
        let leave = LeaveGroup { group: membership.group, member: membership.member, forget };
        link.call(cx.now, Tag::Leave, &Request::LeaveGroup(leave));
        true
    }
}
