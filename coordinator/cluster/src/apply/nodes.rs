//! Nodes come, are judged, drained, cordoned, and proved gone.

use std::collections::BTreeMap;

use super::{Events, node_mut};
use crate::{
    command::Rejection,
    ids::{NodeId, Session, Zone},
    mutant,
    state::{BrakeRelease, ClusterState, Lifecycle, Node},
};

/// What an instance says of itself when it registers.
pub struct Machine<'a> {
    pub address: &'a str,
    pub zone: &'a Zone,
    pub instance_type: &'a str,
    pub memory_mib: u32,
    pub cpu_millis: u32,
    pub agent_version: &'a str,
}

pub fn register(state: &mut ClusterState, id: &NodeId, machine: &Machine<'_>, events: &mut Events) -> Result<(), Rejection> {
    let mut new = Node {
        address: machine.address.to_owned(),
        zone: machine.zone.clone(),
        instance_type: machine.instance_type.to_owned(),
        memory_mib: machine.memory_mib,
        cpu_millis: machine.cpu_millis,
        session: Session(state.revision.0),
        lifecycle: Lifecycle::Ready,
        cordoned: false,
        agent_version: machine.agent_version.to_owned(),
        gone_by: None,
    };
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
    forget_release(state, id);
    Ok(())
}

/// A verdict on silence; only for the session that was judged.
pub fn lost(state: &mut ClusterState, node: &NodeId, session: Session, silent_ms: u64, events: &mut Events) -> Result<(), Rejection> {
    let found = node_mut(state, node)?;
    live_session(node, found, session)?;
    if matches!(found.lifecycle, Lifecycle::Lost | Lifecycle::Fenced) {
        return Err(Rejection::NodeState { node: node.clone(), state: "lost already".into(), todo: "nothing to do".into() });
    }
    found.lifecycle = Lifecycle::Lost;
    events.say("node lost", node, format!("silent for {silent_ms} ms; its instance is to be terminated"));
    Ok(())
}

pub fn fenced(state: &mut ClusterState, node: &NodeId, events: &mut Events) -> Result<(), Rejection> {
    let found = node_mut(state, node)?;
    if found.lifecycle == Lifecycle::Fenced {
        return Err(Rejection::NodeState { node: node.clone(), state: "fenced already".into(), todo: "nothing to do".into() });
    }
    found.lifecycle = Lifecycle::Fenced;
    events.say("node fenced", node, "EC2 says terminated");
    forget_release(state, node);
    Ok(())
}

/// As [`fenced`], where nobody but a person can tell: EC2 shows a terminated instance for an hour, and a restored state may be older. A node that is not lost is
/// refused: whoever was heard within its lease is not gone, whatever is said.
pub fn gone(state: &mut ClusterState, node: &NodeId, session: Session, by: &str, events: &mut Events) -> Result<(), Rejection> {
    let found = node_mut(state, node)?;
    live_session(node, found, session)?;
    if found.lifecycle != Lifecycle::Lost && !mutant!("gone-though-heard") {
        let state = if found.lifecycle == Lifecycle::Fenced { "fenced already" } else { "not lost" };
        return Err(Rejection::NodeState { node: node.clone(), state: state.into(), todo: "see 'vpctl nodes'".into() });
    }
    found.lifecycle = Lifecycle::Fenced;
    found.gone_by = Some(by.to_owned());
    events.say("node fenced", node, format!("EC2 has forgotten it, and {by} says it is gone"));
    forget_release(state, node);
    Ok(())
}

pub fn drain(state: &mut ClusterState, node: &NodeId, draining: bool, events: &mut Events) -> Result<(), Rejection> {
    let found = node_mut(state, node)?;
    found.lifecycle = match (found.lifecycle, draining) {
        (Lifecycle::Ready | Lifecycle::Draining, true) => Lifecycle::Draining,
        (Lifecycle::Ready | Lifecycle::Draining, false) => Lifecycle::Ready,
        _ => return Err(Rejection::NodeState { node: node.clone(), state: "lost or fenced".into(), todo: "its slots move without a drain".into() }),
    };
    events.say(if draining { "drain started" } else { "drain ended" }, node, "");
    Ok(())
}

pub fn cordon(state: &mut ClusterState, node: &NodeId, cordoned: bool, events: &mut Events) -> Result<(), Rejection> {
    let found = node_mut(state, node)?;
    if found.cordoned == cordoned {
        let now = if cordoned { "cordoned already" } else { "not cordoned" };
        return Err(Rejection::NodeState { node: node.clone(), state: now.into(), todo: "nothing to do".into() });
    }
    found.cordoned = cordoned;
    events.say(if cordoned { "cordon started" } else { "cordon ended" }, node, if cordoned { "it gets nothing new" } else { "it takes slots again" });
    Ok(())
}

/// An operator vouches for the silence of these nodes, each under its live session. A later word replaces an earlier one.
pub fn release_brake(state: &mut ClusterState, by: &str, nodes: &BTreeMap<NodeId, Session>, events: &mut Events) -> Result<(), Rejection> {
    if nodes.is_empty() {
        return Err(Rejection::Impossible("no node is silent: there is nothing to release".to_owned()));
    }
    for (id, session) in nodes {
        let found = node_mut(state, id)?;
        live_session(id, found, *session)?;
        if found.lifecycle == Lifecycle::Fenced {
            return Err(Rejection::NodeState { node: id.clone(), state: "proved gone".into(), todo: "ask again".into() });
        }
    }
    let names: Vec<String> = nodes.keys().map(ToString::to_string).collect();
    state.brake_release = Some(BrakeRelease { by: by.to_owned(), unix_ms: events.unix_ms, nodes: nodes.clone() });
    events.say("brake released", "cluster", format!("by {by}, for {}: their silence is believed", names.join(", ")));
    Ok(())
}

pub fn heard_again(state: &mut ClusterState, node: &NodeId, events: &mut Events) -> Result<(), Rejection> {
    if !forget_release(state, node) {
        return Err(Rejection::Impossible(format!("no release of the brake names {node}")));
    }
    events.say("node heard again", node, "the release of the brake says nothing about it any more");
    Ok(())
}

/// Takes a node out of the release of the brake; whether it was in.
pub fn forget_release(state: &mut ClusterState, node: &NodeId) -> bool {
    let Some(release) = &mut state.brake_release else { return false };
    let named = release.nodes.remove(node).is_some();
    if release.nodes.is_empty() {
        state.brake_release = None;
    }
    named
}

fn live_session(id: &NodeId, node: &Node, given: Session) -> Result<(), Rejection> {
    if node.session != given && !mutant!("other-sessions-loss") {
        return Err(Rejection::OtherSession { node: id.clone(), given, live: node.session });
    }
    Ok(())
}
