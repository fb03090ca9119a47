//! What clients were told, judged without any checksum of the engine's: every body can be made again from its
//! numbers, so a body that is read is compared byte by byte.

use super::ledger::Ledger;
use super::plan::Draw;
use super::positions::Positions;
use ringmq_client::Record;
use ringmq_client::core::decode::ConsumedRecord;
use ringmq_engine::format::PartitionId;
use std::collections::BTreeMap;

/// What was found wrong: the name of the check, and details.
#[derive(Clone, Debug)]
pub(crate) struct Wrong {
    pub(crate) check: &'static str,
    pub(crate) details: String,
}

pub(crate) type Checked = Result<(), Wrong>;

pub(crate) fn wrong(check: &'static str, details: impl Into<String>) -> Wrong {
    Wrong { check, details: details.into() }
}

/// A record: who sent it, and the how-manieth of that producer in its partition it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RecordId {
    pub(crate) producer: u32,
    /// The producer's own number of the partition.
    pub(crate) lane: u32,
    pub(crate) number: u64,
}

const HEAD: usize = 24;

/// The body of a record, all of it determined by its numbers.
pub(crate) fn body(id: RecordId, len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize + HEAD);
    bytes.extend_from_slice(&id.producer.to_le_bytes());
    bytes.extend_from_slice(&id.lane.to_le_bytes());
    bytes.extend_from_slice(&id.number.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    let mut filler = Draw::new(u64::from(id.producer) << 48 ^ u64::from(id.lane) << 32 ^ id.number);
    while bytes.len() < HEAD + len as usize {
        bytes.extend_from_slice(&filler.next().to_le_bytes());
    }
    bytes.truncate(HEAD + len as usize);
    bytes
}

fn parse(bytes: &[u8]) -> Option<RecordId> {
    let id = RecordId {
        producer: u32::from_le_bytes(bytes.get(0..4)?.try_into().ok()?),
        lane: u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?),
        number: u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?),
    };
    let len = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
    (len < 1 << 24 && body(id, len) == bytes).then_some(id)
}

/// A number that is the same for the same record, and otherwise anything.
fn hash(id: RecordId) -> u64 {
    Draw::new(u64::from(id.producer) << 40 ^ u64::from(id.lane) << 32 ^ id.number).next()
}

/// The key of a record: few, so that many records share one. Some have none.
pub(crate) fn key_of(id: RecordId) -> Option<&'static [u8]> {
    let keys: [Option<&'static [u8]>; 4] = [None, Some(b"anna"), Some(b"bert"), Some(b"carl")];
    keys[(hash(id) % 4) as usize]
}

/// The tag of a record, if it has one.
pub(crate) fn tag_of(id: RecordId) -> Option<&'static str> {
    [None, Some("red"), Some("green"), Some("blue")][(hash(id) / 4 % 4) as usize]
}

/// The record, as it is sent.
pub(crate) fn record(id: RecordId, body: &[u8]) -> Record<'_> {
    let tag = tag_of(id).map(str::as_bytes);
    Record { body, key: key_of(id), tag, time_ms: 1_000, ..Record::default() }
}

/// What became of a record, as its producer knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Not answered yet, or nobody knows.
    Open,
    /// Acknowledged at this offset.
    Acked(u64),
    /// Said not to be stored.
    Absent,
}

/// Whether a record of a transaction or a delay may be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// Not committed, or never to be: aborted, cancelled.
    Hidden,
    May,
    /// At the latest when everything has settled.
    Must,
}

#[derive(Debug, Default)]
pub(crate) struct PartitionFacts {
    /// Who is at an offset, as acknowledged or read.
    pub(super) at: BTreeMap<u64, RecordId>,
    /// Below this consumers may read: the highest that anybody was told.
    pub(crate) visible: u64,
    pub(crate) start: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) id: u32,
    pub(crate) base: u32,
    pub(crate) partitions: u32,
}

/// Everything that anybody was told.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) partitions: BTreeMap<PartitionId, PartitionFacts>,
    fates: BTreeMap<RecordId, Fate>,
    late: BTreeMap<RecordId, Late>,
    /// Before this it is not visible, by the server's clock: Unix milliseconds.
    pub(crate) due_ms: BTreeMap<RecordId, i64>,
    /// Where a record was seen.
    pub(super) places: BTreeMap<RecordId, (PartitionId, u64)>,
    /// Topics that live to the end.
    pub(crate) topics: BTreeMap<&'static str, Topic>,
    /// Topics, by id, whose deletion was asked for.
    pub(crate) deleting: BTreeMap<u32, bool>,
    pub(crate) producers: u32,
    pub(crate) acks: u64,
    pub(crate) reads: u64,
    pub(crate) duplicates: u64,
    /// Transactions ended, and checks that were asked.
    pub(crate) transactions: u64,
    pub(crate) checks: u64,
    /// How often a process was started.
    pub(crate) lives: u64,
    /// Epoch of each shard in each life.
    pub(crate) epochs: BTreeMap<(u64, u16), u64>,
    /// What groups in queue mode were given and have said.
    pub(crate) ledger: Ledger,
    /// Where groups in the other modes stand.
    pub(crate) positions: Positions,
}

impl Model {
    /// The topics that live to the end are all there.
    pub(crate) fn is_founded(&self, topics: &[(&'static str, u32)]) -> bool {
        topics.iter().all(|(name, _)| self.topics.contains_key(name))
    }

    pub(crate) fn partition(&self, topic: &str, index: u32) -> Option<PartitionId> {
        self.topics.get(topic).map(|topic| PartitionId(topic.base + index))
    }

    pub(crate) fn facts(&mut self, partition: PartitionId) -> &mut PartitionFacts {
        self.partitions.entry(partition).or_default()
    }

    pub(crate) fn next_producer(&mut self) -> u32 {
        self.producers += 1;
        self.producers
    }

    pub(crate) fn sent(&mut self, id: RecordId) {
        self.fates.insert(id, Fate::Open);
    }

    /// A partition's ends, as told in answer to something asked when `floor` was known.
    pub(crate) fn bounds(&mut self, partition: PartitionId, start: u64, visible: u64, floor: u64) -> Checked {
        if visible < floor || start > visible {
            let details = format!("{partition}: {start}..{visible} where {floor} was visible before");
            return Err(wrong("what was visible stays", details));
        }
        let facts = self.facts(partition);
        facts.visible = facts.visible.max(visible);
        facts.start = facts.start.max(start);
        Ok(())
    }

    /// A record is at this offset, says somebody.
    fn place(&mut self, id: RecordId, partition: PartitionId, offset: u64, who: &str) -> Checked {
        let here = self.facts(partition).at.get(&offset).copied();
        if here.is_some_and(|here| here != id) {
            let details = format!("{partition}@{offset}: {who} {id:?}, before it was {here:?}");
            return Err(wrong("an offset never names another record", details));
        }
        if let Some(place) = self.places.get(&id)
            && *place != (partition, offset)
        {
            let details = format!("{id:?}: {who} {partition}@{offset}, and at {place:?} as well");
            return Err(wrong("a record is there once", details));
        }
        if here.is_some() {
            return Ok(());
        }
        // Order of one producer in one partition.
        let lane = |number| RecordId { number, ..id };
        let before = self.places.range(lane(0)..id).next_back();
        let after = self.places.range(lane(id.number + 1)..=lane(u64::MAX)).next();
        let early = before.is_some_and(|(_, place)| place.0 == partition && place.1 > offset);
        let late = after.is_some_and(|(_, place)| place.0 == partition && place.1 < offset);
        if early || late {
            let details = format!("{partition}@{offset}: {who} {id:?}, around it {before:?} and {after:?}");
            return Err(wrong("a producer's order is kept", details));
        }
        self.facts(partition).at.insert(offset, id);
        self.places.insert(id, (partition, offset));
        Ok(())
    }

    /// A record was acknowledged.
    pub(crate) fn acked(&mut self, id: RecordId, partition: PartitionId, offset: u64) -> Checked {
        self.acks += 1;
        self.place(id, partition, offset, "acknowledged")?;
        self.fates.insert(id, Fate::Acked(offset));
        let facts = self.facts(partition);
        facts.visible = facts.visible.max(offset + 1);
        Ok(())
    }

    /// A producer was told that a record is not stored.
    pub(crate) fn absent(&mut self, id: RecordId) -> Checked {
        if let Some(place) = self.places.get(&id) {
            return Err(wrong("what is refused is not there", format!("{id:?} is at {place:?}")));
        }
        self.fates.insert(id, Fate::Absent);
        Ok(())
    }

    /// What is known of a record of a transaction or a delay from now on.
    pub(crate) fn late(&mut self, id: RecordId, late: Late) -> Checked {
        if late == Late::Hidden
            && let Some(place) = self.places.get(&id)
        {
            let details = format!("{id:?} is at {place:?}");
            return Err(wrong("what was aborted or cancelled is never seen", details));
        }
        self.late.insert(id, late);
        Ok(())
    }

    /// It was sent in a transaction or with a delay.
    pub(super) fn is_late(&self, id: RecordId) -> bool {
        self.late.contains_key(&id)
    }

    /// Everything was read: what was committed is there.
    pub(crate) fn check_late(&self) -> Checked {
        let missing =
            self.late.iter().find(|(id, late)| **late == Late::Must && !self.places.contains_key(id));
        match missing {
            Some((id, _)) => Err(wrong("what was committed is there, all of it", format!("{id:?}"))),
            None => Ok(()),
        }
    }

    /// Which record this is, if it was sent and may be seen.
    pub(super) fn identify(&self, partition: PartitionId, read: &ConsumedRecord) -> Result<RecordId, Wrong> {
        let (offset, bytes) = (read.offset, &read.body);
        let Some(id) = parse(bytes) else {
            let front = &bytes[..bytes.len().min(32)];
            return Err(wrong("bytes are what was sent", format!("{partition}@{offset}: {front:?}")));
        };
        if read.key.as_deref() != key_of(id) || read.tag.as_deref() != tag_of(id).map(str::as_bytes) {
            let details = format!("{partition}@{offset}: {id:?}: {:?}, {:?}", read.key, read.tag);
            return Err(wrong("key and tag are what was sent", details));
        }
        match self.fates.get(&id) {
            None => return Err(wrong("nothing is invented", format!("{partition}@{offset}: {id:?}"))),
            Some(Fate::Absent) => {
                return Err(wrong("what is refused is not there", format!("{partition}@{offset}: {id:?}")));
            }
            Some(Fate::Open | Fate::Acked(_)) => {}
        }
        if self.late.get(&id) == Some(&Late::Hidden) {
            let details = format!("{partition}@{offset}: {id:?}");
            return Err(wrong("a half is invisible until its commit", details));
        }
        Ok(id)
    }

    /// A consumer was given a record.
    pub(crate) fn read(&mut self, partition: PartitionId, read: &ConsumedRecord) -> Result<RecordId, Wrong> {
        self.reads += 1;
        let id = self.identify(partition, read)?;
        if let Some(due_ms) = self.due_ms.get(&id).filter(|due_ms| read.timestamp_ms < **due_ms) {
            let details =
                format!("{partition}@{}: {id:?}: {} before {due_ms}", read.offset, read.timestamp_ms);
            return Err(wrong("what is delayed is not seen early", details));
        }
        self.place(id, partition, read.offset, "read")?;
        Ok(id)
    }

    /// A partition was read from its start to its end: everything that anybody was told is there.
    pub(crate) fn complete(&self, partition: PartitionId, start: u64, end: u64, retains: bool) -> Checked {
        let Some(facts) = self.partitions.get(&partition) else { return Ok(()) };
        if end < facts.visible || (start > 0 && !retains) {
            let details = format!("{partition}: {start}..{end}, visible was {}", facts.visible);
            return Err(wrong("what was visible stays", details));
        }
        // Every read has entered what it found, so a fact that was not read again would have been contradicted.
        let known = facts.at.range(start..end).count() as u64;
        if known != end - start {
            return Err(wrong("offsets are dense", format!("{partition}: {known} of {start}..{end}")));
        }
        if let Some((offset, id)) = facts.at.range(end..).next() {
            return Err(wrong("no acknowledged record is lost", format!("{partition}@{offset}: {id:?}")));
        }
        Ok(())
    }
}
