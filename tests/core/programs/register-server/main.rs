//! A member of the coordinators' log under the tests' register service: the shipped storage, raft thread and peers network, a machine that is the cluster's
//! own or a map of registers, and a gRPC service through which a client chooses key and value. Left out: everything else that a coordinator does.

mod machine;
mod service;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use tonic::transport::Server;
use tracing_subscriber::EnvFilter;
use vp_coordinator::api::limits;
use vp_coordinator::{
    api::limits::MEMBERS,
    machine::ClusterMachine,
    peers, raft,
    storage::{Identity, StoreOptions},
    trust::Trust,
};
use vp_core_tests::{group::REGISTERS, root::Root, wire::registers::registers_server::RegistersServer};
use vp_trust::Bounds;

use crate::{
    machine::RegisterMachine,
    service::{Content, RegistersApi},
};

/// As the coordinator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// All clients of a test call from one address. Services here tell the door of no call, so it closes nobody for having made none.
const DOOR: Bounds =
    Bounds { handshakes_per_address: 256, connections_per_address: 1024, first_request: Duration::from_secs(24 * 3600), idle: None, ..MEMBERS };

/// One member.
#[derive(Parser)]
struct Arguments {
    /// Its id, one of the members'.
    #[arg(long)]
    id: u64,
    /// `ID=ADDRESS:PORT` of each member, itself included.
    #[arg(long = "member", value_parser = member)]
    members: Vec<(u64, SocketAddr)>,
    /// Its folder.
    #[arg(long)]
    disk: PathBuf,
    /// Folder of the cluster's root, sealed, and the key to it.
    #[arg(long)]
    trust: PathBuf,
    /// What the log is for.
    #[arg(long, value_enum, default_value_t = Machine::Cluster)]
    machine: Machine,
    /// Length of a tick, ms; else as coordinators have it.
    #[arg(long)]
    tick_ms: Option<u64>,
    /// Ticks without a leader until an election; else as coordinators have it.
    #[arg(long)]
    election_ticks: Option<usize>,
    /// Ticks between heartbeats; else as coordinators have it.
    #[arg(long)]
    heartbeat_ticks: Option<usize>,
    /// Size of a log segment, bytes; else as coordinators have it.
    #[arg(long)]
    segment_bytes: Option<usize>,
    /// The planted bug: reads are answered from what this member has applied, whoever leads.
    #[arg(long)]
    stale_reads: bool,
    /// Applied entries between snapshots; else as coordinators have it.
    #[arg(long)]
    snapshot_every: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Machine {
    /// The cluster's state; a write is an event (`Note`).
    Cluster,
    /// A map from key to value.
    Registers,
}

fn member(text: &str) -> Result<(u64, SocketAddr), String> {
    let (id, address) = text.split_once('=').ok_or("ID=ADDRESS:PORT is wanted")?;
    Ok((id.parse().map_err(|error| format!("{id}: {error}"))?, address.parse().map_err(|error| format!("{address}: {error}"))?))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    #[cfg(feature = "failpoints")]
    let _points = fail::FailScenario::setup();
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,raft=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    match arguments.machine {
        Machine::Cluster => {
            let (machine, state, _) = ClusterMachine::new();
            serve(arguments, machine, Content::Cluster(state)).await
        }
        Machine::Registers => {
            let machine = RegisterMachine::default();
            let registers = machine.registers();
            serve(arguments, machine, Content::Registers(registers)).await
        }
    }
}

async fn serve<M: raft::Machine>(arguments: Arguments, machine: M, content: Content) -> anyhow::Result<()> {
    let members: BTreeMap<u64, SocketAddr> = arguments.members.iter().copied().collect();
    let Some(&own) = members.get(&arguments.id) else { bail!("member {} is not among the members", arguments.id) };
    let defaults = raft::Config::default();
    let config = raft::Config {
        id: arguments.id,
        voters: members.keys().copied().collect(),
        tick: arguments.tick_ms.map_or(defaults.tick, Duration::from_millis),
        election_ticks: arguments.election_ticks.unwrap_or(defaults.election_ticks),
        heartbeat_ticks: arguments.heartbeat_ticks.unwrap_or(defaults.heartbeat_ticks),
        snapshot_every: arguments.snapshot_every.unwrap_or(defaults.snapshot_every),
        ..defaults
    };
    let cluster = REGISTERS.to_owned();
    let trust = Arc::new(Trust::new(Root::open(REGISTERS, &arguments.trust)?, arguments.id, own.ip())?);
    let door = trust.members(own.port(), DOOR).context("opening the port")?;
    let identity = Identity { cluster: cluster.clone(), member: arguments.id };
    let mut disk = StoreOptions::default();
    disk.segment_bytes = arguments.segment_bytes.unwrap_or(disk.segment_bytes);
    let node = raft::open(&arguments.disk, &identity, disk, config, machine).context("opening the log")?;
    let network = peers::Network::new(cluster, arguments.id, own, trust, members);
    let (raft, ended) = raft::start(node, network.outgoing());
    let registers = RegistersServer::new(RegistersApi { raft: raft.clone(), content, stale_reads: arguments.stale_reads });
    // As the coordinator serves, but for more clients at once from one address, over fewer connections.
    let server = Server::builder()
        .http2_keepalive_interval(Some(limits::QUIET))
        .http2_keepalive_timeout(Some(limits::SIGN_OF_LIFE_WITHIN))
        .max_concurrent_streams(256)
        .add_service(registers)
        .add_service(network.service(raft, "", Arc::new(|| (0, 0))))
        .serve_with_incoming(door.incoming()?);
    tokio::select! {
        ended = server => ended.context("the gRPC server ended")?,
        ended = ended => ended.context("the log's task ended")?,
    }
    Ok(())
}
