//! Attacks under a true certificate: calls that are another kind's, records that are another's, and more of everything than there is need for.

use std::time::{Duration, Instant};

use tonic::{Code, Status};
use vp_coordinator::api::limits::OPERATOR_CALLS;
use vp_proto::v1::agent_message::Body;
use vp_proto::v1::agents_client::AgentsClient;
use vp_proto::v1::operators_client::OperatorsClient;
use vp_proto::v1::peers_client::PeersClient;
use vp_proto::v1::*;
use vp_tests::cell::machine::{Session, open};
use vp_tests::cell::{self, dial};
use vp_trust::{Credentials, Rank};

use super::{attack, cell, honest, refused};

async fn channel(own: &Credentials, from: std::net::IpAddr) -> tonic::transport::Channel {
    let leader = cell().leader_now().await.unwrap();
    dial(&cell().way(leader, from, Some(own)).unwrap()).await.unwrap()
}

async fn status() -> ClusterStatus {
    let admin = cell().operator(Rank::Admin).unwrap();
    OperatorsClient::new(channel(&admin, cell().elsewhere(40)).await).status(StatusRequest::default()).await.unwrap().into_inner()
}

/// What ends a session, said to it last.
async fn end(mut session: Session) -> Option<Status> {
    let ended = async {
        loop {
            match session.answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the session is ended")
}

#[test]
fn an_agent_may_not_call_what_is_the_operators() {
    attack(async {
        let (machine, own) = honest("i-operates").await;
        let mut client = OperatorsClient::new(channel(&own, machine.address).await);
        refused(client.status(StatusRequest::default()).await, Code::PermissionDenied, "operator's");
        refused(client.plan(PlanRequest {}).await, Code::PermissionDenied, "operator's");
        refused(client.drain(DrainRequest { instance_id: "i-other".into(), ..Default::default() }).await, Code::PermissionDenied, "operator's");
        refused(client.events(EventsRequest::default()).await, Code::PermissionDenied, "operator's");
    });
}

#[test]
fn an_agent_may_not_call_what_is_the_coordinators() {
    attack(async {
        let (machine, own) = honest("i-peers").await;
        let mut client = PeersClient::new(channel(&own, machine.address).await);
        refused(client.identify(IdentifyRequest { cluster: cell::CLUSTER.into() }).await, Code::PermissionDenied, "coordinator's");
        refused(client.send(tokio_stream::iter([Envelope::default()])).await, Code::PermissionDenied, "coordinator's");
    });
}

#[test]
fn an_operator_may_not_call_what_is_the_agents_or_the_coordinators() {
    attack(async {
        let admin = cell().operator(Rank::Admin).unwrap();
        let from = cell().elsewhere(41);
        let hello = AgentMessage { body: Some(Body::Hello(Hello { cluster: cell::CLUSTER.into(), instance_id: "i-1".into(), ..Default::default() })) };
        refused(AgentsClient::new(channel(&admin, from).await).session(tokio_stream::iter([hello])).await, Code::PermissionDenied, "instance's");
        let mut peers = PeersClient::new(channel(&admin, from).await);
        refused(peers.identify(IdentifyRequest { cluster: cell::CLUSTER.into() }).await, Code::PermissionDenied, "coordinator's");
    });
}

#[test]
fn a_coordinator_may_not_call_what_is_the_agents_or_the_operators() {
    attack(async {
        let coordinator = cell().authority.coordinator(2).unwrap();
        let from = cell().elsewhere(42);
        refused(OperatorsClient::new(channel(&coordinator, from).await).status(StatusRequest::default()).await, Code::PermissionDenied, "operator's");
        let hello = AgentMessage { body: Some(Body::Hello(Hello::default())) };
        refused(AgentsClient::new(channel(&coordinator, from).await).session(tokio_stream::iter([hello])).await, Code::PermissionDenied, "instance's");
    });
}

#[test]
fn a_viewer_may_look_and_change_nothing() {
    attack(async {
        let viewer = cell().operator(Rank::Viewer).unwrap();
        let mut client = OperatorsClient::new(channel(&viewer, cell().elsewhere(43)).await);
        client.status(StatusRequest::default()).await.unwrap();
        let drain = DrainRequest { instance_id: "i-nobody".into(), ..Default::default() };
        refused(client.drain(drain.clone()).await, Code::PermissionDenied, "the viewer ada");
        // An operator gets as far as the question itself.
        let operator = cell().operator(Rank::Operator).unwrap();
        let answer = OperatorsClient::new(channel(&operator, cell().elsewhere(43)).await).drain(drain).await.unwrap_err();
        assert_ne!(answer.code(), Code::PermissionDenied, "{answer:?}");
    });
}

#[test]
fn an_operator_neither_applies_a_spec_nor_changes_the_coordinators_nor_takes_a_snapshot_nor_vouches_for_an_end() {
    attack(async {
        let operator = cell().operator(Rank::Operator).unwrap();
        let mut client = OperatorsClient::new(channel(&operator, cell().elsewhere(46)).await);
        refused(client.apply(ApplyRequest { yaml: "roles: {}".into(), ..Default::default() }).await, Code::PermissionDenied, "the operator ada");
        refused(client.want_coordinators(WantCoordinatorsRequest { remove: vec![2], ..Default::default() }).await, Code::PermissionDenied, "the operator ada");
        refused(client.save_snapshot(SaveSnapshotRequest {}).await, Code::PermissionDenied, "the operator ada");
        refused(client.declare_gone(DeclareGoneRequest { instance_id: "i-1".into(), ..Default::default() }).await, Code::PermissionDenied, "the operator ada");
        // What is its own to do fails for another reason, if at all.
        let answer = client.release_brake(ReleaseBrakeRequest { by: "ada".into(), ..Default::default() }).await;
        assert_ne!(answer.map_err(|status| status.code()).err(), Some(Code::PermissionDenied));
        assert_eq!(status().await.coordinators.len(), 3);
    });
}

#[test]
fn what_is_not_served_is_not_called_by_anybody() {
    attack(async {
        let admin = cell().operator(Rank::Admin).unwrap();
        let mut grpc = tonic::client::Grpc::new(channel(&admin, cell().elsewhere(44)).await);
        for path in ["/vp.v1.Enrolment/Enroll", "/vp.v1.Operators/Everything", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/"] {
            grpc.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<StatusRequest, ClusterStatus>::default();
            let answer = grpc.unary(tonic::Request::new(StatusRequest::default()), path.parse().unwrap(), codec).await;
            assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
        }
    });
}

#[test]
fn a_hello_of_another_instance_is_refused() {
    attack(async {
        let ((machine, own), (victim, _)) = (honest("i-liar").await, honest("i-lied-about").await);
        let answer = open(cell(), machine.address, &own, victim.hello()).await;
        refused(answer.map(|_| ()), Code::PermissionDenied, "the certificate of i-liar");
        let elsewhere = Hello { address: victim.address.to_string(), ..machine.hello() };
        refused(open(cell(), machine.address, &own, elsewhere).await.map(|_| ()), Code::PermissionDenied, "the certificate of i-liar");
        let abroad = Hello { cluster: "prod".into(), ..machine.hello() };
        refused(open(cell(), machine.address, &own, abroad).await.map(|_| ()), Code::PermissionDenied, "prod");
    });
}

#[test]
fn another_nodes_slot_is_neither_renewed_nor_given_back_by_a_stranger_nor_at_an_old_generation() {
    attack(async {
        let (holder, holders) = honest("i-holder").await;
        let mut session = holder.session(cell(), &holders).await.unwrap();
        let held = loop {
            let _ = session.beat(Heartbeat::default(), Duration::from_secs(2)).await.unwrap();
            // Its own: another's, whose test is over, is taken from it meanwhile for its silence.
            if let Some(slot) = status().await.slots.into_iter().find(|slot| slot.instance_id == holder.id) {
                break slot;
            }
        };
        let (thief, thiefs) = honest("i-thief").await;
        let mut theft = thief.session(cell(), &thiefs).await.unwrap();
        let pair = |generation| SlotGeneration { slot: held.slot.clone(), generation };
        let report = |generation| SlotObservation { slot: held.slot.clone(), generation, phase: Phase::Healthy.into(), ..Default::default() };
        for generation in [held.generation, held.generation - 1, 0, u64::MAX] {
            let beat = Heartbeat { slots: vec![report(generation)], ..Default::default() };
            let (_, ack) = theft.beat(beat, Duration::from_secs(2)).await.unwrap();
            assert_eq!(ack.renewed, [], "generation {generation}");
            let released = AgentMessage { body: Some(Body::Released(Released { slot: Some(pair(generation)) })) };
            theft.say.send(released).await.unwrap();
            let _ = session.beat(Heartbeat::default(), Duration::from_secs(2)).await.unwrap();
        }
        theft.beat(Heartbeat::default(), Duration::from_secs(2)).await.unwrap();
        let now = status().await.slots.into_iter().find(|slot| slot.slot == held.slot).unwrap();
        assert_eq!((now.instance_id, now.generation), (held.instance_id, held.generation));
    });
}

#[test]
fn more_slots_than_a_node_can_hold_end_the_session() {
    attack(async {
        let (machine, own) = honest("i-slots").await;
        let session = machine.session(cell(), &own).await.unwrap();
        let report = |index| SlotObservation { slot: Some(SlotRef { role: "kafka".into(), index }), ..Default::default() };
        let beat = Heartbeat { sequence: 1, slots: (0..300).map(report).collect(), measures: None };
        session.say.send(AgentMessage { body: Some(Body::Heartbeat(beat)) }).await.unwrap();
        assert_eq!(end(session).await.map(|status| status.code()), Some(Code::InvalidArgument));
    });
}

#[test]
fn hellos_without_end_are_refused_by_their_rate() {
    attack(async {
        let (machine, own) = honest("i-greeter").await;
        let mut said = 0;
        // Another version each time: each would be registered anew, after a call to EC2.
        let refusal = loop {
            let hello = Hello { agent_version: format!("attack {said}"), ..machine.hello() };
            match open(cell(), machine.address, &own, hello).await {
                Ok(session) => drop(session),
                Err(status) => break status,
            }
            said += 1;
            assert!(said < 100, "{said} hellos were taken");
        };
        assert!(said >= 8, "only {said}: an honest agent may come back as often");
        refused(Err::<(), _>(refusal), Code::ResourceExhausted, "hello again and again");
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(status) = open(cell(), machine.address, &own, machine.hello()).await {
            assert!(status.code() == Code::ResourceExhausted && Instant::now() < deadline, "not admitted again: {status}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
}

/// Each plan is the leader's work: a loop of them is the cheapest harm that a viewer can do.
#[test]
fn plans_without_end_are_refused_by_the_rate_of_whoever_asks_for_them() {
    attack(async {
        let mallory = cell().authority.operator(Rank::Viewer, "mallory", cell::now_s()).unwrap();
        let client = OperatorsClient::new(channel(&mallory, cell().elsewhere(47)).await);
        let ask = async || client.clone().plan(PlanRequest {}).await;
        let mut answered = 0;
        // As many at once as the connection takes, so that a slow machine is no rate.
        let refusal = loop {
            let answers = futures::future::join_all((0..24).map(|_| ask())).await;
            answered += answers.iter().filter(|answer| answer.is_ok()).count();
            if let Some(status) = answers.into_iter().find_map(Result::err) {
                break status;
            }
            assert!(answered < 20 * OPERATOR_CALLS.burst as usize, "{answered} plans were answered");
        };
        refused(Err::<(), _>(refusal), Code::ResourceExhausted, "the viewer mallory calls too often");
        assert!(answered >= OPERATOR_CALLS.burst as usize, "only {answered}: honest tools may ask as often");
        // Nobody else pays for it, and the wait is short.
        status().await;
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(status) = ask().await {
            assert!(status.code() == Code::ResourceExhausted && Instant::now() < deadline, "not answered again: {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_flood_of_heartbeats_ends_the_session() {
    attack(async {
        let (machine, own) = honest("i-flood").await;
        let session = machine.session(cell(), &own).await.unwrap();
        let say = session.say.clone();
        let flood = tokio::spawn(async move {
            for sequence in 0..100_000 {
                let beat = Heartbeat { sequence, ..Default::default() };
                if say.send(AgentMessage { body: Some(Body::Heartbeat(beat)) }).await.is_err() {
                    return;
                }
            }
        });
        let said = end(session).await;
        flood.abort();
        assert_eq!(said.map(|status| status.code()), Some(Code::ResourceExhausted));
    });
}

#[test]
fn a_message_that_is_too_large_ends_the_session() {
    attack(async {
        let (machine, own) = honest("i-large").await;
        let session = machine.session(cell(), &own).await.unwrap();
        let report = SlotObservation { slot: Some(SlotRef { role: "kafka".into(), index: 1 }), message: "x".repeat(2 << 20), ..Default::default() };
        let beat = Heartbeat { sequence: 1, slots: vec![report], measures: None };
        session.say.send(AgentMessage { body: Some(Body::Heartbeat(beat)) }).await.unwrap();
        end(session).await;
    });
}

#[test]
fn a_second_hello_and_an_empty_message_end_the_session() {
    attack(async {
        let (machine, own) = honest("i-again").await;
        for body in [Some(Body::Hello(machine.hello())), None] {
            let session = machine.session(cell(), &own).await.unwrap();
            session.say.send(AgentMessage { body }).await.unwrap();
            end(session).await;
        }
    });
}

#[test]
fn a_stream_that_says_no_hello_is_ended() {
    attack(async {
        let (machine, own) = honest("i-silent").await;
        let mut client = AgentsClient::new(channel(&own, machine.address).await);
        let answer = tokio::time::timeout(Duration::from_secs(8), client.session(tokio_stream::pending())).await.expect("it is ended in time");
        refused(answer, Code::DeadlineExceeded, "no hello");
        let heartbeat = AgentMessage { body: Some(Body::Heartbeat(Heartbeat::default())) };
        refused(client.session(tokio_stream::iter([heartbeat])).await, Code::InvalidArgument, "hello");
    });
}

#[test]
fn more_than_an_agents_streams_on_one_connection_leave_one_session() {
    attack(async {
        let (machine, own) = honest("i-streams").await;
        let first = machine.session(cell(), &own).await.unwrap();
        let second = machine.session(cell(), &own).await.unwrap();
        end(first).await;
        drop(second);
    });
}

#[test]
fn headers_larger_than_any_of_ours_are_refused() {
    attack(async {
        let admin = cell().operator(Rank::Admin).unwrap();
        let mut client = OperatorsClient::new(channel(&admin, cell().elsewhere(45)).await);
        let mut request = tonic::Request::new(StatusRequest::default());
        for number in 0..40 {
            let key: tonic::metadata::MetadataKey<_> = format!("x-{number}").parse().unwrap();
            request.metadata_mut().insert(key, "v".repeat(1000).parse().unwrap());
        }
        client.status(request).await.unwrap_err();
    });
}
