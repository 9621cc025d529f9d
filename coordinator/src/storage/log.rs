//! The append-only log of Raft entries and hard state: preallocated segments of checksummed frames, one fdatasync a write.
//! All entries since the last compaction are kept in memory too (compaction bounds them). Left out: when to compact.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fail::fail_point;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use prost_raft::Message as _;
use raft::eraftpb::{Entry, HardState};
use vp_cluster::mutant;

use super::file::sync_directory;
use super::frame::{self, Found, FrameBuilder, Kind};
use super::{Identity, StorageError, mark};

/// Size of a segment, bytes, unless one write needs more.
pub const SEGMENT_BYTES: usize = 8 * 1024 * 1024;

struct Segment {
    number: u64,
    path: PathBuf,
    last_index: u64,
}

/// The log of one member.
pub struct Log {
    directory: PathBuf,
    identity: Identity,
    segment_bytes: usize,
    segments: VecDeque<Segment>,
    file: File,
    offset: usize,
    capacity: usize,
    sequence: u64,
    poisoned: bool,
    base: (u64, u64),
    entries: VecDeque<Entry>,
    hard_state: HardState,
    _lock: Flock<File>,
}

#[derive(Default)]
struct Replay {
    base: (u64, u64),
    entries: BTreeMap<u64, Entry>,
    hard_state: HardState,
}

impl Log {
    /// Opens the log in `directory`, or begins one. `in_use`: somebody knows that this member has written before (so an
    /// empty folder is a lost disk). Cuts a write that was never acknowledged; refuses everything else that is wrong.
    pub fn open(directory: &Path, identity: &Identity, segment_bytes: usize, in_use: Option<&'static str>) -> Result<Log, StorageError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StorageError::io(action, path, source)
        };
        fs::create_dir_all(directory).map_err(io("create", directory))?;
        let lock_path = directory.join("lock");
        let lock = File::create(&lock_path).map_err(io("create", &lock_path))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| StorageError::InUse { path: directory.to_owned() })?;
        let mut numbers = Vec::new();
        for item in fs::read_dir(directory).map_err(io("list", directory))? {
            let path = item.map_err(io("list", directory))?.path();
            match path.extension().and_then(|end| end.to_str()) {
                Some("tmp") => fs::remove_file(&path).map_err(io("remove", &path))?,
                Some("seg") => {
                    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
                    let number =
                        stem.parse::<u64>().map_err(|_| StorageError::Damaged { path: path.clone(), offset: 0, reason: "not a segment's name".to_owned() })?;
                    numbers.push((number, path));
                }
                _ => {}
            }
        }
        numbers.sort();
        let marked = mark::read(directory)?;
        let newest = numbers.last().map_or(0, |(number, _)| *number);
        if numbers.is_empty() {
            let evidence = in_use.or(marked.map(|_| "marker file"));
            if let Some(evidence) = evidence {
                return Err(StorageError::Emptied { path: directory.to_owned(), evidence });
            }
        } else if let Some(number) = marked.filter(|marked| *marked > newest && !mutant!("newest-segment-not-missed")) {
            return Err(StorageError::Damaged { path: directory.to_owned(), offset: 0, reason: format!("segment {number} is missing, the newest one") });
        }
        let mut log = Log {
            directory: directory.to_owned(),
            identity: identity.clone(),
            segment_bytes,
            segments: VecDeque::new(),
            file: lock.try_clone().map_err(io("open", &lock_path))?,
            offset: 0,
            capacity: 0,
            sequence: 1,
            poisoned: false,
            base: (0, 0),
            entries: VecDeque::new(),
            hard_state: HardState::default(),
            _lock: lock,
        };
        if numbers.is_empty() {
            log.roll(0)?;
        } else {
            log.replay(numbers)?;
            // Stopped between a segment's begin and its mark.
            if marked != Some(newest) {
                mark::write(directory, newest)?;
            }
        }
        Ok(log)
    }

    fn replay(&mut self, numbers: Vec<(u64, PathBuf)>) -> Result<(), StorageError> {
        fail_point!("log::replay");
        let mut replay = Replay::default();
        let count = numbers.len();
        for (position, (number, path)) in numbers.into_iter().enumerate() {
            let damaged = |offset: usize, reason: String| StorageError::Damaged { path: path.clone(), offset: offset as u64, reason };
            let io = |action| {
                let path = path.clone();
                move |source| StorageError::io(action, path, source)
            };
            if let Some(before) = self.segments.back()
                && before.number + 1 != number
            {
                return Err(damaged(0, format!("segment {} is missing", before.number + 1)));
            }
            let bytes = fs::read(&path).map_err(io("read"))?;
            let mut segment = Segment { number, path: path.clone(), last_index: 0 };
            let mut at = 0;
            loop {
                if position == 0 && at == 0 {
                    self.sequence = frame::u64_at(&bytes, 8);
                }
                match frame::read(&bytes, at, self.sequence) {
                    Found::Frame { payload, next, .. } => {
                        let records = frame::records(payload).map_err(|reason| damaged(at, reason))?;
                        if at == 0 {
                            self.check_identity(&records, number, &path)?;
                        }
                        let last = replay.take(&records, position == 0 && at == 0).map_err(|reason| damaged(at, reason))?;
                        segment.last_index = segment.last_index.max(last);
                        at = next;
                        self.sequence += 1;
                    }
                    Found::Damaged(reason) => return Err(damaged(at, reason)),
                    Found::End if at == 0 => return Err(damaged(0, "empty segment".to_owned())),
                    Found::End => break,
                    Found::Torn if position + 1 == count && at > 0 => {
                        tracing::warn!(path = %path.display(), offset = at, "unacknowledged write cut from the log");
                        let file = OpenOptions::new().write(true).open(&path).map_err(io("open"))?;
                        file.set_len(at as u64).map_err(io("cut"))?;
                        preallocate(&file, &path, bytes.len())?;
                        file.sync_all().map_err(io("sync"))?;
                        break;
                    }
                    Found::Torn => return Err(damaged(at, "cut short, yet not the last write".to_owned())),
                }
            }
            if position + 1 == count {
                self.file = OpenOptions::new().write(true).open(&path).map_err(io("open"))?;
                // The last frame may be whole and yet unsynced (killed in between): from now on it counts as durable.
                self.file.sync_data().map_err(io("sync"))?;
                self.offset = at;
                self.capacity = bytes.len();
            }
            self.segments.push_back(segment);
        }
        self.base = replay.base;
        self.hard_state = replay.hard_state;
        for (expected, (index, entry)) in (self.base.0 + 1..).zip(replay.entries) {
            if index != expected {
                return Err(StorageError::Damaged { path: self.directory.clone(), offset: 0, reason: format!("entry {expected} is missing") });
            }
            self.entries.push_back(entry);
        }
        Ok(())
    }

    fn check_identity(&self, records: &[(Kind, &[u8])], number: u64, path: &Path) -> Result<(), StorageError> {
        let Some((Kind::Identity, bytes)) = records.first().filter(|r| r.1.len() >= 16) else {
            return Err(StorageError::Damaged { path: path.to_owned(), offset: 0, reason: "a segment without identity".to_owned() });
        };
        let found = frame::identity(bytes);
        if found != self.identity {
            return Err(StorageError::WrongIdentity { path: path.to_owned(), found, wanted: self.identity.clone() });
        }
        if frame::u64_at(bytes, 0) != number {
            return Err(StorageError::Damaged { path: path.to_owned(), offset: 0, reason: format!("is segment {}", frame::u64_at(bytes, 0)) });
        }
        Ok(())
    }

    /// Begins the next segment with room for a frame of `needed` bytes; visible only when whole.
    fn roll(&mut self, needed: usize) -> Result<(), StorageError> {
        fail_point!("log::roll", |_| Err(StorageError::io("create", &self.directory, std::io::Error::other("fail point"))));
        let number = self.segments.back().map_or(1, |segment| segment.number + 1);
        let path = self.directory.join(format!("{number:016}.seg"));
        let temporary = path.with_extension("tmp");
        let mut identity = Vec::new();
        identity.extend_from_slice(&number.to_le_bytes());
        identity.extend_from_slice(&self.identity.member.to_le_bytes());
        identity.extend_from_slice(self.identity.cluster.as_bytes());
        let mut first = FrameBuilder::default();
        first.record(Kind::Identity, &identity).pair(Kind::Base, self.base.0, self.base.1).record(Kind::HardState, &self.hard_state.encode_to_vec());
        let first = first.finish(self.sequence);
        let capacity = self.segment_bytes.max(first.len() + needed);
        let io = |action| {
            let path = temporary.clone();
            move |source| StorageError::io(action, path, source)
        };
        let file = File::create(&temporary).map_err(io("create"))?;
        preallocate(&file, &temporary, capacity)?;
        file.write_all_at(&first, 0).map_err(io("write"))?;
        file.sync_all().map_err(io("sync"))?;
        fail_point!("log::roll_rename");
        fs::rename(&temporary, &path).map_err(io("rename"))?;
        fail_point!("log::rolled");
        sync_directory(&self.directory)?;
        mark::write(&self.directory, number)?;
        self.file = file;
        self.offset = first.len();
        self.capacity = capacity;
        self.sequence += 1;
        self.segments.push_back(Segment { number, path, last_index: 0 });
        Ok(())
    }

    /// Writes one frame and syncs it; only then does anything else change. A failure poisons the log.
    fn write(&mut self, frame: FrameBuilder) -> Result<(), StorageError> {
        if self.poisoned {
            return Err(StorageError::Poisoned { path: self.directory.clone() });
        }
        self.poisoned = true;
        let needed = frame.finish_length();
        if self.offset + needed > self.capacity {
            self.roll(needed)?;
        }
        let bytes = frame.finish(self.sequence);
        let path = || self.segments.back().map_or_else(PathBuf::new, |s| s.path.clone());
        fail_point!("log::write", |_| Err(StorageError::io("write", &self.directory, std::io::Error::other("fail point"))));
        self.file.write_all_at(&bytes, self.offset as u64).map_err(|source| StorageError::io("write", path(), source))?;
        fail_point!("log::sync", |_| Err(StorageError::io("sync", &self.directory, std::io::Error::other("fail point"))));
        self.file.sync_data().map_err(|source| StorageError::io("sync", path(), source))?;
        fail_point!("log::synced");
        self.offset += bytes.len();
        self.sequence += 1;
        self.poisoned = false;
        Ok(())
    }

    /// Makes entries and hard state durable with one sync; entries at or after the first one given are replaced.
    pub fn append(&mut self, entries: &[Entry], hard_state: &HardState) -> Result<(), StorageError> {
        let mut frame = FrameBuilder::default();
        frame.record(Kind::HardState, &hard_state.encode_to_vec());
        for entry in entries {
            frame.record(Kind::Entry, &entry.encode_to_vec());
        }
        self.write(frame)?;
        self.hard_state = hard_state.clone();
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            let keep = first.index.saturating_sub(self.base.0 + 1) as usize;
            self.entries.truncate(keep);
            self.entries.extend(entries.iter().cloned());
            if let Some(segment) = self.segments.back_mut() {
                segment.last_index = segment.last_index.max(last.index);
            }
        }
        Ok(())
    }

    /// Remembers a commit index that needs no sync; it reaches the disk with the next write.
    pub fn set_commit(&mut self, hard_state: &HardState) {
        self.hard_state = hard_state.clone();
    }

    /// Drops entries up to `index` (which a durable snapshot covers) and the segments that held only such.
    pub fn compact(&mut self, index: u64) -> Result<(), StorageError> {
        if index <= self.base.0 {
            return Ok(());
        }
        let Some(term) = self.term(index) else {
            return Ok(());
        };
        let mut frame = FrameBuilder::default();
        fail_point!("log::compact");
        frame.pair(Kind::Compact, index, term);
        self.write(frame)?;
        self.entries.drain(..(index - self.base.0) as usize);
        self.base = (index, term);
        self.remove_segments()
    }

    /// Drops all entries: the log continues after the snapshot at `index`, `term`.
    pub fn reset(&mut self, index: u64, term: u64) -> Result<(), StorageError> {
        let mut hard_state = self.hard_state.clone();
        hard_state.commit = hard_state.commit.max(index);
        if hard_state.term < term {
            hard_state.term = term;
            hard_state.vote = 0;
        }
        let mut frame = FrameBuilder::default();
        fail_point!("log::reset");
        frame.pair(Kind::Reset, index, term).record(Kind::HardState, &hard_state.encode_to_vec());
        self.write(frame)?;
        self.entries.clear();
        self.base = (index, term);
        self.hard_state = hard_state;
        for segment in &mut self.segments {
            segment.last_index = segment.last_index.min(index);
        }
        self.remove_segments()
    }

    fn remove_segments(&mut self) -> Result<(), StorageError> {
        fail_point!("log::remove_segments");
        let mut removed = false;
        while self.segments.len() > 1 && self.segments[0].last_index <= self.base.0 {
            if let Some(segment) = self.segments.pop_front() {
                fs::remove_file(&segment.path).map_err(|source| StorageError::io("remove", segment.path, source))?;
                removed = true;
            }
        }
        if removed { sync_directory(&self.directory) } else { Ok(()) }
    }

    /// Index of the oldest entry held, or that comes next.
    pub fn first_index(&self) -> u64 {
        self.base.0 + 1
    }

    /// Index of the newest entry.
    pub fn last_index(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    /// Term of an entry held or of the one just before the first.
    pub fn term(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.base.0)? {
            0 => Some(self.base.1),
            held => self.entries.get(held as usize - 1).map(|entry| entry.term),
        }
    }

    /// Entries in `low..high`, all of which must be held.
    pub fn slice(&self, low: u64, high: u64) -> impl Iterator<Item = &Entry> {
        let skip = low.saturating_sub(self.first_index()) as usize;
        self.entries.iter().skip(skip).take(high.saturating_sub(low) as usize)
    }

    /// Term, vote and commit index.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }
}

impl Replay {
    /// Takes one frame's records; the highest entry index among them, 0 without.
    fn take(&mut self, records: &[(Kind, &[u8])], first: bool) -> Result<u64, String> {
        let mut last = 0;
        for (kind, bytes) in records {
            let (index, term) = (frame::u64_at(bytes, 0), frame::u64_at(bytes, 8));
            match kind {
                Kind::Identity => {}
                Kind::Base if first => self.base = (index, term),
                Kind::Base => {}
                Kind::HardState => {
                    self.hard_state = HardState::decode(*bytes).map_err(|e| e.to_string())?;
                }
                Kind::Entry => {
                    let entry = Entry::decode(*bytes).map_err(|e| e.to_string())?;
                    self.entries.split_off(&entry.index);
                    last = last.max(entry.index);
                    self.entries.insert(entry.index, entry);
                }
                Kind::Compact => {
                    self.base = (index, term);
                    self.entries = self.entries.split_off(&(index + 1));
                }
                Kind::Reset => {
                    self.base = (index, term);
                    self.entries.clear();
                }
            }
        }
        Ok(last)
    }
}

fn preallocate(file: &File, path: &Path, bytes: usize) -> Result<(), StorageError> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes as i64) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EOPNOTSUPP) => {
            let from = file.metadata().map_or(0, |m| m.len());
            let zeros = vec![0; bytes.saturating_sub(from as usize)];
            file.write_all_at(&zeros, from).map_err(|source| StorageError::io("allocate", path, source))
        }
        Err(errno) => Err(StorageError::io("allocate", path, errno.into())),
    }
}
