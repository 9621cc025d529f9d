//! `vp-coordinator`: learns who it is, claims its identity, opens its log, serves. Every long-lived task is awaited; one that ends unasked ends the process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Parser;
use tokio::{
    signal::unix::SignalKind,
    sync::{Notify, watch},
};
use tonic::transport::Server;
use tracing::info;
use tracing_subscriber::EnvFilter;
use vp_cloud::{Endpoints, Session, autoscaling::Groups, ec2::Compute, s3::ObjectStore};
use vp_coordinator::{
    api::{agents::AgentsApi, operators::OperatorsApi},
    bootstrap,
    cloud_watch::CloudWatch,
    control::{Control, Findings},
    identity::Verifier,
    leader::{self, Leader},
    machine::ClusterMachine,
    peers, raft,
    region::Aws,
    registry::Registry,
    settings::Settings,
    state_hash, storage,
    world::World,
    zookeeper::{Administrator, ZooKeeper},
};
use vp_proto::{
    COORDINATOR_PORT, MAX_MESSAGE_BYTES,
    v1::{agents_server::AgentsServer, operators_server::OperatorsServer},
};

/// A member of the replicated coordinator group. Everything it needs comes from instance metadata and user data.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    #[cfg(feature = "failpoints")]
    let _points = fail::FailScenario::setup();
    Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,raft=warn,zookeeper_client=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("a crypto provider is installed already");
    }
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
    let administrator = loop {
        match Administrator::load(&store, &settings.user_data.buckets.cluster).await {
            Ok(administrator) => break administrator,
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cluster bucket not readable yet"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    Box::pin(serve(settings, &session, store, compute, administrator)).await
}

async fn serve(settings: Settings, session: &Session, store: ObjectStore, compute: Compute, administrator: Administrator) -> anyhow::Result<()> {
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
    let network = peers::Network::new(data.cluster.clone(), settings.me.id, settings.me.address.into(), addresses);
    let (raft, raft_ended) = raft::start(node, network.outgoing());

    let address = SocketAddr::from((settings.me.address, COORDINATOR_PORT));
    let verifier = Verifier {
        public_key: STANDARD.decode(data.identity_public_key.trim()).context("identity_public_key in the user data is not base64")?,
        cluster: data.cluster.clone(),
        region: data.aws.region.clone(),
        group: data.group.clone(),
        compute: compute.clone(),
    };
    let leader = Arc::new(Leader {
        settings,
        raft: raft.clone(),
        state,
        registry: Registry::default(),
        world: World::default(),
        unix_ms: Box::new(leader::unix_ms),
        wake: Notify::new(),
    });
    let (findings, found) = watch::channel(Findings::default());
    let control = Control { leader: leader.clone(), zookeeper_digest: administrator.digest(), findings };
    let bucket = leader.settings.user_data.buckets.cluster.clone();
    let region = Aws { compute, groups: Groups::new(session.shared()), store, bucket };
    let watch = CloudWatch { leader: leader.clone(), region: Arc::new(region) };
    let zookeeper = ZooKeeper { leader: leader.clone(), administrator };
    let agents = AgentsServer::new(AgentsApi { leader: leader.clone(), verifier }).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let agreement = state_hash::run(leader.clone(), state_hash.clone());
    let operators = OperatorsServer::new(OperatorsApi { leader, findings: found }).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(1)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .max_concurrent_streams(256)
        .add_service(agents)
        .add_service(operators)
        .add_service(network.service(raft, state_hash.clone()))
        .serve(address);
    info!(%address, "coordinator serving");
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    tokio::select! {
        ended = server => ended.context("the gRPC server ended")?,
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
