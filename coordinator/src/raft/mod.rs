//! The replicated log as a library: `node` decides nothing by itself and drives raft-rs in its documented order, `task` gives
//! it a thread, a clock and a handle. Transport is `peers`, the disk is `storage`, the meaning of commands is a [`Machine`].
//!
//! ```text
//! propose ─┐                    ┌─ outbox ──> peers
//! peers ───┼─> task ─> node ────┼─ store  ──> storage (one sync a round)
//! ticks ───┘                    └─ apply  ──> machine ──> replies
//! ```

pub mod logger;
pub mod node;
pub mod task;

pub use node::{Config, Group, Machine, Node, NodeError, Outbox};
pub use task::{Applied, LeadershipEvent, ProposeError, RaftHandle, ReadError, Role, Status, Task, start};

use std::path::Path;

use crate::storage::{DiskStore, Identity, StoreOptions};

/// Opens the member whose disk is `directory`, bootstrapping one that holds nothing yet with `config.voters`.
pub fn open<M: Machine>(directory: &Path, identity: &Identity, options: StoreOptions, config: Config, machine: M) -> Result<Node<DiskStore, M>, NodeError> {
    Node::new(config, DiskStore::open(directory, identity, options)?, machine)
}
