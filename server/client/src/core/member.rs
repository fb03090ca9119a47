//! Membership of a consumer group: joining, heartbeats, joining again.
//!
//! Invariants  M1  At most one request is on its way.
//!             M2  A member that was not heard for its session time knows itself that it is out.
//! States      out -(join)-> joining -(joined)-> in -(heartbeats)-> in; refused as no member, or silent: out again;
//!             refused for good: failed
//! Ignorant of what is consumed.

use super::{Random, Refused, backoff_us};
use ringmq_format::{PartitionId, TopicId};
use ringmq_protocol::{Assignment, ErrorCode, HeartbeatAnswer, Items, Joined, Retry};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Partitions of one topic that a member has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedTopic {
    /// The topic.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// Id of its first partition.
    pub base_partition: PartitionId,
    /// How many partitions the topic has.
    pub partitions: u32,
    /// Indices of those that the member has.
    pub assigned: Vec<u32>,
}

impl AssignedTopic {
    /// Id of a partition.
    pub fn partition_id(&self, partition: u32) -> PartitionId {
        PartitionId(self.base_partition.0.wrapping_add(partition))
    }
}

/// What a member has, under one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Id of the group.
    pub group: u32,
    /// The member's number.
    pub member: u64,
    /// Number of the broadcast instance; otherwise 0.
    pub instance: u64,
    /// The generation.
    pub generation: u64,
    /// The topics, in the order of their names.
    pub topics: Vec<AssignedTopic>,
}

/// What the shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberAction {
    /// Join, as this member from before or (0) as a new one.
    Join {
        /// Number from before.
        member: u64,
    },
    /// Say HEARTBEAT.
    Heartbeat {
        /// Id of the group.
        group: u32,
        /// The member.
        member: u64,
        /// The generation that is known.
        generation: u64,
        /// How long the server may hold the answer back.
        wait_ms: u32,
    },
}

#[derive(Debug)]
enum State {
    Out,
    In(Arc<Membership>),
    Failed(Refused),
}

/// The state machine.
#[derive(Debug)]
pub struct MemberCore {
    state: State,
    /// A request is on its way (M1).
    asked: bool,
    /// Number from before.
    member: u64,
    due_us: u64,
    heartbeat_us: u64,
    session_us: u64,
    heard_us: u64,
    attempts: u32,
    random: Random,
}

impl MemberCore {
    /// Not a member yet.
    pub fn new(seed: u64) -> Self {
        Self {
            state: State::Out,
            asked: false,
            member: 0,
            due_us: 0,
            heartbeat_us: 0,
            session_us: u64::MAX,
            heard_us: 0,
            attempts: 0,
            random: Random::new(seed),
        }
    }

    /// The next thing to ask, once its time has come.
    pub fn next_action(&mut self, now_us: u64) -> Option<MemberAction> {
        self.notice_silence(now_us);
        if self.asked || now_us < self.due_us {
            return None;
        }
        let action = match &self.state {
            State::Failed(_) => return None,
            State::Out => MemberAction::Join { member: self.member },
            State::In(membership) => MemberAction::Heartbeat {
                group: membership.group,
                member: membership.member,
                generation: membership.generation,
                wait_ms: (self.heartbeat_us / 1_000) as u32,
            },
        };
        // The next heartbeat is due this long after this one was sent, however long the server holds its answer back.
        self.due_us = now_us + self.heartbeat_us;
        self.asked = true;
        Some(action)
    }

    /// When `next_action` will have something although nothing else happened.
    pub fn deadline_us(&self) -> u64 {
        match &self.state {
            State::Failed(_) => u64::MAX,
            State::In(_) if self.asked => self.heard_us.saturating_add(self.session_us),
            _ if self.asked => u64::MAX,
            State::In(_) => self.due_us.min(self.heard_us.saturating_add(self.session_us)),
            State::Out => self.due_us,
        }
    }

    fn notice_silence(&mut self, now_us: u64) {
        let over = now_us >= self.heard_us.saturating_add(self.session_us);
        if over && matches!(self.state, State::In(_)) {
            self.state = State::Out; // M2
        }
    }

    /// JOIN_GROUP was answered.
    pub fn joined(&mut self, now_us: u64, joined: &Joined<'_>) {
        self.heard(now_us);
        self.member = joined.member;
        self.heartbeat_us = u64::from(joined.heartbeat_ms.max(1)) * 1_000;
        self.session_us = u64::from(joined.session_ms.max(1)) * 1_000;
        self.due_us = now_us + self.heartbeat_us;
        self.state = State::In(Arc::new(Membership {
            group: joined.group,
            member: joined.member,
            instance: joined.instance,
            generation: joined.generation,
            topics: topics(joined.assignments),
        }));
    }

    /// HEARTBEAT was answered.
    pub fn heartbeat(&mut self, now_us: u64, answer: &HeartbeatAnswer<'_>) {
        self.heard(now_us);
        self.heartbeat_us = u64::from(answer.heartbeat_ms.max(1)) * 1_000;
        let State::In(membership) = &mut self.state else { return };
        if answer.generation != membership.generation {
            let mut changed = Membership::clone(membership);
            changed.generation = answer.generation;
            changed.topics = topics(answer.assignments);
            *membership = Arc::new(changed);
        }
    }

    fn heard(&mut self, now_us: u64) {
        self.asked = false;
        self.heard_us = now_us;
        self.attempts = 0;
    }

    /// The server refused what was asked.
    pub fn refused(&mut self, now_us: u64, refused: Refused) {
        self.asked = false;
        match (refused.code(), refused.retry()) {
            (Some(ErrorCode::NotAMember | ErrorCode::UnknownGroup), _) if self.is_in() => {
                self.state = State::Out;
                self.due_us = now_us;
            }
            (Some(ErrorCode::NotAMember), _) => self.member = 0,
            (_, Retry::No) => self.state = State::Failed(refused),
            _ => self.pause(now_us, refused.retry_after_ms),
        }
    }

    /// There is no answer.
    pub fn lost(&mut self, now_us: u64) {
        self.asked = false;
        self.pause(now_us, 0);
    }

    fn pause(&mut self, now_us: u64, retry_after_ms: u32) {
        self.due_us = now_us + backoff_us(self.attempts, retry_after_ms, &mut self.random);
        self.attempts += 1;
    }

    /// Somebody was told that this is no member: ask at once.
    pub fn doubt(&mut self, now_us: u64) {
        self.due_us = self.due_us.min(now_us);
    }

    fn is_in(&self) -> bool {
        matches!(self.state, State::In(_))
    }

    /// What the member has, as far as it knows.
    pub fn membership(&self) -> Option<&Arc<Membership>> {
        match &self.state {
            State::In(membership) => Some(membership),
            _ => None,
        }
    }

    /// Why it can never be a member.
    pub fn failed(&self) -> Option<&Refused> {
        match &self.state {
            State::Failed(refused) => Some(refused),
            _ => None,
        }
    }
}

fn topics<'a>(assignments: Items<'a, Assignment<'a>>) -> Vec<AssignedTopic> {
    let topics: BTreeMap<Arc<str>, AssignedTopic> = assignments
        .iter()
        .map(|assignment| {
            let name: Arc<str> = Arc::from(assignment.name);
            let topic = AssignedTopic {
                id: assignment.topic,
                name: name.clone(),
                base_partition: assignment.base_partition,
                partitions: assignment.partitions,
                assigned: assignment.indices().filter(|index| *index < assignment.partitions).collect(),
            };
            (name, topic)
        })
        .collect();
    topics.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_protocol::{HEADER_SIZE, Header, ItemsBuf, Response, decode_response};
    use zerocopy::little_endian::U32;

    fn assignments(indices: &[U32]) -> ItemsBuf {
        let assignment = Assignment {
            topic: TopicId(1),
            name: "t",
            base_partition: PartitionId(10),
            partitions: 4,
            assigned: Some(indices),
        };
        [assignment].into_iter().collect()
    }

    /// What a server would have sent, as the client reads it.
    fn wire(response: &Response<'_>, read: impl FnOnce(&Response<'_>)) {
        let mut bytes = Vec::new();
        response.encode(1, 0, &mut bytes);
        let header = Header::parse(&bytes, 1 << 20).unwrap();
        read(&decode_response(header, &bytes[HEADER_SIZE..]).unwrap());
    }

    fn join(core: &mut MemberCore, now_us: u64, generation: u64, indices: &[u32]) {
        let indices: Vec<_> = indices.iter().map(|index| U32::new(*index)).collect();
        let assignments = assignments(&indices);
        let joined = Joined {
            group: 3,
            member: 9,
            instance: 0,
            generation,
            session_ms: 30_000,
            heartbeat_ms: 10_000,
            assignments: assignments.items(),
        };
        wire(&Response::Joined(joined), |response| {
            let Response::Joined(joined) = response else { panic!("{response:?}") };
            core.joined(now_us, joined);
        });
    }

    fn beat(core: &mut MemberCore, now_us: u64, generation: u64, indices: &[u32]) {
        let indices: Vec<_> = indices.iter().map(|index| U32::new(*index)).collect();
        let assignments = assignments(&indices);
        let answer = HeartbeatAnswer { generation, heartbeat_ms: 10_000, assignments: assignments.items() };
        wire(&Response::Heartbeat(answer), |response| {
            let Response::Heartbeat(answer) = response else { panic!("{response:?}") };
            core.heartbeat(now_us, answer);
        });
    }

    #[test]
    fn a_member_joins_beats_and_takes_over_a_new_assignment() {
        let mut core = MemberCore::new(1);
        assert_eq!(core.next_action(0), Some(MemberAction::Join { member: 0 }));
        assert_eq!(core.next_action(0), None, "one request at a time");
        join(&mut core, 1_000, 5, &[0, 2]);
        assert_eq!(core.membership().unwrap().topics[0].assigned, [0, 2]);
        assert_eq!(core.membership().unwrap().topics[0].partition_id(2), PartitionId(12));
        assert_eq!(core.deadline_us(), 10_001_000);
        let beat_at = core.deadline_us();
        assert!(matches!(core.next_action(beat_at), Some(MemberAction::Heartbeat { generation: 5, .. })));
        beat(&mut core, beat_at + 1, 5, &[]);
        assert_eq!(core.membership().unwrap().topics[0].assigned, [0, 2], "nothing has changed");
        assert!(core.next_action(core.deadline_us()).is_some());
        beat(&mut core, beat_at + 11_000_000, 6, &[3]);
        let membership = core.membership().unwrap();
        assert_eq!((membership.generation, &membership.topics[0].assigned[..]), (6, &[3][..]));
    }

    #[test]
    fn a_member_that_was_dropped_joins_again_under_its_number() {
        let mut core = MemberCore::new(1);
        core.next_action(0);
        join(&mut core, 0, 5, &[0]);
        let now = core.deadline_us();
        core.next_action(now);
        core.refused(now, Refused::new(ErrorCode::NotAMember));
        assert!(core.membership().is_none());
        assert_eq!(core.next_action(now), Some(MemberAction::Join { member: 9 }));
    }

    #[test]
    fn silence_for_a_session_ends_a_membership() {
        let mut core = MemberCore::new(1);
        core.next_action(0);
        join(&mut core, 0, 5, &[0]);
        let mut now = 0;
        while core.membership().is_some() {
            now = core.deadline_us();
            if core.next_action(now).is_some() {
                core.lost(now);
            }
        }
        assert_eq!(now, 30_000_000);
    }

    #[test]
    fn a_refusal_for_good_is_told_and_one_that_passes_is_waited_out() {
        let mut core = MemberCore::new(1);
        core.next_action(0);
        core.refused(0, Refused { retry_after_ms: 500, ..Refused::new(ErrorCode::Recovering) });
        assert_eq!(core.deadline_us(), 500_000);
        assert!(core.next_action(500_000).is_some());
        core.refused(600_000, Refused::new(ErrorCode::SubscriptionConflict));
        assert_eq!(core.failed().unwrap().code(), Some(ErrorCode::SubscriptionConflict));
        assert_eq!((core.next_action(u64::MAX), core.deadline_us()), (None, u64::MAX));
    }
}
