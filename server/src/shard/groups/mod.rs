//! Consumer groups: who is a member, what is assigned to whom, where each group stands.
//!
//! A group has a *coordinator*: the shard that its name hashes to. It logs the group, decides about members
//! (`membership`, without I/O) and tells every shard (`coordinator`, `registry`). Positions are kept by the shard of the
//! partition (`offsets`). `requests` is the way from a connection to these and back.

mod coordinator;
mod membership;
mod offsets;
mod registry;
mod requests;
mod settings;
mod work;

use super::ShardServer;
use super::mail::{ConnectionKey, Origin};
use coordinator::Coordinator;
use offsets::Offsets;
use registry::Registry;
#[allow(unused_imports, reason = "its users are being built")]
pub(super) use registry::{GroupEvent, KnownGroup};
pub(super) use requests::GroupPending;
use ringmq_format::catalogue::TopicEntry;
use ringmq_format::{GroupId, PartitionId};
use ringmq_protocol::ErrorCode;
pub(super) use work::{GroupAnswer, GroupWork};

/// What a shard keeps for it.
#[derive(Debug, Default)]
pub(super) struct GroupState {
    registry: Registry,
    coordinator: Coordinator,
    offsets: Offsets,
    /// See [`ShardServer::group_events`].
    events: Vec<GroupEvent>,
}

impl GroupState {
    /// When `turn_groups` wants to be called though nothing has completed.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.coordinator.deadline()
    }

    /// `turn_groups` again without sleeping.
    pub(super) fn has_work(&self) -> bool {
        self.coordinator.has_work() || !self.registry.events.is_empty()
    }

    /// Everything that is kept for somebody's request.
    pub(super) fn count(&self) -> usize {
        self.coordinator.count() + self.offsets.count()
    }

    /// A topic was made, changed or deleted.
    pub(super) fn topic_changed(&mut self, entry: &TopicEntry) {
        self.coordinator.topic_changed(&entry.name);
        if entry.deleted {
            let (first, count) = (entry.first_partition.0, entry.partitions);
            self.offsets.forget_partitions(|id| (first..first + count).contains(&id.0));
        }
    }
}

impl ShardServer {
    /// A group: on every shard, for every group. `Recovering` until its coordinator has told.
    #[allow(dead_code, reason = "its users are being built")]
    pub(super) fn group(&self, group: GroupId) -> Result<&KnownGroup, ErrorCode> {
        self.groups.registry.get(group, self.mail.shards())
    }

    /// What has happened to groups since the turn before, from `turn_groups` to the end of the turn.
    #[allow(dead_code, reason = "its users are being built")]
    pub(super) fn group_events(&self) -> &[GroupEvent] {
        &self.groups.events
    }

    /// Does what a shard has asked of this one.
    pub(super) fn execute_groups(&mut self, origin: Origin, work: GroupWork) {
        match work {
            GroupWork::Commit(commit) => self.commit_offsets(origin, &commit),
            GroupWork::FetchOffsets(fetch) => self.fetch_offsets(origin, fetch),
            GroupWork::Forget { group, instance } => self.forget_instance(origin, group, instance),
            GroupWork::Positions(asked) => self.find_positions(origin, asked),
            GroupWork::Lags { groups } => self.find_lags(origin, groups),
            GroupWork::Reset(reset) => self.reset_offsets(origin, reset),
            GroupWork::Tell { coordinator, epoch, notices } => {
                self.take_notices(coordinator, epoch, notices);
                self.reply_group(origin, GroupAnswer::Told);
            }
            work => {
                if let Some(again) = self.coordinate(origin, work) {
                    self.defer_group_work(origin, again);
                }
            }
        }
    }

    /// Takes what came back.
    pub(super) fn take_groups_answer(&mut self, origin: Origin, answer: GroupAnswer) {
        match answer {
            GroupAnswer::Told => self.notices_were_taken(origin.tag),
            GroupAnswer::Logged { durable } => self.group_is_logged(origin.tag, durable),
            GroupAnswer::Forgotten { failed } => self.position_is_forgotten(origin.tag, failed),
            answer => self.answer_group_request(origin, answer),
        }
    }

    /// Once a turn, after acknowledgements.
    pub(super) fn turn_groups(&mut self) {
        self.groups.events = std::mem::take(&mut self.groups.registry.events);
        self.turn_coordinator();
        self.flush_offsets();
    }

    /// A connection, of this shard or of another, is gone.
    pub(super) fn forget_in_groups(&mut self, shard: u16, connection: ConnectionKey) {
        self.forget_heartbeats(shard, connection);
    }

    /// Partitions, each with its place, by the shard that owns them.
    fn by_shard<T>(
        &self,
        parts: impl Iterator<Item = T>,
        partition: impl Fn(&T) -> PartitionId,
    ) -> Vec<(u16, Vec<T>)> {
        let shards = self.mail.shards();
        let mut by_shard: Vec<(u16, Vec<T>)> = (0..shards).map(|shard| (shard, Vec::new())).collect();
        for part in parts {
            by_shard[usize::from(partition(&part).shard(shards).0)].1.push(part);
        }
        by_shard.retain(|(_, parts)| !parts.is_empty());
        by_shard
    }
}
