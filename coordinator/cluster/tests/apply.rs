//! What `apply` refuses, and properties over random histories.
mod situation;
use std::collections::BTreeMap;

use proptest::prelude::*;
use situation::{Situation, node_in, role, slot, spec, zone};
use vp_cluster::{
    Action, ClusterState, Command, NodeId, SlotId, apply, liveness,
    observe::Phase,
    planner,
    state::{Fencing, Lifecycle, Membership, Proof},
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
    let changes: [(&str, fn(&mut vp_cluster::state::Spec)); 7] = [
        ("even voters", |spec| spec.roles.get_mut(&"zookeeper".into()).expect("role").pref = 4),
        ("min over pref", |spec| spec.roles.get_mut(&"kafka".into()).expect("role").min = 4),
        ("after itself", |spec| spec.roles.get_mut(&"zookeeper".into()).expect("role").after = vec!["kafka".into()]),
        ("after a stranger", |spec| spec.roles.get_mut(&"zookeeper".into()).expect("role").after = vec!["etcd".into()]),
        ("shrunk", |spec| spec.roles.get_mut(&"kafka".into()).expect("role").pref = 2),
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

/// One step of a random history: what may happen, then perhaps a plan.
fn step(s: &mut Situation, what: u8, pick: u8) {
    let node: NodeId = format!("i-{}", pick % 8 + 1).as_str().into();
    let ids: Vec<SlotId> = s.state.slots.keys().cloned().collect();
    let id = ids[usize::from(pick) % ids.len()].clone();
    let kept = s.state.slots[&id].clone();
    let holder = kept.holder.clone().unwrap_or_else(|| node.clone());
    let session = s.state.nodes.get(&node).map(|node| node.session).unwrap_or_default();
    let command = match what % 10 {
        0 | 1 => node_in(&node.0, ["a", "b", "c"][usize::from(pick % 3)]),
        2 => Command::NodeLost { node, session, silent_ms: 1 },
        3 => Command::NodeFenced { node },
        4 => Command::SetDraining { node, draining: pick % 3 > 0 },
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
            assert_eq!(now.proof, Some(Proof::InstanceTerminated { node: holder.clone() }));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_history_keeps_the_rules(history in prop::collection::vec((any::<u8>(), any::<u8>()), 1..60)) {
        let run = || {
            let mut s = Situation::of(spec(), "abcab");
            for (what, pick) in &history {
                step(&mut s, *what, *pick);
                let before = s.state.clone();
                let waiting = planner::zone_is_empty(&s.state);
                s.obs.zone_empty_since_ms = waiting.into_iter().map(|id| (id, 0)).collect();
                s.carry_out(); // a plan is never refused on its own revision
                no_second_holder(&before, &s.state);
                assert_eq!(s.plan(), [], "planning a planned state yields nothing");
                let text = serde_json::to_string(&s.state).expect("written");
                assert_eq!(serde_json::from_str::<ClusterState>(&text).expect("read"), s.state);
                let _ = liveness::judge(&s.state, &s.obs);
            }
            s.state
        };
        prop_assert_eq!(run(), run());
    }
}
