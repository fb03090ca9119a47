//! What a shard knows of all groups: their coordinators tell it, all of them at a start and then every change.
//!
//! Invariants  R1  A client is answered that something has changed only when every shard knows it.
//!             R2  Of a coordinator's groups nothing is said before it has told all that it had at its start.

use super::membership::Change;
use super::work::Notice;
use ringmq_format::GroupId;
use ringmq_format::consumer_group::{ConsumerGroup, GroupMode};
use ringmq_format::name::name_hash;
use ringmq_protocol::ErrorCode;
use std::collections::{BTreeMap, BTreeSet};

/// A group, as every shard knows it.
#[derive(Debug)]
pub(in crate::shard) struct KnownGroup {
    /// Name, mode, settings, subscriptions.
    pub(in crate::shard) entry: ConsumerGroup,
    /// Life of its coordinator: high half of its generations.
    pub(in crate::shard) epoch: u32,
    members: BTreeSet<u64>,
}

impl KnownGroup {
    /// Whether this is a member.
    pub(in crate::shard) fn is_member(&self, member: u64) -> bool {
        self.members.contains(&member)
    }

    /// Members now.
    pub(in crate::shard) fn members(&self) -> usize {
        self.members.len()
    }

    /// The filter of its subscription to a topic; `None`: it does not consume the topic.
    #[allow(dead_code, reason = "its users are being built")]
    pub(in crate::shard) fn filter(&self, topic: &str) -> Option<&str> {
        self.entry.subscriptions.iter().find(|one| one.topic == topic).map(|one| one.filter.as_str())
    }

    /// It consumes record by record.
    pub(in crate::shard) fn is_queue(&self) -> bool {
        self.entry.mode == Some(GroupMode::Queue)
    }
}

/// What has changed since the turn before, for whoever keeps something for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum GroupEvent {
    /// Settings, subscriptions or mode.
    Changed(GroupId),
    /// It is no more.
    Removed(GroupId),
    /// A member is no more; `left`: it said so, and what it holds goes on until it ends.
    MemberGone { group: GroupId, member: u64, left: bool },
    /// Its position in a partition was set: what was delivered before is void.
    Reset { group: GroupId, partition: ringmq_format::PartitionId },
}

/// All groups.
#[derive(Debug, Default)]
pub(in crate::shard) struct Registry {
    groups: BTreeMap<GroupId, KnownGroup>,
    by_name: BTreeMap<String, GroupId>,
    complete: BTreeSet<u16>,
    pub(super) events: Vec<GroupEvent>,
}

/// The shard that coordinates a group of this name.
pub(super) fn coordinator_of(name: &str, shards: u16) -> u16 {
    (name_hash(name) % u64::from(shards)) as u16
}

impl Registry {
    /// A group by its id.
    pub(in crate::shard) fn get(&self, group: GroupId, shards: u16) -> Result<&KnownGroup, ErrorCode> {
        if !self.complete.contains(&group.coordinator(shards).0) {
            return Err(ErrorCode::Recovering); // R2
        }
        self.groups.get(&group).ok_or(ErrorCode::UnknownGroup)
    }

    /// A group by its name.
    pub(super) fn by_name(&self, name: &str, shards: u16) -> Result<&KnownGroup, ErrorCode> {
        if !self.complete.contains(&coordinator_of(name, shards)) {
            return Err(ErrorCode::Recovering); // R2
        }
        let group = self.by_name.get(name).ok_or(ErrorCode::UnknownGroup)?;
        self.groups.get(group).ok_or(ErrorCode::UnknownGroup)
    }

    /// Groups with a name behind `after`, by name; `None`: not all are known yet.
    pub(super) fn after<'a>(
        &'a self,
        after: &str,
        shards: u16,
    ) -> Option<impl Iterator<Item = &'a KnownGroup> + use<'a>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let all = self.complete.len() == usize::from(shards);
        let range = (if after.is_empty() { Unbounded } else { Excluded(after) }, Unbounded);
        all.then(|| self.by_name.range::<str, _>(range).filter_map(|(_, group)| self.groups.get(group)))
    }

    /// Groups in all.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// A coordinator has told all that it had.
    pub(super) fn is_complete(&self, coordinator: u16) -> bool {
        self.complete.contains(&coordinator)
    }

    /// Takes what a coordinator tells. Answers groups that are no more.
    pub(super) fn take(&mut self, coordinator: u16, epoch: u32, notices: Vec<Notice>) -> Vec<GroupId> {
        let mut removed = Vec::new();
        for notice in notices {
            match notice {
                Notice::Group(entry) if entry.deleted => {
                    if self.groups.remove(&entry.group).is_some() {
                        self.by_name.remove(&entry.name);
                        self.events.push(GroupEvent::Removed(entry.group));
                    }
                    removed.push(entry.group);
                }
                Notice::Group(entry) => {
                    let group = entry.group;
                    self.by_name.insert(entry.name.clone(), group);
                    match self.groups.get_mut(&group) {
                        Some(known) => known.entry = *entry,
                        None => {
                            let known = KnownGroup { entry: *entry, epoch, members: BTreeSet::new() };
                            self.groups.insert(group, known);
                        }
                    }
                    self.events.push(GroupEvent::Changed(group));
                }
                Notice::Members { group, changes } => {
                    let Some(known) = self.groups.get_mut(&group) else { continue };
                    for change in changes {
                        match change {
                            Change::Joined(member) => {
                                known.members.insert(member);
                            }
                            Change::Gone { member, left } => {
                                known.members.remove(&member);
                                self.events.push(GroupEvent::MemberGone { group, member, left });
                            }
                        }
                    }
                }
                Notice::Complete => {
                    self.complete.insert(coordinator);
                }
            }
        }
        removed
    }
}
