//! What must hold in every state, checked by tests after each command.

use std::collections::BTreeSet;

use crate::{
    coordinators::{Coordinators, Standing},
    requests::REMEMBERED,
    state::{ClusterState, EVENT_RING},
};

/// The first broken rule, as a sentence.
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
        if slot.member_id != 0 && !members.insert((&id.role, slot.member_id)) {
            return Err(format!("member id {} of {} is used twice", slot.member_id, id.role));
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
