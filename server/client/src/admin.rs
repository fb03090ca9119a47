//! Looking at groups, pending messages, transactions, dead letters and topics, and changing them.

use crate::client::{Client, TopicInfo, check_name, check_name_of, response, unexpected};
use crate::core::Refused;
use crate::core::connection::Target;
use crate::core::decode::{ConsumedRecord, decode_frame};
use crate::error::ClientError;
use crate::link::Call;
use ringmq_format::frame::Frame;
use ringmq_format::{PartitionId, TopicId};
use ringmq_protocol::limits::REPLAY_MAX;
use ringmq_protocol::{
    AlterTopic, DeleteGroup, DescribeGroup, DescribedGroup, EndSource, EndTransaction, FetchEntryHeader,
    GroupEntry, GroupMode, GroupSettings, GroupStart, ListGroups, ListTimers, ListTransactions, PeekMessage,
    ReplayDeadLetters, Replayed, Request, ResetGroup, Response, SetGroup, SetGroupMode, TimerChange,
    TimerEntry, TopicSettings, TransactionEnd, TransactionEntry, TransactionState,
};
use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use zerocopy::little_endian::{U32, U64};

/// Settings of a consumer group. What is `None` keeps its value, or takes its default when the group is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupOptions {
    /// Deliveries of a record before it becomes a dead letter (default 16).
    pub max_attempts: Option<u16>,
    /// Pause after each failed delivery; the last one repeats (default RocketMQ's steps, from 10 s to 2 h). An empty
    /// list is the default.
    pub backoff: Option<Vec<Duration>>,
    /// Time for which nobody else gets a received record (default 60 s).
    pub invisible: Option<Duration>,
    /// One record of a key is in flight at a time (default no).
    pub ordered: Option<bool>,
    /// Bytes a second over all members; 0 is no limit (the default).
    pub rate_bytes: Option<u64>,
    /// Records a second over all members; 0 is no limit (the default).
    pub rate_records: Option<u32>,
    /// Records in flight for each partition, over all members; 0 is no limit (the default).
    pub concurrency: Option<u32>,
    /// Where it begins in a partition in which it has no position (default earliest).
    pub start: Option<GroupStart>,
}

impl GroupOptions {
    pub(crate) fn steps(&self) -> Option<Vec<U32>> {
        let steps = self.backoff.as_ref()?;
        Some(steps.iter().map(|step| U32::new(millis(*step))).collect())
    }

    pub(crate) fn settings<'a>(&self, steps: Option<&'a [U32]>) -> GroupSettings<'a> {
        GroupSettings {
            max_attempts: self.max_attempts,
            backoff_ms: steps,
            invisible_default_ms: self.invisible.map(millis),
            ordered: self.ordered,
            rate_bytes: self.rate_bytes,
            rate_records: self.rate_records,
            concurrency: self.concurrency,
            start: self.start,
        }
    }

    fn from_settings(settings: &GroupSettings<'_>) -> Self {
        let duration = |ms: u32| Duration::from_millis(u64::from(ms));
        Self {
            max_attempts: settings.max_attempts,
            backoff: settings.backoff_ms.map(|steps| steps.iter().map(|step| duration(step.get())).collect()),
            invisible: settings.invisible_default_ms.map(duration),
            ordered: settings.ordered,
            rate_bytes: settings.rate_bytes,
            rate_records: settings.rate_records,
            concurrency: settings.concurrency,
            start: settings.start,
        }
    }
}

/// A consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: Arc<str>,
    /// How it consumes; `None` while it has never had a member.
    pub mode: Option<GroupMode>,
    /// Members now.
    pub members: u32,
    /// Topics in which it has a position.
    pub topics: u32,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Records that are not consumed, if known.
    pub lag_records: Option<u64>,
    /// Now minus the time at which the first record that is not consumed became visible, if known.
    pub lag: Option<Duration>,
}

impl GroupInfo {
    fn from_entry(entry: &GroupEntry<'_>) -> Self {
        Self {
            id: entry.group,
            name: Arc::from(entry.name),
            mode: entry.mode,
            members: entry.members,
            topics: entry.topics,
            created_ms: entry.created_ms,
            lag_records: known(entry.lag_records),
            lag: known(entry.lag_ms).map(Duration::from_millis),
        }
    }
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its number.
    pub member: u64,
    /// What it calls itself.
    pub name: String,
    /// The stable name of a broadcast instance; otherwise empty.
    pub instance: String,
    /// When it joined, Unix milliseconds.
    pub joined_ms: i64,
    /// Partitions that it has.
    pub partitions: u32,
    /// Time since it was last heard.
    pub silent: Duration,
}

/// Where a group stands in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionInfo {
    /// The topic.
    pub topic: TopicId,
    /// Index of the partition in the topic.
    pub partition: u32,
    /// Number of the broadcast instance; otherwise 0.
    pub instance: u64,
    /// Everything below it is consumed.
    pub watermark: u64,
    /// First offset that cannot be read yet.
    pub visible_end: u64,
    /// Records that are not consumed, if known.
    pub lag_records: Option<u64>,
    /// As in [`GroupInfo::lag`].
    pub lag: Option<Duration>,
    /// Records consumed above the watermark.
    pub acked_above: u64,
    /// Records that members hold.
    pub in_flight: u32,
    /// Records that wait to be delivered again.
    pub retries: u32,
    /// Dead letters made of this partition since the server started.
    pub dead_letters: u64,
    /// The member that has the partition, if one has.
    pub member: Option<u64>,
    /// Generation under which the partition is claimed; 0 if it is not.
    pub generation: u64,
}

/// State of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// The group, with its lag over all partitions.
    pub group: GroupInfo,
    /// Generation of its assignment; 0 without members.
    pub generation: u64,
    /// All its settings.
    pub options: GroupOptions,
    /// Topics and filters.
    pub subscriptions: Vec<(String, String)>,
    /// Its members; of very many the first 1,024.
    pub members: Vec<MemberInfo>,
    /// Its positions in the order of topic, partition, instance.
    pub positions: Vec<PositionInfo>,
}

/// What a reset does to a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetInfo {
    /// Index of the partition in the topic.
    pub partition: u32,
    /// Position before and after, or why not.
    pub result: Result<(u64, u64), Refused>,
    /// First offset that can be read.
    pub log_start: u64,
    /// First offset that cannot be read yet.
    pub visible_end: u64,
}

/// Names a message that is not visible yet. Its text form is `PARTITION@LSN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PendingHandle {
    /// The partition for which it is.
    pub partition: PartitionId,
    /// Its identity in that partition's shard.
    pub lsn: u64,
}

impl fmt::Display for PendingHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.partition, self.lsn)
    }
}

impl FromStr for PendingHandle {
    type Err = HandleError;

    fn from_str(text: &str) -> Result<Self, HandleError> {
        let (partition, lsn) = text.split_once('@').ok_or(HandleError)?;
        let partition = PartitionId(partition.parse().map_err(|_| HandleError)?);
        if partition.0 == 0 {
            return Err(HandleError); // No partition has this number.
        }
        Ok(Self { partition, lsn: lsn.parse().map_err(|_| HandleError)? })
    }
}

/// A text that is not a [`PendingHandle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandleError;

impl fmt::Display for HandleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the handle of a pending message; give PARTITION@LSN as `timer ls` shows it")
    }
}

impl std::error::Error for HandleError {}

/// A message that waits for its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimerInfo {
    /// Names it.
    pub handle: PendingHandle,
    /// The topic.
    pub topic: String,
    /// Index of the partition in the topic.
    pub partition: u32,
    /// When it becomes visible, Unix milliseconds.
    pub due_ms: i64,
    /// Records.
    pub records: u32,
    /// Bytes of its frame.
    pub bytes: u32,
}

impl TimerInfo {
    fn from_entry(entry: &TimerEntry<'_>) -> Self {
        Self {
            handle: PendingHandle { partition: PartitionId(entry.partition), lsn: entry.lsn },
            topic: entry.topic.to_owned(),
            partition: entry.index,
            due_ms: entry.due_ms,
            records: entry.count,
            bytes: entry.len,
        }
    }
}

/// A page of messages that wait for their time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimerPage {
    /// In the order of due time.
    pub timers: Vec<TimerInfo>,
    /// How many are pending in all, if known.
    pub pending: Option<u64>,
    /// There are more behind the last one.
    pub more: bool,
}

/// A message that is not visible yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeekedMessage {
    /// The topic for which it is.
    pub topic: String,
    /// Index of the partition in the topic.
    pub partition: u32,
    /// The transaction of a half message.
    pub transaction: Option<TransactionId>,
    /// When it becomes visible, Unix milliseconds; 0 for a half message that does at its commit.
    pub due_ms: i64,
    /// Its records; their offsets are their places in the message.
    pub records: Vec<ConsumedRecord>,
}

/// Names a transaction. Its text form is 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub u128);

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for TransactionId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionInfo {
    /// Its id.
    pub id: TransactionId,
    /// Its producer group.
    pub group: String,
    /// Where it stands.
    pub state: TransactionState,
    /// When its first half message was stored, Unix milliseconds.
    pub since_ms: i64,
    /// When it is checked next, Unix milliseconds; 0 if it is not.
    pub next_check_ms: i64,
    /// Checks that were handed over.
    pub attempts: u16,
    /// Frames of half messages.
    pub halves: u32,
    /// Bytes of those.
    pub bytes: u64,
    /// Shards that take part.
    pub participants: u64,
}

impl TransactionInfo {
    fn from_entry(entry: &TransactionEntry<'_>) -> Self {
        Self {
            id: TransactionId(entry.txn),
            group: entry.group.to_owned(),
            state: entry.state,
            since_ms: entry.since_ms,
            next_check_ms: entry.next_check_ms,
            attempts: entry.attempts,
            halves: entry.halves,
            bytes: entry.bytes,
            participants: entry.participants,
        }
    }
}

/// A half message of a transaction; [`Client::peek_message`] reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HalfInfo {
    /// Names it.
    pub handle: PendingHandle,
    /// The topic.
    pub topic: String,
    /// Index of the partition in the topic.
    pub partition: u32,
    /// Records.
    pub records: u32,
    /// Bytes of its frame.
    pub bytes: u32,
    /// When it becomes visible after a commit, Unix milliseconds; 0: at once.
    pub due_ms: i64,
}

/// A page of transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionPage {
    /// In the order of their ids.
    pub transactions: Vec<TransactionInfo>,
    /// There are more behind the last one.
    pub more: bool,
}

/// What became of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayOutcome {
    /// It is back in the partition that it came from, at this offset (0 in a dry run).
    Replayed(u64),
    /// It was, before this call.
    Earlier(u64),
    /// It is not.
    Refused(Refused),
}

/// Where a dead letter came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetterOrigin {
    /// Id of the partition that it was consumed from.
    pub partition: PartitionId,
    /// Its offset there.
    pub offset: u64,
    /// How often it had been delivered when it was given up.
    pub attempts: u32,
}

/// Statistics of a topic; what the server does not know is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicStatistics {
    /// The topic.
    pub topic: TopicInfo,
    /// All its settings.
    pub settings: TopicSettings,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Records that can be read.
    pub records: Option<u64>,
    /// Bytes of their frames on disk.
    pub bytes: Option<u64>,
    /// When the first and the last of them became visible, Unix milliseconds; 0 if there is none.
    pub times_ms: (i64, i64),
    /// Records and bytes of frames taken since the server started.
    pub appended: (Option<u64>, Option<u64>),
    /// Bytes of frames read since the server started.
    pub read_bytes: Option<u64>,
    /// Records and bytes of frames a second lately.
    pub rates: (Option<u64>, Option<u64>),
    /// Messages that wait for their time.
    pub pending_delays: Option<u64>,
    /// Half messages of transactions that are not resolved.
    pub open_halves: Option<u64>,
    /// Bytes on disk of both.
    pub pinned_bytes: Option<u64>,
    /// Requests that were throttled since the server started.
    pub throttled: Option<u64>,
    /// Groups that have a position in it.
    pub groups: u32,
}

fn known(number: u64) -> Option<u64> {
    (number != u64::MAX).then_some(number)
}

pub(crate) fn millis(duration: Duration) -> u32 {
    duration.as_millis().min(u128::from(u32::MAX)) as u32
}

pub(crate) fn refused_of(code: u16, retry_after_ms: u32) -> Refused {
    Refused { number: code, retry_after_ms, message: Arc::from("") }
}

impl Client {
    /// All consumer groups, in the order of their names.
    pub async fn list_groups(&self) -> Result<Vec<GroupInfo>, ClientError> {
        let mut groups: Vec<GroupInfo> = Vec::new();
        loop {
            let after = groups.last().map_or(String::new(), |group| group.name.to_string());
            let list =
                Call::any(move |ask| ask(&Request::ListGroups(ListGroups { after: &after, limit: 0 })));
            let message = self.call(list, true).await?;
            let Response::Groups(page) = response(&message)? else { return Err(unexpected(&message)) };
            groups.extend(page.groups.iter().map(|entry| GroupInfo::from_entry(&entry)));
            if !page.more || page.groups.is_empty() {
                return Ok(groups);
            }
        }
    }

    /// State of a group: settings, members and all positions.
    pub async fn describe_group(&self, name: &str) -> Result<GroupDescription, ClientError> {
        check_name_of("group", name)?;
        let mut described: Option<GroupDescription> = None;
        loop {
            let last = described.as_ref().and_then(|group| group.positions.last());
            let after = last.map_or((TopicId(0), 0, 0), |last| (last.topic, last.partition, last.instance));
            let (name, with_members) = (name.to_owned(), described.is_none());
            let describe = Call::any(move |ask| {
                ask(&Request::DescribeGroup(DescribeGroup { name: &name, after, limit: 0, with_members }));
            });
            let message = self.call(describe, true).await?;
            let Response::DescribedGroup(page) = response(&message)? else {
                return Err(unexpected(&message));
            };
            let more = page.more && !page.positions.is_empty();
            let group = described.get_or_insert_with(|| group_description(&page));
            group.positions.extend(page.positions.iter().map(position_info));
            if !more {
                return Ok(described.unwrap_or_else(|| group_description(&page)));
            }
        }
    }

    /// Makes a group, or alters its settings; its id.
    pub async fn set_group(
        &self,
        name: &str,
        mode: SetGroupMode,
        options: &GroupOptions,
    ) -> Result<u32, ClientError> {
        check_name_of("group", name)?;
        let (name, options) = (name.to_owned(), options.clone());
        let set = Call::any(move |ask| {
            let steps = options.steps();
            let settings = options.settings(steps.as_deref());
            ask(&Request::SetGroup(SetGroup { name: &name, mode, settings }));
        });
        let message = self.call(set, mode != SetGroupMode::Create).await?;
        let Response::GroupSet(group) = response(&message)? else { return Err(unexpected(&message)) };
        Ok(group)
    }

    /// Moves the positions of a group in all partitions of a topic; with `dry_run` only says what that would do.
    pub async fn reset_group(
        &self,
        group: &str,
        topic: &str,
        to: GroupStart,
        dry_run: bool,
    ) -> Result<Vec<ResetInfo>, ClientError> {
        check_name_of("group", group)?;
        let partitions = self.topic(topic, false).await?.partitions;
        let mut done = Vec::new();
        while (done.len() as u32) < partitions {
            let (group, topic, first_partition) = (group.to_owned(), topic.to_owned(), done.len() as u32);
            let reset = Call::any(move |ask| {
                let (group, topic) = (&group, &topic);
                let reset =
                    ResetGroup { group, topic, first_partition, partitions: 0, to, instance: 0, dry_run };
                ask(&Request::ResetGroup(reset));
            });
            let message = self.call(reset, true).await?;
            let Response::GroupReset(reset) = response(&message)? else { return Err(unexpected(&message)) };
            if reset.entries.is_empty() {
                break;
            }
            done.extend(reset.entries.iter().map(|entry| ResetInfo {
                partition: entry.partition.get(),
                result: match entry.code.get() {
                    0 => Ok((entry.before.get(), entry.after.get())),
                    code => Err(refused_of(code, 0)),
                },
                log_start: entry.log_start.get(),
                visible_end: entry.visible_end.get(),
            }));
        }
        Ok(done)
    }

    /// Removes a group and its positions; with `force` even if it has members.
    pub async fn delete_group(&self, name: &str, force: bool) -> Result<(), ClientError> {
        check_name_of("group", name)?;
        let name = name.to_owned();
        let delete = Call::any(move |ask| ask(&Request::DeleteGroup(DeleteGroup { name: &name, force })));
        self.call(delete, false).await.map(drop)
    }

    /// A page of the messages that wait for their time, of one topic or (with an empty name) of all, behind `after`.
    pub async fn list_timers(
        &self,
        topic: &str,
        after: Option<&TimerInfo>,
        limit: u32,
    ) -> Result<TimerPage, ClientError> {
        let topic = topic.to_owned();
        let after = after.map_or((0, 0, 0), |last| (last.due_ms, last.handle.partition.0, last.handle.lsn));
        let list =
            Call::any(move |ask| ask(&Request::ListTimers(ListTimers { after, topic: &topic, limit })));
        let message = self.call(list, true).await?;
        let Response::Timers(page) = response(&message)? else { return Err(unexpected(&message)) };
        Ok(TimerPage {
            timers: page.timers.iter().map(|entry| TimerInfo::from_entry(&entry)).collect(),
            pending: known(page.pending),
            more: page.more,
        })
    }

    /// Cancels a message that waits for its time. Done when this answers; that it was delivered already
    /// (`TimerDelivered`), or is not known (`UnknownTimer`), is a refusal.
    pub async fn cancel_timer(&self, handle: PendingHandle) -> Result<(), ClientError> {
        let cancel = move |ask: &mut dyn FnMut(&Request<'_>)| {
            let (partition, lsn) = (handle.partition.0, handle.lsn);
            ask(&Request::ChangeTimer(TimerChange::Cancel { partition, lsn }));
        };
        self.call(Call::any(cancel), true).await.map(drop)
    }

    /// Gives a message that waits another time, Unix milliseconds. Refusals as of [`Client::cancel_timer`].
    pub async fn reschedule_timer(&self, handle: PendingHandle, due_ms: i64) -> Result<(), ClientError> {
        let reschedule = move |ask: &mut dyn FnMut(&Request<'_>)| {
            let (partition, lsn) = (handle.partition.0, handle.lsn);
            ask(&Request::ChangeTimer(TimerChange::Reschedule { partition, lsn, due_ms: due_ms.max(1) }));
        };
        self.call(Call::any(reschedule), true).await.map(drop)
    }

    /// Cancels all messages of a topic that wait for their time; how many.
    pub async fn purge_timers(&self, topic: &str) -> Result<u64, ClientError> {
        check_name(topic)?;
        let mut purged = 0;
        loop {
            let topic = topic.to_owned();
            let purge =
                Call::any(move |ask| ask(&Request::ChangeTimer(TimerChange::Purge { topic: &topic })));
            let message = self.call(purge, true).await?;
            let Response::TimerChanged(changed) = response(&message)? else {
                return Err(unexpected(&message));
            };
            purged += changed.changed;
            if !changed.more {
                return Ok(purged);
            }
        }
    }

    /// Reads a message that is not visible yet: one that waits for its time, or a half of a transaction.
    pub async fn peek_message(&self, handle: PendingHandle) -> Result<PeekedMessage, ClientError> {
        let peek = PeekMessage { partition: handle.partition.0, lsn: handle.lsn };
        let message = self.call(Call::any(move |ask| ask(&Request::PeekMessage(peek))), true).await?;
        let Response::Peeked(peeked) = response(&message)? else { return Err(unexpected(&message)) };
        let frame = Frame::parse(&message.frames).map_err(|error| ClientError::Receive(error.into()))?;
        frame.verify_payload().map_err(|error| ClientError::Receive(error.into()))?;
        let entry = FetchEntryHeader::new(0, frame.header.timestamp.get(), 0, frame.header.count.get());
        let mut records = VecDeque::new();
        decode_frame(peeked.index, &entry, &message.frames, 0, &mut records).map_err(ClientError::Receive)?;
        Ok(PeekedMessage {
            topic: peeked.topic.to_owned(),
            partition: peeked.index,
            transaction: (peeked.txn != 0).then_some(TransactionId(peeked.txn)),
            due_ms: peeked.due_ms,
            records: records.into(),
        })
    }

    /// A page of the transactions that are not resolved, of one producer group or (with an empty name) of all, in one
    /// state or in any, behind `after`.
    pub async fn list_transactions(
        &self,
        group: &str,
        state: Option<TransactionState>,
        after: Option<TransactionId>,
        limit: u32,
    ) -> Result<TransactionPage, ClientError> {
        let (group, txn) = (group.to_owned(), after.map_or(0, |after| after.0));
        let list = Call::any(move |ask| {
            let list = ListTransactions { txn, one: false, state, group: &group, limit };
            ask(&Request::ListTransactions(list));
        });
        let message = self.call(list, true).await?;
        let Response::Transactions(page) = response(&message)? else { return Err(unexpected(&message)) };
        let transactions =
            page.transactions.iter().map(|entry| TransactionInfo::from_entry(&entry)).collect();
        Ok(TransactionPage { transactions, more: page.more })
    }

    /// A transaction, resolved or not, with its half messages; `UnknownTransaction` is a refusal.
    pub async fn show_transaction(
        &self,
        id: TransactionId,
    ) -> Result<(TransactionInfo, Vec<HalfInfo>), ClientError> {
        let show = Call::any(move |ask| {
            let list = ListTransactions { txn: id.0, one: true, state: None, group: "", limit: 1 };
            ask(&Request::ListTransactions(list));
        });
        let message = self.call(show, true).await?;
        let Response::Transactions(page) = response(&message)? else { return Err(unexpected(&message)) };
        let transaction = page.transactions.iter().next().ok_or_else(|| unexpected(&message))?;
        let halves = page.halves.iter().map(|half| HalfInfo {
            handle: PendingHandle { partition: PartitionId(half.partition), lsn: half.lsn },
            topic: half.topic.to_owned(),
            partition: half.index,
            records: half.count,
            bytes: half.len,
            due_ms: half.due_ms,
        });
        Ok((TransactionInfo::from_entry(&transaction), halves.collect()))
    }

    /// Ends a transaction as an operator, or has a parked one checked again. It is for those who know what became of
    /// the producer's own work.
    pub async fn resolve_transaction(
        &self,
        id: TransactionId,
        resolution: TransactionEnd,
    ) -> Result<(), ClientError> {
        let end = Call::any(move |ask| {
            ask(&Request::EndTransaction(EndTransaction {
                txn: id.0,
                resolution,
                source: EndSource::Operator,
                group: "",
                halves: 0,
                positions: 0,
                attempt: 0,
            }));
        });
        self.call(end, true).await.map(drop)
    }

    /// Puts dead letters back into the partitions that they came from, each at most once however often this is called;
    /// with `dry_run` only says which would be. `topic` is `%DLQ%` and the group's name.
    pub async fn replay_dead_letters(
        &self,
        topic: &str,
        partition: u32,
        offsets: &[u64],
        dry_run: bool,
    ) -> Result<Vec<ReplayOutcome>, ClientError> {
        let outcome = |replayed: &Replayed| match replayed.code.get() {
            0 if replayed.was_earlier() => ReplayOutcome::Earlier(replayed.offset.get()),
            0 => ReplayOutcome::Replayed(replayed.offset.get()),
            code => ReplayOutcome::Refused(refused_of(code, replayed.retry_after_ms.get())),
        };
        self.replay(topic, partition, offsets, dry_run, outcome).await
    }

    /// Where dead letters came from, in the order of their offsets in a partition of `%DLQ%` and the group's name;
    /// `None` for what is no dead letter, or cannot be read.
    pub async fn dead_letter_origins(
        &self,
        topic: &str,
        partition: u32,
        offsets: &[u64],
    ) -> Result<Vec<Option<DeadLetterOrigin>>, ClientError> {
        let origin = |replayed: &Replayed| {
            let partition = PartitionId(replayed.origin_partition.get());
            let (offset, attempts) = (replayed.origin_offset.get(), replayed.attempts.get());
            (partition.0 != 0).then_some(DeadLetterOrigin { partition, offset, attempts })
        };
        self.replay(topic, partition, offsets, true, origin).await
    }

    async fn replay<T>(
        &self,
        topic: &str,
        partition: u32,
        offsets: &[u64],
        dry_run: bool,
        pick: impl Fn(&Replayed) -> T,
    ) -> Result<Vec<T>, ClientError> {
        check_name(topic)?;
        let mut outcomes = Vec::with_capacity(offsets.len());
        for offsets in offsets.chunks(REPLAY_MAX) {
            let offsets: Vec<U64> = offsets.iter().map(|offset| U64::new(*offset)).collect();
            let target = Target { topic: Arc::from(topic), partition };
            let replay = Call::at(target, move |handle, ask| {
                ask(&Request::ReplayDeadLetters(ReplayDeadLetters { handle, dry_run, offsets: &offsets }));
            });
            let message = self.call(replay, true).await?;
            let Response::Replayed(replayed) = response(&message)? else { return Err(unexpected(&message)) };
            outcomes.extend(replayed.iter().map(&pick));
        }
        Ok(outcomes)
    }

    /// Changes the settings of a topic, made if it does not exist and `create` says so; with nothing given it only reads
    /// them. The topic with all its settings.
    pub async fn alter_topic(
        &self,
        name: &str,
        create: bool,
        settings: TopicSettings,
    ) -> Result<(TopicInfo, TopicSettings), ClientError> {
        check_name(name)?;
        let name = name.to_owned();
        let alter =
            Call::any(move |ask| ask(&Request::AlterTopic(AlterTopic { name: &name, create, settings })));
        let message = self.call(alter, true).await?;
        let Response::AlteredTopic(altered) = response(&message)? else { return Err(unexpected(&message)) };
        let topic = TopicInfo::from_entry(&altered.topic).map_err(ClientError::Refused)?;
        Ok((topic, altered.settings))
    }

    /// Statistics of a topic.
    pub async fn topic_stats(&self, name: &str) -> Result<TopicStatistics, ClientError> {
        check_name(name)?;
        let name = name.to_owned();
        let message = self.call(Call::any(move |ask| ask(&Request::TopicStats(&name))), true).await?;
        let Response::TopicStats(stats) = response(&message)? else { return Err(unexpected(&message)) };
        Ok(TopicStatistics {
            topic: TopicInfo::from_entry(&stats.topic).map_err(ClientError::Refused)?,
            settings: stats.settings,
            created_ms: stats.created_ms,
            records: known(stats.records),
            bytes: known(stats.bytes),
            times_ms: (stats.first_time_ms, stats.last_time_ms),
            appended: (known(stats.appended_records), known(stats.appended_bytes)),
            read_bytes: known(stats.read_bytes),
            rates: (known(stats.records_per_second), known(stats.bytes_per_second)),
            pending_delays: known(stats.pending_delays),
            open_halves: known(stats.open_halves),
            pinned_bytes: known(stats.pinned_bytes),
            throttled: known(stats.throttled),
            groups: stats.groups,
        })
    }
}

fn group_description(page: &DescribedGroup<'_>) -> GroupDescription {
    GroupDescription {
        group: GroupInfo::from_entry(&page.group),
        generation: page.generation,
        options: GroupOptions::from_settings(&page.settings),
        subscriptions: page
            .subscriptions
            .iter()
            .map(|subscription| (subscription.topic.to_owned(), subscription.filter.to_owned()))
            .collect(),
        members: page
            .members
            .iter()
            .map(|member| MemberInfo {
                member: member.member,
                name: member.name.to_owned(),
                instance: member.instance_name.to_owned(),
                joined_ms: member.joined_ms,
                partitions: member.partitions,
                silent: Duration::from_millis(u64::from(member.silent_ms)),
            })
            .collect(),
        positions: Vec::new(),
    }
}

fn position_info(position: &ringmq_protocol::GroupPosition) -> PositionInfo {
    PositionInfo {
        topic: TopicId(position.topic.get()),
        partition: position.partition.get(),
        instance: position.instance.get(),
        watermark: position.watermark.get(),
        visible_end: position.visible_end.get(),
        lag_records: known(position.lag_records.get()),
        lag: known(position.lag_ms.get()).map(Duration::from_millis),
        acked_above: position.acked_above.get(),
        in_flight: position.in_flight.get(),
        retries: position.retries.get(),
        dead_letters: position.dead_letters.get(),
        member: (position.member.get() != 0).then_some(position.member.get()),
        generation: position.generation.get(),
    }
}
