//! One look of the leader: what state and observations call for, as commands. Verdicts first, then facts, then a plan; each on the state that the ones before
//! have made, so the leader proposes what this says and asks again until it says nothing.

use crate::{
    command::{Command, Plan},
    ensemble, gates,
    health::Serving,
    ids::{RoleName, SlotId},
    kafka,
    liveness::{self, Brake},
    observe::{Observations, Phase},
    planner,
    report::Gate,
    state::{ClusterState, Membership},
};

/// What is to be proposed now, and what people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// All of one kind: verdicts, or facts, or one plan.
    pub commands: Vec<Command>,
    /// The moves called for on this state, also when verdicts or facts are to be proposed before them.
    pub plan: Plan,
    pub brake: Brake,
    /// Everything wanted that is not done.
    pub gates: Vec<Gate>,
}

/// Looks once. Nothing to propose: the cluster is as far as it can be brought now.
pub fn look(state: &ClusterState, obs: &Observations) -> Round {
    let judged = liveness::judge(state, obs);
    let (plan, report) = planner::plan(state, obs);
    let mut gates = report.gates;
    gates.extend(judged.gates);
    gates.extend(ensembles(state).filter_map(|role| ensemble::waits(state, obs, role)));
    gates.extend(kafka::waits(state, obs));
    let serving = Serving::new(state, obs);
    gates.extend(state.slots.keys().filter(|id| !started(state, obs, id)).filter_map(|id| gates::start(&serving, id)));
    gates.sort();
    gates.dedup();
    let commands = [judged.verdicts, facts(state, obs), plan_command(&plan)].into_iter().find(|commands| !commands.is_empty());
    Round { commands: commands.unwrap_or_default(), plan, brake: judged.brake, gates }
}

fn plan_command(plan: &Plan) -> Vec<Command> {
    if plan.actions.is_empty() { Vec::new() } else { vec![Command::Plan(plan.clone())] }
}

fn started(state: &ClusterState, obs: &Observations, id: &SlotId) -> bool {
    let Some(slot) = state.slots.get(id) else { return false };
    !matches!(obs.phase(id, slot.generation), Phase::Unknown | Phase::Waiting)
}

fn ensembles(state: &ClusterState) -> impl Iterator<Item = &RoleName> {
    state.spec.roles.iter().filter(|(_, role)| role.membership == Membership::ZooKeeper).map(|(name, _)| name)
}

/// Observed facts that belong into the log.
pub fn facts(state: &ClusterState, obs: &Observations) -> Vec<Command> {
    let mut facts = planner::lost_volumes(state, obs);
    for (id, slot) in &state.slots {
        let disk = slot.volume.is_some() || state.role(id).is_some_and(|role| !role.volume);
        if slot.holder.is_some() && disk && !slot.used && obs.phase(id, slot.generation) == Phase::Healthy {
            facts.push(Command::SlotUsed { slot: id.clone(), generation: slot.generation });
        }
    }
    facts.extend(ensembles(state).filter_map(|role| ensemble::founding(state, role)));
    facts.extend(ensembles(state).filter_map(|role| ensemble::listed(state, obs, role)));
    facts.extend(ensemble::removed(state, obs));
    facts.extend(kafka::removed(state, obs));
    facts
}
