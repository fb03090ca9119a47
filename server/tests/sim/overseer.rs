//! Looks after a group: sees where it stands, whether it has come to its end, and, in queue mode, where its dead letters
//! are. Now and then it alters the group, sets it back to its start in a partition, or removes it.

use super::client::{Context, Core, Role, Tag};
use super::groups::GroupPlan;
use super::model::{Checked, Topic, wrong};
use super::positions::{Floor, Place};
use ringmq_client::core::connection::{Event, Message, ServerInfo};
use ringmq_client::{ErrorCode, Retry};
use ringmq_engine::format::{PartitionId, TopicId};
use ringmq_protocol::{
    DeleteGroup, DescribeGroup, DescribedGroup, GroupMode, GroupSettings, GroupStart, Metadata, NamesBuf,
    Request, ResetGroup, Response, SetGroup, SetGroupMode,
};

#[derive(Clone, Copy, Debug)]
enum Question {
    /// `true`: in the quiet.
    Look(bool),
    Reset(u32, PartitionId),
    /// Alter or remove.
    Change,
}

pub(crate) struct Overseeing {
    plan: GroupPlan,
    asked: Option<Question>,
    /// Where the group stood at least when it was asked.
    floors: Vec<(Place, Floor)>,
    done: bool,
    linked: bool,
    act_at: u64,
    last: String,
}

impl Overseeing {
    pub(crate) fn new(plan: &GroupPlan) -> Self {
        Self {
            plan: plan.clone(),
            asked: None,
            floors: Vec::new(),
            done: false,
            linked: false,
            act_at: 0,
            last: String::new(),
        }
    }

    fn answer(&mut self, cx: &mut Context<'_>, message: &Message, question: Question) -> Checked {
        let in_quiet = matches!(question, Question::Look(true));
        match message.response() {
            Ok(Response::GroupSet(_) | Response::GroupDeleted) if matches!(question, Question::Change) => {
                Ok(())
            }
            Ok(Response::GroupReset(reset)) => {
                let Question::Reset(group, partition) = question else {
                    return Err(wrong("answers are what was asked for", "a reset"));
                };
                let code = reset.entries.first().map_or(0, |entry| entry.code.get());
                match (code, ErrorCode::parse(code).map(ErrorCode::retry)) {
                    (0, _) => self.reset_answered(cx, group, partition, true),
                    (_, Some(Retry::Yes)) => self.reset_answered(cx, group, partition, false),
                    _ => {}
                }
                Ok(())
            }
            Ok(Response::Metadata(topics)) => {
                let Some(entry) = topics.iter().next().filter(|entry| entry.code == 0) else { return Ok(()) };
                let topic =
                    Topic { id: entry.topic.0, base: entry.base_partition.0, partitions: entry.partitions };
                cx.model.topics.insert(self.plan.dead_letters, topic);
                Ok(())
            }
            Ok(Response::DescribedGroup(group)) => {
                self.describe(cx, &group, in_quiet);
                self.check_floors(cx, &group)
            }
            _ => Err(wrong("answers are what was asked for", "of a group")),
        }
    }

    fn reset_answered(&self, cx: &mut Context<'_>, group: u32, partition: PartitionId, done: bool) {
        match self.plan.mode {
            GroupMode::Queue => cx.model.ledger.reset_answered((group, partition), done, cx.now),
            _ => cx.model.positions.reset_answered(Place { group, instance: 0, partition }, done),
        }
    }

    /// Alters, sets back or removes; `false`: does not.
    fn meddle(&mut self, cx: &mut Context<'_>, link: &mut Core) -> bool {
        let plan = &self.plan;
        let Some(group) = cx.model.ledger.id_of(plan.name) else { return false };
        if cx.calm || !plan.restless || !cx.draw.one_in(30) {
            return false;
        }
        let (topic, count) = cx.draw.pick(&plan.topics);
        let index = cx.draw.below(u64::from(count)) as u32;
        let partition = cx.model.partition(topic, index);
        match (cx.draw.below(4), partition) {
            (0, Some(partition)) if plan.mode != GroupMode::Broadcast => {
                self.asked = Some(Question::Reset(group, partition));
                match plan.mode {
                    GroupMode::Queue => cx.model.ledger.reset_asked(plan.name, (group, partition)),
                    _ => cx.model.positions.reset_asked(Place { group, instance: 0, partition }),
                }
                cx.note(|| format!("{} is reset in {partition}", plan.name));
                let (to, group) = (GroupStart::Earliest, plan.name);
                let (first_partition, partitions, instance, dry_run) = (index, 1, 0, false);
                let reset = ResetGroup { group, topic, first_partition, partitions, to, instance, dry_run };
                link.call(cx.now, Tag::Step, &Request::ResetGroup(reset));
            }
            (1, _) if cx.draw.one_in(3) => {
                self.asked = Some(Question::Change);
                cx.model.ledger.removal_asked(plan.name);
                cx.note(|| format!("{} is removed", plan.name));
                let delete = DeleteGroup { name: plan.name, force: true };
                link.call(cx.now, Tag::Step, &Request::DeleteGroup(delete));
            }
            _ => {
                self.asked = Some(Question::Change);
                let settings = GroupSettings {
                    invisible_default_ms: Some(cx.draw.pick(&[50, 1_000])),
                    concurrency: Some(cx.draw.pick(&[0, 1, 5])),
                    rate_records: Some(cx.draw.pick(&[0, 0, 300])),
                    ..GroupSettings::default()
                };
                let set = SetGroup { name: plan.name, mode: SetGroupMode::Alter, settings };
                link.call(cx.now, Tag::Step, &Request::SetGroup(set));
            }
        }
        true
    }

    /// Where it would be told to stand, at least.
    fn note_floors(&mut self, cx: &mut Context<'_>) {
        self.floors.clear();
        let group = cx.model.ledger.id_of(self.plan.name);
        let (GroupMode::Stream, Some(group)) = (self.plan.mode, group) else { return };
        for (topic, count) in &self.plan.topics {
            for index in 0..*count {
                let Some(partition) = cx.model.partition(topic, index) else { continue };
                let place = Place { group, instance: 0, partition };
                self.floors.push((place, cx.model.positions.floor(place)));
            }
        }
    }

    fn check_floors(&self, cx: &mut Context<'_>, group: &DescribedGroup<'_>) -> Checked {
        // Of this name there may be another group by now.
        for (place, floor) in self.floors.iter().filter(|one| one.0.group == group.group.group) {
            let row = group.positions.iter().find(|row| {
                let topic = cx.model.topics.values().find(|topic| topic.id == row.topic.get());
                topic.is_some_and(|topic| topic.base + row.partition.get() == place.partition.0)
            });
            if let Some(row) = row {
                cx.model.positions.check(&self.plan, *place, *floor, row.watermark.get())?;
            }
        }
        Ok(())
    }

    fn describe(&mut self, cx: &Context<'_>, group: &DescribedGroup<'_>, in_quiet: bool) {
        let lag: u64 = group.positions.iter().map(|position| position.lag_records.get()).sum();
        let rows = group.positions.iter().map(|position| {
            let numbers = [position.watermark, position.visible_end, position.acked_above];
            (position.partition.get(), numbers.map(|number| number.get()), position.in_flight.get())
        });
        self.last = format!("{:?}", rows.collect::<Vec<_>>());
        // Not in queue mode: dead letters are nobody's topic then.
        let knows =
            self.plan.mode != GroupMode::Queue || cx.model.topics.contains_key(self.plan.dead_letters);
        self.done = in_quiet && lag == 0 && !group.more && !group.positions.is_empty() && knows;
    }
}

impl Role for Overseeing {
    fn ready(&mut self, _: &mut Context<'_>, _: &ServerInfo) {
        self.linked = true;
    }

    fn event(&mut self, cx: &mut Context<'_>, _: &mut Core, event: Event<Tag>) -> Checked {
        let Event::Answer { tag: Tag::Step, result } = event else { return Ok(()) };
        let Some(question) = self.asked.take() else { return Ok(()) };
        if let (Err(refused), Question::Reset(group, partition)) = (&result, question)
            && refused.retry() != Retry::OutcomeUnknown
        {
            self.reset_answered(cx, group, partition, false);
        }
        match result {
            Ok(message) => self.answer(cx, &message, question),
            // It is there when its first member has joined.
            Err(refused) if refused.code() == Some(ErrorCode::UnknownGroup) => Ok(()),
            Err(refused) if refused.retry() != Retry::No => Ok(()),
            Err(refused) => Err(wrong("a group can be looked at", format!("{refused:?}"))),
        }
    }

    fn lost(&mut self, _: &mut Context<'_>, _: Vec<Tag>) -> Checked {
        self.linked = false;
        self.asked = None;
        Ok(())
    }

    fn drive(&mut self, cx: &mut Context<'_>, link: Option<&mut Core>) -> Checked {
        let (Some(link), true) = (link, cx.now >= self.act_at) else { return Ok(()) };
        let often = if cx.quiet { 100_000 } else { 200_000 };
        self.act_at = cx.now + 1 + cx.draw.below(often);
        if self.asked.is_some() || self.done {
            return Ok(());
        }
        if self.meddle(cx, link) {
            return Ok(());
        }
        self.asked = Some(Question::Look(cx.quiet));
        let queue = self.plan.mode == GroupMode::Queue;
        if queue && !cx.model.topics.contains_key(self.plan.dead_letters) && cx.draw.one_in(2) {
            let names: NamesBuf = [self.plan.dead_letters].into_iter().collect();
            let metadata = Metadata { names: names.names(), auto_create: false };
            link.call(cx.now, Tag::Step, &Request::Metadata(metadata));
        } else {
            let describe = DescribeGroup {
                name: self.plan.name,
                after: (TopicId(0), 0, 0),
                limit: 0,
                with_members: false,
            };
            self.note_floors(cx);
            link.call(cx.now, Tag::Step, &Request::DescribeGroup(describe));
        }
        Ok(())
    }

    fn deadline(&self) -> u64 {
        if self.linked && !self.done { self.act_at } else { u64::MAX }
    }

    fn is_idle(&self) -> bool {
        self.done
    }

    fn is_of_group(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        format!("overseer of {}: {}", self.plan.name, self.last)
    }
}
