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

use vp_core_tests::channel::Tls;
use vp_core_tests::group::{MEMBERS, REGISTERS};
use vp_core_tests::program::Program;
use vp_core_tests::proxy::{Flow, Proxy};
use vp_core_tests::root::Root;

use crate::damage::Keeper;
use crate::hardware::Hardware;

const PORT: u16 = 7400;

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
    hardware: Vec<Hardware>,
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
        let hardware =
            (0..MEMBERS).map(|member| Hardware::new(&programs.preload, &folder.join((member + 1).to_string()))).collect::<anyhow::Result<Vec<_>>>()?;
        let mut new = Self { programs, folder: folder.to_owned(), network, root: Root::create(REGISTERS)?, processes, hardware, links };
        for from in 0..MEMBERS {
            for to in (0..MEMBERS).filter(|to| *to != from) {
                new.links.insert((from, to), Proxy::start(new.via(from, to), new.address(to)).await?);
            }
        }
        new.root.save(&new.trust())?;
        for member in 0..MEMBERS {
            fs::create_dir_all(new.disk(member))?;
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

    /// A member's disk when all are below `folder`.
    pub fn disk_below(folder: &Path, member: usize) -> PathBuf {
        folder.join(format!("{}/disk", member + 1))
    }

    fn disk(&self, member: usize) -> PathBuf {
        Self::disk_below(&self.folder, member)
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

    /// Starts a member on its disk, with fail points armed when given.
    ///
    /// # Errors
    /// The program does not start, or what an earlier one has noted cannot be removed.
    pub fn start_member(&mut self, member: usize, fail_points: Option<&str>) -> anyhow::Result<()> {
        let mut command = Command::new(&self.programs.register_server);
        command.arg("--id").arg((member + 1).to_string()).arg("--disk").arg(self.disk(member)).arg("--trust").arg(self.trust());
        for other in 0..MEMBERS {
            let address = if other == member { self.address(member) } else { self.via(member, other) };
            command.arg("--member").arg(format!("{}={address}", other + 1));
        }
        command.args(["--machine", "registers", "--snapshot-every", "400", "--segment-bytes", "65536"]).args(&self.programs.arguments);
        command.envs(self.hardware[member].environment()).envs(self.programs.environment.iter().cloned());
        if let Some(armed) = fail_points {
            command.envs(self.hardware[member].arm(armed)?);
        }
        self.processes[member] = Some(Program::start(command, &self.said(member))?);
        Ok(())
    }

    /// A member's process, unless it is down.
    pub fn process(&mut self, member: usize) -> Option<&mut Program> {
        self.processes[member].as_mut()
    }

    /// Whether a member has slept by a fail point since it was last started with some armed.
    pub fn slept(&self, member: usize) -> bool {
        self.hardware[member].slept()
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
        self.hardware[member].forget_unsynced(&self.log_folder(member))
    }

    /// The wall clock jumps, seconds from the truth.
    ///
    /// # Errors
    /// The offset cannot be written.
    pub fn set_clock(&self, member: usize, seconds: i64) -> anyhow::Result<()> {
        self.hardware[member].set_clock(seconds)
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

impl Keeper for Members {
    fn log_folder(&self, member: usize) -> PathBuf {
        self.disk(member).join("log")
    }

    fn said(&self, member: usize) -> PathBuf {
        self.folder.join(format!("{}/log", member + 1))
    }

    fn start(&mut self, member: usize) -> anyhow::Result<()> {
        self.start_member(member, None)
    }

    fn kill(&mut self, member: usize) {
        Members::kill(self, member);
    }

    fn runs(&mut self, member: usize) -> bool {
        self.process(member).is_some_and(Program::runs)
    }
}
