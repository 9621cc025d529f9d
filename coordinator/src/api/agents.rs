//! The conversation with agents: a hello under the newest certificate of its instance, then heartbeats in, acknowledgements and desired sets out.
//! What an agent says is untrusted, certificate or not: it writes its own records only, so many at a time, each so long.
//!
//! ```text
//! Hello -> certificate (newest?) -> known, or EC2 -> RegisterNode -> Welcome
//! Heartbeat -> registry -> ReadIndex -> Ack of the pairs the state still grants
//! Released -> SlotReleased
//! ```

use std::{
    collections::BTreeMap,
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use fail::fail_point;
use futures::Stream;
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};
use vp_cloud::ec2::Instance;
use vp_cluster::{ClusterState, Command, Generation, NodeId, Session, SlotId, Zone, mutant, state::Lifecycle};
use vp_proto::v1::{self, agent_message::Body, agents_server::Agents, coordinator_message};
use vp_trust::Certificate;

use super::{
    instance,
    limits::{self, Allowance, Rationed},
    not_leader,
};
use crate::{
    identity::{Refusal, Verifier},
    leader::{CommandError, Leader},
    raft::LeadershipEvent,
    registry::{Heard, Seat},
};

/// Answers waiting for one agent; an agent that does not read them is dropped.
const OUTBOX: usize = 16;

pub struct AgentsApi {
    leader: Arc<Leader>,
    verifier: Verifier,
    hellos: Rationed,
}

type Answer = Result<v1::CoordinatorMessage, Status>;
type Outgoing = Pin<Box<dyn Stream<Item = Answer> + Send>>;

#[tonic::async_trait]
impl Agents for AgentsApi {
    type SessionStream = Outgoing;

    async fn session(&self, request: Request<Streaming<v1::AgentMessage>>) -> Result<Response<Outgoing>, Status> {
        if !self.leader.leads() {
            return Err(not_leader(&self.leader));
        }
        let (node, certificate, serial) = instance(&request)?;
        let mut incoming = request.into_inner();
        let hello = match timeout(limits::HELLO_WITHIN, incoming.message()).await {
            Ok(Ok(Some(v1::AgentMessage { body: Some(Body::Hello(hello)) }))) => hello,
            Ok(Err(status)) => return Err(status),
            Ok(Ok(_)) => return Err(Status::invalid_argument("the first message must be a hello")),
            Err(_) => return Err(Status::deadline_exceeded("no hello in time")),
        };
        fail_point!("agents::hello");
        self.is_its_own(&hello, &node, &certificate)?;
        if !self.leader.certificates.admits(&node, serial) {
            return Err(Status::unauthenticated(format!("a newer certificate than {serial} was issued to {node}: enrol again")));
        }
        if !self.hellos.take(&node) {
            return Err(Status::resource_exhausted(format!("{node} says hello again and again: once a second is enough")));
        }
        let (conversation, seat, answers) = welcome(&self.leader, &hello, self.look_up(&hello)).await?;
        tokio::spawn(conversation.run(incoming, seat));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl AgentsApi {
    pub fn new(leader: Arc<Leader>, verifier: Verifier) -> Self {
        Self { leader, verifier, hellos: Rationed::new(limits::HELLOS) }
    }

    /// A certificate speaks for one instance at one address in one cluster.
    fn is_its_own(&self, hello: &v1::Hello, node: &NodeId, certificate: &Certificate) -> Result<(), Status> {
        let ours = &self.leader.settings.user_data.cluster;
        if hello.cluster != *ours {
            return Err(Status::permission_denied(Refusal::Cluster { given: clip(&hello.cluster, 40), ours: ours.clone() }.to_string()));
        }
        let address = certificate.address.map(|address| address.to_string());
        if hello.instance_id == node.0 && Some(&hello.address) == address.as_ref() {
            return Ok(());
        }
        let (id, at) = (clip(&hello.instance_id, 40), clip(&hello.address, 40));
        Err(Status::permission_denied(format!("the hello is of {id} at {at}, the certificate of {node} at {}", address.unwrap_or_default())))
    }

    /// What EC2 says of the instance.
    async fn look_up(&self, hello: &v1::Hello) -> Result<Instance, Status> {
        self.verifier.look_up(&hello.instance_id, &hello.address).await.map_err(|refusal| match refusal {
            Refusal::Later(_) => Status::unavailable(refusal.to_string()),
            _ => Status::permission_denied(refusal.to_string()),
        })
    }
}

/// An agent whose hello is its own takes its seat; the welcome is the first of its answers. EC2 is asked (`instance`) only about a node that is not known.
///
/// # Errors
/// The status to refuse it with.
pub async fn welcome(
    leader: &Arc<Leader>,
    hello: &v1::Hello,
    instance: impl Future<Output = Result<Instance, Status>>,
) -> Result<(Conversation, Seat, mpsc::Receiver<Answer>), Status> {
    let node = NodeId(hello.instance_id.clone());
    let session = match known(&leader.state(), &node, hello) {
        Some(session) => session,
        None => register(leader, &node, hello, &instance.await?).await?,
    };
    fail_point!("agents::registered");
    let Some(seat) = leader.registry.open(&node, session) else {
        return Err(Status::permission_denied("this session has been declared lost: the instance will be replaced"));
    };
    let (outbox, answers) = mpsc::channel(OUTBOX + 1);
    let last = Mutex::new(outbox.clone().try_reserve_owned().ok());
    let lease_ms = leader.settings.user_data.lease_ms;
    let welcome = v1::Welcome { session: session.0, lease_ms, heartbeat_ms: lease_ms / 4, term: leader.raft.status().term };
    let _ = outbox.try_send(Ok(answer(coordinator_message::Body::Welcome(welcome))));
    info!(node = %node, session = session.0, "agent session opened");
    let conversation = Conversation { leader: leader.clone(), node, session, stream: seat.stream, outbox, last };
    leader.wake.notify_one();
    Ok((conversation, seat, answers))
}

/// A node that is known and well keeps its session: an agent restart or a leader change writes nothing and asks nobody.
fn known(state: &ClusterState, id: &NodeId, hello: &v1::Hello) -> Option<Session> {
    let node = state.nodes.get(id)?;
    let same = node.address == hello.address && node.agent_version == hello.agent_version;
    (same && matches!(node.lifecycle, Lifecycle::Ready | Lifecycle::Draining)).then_some(node.session)
}

async fn register(leader: &Leader, id: &NodeId, hello: &v1::Hello, instance: &Instance) -> Result<Session, Status> {
    let command = Command::RegisterNode {
        node: id.clone(),
        address: hello.address.clone(),
        zone: Zone(instance.zone.clone()),
        instance_type: instance.kind.clone(),
        memory_mib: hello.memory_mib,
        cpu_millis: hello.cpu_millis,
        agent_version: clip(&hello.agent_version, 40),
    };
    if !mutant!("registered-unheard") {
        leader.registry.expect(id);
    }
    match leader.propose(command).await {
        Ok(index) => Ok(Session(index)),
        Err(CommandError::Rejected(rejection)) => Err(Status::permission_denied(rejection.to_string())),
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}

/// One agent's stream, after its welcome.
pub struct Conversation {
    leader: Arc<Leader>,
    node: NodeId,
    session: Session,
    stream: u64,
    outbox: mpsc::Sender<Answer>,
    /// Room for what ends the stream, however full the outbox is.
    last: Mutex<Option<mpsc::OwnedPermit<Answer>>>,
}

impl Conversation {
    async fn run(self, mut incoming: Streaming<v1::AgentMessage>, mut seat: Seat) {
        // Not the status: that changes with every entry, and would wake ten thousand conversations each time.
        let mut leadership = self.leader.raft.events();
        let since = Instant::now();
        let mut allowance = Allowance::new(limits::MESSAGES, since.elapsed());
        while self.leader.leads() {
            tokio::select! {
                message = incoming.message() => {
                    let Ok(Some(message)) = message else { break };
                    if !allowance.take(since.elapsed()) {
                        self.end(Status::resource_exhausted("more messages than an agent has to send"));
                        break;
                    }
                    if !self.take(message).await {
                        break;
                    }
                }
                changed = seat.desired.changed() => {
                    // The sender is dropped when a later stream took this seat.
                    if changed.is_err() {
                        break;
                    }
                    let desired = seat.desired.borrow_and_update().clone();
                    if let Some(desired) = desired && !self.say(coordinator_message::Body::Desired(desired)) {
                        break;
                    }
                }
                event = leadership.recv() => {
                    if !matches!(event, Ok(LeadershipEvent::Started { .. }) | Err(broadcast::error::RecvError::Lagged(_))) {
                        break;
                    }
                }
            }
        }
        if !self.leader.leads() {
            self.end(not_leader(&self.leader));
        }
        self.leader.registry.close(&self.node, self.stream);
        self.leader.wake.notify_one();
        info!(node = %self.node, session = self.session.0, "agent session closed");
    }

    /// Takes one message, all of it before the next one. False: the conversation is over.
    pub async fn take(&self, message: v1::AgentMessage) -> bool {
        match message.body {
            Some(Body::Heartbeat(heartbeat)) => self.heartbeat(heartbeat).await,
            Some(Body::Released(released)) => self.released(released).await,
            Some(Body::Hello(_)) | None => false,
        }
    }

    async fn heartbeat(&self, heartbeat: v1::Heartbeat) -> bool {
        if heartbeat.slots.len() > limits::SLOTS {
            self.end(Status::invalid_argument(format!("more than {} slots in one heartbeat", limits::SLOTS)));
            return false;
        }
        let mut reports = BTreeMap::new();
        let mut pairs = Vec::new();
        for report in heartbeat.slots {
            let named = report.slot.as_ref().filter(|slot| slot.role.len() <= limits::ROLE_BYTES);
            let Some(slot) = named.and_then(|slot| SlotId::from_str(&slot.to_string()).ok()) else { continue };
            pairs.push((slot.clone(), Generation(report.generation)));
            reports.insert(slot, bounded(report));
        }
        fail_point!("agents::heartbeat");
        match self.leader.registry.heard(&self.node, self.stream, reports, heartbeat.measures) {
            Heard::Replaced => return false,
            Heard::Changed => self.leader.wake.notify_one(),
            Heard::Same => {}
        }
        // Still the leader as of now, by a quorum: only then is anything renewed.
        let confirmed = mutant!("ack-without-read-index") || self.leader.raft.read_index().await.is_ok();
        if !confirmed || !self.leader.registry.acknowledge(&self.node, self.stream) {
            return self.leader.leads();
        }
        fail_point!("agents::confirmed");
        let state = self.leader.state();
        let live =
            state.nodes.get(&self.node).is_some_and(|node| node.session == self.session && matches!(node.lifecycle, Lifecycle::Ready | Lifecycle::Draining));
        if !live {
            return false;
        }
        let renewed = pairs
            .iter()
            .filter(|pair| is_granted(&state, &self.node, pair))
            .map(|(slot, generation)| v1::SlotGeneration { slot: Some(crate::desired::slot_ref(slot)), generation: generation.0 });
        fail_point!("agents::acknowledge");
        self.say(coordinator_message::Body::Ack(v1::Ack { sequence: heartbeat.sequence, renewed: renewed.collect() }))
    }

    async fn released(&self, released: v1::Released) -> bool {
        fail_point!("agents::released", |_| true);
        let Some(pair) = released.slot else { return false };
        let Some(slot) = pair.slot.as_ref().and_then(|slot| SlotId::from_str(&slot.to_string()).ok()) else { return false };
        let generation = Generation(pair.generation);
        let state = self.leader.state();
        let held = state.slots.get(&slot).is_some_and(|live| live.holder.as_ref() == Some(&self.node) && live.generation == generation && live.releasing);
        if held {
            let command = Command::SlotReleased { slot: slot.clone(), generation, node: self.node.clone() };
            if let Err(error) = self.leader.propose(command).await {
                warn!(%slot, %error, "release not recorded; the agent repeats it");
            }
            self.leader.wake.notify_one();
        }
        true
    }

    /// False: the agent does not read its answers.
    pub fn say(&self, body: coordinator_message::Body) -> bool {
        let said = self.outbox.try_send(Ok(answer(body))).is_ok();
        if !said {
            self.end(Status::resource_exhausted("answers are not read"));
        }
        said
    }

    /// The stream's last answer; the first reason is the one that is told.
    fn end(&self, status: Status) {
        if let Some(room) = self.last.lock().unwrap_or_else(PoisonError::into_inner).take() {
            room.send(Err(status));
        }
    }
}

/// Whether the state grants exactly this to `node`: only then is its lease renewed.
fn is_granted(state: &ClusterState, node: &NodeId, (slot, generation): &(SlotId, Generation)) -> bool {
    let granted = state.slots.get(slot).is_some_and(|live| live.holder.as_ref() == Some(node) && live.generation == *generation);
    granted || mutant!("ack-names-everything")
}

fn clip(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

/// A report's texts, no longer than they need be: they are kept, shown and compared.
fn bounded(mut report: v1::SlotObservation) -> v1::SlotObservation {
    report.message = clip(&report.message, limits::TEXT_CHARACTERS);
    let facts = std::mem::take(&mut report.facts).into_iter().collect::<BTreeMap<_, _>>();
    let short = |text: &str| clip(text, limits::FACT_CHARACTERS);
    report.facts = facts.iter().take(limits::FACTS).map(|(name, value)| (short(name), short(value))).collect();
    report
}

fn answer(body: coordinator_message::Body) -> v1::CoordinatorMessage {
    v1::CoordinatorMessage { body: Some(body) }
}

#[cfg(test)]
mod tests {
    use vp_cluster::state::Slot;

    use super::*;

    #[test]
    fn what_a_report_says_is_cut_to_what_is_kept_and_shown() {
        let long = "ä".repeat(100_000);
        let facts = (0..1000).map(|number| (format!("{number}{long}"), long.clone())).collect();
        let report = bounded(v1::SlotObservation { message: long.clone(), facts, ..v1::SlotObservation::default() });
        assert_eq!(report.message.chars().count(), limits::TEXT_CHARACTERS);
        assert_eq!(report.facts.len(), limits::FACTS);
        let texts = report.facts.iter().flat_map(|(name, value)| [name, value]);
        assert!(texts.into_iter().all(|text| text.chars().count() == limits::FACT_CHARACTERS));
    }

    #[test]
    fn an_acknowledgement_names_only_what_the_state_grants_to_this_node_at_this_generation() {
        let slot = SlotId::new("stream", 1);
        let held = Slot { holder: Some("i-1".into()), generation: Generation(7), ..Slot::default() };
        let state = ClusterState { slots: [(slot.clone(), held)].into(), ..ClusterState::default() };
        let granted = |node: &str, generation| is_granted(&state, &node.into(), &(slot.clone(), Generation(generation)));
        assert!(granted("i-1", 7));
        assert!(!granted("i-1", 6) && !granted("i-1", 8) && !granted("i-2", 7));
        assert!(!is_granted(&state, &"i-1".into(), &(SlotId::new("stream", 2), Generation(7))));
    }
}
