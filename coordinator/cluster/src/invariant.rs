//! What must hold in every state, and between a state and its successor. Checked after each command by tests and by the simulation; never by the daemon.

use std::collections::BTreeSet;

use crate::{
    apply::lease_is_proof,
    coordinators::{Coordinators, Standing},
    ids::{NodeId, SlotId},
    requests::REMEMBERED,
    state::{ClusterState, EVENT_RING, Fencing, Lifecycle, Membership, Proof, Slot},
};

/// The first broken rule of a state, as a sentence.
///
/// # Errors
/// Which rule, on which slot.
pub fn check(state: &ClusterState) -> Result<(), String> {
    let mut members = BTreeSet::new();
    let mut role_on_node = BTreeSet::new();
    let mut volumes = BTreeSet::new();
    for (id, slot) in &state.slots {
        let Some(role) = state.role(id) else { return Err(format!("{id} has no role in the spec")) };
        if slot.generation.0 > state.revision.0 {
            return Err(format!("{id} has generation {} beyond revision {}", slot.generation, state.revision));
        }
        if let Some(holder) = &slot.holder {
            if !state.nodes.contains_key(holder) {
                return Err(format!("{id} is held by {holder}, which is not there"));
            }
            if slot.generation.0 == 0 || slot.member_id == 0 {
                return Err(format!("{id} is held without a generation or a member id"));
            }
            if !role_on_node.insert((holder, &id.role)) {
                return Err(format!("{holder} holds two {} slots", id.role));
            }
        } else if slot.releasing {
            return Err(format!("{id} is releasing without a holder"));
        }
        for member in [Some(slot.member_id), slot.retired_member].into_iter().flatten().filter(|member| *member != 0) {
            if !members.insert((&id.role, member)) {
                return Err(format!("member id {member} of {} is used twice", id.role));
            }
        }
        if let Some(volume) = &slot.volume {
            if !role.volume {
                return Err(format!("{id} has a volume its role does not own"));
            }
            if !volumes.insert(&volume.id) {
                return Err(format!("volume {} belongs to two slots", volume.id));
            }
        }
    }
    wanted(state)?;
    if state.events.len() > EVENT_RING {
        return Err("the event ring has grown past its bound".to_owned());
    }
    if state.requests.len() > REMEMBERED {
        return Err("the table of answered requests has grown past its bound".to_owned());
    }
    coordinators(&state.coordinators)
}

/// A slot has one voter, an id was given before it was used, and no two members that may act are one instance.
fn coordinators(group: &Coordinators) -> Result<(), String> {
    let mut voters = BTreeSet::new();
    let mut instances = BTreeSet::new();
    for (id, member) in &group.members {
        if *id > group.last_member {
            return Err(format!("coordinator member {id} is beyond the last id given, {}", group.last_member));
        }
        if member.standing == Standing::Voter && !voters.insert(member.slot) {
            return Err(format!("coordinator {} has two voters", member.slot));
        }
        if let Some(instance) = member.instance.as_ref().filter(|_| !member.fenced)
            && !instances.insert(instance)
        {
            return Err(format!("{instance} is two coordinator members"));
        }
    }
    Ok(())
}

/// Quorum sizes and slot counts, as the spec has them.
fn wanted(state: &ClusterState) -> Result<(), String> {
    for (name, role) in &state.spec.roles {
        if role.min > role.pref || role.pref > role.max {
            return Err(format!("{name}: min {} <= pref {} <= max {} does not hold", role.min, role.pref, role.max));
        }
        if role.membership == Membership::ZooKeeper && role.pref.is_multiple_of(2) {
            return Err(format!("{name}: {} voters are an even number", role.pref));
        }
        let slots = state.slots_of(name).take_while(|(id, _)| id.index <= role.pref).count();
        if slots != role.pref as usize {
            return Err(format!("{name}: {} slots are wanted, {slots} are there", role.pref));
        }
        let founders = state.ensembles.get(name).map_or(0, |ensemble| ensemble.founders.len());
        if role.membership == Membership::ZooKeeper && founders.is_multiple_of(2) && founders != 0 {
            return Err(format!("{name} was founded by an even number of voters, {founders}"));
        }
    }
    Ok(())
}

/// The first rule that one step from `before` to `after` breaks. Any single command is a step; so is a plan, which is one command, and a membership entry.
///
/// # Errors
/// Which rule, on which slot.
pub fn transition(before: &ClusterState, after: &ClusterState) -> Result<(), String> {
    if after.revision < before.revision {
        return Err(format!("the revision went back from {} to {}", before.revision, after.revision));
    }
    let mut moving: BTreeSet<&str> = BTreeSet::new();
    for (id, now) in &after.slots {
        let Some(old) = before.slots.get(id) else {
            if now.holder.is_some() {
                return Err(format!("{id} was made with a holder"));
            }
            continue;
        };
        generations(id, old, now)?;
        if let Some(from) = &old.holder
            && (now.generation != old.generation || now.holder.as_ref() != Some(from))
        {
            proved(before, id, old, now, from)?;
        }
        let started = now.releasing && !old.releasing;
        let quorum = after.role(id).is_some_and(|role| role.fencing == Fencing::Quorum);
        // A disk that was lost under its holder is no choice of ours: its process cannot go on.
        let disk_lost = |slot: &Slot| slot.used && slot.volume.is_none();
        if started && quorum && !disk_lost(old) && !moving.insert(&id.role.0) {
            return Err(format!("two members of {} are asked to move at once", id.role));
        }
        let kept = |id: &SlotId, slot: &Slot| !before.is_surplus(id) && !disk_lost(slot);
        let leaving = |other: &(&SlotId, &Slot)| other.0 != id && other.1.releasing && kept(other.0, other.1);
        if started
            && quorum
            && kept(id, old)
            && let Some((other, _)) = before.slots_of(&id.role).find(leaving)
        {
            return Err(format!("{id} is asked to move while {other} is still leaving"));
        }
    }
    for (id, gone) in before.slots.iter().filter(|(id, _)| !after.slots.contains_key(*id)) {
        let proved = |holder: &NodeId| match before.nodes.get(holder).map(|node| node.lifecycle) {
            Some(Lifecycle::Fenced) => true,
            Some(Lifecycle::Lost) => before.role(id).is_some_and(lease_is_proof),
            _ => false,
        };
        if !gone.holder.as_ref().is_none_or(proved) || !before.is_surplus(id) {
            return Err(format!("{id} was removed though it was held or wanted"));
        }
    }
    founders_stay(before, after)?;
    ids_are_new(&before.coordinators, &after.coordinators)
}

fn generations(id: &SlotId, old: &Slot, now: &Slot) -> Result<(), String> {
    if now.generation < old.generation {
        return Err(format!("{id}: generation went back from {} to {}", old.generation, now.generation));
    }
    if now.holder.is_some() && now.holder != old.holder && now.generation == old.generation {
        return Err(format!("{id} changed hands within generation {}", old.generation));
    }
    Ok(())
}

/// Nobody loses a slot without proof that he cannot act on it any more.
fn proved(before: &ClusterState, id: &SlotId, old: &Slot, now: &Slot, from: &NodeId) -> Result<(), String> {
    let holder = before.nodes.get(from);
    let lifecycle = holder.map(|node| node.lifecycle);
    let gone_by = holder.and_then(|node| node.gone_by.as_ref());
    let enough = match &now.proof {
        Some(Proof::InstanceTerminated { node }) => node == from && lifecycle == Some(Lifecycle::Fenced) && gone_by.is_none(),
        Some(Proof::OperatorsWord { node, by }) => node == from && lifecycle == Some(Lifecycle::Fenced) && gone_by == Some(by),
        Some(Proof::LeaseExpired { node }) => {
            node == from && matches!(lifecycle, Some(Lifecycle::Lost | Lifecycle::Fenced)) && before.role(id).is_some_and(lease_is_proof)
        }
        // Given outside plans only: a plan grants under a new generation in the same step, a word does not.
        Some(Proof::AgentWord { node }) => node == from && now.generation == old.generation,
        None => false,
    };
    if enough { Ok(()) } else { Err(format!("{id} was taken from {from} without proof ({:?})", now.proof)) }
}

fn founders_stay(before: &ClusterState, after: &ClusterState) -> Result<(), String> {
    for (role, ensemble) in before.ensembles.iter().filter(|(_, ensemble)| !ensemble.founders.is_empty()) {
        let now = after.ensembles.get(role);
        if now.is_none_or(|now| now.founders != ensemble.founders || now.last_member < ensemble.last_member) {
            return Err(format!("{role} was founded twice, or forgot which ids it gave"));
        }
    }
    Ok(())
}

/// A coordinator's id is given once, and gone for good with its member. A restore is no step: it founds another group, under the numbers of its slots.
fn ids_are_new(before: &Coordinators, after: &Coordinators) -> Result<(), String> {
    if after.last_member < before.last_member {
        return Err(format!("the last coordinator id given went back from {} to {}", before.last_member, after.last_member));
    }
    match after.members.keys().find(|id| !before.members.contains_key(*id) && **id <= before.last_member) {
        Some(id) => Err(format!("coordinator member {id} is new under an id that was given before")),
        None => Ok(()),
    }
}
