//! The real program against a coordinator that answers from a script: what is asked, who is asked, what is shown.

use std::path::Path;
use std::pin::Pin;
use std::process::Output;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::Stream;
use tonic::{Request, Response, Status};
use vp_proto::v1::operators_server::{Operators, OperatorsServer};
use vp_proto::v1::*;
use vp_trust::{Authority, Bounds, Listener, Rank, tls};

/// A coordinator: it leads when `leader` is none, else it sends operators there; with `unknown` it loses the lead whenever it is to cordon something.
#[derive(Clone, Default)]
struct Scripted {
    status: ClusterStatus,
    leader: Option<String>,
    unknown: bool,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn led(&self, call: String) -> Result<(), Status> {
        if let Some(leader) = &self.leader {
            let mut status = Status::failed_precondition("this coordinator does not lead");
            status.metadata_mut().insert(vp_proto::LEADER_KEY, leader.parse().expect("an address is metadata"));
            return Err(status);
        }
        self.asked.lock().expect("no test panics holding it").push(call);
        Ok(())
    }
}

impl Scripted {
    fn accepted(&self, call: String) -> Result<Response<Accepted>, Status> {
        self.led(call)?;
        Ok(Response::new(Accepted { revision: 12, note: String::new() }))
    }
}

#[tonic::async_trait]
impl Operators for Scripted {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<ClusterStatus>, Status> {
        Ok(Response::new(self.status.clone()))
    }

    async fn plan(&self, _: Request<PlanRequest>) -> Result<Response<PlanReport>, Status> {
        self.led("plan".to_owned())?;
        let gate = Gate { subject: "kafka-2".into(), closed_by: "no proof".into(), opens_when: "EC2 says terminated".into() };
        Ok(Response::new(PlanReport { revision: 9, actions: vec!["grant kafka-1 to i-2".into()], gates: vec![gate] }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<Explanation>, Status> {
        let slot = request.into_inner().slot.unwrap_or_default();
        self.led(format!("explain {slot}"))?;
        if slot.role != "kafka" {
            return Err(Status::not_found(format!("slot {slot} does not exist")));
        }
        Ok(Response::new(Explanation { sentences: vec!["It waits for its volume.".into()], ..Default::default() }))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let request = request.into_inner();
        self.led(format!("events after {}", request.after_revision))?;
        let event = |revision| Event { revision, unix_ms: 0, kind: "slot granted".into(), subject: "kafka-1".into(), detail: "to i-2".into() };
        let events = [3, 3, 8].map(event).into_iter().filter(move |e| e.revision > request.after_revision).map(Ok);
        Ok(Response::new(Box::pin(futures::stream::iter(events))))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<Accepted>, Status> {
        let request = request.into_inner();
        self.led(format!("drain {} {}", request.instance_id, request.undo))?;
        Ok(Response::new(Accepted { revision: 12, note: String::new() }))
    }

    async fn cordon(&self, request: Request<CordonRequest>) -> Result<Response<Accepted>, Status> {
        let request = request.into_inner();
        if self.unknown {
            self.led(request.request_id)?;
            return Err(Status::unknown("leadership was lost"));
        }
        self.accepted(format!("cordon {} {}", request.instance_id, request.undo))
    }

    async fn move_slot(&self, request: Request<MoveRequest>) -> Result<Response<Accepted>, Status> {
        let MoveRequest { slot, instance_id, empty_disk, undo, .. } = request.into_inner();
        self.accepted(format!("move {} to {instance_id:?} {empty_disk} {undo}", slot.unwrap_or_default()))
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<Accepted>, Status> {
        let request = request.into_inner();
        self.accepted(format!("scale {} {}", request.role, request.wanted))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<Accepted>, Status> {
        let yaml = request.into_inner().yaml;
        if yaml.contains("perf") {
            return Err(Status::invalid_argument("line 2, column 11: unknown field `perf`"));
        }
        self.accepted(format!("apply {}", yaml.trim()))
    }

    async fn show_brake(&self, _: Request<ShowBrakeRequest>) -> Result<Response<BrakeStatus>, Status> {
        self.led("show brake".to_owned())?;
        Ok(Response::new(BrakeStatus { closed: true, reason: "3 of 5 nodes fell silent together".into(), silent: vec!["i-0ab".into()], ..Default::default() }))
    }

    async fn release_brake(&self, request: Request<ReleaseBrakeRequest>) -> Result<Response<Accepted>, Status> {
        self.accepted(format!("release brake by {}", request.into_inner().by))
    }

    async fn declare_gone(&self, request: Request<DeclareGoneRequest>) -> Result<Response<Accepted>, Status> {
        let request = request.into_inner();
        self.accepted(format!("{} is gone, says {}", request.instance_id, request.by))
    }

    async fn want_coordinators(&self, request: Request<WantCoordinatorsRequest>) -> Result<Response<Accepted>, Status> {
        let request = request.into_inner();
        let added: Vec<u32> = request.add.iter().map(|one| one.id).collect();
        self.led(format!("coordinators {added:?} {:?}", request.remove))?;
        Ok(Response::new(Accepted { revision: 13, note: "5 coordinators wanted".into() }))
    }

    async fn save_snapshot(&self, _: Request<SaveSnapshotRequest>) -> Result<Response<SavedSnapshot>, Status> {
        self.led("snapshot".to_owned())?;
        let state = br#"{"apply_version":1,"coordinators":{"slots":{"1":{}}},"nodes":{},"slots":{"kafka-1":{}}}"#.to_vec();
        Ok(Response::new(SavedSnapshot { cluster: "dev".into(), cluster_id: "dev#1".into(), index: 9, term: 2, state }))
    }
}

/// The cluster of these tests, and a person's certificates in folders.
struct Trust {
    authority: Authority,
    folder: tempfile::TempDir,
}

static TRUST: LazyLock<Trust> = LazyLock::new(|| {
    let trust = Trust { authority: Authority::create("dev").expect("randomness"), folder: tempfile::tempdir().expect("a folder") };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
    let ada = trust.authority.operator(Rank::Admin, "ada", now_s).expect("randomness");
    ada.save(&trust.folder.path().join("ada")).expect("the folder can be written");
    let expired = trust.authority.operator(Rank::Admin, "bob", now_s - 400 * 24 * 3600).expect("randomness");
    expired.save(&trust.folder.path().join("expired")).expect("the folder can be written");
    let stranger = Authority::create("dev").expect("randomness").operator(Rank::Admin, "eve", now_s).expect("randomness");
    stranger.save(&trust.folder.path().join("stranger")).expect("the folder can be written");
    trust
});

const BOUNDS: Bounds = Bounds {
    handshake: Duration::from_secs(5),
    first_request: Duration::from_secs(5),
    life: None,
    idle: None,
    handshakes: 64,
    handshakes_per_address: 64,
    connections: 64,
    connections_per_address: 64,
};

async fn serve(coordinator: Scripted) -> String {
    let own = TRUST.authority.coordinator(1).expect("randomness");
    let config = tls::members_only("dev", TRUST.authority.root(), &own).expect("they fit");
    let listener = Listener::bind("127.38.9.1:0".parse().expect("an address"), config, BOUNDS).expect("a port is free");
    let address = listener.address().expect("it is bound").to_string();
    let server = tonic::transport::Server::builder().add_service(OperatorsServer::new(coordinator));
    tokio::spawn(server.serve_with_incoming(listener.incoming().expect("a thread")));
    address
}

fn status(health: Health) -> ClusterStatus {
    let node = |id: &str| NodeStatus {
        instance_id: id.into(),
        address: format!("127.38.1.{}", id.len()),
        zone: "us-east-1a".into(),
        lifecycle: "ready".into(),
        ..Default::default()
    };
    ClusterStatus { cluster: "dev".into(), revision: 9, term: 2, health: health.into(), nodes: vec![node("i-0ab"), node("i-0cde")], ..Default::default() }
}

async fn vpctl(coordinators: &str, words: &[&str]) -> Output {
    vpctl_with(&TRUST.folder.path().join("ada"), coordinators, words).await
}

async fn vpctl_with(certificate: &Path, coordinators: &str, words: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_vpctl"));
    command.env_remove("VP_STATE").env_remove("VP_CERTIFICATE").args(["--coordinators", coordinators]).arg("--certificate").arg(certificate).args(words);
    command.output().await.expect("vpctl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn the_exit_code_of_status_is_the_health_and_json_says_the_same() {
    let cases =
        [(Health::Healthy, 0, "healthy"), (Health::Degraded, 2, "degraded"), (Health::NoTolerance, 3, "no_tolerance"), (Health::QuorumLost, 4, "quorum_lost")];
    for (health, code, word) in cases {
        let address = serve(Scripted { status: status(health), ..Default::default() }).await;
        let output = vpctl(&address, &["status", "-o", "json"]).await;
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(json["health"], word);
        assert_eq!(json["nodes"][1]["instance"], "i-0cde");
        assert_eq!(json["nodes"][1]["silent_ms"], serde_json::Value::Null);
    }
}

#[tokio::test]
async fn status_prefers_the_leaders_view_even_when_only_a_follower_is_named() {
    let mut led = status(Health::Healthy);
    led.leader_id = 2;
    let leader = Scripted { status: led.clone(), ..Default::default() };
    let leader_port = serve(leader).await;
    let coordinator = CoordinatorStatus { id: 2, address: leader_port.clone(), leader: true, reachable: true, ..Default::default() };
    let mut stale = status(Health::Degraded);
    stale.leader_id = 2;
    stale.coordinators = vec![coordinator];
    let follower = serve(Scripted { status: stale, ..Default::default() }).await;
    assert_eq!(vpctl(&follower, &["status"]).await.status.code(), Some(0));
}

#[tokio::test]
async fn other_calls_follow_the_hint_to_the_leader_past_a_dead_coordinator() {
    let leader = Scripted { status: status(Health::Healthy), ..Default::default() };
    let asked = leader.asked.clone();
    let leader_address = serve(leader).await;
    let follower = serve(Scripted { leader: Some(leader_address), status: status(Health::Healthy), ..Default::default() }).await;
    let all = format!("127.38.9.9:1,{follower}");

    let plan = vpctl(&all, &["plan"]).await;
    assert_eq!(
        text(&plan.stdout),
        "PLAN  at revision 9\n  grant kafka-1 to i-2\n\nWAITING\n  WANTED   CLOSED BY  OPENS WHEN\n  kafka-2  no proof   EC2 says terminated\n"
    );
    let explain = vpctl(&all, &["explain", "kafka-2"]).await;
    assert!(text(&explain.stdout).contains("It waits for its volume."), "{}", text(&explain.stderr));
    let drain = vpctl(&all, &["drain", "i-0a"]).await;
    assert_eq!(text(&drain.stdout), "i-0ab is being drained as of revision 12\n");
    let back = vpctl(&all, &["-o", "json", "drain", "i-0a", "--undo"]).await;
    let answer: serde_json::Value = serde_json::from_slice(&back.stdout).expect("an answer for programs");
    assert_eq!(answer, serde_json::json!({"order": "drain", "subject": "i-0ab", "revision": 12, "note": null}));
    assert_eq!(*asked.lock().expect("no test panics holding it"), ["plan", "explain kafka-2", "drain i-0ab false", "drain i-0ab true"]);
}

#[tokio::test]
async fn events_are_lines_for_people_and_objects_for_programs() {
    let address = serve(Scripted { status: status(Health::Healthy), ..Default::default() }).await;
    let people = vpctl(&address, &["events"]).await;
    let line = "1970-01-01 00:00:00.000      8  slot granted     kafka-1              to i-2";
    assert_eq!(text(&people.stdout).lines().count(), 3);
    assert_eq!(text(&people.stdout).lines().last(), Some(line));
    let programs = vpctl(&address, &["events", "--after", "3", "-o", "json"]).await;
    assert_eq!(text(&programs.stdout), "{\"revision\":8,\"unix_ms\":0,\"kind\":\"slot granted\",\"subject\":\"kafka-1\",\"detail\":\"to i-2\"}\n");
}

#[tokio::test]
async fn what_the_leader_refuses_is_told_and_not_tried_again() {
    let leader = Scripted { status: status(Health::Healthy), ..Default::default() };
    let asked = leader.asked.clone();
    let address = serve(leader).await;
    let output = vpctl(&address, &["explain", "redis-1"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("slot redis-1 does not exist"), "{}", text(&output.stderr));
    assert_eq!(asked.lock().expect("no test panics holding it").len(), 1);
}

#[tokio::test]
async fn without_a_leader_the_search_ends_and_says_so() {
    let nobody = Scripted { leader: Some(String::new()), status: status(Health::QuorumLost), ..Default::default() };
    let address = serve(nobody).await;
    let output = vpctl(&address, &["plan"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no coordinator leads"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_drill_without_tolerance_is_refused_before_anything_is_killed() {
    let address = serve(Scripted { status: status(Health::NoTolerance), ..Default::default() }).await;
    let output = vpctl(&address, &["drill", "i-0ab"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--force"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn orders_reach_the_leader_as_they_were_given() {
    let coordinator = Scripted { status: status(Health::Healthy), ..Default::default() };
    let asked = coordinator.asked.clone();
    let address = serve(coordinator).await;
    let spec = std::env::temp_dir().join(format!("vpctl-orders-{}.yaml", std::process::id()));
    std::fs::write(&spec, "roles: {}\n").expect("written");
    let file = spec.to_str().expect("text");
    for (words, call) in [
        (&["cordon", "i-0a"][..], "cordon i-0ab false"),
        (&["cordon", "i-0a", "--undo"], "cordon i-0ab true"),
        (&["move", "kafka-2"], "move kafka-2 to \"\" false false"),
        (&["move", "kafka-2", "--to", "i-0c", "--empty-disk"], "move kafka-2 to \"i-0cde\" true false"),
        (&["move", "kafka-2", "--undo"], "move kafka-2 to \"\" false true"),
        (&["scale", "zookeeper", "5"], "scale zookeeper 5"),
        (&["apply", "-f", file], "apply roles: {}"),
        (&["brake", "release", "--by", "ada"], "release brake by ada"),
        (&["gone", "i-0ab", "--by", "ada"], "i-0ab is gone, says ada"),
        (&["brake", "show"], "show brake"),
    ] {
        let output = vpctl(&address, words).await;
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", text(&output.stderr));
        assert_eq!(asked.lock().expect("no test panics holding it").pop().as_deref(), Some(call), "{words:?}");
    }
    std::fs::remove_file(&spec).expect("removed");
}

#[tokio::test]
async fn an_order_that_nobody_answers_is_of_unknown_outcome_and_asked_for_under_one_id() {
    let coordinator = Scripted { status: status(Health::Healthy), unknown: true, ..Default::default() };
    let asked = coordinator.asked.clone();
    let address = serve(coordinator).await;
    let output = vpctl(&address, &["cordon", "i-0a"]).await;
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("outcome unknown"), "{told}");
    let ids = asked.lock().expect("no test panics holding it");
    assert!(ids.len() > 1 && !ids[0].is_empty() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn a_spec_that_is_refused_is_told_with_its_file() {
    let address = serve(Scripted { status: status(Health::Healthy), ..Default::default() }).await;
    let spec = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(spec.path(), "roles:\n  kafka: {perf: 3}\n").expect("written");
    let file = spec.path().to_str().expect("text");
    let output = vpctl(&address, &["apply", "-f", file]).await;
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(&format!("{file}: ")) && told.contains("line 2, column 11"), "{told}");
}

#[tokio::test]
async fn a_certificate_that_is_not_taken_is_told_with_what_to_do() {
    let address = serve(Scripted { status: status(Health::Healthy), ..Default::default() }).await;
    for (folder, said) in [("expired", "not good at this time"), ("stranger", "no coordinator of this cluster"), ("nowhere", "certificate.pem")] {
        for words in [&["plan"][..], &["status"]] {
            let output = vpctl_with(&TRUST.folder.path().join(folder), &address, words).await;
            let told = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{told}");
            assert!(told.contains(said) && told.contains("--certificate"), "{folder}: {told}");
        }
    }
}
