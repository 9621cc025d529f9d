//! The machine's own account of who runs: slots' processes by the mark that the agent leaves in their environment, agents and coordinators by their program.

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use vp_core_tests::processes::{Process, all, stat, variable};

use crate::Region;

impl Region {
    /// Where a slot lies on an instance: the mark of its processes.
    pub fn mark(&self, instance: &str, slot: &str) -> PathBuf {
        self.disk(instance).join("root/slots").join(slot)
    }

    /// The live processes of a slot on an instance.
    pub fn slot_processes(&self, instance: &str, slot: &str) -> Vec<Process> {
        let mark = self.mark(instance, slot);
        let marked = all().filter(|pid| variable(*pid, "VP_SLOT_DIR").is_some_and(|value| Path::new(&value) == mark));
        let mut found: Vec<Process> = marked.filter_map(Process::of).collect();
        found.sort();
        found
    }

    /// A service of the region itself, by its name in the region's record.
    ///
    /// # Errors
    /// It does not run.
    pub fn service(&self, name: &str) -> anyhow::Result<Process> {
        let record: serde_json::Value = serde_json::from_slice(&fs::read(self.state().join("region.json"))?)?;
        let pid = record["services"][name]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Process::of).ok_or_else(|| anyhow::anyhow!("no {name} runs"))
    }

    /// The agent or coordinator (`program`) of an instance: the process that the boot program keeps running, not a guard it started.
    ///
    /// # Errors
    /// None runs just now.
    pub fn daemon(&self, instance: &str, program: &str) -> anyhow::Result<Process> {
        let root = self.disk(instance).join("root");
        let here = |pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
            let named = words.next().is_some_and(|first| first.ends_with(&format!("/{program}")));
            let alone = words.next().is_none_or(|second| second.is_empty());
            named && alone && variable(*pid, "VP_INSTANCE_ROOT").is_some_and(|value| Path::new(&value) == root)
        };
        all().filter(here).find_map(Process::of).ok_or_else(|| anyhow::anyhow!("no {program} runs on {instance}"))
    }
}
