//! Many seeds on all cores, and what came of them as a table.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};

use crate::{
    clock::SECOND,
    world::{Outcome, Watch, run},
};

/// What to run.
#[derive(Clone, Debug)]
pub struct Order {
    pub first: u64,
    pub seeds: u64,
    /// No seed is begun after this.
    pub within: Duration,
    pub threads: usize,
    /// A bug to plant; stop at the first seed that notices it.
    pub mutant: Option<&'static str>,
}

/// All of them together.
#[derive(Clone, Debug, Default)]
pub struct Total {
    pub seeds: u64,
    pub simulated_s: f64,
    pub took: Duration,
    /// Processor time that threads spent on seeds.
    pub busy: Duration,
    pub events: u64,
    pub commands: u64,
    pub acknowledged: u64,
    pub elections: u64,
    pub moves: u64,
    pub guard_kills: u64,
    pub faults: BTreeMap<&'static str, u64>,
    /// Seed, rule, how.
    pub violations: Vec<(u64, String, String)>,
}

/// Plants a bug in this thread, if the program was built to be able to.
fn plant(name: &'static str) {
    #[cfg(feature = "mutants")]
    {
        vp_cluster::mutants::plant(name);
        vp_agent::mutants::plant(name);
    }
    let _ = name;
}

/// One seed; a panic is a broken rule like any other.
pub fn guarded(seed: u64) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| run(seed, Watch::Outcome).0)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Outcome { seed, violation: Some(("a panic", text.unwrap_or_default(), 0)), ..Outcome::default() }
    })
}

/// Processor time of this thread: what a seed costs, however busy the machine is.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Runs an order.
pub fn all(order: &Order) -> Total {
    let began = Instant::now();
    let (next, stop, total) = (AtomicU64::new(order.first), AtomicBool::new(false), Mutex::new(Total::default()));
    let end = order.first.saturating_add(order.seeds);
    thread::scope(|scope| {
        for _ in 0..order.threads {
            scope.spawn(|| {
                plant(order.mutant.unwrap_or_default());
                while began.elapsed() < order.within && !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let alone = cpu_time();
                    let outcome = guarded(seed);
                    if outcome.violation.is_some() && order.mutant.is_some() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    total.lock().unwrap_or_else(PoisonError::into_inner).add(&outcome, cpu_time().saturating_sub(alone));
                }
            });
        }
    });
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.took = began.elapsed();
    total.violations.sort();
    total
}

impl Total {
    fn add(&mut self, outcome: &Outcome, took: Duration) {
        self.seeds += 1;
        self.simulated_s += outcome.simulated as f64 / SECOND as f64;
        self.busy += took;
        self.events += outcome.events;
        self.commands += outcome.commands;
        self.acknowledged += outcome.acknowledged;
        self.elections += outcome.elections;
        self.moves += outcome.moves;
        self.guard_kills += outcome.guard_kills;
        for (name, count) in &outcome.faults {
            *self.faults.entry(name).or_default() += count;
        }
        if let Some((rule, how, at)) = &outcome.violation {
            self.violations.push((outcome.seed, (*rule).to_owned(), format!("{how} (at {:.3} s)", *at as f64 / SECOND as f64)));
        }
    }

    /// How many times faster than the time simulated, a core.
    pub fn speed(&self) -> f64 {
        self.simulated_s / self.busy.as_secs_f64().max(0.001)
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = |f: &mut std::fmt::Formatter<'_>, name: &str, value: String| writeln!(f, "  {name:<34} {value:>14}");
        writeln!(f, "simulation")?;
        line(f, "seeds", self.seeds.to_string())?;
        line(f, "wall time, s", format!("{:.1}", self.took.as_secs_f64()))?;
        line(f, "simulated time, h", format!("{:.1}", self.simulated_s / 3600.0))?;
        line(f, "times real time, a core's time", format!("{:.0}", self.speed()))?;
        line(f, "events", self.events.to_string())?;
        line(f, "commands applied", self.commands.to_string())?;
        line(f, "client commands acknowledged", self.acknowledged.to_string())?;
        line(f, "elections won", self.elections.to_string())?;
        line(f, "slots moved", self.moves.to_string())?;
        line(f, "roles killed at their lease's end", self.guard_kills.to_string())?;
        line(f, "faults", self.faults.values().sum::<u64>().to_string())?;
        for (name, count) in &self.faults {
            line(f, &format!("  {name}"), count.to_string())?;
        }
        line(f, "violations", self.violations.len().to_string())?;
        for (seed, rule, how) in self.violations.iter().take(10) {
            writeln!(f, "  seed {seed}: {rule}: {how}\n    again: tests/sim/run --seed {seed} --trace --picture run.svg")?;
        }
        Ok(())
    }
}
