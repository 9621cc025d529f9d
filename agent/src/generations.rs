//! What this agent has accepted and given back, on disk before it acts: the memory that makes an older generation, a
//! released one and a stale desired set refusable after any restart.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fail::fail_point;
use serde::{Deserialize, Serialize};

use crate::durable::{FileError, make_folder, read_if_there, replace};
use crate::slot::Slot;

/// The memory cannot be kept; the agent must not act without it.
#[derive(Debug, thiserror::Error)]
pub enum GenerationsError {
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not what this program wrote. It is never guessed at: fencing rests on it.
    #[error("{path} is damaged; remove the instance, its slots are placed elsewhere")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How.
        #[source]
        source: serde_json::Error,
    },
}

/// Of one slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Highest generation accepted.
    #[serde(default)]
    pub accepted: u64,
    /// Highest generation given back with our word.
    #[serde(default)]
    pub released: u64,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    term: u64,
    revision: u64,
    slots: BTreeMap<Slot, Known>,
}

/// The memory and its file.
pub struct Generations {
    path: PathBuf,
    record: Record,
}

impl Generations {
    /// Reads the file in `folder`, or begins one.
    ///
    /// # Errors
    /// The disk, or a damaged file.
    pub fn open(folder: PathBuf) -> Result<Self, GenerationsError> {
        make_folder(&folder)?;
        fail_point!("generations::open");
        let path = folder.join("generations.json");
        let record = match read_if_there(&path)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|source| GenerationsError::Damaged { path: path.clone(), source })?,
            None => Record::default(),
        };
        Ok(Self { path, record })
    }

    /// Of one slot.
    pub fn known(&self, slot: &Slot) -> Known {
        self.record.slots.get(slot).copied().unwrap_or_default()
    }

    /// Takes a desired set's (term, revision) and the generations it names, durably. False: the set is older than the last taken.
    ///
    /// # Errors
    /// The disk; then nothing was taken.
    pub fn take(&mut self, term: u64, revision: u64, named: &[(Slot, u64)]) -> Result<bool, GenerationsError> {
        if (term, revision) < (self.record.term, self.record.revision) {
            return Ok(false);
        }
        let mut record = Record { term, revision, slots: self.record.slots.clone() };
        for (slot, generation) in named {
            let known = record.slots.entry(slot.clone()).or_default();
            known.accepted = known.accepted.max(*generation);
        }
        self.keep(record)?;
        Ok(true)
    }

    /// Notes, durably, that nothing of the slot up to `generation` is left or will be started.
    ///
    /// # Errors
    /// The disk; then our word may not be given.
    pub fn release(&mut self, slot: &Slot, generation: u64) -> Result<(), GenerationsError> {
        let mut record = Record { slots: self.record.slots.clone(), ..self.record };
        let known = record.slots.entry(slot.clone()).or_default();
        known.released = known.released.max(generation);
        self.keep(record)
    }

    fn keep(&mut self, record: Record) -> Result<(), GenerationsError> {
        if record != self.record {
            let bytes = serde_json::to_vec_pretty(&record).map_err(|source| GenerationsError::Damaged { path: self.path.clone(), source })?;
            fail_point!("generations::keep");
            replace(&self.path, &bytes)?;
            fail_point!("generations::kept");
            self.record = record;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Slot {
        Slot::new("kafka", 1).unwrap()
    }

    fn open(dir: &tempfile::TempDir) -> Generations {
        Generations::open(dir.path().to_owned()).unwrap()
    }

    #[test]
    fn what_was_accepted_and_released_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut generations = open(&dir);
        assert!(generations.take(3, 40, &[(slot(), 39)]).unwrap());
        generations.release(&slot(), 39).unwrap();
        assert_eq!(open(&dir).known(&slot()), Known { accepted: 39, released: 39 });
    }

    #[test]
    fn an_accepted_generation_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut generations = open(&dir);
        generations.take(1, 1, &[(slot(), 9)]).unwrap();
        generations.take(1, 2, &[(slot(), 8)]).unwrap();
        assert_eq!(generations.known(&slot()).accepted, 9);
    }

    #[test]
    fn an_older_desired_set_is_dropped_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&dir).take(3, 40, &[]).unwrap());
        let mut again = open(&dir);
        assert!(!again.take(3, 39, &[]).unwrap());
        assert!(!again.take(2, 50, &[]).unwrap());
        assert!(again.take(3, 40, &[]).unwrap());
        assert!(again.take(4, 10, &[]).unwrap());
    }

    #[test]
    fn a_damaged_memory_is_refused_not_guessed() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir).take(1, 1, &[(slot(), 9)]).unwrap();
        std::fs::write(dir.path().join("generations.json"), b"{\"term\":").unwrap();
        assert!(matches!(Generations::open(dir.path().to_owned()), Err(GenerationsError::Damaged { .. })));
    }
}
