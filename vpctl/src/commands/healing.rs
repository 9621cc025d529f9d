//! What a drill measures: a pure account of what was seen when, from which the report follows. No clock, no network.
//!
//! ```text
//! kill ─ detected (lost, or gone for EC2) ─ fenced (proof) ─ placed (each slot has a new holder) ─ healthy ─ restored
//! ```

use std::collections::BTreeMap;

use serde::Serialize;
use vp_proto::v1::{ClusterStatus, CoordinatorStatus, Event, NodeStatus, Phase, PlanReport};

use crate::view::model::health_code;

/// What the event says of a node that EC2's word fenced (`vp-cluster`, `apply/nodes.rs`): it was terminated before that.
const FENCED_BY_EC2: &str = "EC2 says terminated";

/// What is killed, and what it held.
#[derive(Debug, Clone)]
pub struct Target {
    pub instance: String,
    /// For a person: which instance this is.
    pub what: String,
    /// Slot → generation under which the target held it.
    pub slots: BTreeMap<String, u64>,
    coordinator: Option<u64>,
}

impl Target {
    /// A node and the slots it holds.
    pub fn node(node: &NodeStatus, status: &ClusterStatus) -> Self {
        let held = status.slots.iter().filter(|s| s.instance_id == node.instance_id);
        let slots = held.filter_map(|s| Some((s.slot.as_ref()?.to_string(), s.generation))).collect();
        let what = format!("{} ({}, {})", node.instance_id, node.zone, node.address);
        Self { instance: node.instance_id.clone(), what, slots, coordinator: None }
    }

    /// The instance of a coordinator; it holds no slot.
    pub fn coordinator(one: &CoordinatorStatus) -> Self {
        let role = if one.leader { "coordinator and leader" } else { "coordinator" };
        let what = format!("{} ({role} {}, {})", one.instance_id, one.id, one.zone);
        Self { instance: one.instance_id.clone(), what, slots: BTreeMap::new(), coordinator: Some(one.id) }
    }
}

/// One slot's way back.
#[derive(Debug, Clone, Serialize)]
pub struct SlotHealing {
    pub slot: String,
    /// New holder.
    pub to: Option<String>,
    pub placed_ms: Option<u64>,
    /// Its process runs: from here to `healthy_ms` is the role's own start.
    pub started_ms: Option<u64>,
    pub healthy_ms: Option<u64>,
    /// The proof under which it was taken from the old holder.
    pub proof: Option<String>,
}

/// A gate that was seen closed while the cluster healed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wait {
    pub subject: String,
    pub closed_by: String,
    pub from_ms: u64,
    pub waited_ms: u64,
}

/// `vpctl drill -o json`. Times are milliseconds since the kill; null means: not seen.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub instance: String,
    pub what: String,
    pub silent: bool,
    /// EC2 says that no process of it is left.
    pub terminated_ms: Option<u64>,
    pub detected_ms: Option<u64>,
    pub fenced_ms: Option<u64>,
    /// Every slot has a new holder.
    pub placed_ms: Option<u64>,
    /// Every slot serves again.
    pub healthy_ms: Option<u64>,
    /// Another coordinator leads; only when the leader was killed.
    pub led_ms: Option<u64>,
    /// The cluster tolerates as much as before the kill.
    pub restored_ms: Option<u64>,
    pub slots: Vec<SlotHealing>,
    pub waits: Vec<Wait>,
    /// What is missing when it was not restored.
    pub missing: Vec<String>,
}

/// The account of one drill.
#[derive(Debug)]
pub struct Healing {
    target: Target,
    silent: bool,
    health_before: u8,
    ready_before: usize,
    reachable_before: usize,
    leader_was_target: bool,
    terminated_ms: Option<u64>,
    detected_ms: Option<u64>,
    fenced_ms: Option<u64>,
    led_ms: Option<u64>,
    restored_ms: Option<u64>,
    slots: BTreeMap<String, SlotHealing>,
    waits: BTreeMap<(String, String), (u64, u64)>,
    missing: Vec<String>,
}

fn ready(status: &ClusterStatus) -> usize {
    status.nodes.iter().filter(|n| n.lifecycle == "ready").count()
}

fn reachable(status: &ClusterStatus) -> usize {
    status.coordinators.iter().filter(|c| c.reachable || c.leader).count()
}

impl Healing {
    /// The account before anything was seen; `before` is the cluster as it was.
    pub fn new(target: Target, before: &ClusterStatus, silent: bool) -> Self {
        let blank = |slot: &String| SlotHealing { slot: slot.clone(), to: None, placed_ms: None, started_ms: None, healthy_ms: None, proof: None };
        Self {
            slots: target.slots.keys().map(|s| (s.clone(), blank(s))).collect(),
            leader_was_target: target.coordinator.is_some_and(|id| id == before.leader_id),
            target,
            silent,
            health_before: health_code(before.health()),
            ready_before: ready(before),
            reachable_before: reachable(before),
            terminated_ms: None,
            detected_ms: None,
            fenced_ms: None,
            led_ms: None,
            restored_ms: None,
            waits: BTreeMap::new(),
            missing: Vec::new(),
        }
    }

    /// The instance that was killed.
    pub fn instance(&self) -> &str {
        &self.target.instance
    }

    /// EC2 says terminated.
    pub fn saw_terminated(&mut self, at_ms: u64) {
        self.terminated_ms.get_or_insert(at_ms);
    }

    /// An event of the cluster.
    pub fn saw_event(&mut self, at_ms: u64, event: &Event) {
        let ours = event.subject == self.target.instance;
        match event.kind.as_str() {
            "node lost" if ours => _ = self.detected_ms.get_or_insert(at_ms),
            "node fenced" if ours => {
                self.detected_ms.get_or_insert(at_ms);
                let fenced_ms = *self.fenced_ms.get_or_insert(at_ms);
                // The coordinators look at EC2 more often than a drill does.
                if event.detail == FENCED_BY_EC2 {
                    self.terminated_ms = Some(self.terminated_ms.map_or(fenced_ms, |at| at.min(fenced_ms)));
                }
            }
            "slot vacated" => {
                if let Some(slot) = self.slots.get_mut(&event.subject) {
                    slot.proof.get_or_insert_with(|| event.detail.clone());
                }
            }
            _ => {}
        }
    }

    /// Gates that are closed now.
    pub fn saw_plan(&mut self, at_ms: u64, plan: &PlanReport) {
        for gate in &plan.gates {
            let key = (gate.subject.clone(), gate.closed_by.clone());
            self.waits.entry(key).and_modify(|(_, last)| *last = at_ms).or_insert((at_ms, at_ms));
        }
    }

    /// The cluster as it is now.
    pub fn saw_status(&mut self, at_ms: u64, status: &ClusterStatus) {
        match self.target.coordinator {
            Some(id) => self.saw_coordinators(at_ms, id, status),
            None => self.saw_node(at_ms, status),
        }
        for raw in &status.slots {
            let Some(name) = raw.slot.as_ref().map(ToString::to_string) else {
                continue;
            };
            let Some(before) = self.target.slots.get(&name) else {
                continue;
            };
            let Some(slot) = self.slots.get_mut(&name) else {
                continue;
            };
            let moved = raw.generation > *before && !raw.instance_id.is_empty() && raw.instance_id != self.target.instance;
            if !moved {
                continue;
            }
            slot.placed_ms.get_or_insert(at_ms);
            slot.to = Some(raw.instance_id.clone());
            if slot.proof.is_none() && !raw.last_proof.is_empty() {
                slot.proof = Some(raw.last_proof.clone());
            }
            match raw.phase() {
                Phase::Starting | Phase::Healthy | Phase::Unhealthy => _ = slot.started_ms.get_or_insert(at_ms),
                // It moved again, or ended and is started again: the last start counts.
                Phase::Unspecified | Phase::Waiting | Phase::Backoff | Phase::Stopped => slot.started_ms = None,
                Phase::Stopping => {}
            }
            if raw.phase() == Phase::Healthy {
                slot.healthy_ms.get_or_insert(at_ms);
            } else {
                // Healthy for a moment is not healthy: the time counts from the last change.
                slot.healthy_ms = None;
            }
        }
        self.missing = self.what_is_missing(status);
        if self.missing.is_empty() && self.detected_ms.is_some() {
            self.restored_ms.get_or_insert(at_ms);
        }
    }

    fn saw_node(&mut self, at_ms: u64, status: &ClusterStatus) {
        let lifecycle = status.nodes.iter().find(|n| n.instance_id == self.target.instance).map(|n| n.lifecycle.as_str());
        match lifecycle {
            Some("lost") => _ = self.detected_ms.get_or_insert(at_ms),
            Some("fenced" | "gone") | None => {
                self.detected_ms.get_or_insert(at_ms);
                self.fenced_ms.get_or_insert(at_ms);
            }
            _ => {}
        }
    }

    fn saw_coordinators(&mut self, at_ms: u64, id: u64, status: &ClusterStatus) {
        let missed = status.coordinators.iter().any(|c| c.id == id && !c.reachable && !c.leader);
        let led_by_another = status.leader_id != 0 && status.leader_id != id;
        if missed || self.leader_was_target && status.leader_id != id {
            self.detected_ms.get_or_insert(at_ms);
        }
        if self.leader_was_target && led_by_another {
            self.led_ms.get_or_insert(at_ms);
        }
    }

    fn what_is_missing(&self, status: &ClusterStatus) -> Vec<String> {
        let mut missing = Vec::new();
        if self.detected_ms.is_none() {
            missing.push("the cluster has not noticed that the instance is gone".to_owned());
        }
        if self.detected_ms.is_some() && self.fenced_ms.is_none() && self.target.coordinator.is_none() {
            missing.push("there is no proof yet that the old instance is gone".to_owned());
        }
        if status.leader_id == 0 {
            missing.push("no coordinator leads".to_owned());
        }
        for slot in self.slots.values() {
            let phase = status.slots.iter().find(|s| s.slot.as_ref().is_some_and(|r| r.to_string() == slot.slot));
            let message = phase.map(|s| s.message.as_str()).filter(|m| !m.is_empty()).map(|m| format!(": {m}")).unwrap_or_default();
            match (slot.placed_ms, slot.healthy_ms) {
                (None, _) => missing.push(format!("{} has no new holder{message}", slot.slot)),
                (Some(_), None) => missing.push(format!("{} is not healthy yet{message}", slot.slot)),
                _ => {}
            }
        }
        let (coordinators, nodes) = (reachable(status), ready(status));
        if coordinators < self.reachable_before {
            missing.push(format!("{coordinators} of {} coordinators are reachable", self.reachable_before));
        }
        if nodes < self.ready_before {
            missing.push(format!("{nodes} of {} nodes are ready: the replacement has not joined", self.ready_before));
        }
        if health_code(status.health()) > self.health_before {
            missing.extend(status.reasons.iter().cloned());
            if status.reasons.is_empty() {
                missing.push("the health is worse than before".to_owned());
            }
        }
        missing
    }

    /// Everything is as good as before the kill.
    pub fn is_over(&self) -> bool {
        self.restored_ms.is_some()
    }

    /// How far it is, for a person who waits.
    pub fn stage(&self) -> String {
        let placed = self.slots.values().filter(|s| s.placed_ms.is_some()).count();
        let healthy = self.slots.values().filter(|s| s.healthy_ms.is_some()).count();
        let all = self.slots.len();
        match (self.detected_ms, self.fenced_ms, self.target.coordinator) {
            (None, ..) => "killed; not detected yet".to_owned(),
            (Some(_), _, Some(_)) => self.missing.first().map_or_else(|| "restored".to_owned(), |m| format!("detected; {m}")),
            (Some(_), None, None) => {
                format!("detected; {placed} of {all} slots placed, waiting for proof")
            }
            (Some(_), Some(_), None) if healthy < all => {
                format!("fenced; {placed} of {all} slots placed, {healthy} healthy")
            }
            _ => self.missing.first().map_or_else(|| "restored".to_owned(), |m| format!("healthy; {m}")),
        }
    }

    /// All of it.
    pub fn report(&self) -> Report {
        let slots: Vec<SlotHealing> = self.slots.values().cloned().collect();
        let last = |of: fn(&SlotHealing) -> Option<u64>| -> Option<u64> {
            if self.target.coordinator.is_some() {
                return None;
            }
            slots.iter().map(of).try_fold(self.detected_ms?, |latest, one| Some(latest.max(one?)))
        };
        let wait = |((subject, closed_by), (from, to)): (&(String, String), &(u64, u64))| Wait {
            subject: subject.clone(),
            closed_by: closed_by.clone(),
            from_ms: *from,
            waited_ms: to - from,
        };
        Report {
            instance: self.target.instance.clone(),
            what: self.target.what.clone(),
            silent: self.silent,
            terminated_ms: self.terminated_ms,
            detected_ms: self.detected_ms,
            fenced_ms: self.fenced_ms,
            placed_ms: last(|s| s.placed_ms),
            healthy_ms: last(|s| s.healthy_ms),
            led_ms: self.led_ms,
            restored_ms: self.restored_ms,
            waits: self.waits.iter().map(wait).collect(),
            missing: if self.restored_ms.is_some() { Vec::new() } else { self.missing.clone() },
            slots,
        }
    }
}

#[cfg(test)]
#[path = "healing_tests.rs"]
mod tests;
