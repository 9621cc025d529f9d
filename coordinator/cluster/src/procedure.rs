//! Durable multi-step changes. The recorded step is the state itself (a node that drains, a slot that is releasing); each call looks at the world again
//! and says what may be done next, so any coordinator can carry it on.

use crate::{
    ids::{NodeId, RoleName, SlotId},
    observe::{Observations, Phase},
    planner::{Gate, place},
    state::{ClusterState, Fencing, Lifecycle, Membership, Slot},
};

/// Draining nodes: which of their slots may be released now, and what holds back the others. One member of a quorum at a time, and only while the others are well.
pub fn drain(state: &ClusterState, obs: &Observations) -> (Vec<SlotId>, Vec<Gate>) {
    let mut releases: Vec<SlotId> = Vec::new();
    let mut gates = Vec::new();
    // Room that slots on their way will take is not given away twice.
    let mut room = state.clone();
    for (id, slot) in state.slots.iter().filter(|(_, slot)| slot.releasing) {
        reserve(&mut room, id, place(state, id).or_else(|| slot.holder.clone()));
    }
    for (id, slot) in &state.slots {
        let draining = state.holder(slot).is_some_and(|(_, node)| node.lifecycle == Lifecycle::Draining);
        if !draining || slot.releasing {
            continue;
        }
        match blocked(state, obs, id, &releases) {
            None => match place(&room, id) {
                Some(target) => {
                    reserve(&mut room, id, Some(target));
                    releases.push(id.clone());
                }
                // Stopping it now would stop it for nothing.
                None => gates.push(Gate::new(id, "no other node could take it", takes(slot))),
            },
            Some(gate) => gates.push(gate),
        }
    }
    (releases, gates)
}

fn reserve(room: &mut ClusterState, id: &SlotId, target: Option<NodeId>) {
    if let Some(slot) = room.slots.get_mut(id) {
        slot.holder = target;
    }
}

fn takes(slot: &Slot) -> String {
    match &slot.volume {
        Some(volume) => format!("a node with room joins in {}, where its volume is", volume.zone),
        None => "a node with room joins".to_owned(),
    }
}

fn blocked(state: &ClusterState, obs: &Observations, id: &SlotId, releases: &[SlotId]) -> Option<Gate> {
    let role = state.role(id)?;
    if role.fencing != Fencing::Quorum {
        return None;
    }
    if let Some(other) = releases.iter().find(|other| other.role == id.role) {
        return Some(Gate::new(id, format!("{other} of the same quorum is moving"), format!("{other} is healthy elsewhere")));
    }
    if let Some((other, _)) = state.slots_of(&id.role).find(|(other, slot)| *other != id && !well(obs, other, slot)) {
        return Some(Gate::new(id, format!("{other} of the same quorum is not healthy"), format!("{other} is healthy")));
    }
    if role.membership == Membership::Kafka {
        // roles.md, Kafka 4: before a live broker is taken away.
        match &obs.kafka {
            None => return Some(Gate::new(id, "Kafka's partitions cannot be read", "ZooKeeper answers again")),
            Some(kafka) if kafka.offline + kafka.under_replicated > 0 => {
                let closed = format!("{} partitions are under-replicated, {} offline", kafka.under_replicated, kafka.offline);
                return Some(Gate::new(id, closed, "every partition is fully replicated"));
            }
            Some(_) => {}
        }
    }
    None
}

fn well(obs: &Observations, id: &SlotId, slot: &Slot) -> bool {
    slot.holder.is_some() && !slot.releasing && obs.phase(id, slot.generation) == Phase::Healthy
}

/// Healthy members of a role, as their holders report them at their live generation.
pub fn healthy(state: &ClusterState, obs: &Observations, role: &RoleName) -> usize {
    state.slots_of(role).filter(|(id, slot)| well(obs, id, slot)).count()
}
