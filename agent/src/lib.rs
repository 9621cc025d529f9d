//! The daemon on every instance: it joins the cluster, takes the slots the coordinators assign, runs their roles
//! and tells the truth about them. It decides nothing about the cluster and holds no cloud rights.
//!
//! ```text
//!  coordinator <── session (thread of its own: heartbeats, leases, guard renewals) ──┐
//!                                                                                    │ shared
//!  roles <── supervisor <── executor <── reconcile (pure) <── control (main thread) ─┘
//!    ^ guard (a process of its own, one an exclusive slot: kills at the lease's end)
//!    ^ deputy (another: kills at the guard's end)
//! ```

pub mod catalogue;
pub mod certificate;
pub mod clock;
pub mod control;
pub mod conversation;
pub mod disk;
pub mod durable;
pub mod executor;
pub mod generations;
pub mod guard;
pub mod hosts;
pub mod imds;
pub mod layout;
pub mod lease;
pub mod machine;
pub mod mutants;
pub mod observations;
pub mod probes;
pub mod reconcile;
pub mod render;
pub mod sample;
pub mod session;
pub mod settings;
pub mod shared;
pub mod slot;
pub mod supervisor;
pub mod translate;
