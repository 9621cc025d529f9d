//! One real cluster under faults: three coordinators, four agents, small roles of each fencing class, a lease of two seconds. Judged by what an observer of
//! the machine's processes sees (never two holders of an exclusive slot), by what the roles themselves write (a lower generation never after a higher one),
//! and by the cluster being whole again after each fault.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use rustls::ClientConfig;
use tokio::time::{sleep, timeout};
use vp_core_tests::channel;
use vp_core_tests::coordinators::{Coordinators, Wanted};
use vp_core_tests::group::MEMBERS;
use vp_core_tests::observer::Observer;
use vp_core_tests::proxy::Flow;
use vp_core_tests::region::Region;
use vp_proto::v1::{ClusterStatus, DrainRequest, StatusRequest, operators_client::OperatorsClient};

use crate::dice::Dice;
use crate::instances::Instances;
use crate::points;
use crate::tally::Tally;

const LEASE_MS: u64 = 2000;
const NODES: usize = 4;
const WHOLE_WITHIN: Duration = Duration::from_secs(90);
/// The exclusive slots, which must never have two holders.
const EXCLUSIVE: [&str; 2] = ["solid-1", "solid-2"];

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

/// What can be done to a real cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    CoordinatorKill,
    LeaderKill,
    CoordinatorPause,
    CoordinatorFailPoint,
    AgentKill,
    AgentPause,
    AgentFailPoint,
    InstanceCut,
    InstanceOneWay,
    InstanceReset,
    InstanceLost,
    Drain,
    CloudFails,
}

const FAULTS: [(Fault, usize); 13] = [
    (Fault::CoordinatorKill, 2),
    (Fault::LeaderKill, 2),
    (Fault::CoordinatorPause, 2),
    (Fault::CoordinatorFailPoint, 4),
    (Fault::AgentKill, 3),
    (Fault::AgentPause, 3),
    (Fault::AgentFailPoint, 6),
    (Fault::InstanceCut, 3),
    (Fault::InstanceOneWay, 3),
    (Fault::InstanceReset, 2),
    (Fault::InstanceLost, 2),
    (Fault::Drain, 2),
    (Fault::CloudFails, 1),
];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::CoordinatorKill => "coordinator killed",
            Self::LeaderKill => "leading coordinator killed",
            Self::CoordinatorPause => "coordinator paused",
            Self::CoordinatorFailPoint => "coordinator's fail point",
            Self::AgentKill => "agent killed",
            Self::AgentPause => "agent paused",
            Self::AgentFailPoint => "agent's fail point",
            Self::InstanceCut => "instance cut off",
            Self::InstanceOneWay => "instance heard but not hearing, or the other way",
            Self::InstanceReset => "instance's connections reset",
            Self::InstanceLost => "instance gone without a word",
            Self::Drain => "instance drained and taken back",
            Self::CloudFails => "EC2 answers with errors",
        }
    }
}

/// What one cluster is to go through.
pub struct Plan {
    pub network: u8,
    pub seed: u64,
    pub until: Instant,
    pub injections: u64,
    pub folder: PathBuf,
    pub coordinator: PathBuf,
    pub agent: PathBuf,
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
/// Two holders, an effect out of order, or a cluster that does not become whole again.
pub async fn run(plan: Plan, tally: Arc<Tally>) -> anyhow::Result<Seen> {
    let effects = plan.folder.join("effects");
    fs::create_dir_all(&effects)?;
    let roles = vec![("solid", solid(&effects)), ("calm", beating("quorum")), ("busy", beating("disposable"))];
    let slots = BTreeMap::from([("solid", 2), ("calm", 3), ("busy", 2)]);
    let wanted = Wanted { lease_ms: LEASE_MS, roles, slots, environment: Vec::new() };
    let mut region = Region::start(plan.network).await?;
    let coordinators = Coordinators::start(&plan.coordinator, &mut region, wanted.clone(), &plan.folder).await?;
    let addresses = (0..MEMBERS).map(|member| coordinators.address(member)).collect();
    let mut instances = Instances::new(plan.agent.clone(), plan.folder.clone(), wanted, coordinators.root(), addresses);
    let admin = coordinators.root().admin()?;
    for _ in 0..NODES {
        instances.boot(&mut region).await?;
    }
    let observers: Vec<Observer> = EXCLUSIVE.iter().map(|slot| Observer::watch(instances.disks(), slot)).collect();
    let mut trial = Trial { region, coordinators, admin, instances, dice: Dice::new(plan.seed), network: plan.network, gone: None };
    trial.whole().await?;
    let all: Vec<Fault> = FAULTS.iter().flat_map(|(fault, weight)| std::iter::repeat_n(*fault, *weight)).collect();
    while Instant::now() < plan.until && tally.total() < plan.injections {
        let fault = *trial.dice.pick(&all);
        let told = || format!("cluster {}: {}", plan.network, fault.name());
        let struck = trial.inject(fault).await.with_context(told)?;
        let healed = trial.whole().await.with_context(told)?;
        tally.add(fault.name(), struck, healed);
        let violations: Vec<String> = observers.iter().flat_map(Observer::violations).collect();
        ensure!(violations.is_empty(), "{}: {}", told(), violations.join("\n"));
    }
    let in_order = ordered(&effects)?;
    Ok(Seen { looks: observers.iter().map(Observer::looks).sum(), holders: observers.iter().map(|one| one.holders().len()).sum(), effects: in_order })
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

struct Trial {
    region: Region,
    coordinators: Coordinators,
    admin: Arc<ClientConfig>,
    instances: Instances,
    dice: Dice,
    network: u8,
    /// An instance that was destroyed: the cluster is not whole before it has noticed.
    gone: Option<String>,
}

impl Trial {
    async fn inject(&mut self, fault: Fault) -> anyhow::Result<bool> {
        let member = self.dice.below(MEMBERS);
        let ids = self.instances.ids();
        let id = self.dice.pick(&ids).clone();
        match fault {
            Fault::CoordinatorKill => self.restart(member, None, 0, 2500).await?,
            Fault::LeaderKill => {
                let leader = self.coordinators.leader(Duration::from_secs(30)).await?;
                self.restart(leader, None, 0, 2500).await?;
            }
            Fault::CoordinatorPause => {
                let pause = self.dice.between_ms(100, 4000);
                let signal = |trial: &Self, signal| trial.coordinators.process(member).into_iter().for_each(|process| process.signal(signal));
                signal(self, Signal::SIGSTOP);
                self.hold(pause).await?;
                signal(self, Signal::SIGCONT);
            }
            Fault::CoordinatorFailPoint => {
                let armed = points::arm_coordinator(&mut self.dice);
                self.coordinators.kill(member);
                self.coordinators.start_member_with(member, &[("FAILPOINTS", &armed.text)])?;
                let held = self.dice.between_ms(1000, 4000);
                self.hold(held).await?;
                let ended = self.coordinators.process_mut(member).is_none_or(|process| !process.runs());
                self.restart(member, None, 0, 200).await?;
                return Ok(ended || !armed.ends);
            }
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

    fn node(&mut self, id: &str, deed: impl FnOnce(&mut crate::instances::Node)) {
        if let Some(node) = self.instances.nodes.get_mut(id) {
            deed(node);
        }
    }

    async fn restart(&mut self, member: usize, armed: Option<&str>, least_ms: u64, most_ms: u64) -> anyhow::Result<()> {
        self.coordinators.kill(member);
        let down = self.dice.between_ms(least_ms, most_ms);
        self.hold(down).await?;
        match armed {
            Some(text) => self.coordinators.start_member_with(member, &[("FAILPOINTS", text)]),
            None => self.coordinators.start_member(member),
        }
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
        self.node(id, |node| node.kill_agent());
        self.instances.start_agent(id, None)?;
        Ok(ended || !armed.ends)
    }

    async fn drain(&mut self, id: &str) -> anyhow::Result<()> {
        self.order_drain(id, false).await?;
        let held = self.dice.between_ms(500, 3000);
        self.hold(held).await?;
        // What is drained must be taken back: of an unknown outcome, again.
        for _ in 0..10 {
            if self.order_drain(id, true).await? {
                break;
            }
            self.hold(Duration::from_millis(500)).await?;
        }
        Ok(())
    }

    /// True: it is decided, one way or the other.
    async fn order_drain(&self, id: &str, undo: bool) -> anyhow::Result<bool> {
        let leader = self.coordinators.leader(Duration::from_secs(30)).await?;
        let asked = async {
            let channel = channel::open(self.coordinators.address(leader), None, Some(self.admin.clone())).await.ok()?;
            match OperatorsClient::new(channel).drain(DrainRequest { instance_id: id.to_owned(), undo, request_id: String::new() }).await {
                Ok(_) => Some(true),
                // Its leader word is in the metadata; without it the order itself was refused.
                Err(status) => Some(status.code() == tonic::Code::FailedPrecondition && status.metadata().get(vp_proto::LEADER_KEY).is_none()),
            }
        };
        Ok(timeout(Duration::from_secs(3), asked).await.ok().flatten().unwrap_or(false))
    }

    /// Time passes; the region goes on terminating and booting, and daemons that ended are started again.
    async fn hold(&mut self, length: Duration) -> anyhow::Result<()> {
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
    async fn tend(&mut self) -> anyhow::Result<()> {
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
                    let mut wanting: Vec<String> = status
                        .services
                        .iter()
                        .filter(|service| service.healthy < service.wanted)
                        .map(|service| format!("{} {}/{}", service.role, service.healthy, service.wanted))
                        .collect();
                    wanting.extend(
                        status
                            .nodes
                            .iter()
                            .filter(|node| Some(&node.instance_id) == self.gone.as_ref())
                            .map(|node| format!("{} is gone, and {}", node.instance_id, node.lifecycle)),
                    );
                    last = wanting.join(", ");
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

    async fn status(&self) -> anyhow::Result<ClusterStatus> {
        let leader = self.coordinators.leader(Duration::from_millis(1500)).await?;
        let channel = channel::open(self.coordinators.address(leader), None, Some(self.admin.clone())).await?;
        Ok(OperatorsClient::new(channel).status(StatusRequest { stale: false }).await?.into_inner())
    }
}
