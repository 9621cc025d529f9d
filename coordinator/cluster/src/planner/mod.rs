//! What to move where: a pure function of state and observations. Planning a state that is already as wanted yields nothing.
//!
//! ```text
//! vacate (proof) ──> grant (identity, disk, place) ──> release (procedure) ──> remove, forget      one command on one revision, tried on `apply` itself
//! ```
//!
//! Left out on purpose: starting (`gates`), ZooKeeper's member list (`ensemble`), anything that needs memory between two calls.

mod disk;
mod identity;
mod ledger;

use std::collections::BTreeSet;

pub(crate) use ledger::{Ledger, Seek};

pub use crate::report::{Gate, Report};
use crate::{
    apply::{lease_is_proof, try_plan},
    command::{Action, Command, Plan},
    ids::{NodeId, SlotId, Zone},
    observe::{Observations, VolumeSeen},
    procedure::{self, Wellness},
    state::{ClusterState, Fencing, Lifecycle, Membership, Proof, Slot},
};

/// Looks that one plan takes at most; the second finds what the first has freed, a third has never been needed.
const LOOKS: usize = 3;

/// The moves that state and observations call for, in one plan on one revision, and a report of what stays undone.
pub fn plan(state: &ClusterState, obs: &Observations) -> (Plan, Report) {
    let (actions, mut gates) = look(state, obs);
    let mut plan = Plan { based_on: state.revision, actions };
    // One judge, not two: what `apply` would refuse is not proposed, and that is a bug to be seen.
    let mut ahead = match try_plan(state, &plan) {
        Ok(ahead) => ahead,
        Err(refused) => {
            plan.actions.clear();
            gates.push(Gate::new("plan", refused.to_string(), DISAGREED));
            None
        }
    };
    // What the plan frees, or takes from under a volume's zone, may call for more: looked at again as the plan would leave things.
    for _ in 1..LOOKS {
        let Some(left) = ahead.take() else { break };
        let (more, still) = look(&left, obs);
        if more.is_empty() {
            break;
        }
        let longer = Plan { based_on: state.revision, actions: plan.actions.iter().cloned().chain(more).collect() };
        match try_plan(state, &longer) {
            Ok(then) => (plan, gates, ahead) = (longer, still, then),
            // The rest comes with the next plan.
            Err(refused) => gates.push(Gate::new("plan", refused.to_string(), DISAGREED)),
        }
    }
    gates.sort();
    (plan, Report { gates })
}

/// Everything that one look calls for, and what it leaves undone.
fn look(state: &ClusterState, obs: &Observations) -> (Vec<Action>, Vec<Gate>) {
    let mut planning = Planning::of(state, obs);
    planning.vacate();
    planning.grant();
    planning.release();
    planning.remove();
    planning.forget();
    (planning.actions, planning.gates)
}

/// What is said when planner and `apply` disagree.
pub const DISAGREED: &str = "the planner and apply agree again (please report this)";

struct Planning<'a> {
    state: &'a ClusterState,
    obs: &'a Observations,
    ledger: Ledger<'a>,
    /// Slots whose holder this plan takes away.
    vacated: BTreeSet<&'a SlotId>,
    identities: identity::Pool<'a>,
    actions: Vec<Action>,
    gates: Vec<Gate>,
}

impl<'a> Planning<'a> {
    fn of(state: &'a ClusterState, obs: &'a Observations) -> Self {
        Self {
            state,
            obs,
            ledger: Ledger::of(state),
            vacated: BTreeSet::new(),
            identities: identity::Pool::of(state, obs),
            actions: Vec::new(),
            gates: Vec::new(),
        }
    }

    fn vacate(&mut self) {
        for (id, slot) in &self.state.slots {
            let (Some((node_id, node)), Some(role)) = (self.state.holder(slot), self.state.role(id)) else { continue };
            let proof = match node.lifecycle {
                Lifecycle::Lost if lease_is_proof(role) => Proof::LeaseExpired { node: node_id.clone() },
                Lifecycle::Lost => {
                    self.gates.push(Gate::new(
                        id,
                        format!("{node_id} is silent, and silence is no proof for {}", fencing_name(role.fencing)),
                        format!("EC2 says the instance is terminated (asked for), its agent says the processes are gone, or 'vpctl gone {node_id}' if EC2 has forgotten it"),
                    ));
                    continue;
                }
                Lifecycle::Ready | Lifecycle::Draining | Lifecycle::Fenced => match node.end(node_id) {
                    Some(end) => end,
                    None => continue,
                },
            };
            self.actions.push(Action::Vacate { slot: id.clone(), proof });
            self.vacated.insert(id);
            self.ledger.free(&id.role, role, node_id);
        }
    }

    fn grant(&mut self) {
        for (id, slot) in &self.state.slots {
            let vacant = slot.holder.is_none() || self.vacated.contains(id);
            let Some((role_name, role)) = self.state.spec.roles.get_key_value(&id.role).filter(|_| vacant && !self.state.is_surplus(id)) else { continue };
            if self.obs.joining && slot.generation.0 == 0 {
                self.gates.push(Gate::new(id, "nodes are still joining", "none has joined for two seconds"));
                continue;
            }
            let wanted = Vacant { id, slot, seek: Seek { role: role_name, spec: role, zone: slot.volume.as_ref().map(|volume| &volume.zone), from: None } };
            match self.place(&wanted) {
                Ok((abandon, node, member_id)) => {
                    if abandon {
                        self.actions.push(Action::AbandonVolume { slot: id.clone() });
                    }
                    self.ledger.take(role_name, role, node);
                    self.actions.push(Action::Grant { slot: id.clone(), node: node.clone(), member_id });
                }
                Err(gate) => self.gates.push(gate),
            }
        }
    }

    /// Whether the volume is given up, which node, under which member id; or what holds it back.
    fn place(&mut self, wanted: &Vacant<'a>) -> Result<(bool, &'a NodeId, u32), Gate> {
        let mut seek = wanted.seek;
        let abandon = self.gives_up_its_volume(wanted)?;
        if abandon {
            seek.zone = None;
        }
        if abandon || wanted.slot.volume.is_none() {
            self.empty_disk_gate(wanted)?;
        }
        let Some(node) = self.choose(wanted.slot, &seek) else {
            let needs = format!("a node joins with {} MiB free that holds no {} yet", seek.spec.memory_mib, seek.role);
            return Err(Gate::new(wanted.id, "no ready node has room", needs));
        };
        let empty = abandon || wanted.slot.volume.is_none();
        let Some(member_id) = self.identities.give(wanted, empty) else {
            return Err(Gate::new(wanted.id, "no member id is free (1 to 255)", "a retired member is removed from the ensemble"));
        };
        Ok((abandon, node, member_id))
    }

    /// An operator's node first, then any but the one it was moved from, then any.
    fn choose(&mut self, slot: &'a Slot, seek: &Seek<'a>) -> Option<&'a NodeId> {
        let Some(wish) = &slot.wanted_move else { return self.ledger.best(seek) };
        if let Some((to, _)) = wish.to.as_ref().and_then(|to| self.state.nodes.get_key_value(to))
            && self.ledger.takes(seek, to)
        {
            return Some(to);
        }
        self.ledger.best(&Seek { from: Some(&wish.from), ..*seek }).or_else(|| self.ledger.best(seek))
    }

    fn release(&mut self) {
        let wellness = Wellness::of(self.state, self.obs, &self.vacated);
        let (releases, gates) = procedure::departures(self.state, self.obs, &wellness, &mut self.ledger);
        self.gates.extend(gates);
        self.actions.extend(releases.into_iter().map(|slot| Action::Release { slot }));
    }

    /// Slots beyond what is wanted, once nobody holds them and their own quorum has let them go.
    fn remove(&mut self) {
        for (id, slot) in &self.state.slots {
            if (slot.holder.is_some() && !self.vacated.contains(id)) || !self.state.is_surplus(id) {
                continue;
            }
            match procedure::still_counted_on(self.state, self.obs, id, slot) {
                Some(gate) => self.gates.push(gate),
                None => self.actions.push(Action::Remove { slot: id.clone() }),
            }
        }
    }

    fn forget(&mut self) {
        for id in self.state.nodes.iter().filter(|(_, node)| node.lifecycle == Lifecycle::Fenced).map(|(id, _)| id) {
            if self.ledger.held(id) == 0 {
                self.actions.push(Action::Forget { node: id.clone() });
            }
        }
    }
}

/// A slot without a holder.
struct Vacant<'a> {
    id: &'a SlotId,
    slot: &'a Slot,
    seek: Seek<'a>,
}

fn founded(state: &ClusterState, id: &SlotId) -> bool {
    state.ensembles.get(&id.role).is_some_and(|ensemble| !ensemble.founders.is_empty())
}

fn fencing_name(fencing: Fencing) -> &'static str {
    match fencing {
        Fencing::Exclusive => "an exclusive role whose sinks are not fenced",
        Fencing::Quorum => "a quorum role",
        Fencing::Disposable => "a disposable role",
    }
}

/// Slots that wait for their disk: vacant, and bound to a zone without an eligible node, or a Kafka broker whose disk is lost. The daemon remembers since when.
pub fn zone_is_empty(state: &ClusterState) -> Vec<SlotId> {
    let vacant = |(_, slot): &(&SlotId, &Slot)| slot.holder.is_none() && (slot.volume.is_some() || slot.used);
    if !state.slots.iter().any(|slot| vacant(&slot)) {
        return Vec::new();
    }
    let mut ledger = Ledger::of(state);
    let mut waiting = Vec::new();
    for (id, slot) in state.slots.iter().filter(vacant) {
        let Some((role, spec)) = state.spec.roles.get_key_value(&id.role) else { continue };
        let waits = match &slot.volume {
            None => spec.membership == Membership::Kafka,
            Some(volume) => ledger.best(&Seek { role, spec, zone: Some(&volume.zone), from: None }).is_none(),
        };
        if waits {
            waiting.push(id.clone());
        }
    }
    waiting
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
