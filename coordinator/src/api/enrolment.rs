//! The conversation with instances that have no certificate yet: a claim that holds, a call back that proves it is theirs, a certificate.
//!
//! ```text
//! Enroll -> request (its own key's signature, this instance's name) -> identity (document, EC2) -> call back -> still leading? -> certificate
//! ```
//!
//! The cheapest check comes first, so that a stranger's call costs a signature at most. See docs/decisions on enrolment for what each step keeps out.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use tracing::{debug, info, warn};
use vp_cluster::NodeId;
use vp_proto::v1::{self, enrolment_server::Enrolment};
use vp_trust::{Caller, Name, Request as CertificateRequest, proof};

use super::{limits, not_leader};
use crate::{
    identity::{Claim, Refusal, Verifier},
    leader::Leader,
    trust::Trust,
};

pub struct EnrolmentApi {
    pub leader: Arc<Leader>,
    trust: Arc<Trust>,
    pub verifier: Verifier,
    at_once: Semaphore,
    /// Instances whose enrolment is being judged: one at a time each.
    busy: Mutex<BTreeSet<String>>,
    /// How often each instance asks.
    knocks: limits::Rationed,
    /// Refusals of strangers that become events.
    strangers: Mutex<limits::Allowance>,
    since: Instant,
}

/// An instance's turn; over when dropped.
struct Turn<'a> {
    api: &'a EnrolmentApi,
    instance_id: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.api.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.instance_id);
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentApi {
    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollResponse>, Status> {
        if !self.leader.leads() {
            return Err(not_leader(&self.leader));
        }
        let caller = request.extensions().get::<Caller>().cloned();
        let asked = request.into_inner();
        let crowded = || Status::resource_exhausted("many instances enrol at this moment: try again");
        let _place = self.at_once.try_acquire().map_err(|_| crowded())?;
        match self.judge(&asked, caller.as_ref()).await {
            Ok((wish, address)) => self.grant(&asked.instance_id, &wish, address).await.map(Response::new),
            Err(later @ Refusal::Later(_)) => Err(Status::unavailable(later.to_string())),
            Err(refusal) => {
                self.tell(&asked.instance_id, &refusal).await;
                Err(Status::permission_denied(refusal.to_string()))
            }
        }
    }
}

impl EnrolmentApi {
    pub fn new(leader: Arc<Leader>, trust: Arc<Trust>, verifier: Verifier) -> Self {
        Self {
            leader,
            trust,
            verifier,
            at_once: Semaphore::new(limits::ENROLMENTS_AT_ONCE),
            busy: Mutex::default(),
            knocks: limits::Rationed::new(limits::ENROLMENTS),
            strangers: Mutex::new(limits::Allowance::new(limits::STRANGERS, Duration::ZERO)),
            since: Instant::now(),
        }
    }

    async fn judge(&self, asked: &v1::EnrollRequest, caller: Option<&Caller>) -> Result<(CertificateRequest, IpAddr), Refusal> {
        let wish = CertificateRequest::read(&asked.certificate_request)?;
        if wish.name != Name::node(&self.leader.settings.user_data.cluster, &asked.instance_id) {
            return Err(Refusal::Wish { wish: wish.name.to_string(), claim: asked.instance_id.chars().take(40).collect() });
        }
        let claim = Claim {
            cluster: &asked.cluster,
            instance_id: &asked.instance_id,
            address: &asked.address,
            document: &asked.identity_document,
            signature: &asked.identity_signature,
        };
        self.verifier.verify_document(&claim)?;
        let address: IpAddr = asked.address.parse().map_err(|_| Refusal::Unreadable(format!("{:?} is no address", asked.address)))?;
        // A document is the same for ever, and others may have it: whoever shows it elsewhere takes nobody's turn.
        let from = caller.map(|caller| caller.from);
        if from != Some(address) {
            return Err(Refusal::Elsewhere { from: from.map(|from| from.to_string()).unwrap_or_default(), address: address.to_string() });
        }
        // What follows takes its time: its connection has the door's.
        caller.inspect(|caller| caller.welcome());
        // From here on it costs somebody else something: one at a time for an instance, and not without end.
        if !self.knocks.take(&NodeId(asked.instance_id.clone())) {
            return Err(Refusal::Later("this instance asks to be enrolled again and again".to_owned()));
        }
        let _turn = self.turn(&asked.instance_id)?;
        self.verifier.look_up(&asked.instance_id, &asked.address).await?;
        proof::ask(address, self.trust.address(), wish.public_key(), limits::CALL_BACK).await?;
        Ok((wish, address))
    }

    fn turn(&self, instance_id: &str) -> Result<Turn<'_>, Refusal> {
        let fresh = self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(instance_id.to_owned());
        if !fresh {
            return Err(Refusal::Later("an earlier request of this instance is being looked at".to_owned()));
        }
        Ok(Turn { api: self, instance_id: instance_id.to_owned() })
    }

    async fn grant(&self, instance_id: &str, wish: &CertificateRequest, address: IpAddr) -> Result<v1::EnrollResponse, Status> {
        // A leader that has been replaced meanwhile would issue one that is older than what its successor issues: refused by everybody, for no reason to see.
        let term = self.leader.raft.status().term;
        self.leader.raft.read_index().await.map_err(|_| not_leader(&self.leader))?;
        if self.leader.raft.status().term != term {
            return Err(not_leader(&self.leader));
        }
        let serial = self.leader.certificates.issue(&NodeId(instance_id.to_owned()), term);
        let lifetime_s = self.leader.settings.user_data.trust.certificate_lifetime_s;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let chain = self.trust.authority.node(wish, address, serial, now_s, Duration::from_secs(lifetime_s));
        let chain = chain.map_err(|error| Status::internal(error.to_string()))?;
        info!(node = instance_id, %serial, "certificate issued");
        Ok(v1::EnrollResponse { certificates: chain.iter().map(|one| one.to_vec()).collect(), lifetime_s })
    }

    /// A refusal is an event, once among the last few. What anybody can provoke is one a few times an hour: a person sees that somebody knocks, and nobody fills
    /// the log.
    async fn tell(&self, instance_id: &str, refusal: &Refusal) {
        let subject: String = instance_id.chars().take(40).collect();
        let known = self.leader.state();
        let repeated = known.events.iter().rev().take(20).any(|event| event.kind == "join refused" && event.subject == subject);
        let heard = || self.strangers.lock().unwrap_or_else(PoisonError::into_inner).take(self.since.elapsed());
        if repeated || !(refusal.is_of_our_account() || heard()) {
            debug!(node = %subject, reason = %refusal, "enrolment refused");
            return;
        }
        warn!(node = %subject, reason = %refusal, "join refused");
        self.leader.note("join refused", subject, refusal.to_string()).await;
    }
}
