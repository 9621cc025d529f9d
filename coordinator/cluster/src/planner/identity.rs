//! Which member id a slot gets in the role's own quorum: its own as long as its disk is there, a fresh one where an empty disk must not come back as a voter.

use std::collections::BTreeMap;

use super::{Vacant, founded};
use crate::{
    apply::{MOST_SLOTS, free_member_id},
    ids::RoleName,
    mutant,
    observe::Observations,
    state::{ClusterState, Membership},
};

/// Ids given in this plan, on top of those in the state.
pub(super) struct Pool<'a> {
    state: &'a ClusterState,
    obs: &'a Observations,
    given: BTreeMap<&'a RoleName, Vec<u32>>,
}

impl<'a> Pool<'a> {
    pub fn of(state: &'a ClusterState, obs: &'a Observations) -> Self {
        Self { state, obs, given: BTreeMap::new() }
    }

    /// None: ZooKeeper's 255 are all in use.
    pub fn give(&mut self, wanted: &Vacant<'a>, empty_disk: bool) -> Option<u32> {
        let id = match wanted.seek.spec.membership {
            Membership::ZooKeeper => self.zookeeper(wanted, empty_disk)?,
            Membership::Kafka => self.kafka(wanted, empty_disk),
            Membership::None => wanted.id.index,
        };
        self.given.entry(wanted.seek.role).or_default().push(id);
        Some(id)
    }

    /// Rules 3, 6 and 7: the same myid only with the same disk. Granted before and never had a disk to start on: nobody has seen the id yet, and the founders'
    /// list stays whole.
    fn zookeeper(&self, wanted: &Vacant<'a>, empty_disk: bool) -> Option<u32> {
        let slot = wanted.slot;
        let founded = founded(self.state, wanted.id);
        if slot.member_id == 0 {
            return if founded { self.free(wanted) } else { Some(wanted.id.index) };
        }
        let founder = self.state.ensembles.get(wanted.seek.role).is_some_and(|ensemble| ensemble.founders.contains(&slot.member_id));
        let unseen = wanted.seek.spec.volume && slot.volume.is_none() && !slot.used && founder;
        if empty_disk && founded && !unseen && !mutant!("old-member-on-an-empty-disk") { self.free(wanted) } else { Some(slot.member_id) }
    }

    fn free(&self, wanted: &Vacant<'a>) -> Option<u32> {
        let listed = |id: u32| self.obs.zookeeper.as_ref().is_some_and(|seen| seen.voters.contains_key(&id));
        free_member_id(self.state, wanted.seek.role, self.given(wanted), listed)
    }

    fn given(&self, wanted: &Vacant<'a>) -> &[u32] {
        self.given.get(wanted.seek.role).map_or(&[], Vec::as_slice)
    }

    /// Rule 1: its slot's; rule 2: a fresh one, above every slot's own, when the old id still counts as in sync and its disk is gone.
    fn kafka(&self, wanted: &Vacant<'a>, empty_disk: bool) -> u32 {
        let own = if wanted.slot.member_id == 0 { wanted.id.index } else { wanted.slot.member_id };
        let written = wanted.slot.used || wanted.slot.volume.is_some();
        let counted_on = self.obs.kafka.as_ref().is_some_and(|kafka| kafka.in_sync.contains(&own));
        if !(empty_disk && written && counted_on) {
            return own;
        }
        let given = self.given(wanted).iter().copied().max().unwrap_or(0);
        let last = self.state.ensembles.get(wanted.seek.role).map_or(0, |ensemble| ensemble.last_member);
        last.max(given).max(MOST_SLOTS).saturating_add(1)
    }
}
