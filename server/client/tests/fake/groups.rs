//! What the fake knows of groups, transactions and delays: as much as clients can tell.

use super::{Data, Log, Server, Session, Topic};
use bytes::Bytes;
use ringmq_client::ErrorCode;
use ringmq_format::frame::{Frame, FrameHeader, FrameKind};
use ringmq_format::{PartitionId, TopicId};
use ringmq_protocol::fetch::put_entry;
use ringmq_protocol::{
    Assignment, ChangedLease, Check, DescribedGroup, EndSource, Ended, FetchEntryHeader, FetchedOffset,
    GroupEntry, GroupMode, GroupSettings, HeartbeatAnswer, ItemsBuf, JoinGroup, Joined, Lease, LeaseHandle,
    Outcome, Receive, Received, Registered, Request, Response, TimerChange, TimerChanged, TimerEntry,
    TimerPage, TransactionEnd,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

const CHECK_AFTER: Duration = Duration::from_millis(60);

#[derive(Default)]
pub(super) struct Groups {
    groups: BTreeMap<String, Group>,
    pending: BTreeMap<u64, Delay>,
    delivered: BTreeSet<u64>,
    transactions: BTreeMap<u128, Transaction>,
    next: u64,
    /// So many requests about leases are done and then answered by an error that leaves it open.
    pub(super) lose_acks: usize,
    /// What was asked about leases and members, in order.
    asked: Vec<&'static str>,
}

struct Group {
    id: u32,
    mode: GroupMode,
    subscriptions: Vec<(String, String)>,
    members: BTreeMap<u64, Member>,
    generation: u64,
    offsets: BTreeMap<(u64, u32), u64>,
    claims: BTreeMap<u32, u64>,
    queues: BTreeMap<u32, Queue>,
    max_attempts: u16,
    invisible_ms: u32,
}

struct Member {
    heard: Instant,
    session: Duration,
}

#[derive(Default)]
struct Queue {
    next: u64,
    done: BTreeSet<u64>,
    leases: BTreeMap<u64, (LeaseHandle, Instant)>,
    /// Attempts so far, and when each may be delivered again.
    again: BTreeMap<u64, (u16, Instant)>,
    dead: Vec<u64>,
}

struct Delay {
    pid: u32,
    due_ms: i64,
    bytes: Bytes,
}

struct Transaction {
    group: String,
    halves: Vec<(u32, i64, Bytes)>,
    positions: Vec<(u32, u32, u64)>,
    resolved: Option<TransactionEnd>,
    check_at: Instant,
    attempts: u16,
}

/// A RECEIVE that found nothing yet.
#[derive(Clone)]
pub(super) struct Waiting {
    correlation: u64,
    receive: Receive,
    until: Instant,
}

fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

impl Server {
    /// Records of a partition that a group has given up.
    pub(crate) fn dead_letters(&self, group: &str, topic: &str) -> Vec<u64> {
        let data = self.data.lock().unwrap();
        let pid = data.topics[topic].base;
        data.groups.groups[group].queues[&pid].dead.clone()
    }

    /// What a group has committed in a partition.
    pub(crate) fn committed(&self, group: &str, topic: &str, partition: u32) -> Option<u64> {
        let data = self.data.lock().unwrap();
        let pid = data.topics[topic].base + partition;
        let offsets = &data.groups.groups[group].offsets;
        offsets.iter().find(|entry| entry.0.1 == pid).map(|entry| *entry.1)
    }

    /// Puts a group somewhere, as an operator does.
    pub(crate) fn commit(&self, group: &str, topic: &str, partition: u32, offset: u64) {
        let mut data = self.data.lock().unwrap();
        let pid = data.topics[topic].base + partition;
        let offsets = &mut data.groups.groups.get_mut(group).unwrap().offsets;
        let position = offsets.iter_mut().find(|entry| entry.0.1 == pid).unwrap();
        *position.1 = offset;
    }

    /// Forgets who is a member, as a restart does.
    pub(crate) fn forget_members(&self) {
        let mut data = self.data.lock().unwrap();
        for group in data.groups.groups.values_mut() {
            group.members.clear();
            group.generation += 1 << 32;
        }
    }

    /// What members have asked for, in order: `leave`, `hand back`.
    pub(crate) fn asked_of_groups(&self) -> Vec<&'static str> {
        self.data.lock().unwrap().groups.asked.clone()
    }

    /// Records of a partition that are out under a lease.
    pub(crate) fn leased(&self, group: &str, topic: &str) -> usize {
        let data = self.data.lock().unwrap();
        let pid = data.topics[topic].base;
        data.groups.groups[group].queues[&pid].leases.len()
    }

    /// So many acks are done and answered by an error that leaves it open.
    pub(crate) fn lose_acks(&self, count: usize) {
        self.data.lock().unwrap().groups.lose_acks = count;
    }
}

impl Groups {
    /// Tags of a group's subscription to the topic of a partition, if it has a filter.
    pub(super) fn filter(
        &self,
        group: u32,
        topics: &BTreeMap<String, Topic>,
        pid: u32,
    ) -> Option<Vec<String>> {
        let group = self.groups.values().find(|known| known.id == group)?;
        let of = |topic: &&(String, String)| {
            topics
                .get(&topic.0)
                .is_some_and(|topic| (topic.base..topic.base + topic.partitions).contains(&pid))
        };
        let filter = &group.subscriptions.iter().find(of)?.1;
        (filter != "*").then(|| filter.split("||").map(|tag| tag.trim().to_owned()).collect())
    }

    /// Keeps a HALF or DELAY frame; its identity, or `None` for another kind.
    pub(super) fn take_late(&mut self, pid: u32, frame: &Frame<'_>) -> Result<Option<u64>, ErrorCode> {
        let kind = frame.header.kind();
        if kind == FrameKind::Data {
            return Ok(None);
        }
        let late = frame.extension();
        let txn = u128::from_le_bytes(late[..16].try_into().unwrap());
        let due_ms = i64::from_le_bytes(late[16..24].try_into().unwrap());
        let len = usize::from(u16::from_le_bytes(late[28..30].try_into().unwrap()));
        let group = String::from_utf8(late[32..32 + len].to_vec()).unwrap();
        self.next += 64;
        let lsn = self.next;
        let mut header = *frame.header;
        header.partition = U32::new(pid);
        header.base_offset = U64::new(lsn);
        header.timestamp = I64::new(7);
        header.seal();
        let mut bytes = frame.bytes.to_vec();
        bytes[..64].copy_from_slice(header.as_bytes());
        let bytes = Bytes::from(bytes);
        if kind == FrameKind::Delay {
            self.pending.insert(lsn, Delay { pid, due_ms, bytes });
            return Ok(Some(lsn));
        }
        let transaction = self.transactions.entry(txn).or_insert_with(|| open(&group));
        if transaction.resolved.is_some() {
            return Err(ErrorCode::TransactionEnded);
        }
        transaction.halves.push((pid, due_ms, bytes));
        Ok(Some(lsn))
    }

    fn by_id(&mut self, id: u32) -> Result<&mut Group, ErrorCode> {
        self.groups.values_mut().find(|group| group.id == id).ok_or(ErrorCode::UnknownGroup)
    }
}

fn open(group: &str) -> Transaction {
    Transaction {
        group: group.to_owned(),
        halves: Vec::new(),
        positions: Vec::new(),
        resolved: None,
        check_at: Instant::now() + CHECK_AFTER,
        attempts: 0,
    }
}

impl Group {
    fn new(id: u32, settings: &GroupSettings<'_>) -> Self {
        Self {
            id,
            mode: GroupMode::Stream,
            subscriptions: Vec::new(),
            members: BTreeMap::new(),
            generation: 1,
            offsets: BTreeMap::new(),
            claims: BTreeMap::new(),
            queues: BTreeMap::new(),
            max_attempts: settings.max_attempts.unwrap_or(16),
            invisible_ms: settings.invisible_default_ms.unwrap_or(60_000),
        }
    }

    fn drop_silent(&mut self) {
        let before = self.members.len();
        self.members.retain(|_, member| member.heard.elapsed() < member.session);
        self.generation += u64::from(self.members.len() != before);
    }

    fn member(&mut self, member: u64) -> Result<&mut Member, ErrorCode> {
        self.members.get_mut(&member).ok_or(ErrorCode::NotAMember)
    }

    fn assigned(&self, topics: &BTreeMap<String, Topic>, member: u64) -> ItemsBuf {
        let place = self.members.keys().position(|known| *known == member).unwrap() as u32;
        let members = self.members.len() as u32;
        let mut items = ItemsBuf::default();
        for (name, _) in &self.subscriptions {
            let Some(topic) = topics.get(name) else { continue };
            let ours: Vec<U32> =
                (0..topic.partitions).filter(|index| index % members == place).map(U32::new).collect();
            items.push(&Assignment {
                topic: TopicId(topic.id),
                name,
                base_partition: PartitionId(topic.base),
                partitions: topic.partitions,
                assigned: (self.mode == GroupMode::Stream).then_some(&ours[..]),
            });
        }
        items
    }
}

impl Data {
    /// Delays whose time has come become visible.
    pub(super) fn tick(&mut self) {
        let now = wall_ms();
        let due: Vec<u64> =
            self.groups.pending.iter().filter(|entry| entry.1.due_ms <= now).map(|entry| *entry.0).collect();
        for lsn in due {
            let delay = self.groups.pending.remove(&lsn).unwrap();
            self.groups.delivered.insert(lsn);
            self.logs.get_mut(&delay.pid).unwrap().bind(&delay.bytes);
        }
    }

    fn join(&mut self, join: &JoinGroup<'_>, correlation: u64, out: &mut Vec<u8>) -> Result<(), ErrorCode> {
        let subscriptions: Vec<(String, String)> =
            join.subscriptions.iter().map(|one| (one.topic.to_owned(), one.filter.to_owned())).collect();
        self.groups.next += 1;
        let number = self.groups.next;
        if join.create && !self.groups.groups.contains_key(join.group) {
            self.groups.groups.insert(join.group.to_owned(), Group::new(number as u32, &join.settings));
        }
        let group = self.groups.groups.get_mut(join.group).ok_or(ErrorCode::UnknownGroup)?;
        group.drop_silent();
        if !group.members.is_empty() && (group.mode != join.mode || group.subscriptions != subscriptions) {
            return Err(ErrorCode::SubscriptionConflict);
        }
        group.mode = join.mode;
        group.subscriptions = subscriptions;
        group.generation += 1;
        let session_ms = if join.session_ms == 0 { 30_000 } else { join.session_ms };
        let member = if join.member == 0 { number } else { join.member };
        let session = Duration::from_millis(u64::from(session_ms));
        group.members.insert(member, Member { heard: Instant::now(), session });
        // Any number that is the same for the same name.
        let instance = join.instance.bytes().fold(0u64, |hash, byte| hash * 31 + u64::from(byte));
        let assignments = group.assigned(&self.topics, member);
        Response::Joined(Joined {
            group: group.id,
            member,
            instance,
            generation: group.generation,
            session_ms,
            heartbeat_ms: session_ms / 3,
            assignments: assignments.items(),
        })
        .encode(correlation, 0, out);
        Ok(())
    }

    fn end(
        &mut self,
        txn: u128,
        end: TransactionEnd,
        group: &str,
        operator: bool,
    ) -> Result<Ended, ErrorCode> {
        let known = self.groups.transactions.get_mut(&txn).ok_or(ErrorCode::UnknownTransaction)?;
        if !operator && known.group != group {
            return Err(ErrorCode::NotPermitted);
        }
        let halves = known.halves.len() as u32;
        let ended = |earlier| Ended { time_ms: 7, halves, earlier };
        match (known.resolved, end) {
            (_, TransactionEnd::Unknown | TransactionEnd::Recheck) => return Ok(ended(false)),
            (Some(before), _) if before == end => return Ok(ended(true)),
            (Some(_), _) => return Err(ErrorCode::TransactionResolved),
            (None, _) => known.resolved = Some(end),
        }
        if end == TransactionEnd::Commit {
            for (pid, due_ms, bytes) in known.halves.clone() {
                if due_ms > 0 {
                    self.groups.next += 64;
                    self.groups.pending.insert(self.groups.next, Delay { pid, due_ms, bytes });
                } else {
                    self.logs.get_mut(&pid).unwrap().bind(&bytes);
                }
            }
            for (group, pid, offset) in self.groups.transactions[&txn].positions.clone() {
                self.groups.by_id(group)?.offsets.insert((0, pid), offset);
            }
        }
        Ok(ended(false))
    }

    /// What a RECEIVE brings now.
    fn receive(
        &mut self,
        pid: u32,
        receive: &Receive,
        entries: &mut Vec<u8>,
    ) -> Result<Vec<Lease>, ErrorCode> {
        let filter = self.groups.filter(receive.group, &self.topics, pid);
        self.groups.next += 1;
        let generation = self.groups.next;
        let group = self.groups.by_id(receive.group)?;
        group.drop_silent();
        group.member(receive.member)?;
        let (max_attempts, default_ms) = (group.max_attempts, group.invisible_ms);
        let queue = group.queues.entry(pid).or_default();
        let log = &self.logs[&pid];
        queue.expire(max_attempts);
        let invisible_ms = if receive.invisible_ms == 0 { default_ms } else { receive.invisible_ms };
        let mut leases = Vec::new();
        for offset in queue.next..log.end {
            if leases.len() as u32 == receive.max_records {
                break;
            }
            if queue.done.contains(&offset) || queue.leases.contains_key(&offset) {
                continue;
            }
            let (attempts, at) = queue.again.get(&offset).copied().unwrap_or((0, Instant::now()));
            if at > Instant::now() {
                continue;
            }
            let (base, bytes) = log.frames.iter().rev().find(|frame| frame.0 <= offset).unwrap();
            let index = (offset - base) as usize;
            if let Some(tags) = &filter {
                let frame = Frame::parse(bytes).unwrap();
                let payload = ringmq_format::record::Payload::parse(&frame).unwrap();
                let tag = payload.entries().nth(index).unwrap().tag.unwrap_or_default();
                if !tags.contains(&String::from_utf8_lossy(tag).into_owned()) {
                    queue.done.insert(offset);
                    continue;
                }
            }
            let handle = LeaseHandle::new(offset, attempts + 1, generation);
            let until = Duration::from_millis(u64::from(invisible_ms));
            queue.leases.insert(offset, (handle, Instant::now() + until));
            leases.push(Lease { handle, expires_ms: I64::new(wall_ms() + i64::from(invisible_ms)) });
            put_entry(entries, &FetchEntryHeader::new(offset, 7, index as u32, 1));
            entries.extend_from_slice(bytes);
        }
        Ok(leases)
    }
}

impl Queue {
    /// A lease that has ended is a failed delivery.
    fn expire(&mut self, max_attempts: u16) {
        let now = Instant::now();
        let over: Vec<u64> =
            self.leases.iter().filter(|lease| lease.1.1 <= now).map(|lease| *lease.0).collect();
        for offset in over {
            self.fail(offset, max_attempts);
        }
        while self.done.remove(&self.next) {
            self.next += 1;
        }
    }

    /// Whether the record is a dead letter now.
    fn fail(&mut self, offset: u64, max_attempts: u16) -> bool {
        let Some((handle, _)) = self.leases.remove(&offset) else { return false };
        let attempt = handle.attempt.get();
        if attempt >= max_attempts {
            self.dead.push(offset);
            self.done.insert(offset);
            return true;
        }
        self.again.insert(offset, (attempt, Instant::now() + Duration::from_millis(20)));
        false
    }

    fn is_done(&self, offset: u64) -> bool {
        offset < self.next || self.done.contains(&offset)
    }

    fn held(&mut self, handle: &LeaseHandle) -> Result<(), ErrorCode> {
        let offset = handle.offset.get();
        match self.leases.get(&offset) {
            Some(lease) if lease.0 == *handle => Ok(()),
            Some(_) => Err(ErrorCode::StaleHandle),
            None if self.is_done(offset) || self.again.contains_key(&offset) => Err(ErrorCode::StaleHandle),
            None => Err(ErrorCode::UnknownLease),
        }
    }
}

impl Session {
    pub(super) fn serve_waiting(&mut self, data: &mut Data, out: &mut Vec<u8>) {
        for waiting in std::mem::take(&mut self.waiting) {
            let (correlation, receive) = (waiting.correlation, waiting.receive);
            if let Err(code) = self.receive(data, &receive, correlation, waiting.until, out) {
                let body = ringmq_protocol::ErrorBody { code: code as u16, retry_after_ms: 0, message: "" };
                body.encode(ringmq_protocol::Op::Receive as u8, correlation, receive.handle, out);
            }
        }
    }

    fn receive(
        &mut self,
        data: &mut Data,
        receive: &Receive,
        correlation: u64,
        until: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), ErrorCode> {
        let pid = *self.handles.get(&receive.handle).ok_or(ErrorCode::UnknownHandle)?;
        let mut entries = Vec::new();
        let leases = data.receive(pid, receive, &mut entries)?;
        if leases.is_empty() && Instant::now() < until {
            self.waiting.push(Waiting { correlation, receive: *receive, until });
            return Ok(());
        }
        let Log { start, end, .. } = &data.logs[&pid];
        let received = Received { log_start: *start, visible_end: *end, leases: &leases };
        received.encode(correlation, receive.handle, &entries, 0, out);
        Ok(())
    }

    /// Asks about transactions that nobody has ended in time.
    pub(super) fn push_checks(&mut self, data: &mut Data, out: &mut Vec<u8>) {
        for (registration, group) in &self.registrations {
            for (txn, transaction) in &mut data.groups.transactions {
                let due = transaction.check_at <= Instant::now() && transaction.resolved.is_none();
                if !due || transaction.group != *group {
                    continue;
                }
                transaction.attempts += 1;
                transaction.check_at = Instant::now() + CHECK_AFTER;
                let Some((pid, _, bytes)) = transaction.halves.first() else { continue };
                let topic = data
                    .topics
                    .iter()
                    .find(|topic| topic.1.base <= *pid && *pid < topic.1.base + topic.1.partitions);
                let (topic, entry) = topic.unwrap();
                let check = Check {
                    txn: *txn,
                    group,
                    since_ms: 7,
                    halves: transaction.halves.len() as u32,
                    attempt: transaction.attempts,
                    attempts_max: 15,
                    topic,
                    partition: pid - entry.base,
                };
                check.encode(*registration, bytes, out);
            }
        }
    }

    pub(super) fn group_request(
        &mut self,
        data: &mut Data,
        request: &Request<'_>,
        correlation: u64,
        handle: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), ErrorCode> {
        match request {
            Request::JoinGroup(join) => data.join(join, correlation, out)?,
            Request::Heartbeat(beat) => {
                let group = data.groups.by_id(beat.group)?;
                group.drop_silent();
                group.member(beat.member)?.heard = Instant::now();
                let generation = group.generation;
                let assignments = match generation == beat.generation {
                    true => ItemsBuf::default(),
                    false => group.assigned(&data.topics, beat.member),
                };
                let heartbeat_ms = (group.member(beat.member)?.session.as_millis() / 3) as u32;
                let answer = HeartbeatAnswer { generation, heartbeat_ms, assignments: assignments.items() };
                Response::Heartbeat(answer).encode(correlation, 0, out);
            }
            Request::LeaveGroup(leave) => {
                data.groups.asked.push("leave");
                let group = data.groups.by_id(leave.group)?;
                group.members.remove(&leave.member);
                group.generation += 1;
                Response::Left.encode(correlation, 0, out);
            }
            Request::FetchOffsets(fetch) => {
                let group = data.groups.by_id(fetch.group)?;
                group.member(fetch.member)?;
                let mut offsets = Vec::new();
                for pid in fetch.partitions.iter().map(|pid| pid.get()) {
                    let claimed = group.claims.entry(pid).or_default();
                    if fetch.claim && *claimed > fetch.generation {
                        offsets.push(FetchedOffset::failed(ErrorCode::StaleGeneration, 0));
                        continue;
                    }
                    if fetch.claim {
                        *claimed = fetch.generation;
                    }
                    let committed = group.offsets.get(&(fetch.instance, pid));
                    offsets.push(FetchedOffset {
                        flags: U16::new(u16::from(committed.is_some())),
                        offset: U64::new(committed.copied().unwrap_or(0)),
                        generation: U64::new(*claimed),
                        visible_end: U64::new(data.logs[&pid].end),
                        ..FetchedOffset::new_zeroed()
                    });
                }
                Response::FetchedOffsets(&offsets).encode(correlation, 0, out);
            }
            Request::CommitOffsets(commit) => {
                let group = data.groups.by_id(commit.group)?;
                group.member(commit.member)?;
                let mut outcomes = Vec::new();
                let mut staged = Vec::new();
                for entry in commit.positions {
                    let pid = entry.partition.get();
                    if group.claims.get(&pid).is_some_and(|claimed| *claimed > commit.generation) {
                        outcomes.push(Outcome::failed(ErrorCode::StaleGeneration, 0));
                    } else {
                        outcomes.push(Outcome::DONE);
                        if commit.txn == 0 {
                            group.offsets.insert((commit.instance, pid), entry.offset.get());
                        } else {
                            staged.push((commit.group, pid, entry.offset.get()));
                        }
                    }
                }
                if commit.txn != 0 {
                    let transaction = data.groups.transactions.get_mut(&commit.txn);
                    transaction.ok_or(ErrorCode::UnknownTransaction)?.positions.extend(staged);
                }
                Response::Committed(&outcomes).encode(correlation, 0, out);
            }
            Request::Receive(receive) => {
                let until = Instant::now() + Duration::from_millis(u64::from(receive.wait_ms));
                self.receive(data, receive, correlation, until, out)?;
            }
            Request::Ack(ack) => {
                let pid = *self.handles.get(&handle).ok_or(ErrorCode::UnknownHandle)?;
                let group = data.groups.by_id(ack.group)?;
                let max_attempts = group.max_attempts;
                let queue = group.queues.entry(pid).or_default();
                queue.expire(max_attempts);
                let mut outcomes = Vec::new();
                for lease in ack.leases {
                    outcomes.push(match queue.held(lease) {
                        _ if queue.is_done(lease.offset.get()) => Outcome::DONE,
                        Ok(()) => {
                            queue.leases.remove(&lease.offset.get());
                            queue.done.insert(lease.offset.get());
                            Outcome::DONE
                        }
                        Err(code) => Outcome::failed(code, 0),
                    });
                }
                if data.groups.lose_acks > 0 {
                    data.groups.lose_acks -= 1;
                    return Err(ErrorCode::Timeout);
                }
                Response::Acked(&outcomes).encode(correlation, handle, out);
            }
            Request::ChangeInvisible(change) => {
                let pid = *self.handles.get(&handle).ok_or(ErrorCode::UnknownHandle)?;
                data.groups.next += 1;
                let generation = data.groups.next;
                let group = data.groups.by_id(change.group)?;
                let max_attempts = group.max_attempts;
                let queue = group.queues.entry(pid).or_default();
                queue.expire(max_attempts);
                let (mut changed, mut asked) = (Vec::new(), Vec::new());
                let hands_back = |change: &ringmq_protocol::LeaseChange| {
                    change.kind == ringmq_protocol::queue::CHANGE_AFTER && change.after_ms.get() == 0
                };
                for change in change.changes {
                    if hands_back(change) {
                        asked.push("hand back");
                    }
                    let offset = change.handle.offset.get();
                    if let Err(code) = queue.held(&change.handle) {
                        changed.push(ChangedLease::failed(code, 0));
                    } else if change.kind == ringmq_protocol::queue::CHANGE_RETRY {
                        let dead = queue.fail(offset, max_attempts);
                        changed.push(ChangedLease {
                            flags: U16::new(u16::from(dead)),
                            ..ChangedLease::new_zeroed()
                        });
                    } else if change.after_ms.get() == 0 {
                        queue.leases.remove(&offset);
                        let attempts = change.handle.attempt.get() - 1;
                        queue.again.insert(offset, (attempts, Instant::now()));
                        changed.push(ChangedLease::new_zeroed());
                    } else {
                        let handle = LeaseHandle::new(offset, change.handle.attempt.get(), generation);
                        let after = Duration::from_millis(u64::from(change.after_ms.get()));
                        queue.leases.insert(offset, (handle, Instant::now() + after));
                        let lease = Lease { handle, expires_ms: I64::ZERO };
                        changed.push(ChangedLease { lease, ..ChangedLease::new_zeroed() });
                    }
                }
                data.groups.asked.extend(asked);
                Response::Changed(&changed).encode(correlation, handle, out);
            }
            Request::EndTransaction(end) => {
                let operator = end.source == EndSource::Operator;
                let ended = data.end(end.txn, end.resolution, end.group, operator)?;
                Response::Ended(ended).encode(correlation, 0, out);
            }
            Request::RegisterProducer(register) => {
                match register.end {
                    true => drop(self.registrations.remove(&register.registration)),
                    false => {
                        drop(self.registrations.insert(register.registration, register.group.to_owned()))
                    }
                }
                let registered = Registered { check_after_ms: 60, check_every_ms: 60, checks_max: 15 };
                Response::Registered(registered).encode(correlation, handle, out);
            }
            Request::ListTimers(_) => {
                let mut timers = ItemsBuf::default();
                for (lsn, delay) in &data.groups.pending {
                    let len = delay.bytes.len() as u32;
                    let count = FrameHeader::parse(&delay.bytes).unwrap().count.get();
                    let (partition, due_ms) = (delay.pid, delay.due_ms);
                    timers.push(&TimerEntry {
                        topic: "t",
                        index: 0,
                        partition,
                        lsn: *lsn,
                        due_ms,
                        count,
                        len,
                    });
                }
                let page = TimerPage { timers: timers.items(), pending: timers.len() as u64, more: false };
                Response::Timers(page).encode(correlation, 0, out);
            }
            Request::ChangeTimer(change) => {
                let (TimerChange::Cancel { lsn, .. } | TimerChange::Reschedule { lsn, .. }) = change else {
                    return Err(ErrorCode::UnknownOp);
                };
                if data.groups.delivered.contains(lsn) {
                    return Err(ErrorCode::TimerDelivered);
                }
                let delay = data.groups.pending.get_mut(lsn).ok_or(ErrorCode::UnknownTimer)?;
                match change {
                    TimerChange::Reschedule { due_ms, .. } => delay.due_ms = *due_ms,
                    _ => drop(data.groups.pending.remove(lsn)),
                }
                Response::TimerChanged(TimerChanged { changed: 1, more: false }).encode(correlation, 0, out);
            }
            Request::DescribeGroup(describe) => {
                let group = data.groups.groups.get(describe.name).ok_or(ErrorCode::UnknownGroup)?;
                let entry = GroupEntry {
                    group: group.id,
                    name: describe.name,
                    mode: Some(group.mode),
                    members: group.members.len() as u32,
                    topics: 1,
                    created_ms: 7,
                    lag_records: u64::MAX,
                    lag_ms: 0,
                };
                let described = DescribedGroup {
                    group: entry,
                    generation: group.generation,
                    settings: GroupSettings {
                        invisible_default_ms: Some(group.invisible_ms),
                        ..GroupSettings::default()
                    },
                    subscriptions: Default::default(),
                    members: Default::default(),
                    positions: &[],
                    more: false,
                };
                Response::DescribedGroup(described).encode(correlation, 0, out);
            }
            _ => return Err(ErrorCode::UnknownOp),
        }
        Ok(())
    }
}
