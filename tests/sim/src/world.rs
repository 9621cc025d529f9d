//! The world of one seed: everything there is in it, and the loop that lets the next thing happen. All chance comes from the seed, all order from the queue.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex},
};

use raft::eraftpb::Message;
use vp_cluster::Command;
use vp_coordinator::raft::Config;

use crate::{
    agent::Host,
    check::{Book, Checks},
    clock::{MOST_PPM, MS, MachineClock, SECOND, Time},
    coordinator::Coordinator,
    disk::Disk,
    faults::Active,
    network::{Machine, Network},
    picture::History,
    process::{Ensemble, Exit, Process},
    queue::Queue,
    random::{Random, mix},
    region::{self, Call, Mood},
    scenario::Plan,
    stream::{Down, Stream, StreamId},
    wanted,
};

/// What can happen. Events of a process carry its life, so that those of an earlier one are void.
#[derive(Debug)]
pub enum Event {
    Tick(Machine, u32),
    Look(Machine, u32),
    Pulse(Machine, u32),
    Watch(Machine, u32),
    Ensemble(Machine, u32),
    Raft(Box<Message>),
    PumpUp(StreamId),
    PumpDown(StreamId),
    AgentTurn(Machine, u32, u64),
    AgentTalk(Machine, u32, u64),
    Guard(u64),
    Probe(u64),
    ProcessEnds(u64),
    Call(u64, Machine, u32),
    Detached(String, Machine),
    Boot,
    HostRuns(Machine),
    HealthCheck,
    HostDies(Machine),
    Terminated(Machine),
    StartCoordinator(Machine, u32),
    StartAgent(Machine),
    Client,
    Fault(usize),
    Late(u32, Machine, bool),
    Slow(bool),
    Mend(usize),
}

/// How a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Until everything wanted is healthy for the first time.
    Rising,
    /// Faults until this time.
    Faults(Time),
    /// No more faults; until everything wanted is healthy again.
    Healing,
}

/// How long the cluster may take to come up, and to heal once all faults have stopped.
const RISE_WITHIN: Time = 90 * SECOND;
const HEAL_WITHIN: Time = 180 * SECOND;

/// What a run was.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub seed: u64,
    pub simulated: Time,
    pub events: u64,
    pub hash: u64,
    pub commands: u64,
    pub acknowledged: u64,
    pub elections: u64,
    pub moves: u64,
    pub guard_kills: u64,
    pub faults: BTreeMap<&'static str, u64>,
    /// What was broken first, and how.
    pub violation: Option<(&'static str, String, Time)>,
}

pub struct World {
    pub now: Time,
    pub queue: Queue<Event>,
    pub chance: Random,
    pub plan: Plan,
    pub lease_ms: u64,
    pub raft: Config,
    pub coordinators: BTreeMap<Machine, Coordinator>,
    pub hosts: BTreeMap<Machine, Host>,
    pub hosts_made: u32,
    pub nodes_wanted: usize,
    pub brokers_wanted: usize,
    pub network: Network,
    pub streams: BTreeMap<StreamId, Stream>,
    pub streams_made: StreamId,
    pub outgoing: Vec<(StreamId, Down)>,
    pub processes: BTreeMap<u64, Process>,
    pub processes_made: u64,
    pub exits: BTreeMap<Machine, Vec<Exit>>,
    pub ensemble: Ensemble,
    pub volumes: BTreeMap<String, region::Disk>,
    pub in_flight: BTreeMap<u64, Call>,
    pub calls_made: u64,
    pub mood: Mood,
    pub call_failures_permille: u64,
    pub zone_out: Option<char>,
    pub active: BTreeMap<usize, Active>,
    pub book: Arc<Mutex<Book>>,
    pub checks: Checks,
    pub history: History,
    pub outcome: Outcome,
    pub trace: Option<Vec<String>>,
    pub clients: u64,
    stage: Stage,
    stage_since: Time,
    next_check: Time,
}

impl World {
    pub fn new(seed: u64, watch: Watch) -> Self {
        let chance = Random::new(seed);
        let plan = Plan::of(&mut chance.fork(1));
        let mut clocks = chance.fork(2);
        let mut coordinators = BTreeMap::new();
        for id in 1..=3 {
            let ppm = clocks.range(0, 2 * MOST_PPM as u64) as i64 - MOST_PPM;
            let coordinator = Coordinator {
                id,
                zone: char::from(b'0' + id as u8),
                disk: Rc::new(RefCell::new(Disk::default())),
                clock: MachineClock::new(0, clocks.below(1_000_000) * 1_000_000, ppm),
                random: clocks.fork(id),
                life: 0,
                up: None,
                paused: false,
                backlog: Vec::new(),
                held_down: false,
            };
            coordinators.insert(id as Machine, coordinator);
        }
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            chance: chance.fork(3),
            lease_ms: plan.lease_ms,
            raft: plan.raft.clone(),
            nodes_wanted: plan.nodes,
            plan,
            coordinators,
            hosts: BTreeMap::new(),
            hosts_made: 0,
            brokers_wanted: 3,
            network: Network::new(chance.fork(4)),
            streams: BTreeMap::new(),
            streams_made: 0,
            outgoing: Vec::new(),
            processes: BTreeMap::new(),
            processes_made: 0,
            exits: BTreeMap::new(),
            ensemble: Ensemble::default(),
            volumes: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            calls_made: 0,
            mood: Mood::Well,
            call_failures_permille: 0,
            zone_out: None,
            active: BTreeMap::new(),
            book: Arc::default(),
            checks: Checks::default(),
            history: History::new(watch == Watch::Everything),
            outcome: Outcome { seed, ..Outcome::default() },
            trace: (watch == Watch::Everything).then(Vec::new),
            clients: 0,
            stage: Stage::Rising,
            stage_since: 0,
            next_check: SECOND,
        };
        for id in 1..=3 {
            world.queue.push(world.chance.range(0, 2 * SECOND), Event::StartCoordinator(id, 0));
        }
        world.queue.push(SECOND, Event::Boot);
        world.queue.push(100 * MS, Event::Client);
        world
    }

    /// Runs to the end of the seed, or to the first broken rule.
    pub fn run(mut self) -> (Outcome, Option<Vec<String>>, History) {
        while self.outcome.violation.is_none() && !self.is_over() {
            let Some((at, event)) = self.queue.pop() else { break };
            self.now = self.now.max(at);
            self.note(&event);
            self.happen(event);
        }
        if self.outcome.violation.is_none() {
            self.check_end();
        }
        self.outcome.simulated = self.now;
        self.outcome.events = self.queue.made();
        let (commands, last) = self.book.lock().map(|book| (book.commands, book.digest())).unwrap_or_default();
        self.outcome.commands = commands;
        self.outcome.hash = mix(self.outcome.hash ^ last);
        self.history.end(self.now);
        (self.outcome, self.trace, self.history)
    }

    /// The hash over everything that happened, and when.
    fn note(&mut self, event: &Event) {
        let what = match event {
            Event::Raft(message) => mix(message.to ^ message.from << 8 ^ message.index << 16 ^ message.term << 40 ^ (message.msg_type as u64) << 56),
            Event::Tick(id, life) | Event::Look(id, life) | Event::Pulse(id, life) | Event::Watch(id, life) | Event::Ensemble(id, life) => {
                u64::from(*id) << 32 | u64::from(*life)
            }
            Event::PumpUp(id) | Event::PumpDown(id) | Event::Guard(id) | Event::Probe(id) | Event::ProcessEnds(id) => *id,
            Event::AgentTurn(id, ..) | Event::AgentTalk(id, ..) => u64::from(*id),
            _ => 7,
        };
        self.outcome.hash = mix(self.outcome.hash ^ self.now.rotate_left(17) ^ what);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(..) | Event::Look(..) | Event::Pulse(..) | Event::Watch(..) | Event::Ensemble(..) | Event::Raft(_) => self.coordinator_event(event),
            Event::PumpUp(stream) => self.pump_up(stream),
            Event::PumpDown(stream) => self.pump_down(stream),
            Event::AgentTurn(..) | Event::AgentTalk(..) => self.agent_event(event),
            Event::Guard(pid) => self.guard(pid),
            Event::Probe(pid) => self.probe(pid),
            Event::ProcessEnds(pid) => {
                let host = self.processes.get(&pid).map(|process| process.host);
                self.process_is_gone(pid, None);
                host.into_iter().for_each(|host| self.wake_agent(host));
            }
            Event::Call(number, coordinator, life) => self.region_answers(number, coordinator, life),
            Event::Detached(volume, machine) => self.detached(&volume, machine),
            Event::Boot => self.boot(),
            Event::HostRuns(machine) => self.host_runs(machine),
            Event::HealthCheck => self.check_health(),
            Event::HostDies(machine) => self.host_dies(machine),
            Event::Terminated(machine) => self.terminated(machine),
            Event::StartCoordinator(id, life) => {
                if self.coordinators.get(&id).is_some_and(|coordinator| coordinator.life == life) {
                    self.start_coordinator(id);
                }
            }
            Event::StartAgent(machine) => self.start_agent(machine),
            Event::Client => self.client(),
            Event::Fault(number) => self.strike(number),
            Event::Slow(slow) => self.network.slow_coordinators(slow.then_some((50 * MS, 450 * MS))),
            Event::Late(cut, machine, off) => self.late(cut, machine, off),
            Event::Mend(number) => self.mend(number),
        }
        if self.now >= self.next_check {
            self.next_check = self.now + SECOND;
            self.check_now();
        }
    }

    /// Goes from stage to stage; true at the end.
    fn is_over(&mut self) -> bool {
        let passed = self.now - self.stage_since;
        match self.stage {
            Stage::Rising if self.checks.well_since.is_some() => {
                self.say(|| "everything is healthy".to_owned());
                let until = self.schedule_faults();
                self.enter(Stage::Faults(until));
            }
            Stage::Rising if passed > RISE_WITHIN => self.violation("the cluster does not come up", self.unwell()),
            Stage::Faults(until) if self.now >= until => {
                self.say(|| "faults stop".to_owned());
                self.stop_faults();
                self.enter(Stage::Healing);
            }
            Stage::Healing if passed > 3 * SECOND && self.checks.well_since.is_some_and(|since| self.now - since > 2 * SECOND) => return true,
            Stage::Healing if passed > HEAL_WITHIN => self.violation("the cluster does not heal", self.unwell()),
            _ => {}
        }
        false
    }

    fn enter(&mut self, stage: Stage) {
        (self.stage, self.stage_since) = (stage, self.now);
        self.checks.well_since = None;
    }

    pub fn is_rising(&self) -> bool {
        self.stage == Stage::Rising
    }

    /// The first broken rule ends the run.
    pub fn violation(&mut self, rule: &'static str, how: String) {
        self.say(|| format!("VIOLATION {rule}: {how}"));
        let now = self.now;
        self.outcome.violation.get_or_insert((rule, how, now));
    }

    pub fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12.6} {}", now as f64 / SECOND as f64, line()));
        }
    }

    /// A client writes or reads, at any coordinator; the first things written are what is wanted of the cluster.
    fn client(&mut self) {
        let wait = self.chance.range(200 * MS, 1500 * MS);
        self.queue.push(self.now + wait, Event::Client);
        let target = match self.leading() {
            Some(leader) if self.chance.chance(900) => leader,
            _ => self.chance.range(1, 4) as Machine,
        };
        if self.is_rising() && self.book.lock().is_ok_and(|book| book.latest().is_none_or(|state| state.spec.roles.is_empty())) {
            self.command(target, "spec", Command::SetSpec { spec: wanted::spec(&self.plan) });
            return;
        }
        self.client_asks(target);
    }
}

/// How much of a run is kept for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    Outcome,
    Everything,
}

/// Runs one seed.
pub fn run(seed: u64, watch: Watch) -> (Outcome, Option<Vec<String>>, History) {
    World::new(seed, watch).run()
}
