//! The lost-quorum day: what a snapshot becomes when a new group is founded on it. The group is new (new members, no memory of promises), the
//! cluster is the old one, and it may have gone on after the snapshot: so everything that orders effects is carried beyond what it can have reached.

use std::collections::BTreeMap;

use crate::{
    apply::Events,
    coordinators::{CoordinatorSlot, Coordinators},
    ids::{Generation, Revision},
    state::ClusterState,
};

/// How far index and term are carried: at 100,000 entries a second the old group would have needed four months to get there.
pub const INDEX_STEP: u64 = 1 << 40;
pub const TERM_STEP: u64 = 1 << 20;

/// The first state of the new group, at `index` (beyond the snapshot's by [`INDEX_STEP`]). Every holder keeps its slot under a new generation: whoever
/// holds it in truth under one that the snapshot does not know is refused by sinks and agents from then on.
pub fn restored(mut state: ClusterState, index: u64, slots: BTreeMap<u32, CoordinatorSlot>, unix_ms: u64) -> ClusterState {
    state.revision = Revision(index);
    let last_member = state.coordinators.last_member;
    state.coordinators = Coordinators::founded(slots, state.apply_version);
    state.coordinators.last_member = state.coordinators.last_member.max(last_member);
    let mut moved = 0;
    for slot in state.slots.values_mut().filter(|slot| slot.holder.is_some()) {
        slot.generation = Generation(index);
        moved += 1;
    }
    let mut events = Events::new(state.revision, unix_ms);
    events.say("cluster restored", "coordinators", format!("from a snapshot; {moved} slots go on under a new generation"));
    events.keep(&mut state);
    state
}
