//! An instance's control group, on machines where we may make one (root): equal CPU shares, a memory limit by instance type, a limit of
//! processes. Version 1 hierarchies and the unified one. Without the right to make one an instance simply has none.

use std::path::{Path, PathBuf};

use tracing::debug;

use super::instance_types;

const BASE: &str = "/sys/fs/cgroup";
/// Room above the instance type's memory: page cache and the threads of many small JVMs count against the group.
const MEMORY_FACTOR: u64 = 2;
const MAX_PROCESSES: u32 = 8192;

/// The folders of one instance's group, one a hierarchy; none when it has no group.
#[derive(Debug, Clone)]
pub struct Cgroup {
    folders: Vec<PathBuf>,
}

fn unified() -> bool {
    Path::new(BASE).join("cgroup.controllers").exists()
}

fn hierarchies() -> Vec<PathBuf> {
    if unified() {
        return vec![PathBuf::from(BASE)];
    }
    ["cpu", "memory", "pids"].iter().map(|name| Path::new(BASE).join(name)).filter(|path| path.is_dir()).collect()
}

fn region_name(region: &str) -> String {
    format!("vp-{region}")
}

impl Cgroup {
    /// The folders that the group of `instance` has, or would have.
    pub fn of(region: &str, instance: &str) -> Self {
        Self { folders: hierarchies().into_iter().map(|base| base.join(region_name(region)).join(instance)).collect() }
    }

    /// Makes the group with its limits. What the machine does not allow is left out.
    pub fn create(region: &str, instance: &str, instance_type: &str) -> Self {
        if !nix::unistd::geteuid().is_root() {
            return Self { folders: Vec::new() };
        }
        let mut group = Self::of(region, instance);
        let memory = instance_types::size(instance_type).map(|size| size.memory_mib * MEMORY_FACTOR * 1024 * 1024);
        group.folders.retain(|folder| {
            let made = std::fs::create_dir_all(folder);
            if let (true, Some(parent)) = (unified(), folder.parent()) {
                for at in [Path::new(BASE), parent] {
                    set(&at.join("cgroup.subtree_control"), "+cpu +memory +pids");
                }
            }
            if let Err(error) = &made {
                debug!(folder = %folder.display(), %error, "no control group");
            }
            made.is_ok()
        });
        for folder in &group.folders {
            for (file, value) in [
                ("cpu.shares", Some("1024".to_owned())),
                ("cpu.weight", Some("100".to_owned())),
                ("memory.limit_in_bytes", memory.map(|bytes| bytes.to_string())),
                ("memory.max", memory.map(|bytes| bytes.to_string())),
                ("pids.max", Some(MAX_PROCESSES.to_string())),
            ] {
                if let (true, Some(value)) = (folder.join(file).exists(), value) {
                    set(&folder.join(file), &value);
                }
            }
        }
        group
    }

    /// The files into which a process writes its pid to be in the group.
    pub fn entrances(&self) -> Vec<PathBuf> {
        self.folders.iter().map(|folder| folder.join("cgroup.procs")).collect()
    }

    /// Removes the group, whose processes are gone; best effort, `remove_region` comes again.
    pub fn remove(&self) {
        for folder in &self.folders {
            remove_tree(folder);
        }
    }
}

/// Removes every group of a region, whose processes are gone.
pub fn remove_region(region: &str) {
    for base in hierarchies() {
        remove_tree(&base.join(region_name(region)));
    }
}

/// A group may hold groups that its processes made; only rmdir, from the leaves up, removes one.
fn remove_tree(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_tree(&entry.path());
    }
    if let Err(error) = std::fs::remove_dir(folder) {
        debug!(folder = %folder.display(), %error, "control group not removed");
    }
}

fn set(file: &Path, value: &str) {
    if let Err(error) = std::fs::write(file, value) {
        debug!(file = %file.display(), value, %error, "control group limit not set");
    }
}
