//! Requests about groups: from a connection to the shards that know, and from their answers to bytes.

use super::coordinator::refused;
use super::membership::Joining;
use super::registry::coordinator_of;
use super::settings::{Given, check_group_name, check_subscriptions, wire_settings};
use super::work::{
    Commit, FetchOffsets, FoundPositions, GroupAnswer, GroupWork, Join, Lag, Members, Positions, Refused,
    Reset,
};
use crate::shard::ShardServer;
use crate::shard::connection::{Connection, Pending};
use crate::shard::mail::{Origin, Work};
use crate::shard::requests::RECOVERING_RETRY_MS;
use ringmq_format::consumer_group::{ConsumerGroup, GroupMode};
use ringmq_format::name::name_hash;
use ringmq_format::{GroupId, Offset, PartitionId};
use ringmq_protocol::limits::{DESCRIBE_POSITIONS_MAX, LIST_GROUPS_MAX, RESET_PARTITIONS_MAX};
use ringmq_protocol::request::Request;
use ringmq_protocol::response::{ErrorBody, Response};
use ringmq_protocol::{
    CommitOffsets, DescribeGroup, DescribedGroup, ErrorCode, FetchedOffset, GroupEntry, GroupPage,
    GroupPosition, GroupReset, Header, HeartbeatAnswer, ItemsBuf, JoinGroup, Joined, ListGroups, Op, Outcome,
    ResetEntry, ResetGroup, SetGroupMode, Subscription,
};
use std::collections::BTreeMap;
use zerocopy::FromZeros;
use zerocopy::little_endian::{U32, U64};

/// A request that waits.
#[derive(Debug)]
pub(in crate::shard) enum GroupPending {
    /// One shard answers.
    One {
        correlation: u64,
        op: u8,
    },
    Commit {
        correlation: u64,
        outcomes: Vec<Outcome>,
        remaining: u32,
        bytes: usize,
    },
    Fetch {
        correlation: u64,
        offsets: Vec<FetchedOffset>,
        remaining: u32,
        bytes: usize,
    },
    List {
        correlation: u64,
        rows: Vec<Row>,
        lags: Vec<Lag>,
        more: bool,
        remaining: u32,
    },
    Describe(Box<Describing>),
    Reset {
        correlation: u64,
        first: u32,
        entries: Vec<ResetEntry>,
        remaining: u32,
        bytes: usize,
    },
}

/// A group in a list.
#[derive(Debug)]
pub(in crate::shard) struct Row {
    group: GroupId,
    name: String,
    mode: Option<GroupMode>,
    members: u32,
    created_ms: i64,
}

/// A DESCRIBE_GROUP: first the coordinator answers, then every shard.
#[derive(Debug)]
pub(in crate::shard) struct Describing {
    correlation: u64,
    entry: ConsumerGroup,
    after: Option<(PartitionId, u64)>,
    limit: usize,
    members: Option<Box<Members>>,
    rows: Vec<(PartitionId, u64, GroupPosition)>,
    lag: Lag,
    remaining: u32,
}

impl GroupPending {
    /// What an error is an answer to.
    fn head(&self) -> (u64, u8) {
        match self {
            Self::One { correlation, op } => (*correlation, *op),
            Self::Commit { correlation, .. } => (*correlation, Op::CommitOffsets as u8),
            Self::Fetch { correlation, .. } => (*correlation, Op::FetchOffsets as u8),
            Self::List { correlation, .. } => (*correlation, Op::ListGroups as u8),
            Self::Describe(describing) => (describing.correlation, Op::DescribeGroup as u8),
            Self::Reset { correlation, .. } => (*correlation, Op::ResetGroup as u8),
        }
    }

    /// Bytes that count against what a connection may have unanswered.
    fn bytes(&self) -> usize {
        match self {
            Self::Commit { bytes, .. } | Self::Fetch { bytes, .. } | Self::Reset { bytes, .. } => *bytes,
            _ => 0,
        }
    }
}

fn put_error(connection: &mut Connection, (correlation, op): (u64, u8), (code, message): &Refused) {
    let retry_after_ms = if *code == ErrorCode::Recovering { RECOVERING_RETRY_MS } else { 0 };
    let body = ErrorBody { code: *code as u16, retry_after_ms, message };
    body.encode(op, correlation, 0, &mut connection.out);
}

impl ShardServer {
    /// Carries out a request, or has it carried out where it belongs.
    pub(in crate::shard) fn request_groups(
        &mut self,
        connection: &mut Connection,
        header: &Header,
        request: Request<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        if let Err(refused) = self.ask_groups(connection, header.correlation(), request) {
            self.stats.request_errors += 1;
            put_error(connection, (header.correlation(), header.op), &refused);
        }
        Ok(())
    }

    fn ask_groups(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        request: Request<'_>,
    ) -> Result<(), Refused> {
        match request {
            Request::JoinGroup(join) => self.ask_join(connection, correlation, &join),
            Request::Heartbeat(beat) => {
                let group = GroupId(beat.group);
                let known = self.known_group(group)?;
                // What others keep need not be told.
                let reports = known.entry.mode == Some(GroupMode::Broadcast) && !beat.positions.is_empty();
                let reported = reports.then(|| {
                    let position = |entry: &ringmq_protocol::PositionEntry| {
                        (PartitionId(entry.partition.get()), entry.offset.get())
                    };
                    beat.positions.iter().map(position).collect()
                });
                let (member, generation, wait_ms) = (beat.member, beat.generation, beat.wait_ms);
                let work = GroupWork::Heartbeat { group, member, generation, wait_ms, reported };
                self.ask_coordinator(connection, (correlation, Op::Heartbeat), group, work);
                Ok(())
            }
            Request::LeaveGroup(leave) => {
                let group = GroupId(leave.group);
                self.known_group(group)?;
                let work = GroupWork::Leave { group, member: leave.member, forget: leave.forget };
                self.ask_coordinator(connection, (correlation, Op::LeaveGroup), group, work);
                Ok(())
            }
            Request::CommitOffsets(commit) => self.ask_commit(connection, correlation, &commit),
            Request::FetchOffsets(fetch) => {
                let group = GroupId(fetch.group);
                let known = self.known_group(group)?;
                if fetch.member != 0 && !known.is_member(fetch.member) {
                    return Err(refused(ErrorCode::NotAMember));
                }
                let count = fetch.partitions.len();
                let offsets = vec![FetchedOffset::failed(ErrorCode::UnknownTopic, 0); count];
                let asked = (0..).zip(fetch.partitions.iter().map(|id| PartitionId(id.get())));
                let asked = asked.filter(|(_, id)| self.topics.by_partition(*id).is_some());
                let by_shard = self.by_shard(asked, |entry: &(u32, PartitionId)| entry.1);
                let bytes = count * size_of::<FetchedOffset>();
                let remaining = by_shard.len() as u32;
                let pending = GroupPending::Fetch { correlation, offsets, remaining, bytes };
                self.ask_shards(connection, pending, by_shard, |partitions| {
                    GroupWork::FetchOffsets(Box::new(FetchOffsets {
                        group,
                        member: fetch.member,
                        generation: fetch.generation,
                        instance: fetch.instance,
                        claim: fetch.claim,
                        partitions,
                    }))
                });
                Ok(())
            }
            Request::ListGroups(list) => self.ask_list(connection, correlation, &list),
            Request::DescribeGroup(describe) => self.ask_describe(connection, correlation, &describe),
            Request::SetGroup(set) => {
                check_group_name(set.name)?;
                let given = Box::new(Given::check(&set.settings)?);
                let work = GroupWork::Set {
                    name: set.name.to_owned(),
                    make: set.mode != SetGroupMode::Alter,
                    alter: set.mode != SetGroupMode::Create,
                    given,
                };
                self.ask_by_name(connection, (correlation, Op::SetGroup), set.name, work)
            }
            Request::ResetGroup(reset) => self.ask_reset(connection, correlation, &reset),
            Request::DeleteGroup(delete) => {
                let work = GroupWork::Delete { name: delete.name.to_owned(), force: delete.force };
                self.ask_by_name(connection, (correlation, Op::DeleteGroup), delete.name, work)
            }
            _ => Err(refused(ErrorCode::UnknownOp)),
        }
    }

    fn known_group(&self, group: GroupId) -> Result<&super::KnownGroup, Refused> {
        self.groups.registry.get(group, self.mail.shards()).map_err(refused)
    }

    fn ask_coordinator(
        &mut self,
        connection: &mut Connection,
        (correlation, op): (u64, Op),
        group: GroupId,
        work: GroupWork,
    ) {
        let pending = connection.keep(Pending::Group(GroupPending::One { correlation, op: op as u8 }));
        let origin = self.origin(connection, u64::from(pending));
        self.ask(connection, origin, group.coordinator(self.mail.shards()).0, Work::Group(work));
    }

    fn ask_by_name(
        &mut self,
        connection: &mut Connection,
        (correlation, op): (u64, Op),
        name: &str,
        work: GroupWork,
    ) -> Result<(), Refused> {
        let coordinator = coordinator_of(name, self.mail.shards());
        if !self.groups.registry.is_complete(coordinator) {
            return Err(refused(ErrorCode::Recovering));
        }
        let pending = connection.keep(Pending::Group(GroupPending::One { correlation, op: op as u8 }));
        let origin = self.origin(connection, u64::from(pending));
        self.ask(connection, origin, coordinator, Work::Group(work));
        Ok(())
    }

    /// Asks several shards; `pending` counts them.
    fn ask_shards<T>(
        &mut self,
        connection: &mut Connection,
        pending: GroupPending,
        by_shard: Vec<(u16, Vec<T>)>,
        work: impl Fn(Vec<T>) -> GroupWork,
    ) {
        if by_shard.is_empty() {
            put_answer(connection, pending, None);
            return;
        }
        connection.in_flight_bytes += pending.bytes();
        let slot = connection.keep(Pending::Group(pending));
        let origin = self.origin(connection, u64::from(slot));
        for (shard, parts) in by_shard {
            self.ask(connection, origin, shard, Work::Group(work(parts)));
        }
    }

    fn ask_join(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        join: &JoinGroup<'_>,
    ) -> Result<(), Refused> {
        check_group_name(join.group)?;
        let given = Given::check(&join.settings)?;
        let subscriptions = check_subscriptions(join)?;
        let named = join.mode == GroupMode::Broadcast && !join.instance.is_empty();
        if named {
            check_group_name(join.instance).map_err(|(code, text)| (code, format!("instance: {text}")))?;
        }
        let forgets = self.options.planted.has(crate::planted::Bug::InstanceForgotten);
        let life = if forgets { u64::from(self.shard.log().epoch().0) } else { 0 };
        let work = GroupWork::Join(Box::new(Join {
            group: join.group.to_owned(),
            create: join.create,
            given,
            join: Joining {
                member: join.member,
                name: join.name.to_owned(),
                instance_name: if named { join.instance.to_owned() } else { String::new() },
                instance: if named { name_hash(join.instance) ^ life } else { 0 },
                session_ms: join.session_ms,
                mode: join.mode,
                subscriptions,
            },
        }));
        self.ask_by_name(connection, (correlation, Op::JoinGroup), join.group, work)
    }

    fn ask_commit(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        commit: &CommitOffsets<'_>,
    ) -> Result<(), Refused> {
        let group = GroupId(commit.group);
        let known = self.known_group(group)?;
        if commit.member != 0 && !known.is_member(commit.member) {
            return Err(refused(ErrorCode::NotAMember));
        }
        let count = commit.positions.len();
        let outcomes = vec![Outcome::failed(ErrorCode::UnknownTopic, 0); count];
        let entry = |(index, entry): (u32, &ringmq_protocol::PositionEntry)| {
            (index, PartitionId(entry.partition.get()), Offset(entry.offset.get()))
        };
        // Whoever owns a partition waits for a topic that it has not heard of yet: only what there is goes there.
        let asked = (0..).zip(commit.positions.iter()).map(entry);
        let asked = asked.filter(|(_, id, _)| self.topics.by_partition(*id).is_some());
        let by_shard = self.by_shard(asked, |entry: &(u32, PartitionId, Offset)| entry.1);
        let bytes = count * size_of::<(u32, PartitionId, Offset)>();
        let remaining = by_shard.len() as u32;
        let pending = GroupPending::Commit { correlation, outcomes, remaining, bytes };
        self.ask_shards(connection, pending, by_shard, |positions| {
            GroupWork::Commit(Box::new(Commit {
                group,
                member: commit.member,
                generation: commit.generation,
                instance: commit.instance,
                txn: commit.txn,
                positions,
            }))
        });
        Ok(())
    }

    fn ask_list(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        list: &ListGroups<'_>,
    ) -> Result<(), Refused> {
        let limit = match list.limit as usize {
            0 => LIST_GROUPS_MAX,
            limit => limit.min(LIST_GROUPS_MAX),
        };
        let shards = self.mail.shards();
        let groups = self.groups.registry.after(list.after, shards);
        let row = |known: &super::KnownGroup| Row {
            group: known.entry.group,
            name: known.entry.name.clone(),
            mode: known.entry.mode,
            members: known.members() as u32,
            created_ms: known.entry.created_ms,
        };
        let groups = groups.ok_or_else(|| refused(ErrorCode::Recovering))?;
        let mut rows: Vec<Row> = groups.take(limit + 1).map(row).collect();
        let more = rows.len() > limit;
        rows.truncate(limit);
        let ids: Vec<GroupId> = rows.iter().map(|row| row.group).collect();
        let lags = vec![Lag::default(); rows.len()];
        let pending = GroupPending::List { correlation, rows, lags, more, remaining: u32::from(shards) };
        let by_shard = (0..shards).map(|shard| (shard, ids.clone())).collect();
        self.ask_shards(connection, pending, by_shard, |groups| GroupWork::Lags { groups });
        Ok(())
    }

    fn ask_describe(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        describe: &DescribeGroup<'_>,
    ) -> Result<(), Refused> {
        let shards = self.mail.shards();
        let entry = self.groups.registry.by_name(describe.name, shards).map_err(refused)?.entry.clone();
        let (topic, index, instance) = describe.after;
        let after = match topic.0 {
            0 => None,
            _ => {
                let known = self.topics.by_id(topic).ok_or_else(|| refused(ErrorCode::UnknownTopic))?;
                let partition = known.first_partition.0.checked_add(index);
                Some((PartitionId(partition.ok_or_else(|| refused(ErrorCode::UnknownPartition))?), instance))
            }
        };
        let limit = match describe.limit as usize {
            0 => DESCRIBE_POSITIONS_MAX,
            limit => limit.min(DESCRIBE_POSITIONS_MAX),
        };
        let group = entry.group;
        let describing = Describing {
            correlation,
            entry,
            after,
            limit,
            members: None,
            rows: Vec::new(),
            lag: Lag::default(),
            remaining: 1,
        };
        let with_members = describe.with_members;
        let pending = GroupPending::Describe(Box::new(describing));
        let coordinator = vec![(group.coordinator(shards).0, vec![()])];
        self.ask_shards(connection, pending, coordinator, |_| GroupWork::Members {
            group,
            after,
            limit,
            with_members,
        });
        Ok(())
    }

    fn ask_reset(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        reset: &ResetGroup<'_>,
    ) -> Result<(), Refused> {
        let shards = self.mail.shards();
        let known = self.groups.registry.by_name(reset.group, shards).map_err(refused)?;
        let (group, mode) = (known.entry.group, known.entry.mode);
        if mode == Some(GroupMode::Broadcast) && reset.instance == 0 {
            let text = "instance: in broadcast mode each instance has a position of its own; name one";
            return Err((ErrorCode::InvalidSettings, text.to_owned()));
        }
        if mode != Some(GroupMode::Broadcast) && reset.instance != 0 {
            let text = "instance: only a group in broadcast mode has instances";
            return Err((ErrorCode::InvalidSettings, text.to_owned()));
        }
        let topic = self.topics.by_name(reset.topic).ok_or_else(|| refused(ErrorCode::UnknownTopic))?;
        let first = reset.first_partition;
        if first >= topic.partitions {
            return Err(refused(ErrorCode::UnknownPartition));
        }
        let behind = topic.partitions - first;
        if reset.partitions > behind {
            return Err(refused(ErrorCode::UnknownPartition));
        }
        let count = if reset.partitions == 0 { behind } else { reset.partitions };
        let count = count.min(RESET_PARTITIONS_MAX as u32);
        let base = topic.first_partition.0 + first;
        let by_shard = self.by_shard((0..count).map(|at| (at, PartitionId(base + at))), |entry| entry.1);
        let entries = vec![ResetEntry::new_zeroed(); count as usize];
        let bytes = entries.len() * size_of::<ResetEntry>();
        let remaining = by_shard.len() as u32;
        let pending = GroupPending::Reset { correlation, first, entries, remaining, bytes };
        self.ask_shards(connection, pending, by_shard, |partitions| {
            GroupWork::Reset(Box::new(Reset {
                group,
                instance: reset.instance,
                to: reset.to,
                dry_run: reset.dry_run,
                partitions,
            }))
        });
        Ok(())
    }

    // -- answers -------------------------------------------------------------------------------------------

    /// An answer to something that a connection of this shard has asked.
    pub(super) fn answer_group_request(&mut self, origin: Origin, answer: GroupAnswer) {
        let slot = origin.tag as u32;
        let Some(connection) = self.connection(origin.connection) else { return };
        let mut describe = None;
        let done = match (connection.pending_mut(slot), answer) {
            (Some(Pending::Group(_)), GroupAnswer::Refused(refused)) => Some(Err(refused)),
            (Some(Pending::Group(GroupPending::One { .. })), answer) => Some(Ok(Some(answer))),
            (Some(Pending::Group(pending)), answer) => {
                take_part(pending, answer, &mut describe).then_some(Ok(None))
            }
            _ => return,
        };
        let mut errors = 0;
        if let Some(done) = done
            && let Some(Pending::Group(pending)) = connection.take_pending(slot)
        {
            connection.in_flight_bytes -= pending.bytes();
            match done {
                Ok(answer) => put_answer(connection, pending, answer),
                Err(refused) => {
                    errors += 1;
                    put_error(connection, pending.head(), &refused);
                }
            }
        }
        self.stats.request_errors += errors;
        self.recharge(origin.connection);
        self.touched.push(origin.connection.slot);
        if let Some((group, after, limit, reported)) = describe {
            let shards = self.mail.shards();
            for shard in 0..shards {
                if let Some(connection) = self.connection(origin.connection)
                    && shard != origin.shard
                {
                    connection.known_to.insert(shard);
                }
                let reported = reported.clone();
                let positions = Box::new(Positions { group, after, limit, reported });
                self.dispatch(origin, shard, Work::Group(GroupWork::Positions(positions)));
            }
            if let Some(connection) = self.connection(origin.connection)
                && let Some(Pending::Group(GroupPending::Describe(describing))) = connection.pending_mut(slot)
            {
                describing.remaining = u32::from(shards);
            }
        }
    }
}

/// The second part of a DESCRIBE_GROUP: group, position to go on behind, limit, positions that members report.
type DescribePositions = (GroupId, Option<(PartitionId, u64)>, usize, Vec<(PartitionId, u64, u64)>);

/// Takes what one of several shards has answered. Answers whether it was the last one.
fn take_part(
    pending: &mut GroupPending,
    answer: GroupAnswer,
    describe: &mut Option<DescribePositions>,
) -> bool {
    let remaining = match (pending, answer) {
        (GroupPending::Commit { outcomes, remaining, .. }, GroupAnswer::Committed(parts)) => {
            put_parts(outcomes, parts);
            remaining
        }
        (GroupPending::Fetch { offsets, remaining, .. }, GroupAnswer::Fetched(parts)) => {
            put_parts(offsets, parts);
            remaining
        }
        (GroupPending::Reset { first, entries, remaining, .. }, GroupAnswer::Reset(parts)) => {
            let first = *first;
            let place = |(at, entry): (u32, ResetEntry)| {
                (at, ResetEntry { partition: U32::new(first + at), ..entry })
            };
            put_parts(entries, parts.into_iter().map(place).collect());
            remaining
        }
        (GroupPending::List { lags, remaining, .. }, GroupAnswer::Lags(parts)) => {
            lags.iter_mut().zip(&parts).for_each(|(lag, part)| lag.add(part));
            remaining
        }
        (GroupPending::Describe(describing), GroupAnswer::Members(members)) => {
            *describe =
                Some((describing.entry.group, describing.after, describing.limit, members.reported.clone()));
            describing.members = Some(members);
            return false;
        }
        (GroupPending::Describe(describing), GroupAnswer::Positions(found)) => {
            let FoundPositions { rows, lag } = *found;
            describing.rows.extend(rows);
            describing.lag.add(&lag);
            &mut describing.remaining
        }
        _ => return false,
    };
    *remaining -= 1;
    *remaining == 0
}

fn put_parts<T>(all: &mut [T], parts: Vec<(u32, T)>) {
    for (at, part) in parts {
        if let Some(place) = all.get_mut(at as usize) {
            *place = part;
        }
    }
}

fn put_answer(connection: &mut Connection, pending: GroupPending, answer: Option<GroupAnswer>) {
    let out = &mut connection.out;
    match pending {
        GroupPending::One { correlation, op } => match answer {
            Some(GroupAnswer::Joined(joined)) => Response::Joined(Joined {
                group: joined.group.0,
                member: joined.member,
                instance: joined.instance,
                generation: joined.generation,
                session_ms: joined.session_ms,
                heartbeat_ms: joined.heartbeat_ms(),
                assignments: joined.assignments.items(),
            })
            .encode(correlation, 0, out),
            Some(GroupAnswer::Beat { generation, heartbeat_ms, assignments }) => {
                let answer = HeartbeatAnswer { generation, heartbeat_ms, assignments: assignments.items() };
                Response::Heartbeat(answer).encode(correlation, 0, out);
            }
            Some(GroupAnswer::Left) => Response::Left.encode(correlation, 0, out),
            Some(GroupAnswer::Set { group }) => Response::GroupSet(group.0).encode(correlation, 0, out),
            Some(GroupAnswer::Deleted) => Response::GroupDeleted.encode(correlation, 0, out),
            _ => put_error(connection, (correlation, op), &refused(ErrorCode::Internal)),
        },
        GroupPending::Commit { correlation, outcomes, .. } => {
            Response::Committed(&outcomes).encode(correlation, 0, out);
        }
        GroupPending::Fetch { correlation, offsets, .. } => {
            Response::FetchedOffsets(&offsets).encode(correlation, 0, out);
        }
        GroupPending::List { correlation, rows, lags, more, .. } => {
            let mut groups = ItemsBuf::default();
            for (row, lag) in rows.iter().zip(&lags) {
                groups.push(&GroupEntry {
                    group: row.group.0,
                    name: &row.name,
                    mode: row.mode,
                    members: row.members,
                    topics: lag.topics.len() as u32,
                    created_ms: row.created_ms,
                    lag_records: lag.records,
                    lag_ms: lag.ms,
                });
            }
            Response::Groups(GroupPage { groups: groups.items(), more }).encode(correlation, 0, out);
        }
        GroupPending::Describe(describing) => put_description(out, *describing),
        GroupPending::Reset { correlation, first, entries, .. } => {
            let reset = GroupReset { first_partition: first, entries: &entries };
            Response::GroupReset(reset).encode(correlation, 0, out);
        }
    }
}

fn put_description(out: &mut Vec<u8>, mut describing: Describing) {
    describing.rows.sort_unstable_by_key(|row| (row.0, row.1));
    let more = describing.rows.len() > describing.limit;
    describing.rows.truncate(describing.limit);
    let Describing { correlation, entry, members, lag, rows, .. } = describing;
    let Some(members) = members else { return };
    let owners: BTreeMap<PartitionId, u64> = members.owners.into_iter().collect();
    let instances: BTreeMap<u64, u64> = members.instances.into_iter().collect();
    let position = |(partition, instance, mut row): (PartitionId, u64, GroupPosition)| {
        let holder = if instance == 0 { owners.get(&partition) } else { instances.get(&instance) };
        if let Some(holder) = holder {
            row.member = U64::new(*holder);
        }
        row
    };
    let positions: Vec<GroupPosition> = rows.into_iter().map(position).collect();
    let steps: Vec<U32> = entry.options.backoff_ms.iter().map(|step| U32::new(*step)).collect();
    let mut subscriptions = ItemsBuf::default();
    for one in &entry.subscriptions {
        subscriptions.push(&Subscription { topic: &one.topic, filter: &one.filter });
    }
    let group = GroupEntry {
        group: entry.group.0,
        name: &entry.name,
        mode: entry.mode,
        members: members.count,
        topics: lag.topics.len() as u32,
        created_ms: entry.created_ms,
        lag_records: lag.records,
        lag_ms: lag.ms,
    };
    Response::DescribedGroup(DescribedGroup {
        group,
        generation: members.generation,
        settings: wire_settings(&entry.options, &steps),
        subscriptions: subscriptions.items(),
        members: members.members.items(),
        positions: &positions,
        more,
    })
    .encode(correlation, 0, out);
}
