//! Looking at consumer groups and changing them.

use crate::fields::{Fields, clip, put, put_string};
use crate::group::{GroupMode, Subscription};
use crate::group_settings::{GroupSettings, GroupStart};
use crate::items::{Item, Items};
use crate::limits::{
    DESCRIBE_MEMBERS_MAX, DESCRIBE_POSITIONS_MAX, LIST_GROUPS_MAX, NAME_STRING_MAX, RESET_PARTITIONS_MAX,
    SUBSCRIPTIONS_OF_MEMBER_MAX,
};
use crate::request::{flag, wire, wire_open};
use ringmq_format::TopicId;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

wire! {
    /// LIST_GROUPS; then the name after which to go on.
    ListGroupsHead = 8 { limit: U32, reserved: U32, }
    /// Answer to LIST_GROUPS; then `count` groups.
    GroupsHead = 8 { flags: U32, count: U32, }
    /// A group of a list; then its name.
    GroupHead = 40 {
        group: U32, members: U32, topics: U32, name_len: U16, mode: u8, reserved: u8, created_ms: I64,
        lag_records: U64, lag_ms: U64,
    }
    /// DESCRIBE_GROUP; then the name.
    DescribeGroupHead = 24 { after_instance: U64, after_topic: U32, after_partition: U32, limit: U32, flags: U32, }
    /// Answer to DESCRIBE_GROUP; then the group, its settings, `subscriptions` subscriptions, `members` members and
    /// `positions` positions.
    DescribedGroupHead = 24 { generation: U64, flags: U32, subscriptions: U32, members: U32, positions: U32, }
    /// A member; then its name and its instance's.
    MemberHead = 32 {
        member: U64, instance: U64, joined_ms: I64, partitions: U32, silent_ms: U32,
    }
    /// SET_GROUP; then the name and the settings.
    SetGroupHead = 8 { flags: U32, reserved: U32, }
    /// RESET_GROUP; then the group's and the topic's name.
    ResetGroupHead = 32 {
        value: I64, instance: U64, first_partition: U32, partitions: U32, flags: U32, to: u8, reserved: [u8; 3],
    }
    /// Answer to RESET_GROUP; then `count` entries.
    ResetHead = 8 { first_partition: U32, count: U32, }
    /// DELETE_GROUP; then the name.
    DeleteGroupHead = 8 { flags: U32, reserved: U32, }
}

wire_open! {
    /// Where a group stands in a partition.
    GroupPosition = 88 {
        /// Number of the broadcast instance; otherwise 0.
        instance: U64,
        /// Topic.
        topic: U32,
        /// Index of the partition in the topic.
        partition: U32,
        /// Everything below it is consumed.
        watermark: U64,
        /// First offset that cannot be read yet.
        visible_end: U64,
        /// Records that are not consumed; `u64::MAX` if not known.
        lag_records: U64,
        /// Now minus the time at which the first record that is not consumed became visible, milliseconds; 0 if
        /// there is none, `u64::MAX` if not known.
        lag_ms: U64,
        /// Records consumed above the watermark.
        acked_above: U64,
        /// The member that has the partition; 0 in queue mode or if nobody has.
        member: U64,
        /// Generation under which the partition is claimed; 0 if it is not.
        generation: U64,
        /// Records that members hold.
        in_flight: U32,
        /// Records that wait to be delivered again.
        retries: U32,
        /// Dead letters that the group has made of this partition since the server started.
        dead_letters: U64,
    }
    /// What a reset does to a partition.
    ResetEntry = 40 {
        /// Index of the partition in the topic.
        partition: U32,
        /// 0, or number of an [`crate::ErrorCode`].
        code: U16,
        /// Zero.
        reserved: U16,
        /// Position before.
        before: U64,
        /// Position after.
        after: U64,
        /// First offset that can be read.
        log_start: U64,
        /// First offset that cannot be read yet.
        visible_end: U64,
    }
}

/// DESCRIBE_GROUP: with its members.
pub const DESCRIBE_MEMBERS: u32 = 1;
/// SET_GROUP: it must not exist yet.
pub const SET_GROUP_CREATE: u32 = 1;
/// SET_GROUP: it must exist.
pub const SET_GROUP_ALTER: u32 = 2;
/// RESET_GROUP: only say what it would do.
pub const RESET_DRY_RUN: u32 = 1;
/// DELETE_GROUP: even if it has members.
pub const DELETE_GROUP_FORCE: u32 = 1;
const MORE: u32 = 1;

/// Asks for a page of groups, in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListGroups<'a> {
    /// Go on behind this name; empty: from the start.
    pub after: &'a str,
    /// Groups of the page at most; 0 leaves it to the server.
    pub limit: u32,
}

impl<'a> ListGroups<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<ListGroupsHead>()?;
        let list = Self { after: fields.string(NAME_STRING_MAX)?, limit: head.limit.get() };
        fields.end(list).filter(|_| head.reserved == U32::ZERO)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(out, &ListGroupsHead { limit: U32::new(self.limit), reserved: U32::ZERO });
        put_string(out, self.after, NAME_STRING_MAX);
    }
}

/// A group in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupEntry<'a> {
    /// Its id.
    pub group: u32,
    /// Its name.
    pub name: &'a str,
    /// How it consumes; `None` while it has never had a member.
    pub mode: Option<GroupMode>,
    /// Members now.
    pub members: u32,
    /// Topics in which it has a position.
    pub topics: u32,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Records that are not consumed, over all partitions; `u64::MAX` if not known.
    pub lag_records: u64,
    /// The largest lag of a partition, as in [`GroupPosition`], milliseconds; `u64::MAX` if not known.
    pub lag_ms: u64,
}

impl<'a> Item<'a> for GroupEntry<'a> {
    fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<GroupHead>()?;
        let mode = match head.mode {
            0 => None,
            number => Some(GroupMode::parse(number)?),
        };
        Some(Self {
            group: head.group.get(),
            name: fields.text(usize::from(head.name_len.get()), NAME_STRING_MAX)?,
            mode,
            members: head.members.get(),
            topics: head.topics.get(),
            created_ms: head.created_ms.get(),
            lag_records: head.lag_records.get(),
            lag_ms: head.lag_ms.get(),
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        let name = clip(self.name, NAME_STRING_MAX);
        put(
            out,
            &GroupHead {
                group: U32::new(self.group),
                members: U32::new(self.members),
                topics: U32::new(self.topics),
                name_len: U16::new(name.len() as u16),
                mode: self.mode.map_or(0, |mode| mode as u8),
                reserved: 0,
                created_ms: I64::new(self.created_ms),
                lag_records: U64::new(self.lag_records),
                lag_ms: U64::new(self.lag_ms),
            },
        );
        out.extend_from_slice(name.as_bytes());
    }
}

/// A page of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPage<'a> {
    /// The groups.
    pub groups: Items<'a, GroupEntry<'a>>,
    /// There are more behind the last one.
    pub more: bool,
}

impl<'a> GroupPage<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<GroupsHead>()?;
        let groups = fields.items(head.count.get(), LIST_GROUPS_MAX)?;
        Some(Self { groups, more: head.flags.get() & MORE != 0 })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = U32::new(if self.more { MORE } else { 0 });
        put(out, &GroupsHead { flags, count: U32::new(self.groups.len() as u32) });
        self.groups.put(out);
    }
}

/// Asks for a group's state: settings, subscriptions, members, and a page of its positions in the order of topic id,
/// partition and instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribeGroup<'a> {
    /// The group.
    pub name: &'a str,
    /// Go on behind the position of this topic, partition and instance; 0, 0, 0: from the start.
    pub after: (TopicId, u32, u64),
    /// Positions of the page at most; 0 leaves it to the server.
    pub limit: u32,
    /// Members too.
    pub with_members: bool,
}

impl<'a> DescribeGroup<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<DescribeGroupHead>()?;
        let after = (TopicId(head.after_topic.get()), head.after_partition.get(), head.after_instance.get());
        let (limit, with_members) = (head.limit.get(), flag(head.flags, DESCRIBE_MEMBERS)?);
        let name = fields.string(NAME_STRING_MAX)?;
        fields.end(Self { name, after, limit, with_members })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let (topic, partition, instance) = self.after;
        put(
            out,
            &DescribeGroupHead {
                after_instance: U64::new(instance),
                after_topic: U32::new(topic.0),
                after_partition: U32::new(partition),
                limit: U32::new(self.limit),
                flags: U32::new(if self.with_members { DESCRIBE_MEMBERS } else { 0 }),
            },
        );
        put_string(out, self.name, NAME_STRING_MAX);
    }
}

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberEntry<'a> {
    /// Its number.
    pub member: u64,
    /// What it calls itself.
    pub name: &'a str,
    /// Broadcast with a stable name: number of the instance; otherwise 0.
    pub instance: u64,
    /// That name.
    pub instance_name: &'a str,
    /// When it joined, Unix milliseconds.
    pub joined_ms: i64,
    /// Partitions that it has.
    pub partitions: u32,
    /// Time since it was last heard.
    pub silent_ms: u32,
}

impl<'a> Item<'a> for MemberEntry<'a> {
    fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<MemberHead>()?;
        Some(Self {
            member: head.member.get(),
            instance: head.instance.get(),
            joined_ms: head.joined_ms.get(),
            partitions: head.partitions.get(),
            silent_ms: head.silent_ms.get(),
            name: fields.string(NAME_STRING_MAX)?,
            instance_name: fields.string(NAME_STRING_MAX)?,
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &MemberHead {
                member: U64::new(self.member),
                instance: U64::new(self.instance),
                joined_ms: I64::new(self.joined_ms),
                partitions: U32::new(self.partitions),
                silent_ms: U32::new(self.silent_ms),
            },
        );
        put_string(out, self.name, NAME_STRING_MAX);
        put_string(out, self.instance_name, NAME_STRING_MAX);
    }
}

/// Answer to DESCRIBE_GROUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribedGroup<'a> {
    /// The group, with its lag over all partitions.
    pub group: GroupEntry<'a>,
    /// Generation of its assignment; 0 if it has no members.
    pub generation: u64,
    /// Its settings, all of them.
    pub settings: GroupSettings<'a>,
    /// What its members consume.
    pub subscriptions: Items<'a, Subscription<'a>>,
    /// Its members, if they were asked for; at most 1,024 of them.
    pub members: Items<'a, MemberEntry<'a>>,
    /// A page of its positions.
    pub positions: &'a [GroupPosition],
    /// There are more positions behind the last one.
    pub more: bool,
}

impl<'a> DescribedGroup<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<DescribedGroupHead>()?;
        let positions = head.positions.get() as usize;
        if positions > DESCRIBE_POSITIONS_MAX {
            return None;
        }
        Some(Self {
            generation: head.generation.get(),
            more: head.flags.get() & MORE != 0,
            group: GroupEntry::take(fields)?,
            settings: GroupSettings::take(fields, false)?,
            subscriptions: fields.items(head.subscriptions.get(), SUBSCRIPTIONS_OF_MEMBER_MAX)?,
            members: fields.items(head.members.get(), DESCRIBE_MEMBERS_MAX)?,
            positions: fields.slice(positions)?,
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put(
            out,
            &DescribedGroupHead {
                generation: U64::new(self.generation),
                flags: U32::new(if self.more { MORE } else { 0 }),
                subscriptions: U32::new(self.subscriptions.len() as u32),
                members: U32::new(self.members.len() as u32),
                positions: U32::new(self.positions.len() as u32),
            },
        );
        self.group.put(out);
        self.settings.put(out);
        self.subscriptions.put(out);
        self.members.put(out);
        put(out, self.positions);
    }
}

/// Whether SET_GROUP makes or alters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SetGroupMode {
    /// Whichever is needed.
    #[default]
    Upsert,
    /// It must not exist yet.
    Create,
    /// It must exist.
    Alter,
}

/// Makes a group, or alters its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetGroup<'a> {
    /// The group.
    pub name: &'a str,
    /// Which of the two.
    pub mode: SetGroupMode,
    /// The settings; those that are not given stay, or take their defaults.
    pub settings: GroupSettings<'a>,
}

impl<'a> SetGroup<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<SetGroupHead>()?;
        let mode = match head.flags.get() {
            0 => SetGroupMode::Upsert,
            SET_GROUP_CREATE => SetGroupMode::Create,
            SET_GROUP_ALTER => SetGroupMode::Alter,
            _ => return None,
        };
        let name = fields.string(NAME_STRING_MAX)?;
        let set = Self { name, mode, settings: GroupSettings::take(&mut fields, true)? };
        fields.end(set).filter(|_| head.reserved == U32::ZERO)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = match self.mode {
            SetGroupMode::Upsert => 0,
            SetGroupMode::Create => SET_GROUP_CREATE,
            SetGroupMode::Alter => SET_GROUP_ALTER,
        };
        put(out, &SetGroupHead { flags: U32::new(flags), reserved: U32::ZERO });
        put_string(out, self.name, NAME_STRING_MAX);
        self.settings.put(out);
    }
}

/// Moves the positions of a group in a range of a topic's partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetGroup<'a> {
    /// The group.
    pub group: &'a str,
    /// The topic.
    pub topic: &'a str,
    /// Index of the first partition of the range.
    pub first_partition: u32,
    /// Partitions of the range; 0: all that follow, of which the answer may hold only the first ones.
    pub partitions: u32,
    /// Where to.
    pub to: GroupStart,
    /// Broadcast: number of the instance; otherwise 0.
    pub instance: u64,
    /// Only say what it would do.
    pub dry_run: bool,
}

impl<'a> ResetGroup<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<ResetGroupHead>()?;
        let reset = Self {
            group: fields.string(NAME_STRING_MAX)?,
            topic: fields.string(NAME_STRING_MAX)?,
            first_partition: head.first_partition.get(),
            partitions: head.partitions.get(),
            to: GroupStart::parse(head.to, head.value.get())?,
            instance: head.instance.get(),
            dry_run: flag(head.flags, RESET_DRY_RUN)?,
        };
        fields.end(reset).filter(|_| head.reserved == [0; 3])
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let (to, value) = self.to.parts();
        put(
            out,
            &ResetGroupHead {
                value: I64::new(value),
                instance: U64::new(self.instance),
                first_partition: U32::new(self.first_partition),
                partitions: U32::new(self.partitions),
                flags: U32::new(if self.dry_run { RESET_DRY_RUN } else { 0 }),
                to,
                reserved: [0; 3],
            },
        );
        put_string(out, self.group, NAME_STRING_MAX);
        put_string(out, self.topic, NAME_STRING_MAX);
    }
}

/// Answer to RESET_GROUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupReset<'a> {
    /// Index of the first partition.
    pub first_partition: u32,
    /// One for each partition from there on.
    pub entries: &'a [ResetEntry],
}

impl<'a> GroupReset<'a> {
    pub(crate) fn take(fields: &mut Fields<'a>) -> Option<Self> {
        let head = fields.take::<ResetHead>()?;
        let count = head.count.get() as usize;
        if count > RESET_PARTITIONS_MAX {
            return None;
        }
        Some(Self { first_partition: head.first_partition.get(), entries: fields.slice(count)? })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let first_partition = U32::new(self.first_partition);
        put(out, &ResetHead { first_partition, count: U32::new(self.entries.len() as u32) });
        put(out, self.entries);
    }
}

/// Removes a group and its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteGroup<'a> {
    /// The group.
    pub name: &'a str,
    /// Even if it has members, who then have to join again.
    pub force: bool,
}

impl<'a> DeleteGroup<'a> {
    pub(crate) fn take(mut fields: Fields<'a>) -> Option<Self> {
        let head = fields.take::<DeleteGroupHead>()?;
        let name = fields.string(NAME_STRING_MAX)?;
        let delete = Self { name, force: flag(head.flags, DELETE_GROUP_FORCE)? };
        fields.end(delete).filter(|_| head.reserved == U32::ZERO)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let flags = U32::new(if self.force { DELETE_GROUP_FORCE } else { 0 });
        put(out, &DeleteGroupHead { flags, reserved: U32::ZERO });
        put_string(out, self.name, NAME_STRING_MAX);
    }
}
