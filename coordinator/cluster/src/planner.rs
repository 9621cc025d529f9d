//! What to move where: a pure function of state and observations. Planning a state that is already as wanted yields nothing.
//!
//! Left out on purpose: starting (`gates`), ZooKeeper's member list (`ensemble`), anything that needs memory between two calls.

use std::collections::BTreeMap;

use crate::{
    apply::{apply, free_member_id},
    command::{Action, Command, Plan},
    health::serving,
    ids::{NodeId, SlotId, Zone},
    observe::{Observations, VolumeSeen},
    procedure,
    state::{ClusterState, Fencing, Lifecycle, Membership, Node, Proof, RoleSpec, Slot},
};

/// Something wanted and not done: which gate is closed and what would open it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gate {
    pub subject: String,
    pub closed_by: String,
    pub opens_when: String,
}

impl Gate {
    pub fn new(subject: impl ToString, closed_by: impl Into<String>, opens_when: impl Into<String>) -> Self {
        Self { subject: subject.to_string(), closed_by: closed_by.into(), opens_when: opens_when.into() }
    }
}

/// Every want that is not done, with its closed gate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub gates: Vec<Gate>,
}

/// Where a slot would do best; smaller is better, and the order of the fields is the priority.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Members of the same role in the zone: one per zone before two.
    same_role_in_zone: usize,
    /// Memory already given away on the node, permille of the machine.
    used_permille: u64,
    slots_held: usize,
    node: NodeId,
}

/// The moves that state and observations call for, in one plan on one revision, and a report of what stays undone.
pub fn plan(state: &ClusterState, obs: &Observations) -> (Plan, Report) {
    let mut planning = Planning { next: state.clone(), plan: Plan { based_on: state.revision, actions: Vec::new() }, report: Report::default() };
    planning.vacate();
    planning.grant(obs);
    planning.release(obs);
    planning.forget();
    planning.report.gates.sort();
    (planning.plan, planning.report)
}

struct Planning {
    /// The state as it will be once the actions so far are applied.
    next: ClusterState,
    plan: Plan,
    report: Report,
}

impl Planning {
    /// Adds an action if `apply` would take it: one judge, not two.
    fn act(&mut self, action: Action) {
        let step = Command::Plan(Plan { based_on: self.next.revision, actions: vec![action.clone()] });
        let index = self.next.revision.0;
        match apply(&mut self.next, index, 0, &step) {
            Ok(_) => self.plan.actions.push(action),
            Err(refused) => self.report.gates.push(Gate::new(&action, refused.to_string(), "the planner and apply agree again (please report this)")),
        }
    }

    fn vacate(&mut self) {
        let mut moves = Vec::new();
        for (id, slot) in &self.next.slots {
            let (Some((node_id, node)), Some(role)) = (self.next.holder(slot), self.next.role(id)) else { continue };
            match node.lifecycle {
                Lifecycle::Fenced => moves.push((id.clone(), Proof::InstanceTerminated { node: node_id.clone() })),
                Lifecycle::Lost if lease_is_proof(role) => moves.push((id.clone(), Proof::LeaseExpired { node: node_id.clone() })),
                Lifecycle::Lost => self.report.gates.push(Gate::new(
                    id,
                    format!("{node_id} is silent, and silence is no proof for {}", fencing_name(role.fencing)),
                    "EC2 says the instance is terminated (asked for), or its agent says the processes are gone",
                )),
                Lifecycle::Ready | Lifecycle::Draining => {}
            }
        }
        for (slot, proof) in moves {
            self.act(Action::Vacate { slot, proof });
        }
    }

    fn release(&mut self, obs: &Observations) {
        let (releases, gates) = procedure::drain(&self.next, obs);
        self.report.gates.extend(gates);
        // A lost disk ends an identity: the process is stopped, then the slot is granted with an empty disk.
        let diskless = self.next.slots.iter().filter(|(id, slot)| {
            let volume = self.next.role(id).is_some_and(|role| role.volume);
            volume && slot.volume.is_none() && slot.used && !slot.releasing && slot.holder.is_some() && !releases.contains(id)
        });
        let diskless: Vec<SlotId> = diskless.map(|(id, _)| id.clone()).collect();
        for slot in releases.into_iter().chain(diskless) {
            self.act(Action::Release { slot });
        }
    }

    fn grant(&mut self, obs: &Observations) {
        let vacant: Vec<SlotId> = self.next.slots.iter().filter(|(_, slot)| slot.holder.is_none()).map(|(id, _)| id.clone()).collect();
        for id in vacant {
            let Some(role) = self.next.role(&id).cloned() else { continue };
            if obs.joining && self.next.slots[&id].generation.0 == 0 {
                self.report.gates.push(Gate::new(&id, "nodes are still joining", "none has joined for two seconds"));
                continue;
            }
            if self.next.slots[&id].volume.is_none()
                && let Some(gate) = self.empty_disk_gate(&id, &role, obs)
            {
                self.report.gates.push(gate);
                continue;
            }
            let slot = self.next.slots[&id].clone();
            let mut zone = slot.volume.as_ref().map(|volume| volume.zone.clone());
            if let Some(bound) = &zone {
                let waited = obs.zone_empty_since_ms.get(&id).map_or(0, |since| obs.now_ms.saturating_sub(*since));
                if self.best(&id, &role, zone.as_ref()).is_none() {
                    if waited < self.next.spec.volume_wait_ms {
                        self.report.gates.push(Gate::new(
                            &id,
                            format!("its volume is in {bound}, where no ready node has room"),
                            format!("a node joins in {bound}, or {} ms more have passed", self.next.spec.volume_wait_ms - waited),
                        ));
                        continue;
                    }
                    if let Some(gate) = self.abandon_gate(&id, &role, obs) {
                        self.report.gates.push(gate);
                        continue;
                    }
                    self.act(Action::AbandonVolume { slot: id.clone() });
                    zone = None;
                }
            }
            let Some(node) = self.best(&id, &role, zone.as_ref()) else {
                self.report.gates.push(Gate::new(
                    &id,
                    "no ready node has room",
                    format!("a node joins with {} MiB free that holds no {} yet", role.memory_mib, id.role),
                ));
                continue;
            };
            let Some(member_id) = self.member_id(&id, &role, obs) else {
                self.report.gates.push(Gate::new(&id, "no member id is free (1 to 255)", "a retired member is removed from the ensemble"));
                continue;
            };
            self.act(Action::Grant { slot: id, node, member_id });
        }
    }

    /// A volume is given up only for something better: a node that could take the slot, and for a quorum only while the others hold the data.
    fn abandon_gate(&self, id: &SlotId, role: &RoleSpec, obs: &Observations) -> Option<Gate> {
        if self.best(id, role, None).is_none() {
            return Some(Gate::new(id, "no ready node has room, in any zone", format!("a node joins with {} MiB free", role.memory_mib)));
        }
        let data = role.membership != Membership::ZooKeeper || founded(&self.next, id);
        if role.fencing == Fencing::Quorum && data {
            if !serving(&self.next, obs, &id.role) {
                return Some(Gate::new(id, format!("{} has no majority: the data on this volume may be needed", id.role), "enough of it is healthy again"));
            }
            let abandoned = |action: &Action| matches!(action, Action::AbandonVolume { slot } if slot.role == id.role);
            if self.plan.actions.iter().any(abandoned) {
                return Some(Gate::new(id, format!("another disk of {} is being replaced", id.role), "that one has moved"));
            }
        }
        self.empty_disk_gate(id, role, obs)
    }

    /// Kafka, rule 2: the same id on an empty disk only when that id is in no partition's in-sync replicas.
    fn empty_disk_gate(&self, id: &SlotId, role: &RoleSpec, obs: &Observations) -> Option<Gate> {
        let slot = &self.next.slots[id];
        if role.membership != Membership::Kafka || slot.member_id == 0 || !(slot.used || slot.volume.is_some()) {
            return None;
        }
        let Some(kafka) = &obs.kafka else {
            return Some(Gate::new(id, "its disk is lost and Kafka's in-sync replicas cannot be read", "ZooKeeper answers again"));
        };
        kafka.in_sync.contains(&slot.member_id).then(|| {
            Gate::new(
                id,
                format!("its disk is lost and broker {} still counts as in sync somewhere", slot.member_id),
                "the controller has taken it out of every in-sync set",
            )
        })
    }

    /// Which identity the slot gets: its own as long as its disk is there, for ZooKeeper a fresh one otherwise.
    fn member_id(&self, id: &SlotId, role: &RoleSpec, obs: &Observations) -> Option<u32> {
        let slot = &self.next.slots[id];
        let founder = self.next.ensembles.get(&id.role).is_some_and(|ensemble| ensemble.founders.contains(&slot.member_id));
        let listed = |id: u32| obs.zookeeper.as_ref().is_some_and(|seen| seen.voters.contains_key(&id));
        match role.membership {
            Membership::ZooKeeper if slot.member_id == 0 && !founded(&self.next, id) => Some(id.index),
            Membership::ZooKeeper if slot.member_id == 0 || slot.volume.is_none() => {
                // Granted before and never had a disk to start on: nobody has seen the id yet, and the founders' list stays whole.
                let unseen = role.volume && !slot.used && founder;
                if slot.member_id != 0 && (unseen || !founded(&self.next, id)) { Some(slot.member_id) } else { free_member_id(&self.next, &id.role, listed) }
            }
            Membership::ZooKeeper => Some(slot.member_id),
            Membership::Kafka | Membership::None => Some(id.index),
        }
    }

    fn best(&self, id: &SlotId, role: &RoleSpec, zone: Option<&Zone>) -> Option<NodeId> {
        let mut held: BTreeMap<&NodeId, Vec<(&SlotId, &Slot)>> = BTreeMap::new();
        for (slot_id, slot) in &self.next.slots {
            if let Some(holder) = &slot.holder {
                held.entry(holder).or_default().push((slot_id, slot));
            }
        }
        let used = |node: &NodeId| -> u64 {
            let slots = held.get(node).into_iter().flatten();
            slots.filter_map(|(slot, _)| self.next.role(slot)).map(|role| u64::from(role.memory_mib)).sum()
        };
        let eligible = |(node_id, node): &(&NodeId, &Node)| {
            node.lifecycle == Lifecycle::Ready
                && !node.cordoned
                && zone.is_none_or(|zone| node.zone == *zone)
                && !held.get(node_id).into_iter().flatten().any(|(slot, _)| slot.role == id.role)
                && used(node_id) + u64::from(role.memory_mib) <= u64::from(node.memory_mib)
        };
        let in_zone = |zone: &Zone| {
            let members = self.next.slots_of(&id.role).filter_map(|(_, slot)| self.next.holder(slot));
            if role.spread_zones { members.filter(|(_, node)| node.zone == *zone).count() } else { 0 }
        };
        let scores = self.next.nodes.iter().filter(eligible).map(|(node_id, node)| Score {
            same_role_in_zone: in_zone(&node.zone),
            used_permille: used(node_id) * 1000 / u64::from(node.memory_mib.max(1)),
            slots_held: held.get(node_id).map_or(0, Vec::len),
            node: node_id.clone(),
        });
        scores.min().map(|score| score.node)
    }

    fn forget(&mut self) {
        let gone: Vec<NodeId> = self.next.nodes.iter().filter(|(_, node)| node.lifecycle == Lifecycle::Fenced).map(|(id, _)| id.clone()).collect();
        for node in gone {
            if self.next.held_by(&node).next().is_none() {
                self.act(Action::Forget { node });
            }
        }
    }
}

/// Where a slot that must leave its node could go now; None: nowhere.
pub(crate) fn place(state: &ClusterState, id: &SlotId) -> Option<NodeId> {
    let planning = Planning { next: state.clone(), plan: Plan::default(), report: Report::default() };
    let zone = state.slots.get(id)?.volume.as_ref().map(|volume| &volume.zone);
    planning.best(id, state.role(id)?, zone)
}

fn founded(state: &ClusterState, id: &SlotId) -> bool {
    state.ensembles.get(&id.role).is_some_and(|ensemble| !ensemble.founders.is_empty())
}

fn lease_is_proof(role: &RoleSpec) -> bool {
    role.fencing == Fencing::Disposable || (role.fencing == Fencing::Exclusive && role.fenced_sinks)
}

fn fencing_name(fencing: Fencing) -> &'static str {
    match fencing {
        Fencing::Exclusive => "an exclusive role whose sinks are not fenced",
        Fencing::Quorum => "a quorum role",
        Fencing::Disposable => "a disposable role",
    }
}

/// Slots that wait for their volume's zone: vacant, bound, and no eligible node there. The daemon remembers since when.
pub fn zone_is_empty(state: &ClusterState) -> Vec<SlotId> {
    let planning = Planning { next: state.clone(), plan: Plan::default(), report: Report::default() };
    let waiting = state.slots.iter().filter(|(id, slot)| {
        let (Some(volume), Some(role)) = (&slot.volume, state.role(id)) else { return false };
        slot.holder.is_none() && planning.best(id, role, Some(&volume.zone)).is_none()
    });
    waiting.map(|(id, _)| id.clone()).collect()
}

/// Volumes EC2 says are gone, as commands.
pub fn lost_volumes(state: &ClusterState, obs: &Observations) -> Vec<Command> {
    let lost = state.slots.iter().filter_map(|(id, slot)| {
        let volume = slot.volume.as_ref()?;
        (obs.volumes.get(&volume.id) == Some(&VolumeSeen::Gone)).then(|| Command::VolumeLost { slot: id.clone(), volume: volume.id.clone() })
    });
    lost.collect()
}

/// Held slots that need a volume made, with the zone it is to be in. Never one whose disk was lost under its holder: that ends an identity.
pub fn wants_volume(state: &ClusterState) -> Vec<(&SlotId, &Zone)> {
    let wanting = state.slots.iter().filter(|(id, slot)| state.role(id).is_some_and(|role| role.volume) && slot.volume.is_none() && !slot.used);
    wanting.filter_map(|(id, slot)| Some((id, &state.holder(slot)?.1.zone))).collect()
}
