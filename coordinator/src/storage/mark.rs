//! How far the log has come, kept beside its segments: a segment that is gone from the end would otherwise be missed by nothing, and what was acknowledged in
//! it forgotten without a word.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use super::{StorageError, log::sync_directory};

fn path(log: &Path) -> PathBuf {
    log.join("in-use")
}

/// Number of the newest segment that may hold anything acknowledged; 0: the log is in use, from before numbers were kept. None: nothing was ever written.
///
/// # Errors
/// It cannot be read, or is no number.
pub(super) fn read(log: &Path) -> Result<Option<u64>, StorageError> {
    let path = path(log);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StorageError::io("read", path, source)),
    };
    let number = if text.is_empty() { Ok(0) } else { text.trim_end().parse() };
    number.map(Some).map_err(|_| StorageError::Damaged { path, offset: 0, reason: "not a segment's number".to_owned() })
}

/// Durable before anything is acknowledged from segment `number`.
///
/// # Errors
/// It cannot be written.
pub(super) fn write(log: &Path, number: u64) -> Result<(), StorageError> {
    let path = path(log);
    let temporary = path.with_extension("tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(format!("{number}\n").as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&temporary, &path)).map_err(|source| StorageError::io("write", path, source))?;
    sync_directory(log)
}
