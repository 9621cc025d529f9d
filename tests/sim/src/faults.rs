//! What goes wrong in a run. What and when was decided by the seed beforehand (`scenario`); on whom it falls is decided when it strikes.

use std::collections::BTreeSet;

use vp_cluster::{Command, liveness, state::Lifecycle};

use crate::{
    agent::Host,
    clock::{MOST_PPM, MS, SECOND, Time},
    coordinator::Coordinator,
    network::Machine,
    region::Mood,
    scenario::{Fault, Kind},
    world::{Event, World},
};

/// A fault that goes on.
#[derive(Clone, Debug)]
pub struct Active {
    pub fault: Fault,
    pub machines: Vec<Machine>,
    pub until: Time,
}

impl World {
    /// The cluster has come up: the seed's faults begin. Returns when they stop.
    pub fn schedule_faults(&mut self) -> Time {
        self.checks.gentle = self.plan.kind == Kind::Gentle;
        for (number, (at, _, _)) in self.plan.faults.iter().enumerate() {
            self.queue.push(self.now + at, Event::Fault(number));
        }
        let last = self.plan.faults.iter().map(|(at, _, lasts)| at + lasts).max().unwrap_or(0);
        self.now + last.min(60 * SECOND) + SECOND
    }

    fn agents(&self) -> Vec<Machine> {
        self.hosts.values().filter(|host| host.alive && host.up.is_some() && !host.paused).map(|host| host.number).collect()
    }

    fn some_coordinator(&mut self) -> Option<Machine> {
        let leader = self.leading().filter(|_| self.plan.random.chance(500));
        let up: Vec<Machine> = self.coordinators.iter().filter(|(_, c)| c.up.is_some() && !c.paused).map(|(id, _)| *id).collect();
        leader.or_else(|| self.plan.random.pick(&up).copied())
    }

    pub fn strike(&mut self, number: usize) {
        let Some((_, fault, lasts)) = self.plan.faults.get(number).copied() else { return };
        let agents = self.agents();
        let agent = self.plan.random.pick(&agents).copied();
        let machines: Vec<Machine> = match fault {
            Fault::KillCoordinator { .. } | Fault::PauseCoordinator | Fault::FailDisk => {
                // Beyond a minority nothing is promised but safety; now and then a majority goes.
                let down = self.coordinators.values().filter(|c| c.up.is_none() || c.paused).count();
                let all = self.plan.kind == Kind::Storm && self.plan.random.chance(150);
                if down > 0 && !all { Vec::new() } else { self.some_coordinator().into_iter().collect() }
            }
            Fault::Partition => self.some_machines(),
            Fault::Mass => self.most_agents(),
            Fault::ZoneLost => vec![self.plan.random.range(1, 4) as Machine],
            Fault::SilentRegion | Fault::StaleRegion => vec![0],
            Fault::LateAnswers | Fault::LeaderWithHolder | Fault::Edge => self.holder().into_iter().collect(),
            Fault::Drift | Fault::WallJump if self.plan.random.chance(300) => self.some_coordinator().into_iter().collect(),
            // Faults that fall on the holder of an exclusive slot are those that leases and proofs are for.
            _ => self.holder().filter(|holder| agents.contains(holder) && self.plan.random.chance(300)).or(agent).into_iter().collect(),
        };
        let Some(first) = machines.first().copied() else { return };
        *self.outcome.faults.entry(fault.name()).or_default() += 1;
        self.say(|| format!("FAULT {} {machines:?} for {:.1} s", fault.name(), lasts as f64 / SECOND as f64));
        self.history.fault(fault.name(), &machines, self.now, if fault.is_a_moment() { 0 } else { lasts });
        self.active.insert(number, Active { fault, machines: machines.clone(), until: self.now + lasts });
        self.queue.push(self.now + lasts, Event::Mend(number));
        self.begin(number, fault, first, &machines, lasts);
    }

    fn begin(&mut self, number: usize, fault: Fault, first: Machine, machines: &[Machine], lasts: Time) {
        let cut = number as u32;
        match fault {
            Fault::KillCoordinator { power } => {
                self.stop_coordinator(first, power);
                self.hold_down(first, power);
            }
            Fault::PauseCoordinator => self.with_coordinator(first, |c| c.paused = true),
            Fault::FailDisk => self.with_coordinator(first, |c| c.disk.borrow_mut().fail_next = true),
            Fault::KillAgent => self.stop_agent(first),
            Fault::PauseAgent => self.with_host(first, |host| host.paused = true),
            Fault::FillAgentDisk => self.with_host(first, |host| host.disk.full = true),
            Fault::KillHost => self.host_dies(first),
            Fault::TerminateHost => self.terminate(first),
            Fault::KillRole => {
                let pids: Vec<u64> = self.processes.keys().copied().collect();
                if let Some(pid) = self.plan.random.pick(&pids).copied() {
                    self.process_is_gone(pid, Some(false));
                }
            }
            Fault::Partition => {
                let inside: BTreeSet<Machine> = machines.iter().copied().collect();
                let outside: BTreeSet<Machine> = self.machines().into_iter().filter(|machine| !inside.contains(machine)).collect();
                let ways = self.plan.random.below(4);
                if ways != 1 {
                    self.network.cut(cut, inside.clone(), outside.clone());
                }
                if ways != 0 {
                    self.network.cut(cut + 1000, outside, inside);
                }
            }
            Fault::OneWay => {
                let coordinators: BTreeSet<Machine> = (1..=3).collect();
                let agent = BTreeSet::from([first]);
                let (from, to) = if self.plan.random.chance(500) { (agent, coordinators) } else { (coordinators, agent) };
                self.network.cut(cut, from, to);
            }
            Fault::LateAnswers => {
                // What the leader says is on its way for a while, comes through, and then nothing gets through for long.
                let late = lasts / 3 * self.plan.random.range(10, 48) / 100;
                self.network.cut(cut, (1..=3).collect(), BTreeSet::from([first]));
                self.queue.push(self.now + late, Event::Late(cut, first, false));
                self.queue.push(self.now + late + self.plan.random.range(50, 400) * MS, Event::Late(cut, first, true));
            }
            Fault::LeaderWithHolder => {
                let Some(leader) = self.leading() else { return };
                let inside = BTreeSet::from([first, leader]);
                let outside: BTreeSet<Machine> = self.machines().into_iter().filter(|machine| !inside.contains(machine)).collect();
                self.network.cut(cut, inside.clone(), outside.clone());
                self.network.cut(cut + 1000, outside, inside);
            }
            Fault::Edge => {
                self.cut_off(cut, first);
                // What is proposed at the edge is decided while the first word of the holder arrives.
                if self.plan.random.chance(600) {
                    self.queue.push(self.now + lasts.saturating_sub(300 * MS), Event::Slow(true));
                    self.queue.push(self.now + lasts + 1500 * MS, Event::Slow(false));
                }
            }
            Fault::Drift | Fault::WallJump => self.upset_clock(first, fault),
            Fault::SilentRegion => self.mood = Mood::Silent,
            Fault::StaleRegion => self.mood = Mood::Stale(self.plan.random.range(SECOND, 20 * SECOND)),
            Fault::ZoneLost => self.lose_zone(first, lasts),
            Fault::Mass => {
                self.checks.braked = machines.iter().copied().collect();
                let cut_off: BTreeSet<Machine> = machines.iter().copied().collect();
                let coordinators: BTreeSet<Machine> = (1..=3).collect();
                match self.plan.random.below(3) {
                    0 => machines.iter().for_each(|machine| self.with_host(*machine, |host| host.paused = true)),
                    1 => self.network.cut(cut, cut_off, coordinators),
                    _ => {
                        self.network.cut(cut, cut_off.clone(), coordinators.clone());
                        self.network.cut(cut + 1000, coordinators, cut_off);
                    }
                }
            }
            Fault::Drain => self.drain(first, true),
        }
    }

    fn cut_off(&mut self, cut: u32, machine: Machine) {
        let (one, coordinators): (BTreeSet<Machine>, BTreeSet<Machine>) = (BTreeSet::from([machine]), (1..=3).collect());
        self.network.cut(cut, one.clone(), coordinators.clone());
        self.network.cut(cut + 1000, coordinators, one);
    }

    /// The middle and the last part of `LateAnswers`.
    pub fn late(&mut self, cut: u32, machine: Machine, off: bool) {
        if !self.active.contains_key(&(cut as usize)) {
            return;
        }
        self.network.mend(cut);
        if off {
            self.cut_off(cut, machine);
        }
    }

    /// The instance on which the streaming driver runs.
    fn holder(&self) -> Option<Machine> {
        self.processes.values().find(|process| process.slot.role() == "stream" && process.asked.is_none()).map(|process| process.host)
    }

    pub fn mend(&mut self, number: usize) {
        let Some(active) = self.active.remove(&number) else { return };
        let cut = number as u32;
        let Some(first) = active.machines.first().copied() else { return };
        self.say(|| format!("MENDED {} {:?}", active.fault.name(), active.machines));
        match active.fault {
            Fault::KillCoordinator { .. } => {
                self.hold_down(first, false);
                self.start_coordinator(first);
            }
            Fault::PauseCoordinator => self.resume_coordinator(first),
            Fault::KillAgent => self.start_agent(first),
            Fault::PauseAgent => self.resume_agent(first),
            Fault::FillAgentDisk => self.with_host(first, |host| host.disk.full = false),
            Fault::SilentRegion | Fault::StaleRegion => self.mood = Mood::Well,
            Fault::ZoneLost => {
                self.zone_out = None;
                self.hold_down(first, false);
                self.start_coordinator(first);
                self.queue.push(self.now, Event::Boot);
            }
            Fault::Mass => {
                active.machines.iter().for_each(|machine| self.resume_agent(*machine));
                // Their first words are on the way; the brake's promise holds until they had time to arrive.
            }
            Fault::Drain => self.drain(first, false),
            _ => {}
        }
        self.network.mend(cut);
        self.network.mend(cut + 1000);
    }

    /// Everything that goes on stops; what is down comes up.
    pub fn stop_faults(&mut self) {
        let numbers: Vec<usize> = self.active.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.mend(number));
        self.checks.braked.clear();
        self.network.heal();
        self.mood = Mood::Well;
        self.zone_out = None;
        for id in 1..=3 {
            self.hold_down(id, false);
            self.resume_coordinator(id);
            self.start_coordinator(id);
        }
        let hosts: Vec<Machine> = self.hosts.keys().copied().collect();
        for machine in hosts {
            self.resume_agent(machine);
            self.start_agent(machine);
            self.drain(machine, false);
        }
        self.queue.push(self.now, Event::Boot);
        self.queue.push(self.now + 30 * SECOND, Event::HealthCheck);
    }

    fn machines(&self) -> BTreeSet<Machine> {
        (1..=3).chain(self.hosts.keys().copied()).collect()
    }

    /// A part of everything, coordinators and instances.
    fn some_machines(&mut self) -> Vec<Machine> {
        let all: Vec<Machine> = self.machines().into_iter().collect();
        let share = *self.plan.random.pick(&[100, 250, 500]).unwrap_or(&250);
        all.into_iter().filter(|_| self.plan.random.chance(share)).collect()
    }

    /// So many, and of several zones, that the brake must close.
    fn most_agents(&mut self) -> Vec<Machine> {
        let mut agents = self.agents();
        let of = agents.len();
        let least = (of * liveness::BRAKE_PERCENT / 100 + 1).max(liveness::BRAKE_NODES);
        while agents.len() > least && self.plan.random.chance(400) {
            let one = self.plan.random.below(agents.len() as u64) as usize;
            agents.remove(one);
        }
        agents
    }

    fn with_coordinator(&mut self, id: Machine, change: impl FnOnce(&mut Coordinator)) {
        if let Some(coordinator) = self.coordinators.get_mut(&id) {
            change(coordinator);
        }
    }

    fn with_host(&mut self, machine: Machine, change: impl FnOnce(&mut Host)) {
        if let Some(host) = self.hosts.get_mut(&machine) {
            change(host);
        }
    }

    fn hold_down(&mut self, id: Machine, held: bool) {
        self.with_coordinator(id, |coordinator| coordinator.held_down = held);
    }

    fn resume_coordinator(&mut self, id: Machine) {
        let Some(coordinator) = self.coordinators.get_mut(&id).filter(|c| c.paused) else { return };
        coordinator.paused = false;
        let waiting = std::mem::take(&mut coordinator.backlog);
        waiting.into_iter().for_each(|event| self.queue.push(self.now, event));
    }

    fn resume_agent(&mut self, machine: Machine) {
        let Some(host) = self.hosts.get_mut(&machine).filter(|host| host.paused) else { return };
        host.paused = false;
        let waiting = std::mem::take(&mut host.backlog);
        waiting.into_iter().for_each(|event| self.queue.push(self.now, event));
    }

    fn upset_clock(&mut self, machine: Machine, fault: Fault) {
        let ppm = self.plan.random.range(0, 2 * MOST_PPM as u64) as i64 - MOST_PPM;
        let jump = self.plan.random.range(0, 7_200_000) as i64 - 3_600_000;
        let now = self.now;
        let clock = self.coordinators.get_mut(&machine).map(|c| &mut c.clock).or_else(|| self.hosts.get_mut(&machine).map(|host| &mut host.clock));
        let Some(clock) = clock else { return };
        if fault == Fault::Drift { clock.drift(now, ppm) } else { clock.jump(jump) }
    }

    /// Every machine of the zone dies, its coordinator too.
    fn lose_zone(&mut self, number: Machine, lasts: Time) {
        let zone = char::from(b'0' + number as u8);
        self.zone_out = Some(zone);
        self.stop_coordinator(number, true);
        self.hold_down(number, true);
        let inside: Vec<Machine> = self.hosts.values().filter(|host| host.zone == zone).map(|host| host.number).collect();
        inside.into_iter().for_each(|machine| self.host_dies(machine));
        let _ = lasts;
    }

    fn drain(&mut self, machine: Machine, draining: bool) {
        let Some(host) = self.hosts.get(&machine) else { return };
        let node = vp_cluster::NodeId(host.id.clone());
        let state = self.book.lock().ok().and_then(|book| book.latest().cloned());
        let lifecycle = state.and_then(|state| state.nodes.get(&node).map(|node| node.lifecycle));
        let matters = match lifecycle {
            Some(Lifecycle::Ready) => draining,
            Some(Lifecycle::Draining) => !draining,
            _ => false,
        };
        if let (true, Some(leader)) = (matters, self.leading()) {
            self.command(leader, "drain", Command::SetDraining { node, draining });
        }
    }
}
