//! What somebody has to look at, each in a sentence.

use crate::{apply::lease_is_proof, health, observe::Observations, state::ClusterState};

/// A role's process may end for once (a Spark master does when its ZooKeeper connection breaks, a broker while no ensemble answers); so often in a row is a
/// fault that no further start mends. With the agent's pauses (0.5 s, doubled each time) the fifth end is a quarter of a minute after the first, and more.
pub const ENDS_THAT_COUNT: u32 = 5;

/// One of them, for as long as it is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// A role, a slot, or something outside; one alarm for each.
    pub about: String,
    pub sentence: String,
    /// What is to be said when it is no longer so.
    pub over: &'static str,
}

/// Quorum roles with fewer healthy members than their minimum (live voters are never dropped for it), and slots whose process ends again and again.
pub fn raised(state: &ClusterState, obs: &Observations) -> Vec<Alarm> {
    let below = state.spec.roles.iter().filter_map(|(name, role)| {
        let service = health::service(state, obs, name)?;
        let founded = state.slots_of(name).any(|(_, slot)| slot.used);
        let short = !lease_is_proof(role) && founded && service.healthy < role.min as usize;
        short.then(|| Alarm {
            about: name.to_string(),
            sentence: format!("{} of {name} are healthy, at least {} are to be", service.healthy, role.min),
            over: "enough are healthy again",
        })
    });
    let unsteady = state.slots.iter().filter_map(|(id, slot)| {
        let (holder, seen) = (slot.holder.as_ref()?, obs.slot(id, slot.generation)?);
        (seen.ends_in_a_row >= ENDS_THAT_COUNT).then(|| Alarm {
            about: id.to_string(),
            sentence: format!(
                "{id} has ended {} times in a row on {holder}, each time before it was steady; `vpctl explain {id}` says how",
                seen.ends_in_a_row
            ),
            over: "it runs steadily, or is held by another node",
        })
    });
    below.chain(unsteady).collect()
}
