//! The one thread that owns a node. A thread and not a future, so that fdatasync never blocks the runtime. Queued work is taken
//! together, so one sync serves many proposals. Left out: what others hold of it (`handle`).

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use fail::fail_point;
use raft::{SnapshotStatus, StateRole};
use tokio::sync::{broadcast, oneshot, watch};

use super::handle::{Applied, Confirmed, Heard, LeadershipEvent, NextRound, ProposeError, RaftHandle, ReadError, Reports, Request, Role, Status};
use super::node::{Machine, Node, NodeError, Outbox, Progress};
use crate::{storage::Store, turns};

const QUEUE: usize = 4096;

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
        turns::short();
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

/// Least time from the beginning of a round of reads to that of the next. Each costs every member a message and its answer, and one serves all who asked
/// before it began; with ten thousand agents a round a request would be all that the leader does.
const ROUND_PACE: Duration = Duration::from_millis(4);

/// Least time from the beginning of a batch of proposals to that of the next while one is under way; what comes in meanwhile goes together (the idea of
/// Nagle, RFC 896, for a log), and shares syncs.
const BATCH_PACE: Duration = Duration::from_millis(2);

type Reads = Vec<oneshot::Sender<Confirmed>>;
type Answer = oneshot::Sender<Result<Applied, ProposeError>>;

/// What the thread does, without the thread: the simulator turns it by itself.
pub struct Task<S: Store, M, O> {
    node: Node<S, M>,
    outbox: O,
    inbox: Receiver<Request>,
    status: watch::Sender<Status>,
    events: broadcast::Sender<LeadershipEvent>,
    reports: Reports,
    /// Proposals that are not in the log yet.
    gathered: Vec<(Vec<u8>, Answer)>,
    /// See [`Task::hold_batches`].
    batches_held: bool,
    batch: u64,
    /// index → (term, caller)
    proposals: BTreeMap<u64, (u64, Answer)>,
    /// Where others join the round that has not begun.
    next_round: NextRound,
    /// Those who asked for it: one of all who joined, and who asked before one that was refused.
    waiting: Reads,
    rounds: BTreeMap<u64, Reads>,
    /// The last round is too young for another; never, where the task is turned by hand.
    rounds_held: bool,
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
        let heard = Arc::new(Heard { since: Instant::now(), last_ms: AtomicU64::new(0), committed: AtomicU64::new(0) });
        let next_round = NextRound::default();
        let handle = RaftHandle { requests, status: watched, events: events.clone(), reports: reports.clone(), next_round: next_round.clone(), heard };
        let task = Self {
            node,
            outbox,
            inbox,
            status,
            events,
            reports,
            gathered: Vec::new(),
            batches_held: false,
            batch: 0,
            proposals: BTreeMap::new(),
            next_round,
            waiting: Vec::new(),
            rounds: BTreeMap::new(),
            rounds_held: false,
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
        let (mut round_from, mut batch_from) = (Instant::now(), Instant::now());
        self.drive()?;
        loop {
            let mut until = next_tick;
            if self.reads_wait() {
                until = until.min(round_from);
            }
            if !self.gathered.is_empty() {
                until = until.min(batch_from);
            }
            let first = match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.node.save(),
            };
            let now = Instant::now();
            let (due, round, batch) = (now >= next_tick, self.round, self.batch);
            self.rounds_held = now < round_from;
            self.hold_batches(now < batch_from);
            if !self.take_all(first, due)? {
                return self.node.save();
            }
            if self.round != round {
                round_from = now + ROUND_PACE;
            }
            if self.batch != batch {
                batch_from = now + BATCH_PACE;
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

    /// Whether the last batch is too young for another beside it: the thread says so by its clock, and whoever turns the task by hand.
    pub fn hold_batches(&mut self, held: bool) {
        self.batches_held = held;
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
                self.gathered.push((command, reply));
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
                self.next_round.close();
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
                // Whoever has no vote yet would elect itself: raft-rs does not ask.
                if raft.state == StateRole::Follower
                    && raft.promotable()
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

    /// Puts what was gathered into the log, unless it is to wait for the batch under way. True: it did.
    fn begin_batch(&mut self) -> bool {
        let waits = self.batches_held && !self.proposals.is_empty() && self.gathered.len() < QUEUE;
        // The lead may be lost since they came in: then they are turned away, once the term is on disk.
        if self.gathered.is_empty() || waits || !self.node.leads() {
            return false;
        }
        self.batch += 1;
        for (command, reply) in std::mem::take(&mut self.gathered) {
            fail_point!("task::propose");
            let proposed = self.node.propose(command);
            self.remember(proposed, reply);
        }
        true
    }

    fn remember(&mut self, proposed: raft::Result<(u64, u64)>, reply: Answer) {
        match proposed {
            Ok((index, term)) => drop(self.proposals.insert(index, (term, reply))),
            Err(_) => drop(reply.send(Err(ProposeError::Dropped))),
        }
    }

    /// One round serves every read that came in before it began, and only one is under way: those that come in meanwhile share the next. The answer to a
    /// round that was lost on the way is asked for again with Raft's own heartbeats. True: a round began, and its messages wait to be sent.
    fn begin_reads(&mut self) -> bool {
        let term = self.node.raw().raft.term;
        if self.rounds_term != term {
            let hint = self.hint();
            for read in std::mem::take(&mut self.rounds).into_values().flatten() {
                let _ = read.send(Err(ReadError::NotLeader { hint }));
            }
            self.rounds_term = term;
        }
        let begins = self.reads_wait() && !self.rounds_held;
        if begins {
            fail_point!("task::read_round");
            self.round += 1;
            let reads = self.close_round();
            self.node.raw().read_index(self.round.to_le_bytes().to_vec());
            self.rounds.insert(self.round, reads);
        }
        begins
    }

    /// Those who wait for the round that has not begun; whoever asks from here on waits for the one after it.
    fn close_round(&mut self) -> Reads {
        self.next_round.close();
        std::mem::take(&mut self.waiting)
    }

    /// Whether a round would begin if it is time.
    fn reads_wait(&self) -> bool {
        !self.waiting.is_empty() && self.rounds.is_empty() && self.node.may_read()
    }

    fn drive(&mut self) -> Result<(), NodeError> {
        self.begin_reads();
        self.begin_batch();
        loop {
            let progress = self.node.drive(&mut self.outbox)?;
            self.answer(progress);
            // The end of a round or batch may be the beginning of the next, which must not wait for something else to happen.
            if !(self.begin_reads() | self.begin_batch()) {
                break;
            }
        }
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
            // What is not in the log has no effect.
            for (_, caller) in std::mem::take(&mut self.gathered) {
                let _ = caller.send(Err(ProposeError::NotLeader { hint }));
            }
            let rounds = std::mem::take(&mut self.rounds).into_values().flatten();
            let confirmed = std::mem::take(&mut self.confirmed).into_iter().flat_map(|c| c.1);
            let waiting = self.close_round();
            for read in rounds.chain(confirmed).chain(waiting) {
                let _ = read.send(Err(ReadError::NotLeader { hint }));
            }
        }
    }

    fn publish(&mut self) {
        let (applied, established) = (self.node.applied(), self.node.may_read());
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
