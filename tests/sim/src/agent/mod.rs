//! An instance and the agent on it: the shipped reconcile, leases, generations, translation and reports, over fake processes, a fake disk and fake streams.
//! What the daemon's two threads do around them (`agent::control`, `agent::session`) is done here in events.

mod session;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use nix::time::ClockId;
use prost::Message as _;
use vp_agent::{
    catalogue::Fencing,
    clock::{self, Instant},
    generations::Memory,
    observations::{Claim, Facts, claim, observation, steady_after},
    probes::Health,
    reconcile::{self, Action, Assignment, Observed, Waiting, reconcile},
    shared::{Report, Shared},
    slot::Slot,
    supervisor::Status,
    translate::{Wanted, wanted},
};
use vp_cloud::ec2::{Instance, InstanceState};
use vp_proto::v1;

use self::session::Session;
use crate::{
    clock::{MOST_PPM, MS, MachineClock, SECOND, Time},
    network::Machine,
    process::Order,
    random::Random,
    stream::Up,
    world::{Event, World},
};

/// Longest time between two looks, and the one while something is under way (as `agent::control`).
const IDLE: Time = SECOND;
const RESTLESS: Time = 100 * MS;
/// As most shipped roles have it.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// An instance.
pub struct Host {
    pub number: Machine,
    pub id: String,
    pub zone: char,
    /// Its states as EC2 shows them, with their times.
    pub ec2: Vec<(Time, InstanceState)>,
    pub alive: bool,
    pub clock: MachineClock,
    pub random: Random,
    pub disk: AgentDisk,
    pub up: Option<Box<Agent>>,
    pub life: u32,
    pub paused: bool,
    pub backlog: Vec<Event>,
}

/// What survives the agent.
#[derive(Clone, Default)]
pub struct AgentDisk {
    generations: Option<Vec<u8>>,
    desired: Option<Vec<u8>>,
    pub full: bool,
}

/// A running agent.
pub struct Agent {
    shared: Shared,
    memory: Memory,
    wanted: Option<Wanted>,
    taken: (u64, u64),
    last: Option<v1::Desired>,
    /// When the disk refused to keep something, last.
    refused: Option<Time>,
    locals: BTreeMap<Slot, Local>,
    sequence: u64,
    session: Session,
    target: usize,
    hint: Option<Machine>,
    turn: u64,
    talk: u64,
}

#[derive(Default)]
struct Local {
    generation: u64,
    crashed: Option<(Instant, u32)>,
    starts: u32,
    waiting: Option<Waiting>,
}

impl Host {
    pub fn new(number: Machine, zone: char, now: Time, chance: &mut Random) -> Self {
        let mut random = chance.fork(u64::from(number));
        let ppm = random.range(0, 2 * MOST_PPM as u64) as i64 - MOST_PPM;
        let clock = MachineClock::new(now, random.below(1_000_000) * 1_000_000, ppm);
        Self {
            number,
            id: format!("i-{number}"),
            zone,
            ec2: vec![(now, InstanceState::Pending)],
            alive: false,
            clock,
            random,
            disk: AgentDisk::default(),
            up: None,
            life: 0,
            paused: false,
            backlog: Vec::new(),
        }
    }

    pub fn state(&self) -> InstanceState {
        self.ec2.last().map_or(InstanceState::Unknown, |(_, state)| *state)
    }

    pub fn zone_name(&self) -> String {
        format!("z{}", self.zone)
    }

    pub fn address(&self) -> String {
        format!("10.0.{}.{}", self.zone, self.number - 80)
    }

    /// As EC2 would have described it at a time; none before it was there.
    pub fn described(&self, at: Time) -> Option<Instance> {
        let (_, state) = self.ec2.iter().rev().find(|(since, _)| *since <= at)?;
        let address = Some(self.address());
        Some(Instance { id: self.id.clone(), state: *state, address, zone: self.zone_name(), kind: "sim".to_owned(), tags: BTreeMap::new(), group: None })
    }

    /// The clock that the agent's leases run on.
    pub fn instant(&self, now: Time) -> Instant {
        Instant(if clock::lease_clock() == ClockId::CLOCK_BOOTTIME { self.clock.boot_ns(now) } else { self.clock.wall_ns(now) })
    }
}

impl World {
    pub fn start_agent(&mut self, machine: Machine) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&machine).filter(|host| host.alive && host.up.is_none()) else { return };
        host.life += 1;
        let memory = match host.disk.generations.as_deref().map(Memory::decode) {
            Some(Ok(memory)) => memory,
            _ => Memory::default(),
        };
        let mut agent = Box::new(Agent {
            shared: Shared::new(),
            memory,
            wanted: None,
            taken: (0, 0),
            last: None,
            refused: None,
            locals: BTreeMap::new(),
            sequence: 0,
            session: Session::None,
            target: host.random.below(3) as usize,
            hint: None,
            turn: 0,
            talk: 0,
        });
        let kept = host.disk.desired.as_deref().and_then(|bytes| v1::Desired::decode(bytes).ok());
        if let Some(kept) = kept {
            agent.consider(&kept, &mut host.disk, true);
        }
        host.up = Some(agent);
        let life = host.life;
        self.history.agent(machine, true, now);
        self.say(|| format!("agent {machine} starts"));
        self.queue.push(now, Event::AgentTurn(machine, life, 1));
        self.queue.push(now, Event::AgentTalk(machine, life, 1));
        if let Some(agent) = self.hosts.get_mut(&machine).and_then(|host| host.up.as_mut()) {
            (agent.turn, agent.talk) = (1, 1);
        }
    }

    /// The agent's process ends; roles and their guards go on.
    pub fn stop_agent(&mut self, machine: Machine) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&machine) else { return };
        let Some(agent) = host.up.take() else { return };
        (host.paused, host.life) = (false, host.life + 1);
        host.backlog.clear();
        let stream = match agent.session {
            Session::None => None,
            Session::Calling { stream } | Session::Talking { stream, .. } => Some(stream),
        };
        self.history.agent(machine, false, now);
        self.say(|| format!("agent {machine} ends"));
        if let Some(stream) = stream {
            self.send_up(stream, Up::Closed);
        }
    }

    /// Something happened that the agent may wait for.
    pub fn wake_agent(&mut self, machine: Machine) {
        let Some(host) = self.hosts.get_mut(&machine) else { return };
        let life = host.life;
        if let Some(agent) = host.up.as_mut() {
            agent.turn += 1;
            self.queue.push(self.now + MS, Event::AgentTurn(machine, life, agent.turn));
        }
    }

    /// The events of one agent; those of a stopped one wait.
    pub fn agent_event(&mut self, event: Event) {
        let (Event::AgentTurn(machine, life, token) | Event::AgentTalk(machine, life, token)) = event else { return };
        let Some(host) = self.hosts.get_mut(&machine).filter(|host| host.life == life) else { return };
        if host.paused {
            host.backlog.push(event);
            return;
        }
        let Some(agent) = host.up.as_ref() else { return };
        match event {
            Event::AgentTurn(..) if agent.turn == token => self.agent_turn(machine),
            Event::AgentTalk(..) if agent.talk == token => self.agent_talks(machine),
            _ => {}
        }
    }

    /// One look of the control thread and the steps it asks for.
    fn agent_turn(&mut self, machine: Machine) {
        let Some(mut host) = self.hosts.remove(&machine) else { return };
        let Some(mut agent) = host.up.take() else {
            self.hosts.insert(machine, host);
            return;
        };
        let now = host.instant(self.now);
        let newest = agent.shared.desired.borrow().clone();
        // As `agent::disk`: what the disk refused is tried again a second later, and the agent goes on as it is.
        let may_write = agent.refused.is_none_or(|at| self.now >= at + SECOND);
        let mut well = !may_write || newest.is_none_or(|newest| agent.consider(&newest, &mut host.disk, false));
        let nothing = Wanted::default();
        let wanted = agent.wanted.take();
        let words = wanted.as_ref().unwrap_or(&nothing);
        let observed = self.observe(&mut agent, &host, words);
        let mut steps = if wanted.is_some() { reconcile(&words.assignments, &observed, now) } else { Vec::new() };
        steps.retain(|step| may_write || !matches!(step.action, Action::Release { .. }));
        let mut busy = observed.values().any(|seen| matches!(seen.process, reconcile::Process::Stopping { .. }));
        for step in &steps {
            busy |= !matches!(step.action, Action::Wait(_));
            well &= self.perform(&mut agent, &mut host, &step.slot, &step.action, words, now);
        }
        busy |= agent.locals.values().any(|local| matches!(local.waiting, Some(Waiting::Volume(_) | Waiting::Backoff(_))));
        let report = self.report(&mut agent, &host, words, now);
        let said = |report: &Report| report.slots.iter().map(|o| (o.slot.clone().map(|s| (s.role, s.index)), o.generation, o.phase)).collect::<Vec<_>>();
        let news = said(&report) != said(&agent.shared.report());
        *agent.shared.report() = report;
        agent.wanted = wanted;
        if may_write {
            agent.refused = (!well).then_some(self.now);
        }
        agent.turn += 1;
        let (life, token) = (host.life, agent.turn);
        host.up = Some(agent);
        self.hosts.insert(machine, host);
        self.queue.push(self.now + if busy { RESTLESS } else { IDLE }, Event::AgentTurn(machine, life, token));
        if !well {
            self.say(|| format!("agent {machine} cannot keep its state"));
        }
        if news {
            self.agent_tells_news(machine);
        }
    }

    /// As `Executor::observe`, over the world's processes.
    fn observe(&mut self, agent: &mut Agent, host: &Host, wanted: &Wanted) -> BTreeMap<Slot, Observed> {
        let slots: BTreeSet<Slot> = wanted.assignments.keys().cloned().chain(self.slots_running(host.number)).collect();
        for exit in self.exits_of(host.number) {
            let local = agent.locals.entry(exit.slot.clone()).or_default();
            if !exit.lease_over {
                let before = local.crashed.filter(|_| exit.ran < steady_after(START_TIMEOUT)).map_or(0, |(_, crashes)| crashes);
                local.crashed = Some((host.instant(exit.at), before.saturating_add(1)));
            }
        }
        let mut observed = BTreeMap::new();
        for slot in slots {
            let assignment = wanted.assignments.get(&slot);
            let local = agent.locals.entry(slot.clone()).or_default();
            if let Some(assignment) = assignment.filter(|a| a.generation != local.generation) {
                *local = Local { generation: assignment.generation, ..Local::default() };
            }
            let known = agent.memory.known(&slot);
            let volume = assignment.and_then(|a| a.volume.as_deref());
            let seen = Observed {
                process: self.status(host, &slot).process,
                accepted: known.accepted,
                released: known.released,
                lease: assignment.and_then(|a| agent.shared.leases().deadline(&slot, a.generation)),
                volume_there: volume.is_some_and(|volume| self.volumes.get(volume).is_some_and(|disk| disk.at == Some(host.number) && !disk.leaving)),
                known_role: true,
                crashed: local.crashed,
                stop_timeout: Duration::from_secs(2),
            };
            observed.insert(slot, seen);
        }
        observed
    }

    fn status(&self, host: &Host, slot: &Slot) -> Status {
        match self.process_of(host.number, slot) {
            None => Status::default(),
            Some((pid, process)) => Status {
                process: match process.asked {
                    None => reconcile::Process::Running { generation: process.generation },
                    Some(since) => reconcile::Process::Stopping { generation: process.generation, since: host.instant(since) },
                },
                pid: i32::try_from(pid).unwrap_or(i32::MAX),
                started: host.instant(process.started),
            },
        }
    }

    /// Takes one step; false when the disk failed.
    fn perform(&mut self, agent: &mut Agent, host: &mut Host, slot: &Slot, action: &Action, wanted: &Wanted, now: Instant) -> bool {
        let local = agent.locals.entry(slot.clone()).or_default();
        local.waiting = match action {
            Action::Wait(waiting) => Some(waiting.clone()),
            _ => None,
        };
        match action {
            Action::Wait(_) => {}
            Action::Start { generation, deadline } => {
                local.starts += 1;
                let assignment = wanted.assignments.get(slot);
                let (member, params) = wanted.details.get(slot).cloned().unwrap_or_default();
                let volume = assignment.and_then(|a| a.volume.clone());
                let fencing = assignment.map_or(Fencing::Exclusive, |a| a.fencing);
                self.start_process(host, Order { slot: slot.clone(), generation: *generation, fencing, deadline: *deadline, volume, member, params });
            }
            Action::Stop => self.ask_to_end(host.number, slot),
            Action::Kill => {
                let over = wanted.assignments.get(slot).is_some_and(|a| a.fencing == Fencing::Exclusive && !a.stop);
                self.kill_process_of(host.number, slot, over);
            }
            Action::Release { generation } => {
                let next = agent.memory.releasing(slot, *generation);
                if !keep(&mut host.disk, &next) {
                    return false;
                }
                agent.memory = next;
            }
        }
        let _ = now;
        true
    }

    /// As `Executor::report`.
    fn report(&mut self, agent: &mut Agent, host: &Host, wanted: &Wanted, now: Instant) -> Report {
        let running = self.slots_running(host.number);
        agent.locals.retain(|slot, _| wanted.assignments.contains_key(slot) || running.contains(slot));
        let mut report = Report::default();
        for (slot, local) in &agent.locals {
            let assignment = wanted.assignments.get(slot);
            let known = agent.memory.known(slot);
            let status = self.status(host, slot);
            let claimed = assignment.and_then(|assignment| claim(assignment, known));
            let well = self.process_of(host.number, slot).map(|(_, process)| process.healthy);
            let facts = Facts {
                slot,
                generation: assignment.map_or(known.accepted, |a| a.generation),
                released: matches!(claimed, Some(Claim::GivenBack { .. })),
                status,
                health: well.map(|well| Health { ever_good: well.0, failures: if well.1 { 0 } else { 2 }, ..Health::default() }),
                waiting: local.waiting.as_ref(),
                failure: "",
                restarts: local.starts.saturating_sub(1),
                ends: local.crashed.map_or(0, |(_, ends)| ends),
                start_timeout: START_TIMEOUT,
            };
            let said = observation(&facts, now);
            match claimed {
                Some(Claim::GivenBack { generation }) => report.released.push(slot.at(generation)),
                Some(Claim::Holds) => {
                    report.pairs.insert((slot.clone(), said.generation));
                }
                None => {}
            }
            report.slots.push(said);
        }
        report
    }
}

impl Agent {
    /// As `agent::control`: the newest desired set, unless it is the one taken last or older. False when the disk failed.
    fn consider(&mut self, newest: &v1::Desired, disk: &mut AgentDisk, kept: bool) -> bool {
        let order = (newest.term, newest.revision);
        if order < self.taken || (order == self.taken && self.last.as_ref() == Some(newest)) {
            return true;
        }
        if !kept {
            if disk.full {
                return false;
            }
            disk.desired = Some(newest.encode_to_vec());
        }
        let roles = [];
        let words = wanted(newest, roles.iter());
        let named: Vec<(Slot, u64)> = words.assignments.iter().map(|(slot, a): (&Slot, &Assignment)| (slot.clone(), a.generation)).collect();
        let Some(next) = self.memory.taking(newest.term, newest.revision, &named) else { return true };
        if next != self.memory && !keep(disk, &next) {
            return false;
        }
        self.memory = next;
        (self.taken, self.wanted, self.last) = (order, Some(words), Some(newest.clone()));
        true
    }
}

fn keep(disk: &mut AgentDisk, memory: &Memory) -> bool {
    if disk.full {
        return false;
    }
    disk.generations = memory.encode().ok();
    true
}
