//! Raft messages between coordinators: one outgoing stream a peer with a bounded queue (full = dropped, as Raft allows), and
//! the Peers service that checks every envelope before its message is stepped. Left out: what the messages mean (`raft`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use fail::fail_point;
use prost_raft::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use vp_proto::MAX_MESSAGE_BYTES;
use vp_proto::v1::peers_server::PeersServer;
use vp_proto::v1::{Envelope, IdentifyRequest, IdentifyResponse, SendSummary, StateMark};
use vp_trust::Caller;

mod link;

use self::link::{Link, Parcel};
use crate::api::coordinator;
use crate::raft::{Outbox, RaftHandle};
use crate::trust::Trust;

const QUEUE: usize = 256;
/// Members one may have, those on their way in and out included.
const MOST_PEERS: usize = 16;
/// How far ahead of ours a peer's term may be: two elections a second for six days.
const FURTHEST_TERM: u64 = 1_000_000;
/// The highest term that a member without one takes: some 268 million restores, each of which takes terms a million further.
const FIRST_TERM: u64 = 1 << 48;
/// How far beyond the highest id heard of another's may be: each id is one coordinator that was replaced.
const FURTHEST_MEMBER: u64 = 1000;

/// What is known of another member: where it is, and the way to its stream (which ends when this is dropped).
struct Peer {
    address: SocketAddr,
    parcels: mpsc::Sender<Parcel>,
}

#[derive(Default)]
struct Peers {
    by_id: BTreeMap<u64, Peer>,
    /// Highest id this member knows to have been given.
    last_member: u64,
}

/// Envelopes that were not stepped, since the start.
#[derive(Default)]
pub struct Refused {
    /// Of another cluster, or of this one before it was restored.
    pub cluster: AtomicU64,
    /// To a member that this is not: its predecessor at this address, most likely.
    pub receiver: AtomicU64,
    /// From a member that was removed, or never was one.
    pub sender: AtomicU64,
    /// Not what a member sends.
    pub malformed: AtomicU64,
}

impl Refused {
    /// All of them.
    pub fn total(&self) -> u64 {
        [&self.cluster, &self.receiver, &self.sender, &self.malformed].iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

struct Shared {
    cluster: String,
    id: u64,
    own: SocketAddr,
    trust: Arc<Trust>,
    peers: RwLock<Peers>,
    /// Streams that wait for the raft thread to be started.
    waiting: Mutex<Vec<Link>>,
    raft: OnceLock<RaftHandle>,
    refused: Refused,
    differs_at: AtomicU64,
}

/// The connections of one member to the others, who come and go with the replicated state.
#[derive(Clone)]
pub struct Network(Arc<Shared>);

/// Where the raft thread puts its messages.
pub struct Outgoing(Arc<Shared>);

impl Network {
    /// Member `id` at `own`, among `members` (itself may be listed), whom it calls under its `trust`. Connects to nobody before [`Network::service`].
    pub fn new(cluster: String, id: u64, own: SocketAddr, trust: Arc<Trust>, members: BTreeMap<u64, SocketAddr>) -> Network {
        let network = Network(Arc::new(Shared {
            cluster,
            id,
            own,
            trust,
            peers: RwLock::default(),
            waiting: Mutex::default(),
            raft: OnceLock::new(),
            refused: Refused::default(),
            differs_at: AtomicU64::new(0),
        }));
        let last_member = members.keys().last().copied().unwrap_or_default();
        network.update(&members, last_member);
        network
    }

    /// What to give to [`crate::raft::start`].
    pub fn outgoing(&self) -> Outgoing {
        Outgoing(self.0.clone())
    }

    /// Starts the outgoing streams (on the current runtime; they end when the raft thread does) and gives the service, which
    /// tells peers which instance this is, and the indexes and hashes that `state_hash` gives.
    pub fn service(&self, raft: RaftHandle, instance: &str, state_hash: StateHash) -> PeersServer<PeersApi> {
        if self.0.raft.set(raft.clone()).is_ok() {
            self.0.start_waiting();
        }
        PeersServer::new(PeersApi { network: self.0.clone(), raft, state_hash, instance: instance.to_owned() }).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The members are these now, and no id above `last_member` has been given. Streams to others end.
    pub fn update(&self, members: &BTreeMap<u64, SocketAddr>, last_member: u64) {
        self.0.update(members, last_member);
    }

    pub fn refused(&self) -> &Refused {
        &self.0.refused
    }

    /// This member has stopped because a majority had another state at `index`; it says so when asked.
    pub fn differs(&self, index: u64) {
        self.0.differs_at.store(index, Ordering::Relaxed);
    }
}

impl Shared {
    fn update(&self, members: &BTreeMap<u64, SocketAddr>, last_member: u64) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.last_member = peers.last_member.max(last_member);
        let known_up_to = last_member;
        peers.by_id.retain(|id, peer| *id > known_up_to || members.get(id) == Some(&peer.address));
        for (&id, &address) in members {
            // At one's own address there was the predecessor.
            if id != self.id && address != self.own && peers.by_id.get(&id).is_none_or(|peer| peer.address != address) {
                let rank = members.keys().filter(|other| **other < self.id && **other != id).count() as u32;
                let peer = self.link(id, address, rank);
                peers.by_id.insert(id, peer);
            }
        }
        drop(peers);
        if self.raft.get().is_some() {
            self.start_waiting();
        }
    }

    fn link(&self, peer: u64, address: SocketAddr, rank: u32) -> Peer {
        let (sender, parcels) = mpsc::channel(QUEUE);
        let link = Link { peer, address, trust: self.trust.clone(), rank, parcels };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(link);
        Peer { address, parcels: sender }
    }

    fn start_waiting(&self) {
        let Some(raft) = self.raft.get() else { return };
        let links = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for link in links {
            tokio::spawn(link.run(raft.clone()));
        }
    }

    /// Whether `from` is a member. One with an id beyond all that this member has heard of was added while it was behind: only from it can it
    /// learn so. It is answered at the address it comes from (a member binds its streams to its own). That it is a coordinator of this cluster at all its
    /// certificate has shown, before any envelope was looked at.
    fn knows(&self, from: u64, at: Option<IpAddr>) -> bool {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        if peers.by_id.contains_key(&from) {
            return true;
        }
        let beyond = from.saturating_sub(peers.last_member);
        let unheard_of = (1..=FURTHEST_MEMBER).contains(&beyond) && peers.by_id.len() < MOST_PEERS;
        let rank = peers.by_id.keys().filter(|other| **other < self.id).count() as u32;
        drop(peers);
        let (true, Some(at)) = (unheard_of && from != self.id, at) else { return false };
        tracing::info!(peer = from, address = %at, "a member added while this one was behind");
        let peer = self.link(from, SocketAddr::new(at, self.own.port()), rank);
        self.peers.write().unwrap_or_else(PoisonError::into_inner).by_id.entry(from).or_insert(peer);
        self.start_waiting();
        true
    }
}

impl Outbox for Outgoing {
    fn send(&mut self, message: Message) -> bool {
        let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        let envelope = Envelope { cluster: self.0.cluster.clone(), from: self.0.id, to: message.to, message: message.encode_to_vec() };
        fail_point!("peers::send", |_| false);
        let peers = self.0.peers.read().unwrap_or_else(PoisonError::into_inner);
        // A dropped message is repeated by Raft.
        peers.by_id.get(&message.to).is_some_and(|peer| peer.parcels.try_send(Parcel { envelope, snapshot }).is_ok())
    }
}

/// Indexes, each with the hash of the state there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hashed {
    /// Of what was applied last.
    pub last: (u64, u64),
    /// Of the newest marks, oldest first.
    pub marks: Vec<(u64, u64)>,
}

/// What this member's state hashes to. Asking costs the hashing of whole states, each once: not on a thread that others wait for.
pub trait Hashes: Send + Sync {
    fn now(&self) -> Hashed;
}

/// One that keeps no marks.
impl<F: Fn() -> (u64, u64) + Send + Sync> Hashes for F {
    fn now(&self) -> Hashed {
        Hashed { last: self(), marks: Vec::new() }
    }
}

pub type StateHash = Arc<dyn Hashes>;

/// The Peers service.
pub struct PeersApi {
    network: Arc<Shared>,
    raft: RaftHandle,
    state_hash: StateHash,
    instance: String,
}

/// A message of the log, if that is what the bytes are. Protobuf lets any number stand for a kind, and the log's own getters panic on one they do not know:
/// each kind is looked at here, before anything else looks.
pub fn decode(bytes: &[u8]) -> Option<Message> {
    let message = Message::decode(bytes).ok()?;
    MessageType::from_i32(message.msg_type)?;
    message.entries.iter().all(|entry| EntryType::from_i32(entry.entry_type).is_some()).then_some(message)
}

/// May a peer be in term `theirs` when this member is in `own`? One that far ahead takes days of elections: it is a lie, and believing it would use terms
/// up. A member that has no term yet has just joined, and a restored cluster's terms begin far up.
fn believable(own: u64, theirs: u64) -> bool {
    theirs <= if own == 0 { FIRST_TERM } else { own.saturating_add(FURTHEST_TERM) }
}

impl PeersApi {
    /// Everything that must hold before a message is stepped: an address is used again by a successor, an id never.
    fn check(&self, envelope: &Envelope, at: Option<IpAddr>) -> Result<Message, Status> {
        let Shared { cluster, id, refused, .. } = &*self.network;
        let refuse = |count: &AtomicU64, status: Status| {
            count.fetch_add(1, Ordering::Relaxed);
            Err(status)
        };
        if envelope.cluster != *cluster {
            return refuse(&refused.cluster, Status::permission_denied(format!("this is member {id} of cluster {cluster:?}")));
        }
        if envelope.to != *id {
            return refuse(&refused.receiver, Status::permission_denied(format!("this is member {id} of cluster {cluster:?}")));
        }
        let Some(message) = decode(&envelope.message) else {
            return refuse(&refused.malformed, Status::invalid_argument("not a raft message"));
        };
        if message.from != envelope.from || message.to != *id {
            return refuse(&refused.malformed, Status::permission_denied("sender or receiver do not match the envelope"));
        }
        if envelope.from == *id || !self.network.knows(envelope.from, at) {
            return refuse(&refused.sender, Status::permission_denied(format!("{} is no member", envelope.from)));
        }
        if !believable(self.raft.status().term, message.term) {
            return refuse(&refused.malformed, Status::permission_denied(format!("term {} is beyond belief", message.term)));
        }
        match message.get_msg_type() {
            MessageType::MsgPropose | MessageType::MsgReadIndex | MessageType::MsgTransferLeader => {
                refuse(&refused.malformed, Status::permission_denied("peers may not propose"))
            }
            // Said by a member to itself only.
            MessageType::MsgHup | MessageType::MsgBeat | MessageType::MsgCheckQuorum | MessageType::MsgUnreachable | MessageType::MsgSnapStatus => {
                refuse(&refused.malformed, Status::permission_denied("a message that never travels"))
            }
            _ => Ok(message),
        }
    }
}

#[tonic::async_trait]
impl vp_proto::v1::peers_server::Peers for PeersApi {
    async fn send(&self, request: Request<Streaming<Envelope>>) -> Result<Response<SendSummary>, Status> {
        if let Err(status) = coordinator(&request) {
            self.network.refused.sender.fetch_add(1, Ordering::Relaxed);
            return Err(status);
        }
        let at = request.extensions().get::<Caller>().map(|caller| caller.from);
        let mut envelopes = request.into_inner();
        let mut accepted = 0;
        while let Some(envelope) = envelopes.message().await? {
            let message = self.check(&envelope, at).inspect_err(|status| {
                tracing::warn!(from = envelope.from, cluster = envelope.cluster, reason = status.message(), "peer envelope refused");
            })?;
            fail_point!("peers::step");
            if !self.raft.step(message) {
                return Err(Status::unavailable("this coordinator is stopping"));
            }
            accepted += 1;
        }
        Ok(Response::new(SendSummary { accepted }))
    }

    async fn identify(&self, request: Request<IdentifyRequest>) -> Result<Response<IdentifyResponse>, Status> {
        let cluster = request.into_inner().cluster;
        if cluster != self.network.cluster {
            return Err(Status::permission_denied(format!("this is cluster {:?}", self.network.cluster)));
        }
        let status = self.raft.status();
        let state_hash = self.state_hash.clone();
        let hashed = tokio::task::spawn_blocking(move || state_hash.now()).await;
        let Hashed { last: (applied, state_hash), marks } = hashed.map_err(|error| Status::internal(format!("the state is not hashed: {error}")))?;
        Ok(Response::new(IdentifyResponse {
            cluster,
            id: self.network.id,
            term: status.term,
            leader_id: status.leader,
            applied,
            state_hash,
            instance_id: self.instance.clone(),
            supports: vp_cluster::version::NEWEST,
            refused_envelopes: self.network.refused.total(),
            differs_at: self.network.differs_at.load(Ordering::Relaxed),
            marks: marks.into_iter().map(|(index, hash)| StateMark { index, hash }).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use vp_cluster::restore::TERM_STEP;

    use super::*;

    #[test]
    fn a_term_far_ahead_is_a_lie_but_for_a_member_that_has_just_joined_a_restored_cluster() {
        for (own, theirs, wanted) in [
            (7, 8, true),
            (7, 7 + FURTHEST_TERM, true),
            (7, 8 + FURTHEST_TERM, false),
            (7, u64::MAX, false),
            (u64::MAX - 1, u64::MAX, true),
            (0, 1 + TERM_STEP, true),
            (0, 1 + 1000 * TERM_STEP, true),
            (0, u64::MAX, false),
        ] {
            assert_eq!(believable(own, theirs), wanted, "{theirs} told to a member in term {own}");
        }
    }
}
