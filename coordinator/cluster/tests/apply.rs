//! What `apply` refuses, and properties over random histories.
mod situation;
use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, test_runner::RngSeed};
use situation::{Situation, node_in, role, slot, spec, zone};
use vp_cluster::{
    Action, ClusterState, Command, NodeId, SlotId, apply, liveness,
    observe::Phase,
    planner,
    state::{Fencing, Lifecycle, Membership, Node, Proof},
};

#[test]
fn a_refused_plan_leaves_no_event_behind() {
    let mut s = Situation::of(spec(), "a");
    let before = s.state.clone();
    let good = Action::Grant { slot: slot("vault-1"), node: "i-1".into(), member_id: 1 };
    let plan = vp_cluster::Plan { based_on: s.state.revision, actions: vec![good.clone(), good] };
    assert!(s.apply(Command::Plan(plan)).is_err());
    s.state.revision = before.revision;
    assert_eq!(s.state, before);
}

#[test]
fn a_revision_never_goes_back() {
    let mut state = Situation::well().state;
    let before = state.clone();
    assert!(apply(&mut state, 1, 0, &node_in("i-9", "a")).is_err());
    assert_eq!(state, before);
}

#[test]
fn unusable_specs_are_refused() {
    type Change = fn(&mut vp_cluster::state::Spec);
    let changes: [(&str, Change); 8] = [
        ("even voters", |spec| spec.roles.get_mut(&"zookeeper".into()).expect("role").pref = 4),
        ("min over pref", |spec| spec.roles.get_mut(&"kafka".into()).expect("role").min = 4),
        ("after itself", |spec| spec.roles.get_mut(&"zookeeper".into()).expect("role").after = vec!["kafka".into()]),
        ("after a stranger", |spec| spec.roles.get_mut(&"zookeeper".into()).expect("role").after = vec!["etcd".into()]),
        ("below its minimum", |spec| spec.roles.get_mut(&"kafka".into()).expect("role").pref = 0),
        ("no node is ever given up", |spec| spec.policy.sources_per_minute = 0),
        ("taken out", |spec| drop(spec.roles.remove(&"vault".into()))),
        ("other class once granted", |spec| spec.roles.get_mut(&"vault".into()).expect("role").fencing = Fencing::Disposable),
    ];
    for (name, change) in changes {
        let mut s = Situation::well();
        let mut changed = spec();
        change(&mut changed);
        assert!(s.apply(Command::SetSpec { spec: changed }).is_err(), "{name}");
    }
    let mut huge = spec();
    huge.roles.insert("many".into(), vp_cluster::state::RoleSpec { max: u32::MAX, ..role(u32::MAX, Fencing::Disposable, Membership::None, false) });
    assert!(Situation::well().apply(Command::SetSpec { spec: huge }).is_err());
}

#[test]
fn a_slot_is_granted_only_where_its_volume_is() {
    let mut s = Situation::well();
    let (holder, generation) = (s.holder("zookeeper-1").expect("held"), s.generation("zookeeper-1"));
    s.ok(Command::SlotReleased { slot: slot("zookeeper-1"), generation, node: holder.clone() });
    let home = s.state.nodes[&holder].zone.clone();
    s.ok(node_in("i-8", if home == zone("c") { "a" } else { "c" }));
    assert!(s.act(Action::Grant { slot: slot("zookeeper-1"), node: "i-8".into(), member_id: 1 }).is_err());
}

#[test]
fn a_lost_node_gets_nothing_and_cannot_come_back() {
    let mut s = Situation::of(spec(), "a");
    s.lose(&"i-1".into());
    assert!(s.act(Action::Grant { slot: slot("vault-1"), node: "i-1".into(), member_id: 1 }).is_err());
    assert!(s.apply(node_in("i-1", "a")).is_err());
}

#[test]
fn an_instance_keeps_what_it_holds_over_a_new_session_and_never_changes_zone() {
    let mut s = Situation::well();
    let held = s.state.slots.clone();
    s.ok(node_in("i-1", "a"));
    assert_eq!(s.state.slots, held);
    assert!(s.apply(node_in("i-1", "b")).is_err());
}

#[test]
fn a_release_word_of_another_generation_or_node_is_refused() {
    let mut s = Situation::well();
    let (holder, generation) = (s.holder("vault-1").expect("held"), s.generation("vault-1"));
    let word = |generation, node: NodeId| Command::SlotReleased { slot: slot("vault-1"), generation, node };
    assert!(s.apply(word(vp_cluster::Generation(0), holder.clone())).is_err());
    assert!(s.apply(word(generation, "i-99".into())).is_err());
    s.ok(word(generation, holder));
}

#[test]
fn member_ids_wrap_at_255_without_reusing_a_retired_or_used_one() {
    let mut s = Situation::well();
    s.state.ensembles.get_mut(&"zookeeper".into()).expect("ensemble").last_member = 255;
    s.state.slots.get_mut(&slot("zookeeper-1")).expect("slot").retired_member = Some(4);
    assert_eq!(apply::next_member_id(&s.state, &"zookeeper".into()), Some(5));
}

#[test]
fn a_slot_is_not_used_before_it_has_the_disk_its_role_owns() {
    let mut s = Situation::of(spec(), "abcab");
    s.carry_out();
    let used = |s: &Situation, id: &str| Command::SlotUsed { slot: slot(id), generation: s.generation(id) };
    let early = used(&s, "zookeeper-1");
    assert!(s.apply(early.clone()).is_err(), "no disk yet");
    let holder = s.holder("zookeeper-1").expect("held");
    let zone = s.state.nodes[&holder].zone.clone();
    s.ok(Command::VolumeCreated { slot: slot("zookeeper-1"), generation: s.generation("zookeeper-1"), volume: "v".into(), zone });
    s.ok(early);
    s.ok(used(&s, "worker-1"));
}

#[test]
fn a_vacant_slot_is_not_used() {
    let mut s = Situation::of(spec(), "");
    assert!(s.apply(Command::SlotUsed { slot: slot("worker-1"), generation: vp_cluster::Generation(0) }).is_err());
}

#[test]
fn a_grant_to_who_cannot_take_it_is_refused() {
    let s = Situation::of(spec(), "ab");
    let grant = |id: &str, node: &str, member_id| Action::Grant { slot: slot(id), node: node.into(), member_id };
    let mut held = s.clone();
    held.act(grant("worker-1", "i-1", 1)).expect("first");
    for (name, action) in [
        ("held", grant("worker-1", "i-2", 1)),
        ("two of a role on one node", grant("worker-2", "i-1", 2)),
        ("no such node", grant("worker-2", "i-9", 2)),
        ("no such slot", grant("worker-7", "i-2", 7)),
        ("member id of another", grant("worker-2", "i-2", 1)),
        ("member id 0", grant("worker-2", "i-2", 0)),
    ] {
        assert!(held.clone().act(action).is_err(), "{name}");
    }
    held.act(grant("worker-2", "i-2", 2)).expect("the one that may");
}

#[test]
fn a_generation_is_the_index_of_its_grant_and_only_grows() {
    let mut s = Situation::well();
    let first = s.generation("stream-1");
    let holder = s.holder("stream-1").expect("held");
    s.fence(&holder);
    s.carry_out();
    assert!(s.generation("stream-1") > first);
    assert_eq!(s.generation("stream-1").0, s.state.revision.0);
}

#[test]
fn a_proof_of_another_node_or_class_vacates_nothing() {
    let lease = |node: &NodeId| Proof::LeaseExpired { node: node.clone() };
    let terminated = |node: &NodeId| Proof::InstanceTerminated { node: node.clone() };
    let word = |node: &NodeId| Proof::AgentWord { node: node.clone() };
    for (id, proof, lost, enough) in [
        ("worker-1", lease as fn(&NodeId) -> Proof, true, true),
        ("worker-1", lease, false, false),
        ("stream-1", lease, true, true),
        ("vault-1", lease, true, false),
        ("kafka-1", lease, true, false),
        ("kafka-1", terminated, true, false), // lost is not terminated
        ("worker-1", word, true, false),      // a word comes from the agent, never in a plan
    ] {
        let mut s = Situation::well();
        let holder = s.holder(id).expect("held");
        if lost {
            s.lose(&holder);
        }
        let vacate = |proof| Action::Vacate { slot: slot(id), proof };
        assert_eq!(s.clone().act(vacate(proof(&holder))).is_ok(), enough, "{id} {}", proof(&holder));
        assert!(s.clone().act(vacate(proof(&"i-99".into()))).is_err(), "{id}: of another node");
        s.fence(&holder);
        s.act(vacate(terminated(&holder))).expect("terminated is proof for every class");
    }
}

#[test]
fn a_volume_has_one_owner_and_is_where_its_holder_is() {
    let mut s = Situation::of(spec(), "abcab");
    s.carry_out();
    let volume = |s: &Situation, id: &str, volume: &str, zone: &str| Command::VolumeCreated {
        slot: slot(id),
        generation: s.generation(id),
        volume: volume.into(),
        zone: zone.into(),
    };
    let home = |s: &Situation, id: &str| s.state.nodes[&s.holder(id).expect("held")].zone.0.clone();
    let (first, second) = (home(&s, "zookeeper-1"), home(&s, "zookeeper-2"));
    s.ok(volume(&s, "zookeeper-1", "v-1", &first));
    assert!(s.apply(volume(&s, "zookeeper-2", "v-1", &second)).is_err(), "another's");
    assert!(s.apply(volume(&s, "zookeeper-2", "v-2", &first)).is_err(), "another zone");
    assert!(s.apply(volume(&s, "worker-1", "v-3", &first)).is_err(), "the role owns none");
    assert!(s.apply(volume(&s, "zookeeper-1", "v-4", &first)).is_err(), "it has one");
}

#[test]
fn the_event_ring_drops_the_oldest_first() {
    let mut s = Situation::of(spec(), "");
    for number in 0..600 {
        s.ok(Command::Note { kind: number.to_string(), subject: String::new(), detail: String::new() });
    }
    assert_eq!(s.state.events.len(), vp_cluster::state::EVENT_RING);
    assert_eq!(s.state.events.back().expect("event").kind, "599");
    assert_eq!(s.state.events.front().expect("event").kind, (600 - vp_cluster::state::EVENT_RING).to_string());
}

/// One step of a random history: what may happen, then perhaps a plan.
fn step(s: &mut Situation, what: u8, pick: u8) {
    let node: NodeId = format!("i-{}", pick % 8 + 1).as_str().into();
    let ids: Vec<SlotId> = s.state.slots.keys().cloned().collect();
    let id = ids[usize::from(pick) % ids.len()].clone();
    let kept = s.state.slots[&id].clone();
    let holder = kept.holder.clone().unwrap_or_else(|| node.clone());
    let session = s.state.nodes.get(&node).map(|node| node.session).unwrap_or_default();
    let command = match what % 17 {
        0 | 1 => node_in(&node.0, ["a", "b", "c"][usize::from(pick % 3)]),
        2 => Command::NodeLost { node, session, silent_ms: 1 },
        3 => Command::NodeFenced { node },
        4 => Command::SetDraining { node, draining: !pick.is_multiple_of(3) },
        5 => Command::SlotReleased { slot: id, generation: kept.generation, node: holder },
        6 => Command::VolumeCreated {
            slot: id,
            generation: kept.generation,
            volume: format!("v-{pick}").as_str().into(),
            zone: ["a", "b", "c"][usize::from(pick % 3)].into(),
        },
        7 => match kept.volume {
            Some(volume) => Command::VolumeLost { slot: id, volume: volume.id },
            None => Command::SlotUsed { slot: id, generation: kept.generation },
        },
        8 => {
            s.obs.now_ms += 30_000;
            s.phase(&id.to_string(), Phase::Healthy);
            let generation = kept.generation;
            Command::SlotUsed { slot: id, generation }
        }
        9 => Command::SetCordoned { node, cordoned: pick.is_multiple_of(2) },
        10 => Command::MoveSlot { slot: id, to: pick.is_multiple_of(3).then_some(node), empty_disk: pick.is_multiple_of(5) },
        11 => Command::CancelMove { slot: id },
        12 => Command::Scale { role: id.role, pref: u32::from(pick % 6) },
        13 => {
            s.hear(&node.0, 0);
            Command::ReleaseBrake { by: "ada".to_owned(), nodes: liveness::silent_now(&s.state, &s.obs) }
        }
        14 => {
            let session = s.state.nodes.get(&node).map_or(vp_cluster::Session(0), |node| node.session);
            Command::Gone { node, session, by: "ada".to_owned() }
        }
        15 => {
            s.reconfigure();
            return;
        }
        _ => {
            s.settle();
            return;
        }
    };
    // A refusal is an answer too; `Situation::apply` checks the invariant either way.
    let _ = s.apply(command);
}

/// A grant follows only on proof or word: nobody who could still act held the slot before.
fn no_second_holder(before: &ClusterState, after: &ClusterState) {
    let both: BTreeMap<_, _> = after.slots.iter().filter_map(|(id, now)| Some((id, (before.slots.get(id)?, now)))).collect();
    for (id, (old, now)) in both {
        let role = &after.spec.roles[&id.role];
        let strict = role.fencing == Fencing::Quorum || (role.fencing == Fencing::Exclusive && !role.fenced_sinks);
        let Some(holder) = &old.holder else { continue };
        if strict && now.generation != old.generation {
            assert_eq!(before.nodes[holder].lifecycle, Lifecycle::Fenced, "{id} left {holder}");
            let proof = match &before.nodes[holder].gone_by {
                None => Proof::InstanceTerminated { node: holder.clone() },
                Some(by) => Proof::OperatorsWord { node: holder.clone(), by: by.clone() },
            };
            assert_eq!(now.proof, Some(proof));
        }
    }
}

/// Whatever is wanted and held by nobody has a gate.
fn nothing_waits_untold(s: &Situation) {
    let told: BTreeSet<String> = planner::plan(&s.state, &s.obs).1.gates.into_iter().map(|gate| gate.subject).collect();
    for (id, _) in s.state.slots.iter().filter(|(id, slot)| slot.holder.is_none() && !s.state.is_surplus(id)) {
        assert!(told.contains(&id.to_string()), "{id} waits, and nobody says for what");
    }
}

/// A plan touches no slot that is where it may stay: least disruption.
fn nothing_moves_without_need(before: &ClusterState, after: &ClusterState) {
    for (id, old) in &before.slots {
        let Some((_, node)) = before.holder(old) else { continue };
        let lost_its_disk = before.spec.roles[&id.role].volume && old.used && old.volume.is_none();
        let may_stay = node.lifecycle == Lifecycle::Ready && !lost_its_disk && old.wanted_move.is_none() && !before.is_surplus(id);
        assert!(!may_stay || after.slots.get(id) == Some(old), "{id} was well where it was: {:?}", after.slots.get(id));
    }
}

/// Plays a history step by step: what happens, then a plan, then everything that must hold.
fn play(history: &[(u8, u8)]) -> ClusterState {
    let mut s = Situation::of(spec(), "abcab");
    s.state.apply_version = vp_cluster::version::NEWEST;
    for (what, pick) in history {
        step(&mut s, *what, *pick);
        let before = s.state.clone();
        let waiting = planner::zone_is_empty(&s.state);
        s.obs.zone_empty_since_ms = waiting.into_iter().map(|id| (id, 0)).collect();
        s.carry_out(); // a plan is never refused on its own revision
        no_second_holder(&before, &s.state);
        nothing_moves_without_need(&before, &s.state);
        assert_eq!(s.plan(), [], "planning a planned state yields nothing");
        nothing_waits_untold(&s);
        let text = serde_json::to_string(&s.state).expect("written");
        assert_eq!(serde_json::from_str::<ClusterState>(&text).expect("read"), s.state);
        let _ = liveness::judge(&s.state, &s.obs);
    }
    s.state
}

/// Found by the property below: the release that a broker too many had held back came a plan later only.
#[test]
fn a_slot_too_many_that_is_vacated_holds_nobody_back_in_the_very_same_plan() {
    play(&[(77, 0), (80, 215), (0, 183), (15, 0), (108, 100), (76, 157), (0, 0), (211, 23)]);
}

/// The same histories in every run, so that a red run is a change's own; `VP_SEED=N` plays others.
fn seed() -> RngSeed {
    RngSeed::Fixed(std::env::var("VP_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, rng_seed: seed(), failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_history_keeps_the_rules(history in prop::collection::vec((any::<u8>(), any::<u8>()), 1..60)) {
        prop_assert_eq!(play(&history), play(&history));
    }

    /// Zones differ in how many nodes they have and how large those are: a zone gets a second member of a role only when each that has none has no room for one.
    #[test]
    fn members_are_spread_over_zones_before_they_share_one_and_never_share_a_node(
        nodes in prop::collection::vec((0..4_usize, 0..6_u32), 1..12),
        wanted in prop::collection::vec(prop::sample::select(vec![1_u32, 3, 5]), 5),
    ) {
        let mut spec = spec();
        spec.roles.values_mut().zip(&wanted).for_each(|(role, pref)| role.pref = *pref);
        let mut s = Situation::of(spec, "");
        for (number, (zone, room)) in nodes.iter().enumerate() {
            let mut joins = node_in(&format!("i-{number}"), ["a", "b", "c", "d"][*zone]);
            if let Command::RegisterNode { memory_mib, .. } = &mut joins {
                *memory_mib = 200 * room;
            }
            s.ok(joins);
        }
        s.carry_out();
        for (name, role) in &s.state.spec.roles {
            let holders: Vec<&NodeId> = s.state.slots_of(name).filter_map(|(_, slot)| slot.holder.as_ref()).collect();
            prop_assert_eq!(holders.iter().collect::<BTreeSet<_>>().len(), holders.len(), "{} shares a node", name);
            let beside = |node: &Node| holders.iter().filter(|holder| s.state.nodes[**holder].zone == node.zone).count();
            let most = s.state.nodes.values().map(beside).max().unwrap_or(0);
            // Room only shrinks while a plan is made: what has some at its end had some for every member.
            for (id, node) in &s.state.nodes {
                let used: u32 = s.state.held_by(id).map(|(held, _)| s.state.spec.roles[&held.role].memory_mib).sum();
                let had_room = !holders.contains(&id) && used + role.memory_mib <= node.memory_mib;
                prop_assert!(!had_room || beside(node) + 1 >= most, "{} could have gone to {}: {:?}", name, id, holders);
            }
        }
    }
}
