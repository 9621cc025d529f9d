//! Most instances silent at once, and all alive: nobody of them is believed dead. Nothing moves, nothing is terminated, and whoever looks is told so in time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use tokio::time::{sleep, timeout};
use vp_core_tests::proxy::Flow;
use vp_proto::v1::{ClusterStatus, Phase, PlanRequest};

use crate::daemons::{LEASE_MS, NODES, Trial};

/// Of [`NODES`]: more than the brake lets pass.
const SILENT: usize = 3;
/// Long past the moment at which each of them would be given up by itself.
const SILENT_FOR: Duration = Duration::from_millis(3 * LEASE_MS);
/// The alarm shows within a lease; a second for the look itself.
const TOLD_WITHIN: Duration = Duration::from_millis(LEASE_MS + 1000);
const CALM_WITHIN: Duration = Duration::from_secs(60);
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// An answer so late may come from a leader that stood still for as long as makes it distrust itself (half a second).
const STALLED: Duration = Duration::from_millis(400);
const LOOK: Duration = Duration::from_millis(100);
/// How the alarm begins.
const ALARM: &str = "brake closed";

/// Generation and holder of every slot.
type Holders = BTreeMap<String, (u64, String)>;

fn holders(status: &ClusterStatus) -> Holders {
    let slots = status.slots.iter().filter_map(|slot| Some((slot.slot.as_ref()?.to_string(), (slot.generation, slot.instance_id.clone()))));
    slots.collect()
}

impl Trial {
    /// Cuts most instances off for three leases.
    ///
    /// # Errors
    /// A slot changed its generation or holder, a termination was asked for, or no alarm was raised in time.
    pub async fn most_silent(&mut self) -> anyhow::Result<()> {
        let calm = self.calm().await?;
        let mut silent = self.instances.ids();
        while silent.len() > SILENT {
            silent.remove(self.dice.below(silent.len()));
        }
        self.set_links(&silent, Flow::Cut);
        let outcome = self.silence(&calm).await;
        self.set_links(&silent, Flow::Open);
        outcome
    }

    fn set_links(&self, of: &[String], flow: Flow) {
        of.iter().filter_map(|id| self.instances.nodes.get(id)).for_each(|node| node.set_links(flow, flow));
    }

    async fn silence(&mut self, calm: &ClusterStatus) -> anyhow::Result<()> {
        let (before, terminations) = (holders(calm), self.region.terminations());
        let begun = Instant::now();
        let (mut term, mut since, mut told, mut seen) = (calm.term, begun, false, Vec::new());
        while begun.elapsed() < SILENT_FOR {
            self.tend().await?;
            let asked = Instant::now();
            match timeout(ANSWERED_WITHIN, self.status()).await {
                Ok(Ok(status)) if status.leader_id != 0 => {
                    ensure!(holders(&status) == before, "slots moved by silence: {before:?} before, {:?} now", holders(&status));
                    // A new leader has heard nobody yet, and one that was not running trusts itself last: both give each node the whole window.
                    if status.term != term || asked.elapsed() >= STALLED {
                        (term, since) = (status.term, Instant::now());
                    }
                    seen = status.nodes.iter().map(|node| (node.lifecycle.clone(), node.silent_ms)).collect();
                    told |= status.alarms.iter().any(|alarm| alarm.starts_with(ALARM));
                }
                // Nobody leads at this moment, so nobody can tell.
                _ => since = Instant::now(),
            }
            let asked_for = self.region.terminations() - terminations;
            ensure!(asked_for == 0, "{asked_for} terminations were asked for though most are silent");
            ensure!(
                told || asked.saturating_duration_since(since) <= TOLD_WITHIN,
                "no alarm {} ms after most fell silent: {seen:?}",
                since.elapsed().as_millis()
            );
            sleep(LOOK).await;
        }
        ensure!(told, "no alarm in {} s of silence", SILENT_FOR.as_secs());
        Ok(())
    }

    /// Waits until nothing is under way that would move a slot by itself, or give up a node for an older silence.
    async fn calm(&mut self) -> anyhow::Result<ClusterStatus> {
        let begun = Instant::now();
        while begun.elapsed() < CALM_WITHIN {
            self.tend().await?;
            // What is planned is judged on the very state that is looked at: with everybody well, whatever is still to be spread would be in the plan.
            if let Ok(Ok(status)) = timeout(ANSWERED_WITHIN, self.status()).await
                && self.is_calm(&status)
                && matches!(timeout(ANSWERED_WITHIN, self.is_nothing_planned()).await, Ok(Ok(revision)) if revision == status.revision)
            {
                return Ok(status);
            }
            sleep(LOOK).await;
        }
        bail!("not calm after {} s", CALM_WITHIN.as_secs())
    }

    /// The revision at which there is nothing to do.
    async fn is_nothing_planned(&self) -> anyhow::Result<u64> {
        let plan = self.operators().await?.plan(PlanRequest {}).await?.into_inner();
        ensure!(plan.actions.is_empty(), "{:?} is planned", plan.actions);
        Ok(plan.revision)
    }

    fn is_calm(&self, status: &ClusterStatus) -> bool {
        // Those of instances that are gone are fenced, and in no count.
        let (here, gone): (Vec<_>, Vec<_>) = status.nodes.iter().partition(|node| self.instances.nodes.contains_key(&node.instance_id));
        here.len() == NODES
            && here.iter().all(|node| node.lifecycle == "ready" && node.heard && node.silent_ms <= LEASE_MS / 2)
            && gone.iter().all(|node| node.lifecycle == "fenced")
            && status.moves.is_empty()
            && status.slots.iter().all(|slot| slot.phase() == Phase::Healthy)
            && status.leader_id != 0
            && status.alarms.iter().all(|alarm| !alarm.starts_with(ALARM))
    }
}
