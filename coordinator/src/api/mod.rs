//! The conversations of a coordinator: with instances that enrol, with agents and with operators (peers are in `peers`).

pub mod admission;
pub mod agents;
pub mod enrolment;
pub mod limits;
pub mod operators;

use tonic::{Request, Status, metadata::MetadataValue};
use vp_cluster::NodeId;
use vp_proto::LEADER_KEY;
use vp_trust::{Caller, Certificate, Serial, Who};

use crate::leader::Leader;

/// "Not here": names the leader's address, empty when none is known.
pub fn not_leader(leader: &Leader) -> Status {
    let address = leader_address(leader);
    let text = if address.is_empty() { "no leader is known yet: try again".to_owned() } else { format!("the leader is at {address}") };
    let mut status = Status::failed_precondition(text);
    if let Ok(value) = MetadataValue::try_from(&address) {
        status.metadata_mut().insert(LEADER_KEY, value);
    }
    status
}

/// The certificate of the instance that calls. Admission has seen to it that there is one.
fn instance<T>(request: &Request<T>) -> Result<(NodeId, Certificate, Serial), Status> {
    let certificate = request.extensions().get::<Caller>().and_then(|caller| caller.certificate.clone());
    let found = certificate.and_then(|certificate| match (&certificate.name.who, certificate.serial) {
        (Who::Node { instance_id }, Some(serial)) => Some((NodeId(instance_id.clone()), certificate, serial)),
        _ => None,
    });
    found.ok_or_else(|| Status::unauthenticated("an instance's certificate is needed"))
}

fn leader_address(leader: &Leader) -> String {
    let id = leader.raft.status().leader;
    let peer = leader.settings.user_data.coordinators.iter().find(|peer| peer.id == id);
    peer.map_or(String::new(), |peer| format!("{}:{}", peer.address, vp_proto::COORDINATOR_PORT))
}
