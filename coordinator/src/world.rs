//! What the leader has seen of the world outside its agents: EC2, volumes, ZooKeeper, Kafka. Memory of one term, filled by the watchers, read by control.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use vp_cluster::{
    MemberId, NodeId, SlotId, VolumeId,
    healed::Starts,
    observe::{BrakeMemory, EnsembleSeen, Instance, KafkaSeen, NodeSeen, Observations, VolumeSeen},
    report::Gate,
};

/// Calls of EC2 fail now and then, and are held back when there are too many: only what lasts is told.
pub const CLOUD_PATIENCE_MS: u64 = 15_000;

#[derive(Default)]
pub struct World {
    inner: Mutex<Seen>,
}

#[derive(Default)]
pub struct Seen {
    pub instances: BTreeMap<NodeId, Instance>,
    /// Nodes that EC2, when it answered last, did not list at all. No proof; but a person's word is taken for these alone.
    pub unlisted: BTreeSet<NodeId>,
    /// Since when EC2 has not answered, and what came of the last call; None: it answered the last one.
    pub cloud_failing: Option<(u64, String)>,
    pub volumes: BTreeMap<VolumeId, VolumeSeen>,
    pub zone_empty_since_ms: BTreeMap<SlotId, u64>,
    pub zookeeper: Option<EnsembleSeen>,
    pub kafka: Option<KafkaSeen>,
    /// How many nodes there were at the last look, and when that number last grew.
    pub nodes: usize,
    pub joined_ms: u64,
    /// When and where the brake last had to close.
    pub braked: BrakeMemory,
    /// Slots that were seen to start.
    pub starts: Starts,
    /// When nodes were given up for their silence.
    pub given_up_ms: BTreeMap<NodeId, u64>,
    /// Other coordinators that answered when they were last asked; None: not asked yet.
    pub answering: Option<Vec<MemberId>>,
    /// What the coordinators' group waits for.
    pub coordinator_gates: Vec<Gate>,
    /// A coordinator's new instance asks to join: its predecessor is looked up in EC2 at once.
    pub coordinator_waits: bool,
}

impl World {
    pub fn lock(&self) -> MutexGuard<'_, Seen> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything: a new term looks for itself.
    pub fn begin_term(&self) {
        *self.lock() = Seen::default();
    }

    /// An alarm, once EC2 has not answered for [`CLOUD_PATIENCE_MS`].
    pub fn cloud_alarm(&self, now_ms: u64) -> Option<String> {
        let (since_ms, error) = self.lock().cloud_failing.clone()?;
        let failing_ms = now_ms.saturating_sub(since_ms);
        (failing_ms >= CLOUD_PATIENCE_MS)
            .then(|| format!("EC2 has not answered for {} s ({error}): what dies is neither fenced by its word nor replaced", failing_ms / 1000))
    }

    /// Begins with what this memory knows.
    pub fn observe(&self, obs: &mut Observations) {
        let seen = self.lock();
        obs.nodes = seen.instances.iter().map(|(node, instance)| (node.clone(), NodeSeen { instance: *instance, ..NodeSeen::default() })).collect();
        obs.volumes.clone_from(&seen.volumes);
        obs.zone_empty_since_ms.clone_from(&seen.zone_empty_since_ms);
        obs.braked.clone_from(&seen.braked);
        obs.given_up_ms.clone_from(&seen.given_up_ms);
        obs.zookeeper.clone_from(&seen.zookeeper);
        obs.kafka.clone_from(&seen.kafka);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lasts_is_told_of_a_cloud_that_does_not_answer() {
        let world = World::default();
        assert_eq!(world.cloud_alarm(90_000), None);
        world.lock().cloud_failing = Some((10_000, "connection refused".to_owned()));
        assert_eq!(world.cloud_alarm(24_999), None);
        let told = world.cloud_alarm(52_000).unwrap();
        assert!(told.starts_with("EC2 has not answered for 42 s (connection refused)"), "{told}");
        world.begin_term();
        assert_eq!(world.cloud_alarm(90_000), None);
    }
}
