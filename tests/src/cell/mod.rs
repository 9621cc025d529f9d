//! A cell: three real coordinators (processes) over a small stand-in for EC2, S3 and instance metadata in this process, for tests of what comes in on their
//! ports. Quicker than a region and more obedient: instances are what the test says they are, and nobody but the test speaks for them.
//!
//! ```text
//! test ─┬─ Machine ── enrols, says hello, heartbeats ──> vp-coordinator × 3 ──> aws (here)
//!       └─ whatever else it likes ───────────────────────^
//! ```
//!
//! One cell serves a whole test program. Its coordinators die with the process, however that ends; its folder goes when the process exits by itself.

pub mod aws;
pub mod machine;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use nix::sys::signal::Signal;
use ring::{
    rand::SystemRandom,
    signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use tonic::transport::{Channel, Endpoint};
use vp_coordinator::{
    bootstrap::cluster_id,
    claims::{RECORD, Record},
};
use vp_proto::{
    COORDINATOR_PORT, ENROLMENT_PORT,
    v1::{StatusRequest, operators_client::OperatorsClient},
};
use vp_trust::{Authority, Credentials, Name, Rank, SealingKey, Way, tls};

use crate::wait_until;
use aws::Aws;

/// Networks of cells.
const NETWORKS: std::ops::Range<u8> = 132..136;
/// As short as the coordinators allow.
pub const LEASE_MS: u64 = 2000;
/// The group whose instances may join.
pub const GROUP: &str = "cell-nodes";
pub const CLUSTER: &str = "cell";

/// Three coordinators and all they need.
pub struct Cell {
    pub authority: Authority,
    pub aws: Arc<Aws>,
    network: u8,
    folder: PathBuf,
    region: RsaKeyPair,
    runtime: tokio::runtime::Runtime,
    coordinators: Mutex<Vec<Child>>,
    address: Mutex<u8>,
    known_leader: Mutex<Option<(IpAddr, Instant)>>,
}

/// A key of a region that signs identity documents; `other` is another region's.
fn signing_key(other: bool) -> anyhow::Result<RsaKeyPair> {
    let text = if other {
        include_str!("../../../coordinator/tests/data/other-region-test-key.pk8.base64")
    } else {
        include_str!("../../../coordinator/tests/data/identity-test-key.pk8.base64")
    };
    let compact: String = text.split_whitespace().collect();
    RsaKeyPair::from_pkcs8(&STANDARD.decode(compact)?).map_err(|error| anyhow::anyhow!("{error}"))
}

impl Cell {
    /// Brings one up on a free network and waits until it is led.
    ///
    /// # Errors
    /// The program is not built, or the coordinators do not come to lead: with the end of their logs.
    pub fn up() -> anyhow::Result<Self> {
        let program = crate::region::programs().join("vp-coordinator");
        anyhow::ensure!(program.exists(), "{} is missing: make build first", program.display());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (network, listener) = free_network(&runtime)?;
        let folder = tempfile::Builder::new().prefix("vp-cell-").tempdir()?.keep();
        let (authority, sealing_key) = (Authority::create(CLUSTER)?, SealingKey::generate()?);
        let aws = Arc::new(Aws::default());
        aws.put("cell-cluster/trust/root.json", &authority.seal(&sealing_key)?);
        runtime.spawn(aws.clone().serve(listener));
        let region = signing_key(false)?;
        let cell =
            Self { authority, aws, network, folder, region, runtime, coordinators: Mutex::default(), address: Mutex::new(20), known_leader: Mutex::default() };
        let roles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../roles").canonicalize()?;
        std::os::unix::fs::symlink(roles, cell.folder.join("roles"))?;
        for id in 1..=3 {
            cell.metadata_of_coordinator(id, &sealing_key)?;
        }
        let commands = (1..=3).map(|id| cell.command(&program, id)).collect::<anyhow::Result<Vec<_>>>()?;
        *cell.coordinators.lock().unwrap_or_else(PoisonError::into_inner) = started(commands)?;
        wait_until("a coordinator leads", Duration::from_secs(60), || Ok(cell.leader().ok())).with_context(|| cell.last_words())?;
        Ok(cell)
    }

    fn ip(&self, zone: u8, host: u8) -> IpAddr {
        Ipv4Addr::new(127, self.network, zone, host).into()
    }

    /// Coordinator `id`'s address.
    pub fn coordinator(&self, id: u64) -> IpAddr {
        self.ip(id as u8, 10)
    }

    /// An address that no instance has.
    pub fn elsewhere(&self, host: u8) -> IpAddr {
        self.ip(66, host)
    }

    /// A fresh instance's address.
    fn fresh_address(&self) -> IpAddr {
        let mut last = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        self.ip(1, *last)
    }

    fn user_data(&self, id: u64, sealing_key: &SealingKey) -> String {
        let peers: String =
            (1..=3).map(|id| format!("  - {{id: {id}, address: {}, zone: us-east-1a, group: cell-coordinator-{id}}}\n", self.coordinator(id))).collect();
        let aws = format!("http://{}", SocketAddr::new(self.ip(0, 2), aws::PORT));
        format!(
            "cluster: {CLUSTER}\nrun: coordinator\ngroup: {GROUP}\ncoordinators:\n{peers}coordinator: {id}\nlease_ms: {LEASE_MS}\n\
             aws: {{region: us-east-1, endpoint_url: '{aws}', s3_endpoint_url: '{aws}'}}\n\
             buckets: {{uploads: cell-uploads, results: cell-results, cluster: cell-cluster}}\nidentity_public_key: {}\n\
             trust: {{root_sha256: {}, sealing_key: {}}}\nspec:\n  roles:\n    spark-worker: {{pref: 64}}\n",
            STANDARD.encode(self.region.public_key().as_ref()),
            self.authority.hash(),
            sealing_key.to_base64()
        )
    }

    fn metadata_of_coordinator(&self, id: u64, sealing_key: &SealingKey) -> anyhow::Result<()> {
        let name = format!("i-coordinator{id}");
        let (document, signature) = self.document(&name, self.coordinator(id), "us-east-1", false)?;
        let values = BTreeMap::from([
            ("meta-data/instance-id".to_owned(), name),
            ("meta-data/local-ipv4".to_owned(), self.coordinator(id).to_string()),
            ("dynamic/instance-identity/document".to_owned(), document),
            ("dynamic/instance-identity/signature".to_owned(), signature),
            ("user-data".to_owned(), self.user_data(id, sealing_key)),
        ]);
        let at = SocketAddr::new(self.coordinator(id), 1338);
        let listener = self.runtime.block_on(tokio::net::TcpListener::bind(at))?;
        self.runtime.spawn(aws::serve_metadata(listener, values));
        Ok(())
    }

    fn command(&self, program: &Path, id: u64) -> anyhow::Result<Command> {
        let root = self.folder.join(id.to_string());
        fs::create_dir_all(&root)?;
        let log = fs::File::create(self.folder.join(format!("{id}.log")))?;
        let mut command = Command::new(program);
        command.env_clear().env("VP_INSTANCE_ROOT", &root).env("VP_IMAGE", &self.folder).env("AWS_REGION", "us-east-1");
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}:1338", self.coordinator(id))).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_ACCESS_KEY_ID", "cell").env("AWS_SECRET_ACCESS_KEY", "cell").env("RUST_LOG", "info,vp_trust=debug,vp_coordinator::api=debug");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(command)
    }

    /// Name and incarnation of the cluster, as its members say it to each other.
    ///
    /// # Errors
    /// They have not founded it yet.
    pub fn cluster_id(&self) -> anyhow::Result<String> {
        let record = self.aws.object(&format!("cell-cluster/{RECORD}")).context("no record of the cluster")?;
        let record: Record = serde_json::from_slice(&record)?;
        Ok(cluster_id(CLUSTER, &record.incarnation))
    }

    /// The ends of the coordinators' logs, for a failed test.
    pub fn last_words(&self) -> String {
        let tail = |id: u64| {
            let text = fs::read_to_string(self.folder.join(format!("{id}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(12).collect();
            format!("coordinator {id}:\n  {}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n  "))
        };
        (1..=3).map(tail).collect()
    }

    /// Waits for something that is async.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Resident memory of each coordinator, MiB.
    pub fn resident_mib(&self) -> Vec<u64> {
        let coordinators = self.coordinators.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = |child: &Child| fs::read_to_string(format!("/proc/{}/statm", child.id())).ok()?.split_whitespace().nth(1)?.parse::<u64>().ok();
        coordinators.iter().map(|child| pages(child).unwrap_or(0) * 4 / 1024).collect()
    }

    /// Descriptors that each coordinator holds open.
    pub fn descriptors(&self) -> Vec<usize> {
        let coordinators = self.coordinators.lock().unwrap_or_else(PoisonError::into_inner);
        coordinators.iter().map(|child| fs::read_dir(format!("/proc/{}/fd", child.id())).map_or(0, Iterator::count)).collect()
    }

    /// Threads of each coordinator by name, with their nice value (of several with one name: of any).
    pub fn threads(&self) -> Vec<BTreeMap<String, i32>> {
        let of = |child: &Child| {
            let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten().flatten();
            let thread = |folder: PathBuf| {
                let (name, stat) = (fs::read_to_string(folder.join("comm")).ok()?, fs::read_to_string(folder.join("stat")).ok()?);
                // proc(5): the 19th field; the second is the name, in parentheses.
                let nice = stat.rsplit_once(") ")?.1.split(' ').nth(16)?.parse().ok()?;
                Some((name.trim_end().to_owned(), nice))
            };
            tasks.filter_map(|task| thread(task.path())).collect()
        };
        self.coordinators.lock().unwrap_or_else(PoisonError::into_inner).iter().map(of).collect()
    }

    /// Every coordinator still lives.
    pub fn all_live(&self) -> bool {
        self.coordinators.lock().unwrap_or_else(PoisonError::into_inner).iter_mut().all(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// A person's credentials.
    ///
    /// # Errors
    /// No randomness.
    pub fn operator(&self, rank: Rank) -> anyhow::Result<Credentials> {
        Ok(self.authority.operator(rank, "ada", now_s())?)
    }

    /// The way to a coordinator's port for certificate holders.
    ///
    /// # Errors
    /// The credentials do not fit together.
    pub fn way(&self, to: IpAddr, from: IpAddr, own: Option<&Credentials>) -> anyhow::Result<Way> {
        let tls = tls::client(self.authority.hash(), own)?;
        Ok(Way { to: SocketAddr::new(to, COORDINATOR_PORT), from: Some(from), tls, within: Duration::from_secs(5) })
    }

    /// The way to its port for those who have none.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn enrolment_way(&self, to: IpAddr, from: IpAddr) -> anyhow::Result<Way> {
        let tls = tls::client(self.authority.hash(), None)?;
        Ok(Way { to: SocketAddr::new(to, ENROLMENT_PORT), from: Some(from), tls, within: Duration::from_secs(5) })
    }

    /// Address of the coordinator that leads now.
    ///
    /// # Errors
    /// None leads, or none answers.
    pub fn leader(&self) -> anyhow::Result<IpAddr> {
        self.block_on(self.leader_now())
    }

    /// As [`Cell::leader`], for whoever is async already. Remembered for a while: attacks ask often.
    ///
    /// # Errors
    /// As [`Cell::leader`].
    pub async fn leader_now(&self) -> anyhow::Result<IpAddr> {
        let remembered = self.known_leader.lock().unwrap_or_else(PoisonError::into_inner).filter(|(_, when)| when.elapsed() < Duration::from_secs(1));
        if let Some((leader, _)) = remembered {
            return Ok(leader);
        }
        let found = Box::pin(self.find_leader()).await?;
        *self.known_leader.lock().unwrap_or_else(PoisonError::into_inner) = Some((found, Instant::now()));
        Ok(found)
    }

    /// Takes coordinators and folder away.
    pub fn leave(&self) {
        for child in self.coordinators.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }

    async fn find_leader(&self) -> anyhow::Result<IpAddr> {
        let admin = self.operator(Rank::Admin)?;
        for id in 1..=3 {
            let Ok(channel) = dial(&self.way(self.coordinator(id), self.elsewhere(1), Some(&admin))?).await else { continue };
            let answer = OperatorsClient::new(channel).status(StatusRequest::default()).await;
            // Services are known from a new cluster's first round on: sessions opened before it end when it begins.
            if answer.is_ok_and(|status| status.get_ref().leader_id == id && !status.get_ref().services.is_empty()) {
                return Ok(self.coordinator(id));
            }
        }
        anyhow::bail!("nobody leads")
    }

    /// An identity document and its signature, by this region's key or another's.
    ///
    /// # Errors
    /// The key does not sign.
    pub fn document(&self, instance_id: &str, address: IpAddr, region: &str, forged: bool) -> anyhow::Result<(String, String)> {
        let document = format!(r#"{{"instanceId": "{instance_id}", "region": "{region}", "privateIp": "{address}"}}"#);
        let other = signing_key(true)?;
        let key = if forged { &other } else { &self.region };
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), document.as_bytes(), &mut signature).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok((document, STANDARD.encode(signature)))
    }

    /// The name of an instance's certificate.
    pub fn name(&self, instance_id: &str) -> Name {
        Name::node(CLUSTER, instance_id)
    }
}

/// A channel, or why not.
///
/// # Errors
/// See `vp_trust::DialError`.
pub async fn dial(way: &Way) -> Result<Channel, vp_trust::DialError> {
    Box::pin(vp_trust::dial(Endpoint::from_static("http://coordinator"), way)).await
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn free_network(runtime: &tokio::runtime::Runtime) -> anyhow::Result<(u8, tokio::net::TcpListener)> {
    for network in NETWORKS {
        let at = SocketAddr::from(([127, network, 0, 2], aws::PORT));
        if let Ok(listener) = runtime.block_on(tokio::net::TcpListener::bind(at)) {
            return Ok((network, listener));
        }
    }
    anyhow::bail!("no network is free among {NETWORKS:?}")
}

/// Starts the commands from a thread that lives as long as this process, whose end therefore is theirs.
fn started(commands: Vec<Command>) -> anyhow::Result<Vec<Child>> {
    let (send, receive) = mpsc::channel();
    std::thread::Builder::new().name("coordinators".to_owned()).spawn(move || {
        for mut command in commands {
            // SAFETY: one system call between fork and exec.
            unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
            let _ = send.send(command.spawn());
        }
        drop(send);
        loop {
            std::thread::park();
        }
    })?;
    receive.into_iter().map(|child| child.context("starting a coordinator")).collect()
}
