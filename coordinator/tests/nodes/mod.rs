//! Real nodes, disks and membership entries on a network in memory, where a leader can die at any message.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    sync::Arc,
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
    machine::{ClusterMachine, Entry},
    membership::entry,
    raft::{Config, Group, Node, Outbox},
    storage::{DiskStore, Identity, StoreOptions},
};

pub fn slots(count: u32) -> BTreeMap<u32, CoordinatorSlot> {
    let slot = |number: u32| CoordinatorSlot { address: format!("127.37.8.{number}"), zone: Zone("a".to_owned()), group: format!("coordinator-{number}") };
    (1..=count).map(|number| (number, slot(number))).collect()
}

pub fn encoded(command: Command) -> Vec<u8> {
    serde_json::to_vec(&Entry { unix_ms: 5, request: None, command }).unwrap()
}

pub fn coordinators(change: CoordinatorChange) -> Vec<u8> {
    encoded(Command::Coordinators(change))
}

/// A member, and the state that it has reached.
pub type Running = (Node<DiskStore, ClusterMachine>, watch::Receiver<Arc<ClusterState>>);

/// Opens a member; founders begin with the state of `founders` of them, others with nothing.
pub fn open(root: &Path, id: u64, founders: u32, few: Config) -> Running {
    let first = if id <= u64::from(founders) { coordinators::founded(slots(founders), NEWEST) } else { ClusterState::default() };
    let voters = if id <= u64::from(founders) { (1..=u64::from(founders)).collect() } else { Vec::new() };
    let (machine, state, _) = ClusterMachine::founded(first);
    let identity = Identity { cluster: "test".to_owned(), member: id };
    let store = DiskStore::open(&root.join(id.to_string()), &identity, StoreOptions::default()).unwrap();
    (Node::new(Config { id, voters, ..few }, store, machine).unwrap(), state)
}

pub fn seen(leader: u64, group: &Group, alive: impl Fn(u64) -> bool) -> GroupSeen {
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
pub struct Wire(pub VecDeque<Message>);

impl Outbox for Wire {
    fn send(&mut self, message: Message) -> bool {
        self.0.push_back(message);
        true
    }
}

/// A group of nodes on a network in memory.
pub struct Cluster {
    pub dir: TempDir,
    pub nodes: BTreeMap<u64, Running>,
    pub wire: Wire,
    pub founders: u32,
    /// The leader dies after so many more messages.
    pub fuse: Option<usize>,
}

impl Cluster {
    pub fn of(founders: u32) -> Self {
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

    pub fn start(&mut self, id: u64) {
        let few = Config { snapshot_every: 30, keep_entries: 5, ..Config::default() };
        self.nodes.insert(id, open(self.dir.path(), id, self.founders, few));
    }

    pub fn leader(&self) -> Option<u64> {
        self.nodes.iter().find(|(_, (node, _))| node.may_read()).map(|(id, _)| *id)
    }

    pub fn state(&self, id: u64) -> Arc<ClusterState> {
        self.nodes[&id].1.borrow().clone()
    }

    pub fn deliver(&mut self) {
        while self.deliver_one() {}
    }

    /// Everybody does what is pending, and one message arrives; false: there was none.
    pub fn deliver_one(&mut self) -> bool {
        for (node, _) in self.nodes.values_mut() {
            node.drive(&mut self.wire).unwrap();
        }
        if self.fuse == Some(0) {
            self.fuse = None;
            if let Some(leader) = self.leader() {
                self.nodes.remove(&leader);
            }
        }
        let Some(message) = self.wire.0.pop_front() else { return false };
        self.fuse = self.fuse.map(|left| left.saturating_sub(1));
        if let Some((node, _)) = self.nodes.get_mut(&message.to) {
            let _ = node.raw().step(message);
        }
        true
    }

    /// It has read that it is out; it goes on all the same (`membership::follow`).
    pub fn is_out(&self, id: u64) -> bool {
        self.nodes.contains_key(&id) && !self.state(id).coordinators.members.contains_key(&MemberId(id))
    }

    /// One tick of everybody, and whatever the leader does next for its group.
    pub fn round(&mut self) {
        self.tick();
        self.deliver();
        self.change();
        self.deliver();
    }

    pub fn tick(&mut self) {
        for (node, _) in self.nodes.values_mut() {
            node.raw().tick();
        }
    }

    /// What the leader does next for its group.
    pub fn change(&mut self) {
        let Some(leader) = self.leader() else { return };
        let state = self.state(leader);
        let alive: BTreeSet<u64> = self.nodes.keys().copied().collect();
        let node = &mut self.nodes.get_mut(&leader).unwrap().0;
        match rules::next(&state.coordinators, &seen(leader, &node.group(), |id| alive.contains(&id))).0 {
            Some(Step::HandOver(to)) => node.raw().transfer_leader(to.0),
            Some(step) => drop(node.propose_change(entry(&step))),
            None => {}
        }
    }

    pub fn run_until(&mut self, what: &str, mut wanted: impl FnMut(&mut Self) -> bool) {
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
    pub fn propose(&mut self, command: Vec<u8>) {
        self.run_until("a leader", |cluster| cluster.leader().is_some());
        let leader = self.leader().unwrap();
        self.nodes.get_mut(&leader).unwrap().0.propose(command).unwrap();
        self.deliver();
    }

    /// The instance of a member is gone, and its successor asks for its place.
    pub fn replace(&mut self, victim: u64, instance: &str) -> u64 {
        self.nodes.remove(&victim);
        self.propose(coordinators(CoordinatorChange::Fenced { member: MemberId(victim) }));
        self.propose(coordinators(CoordinatorChange::Join { slot: victim as u32, instance: instance.into(), supports: NEWEST }));
        let leader = self.leader().unwrap();
        let member = self.state(leader).coordinators.of_instance(&instance.into()).unwrap().0;
        self.start(member.0);
        member.0
    }

    /// Asks again and again, of whoever leads, until it is done.
    pub fn insist(&mut self, what: &str, change: &CoordinatorChange, done: impl Fn(&Coordinators) -> bool) {
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
    pub fn want(&mut self, numbers: &[u32]) {
        let wanted: BTreeMap<u32, CoordinatorSlot> = slots(5).into_iter().filter(|(number, _)| numbers.contains(number)).collect();
        let change = CoordinatorChange::Want { slots: wanted.clone() };
        self.insist(&format!("{numbers:?} are wanted"), &change, |group| group.slots == wanted);
    }

    /// An instance of a coordinator asks for a place until it has one, and starts.
    pub fn join(&mut self, slot: u32) -> u64 {
        let instance = NodeId(format!("i-{slot}"));
        let change = CoordinatorChange::Join { slot, instance: instance.clone(), supports: NEWEST };
        self.insist(&format!("coordinator {slot} has an id"), &change, |group| group.of_instance(&instance).is_some());
        let leader = self.leader().unwrap();
        let member = self.state(leader).coordinators.of_instance(&instance).unwrap().0;
        self.start(member.0);
        member.0
    }

    /// A client's write; true: it was acknowledged.
    pub fn write(&mut self, subject: &str) -> bool {
        let Some(leader) = self.leader() else { return false };
        let note = encoded(Command::Note { kind: "write".to_owned(), subject: subject.to_owned(), detail: String::new() });
        if self.nodes.get_mut(&leader).unwrap().0.propose(note).is_err() {
            return false;
        }
        self.deliver();
        self.nodes.contains_key(&leader) && self.written(leader).contains(subject)
    }

    /// What clients wrote, as a member has it.
    pub fn written(&self, id: u64) -> BTreeSet<String> {
        self.state(id).events.iter().filter(|event| event.kind == "write").map(|event| event.subject.clone()).collect()
    }

    /// Clients write in every round until the group is this one. Whoever is alive in it then has all that was acknowledged.
    pub fn becomes(&mut self, voters: &[u64], what: &str, acknowledged: &mut BTreeSet<String>) {
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
    pub fn agrees(&mut self, voters: &[u64]) -> bool {
        let Some(leader) = self.leader() else { return false };
        let (wanted, applied) = (self.state(leader), self.nodes[&leader].0.applied());
        // One that was removed and has not heard of it is no part of it.
        let mut ours = self.nodes.iter().filter(|(id, _)| voters.contains(id));
        let same = ours.all(|(_, (node, state))| node.applied() == applied && **state.borrow() == *wanted);
        let mut conf = self.nodes[&leader].0.group().conf;
        conf.voters.sort_unstable();
        same && conf.voters_outgoing.is_empty() && conf.learners.is_empty() && conf.voters == voters
    }
}

pub fn notes(cluster: &mut Cluster, count: usize) {
    for number in 0..count {
        cluster.propose(encoded(Command::Note { kind: "note".to_owned(), subject: number.to_string(), detail: "x".repeat(300) }));
    }
}

/// Two of the five coordinators, the leader among them or not.
pub fn two_to_go(leader: u32, with_leader: bool) -> [u32; 2] {
    let mut others = (1..=5).filter(|number| *number != leader);
    let (first, second) = (others.next().unwrap(), others.next().unwrap());
    [first, if with_leader { leader } else { second }]
}

pub fn without(numbers: [u32; 2]) -> Vec<u32> {
    (1..=5).filter(|number| !numbers.contains(number)).collect()
}

pub fn members(slots: &[u32]) -> Vec<u64> {
    slots.iter().map(|number| u64::from(*number)).collect()
}

/// Has this member heard that it learns?
pub fn learns(cluster: &Cluster, id: u64) -> bool {
    cluster.state(id).coordinators.members.get(&MemberId(id)).is_some_and(|member| member.standing == Standing::Learner)
}
