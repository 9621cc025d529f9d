//! Slots and nodes by the cluster's own account, and the ways to hurt an instance.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;

use crate::{Region, wait_until};

/// A slot as `vpctl roles` tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct Slot {
    #[serde(rename = "slot")]
    pub name: String,
    pub role: String,
    pub generation: u64,
    pub member_id: Option<u32>,
    pub instance: Option<String>,
    pub zone: Option<String>,
    pub volume: Option<String>,
    pub phase: String,
    pub message: String,
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
}

impl Slot {
    pub fn healthy(&self) -> bool {
        self.phase == "healthy" && self.instance.is_some()
    }
}

/// An instance as the region's keeper and EC2 tell it.
#[derive(Debug, Clone, Deserialize)]
pub struct Instance {
    pub id: String,
    pub state: String,
    pub alive: bool,
    pub pid: Option<i32>,
    pub zone: String,
    pub address: Option<String>,
    pub group: Option<String>,
}

/// When what was asked for had come true after a kill.
#[derive(Debug, Clone, Copy)]
pub struct Healing {
    /// Every slot whose gate is open has a live holder again.
    pub placed: Duration,
    /// Every slot is healthy.
    pub healthy: Duration,
}

impl Region {
    /// The live instances of the nodes' group.
    ///
    /// # Errors
    /// EC2 or the keeper does not answer.
    pub fn nodes(&self) -> anyhow::Result<Vec<Instance>> {
        let of_nodes = |one: &Instance| one.alive && one.group.as_deref().is_some_and(|group| group.ends_with("-nodes"));
        Ok(self.instances()?.into_iter().filter(of_nodes).collect())
    }

    /// Every slot.
    ///
    /// # Errors
    /// No coordinator answers.
    pub fn slots(&self) -> anyhow::Result<Vec<Slot>> {
        Ok(serde_json::from_value(self.json(&["roles"])?["slots"].take())?)
    }

    /// One slot by name.
    ///
    /// # Errors
    /// No coordinator answers, or there is no such slot.
    pub fn slot(&self, name: &str) -> anyhow::Result<Slot> {
        self.slots()?.into_iter().find(|slot| slot.name == name).with_context(|| format!("there is no slot {name}"))
    }

    /// The instance that holds a slot.
    ///
    /// # Errors
    /// As [`Region::slot`], or nobody holds it.
    pub fn holder(&self, name: &str) -> anyhow::Result<String> {
        self.slot(name)?.instance.with_context(|| format!("nobody holds {name}"))
    }

    /// Slot name to generation: equal before and after means that nothing moved.
    ///
    /// # Errors
    /// No coordinator answers.
    pub fn generations(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        Ok(self.slots()?.into_iter().map(|slot| (slot.name, slot.generation)).collect())
    }

    /// Every instance EC2 knows, dead ones too.
    ///
    /// # Errors
    /// The region's record cannot be read.
    pub fn instances(&self) -> anyhow::Result<Vec<Instance>> {
        Ok(serde_json::from_value(self.json(&["dev", "status"])?["instances"].take())?)
    }

    /// One instance.
    ///
    /// # Errors
    /// As [`Region::instances`], or there is none.
    pub fn instance(&self, id: &str) -> anyhow::Result<Instance> {
        self.instances()?.into_iter().find(|instance| instance.id == id).with_context(|| format!("there is no instance {id}"))
    }

    /// The live instance of a coordinator.
    ///
    /// # Errors
    /// As [`Region::instances`], or it has none.
    pub fn coordinator_instance(&self, id: u64) -> anyhow::Result<Instance> {
        let group = format!("{}-coordinator-{id}", self.name());
        let mut all = self.instances()?.into_iter();
        all.find(|instance| instance.alive && instance.group.as_deref() == Some(group.as_str())).with_context(|| format!("coordinator {id} has no instance"))
    }

    /// TerminateInstances: EC2 knows it from the first moment.
    ///
    /// # Errors
    /// As EC2.
    pub fn kill_instance(&self, id: &str) -> anyhow::Result<()> {
        self.block_on(self.ec2().terminate(id)).with_context(|| format!("terminate {id}"))
    }

    /// The instance's first process and with it everything in it dies, and nobody is told: EC2 goes on saying `running`.
    ///
    /// # Errors
    /// It does not live.
    pub fn kill_silently(&self, id: &str) -> anyhow::Result<()> {
        let record: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(self.disk(id).join("init.json"))?)?;
        let pid = record["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("its init.json names no process")?;
        let (_, start) = crate::processes::stat(pid).with_context(|| format!("process {pid} of {id} is gone already"))?;
        anyhow::ensure!(Some(start) == record["start_time"].as_u64(), "process {pid} is another by now");
        Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
    }

    /// Slots that only wait for a node in their volume's zone.
    fn waiting_for_zone(&self) -> anyhow::Result<BTreeSet<String>> {
        let plan = self.json(&["plan"])?;
        let gates = plan["gates"].as_array().context("gates are a list")?;
        let closed = gates.iter().filter(|gate| gate["closed_by"].as_str().is_some_and(|by| by.starts_with("its volume is in")));
        Ok(closed.filter_map(|gate| gate["subject"].as_str().map(str::to_owned)).collect())
    }

    /// Waits until every slot is held by an instance other than `dead` and is healthy, and until the cluster says it is.
    ///
    /// # Errors
    /// Not within `deadline`: with the slots that are not well.
    pub fn wait_healed(&self, dead: &str, since: Instant, deadline: Duration) -> anyhow::Result<Healing> {
        let mut placed = None;
        let healthy = wait_until(&format!("every slot is healthy without {dead}"), deadline, || {
            let slots = self.slots()?;
            let homeless: Vec<&str> =
                slots.iter().filter(|slot| slot.instance.as_deref().is_none_or(|holder| holder == dead)).map(|s| s.name.as_str()).collect();
            // A slot whose volume lies in a zone without a node with room waits for the group's replacement: its gate is closed.
            if placed.is_none() && (homeless.is_empty() || self.waiting_for_zone()?.is_superset(&homeless.iter().map(|slot| (*slot).to_owned()).collect())) {
                placed = Some(since.elapsed());
            }
            let unwell: Vec<String> =
                slots.iter().filter(|slot| !slot.healthy()).map(|slot| format!("{} {} {}", slot.name, slot.phase, slot.message)).collect();
            anyhow::ensure!(homeless.is_empty() && unwell.is_empty(), "without a holder: {homeless:?}; not well: {unwell:?}");
            Ok(Some(since.elapsed()))
        })?;
        Ok(Healing { placed: placed.unwrap_or(healthy), healthy })
    }
}
