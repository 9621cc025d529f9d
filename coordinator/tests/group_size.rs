//! More and fewer coordinators: three become five and five three again, whoever of them goes or dies on the way. On a network in memory (`nodes`).
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod nodes;

use std::collections::BTreeSet;

use nodes::*;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};
use vp_cluster::{Command, coordinators::CoordinatorChange};

#[test]
fn three_become_five_and_five_three_again_and_nothing_that_was_acknowledged_is_lost() {
    for with_leader in [false, true] {
        let (mut cluster, mut acknowledged) = (Cluster::of(3), BTreeSet::new());
        let mut write = |cluster: &mut Cluster, subject: &str| {
            assert!(cluster.write(subject), "{subject}");
            acknowledged.insert(subject.to_owned());
        };
        // Far enough that the new ones learn by snapshot.
        notes(&mut cluster, 80);
        write(&mut cluster, "before five are wanted");
        cluster.want(&[1, 2, 3, 4, 5]);
        write(&mut cluster, "before the first joins");
        assert_eq!(cluster.join(4), 4);
        cluster.run_until("the first learns", |cluster| learns(cluster, 4));
        write(&mut cluster, "before the second joins");
        assert_eq!(cluster.join(5), 5);
        cluster.becomes(&[1, 2, 3, 4, 5], "five vote", &mut acknowledged);
        // They count: the group decides with them and one of the first three.
        let leader = cluster.leader().unwrap();
        for id in (1..=3).filter(|id| *id != leader).take(2) {
            cluster.nodes.remove(&id);
        }
        cluster.run_until("a leader of three in five", |cluster| cluster.write("by three of five"));
        for id in (1..=3).filter(|id| *id != leader).take(2) {
            cluster.start(id);
        }
        acknowledged.insert("by three of five".to_owned());
        cluster.becomes(&[1, 2, 3, 4, 5], "all five again", &mut acknowledged);

        let leader = cluster.leader().unwrap() as u32;
        let gone = two_to_go(leader, with_leader);
        let stay = without(gone);
        cluster.want(&stay);
        cluster.becomes(&members(&stay), "three vote", &mut acknowledged);
        cluster.run_until("the two know that they are out", |cluster| gone.iter().all(|id| cluster.is_out(u64::from(*id))));
        let leader = cluster.leader().unwrap();
        let state = cluster.state(leader);
        assert_eq!(state.coordinators.members.keys().map(|id| id.0).collect::<Vec<_>>(), members(&stay));
        // Two of the three decide.
        cluster.nodes.remove(&leader);
        cluster.run_until("a leader of two in three", |cluster| cluster.write("by two of three"));
    }
}

#[test]
fn a_leader_that_dies_at_any_message_on_the_way_from_three_to_five_leaves_it_to_the_next() {
    let mut died = 0;
    for fuse in (0..120).step_by(3) {
        let (mut cluster, mut acknowledged) = (Cluster::of(3), BTreeSet::new());
        assert!(cluster.write("before"));
        acknowledged.insert("before".to_owned());
        cluster.fuse = Some(fuse);
        cluster.want(&[1, 2, 3, 4, 5]);
        cluster.join(4);
        cluster.join(5);
        cluster.becomes(&[1, 2, 3, 4, 5], &format!("five vote (fuse {fuse})"), &mut acknowledged);
        died += usize::from(cluster.nodes.len() == 4);
    }
    assert!(died >= 15, "a leader died on the way in {died} runs only");
}

#[test]
fn a_leader_that_dies_at_any_message_on_the_way_from_five_to_three_leaves_it_to_the_next() {
    for with_leader in [false, true] {
        let mut died = 0;
        for fuse in (0..90).step_by(3) {
            let (mut cluster, mut acknowledged) = (Cluster::of(5), BTreeSet::new());
            assert!(cluster.write("before"));
            acknowledged.insert("before".to_owned());
            let leader = cluster.leader().unwrap();
            let gone = two_to_go(leader as u32, with_leader);
            let stay = without(gone);
            cluster.fuse = Some(fuse);
            cluster.want(&stay);
            let what = format!("three vote (fuse {fuse}, leader to go: {with_leader})");
            cluster.becomes(&members(&stay), &what, &mut acknowledged);
            died += usize::from(cluster.fuse.is_none());
            // Whoever is left decides.
            cluster.fuse = None;
            cluster.run_until("a write after it", |cluster| cluster.write("after"));
        }
        assert!(died >= 15, "a leader died on the way in {died} runs only");
    }
}

#[test]
fn a_leader_that_is_removed_while_it_leads_steps_down_and_loses_nothing_that_was_acknowledged() {
    let (mut cluster, mut acknowledged) = (Cluster::of(5), BTreeSet::new());
    let leader = cluster.leader().unwrap();
    let node = &mut cluster.nodes.get_mut(&leader).unwrap().0;
    let remove = ConfChangeSingle { change_type: ConfChangeType::RemoveNode.into(), node_id: leader };
    node.propose_change(ConfChangeV2 { changes: vec![remove], ..Default::default() }).unwrap();
    // Under way when the change is committed: their answers reach a leader that is no part of its group.
    for number in 0..3 {
        let note = Command::Note { kind: "write".to_owned(), subject: format!("beside the change {number}"), detail: String::new() };
        cluster.nodes.get_mut(&leader).unwrap().0.propose(encoded(note)).unwrap();
    }
    cluster.deliver();
    assert!(!cluster.nodes[&leader].0.leads(), "member {leader} leads a group that it is not of");
    acknowledged.extend(cluster.written(leader));
    cluster.nodes.remove(&leader);
    cluster.run_until("the others lead themselves", |cluster| cluster.write("after"));
    acknowledged.insert("after".to_owned());
    let next = cluster.leader().unwrap();
    assert!(acknowledged.is_subset(&cluster.written(next)), "{acknowledged:?}, kept {:?}", cluster.written(next));
    assert!(!cluster.nodes[&next].0.group().conf.voters.contains(&leader));
}

#[test]
fn a_leader_that_dies_when_only_those_who_go_know_that_five_are_three_leaves_two_that_go_on() {
    let (mut cluster, mut acknowledged) = (Cluster::of(5), BTreeSet::new());
    assert!(cluster.write("before"));
    acknowledged.insert("before".to_owned());
    let leader = cluster.leader().unwrap();
    let gone = two_to_go(leader as u32, false);
    let stay = members(&without(gone));
    let wanted = slots(5).into_iter().filter(|(number, _)| !gone.contains(number)).collect();
    cluster.propose(coordinators(CoordinatorChange::Want { slots: wanted }));
    let outgoing = |cluster: &Cluster| cluster.nodes[&leader].0.group().conf.voters_outgoing.len();
    // To the moment at which the leader alone has left the joint configuration: whatever it would tell those who stay from there on is lost.
    let mut joint = false;
    for _ in 0..2000 {
        cluster.tick();
        while !(joint && outgoing(&cluster) == 0) && cluster.deliver_one() {
            joint |= outgoing(&cluster) > 0;
        }
        if joint && outgoing(&cluster) == 0 {
            break;
        }
        cluster.change();
    }
    assert!(joint && outgoing(&cluster) == 0, "the group has not become three");
    cluster.wire.0.retain(|message| !stay.contains(&message.to));
    cluster.deliver();
    let knows = |cluster: &Cluster, id: u64| cluster.state(id).coordinators.members.len() == 3;
    assert!(gone.iter().all(|id| knows(&cluster, u64::from(*id))), "those who go know it");
    cluster.nodes.remove(&leader);
    assert!(cluster.nodes.keys().filter(|id| stay.contains(id)).all(|id| !knows(&cluster, *id)), "those who stay do not");
    cluster.becomes(&stay, "two of three go on", &mut acknowledged);
}
