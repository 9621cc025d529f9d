//! ZooKeeper's member list, start lists and start gates.
mod situation;
use std::collections::BTreeMap;

use situation::{Situation, slot};
use vp_cluster::{
    Command,
    ensemble::{self, Join},
    gates,
    health::Serving,
    observe::{Phase, VolumeSeen},
};

/// zookeeper-1 lost its disk, was stopped, and was granted again with an empty one.
fn replaced() -> Situation {
    let mut s = Situation::well();
    s.lose_disk("zookeeper-1");
    let (holder, generation) = (s.holder("zookeeper-1").expect("held"), s.generation("zookeeper-1"));
    s.ok(Command::SlotReleased { slot: slot("zookeeper-1"), generation, node: holder });
    s.carry_out();
    let holder = s.holder("zookeeper-1").expect("granted");
    let zone = s.state.nodes[&holder].zone.clone();
    let generation = s.generation("zookeeper-1");
    s.ok(Command::VolumeCreated { slot: slot("zookeeper-1"), generation, volume: "v-new".into(), zone });
    s.obs.volumes.insert("v-new".into(), VolumeSeen::AttachedTo(holder));
    s
}

#[test]
fn a_joiner_observes_and_is_added_only_in_sync_in_the_same_command_that_removes_the_old() {
    let mut s = replaced();
    let role = "zookeeper".into();
    assert_eq!(ensemble::start_list(&s.state, &s.obs, &slot("zookeeper-1")).expect("list").0, Join::Observer);
    // It answers its probe only once it is in sync.
    for phase in [Phase::Waiting, Phase::Starting, Phase::Unhealthy] {
        s.phase("zookeeper-1", phase);
        assert_eq!(ensemble::next(&s.state, &s.obs, &role), None, "{phase:?}");
    }
    s.phase("zookeeper-1", Phase::Healthy);
    let change = ensemble::next(&s.state, &s.obs, &role).expect("due");
    assert_eq!((change.remove, change.add[0].0, change.if_version), (vec![1], 4, 1));
}

#[test]
fn a_joiner_waits_while_the_list_cannot_be_read() {
    let mut s = replaced();
    s.obs.zookeeper = None;
    assert_eq!(ensemble::start_list(&s.state, &s.obs, &slot("zookeeper-1")), None);
    assert!(gates::start(&Serving::new(&s.state, &s.obs), &slot("zookeeper-1")).is_some());
    // Even after its first healthy report: it is not a voter until the list has it.
    let generation = s.generation("zookeeper-1");
    s.ok(Command::SlotUsed { slot: slot("zookeeper-1"), generation });
    assert_eq!(ensemble::start_list(&s.state, &s.obs, &slot("zookeeper-1")), None);
    let (join, list) = ensemble::start_list(&s.state, &s.obs, &slot("zookeeper-2")).expect("a voter with its disk");
    assert_eq!(join, Join::Member);
    assert!(!list.iter().any(|(member, ..)| *member == 4));
}

#[test]
fn a_late_founder_is_never_a_quorum_of_its_own() {
    let mut s = Situation::well();
    s.state.slots.get_mut(&slot("zookeeper-3")).expect("slot").used = false;
    for (id, waits) in [("zookeeper-1", false), ("zookeeper-2", true)] {
        let (holder, generation) = (s.holder(id).expect("held"), s.generation(id));
        s.ok(Command::SlotReleased { slot: slot(id), generation, node: holder });
        assert_eq!(gates::start(&Serving::new(&s.state, &s.obs), &slot("zookeeper-3")).is_some(), waits, "{id} gone");
    }
}

#[test]
fn a_dead_voter_that_no_slot_remembers_is_removed_with_the_next_joiner() {
    let mut s = replaced();
    s.state.slots.get_mut(&slot("zookeeper-1")).expect("slot").retired_member = None;
    s.phase("zookeeper-1", Phase::Healthy);
    assert_eq!(ensemble::next(&s.state, &s.obs, &"zookeeper".into()).map(|change| change.remove), Some(vec![1]));
}

#[test]
fn a_retired_member_is_forgotten_only_when_the_list_has_the_new_one_alone() {
    let mut s = replaced();
    assert_eq!(ensemble::removed(&s.state, &s.obs), []);
    let seen = s.obs.zookeeper.as_mut().expect("seen");
    seen.voters.insert(4, "x".into());
    assert_eq!(ensemble::removed(&s.state, &s.obs), []);
    s.obs.zookeeper.as_mut().expect("seen").voters.remove(&1);
    assert_eq!(ensemble::removed(&s.state, &s.obs), [Command::MemberRemoved { slot: slot("zookeeper-1"), member_id: 1 }]);
}

#[test]
fn the_ensemble_is_founded_once() {
    let mut s = Situation::well();
    assert_eq!(ensemble::founding(&s.state, &"zookeeper".into()), None);
    let again = Command::EnsembleFounded { role: "zookeeper".into(), members: BTreeMap::from([(slot("zookeeper-1"), 9)]) };
    assert!(s.apply(again).is_err());
}

#[test]
fn start_gates_open_one_by_one() {
    let s = Situation::well();
    let gate = |change: &dyn Fn(&mut Situation)| {
        let mut s = s.clone();
        change(&mut s);
        gates::start(&Serving::new(&s.state, &s.obs), &slot("kafka-1")).map(|gate| gate.closed_by).unwrap_or_default()
    };
    assert_eq!(gate(&|_| {}), "");
    assert!(gate(&|s| s.obs.volumes.clear()).contains("not attached"));
    assert!(gate(&|s| s.lose_disk("kafka-1")).contains("disk is lost"));
    assert!(gate(&|s| s.obs.kafka = None).contains("cannot be read"));
    assert!(gate(&|s| drop(s.obs.kafka.as_mut().expect("seen").registered.insert(1, "elsewhere".into()))).contains("still live"));
    let unserved = gate(&|s| {
        s.phase("zookeeper-1", Phase::Unhealthy);
        s.phase("zookeeper-2", Phase::Unhealthy);
    });
    assert!(unserved.contains("does not serve"));
}

#[test]
fn a_moved_voter_is_listed_under_its_new_address_without_removing_anyone() {
    let mut s = Situation::well();
    s.obs.zookeeper.as_mut().expect("seen").voters.insert(2, "at-i-99".into());
    let change = ensemble::next(&s.state, &s.obs, &"zookeeper".into()).expect("due");
    let holder = s.holder("zookeeper-2").expect("held");
    assert_eq!((change.remove, change.add), (vec![], vec![(2, s.state.nodes[&holder].address.clone())]));
}

#[test]
fn no_reconfig_without_a_majority_and_none_when_the_list_is_right() {
    let mut s = Situation::well();
    assert_eq!(ensemble::next(&s.state, &s.obs, &"zookeeper".into()), None);
    s.obs.zookeeper.as_mut().expect("seen").voters.insert(2, "at-i-99".into());
    s.phase("zookeeper-1", Phase::Unhealthy);
    s.phase("zookeeper-3", Phase::Unhealthy);
    assert_eq!(ensemble::next(&s.state, &s.obs, &"zookeeper".into()), None);
}

#[test]
fn a_lost_or_draining_holder_is_listed_nowhere_new() {
    for change in [(|s: &mut Situation, node| s.lose(node)) as fn(&mut Situation, &vp_cluster::NodeId), |s, node| {
        s.ok(Command::SetDraining { node: node.clone(), draining: true });
    }] {
        let mut s = Situation::well();
        s.obs.zookeeper.as_mut().expect("seen").voters.insert(2, "at-i-99".into());
        let holder = s.holder("zookeeper-2").expect("held");
        change(&mut s, &holder);
        assert_eq!(ensemble::next(&s.state, &s.obs, &"zookeeper".into()), None);
    }
}

#[test]
fn founders_list_each_other_as_voters_and_found_only_when_all_have_a_node() {
    let mut s = Situation::of(situation::spec(), "ab");
    s.carry_out();
    assert_eq!(ensemble::founding(&s.state, &"zookeeper".into()), None, "two of three have a node");
    s.ok(situation::node_in("i-3", "c"));
    s.carry_out();
    s.ok(ensemble::founding(&s.state, &"zookeeper".into()).expect("due"));
    for id in ["zookeeper-1", "zookeeper-2", "zookeeper-3"] {
        let (join, list) = ensemble::start_list(&s.state, &s.obs, &slot(id)).expect("list");
        assert_eq!(join, Join::Founder);
        assert_eq!(list.iter().map(|(member, _, votes)| (*member, *votes)).collect::<Vec<_>>(), [(1, true), (2, true), (3, true)]);
    }
}

#[test]
fn two_joiners_never_list_each_other() {
    let mut s = replaced();
    s.lose_disk("zookeeper-2");
    let (holder, generation) = (s.holder("zookeeper-2").expect("held"), s.generation("zookeeper-2"));
    s.ok(Command::SlotReleased { slot: slot("zookeeper-2"), generation, node: holder });
    s.carry_out();
    let (one, two) = (s.state.slots[&slot("zookeeper-1")].member_id, s.state.slots[&slot("zookeeper-2")].member_id);
    for (id, other) in [("zookeeper-1", two), ("zookeeper-2", one)] {
        let (join, list) = ensemble::start_list(&s.state, &s.obs, &slot(id)).expect("list");
        assert_eq!(join, Join::Observer);
        assert!(!list.iter().any(|(member, ..)| *member == other), "{id} lists {other}");
    }
}
