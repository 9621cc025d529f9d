//! The control thread's loop: wake, look, reconcile, take the steps, say what is. Triggers carry no input: whatever woke it, it
//! acts on the newest desired set and the world as it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fail::fail_point;
use prost::Message;
use vp_proto::v1;

use crate::clock::Instant;
use crate::durable::{FileError, make_folder, read_if_there, replace};
use crate::executor::Executor;
use crate::generations::{Generations, GenerationsError};
use crate::reconcile::reconcile;
use crate::sample::Sampler;
use crate::settings::Settings;
use crate::shared::Shared;
use crate::supervisor::process::Processes;
use crate::supervisor::{Supervisor, SupervisorError};
use crate::translate::{Wanted, wanted};
use crate::{catalogue, hosts, machine};

/// The agent cannot go on; started again it begins from its disk.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Its roles.
    #[error("the catalogue of roles cannot be used")]
    Catalogue(#[from] catalogue::CatalogueError),
    /// Its memory.
    #[error("the memory of accepted generations cannot be kept")]
    Generations(#[from] GenerationsError),
    /// Its disk.
    #[error("the agent's own state cannot be kept")]
    File(#[from] FileError),
    /// Its processes.
    #[error("running processes cannot be adopted")]
    Supervisor(#[from] SupervisorError),
}

const IDLE: Duration = Duration::from_secs(1);
const RESTLESS: Duration = Duration::from_millis(100);
const TIDY: Duration = Duration::from_secs(10);

/// Runs for ever.
///
/// # Errors
/// What cannot be repaired from inside.
pub async fn run(settings: Arc<Settings>, shared: Arc<Shared>) -> Result<(), ControlError> {
    let folder = settings.layout.agent();
    make_folder(&folder)?;
    let catalogue = catalogue::load(&settings.image.join("roles"))?;
    let generations = Generations::open(folder.clone())?;
    let supervisor = Processes::adopt(settings.layout.clone(), shared.wake.clone())?;
    let kept = folder.join("desired.pb");
    let mut control = Control {
        executor: Executor::new(settings.clone(), catalogue, supervisor, generations, shared.clone()),
        wanted: None,
        taken: (0, 0),
        last: None,
        settings,
        shared: shared.clone(),
    };
    // What was wanted last: crashed quorum roles come back while the coordinators are away. A damaged file is as none.
    if let Some(last) = read_if_there(&kept)?.and_then(|bytes| v1::Desired::decode(&bytes[..]).ok()) {
        control.take(&last)?;
    }
    let mut sampler = Sampler::new();
    let mut desired = shared.desired.subscribe();
    let mut tidied = Instant::now();
    loop {
        let newest = desired.borrow_and_update().clone();
        if let Some(newest) = newest {
            control.consider(&newest, &kept)?;
        }
        let pause = control.turn(&mut sampler)?;
        if Instant::now().since(tidied) > TIDY {
            control.executor.tidy();
            tidied = Instant::now();
        }
        tokio::select! {
            () = shared.wake.notified() => {}
            _ = desired.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct Control<S> {
    executor: Executor<S>,
    /// None until something was ever wanted: then nothing is stopped either.
    wanted: Option<Wanted>,
    taken: (u64, u64),
    last: Option<v1::Desired>,
    settings: Arc<Settings>,
    shared: Arc<Shared>,
}

impl<S: Supervisor> Control<S> {
    /// Takes a desired set from the leader unless it is the one taken last or an older one.
    fn consider(&mut self, newest: &v1::Desired, kept: &std::path::Path) -> Result<(), ControlError> {
        fail_point!("agent_control::consider");
        let order = (newest.term, newest.revision);
        if order < self.taken {
            tracing::debug!(term = newest.term, revision = newest.revision, "older desired set dropped");
            return Ok(());
        }
        // A gate that opens changes the set without a revision: within one order, the later word of the same leader counts.
        if order == self.taken && self.last.as_ref() == Some(newest) {
            return Ok(());
        }
        // The set is kept before its order: after a power cut between the two the set counts again, it is never lost behind its order.
        fail_point!("agent_control::keep_desired");
        replace(kept, &newest.encode_to_vec())?;
        fail_point!("agent_control::desired_kept");
        self.take(newest)
    }

    fn take(&mut self, desired: &v1::Desired) -> Result<(), ControlError> {
        let wanted = wanted(desired, self.executor.catalogue().keys());
        if self.executor.take(desired.term, desired.revision, &wanted)? {
            fail_point!("agent_control::publish_hosts");
            let content = hosts::content(&machine::hostname(), &self.settings.node.address.to_string(), &wanted.members);
            hosts::publish(&self.settings.layout.hosts_file(), &content)?;
            tracing::info!(term = desired.term, revision = desired.revision, slots = wanted.assignments.len(), "desired set taken");
            self.taken = (desired.term, desired.revision);
            self.wanted = Some(wanted);
            self.last = Some(desired.clone());
        } else {
            tracing::debug!(term = desired.term, revision = desired.revision, "older desired set dropped");
        }
        Ok(())
    }

    /// One look and the steps it asks for; returns the time until the next look if nothing happens before.
    fn turn(&mut self, sampler: &mut Sampler) -> Result<Duration, ControlError> {
        fail_point!("agent_control::turn");
        let nothing = Wanted::default();
        let wanted = self.wanted.as_ref().unwrap_or(&nothing);
        let now = Instant::now();
        let observed = self.executor.observe(wanted);
        let steps = match &self.wanted {
            Some(wanted) => reconcile(&wanted.assignments, &observed, now),
            None => Vec::new(),
        };
        for step in &steps {
            self.executor.perform(step, wanted, now)?;
        }
        fail_point!("agent_control::report");
        let mut report = self.executor.report(wanted, Instant::now());
        report.measures = sampler.measures(self.settings.layout.root());
        let news = said(&report.slots) != said(&self.shared.report().slots);
        *self.shared.report() = report;
        if news {
            self.shared.reported.notify_one();
        }
        let restless = self.executor.restless(&observed) || steps.iter().any(|step| !matches!(step.action, crate::reconcile::Action::Wait(_)));
        Ok(if restless { RESTLESS } else { IDLE })
    }
}

/// What is worth an early heartbeat: phases and generations, not messages.
fn said(slots: &[v1::SlotObservation]) -> BTreeMap<String, (u64, i32)> {
    let name = |o: &v1::SlotObservation| o.slot.as_ref().map(ToString::to_string).unwrap_or_default();
    slots.iter().map(|o| (name(o), (o.generation, o.phase))).collect()
}
