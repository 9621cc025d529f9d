//! The one function that changes the state. Total: every command either changes it and says how, or is refused and says why.
//! One file a conversation: `spec` and `nodes` (operators, agents, verdicts), `slots` (agents, the cloud), `plan` (the planner).

mod nodes;
mod plan;
mod slots;
mod spec;

pub use plan::{LAST_MEMBER_ID, next_member_id};
pub(crate) use plan::{free_member_id, lease_is_proof, try_plan};
pub use spec::MOST_SLOTS;

use std::sync::Arc;

use crate::{
    command::{Command, Event, Rejection},
    coordinators,
    ids::{Generation, NodeId, Revision, SlotId},
    state::{ClusterState, EVENT_RING, Node, Slot},
    version,
};

/// Applies one command at a Raft index. Equal states and commands give equal results. The revision advances in every case.
///
/// # Errors
/// [`Rejection`]: nothing but the revision has changed.
pub fn apply(state: &mut ClusterState, index: u64, unix_ms: u64, command: &Command) -> Result<Vec<Arc<Event>>, Rejection> {
    let based_on = state.revision;
    if index < based_on.0 {
        return Err(Rejection::Impossible(format!("entry {index} comes after revision {based_on}: a revision never goes back")));
    }
    state.revision = Revision(index);
    command.check_rules(state.apply_version)?;
    let mut events = Events::new(state.revision, unix_ms);
    let outcome = change(state, based_on, command, &mut events);
    outcome?;
    Ok(events.keep(state))
}

pub(crate) struct Events {
    revision: Revision,
    unix_ms: u64,
    list: Vec<Arc<Event>>,
}

impl Events {
    pub(crate) fn new(revision: Revision, unix_ms: u64) -> Self {
        Self { revision, unix_ms, list: Vec::new() }
    }

    /// Adds them to the state's ring.
    pub(crate) fn keep(self, state: &mut ClusterState) -> Vec<Arc<Event>> {
        state.events.extend(self.list.iter().cloned());
        while state.events.len() > EVENT_RING {
            state.events.pop_front();
        }
        self.list
    }

    pub(crate) fn say(&mut self, kind: &str, subject: impl ToString, detail: impl ToString) {
        self.list.push(Arc::new(Event {
            revision: self.revision,
            unix_ms: self.unix_ms,
            kind: kind.to_owned(),
            subject: subject.to_string(),
            detail: detail.to_string(),
        }));
    }
}

fn change(state: &mut ClusterState, before: Revision, command: &Command, events: &mut Events) -> Result<(), Rejection> {
    match command {
        Command::SetSpec { spec } => spec::set(state, spec, events),
        Command::Scale { role, pref } => spec::scale(state, role, *pref, events),
        Command::RegisterNode { node, address, zone, instance_type, memory_mib, cpu_millis, agent_version } => {
            let machine = nodes::Machine { address, zone, instance_type, memory_mib: *memory_mib, cpu_millis: *cpu_millis, agent_version };
            nodes::register(state, node, &machine, events)
        }
        Command::NodeLost { node, session, silent_ms } => nodes::lost(state, node, *session, *silent_ms, events),
        Command::NodeFenced { node } => nodes::fenced(state, node, events),
        Command::SetDraining { node, draining } => nodes::drain(state, node, *draining, events),
        Command::SetCordoned { node, cordoned } => nodes::cordon(state, node, *cordoned, events),
        Command::Gone { node, session, by } => nodes::gone(state, node, *session, by, events),
        Command::ReleaseBrake { by, nodes } => nodes::release_brake(state, by, nodes, events),
        Command::NodeHeardAgain { node } => nodes::heard_again(state, node, events),
        Command::Plan(plan) => plan::carry_out(state, before, plan, events),
        Command::MoveSlot { slot, to, empty_disk } => slots::want_move(state, slot, to.as_ref(), *empty_disk, events),
        Command::CancelMove { slot } => slots::cancel_move(state, slot, events),
        Command::SlotReleased { slot, generation, node } => slots::released(state, slot, *generation, node, events),
        Command::VolumeCreated { slot, generation, volume, zone } => slots::volume_created(state, slot, *generation, (volume, zone), events),
        Command::VolumeLost { slot, volume } => slots::volume_lost(state, slot, volume, events),
        Command::SlotUsed { slot, generation } => slots::used(state, slot, *generation, events),
        Command::EnsembleFounded { role, members } => slots::founded(state, role, members, events),
        Command::VotersListed { role, version, voters } => slots::voters_listed(state, role, *version, voters),
        Command::MemberRemoved { slot, member_id } => slots::member_removed(state, slot, *member_id, events),
        Command::Coordinators(change) => coordinators::change(state, change, events),
        Command::RaiseApplyVersion { to } => version::raise(state, *to, events),
        Command::Note { kind, subject, detail } => {
            events.say(kind, subject, detail);
            Ok(())
        }
    }
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
