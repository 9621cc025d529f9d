//! The registry on a clock that the test sets.

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
