//! What a program holds: calls, and the way to producers and consumers.

use crate::clock::random_u64;
use crate::config::{ClientConfig, ConsumerConfig, ProducerConfig};
use crate::consumer::Consumer;
use crate::core::connection::{Message, ServerInfo, Target};
use crate::core::decode::{ConsumedRecord, check_entry, decode_frame};
use crate::core::{Random, Refused, backoff_us};
use crate::error::ClientError;
use crate::link::{Call, CallError, Command, LinkSender, Shared, spawn};
use crate::producer::Producer;
use ringmq_format::name::check_topic_name;
use ringmq_format::{PartitionId, TopicId};
use ringmq_protocol::{
    ErrorCode, ListedOffset, OffsetSpec, Response, ResponseError, Retry, TopicEntry, entries,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A topic and where its partitions are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Its id.
    pub id: TopicId,
    /// Id of its first partition; the others follow.
    pub base_partition: PartitionId,
    /// How many partitions it has.
    pub partitions: u32,
}

impl TopicInfo {
    pub(crate) fn from_entry(entry: &TopicEntry<'_>) -> Result<Self, Refused> {
        match entry.code {
            0 => Ok(Self {
                name: Arc::from(entry.name),
                id: entry.topic,
                base_partition: entry.base_partition,
                partitions: entry.partitions,
            }),
            number => Err(Refused { number, retry_after_ms: 0, message: Arc::from(entry.name) }),
        }
    }

    /// Id of a partition.
    pub fn partition_id(&self, partition: u32) -> PartitionId {
        PartitionId(self.base_partition.0.wrapping_add(partition))
    }

    pub(crate) fn check(&self, partition: u32) -> Result<(), ClientError> {
        let partitions = self.partitions;
        if partition < partitions {
            Ok(())
        } else {
            Err(ClientError::UnknownPartition { partition, partitions })
        }
    }
}

/// State of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// First offset that can be read.
    pub log_start: u64,
    /// First offset that cannot be read yet.
    pub visible_end: u64,
    /// Bytes of its frames on disk, if the server knows.
    pub bytes: Option<u64>,
}

/// State of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// The topic.
    pub topic: TopicInfo,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Its partitions, by index.
    pub partitions: Vec<PartitionInfo>,
}

/// What one read of a partition brought.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// First offset that can be read.
    pub log_start: u64,
    /// First offset that cannot be read yet.
    pub visible_end: u64,
    /// Where to go on.
    pub next_offset: u64,
    /// The records, checked.
    pub records: VecDeque<ConsumedRecord>,
}

/// A connection to a server: to its base port, and to each shard's port once it is needed. Connects again by itself.
/// Cheap to clone; everything ends when the last clone, producer and consumer is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    /// By shard; `None` is the base port.
    links: Mutex<BTreeMap<Option<u16>, LinkSender>>,
    next_consumer: AtomicU64,
}

impl Client {
    /// Connects, says HELLO and learns the server's ports. One attempt.
    ///
    /// ```no_run
    /// # use ringmq_client::{Client, ClientConfig};
    /// # async fn example() -> Result<(), ringmq_client::ClientError> {
    /// let client = Client::connect(ClientConfig { name: "billing".into(), ..ClientConfig::new("127.0.0.1:7700") }).await?;
    /// println!("{} with {} shards", client.server().version, client.server().shard_ports.len());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let shared = Arc::new(Shared::new(config)?);
        let client = Self {
            inner: Arc::new(Inner { shared, links: Mutex::default(), next_consumer: AtomicU64::new(1) }),
        };
        match client.call_once(Call::Ping).await {
            Ok(_) => Ok(client),
            Err(CallError::Refused(refused)) => Err(ClientError::Refused(refused)),
            Err(CallError::Lost(error) | CallError::NotSent(error)) => Err(error),
        }
    }

    /// What the server said about itself at the last HELLO.
    pub fn server(&self) -> Arc<ServerInfo> {
        self.inner.shared.info()
    }

    /// Time of a round trip.
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let start = Instant::now();
        self.call(Call::Ping, true).await?;
        Ok(start.elapsed())
    }

    /// Where topics are, in the order of `names`: each, or why not. With `auto_create`, makes those that are missing
    /// with one partition, if the server allows it.
    pub async fn metadata(
        &self,
        names: &[&str],
        auto_create: bool,
    ) -> Result<Vec<Result<TopicInfo, Refused>>, ClientError> {
        let mut topics = Vec::with_capacity(names.len());
        for names in names.chunks(ringmq_protocol::limits::METADATA_NAMES_MAX) {
            names.iter().try_for_each(|name| check_name(name))?;
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let message = self.call(Call::Metadata { names, auto_create }, true).await?;
            let Response::Metadata(entries) = response(&message)? else { return Err(unexpected(&message)) };
            topics.extend(entries.iter().map(|entry| TopicInfo::from_entry(&entry)));
        }
        Ok(topics)
    }

    /// Where a topic is. While the server is recovering this waits, for up to `request_timeout`.
    pub async fn topic(&self, name: &str, auto_create: bool) -> Result<TopicInfo, ClientError> {
        let mut retries = Retries::new(&self.inner.shared);
        loop {
            let refused = match self.metadata(&[name], auto_create).await?.into_iter().next() {
                Some(Ok(topic)) if topic.partitions > 0 => return Ok(topic),
                Some(Err(refused)) => refused,
                _ => Refused::new(ErrorCode::UnknownTopic),
            };
            if refused.retry() != Retry::Yes {
                return Err(ClientError::Refused(refused));
            }
            let retry_after_ms = refused.retry_after_ms;
            retries.pause(ClientError::Refused(refused), retry_after_ms).await?;
        }
    }

    /// Makes a topic. With `if_not_exists`, one that exists is an answer, however many partitions it has.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        if_not_exists: bool,
    ) -> Result<TopicInfo, ClientError> {
        check_name(name)?;
        let create = Call::CreateTopic { name: name.to_owned(), partitions, if_not_exists };
        let message = self.call(create, if_not_exists).await?;
        let Response::Created(entry) = response(&message)? else { return Err(unexpected(&message)) };
        TopicInfo::from_entry(&entry).map_err(ClientError::Refused)
    }

    /// Removes a topic and its records.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        check_name(name)?;
        self.call(Call::DeleteTopic(name.to_owned()), false).await.map(drop)
    }

    /// State of a topic and of all its partitions.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, ClientError> {
        check_name(name)?;
        let mut partitions = Vec::new();
        loop {
            let first_partition = partitions.len() as u32;
            let describe = Call::DescribeTopic { name: name.to_owned(), first_partition };
            let message = self.call(describe, true).await?;
            let Response::Described(page) = response(&message)? else { return Err(unexpected(&message)) };
            let topic = TopicInfo::from_entry(&page.topic).map_err(ClientError::Refused)?;
            partitions.extend(page.partitions.iter().map(|entry| PartitionInfo {
                log_start: entry.log_start.get(),
                visible_end: entry.visible_end.get(),
                bytes: Some(entry.bytes.get()).filter(|bytes| *bytes != u64::MAX),
            }));
            if partitions.len() >= topic.partitions as usize || page.partitions.is_empty() {
                return Ok(TopicDescription { topic, created_ms: page.created_ms, partitions });
            }
        }
    }

    /// All topics, in the order of their names.
    pub async fn list_topics(&self) -> Result<Vec<TopicInfo>, ClientError> {
        let mut topics: Vec<TopicInfo> = Vec::new();
        loop {
            let after = topics.last().map_or(String::new(), |topic| topic.name.to_string());
            let message = self.call(Call::ListTopics { after }, true).await?;
            let Response::Listed(page) = response(&message)? else { return Err(unexpected(&message)) };
            topics.extend(page.topics.iter().filter_map(|entry| TopicInfo::from_entry(&entry).ok()));
            if !page.more || page.topics.is_empty() {
                return Ok(topics);
            }
        }
    }

    /// An offset of a partition: the first, the end, or by time.
    pub async fn list_offsets(
        &self,
        topic: &str,
        partition: u32,
        what: OffsetSpec,
    ) -> Result<ListedOffset, ClientError> {
        check_name(topic)?;
        let target = Target { topic: Arc::from(topic), partition };
        let message = self.call(Call::ListOffsets { target, what }, true).await?;
        let Response::ListedOffset(listed) = response(&message)? else { return Err(unexpected(&message)) };
        Ok(listed)
    }

    /// Reads a partition once, from `offset` on, waiting up to `max_wait` for a first record.
    pub async fn fetch(
        &self,
        topic: &TopicInfo,
        partition: u32,
        offset: u64,
        max_bytes: u32,
        max_wait: Duration,
    ) -> Result<Fetched, ClientError> {
        topic.check(partition)?;
        let target = Target { topic: topic.name.clone(), partition };
        let max_wait_ms = max_wait.as_millis().min(u128::from(u32::MAX)) as u32;
        let message = self.call(Call::Fetch { target, offset, max_bytes, max_wait_ms }, true).await?;
        let Response::Fetched(fields) = response(&message)? else { return Err(unexpected(&message)) };
        let mut records = VecDeque::new();
        let mut expected = offset;
        for entry in entries(&message.frames) {
            let entry = entry.map_err(|error| ClientError::Receive(error.into()))?;
            check_entry(&entry, topic.partition_id(partition), expected).map_err(ClientError::Receive)?;
            let frame = message.frames.slice_ref(entry.frame.bytes);
            decode_frame(partition, entry.header, &frame, offset, &mut records)
                .map_err(ClientError::Receive)?;
            expected = expected.max(entry.header.end_offset());
        }
        Ok(Fetched {
            log_start: fields.log_start.get(),
            visible_end: fields.visible_end.get(),
            next_offset: fields.next_offset.get(),
            records,
        })
    }

    /// A producer for one topic.
    pub async fn producer(&self, topic: &str, config: ProducerConfig) -> Result<Producer, ClientError> {
        let topic = self.topic(topic, config.auto_create).await?;
        Ok(Producer::new(self.clone(), topic, config))
    }

    /// A consumer of one topic.
    pub async fn consumer(&self, topic: &str, config: ConsumerConfig) -> Result<Consumer, ClientError> {
        let topic = self.topic(topic, config.auto_create).await?;
        Consumer::new(self.clone(), topic, &config, 0)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn next_consumer(&self) -> u64 {
        self.inner.next_consumer.fetch_add(1, Ordering::Relaxed)
    }

    /// The link to the shard that owns a partition.
    pub(crate) fn link_of(&self, partition: PartitionId) -> LinkSender {
        let shards = self.inner.shared.info().shard_ports.len() as u16;
        self.link((shards > 1).then(|| partition.shard(shards).0))
    }

    /// Ends what a consumer has subscribed to.
    pub(crate) fn close_consumer(&self, consumer: u64) {
        let links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        for link in links.values() {
            let _ = link.send(Command::CloseConsumer(consumer));
        }
    }

    fn link(&self, shard: Option<u16>) -> LinkSender {
        let mut links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        match links.get(&shard) {
            Some(link) if !link.is_closed() => link.clone(),
            _ => {
                let link = spawn(self.inner.shared.clone(), shard);
                links.insert(shard, link.clone());
                link
            }
        }
    }

    /// Gives a command to the link of the base port.
    pub(crate) fn command(&self, command: Command) -> bool {
        self.link(None).send(command).is_ok()
    }

    pub(crate) async fn call_once(&self, call: Call) -> Result<Message, CallError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.link(None).send(Command::Call { call, reply });
        answer.await.unwrap_or(Err(CallError::Lost(ClientError::Closed)))
    }

    /// As `call_once`, of the shard that owns a partition.
    pub(crate) async fn call_once_of(
        &self,
        partition: PartitionId,
        call: Call,
    ) -> Result<Message, CallError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.link_of(partition).send(Command::Call { call, reply });
        answer.await.unwrap_or(Err(CallError::Lost(ClientError::Closed)))
    }

    /// Asks until there is an answer, for up to `request_timeout`. What may have been done is only asked again if
    /// that does no harm.
    pub(crate) async fn call(&self, call: Call, repeatable: bool) -> Result<Message, ClientError> {
        self.call_within(call, repeatable, self.inner.shared.config.request_timeout).await
    }

    /// As `call`, for up to `time`.
    pub(crate) async fn call_within(
        &self,
        call: Call,
        repeatable: bool,
        time: Duration,
    ) -> Result<Message, ClientError> {
        let mut retries = Retries::within(time);
        loop {
            let (error, retry_after_ms, again) = match self.call_once(call.clone()).await {
                Ok(message) => return Ok(message),
                Err(CallError::Refused(refused)) => {
                    let again = match refused.retry() {
                        Retry::Yes => true,
                        Retry::OutcomeUnknown => repeatable,
                        Retry::No => false,
                    };
                    let retry_after_ms = refused.retry_after_ms;
                    (ClientError::Refused(refused), retry_after_ms, again)
                }
                Err(CallError::Lost(ClientError::Closed)) => return Err(ClientError::Closed),
                Err(CallError::Lost(error)) => (error, 0, repeatable),
                Err(CallError::NotSent(error)) => (error, 0, true),
            };
            if !again {
                return Err(error);
            }
            retries.pause(error, retry_after_ms).await?;
        }
    }
}

/// Pauses between attempts, until `request_timeout` is over.
struct Retries {
    until: tokio::time::Instant,
    attempts: u32,
    random: Random,
}

impl Retries {
    fn new(shared: &Shared) -> Self {
        Self::within(shared.config.request_timeout)
    }

    fn within(time: Duration) -> Self {
        let until = tokio::time::Instant::now() + time;
        Self { until, attempts: 0, random: Random::new(random_u64()) }
    }

    async fn pause(&mut self, error: ClientError, retry_after_ms: u32) -> Result<(), ClientError> {
        let pause = Duration::from_micros(backoff_us(self.attempts, retry_after_ms, &mut self.random));
        self.attempts += 1;
        if tokio::time::Instant::now() + pause >= self.until {
            return Err(ClientError::TimedOut(Box::new(error)));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), ClientError> {
    check_topic_name(name.as_bytes()).map(drop).map_err(ClientError::Topic)
}

/// The names of groups and of instances are like those of topics.
pub(crate) fn check_name_of(of: &'static str, name: &str) -> Result<(), ClientError> {
    check_topic_name(name.as_bytes()).map(drop).map_err(|error| ClientError::Name { of, error })
}

pub(crate) fn response(message: &Message) -> Result<Response<'_>, ClientError> {
    message.response().map_err(ClientError::Response)
}

pub(crate) fn unexpected(message: &Message) -> ClientError {
    ClientError::Response(ResponseError::UnknownOp(message.op()))
}
