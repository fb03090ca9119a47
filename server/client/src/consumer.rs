//! A consumer of one topic. It has no task of its own: `next` drives the core, and what is not asked for is not
//! sent, because credit is given back only as records are taken.

use crate::client::{Client, TopicInfo};
use crate::clock::{Alarm, random_u64};
use crate::config::{ConsumerConfig, Partitions};
use crate::core::connection::Target;
use crate::core::consumer::{Action, ConsumerCore, ConsumerCoreConfig, Next};
use crate::core::decode::ConsumedRecord;
use crate::error::{ClientError, ConsumeError};
use crate::limits::CREDIT_PARTITION_MIN;
use crate::link::{Command, ReadEvent, Reader};
use ringmq_protocol::Bounds;
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::mpsc;

type Event = (u32, u64, ReadEvent);

/// Reads partitions of one topic, each in order. Records of different partitions come as they arrive.
///
/// ```no_run
/// # use ringmq_client::{Client, ConsumerConfig, Start};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let config = ConsumerConfig { start: Start::Earliest, ..Default::default() };
/// let mut consumer = client.consumer("orders", config).await?;
/// // All that is there now, then stop.
/// let ends = consumer.ends().await?;
/// while !consumer.reached(&ends) {
///     let record = consumer.next().await?;
///     println!("{}@{} {:?}", record.partition, record.offset, record.body);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Consumer {
    client: Client,
    topic: TopicInfo,
    id: u64,
    core: ConsumerCore,
    records: VecDeque<ConsumedRecord>,
    sink: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    taken: Vec<Event>,
    alarm: Alarm,
    /// The consumer group for which it reads; 0 for nobody in particular.
    group: u32,
}

impl Consumer {
    pub(crate) fn new(
        client: Client,
        topic: TopicInfo,
        config: &ConsumerConfig,
        group: u32,
    ) -> Result<Self, ClientError> {
        let partitions: Vec<u32> = match &config.partitions {
            Partitions::All => (0..topic.partitions).collect(),
            Partitions::Some(partitions) => partitions.clone(),
        };
        partitions.iter().try_for_each(|partition| topic.check(*partition))?;
        let retry_for = config.retry_for.unwrap_or(client.shared().config.retry_for);
        let core_config = ConsumerCoreConfig {
            credit: (config.credit_bytes / partitions.len().max(1) as u64).max(CREDIT_PARTITION_MIN),
            retry_for_us: retry_for.as_micros() as u64,
            out_of_range: config.out_of_range,
            filtered: group != 0,
            seed: random_u64(),
        };
        let ids = partitions.iter().map(|partition| (*partition, topic.partition_id(*partition)));
        let core = ConsumerCore::new(core_config, ids, config.start);
        let (sink, events) = mpsc::unbounded_channel();
        let mut consumer = Self {
            id: client.next_consumer(),
            alarm: Alarm::new(client.shared().clock),
            core,
            group,
            records: VecDeque::new(),
            sink,
            events,
            taken: Vec::new(),
            client,
            topic,
        };
        consumer.act();
        Ok(consumer)
    }

    /// The topic.
    pub fn topic(&self) -> &TopicInfo {
        &self.topic
    }

    /// The next record; waits until there is one. May be dropped while it waits: nothing is lost.
    ///
    /// An error concerns one partition, which stays halted until [`Consumer::seek`]; the others go on with the next
    /// call.
    pub async fn next(&mut self) -> Result<ConsumedRecord, ConsumeError> {
        loop {
            if let Some(record) = self.records.pop_front() {
                return Ok(record);
            }
            self.fill().await?;
        }
    }

    /// The records of the next frames, as many as are here, at least one; waits until there is one. Up to about
    /// `max` records, and one frame beyond.
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<ConsumedRecord>, ConsumeError> {
        while self.records.is_empty() {
            self.fill().await?;
        }
        while self.records.len() < max && self.core.has_frame() {
            if self.core.take(&mut self.records) != Next::Records {
                break;
            }
        }
        self.act();
        Ok(self.records.drain(..).collect())
    }

    /// A record that is here already.
    pub fn try_next(&mut self) -> Result<Option<ConsumedRecord>, ConsumeError> {
        while let Ok(event) = self.events.try_recv() {
            self.taken.push(event);
        }
        self.hear();
        while self.records.is_empty() && self.take()? {}
        Ok(self.records.pop_front())
    }

    /// Takes one frame that is here; `false` if none is.
    fn take(&mut self) -> Result<bool, ConsumeError> {
        let next = self.core.take(&mut self.records);
        self.act();
        match next {
            Next::Records => Ok(true),
            Next::Nothing => Ok(false),
            Next::Halted { partition, position, halt } => {
                Err(ConsumeError::Halted { partition, position, halt })
            }
        }
    }

    /// Takes one frame, after waiting for it.
    async fn fill(&mut self) -> Result<(), ConsumeError> {
        while !self.take()? {
            if self.is_halted() {
                return Err(ConsumeError::AllHalted);
            }
            self.wait().await;
        }
        Ok(())
    }

    /// All partitions are halted. A member of a group may have none for a while.
    fn is_halted(&self) -> bool {
        self.group == 0 && self.core.halted() == self.core.positions().count()
    }

    /// Reads one more partition, from `offset` on.
    pub(crate) fn add(&mut self, partition: u32, offset: u64) {
        self.records.retain(|record| record.partition != partition);
        self.core.add(partition, self.topic.partition_id(partition), offset);
        self.act();
    }

    /// Reads a partition no longer.
    pub(crate) fn remove(&mut self, partition: u32) {
        self.records.retain(|record| record.partition != partition);
        self.core.remove(partition);
        self.act();
    }

    /// What each partition held when it was first subscribed to, if that is known of all.
    pub(crate) fn bounds(&self) -> Option<BTreeMap<u32, Bounds>> {
        self.core.bounds().map(|(partition, bounds)| Some((partition, bounds?))).collect()
    }

    /// Waits for anything to happen.
    async fn wait(&mut self) {
        let deadline_us = self.core.deadline_us();
        tokio::select! {
            _ = self.events.recv_many(&mut self.taken, 64) => {}
            () = self.alarm.wait(deadline_us) => {}
        }
        self.hear();
    }

    fn hear(&mut self) {
        let now_us = self.client.shared().clock.now_us();
        for (partition, attempt, event) in self.taken.drain(..) {
            match event {
                ReadEvent::Resolved(offset) => self.core.resolved(partition, attempt, offset),
                ReadEvent::Subscribed(bounds) => self.core.subscribed(partition, attempt, bounds),
                ReadEvent::Pushed(fields, entries) => {
                    self.core.pushed(now_us, partition, attempt, &fields, &entries);
                }
                ReadEvent::Refused(refused) => self.core.refused(now_us, partition, attempt, refused),
                ReadEvent::Lost => self.core.lost(now_us, partition, attempt),
            }
        }
        self.act();
    }

    /// Does what the core asks for.
    fn act(&mut self) {
        let now_us = self.client.shared().clock.now_us();
        while let Some(action) = self.core.next_action(now_us) {
            let consumer = self.id;
            let reader =
                |partition, attempt| Reader { consumer, partition, attempt, sink: self.sink.clone() };
            let target = |partition| Target { topic: self.topic.name.clone(), partition };
            let (partition, attempt, command) = match action {
                Action::Resolve { partition, attempt, what } => {
                    let (target, reader) = (target(partition), reader(partition, attempt));
                    (partition, attempt, Command::Resolve { target, what, reader })
                }
                Action::Subscribe { partition, attempt, offset, credit } => {
                    let (target, reader) = (target(partition), reader(partition, attempt));
                    let group = self.group;
                    (partition, attempt, Command::Subscribe { target, offset, credit, group, reader })
                }
                Action::Credit { partition, attempt, bytes } => {
                    (partition, attempt, Command::Credit { consumer, attempt, bytes })
                }
                Action::Unsubscribe { partition, attempt } => {
                    (partition, attempt, Command::Unsubscribe { consumer, attempt })
                }
            };
            let link = self.client.link_of(self.topic.partition_id(partition));
            if link.send(command).is_err() {
                let _ = self.sink.send((partition, attempt, ReadEvent::Lost));
            }
        }
    }

    /// The offset of the record that `next` gives next from a partition; `None` while it is not known, or if the
    /// partition is not read here.
    pub fn position(&self, partition: u32) -> Option<u64> {
        let buffered = self.records.iter().find(|record| record.partition == partition);
        match buffered {
            Some(record) => Some(record.offset),
            None => self.core.position(partition),
        }
    }

    /// All positions that are known.
    pub fn positions(&self) -> BTreeMap<u32, u64> {
        let partitions = self.core.positions().map(|entry| entry.0);
        partitions.filter_map(|partition| Some((partition, self.position(partition)?))).collect()
    }

    /// The ends of all partitions (first offsets that could not be read yet) when they were first subscribed to. Waits
    /// until they are known.
    pub async fn ends(&mut self) -> Result<BTreeMap<u32, u64>, ConsumeError> {
        loop {
            let ends = self.core.bounds().map(|(partition, bounds)| Some((partition, bounds?.visible_end)));
            if let Some(ends) = ends.collect() {
                return Ok(ends);
            }
            // Records that come meanwhile are kept; an error is told.
            if self.core.halted() > 0 && !self.take()? && self.is_halted() {
                return Err(ConsumeError::AllHalted);
            }
            self.wait().await;
        }
    }

    /// Everything below `ends` was given out.
    pub fn reached(&self, ends: &BTreeMap<u32, u64>) -> bool {
        ends.iter().all(|(partition, end)| self.position(*partition).is_some_and(|position| position >= *end))
    }

    /// Goes on at `offset` in a partition, halted or not. `false` if it is not read here.
    pub fn seek(&mut self, partition: u32, offset: u64) -> bool {
        self.records.retain(|record| record.partition != partition);
        let known = self.core.seek(partition, offset);
        self.act();
        known
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.client.close_consumer(self.id);
    }
}
