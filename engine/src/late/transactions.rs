//! Transactions that are not resolved: what a shard has of each.

use crate::format::Lsn;
use crate::format::PartitionId;
use crate::format::frame::FrameHeader;
use crate::format::late::{Late as LateFields, Mark};
use std::collections::BTreeMap;

/// A position of a group that takes effect with a transaction. Whose group and instance it is, cursors know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The group.
    pub group: u64,
    /// Its instance; 0 for none.
    pub instance: u64,
    /// The partition, of this shard.
    pub partition: PartitionId,
    /// First offset that is not consumed.
    pub offset: u64,
}

/// That a transaction commits, written down by its coordinator: all participants will apply it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Shards that take part, bit i for shard i.
    pub participants: u64,
    /// When, Unix milliseconds.
    pub time_ms: i64,
    /// HALF frames on all shards.
    pub halves: u32,
    /// Positions on all shards.
    pub positions: u32,
}

/// What a shard has of a transaction: its halves and positions here, and at its coordinator what is known of its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its id.
    pub txn: u128,
    /// The producer group that answers checks; empty if not known here.
    pub group: Box<str>,
    /// When the first half was stored here, or the coordinator first spoke of it; Unix milliseconds.
    pub since_ms: i64,
    /// Time to the first check that the first half asks for; 0 for the server's.
    pub check_after_ms: u32,
    /// Checks that were handed over, as its coordinator knows.
    pub attempts: u16,
    /// It is asked no more.
    pub parked: bool,
    /// When it was checked last, Unix milliseconds; 0: never, or not since the last start.
    pub checked_ms: i64,
    /// Identities of its halves on this shard, in the order in which they were stored.
    pub halves: Vec<Lsn>,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Positions of groups on this shard.
    pub positions: Vec<Position>,
    /// That it commits; until every participant has applied it.
    pub decision: Option<Decision>,
}

impl Part {
    fn new(txn: u128) -> Self {
        Self {
            txn,
            group: "".into(),
            since_ms: i64::MAX,
            check_after_ms: 0,
            attempts: 0,
            parked: false,
            checked_ms: 0,
            halves: Vec::new(),
            bytes: 0,
            positions: Vec::new(),
            decision: None,
        }
    }

    pub(super) fn add_half(&mut self, identity: Lsn, header: &FrameHeader, late: &LateFields<'_>) {
        self.name(late.group);
        self.since_ms = self.since_ms.min(header.timestamp.get());
        if self.halves.first().is_none_or(|first| identity <= *first) {
            self.check_after_ms = late.check_after_ms;
        }
        self.insert(identity, header.len.get());
    }

    pub(super) fn insert(&mut self, identity: Lsn, len: u32) {
        if let Err(at) = self.halves.binary_search(&identity) {
            self.halves.insert(at, identity);
            self.bytes += u64::from(len);
        }
    }

    fn name(&mut self, group: &str) {
        if self.group.is_empty() {
            self.group = group.into();
        }
    }

    /// What a mark says of it besides its end.
    pub(super) fn note(&mut self, mark: &Mark<'_>) {
        self.name(mark.group);
        self.since_ms = self.since_ms.min(mark.time_ms);
    }

    pub(super) fn add_position(&mut self, position: Position) {
        let same = |known: &&mut Position| {
            (known.group, known.instance, known.partition)
                == (position.group, position.instance, position.partition)
        };
        match self.positions.iter_mut().find(same) {
            Some(known) => *known = position,
            None => self.positions.push(position),
        }
    }
}

/// All of them, by id and by number.
#[derive(Debug, Default, Clone)]
pub(super) struct Transactions {
    parts: Vec<Option<Part>>,
    free: Vec<u32>,
    by_id: BTreeMap<u128, u32>,
}

impl Transactions {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn at(&self, number: u32) -> Option<&Part> {
        self.parts.get(number as usize)?.as_ref()
    }

    pub(super) fn numbers(&self) -> u32 {
        self.parts.len() as u32
    }

    pub(super) fn get(&self, txn: u128) -> Option<&Part> {
        self.at(*self.by_id.get(&txn)?)
    }

    pub(super) fn get_mut(&mut self, txn: u128) -> Option<&mut Part> {
        self.parts.get_mut(*self.by_id.get(&txn)? as usize)?.as_mut()
    }

    /// The part of a transaction, made if there is none, and its number.
    pub(super) fn ensure(&mut self, txn: u128) -> (u32, &mut Part) {
        let number = match self.by_id.get(&txn) {
            Some(number) => *number,
            None => {
                let number = self.free.pop().unwrap_or_else(|| {
                    self.parts.push(None);
                    self.parts.len() as u32 - 1
                });
                self.parts[number as usize] = Some(Part::new(txn));
                self.by_id.insert(txn, number);
                number
            }
        };
        match self.parts[number as usize].as_mut() {
            Some(part) => (number, part),
            None => panic!("transaction {txn:x} has a number and no part"),
        }
    }

    pub(super) fn after(&self, txn: u128) -> impl Iterator<Item = &Part> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.by_id.range((Excluded(txn), Unbounded)).filter_map(|(_, number)| self.at(*number))
    }

    /// Takes halves and positions out of a part.
    pub(super) fn take_contents(&mut self, txn: u128) -> Option<(Vec<Lsn>, Vec<Position>)> {
        let part = self.get_mut(txn)?;
        part.bytes = 0;
        Some((std::mem::take(&mut part.halves), std::mem::take(&mut part.positions)))
    }

    /// Removes a part that has nothing and is not decided.
    pub(super) fn remove_if_over(&mut self, txn: u128) {
        let over =
            |part: &Part| part.halves.is_empty() && part.positions.is_empty() && part.decision.is_none();
        if self.get(txn).is_some_and(over)
            && let Some(number) = self.by_id.remove(&txn)
        {
            self.parts[number as usize] = None;
            self.free.push(number);
        }
    }

    /// After recovery: whose first half is not known was not spoken of by its coordinator either.
    pub(super) fn settle(&mut self) {
        for part in self.parts.iter_mut().flatten() {
            if part.since_ms == i64::MAX {
                part.since_ms = 0;
            }
        }
    }
}
