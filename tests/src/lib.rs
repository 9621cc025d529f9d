//! What the whole-system tests stand on: a real region of one's own that is gone afterwards whatever happens, and eyes that see past the cluster's own
//! account (processes of the machine, EC2, S3). Left out: anything that judges; the tests do.
//!
//! ```text
//! test ── Region ── vpctl (as a person would) ──> the region
//!             ├──── vp-cloud ─────────────────────> EC2, Auto Scaling, S3
//!             └──── /proc ────────────────────────> processes of slots, of agents
//! ```
//!
//! Everything here blocks and is meant for plain `#[test]`s; clients that are async run in [`Region::block_on`].

pub mod cell;
pub mod jobs;
pub mod observer;
pub mod processes;
pub mod region;
pub mod scenarios;
pub mod slots;
pub mod writers;

pub use region::{Answer, Region};

use std::{
    thread,
    time::{Duration, Instant},
};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(150);

/// Looks at the condition until it holds, and gives what it found.
///
/// # Errors
/// It did not hold within `deadline`: says `what`, and what the last look said (its error, or nothing yet).
pub fn wait_until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        let last = match condition() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => String::new(),
            Err(error) => format!("; last look: {error:#}"),
        };
        if begun.elapsed() >= deadline {
            anyhow::bail!("not within {} s: {what}{last}", deadline.as_secs());
        }
        thread::sleep(LOOK);
    }
}
