//! Calls to the coordinators: any of them answers `Status`, everything else goes to the one that leads.
//!
//! ```text
//! status:  ask all at once ── first answer of one that says it leads, else the newest of all
//! others:  ask one ── "not me, vp-leader says X" ──> ask X ── no answer ──> ask the next, until the time is over
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustls::ClientConfig;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use vp_proto::v1::operators_client::OperatorsClient;
use vp_proto::v1::{
    Accepted, ApplyRequest, BrakeStatus, ClusterStatus, CordonRequest, DeclareGoneRequest, DrainRequest, Event, EventsRequest, ExplainRequest, Explanation,
    MoveRequest, PlanReport, PlanRequest, ReleaseBrakeRequest, SaveSnapshotRequest, SavedSnapshot, ScaleRequest, ShowBrakeRequest, SlotRef, StatusRequest,
    WantCoordinatorsRequest, WantedCoordinator,
};
use vp_proto::{LEADER_KEY, MAX_MESSAGE_BYTES};
use vp_trust::{Credentials, DialError, Way, tls};

use crate::failure::Failure;

/// One call's time, connecting included.
const CALL: Duration = Duration::from_millis(2_500);
/// How long a leader is looked for: two elections at the default lease.
const SEARCH: Duration = Duration::from_secs(8);
/// Between two rounds of asking.
const ROUND: Duration = Duration::from_millis(250);

/// Calls that change something: sent and never answered, their outcome is unknown.
const ORDERS: [&str; 8] = ["drain", "cordon", "move", "scale", "apply", "brake release", "gone", "coordinators"];

/// The coordinators of one cluster, as operators see them.
#[derive(Debug, Clone)]
pub struct Cluster {
    addresses: Vec<String>,
    stale: bool,
    tls: Arc<ClientConfig>,
}

impl Cluster {
    /// Addresses are `host:port`, at least one; the certificate says who asks, and under which root whoever answers must be.
    pub fn new(addresses: Vec<String>, certificate: &Credentials) -> Result<Self, Failure> {
        let tls = tls::client(certificate.root(), Some(certificate)).map_err(|error| Failure::NoCertificate { reason: error.to_string() })?;
        Ok(Self { addresses, stale: false, tls })
    }

    /// Statuses are read from any member's copy.
    pub fn stale(self, stale: bool) -> Self {
        Self { stale, ..self }
    }

    fn tried(&self, reasons: &[String]) -> String {
        if reasons.is_empty() { self.addresses.join(", ") } else { reasons.join("; ") }
    }

    /// The cluster as its leader sees it; without one, as the newest coordinator that answers does.
    pub async fn status(&self) -> Result<ClusterStatus, Failure> {
        let mut asked: FuturesUnordered<_> = self.addresses.iter().map(|a| self.ask_status(a, self.stale)).collect();
        let mut best: Option<ClusterStatus> = None;
        let mut hint = None;
        let mut untrusted = false;
        let mut reasons = Vec::new();
        while let Some((address, answer)) = asked.next().await {
            match answer {
                // Whoever is first: its age is told.
                Ok(status) if self.stale => return Ok(status),
                Ok(status) => {
                    let leader = leader_address(&status);
                    if leader.as_deref() == Some(address) {
                        return Ok(status);
                    }
                    let rank = |s: &ClusterStatus| (s.leader_id != 0, s.term, s.revision);
                    if best.as_ref().is_none_or(|b| rank(b) < rank(&status)) {
                        hint = leader.or(hint);
                        best = Some(status);
                    }
                }
                Err(status) => {
                    untrusted |= matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
                    hint = leader_hint(status.metadata()).or(hint);
                    reasons.push(format!("{address}: {}", why(&status)));
                }
            }
        }
        // A leader that is not among our addresses (they may be old) is asked too.
        if let Some(leader) = hint.filter(|leader| !self.addresses.contains(leader))
            && let (_, Ok(status)) = self.ask_status(&leader, false).await
        {
            return Ok(status);
        }
        best.ok_or_else(|| match self.tried(&reasons) {
            reason if untrusted => Failure::Untrusted { reason },
            tried => Failure::Unreachable { tried },
        })
    }

    /// What the leader is about to do and what it waits for.
    pub async fn plan(&self) -> Result<PlanReport, Failure> {
        let call = async |mut client: OperatorsClient<Channel>| client.plan(PlanRequest {}).await;
        self.at_leader("plan", call).await
    }

    /// Why a slot is as it is.
    pub async fn explain(&self, slot: SlotRef) -> Result<Explanation, Failure> {
        let call = async |mut client: OperatorsClient<Channel>| client.explain(ExplainRequest { slot: Some(slot.clone()) }).await;
        self.at_leader("explain", call).await
    }

    /// Events after a revision and, with `follow`, those to come. The stream has no time limit.
    pub async fn events(&self, after_revision: u64, follow: bool) -> Result<Streaming<Event>, Failure> {
        let call = async |mut client: OperatorsClient<Channel>| client.events(Request::new(EventsRequest { after_revision, follow })).await;
        self.at_leader("events", call).await
    }

    /// Drains a node, or takes a drain back.
    pub async fn drain(&self, instance_id: &str, undo: bool) -> Result<Accepted, Failure> {
        let request = DrainRequest { instance_id: instance_id.to_owned(), undo, request_id: request_id() };
        let call = async |mut client: OperatorsClient<Channel>| client.drain(request.clone()).await;
        self.at_leader("drain", call).await
    }

    /// Keeps new slots off a node, or lets them come again.
    pub async fn cordon(&self, instance_id: &str, undo: bool) -> Result<Accepted, Failure> {
        let request = CordonRequest { instance_id: instance_id.to_owned(), undo, request_id: request_id() };
        let call = async |mut client: OperatorsClient<Channel>| client.cordon(request.clone()).await;
        self.at_leader("cordon", call).await
    }

    /// Wants one slot elsewhere, or takes that back.
    pub async fn move_slot(&self, request: MoveRequest) -> Result<Accepted, Failure> {
        let request = MoveRequest { request_id: request_id(), ..request };
        let call = async |mut client: OperatorsClient<Channel>| client.move_slot(request.clone()).await;
        self.at_leader("move", call).await
    }

    /// Wants another number of slots of a role.
    pub async fn scale(&self, role: &str, wanted: u32) -> Result<Accepted, Failure> {
        let request = ScaleRequest { role: role.to_owned(), wanted, request_id: request_id() };
        let call = async |mut client: OperatorsClient<Channel>| client.scale(request.clone()).await;
        self.at_leader("scale", call).await
    }

    /// Wants what a spec in YAML says.
    pub async fn apply(&self, yaml: &str) -> Result<Accepted, Failure> {
        let request = ApplyRequest { yaml: yaml.to_owned(), request_id: request_id() };
        let call = async |mut client: OperatorsClient<Channel>| client.apply(request.clone()).await;
        self.at_leader("apply", call).await
    }

    /// The brake as the leader sees it.
    pub async fn brake(&self) -> Result<BrakeStatus, Failure> {
        let call = async |mut client: OperatorsClient<Channel>| client.show_brake(ShowBrakeRequest {}).await;
        self.at_leader("brake show", call).await
    }

    /// Says that the nodes silent now are gone.
    pub async fn release_brake(&self, by: &str) -> Result<Accepted, Failure> {
        let request = ReleaseBrakeRequest { by: by.to_owned(), request_id: request_id() };
        let call = async |mut client: OperatorsClient<Channel>| client.release_brake(request.clone()).await;
        self.at_leader("brake release", call).await
    }

    /// Says that a lost instance, which EC2 has forgotten, is gone.
    pub async fn declare_gone(&self, instance_id: &str, by: &str) -> Result<Accepted, Failure> {
        let request = DeclareGoneRequest { instance_id: instance_id.to_owned(), by: by.to_owned(), request_id: request_id() };
        let call = async |mut client: OperatorsClient<Channel>| client.declare_gone(request.clone()).await;
        self.at_leader("gone", call).await
    }

    /// Changes which coordinators are wanted.
    pub async fn want_coordinators(&self, add: Vec<WantedCoordinator>, remove: Vec<u32>) -> Result<Accepted, Failure> {
        let request = WantCoordinatorsRequest { add, remove, request_id: request_id() };
        let call = async |mut client: OperatorsClient<Channel>| client.want_coordinators(request.clone()).await;
        self.at_leader("coordinators", call).await
    }

    /// The whole state as of now.
    pub async fn save_snapshot(&self) -> Result<SavedSnapshot, Failure> {
        let call = async |mut client: OperatorsClient<Channel>| client.save_snapshot(SaveSnapshotRequest {}).await;
        self.at_leader("snapshot", call).await
    }

    async fn ask_status<'a>(&self, address: &'a str, stale: bool) -> (&'a str, Result<ClusterStatus, Status>) {
        let ask = async {
            let mut client = self.connect(address).await?;
            Ok(client.status(StatusRequest { stale }).await?.into_inner())
        };
        let answer = tokio::time::timeout(CALL, ask).await;
        (address, answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))))
    }

    async fn connect(&self, address: &str) -> Result<OperatorsClient<Channel>, Status> {
        let unknown = || Status::unavailable(format!("{address} is not known"));
        let to = tokio::net::lookup_host(address).await.map_err(|_| unknown())?.next().ok_or_else(unknown)?;
        let endpoint = Endpoint::from_static("http://coordinator")
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true);
        let way = Way { to, from: None, tls: self.tls.clone(), within: CALL };
        let channel = vp_trust::dial(endpoint, &way).await.map_err(|error| {
            let reason = crate::failure::chain(&error);
            match error {
                DialError::Refused { .. } | DialError::Untrusted { .. } => Status::unauthenticated(reason),
                _ => Status::unavailable(reason),
            }
        })?;
        Ok(OperatorsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    async fn at_leader<T>(&self, what: &str, call: impl AsyncFn(OperatorsClient<Channel>) -> Result<tonic::Response<T>, Status>) -> Result<T, Failure> {
        let until = Instant::now() + SEARCH;
        let mut hint: Option<String> = None;
        let mut answered = false;
        // A call that went out and never came back may have taken effect.
        let mut unanswered = false;
        let mut reasons = Vec::new();
        let mut untrusted = None;
        while Instant::now() < until {
            let round: Vec<String> = hint.take().into_iter().chain(self.addresses.iter().cloned()).collect();
            reasons.clear();
            for address in round {
                let client = match self.connect(&address).await {
                    Ok(client) => client,
                    Err(status) => {
                        // One bad clock, or a stranger at an old address, is not the cluster's word.
                        if status.code() == Code::Unauthenticated {
                            untrusted = Some(status.message().to_owned());
                        }
                        reasons.push(format!("{address}: {}", why(&status)));
                        continue;
                    }
                };
                let status = match tokio::time::timeout(CALL, call(client)).await {
                    Ok(Ok(answer)) => return Ok(answer.into_inner()),
                    Ok(Err(status)) => status,
                    Err(_) => Status::deadline_exceeded("no answer in time"),
                };
                unanswered |= matches!(status.code(), Code::DeadlineExceeded | Code::Unknown);
                reasons.push(format!("{address}: {}", why(&status)));
                if let Some(leader) = leader_hint(status.metadata()) {
                    answered = true;
                    hint = Some(leader);
                    break;
                }
                match status.code() {
                    // Not the leader, and it knows of none; without that key it is the leader's own refusal.
                    Code::FailedPrecondition if status.metadata().contains_key(LEADER_KEY) => answered = true,
                    Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {}
                    _ => return Err(refusal(what, &status)),
                }
            }
            if let Some(reason) = untrusted.take().filter(|_| !answered && !unanswered) {
                return Err(Failure::Untrusted { reason });
            }
            if hint.is_none() {
                tokio::time::sleep(ROUND).await; // between rounds; the condition is an answer
            }
        }
        let tried = self.tried(&reasons);
        if unanswered && ORDERS.contains(&what) {
            return Err(Failure::Unknown { what: format!("{what} ({tried})") });
        }
        Err(if answered { Failure::Leaderless { tried } } else { Failure::Unreachable { tried } })
    }
}

/// The leader's `host:port` as a status names it.
pub fn leader_address(status: &ClusterStatus) -> Option<String> {
    let leader = status.coordinators.iter().find(|c| c.leader || (status.leader_id != 0 && c.id == status.leader_id))?;
    let address = leader.address.as_str();
    Some(if address.contains(':') { address.to_owned() } else { format!("{address}:{}", vp_proto::COORDINATOR_PORT) })
}

/// One for all tries of one call: asked twice, it is applied once.
fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn leader_hint(metadata: &MetadataMap) -> Option<String> {
    let text = metadata.get(LEADER_KEY)?.to_str().ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// One line for a person: the innermost cause says most ("connection refused").
fn why(status: &Status) -> String {
    let message = status.message();
    let known = ["onnection refused", "no answer in time", "imed out", "unreachable"];
    match known.iter().find(|k| message.contains(*k)) {
        Some(&"onnection refused") => "connection refused".to_owned(),
        Some(&"imed out") => "no answer in time".to_owned(),
        _ if message.is_empty() => format!("{:?}", status.code()),
        _ => message.to_owned(),
    }
}

fn refusal(what: &str, status: &Status) -> Failure {
    match status.code() {
        Code::Unimplemented => Failure::Refused(format!("{what}: this coordinator does not know that call (an older version?)")),
        _ => Failure::Refused(format!("{what}: {}", why(status))),
    }
}
