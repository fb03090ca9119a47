//! Being a member of a consumer group: joining, heartbeats, positions.
//!
//! A group has an id, given with it and never reused; hot operations carry the id and the member's number, never a
//! name. The *generation* of a group changes whenever its assignment does; who acts under an older one than the
//! partition has seen is refused.

use crate::fields::{Fields, clip, put, put_string};
use crate::group_settings::GroupSettings;
use crate::items::{Item, Items};
use crate::limits::{
    FILTER_STRING_MAX, HEARTBEAT_POSITIONS_MAX, NAME_STRING_MAX, OFFSETS_MAX, SUBSCRIPTIONS_OF_MEMBER_MAX,
    TOPIC_PARTITIONS_ASSIGNED_MAX,
};
use crate::request::{wire, wire_open};
pub use ringmq_format::consumer_group::GroupMode;
use ringmq_format::{PartitionId, TopicId};
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

wire! {
    /// JOIN_GROUP; then the group's, the member's and the instance's name, the settings, and `subscriptions`
    /// subscriptions.
    JoinGroupHead = 24 {
        member: U64, session_ms: U32, subscriptions: U32, mode: u8, flags: u8, reserved: [u8; 6],
    }
    /// Answer to JOIN_GROUP; then `assignments` assignments.
    JoinedHead = 40 {
        generation: U64, member: U64, instance: U64, group: U32, session_ms: U32, heartbeat_ms: U32,
        assignments: U32,
    }
    /// A topic of an assignment; then its name, then `assigned` indices of four bytes.
    AssignmentHead = 24 {
        topic: U32, base_partition: U32, partitions: U32, assigned: U32, name_len: U16, flags: U16, reserved: U32,
    }
    /// HEARTBEAT; then `positions` positions.
    HeartbeatHead = 32 {
        generation: U64, member: U64, group: U32, wait_ms: U32, positions: U32, reserved: U32,
    }
    /// Answer to HEARTBEAT; then `assignments` assignments.
    HeartbeatAnswerHead = 16 { generation: U64, heartbeat_ms: U32, assignments: U32, }
    /// LEAVE_GROUP.
    LeaveGroupWire = 16 { member: U64, group: U32, flags: U32, }
    /// COMMIT_OFFSETS; then `count` entries.
    CommitOffsetsHead = 48 {
        txn: U128, generation: U64, member: U64, instance: U64, group: U32, count: U32,
    }
    /// FETCH_OFFSETS; then `count` partition ids of four bytes.
    FetchOffsetsHead = 40 {
        generation: U64, member: U64, instance: U64, group: U32, count: U32, flags: U32, reserved: U32,
    }
}

wire_open! {
    /// A position: of a heartbeat, or to be committed.
    PositionEntry = 16 {
        /// Id of the partition.
        partition: U32,
        /// Zero.
        reserved: U32,
        /// The first offset that is not consumed.
        offset: U64,
    }
    /// What became of one of several things that were asked at once.
    Outcome = 8 {
        /// 0, or number of an [`crate::ErrorCode`].
        code: U16,
        /// Zero.
        reserved: U16,
        /// With a retriable code: how long to wait at least; 0 leaves it to the client.
        retry_after_ms: U32,
    }
    /// A position that was asked for.
    FetchedOffset = 32 {
        /// 0, or number of an [`crate::ErrorCode`].
        code: U16,
        /// [`FETCHED_COMMITTED`].
        flags: U16,
        /// With a retriable code: how long to wait at least; 0 leaves it to the client.
        retry_after_ms: U32,
        /// Where to go on: what was committed, or where the group starts.
        offset: U64,
        /// Generation under which the partition is claimed; 0 if it never was.
        generation: U64,
        /// First offset that cannot be read yet.
        visible_end: U64,
    }
}

/// JOIN_GROUP: make the group if it does not exist, with the settings that follow.
pub const JOIN_CREATE: u8 = 1;
/// LEAVE_GROUP: forget the positions of a broadcast instance.
pub const LEAVE_FORGET: u32 = 1;
/// FETCH_OFFSETS: from now on only this generation or a newer one may commit in these partitions.
pub const OFFSETS_CLAIM: u32 = 1;
/// In [`FetchedOffset`]: the group has a position in this partition; otherwise the offset is where its settings start.
pub const FETCHED_COMMITTED: u16 = 1;
const ASSIGNED_ALL: u16 = 1;

/// A topic and which of its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription<'a> {
    /// The topic.
    pub topic: &'a str,
    /// A tag expression (`a || b`), or an SQL92 expression on properties; empty or `*` is all.
    pub filter: &'a str,
}

impl<'a> Item<'a> for Subscription<'a> {
    fn take(fields: &mut Fields<'a>) -> Option<Self> {
        Some(Self { topic: fields.string(NAME_STRING_MAX)?, filter: fields.string(FILTER_STRING_MAX)? })
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_string(out, self.topic, NAME_STRING_MAX);
        put_string(out, self.filter, FILTER_STRING_MAX);
    }
}

/// Makes this connection's program a member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinGroup<'a> {
    /// The group.
    pub group: &'a str,
    /// How it consumes; all members the same.
    pub mode: GroupMode,
    /// 0 for a new member; otherwise the number from before, to keep what was assigned.
    pub member: u64,
    /// What the member calls itself, for lists and errors.
    pub name: &'a str,
    /// Broadcast: the stable name under which the position is kept; empty for one that is not.
    pub instance: &'a str,
    /// Silence after which the member is dropped; 0 leaves it to the server.
    pub session_ms: u32,
    /// Make the group if it does not exist.
    pub create: bool,
    /// Of the group, if it is made now; what is not given takes its default.
    pub settings: GroupSettings<'a>,
    /// What is consumed; all members the same.
    pub subscriptions: Items<'a, Subscription<'a>>,
}

impl<'a> JoinGroup<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<JoinGroupHead>()?;
        let join = Self {
            mode: GroupMode::parse(head.mode)?,
            member: head.member.get(),
            session_ms: head.session_ms.get(),
            create: head.flags == JOIN_CREATE,
            group: fields.string(NAME_STRING_MAX)?,
            name: fields.string(NAME_STRING_MAX)?,
            instance: fields.string(NAME_STRING_MAX)?,
            settings: GroupSettings::take(&mut fields, true)?,
            subscriptions: fields.items(head.subscriptions.get(), SUBSCRIPTIONS_OF_MEMBER_MAX)?,
        };
        let valid = head.flags <= JOIN_CREATE && head.reserved == [0; 6] && !join.subscriptions.is_empty();
        fields.end(join).filter(|_| valid)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &JoinGroupHead {
                member: U64::new(self.member),
                session_ms: U32::new(self.session_ms),
                subscriptions: U32::new(self.subscriptions.len() as u32),
                mode: self.mode as u8,
                flags: if self.create { JOIN_CREATE } else { 0 },
                reserved: [0; 6],
            },
        );
        put_string(out, self.group, NAME_STRING_MAX);
        put_string(out, self.name, NAME_STRING_MAX);
        put_string(out, self.instance, NAME_STRING_MAX);
        self.settings.put(out);
        self.subscriptions.put(out);
    }
}

/// Partitions of a topic that a member has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment<'a> {
    /// The topic.
    pub topic: TopicId,
    /// Its name.
    pub name: &'a str,
    /// Id of its first partition; the others follow.
    pub base_partition: PartitionId,
    /// How many partitions the topic has.
    pub partitions: u32,
    /// Indices of those assigned; `None` is all of them.
    pub assigned: Option<&'a [U32]>,
}

impl<'a> Assignment<'a> {
    /// Indices of the partitions that are assigned.
    pub fn indices(&self) -> impl Iterator<Item = u32> + use<'a> {
        let all = 0..if self.assigned.is_none() { self.partitions } else { 0 };
        all.chain(self.assigned.unwrap_or_default().iter().map(|index| index.get()))
    }
}

impl<'a> Item<'a> for Assignment<'a> {
    fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<AssignmentHead>()?;
        let name = fields.text(usize::from(head.name_len.get()), NAME_STRING_MAX)?;
        let count = head.assigned.get() as usize;
        if count > TOPIC_PARTITIONS_ASSIGNED_MAX {
            return None;
        }
        let indices = fields.slice::<U32>(count)?;
        Some(Self {
            topic: TopicId(head.topic.get()),
            name,
            base_partition: PartitionId(head.base_partition.get()),
            partitions: head.partitions.get(),
            assigned: (head.flags.get() & ASSIGNED_ALL == 0).then_some(indices),
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        let name = clip(self.name, NAME_STRING_MAX);
        let indices = self.assigned.unwrap_or_default();
        put(
            out,
            &AssignmentHead {
                topic: U32::new(self.topic.0),
                base_partition: U32::new(self.base_partition.0),
                partitions: U32::new(self.partitions),
                assigned: U32::new(indices.len() as u32),
                name_len: U16::new(name.len() as u16),
                flags: U16::new(if self.assigned.is_none() { ASSIGNED_ALL } else { 0 }),
                reserved: U32::ZERO,
            },
        );
        out.extend_from_slice(name.as_bytes());
        put(out, indices);
    }
}

/// Answer to JOIN_GROUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined<'a> {
    /// Id of the group.
    pub group: u32,
    /// The member's number, for all that it asks from now on.
    pub member: u64,
    /// Broadcast with a stable name: number of the instance, for positions; otherwise 0.
    pub instance: u64,
    /// Generation of the assignment.
    pub generation: u64,
    /// Silence after which the member is dropped.
    pub session_ms: u32,
    /// How often to say HEARTBEAT.
    pub heartbeat_ms: u32,
    /// What the member has; in queue and broadcast mode all partitions.
    pub assignments: Items<'a, Assignment<'a>>,
}

impl<'a> Joined<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<JoinedHead>()?;
        Some(Self {
            group: head.group.get(),
            member: head.member.get(),
            instance: head.instance.get(),
            generation: head.generation.get(),
            session_ms: head.session_ms.get(),
            heartbeat_ms: head.heartbeat_ms.get(),
            assignments: fields.items(head.assignments.get(), SUBSCRIPTIONS_OF_MEMBER_MAX)?,
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &JoinedHead {
                generation: U64::new(self.generation),
                member: U64::new(self.member),
                instance: U64::new(self.instance),
                group: U32::new(self.group),
                session_ms: U32::new(self.session_ms),
                heartbeat_ms: U32::new(self.heartbeat_ms),
                assignments: U32::new(self.assignments.len() as u32),
            },
        );
        self.assignments.put(out);
    }
}

/// Says that a member lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat<'a> {
    /// Id of the group.
    pub group: u32,
    /// The member.
    pub member: u64,
    /// The generation that it knows.
    pub generation: u64,
    /// With that generation being the newest: how long the server may wait for another one before it answers.
    pub wait_ms: u32,
    /// Where it stands, for lists: a subscriber that commits nothing is seen by this alone.
    pub positions: &'a [PositionEntry],
}

impl<'a> Heartbeat<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<HeartbeatHead>()?;
        let count = head.positions.get() as usize;
        if count > HEARTBEAT_POSITIONS_MAX || head.reserved != U32::ZERO {
            return None;
        }
        let positions = positions(&mut fields, count)?;
        fields.end(Self {
            group: head.group.get(),
            member: head.member.get(),
            generation: head.generation.get(),
            wait_ms: head.wait_ms.get(),
            positions,
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &HeartbeatHead {
                generation: U64::new(self.generation),
                member: U64::new(self.member),
                group: U32::new(self.group),
                wait_ms: U32::new(self.wait_ms),
                positions: U32::new(self.positions.len() as u32),
                reserved: U32::ZERO,
            },
        );
        put(out, self.positions);
    }
}

fn positions<'a>(fields: &mut Fields<'a>, count: usize) -> Option<&'a [PositionEntry]> {
    let entries = fields.slice::<PositionEntry>(count)?;
    entries.iter().all(|entry| entry.reserved == U32::ZERO).then_some(entries)
}

/// Answer to HEARTBEAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatAnswer<'a> {
    /// Newest generation of the group.
    pub generation: u64,
    /// How often to say HEARTBEAT.
    pub heartbeat_ms: u32,
    /// What the member has now, if the generation is not the one that it knew; otherwise empty.
    pub assignments: Items<'a, Assignment<'a>>,
}

impl<'a> HeartbeatAnswer<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<HeartbeatAnswerHead>()?;
        Some(Self {
            generation: head.generation.get(),
            heartbeat_ms: head.heartbeat_ms.get(),
            assignments: fields.items(head.assignments.get(), SUBSCRIPTIONS_OF_MEMBER_MAX)?,
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &HeartbeatAnswerHead {
                generation: U64::new(self.generation),
                heartbeat_ms: U32::new(self.heartbeat_ms),
                assignments: U32::new(self.assignments.len() as u32),
            },
        );
        self.assignments.put(out);
    }
}

/// Ends a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaveGroup {
    /// Id of the group.
    pub group: u32,
    /// The member.
    pub member: u64,
    /// Broadcast: forget the instance's position too.
    pub forget: bool,
}

impl LeaveGroup {
    pub(crate) fn take(mut fields: Fields<'_>) -> Option<Self> {
        let wire = fields.take::<LeaveGroupWire>()?;
        let forget = wire.flags.get() == LEAVE_FORGET;
        let leave = Self { group: wire.group.get(), member: wire.member.get(), forget };
        fields.end(leave).filter(|_| wire.flags.get() <= LEAVE_FORGET)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = U32::new(if self.forget { LEAVE_FORGET } else { 0 });
        put(out, &LeaveGroupWire { member: U64::new(self.member), group: U32::new(self.group), flags });
    }
}

/// Makes positions durable: each says that everything below it is consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitOffsets<'a> {
    /// Id of the group.
    pub group: u32,
    /// The member; 0 for an operator or a program that assigns partitions to itself.
    pub member: u64,
    /// The member's generation; a partition that was claimed by a newer one refuses it.
    pub generation: u64,
    /// Broadcast: number of the instance; otherwise 0.
    pub instance: u64,
    /// The transaction with which these positions take effect; 0: at once.
    pub txn: u128,
    /// The positions.
    pub positions: &'a [PositionEntry],
}

impl<'a> CommitOffsets<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<CommitOffsetsHead>()?;
        let count = head.count.get() as usize;
        if count == 0 || count > OFFSETS_MAX {
            return None;
        }
        let positions = positions(&mut fields, count)?;
        fields.end(Self {
            group: head.group.get(),
            member: head.member.get(),
            generation: head.generation.get(),
            instance: head.instance.get(),
            txn: head.txn.get(),
            positions,
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &CommitOffsetsHead {
                txn: U128::new(self.txn),
                generation: U64::new(self.generation),
                member: U64::new(self.member),
                instance: U64::new(self.instance),
                group: U32::new(self.group),
                count: U32::new(self.positions.len() as u32),
            },
        );
        put(out, self.positions);
    }
}

/// Asks where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchOffsets<'a> {
    /// Id of the group.
    pub group: u32,
    /// The member; 0 for somebody who only looks.
    pub member: u64,
    /// The member's generation.
    pub generation: u64,
    /// Broadcast: number of the instance; otherwise 0.
    pub instance: u64,
    /// From now on only this generation or a newer one may commit there.
    pub claim: bool,
    /// Ids of the partitions.
    pub partitions: &'a [U32],
}

impl<'a> FetchOffsets<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<FetchOffsetsHead>()?;
        let count = head.count.get() as usize;
        if count == 0 || count > OFFSETS_MAX {
            return None;
        }
        let offsets = Self {
            group: head.group.get(),
            member: head.member.get(),
            generation: head.generation.get(),
            instance: head.instance.get(),
            claim: head.flags.get() == OFFSETS_CLAIM,
            partitions: fields.slice(count)?,
        };
        let valid = head.flags.get() <= OFFSETS_CLAIM && head.reserved == U32::ZERO;
        fields.end(offsets).filter(|_| valid)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &FetchOffsetsHead {
                generation: U64::new(self.generation),
                member: U64::new(self.member),
                instance: U64::new(self.instance),
                group: U32::new(self.group),
                count: U32::new(self.partitions.len() as u32),
                flags: U32::new(if self.claim { OFFSETS_CLAIM } else { 0 }),
                reserved: U32::ZERO,
            },
        );
        put(out, self.partitions);
    }
}

impl PositionEntry {
    /// From plain numbers.
    pub fn new(partition: PartitionId, offset: u64) -> Self {
        Self { partition: U32::new(partition.0), reserved: U32::ZERO, offset: U64::new(offset) }
    }
}

impl Outcome {
    /// Done.
    pub const DONE: Self = Self { code: U16::ZERO, reserved: U16::ZERO, retry_after_ms: U32::ZERO };

    /// Not done, or not known to be.
    pub fn failed(code: crate::ErrorCode, retry_after_ms: u32) -> Self {
        Self { code: U16::new(code as u16), retry_after_ms: U32::new(retry_after_ms), ..Self::new_zeroed() }
    }

    /// Done, and durable.
    pub fn is_done(&self) -> bool {
        self.code == U16::ZERO
    }
}

impl FetchedOffset {
    /// Not known.
    pub fn failed(code: crate::ErrorCode, retry_after_ms: u32) -> Self {
        Self { code: U16::new(code as u16), retry_after_ms: U32::new(retry_after_ms), ..Self::new_zeroed() }
    }

    /// The group has a position there; otherwise it starts there.
    pub fn is_committed(&self) -> bool {
        self.flags.get() & FETCHED_COMMITTED != 0
    }
}
