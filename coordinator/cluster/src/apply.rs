//! The one function that changes the state. Total: every command either changes it and says how, or is refused and says why.

use std::collections::BTreeSet;

use crate::{
    command::{Action, Command, Event, Plan, Rejection},
    coordinators,
    ids::{Generation, NodeId, Revision, RoleName, Session, SlotId, VolumeId, Zone},
    state::{ClusterState, EVENT_RING, Fencing, Lifecycle, Membership, Node, Proof, Slot, Spec, Volume},
    version,
};

/// Highest member id ZooKeeper accepts (its `myid` is one byte, 1 to 255).
pub const LAST_MEMBER_ID: u32 = 255;
/// Most slots of one role: a bound on what one command may make the state grow to.
pub const MOST_SLOTS: u32 = 1000;

/// Applies one command at a Raft index. Equal states and commands give equal results. The revision advances in every case.
///
/// # Errors
/// [`Rejection`]: nothing but the revision has changed.
pub fn apply(state: &mut ClusterState, index: u64, unix_ms: u64, command: &Command) -> Result<Vec<Event>, Rejection> {
    let based_on = state.revision;
    if index < based_on.0 {
        return Err(Rejection::Impossible(format!("entry {index} comes after revision {based_on}: a revision never goes back")));
    }
    state.revision = Revision(index);
    let mut events = Events::new(state.revision, unix_ms);
    let outcome = change(state, based_on, command, &mut events);
    outcome?;
    Ok(events.keep(state))
}

pub(crate) struct Events {
    revision: Revision,
    unix_ms: u64,
    list: Vec<Event>,
}

impl Events {
    pub(crate) fn new(revision: Revision, unix_ms: u64) -> Self {
        Self { revision, unix_ms, list: Vec::new() }
    }

    /// Adds them to the state's ring.
    pub(crate) fn keep(self, state: &mut ClusterState) -> Vec<Event> {
        state.events.extend(self.list.iter().cloned());
        while state.events.len() > EVENT_RING {
            state.events.pop_front();
        }
        self.list
    }

    pub(crate) fn say(&mut self, kind: &str, subject: impl ToString, detail: impl ToString) {
        self.list.push(Event {
            revision: self.revision,
            unix_ms: self.unix_ms,
            kind: kind.to_owned(),
            subject: subject.to_string(),
            detail: detail.to_string(),
        });
    }
}

fn change(state: &mut ClusterState, before: Revision, command: &Command, events: &mut Events) -> Result<(), Rejection> {
    match command {
        Command::SetSpec { spec } => set_spec(state, spec, events),
        Command::RegisterNode { node, address, zone, instance_type, memory_mib, cpu_millis, agent_version } => {
            let new = Node {
                address: address.clone(),
                zone: zone.clone(),
                instance_type: instance_type.clone(),
                memory_mib: *memory_mib,
                cpu_millis: *cpu_millis,
                session: Session(state.revision.0),
                lifecycle: Lifecycle::Ready,
                cordoned: false,
                agent_version: agent_version.clone(),
            };
            register(state, node, new, events)
        }
        Command::NodeLost { node, session, silent_ms } => {
            let found = node_mut(state, node)?;
            live_session(node, found, *session)?;
            if matches!(found.lifecycle, Lifecycle::Lost | Lifecycle::Fenced) {
                return Err(Rejection::NodeState { node: node.clone(), state: "lost already".into(), todo: "nothing to do".into() });
            }
            found.lifecycle = Lifecycle::Lost;
            events.say("node lost", node, format!("silent for {silent_ms} ms; its instance is to be terminated"));
            Ok(())
        }
        Command::NodeFenced { node } => {
            let found = node_mut(state, node)?;
            if found.lifecycle == Lifecycle::Fenced {
                return Err(Rejection::NodeState { node: node.clone(), state: "fenced already".into(), todo: "nothing to do".into() });
            }
            found.lifecycle = Lifecycle::Fenced;
            events.say("node fenced", node, "EC2 says terminated");
            Ok(())
        }
        Command::SetDraining { node, draining } => {
            let found = node_mut(state, node)?;
            found.lifecycle = match (found.lifecycle, draining) {
                (Lifecycle::Ready | Lifecycle::Draining, true) => Lifecycle::Draining,
                (Lifecycle::Ready | Lifecycle::Draining, false) => Lifecycle::Ready,
                _ => return Err(Rejection::NodeState { node: node.clone(), state: "lost or fenced".into(), todo: "its slots move without a drain".into() }),
            };
            events.say(if *draining { "drain started" } else { "drain ended" }, node, "");
            Ok(())
        }
        Command::Plan(plan) => carry_out(state, before, plan, events),
        Command::SlotReleased { slot, generation, node } => {
            let found = slot_at(state, slot, *generation)?;
            if found.holder.as_ref() != Some(node) {
                return Err(Rejection::Impossible(format!("{slot} is not held by {node}")));
            }
            vacate(found, Proof::AgentWord { node: node.clone() });
            events.say("slot released", slot, format!("by {node}"));
            Ok(())
        }
        Command::VolumeCreated { slot, generation, volume, zone } => {
            volume_fits(state, slot, volume, zone)?;
            let found = slot_at(state, slot, *generation)?;
            if found.volume.is_some() {
                return Err(Rejection::Impossible(format!("{slot} has a volume already")));
            }
            if found.used {
                return Err(Rejection::Impossible(format!("the disk of {slot} is lost: it gets a new one with its next grant, never under the old identity")));
            }
            found.volume = Some(Volume { id: volume.clone(), zone: zone.clone() });
            events.say("volume created", slot, format!("{volume} in {zone}"));
            Ok(())
        }
        Command::VolumeLost { slot, volume } => {
            let found = slot_mut(state, slot)?;
            if found.volume.as_ref().map(|kept| &kept.id) != Some(volume) {
                return Err(Rejection::Impossible(format!("{slot} does not own {volume}")));
            }
            found.volume = None;
            // Whatever was on it counts as written: the empty-disk path applies, never a first start.
            found.used = true;
            events.say("volume lost", slot, format!("{volume} does not exist any more"));
            Ok(())
        }
        Command::SlotUsed { slot, generation } => {
            let owns = state.role(slot).is_some_and(|role| role.volume);
            let found = slot_at(state, slot, *generation)?;
            if found.holder.is_none() || (owns && found.volume.is_none()) {
                return Err(Rejection::Impossible(format!("{slot} has no holder or no disk: nothing was written for it")));
            }
            found.used = true;
            events.say("slot healthy", slot, format!("generation {generation}, first time on this disk"));
            Ok(())
        }
        Command::EnsembleFounded { role, members } => {
            let ensemble = state.ensembles.entry(role.clone()).or_default();
            if !ensemble.founders.is_empty() {
                return Err(Rejection::Impossible(format!("the {role} ensemble was founded before")));
            }
            ensemble.founders = members.values().copied().collect();
            events.say("ensemble founded", role, format!("members {:?}", ensemble.founders));
            Ok(())
        }
        Command::MemberRemoved { slot, member_id } => {
            let found = slot_mut(state, slot)?;
            if found.retired_member != Some(*member_id) {
                return Err(Rejection::Impossible(format!("{slot} has not retired member {member_id}")));
            }
            found.retired_member = None;
            events.say("member replaced", slot, format!("{member_id} is out, {} is in", found.member_id));
            Ok(())
        }
        Command::Coordinators(change) => coordinators::change(state, change, events),
        Command::RaiseApplyVersion { to } => version::raise(state, *to, events),
        Command::Note { kind, subject, detail } => {
            events.say(kind, subject, detail);
            Ok(())
        }
    }
}

fn set_spec(state: &mut ClusterState, spec: &Spec, events: &mut Events) -> Result<(), Rejection> {
    for (name, role) in &spec.roles {
        if role.min > role.pref || role.pref > role.max {
            return Err(Rejection::BadSpec(format!("{name}: min {} <= pref {} <= max {} does not hold", role.min, role.pref, role.max)));
        }
        if role.membership == Membership::ZooKeeper && role.pref % 2 == 0 {
            return Err(Rejection::BadSpec(format!("{name}: an even number of voters ({}) tolerates no more than one fewer; use an odd one", role.pref)));
        }
        for needed in &role.after {
            if !spec.roles.contains_key(needed) {
                return Err(Rejection::BadSpec(format!("{name} comes after {needed}, which the spec does not have")));
            }
        }
        if role.pref > MOST_SLOTS || (role.membership == Membership::ZooKeeper && role.pref > LAST_MEMBER_ID) {
            return Err(Rejection::BadSpec(format!("{name}: {} slots are more than a role can have", role.pref)));
        }
        if comes_after(spec, name, name) {
            return Err(Rejection::BadSpec(format!("{name} comes after itself: it could never start")));
        }
        if let Some(now) = state.spec.roles.get(name) {
            let same = (now.fencing, now.fenced_sinks, now.volume, now.membership) == (role.fencing, role.fenced_sinks, role.volume, role.membership);
            if !same && state.slots_of(name).any(|(_, slot)| slot.generation.0 > 0) {
                return Err(Rejection::BadSpec(format!("{name}: fencing, volume and membership cannot change once a slot was granted")));
            }
        }
        if state.slots_of(name).count() > role.pref as usize {
            return Err(Rejection::BadSpec(format!("{name}: shrinking to {} is not possible yet", role.pref)));
        }
    }
    if let Some(gone) = state.slots.keys().find(|slot| !spec.roles.contains_key(&slot.role)) {
        return Err(Rejection::BadSpec(format!("{} still has slots and cannot be taken out", gone.role)));
    }
    state.spec = spec.clone();
    for (name, role) in &spec.roles {
        for index in 1..=role.pref {
            state.slots.entry(SlotId { role: name.clone(), index }).or_default();
        }
    }
    events.say("spec set", "cluster", format!("{} slots wanted", state.slots.len()));
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

fn register(state: &mut ClusterState, id: &NodeId, mut new: Node, events: &mut Events) -> Result<(), Rejection> {
    if let Some(old) = state.nodes.get(id) {
        if matches!(old.lifecycle, Lifecycle::Lost | Lifecycle::Fenced) {
            return Err(Rejection::NodeState { node: id.clone(), state: "lost".into(), todo: "this instance will be replaced".into() });
        }
        if old.zone != new.zone {
            return Err(Rejection::Impossible(format!("{id} is in {}: an instance never changes its zone", old.zone)));
        }
        // The same instance with a new session keeps what it holds: an agent restart moves nothing.
        new.lifecycle = old.lifecycle;
        new.cordoned = old.cordoned;
        events.say("node returned", id, format!("session {}", new.session));
    } else {
        events.say("node joined", id, format!("{} {} {}", new.address, new.zone, new.instance_type));
    }
    state.nodes.insert(id.clone(), new);
    Ok(())
}

fn carry_out(state: &mut ClusterState, before: Revision, plan: &Plan, events: &mut Events) -> Result<(), Rejection> {
    if plan.based_on != before {
        return Err(Rejection::Stale { based_on: plan.based_on, revision: before });
    }
    // All or nothing: the actions are tried on a copy of what they touch.
    let mut next = ClusterState { events: Default::default(), ..state.clone() };
    for action in &plan.actions {
        act(&mut next, action, events)?;
    }
    next.events = std::mem::take(&mut state.events);
    *state = next;
    Ok(())
}

fn act(state: &mut ClusterState, action: &Action, events: &mut Events) -> Result<(), Rejection> {
    match action {
        Action::Vacate { slot, proof } => {
            let fencing = role_of(state, slot)?;
            let found = slot_mut(state, slot)?;
            let Some(holder) = found.holder.clone() else {
                return Err(Rejection::Impossible(format!("{slot} has no holder")));
            };
            if !proves(state, &holder, fencing, proof) {
                return Err(Rejection::NoProof { slot: slot.clone(), node: holder });
            }
            vacate(slot_mut(state, slot)?, proof.clone());
            events.say("slot vacated", slot, proof);
        }
        Action::Release { slot } => {
            let found = slot_mut(state, slot)?;
            if found.holder.is_none() || found.releasing {
                return Err(Rejection::Impossible(format!("{slot} has no holder to release it, or is being released")));
            }
            found.releasing = true;
            events.say("slot releasing", slot, "its holder is asked to stop it");
        }
        Action::AbandonVolume { slot } => {
            let found = slot_mut(state, slot)?;
            if found.holder.is_some() {
                return Err(Rejection::Impossible(format!("{slot} is held: its volume is in use")));
            }
            if found.volume.take().is_none() {
                return Err(Rejection::Impossible(format!("{slot} has no volume to give up")));
            }
            found.used = true;
            events.say("volume abandoned", slot, "no node came up in its zone in time");
        }
        Action::Grant { slot, node, member_id } => grant(state, slot, node, *member_id, events)?,
        Action::Forget { node } => {
            if state.held_by(node).next().is_some() {
                return Err(Rejection::Impossible(format!("{node} still holds slots")));
            }
            let found = node_mut(state, node)?;
            if found.lifecycle != Lifecycle::Fenced {
                return Err(Rejection::NodeState { node: node.clone(), state: "not fenced".into(), todo: "wait for proof".into() });
            }
            state.nodes.remove(node);
            events.say("node gone", node, "");
        }
    }
    Ok(())
}

fn grant(state: &mut ClusterState, slot: &SlotId, node: &NodeId, member_id: u32, events: &mut Events) -> Result<(), Rejection> {
    role_of(state, slot)?;
    let revision = state.revision;
    let target = node_mut(state, node)?;
    if target.lifecycle != Lifecycle::Ready {
        return Err(Rejection::NodeState { node: node.clone(), state: "not ready".into(), todo: "grant to another node".into() });
    }
    if let Some((other, _)) = state.held_by(node).find(|(held, _)| held.role == slot.role) {
        return Err(Rejection::Impossible(format!("{node} holds {other} already: two of one role never share a node")));
    }
    if let Some(volume) = state.slots.get(slot).and_then(|slot| slot.volume.as_ref())
        && state.nodes.get(node).is_some_and(|node| node.zone != volume.zone)
    {
        return Err(Rejection::Impossible(format!("the volume of {slot} is in {}, {node} is not", volume.zone)));
    }
    let taken = |(other, kept): (&SlotId, &Slot)| other != slot && (kept.member_id == member_id || kept.retired_member == Some(member_id));
    if member_id == 0 || state.slots_of(&slot.role).any(taken) {
        return Err(Rejection::Impossible(format!("member id {member_id} of {} is not free", slot.role)));
    }
    let role = slot.role.clone();
    let found = slot_mut(state, slot)?;
    if let Some(holder) = &found.holder {
        return Err(Rejection::Held { slot: slot.clone(), holder: holder.clone() });
    }
    if found.member_id != member_id {
        // The oldest is kept: it is the one the role's own quorum still lists.
        if found.member_id != 0 && found.retired_member.is_none() {
            found.retired_member = Some(found.member_id);
        }
        found.member_id = member_id;
    }
    if found.volume.is_none() {
        found.used = false;
    }
    found.holder = Some(node.clone());
    found.releasing = false;
    found.generation = Generation(revision.0);
    let ensemble: &mut crate::state::Ensemble = state.ensembles.entry(role).or_default();
    ensemble.last_member = ensemble.last_member.max(member_id);
    events.say("slot granted", slot, format!("to {node}, generation {revision}"));
    Ok(())
}

/// Whether `proof` shows that `holder` cannot act on a slot of this fencing class any more.
fn proves(state: &ClusterState, holder: &NodeId, (fencing, fenced_sinks): (Fencing, bool), proof: &Proof) -> bool {
    let lifecycle = state.nodes.get(holder).map(|node| node.lifecycle);
    match proof {
        Proof::InstanceTerminated { node } => node == holder && lifecycle == Some(Lifecycle::Fenced),
        Proof::LeaseExpired { node } => {
            let lost = matches!(lifecycle, Some(Lifecycle::Lost | Lifecycle::Fenced));
            let enough = fencing == Fencing::Disposable || (fencing == Fencing::Exclusive && fenced_sinks);
            node == holder && lost && enough
        }
        // The agent's word comes as SlotReleased, never inside a plan.
        Proof::AgentWord { .. } => false,
    }
}

fn vacate(slot: &mut Slot, proof: Proof) {
    slot.holder = None;
    slot.releasing = false;
    slot.proof = Some(proof);
}

fn role_of(state: &ClusterState, slot: &SlotId) -> Result<(Fencing, bool), Rejection> {
    let role = state.role(slot).ok_or_else(|| Rejection::NoSuchSlot(slot.clone()))?;
    Ok((role.fencing, role.fenced_sinks))
}

fn node_mut<'a>(state: &'a mut ClusterState, node: &NodeId) -> Result<&'a mut Node, Rejection> {
    state.nodes.get_mut(node).ok_or_else(|| Rejection::NoSuchNode(node.clone()))
}

fn slot_mut<'a>(state: &'a mut ClusterState, slot: &SlotId) -> Result<&'a mut Slot, Rejection> {
    state.slots.get_mut(slot).ok_or_else(|| Rejection::NoSuchSlot(slot.clone()))
}

fn slot_at<'a>(state: &'a mut ClusterState, slot: &SlotId, given: Generation) -> Result<&'a mut Slot, Rejection> {
    let found = slot_mut(state, slot)?;
    if found.generation != given {
        return Err(Rejection::OtherGeneration { slot: slot.clone(), given, live: found.generation });
    }
    Ok(found)
}

fn live_session(id: &NodeId, node: &Node, given: Session) -> Result<(), Rejection> {
    if node.session != given {
        return Err(Rejection::OtherSession { node: id.clone(), given, live: node.session });
    }
    Ok(())
}

/// The next free member id of a role: above every id ever given while there is one, then the lowest that no slot uses or has retired.
/// ZooKeeper's pool is 1 to 255 (`LAST_MEMBER_ID`).
pub fn next_member_id(state: &ClusterState, role: &RoleName) -> Option<u32> {
    free_member_id(state, role, |_| false)
}

/// As [`next_member_id`], and never one that `listed` says the role's own quorum still knows.
pub(crate) fn free_member_id(state: &ClusterState, role: &RoleName, listed: impl Fn(u32) -> bool) -> Option<u32> {
    let last = state.ensembles.get(role).map_or(0, |ensemble| ensemble.last_member);
    if last < LAST_MEMBER_ID {
        return Some(last + 1);
    }
    let taken = |id: u32| state.slots_of(role).any(|(_, slot)| slot.member_id == id || slot.retired_member == Some(id));
    (1..=LAST_MEMBER_ID).find(|id| !taken(*id) && !listed(*id))
}
