//! `vp-coordinator`: learns who it is, claims its identity, opens its log, serves. Every long-lived task is awaited; one that ends unasked ends the process.

use std::{
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Parser, Subcommand};
use tokio::{
    signal::unix::SignalKind,
    sync::{Notify, oneshot, watch},
    task::JoinSet,
};
use tracing::info;
use tracing_subscriber::EnvFilter;
use vp_cloud::{Endpoints, Session, autoscaling::Groups, ec2::Compute, s3::ObjectStore};
use vp_cluster::MemberId;
use vp_coordinator::{
    api::{
        admission::Admission,
        agents::AgentsApi,
        coordinators::CoordinatorsApi,
        enrolment::EnrolmentApi,
        limits::{self, bounded},
        operators::OperatorsApi,
    },
    bootstrap::{self, Me, Place},
    catalogue,
    certificates::Certificates,
    claims::Bucket,
    cloud_watch::CloudWatch,
    control::{self, Control, Findings},
    identity::Verifier,
    joining::ByLeader,
    leader::{self, Leader},
    machine::ClusterMachine,
    membership::{self, Membership},
    peers, raft,
    region::Aws,
    registry::Registry,
    settings::{self, Settings},
    state_hash,
    trust::Trust,
    turns,
    world::World,
    zookeeper::{Administrator, ZooKeeper},
};
use vp_proto::{
    COORDINATOR_PORT, ENROLMENT_PORT,
    v1::{agents_server::AgentsServer, coordinators_server::CoordinatorsServer, enrolment_server::EnrolmentServer, operators_server::OperatorsServer},
};

const SUPERSEDED: &str = "the cluster was restored as another incarnation: this one is over";

/// Of ten thousand nodes each look makes and frees as many small things, which the C library's heap answers with work under way for all threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A member of the replicated coordinator group. Everything it needs comes from instance metadata and user data.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
}

/// What it does instead of serving.
#[derive(Subcommand)]
enum Task {
    /// Read a spec (YAML) from standard input and say what is wrong with it, before any cluster is given it
    CheckSpec {
        /// The role catalogue
        #[arg(long, value_name = "DIR")]
        roles: PathBuf,
        /// A lease to check, too
        #[arg(long, value_name = "MS")]
        lease_ms: Option<u64>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    if let Some(Task::CheckSpec { roles, lease_ms }) = Arguments::parse().task {
        return Ok(told(check_spec(&roles, lease_ms)));
    }
    // Not this thread, from which the doors' are started.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_start(turns::short).build()?;
    runtime.block_on(run())?;
    Ok(ExitCode::SUCCESS)
}

fn check_spec(roles: &Path, lease_ms: Option<u64>) -> anyhow::Result<()> {
    // Whole, whatever else is wrong: whoever writes it is not cut off.
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("the spec cannot be read")?;
    if let Some(reason) = lease_ms.and_then(settings::lease_fault) {
        bail!("{reason}");
    }
    Ok(catalogue::check(roles, &settings::spec(&text)?)?)
}

/// The causes in one line: `vpctl dev up` shows it as it is.
fn told(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    #[cfg(feature = "failpoints")]
    let _points = fail::FailScenario::setup();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,raft=warn,zookeeper_client=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("a crypto provider is installed already");
    }
    turns::stay();
    limits::raise_descriptors();
    let settings = Settings::load().await?;
    let aws = &settings.user_data.aws;
    let session = session(aws).await;
    let store = ObjectStore::new(&session);
    let bucket = || Bucket { store: store.clone(), name: settings.user_data.buckets.cluster.clone() };
    // Before it has a place: it asks for one under a certificate of the cluster.
    let trust = Arc::new(Trust::load(&store, &settings).await?);
    let joining = ByLeader { settings: &settings, trust: &trust };
    let place = bootstrap::find_place(&bucket(), &joining, &Me::new(&settings)).await.context("this coordinator does not serve")?;
    let administrator = Administrator::of(&settings.user_data.trust.sealing_key, &settings.user_data.cluster);
    let bucket = bucket();
    Box::pin(serve(settings, trust, place, &session, bucket, administrator)).await
}

/// Connections to AWS that nobody shares with whoever has another session: an answer is read by the runtime that dialled for it.
async fn session(aws: &settings::Aws) -> Session {
    let endpoints =
        Endpoints { region: Some(aws.region.clone()), endpoint_url: aws.endpoint_url.clone(), s3_endpoint_url: aws.s3_endpoint_url.clone(), credentials: None };
    Session::load(endpoints).await
}

async fn serve(settings: Settings, trust: Arc<Trust>, place: Place, session: &Session, claims: Bucket, administrator: Administrator) -> anyhow::Result<()> {
    let data = &settings.user_data;
    let member = MemberId(place.member);
    let (machine, state, reached) = ClusterMachine::new();
    let state_hash = state_hash::latest(reached);
    let node = place.open(&settings.data, data.lease_ms, machine).with_context(|| format!("opening the log in {}", settings.data.display()))?;
    let address = SocketAddr::from((settings.me.address, COORDINATOR_PORT));
    let network = peers::Network::new(place.cluster_id.clone(), place.member, address, trust.clone(), place.members.clone());
    let (raft, raft_ended) = raft::start(node, network.outgoing());

    // Both doors first: a port that is taken is told before anything else is started.
    let members = trust.members(COORDINATOR_PORT, limits::MEMBERS).context("opening the members' port")?;
    let strangers = trust.enrolment(ENROLMENT_PORT, limits::ENROLMENT).context("opening the enrolment port")?;
    let compute = Compute::new(session.shared());

    let verifier = Verifier {
        public_key: STANDARD.decode(data.identity_public_key.trim()).context("identity_public_key in the user data is not base64")?,
        cluster: data.cluster.clone(),
        region: data.aws.region.clone(),
        group: data.group.clone(),
        compute: compute.clone(),
    };
    let (instance, folder) = (settings.instance_id.clone(), settings.data.clone());
    let Place { cluster_id, record, .. } = place;
    let leader = Arc::new(Leader {
        settings,
        cluster_id,
        member,
        certificates: Certificates::default(),
        raft: raft.clone(),
        state,
        registry: Registry::default(),
        world: World::default(),
        unix_ms: Box::new(leader::unix_ms),
        wake: Notify::new(),
    });
    let (findings, found) = watch::channel(Findings::default());
    let control = Control { leader: leader.clone(), zookeeper_digest: administrator.digest(), findings };
    let groups = Groups::new(session.shared());
    let own = self::session(&leader.settings.user_data.aws).await;
    let region = Aws { compute: Compute::new(own.shared()), groups: Groups::new(own.shared()), store: ObjectStore::new(&own), bucket: claims.name.clone() };
    let watch = CloudWatch { leader: leader.clone(), region: Arc::new(region) };
    let zookeeper = ZooKeeper { leader: leader.clone(), administrator };
    let pulse = control::pulse(leader.clone());
    let leading = raft.clone();
    let superseded = bootstrap::superseded(Bucket { store: claims.store.clone(), name: claims.name.clone() }, record, move || leading.status().leads());
    let membership = Membership { leader: leader.clone(), trust: trust.clone(), compute, groups, claims };
    let connections = membership::follow(network.clone(), member, leader.state.clone());
    let agreement = state_hash::run(leader.clone(), trust.clone(), state_hash.clone());
    let enrolment = EnrolmentApi::new(leader.clone(), trust.clone(), verifier.clone());
    let agents = AgentsApi::new(leader.clone(), verifier.clone());
    let coordinators = CoordinatorsApi { leader: leader.clone(), verifier };
    let operators = OperatorsApi::new(leader, trust, found);
    let server = bounded()
        .layer(Admission)
        .add_service(AgentsServer::new(agents).max_decoding_message_size(limits::AGENT_MESSAGE_BYTES))
        .add_service(CoordinatorsServer::new(coordinators).max_decoding_message_size(limits::ENROLL_MESSAGE_BYTES))
        .add_service(OperatorsServer::new(operators).max_decoding_message_size(limits::OPERATOR_MESSAGE_BYTES))
        .add_service(network.service(raft.clone(), &instance, state_hash))
        .serve_with_incoming(members.incoming()?);
    let enrolment = EnrolmentServer::new(enrolment).max_decoding_message_size(limits::ENROLL_MESSAGE_BYTES);
    let enrolling = bounded().add_service(enrolment).serve_with_incoming(strangers.incoming()?);
    let enrolling = async {
        if let Err(error) = enrolling.await {
            tracing::error!(%error, "the enrolment server ended");
        }
    };
    let server = tokio::spawn(server);
    let superseded = spawned(superseded);
    tokio::pin!(superseded);
    info!(%address, %member, "coordinator serving");
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    tokio::pin!(raft_ended);
    let stands_aside = tokio::select! {
        ended = server => {
            ended?.context("the gRPC server ended")?;
            bail!("the members' door is closed");
        }
        ended = &mut raft_ended => return ended.context("the log's task ended"),
        () = apart("control", || {}, control.run()) => bail!("the control loop ended"),
        () = apart("enrolment", vp_trust::give_way, enrolling) => bail!("the enrolment door is closed"),
        () = spawned(pulse) => bail!("the pulse ended"),
        () = apart("cloud", || {}, watch.run()) => bail!("the cloud watch ended"),
        () = spawned(zookeeper.run()) => bail!("the zookeeper watch ended"),
        () = spawned(membership.run()) => bail!("the membership watch ended"),
        () = &mut superseded => bail!("{SUPERSEDED}"),
        index = tokio::spawn(agreement) => {
            bootstrap::stand_aside(&network, &folder, index?)?;
            true
        }
        () = spawned(connections) => bail!("the watch of the connections ended"),
        _ = terminate.recv() => false,
        _ = tokio::signal::ctrl_c() => false,
    };
    bootstrap::retire(&raft, raft_ended).await.context("the log's task ended")?;
    if stands_aside {
        // The boot program would start it again, to no end; meanwhile it still says to whoever asks what it is.
        tokio::select! {
            _ = terminate.recv() => {}
            () = superseded => bail!("{SUPERSEDED}"),
        }
    }
    info!("stopped as asked");
    Ok(())
}

/// As [`spawned`], on a thread of its own that does `begin` first, where the kernel shares the processors: a look at ten thousand nodes takes 20 ms at once,
/// strangers ask in any number, and the sessions on the runtime's threads would wait for it.
async fn apart(name: &str, begin: fn(), task: impl Future<Output = ()> + Send + 'static) {
    // Dropped when nobody waits any more, and when the thread ends, its panic included.
    let (waits, left) = oneshot::channel::<()>();
    let (lives, ended) = oneshot::channel::<()>();
    let thread = move || {
        let _lives = lives;
        begin();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(async {
                tokio::select! {
                    () = task => {}
                    _ = left => {}
                }
            }),
            Err(error) => tracing::error!(%error, "no runtime for a thread"),
        }
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(thread);
    match thread {
        Ok(_) => drop(ended.await),
        Err(error) => tracing::error!(%error, "no thread"),
    }
    drop(waits);
}

/// A task of its own, awaited: its panic ends the process like its end does, and it ends when nobody waits for it any more.
async fn spawned(task: impl Future<Output = ()> + Send + 'static) {
    let mut tasks = JoinSet::new();
    tasks.spawn(task);
    tasks.join_next().await;
}
