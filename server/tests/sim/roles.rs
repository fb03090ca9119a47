//! What clients do: produce, subscribe, fetch, look after topics.

use super::client::{Context, Core, Role, Tag};
use super::model::{Checked, RecordId, Topic, body, record, wrong};
use bytes::Bytes;
use ringmq_client::core::Refused;
use ringmq_client::core::connection::{Event, FrameOutcome, Message, ServerInfo, Target};
use ringmq_client::core::consumer::{
    Action, ConsumerCore, ConsumerCoreConfig, Halt, Next, OutOfRange, Start,
};
use ringmq_client::core::decode::{check_entry, decode_frame};
use ringmq_client::core::producer::{
    Failure, Outgoing, ProducerCore, ProducerCoreConfig, ProducerIdentity, PushError,
};
use ringmq_client::{Codec, ErrorCode, FrameBuilder, OffsetSpec, ProducerStamp, Record, Retry};
use ringmq_engine::format::PartitionId;
use ringmq_engine::format::limits::frame_size_max;
use ringmq_protocol::{CreateTopic, Metadata, NamesBuf, Request, Response, entries};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

fn target(topic: &str, partition: u32) -> Target {
    Target { topic: Arc::from(topic), partition }
}

/// Sends records idempotently, through whatever happens.
pub(crate) struct Producing {
    id: u32,
    topic: &'static str,
    partitions: u32,
    core: Option<ProducerCore>,
    next_number: Vec<u64>,
    batches: BTreeMap<u64, (u32, Vec<RecordId>)>,
    left: u64,
    act_at: u64,
    /// Frames of one request, at most.
    together: u64,
}

impl Producing {
    pub(crate) fn new(cx: &mut Context<'_>, topic: &'static str, partitions: u32) -> Self {
        Self {
            id: cx.model.next_producer(),
            topic,
            partitions,
            core: None,
            next_number: vec![0; partitions as usize],
            batches: BTreeMap::new(),
            left: cx.plan.records,
            act_at: cx.now,
            together: 1 + cx.draw.below(6),
        }
    }

    fn start(&self, cx: &mut Context<'_>) -> ProducerCore {
        let frame_max = frame_size_max(cx.plan.segment_size);
        ProducerCore::new(ProducerCoreConfig {
            linger_us: cx.draw.below(3) * 700,
            batch_bytes: cx.draw.pick(&[1, 600, 8_000, frame_max]),
            batch_records: 1 + cx.draw.below(6) as u32,
            frame_size_max: frame_max,
            codec: Codec::None,
            block_per_record: cx.draw.one_in(2),
            max_buffered_bytes: 1 << 20,
            retry_for_us: if cx.plan.gives_up { 300_000 } else { 3_600_000_000 },
            identity: ProducerIdentity::new(cx.draw.next() | 1),
            seed: cx.draw.next(),
        })
    }

    fn act(&mut self, cx: &mut Context<'_>) -> Checked {
        let Some(core) = &mut self.core else { return Ok(()) };
        let burst = 1 + cx.draw.below(8);
        for _ in 0..burst.min(self.left) {
            let lane = cx.draw.below(u64::from(self.partitions)) as u32;
            let next = &mut self.next_number[lane as usize];
            let id = RecordId { producer: self.id, lane, number: *next };
            let body = body(id, cx.draw.below(cx.plan.body_max));
            match core.push(cx.now, lane, &record(id, &body)) {
                Ok(pushed) => {
                    *next += 1;
                    self.left -= 1;
                    cx.model.sent(id);
                    let batch = self.batches.entry(pushed.batch).or_insert((lane, Vec::new()));
                    assert_eq!(batch.1.len(), pushed.index as usize, "records of a batch are counted");
                    batch.1.push(id);
                }
                Err(PushError::Full) => break,
                Err(error) => return Err(wrong("a producer may go on", format!("{error:?}"))),
            }
        }
        Ok(())
    }

    fn complete(&mut self, cx: &mut Context<'_>) -> Checked {
        let Some(core) = &mut self.core else { return Ok(()) };
        while let Some(done) = core.next_completion() {
            let Some((lane, ids)) = self.batches.remove(&done.batch) else {
                return Err(wrong("a batch ends once", format!("{done:?}")));
            };
            let Some(partition) = cx.model.partition(self.topic, lane) else { continue };
            cx.note(|| format!("producer {}: {partition} {:?} is {:?}", self.id, ids.first(), done.result));
            match done.result {
                Ok(stored) => {
                    cx.model.duplicates += u64::from(stored.duplicate);
                    for (id, offset) in ids.into_iter().zip(stored.base_offset..) {
                        cx.model.acked(id, partition, offset)?;
                    }
                }
                Err(Failure::Expired { .. }) if cx.plan.gives_up => {
                    ids.into_iter().try_for_each(|id| cx.model.absent(id))?;
                }
                Err(Failure::OutcomeUnknown { .. }) if cx.plan.gives_up => {}
                Err(failure) => {
                    let details = format!("producer {} {partition}: {failure:?}", self.id);
                    return Err(wrong("what may be stored is stored", details));
                }
            }
        }
        if core.epochs_given_up() > 0 && !cx.plan.gives_up {
            let details = format!("producer {}: a new epoch", self.id);
            return Err(wrong("the server keeps count of sequences", details));
        }
        Ok(())
    }
}

impl Role for Producing {
    fn event(&mut self, cx: &mut Context<'_>, _: &mut Core, event: Event<Tag>) -> Checked {
        if let (Event::Produced { tag: Tag::Batches(batches), result }, Some(core)) = (event, &mut self.core)
        {
            match result {
                Ok(outcomes) => {
                    for (batch, outcome) in batches.into_iter().zip(outcomes) {
                        core.outcome(cx.now, batch, outcome);
                    }
                }
                Err(refused) => {
                    for batch in batches {
                        core.outcome(cx.now, batch, Err(refused.clone()));
                    }
                }
            }
        }
        self.complete(cx)
    }

    fn lost(&mut self, cx: &mut Context<'_>, tags: Vec<Tag>) -> Checked {
        let Some(core) = &mut self.core else { return Ok(()) };
        for tag in tags {
            if let Tag::Batches(batches) = tag {
                batches.into_iter().for_each(|batch| core.lost(cx.now, batch));
            }
        }
        self.complete(cx)
    }

    fn drive(&mut self, cx: &mut Context<'_>, link: Option<&mut Core>) -> Checked {
        if !cx.model.topics.contains_key(self.topic) {
            self.act_at = cx.now + 5_000;
            return Ok(());
        }
        if self.core.is_none() {
            self.core = Some(self.start(cx));
        }
        if cx.now >= self.act_at {
            self.act_at = if self.left == 0 { u64::MAX } else { cx.pause() };
            if !cx.calm {
                self.act(cx)?;
            }
        }
        let Some(core) = &mut self.core else { return Ok(()) };
        let mut sends: Vec<Outgoing> = Vec::new();
        core.poll(cx.now, &mut sends);
        match link {
            Some(link) => {
                while !sends.is_empty() {
                    let together = (1 + cx.draw.below(self.together) as usize).min(sends.len());
                    let request: Vec<Outgoing> = sends.drain(..together).collect();
                    let batches = request.iter().map(|sent| sent.batch).collect();
                    let targets: Vec<_> =
                        request.iter().map(|sent| target(self.topic, sent.partition)).collect();
                    let frames = targets.iter().zip(request.iter().map(|sent| sent.frame.clone()));
                    link.produce(cx.now, Tag::Batches(batches), frames);
                }
            }
            None => sends.into_iter().for_each(|sent| core.not_sent(cx.now, sent.batch)),
        }
        self.complete(cx)
    }

    fn deadline(&self) -> u64 {
        self.act_at.min(self.core.as_ref().map_or(u64::MAX, ProducerCore::deadline_us))
    }

    fn is_idle(&self) -> bool {
        self.core.as_ref().is_none_or(ProducerCore::is_empty)
    }

    fn name(&self) -> String {
        format!("producer {}", self.id)
    }
}

/// Sends records without a producer id, once each, and gives up what is lost with its connection.
pub(crate) struct PlainProducing {
    topic: &'static str,
    partitions: u32,
    id: u32,
    next_number: Vec<u64>,
    flying: BTreeMap<u64, Vec<(u32, Vec<RecordId>)>>,
    next_request: u64,
    left: u64,
    act_at: u64,
}

impl PlainProducing {
    pub(crate) fn new(cx: &mut Context<'_>, topic: &'static str, partitions: u32) -> Self {
        Self {
            topic,
            partitions,
            id: cx.model.next_producer(),
            next_number: vec![0; partitions as usize],
            flying: BTreeMap::new(),
            next_request: 0,
            left: cx.plan.records,
            act_at: cx.now,
        }
    }

    fn frame(&mut self, cx: &mut Context<'_>, lane: u32) -> (Bytes, Vec<RecordId>) {
        let mut builder = FrameBuilder::new(1_000, frame_size_max(cx.plan.segment_size));
        let mut ids = Vec::new();
        for _ in 0..1 + cx.draw.below(4) {
            let number = self.next_number[lane as usize];
            let id = RecordId { producer: self.id, lane, number };
            let body = body(id, cx.draw.below(cx.plan.body_max));
            if builder.push(&record(id, &body)).is_ok() {
                self.next_number[lane as usize] += 1;
                self.left = self.left.saturating_sub(1);
                cx.model.sent(id);
                ids.push(id);
            }
        }
        (Bytes::from(builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None)), ids)
    }

    fn outcome(&self, cx: &mut Context<'_>, lane: u32, ids: Vec<RecordId>, outcome: FrameOutcome) -> Checked {
        let Some(partition) = cx.model.partition(self.topic, lane) else { return Ok(()) };
        cx.note(|| format!("plain producer {}: {partition} {:?} is {outcome:?}", self.id, ids.first()));
        match outcome {
            Ok(stored) if stored.duplicate => {
                Err(wrong("without a producer id nothing is a duplicate", format!("{ids:?}")))
            }
            Ok(stored) => {
                for (id, offset) in ids.into_iter().zip(stored.base_offset..) {
                    cx.model.acked(id, partition, offset)?;
                }
                Ok(())
            }
            Err(refused) => {
                let lasts = refused.retry() == Retry::No;
                if lasts {
                    return Err(wrong("what may be stored is stored", format!("{partition}: {refused:?}")));
                }
                if refused.retry() == Retry::Yes {
                    ids.into_iter().try_for_each(|id| cx.model.absent(id))?;
                }
                Ok(())
            }
        }
    }
}

impl Role for PlainProducing {
    fn event(&mut self, cx: &mut Context<'_>, _: &mut Core, event: Event<Tag>) -> Checked {
        let Event::Produced { tag: Tag::Batches(request), result } = event else { return Ok(()) };
        for request in request {
            let frames = self.flying.remove(&request).unwrap_or_default();
            match &result {
                Ok(outcomes) => {
                    for ((lane, ids), outcome) in frames.into_iter().zip(outcomes) {
                        self.outcome(cx, lane, ids, outcome.clone())?;
                    }
                }
                Err(refused) => {
                    for (lane, ids) in frames {
                        self.outcome(cx, lane, ids, Err(refused.clone()))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn lost(&mut self, cx: &mut Context<'_>, _: Vec<Tag>) -> Checked {
        self.flying.clear();
        // What the old connection sent may still be on its way into the log: order is one connection's.
        self.id = cx.model.next_producer();
        self.next_number.iter_mut().for_each(|next| *next = 0);
        Ok(())
    }

    fn drive(&mut self, cx: &mut Context<'_>, link: Option<&mut Core>) -> Checked {
        if cx.now < self.act_at {
            return Ok(());
        }
        self.act_at = if self.left == 0 { u64::MAX } else { cx.pause() };
        let Some(link) = link else { return Ok(()) };
        if cx.calm || !cx.model.topics.contains_key(self.topic) || self.flying.len() > 8 {
            return Ok(());
        }
        for _ in 0..1 + cx.draw.below(3) {
            let mut frames = Vec::new();
            let mut bodies = Vec::new();
            for _ in 0..1 + cx.draw.below(5) {
                let lane = cx.draw.below(u64::from(self.partitions)) as u32;
                let (bytes, ids) = self.frame(cx, lane);
                frames.push((lane, ids));
                bodies.push((target(self.topic, lane), bytes));
            }
            self.next_request += 1;
            self.flying.insert(self.next_request, frames);
            let tag = Tag::Batches(vec![self.next_request]);
            link.produce(cx.now, tag, bodies.iter().map(|(target, bytes)| (target, bytes.clone())));
        }
        Ok(())
    }

    fn deadline(&self) -> u64 {
        self.act_at
    }

    fn is_idle(&self) -> bool {
        self.flying.is_empty()
    }

    fn name(&self) -> String {
        format!("plain producer {}", self.id)
    }
}

/// Reads a topic by subscription.
pub(crate) struct Subscribing {
    name: u32,
    topic: &'static str,
    core: Option<ConsumerCore>,
    /// Partition and attempt of each subscription.
    subscriptions: BTreeMap<u32, (u32, u64)>,
    partitions: u32,
    records: VecDeque<ringmq_client::ConsumedRecord>,
    act_at: u64,
    linked: bool,
}

impl Subscribing {
    pub(crate) fn new(cx: &mut Context<'_>, topic: &'static str, partitions: u32) -> Self {
        Self {
            name: cx.draw.below(1000) as u32,
            topic,
            core: None,
            subscriptions: BTreeMap::new(),
            partitions,
            records: VecDeque::new(),
            act_at: cx.now,
            linked: false,
        }
    }

    fn id(&self, cx: &Context<'_>, partition: u32) -> PartitionId {
        cx.model.partition(self.topic, partition).unwrap_or(PartitionId(0))
    }

    fn act(&mut self, cx: &mut Context<'_>, link: &mut Core) -> Checked {
        let Some(core) = &mut self.core else { return Ok(()) };
        while let Some(action) = core.next_action(cx.now) {
            match action {
                Action::Resolve { partition, attempt, what } => {
                    let tag = Tag::Resolve { partition, attempt };
                    link.list_offsets(cx.now, tag, &target(self.topic, partition), what);
                }
                Action::Subscribe { partition, attempt, offset, credit } => {
                    let tag = Tag::Subscribe { partition, attempt };
                    let number = link.subscribe(cx.now, tag, &target(self.topic, partition), offset, credit);
                    self.subscriptions.insert(number, (partition, attempt));
                }
                Action::Credit { partition, attempt, bytes } => {
                    let found = self.subscriptions.iter().find(|found| *found.1 == (partition, attempt));
                    if let Some((number, _)) = found {
                        link.credit(*number, bytes);
                    }
                }
                Action::Unsubscribe { partition, attempt } => {
                    let found = self.subscriptions.iter().find(|found| *found.1 == (partition, attempt));
                    if let Some((number, _)) = found {
                        link.unsubscribe(cx.now, Tag::Ignored, *number);
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, cx: &mut Context<'_>, frames: u64) -> Checked {
        let Some(core) = &mut self.core else { return Ok(()) };
        for _ in 0..frames {
            match core.take(&mut self.records) {
                Next::Nothing => break,
                Next::Records => {}
                Next::Halted { halt: Halt::OutOfRange { .. }, partition, position } if cx.plan.retains() => {
                    core.seek(partition, position);
                }
                Next::Halted { partition, position, halt } => {
                    let details = format!("subscriber {}: {partition}@{position}: {halt:?}", self.name);
                    return Err(wrong("streams go on without a gap", details));
                }
            }
        }
        for record in std::mem::take(&mut self.records) {
            let partition = self.id(cx, record.partition);
            cx.model.read(partition, &record)?;
        }
        Ok(())
    }
}

impl Role for Subscribing {
    fn ready(&mut self, _: &mut Context<'_>, _: &ServerInfo) {
        self.linked = true;
    }

    fn event(&mut self, cx: &mut Context<'_>, _: &mut Core, event: Event<Tag>) -> Checked {
        let Some(core) = &mut self.core else { return Ok(()) };
        match event {
            Event::Answer { tag: Tag::Resolve { partition, attempt }, result } => match result {
                Ok(message) => {
                    let Ok(Response::ListedOffset(listed)) = message.response() else {
                        return Err(wrong("answers are what was asked for", "no offset listed"));
                    };
                    core.resolved(partition, attempt, listed.offset);
                }
                Err(refused) => core.refused(cx.now, partition, attempt, refused),
            },
            Event::Answer { tag: Tag::Subscribe { partition, attempt }, result } => match result {
                Ok(message) => {
                    let Ok(Response::Subscribed(bounds)) = message.response() else {
                        return Err(wrong("answers are what was asked for", "not subscribed"));
                    };
                    core.subscribed(partition, attempt, bounds);
                    let id = self.id(cx, partition);
                    cx.model.bounds(id, bounds.log_start, bounds.visible_end, 0)?;
                }
                Err(refused) => core.refused(cx.now, partition, attempt, refused),
            },
            Event::Push { subscription, fields, entries } => {
                let Some((partition, attempt)) = self.subscriptions.get(&subscription).copied() else {
                    return Err(wrong("pushes are of a subscription", format!("{subscription}")));
                };
                core.pushed(cx.now, partition, attempt, &fields, &entries);
                let id = self.id(cx, partition);
                cx.model.bounds(id, fields.log_start.get(), fields.visible_end.get(), 0)?;
            }
            Event::Ended { subscription, refused } => {
                if let Some((partition, attempt)) = self.subscriptions.remove(&subscription) {
                    core.refused(cx.now, partition, attempt, refused);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn lost(&mut self, cx: &mut Context<'_>, tags: Vec<Tag>) -> Checked {
        self.linked = false;
        let Some(core) = &mut self.core else { return Ok(()) };
        for tag in tags {
            if let Tag::Resolve { partition, attempt } | Tag::Subscribe { partition, attempt } = tag {
                core.lost(cx.now, partition, attempt);
            }
        }
        for (partition, attempt) in std::mem::take(&mut self.subscriptions).into_values() {
            core.lost(cx.now, partition, attempt);
        }
        Ok(())
    }

    fn drive(&mut self, cx: &mut Context<'_>, link: Option<&mut Core>) -> Checked {
        if !cx.model.topics.contains_key(self.topic) {
            self.act_at = cx.now + 5_000;
            return Ok(());
        }
        if self.core.is_none() {
            let config = ConsumerCoreConfig {
                credit: cx.draw.pick(&[1, 2_000, 40_000, 1 << 20]),
                retry_for_us: 3_600_000_000,
                out_of_range: if cx.plan.retains() { OutOfRange::Earliest } else { OutOfRange::Fail },
                filtered: false,
                seed: cx.draw.next(),
            };
            let partitions: Vec<_> = (0..self.partitions).map(|index| (index, self.id(cx, index))).collect();
            let start = cx.draw.pick(&[Start::Earliest, Start::Offset(0), Start::Latest]);
            let start = if cx.plan.retains() { Start::Earliest } else { start };
            self.core = Some(ConsumerCore::new(config, partitions, start));
        }
        if cx.now >= self.act_at {
            self.act_at = cx.pause();
            self.take(cx, 1 + cx.draw.clone().below(4))?;
        }
        match link {
            Some(link) => self.act(cx, link),
            None => Ok(()),
        }
    }

    fn deadline(&self) -> u64 {
        // Without a connection it can ask for nothing.
        let core = self.core.as_ref().filter(|_| self.linked);
        self.act_at.min(core.map_or(u64::MAX, ConsumerCore::deadline_us))
    }

    fn is_idle(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        format!("subscriber {}", self.name)
    }
}

/// Reads by FETCH, and asks for offsets in between. One that has to read all tells when it has.
pub(crate) struct Fetching {
    topic: &'static str,
    partition: u32,
    position: Option<u64>,
    asked: bool,
    act_at: u64,
    /// Reads up to the end as it is then.
    until: Option<u64>,
    start: u64,
    pub(crate) whole: bool,
    done: bool,
    /// The group whose dead letters these are.
    pub(crate) dead_letters_of: Option<&'static str>,
}

impl Fetching {
    pub(crate) fn new(topic: &'static str, partition: u32, whole: bool) -> Self {
        Self {
            topic,
            partition,
            position: None,
            asked: false,
            act_at: 0,
            until: None,
            start: 0,
            whole,
            done: false,
            dead_letters_of: None,
        }
    }

    fn id(&self, cx: &Context<'_>) -> PartitionId {
        cx.model.partition(self.topic, self.partition).unwrap_or(PartitionId(0))
    }

    fn fetched(&mut self, cx: &mut Context<'_>, message: &Message, floor: u64) -> Checked {
        let id = self.id(cx);
        let Ok(Response::Fetched(fields)) = message.response() else {
            return Err(wrong("answers are what was asked for", "nothing fetched"));
        };
        let (start, visible) = (fields.log_start.get(), fields.visible_end.get());
        cx.model.bounds(id, start, visible, floor)?;
        let mut next = self.position.unwrap_or(0);
        for entry in entries(&message.frames) {
            let bad = |what: String| wrong("streams go on without a gap", format!("{id}@{next}: {what}"));
            let entry = entry.map_err(|error| bad(error.to_string()))?;
            check_entry(&entry, id, next).map_err(|error| bad(error.to_string()))?;
            let bytes = message.frames.slice_ref(entry.frame.bytes);
            let mut records = VecDeque::new();
            decode_frame(self.partition, entry.header, &bytes, next, &mut records)
                .map_err(|error| bad(error.to_string()))?;
            for record in records {
                if record.offset < next {
                    continue;
                }
                match self.dead_letters_of {
                    None => drop(cx.model.read(id, &record)?),
                    Some(group) => cx.model.dead_letter(group, id, &record, entry.header, &entry.frame)?,
                }
            }
            next = next.max(entry.header.end_offset());
        }
        if fields.next_offset.get() != next || next > visible {
            let details = format!("{id}: read up to {next}, told {} of {visible}", fields.next_offset);
            return Err(wrong("streams go on without a gap", details));
        }
        self.position = Some(next);
        if self.until.is_some_and(|until| next >= until) && !self.done {
            self.done = true;
            return cx.model.complete(id, self.start, next, cx.plan.retains());
        }
        Ok(())
    }

    fn refused(&mut self, cx: &Context<'_>, refused: &Refused) -> Checked {
        match refused.code() {
            Some(ErrorCode::OffsetOutOfRange) if cx.plan.retains() => self.position = None,
            _ if refused.retry() == Retry::Yes => {}
            _ => {
                let details = format!("{} at {:?}: {refused:?}", self.id(cx), self.position);
                return Err(wrong("what is there can be read", details));
            }
        }
        Ok(())
    }
}

impl Role for Fetching {
    fn event(&mut self, cx: &mut Context<'_>, _: &mut Core, event: Event<Tag>) -> Checked {
        let Event::Answer { tag, result } = event else { return Ok(()) };
        self.asked = false;
        self.act_at = if self.whole { cx.now } else { cx.pause() };
        match (tag, result) {
            (Tag::Fetch { floor }, Ok(message)) => self.fetched(cx, &message, floor),
            (Tag::Offset { floor, latest }, Ok(message)) => {
                let Ok(Response::ListedOffset(listed)) = message.response() else {
                    return Err(wrong("answers are what was asked for", "no offset listed"));
                };
                let id = self.id(cx);
                if latest {
                    cx.model.bounds(id, 0, listed.offset, floor)?;
                    self.until = self.whole.then_some(listed.offset);
                } else {
                    (self.start, self.position) = (listed.offset, Some(listed.offset));
                }
                if self.until.is_some_and(|until| self.position == Some(until)) && !self.done {
                    self.done = true;
                    return cx.model.complete(id, self.start, listed.offset, cx.plan.retains());
                }
                Ok(())
            }
            (_, Err(refused)) => self.refused(cx, &refused),
            _ => Ok(()),
        }
    }

    fn lost(&mut self, cx: &mut Context<'_>, _: Vec<Tag>) -> Checked {
        self.asked = false;
        self.act_at = cx.now;
        Ok(())
    }

    fn drive(&mut self, cx: &mut Context<'_>, link: Option<&mut Core>) -> Checked {
        let ready = cx.now >= self.act_at && !self.asked && !self.done;
        let (Some(link), true) = (link, ready) else {
            if cx.now >= self.act_at {
                self.act_at = cx.now + 2_000;
            }
            return Ok(());
        };
        let id = self.id(cx);
        if !cx.model.topics.contains_key(self.topic) {
            self.act_at = cx.now + 5_000;
            return Ok(());
        }
        self.asked = true;
        self.act_at = u64::MAX;
        let floor = cx.model.facts(id).visible;
        let target = target(self.topic, self.partition);
        match self.position {
            None => {
                let tag = Tag::Offset { floor: 0, latest: false };
                link.list_offsets(cx.now, tag, &target, OffsetSpec::Earliest);
            }
            Some(_) if self.until.is_none() && (self.whole || cx.draw.one_in(6)) => {
                let tag = Tag::Offset { floor, latest: true };
                link.list_offsets(cx.now, tag, &target, OffsetSpec::Latest);
            }
            Some(position) => {
                let max = cx.draw.pick(&[0, 1, 3_000, 60_000, u32::MAX]);
                let wait = if self.whole { 0 } else { cx.draw.pick(&[0, 1, 20, 700]) };
                link.fetch(cx.now, Tag::Fetch { floor }, &target, position, max, wait);
            }
        }
        Ok(())
    }

    fn deadline(&self) -> u64 {
        if self.done { u64::MAX } else { self.act_at }
    }

    fn is_idle(&self) -> bool {
        self.done || !self.whole
    }

    fn name(&self) -> String {
        format!("fetcher of {}[{}]", self.topic, self.partition)
    }

    fn is_robust(&self) -> bool {
        !self.whole
    }
}

/// What is known of a topic that comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Unknown,
    There(u32),
    Gone(u32),
}

/// Makes the topics that stay, or makes and deletes one that does not.
pub(crate) struct Tending {
    /// Made once each.
    founds: VecDeque<(&'static str, u32)>,
    /// Comes and goes.
    name: String,
    standing: Standing,
    doing: Option<Doing>,
    act_at: u64,
    /// With its partitions.
    shown: Option<(u32, u32)>,
    /// Handles of what was deleted are of no use any more.
    leaves: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Found,
    Create,
    Delete(u32),
    Look,
    Produce(u32),
}

impl Tending {
    pub(crate) fn founder(topics: &[(&'static str, u32)]) -> Self {
        Self {
            founds: topics.iter().copied().collect(),
            name: String::new(),
            standing: Standing::Unknown,
            doing: None,
            act_at: 0,
            shown: None,
            leaves: false,
        }
    }

    pub(crate) fn keeper(number: u32) -> Self {
        Self { name: format!("mortal-{number}"), ..Self::founder(&[]) }
    }

    fn answer(&mut self, cx: &mut Context<'_>, message: &Message) -> Checked {
        let response =
            message.response().map_err(|error| wrong("answers are whole", format!("{error:?}")))?;
        match (self.doing, response) {
            (Some(Doing::Found), Response::Created(entry)) => {
                let topic =
                    Topic { id: entry.topic.0, base: entry.base_partition.0, partitions: entry.partitions };
                if let Some((name, partitions)) = self.founds.pop_front() {
                    if entry.name != name || entry.partitions != partitions {
                        return Err(wrong("a topic is what was asked for", format!("{entry:?}")));
                    }
                    cx.model.topics.insert(name, topic);
                }
            }
            (Some(Doing::Create), Response::Created(entry)) => {
                let id = entry.topic.0;
                if self.standing == Standing::Gone(id) {
                    return Err(wrong("what is deleted stays deleted", format!("{entry:?}")));
                }
                self.standing = Standing::There(id);
            }
            (Some(Doing::Delete(id)), Response::Deleted) => {
                self.standing = Standing::Gone(id);
                (self.shown, self.leaves) = (None, true);
            }
            (Some(Doing::Look), Response::Metadata(topics)) => {
                let Some(entry) = topics.iter().next() else {
                    return Err(wrong("answers are what was asked for", "no topic"));
                };
                let found = (entry.code == 0).then_some(entry.topic.0);
                let fits = match self.standing {
                    Standing::Unknown => true,
                    Standing::There(id) => found == Some(id),
                    Standing::Gone(id) => found != Some(id),
                };
                if !fits {
                    let details = format!("{} is {:?}, found {entry:?}", self.name, self.standing);
                    return Err(wrong("topics stay as they were answered", details));
                }
                if let Some(id) = found {
                    self.shown = Some((id, entry.partitions));
                }
            }
            (doing, response) => {
                let details = format!("{doing:?}: {response:?}");
                return Err(wrong("answers are what was asked for", details));
            }
        }
        Ok(())
    }

    fn refused(&mut self, refused: &Refused) -> Checked {
        match (self.doing, refused.code()) {
            (_, Some(ErrorCode::OutcomeUnknown)) => self.standing = Standing::Unknown,
            (Some(Doing::Delete(id)), Some(ErrorCode::UnknownTopic)) => {
                // Only one that nobody is sure of may be gone already.
                if self.standing == Standing::There(id) {
                    return Err(wrong("topics stay as they were answered", format!("{} is gone", self.name)));
                }
                self.standing = Standing::Gone(id);
            }
            _ if refused.retry() == Retry::Yes => {}
            (doing, _) => {
                return Err(wrong("topics can be made and deleted", format!("{doing:?}: {refused:?}")));
            }
        }
        Ok(())
    }
}

impl Role for Tending {
    fn event(&mut self, cx: &mut Context<'_>, _: &mut Core, event: Event<Tag>) -> Checked {
        match event {
            Event::Answer { tag: Tag::Step, result } => {
                cx.note(|| {
                    format!(
                        "{}: {:?} is answered {:?}",
                        self.name(),
                        self.doing,
                        result.as_ref().map(Message::op)
                    )
                });
                match &result {
                    Ok(message) => self.answer(cx, message)?,
                    Err(refused) => self.refused(refused)?,
                }
                self.doing = None;
            }
            Event::Produced { result, .. } => {
                // It was answered, and only this client deletes it.
                let refused = match &result {
                    Ok(outcomes) => outcomes.iter().find_map(|outcome| outcome.as_ref().err()),
                    Err(refused) => Some(refused),
                };
                let sure = matches!(self.standing, Standing::There(_));
                if let Some(refused) = refused.filter(|refused| sure && refused.retry() == Retry::No) {
                    let details = format!("{} {:?}: {refused:?}", self.name, self.doing);
                    return Err(wrong("a topic that is shown is there", details));
                }
                self.doing = None;
            }
            _ => {}
        }
        self.act_at = cx.pause();
        Ok(())
    }

    fn lost(&mut self, cx: &mut Context<'_>, _: Vec<Tag>) -> Checked {
        match self.doing.take() {
            Some(Doing::Create) if !matches!(self.standing, Standing::There(_)) => {
                self.standing = Standing::Unknown;
            }
            Some(Doing::Delete(_)) => (self.standing, self.shown) = (Standing::Unknown, None),
            _ => {}
        }
        // A process that dies may take with it what was shown and never answered.
        self.shown = None;
        self.act_at = cx.now;
        Ok(())
    }

    fn drive(&mut self, cx: &mut Context<'_>, link: Option<&mut Core>) -> Checked {
        if cx.now < self.act_at {
            return Ok(());
        }
        self.act_at = cx.pause();
        let Some(link) = link else { return Ok(()) };
        if self.doing.is_some() || (cx.calm && self.founds.is_empty()) {
            return Ok(());
        }
        if let Some((name, partitions)) = self.founds.front() {
            self.doing = Some(Doing::Found);
            let create = CreateTopic { name, partitions: *partitions, if_not_exists: true };
            link.call(cx.now, Tag::Step, &Request::CreateTopic(create));
            return Ok(());
        }
        if self.name.is_empty() {
            self.act_at = u64::MAX;
            return Ok(());
        }
        let doing = match (cx.draw.below(5), self.standing) {
            (0, Standing::There(id)) => Doing::Delete(id),
            (0 | 1, Standing::Unknown | Standing::Gone(_)) => Doing::Create,
            (2 | 3, _) if self.shown.is_some() => Doing::Produce(self.shown.map_or(0, |shown| shown.1)),
            _ => Doing::Look,
        };
        self.doing = Some(doing);
        match doing {
            Doing::Found => {}
            Doing::Create => {
                let partitions = 1 + cx.draw.below(6) as u32;
                let create = CreateTopic { name: &self.name, partitions, if_not_exists: true };
                link.call(cx.now, Tag::Step, &Request::CreateTopic(create));
            }
            Doing::Delete(_) => {
                self.shown = None;
                link.call(cx.now, Tag::Step, &Request::DeleteTopic(&self.name));
            }
            Doing::Look => {
                let names: NamesBuf = [self.name.as_str()].into_iter().collect();
                let auto_create = self.standing == Standing::Unknown;
                let metadata = Metadata { names: names.names(), auto_create };
                link.call(cx.now, Tag::Step, &Request::Metadata(metadata));
            }
            Doing::Produce(partitions) => {
                let mut builder = FrameBuilder::new(0, 4096);
                let _ = builder.push(&Record { body: b"mortal", ..Record::default() });
                let frame = Bytes::from(builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None));
                let target = target(&self.name, cx.draw.below(u64::from(partitions)) as u32);
                link.produce(cx.now, Tag::Step, [(&target, frame)].into_iter());
            }
        }
        Ok(())
    }

    fn ready(&mut self, cx: &mut Context<'_>, _: &ServerInfo) {
        self.act_at = cx.now;
    }

    fn leaves(&mut self) -> bool {
        std::mem::take(&mut self.leaves)
    }

    fn deadline(&self) -> u64 {
        self.act_at
    }

    fn is_idle(&self) -> bool {
        self.doing.is_none() && self.founds.is_empty()
    }

    fn name(&self) -> String {
        if self.name.is_empty() { "founder".into() } else { format!("keeper of {}", self.name) }
    }
}
