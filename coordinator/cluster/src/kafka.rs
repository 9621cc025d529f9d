//! Kafka's own assignment of partitions: off brokers that are dead for good (their id was retired) or one too many, in small steps and throttled.
//!
//! The rules are those of `roles.md` "Kafka": an id on an empty disk never serves as if it had its data; a broker leaves when it holds no replica. The same
//! disk under the same id needs nothing of this: it is the cheap path.

use std::collections::BTreeMap;

use crate::{
    command::Command,
    ids::{SlotId, Zone},
    observe::{KafkaSeen, Observations, Partition, PartitionSeen},
    procedure::well,
    report::Gate,
    state::{ClusterState, Membership, Slot},
};

/// Partitions that one step moves: few, so that a step ends and the next looks again.
pub const MOVES_AT_ONCE: usize = 10;
/// What replication for a reassignment may take of each broker, bytes a second: a tenth of a gigabit network.
pub const THROTTLE_BYTES_PER_S: u64 = 12_500_000;

/// New replicas for some partitions, for the controller to bring about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reassignment {
    pub partitions: BTreeMap<Partition, Vec<u32>>,
    pub throttle_bytes_per_s: u64,
}

/// The next step, if one is due and the last has ended.
pub fn next(state: &ClusterState, obs: &Observations) -> Option<Reassignment> {
    due(state, obs)?.ok()
}

/// Why partitions stay where they should not be.
pub fn waits(state: &ClusterState, obs: &Observations) -> Option<Gate> {
    due(state, obs)?.err()
}

fn due(state: &ClusterState, obs: &Observations) -> Option<Result<Reassignment, Gate>> {
    let kafka = obs.kafka.as_ref()?;
    let leaves = |(id, slot): (&SlotId, &Slot)| is_broker(state, id) && (slot.retired_member.is_some() || state.is_surplus(id));
    if !state.slots.iter().any(leaves) {
        return None;
    }
    let brokers = Brokers::of(state, obs, kafka);
    let (broker, leaving) = brokers.leaving.iter().find(|(broker, _)| kafka.held_by(**broker) > 0)?;
    if kafka.reassigning {
        return Some(Err(Gate::new(leaving.slot, format!("partitions are leaving broker {broker}"), "the controller has moved them")));
    }
    let from_here = kafka.partitions.iter().filter(|(_, partition)| partition.replicas.contains(broker));
    let moves: BTreeMap<Partition, Vec<u32>> =
        from_here.filter_map(|(name, partition)| Some((name.clone(), brokers.without(partition, *broker, leaving.successor)?))).take(MOVES_AT_ONCE).collect();
    if moves.is_empty() {
        let closed = format!("no other healthy broker could take what broker {broker} holds");
        return Some(Err(Gate::new(leaving.slot, closed, "more brokers are healthy than a partition has replicas")));
    }
    Some(Ok(Reassignment { partitions: moves, throttle_bytes_per_s: THROTTLE_BYTES_PER_S }))
}

fn is_broker(state: &ClusterState, id: &SlotId) -> bool {
    state.role(id).is_some_and(|role| role.membership == Membership::Kafka)
}

struct Leaving<'a> {
    slot: &'a SlotId,
    /// The fresh id that takes the place of a retired one.
    successor: Option<u32>,
}

struct Brokers<'a> {
    leaving: BTreeMap<u32, Leaving<'a>>,
    /// Healthy and staying: zone and how many replicas each has.
    staying: BTreeMap<u32, (&'a Zone, usize)>,
}

impl<'a> Brokers<'a> {
    fn of(state: &'a ClusterState, obs: &Observations, kafka: &KafkaSeen) -> Self {
        let mut held: BTreeMap<u32, usize> = BTreeMap::new();
        for broker in kafka.partitions.values().flat_map(|partition| &partition.replicas) {
            *held.entry(*broker).or_default() += 1;
        }
        let mut brokers = Self { leaving: BTreeMap::new(), staying: BTreeMap::new() };
        for (id, slot) in state.slots.iter().filter(|(id, _)| is_broker(state, id)) {
            let serves = well(obs, id, slot);
            if let Some(old) = slot.retired_member {
                brokers.leaving.insert(old, Leaving { slot: id, successor: serves.then_some(slot.member_id) });
            }
            if state.is_surplus(id) {
                brokers.leaving.insert(slot.member_id, Leaving { slot: id, successor: None });
            } else if let Some((_, node)) = state.holder(slot).filter(|_| serves) {
                brokers.staying.insert(slot.member_id, (&node.zone, held.get(&slot.member_id).copied().unwrap_or(0)));
            }
        }
        brokers
    }

    /// The partition's replicas with `broker` replaced in its place: by its successor, else by who spreads it best and holds least.
    fn without(&self, partition: &PartitionSeen, broker: u32, successor: Option<u32>) -> Option<Vec<u32>> {
        let free = |id: &u32| !partition.replicas.contains(id);
        let in_zone = |zone: &Zone| partition.replicas.iter().filter(|id| **id != broker && self.staying.get(*id).is_some_and(|(at, _)| *at == zone)).count();
        let best = || self.staying.iter().filter(|(id, _)| free(id)).min_by_key(|(id, (zone, held))| (in_zone(zone), *held, **id)).map(|(id, _)| *id);
        let instead = successor.filter(free).or_else(best)?;
        Some(partition.replicas.iter().map(|id| if *id == broker { instead } else { *id }).collect())
    }
}

/// Retired broker ids that hold nothing any more.
pub fn removed(state: &ClusterState, obs: &Observations) -> Vec<Command> {
    let Some(kafka) = &obs.kafka else { return Vec::new() };
    let brokers = state.slots.iter().filter(|(id, _)| is_broker(state, id));
    let gone = brokers.filter_map(|(id, slot)| {
        let old = slot.retired_member?;
        let done = kafka.held_by(old) == 0 && !kafka.in_sync.contains(&old) && well(obs, id, slot);
        done.then(|| Command::MemberRemoved { slot: id.clone(), member_id: old })
    });
    gone.collect()
}
