//! Attacks by the mass, each kept up for as long as honest agents are measured (`load`).

use std::net::{IpAddr, SocketAddr};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use prost_raft::Message as _;
use raft::eraftpb::{Message, MessageType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::Channel;
use tonic::{Code, Status};
use vp_coordinator::api::limits::ENROLMENT;
use vp_proto::v1::agent_message::Body;
use vp_proto::v1::agents_client::AgentsClient;
use vp_proto::v1::enrolment_client::EnrolmentClient;
use vp_proto::v1::operators_client::OperatorsClient;
use vp_proto::v1::peers_client::PeersClient;
use vp_proto::v1::{AgentMessage, DrainRequest, EnrollRequest, Envelope, Hello, IdentifyRequest, StatusRequest};
use vp_proto::{COORDINATOR_PORT, ENROLMENT_PORT};
use vp_tests::cell::{self, dial};
use vp_tests::wait_until;
use vp_trust::{DialError, Way};

use super::load::{Attack, Count, SETTLES, attackers, strict, under};
use super::wire::{PREFACE, frame, raw_to};
use super::{QUIET, cell, honest};

/// A connection, or none: then others have had their turn, so that an attack that fails at once can still be ended.
async fn connect(from: IpAddr, to: SocketAddr) -> Option<TcpStream> {
    let connected = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        socket.connect(to).await
    };
    let connected = tokio::time::timeout(Duration::from_millis(500), connected).await;
    if !matches!(connected, Ok(Ok(_))) {
        tokio::task::yield_now().await;
    }
    connected.ok()?.ok()
}

/// A channel, as soon as there is one; others have their turn meanwhile.
async fn dialled(way: &Way) -> Channel {
    loop {
        match dial(way).await {
            Ok(channel) => return channel,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

fn denied<T>(answer: Result<T, Status>) -> bool {
    answer.is_err_and(|status| status.code() == Code::PermissionDenied)
}

/// An attacker's address; there are as many as one likes.
fn attacker(number: usize) -> IpAddr {
    let cell = cell().elsewhere(0);
    let IpAddr::V4(base) = cell else { return cell };
    let [a, b, ..] = base.octets();
    IpAddr::from([a, b, 100 + (number / 250 % 100) as u8, 1 + (number % 250) as u8])
}

/// One of the two doors.
fn door(leader: IpAddr, number: usize) -> SocketAddr {
    SocketAddr::new(leader, [COORDINATOR_PORT, ENROLMENT_PORT][number % 2])
}

#[test]
fn ten_thousand_half_open_connections() {
    // In the time that a busy machine has for it without `strict`, fewer.
    under(&Attack { name: "half-open", does: "connections", least: if strict() { 10_000 } else { 1000 } }, |leader, connections| async move {
        let mut held = std::collections::VecDeque::new();
        for number in 0..usize::MAX {
            if let Some(stream) = connect(attacker(number), door(leader, number)).await {
                held.push_back(stream);
                connections.one_more();
            }
            // As many as this process may hold beside its own; the coordinator has long closed the oldest.
            if held.len() > 10_000 {
                held.pop_front();
            }
            if number % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
}

#[test]
fn handshakes_that_drip_byte_by_byte() {
    under(&Attack { name: "slow handshake", does: "handshakes cut short", least: 100 }, |leader, cut| async move {
        let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &[7; 256]].concat();
        let drips = (0..600).map(|number| {
            let (hello, cut) = (hello.clone(), cut.clone());
            async move {
                loop {
                    let Some(mut stream) = connect(attacker(number), door(leader, 0)).await else { continue };
                    for byte in &hello {
                        if stream.write_all(&[*byte]).await.is_err() {
                            cut.one_more();
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await; // the attack's own pace
                    }
                }
            }
        });
        futures::future::join_all(drips).await;
    });
}

#[test]
fn handshakes_without_a_certificate_one_after_another() {
    under(&Attack { name: "handshake flood", does: "handshakes refused", least: 50 }, |leader, refused| async move {
        let knocks = (0..12).map(|number| {
            let refused = refused.clone();
            async move {
                let way = cell().way(leader, attacker(number), None).unwrap();
                loop {
                    match dial(&way).await {
                        Err(DialError::Refused { .. }) => refused.one_more(),
                        _ => tokio::task::yield_now().await,
                    }
                }
            }
        });
        futures::future::join_all(knocks).await;
    });
}

#[test]
fn garbage_from_everywhere() {
    under(&Attack { name: "garbage", does: "connections closed", least: 200 }, |leader, closed| async move {
        let shouts = (0..32).map(|number| {
            let closed = closed.clone();
            async move {
                for turn in 0_usize.. {
                    let Some(mut stream) = connect(attacker(number + turn * 32), door(leader, turn)).await else { continue };
                    if stream.write_all(&[turn as u8; 4096]).await.is_ok() {
                        // An alert at most, and the end.
                        let mut said = Vec::new();
                        let _ = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut said)).await.map(|_| closed.one_more());
                    }
                }
            }
        });
        futures::future::join_all(shouts).await;
    });
}

#[test]
fn rapid_resets_on_every_connection_one_may_have() {
    under(&Attack { name: "rapid reset", does: "streams reset", least: 500 }, |leader, resets| async move {
        let floods = (0..8_u8).map(|number| {
            let resets = resets.clone();
            async move {
                loop {
                    let Ok(mut stream) = raw_to(leader, 80 + number).await else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    let _ = stream.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await;
                    for id in 0..100_000_u32 {
                        let reset = [frame(1, 5, id * 2 + 1, &[0x83, 0x86, 0x84]), frame(3, 0, id * 2 + 1, &[0, 0, 0, 8])].concat();
                        if stream.write_all(&reset).await.is_err() {
                            break;
                        }
                        resets.one_more();
                    }
                }
            }
        });
        futures::future::join_all(floods).await;
    });
}

/// Forged enrolments by eight callers, as fast as they are refused.
async fn forge(leader: IpAddr, refused: Count) {
    let fresh = vp_trust::request::Fresh::new(&cell().name("i-many")).unwrap();
    let (document, signature) = cell().document("i-many", cell().elsewhere(90), "us-east-1", true).unwrap();
    let claim = EnrollRequest {
        cluster: cell::CLUSTER.into(),
        instance_id: "i-many".into(),
        address: cell().elsewhere(90).to_string(),
        identity_document: document,
        identity_signature: signature,
        certificate_request: fresh.der().to_vec(),
    };
    let asks = (0..8).map(|number| {
        let (claim, refused) = (claim.clone(), refused.clone());
        async move {
            let way = cell().enrolment_way(leader, attacker(number)).unwrap();
            loop {
                let channel = dialled(&way).await;
                let mut client = EnrolmentClient::new(channel);
                while denied(client.enroll(claim.clone()).await) {
                    refused.one_more();
                }
            }
        }
    });
    futures::future::join_all(asks).await;
}

#[test]
fn enrolments_with_forged_documents_as_fast_as_they_go() {
    under(&Attack { name: "forged enrolments", does: "enrolments refused", least: 100 }, forge);
}

#[test]
fn whoever_is_honest_is_enrolled_while_others_forge() {
    let _alone = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let (refused, leader) = (Count::default(), cell().leader().unwrap());
    let attackers = attackers();
    let attack = attackers.spawn(forge(leader, refused.clone()));
    wait_until("forged enrolments are refused", Duration::from_secs(10), || Ok((refused.get() > 100).then_some(()))).unwrap();
    let began = Instant::now();
    (0..5).for_each(|number| drop(cell().block_on(honest(&format!("i-honest-{number}")))));
    let (took, before) = (began.elapsed(), refused.get());
    assert!(took < ENROLMENT.handshake * 5, "five honest instances were enrolled in {took:?}");
    wait_until("the attack goes on", Duration::from_secs(10), || Ok((refused.get() > before).then_some(()))).unwrap();
    assert!(!attack.is_finished());
    attackers.shutdown_timeout(SETTLES);
}

#[test]
fn streams_of_the_largest_messages() {
    under(&Attack { name: "oversized streams", does: "streams refused", least: 10 }, |leader, refused| async move {
        let streams = (0..8_u8).map(|number| {
            let refused = refused.clone();
            async move {
                let own = cell().authority.coordinator(2).unwrap();
                let way = cell().way(leader, cell().elsewhere(100 + number), Some(&own)).unwrap();
                loop {
                    let channel = dialled(&way).await;
                    let envelope = Envelope { cluster: "prod".into(), from: 2, to: 1, message: vec![0; 3 << 20] };
                    let mut client = PeersClient::new(channel).max_encoding_message_size(8 << 20);
                    let answer = client.send(tokio_stream::iter(std::iter::repeat_n(envelope, 64))).await;
                    if denied(answer) {
                        refused.one_more();
                    }
                }
            }
        });
        futures::future::join_all(streams).await;
    });
}

#[test]
fn calls_that_a_true_agent_may_not_make() {
    let liars: Vec<_> = (0..4).map(|number| cell().block_on(honest(&format!("i-many-calls-{number}")))).collect();
    under(&Attack { name: "forbidden calls", does: "calls refused", least: 200 }, |leader, refused| {
        let calls = liars.iter().cloned().map(move |(machine, own)| {
            let refused = refused.clone();
            async move {
                let way = cell().way(leader, machine.address, Some(&own)).unwrap();
                let another = Hello { instance_id: "i-another".into(), ..machine.hello() };
                let hello = AgentMessage { body: Some(Body::Hello(another)) };
                loop {
                    let channel = dialled(&way).await;
                    let mut agents = AgentsClient::new(channel.clone());
                    let (mut operators, mut peers) = (OperatorsClient::new(channel.clone()), PeersClient::new(channel));
                    loop {
                        let drain = DrainRequest { instance_id: "i-another".into(), ..Default::default() };
                        let answers = [
                            denied(operators.status(StatusRequest::default()).await),
                            denied(operators.drain(drain).await),
                            denied(peers.identify(IdentifyRequest { cluster: cell::CLUSTER.into() }).await),
                            denied(async { agents.session(tokio_stream::iter([hello.clone()])).await?.into_inner().message().await }.await),
                        ];
                        answers.iter().filter(|denied| **denied).for_each(|_| refused.one_more());
                        if answers.contains(&false) {
                            break;
                        }
                    }
                }
            }
        });
        let calls: Vec<_> = calls.collect();
        async move { drop(futures::future::join_all(calls).await) }
    });
}

#[test]
fn lies_of_a_true_peer_about_its_term() {
    under(&Attack { name: "lying peer", does: "streams refused", least: 100 }, |leader, refused| async move {
        // Members have the numbers of their addresses: the leader is lied to by the one after it.
        let to = (1..=3).find(|member| cell().coordinator(*member) == leader).unwrap();
        let from = to % 3 + 1;
        let lies = (0..8_u8).map(|number| {
            let refused = refused.clone();
            async move {
                let own = cell().authority.coordinator(from).unwrap();
                let way = cell().way(leader, cell().elsewhere(110 + number), Some(&own)).unwrap();
                let lie = Message { from, to, term: u64::MAX, msg_type: MessageType::MsgRequestVote as i32, ..Default::default() };
                let envelope = Envelope { cluster: cell().cluster_id().unwrap(), from, to, message: lie.encode_to_vec() };
                loop {
                    let channel = dialled(&way).await;
                    let mut client = PeersClient::new(channel);
                    while denied(client.send(tokio_stream::iter([envelope.clone()])).await) {
                        refused.one_more();
                    }
                }
            }
        });
        futures::future::join_all(lies).await;
    });
}
