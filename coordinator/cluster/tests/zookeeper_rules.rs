//! `roles.md` "ZooKeeper", rule by rule: a test for each, which is to fail when its rule is taken out (`docs/planted/core.md` says which were seen to).
#[macro_use]
mod situation;
use std::collections::BTreeMap;

use situation::{Situation, node_in, slot, spec};
use vp_cluster::{
    Action, Command, RoleName, alarms,
    ensemble::{self, Join},
    health::serving,
    observe::{Phase, VolumeSeen},
    planner, round,
};

const SEED: &str = include_str!("../../../roles/zookeeper/seed.cfg.j2");
const START: &str = include_str!("../../../roles/zookeeper/start.sh.j2");

fn zookeeper() -> RoleName {
    "zookeeper".into()
}

/// zookeeper-1 lost its disk, was stopped, and was granted again with an empty one, which is attached.
fn replaced() -> Situation {
    let mut s = Situation::well();
    s.lose_disk("zookeeper-1");
    s.word("zookeeper-1");
    s.carry_out();
    equip(&mut s, "zookeeper-1");
    s
}

/// A volume for a slot that was just granted, attached to its holder.
fn equip(s: &mut Situation, id: &str) {
    let (holder, generation, zone) = (s.holder(id).expect("granted"), s.generation(id), s.zone_of(id));
    let volume: vp_cluster::VolumeId = format!("v-{id}-{generation}").as_str().into();
    s.ok(Command::VolumeCreated { slot: slot(id), generation, volume: volume.clone(), zone });
    s.obs.volumes.insert(volume, VolumeSeen::AttachedTo(holder));
}

/// Five wanted of three; the two new ones hold a place and a disk.
fn growing() -> Situation {
    let mut s = Situation::well();
    for (id, zone) in [("i-6", "c"), ("i-7", "a")] {
        s.ok(node_in(id, zone));
    }
    s.ok(Command::Scale { role: zookeeper(), pref: 5 });
    s.carry_out();
    equip(&mut s, "zookeeper-4");
    equip(&mut s, "zookeeper-5");
    s
}

fn in_sync(s: &mut Situation, id: &str) {
    s.phase(id, Phase::Healthy);
    let generation = s.generation(id);
    if !s.state.slots[&slot(id)].used {
        s.ok(Command::SlotUsed { slot: slot(id), generation });
    }
}

fn start(s: &Situation, id: &str) -> Option<(Join, Vec<(u32, bool)>)> {
    let (join, list) = ensemble::start_list(&s.state, &s.obs, &slot(id))?;
    Some((join, list.into_iter().map(|(member, _, votes)| (member, votes)).collect()))
}

fn voters(s: &Situation) -> Vec<u32> {
    s.obs.zookeeper.as_ref().expect("read").voters.keys().copied().collect()
}

#[test]
fn rule_1_reconfig_is_on_needs_an_authenticated_user_and_acls_are_never_skipped() {
    for line in ["reconfigEnabled=true", "standaloneEnabled=false"] {
        assert!(SEED.lines().any(|have| have == line), "{line}");
    }
    assert!(START.contains("superDigest='{{ params.super_digest }}'"));
    assert!(!SEED.contains("skipACL") && !START.contains("skipACL"));
}

#[test]
fn rule_2_a_joiner_starts_from_the_committed_list_with_itself_as_observer() {
    let s = replaced();
    assert_eq!(start(&s, "zookeeper-1"), Some((Join::Observer, vec![(1, true), (2, true), (3, true), (4, false)])));
}

#[test]
fn rule_2_two_joiners_never_list_each_other() {
    let s = growing();
    for (id, own) in [("zookeeper-4", 4), ("zookeeper-5", 5)] {
        assert_eq!(start(&s, id), Some((Join::Observer, vec![(1, true), (2, true), (3, true), (own, false)])));
    }
}

#[test]
fn rule_2_a_joiner_that_was_in_sync_is_no_voter_for_that_when_the_list_cannot_be_read() {
    let mut s = growing();
    in_sync(&mut s, "zookeeper-4");
    in_sync(&mut s, "zookeeper-5");
    s.obs.zookeeper = None;
    assert_eq!((start(&s, "zookeeper-4"), start(&s, "zookeeper-5")), (None, None), "with one voter they would be a quorum of five");
    assert_eq!(start(&s, "zookeeper-1"), Some((Join::Member, vec![(1, true), (2, true), (3, true)])));
}

#[test]
fn rule_2_a_joiner_restarted_before_it_was_added_gets_a_fresh_configuration() {
    let mut s = replaced();
    in_sync(&mut s, "zookeeper-1");
    s.phase("zookeeper-1", Phase::Starting);
    let mut list = s.obs.zookeeper.clone().expect("read").voters;
    list.insert(2, "elsewhere".into());
    s.list(list);
    let (join, list) = ensemble::start_list(&s.state, &s.obs, &slot("zookeeper-1")).expect("a list");
    assert_eq!((join, list[1].1.as_str()), (Join::Observer, "elsewhere"));
    assert!(START.contains("rm -f \"$run\"/zoo.cfg*"), "and what it learned in an earlier generation is thrown away");
}

#[test]
fn rule_3_a_voter_is_replaced_in_one_command_on_the_version_that_was_read_once_the_new_one_is_in_sync() {
    let mut s = replaced();
    assert_eq!(ensemble::next(&s.state, &s.obs, &zookeeper()), None, "not in sync");
    s.phase("zookeeper-1", Phase::Healthy);
    let version = s.obs.zookeeper.as_ref().expect("read").version;
    let change = ensemble::next(&s.state, &s.obs, &zookeeper()).expect("due");
    assert_eq!((change.remove, change.add.len(), change.add[0].0, change.if_version), (vec![1], 1, 4, version));
}

#[test]
fn rule_3_three_never_become_four() {
    let mut s = growing();
    in_sync(&mut s, "zookeeper-4");
    assert_eq!(ensemble::next(&s.state, &s.obs, &zookeeper()), None);
    let gate = ensemble::waits(&s.state, &s.obs, &zookeeper()).expect("a closed gate");
    assert!(gate.closed_by.contains("4 voters would tolerate no more than 3"), "{gate:?}");
    assert!(round::look(&s.state, &s.obs).gates.contains(&gate));
}

#[test]
fn rule_3_an_ensemble_of_two_takes_one_and_is_three_again() {
    let mut s = Situation::well();
    let mut list = s.obs.zookeeper.clone().expect("read").voters;
    list.remove(&1);
    s.list(list);
    let change = ensemble::next(&s.state, &s.obs, &zookeeper()).expect("due");
    assert_eq!((change.remove, change.add.len()), (vec![], 1));
}

#[test]
fn rule_3_the_same_myid_only_with_the_same_disk() {
    let mut s = Situation::well();
    s.word("zookeeper-1");
    s.carry_out();
    assert_eq!(s.state.slots[&slot("zookeeper-1")].member_id, 1, "the disk is there");
    let s = replaced();
    assert_eq!((s.state.slots[&slot("zookeeper-1")].member_id, s.state.slots[&slot("zookeeper-1")].retired_member), (4, Some(1)));
}

#[test]
fn rule_4_a_removed_server_is_stopped_only_after_a_write_went_through() {
    let mut s = growing();
    for id in ["zookeeper-4", "zookeeper-5"] {
        in_sync(&mut s, id);
    }
    s.reconfigure().expect("both are added");
    s.ok(Command::Scale { role: zookeeper(), pref: 3 });
    let released = |s: &Situation| s.plan().iter().any(|action| matches!(action, Action::Release { slot } if slot.role == zookeeper()));
    assert!(!released(&s), "they vote");
    s.reconfigure().expect("both are removed");
    let seen = s.obs.zookeeper.as_mut().expect("read");
    seen.active_version = seen.version - 1;
    assert!(!released(&s), "committed, not active");
    assert!(s.gates().contains("committed but not active yet"));
    let seen = s.obs.zookeeper.as_mut().expect("read");
    seen.active_version = seen.version;
    assert!(released(&s));
}

#[test]
fn rule_4_a_slot_too_many_whose_holder_is_gone_stays_while_its_member_votes_and_says_so() {
    let mut s = growing();
    for id in ["zookeeper-4", "zookeeper-5"] {
        in_sync(&mut s, id);
    }
    s.reconfigure().expect("both are added");
    s.ok(Command::Scale { role: zookeeper(), pref: 3 });
    let holder = s.holder("zookeeper-5").expect("held");
    s.fence(&holder);
    s.carry_out();
    assert_eq!(s.holder("zookeeper-5"), None);
    let gates = planner::plan(&s.state, &s.obs).1.gates;
    let told = gates.iter().find(|gate| gate.subject == "zookeeper-5").expect("a closed gate");
    assert_eq!(told.closed_by, "one too many, and member 5 still votes");
}

#[test]
fn rule_5_a_joiner_that_somebody_listed_as_observer_is_taken_out_first_and_then_added() {
    let mut s = replaced();
    s.phase("zookeeper-1", Phase::Healthy);
    s.obs.zookeeper.as_mut().expect("read").observers.insert(4);
    let change = ensemble::next(&s.state, &s.obs, &zookeeper()).expect("due");
    assert_eq!((change.remove, change.add), (vec![4], vec![]));
    s.obs.zookeeper.as_mut().expect("read").observers.clear();
    assert_eq!(ensemble::next(&s.state, &s.obs, &zookeeper()).expect("due").add[0].0, 4);
}

#[test]
fn rule_6_ids_stay_in_1_to_255_and_one_that_is_listed_or_retired_is_not_given_again() {
    let mut s = replaced();
    s.state.ensembles.get_mut(&zookeeper()).expect("founded").last_member = 255;
    s.lose_disk("zookeeper-2");
    s.word("zookeeper-2");
    let mut list = s.obs.zookeeper.clone().expect("read").voters;
    list.insert(5, "an old one".into());
    // Its own slot alone still knows of 1.
    list.remove(&1);
    s.list(list);
    s.carry_out();
    assert_eq!(s.state.slots[&slot("zookeeper-2")].member_id, 6, "1 is retired, 2 and 3 vote, 4 joins, 5 is listed");
    let mut many = spec();
    let role = many.roles.get_mut(&zookeeper()).expect("role");
    (role.pref, role.max) = (129, 255);
    assert!(s.apply(Command::SetSpec { spec: many }).is_err(), "half of the ids stay free for replacements");
}

#[test]
fn rule_7_an_empty_disk_never_votes_under_an_id_that_has_written() {
    let s = replaced();
    assert_ne!(s.state.slots[&slot("zookeeper-1")].member_id, 1);
    assert!(START.contains("-Dzookeeper.db.autocreate=false"));
}

#[test]
fn rule_7_initialize_is_for_founders_who_have_never_written() {
    let mut s = Situation::of(spec(), "abcab");
    s.carry_out();
    s.ok(ensemble::founding(&s.state, &zookeeper()).expect("due"));
    assert_eq!(start(&s, "zookeeper-1").expect("a list").0, Join::Founder);
    equip(&mut s, "zookeeper-1");
    in_sync(&mut s, "zookeeper-1");
    assert_eq!(start(&s, "zookeeper-1").expect("a list").0, Join::Member, "it has written");
    assert_eq!(start(&replaced(), "zookeeper-1").expect("a list").0, Join::Observer, "it came later");
    assert!(START.contains("{% if params.initialize == \"true\" -%}"));
}

#[test]
fn rule_8_there_is_an_ensemble_when_the_log_says_so_whoever_is_reachable() {
    let mut s = Situation::well();
    for id in ["zookeeper-1", "zookeeper-2", "zookeeper-3"] {
        s.phase(id, Phase::Unknown);
    }
    s.obs.zookeeper = None;
    assert_eq!(ensemble::founding(&s.state, &zookeeper()), None);
    let again = Command::EnsembleFounded { role: zookeeper(), members: BTreeMap::from([(slot("zookeeper-1"), 9)]) };
    assert!(s.apply(again).is_err());
    assert_eq!(start(&s, "zookeeper-1").expect("a list").0, Join::Member);
}

#[test]
fn rule_8_lists_carry_addresses_and_no_names() {
    let s = Situation::well();
    let (_, list) = ensemble::start_list(&s.state, &s.obs, &slot("zookeeper-1")).expect("a list");
    let addresses: Vec<&str> = s.state.nodes.values().map(|node| node.address.as_str()).collect();
    assert!(list.iter().all(|(_, address, _)| addresses.contains(&address.as_str())), "{list:?}");
}

#[test]
fn rule_9_three_become_five_in_one_reconfig() {
    let mut s = growing();
    in_sync(&mut s, "zookeeper-4");
    in_sync(&mut s, "zookeeper-5");
    let change = s.reconfigure().expect("due");
    assert_eq!((change.remove, change.add.iter().map(|(member, _)| *member).collect::<Vec<_>>()), (vec![], vec![4, 5]));
    assert_eq!(voters(&s), [1, 2, 3, 4, 5]);
    assert_eq!(ensemble::next(&s.state, &s.obs, &zookeeper()), None);
}

#[test]
fn rule_9_five_become_three_in_one_reconfig_and_only_while_the_three_are_well() {
    let mut s = growing();
    in_sync(&mut s, "zookeeper-4");
    in_sync(&mut s, "zookeeper-5");
    s.reconfigure().expect("five");
    s.ok(Command::Scale { role: zookeeper(), pref: 3 });
    s.phase("zookeeper-2", Phase::Unhealthy);
    assert_eq!(ensemble::next(&s.state, &s.obs, &zookeeper()), None);
    assert!(ensemble::waits(&s.state, &s.obs, &zookeeper()).expect("a closed gate").closed_by.contains("zookeeper-2 is not a healthy voter"));
    s.phase("zookeeper-2", Phase::Healthy);
    assert_eq!(s.reconfigure().expect("due").remove, [4, 5]);
    assert_eq!(voters(&s), [1, 2, 3]);
    assert_eq!(s.carry_out(), [Action::Release { slot: slot("zookeeper-4") }]);
    s.word("zookeeper-4");
    assert_eq!(s.carry_out(), [Action::Release { slot: slot("zookeeper-5") }, Action::Remove { slot: slot("zookeeper-4") }], "one after the other");
    s.word("zookeeper-5");
    assert_eq!(s.carry_out(), [Action::Remove { slot: slot("zookeeper-5") }]);
    assert_eq!((s.state.slots_of(&zookeeper()).count(), s.plan()), (3, vec![]));
}

#[test]
fn rule_9_growth_taken_back_before_the_two_vote_lets_them_go_one_by_one_and_the_three_keep_their_list() {
    let mut s = growing();
    in_sync(&mut s, "zookeeper-4");
    s.phase("zookeeper-5", Phase::Starting);
    let reconfig = |s: &Situation| (ensemble::next(&s.state, &s.obs, &zookeeper()), ensemble::waits(&s.state, &s.obs, &zookeeper()));
    assert!(reconfig(&s).1.is_some(), "one of the two waits for the other");
    s.ok(Command::Scale { role: zookeeper(), pref: 3 });
    assert_eq!(reconfig(&s), (None, None));
    assert_eq!(s.carry_out(), [Action::Release { slot: slot("zookeeper-4") }]);
    s.word("zookeeper-4");
    assert_eq!(s.carry_out(), [Action::Release { slot: slot("zookeeper-5") }, Action::Remove { slot: slot("zookeeper-4") }]);
    assert_eq!(reconfig(&s), (None, None));
    s.word("zookeeper-5");
    assert_eq!(s.carry_out(), [Action::Remove { slot: slot("zookeeper-5") }]);
    assert_eq!((s.state.slots_of(&zookeeper()).count(), s.plan(), reconfig(&s)), (3, vec![], (None, None)));
    // Wanted once more: an id that was given is not given again, though it never voted.
    s.ok(Command::Scale { role: zookeeper(), pref: 5 });
    s.carry_out();
    assert_eq!(["zookeeper-4", "zookeeper-5"].map(|id| s.state.slots[&slot(id)].member_id), [6, 7]);
}

#[test]
fn rule_9_growth_taken_back_while_neither_of_the_two_starts_does_not_wait_for_them() {
    let mut s = growing();
    ["zookeeper-4", "zookeeper-5"].into_iter().for_each(|id| s.phase(id, Phase::Starting));
    s.ok(Command::Scale { role: zookeeper(), pref: 3 });
    assert_eq!(s.carry_out(), [Action::Release { slot: slot("zookeeper-4") }]);
    s.word("zookeeper-4");
    assert_eq!(s.carry_out(), [Action::Release { slot: slot("zookeeper-5") }, Action::Remove { slot: slot("zookeeper-4") }]);
    // For one that votes they do wait.
    let mut s = growing();
    ["zookeeper-4", "zookeeper-5"].into_iter().for_each(|id| s.phase(id, Phase::Starting));
    s.ok(Command::Scale { role: zookeeper(), pref: 3 });
    s.phase("zookeeper-1", Phase::Unhealthy);
    assert_eq!(s.plan(), []);
}

#[test]
fn rule_9_below_the_minimum_is_an_alarm_and_no_live_voter_is_dropped() {
    let mut s = Situation::well();
    s.state.spec.roles.get_mut(&zookeeper()).expect("role").min = 3;
    assert_eq!(alarms::raised(&s.state, &s.obs), []);
    s.phase("zookeeper-1", Phase::Unhealthy);
    let alarms = alarms::raised(&s.state, &s.obs);
    let told: Vec<_> = alarms.iter().map(|alarm| (&*alarm.about, &*alarm.sentence)).collect();
    assert_eq!(told, [("zookeeper", "2 of zookeeper are healthy, at least 3 are to be")]);
    assert_eq!((ensemble::next(&s.state, &s.obs, &zookeeper()), s.plan()), (None, vec![]));
}

// What the rules rest on

#[test]
fn a_quorum_is_counted_over_who_votes_and_not_over_who_is_wanted() {
    let mut s = growing();
    assert!(serving(&s.state, &s.obs, &zookeeper()), "three of three voters, whatever the joiners do");
    s.phase("zookeeper-1", Phase::Unhealthy);
    assert!(serving(&s.state, &s.obs, &zookeeper()));
    s.phase("zookeeper-2", Phase::Unhealthy);
    in_sync(&mut s, "zookeeper-4");
    in_sync(&mut s, "zookeeper-5");
    assert!(!serving(&s.state, &s.obs, &zookeeper()), "joiners are no voters");
}

#[test]
fn the_list_as_read_is_recorded_once_a_version_and_never_an_older_one() {
    let mut s = Situation::well();
    assert_eq!(ensemble::listed(&s.state, &s.obs, &zookeeper()), None, "known");
    let voters = |version, voters: &[u32]| Command::VotersListed { role: zookeeper(), version, voters: voters.iter().copied().collect() };
    assert!(s.apply(voters(1, &[9])).is_err());
    s.ok(voters(7, &[1, 2, 4]));
    assert!(s.apply(voters(6, &[1, 2, 3])).is_err());
    assert!(s.apply(voters(8, &[])).is_err(), "an empty list is no list");
    assert!(s.apply(Command::VotersListed { role: "kafka".into(), version: 9, voters: [1].into() }).is_err(), "not founded");
}

#[test]
fn a_state_from_before_lists_were_recorded_comes_back_as_it_used_to() {
    let mut s = Situation::well();
    s.state.ensembles.get_mut(&zookeeper()).expect("founded").voters.clear();
    s.obs.zookeeper = None;
    assert_eq!(start(&s, "zookeeper-1"), Some((Join::Member, vec![(1, true), (2, true), (3, true)])));
}

#[test]
fn an_ensemble_with_slots_beyond_those_wanted_is_not_founded_before_they_are_gone() {
    let mut five = spec();
    five.roles.get_mut(&zookeeper()).expect("role").pref = 5;
    let mut s = Situation::of(five, "abcab");
    s.carry_out();
    s.ok(Command::Scale { role: zookeeper(), pref: 3 });
    assert_eq!(ensemble::founding(&s.state, &zookeeper()), None);
}
