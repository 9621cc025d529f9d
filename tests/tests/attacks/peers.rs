//! Attacks by somebody who has a coordinator's certificate, or had one: a true peer is untrusted input all the same.

use prost_raft::Message as _;
use raft::eraftpb::{Message, MessageType};
use tonic::Code;
use vp_proto::v1::peers_client::PeersClient;
use vp_proto::v1::{Envelope, IdentifyRequest, IdentifyResponse, SendSummary};
use vp_tests::cell::dial;

use super::{attack, cell, refused};

/// The second coordinator's credentials, used from elsewhere against the first.
async fn peer() -> PeersClient<tonic::transport::Channel> {
    let own = cell().authority.coordinator(2).unwrap();
    let way = cell().way(cell().coordinator(1), cell().elsewhere(50), Some(&own)).unwrap();
    PeersClient::new(dial(&way).await.unwrap()).max_encoding_message_size(64 << 20)
}

/// As its members name the cluster to each other.
fn ours() -> String {
    cell().cluster_id().unwrap()
}

async fn send(envelopes: Vec<Envelope>) -> Result<tonic::Response<SendSummary>, tonic::Status> {
    peer().await.send(tokio_stream::iter(envelopes)).await
}

async fn identify() -> IdentifyResponse {
    peer().await.identify(IdentifyRequest { cluster: ours() }).await.unwrap().into_inner()
}

fn message(from: u64, to: u64, kind: MessageType, term: u64) -> Vec<u8> {
    Message { from, to, term, msg_type: kind as i32, ..Default::default() }.encode_to_vec()
}

fn envelope(cluster: &str, from: u64, to: u64, message: Vec<u8>) -> Envelope {
    Envelope { cluster: cluster.into(), from, to, message }
}

#[test]
fn an_envelope_of_another_cluster_or_for_another_member_is_refused() {
    attack(async {
        let vote = message(2, 1, MessageType::MsgRequestPreVote, 1);
        refused(send(vec![envelope("prod", 2, 1, vote.clone())]).await, Code::PermissionDenied, "member 1");
        refused(send(vec![envelope(&ours(), 2, 3, vote)]).await, Code::PermissionDenied, "member 1");
        refused(peer().await.identify(IdentifyRequest { cluster: "prod".into() }).await, Code::PermissionDenied, "cell");
    });
}

#[test]
fn an_envelope_of_no_member_of_oneself_or_around_another_message_is_refused() {
    attack(async {
        // Ids are given one after another: one that far beyond all that were heard of nobody has.
        for (from, inner) in [(9000, 9000), (1, 1), (0, 0), (2, 3), (u64::MAX, u64::MAX)] {
            let vote = message(inner, 1, MessageType::MsgRequestPreVote, 1);
            refused(send(vec![envelope(&ours(), from, 1, vote)]).await, Code::PermissionDenied, "");
        }
    });
}

#[test]
fn what_is_no_message_of_the_log_is_refused() {
    attack(async {
        // A kind of message that does not exist, which once ended the coordinator.
        let unheard = Message { from: 2, to: 1, term: 1, msg_type: 77, ..Default::default() }.encode_to_vec();
        for garbage in [unheard, vec![0xFF; 9], vec![0x80; 64], vec![0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F], b"GET / HTTP/1.1".to_vec()] {
            assert!(send(vec![envelope(&ours(), 2, 1, garbage)]).await.is_err());
        }
    });
}

#[test]
fn a_peer_may_not_propose_read_or_hand_over_the_lead_in_anothers_name() {
    attack(async {
        for kind in [MessageType::MsgPropose, MessageType::MsgReadIndex, MessageType::MsgTransferLeader] {
            refused(send(vec![envelope(&ours(), 2, 1, message(2, 1, kind, 1))]).await, Code::PermissionDenied, "may not propose");
        }
    });
}

#[test]
fn a_peer_that_sends_what_only_a_member_says_to_itself_is_refused() {
    attack(async {
        for kind in [MessageType::MsgHup, MessageType::MsgBeat, MessageType::MsgCheckQuorum, MessageType::MsgUnreachable, MessageType::MsgSnapStatus] {
            refused(send(vec![envelope(&ours(), 2, 1, message(2, 1, kind, 0))]).await, Code::PermissionDenied, "");
        }
    });
}

#[test]
fn a_peer_that_lies_about_its_term_moves_nobody() {
    attack(async {
        let before = identify().await;
        for term in [u64::MAX, u64::MAX - 1, before.term + (1 << 40), before.term + 2_000_000] {
            for kind in [MessageType::MsgAppend, MessageType::MsgHeartbeat, MessageType::MsgRequestVote, MessageType::MsgSnapshot] {
                refused(send(vec![envelope(&ours(), 2, 1, message(2, 1, kind, term))]).await, Code::PermissionDenied, "term");
            }
        }
        let after = identify().await;
        assert_eq!((after.term, after.leader_id), (before.term, before.leader_id));
    });
}

#[test]
fn an_envelope_larger_than_any_of_ours_is_refused() {
    attack(async {
        let answer = send(vec![envelope(&ours(), 2, 1, vec![0; 16 << 20])]).await;
        refused(answer, Code::OutOfRange, "");
    });
}
