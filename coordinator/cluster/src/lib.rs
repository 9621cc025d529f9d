//! All judgement about the cluster, and nothing else: no I/O, no async, no clock, no randomness.
//!
//! One failure, from silence to healed, walks through this crate:
//!
//! ```text
//! heartbeats stop          observe::Observations         what the leader has heard and seen (its memory, not replicated)
//!        |                 self_watch                    was the leader itself running? a gap of its own is nobody's silence
//!        v
//! liveness::judge     ->   Command::NodeLost             silence longer than the lease: a verdict, replicated,
//!        |                                               unless the brake is closed there (brake) or the minute's cap is spent
//!        |            ->   Command::NodeFenced           EC2 says terminated: proof, replicated; passes brake and cap
//!        v
//! planner::plan       ->   Command::Plan { based_on }    vacate (with proof), release, grant, remove: one command, on one revision
//!        |   ledger        who has room, which zone has fewest members
//!        |   disk          whether it may go on without its disk
//!        |   identity      under which member id
//!        |   procedure     who may be asked to leave: drain, move, shrink, spread
//!        v
//! apply::apply             the only function that changes ClusterState; rejects a plan whose ground has moved
//!        |
//!        v
//! gates::start             may the holder start it yet? (volume here, old session gone, what it needs serves)
//! ensemble::next           which change of ZooKeeper's own member list follows
//! kafka::next              which partitions leave a broker that is dead for good, or one too many
//!        |
//!        v
//! healed::healed           which slots serve again: told once a generation, and the walk ends
//! ```
//!
//! The coordinators' own group is healed beside it: `coordinators` keeps its members and their ids, `membership::next` says which entry replaces a dead one.
//!
//! `round::look` asks all of them in this order and says what to propose. Everything wanted and not done is a `report::Gate`: what closes it and what opens it.
//! `invariant` is what must hold in every state and over every step; tests and the simulation check it after each command.
//!
//! A wish of an operator is a command that writes it into the state (a drain, a move, a scale, a release of the brake); what follows is again the walk above,
//! so any coordinator carries it on and taking the wish back stops it.
//!
//! Equal logs give equal states: all maps are ordered, time comes in as an argument.

pub mod alarms;
pub mod apply;
mod brake;
pub mod command;
pub mod coordinators;
pub mod ensemble;
pub mod gates;
pub mod healed;
pub mod health;
pub mod ids;
pub mod invariant;
pub mod kafka;
pub mod liveness;
pub mod membership;
pub mod mutants;
pub mod observe;
pub mod planner;
pub mod procedure;
pub mod report;
pub mod requests;
pub mod restore;
pub mod round;
pub mod self_watch;
pub mod state;
pub mod version;

pub use apply::apply;
pub use command::{Action, Command, Event, Plan, Rejection};
pub use ids::{Generation, MemberId, NodeId, Revision, RoleName, Session, SlotId, VolumeId, Zone};
pub use observe::Observations;
pub use state::ClusterState;
