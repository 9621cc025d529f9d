//! raft-rs's view of the log: its own in-memory storage, with our snapshot in place of its empty one. The disk is written by `node` before this is.

use std::sync::{Arc, Mutex, PoisonError};

use raft::{
    GetEntriesContext, RaftState, Storage,
    eraftpb::{Entry, Snapshot},
    storage::MemStorage,
};

#[derive(Clone)]
pub struct Memory {
    pub entries: MemStorage,
    snapshot: Arc<Mutex<Snapshot>>,
}

impl Memory {
    pub fn new() -> Self {
        Self { entries: MemStorage::new(), snapshot: Arc::default() }
    }

    pub fn set_snapshot(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    pub fn latest_snapshot(&self) -> Snapshot {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Storage for Memory {
    fn initial_state(&self) -> raft::Result<RaftState> {
        self.entries.initial_state()
    }

    fn entries(&self, low: u64, high: u64, max_size: impl Into<Option<u64>>, context: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        self.entries.entries(low, high, max_size, context)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.entries.term(index)
    }

    fn first_index(&self) -> raft::Result<u64> {
        self.entries.first_index()
    }

    fn last_index(&self) -> raft::Result<u64> {
        self.entries.last_index()
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let snapshot = self.latest_snapshot();
        if snapshot.get_metadata().index < request_index {
            // Taken at the next opportunity; raft-rs asks again.
            return Err(raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(snapshot)
    }
}
