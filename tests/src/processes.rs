//! The machine's own account of who runs: slots' processes by the mark that the agent leaves in their environment, agents and coordinators by their program.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::Region;

/// State letter and start time of a process; none when it is gone or only waits to be reaped.
pub fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (!matches!(state, 'Z' | 'X')).then_some((state, start))
}

/// Every process there is.
pub fn all() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A variable of the environment a process was started with.
pub fn variable(pid: i32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut pairs = environment.split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

/// A live process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub pid: i32,
    pub start: u64,
}

impl Process {
    /// What has this number now.
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|(_, start)| Self { pid, start })
    }

    pub fn alive(&self) -> bool {
        stat(self.pid).is_some_and(|(_, start)| start == self.start)
    }

    /// Sends a signal to exactly this process.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        anyhow::ensure!(self.alive(), "process {} is gone", self.pid);
        Ok(kill(Pid::from_raw(self.pid), signal)?)
    }
}

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

    /// Processes of a slot wherever they are, by the instance.
    pub fn role_processes(&self, role: &str) -> anyhow::Result<Vec<(String, Process)>> {
        let mut found = Vec::new();
        for slot in self.slots()?.into_iter().filter(|slot| slot.role == role) {
            if let Some(instance) = slot.instance {
                found.extend(self.slot_processes(&instance, &slot.name).into_iter().map(|process| (slot.name.clone(), process)));
            }
        }
        Ok(found)
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
