//! An instance as the test plays it: it has an address, an identity document and, once enrolled, a certificate; it talks to coordinators as an agent does,
//! or as an agent should not.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use vp_proto::v1::{
    AgentMessage, CoordinatorMessage, EnrollRequest, EnrollResponse, Heartbeat, Hello, Welcome, agent_message::Body, agents_client::AgentsClient,
    coordinator_message, enrolment_client::EnrolmentClient,
};
use vp_trust::{Credentials, proof::Answering, request::Fresh};

use super::{CLUSTER, Cell, GROUP, aws::Instance, dial};

/// One instance.
#[derive(Clone, Debug)]
pub struct Machine {
    pub id: String,
    pub address: IpAddr,
    /// Identity document and its signature.
    pub identity: (String, String),
}

/// An open conversation with the leader.
pub struct Session {
    pub welcome: Welcome,
    pub say: mpsc::Sender<AgentMessage>,
    pub answers: Streaming<CoordinatorMessage>,
    sequence: u64,
}

impl Machine {
    /// A running instance of the group, known to EC2.
    ///
    /// # Errors
    /// Its document cannot be signed.
    pub fn launch(cell: &Cell, id: &str) -> anyhow::Result<Self> {
        let address = cell.fresh_address();
        cell.aws.launch(id, Instance { address, state: "running", group: GROUP.to_owned() });
        Ok(Self { id: id.to_owned(), address, identity: cell.document(id, address, "us-east-1", false)? })
    }

    /// What it asks to be enrolled with.
    pub fn claim(&self, request: &[u8]) -> EnrollRequest {
        EnrollRequest {
            cluster: CLUSTER.to_owned(),
            instance_id: self.id.clone(),
            address: self.address.to_string(),
            identity_document: self.identity.0.clone(),
            identity_signature: self.identity.1.clone(),
            certificate_request: request.to_vec(),
        }
    }

    /// Its hello.
    pub fn hello(&self) -> Hello {
        Hello {
            cluster: CLUSTER.to_owned(),
            instance_id: self.id.clone(),
            address: self.address.to_string(),
            agent_version: "attack".to_owned(),
            boot_id: "b".to_owned(),
            cpu_millis: 2000,
            memory_mib: 2048,
        }
    }

    /// Enrols as an honest agent does: answers the call back meanwhile.
    ///
    /// # Errors
    /// Not granted.
    pub async fn enrol(&self, cell: &Cell) -> anyhow::Result<Credentials> {
        let fresh = Fresh::new(&cell.name(&self.id))?;
        let asked = submit(cell, self.address, self.claim(fresh.der()));
        let granted = answered(self.address, &fresh, cell, asked).await??;
        Ok(fresh.granted(granted.certificates.into_iter().map(Into::into).collect()))
    }

    /// Opens a session from its own address.
    ///
    /// # Errors
    /// The coordinator's answer.
    pub async fn session(&self, cell: &Cell, own: &Credentials) -> anyhow::Result<Session> {
        Ok(open(cell, self.address, own, self.hello()).await?)
    }
}

/// Does something while the call back is answered at `address` with the key of `fresh`.
///
/// # Errors
/// The port is taken.
pub async fn answered<T>(address: IpAddr, fresh: &Fresh, cell: &Cell, meanwhile: impl Future<Output = T>) -> anyhow::Result<T> {
    let answering = Answering::bind(address, fresh).await.context("the call back's port")?;
    tokio::select! {
        () = answering.run(|from| (1..=3).any(|id| cell.coordinator(id) == from)) => anyhow::bail!("the call back is not answered any more"),
        done = meanwhile => Ok(done),
    }
}

/// Asks the leader to enrol, from any address, with any claim.
///
/// # Errors
/// The coordinator's answer; `UNAVAILABLE` when there is no connection.
pub async fn submit(cell: &Cell, from: IpAddr, claim: EnrollRequest) -> Result<EnrollResponse, Status> {
    let unavailable = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
    let leader = cell.leader_now().await.map_err(|error| unavailable(&error))?;
    let way = cell.enrolment_way(leader, from).map_err(|error| unavailable(&error))?;
    let channel = dial(&way).await.map_err(|error| unavailable(&error))?;
    let asked = tokio::time::timeout(Duration::from_secs(15), Box::pin(EnrolmentClient::new(channel).enroll(claim))).await;
    asked.map_err(|_| Status::deadline_exceeded("no answer"))?.map(tonic::Response::into_inner)
}

/// Opens a session with the leader from any address, under any certificate, with any hello.
///
/// # Errors
/// The coordinator's answer; `UNAVAILABLE` when there is no connection.
pub async fn open(cell: &Cell, from: IpAddr, own: &Credentials, hello: Hello) -> Result<Session, Status> {
    let unavailable = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
    let leader = cell.leader_now().await.map_err(|error| unavailable(&error))?;
    let way = cell.way(leader, from, Some(own)).map_err(|error| unavailable(&error))?;
    let channel = dial(&way).await.map_err(|error| unavailable(&error))?;
    let (say, messages) = mpsc::channel(256);
    let _ = say.try_send(AgentMessage { body: Some(Body::Hello(hello)) });
    let mut answers = AgentsClient::new(channel).session(ReceiverStream::new(messages)).await?.into_inner();
    match answers.message().await?.and_then(|message| message.body) {
        Some(coordinator_message::Body::Welcome(welcome)) => Ok(Session { welcome, say, answers, sequence: 0 }),
        _ => Err(Status::internal("no welcome")),
    }
}

impl Session {
    /// Sends a heartbeat and waits for its acknowledgement; how long that took.
    ///
    /// # Errors
    /// The session ended, or no acknowledgement came in time.
    pub async fn beat(&mut self, heartbeat: Heartbeat, within: Duration) -> anyhow::Result<(Duration, vp_proto::v1::Ack)> {
        self.sequence += 1;
        let sequence = self.sequence;
        let sent = Instant::now();
        self.say.send(AgentMessage { body: Some(Body::Heartbeat(Heartbeat { sequence, ..heartbeat })) }).await?;
        let acknowledged = async {
            loop {
                let message = self.answers.message().await?.context("the coordinator closed the session")?;
                if let Some(coordinator_message::Body::Ack(ack)) = message.body
                    && ack.sequence == sequence
                {
                    return anyhow::Ok(ack);
                }
            }
        };
        let ack = tokio::time::timeout(within, acknowledged).await.context("no acknowledgement in time")??;
        Ok((sent.elapsed(), ack))
    }

    /// Heartbeats twenty times a second until `enough`, which is told when each was sent and how long it took, says so.
    ///
    /// # Errors
    /// The session ended, or a heartbeat was not acknowledged within half a lease.
    pub async fn beats(&mut self, mut enough: impl FnMut(Instant, Duration) -> bool) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let sent = Instant::now();
            let (took, _) = self.beat(Heartbeat::default(), Duration::from_millis(super::LEASE_MS / 2)).await?;
            if enough(sent, took) {
                return Ok(());
            }
        }
    }
}

/// Honest agents whose heartbeats are measured while something else goes on.
pub struct Witnesses {
    task: tokio::task::JoinHandle<Vec<anyhow::Result<Vec<Duration>>>>,
    stop: tokio::sync::watch::Sender<bool>,
}

/// What witnesses saw.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub beats: usize,
    pub p50: Duration,
    pub p99: Duration,
    pub worst: Duration,
}

impl Witnesses {
    /// Heartbeats twenty times a second from each machine until told to stop.
    ///
    /// # Errors
    /// One cannot open its session.
    pub async fn watch(cell: &'static Cell, machines: &[(Machine, Credentials)]) -> anyhow::Result<Self> {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut sessions = Vec::new();
        for (machine, own) in machines {
            sessions.push(machine.session(cell, own).await?);
        }
        let task = tokio::spawn(futures::future::join_all(sessions.into_iter().map(move |session| beats(session, stopped.clone()))));
        Ok(Self { task, stop })
    }

    /// Ends the watch.
    ///
    /// # Errors
    /// A session ended meanwhile, or a heartbeat was not acknowledged within half a lease.
    pub async fn tell(self) -> anyhow::Result<Latency> {
        self.stop.send_replace(true);
        let mut all = Vec::new();
        for one in self.task.await? {
            all.extend(one?);
        }
        Latency::of(all).context("no heartbeat at all")
    }
}

impl Latency {
    /// This p99 over the quiet one.
    pub fn ratio(&self, quiet: &Self) -> f64 {
        self.p99.as_secs_f64() / quiet.p99.as_secs_f64()
    }

    /// None: of nothing.
    pub fn of(mut taken: Vec<Duration>) -> Option<Self> {
        taken.sort_unstable();
        let at = |permille: usize| taken.get((taken.len() * permille / 1000).min(taken.len().checked_sub(1)?)).copied();
        Some(Self { beats: taken.len(), p50: at(500)?, p99: at(990)?, worst: at(1000)? })
    }
}

async fn beats(mut session: Session, stopped: tokio::sync::watch::Receiver<bool>) -> anyhow::Result<Vec<Duration>> {
    let mut taken = Vec::new();
    let noted = |_, took| {
        taken.push(took);
        *stopped.borrow()
    };
    session.beats(noted).await?;
    Ok(taken)
}
