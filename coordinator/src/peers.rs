//! Raft messages between coordinators: one outgoing stream a peer with a bounded queue (full = dropped, as Raft allows), and
//! the Peers service that checks every envelope before its message is stepped. Left out: what the messages mean (`raft`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost_raft::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status, Streaming};
use vp_proto::MAX_MESSAGE_BYTES;
use vp_proto::v1::peers_client::PeersClient;
use vp_proto::v1::peers_server::{Peers, PeersServer};
use vp_proto::v1::{Envelope, IdentifyRequest, IdentifyResponse, SendSummary};
use vp_trust::DialError;

use crate::raft::{Outbox, RaftHandle};
use crate::trust::Trust;

const QUEUE: usize = 256;
/// How far ahead of ours a peer's term may be: two elections a second for six days.
const FURTHEST_TERM: u64 = 1_000_000;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

struct Parcel {
    envelope: Envelope,
    snapshot: bool,
}

struct Link {
    peer: u64,
    address: SocketAddr,
    trust: Arc<Trust>,
    parcels: mpsc::Receiver<Parcel>,
}

/// The connections of one member to the others.
pub struct Network {
    cluster: String,
    id: u64,
    members: Vec<u64>,
    senders: BTreeMap<u64, mpsc::Sender<Parcel>>,
    links: Mutex<Vec<Link>>,
}

/// Where the raft thread puts its messages.
pub struct Outgoing {
    cluster: String,
    id: u64,
    senders: BTreeMap<u64, mpsc::Sender<Parcel>>,
}

impl Network {
    /// Member `id` under its own `trust`, among `members` (itself may be listed). Connects to nobody before [`Network::service`].
    pub fn new(cluster: String, id: u64, trust: &Arc<Trust>, members: BTreeMap<u64, SocketAddr>) -> Network {
        let (mut senders, mut links) = (BTreeMap::new(), Vec::new());
        for (&peer, &address) in members.iter().filter(|(peer, _)| **peer != id) {
            let (sender, parcels) = mpsc::channel(QUEUE);
            senders.insert(peer, sender);
            links.push(Link { peer, address, trust: trust.clone(), parcels });
        }
        Network { cluster, id, members: members.into_keys().collect(), senders, links: Mutex::new(links) }
    }

    /// What to give to [`crate::raft::start`].
    pub fn outgoing(&self) -> Outgoing {
        Outgoing { cluster: self.cluster.clone(), id: self.id, senders: self.senders.clone() }
    }

    /// Starts the outgoing streams (on the current runtime; they end when the raft thread does) and gives the service, which
    /// tells peers the index and hash that `state_hash` gives.
    pub fn service(&self, raft: RaftHandle, state_hash: StateHash) -> PeersServer<PeersApi> {
        let links = std::mem::take(&mut *self.links.lock().unwrap_or_else(PoisonError::into_inner));
        for link in links {
            tokio::spawn(link.run(raft.clone()));
        }
        PeersServer::new(PeersApi { cluster: self.cluster.clone(), id: self.id, members: self.members.clone(), raft, state_hash })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

impl Outbox for Outgoing {
    fn send(&mut self, message: Message) -> bool {
        let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        let envelope = Envelope { cluster: self.cluster.clone(), from: self.id, to: message.to, message: message.encode_to_vec() };
        // A dropped message is repeated by Raft.
        self.senders.get(&message.to).is_some_and(|sender| sender.try_send(Parcel { envelope, snapshot }).is_ok())
    }
}

impl Link {
    async fn run(mut self, raft: RaftHandle) {
        let endpoint = Endpoint::from_static("http://coordinator")
            .http2_keep_alive_interval(Duration::from_millis(500))
            .keep_alive_timeout(Duration::from_secs(1))
            .keep_alive_while_idle(true);
        let way = self.trust.way(self.address, Duration::from_secs(1));
        let mut backoff = BACKOFF_MIN;
        loop {
            match vp_trust::dial(endpoint.clone(), &way).await {
                Ok(channel) => {
                    tracing::info!(peer = self.peer, "peer connected");
                    backoff = BACKOFF_MIN;
                    if !self.stream(PeersClient::new(channel), &raft).await {
                        return;
                    }
                    tracing::info!(peer = self.peer, "peer disconnected");
                }
                Err(error @ (DialError::Untrusted { .. } | DialError::Refused { .. })) => {
                    tracing::warn!(peer = self.peer, error = &error as &dyn std::error::Error, "peer is not of this cluster");
                }
                Err(error) => tracing::debug!(peer = self.peer, error = &error as &dyn std::error::Error, "peer not reachable"),
            }
            raft.report_unreachable(self.peer);
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
            // What queued up meanwhile is stale.
            loop {
                match self.parcels.try_recv() {
                    Ok(parcel) if parcel.snapshot => raft.report_snapshot(self.peer, false),
                    Ok(_) => {}
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            }
        }
    }

    /// Sends until the connection breaks (true) or the raft thread has ended (false).
    async fn stream(&mut self, client: PeersClient<tonic::transport::Channel>, raft: &RaftHandle) -> bool {
        let mut client = client.max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (stream, envelopes) = mpsc::channel(16);
        let call = client.send(ReceiverStream::new(envelopes));
        tokio::pin!(call);
        loop {
            let parcel = tokio::select! {
                outcome = &mut call => {
                    if let Err(status) = outcome {
                        tracing::debug!(peer = self.peer, %status, "peer stream ended");
                    }
                    return true;
                }
                parcel = self.parcels.recv() => parcel,
            };
            let Some(parcel) = parcel else { return false };
            let sent = tokio::select! {
                _ = &mut call => false,
                sent = stream.send(parcel.envelope) => sent.is_ok(),
            };
            if parcel.snapshot {
                raft.report_snapshot(self.peer, sent);
            }
            if !sent {
                return true;
            }
        }
    }
}

/// What the member at `address` says of itself; none when it does not answer in time.
pub async fn identify(trust: &Trust, address: SocketAddr, cluster: &str, within: Duration) -> Option<IdentifyResponse> {
    let way = trust.way(address, within);
    let asked = async {
        let channel = vp_trust::dial(Endpoint::from_static("http://coordinator"), &way).await.ok()?;
        PeersClient::new(channel).identify(IdentifyRequest { cluster: cluster.to_owned() }).await.ok()
    };
    Some(tokio::time::timeout(within, asked).await.ok()??.into_inner())
}

/// The index applied last and the hash of the state it gave.
pub type StateHash = Arc<dyn Fn() -> (u64, u64) + Send + Sync>;

/// The Peers service.
pub struct PeersApi {
    cluster: String,
    id: u64,
    members: Vec<u64>,
    raft: RaftHandle,
    state_hash: StateHash,
}

/// A message of the log, if that is what the bytes are. Protobuf lets any number stand for a kind, and the log's own getters panic on one they do not know:
/// each kind is looked at here, before anything else looks.
pub fn decode(bytes: &[u8]) -> Option<Message> {
    let message = Message::decode(bytes).ok()?;
    MessageType::from_i32(message.msg_type)?;
    message.entries.iter().all(|entry| EntryType::from_i32(entry.entry_type).is_some()).then_some(message)
}

impl PeersApi {
    fn check(&self, envelope: &Envelope) -> Result<Message, Status> {
        if envelope.cluster != self.cluster || envelope.to != self.id {
            return Err(Status::permission_denied(format!("this is member {} of cluster {:?}", self.id, self.cluster)));
        }
        let message = decode(&envelope.message).ok_or_else(|| Status::invalid_argument("not a raft message"))?;
        let member = envelope.from != self.id && self.members.contains(&envelope.from);
        if !member || message.from != envelope.from || message.to != self.id {
            return Err(Status::permission_denied("sender or receiver do not match the envelope"));
        }
        // A term that far ahead takes days of elections: it is a lie, and believing it would use terms up.
        if message.term.saturating_sub(self.raft.status().term) > FURTHEST_TERM {
            return Err(Status::permission_denied(format!("term {} is beyond belief", message.term)));
        }
        match message.get_msg_type() {
            MessageType::MsgPropose | MessageType::MsgReadIndex | MessageType::MsgTransferLeader => Err(Status::permission_denied("peers may not propose")),
            // Said by a member to itself only.
            MessageType::MsgHup | MessageType::MsgBeat | MessageType::MsgCheckQuorum | MessageType::MsgUnreachable | MessageType::MsgSnapStatus => {
                Err(Status::permission_denied("a message that never travels"))
            }
            _ => Ok(message),
        }
    }
}

#[tonic::async_trait]
impl Peers for PeersApi {
    async fn send(&self, request: Request<Streaming<Envelope>>) -> Result<Response<SendSummary>, Status> {
        let mut envelopes = request.into_inner();
        let mut accepted = 0;
        while let Some(envelope) = envelopes.message().await? {
            let message = self.check(&envelope).inspect_err(|status| {
                tracing::warn!(from = envelope.from, cluster = envelope.cluster, reason = status.message(), "peer envelope refused");
            })?;
            if !self.raft.step(message) {
                return Err(Status::unavailable("this coordinator is stopping"));
            }
            accepted += 1;
        }
        Ok(Response::new(SendSummary { accepted }))
    }

    async fn identify(&self, request: Request<IdentifyRequest>) -> Result<Response<IdentifyResponse>, Status> {
        let cluster = request.into_inner().cluster;
        if cluster != self.cluster {
            return Err(Status::permission_denied(format!("this is cluster {:?}", self.cluster)));
        }
        let status = self.raft.status();
        let (applied, state_hash) = (self.state_hash)();
        Ok(Response::new(IdentifyResponse { cluster, id: self.id, term: status.term, leader_id: status.leader, applied, state_hash }))
    }
}
