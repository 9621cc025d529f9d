//! When silence may not be believed: so much fell silent together that the fault is more likely on this side.
//!
//! ```text
//! silent nodes by zone ──> most of the cluster?                 closed everywhere
//!                      ──> most of a zone, but not all of it?   closed there
//!                      ──> all of a zone?                       a zone lost, if its coordinators are silent too and the rest is well; else closed there
//! ```
//!
//! Left out: proof. What EC2 or an agent says passes a closed brake, because it is not silence (`liveness`).

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ids::{NodeId, Zone},
    liveness::lost_after_ms,
    mutant,
    observe::{BrakeMemory, Observations},
};

/// The brake closes when at least this many nodes, and more than [`BRAKE_PERCENT`] of the cluster or of a zone, fall silent together.
pub const BRAKE_NODES: usize = 3;
pub const BRAKE_PERCENT: usize = 55;

/// Whether silence is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Brake {
    Open,
    /// So much fell silent at once that the fault is more likely here: silence moves nothing there and terminates nothing there.
    Closed {
        silent: usize,
        of: usize,
        place: String,
    },
}

/// Who is silent or suspected, zone by zone; nodes whose silence an operator vouched for are in no count.
#[derive(Debug, Default)]
pub(crate) struct Census<'a> {
    zones: BTreeMap<&'a Zone, Counted<'a>>,
}

#[derive(Debug, Default)]
struct Counted<'a> {
    silent: Vec<&'a NodeId>,
    of: usize,
}

impl Counted<'_> {
    fn too_many(&self) -> bool {
        too_many(self.silent.len(), self.of)
    }

    fn all(&self) -> bool {
        self.silent.len() == self.of
    }
}

fn too_many(silent: usize, of: usize) -> bool {
    silent >= BRAKE_NODES && silent * 100 > of * BRAKE_PERCENT && !mutant!("brake-off")
}

/// Those who fell silent together come back one by one: where the brake had to close it stays closed for as long as one silence may last, or the first to
/// return would give up the others.
fn holds_still(closed_ms: Option<u64>, obs: &Observations) -> bool {
    closed_ms.is_some_and(|at| obs.now_ms.saturating_sub(at) <= lost_after_ms(obs.lease_ms)) && !mutant!("brake-opens-at-once")
}

/// Where silence moves nothing, and which zones are lost as a whole.
#[derive(Debug, Default)]
pub(crate) struct Braked<'a> {
    everywhere: bool,
    zones: BTreeSet<&'a Zone>,
    pub lost: BTreeSet<&'a Zone>,
}

impl Braked<'_> {
    pub fn holds(&self, zone: &Zone) -> bool {
        self.everywhere || self.zones.contains(zone)
    }
}

impl<'a> Census<'a> {
    pub fn count(&mut self, node: &'a NodeId, zone: &'a Zone, silent: bool) {
        let counted = self.zones.entry(zone).or_default();
        counted.of += 1;
        if silent {
            counted.silent.push(node);
        }
    }

    /// Silent nodes in order of zone and id.
    pub fn silent(&self) -> impl Iterator<Item = (&'a Zone, &'a NodeId)> + '_ {
        self.zones.iter().flat_map(|(zone, counted)| counted.silent.iter().map(move |node| (*zone, *node)))
    }

    /// Where the brake is closed, and how that is said.
    pub fn brake(&self, obs: &Observations) -> (Braked<'a>, Brake) {
        let (silent, of) = self.count_of(self.zones.keys());
        let mut braked = self.closes(obs);
        if braked.everywhere || (silent > 0 && holds_still(obs.braked.everywhere_ms, obs)) {
            let place = "the cluster".to_owned();
            return (Braked { everywhere: true, ..Braked::default() }, Brake::Closed { silent, of, place });
        }
        let held = self.zones.iter().filter(|(zone, counted)| !counted.silent.is_empty() && holds_still(obs.braked.zones_ms.get(zone).copied(), obs));
        braked.zones.extend(held.map(|(zone, _)| *zone).filter(|zone| !braked.lost.contains(zone)));
        if braked.zones.is_empty() {
            return (braked, Brake::Open);
        }
        let (silent, of) = self.count_of(braked.zones.iter());
        let place = braked.zones.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        (braked, Brake::Closed { silent, of, place })
    }

    /// Where it closes by this look alone.
    fn closes(&self, obs: &Observations) -> Braked<'a> {
        let (silent, of) = self.count_of(self.zones.keys());
        let mut braked = Braked { everywhere: too_many(silent, of), ..Braked::default() };
        if braked.everywhere {
            return braked;
        }
        for (zone, counted) in self.zones.iter().filter(|(_, counted)| counted.too_many()) {
            if counted.all() && self.is_zone_lost(zone, obs) {
                braked.lost.insert(*zone);
            } else {
                braked.zones.insert(*zone);
            }
        }
        braked
    }

    /// Notes where it closes by this look alone, for those that follow.
    pub fn remember(&self, obs: &Observations, memory: &mut BrakeMemory) {
        let braked = self.closes(obs);
        if braked.everywhere {
            memory.everywhere_ms = Some(obs.now_ms);
        }
        memory.zones_ms.extend(braked.zones.iter().map(|zone| ((*zone).clone(), obs.now_ms)));
    }

    /// Silent nodes and all nodes of these zones.
    fn count_of<'z>(&self, zones: impl Iterator<Item = &'z &'a Zone>) -> (usize, usize)
    where
        'a: 'z,
    {
        zones.filter_map(|zone| self.zones.get(*zone)).fold((0, 0), |(silent, of), zone| (silent + zone.silent.len(), of + zone.of))
    }

    /// All of a zone is silent: it is lost if its coordinators are silent as well and every other zone is well. A coordinator that answers from there
    /// says that the zone lives, and that what is broken lies between.
    fn is_zone_lost(&self, zone: &Zone, obs: &Observations) -> bool {
        let answers = obs.coordinators.iter().any(|coordinator| coordinator.zone == *zone && coordinator.answers);
        let rest_is_well = self.zones.iter().all(|(other, counted)| *other == zone || !counted.too_many());
        !answers && rest_is_well
    }
}
