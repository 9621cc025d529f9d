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

/// How the gate of a slot begins whose volume lies in a zone without a node with room.
const ITS_ZONE: &str = "its volume is in";

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
    /// The most that any slot which moved lacked its process for want of vp alone, at least: neither was its role starting nor did its protocol wait.
    pub ours: Duration,
}

/// How long each slot that moved had no process though nothing but vp was waited for.
#[derive(Default)]
struct Account {
    last: Option<Duration>,
    /// By slot; whoever was never without a holder, nor unwell at the first look, has not moved.
    ours: BTreeMap<String, Duration>,
}

/// What a slot waits for that vp can only wait for as well: sessions that expire, copies that catch up, servers that elect.
const PROTOCOLS: [&str; 4] = ["the session of broker", "does not serve yet", "its disk is lost", "cannot be read"];

impl Account {
    /// Books the time since the last look, or since the kill for a slot that the first look finds with the dead; `gated` are the slots behind a gate that
    /// only something else opens.
    fn look(&mut self, at: Duration, slots: &[Slot], dead: &str, gated: &BTreeSet<String>) {
        let first = self.last.is_none();
        let passed = at.saturating_sub(self.last.replace(at).unwrap_or_default());
        for slot in slots {
            let homeless = slot.instance.as_deref().is_none_or(|holder| holder == dead);
            let moved = homeless || first && slot.phase != "healthy" || self.ours.contains_key(&slot.name);
            let lacks = match slot.phase.as_str() {
                _ if homeless => !gated.contains(&slot.name),
                "waiting" => !PROTOCOLS.iter().any(|wait| slot.message.contains(wait)),
                phase => phase == "unknown",
            };
            if moved {
                let booked = self.ours.entry(slot.name.clone()).or_default();
                *booked += if lacks && (homeless || !first) { passed } else { Duration::ZERO };
            }
        }
    }

    fn most(&self) -> Duration {
        self.ours.values().max().copied().unwrap_or_default()
    }
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

    /// What an instance holds.
    ///
    /// # Errors
    /// No coordinator answers.
    pub fn held_by(&self, instance: &str) -> anyhow::Result<Vec<Slot>> {
        Ok(self.slots()?.into_iter().filter(|slot| slot.instance.as_deref() == Some(instance)).collect())
    }

    /// Where the log is now: events after it are new.
    ///
    /// # Errors
    /// No coordinator answers.
    pub fn revision(&self) -> anyhow::Result<u64> {
        self.status()?["revision"].as_u64().context("the status has a revision")
    }

    /// Under which proof the slot was taken from its last holder, as `vpctl explain` tells it.
    ///
    /// # Errors
    /// No coordinator answers, or it knows of none.
    pub fn proof(&self, slot: &str) -> anyhow::Result<String> {
        let explained = self.json(&["explain", slot])?;
        explained["slot"]["last_proof"].as_str().map(str::to_owned).with_context(|| format!("no proof for {slot}: {explained}"))
    }

    /// What events of one kind say of a subject after a revision.
    ///
    /// # Errors
    /// No coordinator answers.
    pub fn told(&self, after: u64, kind: &str, subject: &str) -> anyhow::Result<Vec<String>> {
        let events = self.events(after)?;
        let of_it = events.iter().filter(|event| event["kind"] == kind && event["subject"] == subject);
        Ok(of_it.filter_map(|event| event["detail"].as_str().map(str::to_owned)).collect())
    }

    /// Slots that wait for one of these, each the beginning of what the plan says.
    fn waiting_for(&self, closed: &[&str]) -> anyhow::Result<BTreeSet<String>> {
        let plan = self.json(&["plan"])?;
        let gates = plan["gates"].as_array().context("gates are a list")?;
        let closed = gates.iter().filter(|gate| gate["closed_by"].as_str().is_some_and(|by| closed.iter().any(|one| by.starts_with(one))));
        Ok(closed.filter_map(|gate| gate["subject"].as_str().map(str::to_owned)).collect())
    }

    /// Waits until every slot is held by an instance other than `dead` and is healthy, and until the cluster says it is.
    ///
    /// # Errors
    /// Not within `deadline`: with the slots that are not well.
    pub fn wait_healed(&self, dead: &str, since: Instant, deadline: Duration) -> anyhow::Result<Healing> {
        self.wait_healed_behind(&[ITS_ZONE], dead, since, deadline)
    }

    /// As [`Region::wait_healed`], where disks are lost too: gates that wait for what an empty disk needs are closed, and no slot behind one counts as late.
    ///
    /// # Errors
    /// As [`Region::wait_healed`].
    pub fn wait_healed_without_disks(&self, dead: &str, since: Instant, deadline: Duration) -> anyhow::Result<Healing> {
        self.wait_healed_behind(&[ITS_ZONE, "its disk is lost and", "no ready node has room"], dead, since, deadline)
    }

    fn wait_healed_behind(&self, closed: &[&str], dead: &str, since: Instant, deadline: Duration) -> anyhow::Result<Healing> {
        let (mut placed, mut account) = (None, Account::default());
        let healthy = wait_until(&format!("every slot is healthy without {dead}"), deadline, || {
            let slots = self.slots()?;
            let homeless: BTreeSet<String> =
                slots.iter().filter(|slot| slot.instance.as_deref().is_none_or(|holder| holder == dead)).map(|slot| slot.name.clone()).collect();
            // A slot behind a closed gate waits for something else, as one whose volume lies in a zone without a node with room: for the group's replacement.
            let gated = if homeless.is_empty() { BTreeSet::new() } else { self.waiting_for(closed)? };
            account.look(since.elapsed(), &slots, dead, &gated);
            if placed.is_none() && gated.is_superset(&homeless) {
                placed = Some(since.elapsed());
            }
            let unwell: Vec<String> =
                slots.iter().filter(|slot| !slot.healthy()).map(|slot| format!("{} {} {}", slot.name, slot.phase, slot.message)).collect();
            anyhow::ensure!(homeless.is_empty() && unwell.is_empty(), "without a holder: {homeless:?}; not well: {unwell:?}");
            Ok(Some(since.elapsed()))
        })?;
        Ok(Healing { placed: placed.unwrap_or(healthy), healthy, ours: account.most() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str, holder: &str, phase: &str, message: &str) -> Slot {
        let json = serde_json::json!({"slot": name, "role": "kafka", "generation": 1, "instance": holder, "phase": phase, "message": message});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn neither_a_roles_own_start_nor_its_protocols_wait_is_booked_to_vp() {
        let seconds = Duration::from_secs;
        let (mut account, none, gated) = (Account::default(), BTreeSet::new(), BTreeSet::from(["kafka-1".to_owned()]));
        let mut look = |at, holder: &str, phase: &str, message: &str, gated: &BTreeSet<String>| {
            account.look(seconds(at), &[slot("kafka-1", holder, phase, message), slot("kafka-2", "i-3", "healthy", "")], "i-dead", gated);
            account.most()
        };
        assert_eq!(look(4, "i-dead", "healthy", "", &none), seconds(4), "from the kill on");
        assert_eq!(look(9, "i-dead", "unknown", "", &gated), seconds(4), "its volume's zone");
        assert_eq!(look(10, "i-2", "unknown", "", &none), seconds(5), "not told yet");
        assert_eq!(look(12, "i-2", "waiting", "killed; waiting for volume vol-1 is not attached to i-2 yet", &none), seconds(7));
        assert_eq!(look(20, "i-2", "waiting", "waiting for the session of broker 1 at 127.0.0.1 is still live", &none), seconds(7));
        assert_eq!(look(30, "i-2", "starting", "", &none), seconds(7));
    }

    #[test]
    fn who_did_not_move_is_not_booked_and_the_time_before_the_first_look_only_to_who_is_without_a_holder() {
        let (mut account, none) = (Account::default(), BTreeSet::new());
        account.look(Duration::from_secs(20), &[slot("kafka-1", "i-2", "unknown", ""), slot("kafka-2", "i-3", "healthy", "")], "i-dead", &none);
        account.look(Duration::from_secs(21), &[slot("kafka-1", "i-2", "unknown", ""), slot("kafka-2", "i-3", "unknown", "")], "i-dead", &none);
        assert_eq!(account.ours, BTreeMap::from([("kafka-1".to_owned(), Duration::from_secs(1))]));
    }
}
