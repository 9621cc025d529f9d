//! The planner's moves, all or nothing, on the revision they were made on.

use std::collections::{BTreeMap, BTreeSet};

use super::{Events, node_mut, slot_mut, slots::vacate};
use crate::{
    command::{Action, Plan, Rejection},
    ids::{Generation, NodeId, Revision, RoleName, SlotId},
    mutant,
    state::{ClusterState, Fencing, Lifecycle, Proof, RoleSpec},
};

/// Highest member id ZooKeeper accepts (its `myid` is one byte, 1 to 255).
pub const LAST_MEMBER_ID: u32 = 255;

pub fn carry_out(state: &mut ClusterState, before: Revision, plan: &Plan, events: &mut Events) -> Result<(), Rejection> {
    if plan.based_on != before && !mutant!("stale-plan") {
        return Err(Rejection::Stale { based_on: plan.based_on, revision: before });
    }
    let mut next = tried(state, plan, events)?;
    next.events = std::mem::take(&mut state.events);
    next.requests = std::mem::take(&mut state.requests);
    *state = next;
    Ok(())
}

/// All or nothing: the actions are tried on a copy.
fn tried(state: &ClusterState, plan: &Plan, events: &mut Events) -> Result<ClusterState, Rejection> {
    let mut next = state.without_history();
    let mut taken = Taken::default();
    for action in &plan.actions {
        act(&mut next, &mut taken, action, events)?;
    }
    Ok(next)
}

/// What the slots of a role have taken, gathered once a role, so that a plan of many grants does not count them all for each.
#[derive(Default)]
struct Taken {
    roles: BTreeMap<RoleName, TakenOfRole>,
}

#[derive(Default)]
struct TakenOfRole {
    nodes: BTreeSet<NodeId>,
    /// Member ids, live and retired, with the index of the slot that has them.
    members: BTreeMap<u32, u32>,
}

impl Taken {
    fn of(&mut self, state: &ClusterState, role: &RoleName) -> &mut TakenOfRole {
        self.roles.entry(role.clone()).or_insert_with(|| {
            let mut taken = TakenOfRole::default();
            for (id, slot) in state.slots_of(role) {
                taken.nodes.extend(slot.holder.clone());
                taken.members.extend([Some(slot.member_id), slot.retired_member].into_iter().flatten().map(|member| (member, id.index)));
            }
            taken
        })
    }
}

/// What `apply` would make of this plan now, events and requests left out (None: it would change nothing): one judge, not two.
///
/// # Errors
/// What it would answer.
pub(crate) fn try_plan(state: &ClusterState, plan: &Plan) -> Result<Option<ClusterState>, Rejection> {
    if plan.actions.is_empty() {
        return Ok(None);
    }
    tried(state, plan, &mut Events { revision: state.revision, unix_ms: 0, list: Vec::new() }).map(Some)
}

fn act(state: &mut ClusterState, taken: &mut Taken, action: &Action, events: &mut Events) -> Result<(), Rejection> {
    match action {
        Action::Vacate { slot, proof } => {
            let role = state.role(slot).cloned().ok_or_else(|| Rejection::NoSuchSlot(slot.clone()))?;
            let Some(holder) = slot_mut(state, slot)?.holder.clone() else {
                return Err(Rejection::Impossible(format!("{slot} has no holder")));
            };
            if !proves(state, &holder, &role, proof) {
                return Err(Rejection::NoProof { slot: slot.clone(), node: holder });
            }
            vacate(slot_mut(state, slot)?, proof.clone());
            taken.roles.remove(&slot.role);
            events.say("slot vacated", slot, proof);
        }
        Action::Release { slot } => {
            let found = slot_mut(state, slot)?;
            if found.holder.is_none() || found.releasing {
                return Err(Rejection::Impossible(format!("{slot} has no holder to release it, or is being released")));
            }
            found.releasing = true;
            events.say("slot releasing", slot, "its holder is asked to stop it");
        }
        Action::AbandonVolume { slot } => {
            let found = slot_mut(state, slot)?;
            if found.holder.is_some() {
                return Err(Rejection::Impossible(format!("{slot} is held: its volume is in use")));
            }
            let Some(volume) = found.volume.take() else {
                return Err(Rejection::Impossible(format!("{slot} has no volume to give up")));
            };
            found.used = true;
            events.say("volume abandoned", slot, format!("{} in {}: it goes on with an empty disk", volume.id, volume.zone));
        }
        Action::Grant { slot, node, member_id } => grant(state, taken, (slot, node, *member_id), events)?,
        Action::Remove { slot } => {
            remove(state, slot, events)?;
            taken.roles.remove(&slot.role);
        }
        Action::Forget { node } => {
            if state.held_by(node).next().is_some() {
                return Err(Rejection::Impossible(format!("{node} still holds slots")));
            }
            let found = node_mut(state, node)?;
            if found.lifecycle != Lifecycle::Fenced {
                return Err(Rejection::NodeState { node: node.clone(), state: "not fenced".into(), todo: "wait for proof".into() });
            }
            state.nodes.remove(node);
            events.say("node gone", node, "");
        }
    }
    Ok(())
}

fn grant(state: &mut ClusterState, taken: &mut Taken, (slot, node, member_id): (&SlotId, &NodeId, u32), events: &mut Events) -> Result<(), Rejection> {
    state.role(slot).ok_or_else(|| Rejection::NoSuchSlot(slot.clone()))?;
    let revision = state.revision;
    let target = node_mut(state, node)?;
    if target.lifecycle != Lifecycle::Ready {
        return Err(Rejection::NodeState { node: node.clone(), state: "not ready".into(), todo: "grant to another node".into() });
    }
    let zone = target.zone.clone();
    if let Some(volume) = state.slots.get(slot).and_then(|slot| slot.volume.as_ref()).filter(|volume| volume.zone != zone) {
        return Err(Rejection::Impossible(format!("the volume of {slot} is in {}, {node} is not", volume.zone)));
    }
    let of_role = taken.of(state, &slot.role);
    if of_role.nodes.contains(node) {
        return Err(Rejection::Impossible(format!("{node} holds a slot of {} already: two of one role never share a node", slot.role)));
    }
    if member_id == 0 || of_role.members.get(&member_id).is_some_and(|index| *index != slot.index) {
        return Err(Rejection::Impossible(format!("member id {member_id} of {} is not free", slot.role)));
    }
    of_role.nodes.insert(node.clone());
    of_role.members.insert(member_id, slot.index);
    let role = slot.role.clone();
    let found = slot_mut(state, slot)?;
    if let Some(holder) = &found.holder
        && !mutant!("held-slot-granted")
    {
        return Err(Rejection::Held { slot: slot.clone(), holder: holder.clone() });
    }
    if found.member_id != member_id {
        // The oldest is kept: it is the one the role's own quorum still lists.
        if found.member_id != 0 && found.retired_member.is_none() {
            found.retired_member = Some(found.member_id);
        }
        found.member_id = member_id;
    }
    if found.volume.is_none() {
        found.used = false;
    }
    found.holder = Some(node.clone());
    found.releasing = false;
    found.wanted_move = None;
    if !mutant!("generation-not-raised") || found.generation.0 == 0 {
        found.generation = Generation(revision.0);
    }
    let ensemble: &mut crate::state::Ensemble = state.ensembles.entry(role).or_default();
    ensemble.last_member = ensemble.last_member.max(member_id);
    events.say("slot granted", slot, format!("to {node}, generation {revision}"));
    Ok(())
}

/// One slot too many goes; the identity may come back later as a new one, without disk or member id.
fn remove(state: &mut ClusterState, slot: &SlotId, events: &mut Events) -> Result<(), Rejection> {
    let found = slot_mut(state, slot)?;
    if found.holder.is_some() {
        return Err(Rejection::Impossible(format!("{slot} is held: its holder gives it back first")));
    }
    let kept = found.volume.as_ref().map_or(String::new(), |volume| format!("its volume {} in {} is kept", volume.id, volume.zone));
    if !state.is_surplus(slot) {
        return Err(Rejection::Impossible(format!("{slot} is wanted")));
    }
    state.slots.remove(slot);
    events.say("slot removed", slot, kept);
    Ok(())
}

/// Whether an expired lease shows that nobody can act on a slot of this role any more.
pub(crate) fn lease_is_proof(role: &RoleSpec) -> bool {
    match role.fencing {
        Fencing::Disposable => true,
        Fencing::Exclusive => role.fenced_sinks || mutant!("silence-moves-an-unfenced-role"),
        Fencing::Quorum => mutant!("silence-moves-a-quorum-role"),
    }
}

/// Whether `proof` shows that `holder` cannot act on a slot of this role any more.
fn proves(state: &ClusterState, holder: &NodeId, role: &RoleSpec, proof: &Proof) -> bool {
    let found = state.nodes.get(holder);
    let lifecycle = found.map(|node| node.lifecycle);
    match proof {
        Proof::InstanceTerminated { .. } | Proof::OperatorsWord { .. } => found.and_then(|node| node.end(holder)).as_ref() == Some(proof),
        Proof::LeaseExpired { node } => node == holder && matches!(lifecycle, Some(Lifecycle::Lost | Lifecycle::Fenced)) && lease_is_proof(role),
        // The agent's word comes as SlotReleased, never inside a plan.
        Proof::AgentWord { .. } => false,
    }
}

/// The next free member id of a role: above every id ever given while there is one, then the lowest that no slot uses or has retired.
/// ZooKeeper's pool is 1 to 255 (`LAST_MEMBER_ID`).
pub fn next_member_id(state: &ClusterState, role: &RoleName) -> Option<u32> {
    free_member_id(state, role, &[], |_| false)
}

/// As [`next_member_id`], beside those `given` away already, and never one that `listed` says the role's own quorum still knows.
pub(crate) fn free_member_id(state: &ClusterState, role: &RoleName, given: &[u32], listed: impl Fn(u32) -> bool) -> Option<u32> {
    let last = state.ensembles.get(role).map_or(0, |ensemble| ensemble.last_member).max(given.iter().copied().max().unwrap_or(0));
    if last < LAST_MEMBER_ID {
        return Some(last + 1);
    }
    let taken = |id: u32| given.contains(&id) || state.slots_of(role).any(|(_, slot)| slot.member_id == id || slot.retired_member == Some(id));
    (1..=LAST_MEMBER_ID).find(|id| !taken(*id) && !listed(*id))
}
