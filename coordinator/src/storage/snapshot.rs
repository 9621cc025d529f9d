//! The newest snapshot: one checksummed file, replaced by rename, synced before anything relies on it.

use std::path::Path;

use prost_raft::Message as _;
use raft::eraftpb::Snapshot;

use super::{StorageError, file};

const MAGIC: &[u8; 8] = b"VPSNAP01";
const NAME: &str = "snapshot";

/// A snapshot and where it came from.
#[derive(Debug, PartialEq)]
pub struct Stored {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Received from a leader (or the bootstrap): the log may still have to be reset to it.
    pub received: bool,
}

/// Replaces the snapshot in `directory`.
pub fn write(directory: &Path, stored: &Stored) -> Result<(), StorageError> {
    let body = stored.snapshot.encode_to_vec();
    let mut bytes = MAGIC.to_vec();
    bytes.push(u8::from(stored.received));
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    file::replace(directory, NAME, &bytes)
}

/// Reads the snapshot in `directory`, `None` when there is none.
pub fn read(directory: &Path) -> Result<Option<Stored>, StorageError> {
    let path = directory.join(NAME);
    let Some(bytes) = file::read(&path)? else { return Ok(None) };
    let damaged = |reason: &str| StorageError::Damaged { path: path.clone(), offset: 0, reason: reason.to_owned() };
    let (head, body) = bytes.split_at_checked(13).ok_or_else(|| damaged("too short"))?;
    if !head.starts_with(MAGIC) || head[8] > 1 || head[9..] != crc32fast::hash(body).to_le_bytes() {
        return Err(damaged("checksum mismatch"));
    }
    Ok(Some(Stored { snapshot: Snapshot::decode(body).map_err(|_| damaged("does not decode"))?, received: head[8] == 1 }))
}
