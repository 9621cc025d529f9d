//! How well the cluster is: what serves, how many more failures each service survives, and one word for it all.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    ids::{RoleName, SlotId},
    liveness::Brake,
    observe::Observations,
    procedure::{healthy, well},
    state::{ClusterState, Fencing, Lifecycle, Membership, Slot},
};

/// In order of badness; `vpctl status` exits with 0, 2, 3, 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Healthy,
    Degraded,
    NoTolerance,
    QuorumLost,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub role: RoleName,
    pub wanted: usize,
    pub placed: usize,
    pub healthy: usize,
    /// Members it can lose and still serve.
    pub tolerates: usize,
    pub serving: bool,
}

/// The fewest healthy members with which a role does its work.
fn needed(membership: Membership, fencing: Fencing, wanted: usize) -> usize {
    if wanted == 0 {
        return 0;
    }
    match membership {
        Membership::ZooKeeper => wanted / 2 + 1,
        // min.insync.replicas
        Membership::Kafka => wanted.min(2),
        Membership::None if fencing == Fencing::Quorum => wanted / 2 + 1,
        Membership::None => wanted.min(1),
    }
}

/// Whether enough members of a role are healthy for it to do its work.
pub fn serving(state: &ClusterState, obs: &Observations, role: &RoleName) -> bool {
    service(state, obs, role).is_some_and(|service| service.serving)
}

/// Which roles serve, each worked out when it is first asked for: the gates of a thousand slots ask for the same few.
pub struct Serving<'a> {
    pub state: &'a ClusterState,
    pub obs: &'a Observations,
    known: RefCell<BTreeMap<RoleName, bool>>,
}

impl<'a> Serving<'a> {
    pub fn new(state: &'a ClusterState, obs: &'a Observations) -> Self {
        Self { state, obs, known: RefCell::default() }
    }

    /// As [`serving`].
    pub fn of(&self, role: &RoleName) -> bool {
        if let Some(known) = self.known.borrow().get(role) {
            return *known;
        }
        let serves = serving(self.state, self.obs, role);
        self.known.borrow_mut().insert(role.clone(), serves);
        serves
    }
}

/// How well a role is; None: there is no such role.
pub fn service(state: &ClusterState, obs: &Observations, role: &RoleName) -> Option<Service> {
    let spec = state.spec.roles.get(role)?;
    let wanted = spec.pref as usize;
    let healthy = healthy(state, obs, role);
    // An ensemble's quorum is counted over who votes in it: joiners do not yet, and the dead still do.
    let (counted, needed) = match voters(state, obs, role) {
        Some(voters) => {
            let votes = |(id, slot): &(&SlotId, &Slot)| voters.contains(&slot.member_id) && well(obs, id, slot);
            (state.slots_of(role).filter(votes).count(), voters.len() / 2 + 1)
        }
        None => (healthy, needed(spec.membership, spec.fencing, wanted)),
    };
    Some(Service {
        role: role.clone(),
        wanted,
        placed: state.slots_of(role).filter(|(_, slot)| slot.holder.is_some()).count(),
        healthy,
        tolerates: counted.saturating_sub(needed),
        serving: counted >= needed,
    })
}

/// Who votes: as just read, else as the log last had it.
fn voters(state: &ClusterState, obs: &Observations, role: &RoleName) -> Option<BTreeSet<u32>> {
    if state.spec.roles.get(role)?.membership != Membership::ZooKeeper {
        return None;
    }
    let seen = obs.zookeeper.as_ref().map(|seen| seen.voters.keys().copied().collect());
    seen.or_else(|| Some(state.ensembles.get(role)?.voters.clone())).filter(|voters: &BTreeSet<u32>| !voters.is_empty())
}

/// Coordinators as the leader sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coordinators {
    pub wanted: usize,
    pub reachable: usize,
}

/// One word and a sentence for each reason.
pub fn judge(state: &ClusterState, obs: &Observations, coordinators: Coordinators, brake: &Brake) -> (Health, Vec<String>) {
    let mut worst = Health::Healthy;
    let mut reasons = Vec::new();
    let mut say = |health: Health, reason: String| {
        worst = worst.max(health);
        reasons.push(reason);
    };
    let quorum = coordinators.wanted / 2 + 1;
    if coordinators.reachable < quorum {
        say(Health::QuorumLost, format!("only {} of {} coordinators answer: nothing can be decided", coordinators.reachable, coordinators.wanted));
    } else if coordinators.reachable == quorum && coordinators.wanted > 1 {
        say(Health::NoTolerance, format!("{} of {} coordinators answer: one more loss stops every decision", coordinators.reachable, coordinators.wanted));
    } else if coordinators.reachable < coordinators.wanted {
        say(Health::Degraded, format!("{} of {} coordinators answer", coordinators.reachable, coordinators.wanted));
    }
    for role in state.spec.roles.keys() {
        let Some(service) = service(state, obs, role) else { continue };
        let quorum = service.wanted > 0 && state.spec.roles[role].fencing == Fencing::Quorum;
        let counts = format!("{} of {} {role} healthy", service.healthy, service.wanted);
        if !service.serving {
            say(if quorum { Health::QuorumLost } else { Health::Degraded }, format!("{counts}: it does not serve"));
        } else if quorum && service.tolerates == 0 {
            say(Health::NoTolerance, format!("{counts}: one more loss stops it"));
        } else if service.healthy < service.wanted {
            say(Health::Degraded, counts);
        }
        let min = state.spec.roles[role].min as usize;
        if service.healthy < min && min > 1 {
            say(Health::Degraded, format!("{} of {role} are healthy, at least {min} are to be", service.healthy));
        }
    }
    for (id, node) in &state.nodes {
        match node.lifecycle {
            Lifecycle::Ready => {}
            Lifecycle::Draining => say(Health::Degraded, format!("node {id} is draining")),
            Lifecycle::Lost => say(Health::Degraded, format!("node {id} is lost; its instance is being terminated")),
            Lifecycle::Fenced => say(Health::Degraded, format!("node {id} is terminated; its slots are moving")),
        }
    }
    if let Brake::Closed { silent, of, place } = brake {
        say(Health::NoTolerance, format!("the brake is closed: {silent} of {of} nodes of {place} fell silent together"));
    }
    (worst, reasons)
}
