//! What this agent has accepted and given back, on disk before it acts: the memory that makes an older generation, a
//! released one and a stale desired set refusable after any restart.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fail::fail_point;
use serde::{Deserialize, Serialize};

use crate::durable::{FileError, make_folder, read_if_there, replace};
use crate::mutant;
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

/// The memory itself, without its file: what is taken and what is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    term: u64,
    revision: u64,
    slots: BTreeMap<Slot, Known>,
}

impl Memory {
    /// From the bytes of [`Memory::encode`].
    ///
    /// # Errors
    /// They are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        if mutant!("generations-forgotten") { Ok(Self::default()) } else { serde_json::from_slice(bytes) }
    }

    /// As it is kept.
    ///
    /// # Errors
    /// None known; serde's signature.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(self)
    }

    /// Of one slot.
    pub fn known(&self, slot: &Slot) -> Known {
        self.slots.get(slot).copied().unwrap_or_default()
    }

    /// The memory after a desired set of this order that names these generations; none when the set is older than the last taken.
    #[must_use]
    pub fn taking(&self, term: u64, revision: u64, named: &[(Slot, u64)]) -> Option<Self> {
        if (term, revision) < (self.term, self.revision) && !mutant!("older-set-taken") {
            return None;
        }
        let mut next = Self { term, revision, slots: self.slots.clone() };
        for (slot, generation) in named {
            let known = next.slots.entry(slot.clone()).or_default();
            known.accepted = known.accepted.max(*generation);
        }
        Some(next)
    }

    /// The memory after giving a slot back, up to `generation`.
    #[must_use]
    pub fn releasing(&self, slot: &Slot, generation: u64) -> Self {
        let mut next = self.clone();
        let known = next.slots.entry(slot.clone()).or_default();
        known.released = known.released.max(generation);
        next
    }
}

/// The memory and its file.
pub struct Generations {
    path: PathBuf,
    memory: Memory,
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
        let memory = match read_if_there(&path)? {
            Some(bytes) => Memory::decode(&bytes).map_err(|source| GenerationsError::Damaged { path: path.clone(), source })?,
            None => Memory::default(),
        };
        Ok(Self { path, memory })
    }

    /// Of one slot.
    pub fn known(&self, slot: &Slot) -> Known {
        self.memory.known(slot)
    }

    /// Takes a desired set's (term, revision) and the generations it names, durably. False: the set is older than the last taken.
    ///
    /// # Errors
    /// The disk; then nothing was taken.
    pub fn take(&mut self, term: u64, revision: u64, named: &[(Slot, u64)]) -> Result<bool, GenerationsError> {
        let Some(next) = self.memory.taking(term, revision, named) else { return Ok(false) };
        self.keep(next)?;
        Ok(true)
    }

    /// Notes, durably, that nothing of the slot up to `generation` is left or will be started.
    ///
    /// # Errors
    /// The disk; then our word may not be given.
    pub fn release(&mut self, slot: &Slot, generation: u64) -> Result<(), GenerationsError> {
        self.keep(self.memory.releasing(slot, generation))
    }

    fn keep(&mut self, next: Memory) -> Result<(), GenerationsError> {
        if next != self.memory {
            let bytes = next.encode().map_err(|source| GenerationsError::Damaged { path: self.path.clone(), source })?;
            fail_point!("generations::keep");
            replace(&self.path, &bytes)?;
            fail_point!("generations::kept");
            self.memory = next;
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
