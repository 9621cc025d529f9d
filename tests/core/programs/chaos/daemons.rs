//! One real cluster under faults: three coordinators, four agents, small roles of each fencing class, a lease of two seconds. Judged by what an observer of
//! the machine's processes sees (never two holders of an exclusive slot, nor of a quorum's member), by what the roles themselves write (a lower generation
//! never after a higher one), by nothing acknowledged being forgotten, and by the cluster being whole again after each fault.
//! Elsewhere: which faults there are (`faults`), those of the machines (`machines`), and most instances silent at once (`silence`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use rustls::ClientConfig;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use vp_core_tests::channel;
use vp_core_tests::coordinators::{Coordinators, Wanted};
use vp_core_tests::group::MEMBERS;
use vp_core_tests::observer::Observer;
use vp_core_tests::proxy::Flow;
use vp_core_tests::region::Region;
use vp_proto::v1::{ClusterStatus, DrainRequest, StatusRequest, operators_client::OperatorsClient};

use crate::damage;
use crate::dice::Dice;
use crate::disk::Disks;
use crate::faults::{self, Fault};
use crate::hardware::Hardware;
use crate::instances::{Instances, Programs};
use crate::points;
use crate::tally::{Enough, Tally};
use crate::wires::Wires;

pub const LEASE_MS: u64 = 2000;
pub const NODES: usize = 4;
/// Room for a coordinator: two segments of its log, snapshots, the cache, and as much again.
const DISK_MIB: u32 = 64;
const WHOLE_WITHIN: Duration = Duration::from_secs(90);
/// The exclusive slots, which must never have two holders.
pub const EXCLUSIVE: [&str; 2] = ["solid-1", "solid-2"];
/// A quorum's members: none is started elsewhere while it runs.
const QUORUM: [&str; 3] = ["calm-1", "calm-2", "calm-3"];

/// Writes its generation to a place that all instances share: an effect that a lower generation must not have after a higher one.
fn solid(effects: &Path) -> String {
    let effects = effects.display();
    format!(
        "summary: Exclusive, and its effects are seen.\nfencing: exclusive\nfenced_sinks: true\nspread: zone\nresources: {{memory_mib: 100}}\ncommand: [sh, -c, \"setsid sleep 4001 & while :; do echo \\\"$VP_GENERATION $VP_SLOT_DIR\\\" >> {effects}/$VP_SLOT; echo beat > {{{{ run_dir }}}}/beat; sleep 0.2; done\"]\nstop: {{signal: TERM, timeout_ms: 500}}\nprobe: {{every_ms: 200, file: {{path: \"{{{{ run_dir }}}}/beat\", max_age_ms: 5000, expect: \"beat\"}}}}\n"
    )
}

fn beating(fencing: &str) -> String {
    format!(
        "summary: Keeps a file fresh.\nfencing: {fencing}\nspread: zone\nresources: {{memory_mib: 100}}\ncommand: [sh, -c, \"while :; do echo beat > {{{{ run_dir }}}}/beat; sleep 0.5; done\"]\nstop: {{signal: TERM, timeout_ms: 500}}\nprobe: {{every_ms: 300, file: {{path: \"{{{{ run_dir }}}}/beat\", max_age_ms: 5000, expect: \"beat\"}}}}\n"
    )
}

/// What one cluster is to go through.
pub struct Plan {
    pub network: u8,
    pub seed: u64,
    pub until: Instant,
    /// Stop when all clusters together have done so much.
    pub enough: Enough,
    /// Only faults with one of these texts in their names.
    pub only: Vec<String>,
    pub folder: PathBuf,
    pub coordinator: PathBuf,
    pub agent: PathBuf,
    /// The shared library of faults.
    pub preload: PathBuf,
    /// More environment of the coordinators, for planted bugs.
    pub environment: Vec<(String, String)>,
}

/// What was looked at.
pub struct Seen {
    pub looks: u64,
    pub holders: usize,
    pub effects: usize,
}

/// Runs one cluster to its end.
///
/// # Errors
/// Two holders, an effect out of order, something acknowledged that is forgotten, a move by silence that is not to be believed, or a cluster that does not
/// become whole again.
pub async fn run(plan: Plan, tally: Arc<Tally>) -> anyhow::Result<Seen> {
    let chosen = faults::chosen(&plan.only)?;
    let effects = plan.folder.join("effects");
    fs::create_dir_all(&effects)?;
    let mut trial = Box::pin(Trial::start(&plan, &effects)).await?;
    let watched = [&EXCLUSIVE[..], &QUORUM[..]].concat();
    let observer = Observer::watch_all(trial.instances.disks(), &watched);
    trial.whole().await?;
    // However short the run, this one is in it; the others come as the dice fall.
    let mut first = Some(Fault::MostSilent).filter(|fault| chosen.contains(fault));
    while Instant::now() < plan.until && !tally.has(plan.enough) {
        let fault = first.take().unwrap_or_else(|| *trial.dice.pick(&chosen));
        let told = || format!("cluster {}: {}", plan.network, fault.name());
        let struck = Box::pin(trial.inject(fault)).await.with_context(told)?;
        let healed = trial.whole().await.with_context(told)?;
        tally.add(fault.name(), struck, healed);
        if struck && fault.is_blow() {
            tally.add_blow();
        }
        let violations = observer.violations();
        ensure!(violations.is_empty(), "{}: {}", told(), violations.join("\n"));
    }
    Ok(Seen { looks: observer.looks(), holders: observer.holders().len(), effects: ordered(&effects)? })
}

/// Roles of each class, and how many slots of each.
fn wanted(effects: &Path, environment: &[(String, String)]) -> Wanted {
    let roles = vec![("solid", solid(effects)), ("calm", beating("quorum")), ("busy", beating("disposable"))];
    let slots = BTreeMap::from([("solid", 2), ("calm", 3), ("busy", 2)]);
    Wanted { lease_ms: LEASE_MS, roles, slots, environment: environment.to_vec() }
}

/// Effects in the order in which they happened: a generation never comes after a higher one, and belongs to one instance. How many there were.
fn ordered(effects: &Path) -> anyhow::Result<usize> {
    let mut count = 0;
    for slot in EXCLUSIVE {
        let text = fs::read_to_string(effects.join(slot)).with_context(|| format!("{slot} never had an effect"))?;
        let mut last = (0_u64, "");
        for line in text.lines() {
            let (generation, place) = line.split_once(' ').with_context(|| format!("{slot}: an effect without generation: {line}"))?;
            let generation: u64 = generation.parse()?;
            ensure!(generation >= last.0, "{slot}: an effect of generation {generation} after one of {}: {line}", last.0);
            ensure!(generation > last.0 || place == last.1, "{slot}: generation {generation} acts on two instances: {} and {place}", last.1);
            last = (generation, place);
            count += 1;
        }
    }
    Ok(count)
}

/// One cluster and everything that is known of it.
pub struct Trial {
    pub region: Region,
    pub coordinators: Coordinators,
    pub instances: Instances,
    pub dice: Dice,
    /// What each coordinator runs on.
    pub hardware: Vec<Hardware>,
    pub disks: Disks,
    /// Between the coordinators.
    pub wires: Wires,
    /// Numbers of orders: one that is given again has the number of the first.
    orders: AtomicU64,
    admin: Arc<ClientConfig>,
    network: u8,
    /// An instance that was destroyed: the cluster is not whole before it has noticed.
    gone: Option<String>,
    /// The newest revision that was acknowledged or shown, and slots' generations then: nothing may be older from then on.
    revision: AtomicU64,
    generations: BTreeMap<String, u64>,
}

impl Trial {
    async fn start(plan: &Plan, effects: &Path) -> anyhow::Result<Self> {
        let disks = Disks::mount((0..MEMBERS).map(|member| Coordinators::disk_below(&plan.folder, member)), DISK_MIB);
        let machine = |member: usize| Hardware::new(&plan.preload, &plan.folder.join(format!("hardware-{}", member + 1)));
        let hardware = (0..MEMBERS).map(machine).collect::<anyhow::Result<Vec<_>>>()?;
        let wanted = wanted(effects, &plan.environment);
        let mut region = Region::start(plan.network).await?;
        let wires = Wires::lay(&region).await?;
        let mut own: Vec<_> = hardware.iter().map(Hardware::environment).collect();
        for (member, environment) in own.iter_mut().enumerate() {
            environment.push(Wires::environment(&region, member)?);
        }
        let coordinators = Coordinators::start_each(&plan.coordinator, &mut region, wanted.clone(), &plan.folder, own).await?;
        let addresses = (0..MEMBERS).map(|member| coordinators.address(member)).collect();
        let programs = Programs { agent: plan.agent.clone(), preload: plan.preload.clone() };
        let mut instances = Instances::new(programs, plan.folder.clone(), wanted, coordinators.root(), addresses);
        for _ in 0..NODES {
            instances.boot(&mut region).await?;
        }
        let (admin, dice) = (coordinators.root().admin()?, Dice::new(plan.seed));
        let (revision, generations, orders) = (AtomicU64::new(0), BTreeMap::new(), AtomicU64::new(0));
        let network = plan.network;
        Ok(Self { region, coordinators, instances, dice, hardware, disks, wires, orders, admin, network, gone: None, revision, generations })
    }

    async fn inject(&mut self, fault: Fault) -> anyhow::Result<bool> {
        let member = self.dice.below(MEMBERS);
        let ids = self.instances.ids();
        let id = self.dice.pick(&ids).clone();
        match fault {
            Fault::CoordinatorKill => self.restart(member, 0, 2500).await?,
            Fault::LeaderKill => {
                let leader = self.coordinators.leader(Duration::from_secs(30)).await?;
                self.restart(leader, 0, 2500).await?;
            }
            Fault::CoordinatorPause => {
                let pause = self.dice.between_ms(100, 4000);
                let signal = |trial: &Self, signal| trial.coordinators.process(member).into_iter().for_each(|process| process.signal(signal));
                signal(self, Signal::SIGSTOP);
                self.hold(pause).await?;
                signal(self, Signal::SIGCONT);
            }
            Fault::CoordinatorFailPoint => return self.coordinator_fail_point(member).await,
            Fault::CoordinatorPower => return self.lose_power(&[member], &id).await,
            Fault::CoordinatorPowerAll => return self.lose_power(&[0, 1, 2], &id).await,
            Fault::CoordinatorClock => self.coordinator_clock(member).await?,
            Fault::CoordinatorFullDisk => return self.coordinator_full_disk(member).await,
            Fault::CoordinatorBitFlip => return damage::flip_a_bit(&mut self.coordinators, member, &mut self.dice).await,
            Fault::LeaderCut => self.leader_cut().await?,
            Fault::LeaderWithHolder => return self.leader_cut_with_a_holder().await,
            Fault::CoordinatorOneWay => self.coordinator_one_way(member).await?,
            Fault::CoordinatorsSlow => self.coordinators_slow().await?,
            Fault::AgentKill => {
                self.node(&id, |node| node.kill_agent());
                let down = self.dice.between_ms(0, 3000);
                self.hold(down).await?;
                self.instances.start_agent(&id, None)?;
            }
            Fault::AgentPause => {
                self.node(&id, |node| node.signal(Signal::SIGSTOP));
                let pause = self.dice.between_ms(100, 4500);
                self.hold(pause).await?;
                self.node(&id, |node| node.signal(Signal::SIGCONT));
            }
            Fault::AgentFailPoint => return self.agent_fail_point(&id).await,
            Fault::AgentClock => self.agent_clock(&id).await?,
            Fault::InstanceCut => self.cut(&id, Flow::Cut, Flow::Cut).await?,
            Fault::InstanceOneWay => {
                let (forth, back) = if self.dice.below(2) == 0 { (Flow::Cut, Flow::Open) } else { (Flow::Open, Flow::Cut) };
                self.cut(&id, forth, back).await?;
            }
            Fault::InstanceReset => self.node(&id, |node| node.reset_links()),
            // EC2 still says `running`: only silence tells.
            Fault::InstanceLost => {
                self.node(&id, |node| node.destroy_quietly());
                self.gone = Some(id);
            }
            Fault::MostSilent => self.most_silent().await?,
            Fault::Drain => self.drain(&id).await?,
            Fault::CloudFails => {
                self.region.fail(true);
                self.node(&id, |node| node.destroy_quietly());
                self.hold(Duration::from_secs(4)).await?;
                self.region.fail(false);
                self.gone = Some(id);
            }
        }
        Ok(true)
    }

    pub fn node(&mut self, id: &str, deed: impl FnOnce(&mut crate::instances::Node)) {
        if let Some(node) = self.instances.nodes.get_mut(id) {
            deed(node);
        }
    }

    /// A coordinator is down for a while.
    pub async fn restart(&mut self, member: usize, least_ms: u64, most_ms: u64) -> anyhow::Result<()> {
        self.coordinators.kill(member);
        let down = self.dice.between_ms(least_ms, most_ms);
        self.hold(down).await?;
        self.coordinators.start_member(member)
    }

    async fn cut(&mut self, id: &str, forth: Flow, back: Flow) -> anyhow::Result<()> {
        self.node(id, |node| node.set_links(forth, back));
        let held = self.dice.between_ms(300, 6000);
        self.hold(held).await?;
        let reset = self.dice.below(2) == 0;
        self.node(id, |node| {
            node.set_links(Flow::Open, Flow::Open);
            if reset {
                node.reset_links();
            }
        });
        Ok(())
    }

    /// False: the coordinator never came to its fail point.
    async fn coordinator_fail_point(&mut self, member: usize) -> anyhow::Result<bool> {
        let armed = points::arm_coordinator(&mut self.dice);
        self.coordinators.kill(member);
        let environment = self.hardware[member].arm(&armed.text)?;
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.coordinators.start_member_with(member, &environment)?;
        let held = self.dice.between_ms(1000, 4000);
        self.hold(held).await?;
        let ended = self.coordinators.process_mut(member).is_none_or(|process| !process.runs());
        self.restart(member, 0, 200).await?;
        Ok(armed.struck(ended, self.hardware[member].slept()))
    }

    /// False: the agent never came to its fail point.
    async fn agent_fail_point(&mut self, id: &str) -> anyhow::Result<bool> {
        let armed = points::arm_agent(&mut self.dice);
        self.node(id, |node| node.kill_agent());
        self.instances.start_agent(id, Some(&armed.text))?;
        let until = Instant::now() + self.dice.between_ms(800, 3500);
        let mut ended = false;
        while Instant::now() < until && !ended {
            sleep(Duration::from_millis(50)).await;
            self.node(id, |node| ended = !node.runs());
        }
        let mut slept = false;
        self.node(id, |node| {
            node.kill_agent();
            slept = node.slept();
        });
        self.instances.start_agent(id, None)?;
        Ok(armed.struck(ended, slept))
    }

    async fn drain(&mut self, id: &str) -> anyhow::Result<()> {
        self.order_drain(id, false, self.new_order()).await?;
        let held = self.dice.between_ms(500, 3000);
        self.hold(held).await?;
        self.take_back(id).await
    }

    /// What is drained must be taken back: of an unknown outcome, again.
    pub async fn take_back(&mut self, id: &str) -> anyhow::Result<()> {
        let order = self.new_order();
        for _ in 0..10 {
            if self.order_drain(id, true, order).await? {
                break;
            }
            self.hold(Duration::from_millis(500)).await?;
        }
        Ok(())
    }

    pub fn new_order(&self) -> u64 {
        self.orders.fetch_add(1, Ordering::Relaxed)
    }

    /// True: it is decided, one way or the other.
    pub async fn order_drain(&self, id: &str, undo: bool, order: u64) -> anyhow::Result<bool> {
        let request_id = format!("chaos-{}-{order}", self.network);
        let leader = self.coordinators.leader(Duration::from_secs(30)).await?;
        let asked = async {
            let channel = channel::open(self.coordinators.address(leader), None, Some(self.admin.clone())).await.ok()?;
            match OperatorsClient::new(channel).drain(DrainRequest { instance_id: id.to_owned(), undo, request_id }).await {
                Ok(accepted) => {
                    self.revision.fetch_max(accepted.into_inner().revision, Ordering::Relaxed);
                    Some(true)
                }
                // Its leader word is in the metadata; without it the order itself was refused.
                Err(status) => Some(status.code() == tonic::Code::FailedPrecondition && status.metadata().get(vp_proto::LEADER_KEY).is_none()),
            }
        };
        Ok(timeout(Duration::from_secs(3), asked).await.ok().flatten().unwrap_or(false))
    }

    /// Time passes; the region goes on terminating and booting, and daemons that ended are started again.
    pub async fn hold(&mut self, length: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + length;
        loop {
            self.tend().await?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            sleep(left.min(Duration::from_millis(100))).await;
        }
    }

    /// What EC2 and boot programs do.
    pub async fn tend(&mut self) -> anyhow::Result<()> {
        for id in self.region.dying() {
            self.instances.nodes.remove(&id);
            self.region.terminated(&id);
        }
        while self.instances.nodes.len() < NODES {
            self.instances.boot(&mut self.region).await?;
        }
        self.instances.keep_running()
    }

    /// Waits until every slot is placed and healthy, as the leader itself says; from now.
    async fn whole(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let mut last = String::new();
        while begun.elapsed() < WHOLE_WITHIN {
            self.tend().await?;
            for member in 0..MEMBERS {
                if self.coordinators.process_mut(member).is_some_and(|process| !process.runs()) {
                    self.coordinators.start_member(member)?;
                }
            }
            match timeout(Duration::from_secs(2), self.status()).await {
                Ok(Ok(status)) => {
                    self.remember(&status)?;
                    last = self.wanting(&status).join(", ");
                    if last.is_empty() && !status.services.is_empty() {
                        self.gone = None;
                        return Ok(begun.elapsed());
                    }
                }
                Ok(Err(error)) => last = format!("{error:#}"),
                Err(_) => last = "no status within 2 s".to_owned(),
            }
            sleep(Duration::from_millis(100)).await;
        }
        bail!("cluster {} is not whole again after {} s: {last}", self.network, WHOLE_WITHIN.as_secs())
    }

    /// What keeps the cluster from being whole.
    fn wanting(&self, status: &ClusterStatus) -> Vec<String> {
        let services = status.services.iter().filter(|service| service.healthy < service.wanted);
        let services = services.map(|service| format!("{} {}/{}", service.role, service.healthy, service.wanted));
        let nodes = status.nodes.iter().filter(|node| Some(&node.instance_id) == self.gone.as_ref());
        let nodes = nodes.map(|node| format!("{} is gone, and {}", node.instance_id, node.lifecycle));
        let coordinators = status.coordinators.iter().filter(|coordinator| !coordinator.reachable);
        services.chain(nodes).chain(coordinators.map(|coordinator| format!("coordinator {} is not reachable", coordinator.id))).collect()
    }

    /// What was once acknowledged or shown stays: power, disks and elections take nothing of it back.
    fn remember(&mut self, status: &ClusterStatus) -> anyhow::Result<()> {
        // Nobody leads: a copy that may be old.
        if status.leader_id == 0 {
            return Ok(());
        }
        let known = self.revision.fetch_max(status.revision, Ordering::Relaxed);
        ensure!(status.revision >= known, "revision {} is shown, and {known} was acknowledged before", status.revision);
        for slot in &status.slots {
            let name = slot.slot.as_ref().map(ToString::to_string).unwrap_or_default();
            let known = self.generations.insert(name.clone(), slot.generation).unwrap_or(0);
            ensure!(slot.generation >= known, "{name} is at generation {}, and was at {known} before", slot.generation);
        }
        Ok(())
    }

    /// A client of the leader, as an admin.
    pub async fn operators(&self) -> anyhow::Result<OperatorsClient<Channel>> {
        let leader = self.coordinators.leader(Duration::from_millis(1500)).await?;
        Ok(OperatorsClient::new(channel::open(self.coordinators.address(leader), None, Some(self.admin.clone())).await?))
    }

    pub async fn status(&self) -> anyhow::Result<ClusterStatus> {
        Ok(self.operators().await?.status(StatusRequest { stale: false }).await?.into_inner())
    }
}
