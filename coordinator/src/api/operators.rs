//! The conversation with people and their tools: status, plan, explain, events. What they order is in `orders`.

use std::{pin::Pin, str::FromStr, sync::Arc};

use futures::Stream;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use vp_cluster::{
    ClusterState, NodeId, Observations, SlotId,
    command::Event,
    health::{self, Coordinators, Health},
    liveness::BRAKE_OPENS,
    requests::Answer,
    round::{self, Round},
    state::{Lifecycle, Slot},
};
use vp_proto::v1::{self, operators_server::Operators};
use vp_trust::{Caller, Who};

use super::{
    group, limits, not_done, not_read,
    orders::{self, Order},
};
use crate::{
    control::{CLOUD, Findings, lifecycle_name},
    desired::{fencing_name, slot_ref},
    leader::Leader,
    raft::ReadError,
    trust::Trust,
};

/// Events waiting for one reader.
const OUTBOX: usize = 64;

pub struct OperatorsApi {
    leader: Arc<Leader>,
    others: group::Others,
    findings: watch::Receiver<Findings>,
    /// Who reads how many streams of events.
    streams: limits::Seats<String>,
}

#[tonic::async_trait]
impl Operators for OperatorsApi {
    type EventsStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::ClusterStatus>, Status> {
        let stale = request.into_inner().stale;
        let raft = self.leader.raft.status();
        // A follower has no reports of its own: it says where to ask. Without a leader it says that.
        let state = match self.leader.current().await {
            Ok(state) => state,
            Err(ReadError::NotLeader { .. }) if stale || raft.leader == 0 => self.leader.state(),
            Err(error) => return Err(not_read(&self.leader, error)),
        };
        let obs = self.leader.observations();
        let findings = self.findings.borrow().clone();
        let coordinators = group::coordinators(&self.leader, &self.others, &state).await;
        let reachable = coordinators.iter().filter(|coordinator| coordinator.reachable).count();
        let counted = Coordinators { wanted: coordinators.len(), reachable };
        let (mut health, mut reasons) = health::judge(&state, &obs, counted, &findings.brake);
        if findings.alarms.iter().any(|alarm| alarm.about == CLOUD) {
            health = if health == Health::Healthy { Health::Degraded } else { health };
            reasons.push("EC2 does not answer".to_owned());
        }
        // Not known: as old as can be.
        let age_ms = self.leader.raft.age_ms().unwrap_or(u64::MAX);
        if raft.leader == 0 {
            health = Health::QuorumLost;
            reasons.insert(0, "no coordinator leads".to_owned());
        }
        let mut wire = wire_health(health);
        if stale && !raft.leads() && raft.leader != 0 {
            wire = v1::Health::Unspecified;
            let age = if age_ms == u64::MAX { "of unknown age".to_owned() } else { format!("that may be {age_ms} ms old") };
            reasons = vec![format!("a copy {age}: how slots and nodes are doing only the leader hears")];
        }
        let mut alarms = alarms(&findings);
        alarms.extend(group::alarms(&state.coordinators));
        let moves = state.slots.iter().filter(|(_, slot)| slot.holder.is_none() || slot.releasing).map(|(id, slot)| match &slot.holder {
            Some(holder) => format!("{id} is leaving {holder}"),
            None => format!("{id} waits for a place"),
        });
        Ok(Response::new(v1::ClusterStatus {
            cluster: self.leader.settings.user_data.cluster.clone(),
            revision: state.revision.0,
            term: raft.term,
            leader_id: group::number(&state, raft.leader),
            health: wire.into(),
            reasons,
            coordinators,
            nodes: state.nodes.keys().map(|id| self.node(&state, id)).collect(),
            services: services(&state, &obs),
            slots: state.slots.iter().map(|(id, slot)| self.slot(&state, id, slot)).collect(),
            moves: moves.collect(),
            alarms,
            answered_by: u64::from(self.leader.settings.me.id),
            age_ms,
        }))
    }

    async fn plan(&self, _: Request<v1::PlanRequest>) -> Result<Response<v1::PlanReport>, Status> {
        let state = self.current().await?;
        let Round { plan, mut gates, .. } = round::look(&state, &self.leader.observations());
        gates.extend(self.leader.world.lock().coordinator_gates.iter().cloned());
        Ok(Response::new(v1::PlanReport {
            revision: plan.based_on.0,
            actions: plan.actions.iter().map(ToString::to_string).collect(),
            gates: gates.into_iter().map(wire_gate).collect(),
        }))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::Explanation>, Status> {
        let state = self.current().await?;
        let asked = request.into_inner().slot.ok_or_else(|| Status::invalid_argument("which slot? for example kafka-2"))?;
        let id = SlotId::from_str(&asked.to_string()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Some(slot) = state.slots.get(&id) else {
            let known = state.slots.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(Status::not_found(format!("there is no slot {id}; there are: {known}")));
        };
        let name = id.to_string();
        let gates: Vec<v1::Gate> = self.findings.borrow().gates.iter().filter(|gate| gate.subject == name).cloned().map(wire_gate).collect();
        let history: Vec<v1::Event> = state.events.iter().filter(|event| event.subject == name).map(|event| wire_event(event)).collect();
        let view = self.slot(&state, &id, slot);
        Ok(Response::new(v1::Explanation { sentences: sentences(&state, &id, slot, &view, &gates), slot: Some(view), gates, history }))
    }

    async fn events(&self, request: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let who = request.extensions().get::<Caller>().and_then(|caller| caller.certificate.as_ref()).map_or_else(String::new, |it| it.name.to_string());
        let full = || Status::resource_exhausted(format!("you read {} streams of events already: close one", limits::EVENT_STREAMS));
        let seat = self.streams.take(who).ok_or_else(full)?;
        self.current().await?;
        let v1::EventsRequest { after_revision, follow } = request.into_inner();
        let mut changes = self.leader.state.clone();
        let (outbox, events) = tokio::sync::mpsc::channel(OUTBOX);
        tokio::spawn(async move {
            let _seat = seat;
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
        let state = self.current().await?;
        Ok(Response::new(orders::brake_status(&state, &self.leader.observations())))
    }

    async fn release_brake(&self, request: Request<v1::ReleaseBrakeRequest>) -> Result<Response<v1::Accepted>, Status> {
        let by = said_by(&request, &request.get_ref().by);
        let request = v1::ReleaseBrakeRequest { by, ..request.into_inner() };
        self.order_once(&request.request_id, |state| orders::release_brake(state, &self.leader.observations(), &request)).await
    }

    async fn declare_gone(&self, request: Request<v1::DeclareGoneRequest>) -> Result<Response<v1::Accepted>, Status> {
        let by = said_by(&request, &request.get_ref().by);
        let request = v1::DeclareGoneRequest { by, ..request.into_inner() };
        let unlisted = self.leader.world.lock().unlisted.clone();
        self.order_once(&request.request_id, |state| orders::gone(state, &unlisted, &request)).await
    }

    async fn want_coordinators(&self, request: Request<v1::WantCoordinatorsRequest>) -> Result<Response<v1::Accepted>, Status> {
        let request = request.into_inner();
        self.order_once(&request.request_id.clone(), |state| group::want(state, request)).await
    }

    async fn save_snapshot(&self, _: Request<v1::SaveSnapshotRequest>) -> Result<Response<v1::SavedSnapshot>, Status> {
        Ok(Response::new(group::snapshot(&self.leader).await?))
    }
}

impl OperatorsApi {
    /// `trust`: to ask the other coordinators.
    pub fn new(leader: Arc<Leader>, trust: Arc<Trust>, findings: watch::Receiver<Findings>) -> Self {
        Self { leader, others: group::Others::new(trust), findings, streams: limits::Seats::new(limits::EVENT_STREAMS) }
    }

    /// A state that no acknowledged change is missing from.
    async fn current(&self) -> Result<Arc<ClusterState>, Status> {
        self.leader.current().await.map_err(|error| not_read(&self.leader, error))
    }

    /// As [`Self::order`], for one that is made from the state: asked again, the state it was made from is gone, and the first answer counts.
    async fn order_once(&self, request_id: &str, order: impl FnOnce(&ClusterState) -> Result<Order, Status>) -> Result<Response<v1::Accepted>, Status> {
        let state = self.current().await?;
        match state.requests.answer(request_id) {
            Some(Answer { revision, rejection: None }) => {
                let note = format!("done at revision {}, when it was asked for first", revision.0);
                Ok(Response::new(v1::Accepted { revision: revision.0, note }))
            }
            Some(Answer { rejection: Some(rejection), .. }) => Err(Status::failed_precondition(rejection.to_string())),
            None => self.order(order(&state)).await,
        }
    }

    /// Puts an order into the log: accepted, refused with a reason, or nobody knows.
    async fn order(&self, order: Result<Order, Status>) -> Result<Response<v1::Accepted>, Status> {
        let Order { request, command, note } = order?;
        orders::bounded(&command)?;
        let outcome = self.leader.ask(request, command).await;
        self.leader.wake.notify_one();
        let revision = outcome.map_err(|error| not_done(&self.leader, error))?;
        Ok(Response::new(v1::Accepted { revision, note }))
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

/// Who it was the certificate says; what the caller says of itself is a remark.
fn said_by<T>(request: &Request<T>, remark: &str) -> String {
    let name = request.extensions().get::<Caller>().and_then(|caller| match &caller.certificate.as_ref()?.name.who {
        Who::Operator { name, .. } => Some(name.clone()),
        _ => None,
    });
    match name {
        Some(name) if name == remark || remark.is_empty() => name,
        Some(name) => format!("{name} (as {remark})"),
        None => remark.to_owned(),
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
    closed.into_iter().chain(findings.alarms.iter().map(|alarm| alarm.sentence.clone())).collect()
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
