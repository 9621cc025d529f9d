//! The leader's eyes and hands in AWS: instance states as proof, the termination of lost nodes, volumes that follow their slots, the brokers' addresses on S3.
//! Level-triggered: each round looks at the state and makes the world a little more like it; every call may be repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tracing::{info, warn};
use vp_cloud::{
    ec2::{InstanceState, VolumeState},
    error::CloudError,
};
use vp_cluster::{
    ClusterState, Command, NodeId, SlotId, VolumeId, Zone, liveness, mutant,
    observe::{Instance, VolumeSeen},
    planner,
    state::{Lifecycle, Membership},
};

use vp_proto::v1::{self, Phase};

use crate::{leader::Leader, region::Region, sweep::Sweep};

/// Time between two rounds; most of them only see that nothing is due.
pub const ROUND: Duration = Duration::from_millis(250);
/// Time from one look at EC2 to the next, which is at what is in doubt, ms.
const DOUBT_EVERY_MS: u64 = 1000;
/// A node that is silent for so much longer than from one heartbeat to the next is looked up in EC2 (not yet judged), ms.
const SUSPECT_AFTER_MS: u64 = 500;
/// A termination that has not shown effect is asked for again after this long, ms.
const ASK_AGAIN_MS: u64 = 5000;

pub struct CloudWatch {
    pub leader: Arc<Leader>,
    pub region: Arc<dyn Region>,
}

/// What one term of leadership remembers; times are ms on the registry's clock.
#[derive(Default)]
pub struct Memory {
    asked: BTreeMap<NodeId, u64>,
    published: Option<String>,
    looked_ms: Option<u64>,
    sweep: Sweep,
}

impl CloudWatch {
    /// Runs for ever; does nothing while another coordinator leads.
    pub async fn run(self) {
        let mut memory = Memory::default();
        loop {
            memory = self.turn(memory).await;
            tokio::time::sleep(ROUND).await;
        }
    }

    /// One round, if this coordinator leads; takes and returns what is remembered of the rounds before.
    pub async fn turn(&self, mut memory: Memory) -> Memory {
        if !self.leader.leads() {
            return Memory::default();
        }
        self.round(&mut memory).await;
        memory
    }

    async fn round(&self, memory: &mut Memory) {
        let state = self.leader.state();
        let now_ms = self.leader.registry.now_ms();
        let since = |looked: Option<u64>| looked.map_or(u64::MAX, |looked| now_ms.saturating_sub(looked));
        if since(memory.looked_ms) >= DOUBT_EVERY_MS {
            let slice = memory.sweep.due(&state.nodes, now_ms);
            let mut nodes = self.doubtful(&state);
            let pressing = !nodes.is_empty() || self.volumes_pending(&state);
            let begins = slice.as_ref().is_some_and(|slice| slice.first);
            nodes.extend(slice.iter().flat_map(|slice| slice.nodes.iter().cloned()));
            if pressing || slice.is_some() {
                memory.looked_ms = Some(now_ms);
                let answered = self.look_at_instances(&state, nodes).await;
                if let Some(slice) = slice.filter(|_| answered || mutant!("unanswered-slice-counts")) {
                    memory.sweep.looked(&state.nodes, &slice, now_ms);
                }
            }
            if pressing || begins {
                self.terminate_lost(&state, memory).await;
                self.look_at_volumes(&state).await;
                self.move_volumes(&state).await;
            }
        }
        self.publish_brokers(&state, memory).await;
    }

    /// Nodes about which EC2's word may matter now: silent, not heard yet, given up, or never looked up.
    fn doubtful(&self, state: &ClusterState) -> BTreeSet<NodeId> {
        let silent_ms = self.leader.settings.user_data.lease_ms / 4 + SUSPECT_AFTER_MS;
        let mut doubtful: BTreeSet<NodeId> = self.leader.registry.suspects(silent_ms).into_iter().filter(|node| state.nodes.contains_key(node)).collect();
        doubtful.extend(self.leader.registry.unheard(state.nodes.keys()));
        let given_up = state.nodes.iter().filter(|(_, node)| matches!(node.lifecycle, Lifecycle::Lost | Lifecycle::Fenced));
        doubtful.extend(given_up.map(|(id, _)| id.clone()));
        let seen = self.leader.world.lock();
        doubtful.extend(state.nodes.keys().filter(|node| !seen.instances.contains_key(node) && !seen.unlisted.contains(node)).cloned());
        doubtful
    }

    fn volumes_pending(&self, state: &ClusterState) -> bool {
        let seen = self.leader.world.lock();
        state.slots.iter().any(|(id, slot)| {
            let owns = state.role(id).is_some_and(|role| role.volume);
            let (Some(holder), true) = (&slot.holder, owns) else { return owns };
            let at = slot.volume.as_ref().and_then(|volume| seen.volumes.get(&volume.id));
            at != Some(&VolumeSeen::AttachedTo(holder.clone()))
        })
    }

    /// True: EC2 answered.
    async fn look_at_instances(&self, state: &ClusterState, nodes: BTreeSet<NodeId>) -> bool {
        if nodes.is_empty() {
            return true;
        }
        let ids: Vec<String> = nodes.iter().map(|node| node.0.clone()).collect();
        match self.region.describe_instances(&ids).await {
            Ok(found) => {
                let mut changed = false;
                let mut seen = self.leader.world.lock();
                seen.cloud_failing = None;
                let listed: BTreeSet<&str> = found.iter().map(|instance| instance.id.as_str()).collect();
                seen.unlisted.retain(|node| !nodes.contains(node) && state.nodes.contains_key(node));
                seen.unlisted.extend(nodes.iter().filter(|node| !listed.contains(node.0.as_str())).cloned());
                for instance in found {
                    let now = translate(instance.state);
                    changed |= seen.instances.insert(NodeId(instance.id), now) != Some(now);
                }
                drop(seen);
                if changed {
                    self.leader.wake.notify_one();
                }
                true
            }
            // No proof of anything: what was known stays.
            Err(error) => {
                warn!(%error, "instances not described");
                let mut seen = self.leader.world.lock();
                let since_ms = seen.cloud_failing.as_ref().map_or(self.leader.registry.now_ms(), |(since_ms, _)| *since_ms);
                seen.cloud_failing = Some((since_ms, error.to_string()));
                false
            }
        }
    }

    /// A lost node's instance is terminated through its group, which then boots a replacement.
    async fn terminate_lost(&self, state: &ClusterState, memory: &mut Memory) {
        memory.asked.retain(|node, _| state.nodes.contains_key(node));
        for id in liveness::to_terminate(state, &self.leader.observations()) {
            let now_ms = self.leader.registry.now_ms();
            if memory.asked.get(id).is_some_and(|asked| now_ms.saturating_sub(*asked) < ASK_AGAIN_MS) {
                continue;
            }
            memory.asked.insert(id.clone(), now_ms);
            match self.region.terminate_in_group(&id.0).await {
                Ok(()) => info!(node = %id, "lost instance terminated"),
                Err(error) => warn!(node = %id, %error, "lost instance not terminated yet"),
            }
        }
    }

    async fn look_at_volumes(&self, state: &ClusterState) {
        let owned: Vec<String> = state.slots.values().filter_map(|slot| Some(slot.volume.as_ref()?.id.0.clone())).collect();
        if owned.is_empty() {
            return;
        }
        match self.region.describe_volumes(&owned).await {
            Ok(found) => {
                let listed: BTreeSet<String> = found.iter().map(|volume| volume.id.clone()).collect();
                let mut volumes: BTreeMap<VolumeId, VolumeSeen> = BTreeMap::new();
                for volume in found {
                    let seen = match (volume.attached_to, volume.state) {
                        (_, VolumeState::Deleted | VolumeState::Deleting) => VolumeSeen::Gone,
                        (Some(instance), _) if volume.settled => VolumeSeen::AttachedTo(NodeId(instance)),
                        // On its way to an instance or away from it: nobody is started on it, and nothing is asked again.
                        (Some(_), _) => continue,
                        (None, VolumeState::Available) => VolumeSeen::Available,
                        (None, _) => continue,
                    };
                    volumes.insert(VolumeId(volume.id), seen);
                }
                // EC2 answered and did not list it: it does not exist. (An error answers nothing.)
                for id in owned.into_iter().filter(|id| !listed.contains(id)) {
                    volumes.insert(VolumeId(id), VolumeSeen::Gone);
                }
                let mut seen = self.leader.world.lock();
                let changed = seen.volumes != volumes;
                seen.volumes = volumes;
                drop(seen);
                if changed {
                    self.leader.wake.notify_one();
                }
            }
            Err(error) => warn!(%error, "volumes not described"),
        }
    }

    async fn move_volumes(&self, state: &ClusterState) {
        for (id, zone) in planner::wants_volume(state) {
            self.create(state, id, zone).await;
        }
        let lives = |node: &NodeId| state.nodes.get(node).is_some_and(|node| matches!(node.lifecycle, Lifecycle::Ready | Lifecycle::Draining));
        for (id, slot) in &state.slots {
            if !state.role(id).is_some_and(|role| role.volume) {
                continue;
            }
            let seen = slot.volume.as_ref().and_then(|volume| self.leader.world.lock().volumes.get(&volume.id).cloned());
            match (&slot.volume, state.holder(slot), seen) {
                (Some(volume), Some((holder, _)), Some(VolumeSeen::Available)) => match self.attach(&volume.id, holder).await {
                    Ok(()) => {
                        info!(slot = %id, volume = %volume.id, node = %holder, "volume attached");
                        self.leader.world.lock().volumes.insert(volume.id.clone(), VolumeSeen::AttachedTo(holder.clone()));
                        self.leader.wake.notify_one();
                    }
                    Err(error) => warn!(slot = %id, volume = %volume.id, %error, "volume not attached yet"),
                },
                // Given back by the agent's own word: the old node lives on without it. A terminated one loses its volumes by itself.
                (Some(volume), holder, Some(VolumeSeen::AttachedTo(at)))
                    if lives(&at) && (mutant!("volume-detached-from-holder") || holder.is_none_or(|(holder, _)| *holder != at)) =>
                {
                    // Out of sight before the last look at who claims it: from here on nobody is started on it until EC2 has been asked again, so a grant that
                    // this last look does not see finds the start gate closed.
                    if !mutant!("detached-in-sight") {
                        self.leader.world.lock().volumes.remove(&volume.id);
                    }
                    if !self.is_unclaimed(id, &volume.id, &at).await {
                        continue;
                    }
                    let off = if mutant!("detached-off-anybody") { "" } else { &at.0 };
                    match self.region.detach_volume(&volume.id.0, off).await {
                        Ok(()) => info!(slot = %id, volume = %volume.id, node = %at, "volume is taken off"),
                        Err(error) => warn!(slot = %id, volume = %volume.id, %error, "volume not detached yet"),
                    }
                }
                _ => {}
            }
        }
    }

    /// Attaches a volume under the first device name that is free. Which names are taken only EC2 knows: a node may still have a volume that a slot left behind.
    async fn attach(&self, volume: &VolumeId, holder: &NodeId) -> Result<(), CloudError> {
        let mut refused = Ok(());
        for name in device_names() {
            refused = self.region.attach_volume(&volume.0, &holder.0, &name).await;
            if !refused.as_ref().is_err_and(is_taken) {
                break;
            }
        }
        refused
    }

    /// Whether this coordinator leads as of now, by a quorum, and the state as of now still gives `at` no claim to the volume. What takes something away asks
    /// this at the last moment: a leader that stood still for a while sees a new holder's volume where its old state has none, and takes it from under a live
    /// process.
    async fn is_unclaimed(&self, slot: &SlotId, volume: &VolumeId, at: &NodeId) -> bool {
        if mutant!("deposed-leader-detaches") || mutant!("volume-detached-from-holder") {
            return true;
        }
        if self.leader.raft.read_index().await.is_err() {
            return false;
        }
        // After a restore the state may know less than the node, which runs what was moved to it since.
        let runs = |report: v1::SlotObservation| matches!(report.phase(), Phase::Starting | Phase::Healthy | Phase::Unhealthy | Phase::Stopping);
        if !self.leader.registry.view(at).heard || self.leader.registry.report(at, slot).is_some_and(runs) {
            return false;
        }
        let state = self.leader.state();
        let owner = state.slots.get(slot).filter(|slot| slot.volume.as_ref().is_some_and(|kept| kept.id == *volume));
        owner.is_some_and(|slot| slot.holder.as_ref() != Some(at))
    }

    async fn create(&self, state: &ClusterState, id: &SlotId, zone: &Zone) {
        let Some(slot) = state.slots.get(id) else { return };
        let cluster = &self.leader.settings.user_data.cluster;
        let token = format!("{cluster}/{id}/{}", slot.generation);
        let tags: BTreeMap<String, String> = [("Name", format!("{cluster} {id}")), ("vp:cluster", cluster.clone()), ("vp:slot", id.to_string())]
            .map(|(key, value)| (key.to_owned(), value))
            .into();
        match self.region.create_volume(&zone.0, &tags, &token).await {
            Ok(volume) => {
                let created = Command::VolumeCreated { slot: id.clone(), generation: slot.generation, volume: VolumeId(volume), zone: zone.clone() };
                if let Err(error) = self.leader.propose(created).await {
                    warn!(slot = %id, %error, "volume not recorded yet");
                }
            }
            Err(error) => warn!(slot = %id, %error, "volume not created yet"),
        }
    }

    /// What runs outside the cluster finds Kafka here.
    async fn publish_brokers(&self, state: &ClusterState, memory: &mut Memory) {
        let kafka = state.slots.iter().filter(|(id, _)| state.role(id).is_some_and(|role| role.membership == Membership::Kafka));
        let brokers: BTreeSet<String> = kafka.filter_map(|(_, slot)| Some(format!("{}:9092", state.holder(slot)?.1.address))).collect();
        let list = json!(brokers).to_string();
        if brokers.is_empty() || memory.published.as_ref() == Some(&list) {
            return;
        }
        // A leader of before that stood still knows brokers of before.
        if self.leader.raft.read_index().await.is_err() {
            return;
        }
        let body = json!({"brokers": brokers, "revision": state.revision.0}).to_string();
        match self.region.publish_brokers(state.revision.0, body).await {
            Ok(()) => {
                info!(brokers = %list, "broker addresses published");
                memory.published = Some(list);
            }
            Err(error) => warn!(%error, "broker addresses not published yet"),
        }
    }
}

/// Names for a node's volumes, as EC2 allows them: `/dev/sdf` to `/dev/sdp`, then `/dev/xvdba` to `/dev/xvdbz`.
fn device_names() -> impl Iterator<Item = String> {
    ('f'..='p').map(|letter| format!("/dev/sd{letter}")).chain(('a'..='z').map(|letter| format!("/dev/xvdb{letter}")))
}

/// "Attachment point /dev/sdf is already in use": EC2 has no code of its own for it.
fn is_taken(error: &CloudError) -> bool {
    matches!(error, CloudError::Invalid { code, reason, .. } if code == "InvalidParameterValue" && reason.contains("already in use"))
}

pub(crate) fn translate(state: InstanceState) -> Instance {
    match state {
        InstanceState::Pending => Instance::Pending,
        InstanceState::Running => Instance::Running,
        InstanceState::ShuttingDown => Instance::ShuttingDown,
        InstanceState::Terminated => Instance::Terminated,
        InstanceState::Stopping | InstanceState::Stopped | InstanceState::Unknown => Instance::Unknown,
    }
}
