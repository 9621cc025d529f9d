//! The store on a real disk: log, snapshot file and applied-state cache put together, and checked against each other.

use std::path::{Path, PathBuf};

use fail::fail_point;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage};

use super::applied::AppliedCache;
use super::log::{Log, SEGMENT_BYTES};
use super::snapshot::{self, Stored};
use super::{Applied, Identity, StorageError, Store};

/// How to open a disk.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Size of a log segment, bytes.
    pub segment_bytes: usize,
    /// Somebody outside knows that this member has written before: an empty disk is then refused.
    pub must_exist: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions { segment_bytes: SEGMENT_BYTES, must_exist: false }
    }
}

/// One member's disk.
pub struct DiskStore {
    directory: PathBuf,
    log: Log,
    cache: AppliedCache,
    conf: ConfState,
    snapshot_index: u64,
}

impl DiskStore {
    /// Opens the member's folder `directory` (made when missing), finishing what a crash interrupted. A disk that is
    /// damaged, emptied or somebody else's is refused.
    pub fn open(directory: &Path, identity: &Identity, options: StoreOptions) -> Result<Self, StorageError> {
        let log_path = directory.join("log");
        let cache_path = directory.join("applied");
        std::fs::create_dir_all(directory).map_err(|source| StorageError::io("create", directory, source))?;
        let stored = snapshot::read(directory)?;
        let evidence = if options.must_exist {
            Some("this member has been seen before")
        } else if stored.is_some() {
            Some("a snapshot")
        } else if cache_path.exists() {
            Some("applied state")
        } else {
            None
        };
        let mut log = Log::open(&log_path, identity, options.segment_bytes, evidence)?;
        let behind = |log: &Log, what, index| StorageError::LogBehind { path: log_path.clone(), last: log.last_index(), what, index };
        let (mut conf, mut snapshot_index) = (ConfState::default(), 0);
        if let Some(stored) = stored {
            let metadata = stored.snapshot.get_metadata();
            let index = metadata.index;
            if stored.received && log.term(index) != Some(metadata.term) && log.first_index() <= index {
                log.reset(index, metadata.term)?;
            }
            if index > log.last_index() || log.first_index() > index + 1 {
                return Err(behind(&log, "the snapshot", index));
            }
            conf = metadata.get_conf_state().clone();
            snapshot_index = index;
        } else if log.first_index() > 1 {
            return Err(StorageError::Emptied { path: directory.to_owned(), evidence: "a compacted log without its snapshot" });
        }
        let cache = AppliedCache::open(&cache_path, identity)?;
        if let Some(applied) = cache.load()? {
            if applied.index > log.last_index() {
                return Err(behind(&log, "the applied state", applied.index));
            }
            if applied.index >= snapshot_index {
                conf = applied.conf;
            }
        }
        Ok(DiskStore { directory: directory.to_owned(), log, cache, conf, snapshot_index })
    }

    /// The log, for status and tests.
    pub fn log(&self) -> &Log {
        &self.log
    }
}

impl Store for DiskStore {
    fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>, sync: bool) -> Result<(), StorageError> {
        let hard_state = hard_state.unwrap_or(self.log.hard_state()).clone();
        if sync || !entries.is_empty() {
            self.log.append(entries, &hard_state)
        } else {
            self.log.set_commit(&hard_state);
            Ok(())
        }
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), StorageError> {
        let metadata = snapshot.get_metadata();
        snapshot::write(&self.directory, &Stored { snapshot: snapshot.clone(), received: true })?;
        fail_point!("disk::snapshot_received");
        self.log.reset(metadata.index, metadata.term)?;
        self.conf = metadata.get_conf_state().clone();
        self.snapshot_index = metadata.index;
        Ok(())
    }

    fn save_snapshot(&mut self, snapshot: &Snapshot, compact_to: u64) -> Result<(), StorageError> {
        let metadata = snapshot.get_metadata();
        snapshot::write(&self.directory, &Stored { snapshot: snapshot.clone(), received: false })?;
        self.snapshot_index = metadata.index;
        self.save_applied(&Applied { index: metadata.index, term: metadata.term, conf: metadata.get_conf_state().clone(), state: snapshot.data.clone() })?;
        fail_point!("disk::snapshot_saved");
        self.log.compact(compact_to.min(metadata.index))
    }

    fn save_applied(&mut self, applied: &Applied) -> Result<(), StorageError> {
        fail_point!("disk::save_applied");
        self.conf = applied.conf.clone();
        self.cache.save(applied)
    }

    fn load_applied(&self) -> Result<Option<Applied>, StorageError> {
        let cached = self.cache.load()?.filter(|a| a.index >= self.snapshot_index);
        if cached.is_some() {
            return Ok(cached);
        }
        Ok(snapshot::read(&self.directory)?.map(|mut stored| {
            let metadata = stored.snapshot.take_metadata();
            Applied { index: metadata.index, term: metadata.term, conf: metadata.get_conf_state().clone(), state: stored.snapshot.data }
        }))
    }

    fn is_empty(&self) -> bool {
        self.snapshot_index == 0 && self.log.last_index() == 0 && *self.log.hard_state() == HardState::default()
    }

    fn bootstrap(&mut self, conf: &ConfState, initial: &[u8]) -> Result<bool, StorageError> {
        if !self.is_empty() {
            return Ok(false);
        }
        let mut snapshot = Snapshot { data: initial.to_vec(), ..Default::default() };
        snapshot.set_metadata(SnapshotMetadata { conf_state: Some(conf.clone()), index: 1, term: 1 });
        fail_point!("disk::bootstrap");
        self.install(&snapshot)?;
        Ok(true)
    }
}

impl Storage for DiskStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard_state = self.log.hard_state().clone();
        let applied = self.cache.load().ok().flatten().map_or(0, |a| a.index);
        // What was applied was committed, though that commit index may not have been synced.
        hard_state.commit = hard_state.commit.max(applied).max(self.snapshot_index);
        Ok(RaftState::new(hard_state, self.conf.clone()))
    }

    fn entries(&self, low: u64, high: u64, max_size: impl Into<Option<u64>>, _: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        if low < self.log.first_index() {
            return Err(raft::Error::Store(raft::StorageError::Compacted));
        }
        if high > self.log.last_index() + 1 {
            return Err(raft::Error::Store(raft::StorageError::Unavailable));
        }
        let mut entries: Vec<Entry> = self.log.slice(low, high).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.log.term(index).ok_or(raft::Error::Store(if index < self.log.first_index() {
            raft::StorageError::Compacted
        } else {
            raft::StorageError::Unavailable
        }))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last_index())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let other = |error: StorageError| raft::Error::Store(raft::StorageError::Other(error.into()));
        match snapshot::read(&self.directory).map_err(other)? {
            Some(stored) if self.snapshot_index >= request_index => Ok(stored.snapshot),
            _ => Err(raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable)),
        }
    }
}
