//! The rules, checked after every step: what replicas apply, what moved and on what proof, who runs what.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use raft::eraftpb::ConfState;
use tokio::sync::watch;
use vp_agent::{catalogue::Fencing as Fenced, slot::Slot as AgentSlot};
use vp_cloud::ec2::InstanceState;
use vp_cluster::{
    ClusterState, Command, NodeId, SlotId, apply, invariant, planner,
    requests::Answer,
    state::{Fencing, Lifecycle, Node, Proof, Slot},
};
use vp_coordinator::{
    leader::CommandError,
    machine::{BadState, ClusterMachine, Entry},
    raft::Machine as Replicated,
    state_hash::Reached,
};

use crate::{
    clock::Time,
    network::Machine,
    process::{Process, slot_id},
    random::mix,
    world::World,
};

/// Indexes whose states are kept for comparison: far more than replicas are apart.
const KEPT: usize = 400;

/// What all replicas together have applied.
#[derive(Default)]
pub struct Book {
    hashes: BTreeMap<u64, u64>,
    states: BTreeMap<u64, Arc<ClusterState>>,
    newest: u64,
    /// How far each member's state is: back again where its disk was when it starts anew.
    reached: BTreeMap<u64, u64>,
    transitions: Vec<Transition>,
    broken: Vec<(&'static str, String)>,
    pub commands: u64,
}

/// The first application of a command anywhere.
struct Transition {
    command: Command,
    refused: bool,
    slots: BTreeMap<SlotId, Slot>,
    nodes: BTreeMap<NodeId, Node>,
    after: BTreeMap<SlotId, Slot>,
}

impl Book {
    pub fn latest(&self) -> Option<&Arc<ClusterState>> {
        self.states.last_key_value().map(|(_, state)| state)
    }

    /// Over every command applied.
    pub fn digest(&self) -> u64 {
        self.hashes.iter().fold(0, |hash, (index, command)| mix(hash ^ index ^ command))
    }
}

/// The shipped machine, with every application written into the book.
pub struct Watched {
    inner: ClusterMachine,
    reached: watch::Receiver<Reached>,
    member: u64,
    book: Arc<Mutex<Book>>,
}

impl Watched {
    pub fn new(inner: ClusterMachine, reached: watch::Receiver<Reached>, member: u64, book: Arc<Mutex<Book>>) -> Self {
        let watched = Self { inner, reached, member, book };
        watched.note_reached();
        watched
    }

    fn note_reached(&self) {
        let index = self.reached.borrow().0;
        if let Ok(mut book) = self.book.lock() {
            book.reached.insert(self.member, index);
        }
    }
}

impl Replicated for Watched {
    type Error = BadState;

    fn apply(&mut self, index: u64, entry: &[u8]) -> Vec<u8> {
        let Ok(mut book) = self.book.lock() else { return Vec::new() };
        let revision = self.inner.state().revision.0;
        let before = (index > book.newest).then(|| self.inner.state().without_history());
        let reply = self.inner.apply(index, entry);
        let state = self.inner.state();
        if state.revision.0 < revision {
            book.broken.push(("a revision went back", format!("member {} from {revision} to {}", self.member, state.revision)));
        }
        if let Err(rule) = invariant::check(state) {
            book.broken.push(("the invariant", format!("member {} at {index}: {rule}", self.member)));
        }
        let hash = entry.iter().fold(index, |hash, byte| hash.wrapping_mul(0x0100_0000_01B3) ^ u64::from(*byte));
        let first = *book.hashes.entry(index).or_insert(hash);
        if first != hash {
            book.broken.push(("two commands at one index", format!("member {} applies another command at {index} than was applied there", self.member)));
        }
        if let Some(before) = before {
            if let Err(rule) = invariant::transition(&before, state) {
                book.broken.push(("the invariant of a step", format!("member {} at {index}: {rule}", self.member)));
            }
            book.newest = index;
            book.commands += 1;
            if let Ok(entry) = serde_json::from_slice::<Entry>(entry) {
                let refused = serde_json::from_slice::<Answer>(&reply).is_ok_and(|answer| answer.rejection.is_some());
                let transition = Transition { command: entry.command, refused, slots: before.slots, nodes: before.nodes, after: state.slots.clone() };
                book.transitions.push(transition);
            }
        }
        reply
    }

    fn configured(&mut self, index: u64, conf: &ConfState) {
        self.inner.configured(index, conf);
    }

    fn snapshot(&self) -> Vec<u8> {
        self.inner.snapshot()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), BadState> {
        self.inner.restore(bytes)
    }

    fn batch_done(&mut self, index: u64) {
        self.inner.batch_done(index);
        self.note_reached();
        let state = self.reached.borrow().1.clone();
        let Ok(mut book) = self.book.lock() else { return };
        let known = book.states.entry(index).or_insert_with(|| state.clone()).clone();
        if *known != *state {
            book.broken.push(("replicas differ", format!("member {} has another state at {index}", self.member)));
        }
        while book.states.len() > KEPT {
            book.states.pop_first();
        }
    }
}

/// What the checks remember.
#[derive(Default)]
pub struct Checks {
    /// Since when everything wanted is healthy.
    pub well_since: Option<Time>,
    /// Highest index acknowledged to a client.
    acknowledged: u64,
    /// Highest generation of a slot that ever started.
    started: BTreeMap<SlotId, u64>,
    leaders: BTreeMap<u64, Machine>,
    /// Machines that fell silent together, so many that silence may not be believed.
    pub braked: BTreeSet<Machine>,
    /// Only a leader or an agent goes, and comes back soon: nothing may stop.
    pub gentle: bool,
}

impl World {
    /// What the replicas have just applied.
    pub fn check_transitions(&mut self) {
        let (transitions, broken) = match self.book.lock() {
            Ok(mut book) if !book.transitions.is_empty() || !book.broken.is_empty() => {
                (std::mem::take(&mut book.transitions), std::mem::take(&mut book.broken))
            }
            _ => return,
        };
        for (rule, how) in broken {
            self.violation(rule, how);
        }
        for transition in transitions {
            if self.trace.is_some() {
                let line = format!("{}{}", if transition.refused { "refused: " } else { "" }, told(&transition.command));
                self.say(|| line);
            }
            if !transition.refused {
                self.check_transition(&transition);
            }
        }
    }

    fn is_terminated(&self, node: &NodeId) -> bool {
        let host = machine(node).and_then(|machine| self.hosts.get(&machine));
        host.is_some_and(|host| host.state() == InstanceState::Terminated)
    }

    fn check_transition(&mut self, transition: &Transition) {
        match &transition.command {
            Command::NodeFenced { node } if !self.is_terminated(node) => self.violation("a false proof", format!("{node} counts as terminated and is not")),
            Command::NodeLost { node, .. } if machine(node).is_some_and(|machine| self.checks.braked.contains(&machine)) => {
                self.violation("the brake", format!("{node} is declared lost, though it fell silent with most of its kind"));
            }
            _ => {}
        }
        for (id, old) in &transition.slots {
            let Some(new) = transition.after.get(id) else { continue };
            if new.generation < old.generation {
                self.violation("a generation went back", format!("{id} from {} to {}", old.generation, new.generation));
            }
            if let Some(holder) = &old.holder
                && (new.holder.as_ref() != Some(holder) || new.generation != old.generation)
            {
                self.outcome.moves += 1;
                self.check_move(id, holder, old, new, transition.nodes.get(holder).map(|node| node.lifecycle));
            }
        }
        let mut releasing: BTreeMap<&str, u32> = BTreeMap::new();
        for (id, slot) in transition.after.iter().filter(|(_, slot)| slot.releasing) {
            let _ = slot;
            if id.role.0 == "zookeeper" || id.role.0 == "kafka" {
                *releasing.entry(&id.role.0).or_default() += 1;
            }
        }
        if let Some((role, _)) = releasing.iter().find(|(_, count)| **count > 1) {
            self.violation("two members of a quorum move at once", (*role).to_owned());
        }
    }

    fn check_move(&mut self, id: &SlotId, holder: &NodeId, old: &Slot, new: &Slot, was: Option<Lifecycle>) {
        let fencing = match id.role.0.as_str() {
            "zookeeper" | "kafka" => Fencing::Quorum,
            "worker" => Fencing::Disposable,
            _ => Fencing::Exclusive,
        };
        if fencing == Fencing::Disposable {
            return;
        }
        if self.checks.gentle && !self.is_rising() {
            self.violation("a leader change or an agent's restart moves a role", format!("{id} leaves {holder}, which was {was:?}"));
        }
        let machine = machine(holder);
        let runs = self.processes.values().find(|p| Some(p.host) == machine && slot_id(&p.slot) == *id && p.generation <= old.generation.0);
        let generation = runs.map(|process| process.generation);
        match &new.proof {
            Some(Proof::InstanceTerminated { node }) if node == holder && self.is_terminated(holder) => {}
            Some(Proof::LeaseExpired { node }) if node == holder && fencing == Fencing::Exclusive && id.role.0 != "vault" => {
                if let Some(generation) = generation {
                    self.violation("a slot was taken from a holder that could still act", format!("{id} generation {generation} still runs on {holder}"));
                }
            }
            Some(Proof::AgentWord { node }) if node == holder => {
                if let Some(generation) = generation {
                    self.violation("an agent's word was not true", format!("{id} generation {generation} still runs on {holder}"));
                }
            }
            proof => self.violation("a slot was taken without proof", format!("{id} from {holder}, which was {was:?}: {proof:?}")),
        }
    }

    /// A process is about to start.
    pub fn check_start(&mut self, process: &Process) {
        let id = slot_id(&process.slot);
        let newest = self.checks.started.entry(id.clone()).or_default();
        let newest_before = *newest;
        *newest = newest_before.max(process.generation);
        if process.fencing == Fenced::Disposable {
            return;
        }
        if process.generation < newest_before {
            self.violation("a lower generation acts", format!("{id} starts at {}, {newest_before} has started before", process.generation));
        }
        let other = self.processes.values().find(|other| other.slot == process.slot && other.host != process.host);
        if let Some(other) = other {
            let how = format!("{id}: generation {} on {} and {} on {}", other.generation, other.host, process.generation, process.host);
            self.violation("two holders", how);
        }
        if process.fencing == Fenced::Exclusive && process.join.is_none() && !process.is_guarded() {
            self.violation("an exclusive role without a guard", id.to_string());
        }
    }

    /// An agent asks a role to end: the cluster must want that.
    pub fn check_stop(&mut self, host: Machine, slot: &AgentSlot, generation: u64) {
        let id = slot_id(slot);
        let state = self.book.lock().ok().and_then(|book| book.latest().cloned());
        let Some(live) = state.as_ref().and_then(|state| state.slots.get(&id)) else { return };
        let holds = live.holder.as_ref().is_some_and(|holder| machine(holder) == Some(host));
        if holds && !live.releasing && live.generation.0 == generation {
            self.violation("a role was stopped without reason", format!("{id} generation {generation} on {host}"));
        }
    }

    pub fn note_guard_kill(&mut self, pid: u64) {
        self.outcome.guard_kills += 1;
        if self.checks.gentle && !self.is_rising() {
            let slot = self.processes.get(&pid).map(|process| process.slot.to_string()).unwrap_or_default();
            self.violation("a leader change or an agent's restart stops a role", format!("{slot} lost its lease"));
        }
    }

    pub fn note_termination(&mut self, id: &str) {
        let machine = machine(&NodeId(id.to_owned()));
        if machine.is_some_and(|machine| self.checks.braked.contains(&machine)) {
            self.violation("the brake", format!("{id} is terminated, though it fell silent with most of its kind"));
        }
    }

    pub fn check_voters(&mut self, count: usize, slot: &SlotId) {
        if count > 3 {
            self.violation("an ensemble grew past what is wanted", format!("{count} voters after {slot} was added"));
        }
    }

    pub fn leads(&mut self, id: Machine, term: u64, leads: bool) {
        self.history.leads(id, leads, self.now);
        if !leads {
            return;
        }
        match self.checks.leaders.get(&term) {
            Some(other) if *other != id => self.violation("two leaders in one term", format!("{other} and {id} in term {term}")),
            Some(_) => {}
            None => {
                self.checks.leaders.insert(term, id);
                self.outcome.elections += 1;
                self.say(|| format!("coordinator {id} leads in term {term}"));
            }
        }
    }

    pub fn client_asks(&mut self, target: Machine) {
        self.clients += 1;
        let (number, reads, floor) = (self.clients, self.chance.chance(300), self.checks.acknowledged);
        let Some(process) = self.coordinators.get_mut(&target).and_then(|coordinator| coordinator.up.as_mut()) else { return };
        let leader = process.leader.clone();
        if reads {
            process.reads.push((floor, crate::fiber::Fiber::new(async move { leader.raft.read_index().await.is_ok() })));
        } else {
            let note = Command::Note { kind: "client".to_owned(), subject: format!("write-{number}"), detail: String::new() };
            process.clients.push((number, crate::fiber::Fiber::new(async move { leader.propose(note).await })));
        }
        if !self.coordinators.get(&target).is_some_and(|coordinator| coordinator.paused) {
            self.turn(target, false);
        }
    }

    pub fn client_answered(&mut self, number: u64, outcome: Result<u64, CommandError>) {
        if let Ok(index) = outcome {
            self.outcome.acknowledged += 1;
            self.checks.acknowledged = self.checks.acknowledged.max(index);
            if self.book.lock().is_ok_and(|book| !book.hashes.contains_key(&index)) {
                self.violation("an acknowledgement without a command", format!("write {number} at {index}"));
            }
        }
    }

    /// Once a second.
    pub fn check_now(&mut self) {
        let well = self.unwell().is_empty();
        self.checks.well_since = if well { self.checks.well_since.or(Some(self.now)) } else { None };
        let Some(leader) = self.leading().and_then(|id| self.coordinators.get(&id)?.up.as_ref().map(|process| process.leader.clone())) else { return };
        let (state, obs) = (leader.state(), leader.observations());
        let (plan, _) = planner::plan(&state, &obs);
        if plan.actions.is_empty() {
            return;
        }
        let mut planned = ClusterState::clone(&state);
        let index = planned.revision.0 + 1;
        if apply(&mut planned, index, 0, &Command::Plan(plan)).is_ok() {
            let (again, _) = planner::plan(&planned, &obs);
            if !again.actions.is_empty() {
                let actions: Vec<String> = again.actions.iter().map(ToString::to_string).collect();
                self.violation("planning a planned state moves something", actions.join(", "));
            }
        }
    }

    /// What is wanted and not healthy, for a person; empty: all is well.
    pub fn unwell(&self) -> String {
        let Some(state) = self.book.lock().ok().and_then(|book| book.latest().cloned()) else { return "nothing was ever applied".to_owned() };
        let mut why = Vec::new();
        if self.leading().is_none() {
            why.push("nobody leads".to_owned());
        }
        if state.slots.is_empty() {
            why.push("nothing is wanted yet".to_owned());
        }
        for (id, slot) in &state.slots {
            let machine = slot.holder.as_ref().and_then(machine);
            let runs = self.processes.values().find(|p| Some(p.host) == machine && slot_id(&p.slot) == *id && p.generation == slot.generation.0);
            if !runs.is_some_and(|process| process.healthy.1 && process.asked.is_none()) {
                why.push(format!("{id} (holder {:?}, generation {}) is not healthy", slot.holder.as_ref().map(|node| &node.0), slot.generation));
            }
        }
        why.join("; ")
    }

    /// After the last event of a run in which nothing was broken.
    pub fn check_end(&mut self) {
        let Some(kept) = self.book.lock().ok().and_then(|book| book.reached.values().max().copied()) else { return };
        if kept < self.checks.acknowledged {
            self.violation("an acknowledged command is lost", format!("{} was acknowledged, and no member's state is past {kept}", self.checks.acknowledged));
        }
    }
}

/// The machine of a node's id.
fn machine(node: &NodeId) -> Option<Machine> {
    node.0.strip_prefix("i-")?.parse().ok()
}

/// A command in a line.
fn told(command: &Command) -> String {
    match command {
        Command::Plan(plan) => {
            let actions: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
            format!("plan on {}: {}", plan.based_on, actions.join(", "))
        }
        Command::SetSpec { .. } => "what is wanted is set".to_owned(),
        Command::Note { kind, subject, .. } => format!("note {kind} {subject}"),
        other => format!("{other:?}"),
    }
}
