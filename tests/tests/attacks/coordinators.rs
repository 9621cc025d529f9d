//! Attacks on the way to become a coordinator: a place is its instance's own, and nobody joins while its predecessor lives.

use tonic::Code;
use tonic::transport::Channel;
use vp_proto::v1::coordinators_client::CoordinatorsClient;
use vp_proto::v1::{JoinRequest, JoinResponse};
use vp_tests::cell::{self, aws::Instance, dial};
use vp_trust::{Credentials, Rank};

use super::{attack, cell, honest, refused};

async fn client(own: &Credentials, from: std::net::IpAddr) -> CoordinatorsClient<Channel> {
    let leader = cell().leader_now().await.unwrap();
    CoordinatorsClient::new(dial(&cell().way(leader, from, Some(own)).unwrap()).await.unwrap())
}

/// A new instance of the second coordinator's group as it would ask.
fn successor(id: &str, host: u8, group: &str, forged: bool) -> JoinRequest {
    let address = cell().elsewhere(host);
    cell().aws.launch(id, Instance { address, state: "running", group: group.to_owned() });
    let (identity_document, identity_signature) = cell().document(id, address, "us-east-1", forged).unwrap();
    JoinRequest {
        cluster: cell::CLUSTER.into(),
        cluster_id: cell().cluster_id().unwrap(),
        coordinator: 2,
        instance_id: id.into(),
        address: address.to_string(),
        identity_document,
        identity_signature,
        supports: 1,
    }
}

/// Asked under the certificate of coordinator `number`.
async fn join(number: u64, request: JoinRequest) -> Result<tonic::Response<JoinResponse>, tonic::Status> {
    let own = cell().authority.coordinator(number).unwrap();
    client(&own, cell().elsewhere(110)).await.join(request).await
}

#[test]
fn neither_an_instance_nor_a_person_joins_the_coordinators() {
    attack(async {
        let request = successor("i-upstart-1", 111, "cell-coordinator-2", false);
        let (machine, own) = honest("i-wants-more").await;
        refused(client(&own, machine.address).await.join(request.clone()).await, Code::PermissionDenied, "coordinator's");
        let admin = cell().operator(Rank::Admin).unwrap();
        refused(client(&admin, cell().elsewhere(112)).await.join(request).await, Code::PermissionDenied, "coordinator's");
    });
}

#[test]
fn a_coordinator_does_not_join_in_anothers_place() {
    attack(async {
        let request = successor("i-upstart-2", 113, "cell-coordinator-2", false);
        refused(join(3, request.clone()).await, Code::PermissionDenied, "coordinator 3's");
        refused(join(9, JoinRequest { coordinator: 9, ..request }).await, Code::PermissionDenied, "not wanted");
    });
}

#[test]
fn a_successor_with_a_forged_document_or_of_another_group_is_refused() {
    attack(async {
        refused(join(2, successor("i-upstart-3", 114, "cell-coordinator-2", true)).await, Code::PermissionDenied, "signature");
        refused(join(2, successor("i-upstart-4", 115, cell::GROUP, false)).await, Code::PermissionDenied, cell::GROUP);
        let abroad = JoinRequest { cluster: "prod".into(), ..successor("i-upstart-5", 116, "cell-coordinator-2", false) };
        refused(join(2, abroad).await, Code::PermissionDenied, "prod");
    });
}

#[test]
fn a_successor_that_knows_another_incarnation_is_refused() {
    attack(async {
        let before = JoinRequest { cluster_id: format!("{}#0", cell::CLUSTER), ..successor("i-upstart-6", 117, "cell-coordinator-2", false) };
        refused(join(2, before).await, Code::PermissionDenied, "restored");
    });
}

#[test]
fn nobody_joins_while_the_predecessor_lives() {
    attack(async {
        let request = successor("i-upstart-7", 118, "cell-coordinator-2", false);
        refused(join(2, request).await, Code::FailedPrecondition, "");
    });
}
