//! An operator's word for an instance that EC2 has forgotten: what it needs, what it moves, and what is written down.
mod situation;
use situation::{Situation, node_in, slot};
use vp_cluster::{
    Action, Command, NodeId, Rejection, Session,
    state::{Lifecycle, Proof},
    version::OPERATORS_WORD,
};

/// A settled cluster under the newest rules whose `i-1` has been given up for its silence.
fn lost() -> Situation {
    let mut s = Situation::well();
    s.state.apply_version = OPERATORS_WORD;
    s.lose(&"i-1".into());
    s
}

fn word(s: &Situation, node: &str) -> Command {
    let session = s.state.nodes.get(&NodeId::from(node)).map_or(Session(0), |node| node.session);
    Command::Gone { node: node.into(), session, by: "ada".to_owned() }
}

fn proof() -> Proof {
    Proof::OperatorsWord { node: "i-1".into(), by: "ada".to_owned() }
}

#[test]
fn without_it_a_quorum_slot_on_a_forgotten_instance_waits_and_its_gate_names_the_way_out() {
    let s = lost();
    assert!(s.gates().contains("'vpctl gone i-1' if EC2 has forgotten it"), "{}", s.gates());
}

#[test]
fn with_it_everything_moves_and_every_slot_keeps_the_word_as_its_proof() {
    let mut s = lost();
    let held: Vec<_> = s.state.held_by(&"i-1".into()).map(|(id, _)| id.clone()).collect();
    assert!(held.iter().any(|id| s.state.role(id).is_some_and(|role| role.fencing == vp_cluster::state::Fencing::Quorum)), "{held:?}");
    s.ok(word(&s, "i-1"));
    s.carry_out();
    for id in held {
        let now = &s.state.slots[&id];
        assert!(now.holder.as_ref().is_some_and(|holder| holder.0 != "i-1"), "{id}: {:?}", now.holder);
        assert!(matches!(&now.proof, Some(Proof::OperatorsWord { node, by }) if node.0 == "i-1" && by == "ada"), "{id}: {:?}", now.proof);
    }
    assert!(!s.state.nodes.contains_key(&NodeId::from("i-1")), "empty-handed and fenced, it is forgotten here too");
}

#[test]
fn it_is_an_event_with_a_name() {
    let mut s = lost();
    s.ok(word(&s, "i-1"));
    let event = s.state.events.back().expect("event");
    assert_eq!((event.kind.as_str(), event.subject.as_str()), ("node fenced", "i-1"));
    assert_eq!(event.detail, "EC2 has forgotten it, and ada says it is gone");
}

#[test]
fn whoever_is_not_lost_is_not_gone_whatever_is_said() {
    let mut s = lost();
    for node in ["i-2", "i-3"] {
        let refused = s.apply(word(&s, node)).expect_err("refused");
        assert!(matches!(refused, Rejection::NodeState { .. }), "{refused}");
        assert_eq!(s.state.nodes[&NodeId::from(node)].lifecycle, Lifecycle::Ready);
    }
}

#[test]
fn it_is_refused_for_strangers_for_another_session_and_a_second_time() {
    let mut s = lost();
    assert!(matches!(s.apply(word(&s, "i-99")), Err(Rejection::NoSuchNode(_))));
    let other = Command::Gone { node: "i-1".into(), session: Session(9_999), by: "ada".to_owned() };
    assert!(matches!(s.apply(other), Err(Rejection::OtherSession { .. })));
    s.ok(word(&s, "i-1"));
    assert!(matches!(s.apply(word(&s, "i-1")), Err(Rejection::NodeState { .. })));
}

#[test]
fn it_is_refused_until_every_coordinator_knows_the_rules_it_needs() {
    let mut s = lost();
    s.state.apply_version = OPERATORS_WORD - 1;
    let refused = s.apply(word(&s, "i-1")).expect_err("refused");
    assert!(refused.to_string().contains("upgrade every coordinator first"), "{refused}");
    assert_eq!(s.state.nodes[&NodeId::from("i-1")].lifecycle, Lifecycle::Lost);
}

#[test]
fn neither_another_operators_name_nor_ec2s_is_the_proof_it_gives() {
    let mut s = lost();
    let held = s.state.held_by(&"i-1".into()).map(|(id, _)| id.clone()).next().expect("something");
    let vacate = |proof| Action::Vacate { slot: held.clone(), proof };
    assert!(s.act(vacate(proof())).is_err(), "before it was given");
    s.ok(word(&s, "i-1"));
    assert!(s.act(vacate(Proof::OperatorsWord { node: "i-1".into(), by: "bob".to_owned() })).is_err());
    assert!(s.act(vacate(Proof::OperatorsWord { node: "i-2".into(), by: "ada".to_owned() })).is_err());
    assert!(s.act(vacate(Proof::InstanceTerminated { node: "i-1".into() })).is_err());
    assert!(s.act(vacate(proof())).is_ok());
}

#[test]
fn it_ends_a_release_of_the_brake_for_its_node() {
    let mut s = lost();
    let session = s.session("i-1");
    s.ok(Command::ReleaseBrake { by: "ada".to_owned(), nodes: [("i-1".into(), session)].into() });
    s.ok(word(&s, "i-1"));
    assert_eq!(s.state.brake_release, None);
}

#[test]
fn a_member_of_zookeeper_moves_by_it_as_by_ec2s_word() {
    let mut by_word = Situation::well();
    by_word.state.apply_version = OPERATORS_WORD;
    let holder = by_word.holder("zookeeper-1").expect("held");
    // Its volume keeps it in its zone.
    by_word.ok(node_in("i-6", &by_word.zone_of("zookeeper-1").0));
    by_word.lose(&holder);
    let mut by_ec2 = by_word.clone();
    by_word.ok(word(&by_word, &holder.0));
    by_ec2.fence(&holder);
    let after = |s: &mut Situation| {
        s.carry_out();
        let now = &s.state.slots[&slot("zookeeper-1")];
        (now.holder.clone(), now.member_id, now.volume.clone())
    };
    let moved = after(&mut by_word);
    assert_eq!(moved.0, Some("i-6".into()));
    assert_eq!(moved, after(&mut by_ec2));
}
