//! What was done to whom and how often, for the table at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
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
pub struct Tally(Mutex<BTreeMap<&'static str, Kind>>);

impl Tally {
    /// One injection; `struck`: it had the effect it is named for; `healed`: from the end of the fault to the next success.
    pub fn add(&self, kind: &'static str, struck: bool, healed: Duration) {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kinds.entry(kind).or_default();
        kind.injections += 1;
        kind.struck += u64::from(struck);
        kind.longest = kind.longest.max(healed);
    }

    /// All injections.
    pub fn total(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().map(|kind| kind.injections).sum()
    }

    /// As a Markdown table.
    pub fn table(&self) -> String {
        let mut text = "| fault | injected | struck | longest until the next success, ms |\n|---|---|---|---|\n".to_owned();
        for (name, kind) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(text, "| {name} | {} | {} | {} |", kind.injections, kind.struck, kind.longest.as_millis());
        }
        text
    }
}
