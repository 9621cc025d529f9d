//! What operators order: move, cordon, scale, and taking it back. Each step looks again, and each can be stopped.
#[macro_use]
mod situation;
use situation::{Situation, node_in, slot, spec, zone};
use vp_cluster::{Action, Command, NodeId, observe::Phase, planner, state::Lifecycle};

/// A settled cluster with an empty spare node in each zone: i-6 in a, i-7 in b, i-8 in c.
fn spared() -> Situation {
    let mut s = Situation::well();
    for (id, zone) in [("i-6", "a"), ("i-7", "b"), ("i-8", "c")] {
        s.ok(node_in(id, zone));
        s.hear(id, 100_000);
    }
    s
}

fn spare_in(zone: &str) -> &'static str {
    match zone {
        "a" => "i-6",
        "b" => "i-7",
        _ => "i-8",
    }
}

fn want(id: &str, to: Option<&str>, empty_disk: bool) -> Command {
    Command::MoveSlot { slot: slot(id), to: to.map(NodeId::from), empty_disk }
}

fn releases(s: &Situation, id: &str) -> bool {
    s.plan().contains(&Action::Release { slot: slot(id) })
}

// Moving a slot

#[test]
fn a_move_releases_then_grants_where_it_was_told_with_the_same_disk_and_id() {
    let mut s = spared();
    let before = s.state.slots[&slot("kafka-1")].clone();
    let to = spare_in(&s.zone_of("kafka-1").0);
    s.ok(want("kafka-1", Some(to), false));
    assert_eq!(s.carry_out(), [Action::Release { slot: slot("kafka-1") }]);
    s.word("kafka-1");
    s.carry_out();
    let after = &s.state.slots[&slot("kafka-1")];
    assert_eq!((after.holder.clone(), &after.volume, after.member_id), (Some(to.into()), &before.volume, before.member_id));
    assert_eq!(after.wanted_move, None);
    s.settle();
    assert_eq!(s.plan(), []);
}

#[test]
fn a_move_without_a_target_never_ends_where_it_began() {
    let mut s = spared();
    let from = s.holder("stream-1").expect("held");
    s.ok(want("stream-1", None, false));
    s.carry_out();
    s.word("stream-1");
    s.carry_out();
    assert_ne!(s.holder("stream-1"), Some(from));
    assert!(s.holder("stream-1").is_some());
}

#[test]
fn a_slot_on_its_way_whose_only_other_node_has_gone_comes_back_rather_than_nowhere() {
    let mut s = spared();
    let from = s.holder("kafka-1").expect("held");
    s.ok(want("kafka-1", None, false));
    s.carry_out();
    let home = s.zone_of("kafka-1");
    for (id, node) in &mut s.state.nodes {
        node.cordoned = node.zone == home && *id != from;
    }
    s.word("kafka-1");
    s.carry_out();
    assert_eq!(s.holder("kafka-1"), Some(from));
}

#[test]
fn a_move_waits_while_another_of_its_quorum_is_unwell() {
    let mut s = spared();
    s.ok(want("kafka-1", None, false));
    assert!(releases(&s, "kafka-1"));
    s.phase("kafka-2", Phase::Unhealthy);
    assert!(!releases(&s, "kafka-1"));
    assert!(s.gates().contains("kafka-2 of the same quorum is not healthy"));
}

#[test]
fn two_wanted_moves_of_a_quorum_go_one_after_the_other() {
    let mut s = spared();
    for id in ["zookeeper-1", "zookeeper-2", "zookeeper-3"] {
        s.ok(want(id, None, false));
    }
    let released = s.plan().iter().filter(|action| matches!(action, Action::Release { .. })).count();
    assert_eq!(released, 1);
}

#[test]
fn a_move_whose_target_has_filled_up_meanwhile_waits_and_says_for_what() {
    let mut s = spared();
    let to = spare_in(&s.zone_of("kafka-1").0);
    s.ok(want("kafka-1", Some(to), false));
    s.state.nodes.get_mut(&to.into()).expect("node").memory_mib = 100;
    assert!(!releases(&s, "kafka-1"));
    assert!(s.gates().contains(&format!("{to} cannot take it")));
}

#[test]
fn a_drain_does_not_wait_for_a_wish_that_cannot_be_fulfilled() {
    let mut s = spared();
    s.ok(want("stream-1", Some("i-8"), false));
    s.ok(Command::SetCordoned { node: "i-8".into(), cordoned: true });
    assert!(!releases(&s, "stream-1"));
    s.ok(Command::SetDraining { node: s.holder("stream-1").expect("held"), draining: true });
    assert!(releases(&s, "stream-1"));
}

#[test]
fn a_cancelled_move_leaves_everything_where_it_is() {
    let mut s = spared();
    s.ok(want("kafka-1", None, false));
    s.ok(Command::CancelMove { slot: slot("kafka-1") });
    assert_eq!(s.plan(), []);
    assert!(s.apply(Command::CancelMove { slot: slot("kafka-1") }).is_err(), "nothing is wanted any more");
}

#[test]
fn a_move_cancelled_after_the_release_places_the_slot_wherever_it_does_best() {
    let mut s = spared();
    s.ok(want("stream-1", Some("i-8"), false));
    s.carry_out();
    s.ok(Command::CancelMove { slot: slot("stream-1") });
    s.word("stream-1");
    s.carry_out();
    assert!(s.holder("stream-1").is_some());
}

#[test]
fn another_coordinator_carries_a_move_on_from_the_state_alone() {
    let mut s = spared();
    let to = spare_in(&s.zone_of("kafka-1").0);
    s.ok(want("kafka-1", Some(to), false));
    s.carry_out();
    let mut other = Situation::of(spec(), "");
    other.state = s.state.clone();
    other.obs = vp_cluster::Observations { now_ms: 1, leading_since_ms: 1, lease_ms: situation::LEASE_MS, ..Default::default() };
    assert_eq!(other.plan(), [], "asked to stop already");
    other.word("kafka-1");
    other.carry_out();
    assert_eq!(other.holder("kafka-1"), Some(to.into()));
}

/// What is changed first, which slot, where to, with an empty disk, and what the refusal says.
type Refused = (fn(&mut Situation), &'static str, Option<&'static str>, bool, &'static str);

fn refused((change, id, to, empty_disk, said): Refused) {
    let mut s = spared();
    change(&mut s);
    let refusal = s.apply(want(id, to, empty_disk)).expect_err("refused").to_string();
    assert!(refusal.contains(said), "{refusal}");
    assert!(s.state.slots.values().all(|slot| slot.wanted_move.is_none()));
}

table! { refused:
    a_move_of_a_slot_that_is_not_there => (|_| {}, "kafka-9", None, false, "no slot kafka-9"),
    a_move_to_a_node_that_is_not_there => (|_| {}, "stream-1", Some("i-99"), false, "no node i-99"),
    a_move_of_a_slot_without_a_holder => (|s| s.word("vault-1"), "vault-1", None, false, "has no holder"),
    a_move_off_a_lost_node => (|s| { let node = s.holder("vault-1").expect("held"); s.lose(&node) }, "vault-1", None, false, "moves without being asked"),
    a_move_of_a_slot_that_is_leaving => (|s| s.act(Action::Release { slot: slot("vault-1") }).expect("released"), "vault-1", None, false, "is leaving"),
    a_move_to_a_cordoned_node => (|s| s.ok(Command::SetCordoned { node: "i-8".into(), cordoned: true }), "vault-1", Some("i-8"), false, "not taking slots"),
    a_move_to_a_draining_node => (|s| s.ok(Command::SetDraining { node: "i-8".into(), draining: true }), "vault-1", Some("i-8"), false, "not taking slots"),
    a_move_to_a_lost_node => (|s| s.lose(&"i-8".into()), "vault-1", Some("i-8"), false, "not taking slots"),
    a_move_without_a_volume_to_leave_behind => (|_| {}, "worker-1", None, true, "no volume to leave behind"),
    a_move_of_a_slot_one_too_many =>
        (|s| s.ok(Command::Scale { role: "kafka".into(), pref: 2 }), "kafka-3", None, false, "one slot too many"),
}

#[test]
fn a_move_into_another_zone_than_the_volumes_is_refused_and_the_way_is_named() {
    let mut s = spared();
    let other = if s.zone_of("kafka-1") == zone("a") { "i-7" } else { "i-6" };
    let refusal = s.apply(want("kafka-1", Some(other), false)).expect_err("refused").to_string();
    assert!(refusal.contains("--empty-disk"), "{refusal}");
}

#[test]
fn a_move_to_itself_or_beside_another_of_its_role_is_refused() {
    let mut s = spared();
    let here = s.holder("worker-1").expect("held");
    assert!(s.apply(want("worker-1", Some(&here.0), false)).is_err());
    let beside = s.holder("worker-2").expect("held");
    assert!(s.apply(want("worker-1", Some(&beside.0), false)).is_err());
}

#[test]
fn with_an_empty_disk_a_voter_goes_to_another_zone_under_a_fresh_id() {
    let mut s = spared();
    let other = if s.zone_of("zookeeper-1") == zone("a") { "i-7" } else { "i-6" };
    let old = s.state.slots[&slot("zookeeper-1")].member_id;
    s.ok(want("zookeeper-1", Some(other), true));
    assert!(releases(&s, "zookeeper-1"));
    s.carry_out();
    s.word("zookeeper-1");
    s.carry_out();
    let after = &s.state.slots[&slot("zookeeper-1")];
    assert_eq!((after.holder.clone(), after.volume.clone(), after.retired_member), (Some(other.into()), None, Some(old)));
    assert_ne!(after.member_id, old);
}

#[test]
fn with_an_empty_disk_a_broker_waits_until_it_is_in_no_in_sync_set_and_keeps_its_id() {
    let mut s = spared();
    let other = if s.zone_of("kafka-1") == zone("a") { "i-7" } else { "i-6" };
    s.ok(want("kafka-1", Some(other), true));
    s.carry_out();
    s.word("kafka-1");
    s.obs.kafka.as_mut().expect("read").in_sync.insert(1);
    s.obs.zone_empty_since_ms.insert(slot("kafka-1"), 0);
    s.obs.now_ms += 600_000;
    assert_eq!(s.plan(), [], "the disk is there: it is never given up while it may hold the only copy");
    assert!(s.gates().contains("its disk is not given up"), "{}", s.gates());
    s.obs.kafka.as_mut().expect("read").in_sync.clear();
    s.carry_out();
    assert_eq!((s.holder("kafka-1"), s.state.slots[&slot("kafka-1")].member_id), (Some(other.into()), 1));
}

// Cordon

#[test]
fn a_cordoned_node_keeps_what_it_holds_and_gets_nothing_new_until_it_is_undone() {
    let mut s = Situation::of(spec(), "a");
    s.ok(Command::SetCordoned { node: "i-1".into(), cordoned: true });
    assert_eq!(s.plan(), []);
    s.ok(Command::SetCordoned { node: "i-1".into(), cordoned: false });
    assert!(!s.plan().is_empty());
    let mut s = Situation::well();
    s.ok(Command::SetCordoned { node: "i-1".into(), cordoned: true });
    assert_eq!(s.plan(), [], "what it holds stays");
}

#[test]
fn a_cordon_outlives_a_new_session() {
    let mut s = Situation::well();
    s.ok(Command::SetCordoned { node: "i-1".into(), cordoned: true });
    s.ok(node_in("i-1", "a"));
    assert!(s.state.nodes[&NodeId::from("i-1")].cordoned);
}

#[test]
fn a_cordon_that_changes_nothing_is_said() {
    let mut s = Situation::well();
    let cordon = |cordoned| Command::SetCordoned { node: "i-1".into(), cordoned };
    assert!(s.apply(cordon(false)).is_err());
    s.ok(cordon(true));
    assert!(s.apply(cordon(true)).is_err());
    assert!(s.apply(Command::SetCordoned { node: "i-99".into(), cordoned: true }).is_err());
}

// Scale

/// role, how many, accepted
fn scaled((name, pref, accepted): (&str, u32, bool)) {
    let mut s = spared();
    s.state.spec.roles.get_mut(&"zookeeper".into()).expect("role").min = 3;
    assert_eq!(s.apply(Command::Scale { role: name.into(), pref }).is_ok(), accepted);
}

table! { scaled:
    a_role_grows_within_its_maximum => ("worker", 4, true),
    a_role_grows_to_its_maximum => ("worker", 9, true),
    a_role_grows_no_further => ("worker", 10, false),
    a_role_shrinks_to_its_minimum => ("worker", 1, true),
    a_role_shrinks_no_further => ("worker", 0, false),
    an_ensemble_grows_by_two => ("zookeeper", 5, true),
    an_ensemble_never_grows_by_one => ("zookeeper", 4, false),
    an_ensemble_never_shrinks_below_its_minimum => ("zookeeper", 1, false),
    a_scale_that_changes_nothing_is_said => ("worker", 2, false),
    a_role_that_is_not_in_the_spec_does_not_scale => ("etcd", 3, false),
    brokers_grow => ("kafka", 5, true),
    brokers_shrink => ("kafka", 2, true),
}

#[test]
fn growing_back_before_anything_went_undoes_a_shrink() {
    let mut s = spared();
    let before = s.state.slots.clone();
    s.ok(Command::Scale { role: "kafka".into(), pref: 2 });
    s.ok(Command::Scale { role: "kafka".into(), pref: 3 });
    assert_eq!((s.state.slots.clone(), s.plan()), (before, vec![]));
}

#[test]
fn a_disposable_slot_too_many_is_released_and_then_forgotten() {
    let mut s = spared();
    s.ok(Command::Scale { role: "worker".into(), pref: 1 });
    assert_eq!(s.carry_out(), [Action::Release { slot: slot("worker-2") }]);
    s.word("worker-2");
    assert_eq!(s.carry_out(), [Action::Remove { slot: slot("worker-2") }]);
    assert!(!s.state.slots.contains_key(&slot("worker-2")));
    assert_eq!(s.plan(), []);
}

#[test]
fn a_slot_too_many_whose_node_died_is_not_placed_again() {
    let mut s = spared();
    s.ok(Command::Scale { role: "worker".into(), pref: 1 });
    let node = s.holder("worker-2").expect("held");
    s.fence(&node);
    let actions = s.carry_out();
    assert!(actions.contains(&Action::Remove { slot: slot("worker-2") }), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Grant { slot: id, .. } if *id == slot("worker-2"))));
}

#[test]
fn a_slot_that_comes_back_after_a_shrink_has_a_higher_generation() {
    let mut s = spared();
    let old = s.generation("worker-2");
    s.ok(Command::Scale { role: "worker".into(), pref: 1 });
    s.carry_out();
    s.word("worker-2");
    s.carry_out();
    s.ok(Command::Scale { role: "worker".into(), pref: 2 });
    s.carry_out();
    assert!(s.generation("worker-2") > old);
}

#[test]
fn a_wanted_slot_is_never_removed() {
    let mut s = spared();
    s.word("worker-2");
    assert!(s.act(Action::Remove { slot: slot("worker-2") }).is_err());
    assert!(s.act(Action::Remove { slot: slot("worker-1") }).is_err(), "held, too");
}

#[test]
fn a_spec_with_fewer_slots_shrinks_as_a_scale_does() {
    let mut s = spared();
    let mut fewer = spec();
    fewer.roles.get_mut(&"worker".into()).expect("role").pref = 1;
    s.ok(Command::SetSpec { spec: fewer });
    assert_eq!(s.plan(), [Action::Release { slot: slot("worker-2") }]);
}

// Spread

/// Three members of a quorum without disks, two of them in zone a, and a node with room in c.
fn crowded() -> Situation {
    let mut wanted = spec();
    wanted.roles.retain(|name, _| name.0 == "etcd");
    wanted.roles.insert("etcd".into(), situation::role(3, vp_cluster::state::Fencing::Quorum, vp_cluster::state::Membership::None, false));
    let mut s = Situation::of(wanted, "aab");
    s.settle();
    s.ok(node_in("i-4", "c"));
    s
}

#[test]
fn two_of_a_quorum_in_a_zone_part_when_another_has_none_and_nothing_is_lost_by_it() {
    let mut s = crowded();
    let actions = s.carry_out();
    assert!(matches!(&actions[..], [Action::Release { .. }]), "{actions:?}");
    let Action::Release { slot: id } = &actions[0] else { unreachable!() };
    let id = id.to_string();
    s.word(&id);
    s.settle();
    assert_eq!(s.zone_of(&id), zone("c"));
    assert_eq!(s.plan(), [], "once is enough");
}

#[test]
fn nobody_parts_while_anything_is_unwell() {
    let mut s = crowded();
    s.phase("etcd-1", Phase::Unhealthy);
    assert_eq!(s.plan(), []);
    assert!(s.gates().contains("something else is under way or unwell"), "{}", s.gates());
}

#[test]
fn nobody_parts_for_a_difference_of_one() {
    let mut s = crowded();
    s.state.nodes.get_mut(&"i-4".into()).expect("node").zone = zone("b");
    assert_eq!(s.plan(), [], "two in a and one in b is as even as three can be");
}

#[test]
fn a_member_with_data_on_a_volume_stays_and_the_way_out_is_named() {
    let mut s = crowded();
    for index in 1..=3 {
        let kept = s.state.slots.get_mut(&slot(&format!("etcd-{index}"))).expect("slot");
        kept.used = true;
    }
    s.state.spec.roles.get_mut(&"etcd".into()).expect("role").volume = true;
    let (plan, report) = planner::plan(&s.state, &s.obs);
    assert!(!plan.actions.iter().any(|action| matches!(action, Action::Grant { .. })));
    assert!(report.gates.iter().any(|gate| gate.opens_when.contains("--empty-disk")), "{report:?}");
}

#[test]
fn a_full_or_cordoned_node_is_no_place_to_part_to() {
    let mut s = crowded();
    s.state.nodes.get_mut(&"i-4".into()).expect("node").cordoned = true;
    assert_eq!(s.plan(), []);
    let mut s = crowded();
    s.state.nodes.get_mut(&"i-4".into()).expect("node").memory_mib = 10;
    assert_eq!(s.plan(), []);
    s.state.nodes.get_mut(&"i-4".into()).expect("node").lifecycle = Lifecycle::Lost;
    assert_eq!(s.plan(), []);
}
