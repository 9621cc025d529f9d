//! One Raft member as a plain struct over a store, a machine and an outbox: no thread, no clock, no network, so that the
//! simulator drives the very same code. Left out: proposals' callers and reads (`task`), transport (`peers`).

use std::collections::BTreeMap;
use std::time::Duration;

use fail::fail_point;
use prost_raft::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata};
use raft::{ProgressState, RawNode, ReadState, SnapshotStatus, StateRole};
use vp_cluster::mutant;

use crate::storage::{self, StorageError, Store};

/// Largest snapshot, bytes: it travels in one peer message (`vp_proto::MAX_MESSAGE_BYTES` less room for the envelope).
pub const MAX_SNAPSHOT_BYTES: usize = vp_proto::MAX_MESSAGE_BYTES - 64 * 1024;
/// Largest command, bytes: an append message carries at least one entry beside up to [`MAX_COMMAND_BYTES`] of others.
pub const MAX_COMMAND_BYTES: usize = 1024 * 1024;

/// What the log is for: deterministic, equal commands at equal indexes give equal states. It publishes its state itself
/// (in [`Machine::batch_done`]) to whoever reads it.
pub trait Machine: Send + 'static {
    /// Why bytes are no snapshot of this machine.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Applies the committed command at `index` and returns the proposer's reply. Never fails: a refusal is a reply.
    /// Indexes grow but have gaps (empty and membership entries).
    fn apply(&mut self, index: u64, command: &[u8]) -> Vec<u8>;
    /// The whole state.
    fn snapshot(&self) -> Vec<u8>;
    /// Replaces the whole state. Must not change anything when it fails.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// The membership entry at `index` was applied and made the group `conf`: part of the machine's state, like a command.
    fn configured(&mut self, index: u64, conf: &ConfState) {
        let _ = (index, conf);
    }
    /// A run of commands ending at `index` was applied (or a snapshot restored): a good moment to publish.
    fn batch_done(&mut self, index: u64) {
        let _ = index;
    }
}

/// Where messages to other members go. Never blocks; may drop, as Raft allows.
pub trait Outbox {
    /// Sends `message` to member `message.to`. False: it was dropped at once (Raft wants to know that of a snapshot only).
    fn send(&mut self, message: Message) -> bool;
}

/// Settings of a member.
#[derive(Clone, Debug)]
pub struct Config {
    /// The member's id, not 0.
    pub id: u64,
    /// Voting members of a new cluster; used only when the disk is empty. Empty: join as somebody added later.
    pub voters: Vec<u64>,
    /// Length of a tick.
    pub tick: Duration,
    /// Ticks without a leader until an election (randomized up to twice this).
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Applied entries between snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, for members a little behind.
    pub keep_entries: u64,
    /// Applied entries between writes of the applied-state cache.
    pub cache_every: u64,
}

impl Default for Config {
    /// Tick 100 ms, election 10 ticks, heartbeat 2, a snapshot every 10,000 entries keeping 1,000. Set `id` and `voters`.
    fn default() -> Self {
        Config {
            id: 0,
            voters: Vec::new(),
            tick: Duration::from_millis(100),
            election_ticks: 10,
            heartbeat_ticks: 2,
            snapshot_every: 10_000,
            keep_entries: 1_000,
            cache_every: 1_000,
        }
    }
}

impl Config {
    /// As by default, with elections that a lease of `lease_ms` covers: the longest takes half of it at most, beside the quarter until the next heartbeat.
    pub fn for_lease(lease_ms: u64) -> Self {
        let default = Self::default();
        let in_half_a_lease = Duration::from_millis(lease_ms) / (2 * 2 * default.election_ticks as u32);
        let tick = if mutant!("ticks-ignore-the-lease") { default.tick } else { default.tick.min(in_half_a_lease) };
        Self { tick, ..default }
    }

    /// The longest time without a leader until somebody stands for election.
    pub fn longest_election(&self) -> Duration {
        self.tick * 2 * self.election_ticks as u32
    }
}

/// Why a member cannot go on. It stops serving; what was acknowledged is on its disk.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The disk failed or is not ours.
    #[error("storage")]
    Storage(#[from] StorageError),
    /// raft-rs refused to go on.
    #[error("raft")]
    Raft(#[from] raft::Error),
    /// The machine does not know its own snapshot.
    #[error("machine")]
    Restore(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A committed membership change does not decode.
    #[error("membership change at index {index} does not decode")]
    Membership {
        /// Its log index.
        index: u64,
        #[source]
        source: prost_raft::DecodeError,
    },
    /// The operating system gave no thread.
    #[error("cannot start the raft thread")]
    Thread(#[source] std::io::Error),
    /// The thread that owns the node panicked (raft-rs panics on an impossible state).
    #[error("the raft thread panicked: {0}")]
    Panicked(String),
}

/// What one [`Node::drive`] brought to light.
#[derive(Debug, Default)]
pub struct Progress {
    /// Replies of applied commands: (index, term, reply), in order.
    pub replies: Vec<(u64, u64, Vec<u8>)>,
    /// Read rounds that a quorum confirmed.
    pub reads: Vec<ReadState>,
    /// A snapshot replaced the state: proposals below its index have an unknown outcome.
    pub restored: bool,
}

/// The group's configuration and the leader's view of the other members.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    pub conf: ConfState,
    /// Empty unless this member leads.
    pub peers: BTreeMap<u64, Peer>,
}

/// How another member is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// It has answered since the last check of the quorum (once an election timeout).
    pub recent_active: bool,
    /// Entries it is not known to have.
    pub behind: u64,
}

/// One member.
pub struct Node<S: Store, M> {
    raw: RawNode<S>,
    machine: M,
    options: Config,
    applied: u64,
    snapshot_index: u64,
    /// The group has changed: a new member takes no snapshot that does not name it.
    snapshot_due: bool,
    cached: u64,
}

impl<S: Store, M: Machine> Node<S, M> {
    /// Opens a member on `store`, restoring `machine` to the last applied state the store can vouch for; the rest of the
    /// committed log is applied by the first [`Node::drive`].
    pub fn new(options: Config, mut store: S, mut machine: M) -> Result<Self, NodeError> {
        let mut applied = 0;
        if !options.voters.is_empty() {
            let conf = ConfState { voters: options.voters.clone(), ..Default::default() };
            if store.bootstrap(&conf, &machine.snapshot())? {
                tracing::info!(voters = ?options.voters, "log bootstrapped");
            }
        }
        if let Some(state) = store.load_applied()? {
            machine.restore(&state.state).map_err(|error| NodeError::Restore(Box::new(error)))?;
            applied = if mutant!("applied-twice-after-restart") { state.index.saturating_sub(1) } else { state.index };
            machine.batch_done(applied);
        }
        let config = raft::Config {
            id: options.id,
            election_tick: options.election_ticks,
            heartbeat_tick: options.heartbeat_ticks,
            applied,
            max_size_per_msg: MAX_COMMAND_BYTES as u64,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: 64 * 1024 * 1024,
            max_committed_size_per_ready: 8 * 1024 * 1024,
            ..raft::Config::default()
        };
        config.validate()?;
        let raw = RawNode::new(&config, store, &super::logger::logger())?;
        let snapshot_index = raw.store().first_index()?.saturating_sub(1);
        Ok(Node { raw, machine, options, applied, snapshot_index, snapshot_due: false, cached: applied })
    }

    /// The machine, for reading.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The settings it was opened with.
    pub fn config(&self) -> &Config {
        &self.options
    }

    /// The raft-rs node, for stepping messages, ticks, reports and reads; call [`Node::drive`] afterwards.
    pub fn raw(&mut self) -> &mut RawNode<S> {
        &mut self.raw
    }

    /// Index of the last applied entry.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether this member leads and has committed an entry of its own term: only then may it serve reads.
    pub fn may_read(&self) -> bool {
        self.leads() && self.raw.raft.commit_to_current_term()
    }

    /// Appends a command on the leader; the (index, term) it will have if it is ever committed.
    pub fn propose(&mut self, command: Vec<u8>) -> raft::Result<(u64, u64)> {
        self.raw.propose(Vec::new(), command)?;
        Ok((self.raw.raft.raft_log.last_index(), self.raw.raft.term))
    }

    /// Appends a membership change on the leader; the (index, term) it will have if it is ever committed. Dropped while another one is
    /// not applied yet, or when it does not fit the configuration (raft-rs would replace it by an empty entry without a word).
    pub fn propose_change(&mut self, change: ConfChangeV2) -> raft::Result<(u64, u64)> {
        let joint = !self.conf_state().voters_outgoing.is_empty();
        if self.raw.raft.has_pending_conf() || joint != change.changes.is_empty() {
            return Err(raft::Error::ProposalDropped);
        }
        self.raw.propose_conf_change(Vec::new(), change)?;
        Ok((self.raw.raft.raft_log.last_index(), self.raw.raft.term))
    }

    /// The group as this member knows it and, when it leads, how far each other member is.
    pub fn group(&self) -> Group {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let peers = raft.prs().iter().filter(|(id, _)| **id != raft.id).map(|(id, progress)| {
            let behind = if progress.state == ProgressState::Snapshot { last } else { last.saturating_sub(progress.matched) };
            (*id, Peer { recent_active: progress.recent_active, behind })
        });
        Group { conf: self.conf_state(), peers: if self.leads() { peers.collect() } else { BTreeMap::new() } }
    }

    /// Does all pending work in raft-rs's documented order: (a leader's messages), snapshot, entries and hard state with one
    /// sync, messages that promise what was persisted, apply. After an error the node must not be used again.
    pub fn drive(&mut self, outbox: &mut impl Outbox) -> Result<Progress, NodeError> {
        let mut progress = Progress::default();
        while self.raw.has_ready() {
            fail_point!("node::ready");
            let mut ready = self.raw.ready();
            for message in ready.take_messages() {
                self.dispatch(outbox, message);
            }
            fail_point!("node::sent");
            if !ready.snapshot().is_empty() {
                let snapshot = ready.snapshot().clone();
                self.install(&snapshot)?;
                progress.restored = true;
            }
            progress.reads.append(&mut ready.take_read_states());
            fail_point!("node::persist");
            let hard_state = ready.hs().filter(|_| !mutant!("hard-state-forgotten"));
            self.raw.mut_store().append(ready.entries(), hard_state, ready.must_sync() && !mutant!("no-sync-before-send"))?;
            if mutant!("commit-before-quorum") && self.leads() {
                let last = self.raw.raft.raft_log.last_index();
                self.raw.raft.raft_log.commit_to(last);
            }
            fail_point!("node::persisted");
            for message in ready.take_persisted_messages() {
                self.dispatch(outbox, message);
            }
            fail_point!("node::promised");
            let committed = ready.take_committed_entries();
            self.apply(committed, &mut progress)?;
            fail_point!("node::advance");
            let mut light = self.raw.advance(ready);
            for message in light.take_messages() {
                self.dispatch(outbox, message);
            }
            let committed = light.take_committed_entries();
            self.apply(committed, &mut progress)?;
            fail_point!("node::applied");
            self.raw.advance_apply();
            self.housekeeping()?;
        }
        Ok(progress)
    }

    /// A follower gets nothing else while raft-rs believes a snapshot to be on its way: one that was dropped must be told.
    fn dispatch(&mut self, outbox: &mut impl Outbox, message: Message) {
        let (to, snapshot) = (message.to, message.get_msg_type() == MessageType::MsgSnapshot);
        if !outbox.send(message) && snapshot {
            tracing::warn!(peer = to, "snapshot dropped, the peer is probed again");
            self.raw.report_snapshot(to, SnapshotStatus::Failure);
        }
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), NodeError> {
        fail_point!("node::install");
        self.machine.restore(&snapshot.data).map_err(|error| NodeError::Restore(Box::new(error)))?;
        self.raw.mut_store().install(snapshot)?;
        let index = snapshot.get_metadata().index;
        self.applied = index;
        self.snapshot_index = index;
        self.cached = index;
        self.machine.batch_done(index);
        tracing::info!(index, "snapshot installed");
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>, progress: &mut Progress) -> Result<(), NodeError> {
        let Some(last) = entries.last().map(|entry| entry.index) else {
            return Ok(());
        };
        for entry in entries {
            let malformed = |source| NodeError::Membership { index: entry.index, source };
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {} // a new leader's no-op
                EntryType::EntryNormal => {
                    let reply = self.machine.apply(entry.index, &entry.data);
                    progress.replies.push((entry.index, entry.term, reply));
                }
                EntryType::EntryConfChange => {
                    let change = ConfChange::decode(entry.data.as_slice()).map_err(malformed)?;
                    let conf = self.raw.apply_conf_change(&change)?;
                    self.configured(entry.index, &conf);
                    progress.replies.push((entry.index, entry.term, Vec::new()));
                }
                EntryType::EntryConfChangeV2 => {
                    let change = ConfChangeV2::decode(entry.data.as_slice()).map_err(malformed)?;
                    let conf = self.raw.apply_conf_change(&change)?;
                    self.configured(entry.index, &conf);
                    progress.replies.push((entry.index, entry.term, Vec::new()));
                }
            }
        }
        self.applied = last;
        self.machine.batch_done(last);
        Ok(())
    }

    /// The membership entry at `index` made the group `conf`. A leader that is not in it steps down (Ongaro 2014, §4.2.2): raft-rs would lead on,
    /// and panic at its next commit for want of a progress of its own.
    fn configured(&mut self, index: u64, conf: &ConfState) {
        self.machine.configured(index, conf);
        self.snapshot_due = true;
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
            tracing::info!(index, "this member led the group that removes it: it steps down");
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
    }

    /// Writes the applied state to the cache; call it when stopping in order.
    pub fn save(&mut self) -> Result<(), NodeError> {
        if self.applied > self.cached {
            let applied = self.state()?;
            self.raw.mut_store().save_applied(&applied)?;
            self.cached = self.applied;
        }
        Ok(())
    }

    fn state(&self) -> Result<storage::Applied, NodeError> {
        Ok(storage::Applied { index: self.applied, term: self.raw.store().term(self.applied)?, conf: self.conf_state(), state: self.machine.snapshot() })
    }

    fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    fn housekeeping(&mut self) -> Result<(), NodeError> {
        if self.snapshot_due || self.applied >= self.snapshot_index + self.options.snapshot_every {
            // Whatever becomes of it, the next attempt is a full interval away.
            self.snapshot_index = self.applied;
            fail_point!("node::snapshot");
            self.snapshot_due = false;
            let applied = self.state()?;
            if applied.state.len() > MAX_SNAPSHOT_BYTES {
                tracing::error!(bytes = applied.state.len(), limit = MAX_SNAPSHOT_BYTES, "state too large for a snapshot, log not compacted");
                return Ok(());
            }
            let mut snapshot = Snapshot { data: applied.state, ..Default::default() };
            snapshot.set_metadata(SnapshotMetadata {
                conf_state: Some(applied.conf),
                index: applied.index,
                term: if mutant!("snapshot-without-term") { 0 } else { applied.term },
            });
            let compact_to = applied.index.saturating_sub(self.options.keep_entries);
            self.raw.mut_store().save_snapshot(&snapshot, compact_to)?;
            self.cached = self.applied;
        } else if self.applied >= self.cached + self.options.cache_every {
            self.save()?;
        }
        Ok(())
    }
}
