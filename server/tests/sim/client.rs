//! Clients that behave: the client library's own state machines, each over one connection at a time.

use super::model::{Checked, Model, Wrong, wrong};
use super::plan::{Draw, Plan};
use bytes::{Buf, BytesMut};
use ringmq_client::ErrorCode;
use ringmq_client::core::connection::{Connection, ConnectionConfig, ConnectionError, Event, ServerInfo};
use ringmq_client::core::output::Output;
use ringmq_engine::ring::sim::{ClientSocket, NodeId, World};

pub(crate) const NODE: NodeId = NodeId(1);
pub(crate) const BASE_PORT: u16 = 7700;
/// Virtual time after which an answer is taken to never come.
const PATIENCE_US: u64 = 30_000_000;
/// Virtual time after which a half-closed connection is taken to stay.
const FINISH_PATIENCE_US: u64 = 12_000_000;

/// What a client gets back with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Batches(Vec<u64>),
    Resolve {
        partition: u32,
        attempt: u64,
    },
    Subscribe {
        partition: u32,
        attempt: u64,
    },
    Fetch {
        floor: u64,
    },
    Offset {
        floor: u64,
        latest: bool,
    },
    /// A step of whoever asks one thing at a time.
    Step,
    /// The answer to a check.
    Checked {
        txn: u128,
    },
    /// JOIN_GROUP or HEARTBEAT.
    Member,
    Leave,
    /// A request of a queue core.
    Queue(u64),
    /// FETCH_OFFSETS or COMMIT_OFFSETS.
    Positions,
    Ignored,
}

pub(crate) type Core = Connection<Tag>;

/// What a client sees of the world around it.
pub(crate) struct Context<'a> {
    pub(crate) model: &'a mut Model,
    pub(crate) draw: &'a mut Draw,
    pub(crate) plan: &'a Plan,
    pub(crate) now: u64,
    /// Nothing new is begun: what was begun is to end.
    pub(crate) calm: bool,
    /// Faults are over.
    pub(crate) healed: bool,
    /// Nothing new comes: consumer groups are to come to their ends.
    pub(crate) quiet: bool,
    pub(crate) world: &'a World,
}

impl Context<'_> {
    pub(crate) fn pause(&mut self) -> u64 {
        self.now + 1 + self.draw.below(self.plan.pause_us)
    }

    pub(crate) fn note(&self, words: impl FnOnce() -> String) {
        if self.plan.sim.trace_lines > 0 {
            self.world.note(&words());
        }
    }
}

/// What a client does with its connection.
pub(crate) trait Role {
    /// The connection is ready.
    fn ready(&mut self, _cx: &mut Context<'_>, _info: &ServerInfo) {}
    fn event(&mut self, cx: &mut Context<'_>, core: &mut Core, event: Event<Tag>) -> Checked;
    /// The connection is gone, with these unanswered.
    fn lost(&mut self, cx: &mut Context<'_>, tags: Vec<Tag>) -> Checked;
    /// Time has come, or something happened. Without a connection that is ready there is no core.
    fn drive(&mut self, cx: &mut Context<'_>, core: Option<&mut Core>) -> Checked;
    fn deadline(&self) -> u64;
    /// Nothing of it is pending.
    fn is_idle(&self) -> bool;
    fn name(&self) -> String;
    /// Wants another connection.
    fn leaves(&mut self) -> bool {
        false
    }
    /// Consumes for a group: it is done only when nothing new comes.
    fn is_of_group(&self) -> bool {
        false
    }
    /// May meet a connection that breaks under its hands.
    fn is_robust(&self) -> bool {
        true
    }
}

struct Link {
    socket: ClientSocket,
    core: Core,
    input: BytesMut,
    /// Silence proves nothing: the connection fell into a hole.
    excused: bool,
    deaf_until: u64,
    finished_at: Option<u64>,
    leaves: bool,
}

pub(crate) struct Peer {
    pub(crate) role: Box<dyn Role>,
    link: Option<Link>,
    dial_at: u64,
    mood_at: u64,
    pub(crate) retired: bool,
}

fn config() -> ConnectionConfig {
    ConnectionConfig {
        name: "sim".into(),
        hello_timeout_us: PATIENCE_US,
        request_timeout_us: PATIENCE_US,
        ping_after_us: 3_000_000,
    }
}

impl Peer {
    pub(crate) fn new(role: Box<dyn Role>) -> Self {
        Self { role, link: None, dial_at: 0, mood_at: 0, retired: false }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.role.is_idle()
    }

    pub(crate) fn is_of_group(&self) -> bool {
        self.role.is_of_group()
    }

    /// Something is there for it to do.
    pub(crate) fn is_due(&self, world: &World, now: u64) -> bool {
        let heard = self.link.as_ref().is_some_and(|link| {
            now >= link.deaf_until
                && (world.client_readable(link.socket) > 0 || world.client_closed(link.socket))
        });
        heard || self.deadline() <= now
    }

    pub(crate) fn deadline(&self) -> u64 {
        if self.retired && self.link.is_none() {
            return u64::MAX;
        }
        match &self.link {
            None => self.dial_at.min(self.role.deadline()),
            Some(link) => {
                let finish = link.finished_at.map_or(u64::MAX, |at| at + FINISH_PATIENCE_US);
                let deaf = if link.deaf_until > 0 { link.deaf_until } else { u64::MAX };
                let role = if link.core.is_ready() && link.finished_at.is_none() {
                    self.role.deadline().min(self.mood_at)
                } else {
                    u64::MAX
                };
                link.core.deadline_us().min(finish).min(deaf).min(role)
            }
        }
    }

    /// Closes its connection for good.
    pub(crate) fn retire(&mut self, cx: &mut Context<'_>) -> Checked {
        self.retired = true;
        match self.link.take() {
            Some(link) => {
                cx.world.client_close(link.socket);
                self.role.lost(cx, link.core.close())
            }
            None => Ok(()),
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Checked {
        let world = cx.world;
        if self.retired {
            return Ok(());
        }
        if self.link.is_none() {
            if cx.now < self.dial_at {
                return self.role.drive(cx, None);
            }
            let port = BASE_PORT + cx.draw.below(u64::from(cx.plan.shards) + 1) as u16;
            let socket = world.connect(NODE, port);
            cx.note(|| format!("{} dials {port}: {socket:?}", self.role.name()));
            let core = Connection::new(config(), cx.now);
            let input = BytesMut::new();
            let excused = cx.plan.sim.net.black_hole_ppm > 0 && !cx.healed;
            let link = Link { socket, core, input, excused, deaf_until: 0, finished_at: None, leaves: false };
            self.link = Some(link);
            self.mood_at = cx.now + cx.draw.below(400_000);
        }
        self.listen(cx)?;
        self.mood(cx);
        if let Some(link) = &mut self.link {
            let open = link.finished_at.is_none() && link.core.is_ready();
            let core = open.then_some(&mut link.core);
            self.role.drive(cx, core)?;
            link.leaves |= self.role.leaves() || (link.core.is_draining() && link.core.pending() == 0);
            let mut out = Output::default();
            link.core.take_output(&mut out);
            let bytes = out.copy_to_bytes(out.remaining());
            if !bytes.is_empty() && link.finished_at.is_none() {
                world.client_send(link.socket, &bytes);
            }
            if link.leaves {
                world.client_close(link.socket);
                self.lose(cx, "it drains")?;
            }
        }
        Ok(())
    }

    fn lose(&mut self, cx: &mut Context<'_>, why: &str) -> Checked {
        let Some(link) = self.link.take() else { return Ok(()) };
        let socket = link.socket;
        cx.note(|| format!("{} leaves {socket:?}: {why}", self.role.name()));
        self.dial_at = cx.now + 500 + cx.draw.below(50_000);
        self.role.lost(cx, link.core.close())
    }

    /// Takes what has arrived.
    fn listen(&mut self, cx: &mut Context<'_>) -> Checked {
        let world = cx.world;
        let Some(link) = &mut self.link else { return Ok(()) };
        let is_deaf = cx.now < link.deaf_until;
        if !is_deaf {
            link.deaf_until = 0;
        }
        let bytes = if is_deaf {
            Vec::new()
        } else if cx.plan.breaks && cx.draw.one_in(8) {
            world.client_recv_some(link.socket, 1 + cx.draw.below(300) as usize)
        } else {
            world.client_recv(link.socket)
        };
        link.input.extend_from_slice(&bytes);
        let mut ended = link.core.receive(cx.now, &mut link.input);
        while let Some(event) = link.core.next_event() {
            match event {
                Event::Ready(info) => self.role.ready(cx, &info),
                Event::Goodbye => cx.note(|| format!("{} is told goodbye", self.role.name())),
                event => self.role.event(cx, &mut link.core, event)?,
            }
        }
        if ended.is_ok() {
            ended = link.core.tick(cx.now);
        }
        if link.finished_at.is_some_and(|at| cx.now >= at + FINISH_PATIENCE_US) {
            if link.excused {
                world.client_close(link.socket);
                return self.lose(cx, "it fell into a hole");
            }
            let details = format!("{} {:?}", self.role.name(), link.socket);
            return Err(wrong("a half-closed connection ends", details));
        }
        match ended {
            Ok(()) if !is_deaf && world.client_closed(link.socket) => self.lose(cx, "it is closed"),
            Ok(()) => Ok(()),
            Err(error) => {
                let socket = link.socket;
                if let Some(wrong) = judge_end(&error, link.excused) {
                    let details = format!("{} {socket:?}: {}", self.role.name(), wrong.details);
                    return Err(Wrong { details, ..wrong });
                }
                world.client_close(socket);
                self.lose(cx, &error.to_string())
            }
        }
    }

    /// What befalls a connection.
    fn mood(&mut self, cx: &mut Context<'_>) {
        let Some(link) = &mut self.link else { return };
        if cx.now < self.mood_at || link.finished_at.is_some() || !link.core.is_ready() {
            return;
        }
        self.mood_at = cx.now + 20_000 + cx.draw.below(400_000);
        if !cx.plan.breaks || cx.calm || !self.role.is_robust() {
            return;
        }
        let socket = link.socket;
        match cx.draw.below(12) {
            0 => cx.world.drop_connection(socket),
            1 => link.leaves = true,
            2 => {
                // What was asked is still answered.
                let mut out = Output::default();
                link.core.take_output(&mut out);
                cx.world.client_send(socket, &out.copy_to_bytes(out.remaining()));
                cx.world.client_finish(socket);
                link.finished_at = Some(cx.now);
                cx.note(|| format!("{} finishes {socket:?}", self.role.name()));
            }
            3 => {
                link.excused = true;
                cx.world.black_hole(socket);
            }
            4 | 5 => link.deaf_until = cx.now + 1 + cx.draw.below(2_000_000),
            6 => {
                // Half a message, and then nothing.
                cx.world.client_send(socket, &[7; 40][..1 + cx.draw.below(39) as usize]);
                link.leaves = true;
            }
            _ => {}
        }
    }
}

fn judge_end(error: &ConnectionError, excused: bool) -> Option<Wrong> {
    let expected = [ErrorCode::TooManyConnections, ErrorCode::HelloRequired, ErrorCode::ShuttingDown];
    match error {
        ConnectionError::Refused(refused) if refused.code().is_some_and(|code| expected.contains(&code)) => {
            None
        }
        ConnectionError::Silent if excused => None,
        ConnectionError::Silent => Some(wrong("every request is answered", error.to_string())),
        _ => Some(wrong("answers are what was asked for", format!("{error:?}"))),
    }
}
