//! Transactions: several messages over topics and partitions that become visible together, or never.
//!
//! The producer keeps nothing between transactions but its connections; what is left open by a process that died is
//! asked of the next one of its group, which is what the checker is for.

use crate::admin::{TransactionId, millis, refused_of};
use crate::client::{Client, response, unexpected};
use crate::clock::random_u64;
use crate::config::ProducerConfig;
use crate::core::connection::Message;
use crate::core::decode::{ConsumedRecord, decode_frame};
use crate::core::late::Late;
use crate::core::{Random, Refused, backoff_us};
use crate::error::{ClientError, SendError, TransactionError};
use crate::group::Offsets;
use crate::limits::CHECKS_AT_ONCE;
use crate::link::{Call, CheckEvent, Command};
use crate::producer::{LateFuture, Producer, RecordBuf};
use ringmq_format::PartitionId;
use ringmq_format::frame::Frame;
use ringmq_protocol::limits::OFFSETS_MAX;
use ringmq_protocol::{
    CommitOffsets, EndSource, EndTransaction, ErrorCode, FetchEntryHeader, PositionEntry, Request, Response,
    Retry, TransactionEnd,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// How to produce in transactions.
#[derive(Clone, Debug, Default)]
pub struct TransactionConfig {
    /// How messages are sent.
    pub producer: ProducerConfig,
    /// Age at which a transaction is first checked; `None` leaves it to the server (6 s).
    pub check_after: Option<Duration>,
    /// How long the end of a transaction is tried; `None` takes the client's `retry_for`.
    pub retry_for: Option<Duration>,
}

/// What became of the local part of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It was done: the messages become visible.
    Commit,
    /// It was not and will not be: the messages never become visible.
    Rollback,
    /// Not known yet: ask again later.
    Unknown,
}

/// A transaction that the server asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedTransaction {
    /// Its id.
    pub id: TransactionId,
    /// Which check this is: 1 is the first.
    pub attempt: u16,
    /// Checks after which it is parked until an operator looks at it.
    pub attempts_max: u16,
    /// When its first message was stored, Unix milliseconds.
    pub since_ms: i64,
    /// Frames of messages that it has.
    pub halves: u32,
    /// Topic of its first message.
    pub topic: String,
    /// Index of that message's partition in the topic.
    pub partition: u32,
    /// The records of its first frame. Empty if it holds positions only.
    pub records: Vec<ConsumedRecord>,
}

/// A transaction that was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its id; `None` if nothing was sent in it.
    pub id: Option<TransactionId>,
    /// When that was decided, Unix milliseconds.
    pub time_ms: i64,
    /// Frames of messages that it had.
    pub halves: u32,
}

type CheckFuture = Pin<Box<dyn Future<Output = Resolution> + Send>>;
type Checker = Arc<dyn Fn(CheckedTransaction) -> CheckFuture + Send + Sync>;
type OpenIds = Arc<Mutex<BTreeSet<u128>>>;

struct Shared {
    client: Client,
    group: Arc<str>,
    config: TransactionConfig,
    producers: tokio::sync::Mutex<BTreeMap<String, Arc<Producer>>>,
    /// Transactions of this process that nobody has ended: a check for one is not a question for the checker.
    open: OpenIds,
    random: Mutex<Random>,
    /// Closed when the last one is gone, which ends the registration.
    _alive: watch::Sender<()>,
}

/// Produces in transactions, and answers for those of its producer group that earlier processes have left open.
///
/// ```no_run
/// # use ringmq_client::{CheckedTransaction, Client, RecordBuf, Resolution, TransactionConfig};
/// # async fn pay(_: &str) -> Result<(), std::io::Error> { Ok(()) }
/// # async fn paid(_: &CheckedTransaction) -> Option<bool> { None }
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// // The checker looks into the program's own database: was the local part done?
/// let checker = |asked: CheckedTransaction| async move {
///     match paid(&asked).await {
///         Some(true) => Resolution::Commit,
///         Some(false) => Resolution::Rollback,
///         None => Resolution::Unknown,
///     }
/// };
/// let producer = client.transactional_producer("payments", TransactionConfig::default(), checker).await?;
/// producer
///     .in_transaction(async |transaction| {
///         transaction.send("paid", RecordBuf::new("order 7").key("7"), None).await?;
///         transaction.send("mail", RecordBuf::new("thank you"), None).await?;
///         pay("order 7").await?; // The local part. An error rolls the messages back.
///         Ok::<_, Box<dyn std::error::Error>>(())
///     })
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TransactionalProducer {
    shared: Arc<Shared>,
}

impl Client {
    /// A producer of transactions, of a producer group whose members can answer for each other. `checker` is asked
    /// what became of transactions that were left open. It may be asked more than once about the same one, and about
    /// those of processes that are gone.
    pub async fn transactional_producer<F, Fut>(
        &self,
        group: &str,
        config: TransactionConfig,
        checker: F,
    ) -> Result<TransactionalProducer, ClientError>
    where
        F: Fn(CheckedTransaction) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Resolution> + Send + 'static,
    {
        crate::client::check_name_of("producer group", group)?;
        let (alive, gone) = watch::channel(());
        let (ready, registered) = oneshot::channel();
        let open = OpenIds::default();
        let answers = Answers {
            client: self.clone(),
            group: Arc::from(group),
            checker: Arc::new(move |asked| Box::pin(checker(asked))),
            open: open.clone(),
            ready: Some(ready),
        };
        self.shared().runtime.spawn(answers.run(gone));
        let timeout = tokio::time::timeout(self.shared().config.request_timeout, registered).await;
        match timeout {
            Ok(Ok(result)) => result.map_err(ClientError::Refused)?,
            Ok(Err(_)) => return Err(ClientError::Closed),
            Err(_) => return Err(ClientError::TimedOut(Box::new(ClientError::Lost(None)))),
        }
        Ok(TransactionalProducer {
            shared: Arc::new(Shared {
                client: self.clone(),
                group: Arc::from(group),
                config,
                producers: tokio::sync::Mutex::default(),
                open,
                random: Mutex::new(Random::new(random_u64())),
                _alive: alive,
            }),
        })
    }
}

impl TransactionalProducer {
    /// Begins a transaction. Nothing is sent yet, and one in which nothing is sent costs nothing.
    pub fn begin(&self) -> Transaction {
        let mut random = lock(&self.shared.random);
        let drawn = u128::from(random.next_nonzero()) << 64 | u128::from(random.next_u64());
        drop(random);
        Transaction { inner: Some(Inner::new(self.shared.clone(), drawn)) }
    }

    /// Does `local` in a transaction: its messages become visible if it succeeds, and never if it fails.
    ///
    /// When the commit itself has no answer ([`TransactionError::OutcomeUnknown`]) the local part was done all the
    /// same; the checker will be asked.
    pub async fn in_transaction<T, E>(
        &self,
        local: impl AsyncFnOnce(&Transaction) -> Result<T, E>,
    ) -> Result<T, InTransactionError<E>> {
        let transaction = self.begin();
        match local(&transaction).await {
            Ok(value) => {
                transaction.commit().await.map_err(InTransactionError::Transaction)?;
                Ok(value)
            }
            Err(error) => {
                let rolled_back = transaction.rollback().await.err();
                Err(InTransactionError::Local { error, rollback: rolled_back })
            }
        }
    }
}

/// Why [`TransactionalProducer::in_transaction`] has failed.
#[derive(Debug)]
pub enum InTransactionError<E> {
    /// The local part failed, and the messages were rolled back; if that had no answer, the checker will be asked.
    Local {
        /// What it said.
        error: E,
        /// Why the rollback has no answer.
        rollback: Option<TransactionError>,
    },
    /// The transaction could not be committed.
    Transaction(TransactionError),
}

impl<E: std::fmt::Display> std::fmt::Display for InTransactionError<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { error, rollback: None } => write!(f, "rolled back: {error}"),
            Self::Local { error, rollback: Some(rollback) } => {
                write!(f, "the local part failed: {error}; the rollback has no answer: {rollback}")
            }
            Self::Transaction(error) => error.fmt(f),
        }
    }
}

impl<E: std::fmt::Debug + std::fmt::Display> std::error::Error for InTransactionError<E> {}

/// A transaction that has begun. Dropped without an end it is rolled back in the background; see
/// [`Transaction::leave`].
#[must_use = "commit it, or roll it back"]
pub struct Transaction {
    /// `None` once it has ended.
    inner: Option<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    drawn: u128,
    sent: Mutex<Sent>,
}

#[derive(Default)]
struct Sent {
    /// Set with the first message: the shard that owns it coordinates.
    id: Option<TransactionId>,
    /// One future for each frame.
    frames: BTreeMap<usize, LateFuture>,
    producers: BTreeMap<String, Arc<Producer>>,
    positions: u32,
}

impl Inner {
    fn new(shared: Arc<Shared>, drawn: u128) -> Self {
        Self { shared, drawn, sent: Mutex::default() }
    }

    /// The id; with the first message the coordinator is chosen: the low 16 bits name the shard of that message.
    fn id(&self, first: PartitionId) -> TransactionId {
        let shards = self.shared.client.server().shard_ports.len().max(1) as u16;
        let mut sent = lock(&self.sent);
        let id = *sent.id.get_or_insert_with(|| {
            let rounds = 65_536 / u32::from(shards);
            let round = (self.drawn as u32 & 0xffff) % rounds;
            let low = round * u32::from(shards) + u32::from(first.shard(shards).0);
            TransactionId(self.drawn & !0xffff | u128::from(low))
        });
        drop(sent);
        lock(&self.shared.open).insert(id.0);
        id
    }

    async fn producer(&self, topic: &str) -> Result<Arc<Producer>, ClientError> {
        let mut producers = self.shared.producers.lock().await;
        if let Some(producer) = producers.get(topic) {
            return Ok(producer.clone());
        }
        // An identity cannot be shared by the producers of several topics.
        let config = ProducerConfig { identity: None, ..self.shared.config.producer.clone() };
        let producer = Arc::new(self.shared.client.producer(topic, config).await?);
        producers.insert(topic.to_owned(), producer.clone());
        Ok(producer)
    }

    async fn send(
        &self,
        topic: &str,
        record: RecordBuf,
        partition: Option<u32>,
        due_ms: i64,
    ) -> Result<LateFuture, TransactionError> {
        let producer = self.producer(topic).await?;
        let partition = producer.choose(record.key.as_deref(), partition).map_err(TransactionError::Send)?;
        let id = self.id(producer.topic().partition_id(partition));
        let late = Late {
            txn: id.0,
            due_ms,
            check_after_ms: self.shared.config.check_after.map_or(0, millis),
            group: self.shared.group.clone(),
            alone: false,
        };
        let future =
            producer.send_late(record, Some(partition), late).await.map_err(TransactionError::Send)?;
        let mut sent = lock(&self.sent);
        sent.frames.entry(future.frame()).or_insert_with(|| future.clone());
        sent.producers.entry(topic.to_owned()).or_insert(producer);
        Ok(future)
    }

    async fn send_offsets(&self, offsets: &Offsets) -> Result<(), TransactionError> {
        let Some(first) = offsets.positions.first() else { return Ok(()) };
        let id = self.id(first.0);
        for positions in offsets.positions.chunks(OFFSETS_MAX) {
            let entries = positions.iter().map(|(partition, offset)| PositionEntry::new(*partition, *offset));
            let left = entries.collect();
            commit_positions(&self.shared.client, offsets, id.0, left, self.retry_for()).await?;
            lock(&self.sent).positions += positions.len() as u32;
        }
        Ok(())
    }

    fn retry_for(&self) -> Duration {
        self.shared.config.retry_for.unwrap_or(self.shared.client.shared().config.retry_for)
    }

    /// Waits until nothing is on its way any more; how many frames are stored, or the first that is not.
    async fn settle(&self) -> Result<u32, SendError> {
        let (frames, producers) = {
            let sent = lock(&self.sent);
            (
                sent.frames.values().cloned().collect::<Vec<_>>(),
                sent.producers.values().cloned().collect::<Vec<_>>(),
            )
        };
        producers.iter().for_each(|producer| producer.push_out());
        let mut failed = None;
        let count = frames.len() as u32;
        for frame in frames {
            if let Err(error) = frame.await {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(count), Err)
    }

    async fn end(&self, commit: bool) -> Result<Committed, TransactionError> {
        let (id, positions) = {
            let sent = lock(&self.sent);
            (sent.id, sent.positions)
        };
        let Some(id) = id else { return Ok(Committed { id: None, time_ms: 0, halves: 0 }) };
        let result = match (self.settle().await, commit) {
            (Ok(halves), true) => self.resolve(id, TransactionEnd::Commit, halves, positions).await,
            (_, false) => self.resolve(id, TransactionEnd::Abort, 0, 0).await,
            (Err(error), true) => {
                // Nothing of it must become visible. If this has no answer either, the checker is asked.
                let _ = self.resolve(id, TransactionEnd::Abort, 0, 0).await;
                Err(TransactionError::Send(error))
            }
        };
        lock(&self.shared.open).remove(&id.0);
        result
    }

    async fn resolve(
        &self,
        id: TransactionId,
        resolution: TransactionEnd,
        halves: u32,
        positions: u32,
    ) -> Result<Committed, TransactionError> {
        let group = self.shared.group.clone();
        let end = Call::any(move |ask| {
            let (txn, source, group) = (id.0, EndSource::Producer, &*group);
            let end = EndTransaction { txn, resolution, source, group, halves, positions, attempt: 0 };
            ask(&Request::EndTransaction(end));
        });
        match self.shared.client.call_within(end, true, self.retry_for()).await {
            Ok(message) => {
                let Response::Ended(ended) = response(&message)? else {
                    return Err(TransactionError::Client(unexpected(&message)));
                };
                Ok(Committed { id: Some(id), time_ms: ended.time_ms, halves: ended.halves })
            }
            Err(ClientError::Refused(refused)) => Err(match refused.code() {
                Some(ErrorCode::TransactionResolved) => TransactionError::Resolved(refused),
                Some(ErrorCode::UnknownTransaction) => TransactionError::Unknown(refused),
                _ if refused.retry() == Retry::OutcomeUnknown => {
                    TransactionError::OutcomeUnknown(Box::new(ClientError::Refused(refused)))
                }
                _ => TransactionError::Refused(refused),
            }),
            Err(error) => Err(TransactionError::OutcomeUnknown(Box::new(error))),
        }
    }
}

impl Transaction {
    fn inner(&self) -> &Inner {
        self.inner.as_ref().unwrap_or_else(|| unreachable!("ending a transaction consumes it"))
    }

    /// Sends a message of the transaction; waits only for room. The future resolves when it is on disk, invisible;
    /// committing waits for all of them.
    pub async fn send(
        &self,
        topic: &str,
        record: RecordBuf,
        partition: Option<u32>,
    ) -> Result<LateFuture, TransactionError> {
        self.inner().send(topic, record, partition, 0).await
    }

    /// Sends a message that, if the transaction is committed, becomes visible at `due_ms` (Unix milliseconds).
    pub async fn send_at(
        &self,
        topic: &str,
        record: RecordBuf,
        partition: Option<u32>,
        due_ms: i64,
    ) -> Result<LateFuture, TransactionError> {
        self.inner().send(topic, record, partition, due_ms.max(1)).await
    }

    /// Commits positions of a consumer group with the transaction: what was consumed and what was made of it become
    /// true together. `offsets` is of [`crate::GroupConsumer::processed`]; its consumer must not commit by itself.
    pub async fn send_offsets(&self, offsets: &Offsets) -> Result<(), TransactionError> {
        self.inner().send_offsets(offsets).await
    }

    /// Its id, if something was sent in it.
    pub fn id(&self) -> Option<TransactionId> {
        lock(&self.inner().sent).id
    }

    /// Makes all its messages visible. Done, and durable, when this answers.
    pub async fn commit(mut self) -> Result<Committed, TransactionError> {
        let Some(inner) = self.inner.take() else { unreachable!("ending a transaction consumes it") };
        inner.end(true).await
    }

    /// None of its messages ever becomes visible. Done, and durable, when this answers.
    pub async fn rollback(mut self) -> Result<(), TransactionError> {
        let Some(inner) = self.inner.take() else { unreachable!("ending a transaction consumes it") };
        inner.end(false).await.map(drop)
    }

    /// Leaves it open: the checker will be asked, of this process or another one of its group.
    pub fn leave(mut self) -> Option<TransactionId> {
        let inner = self.inner.take()?;
        let (id, producers) = {
            let sent = lock(&inner.sent);
            (sent.id, sent.producers.values().cloned().collect::<Vec<_>>())
        };
        producers.iter().for_each(|producer| producer.push_out());
        lock(&inner.shared.open).remove(&id?.0);
        id
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        if lock(&inner.sent).id.is_some() {
            let runtime = inner.shared.client.shared().runtime.clone();
            runtime.spawn(async move { drop(inner.end(false).await) });
        }
    }
}

/// Commits positions in a transaction, again and again those that may succeed later.
async fn commit_positions(
    client: &Client,
    offsets: &Offsets,
    txn: u128,
    mut left: Vec<PositionEntry>,
    time: Duration,
) -> Result<(), TransactionError> {
    let (group, member, generation) = (offsets.group, offsets.member, offsets.generation);
    let until = tokio::time::Instant::now() + time;
    let mut random = Random::new(random_u64());
    for attempts in 0.. {
        let entries = left.clone();
        let commit = Call::any(move |ask| {
            let (instance, positions) = (0, &entries[..]);
            ask(&Request::CommitOffsets(CommitOffsets {
                group,
                member,
                generation,
                instance,
                txn,
                positions,
            }));
        });
        let message = client.call_within(commit, true, time).await.map_err(|error| match error {
            ClientError::Refused(refused) => TransactionError::Offsets(refused),
            error => TransactionError::Client(error),
        })?;
        let Response::Committed(outcomes) = response(&message)? else {
            return Err(TransactionError::Client(unexpected(&message)));
        };
        let mut last: Option<Refused> = None;
        let mut again = Vec::new();
        for (entry, outcome) in left.iter().zip(outcomes).filter(|pair| !pair.1.is_done()) {
            let refused = refused_of(outcome.code.get(), outcome.retry_after_ms.get());
            if refused.retry() == Retry::No {
                return Err(TransactionError::Offsets(refused));
            }
            again.push(*entry);
            last = Some(refused);
        }
        let Some(refused) = last else { return Ok(()) };
        let pause = Duration::from_micros(backoff_us(attempts, refused.retry_after_ms, &mut random));
        if tokio::time::Instant::now() + pause >= until {
            return Err(TransactionError::Offsets(refused));
        }
        left = again;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// Answers checks until the producer is gone: registers again after every loss.
struct Answers {
    client: Client,
    group: Arc<str>,
    checker: Checker,
    open: OpenIds,
    ready: Option<oneshot::Sender<Result<(), Refused>>>,
}

impl Answers {
    async fn run(mut self, mut gone: watch::Receiver<()>) {
        let mut random = Random::new(random_u64());
        let slots = Arc::new(Semaphore::new(CHECKS_AT_ONCE));
        let mut attempts = 0;
        loop {
            let (sink, mut events) = mpsc::unbounded_channel();
            self.client.command(Command::Register { group: self.group.clone(), sink });
            let retry_after_ms = loop {
                let event = tokio::select! {
                    _ = gone.changed() => {
                        drop(events);
                        self.client.command(Command::EndRegistrations);
                        return;
                    }
                    event = events.recv() => event,
                };
                match event {
                    Some(CheckEvent::Registered) => {
                        attempts = 0;
                        self.ready.take().map(|ready| ready.send(Ok(())));
                    }
                    Some(CheckEvent::Check(message)) => self.check(message, &slots).await,
                    Some(CheckEvent::Refused(refused)) => {
                        let retry_after_ms = refused.retry_after_ms;
                        if refused.retry() == Retry::No
                            && let Some(ready) = self.ready.take()
                        {
                            let _ = ready.send(Err(refused));
                            return;
                        }
                        break retry_after_ms;
                    }
                    Some(CheckEvent::Lost) | None => break 0,
                }
            };
            let pause_us = backoff_us(attempts, retry_after_ms, &mut random);
            attempts += 1;
            tokio::select! {
                _ = gone.changed() => return,
                () = tokio::time::sleep(Duration::from_micros(pause_us)) => {}
            }
        }
    }

    async fn check(&self, message: Message, slots: &Arc<Semaphore>) {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (client, group, checker) = (self.client.clone(), self.group.clone(), self.checker.clone());
        let open = self.open.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let Some(asked) = asked(&message) else { return };
            let (txn, attempt) = (asked.id.0, asked.attempt);
            let still_open = lock(&open).contains(&txn);
            let resolution = if still_open { Resolution::Unknown } else { checker(asked).await };
            let resolution = match resolution {
                Resolution::Commit => TransactionEnd::Commit,
                Resolution::Rollback => TransactionEnd::Abort,
                Resolution::Unknown => TransactionEnd::Unknown,
            };
            let end = Call::any(move |ask| {
                let (source, group) = (EndSource::Check, &*group);
                let (halves, positions) = (0, 0);
                ask(&Request::EndTransaction(EndTransaction {
                    txn,
                    resolution,
                    source,
                    group,
                    halves,
                    positions,
                    attempt,
                }));
            });
            // An answer that does not arrive is asked for again.
            let _ = client.call(end, true).await;
        });
    }
}

/// What a CHECK asks; `None` if its frame is damaged, in which case it is asked again.
fn asked(message: &Message) -> Option<CheckedTransaction> {
    let Ok(Response::Check(check)) = message.response() else { return None };
    let mut records = VecDeque::new();
    if !message.frames.is_empty() {
        let frame = Frame::parse(&message.frames).ok()?;
        frame.verify_payload().ok()?;
        let entry = FetchEntryHeader::new(0, frame.header.timestamp.get(), 0, frame.header.count.get());
        decode_frame(check.partition, &entry, &message.frames, 0, &mut records).ok()?;
    }
    Some(CheckedTransaction {
        id: TransactionId(check.txn),
        attempt: check.attempt,
        attempts_max: check.attempts_max,
        since_ms: check.since_ms,
        halves: check.halves,
        topic: check.topic.to_owned(),
        partition: check.partition,
        records: records.into(),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
