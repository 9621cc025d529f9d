//! Durable multi-step changes. The recorded step is the state itself (a node that drains, a slot with a wanted move, a slot that is releasing, one slot
//! too many); each call looks at the world again and says what may be done next, so any coordinator can carry it on, and taking the wish back stops it.
//!
//! | procedure | recorded as | steps | undone by |
//! |---|---|---|---|
//! | drain | node draining | release, word, grant elsewhere: one slot after another | `vpctl drain --undo` |
//! | move | `Slot::wanted_move` | release, word, (give up the volume,) grant | `vpctl move --undo` |
//! | shrink | slots above `pref` | out of the role's own quorum, release, word, remove | `vpctl scale` back |
//! | grow | slots without a holder | grant, join as observer, voters in pairs (`ensemble`) | `vpctl scale` back |
//! | new disk | a held slot whose volume is lost | release, word, grant under the identity that `planner::identity` allows | nothing: the disk is gone |
//! | spread | two of a quorum in a zone | release, word, grant: slots without a used disk only | nothing: it is as wanted then |

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ids::{NodeId, RoleName, SlotId},
    mutant,
    observe::{Observations, Phase},
    planner::{Ledger, Seek},
    report::Gate,
    state::{ClusterState, Fencing, Lifecycle, Membership, Slot},
};

/// Slots that may be released now, and what holds back the others: one member of a quorum at a time, and only while the others are well.
pub(crate) fn departures<'a>(state: &'a ClusterState, obs: &Observations, wellness: &Wellness<'a>, ledger: &mut Ledger<'a>) -> (Vec<SlotId>, Vec<Gate>) {
    let mut leaving = Departures { state, obs, wellness, ledger, releases: Vec::new(), gates: Vec::new() };
    leaving.promise_room_to_those_on_their_way();
    for (id, slot) in &state.slots {
        let Some((holder, node)) = state.holder(slot).filter(|_| !slot.releasing && !wellness.vacated.contains(id)) else { continue };
        // Silent, or gone: nobody there to ask.
        if matches!(node.lifecycle, Lifecycle::Lost | Lifecycle::Fenced) {
            continue;
        }
        if state.role(id).is_some_and(|role| role.volume) && slot.volume.is_none() && slot.used {
            // A lost disk ends an identity: the process is stopped, then the slot is granted with an empty disk.
            leaving.releases.push(id);
        } else if state.is_surplus(id) {
            leaving.shrink(id, slot);
        } else if node.lifecycle == Lifecycle::Draining || slot.wanted_move.is_some() {
            leaving.depart(id, slot, holder);
        }
    }
    leaving.spread();
    let Departures { releases, gates, .. } = leaving;
    (releases.into_iter().cloned().collect(), gates)
}

/// Draining nodes and wanted moves, by themselves: as the planner asks, on a state of its own.
pub fn drain(state: &ClusterState, obs: &Observations) -> (Vec<SlotId>, Vec<Gate>) {
    departures(state, obs, &Wellness::of(state, obs, &BTreeSet::new()), &mut Ledger::of(state))
}

struct Departures<'a, 'b> {
    state: &'a ClusterState,
    obs: &'b Observations,
    wellness: &'b Wellness<'a>,
    ledger: &'b mut Ledger<'a>,
    releases: Vec<&'a SlotId>,
    gates: Vec<Gate>,
}

impl<'a> Departures<'a, '_> {
    fn seek(&self, id: &'a SlotId, slot: &'a Slot) -> Option<Seek<'a>> {
        let (role, spec) = self.state.spec.roles.get_key_value(&id.role)?;
        let empty = slot.wanted_move.as_ref().is_some_and(|wish| wish.empty_disk);
        let zone = slot.volume.as_ref().filter(|_| !empty).map(|volume| &volume.zone);
        Some(Seek { role, spec, zone, from: slot.holder.as_ref() })
    }

    /// Room that slots on their way will take is not given away twice.
    fn promise_room_to_those_on_their_way(&mut self) {
        for (id, slot) in self.state.slots.iter().filter(|(_, slot)| slot.releasing) {
            let Some(seek) = self.seek(id, slot).filter(|_| !self.state.is_surplus(id)) else { continue };
            if let Some(target) = self.target(slot, &seek) {
                self.ledger.take(seek.role, seek.spec, target);
            }
        }
    }

    fn target(&mut self, slot: &'a Slot, seek: &Seek<'a>) -> Option<&'a NodeId> {
        match slot.wanted_move.as_ref().and_then(|wish| wish.to.as_ref()) {
            Some(to) => Some(to).filter(|to| self.ledger.takes(seek, to)),
            None => self.ledger.best(seek),
        }
    }

    /// A drain or a move: released when the others can spare it and a place is free.
    fn depart(&mut self, id: &'a SlotId, slot: &'a Slot, holder: &'a NodeId) {
        if let Some(gate) = self.blocked(id, slot) {
            self.gates.push(gate);
            return;
        }
        let Some(seek) = self.seek(id, slot) else { return };
        // A node that is leaving gives its slots away, to the wished-for place or to another.
        let draining = self.state.nodes.get(holder).is_some_and(|node| node.lifecycle == Lifecycle::Draining);
        match self.target(slot, &seek).or_else(|| draining.then(|| self.ledger.best(&seek)).flatten()) {
            Some(target) => {
                self.ledger.take(seek.role, seek.spec, target);
                self.releases.push(id);
            }
            // Stopping it now would stop it for nothing.
            None => match slot.wanted_move.as_ref().and_then(|wish| wish.to.as_ref()) {
                Some(to) => self.gates.push(Gate::new(
                    id,
                    format!("{to} cannot take it from {holder}"),
                    format!("{to} has room and takes slots, or the move is cancelled"),
                )),
                None => self.gates.push(Gate::new(id, "no other node could take it", takes(slot, &seek))),
            },
        }
    }

    /// One slot too many: released once its own quorum does not count on it.
    fn shrink(&mut self, id: &'a SlotId, slot: &'a Slot) {
        match still_counted_on(self.state, self.obs, id, slot).or_else(|| self.blocked(id, slot)) {
            Some(gate) => self.gates.push(gate),
            None => self.releases.push(id),
        }
    }

    fn blocked(&self, id: &'a SlotId, slot: &Slot) -> Option<Gate> {
        let role = self.state.role(id)?;
        if role.fencing != Fencing::Quorum {
            return None;
        }
        if let Some(other) = self.releases.iter().find(|other| other.role == id.role && !mutant!("two-voters-at-once")) {
            return Some(Gate::new(id, format!("{other} of the same quorum is moving"), format!("{other} is healthy elsewhere")));
        }
        if let Some(other) = self.wellness.other_unwell(id).filter(|_| !mutant!("drain-of-a-weak-quorum")) {
            return Some(Gate::new(id, format!("{other} of the same quorum is not healthy"), format!("{other} is healthy")));
        }
        if role.membership == Membership::Kafka { self.kafka_blocked(id, slot) } else { None }
    }

    /// roles.md, Kafka 4 and 6: before a live broker is taken away.
    fn kafka_blocked(&self, id: &SlotId, slot: &Slot) -> Option<Gate> {
        let Some(kafka) = &self.obs.kafka else {
            return Some(Gate::new(id, "Kafka's partitions cannot be read", "ZooKeeper answers again"));
        };
        if kafka.offline + kafka.under_replicated > 0 {
            let closed = format!("{} partitions are under-replicated, {} offline", kafka.under_replicated, kafka.offline);
            return Some(Gate::new(id, closed, "every partition is fully replicated"));
        }
        if kafka.at_min_in_sync > 0 {
            let closed = format!("{} partitions would refuse writes with one replica fewer", kafka.at_min_in_sync);
            return Some(Gate::new(id, closed, "every partition has a replica in sync to spare"));
        }
        if self.obs.phase(id, slot.generation) == Phase::Starting {
            return Some(Gate::new(id, "it may be recovering its log, which must not be cut short", "it is healthy"));
        }
        None
    }

    /// Two members of a quorum share a zone while another has none of it and room: the one that left no data behind moves, one at a time, when all is well.
    fn spread(&mut self) {
        let quiet = self.releases.is_empty() && self.state.slots.values().all(|slot| !slot.releasing);
        for (role, spec) in self.state.spec.roles.iter().filter(|(_, spec)| spec.fencing == Fencing::Quorum && spec.spread_zones) {
            let members = self.ledger.spread(role);
            let Some(fewest) = members.values().min().copied() else { continue };
            let crowded = |slot: &Slot| self.state.holder(slot).filter(|(_, node)| members.get(&node.zone).is_some_and(|count| *count >= fewest + 2));
            // The highest index moves: ties are broken the same way everywhere.
            let Some((id, slot)) = self.state.slots_of(role).filter(|(_, slot)| crowded(slot).is_some()).last() else { continue };
            let Some(seek) = self.seek(id, slot).map(|seek| Seek { zone: None, ..seek }) else { continue };
            let there = self.ledger.best(&seek).and_then(|node| self.state.nodes.get(node)).map(|node| &node.zone);
            let Some(zone) = there.filter(|zone| members.get(zone) == Some(&fewest)) else { continue };
            let closed_by = if spec.volume && slot.used {
                Some(("its data is on a volume that binds it to its zone".to_owned(), format!("'vpctl move {id} --empty-disk' moves it without")))
            } else if !quiet || self.wellness.any_unwell() {
                Some(("something else is under way or unwell".to_owned(), "everything is healthy".to_owned()))
            } else {
                None
            };
            match closed_by.map(|(closed, opens)| Gate::new(id, format!("another {role} is in its zone while {zone} has fewer; {closed}"), opens)) {
                Some(gate) => self.gates.push(gate),
                None => match self.blocked(id, slot) {
                    Some(gate) => self.gates.push(gate),
                    None => {
                        self.releases.push(id);
                        return;
                    }
                },
            }
        }
    }
}

fn takes(slot: &Slot, seek: &Seek<'_>) -> String {
    match slot.volume.as_ref().filter(|_| seek.zone.is_some()) {
        Some(volume) => format!("a node with room joins in {}, where its volume is", volume.zone),
        None => "a node with room joins".to_owned(),
    }
}

/// Why a slot that is one too many may not go yet: its role's own quorum still counts on it.
pub(crate) fn still_counted_on(state: &ClusterState, obs: &Observations, id: &SlotId, slot: &Slot) -> Option<Gate> {
    let role = state.role(id)?;
    match role.membership {
        Membership::None => None,
        _ if slot.member_id == 0 => None,
        Membership::ZooKeeper => {
            let Some(seen) = &obs.zookeeper else {
                return Some(Gate::new(id, "one too many, and the ensemble's member list cannot be read", "a majority of the ensemble serves"));
            };
            let listed = [Some(slot.member_id), slot.retired_member].into_iter().flatten().find(|member| seen.voters.contains_key(member));
            if let Some(member) = listed {
                return Some(Gate::new(id, format!("one too many, and member {member} still votes"), "reconfig has removed it"));
            }
            // roles.md, ZooKeeper 4: committed is not yet active.
            (!seen.is_active()).then(|| Gate::new(id, "one too many, and the list without it is committed but not active yet", "a write has gone through"))
        }
        Membership::Kafka => {
            let Some(kafka) = &obs.kafka else {
                return Some(Gate::new(id, "one too many, and Kafka's partitions cannot be read", "ZooKeeper answers again"));
            };
            // roles.md, Kafka 6: scale in only when it holds no replica.
            let held = kafka.held_by(slot.member_id);
            (held > 0)
                .then(|| Gate::new(id, format!("one too many, and {held} partitions have a replica on broker {}", slot.member_id), "they have been reassigned"))
        }
    }
}

/// Which members of each role are not well, gathered once.
pub(crate) struct Wellness<'a> {
    vacated: BTreeSet<&'a SlotId>,
    unwell: BTreeMap<&'a RoleName, Vec<&'a SlotId>>,
}

impl<'a> Wellness<'a> {
    /// `vacated` slots have lost their holder in this very plan. A slot that nobody wants any more is nobody's reason to wait.
    pub fn of(state: &'a ClusterState, obs: &Observations, vacated: &BTreeSet<&'a SlotId>) -> Self {
        let mut unwell: BTreeMap<&'a RoleName, Vec<&'a SlotId>> = BTreeMap::new();
        // A ZooKeeper that does not vote, nor is on its way out; two of these that do not start would wait for each other for ever.
        let never_joined = |id: &SlotId, slot: &Slot| {
            let zookeeper = state.role(id).is_some_and(|role| role.membership == Membership::ZooKeeper);
            zookeeper && !slot.releasing && still_counted_on(state, obs, id, slot).is_none() && !mutant!("joiners-wait-for-each-other")
        };
        for (id, slot) in &state.slots {
            let gone = state.is_surplus(id) && (slot.holder.is_none() || vacated.contains(id) || never_joined(id, slot));
            if !gone && (vacated.contains(id) || !well(obs, id, slot)) {
                unwell.entry(&id.role).or_default().push(id);
            }
        }
        Self { vacated: vacated.clone(), unwell }
    }

    fn other_unwell(&self, id: &SlotId) -> Option<&'a SlotId> {
        self.unwell.get(&id.role)?.iter().find(|other| **other != id).copied()
    }

    fn any_unwell(&self) -> bool {
        !self.unwell.is_empty()
    }
}

pub(crate) fn well(obs: &Observations, id: &SlotId, slot: &Slot) -> bool {
    slot.holder.is_some() && !slot.releasing && obs.phase(id, slot.generation) == Phase::Healthy
}

/// Healthy members of a role, as their holders report them at their live generation.
pub fn healthy(state: &ClusterState, obs: &Observations, role: &RoleName) -> usize {
    state.slots_of(role).filter(|(id, slot)| well(obs, id, slot)).count()
}
