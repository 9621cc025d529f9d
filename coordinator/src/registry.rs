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
    observe::{NodeSeen, Observations, Phase, SlotSeen},
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
        // Both maps are in order of ids: one walk instead of ten thousand searches.
        let mut known = obs.nodes.iter_mut().peekable();
        let mut unknown = Vec::new();
        for (node, entry) in &inner.entries {
            while known.next_if(|(other, _)| *other < node).is_some() {}
            match known.next_if(|(other, _)| *other == node) {
                Some((_, seen)) => (seen.heard_ms, seen.acknowledged_ms) = (entry.heard_ms, entry.acknowledged_ms),
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
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use vp_cluster::observe::Instance;

    use super::*;

    /// One whose clock the test sets, ms.
    fn clocked(now_ms: u64) -> (Arc<AtomicU64>, Registry) {
        let now = Arc::new(AtomicU64::new(now_ms));
        let clock = now.clone();
        (now, Registry::on(Box::new(move || clock.load(Relaxed))))
    }

    fn node() -> NodeId {
        "i-1".into()
    }

    fn report(generation: u64, phase: v1::Phase) -> BTreeMap<SlotId, v1::SlotObservation> {
        let report = v1::SlotObservation { generation, phase: phase.into(), ..Default::default() };
        BTreeMap::from([(SlotId::new("kafka", 1), report)])
    }

    fn observed(registry: &Registry, state: &ClusterState) -> Observations {
        let mut obs = Observations::default();
        registry.observe(state, &mut obs);
        obs
    }

    fn acknowledged(registry: &Registry) -> Option<u64> {
        observed(registry, &ClusterState::default()).nodes.get(&node()).and_then(|seen| seen.acknowledged_ms)
    }

    #[test]
    fn a_later_stream_takes_the_seat_and_the_earlier_is_told() {
        let registry = Registry::default();
        let first = registry.open(&node(), Session(1)).unwrap();
        let second = registry.open(&node(), Session(1)).unwrap();
        assert_eq!(registry.heard(&node(), first.stream, BTreeMap::new(), None), Heard::Replaced);
        assert!(!registry.acknowledge(&node(), first.stream));
        assert!(first.desired.has_changed().is_err(), "its sender is gone");
        assert_eq!(registry.heard(&node(), second.stream, BTreeMap::new(), None), Heard::Same);
        registry.close(&node(), first.stream);
        assert_eq!(registry.suspects(60_000), [], "the old stream's end is no end of the new one");
        registry.close(&node(), second.stream);
        assert_eq!(registry.suspects(60_000), [node()]);
    }

    #[test]
    fn a_condemned_session_is_never_acknowledged_again_but_a_new_one_may_come() {
        let registry = Registry::default();
        let seat = registry.open(&node(), Session(1)).unwrap();
        assert!(registry.acknowledge(&node(), seat.stream));
        assert!(registry.condemn(&node(), acknowledged(&registry)));
        assert!(!registry.acknowledge(&node(), seat.stream));
        assert!(registry.open(&node(), Session(1)).is_none());
        let again = registry.open(&node(), Session(2)).unwrap();
        assert!(registry.acknowledge(&node(), again.stream));
    }

    #[test]
    fn a_session_that_was_acknowledged_since_its_silence_was_looked_at_is_not_condemned() {
        let (now, registry) = clocked(5);
        let seat = registry.open(&node(), Session(1)).unwrap();
        assert!(registry.acknowledge(&node(), seat.stream));
        let looked = acknowledged(&registry);
        now.store(6, Relaxed);
        assert!(registry.acknowledge(&node(), seat.stream));
        assert!(!registry.condemn(&node(), looked));
        assert!(registry.acknowledge(&node(), seat.stream), "it goes on");
    }

    #[test]
    fn silence_counts_from_after_the_last_long_gap_between_pulses_whatever_rounds_there_were() {
        let (now, registry) = clocked(1_000);
        let trusted_since = |at_ms| {
            now.store(at_ms, Relaxed);
            let mut obs = Observations { lease_ms: 4000, ..Observations::default() };
            registry.observe(&ClusterState::default(), &mut obs);
            obs.trusted_since_ms
        };
        let pulse = |at_ms| {
            now.store(at_ms, Relaxed);
            registry.look(4000);
        };
        pulse(1_000);
        assert_eq!(trusted_since(1_900), 0);
        assert_eq!(trusted_since(2_700), 2_700, "rounds go on, but where heartbeats are heard nothing had a turn");
        assert_eq!(trusted_since(2_800), 2_800, "and the round before was none there");
        pulse(2_900);
        assert_eq!(trusted_since(3_800), 2_900);
        pulse(3_850);
        assert_eq!(trusted_since(4_800), 2_900, "no gap since");
    }

    #[test]
    fn a_heartbeat_says_whether_anything_is_new() {
        let registry = Registry::default();
        let seat = registry.open(&node(), Session(1)).unwrap();
        let heard = |slots| registry.heard(&node(), seat.stream, slots, None);
        assert_eq!(heard(report(5, v1::Phase::Starting)), Heard::Changed, "a slot");
        assert_eq!(heard(report(5, v1::Phase::Starting)), Heard::Same);
        assert_eq!(heard(report(5, v1::Phase::Healthy)), Heard::Changed, "a phase");
        assert_eq!(heard(report(6, v1::Phase::Healthy)), Heard::Changed, "a generation");
        assert_eq!(heard(BTreeMap::new()), Heard::Changed, "gone");
        assert_eq!(heard(BTreeMap::new()), Heard::Same);
    }

    #[test]
    fn a_new_term_begins_with_empty_memory() {
        let registry = Registry::default();
        let seat = registry.open(&node(), Session(1)).unwrap();
        registry.heard(&node(), seat.stream, report(5, v1::Phase::Healthy), None);
        registry.begin_term();
        let obs = observed(&registry, &ClusterState::default());
        assert!(obs.nodes.is_empty() && obs.slots.is_empty());
        assert!(!registry.acknowledge(&node(), seat.stream));
    }

    #[test]
    fn of_reports_on_a_slot_the_holders_counts_and_nobody_elses_whatever_the_generation() {
        let registry = Registry::default();
        let kafka = SlotId::new("kafka", 1);
        let slot = vp_cluster::state::Slot { holder: Some(node()), generation: Generation(9), ..Default::default() };
        let state = ClusterState { slots: BTreeMap::from([(kafka.clone(), slot)]), ..ClusterState::default() };
        let tell = |name: &str, generation, phase| {
            let seat = registry.open(&name.into(), Session(1)).unwrap();
            registry.heard(&name.into(), seat.stream, report(generation, phase), None);
            observed(&registry, &state).phase(&kafka, Generation(9))
        };
        assert_eq!(tell("i-1", 8, v1::Phase::Healthy), Phase::Unknown, "of an earlier time");
        assert_eq!(tell("i-1", 9, v1::Phase::Starting), Phase::Starting);
        for generation in [8, 9, 10, u64::MAX] {
            assert_eq!(tell("i-9", generation, v1::Phase::Healthy), Phase::Starting, "a stranger at generation {generation}");
        }
    }

    fn publish(registry: &Registry, revision: u64, held: &[(&str, u64)], address: &str) {
        let mut assignments: BTreeMap<NodeId, Vec<v1::Assignment>> = BTreeMap::new();
        for (holder, generation) in held {
            assignments.entry((*holder).into()).or_default().push(v1::Assignment { generation: *generation, ..Default::default() });
        }
        let members = vec![v1::Member { address: address.to_owned(), ..Default::default() }];
        registry.publish([node(), "i-2".into()].iter(), Wishes { term: 1, revision, assignments, members });
    }

    /// The revision of what is new, 0: nothing is.
    fn news(seat: &mut Seat) -> u64 {
        if seat.desired.has_changed().unwrap() { seat.desired.borrow_and_update().as_ref().map_or(0, |desired| desired.revision) } else { 0 }
    }

    #[test]
    fn a_desired_set_is_published_only_when_its_content_changes() {
        let registry = Registry::default();
        let mut seat = registry.open(&node(), Session(1)).unwrap();
        for (revision, held, address, wanted) in [
            (1, &[("i-1", 1)][..], "a", 1),
            (2, &[("i-1", 1)], "a", 0),
            (3, &[("i-1", 1)], "b", 3),
            (4, &[("i-1", 2)], "b", 4),
            (5, &[], "b", 5),
            (6, &[("i-1", 2)], "b", 6),
        ] {
            publish(&registry, revision, held, address);
            assert_eq!(news(&mut seat), wanted, "revision {revision}");
        }
    }

    #[test]
    fn whoever_opens_a_stream_is_untold_until_sets_are_published() {
        let registry = Registry::default();
        assert!(!registry.is_untold());
        for _ in 0..2 {
            let mut seat = registry.open(&node(), Session(1)).unwrap();
            assert!(registry.is_untold());
            publish(&registry, 1, &[("i-1", 1)], "a");
            assert_eq!((news(&mut seat), registry.is_untold()), (1, false), "the same set as before, on a stream that has not had it");
        }
    }

    /// One node of which EC2 alone is known, one that alone was heard, two of both.
    #[test]
    fn what_was_heard_is_added_to_what_is_known_of_each_node() {
        let (_, registry) = clocked(5);
        for heard in ["i-1", "i-2", "i-4"] {
            registry.open(&heard.into(), Session(1)).unwrap();
        }
        let running = NodeSeen { instance: Instance::Running, ..NodeSeen::default() };
        let mut obs = Observations { nodes: ["i-1", "i-3", "i-4"].map(|node| (node.into(), running.clone())).into(), ..Observations::default() };
        registry.observe(&ClusterState::default(), &mut obs);
        let found: Vec<(&str, bool, Option<u64>)> =
            obs.nodes.iter().map(|(node, seen)| (node.0.as_str(), seen.instance == Instance::Running, seen.heard_ms)).collect();
        assert_eq!(found, [("i-1", true, Some(5)), ("i-2", false, Some(5)), ("i-3", true, None), ("i-4", true, Some(5))]);
    }

    #[test]
    fn a_node_that_holds_nothing_is_told_so_once_and_not_who_else_moves() {
        let registry = Registry::default();
        let mut idle = registry.open(&"i-2".into(), Session(1)).unwrap();
        publish(&registry, 1, &[("i-1", 1)], "a");
        assert_eq!(news(&mut idle), 1);
        assert_eq!(idle.desired.borrow().as_ref().map(|desired| desired.members.len()), Some(0));
        publish(&registry, 2, &[("i-1", 2)], "b");
        assert_eq!(news(&mut idle), 0);
    }
}
