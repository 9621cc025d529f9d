//! This instance's certificate: got by enrolling with the leader, kept on disk so that a restart needs nobody, got anew at half its life or when a
//! coordinator does not take it. No clock is read but the span since it was got: whatever time it is here, a coordinator's refusal is what counts, and
//! enrolling needs no certificate, so nothing can lock an instance out.
//!
//! ```text
//!  fresh key ──> request ──> Enroll at the leader ──> it calls back (vp_trust::proof, answered here) ──> certificate ──> disk, sessions to come
//! ```
//!
//! A session that is open goes on under the certificate it began with.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use vp_proto::v1::EnrollRequest;
use vp_proto::v1::enrolment_client::EnrolmentClient;
use vp_proto::{ENROLMENT_PORT, LEADER_KEY};
use vp_trust::proof::Answering;
use vp_trust::request::Fresh;
use vp_trust::{Credentials, Name, Way, tls};

use crate::settings::Settings;

/// Time to reach a coordinator.
const REACH: Duration = Duration::from_secs(1);
/// Time for its answer: EC2 and the call back are in it.
const ANSWER: Duration = Duration::from_secs(8);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Least time between two that were got: one coordinator that takes none must not set all others to work.
const BETWEEN: Duration = Duration::from_secs(5);
/// A certificate from disk is of unknown age: soon after the start it is replaced by one whose age is known.
const AFTER_START: Duration = Duration::from_secs(30);

/// What sessions are opened with.
pub struct Held {
    /// Its TLS side.
    pub tls: Arc<ClientConfig>,
}

/// Why there is no certificate yet; the next try may do.
#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("the port of the call back cannot be had: does another agent run here?")]
    Port(#[source] std::io::Error),
    #[error(transparent)]
    Dial(#[from] vp_trust::DialError),
    #[error("{0}")]
    Answer(String),
    #[error("another coordinator leads")]
    Redirect(Option<std::net::SocketAddr>),
    #[error("no answer within {} s", ANSWER.as_secs())]
    Silent,
    #[error("refused: {0}")]
    Refused(String),
    #[error("no key can be made")]
    Key(#[from] vp_trust::RequestError),
    #[error("the certificate does not fit")]
    Unfit(#[from] rustls::Error),
}

/// The holder of the certificate.
pub struct Certificates {
    settings: Arc<Settings>,
    folder: PathBuf,
    current: watch::Sender<Option<Arc<Held>>>,
    refused: Notify,
}

impl Certificates {
    /// Takes up what an earlier run has left on disk.
    pub fn open(settings: Arc<Settings>) -> Self {
        let folder = settings.layout.agent().join("certificate");
        let stored = Credentials::load(&folder).ok().filter(|stored| stored.root() == settings.root);
        let held = stored.and_then(|stored| tls::client(settings.root, Some(&stored)).ok()).map(|tls| Arc::new(Held { tls }));
        Self { settings, folder, current: watch::Sender::new(held), refused: Notify::new() }
    }

    /// The certificate, as soon as there is one.
    pub async fn ready(&self) -> Arc<Held> {
        let mut current = self.current.subscribe();
        loop {
            if let Some(held) = current.borrow_and_update().clone() {
                return held;
            }
            if current.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// A coordinator did not take it: another is got at once, unless that has happened already. The old one stays until then; others may take it.
    pub fn refused(&self, held: &Arc<Held>) {
        if self.current.borrow().as_ref().is_some_and(|current| Arc::ptr_eq(current, held)) {
            self.refused.notify_one();
        }
    }

    /// Gets certificates for ever, each in time.
    pub async fn run(&self) {
        let start = Instant::now();
        let stored = self.current.borrow().is_some();
        let mut due = start + if stored { AFTER_START } else { Duration::ZERO };
        let mut calm = start;
        let mut pause = SHORTEST_PAUSE;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.refused.notified() => tokio::time::sleep_until(calm).await,
            }
            match self.enrol().await {
                Ok(lifetime) => {
                    pause = SHORTEST_PAUSE;
                    due = Instant::now() + lifetime / 2;
                    calm = Instant::now() + BETWEEN;
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "no certificate yet");
                    due = Instant::now() + pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// One round: a fresh key, and every coordinator asked until one answers. How long the certificate is good.
    async fn enrol(&self) -> Result<Duration, EnrolError> {
        let node = &self.settings.node;
        let fresh = Fresh::new(&Name::node(&self.settings.cluster, &node.instance_id))?;
        // Who may call back: those of the user data, and whom a coordinator has named since as the leader.
        let known = self.settings.coordinators.iter().map(std::net::SocketAddr::ip).collect::<BTreeSet<_>>();
        let callers = Mutex::new(known.clone());
        let answering = Answering::bind(node.address, &fresh).await.map_err(EnrolError::Port)?;
        let (mut targets, mut asked) = (known.into_iter().collect::<VecDeque<_>>(), BTreeSet::new());
        let asking = async {
            let mut last = EnrolError::Answer("there is no coordinator".to_owned());
            while let Some(target) = targets.pop_front() {
                asked.insert(target);
                match self.ask(target, &fresh).await {
                    // At once, but once: one with an old hint must not keep the others from being asked.
                    Err(error @ EnrolError::Redirect(Some(leader))) => {
                        callers.lock().unwrap_or_else(PoisonError::into_inner).insert(leader.ip());
                        if !asked.contains(&leader.ip()) {
                            targets.retain(|target| *target != leader.ip());
                            targets.push_front(leader.ip());
                        }
                        last = error;
                    }
                    Err(error @ EnrolError::Refused(_)) => return Err(error),
                    Err(error) => last = error,
                    granted => return granted,
                }
            }
            Err(last)
        };
        let may_call = |caller| callers.lock().unwrap_or_else(PoisonError::into_inner).contains(&caller);
        tokio::select! {
            () = answering.run(may_call) => Err(EnrolError::Answer("the call back is not answered any more".to_owned())),
            asked = asking => asked,
        }
    }

    async fn ask(&self, coordinator: std::net::IpAddr, fresh: &Fresh) -> Result<Duration, EnrolError> {
        let node = &self.settings.node;
        let to = std::net::SocketAddr::new(coordinator, ENROLMENT_PORT);
        let way = Way { to, from: Some(node.address), tls: tls::client(self.settings.root, None)?, within: REACH };
        let mut client = EnrolmentClient::new(vp_trust::dial(Endpoint::from_static("http://coordinator"), &way).await?);
        let request = EnrollRequest {
            cluster: self.settings.cluster.clone(),
            instance_id: node.instance_id.clone(),
            address: node.address.to_string(),
            identity_document: self.settings.identity.0.clone(),
            identity_signature: self.settings.identity.1.clone(),
            certificate_request: fresh.der().to_vec(),
        };
        let answer = timeout(ANSWER, client.enroll(request)).await.map_err(|_| EnrolError::Silent)?;
        let granted = answer.map_err(|status| refusal(&status))?.into_inner();
        let credentials = fresh.granted(granted.certificates.into_iter().map(Into::into).collect());
        self.take(credentials).await?;
        tracing::info!(coordinator = %to, lifetime_s = granted.lifetime_s, "certificate got");
        Ok(Duration::from_secs(granted.lifetime_s.max(2)))
    }

    async fn take(&self, credentials: Credentials) -> Result<(), EnrolError> {
        let held = Held { tls: tls::client(self.settings.root, Some(&credentials))? };
        self.current.send_replace(Some(Arc::new(held)));
        let folder = self.folder.clone();
        // Elsewhere: heartbeats run on this thread and wait for no disk. Without it the next start enrols again, that is all.
        let saved = tokio::task::spawn_blocking(move || credentials.save(&folder)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(error = &error as &dyn std::error::Error, "certificate not kept for the next start");
        }
        Ok(())
    }
}

fn refusal(status: &Status) -> EnrolError {
    match status.code() {
        Code::FailedPrecondition => {
            let leader = status.metadata().get(LEADER_KEY).and_then(|value| value.to_str().ok());
            EnrolError::Redirect(leader.and_then(|leader| leader.parse().ok()))
        }
        Code::PermissionDenied | Code::InvalidArgument => EnrolError::Refused(status.message().to_owned()),
        code => EnrolError::Answer(format!("{code:?}: {}", status.message())),
    }
}
