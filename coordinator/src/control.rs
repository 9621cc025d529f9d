//! The leader's loop: look, judge, plan, propose, publish. Woken by events, it acts only on the current state; it keeps no memory of what it did.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::{info, warn};
use vp_cluster::{
    ClusterState, Command, Observations, RoleName, SlotId, ensemble, liveness,
    liveness::Brake,
    observe::Phase,
    planner::{self, Gate},
    state::{Lifecycle, Membership},
};

use crate::{
    catalogue,
    desired::desired,
    leader::{CommandError, Leader},
};

/// Longest time between two looks; events wake it earlier.
const TICK: Duration = Duration::from_millis(200);

/// What the last round found, for operators.
#[derive(Clone, Debug)]
pub struct Findings {
    pub brake: Brake,
    pub actions: Vec<String>,
    pub gates: Vec<Gate>,
}

impl Default for Findings {
    fn default() -> Self {
        Self { brake: Brake::Open, actions: Vec::new(), gates: Vec::new() }
    }
}

pub struct Control {
    pub leader: Arc<Leader>,
    pub zookeeper_digest: String,
    pub findings: watch::Sender<Findings>,
}

impl Control {
    /// Runs for ever. A new term begins with empty memory and a full window for every node.
    pub async fn run(self) {
        let mut term = 0;
        loop {
            let status = self.leader.raft.status();
            if status.leads() {
                if status.term != term {
                    info!(term = status.term, "leading");
                    self.leader.registry.begin_term();
                    self.leader.world.begin_term();
                    term = status.term;
                }
                self.round(term).await;
            } else {
                term = 0;
            }
            tokio::select! {
                () = self.leader.wake.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    async fn round(&self, term: u64) {
        if self.leader.state().spec.roles.is_empty() && !self.bootstrap().await {
            return;
        }
        let state = self.leader.state();
        let obs = self.leader.observations();
        let judgement = liveness::judge(&state, &obs);
        self.note_brake(&judgement.brake).await;
        for verdict in judgement.verdicts {
            if let Command::NodeLost { node, .. } = &verdict {
                // Before it is proposed: from here on the session is never acknowledged again.
                self.leader.registry.condemn(node);
            }
            self.propose(verdict).await;
        }
        for fact in facts(&self.leader.state(), &obs) {
            self.propose(fact).await;
        }
        let state = self.leader.state();
        self.remember_empty_zones(&state, obs.now_ms);
        self.remember_joins(&state, obs.now_ms);
        let obs = self.leader.observations();
        let (plan, report) = planner::plan(&state, &obs);
        let actions: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
        if !plan.actions.is_empty() {
            self.propose(Command::Plan(plan)).await;
        }
        let state = self.leader.state();
        let mut gates = report.gates;
        gates.extend(state.slots.keys().filter(|id| !started(&state, &obs, id)).filter_map(|id| vp_cluster::gates::start(&state, &obs, id)));
        self.findings.send_replace(Findings { brake: judgement.brake, actions, gates });
        for (id, node) in &state.nodes {
            if matches!(node.lifecycle, Lifecycle::Ready | Lifecycle::Draining) {
                self.leader.registry.publish(id, desired(&state, &obs, id, term, &self.zookeeper_digest));
            }
        }
    }

    /// The bootstrap spec goes into the log once.
    async fn bootstrap(&self) -> bool {
        match catalogue::spec(&self.leader.settings.roles, &self.leader.settings.user_data.spec) {
            Ok(spec) => self.propose(Command::SetSpec { spec }).await,
            Err(error) => {
                warn!(%error, "the bootstrap spec is not usable");
                tokio::time::sleep(Duration::from_secs(5)).await;
                false
            }
        }
    }

    async fn note_brake(&self, brake: &Brake) {
        let was = self.findings.borrow().brake.clone();
        let (kind, detail) = match (was, brake) {
            (Brake::Open, Brake::Closed { silent, of, place }) => {
                ("brake closed", format!("{silent} of {of} nodes of {place} fell silent together: silence moves nothing"))
            }
            (Brake::Closed { .. }, Brake::Open) => ("brake open", "silence is believed again".to_owned()),
            _ => return,
        };
        self.propose(Command::Note { kind: kind.to_owned(), subject: "cluster".to_owned(), detail }).await;
    }

    async fn propose(&self, command: Command) -> bool {
        match self.leader.propose(command.clone()).await {
            Ok(_) => true,
            // The ground moved: the next round looks again.
            Err(CommandError::Rejected(rejection)) => {
                info!(%rejection, ?command, "command rejected");
                false
            }
            Err(error) => {
                warn!(%error, "command not decided");
                false
            }
        }
    }

    /// When the number of nodes last grew: this leader's memory.
    fn remember_joins(&self, state: &ClusterState, now_ms: u64) {
        let mut seen = self.leader.world.lock();
        if state.nodes.len() > seen.nodes {
            seen.joined_ms = now_ms;
        }
        seen.nodes = state.nodes.len();
    }

    /// Since when slots have been waiting for a node in their volume's zone: this leader's memory.
    fn remember_empty_zones(&self, state: &ClusterState, now_ms: u64) {
        let waiting = planner::zone_is_empty(state);
        let mut seen = self.leader.world.lock();
        let since: BTreeMap<SlotId, u64> =
            waiting.into_iter().map(|slot| (slot.clone(), seen.zone_empty_since_ms.get(&slot).copied().unwrap_or(now_ms))).collect();
        seen.zone_empty_since_ms = since;
    }
}

fn started(state: &ClusterState, obs: &Observations, id: &SlotId) -> bool {
    let Some(slot) = state.slots.get(id) else { return false };
    !matches!(obs.phase(id, slot.generation), Phase::Unknown | Phase::Waiting)
}

/// Observed facts that belong into the log.
fn facts(state: &ClusterState, obs: &Observations) -> Vec<Command> {
    let mut facts = planner::lost_volumes(state, obs);
    for (id, slot) in &state.slots {
        let disk = slot.volume.is_some() || state.role(id).is_some_and(|role| !role.volume);
        if slot.holder.is_some() && disk && !slot.used && obs.phase(id, slot.generation) == Phase::Healthy {
            facts.push(Command::SlotUsed { slot: id.clone(), generation: slot.generation });
        }
    }
    let ensembles: Vec<&RoleName> = state.spec.roles.iter().filter(|(_, role)| role.membership == Membership::ZooKeeper).map(|(name, _)| name).collect();
    facts.extend(ensembles.into_iter().filter_map(|role| ensemble::founding(state, role)));
    facts.extend(ensemble::removed(state, obs));
    facts
}

/// Where a node is, for people.
pub fn lifecycle_name(lifecycle: Lifecycle) -> &'static str {
    match lifecycle {
        Lifecycle::Ready => "ready",
        Lifecycle::Draining => "draining",
        Lifecycle::Lost => "lost",
        Lifecycle::Fenced => "fenced",
    }
}
