//! The one thread that owns the node, and the handle everyone else has. Inputs are batched: one sync serves all that came in meanwhile.

use std::{
    collections::BTreeMap,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use raft::{SnapshotStatus, StateRole, eraftpb::{Message, MessageType}};
use tokio::sync::{oneshot, watch};
use tracing::{error, info};

use super::{
    MAX_COMMAND_BYTES,
    node::{Machine, Node, NodeError, Outbox},
};

/// A proposal or read that is not decided by then has an unknown outcome.
const DECIDED_WITHIN: Duration = Duration::from_secs(5);
/// Inputs taken in before a sync.
const BATCH: usize = 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    pub id: u64,
    pub term: u64,
    /// 0: none known.
    pub leader: u64,
    pub applied: u64,
    leads: bool,
}

impl RaftStatus {
    /// This member leads, and has applied everything of earlier terms.
    pub fn leads(&self) -> bool {
        self.leads
    }
}

/// An applied command.
#[derive(Debug)]
pub struct Applied {
    pub index: u64,
    pub reply: Vec<u8>,
}

/// Why a proposal or a read has no answer. What the caller does: go to the leader, try again, or look what happened.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    #[error("this coordinator does not lead")]
    NotLeader,
    #[error("not taken in: no quorum or too much under way; nothing happened, try again")]
    Dropped,
    #[error("unknown outcome: leadership changed before it was decided; look at the state before trying again")]
    UnknownOutcome,
    #[error("{0} bytes are more than the {MAX_COMMAND_BYTES} a command may have")]
    TooLarge(usize),
    #[error("the coordinator is stopping")]
    Shutdown,
}

/// What the thread takes in.
pub enum Input {
    Propose(Vec<u8>, oneshot::Sender<Result<Applied, ProposeError>>),
    Read(oneshot::Sender<Result<u64, ProposeError>>),
    Message(Message),
    Unreachable(u64),
    SnapshotSent(u64, bool),
    Stop,
}

#[derive(Clone)]
pub struct RaftHandle {
    inputs: mpsc::Sender<Input>,
    status: watch::Receiver<RaftStatus>,
}

impl RaftHandle {
    /// Proposes a command and waits until it is applied on this member.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(&self, command: Vec<u8>) -> Result<Applied, ProposeError> {
        if command.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge(command.len()));
        }
        let (answer, decided) = oneshot::channel();
        self.give(Input::Propose(command, answer))?;
        decided.await.unwrap_or(Err(ProposeError::Shutdown))
    }

    /// Confirms by a quorum, in a round that began after this call, that this member still leads, and waits until everything up to then is applied here.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn read_index(&self) -> Result<u64, ProposeError> {
        let (answer, confirmed) = oneshot::channel();
        self.give(Input::Read(answer))?;
        confirmed.await.unwrap_or(Err(ProposeError::Shutdown))
    }

    /// Hands in a peer's message, checked by the caller.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn give(&self, input: Input) -> Result<(), ProposeError> {
        self.inputs.send(input).map_err(|_| ProposeError::Shutdown)
    }

    pub fn status(&self) -> RaftStatus {
        *self.status.borrow()
    }

    pub fn watch(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }
}

/// Starts the thread. `send` is called with every message for a peer and must not block; the receiver answers when the thread has ended.
pub fn start<M: Machine>(node: Node<M>, send: impl Fn(Message) + Send + 'static) -> (RaftHandle, oneshot::Receiver<Result<(), NodeError>>) {
    let (inputs, incoming) = mpsc::channel();
    let first = RaftStatus { id: node.config.id, applied: node.applied, ..RaftStatus::default() };
    let (publish, status) = watch::channel(first);
    let (ended, end) = oneshot::channel();
    let owner = Owner { node, incoming, publish, proposals: BTreeMap::new(), reads: BTreeMap::new(), confirmed: Vec::new(), next_read: 0 };
    std::thread::Builder::new().name("raft".to_owned()).spawn(move || {
        let outcome = owner.run(&send);
        if let Err(failure) = &outcome {
            error!(error = failure as &dyn std::error::Error, "log stopped");
        }
        let _ = ended.send(outcome);
    }).map(drop).unwrap_or_else(|error| error!(%error, "no thread for the log"));
    (RaftHandle { inputs, status }, end)
}

struct Proposal {
    term: u64,
    since: Instant,
    answer: oneshot::Sender<Result<Applied, ProposeError>>,
}

struct Owner<M> {
    node: Node<M>,
    incoming: mpsc::Receiver<Input>,
    publish: watch::Sender<RaftStatus>,
    /// By log index.
    proposals: BTreeMap<u64, Proposal>,
    /// Waiting for a quorum's word, by context. Those that came in together share one round.
    reads: BTreeMap<u64, (Instant, Vec<oneshot::Sender<Result<u64, ProposeError>>>)>,
    /// Confirmed, waiting for this member to have applied that far.
    confirmed: Vec<(u64, Vec<oneshot::Sender<Result<u64, ProposeError>>>)>,
    next_read: u64,
}

impl<M: Machine> Owner<M> {
    fn run(mut self, send: &impl Fn(Message)) -> Result<(), NodeError> {
        let tick = self.node.config.tick;
        let mut next_tick = Instant::now() + tick;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            match self.incoming.recv_timeout(wait) {
                Ok(first) => {
                    if !self.take_batch(first) {
                        return self.node.keep();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.node.keep(),
            }
            if Instant::now() >= next_tick {
                self.node.raw.tick();
                // A pause (a stopped process, a starved machine) must not make up for lost ticks at once: that would depose a good leader.
                next_tick = Instant::now() + tick;
                self.expire();
            }
            let mut outbox = Outbox::default();
            self.node.step(&mut outbox)?;
            for message in outbox.messages {
                send(message);
            }
            self.answer(outbox.applied, outbox.reads);
            self.tell();
        }
    }

    /// False: asked to stop.
    fn take_batch(&mut self, first: Input) -> bool {
        let mut reads = Vec::new();
        let mut next = Some(first);
        for _ in 0..BATCH {
            let Some(input) = next else { break };
            match input {
                Input::Propose(command, answer) => self.propose(command, answer),
                Input::Read(answer) => reads.push(answer),
                // A message raft-rs refuses (an unknown peer, a local type) changes nothing.
                Input::Message(message) => drop(self.node.raw.step(message)),
                Input::Unreachable(peer) => self.node.raw.report_unreachable(peer),
                Input::SnapshotSent(peer, well) => {
                    self.node.raw.report_snapshot(peer, if well { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
                }
                Input::Stop => return false,
            }
            next = self.incoming.try_recv().ok();
        }
        if !reads.is_empty() {
            self.read(reads);
        }
        true
    }

    fn propose(&mut self, command: Vec<u8>, answer: oneshot::Sender<Result<Applied, ProposeError>>) {
        if !self.node.leads() {
            let _ = answer.send(Err(ProposeError::NotLeader));
            return;
        }
        match self.node.raw.propose(Vec::new(), command) {
            Ok(()) => {
                let index = self.node.raw.raft.raft_log.last_index();
                self.proposals.insert(index, Proposal { term: self.node.raw.raft.term, since: Instant::now(), answer });
            }
            Err(_) => drop(answer.send(Err(ProposeError::Dropped))),
        }
    }

    fn read(&mut self, answers: Vec<oneshot::Sender<Result<u64, ProposeError>>>) {
        if !self.node.leads() {
            for answer in answers {
                let _ = answer.send(Err(ProposeError::NotLeader));
            }
            return;
        }
        self.next_read += 1;
        self.node.raw.read_index(self.next_read.to_le_bytes().to_vec());
        self.reads.insert(self.next_read, (Instant::now(), answers));
    }

    fn answer(&mut self, applied: Vec<(u64, u64, Vec<u8>)>, reads: Vec<(u64, Vec<u8>)>) {
        for (index, term, reply) in applied {
            if let Some(proposal) = self.proposals.remove(&index) {
                // Another leader's entry took the place: ours was never committed.
                let outcome = if proposal.term == term { Ok(Applied { index, reply }) } else { Err(ProposeError::Dropped) };
                let _ = proposal.answer.send(outcome);
            }
        }
        for (index, context) in reads {
            let Ok(context) = context.try_into().map(u64::from_le_bytes) else { continue };
            if let Some((_, answers)) = self.reads.remove(&context) {
                self.confirmed.push((index, answers));
            }
        }
        let applied = self.node.applied;
        for (index, answers) in self.confirmed.extract_if(.., |(index, _)| *index <= applied) {
            for answer in answers {
                let _ = answer.send(Ok(index));
            }
        }
        if !self.node.leads() {
            for proposal in std::mem::take(&mut self.proposals).into_values() {
                let _ = proposal.answer.send(Err(ProposeError::UnknownOutcome));
            }
            for (_, answers) in std::mem::take(&mut self.reads).into_values() {
                for answer in answers {
                    let _ = answer.send(Err(ProposeError::NotLeader));
                }
            }
        }
    }

    fn expire(&mut self) {
        let late = |since: &Instant| since.elapsed() > DECIDED_WITHIN;
        for (_, proposal) in self.proposals.extract_if(.., |_, proposal| late(&proposal.since)) {
            let _ = proposal.answer.send(Err(ProposeError::UnknownOutcome));
        }
        for (_, (_, answers)) in self.reads.extract_if(.., |_, (since, _)| late(since)) {
            for answer in answers {
                let _ = answer.send(Err(ProposeError::Dropped));
            }
        }
    }

    fn tell(&self) {
        let raft = &self.node.raw.raft;
        // A leader's memory of the state is whole only once an entry of its own term is applied.
        let leads = raft.state == StateRole::Leader && raft.commit_to_current_term() && self.node.applied >= raft.raft_log.committed;
        let now = RaftStatus { id: raft.id, term: raft.term, leader: raft.leader_id, applied: self.node.applied, leads };
        self.publish.send_if_modified(|told| {
            if (told.leader, told.term) != (now.leader, now.term) {
                info!(leader = now.leader, term = now.term, "leader known");
            }
            // Busy with its own entries, a leader goes on leading.
            let now = RaftStatus { leads: now.leads || (told.leads && raft.state == StateRole::Leader && told.term == now.term), ..now };
            let changed = *told != now;
            *told = now;
            changed
        });
    }
}

/// A message that carries a whole snapshot: its sender wants to know if it arrived.
pub fn is_snapshot(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgSnapshot
}
