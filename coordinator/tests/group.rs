//! Several members: elections, catching up by snapshot and checked envelopes over real gRPC; a dropped snapshot on a network in memory.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]
mod ledger;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ledger::{Ledger, command, config, identity, until};
use prost_raft::Message as _;
use raft::eraftpb::{Message, MessageType};
use tonic::Code;
use tonic::transport::Endpoint;
use vp_coordinator::api::admission::Admission;
use vp_coordinator::api::limits::{MEMBERS, bounded};
use vp_coordinator::peers::Network;
use vp_coordinator::raft::{Config, Node, NodeError, Outbox, RaftHandle, open, start};
use vp_coordinator::storage::{DiskStore, StoreOptions};
use vp_coordinator::trust::Trust;
use vp_proto::v1::{Envelope, peers_client::PeersClient};
use vp_trust::request::Fresh;
use vp_trust::{Authority, Name, Rank, SealingKey, Serial, Way, tls};

struct Member {
    handle: RaftHandle,
    ledger: Ledger,
    ended: tokio::task::JoinHandle<Result<(), NodeError>>,
    server: tokio::task::JoinHandle<()>,
}

/// The one root of the test's cluster, opened anew for each member.
fn authority() -> Authority {
    static SEALED: LazyLock<(Vec<u8>, SealingKey)> = LazyLock::new(|| {
        let key = SealingKey::generate().unwrap();
        (Authority::create("test").unwrap().seal(&key).unwrap(), key)
    });
    Authority::open("test", &SEALED.0, &SEALED.1, None).unwrap()
}

const VOTERS: [u64; 3] = [1, 2, 3];

fn address(id: u64, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 37, 0, id as u8], port))
}

fn member(root: &Path, id: u64, port: u16) -> Member {
    let members: BTreeMap<u64, SocketAddr> = VOTERS.iter().map(|id| (*id, address(*id, port))).collect();
    let own = address(id, port);
    let settings = Config { tick: Duration::from_millis(50), ..config(id, &VOTERS) };
    let ledger = Ledger::default();
    let node = open(&root.join(id.to_string()), &identity(id), StoreOptions::default(), settings, ledger.clone()).unwrap();
    let trust = Arc::new(Trust::new(authority(), id, own.ip()).unwrap());
    let door = trust.members(port, MEMBERS).unwrap();
    let network = Network::new("test".to_owned(), id, own, trust, members);
    let (handle, ended) = start(node, network.outgoing());
    let service = network.service(handle.clone(), "i-1", std::sync::Arc::new(|| (7, 42)));
    let server = tokio::spawn(async move {
        bounded().layer(Admission).add_service(service).serve_with_incoming(door.incoming().unwrap()).await.unwrap();
    });
    Member { handle, ledger, ended: tokio::spawn(ended), server }
}

async fn leader(members: &[Member]) -> usize {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut watches: Vec<_> = members.iter().map(|m| m.handle.watch()).collect();
    loop {
        if let Some(found) = watches.iter().position(|w| w.borrow().leads()) {
            return found;
        }
        assert!(Instant::now() < deadline, "no leader");
        let changes = watches.iter_mut().map(|w| Box::pin(w.changed()));
        let _ = tokio::time::timeout(Duration::from_secs(1), futures::future::select_all(changes)).await;
    }
}

async fn stop(member: Member) {
    member.server.abort();
    let _ = member.server.await;
    member.handle.stop();
    member.ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn process_three_members_elect_fail_over_and_catch_up_100_000_entries_by_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut members: Vec<Member> = VOTERS.iter().map(|id| member(dir.path(), *id, 7461)).collect();
    let first = leader(&members).await;
    let index = members[first].handle.propose(command(0, 64)).await.unwrap().index;
    assert!(members[first].handle.read_index().await.unwrap() >= index);
    let gone = members[first].handle.status().id;
    stop(members.remove(first)).await;
    let second = leader(&members).await;
    let handle = members[second].handle.clone();
    for batch in 0..100 {
        let proposals = (1..=1000).map(|number| handle.propose(command(batch * 1000 + number, 64)));
        for reply in futures::future::join_all(proposals).await {
            reply.unwrap();
        }
    }
    let back = member(dir.path(), gone, 7461);
    let applied = handle.status().applied;
    until("catch up", &back.handle, |s| s.applied >= applied).await;
    let numbers = back.ledger.numbers();
    assert_eq!(numbers, members[second].ledger.numbers());
    assert_eq!(numbers, (0..=100_000).collect::<Vec<u64>>());
    stop(back).await;
    let store = DiskStore::open(&dir.path().join(gone.to_string()), &identity(gone), StoreOptions::default()).unwrap();
    assert!(store.log().first_index() > 50_000, "not by snapshot: {}", store.log().first_index());
    for member in members {
        stop(member).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envelopes_of_another_cluster_sender_or_receiver_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = member(dir.path(), 1, 7462);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut client = loop {
        let another = Trust::new(authority(), 2, address(2, 7462).ip()).unwrap();
        match vp_trust::dial(Endpoint::from_static("http://one"), &another.way(address(1, 7462), Duration::from_secs(1))).await {
            Ok(channel) => break PeersClient::new(channel),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    let message = |from, to, kind| Message { from, to, term: 1, msg_type: kind as i32, ..Default::default() }.encode_to_vec();
    let heartbeat = |from, to| message(from, to, MessageType::MsgRequestPreVote);
    let envelope = |cluster: &str, from, to, message| Envelope { cluster: cluster.to_owned(), from, to, message };
    let refused = [
        ("cluster", envelope("other", 2, 1, heartbeat(2, 1)), Code::PermissionDenied),
        ("receiver", envelope("test", 2, 3, heartbeat(2, 3)), Code::PermissionDenied),
        ("sender no member", envelope("test", 0, 1, heartbeat(0, 1)), Code::PermissionDenied),
        ("sender is itself", envelope("test", 1, 1, heartbeat(1, 1)), Code::PermissionDenied),
        ("message of another sender", envelope("test", 2, 1, heartbeat(3, 1)), Code::PermissionDenied),
        ("message to another", envelope("test", 2, 1, heartbeat(2, 3)), Code::PermissionDenied),
        ("a proposal", envelope("test", 2, 1, message(2, 1, MessageType::MsgPropose)), Code::PermissionDenied),
        ("no raft message", envelope("test", 2, 1, vec![0xFF; 9]), Code::InvalidArgument),
    ];
    for (name, envelope, code) in refused {
        let answer = client.send(futures::stream::iter([envelope])).await;
        assert_eq!(answer.map(|_| ()).map_err(|status| status.code()), Err(code), "{name}");
    }
    let taken = client.send(futures::stream::iter([envelope("test", 2, 1, heartbeat(2, 1))])).await.unwrap();
    assert_eq!(taken.into_inner().accepted, 1);
    // An id beyond all that it has heard of: added while it was behind, and only that member can tell it so.
    let taken = client.send(futures::stream::iter([envelope("test", 9, 1, heartbeat(9, 1))])).await.unwrap();
    assert_eq!(taken.into_inner().accepted, 1);
    let said = client.identify(vp_proto::v1::IdentifyRequest { cluster: "test".to_owned() }).await.unwrap().into_inner();
    assert_eq!((said.id, said.applied, said.state_hash, said.instance_id.as_str()), (1, 7, 42, "i-1"));
    assert_eq!(said.refused_envelopes, 8, "each refusal is counted");
    stop(one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_under_no_coordinators_certificate_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = member(dir.path(), 1, 7463);
    let node = Fresh::new(&Name::node("test", "i-1")).unwrap();
    let (request, serial, from) = (vp_trust::Request::read(node.der()).unwrap(), Serial { term: 1, count: 1 }, address(9, 0).ip());
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let node = node.granted(authority().node(&request, from, serial, now_s, Duration::from_secs(600)).unwrap());
    let admin = authority().operator(Rank::Admin, "ada", now_s).unwrap();
    for own in [node, admin] {
        let tls = tls::client(authority().hash(), Some(&own)).unwrap();
        let way = Way { to: address(1, 7463), from: Some(from), tls, within: Duration::from_secs(5) };
        let mut client = PeersClient::new(vp_trust::dial(Endpoint::from_static("http://one"), &way).await.unwrap());
        // A member's, and one beyond all that were heard of.
        for id in [2, 9] {
            let message = Message { from: id, to: 1, term: 1, msg_type: MessageType::MsgRequestPreVote as i32, ..Default::default() }.encode_to_vec();
            let answer = client.send(futures::stream::iter([Envelope { cluster: "test".to_owned(), from: id, to: 1, message }])).await;
            assert_eq!(answer.unwrap_err().code(), Code::PermissionDenied, "{own:?}");
        }
    }
    stop(one).await;
}

/// A network in memory: what is sent is queued, unless `lose` takes it.
#[derive(Default)]
struct Wire {
    queue: VecDeque<Message>,
    /// Cut off: everything to and from it vanishes without a word.
    cut: Option<u64>,
    /// So many snapshots are dropped at the sender, which is told.
    drop_snapshots: usize,
    snapshots: usize,
}

impl Outbox for Wire {
    fn send(&mut self, message: Message) -> bool {
        if message.get_msg_type() == MessageType::MsgSnapshot {
            self.snapshots += 1;
            if self.snapshots <= self.drop_snapshots {
                return false;
            }
        }
        if self.cut != Some(message.to) && self.cut != Some(message.from) {
            self.queue.push_back(message);
        }
        true
    }
}

fn deliver(nodes: &mut BTreeMap<u64, Node<DiskStore, Ledger>>, wire: &mut Wire) {
    loop {
        for node in nodes.values_mut() {
            node.drive(wire).unwrap();
        }
        let Some(message) = wire.queue.pop_front() else { return };
        if let Some(node) = nodes.get_mut(&message.to) {
            let _ = node.raw().step(message);
        }
    }
}

#[test]
fn a_follower_whose_snapshot_was_dropped_is_not_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let open = |id: u64| {
        let settings = Config { snapshot_every: 50, keep_entries: 5, ..config(id, &VOTERS) };
        open(&dir.path().join(id.to_string()), &identity(id), StoreOptions::default(), settings, Ledger::default()).unwrap()
    };
    let mut nodes: BTreeMap<u64, _> = VOTERS.iter().map(|id| (*id, open(*id))).collect();
    let mut wire = Wire { cut: Some(3), drop_snapshots: 3, ..Wire::default() };
    nodes.get_mut(&1).unwrap().raw().campaign().unwrap();
    deliver(&mut nodes, &mut wire);
    for number in 0..200 {
        nodes.get_mut(&1).unwrap().propose(command(number, 50)).unwrap();
        deliver(&mut nodes, &mut wire);
    }
    wire.cut = None;
    let wanted = nodes[&1].applied();
    for _ in 0..100 {
        for node in nodes.values_mut() {
            node.raw().tick();
        }
        deliver(&mut nodes, &mut wire);
    }
    assert!(wire.snapshots > 3, "only {} snapshots were tried", wire.snapshots);
    assert!(nodes[&3].applied() >= wanted, "behind at {} of {wanted}", nodes[&3].applied());
    assert_eq!(nodes[&3].machine().numbers(), (0..200).collect::<Vec<u64>>());
}
