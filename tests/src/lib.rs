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
pub mod counted;
pub mod example;
pub mod jobs;
pub mod processes;
pub mod region;
pub mod scenarios;
pub mod slots;
pub mod topics;
pub mod writers;

pub use region::{Answer, Region};
pub use vp_core_tests::{observer, wait_until};
