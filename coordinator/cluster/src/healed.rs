//! Slots that serve again after they were granted anew: the end of a healing, for `vpctl events` and `vpctl explain`.

use std::collections::BTreeMap;

use crate::{
    ids::{Generation, SlotId},
    observe::{Observations, Phase},
    state::ClusterState,
};

/// Slots that one leader has seen start, and at which generation; true: that it serves was told.
pub type Starts = BTreeMap<SlotId, (Generation, bool)>;

/// Slots that were seen to start at the generation they are held at and are healthy now, each with a sentence: once a generation, however often the process ends.
/// The first start on a disk is not among them: it is a fact of its own (`Command::SlotUsed`). Nor is what a new leader finds healthy.
pub fn healed(state: &ClusterState, obs: &Observations, starts: &mut Starts) -> Vec<(SlotId, String)> {
    starts.retain(|id, (generation, _)| state.slots.get(id).is_some_and(|slot| slot.holder.is_some() && slot.generation == *generation));
    let mut healed = Vec::new();
    for (id, slot) in &state.slots {
        let Some(holder) = &slot.holder else { continue };
        match obs.phase(id, slot.generation) {
            Phase::Waiting | Phase::Starting | Phase::Backoff => drop(starts.entry(id.clone()).or_insert((slot.generation, false))),
            Phase::Healthy => {
                let Some((_, told @ false)) = starts.get_mut(id) else { continue };
                *told = true;
                if slot.used {
                    healed.push((id.clone(), format!("generation {}, on {holder}", slot.generation)));
                }
            }
            _ => {}
        }
    }
    healed
}
