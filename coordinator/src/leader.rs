//! The handle every conversation shares: the log, the live state, the leader's memory, and how to propose.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use fail::fail_point;
use tokio::sync::{Notify, watch};
use tracing::warn;
use vp_cluster::{ClusterState, Command, MemberId, Observations, Rejection, observe::CoordinatorSeen, requests::Answer};

use crate::{
    certificates::Certificates,
    machine::Entry,
    raft::{ProposeError, RaftHandle, ReadError},
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

/// Longest text of an event, characters: parts of it may come from whoever knocks.
const LONGEST_TEXT: usize = 400;

fn cut(text: String) -> String {
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

pub struct Leader {
    pub settings: Settings,
    /// Name and incarnation of the cluster, as peers say it to each other.
    pub cluster_id: String,
    /// Which member of the coordinators' group this is.
    pub member: MemberId,
    /// Which certificate of an instance is the newest.
    pub certificates: Certificates,
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
        let state = self.state();
        self.registry.observe(&state, &mut obs);
        let seen = self.world.lock();
        obs.joining = seen.nodes == 0 || obs.now_ms.saturating_sub(seen.joined_ms) < JOINING_MS;
        let group = &state.coordinators;
        // Not asked yet: they are taken to live, so that no zone counts as lost.
        let answers = |slot: u32| {
            let member = group.of_slot(slot).map(|(id, _)| id);
            member == Some(self.member) || seen.answering.as_ref().is_none_or(|answering| member.is_some_and(|member| answering.contains(&member)))
        };
        obs.coordinators = group.slots.iter().map(|(number, slot)| CoordinatorSeen { zone: slot.zone.clone(), answers: answers(*number) }).collect();
        drop(seen);
        obs
    }

    /// A state at least as new as everything that was acknowledged before the call.
    ///
    /// # Errors
    /// Not leader, too busy, stopping: nothing was read.
    pub async fn current(&self) -> Result<Arc<ClusterState>, ReadError> {
        self.raft.read_index().await?;
        Ok(self.state())
    }

    /// Proposes one command and waits until it is applied here. Returns the index it was applied at.
    ///
    /// # Errors
    /// Rejected by `apply`, not leader, or outcome unknown.
    pub async fn propose(&self, command: Command) -> Result<u64, CommandError> {
        self.ask(None, command).await
    }

    /// As [`Leader::propose`], for a client that may ask again under the same id: applied once, and answered alike each time.
    ///
    /// # Errors
    /// As [`Leader::propose`].
    pub async fn ask(&self, request: Option<String>, command: Command) -> Result<u64, CommandError> {
        command.check_rules(self.state().apply_version)?;
        let bytes = serde_json::to_vec(&Entry { unix_ms: (self.unix_ms)(), request, command }).map_err(CommandError::Reply)?;
        fail_point!("leader::propose");
        let applied = self.raft.propose(bytes).await?;
        fail_point!("leader::proposed");
        let answer: Answer = serde_json::from_slice(&applied.reply).map_err(CommandError::Reply)?;
        match answer.rejection {
            None => Ok(answer.revision.0),
            Some(rejection) => Err(rejection.into()),
        }
    }

    /// Records something people should know and that changes nothing. An event that could not be recorded is only logged: nothing waits for it.
    pub async fn note(&self, kind: &str, subject: impl ToString, detail: String) {
        let note = Command::Note { kind: kind.to_owned(), subject: cut(subject.to_string()), detail: cut(detail) };
        if let Err(error) = self.propose(note).await {
            warn!(kind, error = &error as &dyn std::error::Error, "event not recorded");
        }
    }
}
