//! A whole cluster in one thread, decided by one number: three coordinators and their agents, with the code that ships, over a fake network, fake disks,
//! fake clocks and a fake region.
//!
//! ```text
//!  seed ─> scenario ─> faults ──┐
//!                               v
//!  queue ─> world ─> coordinator   the shipped raft::Task, Leader, Registry, Control, CloudWatch, Conversation (futures polled by hand: fiber)
//!             │        │  disk     written is not synced
//!             │        │  region   EC2 that is slow, silent or stale
//!             │      stream, network
//!             │        │
//!             │      agent         the shipped reconcile, Leases, Memory (generations), Conversation, translate, observation
//!             │        └ process   roles with guards, as much of ZooKeeper and Kafka as the judgement reads
//!             └─> check            after every step; the first broken rule ends the run
//! ```
//!
//! The same seed gives the same run, byte for byte: one source of chance (`random`), one order of events (`queue`), ordered maps, and an election timeout
//! that is set before each tick, since raft-rs draws its own from the thread's chance. raft-rs's hash maps use a fixed hash (fxhash).
//!
//! Left out: transport and TLS, admission's documents, templates and real processes; the real disk format has tests of its own.

pub mod agent;
pub mod check;
pub mod clock;
pub mod coordinator;
pub mod disk;
pub mod drawing;
pub mod faults;
pub mod fiber;
pub mod mutants;
pub mod network;
pub mod picture;
pub mod process;
pub mod queue;
pub mod random;
pub mod region;
pub mod runs;
pub mod scenario;
pub mod stream;
pub mod wanted;
pub mod world;

pub use world::{Outcome, Watch, run};
