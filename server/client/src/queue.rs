//! Consuming record by record: the shell of [`crate::core::queue`].
//!
//! A task owns the core, so that leases are prolonged and acknowledgements tried again whatever the caller does.

use crate::client::{Client, response};
use crate::clock::{Alarm, random_u64};
use crate::core::Refused;
use crate::core::connection::{Message, Target};
use crate::core::decode::ConsumedRecord;
use crate::core::queue::{Delivery, QueueAction, QueueCore, QueueCoreConfig, QueueFailure, Settle, Settled};
use crate::error::{ClientError, GroupError};
use crate::limits;
use crate::link::{Call, CallError};
use crate::membership::{GroupConfig, Member, MemberState};
use ringmq_format::PartitionId;
use ringmq_protocol::{Ack, ChangeInvisible, ErrorCode, GroupMode, Receive, Request, Response};
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How records are received.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// Records that may be here without being settled, handed out or not. Each is a bound on what a program that dies
    /// keeps from others until its leases end.
    pub prefetch: u32,
    /// Time for which nobody else gets a record; `None` takes the group's.
    pub invisible: Option<Duration>,
    /// Prolongs leases for up to so long after a record came; `None`: the caller does, with [`QueueConsumer::extend`].
    pub auto_renew: Option<Duration>,
    /// How long the server may wait for a first record.
    pub wait: Duration,
    /// Bytes that one request may bring.
    pub max_bytes: u32,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            prefetch: limits::PREFETCH,
            invisible: None,
            auto_renew: Some(Duration::from_secs(3 * 3_600)),
            wait: Duration::from_secs(5),
            max_bytes: 4 << 20,
        }
    }
}

/// A record that was received: the caller has it until it is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRecord {
    /// Its topic.
    pub topic: Arc<str>,
    /// The record.
    pub record: ConsumedRecord,
    /// Which delivery of the record this is: 1 is the first.
    pub attempt: u16,
    token: u64,
}

impl Deref for QueueRecord {
    type Target = ConsumedRecord;

    fn deref(&self) -> &ConsumedRecord {
        &self.record
    }
}

/// What became of something that was said about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleOutcome {
    /// Done: consumed; or, after a failed delivery, to come again when the group's backoff is over.
    Done,
    /// It was the last attempt: the record is a dead letter now.
    DeadLetter,
}

/// Resolves when what was said about a record is durable, or will not be. It may be dropped: it is said all the same.
#[derive(Debug)]
#[must_use = "await it to know that it is durable"]
pub struct SettleFuture(oneshot::Receiver<Settled>);

impl Future for SettleFuture {
    type Output = Result<SettleOutcome, GroupError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|settled| match settled {
            Ok(Settled::Done) => Ok(SettleOutcome::Done),
            Ok(Settled::Dead) => Ok(SettleOutcome::DeadLetter),
            Ok(Settled::OutcomeUnknown) => Err(GroupError::OutcomeUnknown),
            Ok(Settled::Refused(refused)) => Err(match refused.code() {
                Some(ErrorCode::StaleHandle | ErrorCode::UnknownLease) => GroupError::Stale,
                _ => GroupError::Refused(refused),
            }),
            Err(_) => Err(GroupError::Closed),
        })
    }
}

enum Said {
    Settle {
        token: u64,
        settle: Settle,
        reply: oneshot::Sender<Settled>,
    },
    /// A record that was on its way to the caller when a connection ended.
    GiveBack(u64),
    /// With the records that the caller did not take.
    Close {
        unread: Vec<u64>,
        reply: Option<oneshot::Sender<()>>,
    },
}

/// Receives records of its group; any number of consumers share the partitions record by record.
///
/// ```no_run
/// # use ringmq_client::{Client, GroupConfig, QueueConfig};
/// # async fn send_mail(_: &[u8]) -> Result<(), std::io::Error> { Ok(()) }
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let group = GroupConfig::new("mail").filtered("users", "registered || invited");
/// let mut consumer = client.queue_consumer(group, QueueConfig::default()).await?;
/// loop {
///     let record = consumer.next().await?;
///     match send_mail(&record.body).await {
///         Ok(()) => consumer.ack(&record).await?,
///         Err(_) => consumer.retry(&record).await?,
///     };
/// }
/// # }
/// ```
///
/// Dropped, it hands back what was not handed out; what the caller has and has not settled comes again when its lease
/// ends.
pub struct QueueConsumer {
    deliveries: mpsc::Receiver<Ready>,
    said: mpsc::UnboundedSender<Said>,
    losses: watch::Receiver<u64>,
}

/// What waits for the caller, and how many connections had ended before.
struct Ready {
    losses: u64,
    delivery: Result<QueueRecord, GroupError>,
}

impl Client {
    /// A member of a consumer group in queue mode.
    pub async fn queue_consumer(
        &self,
        group: GroupConfig,
        config: QueueConfig,
    ) -> Result<QueueConsumer, GroupError> {
        let mut member = Member::join(self, &group, GroupMode::Queue, "")?;
        member.joined(self.shared().config.request_timeout).await?;
        let invisible = match config.invisible {
            Some(invisible) => invisible,
            None => self.invisible_of(&group.group).await?,
        };
        let retry_for = group.retry_for.unwrap_or(self.shared().config.retry_for);
        let core = QueueCore::new(QueueCoreConfig {
            prefetch: config.prefetch.max(1),
            max_bytes: config.max_bytes,
            invisible_ms: crate::admin::millis(invisible).max(1),
            wait_ms: crate::admin::millis(config.wait),
            auto_renew: config.auto_renew.is_some(),
            renew_for_us: config.auto_renew.unwrap_or_default().as_micros() as u64,
            retry_for_us: retry_for.as_micros() as u64,
            seed: random_u64(),
        });
        // One record waits in the channel, so that taking it costs no turn of the task.
        let (sender, deliveries) = mpsc::channel(1);
        let (said, saying) = mpsc::unbounded_channel();
        let (answers, answered) = mpsc::unbounded_channel();
        let driver = Driver {
            client: self.clone(),
            member,
            core,
            max_bytes: config.max_bytes,
            invisible_ms: crate::admin::millis(invisible).max(1),
            ids: None,
            replies: BTreeMap::new(),
            answers,
            closing: Vec::new(),
        };
        let losses = self.shared().losses();
        self.shared().runtime.spawn(driver.run(sender, saying, answered, losses.clone()));
        Ok(QueueConsumer { deliveries, said, losses })
    }
}

impl Client {
    /// Invisible time of a group.
    async fn invisible_of(&self, group: &str) -> Result<Duration, GroupError> {
        match self.describe_group(group).await {
            Ok(described) => Ok(described.options.invisible.unwrap_or(limits::INVISIBLE)),
            // One who may consume may not look at everything.
            Err(ClientError::Refused(_)) => Ok(limits::INVISIBLE),
            Err(error) => Err(error.into()),
        }
    }
}

impl QueueConsumer {
    /// The next record; waits until there is one. May be dropped while it waits: nothing is lost.
    ///
    /// An error concerns one partition, or says that the group does not take this member any more; the consumer goes
    /// on with the next call as far as it can.
    pub async fn next(&mut self) -> Result<QueueRecord, GroupError> {
        while let Some(Ready { losses, delivery }) = self.deliveries.recv().await {
            match delivery {
                // Its lease may be void.
                Ok(record) if losses != *self.losses.borrow() => {
                    let _ = self.said.send(Said::GiveBack(record.token));
                }
                delivery => return delivery,
            }
        }
        Err(GroupError::Closed)
    }

    /// It is consumed.
    pub fn ack(&self, record: &QueueRecord) -> SettleFuture {
        self.settle(record, Settle::Ack)
    }

    /// This delivery has failed: the record comes again after the group's backoff, or becomes a dead letter.
    pub fn retry(&self, record: &QueueRecord) -> SettleFuture {
        self.settle(record, Settle::Retry)
    }

    /// Hands it back: it may be received again after `delay`, without counting as a failed delivery.
    pub fn release(&self, record: &QueueRecord, delay: Duration) -> SettleFuture {
        self.settle(record, Settle::Release(crate::admin::millis(delay)))
    }

    /// Prolongs the lease to `time` from now; needed only without `auto_renew`.
    pub fn extend(&self, record: &QueueRecord, time: Duration) -> SettleFuture {
        self.settle(record, Settle::Extend(crate::admin::millis(time)))
    }

    fn settle(&self, record: &QueueRecord, settle: Settle) -> SettleFuture {
        let (reply, settled) = oneshot::channel();
        // Without the task the reply is dropped, which the future tells.
        let _ = self.said.send(Said::Settle { token: record.token, settle, reply });
        SettleFuture(settled)
    }

    /// Leaves the group, hands back what was not handed out, and waits until all that was said is durable.
    pub async fn close(mut self) {
        self.deliveries.close();
        let mut unread = Vec::new();
        while let Some(ready) = self.deliveries.recv().await {
            unread.extend(ready.delivery.ok().map(|record| record.token));
        }
        let (reply, done) = oneshot::channel();
        let _ = self.said.send(Said::Close { unread, reply: Some(reply) });
        let _ = done.await;
    }
}

impl Drop for QueueConsumer {
    fn drop(&mut self) {
        self.deliveries.close();
        let mut unread = Vec::new();
        while let Ok(ready) = self.deliveries.try_recv() {
            unread.extend(ready.delivery.ok().map(|record| record.token));
        }
        let _ = self.said.send(Said::Close { unread, reply: None });
    }
}

type Answer = (u64, Result<Message, CallError>);

struct Driver {
    client: Client,
    member: Member,
    core: QueueCore,
    max_bytes: u32,
    invisible_ms: u32,
    /// Group and member, as the server numbers them.
    ids: Option<(u32, u64)>,
    replies: BTreeMap<u64, Vec<oneshot::Sender<Settled>>>,
    answers: mpsc::UnboundedSender<Answer>,
    closing: Vec<oneshot::Sender<()>>,
}

impl Driver {
    async fn run(
        mut self,
        deliveries: mpsc::Sender<Ready>,
        mut saying: mpsc::UnboundedReceiver<Said>,
        mut answered: mpsc::UnboundedReceiver<Answer>,
        mut losses: watch::Receiver<u64>,
    ) {
        let mut lost = *losses.borrow_and_update();
        let clock = self.client.shared().clock;
        let mut alarm = Alarm::new(clock);
        let mut ready: Option<Result<QueueRecord, GroupError>> = None;
        // Closing: leave, hear the last of what was asked for, hand back the rest, be done.
        let (mut closed, mut left, mut handed_back) = (false, false, false);
        let mut actions = Vec::new();
        loop {
            let now_us = clock.now_us();
            if !closed {
                self.follow(&mut ready);
                let before = std::mem::replace(&mut lost, *losses.borrow_and_update());
                if lost != before {
                    self.core.doubt_leases(now_us);
                    if let Some(Ok(record)) = ready.take_if(|ready| ready.is_ok()) {
                        self.core.give_back(now_us, record.token);
                    }
                }
            }
            if left && !handed_back && !self.core.is_receiving() {
                self.core.hand_back(now_us);
                handed_back = true;
            }
            if self.ids.is_some() {
                self.core.next_actions(now_us, &mut actions);
            }
            actions.drain(..).for_each(|action| self.act(action));
            self.tell();
            if self.core.take_doubt() {
                self.member.doubt();
            }
            if ready.is_none() && !closed {
                ready = self.core.take_failure().map(|failure| Err(error_of(failure)));
                ready =
                    ready.or_else(|| self.core.next_delivery(now_us).map(|delivery| Ok(record_of(delivery))));
            }
            if handed_back && self.core.is_settled() {
                break;
            }
            let deadline_us = if self.ids.is_some() { self.core.deadline_us() } else { u64::MAX };
            let room = async {
                match ready {
                    Some(_) => deliveries.reserve().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                permit = room => match (permit, ready.take()) {
                    (Ok(permit), Some(delivery)) => permit.send(Ready { losses: lost, delivery }),
                    (Err(_), delivery) => self.unread(delivery),
                    (Ok(_), None) => {}
                },
                said = saying.recv(), if !closed => {
                    closed = self.said(clock.now_us(), said);
                    if closed {
                        self.unread(ready.take());
                        self.core.close();
                        self.member.begin_leaving(false);
                    }
                }
                () = over(&mut self.member.done), if closed && !left => left = true,
                answer = answered.recv() => if let Some((request, answer)) = answer {
                    self.hear(clock.now_us(), request, answer);
                },
                () = alarm.wait(deadline_us) => {}
                _ = self.member.state.changed(), if !closed => {}
                _ = losses.changed(), if !closed => {}
            }
        }
        self.tell();
        for reply in self.closing {
            let _ = reply.send(());
        }
    }

    fn unread(&mut self, delivery: Option<Result<QueueRecord, GroupError>>) {
        if let Some(Ok(record)) = delivery {
            self.core.unread(record.token);
        }
    }

    /// Takes over what the membership says.
    fn follow(&mut self, ready: &mut Option<Result<QueueRecord, GroupError>>) {
        if !self.member.state.has_changed().unwrap_or(false) && self.ids.is_some() {
            return;
        }
        match &*self.member.state.borrow_and_update() {
            MemberState::In(membership) => {
                self.ids = Some((membership.group, membership.member));
                let partitions = membership.topics.iter().flat_map(|topic| {
                    topic.assigned.iter().map(|index| {
                        (topic.partition_id(*index), Target { topic: topic.name.clone(), partition: *index })
                    })
                });
                self.core.set_partitions(partitions);
            }
            // What is held can be settled all the same, under the number from before.
            MemberState::Joining => {}
            MemberState::Failed(refused) => {
                if self.ids.take().is_some() || ready.is_none() {
                    *ready = Some(Err(GroupError::Refused(refused.clone())));
                }
            }
        }
    }

    fn said(&mut self, now_us: u64, said: Option<Said>) -> bool {
        match said {
            Some(Said::Settle { token, settle, reply }) => {
                if self.core.settle(now_us, token, settle) {
                    self.replies.entry(token).or_default().push(reply);
                } else {
                    let _ = reply.send(Settled::Refused(Refused::new(ErrorCode::StaleHandle)));
                }
                false
            }
            Some(Said::GiveBack(token)) => {
                self.core.give_back(now_us, token);
                false
            }
            Some(Said::Close { unread, reply }) => {
                unread.into_iter().for_each(|token| self.core.unread(token));
                self.closing.extend(reply);
                true
            }
            None => true,
        }
    }

    fn tell(&mut self) {
        while let Some((token, settled)) = self.core.next_completion() {
            for reply in self.replies.remove(&token).unwrap_or_default() {
                let _ = reply.send(settled.clone());
            }
        }
    }

    fn act(&mut self, action: QueueAction) {
        let Some((group, member)) = self.ids else { return };
        let (max_bytes, invisible_ms) = (self.max_bytes, self.invisible_ms);
        let (request, target, call) = match action {
            QueueAction::Receive { request, target, max_records, wait_ms } => {
                let receive = move |handle, ask: &mut dyn FnMut(&Request<'_>)| {
                    ask(&Request::Receive(Receive {
                        handle,
                        group,
                        member,
                        max_records,
                        max_bytes,
                        invisible_ms,
                        wait_ms,
                    }));
                };
                (request, target.clone(), Call::at(target, receive).waiting(wait_ms))
            }
            QueueAction::Ack { request, target, leases } => {
                let ack = move |handle, ask: &mut dyn FnMut(&Request<'_>)| {
                    ask(&Request::Ack(Ack { handle, group, member, leases: &leases }));
                };
                (request, target.clone(), Call::at(target, ack))
            }
            QueueAction::Change { request, target, changes } => {
                let change = move |handle, ask: &mut dyn FnMut(&Request<'_>)| {
                    ask(&Request::ChangeInvisible(ChangeInvisible {
                        handle,
                        group,
                        member,
                        changes: &changes,
                    }));
                };
                (request, target.clone(), Call::at(target, change))
            }
        };
        let (client, answers, owner) = (self.client.clone(), self.answers.clone(), self.owner(&target));
        tokio::spawn(async move {
            let answer = client.call_once_of(owner, call).await;
            let _ = answers.send((request, answer));
        });
    }

    /// Id of a partition, which says whose it is.
    fn owner(&self, target: &Target) -> PartitionId {
        match &*self.member.state.borrow() {
            MemberState::In(membership) => membership
                .topics
                .iter()
                .find(|topic| topic.name == target.topic)
                .map_or(PartitionId(0), |topic| topic.partition_id(target.partition)),
            _ => PartitionId(0),
        }
    }

    fn hear(&mut self, now_us: u64, request: u64, answer: Result<Message, CallError>) {
        match answer {
            Ok(message) => match response(&message) {
                Ok(Response::Received(received)) => {
                    self.core.received(now_us, request, received.leases, &message.frames);
                }
                Ok(Response::Acked(outcomes)) => self.core.acked(now_us, request, outcomes),
                Ok(Response::Changed(leases)) => self.core.changed(now_us, request, leases),
                _ => self.core.lost(now_us, request, false),
            },
            Err(CallError::Refused(refused)) => self.core.refused(now_us, request, refused),
            Err(CallError::Lost(_)) => self.core.lost(now_us, request, false),
            Err(CallError::NotSent(_)) => self.core.lost(now_us, request, true),
        }
    }
}

/// Waits until a member has left, and that was heard.
async fn over(done: &mut tokio::sync::watch::Receiver<bool>) {
    drop(done.wait_for(|done| *done).await);
}

fn record_of(delivery: Delivery) -> QueueRecord {
    let Delivery { token, topic, record, attempt } = delivery;
    QueueRecord { topic, record, attempt, token }
}

fn error_of(failure: QueueFailure) -> GroupError {
    match failure {
        QueueFailure::Refused(_, refused) => GroupError::Refused(refused),
        QueueFailure::Received(target, error) => {
            GroupError::Receive { topic: target.topic, partition: target.partition, error }
        }
    }
}
