//! A fault injector for process tests: a coordinator that says what the test wants it to, a metadata service, and the real
//! agent binary on an address of its own. Everything started is killed when it is dropped.
#![allow(dead_code, reason = "each test program uses its own part")]

mod enrolment;
pub mod hardship;
mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::{get, put};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use vp_agent::supervisor::family::{MARK, stat};
use vp_proto::v1::agents_server::{Agents, AgentsServer};
use vp_proto::v1::enrolment_server::EnrolmentServer;
use vp_proto::v1::*;
use vp_trust::{Authority, Bounds, Listener, tls};

use enrolment::Office;
use wire::Wire;

pub const LEASE_MS: u64 = 1000;

/// Host numbers: the leader as agents know it, and where it listens for sessions when a wire lies before it.
const LEADER: u8 = 10;
const BEHIND: u8 = 110;

/// What the agent has told so far.
#[derive(Default)]
struct Seen {
    slots: BTreeMap<String, SlotObservation>,
    released: Vec<(String, u64)>,
    hellos: Vec<Hello>,
    measures: NodeMeasures,
}

/// What the coordinator does and has seen.
pub struct Script {
    desired: watch::Sender<Desired>,
    acknowledges: watch::Sender<bool>,
    pub sessions: AtomicU64,
    /// Heartbeats that have come, acknowledged or not.
    pub heartbeats: AtomicU64,
    seen: Mutex<Seen>,
    leader: Mutex<Option<String>>,
}

#[derive(Clone)]
struct Service(Arc<Script>);

#[tonic::async_trait]
impl Agents for Service {
    type SessionStream = ReceiverStream<Result<CoordinatorMessage, Status>>;

    async fn session(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        if let Some(leader) = self.0.leader.lock().unwrap().clone() {
            self.0.sessions.fetch_add(1, Ordering::SeqCst);
            let mut status = Status::failed_precondition("not the leader");
            status.metadata_mut().insert(vp_proto::LEADER_KEY, leader.parse().unwrap());
            return Err(status);
        }
        let mut incoming = request.into_inner();
        let Some(AgentMessage { body: Some(agent_message::Body::Hello(hello)) }) = incoming.message().await? else {
            return Err(Status::invalid_argument("hello first"));
        };
        self.0.seen.lock().unwrap().hellos.push(hello);
        let session = self.0.sessions.fetch_add(1, Ordering::SeqCst) + 1;
        let (send, outgoing) = mpsc::channel(64);
        let script = self.0.clone();
        tokio::spawn(async move {
            let say = |body| send.send(Ok(CoordinatorMessage { body: Some(body) }));
            let welcome = Welcome { session, lease_ms: LEASE_MS, heartbeat_ms: LEASE_MS / 4, term: 1 };
            let _ = say(coordinator_message::Body::Welcome(welcome)).await;
            let mut desired = script.desired.subscribe();
            desired.mark_changed();
            loop {
                tokio::select! {
                    changed = desired.changed() => {
                        let set = desired.borrow_and_update().clone();
                        if changed.is_err() || (set.revision > 0 && say(coordinator_message::Body::Desired(set)).await.is_err()) { return }
                    }
                    message = incoming.message() => {
                        let Ok(Some(message)) = message else { return };
                        if let Some(ack) = script.hear(message) && say(coordinator_message::Body::Ack(ack)).await.is_err() { return }
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

impl Script {
    fn hear(&self, message: AgentMessage) -> Option<Ack> {
        let mut seen = self.seen.lock().unwrap();
        match message.body? {
            agent_message::Body::Heartbeat(heartbeat) => {
                self.heartbeats.fetch_add(1, Ordering::SeqCst);
                let pairs = heartbeat.slots.iter().map(|s| SlotGeneration { slot: s.slot.clone(), generation: s.generation }).collect();
                seen.slots = heartbeat.slots.into_iter().map(|s| (s.slot.as_ref().unwrap().to_string(), s)).collect();
                seen.measures = heartbeat.measures.unwrap();
                self.acknowledges.borrow().then_some(Ack { sequence: heartbeat.sequence, renewed: pairs })
            }
            agent_message::Body::Released(released) => {
                let pair = released.slot.unwrap();
                seen.released.push((pair.slot.unwrap().to_string(), pair.generation));
                None
            }
            agent_message::Body::Hello(_) => None,
        }
    }

    pub fn observation(&self, slot: &str) -> Option<SlotObservation> {
        self.seen.lock().unwrap().slots.get(slot).cloned()
    }

    pub fn released(&self) -> Vec<(String, u64)> {
        self.seen.lock().unwrap().released.clone()
    }

    pub fn hellos(&self) -> Vec<Hello> {
        self.seen.lock().unwrap().hellos.clone()
    }

    pub fn measures(&self) -> NodeMeasures {
        self.seen.lock().unwrap().measures
    }

    pub fn acknowledge(&self, yes: bool) {
        self.acknowledges.send_replace(yes);
    }
}

static NEXT: AtomicU8 = AtomicU8::new(1);

/// One instance with its coordinator; the third octet of its network is a test's own.
pub struct Bed {
    pub script: Arc<Script>,
    pub dir: tempfile::TempDir,
    zone: u8,
    agent: Option<Child>,
    runtime: tokio::runtime::Runtime,
    coordinator: Option<tokio::task::JoinHandle<()>>,
    revision: u64,
    followers: Vec<Arc<Script>>,
    pub office: Arc<Office>,
    /// Between the agent and its leader, when the test wants to cut it.
    wire: Option<Wire>,
    /// What the next agent is started from, and with what besides the usual environment.
    pub program: PathBuf,
    pub environment: Vec<(&'static str, PathBuf)>,
}

/// Room for all that a test does.
const BOUNDS: Bounds = Bounds {
    handshake: Duration::from_secs(5),
    first_request: Duration::from_secs(20),
    life: None,
    idle: None,
    handshakes: 64,
    handshakes_per_address: 64,
    connections: 64,
    connections_per_address: 64,
};

impl Bed {
    /// With roles as `name → role.yaml`. Role scripts run in their run folder.
    pub fn new(roles: &[(&str, &str)]) -> Self {
        Self::with_coordinators(roles, 1)
    }

    pub fn with_coordinators(roles: &[(&str, &str)], coordinators: u8) -> Self {
        Self::build(roles, coordinators, None)
    }

    /// Sessions go over a wire that `Bed::wire` cuts.
    pub fn behind_a_wire(roles: &[(&str, &str)]) -> Self {
        Self::build(roles, 1, Some(Wire::open()))
    }

    fn build(roles: &[(&str, &str)], coordinators: u8, wire: Option<Wire>) -> Self {
        // Tests of one process have a zone each; other processes are told apart by their number.
        let zone = (std::process::id() as u8 & 7) * 28 + NEXT.fetch_add(1, Ordering::SeqCst);
        let dir = tempfile::Builder::new().prefix("vp-agent").tempdir().unwrap();
        for (name, yaml) in roles {
            let folder = dir.path().join("image/roles").join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("role.yaml"), yaml).unwrap();
        }
        for folder in ["root", "volumes", "image/roles"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let script = Arc::new(Script {
            desired: watch::Sender::new(Desired::default()),
            acknowledges: watch::Sender::new(true),
            sessions: AtomicU64::new(0),
            heartbeats: AtomicU64::new(0),
            seen: Mutex::default(),
            leader: Mutex::new(None),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let office = Arc::new(Office::new(Authority::create("t").unwrap()));
        let mut bed = Self {
            script,
            dir,
            zone,
            agent: None,
            runtime,
            coordinator: None,
            revision: 0,
            followers: Vec::new(),
            office,
            wire,
            program: env!("CARGO_BIN_EXE_vp-agent").into(),
            environment: Vec::new(),
        };
        bed.serve_metadata(coordinators);
        bed.start_coordinator();
        bed.lay_wire();
        for host in 11..10 + coordinators {
            bed.start_follower(host);
        }
        bed.start_agent();
        bed
    }

    fn ip(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(127, 35, self.zone, host).into()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn serve_metadata(&self, coordinators: u8) {
        // The leader last.
        let list: Vec<_> =
            (1..=coordinators).map(|id| format!("  - {{id: {id}, address: {}, zone: us-east-1a, group: g}}\n", self.ip(9 + coordinators + 1 - id))).collect();
        let user_data = format!(
            "cluster: t\nrun: agent\ngroup: t\ncoordinators:\n{}lease_ms: {LEASE_MS}\naws: {{region: us-east-1, endpoint_url: 'http://a', s3_endpoint_url: 'http://b'}}\nbuckets: {{uploads: u, results: r, cluster: c}}\nidentity_public_key: QQ==\ntrust: {{root_sha256: {}}}\n",
            list.concat(),
            self.office.authority.hash()
        );
        let ip = self.ip(20).to_string();
        let text = |value: String| {
            get(move |headers: axum::http::HeaderMap| {
                let allowed = headers.get("x-aws-ec2-metadata-token").is_some_and(|t| t == "token");
                let value = value.clone();
                async move { if allowed { Ok(value) } else { Err(axum::http::StatusCode::UNAUTHORIZED) } }
            })
        };
        let router = Router::new()
            .route("/latest/api/token", put(|| async { "token" }))
            .route("/latest/meta-data/local-ipv4", text(ip))
            .route("/latest/meta-data/instance-id", text("i-0test".into()))
            .route("/latest/meta-data/placement/availability-zone", text("us-east-1a".into()))
            .route("/latest/meta-data/instance-type", text("t3.small".into()))
            .route("/latest/user-data", text(user_data))
            .route("/latest/dynamic/instance-identity/document", text("{}".into()))
            .route("/latest/dynamic/instance-identity/signature", text("c2ln".into()));
        let at = SocketAddr::new(self.ip(20), 1338);
        let listener = self.runtime.block_on(tokio::net::TcpListener::bind(at)).unwrap();
        self.runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
    }

    fn lay_wire(&self) {
        if let Some(wire) = self.wire.clone() {
            let at = SocketAddr::new(self.ip(LEADER), vp_proto::COORDINATOR_PORT);
            let listener = self.runtime.block_on(tokio::net::TcpListener::bind(at)).unwrap();
            self.runtime.spawn(wire.carry(listener, SocketAddr::new(self.ip(BEHIND), vp_proto::COORDINATOR_PORT)));
        }
    }

    /// Whether anything passes from the agent to its leader, and back.
    pub fn wire(&self, forth: bool, back: bool) {
        self.wire.as_ref().unwrap().set(forth, back);
    }

    fn serve(&self, host: u8, script: Arc<Script>) -> tokio::task::JoinHandle<()> {
        let _context = self.runtime.enter();
        let own = self.office.authority.coordinator(u64::from(host)).unwrap();
        let inner = if host == LEADER && self.wire.is_some() { BEHIND } else { host };
        let members = self.door(inner, vp_proto::COORDINATOR_PORT, tls::members_only("t", self.office.authority.root(), &own).unwrap());
        let strangers = self.door(host, vp_proto::ENROLMENT_PORT, tls::anybody(&own).unwrap());
        let leader = script.leader.lock().unwrap().clone();
        let desk = enrolment::Desk { office: self.office.clone(), own: self.ip(host), leader };
        let server = tonic::transport::Server::builder().add_service(AgentsServer::new(Service(script))).serve_with_incoming(members.incoming().unwrap());
        let enrolling = tonic::transport::Server::builder().add_service(EnrolmentServer::new(desk)).serve_with_incoming(strangers.incoming().unwrap());
        self.runtime.spawn(async move {
            let ended = tokio::try_join!(server, enrolling);
            ended.unwrap();
        })
    }

    fn door(&self, host: u8, port: u16, config: Arc<rustls::ServerConfig>) -> Listener {
        let at = SocketAddr::new(self.ip(host), port);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Listener::bind(at, config.clone(), BOUNDS) {
                Ok(listener) => return listener,
                Err(error) => assert!(Instant::now() < deadline, "{at}: {error}"),
            }
        }
    }

    pub fn start_coordinator(&mut self) {
        self.coordinator = Some(self.serve(LEADER, self.script.clone()));
    }

    /// A follower that names the leading coordinator.
    fn start_follower(&mut self, host: u8) {
        let follower = Arc::new(Script {
            desired: watch::Sender::new(Desired::default()),
            acknowledges: watch::Sender::new(true),
            sessions: AtomicU64::new(0),
            heartbeats: AtomicU64::new(0),
            seen: Mutex::default(),
            leader: Mutex::new(Some(format!("{}:7400", self.ip(LEADER)))),
        });
        self.serve(host, follower.clone());
        self.followers.push(follower);
    }

    /// How often each follower was asked, in the order in which the user data names them.
    pub fn followers_asked(&self) -> Vec<u64> {
        self.followers.iter().rev().map(|f| f.sessions.load(Ordering::SeqCst)).collect()
    }

    /// The coordinators fall silent: the streams stay, nothing is acknowledged. With `stop_coordinator` they are gone.
    pub fn stop_coordinator(&mut self) {
        if let Some(task) = self.coordinator.take() {
            task.abort();
        }
        self.script.acknowledge(false);
    }

    pub fn start_agent(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("agent.log")).unwrap();
        let agent = Command::new(&self.program)
            .env("VP_INSTANCE_ROOT", self.path("root"))
            .env("VP_VOLUMES", self.path("volumes"))
            .env("VP_IMAGE", self.path("image"))
            .env("VP_COMPONENTS", self.path("components"))
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}:1338", self.ip(20)))
            .env("VP_LOG", "debug,h2=info,hyper=info,hyper_util=info,reqwest=info")
            .envs(self.environment.iter().map(|(name, value)| (*name, value.as_os_str())))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(agent);
    }

    pub fn agent_pid(&self) -> i32 {
        self.agent.as_ref().unwrap().id() as i32
    }

    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// As a service manager ends it.
    pub fn end_agent(&mut self) {
        let pid = self.agent_pid();
        signal(pid, nix::sys::signal::Signal::SIGTERM);
        self.eventually("the agent ends when asked", || (!alive(pid)).then_some(()));
        assert!(self.agent.take().unwrap().wait().unwrap().success());
    }

    pub fn sessions(&self) -> u64 {
        self.script.sessions.load(Ordering::SeqCst)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Waits so long that a lease that nobody renewed would be over.
    pub fn outlive_a_lease(&self) {
        let until = Instant::now() + lease_and_slack();
        self.eventually("the lease is past", || (Instant::now() > until).then_some(()));
    }

    /// Waits until nothing of an exclusive role is left, `since` being when the last acknowledgement can have come.
    pub fn dies_by_its_lease(&self, slot: &str, since: Instant) {
        self.within(lease_and_slack().saturating_sub(since.elapsed()), "nothing of the exclusive role is left", || {
            self.processes(slot, "").is_empty().then_some(())
        });
    }

    /// Publishes the node's whole desired set under the next revision.
    pub fn want(&mut self, assignments: Vec<Assignment>) {
        self.revision += 1;
        self.want_at(self.revision, assignments);
    }

    pub fn want_at(&mut self, revision: u64, assignments: Vec<Assignment>) {
        let member = |a: &Assignment| Member {
            slot: a.slot.clone(),
            generation: a.generation,
            member_id: a.member_id,
            address: self.ip(20).to_string(),
            zone: "us-east-1a".into(),
            instance_id: "i-0test".into(),
        };
        let members = assignments.iter().map(member).collect();
        self.script.desired.send_replace(Desired { term: 1, revision, assignments, members });
    }

    /// Waits for the slot to be reported in a phase.
    pub fn reported(&self, slot: &str, phase: Phase) -> SlotObservation {
        self.eventually(&format!("{slot} is {phase:?}"), || self.script.observation(slot).filter(|o| o.phase() == phase))
    }

    /// Waits until `condition` yields something; fails with the agent's log after 15 s.
    pub fn eventually<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        self.within(Duration::from_secs(15), what, condition)
    }

    pub fn within<T>(&self, limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(value) = condition() {
                return value;
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.path("agent.log")).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(40).collect();
                let tail: Vec<_> = tail.into_iter().rev().collect();
                panic!("not within {limit:?}: {what}\n{}\n{:?}", tail.join("\n"), self.script.seen.lock().unwrap().slots);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Live processes of a slot whose command line contains `word`.
    pub fn processes(&self, slot: &str, word: &str) -> Vec<i32> {
        processes_with(&self.path("root/slots").join(slot), word)
    }
}

/// The lease, the guard's own time, and what two busy cores add.
pub fn lease_and_slack() -> Duration {
    Duration::from_millis(LEASE_MS + 700)
}

/// Live processes marked with a slot's folder (or one below `folder`) whose command line contains `word`.
pub fn processes_with(folder: &Path, word: &str) -> Vec<i32> {
    let mark = format!("{MARK}={}", folder.display());
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|s| s.state != 'Z'))
        .filter(|pid| std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|e| e.split(|b| *b == 0).any(|v| v.starts_with(mark.as_bytes()))))
        .filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(word)))
        .collect()
}

pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z')
}

pub fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

pub fn assignment(role: &str, generation: u64, fencing: &str) -> Assignment {
    Assignment { slot: Some(SlotRef { role: role.into(), index: 1 }), generation, member_id: 1, start: true, fencing: fencing.into(), ..Assignment::default() }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        // Guards first end their roles; killed again until nothing marked is left.
        for _ in 0..200 {
            let left = processes_with(&self.dir.path().join("root/slots"), "");
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
