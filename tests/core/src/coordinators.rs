//! Three and more real `vp-coordinator` daemons in a [`Region`] that stands in for AWS: started as an image's boot program starts them, killed and started again.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use rustls::ClientConfig;
use tokio::time::{sleep, timeout};
use vp_coordinator::{
    bootstrap::cluster_id,
    claims::{RECORD, Record},
};
use vp_proto::COORDINATOR_PORT;
use vp_proto::v1::{IdentifyRequest, peers_client::PeersClient};

use crate::channel;
use crate::group::MEMBERS;
use crate::program::Program;
use crate::region::{Instance, Region};
use crate::root::Root;

/// The group whose instances may join.
pub const NODES_GROUP: &str = "core-nodes";
const CLUSTER: &str = "core";
const BUCKET: &str = "core-cluster";
const HOST: u8 = 10;
const START_WITHIN: Duration = Duration::from_secs(30);

/// What the cluster is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub lease_ms: u64,
    /// Roles as the catalogue has them: name and role.yaml.
    pub roles: Vec<(&'static str, String)>,
    /// How many slots of each.
    pub slots: BTreeMap<&'static str, u32>,
    /// More environment of the daemons.
    pub environment: Vec<(String, String)>,
}

impl Wanted {
    /// A cluster wants something; nobody is there to run it.
    pub fn idle() -> Self {
        const IDLE: &str = "summary: Nothing.\nfencing: disposable\nresources: {memory_mib: 10}\ncommand: [sleep, infinity]\nprobe: {every_ms: 1000, file: {path: /nothing, max_age_ms: 1000, expect: x}}\n";
        Self { lease_ms: 2000, roles: vec![("idle", IDLE.to_owned())], slots: BTreeMap::from([("idle", 1)]), environment: Vec::new() }
    }
}

/// The running daemons; killed when dropped.
pub struct Coordinators {
    program: PathBuf,
    folder: PathBuf,
    wanted: Wanted,
    /// More environment of each member alone.
    own: Vec<Vec<(String, String)>>,
    addresses: Vec<Ipv4Addr>,
    members: Vec<Option<Program>>,
    root: Arc<Root>,
    /// To ask members what they are.
    peer: Arc<ClientConfig>,
    /// Name and incarnation, as members say it to each other.
    cluster_id: String,
}

/// An availability zone by its number, 1 to 3.
pub fn zone(number: u8) -> String {
    format!("us-east-1{}", char::from(b'a' + (number - 1) % 3))
}

/// Of a coordinator by its number: in the subnet of its zone.
pub fn address_of(region: &Region, number: u8) -> Ipv4Addr {
    region.address((number - 1) % 3 + 1, HOST + (number - 1) / 3)
}

/// User data of a coordinator (`Some` member) or an agent; one after the founders is named beside them and the other that comes with it.
pub fn user_data(region: &Region, wanted: &Wanted, root: &Root, member: Option<usize>) -> String {
    let count = member.map_or(MEMBERS, |member| MEMBERS.max((member + 1) | 1));
    let run = if member.is_some() { "coordinator" } else { "agent" };
    let mut text = format!("cluster: {CLUSTER}\nrun: {run}\ngroup: {NODES_GROUP}\ncoordinators:\n");
    for other in (1..=count).filter_map(|other| u8::try_from(other).ok()) {
        text += &format!("  - {{id: {other}, address: {}, zone: {}, group: {CLUSTER}-coordinator-{other}}}\n", address_of(region, other), zone(other));
    }
    if let Some(member) = member {
        text += &format!("coordinator: {}\n", member + 1);
    }
    let endpoint = region.endpoint();
    text += &format!("lease_ms: {}\naws: {{region: us-east-1, endpoint_url: \"{endpoint}\", s3_endpoint_url: \"{endpoint}\"}}\n", wanted.lease_ms);
    text += &format!("buckets: {{uploads: core-uploads, results: core-results, cluster: {BUCKET}}}\n");
    let key = if member.is_some() { format!(", sealing_key: \"{}\"", root.sealing_key().to_base64()) } else { String::new() };
    text += &format!("identity_public_key: {}\ntrust: {{root_sha256: \"{}\"{key}}}\nspec:\n  roles:\n", region.identity_public_key(), root.hash());
    for (role, count) in &wanted.slots {
        text += &format!("    {role}: {{pref: {count}}}\n");
    }
    text
}

/// The record that the founders agree on, once it is there.
async fn founded(region: &Region, patience: Duration) -> anyhow::Result<String> {
    let begun = Instant::now();
    while begun.elapsed() < patience {
        if let Some(bytes) = region.object(BUCKET, RECORD) {
            let record: Record = serde_json::from_slice(&bytes)?;
            return Ok(cluster_id(CLUSTER, &record.incarnation));
        }
        sleep(Duration::from_millis(50)).await;
    }
    bail!("no coordinator has founded the cluster after {} s", patience.as_secs())
}

impl Coordinators {
    /// Starts all three on empty folders below `folder` and waits until one leads.
    ///
    /// # Errors
    /// A program does not start, or nobody leads within 30 s.
    pub async fn start(program: &Path, region: &mut Region, wanted: Wanted, folder: &Path) -> anyhow::Result<Self> {
        Self::start_each(program, region, wanted, folder, Vec::new()).await
    }

    /// As [`Coordinators::start`], each member with more environment of its own.
    ///
    /// # Errors
    /// As [`Coordinators::start`].
    pub async fn start_each(program: &Path, region: &mut Region, wanted: Wanted, folder: &Path, own: Vec<Vec<(String, String)>>) -> anyhow::Result<Self> {
        let mut new = Self::placed(program, region, wanted, folder, own).await?;
        for member in 0..MEMBERS {
            new.start_member(member)?;
        }
        new.founded(region, START_WITHIN).await?;
        Ok(new)
    }

    /// As [`Coordinators::start_each`], but none runs yet.
    ///
    /// # Errors
    /// Their metadata cannot be served.
    pub async fn placed(program: &Path, region: &mut Region, wanted: Wanted, folder: &Path, own: Vec<Vec<(String, String)>>) -> anyhow::Result<Self> {
        for (name, yaml) in &wanted.roles {
            let role = folder.join("image/roles").join(name);
            fs::create_dir_all(&role)?;
            fs::write(role.join("role.yaml"), yaml)?;
        }
        let root = Arc::new(Root::create(CLUSTER)?);
        region.put_object(BUCKET, vp_coordinator::trust::KEY, root.sealed()?);
        let (addresses, members, peer, cluster_id) = (Vec::new(), Vec::new(), root.peer()?, String::new());
        let mut new = Self { program: program.to_owned(), folder: folder.to_owned(), wanted, own, addresses, members, root, peer, cluster_id };
        for _ in 0..MEMBERS {
            new.put_instance(region).await?;
        }
        Ok(new)
    }

    /// Waits until those that run have founded the cluster and one leads.
    ///
    /// # Errors
    /// Not within `patience`.
    pub async fn founded(&mut self, region: &Region, patience: Duration) -> anyhow::Result<()> {
        self.cluster_id = founded(region, patience).await?;
        self.leader(patience).await.map(drop)
    }

    /// Starts one more, as the first instance of a new coordinator's group does: it joins once it is wanted. Returns its place.
    ///
    /// # Errors
    /// Its metadata cannot be served, or the program does not start.
    pub async fn start_another(&mut self, region: &mut Region) -> anyhow::Result<usize> {
        let member = self.put_instance(region).await?;
        self.start_member(member)?;
        Ok(member)
    }

    /// The instance of the next coordinator; nothing runs on it yet.
    async fn put_instance(&mut self, region: &mut Region) -> anyhow::Result<usize> {
        let member = self.members.len();
        let number = u8::try_from(member + 1)?;
        let (id, address) = (format!("i-coordinator{number}"), address_of(region, number));
        region.put(&id, Instance { address, zone: zone(number), group: Self::group(member), state: "running" });
        region.serve_metadata(&id, user_data(region, &self.wanted, &self.root, Some(member))).await?;
        self.addresses.push(address);
        self.members.push(None);
        Ok(member)
    }

    /// The Auto Scaling Group of a coordinator's instance.
    pub fn group(member: usize) -> String {
        format!("{CLUSTER}-coordinator-{}", member + 1)
    }

    /// Starts one on its folder.
    ///
    /// # Errors
    /// The program does not start.
    pub fn start_member(&mut self, member: usize) -> anyhow::Result<()> {
        self.start_member_with(member, &[])
    }

    /// As [`Coordinators::start_member`], with more environment.
    ///
    /// # Errors
    /// As [`Coordinators::start_member`].
    pub fn start_member_with(&mut self, member: usize, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        let root = self.disk(member);
        fs::create_dir_all(&root)?;
        let mut command = Command::new(&self.program);
        command.env_clear().env("VP_INSTANCE_ROOT", &root).env("VP_IMAGE", self.folder.join("image"));
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", Region::metadata_endpoint(self.addresses[member]));
        command.env("AWS_ACCESS_KEY_ID", "core").env("AWS_SECRET_ACCESS_KEY", "core").env("AWS_REGION", "us-east-1");
        command.envs(self.wanted.environment.iter().cloned()).envs(self.own.get(member).into_iter().flatten().cloned()).envs(environment.iter().copied());
        self.members[member] = Some(Program::start(command, &self.said(member))?);
        Ok(())
    }

    /// A member's folder when all are below `folder`.
    pub fn disk_below(folder: &Path, member: usize) -> PathBuf {
        folder.join(format!("coordinator-{}", member + 1))
    }

    /// A member's folder: its log is below it.
    pub fn disk(&self, member: usize) -> PathBuf {
        Self::disk_below(&self.folder, member)
    }

    /// What a member has said.
    pub fn said(&self, member: usize) -> PathBuf {
        self.folder.join(format!("coordinator-{}.log", member + 1))
    }

    /// Where a member serves everybody.
    pub fn address(&self, member: usize) -> SocketAddr {
        SocketAddr::from((self.addresses[member], COORDINATOR_PORT))
    }

    /// What its certificates are under.
    pub fn root(&self) -> Arc<Root> {
        self.root.clone()
    }

    /// A member's process, unless it was killed.
    pub fn process(&self, member: usize) -> Option<&Program> {
        self.members[member].as_ref()
    }

    /// A member's process, to be asked whether it has ended.
    pub fn process_mut(&mut self, member: usize) -> Option<&mut Program> {
        self.members[member].as_mut()
    }

    /// SIGKILL.
    pub fn kill(&mut self, member: usize) {
        if let Some(process) = self.members[member].take() {
            process.kill();
        }
    }

    /// Who leads, by a majority of the members' own words; waits for it.
    ///
    /// # Errors
    /// Nobody within `patience`.
    pub async fn leader(&self, patience: Duration) -> anyhow::Result<usize> {
        let begun = Instant::now();
        while begun.elapsed() < patience {
            let mut votes: BTreeMap<(u64, u64), usize> = BTreeMap::new();
            for vote in self.votes().await.into_iter().flatten().filter(|(_, leader)| *leader != 0) {
                *votes.entry(vote).or_default() += 1;
            }
            if let Some((_, leader)) = votes.iter().find(|(_, count)| **count > self.members.len() / 2).map(|(vote, _)| *vote) {
                return Ok(usize::try_from(leader)? - 1);
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!("no coordinator leads after {} s; see {}/coordinator-*.log", patience.as_secs(), self.folder.display())
    }

    /// Who leads, by the word of every member; waits for it. A member of another cluster gives none.
    ///
    /// # Errors
    /// They do not agree within `patience`.
    pub async fn agreed(&self, patience: Duration) -> anyhow::Result<usize> {
        let begun = Instant::now();
        let mut said = Vec::new();
        while begun.elapsed() < patience {
            said = self.votes().await;
            if let Some(Some((_, leader))) = said.first()
                && *leader != 0
                && said.iter().all(|one| *one == said[0])
            {
                return Ok(usize::try_from(*leader)? - 1);
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!("the coordinators do not agree after {} s: (term, leader) by each: {said:?}", patience.as_secs())
    }

    /// Term and leader by each member's word; none of one that does not answer, or not as a member of this cluster.
    async fn votes(&self) -> Vec<Option<(u64, u64)>> {
        let mut votes = Vec::new();
        for member in 0..self.members.len() {
            votes.push(timeout(Duration::from_millis(700), self.identify(member)).await.ok().and_then(Result::ok));
        }
        votes
    }

    async fn identify(&self, member: usize) -> anyhow::Result<(u64, u64)> {
        let channel = channel::open(self.address(member), None, Some(self.peer.clone())).await?;
        let answer = PeersClient::new(channel).identify(IdentifyRequest { cluster: self.cluster_id.clone() }).await?.into_inner();
        Ok((answer.term, answer.leader_id))
    }
}
