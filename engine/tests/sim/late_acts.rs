//! What clients do with transactions, delays and dead letters, and what must come of it.

use super::late::{Body, Event, State};
use super::model::{Checked, Stored, TopicState, Wrong, digest, wrong};
use super::{Harness, Live, NODE, Step};
use ringmq_engine::format::frame::Frame;
use ringmq_engine::format::late::{BindReason, Late, Mark};
use ringmq_engine::format::record::ProducerStamp;
use ringmq_engine::format::{Lsn, Offset, PartitionId};
use ringmq_engine::shard::{
    AppendError, Appended, Ended, Extent, FoundBody, LateError, NewBind, Peeked, TimerChange, TimerOutcome,
};
use std::collections::BTreeSet;

/// Open transactions of a shard, about.
const TXNS: usize = 4;
/// Bodies that a check peeks at.
const PEEKS: usize = 12;
const GROUP: &str = "payments";

impl Harness {
    pub(super) fn wall_ms(&self) -> i64 {
        self.world.wall_ms(NODE)
    }

    /// Enters the BINDs that a shard has appended. `before_ms` is the wall clock before it could.
    pub(super) fn note_binds(&mut self, shard: usize, before_ms: i64) -> Checked {
        let trace = self.live[shard].shard.take_bind_trace();
        let wall_ms = self.wall_ms().max(before_ms);
        for bound in trace {
            let identity = bound.bind.target.0;
            let durable_at = bound.lsn.plus(ringmq_engine::format::late::BIND_SIZE as u64);
            self.counts.binds += 1;
            let known = &mut self.known[shard];
            known.late.check_bind(identity, bound.bind.reason, wall_ms, bound.timestamp)?;
            let digest = match known.late.now.bodies.get(&identity) {
                Some(body) => body.digest,
                None => known.data.get(&identity).copied().unwrap_or(0),
            };
            known.late.note(durable_at, Event::Bound(identity, bound.bind.reason));
            let topics = known.topics.iter_mut();
            let mut partitions = topics.flat_map(|topic| topic.partitions.iter_mut());
            let Some(partition) = partitions.find(|partition| partition.id == bound.partition) else {
                return Err(wrong("partitions stay", format!("{bound:?}")));
            };
            partition.push(Stored {
                digest,
                offset: bound.base_offset.0,
                count: u64::from(bound.bind.count),
                timestamp: bound.timestamp,
                lsn: bound.lsn,
                durable_at,
                acked: false,
                bound: Some(bound.bind.first_record),
            })?;
        }
        Ok(())
    }

    pub(super) fn live_partitions(&self, shard: usize) -> BTreeSet<PartitionId> {
        let topics = self.known[shard].topics.iter();
        topics
            .filter(|topic| matches!(topic.state, TopicState::Live | TopicState::Creating(_)))
            .flat_map(|topic| topic.partitions.iter().map(|partition| partition.id))
            .collect()
    }

    /// The views of a shard against the model; some bodies are looked at.
    pub(super) fn check_late(&mut self, shard: usize) -> Step<()> {
        let live = self.live_partitions(shard);
        let remembers = self.plan.sim.clock.jump_ms_max < 10_000_000;
        self.known[shard].late.check(self.live[shard].shard.late(), &live, remembers)?;
        let bodies = self.known[shard].late.now.bodies.iter();
        let waiting: Vec<_> = bodies
            .filter(|(_, body)| matches!(body.state, State::Half | State::Delay))
            .filter(|(_, body)| live.contains(&body.partition))
            .map(|(identity, body)| (*identity, *body))
            .collect();
        for _ in 0..PEEKS.min(waiting.len()) {
            let (identity, body) = waiting[self.draw.below(waiting.len() as u64) as usize];
            self.peek(shard, identity, body)?;
        }
        Ok(())
    }

    fn peek(&mut self, shard: usize, identity: u64, body: Body) -> Step<()> {
        for _ in 0..1_000 {
            let Live { ring, shard: live, .. } = &mut self.live[shard];
            let mut found = None;
            let peeked = live.peek(ring, body.partition, Lsn(identity), &mut |bytes| {
                found = Frame::parse(bytes).ok().map(|frame| digest(&frame));
            });
            match peeked {
                Peeked::Frame(_) if found == Some(body.digest) => return Ok(()),
                Peeked::Cold => self.wait_for_page(shard)?,
                // It became visible, or went, while it was read.
                Peeked::Unknown if self.state(shard, identity) != Some(body.state) => return Ok(()),
                Peeked::Unknown if !self.live_partitions(shard).contains(&body.partition) => return Ok(()),
                other => {
                    let details = format!("{identity}: {other:?}, {found:?} instead of {body:?}");
                    return Err(wrong("bytes are what was sent", details).into());
                }
            }
        }
        Err(wrong("progress", format!("{identity} stays cold")).into())
    }

    fn state(&self, shard: usize, identity: u64) -> Option<State> {
        self.known[shard].late.now.bodies.get(&identity).map(|body| body.state)
    }

    /// A frame that waits: of a transaction, or a delay.
    fn late_frame(&mut self, txn: u128, producer: ProducerStamp) -> Vec<u8> {
        let bytes = self.frame(producer);
        let due_ms = if txn == 0 || self.draw.one_in(4) { self.draw_due() } else { 0 };
        let group = if txn == 0 { "" } else { GROUP };
        Late { txn, due_ms, check_after_ms: 0, group }.wrap(&bytes)
    }

    fn draw_due(&mut self) -> i64 {
        let spread = [2, 60, 3_000, 300_000][self.draw.below(4) as usize];
        (self.wall_ms() + self.draw.below(spread) as i64).max(1)
    }

    pub(super) fn delay_frame(&mut self, producer: ProducerStamp) -> Vec<u8> {
        self.late_frame(0, producer)
    }

    /// Sends a frame that waits. `None`: not taken, again later.
    pub(super) fn append_late(
        &mut self,
        shard: usize,
        partition: PartitionId,
        bytes: &[u8],
    ) -> Result<Option<Appended>, Wrong> {
        let frame = Frame::parse(bytes).unwrap();
        let late = Late::parse(&frame).unwrap();
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let appended = match live.append(ring, partition, &frame) {
            Ok(appended) => appended,
            Err(
                AppendError::Busy
                | AppendError::DiskFull
                | AppendError::Poisoned
                | AppendError::TooManyInFlight
                | AppendError::TooManyPending
                | AppendError::TransactionTooLarge,
            ) => return Ok(None),
            Err(error) => {
                let details = format!("{partition}: {late:?}: {error:?}");
                return Err(wrong("what waits is taken", details));
            }
        };
        let digest = digest(&frame);
        self.world.note(&format!("late {digest:x} to {partition}: {appended:?}"));
        let known = self.known[shard].late.by_digest(digest).map(|(identity, body)| (identity, *body));
        match (appended.duplicate, known) {
            (true, Some((identity, _))) if identity == appended.base_offset.0 => {
                self.counts.duplicates += 1;
            }
            (false, None) => {
                let body = Body {
                    digest,
                    count: frame.header.count.get(),
                    len: frame.header.len.get(),
                    partition,
                    txn: late.txn,
                    due_ms: late.due_ms,
                    state: if late.txn == 0 { State::Delay } else { State::Half },
                };
                self.counts.late += 1;
                let event = Event::Stored(appended.base_offset.0, body);
                self.known[shard].late.note(appended.durable_at, event);
            }
            other => {
                let details = format!("{partition}: {appended:?}, stored {other:?}");
                return Err(wrong("a duplicate is told its identity", details));
            }
        }
        Ok(Some(appended))
    }

    pub(super) fn act_late(&mut self, shard: usize) -> Step<()> {
        match self.draw.below(16) {
            0..=4 => self.act_half(shard)?,
            5..=7 => self.act_delay(shard)?,
            8..=10 => self.act_end(shard)?,
            11 => self.act_decision(shard)?,
            12 | 13 => self.act_timer(shard)?,
            14 => self.act_check(shard)?,
            _ => self.act_dead_letter(shard)?,
        }
        Ok(())
    }

    fn act_half(&mut self, shard: usize) -> Step<()> {
        let open = self.known[shard].late.open_txns();
        let txn = if open.len() < TXNS || self.draw.one_in(6) {
            u128::from(self.draw.next()) << 64 | u128::from(self.draw.next() | 1)
        } else {
            open[self.draw.below(open.len() as u64) as usize]
        };
        for _ in 0..1 + self.draw.below(4) {
            let Some((topic, partition)) = self.any_partition(shard) else { return Ok(()) };
            let id = self.known[shard].topics[topic].partitions[partition].id;
            let bytes = self.late_frame(txn, ProducerStamp::default());
            if self.draw.one_in(8) {
                self.refuse_half(shard, id, txn, &bytes)?;
            }
            if self.append_late(shard, id, &bytes)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// While its end is being decided a transaction takes nothing.
    fn refuse_half(&mut self, shard: usize, id: PartitionId, txn: u128, bytes: &[u8]) -> Checked {
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        live.freeze(txn);
        let refused = live.append(ring, id, &Frame::parse(bytes).unwrap());
        live.unfreeze(txn);
        match refused {
            Ok(appended) => Err(wrong("a frozen transaction takes nothing", format!("{appended:?}"))),
            Err(_) => Ok(()),
        }
    }

    fn act_delay(&mut self, shard: usize) -> Step<()> {
        let Some((topic, partition)) = self.any_partition(shard) else { return Ok(()) };
        let id = self.known[shard].topics[topic].partitions[partition].id;
        for _ in 0..1 + self.draw.below(6) {
            let bytes = self.delay_frame(ProducerStamp::default());
            if self.append_late(shard, id, &bytes)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Commits or aborts, one that is open or one that has ended.
    fn act_end(&mut self, shard: usize) -> Step<()> {
        let txns: Vec<_> = self.known[shard].late.now.txns.keys().copied().collect();
        let open = self.known[shard].late.open_txns();
        // One whose end is forgotten is like one that never was: nobody would end it again.
        let remembers = self.plan.sim.clock.jump_ms_max < 10_000_000;
        let from = if remembers && (open.is_empty() || self.draw.one_in(5)) { &txns } else { &open };
        if from.is_empty() {
            return Ok(());
        }
        let txn = from[self.draw.below(from.len() as u64) as usize];
        let commit = self.draw.below(3) > 0;
        let elsewhere = self.draw.one_in(4);
        self.end(shard, txn, commit, elsewhere)
    }

    /// Ends a transaction; `elsewhere`: its coordinator is another shard.
    fn end(&mut self, shard: usize, txn: u128, commit: bool, elsewhere: bool) -> Step<()> {
        let before_ms = self.wall_ms();
        let known = self.known[shard].late.now.txns.get(&txn).cloned().unwrap_or_default();
        if known.decided {
            return Ok(());
        }
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let halves = known.halves.len() as u32;
        let ended = match (commit, elsewhere) {
            (true, true) => live.apply(ring, txn, before_ms),
            (true, false) => live.commit(ring, txn),
            (false, _) => live.abort(ring, txn, halves),
        };
        self.world.note(&format!("end {txn:x}, commit {commit}: {ended:?}"));
        self.note_binds(shard, before_ms)?;
        self.note_end(shard, txn, commit, ended)
    }

    fn note_end(
        &mut self,
        shard: usize,
        txn: u128,
        commit: bool,
        ended: Result<Ended, LateError>,
    ) -> Step<()> {
        let live = self.live_partitions(shard);
        let remembers = self.plan.sim.clock.jump_ms_max < 10_000_000;
        let super::Known { late, cursors, .. } = &mut self.known[shard];
        match ended {
            Ok(Ended { earlier: true, durable_at, .. }) => late.check_told((txn, 0), durable_at)?,
            Err(LateError::Resolved(end)) => late.check_told((txn, 0), end.durable_at)?,
            _ => {}
        }
        let known = late.now.txns.get(&txn).cloned().unwrap_or_default();
        let right = match ended {
            Err(LateError::Busy | LateError::DiskFull | LateError::Poisoned) => return Ok(()),
            Ok(Ended { earlier: true, .. }) => known.end == Some(commit) || !remembers,
            Err(LateError::Resolved(resolution)) => {
                known.end == Some(!commit) && resolution.committed != commit
            }
            Err(LateError::UnknownTransaction) => known.end.is_some() && !remembers,
            Ok(Ended { earlier: false, durable_at, .. }) => {
                let gone = known.halves.iter().filter(|half| {
                    late.now.bodies.get(half).is_some_and(|body| !live.contains(&body.partition))
                });
                let event =
                    if commit { Event::Committed(txn, gone.copied().collect()) } else { Event::Aborted(txn) };
                late.note(durable_at, event);
                cursors.note(durable_at, super::cursors::Event::Ended(txn, commit));
                let forgotten = known.end.is_some() && !remembers;
                known.end.is_none() || known.decided || forgotten
            }
            Err(_) => false,
        };
        if !right {
            let details = format!("{txn:x}: commit {commit}: {ended:?}: {known:?}");
            return Err(wrong("a transaction ends once", details).into());
        }
        let waits = |half: &&u64| late.now.bodies.get(half).is_some_and(|body| body.state == State::Half);
        if matches!(ended, Ok(Ended { earlier: false, .. })) && known.halves.iter().any(|half| waits(&half)) {
            let details = format!("{txn:x}: commit {commit}: halves wait still: {known:?}");
            return Err(wrong("a transaction is all or nothing", details).into());
        }
        Ok(())
    }

    /// A decision, or what is to follow one.
    fn act_decision(&mut self, shard: usize) -> Step<()> {
        let late = &self.known[shard].late;
        let decided = late.now.txns.iter().find(|(_, txn)| txn.decided).map(|(id, txn)| (*id, txn.clone()));
        let Some((txn, known)) = decided else {
            let open = late.open_txns();
            let Some(txn) = open.first().copied() else { return Ok(()) };
            let halves = late.now.txns[&txn].halves.len() as u32;
            let Live { ring, shard: live, .. } = &mut self.live[shard];
            let mark = Mark { txn, participants: 3, halves, group: GROUP, ..Mark::default() };
            let ended = live.decide(ring, &mark);
            self.world.note(&format!("decide {txn:x}: {ended:?}"));
            if let Ok(ended) = ended {
                self.known[shard].late.note(ended.durable_at, Event::Decided(txn));
            }
            return Ok(());
        };
        // Whether the decision is durable is for the coordinator to wait for; here it is in the same log.
        let applied = known
            .halves
            .iter()
            .all(|half| late.now.bodies.get(half).is_some_and(|body| body.state != State::Half));
        let before_ms = self.wall_ms();
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        if !applied {
            let ended = live.apply(ring, txn, before_ms);
            self.world.note(&format!("apply {txn:x}: {ended:?}"));
            self.note_binds(shard, before_ms)?;
            return self.note_end(shard, txn, true, ended);
        }
        if let Ok(at) = live.done(ring, txn) {
            self.world.note(&format!("done {txn:x}: {at}"));
            self.known[shard].late.note(at, Event::Done(txn));
        }
        Ok(())
    }

    /// Cancels a delay or puts it to another time, whatever has become of it.
    fn act_timer(&mut self, shard: usize) -> Step<()> {
        let bodies = &self.known[shard].late.now.bodies;
        if bodies.is_empty() {
            return Ok(());
        }
        let newest = self.draw.below(20.min(bodies.len() as u64)) as usize;
        let Some((identity, body)) = bodies.iter().rev().nth(newest) else { return Ok(()) };
        let (identity, body) = (*identity, *body);
        if !self.live_partitions(shard).contains(&body.partition) {
            return Ok(());
        }
        let due_ms = if self.draw.one_in(2) { Some(self.draw_due()) } else { None };
        let change = TimerChange { identity: Lsn(identity), partition: body.partition, due_ms };
        let invented = TimerChange { identity: Lsn(identity + 4), ..change };
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let changed = live.change_timers(ring, &[change, invented]);
        self.world.note(&format!("change {identity} to {due_ms:?}: {changed:?}"));
        let Ok((outcomes, durable_at)) = changed else { return Ok(()) };
        if let TimerOutcome::Delivered(at) | TimerOutcome::Cancelled(at) = outcomes[0] {
            self.known[shard].late.check_told((0, identity), at)?;
        }
        let remembers = self.plan.sim.clock.jump_ms_max < 10_000_000;
        let right = match (outcomes[0], body.state) {
            (TimerOutcome::Done, State::Delay) => {
                self.known[shard].late.note(durable_at, Event::Timer(identity, due_ms));
                true
            }
            (TimerOutcome::InTransaction, State::Half)
            | (TimerOutcome::Delivered(_), State::Bound { due: true })
            | (TimerOutcome::Cancelled(_), State::Cancelled)
            | (TimerOutcome::Unknown, State::Void | State::Bound { due: false }) => true,
            (TimerOutcome::Unknown, State::Bound { .. } | State::Cancelled) => !remembers,
            _ => false,
        };
        if !right || outcomes[1] != TimerOutcome::Unknown {
            let details = format!("{identity}: {outcomes:?}: {body:?}");
            return Err(wrong("a delay's change is answered as it is", details).into());
        }
        Ok(())
    }

    fn act_check(&mut self, shard: usize) -> Step<()> {
        let open = self.known[shard].late.open_txns();
        let Some(txn) = open.first().copied() else { return Ok(()) };
        let (attempts, parked) = (self.draw.below(16) as u16, self.draw.one_in(3));
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        if let Ok(at) = live.note_check(ring, txn, GROUP, attempts, parked) {
            self.known[shard].late.note(at, Event::Checked(txn, attempts, parked));
        }
        Ok(())
    }

    /// A visible record gets a second place.
    fn act_dead_letter(&mut self, shard: usize) -> Step<()> {
        let Some((topic, partition)) = self.any_partition(shard) else { return Ok(()) };
        let Some((to_topic, to)) = self.any_partition(shard) else { return Ok(()) };
        let id = self.known[shard].topics[topic].partitions[partition].id;
        let to = self.known[shard].topics[to_topic].partitions[to].id;
        let Extent { start, visible } = self.extent(shard, id)?;
        if start == visible {
            return Ok(());
        }
        // Often from the oldest segment, which retention may be about to take.
        let span = if self.draw.one_in(2) { (visible.0 - start.0).min(8) } else { visible.0 - start.0 };
        let offset = Offset(start.0 + self.draw.below(span));
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let found = live.find_body(ring, id, offset);
        let body = match found {
            FoundBody::Body(body) => body,
            FoundBody::Cold => return Ok(()),
            other => {
                let details = format!("{id}: {offset}: {other:?}");
                return Err(wrong("everything is served", details).into());
            }
        };
        let before_ms = self.wall_ms();
        let stored = self.known[shard].topics[topic].partitions[partition].at(offset.0).copied();
        if let Some(stored) = stored {
            let first_record = stored.bound.unwrap_or(0) + (offset.0 - stored.offset) as u32;
            if body.first_record != first_record || u64::from(body.count) != stored.end() - offset.0 {
                return Err(wrong("bodies are found", format!("{body:?} of {stored:?}")).into());
            }
            let known = &mut self.known[shard];
            if !known.late.now.bodies.contains_key(&body.identity.0) {
                known.data.insert(body.identity.0, stored.digest);
            }
        }
        let Live { ring, shard: live, .. } = &mut self.live[shard];
        let new = NewBind {
            partition: to,
            body: ringmq_engine::shard::BodyRef { count: 1, ..body },
            reason: BindReason::DeadLetter,
            origin: (id, offset),
            detail: 3,
            owner: 4,
        };
        let bound = live.bind(ring, &[new], None);
        self.world.note(&format!("dead letter {id} {offset} to {to}: {bound:?}"));
        self.note_binds(shard, before_ms)?;
        Ok(())
    }

    /// Waits until everything that is due has become visible, and looks at it.
    pub(super) fn drain_timers(&mut self, us: u64) -> Step<()> {
        let until = self.world.now_us() + us;
        for shard in 0..self.live.len() {
            self.tick(shard)?;
        }
        self.pump_until("time", |own| own.world.now_us() >= until)?;
        let wall_ms = self.wall_ms();
        if self.plan.sim.clock.jump_every_us != 0 {
            return Ok(()); // what is due depends on when it is asked
        }
        for shard in 0..self.live.len() {
            let live = self.live_partitions(shard);
            let bodies = self.known[shard].late.now.bodies.iter();
            let late = bodies
                .filter(|(_, body)| body.state == State::Delay && live.contains(&body.partition))
                .find(|(_, body)| body.due_ms + 10 < wall_ms);
            if let Some(late) = late
                && self.live[shard].shard.log().free_slots() > 0
            {
                return Err(wrong("progress", format!("at {wall_ms} {late:?} waits still")).into());
            }
        }
        Ok(())
    }

    fn wait_for_page(&mut self, shard: usize) -> Step<()> {
        // A look is part of a turn: its page is asked for at the end of it.
        self.tick(shard)?;
        self.check_alive()?;
        let mut turns = 0;
        while !self.live[shard].shard.take_cold_progress() && turns < 1000 {
            self.pump()?;
            turns += 1;
        }
        Ok(())
    }
}
