//! `drill`: an instance is killed on purpose, and the healing is measured. Which one, how, and the report stand here;
//! what counts as detected, placed, healthy is `healing`.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use vp_cloud::ec2::{Compute, InstanceState};
use vp_localcloud::process::{self, Held};
use vp_proto::v1::{ClusterStatus, Event, Health, PlanReport};

use super::drain::node_named;
use super::healing::{Healing, Target};
use super::healing_text;
use crate::arguments::{DrillArguments, Format};
use crate::cluster::Cluster;
use crate::failure::{EXIT_DEGRADED, EXIT_INTERRUPTED, Failure};
use crate::place::Place;
use crate::terminal::{Screen, spinner};
use crate::view;

/// How often the cluster is looked at: the resolution of the times.
const LOOK: Duration = Duration::from_millis(200);
/// How often gates and EC2 are looked at.
const LOOK_WIDE: Duration = Duration::from_secs(1);

/// What the watchers saw, with the milliseconds since the kill.
enum Seen {
    Status(u64, Box<ClusterStatus>),
    Event(u64, Event),
    Plan(u64, PlanReport),
    Terminated(u64),
}

/// Kills, watches, reports: 0 when the cluster tolerates as much as before, else 2.
pub async fn drill(place: &Place, cluster: &Cluster, screen: &Screen, format: Format, words: DrillArguments) -> Result<u8, Failure> {
    let before = cluster.status().await?;
    let target = choose(&before, &words)?;
    refuse_without_tolerance(&before, words.force)?;
    let (compute, _) = place.cloud().await?;
    let instance = compute.describe_instance(&target.instance).await?;
    if instance.state != InstanceState::Running {
        let next = "`vpctl nodes` lists the others".to_owned();
        return Err(Failure::NotNow { what: format!("{} is {} already", instance.id, instance.state.as_str()), next });
    }
    screen.note(&format!(
        "drill on {}: {}",
        target.what,
        if target.slots.is_empty() { "no slots".to_owned() } else { target.slots.keys().cloned().collect::<Vec<_>>().join(" ") }
    ));
    let silent = words.silent;
    let started;
    if silent {
        started = kill_silently(place, &target.instance).await?;
    } else {
        started = Instant::now();
        compute.terminate(&target.instance).await?;
    }
    let mut healing = Healing::new(target, &before, silent);
    let timeout = Duration::from_secs(words.timeout);
    let interrupted = tokio::select! {
        () = watch(cluster, &compute, screen, &mut healing, &before, started, timeout) => false,
        _ = tokio::signal::ctrl_c() => true,
    };
    let report = healing.report();
    view::show(screen, format, &report, |report| healing_text::text(report, screen))?;
    if interrupted {
        screen.note("the cluster heals on; look with `vpctl status --watch`");
        return Ok(EXIT_INTERRUPTED);
    }
    Ok(if report.restored_ms.is_some() { 0 } else { EXIT_DEGRADED })
}

/// Which instance, by the words: a coordinator's, one of a role, a named one, or the node with most slots.
fn choose(status: &ClusterStatus, words: &DrillArguments) -> Result<Target, Failure> {
    if let Some(id) = words.coordinator {
        let one = status.coordinators.iter().find(|c| c.id == id && !c.instance_id.is_empty());
        let one = one.ok_or(Failure::Missing { what: "coordinator", name: id.to_string(), look: "vpctl status" })?;
        return Ok(Target::coordinator(one));
    }
    let instance = match &words.node {
        Some(name) => node_named(status, name)?,
        None => most_loaded(status, words.role.as_deref())?,
    };
    let node = status.nodes.iter().find(|n| n.instance_id == instance && n.lifecycle == "ready");
    let node = node.ok_or_else(|| Failure::NotNow { what: format!("{instance} is not ready"), next: "`vpctl nodes` lists the others".to_owned() })?;
    Ok(Target::node(node, status))
}

/// The ready node with most slots (of the role first, then of all); the lowest id of several.
fn most_loaded(status: &ClusterStatus, role: Option<&str>) -> Result<String, Failure> {
    let of_role = |n: &vp_proto::v1::NodeStatus| n.slots.iter().filter(|s| role.is_none_or(|r| s.role == r)).count();
    let ready = status.nodes.iter().filter(|n| n.lifecycle == "ready" && of_role(n) > 0);
    let best = ready.max_by(|a, b| (of_role(a), a.slots.len()).cmp(&(of_role(b), b.slots.len())).then(b.instance_id.cmp(&a.instance_id)));
    best.map(|n| n.instance_id.clone()).ok_or_else(|| match role {
        Some(role) => Failure::Missing { what: "a holder of role", name: role.to_owned(), look: "vpctl roles" },
        None => Failure::NotNow { what: "no node holds a slot".to_owned(), next: "`vpctl plan` says what the cluster waits for".to_owned() },
    })
}

fn refuse_without_tolerance(status: &ClusterStatus, force: bool) -> Result<(), Failure> {
    if force || !matches!(status.health(), Health::NoTolerance | Health::QuorumLost) {
        return Ok(());
    }
    let reasons = status.reasons.join("; ");
    let what = format!("the cluster tolerates no failure now ({reasons}): a drill would stop something");
    Err(Failure::NotNow { what, next: "wait until `vpctl status` is better, or add --force".to_owned() })
}

/// SIGKILL of the instance's PID 1 from outside: the whole machine is gone, and EC2 goes on saying `running`.
async fn kill_silently(place: &Place, instance: &str) -> Result<Instant, Failure> {
    let only_local = |_| Failure::Usage("--silent needs a local region: elsewhere no one can kill a machine with nobody told".to_owned());
    let status = place.region().map_err(only_local)?.status().await?;
    let gone = || Failure::NotNow { what: format!("{instance} has no living process here"), next: "`vpctl dev status` lists the instances".to_owned() };
    let pid = status.instances.iter().find(|i| i.id == instance && i.alive).and_then(|i| i.pid).ok_or_else(gone)?;
    let recorded = process::record(pid).ok_or_else(gone)?;
    let trouble = |source| Failure::File { path: format!("process {pid}"), source };
    let held = Held::adopt(&recorded).map_err(trouble)?.ok_or_else(gone)?;
    let started = Instant::now();
    held.kill().map_err(trouble)?;
    Ok(started)
}

/// Feeds `healing` until it is over, or until the time is.
async fn watch(cluster: &Cluster, compute: &Compute, screen: &Screen, healing: &mut Healing, before: &ClusterStatus, started: Instant, timeout: Duration) {
    let (sender, mut seen) = mpsc::channel(64);
    let bars = screen.bars();
    let bar = spinner(&bars, "healing");
    let watchers = futures::future::join4(
        watch_status(cluster, started, sender.clone()),
        watch_events(cluster, before.revision, started, sender.clone()),
        watch_plan(cluster, started, sender.clone()),
        watch_instance(compute, healing.instance().to_owned(), started, sender),
    );
    let take = async {
        let mut last = String::new();
        while let Some(one) = seen.recv().await {
            match one {
                Seen::Status(at, status) => healing.saw_status(at, &status),
                Seen::Event(at, event) => healing.saw_event(at, &event),
                Seen::Plan(at, plan) => healing.saw_plan(at, &plan),
                Seen::Terminated(at) => healing.saw_terminated(at),
            }
            let stage = healing.stage();
            if stage != last {
                bar.set_message(stage.clone());
                if !screen.is_live() {
                    screen.note(&format!("  {stage}"));
                }
                last = stage;
            }
            if healing.is_over() {
                return;
            }
        }
    };
    tokio::select! {
        () = take => {}
        _ = watchers => {}
        () = tokio::time::sleep_until(started + timeout) => {}
    }
    bar.finish_and_clear();
}

fn since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

// Each watcher goes on over errors: that coordinators are away for a moment is part of what is measured.

async fn watch_status(cluster: &Cluster, started: Instant, out: mpsc::Sender<Seen>) {
    let mut ticks = every(LOOK);
    loop {
        ticks.tick().await;
        if let Ok(status) = cluster.status().await
            && out.send(Seen::Status(since(started), Box::new(status))).await.is_err()
        {
            return;
        }
    }
}

async fn watch_events(cluster: &Cluster, after: u64, started: Instant, out: mpsc::Sender<Seen>) {
    let mut after = after;
    let mut ticks = every(LOOK);
    loop {
        ticks.tick().await;
        let Ok(mut stream) = cluster.events(after, true).await else {
            continue;
        };
        while let Ok(Some(event)) = stream.message().await {
            after = after.max(event.revision);
            if out.send(Seen::Event(since(started), event)).await.is_err() {
                return;
            }
        }
    }
}

async fn watch_plan(cluster: &Cluster, started: Instant, out: mpsc::Sender<Seen>) {
    let mut ticks = every(LOOK_WIDE);
    loop {
        ticks.tick().await;
        if let Ok(plan) = cluster.plan().await
            && out.send(Seen::Plan(since(started), plan)).await.is_err()
        {
            return;
        }
    }
}

async fn watch_instance(compute: &Compute, instance: String, started: Instant, out: mpsc::Sender<Seen>) {
    let mut ticks = every(LOOK_WIDE);
    loop {
        ticks.tick().await;
        let Ok(found) = compute.describe_instance(&instance).await else {
            continue;
        };
        if found.state == InstanceState::Terminated {
            // The receiver may have ended already: then nobody asks.
            let _ = out.send(Seen::Terminated(since(started))).await;
            break;
        }
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use vp_proto::v1::{NodeStatus, SlotRef};

    use super::*;

    fn node(id: &str, lifecycle: &str, slots: &[(&str, u32)]) -> NodeStatus {
        let slots = slots.iter().map(|(role, index)| SlotRef { role: (*role).to_owned(), index: *index }).collect();
        NodeStatus { instance_id: id.to_owned(), lifecycle: lifecycle.to_owned(), slots, ..Default::default() }
    }

    fn cluster() -> ClusterStatus {
        let nodes = vec![
            node("i-3", "ready", &[("kafka", 1), ("stream", 1)]),
            node("i-2", "ready", &[("kafka", 2), ("zookeeper", 1)]),
            node("i-1", "lost", &[("kafka", 3), ("zookeeper", 2), ("spark-worker", 1)]),
        ];
        ClusterStatus { nodes, ..Default::default() }
    }

    #[test]
    fn the_ready_node_with_most_slots_is_chosen_and_of_several_the_lowest_id() {
        assert_eq!(most_loaded(&cluster(), None).expect("one"), "i-2");
        assert_eq!(most_loaded(&cluster(), Some("stream")).expect("one"), "i-3");
        assert_eq!(most_loaded(&cluster(), Some("redis")).expect_err("none").exit_code(), 1);
    }

    #[test]
    fn without_tolerance_a_drill_is_refused_unless_forced() {
        let mut status = cluster();
        status.set_health(Health::NoTolerance);
        assert!(refuse_without_tolerance(&status, false).is_err());
        assert!(refuse_without_tolerance(&status, true).is_ok());
        status.set_health(Health::Degraded);
        assert!(refuse_without_tolerance(&status, false).is_ok());
    }
}
