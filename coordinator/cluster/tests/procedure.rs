//! Draining: what may be released now, and what holds back the rest.
mod situation;
use situation::{Situation, node_in, slot};
use vp_cluster::{Action, Command, SlotId, apply, observe::Phase, procedure::drain};

/// A settled cluster with an empty spare node in each zone, and every node in `draining` asked to leave.
fn leaving(draining: &[&str]) -> Situation {
    let mut s = Situation::well();
    for (id, zone) in [("i-6", "a"), ("i-7", "b"), ("i-8", "c")] {
        s.ok(node_in(id, zone));
        s.hear(id, 100_000);
    }
    for node in draining {
        s.ok(Command::SetDraining { node: (*node).into(), draining: true });
    }
    s
}

fn released(s: &Situation) -> Vec<SlotId> {
    drain(&s.state, &s.obs).0
}

fn holds(s: &Situation, node: &str) -> Vec<SlotId> {
    s.state.held_by(&node.into()).map(|(id, _)| id.clone()).collect()
}

fn of_role(slots: &[SlotId], role: &str) -> usize {
    slots.iter().filter(|id| id.role == role.into()).count()
}

#[test]
fn a_drain_releases_everything_a_node_holds_when_all_else_is_well() {
    let s = leaving(&["i-3"]);
    assert!(!holds(&s, "i-3").is_empty());
    assert_eq!(released(&s), holds(&s, "i-3"));
}

#[test]
fn a_node_that_is_not_draining_gives_nothing_back() {
    assert_eq!(released(&leaving(&[])), []);
}

#[test]
fn two_draining_nodes_give_back_one_member_of_a_quorum_at_a_time() {
    let s = leaving(&["i-1", "i-2", "i-3"]);
    for role in ["zookeeper", "kafka"] {
        assert_eq!(of_role(&released(&s), role), 1, "{role}");
    }
    let gates = format!("{:?}", drain(&s.state, &s.obs).1);
    assert!(gates.contains("of the same quorum is moving"), "{gates}");
}

#[test]
fn the_next_member_of_a_quorum_waits_until_the_first_is_healthy_elsewhere() {
    let mut s = leaving(&["i-1", "i-2", "i-3", "i-4", "i-5"]);
    s.carry_out();
    assert_eq!(of_role(&released(&s), "zookeeper"), 0, "one is on its way");
    let first = s.state.slots.iter().find(|(id, slot)| id.role == "zookeeper".into() && slot.releasing).map(|(id, _)| id.clone()).expect("one");
    let (holder, generation) = (s.holder(&first.to_string()).expect("held"), s.generation(&first.to_string()));
    s.ok(Command::SlotReleased { slot: first.clone(), generation, node: holder });
    s.carry_out();
    assert_eq!(of_role(&released(&s), "zookeeper"), 0, "granted, not yet healthy");
    s.phase(&first.to_string(), Phase::Healthy);
    assert_eq!(of_role(&released(&s), "zookeeper"), 1);
}

#[test]
fn a_broker_stays_while_partitions_are_offline_under_replicated_or_unreadable() {
    for (offline, under_replicated) in [(1, 0), (0, 1)] {
        let mut s = leaving(&["i-1", "i-2", "i-3"]);
        let kafka = s.obs.kafka.as_mut().expect("seen");
        (kafka.offline, kafka.under_replicated) = (offline, under_replicated);
        assert_eq!(of_role(&released(&s), "kafka"), 0, "{offline} offline, {under_replicated} under-replicated");
        assert_eq!(of_role(&released(&s), "zookeeper"), 1, "that is Kafka's affair alone");
    }
    let mut s = leaving(&["i-1", "i-2", "i-3"]);
    s.obs.kafka = None;
    assert_eq!(of_role(&released(&s), "kafka"), 0, "cannot be read");
}

#[test]
fn an_unwell_disposable_role_holds_back_no_drain() {
    let mut s = leaving(&["i-1", "i-2", "i-3", "i-4", "i-5"]);
    s.phase("worker-1", Phase::Unhealthy);
    assert_eq!(of_role(&released(&s), "worker"), 2);
}

#[test]
fn room_is_not_promised_twice() {
    let mut s = Situation::well();
    s.ok(Command::RegisterNode {
        node: "i-6".into(),
        address: "at-i-6".into(),
        zone: "a".into(),
        instance_type: "t".into(),
        memory_mib: 200,
        cpu_millis: 2000,
        agent_version: "1".into(),
    });
    for node in ["i-1", "i-2", "i-3", "i-4", "i-5"] {
        s.ok(Command::SetDraining { node: node.into(), draining: true });
    }
    assert_eq!(released(&s).len(), 1, "the one node has room for one slot");
}

#[test]
fn a_drain_called_off_releases_nothing_more() {
    let mut s = leaving(&["i-3"]);
    s.ok(Command::SetDraining { node: "i-3".into(), draining: false });
    assert_eq!(released(&s), []);
}

#[test]
fn a_slot_already_releasing_is_not_released_again() {
    let mut s = leaving(&["i-3"]);
    s.carry_out();
    assert_eq!(released(&s), []);
    let id = holds(&s, "i-3")[0].clone();
    assert!(s.act(Action::Release { slot: id }).is_err());
}

#[test]
fn a_drained_slot_comes_up_elsewhere_with_its_volume_and_member_id() {
    let mut s = leaving(&["i-3"]);
    let id = holds(&s, "i-3").into_iter().find(|id| id.role == "zookeeper".into()).expect("one in zone c");
    let before = s.state.slots[&id].clone();
    s.carry_out();
    s.ok(Command::SlotReleased { slot: id.clone(), generation: before.generation, node: "i-3".into() });
    s.carry_out();
    let after = &s.state.slots[&id];
    assert_eq!(after.holder, Some("i-8".into()), "the spare of the volume's zone");
    assert_eq!((&after.volume, after.member_id, after.retired_member), (&before.volume, before.member_id, None));
    assert!(after.generation > before.generation);
}

#[test]
fn a_lost_node_cannot_be_drained() {
    let mut s = Situation::well();
    s.lose(&"i-3".into());
    assert!(apply(&mut s.state, u64::MAX, 0, &Command::SetDraining { node: "i-3".into(), draining: true }).is_err());
}

#[test]
fn a_slot_that_nobody_asked_back_is_given_back_by_word_all_the_same() {
    let mut s = Situation::well();
    let before = slot("worker-1");
    let (holder, generation) = (s.holder("worker-1").expect("held"), s.generation("worker-1"));
    s.ok(Command::SlotReleased { slot: before.clone(), generation, node: holder });
    assert_eq!(s.holder("worker-1"), None);
}
