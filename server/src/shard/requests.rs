//! What requests mean: from the bytes of a connection to work for a shard, and from its answers to bytes.

use super::connection::{Connection, Current, INPUT_MIN, Life, OUT_SOFT, Pending, Subscription};
use super::handles::Handle;
use super::late::{self, HOLD_US, NotAppended};
use super::mail::{Answer, ConnectionKey, Origin, ReadKind, Work};
use super::topics::NewTopic;
use super::{Ack, AckTarget, Draining, ShardServer};
use ringmq_engine::shard::{AppendError, TimeLookup};
use ringmq_format::catalogue::{TopicEntry, TopicSettings};
use ringmq_format::corruption::Corruption;
use ringmq_format::frame::Frame;
use ringmq_format::limits::FRAME_HEADER_SIZE;
use ringmq_format::name::check_topic_name;
use ringmq_format::{Lsn, Offset, PartitionId, TopicId};
use ringmq_protocol::limits::{
    CREDIT_MAX, DESCRIBE_PARTITIONS_MAX, FETCH_ENTRIES_MAX, FETCH_SIZE_MAX, FETCH_WAIT_MS_MAX, HANDLES_MAX,
    IN_FLIGHT_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX, LIST_TOPICS_MAX, PRE_HELLO_SIZE_MAX, REQUEST_SIZE_MAX,
    SUBSCRIPTIONS_MAX,
};
use ringmq_protocol::request::{self, OffsetSpec, Request, decode_request};
use ringmq_protocol::response::{
    self, Bounds, DescribedTopic, ErrorBody, Goodbye, HelloAnswer, ListedOffset, Opened, PartitionEntry,
    Response, TopicEntriesBuf, TopicPage,
};
use ringmq_protocol::{ErrorCode, HEADER_SIZE, Header, Op, PROTOCOL_VERSION, ProduceOutcome};
use zerocopy::little_endian::U16;

/// Sent to be tried again when the disk budget is reached.
const DISK_FULL_RETRY_MS: u32 = 1_000;
/// Sent to be tried again when a shard is still opening.
pub(super) const RECOVERING_RETRY_MS: u32 = 50;
/// A producer that is too fast is not told to wait longer than this.
const THROTTLED_RETRY_MS_MAX: u32 = 10_000;
/// Time that GOODBYE names.
const GOODBYE_GRACE_MS: u32 = 2_000;
/// Tags of fetches; those of subscriptions are below and have the subscription's number in the low half.
pub(super) const FETCH_TAG: u64 = 1 << 63;

/// Bytes of one answer to a FETCH. Even frames of the smallest kind are then fewer than an answer may have.
const FETCH_BYTES_MAX: usize = 4 << 20;

const _: () = {
    assert!(FETCH_BYTES_MAX <= FETCH_SIZE_MAX);
    assert!(FETCH_BYTES_MAX / FRAME_HEADER_SIZE <= FETCH_ENTRIES_MAX);
};

/// What became of one attempt to parse.
enum Parsed {
    /// A message was taken off the input.
    Message,
    /// The next message is not whole yet.
    Incomplete,
    /// The message at the front waits for room.
    Stalled,
    /// The connection ends.
    Ended,
}

impl ShardServer {
    /// Parses and carries out what a connection has received, as far as bounds allow.
    pub(super) fn process(&mut self, connection: &mut Connection) {
        if connection.is_receiving() || connection.stalled || connection.starved {
            return;
        }
        connection.wants_input = false;
        loop {
            let ends = matches!(connection.life, Life::Finishing | Life::Lingering | Life::Closing);
            if ends && connection.current.is_none() {
                return;
            }
            // S2: answers first, then more questions.
            let full = connection.in_flight >= IN_FLIGHT_REQUESTS_MAX
                || connection.in_flight_bytes >= IN_FLIGHT_BYTES_MAX
                || connection.backlog() >= 4 * OUT_SOFT
                || (connection.backlog() >= INPUT_MIN && !self.budget.fits(connection.held(), INPUT_MIN));
            if full && connection.current.is_none() {
                return;
            }
            match self.parse_one(connection) {
                Parsed::Message => {}
                Parsed::Stalled => {
                    connection.stalled = true;
                    self.stalled.push_back(connection.key.slot);
                    return;
                }
                Parsed::Incomplete => {
                    connection.wants_input = true;
                    return;
                }
                Parsed::Ended => return,
            }
        }
    }

    fn parse_one(&mut self, connection: &mut Connection) -> Parsed {
        if connection.filled < HEADER_SIZE {
            return Parsed::Incomplete;
        }
        let fresh = connection.life == Life::Fresh;
        let len_max = if fresh { PRE_HELLO_SIZE_MAX } else { REQUEST_SIZE_MAX };
        let header = match Header::parse(&connection.input[..connection.filled], len_max) {
            Ok(header) => *header,
            Err(error) => {
                self.stats.request_errors += 1;
                let now = self.ring.now().mono_us;
                refuse_connection(connection, error.code(), &error.to_string(), now);
                return Parsed::Ended;
            }
        };
        let len = header.message_len();
        if connection.filled < len {
            self.make_room(connection, len);
            return Parsed::Incomplete;
        }
        // The input is taken out so that the request may borrow it while the connection changes.
        let input = std::mem::take(&mut connection.input);
        let parsed = self.carry_out(connection, &header, &input[..len]);
        connection.input = input;
        if let Parsed::Message = parsed {
            connection.consume(len);
            // Whoever does not begin with a HELLO that is understood is answered once.
            if connection.life == Life::Fresh {
                connection.finish(self.ring.now().mono_us);
                return Parsed::Ended;
            }
        }
        parsed
    }

    /// Makes room for a message of `len` bytes, as far as there is memory; without any the connection waits.
    fn make_room(&mut self, connection: &mut Connection, len: usize) {
        let more = connection.lacks(len);
        if more == 0 {
            return;
        }
        if self.budget.grants(connection.key, connection.held(), more) {
            connection.grow(more);
            let (before, now) = connection.recharge();
            self.budget.change(before, now);
        } else if connection.is_full() {
            connection.starved = true;
            connection.message_since_us = None; // its time runs while the server receives
            self.budget.starve(connection.held(), connection.key.slot);
        }
    }

    fn carry_out(&mut self, connection: &mut Connection, header: &Header, message: &[u8]) -> Parsed {
        let fields = &message[HEADER_SIZE..HEADER_SIZE + header.fields_len()];
        let frames = &message[HEADER_SIZE + header.fields_len()..];
        let request = match decode_request(header, fields) {
            Ok(request) => request,
            Err(refusal) => {
                self.stats.requests += 1;
                self.stats.request_errors += 1;
                refusal.encode(header, &mut connection.out);
                return Parsed::Message;
            }
        };
        if let Request::Produce(produce) = request {
            return self.produce(connection, header, &produce, frames);
        }
        self.stats.requests += 1;
        if let Err((code, message)) = self.handle(connection, header, request) {
            self.stats.request_errors += 1;
            error(connection, header, code, message);
        }
        Parsed::Message
    }

    fn handle(
        &mut self,
        connection: &mut Connection,
        header: &Header,
        request: Request<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let correlation = header.correlation();
        match (connection.life, &request) {
            (Life::Fresh, Request::Hello(hello)) => return self.hello(connection, correlation, hello),
            (Life::Fresh, _) => return Err((ErrorCode::HelloRequired, "HELLO comes first")),
            (_, Request::Hello(_)) => return Err((ErrorCode::HelloTwice, "HELLO was said already")),
            _ => {}
        }
        match request {
            Request::Ping => {
                Response::Pong.encode(correlation, 0, &mut connection.out);
                return Ok(());
            }
            // Has no answer, whatever the server is doing.
            Request::Credit(credit) => {
                if let Some(Subscription { shard, tag }) =
                    connection.subscriptions.get(&credit.subscription).copied()
                {
                    let origin = self.origin(connection, tag);
                    self.ask(connection, origin, shard, Work::Credit { bytes: credit.bytes.min(CREDIT_MAX) });
                }
                return Ok(()); // credit for a subscription that has just ended is no error
            }
            _ => {}
        }
        if self.draining != Draining::No {
            return Err((ErrorCode::ShuttingDown, "the server is shutting down"));
        }
        if !self.is_ready() {
            return Err((ErrorCode::Recovering, "the shard is recovering"));
        }
        match request {
            Request::Hello(_) | Request::Ping | Request::Produce(_) | Request::Credit(_) => Ok(()),
            Request::Metadata(metadata) => {
                self.metadata(connection, correlation, &metadata);
                Ok(())
            }
            Request::CreateTopic(create) => {
                check_topic_name(create.name.as_bytes())
                    .map_err(|_| (ErrorCode::InvalidTopicName, ErrorCode::InvalidTopicName.text()))?;
                let new = NewTopic {
                    name: create.name.to_owned(),
                    partitions: create.partitions,
                    if_not_exists: create.if_not_exists,
                    settings: TopicSettings::default(),
                };
                self.ask_catalogue(connection, correlation, Op::CreateTopic, Work::CreateTopic(new));
                Ok(())
            }
            Request::DeleteTopic(name) => {
                let work = Work::DeleteTopic { name: name.to_owned() };
                self.ask_catalogue(connection, correlation, Op::DeleteTopic, work);
                Ok(())
            }
            Request::DescribeTopic(describe) => self.describe(connection, correlation, &describe),
            Request::ListTopics(list) => {
                self.list_topics(connection, correlation, &list);
                Ok(())
            }
            Request::Open(open) => self.open(connection, correlation, &open),
            Request::Fetch(fetch) => {
                let handle = find_handle(connection, fetch.handle)?;
                connection.in_flight += 1;
                self.next_fetch_tag += 1;
                let origin = self.origin(connection, FETCH_TAG + self.next_fetch_tag);
                let kind = ReadKind::Fetch {
                    correlation,
                    handle: fetch.handle,
                    max_bytes: fetch.max_bytes.min(FETCH_BYTES_MAX as u32),
                    wait_ms: fetch.max_wait_ms.min(FETCH_WAIT_MS_MAX),
                };
                let work = Work::Fetch { partition: handle.partition, offset: Offset(fetch.offset), kind };
                self.ask(connection, origin, handle.shard, work);
                Ok(())
            }
            Request::Subscribe(subscribe) => self.subscribe(connection, correlation, &subscribe),
            Request::Unsubscribe(subscription) => {
                let Subscription { shard, tag } = connection
                    .subscriptions
                    .remove(&subscription)
                    .ok_or((ErrorCode::UnknownSubscription, ErrorCode::UnknownSubscription.text()))?;
                let origin = self.origin(connection, tag);
                self.ask(connection, origin, shard, Work::Unsubscribe);
                Response::Unsubscribed.encode(correlation, subscription, &mut connection.out);
                Ok(())
            }
            Request::ListOffsets(list) => self.list_offsets(connection, correlation, &list),
            Request::JoinGroup(_)
            | Request::Heartbeat(_)
            | Request::LeaveGroup(_)
            | Request::CommitOffsets(_)
            | Request::FetchOffsets(_)
            | Request::ListGroups(_)
            | Request::DescribeGroup(_)
            | Request::SetGroup(_)
            | Request::ResetGroup(_)
            | Request::DeleteGroup(_) => self.request_groups(connection, header, request),
            Request::Receive(_)
            | Request::Ack(_)
            | Request::ChangeInvisible(_)
            | Request::ReplayDeadLetters(_) => self.request_queues(connection, header, request),
            Request::EndTransaction(_)
            | Request::RegisterProducer(_)
            | Request::ListTimers(_)
            | Request::ChangeTimer(_)
            | Request::ListTransactions(_)
            | Request::PeekMessage(_)
            | Request::AlterTopic(_)
            | Request::TopicStats(_) => self.request_late(connection, header, request),
        }
    }

    pub(super) fn origin(&self, connection: &Connection, tag: u64) -> Origin {
        Origin { shard: self.own, connection: connection.key, tag }
    }

    /// Dispatches work of a connection and remembers who has to hear of its end.
    pub(super) fn ask(&mut self, connection: &mut Connection, origin: Origin, shard: u16, work: Work) {
        if shard != self.own {
            connection.known_to.insert(shard);
        }
        self.dispatch(origin, shard, work);
    }

    fn hello(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        hello: &request::Hello<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
            return Err((ErrorCode::UnsupportedVersion, "this server speaks protocol version 1"));
        }
        connection.life = Life::Open;
        let ports: Vec<U16> = self.options.shard_ports.iter().map(|port| U16::new(*port)).collect();
        let answer = HelloAnswer {
            version: PROTOCOL_VERSION,
            shard: self.own,
            shard_ports: &ports,
            frame_size_max: self.options.frame_size_max,
            request_size_max: REQUEST_SIZE_MAX as u32,
            server: concat!("ringmq ", env!("CARGO_PKG_VERSION")),
            node: self.options.node_id,
        };
        Response::Hello(answer).encode(correlation, 0, &mut connection.out);
        if self.draining != Draining::No {
            goodbye(connection);
        }
        Ok(())
    }

    // -- topics --------------------------------------------------------------------------------------------

    pub(super) fn ask_catalogue(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        op: Op,
        work: Work,
    ) {
        let pending = connection.keep(Pending::Topic { correlation, op: op as u8 });
        let origin = self.origin(connection, u64::from(pending));
        self.ask(connection, origin, 0, work);
    }

    fn metadata(&mut self, connection: &mut Connection, correlation: u64, metadata: &request::Metadata<'_>) {
        let auto_create = metadata.auto_create && self.options.auto_create_topics;
        let mut names = Vec::new();
        let mut missing = Vec::new();
        for name in metadata.names.iter() {
            let known = self.topics.by_name(name).cloned();
            let result = match (known, check_topic_name(name.as_bytes())) {
                (Some(entry), _) => Ok(entry),
                (None, Err(_)) => Err(ErrorCode::InvalidTopicName as u16),
                (None, Ok(_)) => {
                    if auto_create {
                        missing.push((names.len(), name.to_owned()));
                    }
                    Err(ErrorCode::UnknownTopic as u16)
                }
            };
            names.push((name.to_owned(), result));
        }
        if missing.is_empty() {
            answer_metadata(connection, correlation, &names);
            return;
        }
        let remaining = missing.len() as u32;
        let pending = connection.keep(Pending::Metadata { correlation, names, remaining });
        for (index, name) in missing {
            let origin = self.origin(connection, (index as u64) << 32 | u64::from(pending));
            let settings = TopicSettings::default();
            let new = NewTopic { name, partitions: 1, if_not_exists: true, settings };
            self.ask(connection, origin, 0, Work::CreateTopic(new));
        }
    }

    fn list_topics(&mut self, connection: &mut Connection, correlation: u64, list: &request::ListTopics<'_>) {
        let limit = match list.limit as usize {
            0 => LIST_TOPICS_MAX,
            limit => limit.min(LIST_TOPICS_MAX),
        };
        let mut topics = TopicEntriesBuf::default();
        let mut more = false;
        for entry in self.topics.live_after(list.after) {
            if topics.len() == limit {
                more = true;
                break;
            }
            topics.push(&wire_entry(entry));
        }
        let page = TopicPage { topics: topics.entries(), more };
        Response::Listed(page).encode(correlation, 0, &mut connection.out);
    }

    fn describe(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        describe: &request::DescribeTopic<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let unknown = (ErrorCode::UnknownTopic, ErrorCode::UnknownTopic.text());
        let topic = self.topics.by_name(describe.name).ok_or(unknown)?.clone();
        let first = describe.first_partition;
        if first >= topic.partitions {
            return Err((ErrorCode::UnknownPartition, ErrorCode::UnknownPartition.text()));
        }
        let limit = match describe.limit as usize {
            0 => DESCRIBE_PARTITIONS_MAX,
            limit => limit.min(DESCRIBE_PARTITIONS_MAX),
        };
        let count = (topic.partitions - first).min(limit as u32);
        let base = topic.first_partition.0 + first;
        let bounds = vec![(0, 0); count as usize];
        let pending =
            connection.keep(Pending::Describe { correlation, topic, first, bounds, remaining: count });
        for index in 0..count {
            let partition = PartitionId(base + index);
            let origin = self.origin(connection, u64::from(index) << 32 | u64::from(pending));
            let shard = partition.shard(self.mail.shards()).0;
            self.ask(connection, origin, shard, Work::Bounds { partition });
        }
        Ok(())
    }

    fn open(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        open: &request::Open<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let unknown = (ErrorCode::UnknownTopic, ErrorCode::UnknownTopic.text());
        let topic = self.topics.by_name(open.topic).ok_or(unknown)?;
        if open.partition >= topic.partitions {
            return Err((ErrorCode::UnknownPartition, ErrorCode::UnknownPartition.text()));
        }
        let partition = PartitionId(topic.first_partition.0 + open.partition);
        let target = Handle { partition, shard: partition.shard(self.mail.shards()).0 };
        match connection.handles.get(open.handle) {
            Some(known) if known != target => {
                return Err((ErrorCode::HandleInUse, ErrorCode::HandleInUse.text()));
            }
            None if connection.handles.len() >= HANDLES_MAX => {
                return Err((ErrorCode::TooManyHandles, ErrorCode::TooManyHandles.text()));
            }
            _ => {}
        }
        // Known at once, so that OPEN and PRODUCE may travel together.
        connection.handles.insert(open.handle, target);
        let pending = connection.keep(Pending::Open { correlation, handle: open.handle, target });
        let origin = self.origin(connection, u64::from(pending));
        self.ask(connection, origin, target.shard, Work::Bounds { partition });
        Ok(())
    }

    // -- reading -------------------------------------------------------------------------------------------

    fn subscribe(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        subscribe: &request::Subscribe,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let target = find_handle(connection, subscribe.handle)?;
        if connection.subscriptions.contains_key(&subscribe.subscription) {
            return Err((ErrorCode::SubscriptionInUse, ErrorCode::SubscriptionInUse.text()));
        }
        if connection.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            return Err((ErrorCode::TooManySubscriptions, ErrorCode::TooManySubscriptions.text()));
        }
        let (subscription, offset) = (subscribe.subscription, subscribe.offset);
        self.next_subscription_tag = (self.next_subscription_tag + 1) & 0x7fff_ffff;
        let tag = u64::from(self.next_subscription_tag) << 32 | u64::from(subscription);
        connection.subscriptions.insert(subscription, Subscription { shard: target.shard, tag });
        let handle = subscribe.handle;
        let pending = connection.keep(Pending::Subscribe { correlation, handle, subscription, tag, offset });
        let kind = ReadKind::Push { subscription, credit: subscribe.credit.min(CREDIT_MAX) };
        let (partition, offset) = (target.partition, Offset(offset));
        let origin = self.origin(connection, tag);
        self.ask(connection, origin, target.shard, Work::Subscribe { partition, offset, kind, pending });
        Ok(())
    }

    fn list_offsets(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        list: &request::ListOffsets,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let target = find_handle(connection, list.handle)?;
        let partition = target.partition;
        let (latest, work) = match list.what {
            OffsetSpec::Earliest => (Some(false), Work::Bounds { partition }),
            OffsetSpec::Latest => (Some(true), Work::Bounds { partition }),
            OffsetSpec::Time(time_ms) => (None, Work::OffsetAtTime { partition, time_ms }),
        };
        let pending = connection.keep(Pending::ListOffsets { correlation, handle: list.handle, latest });
        let origin = self.origin(connection, u64::from(pending));
        self.ask(connection, origin, target.shard, work);
        Ok(())
    }

    pub(super) fn execute_offset_at_time(&mut self, origin: Origin, partition: PartitionId, time_ms: i64) {
        let answer = match self.shard.offset_at_time(&self.ring, partition, time_ms) {
            TimeLookup::At(offset, timestamp) => Ok((offset, timestamp)),
            TimeLookup::UnknownPartition => Err(self.no_such_partition()),
            TimeLookup::Damaged => Err(ErrorCode::Damaged),
            TimeLookup::Cold => {
                self.readers.park(origin, Work::OffsetAtTime { partition, time_ms });
                return;
            }
        };
        self.reply(origin, Answer::OffsetAtTime(answer));
    }

    // -- producing -----------------------------------------------------------------------------------------

    /// Carries out a PRODUCE, from where it stopped when the log was busy.
    fn produce(
        &mut self,
        connection: &mut Connection,
        header: &Header,
        produce: &request::Produce<'_>,
        frames: &[u8],
    ) -> Parsed {
        let mut current = match connection.current.take() {
            Some(current) => current,
            None => {
                self.stats.requests += 1;
                if let Some((code, message)) = self.produce_refusal(connection) {
                    self.stats.request_errors += 1;
                    error(connection, header, code, message);
                    return Parsed::Message;
                }
                let outcomes = vec![ProduceOutcome::failed(ErrorCode::Internal, 0); produce.slots.len()];
                connection.in_flight_bytes += frames.len();
                let pending = connection.keep(Pending::Produce {
                    correlation: header.correlation(),
                    outcomes,
                    // One part for all local frames; foreign ones are added.
                    remaining: 1,
                    bytes: frames.len(),
                });
                Current {
                    pending,
                    next: 0,
                    frame_at: 0,
                    durable_at: 0,
                    held_us: None,
                    was_held: false,
                    charged: false,
                }
            }
        };
        while let Some(slot) = produce.slots.get(current.next) {
            let len = slot.len.get() as usize;
            let bytes = &frames[current.frame_at..current.frame_at + len];
            let origin_tag = (current.next as u64) << 32 | u64::from(current.pending);
            let target = connection.handles.get(slot.handle.get());
            let quota_us = target.map_or(0, |target| match current.charged {
                true => 0,
                false => self.charge_producer(connection.key, target.partition, len),
            });
            current.charged = quota_us == 0;
            let appended = match target {
                None => Err(NotAppended::Refused(ErrorCode::UnknownHandle, 0)),
                Some(_) if quota_us > 0 => Err(NotAppended::Wait(quota_us)),
                Some(target) if target.shard == self.own => {
                    self.append_frame(target.partition, bytes).map(Some)
                }
                Some(target)
                    if self.mail.is_full(target.shard)
                        || !self.budget.grants(connection.key, connection.held(), len) =>
                {
                    Err(NotAppended::Error(AppendError::Busy))
                }
                Some(target) => {
                    self.budget.change(0, len);
                    let origin = self.origin(connection, origin_tag);
                    let work = Work::Append { partition: target.partition, frame: bytes.to_vec() };
                    self.ask(connection, origin, target.shard, work);
                    Ok(None)
                }
            };
            let outcome = match appended {
                Ok(None) => None,
                Ok(Some((outcome, durable_at))) => {
                    current.durable_at = current.durable_at.max(durable_at.0);
                    Some(outcome)
                }
                Err(NotAppended::Error(AppendError::Busy)) => {
                    connection.current = Some(current);
                    return Parsed::Stalled;
                }
                Err(NotAppended::Wait(wait_us)) if self.holds(&mut current, wait_us) => {
                    connection.current = Some(current);
                    return Parsed::Stalled;
                }
                Err(error) => {
                    let partition = target.map_or(PartitionId(0), |target| target.partition);
                    Some(self.not_appended(partition, error))
                }
            };
            current.charged = false;
            if let Some(Pending::Produce { outcomes, remaining, .. }) =
                connection.pending_mut(current.pending)
            {
                match outcome {
                    Some(outcome) => outcomes[current.next] = outcome,
                    None => *remaining += 1,
                }
            }
            current.next += 1;
            current.frame_at += len;
        }
        let target = AckTarget::Produce { connection: connection.key, pending: current.pending };
        self.acks.push_back(Ack { durable_at: Lsn(current.durable_at), target });
        Parsed::Message
    }

    /// Whether a connection that is too fast is not read for a while (longer), instead of being told.
    fn holds(&mut self, current: &mut Current, wait_us: u64) -> bool {
        let now_us = self.ring.now().mono_us;
        let since_us = *current.held_us.get_or_insert(now_us);
        current.was_held |= now_us >= since_us + HOLD_US;
        if current.was_held {
            return false;
        }
        self.hold_until((now_us + wait_us).min(since_us + HOLD_US));
        true
    }

    /// What a producer is told when its frame was not taken.
    pub(super) fn not_appended(&mut self, partition: PartitionId, error: NotAppended) -> ProduceOutcome {
        match error {
            NotAppended::Error(error) => append_failure(error),
            NotAppended::Refused(code, retry_after_ms) => ProduceOutcome::failed(code, retry_after_ms),
            NotAppended::Wait(wait_us) => {
                self.count_throttled(partition);
                let retry_after_ms = wait_us.div_ceil(1000).clamp(1, u64::from(THROTTLED_RETRY_MS_MAX));
                ProduceOutcome::failed(ErrorCode::Throttled, retry_after_ms as u32)
            }
        }
    }

    fn produce_refusal(&self, connection: &Connection) -> Option<(ErrorCode, &'static str)> {
        if connection.life == Life::Fresh {
            return Some((ErrorCode::HelloRequired, "HELLO comes first"));
        }
        if self.draining != Draining::No {
            return Some((ErrorCode::ShuttingDown, "the server is shutting down"));
        }
        if !self.is_ready() {
            return Some((ErrorCode::Recovering, "the shard is recovering"));
        }
        None
    }

    /// Appends a frame of a PRODUCE.
    pub(super) fn append_frame(
        &mut self,
        partition: PartitionId,
        bytes: &[u8],
    ) -> Result<(ProduceOutcome, Lsn), NotAppended> {
        let frame = Frame::parse(bytes).map_err(AppendError::Invalid)?;
        if frame.bytes.len() != bytes.len() {
            let (slot, found) = (bytes.len() as u64, frame.bytes.len() as u64);
            let damage = ringmq_format::Damage::Field;
            return Err(AppendError::Invalid(Corruption::new("frame", "len", damage, slot, found)).into());
        }
        let topic = self.admit(partition, &frame)?;
        let appended = self.shard.append(&mut self.ring, partition, &frame).map_err(|error| match error {
            AppendError::UnknownPartition if self.shard.poisoned().is_some() => AppendError::Poisoned,
            error => error,
        })?;
        if !appended.duplicate {
            self.count_append(topic, &frame, appended.durable_at);
        }
        let outcome = ProduceOutcome::stored(appended.base_offset.0, appended.timestamp, appended.duplicate);
        Ok((outcome, appended.durable_at))
    }

    // -- answers -------------------------------------------------------------------------------------------

    /// An answer to something that a connection of this shard has asked.
    pub(super) fn take_answer(&mut self, origin: Origin, answer: Answer) {
        if let Answer::TopicEntered { state, durable } = answer {
            self.topic_was_entered(state, durable);
            return;
        }
        let slot = origin.tag as u32;
        let index = (origin.tag >> 32) as usize;
        if let Answer::Appended(outcome, bytes) = answer {
            self.budget.change(bytes, 0);
            self.finish_part(origin.connection, slot, Some((index, outcome)));
            return;
        }
        let answer = match answer {
            Answer::Topic(result) if origin.connection == NOBODY => {
                return self.take_dead_letter_topic(origin.tag, result);
            }
            Answer::Group(answer) => return self.take_groups_answer(origin, answer),
            Answer::Queue(answer) => return self.take_queues_answer(origin, answer),
            Answer::Late(answer) => return self.take_late_answer(origin, answer),
            other => other,
        };
        let Some(connection) = self.connection(origin.connection) else { return };
        let mut errors = 0;
        match answer {
            Answer::Delivered { from, bytes, again, is_last } if origin.tag >= FETCH_TAG => {
                assert!(is_last && !again, "a fetch is answered once");
                // That shard goes on when this answer has left.
                connection.blocked.push((from, origin.tag));
                connection.out.extend_from_slice(&bytes);
                connection.in_flight = connection.in_flight.saturating_sub(1);
            }
            Answer::Delivered { bytes, again, .. } => {
                // What was on the way when the client unsubscribed is dropped: no PUSH follows that answer.
                let known = connection.subscriptions.get(&slot).copied();
                if let Some(subscription) = known.filter(|known| known.tag == origin.tag) {
                    connection.out.extend_from_slice(&bytes);
                    if again {
                        connection.blocked.push((subscription.shard, origin.tag));
                    } else {
                        connection.subscriptions.remove(&slot);
                    }
                }
            }
            Answer::Bounds(bounds) => errors = take_bounds(connection, slot, index, bounds),
            Answer::OffsetAtTime(result) => {
                if let Some(Pending::ListOffsets { correlation, handle, .. }) = connection.take_pending(slot)
                {
                    match result {
                        Ok((offset, timestamp)) => {
                            let listed = ListedOffset { offset: offset.0, timestamp };
                            Response::ListedOffset(listed).encode(correlation, handle, &mut connection.out);
                        }
                        Err(code) => {
                            errors += 1;
                            plain_error(connection, Op::ListOffsets, correlation, handle, code);
                        }
                    }
                }
            }
            Answer::Topic(result) => errors = take_topic(connection, slot, index, result),
            Answer::Appended(..)
            | Answer::TopicEntered { .. }
            | Answer::Group(_)
            | Answer::Queue(_)
            | Answer::Late(_) => {}
        }
        self.recharge(origin.connection);
        self.stats.request_errors += errors;
        self.touched.push(origin.connection.slot);
    }
}

fn take_bounds(
    connection: &mut Connection,
    slot: u32,
    index: usize,
    bounds: Result<(Offset, Offset), ErrorCode>,
) -> u64 {
    let wire = bounds.map(|(start, visible)| Bounds { log_start: start.0, visible_end: visible.0 });
    if let Some(Pending::Describe { bounds: list, remaining, .. }) = connection.pending_mut(slot) {
        if let (Some(place), Ok(bounds)) = (list.get_mut(index), wire) {
            *place = (bounds.log_start, bounds.visible_end);
        }
        *remaining -= 1;
        if *remaining > 0 {
            return 0;
        }
    }
    match (connection.take_pending(slot), wire) {
        (Some(Pending::Open { correlation, handle, target }), Ok(bounds)) => {
            let opened = Opened { partition: target.partition, bounds };
            Response::Opened(opened).encode(correlation, handle, &mut connection.out);
        }
        (Some(Pending::Open { correlation, handle, .. }), Err(code)) => {
            connection.handles.remove(handle);
            plain_error(connection, Op::Open, correlation, handle, code);
            return 1;
        }
        (Some(Pending::ListOffsets { correlation, handle, latest }), Ok(bounds)) => {
            let offset = if latest == Some(true) { bounds.visible_end } else { bounds.log_start };
            let listed = ListedOffset { offset, timestamp: -1 };
            Response::ListedOffset(listed).encode(correlation, handle, &mut connection.out);
        }
        (Some(Pending::ListOffsets { correlation, handle, .. }), Err(code)) => {
            plain_error(connection, Op::ListOffsets, correlation, handle, code);
            return 1;
        }
        (Some(Pending::Subscribe { correlation, handle, subscription, tag, offset }), bounds) => {
            let code = match bounds {
                Err(code) => code,
                Ok(bounds) if offset < bounds.log_start || offset > bounds.visible_end => {
                    ErrorCode::OffsetOutOfRange
                }
                Ok(bounds) => {
                    Response::Subscribed(bounds).encode(correlation, handle, &mut connection.out);
                    return 0;
                }
            };
            end_subscription(connection, subscription, tag);
            plain_error(connection, Op::Subscribe, correlation, handle, code);
            return 1;
        }
        (Some(Pending::Describe { correlation, topic, first, bounds, .. }), _) => {
            let partitions: Vec<PartitionEntry> = bounds
                .iter()
                .map(|(start, end)| PartitionEntry {
                    log_start: (*start).into(),
                    visible_end: (*end).into(),
                    bytes: u64::MAX.into(),
                })
                .collect();
            let described = DescribedTopic {
                topic: wire_entry(&topic),
                created_ms: topic.created_ms,
                first_partition: first,
                partitions: &partitions,
            };
            Response::Described(described).encode(correlation, 0, &mut connection.out);
        }
        _ => {}
    }
    0
}

/// Forgets a subscription, unless its number has another bearer by now.
pub(super) fn end_subscription(connection: &mut Connection, subscription: u32, tag: u64) {
    if connection.subscriptions.get(&subscription).is_some_and(|known| known.tag == tag) {
        connection.subscriptions.remove(&subscription);
    }
}

fn take_topic(
    connection: &mut Connection,
    slot: u32,
    index: usize,
    result: Result<TopicEntry, ErrorCode>,
) -> u64 {
    if let Some(Pending::Metadata { names, remaining, .. }) = connection.pending_mut(slot) {
        if let Some(place) = names.get_mut(index) {
            place.1 = result.map_err(|code| code as u16);
        }
        *remaining -= 1;
        if *remaining == 0
            && let Some(Pending::Metadata { correlation, names, .. }) = connection.take_pending(slot)
        {
            answer_metadata(connection, correlation, &names);
        }
        return 0;
    }
    let Some(Pending::Topic { correlation, op }) = connection.take_pending(slot) else { return 0 };
    match (result, Op::parse(op)) {
        (Ok(_), Some(Op::DeleteTopic)) => {
            Response::Deleted.encode(correlation, 0, &mut connection.out);
            0
        }
        (Ok(entry), Some(Op::AlterTopic)) => {
            late::answer_altered(connection, correlation, &entry);
            0
        }
        (Ok(entry), _) => {
            Response::Created(wire_entry(&entry)).encode(correlation, 0, &mut connection.out);
            0
        }
        (Err(code), op) => {
            plain_error(connection, op.unwrap_or(Op::CreateTopic), correlation, 0, code);
            1
        }
    }
}

pub(super) fn find_handle(connection: &Connection, handle: u32) -> Result<Handle, (ErrorCode, &'static str)> {
    connection.handles.get(handle).ok_or((ErrorCode::UnknownHandle, ErrorCode::UnknownHandle.text()))
}

pub(super) fn wire_entry(entry: &TopicEntry) -> response::TopicEntry<'_> {
    response::TopicEntry {
        code: 0,
        topic: entry.topic,
        base_partition: entry.first_partition,
        partitions: entry.partitions,
        name: &entry.name,
    }
}

fn answer_metadata(
    connection: &mut Connection,
    correlation: u64,
    names: &[(String, Result<TopicEntry, u16>)],
) {
    let mut topics = TopicEntriesBuf::default();
    for (name, result) in names {
        topics.push(&match result {
            Ok(entry) => wire_entry(entry),
            Err(code) => response::TopicEntry {
                code: *code,
                topic: TopicId(0),
                base_partition: PartitionId(0),
                partitions: 0,
                name,
            },
        });
    }
    Response::Metadata(topics.entries()).encode(correlation, 0, &mut connection.out);
}

/// The answer to a PRODUCE.
pub(super) fn answer_produce(connection: &mut Connection, correlation: u64, outcomes: &[ProduceOutcome]) {
    Response::Produced(outcomes).encode(correlation, 0, &mut connection.out);
}

/// What a producer is told when its frame was not taken.
pub(super) fn append_failure(error: AppendError) -> ProduceOutcome {
    let (code, retry_after_ms) = match error {
        AppendError::Busy => (ErrorCode::ShuttingDown, 0),
        AppendError::DiskFull => (ErrorCode::DiskFull, DISK_FULL_RETRY_MS),
        AppendError::Poisoned => (ErrorCode::ShardPoisoned, 0),
        AppendError::UnknownPartition => (ErrorCode::UnknownTopic, 0),
        AppendError::TooLarge => (ErrorCode::FrameTooLarge, 0),
        AppendError::Invalid(_) | AppendError::PayloadCrc => (ErrorCode::FrameInvalid, 0),
        AppendError::DuplicateUnknownOffset => (ErrorCode::DuplicateUnknownOffset, 0),
        AppendError::OutOfOrder { .. } => (ErrorCode::OutOfOrderSequence, 0),
        AppendError::Fenced => (ErrorCode::ProducerFenced, 0),
        AppendError::TooManyInFlight => (ErrorCode::TooManyInFlight, 0),
        AppendError::ProducerUnknown => (ErrorCode::ProducerUnknown, 0),
        AppendError::TooManyPending => (ErrorCode::TooManyPending, DISK_FULL_RETRY_MS),
        AppendError::TransactionEnded => (ErrorCode::TransactionEnded, 0),
        AppendError::TransactionEnding => (ErrorCode::Throttled, 1),
        AppendError::TransactionTooLarge => (ErrorCode::TransactionTooLarge, 0),
        AppendError::OtherGroup => (ErrorCode::NotPermitted, 0),
    };
    ProduceOutcome::failed(code, retry_after_ms)
}

fn error(connection: &mut Connection, header: &Header, code: ErrorCode, message: &str) {
    let retry_after_ms = if code == ErrorCode::Recovering { RECOVERING_RETRY_MS } else { 0 };
    let body = ErrorBody { code: code as u16, retry_after_ms, message };
    body.encode(header.op, header.correlation(), header.handle(), &mut connection.out);
}

pub(super) fn plain_error(
    connection: &mut Connection,
    op: Op,
    correlation: u64,
    handle: u32,
    code: ErrorCode,
) {
    let body = ErrorBody { code: code as u16, retry_after_ms: 0, message: code.text() };
    body.encode(op as u8, correlation, handle, &mut connection.out);
}

/// One last answer, then the end.
pub(super) fn refuse_connection(connection: &mut Connection, code: ErrorCode, message: &str, now_us: u64) {
    if matches!(connection.life, Life::Fresh | Life::Open) {
        let body = ErrorBody { code: code as u16, retry_after_ms: 0, message };
        body.encode(0, 0, 0, &mut connection.out);
        connection.finish(now_us);
    }
}

/// Tells a client that the server drains.
pub(super) fn goodbye(connection: &mut Connection) {
    if connection.life == Life::Open {
        let goodbye = Goodbye { grace_ms: GOODBYE_GRACE_MS };
        Response::Goodbye(goodbye).encode(0, 0, &mut connection.out);
    }
}

/// The key of no connection: work that no client has asked for.
pub(super) const NOBODY: ConnectionKey = ConnectionKey { slot: u32::MAX, generation: u32::MAX };
