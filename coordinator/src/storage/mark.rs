//! How far the log has come, kept beside its segments: a segment that is gone from the end would otherwise be missed by nothing, and what was acknowledged in
//! it forgotten without a word.

use std::path::Path;

use super::{StorageError, file};

const NAME: &str = "in-use";

/// Number of the newest segment that may hold anything acknowledged; 0: the log is in use, from before numbers were kept. None: nothing was ever written.
///
/// # Errors
/// It cannot be read, or is no number.
pub(super) fn read(log: &Path) -> Result<Option<u64>, StorageError> {
    let path = log.join(NAME);
    let Some(bytes) = file::read(&path)? else { return Ok(None) };
    let text = str::from_utf8(&bytes).ok().map(str::trim_end);
    let number = text.and_then(|text| if text.is_empty() { Some(0) } else { text.parse().ok() });
    number.map(Some).ok_or_else(|| StorageError::Damaged { path, offset: 0, reason: "not a segment's number".to_owned() })
}

/// Durable before anything is acknowledged from segment `number`.
///
/// # Errors
/// It cannot be written.
pub(super) fn write(log: &Path, number: u64) -> Result<(), StorageError> {
    file::replace(log, NAME, format!("{number}\n").as_bytes())
}
