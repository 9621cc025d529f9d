//! Leader memory of the agents' sessions: who was heard when, what each slot's process does, and each node's desired set, latest value wins.
//! Nothing here is replicated; a new leader starts empty.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::watch;
use vp_cluster::{
    ClusterState, Generation, NodeId, Session, SlotId,
    observe::{NodeSeen, Observations, Phase, SlotSeen, in_step},
    self_watch::SelfWatch,
};
use vp_proto::v1;

use crate::desired::Wishes;

/// One agent's live session.
struct Entry {
    session: Session,
    /// Which stream serves it: a later one replaces an earlier.
    stream: u64,
    heard_ms: Option<u64>,
    acknowledged_ms: Option<u64>,
    connected: bool,
    /// Its loss is being proposed: never acknowledged again.
    condemned: bool,
    slots: BTreeMap<SlotId, v1::SlotObservation>,
    measures: Option<v1::NodeMeasures>,
    desired: watch::Sender<Option<v1::Desired>>,
    /// The members in it: as long as the list is this very one, nothing needs to be compared.
    members: Arc<Vec<v1::Member>>,
}

/// A node as people see it.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    pub silent_ms: u64,
    pub heard: bool,
    pub measures: Option<v1::NodeMeasures>,
}

/// Milliseconds on some clock.
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

pub struct Registry {
    clock: Clock,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    leading_since_ms: u64,
    own: SelfWatch,
    streams: u64,
    entries: BTreeMap<NodeId, Entry>,
    /// Everybody who is placed, as published last.
    members: Arc<Vec<v1::Member>>,
    /// Somebody has opened a stream since sets were published.
    untold: bool,
    /// Whose registration is being decided, and since when: its hello was its last word until its stream is open.
    expected_ms: BTreeMap<NodeId, u64>,
}

/// What a heartbeat said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The same as the one before.
    Same,
    /// Another slot, generation or phase: the control loop should look.
    Changed,
    /// Nothing: this stream has been replaced and should end.
    Replaced,
}

/// A stream's hold on its session.
pub struct Seat {
    pub stream: u64,
    pub desired: watch::Receiver<Option<v1::Desired>>,
}

impl Default for Registry {
    /// On this process's monotonic clock.
    fn default() -> Self {
        let started = Instant::now();
        Self::on(Box::new(move || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Registry {
    /// On a clock that never goes back.
    pub fn on(clock: Clock) -> Self {
        Self { clock, inner: Mutex::default() }
    }

    /// Milliseconds on its clock.
    pub fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    /// A sign of life to oneself: after a long gap nothing that was not heard in it counts.
    pub fn look(&self, lease_ms: u64) {
        let now = self.now_ms();
        self.lock().own.look(now, lease_ms);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A term of leadership begins: all memory of earlier ones is void.
    pub fn begin_term(&self) {
        let now = self.now_ms();
        let mut inner = self.lock();
        inner.entries.clear();
        inner.expected_ms.clear();
        inner.leading_since_ms = now;
    }

    /// The registration of a node that has said hello is about to be proposed. From its place in the log to its stream it is a node that has no entry here, or the
    /// old one of an earlier session: judged by that it would be lost as soon as it is there.
    pub fn expect(&self, node: &NodeId) {
        let now = self.now_ms();
        self.lock().expected_ms.insert(node.clone(), now);
    }

    /// A verified node opens a stream. None: its loss is being decided, it may not come back under this session.
    pub fn open(&self, node: &NodeId, session: Session) -> Option<Seat> {
        let now = self.now_ms();
        let mut inner = self.lock();
        inner.streams += 1;
        let stream = inner.streams;
        if inner.entries.get(node).is_some_and(|entry| entry.condemned && entry.session == session) {
            return None;
        }
        let (desired, receiver) = watch::channel(None);
        let (slots, measures) = inner.entries.remove(node).map(|old| (old.slots, old.measures)).unwrap_or_default();
        let entry = Entry {
            session,
            stream,
            heard_ms: Some(now),
            acknowledged_ms: None,
            connected: true,
            condemned: false,
            slots,
            measures,
            desired,
            members: Arc::default(),
        };
        inner.entries.insert(node.clone(), entry);
        inner.untold = true;
        inner.expected_ms.remove(node);
        Some(Seat { stream, desired: receiver })
    }

    /// The stream ended; the node may be gone, or come back.
    pub fn close(&self, node: &NodeId, stream: u64) {
        if let Some(entry) = self.lock().entries.get_mut(node).filter(|entry| entry.stream == stream) {
            entry.connected = false;
        }
    }

    /// A heartbeat.
    pub fn heard(&self, node: &NodeId, stream: u64, slots: BTreeMap<SlotId, v1::SlotObservation>, measures: Option<v1::NodeMeasures>) -> Heard {
        let now = self.now_ms();
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(node).filter(|entry| entry.stream == stream) else { return Heard::Replaced };
        entry.heard_ms = Some(now);
        let same = |((a, old), (b, new)): ((&SlotId, &v1::SlotObservation), (&SlotId, &v1::SlotObservation))| {
            a == b && old.generation == new.generation && old.phase == new.phase
        };
        let changed = entry.slots.len() != slots.len() || !entry.slots.iter().zip(&slots).all(same);
        entry.slots = slots;
        entry.measures = measures.or(entry.measures.take());
        if changed { Heard::Changed } else { Heard::Same }
    }

    /// About to acknowledge. False: condemned or replaced, nothing may be acknowledged.
    pub fn acknowledge(&self, node: &NodeId, stream: u64) -> bool {
        let now = self.now_ms();
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(node).filter(|entry| entry.stream == stream && !entry.condemned) else { return false };
        entry.acknowledged_ms = Some(now);
        true
    }

    /// From here on the session is never acknowledged again: its loss is about to be proposed. False, and nothing has changed: it has been acknowledged since
    /// its silence was looked at (`acknowledged_ms` as it was then), so its lease runs longer than that look knew.
    pub fn condemn(&self, node: &NodeId, acknowledged_ms: Option<u64>) -> bool {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(node) else { return true };
        if entry.acknowledged_ms != acknowledged_ms {
            return false;
        }
        entry.condemned = true;
        true
    }

    /// Publishes each node's desired set if its content has changed. A node that holds nothing is not told who else there is: it would be told at every move.
    pub fn publish<'a>(&self, nodes: impl Iterator<Item = &'a NodeId>, mut wishes: Wishes) {
        let mut inner = self.lock();
        inner.untold = false;
        if *inner.members != wishes.members {
            inner.members = Arc::new(std::mem::take(&mut wishes.members));
        }
        let (everybody, nobody) = (inner.members.clone(), Arc::default());
        for node in nodes {
            let Some(entry) = inner.entries.get_mut(node) else { continue };
            let assignments = wishes.assignments.remove(node).unwrap_or_default();
            let members = if assignments.is_empty() { &nobody } else { &everybody };
            let known = Arc::ptr_eq(&entry.members, members) || *entry.members == **members;
            entry.desired.send_if_modified(|current| {
                let same = known && current.as_ref().is_some_and(|old| old.assignments == assignments);
                if !same {
                    *current = Some(v1::Desired { term: wishes.term, revision: wishes.revision, assignments, members: members.to_vec() });
                }
                !same
            });
            entry.members = members.clone();
        }
    }

    /// Whether somebody waits for a desired set, however old the last one is.
    pub fn is_untold(&self) -> bool {
        self.lock().untold
    }

    /// Nodes with a session whose stream is gone or which have been silent for longer than `silent_ms`.
    pub fn suspects(&self, silent_ms: u64) -> Vec<NodeId> {
        let now = self.now_ms();
        let inner = self.lock();
        let suspect = |entry: &Entry| !entry.connected || entry.heard_ms.is_none_or(|heard| now.saturating_sub(heard) > silent_ms);
        inner.entries.iter().filter(|(_, entry)| suspect(entry)).map(|(node, _)| node.clone()).collect()
    }

    /// Fills in what this memory knows. Of a slot only its holder's word counts, at the generation it holds: what others report of it, or what it reports
    /// of an earlier time, says nothing.
    pub fn observe(&self, state: &ClusterState, obs: &mut Observations) {
        obs.now_ms = self.now_ms();
        let inner = self.lock();
        obs.trusted_since_ms = inner.own.trusted_since_ms(obs.now_ms, obs.lease_ms);
        obs.leading_since_ms = inner.leading_since_ms;
        let mut unknown = Vec::new();
        for (node, entry, seen) in in_step(inner.entries.iter(), obs.nodes.iter_mut()) {
            match seen {
                Some(seen) => (seen.heard_ms, seen.acknowledged_ms) = (entry.heard_ms, entry.acknowledged_ms),
                None => {
                    let seen = NodeSeen { heard_ms: entry.heard_ms, acknowledged_ms: entry.acknowledged_ms, ..NodeSeen::default() };
                    unknown.push((node.clone(), seen));
                }
            }
            for (slot, report) in &entry.slots {
                let generation = Generation(report.generation);
                if state.slots.get(slot).is_some_and(|live| live.holder.as_ref() == Some(node) && live.generation == generation) {
                    let seen = SlotSeen {
                        generation,
                        phase: phase(report.phase()),
                        ends_in_a_row: report.ends_in_a_row,
                        facts: report.facts.clone().into_iter().collect(),
                    };
                    obs.slots.insert(slot.clone(), seen);
                }
            }
        }
        obs.nodes.extend(unknown);
        for (node, expected_ms) in &inner.expected_ms {
            let seen = obs.nodes.entry(node.clone()).or_default();
            seen.heard_ms = seen.heard_ms.max(Some(*expected_ms));
        }
    }

    /// The holder's report of a slot.
    pub fn report(&self, node: &NodeId, slot: &SlotId) -> Option<v1::SlotObservation> {
        self.lock().entries.get(node)?.slots.get(slot).cloned()
    }

    /// Those that have not been heard in this term.
    pub fn unheard<'a>(&self, nodes: impl Iterator<Item = &'a NodeId>) -> Vec<NodeId> {
        let inner = self.lock();
        nodes.filter(|node| inner.entries.get(node).is_none_or(|entry| entry.heard_ms.is_none())).cloned().collect()
    }

    pub fn view(&self, node: &NodeId) -> NodeView {
        let now = self.now_ms();
        let inner = self.lock();
        let Some(entry) = inner.entries.get(node) else { return NodeView::default() };
        NodeView { silent_ms: entry.heard_ms.map_or(0, |heard| now.saturating_sub(heard)), heard: entry.heard_ms.is_some(), measures: entry.measures }
    }
}

fn phase(phase: v1::Phase) -> Phase {
    match phase {
        v1::Phase::Unspecified => Phase::Unknown,
        v1::Phase::Waiting => Phase::Waiting,
        v1::Phase::Starting => Phase::Starting,
        v1::Phase::Healthy => Phase::Healthy,
        v1::Phase::Unhealthy => Phase::Unhealthy,
        v1::Phase::Stopping => Phase::Stopping,
        v1::Phase::Stopped => Phase::Stopped,
        v1::Phase::Backoff => Phase::Backoff,
    }
}

#[cfg(test)]
mod tests;
