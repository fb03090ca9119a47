//! What the server answers. Decoding borrows. A client takes reserved bytes and what follows the last field as
//! they are, so that a later server may say more.

use crate::error_code::ErrorCode;
use crate::fetch::FetchFields;
use crate::fields::{Fields, clip, put, put_string};
use crate::group::{FetchedOffset, HeartbeatAnswer, Joined, Outcome};
use crate::group_admin::{DescribedGroup, GroupPage, GroupReset};
use crate::header::{Flags, HEADER_SIZE, Header, Op, begin, end};
use crate::limits::{
    DESCRIBE_PARTITIONS_MAX, ERROR_MESSAGE_MAX, HELLO_STRING_MAX, LIST_TOPICS_MAX, METADATA_NAMES_MAX,
    NAME_STRING_MAX,
};
use crate::produce::ProduceOutcome;
use crate::queue::{ChangedLease, Received, Replayed};
use crate::request::wire;
use crate::timer::{Peeked, TimerChanged, TimerPage};
use crate::topic::{AlteredTopic, TopicStats};
use crate::transaction::{Check, Ended, Registered, TransactionPage};
use ringmq_format::limits::SHARDS_MAX;
use ringmq_format::{PartitionId, TopicId};
use std::fmt;
use zerocopy::little_endian::{I64, U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

wire! {
    /// HELLO; then `ports` ports of two bytes, then the server's version.
    HelloAnswerHead = 32 {
        version: u8, reserved: u8, shard: U16, frame_size_max: U32, request_size_max: U32, ports: U16,
        reserved_too: U16, node: U128,
    }
    /// METADATA, and with `flags` LIST_TOPICS; then `count` topics.
    TopicsHead = 8 { flags: U32, count: U32, }
    /// A topic; then its name.
    TopicHead = 16 { code: U16, name_len: U16, topic: U32, base_partition: U32, partitions: U32, }
    /// DESCRIBE_TOPIC; then `count` partitions, then the topic.
    DescribedHead = 16 { created_ms: I64, first_partition: U32, count: U32, }
    /// OPEN.
    OpenedWire = 24 { partition: U32, reserved: U32, log_start: U64, visible_end: U64, }
    /// SUBSCRIBE.
    BoundsWire = 16 { log_start: U64, visible_end: U64, }
    /// LIST_OFFSETS.
    ListedOffsetWire = 16 { offset: U64, timestamp: I64, }
    /// GOODBYE.
    GoodbyeWire = 8 { grace_ms: U32, reserved: U32, }
    /// SET_GROUP.
    GroupSetWire = 8 { group: U32, reserved: U32, }
    /// Error; then the message.
    ErrorHead = 8 { code: U16, reserved: U16, retry_after_ms: U32, }
}

const LIST_MORE: u32 = 1;

/// Answer to HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloAnswer<'a> {
    /// The version both will speak.
    pub version: u8,
    /// The shard that this connection landed on.
    pub shard: u16,
    /// Port of each shard; the host is the one that the client dialled.
    pub shard_ports: &'a [U16],
    /// Largest frame that is taken.
    pub frame_size_max: u32,
    /// Most bytes behind the header of a request.
    pub request_size_max: u32,
    /// Version of the server, for people.
    pub server: &'a str,
    /// Which data directory this is.
    pub node: u128,
}

/// A topic and where its partitions are: partition `i` is `base_partition + i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicEntry<'a> {
    /// 0, or number of the [`ErrorCode`] for this name; the ids are then 0.
    pub code: u16,
    /// Its id.
    pub topic: TopicId,
    /// Id of its first partition.
    pub base_partition: PartitionId,
    /// Its partitions.
    pub partitions: u32,
    /// Its name.
    pub name: &'a str,
}

impl TopicEntry<'_> {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let name = clip(self.name, NAME_STRING_MAX);
        put(
            out,
            &TopicHead {
                code: U16::new(self.code),
                name_len: U16::new(name.len() as u16),
                topic: U32::new(self.topic.0),
                base_partition: U32::new(self.base_partition.0),
                partitions: U32::new(self.partitions),
            },
        );
        out.extend_from_slice(name.as_bytes());
    }

    pub(crate) fn take<'a>(fields: &mut Fields<'a>) -> Option<TopicEntry<'a>> {
        let head = fields.take::<TopicHead>()?;
        Some(TopicEntry {
            code: head.code.get(),
            topic: TopicId(head.topic.get()),
            base_partition: PartitionId(head.base_partition.get()),
            partitions: head.partitions.get(),
            name: fields.text(usize::from(head.name_len.get()), NAME_STRING_MAX)?,
        })
    }
}

/// Topics of an answer, checked to be well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TopicEntries<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> TopicEntries<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = TopicEntry<'a>> + use<'a> {
        let mut fields = Fields(self.bytes);
        (0..self.count).map_while(move |_| TopicEntry::take(&mut fields))
    }

    fn take(fields: &mut Fields<'a>, count: u32, max: usize) -> Option<Self> {
        let bytes = fields.0;
        if count as usize > max {
            return None;
        }
        for _ in 0..count {
            TopicEntry::take(fields)?;
        }
        Some(Self { count, bytes: &bytes[..bytes.len() - fields.0.len()] })
    }
}

/// Topics being collected for an answer.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TopicEntriesBuf {
    count: u32,
    bytes: Vec<u8>,
}

impl TopicEntriesBuf {
    /// Adds a topic.
    pub fn push(&mut self, entry: &TopicEntry<'_>) {
        entry.put(&mut self.bytes);
        self.count += 1;
    }

    /// How many so far.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// None so far.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// For a response.
    pub fn entries(&self) -> TopicEntries<'_> {
        TopicEntries { count: self.count, bytes: &self.bytes }
    }
}

/// A page of topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicPage<'a> {
    /// The topics.
    pub topics: TopicEntries<'a>,
    /// There are more behind the last one.
    pub more: bool,
}

/// State of a partition.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PartitionEntry {
    /// First offset that can be read.
    pub log_start: U64,
    /// First offset that cannot be read yet.
    pub visible_end: U64,
    /// Bytes of its frames on disk; `u64::MAX` if not known.
    pub bytes: U64,
}

const _: () = assert!(size_of::<PartitionEntry>() == 24);

/// A topic with a page of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribedTopic<'a> {
    /// The topic.
    pub topic: TopicEntry<'a>,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Index of the first partition of the page.
    pub first_partition: u32,
    /// The partitions of the page.
    pub partitions: &'a [PartitionEntry],
}

/// Answer to OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The partition's id.
    pub partition: PartitionId,
    /// What can be read.
    pub bounds: Bounds,
}

/// What of a partition can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// First offset that can be read.
    pub log_start: u64,
    /// First offset that cannot be read yet.
    pub visible_end: u64,
}

/// Answer to LIST_OFFSETS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset.
    pub offset: u64,
    /// Append time of its record, Unix milliseconds; −1 if there is none yet.
    pub timestamp: i64,
}

/// The server drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goodbye {
    /// How long it goes on answering what it has been sent.
    pub grace_ms: u32,
}

/// Own fields of every error answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorBody<'a> {
    /// Number of an [`ErrorCode`]; a later server may send one that is not known here.
    pub code: u16,
    /// With a retriable code: how long to wait at least; 0 leaves it to the client.
    pub retry_after_ms: u32,
    /// For people: what exactly was wrong.
    pub message: &'a str,
}

impl ErrorBody<'_> {
    /// Appends the error answer to a request, or with [`Op::Push`] the end of a subscription.
    pub fn encode(&self, op: u8, correlation: u64, handle: u32, out: &mut Vec<u8>) {
        let start = begin(out);
        let (code, retry_after_ms) = (U16::new(self.code), U32::new(self.retry_after_ms));
        put(out, &ErrorHead { code, reserved: U16::ZERO, retry_after_ms });
        put_string(out, self.message, ERROR_MESSAGE_MAX);
        let fields_len = out.len() - start - HEADER_SIZE;
        let flags = Flags(Flags::RESPONSE.0 | Flags::ERROR.0);
        end(out, start, op, flags, correlation, handle, fields_len, 0);
    }

    /// The code, if it is known.
    pub fn error_code(&self) -> Option<ErrorCode> {
        ErrorCode::parse(self.code)
    }
}

/// Anything that the server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// To any request, or the end of a subscription.
    Error(ErrorBody<'a>),
    /// To HELLO.
    Hello(HelloAnswer<'a>),
    /// To PING.
    Pong,
    /// To METADATA: one entry for each name, in their order.
    Metadata(TopicEntries<'a>),
    /// To CREATE_TOPIC.
    Created(TopicEntry<'a>),
    /// To DELETE_TOPIC.
    Deleted,
    /// To DESCRIBE_TOPIC.
    Described(DescribedTopic<'a>),
    /// To LIST_TOPICS.
    Listed(TopicPage<'a>),
    /// To OPEN.
    Opened(Opened),
    /// To PRODUCE: one outcome for each slot, in their order.
    Produced(&'a [ProduceOutcome]),
    /// To FETCH; entries follow.
    Fetched(FetchFields),
    /// To SUBSCRIBE.
    Subscribed(Bounds),
    /// To UNSUBSCRIBE: no PUSH of it follows.
    Unsubscribed,
    /// Of a subscription; entries follow.
    Push(FetchFields),
    /// To LIST_OFFSETS.
    ListedOffset(ListedOffset),
    /// See [`Goodbye`].
    Goodbye(Goodbye),
    /// To JOIN_GROUP.
    Joined(Joined<'a>),
    /// To HEARTBEAT.
    Heartbeat(HeartbeatAnswer<'a>),
    /// To RECEIVE; entries follow.
    Received(Received<'a>),
    /// To END_TRANSACTION.
    Ended(Ended),
    /// To REGISTER_PRODUCER.
    Registered(Registered),
    /// To LIST_TIMERS.
    Timers(TimerPage<'a>),
    /// To CHANGE_TIMER.
    TimerChanged(TimerChanged),
    /// To LIST_GROUPS.
    Groups(GroupPage<'a>),
    /// To DESCRIBE_GROUP.
    DescribedGroup(DescribedGroup<'a>),
    /// To RESET_GROUP.
    GroupReset(GroupReset<'a>),
    /// To ALTER_TOPIC.
    AlteredTopic(AlteredTopic<'a>),
    /// To LIST_TRANSACTIONS.
    Transactions(TransactionPage<'a>),
    /// To PEEK_MESSAGE; the frame follows.
    Peeked(Peeked<'a>),
    /// To TOPIC_STATS.
    TopicStats(TopicStats<'a>),
    /// To COMMIT_OFFSETS: one outcome for each position, in their order.
    Committed(&'a [Outcome]),
    /// To FETCH_OFFSETS: one for each partition, in their order.
    FetchedOffsets(&'a [FetchedOffset]),
    /// To ACK: one outcome for each lease, in their order.
    Acked(&'a [Outcome]),
    /// To CHANGE_INVISIBLE: one for each change, in their order.
    Changed(&'a [ChangedLease]),
    /// To REPLAY_DEAD_LETTERS: one for each offset, in their order.
    Replayed(&'a [Replayed]),
    /// To LEAVE_GROUP.
    Left,
    /// To SET_GROUP: the group's id.
    GroupSet(u32),
    /// To DELETE_GROUP.
    GroupDeleted,
    /// See [`Check`]; the frame of the first half follows.
    Check(Check<'a>),
}

/// What a server sent is not what its operation demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// The checksum of the own fields differs.
    PayloadCrc,
    /// The RESPONSE flag is missing.
    NotAResponse,
    /// No such operation, or one that is never answered.
    UnknownOp(u8),
    /// The fields of this operation.
    Fields(Op),
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PayloadCrc => f.write_str("the checksum of a response's own fields differs"),
            Self::NotAResponse => f.write_str("the peer sent a request where a response was due"),
            Self::UnknownOp(op) => write!(f, "the server sent an operation that is not known: {op}"),
            Self::Fields(op) => write!(f, "the server sent impossible fields for {op:?}"),
        }
    }
}

impl std::error::Error for ResponseError {}

/// The response of a header that passed [`Header::parse`], from its own fields. Frames, if any, follow them.
pub fn decode_response<'a>(header: &Header, own_fields: &'a [u8]) -> Result<Response<'a>, ResponseError> {
    header.check_fields(own_fields).map_err(|_| ResponseError::PayloadCrc)?;
    if !header.is_response() {
        return Err(ResponseError::NotAResponse);
    }
    let mut fields = Fields(own_fields);
    if header.is_error() {
        // The operation may be one that only the asker knows.
        return error(fields).ok_or(ResponseError::Fields(header.op().unwrap_or(Op::Ping)));
    }
    let op = header.op().ok_or(ResponseError::UnknownOp(header.op))?;
    let response = match op {
        Op::Hello => hello(fields),
        Op::Ping => Some(Response::Pong),
        Op::Metadata => topics(fields, METADATA_NAMES_MAX).map(|page| Response::Metadata(page.topics)),
        Op::CreateTopic => TopicEntry::take(&mut fields).map(Response::Created),
        Op::DeleteTopic => Some(Response::Deleted),
        Op::DescribeTopic => described(fields),
        Op::ListTopics => topics(fields, LIST_TOPICS_MAX).map(Response::Listed),
        Op::Open => fields.take::<OpenedWire>().map(|wire| {
            let bounds = Bounds { log_start: wire.log_start.get(), visible_end: wire.visible_end.get() };
            Response::Opened(Opened { partition: PartitionId(wire.partition.get()), bounds })
        }),
        Op::Produce => <[ProduceOutcome]>::ref_from_bytes(own_fields).ok().map(Response::Produced),
        Op::Fetch => fields.take::<FetchFields>().map(|fields| Response::Fetched(*fields)),
        Op::Push => fields.take::<FetchFields>().map(|fields| Response::Push(*fields)),
        Op::Subscribe => fields.take::<BoundsWire>().map(|wire| {
            let bounds = Bounds { log_start: wire.log_start.get(), visible_end: wire.visible_end.get() };
            Response::Subscribed(bounds)
        }),
        Op::Unsubscribe => Some(Response::Unsubscribed),
        Op::ListOffsets => fields.take::<ListedOffsetWire>().map(|wire| {
            let (offset, timestamp) = (wire.offset.get(), wire.timestamp.get());
            Response::ListedOffset(ListedOffset { offset, timestamp })
        }),
        Op::Goodbye => fields
            .take::<GoodbyeWire>()
            .map(|wire| Response::Goodbye(Goodbye { grace_ms: wire.grace_ms.get() })),
        Op::JoinGroup => Joined::take(&mut fields).map(Response::Joined),
        Op::Heartbeat => HeartbeatAnswer::take(&mut fields).map(Response::Heartbeat),
        Op::Receive => Received::take(&mut fields).map(Response::Received),
        Op::EndTransaction => Ended::take(&mut fields).map(Response::Ended),
        Op::RegisterProducer => Registered::take(&mut fields).map(Response::Registered),
        Op::ListTimers => TimerPage::take(&mut fields).map(Response::Timers),
        Op::ChangeTimer => TimerChanged::take(&mut fields).map(Response::TimerChanged),
        Op::ListGroups => GroupPage::take(&mut fields).map(Response::Groups),
        Op::DescribeGroup => DescribedGroup::take(&mut fields).map(Response::DescribedGroup),
        Op::ResetGroup => GroupReset::take(&mut fields).map(Response::GroupReset),
        Op::AlterTopic => AlteredTopic::take(&mut fields).map(Response::AlteredTopic),
        Op::ListTransactions => TransactionPage::take(&mut fields).map(Response::Transactions),
        Op::PeekMessage => Peeked::take(&mut fields).map(Response::Peeked),
        Op::TopicStats => TopicStats::take(&mut fields).map(Response::TopicStats),
        Op::CommitOffsets => <[Outcome]>::ref_from_bytes(own_fields).ok().map(Response::Committed),
        Op::FetchOffsets => <[FetchedOffset]>::ref_from_bytes(own_fields).ok().map(Response::FetchedOffsets),
        Op::Ack => <[Outcome]>::ref_from_bytes(own_fields).ok().map(Response::Acked),
        Op::ChangeInvisible => <[ChangedLease]>::ref_from_bytes(own_fields).ok().map(Response::Changed),
        Op::ReplayDeadLetters => <[Replayed]>::ref_from_bytes(own_fields).ok().map(Response::Replayed),
        Op::LeaveGroup => Some(Response::Left),
        Op::SetGroup => fields.take::<GroupSetWire>().map(|wire| Response::GroupSet(wire.group.get())),
        Op::DeleteGroup => Some(Response::GroupDeleted),
        Op::Check => Check::take(&mut fields).map(Response::Check),
        Op::Credit => return Err(ResponseError::UnknownOp(header.op)),
    };
    response.ok_or(ResponseError::Fields(op))
}

fn error(mut fields: Fields<'_>) -> Option<Response<'_>> {
    let head = fields.take::<ErrorHead>()?;
    let message = fields.string(ERROR_MESSAGE_MAX)?;
    let (code, retry_after_ms) = (head.code.get(), head.retry_after_ms.get());
    Some(Response::Error(ErrorBody { code, retry_after_ms, message }))
}

fn hello(mut fields: Fields<'_>) -> Option<Response<'_>> {
    let head = fields.take::<HelloAnswerHead>()?;
    if head.ports.get() > SHARDS_MAX {
        return None;
    }
    let shard_ports = fields.slice::<U16>(usize::from(head.ports.get()))?;
    let server = fields.string(HELLO_STRING_MAX)?;
    Some(Response::Hello(HelloAnswer {
        version: head.version,
        shard: head.shard.get(),
        shard_ports,
        frame_size_max: head.frame_size_max.get(),
        request_size_max: head.request_size_max.get(),
        server,
        node: head.node.get(),
    }))
}

fn topics(mut fields: Fields<'_>, max: usize) -> Option<TopicPage<'_>> {
    let head = fields.take::<TopicsHead>()?;
    let topics = TopicEntries::take(&mut fields, head.count.get(), max)?;
    Some(TopicPage { topics, more: head.flags.get() & LIST_MORE != 0 })
}

fn described(mut fields: Fields<'_>) -> Option<Response<'_>> {
    let head = fields.take::<DescribedHead>()?;
    let count = head.count.get() as usize;
    if count > DESCRIBE_PARTITIONS_MAX {
        return None;
    }
    let partitions = fields.slice::<PartitionEntry>(count)?;
    let topic = TopicEntry::take(&mut fields)?;
    let (created_ms, first_partition) = (head.created_ms.get(), head.first_partition.get());
    Some(Response::Described(DescribedTopic { topic, created_ms, first_partition, partitions }))
}

impl Response<'_> {
    /// Number of the operation; for an error that of the request, which only the caller knows: 0.
    fn op(&self) -> u8 {
        let op = match self {
            Self::Error(_) => return 0,
            Self::Hello(_) => Op::Hello,
            Self::Pong => Op::Ping,
            Self::Metadata(_) => Op::Metadata,
            Self::Created(_) => Op::CreateTopic,
            Self::Deleted => Op::DeleteTopic,
            Self::Described(_) => Op::DescribeTopic,
            Self::Listed(_) => Op::ListTopics,
            Self::Opened(_) => Op::Open,
            Self::Produced(_) => Op::Produce,
            Self::Fetched(_) => Op::Fetch,
            Self::Subscribed(_) => Op::Subscribe,
            Self::Unsubscribed => Op::Unsubscribe,
            Self::Push(_) => Op::Push,
            Self::ListedOffset(_) => Op::ListOffsets,
            Self::Goodbye(_) => Op::Goodbye,
            Self::Joined(_) => Op::JoinGroup,
            Self::Heartbeat(_) => Op::Heartbeat,
            Self::Received(_) => Op::Receive,
            Self::Ended(_) => Op::EndTransaction,
            Self::Registered(_) => Op::RegisterProducer,
            Self::Timers(_) => Op::ListTimers,
            Self::TimerChanged(_) => Op::ChangeTimer,
            Self::Groups(_) => Op::ListGroups,
            Self::DescribedGroup(_) => Op::DescribeGroup,
            Self::GroupReset(_) => Op::ResetGroup,
            Self::AlteredTopic(_) => Op::AlterTopic,
            Self::Transactions(_) => Op::ListTransactions,
            Self::Peeked(_) => Op::PeekMessage,
            Self::TopicStats(_) => Op::TopicStats,
            Self::Committed(_) => Op::CommitOffsets,
            Self::FetchedOffsets(_) => Op::FetchOffsets,
            Self::Acked(_) => Op::Ack,
            Self::Changed(_) => Op::ChangeInvisible,
            Self::Replayed(_) => Op::ReplayDeadLetters,
            Self::Left => Op::LeaveGroup,
            Self::GroupSet(_) => Op::SetGroup,
            Self::GroupDeleted => Op::DeleteGroup,
            Self::Check(_) => Op::Check,
        };
        op as u8
    }

    /// Appends the message to `out`. `handle` is what the request's header said; for PUSH the subscription. A FETCH
    /// answer or PUSH written this way has no entries: see [`crate::fetch::fetch_begin`]; for RECEIVE see
    /// [`Received::encode`], for CHECK [`Check::encode`], for PEEK_MESSAGE [`Peeked::encode`]. An error written this
    /// way has operation 0: see [`ErrorBody::encode`].
    pub fn encode(&self, correlation: u64, handle: u32, out: &mut Vec<u8>) {
        if let Self::Error(body) = self {
            return body.encode(0, correlation, handle, out);
        }
        let start = begin(out);
        self.put_fields(out);
        let fields_len = out.len() - start - HEADER_SIZE;
        end(out, start, self.op(), Flags::RESPONSE, correlation, handle, fields_len, 0);
    }

    fn put_fields(&self, out: &mut Vec<u8>) {
        match self {
            Self::Error(_)
            | Self::Pong
            | Self::Deleted
            | Self::Unsubscribed
            | Self::Left
            | Self::GroupDeleted => {}
            Self::Hello(hello) => {
                assert!(
                    hello.shard_ports.len() <= usize::from(SHARDS_MAX),
                    "{} shards",
                    hello.shard_ports.len()
                );
                put(
                    out,
                    &HelloAnswerHead {
                        version: hello.version,
                        reserved: 0,
                        shard: U16::new(hello.shard),
                        frame_size_max: U32::new(hello.frame_size_max),
                        request_size_max: U32::new(hello.request_size_max),
                        ports: U16::new(hello.shard_ports.len() as u16),
                        reserved_too: U16::ZERO,
                        node: U128::new(hello.node),
                    },
                );
                put(out, hello.shard_ports);
                put_string(out, hello.server, HELLO_STRING_MAX);
            }
            Self::Metadata(topics) => put_topics(out, *topics, 0),
            Self::Listed(page) => put_topics(out, page.topics, if page.more { LIST_MORE } else { 0 }),
            Self::Created(topic) => topic.put(out),
            Self::Described(described) => {
                let (first_partition, count) = (described.first_partition, described.partitions.len() as u32);
                put(
                    out,
                    &DescribedHead {
                        created_ms: I64::new(described.created_ms),
                        first_partition: U32::new(first_partition),
                        count: U32::new(count),
                    },
                );
                put(out, described.partitions);
                described.topic.put(out);
            }
            Self::Opened(opened) => put(
                out,
                &OpenedWire {
                    partition: U32::new(opened.partition.0),
                    reserved: U32::ZERO,
                    log_start: U64::new(opened.bounds.log_start),
                    visible_end: U64::new(opened.bounds.visible_end),
                },
            ),
            Self::Produced(outcomes) => put(out, *outcomes),
            Self::Fetched(fields) | Self::Push(fields) => put(out, fields),
            Self::Subscribed(bounds) => {
                let (log_start, visible_end) = (U64::new(bounds.log_start), U64::new(bounds.visible_end));
                put(out, &BoundsWire { log_start, visible_end });
            }
            Self::ListedOffset(listed) => {
                let (offset, timestamp) = (U64::new(listed.offset), I64::new(listed.timestamp));
                put(out, &ListedOffsetWire { offset, timestamp });
            }
            Self::Goodbye(goodbye) => {
                put(out, &GoodbyeWire { grace_ms: U32::new(goodbye.grace_ms), reserved: U32::ZERO });
            }
            Self::Joined(answer) => answer.put(out),
            Self::Heartbeat(answer) => answer.put(out),
            Self::Received(answer) => answer.put(out),
            Self::Ended(answer) => answer.put(out),
            Self::Registered(answer) => answer.put(out),
            Self::Timers(answer) => answer.put(out),
            Self::TimerChanged(answer) => answer.put(out),
            Self::Groups(answer) => answer.put(out),
            Self::DescribedGroup(answer) => answer.put(out),
            Self::GroupReset(answer) => answer.put(out),
            Self::AlteredTopic(answer) => answer.put(out),
            Self::Transactions(answer) => answer.put(out),
            Self::Peeked(answer) => answer.put(out),
            Self::TopicStats(answer) => answer.put(out),
            Self::Committed(outcomes) | Self::Acked(outcomes) => put(out, *outcomes),
            Self::FetchedOffsets(offsets) => put(out, *offsets),
            Self::Changed(leases) => put(out, *leases),
            Self::Replayed(replayed) => put(out, *replayed),
            Self::GroupSet(group) => put(out, &GroupSetWire { group: U32::new(*group), reserved: U32::ZERO }),
            Self::Check(check) => check.put(out),
        }
    }
}

fn put_topics(out: &mut Vec<u8>, topics: TopicEntries<'_>, flags: u32) {
    put(out, &TopicsHead { flags: U32::new(flags), count: U32::new(topics.count) });
    out.extend_from_slice(topics.bytes);
}
