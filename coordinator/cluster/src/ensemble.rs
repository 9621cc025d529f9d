//! ZooKeeper's own member list: which one change follows from where the slots are, and what a member starts with.
//!
//! The rules are those of `roles.md` "ZooKeeper", after the project's dynamic-reconfiguration guide: one conditional `reconfig` at a time; a joiner is an
//! observer until it is in sync; a replacement removes the old and adds the new in one command, never 3 to 4.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    command::Command,
    health::serving,
    ids::{RoleName, SlotId},
    observe::{EnsembleSeen, Observations, Phase},
    state::{ClusterState, Lifecycle, Membership},
};

/// One `reconfig`, conditional on the version of the configuration it was decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconfig {
    pub slot: SlotId,
    pub if_version: u64,
    pub remove: Option<u32>,
    /// Member id and address to add, or to list under a new address.
    pub add: (u32, String),
}

/// How a member starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// Of the first configuration.
    Founder,
    /// A voter that comes back with its disk.
    Member,
    /// New to the ensemble: observes until it is in sync and `reconfig` makes it a voter.
    Observer,
}

/// The next change of the member list, if one is due.
pub fn next(state: &ClusterState, obs: &Observations, role: &RoleName) -> Option<Reconfig> {
    let seen = obs.zookeeper.as_ref().filter(|_| serving(state, obs, role))?;
    for (id, slot) in state.slots_of(role) {
        let Some((_, node)) = state.holder(slot) else { continue };
        if slot.releasing || node.lifecycle != Lifecycle::Ready {
            continue;
        }
        match seen.voters.get(&slot.member_id) {
            Some(address) if *address == node.address => {}
            Some(_) => {
                // Same disk, same id, new address: listed under it before it starts.
                return Some(Reconfig { slot: id.clone(), if_version: seen.version, remove: None, add: (slot.member_id, node.address.clone()) });
            }
            None => {
                // A joiner answers only once it is in sync; it calls itself follower or observer, as it is not in the committed list yet.
                let in_sync = obs.phase(id, slot.generation) == Phase::Healthy;
                if in_sync {
                    let remove = slot.retired_member.filter(|old| seen.voters.contains_key(old)).or_else(|| orphan(state, seen, role));
                    return Some(Reconfig { slot: id.clone(), if_version: seen.version, remove, add: (slot.member_id, node.address.clone()) });
                }
            }
        }
    }
    None
}

/// A voter that no slot is any more, though nothing in the log remembers it (its slot lost its disk twice in a row): it would count as dead for ever.
fn orphan(state: &ClusterState, seen: &EnsembleSeen, role: &RoleName) -> Option<u32> {
    let known = |id: u32| state.slots_of(role).any(|(_, slot)| slot.member_id == id || slot.retired_member == Some(id));
    seen.voters.keys().copied().find(|id| !known(*id))
}

/// Retired members that the ensemble does not list any more.
pub fn removed(state: &ClusterState, obs: &Observations) -> Vec<Command> {
    let Some(seen) = &obs.zookeeper else { return Vec::new() };
    let zookeeper = state.slots.iter().filter(|(id, _)| state.role(id).is_some_and(|role| role.membership == Membership::ZooKeeper));
    let gone = zookeeper.filter_map(|(id, slot)| {
        let old = slot.retired_member?;
        let done = !seen.voters.contains_key(&old) && seen.voters.contains_key(&slot.member_id);
        done.then(|| Command::MemberRemoved { slot: id.clone(), member_id: old })
    });
    gone.collect()
}

/// The founding, once every wanted member has a node and before any of them starts.
pub fn founding(state: &ClusterState, role: &RoleName) -> Option<Command> {
    if state.ensembles.get(role).is_some_and(|ensemble| !ensemble.founders.is_empty()) {
        return None;
    }
    let members: BTreeMap<SlotId, u32> =
        state.slots_of(role).filter(|(_, slot)| slot.holder.is_some()).map(|(id, slot)| (id.clone(), slot.member_id)).collect();
    let all = !members.is_empty() && members.len() == state.slots_of(role).count();
    all.then(|| Command::EnsembleFounded { role: role.clone(), members })
}

/// A list of servers to start with: member id, address, votes.
pub type Servers = Vec<(u32, String, bool)>;

/// How the holder of a slot starts it, and the list it starts with. None: it may not start yet, because the list it would need
/// cannot be known.
///
/// The founders' list may lack one founder (its slot has no node just now), never two: with one missing of an odd number a majority is still as large as
/// before, so any two founders' quorums share a member; with two missing, a late founder could be a quorum of its own.
pub fn start_list(state: &ClusterState, obs: &Observations, id: &SlotId) -> Option<(Join, Servers)> {
    let slot = state.slots.get(id)?;
    let (_, node) = state.holder(slot)?;
    let founders = &state.ensembles.get(&id.role)?.founders;
    let seen = obs.zookeeper.as_ref();
    let placed: BTreeMap<u32, String> =
        state.slots_of(&id.role).filter_map(|(_, slot)| Some((slot.member_id, state.holder(slot)?.1.address.clone()))).collect();
    let join = match seen {
        _ if !slot.used && founders.contains(&slot.member_id) => Join::Founder,
        Some(seen) if seen.voters.contains_key(&slot.member_id) => Join::Member,
        // The list cannot be read (no quorum): a disk that was a voter's comes back as one.
        None if slot.used && slot.retired_member.is_none() => Join::Member,
        _ => Join::Observer,
    };
    match join {
        Join::Founder if founders.iter().filter(|member| !placed.contains_key(member)).count() > 1 => return None,
        // Two joiners that made up their own list could form a quorum of their own.
        Join::Observer if seen.is_none() => return None,
        _ => {}
    }
    // Members as the log knows them; one that is still replacing another is not a voter yet.
    let pending: BTreeSet<u32> = state.slots_of(&id.role).filter(|(_, slot)| slot.retired_member.is_some()).map(|(_, slot)| slot.member_id).collect();
    let mut list: BTreeMap<u32, (String, bool)> = match (join, seen) {
        (Join::Founder, _) => founders.iter().filter_map(|member| Some((*member, (placed.get(member)?.clone(), true)))).collect(),
        (_, Some(seen)) => seen.voters.iter().map(|(member, address)| (*member, (address.clone(), true))).collect(),
        (_, None) => placed.into_iter().filter(|(member, _)| !pending.contains(member)).map(|(member, address)| (member, (address, true))).collect(),
    };
    list.insert(slot.member_id, (node.address.clone(), join != Join::Observer));
    Some((join, list.into_iter().map(|(member, (address, votes))| (member, address, votes)).collect()))
}
