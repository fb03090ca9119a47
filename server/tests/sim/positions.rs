//! Where groups in stream and broadcast mode stand, as clients were told, and what of their partitions was read.

use super::groups::GroupPlan;
use super::model::{Checked, Model, RecordId, wrong};
use ringmq_client::ErrorCode;
use ringmq_client::core::member::Membership;
use ringmq_engine::format::PartitionId;
use ringmq_protocol::{FetchedOffset, GroupMode, Outcome};
use std::collections::{BTreeMap, BTreeSet};

/// A group, by its id, a subscriber of a broadcast (0: the group) and a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) group: u32,
    pub(crate) instance: u64,
    pub(crate) partition: PartitionId,
}

#[derive(Debug, Default)]
struct Standing {
    /// What somebody asked to be committed.
    asked: BTreeSet<u64>,
    /// The highest position that somebody was told is durable.
    committed: Option<u64>,
    /// The newest generation of a claim that was answered.
    claimed: u64,
    /// Resets that were asked for, and that were answered.
    resets: (u64, u64),
    /// Records that were handed out to somebody, by offset.
    read: BTreeSet<u64>,
    /// What readers passed over: from the first to the offset behind the last.
    passed: BTreeSet<(u64, u64)>,
}

/// What was known of a place when something was asked about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    committed: Option<u64>,
    claimed: u64,
    /// Resets asked for, and answered.
    pub(crate) resets: (u64, u64),
}

#[derive(Debug, Default)]
pub(crate) struct Positions {
    /// Which member has a partition under a generation.
    owners: BTreeMap<(u32, u64, PartitionId), u64>,
    standings: BTreeMap<Place, Standing>,
    /// Instances of each group, as members were told.
    instances: BTreeMap<&'static str, BTreeSet<(u32, u64)>>,
    pub(crate) commits: u64,
    pub(crate) claims: u64,
    pub(crate) fenced: u64,
    pub(crate) streamed: u64,
}

impl Positions {
    /// A member was told what it has.
    pub(crate) fn assigned(&mut self, plan: &GroupPlan, membership: &Membership, instance: u64) -> Checked {
        let Membership { group, generation, member, .. } = *membership;
        if plan.mode == GroupMode::Queue {
            return Ok(());
        }
        self.instances.entry(plan.name).or_default().insert((group, instance));
        if plan.mode == GroupMode::Broadcast {
            return Ok(());
        }
        for topic in &membership.topics {
            for partition in topic.assigned.iter().map(|index| topic.partition_id(*index)) {
                let owner = self.owners.entry((group, generation, partition)).or_insert(member);
                if *owner != member {
                    let details =
                        format!("{}: {partition} under {generation:x}: {owner:x} and {member:x}", plan.name);
                    return Err(wrong("a partition has one member", details));
                }
            }
        }
        Ok(())
    }

    /// A place is at `offset`, says the server, asked when the floor was this.
    pub(crate) fn check(&mut self, plan: &GroupPlan, place: Place, floor: Floor, offset: u64) -> Checked {
        if self.holds(place, floor) && floor.committed.is_some_and(|committed| offset < committed) {
            let details = format!("{}: {place:x?} is at {offset}, {floor:x?}", plan.name);
            return Err(wrong("positions never go back", details));
        }
        Ok(())
    }

    /// No reset may have come in between.
    fn holds(&mut self, place: Place, floor: Floor) -> bool {
        let resets = self.at(place).resets;
        resets == floor.resets && resets.0 == resets.1
    }

    /// Somebody is about to ask that a place be set to its start.
    pub(crate) fn reset_asked(&mut self, place: Place) {
        let standing = self.at(place);
        standing.resets.0 += 1;
        standing.asked.insert(0);
    }

    /// It was done, or certainly not.
    pub(crate) fn reset_answered(&mut self, place: Place, done: bool) {
        let standing = self.at(place);
        if done {
            standing.resets.1 += 1;
            standing.committed = None;
        } else {
            standing.resets.0 -= 1;
        }
    }

    fn at(&mut self, place: Place) -> &mut Standing {
        self.standings.entry(place).or_default()
    }

    /// Something is about to be asked.
    pub(crate) fn floor(&mut self, place: Place) -> Floor {
        let standing = self.at(place);
        Floor { committed: standing.committed, claimed: standing.claimed, resets: standing.resets }
    }

    pub(crate) fn commit_asked(&mut self, place: Place, offset: u64) {
        self.at(place).asked.insert(offset);
    }

    /// FETCH_OFFSETS was answered. `generation`: of the claim, in stream mode.
    pub(crate) fn fetched(
        &mut self,
        plan: &GroupPlan,
        place: Place,
        floor: Floor,
        fetched: &FetchedOffset,
        generation: Option<u64>,
        retains: bool,
    ) -> Checked {
        let offset = fetched.offset.get();
        let what = || format!("{}: {place:x?} is at {offset}, {floor:x?}", plan.name);
        self.claims += 1;
        self.check(plan, place, floor, offset)?;
        if self.holds(place, floor) && floor.committed.is_some() && !fetched.is_committed() {
            return Err(wrong("what was committed is remembered", what()));
        }
        let standing = self.at(place);
        if fetched.is_committed() && !standing.asked.contains(&offset) && !retains {
            return Err(wrong("a position is one that somebody has committed", what()));
        }
        if !fetched.is_committed() && offset != 0 && !retains {
            return Err(wrong("a group starts where its settings say", what()));
        }
        if fetched.is_committed() && standing.resets == floor.resets && standing.resets.0 == standing.resets.1
        {
            standing.committed = standing.committed.max(Some(offset));
        }
        if let Some(generation) = generation {
            if generation < floor.claimed {
                return Err(wrong("a partition is claimed by the newest generation", what()));
            }
            standing.claimed = standing.claimed.max(generation);
        }
        Ok(())
    }

    /// A commit was answered.
    pub(crate) fn committed(
        &mut self,
        plan: &GroupPlan,
        place: Place,
        floor: Floor,
        offset: u64,
        (generation, claimed_at): (u64, Floor),
        outcome: &Outcome,
    ) -> Checked {
        let code = ErrorCode::parse(outcome.code.get());
        let what =
            || format!("{}: {place:x?} to {offset} under {generation:x}, {floor:x?}: {code:?}", plan.name);
        if !outcome.is_done() {
            self.fenced += u64::from(code == Some(ErrorCode::StaleGeneration));
            let passes = matches!(code, Some(ErrorCode::StaleGeneration | ErrorCode::UnknownGroup));
            return if passes { Ok(()) } else { super::ledger::judge_refusal(code, what) };
        }
        self.commits += 1;
        if plan.mode == GroupMode::Stream && generation < floor.claimed {
            return Err(wrong("a member that was fenced cannot commit", what()));
        }
        if claimed_at.resets.1 < floor.resets.1 {
            return Err(wrong("after a reset a member asks where it stands", what()));
        }
        let holds = self.holds(place, floor);
        let standing = self.at(place);
        if holds {
            standing.committed = standing.committed.max(Some(offset));
        }
        Ok(())
    }

    /// A reader that had everything below `next` was handed the record at `offset`.
    pub(crate) fn streamed(
        &mut self,
        plan: &GroupPlan,
        place: Place,
        id: RecordId,
        next: u64,
        offset: u64,
    ) -> Checked {
        let what = || format!("{}: {place:x?}: {offset} {id:?} behind {next}", plan.name);
        if offset < next {
            return Err(wrong("a partition is read in its order", what()));
        }
        if !plan.sieve.takes(id) {
            return Err(wrong("a filter leaves out what does not match", what()));
        }
        self.streamed += 1;
        self.passed(place, next, offset);
        self.at(place).read.insert(offset);
        Ok(())
    }

    /// A reader passes over what it was not given.
    pub(crate) fn passed(&mut self, place: Place, from: u64, to: u64) {
        if from < to {
            self.at(place).passed.insert((from, to));
        }
    }
}

impl Model {
    /// Everything has ended and was read: each partition was read without a gap, to its end.
    pub(crate) fn check_positions(&self, plan: &GroupPlan) -> Checked {
        let Some(instances) = self.positions.instances.get(plan.name) else { return Ok(()) };
        // Of a group that was removed nothing is left to be judged.
        let newest = self.ledger.id_of(plan.name);
        for (group, instance) in instances.iter().filter(|one| Some(one.0) == newest) {
            for (topic, count) in &plan.topics {
                for partition in (0..*count).filter_map(|index| self.partition(topic, index)) {
                    self.check_place(plan, Place { group: *group, instance: *instance, partition })?;
                }
            }
        }
        Ok(())
    }

    fn check_place(&self, plan: &GroupPlan, place: Place) -> Checked {
        let Some(records) = self.partitions.get(&place.partition) else { return Ok(()) };
        let standing = self.positions.standings.get(&place);
        let wanted = records.at.range(records.start..).filter(|(_, id)| plan.sieve.takes(**id));
        for (offset, id) in wanted {
            let what = || format!("{}: {place:x?}: {offset} {id:?}", plan.name);
            let Some(standing) = standing else {
                return Err(wrong("every record reaches whoever streams", what()));
            };
            if !standing.read.contains(offset) {
                return Err(wrong("every record reaches whoever streams", what()));
            }
            if let Some(gap) = standing.passed.iter().find(|gap| (gap.0..gap.1).contains(offset)) {
                return Err(wrong("a stream has no gaps", format!("{} in {gap:?}", what())));
            }
        }
        Ok(())
    }
}
