//! The thinnest way to a server: blocking or non-blocking sockets and the protocol codec, no client library, so
//! that the load generator costs as little as it can.

use ringmq_protocol::{
    CreateTopic, ErrorBody, ErrorCode, HEADER_SIZE, Header, Hello, Metadata, NamesBuf, Open, Opened,
    PROTOCOL_VERSION, Request, Response, decode_response, limits,
};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::OwnedFd;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::ops::Range;
use std::time::Duration;

/// Read at once; a message that is longer makes the buffer grow.
const INBOX_START: usize = 1 << 20;
/// OPENs sent before their answers are read.
const OPEN_PIPELINE: usize = 512;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that does not answer a question of the setup for so long is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A message in the inbox of its connection.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) fields: Range<usize>,
    pub(super) frames: Range<usize>,
}

/// What came of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Bytes,
    /// Nothing there yet: would block, or the read timeout went by.
    Nothing,
}

/// One connection.
pub(super) struct Conn {
    stream: TcpStream,
    inbox: Vec<u8>,
    taken: usize,
    filled: usize,
    outbox: Vec<u8>,
    sent: usize,
    correlation: u64,
}

/// What the server said of itself and of the topic.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub(super) server: String,
    pub(super) frame_size_max: usize,
    pub(super) request_size_max: usize,
    /// Address of each shard; at least one.
    pub(super) shards: Vec<SocketAddr>,
    pub(super) partitions: u32,
    pub(super) base_partition: u32,
}

impl Place {
    /// Index of the shard that owns a partition of the topic.
    pub(super) fn shard_of(&self, partition: u32) -> usize {
        (self.base_partition as usize + partition as usize) % self.shards.len()
    }
}

/// Connects to a server given as HOST:PORT, says hello and finds the topic. With `create`, makes it with so many
/// partitions if it does not exist.
pub(super) fn locate(server: &str, topic: &str, create: Option<u32>) -> Result<(Conn, Place), String> {
    let addresses = server.to_socket_addrs().map_err(|e| format!("cannot resolve {server}: {e}"))?;
    let mut failure = format!("{server} names no address");
    for address in addresses {
        match Conn::dial(address) {
            Ok((mut conn, mut place)) => {
                conn.find_topic(topic, create, &mut place)?;
                return Ok((conn, place));
            }
            Err(why) => failure = why,
        }
    }
    Err(failure)
}

impl Conn {
    /// A connection that has said hello. The place knows nothing of topics yet.
    pub(super) fn dial(address: SocketAddr) -> Result<(Self, Place), String> {
        let connect = || {
            let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(CALL_TIMEOUT))?;
            stream.set_write_timeout(Some(CALL_TIMEOUT))?;
            Ok(stream)
        };
        let stream = connect().map_err(|e: std::io::Error| {
            format!("cannot connect to {address}: {e}; is `ringmq server` running there?")
        })?;
        let mut conn = Self {
            stream,
            inbox: vec![0; INBOX_START],
            taken: 0,
            filled: 0,
            outbox: Vec::new(),
            sent: 0,
            correlation: 0,
        };
        let name = concat!("ringmq bench ", env!("CARGO_PKG_VERSION"));
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION, name };
        let place = conn.call(&Request::Hello(hello), |response| match response {
            Response::Hello(answer) => {
                let mut shards: Vec<_> = answer
                    .shard_ports
                    .iter()
                    .map(|port| SocketAddr::new(address.ip(), port.get()))
                    .filter(|shard| shard.port() != 0)
                    .collect();
                if shards.is_empty() {
                    shards.push(address);
                }
                Some(Place {
                    server: answer.server.to_owned(),
                    frame_size_max: answer.frame_size_max as usize,
                    request_size_max: answer.request_size_max as usize,
                    shards,
                    ..Place::default()
                })
            }
            _ => None,
        })?;
        Ok((conn, place))
    }

    fn find_topic(&mut self, topic: &str, create: Option<u32>, place: &mut Place) -> Result<(), String> {
        let request = CreateTopic { name: topic, partitions: create.unwrap_or(0), if_not_exists: true };
        let names = NamesBuf::from_iter([topic]);
        let metadata = Metadata { names: names.names(), auto_create: false };
        let request =
            if create.is_some() { Request::CreateTopic(request) } else { Request::Metadata(metadata) };
        let found = self.call(&request, |response| {
            let entry = match response {
                Response::Created(entry) => Some(*entry),
                Response::Metadata(entries) => entries.iter().next(),
                _ => None,
            }?;
            Some((entry.code, entry.partitions, entry.base_partition))
        })?;
        let (code, partitions, base_partition) = found;
        if code != 0 {
            return Err(format!("topic {topic}: {}", describe_code(code)));
        }
        if partitions == 0 {
            return Err(format!("topic {topic}: the server says it has no partitions"));
        }
        (place.partitions, place.base_partition) = (partitions, base_partition.get());
        Ok(())
    }

    /// Opens partitions of a topic; partition `p` gets the handle `p + 1`.
    pub(super) fn open(&mut self, topic: &str, partitions: &[u32]) -> Result<Vec<Opened>, String> {
        if partitions.len() > limits::HANDLES_MAX {
            return Err(format!(
                "{} partitions on one connection, {} are allowed: use more --connections",
                partitions.len(),
                limits::HANDLES_MAX
            ));
        }
        let mut opened = Vec::with_capacity(partitions.len());
        for chunk in partitions.chunks(OPEN_PIPELINE) {
            for partition in chunk {
                let open = Open { handle: handle_of(*partition), topic, partition: *partition };
                self.queue(&Request::Open(open));
            }
            self.flush_all()?;
            for partition in chunk {
                let answer = self.wait_for(|response| match response {
                    Response::Opened(opened) => Some(*opened),
                    _ => None,
                });
                opened.push(answer.map_err(|e| format!("partition {partition} of {topic}: {e}"))?);
            }
        }
        Ok(opened)
    }

    /// Asks and waits for the answer. Only while nothing else is in flight.
    pub(super) fn call<T>(
        &mut self,
        request: &Request<'_>,
        pick: impl Fn(&Response<'_>) -> Option<T>,
    ) -> Result<T, String> {
        self.queue(request);
        self.flush_all()?;
        self.wait_for(pick).map_err(|e| format!("{:?}: {e}", request.op()))
    }

    fn wait_for<T>(&mut self, pick: impl Fn(&Response<'_>) -> Option<T>) -> Result<T, String> {
        let message = self.wait_message()?;
        pick(&self.response(&message)?).ok_or_else(|| "the server answered something else".to_owned())
    }

    /// The next answer that is no error. Only on a connection that waits.
    pub(super) fn wait_message(&mut self) -> Result<Message, String> {
        loop {
            if let Some(message) = self.next_message()? {
                match self.response(&message)? {
                    Response::Goodbye(_) => {}
                    Response::Error(error) => return Err(describe_error(&error)),
                    _ => return Ok(message),
                }
            } else if self.receive()? == Received::Nothing {
                return Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs()));
            }
        }
    }

    /// Decodes a message of this connection.
    pub(super) fn response(&self, message: &Message) -> Result<Response<'_>, String> {
        decode_response(&message.header, &self.inbox[message.fields.clone()]).map_err(|e| e.to_string())
    }

    /// Frames of a message of this connection.
    pub(super) fn frames(&self, message: &Message) -> &[u8] {
        &self.inbox[message.frames.clone()]
    }

    /// A correlation that was not used before.
    pub(super) fn next_correlation(&mut self) -> u64 {
        self.correlation += 1;
        self.correlation
    }

    /// Puts a small request into the outbox.
    pub(super) fn queue(&mut self, request: &Request<'_>) {
        let correlation = self.next_correlation();
        request.encode(correlation, &mut self.outbox);
    }

    /// Sends what the socket takes of the outbox; `true` once it is empty.
    pub(super) fn flush(&mut self) -> Result<bool, String> {
        while self.sent < self.outbox.len() {
            match self.stream.write(&self.outbox[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if would_block(&e) => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("cannot send: {e}")),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Sends the whole outbox. Only on a connection that waits.
    pub(super) fn flush_all(&mut self) -> Result<(), String> {
        if self.flush()? { Ok(()) } else { Err("the server does not take requests".to_owned()) }
    }

    /// Sends a part of two buffers that stand one behind the other. Answers how many bytes the socket took: 0 if
    /// none now.
    pub(super) fn send(&mut self, head: &[u8], body: &[u8]) -> Result<usize, String> {
        loop {
            match self.stream.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(n) => return Ok(n),
                Err(e) if would_block(&e) => return Ok(0),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("cannot send: {e}")),
            }
        }
    }

    /// Reads once.
    pub(super) fn receive(&mut self) -> Result<Received, String> {
        if self.taken == self.filled {
            (self.taken, self.filled) = (0, 0);
        }
        if self.filled == self.inbox.len() {
            self.make_room();
        }
        loop {
            match self.stream.read(&mut self.inbox[self.filled..]) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(n) => {
                    self.filled += n;
                    return Ok(Received::Bytes);
                }
                Err(e) if would_block(&e) => return Ok(Received::Nothing),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("cannot receive: {e}")),
            }
        }
    }

    fn make_room(&mut self) {
        self.inbox.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        if self.filled == self.inbox.len() {
            // `next_message` has checked that the message may be that long.
            self.inbox.resize(self.inbox.len() * 2, 0);
        }
    }

    /// The next whole message that was received.
    pub(super) fn next_message(&mut self) -> Result<Option<Message>, String> {
        let bytes = &self.inbox[self.taken..self.filled];
        if bytes.len() < HEADER_SIZE {
            return Ok(None);
        }
        let header = *Header::parse(bytes, limits::RESPONSE_SIZE_MAX).map_err(|e| e.to_string())?;
        if bytes.len() < header.message_len() {
            return Ok(None);
        }
        let fields = self.taken + HEADER_SIZE;
        let frames = fields + header.fields_len();
        self.taken += header.message_len();
        Ok(Some(Message { header, fields: fields..frames, frames: frames..self.taken }))
    }

    /// From now on `receive` waits at most so long.
    pub(super) fn blocking(&self, timeout: Duration) -> Result<(), String> {
        self.stream.set_read_timeout(Some(timeout)).map_err(|e| format!("cannot set a timeout: {e}"))
    }

    /// From now on nothing waits.
    pub(super) fn nonblocking(&self) -> Result<(), String> {
        self.stream.set_nonblocking(true).map_err(|e| format!("cannot make a socket non-blocking: {e}"))
    }
}

/// The handle under which [`Conn::open`] opens a partition.
pub(super) fn handle_of(partition: u32) -> u32 {
    partition + 1
}

fn would_block(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// An error answer, for people.
pub(super) fn describe_error(error: &ErrorBody<'_>) -> String {
    let code = describe_code(error.code);
    if error.message.is_empty() { code } else { format!("{code} ({})", error.message) }
}

/// An error code, for people.
pub(super) fn describe_code(code: u16) -> String {
    match ErrorCode::parse(code) {
        Some(code) => format!("{}: {}", code.name(), code.text()),
        None => format!("error {code}, which this client does not know"),
    }
}

/// Waits for any of many connections.
pub(super) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    pub(super) fn new() -> Result<Self, String> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| format!("no epoll: {e}"))?;
        Ok(Self { epoll, events: Vec::with_capacity(256) })
    }

    pub(super) fn add(&self, conn: &Conn, number: usize) -> Result<(), String> {
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&self.epoll, &conn.stream, data, epoll::EventFlags::IN).map_err(|e| format!("epoll: {e}"))
    }

    /// Whether to wake up when the connection can take bytes, too.
    pub(super) fn watch_send(&self, conn: &Conn, number: usize, watch: bool) -> Result<(), String> {
        let data = epoll::EventData::new_u64(number as u64);
        let out = if watch { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
        epoll::modify(&self.epoll, &conn.stream, data, epoll::EventFlags::IN | out)
            .map_err(|e| format!("epoll: {e}"))
    }

    /// Numbers of the connections that are ready, appended to `ready`. Waits `timeout` at most, to the
    /// microsecond: `epoll_wait` itself only knows milliseconds.
    pub(super) fn wait(&mut self, timeout: Duration, ready: &mut Vec<usize>) -> Result<(), String> {
        if !timeout.is_zero() {
            let wait = timespec(timeout);
            match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(format!("poll: {e}")),
            }
        }
        let now = timespec(Duration::ZERO);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(format!("epoll: {e}")),
        }
        ready.extend(self.events.drain(..).map(|event| event.data.u64() as usize));
        Ok(())
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}
