//! The queues between shards: bounded, one producer and one consumer each, one for each ordered pair.
//!
//! Invariants  M1  A queue has a bound. What does not fit waits in `outbox`, which is bounded by the requests that
//!                 were admitted, because only answers and notices of admitted work go there.
//!             M2  A peer that sleeps is rung once a turn, after everything was pushed.
//! Ignorant of what the messages say.

use super::mail::Mail;
use ringmq_engine::ring::Doorbell;
use std::collections::VecDeque;

/// Messages that a queue holds.
const QUEUE_MESSAGES: usize = 1024;

/// One shard's ends of the queues to and from another.
struct Peer {
    to: rtrb::Producer<Mail>,
    from: rtrb::Consumer<Mail>,
    doorbell: Option<Doorbell>,
    outbox: VecDeque<Mail>,
    pushed: bool,
}

/// The queues of one shard.
pub struct Mailboxes {
    own: u16,
    peers: Vec<Option<Peer>>,
}

/// The queues between `shards` shards, in the order of the shards.
pub fn mesh(shards: u16) -> Vec<Mailboxes> {
    let count = usize::from(shards);
    let mut to: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    for (sender, ends) in to.iter_mut().enumerate() {
        for (receiver, arrivals) in from.iter_mut().enumerate() {
            let ends_of_pair = (sender != receiver).then(|| rtrb::RingBuffer::new(QUEUE_MESSAGES)).unzip();
            ends.push(ends_of_pair.0);
            arrivals.push(ends_of_pair.1);
        }
    }
    to.into_iter()
        .zip(from)
        .zip(0..shards)
        .map(|((to, from), own)| {
            let peers = to.into_iter().zip(from).map(|(to, from)| {
                let (to, from) = to.zip(from)?;
                Some(Peer { to, from, doorbell: None, outbox: VecDeque::new(), pushed: false })
            });
            Mailboxes { own, peers: peers.collect() }
        })
        .collect()
}

impl Mailboxes {
    /// The shard that these belong to.
    pub fn own(&self) -> u16 {
        self.own
    }

    /// Shards in all.
    pub(super) fn shards(&self) -> u16 {
        self.peers.len() as u16
    }

    /// How to wake each shard, in the order of the shards.
    pub fn set_doorbells(&mut self, doorbells: &[Doorbell]) {
        for (peer, doorbell) in self.peers.iter_mut().zip(doorbells) {
            if let Some(peer) = peer {
                peer.doorbell = Some(doorbell.clone());
            }
        }
    }

    /// Sends, or keeps for the next turn what does not fit now.
    pub(super) fn send(&mut self, shard: u16, mail: Mail) {
        let Some(Some(peer)) = self.peers.get_mut(usize::from(shard)) else {
            panic!("shard {} has no queue to shard {shard}", self.own);
        };
        peer.pushed = true;
        if peer.outbox.is_empty() {
            if let Err(rtrb::PushError::Full(mail)) = peer.to.push(mail) {
                peer.outbox.push_back(mail);
            }
        } else {
            peer.outbox.push_back(mail);
        }
    }

    /// The queue to a shard is full: admit nothing new for it.
    pub(super) fn is_full(&self, shard: u16) -> bool {
        self.peers
            .get(usize::from(shard))
            .and_then(Option::as_ref)
            .is_some_and(|peer| !peer.outbox.is_empty())
    }

    /// The next message from any shard.
    pub(super) fn receive(&mut self) -> Option<Mail> {
        self.peers.iter_mut().flatten().find_map(|peer| peer.from.pop().ok())
    }

    /// Sends what was kept and wakes the shards that were sent something (M2). Answers whether anything is left.
    pub(super) fn flush(&mut self) -> bool {
        let mut left = false;
        for peer in self.peers.iter_mut().flatten() {
            while let Some(mail) = peer.outbox.pop_front() {
                if let Err(rtrb::PushError::Full(mail)) = peer.to.push(mail) {
                    peer.outbox.push_front(mail);
                    break;
                }
                peer.pushed = true;
            }
            left |= !peer.outbox.is_empty();
            if std::mem::take(&mut peer.pushed)
                && let Some(doorbell) = &peer.doorbell
            {
                doorbell.ring();
            }
        }
        left
    }
}
