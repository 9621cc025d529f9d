//! Real agents, each an instance of a region that stands in for AWS: booted, killed with everything on them, replaced when the cluster has one terminated.
//! An instance reaches the coordinators through proxies of its own, so that it can be cut off.
//!
//! ```text
//! agent on 127.N.Z.H ─> 127.N.100+H.M:7400 (proxy) ─> 127.N.M.10:7400, coordinator M
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::Signal;
use vp_agent::layout::Layout;
use vp_core_tests::coordinators::{NODES_GROUP, Wanted, user_data, zone};
use vp_core_tests::group::MEMBERS;
use vp_core_tests::processes::{Process, all, variable};
use vp_core_tests::program::Program;
use vp_core_tests::proxy::{Flow, Proxy};
use vp_core_tests::region::{Instance, Region};
use vp_core_tests::root::Root;
use vp_proto::COORDINATOR_PORT;

use crate::hardware::Hardware;

/// First host number of instances in their zone's network.
const FIRST_HOST: u8 = 20;
/// Host numbers are used again after so many instances; the ids never are.
const HOSTS: u64 = 100;

/// One instance.
pub struct Node {
    root: PathBuf,
    address: Ipv4Addr,
    agent: Option<Program>,
    links: Vec<Proxy>,
    /// `VP_VIA` of the preload.
    detours: String,
    hardware: Hardware,
}

/// What an instance runs.
pub struct Programs {
    pub agent: PathBuf,
    /// The shared library of faults, under which it runs.
    pub preload: PathBuf,
}

/// All instances of one cluster.
pub struct Instances {
    programs: Programs,
    folder: PathBuf,
    wanted: Wanted,
    root: Arc<Root>,
    coordinators: Vec<SocketAddr>,
    booted: u64,
    pub nodes: BTreeMap<String, Node>,
}

impl Instances {
    pub fn new(programs: Programs, folder: PathBuf, wanted: Wanted, root: Arc<Root>, coordinators: Vec<SocketAddr>) -> Self {
        Self { programs, folder, wanted, root, coordinators, booted: 0, nodes: BTreeMap::new() }
    }

    /// The folder of all instances' disks.
    pub fn disks(&self) -> PathBuf {
        self.folder.join("instances")
    }

    /// Boots a new instance; its id.
    ///
    /// # Errors
    /// An address is taken or the agent does not start.
    pub async fn boot(&mut self, region: &mut Region) -> anyhow::Result<String> {
        let number = self.booted;
        self.booted += 1;
        let host = FIRST_HOST + u8::try_from(number % HOSTS)?;
        let zone_number = u8::try_from(number % 3)? + 1;
        let address = region.address(zone_number, host);
        let id = format!("i-{number:017x}");
        region.put(&id, Instance { address, zone: zone(zone_number), group: NODES_GROUP.to_owned(), state: "running" });
        let via: Vec<SocketAddr> = (1..=3).map(|member| SocketAddr::from((region.address(80 + host, member), COORDINATOR_PORT))).collect();
        let mut links = Vec::new();
        for (at, target) in via.iter().zip(&self.coordinators) {
            links.push(Proxy::start(*at, *target).await?);
        }
        let mut told = user_data(region, &self.wanted, &self.root, None);
        for (at, target) in via.iter().zip(&self.coordinators) {
            told = told.replace(&target.ip().to_string(), &at.ip().to_string());
        }
        region.serve_metadata(&id, told).await?;
        let root = self.disks().join(&id).join("root");
        for folder in [root.clone(), root.with_file_name("volumes")] {
            fs::create_dir_all(folder)?;
        }
        let hardware = Hardware::new(&self.programs.preload, &root.with_file_name("hardware"))?;
        // As after an earlier enrolment: the call back that a new one takes cannot come from a proxy's address.
        let agent = Layout::new(root.clone(), root.with_file_name("volumes")).agent();
        self.root.node(&id, address.into())?.save(&agent.join("certificate"))?;
        // A follower's redirect names where the leader really is: that way leads through the proxy as well.
        let detours = self.coordinators.iter().zip(&via).map(|(target, at)| format!("{}={}", target.ip(), at.ip())).collect::<Vec<_>>().join(" ");
        self.nodes.insert(id.clone(), Node { root, address, agent: None, links, detours, hardware });
        self.start_agent(&id, None)?;
        Ok(id)
    }

    /// Starts the agent of an instance, with fail points armed when given.
    ///
    /// # Errors
    /// The program does not start, or what an earlier one has noted cannot be removed.
    pub fn start_agent(&mut self, id: &str, fail_points: Option<&str>) -> anyhow::Result<()> {
        let Some(node) = self.nodes.get_mut(id) else { return Ok(()) };
        let mut command = Command::new(&self.programs.agent);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("VP_INSTANCE_ROOT", &node.root).env("VP_VOLUMES", node.root.with_file_name("volumes")).env("VP_IMAGE", self.folder.join("image"));
        command.env("VP_COMPONENTS", &self.folder).env("AWS_EC2_METADATA_SERVICE_ENDPOINT", Region::metadata_endpoint(node.address));
        command.envs(node.hardware.clock_environment()).env("VP_VIA", &node.detours);
        if let Some(armed) = fail_points {
            command.envs(node.hardware.arm(armed)?);
        }
        node.agent = Some(Program::start(command, &node.root.with_file_name("agent.log"))?);
        Ok(())
    }

    /// The ids, in order.
    pub fn ids(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// Agents that ended by themselves are started again, as the boot program does.
    ///
    /// # Errors
    /// The program does not start.
    pub fn keep_running(&mut self) -> anyhow::Result<()> {
        for id in self.ids() {
            if self.nodes.get_mut(&id).and_then(|node| node.agent.as_mut()).is_some_and(|agent| !agent.runs()) {
                self.start_agent(&id, None)?;
            }
        }
        Ok(())
    }
}

impl Node {
    /// SIGKILL to the agent alone.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Whether the agent runs.
    pub fn runs(&mut self) -> bool {
        self.agent.as_mut().is_some_and(Program::runs)
    }

    /// Whether the agent has slept by a fail point since it was last started with some armed.
    pub fn slept(&self) -> bool {
        self.hardware.slept()
    }

    /// A signal to the agent alone.
    pub fn signal(&self, signal: Signal) {
        if let Some(agent) = &self.agent {
            agent.signal(signal);
        }
    }

    /// What passes to and from the coordinators from now on.
    pub fn set_links(&self, forth: Flow, back: Flow) {
        for link in &self.links {
            link.set(forth, back);
        }
    }

    /// What passes to and from one coordinator.
    pub fn set_link(&self, member: usize, forth: Flow, back: Flow) {
        if let Some(link) = self.links.get(member) {
            link.set(forth, back);
        }
    }

    /// The agent's wall clock jumps, seconds from the truth.
    ///
    /// # Errors
    /// The offset cannot be written.
    pub fn set_clock(&self, seconds: i64) -> anyhow::Result<()> {
        self.hardware.set_clock(seconds)
    }

    /// Every connection to a coordinator is broken.
    pub fn reset_links(&self) {
        self.links.iter().for_each(Proxy::reset);
    }

    /// The machine is gone, and its boot program with it: its agent, and every process that carries its mark, until none is left.
    pub fn destroy(&mut self) {
        self.agent = None;
        loop {
            let left: Vec<Process> = marked(&self.root).collect();
            if left.is_empty() {
                return;
            }
            for process in left {
                // One that has ended meanwhile needs no signal.
                let _ = process.signal(Signal::SIGKILL);
            }
        }
    }
}

impl Node {
    /// As [`Node::destroy`], by an accident of which nobody is told: its connections are silent, not closed.
    pub fn destroy_quietly(&mut self) {
        self.set_links(Flow::Cut, Flow::Cut);
        self.destroy();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// Live processes of an instance's slots.
fn marked(root: &Path) -> impl Iterator<Item = Process> {
    let slots = root.join("slots");
    all().filter(move |pid| variable(*pid, "VP_SLOT_DIR").is_some_and(|mark| Path::new(&mark).starts_with(&slots))).filter_map(Process::of)
}

/// As many proxies as there are coordinators.
const _: () = assert!(MEMBERS == 3);
