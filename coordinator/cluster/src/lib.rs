//! All judgement about the cluster, and nothing else: no I/O, no async, no clock, no randomness.
//!
//! One failure, from silence to healed, walks through this crate:
//!
//! ```text
//! heartbeats stop          observe::Observations         what the leader has heard and seen (its memory, not replicated)
//!        |
//!        v
//! liveness::judge     ->   Command::NodeLost             silence longer than the lease: a verdict, replicated
//!                     ->   Command::NodeFenced           EC2 says terminated: proof, replicated
//!        |
//!        v
//! planner::plan       ->   Command::Plan { based_on }    vacate (with proof), release, grant: one command, on one revision
//!        |                 + Report                      every want that is not done, the closed gate, what opens it
//!        v
//! apply::apply             the only function that changes ClusterState; rejects a plan whose ground has moved
//!        |
//!        v
//! gates::start             may the holder start it yet? (volume here, old session gone, what it needs serves)
//! ensemble::next           which change of ZooKeeper's own member list follows
//! ```
//!
//! Equal logs give equal states: all maps are ordered, time comes in as an argument.

pub mod apply;
pub mod command;
pub mod coordinators;
pub mod ensemble;
pub mod gates;
pub mod health;
pub mod ids;
pub mod invariant;
pub mod liveness;
pub mod membership;
pub mod observe;
pub mod planner;
pub mod procedure;
pub mod requests;
pub mod restore;
pub mod state;
pub mod version;

pub use apply::apply;
pub use command::{Action, Command, Event, Plan, Rejection};
pub use ids::{Generation, MemberId, NodeId, Revision, RoleName, Session, SlotId, VolumeId, Zone};
pub use observe::Observations;
pub use state::ClusterState;
