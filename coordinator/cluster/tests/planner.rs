//! Situations and the plans they call for.
mod situation;
use situation::{Situation, slot, spec, zone};
use vp_cluster::{Action, Command, Rejection, health, observe::Phase, planner, state::Volume};

#[test]
fn everything_wanted_is_placed_and_then_nothing_is_left_to_do() {
    let s = Situation::well();
    assert!(s.state.slots.values().all(|slot| slot.holder.is_some()));
    assert_eq!(s.plan(), []);
}

#[test]
fn one_member_of_a_quorum_per_zone_before_two() {
    let s = Situation::well();
    let mut zones: Vec<_> = (1..=3).map(|i| s.state.nodes[&s.holder(&format!("zookeeper-{i}")).expect("held")].zone.clone()).collect();
    zones.sort();
    assert_eq!(zones, [zone("a"), zone("b"), zone("c")]);
}

#[test]
fn the_second_of_two_plans_in_a_row_is_stale() {
    let mut s = Situation::of(spec(), "abc");
    let plan = planner::plan(&s.state, &s.obs).0;
    s.ok(Command::Plan(plan.clone()));
    assert!(s.apply(Command::Plan(plan)).is_err());
}

#[test]
fn a_plan_is_refused_when_anything_at_all_has_happened_since() {
    let mut s = Situation::of(spec(), "abc");
    let plan = planner::plan(&s.state, &s.obs).0;
    s.ok(Command::Note { kind: "x".into(), subject: "y".into(), detail: "z".into() });
    assert!(matches!(s.apply(Command::Plan(plan)), Err(Rejection::Stale { .. })));
}

#[test]
fn silence_moves_only_what_a_lease_fences() {
    for (id, moves) in [("zookeeper-1", false), ("kafka-1", false), ("vault-1", false), ("worker-1", true), ("stream-1", true)] {
        let mut s = Situation::well();
        let holder = s.holder(id).expect("held");
        s.lose(&holder);
        let vacated = s.plan().iter().any(|action| matches!(action, Action::Vacate { slot: found, .. } if *found == slot(id)));
        assert_eq!(vacated, moves, "{id}");
    }
}

#[test]
fn terminated_moves_everything() {
    for id in ["zookeeper-1", "kafka-1", "vault-1", "worker-1", "stream-1"] {
        let mut s = Situation::well();
        let holder = s.holder(id).expect("held");
        s.fence(&holder);
        s.carry_out();
        assert_ne!(s.holder(id), Some(holder), "{id}");
    }
}

/// zookeeper-3 or kafka's slot in zone c, whose only node is terminated.
fn zone_c_gone(role: &str) -> (Situation, String) {
    let mut s = Situation::well();
    let c = |s: &Situation, id: &str| s.state.slots[&slot(id)].volume.as_ref().is_some_and(|volume: &Volume| volume.zone == zone("c"));
    let id = (1..=3).map(|i| format!("{role}-{i}")).find(|id| c(&s, id)).expect("one in c");
    s.fence(&"i-3".into());
    s.carry_out();
    s.obs.zone_empty_since_ms.insert(slot(&id), s.obs.now_ms);
    (s, id)
}

#[test]
fn a_volume_binds_its_slot_to_its_zone_until_volume_wait() {
    let (mut s, id) = zone_c_gone("zookeeper");
    let abandons = |s: &Situation| s.plan().contains(&Action::AbandonVolume { slot: slot(&id) });
    s.obs.now_ms += 59_999;
    assert!(!abandons(&s));
    s.obs.now_ms += 1;
    assert!(abandons(&s));
}

#[test]
fn zookeeper_on_an_empty_disk_gets_a_fresh_id_and_retires_the_old() {
    let (mut s, id) = zone_c_gone("zookeeper");
    let old = s.state.slots[&slot(&id)].member_id;
    s.obs.now_ms += 60_000;
    s.carry_out();
    let now = &s.state.slots[&slot(&id)];
    assert_eq!((now.member_id, now.retired_member), (4, Some(old)));
}

#[test]
fn a_quorum_without_majority_gives_up_no_disk() {
    let (mut s, id) = zone_c_gone("zookeeper");
    let other = (1..=3).map(|i| format!("zookeeper-{i}")).find(|other| *other != id).expect("another");
    s.phase(&other, Phase::Unhealthy);
    assert!(!health::serving(&s.state, &s.obs, &"zookeeper".into()));
    s.obs.now_ms += 60_000;
    assert!(!s.plan().contains(&Action::AbandonVolume { slot: slot(&id) }));
    assert!(s.gates().contains("no majority"));
}

#[test]
fn kafka_gives_up_a_disk_only_when_its_id_is_in_no_isr() {
    let (mut s, id) = zone_c_gone("kafka");
    let member = s.state.slots[&slot(&id)].member_id;
    s.obs.now_ms += 60_000;
    s.obs.kafka.as_mut().expect("seen").in_sync.insert(member);
    assert!(!s.plan().contains(&Action::AbandonVolume { slot: slot(&id) }));
    s.obs.kafka = None;
    assert!(!s.plan().contains(&Action::AbandonVolume { slot: slot(&id) }));
    s.obs.kafka = Some(Default::default());
    s.carry_out();
    assert_eq!(s.state.slots[&slot(&id)].member_id, member);
    assert!(s.holder(&id).is_some());
}

#[test]
fn a_disk_lost_under_its_holder_releases_the_slot_and_never_comes_back_empty_under_the_old_id() {
    let mut s = Situation::well();
    s.lose_disk("zookeeper-1");
    let generation = s.generation("zookeeper-1");
    assert!(s.apply(Command::VolumeCreated { slot: slot("zookeeper-1"), generation, volume: "v-new".into(), zone: zone("a") }).is_err());
    assert_eq!(s.plan(), [Action::Release { slot: slot("zookeeper-1") }]);
}

#[test]
fn a_draining_node_whose_slots_can_go_nowhere_keeps_them() {
    let mut s = Situation::well();
    let (id, holder) =
        (1..=3).map(|i| format!("zookeeper-{i}")).map(|id| (id.clone(), s.holder(&id).expect("held"))).find(|(_, node)| node.0 == "i-3").expect("in c");
    s.ok(Command::SetDraining { node: holder, draining: true });
    assert!(!s.plan().contains(&Action::Release { slot: slot(&id) }));
    assert!(s.gates().contains("no other node could take it"));
    s.ok(situation::node_in("i-6", "c"));
    assert!(s.plan().contains(&Action::Release { slot: slot(&id) }));
}

#[test]
fn a_drain_waits_while_another_of_the_quorum_is_unwell() {
    let mut s = Situation::well();
    s.ok(situation::node_in("i-6", "c"));
    let id = (1..=3).map(|i| format!("zookeeper-{i}")).find(|id| s.holder(id) == Some("i-3".into())).expect("in c");
    let other = (1..=3).map(|i| format!("zookeeper-{i}")).find(|other| *other != id).expect("another");
    s.phase(&other, Phase::Unhealthy);
    s.ok(Command::SetDraining { node: "i-3".into(), draining: true });
    assert!(!s.plan().contains(&Action::Release { slot: slot(&id) }));
}

#[test]
fn absurd_memory_wants_do_not_overflow() {
    let mut absurd = spec();
    absurd.roles.values_mut().for_each(|role| role.memory_mib = u32::MAX);
    assert_eq!(Situation::of(absurd, "abc").plan(), []);
}

#[test]
fn a_slot_whose_disk_was_lost_under_its_holder_wants_no_new_volume_before_its_next_grant() {
    let mut s = Situation::of(spec(), "abcab");
    s.carry_out();
    let wants = |s: &Situation, id: &str| planner::wants_volume(&s.state).iter().any(|(wanting, _)| **wanting == slot(id));
    assert!(wants(&s, "zookeeper-1") && wants(&s, "kafka-3") && !wants(&s, "worker-1"));
    s.settle();
    assert!(!wants(&s, "zookeeper-1"), "it has one");
    s.lose_disk("zookeeper-1");
    assert!(!wants(&s, "zookeeper-1"), "apply would refuse it");
    let (holder, generation) = (s.holder("zookeeper-1").expect("held"), s.generation("zookeeper-1"));
    s.ok(Command::SlotReleased { slot: slot("zookeeper-1"), generation, node: holder });
    assert!(!wants(&s, "zookeeper-1"), "nobody holds it");
    s.carry_out();
    assert!(wants(&s, "zookeeper-1"), "granted with an empty disk");
}

#[test]
fn a_cordoned_draining_or_full_node_gets_nothing_new() {
    let placed = |change: fn(&mut Situation)| {
        let mut s = Situation::of(spec(), "a");
        change(&mut s);
        s.plan().len()
    };
    assert!(placed(|_| {}) > 0);
    assert_eq!(placed(|s| s.state.nodes.get_mut(&"i-1".into()).expect("node").cordoned = true), 0);
    assert_eq!(placed(|s| s.ok(Command::SetDraining { node: "i-1".into(), draining: true })), 0);
    assert_eq!(placed(|s| s.state.nodes.get_mut(&"i-1".into()).expect("node").memory_mib = 199), 0);
}

#[test]
fn a_node_is_given_no_more_than_its_memory_holds() {
    let mut s = Situation::of(spec(), "a");
    s.carry_out();
    assert_eq!(s.state.held_by(&"i-1".into()).count(), 5, "five roles of 200 MiB on 1000 MiB");
    let mut s = Situation::of(spec(), "a");
    s.state.nodes.get_mut(&"i-1".into()).expect("node").memory_mib = 999;
    s.carry_out();
    assert_eq!(s.state.held_by(&"i-1".into()).count(), 4);
}

#[test]
fn a_join_moves_nothing_that_runs() {
    let mut s = Situation::well();
    s.ok(situation::node_in("i-6", "c"));
    assert_eq!(s.plan(), []);
}

#[test]
fn a_terminated_node_with_empty_hands_is_forgotten() {
    let mut s = Situation::well();
    s.ok(situation::node_in("i-6", "c"));
    s.fence(&"i-6".into());
    assert_eq!(s.plan(), [Action::Forget { node: "i-6".into() }]);
}

#[test]
fn no_room_is_said_with_what_would_help() {
    let s = Situation::of(spec(), "");
    assert_eq!(s.plan(), []);
    assert!(s.gates().contains("no ready node has room"));
    assert!(s.gates().contains("a node joins with 200 MiB free that holds no kafka yet"));
}

#[test]
fn a_silent_holder_of_a_quorum_slot_is_a_closed_gate_that_names_what_opens_it() {
    let mut s = Situation::well();
    let holder = s.holder("kafka-1").expect("held");
    s.lose(&holder);
    assert!(s.gates().contains("silence is no proof for a quorum role"));
    assert!(s.gates().contains("EC2 says the instance is terminated"));
}

#[test]
fn the_first_grants_wait_until_nodes_have_stopped_joining() {
    let mut s = Situation::of(spec(), "abc");
    s.obs.joining = true;
    let (plan, report) = planner::plan(&s.state, &s.obs);
    assert_eq!(plan.actions, Vec::new());
    assert!(report.gates.iter().any(|gate| gate.subject == "zookeeper-1" && gate.closed_by == "nodes are still joining"));
    s.obs.joining = false;
    assert!(!planner::plan(&s.state, &s.obs).0.actions.is_empty());
}

#[test]
fn a_slot_that_was_held_before_does_not_wait_for_joining_nodes() {
    let mut s = Situation::well();
    s.obs.joining = true;
    s.ok(vp_cluster::Command::NodeFenced { node: s.holder("worker-1").expect("held") });
    let (plan, _) = planner::plan(&s.state, &s.obs);
    assert!(plan.actions.iter().any(|action| matches!(action, vp_cluster::Action::Grant { slot, .. } if slot.to_string() == "worker-1")));
}
