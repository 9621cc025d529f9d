//! The replicated state: what is wanted, who is there, who holds what under which generation.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    command::Event,
    coordinators::Coordinators,
    ids::{Generation, NodeId, Revision, RoleName, Session, SlotId, VolumeId, Zone},
    requests::Requests,
};

/// How many events the state keeps; older ones are dropped, first in first out.
pub const EVENT_RING: usize = 512;

/// What happens to a role whose holder falls silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Fencing {
    /// Two copies do harm: killed at its lease's deadline, moved only under proof.
    Exclusive,
    /// Its own quorum protects it: not stopped by an expired lease, moved on `terminated` or the agent's word.
    Quorum,
    /// Two copies do no harm: moved once its holder is lost, without proof that it is gone.
    Disposable,
}

/// Whose re-homing rules apply beyond fencing (`docs/roles.md`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Membership {
    #[default]
    None,
    ZooKeeper,
    Kafka,
}

/// What is wanted of one role, and what its re-homing needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RoleSpec {
    /// Slots wanted; `min` and `max` bound it (voters of a quorum stay odd).
    pub min: u32,
    pub pref: u32,
    pub max: u32,
    pub fencing: Fencing,
    /// Exclusive only: its sinks refuse lower generations, so that an expired lease is proof enough.
    pub fenced_sinks: bool,
    /// Each slot owns a volume, which binds it to a zone.
    pub volume: bool,
    pub membership: Membership,
    /// Roles that must serve before this one is started.
    pub after: Vec<RoleName>,
    /// Placement spreads the slots over zones first.
    pub spread_zones: bool,
    /// Memory a slot needs on its node, MiB.
    pub memory_mib: u32,
}

/// What is wanted of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Spec {
    pub roles: BTreeMap<RoleName, RoleSpec>,
    /// How long a slot waits for its volume's zone to have a node before its role's empty-disk path applies, ms.
    pub volume_wait_ms: u64,
    #[cfg_attr(feature = "serde", serde(default))]
    pub policy: Policy,
}

/// How cautiously verdicts are turned into moves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Policy {
    /// At most this many nodes are given up for their silence within a minute: what moves is capped by where it moves from.
    pub sources_per_minute: u32,
}

impl Default for Policy {
    fn default() -> Self {
        // Twice what Kubernetes evicts (one node in ten seconds): a rack's worth moves within a minute, a misjudged thousand does not.
        Self { sources_per_minute: 12 }
    }
}

/// Where a node is in its life. A node that is gone is no longer in the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Lifecycle {
    Ready,
    /// Keeps what it holds until each slot's move is safe; gets nothing new.
    Draining,
    /// Silent for longer than its lease: the session is never acknowledged again and its instance is to be terminated.
    Lost,
    /// EC2 says `terminated`, or an operator says that it is gone: nothing of it runs.
    Fenced,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Node {
    pub address: String,
    pub zone: Zone,
    pub instance_type: String,
    /// Memory of the machine, MiB.
    pub memory_mib: u32,
    pub cpu_millis: u32,
    pub session: Session,
    pub lifecycle: Lifecycle,
    pub cordoned: bool,
    pub agent_version: String,
    /// Fenced on this operator's word; None: on EC2's. Not written while there is none: states of earlier versions keep their hash.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub gone_by: Option<String>,
}

impl Node {
    /// The proof that nothing of this node runs any more; None unless it is fenced.
    pub fn end(&self, id: &NodeId) -> Option<Proof> {
        let node = id.clone();
        (self.lifecycle == Lifecycle::Fenced).then(|| match &self.gone_by {
            None => Proof::InstanceTerminated { node },
            Some(by) => Proof::OperatorsWord { node, by: by.clone() },
        })
    }
}

/// Why the previous holder of a slot cannot act any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Proof {
    /// The last grant's lease, with drift and margin, has run out.
    LeaseExpired { node: NodeId },
    /// EC2 says the instance is `terminated`.
    InstanceTerminated { node: NodeId },
    /// The agent said that the processes are gone, after persisting it.
    AgentWord { node: NodeId },
    /// EC2 has forgotten the instance, and this operator says that it is gone.
    OperatorsWord { node: NodeId, by: String },
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LeaseExpired { node } => write!(f, "the lease of {node} has expired"),
            Self::InstanceTerminated { node } => write!(f, "EC2 says {node} is terminated"),
            Self::AgentWord { node } => write!(f, "the agent on {node} said its processes are gone"),
            Self::OperatorsWord { node, by } => write!(f, "EC2 has forgotten {node}, and {by} says it is gone"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Volume {
    pub id: VolumeId,
    pub zone: Zone,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Slot {
    pub holder: Option<NodeId>,
    pub generation: Generation,
    /// The holder was asked to stop and give it back.
    pub releasing: bool,
    /// Identity inside the role's own system (myid, broker.id); 0 before the first grant.
    pub member_id: u32,
    /// The identity this slot had before its disk was lost, until the role's own quorum has removed it.
    pub retired_member: Option<u32>,
    pub volume: Option<Volume>,
    /// The disk has been written by a healthy run: it is never "initialized" again.
    pub used: bool,
    /// Proof under which the last holder was fenced.
    pub proof: Option<Proof>,
    /// An operator wants it elsewhere; done with its next grant.
    #[cfg_attr(feature = "serde", serde(default))]
    pub wanted_move: Option<Move>,
}

/// A move that an operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Move {
    pub from: NodeId,
    /// None: wherever it does best, but not where it was.
    pub to: Option<NodeId>,
    /// Goes without its volume, which then binds it no more: the role's empty-disk path.
    pub empty_disk: bool,
}

/// An operator's word that the nodes silent just then are really gone: their silence is believed though the brake is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BrakeRelease {
    pub by: String,
    /// Wall clock of the proposer, ms since the epoch, for people.
    pub unix_ms: u64,
    /// Each under the session it was silent in; a node that is heard again is taken out.
    pub nodes: BTreeMap<NodeId, Session>,
}

/// An ensemble with a member list of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Ensemble {
    /// Members of the first configuration: they alone may start as founders. "Is there an ensemble?" is answered here, never by who is reachable.
    pub founders: BTreeSet<u32>,
    /// Highest member id ever given.
    pub last_member: u32,
    /// Who voted when its own list was last read, and that list's version: what a member with its disk comes back under when no quorum can be asked.
    #[cfg_attr(feature = "serde", serde(default))]
    pub voters: BTreeSet<u32>,
    #[cfg_attr(feature = "serde", serde(default))]
    pub list_version: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ClusterState {
    /// The applied Raft index.
    pub revision: Revision,
    /// The rules that `apply` obeys ([`crate::version`]).
    pub apply_version: u32,
    pub coordinators: Coordinators,
    pub spec: Spec,
    pub nodes: BTreeMap<NodeId, Node>,
    pub slots: BTreeMap<SlotId, Slot>,
    pub ensembles: BTreeMap<RoleName, Ensemble>,
    #[cfg_attr(feature = "serde", serde(default))]
    pub brake_release: Option<BrakeRelease>,
    /// The last [`EVENT_RING`], oldest first; every copy of a state shares them: they are told once and never change.
    #[cfg_attr(feature = "serde", serde(with = "shared"))]
    pub events: VecDeque<Arc<Event>>,
    pub requests: Requests,
}

/// Shared events are written as if each were its own.
#[cfg(feature = "serde")]
mod shared {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Arc, Event, VecDeque};

    pub fn serialize<S: Serializer>(events: &VecDeque<Arc<Event>>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(events.iter().map(|event| &**event))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<VecDeque<Arc<Event>>, D::Error> {
        Ok(Vec::<Event>::deserialize(from)?.into_iter().map(Arc::new).collect())
    }
}

impl ClusterState {
    /// A copy without events and requests: they are most of a state, and neither a plan's actions nor the rules of a step read them.
    #[must_use]
    pub fn without_history(&self) -> Self {
        Self {
            revision: self.revision,
            spec: self.spec.clone(),
            nodes: self.nodes.clone(),
            slots: self.slots.clone(),
            ensembles: self.ensembles.clone(),
            brake_release: self.brake_release.clone(),
            apply_version: self.apply_version,
            coordinators: self.coordinators.clone(),
            events: VecDeque::new(),
            requests: Requests::default(),
        }
    }

    /// The role of a slot; every slot has one (invariant).
    pub fn role(&self, slot: &SlotId) -> Option<&RoleSpec> {
        self.spec.roles.get(&slot.role)
    }

    /// Slots of one role, in index order.
    pub fn slots_of<'a>(&'a self, role: &'a RoleName) -> impl Iterator<Item = (&'a SlotId, &'a Slot)> {
        let first = SlotId { role: role.clone(), index: 0 };
        self.slots.range(first..).take_while(move |(id, _)| id.role == *role)
    }

    /// Whether the role has more slots than are wanted and this is one of those to go: the highest.
    pub fn is_surplus(&self, slot: &SlotId) -> bool {
        self.role(slot).is_some_and(|role| slot.index > role.pref)
    }

    /// Slots that a node holds.
    pub fn held_by<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = (&'a SlotId, &'a Slot)> {
        self.slots.iter().filter(move |(_, slot)| slot.holder.as_ref() == Some(node))
    }

    /// The node that holds a slot.
    pub fn holder(&self, slot: &Slot) -> Option<(&NodeId, &Node)> {
        let id = slot.holder.as_ref()?;
        self.nodes.get_key_value(id)
    }
}
