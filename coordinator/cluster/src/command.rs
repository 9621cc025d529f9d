//! What may be asked of the state, what came of it, and why it was refused.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    coordinators::CoordinatorChange,
    ids::{Generation, MemberId, NodeId, Revision, RoleName, Session, SlotId, VolumeId, Zone},
    state::{Proof, Spec},
    version::OPERATORS_WORD,
};

/// One replicated change. Carried by the log with the proposer's wall clock (for people only).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Command {
    /// Replaces what is wanted; slots follow.
    SetSpec {
        spec: Spec,
    },
    /// A verified instance joins, or comes back with a new session.
    RegisterNode {
        node: NodeId,
        address: String,
        zone: Zone,
        instance_type: String,
        memory_mib: u32,
        cpu_millis: u32,
        agent_version: String,
    },
    /// Silent for longer than its lease. Only for the session that was judged.
    NodeLost {
        node: NodeId,
        session: Session,
        silent_ms: u64,
    },
    /// EC2 says the instance is terminated.
    NodeFenced {
        node: NodeId,
    },
    /// An operator's word that an instance is gone which EC2 has forgotten and cannot prove terminated any more. Only for the session that was judged.
    Gone {
        node: NodeId,
        session: Session,
        by: String,
    },
    SetDraining {
        node: NodeId,
        draining: bool,
    },
    /// Gets nothing new; what it holds stays.
    SetCordoned {
        node: NodeId,
        cordoned: bool,
    },
    /// An operator wants a slot elsewhere.
    MoveSlot {
        slot: SlotId,
        /// None: wherever it does best.
        to: Option<NodeId>,
        /// Leave its volume behind: what the way into another zone costs.
        empty_disk: bool,
    },
    /// As long as its holder was not asked to stop, nothing has happened; after that it is placed wherever it does best.
    CancelMove {
        slot: SlotId,
    },
    /// Slots wanted of a role, within its min and max.
    Scale {
        role: RoleName,
        pref: u32,
    },
    /// An operator's word that these nodes, silent now, are really gone.
    ReleaseBrake {
        by: String,
        nodes: BTreeMap<NodeId, Session>,
    },
    /// A node that a release of the brake named was heard again: the release says nothing about it any more.
    NodeHeardAgain {
        node: NodeId,
    },
    /// Moves, decided on one revision; refused when the state has moved on.
    Plan(Plan),
    /// The agent's word that a slot's processes are gone.
    SlotReleased {
        slot: SlotId,
        generation: Generation,
        node: NodeId,
    },
    VolumeCreated {
        slot: SlotId,
        generation: Generation,
        volume: VolumeId,
        zone: Zone,
    },
    /// The volume does not exist any more: the role's empty-disk path applies at the next grant.
    VolumeLost {
        slot: SlotId,
        volume: VolumeId,
    },
    /// First healthy report on this disk.
    SlotUsed {
        slot: SlotId,
        generation: Generation,
    },
    /// The first configuration of an ensemble, decided once.
    EnsembleFounded {
        role: RoleName,
        members: BTreeMap<SlotId, u32>,
    },
    /// The ensemble's own list, as read from a quorum of it.
    VotersListed {
        role: RoleName,
        version: u64,
        voters: BTreeSet<u32>,
    },
    /// The role's own quorum has removed the member a slot used to be.
    MemberRemoved {
        slot: SlotId,
        member_id: u32,
    },
    /// The coordinators' own group.
    Coordinators(CoordinatorChange),
    /// Every member supports these rules: from here on they hold.
    RaiseApplyVersion {
        to: u32,
    },
    /// Something people should know that changes nothing (a refused join, an alarm).
    Note {
        kind: String,
        subject: String,
        detail: String,
    },
}

impl Command {
    /// The rules that a program must know to read this command at all: where older ones hold, those of before skip its entry, and so does everybody.
    pub fn needs(&self) -> u32 {
        if matches!(self, Self::Gone { .. }) { OPERATORS_WORD } else { 0 }
    }

    /// Refused while older rules than it needs hold.
    ///
    /// # Errors
    /// What to do about it.
    pub fn check_rules(&self, apply_version: u32) -> Result<(), Rejection> {
        let needs = self.needs();
        if needs <= apply_version {
            return Ok(());
        }
        Err(Rejection::Impossible(format!("this needs the rules of version {needs}, and {apply_version} hold: upgrade every coordinator first")))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Plan {
    pub based_on: Revision,
    pub actions: Vec<Action>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Action {
    /// The holder is fenced: the slot has none any more.
    Vacate {
        slot: SlotId,
        proof: Proof,
    },
    /// Ask the holder to stop and give the slot back.
    Release {
        slot: SlotId,
    },
    /// The volume's zone stayed empty for too long, or an operator moves the slot without it: it goes on with an empty disk.
    AbandonVolume {
        slot: SlotId,
    },
    Grant {
        slot: SlotId,
        node: NodeId,
        member_id: u32,
    },
    /// More slots than wanted: one without a holder goes.
    Remove {
        slot: SlotId,
    },
    /// Fenced and empty-handed: forget it.
    Forget {
        node: NodeId,
    },
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vacate { slot, proof } => write!(f, "vacate {slot}: {proof}"),
            Self::Release { slot } => write!(f, "release {slot}"),
            Self::AbandonVolume { slot } => write!(f, "give up the volume of {slot}: it goes on with an empty disk"),
            Self::Remove { slot } => write!(f, "remove {slot}: fewer are wanted"),
            Self::Grant { slot, node, member_id } => write!(f, "grant {slot} to {node} as member {member_id}"),
            Self::Forget { node } => write!(f, "forget {node}"),
        }
    }
}

/// One line of the cluster's history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Event {
    pub revision: Revision,
    /// Wall clock of the proposer, ms since the epoch; no decision reads it.
    pub unix_ms: u64,
    pub kind: String,
    pub subject: String,
    pub detail: String,
}

/// Why a command changed nothing. The state's revision advances all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Rejection {
    #[error("the plan was made on revision {based_on}, the state is at {revision}: plan again")]
    Stale { based_on: Revision, revision: Revision },
    #[error("no node {0}: see 'vpctl nodes'")]
    NoSuchNode(NodeId),
    #[error("no slot {0}: see 'vpctl roles'")]
    NoSuchSlot(SlotId),
    #[error("session {given} of {node} is not the live one ({live})")]
    OtherSession { node: NodeId, given: Session, live: Session },
    #[error("{node} is {state}: {todo}")]
    NodeState { node: NodeId, state: Cow<'static, str>, todo: Cow<'static, str> },
    #[error("{slot} is at generation {live}, not {given}")]
    OtherGeneration { slot: SlotId, given: Generation, live: Generation },
    #[error("{slot} is held by {holder}: it cannot be granted before that node is fenced")]
    Held { slot: SlotId, holder: NodeId },
    #[error("no proof that {node} cannot act on {slot} any more")]
    NoProof { slot: SlotId, node: NodeId },
    #[error("coordinator {slot} is member {member} on {instance}: it is replaced once EC2 says that instance is terminated")]
    MemberLives { slot: u32, member: MemberId, instance: String },
    #[error("the spec is not usable: {0}")]
    BadSpec(String),
    #[error("{0}")]
    Impossible(String),
}
