//! The handle every conversation shares: the log, the live state, the leader's memory, and how to propose.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use fail::fail_point;
use tokio::sync::{Notify, watch};
use tracing::warn;
use vp_cluster::{ClusterState, Command, Observations, Rejection, Zone, observe::CoordinatorSeen};

use crate::{
    machine::Entry,
    raft::{ProposeError, RaftHandle},
    registry::{Clock, Registry},
    settings::Settings,
    world::World,
};

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Went through the log and changed nothing.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error(transparent)]
    Log(#[from] ProposeError),
    #[error("the answer of the log cannot be read: {0}")]
    Reply(serde_json::Error),
}

/// Nodes of a group that boots together join within a second of each other; first grants wait this long for the next one, ms.
const JOINING_MS: u64 = 2000;

/// This machine's wall clock.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

pub struct Leader {
    pub settings: Settings,
    pub raft: RaftHandle,
    pub state: watch::Receiver<Arc<ClusterState>>,
    pub registry: Registry,
    pub world: World,
    /// The wall clock, ms since the epoch: written beside commands for people, read by no decision.
    pub unix_ms: Clock,
    /// Wakes the control loop: something it acts on may have changed.
    pub wake: Notify,
}

impl Leader {
    /// The state as of the last applied entry.
    pub fn state(&self) -> Arc<ClusterState> {
        self.state.borrow().clone()
    }

    pub fn leads(&self) -> bool {
        self.raft.status().leads()
    }

    /// Everything the leader has heard and seen, on one clock reading.
    pub fn observations(&self) -> Observations {
        let mut obs = Observations { lease_ms: self.settings.user_data.lease_ms, ..Observations::default() };
        self.world.observe(&mut obs);
        self.registry.observe(&mut obs);
        let seen = self.world.lock();
        obs.joining = seen.nodes == 0 || obs.now_ms.saturating_sub(seen.joined_ms) < JOINING_MS;
        // Not asked yet: they are taken to live, so that no zone counts as lost.
        let answers = |id: u64| id == self.settings.me.id || seen.answering.as_ref().is_none_or(|answering| answering.contains(&id));
        obs.coordinators =
            self.settings.user_data.coordinators.iter().map(|peer| CoordinatorSeen { zone: Zone(peer.zone.clone()), answers: answers(peer.id) }).collect();
        drop(seen);
        obs
    }

    /// Proposes one command and waits until it is applied here. Returns the index it was applied at.
    ///
    /// # Errors
    /// Rejected by `apply`, not leader, or outcome unknown.
    pub async fn propose(&self, command: Command) -> Result<u64, CommandError> {
        let bytes = serde_json::to_vec(&Entry { unix_ms: (self.unix_ms)(), command }).map_err(CommandError::Reply)?;
        fail_point!("leader::propose");
        let applied = self.raft.propose(bytes).await?;
        fail_point!("leader::proposed");
        let rejection: Option<Rejection> = serde_json::from_slice(&applied.reply).map_err(CommandError::Reply)?;
        match rejection {
            None => Ok(applied.index),
            Some(rejection) => Err(rejection.into()),
        }
    }

    /// Records something people should know and that changes nothing. An event that could not be recorded is only logged: nothing waits for it.
    pub async fn note(&self, kind: &str, subject: impl ToString, detail: String) {
        let note = Command::Note { kind: kind.to_owned(), subject: subject.to_string(), detail };
        if let Err(error) = self.propose(note).await {
            warn!(kind, error = &error as &dyn std::error::Error, "event not recorded");
        }
    }
}
