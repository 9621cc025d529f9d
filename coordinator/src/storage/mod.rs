//! What a coordinator keeps on its disk: the Raft log (must never lose an acknowledged byte), the newest snapshot, and the
//! applied state (a cache: it can always be rebuilt from snapshot + log).
//!
//! ```text
//! Node --append--> log.rs      segments, one checksummed frame a Ready, fdatasync
//!      --install-> snapshot.rs one file, replaced by rename
//!      --applied-> applied.rs  sled; lost or damaged = rebuilt
//! ```
//!
//! Left out: which entries mean what (`raft::Machine`), and when to compact (`raft::node`).

pub mod applied;
pub mod disk;
mod file;
pub mod frame;
pub mod log;
mod mark;
pub mod snapshot;
pub mod whose;

use std::path::PathBuf;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};

pub use applied::Applied;
pub use disk::{DiskStore, StoreOptions};

/// Whose disk this is. Both are fixed for a disk's life: an address may be reused, an id never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name or id.
    pub cluster: String,
    /// The member's Raft id, not 0.
    pub member: u64,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "member {} of cluster {:?}", self.member, self.cluster)
    }
}

/// Why the disk cannot be used. After any of these from a write the store refuses all further writes: what an interrupted
/// sync left behind is unknown until the disk is opened again.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No room left; nothing that was acknowledged is affected. Give up: free space, then start again.
    #[error("no space left on the disk that holds {path}")]
    Full {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Reading or writing failed.
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Bytes that were synced have changed or are missing. The member must not vote with this disk.
    #[error("{path} is damaged at byte {offset}: {reason}; this disk must not be used, replace the member")]
    Damaged { path: PathBuf, offset: u64, reason: String },
    /// The disk belongs to somebody else.
    #[error("the disk at {path} belongs to {found}, not to {wanted}")]
    WrongIdentity { path: PathBuf, found: Identity, wanted: Identity },
    /// The disk was in use and has lost its log: a vote given before could be given twice.
    #[error("the disk at {path} was in use ({evidence}) but its log is gone; it must not vote under this id")]
    Emptied { path: PathBuf, evidence: &'static str },
    /// The log ends before what was already applied or put into a snapshot.
    #[error("the log at {path} ends at index {last} but {what} is at index {index}: entries are missing")]
    LogBehind { path: PathBuf, last: u64, what: &'static str, index: u64 },
    /// Another process has the disk open.
    #[error("the disk at {path} is in use by another process")]
    InUse { path: PathBuf },
    /// An earlier write failed; open the disk again before writing.
    #[error("an earlier write to {path} failed; the log takes no more until it is opened again")]
    Poisoned { path: PathBuf },
    /// The cache of applied state failed while running.
    #[error("the applied-state cache failed")]
    Cache(#[from] sled::Error),
}

impl StorageError {
    /// Wraps an I/O error, telling a full disk (or file-size limit or quota) from the rest.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let path = path.into();
        match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => StorageError::Full { path, source },
            _ => StorageError::Io { action, path, source },
        }
    }
}

/// The writing half of a Raft store; the reading half is [`raft::Storage`]. The simulator brings a store of its own.
pub trait Store: raft::Storage {
    /// Makes entries and hard state durable with at most one sync; entries at or after the first one given are replaced.
    /// With `sync` false (only the commit index moved) nothing needs to reach the disk.
    fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>, sync: bool) -> Result<(), StorageError>;

    /// Makes a snapshot received from the leader durable; the log then continues after it.
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), StorageError>;

    /// Makes a snapshot of the own applied state durable, then drops log entries up to `compact_to` (at most its index).
    fn save_snapshot(&mut self, snapshot: &Snapshot, compact_to: u64) -> Result<(), StorageError>;

    /// Remembers applied state so that a restart replays less; may be lost without harm.
    fn save_applied(&mut self, applied: &Applied) -> Result<(), StorageError>;

    /// The newest applied state the store can vouch for (from the cache, else the snapshot), `None` on an empty store.
    fn load_applied(&self) -> Result<Option<Applied>, StorageError>;

    /// Whether this store has never held anything: neither bootstrapped nor caught up.
    fn is_empty(&self) -> bool;

    /// Writes the first configuration of a new cluster (index 1, term 1). Returns false, changing nothing, unless empty.
    fn bootstrap(&mut self, conf: &ConfState, initial: &[u8]) -> Result<bool, StorageError>;
}
