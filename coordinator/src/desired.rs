//! From the replicated state to what each node is to do: its whole desired set, as the wire carries it. Worked out for all nodes in one pass over the slots,
//! since the leader does it several times a second for ten thousand of them.

use std::collections::{BTreeMap, HashMap};

use vp_cluster::{
    ClusterState, NodeId, Observations, Revision, SlotId, VolumeId,
    ensemble::{self, Join},
    gates,
    health::Serving,
    mutant,
    observe::{EnsembleSeen, KafkaSeen, SlotSeen, VolumeSeen},
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

/// What all nodes are to do.
pub struct Wishes {
    /// Of this leader, at this revision.
    pub term: u64,
    pub revision: u64,
    /// By node; one that holds nothing is not there.
    pub assignments: BTreeMap<NodeId, Vec<v1::Assignment>>,
    /// Everybody who is placed.
    pub members: Vec<v1::Member>,
}

/// What [`wishes`] follow from, beside the term: from the same ground, the same wishes.
pub struct Ground {
    revision: Revision,
    slots: BTreeMap<SlotId, SlotSeen>,
    volumes: BTreeMap<VolumeId, VolumeSeen>,
    zookeeper: Option<EnsembleSeen>,
    kafka: Option<KafkaSeen>,
}

impl Ground {
    /// What a look stood on. Each observation that there is is named, so that whoever adds one says here whether a start gate asks for it.
    pub fn of(state: &ClusterState, obs: Observations) -> Self {
        let Observations {
            slots,
            volumes,
            zookeeper,
            kafka,
            now_ms: _,
            leading_since_ms: _,
            trusted_since_ms: _,
            lease_ms: _,
            given_up_ms: _,
            coordinators: _,
            braked: _,
            joining: _,
            nodes: _,
            zone_empty_since_ms: _,
        } = obs;
        Self { revision: state.revision, slots, volumes, zookeeper, kafka }
    }

    /// Whether these would be the same.
    pub fn is(&self, state: &ClusterState, obs: &Observations) -> bool {
        let slots = self.slots == obs.slots || mutant!("reports-tell-nobody");
        self.revision == state.revision && slots && self.volumes == obs.volumes && self.zookeeper == obs.zookeeper && self.kafka == obs.kafka
    }
}

/// What every node is to run. `zookeeper_digest` is the administrator's digest (not a secret by itself).
pub fn wishes(state: &ClusterState, obs: &Observations, term: u64, zookeeper_digest: &str) -> Wishes {
    let mut assignments: BTreeMap<NodeId, Vec<v1::Assignment>> = BTreeMap::new();
    let serving = Serving::new(state, obs);
    for (id, slot) in &state.slots {
        let (Some(holder), Some(role)) = (&slot.holder, state.role(id)) else { continue };
        let gate = gates::start(&serving, id);
        let assignment = v1::Assignment {
            slot: Some(slot_ref(id)),
            generation: slot.generation.0,
            member_id: slot.member_id,
            volume_id: if role.volume { slot.volume.as_ref().map_or(String::new(), |volume| volume.id.0.clone()) } else { String::new() },
            params: if role.membership == Membership::ZooKeeper { zookeeper_params(state, obs, id, zookeeper_digest) } else { HashMap::new() },
            start: gate.is_none() && !slot.releasing,
            waiting_on: gate.map_or(String::new(), |gate| gate.closed_by),
            fencing: fencing_name(role.fencing).to_owned(),
            stop: slot.releasing,
        };
        assignments.entry(holder.clone()).or_default().push(assignment);
    }
    Wishes { term, revision: state.revision.0, assignments, members: members(state) }
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

#[cfg(test)]
mod tests {
    use vp_cluster::{
        Command,
        observe::Phase,
        planner,
        state::{RoleSpec, Spec},
    };

    use super::*;

    /// One node that holds an ensemble of one and one worker.
    fn placed() -> (ClusterState, Observations) {
        let role = |fencing, membership, volume| RoleSpec {
            min: 1,
            pref: 1,
            max: 1,
            fencing,
            fenced_sinks: false,
            volume,
            membership,
            after: Vec::new(),
            spread_zones: false,
            memory_mib: 10,
        };
        let roles =
            [("zookeeper".into(), role(Fencing::Quorum, Membership::ZooKeeper, true)), ("worker".into(), role(Fencing::Disposable, Membership::None, false))];
        let (mut state, obs) = (ClusterState::default(), Observations::default());
        let node = Command::RegisterNode {
            node: "i-1".into(),
            address: "127.37.1.20".to_owned(),
            zone: "a".into(),
            instance_type: "t".to_owned(),
            memory_mib: 100,
            cpu_millis: 1000,
            agent_version: "1".to_owned(),
        };
        vp_cluster::apply(&mut state, 1, 0, &Command::SetSpec { spec: Spec { roles: roles.into(), ..Spec::default() } }).unwrap();
        vp_cluster::apply(&mut state, 2, 0, &node).unwrap();
        let plan = planner::plan(&state, &obs).0;
        vp_cluster::apply(&mut state, 3, 0, &Command::Plan(plan)).unwrap();
        (state, obs)
    }

    fn assignment(state: &ClusterState, obs: &Observations, role: &str) -> v1::Assignment {
        let mut all = wishes(state, obs, 4, "super:x").assignments;
        all.remove(&NodeId::from("i-1"))
            .unwrap_or_default()
            .into_iter()
            .find(|assignment| assignment.slot.as_ref().is_some_and(|slot| slot.role == role))
            .unwrap()
    }

    #[test]
    fn a_node_is_told_what_it_holds_and_everybody_who_is_there() {
        let (state, obs) = placed();
        let told = wishes(&state, &obs, 4, "super:x");
        assert_eq!((told.term, told.revision, told.assignments[&NodeId::from("i-1")].len(), told.members.len()), (4, 3, 2, 2));
        assert!(told.members.iter().all(|member| member.address == "127.37.1.20" && member.generation == 3));
        assert_eq!(told.assignments.len(), 1, "nobody else holds anything");
    }

    type Move = fn(&mut ClusterState, &mut Observations);

    #[test]
    fn the_ground_is_the_same_until_something_moves_that_a_wish_follows_from() {
        let (state, obs) = placed();
        let ground = Ground::of(&state, obs.clone());
        let moves: [(bool, Move); 7] = [
            (true, |_, obs| obs.now_ms += 200),
            (true, |_, obs| obs.nodes.entry("i-1".into()).or_default().heard_ms = Some(7)),
            (false, |state, _| state.revision.0 += 1),
            (false, |_, obs| obs.slots.entry(SlotId::new("worker", 1)).or_default().phase = Phase::Healthy),
            (false, |_, obs| obs.volumes.extend([("vol-1".into(), VolumeSeen::AttachedTo("i-1".into()))])),
            (false, |_, obs| obs.zookeeper = Some(EnsembleSeen::default())),
            (false, |_, obs| obs.kafka = Some(KafkaSeen::default())),
        ];
        for (number, (same, change)) in moves.into_iter().enumerate() {
            let (mut state, mut obs) = (state.clone(), obs.clone());
            change(&mut state, &mut obs);
            assert_eq!(ground.is(&state, &obs), same, "change {number}");
        }
    }

    #[test]
    fn a_slot_starts_only_when_its_gate_is_open_and_says_what_it_waits_for() {
        let (mut state, obs) = placed();
        let worker = assignment(&state, &obs, "worker");
        assert!(worker.start && worker.waiting_on.is_empty() && worker.params.is_empty());
        let zookeeper = assignment(&state, &obs, "zookeeper");
        assert!(!zookeeper.start);
        assert_eq!(zookeeper.waiting_on, "its volume is being created");
        state.slots.get_mut(&SlotId::new("worker", 1)).unwrap().releasing = true;
        let leaving = assignment(&state, &obs, "worker");
        assert!(leaving.stop && !leaving.start);
    }

    #[test]
    fn a_founder_is_told_its_list_and_to_initialize_and_only_at_the_founding() {
        let (mut state, obs) = placed();
        let founding = ensemble::founding(&state, &"zookeeper".into()).unwrap();
        vp_cluster::apply(&mut state, 4, 0, &founding).unwrap();
        let params = assignment(&state, &obs, "zookeeper").params;
        assert_eq!(params["join"], "founder");
        assert_eq!(params["initialize"], "true");
        assert_eq!(params["ensemble"], server_line(1, "127.37.1.20", true));
        assert_eq!(params["super_digest"], "super:x");
        state.slots.get_mut(&SlotId::new("zookeeper", 1)).unwrap().used = true;
        let params = assignment(&state, &obs, "zookeeper").params;
        assert_eq!((params["join"].as_str(), params["initialize"].as_str()), ("member", "false"));
    }
}
