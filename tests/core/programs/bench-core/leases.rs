//! The peer of heartbeats: etcd leases, each kept alive once a second on a connection of its own.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use vp_core_tests::channel;
use vp_core_tests::group::{Group, Kind, MEMBERS};
use vp_core_tests::program::Program;
use vp_core_tests::wire::etcd::{LeaseGrantRequest, LeaseKeepAliveRequest, lease_client::LeaseClient};

use crate::Arguments;
use crate::heartbeats::Taken;

const TTL_S: i64 = 4;
const EVERY: Duration = Duration::from_secs(1);
const GRANTING: usize = 64;

#[derive(Default)]
struct Kept {
    counting: AtomicBool,
    latencies_us: Mutex<Vec<u32>>,
}

pub async fn keep_alive(arguments: &Arguments, kind: Kind) -> anyhow::Result<Vec<Taken>> {
    let folder = tempfile::Builder::new().prefix("a2-").tempdir_in(&arguments.folder)?;
    let group = Group::start(kind, arguments.setting()?, folder.path()).await?;
    let leader = group.leader(Duration::from_secs(10)).await?;
    let mut channels = Vec::new();
    for _ in 0..arguments.agents {
        channels.push(channel::open(group.address(leader), None, group.tls()).await?);
    }
    let kept = Arc::new(Kept::default());
    let mut running = JoinSet::new();
    let mut granted = stream::iter(0..arguments.agents)
        .map(|number| {
            let channel = channels[number % channels.len()].clone();
            async move {
                let grant = LeaseGrantRequest { ttl: TTL_S, id: 0 };
                let lease = LeaseClient::new(channel.clone()).lease_grant(grant).await?.into_inner().id;
                anyhow::Ok((number, lease, channel))
            }
        })
        .buffer_unordered(GRANTING);
    while let Some((number, lease, channel)) = granted.try_next().await? {
        let phase = Duration::from_micros(1_000_000 * number as u64 / arguments.agents as u64);
        running.spawn(one(channel, lease, phase, kept.clone()));
    }
    drop(granted);
    let mut taken = Vec::new();
    for _ in 0..arguments.repeats {
        sleep(Duration::from_secs(2)).await;
        let cpu = || (0..MEMBERS).map(|member| group.process(member).map_or(Duration::ZERO, Program::cpu)).collect::<Vec<_>>();
        let (before, begun) = (cpu(), Instant::now());
        kept.latencies_us.lock().unwrap_or_else(PoisonError::into_inner).clear();
        kept.counting.store(true, Ordering::SeqCst);
        sleep(Duration::from_secs(arguments.seconds)).await;
        kept.counting.store(false, Ordering::SeqCst);
        let mut latencies_us = std::mem::take(&mut *kept.latencies_us.lock().unwrap_or_else(PoisonError::into_inner));
        latencies_us.sort_unstable();
        let seconds = begun.elapsed().as_secs_f64();
        let cores: Vec<f64> = cpu().iter().zip(before).map(|(after, before)| (*after - before).as_secs_f64() / seconds).collect();
        taken.push(Taken { latencies_us, seconds, leader_cores: cores[leader], all_cores: cores.iter().sum() });
    }
    Ok(taken)
}

async fn one(channel: Channel, lease: i64, phase: Duration, kept: Arc<Kept>) -> anyhow::Result<()> {
    let (to_leader, requests) = mpsc::channel(4);
    // etcd answers nothing, not even headers, before the first request.
    to_leader.send(LeaseKeepAliveRequest { id: lease }).await?;
    let mut answers = LeaseClient::new(channel).lease_keep_alive(ReceiverStream::new(requests)).await?.into_inner();
    answers.message().await?;
    let mut ticks = interval_at(tokio::time::Instant::now() + phase, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let sent = Instant::now();
        to_leader.send(LeaseKeepAliveRequest { id: lease }).await?;
        let Some(answer) = answers.message().await? else { return Ok(()) };
        if answer.ttl > 0 && kept.counting.load(Ordering::Relaxed) {
            kept.latencies_us.lock().unwrap_or_else(PoisonError::into_inner).push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
}
