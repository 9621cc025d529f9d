//! The coordinator: Raft over a durable log, the cluster's state on top of it, and three conversations (agents, peers, operators).
//!
//! ```text
//! agents ──> registry ─┐                        ┌─> desired sets ──> agents
//! EC2 ─────> world ────┼─> control ─> propose ──┤
//! ZooKeeper ─> world ──┘   (vp_cluster judges)  └─> effects: terminate, volumes, reconfig, brokers.json
//! ```

pub mod api;
pub mod bootstrap;
pub mod catalogue;
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
pub mod world;
pub mod zookeeper;
