//! The replicated state machine: log entries in, `vp_cluster::apply`, answers out. The live state is published as a value others may read.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use vp_cluster::{ClusterState, Command, Rejection, apply, mutant};

use crate::{raft::Machine, state_hash::Reached};

/// A command as the log carries it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Proposer's wall clock, ms since the epoch, for people.
    pub unix_ms: u64,
    pub command: Command,
}

/// The cluster's state over the log.
pub struct ClusterMachine {
    state: ClusterState,
    publish: watch::Sender<Arc<ClusterState>>,
    reached: watch::Sender<Reached>,
}

#[derive(Debug, thiserror::Error)]
#[error("the stored state cannot be read: {0}")]
pub struct BadState(#[from] serde_json::Error);

impl ClusterMachine {
    /// An empty machine and the places where its state is published after each run of entries, alone and with its index.
    pub fn new() -> (Self, watch::Receiver<Arc<ClusterState>>, watch::Receiver<Reached>) {
        let (publish, state) = watch::channel(Arc::default());
        let (reached, last) = watch::channel(Reached::default());
        (Self { state: ClusterState::default(), publish, reached }, state, last)
    }

    /// The state as of the last command applied.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }
}

impl Machine for ClusterMachine {
    type Error = BadState;

    /// The reply is JSON: null, or the rejection.
    fn apply(&mut self, index: u64, entry: &[u8]) -> Vec<u8> {
        let outcome = match serde_json::from_slice::<Entry>(entry) {
            Ok(entry) => apply(&mut self.state, index, entry.unix_ms, &entry.command).map(drop),
            // A committed entry that cannot be read is the same on every member: it is refused the same everywhere.
            Err(error) => Err(Rejection::Impossible(format!("entry {index} cannot be read: {error}"))),
        };
        serde_json::to_vec(&outcome.err()).unwrap_or_default()
    }

    fn batch_done(&mut self, index: u64) {
        let state = Arc::new(self.state.clone());
        self.publish.send_replace(state.clone());
        self.reached.send_replace((index, state));
    }

    fn snapshot(&self) -> Vec<u8> {
        if mutant!("events-lost-in-snapshot") {
            return serde_json::to_vec(&ClusterState { events: std::collections::VecDeque::new(), ..self.state.clone() }).unwrap_or_default();
        }
        serde_json::to_vec(&self.state).unwrap_or_default()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), BadState> {
        self.state = serde_json::from_slice(bytes)?;
        Ok(())
    }
}
