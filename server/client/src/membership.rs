//! The task that keeps a member in its group: joins, beats, joins again, and leaves.

use crate::admin::GroupOptions;
use crate::client::{Client, check_name, check_name_of, response};
use crate::clock::{Alarm, random_u64};
use crate::core::Refused;
use crate::core::connection::Message;
use crate::core::member::{MemberAction, MemberCore, Membership};
use crate::error::{ClientError, GroupError};
use crate::link::{Call, CallError};
use ringmq_protocol::limits::FILTER_STRING_MAX;
use ringmq_protocol::{
    ErrorCode, GroupMode, GroupSettings, Heartbeat, ItemsBuf, JoinGroup, LeaveGroup, PositionEntry, Request,
    Response, Subscription,
};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How to be a member of a consumer group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group.
    pub group: String,
    /// What this member calls itself; it stands in lists and in errors.
    pub name: String,
    /// Topics, each with a filter: a tag expression (`a || b`), SQL92 on properties, or `*`.
    pub subscriptions: Vec<(String, String)>,
    /// Makes the group with these settings if it does not exist; `None`: it has to exist.
    pub create: Option<GroupOptions>,
    /// Silence after which the server drops the member; `None` leaves it to the server (30 s).
    pub session: Option<Duration>,
    /// How long something is tried while the server is away; `None` takes the client's.
    pub retry_for: Option<Duration>,
}

impl GroupConfig {
    /// A member of this group, made if it does not exist. Add topics.
    pub fn new(group: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            name: format!("{}-{:08x}", std::process::id(), random_u64() as u32),
            subscriptions: Vec::new(),
            create: Some(GroupOptions::default()),
            session: None,
            retry_for: None,
        }
    }

    /// Everything of this topic.
    #[must_use]
    pub fn topic(self, topic: impl Into<String>) -> Self {
        self.filtered(topic, "*")
    }

    /// What of this topic matches.
    #[must_use]
    pub fn filtered(mut self, topic: impl Into<String>, filter: impl Into<String>) -> Self {
        self.subscriptions.push((topic.into(), filter.into()));
        self
    }

    /// Settings of the group, if it is made now.
    #[must_use]
    pub fn options(mut self, options: GroupOptions) -> Self {
        self.create = Some(options);
        self
    }
}

/// Where a member stands.
#[derive(Clone, Debug)]
pub(crate) enum MemberState {
    Joining,
    In(Arc<Membership>),
    Failed(Refused),
}

/// Where a consumer stands, for heartbeats.
pub(crate) type Positions = Arc<Mutex<Vec<PositionEntry>>>;

/// A membership; dropped, it ends.
pub(crate) struct Member {
    pub(crate) state: watch::Receiver<MemberState>,
    pub(crate) positions: Positions,
    doubt: Arc<Notify>,
    /// Holds whether the instance is to be forgotten.
    stop: Option<watch::Sender<bool>>,
    /// True when it is over.
    pub(crate) done: watch::Receiver<bool>,
}

impl Member {
    pub(crate) fn join(
        client: &Client,
        config: &GroupConfig,
        mode: GroupMode,
        instance: &str,
    ) -> Result<Self, ClientError> {
        check_name_of("group", &config.group)?;
        if !instance.is_empty() {
            check_name_of("instance", instance)?;
        }
        config.subscriptions.iter().try_for_each(|(topic, _)| check_name(topic))?;
        // The wire would cut it short, and the rest may well be another filter.
        if config.subscriptions.iter().any(|(_, filter)| filter.len() > FILTER_STRING_MAX) {
            let message = format!("the expression is longer than {FILTER_STRING_MAX} bytes");
            let refused = Refused { message: Arc::from(message), ..Refused::new(ErrorCode::InvalidFilter) };
            return Err(ClientError::Refused(refused));
        }
        let (sender, state) = watch::channel(MemberState::Joining);
        let (stop, stopped) = watch::channel(false);
        let (finished, done) = watch::channel(false);
        let doubt = Arc::new(Notify::new());
        let positions = Positions::default();
        let task = Task {
            client: client.clone(),
            request: Arc::new(JoinRequest { config: config.clone(), mode, instance: instance.to_owned() }),
            core: MemberCore::new(random_u64()),
            state: sender,
            positions: positions.clone(),
        };
        let runtime = client.shared().runtime.clone();
        let doubted = doubt.clone();
        runtime.spawn(async move {
            task.run(stopped, &doubted).await;
            let _ = finished.send(true);
        });
        Ok(Self { state, positions, doubt, stop: Some(stop), done })
    }

    /// Waits until the group has taken the member, or will not.
    pub(crate) async fn joined(&mut self, time: Duration) -> Result<(), GroupError> {
        let over = |state: &MemberState| !matches!(state, MemberState::Joining);
        let waited = tokio::time::timeout(time, self.state.wait_for(over)).await;
        match waited.map_err(|_| ClientError::TimedOut(Box::new(ClientError::Lost(None))))? {
            Ok(state) => match &*state {
                MemberState::Failed(refused) => Err(GroupError::Refused(refused.clone())),
                _ => Ok(()),
            },
            Err(_) => Err(GroupError::Closed),
        }
    }

    /// Asks the server at once whether this is still a member.
    pub(crate) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Leaves; `done` says when that was said.
    pub(crate) fn begin_leaving(&mut self, forget: bool) {
        if let Some(stop) = self.stop.take() {
            stop.send_replace(forget);
        }
    }

    /// Leaves, and waits until that was said.
    pub(crate) async fn leave(mut self, forget: bool) {
        self.begin_leaving(forget);
        let _ = self.done.wait_for(|done| *done).await;
    }
}

struct JoinRequest {
    config: GroupConfig,
    mode: GroupMode,
    instance: String,
}

impl JoinRequest {
    fn ask(&self, member: u64, ask: &mut dyn FnMut(&Request<'_>)) {
        let subscriptions: ItemsBuf =
            self.config.subscriptions.iter().map(|(topic, filter)| Subscription { topic, filter }).collect();
        let steps = self.config.create.as_ref().and_then(GroupOptions::steps);
        let settings = match &self.config.create {
            Some(options) => options.settings(steps.as_deref()),
            None => GroupSettings::default(),
        };
        ask(&Request::JoinGroup(JoinGroup {
            group: &self.config.group,
            mode: self.mode,
            member,
            name: &self.config.name,
            instance: &self.instance,
            session_ms: self.config.session.map_or(0, crate::admin::millis),
            create: self.config.create.is_some(),
            settings,
            subscriptions: subscriptions.items(),
        }));
    }
}

type Pending = Pin<Box<dyn Future<Output = Result<Message, CallError>> + Send>>;

struct Task {
    client: Client,
    request: Arc<JoinRequest>,
    core: MemberCore,
    state: watch::Sender<MemberState>,
    positions: Positions,
}

impl Task {
    async fn run(mut self, mut stopped: watch::Receiver<bool>, doubt: &Notify) {
        let clock = self.client.shared().clock;
        let mut alarm = Alarm::new(clock);
        let mut pending: Option<Pending> = None;
        loop {
            self.publish();
            if let Some(action) = self.core.next_action(clock.now_us()) {
                pending = Some(self.ask(action));
            }
            let answer = async {
                match pending.as_mut() {
                    Some(pending) => pending.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                answer = answer => {
                    pending = None;
                    self.hear(clock.now_us(), answer);
                }
                () = alarm.wait(self.core.deadline_us()) => {}
                () = doubt.notified() => self.core.doubt(clock.now_us()),
                left = stopped.changed() => if left.is_err() { break },
            }
        }
        let forget = *stopped.borrow();
        self.leave(forget).await;
    }

    fn publish(&self) {
        let state = match (self.core.membership(), self.core.failed()) {
            (Some(membership), _) => MemberState::In(membership.clone()),
            (None, Some(refused)) => MemberState::Failed(refused.clone()),
            (None, None) => MemberState::Joining,
        };
        self.state.send_if_modified(|before| {
            let same = match (&*before, &state) {
                (MemberState::In(before), MemberState::In(now)) => Arc::ptr_eq(before, now),
                (MemberState::Joining, MemberState::Joining)
                | (MemberState::Failed(_), MemberState::Failed(_)) => true,
                _ => false,
            };
            *before = state;
            !same
        });
    }

    fn ask(&self, action: MemberAction) -> Pending {
        let call = match action {
            MemberAction::Join { member } => {
                let request = self.request.clone();
                Call::any(move |ask| request.ask(member, ask))
            }
            MemberAction::Heartbeat { group, member, generation, wait_ms } => {
                let positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let beat = move |ask: &mut dyn FnMut(&Request<'_>)| {
                    let positions = &positions[..];
                    ask(&Request::Heartbeat(Heartbeat { group, member, generation, wait_ms, positions }));
                };
                Call::any(beat).waiting(wait_ms)
            }
        };
        let client = self.client.clone();
        Box::pin(async move { client.call_once(call).await })
    }

    fn hear(&mut self, now_us: u64, answer: Result<Message, CallError>) {
        match answer {
            Ok(message) => match response(&message) {
                Ok(Response::Joined(joined)) => self.core.joined(now_us, &joined),
                Ok(Response::Heartbeat(answer)) => self.core.heartbeat(now_us, &answer),
                _ => self.core.lost(now_us),
            },
            Err(CallError::Refused(refused)) => self.core.refused(now_us, refused),
            Err(CallError::Lost(_) | CallError::NotSent(_)) => self.core.lost(now_us),
        }
    }

    /// Says goodbye, once: a server that does not hear it waits for the session to end.
    async fn leave(&self, forget: bool) {
        let Some(membership) = self.core.membership() else { return };
        let leave = LeaveGroup { group: membership.group, member: membership.member, forget };
        let call = self.client.call_once(Call::any(move |ask| ask(&Request::LeaveGroup(leave))));
        let _ = tokio::time::timeout(Duration::from_secs(5), call).await;
    }
}
