//! What the leader has heard and seen: its memory, never replicated. All times are milliseconds on one monotonic clock of the leader.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Generation, NodeId, SlotId, VolumeId, Zone};

/// What EC2 says of an instance. An error, a timeout or an unknown id is `Unknown`: never proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Instance {
    #[default]
    Unknown,
    Pending,
    Running,
    ShuttingDown,
    Terminated,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSeen {
    /// Last heartbeat of the live session; None: not yet heard by this leader.
    pub heard_ms: Option<u64>,
    /// Last acknowledgement sent.
    pub acknowledged_ms: Option<u64>,
    pub instance: Instance,
}

/// How a slot's process is doing, by its holder's last heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Unknown,
    Waiting,
    Starting,
    Healthy,
    Unhealthy,
    Stopping,
    Stopped,
    Backoff,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotSeen {
    pub generation: Generation,
    pub phase: Phase,
    /// How often its process has ended by itself since it was last steady.
    pub ends_in_a_row: u32,
    /// What the probe captured, e.g. `mode` = `leader`.
    pub facts: BTreeMap<String, String>,
}

/// Where EC2 says a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSeen {
    Available,
    AttachedTo(NodeId),
    /// EC2 answered that it does not exist (an error is not this).
    Gone,
}

/// ZooKeeper's own member list, read from the ensemble.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnsembleSeen {
    /// Version of the configuration, as `reconfig -v` wants it.
    pub version: u64,
    /// Voting members: id to address.
    pub voters: BTreeMap<u32, String>,
    /// Members listed without a vote. vp lists none; somebody else may have.
    pub observers: BTreeSet<u32>,
    /// The newest version after which a write went through: a configuration is active from then on, committed a little earlier.
    pub active_version: u64,
}

impl EnsembleSeen {
    /// Whether what the list says is what votes. A removed server may be stopped only then.
    pub fn is_active(&self) -> bool {
        self.active_version >= self.version
    }
}

/// A partition of a Kafka topic: name and number.
pub type Partition = (String, u32);

/// Where a partition's copies are, by broker id; the first is the preferred leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionSeen {
    pub replicas: Vec<u32>,
    pub in_sync: Vec<u32>,
}

/// Kafka's own view, read from ZooKeeper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KafkaSeen {
    /// Live broker sessions: id to advertised address.
    pub registered: BTreeMap<u32, String>,
    /// Broker ids that are in some partition's in-sync replicas.
    pub in_sync: BTreeSet<u32>,
    /// Partitions with fewer in-sync replicas than replicas.
    pub under_replicated: usize,
    /// Partitions with no leader.
    pub offline: usize,
    /// Partitions that refuse writes with one more replica out of sync.
    pub at_min_in_sync: usize,
    pub partitions: BTreeMap<Partition, PartitionSeen>,
    /// The controller is moving partitions.
    pub reassigning: bool,
}

impl KafkaSeen {
    /// Partitions that have a copy on this broker, as far as Kafka's own assignment says.
    pub fn held_by(&self, broker: u32) -> usize {
        self.partitions.values().filter(|partition| partition.replicas.contains(&broker)).count()
    }
}

/// What a second map has of each key of a first, both in order of their keys: one walk instead of a search for each of ten thousand nodes.
pub fn in_step<'a, 'b, K: Ord + 'a + 'b, A, B>(
    first: impl Iterator<Item = (&'a K, A)>,
    second: impl Iterator<Item = (&'b K, B)>,
) -> impl Iterator<Item = (&'a K, A, Option<B>)> {
    let mut second = second.peekable();
    first.map(move |(key, value)| {
        while second.next_if(|(other, _)| **other < *key).is_some() {}
        (key, value, second.next_if(|(other, _)| **other == *key).map(|(_, found)| found))
    })
}

/// A coordinator as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorSeen {
    pub zone: Zone,
    /// The leader itself always does.
    pub answers: bool,
}

/// When so many were silent or suspected that the brake closed, last: everywhere, and in single zones. One leader's memory (`liveness::remember_brake`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrakeMemory {
    pub everywhere_ms: Option<u64>,
    pub zones_ms: BTreeMap<Zone, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observations {
    pub now_ms: u64,
    /// Since when this coordinator leads. Nothing is judged silent from before that.
    pub leading_since_ms: u64,
    /// Since when this coordinator has been running without a gap (`self_watch`). Nothing is judged silent from before that.
    pub trusted_since_ms: u64,
    pub lease_ms: u64,
    /// When nodes were given up for their silence (`liveness::remember_lost`).
    pub given_up_ms: BTreeMap<NodeId, u64>,
    pub coordinators: Vec<CoordinatorSeen>,
    /// When and where the brake last had to close.
    pub braked: BrakeMemory,
    /// Nodes have joined just now and more may follow: a slot that was never granted waits for them, so that its role is spread over all their zones.
    pub joining: bool,
    pub nodes: BTreeMap<NodeId, NodeSeen>,
    pub slots: BTreeMap<SlotId, SlotSeen>,
    pub volumes: BTreeMap<VolumeId, VolumeSeen>,
    /// Since when a slot has been waiting for its disk: no eligible node in its volume's zone, or a lost disk whose id Kafka still counts on.
    pub zone_empty_since_ms: BTreeMap<SlotId, u64>,
    /// None: could not be read just now.
    pub zookeeper: Option<EnsembleSeen>,
    pub kafka: Option<KafkaSeen>,
}

impl Observations {
    /// What is told of a slot at the generation asked for; reports of other generations count for nothing.
    pub fn slot(&self, slot: &SlotId, generation: Generation) -> Option<&SlotSeen> {
        self.slots.get(slot).filter(|seen| seen.generation == generation)
    }

    pub fn phase(&self, slot: &SlotId, generation: Generation) -> Phase {
        self.slot(slot, generation).map_or(Phase::Unknown, |seen| seen.phase)
    }

    pub fn fact(&self, slot: &SlotId, generation: Generation, name: &str) -> Option<&str> {
        self.slot(slot, generation)?.facts.get(name).map(String::as_str)
    }
}
