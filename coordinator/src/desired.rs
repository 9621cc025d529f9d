//! From the replicated state to what one node is to do: the whole desired set, as the wire carries it.

use std::collections::HashMap;

use vp_cluster::{
    ClusterState, NodeId, Observations, SlotId,
    ensemble::{self, Join},
    gates,
    state::{Fencing, Membership},
};
use vp_proto::v1;

use crate::zookeeper::server_line;

pub fn slot_ref(id: &SlotId) -> v1::SlotRef {
    v1::SlotRef { role: id.role.0.clone(), index: id.index }
}

pub fn fencing_name(fencing: Fencing) -> &'static str {
    match fencing {
        Fencing::Exclusive => "exclusive",
        Fencing::Quorum => "quorum",
        Fencing::Disposable => "disposable",
    }
}

/// Every placed slot with its address: what templates call members and what hosts files are written from.
pub fn members(state: &ClusterState) -> Vec<v1::Member> {
    let placed = state.slots.iter().filter_map(|(id, slot)| {
        let (node_id, node) = state.holder(slot)?;
        Some(v1::Member {
            slot: Some(slot_ref(id)),
            generation: slot.generation.0,
            member_id: slot.member_id,
            address: node.address.clone(),
            zone: node.zone.0.clone(),
            instance_id: node_id.0.clone(),
        })
    });
    placed.collect()
}

/// What `node` is to run. `zookeeper_digest` is the administrator's digest (not a secret by itself).
pub fn desired(state: &ClusterState, obs: &Observations, node: &NodeId, term: u64, zookeeper_digest: &str) -> v1::Desired {
    let assignments = state.held_by(node).filter_map(|(id, slot)| {
        let role = state.role(id)?;
        let gate = gates::start(state, obs, id);
        Some(v1::Assignment {
            slot: Some(slot_ref(id)),
            generation: slot.generation.0,
            member_id: slot.member_id,
            volume_id: if role.volume { slot.volume.as_ref().map_or(String::new(), |volume| volume.id.0.clone()) } else { String::new() },
            params: if role.membership == Membership::ZooKeeper { zookeeper_params(state, obs, id, zookeeper_digest) } else { HashMap::new() },
            start: gate.is_none() && !slot.releasing,
            waiting_on: gate.map_or(String::new(), |gate| gate.closed_by),
            fencing: fencing_name(role.fencing).to_owned(),
            stop: slot.releasing,
        })
    });
    v1::Desired { term, revision: state.revision.0, assignments: assignments.collect(), members: members(state) }
}

fn zookeeper_params(state: &ClusterState, obs: &Observations, id: &SlotId, digest: &str) -> HashMap<String, String> {
    let mut params = HashMap::from([("super_digest".to_owned(), digest.to_owned())]);
    if let Some((join, list)) = ensemble::start_list(state, obs, id) {
        let name = match join {
            Join::Founder => "founder",
            Join::Member => "member",
            Join::Observer => "observer",
        };
        let lines: Vec<String> = list.iter().map(|(member, address, votes)| server_line(*member, address, *votes)).collect();
        params.insert("join".to_owned(), name.to_owned());
        params.insert("ensemble".to_owned(), lines.join("\n"));
        params.insert("initialize".to_owned(), (join == Join::Founder).to_string());
    }
    params
}
