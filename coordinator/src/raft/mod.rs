//! The replicated log as a library: `node` decides nothing by itself and drives raft-rs in its documented order, `task` gives
//! it a thread and a clock, `handle` is what others hold. Transport is `peers`, the disk is `storage`, the meaning of commands is a [`Machine`].
//!
//! ```text
//! propose ─┐                    ┌─ outbox ──> peers
//! peers ───┼─> task ─> node ────┼─ store  ──> storage (one sync a round)
//! ticks ───┘                    └─ apply  ──> machine ──> replies
//! ```

pub mod handle;
pub mod logger;
pub mod node;
pub mod task;

pub use handle::{Applied, LeadershipEvent, ProposeError, RaftHandle, ReadError, Role, Status};
pub use node::{Config, Group, Machine, Node, NodeError, Outbox};
pub use task::{Task, start};

use std::path::Path;

use crate::storage::{DiskStore, Identity, StoreOptions};

/// Opens the member whose disk is `directory`, bootstrapping one that holds nothing yet with `config.voters`.
pub fn open<M: Machine>(directory: &Path, identity: &Identity, options: StoreOptions, config: Config, machine: M) -> Result<Node<DiskStore, M>, NodeError> {
    Node::new(config, DiskStore::open(directory, identity, options)?, machine)
}
