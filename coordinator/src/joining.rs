//! A new instance of a coordinator asks the leader for a member id: at the addresses of the user data and at those that they name, until one leads.
//! Left out: when it asks (`bootstrap`).

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    net::SocketAddr,
    time::Duration,
};

use tonic::{Code, Status, transport::Endpoint};
use vp_cluster::version;
use vp_proto::{
    COORDINATOR_PORT, LEADER_KEY,
    v1::{JoinRequest, coordinators_client::CoordinatorsClient},
};

use crate::settings::Settings;

/// Most coordinators asked in one round, those that others name included.
const MOST_ASKED: usize = 16;
/// One call's time: it waits for EC2 and for the log.
const CALL: Duration = Duration::from_secs(10);

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

/// The leader, asked over the network.
pub struct ByLeader<'a>(pub &'a Settings);

impl Join for ByLeader<'_> {
    async fn join(&self, cluster_id: &str) -> Result<Joined, String> {
        let listed = self.0.user_data.coordinators.iter().filter(|peer| peer.id != self.0.me.id);
        let mut targets: VecDeque<SocketAddr> = listed.map(|peer| SocketAddr::from((peer.address, COORDINATOR_PORT))).collect();
        let (mut said, mut known) = (Vec::new(), targets.clone());
        while let Some(target) = targets.pop_front() {
            let asked = tokio::time::timeout(CALL, self.ask(target, cluster_id)).await;
            let status = match asked.unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "no answer in time"))) {
                Ok(joined) => return Ok(joined),
                Err(status) => status,
            };
            // Who leads may have joined after this instance's user data were written.
            let leader = status.metadata().get(LEADER_KEY).and_then(|value| value.to_str().ok()?.parse::<SocketAddr>().ok());
            if let Some(leader) = leader.filter(|leader| !known.contains(leader) && known.len() < MOST_ASKED) {
                known.push_back(leader);
                targets.push_front(leader);
            }
            said.push(format!("{}: {}", target.ip(), status.message()));
        }
        Err(said.join("; "))
    }
}

impl ByLeader<'_> {
    async fn ask(&self, address: SocketAddr, cluster_id: &str) -> Result<Joined, Status> {
        let settings = self.0;
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let endpoint = endpoint.local_address(Some(settings.me.address.into())).connect_timeout(Duration::from_secs(1));
        let channel = endpoint.connect().await.map_err(|_| Status::unavailable("not reachable"))?;
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
