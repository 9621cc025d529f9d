//! Small files beside the log that are replaced whole: after a crash there is the old one or the new one.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::Path,
};

use super::StorageError;

/// Makes a folder's names durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|source| StorageError::io("sync", path, source))
}

/// Replaces `name` in `directory`; durable when this returns.
pub(super) fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
    let temporary = directory.join(name).with_extension("tmp");
    let io = |action| {
        let path = temporary.clone();
        move |source| StorageError::io(action, path, source)
    };
    let mut file = File::create(&temporary).map_err(io("create"))?;
    file.write_all(bytes).map_err(io("write"))?;
    file.sync_all().map_err(io("sync"))?;
    fs::rename(&temporary, directory.join(name)).map_err(io("rename"))?;
    sync_directory(directory)
}

/// What `path` holds, `None` when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StorageError::io("read", path, source)),
    }
}
