//! `vp-coordinator`: learns who it is, claims its identity, opens its log, serves. Every long-lived task is awaited; one that ends unasked ends the process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Parser;
use tokio::{
    signal::unix::SignalKind,
    sync::{Notify, watch},
};
use tracing::info;
use tracing_subscriber::EnvFilter;
use vp_cloud::{Endpoints, Session, autoscaling::Groups, ec2::Compute, s3::ObjectStore};
use vp_coordinator::{
    api::{
        admission::Admission,
        agents::AgentsApi,
        enrolment::EnrolmentApi,
        limits::{self, bounded},
        operators::OperatorsApi,
    },
    bootstrap,
    certificates::Certificates,
    cloud_watch::CloudWatch,
    control::{Control, Findings},
    identity::Verifier,
    leader::Leader,
    machine::ClusterMachine,
    peers, raft,
    registry::Registry,
    settings::Settings,
    state_hash, storage,
    trust::Trust,
    world::World,
    zookeeper::{Administrator, ZooKeeper},
};
use vp_proto::{
    COORDINATOR_PORT, ENROLMENT_PORT,
    v1::{agents_server::AgentsServer, enrolment_server::EnrolmentServer, operators_server::OperatorsServer},
};

/// A member of the replicated coordinator group. Everything it needs comes from instance metadata and user data.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,raft=warn,zookeeper_client=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("a crypto provider is installed already");
    }
    limits::raise_descriptors();
    let settings = Settings::load().await?;
    let aws = &settings.user_data.aws;
    let session = Session::load(Endpoints {
        region: Some(aws.region.clone()),
        endpoint_url: aws.endpoint_url.clone(),
        s3_endpoint_url: aws.s3_endpoint_url.clone(),
        credentials: None,
    })
    .await;
    let store = ObjectStore::new(&session);
    let compute = Compute::new(session.shared());
    bootstrap::claim(&store, &settings).await.context("this coordinator does not serve")?;
    let trust = Arc::new(Trust::load(&store, &settings).await?);
    let administrator = loop {
        match Administrator::load(&store, &settings.user_data.buckets.cluster).await {
            Ok(administrator) => break administrator,
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cluster bucket not readable yet"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    Box::pin(serve(settings, trust, &session, store, compute, administrator)).await
}

async fn serve(
    settings: Settings,
    trust: Arc<Trust>,
    session: &Session,
    store: ObjectStore,
    compute: Compute,
    administrator: Administrator,
) -> anyhow::Result<()> {
    let data = &settings.user_data;
    let (machine, state, reached) = ClusterMachine::new();
    let state_hash = state_hash::latest(reached);
    let voters: Vec<u64> = data.coordinators.iter().map(|peer| peer.id).collect();
    let addresses = data.coordinators.iter().map(|peer| (peer.id, SocketAddr::from((peer.address, COORDINATOR_PORT)))).collect();
    let identity = bootstrap::identity(&settings);
    // The claim was made on this disk: if it is gone by now, it is lost.
    let disk = storage::StoreOptions { must_exist: true, ..storage::StoreOptions::default() };
    let config = raft::Config { id: settings.me.id, voters, ..raft::Config::default() };
    let node = raft::open(&settings.data, &identity, disk, config, machine).with_context(|| format!("opening the log in {}", settings.data.display()))?;
    let network = peers::Network::new(data.cluster.clone(), settings.me.id, &trust, addresses);
    let (raft, raft_ended) = raft::start(node, network.outgoing());

    // Both doors first: a port that is taken is told before anything else is started.
    let members = trust.members(COORDINATOR_PORT, limits::MEMBERS).context("opening the members' port")?;
    let strangers = trust.enrolment(ENROLMENT_PORT, limits::ENROLMENT).context("opening the enrolment port")?;
    let verifier = Verifier {
        public_key: STANDARD.decode(data.identity_public_key.trim()).context("identity_public_key in the user data is not base64")?,
        cluster: data.cluster.clone(),
        region: data.aws.region.clone(),
        group: data.group.clone(),
        compute: compute.clone(),
    };
    let leader = Arc::new(Leader {
        settings,
        trust,
        certificates: Certificates::default(),
        raft: raft.clone(),
        state,
        registry: Registry::default(),
        world: World::default(),
        wake: Notify::new(),
    });
    let (findings, found) = watch::channel(Findings::default());
    let control = Control { leader: leader.clone(), zookeeper_digest: administrator.digest(), findings };
    let watch = CloudWatch { leader: leader.clone(), compute, groups: Groups::new(session.shared()), store };
    let zookeeper = ZooKeeper { leader: leader.clone(), administrator };
    let enrolment = EnrolmentServer::new(EnrolmentApi::new(leader.clone(), verifier.clone())).max_decoding_message_size(limits::ENROLL_MESSAGE_BYTES);
    let agents = AgentsServer::new(AgentsApi { leader: leader.clone(), verifier }).max_decoding_message_size(limits::AGENT_MESSAGE_BYTES);
    let agreement = state_hash::run(leader.clone(), state_hash.clone());
    let operators = OperatorsServer::new(OperatorsApi { leader, findings: found }).max_decoding_message_size(limits::OPERATOR_MESSAGE_BYTES);
    let server = bounded()
        .layer(Admission)
        .add_service(agents)
        .add_service(operators)
        .add_service(network.service(raft, state_hash.clone()))
        .serve_with_incoming(members.incoming());
    let enrolling = bounded().add_service(enrolment).serve_with_incoming(strangers.incoming());
    info!(port = COORDINATOR_PORT, "coordinator serving");
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    tokio::select! {
        ended = server => ended.context("the gRPC server ended")?,
        ended = enrolling => ended.context("the enrolment server ended")?,
        ended = raft_ended => ended.context("the log's task ended")?,
        () = spawned(control.run()) => bail!("the control loop ended"),
        () = spawned(watch.run()) => bail!("the cloud watch ended"),
        () = spawned(agreement) => bail!("this member's state differs from the majority's at the same index: replace it"),
        () = spawned(zookeeper.run()) => bail!("the zookeeper watch ended"),
        _ = terminate.recv() => info!("asked to stop"),
        _ = tokio::signal::ctrl_c() => info!("asked to stop"),
    }
    Ok(())
}

/// A task of its own, awaited: its panic ends the process like its end does.
async fn spawned(task: impl Future<Output = ()> + Send + 'static) {
    let _ = tokio::spawn(task).await;
}
