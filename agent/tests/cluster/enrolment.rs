//! The bed's coordinators as an agent without a certificate meets them: the call back is real, the identity document is taken on trust.

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tonic::{Request, Response, Status};
use vp_proto::v1::enrolment_server::Enrolment;
use vp_proto::v1::{EnrollRequest, EnrollResponse};
use vp_trust::{Authority, Serial, proof};

/// What all coordinators of a bed share.
pub struct Office {
    pub authority: Authority,
    pub issued: AtomicU64,
    /// Nothing is issued meanwhile.
    pub closed: AtomicBool,
    /// How long a certificate is said to be good, and is.
    pub lifetime: Mutex<Duration>,
    /// The clock that certificates are dated by, seconds behind the true one.
    pub behind_s: AtomicU64,
}

impl Office {
    pub fn new(authority: Authority) -> Self {
        Self {
            authority,
            issued: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            lifetime: Mutex::new(Duration::from_secs(3600)),
            behind_s: AtomicU64::new(0),
        }
    }

    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::SeqCst)
    }
}

/// One coordinator's.
pub struct Desk {
    pub office: std::sync::Arc<Office>,
    pub own: IpAddr,
    pub leader: Option<String>,
}

#[tonic::async_trait]
impl Enrolment for Desk {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        if let Some(leader) = &self.leader {
            let mut status = Status::failed_precondition("not the leader");
            status.metadata_mut().insert(vp_proto::LEADER_KEY, leader.parse().unwrap());
            return Err(status);
        }
        let office = &self.office;
        if office.closed.load(Ordering::SeqCst) {
            return Err(Status::unavailable("closed"));
        }
        let asked = request.into_inner();
        let wish = vp_trust::Request::read(&asked.certificate_request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let address: IpAddr = asked.address.parse().unwrap();
        proof::ask(address, self.own, wish.public_key(), Duration::from_secs(5)).await.map_err(|error| Status::permission_denied(error.to_string()))?;
        let serial = Serial { term: 1, count: office.issued.fetch_add(1, Ordering::SeqCst) + 1 };
        let lifetime = *office.lifetime.lock().unwrap();
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().wrapping_sub(office.behind_s.load(Ordering::SeqCst));
        let chain = office.authority.node(&wish, address, serial, now_s, lifetime).unwrap();
        Ok(Response::new(EnrollResponse { certificates: chain.iter().map(|one| one.to_vec()).collect(), lifetime_s: lifetime.as_secs() }))
    }
}
