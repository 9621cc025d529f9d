//! The coordinator: Raft over a durable log, the cluster's state on top of it, and four conversations (enrolling instances, agents, peers, operators), each over
//! TLS with a certificate of the cluster, but for the first.
//!
//! ```text
//! agents ──> registry ─┐                        ┌─> desired sets ──> agents
//! EC2 ─────> world ────┼─> control ─> propose ──┤
//! ZooKeeper ─> world ──┘   (vp_cluster judges)  └─> effects: terminate, volumes, reconfig, brokers.json
//! ```

pub mod api;
pub mod bootstrap;
pub mod catalogue;
pub mod certificates;
pub mod claims;
pub mod cloud_watch;
pub mod control;
pub mod desired;
pub mod identity;
pub mod joining;
pub mod kafka_records;
pub mod leader;
pub mod machine;
pub mod membership;
pub mod peers;
pub mod raft;
pub mod region;
pub mod registry;
pub mod saved;
pub mod settings;
pub mod state_hash;
pub mod storage;
mod sweep;
pub mod trust;
pub mod turns;
pub mod world;
pub mod zookeeper;
