//! The conversation with people and their tools: status, plan, explain, events. What they order is in `orders`.

use std::{pin::Pin, str::FromStr, sync::Arc, time::Duration};

use futures::{Stream, future::join_all};
use tokio::{sync::watch, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::Endpoint};
use vp_cluster::{
    ClusterState, NodeId, Observations, SlotId,
    command::Event,
    health::{self, Coordinators, Health},
    liveness::BRAKE_OPENS,
    round::{self, Round},
    state::{Lifecycle, Slot},
};
use vp_proto::{
    COORDINATOR_PORT,
    v1::{self, operators_server::Operators, peers_client::PeersClient},
};

use super::{
    not_leader,
    orders::{self, Order},
};
use crate::{
    control::{Findings, lifecycle_name},
    desired::{fencing_name, slot_ref},
    leader::{CommandError, Leader},
    settings::Peer,
};

/// How long a coordinator may take to say what it is before it counts as not reachable.
const IDENTIFY_WITHIN: Duration = Duration::from_millis(700);
/// Events waiting for one reader.
const OUTBOX: usize = 64;

pub struct OperatorsApi {
    pub leader: Arc<Leader>,
    pub findings: watch::Receiver<Findings>,
}

#[tonic::async_trait]
impl Operators for OperatorsApi {
    type EventsStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::ClusterStatus>, Status> {
        let raft = self.leader.raft.status();
        let state = self.leader.state();
        let obs = self.leader.observations();
        let findings = self.findings.borrow().clone();
        let coordinators = join_all(self.leader.settings.user_data.coordinators.iter().map(|peer| self.coordinator(peer, raft.leader))).await;
        let reachable = coordinators.iter().filter(|coordinator| coordinator.reachable).count();
        let counted = Coordinators { wanted: coordinators.len(), reachable };
        let (mut health, mut reasons) = health::judge(&state, &obs, counted, &findings.brake);
        if raft.leader == 0 {
            health = Health::QuorumLost;
            reasons.insert(0, "no coordinator leads".to_owned());
        } else if !raft.leads() {
            // A follower has no reports of its own: it says where to ask.
            return Err(not_leader(&self.leader));
        }
        let moves = state.slots.iter().filter(|(_, slot)| slot.holder.is_none() || slot.releasing).map(|(id, slot)| match &slot.holder {
            Some(holder) => format!("{id} is leaving {holder}"),
            None => format!("{id} waits for a place"),
        });
        Ok(Response::new(v1::ClusterStatus {
            cluster: self.leader.settings.user_data.cluster.clone(),
            revision: state.revision.0,
            term: raft.term,
            leader_id: raft.leader,
            health: wire_health(health).into(),
            reasons,
            coordinators,
            nodes: state.nodes.keys().map(|id| self.node(&state, id)).collect(),
            services: services(&state, &obs),
            slots: state.slots.iter().map(|(id, slot)| self.slot(&state, id, slot)).collect(),
            moves: moves.collect(),
            alarms: alarms(&findings),
        }))
    }

    async fn plan(&self, _: Request<v1::PlanRequest>) -> Result<Response<v1::PlanReport>, Status> {
        self.must_lead()?;
        let Round { plan, gates, .. } = round::look(&self.leader.state(), &self.leader.observations());
        Ok(Response::new(v1::PlanReport {
            revision: plan.based_on.0,
            actions: plan.actions.iter().map(ToString::to_string).collect(),
            gates: gates.into_iter().map(wire_gate).collect(),
        }))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::Explanation>, Status> {
        self.must_lead()?;
        let asked = request.into_inner().slot.ok_or_else(|| Status::invalid_argument("which slot? for example kafka-2"))?;
        let id = SlotId::from_str(&asked.to_string()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let state = self.leader.state();
        let Some(slot) = state.slots.get(&id) else {
            let known = state.slots.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(Status::not_found(format!("there is no slot {id}; there are: {known}")));
        };
        let name = id.to_string();
        let gates: Vec<v1::Gate> = self.findings.borrow().gates.iter().filter(|gate| gate.subject == name).cloned().map(wire_gate).collect();
        let history: Vec<v1::Event> = state.events.iter().filter(|event| event.subject == name).map(wire_event).collect();
        let view = self.slot(&state, &id, slot);
        Ok(Response::new(v1::Explanation { sentences: sentences(&state, &id, slot, &view, &gates), slot: Some(view), gates, history }))
    }

    async fn events(&self, request: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        self.must_lead()?;
        let v1::EventsRequest { after_revision, follow } = request.into_inner();
        let mut changes = self.leader.state.clone();
        let (outbox, events) = tokio::sync::mpsc::channel(OUTBOX);
        tokio::spawn(async move {
            let mut after = after_revision;
            loop {
                let state = changes.borrow_and_update().clone();
                for event in state.events.iter().filter(|event| event.revision.0 > after) {
                    if outbox.send(Ok(wire_event(event))).await.is_err() {
                        return;
                    }
                }
                after = after.max(state.revision.0);
                tokio::select! {
                    () = outbox.closed() => return,
                    changed = changes.changed() => if !follow || changed.is_err() { return },
                    () = std::future::ready(()), if !follow => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::Accepted>, Status> {
        self.order(orders::drain(request.into_inner())).await
    }

    async fn cordon(&self, request: Request<v1::CordonRequest>) -> Result<Response<v1::Accepted>, Status> {
        self.order(orders::cordon(request.into_inner())).await
    }

    async fn move_slot(&self, request: Request<v1::MoveRequest>) -> Result<Response<v1::Accepted>, Status> {
        self.order(orders::move_slot(request.into_inner())).await
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Result<Response<v1::Accepted>, Status> {
        self.order(orders::scale(request.into_inner())).await
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::Accepted>, Status> {
        self.order(orders::apply(&self.leader.settings.roles, &request.into_inner())).await
    }

    async fn show_brake(&self, _: Request<v1::ShowBrakeRequest>) -> Result<Response<v1::BrakeStatus>, Status> {
        self.must_lead()?;
        Ok(Response::new(orders::brake_status(&self.leader.state(), &self.leader.observations())))
    }

    async fn release_brake(&self, request: Request<v1::ReleaseBrakeRequest>) -> Result<Response<v1::Accepted>, Status> {
        self.must_lead()?;
        let order = orders::release_brake(&self.leader.state(), &self.leader.observations(), &request.into_inner());
        self.order(order).await
    }
}

impl OperatorsApi {
    /// Puts an order into the log: accepted, refused with a reason, or nobody knows.
    async fn order(&self, order: Result<Order, Status>) -> Result<Response<v1::Accepted>, Status> {
        self.must_lead()?;
        let Order { command, note } = order?;
        let outcome = self.leader.propose(command).await;
        self.leader.wake.notify_one();
        match outcome {
            Ok(revision) => Ok(Response::new(v1::Accepted { revision, note })),
            Err(CommandError::Rejected(rejection)) => Err(Status::failed_precondition(rejection.to_string())),
            Err(error) => Err(Status::unknown(format!("unknown outcome: {error}"))),
        }
    }

    fn must_lead(&self) -> Result<(), Status> {
        if self.leader.leads() { Ok(()) } else { Err(not_leader(&self.leader)) }
    }

    async fn coordinator(&self, peer: &Peer, leader: u64) -> v1::CoordinatorStatus {
        let mut status =
            v1::CoordinatorStatus { id: peer.id, address: peer.address.to_string(), zone: peer.zone.clone(), leader: peer.id == leader, ..Default::default() };
        status.instance_id = self.leader.world.lock().coordinators.get(&peer.id).cloned().unwrap_or_default();
        if peer.id == self.leader.settings.me.id {
            status.reachable = true;
            status.applied = self.leader.raft.status().applied;
            status.instance_id.clone_from(&self.leader.settings.instance_id);
            return status;
        }
        let cluster = self.leader.settings.user_data.cluster.clone();
        let asked = async {
            let channel = Endpoint::from_shared(format!("http://{}:{COORDINATOR_PORT}", peer.address)).ok()?.connect().await.ok()?;
            PeersClient::new(channel).identify(v1::IdentifyRequest { cluster }).await.ok()
        };
        if let Ok(Some(answer)) = timeout(IDENTIFY_WITHIN, asked).await {
            let answer = answer.into_inner();
            status.reachable = answer.id == peer.id;
            status.applied = answer.applied;
        }
        status
    }

    fn node(&self, state: &ClusterState, id: &NodeId) -> v1::NodeStatus {
        let node = &state.nodes[id];
        let view = self.leader.registry.view(id);
        v1::NodeStatus {
            instance_id: id.0.clone(),
            address: node.address.clone(),
            zone: node.zone.0.clone(),
            instance_type: node.instance_type.clone(),
            lifecycle: lifecycle_name(node.lifecycle).to_owned(),
            cordoned: node.cordoned,
            session: node.session.0,
            silent_ms: view.silent_ms,
            heard: view.heard,
            measures: view.measures,
            slots: state.held_by(id).map(|(slot, _)| slot_ref(slot)).collect(),
            agent_version: node.agent_version.clone(),
        }
    }

    fn slot(&self, state: &ClusterState, id: &SlotId, slot: &Slot) -> v1::SlotStatus {
        let holder = state.holder(slot);
        let report =
            holder.and_then(|(node, _)| self.leader.registry.report(node, id)).filter(|report| report.generation == slot.generation.0).unwrap_or_default();
        v1::SlotStatus {
            slot: Some(slot_ref(id)),
            generation: slot.generation.0,
            member_id: slot.member_id,
            instance_id: slot.holder.as_ref().map_or(String::new(), |holder| holder.0.clone()),
            zone: holder.map_or(String::new(), |(_, node)| node.zone.0.clone()),
            volume_id: slot.volume.as_ref().map_or(String::new(), |volume| volume.id.0.clone()),
            phase: report.phase,
            message: report.message,
            pid: report.pid,
            restarts: report.restarts,
            facts: report.facts,
            last_proof: slot.proof.as_ref().map_or(String::new(), ToString::to_string),
        }
    }
}

fn services(state: &ClusterState, obs: &Observations) -> Vec<v1::ServiceStatus> {
    let services = state.spec.roles.iter().filter_map(|(name, role)| {
        let service = health::service(state, obs, name)?;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Some(v1::ServiceStatus {
            role: name.0.clone(),
            wanted: count(service.wanted),
            placed: count(service.placed),
            healthy: count(service.healthy),
            tolerates: count(service.tolerates),
            serving: service.serving,
            fencing: fencing_name(role.fencing).to_owned(),
        })
    });
    services.collect()
}

fn alarms(findings: &Findings) -> Vec<String> {
    let brake = orders::brake_sentence(&findings.brake);
    let closed = brake.map(|reason| format!("brake closed: {reason}; silence moves nothing there until {BRAKE_OPENS}"));
    closed.into_iter().chain(findings.alarms.iter().map(|(_, sentence)| sentence.clone())).collect()
}

fn sentences(state: &ClusterState, id: &SlotId, slot: &Slot, view: &v1::SlotStatus, gates: &[v1::Gate]) -> Vec<String> {
    let mut said = Vec::new();
    match state.holder(slot) {
        Some((node_id, node)) => {
            let doing = if node.lifecycle == Lifecycle::Ready { "" } else { ", which is not ready" };
            said.push(format!("{id} is held by {node_id} ({}, {}){doing}, at generation {}.", node.address, node.zone, slot.generation));
            said.push(format!(
                "Its process is {}{}.",
                view.phase().as_str_name().trim_start_matches("PHASE_").to_lowercase(),
                if view.message.is_empty() { String::new() } else { format!(": {}", view.message) }
            ));
        }
        None => said.push(format!("{id} has no holder.")),
    }
    if let Some(wish) = &slot.wanted_move {
        let to = wish.to.as_ref().map_or("wherever it does best".to_owned(), ToString::to_string);
        said.push(format!("An operator wants it off {}, to {to}.", wish.from));
    }
    if let Some(proof) = &slot.proof {
        said.push(format!("It was taken from its last holder because {proof}."));
    }
    if let Some(volume) = &slot.volume {
        said.push(format!("Its data is on {} in {}, which binds it to that zone.", volume.id, volume.zone));
    }
    for gate in gates {
        said.push(format!("It waits: {}. That ends when {}.", gate.closed_by, gate.opens_when));
    }
    said
}

fn wire_health(health: Health) -> v1::Health {
    match health {
        Health::Healthy => v1::Health::Healthy,
        Health::Degraded => v1::Health::Degraded,
        Health::NoTolerance => v1::Health::NoTolerance,
        Health::QuorumLost => v1::Health::QuorumLost,
    }
}

pub(super) fn wire_gate(gate: vp_cluster::report::Gate) -> v1::Gate {
    v1::Gate { subject: gate.subject, closed_by: gate.closed_by, opens_when: gate.opens_when }
}

fn wire_event(event: &Event) -> v1::Event {
    v1::Event { revision: event.revision.0, unix_ms: event.unix_ms, kind: event.kind.clone(), subject: event.subject.clone(), detail: event.detail.clone() }
}
