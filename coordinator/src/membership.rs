//! The leader's care for its own group: who is there, whose instance is gone, which membership entry comes next. Level-triggered: each round looks at
//! the group and takes one step that `vp_cluster::membership` names; another leader carries on. Left out: giving out ids (`api::coordinators`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};
use tokio::sync::watch;
use tracing::{info, warn};
use vp_cloud::{autoscaling::Groups, ec2::Compute};
use vp_cluster::{
    ClusterState, Command, MemberId, NodeId,
    coordinators::{CoordinatorChange, Member},
    membership::{self, GroupSeen, PeerSeen, Step},
    observe::Instance,
    version,
};
use vp_proto::COORDINATOR_PORT;

use crate::{
    api::group::identify,
    claims::{self, Bucket, Claim, claim_key},
    cloud_watch::translate,
    leader::Leader,
    peers::Network,
    raft::{Group, RaftHandle},
    trust::Trust,
};

const ROUND: Duration = Duration::from_millis(300);
/// A member that answered within this time is active: above two checks of the quorum.
const ACTIVE_WITHIN: Duration = Duration::from_secs(3);
/// Between two looks at what EC2 says of the silent.
const LOOK: Duration = Duration::from_secs(1);
/// Between two questions to every member what it is.
const ASK: Duration = Duration::from_secs(5);
/// A round that comes this late says that this process stood still: what it missed is nobody's silence. Far above what a round's calls take.
const STOOD_STILL: Duration = Duration::from_secs(10);
/// Between two requests to terminate the same silent instance.
const TERMINATE_AGAIN: Duration = Duration::from_secs(10);
/// How long a heir may take to lead.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(1);

pub struct Membership {
    pub leader: Arc<Leader>,
    pub trust: Arc<Trust>,
    pub compute: Compute,
    pub groups: Groups,
    pub claims: Bucket,
}

struct Memory {
    /// From when on silence counts.
    since: Instant,
    round: Instant,
    answered: BTreeMap<MemberId, Instant>,
    /// When each member was first one of the group: nobody is silent from before that.
    first: BTreeMap<MemberId, Instant>,
    looked: Option<Instant>,
    asked: Option<Instant>,
    terminated: Option<(MemberId, Instant)>,
}

impl Memory {
    fn new() -> Self {
        let now = Instant::now();
        Self { since: now, round: now, answered: BTreeMap::new(), first: BTreeMap::new(), looked: None, asked: None, terminated: None }
    }

    /// This round comes so late that the process was not running meanwhile.
    fn stood_still(&self) -> bool {
        self.round.elapsed() >= STOOD_STILL
    }

    fn silent(&self, id: MemberId) -> Duration {
        let heard = self.answered.get(&id).or_else(|| self.first.get(&id)).unwrap_or(&self.since);
        heard.max(&self.since).elapsed()
    }

    /// Who has answered since the last check of the quorum.
    fn hear(&mut self, group: &Group) {
        for id in group.peers.keys() {
            self.first.entry(MemberId(*id)).or_insert_with(Instant::now);
        }
        for (id, _) in group.peers.iter().filter(|(_, peer)| peer.recent_active) {
            self.answered.insert(MemberId(*id), Instant::now());
        }
    }
}

impl Membership {
    /// Runs for ever; does nothing while another coordinator leads.
    pub async fn run(self) {
        let mut memory = Memory::new();
        loop {
            if self.leader.leads() && !memory.stood_still() {
                memory.round = Instant::now();
                self.round(&mut memory).await;
            } else {
                memory = Memory::new();
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    async fn round(&self, memory: &mut Memory) {
        let Some(group) = self.leader.raft.group().await else { return };
        memory.hear(&group);
        if memory.asked.is_none_or(|asked| asked.elapsed() >= ASK) {
            memory.asked = Some(Instant::now());
            self.ask_members().await;
        }
        self.look_at_silent(memory).await;
        // What was awaited may have taken long: the step is decided on the group and the state as they are now.
        let Some(group) = self.leader.raft.group().await else { return };
        memory.hear(&group);
        if !self.leader.leads() {
            return;
        }
        let state = self.leader.state();
        let seen = seen(self.leader.member, &group, memory);
        let (step, gates) = membership::next(&state.coordinators, &seen);
        if let Some(gone) = membership::to_terminate(&state.coordinators, &seen) {
            self.terminate(gone, &state, memory).await;
        }
        self.leader.world.lock().coordinator_gates = gates;
        if let Some(step) = step {
            self.take(step).await;
        }
        if let Some(to) = version::raisable(&self.leader.state()) {
            self.propose(Command::RaiseApplyVersion { to }).await;
        }
    }

    /// Which instance and program each member is, by its own word; a silent one's instance by its claim.
    async fn ask_members(&self) {
        let state = self.leader.state();
        for (id, member) in &state.coordinators.members {
            let said = if *id == self.leader.member {
                Some((self.leader.settings.instance_id.clone(), version::NEWEST))
            } else {
                let answer = identify(&self.trust, &member.address, &self.leader.cluster_id).await.filter(|answer| answer.id == id.0);
                answer.map(|answer| (answer.instance_id, answer.supports))
            };
            let Some((instance, supports)) = self.or_claimed(said, *id, member).await else { continue };
            let instance = NodeId(instance);
            if member.instance.as_ref() != Some(&instance) || member.supports != supports {
                self.propose(Command::Coordinators(CoordinatorChange::Seen { member: *id, instance, supports })).await;
            }
        }
    }

    async fn or_claimed(&self, said: Option<(String, u32)>, id: MemberId, member: &Member) -> Option<(String, u32)> {
        if said.is_some() || member.instance.is_some() {
            return said;
        }
        let (claim, _) = claims::read::<Claim>(&self.claims, &claim_key(member.slot)).await.ok()??;
        let ours = self.leader.cluster_id.ends_with(&format!("#{}", claim.incarnation));
        (ours && claim.member == id.0).then_some((claim.instance_id, member.supports))
    }

    /// EC2's word on members that do not answer: only `terminated` is proof.
    async fn look_at_silent(&self, memory: &mut Memory) {
        let state = self.leader.state();
        let silent: BTreeMap<String, MemberId> = silent(&state, self.leader.member, memory).collect();
        let waits = std::mem::take(&mut self.leader.world.lock().coordinator_waits);
        let due = memory.looked.is_none_or(|looked| looked.elapsed() >= LOOK);
        if silent.is_empty() || !(due || waits) {
            return;
        }
        memory.looked = Some(Instant::now());
        let ids: Vec<String> = silent.keys().cloned().collect();
        match self.compute.describe_instances(&ids).await {
            Ok(found) => {
                for instance in found.into_iter().filter(|instance| translate(instance.state) == Instance::Terminated) {
                    let Some(member) = silent.get(&instance.id) else { continue };
                    self.propose(Command::Coordinators(CoordinatorChange::Fenced { member: *member })).await;
                }
            }
            Err(error) => warn!(%error, "coordinators' instances not described"),
        }
    }

    /// Asks for the end of a silent member's instance, which EC2 still says runs; what follows is as for any other that is terminated.
    async fn terminate(&self, gone: MemberId, state: &ClusterState, memory: &mut Memory) {
        if memory.terminated.is_some_and(|(id, when)| id == gone && when.elapsed() < TERMINATE_AGAIN) {
            return;
        }
        let Some(member) = state.coordinators.members.get(&gone) else { return };
        let Some(instance) = &member.instance else { return };
        memory.terminated = Some((gone, Instant::now()));
        // A leader of before that stood still has heard nobody for as long.
        if self.leader.raft.read_index().await.is_err() {
            return;
        }
        match self.groups.terminate_in_group(&instance.0).await {
            Ok(()) => {
                let silence = memory.silent(gone).as_secs();
                warn!(member = %gone, %instance, silence, "silent coordinator's instance terminated");
                let detail = format!("member {gone} on {instance} has said nothing for {silence} s though EC2 says it runs: its group boots a successor");
                self.leader.note("coordinator terminated", format!("coordinator {}", member.slot), detail).await;
            }
            Err(error) => warn!(member = %gone, %instance, %error, "silent coordinator's instance not terminated yet"),
        }
    }

    async fn take(&self, step: Step) {
        if let Step::HandOver(to) = &step {
            info!(%to, "handing leadership over: this member is to be removed");
            self.leader.raft.transfer_leadership(to.0);
            return;
        }
        match self.leader.raft.change(entry(&step)).await {
            Ok(applied) => info!(index = applied.index, ?step, "coordinators' group changed"),
            // The next round looks again.
            Err(error) => info!(%error, ?step, "coordinators' group not changed"),
        }
    }

    async fn propose(&self, command: Command) {
        if let Err(error) = self.leader.propose(command.clone()).await {
            warn!(%error, ?command, "command not decided");
        }
    }
}

/// The membership entry of a step; empty for a hand-over, which is none, and for leaving a joint configuration, whose entry is empty.
pub fn entry(step: &Step) -> ConfChangeV2 {
    let changes = match step {
        Step::AddLearner(id) => vec![single(*id, ConfChangeType::AddLearnerNode)],
        Step::Change { promote, remove } => {
            let promote = promote.iter().map(|id| single(*id, ConfChangeType::AddNode));
            promote.chain(remove.iter().map(|id| single(*id, ConfChangeType::RemoveNode))).collect()
        }
        Step::HandOver(_) | Step::LeaveJoint => Vec::new(),
    };
    ConfChangeV2 { changes, ..ConfChangeV2::default() }
}

fn single(id: MemberId, kind: ConfChangeType) -> ConfChangeSingle {
    let mut change = ConfChangeSingle { node_id: id.0, ..ConfChangeSingle::default() };
    change.set_change_type(kind);
    change
}

/// Members with a known instance that have not answered lately and are not fenced yet.
fn silent<'a>(state: &'a ClusterState, me: MemberId, memory: &'a Memory) -> impl Iterator<Item = (String, MemberId)> + 'a {
    let quiet = move |id: &MemberId| *id != me && memory.answered.get(id).is_none_or(|answered| answered.elapsed() >= ACTIVE_WITHIN);
    let members = state.coordinators.members.iter().filter(move |(id, member)| quiet(id) && !member.fenced);
    members.filter_map(|(id, member)| Some((member.instance.as_ref()?.0.clone(), *id)))
}

fn seen(me: MemberId, group: &Group, memory: &Memory) -> GroupSeen {
    let ids = |list: &[u64]| list.iter().copied().map(MemberId).collect::<BTreeSet<MemberId>>();
    let active = |id: &MemberId| memory.answered.get(id).is_some_and(|answered| answered.elapsed() < ACTIVE_WITHIN);
    let silent_ms = |id: MemberId| u64::try_from(memory.silent(id).as_millis()).unwrap_or(u64::MAX);
    let peers = group.peers.iter().map(|(id, peer)| (MemberId(*id), peer));
    let peers = peers.map(|(id, peer)| (id, PeerSeen { active: active(&id), behind: peer.behind, silent_ms: silent_ms(id) }));
    GroupSeen {
        leader: me,
        voters: ids(&group.conf.voters),
        learners: ids(&group.conf.learners),
        joint: !group.conf.voters_outgoing.is_empty(),
        peers: peers.collect(),
    }
}

/// Where every member of the state is reached.
pub fn addresses(state: &ClusterState) -> BTreeMap<u64, SocketAddr> {
    let at = |member: &Member| Some(SocketAddr::new(member.address.parse().ok()?, COORDINATOR_PORT));
    state.coordinators.members.iter().filter_map(|(id, member)| Some((id.0, at(member)?))).collect()
}

/// Keeps the connections as the state has them, for ever. A member that is out says so and goes on: it votes and keeps entries for those who have not heard the
/// end of the change, who would be one short of the old majority if its leader died now. It never stands and never leads again.
pub async fn follow(network: Network, me: MemberId, mut states: watch::Receiver<Arc<ClusterState>>) {
    loop {
        let state = states.borrow_and_update().clone();
        let group = &state.coordinators;
        // A member that has just joined has no state yet.
        if group.last_member >= me {
            network.update(&addresses(&state), group.last_member.0);
            if !group.members.contains_key(&me) {
                warn!("this member was removed from the coordinators' group: terminate its instance, nobody needs it any more");
                return std::future::pending().await;
            }
        }
        if states.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Leads no longer than it must: whoever is furthest ahead takes over before this member stops. True: somebody did.
pub async fn hand_over(raft: &RaftHandle) -> bool {
    if !raft.status().leads() {
        return true;
    }
    let Some(group) = raft.group().await else { return false };
    let heirs = group.peers.iter().filter(|(id, peer)| peer.recent_active && group.conf.voters.contains(id));
    let Some((heir, _)) = heirs.min_by_key(|(_, peer)| peer.behind) else { return false };
    info!(to = heir, "handing leadership over");
    raft.transfer_leadership(*heir);
    let mut status = raft.watch();
    tokio::time::timeout(HAND_OVER_WITHIN, status.wait_for(|status| !status.leads())).await.is_ok_and(|waited| waited.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::node::Peer;

    /// Members, and whether each has answered.
    fn group(peers: &[(u64, bool)]) -> Group {
        let peers = peers.iter().map(|(id, recent_active)| (*id, Peer { recent_active: *recent_active, behind: 0 }));
        Group { peers: peers.collect(), ..Group::default() }
    }

    fn long_ago() -> Instant {
        Instant::now().checked_sub(STOOD_STILL).unwrap()
    }

    #[test]
    fn nobody_is_silent_from_before_this_leader_looked_or_before_it_was_one_of_the_group() {
        let mut memory = Memory::new();
        assert!(memory.silent(MemberId(2)) < STOOD_STILL, "never heard: counted from now");
        memory.answered.insert(MemberId(2), long_ago());
        assert!(memory.silent(MemberId(2)) < STOOD_STILL, "not from before this leader looked");
        memory.since = long_ago();
        memory.hear(&group(&[(2, false), (3, false)]));
        assert!(memory.silent(MemberId(2)) >= STOOD_STILL);
        assert!(memory.silent(MemberId(3)) < STOOD_STILL, "it became a member just now");
        memory.hear(&group(&[(2, true), (3, false)]));
        assert!(memory.silent(MemberId(2)) < STOOD_STILL, "it has answered");
    }

    #[test]
    fn a_round_that_comes_late_says_that_this_process_stood_still() {
        let mut memory = Memory::new();
        assert!(!memory.stood_still());
        memory.round = long_ago();
        assert!(memory.stood_still());
    }
}
