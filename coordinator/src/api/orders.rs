//! What operators order, as commands: each wish becomes one entry of the log, and the procedures of `vp_cluster` carry it on from there.

use std::{collections::BTreeSet, path::Path, str::FromStr};

use tonic::Status;
use vp_cluster::{
    ClusterState, Command, NodeId, Observations, RoleName, SlotId,
    coordinators::CoordinatorChange,
    liveness::{self, Brake},
    state::Lifecycle,
};
use vp_proto::v1;

use super::operators::wire_gate;
use crate::{catalogue, settings};

/// Longest name of an operator that is written into the log.
const LONGEST_OPERATOR: usize = 80;
/// Longest name of anything else, bytes (an Auto Scaling Group's has at most 255).
const LONGEST_NAME: usize = 255;

/// A command and what is said when it is accepted.
#[derive(Debug)]
pub struct Order {
    /// The client's id of this request, if it gave one.
    pub request: Option<String>,
    pub command: Command,
    pub note: String,
}

impl Order {
    /// An absent id is the empty text on the wire.
    pub fn new(request_id: String, command: Command, note: String) -> Self {
        Self { request: (!request_id.is_empty()).then_some(request_id), command, note }
    }
}

/// Refuses names that nothing can have: a command is kept with its refusal, and the state has to fit into a snapshot.
pub fn bounded(command: &Command) -> Result<(), Status> {
    let names: Vec<&str> = match command {
        Command::SetDraining { node, .. } | Command::SetCordoned { node, .. } | Command::Gone { node, .. } => vec![&node.0],
        Command::MoveSlot { slot, to, .. } => vec![&slot.role.0, to.as_ref().map_or("", |node| &node.0)],
        Command::CancelMove { slot } => vec![&slot.role.0],
        Command::Scale { role, .. } => vec![&role.0],
        Command::Coordinators(CoordinatorChange::Want { slots }) => slots.values().flat_map(|slot| [slot.zone.0.as_str(), slot.group.as_str()]).collect(),
        _ => Vec::new(),
    };
    match names.into_iter().find(|name| name.len() > LONGEST_NAME) {
        Some(name) => Err(Status::invalid_argument(format!("a name has at most {LONGEST_NAME} bytes, this one has {}", name.len()))),
        None => Ok(()),
    }
}

pub fn drain(request: v1::DrainRequest) -> Result<Order, Status> {
    let v1::DrainRequest { instance_id, undo, request_id } = request;
    let node = NodeId(instance_id);
    let note = if undo { format!("{node} takes work again") } else { format!("{node} gives its slots away one by one; see 'vpctl plan'") };
    Ok(Order::new(request_id, Command::SetDraining { node, draining: !undo }, note))
}

pub fn cordon(request: v1::CordonRequest) -> Result<Order, Status> {
    let v1::CordonRequest { instance_id, undo, request_id } = request;
    let node = NodeId(instance_id);
    let note = if undo { format!("{node} takes slots again") } else { format!("{node} keeps what it holds and gets nothing new") };
    Ok(Order::new(request_id, Command::SetCordoned { node, cordoned: !undo }, note))
}

pub fn move_slot(request: v1::MoveRequest) -> Result<Order, Status> {
    let v1::MoveRequest { slot, instance_id, empty_disk, undo, request_id } = request;
    let asked = slot.ok_or_else(|| Status::invalid_argument("which slot? for example kafka-2"))?;
    let slot = SlotId::from_str(&asked.to_string()).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if undo {
        let note = format!("{slot} is not moved any more");
        return Ok(Order::new(request_id, Command::CancelMove { slot }, note));
    }
    let to = (!instance_id.is_empty()).then_some(NodeId(instance_id));
    let note = format!("{slot} moves as soon as the others of its role can spare it; see 'vpctl explain {slot}'");
    Ok(Order::new(request_id, Command::MoveSlot { slot, to, empty_disk }, note))
}

pub fn scale(request: v1::ScaleRequest) -> Result<Order, Status> {
    let v1::ScaleRequest { role, wanted, request_id } = request;
    let note = format!("{wanted} of {role} are wanted; see 'vpctl plan'");
    Ok(Order::new(request_id, Command::Scale { role: RoleName(role), pref: wanted }, note))
}

pub fn apply(roles: &Path, request: &v1::ApplyRequest) -> Result<Order, Status> {
    let wanted = settings::spec(&request.yaml).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let spec = catalogue::spec(roles, &wanted).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let wanted: Vec<String> = spec.roles.iter().map(|(name, role)| format!("{} {name}", role.pref)).collect();
    let note = format!("wanted are {}; see 'vpctl plan'", wanted.join(", "));
    Ok(Order::new(request.request_id.clone(), Command::SetSpec { spec }, note))
}

/// Names the nodes that are silent at this moment; those that fall silent later are none of its business.
pub fn release_brake(state: &ClusterState, obs: &Observations, request: &v1::ReleaseBrakeRequest) -> Result<Order, Status> {
    let by = operator(&request.by)?;
    let nodes = liveness::silent_now(state, obs);
    if nodes.is_empty() {
        return Err(Status::failed_precondition("no node is silent: there is nothing to release"));
    }
    let names: Vec<String> = nodes.keys().map(ToString::to_string).collect();
    let note = format!("the silence of {} is believed: they are given up and their instances terminated", names.join(", "));
    Ok(Order::new(request.request_id.clone(), Command::ReleaseBrake { by, nodes }, note))
}

/// Takes a person's word only where EC2 has none left to give: the node is lost, and EC2, when it answered last, did not list its instance.
pub fn gone(state: &ClusterState, unlisted: &BTreeSet<NodeId>, request: &v1::DeclareGoneRequest) -> Result<Order, Status> {
    let by = operator(&request.by)?;
    let id = NodeId(request.instance_id.clone());
    let node = state.nodes.get(&id).ok_or_else(|| Status::not_found(format!("no node {id}: see 'vpctl nodes'")))?;
    let refused = match node.lifecycle {
        Lifecycle::Fenced => format!("{id} is fenced already"),
        Lifecycle::Ready | Lifecycle::Draining => format!("{id} is not lost: it was heard of late, or the brake holds (see 'vpctl brake show')"),
        Lifecycle::Lost if !unlisted.contains(&id) => format!(
            "EC2 has not said that it does not know {id}: if it knows it, it is being terminated there, which will be proof by itself; else ask again in some seconds"
        ),
        Lifecycle::Lost => String::new(),
    };
    if !refused.is_empty() {
        return Err(Status::failed_precondition(refused));
    }
    let note = format!("{id} counts as terminated, on the word of {by}: what it held moves");
    Ok(Order::new(request.request_id.clone(), Command::Gone { node: id, session: node.session, by }, note))
}

/// Who says something that is written down with a name.
fn operator(by: &str) -> Result<String, Status> {
    let by: String = by.chars().filter(|c| !c.is_control()).take(LONGEST_OPERATOR).collect();
    if by.is_empty() { Err(Status::invalid_argument("who says so? this is written down with a name")) } else { Ok(by) }
}

pub fn brake_status(state: &ClusterState, obs: &Observations) -> v1::BrakeStatus {
    let judged = liveness::judge(state, obs);
    let release = state.brake_release.as_ref();
    v1::BrakeStatus {
        closed: judged.brake != Brake::Open,
        reason: brake_sentence(&judged.brake).unwrap_or_default(),
        silent: liveness::silent_now(state, obs).into_keys().map(|node| node.0).collect(),
        released_by: release.map_or(String::new(), |release| release.by.clone()),
        released_unix_ms: release.map_or(0, |release| release.unix_ms),
        released: release.map_or(Vec::new(), |release| release.nodes.keys().map(|node| node.0.clone()).collect()),
        gates: judged.gates.into_iter().map(wire_gate).collect(),
    }
}

/// Why the brake is closed; None while it is open.
pub fn brake_sentence(brake: &Brake) -> Option<String> {
    match brake {
        Brake::Open => None,
        Brake::Closed { silent, of, place } => Some(format!("{silent} of {of} nodes of {place} fell silent together")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_needs_a_name_and_somebody_who_is_silent() {
        let (state, obs) = (ClusterState::default(), Observations::default());
        for by in ["", "\n", "ada"] {
            assert!(release_brake(&state, &obs, &v1::ReleaseBrakeRequest { by: by.to_owned(), request_id: String::new() }).is_err(), "{by:?}");
        }
    }

    #[test]
    fn a_spec_that_cannot_be_read_is_refused_with_its_line() {
        let refused = apply(Path::new("."), &v1::ApplyRequest { yaml: "roles:\n  kafka: {perf: 3}\n".to_owned(), request_id: String::new() }).unwrap_err();
        assert!(refused.message().contains("perf"), "{}", refused.message());
    }

    #[test]
    fn a_name_too_long_for_anything_is_refused_before_the_log_keeps_it() {
        let long = "x".repeat(LONGEST_NAME + 1);
        let drained = drain(v1::DrainRequest { instance_id: long.clone(), ..v1::DrainRequest::default() }).unwrap();
        let scaled = scale(v1::ScaleRequest { role: long, ..v1::ScaleRequest::default() }).unwrap();
        for order in [drained, scaled] {
            assert!(bounded(&order.command).is_err(), "{:?}", order.command);
        }
        assert!(bounded(&drain(v1::DrainRequest { instance_id: "i-1".to_owned(), ..v1::DrainRequest::default() }).unwrap().command).is_ok());
    }

    #[test]
    fn a_persons_word_is_taken_for_a_lost_node_alone_that_ec2_says_it_does_not_know() {
        let id = NodeId::from("i-1");
        let asked = |instance: &str, by: &str| v1::DeclareGoneRequest { instance_id: instance.to_owned(), by: by.to_owned(), request_id: String::new() };
        let mut state = ClusterState::default();
        let register = Command::RegisterNode {
            node: id.clone(),
            address: String::new(),
            zone: "a".into(),
            instance_type: String::new(),
            memory_mib: 1,
            cpu_millis: 1,
            agent_version: String::new(),
        };
        vp_cluster::apply(&mut state, 1, 0, &register).unwrap();
        let unlisted = BTreeSet::from([id.clone()]);
        let said = |state: &ClusterState, unlisted: &BTreeSet<NodeId>, instance, by| {
            gone(state, unlisted, &asked(instance, by)).map_err(|status| status.message().to_owned())
        };
        assert!(said(&state, &unlisted, "i-1", "ada").unwrap_err().contains("is not lost"));
        state.nodes.get_mut(&id).unwrap().lifecycle = Lifecycle::Lost;
        assert!(said(&state, &BTreeSet::new(), "i-1", "ada").unwrap_err().contains("EC2 has not said"));
        assert!(said(&state, &unlisted, "i-2", "ada").unwrap_err().contains("no node i-2"));
        assert!(said(&state, &unlisted, "i-1", "\n").unwrap_err().contains("who says so"));
        let order = said(&state, &unlisted, "i-1", "ada").unwrap();
        assert_eq!(order.command, Command::Gone { node: id.clone(), session: state.nodes[&id].session, by: "ada".to_owned() });
        state.nodes.get_mut(&id).unwrap().lifecycle = Lifecycle::Fenced;
        assert!(said(&state, &unlisted, "i-1", "ada").unwrap_err().contains("fenced already"));
    }

    #[test]
    fn a_move_names_a_slot() {
        assert!(move_slot(v1::MoveRequest::default()).is_err());
        let slot = Some(v1::SlotRef { role: "kafka".to_owned(), index: 2 });
        let order = move_slot(v1::MoveRequest { slot, request_id: "7".to_owned(), ..v1::MoveRequest::default() }).unwrap();
        assert_eq!(order.command, Command::MoveSlot { slot: SlotId::new("kafka", 2), to: None, empty_disk: false });
        assert_eq!(order.request.as_deref(), Some("7"));
    }
}
