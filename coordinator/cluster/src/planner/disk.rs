//! When a slot goes on without its disk: never sooner than it must, and only while the others of its quorum hold the data.

use super::{Planning, Vacant, founded};
use crate::{
    command::Action,
    health::serving,
    observe::KafkaSeen,
    planner::Seek,
    report::Gate,
    state::{Fencing, Membership},
};

impl<'a> Planning<'a> {
    /// True: its volume is given up now. An error holds the slot back altogether; false lets it be placed where its volume is.
    pub(super) fn gives_up_its_volume(&mut self, wanted: &Vacant<'a>) -> Result<bool, Gate> {
        let Some(volume) = &wanted.slot.volume else { return Ok(false) };
        if wanted.slot.wanted_move.as_ref().is_some_and(|wish| wish.empty_disk) {
            self.abandon_gate(wanted)?;
            return Ok(true);
        }
        if self.ledger.best(&wanted.seek).is_some() {
            return Ok(false);
        }
        if let Some(waits) = self.waits_for_disk_ms(wanted) {
            let closed_by = format!("its volume is in {}, where no ready node has room", volume.zone);
            return Err(Gate::new(wanted.id, closed_by, format!("a node joins in {}, or {waits} ms more have passed", volume.zone)));
        }
        self.abandon_gate(wanted)?;
        Ok(true)
    }

    fn waits_for_disk_ms(&self, wanted: &Vacant<'a>) -> Option<u64> {
        let waited = self.obs.zone_empty_since_ms.get(wanted.id).map_or(0, |since| self.obs.now_ms.saturating_sub(*since));
        self.state.spec.volume_wait_ms.checked_sub(waited).filter(|left| *left > 0)
    }

    /// A volume is given up only for something better: a node that could take the slot, and for a quorum only while the others hold the data.
    fn abandon_gate(&mut self, wanted: &Vacant<'a>) -> Result<(), Gate> {
        let Vacant { id, seek, .. } = wanted;
        if self.ledger.best(&Seek { zone: None, ..*seek }).is_none() {
            return Err(Gate::new(id, "no ready node has room, in any zone", format!("a node joins with {} MiB free", seek.spec.memory_mib)));
        }
        let data = seek.spec.membership != Membership::ZooKeeper || founded(self.state, id);
        if seek.spec.fencing == Fencing::Quorum && data {
            if !serving(self.state, self.obs, seek.role) {
                return Err(Gate::new(id, format!("{} has no majority: the data on this volume may be needed", seek.role), "enough of it is healthy again"));
            }
            let abandoned = |action: &Action| matches!(action, Action::AbandonVolume { slot } if slot.role == *seek.role);
            if self.actions.iter().any(abandoned) {
                return Err(Gate::new(id, format!("another disk of {} is being replaced", seek.role), "that one has moved"));
            }
        }
        Ok(())
    }

    /// Kafka, rules 2, 3 and 4: the same id on an empty disk only when that id is in no partition's in-sync replicas, its old session has expired, and no other
    /// broker is down. An id that stays in sync is replaced by a fresh one after the wait.
    pub(super) fn empty_disk_gate(&self, wanted: &Vacant<'a>) -> Result<(), Gate> {
        let Vacant { id, slot, seek } = wanted;
        if seek.spec.membership != Membership::Kafka || slot.member_id == 0 || !(slot.used || slot.volume.is_some()) {
            return Ok(());
        }
        let Some(kafka) = &self.obs.kafka else {
            return Err(Gate::new(id, "its disk is lost and Kafka's in-sync replicas cannot be read", "ZooKeeper answers again"));
        };
        self.old_broker_is_gone(wanted, kafka)?;
        if let Some(other) = self.other_broker_down(wanted) {
            return Err(Gate::new(id, format!("its disk is lost and {other} is down too"), format!("{other} is healthy")));
        }
        if !kafka.in_sync.contains(&slot.member_id) {
            return Ok(());
        }
        let opens = "the controller has taken it out of every in-sync set";
        if slot.volume.is_some() {
            // The disk is there, and what is on it may be the only copy.
            return Err(Gate::new(id, format!("broker {} still counts as in sync somewhere: its disk is not given up", slot.member_id), opens));
        }
        match self.waits_for_disk_ms(wanted) {
            None => Ok(()),
            Some(waits) => {
                let closed_by = format!("its disk is lost and broker {} still counts as in sync somewhere", slot.member_id);
                Err(Gate::new(id, closed_by, format!("{opens}, or {waits} ms more have passed and a fresh id takes over")))
            }
        }
    }

    fn old_broker_is_gone(&self, wanted: &Vacant<'a>, kafka: &KafkaSeen) -> Result<(), Gate> {
        let member = wanted.slot.member_id;
        match kafka.registered.get(&member) {
            Some(at) => {
                Err(Gate::new(wanted.id, format!("its disk is lost and the session of broker {member} at {at} is still live"), "ZooKeeper expires it (6 s)"))
            }
            None => Ok(()),
        }
    }

    /// Another broker that has, or will have, its data, and does not serve now. Those that wait for an empty disk as well are no reason to wait.
    fn other_broker_down(&self, wanted: &Vacant<'a>) -> Option<&'a crate::ids::SlotId> {
        let others = self.state.slots_of(wanted.seek.role).filter(|(id, slot)| *id != wanted.id && (slot.holder.is_some() || slot.volume.is_some()));
        let mut down = others.filter(|(id, slot)| self.vacated.contains(id) || !crate::procedure::well(self.obs, id, slot));
        down.next().map(|(id, _)| id)
    }
}
