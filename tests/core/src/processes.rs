//! The machine's own account of what runs: processes, told apart from later ones with the same number, and the environment they were started with.

use std::{collections::BTreeMap, fs, io::Read};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

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

/// The environment a process was started with. Empty for a moment while the process begins another program.
pub fn environment(pid: i32) -> Option<BTreeMap<String, String>> {
    let mut file = fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    // In one piece: read bit by bit, it ends in the middle when its process begins another program.
    let mut bytes = vec![0; 256 * 1024];
    let read = file.read(&mut bytes).ok()?;
    let pairs = bytes[..read].split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='));
    Some(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// A variable of the environment a process was started with.
pub fn variable(pid: i32, name: &str) -> Option<String> {
    environment(pid)?.remove(name)
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
