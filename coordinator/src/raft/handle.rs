//! What others hold of the thread that owns a node: proposals, membership changes, reads, status, and what came in from peers. Left out: what the thread
//! makes of it (`task`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::{FutureExt, future::Shared};
use raft::eraftpb::{ConfChangeV2, Message, MessageType};
use tokio::sync::{broadcast, oneshot, watch};

use super::node::{Group, MAX_COMMAND_BYTES};

/// A command that was applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its Raft index.
    pub index: u64,
    /// What the machine answered.
    pub reply: Vec<u8>,
}

/// Why a proposal has no reply. Only `UnknownOutcome` may still take effect.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Ask the leader.
    #[error("not the leader (which is member {hint:?})")]
    NotLeader {
        /// The leader's id, if known.
        hint: Option<u64>,
    },
    /// Refused before it reached the log (too much in flight): try again later.
    #[error("too many proposals in flight, try again")]
    Dropped,
    /// Fix the input.
    #[error("a command of {bytes} bytes is over the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// Leadership was lost while it was in flight: it may or may not take effect.
    #[error("leadership was lost: the outcome is unknown")]
    UnknownOutcome,
    /// This member stopped before taking it.
    #[error("this coordinator is stopping")]
    Shutdown,
}

/// Why a read could not be confirmed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// Ask the leader.
    #[error("not the leader (which is member {hint:?})")]
    NotLeader {
        /// The leader's id, if known.
        hint: Option<u64>,
    },
    /// Too much queued: try again.
    #[error("too many requests in flight, try again")]
    Dropped,
    /// This member stopped.
    #[error("this coordinator is stopping")]
    Shutdown,
}

/// What a member is at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Follows, or knows no leader.
    #[default]
    Follower,
    /// Stands for election (pre-vote included).
    Candidate,
    /// Leads.
    Leader,
}

/// A member's view of the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Own id.
    pub id: u64,
    /// Current term.
    pub term: u64,
    /// The leader's id, 0 when none is known.
    pub leader: u64,
    /// Own role.
    pub role: Role,
    /// Highest committed index known.
    pub commit: u64,
    /// Highest index applied here.
    pub applied: u64,
    /// Leads and has applied the first entry of its term: its state is current.
    pub established: bool,
}

impl Status {
    /// Whether this member leads with a current state.
    pub fn leads(&self) -> bool {
        self.role == Role::Leader && self.established
    }
}

/// This member's leadership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeadershipEvent {
    /// It leads in `term`, everything up to `index` is applied.
    Started { term: u64, index: u64 },
    /// It leads no more.
    Ended { term: u64 },
}

#[expect(clippy::large_enum_variant, reason = "nearly every request is a Step: the queue is sized for it")]
pub(super) enum Request {
    Propose(Vec<u8>, oneshot::Sender<Result<Applied, ProposeError>>),
    Change(ConfChangeV2, oneshot::Sender<Result<Applied, ProposeError>>),
    Group(oneshot::Sender<Group>),
    Read(oneshot::Sender<Confirmed>),
    Step(Message),
    Unreachable(u64),
    Gone(u64),
    Stand,
    Transfer(u64),
    Stop,
}

/// Talks to the thread that owns the node; cheap to clone.
#[derive(Clone)]
pub struct RaftHandle {
    pub(super) requests: SyncSender<Request>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) events: broadcast::Sender<LeadershipEvent>,
    pub(super) reports: Reports,
    pub(super) next_round: NextRound,
    pub(super) heard: Arc<Heard>,
}

pub(super) type Confirmed = Result<u64, ReadError>;
/// A round's answer, for all who joined it.
type Round = Shared<oneshot::Receiver<Confirmed>>;

/// The round of reads that has not begun: whoever asks meanwhile shares it, so that the thread is woken once for all of them.
#[derive(Clone, Default)]
pub(super) struct NextRound(Arc<Mutex<Option<Round>>>);

impl NextRound {
    fn lock(&self) -> MutexGuard<'_, Option<Round>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins it; the first one asks for it (`ask`).
    fn join(&self, ask: impl FnOnce(oneshot::Sender<Confirmed>) -> Result<(), ReadError>) -> Result<Round, ReadError> {
        let mut next = self.lock();
        if let Some(round) = next.as_ref().filter(|round| round.peek().is_none()) {
            return Ok(round.clone());
        }
        let (reply, answer) = oneshot::channel();
        ask(reply)?;
        Ok(next.insert(answer.shared()).clone())
    }

    /// It begins, or is refused: from here on nobody joins it, since what it confirms may be older than what they want to read. Before its answer is known.
    pub(super) fn close(&self) {
        self.lock().take();
    }
}

/// When this member last had all that a leader had committed, so that a state can say how old it may be.
pub(super) struct Heard {
    pub(super) since: Instant,
    /// Milliseconds after `since`, and one; 0: never yet.
    pub(super) last_ms: AtomicU64,
    /// Highest index that a leader said is committed.
    pub(super) committed: AtomicU64,
}

/// What became of snapshots: (peer, left here). Beside the queue, because a lost report would leave the peer behind for ever.
pub(super) type Reports = Arc<Mutex<Vec<(u64, bool)>>>;

impl RaftHandle {
    /// Appends `command` and waits until it is applied here.
    pub async fn propose(&self, command: Vec<u8>) -> Result<Applied, ProposeError> {
        if command.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge { bytes: command.len(), limit: MAX_COMMAND_BYTES });
        }
        let (reply, answer) = oneshot::channel();
        match self.requests.try_send(Request::Propose(command, reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(ProposeError::Dropped),
            Err(TrySendError::Disconnected(_)) => return Err(ProposeError::Shutdown),
        }
        answer.await.unwrap_or(Err(ProposeError::UnknownOutcome))
    }

    /// Appends a membership change and waits until it is applied here. [`ProposeError::Dropped`] while another one is under way.
    pub async fn change(&self, change: ConfChangeV2) -> Result<Applied, ProposeError> {
        let (reply, answer) = oneshot::channel();
        match self.requests.try_send(Request::Change(change, reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(ProposeError::Dropped),
            Err(TrySendError::Disconnected(_)) => return Err(ProposeError::Shutdown),
        }
        answer.await.unwrap_or(Err(ProposeError::UnknownOutcome))
    }

    /// The group as it is now; None: this member is stopping, or too busy to say.
    pub async fn group(&self) -> Option<Group> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(Request::Group(reply)).ok()?;
        answer.await.ok()
    }

    /// An index such that everything acknowledged before this call is at or below it; resolves once it is applied here.
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        let round = self.next_round.join(|reply| {
            self.requests.try_send(Request::Read(reply)).map_err(|error| match error {
                TrySendError::Full(_) => ReadError::Dropped,
                TrySendError::Disconnected(_) => ReadError::Shutdown,
            })
        })?;
        round.await.unwrap_or(Err(ReadError::Shutdown))
    }

    /// The status now.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// The status as it changes.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Changes of this member's leadership from now on.
    pub fn events(&self) -> broadcast::Receiver<LeadershipEvent> {
        self.events.subscribe()
    }

    /// Hands in a message from a peer whose envelope was checked; dropped when the queue is full, as Raft allows. False: the
    /// thread has ended, nobody takes messages any more.
    pub fn step(&self, message: Message) -> bool {
        self.hear(&message);
        !matches!(self.requests.try_send(Request::Step(message)), Err(TrySendError::Disconnected(_)))
    }

    /// The word of the leader that this member follows says how new its state is, if everything that leaders said is committed is applied here. A heartbeat
    /// says no more than what this member is known to have; appends say all. A leader of before, whose word was long on its way, says nothing about now.
    fn hear(&self, message: &Message) {
        let committed = match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat => message.commit,
            MessageType::MsgSnapshot => message.get_snapshot().get_metadata().index,
            _ => return,
        };
        // Whoever says so: what is committed stays so.
        let known = self.heard.committed.fetch_max(committed, Ordering::Relaxed).max(committed);
        let status = self.status.borrow();
        let followed = message.term == status.term && message.from == status.leader;
        if followed && known > 0 && status.applied >= known {
            self.heard.last_ms.store(self.heard.since.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        }
    }

    /// How old this member's state may be: 0 when it leads (whether it still does, a read says), else at least the time since it last heard the leader of its
    /// term while it had all that leaders were known to have committed. None: it has not, since this member started.
    ///
    /// It bounds how long this member may have been cut off or behind, by its own clock alone. How long that word was on its way, and what was committed
    /// meanwhile, is not in it: only a read says what is true now.
    pub fn age_ms(&self) -> Option<u64> {
        if self.status().leads() {
            return Some(0);
        }
        let last = self.heard.last_ms.load(Ordering::Relaxed);
        // Both are rounded down: two more is never too little.
        (last > 0).then(|| (self.heard.since.elapsed().as_millis() as u64 + 2).saturating_sub(last))
    }

    /// The last message to `peer` was not delivered.
    pub fn report_unreachable(&self, peer: u64) {
        let _ = self.requests.try_send(Request::Unreachable(peer));
    }

    /// Nobody listens where `peer` did: its process has ended. If it led, it leads no more in this member's eyes, which may then vote for another.
    pub fn report_gone(&self, peer: u64) {
        let _ = self.requests.try_send(Request::Gone(peer));
    }

    /// This member stands for election now, if it follows nobody. Votes as ever decide, and pre-votes before them.
    pub fn stand(&self) {
        let _ = self.requests.try_send(Request::Stand);
    }

    /// The snapshot for `peer` left here, or did not; looked at within a tick, whatever is queued.
    pub fn report_snapshot(&self, peer: u64, sent: bool) {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).push((peer, sent));
    }

    /// Asks the leader (this member) to hand over to `peer`.
    pub fn transfer_leadership(&self, peer: u64) {
        let _ = self.requests.try_send(Request::Transfer(peer));
    }

    /// Stops the thread in order; the future that [`start`] gave then ends.
    pub fn stop(&self) {
        let _ = self.requests.try_send(Request::Stop);
    }
}
