//! The applied state in sled: a cache that saves a restart from replaying the log. Lost or damaged, it is rebuilt from
//! snapshot + log; sled's own timer is off, the cache small, and it is flushed with each write.

use std::path::{Path, PathBuf};

use fail::fail_point;
use prost_raft::Message as _;
use raft::eraftpb::ConfState;

use super::{Identity, StorageError};

/// The state after applying everything up to `index`.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// Raft index.
    pub index: u64,
    /// Term of the entry at that index.
    pub term: u64,
    /// Members at that index.
    pub conf: ConfState,
    /// The machine's snapshot at that index.
    pub state: Vec<u8>,
}

/// The cache of one member.
pub struct AppliedCache {
    db: sled::Db,
    path: PathBuf,
}

const KEY: &str = "applied";
const IDENTITY: &str = "identity";

fn open(path: &Path) -> sled::Result<sled::Db> {
    sled::Config::new().path(path).cache_capacity(4 * 1024 * 1024).flush_every_ms(None).open()
}

impl AppliedCache {
    /// Opens the cache; one that sled cannot read, or another member's, is thrown away with a logged line.
    pub fn open(path: &Path, identity: &Identity) -> Result<Self, StorageError> {
        let label = identity.to_string();
        // On some damage sled panics instead of saying so.
        let usable = std::panic::catch_unwind(|| {
            open(path).and_then(|db| {
                let found = db.get(IDENTITY)?;
                db.get(KEY)?;
                Ok(found.is_none_or(|found| found == label.as_bytes()).then_some(db))
            })
        });
        let db = match usable {
            Ok(Ok(Some(db))) => db,
            other => {
                let error = match other {
                    Ok(Ok(_)) => "another member's".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "sled panicked".to_owned(),
                };
                tracing::warn!(path = %path.display(), error, "applied-state cache thrown away, it is rebuilt from the log");
                std::fs::remove_dir_all(path).map_err(|source| StorageError::io("remove", path, source))?;
                open(path)?
            }
        };
        db.insert(IDENTITY, label.as_bytes())?;
        Ok(AppliedCache { db, path: path.to_owned() })
    }

    /// Replaces what is cached and flushes.
    pub fn save(&self, applied: &Applied) -> Result<(), StorageError> {
        let bytes = encode(applied);
        fail_point!("applied::insert");
        self.db.insert(KEY, bytes)?;
        fail_point!("applied::flush");
        self.db.flush()?;
        Ok(())
    }

    /// What is cached, `None` when there is nothing or it does not add up.
    pub fn load(&self) -> Result<Option<Applied>, StorageError> {
        let Some(bytes) = self.db.get(KEY)? else {
            return Ok(None);
        };
        let applied = decode(&bytes);
        if applied.is_none() {
            tracing::warn!(path = %self.path.display(), "cached applied state is damaged, it is rebuilt from the log");
        }
        Ok(applied)
    }
}

/// As it is cached: the checksum of the rest, index, term, length of the members, the members, the state; all numbers little-endian.
pub fn encode(applied: &Applied) -> Vec<u8> {
    let conf = applied.conf.encode_to_vec();
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&applied.index.to_le_bytes());
    bytes.extend_from_slice(&applied.term.to_le_bytes());
    bytes.extend_from_slice(&(conf.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&conf);
    bytes.extend_from_slice(&applied.state);
    let crc = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What [`encode`] wrote; `None` when it does not add up.
pub fn decode(bytes: &[u8]) -> Option<Applied> {
    let (crc, body) = bytes.split_at_checked(4)?;
    if crc != crc32fast::hash(body).to_le_bytes() || body.len() < 24 {
        return None;
    }
    let number = |at| super::frame::u64_at(body, at);
    let (conf, state) = body[24..].split_at_checked(number(16) as usize)?;
    Some(Applied { index: number(0), term: number(8), conf: ConfState::decode(conf).ok()?, state: state.to_vec() })
}
