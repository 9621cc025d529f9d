//! docs/runbooks/lost-quorum.md, step by step: real members (log, peers, operators' API) in this process, a real S3, and `vpctl` as a person would use it.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, LazyLock},
    time::Duration,
};

use tokio::{sync::Notify, task::JoinHandle};
use vp_cloud::{Endpoints, Session, s3::ObjectStore};
use vp_cluster::MemberId;
use vp_coordinator::{
    api::{admission::Admission, limits, operators::OperatorsApi},
    bootstrap::{Me, find_place},
    certificates::Certificates,
    claims::{self, Bucket, RECORD, Record},
    control::Findings,
    joining::ByLeader,
    leader::{self, Leader},
    machine::ClusterMachine,
    membership,
    peers::Network,
    raft,
    registry::Registry,
    settings::{self, Settings},
    state_hash,
    trust::{self, Trust},
    world::World,
};
use vp_core_tests::root::{Root, now_s};
use vp_proto::{COORDINATOR_PORT, v1::operators_server::OperatorsServer};
use vp_tests::{
    region::{components, programs},
    wait_until,
};
use vp_trust::Rank;

/// Folders of people's certificates.
static PEOPLE: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

const BUCKET: &str = "test-cluster";
const S3: &str = "127.37.12.2:7070";
const ADDRESSES: &str = "127.37.12.11,127.37.12.12,127.37.12.13";

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(127, 37, 12, 10 + number as u8)
}

/// The user data of coordinator `number`.
fn user_data(number: u32, root: &Root) -> String {
    let peers: String = (1..=3).map(|n| format!("  - {{id: {n}, address: {}, zone: zone-{n}, group: coordinator-{n}}}\n", address(n))).collect();
    format!(
        "cluster: test\nrun: coordinator\ngroup: test-nodes\ncoordinators:\n{peers}coordinator: {number}\nlease_ms: 2000\n\
         aws: {{region: us-east-1, endpoint_url: null, s3_endpoint_url: \"http://{S3}\"}}\n\
         buckets: {{uploads: u, results: r, cluster: {BUCKET}}}\nidentity_public_key: AAAA\n\
         trust: {{root_sha256: {}, sealing_key: {}}}\nspec: {{}}\n",
        root.hash(),
        root.sealing_key().to_base64()
    )
}

fn settings(folder: &Path, root: &Root, number: u32, instance: &str) -> Settings {
    let user_data = settings::parse(&user_data(number, root)).unwrap();
    let me = user_data.coordinators.iter().find(|peer| peer.id == number).unwrap().clone();
    Settings {
        user_data,
        me,
        instance_id: instance.to_owned(),
        instance_address: "127.37.12.9".to_owned(),
        identity_document: String::new(),
        identity_signature: String::new(),
        data: folder.join(instance).join("coordinator"),
        roles: PathBuf::new(),
    }
}

/// A coordinator without its watches of AWS, ZooKeeper and agents.
struct Coordinator {
    leader: Arc<Leader>,
    tasks: Vec<JoinHandle<()>>,
    ended: JoinHandle<Result<(), raft::NodeError>>,
}

async fn start(folder: &Path, root: &Root, number: u32, instance: &str, store: &ObjectStore) -> Coordinator {
    let settings = settings(folder, root, number, instance);
    let trust = Arc::new(Trust::load(store, &settings).await.unwrap());
    let bucket = Bucket { store: store.clone(), name: BUCKET.to_owned() };
    let place = find_place(&bucket, &ByLeader { settings: &settings, trust: &trust }, &Me::new(&settings)).await.unwrap();
    let (machine, state, reached) = ClusterMachine::new();
    let node = place.open(&settings.data, settings.user_data.lease_ms, machine).unwrap();
    let own = SocketAddr::from((address(number), COORDINATOR_PORT));
    let network = Network::new(place.cluster_id.clone(), place.member, own, trust.clone(), place.members.clone());
    let (raft, ended) = raft::start(node, network.outgoing());
    let member = MemberId(place.member);
    let cluster_id = place.cluster_id;
    let leader = Leader {
        settings,
        cluster_id,
        member,
        certificates: Certificates::default(),
        raft,
        state,
        registry: Registry::default(),
        world: World::default(),
        unix_ms: Box::new(leader::unix_ms),
        wake: Notify::new(),
    };
    let leader = Arc::new(leader);
    let (_, findings) = tokio::sync::watch::channel(Findings::default());
    let door = trust.members(COORDINATOR_PORT, limits::MEMBERS).unwrap();
    let server = limits::bounded()
        .layer(Admission)
        .add_service(OperatorsServer::new(OperatorsApi::new(leader.clone(), trust, findings)))
        .add_service(network.service(leader.raft.clone(), instance, state_hash::latest(reached)))
        .serve_with_incoming(door.incoming().unwrap());
    let serves = tokio::spawn(async move { server.await.unwrap() });
    let follows = tokio::spawn(membership::follow(network, member, leader.state.clone()));
    Coordinator { leader, tasks: vec![serves, follows], ended: tokio::spawn(ended) }
}

impl Coordinator {
    async fn stop(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        self.leader.raft.stop();
        self.ended.await.unwrap().unwrap();
    }
}

/// Killed with the test, whatever becomes of it.
struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn gateway(folder: &Path) -> Gateway {
    std::fs::create_dir_all(folder).unwrap();
    let mut command = Command::new(components().join("bin/versitygw"));
    command.args(["--port", S3, "posix"]).arg(folder).env("ROOT_ACCESS_KEY", "test").env("ROOT_SECRET_KEY", "testtest");
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let gateway = Gateway(child);
    wait_until("S3 listens", Duration::from_secs(20), || Ok(TcpStream::connect(S3).ok())).unwrap();
    gateway
}

/// As the person whose certificate is in the folder of that name.
async fn vpctl_as(who: &str, words: &[&str]) -> Output {
    vpctl_at(ADDRESSES, who, words).await
}

/// As above, asking these coordinators alone.
async fn vpctl_at(coordinators: &str, who: &str, words: &[&str]) -> Output {
    let mut command = Command::new(programs().join("vpctl"));
    command.args(["--coordinators", coordinators, "--certificate"]).arg(PEOPLE.path().join(who)).args(words);
    let environment = [
        ("AWS_ENDPOINT_URL_S3", format!("http://{S3}")),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "testtest".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ("VP_CLUSTER_BUCKET", BUCKET.to_owned()),
    ];
    command.envs(environment);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn vpctl(words: &[&str]) -> Output {
    vpctl_as("admin", words).await
}

async fn done(words: &[&str]) -> String {
    let output = vpctl(words).await;
    assert!(output.status.success(), "vpctl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Until `vpctl status` ends with this code; what it says.
async fn status(code: i32) -> serde_json::Value {
    let mut last = None;
    for _ in 0..40 {
        let output = vpctl(&["status", "-o", "json"]).await;
        if output.status.code() == Some(code) {
            return serde_json::from_slice(&output.stdout).unwrap();
        }
        last = Some(output);
        // Each look takes its own time; there is nothing to be woken by from outside.
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("status never ended with {code}: {last:?}");
}

/// A follower sends on to the leader, unless it is asked for what it has itself: then it says how old that may be, and nothing of health.
async fn a_follower_answers_for_itself_only_when_asked_to(leader: u64) {
    let follower = (1..=3).find(|number| *number != leader).unwrap();
    let at = ADDRESSES.split(',').nth(follower as usize - 1).unwrap();
    let refused = vpctl_at(at, "admin", &["status", "-o", "json"]).await;
    let answer = vpctl_at(at, "admin", &["status", "--stale", "-o", "json"]).await;
    let told: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap_or_else(|_| panic!("{answer:?}"));
    assert_eq!((told["answered_by"].as_u64(), told["leader"].as_u64()), (Some(follower), Some(leader)), "{told}");
    assert!(told["age_ms"].as_u64().is_some_and(|age_ms| age_ms < 60_000), "{told}");
    assert!(told["reasons"][0].as_str().is_some_and(|reason| reason.contains("only the leader hears")), "{told}");
    let from_leader = serde_json::from_slice::<serde_json::Value>(&refused.stdout).is_ok_and(|told| told["answered_by"].as_u64() == Some(leader));
    assert!(from_leader || !refused.status.success(), "a follower answered as if it led: {refused:?}");
}

/// What founding, claims and restore rest on: nothing is written over what somebody else wrote.
async fn writes_are_conditional(bucket: &Bucket) {
    let kept = async || claims::read::<u64>(bucket, "probe").await.unwrap().unwrap();
    for (value, etag) in [(1_u64, None), (2, None), (3, Some("another"))] {
        claims::write(bucket, "probe", &value, etag).await.unwrap();
    }
    let (value, etag) = kept().await;
    assert_eq!(value, 1, "the first stays");
    claims::write(bucket, "probe", &4_u64, Some(&etag)).await.unwrap();
    assert_eq!(kept().await.0, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn process_the_runbook_for_the_lost_quorum_brings_the_cluster_back() {
    let dir = tempfile::tempdir().unwrap();
    let _gateway = gateway(&dir.path().join("s3"));
    let credentials = Some(("test".to_owned(), "testtest".to_owned()));
    let endpoints = Endpoints { region: Some("us-east-1".to_owned()), s3_endpoint_url: Some(format!("http://{S3}")), endpoint_url: None, credentials };
    let store = ObjectStore::new(&Session::load(endpoints).await);
    store.create_bucket(BUCKET).await.unwrap();
    let root = Root::create("test").unwrap();
    store.put(BUCKET, trust::KEY, root.sealed().unwrap().into(), "application/json").await.unwrap();
    for (who, now_s, rank) in [("admin", now_s(), Rank::Admin), ("operator", now_s(), Rank::Operator), ("expired", 0, Rank::Admin)] {
        root.operator(rank, "ada", now_s).unwrap().save(&PEOPLE.path().join(who)).unwrap();
    }
    let started = (1..=3).map(|number| start(dir.path(), &root, number, ["", "i-1", "i-2", "i-3"][number as usize], &store));
    let mut coordinators: BTreeMap<u32, Coordinator> = (1..).zip(futures::future::join_all(started).await).collect();
    let before = status(0).await;
    let bucket = Bucket { store: store.clone(), name: BUCKET.to_owned() };
    writes_are_conditional(&bucket).await;
    a_follower_answers_for_itself_only_when_asked_to(before["leader"].as_u64().unwrap()).await;
    let (founded_as, _) = claims::read::<Record>(&bucket, RECORD).await.unwrap().unwrap();
    let file = dir.path().join("cluster.snapshot");
    let file = file.to_str().unwrap();

    // Before: 1. save, 2. inspect.
    let saved = done(&["snapshot", "save", file]).await;
    assert!(saved.contains("test#"), "{saved}");
    let inspected: serde_json::Value = serde_json::from_str(&done(&["snapshot", "inspect", file, "-o", "json"]).await).unwrap();
    assert_eq!((inspected["cluster"].as_str(), inspected["coordinators"].as_u64()), (Some("test"), Some(3)));

    // Nor does whoever may not know whether somebody leads restore anything; a snapshot holds everything, so it is the admin's to take.
    let refused = vpctl_as("expired", &["snapshot", "restore", file, "--confirm", "test"]).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not good at this time"), "{refused:?}");
    assert!(!vpctl_as("operator", &["snapshot", "save", &format!("{file}.no")]).await.status.success());
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(file).unwrap()) & 0o777;
    assert_eq!(mode, 0o600, "a file that a cluster can be founded on is its owner's alone");

    // While somebody leads, there is nothing to restore; nor without the cluster's name.
    let refused = vpctl(&["snapshot", "restore", file, "--confirm", "test"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("leads"), "{refused:?}");
    assert_eq!(vpctl(&["snapshot", "restore", file, "--confirm", "dev"]).await.status.code(), Some(64));

    // The day: two of three are gone with their disks. 3. status.
    for number in [1, 2] {
        coordinators.remove(&number).unwrap().stop().await;
        std::fs::remove_dir_all(dir.path().join(format!("i-{number}"))).unwrap();
    }
    status(4).await;
    // 4. inspect: a file that was damaged says so.
    let mut damaged = std::fs::read(file).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let broken = dir.path().join("broken");
    std::fs::write(&broken, damaged).unwrap();
    assert_eq!(vpctl(&["snapshot", "inspect", broken.to_str().unwrap()]).await.status.code(), Some(1));
    done(&["snapshot", "inspect", file]).await;
    // 5. restore.
    let restored = done(&["snapshot", "restore", file, "--confirm", "test"]).await;
    assert!(restored.contains("begins again as test#"), "{restored}");

    // 6. The survivor ends by itself (its daemon reads the record every 3 s), lost ones come back with empty disks.
    let old = coordinators.remove(&3).unwrap();
    let record = founded_as.clone();
    let superseded = vp_coordinator::bootstrap::superseded(Bucket { store: store.clone(), name: BUCKET.to_owned() }, record, || false);
    tokio::time::timeout(Duration::from_secs(10), superseded).await.unwrap();
    let old_id = old.leader.cluster_id.clone();
    old.stop().await;
    let started = [(1, "i-4"), (2, "i-5"), (3, "i-3")].map(|(number, instance)| start(dir.path(), &root, number, instance, &store));
    let coordinators = futures::future::join_all(started).await;

    // 7. Well again, beyond everything of before.
    let after = status(0).await;
    let number = |status: &serde_json::Value, key: &str| status[key].as_u64().unwrap();
    assert!(number(&after, "revision") > number(&before, "revision") + (1 << 40) - 1, "{before} {after}");
    assert!(number(&after, "term") > number(&before, "term"));
    assert!(coordinators.iter().all(|one| one.leader.cluster_id != old_id));
    assert!(done(&["events"]).await.contains("cluster restored"));
    let aside: Vec<_> = std::fs::read_dir(dir.path().join("i-3")).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert_eq!(aside.len(), 2, "the survivor's disk of before is kept: {aside:?}");
    // What it would say is not heard: it is of another cluster.
    let disk = dir.path().join("i-3").join(aside.iter().find(|name| *name != "coordinator").unwrap());
    assert_eq!(vp_coordinator::storage::whose::identity(&disk).unwrap().unwrap().cluster, old_id);

    // 8. A new snapshot.
    done(&["snapshot", "save", file]).await;
    for one in coordinators {
        one.stop().await;
    }
}
