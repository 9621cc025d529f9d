//! The answers as programs read them: stable names, no numbers that stand for words. Described in vpctl/README.md.
//! Keys are added, never renamed or removed; `null` says "not known".

use std::collections::BTreeMap;

use serde::Serialize;
use vp_proto::v1::{self, Health, Phase};

use crate::failure::{EXIT_DEGRADED, EXIT_NO_TOLERANCE, EXIT_QUORUM_LOST};

/// An order that was taken: `drain`, `cordon`, `move`, `scale`, `apply`, `brake release`, `coordinators add|remove`.
#[derive(Debug, Clone, Serialize)]
pub struct Order {
    /// `drain`, `cordon`, `move`, `scale`, `apply`, `brake release`, `coordinators`.
    pub order: String,
    /// What it is about: an instance, a slot, a role, `spec`, `brake`, `coordinators`.
    pub subject: String,
    /// Where it went into the log.
    pub revision: u64,
    /// What follows from it, for people.
    pub note: Option<String>,
}

/// `vpctl status`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub cluster: String,
    /// healthy, degraded, no_tolerance, quorum_lost
    pub health: &'static str,
    pub reasons: Vec<String>,
    pub revision: u64,
    pub term: u64,
    /// Id of the leading coordinator.
    pub leader: Option<u64>,
    pub coordinators: Vec<Coordinator>,
    pub nodes: Vec<Node>,
    pub services: Vec<Service>,
    pub slots: Vec<Slot>,
    pub moves: Vec<String>,
    pub alarms: Vec<String>,
    /// The coordinator whose copy of the state this is, and how old it may be; 0 when it leads.
    pub answered_by: Option<u64>,
    pub age_ms: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Coordinator {
    pub id: u64,
    pub address: String,
    pub zone: String,
    pub instance: Option<String>,
    pub leader: bool,
    pub reachable: bool,
    /// Raft index it has applied, when it was asked.
    pub applied: Option<u64>,
    /// Raft id of the instance that fills it: fresh for each.
    pub member: Option<u64>,
    /// voter, learner, joining
    pub standing: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Node {
    pub instance: String,
    pub address: String,
    pub zone: String,
    pub instance_type: String,
    /// joining, ready, draining, lost, fenced, gone
    pub lifecycle: String,
    pub cordoned: bool,
    pub session: u64,
    /// Since its last heartbeat; null when the answering coordinator never heard it.
    pub silent_ms: Option<u64>,
    pub cpu_used_permille: Option<u32>,
    pub memory_used_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
    pub disk_free_bytes: Option<u64>,
    pub agent_rss_bytes: Option<u64>,
    pub agent_version: String,
    pub slots: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Service {
    pub role: String,
    pub wanted: u32,
    pub placed: u32,
    /// This and the next two are not known to a follower (`--stale`): how members are doing only the leader hears.
    pub healthy: Option<u32>,
    /// How many more members may fail before it stops.
    pub tolerates: Option<u32>,
    pub serving: Option<bool>,
    /// exclusive, quorum, disposable
    pub fencing: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Slot {
    pub slot: String,
    pub role: String,
    /// The fencing token: the Raft index at which the holder was granted.
    pub generation: u64,
    pub member_id: u32,
    pub instance: Option<String>,
    pub zone: Option<String>,
    pub volume: Option<String>,
    /// unknown, waiting, starting, healthy, unhealthy, stopping, stopped, backoff
    pub phase: &'static str,
    pub message: String,
    pub pid: Option<i32>,
    pub restarts: u32,
    pub facts: BTreeMap<String, String>,
    /// The proof under which its previous holder was fenced.
    pub last_proof: Option<String>,
}

/// `vpctl roles`.
#[derive(Debug, Clone, Serialize)]
pub struct Roles {
    pub services: Vec<Service>,
    pub slots: Vec<Slot>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Event {
    pub revision: u64,
    pub unix_ms: u64,
    pub kind: String,
    pub subject: String,
    pub detail: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Gate {
    pub subject: String,
    pub closed_by: String,
    pub opens_when: String,
}

/// `vpctl plan`.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub revision: u64,
    pub actions: Vec<String>,
    pub gates: Vec<Gate>,
}

/// `vpctl explain`.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    pub slot: Option<Slot>,
    pub sentences: Vec<String>,
    pub gates: Vec<Gate>,
    pub history: Vec<Event>,
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The word for a health.
pub fn health_word(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
        Health::NoTolerance => "no_tolerance",
        Health::QuorumLost => "quorum_lost",
        // A coordinator that cannot say how things are has not heard from a majority.
        Health::Unspecified => "unknown",
    }
}

/// The exit code of `vpctl status` for a health; one that nobody could judge counts as degraded.
pub fn health_code(health: Health) -> u8 {
    match health {
        Health::Healthy => 0,
        Health::Degraded | Health::Unspecified => EXIT_DEGRADED,
        Health::NoTolerance => EXIT_NO_TOLERANCE,
        Health::QuorumLost => EXIT_QUORUM_LOST,
    }
}

/// The word for a phase.
pub fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "unknown",
        Phase::Waiting => "waiting",
        Phase::Starting => "starting",
        Phase::Healthy => "healthy",
        Phase::Unhealthy => "unhealthy",
        Phase::Stopping => "stopping",
        Phase::Stopped => "stopped",
        Phase::Backoff => "backoff",
    }
}

impl From<v1::ClusterStatus> for Status {
    fn from(raw: v1::ClusterStatus) -> Self {
        let health = raw.health();
        let services = raw.services.into_iter().map(|one| Service::of(one, health != Health::Unspecified)).collect();
        let mut status = Self {
            health: health_word(health),
            cluster: raw.cluster,
            reasons: raw.reasons,
            revision: raw.revision,
            term: raw.term,
            leader: (raw.leader_id != 0).then_some(raw.leader_id),
            coordinators: raw.coordinators.into_iter().map(Coordinator::from).collect(),
            nodes: raw.nodes.into_iter().map(Node::from).collect(),
            services,
            slots: raw.slots.into_iter().map(Slot::from).collect(),
            moves: raw.moves,
            alarms: raw.alarms,
            answered_by: (raw.answered_by != 0).then_some(raw.answered_by),
            age_ms: raw.age_ms,
        };
        status.coordinators.sort_by_key(|c| c.id);
        status.nodes.sort_by(|a, b| (&a.zone, &a.instance).cmp(&(&b.zone, &b.instance)));
        status.slots.sort_by(|a, b| order(&a.slot).cmp(&order(&b.slot)));
        status
    }
}

/// `kafka-10` comes after `kafka-9`.
fn order(slot: &str) -> (&str, u32) {
    slot.rsplit_once('-').and_then(|(role, index)| Some((role, index.parse().ok()?))).unwrap_or((slot, 0))
}

impl From<v1::CoordinatorStatus> for Coordinator {
    fn from(raw: v1::CoordinatorStatus) -> Self {
        Self {
            id: raw.id,
            address: raw.address,
            zone: raw.zone,
            instance: some(raw.instance_id),
            leader: raw.leader,
            reachable: raw.reachable,
            applied: (raw.applied != 0).then_some(raw.applied),
            member: (raw.member != 0).then_some(raw.member),
            standing: some(raw.standing),
        }
    }
}

impl From<v1::NodeStatus> for Node {
    fn from(raw: v1::NodeStatus) -> Self {
        let measures = raw.measures;
        let mut slots: Vec<String> = raw.slots.iter().map(ToString::to_string).collect();
        slots.sort_by(|a, b| order(a).cmp(&order(b)));
        Self {
            instance: raw.instance_id,
            address: raw.address,
            zone: raw.zone,
            instance_type: raw.instance_type,
            lifecycle: raw.lifecycle,
            cordoned: raw.cordoned,
            session: raw.session,
            silent_ms: raw.heard.then_some(raw.silent_ms),
            cpu_used_permille: measures.map(|m| m.cpu_used_permille),
            memory_used_bytes: measures.map(|m| m.memory_used_bytes),
            memory_total_bytes: measures.map(|m| m.memory_total_bytes),
            disk_free_bytes: measures.map(|m| m.disk_free_bytes),
            agent_rss_bytes: measures.map(|m| m.agent_rss_bytes),
            agent_version: raw.agent_version,
            slots,
        }
    }
}

impl Service {
    /// `heard`: it was told by one that hears how members are doing.
    fn of(raw: v1::ServiceStatus, heard: bool) -> Self {
        let v1::ServiceStatus { role, wanted, placed, healthy, tolerates, serving, fencing } = raw;
        Self { role, wanted, placed, healthy: heard.then_some(healthy), tolerates: heard.then_some(tolerates), serving: heard.then_some(serving), fencing }
    }
}

impl From<v1::SlotStatus> for Slot {
    fn from(raw: v1::SlotStatus) -> Self {
        let phase = phase_word(raw.phase());
        let slot = raw.slot.unwrap_or_default();
        Self {
            slot: slot.to_string(),
            role: slot.role,
            generation: raw.generation,
            member_id: raw.member_id,
            instance: some(raw.instance_id),
            zone: some(raw.zone),
            volume: some(raw.volume_id),
            phase,
            message: raw.message,
            pid: (raw.pid != 0).then_some(raw.pid),
            restarts: raw.restarts,
            facts: raw.facts.into_iter().collect(),
            last_proof: some(raw.last_proof),
        }
    }
}

impl From<v1::Event> for Event {
    fn from(raw: v1::Event) -> Self {
        let v1::Event { revision, unix_ms, kind, subject, detail } = raw;
        Self { revision, unix_ms, kind, subject, detail }
    }
}

impl From<v1::Gate> for Gate {
    fn from(raw: v1::Gate) -> Self {
        let v1::Gate { subject, closed_by, opens_when } = raw;
        Self { subject, closed_by, opens_when }
    }
}

/// `vpctl brake show -o json`.
#[derive(Debug, Serialize)]
pub struct Brake {
    pub closed: bool,
    pub reason: Option<String>,
    /// Instances that are silent now: what a release would name.
    pub silent: Vec<String>,
    pub released_by: Option<String>,
    pub released_unix_ms: Option<u64>,
    pub released: Vec<String>,
    pub gates: Vec<Gate>,
}

impl From<v1::BrakeStatus> for Brake {
    fn from(raw: v1::BrakeStatus) -> Self {
        Self {
            closed: raw.closed,
            reason: some(raw.reason),
            silent: raw.silent,
            released_by: some(raw.released_by),
            released_unix_ms: (raw.released_unix_ms != 0).then_some(raw.released_unix_ms),
            released: raw.released,
            gates: raw.gates.into_iter().map(Gate::from).collect(),
        }
    }
}

impl From<v1::PlanReport> for Plan {
    fn from(raw: v1::PlanReport) -> Self {
        Self { revision: raw.revision, actions: raw.actions, gates: raw.gates.into_iter().map(Gate::from).collect() }
    }
}

impl From<v1::Explanation> for Explanation {
    fn from(raw: v1::Explanation) -> Self {
        Self {
            slot: raw.slot.map(Slot::from),
            sentences: raw.sentences,
            gates: raw.gates.into_iter().map(Gate::from).collect(),
            history: raw.history.into_iter().map(Event::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_health_has_its_exit_code() {
        let codes = [Health::Healthy, Health::Degraded, Health::NoTolerance, Health::QuorumLost, Health::Unspecified].map(health_code);
        assert_eq!(codes, [0, 2, 3, 4, 2]);
    }

    #[test]
    fn slots_are_ordered_by_index_as_a_number() {
        let mut names = ["kafka-10", "spark-worker-2", "kafka-9"];
        names.sort_by(|a, b| order(a).cmp(&order(b)));
        assert_eq!(names, ["kafka-9", "kafka-10", "spark-worker-2"]);
    }
}
