//! What survives a kill -9: the events not yet delivered (a file each) and the ledger of objects already handled.
//!
//! An event's file is written, synced and renamed before the event is acknowledged; it goes away when its invocation
//! has succeeded, or to `failed/` after the last try. The ledger is a file of lines, one an object and function.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An event for one function, as it is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Request id: the same over all tries, as Lambda has it.
    pub id: String,
    /// The function.
    pub function: String,
    /// What it gets.
    pub payload: Value,
    /// The object, for the ledger.
    pub object: Object,
    /// Tries that failed.
    pub failures: u32,
    /// Why the last one did.
    pub last_error: Option<String>,
}

/// One version of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Bucket.
    pub bucket: String,
    /// Key, not encoded.
    pub key: String,
    /// Entity tag.
    pub etag: String,
}

/// How an object stands with a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// An event for it is under way.
    Accepted,
    /// The function has succeeded.
    Done,
    /// All tries failed; the event is in `failed/`.
    Failed,
}

/// How an object stands, how often all its tries failed, and when that was last so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// How it stands.
    pub standing: Standing,
    /// How many times an event for it went to the dead letters.
    pub times_failed: u32,
    /// Unix milliseconds of the last change.
    pub at_unix_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    function: String,
    object: Object,
    entry: Entry,
}

struct Ledger {
    file: File,
    entries: BTreeMap<(String, Object), Entry>,
}

/// The journal in one folder.
pub struct Journal {
    folder: PathBuf,
    ledger: Mutex<Ledger>,
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Writes a file whole or not at all, durably.
fn write_durably(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&temporary, folder.join(name))?;
    sync_folder(folder)
}

impl Journal {
    /// Opens or makes the journal below `folder`; the ledger is written anew without its superseded lines.
    ///
    /// # Errors
    /// When a file cannot be read or written. A torn last line of the ledger (power cut) is dropped.
    pub fn open(folder: &Path) -> io::Result<Self> {
        for part in ["events", "failed", "logs"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let mut entries = BTreeMap::new();
        let text = match fs::read_to_string(folder.join("ledger.jsonl")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        for line in text.lines() {
            match serde_json::from_str::<Line>(line) {
                Ok(line) => drop(entries.insert((line.function, line.object), line.entry)),
                Err(error) => tracing::warn!(%error, "a line of the ledger is torn and dropped"),
            }
        }
        let mut lines = Vec::new();
        for ((function, object), entry) in &entries {
            serde_json::to_writer(&mut lines, &Line { function: function.clone(), object: object.clone(), entry: *entry })?;
            lines.push(b'\n');
        }
        write_durably(folder, "ledger.jsonl", &lines)?;
        let file = OpenOptions::new().append(true).open(folder.join("ledger.jsonl"))?;
        Ok(Self { folder: folder.to_owned(), ledger: Mutex::new(Ledger { file, entries }) })
    }

    /// The folder of the functions' logs.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Keeps an event; when it returns, no kill and no power cut loses it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn keep(&self, event: &Event) -> io::Result<()> {
        write_durably(&self.folder.join("events"), &format!("{}.json", event.id), &serde_json::to_vec(event)?)
    }

    /// Forgets an event that was delivered.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget(&self, event: &Event) -> io::Result<()> {
        fs::remove_file(self.folder.join("events").join(format!("{}.json", event.id)))
    }

    /// Puts an event whose last try failed aside, for a person.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn put_aside(&self, event: &Event) -> io::Result<()> {
        write_durably(&self.folder.join("failed"), &format!("{}.json", event.id), &serde_json::to_vec_pretty(event)?)?;
        self.forget(event)
    }

    /// The events that were kept and not forgotten, in order of their files' times.
    ///
    /// # Errors
    /// When the folder cannot be read; a file that is not an event is skipped with a warning.
    pub fn kept(&self) -> io::Result<Vec<Event>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.folder.join("events"))? {
            let entry = entry?;
            if entry.path().extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match serde_json::from_slice::<Event>(&fs::read(entry.path())?) {
                Ok(event) => found.push((entry.metadata()?.modified()?, event)),
                Err(error) => tracing::warn!(file = %entry.path().display(), %error, "a kept event is unreadable"),
            }
        }
        found.sort_by(|(a, x), (b, y)| (a, &x.id).cmp(&(b, &y.id)));
        Ok(found.into_iter().map(|(_, event)| event).collect())
    }

    /// Writes how an object stands with a function.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn note(&self, function: &str, object: &Object, standing: Standing, now_unix_ms: u64) -> io::Result<()> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (function.to_owned(), object.clone());
        let times_failed = ledger.entries.get(&key).map_or(0, |entry| entry.times_failed) + u32::from(standing == Standing::Failed);
        let entry = Entry { standing, times_failed, at_unix_ms: now_unix_ms };
        let mut line = serde_json::to_vec(&Line { function: key.0.clone(), object: key.1.clone(), entry })?;
        line.push(b'\n');
        ledger.file.write_all(&line)?;
        ledger.file.sync_data()?;
        ledger.entries.insert(key, entry);
        Ok(())
    }

    /// How an object stands with a function, if it was ever seen.
    pub fn standing(&self, function: &str, object: &Object) -> Option<Entry> {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.entries.get(&(function.to_owned(), object.clone())).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str) -> Event {
        let object = Object { bucket: "b".into(), key: "k".into(), etag: "e".into() };
        Event { id: id.into(), function: "f".into(), payload: Value::Null, object, failures: 0, last_error: None }
    }

    #[test]
    fn what_was_kept_is_there_after_a_restart_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        journal.keep(&event("a")).unwrap();
        journal.keep(&event("b")).unwrap();
        journal.keep(&event("c")).unwrap();
        journal.forget(&event("a")).unwrap();
        journal.put_aside(&event("c")).unwrap();
        drop(journal);
        assert_eq!(Journal::open(folder.path()).unwrap().kept().unwrap(), [event("b")]);
        assert!(folder.path().join("failed/c.json").is_file());
    }

    #[test]
    fn the_ledger_survives_a_restart_and_a_torn_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let object = event("a").object;
        let journal = Journal::open(folder.path()).unwrap();
        journal.note("f", &object, Standing::Failed, 1).unwrap();
        journal.note("f", &object, Standing::Done, 2).unwrap();
        drop(journal);
        let path = folder.path().join("ledger.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"function\":\"f\",\"obj").unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(journal.standing("f", &object), Some(Entry { standing: Standing::Done, times_failed: 1, at_unix_ms: 2 }));
        assert_eq!(journal.standing("g", &object), None);
        assert_eq!(fs::read_to_string(path).unwrap().lines().count(), 1);
    }
}
