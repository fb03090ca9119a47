//! A producer for one topic: records in, a future for each acknowledgement out.
//!
//! The core decides; this shell gives it the time, carries its frames to the links, and wakes whoever waits. `send`
//! puts the record into the core itself, under a lock, so that a record costs no message between tasks.

use crate::admin::PendingHandle;
use crate::client::{Client, TopicInfo};
use crate::clock::{Alarm, Clock, random_u64, wall_ms};
use crate::config::ProducerConfig;
use crate::core::Random;
use crate::core::connection::{Stored, Target};
use crate::core::late::Late;
use crate::core::producer::{
    Completion, Outgoing, ProducerCore, ProducerCoreConfig, ProducerIdentity, PushError, Pushed,
};
use crate::error::SendError;
use crate::limits;
use crate::link::{Command, ProduceEvent};
use crate::partitioner::partition_of_key;
use bytes::Bytes;
use ringmq_format::PartitionId;
use ringmq_format::record::Record;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// A record to publish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordBuf {
    /// Orders and partitions by it, when there is one.
    pub key: Option<Bytes>,
    /// Filtered by it, when there is one.
    pub tag: Option<Bytes>,
    /// Names and values.
    pub properties: Vec<(Bytes, Bytes)>,
    /// When it was made, Unix milliseconds; `None` is now.
    pub time_ms: Option<i64>,
    /// The message. Empty means "delete" to readers that keep the latest value per key.
    pub body: Bytes,
}

impl RecordBuf {
    /// A record with nothing but a body.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// With this key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With this tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<Bytes>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    /// With one more property.
    #[must_use]
    pub fn property(mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }
}

/// A record on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Index of its partition.
    pub partition: u32,
    /// Its number in the partition.
    pub offset: u64,
    /// When it was stored: the server's clock, Unix milliseconds.
    pub timestamp_ms: i64,
    /// An earlier attempt had stored it, whose answer was lost.
    pub duplicate: bool,
}

/// A record on disk that becomes visible later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateAck {
    /// Index of its partition.
    pub partition: u32,
    /// Names the message, to cancel, reschedule or peek at it. Records that share a frame share it.
    pub handle: PendingHandle,
    /// When it was stored: the server's clock, Unix milliseconds.
    pub timestamp_ms: i64,
    /// An earlier attempt had stored it, whose answer was lost.
    pub duplicate: bool,
}

#[derive(Debug)]
enum BatchState {
    Pending(Vec<Waker>),
    Done(Result<(u32, Stored), SendError>),
}

type Batch = Mutex<BatchState>;

/// Resolves when the record is on disk, or will not be. It may be dropped: the record is sent all the same.
#[derive(Clone, Debug)]
#[must_use = "await it to know that the record is on disk"]
pub struct SendFuture {
    batch: Arc<Batch>,
    index: u32,
}

impl Future for SendFuture {
    type Output = Result<Ack, SendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *lock(&self.batch) {
            BatchState::Done(Ok((partition, stored))) => Poll::Ready(Ok(Ack {
                partition: *partition,
                offset: stored.base_offset + u64::from(self.index),
                timestamp_ms: stored.timestamp_ms,
                duplicate: stored.duplicate,
            })),
            BatchState::Done(Err(error)) => Poll::Ready(Err(error.clone())),
            BatchState::Pending(wakers) => {
                // One task often waits for many records of a batch, one after the other.
                if !wakers.last().is_some_and(|last| last.will_wake(context.waker())) {
                    wakers.push(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

/// Resolves when a record that becomes visible later is on disk, or will not be. It may be dropped: the record is sent
/// all the same, and the commit of a transaction waits for all that was sent in it.
#[derive(Clone, Debug)]
pub struct LateFuture {
    sent: SendFuture,
    base_partition: PartitionId,
}

impl LateFuture {
    /// Distinguishes frames.
    pub(crate) fn frame(&self) -> usize {
        Arc::as_ptr(&self.sent.batch) as usize
    }
}

impl Future for LateFuture {
    type Output = Result<LateAck, SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let index = u64::from(self.sent.index);
        let base = self.base_partition.0;
        Pin::new(&mut self.sent).poll(context).map_ok(|ack| LateAck {
            partition: ack.partition,
            handle: PendingHandle {
                partition: PartitionId(base.wrapping_add(ack.partition)),
                // The frame has one identity; records behind the first are counted on by `SendFuture`.
                lsn: ack.offset - index,
            },
            timestamp_ms: ack.timestamp_ms,
            duplicate: ack.duplicate,
        })
    }
}

struct State {
    core: ProducerCore,
    batches: BTreeMap<u64, Arc<Batch>>,
    /// Partition of records without a key, until its batch is closed.
    sticky: Option<u32>,
    random: Random,
    failed: Option<SendError>,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    /// The driver has something to do.
    work: Notify,
    /// Something completed.
    done: Notify,
    clock: Clock,
    topic: TopicInfo,
}

/// Publishes to one topic. Share it by reference or in an `Arc`; `send` may be called from many tasks.
///
/// ```no_run
/// # use ringmq_client::{Client, ClientConfig, ProducerConfig, RecordBuf};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let producer = client.producer("orders", ProducerConfig::default()).await?;
/// // Many at once: only room is waited for here ...
/// let mut acks = Vec::new();
/// for number in 0..1000 {
///     acks.push(producer.send(RecordBuf::new(format!("order {number}")), None).await?);
/// }
/// // ... and the disk here.
/// for ack in acks {
///     println!("{}", ack.await?.offset);
/// }
/// producer.close().await?;
/// # Ok(())
/// # }
/// ```
///
/// Dropped without `close`, it goes on delivering in the background as long as the runtime runs.
pub struct Producer {
    shared: Arc<Shared>,
}

impl Producer {
    pub(crate) fn new(client: Client, topic: TopicInfo, config: ProducerConfig) -> Self {
        let clock = client.shared().clock;
        let mut random = Random::new(random_u64());
        let identity = config.identity.unwrap_or_else(|| ProducerIdentity::new(random.next_nonzero()));
        let retry_for = config.retry_for.unwrap_or(client.shared().config.retry_for);
        let core = ProducerCore::new(ProducerCoreConfig {
            linger_us: config.linger.as_micros() as u64,
            batch_bytes: config.batch_bytes,
            batch_records: config.batch_records,
            frame_size_max: client.server().frame_size_max,
            codec: config.codec,
            block_per_record: config.block_per_record,
            max_buffered_bytes: config.max_buffered_bytes,
            retry_for_us: retry_for.as_micros() as u64,
            identity,
            seed: random.next_u64(),
        });
        let state =
            State { core, batches: BTreeMap::new(), sticky: None, random, failed: None, closed: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Notify::new(),
            done: Notify::new(),
            clock,
            topic,
        });
        let runtime = client.shared().runtime.clone();
        runtime.spawn(drive(client, shared.clone()));
        Self { shared }
    }

    /// The topic.
    pub fn topic(&self) -> &TopicInfo {
        &self.shared.topic
    }

    /// Gives a record to the producer; waits only for room. Without a partition it goes by its key (see
    /// [`crate::partition_of_key`]), or to a partition at random that changes with every batch.
    ///
    /// Records of a partition are stored in the order in which their `send` returned.
    pub async fn send(&self, record: RecordBuf, partition: Option<u32>) -> Result<SendFuture, SendError> {
        // Lets the driver run on a current-thread runtime even if this never has to wait.
        tokio::task::consume_budget().await;
        self.with_room(|| self.try_send(&record, partition)).await
    }

    /// Gives a record to the producer that becomes visible at `due_ms` (Unix milliseconds by the server's clock), never
    /// before; a time that is past is now. It is a message of its own, which the receipt's handle names.
    ///
    /// ```no_run
    /// # use ringmq_client::{Client, ProducerConfig, RecordBuf};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let producer = client.producer("reminders", ProducerConfig::default()).await?;
    /// let in_an_hour = std::time::Duration::from_secs(3600);
    /// let receipt = producer.send_after(RecordBuf::new("call back"), None, in_an_hour).await?.await?;
    /// client.cancel_timer(receipt.handle).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn send_at(
        &self,
        record: RecordBuf,
        partition: Option<u32>,
        due_ms: i64,
    ) -> Result<LateFuture, SendError> {
        let (txn, due_ms, group) = (0, due_ms.max(1), Arc::from(""));
        self.send_late(record, partition, Late { txn, due_ms, check_after_ms: 0, group, alone: true }).await
    }

    /// As [`Producer::send_at`], counted from now by this machine's clock.
    pub async fn send_after(
        &self,
        record: RecordBuf,
        partition: Option<u32>,
        delay: Duration,
    ) -> Result<LateFuture, SendError> {
        let delay_ms = delay.as_millis().min(i64::MAX as u128) as i64;
        self.send_at(record, partition, wall_ms().saturating_add(delay_ms)).await
    }

    pub(crate) async fn send_late(
        &self,
        record: RecordBuf,
        partition: Option<u32>,
        late: Late,
    ) -> Result<LateFuture, SendError> {
        tokio::task::consume_budget().await;
        let sent = self.with_room(|| self.try_push(&record, partition, Some(&late))).await?;
        Ok(LateFuture { sent, base_partition: self.shared.topic.base_partition })
    }

    /// The partition to which a record goes.
    pub(crate) fn choose(&self, key: Option<&[u8]>, partition: Option<u32>) -> Result<u32, SendError> {
        match partition {
            Some(partition) => self.check(partition),
            None => Ok(lock(&self.shared.state).choose(self.shared.topic.partitions, key)),
        }
    }

    /// Like `send`, but answers [`SendError::Full`] where that would wait.
    pub fn try_send(&self, record: &RecordBuf, partition: Option<u32>) -> Result<SendFuture, SendError> {
        self.try_push(record, partition, None)
    }

    fn try_push(
        &self,
        record: &RecordBuf,
        partition: Option<u32>,
        late: Option<&Late>,
    ) -> Result<SendFuture, SendError> {
        let properties: Vec<(&[u8], &[u8])> =
            record.properties.iter().map(|property| (&property.0[..], &property.1[..])).collect();
        let wire = Record {
            key: record.key.as_deref(),
            tag: record.tag.as_deref(),
            properties: &properties,
            time_ms: record.time_ms.unwrap_or_else(wall_ms),
            body: &record.body,
        };
        self.push(|state| {
            let partition = match partition {
                Some(partition) => self.check(partition)?,
                None => state.choose(self.shared.topic.partitions, wire.key),
            };
            state.core.push_late(self.shared.clock.now_us(), partition, &wire, late).map_err(send_error)
        })
    }

    /// Gives a whole frame, as [`crate::FrameBuilder::finish`] makes it, to the producer; waits only for room. It is
    /// one batch; producer, epoch and sequence are stamped into it. The future resolves to the first record's
    /// acknowledgement.
    pub async fn send_frame(&self, partition: u32, frame: Bytes) -> Result<SendFuture, SendError> {
        tokio::task::consume_budget().await;
        self.with_room(|| self.try_send_frame(partition, frame.clone())).await
    }

    /// Like `send_frame`, but answers [`SendError::Full`] where that would wait.
    pub fn try_send_frame(&self, partition: u32, frame: Bytes) -> Result<SendFuture, SendError> {
        self.check(partition)?;
        self.push(|state| {
            state.core.push_frame(self.shared.clock.now_us(), partition, frame).map_err(send_error)
        })
    }

    async fn with_room(
        &self,
        mut attempt: impl FnMut() -> Result<SendFuture, SendError>,
    ) -> Result<SendFuture, SendError> {
        loop {
            let done = self.shared.done.notified();
            match attempt() {
                Err(SendError::Full) => done.await,
                result => return result,
            }
        }
    }

    fn check(&self, partition: u32) -> Result<u32, SendError> {
        let partitions = self.shared.topic.partitions;
        if partition < partitions {
            Ok(partition)
        } else {
            Err(SendError::UnknownPartition { partition, partitions })
        }
    }

    fn push(
        &self,
        push: impl FnOnce(&mut State) -> Result<Pushed, SendError>,
    ) -> Result<SendFuture, SendError> {
        let mut state = lock(&self.shared.state);
        if state.closed {
            return Err(SendError::Closed);
        }
        let pushed = push(&mut state)?;
        let pending = || Arc::new(Mutex::new(BatchState::Pending(Vec::new())));
        let batch = state.batches.entry(pushed.batch).or_insert_with(pending).clone();
        drop(state);
        if pushed.wakes {
            self.shared.work.notify_one();
        }
        Ok(SendFuture { batch, index: pushed.index })
    }

    /// Sends what is collected and waits until all that was sent before is acknowledged or has failed. Answers the
    /// first failure since the last flush.
    pub async fn flush(&self) -> Result<(), SendError> {
        let until = {
            let mut state = lock(&self.shared.state);
            state.core.flush();
            state.core.next_batch()
        };
        self.shared.work.notify_one();
        loop {
            let done = self.shared.done.notified();
            {
                let mut state = lock(&self.shared.state);
                if state.batches.first_key_value().is_none_or(|first| *first.0 >= until) {
                    return state.failed.take().map_or(Ok(()), Err);
                }
            }
            done.await;
        }
    }

    /// Lets what is collected wait for nothing more.
    pub(crate) fn push_out(&self) {
        lock(&self.shared.state).core.flush();
        self.shared.work.notify_one();
    }

    /// Flushes and ends. What a later producer needs to go on as this one is in the answer.
    pub async fn close(self) -> Result<ProducerIdentity, SendError> {
        self.flush().await?;
        Ok(self.identity())
    }

    /// Who produces, and where its sequences stand if all that was sent is stored. After `flush` it can be given to
    /// a new producer, which then goes on where this one stopped.
    pub fn identity(&self) -> ProducerIdentity {
        lock(&self.shared.state).core.identity()
    }

    /// Bytes of records that are not acknowledged.
    pub fn buffered(&self) -> usize {
        lock(&self.shared.state).core.buffered()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.closed = true;
        state.core.flush();
        drop(state);
        self.shared.work.notify_one();
    }
}

impl State {
    fn choose(&mut self, partitions: u32, key: Option<&[u8]>) -> u32 {
        match (key, self.sticky) {
            (Some(key), _) => partition_of_key(key, partitions),
            (None, Some(sticky)) if self.core.has_open_batch(sticky) => sticky,
            (None, sticky) => {
                let next = match sticky {
                    Some(sticky) => (sticky + 1) % partitions,
                    None => (self.random.next_u64() % u64::from(partitions)) as u32,
                };
                self.sticky = Some(next);
                next
            }
        }
    }

    fn complete(&mut self, completion: Completion) {
        let partition = completion.partition;
        let result = completion.result.map(|stored| (partition, stored)).map_err(SendError::from);
        if let Err(error) = &result {
            self.failed.get_or_insert_with(|| error.clone());
        }
        if let Some(batch) = self.batches.remove(&completion.batch) {
            resolve(&batch, result);
        }
    }
}

fn resolve(batch: &Batch, result: Result<(u32, Stored), SendError>) {
    let before = std::mem::replace(&mut *lock(batch), BatchState::Done(result));
    if let BatchState::Pending(wakers) = before {
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Carries frames to the links and outcomes back, until the producer is dropped and nothing is left.
async fn drive(client: Client, shared: Arc<Shared>) {
    let _guard = Guard(shared.clone());
    let (sink, mut events) = mpsc::unbounded_channel();
    let mut alarm = Alarm::new(shared.clock);
    let mut taken = Vec::new();
    let mut sends = Vec::new();
    loop {
        let (deadline_us, over) = {
            let mut state = lock(&shared.state);
            let now_us = shared.clock.now_us();
            taken.drain(..).for_each(|event| match event {
                ProduceEvent::Outcome(batch, outcome) => state.core.outcome(now_us, batch, outcome),
                ProduceEvent::Lost(batch) => state.core.lost(now_us, batch),
                ProduceEvent::NotSent(batch) => state.core.not_sent(now_us, batch),
            });
            state.core.poll(now_us, &mut sends);
            let mut completed = false;
            while let Some(completion) = state.core.next_completion() {
                state.complete(completion);
                completed = true;
            }
            if completed {
                shared.done.notify_waiters();
            }
            (state.core.deadline_us(), state.closed && state.core.is_empty())
        };
        if over {
            return;
        }
        for Outgoing { batch, partition, frame } in sends.drain(..) {
            let target = Target { topic: shared.topic.name.clone(), partition };
            let link = client.link_of(shared.topic.partition_id(partition));
            if link.send(Command::Produce { target, batch, frame, sink: sink.clone() }).is_err() {
                let _ = sink.send(ProduceEvent::NotSent(batch));
            }
        }
        tokio::select! {
            () = shared.work.notified() => {}
            _ = events.recv_many(&mut taken, limits::COMMANDS_AT_ONCE) => {}
            () = alarm.wait(deadline_us) => {}
        }
    }
}

/// Lets nobody wait for ever when the driver ends before its work, which is when its runtime ends.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.closed = true;
        let left = std::mem::take(&mut state.batches);
        drop(state);
        left.into_values().for_each(|batch| resolve(&batch, Err(SendError::Closed)));
        self.0.done.notify_waiters();
    }
}

fn send_error(error: PushError) -> SendError {
    match error {
        PushError::Full => SendError::Full,
        PushError::Record(error) => SendError::Record(error),
        PushError::Frame => SendError::NotAFrame,
        PushError::Fenced => SendError::Fenced,
    }
}

/// A panic elsewhere while the lock was held stops the process in release builds; in tests the state is good enough.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
