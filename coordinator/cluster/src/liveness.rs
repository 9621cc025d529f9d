//! Verdicts from last-heard times and one clock argument: who is lost, who is proved gone, and when silence may not be believed.

use std::collections::BTreeMap;

use crate::{
    command::Command,
    ids::{NodeId, Zone},
    observe::{Instance, Observations},
    state::{ClusterState, Lifecycle},
};

/// How much faster than the leader's an agent's clock may run, parts per thousand. CLOCK_BOOTTIME is disciplined by NTP to well under 0.5 per thousand;
/// 10 leaves room for a bad oscillator.
pub const DRIFT_PERMILLE: u64 = 10;
/// What the leader waits beyond the lease, for the time between its clock being read and an acknowledgement being sent, ms.
pub const MARGIN_MS: u64 = 250;
/// The brake closes when at least this many nodes, and more than [`BRAKE_PERCENT`] of the cluster or of a zone, fall silent together.
pub const BRAKE_NODES: usize = 3;
pub const BRAKE_PERCENT: usize = 55;

/// After this long without a word, the last lease granted has run out for certain, ms.
pub fn lost_after_ms(lease_ms: u64) -> u64 {
    lease_ms.saturating_add(lease_ms.saturating_mul(DRIFT_PERMILLE) / 1000).saturating_add(MARGIN_MS)
}

/// Whether silence is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Brake {
    Open,
    /// So much fell silent at once that the fault is more likely here: silence moves nothing and terminates nothing.
    Closed {
        silent: usize,
        of: usize,
        place: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdicts: Vec<Command>,
    pub brake: Brake,
}

/// How long a node has been silent as this leader may count it: not from before it began to lead, and not from before its last acknowledgement.
pub fn silent_ms(obs: &Observations, node: &NodeId) -> u64 {
    let seen = obs.nodes.get(node);
    let heard = seen.and_then(|seen| seen.heard_ms).unwrap_or(0);
    let acknowledged = seen.and_then(|seen| seen.acknowledged_ms).unwrap_or(0);
    obs.now_ms.saturating_sub(heard.max(acknowledged).max(obs.leading_since_ms))
}

/// What the observations prove. Judging twice without a change in between yields the same verdicts; `apply` takes each once.
pub fn judge(state: &ClusterState, obs: &Observations) -> Judgement {
    let limit = lost_after_ms(obs.lease_ms);
    let mut verdicts = Vec::new();
    let mut silent: BTreeMap<&Zone, (Vec<&NodeId>, usize)> = BTreeMap::new();
    for (id, node) in &state.nodes {
        if node.lifecycle == Lifecycle::Fenced {
            continue;
        }
        // Proof passes the brake.
        if obs.nodes.get(id).is_some_and(|seen| seen.instance == Instance::Terminated) {
            verdicts.push(Command::NodeFenced { node: id.clone() });
            continue;
        }
        let zone = silent.entry(&node.zone).or_default();
        zone.1 += 1;
        if node.lifecycle == Lifecycle::Lost || silent_ms(obs, id) > limit {
            zone.0.push(id);
        }
    }
    let brake = brake(&silent);
    if brake == Brake::Open {
        for id in silent.values().flat_map(|(ids, _)| ids) {
            let node = &state.nodes[*id];
            if node.lifecycle != Lifecycle::Lost {
                verdicts.push(Command::NodeLost { node: (*id).clone(), session: node.session, silent_ms: silent_ms(obs, id) });
            }
        }
    }
    Judgement { verdicts, brake }
}

/// Lost nodes whose instances are to be terminated now; none while the brake is closed, not even those that were lost before it closed.
pub fn to_terminate<'a>(state: &'a ClusterState, obs: &Observations) -> Vec<&'a NodeId> {
    if judge(state, obs).brake != Brake::Open {
        return Vec::new();
    }
    let dying = |id: &NodeId| obs.nodes.get(id).is_some_and(|seen| matches!(seen.instance, Instance::ShuttingDown | Instance::Terminated));
    state.nodes.iter().filter(|(id, node)| node.lifecycle == Lifecycle::Lost && !dying(id)).map(|(id, _)| id).collect()
}

fn brake(zones: &BTreeMap<&Zone, (Vec<&NodeId>, usize)>) -> Brake {
    let too_many = |silent: usize, of: usize| silent >= BRAKE_NODES && silent * 100 > of * BRAKE_PERCENT;
    let silent = zones.values().map(|(ids, _)| ids.len()).sum();
    let all = zones.values().map(|(_, count)| count).sum();
    if too_many(silent, all) {
        return Brake::Closed { silent, of: all, place: "the cluster".to_owned() };
    }
    for (zone, (ids, count)) in zones {
        if too_many(ids.len(), *count) && ids.len() < *count {
            return Brake::Closed { silent: ids.len(), of: *count, place: zone.to_string() };
        }
    }
    Brake::Open
}
