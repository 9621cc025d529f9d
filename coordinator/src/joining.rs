//! A new instance of a coordinator asks the leader for a member id: at the addresses of the user data, one after another, until one leads.
//! Left out: when it asks (`bootstrap`).

use std::{collections::BTreeMap, future::Future, net::SocketAddr, time::Duration};

use tonic::{Code, Status, transport::Endpoint};
use vp_cluster::version;
use vp_proto::{
    COORDINATOR_PORT,
    v1::{JoinRequest, coordinators_client::CoordinatorsClient},
};
use vp_trust::DialError;

use crate::{settings::Settings, trust::Trust};

/// One call's time: it waits for EC2 and for the log.
const CALL: Duration = Duration::from_secs(10);
/// To reach a coordinator, handshake included.
const REACH: Duration = Duration::from_secs(1);

/// An id of one's own, and where the others are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub member: u64,
    pub members: BTreeMap<u64, SocketAddr>,
}

/// Whoever gives out ids.
pub trait Join: Sync {
    /// Asks once, of whoever leads. Each answer is a fresh id.
    ///
    /// # Errors
    /// In words for the log: ask again later.
    fn join(&self, cluster_id: &str) -> impl Future<Output = Result<Joined, String>> + Send;
}

/// The leader, asked over the network, under a certificate of the place that is asked for: like every coordinator this instance has made it with the root.
pub struct ByLeader<'a> {
    pub settings: &'a Settings,
    pub trust: &'a Trust,
}

impl Join for ByLeader<'_> {
    async fn join(&self, cluster_id: &str) -> Result<Joined, String> {
        let mut said = Vec::new();
        for peer in self.settings.user_data.coordinators.iter().filter(|peer| peer.id != self.settings.me.id) {
            let asked = tokio::time::timeout(CALL, self.ask(SocketAddr::from((peer.address, COORDINATOR_PORT)), cluster_id)).await;
            match asked.unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "no answer in time"))) {
                Ok(joined) => return Ok(joined),
                Err(status) => said.push(format!("{}: {}", peer.address, status.message())),
            }
        }
        Err(said.join("; "))
    }
}

impl ByLeader<'_> {
    async fn ask(&self, address: SocketAddr, cluster_id: &str) -> Result<Joined, Status> {
        let settings = self.settings;
        let way = self.trust.way(address, REACH);
        let channel = vp_trust::dial(Endpoint::from_static("http://coordinator"), &way).await.map_err(|error| unreached(&error))?;
        let request = JoinRequest {
            cluster: settings.user_data.cluster.clone(),
            cluster_id: cluster_id.to_owned(),
            coordinator: settings.me.id,
            instance_id: settings.instance_id.clone(),
            address: settings.instance_address.clone(),
            identity_document: settings.identity_document.clone(),
            identity_signature: settings.identity_signature.clone(),
            supports: version::NEWEST,
        };
        let answer = CoordinatorsClient::new(channel).join(request).await?.into_inner();
        let at = |member: vp_proto::v1::CoordinatorMember| Some((member.member, SocketAddr::new(member.address.parse().ok()?, COORDINATOR_PORT)));
        Ok(Joined { member: answer.member, members: answer.members.into_iter().filter_map(at).collect() })
    }
}

/// Somebody who is there and is not trusted, or does not trust us, must be told from somebody who is not there.
fn unreached(error: &DialError) -> Status {
    match error {
        DialError::Untrusted { source, .. } => Status::unavailable(format!("{error}: {source}")),
        DialError::Unreachable { .. } => Status::unavailable("not reachable"),
        error => Status::unavailable(error.to_string()),
    }
}
