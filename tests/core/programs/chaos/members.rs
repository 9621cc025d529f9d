//! Three register servers whose every link, disk and clock can be made bad: peers reach each other through proxies, unsynced writes and the wall clock are in
//! the hands of `preload/faults.c`.
//!
//! ```text
//! clients ──────────────> 127.N.0.M:7400   member M
//! member F ─> 127.N.F.M:7400 (proxy) ────> member M
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use vp_core_tests::channel::Tls;
use vp_core_tests::group::{MEMBERS, REGISTERS};
use vp_core_tests::program::Program;
use vp_core_tests::proxy::{Flow, Proxy};
use vp_core_tests::root::Root;

const PORT: u16 = 7400;
/// How long a sync takes, µs: as a good disk's.
const SYNC_US: &str = "2000";

/// Where the programs are and what is planted.
#[derive(Clone, Debug)]
pub struct Programs {
    pub register_server: PathBuf,
    /// The shared library of faults.
    pub preload: PathBuf,
    /// More arguments, for planted bugs.
    pub arguments: Vec<String>,
    /// More environment, for planted bugs.
    pub environment: Vec<(String, String)>,
}

/// The members of one cluster; killed when dropped.
pub struct Members {
    programs: Programs,
    folder: PathBuf,
    network: u8,
    root: Root,
    processes: Vec<Option<Program>>,
    /// By who calls and who is called.
    links: BTreeMap<(usize, usize), Proxy>,
}

impl Members {
    /// Starts all on empty folders.
    ///
    /// # Errors
    /// An address is taken or the program does not start.
    pub async fn start(programs: Programs, folder: &Path, network: u8) -> anyhow::Result<Self> {
        let (processes, links) = ((0..MEMBERS).map(|_| None).collect(), BTreeMap::new());
        let mut new = Self { programs, folder: folder.to_owned(), network, root: Root::create(REGISTERS)?, processes, links };
        for from in 0..MEMBERS {
            for to in (0..MEMBERS).filter(|to| *to != from) {
                new.links.insert((from, to), Proxy::start(new.via(from, to), new.address(to)).await?);
            }
        }
        new.root.save(&new.trust())?;
        for member in 0..MEMBERS {
            fs::create_dir_all(new.disk(member))?;
            fs::create_dir_all(new.undo(member))?;
            fs::write(new.clock(member), 0_i64.to_ne_bytes())?;
            new.start_member(member, None)?;
        }
        Ok(new)
    }

    fn at(&self, third: usize, member: usize) -> SocketAddr {
        let part = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
        SocketAddr::from(([127, self.network, part(third), part(member + 1)], PORT))
    }

    /// Where clients reach a member.
    pub fn address(&self, member: usize) -> SocketAddr {
        self.at(0, member)
    }

    fn via(&self, from: usize, to: usize) -> SocketAddr {
        self.at(from + 1, to)
    }

    /// A member's disk.
    pub fn disk(&self, member: usize) -> PathBuf {
        self.folder.join(format!("{}/disk", member + 1))
    }

    fn undo(&self, member: usize) -> PathBuf {
        self.folder.join(format!("{}/undo", member + 1))
    }

    fn clock(&self, member: usize) -> PathBuf {
        self.folder.join(format!("{}/clock", member + 1))
    }

    fn trust(&self) -> PathBuf {
        self.folder.join("trust")
    }

    /// How clients are secured: under a certificate that no jump of a member's clock makes worthless.
    ///
    /// # Errors
    /// No randomness.
    pub fn tls(&self) -> anyhow::Result<Tls> {
        Ok(Some(self.root.peer()?))
    }

    /// What a member says.
    pub fn log(&self, member: usize) -> PathBuf {
        self.folder.join(format!("{}/log", member + 1))
    }

    /// Starts a member on its disk, with fail points armed when given.
    ///
    /// # Errors
    /// The program does not start.
    pub fn start_member(&mut self, member: usize, fail_points: Option<&str>) -> anyhow::Result<()> {
        let mut command = Command::new(&self.programs.register_server);
        command.arg("--id").arg((member + 1).to_string()).arg("--disk").arg(self.disk(member)).arg("--trust").arg(self.trust());
        for other in 0..MEMBERS {
            let address = if other == member { self.address(member) } else { self.via(member, other) };
            command.arg("--member").arg(format!("{}={address}", other + 1));
        }
        command.args(["--machine", "registers", "--snapshot-every", "400", "--segment-bytes", "65536"]).args(&self.programs.arguments);
        command.env("LD_PRELOAD", &self.programs.preload).env("VP_UNDO", self.undo(member)).env("VP_CLOCK", self.clock(member)).env("VP_SYNC_US", SYNC_US);
        command.envs(self.programs.environment.iter().cloned());
        if let Some(armed) = fail_points {
            command.env("FAILPOINTS", armed);
        }
        self.processes[member] = Some(Program::start(command, &self.log(member))?);
        Ok(())
    }

    /// A member's process, unless it is down.
    pub fn process(&mut self, member: usize) -> Option<&mut Program> {
        self.processes[member].as_mut()
    }

    /// SIGKILL: what was written but not synced is in the kernel and survives.
    pub fn kill(&mut self, member: usize) {
        if let Some(process) = self.processes[member].take() {
            process.kill();
        }
    }

    /// SIGKILL, and what was not synced is gone. Returns how many writes were lost.
    ///
    /// # Errors
    /// A journal cannot be played back.
    pub fn lose_power(&mut self, member: usize) -> anyhow::Result<usize> {
        self.kill(member);
        let mut lost = 0;
        for entry in fs::read_dir(self.undo(member))? {
            let journal = entry?.path();
            let segment = self.disk(member).join("log").join(journal.file_stem().context("a journal has a name")?);
            lost += play_back(&journal, &segment)?;
            fs::remove_file(&journal)?;
        }
        Ok(lost)
    }

    /// The wall clock jumps, seconds from the truth.
    ///
    /// # Errors
    /// The offset cannot be written.
    pub fn set_clock(&self, member: usize, seconds: i64) -> anyhow::Result<()> {
        // In place: the member has the file mapped.
        use std::os::unix::fs::FileExt as _;
        let file = fs::OpenOptions::new().write(true).open(self.clock(member))?;
        Ok(file.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }

    /// The link from one to another: what the caller's requests and the answers to them meet. Raft's answers travel in calls of their own.
    pub fn link(&self, from: usize, to: usize) -> Option<&Proxy> {
        self.links.get(&(from, to))
    }

    /// Every link is good again; broken connections are made anew.
    pub fn heal_links(&self, reset: bool) {
        for link in self.links.values() {
            link.set(Flow::Open, Flow::Open);
            if reset {
                link.reset();
            }
        }
    }
}

/// Puts back what was there before the writes that were never synced, newest first.
fn play_back(journal: &Path, segment: &Path) -> anyhow::Result<usize> {
    use std::os::unix::fs::FileExt as _;
    let bytes = fs::read(journal)?;
    let number = |at: usize| bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map(u64::from_ne_bytes);
    let mut records = Vec::new();
    let mut at = 0;
    while let (Some(offset), Some(length)) = (number(at), number(at + 8)) {
        let end = at + 16 + usize::try_from(length)?;
        // Killed while it wrote the journal: the write itself never happened.
        let Some(before) = bytes.get(at + 16..end) else { break };
        records.push((offset, before));
        at = end;
    }
    if records.is_empty() || !segment.exists() {
        return Ok(0);
    }
    let file = fs::OpenOptions::new().write(true).open(segment)?;
    for (offset, before) in records.iter().rev() {
        file.write_all_at(before, *offset)?;
    }
    Ok(records.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsynced_writes_are_undone_newest_first_and_a_cut_journal_ends_where_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, segment) = (dir.path().join("a.seg.undo"), dir.path().join("a.seg"));
        fs::write(&segment, b"--second--").unwrap();
        let record = |offset: u64, before: &[u8]| [&offset.to_ne_bytes()[..], &(before.len() as u64).to_ne_bytes(), before].concat();
        let mut bytes = [record(2, b"000000"), record(2, b"first!")].concat();
        bytes.extend(&record(0, b"never written")[..20]);
        fs::write(&journal, bytes).unwrap();
        assert_eq!(play_back(&journal, &segment).unwrap(), 2);
        assert_eq!(fs::read(&segment).unwrap(), b"--000000--");
    }
}
