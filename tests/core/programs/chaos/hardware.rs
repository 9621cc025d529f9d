//! What a program under `preload/faults.c` runs on: a wall clock that jumps, a disk that forgets what was not synced when the power goes, and
//! a note of whether it has slept by a fail point.
//! Left out: the disk's size (`disk`) and its bits (`damage`).

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// How long a sync takes, µs: as a good disk's.
const SYNC_US: &str = "2000";

/// One program's clock, and its journals of writes that are not synced yet.
pub struct Hardware {
    preload: PathBuf,
    folder: PathBuf,
}

impl Hardware {
    /// With the right time and nothing unsynced; kept in `folder`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(preload: &Path, folder: &Path) -> anyhow::Result<Self> {
        let new = Self { preload: preload.to_owned(), folder: folder.to_owned() };
        fs::create_dir_all(new.undo())?;
        fs::write(new.clock(), 0_i64.to_ne_bytes())?;
        Ok(new)
    }

    fn undo(&self) -> PathBuf {
        self.folder.join("undo")
    }

    fn clock(&self) -> PathBuf {
        self.folder.join("clock")
    }

    /// Environment of a program of which only the clock is in our hands.
    pub fn clock_environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![("LD_PRELOAD".to_owned(), text(&self.preload)), ("VP_CLOCK".to_owned(), text(&self.clock()))]
    }

    /// Environment of a program of which clock and disk are.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut all = self.clock_environment();
        all.extend([("VP_UNDO".to_owned(), self.undo().display().to_string()), ("VP_SYNC_US".to_owned(), SYNC_US.to_owned())]);
        all
    }

    fn note(&self) -> PathBuf {
        self.folder.join("slept")
    }

    /// More environment, of a program that starts with fail points armed: it has not slept by them yet.
    ///
    /// # Errors
    /// The note of earlier ones cannot be removed.
    pub fn arm(&self, fail_points: &str) -> anyhow::Result<Vec<(String, String)>> {
        match fs::remove_file(self.note()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(vec![("FAILPOINTS".to_owned(), fail_points.to_owned()), ("VP_SLEPT".to_owned(), self.note().display().to_string())]),
        }
    }

    /// Whether the program has slept by a fail point since it was started with some armed.
    pub fn slept(&self) -> bool {
        self.note().exists()
    }

    /// The wall clock jumps, seconds from the truth.
    ///
    /// # Errors
    /// The offset cannot be written.
    pub fn set_clock(&self, seconds: i64) -> anyhow::Result<()> {
        // In place: the program has the file mapped.
        use std::os::unix::fs::FileExt as _;
        let file = fs::OpenOptions::new().write(true).open(self.clock())?;
        Ok(file.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }

    /// Whether a write is under way that no sync has covered yet.
    pub fn has_unsynced(&self) -> bool {
        let journals = fs::read_dir(self.undo()).into_iter().flatten().flatten();
        journals.filter_map(|entry| entry.metadata().ok()).any(|journal| journal.len() > 0)
    }

    /// The power is gone, and with it what was not synced of the log in `log`; the program must be dead. How many writes were lost.
    ///
    /// # Errors
    /// A journal cannot be played back.
    pub fn forget_unsynced(&self, log: &Path) -> anyhow::Result<usize> {
        let mut lost = 0;
        for entry in fs::read_dir(self.undo())? {
            let journal = entry?.path();
            let segment = log.join(journal.file_stem().context("a journal has a name")?);
            lost += play_back(&journal, &segment)?;
            fs::remove_file(&journal)?;
        }
        Ok(lost)
    }
}

/// Puts back what was there before the writes that were never synced, newest first.
fn play_back(journal: &Path, segment: &Path) -> anyhow::Result<usize> {
    use std::os::unix::fs::FileExt as _;
    let bytes = fs::read(journal)?;
    let number = |at: usize| bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map(u64::from_ne_bytes);
    let mut records = Vec::new();
    let mut at = 0;
    while let (Some(offset), Some(length)) = (number(at), number(at + 8)) {
        let end = at + 16 + usize::try_from(length)?;
        // Killed while it wrote the journal: the write itself never happened.
        let Some(before) = bytes.get(at + 16..end) else { break };
        records.push((offset, before));
        at = end;
    }
    if records.is_empty() || !segment.exists() {
        return Ok(0);
    }
    let file = fs::OpenOptions::new().write(true).open(segment)?;
    for (offset, before) in records.iter().rev() {
        file.write_all_at(before, *offset)?;
    }
    Ok(records.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsynced_writes_are_undone_newest_first_and_a_cut_journal_ends_where_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, segment) = (dir.path().join("a.seg.undo"), dir.path().join("a.seg"));
        fs::write(&segment, b"--second--").unwrap();
        let record = |offset: u64, before: &[u8]| [&offset.to_ne_bytes()[..], &(before.len() as u64).to_ne_bytes(), before].concat();
        let mut bytes = [record(2, b"000000"), record(2, b"first!")].concat();
        bytes.extend(&record(0, b"never written")[..20]);
        fs::write(&journal, bytes).unwrap();
        assert_eq!(play_back(&journal, &segment).unwrap(), 2);
        assert_eq!(fs::read(&segment).unwrap(), b"--000000--");
    }
}
