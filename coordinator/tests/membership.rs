//! A dead coordinator's successor, and more or fewer coordinators: real nodes, disks and membership entries. First on a network in memory, where a leader
//! can die at any message; then over real gRPC, where the successor answers at its predecessor's address.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    path::Path,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use raft::eraftpb::Message;
use tempfile::TempDir;
use tokio::sync::watch;
use vp_cluster::{
    ClusterState, Command, MemberId, NodeId, Zone,
    coordinators::{self, CoordinatorChange, CoordinatorSlot, Coordinators, Standing},
    membership::{self as rules, GroupSeen, PeerSeen, Step},
    version::NEWEST,
};
use vp_coordinator::{
    api::{
        admission::Admission,
        limits::{MEMBERS, bounded},
    },
    machine::{ClusterMachine, Entry},
    membership::{entry, follow},
    peers::Network,
    raft::{Config, Group, Node, Outbox, RaftHandle, Role, Task, start},
    storage::{DiskStore, Identity, StoreOptions},
    trust::Trust,
};
use vp_trust::{Authority, SealingKey};

fn slots(count: u32) -> BTreeMap<u32, CoordinatorSlot> {
    let slot = |number: u32| CoordinatorSlot { address: format!("127.37.8.{number}"), zone: Zone("a".to_owned()), group: format!("coordinator-{number}") };
    (1..=count).map(|number| (number, slot(number))).collect()
}

fn encoded(command: Command) -> Vec<u8> {
    serde_json::to_vec(&Entry { unix_ms: 5, request: None, command }).unwrap()
}

fn coordinators(change: CoordinatorChange) -> Vec<u8> {
    encoded(Command::Coordinators(change))
}

/// A member, and the state that it has reached.
type Running = (Node<DiskStore, ClusterMachine>, watch::Receiver<Arc<ClusterState>>);

/// Opens a member; founders begin with the state of `founders` of them, others with nothing.
fn open(root: &Path, id: u64, founders: u32, few: Config) -> Running {
    let first = if id <= u64::from(founders) { coordinators::founded(slots(founders), NEWEST) } else { ClusterState::default() };
    let voters = if id <= u64::from(founders) { (1..=u64::from(founders)).collect() } else { Vec::new() };
    let (machine, state, _) = ClusterMachine::founded(first);
    let identity = Identity { cluster: "test".to_owned(), member: id };
    let store = DiskStore::open(&root.join(id.to_string()), &identity, StoreOptions::default()).unwrap();
    (Node::new(Config { id, voters, ..few }, store, machine).unwrap(), state)
}

fn seen(leader: u64, group: &Group, alive: impl Fn(u64) -> bool) -> GroupSeen {
    let ids = |list: &[u64]| list.iter().copied().map(MemberId).collect::<BTreeSet<MemberId>>();
    GroupSeen {
        leader: MemberId(leader),
        voters: ids(&group.conf.voters),
        learners: ids(&group.conf.learners),
        joint: !group.conf.voters_outgoing.is_empty(),
        peers: group.peers.iter().map(|(id, peer)| (MemberId(*id), PeerSeen { active: alive(*id), behind: peer.behind, silent_ms: 0 })).collect(),
    }
}

#[derive(Default)]
struct Wire(VecDeque<Message>);

impl Outbox for Wire {
    fn send(&mut self, message: Message) -> bool {
        self.0.push_back(message);
        true
    }
}

/// A group of nodes on a network in memory.
struct Cluster {
    dir: TempDir,
    nodes: BTreeMap<u64, Running>,
    wire: Wire,
    founders: u32,
    /// The leader dies after so many more messages.
    fuse: Option<usize>,
}

impl Cluster {
    fn of(founders: u32) -> Self {
        let mut cluster = Self { dir: tempfile::tempdir().unwrap(), nodes: BTreeMap::new(), wire: Wire::default(), founders, fuse: None };
        for id in 1..=u64::from(founders) {
            cluster.start(id);
        }
        cluster.run_until("a leader", |cluster| cluster.leader().is_some());
        for id in 1..=u64::from(founders) {
            cluster.propose(coordinators(CoordinatorChange::Seen { member: MemberId(id), instance: NodeId(format!("i-{id}")), supports: NEWEST }));
        }
        cluster
    }

    fn start(&mut self, id: u64) {
        let few = Config { snapshot_every: 30, keep_entries: 5, ..Config::default() };
        self.nodes.insert(id, open(self.dir.path(), id, self.founders, few));
    }

    fn leader(&self) -> Option<u64> {
        self.nodes.iter().find(|(_, (node, _))| node.may_read()).map(|(id, _)| *id)
    }

    fn state(&self, id: u64) -> Arc<ClusterState> {
        self.nodes[&id].1.borrow().clone()
    }

    fn deliver(&mut self) {
        loop {
            for (node, _) in self.nodes.values_mut() {
                node.drive(&mut self.wire).unwrap();
            }
            if self.fuse == Some(0) {
                self.fuse = None;
                if let Some(leader) = self.leader() {
                    self.nodes.remove(&leader);
                }
            }
            let Some(message) = self.wire.0.pop_front() else { break };
            self.fuse = self.fuse.map(|left| left.saturating_sub(1));
            if let Some((node, _)) = self.nodes.get_mut(&message.to) {
                let _ = node.raw().step(message);
            }
        }
        // Whoever reads that it is out stops, as `membership::follow` has it.
        self.nodes.retain(|id, (_, state)| {
            let state = state.borrow();
            let group = &state.coordinators;
            group.last_member < MemberId(*id) || group.members.contains_key(&MemberId(*id))
        });
    }

    /// One tick of everybody, and whatever the leader does next for its group.
    fn round(&mut self) {
        for (node, _) in self.nodes.values_mut() {
            node.raw().tick();
        }
        self.deliver();
        let Some(leader) = self.leader() else { return };
        let state = self.state(leader);
        let alive: BTreeSet<u64> = self.nodes.keys().copied().collect();
        let node = &mut self.nodes.get_mut(&leader).unwrap().0;
        match rules::next(&state.coordinators, &seen(leader, &node.group(), |id| alive.contains(&id))).0 {
            Some(Step::HandOver(to)) => node.raw().transfer_leader(to.0),
            Some(step) => drop(node.propose_change(entry(&step))),
            None => {}
        }
        self.deliver();
    }

    fn run_until(&mut self, what: &str, mut wanted: impl FnMut(&mut Self) -> bool) {
        for _ in 0..2000 {
            if wanted(self) {
                return;
            }
            self.round();
        }
        let states: Vec<_> = self.nodes.iter().map(|(id, (node, state))| (id, node.group(), state.borrow().coordinators.clone())).collect();
        panic!("never: {what}: {states:?}");
    }

    /// Proposes until a leader has applied it.
    fn propose(&mut self, command: Vec<u8>) {
        self.run_until("a leader", |cluster| cluster.leader().is_some());
        let leader = self.leader().unwrap();
        self.nodes.get_mut(&leader).unwrap().0.propose(command).unwrap();
        self.deliver();
    }

    /// The instance of a member is gone, and its successor asks for its place.
    fn replace(&mut self, victim: u64, instance: &str) -> u64 {
        self.nodes.remove(&victim);
        self.propose(coordinators(CoordinatorChange::Fenced { member: MemberId(victim) }));
        self.propose(coordinators(CoordinatorChange::Join { slot: victim as u32, instance: instance.into(), supports: NEWEST }));
        let leader = self.leader().unwrap();
        let member = self.state(leader).coordinators.of_instance(&instance.into()).unwrap().0;
        self.start(member.0);
        member.0
    }

    /// Asks again and again, of whoever leads, until it is done.
    fn insist(&mut self, what: &str, change: &CoordinatorChange, done: impl Fn(&Coordinators) -> bool) {
        self.run_until(what, |cluster| {
            let Some(leader) = cluster.leader() else { return false };
            let is_done = done(&cluster.state(leader).coordinators);
            if !is_done {
                cluster.propose(coordinators(change.clone()));
            }
            is_done
        });
    }

    /// These coordinators are wanted, of the first five.
    fn want(&mut self, numbers: &[u32]) {
        let wanted: BTreeMap<u32, CoordinatorSlot> = slots(5).into_iter().filter(|(number, _)| numbers.contains(number)).collect();
        let change = CoordinatorChange::Want { slots: wanted.clone() };
        self.insist(&format!("{numbers:?} are wanted"), &change, |group| group.slots == wanted);
    }

    /// An instance of a coordinator asks for a place until it has one, and starts.
    fn join(&mut self, slot: u32) -> u64 {
        let instance = NodeId(format!("i-{slot}"));
        let change = CoordinatorChange::Join { slot, instance: instance.clone(), supports: NEWEST };
        self.insist(&format!("coordinator {slot} has an id"), &change, |group| group.of_instance(&instance).is_some());
        let leader = self.leader().unwrap();
        let member = self.state(leader).coordinators.of_instance(&instance).unwrap().0;
        self.start(member.0);
        member.0
    }

    /// A client's write; true: it was acknowledged.
    fn write(&mut self, subject: &str) -> bool {
        let Some(leader) = self.leader() else { return false };
        let note = encoded(Command::Note { kind: "write".to_owned(), subject: subject.to_owned(), detail: String::new() });
        if self.nodes.get_mut(&leader).unwrap().0.propose(note).is_err() {
            return false;
        }
        self.deliver();
        self.nodes.contains_key(&leader) && self.written(leader).contains(subject)
    }

    /// What clients wrote, as a member has it.
    fn written(&self, id: u64) -> BTreeSet<String> {
        self.state(id).events.iter().filter(|event| event.kind == "write").map(|event| event.subject.clone()).collect()
    }

    /// Clients write in every round until the group is this one. Whoever is alive in it then has all that was acknowledged.
    fn becomes(&mut self, voters: &[u64], what: &str, acknowledged: &mut BTreeSet<String>) {
        let mut writes = 0;
        self.run_until(what, |cluster| {
            writes += 1;
            let subject = format!("{what}, write {writes}");
            if cluster.write(&subject) {
                acknowledged.insert(subject);
            }
            cluster.agrees(voters)
        });
        for id in self.nodes.keys().filter(|id| voters.contains(id)) {
            let written = self.written(*id);
            let lost: Vec<&String> = acknowledged.difference(&written).collect();
            assert!(lost.is_empty(), "{what}: member {id} lacks {lost:?}");
        }
    }

    /// Everybody alive in this group knows it and has one state.
    fn agrees(&mut self, voters: &[u64]) -> bool {
        let Some(leader) = self.leader() else { return false };
        let (wanted, applied) = (self.state(leader), self.nodes[&leader].0.applied());
        // One that was removed and has not heard of it is no part of it.
        let mut ours = self.nodes.iter().filter(|(id, _)| voters.contains(id));
        let same = ours.all(|(_, (node, state))| node.applied() == applied && **state.borrow() == *wanted);
        let conf = self.nodes[&leader].0.group().conf;
        same && conf.voters_outgoing.is_empty() && conf.learners.is_empty() && self.nodes[&leader].0.voters() == voters
    }
}

fn notes(cluster: &mut Cluster, count: usize) {
    for number in 0..count {
        cluster.propose(encoded(Command::Note { kind: "note".to_owned(), subject: number.to_string(), detail: "x".repeat(300) }));
    }
}

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

/// Two of the five coordinators, the leader among them or not.
fn two_to_go(leader: u32, with_leader: bool) -> [u32; 2] {
    let mut others = (1..=5).filter(|number| *number != leader);
    let (first, second) = (others.next().unwrap(), others.next().unwrap());
    [first, if with_leader { leader } else { second }]
}

fn without(numbers: [u32; 2]) -> Vec<u32> {
    (1..=5).filter(|number| !numbers.contains(number)).collect()
}

fn members(slots: &[u32]) -> Vec<u64> {
    slots.iter().map(|number| u64::from(*number)).collect()
}

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

/// Has this member heard that it learns?
fn learns(cluster: &Cluster, id: u64) -> bool {
    cluster.state(id).coordinators.members.get(&MemberId(id)).is_some_and(|member| member.standing == Standing::Learner)
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
    cluster.run_until("the two have stopped", |cluster| cluster.nodes.len() == 3);
    for number in gone {
        let id = u64::from(number);
        cluster.start(id);
        assert!(!cluster.nodes[&id].0.voters().contains(&id), "it knows that it is out");
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
    Real { handle, state, network, ended: tokio::spawn(ended), server, follows }
}

async fn stop(real: Real) {
    real.follows.abort();
    real.server.abort();
    let _ = real.server.await;
    real.handle.stop();
    real.ended.await.unwrap().unwrap();
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
