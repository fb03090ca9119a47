//! Consuming as a member of a group, partition by partition: stream mode, and broadcast.
//!
//! A consumer has no task but that of its membership: `next` follows the assignment, reads, and commits. A partition
//! that comes is claimed first, so that whoever had it before can commit no longer; one that goes is committed once
//! more under the generation under which it was read.
//!
//! Invariants  S1  A commit that says done covers all that was handed out and processed before it, but for partitions
//!                 of which the caller has heard that they are somebody else's.
//!             S2  A partition that is lost and comes back goes on where this consumer was, unless somebody else has
//!                 moved the group's position meanwhile: a server that starts again makes nobody read twice.

use crate::admin::refused_of;
use crate::client::{Client, TopicInfo, response, unexpected};
use crate::clock::random_u64;
use crate::config::ConsumerConfig;
use crate::consumer::Consumer;
use crate::core::consumer::OutOfRange;
use crate::core::decode::ConsumedRecord;
use crate::core::member::{AssignedTopic, Membership};
use crate::core::{Random, Refused, backoff_us};
use crate::error::{ClientError, GroupError};
use crate::limits;
use crate::link::Call;
use crate::membership::{GroupConfig, Member, MemberState};
use ringmq_format::PartitionId;
use ringmq_protocol::limits::{HEARTBEAT_POSITIONS_MAX, OFFSETS_MAX};
use ringmq_protocol::{
    CommitOffsets, ErrorCode, FetchOffsets, FetchedOffset, GroupMode, PositionEntry, Request, Response, Retry,
};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;
use zerocopy::little_endian::U32;

/// How a member reads.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// Time between two commits of what was handed out before; `None`: the caller commits.
    pub auto_commit: Option<Duration>,
    /// Bytes of each topic that may be on the way or buffered.
    pub credit_bytes: u64,
    /// What to do when retention has overtaken the group.
    pub out_of_range: OutOfRange,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            auto_commit: Some(limits::AUTO_COMMIT),
            credit_bytes: limits::CREDIT_BYTES,
            out_of_range: OutOfRange::Fail,
        }
    }
}

/// Where a subscriber of a broadcast begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BroadcastStart {
    /// Where this instance was, or else where the group's settings say. Without a stable name always the latter.
    #[default]
    Resume,
    /// With the next record that comes.
    Newest,
}

/// A record that a group consumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// Its topic.
    pub topic: Arc<str>,
    /// The record.
    pub record: ConsumedRecord,
}

impl Deref for GroupRecord {
    type Target = ConsumedRecord;

    fn deref(&self) -> &ConsumedRecord {
        &self.record
    }
}

/// Positions of a group, to be committed with a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets {
    pub(crate) group: u32,
    pub(crate) member: u64,
    pub(crate) generation: u64,
    pub(crate) positions: Vec<(PartitionId, u64)>,
}

/// Stands for an offset while there is none.
const NEVER: u64 = u64::MAX;

#[derive(Debug)]
struct Progress {
    id: PartitionId,
    /// Where reading began.
    from: u64,
    /// First offset that was not handed out, or was and is not processed.
    processed: u64,
    /// What the server has said that it has.
    committed: u64,
    /// What it was asked to commit last: it may have that though it did not say so.
    asked: u64,
    /// Read now. Otherwise the partition has to be claimed again.
    claimed: bool,
}

impl Progress {
    fn is_committed(&self) -> bool {
        self.processed == self.committed
    }

    /// Something was processed here that the server does not have.
    fn is_behind(&self) -> bool {
        let known = if self.committed == NEVER { self.from } else { self.committed };
        self.processed > known
    }

    /// The server's position is one that this consumer has put there (S2).
    fn is_own(&self, fetched: &FetchedOffset) -> bool {
        match fetched.is_committed() {
            true => [self.committed, self.asked].contains(&fetched.offset.get()),
            false => self.committed == NEVER,
        }
    }
}

type Key = (Arc<str>, u32);

/// Reads the partitions that its group gives it, each in order, from where the group stands.
///
/// What was handed out counts as processed with the next call of [`GroupConsumer::next`]: it is then committed, by
/// itself once in a while or by [`GroupConsumer::commit`]. What is not committed when a partition changes hands or the
/// program ends is read again.
///
/// ```no_run
/// # use ringmq_client::{Client, GroupConfig, StreamConfig};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let group = GroupConfig::new("invoices").topic("orders");
/// let mut consumer = client.group_consumer(group, StreamConfig::default()).await?;
/// loop {
///     let record = consumer.next().await?;
///     println!("{}[{}]@{}", record.topic, record.partition, record.offset);
/// }
/// # }
/// ```
pub struct GroupConsumer {
    client: Client,
    config: StreamConfig,
    mode: GroupMode,
    start: BroadcastStart,
    retry_for: Duration,
    member: Member,
    /// What was followed last.
    membership: Option<Arc<Membership>>,
    readers: BTreeMap<Arc<str>, Consumer>,
    progress: BTreeMap<Key, Progress>,
    /// Handed out and not processed yet.
    last: Option<(Key, u64)>,
    /// Partitions that are assigned and not read yet, and when to try again.
    unclaimed: BTreeSet<Key>,
    claim_at: Instant,
    /// Lost with something that was not committed, and the caller has not heard of it.
    fenced: Option<Key>,
    /// Positions are committed by transactions, of whose end nothing is known here.
    by_transaction: bool,
    commit_at: Instant,
    attempts: u32,
    /// Counts up, so that every topic has its turn.
    turn: usize,
    random: Random,
}

impl Client {
    /// A member of a consumer group in stream mode: each partition has one member at a time.
    pub async fn group_consumer(
        &self,
        group: GroupConfig,
        config: StreamConfig,
    ) -> Result<GroupConsumer, GroupError> {
        GroupConsumer::join(self, &group, config, GroupMode::Stream, "", BroadcastStart::Resume).await
    }

    /// A subscriber of a broadcast: it gets every record once, by push. With a stable name its position is kept by the
    /// server, and it goes on there when it comes back.
    pub async fn broadcast(
        &self,
        group: GroupConfig,
        instance: Option<&str>,
        start: BroadcastStart,
        config: StreamConfig,
    ) -> Result<GroupConsumer, GroupError> {
        let instance = instance.unwrap_or_default();
        GroupConsumer::join(self, &group, config, GroupMode::Broadcast, instance, start).await
    }
}

impl GroupConsumer {
    async fn join(
        client: &Client,
        group: &GroupConfig,
        config: StreamConfig,
        mode: GroupMode,
        instance: &str,
        start: BroadcastStart,
    ) -> Result<Self, GroupError> {
        let member = Member::join(client, group, mode, instance)?;
        let retry_for = group.retry_for.unwrap_or(client.shared().config.retry_for);
        let mut consumer = Self {
            client: client.clone(),
            mode,
            start,
            retry_for,
            member,
            membership: None,
            readers: BTreeMap::new(),
            progress: BTreeMap::new(),
            last: None,
            unclaimed: BTreeSet::new(),
            claim_at: Instant::now(),
            fenced: None,
            by_transaction: false,
            commit_at: Instant::now() + config.auto_commit.unwrap_or(Duration::from_secs(86_400)),
            attempts: 0,
            turn: 0,
            random: Random::new(random_u64()),
            config,
        };
        consumer.member.joined(client.shared().config.request_timeout).await?;
        consumer.follow().await?;
        Ok(consumer)
    }

    /// The next record; waits until there is one. May be dropped while it waits: nothing is lost.
    ///
    /// An error concerns one partition, or says that the group does not take this member; the consumer goes on with
    /// the next call as far as it can.
    pub async fn next(&mut self) -> Result<GroupRecord, GroupError> {
        self.mark_processed();
        loop {
            self.follow().await?;
            if self.config.auto_commit.is_some() && Instant::now() >= self.commit_at {
                self.commit_processed().await?;
            }
            if let Some(result) = self.wait().await {
                let (topic, record) = result?;
                let key = (topic.clone(), record.partition);
                self.last = Some((key, record.offset + 1));
                return Ok(GroupRecord { topic, record });
            }
        }
    }

    /// A record, or `None` if there is something else to do first.
    async fn wait(&mut self) -> Option<Result<(Arc<str>, ConsumedRecord), GroupError>> {
        let mut wake_at = Instant::now() + Duration::from_secs(86_400);
        if self.config.auto_commit.is_some() {
            wake_at = wake_at.min(self.commit_at);
        }
        wake_at = wake_at.min(self.claims_at().unwrap_or(wake_at));
        self.turn = self.turn.wrapping_add(1);
        let mut readers: Vec<_> = self.readers.iter_mut().collect();
        let first = self.turn % readers.len().max(1);
        readers.rotate_left(first);
        // A reader's `next` may be dropped and begun anew at any time, so it is, with every poll.
        let record = poll_fn(|context| {
            for (topic, reader) in &mut readers {
                if let Poll::Ready(result) = pin!(reader.next()).poll(context) {
                    let topic = Arc::clone(topic);
                    return Poll::Ready(match result {
                        Ok(record) => Ok((topic, record)),
                        Err(error) => Err(GroupError::Partition { topic, error }),
                    });
                }
            }
            Poll::Pending
        });
        tokio::select! {
            biased;
            changed = self.member.state.changed() => changed.is_err().then_some(Err(GroupError::Closed)),
            record = record => Some(record),
            () = tokio::time::sleep_until(wake_at) => None,
        }
    }

    /// When [`GroupConsumer::follow`] is to be called for partitions that are not claimed yet.
    fn claims_at(&self) -> Option<Instant> {
        let is_in = matches!(&*self.member.state.borrow(), MemberState::In(_));
        (is_in && !self.unclaimed.is_empty()).then_some(self.claim_at)
    }

    fn mark_processed(&mut self) {
        let Some((key, next)) = self.last.take() else { return };
        if let Some(progress) = self.progress.get_mut(&key) {
            progress.processed = progress.processed.max(next);
        }
    }

    /// Takes over the newest assignment. May be dropped halfway: the next call begins anew.
    async fn follow(&mut self) -> Result<(), GroupError> {
        let state = self.member.state.borrow_and_update().clone();
        match state {
            MemberState::Failed(refused) => return Err(GroupError::Refused(refused)),
            MemberState::Joining => return Ok(()),
            MemberState::In(membership) => {
                let same = self.membership.as_ref().is_some_and(|before| Arc::ptr_eq(before, &membership));
                if !same {
                    self.take_over(&membership).await?;
                    self.membership = Some(membership);
                }
            }
        }
        if !self.unclaimed.is_empty() && Instant::now() >= self.claim_at {
            self.claim().await?;
        }
        match self.fenced.take() {
            Some((topic, partition)) => Err(GroupError::Fenced { topic, partition }),
            None => Ok(()),
        }
    }

    async fn take_over(&mut self, membership: &Arc<Membership>) -> Result<(), GroupError> {
        let assigned: BTreeMap<Key, &AssignedTopic> = membership
            .topics
            .iter()
            .flat_map(|topic| topic.assigned.iter().map(move |index| ((topic.name.clone(), *index), topic)))
            .collect();
        let before = self.membership.as_ref().map(|before| (before.generation, before.group, before.member));
        // With a generation missed, somebody else may have had what is still ours, and have gone further.
        let missed = before.is_none_or(|before| {
            membership.generation.wrapping_sub(before.0) > 1 || before.1 != membership.group
        });
        if before.is_some_and(|before| before.1 != membership.group) {
            // It was removed and made again.
            self.readers.clear();
            self.progress.clear();
            self.last = None;
        }
        let gone: Vec<Key> =
            self.progress.keys().filter(|key| !assigned.contains_key(key)).cloned().collect();
        if !gone.is_empty() && self.config.auto_commit.is_some() && !missed {
            // Under the generation under which they were read: if the new owner is quicker, it is refused.
            let _ = self.commit_keys(&gone).await;
        }
        for key in gone {
            let progress = self.progress.remove(&key);
            self.stop_reading(&key);
            self.last.take_if(|last| last.0 == key);
            if progress.is_some_and(|progress| progress.is_behind()) && !self.by_transaction {
                self.fenced.get_or_insert(key);
            }
        }
        if missed && self.mode == GroupMode::Stream {
            for key in self.progress.keys().cloned().collect::<Vec<_>>() {
                self.unclaim(&key);
            }
        }
        self.unclaimed.retain(|key| assigned.contains_key(key));
        for (key, topic) in &assigned {
            if !self.progress.get(key).is_some_and(|progress| progress.claimed) {
                self.reader(topic, membership.group)?;
                self.unclaimed.insert(key.clone());
            }
        }
        self.claim_at = Instant::now();
        self.attempts = 0;
        Ok(())
    }

    fn stop_reading(&mut self, key: &Key) {
        if let Some(reader) = self.readers.get_mut(&key.0) {
            reader.remove(key.1);
        }
    }

    /// It has to be claimed again before it is read and committed.
    fn unclaim(&mut self, key: &Key) {
        if let Some(progress) = self.progress.get_mut(key) {
            progress.claimed = false;
        }
        self.stop_reading(key);
        self.unclaimed.insert(key.clone());
    }

    /// The reader of a topic.
    fn reader(&mut self, topic: &AssignedTopic, group: u32) -> Result<(), GroupError> {
        if self.readers.contains_key(&topic.name) {
            return Ok(());
        }
        let info = TopicInfo {
            name: topic.name.clone(),
            id: topic.id,
            base_partition: topic.base_partition,
            partitions: topic.partitions,
        };
        let config = ConsumerConfig {
            partitions: crate::config::Partitions::Some(Vec::new()),
            credit_bytes: self.config.credit_bytes / u64::from(topic.partitions.clamp(1, 16)),
            out_of_range: self.config.out_of_range,
            retry_for: Some(self.retry_for),
            ..ConsumerConfig::default()
        };
        let reader = Consumer::new(self.client.clone(), info, &config, group)?;
        self.readers.insert(topic.name.clone(), reader);
        Ok(())
    }

    /// Asks where the group stands in what is not read yet, claims it, and reads on from there.
    async fn claim(&mut self) -> Result<(), GroupError> {
        let Some(membership) = self.membership.clone() else { return Ok(()) };
        let mut keys: Vec<(Key, PartitionId)> = Vec::new();
        for topic in &membership.topics {
            let ours =
                topic.assigned.iter().map(|index| ((topic.name.clone(), *index), topic.partition_id(*index)));
            keys.extend(ours.filter(|key| self.unclaimed.contains(&key.0)));
        }
        let (mut refused, mut retry_after_ms) = (None, 0);
        for keys in keys.chunks(OFFSETS_MAX) {
            let message = match self.fetch_offsets(&membership, keys).await {
                Ok(message) => message,
                Err(ClientError::Refused(error)) if error.code() == Some(ErrorCode::NotAMember) => {
                    self.member.doubt();
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let Response::FetchedOffsets(offsets) = response(&message)? else {
                return Err(GroupError::Client(unexpected(&message)));
            };
            for ((key, id), fetched) in keys.iter().zip(offsets) {
                match self.claimed(key, *id, fetched) {
                    Ok(()) => {}
                    Err(error) if error.retry() != Retry::No => retry_after_ms = error.retry_after_ms,
                    Err(error) if stale(&error) => self.member.doubt(),
                    Err(error) => {
                        self.unclaimed.remove(key);
                        refused = Some(error);
                    }
                }
            }
        }
        if !self.unclaimed.is_empty() {
            let pause_us = backoff_us(self.attempts, retry_after_ms, &mut self.random);
            self.claim_at = Instant::now() + Duration::from_micros(pause_us);
            self.attempts += 1;
        }
        refused.map_or(Ok(()), |refused| Err(GroupError::Refused(refused)))
    }

    async fn fetch_offsets(
        &self,
        membership: &Membership,
        keys: &[(Key, PartitionId)],
    ) -> Result<crate::core::connection::Message, ClientError> {
        let (group, member, generation) = (membership.group, membership.member, membership.generation);
        let (instance, claim) = (membership.instance, self.mode == GroupMode::Stream);
        let ids: Vec<U32> = keys.iter().map(|key| U32::new(key.1.0)).collect();
        let fetch = Call::any(move |ask| {
            let partitions = &ids[..];
            ask(&Request::FetchOffsets(FetchOffsets {
                group,
                member,
                generation,
                instance,
                claim,
                partitions,
            }));
        });
        self.client.call(fetch, true).await
    }

    fn claimed(&mut self, key: &Key, id: PartitionId, fetched: &FetchedOffset) -> Result<(), Refused> {
        if fetched.code.get() != 0 {
            return Err(refused_of(fetched.code.get(), fetched.retry_after_ms.get()));
        }
        let before = self.progress.get(key).filter(|before| {
            // A transaction that was rolled back has its records consumed again.
            let is_own = !self.by_transaction && before.is_own(fetched);
            if !is_own && !self.by_transaction && before.is_behind() {
                self.fenced.get_or_insert_with(|| key.clone());
            }
            is_own
        });
        let progress = match before {
            Some(before) => Progress { claimed: true, ..*before }, // S2
            None => {
                let first = !self.progress.contains_key(key);
                let newest =
                    first && self.mode == GroupMode::Broadcast && self.start == BroadcastStart::Newest;
                let offset = if newest { fetched.visible_end.get() } else { fetched.offset.get() };
                // What was only started at, not committed, is committed with the first record.
                let committed = if fetched.is_committed() { fetched.offset.get() } else { NEVER };
                self.last.take_if(|last| last.0 == *key);
                Progress { id, from: offset, processed: offset, committed, asked: NEVER, claimed: true }
            }
        };
        if let Some(reader) = self.readers.get_mut(&key.0) {
            // What the caller has in hand is not handed out again.
            let in_hand = self.last.as_ref().filter(|last| last.0 == *key).map(|last| last.1);
            reader.add(key.1, in_hand.unwrap_or(progress.processed));
            self.progress.insert(key.clone(), progress);
            self.unclaimed.remove(key);
        }
        Ok(())
    }

    /// Commits all that was handed out. Call it when that is processed.
    ///
    /// While the server is away, or has begun a new life, it waits for it, at most for the client's request time. If a
    /// partition went to another member, or an operator has moved the group, before all of it was committed, the answer
    /// is [`GroupError::Fenced`]; the other partitions are committed.
    pub async fn commit(&mut self) -> Result<(), GroupError> {
        self.mark_processed();
        let until = Instant::now() + self.client.shared().config.request_timeout;
        loop {
            match self.commit_processed().await {
                Ok(()) if self.is_committed() => return Ok(()), // S1
                Ok(()) | Err(GroupError::NotAMember) => {}
                Err(error) => return Err(error),
            }
            if Instant::now() >= until {
                return Err(GroupError::NotAMember);
            }
            let wake_at = until.min(self.claims_at().unwrap_or(until));
            tokio::select! {
                changed = self.member.state.changed() => changed.map_err(|_| GroupError::Closed)?,
                () = tokio::time::sleep_until(wake_at) => {}
            }
            self.follow().await?;
        }
    }

    /// Nothing that was handed out waits for its partition to be claimed again, or for a commit.
    fn is_committed(&self) -> bool {
        self.is_own_affair() || self.progress.values().all(Progress::is_committed)
    }

    /// A subscriber of a broadcast without a name: its position is nobody else's.
    fn is_own_affair(&self) -> bool {
        let named = self.membership.as_ref().is_some_and(|membership| membership.instance != 0);
        self.mode == GroupMode::Broadcast && !named
    }

    async fn commit_processed(&mut self) -> Result<(), GroupError> {
        self.commit_at = Instant::now() + self.config.auto_commit.unwrap_or(Duration::from_secs(86_400));
        self.skip_filtered();
        self.tell_positions();
        let keys: Vec<Key> = self.progress.keys().cloned().collect();
        self.commit_keys(&keys).await
    }

    /// Where everything that came was handed out and processed, what the filter left out is consumed too.
    fn skip_filtered(&mut self) {
        for ((topic, partition), progress) in &mut self.progress {
            let behind = self.last.as_ref().is_some_and(|last| last.0.0 == *topic && last.0.1 == *partition);
            let position = self.readers.get(topic).and_then(|reader| reader.position(*partition));
            if let Some(position) = position.filter(|_| !behind) {
                progress.processed = progress.processed.max(position);
            }
        }
    }

    /// Where this member stands, for the next heartbeat.
    fn tell_positions(&self) {
        let positions = self.progress.values().take(HEARTBEAT_POSITIONS_MAX);
        let positions =
            positions.map(|progress| PositionEntry::new(progress.id, progress.processed)).collect();
        *self.member.positions.lock().unwrap_or_else(PoisonError::into_inner) = positions;
    }

    async fn commit_keys(&mut self, keys: &[Key]) -> Result<(), GroupError> {
        let Some(membership) = self.membership.clone() else { return Ok(()) };
        if self.is_own_affair() {
            return Ok(());
        }
        let mut left: Vec<(Key, PositionEntry)> = Vec::new();
        for key in keys {
            let Some(progress) = self.progress.get_mut(key) else { continue };
            if progress.claimed && !progress.is_committed() {
                progress.asked = progress.processed;
                left.push((key.clone(), PositionEntry::new(progress.id, progress.processed)));
            }
        }
        let until = Instant::now() + self.client.shared().config.request_timeout;
        let mut attempts = 0;
        while !left.is_empty() {
            let count = left.len().min(OFFSETS_MAX);
            let entries: Vec<PositionEntry> = left[..count].iter().map(|entry| entry.1).collect();
            let message = self.commit_once(&membership, entries).await?;
            let Response::Committed(outcomes) = response(&message)? else {
                return Err(GroupError::Client(unexpected(&message)));
            };
            let (mut again, mut last) = (left.split_off(count), None);
            for ((key, entry), outcome) in left.drain(..).zip(outcomes) {
                let refused = refused_of(outcome.code.get(), outcome.retry_after_ms.get());
                if outcome.is_done() {
                    if let Some(progress) = self.progress.get_mut(&key) {
                        progress.committed = entry.offset.get();
                    }
                } else if stale(&refused) {
                    self.fence(&key);
                } else if refused.retry() == Retry::No {
                    return Err(GroupError::Refused(refused));
                } else {
                    again.push((key, entry));
                    last = Some(refused);
                }
            }
            left = again;
            if let Some(refused) = last {
                let pause_us = backoff_us(attempts, refused.retry_after_ms, &mut self.random);
                attempts += 1;
                let pause = Duration::from_micros(pause_us);
                if Instant::now() + pause >= until {
                    return Err(GroupError::OutcomeUnknown);
                }
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    }

    async fn commit_once(
        &self,
        membership: &Membership,
        entries: Vec<PositionEntry>,
    ) -> Result<crate::core::connection::Message, GroupError> {
        let (group, member, generation) = (membership.group, membership.member, membership.generation);
        let instance = membership.instance;
        let commit = Call::any(move |ask| {
            let (txn, positions) = (0, &entries[..]);
            ask(&Request::CommitOffsets(CommitOffsets {
                group,
                member,
                generation,
                instance,
                txn,
                positions,
            }));
        });
        match self.client.call(commit, true).await {
            Ok(message) => Ok(message),
            Err(ClientError::Refused(refused)) if refused.code() == Some(ErrorCode::NotAMember) => {
                self.member.doubt();
                Err(GroupError::NotAMember)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Somebody else has claimed a partition, an operator has moved the group, or the server has begun a new life: the
    /// partition is read no longer, and claimed again if it is still ours. Which of them it was shows then.
    fn fence(&mut self, key: &Key) {
        self.unclaim(key);
        self.member.doubt();
        let pause_us = backoff_us(self.attempts, 0, &mut self.random);
        self.claim_at = Instant::now() + Duration::from_micros(pause_us);
        self.attempts += 1;
    }

    /// What was handed out, to be committed with a transaction (see [`crate::Transaction::send_offsets`]). Take it
    /// when that is processed, in a consumer that does not commit by itself; if the transaction is rolled back, go on
    /// with [`GroupConsumer::rewind`].
    pub fn processed(&mut self) -> Result<Offsets, GroupError> {
        self.by_transaction = true;
        self.mark_processed();
        self.skip_filtered();
        let membership = self.membership.as_ref().ok_or(GroupError::NotAMember)?;
        let open = || self.progress.values().filter(|progress| !progress.is_committed());
        // Without them the transaction would say less than what was processed.
        if open().any(|progress| !progress.claimed) {
            return Err(GroupError::NotAMember);
        }
        Ok(Offsets {
            group: membership.group,
            member: membership.member,
            generation: membership.generation,
            positions: open().map(|progress| (progress.id, progress.processed)).collect(),
        })
    }

    /// Goes back to where the group stands, as after a transaction that was rolled back: what was handed out since
    /// then comes again. A subscriber of a broadcast without a name stands nowhere, and stays where it is.
    pub fn rewind(&mut self) {
        if self.is_own_affair() {
            return;
        }
        for key in std::mem::take(&mut self.progress).into_keys() {
            self.stop_reading(&key);
            self.unclaimed.insert(key);
        }
        self.last = None;
        self.claim_at = Instant::now();
    }

    /// Partitions that are read now: topic, index, and the offset behind what was processed.
    pub fn positions(&self) -> impl Iterator<Item = (&str, u32, u64)> {
        self.progress.iter().map(|((topic, partition), progress)| (&**topic, *partition, progress.processed))
    }

    /// Generation of the assignment; `None` while the group is being joined.
    pub fn generation(&self) -> Option<u64> {
        self.membership.as_ref().map(|membership| membership.generation)
    }

    /// Commits what was handed out, unless the caller commits, and leaves the group. With `forget` the position of a
    /// broadcast instance is dropped too.
    pub async fn close(mut self, forget: bool) -> Result<(), GroupError> {
        self.mark_processed();
        let committed = match self.config.auto_commit {
            Some(_) if !forget => self.commit_processed().await,
            _ => Ok(()),
        };
        self.member.leave(forget).await;
        committed
    }
}

fn stale(refused: &Refused) -> bool {
    refused.code() == Some(ErrorCode::StaleGeneration)
}
