//! The conversations of a coordinator: with instances that enrol, with agents, with operators, and with coordinators that want to become members (peers are
//! in `peers`). Who may hold which is `admission`.

pub mod admission;
pub mod agents;
pub mod coordinators;
pub mod enrolment;
pub mod group;
pub mod limits;
pub mod operators;
mod orders;

use tonic::{Request, Status, metadata::MetadataValue};
use vp_cluster::{MemberId, NodeId};
use vp_proto::LEADER_KEY;
use vp_trust::{Caller, Certificate, Serial, Who};

use crate::{
    leader::{CommandError, Leader},
    raft::{ProposeError, ReadError},
};

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

/// Why a command was not done, as gRPC says it: "unknown outcome" is UNKNOWN and nothing else is.
pub fn not_done(leader: &Leader, error: CommandError) -> Status {
    match error {
        CommandError::Rejected(rejection) => Status::failed_precondition(rejection.to_string()),
        CommandError::Log(ProposeError::NotLeader { .. }) => not_leader(leader),
        CommandError::Log(refused @ (ProposeError::Dropped | ProposeError::Shutdown)) => Status::unavailable(refused.to_string()),
        CommandError::Log(large @ ProposeError::TooLarge { .. }) => Status::invalid_argument(large.to_string()),
        unknown @ (CommandError::Log(ProposeError::UnknownOutcome) | CommandError::Reply(_)) => Status::unknown(unknown.to_string()),
    }
}

/// Why a read was not confirmed.
pub fn not_read(leader: &Leader, error: ReadError) -> Status {
    match error {
        ReadError::NotLeader { .. } => not_leader(leader),
        busy @ (ReadError::Dropped | ReadError::Shutdown) => Status::unavailable(busy.to_string()),
    }
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

/// The number of the coordinator that calls, by its certificate. Admission has seen to it that there is one; whoever acts on it asks again, since a service
/// put behind no admission would believe anybody.
///
/// # Errors
/// Nobody's certificate, or not a coordinator's.
pub fn coordinator<T>(request: &Request<T>) -> Result<u64, Status> {
    let certificate = request.extensions().get::<Caller>().and_then(|caller| caller.certificate.as_ref());
    match certificate.map(|certificate| &certificate.name.who) {
        Some(Who::Coordinator { id }) => Ok(*id),
        _ => Err(Status::unauthenticated("a coordinator's certificate is needed")),
    }
}

fn leader_address(leader: &Leader) -> String {
    let state = leader.state();
    let member = state.coordinators.members.get(&MemberId(leader.raft.status().leader));
    member.map_or(String::new(), |member| format!("{}:{}", member.address, vp_proto::COORDINATOR_PORT))
}
