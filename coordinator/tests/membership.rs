//! A dead coordinator's successor, and who has no vote. First on a network in memory (`nodes`), where a leader can die at any message; then over real gRPC,
//! where the successor answers at its predecessor's address.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod nodes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use nodes::*;
use tokio::sync::watch;
use vp_cluster::{
    ClusterState, Command, MemberId,
    coordinators::{CoordinatorChange, Standing, founded},
    membership as rules,
    version::NEWEST,
};
use vp_coordinator::{
    api::{
        admission::Admission,
        limits::{MEMBERS, bounded},
    },
    machine::Entry,
    membership::{entry, follow},
    peers::Network,
    raft::{Config, RaftHandle, Role, Task, start},
    trust::Trust,
};
use vp_trust::{Authority, SealingKey};

#[test]
fn the_successor_of_a_dead_coordinator_learns_by_snapshot_and_votes_and_the_dead_one_is_out() {
    for victim in 1..=3 {
        let mut cluster = Cluster::of(3);
        // Far enough that the log no longer reaches back to the beginning.
        notes(&mut cluster, 80);
        let new = cluster.replace(victim, "i-new");
        assert_eq!(new, 4);
        let voters: Vec<u64> = (1..=4).filter(|id| *id != victim).collect();
        cluster.run_until("the successor votes", |cluster| cluster.agrees(&voters));
        let leader = cluster.leader().unwrap();
        let state = cluster.state(leader);
        assert_eq!(state.coordinators.members.keys().map(|id| id.0).collect::<Vec<_>>(), voters);
        assert!(state.coordinators.members.values().all(|member| member.standing == Standing::Voter));
        // It counts: with it and one other the group decides.
        let other = *voters.iter().find(|id| **id != 4 && **id != leader).unwrap();
        cluster.nodes.remove(&other);
        cluster.run_until("a leader of the two", |cluster| cluster.leader().is_some());
        notes(&mut cluster, 3);
    }
}

#[test]
fn a_leader_that_dies_at_any_message_of_a_replacement_leaves_it_to_the_next() {
    for fuse in (0..120).step_by(3) {
        let mut cluster = Cluster::of(5);
        let leader = cluster.leader().unwrap();
        let victim = if leader == 2 { 3 } else { 2 };
        let new = cluster.replace(victim, "i-new");
        cluster.fuse = Some(fuse);
        let mut voters: Vec<u64> = (1..=6).filter(|id| *id != victim).collect();
        voters.sort_unstable();
        cluster.run_until(&format!("the successor votes (fuse {fuse})"), |cluster| cluster.agrees(&voters));
        assert_eq!(new, 6);
    }
}

#[test]
fn two_dead_of_five_are_replaced_and_a_restart_in_between_changes_nothing() {
    let mut cluster = Cluster::of(5);
    cluster.replace(4, "i-a");
    cluster.round();
    cluster.round();
    // The learner's process starts again; so does a voter.
    for id in [6, 1] {
        cluster.nodes.remove(&id);
        cluster.start(id);
    }
    cluster.run_until("the first is in", |cluster| cluster.agrees(&[1, 2, 3, 5, 6]));
    cluster.replace(5, "i-b");
    cluster.run_until("the second is in", |cluster| cluster.agrees(&[1, 2, 3, 6, 7]));
}
/// Does a member ever do more than follow, when it hears nobody any more and is asked to stand at every tick of ten election timeouts?
fn stands((node, _): Running) -> bool {
    let (handle, mut task) = Task::new(node, Wire::default());
    let mut stood = false;
    for _ in 0..10 * Config::default().election_ticks {
        // What a member's links say when the process of the one that it follows is gone.
        handle.report_gone(handle.status().leader);
        handle.stand();
        assert!(task.turn(true).unwrap());
        stood |= handle.status().role != Role::Follower;
    }
    stood
}

#[test]
fn whoever_has_no_vote_never_stands_for_election_however_long_it_hears_nobody() {
    let mut cluster = Cluster::of(5);
    let take = |cluster: &mut Cluster, id: u64| stands(cluster.nodes.remove(&id).unwrap());
    // An instance that was given an id and has heard nothing yet.
    cluster.start(9);
    assert!(!take(&mut cluster, 9), "one without a group");
    let leader = cluster.leader().unwrap() as u32;
    let gone = two_to_go(leader, false);
    let stay = without(gone);
    cluster.want(&stay);
    cluster.run_until("the two know that they are out", |cluster| gone.iter().all(|id| cluster.is_out(u64::from(*id))));
    for number in gone {
        let id = u64::from(number);
        assert!(!cluster.nodes[&id].0.group().conf.voters.contains(&id), "it knows that it is out");
        assert!(!take(&mut cluster, id), "one that was removed");
    }
    // Alone it stays a learner: the number of voters is odd.
    cluster.want(&[1, 2, 3, 4, 5]);
    let learner = cluster.join(gone[0]);
    cluster.run_until("it learns", |cluster| learns(cluster, learner));
    assert!(!take(&mut cluster, learner), "one that learns");
    // With a vote it would have stood.
    let leader = cluster.leader().unwrap();
    let follower = *members(&stay).iter().find(|id| **id != leader).unwrap();
    assert!(take(&mut cluster, follower), "a voter");
}

#[test]
fn a_request_asked_again_after_its_leader_died_at_any_message_is_applied_once() {
    for fuse in 0..14 {
        let mut cluster = Cluster::of(3);
        let request = |request: &str| {
            let command = Command::Note { kind: "asked".to_owned(), subject: String::new(), detail: String::new() };
            serde_json::to_vec(&Entry { unix_ms: 5, request: Some(request.to_owned()), command }).unwrap()
        };
        let leader = cluster.leader().unwrap();
        cluster.fuse = Some(fuse);
        cluster.nodes.get_mut(&leader).unwrap().0.propose(request("r")).unwrap();
        cluster.deliver();
        cluster.fuse = None;
        // Whether it died in time or not: the client heard nothing, and asks again.
        cluster.propose(request("r"));
        cluster.run_until("all are as far", |cluster| {
            let applied: BTreeSet<u64> = cluster.nodes.values().map(|(node, _)| node.applied()).collect();
            cluster.leader().is_some() && applied.len() == 1
        });
        for (id, (_, state)) in &cluster.nodes {
            let asked = state.borrow().events.iter().filter(|event| event.kind == "asked").count();
            assert_eq!(asked, 1, "fuse {fuse}, member {id}");
        }
    }
}

/// The one root of the test's cluster, opened anew for each member.
fn authority() -> Authority {
    static SEALED: LazyLock<(Vec<u8>, SealingKey)> = LazyLock::new(|| {
        let key = SealingKey::generate().unwrap();
        (Authority::create("test").unwrap().seal(&key).unwrap(), key)
    });
    Authority::open("test", &SEALED.0, &SEALED.1, None).unwrap()
}

struct Real {
    handle: RaftHandle,
    state: watch::Receiver<Arc<ClusterState>>,
    network: Network,
    ended: tokio::task::JoinHandle<Result<(), vp_coordinator::raft::NodeError>>,
    server: tokio::task::JoinHandle<()>,
    follows: tokio::task::JoinHandle<()>,
    at: SocketAddr,
}

fn real(root: &Path, id: u64, at: u8, others: &BTreeMap<u64, SocketAddr>) -> Real {
    let (node, state) = open(root, id, 3, Config { tick: Duration::from_millis(50), ..Config::default() });
    let own = SocketAddr::from(([127, 37, 8, at], vp_proto::COORDINATOR_PORT));
    let trust = Arc::new(Trust::new(authority(), u64::from(at), own.ip()).unwrap());
    let door = trust.members(own.port(), MEMBERS).unwrap();
    let network = Network::new("test".to_owned(), id, own, trust, others.clone());
    let (handle, ended) = start(node, network.outgoing());
    let service = network.service(handle.clone(), "i", Arc::new(|| (0, 0)));
    let server = tokio::spawn(async move {
        bounded().layer(Admission).add_service(service).serve_with_incoming(door.incoming().unwrap()).await.unwrap();
    });
    let follows = tokio::spawn(follow(network.clone(), MemberId(id), state.clone()));
    Real { handle, state, network, ended: tokio::spawn(ended), server, follows, at: own }
}

#[tokio::test]
async fn a_member_that_is_out_goes_on_for_those_who_have_not_heard_it() {
    let mut state = ClusterState { coordinators: founded(slots(3), NEWEST).coordinators, ..ClusterState::default() };
    state.coordinators.members.remove(&MemberId(3));
    let own = SocketAddr::from(([127, 37, 8, 73], vp_proto::COORDINATOR_PORT));
    let trust = Arc::new(Trust::new(authority(), 73, own.ip()).unwrap());
    let network = Network::new("test".to_owned(), 3, own, trust, BTreeMap::new());
    let (_kept, states) = watch::channel(Arc::new(state));
    let ended = tokio::time::timeout(Duration::from_millis(300), follow(network, MemberId(3), states)).await;
    assert!(ended.is_err(), "it ended, and whoever ends it ends the process");
}

async fn stop(real: Real) {
    real.follows.abort();
    real.server.abort();
    let _ = real.server.await;
    real.handle.stop();
    real.ended.await.unwrap().unwrap();
    // Its door closes a moment later, by itself; the next one opens there.
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpListener::bind(real.at).is_err() {
        assert!(Instant::now() < deadline, "{} stays taken", real.at);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn leader(members: &BTreeMap<u64, Real>) -> Option<u64> {
    members.iter().find(|(_, real)| real.handle.status().leads()).map(|(id, _)| *id)
}

/// Takes the leader's steps until `wanted`.
async fn care(members: &BTreeMap<u64, Real>, what: &str, wanted: impl Fn(&ClusterState) -> bool) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < deadline, "never: {what}");
        if let Some(leader) = leader(members) {
            let real = &members[&leader];
            let state = real.state.borrow().clone();
            if wanted(&state) {
                return leader;
            }
            let group = real.handle.group().await.unwrap();
            let step = rules::next(&state.coordinators, &seen(leader, &group, |id| members.contains_key(&id))).0;
            if let Some(step) = step {
                let _ = real.handle.change(entry(&step)).await;
                continue;
            }
        }
        // What to do next changes when a learner catches up or somebody leads.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn process_a_successor_at_the_same_address_is_told_from_its_predecessor() {
    let dir = tempfile::tempdir().unwrap();
    let addresses: BTreeMap<u64, SocketAddr> = (1..=3).map(|id| (id, SocketAddr::from(([127, 37, 8, id as u8], vp_proto::COORDINATOR_PORT)))).collect();
    let mut members: BTreeMap<u64, Real> = (1..=3).map(|id| (id, real(dir.path(), id, id as u8, &addresses))).collect();
    let first = care(&members, "a leader", |_| true).await;
    let victim = (1..=3).find(|id| *id != first).unwrap();
    stop(members.remove(&victim).unwrap()).await;
    for change in [
        CoordinatorChange::Seen { member: MemberId(victim), instance: "i-old".into(), supports: NEWEST },
        CoordinatorChange::Fenced { member: MemberId(victim) },
        CoordinatorChange::Join { slot: victim as u32, instance: "i-new".into(), supports: NEWEST },
    ] {
        members[&first].handle.propose(coordinators(change)).await.unwrap();
    }
    // It knows where the others are, and nothing else.
    let known: BTreeMap<u64, SocketAddr> = addresses.into_iter().filter(|(id, _)| *id != victim).collect();
    members.insert(4, real(dir.path(), 4, victim as u8, &known));
    let voted = |state: &ClusterState| {
        let group = &state.coordinators.members;
        group.get(&MemberId(4)).is_some_and(|member| member.standing == Standing::Voter) && !group.contains_key(&MemberId(victim))
    };
    // Nobody takes a step for the group yet: the leader still means the predecessor when it speaks to that address.
    let deadline = Instant::now() + Duration::from_secs(20);
    while members[&4].network.refused().receiver.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline, "never: an envelope to the predecessor is refused by its successor");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let leader = care(&members, "the successor votes", voted).await;
    let index =
        members[&leader].handle.propose(encoded(Command::Note { kind: "x".to_owned(), subject: String::new(), detail: String::new() })).await.unwrap().index;
    let mut status = members[&4].handle.watch();
    tokio::time::timeout(Duration::from_secs(20), status.wait_for(|status| status.applied >= index)).await.unwrap().unwrap();
    for (_, real) in members {
        stop(real).await;
    }
}
