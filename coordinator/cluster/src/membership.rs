//! Which membership entry the coordinators' group needs next. Pure: the leader shows what it sees of the group, one step comes back, and after it
//! the leader looks again; so any leader carries on what another began. The rules (etcd-manager's quorum projection):
//! learner first; promotion and removal of the dead are one joint change; the number of voters stays odd; no step that the living could not outvote.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    coordinators::{Coordinators, Member, Standing},
    ids::MemberId,
    planner::Gate,
};

/// A learner this few entries behind is caught up: it has them within a round trip.
pub const CAUGHT_UP_ENTRIES: u64 = 64;

/// A voter that was silent for this long is not coming back by itself: far above a daemon's restart, an instance's reboot, and any pause that roles outlive.
pub const GONE_AFTER_MS: u64 = 30_000;

/// What the leader sees of one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerSeen {
    /// It has answered lately.
    pub active: bool,
    /// Entries it lacks; all of them while a snapshot is on its way.
    pub behind: u64,
    /// Milliseconds since it last answered, or since this leader began to look.
    pub silent_ms: u64,
}

/// The group as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSeen {
    pub leader: MemberId,
    pub voters: BTreeSet<MemberId>,
    pub learners: BTreeSet<MemberId>,
    /// Between two configurations.
    pub joint: bool,
    pub peers: BTreeMap<MemberId, PeerSeen>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    AddLearner(MemberId),
    /// One joint change.
    Change {
        promote: BTreeSet<MemberId>,
        remove: BTreeSet<MemberId>,
    },
    /// The joint configuration was entered and nobody has left it.
    LeaveJoint,
    /// The leader itself is to be removed: somebody else leads first.
    HandOver(MemberId),
}

/// The next step, if any, and what waits for what.
pub fn next(group: &Coordinators, seen: &GroupSeen) -> (Option<Step>, Vec<Gate>) {
    let mut gates = Vec::new();
    let step = decide(group, seen, &mut gates);
    (step, gates)
}

fn decide(group: &Coordinators, seen: &GroupSeen, gates: &mut Vec<Gate>) -> Option<Step> {
    if seen.joint {
        return Some(Step::LeaveJoint);
    }
    if let Some(step) = reap(group, seen) {
        return Some(step);
    }
    if let Some((id, _)) = group.members.iter().find(|(id, member)| member.standing == Standing::Joining && !seen.learners.contains(id)) {
        return Some(Step::AddLearner(*id));
    }
    replace(group, seen, gates).or_else(|| swap(group, seen, gates)).or_else(|| grow(group, seen, gates)).or_else(|| shrink(group, seen, gates))
}

/// The member whose instance is to be terminated though EC2 says that it runs, so that its group boots a successor: a voter that is silent for long and the
/// only one that is not well, or a learner that never came up while every voter that is not known to be dead answers. Of several silent ones the
/// fault is more likely here (the brake's rule), and two who cannot hear each other decide nothing.
pub fn to_terminate(group: &Coordinators, seen: &GroupSeen) -> Option<MemberId> {
    if seen.joint || seen.voters.len() < 3 {
        return None;
    }
    let gone = |id: &MemberId| {
        let silent = seen.peers.get(id).is_some_and(|peer| peer.silent_ms >= GONE_AFTER_MS);
        silent && group.members.get(id).is_some_and(|member| group.slots.contains_key(&member.slot) && !member.fenced)
    };
    let unwell: Vec<MemberId> = seen.voters.iter().copied().filter(|id| !active(seen, *id)).collect();
    if let [silent] = unwell[..]
        && gone(&silent)
    {
        return Some(silent);
    }
    // A successor that was given its id and hangs would keep its place for ever. The one it replaces is dead and known to be.
    let lives = |id: &MemberId| group.members.get(id).is_some_and(|member| !member.fenced);
    if unwell.iter().any(lives) {
        return None;
    }
    seen.learners.iter().copied().find(|id| !active(seen, *id) && gone(id))
}

/// Learners that never became anything: their instance is terminated, their slot is not wanted any more, or nobody knows them.
fn reap(group: &Coordinators, seen: &GroupSeen) -> Option<Step> {
    let useless = |id: &&MemberId| group.members.get(id).is_none_or(|member| member.fenced || !group.slots.contains_key(&member.slot));
    let remove: BTreeSet<MemberId> = seen.learners.iter().filter(useless).copied().collect();
    // One at a time: removing a learner is a simple change.
    let first = remove.into_iter().next()?;
    Some(Step::Change { promote: BTreeSet::new(), remove: [first].into() })
}

/// A learner whose slot has a fenced voter takes its place.
fn replace(group: &Coordinators, seen: &GroupSeen, gates: &mut Vec<Gate>) -> Option<Step> {
    for (old, dead) in voters(group, seen).filter(|(_, member)| member.fenced && group.slots.contains_key(&member.slot)) {
        let Some((new, _)) = learners(group, seen).find(|(_, member)| member.slot == dead.slot) else {
            let closed = format!("member {old} is terminated");
            gates.push(gate(dead.slot, closed, "the instance that its group boots asks to join"));
            continue;
        };
        if !caught_up(seen, new) {
            gates.push(gate(dead.slot, format!("member {new} has not caught up"), "it has the log, or a snapshot and what follows it"));
            continue;
        }
        let step = (BTreeSet::from([new]), BTreeSet::from([old]));
        if let Some(step) = projected(seen, dead.slot, step, gates) {
            return Some(step);
        }
    }
    None
}

/// A learner of a new slot for a voter of one that is not wanted any more: the number of voters stays as it is. A leader hands over before it is swapped.
fn swap(group: &Coordinators, seen: &GroupSeen, gates: &mut Vec<Gate>) -> Option<Step> {
    let old = voters(group, seen).filter(|(_, member)| !group.slots.contains_key(&member.slot)).map(|(id, _)| id).find(|id| *id != seen.leader)?;
    let voting = |slot: u32| voters(group, seen).any(|(_, member)| member.slot == slot);
    let (new, member) = learners(group, seen).find(|(id, member)| !voting(member.slot) && caught_up(seen, *id))?;
    projected(seen, member.slot, ([new].into(), [old].into()), gates)
}

/// Learners of slots that never had a voter, as many at once as keep the number of voters odd.
fn grow(group: &Coordinators, seen: &GroupSeen, gates: &mut Vec<Gate>) -> Option<Step> {
    let new = |slot: u32| !voters(group, seen).any(|(_, member)| member.slot == slot);
    let ready: Vec<(MemberId, u32)> =
        learners(group, seen).filter(|(id, member)| new(member.slot) && caught_up(seen, *id)).map(|(id, member)| (id, member.slot)).collect();
    let needed = if seen.voters.len().is_multiple_of(2) { 1 } else { 2 };
    let slot = ready.first()?.1;
    if ready.len() < needed {
        gates.push(gate(slot, "the number of voters stays odd".to_owned(), "another new coordinator has caught up"));
        return None;
    }
    let promote = ready.iter().take(needed).map(|(id, _)| *id).collect();
    projected(seen, slot, (promote, BTreeSet::new()), gates)
}

/// Voters of slots that are not wanted any more, all at once.
fn shrink(group: &Coordinators, seen: &GroupSeen, gates: &mut Vec<Gate>) -> Option<Step> {
    let surplus: BTreeSet<MemberId> = voters(group, seen).filter(|(_, member)| !group.slots.contains_key(&member.slot)).map(|(id, _)| id).collect();
    let slot = group.members.get(surplus.first()?)?.slot;
    if surplus.contains(&seen.leader) {
        let heirs = seen.voters.difference(&surplus).filter(|id| active(seen, **id));
        let heir = heirs.min_by_key(|id| (seen.peers.get(id).map_or(0, |peer| peer.behind), **id));
        if heir.is_none() {
            gates.push(gate(slot, "it leads, and nobody who stays answers".to_owned(), "one of them does"));
        }
        return heir.copied().map(Step::HandOver);
    }
    if (seen.voters.len() - surplus.len()).is_multiple_of(2) {
        gates.push(gate(slot, "the number of voters stays odd".to_owned(), "the wanted coordinators have joined"));
        return None;
    }
    projected(seen, slot, (BTreeSet::new(), surplus), gates)
}

/// The change, if those who live could outvote the rest afterwards.
fn projected(seen: &GroupSeen, slot: u32, (promote, remove): (BTreeSet<MemberId>, BTreeSet<MemberId>), gates: &mut Vec<Gate>) -> Option<Step> {
    let after: BTreeSet<MemberId> = seen.voters.union(&promote).filter(|id| !remove.contains(id)).copied().collect();
    let alive = after.iter().filter(|id| active(seen, **id)).count();
    if alive * 2 <= after.len() {
        gates.push(gate(slot, format!("only {alive} of the {} voters that would follow answer", after.len()), "more of them answer"));
        return None;
    }
    Some(Step::Change { promote, remove })
}

fn voters<'a>(group: &'a Coordinators, seen: &'a GroupSeen) -> impl Iterator<Item = (MemberId, &'a Member)> {
    group.members.iter().filter(|(id, _)| seen.voters.contains(id)).map(|(id, member)| (*id, member))
}

/// Those that may be promoted.
fn learners<'a>(group: &'a Coordinators, seen: &'a GroupSeen) -> impl Iterator<Item = (MemberId, &'a Member)> {
    let usable = |(id, member): &(&MemberId, &Member)| seen.learners.contains(id) && !member.fenced;
    group.members.iter().filter(usable).map(|(id, member)| (*id, member))
}

fn active(seen: &GroupSeen, id: MemberId) -> bool {
    id == seen.leader || seen.peers.get(&id).is_some_and(|peer| peer.active)
}

fn caught_up(seen: &GroupSeen, id: MemberId) -> bool {
    seen.peers.get(&id).is_some_and(|peer| peer.active && peer.behind <= CAUGHT_UP_ENTRIES)
}

fn gate(slot: u32, closed_by: String, opens_when: &str) -> Gate {
    Gate::new(format!("coordinator {slot}"), closed_by, opens_when)
}
