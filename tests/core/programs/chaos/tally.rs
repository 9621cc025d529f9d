//! What was done to whom and how often, for the table at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Clone, Debug, Default)]
struct Kind {
    injections: u64,
    /// Of those that may or may not strike (a fail point, a full disk): how many did.
    struck: u64,
    longest: Duration,
}

/// Counts by kind of fault.
#[derive(Default)]
pub struct Tally {
    kinds: Mutex<BTreeMap<&'static str, Kind>>,
    blows: AtomicU64,
}

/// How much a run must have done before it may end.
#[derive(Clone, Copy, Debug)]
pub struct Enough {
    /// Injections of all clusters together.
    pub injections: u64,
    /// Blows among them.
    pub blows: u64,
}

impl Tally {
    /// One injection; `struck`: it had the effect it is named for; `healed`: from the end of the fault to the next success.
    pub fn add(&self, kind: &'static str, struck: bool, healed: Duration) {
        let mut kinds = self.lock();
        let kind = kinds.entry(kind).or_default();
        kind.injections += 1;
        kind.struck += u64::from(struck);
        kind.longest = kind.longest.max(healed);
    }

    /// One of the injections that struck was a partition, pause or kill of an instance, an agent or a coordinator of a real cluster.
    pub fn add_blow(&self) {
        self.blows.fetch_add(1, Ordering::Relaxed);
    }

    /// All injections that had the effect they are named for.
    pub fn total(&self) -> u64 {
        self.lock().values().map(|kind| kind.struck).sum()
    }

    /// The kinds that were tried and never had their effect.
    pub fn vain(&self) -> Vec<&'static str> {
        self.lock().iter().filter(|(_, kind)| kind.struck == 0).map(|(name, _)| *name).collect()
    }

    /// Partitions, pauses and kills on real clusters.
    pub fn blows(&self) -> u64 {
        self.blows.load(Ordering::Relaxed)
    }

    /// Whether so much was done.
    pub fn has(&self, enough: Enough) -> bool {
        self.total() >= enough.injections && self.blows() >= enough.blows
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Kind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As a Markdown table.
    pub fn table(&self) -> String {
        let mut text = "| fault | injected | struck | longest until the next success, ms |\n|---|---|---|---|\n".to_owned();
        for (name, kind) in self.lock().iter() {
            let _ = writeln!(text, "| {name} | {} | {} | {} |", kind.injections, kind.struck, kind.longest.as_millis());
        }
        text
    }
}
