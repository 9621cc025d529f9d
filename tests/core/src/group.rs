//! Three members of one kind as separate processes on this machine, each with an address and a folder of its own: the coordinators' log under the
//! register service, or etcd. Everything else (clients, kills, figures) is the same for both.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::time::{sleep, timeout};

use crate::channel::{self, Tls};
use crate::program::Program;
use crate::root::Root;
use crate::wire::etcd::{StatusRequest, maintenance_client::MaintenanceClient};
use crate::wire::registers::{MemberRequest, registers_client::RegistersClient};

/// Name of the cluster that register servers make.
pub const REGISTERS: &str = "registers";
/// Members of every group here.
pub const MEMBERS: usize = 3;
const CLIENT_PORT: u16 = 7400;
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

/// What the members are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The coordinators' log.
    Vp,
    /// etcd, with its defaults.
    Etcd,
}

impl Kind {
    /// Short name for tables and folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vp => "vp",
            Self::Etcd => "etcd",
        }
    }
}

/// Where the programs are and how members are started.
#[derive(Clone, Debug)]
pub struct Setting {
    /// `register-server`.
    pub register_server: PathBuf,
    /// `etcd`.
    pub etcd: PathBuf,
    /// More arguments for `register-server`.
    pub arguments: Vec<String>,
    /// Second octet of the members' addresses; the third tells groups apart.
    pub network: (u8, u8),
}

/// A running group; killed when dropped.
pub struct Group {
    kind: Kind,
    setting: Setting,
    folder: PathBuf,
    members: Vec<Option<Program>>,
    tls: Tls,
}

impl Group {
    /// Starts all members on empty folders below `folder` and waits until one leads.
    ///
    /// # Errors
    /// A program does not start, or nobody leads within 20 s.
    pub async fn start(kind: Kind, setting: Setting, folder: &Path) -> anyhow::Result<Self> {
        let mut group = Self { kind, setting, folder: folder.join(kind.name()), members: (0..MEMBERS).map(|_| None).collect(), tls: None };
        if kind == Kind::Vp {
            let root = Root::create(REGISTERS)?;
            root.save(&group.trust())?;
            group.tls = Some(root.peer()?);
        }
        for member in 0..MEMBERS {
            std::fs::create_dir_all(group.disk(member))?;
            group.start_member(member)?;
        }
        group.leader(Duration::from_secs(20)).await?;
        Ok(group)
    }

    fn trust(&self) -> PathBuf {
        self.folder.join("trust")
    }

    /// How clients are secured: ours always, etcd as its benchmarks have it.
    pub fn tls(&self) -> Tls {
        self.tls.clone()
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn disk(&self, member: usize) -> PathBuf {
        self.folder.join(member.to_string())
    }

    fn ip(&self, member: usize) -> IpAddr {
        let (second, third) = self.setting.network;
        let host = u8::try_from(member + 1).unwrap_or(u8::MAX);
        Ipv4Addr::new(127, second, third + u8::from(self.kind == Kind::Etcd), host).into()
    }

    /// Where clients reach a member.
    pub fn address(&self, member: usize) -> SocketAddr {
        SocketAddr::new(self.ip(member), if self.kind == Kind::Etcd { ETCD_PORT } else { CLIENT_PORT })
    }

    /// Starts a member on its folder.
    ///
    /// # Errors
    /// The program does not start.
    pub fn start_member(&mut self, member: usize) -> anyhow::Result<()> {
        let command = match self.kind {
            Kind::Vp => self.vp(member),
            Kind::Etcd => self.etcd(member),
        };
        self.members[member] = Some(Program::start(command, &self.folder.join(format!("{member}.log")))?);
        Ok(())
    }

    fn vp(&self, member: usize) -> Command {
        let mut command = Command::new(&self.setting.register_server);
        command.arg("--id").arg((member + 1).to_string()).arg("--disk").arg(self.disk(member)).arg("--trust").arg(self.trust());
        command.args(&self.setting.arguments);
        for other in 0..MEMBERS {
            command.arg("--member").arg(format!("{}={}", other + 1, self.address(other)));
        }
        command
    }

    fn etcd(&self, member: usize) -> Command {
        let client = |member| format!("http://{}:{ETCD_PORT}", self.ip(member));
        let peer = |member| format!("http://{}:{ETCD_PEER_PORT}", self.ip(member));
        let all: Vec<String> = (0..MEMBERS).map(|other| format!("m{other}={}", peer(other))).collect();
        let mut command = Command::new(&self.setting.etcd);
        command.args(["--name", &format!("m{member}"), "--data-dir"]).arg(self.disk(member));
        command.args(["--listen-client-urls", &client(member), "--advertise-client-urls", &client(member)]);
        command.args(["--listen-peer-urls", &peer(member), "--initial-advertise-peer-urls", &peer(member)]);
        command.args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new", "--log-level", "warn"]);
        command
    }

    /// A member's process, unless it was killed.
    pub fn process(&self, member: usize) -> Option<&Program> {
        self.members[member].as_ref()
    }

    /// SIGKILL.
    pub fn kill(&mut self, member: usize) {
        if let Some(process) = self.members[member].take() {
            process.kill();
        }
    }

    /// Processor time of all members so far.
    pub fn cpu(&self) -> Duration {
        self.members.iter().flatten().map(Program::cpu).sum()
    }

    /// Who leads, as the members themselves say; waits for it.
    ///
    /// # Errors
    /// Nobody within `patience`.
    pub async fn leader(&self, patience: Duration) -> anyhow::Result<usize> {
        let begun = Instant::now();
        while begun.elapsed() < patience {
            for member in (0..MEMBERS).filter(|member| self.members[*member].is_some()) {
                if matches!(timeout(Duration::from_secs(1), self.leads(member)).await, Ok(Ok(true))) {
                    return Ok(member);
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        bail!("no {} member leads after {} s; see {}/*.log", self.kind.name(), patience.as_secs(), self.folder.display())
    }

    async fn leads(&self, member: usize) -> anyhow::Result<bool> {
        let channel = channel::open(self.address(member), None, self.tls()).await?;
        Ok(match self.kind {
            Kind::Vp => RegistersClient::new(channel).member(MemberRequest {}).await?.into_inner().leads,
            Kind::Etcd => {
                let status = MaintenanceClient::new(channel).status(StatusRequest {}).await?.into_inner();
                status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader)
            }
        })
    }

    /// How far a member's log reaches, to see that one has caught up.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn reached(&self, member: usize) -> anyhow::Result<u64> {
        let asked = async {
            let channel = channel::open(self.address(member), None, self.tls()).await?;
            anyhow::Ok(match self.kind {
                Kind::Vp => RegistersClient::new(channel).member(MemberRequest {}).await?.into_inner().applied,
                Kind::Etcd => MaintenanceClient::new(channel).status(StatusRequest {}).await?.into_inner().raft_index,
            })
        };
        timeout(Duration::from_secs(1), asked).await.context("no answer within 1 s")?
    }
}
