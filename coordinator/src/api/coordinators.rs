//! The conversation with a coordinator's new instance. It comes under a certificate that it has made with the cluster's root, as every coordinator does (its
//! user data alone opens it), and is verified as an agent is all the same: it gets a member id that was never given before, once its
//! predecessor is proved to be gone. Left out: making it a learner and a voter (`membership`).

use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::{info, warn};
use vp_cluster::{Command, MemberId, NodeId, Rejection, coordinators::CoordinatorChange};
use vp_proto::v1::{self, coordinators_server::Coordinators};

use super::{coordinator, not_done, not_leader};
use crate::{
    identity::{Claim, Refusal, Verifier},
    leader::{CommandError, Leader},
};

pub struct CoordinatorsApi {
    pub leader: Arc<Leader>,
    /// As for agents; the group it checks is the coordinator's own.
    pub verifier: Verifier,
}

#[tonic::async_trait]
impl Coordinators for CoordinatorsApi {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        if !self.leader.leads() {
            return Err(not_leader(&self.leader));
        }
        let caller = coordinator(&request)?;
        let request = request.into_inner();
        if caller != u64::from(request.coordinator) {
            return Err(Status::permission_denied(format!(
                "this certificate is coordinator {caller}'s, the request is of coordinator {}",
                request.coordinator
            )));
        }
        if request.cluster_id != self.leader.cluster_id {
            return Err(Status::permission_denied(format!("this is {}: the cluster was restored, start again", self.leader.cluster_id)));
        }
        self.verify(&request).await?;
        let instance = NodeId(request.instance_id.clone());
        let change = CoordinatorChange::Join { slot: request.coordinator, instance: instance.clone(), supports: request.supports };
        match self.leader.propose(Command::Coordinators(change)).await {
            Ok(_) => {}
            Err(CommandError::Rejected(waits @ Rejection::MemberLives { .. })) => {
                // Look at its predecessor's instance now.
                self.leader.world.lock().coordinator_waits = true;
                return Err(Status::failed_precondition(waits.to_string()));
            }
            Err(error) => return Err(not_done(&self.leader, error)),
        }
        let state = self.leader.state();
        let group = &state.coordinators;
        let Some((member, _)) = group.of_instance(&instance) else { return Err(Status::unknown("it has an id, and lost it again")) };
        info!(coordinator = request.coordinator, %member, %instance, "coordinator joins");
        Ok(Response::new(v1::JoinResponse { member: member.0, members: members(group.members.iter().map(|(id, member)| (*id, member.address.as_str()))) }))
    }
}

impl CoordinatorsApi {
    /// It runs, in the region, as an instance of that coordinator's group.
    async fn verify(&self, request: &v1::JoinRequest) -> Result<(), Status> {
        let state = self.leader.state();
        let Some(slot) = state.coordinators.slots.get(&request.coordinator) else {
            return Err(Status::permission_denied(format!("coordinator {} is not wanted: see 'vpctl coordinators'", request.coordinator)));
        };
        let verifier = Verifier { group: slot.group.clone(), ..self.verifier.clone() };
        let claim = Claim {
            cluster: &request.cluster,
            instance_id: &request.instance_id,
            address: &request.address,
            document: &request.identity_document,
            signature: &request.identity_signature,
        };
        let judged = match verifier.verify_document(&claim) {
            Ok(()) => verifier.look_up(&request.instance_id, &request.address).await,
            Err(refusal) => Err(refusal),
        };
        match judged {
            Ok(_) => Ok(()),
            Err(later @ Refusal::Later(_)) => Err(Status::unavailable(later.to_string())),
            Err(refusal) => {
                warn!(coordinator = request.coordinator, reason = %refusal, "coordinator's join refused");
                Err(Status::permission_denied(refusal.to_string()))
            }
        }
    }
}

fn members<'a>(members: impl Iterator<Item = (MemberId, &'a str)>) -> Vec<v1::CoordinatorMember> {
    members.map(|(id, address)| v1::CoordinatorMember { member: id.0, address: address.to_owned() }).collect()
}
