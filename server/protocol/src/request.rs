//! What a client asks. Decoding borrows; strings are UTF-8 but names are not checked further: whether a name is
//! allowed is `ringmq_format::name`'s to say.
//!
//! Reserved bytes are written as zero and demanded to be zero; nothing may follow the last field.

use crate::error_code::ErrorCode;
use crate::fields::{Fields, put, put_string};
use crate::group::{CommitOffsets, FetchOffsets, Heartbeat, JoinGroup, LeaveGroup};
use crate::group_admin::{DeleteGroup, DescribeGroup, ListGroups, ResetGroup, SetGroup};
use crate::header::{Flags, HEADER_SIZE, Header, Op, begin, end};
use crate::limits::{HELLO_STRING_MAX, METADATA_NAMES_MAX, NAME_STRING_MAX, PRODUCE_FRAMES_MAX};
use crate::produce::{ProduceHead, ProduceSlot};
use crate::queue::{Ack, ChangeInvisible, Receive, ReplayDeadLetters};
use crate::response::ErrorBody;
use crate::timer::{ListTimers, PeekMessage, TimerChange};
use crate::topic::AlterTopic;
use crate::transaction::{EndTransaction, ListTransactions, RegisterProducer};
use ringmq_format::limits::{FRAME_ALIGN, FRAME_HEADER_SIZE, FRAME_SIZE_MAX};
use std::fmt;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident = $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
            #[repr(C)]
            pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $type,)* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}
pub(crate) use wire;

/// Like `wire`, for arrays that callers fill and read in place.
macro_rules! wire_open {
    ($($(#[$doc:meta])* $name:ident = $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(
                Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
            )]
            #[repr(C)]
            pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}
pub(crate) use wire_open;

wire! {
    /// HELLO; then the client's name.
    HelloHead = 4 { version_min: u8, version_max: u8, reserved: U16, }
    /// METADATA; then `count` names.
    MetadataHead = 8 { flags: U32, count: U32, }
    /// CREATE_TOPIC; then the name.
    CreateTopicHead = 8 { partitions: U32, flags: U32, }
    /// DESCRIBE_TOPIC; then the name.
    DescribeTopicHead = 8 { first_partition: U32, limit: U32, }
    /// LIST_TOPICS; then the name after which to go on.
    ListTopicsHead = 8 { limit: U32, reserved: U32, }
    /// OPEN; then the topic.
    OpenHead = 8 { partition: U32, reserved: U32, }
    /// FETCH; then, for a group, [`ForGroupWire`].
    FetchWire = 16 { offset: U64, max_bytes: U32, max_wait_ms: U32, }
    /// SUBSCRIBE; then, for a group, [`ForGroupWire`].
    SubscribeWire = 24 { subscription: U32, reserved: U32, offset: U64, credit: U64, }
    /// Behind the fields of FETCH and SUBSCRIBE.
    ForGroupWire = 8 { group: U32, reserved: U32, }
    /// CREDIT.
    CreditWire = 8 { bytes: U64, }
    /// LIST_OFFSETS.
    ListOffsetsWire = 16 { what: u8, reserved: [u8; 7], time_ms: I64, }
}

/// METADATA: make topics that do not exist, if the server allows it.
pub const METADATA_AUTO_CREATE: u32 = 1;
/// CREATE_TOPIC: a topic of this name that exists is an answer, not an error.
pub const CREATE_IF_NOT_EXISTS: u32 = 1;

/// First request of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Oldest version the client speaks.
    pub version_min: u8,
    /// Newest version the client speaks.
    pub version_max: u8,
    /// What the client calls itself, for the server's lists.
    pub name: &'a str,
}

/// Names of topics, checked to be well-formed strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Names<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> Names<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut fields = Fields(self.bytes);
        std::iter::from_fn(move || fields.string(NAME_STRING_MAX))
    }
}

/// Names being collected for a METADATA.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NamesBuf {
    count: u32,
    bytes: Vec<u8>,
}

impl NamesBuf {
    /// Adds a name; one that is too long is cut, which the server then refuses.
    pub fn push(&mut self, name: &str) {
        put_string(&mut self.bytes, name, NAME_STRING_MAX);
        self.count += 1;
    }

    /// For a request.
    pub fn names(&self) -> Names<'_> {
        Names { count: self.count, bytes: &self.bytes }
    }
}

impl<'a> FromIterator<&'a str> for NamesBuf {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        let mut buf = Self::default();
        names.into_iter().for_each(|name| buf.push(name));
        buf
    }
}

/// Asks where partitions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// Of these topics.
    pub names: Names<'a>,
    /// Make those that do not exist, with one partition, if the server allows it.
    pub auto_create: bool,
}

/// Makes a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateTopic<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its partitions.
    pub partitions: u32,
    /// One that exists is an answer, whatever its partitions.
    pub if_not_exists: bool,
}

/// Asks for a page of a topic's partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribeTopic<'a> {
    /// The topic.
    pub name: &'a str,
    /// Index of the first partition of the page.
    pub first_partition: u32,
    /// Partitions of the page at most; 0 leaves it to the server.
    pub limit: u32,
}

/// Asks for a page of topics, in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListTopics<'a> {
    /// Go on behind this name; empty: from the start.
    pub after: &'a str,
    /// Topics of the page at most; 0 leaves it to the server.
    pub limit: u32,
}

/// Gives a number to a partition, for this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open<'a> {
    /// The number, not 0. Opening the same partition again under it is allowed.
    pub handle: u32,
    /// The topic.
    pub topic: &'a str,
    /// Index of the partition in the topic.
    pub partition: u32,
}

/// Stores frames. They follow the own fields in the order of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produce<'a> {
    /// One for each frame.
    pub slots: &'a [ProduceSlot],
}

impl<'a> Produce<'a> {
    /// Each slot with the range of its frame in the frames part of the request.
    pub fn ranges(&self) -> impl Iterator<Item = (&'a ProduceSlot, std::ops::Range<usize>)> + use<'a> {
        let mut at = 0;
        self.slots.iter().map(move |slot| {
            let from = at;
            at += slot.len.get() as usize;
            (slot, from..at)
        })
    }
}

/// Reads frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Of this partition.
    pub handle: u32,
    /// From the frame that holds this offset.
    pub offset: u64,
    /// Bytes of entries at most; the first one is delivered whatever its size.
    pub max_bytes: u32,
    /// With nothing to read: how long to wait for something.
    pub max_wait_ms: u32,
    /// Id of a consumer group, whose filter, time to live and rate then count; 0: for nobody in particular.
    pub group: u32,
}

/// Has frames pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// Of this partition.
    pub handle: u32,
    /// Number of the subscription, chosen by the client; not 0.
    pub subscription: u32,
    /// From the frame that holds this offset.
    pub offset: u64,
    /// Bytes of entries that may be pushed.
    pub credit: u64,
    /// Id of a consumer group, whose filter, time to live and rate then count; 0: for nobody in particular.
    pub group: u32,
}

/// Adds to a subscription's credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// The subscription.
    pub subscription: u32,
    /// Bytes of entries that may be pushed in addition.
    pub bytes: u64,
}

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first that can be read.
    Earliest,
    /// The first that cannot be read yet.
    Latest,
    /// That of the first record appended at or after this time, Unix milliseconds.
    Time(i64),
}

/// Asks for an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListOffsets {
    /// Of this partition.
    pub handle: u32,
    /// Which one.
    pub what: OffsetSpec,
}

/// Any request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// See [`Hello`].
    Hello(Hello<'a>),
    /// Asks for an empty answer.
    Ping,
    /// See [`Metadata`].
    Metadata(Metadata<'a>),
    /// See [`CreateTopic`].
    CreateTopic(CreateTopic<'a>),
    /// Removes the topic of this name.
    DeleteTopic(&'a str),
    /// See [`DescribeTopic`].
    DescribeTopic(DescribeTopic<'a>),
    /// See [`ListTopics`].
    ListTopics(ListTopics<'a>),
    /// See [`Open`].
    Open(Open<'a>),
    /// See [`Produce`].
    Produce(Produce<'a>),
    /// See [`Fetch`].
    Fetch(Fetch),
    /// See [`Subscribe`].
    Subscribe(Subscribe),
    /// See [`Credit`].
    Credit(Credit),
    /// Ends this subscription.
    Unsubscribe(u32),
    /// See [`ListOffsets`].
    ListOffsets(ListOffsets),
    /// See [`JoinGroup`].
    JoinGroup(JoinGroup<'a>),
    /// See [`Heartbeat`].
    Heartbeat(Heartbeat<'a>),
    /// See [`LeaveGroup`].
    LeaveGroup(LeaveGroup),
    /// See [`CommitOffsets`].
    CommitOffsets(CommitOffsets<'a>),
    /// See [`FetchOffsets`].
    FetchOffsets(FetchOffsets<'a>),
    /// See [`Receive`].
    Receive(Receive),
    /// See [`Ack`].
    Ack(Ack<'a>),
    /// See [`ChangeInvisible`].
    ChangeInvisible(ChangeInvisible<'a>),
    /// See [`EndTransaction`].
    EndTransaction(EndTransaction<'a>),
    /// See [`RegisterProducer`].
    RegisterProducer(RegisterProducer<'a>),
    /// See [`ListTimers`].
    ListTimers(ListTimers<'a>),
    /// See [`TimerChange`].
    ChangeTimer(TimerChange<'a>),
    /// See [`ListGroups`].
    ListGroups(ListGroups<'a>),
    /// See [`DescribeGroup`].
    DescribeGroup(DescribeGroup<'a>),
    /// See [`SetGroup`].
    SetGroup(SetGroup<'a>),
    /// See [`ResetGroup`].
    ResetGroup(ResetGroup<'a>),
    /// See [`DeleteGroup`].
    DeleteGroup(DeleteGroup<'a>),
    /// See [`AlterTopic`].
    AlterTopic(AlterTopic<'a>),
    /// See [`ListTransactions`].
    ListTransactions(ListTransactions<'a>),
    /// See [`ReplayDeadLetters`].
    ReplayDeadLetters(ReplayDeadLetters<'a>),
    /// See [`PeekMessage`].
    PeekMessage(PeekMessage),
    /// Statistics of the topic of this name.
    TopicStats(&'a str),
}

/// A request that is answered with an error; the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code of the answer.
    pub code: ErrorCode,
    /// What exactly was wrong.
    pub what: &'static str,
}

impl Refusal {
    /// The error answer to the request of this header.
    pub fn encode(&self, header: &Header, out: &mut Vec<u8>) {
        ErrorBody { code: self.code as u16, retry_after_ms: 0, message: self.what }.encode(
            header.op,
            header.correlation(),
            header.handle(),
            out,
        );
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.what)
    }
}

impl std::error::Error for Refusal {}

fn malformed(what: &'static str) -> Refusal {
    Refusal { code: ErrorCode::MalformedRequest, what }
}

/// The request of a header that passed [`Header::parse`], from its own fields. Checks H6 and every field; frames
/// are not looked at but their lengths must add up.
pub fn decode_request<'a>(header: &Header, own_fields: &'a [u8]) -> Result<Request<'a>, Refusal> {
    header
        .check_fields(own_fields)
        .map_err(|code| Refusal { code, what: "the checksum of the own fields differs" })?;
    if header.flags.get() != Flags::REQUEST.0 {
        return Err(malformed("a request with the flags of a response"));
    }
    let Some(op) = header.op() else {
        return Err(Refusal { code: ErrorCode::UnknownOp, what: "no such operation" });
    };
    if op != Op::Produce && header.frames_len() > 0 {
        return Err(malformed("frames behind a request that takes none"));
    }
    let fields = Fields(own_fields);
    let handle = header.handle();
    let (request, what) = match op {
        Op::Hello => (hello(fields), "HELLO: fields"),
        Op::Ping => (fields.end(Request::Ping), "PING: takes no fields"),
        Op::Metadata => (metadata(fields), "METADATA: fields or number of names"),
        Op::CreateTopic => (create_topic(fields), "CREATE_TOPIC: fields"),
        Op::DeleteTopic => (delete_topic(fields), "DELETE_TOPIC: name"),
        Op::DescribeTopic => (describe_topic(fields), "DESCRIBE_TOPIC: fields"),
        Op::ListTopics => (list_topics(fields), "LIST_TOPICS: fields"),
        Op::Open => (open(handle, fields), "OPEN: handle 0 or fields"),
        Op::Produce => return produce(header, fields),
        Op::Fetch => (fetch(handle, fields), "FETCH: fields"),
        Op::Subscribe => (subscribe(handle, fields), "SUBSCRIBE: subscription 0 or fields"),
        Op::Credit => (credit(handle, fields), "CREDIT: fields"),
        Op::Unsubscribe => (fields.end(Request::Unsubscribe(handle)), "UNSUBSCRIBE: takes no fields"),
        Op::ListOffsets => (list_offsets(handle, fields), "LIST_OFFSETS: fields"),
        Op::JoinGroup => (JoinGroup::take(fields).map(Request::JoinGroup), "JOIN_GROUP: fields"),
        Op::Heartbeat => (Heartbeat::take(fields).map(Request::Heartbeat), "HEARTBEAT: fields"),
        Op::LeaveGroup => (LeaveGroup::take(fields).map(Request::LeaveGroup), "LEAVE_GROUP: fields"),
        Op::CommitOffsets => (
            CommitOffsets::take(fields).map(Request::CommitOffsets),
            "COMMIT_OFFSETS: number of positions or fields",
        ),
        Op::FetchOffsets => (
            FetchOffsets::take(fields).map(Request::FetchOffsets),
            "FETCH_OFFSETS: number of partitions or fields",
        ),
        Op::Receive => {
            (Receive::take(handle, fields).map(Request::Receive), "RECEIVE: max_records 0 or fields")
        }
        Op::Ack => (Ack::take(handle, fields).map(Request::Ack), "ACK: number of leases or fields"),
        Op::ChangeInvisible => (
            ChangeInvisible::take(handle, fields).map(Request::ChangeInvisible),
            "CHANGE_INVISIBLE: number of changes, kind of change or fields",
        ),
        Op::EndTransaction => (
            EndTransaction::take(fields).map(Request::EndTransaction),
            "END_TRANSACTION: transaction 0, resolution that its source may not give, or fields",
        ),
        Op::RegisterProducer => (
            RegisterProducer::take(handle, fields).map(Request::RegisterProducer),
            "REGISTER_PRODUCER: registration 0 or fields",
        ),
        Op::ListTimers => (ListTimers::take(fields).map(Request::ListTimers), "LIST_TIMERS: fields"),
        Op::ChangeTimer => {
            (TimerChange::take(fields).map(Request::ChangeTimer), "CHANGE_TIMER: kind of change or fields")
        }
        Op::ListGroups => (ListGroups::take(fields).map(Request::ListGroups), "LIST_GROUPS: fields"),
        Op::DescribeGroup => {
            (DescribeGroup::take(fields).map(Request::DescribeGroup), "DESCRIBE_GROUP: fields")
        }
        Op::SetGroup => (SetGroup::take(fields).map(Request::SetGroup), "SET_GROUP: fields"),
        Op::ResetGroup => (ResetGroup::take(fields).map(Request::ResetGroup), "RESET_GROUP: fields"),
        Op::DeleteGroup => (DeleteGroup::take(fields).map(Request::DeleteGroup), "DELETE_GROUP: fields"),
        Op::AlterTopic => (AlterTopic::take(fields).map(Request::AlterTopic), "ALTER_TOPIC: fields"),
        Op::ListTransactions => {
            (ListTransactions::take(fields).map(Request::ListTransactions), "LIST_TRANSACTIONS: fields")
        }
        Op::ReplayDeadLetters => (
            ReplayDeadLetters::take(handle, fields).map(Request::ReplayDeadLetters),
            "REPLAY_DEAD_LETTERS: number of offsets or fields",
        ),
        Op::PeekMessage => (PeekMessage::take(fields).map(Request::PeekMessage), "PEEK_MESSAGE: fields"),
        Op::TopicStats => (topic_stats(fields), "TOPIC_STATS: name"),
        Op::Push | Op::Goodbye | Op::Check => (None, "only the server sends this"),
    };
    request.ok_or(malformed(what))
}

fn hello(mut fields: Fields<'_>) -> Option<Request<'_>> {
    let head = fields.take::<HelloHead>()?;
    let name = fields.string(HELLO_STRING_MAX)?;
    let valid = head.reserved == U16::ZERO && head.version_min <= head.version_max;
    let hello = Hello { version_min: head.version_min, version_max: head.version_max, name };
    fields.end(Request::Hello(hello)).filter(|_| valid)
}

fn metadata(mut fields: Fields<'_>) -> Option<Request<'_>> {
    let head = fields.take::<MetadataHead>()?;
    let names = Names { count: head.count.get(), bytes: fields.0 };
    if names.len() > METADATA_NAMES_MAX {
        return None;
    }
    for _ in 0..names.count {
        fields.string(NAME_STRING_MAX)?;
    }
    let auto_create = flag(head.flags, METADATA_AUTO_CREATE)?;
    fields.end(Request::Metadata(Metadata { names, auto_create }))
}

fn create_topic(mut fields: Fields<'_>) -> Option<Request<'_>> {
    let head = fields.take::<CreateTopicHead>()?;
    let name = fields.string(NAME_STRING_MAX)?;
    let if_not_exists = flag(head.flags, CREATE_IF_NOT_EXISTS)?;
    fields.end(Request::CreateTopic(CreateTopic { name, partitions: head.partitions.get(), if_not_exists }))
}

fn delete_topic(mut fields: Fields<'_>) -> Option<Request<'_>> {
    let name = fields.string(NAME_STRING_MAX)?;
    fields.end(Request::DeleteTopic(name))
}

fn topic_stats(mut fields: Fields<'_>) -> Option<Request<'_>> {
    let name = fields.string(NAME_STRING_MAX)?;
    fields.end(Request::TopicStats(name))
}

fn describe_topic(mut fields: Fields<'_>) -> Option<Request<'_>> {
    let head = fields.take::<DescribeTopicHead>()?;
    let name = fields.string(NAME_STRING_MAX)?;
    let (first_partition, limit) = (head.first_partition.get(), head.limit.get());
    fields.end(Request::DescribeTopic(DescribeTopic { name, first_partition, limit }))
}

fn list_topics(mut fields: Fields<'_>) -> Option<Request<'_>> {
    let head = fields.take::<ListTopicsHead>()?;
    let after = fields.string(NAME_STRING_MAX)?;
    let list = ListTopics { after, limit: head.limit.get() };
    fields.end(Request::ListTopics(list)).filter(|_| head.reserved == U32::ZERO)
}

fn open(handle: u32, mut fields: Fields<'_>) -> Option<Request<'_>> {
    let head = fields.take::<OpenHead>()?;
    let topic = fields.string(NAME_STRING_MAX)?;
    let open = Open { handle, topic, partition: head.partition.get() };
    fields.end(Request::Open(open)).filter(|_| handle != 0 && head.reserved == U32::ZERO)
}

fn produce<'a>(header: &Header, mut fields: Fields<'a>) -> Result<Request<'a>, Refusal> {
    let bad = malformed("PRODUCE: fields or number of frames");
    let head = fields.take::<ProduceHead>().ok_or(bad)?;
    let frames = head.frames.get() as usize;
    if frames == 0 || frames > PRODUCE_FRAMES_MAX || head.reserved != U32::ZERO {
        return Err(bad);
    }
    let slots = fields.slice::<ProduceSlot>(frames).ok_or(bad)?;
    fields.end(()).ok_or(bad)?;
    let mut sum = 0usize;
    for slot in slots {
        let len = slot.len.get() as usize;
        if len > FRAME_SIZE_MAX {
            return Err(Refusal { code: ErrorCode::FrameTooLarge, what: "PRODUCE: a frame above 4 MiB" });
        }
        if len < FRAME_HEADER_SIZE || !len.is_multiple_of(FRAME_ALIGN) {
            return Err(malformed("PRODUCE: a frame's length is below 64 or no multiple of 8"));
        }
        sum += len;
    }
    if sum != header.frames_len() {
        return Err(malformed("PRODUCE: the frames' lengths do not add up"));
    }
    Ok(Request::Produce(Produce { slots }))
}

fn fetch(handle: u32, mut fields: Fields<'_>) -> Option<Request<'_>> {
    let wire = fields.take::<FetchWire>()?;
    let group = for_group(&mut fields)?;
    fields.end(Request::Fetch(Fetch {
        handle,
        offset: wire.offset.get(),
        max_bytes: wire.max_bytes.get(),
        max_wait_ms: wire.max_wait_ms.get(),
        group,
    }))
}

fn subscribe(handle: u32, mut fields: Fields<'_>) -> Option<Request<'_>> {
    let wire = fields.take::<SubscribeWire>()?;
    let subscribe = Subscribe {
        handle,
        subscription: wire.subscription.get(),
        offset: wire.offset.get(),
        credit: wire.credit.get(),
        group: for_group(&mut fields)?,
    };
    let valid = wire.reserved == U32::ZERO && subscribe.subscription != 0;
    fields.end(Request::Subscribe(subscribe)).filter(|_| valid)
}

fn for_group(fields: &mut Fields<'_>) -> Option<u32> {
    if fields.0.is_empty() {
        return Some(0);
    }
    let wire = fields.take::<ForGroupWire>()?;
    Some(wire.group.get()).filter(|group| *group != 0 && wire.reserved == U32::ZERO)
}

fn put_for_group(out: &mut Vec<u8>, group: u32) {
    if group != 0 {
        put(out, &ForGroupWire { group: U32::new(group), reserved: U32::ZERO });
    }
}

fn credit(subscription: u32, mut fields: Fields<'_>) -> Option<Request<'_>> {
    let bytes = fields.take::<CreditWire>()?.bytes.get();
    fields.end(Request::Credit(Credit { subscription, bytes }))
}

fn list_offsets(handle: u32, mut fields: Fields<'_>) -> Option<Request<'_>> {
    let wire = fields.take::<ListOffsetsWire>()?;
    let what = match (wire.what, wire.time_ms.get()) {
        (1, 0) => OffsetSpec::Earliest,
        (2, 0) => OffsetSpec::Latest,
        (3, time) => OffsetSpec::Time(time),
        _ => return None,
    };
    fields.end(Request::ListOffsets(ListOffsets { handle, what })).filter(|_| wire.reserved == [0; 7])
}

pub(crate) fn flag(flags: U32, bit: u32) -> Option<bool> {
    (flags.get() & !bit == 0).then_some(flags.get() & bit != 0)
}

impl Request<'_> {
    /// The operation.
    pub fn op(&self) -> Op {
        match self {
            Self::Hello(_) => Op::Hello,
            Self::Ping => Op::Ping,
            Self::Metadata(_) => Op::Metadata,
            Self::CreateTopic(_) => Op::CreateTopic,
            Self::DeleteTopic(_) => Op::DeleteTopic,
            Self::DescribeTopic(_) => Op::DescribeTopic,
            Self::ListTopics(_) => Op::ListTopics,
            Self::Open(_) => Op::Open,
            Self::Produce(_) => Op::Produce,
            Self::Fetch(_) => Op::Fetch,
            Self::Subscribe(_) => Op::Subscribe,
            Self::Credit(_) => Op::Credit,
            Self::Unsubscribe(_) => Op::Unsubscribe,
            Self::ListOffsets(_) => Op::ListOffsets,
            Self::JoinGroup(_) => Op::JoinGroup,
            Self::Heartbeat(_) => Op::Heartbeat,
            Self::LeaveGroup(_) => Op::LeaveGroup,
            Self::CommitOffsets(_) => Op::CommitOffsets,
            Self::FetchOffsets(_) => Op::FetchOffsets,
            Self::Receive(_) => Op::Receive,
            Self::Ack(_) => Op::Ack,
            Self::ChangeInvisible(_) => Op::ChangeInvisible,
            Self::EndTransaction(_) => Op::EndTransaction,
            Self::RegisterProducer(_) => Op::RegisterProducer,
            Self::ListTimers(_) => Op::ListTimers,
            Self::ChangeTimer(_) => Op::ChangeTimer,
            Self::ListGroups(_) => Op::ListGroups,
            Self::DescribeGroup(_) => Op::DescribeGroup,
            Self::SetGroup(_) => Op::SetGroup,
            Self::ResetGroup(_) => Op::ResetGroup,
            Self::DeleteGroup(_) => Op::DeleteGroup,
            Self::AlterTopic(_) => Op::AlterTopic,
            Self::ListTransactions(_) => Op::ListTransactions,
            Self::ReplayDeadLetters(_) => Op::ReplayDeadLetters,
            Self::PeekMessage(_) => Op::PeekMessage,
            Self::TopicStats(_) => Op::TopicStats,
        }
    }

    /// What the header's `handle` says: a handle, a subscription, a registration or 0.
    pub fn handle(&self) -> u32 {
        match self {
            Self::Open(open) => open.handle,
            Self::Fetch(fetch) => fetch.handle,
            Self::Subscribe(subscribe) => subscribe.handle,
            Self::Credit(credit) => credit.subscription,
            Self::Unsubscribe(subscription) => *subscription,
            Self::ListOffsets(list) => list.handle,
            Self::Receive(receive) => receive.handle,
            Self::Ack(ack) => ack.handle,
            Self::ChangeInvisible(change) => change.handle,
            Self::RegisterProducer(register) => register.registration,
            Self::ReplayDeadLetters(replay) => replay.handle,
            _ => 0,
        }
    }

    /// Appends the message to `out`. For PRODUCE that is everything but the frames, which must follow.
    pub fn encode(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin(out);
        self.put_fields(out);
        let frames: usize = match self {
            Self::Produce(produce) => produce.slots.iter().map(|slot| slot.len.get() as usize).sum(),
            _ => 0,
        };
        let fields_len = out.len() - start - HEADER_SIZE;
        let op = self.op() as u8;
        end(out, start, op, Flags::REQUEST, correlation, self.handle(), fields_len, frames);
    }

    fn put_fields(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => {
                let (version_min, version_max) = (hello.version_min, hello.version_max);
                put(out, &HelloHead { version_min, version_max, reserved: U16::ZERO });
                put_string(out, hello.name, HELLO_STRING_MAX);
            }
            Self::Ping | Self::Unsubscribe(_) => {}
            Self::Metadata(metadata) => {
                let flags = U32::new(if metadata.auto_create { METADATA_AUTO_CREATE } else { 0 });
                put(out, &MetadataHead { flags, count: U32::new(metadata.names.count) });
                out.extend_from_slice(metadata.names.bytes);
            }
            Self::CreateTopic(create) => {
                let flags = U32::new(if create.if_not_exists { CREATE_IF_NOT_EXISTS } else { 0 });
                put(out, &CreateTopicHead { partitions: U32::new(create.partitions), flags });
                put_string(out, create.name, NAME_STRING_MAX);
            }
            Self::DeleteTopic(name) | Self::TopicStats(name) => put_string(out, name, NAME_STRING_MAX),
            Self::DescribeTopic(describe) => {
                let first_partition = U32::new(describe.first_partition);
                put(out, &DescribeTopicHead { first_partition, limit: U32::new(describe.limit) });
                put_string(out, describe.name, NAME_STRING_MAX);
            }
            Self::ListTopics(list) => {
                put(out, &ListTopicsHead { limit: U32::new(list.limit), reserved: U32::ZERO });
                put_string(out, list.after, NAME_STRING_MAX);
            }
            Self::Open(open) => {
                put(out, &OpenHead { partition: U32::new(open.partition), reserved: U32::ZERO });
                put_string(out, open.topic, NAME_STRING_MAX);
            }
            Self::Produce(produce) => {
                put(out, &ProduceHead { frames: U32::new(produce.slots.len() as u32), reserved: U32::ZERO });
                put(out, produce.slots);
            }
            Self::Fetch(fetch) => {
                put(
                    out,
                    &FetchWire {
                        offset: U64::new(fetch.offset),
                        max_bytes: U32::new(fetch.max_bytes),
                        max_wait_ms: U32::new(fetch.max_wait_ms),
                    },
                );
                put_for_group(out, fetch.group);
            }
            Self::Subscribe(subscribe) => {
                put(
                    out,
                    &SubscribeWire {
                        subscription: U32::new(subscribe.subscription),
                        reserved: U32::ZERO,
                        offset: U64::new(subscribe.offset),
                        credit: U64::new(subscribe.credit),
                    },
                );
                put_for_group(out, subscribe.group);
            }
            Self::Credit(credit) => put(out, &CreditWire { bytes: U64::new(credit.bytes) }),
            Self::ListOffsets(list) => {
                let (what, time) = match list.what {
                    OffsetSpec::Earliest => (1, 0),
                    OffsetSpec::Latest => (2, 0),
                    OffsetSpec::Time(time) => (3, time),
                };
                put(out, &ListOffsetsWire { what, reserved: [0; 7], time_ms: I64::new(time) });
            }
            Self::JoinGroup(request) => request.put(out),
            Self::Heartbeat(request) => request.put(out),
            Self::LeaveGroup(request) => request.put(out),
            Self::CommitOffsets(request) => request.put(out),
            Self::FetchOffsets(request) => request.put(out),
            Self::Receive(request) => request.put(out),
            Self::Ack(request) => request.put(out),
            Self::ChangeInvisible(request) => request.put(out),
            Self::EndTransaction(request) => request.put(out),
            Self::RegisterProducer(request) => request.put(out),
            Self::ListTimers(request) => request.put(out),
            Self::ChangeTimer(request) => request.put(out),
            Self::ListGroups(request) => request.put(out),
            Self::DescribeGroup(request) => request.put(out),
            Self::SetGroup(request) => request.put(out),
            Self::ResetGroup(request) => request.put(out),
            Self::DeleteGroup(request) => request.put(out),
            Self::AlterTopic(request) => request.put(out),
            Self::ListTransactions(request) => request.put(out),
            Self::ReplayDeadLetters(request) => request.put(out),
            Self::PeekMessage(request) => request.put(out),
        }
    }
}
