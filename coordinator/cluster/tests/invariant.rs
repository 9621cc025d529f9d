//! Every rule of `invariant` is seen broken: a state, or a step, that it must refuse. A check that cannot fail is none.
#[macro_use]
mod situation;
use situation::{Situation, slot, zone};
use vp_cluster::{
    ClusterState, Generation, MemberId, Revision,
    coordinators::{CoordinatorSlot, Coordinators, Member},
    invariant::{check, transition},
    requests::{Answer, REMEMBERED, Requests},
    state::{Lifecycle, Proof, Volume},
    version::NEWEST,
};

type Change = fn(&mut ClusterState);

/// A settled cluster with three coordinators; a fourth was a member and is gone.
fn settled() -> ClusterState {
    let place = |number: u32| CoordinatorSlot { address: format!("10.0.{number}.10"), zone: zone("a"), group: format!("coordinator-{number}") };
    let mut state = Situation::well().state;
    state.coordinators = Coordinators::founded((1..=3).map(|number| (number, place(number))).collect(), NEWEST);
    state.coordinators.last_member = MemberId(4);
    state
}

/// A settled cluster, changed: the sentence that must come.
fn state((change, said): (Change, &str)) {
    let mut state = settled();
    assert_eq!(check(&state), Ok(()));
    change(&mut state);
    let broken = check(&state).expect_err("broken");
    assert!(broken.contains(said), "{broken}");
}

fn at<'a>(state: &'a mut ClusterState, id: &str) -> &'a mut vp_cluster::state::Slot {
    state.slots.get_mut(&slot(id)).expect("slot")
}

fn coordinator(state: &mut ClusterState, id: u64) -> &mut Member {
    state.coordinators.members.get_mut(&MemberId(id)).expect("member")
}

/// A table of so many answers, read as from a snapshot: `apply_once` makes none that is too long.
fn answers(count: usize) -> Requests {
    let answered = vec![("r", Answer { revision: Revision(1), rejection: None }); count];
    serde_json::from_value(serde_json::json!({ "answered": answered })).expect("a table")
}

table! { state:
    a_slot_without_a_role => (|s| drop(s.spec.roles.remove(&"vault".into())), "vault-1 has no role"),
    a_generation_from_the_future => (|s| at(s, "vault-1").generation = Generation(9_999), "beyond revision"),
    a_holder_that_is_not_there => (|s| at(s, "vault-1").holder = Some("i-99".into()), "which is not there"),
    a_holder_without_a_generation => (|s| at(s, "vault-1").generation = Generation(0), "without a generation"),
    a_holder_without_a_member_id => (|s| at(s, "vault-1").member_id = 0, "or a member id"),
    two_of_a_role_on_one_node => (|s| at(s, "worker-1").holder = at(s, "worker-2").holder.clone(), "holds two worker slots"),
    releasing_without_a_holder => (|s| (at(s, "vault-1").holder, at(s, "vault-1").releasing) = (None, true), "releasing without a holder"),
    a_member_id_used_twice => (|s| at(s, "kafka-1").member_id = 2, "member id 2 of kafka is used twice"),
    a_retired_id_in_use => (|s| at(s, "kafka-1").retired_member = Some(2), "member id 2 of kafka is used twice"),
    a_volume_of_a_role_that_owns_none =>
        (|s| at(s, "worker-1").volume = Some(Volume { id: "v".into(), zone: zone("a") }), "a volume its role does not own"),
    a_volume_with_two_owners => (|s| at(s, "kafka-1").volume = at(s, "kafka-2").volume.clone(), "belongs to two slots"),
    fewer_wanted_than_the_minimum => (|s| s.spec.roles.get_mut(&"kafka".into()).expect("role").min = 9, "does not hold"),
    an_even_number_of_voters_wanted => (|s| s.spec.roles.get_mut(&"zookeeper".into()).expect("role").pref = 4, "voters are an even number"),
    a_wanted_slot_that_is_missing => (|s| drop(s.slots.remove(&slot("worker-1"))), "2 slots are wanted, 1 are there"),
    an_even_number_of_founders =>
        (|s| assert!(s.ensembles.get_mut(&"zookeeper".into()).expect("founded").founders.insert(9)), "founded by an even number"),
    an_event_ring_without_a_bound =>
        (|s| while s.events.len() <= 512 { s.events.extend(s.events.clone()) }, "grown past its bound"),
    a_table_of_answers_without_a_bound => (|s| s.requests = answers(REMEMBERED + 1), "the table of answered requests has grown past its bound"),
    a_coordinators_id_beyond_the_last_one_given => (|s| s.coordinators.last_member = MemberId(2), "member 3 is beyond the last id given, 2"),
    two_voters_of_one_coordinators_place => (|s| coordinator(s, 2).slot = 1, "coordinator 1 has two voters"),
    one_instance_as_two_coordinators =>
        (|s| for id in [1, 2] { coordinator(s, id).instance = Some("i-c".into()) }, "i-c is two coordinator members"),
}

/// One step from a settled cluster: the sentence that must come.
fn step((change, said): (Change, &str)) {
    let before = settled();
    let mut after = before.clone();
    after.revision = Revision(before.revision.0 + 1);
    assert_eq!(transition(&before, &after), Ok(()));
    change(&mut after);
    let broken = transition(&before, &after).expect_err("broken");
    assert!(broken.contains(said), "{broken}");
}

/// Takes a slot's holder away under this proof; None: without.
fn take(s: &mut ClusterState, id: &str, proof: fn(vp_cluster::NodeId) -> Option<Proof>) {
    let taken = at(s, id);
    let from = taken.holder.take().expect("held");
    taken.proof = proof(from);
}

table! { step:
    a_revision_that_goes_back => (|s| s.revision = Revision(1), "the revision went back"),
    a_generation_that_goes_back => (|s| at(s, "vault-1").generation = Generation(1), "generation went back"),
    a_second_holder_within_a_generation => (|s| at(s, "vault-1").holder = Some("i-4".into()), "changed hands within generation"),
    a_slot_taken_without_proof => (|s| take(s, "vault-1", |_| None), "without proof"),
    a_slot_taken_because_another_instance_is_gone =>
        (|s| take(s, "vault-1", |_| Some(Proof::InstanceTerminated { node: "i-99".into() })), "without proof"),
    terminated_though_nobody_said_so => (|s| take(s, "kafka-1", |node| Some(Proof::InstanceTerminated { node })), "without proof"),
    an_operators_word_that_was_not_given => (|s| take(s, "kafka-1", |node| Some(Proof::OperatorsWord { node, by: "ada".to_owned() })), "without proof"),
    a_lease_expired_though_its_node_is_well => (|s| take(s, "worker-1", |node| Some(Proof::LeaseExpired { node })), "without proof"),
    a_new_generation_over_a_word_in_one_step => (
        |s| {
            take(s, "worker-1", |node| Some(Proof::AgentWord { node }));
            let generation = Generation(s.revision.0);
            (at(s, "worker-1").holder, at(s, "worker-1").generation) = (Some("i-5".into()), generation);
        },
        "without proof"
    ),
    two_members_of_a_quorum_asked_to_move => (|s| (at(s, "kafka-1").releasing, at(s, "kafka-2").releasing) = (true, true), "two members of kafka"),
    a_wanted_slot_removed => (|s| drop(s.slots.remove(&slot("kafka-1"))), "removed though it was held or wanted"),
    a_slot_made_with_a_holder => (|s| drop(s.slots.insert(slot("kafka-4"), s.slots[&slot("kafka-1")].clone())), "made with a holder"),
    an_ensemble_founded_twice =>
        (|s| assert!(s.ensembles.get_mut(&"zookeeper".into()).expect("founded").founders.insert(9)), "founded twice"),
    an_ensemble_that_forgot_its_ids => (|s| s.ensembles.get_mut(&"zookeeper".into()).expect("founded").last_member = 0, "forgot which ids"),
    coordinators_that_forgot_their_last_id => (|s| s.coordinators.last_member = MemberId(3), "the last coordinator id given went back from 4 to 3"),
    a_coordinators_id_that_comes_back => (
        |s| drop(s.coordinators.members.insert(MemberId(4), s.coordinators.members[&MemberId(3)].clone())),
        "member 4 is new under an id that was given before"
    ),
}

#[test]
fn an_expired_lease_is_no_proof_for_a_quorum_member_in_the_transition_either() {
    let mut before = Situation::well();
    let holder = before.holder("kafka-1").expect("held");
    before.lose(&holder);
    let mut after = before.state.clone();
    take(&mut after, "kafka-1", |node| Some(Proof::LeaseExpired { node }));
    assert!(transition(&before.state, &after).is_err());
    let mut after = before.state.clone();
    after.nodes.get_mut(&holder).expect("node").lifecycle = Lifecycle::Fenced;
    take(&mut after, "kafka-1", |node| Some(Proof::InstanceTerminated { node }));
    assert!(transition(&before.state, &after).is_err(), "proof is in the log before it is used");
}

#[test]
fn a_second_member_is_not_asked_to_move_while_the_first_is_still_leaving() {
    let mut before = Situation::well().state;
    at(&mut before, "kafka-1").releasing = true;
    let mut after = before.clone();
    after.revision = Revision(before.revision.0 + 1);
    assert_eq!(transition(&before, &after), Ok(()));
    at(&mut after, "kafka-2").releasing = true;
    let broken = transition(&before, &after).expect_err("broken");
    assert!(broken.contains("kafka-2 is asked to move while kafka-1 is still leaving"), "{broken}");
    at(&mut before, "kafka-1").volume = None;
    at(&mut after, "kafka-1").volume = None;
    assert_eq!(transition(&before, &after), Ok(()), "one whose disk is lost cannot stay anyway");
}

#[test]
fn two_members_whose_disks_are_lost_may_be_stopped_at_once() {
    let mut s = Situation::well();
    s.lose_disk("kafka-1");
    s.lose_disk("kafka-2");
    s.carry_out();
    assert!(s.is_releasing("kafka-1") && s.is_releasing("kafka-2"));
}
