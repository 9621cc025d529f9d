//! Several scenarios on one region, which costs half a minute: all run, each with its time, and every failure is told at the end.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

/// Runs named scenarios in order. `VP_SCENARIO` (a part of a name, or several with commas) chooses among them.
#[derive(Default)]
pub struct Scenarios {
    failed: Vec<String>,
    ran: usize,
}

impl Scenarios {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs one now; a failure is noted, and what comes after still runs.
    pub fn run(&mut self, name: &str, scenario: impl FnOnce() -> anyhow::Result<()>) {
        if std::env::var("VP_SCENARIO").is_ok_and(|wanted| !wanted.split(',').any(|part| name.contains(part))) {
            return;
        }
        println!("-- {name}");
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(scenario));
        let took = begun.elapsed().as_secs_f32();
        self.ran += 1;
        let failure = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(panic) => Some(panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()),
        };
        println!("{} {name} ({took:.1} s)", if failure.is_none() { "ok" } else { "FAILED" });
        if let Some(failure) = failure {
            println!("   {failure}");
            self.failed.push(format!("{name}: {failure}"));
        }
    }

    /// Panics when one failed, or when none ran.
    pub fn finish(self) {
        assert!(self.ran > 0, "no scenario ran: VP_SCENARIO names none");
        assert!(self.failed.is_empty(), "{} of {} scenarios failed:\n{}", self.failed.len(), self.ran, self.failed.join("\n"));
    }
}
