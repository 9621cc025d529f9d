//! A member whose state a majority contradicts: three real members (bootstrap, log, disk, gRPC), one of which makes something else of one entry. It finds
//! itself outvoted, hands over if it leads, stops, still says what it is, and is refused when it is started again.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use raft::eraftpb::ConfState;
use tokio::{sync::Notify, task::JoinHandle};
use vp_cluster::{Command, MemberId};
use vp_coordinator::{
    api::{
        admission::Admission,
        group::identify,
        limits::{MEMBERS, bounded},
    },
    bootstrap::{self, BootstrapError, Me, find_place},
    certificates::Certificates,
    claims::{ClaimError, Claims},
    joining::{Join, Joined},
    leader::{self, Leader},
    machine::{BadState, ClusterMachine, Entry},
    membership::follow,
    peers::Network,
    raft::{Machine, NodeError, start},
    registry::Registry,
    settings::{self, Settings},
    state_hash,
    trust::Trust,
    world::World,
};
use vp_proto::COORDINATOR_PORT;
use vp_trust::{Authority, SealingKey};

/// Far above two comparisons.
const WITHIN: Duration = Duration::from_secs(60);

/// The shipped machine; once told to go astray, it makes something else of a note than the others do.
struct Straying {
    inner: ClusterMachine,
    astray: Arc<AtomicBool>,
}

impl Machine for Straying {
    type Error = BadState;

    fn apply(&mut self, index: u64, entry: &[u8]) -> Vec<u8> {
        let mut entry: Entry = serde_json::from_slice(entry).unwrap();
        if let Command::Note { detail, .. } = &mut entry.command
            && self.astray.load(Ordering::Relaxed)
        {
            detail.push_str(", or so it says");
        }
        self.inner.apply(index, &serde_json::to_vec(&entry).unwrap())
    }

    fn configured(&mut self, index: u64, conf: &ConfState) {
        self.inner.configured(index, conf);
    }

    fn snapshot(&self) -> Vec<u8> {
        self.inner.snapshot()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), BadState> {
        self.inner.restore(bytes)
    }

    fn batch_done(&mut self, index: u64) {
        self.inner.batch_done(index);
    }
}

/// The cluster bucket, in memory.
#[derive(Default)]
struct Objects(Mutex<BTreeMap<String, (Vec<u8>, u64)>>);

impl Claims for Objects {
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, String)>, ClaimError> {
        Ok(self.0.lock().unwrap().get(key).map(|(bytes, tag)| (bytes.clone(), tag.to_string())))
    }

    async fn put(&self, key: &str, body: Vec<u8>, etag: Option<&str>) -> Result<(), ClaimError> {
        let mut objects = self.0.lock().unwrap();
        let found = objects.get(key).map(|(_, tag)| tag.to_string());
        if found.as_deref() == etag {
            let tag = objects.values().map(|(_, tag)| *tag).max().unwrap_or(0) + 1;
            objects.insert(key.to_owned(), (body, tag));
        }
        Ok(())
    }
}

/// Founders ask nobody.
struct Nobody;

impl Join for Nobody {
    async fn join(&self, _: &str) -> Result<Joined, String> {
        Err("nobody leads".to_owned())
    }
}

/// The one root of the test's cluster, opened anew for each member.
fn authority() -> Authority {
    static SEALED: LazyLock<(Vec<u8>, SealingKey)> = LazyLock::new(|| {
        let key = SealingKey::generate().unwrap();
        (Authority::create("test").unwrap().seal(&key).unwrap(), key)
    });
    Authority::open("test", &SEALED.0, &SEALED.1, None).unwrap()
}

/// Coordinator `number` of three in 127.37.`net`.0/24.
fn settings(root: &Path, net: u8, number: u32) -> Settings {
    let peers: String = (1..=3).map(|n| format!("  - {{id: {n}, address: 127.37.{net}.{n}, zone: zone-{n}, group: coordinator-{n}}}\n")).collect();
    let user_data = settings::parse(&format!(
        "cluster: test\nrun: coordinator\ngroup: test-nodes\ncoordinators:\n{peers}coordinator: {number}\nlease_ms: 2000\n\
         aws: {{region: us-east-1, endpoint_url: null, s3_endpoint_url: null}}\n\
         buckets: {{uploads: u, results: r, cluster: c}}\nidentity_public_key: AAAA\n\
         trust: {{root_sha256: {}, sealing_key: {}=}}\nspec: {{}}\n",
        "0".repeat(64),
        "A".repeat(43)
    ))
    .unwrap();
    let me = user_data.coordinators.iter().find(|peer| peer.id == number).unwrap().clone();
    Settings {
        user_data,
        me,
        instance_id: format!("i-{number}"),
        instance_address: format!("127.37.{net}.{}", 10 + number),
        identity_document: String::new(),
        identity_signature: String::new(),
        data: root.join(number.to_string()).join("coordinator"),
        roles: PathBuf::new(),
    }
}

/// A coordinator without its watches and without agents.
struct Member {
    leader: Arc<Leader>,
    network: Network,
    trust: Arc<Trust>,
    astray: Arc<AtomicBool>,
    /// Ends when a majority contradicts it.
    outvoted: JoinHandle<u64>,
    serves: Vec<JoinHandle<()>>,
    ended: JoinHandle<Result<(), NodeError>>,
}

async fn member(root: &Path, net: u8, number: u32, objects: &Objects) -> Member {
    let settings = settings(root, net, number);
    let place = find_place(objects, &Nobody, &Me::new(&settings)).await.unwrap();
    let (inner, state, reached) = ClusterMachine::new();
    let astray = Arc::new(AtomicBool::new(false));
    let node = place.open(&settings.data, settings.user_data.lease_ms, Straying { inner, astray: astray.clone() }).unwrap();
    let own = SocketAddr::from((settings.me.address, COORDINATOR_PORT));
    let trust = Arc::new(Trust::new(authority(), u64::from(number), own.ip()).unwrap());
    let network = Network::new(place.cluster_id.clone(), place.member, own, trust.clone(), place.members.clone());
    let (raft, ended) = start(node, network.outgoing());
    let hashes = state_hash::latest(reached);
    let door = trust.members(COORDINATOR_PORT, MEMBERS).unwrap();
    let service = network.service(raft.clone(), &settings.instance_id, hashes.clone());
    let server = tokio::spawn(async move {
        bounded().layer(Admission).add_service(service).serve_with_incoming(door.incoming().unwrap()).await.unwrap();
    });
    let leader = Arc::new(Leader {
        settings,
        cluster_id: place.cluster_id.clone(),
        member: MemberId(place.member),
        certificates: Certificates::default(),
        raft,
        state,
        registry: Registry::default(),
        world: World::default(),
        unix_ms: Box::new(leader::unix_ms),
        wake: Notify::new(),
    });
    let follows = tokio::spawn(follow(network.clone(), leader.member, leader.state.clone()));
    let outvoted = tokio::spawn(state_hash::run(leader.clone(), trust.clone(), hashes));
    Member { leader, network, trust, astray, outvoted, serves: vec![server, follows], ended: tokio::spawn(ended) }
}

impl Member {
    /// Outvoted at `index`. True: it led no longer when it stopped.
    async fn stands_aside(&mut self, index: u64) -> bool {
        bootstrap::stand_aside(&self.network, &self.leader.settings.data, index).unwrap();
        let ended = &mut self.ended;
        bootstrap::retire(&self.leader.raft, async move { ended.await.unwrap() }).await.unwrap()
    }

    async fn closes(&mut self) {
        for task in self.serves.drain(..) {
            task.abort();
            let _ = task.await;
        }
    }

    async fn stop(mut self) {
        self.outvoted.abort();
        self.closes().await;
        self.leader.raft.stop();
        self.ended.await.unwrap().unwrap();
    }
}

type Members = BTreeMap<u32, Member>;

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WITHIN;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn leading(members: &Members) -> Option<u32> {
    members.iter().find(|(_, member)| member.leader.leads()).map(|(number, _)| *number)
}

/// A note that whoever leads says is applied.
async fn note(members: &Members, kind: &str) {
    let command = Command::Note { kind: kind.to_owned(), subject: "all".to_owned(), detail: "the same for all".to_owned() };
    until(kind, async || members[&leading(members)?].leader.propose(command.clone()).await.ok()).await;
}

async fn one_goes_astray(net: u8, leads: bool) {
    let (dir, objects) = (tempfile::tempdir().unwrap(), Objects::default());
    let mut members = Members::new();
    for number in 1..=3 {
        members.insert(number, member(dir.path(), net, number, &objects).await);
    }
    let first = until("a leader", async || leading(&members)).await;
    let victim = if leads { first } else { *members.keys().find(|number| **number != first).unwrap() };
    members[&victim].astray.store(true, Ordering::Relaxed);
    note(&members, "note").await;

    let mut astray = members.remove(&victim).unwrap();
    let index = tokio::time::timeout(WITHIN, &mut astray.outvoted).await.expect("it is never outvoted").unwrap();
    assert!(index > 0);
    assert!(astray.stands_aside(index).await, "it leads no more");

    // The others know, go on, and none of them is taken for the one that is wrong.
    let id = MemberId(u64::from(victim));
    let knows = |member: &Member| member.leader.state().coordinators.members.get(&id).is_some_and(|member| member.differs_at.is_some());
    until("all others know that it differs", async || members.values().all(&knows).then_some(())).await;
    note(&members, "after it").await;
    assert!(members.values().all(|member| !member.outvoted.is_finished()));
    let asks = members.values().next().unwrap();
    let address = format!("127.37.{net}.{victim}");
    let said = until("it says what it is", async || identify(&asks.trust, &address, &asks.leader.cluster_id).await).await;
    assert_eq!((said.id, said.differs_at), (id.0, index));

    // Whatever starts it again: it takes no part.
    astray.closes().await;
    let again = find_place(&objects, &Nobody, &Me::new(&astray.leader.settings)).await;
    assert!(matches!(again, Err(BootstrapError::Differs { coordinator, .. }) if coordinator == victim), "{again:?}");
    for (_, member) in members {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn process_a_follower_whose_state_a_majority_contradicts_stops_and_is_refused_when_it_starts_again() {
    one_goes_astray(10, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn process_a_leader_whose_state_a_majority_contradicts_hands_over_stops_and_is_refused_when_it_starts_again() {
    one_goes_astray(11, true).await;
}
