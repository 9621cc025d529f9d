//! ZooKeeper's own member list: which one change follows from where the slots are, and what a member starts with.
//!
//! The rules are those of `roles.md` "ZooKeeper", after the project's dynamic-reconfiguration guide: one conditional `reconfig` at a time; a joiner is an
//! observer until it is in sync; a replacement removes the old and adds the new in one command, never 3 to 4; growing and shrinking go by two.

use std::collections::BTreeMap;

use crate::{
    command::Command,
    health::serving,
    ids::{RoleName, SlotId},
    mutant,
    observe::{EnsembleSeen, Observations, Phase},
    report::Gate,
    state::{ClusterState, Ensemble, Lifecycle, Membership, Node, Slot},
};

/// One `reconfig`, conditional on the version of the configuration it was decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconfig {
    /// For whom it is done, or who goes first.
    pub slot: SlotId,
    pub if_version: u64,
    pub remove: Vec<u32>,
    /// Member ids and addresses to add, or to list under a new address: voters, always.
    pub add: Vec<(u32, String)>,
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
    due(state, obs, role).and_then(Result::ok)
}

/// A change of the member list that is wanted and may not be made yet.
pub fn waits(state: &ClusterState, obs: &Observations, role: &RoleName) -> Option<Gate> {
    due(state, obs, role).and_then(Result::err)
}

fn due(state: &ClusterState, obs: &Observations, role: &RoleName) -> Option<Result<Reconfig, Gate>> {
    let seen = obs.zookeeper.as_ref().filter(|_| serving(state, obs, role))?;
    let list = List { state, obs, role, seen };
    list.moved().map(Ok).or_else(|| list.joined()).or_else(|| list.extra())
}

/// The list as it is, beside the slots as they are.
struct List<'a> {
    state: &'a ClusterState,
    obs: &'a Observations,
    role: &'a RoleName,
    seen: &'a EnsembleSeen,
}

impl<'a> List<'a> {
    /// Wanted slots with a holder that may be listed.
    fn placed(&self) -> impl Iterator<Item = (&'a SlotId, &'a Slot, &'a Node)> {
        let slots = self.state.slots_of(self.role).filter(|(id, slot)| !slot.releasing && !self.state.is_surplus(id));
        let held = slots.filter_map(|(id, slot)| Some((id, slot, self.state.holder(slot)?.1)));
        held.filter(|(_, _, node)| node.lifecycle == Lifecycle::Ready)
    }

    fn change(&self, slot: &SlotId, remove: Vec<u32>, add: Vec<(u32, String)>) -> Reconfig {
        Reconfig { slot: slot.clone(), if_version: self.seen.version, remove, add }
    }

    /// Same disk, same id, new address: listed under it before it starts.
    fn moved(&self) -> Option<Reconfig> {
        let elsewhere = |(_, slot, node): &(&SlotId, &Slot, &Node)| self.seen.voters.get(&slot.member_id).is_some_and(|address| *address != node.address);
        let (id, slot, node) = self.placed().find(elsewhere)?;
        Some(self.change(id, Vec::new(), vec![(slot.member_id, node.address.clone())]))
    }

    /// Joiners that are in sync become voters: in the place of the member they replace, or, when the ensemble grows, so that the number of voters stays odd.
    fn joined(&self) -> Option<Result<Reconfig, Gate>> {
        // A joiner answers only once it is in sync; it calls itself follower or observer, as it is not in the committed list yet.
        let in_sync = |(id, slot, _): &(&SlotId, &Slot, &Node)| self.obs.phase(id, slot.generation) == Phase::Healthy || mutant!("joiner-not-in-sync");
        let joiners: Vec<_> = self.placed().filter(|(_, slot, _)| !self.seen.voters.contains_key(&slot.member_id)).filter(in_sync).collect();
        let (id, slot, node) = *joiners.first()?;
        // From observer to voter in one step can fail while a member is down: out, then in again.
        if self.seen.observers.contains(&slot.member_id) {
            return Some(Ok(self.change(id, vec![slot.member_id], Vec::new())));
        }
        let replacing = |(_, slot, _): &&(&SlotId, &Slot, &Node)| slot.retired_member.is_some_and(|old| self.seen.voters.contains_key(&old));
        if let Some((id, slot, node)) = joiners.iter().find(replacing) {
            let old = slot.retired_member.filter(|_| !mutant!("grow-to-replace"));
            return Some(Ok(self.change(id, old.into_iter().collect(), vec![(slot.member_id, node.address.clone())])));
        }
        let add = |(_, slot, node): &(&SlotId, &Slot, &Node)| (slot.member_id, node.address.clone());
        if let Some(orphan) = self.unknown().next() {
            return Some(Ok(self.change(id, vec![orphan], vec![(slot.member_id, node.address.clone())])));
        }
        let voters = self.seen.voters.len();
        let together = if voters.is_multiple_of(2) { 1 } else { 2 };
        if joiners.len() < together {
            let closed = format!("in sync, but {} voters would tolerate no more than {voters} do", voters + 1);
            return Some(Err(Gate::new(id, closed, "a second joiner is in sync: both become voters in one step")));
        }
        Some(Ok(self.change(id, Vec::new(), joiners.iter().take(together).map(add).collect())))
    }

    /// Voters that no slot is any more, though nothing in the log remembers them (a slot lost its disk twice in a row): they would count as dead for ever.
    fn unknown(&self) -> impl Iterator<Item = u32> {
        let known = move |id: u32| self.state.slots_of(self.role).any(|(_, slot)| slot.member_id == id || slot.retired_member == Some(id));
        self.seen.voters.keys().copied().filter(move |id| !known(*id))
    }

    /// Voters beyond those wanted go all in one step, once every wanted one is listed and well: never below what is wanted, and never a live one for a sick one.
    fn extra(&self) -> Option<Result<Reconfig, Gate>> {
        let wanted: Vec<_> = self.state.slots_of(self.role).filter(|(id, _)| !self.state.is_surplus(id)).collect();
        let keeps = |member: u32| wanted.iter().any(|(_, slot)| slot.member_id == member || slot.retired_member == Some(member));
        let extra: Vec<u32> = self.seen.voters.keys().copied().filter(|member| !keeps(*member)).collect();
        let first = extra.first()?;
        let subject = self.state.slots_of(self.role).find(|(_, slot)| slot.member_id == *first).or(wanted.first().copied()).map(|(id, _)| id)?;
        let ready = |(id, slot): &&(&SlotId, &Slot)| {
            self.seen.voters.contains_key(&slot.member_id) && slot.retired_member.is_none() && self.obs.phase(id, slot.generation) == Phase::Healthy
        };
        match wanted.iter().find(|slot| !ready(slot)) {
            Some((id, _)) => {
                Some(Err(Gate::new(subject, format!("one voter too many, but {id} is not a healthy voter"), format!("{id} votes and is healthy"))))
            }
            None => Some(Ok(self.change(subject, extra, Vec::new()))),
        }
    }
}

/// The list as it was read, for the log: what members come back under when nobody can be asked.
pub fn listed(state: &ClusterState, obs: &Observations, role: &RoleName) -> Option<Command> {
    let ensemble = state.ensembles.get(role).filter(|ensemble| !ensemble.founders.is_empty())?;
    let seen = obs.zookeeper.as_ref().filter(|seen| seen.version > ensemble.list_version && !seen.voters.is_empty())?;
    Some(Command::VotersListed { role: role.clone(), version: seen.version, voters: seen.voters.keys().copied().collect() })
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
    // With slots beyond those wanted on their way out, the number could be even.
    let all = !members.is_empty() && members.len() == state.slots_of(role).count() && !members.keys().any(|id| state.is_surplus(id));
    all.then(|| Command::EnsembleFounded { role: role.clone(), members })
}

/// A list of servers to start with: member id, address, votes.
pub type Servers = Vec<(u32, String, bool)>;

/// How the holder of a slot starts it. None: it may not start yet, because the list it would need cannot be known.
///
/// The founders' list may lack one founder (its slot has no node just now), never two: with one missing of an odd number a majority is still as large as
/// before, so any two founders' quorums share a member; with two missing, a late founder could be a quorum of its own.
pub fn join(state: &ClusterState, obs: &Observations, id: &SlotId) -> Option<Join> {
    let slot = state.slots.get(id)?;
    state.holder(slot)?;
    let ensemble = state.ensembles.get(&id.role)?;
    let seen = obs.zookeeper.as_ref();
    if !slot.used && ensemble.founders.contains(&slot.member_id) {
        let placed = state.slots_of(&id.role).filter(|(_, slot)| ensemble.founders.contains(&slot.member_id) && state.holder(slot).is_some()).count();
        return (placed + 1 >= ensemble.founders.len()).then_some(Join::Founder);
    }
    match seen {
        Some(seen) if seen.voters.contains_key(&slot.member_id) => Some(Join::Member),
        Some(_) => Some(Join::Observer),
        // The list cannot be read (no quorum): a disk that was a voter's comes back as one.
        None if slot.used && voted(ensemble, slot) => Some(Join::Member),
        // Two joiners that made up their own list could form a quorum of their own.
        None => None,
    }
}

/// Whether a slot's member votes, as the log has it; a log from before lists were recorded knows only who is replacing somebody. One that is still replacing
/// another, or came to make the ensemble larger, is not a voter yet.
fn voted(ensemble: &Ensemble, slot: &Slot) -> bool {
    if ensemble.voters.is_empty() { slot.retired_member.is_none() } else { ensemble.voters.contains(&slot.member_id) }
}

/// How the holder of a slot starts it ([`join`]), and the list it starts with.
pub fn start_list(state: &ClusterState, obs: &Observations, id: &SlotId) -> Option<(Join, Servers)> {
    let join = join(state, obs, id)?;
    let slot = state.slots.get(id)?;
    let (_, node) = state.holder(slot)?;
    let ensemble = state.ensembles.get(&id.role)?;
    let placed = || state.slots_of(&id.role).filter_map(|(_, slot)| Some((slot, state.holder(slot)?.1.address.clone())));
    let mut list: BTreeMap<u32, (String, bool)> = match (join, &obs.zookeeper) {
        (Join::Founder, _) => {
            placed().filter(|(slot, _)| ensemble.founders.contains(&slot.member_id)).map(|(slot, address)| (slot.member_id, (address, true))).collect()
        }
        (_, Some(seen)) => seen.voters.iter().map(|(member, address)| (*member, (address.clone(), true))).collect(),
        (_, None) => placed().filter(|(slot, _)| voted(ensemble, slot)).map(|(slot, address)| (slot.member_id, (address, true))).collect(),
    };
    list.insert(slot.member_id, (node.address.clone(), join != Join::Observer));
    Some((join, list.into_iter().map(|(member, (address, votes))| (member, address, votes)).collect()))
}
