//! A region that misbehaves: instances live and die, groups boot replacements, volumes hang on one instance at a time; calls are slow, fail, answer with
//! yesterday's truth or never, and may have been carried out although they failed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::oneshot;
use vp_cloud::{
    ec2::{Instance, InstanceState, Volume, VolumeState},
    error::CloudError,
    s3::StoreError,
};
use vp_coordinator::region::Region;

use crate::{
    agent::Host,
    clock::{MS, SECOND, Time},
    network::Machine,
    world::{Event, World},
};

type Reply<T> = oneshot::Sender<Result<T, CloudError>>;

/// A call under way.
pub enum Call {
    Instances(Vec<String>, Reply<Vec<Instance>>),
    Terminate(String, Reply<()>),
    Volumes(Vec<String>, Reply<Vec<Volume>>),
    Create { zone: String, token: String, reply: Reply<String> },
    Attach { volume: String, instance: String, reply: Reply<()> },
    Detach { volume: String, instance: String, reply: Reply<()> },
}

/// Calls made and not yet sent off.
pub type Calls = Arc<Mutex<Vec<Call>>>;

/// The region as a coordinator sees it.
pub struct SimRegion {
    pub calls: Calls,
}

fn unreachable(operation: &'static str) -> CloudError {
    CloudError::Unreachable { operation, reason: "no answer".to_owned() }
}

impl SimRegion {
    async fn call<T>(&self, operation: &'static str, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, CloudError> {
        let (reply, answer) = oneshot::channel();
        if let Ok(mut calls) = self.calls.lock() {
            calls.push(call(reply));
        }
        answer.await.unwrap_or_else(|_| Err(unreachable(operation)))
    }
}

#[tonic::async_trait]
impl Region for SimRegion {
    async fn describe_instances(&self, ids: &[String]) -> Result<Vec<Instance>, CloudError> {
        self.call("DescribeInstances", |reply| Call::Instances(ids.to_vec(), reply)).await
    }

    async fn terminate_in_group(&self, instance: &str) -> Result<(), CloudError> {
        self.call("TerminateInstanceInAutoScalingGroup", |reply| Call::Terminate(instance.to_owned(), reply)).await
    }

    async fn describe_volumes(&self, ids: &[String]) -> Result<Vec<Volume>, CloudError> {
        self.call("DescribeVolumes", |reply| Call::Volumes(ids.to_vec(), reply)).await
    }

    async fn create_volume(&self, zone: &str, _: &BTreeMap<String, String>, token: &str) -> Result<String, CloudError> {
        let (zone, token) = (zone.to_owned(), token.to_owned());
        self.call("CreateVolume", |reply| Call::Create { zone, token, reply }).await
    }

    async fn attach_volume(&self, volume: &str, instance: &str, _: &str) -> Result<(), CloudError> {
        let (volume, instance) = (volume.to_owned(), instance.to_owned());
        self.call("AttachVolume", |reply| Call::Attach { volume, instance, reply }).await
    }

    async fn detach_volume(&self, volume: &str, instance: &str) -> Result<(), CloudError> {
        let (volume, instance) = (volume.to_owned(), instance.to_owned());
        self.call("DetachVolume", |reply| Call::Detach { volume, instance, reply }).await
    }

    async fn publish_brokers(&self, _: u64, _: String) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A volume.
#[derive(Clone, Debug)]
pub struct Disk {
    pub zone: String,
    /// The instance it hangs on, and whether it is on its way off.
    pub at: Option<Machine>,
    pub leaving: bool,
    /// The member whose data is on it.
    pub member: Option<u32>,
    pub deleted: bool,
}

/// How EC2 answers just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Every call fails after a while; some were carried out.
    Silent,
    /// Answers are so old.
    Stale(Time),
}

impl World {
    pub fn take_calls(&mut self, coordinator: Machine, life: u32, calls: &Calls) {
        let taken = calls.lock().map(|mut calls| std::mem::take(&mut *calls)).unwrap_or_default();
        for call in taken {
            self.calls_made += 1;
            let wait = if self.mood == Mood::Silent { self.chance.range(2 * SECOND, 8 * SECOND) } else { self.chance.range(10 * MS, 120 * MS) };
            self.in_flight.insert(self.calls_made, call);
            self.queue.push(self.now + wait, Event::Call(self.calls_made, coordinator, life));
        }
    }

    /// A call reaches the region and is answered; the coordinator that made it goes on.
    pub fn region_answers(&mut self, number: u64, coordinator: Machine, life: u32) {
        let Some(call) = self.in_flight.remove(&number) else { return };
        let failed = self.mood == Mood::Silent || self.chance.chance(self.call_failures_permille);
        // An error of a call that changes something says nothing about whether it was carried out.
        let carried_out = !failed || self.chance.chance(400);
        let late = match self.mood {
            Mood::Stale(late) => late,
            _ => 0,
        };
        self.carry_out(call, failed, carried_out, late);
        if self.coordinators.get(&coordinator).is_some_and(|c| c.life == life && !c.paused) {
            self.turn(coordinator, false);
        }
    }

    fn carry_out(&mut self, call: Call, failed: bool, carried_out: bool, late: Time) {
        fn answer<T>(reply: Reply<T>, failed: bool, what: &'static str, value: Result<T, CloudError>) {
            let _ = reply.send(if failed { Err(unreachable(what)) } else { value });
        }
        let refused = |code: &str| CloudError::Invalid { operation: "call", code: code.to_owned(), reason: String::new() };
        match call {
            Call::Instances(ids, reply) => {
                let at = self.now.saturating_sub(late);
                let found = self.hosts.values().filter(|host| ids.contains(&host.id)).filter_map(|host| host.described(at)).collect();
                answer(reply, failed, "DescribeInstances", Ok(found));
            }
            Call::Terminate(id, reply) => {
                if carried_out {
                    self.note_termination(&id);
                    let machine = self.hosts.values().find(|host| host.id == id).map(|host| host.number);
                    machine.into_iter().for_each(|machine| self.terminate(machine));
                }
                answer(reply, failed, "Terminate", Ok(()));
            }
            Call::Volumes(ids, reply) => {
                let hosts = &self.hosts;
                let found = ids.iter().filter_map(|id| Some((id, self.volumes.get(id)?))).map(|(id, disk)| Volume {
                    id: id.clone(),
                    state: match (disk.deleted, disk.at) {
                        (true, _) => VolumeState::Deleted,
                        (false, Some(_)) => VolumeState::InUse,
                        (false, None) => VolumeState::Available,
                    },
                    settled: !disk.leaving,
                    attached_to: disk.at.and_then(|at| hosts.get(&at)).map(|host| host.id.clone()),
                    zone: disk.zone.clone(),
                    tags: BTreeMap::new(),
                });
                let found = found.collect();
                answer(reply, failed, "DescribeVolumes", Ok(found));
            }
            Call::Create { zone, token, reply } => {
                let id = format!("vol-{token}").replace('/', "-");
                if carried_out {
                    self.volumes.entry(id.clone()).or_insert(Disk { zone, at: None, leaving: false, member: None, deleted: false });
                }
                answer(reply, failed, "CreateVolume", Ok(id));
            }
            Call::Attach { volume, instance, reply } => {
                let machine = self.hosts.values().find(|host| host.id == instance && host.state() == InstanceState::Running).map(|host| host.number);
                let zone = machine.and_then(|machine| self.hosts.get(&machine)).map(|host| host.zone_name());
                let value = match (self.volumes.get_mut(&volume), machine) {
                    (Some(disk), Some(machine)) if disk.at.is_none() && !disk.deleted && Some(&disk.zone) == zone.as_ref() => {
                        if carried_out {
                            disk.at = Some(machine);
                        }
                        Ok(())
                    }
                    (Some(disk), Some(machine)) if disk.at == Some(machine) => Ok(()),
                    _ => Err(refused("VolumeInUse")),
                };
                answer(reply, failed, "AttachVolume", value);
            }
            Call::Detach { volume, instance, reply } => {
                if carried_out {
                    self.detach(&volume, &instance);
                }
                answer(reply, failed, "DetachVolume", Ok(()));
            }
        }
    }

    fn detach(&mut self, volume: &str, instance: &str) {
        let Some(at) = self.volumes.get(volume).and_then(|disk| disk.at) else { return };
        // As EC2: without an instance, off whoever has it.
        if !instance.is_empty() && self.hosts.get(&at).is_none_or(|host| host.id != instance) {
            return;
        }
        let user = self.processes.values().find(|process| process.host == at && process.volume.as_deref() == Some(volume));
        if let Some(process) = user {
            let what = format!("{volume} of {} is taken off {at} while generation {} runs on it", process.slot, process.generation);
            self.violation("a volume was taken from under a live process", what);
        }
        if let Some(disk) = self.volumes.get_mut(volume) {
            disk.leaving = true;
        }
        let wait = self.chance.range(200 * MS, 2 * SECOND);
        self.queue.push(self.now + wait, Event::Detached(volume.to_owned(), at));
    }

    pub fn detached(&mut self, volume: &str, at: Machine) {
        if let Some(disk) = self.volumes.get_mut(volume).filter(|disk| disk.at == Some(at)) {
            (disk.at, disk.leaving) = (None, false);
        }
        self.wake_agent(at);
    }

    /// Shutting down; its processes end before EC2 says that it is terminated.
    pub fn terminate(&mut self, machine: Machine) {
        let Some(host) = self.hosts.get_mut(&machine) else { return };
        if !matches!(host.state(), InstanceState::Pending | InstanceState::Running) {
            return;
        }
        host.ec2.push((self.now, InstanceState::ShuttingDown));
        let dies = self.chance.range(50 * MS, 3 * SECOND);
        let shown = dies + self.chance.range(10 * MS, 6 * SECOND);
        self.queue.push(self.now + dies, Event::HostDies(machine));
        self.queue.push(self.now + shown, Event::Terminated(machine));
        self.say(|| format!("instance {machine} is shutting down"));
    }

    pub fn terminated(&mut self, machine: Machine) {
        self.host_dies(machine);
        if let Some(host) = self.hosts.get_mut(&machine) {
            host.ec2.push((self.now, InstanceState::Terminated));
        }
        for disk in self.volumes.values_mut().filter(|disk| disk.at == Some(machine)) {
            (disk.at, disk.leaving) = (None, false);
        }
        self.say(|| format!("instance {machine} is terminated"));
        let wait = self.chance.range(500 * MS, 3 * SECOND);
        self.queue.push(self.now + wait, Event::Boot);
    }

    /// The group brings its number of instances back, in the zone that has the fewest.
    pub fn boot(&mut self) {
        let lives = |host: &&Host| matches!(host.state(), InstanceState::Pending | InstanceState::Running);
        let living = self.hosts.values().filter(lives).count();
        if living >= self.nodes_wanted {
            return;
        }
        let count = |zone: char| self.hosts.values().filter(lives).filter(|host| host.zone == zone).count();
        let Some(zone) = ['1', '2', '3'].into_iter().filter(|zone| self.zone_out != Some(*zone)).min_by_key(|zone| (count(*zone), *zone)) else { return };
        self.boot_in(zone);
        if living + 1 < self.nodes_wanted {
            self.queue.push(self.now + 200 * MS, Event::Boot);
        }
    }

    fn boot_in(&mut self, zone: char) {
        self.hosts_made += 1;
        let number = 99 + self.hosts_made;
        let host = Host::new(number, zone, self.now, &mut self.chance);
        self.say(|| format!("instance {number} is pending in zone {zone}"));
        self.history.host(number, zone, self.now);
        self.hosts.insert(number, host);
        let wait = self.chance.range(300 * MS, 2 * SECOND);
        self.queue.push(self.now + wait, Event::HostRuns(number));
    }

    pub fn host_runs(&mut self, machine: Machine) {
        let Some(host) = self.hosts.get_mut(&machine).filter(|host| host.state() == InstanceState::Pending) else { return };
        host.ec2.push((self.now, InstanceState::Running));
        host.alive = true;
        self.start_agent(machine);
    }

    /// The machine is gone at once, with everything on it. EC2 may say `running` for ever.
    pub fn host_dies(&mut self, machine: Machine) {
        let Some(host) = self.hosts.get_mut(&machine).filter(|host| host.alive) else { return };
        host.alive = false;
        host.up = None;
        host.paused = false;
        host.backlog.clear();
        let gone: Vec<u64> = self.processes.iter().filter(|(_, process)| process.host == machine).map(|(pid, _)| *pid).collect();
        for pid in gone {
            self.process_is_gone(pid, None);
        }
        self.history.host_down(machine, self.now);
        self.say(|| format!("machine {machine} is dead"));
    }

    /// What the group's own health check finds in the end: an instance that is dead is replaced, and EC2 says so. Much too late to rely on.
    pub fn check_health(&mut self) {
        let dead: Vec<Machine> = self.hosts.values().filter(|host| !host.alive && host.state() == InstanceState::Running).map(|host| host.number).collect();
        dead.into_iter().for_each(|machine| self.terminate(machine));
    }

    /// What admission learns of an instance: only one that EC2 says runs is let in.
    pub fn described(&self, machine: Machine) -> Option<Instance> {
        self.hosts.get(&machine)?.described(self.now).filter(|instance| instance.state == InstanceState::Running)
    }
}
