//! `instances/ID/`: an instance's disk, its console, the links to its volumes, and the one durable fact "it was booted" (`init.json`).

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::KeeperError;
use super::launcher::Attached;
use crate::region::RecordedProcess;

/// Folder of one instance.
#[derive(Debug, Clone)]
pub struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// The disk of `instance` in the region whose state is in `state`.
    pub fn of(state: &Path, instance: &str) -> Self {
        Self { folder: state.join("instances").join(instance) }
    }

    /// A disk by its folder.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Disks of every instance that ever was in the region.
    pub fn all(state: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(state.join("instances")).into_iter().flatten().flatten();
        entries.map(|entry| Self::at(entry.path())).collect()
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the instance keeps its data and logs.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Where its attached volumes are linked.
    pub fn volumes(&self) -> PathBuf {
        self.folder.join("volumes")
    }

    /// What boot and its children print.
    pub fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// What its metadata service is told beside the control API (spot notice, …); absent by default.
    pub fn notices(&self) -> PathBuf {
        self.folder.join("notices.json")
    }

    fn mark(&self) -> PathBuf {
        self.folder.join("init.json")
    }

    /// Makes the folders.
    ///
    /// # Errors
    /// `File`.
    pub fn prepare(&self) -> Result<(), KeeperError> {
        for folder in [self.root(), self.volumes()] {
            std::fs::create_dir_all(&folder).map_err(|source| KeeperError::File { path: folder, doing: "making an instance's disk", source })?;
        }
        Ok(())
    }

    /// PID 1 of the instance when it was booted, living or not; pid 0 when it never will be.
    ///
    /// # Errors
    /// `File`, `Config` when the mark cannot be understood.
    pub fn init(&self) -> Result<Option<RecordedProcess>, KeeperError> {
        let path = self.mark();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| KeeperError::Config { path, reason: error.to_string() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KeeperError::File { path, doing: "reading an instance's mark", source }),
        }
    }

    /// Records PID 1, durably, before it may run anything. False when the instance was booted before: then nothing may be started.
    ///
    /// # Errors
    /// `File`.
    pub fn mark_booted(&self, process: RecordedProcess) -> Result<bool, KeeperError> {
        let path = self.mark();
        let fail = |source| KeeperError::File { path: path.clone(), doing: "marking an instance as booted", source };
        let fresh = self.folder.join(format!("init.json.{}", std::process::id()));
        let write = || -> std::io::Result<bool> {
            let mut file = std::fs::File::create(&fresh)?;
            serde_json::to_writer(&mut file, &process)?;
            file.flush()?;
            file.sync_data()?;
            // A link is made only where none is: of two that try, one boots.
            let first = match std::fs::hard_link(&fresh, &path) {
                Ok(()) => true,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(error),
            };
            std::fs::remove_file(&fresh)?;
            std::fs::File::open(&self.folder)?.sync_data()?;
            Ok(first)
        };
        write().map_err(fail)
    }

    /// Rules out that the instance is ever booted.
    ///
    /// # Errors
    /// `File`.
    pub fn never_boot(&self) -> Result<(), KeeperError> {
        self.mark_booted(RecordedProcess { pid: 0, start_time: 0 }).map(|_| ())
    }

    /// Makes the links agree with what is attached; a volume's folder is made when it is first seen.
    ///
    /// # Errors
    /// `File`.
    pub fn link_volumes(&self, state: &Path, attached: &[Attached]) -> Result<(), KeeperError> {
        let links = self.volumes();
        let fail = |path: &Path, doing| {
            let path = path.to_path_buf();
            move |source| KeeperError::File { path, doing, source }
        };
        let wanted: BTreeSet<&str> = attached.iter().map(|one| one.volume.as_str()).collect();
        let entries = std::fs::read_dir(&links).map_err(fail(&links, "reading volume links"))?;
        let mut present = BTreeSet::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if wanted.contains(name.as_str()) {
                present.insert(name);
            } else {
                std::fs::remove_file(entry.path()).map_err(fail(&entry.path(), "removing a volume link"))?;
            }
        }
        for volume in wanted {
            if !present.contains(volume) {
                let folder = state.join("volumes").join(volume);
                std::fs::create_dir_all(&folder).map_err(fail(&folder, "making a volume"))?;
                let link = links.join(volume);
                symlink(&folder, &link).map_err(fail(&link, "linking a volume"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_that_mark_an_instance_as_booted_only_the_first_may_boot() {
        let state = tempfile::tempdir().unwrap();
        let disk = Disk::of(state.path(), "i-1");
        disk.prepare().unwrap();
        let first = RecordedProcess { pid: 10, start_time: 1 };
        assert!(disk.mark_booted(first).unwrap());
        assert!(!disk.mark_booted(RecordedProcess { pid: 11, start_time: 2 }).unwrap());
        disk.never_boot().unwrap();
        assert_eq!(disk.init().unwrap(), Some(first));
    }

    #[test]
    fn volume_links_follow_what_is_attached_and_data_stays() {
        let state = tempfile::tempdir().unwrap();
        let disk = Disk::of(state.path(), "i-1");
        disk.prepare().unwrap();
        let volume = |id: &str| Attached { volume: id.to_owned(), device: "/dev/sdf".to_owned() };
        disk.link_volumes(state.path(), &[volume("vol-1")]).unwrap();
        std::fs::write(disk.volumes().join("vol-1/data"), "kept").unwrap();
        disk.link_volumes(state.path(), &[volume("vol-2")]).unwrap();
        assert!(!disk.volumes().join("vol-1").exists() && disk.volumes().join("vol-2").exists());
        let other = Disk::of(state.path(), "i-2");
        other.prepare().unwrap();
        other.link_volumes(state.path(), &[volume("vol-1")]).unwrap();
        assert_eq!(std::fs::read_to_string(other.volumes().join("vol-1/data")).unwrap(), "kept");
    }
}
