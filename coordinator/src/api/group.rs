//! What operators see and want of the coordinators themselves: who is there, who else is wanted, and a snapshot of it all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tonic::{Status, transport::Endpoint};
use vp_cluster::{
    ClusterState, Command, MemberId, Zone,
    coordinators::{CoordinatorChange, CoordinatorSlot, Coordinators, Member, Standing},
};
use vp_proto::{
    COORDINATOR_PORT,
    v1::{self, peers_client::PeersClient},
};

use super::{limits::ASKED_EVERY, not_read, orders::Order};
use crate::{leader::Leader, trust::Trust};

/// How long a coordinator may take to say what it is before it counts as not reachable.
const IDENTIFY_WITHIN: Duration = Duration::from_millis(700);

/// What the member at an address says of itself; None: nothing, in time, or not a coordinator of this cluster.
pub async fn identify(trust: &Trust, address: &str, cluster_id: &str) -> Option<v1::IdentifyResponse> {
    let way = trust.way(SocketAddr::new(address.parse().ok()?, COORDINATOR_PORT), IDENTIFY_WITHIN);
    let asked = async {
        let channel = vp_trust::dial(Endpoint::from_static("http://coordinator"), &way).await.ok()?;
        PeersClient::new(channel).identify(v1::IdentifyRequest { cluster: cluster_id.to_owned() }).await.ok()
    };
    Some(timeout(IDENTIFY_WITHIN, asked).await.ok()??.into_inner())
}

/// The other coordinators, asked for everybody who wants to know just then: one question to each under way, its answers good for [`ASKED_EVERY`].
pub struct Others {
    trust: Arc<Trust>,
    last: Mutex<Option<(Instant, Answers)>>,
}

/// What was answered at each address.
type Answers = BTreeMap<String, Option<v1::IdentifyResponse>>;

impl Others {
    pub fn new(trust: Arc<Trust>) -> Self {
        Self { trust, last: Mutex::default() }
    }

    async fn ask(&self, cluster_id: &str, addresses: &BTreeSet<String>) -> Answers {
        // Held while they are asked: who comes meanwhile waits and finds the answers fresh.
        let mut last = self.last.lock().await;
        if let Some((at, answers)) = &*last
            && at.elapsed() < ASKED_EVERY
            && answers.keys().eq(addresses)
        {
            return answers.clone();
        }
        let asked = addresses.iter().map(|address| async { (address.clone(), identify(&self.trust, address, cluster_id).await) });
        let answers = futures::future::join_all(asked).await.into_iter().collect::<Answers>();
        *last = Some((Instant::now(), answers.clone()));
        answers
    }
}

/// One line for each wanted coordinator.
pub async fn coordinators(leader: &Leader, others: &Others, state: &ClusterState) -> Vec<v1::CoordinatorStatus> {
    let group = &state.coordinators;
    let elsewhere = group.slots.iter().filter(|(number, _)| group.of_slot(**number).is_some_and(|(id, _)| id != leader.member));
    let answers = others.ask(&leader.cluster_id, &elsewhere.map(|(_, slot)| slot.address.clone()).collect()).await;
    group.slots.iter().map(|(number, slot)| coordinator(leader, &answers, state, *number, slot)).collect()
}

/// The number of the coordinator that a member fills; 0: none.
pub fn number(state: &ClusterState, member: u64) -> u64 {
    state.coordinators.members.get(&MemberId(member)).map_or(0, |member| u64::from(member.slot))
}

fn coordinator(leader: &Leader, answers: &Answers, state: &ClusterState, number: u32, slot: &CoordinatorSlot) -> v1::CoordinatorStatus {
    let mut status =
        v1::CoordinatorStatus { id: u64::from(number), address: slot.address.clone(), zone: slot.zone.0.clone(), ..v1::CoordinatorStatus::default() };
    let Some((id, member)) = state.coordinators.of_slot(number) else { return status };
    status.member = id.0;
    status.standing = standing_name(member).to_owned();
    status.leader = id.0 == leader.raft.status().leader;
    status.instance_id = member.instance.as_ref().map_or_else(String::new, ToString::to_string);
    if id == leader.member {
        status.reachable = true;
        status.applied = leader.raft.status().applied;
        status.instance_id.clone_from(&leader.settings.instance_id);
    } else if let Some(Some(answer)) = answers.get(&slot.address) {
        // Its successor may answer at this address: that is somebody else. And who learns does not count yet.
        status.reachable = answer.id == id.0 && answer.differs_at == 0 && member.standing == Standing::Voter;
        status.applied = answer.applied;
    }
    status
}

fn standing_name(member: &Member) -> &'static str {
    match member.standing {
        Standing::Joining => "joining",
        Standing::Learner => "learner",
        Standing::Voter => "voter",
    }
}

/// Sentences for members that have stopped because a majority has another state.
pub fn alarms(group: &Coordinators) -> Vec<String> {
    let differ = group.members.iter().filter_map(|(id, member)| Some((id, member, member.differs_at?)));
    differ
        .map(|(id, member, at)| {
            format!(
                "coordinator {} (member {id}) had another state than the majority at index {at} and has stopped: terminate its instance, its successor starts from the majority's",
                member.slot
            )
        })
        .collect()
}

/// The wanted coordinators after a request for more or fewer.
pub fn want(state: &ClusterState, request: v1::WantCoordinatorsRequest) -> Result<Order, Status> {
    let mut slots = state.coordinators.slots.clone();
    for number in &request.remove {
        if slots.remove(number).is_none() {
            return Err(Status::not_found(format!("there is no coordinator {number}")));
        }
    }
    for added in request.add {
        if added.address.parse::<std::net::Ipv4Addr>().is_err() {
            return Err(Status::invalid_argument(format!("{:?} is no IPv4 address", added.address)));
        }
        slots.insert(added.id, CoordinatorSlot { address: added.address, zone: Zone(added.zone), group: added.group });
    }
    let note = format!("{} coordinators wanted; 'vpctl status' shows how far they are", slots.len());
    Ok(Order::new(request.request_id, Command::Coordinators(CoordinatorChange::Want { slots }), note))
}

/// The state now, confirmed by a quorum, with the place in the log where it was reached.
pub async fn snapshot(leader: &Leader) -> Result<v1::SavedSnapshot, Status> {
    let state = leader.current().await.map_err(|error| not_read(leader, error))?;
    let bytes = serde_json::to_vec(&*state).map_err(|error| Status::internal(error.to_string()))?;
    Ok(v1::SavedSnapshot {
        cluster: leader.settings.user_data.cluster.clone(),
        cluster_id: leader.cluster_id.clone(),
        index: state.revision.0,
        term: leader.raft.status().term,
        state: bytes,
    })
}
