//! May the holder start a slot now? A start gate never stops what runs.

use crate::{
    ensemble::join,
    health::Serving,
    ids::SlotId,
    mutant,
    observe::{Observations, VolumeSeen},
    report::Gate,
    state::Membership,
};

/// None: it may start. Otherwise the first closed gate.
pub fn start(serving: &Serving, id: &SlotId) -> Option<Gate> {
    let (state, obs) = (serving.state, serving.obs);
    let slot = state.slots.get(id)?;
    let role = state.role(id)?;
    let (holder, node) = state.holder(slot)?;
    if role.volume {
        let Some(volume) = &slot.volume else {
            if slot.used {
                return Some(Gate::new(id, "its disk is lost", format!("{holder} gives it back and it is granted with an empty disk")));
            }
            return Some(Gate::new(id, "its volume is being created", "EC2 has made it"));
        };
        if obs.volumes.get(&volume.id) != Some(&VolumeSeen::AttachedTo(holder.clone())) {
            return Some(Gate::new(id, format!("volume {} is not attached to {holder} yet", volume.id), "EC2 says attached"));
        }
    }
    for needed in &role.after {
        if !serving.of(needed) {
            return Some(Gate::new(id, format!("{needed} does not serve yet"), format!("enough of {needed} is healthy")));
        }
    }
    match role.membership {
        Membership::None => None,
        Membership::ZooKeeper => zookeeper(serving, id, &node.address),
        Membership::Kafka => kafka(obs, id, slot.member_id, &node.address),
    }
}

/// roles.md, Kafka 3: the id is an ephemeral znode; a replacement waits for the old session to expire.
fn kafka(obs: &Observations, id: &SlotId, member_id: u32, address: &str) -> Option<Gate> {
    let Some(kafka) = &obs.kafka else {
        return Some(Gate::new(id, "live broker sessions cannot be read", "ZooKeeper answers"));
    };
    let old = kafka.registered.get(&member_id).filter(|registered| *registered != address && !mutant!("old-broker-session"))?;
    Some(Gate::new(id, format!("the session of broker {member_id} at {old} is still live"), "ZooKeeper expires it (6 s after its last word)"))
}

/// Founders start once the founding is in the log; a moved member once the ensemble knows its new address, so that both sides agree on the list.
fn zookeeper(serving: &Serving, id: &SlotId, address: &str) -> Option<Gate> {
    let (state, obs) = (serving.state, serving.obs);
    let slot = state.slots.get(id)?;
    let ensemble = state.ensembles.get(&id.role);
    if ensemble.is_none_or(|ensemble| ensemble.founders.is_empty()) {
        return Some(Gate::new(id, "the ensemble is not founded", "every wanted member has a node"));
    }
    if !slot.used && ensemble.is_some_and(|ensemble| ensemble.founders.contains(&slot.member_id)) {
        let several_missing = join(state, obs, id).is_none();
        return several_missing.then(|| Gate::new(id, "more than one founder has no node", "all founders but one have a node"));
    }
    // roles.md, ZooKeeper 2: a joiner's list is the committed one; made up here, two joiners could form a quorum of their own.
    if join(state, obs, id).is_none() {
        return Some(Gate::new(id, "the ensemble's member list cannot be read", "a majority of the ensemble serves"));
    }
    // Without a quorum nothing can be reconfigured: members with their disks come back under the list as vp knows it.
    let seen = obs.zookeeper.as_ref().filter(|_| serving.of(&id.role))?;
    let listed = seen.voters.get(&slot.member_id)?;
    (listed != address)
        .then(|| Gate::new(id, format!("the ensemble lists member {} at {listed}", slot.member_id), format!("reconfig has moved it to {address}")))
}
