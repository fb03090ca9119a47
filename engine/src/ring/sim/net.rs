//! Connections of simulated clients to the rings' sockets.
//!
//! Invariants  N1  bytes of one direction arrive in order, once, in packets of any size at any time
//!             N2  one direction holds a bounded number of bytes, on the way and unread; at the bound a send waits
//! As with TCP, a peer that vanished is told of by a reset or not at all.

use super::NodeId;
use super::RingId;
use super::fault::Harm;
use super::state::{Data, Event, Flight, State, Work, place};
use crate::ring::{Errno, SocketId};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

const CONNRESET: Errno = Errno(libc::ECONNRESET);
const BADF: Errno = Errno(libc::EBADF);
/// Directions of a connection.
const UP: usize = 0;
const DOWN: usize = 1;

/// A client's end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ClientSocket(pub u32);

/// A slot in a ring's table.
pub(super) enum Socket {
    Listener { port: u16, accepts: VecDeque<u64> },
    Connection { conn: usize, recv: Option<u64>, send: Option<u64> },
}

pub(super) struct Listener {
    ring: RingId,
    socket: u32,
    backlog: VecDeque<usize>,
}

enum Packet {
    Bytes(Vec<u8>),
    Finish,
    Reset,
}

#[derive(Default)]
struct Pipe {
    flying: VecDeque<Packet>,
    flying_bytes: usize,
    arrived: VecDeque<u8>,
    finished: bool,
    reset: bool,
    /// Nothing is sent any more.
    shut: bool,
    black_hole: bool,
    last_arrival: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ServerEnd {
    /// Dialling, or in the backlog.
    Waiting,
    Open(RingId, u32),
    Gone,
}

pub(super) struct Conn {
    node: NodeId,
    port: u16,
    server: ServerEnd,
    /// Reached the listener.
    established: bool,
    client_open: bool,
    outbox: VecDeque<u8>,
    finish_wanted: bool,
    pipes: [Pipe; 2],
}

impl State {
    // The wire.

    fn room(&self, conn: usize, direction: usize) -> usize {
        let pipe = &self.conns[conn].pipes[direction];
        self.config.net.buffer.saturating_sub(pipe.flying_bytes + pipe.arrived.len())
    }

    fn transmit(&mut self, conn: usize, direction: usize, packet: Packet) {
        let delay = self.config.net.delay.draw(&mut self.random.net);
        let pipe = &mut self.conns[conn].pipes[direction];
        if pipe.shut {
            return;
        }
        pipe.shut = !matches!(packet, Packet::Bytes(_));
        if let Packet::Bytes(bytes) = &packet {
            pipe.flying_bytes += bytes.len();
        }
        pipe.last_arrival = pipe.last_arrival.max(self.now + delay); // N1
        pipe.flying.push_back(packet);
        let at = pipe.last_arrival;
        self.schedule(at, Event::Packet { conn, direction });
    }

    /// Cuts bytes into packets.
    fn transmit_bytes(&mut self, conn: usize, direction: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let most = bytes.len().min(self.config.net.packet_max.max(1)) as u64;
            let len = if self.random.net.coin() { most } else { self.random.net.within(1, most) };
            let (head, tail) = bytes.split_at(len as usize);
            self.transmit(conn, direction, Packet::Bytes(head.to_vec()));
            bytes = tail;
        }
    }

    /// A reset overtakes nothing but may swallow what is on the way.
    fn send_reset(&mut self, conn: usize, direction: usize) {
        let pipe = &mut self.conns[conn].pipes[direction];
        if !pipe.shut && self.random.net.coin() {
            for packet in &mut pipe.flying {
                if let Packet::Bytes(bytes) = packet {
                    bytes.clear();
                }
            }
            pipe.flying_bytes = 0;
        }
        // A finish that is on the way does not keep a reset from following it.
        pipe.shut = false;
        self.transmit(conn, direction, Packet::Reset);
    }

    pub(super) fn packet(&mut self, conn: usize, direction: usize) {
        let (drop_ppm, hole_ppm) = (self.config.net.drop_ppm, self.config.net.black_hole_ppm);
        let drops = self.random.net.chance(drop_ppm);
        let swallows = self.random.net.chance(hole_ppm);
        let connection = &mut self.conns[conn];
        let receiver_open =
            if direction == UP { connection.server != ServerEnd::Gone } else { connection.client_open };
        let pipe = &mut connection.pipes[direction];
        self.faults.black_holes += u64::from(swallows && !pipe.black_hole);
        pipe.black_hole |= swallows;
        // What a black hole took still fills the sender's buffer.
        if pipe.black_hole {
            return;
        }
        let Some(packet) = pipe.flying.pop_front() else { return };
        match packet {
            Packet::Bytes(bytes) => {
                self.trace.mix(&[self.now, conn as u64, direction as u64, bytes.len() as u64]);
                pipe.flying_bytes -= bytes.len();
                if receiver_open {
                    pipe.arrived.extend(bytes);
                } else if !connection.pipes[1 - direction].reset {
                    self.send_reset(conn, 1 - direction);
                }
            }
            Packet::Finish => pipe.finished = true,
            Packet::Reset => {
                pipe.reset = true;
                connection.pipes[1 - direction].shut = true;
            }
        }
        if drops {
            self.faults.broken_connections += 1;
            self.break_connection(conn);
        }
        self.wake(conn);
    }

    fn break_connection(&mut self, conn: usize) {
        self.trace.mix(&[self.now, conn as u64, 77]);
        for pipe in &mut self.conns[conn].pipes {
            (pipe.reset, pipe.shut) = (true, true);
            pipe.flying.clear();
            pipe.flying_bytes = 0;
        }
        self.wake(conn);
    }

    /// Something changed: ops that wait on this connection look again, and the client's side sends what it can.
    fn wake(&mut self, conn: usize) {
        self.pump_client(conn);
        if let ServerEnd::Open(ring, socket) = self.conns[conn].server
            && let Some(Some(Socket::Connection { recv, send, .. })) =
                self.ring(ring).sockets.get(socket as usize)
        {
            for op in [*recv, *send].into_iter().flatten() {
                self.look_again(op);
            }
        }
    }

    fn look_again(&mut self, op: u64) {
        if let Some(flight) = self.flights.get_mut(&op)
            && flight.blocked
        {
            flight.blocked = false;
            let delay = self.config.net.op.draw(&mut self.random.time);
            self.schedule(self.now + delay, Event::Execute(op));
        }
    }

    // Clients.

    fn conn(&self, socket: ClientSocket) -> &Conn {
        &self.conns[socket.0 as usize]
    }

    pub(super) fn client_connect(&mut self, node: NodeId, port: u16) -> ClientSocket {
        self.conns.push(Conn {
            node,
            port,
            server: ServerEnd::Waiting,
            established: false,
            client_open: true,
            outbox: VecDeque::new(),
            finish_wanted: false,
            pipes: [Pipe::default(), Pipe::default()],
        });
        let conn = self.conns.len() - 1;
        let delay = self.config.net.delay.draw(&mut self.random.net);
        self.schedule(self.now + delay, Event::Connect { conn });
        ClientSocket(conn as u32)
    }

    /// A dialling client reaches the port.
    pub(super) fn arrives(&mut self, conn: usize) {
        let refuse_ppm = self.config.net.refuse_ppm;
        let refused = self.random.net.chance(refuse_ppm);
        self.faults.refused_connections += u64::from(refused);
        let Conn { node, port, .. } = self.conns[conn];
        self.trace.mix(&[self.now, conn as u64, u64::from(port)]);
        let listener = self.nodes.get_mut(&node).and_then(|node| node.listeners.get_mut(&port));
        match listener {
            Some(listener) if !refused => {
                listener.backlog.push_back(conn);
                let (ring, socket) = (listener.ring, listener.socket);
                self.conns[conn].established = true;
                self.pump_client(conn);
                if let Some(Some(Socket::Listener { accepts, .. })) =
                    self.ring(ring).sockets.get(socket as usize)
                    && let Some(&op) = accepts.front()
                {
                    self.look_again(op);
                }
            }
            _ => {
                self.conns[conn].server = ServerEnd::Gone;
                self.break_connection(conn);
            }
        }
    }

    fn pump_client(&mut self, conn: usize) {
        if !self.conns[conn].established {
            return;
        }
        let room = self.room(conn, UP);
        let connection = &mut self.conns[conn];
        if connection.pipes[UP].shut {
            connection.outbox.clear();
            return;
        }
        let taken: Vec<u8> = connection.outbox.drain(..connection.outbox.len().min(room)).collect();
        self.transmit_bytes(conn, UP, &taken);
        let connection = &self.conns[conn];
        if connection.finish_wanted && connection.outbox.is_empty() {
            self.transmit(conn, UP, Packet::Finish);
        }
    }

    pub(super) fn client_send(&mut self, socket: ClientSocket, bytes: &[u8]) {
        let conn = socket.0 as usize;
        if !self.conns[conn].finish_wanted {
            self.conns[conn].outbox.extend(bytes);
        }
        self.pump_client(conn);
    }

    pub(super) fn client_unsent(&self, socket: ClientSocket) -> usize {
        self.conn(socket).outbox.len()
    }

    pub(super) fn client_recv(&mut self, socket: ClientSocket, max: usize) -> Vec<u8> {
        let conn = socket.0 as usize;
        let arrived = &mut self.conns[conn].pipes[DOWN].arrived;
        let taken: Vec<u8> = arrived.drain(..arrived.len().min(max)).collect();
        if !taken.is_empty() {
            self.wake(conn);
        }
        taken
    }

    pub(super) fn client_readable(&self, socket: ClientSocket) -> usize {
        self.conn(socket).pipes[DOWN].arrived.len()
    }

    pub(super) fn client_accepted(&self, socket: ClientSocket) -> bool {
        matches!(self.conn(socket).server, ServerEnd::Open(..))
    }

    pub(super) fn client_closed(&self, socket: ClientSocket) -> bool {
        let pipe = &self.conn(socket).pipes[DOWN];
        pipe.arrived.is_empty() && (pipe.reset || pipe.finished)
    }

    pub(super) fn client_was_reset(&self, socket: ClientSocket) -> bool {
        self.conn(socket).pipes[DOWN].reset
    }

    pub(super) fn client_finish(&mut self, socket: ClientSocket) {
        self.conns[socket.0 as usize].finish_wanted = true;
        self.pump_client(socket.0 as usize);
    }

    pub(super) fn client_close(&mut self, socket: ClientSocket) {
        let connection = &mut self.conns[socket.0 as usize];
        connection.client_open = false;
        let unread = !connection.pipes[DOWN].arrived.is_empty();
        connection.pipes[DOWN].arrived.clear();
        if unread {
            self.send_reset(socket.0 as usize, UP);
        } else {
            self.client_finish(socket);
        }
    }

    pub(super) fn drop_connection(&mut self, socket: ClientSocket) {
        self.break_connection(socket.0 as usize);
    }

    pub(super) fn black_hole(&mut self, socket: ClientSocket) {
        for pipe in &mut self.conns[socket.0 as usize].pipes {
            pipe.black_hole = true;
        }
    }

    // Rings.

    pub(super) fn listen(&mut self, id: RingId, addr: SocketAddr) -> Result<(SocketId, SocketAddr), Errno> {
        let node = self.ring(id).node;
        let listeners = &self.node(node).listeners;
        let port = match addr.port() {
            0 => (40_000..u16::MAX).find(|port| !listeners.contains_key(port)).ok_or(Errno::ADDRINUSE)?,
            port => port,
        };
        if listeners.contains_key(&port) {
            return Err(Errno::ADDRINUSE);
        }
        let socket =
            place(&mut self.ring_mut(id).sockets, Socket::Listener { port, accepts: VecDeque::new() });
        self.node(node).listeners.insert(port, Listener { ring: id, socket, backlog: VecDeque::new() });
        Ok((SocketId(socket), SocketAddr::new(addr.ip(), port)))
    }

    pub(super) fn peer(&self, id: RingId, socket: SocketId) -> Option<SocketAddr> {
        match self.ring(id).sockets.get(socket.0 as usize) {
            Some(Some(Socket::Connection { conn, .. })) => {
                let ip = Ipv4Addr::from_bits(0x0a00_0001 + *conn as u32);
                Some(SocketAddr::new(ip.into(), 50_000))
            }
            _ => None,
        }
    }

    fn socket(&mut self, id: RingId, socket: u32) -> Option<&mut Socket> {
        self.ring_mut(id).sockets.get_mut(socket as usize)?.as_mut()
    }

    /// An op begins to wait on its socket; one receive and one send at a time, or nobody could say what goes first.
    pub(super) fn occupy_socket(&mut self, id: RingId, op: u64, work: &Work) {
        let (Work::Accept { socket } | Work::Recv { socket, .. } | Work::Send { socket, .. }) = *work else {
            return;
        };
        match (self.socket(id, socket), work) {
            (Some(Socket::Listener { accepts, .. }), Work::Accept { .. }) => accepts.push_back(op),
            (Some(Socket::Connection { recv, .. }), Work::Recv { .. }) => {
                assert_eq!(*recv, None, "two receives in flight on socket {socket}");
                *recv = Some(op);
            }
            (Some(Socket::Connection { send, .. }), Work::Send { .. }) => {
                assert_eq!(*send, None, "two sends in flight on socket {socket}");
                *send = Some(op);
            }
            _ => {}
        }
    }

    fn leave_socket(&mut self, id: RingId, op: u64, socket: u32) {
        match self.socket(id, socket) {
            Some(Socket::Listener { accepts, .. }) => accepts.retain(|&other| other != op),
            Some(Socket::Connection { recv, send, .. }) => {
                for slot in [recv, send] {
                    if *slot == Some(op) {
                        *slot = None;
                    }
                }
            }
            None => {}
        }
    }

    /// Carries out an op of a socket, or leaves it waiting.
    pub(super) fn execute_net(&mut self, op: u64, mut flight: Flight) {
        let id = flight.ring;
        let (Work::Accept { socket }
        | Work::Recv { socket, .. }
        | Work::Send { socket, .. }
        | Work::Shutdown { socket }
        | Work::CloseSocket { socket }) = flight.work
        else {
            return;
        };
        let mut data = Data::None;
        let harm = flight.harm;
        let refused = match harm {
            Some(Harm::Error(errno)) => Some(errno),
            _ => None,
        };
        let outcome = match (&flight.work, refused) {
            (Work::CloseSocket { .. }, _) => Some(self.close_socket(id, socket).map(|()| 0)),
            (Work::Shutdown { .. }, _) => Some(Ok(0)),
            (_, Some(errno)) => Some(Err(errno)),
            (Work::Accept { .. }, _) => self.try_accept(id, socket),
            (Work::Recv { len, .. }, _) => self.try_recv(id, socket, *len, harm).map(|result| {
                result.map(|bytes| {
                    let len = bytes.len() as u32;
                    data = Data::Bytes(bytes);
                    len
                })
            }),
            (Work::Send { bytes, .. }, _) => self.try_send(id, socket, bytes, harm),
            _ => None,
        };
        match outcome {
            Some(result) => {
                self.leave_socket(id, op, socket);
                self.deliver(op, flight, result, data);
            }
            None => {
                flight.blocked = true;
                self.flights.insert(op, flight);
            }
        }
    }

    fn try_accept(&mut self, id: RingId, socket: u32) -> Option<Result<u32, Errno>> {
        let Some(Socket::Listener { port, .. }) = self.socket(id, socket) else { return Some(Err(BADF)) };
        let port = *port;
        let node = self.ring(id).node;
        if self.ring(id).sockets.iter().flatten().count() >= self.config.descriptors_max {
            return Some(Err(Errno::MFILE));
        }
        let conn = self.node(node).listeners.get_mut(&port)?.backlog.pop_front()?;
        let connection = Socket::Connection { conn, recv: None, send: None };
        let accepted = place(&mut self.ring_mut(id).sockets, connection);
        self.conns[conn].server = ServerEnd::Open(id, accepted);
        // The next connection is for the next accept.
        let more = self.node(node).listeners.get(&port).is_some_and(|listener| !listener.backlog.is_empty());
        if more && let Some(Socket::Listener { accepts, .. }) = self.socket(id, socket) {
            for op in accepts.clone() {
                self.look_again(op);
            }
        }
        Some(Ok(accepted))
    }

    /// How much of what is possible is done this time.
    fn cut(&mut self, most: usize, harm: Option<Harm>) -> usize {
        let short_ppm = self.config.net.short_ppm;
        if self.random.net.chance(short_ppm) || harm == Some(Harm::Short) {
            self.random.net.within(1, most as u64) as usize
        } else {
            most
        }
    }

    fn try_recv(
        &mut self,
        id: RingId,
        socket: u32,
        len: usize,
        harm: Option<Harm>,
    ) -> Option<Result<Vec<u8>, Errno>> {
        let Some(Socket::Connection { conn, .. }) = self.socket(id, socket) else { return Some(Err(BADF)) };
        let conn = *conn;
        let pipe = &self.conns[conn].pipes[UP];
        let most = pipe.arrived.len().min(len);
        if most > 0 {
            let taken = self.cut(most, harm);
            let bytes = self.conns[conn].pipes[UP].arrived.drain(..taken).collect();
            self.pump_client(conn);
            Some(Ok(bytes))
        } else if pipe.reset {
            Some(Err(CONNRESET))
        } else if pipe.finished || len == 0 {
            Some(Ok(Vec::new()))
        } else {
            None
        }
    }

    fn try_send(
        &mut self,
        id: RingId,
        socket: u32,
        bytes: &[u8],
        harm: Option<Harm>,
    ) -> Option<Result<u32, Errno>> {
        let Some(Socket::Connection { conn, .. }) = self.socket(id, socket) else { return Some(Err(BADF)) };
        let conn = *conn;
        if self.conns[conn].pipes[UP].reset || self.conns[conn].pipes[DOWN].shut {
            return Some(Err(CONNRESET));
        }
        let most = bytes.len().min(self.room(conn, DOWN));
        if most == 0 && !bytes.is_empty() {
            return None; // N2
        }
        let taken = if most == 0 { 0 } else { self.cut(most, harm) };
        self.transmit_bytes(conn, DOWN, &bytes[..taken]);
        Some(Ok(taken as u32))
    }

    pub(super) fn shut_down(&mut self, id: RingId, socket: u32) -> Result<(), Errno> {
        let Some(Socket::Connection { conn, send, .. }) = self.socket(id, socket) else { return Err(BADF) };
        let conn = *conn;
        assert_eq!(*send, None, "socket {socket} is shut down with a send in flight");
        self.transmit(conn, DOWN, Packet::Finish);
        Ok(())
    }

    fn close_socket(&mut self, id: RingId, socket: u32) -> Result<(), Errno> {
        let waiting: Vec<u64> = match self.socket(id, socket) {
            Some(Socket::Listener { accepts, .. }) => accepts.iter().copied().collect(),
            Some(Socket::Connection { recv, send, .. }) => [*recv, *send].into_iter().flatten().collect(),
            None => return Err(BADF),
        };
        for op in waiting {
            if let Some(flight) = self.flights.remove(&op) {
                self.deliver(op, flight, Err(Errno::CANCELED), Data::None); // R2
            }
        }
        self.drop_socket(id, socket, false);
        Ok(())
    }

    fn drop_socket(&mut self, id: RingId, socket: u32, abrupt: bool) {
        let node = self.ring(id).node;
        match self.ring_mut(id).sockets.get_mut(socket as usize).and_then(Option::take) {
            Some(Socket::Listener { port, .. }) => {
                let listener = self.node(node).listeners.remove(&port);
                for conn in listener.into_iter().flat_map(|listener| listener.backlog) {
                    self.close_server_end(conn, true);
                }
            }
            Some(Socket::Connection { conn, .. }) => self.close_server_end(conn, abrupt),
            None => {}
        }
    }

    fn close_server_end(&mut self, conn: usize, abrupt: bool) {
        let connection = &mut self.conns[conn];
        connection.server = ServerEnd::Gone;
        let unread = !connection.pipes[UP].arrived.is_empty();
        connection.pipes[UP].arrived.clear();
        if abrupt || unread {
            self.send_reset(conn, DOWN);
        } else {
            self.transmit(conn, DOWN, Packet::Finish);
        }
    }

    pub(super) fn close_all_sockets(&mut self, id: RingId, abrupt: bool) {
        for socket in 0..self.ring(id).sockets.len() as u32 {
            self.drop_socket(id, socket, abrupt);
        }
    }
}
