//! Looks after a group: sees whether it has come to its end, and, in queue mode, where its dead letters are.

use super::client::{Context, Core, Role, Tag};
use super::groups::GroupPlan;
use super::model::{Checked, Topic, wrong};
use super::positions::{Floor, Place};
use ringmq_client::core::connection::{Event, Message, ServerInfo};
use ringmq_client::{ErrorCode, Retry};
use ringmq_engine::format::TopicId;
use ringmq_protocol::{DescribeGroup, DescribedGroup, GroupMode, Metadata, NamesBuf, Request, Response};

pub(crate) struct Overseeing {
    plan: GroupPlan,
    /// Asks, and in the quiet.
    asked: Option<bool>,
    /// Where the group stood at least when it was asked.
    floors: Vec<(Place, Floor)>,
    done: bool,
    linked: bool,
    act_at: u64,
    last: String,
}

impl Overseeing {
    pub(crate) fn new(plan: &GroupPlan) -> Self {
        Self { plan: plan.clone(), asked: None, floors: Vec::new(), done: false, linked: false, act_at: 0, last: String::new() }
    }

    fn answer(&mut self, cx: &mut Context<'_>, message: &Message, in_quiet: bool) -> Checked {
        match message.response() {
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

    fn check_floors(&self, cx: &Context<'_>, group: &DescribedGroup<'_>) -> Checked {
        for (place, floor) in &self.floors {
            let row = group.positions.iter().find(|row| {
                let topic = cx.model.topics.values().find(|topic| topic.id == row.topic.get());
                topic.is_some_and(|topic| topic.base + row.partition.get() == place.partition.0)
            });
            if let Some(row) = row {
                floor.check(&self.plan, *place, row.watermark.get())?;
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
        let in_quiet = self.asked.take().unwrap_or(false);
        match result {
            Ok(message) => self.answer(cx, &message, in_quiet),
            // It is there when its first member has joined.
            Err(refused) if refused.code() == Some(ErrorCode::UnknownGroup) => Ok(()),
            Err(refused) if refused.retry() == Retry::Yes => Ok(()),
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
        self.asked = Some(cx.quiet);
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
