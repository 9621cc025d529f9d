//! Start gates: what a slot's holder waits for, and what it does not.
mod situation;
use situation::{Situation, slot, spec};
use vp_cluster::{Command, gates, health::Serving, observe::Phase, observe::VolumeSeen, round};

fn gate(s: &Situation, id: &str) -> String {
    gates::start(&Serving::new(&s.state, &s.obs), &slot(id)).map(|gate| gate.closed_by).unwrap_or_default()
}

#[test]
fn nothing_of_a_settled_cluster_waits() {
    let s = Situation::well();
    for id in s.state.slots.keys() {
        assert_eq!(gate(&s, &id.to_string()), "", "{id}");
    }
}

#[test]
fn a_slot_without_a_holder_has_no_start_gate() {
    let s = Situation::of(spec(), "abc");
    assert_eq!(gate(&s, "kafka-1"), "");
}

#[test]
fn a_volume_in_the_making_is_waited_for() {
    let mut s = Situation::of(spec(), "abcab");
    s.carry_out();
    assert!(gate(&s, "zookeeper-1").contains("being created"));
}

#[test]
fn a_volume_attached_to_another_node_keeps_the_slot_waiting() {
    let mut s = Situation::well();
    let volume = s.state.slots[&slot("zookeeper-1")].volume.clone().expect("volume").id;
    for seen in [VolumeSeen::Available, VolumeSeen::Gone, VolumeSeen::AttachedTo("i-99".into())] {
        s.obs.volumes.insert(volume.clone(), seen.clone());
        assert!(gate(&s, "zookeeper-1").contains("not attached"), "{seen:?}");
    }
}

#[test]
fn a_closed_start_gate_is_told_of_who_waits_and_not_of_who_runs() {
    let mut s = Situation::well();
    s.obs.volumes.clear();
    let told = |s: &Situation| round::look(&s.state, &s.obs).gates.into_iter().map(|gate| gate.subject).collect::<Vec<_>>();
    assert_eq!(told(&s), Vec::<String>::new(), "all run");
    s.phase("zookeeper-1", Phase::Waiting);
    assert_eq!(told(&s), ["zookeeper-1"]);
}

#[test]
fn what_owns_no_volume_waits_for_none() {
    let mut s = Situation::well();
    s.obs.volumes.clear();
    for id in ["vault-1", "worker-1", "stream-1"] {
        assert_eq!(gate(&s, id), "", "{id}");
    }
}

#[test]
fn a_role_comes_after_what_it_needs_serves_and_not_after_all_of_it() {
    let mut s = Situation::well();
    s.phase("zookeeper-1", Phase::Unhealthy);
    assert_eq!(gate(&s, "kafka-1"), "", "a majority serves");
    s.phase("zookeeper-2", Phase::Starting);
    assert!(gate(&s, "kafka-1").contains("zookeeper does not serve"));
}

#[test]
fn a_broker_waits_for_the_session_of_its_predecessor_and_not_for_its_own() {
    let mut s = Situation::well();
    let holder = s.holder("kafka-1").expect("held");
    let own = s.state.nodes[&holder].address.clone();
    let kafka = |s: &mut Situation, at: &str| drop(s.obs.kafka.as_mut().expect("seen").registered.insert(1, at.to_owned()));
    kafka(&mut s, "at-i-99");
    assert!(gate(&s, "kafka-1").contains("at-i-99 is still live"));
    kafka(&mut s, &own);
    assert_eq!(gate(&s, "kafka-1"), "");
}

#[test]
fn another_brokers_session_is_no_reason_to_wait() {
    let mut s = Situation::well();
    s.obs.kafka.as_mut().expect("seen").registered.insert(2, "at-i-99".into());
    assert_eq!(gate(&s, "kafka-1"), "");
}

#[test]
fn founders_wait_until_the_founding_is_in_the_log() {
    let mut s = Situation::well();
    s.state.ensembles.clear();
    assert!(gate(&s, "zookeeper-1").contains("not founded"));
}

#[test]
fn a_moved_voter_waits_until_the_list_has_its_new_address() {
    let mut s = Situation::well();
    let member = s.state.slots[&slot("zookeeper-1")].member_id;
    s.obs.zookeeper.as_mut().expect("seen").voters.insert(member, "at-i-99".into());
    assert!(gate(&s, "zookeeper-1").contains("lists member 1 at at-i-99"));
}

#[test]
fn without_a_quorum_voters_come_back_under_the_list_as_the_log_knows_it() {
    let mut s = Situation::well();
    for id in ["zookeeper-1", "zookeeper-2", "zookeeper-3"] {
        s.phase(id, Phase::Unknown);
    }
    s.obs.zookeeper = None;
    for id in ["zookeeper-1", "zookeeper-2", "zookeeper-3"] {
        assert_eq!(gate(&s, id), "", "{id}");
    }
}

#[test]
fn a_lost_disk_closes_the_gate_until_the_slot_is_granted_anew() {
    let mut s = Situation::well();
    s.lose_disk("kafka-2");
    assert!(gate(&s, "kafka-2").contains("disk is lost"));
    let (holder, generation) = (s.holder("kafka-2").expect("held"), s.generation("kafka-2"));
    s.ok(Command::SlotReleased { slot: slot("kafka-2"), generation, node: holder });
    s.carry_out();
    assert!(gate(&s, "kafka-2").contains("being created"));
}
