//! Carries out steps through the supervisor, and gathers what `reconcile` is asked with. It remembers of a slot only what no
//! restart needs: crashes, the probe, the last failure.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use fail::fail_point;

use crate::catalogue::{Catalogue, Fencing, Role};
use crate::clock::Instant;
use crate::durable::{FileError, make_folder, remove_folder, replace_volatile};
use crate::generations::{Generations, GenerationsError};
use crate::observations::{Claim, Facts, claim, observation, steady_after};
use crate::probes::{Probe, ProbeError, Watch};
use crate::reconcile::{Action, Observed, Process, Step, Waiting};
use crate::render::{Context, RenderError, Renderer, SlotContext};
use crate::settings::Settings;
use crate::shared::{Report, Shared};
use crate::slot::Slot;
use crate::supervisor::{Supervisor, SupervisorError, Unit};
use crate::translate::Wanted;

/// Why a role could not be started; it is tried again after the pause of a crash.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
}

/// Of one slot, in memory only.
#[derive(Default)]
struct Local {
    crashed: Option<(Instant, u32)>,
    failure: String,
    starts: u32,
    waiting: Option<Waiting>,
    watch: Option<Watch>,
    generation: u64,
}

/// The executor over a supervisor.
pub struct Executor<S> {
    settings: Arc<Settings>,
    catalogue: Catalogue,
    supervisor: S,
    generations: Generations,
    shared: Arc<Shared>,
    locals: BTreeMap<Slot, Local>,
}

/// How long the slot's role may take to be ready; zero when this image does not know the role.
fn start_timeout(catalogue: &Catalogue, slot: &Slot) -> Duration {
    catalogue.get(slot.role()).map_or(Duration::ZERO, |role| Duration::from_millis(role.start_timeout_ms))
}

impl<S: Supervisor> Executor<S> {
    /// Over what was adopted.
    pub fn new(settings: Arc<Settings>, catalogue: Catalogue, supervisor: S, generations: Generations, shared: Arc<Shared>) -> Self {
        Self { settings, catalogue, supervisor, generations, shared, locals: BTreeMap::new() }
    }

    /// The roles this image has.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// See [`Generations::take`].
    ///
    /// # Errors
    /// The disk.
    pub fn take(&mut self, term: u64, revision: u64, wanted: &Wanted) -> Result<bool, GenerationsError> {
        let named: Vec<_> = wanted.assignments.iter().map(|(slot, a)| (slot.clone(), a.generation)).collect();
        self.generations.take(term, revision, &named)
    }

    /// What is, of every slot that is wanted or runs.
    pub fn observe(&mut self, wanted: &Wanted) -> BTreeMap<Slot, Observed> {
        let slots: BTreeSet<Slot> = wanted.assignments.keys().cloned().chain(self.supervisor.slots()).collect();
        let mut observed = BTreeMap::new();
        for slot in slots {
            let status = self.supervisor.status(&slot);
            let assignment = wanted.assignments.get(&slot);
            let local = self.locals.entry(slot.clone()).or_default();
            if let Some(assignment) = assignment.filter(|a| a.generation != local.generation) {
                // Another generation begins with a clean sheet.
                *local = Local { generation: assignment.generation, watch: local.watch.take(), ..Local::default() };
            }
            let role = self.catalogue.get(slot.role());
            let known = self.generations.known(&slot);
            let volume = assignment.and_then(|a| a.volume.as_deref());
            let lease = assignment.and_then(|a| self.shared.leases().deadline(&slot, a.generation));
            let running = matches!(status.process, Process::Running { .. });
            if !running {
                local.watch = None;
            } else if let (None, Some(role), Some(_)) = (&local.watch, role, assignment) {
                // Adopted: it runs, and nobody asks it yet.
                let renderer = self::renderer(&self.settings, wanted, &slot, role);
                match Probe::new(&role.probe, &renderer, self.settings.node.address) {
                    Ok(probe) => local.watch = Some(Watch::begin(probe, self.shared.wake.clone())),
                    Err(error) => local.failure = error.to_string(),
                }
            }
            let seen = Observed {
                process: status.process,
                accepted: known.accepted,
                released: known.released,
                lease,
                volume_there: volume.is_some_and(|volume| self.settings.layout.volume(volume).is_dir()),
                known_role: role.is_some(),
                crashed: local.crashed,
                stop_timeout: role.map_or(Duration::from_secs(5), |role| role.stop.timeout()),
            };
            observed.insert(slot, seen);
        }
        self.note_exits(&mut observed);
        observed
    }

    fn note_exits(&mut self, observed: &mut BTreeMap<Slot, Observed>) {
        for exit in self.supervisor.exits() {
            let local = self.locals.entry(exit.slot.clone()).or_default();
            local.failure = exit.how;
            if exit.lease_over {
                local.failure = "killed at the end of its lease".into();
            } else {
                let before = local.crashed.filter(|_| exit.ran < steady_after(start_timeout(&self.catalogue, &exit.slot))).map_or(0, |(_, crashes)| crashes);
                local.crashed = Some((exit.at, before.saturating_add(1)));
            }
            if let Some(seen) = observed.get_mut(&exit.slot) {
                seen.crashed = local.crashed;
            }
        }
    }

    /// Takes one step.
    ///
    /// # Errors
    /// Only when the memory of generations cannot be kept: then our word would be worth nothing.
    pub fn perform(&mut self, step: &Step, wanted: &Wanted, now: Instant) -> Result<(), GenerationsError> {
        let slot = &step.slot;
        let waiting = match &step.action {
            Action::Wait(waiting) => Some(waiting.clone()),
            _ => None,
        };
        let local = self.locals.entry(slot.clone()).or_default();
        if waiting.is_some() && waiting != local.waiting {
            tracing::info!(%slot, reason = waiting.as_ref().map(|w| w.sentence(now)), "slot waits");
        }
        local.waiting = waiting;
        match &step.action {
            Action::Wait(_) => {}
            Action::Start { generation, deadline } => {
                fail_point!("executor::start");
                local.starts += 1;
                match self.start(slot, *generation, *deadline, wanted) {
                    Ok(()) => tracing::info!(%slot, generation, "role started"),
                    Err(error) => {
                        let failure = chain(&error);
                        tracing::warn!(%slot, generation, error = failure, "role not started");
                        let local = self.locals.entry(slot.clone()).or_default();
                        local.failure = failure;
                        local.crashed = Some((now, local.crashed.map_or(0, |(_, crashes)| crashes).saturating_add(1)));
                    }
                }
            }
            Action::Stop => {
                fail_point!("executor::stop");
                let signal = self.catalogue.get(slot.role()).map_or(nix::sys::signal::Signal::SIGTERM, |role| role.stop.signal());
                tracing::info!(%slot, %signal, "role asked to end");
                self.supervisor.stop(slot, signal, now);
            }
            Action::Kill => {
                fail_point!("executor::kill");
                tracing::info!(%slot, "role killed");
                self.supervisor.kill(slot, now);
            }
            Action::Release { generation } => {
                fail_point!("executor::release");
                self.generations.release(slot, *generation)?;
                tracing::info!(%slot, generation, "slot given back");
            }
        }
        Ok(())
    }

    fn start(&mut self, slot: &Slot, generation: u64, deadline: Option<Instant>, wanted: &Wanted) -> Result<(), StartError> {
        // `reconcile` starts known roles only.
        let Some(role) = self.catalogue.get(slot.role()) else { return Ok(()) };
        let layout = &self.settings.layout;
        let renderer = renderer(&self.settings, wanted, slot, role);
        let rendered = renderer.role(role)?;
        let probe = Probe::new(&role.probe, &renderer, self.settings.node.address)?;
        let volume = wanted.assignments.get(slot).and_then(|a| a.volume.as_deref());
        let (config, temporary) = (layout.config_dir(slot), layout.temp_dir(slot));
        // Nothing of the slot runs: whatever lies there is of processes that were killed. That it stays is no reason not to start.
        if let Err(error) = remove_folder(&temporary) {
            tracing::warn!(%slot, error = chain(&error), "old temporary files stay");
        }
        for folder in [&config, &temporary, &layout.data_dir(slot, volume), &layout.run_dir(slot), &layout.log_dir(slot)] {
            make_folder(folder)?;
        }
        probe.forget_answer()?;
        for (name, content) in &rendered.files {
            replace_volatile(&config.join(name), content.as_bytes())?;
        }
        let mut environment = self.settings.environment.clone();
        fail_point!("executor::rendered");
        environment.insert("VP_SLOT".into(), slot.to_string());
        environment.insert("VP_GENERATION".into(), generation.to_string());
        environment.insert("TMPDIR".into(), temporary.display().to_string());
        environment.extend(rendered.environment);
        self.supervisor.start(&Unit {
            slot: slot.clone(),
            generation,
            command: rendered.command,
            environment,
            run_dir: layout.run_dir(slot),
            log_file: layout.log_dir(slot).join(format!("{slot}.log")),
            nice: role.nice,
            deadline,
        })?;
        let local = self.locals.entry(slot.clone()).or_default();
        local.watch = Some(Watch::begin(probe, self.shared.wake.clone()));
        Ok(())
    }

    /// What the next heartbeat is to say; and forgets slots of which nothing is left.
    pub fn report(&mut self, wanted: &Wanted, now: Instant) -> Report {
        let mut report = Report::default();
        let running: BTreeSet<Slot> = self.supervisor.slots().into_iter().collect();
        self.locals.retain(|slot, _| wanted.assignments.contains_key(slot) || running.contains(slot));
        for (slot, local) in &self.locals {
            let assignment = wanted.assignments.get(slot);
            let known = self.generations.known(slot);
            let generation = assignment.map_or(known.accepted, |a| a.generation);
            let released = matches!(assignment.and_then(|a| claim(a, known)), Some(Claim::GivenBack { .. }));
            let status = self.supervisor.status(slot);
            let facts = Facts {
                slot,
                generation,
                released,
                status,
                health: local.watch.as_ref().map(Watch::health),
                waiting: local.waiting.as_ref(),
                failure: &local.failure,
                restarts: local.starts.saturating_sub(1),
                ends: local.crashed.map_or(0, |(_, ends)| ends),
                start_timeout: start_timeout(&self.catalogue, slot),
            };
            let said = observation(&facts, now);
            match assignment.and_then(|assignment| claim(assignment, known)) {
                Some(Claim::GivenBack { generation }) => report.released.push(slot.at(generation)),
                Some(Claim::Holds) => {
                    report.pairs.insert((slot.clone(), said.generation));
                    if assignment.is_some_and(|a| a.fencing == Fencing::Exclusive) && status.pid != 0 {
                        report.guards.push((slot.clone(), said.generation, self.settings.layout.run_dir(slot)));
                    }
                }
                None => {}
            }
            report.slots.push(said);
        }
        report
    }

    /// Housekeeping.
    pub fn tidy(&mut self) {
        self.supervisor.tidy();
    }

    /// Something is under way that no event announces: look again soon.
    pub fn restless(&self, observed: &BTreeMap<Slot, Observed>) -> bool {
        let ending = observed.values().any(|seen| matches!(seen.process, Process::Stopping { .. } | Process::Leftovers));
        let soon = |local: &Local| matches!(local.waiting, Some(Waiting::Volume(_) | Waiting::Backoff(_)));
        ending || self.locals.values().any(soon)
    }
}

/// A failure with its causes, for a person.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn renderer(settings: &Settings, wanted: &Wanted, slot: &Slot, role: &Role) -> Renderer {
    let assignment = wanted.assignments.get(slot);
    let (member_id, params) = wanted.details.get(slot).cloned().unwrap_or_default();
    let layout = &settings.layout;
    let absolute = |path: &std::path::Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let context = Context {
        slot: SlotContext {
            role: slot.role().to_owned(),
            index: slot.index(),
            name: slot.to_string(),
            generation: assignment.map_or(0, |a| a.generation),
            member_id,
        },
        node: settings.node.clone(),
        cluster: settings.cluster.clone(),
        region: settings.region.clone(),
        aws: settings.aws.clone(),
        buckets: settings.buckets.clone(),
        config_dir: layout.config_dir(slot),
        data_dir: layout.data_dir(slot, assignment.and_then(|a| a.volume.as_deref())),
        run_dir: layout.run_dir(slot),
        log_dir: layout.log_dir(slot),
        temp_dir: layout.temp_dir(slot),
        hosts_file: layout.hosts_file(),
        components: absolute(&settings.components),
        image: settings.image.clone(),
        java: crate::machine::java(),
        members: wanted.members.clone(),
        params,
    };
    Renderer::new(&context, &role.ports)
}
