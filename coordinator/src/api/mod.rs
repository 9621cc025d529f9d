//! The conversations of a coordinator: with agents and with operators (peers are in `peers`).

pub mod agents;
pub mod operators;
mod orders;

use tonic::{Status, metadata::MetadataValue};
use vp_proto::LEADER_KEY;

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

fn leader_address(leader: &Leader) -> String {
    let id = leader.raft.status().leader;
    let peer = leader.settings.user_data.coordinators.iter().find(|peer| peer.id == id);
    peer.map_or(String::new(), |peer| format!("{}:{}", peer.address, vp_proto::COORDINATOR_PORT))
}
