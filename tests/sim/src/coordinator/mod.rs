//! A coordinator: the shipped raft task, leader memory, control loop, cloud watch and agents' conversations over a fake disk, network, clock and region.
//! What the daemon leaves to threads and the runtime is here: when a tick passes, and which future is polled.

mod serving;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use raft::eraftpb::Message;
use tokio::sync::{Notify, watch};
use vp_cluster::{
    ClusterState, Command, MemberId, Zone,
    coordinators::{self, CoordinatorSlot},
    version,
};
use vp_coordinator::{
    certificates::Certificates,
    cloud_watch::{self, CloudWatch},
    control::{self, Control, Findings},
    leader::{CommandError, Leader},
    machine::ClusterMachine,
    raft::{Config, Node, NodeError, Outbox, RaftHandle, Task},
    registry::Registry,
    settings::{self, Settings},
    world::World as LeaderWorld,
};

use self::serving::Served;
use crate::{
    check::Watched,
    clock::{MS, MachineClock, Time},
    disk::{Disk, SimStore},
    fiber::{Fiber, advance, rang},
    network::Machine,
    random::Random,
    region::{Calls, SimRegion},
    stream::{Down, StreamId},
    world::{Event, World},
};

/// Time between two looks at ZooKeeper (as `zookeeper::ROUND`).
const ENSEMBLE_ROUND: Time = 500 * MS;

/// A coordinator's machine; the process on it comes and goes.
pub struct Coordinator {
    pub id: u64,
    pub zone: char,
    pub disk: Rc<RefCell<Disk>>,
    pub clock: MachineClock,
    pub random: Random,
    /// Counts processes.
    pub life: u32,
    pub up: Option<Box<Process>>,
    /// Stopped by a signal; what comes in waits.
    pub paused: bool,
    pub backlog: Vec<Event>,
    /// Its machine may not start it.
    pub held_down: bool,
}

/// A running coordinator.
pub struct Process {
    task: Task<SimStore, Watched, SharedOutbox>,
    pub handle: RaftHandle,
    pub leader: Arc<Leader>,
    control: Arc<Control>,
    looking: Option<Fiber<control::Memory>>,
    look_due: bool,
    looked: control::Memory,
    watch: Arc<CloudWatch>,
    watching: Option<Fiber<cloud_watch::Memory>>,
    memory: Option<cloud_watch::Memory>,
    streams: BTreeMap<StreamId, Served>,
    pub clients: Vec<(u64, Fiber<Result<u64, CommandError>>)>,
    pub reads: Vec<(u64, Fiber<bool>)>,
    outbox: Arc<Mutex<Vec<Message>>>,
    calls: Calls,
    now_ms: Arc<AtomicU64>,
    wall_ms: Arc<AtomicU64>,
    /// The election timeout now in force, ticks.
    timeout: usize,
    pub commanded: Vec<(&'static str, Fiber<Result<u64, CommandError>>)>,
}

#[derive(Clone, Default)]
pub struct SharedOutbox(Arc<Mutex<Vec<Message>>>);

impl Outbox for SharedOutbox {
    fn send(&mut self, message: Message) -> bool {
        if let Ok(mut queued) = self.0.lock() {
            queued.push(message);
        }
        true
    }
}

fn settings(id: u64, lease_ms: u64) -> Settings {
    let list: Vec<String> = (1..=3).map(|id| format!("  - {{id: {id}, address: 10.0.{id}.10, zone: z{id}, group: c{id}}}")).collect();
    let text = format!(
        "cluster: sim\nrun: coordinator\ngroup: sim-nodes\ncoordinators:\n{}\ncoordinator: {id}\nlease_ms: {lease_ms}\naws: {{region: sim}}\n\
         buckets: {{uploads: u, results: r, cluster: c}}\nidentity_public_key: none\n\
         trust: {{root_sha256: {}, sealing_key: {}=}}\nspec: {{roles: {{}}}}\n",
        list.join("\n"),
        "0".repeat(64),
        "A".repeat(43)
    );
    let user_data = settings::parse(&text).unwrap_or_else(|error| panic!("the simulator's own user data: {error}"));
    let me = user_data.coordinators[id as usize - 1].clone();
    Settings {
        user_data,
        me,
        instance_id: format!("i-c{id}"),
        instance_address: format!("10.0.{id}.10"),
        identity_document: String::new(),
        identity_signature: String::new(),
        data: PathBuf::new(),
        roles: PathBuf::new(),
    }
}

/// What the founders begin with.
fn founders() -> ClusterState {
    let slot = |id: u32| CoordinatorSlot { address: format!("10.0.{id}.10"), zone: Zone(format!("z{id}")), group: format!("c{id}") };
    coordinators::founded((1..=3).map(|id| (id, slot(id))).collect(), version::NEWEST)
}

impl Process {
    fn start(coordinator: &Coordinator, world: &World) -> Result<Self, NodeError> {
        let (machine, state, reached) = ClusterMachine::founded(founders());
        let watched = Watched::new(machine, reached, coordinator.id, world.book.clone());
        let config = Config { id: coordinator.id, voters: vec![1, 2, 3], ..world.raft.clone() };
        let node = Node::new(config, SimStore { disk: coordinator.disk.clone() }, watched)?;
        let outbox = SharedOutbox::default();
        let (handle, task) = Task::new(node, outbox.clone());
        let (now_ms, wall_ms) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (clock, wall) = (now_ms.clone(), wall_ms.clone());
        let leader = Arc::new(Leader {
            settings: settings(coordinator.id, world.lease_ms),
            cluster_id: "sim#1".to_owned(),
            member: MemberId(coordinator.id),
            certificates: Certificates::default(),
            raft: handle.clone(),
            state,
            registry: Registry::on(Box::new(move || clock.load(Ordering::Relaxed))),
            world: LeaderWorld::default(),
            unix_ms: Box::new(move || wall.load(Ordering::Relaxed)),
            wake: Notify::new(),
        });
        let control = Arc::new(Control { leader: leader.clone(), zookeeper_digest: String::new(), findings: watch::channel(Findings::default()).0 });
        let calls = Calls::default();
        let watch = Arc::new(CloudWatch { leader: leader.clone(), region: Arc::new(SimRegion { calls: calls.clone() }) });
        Ok(Self {
            task,
            handle,
            leader,
            control,
            looking: None,
            look_due: false,
            looked: control::Memory::default(),
            watch,
            watching: None,
            memory: Some(cloud_watch::Memory::default()),
            streams: BTreeMap::new(),
            clients: Vec::new(),
            reads: Vec::new(),
            outbox: outbox.0,
            calls,
            now_ms,
            wall_ms,
            timeout: 0,
            commanded: Vec::new(),
        })
    }

    /// raft-rs draws its election timeout from the thread's own chance; here it is drawn anew, from the run's, whenever raft has begun to count.
    fn set_timeout(&mut self, random: &mut Random) {
        let ticks = self.task.node().config().election_ticks;
        let raft = &mut self.task.node().raw().raft;
        if raft.election_elapsed == 0 || self.timeout == 0 {
            self.timeout = ticks + random.below(ticks as u64) as usize;
        }
        let timeout = self.timeout;
        self.task.node().raw().raft.set_randomized_election_timeout(timeout);
    }

    /// Polls everything that may go on; true when something has.
    fn advance(&mut self) -> bool {
        let mut moved = false;
        if self.looking.is_none() && (rang(&self.leader.wake) || std::mem::take(&mut self.look_due)) && !self.leader.state().spec.roles.is_empty() {
            let (control, looked) = (self.control.clone(), std::mem::take(&mut self.looked));
            self.looking = Some(Fiber::new(async move { control.turn(looked).await }));
            moved = true;
        }
        if let Some(looked) = advance(&mut self.looking) {
            self.looked = looked;
            moved = true;
        }
        if let Some(memory) = advance(&mut self.watching) {
            self.memory = Some(memory);
            moved = true;
        }
        moved
    }
}

impl World {
    pub fn start_coordinator(&mut self, id: Machine) {
        let Some(mut coordinator) = self.coordinators.remove(&id) else { return };
        if coordinator.up.is_none() && !coordinator.held_down {
            coordinator.life += 1;
            match Process::start(&coordinator, self) {
                Ok(process) => coordinator.up = Some(Box::new(process)),
                Err(error) => self.violation("a coordinator cannot start", format!("coordinator {id}: {}", chain(&error))),
            }
            let life = coordinator.life;
            self.say(|| format!("coordinator {id} starts"));
            self.history.coordinator_up(id, self.now);
            self.queue.push(self.now, Event::Tick(id, life));
            self.queue.push(self.now + coordinator.random.below(200) * MS, Event::Look(id, life));
            self.queue.push(self.now, Event::Pulse(id, life));
            self.queue.push(self.now + coordinator.random.below(250) * MS, Event::Watch(id, life));
            self.queue.push(self.now + coordinator.random.below(500) * MS, Event::Ensemble(id, life));
        }
        self.coordinators.insert(id, coordinator);
    }

    /// The process ends; with `power`, what it had not synced is lost too.
    pub fn stop_coordinator(&mut self, id: Machine, power: bool) {
        let now = self.now;
        let Some(coordinator) = self.coordinators.get_mut(&id) else { return };
        if coordinator.up.take().is_none() {
            return;
        }
        let mut disk = coordinator.disk.borrow_mut();
        let lost = if power { disk.crash(&mut coordinator.random) } else { disk.close() };
        drop(disk);
        coordinator.paused = false;
        coordinator.backlog.clear();
        self.say(|| format!("coordinator {id} ends, {lost} unsynced writes {}", if power { "lost" } else { "kept" }));
        self.history.coordinator_down(id, now);
        let streams: Vec<StreamId> = self.streams.iter().filter(|(_, stream)| stream.coordinator == id).map(|(id, _)| *id).collect();
        for stream in streams {
            // The kernel answers for the dead process; a machine without power answers nothing.
            if !power {
                self.send_down(stream, Down::Closed);
            }
        }
    }

    pub fn coordinator_event(&mut self, event: Event) {
        let (id, life) = match &event {
            Event::Tick(id, life) | Event::Look(id, life) | Event::Pulse(id, life) | Event::Watch(id, life) | Event::Ensemble(id, life) => (*id, *life),
            Event::Raft(message) => (message.to as Machine, 0),
            _ => return,
        };
        let now = self.now;
        let Some(coordinator) = self.coordinators.get_mut(&id) else { return };
        if life != 0 && life != coordinator.life {
            return;
        }
        if coordinator.paused {
            coordinator.backlog.push(event);
            return;
        }
        let Some(process) = &mut coordinator.up else { return };
        let mut tick = false;
        match event {
            Event::Tick(..) => {
                tick = true;
                process.set_timeout(&mut coordinator.random);
                let every = process.task.node().config().tick.as_micros() as Time;
                self.queue.push(now + every, Event::Tick(id, life));
            }
            Event::Look(..) => {
                process.look_due = true;
                self.queue.push(now + control::TICK.as_micros() as Time, Event::Look(id, life));
            }
            Event::Pulse(..) => {
                self.queue.push(now + control::PULSE.as_micros() as Time, Event::Pulse(id, life));
                process.now_ms.store(coordinator.clock.boot_ms(now), Ordering::Relaxed);
                process.leader.registry.look(self.lease_ms);
                return;
            }
            Event::Watch(..) => {
                if let Some(memory) = process.memory.take() {
                    let watch = process.watch.clone();
                    process.watching = Some(Fiber::new(async move { watch.turn(memory).await }));
                }
                self.queue.push(now + cloud_watch::ROUND.as_micros() as Time, Event::Watch(id, life));
            }
            Event::Ensemble(..) => {
                self.queue.push(now + ENSEMBLE_ROUND, Event::Ensemble(id, life));
                self.ask_coordinators(id);
                self.look_at_ensemble(id);
            }
            Event::Raft(message) => {
                process.handle.step(*message);
            }
            _ => {}
        }
        self.turn(id, tick);
    }

    /// Which other coordinators answer (as `state_hash` asks them).
    fn ask_coordinators(&mut self, id: Machine) {
        let answers = |other: &&Machine| {
            let lives = self.coordinators[*other].up.is_some() && !self.coordinators[*other].paused;
            **other == id || (lives && self.network.open(id, **other) && self.network.open(**other, id))
        };
        let answering = self.coordinators.keys().filter(answers).map(|other| MemberId(u64::from(*other))).collect();
        if let Some(process) = self.coordinators.get(&id).and_then(|coordinator| coordinator.up.as_ref()) {
            process.leader.world.lock().answering = Some(answering);
        }
    }

    /// Lets a coordinator do everything it can do now.
    pub fn turn(&mut self, id: Machine, tick: bool) {
        let Some(mut coordinator) = self.coordinators.remove(&id) else { return };
        let mut failed = None;
        if let Some(process) = &mut coordinator.up {
            process.now_ms.store(coordinator.clock.boot_ms(self.now), Ordering::Relaxed);
            process.wall_ms.store(coordinator.clock.wall_ns(self.now) / 1_000_000, Ordering::Relaxed);
            let mut tick = tick;
            for _ in 0..200 {
                let before = (process.task.node().applied(), process.task.node().raw().raft.raft_log.last_index());
                if let Err(error) = process.task.turn(std::mem::take(&mut tick)) {
                    failed = Some(error);
                    break;
                }
                let sent = self.post(id, process);
                let moved = process.advance() | self.serve(process) | self.clients(process);
                let after = (process.task.node().applied(), process.task.node().raw().raft.raft_log.last_index());
                if sent == 0 && !moved && before == after {
                    break;
                }
            }
            self.take_calls(id, coordinator.life, &process.calls.clone());
            let status = process.handle.status();
            self.leads(id, status.term, status.leads());
        }
        let life = coordinator.life;
        self.coordinators.insert(id, coordinator);
        if let Some(error) = failed {
            self.say(|| format!("coordinator {id} fails: {}", chain(&error)));
            if let NodeError::Storage(_) = error {
                self.stop_coordinator(id, false);
                self.queue.push(self.now + 1000 * MS, Event::StartCoordinator(id, life));
            } else {
                self.violation("a coordinator cannot go on", format!("coordinator {id}: {}", chain(&error)));
                self.stop_coordinator(id, false);
            }
        }
        self.check_transitions();
    }

    /// Sends what raft wants sent.
    fn post(&mut self, id: Machine, process: &mut Process) -> usize {
        let messages = process.outbox.lock().map(|mut queued| std::mem::take(&mut *queued)).unwrap_or_default();
        let count = messages.len();
        for message in messages {
            let to = message.to as Machine;
            if !self.network.open(id, to) || self.network.loses() {
                continue;
            }
            if self.network.repeats() {
                let at = self.now + self.network.delay_between_coordinators();
                self.queue.push(at, Event::Raft(Box::new(message.clone())));
            }
            let at = self.now + self.network.delay_between_coordinators();
            self.queue.push(at, Event::Raft(Box::new(message)));
        }
        count
    }

    /// Clients' commands and reads that are answered by now.
    fn clients(&mut self, process: &mut Process) -> bool {
        let mut moved = false;
        let mut at = 0;
        while at < process.clients.len() {
            match process.clients[at].1.poll() {
                None => at += 1,
                Some(outcome) => {
                    let (number, _) = process.clients.swap_remove(at);
                    self.client_answered(number, outcome);
                    moved = true;
                }
            }
        }
        at = 0;
        while at < process.reads.len() {
            match process.reads[at].1.poll() {
                None => at += 1,
                Some(confirmed) => {
                    let (floor, _) = process.reads.swap_remove(at);
                    let revision = process.leader.state().revision.0;
                    if confirmed && revision < floor {
                        self.violation("a linearizable read saw an old state", format!("revision {revision}, acknowledged before it began: {floor}"));
                    }
                    moved = true;
                }
            }
        }
        let before = process.commanded.len();
        process.commanded.retain_mut(|(_, fiber)| fiber.poll().is_none());
        moved | (before != process.commanded.len())
    }

    /// Has a coordinator propose a command, as an operator would ask it to.
    pub fn command(&mut self, id: Machine, what: &'static str, command: Command) {
        let Some(process) = self.coordinators.get_mut(&id).and_then(|coordinator| coordinator.up.as_mut()) else { return };
        let leader = process.leader.clone();
        process.commanded.push((what, Fiber::new(async move { leader.propose(command).await })));
        if !self.coordinators.get(&id).is_some_and(|coordinator| coordinator.paused) {
            self.turn(id, false);
        }
    }

    /// The coordinator that leads as far as it knows; the highest term counts.
    pub fn leading(&self) -> Option<Machine> {
        let statuses = self.coordinators.iter().filter_map(|(id, coordinator)| Some((coordinator.up.as_ref()?.handle.status(), *id)));
        statuses.filter(|(status, _)| status.leads()).max_by_key(|(status, _)| status.term).map(|(_, id)| id)
    }
}

/// A failure with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
