//! The session with the leading coordinator, on a thread of its own so that no busy control loop delays a heartbeat: find the
//! leader, say hello under this instance's certificate, heartbeat every quarter of a lease, renew leases and guards from its answers, hand on what it wants.
//! It waits for no disk and decides nothing.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fail::fail_point;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use vp_proto::v1::agents_client::AgentsClient;
use vp_proto::v1::{AgentMessage, CoordinatorMessage, Hello, Welcome, agent_message, coordinator_message};
use vp_proto::{LEADER_KEY, MAX_MESSAGE_BYTES};
use vp_trust::{DialError, Way};

use crate::certificate::{Certificates, Held};
use crate::clock::Instant;
use crate::conversation::Conversation;
use crate::guard;
use crate::settings::Settings;
use crate::shared::Shared;

/// Why a session ended; what to do next depends on it.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    /// Go there.
    #[error("another coordinator leads")]
    Redirect(Option<SocketAddr>),
    /// A person must act; ask again rarely.
    #[error("refused: {0}")]
    Refused(String),
    /// Try the next.
    #[error("unreachable")]
    Unreachable(#[from] vp_trust::DialError),
    /// Get another certificate.
    #[error("the certificate is not taken: {0}")]
    Certificate(String),
    /// Try the next.
    #[error("ended: {0}")]
    Ended(String),
    /// Try the next.
    #[error("no {what} within {ms} ms")]
    Silent { what: &'static str, ms: u128 },
}

/// However short the lease: a handshake on a starved machine.
const SHORTEST_REACH: Duration = Duration::from_millis(500);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// What the agent says of itself first.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Random per agent state folder.
    pub boot_id: String,
}

/// Runs for ever.
pub async fn run(settings: Arc<Settings>, identity: Identity, shared: Arc<Shared>) {
    let certificates = Arc::new(Certificates::open(settings.clone()));
    let session = Session { settings, identity, shared, certificates: certificates.clone(), sequence: 0 };
    tokio::select! {
        () = certificates.run() => {}
        () = session.run() => {}
    }
}

/// Shows an error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |cause| cause.source()).try_for_each(|cause| write!(f, ": {cause}"))
    }
}

/// Between half of `pause` and all of it, so that agents do not come in step.
fn jitter(pause: Duration) -> Duration {
    let random = Instant::now().0 ^ u64::from(std::process::id()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let half = pause / 2;
    half + half.mul_f64((random >> 3 & 0xff) as f64 / 255.0)
}

struct Session {
    settings: Arc<Settings>,
    identity: Identity,
    shared: Arc<Shared>,
    certificates: Arc<Certificates>,
    sequence: u64,
}

impl Session {
    async fn run(mut self) {
        let mut pause = SHORTEST_PAUSE;
        let mut hints = VecDeque::new();
        let mut next = 0;
        let mut failures = 0;
        loop {
            let count = self.settings.coordinators.len();
            let (target, hinted) = match hints.pop_front() {
                Some(hint) => (hint, true),
                None => (self.settings.coordinators[next % count], false),
            };
            let before = self.sequence;
            let ended = self.with(target).await;
            if self.sequence > before {
                // It was a session: begin anew.
                (pause, failures) = (SHORTEST_PAUSE, 0);
            }
            failures += 1;
            let mut wait = None;
            match &ended {
                // A coordinator said so under its certificate, and whoever is there must have one too: it may have joined after this instance was booted.
                SessionError::Redirect(Some(leader)) if !hinted => {
                    hints.push_back(*leader);
                    continue;
                }
                SessionError::Refused(reason) => {
                    tracing::warn!(coordinator = %target, reason, "refused by a coordinator");
                    wait = Some(PAUSE_AFTER_REFUSAL);
                }
                error @ (SessionError::Certificate(_) | SessionError::Unreachable(DialError::Refused { .. } | DialError::Untrusted { .. })) => {
                    tracing::warn!(coordinator = %target, error = %Chain(error), "no session");
                }
                error => tracing::debug!(coordinator = %target, error = %Chain(error), "no session"),
            }
            next += 1;
            if wait.is_some() || failures % count == 0 {
                tokio::time::sleep(wait.unwrap_or_else(|| jitter(pause))).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// One session with `target`, until it ends.
    async fn with(&mut self, target: SocketAddr) -> SessionError {
        match self.converse(target).await {
            Ok(()) => SessionError::Ended("closed by the coordinator".into()),
            Err(error) => error,
        }
    }

    async fn converse(&mut self, target: SocketAddr) -> Result<(), SessionError> {
        let held = self.certificates.ready().await;
        let outcome = self.converse_under(&held, target).await;
        if let Err(SessionError::Certificate(_) | SessionError::Unreachable(DialError::Refused { .. })) = &outcome {
            self.certificates.refused(&held);
        }
        outcome
    }

    async fn converse_under(&mut self, held: &Held, target: SocketAddr) -> Result<(), SessionError> {
        fail_point!("session::connect");
        let lease = self.settings.lease;
        let patience = (lease / 2).max(Duration::from_millis(500));
        // Half a lease together: a partition is noticed in time to go elsewhere. Longer than the quarter after which a heartbeat is answered: where all is well,
        // no ping is sent beside it.
        let (quiet, sign_of_life) = (lease * 3 / 10, lease / 5);
        let endpoint =
            Endpoint::from_static("http://coordinator").http2_keep_alive_interval(quiet).keep_alive_timeout(sign_of_life).keep_alive_while_idle(true);
        let within = (lease / 4).max(SHORTEST_REACH);
        let way = Way { to: target, from: Some(self.settings.node.address), tls: held.tls.clone(), within };
        let channel = vp_trust::dial(endpoint, &way).await?;
        let mut client = AgentsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (to_leader, messages) = mpsc::channel(16);
        let hello = AgentMessage { body: Some(agent_message::Body::Hello(self.hello())) };
        to_leader.try_send(hello).map_err(|_| SessionError::Ended("stream closed".into()))?;
        fail_point!("session::hello");
        let silent = |what| move |_| SessionError::Silent { what, ms: patience.as_millis() };
        let opened = timeout(patience, client.session(ReceiverStream::new(messages))).await.map_err(silent("answer"))?;
        let mut answers = opened.map_err(|status| ended(&status))?.into_inner();
        let first = timeout(patience, answers.next()).await.map_err(silent("welcome"))?;
        let welcome = match first.map(|answer| answer.map(|message| message.body)) {
            Some(Ok(Some(coordinator_message::Body::Welcome(welcome)))) => welcome,
            Some(Err(status)) => return Err(ended(&status)),
            Some(Ok(_)) => return Err(SessionError::Ended("the first message was no welcome".into())),
            None => return Err(SessionError::Ended("closed before the welcome".into())),
        };
        tracing::info!(coordinator = %target, session = welcome.session, term = welcome.term, "session opened");
        fail_point!("session::welcomed");
        self.shared.leases().new_session();
        let outcome = self.beat(&welcome, &to_leader, &mut answers).await;
        tracing::info!(coordinator = %target, session = welcome.session, "session over");
        outcome
    }

    async fn beat(
        &mut self,
        welcome: &Welcome,
        to_leader: &mpsc::Sender<AgentMessage>,
        answers: &mut Streaming<CoordinatorMessage>,
    ) -> Result<(), SessionError> {
        let mut talk = Conversation::new(welcome, Instant::now());
        let patience = talk.patience();
        let shared = self.shared.clone();
        let mut ticks = tokio::time::interval(talk.every());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                answer = answers.next() => match answer {
                    Some(Ok(message)) => self.answer(&mut talk, message),
                    Some(Err(status)) => return Err(ended(&status)),
                    None => return Ok(()),
                },
                _ = ticks.tick() => {
                    if talk.is_over(Instant::now()) {
                        return Err(SessionError::Silent { what: "acknowledgement", ms: patience.as_millis() });
                    }
                    self.send(&mut talk, to_leader);
                }
                () = shared.reported.notified() => if talk.may_tell_news(Instant::now()) {
                    self.send(&mut talk, to_leader);
                },
            }
        }
    }

    /// A full channel means the network is behind: the next heartbeat tells the truth again.
    fn send(&mut self, talk: &mut Conversation, to_leader: &mpsc::Sender<AgentMessage>) {
        fail_point!("session::heartbeat");
        self.sequence += 1;
        let said = talk.speak(self.sequence, &self.shared, Instant::now());
        fail_point!("session::before_it_leaves");
        for body in said {
            let _ = to_leader.try_send(AgentMessage { body: Some(body) });
        }
    }

    fn answer(&mut self, talk: &mut Conversation, message: CoordinatorMessage) {
        match message.body {
            Some(coordinator_message::Body::Ack(ack)) => {
                fail_point!("session::acknowledged");
                let renewals = talk.hear(&ack, &self.shared, Instant::now());
                fail_point!("session::renew_guards");
                let guards = self.shared.report().guards.clone();
                let mut first = false;
                for renewal in renewals {
                    for (_, generation, run_dir) in guards.iter().filter(|(slot, g, _)| *slot == renewal.slot && *g == renewal.generation) {
                        if let Err(error) = guard::renew(run_dir, *generation, renewal.deadline) {
                            tracing::debug!(slot = %renewal.slot, %error, "guard not renewed");
                        }
                    }
                    first |= !guards.iter().any(|(slot, _, _)| *slot == renewal.slot);
                }
                if first {
                    // Something may have waited for just this.
                    self.shared.wake.notify_one();
                }
            }
            Some(coordinator_message::Body::Desired(desired)) => {
                fail_point!("session::desired");
                self.shared.desired.send_replace(Some(Arc::new(desired)));
            }
            Some(coordinator_message::Body::Welcome(_)) | None => {}
        }
    }

    fn hello(&self) -> Hello {
        let node = &self.settings.node;
        Hello {
            cluster: self.settings.cluster.clone(),
            instance_id: node.instance_id.clone(),
            address: node.address.to_string(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.identity.boot_id.clone(),
            cpu_millis: node.vcpus * 1000,
            memory_mib: node.memory_mib,
        }
    }
}

fn ended(status: &Status) -> SessionError {
    match status.code() {
        Code::FailedPrecondition => {
            let leader = status.metadata().get(LEADER_KEY).and_then(|value| value.to_str().ok());
            SessionError::Redirect(leader.and_then(|leader| leader.parse().ok()))
        }
        Code::Unauthenticated => SessionError::Certificate(status.message().to_owned()),
        Code::PermissionDenied | Code::InvalidArgument => SessionError::Refused(status.message().to_owned()),
        code => SessionError::Ended(format!("{code:?}: {}", status.message())),
    }
}
