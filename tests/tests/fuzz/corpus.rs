//! Where the binary files of the corpus come from: `VP_FUZZ_CORPUS=make cargo test --test fuzz` writes them anew. The text files beside them are by hand.

use std::path::Path;
use std::time::Duration;

use prost::Message as _;
use prost_raft::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType, Snapshot, SnapshotMetadata};
use vp_coordinator::storage::applied::{self, Applied};
use vp_coordinator::storage::frame::{FrameBuilder, Kind};
use vp_coordinator::storage::snapshot::{self, Stored};
use vp_proto::v1::*;
use vp_trust::request::Fresh;
use vp_trust::{Authority, Name, Rank, SealingKey, Serial};

/// Files as (parser, name, bytes).
pub fn binary() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let mut files = Vec::new();
    files.extend(peers());
    files.extend(agents());
    files.extend(operators());
    files.extend(certificates());
    files.extend(log());
    files.extend(snapshots());
    files
}

fn peers() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let entry = Entry { index: 8, term: 3, data: b"{}".to_vec(), ..Default::default() };
    let append = Message {
        from: 2,
        to: 1,
        term: 3,
        msg_type: MessageType::MsgAppend as i32,
        index: 7,
        log_term: 3,
        entries: vec![entry],
        commit: 7,
        ..Default::default()
    };
    let mut snapshot = Snapshot { data: b"state".to_vec(), ..Default::default() };
    snapshot.mut_metadata().index = 9;
    let install = Message { from: 2, to: 1, term: 3, msg_type: MessageType::MsgSnapshot as i32, snapshot: Some(snapshot), ..Default::default() };
    let vote = Message { from: 2, to: 1, term: 4, msg_type: MessageType::MsgRequestPreVote as i32, ..Default::default() };
    let envelope = |message: &Message| Envelope { cluster: "dev".into(), from: 2, to: 1, message: message.encode_to_vec() }.encode_to_vec();
    vec![("peer-envelope", "append", envelope(&append)), ("peer-envelope", "snapshot", envelope(&install)), ("peer-envelope", "vote", envelope(&vote))]
}

fn agents() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let slot = || Some(SlotRef { role: "kafka".into(), index: 2 });
    let said = |body| AgentMessage { body: Some(body) }.encode_to_vec();
    let hello =
        Hello { cluster: "dev".into(), instance_id: "i-0ab".into(), address: "127.20.1.20".into(), agent_version: "0.1.0".into(), ..Default::default() };
    let report = SlotObservation {
        slot: slot(),
        generation: 41,
        phase: Phase::Healthy.into(),
        message: "serves".into(),
        pid: 77,
        facts: [("mode".to_owned(), "leader".to_owned())].into(),
        ..Default::default()
    };
    let beat = Heartbeat { sequence: 9, slots: vec![report], measures: Some(NodeMeasures { cpu_used_permille: 7, ..Default::default() }) };
    let released = Released { slot: Some(SlotGeneration { slot: slot(), generation: 41 }) };
    let assignment = Assignment {
        slot: slot(),
        generation: 41,
        member_id: 2,
        volume_id: "vol-0ab".into(),
        params: [("join".to_owned(), "founder".to_owned())].into(),
        start: true,
        fencing: "quorum".into(),
        ..Default::default()
    };
    let member = Member { slot: slot(), generation: 41, member_id: 2, address: "127.20.1.20".into(), zone: "us-east-1a".into(), instance_id: "i-0ab".into() };
    let desired = Desired { term: 3, revision: 50, assignments: vec![assignment], members: vec![member] };
    let answer = |body| CoordinatorMessage { body: Some(body) }.encode_to_vec();
    vec![
        ("agent-message", "hello", said(agent_message::Body::Hello(hello))),
        ("agent-message", "heartbeat", said(agent_message::Body::Heartbeat(beat))),
        ("agent-message", "released", said(agent_message::Body::Released(released))),
        ("desired-set", "node", desired.encode_to_vec()),
        ("coordinator-message", "desired", answer(coordinator_message::Body::Desired(desired))),
        (
            "coordinator-message",
            "ack",
            answer(coordinator_message::Body::Ack(Ack { sequence: 9, renewed: vec![SlotGeneration { slot: slot(), generation: 41 }] })),
        ),
    ]
}

fn operators() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let slot = || Some(SlotRef { role: "kafka".into(), index: 2 });
    let id = || "i-0ab".to_owned();
    let once = || "r-1".to_owned();
    let wanted = WantedCoordinator { id: 4, address: "127.20.1.10".into(), zone: "us-east-1a".into(), group: "dev-coordinator-4".into() };
    let files = [
        ("drain", DrainRequest { instance_id: id(), undo: true, ..Default::default() }.encode_to_vec()),
        ("explain", ExplainRequest { slot: slot() }.encode_to_vec()),
        ("cordon", CordonRequest { instance_id: id(), undo: true, request_id: once() }.encode_to_vec()),
        ("move", MoveRequest { slot: slot(), instance_id: id(), empty_disk: true, undo: false, request_id: once() }.encode_to_vec()),
        ("scale", ScaleRequest { role: "kafka".into(), wanted: 5, request_id: once() }.encode_to_vec()),
        ("release-brake", ReleaseBrakeRequest { by: "ada".into(), request_id: once() }.encode_to_vec()),
        ("declare-gone", DeclareGoneRequest { instance_id: id(), by: "ada".into(), request_id: once() }.encode_to_vec()),
        ("want-coordinators", WantCoordinatorsRequest { add: vec![wanted], remove: vec![2], request_id: once() }.encode_to_vec()),
    ];
    files.into_iter().map(|(name, bytes)| ("operator-request", name, bytes)).collect()
}

fn certificates() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let authority = Authority::create("dev").unwrap();
    let key = SealingKey::from_base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    let fresh = Fresh::new(&Name::node("dev", "i-0ab")).unwrap();
    let request = vp_trust::Request::read(fresh.der()).unwrap();
    let serial = Serial { term: 3, count: 9 };
    let node = authority.node(&request, [127, 20, 1, 20].into(), serial, 1_800_000_000, Duration::from_secs(3600)).unwrap();
    let asked = EnrollRequest {
        cluster: "dev".into(),
        instance_id: "i-0ab".into(),
        address: "127.20.1.20".into(),
        identity_document: r#"{"instanceId": "i-0ab"}"#.into(),
        identity_signature: "c2ln".into(),
        certificate_request: fresh.der().to_vec(),
    };
    let join = JoinRequest {
        cluster: "dev".into(),
        cluster_id: "dev#0123456789abcdef".into(),
        coordinator: 2,
        instance_id: "i-0ab".into(),
        address: "127.20.2.20".into(),
        identity_document: r#"{"instanceId": "i-0ab"}"#.into(),
        identity_signature: "c2ln".into(),
        supports: 1,
    };
    vec![
        ("certificate", "node", node[0].to_vec()),
        ("certificate", "operator", authority.operator(Rank::Viewer, "ada", 1_800_000_000).unwrap().leaf().to_vec()),
        ("certificate", "coordinator", authority.coordinator(3).unwrap().leaf().to_vec()),
        ("certificate-request", "node", fresh.der().to_vec()),
        ("enroll-request", "node", asked.encode_to_vec()),
        ("join-request", "successor", join.encode_to_vec()),
        ("sealed-root", "root", authority.seal(&key).unwrap()),
    ]
}

fn log() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let mut first = FrameBuilder::default();
    first.record(Kind::Identity, &[&1_u64.to_le_bytes()[..], &1_u64.to_le_bytes(), b"dev"].concat()).pair(Kind::Base, 0, 0);
    let mut second = FrameBuilder::default();
    let entry = Entry { index: 1, term: 1, data: b"{}".to_vec(), ..Default::default() };
    second.record(Kind::HardState, &HardState { term: 1, vote: 1, commit: 1 }.encode_to_vec()).record(Kind::Entry, &entry.encode_to_vec());
    let segment = [first.finish(1), second.finish(2), vec![0; 700]].concat();
    vec![("log-frame", "segment", segment)]
}

fn snapshots() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let conf = ConfState { voters: vec![1, 2, 3], ..Default::default() };
    let mut snapshot = Snapshot { data: b"state".to_vec(), ..Default::default() };
    snapshot.set_metadata(SnapshotMetadata { conf_state: Some(conf.clone()), index: 9, term: 3 });
    snapshot::write(folder.path(), &Stored { snapshot, received: true }).unwrap();
    vec![
        ("stored-snapshot", "received", std::fs::read(folder.path().join("snapshot")).unwrap()),
        ("applied-state", "small", applied::encode(&Applied { index: 9, term: 3, conf, state: b"state".to_vec() })),
    ]
}

/// Writes them below `corpus`.
pub fn write(corpus: &Path) {
    for (parser, name, bytes) in binary() {
        let folder = corpus.join(parser);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}
