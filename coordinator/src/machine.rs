//! The replicated state machine: log entries in, `vp_cluster::apply`, answers out. The live state is published as a value others may read.

use std::{collections::BTreeSet, sync::Arc};

use raft::eraftpb::ConfState;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use vp_cluster::{
    ClusterState, Command, MemberId, Rejection, coordinators, mutant,
    requests::{self, Answer},
    version,
};

use crate::{
    raft::Machine,
    state_hash::{Marks, Reached},
};

/// A command as the log carries it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Proposer's wall clock, ms since the epoch, for people.
    pub unix_ms: u64,
    /// The client's id of this request: however often it is asked, it is applied once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    pub command: Command,
}

/// The cluster's state over the log.
pub struct ClusterMachine {
    state: ClusterState,
    publish: watch::Sender<Arc<ClusterState>>,
    reached: watch::Sender<Reached>,
    marks: Marks,
}

#[derive(Debug, thiserror::Error)]
pub enum BadState {
    #[error("the stored state cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the state follows the rules of version {found}, this program knows them up to {known}: start the newer program")]
    Newer { found: u32, known: u32 },
}

impl ClusterMachine {
    /// An empty machine; see [`ClusterMachine::founded`].
    pub fn new() -> (Self, watch::Receiver<Arc<ClusterState>>, watch::Receiver<Reached>) {
        Self::founded(ClusterState::default())
    }

    /// A machine at the state that a new group begins with, and the places where its state is published after each run of entries, alone and with its index.
    pub fn founded(first: ClusterState) -> (Self, watch::Receiver<Arc<ClusterState>>, watch::Receiver<Reached>) {
        let (publish, state) = watch::channel(Arc::new(first.clone()));
        let (reached, last) = watch::channel(Reached::default());
        (Self { state: first, publish, reached, marks: Marks::default() }, state, last)
    }

    /// The state as of the last command applied.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }
}

impl Machine for ClusterMachine {
    type Error = BadState;

    /// The reply is JSON: an [`Answer`].
    fn apply(&mut self, index: u64, entry: &[u8]) -> Vec<u8> {
        self.marks.pass(index.saturating_sub(1), &self.state);
        let answer = match serde_json::from_slice::<Entry>(entry) {
            Ok(entry) => requests::apply_once(&mut self.state, index, entry.unix_ms, entry.request.as_deref(), &entry.command),
            // A committed entry that this program cannot read is refused, as the newer program refuses it until the rules are raised.
            Err(error) => {
                requests::skip(&mut self.state, index);
                Answer { revision: self.state.revision, rejection: Some(Rejection::Impossible(format!("entry {index} cannot be read: {error}"))) }
            }
        };
        if let Err(error) = known(&self.state) {
            panic!("{error}");
        }
        encode(&answer)
    }

    fn configured(&mut self, index: u64, conf: &ConfState) {
        self.marks.pass(index.saturating_sub(1), &self.state);
        let ids = |lists: [&[u64]; 2]| lists.concat().into_iter().map(MemberId).collect::<BTreeSet<MemberId>>();
        let (voters, learners) = (ids([&conf.voters, &conf.voters_outgoing]), ids([&conf.learners, &conf.learners_next]));
        coordinators::configured(&mut self.state, index, &voters, &learners);
    }

    fn batch_done(&mut self, index: u64) {
        self.marks.pass(index, &self.state);
        let state = Arc::new(self.state.clone());
        self.publish.send_replace(state.clone());
        self.reached.send_replace((index, state, self.marks.clone()));
    }

    fn snapshot(&self) -> Vec<u8> {
        if mutant!("events-lost-in-snapshot") {
            return encode(&ClusterState { events: std::collections::VecDeque::new(), ..self.state.clone() });
        }
        encode(&self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), BadState> {
        let state = serde_json::from_slice(bytes)?;
        known(&state)?;
        self.state = state;
        // What this member made itself up to here says nothing of a state that came from elsewhere.
        self.marks = Marks::default();
        Ok(())
    }
}

/// A state beyond the rules of this program is not for it to change.
fn known(state: &ClusterState) -> Result<(), BadState> {
    if state.apply_version > version::NEWEST {
        return Err(BadState::Newer { found: state.apply_version, known: version::NEWEST });
    }
    Ok(())
}

/// Encodes what is made of plain values only. If that ever failed, an empty snapshot would take the place of the cluster's state: the
/// member stops instead (the log's task turns a panic into its end).
pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| panic!("the state cannot be encoded: {error}"))
}
