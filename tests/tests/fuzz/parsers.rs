//! Every parser of something from outside, as a function from bytes to "accepted".

use std::net::IpAddr;
use std::path::Path;
use std::sync::LazyLock;

use prost::Message as _;
use vp_agent::generations::Memory;
use vp_agent::imds::Metadata;
use vp_agent::probes::{Expect, latin1};
use vp_agent::settings::{Places, Settings};
use vp_agent::slot::Slot;
use vp_agent::supervisor::process::Record;
use vp_coordinator::machine::ClusterMachine;
use vp_coordinator::raft::Machine as _;
use vp_coordinator::storage::frame::{self, Found};
use vp_proto::v1;
use vp_trust::{Authority, Certificate, Name, Request, SealingKey};

use super::snapshots;

/// From bytes to "accepted".
type Parser = fn(&[u8]) -> bool;

/// Name (also of its corpus) and parser.
pub const PARSERS: &[(&str, Parser)] = &[
    ("peer-envelope", peer_envelope),
    ("agent-message", agent_message),
    ("coordinator-message", coordinator_message),
    ("enroll-request", enroll_request),
    ("join-request", join_request),
    ("cluster-record", cluster_record),
    ("coordinator-claim", coordinator_claim),
    ("operator-request", operator_request),
    ("log-frame", log_frame),
    ("log-entry", log_entry),
    ("cluster-state", cluster_state),
    ("saved-snapshot", snapshots::saved),
    ("stored-snapshot", snapshots::stored),
    ("applied-state", snapshots::applied),
    ("joined-members", joined_members),
    ("kafka-record", vp_coordinator::kafka_records::says_anything),
    ("coordinator-user-data", coordinator_user_data),
    ("agent-user-data", agent_user_data),
    ("agent-generations", agent_generations),
    ("process-record", process_record),
    ("probe-answer", probe_answer),
    ("desired-set", desired_set),
    ("identity-document", identity_document),
    ("certificate", certificate),
    ("certificate-request", certificate_request),
    ("certificate-name", certificate_name),
    ("sealed-root", sealed_root),
    ("zookeeper-config", zookeeper_config),
    ("role", role),
    ("guard-datagram", guard_datagram),
    ("s3-event", s3_event),
    ("recipe", recipe),
];

fn text(bytes: &[u8], parse: impl FnOnce(&str) -> bool) -> bool {
    std::str::from_utf8(bytes).is_ok_and(parse)
}

/// The envelope, and the log's message in it.
fn peer_envelope(bytes: &[u8]) -> bool {
    let Ok(envelope) = v1::Envelope::decode(bytes) else { return false };
    vp_coordinator::peers::decode(&envelope.message).is_some_and(|message| {
        let _ = message.get_msg_type();
        for entry in &message.entries {
            let _ = entry.get_entry_type();
        }
        true
    })
}

fn agent_message(bytes: &[u8]) -> bool {
    let Ok(message) = v1::AgentMessage::decode(bytes) else { return false };
    if let Some(v1::agent_message::Body::Heartbeat(heartbeat)) = message.body {
        for report in heartbeat.slots {
            let _ = report.slot.as_ref().map(|slot| slot.to_string().parse::<vp_cluster::SlotId>());
            let _ = report.phase();
        }
    }
    true
}

fn coordinator_message(bytes: &[u8]) -> bool {
    let Ok(message) = v1::CoordinatorMessage::decode(bytes) else { return false };
    if let Some(v1::coordinator_message::Body::Desired(desired)) = message.body {
        let _ = vp_agent::translate::wanted(&desired, [].iter());
    }
    true
}

/// What an agent kept of the set taken last: read again when it starts.
fn desired_set(bytes: &[u8]) -> bool {
    v1::Desired::decode(bytes).is_ok_and(|desired| {
        let _ = vp_agent::translate::wanted(&desired, [].iter());
        true
    })
}

/// An agent's memory of generations. What is read is kept as it was read, and goes on from there.
fn agent_generations(bytes: &[u8]) -> bool {
    let Ok(memory) = Memory::decode(bytes) else { return false };
    assert_eq!(Memory::decode(&memory.encode().unwrap()).unwrap(), memory);
    let slot = Slot::new("kafka", 2).unwrap();
    let next = memory.taking(u64::MAX, u64::MAX, &[(slot.clone(), 41)]).unwrap().releasing(&slot, 41);
    assert!(next.known(&slot).accepted >= 41 && next.known(&slot).released >= 41);
    true
}

fn process_record(bytes: &[u8]) -> bool {
    Record::read(bytes).is_some()
}

/// As a port's answer is read, under patterns as roles have them.
fn probe_answer(bytes: &[u8]) -> bool {
    static EXPECTED: LazyLock<Vec<Expect>> = LazyLock::new(|| {
        let zookeeper = "Mode: (?<mode>leader|follower|observer)";
        let kafka = r"(?s)\x00.127[.]20[.]1[.]20\x00\x00\x23\x84";
        let spark = r#""status"\s*:\s*"(?<mode>ALIVE|STANDBY)""#;
        [zookeeper, kafka, spark].map(|pattern| Expect::new(pattern).unwrap()).into()
    });
    let answer: String = latin1(bytes).collect();
    EXPECTED.iter().any(|expected| expected.facts(&answer).is_some())
}

fn enroll_request(bytes: &[u8]) -> bool {
    v1::EnrollRequest::decode(bytes).is_ok_and(|asked| {
        let _ = Request::read(&asked.certificate_request);
        true
    })
}

fn join_request(bytes: &[u8]) -> bool {
    v1::JoinRequest::decode(bytes).is_ok_and(|asked| {
        let _ = vp_coordinator::identity::Document::read(&asked.identity_document);
        true
    })
}

fn cluster_record(bytes: &[u8]) -> bool {
    serde_json::from_slice::<vp_coordinator::claims::Record>(bytes).is_ok()
}

fn coordinator_claim(bytes: &[u8]) -> bool {
    serde_json::from_slice::<vp_coordinator::claims::Claim>(bytes).is_ok()
}

fn joined_members(bytes: &[u8]) -> bool {
    vp_coordinator::bootstrap::joined_members(bytes, 4).is_some()
}

/// Which call it is the path says: each request is read as every one of them.
fn operator_request(bytes: &[u8]) -> bool {
    let named = |slot: Option<v1::SlotRef>| drop(slot.map(|slot| slot.to_string().parse::<vp_cluster::SlotId>()));
    let read = [
        v1::StatusRequest::decode(bytes).is_ok(),
        v1::ExplainRequest::decode(bytes).map(|asked| named(asked.slot)).is_ok(),
        v1::EventsRequest::decode(bytes).is_ok(),
        v1::DrainRequest::decode(bytes).is_ok(),
        v1::CordonRequest::decode(bytes).is_ok(),
        v1::MoveRequest::decode(bytes).map(|asked| named(asked.slot)).is_ok(),
        v1::ScaleRequest::decode(bytes).is_ok(),
        v1::ApplyRequest::decode(bytes).is_ok(),
        v1::ReleaseBrakeRequest::decode(bytes).is_ok(),
        v1::DeclareGoneRequest::decode(bytes).is_ok(),
        v1::WantCoordinatorsRequest::decode(bytes).is_ok(),
    ];
    read.contains(&true)
}

/// A whole segment, as at a start: frame after frame, and each one's records.
fn log_frame(bytes: &[u8]) -> bool {
    let (mut at, mut sequence) = (0, 1);
    loop {
        match frame::read(bytes, at, sequence) {
            Found::Frame { sequence: found, payload, next } => {
                if frame::records(payload).is_err() {
                    return false;
                }
                (at, sequence) = (next, found.wrapping_add(1));
            }
            Found::End => return at > 0,
            Found::Torn | Found::Damaged(_) => return false,
        }
    }
}

fn log_entry(bytes: &[u8]) -> bool {
    serde_json::from_slice::<vp_coordinator::machine::Entry>(bytes).is_ok()
}

/// The cluster's state, as snapshots and the cache of what was applied hold it.
fn cluster_state(bytes: &[u8]) -> bool {
    let (mut machine, _state, _reached) = ClusterMachine::new();
    if machine.restore(bytes).is_err() {
        return false;
    }
    let (mut again, _state, _reached) = ClusterMachine::new();
    again.restore(&machine.snapshot()).unwrap();
    assert_eq!(again.state(), machine.state());
    true
}

fn coordinator_user_data(bytes: &[u8]) -> bool {
    text(bytes, |text| vp_coordinator::settings::parse(text).is_ok())
}

fn agent_user_data(bytes: &[u8]) -> bool {
    text(bytes, |text| {
        let places =
            Places { root: "/r".into(), volumes: "/v".into(), image: "/i".into(), components: "/c".into(), imds_endpoint: "http://127.35.1.20:1338".into() };
        let metadata = Metadata {
            instance_id: "i-1".into(),
            address: IpAddr::from([127, 35, 1, 20]),
            zone: "us-east-1a".into(),
            instance_type: "t3.small".into(),
            user_data: text.into(),
            identity_document: "{}".into(),
            identity_signature: "c2ln".into(),
        };
        Settings::new(places, metadata).is_ok()
    })
}

fn identity_document(bytes: &[u8]) -> bool {
    text(bytes, |text| vp_coordinator::identity::Document::read(text).is_ok())
}

fn certificate(bytes: &[u8]) -> bool {
    Certificate::read(bytes).is_ok()
}

fn certificate_request(bytes: &[u8]) -> bool {
    Request::read(bytes).is_ok()
}

fn certificate_name(bytes: &[u8]) -> bool {
    text(bytes, |text| text.parse::<Name>().is_ok_and(|name| name.to_string() == text))
}

fn sealed_root(bytes: &[u8]) -> bool {
    static KEY: LazyLock<SealingKey> = LazyLock::new(|| SealingKey::from_base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap());
    Authority::open("dev", bytes, &KEY, None).is_ok()
}

fn zookeeper_config(bytes: &[u8]) -> bool {
    text(bytes, |text| vp_coordinator::zookeeper::parse_config(text).is_some())
}

fn role(bytes: &[u8]) -> bool {
    text(bytes, |text| vp_agent::catalogue::parse(text, Path::new("/nonexistent")).is_ok())
}

fn guard_datagram(bytes: &[u8]) -> bool {
    vp_agent::guard::renewal(bytes).is_some()
}

/// As the webhook gets it: JSON, the event in it, its key; and back to what a function gets.
fn s3_event(bytes: &[u8]) -> bool {
    let Ok(body) = serde_json::from_slice(bytes) else { return false };
    let Ok(created) = vp_localcloud::lambda::event::Created::from_webhook(&body, 1_700_000_000_000) else { return false };
    for one in &created {
        let _ = vp_jobs::event::decode_key(&one.key);
        let _ = one.payload("us-east-1", "ingest");
    }
    !created.is_empty()
}

fn recipe(bytes: &[u8]) -> bool {
    text(bytes, |text| vp_jobs::recipe::Recipe::parse("default", "default.yaml", text).is_ok())
}
