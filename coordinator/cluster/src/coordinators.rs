//! The coordinators themselves, as the state knows them: the slots that are wanted, the members that fill them under ids that are never
//! given twice, and which of them EC2 has declared terminated. Who votes is decided by the log's own membership entries; [`configured`]
//! copies it here. Left out: which membership entry comes next (`membership`).
//!
//! ```text
//! instance asks ─> Join (fresh id) ─> learner ─┬─ caught up ─> voter, in one change with the removal of its slot's fenced voter
//!                                              └─ terminated ─> reaped
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    apply::Events,
    command::{Event, Rejection},
    ids::{MemberId, NodeId, Revision, Zone},
    state::ClusterState,
};

/// Most coordinators: more add round trips and no safety that anybody asked for.
pub const MOST_COORDINATORS: usize = 7;

/// Where a coordinator is wanted: an address that outlives its instances.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CoordinatorSlot {
    pub address: String,
    pub zone: Zone,
    /// Its single-instance Auto Scaling Group.
    pub group: String,
}

/// What a member is in the Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Standing {
    /// Has its id; the group does not know it yet.
    Joining,
    Learner,
    Voter,
}

/// One disk that takes part, or took part until it was fenced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Member {
    pub slot: u32,
    /// Its slot's; kept here, because a member is spoken to until it is removed, wanted or not.
    pub address: String,
    /// None: a founder that no leader has asked yet.
    pub instance: Option<NodeId>,
    pub standing: Standing,
    /// EC2 says its instance is terminated: proof that it never acts again.
    pub fenced: bool,
    /// The newest `apply_version` its program knows.
    pub supports: u32,
    /// A majority had another state at this index: it has stopped.
    pub differs_at: Option<Revision>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Coordinators {
    /// Wanted: 1, 3 or 5 of them.
    pub slots: BTreeMap<u32, CoordinatorSlot>,
    pub members: BTreeMap<MemberId, Member>,
    /// Highest id ever given.
    pub last_member: MemberId,
}

/// A change of the group's account; who votes changes by membership entries alone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum CoordinatorChange {
    /// Replaces the wanted slots. A slot keeps its address for life.
    Want { slots: BTreeMap<u32, CoordinatorSlot> },
    /// A member said which instance and program it is.
    Seen { member: MemberId, instance: NodeId, supports: u32 },
    /// EC2 says the member's instance is terminated.
    Fenced { member: MemberId },
    /// A verified instance of the slot's group, with an empty disk, is to become a member: it gets an id.
    Join { slot: u32, instance: NodeId, supports: u32 },
    /// A majority has another state than this member at the same index.
    Differs { member: MemberId, at: Revision },
    /// It has caught up and agrees again.
    Agrees { member: MemberId },
}

impl Coordinators {
    /// The first members of a new group: one for each slot, under the slot's number.
    pub fn founded(slots: BTreeMap<u32, CoordinatorSlot>, supports: u32) -> Self {
        let member = |slot: u32, at: &CoordinatorSlot| Member {
            slot,
            address: at.address.clone(),
            instance: None,
            standing: Standing::Voter,
            fenced: false,
            supports,
            differs_at: None,
        };
        let members: BTreeMap<MemberId, Member> = slots.iter().map(|(slot, at)| (MemberId(u64::from(*slot)), member(*slot, at))).collect();
        let last_member = members.keys().last().copied().unwrap_or_default();
        Self { slots, members, last_member }
    }

    /// The member that speaks for a slot: its voter, else the newest.
    pub fn of_slot(&self, slot: u32) -> Option<(MemberId, &Member)> {
        let mine = self.members.iter().filter(|(_, member)| member.slot == slot);
        mine.max_by_key(|(id, member)| (member.standing == Standing::Voter, **id)).map(|(id, member)| (*id, member))
    }

    /// The member an instance is.
    pub fn of_instance(&self, instance: &NodeId) -> Option<(MemberId, &Member)> {
        self.members.iter().rev().find(|(_, member)| member.instance.as_ref() == Some(instance)).map(|(id, member)| (*id, member))
    }
}

pub(crate) fn change(state: &mut ClusterState, change: &CoordinatorChange, events: &mut Events) -> Result<(), Rejection> {
    let group = &mut state.coordinators;
    match change {
        CoordinatorChange::Want { slots } => want(group, slots, events),
        CoordinatorChange::Seen { member, instance, supports } => {
            let found = known(group, *member)?;
            if found.instance.as_ref().is_some_and(|kept| kept != instance) {
                return Err(Rejection::Impossible(format!("member {member} is another instance: an id belongs to one disk")));
            }
            found.instance = Some(instance.clone());
            found.supports = *supports;
            Ok(())
        }
        CoordinatorChange::Fenced { member } => {
            let found = known(group, *member)?;
            if found.fenced {
                return Err(Rejection::Impossible(format!("member {member} was fenced before")));
            }
            found.fenced = true;
            let (slot, joining) = (found.slot, found.standing == Standing::Joining);
            if joining {
                group.members.remove(member);
            }
            events.say("coordinator fenced", coordinator(slot), format!("EC2 says the instance of member {member} is terminated"));
            Ok(())
        }
        CoordinatorChange::Join { slot, instance, supports } => join(group, *slot, instance, *supports, events),
        CoordinatorChange::Differs { member, at } => {
            let found = known(group, *member)?;
            found.differs_at = Some(*at);
            let slot = found.slot;
            events.say("state mismatch", coordinator(slot), format!("member {member} has another state than the majority at index {at}: it stops"));
            Ok(())
        }
        CoordinatorChange::Agrees { member } => {
            let found = known(group, *member)?;
            found.differs_at = None;
            let slot = found.slot;
            events.say("state agrees", coordinator(slot), format!("member {member}"));
            Ok(())
        }
    }
}

fn want(group: &mut Coordinators, slots: &BTreeMap<u32, CoordinatorSlot>, events: &mut Events) -> Result<(), Rejection> {
    if slots.len().is_multiple_of(2) || slots.len() > MOST_COORDINATORS || slots.contains_key(&0) {
        return Err(Rejection::BadSpec(format!(
            "{} coordinators: use 1, 3 or 5, numbered from 1; an even number tolerates no more than one fewer",
            slots.len()
        )));
    }
    let addresses: BTreeSet<&str> = slots.values().map(|slot| slot.address.as_str()).collect();
    if addresses.len() != slots.len() {
        return Err(Rejection::BadSpec("two coordinators cannot have one address".to_owned()));
    }
    if let Some((number, _)) = slots.iter().find(|(number, slot)| group.slots.get(number).is_some_and(|kept| kept != *slot)) {
        return Err(Rejection::BadSpec(format!("coordinator {number} keeps its address, zone and group: remove it and add another")));
    }
    let numbers = |slots: &BTreeMap<u32, CoordinatorSlot>| slots.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    events.say("coordinators wanted", "coordinators", format!("{}; before: {}", numbers(slots), numbers(&group.slots)));
    group.slots.clone_from(slots);
    group.members.retain(|_, member| member.standing != Standing::Joining || slots.contains_key(&member.slot));
    Ok(())
}

fn join(group: &mut Coordinators, slot: u32, instance: &NodeId, supports: u32, events: &mut Events) -> Result<(), Rejection> {
    let Some(at) = group.slots.get(&slot) else {
        return Err(Rejection::Impossible(format!("coordinator {slot} is not wanted: see 'vpctl coordinators'")));
    };
    for (id, member) in &group.members {
        // The same instance has lost the disk of an id under which it never voted: that id is given up.
        let given_up = member.instance.as_ref() == Some(instance) && member.standing != Standing::Voter;
        if member.slot == slot && !member.fenced && !given_up {
            let instance = member.instance.as_ref().map_or_else(|| "an instance not known yet".to_owned(), ToString::to_string);
            return Err(Rejection::MemberLives { slot, member: *id, instance });
        }
    }
    for member in group.members.values_mut().filter(|member| member.slot == slot) {
        member.fenced = true;
    }
    group.members.retain(|_, member| member.slot != slot || member.standing != Standing::Joining);
    group.last_member = MemberId(group.last_member.0 + 1);
    let address = at.address.clone();
    let member = Member { slot, address, instance: Some(instance.clone()), standing: Standing::Joining, fenced: false, supports, differs_at: None };
    group.members.insert(group.last_member, member);
    events.say("coordinator joins", coordinator(slot), format!("{instance} as member {}", group.last_member));
    Ok(())
}

/// The state that a new group begins with. `apply_version`: the rules that all founders know.
pub fn founded(slots: BTreeMap<u32, CoordinatorSlot>, apply_version: u32) -> ClusterState {
    ClusterState { apply_version, coordinators: Coordinators::founded(slots, apply_version), ..ClusterState::default() }
}

/// Copies what a membership entry at `index` made of the group. `voters` and `learners` include those on their way in or out.
pub fn configured(state: &mut ClusterState, index: u64, voters: &BTreeSet<MemberId>, learners: &BTreeSet<MemberId>) -> Vec<Arc<Event>> {
    state.revision = state.revision.max(Revision(index));
    // A membership entry carries no clock: for people, the last one read will do.
    let unix_ms = state.events.back().map_or(0, |event| event.unix_ms);
    let mut events = Events::new(state.revision, unix_ms);
    let mut gone = Vec::new();
    for (id, member) in &mut state.coordinators.members {
        let now = if voters.contains(id) {
            Standing::Voter
        } else if learners.contains(id) {
            Standing::Learner
        } else if member.standing == Standing::Joining {
            continue;
        } else {
            gone.push(*id);
            events.say("coordinator removed", coordinator(member.slot), format!("member {id}"));
            continue;
        };
        if now != member.standing {
            member.standing = now;
            let what = if now == Standing::Voter { "coordinator votes" } else { "coordinator learns" };
            events.say(what, coordinator(member.slot), format!("member {id}"));
        }
    }
    for id in gone {
        state.coordinators.members.remove(&id);
    }
    events.keep(state)
}

fn coordinator(slot: u32) -> String {
    format!("coordinator {slot}")
}

fn known(group: &mut Coordinators, member: MemberId) -> Result<&mut Member, Rejection> {
    group.members.get_mut(&member).ok_or_else(|| Rejection::Impossible(format!("there is no member {member}: see 'vpctl coordinators'")))
}
