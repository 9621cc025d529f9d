//! Where things lie below `VP_INSTANCE_ROOT` (docs/contracts.md §3).

use std::path::{Path, PathBuf};

use crate::slot::Slot;

/// The folders of one agent.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    volumes: PathBuf,
}

impl Layout {
    /// Below `root`, with attached volumes in `volumes`.
    pub fn new(root: PathBuf, volumes: PathBuf) -> Self {
        Self { root, volumes }
    }

    /// The agent's own state.
    pub fn agent(&self) -> PathBuf {
        self.root.join("agent")
    }

    /// The record of the process that runs for a slot.
    pub fn process_record(&self, slot: &Slot) -> PathBuf {
        self.agent().join("processes").join(format!("{slot}.json"))
    }

    /// Names of every placed slot, for the JVMs' resolver.
    pub fn hosts_file(&self) -> PathBuf {
        self.agent().join("hosts")
    }

    /// Everything of one slot that dies with the instance.
    pub fn slot(&self, slot: &Slot) -> PathBuf {
        self.root.join("slots").join(slot.to_string())
    }

    /// The slot's rendered files.
    pub fn config_dir(&self, slot: &Slot) -> PathBuf {
        self.slot(slot).join("config")
    }

    /// The slot's sockets and progress files.
    pub fn run_dir(&self, slot: &Slot) -> PathBuf {
        self.slot(slot).join("run")
    }

    /// The slot's temporary files: `TMPDIR` of its processes, emptied before each start.
    pub fn temp_dir(&self, slot: &Slot) -> PathBuf {
        self.slot(slot).join("tmp")
    }

    /// The slot's logs; what the role prints is in `SLOT.log`.
    pub fn log_dir(&self, slot: &Slot) -> PathBuf {
        self.slot(slot).join("log")
    }

    /// The slot's data: on its volume when it owns one.
    pub fn data_dir(&self, slot: &Slot, volume: Option<&str>) -> PathBuf {
        match volume {
            Some(volume) => self.volume(volume).join("data"),
            None => self.slot(slot).join("data"),
        }
    }

    /// Where a volume appears when it is attached.
    pub fn volume(&self, volume: &str) -> PathBuf {
        self.volumes.join(volume)
    }

    /// The instance's own folder.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
