//! Roles as processes with a time of start, guards that kill the exclusive ones at their deadline whatever their agent does, and as much of ZooKeeper and
//! Kafka as the judgement reads: who is listed, who is in sync, whose session is live.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use vp_agent::{catalogue::Fencing, clock::Instant, guard, lease::Renewal, slot::Slot};
use vp_cluster::{
    Command, SlotId, ensemble,
    observe::{EnsembleSeen, KafkaSeen},
};

use crate::{
    agent::Host,
    clock::{MS, SECOND, Time},
    network::Machine,
    world::{Event, World},
};

/// How long Kafka's sessions outlive their brokers (roles/kafka: zookeeper.session.timeout.ms).
const SESSION: Time = 6 * SECOND;

/// What an agent starts.
pub struct Order {
    pub slot: Slot,
    pub generation: u64,
    pub fencing: Fencing,
    pub deadline: Option<Instant>,
    pub volume: Option<String>,
    pub member: u32,
    pub params: BTreeMap<String, String>,
}

/// A role's process.
pub struct Process {
    pub slot: Slot,
    pub generation: u64,
    pub host: Machine,
    pub fencing: Fencing,
    pub started: Time,
    pub asked: Option<Time>,
    deadline: Option<Instant>,
    pub volume: Option<String>,
    pub member: u32,
    pub join: Option<String>,
    list: BTreeMap<u32, String>,
    ready: Time,
    /// Ever good, good now.
    pub healthy: (bool, bool),
}

/// An end that nobody asked for.
pub struct Exit {
    pub slot: Slot,
    pub at: Time,
    pub ran: Duration,
    pub lease_over: bool,
}

/// ZooKeeper's and Kafka's own memory.
#[derive(Default)]
pub struct Ensemble {
    pub seen: Option<EnsembleSeen>,
    /// Member ids that ever wrote to a disk.
    written: BTreeSet<u32>,
    /// Broker id → address and until when its session lives without it.
    brokers: BTreeMap<u32, (String, Time)>,
}

impl World {
    pub fn process_of(&self, host: Machine, slot: &Slot) -> Option<(u64, &Process)> {
        self.processes.iter().find(|(_, process)| process.host == host && process.slot == *slot).map(|(pid, process)| (*pid, process))
    }

    pub fn slots_running(&self, host: Machine) -> BTreeSet<Slot> {
        self.processes.values().filter(|process| process.host == host).map(|process| process.slot.clone()).collect()
    }

    pub fn exits_of(&mut self, host: Machine) -> Vec<Exit> {
        self.exits.remove(&host).unwrap_or_default()
    }

    pub fn start_process(&mut self, host: &Host, order: Order) {
        self.processes_made += 1;
        let pid = self.processes_made;
        let list = members_of(order.params.get("ensemble").map_or("", String::as_str));
        let process = Process {
            slot: order.slot,
            generation: order.generation,
            host: host.number,
            fencing: order.fencing,
            started: self.now,
            asked: None,
            deadline: order.deadline,
            volume: order.volume,
            member: order.member,
            join: order.params.get("join").cloned(),
            list,
            ready: self.now + self.chance.range(200 * MS, 2500 * MS),
            healthy: (false, false),
        };
        self.say(|| format!("{} starts on {} at generation {}", process.slot, process.host, process.generation));
        self.history.process(&process.slot, pid, process.host, process.generation, self.now);
        self.check_start(&process);
        self.write_disk(&process);
        if let Some(deadline) = process.deadline {
            let at = self.guard_time(host, deadline);
            self.queue.push(at, Event::Guard(pid));
        }
        self.queue.push(process.ready, Event::Probe(pid));
        self.processes.insert(pid, process);
    }

    /// An old member on an empty disk votes with nothing: the one thing a fresh disk must never be given.
    fn write_disk(&mut self, process: &Process) {
        let Some(disk) = process.volume.as_ref().and_then(|volume| self.volumes.get_mut(volume)) else { return };
        if process.join.is_some() {
            let fresh = disk.member != Some(process.member);
            if fresh && self.ensemble.written.contains(&process.member) {
                let what = format!("{} starts as member {} on a disk without that member's data", process.slot, process.member);
                self.violation("an old member id on an empty disk", what);
                return;
            }
            self.ensemble.written.insert(process.member);
        }
        disk.member = Some(process.member);
    }

    /// True time at which a guard wakes for its deadline: never before it, a little late on a busy machine.
    fn guard_time(&mut self, host: &Host, deadline: Instant) -> Time {
        let due = match vp_agent::clock::lease_clock() {
            nix::time::ClockId::CLOCK_BOOTTIME => host.clock.when(self.now, deadline.0),
            _ => self.now + deadline.0.saturating_sub(host.clock.wall_ns(self.now)) / 1000,
        };
        due + self.chance.below(80) * MS
    }

    /// A guard wakes: it kills unless its deadline has moved.
    pub fn guard(&mut self, pid: u64) {
        let Some(process) = self.processes.get(&pid) else { return };
        let (Some(deadline), machine) = (process.deadline, process.host) else { return };
        let Some(host) = self.hosts.remove(&machine) else { return };
        if guard::is_over(deadline, host.instant(self.now)) {
            self.hosts.insert(machine, host);
            self.say(|| format!("the guard on {machine} kills process {pid}: its lease is over"));
            self.note_guard_kill(pid);
            self.process_is_gone(pid, Some(true));
            return;
        }
        let at = self.guard_time(&host, deadline).max(self.now + 50 * MS);
        self.hosts.insert(machine, host);
        self.queue.push(at, Event::Guard(pid));
    }

    /// What an acknowledgement renewed reaches the guards, and those that wait for a first lease.
    pub fn renew(&mut self, machine: Machine, renewals: &[Renewal]) {
        let Some(host) = self.hosts.get(&machine) else { return };
        let now = host.instant(self.now);
        for renewal in renewals {
            let found = self.processes.values_mut().find(|p| p.host == machine && p.slot == renewal.slot && p.generation == renewal.generation);
            if let Some(deadline) = found.and_then(|process| process.deadline.as_mut())
                && guard::extends(*deadline, renewal.deadline, now)
            {
                *deadline = renewal.deadline;
            }
        }
        let first = renewals.iter().any(|renewal| self.process_of(machine, &renewal.slot).is_none());
        if first {
            self.wake_agent(machine);
        }
    }

    pub fn ask_to_end(&mut self, host: Machine, slot: &Slot) {
        let now = self.now;
        let wait = self.chance.range(20 * MS, 1500 * MS);
        let Some((pid, process)) = self.processes.iter_mut().find(|(_, process)| process.host == host && process.slot == *slot) else { return };
        let pid = *pid;
        if process.asked.is_none() {
            process.asked = Some(now);
            let (slot, generation) = (process.slot.clone(), process.generation);
            self.queue.push(now + wait, Event::ProcessEnds(pid));
            self.check_stop(host, &slot, generation);
        }
    }

    pub fn kill_process_of(&mut self, host: Machine, slot: &Slot, lease_over: bool) {
        let Some((pid, process)) = self.process_of(host, slot) else { return };
        let (running, exclusive, generation) = (process.asked.is_none(), process.fencing == Fencing::Exclusive, process.generation);
        if lease_over && running {
            self.note_guard_kill(pid);
        }
        if running && !exclusive {
            self.check_stop(host, slot, generation);
        }
        self.process_is_gone(pid, None);
    }

    /// `unasked`: the agent hears of it as an exit; true when the guard did it.
    pub fn process_is_gone(&mut self, pid: u64, unasked: Option<bool>) {
        let Some(process) = self.processes.remove(&pid) else { return };
        self.say(|| format!("{} on {} is gone (generation {})", process.slot, process.host, process.generation));
        self.history.process_gone(pid, self.now);
        if process.slot.role() == "kafka"
            && let Some(broker) = self.ensemble.brokers.get_mut(&process.member)
        {
            broker.1 = self.now + SESSION;
        }
        if let Some(lease_over) = unasked {
            let ran = Duration::from_micros(self.now - process.started);
            self.exits.entry(process.host).or_default().push(Exit { slot: process.slot, at: self.now, ran, lease_over });
            self.wake_agent(process.host);
        }
    }

    /// A role's probe.
    pub fn probe(&mut self, pid: u64) {
        let Some(process) = self.processes.get(&pid) else { return };
        let good = self.now >= process.ready && self.is_good(process);
        let (host, was) = (process.host, process.healthy.1);
        if good && !was {
            self.joins_its_system(pid);
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.healthy = (process.healthy.0 || good, good);
        }
        if good != was {
            self.wake_agent(host);
        }
        self.queue.push(self.now + 500 * MS, Event::Probe(pid));
    }

    fn is_good(&self, process: &Process) -> bool {
        match process.slot.role() {
            "zookeeper" => match &self.ensemble.seen {
                None => {
                    let alive = process.list.keys().filter(|member| self.member_runs(**member)).count();
                    process.join.as_deref() == Some("founder") && alive * 2 > process.list.len()
                }
                Some(_) => self.has_quorum(),
            },
            "kafka" => self.has_quorum(),
            _ => true,
        }
    }

    fn member_runs(&self, member: u32) -> bool {
        self.processes.values().any(|p| p.slot.role() == "zookeeper" && p.member == member && p.asked.is_none() && self.now >= p.ready)
    }

    fn has_quorum(&self) -> bool {
        let Some(seen) = &self.ensemble.seen else { return false };
        seen.voters.keys().filter(|member| self.member_runs(**member)).count() * 2 > seen.voters.len()
    }

    /// Good for the first time: the first founders make the ensemble; a broker registers.
    fn joins_its_system(&mut self, pid: u64) {
        let Some(process) = self.processes.get(&pid) else { return };
        let address = self.hosts.get(&process.host).map_or(String::new(), Host::address);
        match process.slot.role() {
            "zookeeper" if self.ensemble.seen.is_none() => {
                self.ensemble.seen = Some(EnsembleSeen { version: 1, active_version: 1, voters: process.list.clone(), ..EnsembleSeen::default() })
            }
            "kafka" => {
                self.ensemble.brokers.insert(process.member, (address, Time::MAX));
            }
            _ => {}
        }
    }

    /// A leader's look at ZooKeeper and Kafka, and the one `reconfig` that follows (as `zookeeper::round`).
    pub fn look_at_ensemble(&mut self, coordinator: Machine) {
        let quorum = self.has_quorum();
        let now = self.now;
        let live: BTreeSet<u32> = self.processes.values().filter(|p| p.slot.role() == "kafka" && p.healthy.1).map(|p| p.member).collect();
        self.ensemble.brokers.retain(|id, broker| live.contains(id) || broker.1 == Time::MAX || broker.1 > now);
        let wanted = self.brokers_wanted;
        let registered: BTreeMap<u32, String> = self.ensemble.brokers.iter().map(|(id, (address, _))| (*id, address.clone())).collect();
        let missing = if registered.is_empty() { 0 } else { wanted - live.len().min(wanted) };
        let kafka = KafkaSeen { in_sync: registered.keys().copied().collect(), registered, under_replicated: missing, ..KafkaSeen::default() };
        let Some(process) = self.coordinators.get(&coordinator).and_then(|coordinator| coordinator.up.as_ref()) else { return };
        let leader = process.leader.clone();
        if !leader.leads() {
            return;
        }
        let mut seen = leader.world.lock();
        let zookeeper = self.ensemble.seen.clone().filter(|_| quorum);
        let kafka = zookeeper.is_some().then_some(kafka);
        let changed = seen.zookeeper != zookeeper || seen.kafka != kafka;
        (seen.zookeeper, seen.kafka) = (zookeeper, kafka);
        drop(seen);
        if changed {
            leader.wake.notify_one();
        }
        let due = ensemble::next(&leader.state(), &leader.observations(), &"zookeeper".into());
        let (Some(change), true) = (due, quorum) else { return };
        let Some(list) = self.ensemble.seen.as_mut().filter(|seen| seen.version == change.if_version) else { return };
        for old in &change.remove {
            list.voters.remove(old);
        }
        let joins: Vec<u32> = change.add.iter().map(|(member, _)| *member).filter(|member| !list.voters.contains_key(member)).collect();
        list.voters.extend(change.add.iter().cloned());
        list.version += 1;
        list.active_version = list.version;
        let (count, slot) = (list.voters.len(), change.slot.clone());
        if let Some(member) = joins.iter().find(|member| !self.member_runs(**member)) {
            self.violation("a voter that is not in sync", format!("member {member} of {slot} does not run"));
        }
        self.check_voters(count, &slot);
        let note = Command::Note { kind: "ensemble reconfigured".to_owned(), subject: change.slot.to_string(), detail: String::new() };
        self.command(coordinator, "note", note);
    }
}

/// `server.ID=ADDRESS:2888:3888:participant;…` lines.
fn members_of(list: &str) -> BTreeMap<u32, String> {
    let lines = list.lines().filter(|line| line.contains(":participant"));
    let member = |line: &str| {
        let (id, rest) = line.strip_prefix("server.")?.split_once('=')?;
        Some((id.parse().ok()?, rest.split(':').next()?.to_owned()))
    };
    lines.filter_map(member).collect()
}

/// The cluster's name of an agent's slot.
pub fn slot_id(slot: &Slot) -> SlotId {
    SlotId::new(slot.role(), slot.index())
}

impl Process {
    /// Somebody kills it at its deadline.
    pub fn is_guarded(&self) -> bool {
        self.deadline.is_some()
    }
}
