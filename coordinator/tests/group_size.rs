//! More and fewer coordinators: three become five and five three again, whoever of them goes or dies on the way. On a network in memory (`nodes`).
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod nodes;

use std::collections::BTreeSet;

use nodes::*;

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
        cluster.run_until("the two have stopped", |cluster| cluster.nodes.len() == 3);
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
