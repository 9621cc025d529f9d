//! Three members of one kind as separate processes on this machine, each with an address and a folder of its own: the coordinators' log under the
//! register service, or a peer. Everything else (clients, kills, figures) is the same for all.

pub mod etcd;
pub mod zookeeper;

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

/// What the members are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The coordinators' log.
    Vp,
    /// etcd, with its defaults.
    Etcd,
    /// The same, under TLS with certificates on both sides, as vp is.
    SecureEtcd,
    /// ZooKeeper, with its defaults.
    ZooKeeper,
}

impl Kind {
    /// Short name for tables and folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vp => "vp",
            Self::Etcd => "etcd",
            Self::SecureEtcd => "etcd under TLS",
            Self::ZooKeeper => "ZooKeeper",
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
    /// Folder of ZooKeeper's jars.
    pub zookeeper: PathBuf,
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
    certificates: Option<etcd::Certificates>,
}

impl Group {
    /// Starts all members on empty folders below `folder` and waits until one leads.
    ///
    /// # Errors
    /// A program does not start, or nobody leads within 20 s.
    pub async fn start(kind: Kind, setting: Setting, folder: &Path) -> anyhow::Result<Self> {
        let mut group = Self { kind, setting, folder: folder.join(kind.name()), members: (0..MEMBERS).map(|_| None).collect(), tls: None, certificates: None };
        std::fs::create_dir_all(&group.folder)?;
        match kind {
            Kind::Vp => {
                let root = Root::create(REGISTERS)?;
                root.save(&group.trust())?;
                group.tls = Some(root.peer()?);
            }
            Kind::SecureEtcd => {
                let certificates = etcd::Certificates::create(&group.folder, group.addresses().into_iter())?;
                group.tls = Some(certificates.client.clone());
                group.certificates = Some(certificates);
            }
            Kind::Etcd | Kind::ZooKeeper => {}
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

    /// How clients are secured; none: in the clear.
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
        let kind = match self.kind {
            Kind::Vp => 0,
            Kind::Etcd => 1,
            Kind::SecureEtcd => 2,
            Kind::ZooKeeper => 3,
        };
        Ipv4Addr::new(127, second, third + kind, host).into()
    }

    fn addresses(&self) -> Vec<IpAddr> {
        (0..MEMBERS).map(|member| self.ip(member)).collect()
    }

    /// Where clients reach a member.
    pub fn address(&self, member: usize) -> SocketAddr {
        let port = match self.kind {
            Kind::Vp => CLIENT_PORT,
            Kind::Etcd | Kind::SecureEtcd => etcd::CLIENT_PORT,
            Kind::ZooKeeper => zookeeper::CLIENT_PORT,
        };
        SocketAddr::new(self.ip(member), port)
    }

    /// Starts a member on its folder.
    ///
    /// # Errors
    /// The program does not start.
    pub fn start_member(&mut self, member: usize) -> anyhow::Result<()> {
        let command = match self.kind {
            Kind::Vp => self.vp(member),
            Kind::Etcd | Kind::SecureEtcd => etcd::command(&self.setting.etcd, member, &self.addresses(), &self.disk(member), self.certificates.as_ref()),
            Kind::ZooKeeper => zookeeper::command(&self.setting.zookeeper, member, &self.addresses(), &self.disk(member))?,
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
        Ok(self.status(member).await?.0)
    }

    /// How far a member's log reaches, to see that one has caught up.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn reached(&self, member: usize) -> anyhow::Result<u64> {
        Ok(timeout(Duration::from_secs(1), self.status(member)).await.context("no answer within 1 s")??.1)
    }

    /// Whether a member leads, and how far its log reaches.
    async fn status(&self, member: usize) -> anyhow::Result<(bool, u64)> {
        let address = self.address(member);
        match self.kind {
            Kind::Vp => {
                let said = RegistersClient::new(channel::open(address, None, self.tls()).await?).member(MemberRequest {}).await?.into_inner();
                Ok((said.leads, said.applied))
            }
            Kind::Etcd | Kind::SecureEtcd => {
                let said = MaintenanceClient::new(channel::open(address, None, self.tls()).await?).status(StatusRequest {}).await?.into_inner();
                Ok((said.leader != 0 && said.header.is_some_and(|header| header.member_id == said.leader), said.raft_index))
            }
            Kind::ZooKeeper => zookeeper::status(address).await,
        }
    }
}
