//! Whose disk is this? Read without opening it for use, so that a start can decide what to do with it.

use std::{fs, path::Path};

use super::{Identity, StorageError, frame};

/// The member whose log is below `directory`; None: there is no log.
///
/// # Errors
/// There is one, and its first frame is not what was written.
pub fn identity(directory: &Path) -> Result<Option<Identity>, StorageError> {
    let log = directory.join("log");
    let names = fs::read_dir(&log).into_iter().flatten().filter_map(Result::ok).map(|item| item.path());
    let Some(path) = names.filter(|path| path.extension().is_some_and(|end| end == "seg")).min() else { return Ok(None) };
    let bytes = fs::read(&path).map_err(|source| StorageError::io("read", &path, source))?;
    let damaged = |reason: &str| StorageError::Damaged { path: path.clone(), offset: 0, reason: reason.to_owned() };
    let frame::Found::Frame { payload, .. } = frame::read(&bytes, 0, frame::u64_at(&bytes, 8)) else {
        return Err(damaged("its first frame does not add up"));
    };
    let records = frame::records(payload).map_err(|reason| damaged(&reason))?;
    match records.first() {
        Some((frame::Kind::Identity, bytes)) if bytes.len() >= 16 => Ok(Some(frame::identity(bytes))),
        _ => Err(damaged("a segment without identity")),
    }
}
