//! What happens to one slot outside a plan: operators' wishes, the agent's word, volumes, and its member in the role's own quorum.

use std::collections::{BTreeMap, BTreeSet};

use super::{Events, slot_at, slot_mut};
use crate::{
    command::Rejection,
    ids::{Generation, NodeId, RoleName, SlotId, VolumeId, Zone},
    state::{ClusterState, Lifecycle, Move, Proof, Slot, Volume},
};

pub fn want_move(state: &mut ClusterState, id: &SlotId, to: Option<&NodeId>, empty_disk: bool, events: &mut Events) -> Result<(), Rejection> {
    let no = |why: String| Err(Rejection::Impossible(why));
    let slot = state.slots.get(id).ok_or_else(|| Rejection::NoSuchSlot(id.clone()))?;
    let Some((from, node)) = state.holder(slot) else { return no(format!("{id} has no holder: it is placed as soon as it can be")) };
    if matches!(node.lifecycle, Lifecycle::Lost | Lifecycle::Fenced) {
        return no(format!("{from} is lost: {id} moves without being asked"));
    }
    if slot.releasing {
        return no(format!("{id} is leaving {from} already"));
    }
    if state.is_surplus(id) {
        return no(format!("{id} is one slot too many: it goes, it does not move"));
    }
    if empty_disk && slot.volume.is_none() {
        return no(format!("{id} has no volume to leave behind: move it without '--empty-disk'"));
    }
    if let Some(to) = to {
        can_take(state, id, slot, (from, to), empty_disk)?;
    }
    let from = from.clone();
    let (where_to, how) = (to.map_or("wherever it does best".to_owned(), ToString::to_string), if empty_disk { ", with an empty disk" } else { "" });
    events.say("move wanted", id, format!("from {from} to {where_to}{how}"));
    slot_mut(state, id)?.wanted_move = Some(Move { from, to: to.cloned(), empty_disk });
    Ok(())
}

fn can_take(state: &ClusterState, id: &SlotId, slot: &Slot, (from, to): (&NodeId, &NodeId), empty_disk: bool) -> Result<(), Rejection> {
    let target = state.nodes.get(to).ok_or_else(|| Rejection::NoSuchNode(to.clone()))?;
    if to == from {
        return Err(Rejection::Impossible(format!("{id} is on {to} already")));
    }
    if target.lifecycle != Lifecycle::Ready || target.cordoned {
        return Err(Rejection::NodeState { node: to.clone(), state: "not taking slots".into(), todo: "name another node, or none".into() });
    }
    if let Some(volume) = slot.volume.as_ref().filter(|volume| !empty_disk && volume.zone != target.zone) {
        return Err(Rejection::Impossible(format!(
            "the volume of {id} is in {}, {to} is in {}: with '--empty-disk' it goes without its data, which the others of its quorum must then have",
            volume.zone, target.zone
        )));
    }
    if let Some((other, _)) = state.held_by(to).find(|(held, _)| held.role == id.role) {
        return Err(Rejection::Impossible(format!("{to} holds {other} already: two of one role never share a node")));
    }
    Ok(())
}

pub fn cancel_move(state: &mut ClusterState, id: &SlotId, events: &mut Events) -> Result<(), Rejection> {
    let slot = slot_mut(state, id)?;
    if slot.wanted_move.take().is_none() {
        return Err(Rejection::Impossible(format!("no move of {id} is wanted")));
    }
    let so_far = if slot.holder.is_some() && !slot.releasing { "it stays where it is" } else { "it is on its way and is placed wherever it does best" };
    events.say("move cancelled", id, so_far);
    Ok(())
}

/// The agent's word, given after it was persisted, that the slot's processes are gone.
pub fn released(state: &mut ClusterState, id: &SlotId, generation: Generation, node: &NodeId, events: &mut Events) -> Result<(), Rejection> {
    let found = slot_at(state, id, generation)?;
    if found.holder.as_ref() != Some(node) {
        return Err(Rejection::Impossible(format!("{id} is not held by {node}")));
    }
    vacate(found, Proof::AgentWord { node: node.clone() });
    events.say("slot released", id, format!("by {node}"));
    Ok(())
}

pub fn vacate(slot: &mut Slot, proof: Proof) {
    slot.holder = None;
    slot.releasing = false;
    slot.proof = Some(proof);
}

pub fn volume_created(
    state: &mut ClusterState,
    id: &SlotId,
    generation: Generation,
    (volume, zone): (&VolumeId, &Zone),
    events: &mut Events,
) -> Result<(), Rejection> {
    volume_fits(state, id, volume, zone)?;
    let found = slot_at(state, id, generation)?;
    if found.volume.is_some() {
        return Err(Rejection::Impossible(format!("{id} has a volume already")));
    }
    if found.used {
        return Err(Rejection::Impossible(format!("the disk of {id} is lost: it gets a new one with its next grant, never under the old identity")));
    }
    found.volume = Some(Volume { id: volume.clone(), zone: zone.clone() });
    events.say("volume created", id, format!("{volume} in {zone}"));
    Ok(())
}

/// A volume is for a role that owns one, for one slot, and in the zone of the slot's holder.
fn volume_fits(state: &ClusterState, id: &SlotId, volume: &VolumeId, zone: &Zone) -> Result<(), Rejection> {
    let role = state.role(id).ok_or_else(|| Rejection::NoSuchSlot(id.clone()))?;
    if !role.volume {
        return Err(Rejection::Impossible(format!("{} owns no volumes", id.role)));
    }
    if let Some((owner, _)) = state.slots.iter().find(|(other, slot)| *other != id && slot.volume.as_ref().is_some_and(|kept| kept.id == *volume)) {
        return Err(Rejection::Impossible(format!("{volume} belongs to {owner}")));
    }
    if let Some((holder, node)) = state.slots.get(id).and_then(|slot| state.holder(slot))
        && node.zone != *zone
    {
        return Err(Rejection::Impossible(format!("{volume} is in {zone}, but {holder} is in {}", node.zone)));
    }
    Ok(())
}

pub fn volume_lost(state: &mut ClusterState, id: &SlotId, volume: &VolumeId, events: &mut Events) -> Result<(), Rejection> {
    let found = slot_mut(state, id)?;
    if found.volume.as_ref().map(|kept| &kept.id) != Some(volume) {
        return Err(Rejection::Impossible(format!("{id} does not own {volume}")));
    }
    found.volume = None;
    // Whatever was on it counts as written: the empty-disk path applies, never a first start.
    found.used = true;
    events.say("volume lost", id, format!("{volume} does not exist any more"));
    Ok(())
}

/// First healthy report on this disk.
pub fn used(state: &mut ClusterState, id: &SlotId, generation: Generation, events: &mut Events) -> Result<(), Rejection> {
    let owns = state.role(id).is_some_and(|role| role.volume);
    let found = slot_at(state, id, generation)?;
    if found.holder.is_none() || (owns && found.volume.is_none()) {
        return Err(Rejection::Impossible(format!("{id} has no holder or no disk: nothing was written for it")));
    }
    found.used = true;
    events.say("slot healthy", id, format!("generation {generation}, first time on this disk"));
    Ok(())
}

/// The first configuration of an ensemble: decided once, for ever.
pub fn founded(state: &mut ClusterState, role: &RoleName, members: &BTreeMap<SlotId, u32>, events: &mut Events) -> Result<(), Rejection> {
    let ensemble = state.ensembles.entry(role.clone()).or_default();
    if !ensemble.founders.is_empty() {
        return Err(Rejection::Impossible(format!("the {role} ensemble was founded before")));
    }
    ensemble.founders = members.values().copied().collect();
    events.say("ensemble founded", role, format!("members {:?}", ensemble.founders));
    Ok(())
}

/// Newer lists replace older ones; who reads an old one late changes nothing.
pub fn voters_listed(state: &mut ClusterState, role: &RoleName, version: u64, voters: &BTreeSet<u32>) -> Result<(), Rejection> {
    let Some(ensemble) = state.ensembles.get_mut(role).filter(|ensemble| !ensemble.founders.is_empty()) else {
        return Err(Rejection::Impossible(format!("the {role} ensemble is not founded")));
    };
    if version <= ensemble.list_version || voters.is_empty() {
        return Err(Rejection::Impossible(format!("the {role} list is known at version {}, {version} says nothing new", ensemble.list_version)));
    }
    ensemble.list_version = version;
    ensemble.voters.clone_from(voters);
    Ok(())
}

pub fn member_removed(state: &mut ClusterState, id: &SlotId, member_id: u32, events: &mut Events) -> Result<(), Rejection> {
    let found = slot_mut(state, id)?;
    if found.retired_member != Some(member_id) {
        return Err(Rejection::Impossible(format!("{id} has not retired member {member_id}")));
    }
    found.retired_member = None;
    events.say("member replaced", id, format!("{member_id} is out, {} is in", found.member_id));
    Ok(())
}
