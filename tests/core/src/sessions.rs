//! Agents' sessions without agents: a real hello, heartbeats in time, slots taken from the desired set and reported healthy. What ten thousand agents
//! send, from one program. Left out: anything that runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use vp_proto::v1::agents_client::AgentsClient;
use vp_proto::v1::{AgentMessage, CoordinatorMessage, Heartbeat, Hello, NodeMeasures, Phase, SlotObservation, agent_message, coordinator_message};

use crate::channel;
use crate::coordinators::{NODES_GROUP, zone};
use crate::region::{Instance, Region};
use crate::root::Root;

/// What all sessions of a run share.
#[derive(Default)]
pub struct Tally {
    /// Only while this is set are latencies kept.
    counting: std::sync::atomic::AtomicBool,
    latencies_us: Mutex<Vec<u32>>,
    pub acknowledged: AtomicU64,
    /// Sessions that ended although nobody asked for it.
    pub ended: AtomicU64,
}

impl Tally {
    /// Begins to keep latencies.
    pub fn begin(&self) {
        self.latencies_us.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.counting.store(true, Ordering::SeqCst);
    }

    /// What was kept since [`Tally::begin`], sorted.
    pub fn end(&self) -> Vec<u32> {
        self.counting.store(false, Ordering::SeqCst);
        let mut latencies = std::mem::take(&mut *self.latencies_us.lock().unwrap_or_else(PoisonError::into_inner));
        latencies.sort_unstable();
        latencies
    }

    fn answered(&self, after: Duration) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        if self.counting.load(Ordering::Relaxed) {
            self.latencies_us.lock().unwrap_or_else(PoisonError::into_inner).push(u32::try_from(after.as_micros()).unwrap_or(u32::MAX));
        }
    }
}

/// Where an agent calls from: beside the networks of coordinators and real instances.
fn address(region: &Region, number: usize) -> anyhow::Result<Ipv4Addr> {
    let network = 128 + u8::try_from(number >> 8).ok().filter(|network| *network < 128).context("there is no address for so many")?;
    Ok(region.address(network, u8::try_from(number & 255)?))
}

/// One agent as it introduces itself.
pub fn hello(region: &Region, number: usize, memory_mib: u32) -> anyhow::Result<Hello> {
    let address = address(region, number)?;
    let id = format!("i-{number:017x}");
    let zone = zone(u8::try_from(number % 3)? + 1);
    region.put(&id, Instance { address, zone, group: NODES_GROUP.to_owned(), state: "running" });
    Ok(Hello {
        cluster: "core".to_owned(),
        boot_id: id.clone(),
        instance_id: id,
        address: address.to_string(),
        agent_version: "1".to_owned(),
        cpu_millis: 2000,
        memory_mib,
    })
}

/// A session that was welcomed and has sent nothing but its hello.
pub struct Session {
    to_leader: mpsc::Sender<AgentMessage>,
    answers: Streaming<CoordinatorMessage>,
    every: Duration,
    slots: Vec<SlotObservation>,
}

/// Opens a session with the leader at `leader`: a connection of its own, from its own address, under its own certificate, as every agent's.
///
/// # Errors
/// Refused, or no welcome within 30 s.
pub async fn open(leader: SocketAddr, root: &Root, hello: Hello) -> anyhow::Result<Session> {
    let from = hello.address.parse()?;
    let channel = channel::open(leader, Some(from), Some(root.as_node(&hello.instance_id, from)?)).await?;
    let (to_leader, messages) = mpsc::channel(16);
    to_leader.try_send(AgentMessage { body: Some(agent_message::Body::Hello(hello)) })?;
    let welcomed = async {
        let mut answers =
            AgentsClient::new(channel).max_decoding_message_size(vp_proto::MAX_MESSAGE_BYTES).session(ReceiverStream::new(messages)).await?.into_inner();
        match answers.message().await?.and_then(|answer| answer.body) {
            Some(coordinator_message::Body::Welcome(welcome)) => Ok((answers, welcome)),
            other => bail!("no welcome but {other:?}"),
        }
    };
    let (answers, welcome) = timeout(Duration::from_secs(30), welcomed).await.context("no welcome within 30 s")??;
    Ok(Session { to_leader, answers, every: Duration::from_millis(welcome.heartbeat_ms), slots: Vec::new() })
}

impl Session {
    /// Heartbeats until the session ends, the first one after `phase`.
    pub async fn run(mut self, phase: Duration, tally: Arc<Tally>) {
        let mut ticks = interval_at(tokio::time::Instant::now() + phase, self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sequence = 0;
        let mut sent = Instant::now();
        loop {
            tokio::select! {
                answer = self.answers.message() => match answer.ok().flatten().and_then(|answer| answer.body) {
                    Some(coordinator_message::Body::Ack(ack)) => if ack.sequence == sequence { tally.answered(sent.elapsed()) },
                    Some(coordinator_message::Body::Desired(desired)) => {
                        let healthy = |a: vp_proto::v1::Assignment| SlotObservation { slot: a.slot, generation: a.generation, phase: Phase::Healthy.into(), pid: 4711, ..SlotObservation::default() };
                        self.slots = desired.assignments.into_iter().map(healthy).collect();
                    }
                    Some(coordinator_message::Body::Welcome(_)) => {}
                    None => break,
                },
                _ = ticks.tick() => {
                    sequence += 1;
                    let measures = NodeMeasures { cpu_used_permille: 120, memory_used_bytes: 1 << 30, memory_total_bytes: 2 << 30, disk_free_bytes: 9 << 30, agent_rss_bytes: 12 << 20 };
                    let heartbeat = Heartbeat { sequence, slots: self.slots.clone(), measures: Some(measures) };
                    sent = Instant::now();
                    if self.to_leader.try_send(AgentMessage { body: Some(agent_message::Body::Heartbeat(heartbeat)) }).is_err() {
                        break;
                    }
                }
            }
        }
        tally.ended.fetch_add(1, Ordering::Relaxed);
    }
}
