//! A client that sends transactions and delays, leaves some of them open, and answers when it is asked about those.
//!
//! What it knows it tells the model: a record is *hidden* until its commit is asked for, *may* be seen from then on, and
//! *must* be there once the commit, or the delay, was acknowledged.

use super::client::{Context, Core, NODE, Role, Tag};
use super::model::{Checked, Late, RecordId, body, record, wrong};
use bytes::Bytes;
use ringmq_client::core::Refused;
use ringmq_client::core::connection::{Event, FrameOutcome, Message, ServerInfo, Target};
use ringmq_client::{Codec, ErrorCode, FrameBuilder, ProducerStamp, Retry, TransactionEnd};
use ringmq_engine::format::late::Late as Extension;
use ringmq_engine::format::limits::frame_size_max;
use ringmq_protocol::{EndSource, EndTransaction, Request, Response, TimerChange};
use std::collections::BTreeMap;
use std::sync::Arc;

const GROUP: &str = "sim-producers";

/// A transaction or a delay as its sender knows it.
#[derive(Clone, Debug, Default)]
struct Sent {
    /// 0: a delay.
    txn: u128,
    due_ms: i64,
    acked: Vec<RecordId>,
    /// Nobody knows whether they are stored.
    unsure: Vec<RecordId>,
    commits: bool,
    /// Of an acknowledged delay: partition and identity.
    handle: (u32, u64),
}

impl Sent {
    fn all(&self) -> impl Iterator<Item = RecordId> {
        self.acked.iter().chain(&self.unsure).copied()
    }

    fn end(&self, source: EndSource, attempt: u16) -> EndTransaction<'static> {
        let halves = if self.unsure.is_empty() { self.acked.len() as u32 } else { 0 };
        let resolution = if self.commits { TransactionEnd::Commit } else { TransactionEnd::Abort };
        EndTransaction { txn: self.txn, resolution, source, group: GROUP, halves, positions: 0, attempt }
    }
}

#[derive(Debug)]
enum Doing {
    Nothing,
    Sending(Sent, Vec<RecordId>),
    /// `true`: asked, and not answered.
    Ending(Sent, bool),
    Cancelling(Sent, bool),
}

pub(crate) struct Transacting {
    topics: Vec<(&'static str, u32)>,
    doing: Doing,
    /// Left open, by id.
    open: BTreeMap<u128, Sent>,
    left: u64,
    act_at: u64,
    last_due_ms: i64,
    settled: bool,
    ended: u64,
}

impl Transacting {
    pub(crate) fn new(cx: &mut Context<'_>) -> Self {
        Self {
            topics: cx.plan.topics.clone(),
            doing: Doing::Nothing,
            open: BTreeMap::new(),
            left: cx.plan.records / 2,
            act_at: cx.now,
            last_due_ms: 0,
            settled: false,
            ended: 0,
        }
    }

    fn begin(&mut self, cx: &mut Context<'_>, link: &mut Core) -> Checked {
        let is_delay = cx.draw.one_in(4);
        let now_ms = cx.world.wall_ms(NODE);
        let mut sent = Sent { commits: !cx.draw.one_in(3), ..Sent::default() };
        if !is_delay {
            sent.txn = u128::from(cx.draw.next() | 1) << 64 | u128::from(cx.draw.next());
        }
        if is_delay || cx.draw.one_in(5) {
            sent.due_ms = now_ms + 1 + cx.draw.below(400) as i64;
            self.last_due_ms = self.last_due_ms.max(sent.due_ms);
            self.settled = false;
        }
        let halves = if is_delay { 1 } else { 1 + cx.draw.below(5) };
        let mut frames = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..halves {
            let (topic, partitions) = cx.draw.pick(&self.topics);
            let partition = cx.draw.below(u64::from(partitions)) as u32;
            let id = RecordId { producer: cx.model.next_producer(), lane: partition, number: 0 };
            let body = body(id, cx.draw.below(cx.plan.body_max));
            let mut builder = FrameBuilder::new(1_000, frame_size_max(cx.plan.segment_size));
            if builder.push(&record(id, &body)).is_err() {
                continue;
            }
            let frame = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
            let group = if is_delay { "" } else { GROUP };
            let late = Extension { txn: sent.txn, due_ms: sent.due_ms, check_after_ms: 0, group };
            cx.model.sent(id);
            cx.model.late(id, if is_delay { Late::May } else { Late::Hidden })?;
            if sent.due_ms > 0 {
                cx.model.due_ms.insert(id, sent.due_ms);
            }
            ids.push(id);
            frames.push((Target { topic: Arc::from(topic), partition }, Bytes::from(late.wrap(&frame))));
            sent.handle.0 = cx.model.partition(topic, partition).map_or(0, |id| id.0);
        }
        self.left = self.left.saturating_sub(1);
        cx.note(|| format!("transaction {:032x} of {ids:?}", sent.txn));
        link.produce(cx.now, Tag::Ignored, frames.iter().map(|(target, frame)| (target, frame.clone())));
        self.doing = Doing::Sending(sent, ids);
        Ok(())
    }

    fn sent(&mut self, cx: &mut Context<'_>, outcomes: Vec<FrameOutcome>) -> Checked {
        let Doing::Sending(mut sent, ids) = std::mem::replace(&mut self.doing, Doing::Nothing) else {
            return Ok(());
        };
        for (id, outcome) in ids.into_iter().zip(outcomes) {
            match outcome {
                Ok(stored) => {
                    sent.handle.1 = stored.base_offset;
                    sent.acked.push(id);
                }
                Err(refused) if refused.retry() == Retry::Yes => cx.model.absent(id)?,
                Err(refused) if refused.retry() == Retry::OutcomeUnknown => sent.unsure.push(id),
                Err(refused) => {
                    return Err(wrong("what may be stored is stored", format!("{id:?}: {refused:?}")));
                }
            }
        }
        self.go_on(cx, sent)
    }

    /// It is known what of it is stored, as far as anybody knows.
    fn go_on(&mut self, cx: &mut Context<'_>, sent: Sent) -> Checked {
        if sent.txn == 0 {
            if sent.acked.is_empty() {
                return Ok(());
            }
            if sent.commits {
                return sent.acked.iter().try_for_each(|id| cx.model.late(*id, Late::Must));
            }
            self.doing = Doing::Cancelling(sent, false);
        } else if sent.all().next().is_none() {
            // Nothing of it is there.
        } else if !cx.calm && cx.draw.one_in(4) {
            self.open.insert(sent.txn, sent);
        } else {
            self.doing = Doing::Ending(sent, false);
        }
        Ok(())
    }

    /// A commit is about to be asked for.
    fn may_be_seen(cx: &mut Context<'_>, sent: &Sent) -> Checked {
        if !sent.commits {
            return Ok(());
        }
        sent.all().try_for_each(|id| cx.model.late(id, Late::May))
    }

    /// The answer to an END_TRANSACTION; gives it back if it has to be asked again.
    fn ended(
        &mut self,
        cx: &mut Context<'_>,
        sent: Sent,
        result: &Result<Message, Refused>,
    ) -> Result<Option<Sent>, super::model::Wrong> {
        cx.note(|| format!("the end of {:032x} is answered {result:?}", sent.txn));
        let details = || format!("{:032x} {:?}: {result:?}", sent.txn, sent.acked);
        match result {
            Ok(message) => {
                let Ok(Response::Ended(ended)) = message.response() else {
                    return Err(wrong("answers are what was asked for", details()));
                };
                if (ended.halves as usize) < sent.acked.len() {
                    return Err(wrong("an acknowledged half is part of its transaction", details()));
                }
                let fate = if sent.commits { Late::Must } else { Late::Hidden };
                sent.acked.iter().try_for_each(|id| cx.model.late(*id, fate))?;
                self.ended += 1;
                cx.model.transactions += 1;
                self.last_due_ms = self.last_due_ms.max(sent.due_ms);
                self.settled = false;
                Ok(None)
            }
            Err(refused) => match refused.code() {
                Some(ErrorCode::UnknownTransaction) if sent.acked.is_empty() => Ok(None),
                _ if refused.retry() == Retry::No => {
                    Err(wrong("a transaction ends as its producer says", details()))
                }
                _ => Ok(Some(sent)),
            },
        }
    }

    fn cancelled(&mut self, cx: &mut Context<'_>, sent: Sent, result: &Result<Message, Refused>) -> Checked {
        let details = || format!("{:?} {:?}: {result:?}", sent.handle, sent.acked);
        let fate = match result {
            Ok(_) => Late::Hidden,
            Err(refused) => match refused.code() {
                Some(ErrorCode::TimerDelivered) => Late::Must,
                _ if refused.retry() == Retry::No => {
                    return Err(wrong("an acknowledged delay is known", details()));
                }
                _ => {
                    self.doing = Doing::Cancelling(sent, false);
                    return Ok(());
                }
            },
        };
        sent.acked.iter().try_for_each(|id| cx.model.late(*id, fate))
    }

    fn check(&mut self, cx: &mut Context<'_>, link: &mut Core, message: &Message) -> Checked {
        let Ok(Response::Check(check)) = message.response() else {
            return Err(wrong("answers are what was asked for", "not a check"));
        };
        cx.model.checks += 1;
        let end = match self.open.get(&check.txn) {
            Some(sent) if !cx.draw.one_in(3) => {
                Self::may_be_seen(cx, sent)?;
                sent.end(EndSource::Check, check.attempt)
            }
            // It is still being worked on, or of another client.
            _ => EndTransaction {
                txn: check.txn,
                resolution: TransactionEnd::Unknown,
                source: EndSource::Check,
                group: GROUP,
                halves: 0,
                positions: 0,
                attempt: check.attempt,
            },
        };
        let tag = match end.resolution {
            TransactionEnd::Unknown => Tag::Ignored,
            _ => Tag::Checked { txn: end.txn },
        };
        link.call(cx.now, tag, &Request::EndTransaction(end));
        Ok(())
    }
}

impl Role for Transacting {
    fn ready(&mut self, cx: &mut Context<'_>, _: &ServerInfo) {
        self.act_at = cx.now;
    }

    fn event(&mut self, cx: &mut Context<'_>, link: &mut Core, event: Event<Tag>) -> Checked {
        match event {
            Event::Produced { result, .. } => match result {
                Ok(outcomes) => self.sent(cx, outcomes)?,
                Err(refused) => {
                    let Doing::Sending(_, ids) = &self.doing else { return Ok(()) };
                    let outcomes = ids.iter().map(|_| Err(refused.clone())).collect();
                    self.sent(cx, outcomes)?;
                }
            },
            Event::Answer { tag: Tag::Step, result } => {
                match std::mem::replace(&mut self.doing, Doing::Nothing) {
                    Doing::Ending(sent, _) => {
                        if let Some(again) = self.ended(cx, sent, &result)? {
                            self.doing = Doing::Ending(again, false);
                        }
                    }
                    Doing::Cancelling(sent, _) => self.cancelled(cx, sent, &result)?,
                    other => self.doing = other,
                }
            }
            Event::Answer { tag: Tag::Checked { txn }, result } => {
                // It may have been ended in the meantime by the producer that has it.
                if let Some(sent) = self.open.remove(&txn)
                    && let Some(again) = self.ended(cx, sent, &result)?
                {
                    self.open.insert(txn, again);
                }
            }
            Event::Check { message, .. } => self.check(cx, link, &message)?,
            _ => {}
        }
        self.act_at = cx.pause();
        Ok(())
    }

    fn lost(&mut self, cx: &mut Context<'_>, _: Vec<Tag>) -> Checked {
        match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Sending(mut sent, ids) => {
                sent.unsure.extend(ids);
                self.go_on(cx, sent)?;
            }
            Doing::Ending(sent, _) => self.doing = Doing::Ending(sent, false),
            Doing::Cancelling(sent, _) => self.doing = Doing::Cancelling(sent, false),
            Doing::Nothing => {}
        }
        self.act_at = cx.now;
        Ok(())
    }

    fn drive(&mut self, cx: &mut Context<'_>, link: Option<&mut Core>) -> Checked {
        if cx.now < self.act_at {
            return Ok(());
        }
        self.act_at = cx.pause();
        self.settled = cx.world.wall_ms(NODE) > self.last_due_ms + 1_000;
        let Some(link) = link else { return Ok(()) };
        if !cx.model.is_founded(&self.topics) {
            self.act_at = cx.now + 5_000;
            return Ok(());
        }
        if cx.calm && matches!(self.doing, Doing::Nothing) {
            if let Some((_, sent)) = self.open.pop_first() {
                self.doing = Doing::Ending(sent, false);
            }
            // A clock that went back may have left what is due far ahead.
            let ahead_ms = self.last_due_ms - cx.world.wall_ms(NODE);
            if ahead_ms > 5_000 {
                cx.world.jump_clock(NODE, ahead_ms);
            }
            self.act_at = cx.now + 2_000;
        }
        match &mut self.doing {
            Doing::Ending(sent, asked) if !*asked => {
                *asked = true;
                let (sent, source) = (sent.clone(), EndSource::Producer);
                Self::may_be_seen(cx, &sent)?;
                link.call(cx.now, Tag::Step, &Request::EndTransaction(sent.end(source, 0)));
            }
            Doing::Cancelling(sent, asked) if !*asked => {
                *asked = true;
                let (partition, lsn) = sent.handle;
                let cancel = TimerChange::Cancel { partition, lsn };
                link.call(cx.now, Tag::Step, &Request::ChangeTimer(cancel));
            }
            Doing::Nothing if !cx.calm && self.left > 0 => {
                if cx.draw.one_in(6) {
                    link.register_producer(cx.now, Tag::Ignored, GROUP);
                }
                self.begin(cx, link)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn deadline(&self) -> u64 {
        self.act_at
    }

    fn is_idle(&self) -> bool {
        matches!(self.doing, Doing::Nothing) && self.open.is_empty() && self.settled
    }

    fn name(&self) -> String {
        format!("transactions: {} ended, {} open, {:?}", self.ended, self.open.len(), self.doing)
    }
}
