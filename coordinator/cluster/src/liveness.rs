//! Verdicts from last-heard times and one clock argument: who is lost, who is proved gone, and when silence may not be believed.
//!
//! ```text
//! silence > lease + drift + margin ──> self_watch: did we run?  ──> brake: so many at once?  ──> cap: so many this minute?  ──> NodeLost
//! EC2 says terminated              ──────────────────────────────────────────────────────────────────────────────────────> NodeFenced
//! ```

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

pub use crate::brake::{BRAKE_NODES, BRAKE_PERCENT, Brake};
use crate::{
    apply::lease_is_proof,
    brake::{Braked, Census},
    command::Command,
    ids::{NodeId, Session},
    mutant,
    observe::{BrakeMemory, Instance, NodeSeen, Observations, in_step},
    report::Gate,
    state::{ClusterState, Lifecycle, Node},
};

/// How much faster than the leader's an agent's clock may run, parts per thousand. CLOCK_BOOTTIME is disciplined by NTP to well under 0.5 per thousand;
/// 10 leaves room for a bad oscillator.
pub const DRIFT_PERMILLE: u64 = 10;
/// What the leader waits beyond the lease, for the time between its clock being read and an acknowledgement being sent, ms.
pub const MARGIN_MS: u64 = 250;
/// Over which time nodes given up for their silence are counted (`Policy::sources_per_minute`), ms.
pub const CAP_WINDOW_MS: u64 = 60_000;

/// After this long without a word, the last lease granted has run out for certain, ms.
pub fn lost_after_ms(lease_ms: u64) -> u64 {
    if mutant!("half-a-lease") {
        return lease_ms / 2;
    }
    if mutant!("margin-forgotten") {
        return lease_ms;
    }
    lease_ms.saturating_add(lease_ms.saturating_mul(DRIFT_PERMILLE) / 1000).saturating_add(MARGIN_MS)
}

/// After this long without a word a node is suspected: it counts for the brake, so that those who fall silent together are judged together, though the first of
/// them is over its lease before the others. Two heartbeats are missed by then.
pub fn suspected_after_ms(lease_ms: u64) -> u64 {
    if mutant!("brake-counts-late") { lost_after_ms(lease_ms) } else { lease_ms / 2 }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdicts: Vec<Command>,
    pub brake: Brake,
    /// Silent nodes that are not given up, and what holds that back.
    pub gates: Vec<Gate>,
}

/// How long a node has been silent as this leader may count it: not from before it began to lead, not from before it last failed to look, and not from
/// before its last acknowledgement.
fn silent_ms(obs: &Observations, seen: Option<&NodeSeen>) -> u64 {
    obs.now_ms.saturating_sub(last_word_ms(obs, seen).max(obs.trusted_since_ms))
}

fn last_word_ms(obs: &Observations, seen: Option<&NodeSeen>) -> u64 {
    let heard = seen.and_then(|seen| seen.heard_ms).unwrap_or(0);
    let acknowledged = seen.and_then(|seen| seen.acknowledged_ms).unwrap_or(0);
    heard.max(acknowledged).max(if mutant!("no-window-for-a-new-leader") { 0 } else { obs.leading_since_ms })
}

/// What the observations prove. Judging twice without a change in between yields the same verdicts; `apply` takes each once.
pub fn judge(state: &ClusterState, obs: &Observations) -> Judgement {
    let mut found = Judgement { verdicts: Vec::new(), brake: Brake::Open, gates: Vec::new() };
    let Silence { census, vouched, proved, heard_again } = silence(state, obs, Unheard::Well);
    found.verdicts.extend(proved.into_iter().map(|node| Command::NodeFenced { node: node.clone() }));
    found.verdicts.extend(heard_again.into_iter().map(|node| Command::NodeHeardAgain { node: node.clone() }));
    let (braked, brake) = census.brake(obs);
    let mut cap = Cap::of(state, obs);
    let mut emptying = Emptying::of(state, &braked);
    let candidates = vouched.into_iter().map(|node| (None, node)).chain(census.silent().map(|(zone, node)| (Some(zone), node)));
    for (zone, id) in candidates {
        let (node, seen) = (&state.nodes[id], obs.nodes.get(id));
        if node.lifecycle == Lifecycle::Lost || word(obs, node, seen, Unheard::Well) != Word::Silent {
            continue;
        }
        let closed = match zone {
            Some(zone) if braked.holds(zone) => Some(("the brake is closed: too much fell silent together".to_owned(), BRAKE_OPENS.to_owned())),
            Some(zone) if braked.lost.contains(zone) => emptying.before(id, node),
            _ => None,
        };
        match closed.or_else(|| cap.spend()) {
            None => found.verdicts.push(Command::NodeLost { node: id.clone(), session: node.session, silent_ms: silent_ms(obs, seen) }),
            Some((closed_by, opens_when)) => found.gates.push(Gate::new(id, format!("silent, but {closed_by}"), opens_when)),
        }
    }
    found.gates.extend(distrusted(state, obs));
    found.brake = brake;
    found
}

/// What opens the brake, for people.
pub const BRAKE_OPENS: &str = "they return, EC2 says terminated, or 'vpctl brake release' says that they are gone";

/// Lost nodes whose instances are to be terminated now; none where the brake is closed, not even those that were lost before it closed.
/// Nor does a leader that is new, or was not running, before it has looked for a whole window: until then it takes the silent for well, and its brake is open.
pub fn to_terminate<'a>(state: &'a ClusterState, obs: &Observations) -> Vec<&'a NodeId> {
    let (braked, _) = silence(state, obs, Unheard::Well).census.brake(obs);
    let looked_ms = obs.now_ms.saturating_sub(obs.leading_since_ms.max(obs.trusted_since_ms));
    let knows = looked_ms > lost_after_ms(obs.lease_ms) || mutant!("terminates-unlooked");
    let dying = |id: &NodeId| obs.nodes.get(id).is_some_and(|seen| matches!(seen.instance, Instance::ShuttingDown | Instance::Terminated));
    let believed = |id: &NodeId, node: &Node| is_vouched(state, id, node) || (knows && !braked.holds(&node.zone)) || mutant!("brake-stops-no-termination");
    let lost = state.nodes.iter().filter(|(_, node)| node.lifecycle == Lifecycle::Lost);
    lost.filter(|(id, node)| !dying(id) && believed(id, node)).map(|(id, _)| id).collect()
}

/// Nodes that are silent now and not yet proved gone: what a release of the brake would name.
pub fn silent_now(state: &ClusterState, obs: &Observations) -> BTreeMap<NodeId, Session> {
    let silence = silence(state, obs, Unheard::Well);
    let named = silence.vouched.into_iter().chain(silence.census.silent().map(|(_, node)| node));
    named.map(|id| (id.clone(), state.nodes[id].session)).collect()
}

/// When nodes were given up, as one leader remembers it. A new leader counts those it finds lost as given up just now: caution, not a fresh allowance.
pub fn remember_lost(state: &ClusterState, given_up_ms: &mut BTreeMap<NodeId, u64>, now_ms: u64) {
    for (id, _) in state.nodes.iter().filter(|(_, node)| node.lifecycle == Lifecycle::Lost) {
        given_up_ms.entry(id.clone()).or_insert(now_ms);
    }
    let lost = |id: &NodeId| state.nodes.get(id).is_some_and(|node| node.lifecycle == Lifecycle::Lost);
    given_up_ms.retain(|id, at| now_ms.saturating_sub(*at) < CAP_WINDOW_MS || lost(id));
}

/// Remembers where so many are silent or suspected now that the brake closes by this look alone. Those that a new leader has not heard count as well: they are
/// no alarm yet, but when they return at the end of its window, one after another, the last is not given up for being the only one left.
pub fn remember_brake(state: &ClusterState, obs: &Observations, memory: &mut BrakeMemory) {
    let unheard = if mutant!("brake-forgets-the-unheard") { Unheard::Well } else { Unheard::Suspected };
    silence(state, obs, unheard).census.remember(obs, memory);
}

/// Only what EC2 says is terminated is.
fn is_proof(instance: Instance) -> bool {
    instance == Instance::Terminated
        || (mutant!("unknown-is-terminated") && instance == Instance::Unknown)
        || (mutant!("shutting-down-is-terminated") && instance == Instance::ShuttingDown)
}

struct Silence<'a> {
    census: Census<'a>,
    /// Silent, and an operator said that they are gone.
    vouched: Vec<&'a NodeId>,
    proved: Vec<&'a NodeId>,
    heard_again: Vec<&'a NodeId>,
}

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// Heard not long ago, or not yet expected to be.
    Well,
    Suspected,
    /// Every lease it was given has run out.
    Silent,
}

/// What nodes count as that a new leader has not heard yet, before its window is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unheard {
    /// They all have the same window: a change of leaders is no suspicion.
    Well,
    /// As any other that is silent for so long.
    Suspected,
}

fn word(obs: &Observations, node: &Node, seen: Option<&NodeSeen>, unheard: Unheard) -> Word {
    let silent_ms = silent_ms(obs, seen);
    if node.lifecycle == Lifecycle::Lost || silent_ms > lost_after_ms(obs.lease_ms) {
        return Word::Silent;
    }
    let counts = unheard == Unheard::Suspected || seen.is_some_and(|seen| seen.heard_ms.is_some());
    if counts && silent_ms > suspected_after_ms(obs.lease_ms) { Word::Suspected } else { Word::Well }
}

fn silence<'a>(state: &'a ClusterState, obs: &Observations, unheard: Unheard) -> Silence<'a> {
    let mut found = Silence { census: Census::default(), vouched: Vec::new(), proved: Vec::new(), heard_again: Vec::new() };
    for (id, node, seen) in with_seen(state, obs).filter(|(_, node, _)| node.lifecycle != Lifecycle::Fenced) {
        if seen.is_some_and(|seen| is_proof(seen.instance)) {
            found.proved.push(id);
            continue;
        }
        let word = word(obs, node, seen, unheard);
        if is_vouched(state, id, node) {
            if word != Word::Well {
                found.vouched.push(id);
                continue;
            }
            // A word of its own, not the patience of a leader that is new or was not running.
            let heard = seen.and_then(|seen| seen.heard_ms);
            if heard.is_some_and(|heard| obs.now_ms.saturating_sub(heard) <= suspected_after_ms(obs.lease_ms)) {
                found.heard_again.push(id);
            }
        }
        found.census.count(id, &node.zone, word != Word::Well);
    }
    found
}

/// Every node with what was seen of it.
fn with_seen<'a, 'b>(state: &'a ClusterState, obs: &'b Observations) -> impl Iterator<Item = (&'a NodeId, &'a Node, Option<&'b NodeSeen>)> {
    in_step(state.nodes.iter(), obs.nodes.iter())
}

fn is_vouched(state: &ClusterState, id: &NodeId, node: &Node) -> bool {
    state.brake_release.as_ref().is_some_and(|release| release.nodes.get(id) == Some(&node.session))
}

/// Nodes that would be silent if this coordinator trusted itself.
fn distrusted(state: &ClusterState, obs: &Observations) -> Vec<Gate> {
    let limit = lost_after_ms(obs.lease_ms);
    let waits = (obs.trusted_since_ms.saturating_add(limit)).saturating_sub(obs.now_ms);
    if waits == 0 || obs.trusted_since_ms == 0 {
        return Vec::new();
    }
    let counts = |node: &Node| matches!(node.lifecycle, Lifecycle::Ready | Lifecycle::Draining);
    let over = |seen: Option<&NodeSeen>| obs.now_ms.saturating_sub(last_word_ms(obs, seen)) > limit && silent_ms(obs, seen) <= limit;
    let quiet = with_seen(state, obs).filter(|(_, node, seen)| counts(node) && over(*seen));
    quiet.map(|(id, ..)| Gate::new(id, "silent, but this coordinator itself was not running just now", format!("{waits} ms more without a word"))).collect()
}

/// How many more nodes may be given up now.
struct Cap {
    left: usize,
    per_minute: u32,
    opens_in_ms: u64,
}

impl Cap {
    fn of(state: &ClusterState, obs: &Observations) -> Self {
        let per_minute = state.spec.policy.sources_per_minute;
        let ages = obs.given_up_ms.values().map(|at| obs.now_ms.saturating_sub(*at)).filter(|age| *age < CAP_WINDOW_MS);
        let (recent, oldest) = ages.fold((0, 0), |(recent, oldest), age| (recent + 1, oldest.max(age)));
        let left = usize::try_from(per_minute).unwrap_or(usize::MAX).saturating_sub(recent);
        Self { left, per_minute, opens_in_ms: CAP_WINDOW_MS - oldest }
    }

    fn spend(&mut self) -> Option<(String, String)> {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return None;
        }
        let closed_by = format!("{} nodes were given up within a minute, which is as many as the policy allows", self.per_minute);
        Some((closed_by, format!("{} ms have passed", self.opens_in_ms)))
    }
}

/// A zone lost is emptied one source node after another.
struct Emptying<'a> {
    /// The node of each lost zone that is being emptied.
    now: BTreeMap<&'a str, NodeId>,
}

impl<'a> Emptying<'a> {
    fn of(state: &'a ClusterState, braked: &Braked<'_>) -> Self {
        let mut now = BTreeMap::new();
        if braked.lost.is_empty() {
            return Self { now };
        }
        let lost: BTreeSet<&NodeId> = state.nodes.iter().filter(|(_, node)| node.lifecycle == Lifecycle::Lost).map(|(id, _)| id).collect();
        for (id, slot) in &state.slots {
            let moves = state.role(id).is_some_and(lease_is_proof);
            if let Some((holder, node)) = state.holder(slot).filter(|(holder, _)| moves && lost.contains(holder)) {
                now.entry(node.zone.0.as_str()).or_insert_with(|| holder.clone());
            }
        }
        Self { now }
    }

    /// What `id` waits for; None: it is its turn, and then nobody else's.
    fn before(&mut self, id: &NodeId, node: &'a Node) -> Option<(String, String)> {
        let first = match self.now.entry(node.zone.0.as_str()) {
            Entry::Occupied(first) => first.into_mut(),
            Entry::Vacant(free) => {
                free.insert(id.clone());
                return None;
            }
        };
        Some((format!("its zone is emptied one node after another, and {first} comes first"), format!("what {first} held has moved")))
    }
}
