//! `dev`: the region on this machine: up with its steps and times until the cluster in it is healthy; down; status; env.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar};
use serde_json::json;
use tokio::time::Instant;
use vp_localcloud::region::{self, DownOptions, Progress, Region, RegionError, RegionStatus, UpOptions};
use vp_proto::v1::{ClusterStatus, Health, Phase};
use vp_trust::Rank;

use super::dev_logs;
use crate::arguments::{DevCommand, Format, PlaceArguments, quoted};
use crate::cluster::Cluster;
use crate::failure::{EXIT_DEGRADED, EXIT_INTERRUPTED, Failure};
use crate::place::{certificate, region_name, state_folder};
use crate::terminal::{Screen, Tone, spinner};
use crate::view;
use crate::view::table::{Cell, Table};
use crate::view::units::span;

/// How often the cluster is looked at while it comes up.
const LOOK: Duration = Duration::from_millis(500);
/// Slots that are waited for, by name; of the rest the number is told.
const NAMED: usize = 4;

/// Runs one of the `dev` commands.
pub async fn dev(flags: &PlaceArguments, screen: &Screen, format: Format, command: DevCommand) -> Result<u8, Failure> {
    let state = state_folder(flags);
    match command {
        DevCommand::Up { network, nodes, instance_type, lease_ms, spec, no_wait, timeout } => {
            let mut options = UpOptions::new(&region_name(flags), state);
            options.network = network;
            options.nodes = nodes;
            options.instance_type = instance_type;
            options.lease_ms = lease_ms;
            if let Some(path) = &spec {
                options.spec_yaml = Some(tokio::fs::read_to_string(path).await.map_err(Failure::file(path))?);
            }
            let work = up(&options, flags, screen, format, (!no_wait).then(|| Duration::from_secs(timeout)));
            let ended = unless_interrupted(work, screen, "what was started stays: `vpctl dev up` goes on, `vpctl dev down` takes it away").await;
            ended.map_err(|failure| match &spec {
                Some(path) => failure.in_file(path),
                None => failure,
            })
        }
        DevCommand::Down { keep } => {
            let work = down(state, DownOptions { keep, name: flags.region_name.clone() }, screen);
            unless_interrupted(work, screen, "what is left is taken away by `vpctl dev down`").await
        }
        DevCommand::Status => {
            let status = Region::open(&state)?.status().await?;
            let well = status.healthy() && !status.instances.is_empty() && status.instances.iter().all(|i| i.alive || i.state != "running");
            view::show(screen, format, &status, |status| status_text(status, screen))?;
            Ok(if well { 0 } else { EXIT_DEGRADED })
        }
        DevCommand::Env => {
            let exports = Region::open(&state)?.env().await?;
            match format {
                Format::Table | Format::Wide => exports.iter().for_each(|(k, v)| screen.line(&format!("export {k}={}", quoted(v)))),
                _ => view::show(screen, format, &exports.into_iter().collect::<BTreeMap<_, _>>(), |_| String::new())?,
            }
            Ok(0)
        }
        DevCommand::Logs { name, follow, lines } => dev_logs::logs(&Region::open(&state)?, screen, name.as_deref(), follow, lines).await,
    }
}

/// Ends on Ctrl-C with what that leaves, and what to do about it (`left`).
async fn unless_interrupted(work: impl Future<Output = Result<u8, Failure>>, screen: &Screen, left: &str) -> Result<u8, Failure> {
    tokio::select! {
        ended = work => ended,
        _ = tokio::signal::ctrl_c() => {
            screen.note(&format!("interrupted; {left}"));
            Ok(EXIT_INTERRUPTED)
        }
    }
}

async fn up(options: &UpOptions, flags: &PlaceArguments, screen: &Screen, format: Format, wait: Option<Duration>) -> Result<u8, Failure> {
    let started = Instant::now();
    let for_people = matches!(format, Format::Table | Format::Wide);
    let mut steps = Steps::new(screen, for_people, "as it was");
    let region = Region::up(options, &mut |progress| steps.tell(progress)).await;
    steps.end();
    let region = region?;
    let mut code = 0;
    if let Some(timeout) = wait.filter(|_| options.coordinators) {
        let cluster = Cluster::new(region.record().coordinators.clone(), &certificate(&region.operator(Rank::Admin))?)?;
        code = until_healthy(&region, &cluster, &steps, timeout).await?;
    }
    let named = flags.words();
    let vpctl = if named.is_empty() { "vpctl".to_owned() } else { format!("vpctl {named}") };
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let took = span(took_ms);
    if !for_people {
        let answer = json!({"region": options.name, "network": format!("127.{}.0.0/16", region.record().network), "healthy": wait.map(|_| code == 0), "took_ms": took_ms});
        view::show(screen, format, &answer, |_| String::new())?;
    } else if code == 0 {
        screen.line(&format!("region {} is up on 127.{}.0.0/16 in {took}", options.name, region.record().network));
        for (at, next) in ["submit FILE --wait", "status", "drill"].iter().enumerate() {
            screen.line(&format!("  {:<5} {vpctl} {next}", if at == 0 { "next:" } else { "" }));
        }
    }
    Ok(code)
}

/// Waits until the cluster says that it is healthy; says what is missing when it does not in time.
///
/// # Errors
/// The region was taken down meanwhile.
async fn until_healthy(region: &Region, cluster: &Cluster, steps: &Steps<'_>, timeout: Duration) -> Result<u8, Failure> {
    let screen = steps.screen;
    let started = Instant::now();
    let bars = screen.bars();
    let bar = spinner(&bars, "cluster");
    let mut last = String::new();
    loop {
        let (healthy, text) = match cluster.status().await {
            Ok(status) => (status.health() == Health::Healthy && !status.slots.is_empty(), missing(&status)),
            Err(_) => (false, "coordinators are starting".to_owned()),
        };
        let took = span(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
        if healthy {
            bar.finish_and_clear();
            steps.line(&format!("  {:<20} {took:>9}", "cluster healthy"));
            return Ok(0);
        }
        if is_gone(region) {
            bar.finish_and_clear();
            return Err(Failure::Nowhere { reason: format!("the region in {} was taken down meanwhile", region.state().display()) });
        }
        if !screen.is_live() && text != last {
            screen.note(&format!("  cluster: {text}"));
        }
        bar.set_message(text.clone());
        last = text;
        if started.elapsed() >= timeout {
            bar.finish_and_clear();
            screen.note(&format!("{} after {took}: {last}", screen.toned(Tone::Bad, "the cluster is not healthy")));
            screen.note("  `vpctl status` and `vpctl plan` say what it waits for; `vpctl dev logs` lists the logs");
            return Ok(EXIT_DEGRADED);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// It is no more, or another has been brought up in its place.
fn is_gone(region: &Region) -> bool {
    match Region::open(region.state()) {
        Ok(now) => now.record().access_key_id != region.record().access_key_id,
        Err(error) => matches!(error, RegionError::Absent(_)),
    }
}

fn missing(status: &ClusterStatus) -> String {
    let healthy = status.slots.iter().filter(|s| s.phase() == Phase::Healthy).count();
    let ready = status.nodes.iter().filter(|n| n.lifecycle == "ready").count();
    let unwell: Vec<String> = status.slots.iter().filter(|s| s.phase() != Phase::Healthy).filter_map(|s| Some(s.slot.as_ref()?.to_string())).collect();
    let named = unwell[..unwell.len().min(NAMED)].join(" ");
    let unwell = match unwell.len().saturating_sub(NAMED) {
        _ if unwell.is_empty() => String::new(),
        0 => format!("; waiting for {named}"),
        more => format!("; waiting for {named} and {more} more"),
    };
    let leader = if status.leader_id == 0 { "no leader yet, " } else { "" };
    format!("{leader}{ready} nodes, {healthy} of {} slots healthy{unwell}", status.slots.len())
}

async fn down(state: PathBuf, options: DownOptions, screen: &Screen) -> Result<u8, Failure> {
    if !state.exists() {
        screen.line(&format!("no region in {}: nothing to take away", state.display()));
        return Ok(0);
    }
    let mut steps = Steps::new(screen, true, "nothing was left of it");
    let ended = region::down(&state, &options, &mut |progress| steps.tell(progress)).await;
    steps.end();
    ended?;
    screen.line(if options.keep { "region is down; its folder is kept" } else { "region is down; nothing of it is left" });
    Ok(0)
}

/// Steps as they go by: a spinner while one is under way, a line with its time when it is done.
struct Steps<'a> {
    screen: &'a Screen,
    /// Standard output is for them; otherwise it is left to the data.
    for_people: bool,
    /// What is told of a step that had nothing to do.
    unchanged: &'static str,
    bars: MultiProgress,
    current: Option<ProgressBar>,
}

impl<'a> Steps<'a> {
    fn new(screen: &'a Screen, for_people: bool, unchanged: &'static str) -> Self {
        Self { screen, for_people, unchanged, bars: screen.bars(), current: None }
    }

    fn tell(&mut self, progress: Progress) {
        match progress {
            Progress::Started { step } => {
                self.end();
                self.current = Some(spinner(&self.bars, step));
            }
            Progress::Done { step, took, changed } => {
                self.end();
                let took = span(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
                let note = if changed { String::new() } else { self.screen.paint(Tone::Dim, &format!("  {}", self.unchanged)) };
                self.line(&format!("  {step:<20} {took:>9}{note}"));
            }
        }
    }

    fn line(&self, text: &str) {
        if self.for_people { self.screen.line(text) } else { self.screen.note(text) }
    }

    fn end(&mut self) {
        if let Some(bar) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}

fn status_text(status: &RegionStatus, screen: &Screen) -> String {
    let mut services = Table::new(&["SERVICE", "STATE", "PID"]).indented(2);
    for service in &status.services {
        let state = match (service.alive, service.pid) {
            (true, _) => Cell::new(Tone::Good, "runs"),
            (false, Some(_)) => Cell::new(Tone::Bad, "is down"),
            (false, None) => Cell::new(Tone::Warn, "not started yet"),
        };
        services.row(vec![service.name.as_str().into(), state, service.pid.map(|p| p.to_string()).unwrap_or_default().into()]);
    }
    let mut instances = Table::new(&["INSTANCE", "EC2 SAYS", "PROCESS", "GROUP", "ZONE", "ADDRESS", "TYPE"]).indented(2);
    for one in &status.instances {
        let process = match (one.alive, one.pid) {
            (true, Some(pid)) => Cell::new(Tone::Good, format!("runs, pid {pid}")),
            (_, Some(_)) => Cell::new(Tone::Bad, "is gone"),
            (_, None) => Cell::new(Tone::Warn, "not booted yet"),
        };
        instances.row(vec![
            one.id.as_str().into(),
            one.state.as_str().into(),
            process,
            one.group.clone().unwrap_or_default().into(),
            one.zone.as_str().into(),
            one.address.as_str().into(),
            one.instance_type.as_str().into(),
        ]);
    }
    let head = screen.paint(Tone::Bold, &status.name);
    let half = status.services.iter().any(|service| service.pid.is_none()) || status.instances.is_empty();
    let half = if half { "\n  not all of it is up: `vpctl dev up` goes on from where it stopped\n" } else { "" };
    format!("{head}  {}\n\n{}\n{}{half}", status.network, services.render(screen), instances.render(screen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_survive_a_shell() {
        assert_eq!(quoted("http://127.38.0.2:5000"), "http://127.38.0.2:5000");
        assert_eq!(quoted("a b'c$(d)"), "'a b'\\''c$(d)'");
        assert_eq!(quoted(""), "''");
    }
}
