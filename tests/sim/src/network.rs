//! The network between machines: delay, loss, repetition, and cuts that may go one way only.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    clock::{MS, Time},
    random::Random,
};

/// A machine's number: 1 to 3 are coordinators, instances count from 100.
pub type Machine = u32;

/// How good the network is in this run.
pub struct Network {
    random: Random,
    /// Usual one-way delay, µs.
    usual: (Time, Time),
    /// So many of a thousand take up to a second.
    slow_permille: u64,
    pub loss_permille: u64,
    pub repeat_permille: u64,
    /// Messages between coordinators take this long just now, so that what is proposed is decided late.
    slow_coordinators: Option<(Time, Time)>,
    cuts: BTreeMap<u32, (BTreeSet<Machine>, BTreeSet<Machine>)>,
}

impl Network {
    pub fn new(mut random: Random) -> Self {
        let usual = *random.pick(&[(100, 400), (200, 2 * MS), (MS, 20 * MS)]).unwrap_or(&(100, 400));
        let (loss_permille, slow_permille) = *random.pick(&[(0, 0), (0, 2), (5, 5), (30, 10)]).unwrap_or(&(0, 0));
        Self { random, usual, slow_permille, loss_permille, repeat_permille: loss_permille / 2, slow_coordinators: None, cuts: BTreeMap::new() }
    }

    /// From now on nothing gets from these to those.
    pub fn cut(&mut self, number: u32, from: BTreeSet<Machine>, to: BTreeSet<Machine>) {
        self.cuts.insert(number, (from, to));
    }

    pub fn mend(&mut self, number: u32) {
        self.cuts.remove(&number);
    }

    /// No loss, no slowness from now on.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.slow_coordinators = None;
        (self.loss_permille, self.repeat_permille, self.slow_permille) = (0, 0, 0);
    }

    pub fn open(&self, from: Machine, to: Machine) -> bool {
        !self.cuts.values().any(|(sources, targets)| sources.contains(&from) && targets.contains(&to))
    }

    pub fn slow_coordinators(&mut self, delays: Option<(Time, Time)>) {
        self.slow_coordinators = delays;
    }

    /// How long the next message between coordinators takes.
    pub fn delay_between_coordinators(&mut self) -> Time {
        match self.slow_coordinators {
            Some((low, high)) => self.random.range(low, high),
            None => self.delay(),
        }
    }

    /// How long the next message takes.
    pub fn delay(&mut self) -> Time {
        let (low, high) = self.usual;
        if self.slow_permille > 0 && self.random.chance(self.slow_permille) {
            return self.random.range(20 * MS, 1000 * MS);
        }
        self.random.range(low, high)
    }

    pub fn loses(&mut self) -> bool {
        self.loss_permille > 0 && self.random.chance(self.loss_permille)
    }

    pub fn repeats(&mut self) -> bool {
        self.repeat_permille > 0 && self.random.chance(self.repeat_permille)
    }
}
