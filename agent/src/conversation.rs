//! One session's talk with the leader, without its stream: what a heartbeat says, what an answer renews, when to give up.
//! Left out: finding the leader and the stream itself (`session`).

use std::time::Duration;

use vp_proto::v1::{Ack, Heartbeat, Released, Welcome, agent_message};

use crate::clock::Instant;
use crate::lease::Renewal;
use crate::mutant;
use crate::shared::Shared;
use crate::slot::Slot;

/// Intervals as the welcome set them, and when which side last spoke.
pub struct Conversation {
    lease: Duration,
    every: Duration,
    sent: Instant,
    heard: Instant,
}

impl Conversation {
    /// After a welcome at `now`. Its figures come over the wire and are bounded here.
    pub fn new(welcome: &Welcome, now: Instant) -> Self {
        let lease = Duration::from_millis(welcome.lease_ms.clamp(500, 60_000));
        let every = Duration::from_millis(welcome.heartbeat_ms).clamp(Duration::from_millis(50), lease / 3);
        Self { lease, every, sent: now, heard: now }
    }

    /// Time between heartbeats.
    pub fn every(&self) -> Duration {
        self.every
    }

    /// How long the leader may leave heartbeats unanswered.
    pub fn patience(&self) -> Duration {
        self.lease / 2
    }

    /// Connected is not led: a leader cut off from its quorum stays silent, another may lead.
    pub fn is_over(&self, now: Instant) -> bool {
        now.since(self.heard) > self.patience()
    }

    /// News may be told early, but no more often than four times an interval.
    pub fn may_tell_news(&self, now: Instant) -> bool {
        now.since(self.sent) >= self.every / 4
    }

    /// The heartbeat that leaves at `now`, and our word for what was given back.
    pub fn speak(&mut self, sequence: u64, shared: &Shared, now: Instant) -> Vec<agent_message::Body> {
        let report = shared.report().clone();
        self.sent = now;
        // Before it leaves: a deadline may be too early, never too late.
        shared.leases().sent(sequence, now, report.pairs);
        let heartbeat = Heartbeat { sequence, slots: report.slots, measures: Some(report.measures) };
        let said = report.released.into_iter().map(|slot| agent_message::Body::Released(Released { slot: Some(slot) }));
        std::iter::once(agent_message::Body::Heartbeat(heartbeat)).chain(said).collect()
    }

    /// What an acknowledgement that came at `now` renews.
    pub fn hear(&mut self, ack: &Ack, shared: &Shared, now: Instant) -> Vec<Renewal> {
        self.heard = now;
        let named: Vec<(Slot, u64)> = ack.renewed.iter().filter_map(|pair| Some((Slot::try_from(pair.slot.as_ref()?).ok()?, pair.generation))).collect();
        if mutant!("lease-from-receipt") {
            shared.leases().sent(ack.sequence, now, named.iter().cloned().collect());
        }
        shared.leases().acknowledged(ack.sequence, &named, self.lease)
    }
}
