//! What is wanted changes: checked as a whole, then slots follow.

use std::collections::BTreeSet;

use super::{Events, plan::LAST_MEMBER_ID};
use crate::{
    command::Rejection,
    ids::{RoleName, SlotId},
    state::{ClusterState, Membership, RoleSpec, Spec},
};

/// Most slots of one role: a bound on what one command may make the state grow to.
pub const MOST_SLOTS: u32 = 1000;
/// Most voters of a ZooKeeper ensemble: with half of the 255 ids at most, a replacement always finds a fresh one.
const MOST_VOTERS: u32 = LAST_MEMBER_ID / 2;

pub fn set(state: &mut ClusterState, spec: &Spec, events: &mut Events) -> Result<(), Rejection> {
    if spec.policy.sources_per_minute == 0 {
        return Err(Rejection::BadSpec("sources_per_minute is 0: no silent node would ever be given up; use at least 1".to_owned()));
    }
    for (name, role) in &spec.roles {
        usable(spec, name, role)?;
        keeps_its_class(state, name, role)?;
    }
    if let Some(gone) = state.slots.keys().find(|slot| !spec.roles.contains_key(&slot.role)) {
        return Err(Rejection::BadSpec(format!("{} still has slots and cannot be taken out", gone.role)));
    }
    state.spec = spec.clone();
    make_slots(state);
    events.say("spec set", "cluster", format!("{} slots wanted", spec.roles.values().map(|role| u64::from(role.pref)).sum::<u64>()));
    Ok(())
}

/// More or fewer slots of one role. Those too many go by the rules of their role, the highest first.
pub fn scale(state: &mut ClusterState, name: &RoleName, pref: u32, events: &mut Events) -> Result<(), Rejection> {
    let Some(role) = state.spec.roles.get(name) else {
        return Err(Rejection::BadSpec(format!("the spec has no role {name}: see 'vpctl roles'")));
    };
    if role.pref == pref {
        return Err(Rejection::BadSpec(format!("{pref} of {name} are wanted already")));
    }
    let was = role.pref;
    let changed = RoleSpec { pref, ..role.clone() };
    usable(&state.spec, name, &changed)?;
    state.spec.roles.insert(name.clone(), changed);
    make_slots(state);
    events.say("role scaled", name, format!("from {was} to {pref}"));
    Ok(())
}

fn make_slots(state: &mut ClusterState) {
    for (name, role) in &state.spec.roles {
        for index in 1..=role.pref {
            state.slots.entry(SlotId { role: name.clone(), index }).or_default();
        }
    }
}

fn usable(spec: &Spec, name: &RoleName, role: &RoleSpec) -> Result<(), Rejection> {
    if role.min > role.pref || role.pref > role.max {
        return Err(Rejection::BadSpec(format!("{name}: min {} <= pref {} <= max {} does not hold", role.min, role.pref, role.max)));
    }
    if role.membership == Membership::ZooKeeper && role.pref.is_multiple_of(2) {
        return Err(Rejection::BadSpec(format!("{name}: an even number of voters ({}) tolerates no more than one fewer; use an odd one", role.pref)));
    }
    for needed in &role.after {
        if !spec.roles.contains_key(needed) {
            return Err(Rejection::BadSpec(format!("{name} comes after {needed}, which the spec does not have")));
        }
    }
    if role.pref > MOST_SLOTS || (role.membership == Membership::ZooKeeper && role.pref > MOST_VOTERS) {
        return Err(Rejection::BadSpec(format!("{name}: {} slots are more than a role can have", role.pref)));
    }
    if comes_after(spec, name, name) {
        return Err(Rejection::BadSpec(format!("{name} comes after itself: it could never start")));
    }
    Ok(())
}

fn keeps_its_class(state: &ClusterState, name: &RoleName, role: &RoleSpec) -> Result<(), Rejection> {
    let Some(now) = state.spec.roles.get(name) else { return Ok(()) };
    let same = (now.fencing, now.fenced_sinks, now.volume, now.membership) == (role.fencing, role.fenced_sinks, role.volume, role.membership);
    if !same && state.slots_of(name).any(|(_, slot)| slot.generation.0 > 0) {
        return Err(Rejection::BadSpec(format!("{name}: fencing, volume and membership cannot change once a slot was granted")));
    }
    Ok(())
}

/// Whether `role` comes, directly or not, after `sought`.
fn comes_after(spec: &Spec, role: &RoleName, sought: &RoleName) -> bool {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&RoleName> = vec![role];
    while let Some(next) = open.pop() {
        for needed in spec.roles.get(next).into_iter().flat_map(|role| &role.after) {
            if needed == sought {
                return true;
            }
            if seen.insert(needed) {
                open.push(needed);
            }
        }
    }
    false
}
