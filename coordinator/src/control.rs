//! The leader's loop: look, propose, look again, publish. Woken by events, it acts only on the current state; of what it did it remembers only what the nodes
//! were told last, so that a look that finds the same tells nobody.
//! What is to be proposed is `vp_cluster::round`'s judgement; this carries it out.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fail::fail_point;
use tokio::sync::watch;
use tracing::{info, warn};
use vp_cluster::{
    ClusterState, Command, Observations, SlotId,
    alarms::{self, Alarm},
    healed,
    liveness::{self, Brake},
    mutant, planner,
    report::Gate,
    round::{self, Round},
    state::Lifecycle,
};

use crate::{
    catalogue,
    desired::{Ground, wishes},
    leader::{CommandError, Leader},
};

/// Longest time between two looks; events wake it earlier.
pub const TICK: Duration = Duration::from_millis(200);
/// Time between two signs of life to oneself.
pub const PULSE: Duration = Duration::from_millis(100);
/// Looks that one round takes at most: verdicts, facts, plan, and what follows from them at once.
const LOOKS: usize = 6;

/// What the last round found, for operators.
#[derive(Clone, Debug)]
pub struct Findings {
    pub brake: Brake,
    pub gates: Vec<Gate>,
    /// What somebody has to look at: `vp_cluster::alarms`, and [`CLOUD`].
    pub alarms: Vec<Alarm>,
}

/// Who an alarm is about when EC2 does not answer.
pub const CLOUD: &str = "EC2";

impl Default for Findings {
    fn default() -> Self {
        Self { brake: Brake::Open, gates: Vec::new(), alarms: Vec::new() }
    }
}

pub struct Control {
    pub leader: Arc<Leader>,
    pub zookeeper_digest: String,
    pub findings: watch::Sender<Findings>,
}

/// Beats for ever, where the sessions have their turns and whatever a round waits for: a gap in it means that this process was not running, or that heartbeats
/// waited unread, and then it trusts itself last.
pub async fn pulse(leader: Arc<Leader>) {
    loop {
        leader.registry.look(leader.settings.user_data.lease_ms);
        tokio::time::sleep(PULSE).await;
    }
}

/// What a look leaves to the next.
#[derive(Default)]
pub struct Memory {
    /// The term of the look; 0: this coordinator did not lead.
    term: u64,
    /// What the nodes were told in that term followed from this.
    told: Option<Ground>,
}

impl Control {
    /// Runs for ever. A look at thousands of nodes takes its time at once: on a thread of its own, it keeps no session waiting.
    pub async fn run(self) {
        let mut memory = Memory::default();
        loop {
            let begun = Instant::now();
            memory = self.turn(memory).await;
            // Each of ten thousand joins wakes it: what it takes of a processor is left to the sessions for as long.
            tokio::time::sleep(begun.elapsed().min(TICK)).await;
            tokio::select! {
                () = self.leader.wake.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// One look, if this coordinator leads, with what the look before left.
    /// A new term begins with empty memory and a full window for every node.
    pub async fn turn(&self, memory: Memory) -> Memory {
        let status = self.leader.raft.status();
        if !status.leads() {
            return Memory::default();
        }
        let mut told = memory.told;
        if status.term != memory.term {
            told = None;
            if !mutant!("old-terms-memory") {
                info!(term = status.term, "leading");
                self.leader.registry.begin_term();
                self.leader.world.begin_term();
                self.findings.send_replace(Findings::default());
            }
        }
        Memory { term: status.term, told: self.round(status.term, told).await }
    }

    /// Takes and gives what the nodes have been told from.
    async fn round(&self, term: u64, told: Option<Ground>) -> Option<Ground> {
        if self.leader.state().spec.roles.is_empty() && !self.bootstrap().await {
            return told;
        }
        let mut looks = 0;
        let (state, obs) = loop {
            let state = self.leader.state();
            self.remember(&state);
            let obs = self.leader.observations();
            fail_point!("control::judge");
            let mut round = round::look(&state, &obs);
            liveness::remember_brake(&state, &obs, &mut self.leader.world.lock().braked);
            looks += 1;
            // First the moves, then what is told of them: an event in between would take the ground from under the plan.
            fail_point!("control::plan");
            let commands = std::mem::take(&mut round.commands);
            let over = commands.is_empty() || !self.carry_out(commands, &obs).await;
            self.note(&state, &obs, &round).await;
            if over || looks == LOOKS {
                // What was judged by is told, not a newer state with this older look: a grant made since would be started on a volume that is being taken away.
                break (state, obs);
            }
        };
        let untold = self.leader.registry.is_untold() && !mutant!("newcomers-untold");
        if told.as_ref().is_some_and(|told| told.is(&state, &obs)) && !untold {
            return told;
        }
        let living = state.nodes.iter().filter(|(_, node)| matches!(node.lifecycle, Lifecycle::Ready | Lifecycle::Draining)).map(|(id, _)| id);
        self.leader.registry.publish(living, wishes(&state, &obs, term, &self.zookeeper_digest));
        Some(Ground::of(&state, obs))
    }

    /// False: nothing was accepted, and looking again at once would find the same.
    async fn carry_out(&self, commands: Vec<Command>, obs: &Observations) -> bool {
        let mut accepted = false;
        for command in commands {
            if let Command::NodeLost { node, .. } = &command
                && !mutant!("not-condemned")
            {
                // Before it is proposed: from here on the session is never acknowledged again. Commands before this one took their time; a node that was
                // acknowledged meanwhile is not lost.
                fail_point!("control::condemn");
                if !self.leader.registry.condemn(node, obs.nodes.get(node).and_then(|seen| seen.acknowledged_ms)) {
                    info!(%node, "acknowledged since it was looked at: not lost");
                    continue;
                }
            }
            fail_point!("control::propose_plan");
            accepted |= self.propose(command).await;
        }
        accepted
    }

    /// Tells people what this look found; what has begun or ended since the last one is an event.
    async fn note(&self, state: &ClusterState, obs: &Observations, round: &Round) {
        let found = Findings { brake: round.brake.clone(), gates: round.gates.clone(), alarms: self.alarms(state, obs) };
        let was = self.findings.send_replace(found.clone());
        self.note_brake(&was.brake, &found.brake).await;
        let healed = healed::healed(state, obs, &mut self.leader.world.lock().starts);
        for (slot, detail) in healed {
            self.leader.note("slot healthy", slot, detail).await;
        }
        let among = |alarm: &Alarm, others: &[Alarm]| others.iter().any(|other| other.about == alarm.about);
        for alarm in found.alarms.iter().filter(|alarm| !among(alarm, &was.alarms)) {
            self.leader.note("alarm raised", &alarm.about, alarm.sentence.clone()).await;
        }
        for alarm in was.alarms.iter().filter(|alarm| !among(alarm, &found.alarms)) {
            self.leader.note("alarm over", &alarm.about, alarm.over.to_owned()).await;
        }
    }

    /// A leader that is new has not heard everybody: what it misses in its first lease is no alarm.
    fn alarms(&self, state: &ClusterState, obs: &Observations) -> Vec<Alarm> {
        if obs.now_ms.saturating_sub(obs.leading_since_ms) < self.leader.settings.user_data.lease_ms {
            return Vec::new();
        }
        let cloud = self.leader.world.cloud_alarm(self.leader.registry.now_ms());
        let cloud = cloud.map(|sentence| Alarm { about: CLOUD.to_owned(), sentence, over: "it answers again" });
        alarms::raised(state, obs).into_iter().chain(cloud).collect()
    }

    /// The bootstrap spec goes into the log once.
    async fn bootstrap(&self) -> bool {
        match catalogue::spec(&self.leader.settings.roles, &self.leader.settings.user_data.spec) {
            Ok(spec) => self.propose(Command::SetSpec { spec }).await,
            Err(error) => {
                warn!(%error, "the bootstrap spec is not usable");
                tokio::time::sleep(Duration::from_secs(5)).await;
                false
            }
        }
    }

    async fn note_brake(&self, was: &Brake, brake: &Brake) {
        match (was, brake) {
            (Brake::Open, Brake::Closed { silent, of, place }) => {
                let detail = format!("{silent} of {of} nodes of {place} fell silent together: silence moves nothing there");
                self.leader.note("brake closed", "cluster", detail).await;
            }
            (Brake::Closed { .. }, Brake::Open) => self.leader.note("brake open", "cluster", "silence is believed again".to_owned()).await,
            _ => {}
        }
    }

    async fn propose(&self, command: Command) -> bool {
        match self.leader.propose(command.clone()).await {
            Ok(_) => true,
            // The ground moved: the next round looks again.
            Err(CommandError::Rejected(rejection)) => {
                info!(%rejection, ?command, "command rejected");
                false
            }
            Err(error) => {
                warn!(%error, "command not decided");
                false
            }
        }
    }

    /// This leader's memory of what only time tells.
    fn remember(&self, state: &ClusterState) {
        let now_ms = self.leader.registry.now_ms();
        let waiting = planner::zone_is_empty(state);
        let mut seen = self.leader.world.lock();
        liveness::remember_lost(state, &mut seen.given_up_ms, now_ms);
        // When the number of nodes last grew.
        if state.nodes.len() > seen.nodes {
            seen.joined_ms = now_ms;
        }
        seen.nodes = state.nodes.len();
        // Since when slots have been waiting for a node in their volume's zone.
        let since: BTreeMap<SlotId, u64> =
            waiting.into_iter().map(|slot| (slot.clone(), seen.zone_empty_since_ms.get(&slot).copied().unwrap_or(now_ms))).collect();
        seen.zone_empty_since_ms = since;
    }
}

/// Where a node is, for people.
pub fn lifecycle_name(lifecycle: Lifecycle) -> &'static str {
    match lifecycle {
        Lifecycle::Ready => "ready",
        Lifecycle::Draining => "draining",
        Lifecycle::Lost => "lost",
        Lifecycle::Fenced => "fenced",
    }
}
