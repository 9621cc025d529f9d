//! Files that survive a power cut: written beside, synced, renamed, and the folder synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fail::fail_point;

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}")]
pub struct FileError {
    /// What was tried, a verb.
    pub what: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: names the deed and the path.
    pub fn of(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { what, path, source }
    }
}

/// Replaces `path` by `bytes`, durably: after it returns the new content survives a power cut, before it the old one does.
///
/// # Errors
/// The file system's, with the path.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    rename_in(path, bytes, true)?;
    fail_point!("durable::renamed");
    File::open(folder).and_then(|dir| dir.sync_all()).map_err(FileError::of("sync", folder))
}

/// Replaces `path` by `bytes` at one instant for readers, without asking the disk to hold it: for files made anew after a boot.
///
/// # Errors
/// The file system's, with the path.
pub fn replace_volatile(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    rename_in(path, bytes, false)
}

fn rename_in(path: &Path, bytes: &[u8], sync: bool) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    fail_point!("durable::write", |_| Err(FileError::of("write", &new)(io::Error::other("fail point"))));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        if sync { file.sync_all() } else { Ok(()) }
    };
    write().map_err(FileError::of("write", &new))?;
    fail_point!("durable::rename", |_| Err(FileError::of("replace", path)(io::Error::other("fail point"))));
    fs::rename(&new, path).map_err(FileError::of("replace", path))
}

/// The file's bytes, or none when it does not exist.
///
/// # Errors
/// Any other failure to read.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::of("read", path)(error)),
    }
}

/// Removes a file, if there is one.
///
/// # Errors
/// The file system's, with the path.
pub fn remove_file(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::of("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a folder with everything in it, if there is one.
///
/// # Errors
/// The file system's, with the path; part of it may be gone.
pub fn remove_folder(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::of("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes a folder and those above it.
///
/// # Errors
/// The file system's, with the path.
pub fn make_folder(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::of("make", path))
}
