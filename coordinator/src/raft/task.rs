//! The one thread that owns a node, and the handle others hold: proposals, reads, status. A thread and not a future, so that
//! fdatasync never blocks the runtime. Queued work is taken together, so one sync serves many proposals.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fail::fail_point;
use raft::eraftpb::{ConfChangeV2, Message, MessageType};
use raft::{SnapshotStatus, StateRole};
use tokio::sync::{broadcast, oneshot, watch};

use super::node::{Group, MAX_COMMAND_BYTES, Machine, Node, NodeError, Outbox, Progress};
use crate::storage::Store;

const QUEUE: usize = 4096;

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
#[derive(Debug, thiserror::Error)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// Voting members.
    pub voters: Vec<u64>,
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
enum Request {
    Propose(Vec<u8>, oneshot::Sender<Result<Applied, ProposeError>>),
    Change(ConfChangeV2, oneshot::Sender<Result<Applied, ProposeError>>),
    Group(oneshot::Sender<Group>),
    Read(oneshot::Sender<Result<u64, ReadError>>),
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
    requests: SyncSender<Request>,
    status: watch::Receiver<Status>,
    events: broadcast::Sender<LeadershipEvent>,
    reports: Reports,
    heard: Arc<Heard>,
}

/// When the leader was heard last, so that a state can say how old it may be.
struct Heard {
    since: Instant,
    /// After `since`, ms.
    last_ms: AtomicU64,
}

/// What became of snapshots: (peer, left here). Beside the queue, because a lost report would leave the peer behind for ever.
type Reports = Arc<Mutex<Vec<(u64, bool)>>>;

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
        let (reply, answer) = oneshot::channel();
        match self.requests.try_send(Request::Read(reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(ReadError::Dropped),
            Err(TrySendError::Disconnected(_)) => return Err(ReadError::Shutdown),
        }
        answer.await.unwrap_or(Err(ReadError::Shutdown))
    }

    /// The status now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
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
        if matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot) {
            self.heard.last_ms.store(self.heard.since.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
        !matches!(self.requests.try_send(Request::Step(message)), Err(TrySendError::Disconnected(_)))
    }

    /// How old this member's state may be: 0 when it leads, else the time since it last heard a leader.
    pub fn age_ms(&self) -> u64 {
        if self.status().leads() { 0 } else { (self.heard.since.elapsed().as_millis() as u64).saturating_sub(self.heard.last_ms.load(Ordering::Relaxed)) }
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

/// Starts the thread. The future ends when the thread does: `Ok` after [`RaftHandle::stop`], else why it cannot go on.
pub fn start<S, M, O>(node: Node<S, M>, outbox: O) -> (RaftHandle, impl Future<Output = Result<(), NodeError>> + Send + 'static)
where
    S: Store + Send + 'static,
    M: Machine,
    O: Outbox + Send + 'static,
{
    let (handle, mut task) = Task::new(node, outbox);
    let (ended, end) = oneshot::channel();
    let spawned = std::thread::Builder::new().name("raft".to_owned()).spawn(move || {
        // raft-rs panics on impossible states: the owner of the process decides what that means.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| task.run()));
        drop(task);
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(NodeError::Panicked(text.unwrap_or_default()))
        });
        let _ = ended.send(outcome);
    });
    (handle, async move {
        spawned.map_err(NodeError::Thread)?;
        end.await.unwrap_or_else(|_| Err(NodeError::Panicked("thread gone".to_owned())))
    })
}

type Reads = Vec<oneshot::Sender<Result<u64, ReadError>>>;

/// What the thread does, without the thread: the simulator turns it by itself.
pub struct Task<S: Store, M, O> {
    node: Node<S, M>,
    outbox: O,
    inbox: Receiver<Request>,
    status: watch::Sender<Status>,
    events: broadcast::Sender<LeadershipEvent>,
    reports: Reports,
    /// index → (term, caller)
    proposals: BTreeMap<u64, (u64, oneshot::Sender<Result<Applied, ProposeError>>)>,
    /// Reads that no round has begun for.
    waiting: Reads,
    rounds: BTreeMap<u64, Reads>,
    /// The term in which the rounds began: raft-rs forgets them with it.
    rounds_term: u64,
    /// Confirmed by a quorum, waiting to be applied.
    confirmed: Vec<(u64, Reads)>,
    round: u64,
    leading: Option<u64>,
}

impl<S: Store, M: Machine, O: Outbox> Task<S, M, O> {
    /// A task that owns `node`, and the handle to it; nothing happens before [`Task::turn`].
    pub fn new(node: Node<S, M>, outbox: O) -> (RaftHandle, Self) {
        let (requests, inbox) = sync_channel(QUEUE);
        let (status, watched) = watch::channel(Status { id: node.config().id, ..Status::default() });
        let (events, _) = broadcast::channel(64);
        let reports = Reports::default();
        let heard = Arc::new(Heard { since: Instant::now(), last_ms: AtomicU64::new(0) });
        let handle = RaftHandle { requests, status: watched, events: events.clone(), reports: reports.clone(), heard };
        let task = Self {
            node,
            outbox,
            inbox,
            status,
            events,
            reports,
            proposals: BTreeMap::new(),
            waiting: Vec::new(),
            rounds: BTreeMap::new(),
            rounds_term: 0,
            confirmed: Vec::new(),
            round: 0,
            leading: None,
        };
        (handle, task)
    }

    /// The member.
    pub fn node(&mut self) -> &mut Node<S, M> {
        &mut self.node
    }

    fn run(&mut self) -> Result<(), NodeError> {
        let tick = self.node.config().tick;
        let mut next_tick = Instant::now() + tick;
        self.drive()?;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            let first = match self.inbox.recv_timeout(wait) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.node.save(),
            };
            let due = Instant::now() >= next_tick;
            if !self.take_all(first, due)? {
                return self.node.save();
            }
            if due {
                // Ticks missed while this process stood still say nothing about the others.
                next_tick = Instant::now() + tick;
            }
        }
    }

    /// Takes all that is queued, lets a tick pass if it is time, and does the work that follows. False: it was asked to stop.
    pub fn turn(&mut self, tick: bool) -> Result<bool, NodeError> {
        self.take_all(None, tick)
    }

    fn take_all(&mut self, first: Option<Request>, tick: bool) -> Result<bool, NodeError> {
        let mut next = first.or_else(|| self.inbox.try_recv().ok());
        let mut taken = 0;
        while let Some(request) = next {
            if !self.take(request) {
                return Ok(false);
            }
            taken += 1;
            next = if taken < QUEUE { self.inbox.try_recv().ok() } else { None };
        }
        for (peer, sent) in std::mem::take(&mut *self.reports.lock().unwrap_or_else(PoisonError::into_inner)) {
            self.node.raw().report_snapshot(peer, if sent { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
        }
        if tick {
            fail_point!("task::tick");
            self.node.raw().tick();
        }
        self.begin_reads();
        self.drive()?;
        Ok(true)
    }

    fn hint(&mut self) -> Option<u64> {
        Some(self.node.raw().raft.leader_id).filter(|id| *id != 0)
    }

    fn take(&mut self, request: Request) -> bool {
        match request {
            Request::Propose(command, reply) => {
                if !self.node.leads() {
                    let hint = self.hint();
                    let _ = reply.send(Err(ProposeError::NotLeader { hint }));
                    return true;
                }
                fail_point!("task::propose");
                let proposed = self.node.propose(command);
                self.remember(proposed, reply);
            }
            Request::Change(change, reply) => {
                if !self.node.leads() {
                    let hint = self.hint();
                    let _ = reply.send(Err(ProposeError::NotLeader { hint }));
                    return true;
                }
                let proposed = self.node.propose_change(change);
                self.remember(proposed, reply);
            }
            Request::Group(reply) => drop(reply.send(self.node.group())),
            Request::Read(reply) if self.node.leads() => self.waiting.push(reply),
            Request::Read(reply) => {
                let hint = self.hint();
                let _ = reply.send(Err(ReadError::NotLeader { hint }));
            }
            Request::Step(message) => {
                fail_point!("task::step");
                if let Err(error) = self.node.raw().step(message) {
                    tracing::debug!(%error, "peer message refused");
                }
            }
            Request::Unreachable(peer) => self.node.raw().report_unreachable(peer),
            Request::Gone(peer) => {
                let raft = &mut self.node.raw().raft;
                if raft.state == StateRole::Follower && raft.leader_id == peer && peer != raft::INVALID_ID {
                    tracing::info!(leader = peer, "the leader's process has ended");
                    let term = raft.term;
                    raft.become_follower(term, raft::INVALID_ID);
                }
            }
            Request::Stand => {
                let raft = &self.node.raw().raft;
                if raft.state == StateRole::Follower
                    && raft.leader_id == raft::INVALID_ID
                    && let Err(error) = self.node.raw().campaign()
                {
                    tracing::debug!(%error, "not standing for election");
                }
            }
            Request::Transfer(peer) => self.node.raw().transfer_leader(peer),
            Request::Stop => return false,
        }
        true
    }

    fn remember(&mut self, proposed: raft::Result<(u64, u64)>, reply: oneshot::Sender<Result<Applied, ProposeError>>) {
        match proposed {
            Ok((index, term)) => drop(self.proposals.insert(index, (term, reply))),
            Err(_) => drop(reply.send(Err(ProposeError::Dropped))),
        }
    }

    /// One round serves every read that came in before it began, and only one is under way: those that come in meanwhile share the next. The answer to a
    /// round that was lost on the way is asked for again with Raft's own heartbeats.
    fn begin_reads(&mut self) {
        let term = self.node.raw().raft.term;
        if self.rounds_term != term {
            let hint = self.hint();
            for read in std::mem::take(&mut self.rounds).into_values().flatten() {
                let _ = read.send(Err(ReadError::NotLeader { hint }));
            }
            self.rounds_term = term;
        }
        if !self.waiting.is_empty() && self.rounds.is_empty() && self.node.may_read() {
            fail_point!("task::read_round");
            self.round += 1;
            self.node.raw().read_index(self.round.to_le_bytes().to_vec());
            self.rounds.insert(self.round, std::mem::take(&mut self.waiting));
        }
    }

    fn drive(&mut self) -> Result<(), NodeError> {
        let progress = self.node.drive(&mut self.outbox)?;
        self.answer(progress);
        self.begin_reads();
        self.publish();
        Ok(())
    }

    fn answer(&mut self, progress: Progress) {
        fail_point!("task::answer");
        for (index, term, reply) in progress.replies {
            if let Some((proposed, caller)) = self.proposals.remove(&index) {
                let answer = if proposed == term { Ok(Applied { index, reply }) } else { Err(ProposeError::UnknownOutcome) };
                let _ = caller.send(answer);
            }
        }
        for read in progress.reads {
            let round = read.request_ctx.as_slice().try_into().map_or(0, u64::from_le_bytes);
            if let Some(reads) = self.rounds.remove(&round) {
                self.confirmed.push((read.index, reads));
            }
        }
        let applied = self.node.applied();
        for (index, reads) in self.confirmed.extract_if(.., |read| read.0 <= applied) {
            for read in reads {
                let _ = read.send(Ok(index));
            }
        }
        if !self.node.leads() || progress.restored {
            for (_, (_, caller)) in std::mem::take(&mut self.proposals) {
                let _ = caller.send(Err(ProposeError::UnknownOutcome));
            }
            let hint = self.hint();
            let rounds = std::mem::take(&mut self.rounds).into_values().flatten();
            let confirmed = std::mem::take(&mut self.confirmed).into_iter().flat_map(|c| c.1);
            for read in rounds.chain(confirmed).chain(std::mem::take(&mut self.waiting)) {
                let _ = read.send(Err(ReadError::NotLeader { hint }));
            }
        }
    }

    fn publish(&mut self) {
        let (applied, established, voters) = (self.node.applied(), self.node.may_read(), self.node.voters());
        let raft = &self.node.raw().raft;
        let status = Status {
            id: raft.id,
            term: raft.term,
            leader: raft.leader_id,
            role: match raft.state {
                StateRole::Leader => Role::Leader,
                StateRole::Follower => Role::Follower,
                _ => Role::Candidate,
            },
            commit: raft.raft_log.committed,
            applied,
            voters,
            established: established && applied >= raft.raft_log.committed,
        };
        // Once established in a term, it stays so: applying trails committing only for a moment.
        let was = self.leading == Some(status.term) && status.role == Role::Leader;
        let status = Status { established: status.established || was, ..status };
        let leading = status.leads().then_some(status.term);
        if leading != self.leading {
            fail_point!("task::leadership");
            if let Some(term) = self.leading {
                tracing::info!(term, "leadership ended");
                let _ = self.events.send(LeadershipEvent::Ended { term });
            }
            if let Some(term) = leading {
                tracing::info!(term, index = applied, "leadership started");
                let _ = self.events.send(LeadershipEvent::Started { term, index: applied });
            }
            self.leading = leading;
        }
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}
