//! Producers that can be asked what became of a transaction: every shard knows the registrations of all connections,
//! because every shard coordinates transactions.
//!
//! ```text
//! a check is due -> the shard with the first half: its frame -> one connection of the group -> its shard puts CHECK into
//! its output, if it still lives -> counted
//! ```

use super::LateWork;
use super::coordinator::Checked;
use crate::shard::ShardServer;
use crate::shard::connection::{Connection, Life, OUT_SOFT};
use crate::shard::mail::{ConnectionKey, Origin, Work};
use ringmq_engine::shard::Peeked;
use ringmq_format::PartitionId;
use ringmq_format::name::check_topic_name;
use ringmq_protocol::limits::REGISTRATIONS_MAX;
use ringmq_protocol::{Check, ErrorCode, RegisterProducer, Registered, Response};
use std::collections::BTreeMap;

/// A connection of the node.
type Place = (u16, ConnectionKey);

/// Who answers for which producer group.
#[derive(Debug, Default)]
pub(super) struct Registry {
    connections: BTreeMap<Place, BTreeMap<u32, String>>,
    groups: BTreeMap<String, Vec<(Place, u32)>>,
    /// Takes turns among those of a group.
    turn: usize,
}

impl Registry {
    fn insert(&mut self, place: Place, registration: u32, group: String) {
        self.remove(place, registration);
        self.groups.entry(group.clone()).or_default().push((place, registration));
        self.connections.entry(place).or_default().insert(registration, group);
    }

    fn remove(&mut self, place: Place, registration: u32) {
        let Some(registrations) = self.connections.get_mut(&place) else { return };
        let Some(group) = registrations.remove(&registration) else { return };
        if registrations.is_empty() {
            self.connections.remove(&place);
        }
        if let Some(members) = self.groups.get_mut(&group) {
            members.retain(|member| *member != (place, registration));
            if members.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    pub(super) fn remove_connection(&mut self, shard: u16, connection: ConnectionKey) {
        let registrations = self.connections.get(&(shard, connection));
        let numbers: Vec<u32> = registrations.into_iter().flat_map(BTreeMap::keys).copied().collect();
        numbers.into_iter().for_each(|number| self.remove((shard, connection), number));
    }

    fn get(&self, place: Place, registration: u32) -> Option<&str> {
        self.connections.get(&place)?.get(&registration).map(String::as_str)
    }

    fn count(&self, place: Place) -> usize {
        self.connections.get(&place).map_or(0, BTreeMap::len)
    }

    fn has(&self, group: &str) -> bool {
        self.groups.contains_key(group)
    }

    /// One of a group: another one each time.
    fn choose(&mut self, group: &str) -> Option<(Place, u32)> {
        let members = self.groups.get(group)?;
        self.turn = self.turn.wrapping_add(1);
        members.get(self.turn % members.len()).copied()
    }
}

impl ShardServer {
    pub(super) fn register_producer(
        &mut self,
        connection: &mut Connection,
        correlation: u64,
        register: &RegisterProducer<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let RegisterProducer { registration, group, end } = *register;
        check_topic_name(group.as_bytes())
            .map_err(|_| (ErrorCode::InvalidGroupName, ErrorCode::InvalidGroupName.text()))?;
        let place = (self.own, connection.key);
        let known = self.late.registry.get(place, registration);
        if known.is_none() && !end && self.late.registry.count(place) >= REGISTRATIONS_MAX {
            return Err((ErrorCode::TooManyHandles, "the connection has as many registrations as it may"));
        }
        let origin = self.origin(connection, 0);
        for shard in self.every_shard() {
            let group = (!end).then(|| group.to_owned());
            if shard == self.own {
                self.enter_producer(origin, registration, group);
            } else {
                self.ask(connection, origin, shard, Work::Late(LateWork::Register { registration, group }));
            }
        }
        self.carry_out_transactions();
        let timings = self.late.coordinator.timings();
        let registered = Registered {
            check_after_ms: timings.first_ms,
            check_every_ms: timings.every_ms,
            checks_max: timings.checks_max,
        };
        Response::Registered(registered).encode(correlation, registration, &mut connection.out);
        Ok(())
    }

    /// A connection answers for a group from now on, or no longer.
    pub(super) fn enter_producer(&mut self, origin: Origin, registration: u32, group: Option<String>) {
        let place = (origin.shard, origin.connection);
        match group {
            Some(group) => {
                let now_ms = self.ring.now().wall_ms;
                self.late.coordinator.producer_came(now_ms, &group);
                self.late.registry.insert(place, registration, group);
            }
            None => self.late.registry.remove(place, registration),
        }
    }

    /// A check is due.
    pub(super) fn begin_check(&mut self, txn: u128, attempt: u16) {
        let now_ms = self.ring.now().wall_ms;
        let Some((group, _, _, first)) = self.late.coordinator.facts(txn) else { return };
        if !self.late.registry.has(group) {
            self.late.coordinator.checked(now_ms, txn, Checked::Nobody);
            return;
        }
        match first {
            Some(shard) => self.tell_shard(shard, LateWork::FirstHalf { txn, attempt }),
            None => self.send_check(txn, attempt, None),
        }
    }

    /// The coordinator wants the frame of this shard's first half.
    pub(super) fn look_first_half(&mut self, origin: Origin, txn: u128, attempt: u16) {
        let first = self.shard.late().halves(txn).next().map(|half| (half.partition, half.identity));
        let mut bytes = Vec::new();
        let found = first.and_then(|(partition, identity)| {
            let sink = &mut |frame: &[u8]| bytes.extend_from_slice(frame);
            match self.shard.peek(&self.ring, partition, identity, sink) {
                Peeked::Frame(_) => Some(Ok(partition)),
                Peeked::Cold => Some(Err(())),
                Peeked::Unknown | Peeked::Damaged => None,
            }
        });
        let found = match found {
            Some(Err(())) => {
                self.readers.park(origin, Work::Late(LateWork::FirstHalf { txn, attempt }));
                return;
            }
            Some(Ok(partition)) => Some((partition, bytes)),
            None => None,
        };
        self.tell_shard(origin.shard, LateWork::FoundFirst { txn, attempt, found });
    }

    /// Asks one producer of the group.
    pub(super) fn send_check(&mut self, txn: u128, attempt: u16, found: Option<(PartitionId, Vec<u8>)>) {
        let now_ms = self.ring.now().wall_ms;
        let Some((group, since_ms, halves, _)) = self.late.coordinator.facts(txn) else { return };
        let Some(((shard, connection), registration)) = self.late.registry.choose(group) else {
            self.late.coordinator.checked(now_ms, txn, Checked::Nobody);
            return;
        };
        let partition = found.as_ref().map(|found| found.0);
        let topic = partition.map(|partition| (partition, self.topics.by_partition(partition)));
        let (topic, partition) = match topic {
            None if halves == 0 => ("", 0),
            Some((partition, Some(topic))) => (&*topic.name, partition.0 - topic.first_partition.0),
            // Damaged, or moving just now, or the catalogue is not complete yet.
            None | Some((_, None)) => {
                self.late.coordinator.checked(now_ms, txn, Checked::Failed);
                return;
            }
        };
        let check = Check {
            txn,
            group,
            since_ms,
            halves,
            attempt,
            attempts_max: self.late.coordinator.timings().checks_max,
            topic,
            partition,
        };
        let mut message = Vec::new();
        check.encode(registration, found.as_ref().map_or(&[], |found| &found.1), &mut message);
        self.tell_shard(shard, LateWork::HandCheck { connection, registration, txn, message });
    }

    /// Puts a CHECK into the output of a connection of this shard.
    pub(super) fn hand_check(
        &mut self,
        coordinator: u16,
        key: ConnectionKey,
        registration: u32,
        txn: u128,
        message: &[u8],
    ) {
        let registered = self.late.registry.get((self.own, key), registration).is_some();
        let connection = self.connection(key).filter(|connection| {
            registered && connection.life == Life::Open && connection.backlog() < 4 * OUT_SOFT
        });
        let handed = connection.is_some();
        if let Some(connection) = connection {
            connection.out.extend_from_slice(message);
            self.recharge(key);
            self.touched.push(key.slot);
        }
        self.tell_shard(coordinator, LateWork::Checked { txn, handed });
    }

    pub(super) fn check_was_handed(&mut self, txn: u128, handed: bool) {
        let now_ms = self.ring.now().wall_ms;
        let checked = if handed { Checked::Handed } else { Checked::Failed };
        self.late.coordinator.checked(now_ms, txn, checked);
    }
}
