//! The conversations of a coordinator: with agents, with operators, and with coordinators that want to become members (peers are in `peers`).

pub mod agents;
pub mod coordinators;
pub mod group;
pub mod operators;
mod orders;

use tonic::{Status, metadata::MetadataValue};
use vp_cluster::MemberId;
use vp_proto::LEADER_KEY;

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

fn leader_address(leader: &Leader) -> String {
    let state = leader.state();
    let member = state.coordinators.members.get(&MemberId(leader.raft.status().leader));
    member.map_or(String::new(), |member| format!("{}:{}", member.address, vp_proto::COORDINATOR_PORT))
}
