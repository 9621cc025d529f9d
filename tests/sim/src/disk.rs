//! A coordinator's disk: what was written and what was synced are two things. A crash loses what was not synced, or keeps the first part of it; a write
//! may fail, and after that nothing more can be written until the disk is opened again, as with the real store.

use std::{cell::RefCell, path::PathBuf, rc::Rc};

use raft::{
    GetEntriesContext, RaftState, Storage,
    eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata},
};
use vp_coordinator::storage::{Applied, StorageError, Store};

use crate::random::Random;

/// One write.
#[derive(Clone)]
enum Write {
    Append { entries: Vec<Entry>, hard_state: HardState },
    Install(Snapshot),
    OwnSnapshot { snapshot: Snapshot, compact_to: u64 },
    Applied(Applied),
}

/// The content of a disk.
#[derive(Clone, Default)]
struct Image {
    /// Entries from `base.0 + 1` on; `base` is (index, term) of the one before.
    entries: Vec<Entry>,
    base: (u64, u64),
    hard_state: HardState,
    snapshot: Snapshot,
    applied: Option<Applied>,
    conf: ConfState,
}

impl Image {
    fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    fn take(&mut self, write: &Write) {
        match write {
            Write::Append { entries, hard_state } => {
                if let Some(first) = entries.first() {
                    self.entries.truncate(first.index.saturating_sub(self.base.0 + 1) as usize);
                    self.entries.extend(entries.iter().cloned());
                }
                self.hard_state = hard_state.clone();
            }
            Write::Install(snapshot) => {
                let metadata = snapshot.get_metadata();
                self.snapshot = snapshot.clone();
                self.conf = metadata.get_conf_state().clone();
                self.base = (metadata.index, metadata.term);
                self.entries.clear();
                self.hard_state.commit = self.hard_state.commit.max(metadata.index);
                self.hard_state.term = self.hard_state.term.max(metadata.term);
            }
            Write::OwnSnapshot { snapshot, compact_to } => {
                self.snapshot = snapshot.clone();
                self.conf = snapshot.get_metadata().get_conf_state().clone();
                let drop = compact_to.saturating_sub(self.base.0).min(self.entries.len() as u64) as usize;
                if let Some(last) = drop.checked_sub(1).and_then(|at| self.entries.get(at)) {
                    self.base = (last.index, last.term);
                    self.entries.drain(..drop);
                }
            }
            Write::Applied(applied) => {
                self.conf = applied.conf.clone();
                self.applied = Some(applied.clone());
            }
        }
    }
}

/// The disk outlives the process: the store that a process opens is a view of it.
#[derive(Default)]
pub struct Disk {
    /// What survives a crash.
    synced: Image,
    /// What the process sees.
    live: Image,
    unsynced: Vec<Write>,
    poisoned: bool,
    /// The next write fails.
    pub fail_next: bool,
    pub syncs: u64,
}

impl Disk {
    /// The power goes: of what was not synced, a first part may have reached the disk. Returns how many writes were lost.
    pub fn crash(&mut self, random: &mut Random) -> usize {
        let kept = random.below(self.unsynced.len() as u64 + 1) as usize;
        let lost = self.unsynced.len() - kept;
        for write in self.unsynced.drain(..).take(kept) {
            self.synced.take(&write);
        }
        self.reopen();
        lost
    }

    /// The process is gone, the machine is not: everything written is there. Returns how many writes had not been synced.
    pub fn close(&mut self) -> usize {
        let kept = self.unsynced.len();
        for write in self.unsynced.drain(..) {
            self.synced.take(&write);
        }
        self.reopen();
        kept
    }

    fn reopen(&mut self) {
        self.live = self.synced.clone();
        self.poisoned = false;
        self.fail_next = false;
    }

    fn write(&mut self, write: Write, sync: bool) -> Result<(), StorageError> {
        let path = || PathBuf::from("disk");
        if self.poisoned {
            return Err(StorageError::Poisoned { path: path() });
        }
        if std::mem::take(&mut self.fail_next) {
            self.poisoned = true;
            return Err(StorageError::Io { action: "write", path: path(), source: std::io::Error::other("planned") });
        }
        self.live.take(&write);
        self.unsynced.push(write);
        if sync {
            self.syncs += 1;
            for write in self.unsynced.drain(..) {
                self.synced.take(&write);
            }
        }
        Ok(())
    }
}

/// A process's view of its disk.
pub struct SimStore {
    pub disk: Rc<RefCell<Disk>>,
}

impl Store for SimStore {
    fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>, sync: bool) -> Result<(), StorageError> {
        let mut disk = self.disk.borrow_mut();
        let hard_state = hard_state.cloned().unwrap_or_else(|| disk.live.hard_state.clone());
        if entries.is_empty() && hard_state == disk.live.hard_state {
            return Ok(());
        }
        disk.write(Write::Append { entries: entries.to_vec(), hard_state }, sync)
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), StorageError> {
        self.disk.borrow_mut().write(Write::Install(snapshot.clone()), true)
    }

    fn save_snapshot(&mut self, snapshot: &Snapshot, compact_to: u64) -> Result<(), StorageError> {
        let metadata = snapshot.get_metadata().clone();
        let applied =
            Applied { index: metadata.index, term: metadata.term, conf: metadata.conf_state.clone().unwrap_or_default(), state: snapshot.data.clone() };
        let mut disk = self.disk.borrow_mut();
        disk.write(Write::Applied(applied), false)?;
        disk.write(Write::OwnSnapshot { snapshot: snapshot.clone(), compact_to: compact_to.min(metadata.index) }, true)
    }

    fn save_applied(&mut self, applied: &Applied) -> Result<(), StorageError> {
        self.disk.borrow_mut().write(Write::Applied(applied.clone()), false)
    }

    fn load_applied(&self) -> Result<Option<Applied>, StorageError> {
        let disk = self.disk.borrow();
        let image = &disk.live;
        let metadata = image.snapshot.get_metadata();
        if metadata.index == 0 {
            return Ok(image.applied.clone());
        }
        if let Some(applied) = image.applied.as_ref().filter(|applied| applied.index >= metadata.index) {
            return Ok(Some(applied.clone()));
        }
        let conf = metadata.get_conf_state().clone();
        Ok(Some(Applied { index: metadata.index, term: metadata.term, conf, state: image.snapshot.data.clone() }))
    }

    fn is_empty(&self) -> bool {
        let disk = self.disk.borrow();
        disk.live.snapshot.get_metadata().index == 0 && disk.live.last() == 0 && disk.live.hard_state == HardState::default()
    }

    fn bootstrap(&mut self, conf: &ConfState, initial: &[u8]) -> Result<bool, StorageError> {
        if !self.is_empty() {
            return Ok(false);
        }
        let mut snapshot = Snapshot { data: initial.to_vec(), ..Default::default() };
        snapshot.set_metadata(SnapshotMetadata { conf_state: Some(conf.clone()), index: 1, term: 1 });
        self.install(&snapshot)?;
        Ok(true)
    }
}

impl Storage for SimStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let disk = self.disk.borrow();
        let mut hard_state = disk.live.hard_state.clone();
        let applied = disk.live.applied.as_ref().map_or(0, |applied| applied.index);
        hard_state.commit = hard_state.commit.max(applied).max(disk.live.snapshot.get_metadata().index);
        Ok(RaftState::new(hard_state, disk.live.conf.clone()))
    }

    fn entries(&self, low: u64, high: u64, max_size: impl Into<Option<u64>>, _: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        let disk = self.disk.borrow();
        let base = disk.live.base.0;
        if low <= base {
            return Err(raft::Error::Store(raft::StorageError::Compacted));
        }
        if high > disk.live.last() + 1 {
            return Err(raft::Error::Store(raft::StorageError::Unavailable));
        }
        let mut entries = disk.live.entries[(low - base - 1) as usize..(high - base - 1) as usize].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let disk = self.disk.borrow();
        let (base, term) = disk.live.base;
        if index == base {
            return Ok(term);
        }
        if index < base {
            return Err(raft::Error::Store(raft::StorageError::Compacted));
        }
        let entry = disk.live.entries.get((index - base - 1) as usize);
        entry.map(|entry| entry.term).ok_or(raft::Error::Store(raft::StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.disk.borrow().live.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.disk.borrow().live.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let disk = self.disk.borrow();
        if disk.live.snapshot.get_metadata().index < request_index {
            return Err(raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(disk.live.snapshot.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64) -> Entry {
        Entry { index, term: 1, data: vec![1], ..Default::default() }
    }

    #[test]
    fn a_crash_loses_what_was_not_synced_and_nothing_else() {
        let disk = Rc::new(RefCell::new(Disk::default()));
        let mut store = SimStore { disk: disk.clone() };
        store.bootstrap(&ConfState { voters: vec![1], ..Default::default() }, b"{}").unwrap();
        let hard_state = HardState { term: 1, vote: 1, commit: 1 };
        store.append(&[entry(2)], Some(&hard_state), true).unwrap();
        store.append(&[entry(3)], None, false).unwrap();
        assert_eq!(store.last_index().unwrap(), 3);
        let mut lost = Random::new((0..).find(|seed| Random::new(*seed).below(2) == 0).unwrap());
        disk.borrow_mut().crash(&mut lost);
        assert_eq!(store.last_index().unwrap(), 2);
        assert_eq!(store.initial_state().unwrap().hard_state, hard_state);
    }

    #[test]
    fn after_a_failed_write_the_disk_takes_none_until_it_is_opened_again() {
        let disk = Rc::new(RefCell::new(Disk::default()));
        let mut store = SimStore { disk: disk.clone() };
        disk.borrow_mut().fail_next = true;
        assert!(store.append(&[entry(1)], None, true).is_err());
        assert!(store.append(&[entry(1)], None, true).is_err());
        disk.borrow_mut().close();
        assert!(store.append(&[entry(1)], None, true).is_ok());
    }
}
