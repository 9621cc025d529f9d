//! The control thread's loop: wake, look, reconcile, take the steps, say what is. Triggers carry no input: whatever woke it, it
//! acts on the newest desired set and the world as it is. A full disk ends nothing: what it does not keep is tried again (`disk`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fail::fail_point;
use prost::Message;
use vp_proto::v1;

use crate::clock::Instant;
use crate::disk::{Disk, Unkept};
use crate::durable::{FileError, make_folder, read_if_there, replace};
use crate::executor::Executor;
use crate::generations::{Generations, GenerationsError};
use crate::reconcile::{Action, reconcile};
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
    let generations = Generations::open(folder)?;
    let supervisor = Processes::adopt(settings.layout.clone(), shared.wake.clone())?;
    let executor = Executor::new(settings.clone(), catalogue, supervisor, generations, shared.clone());
    let mut control = Control::new(executor, settings, shared.clone());
    // What was wanted last: crashed quorum roles come back while the coordinators are away. A damaged file is as none.
    let last = read_if_there(&control.kept)?.and_then(|bytes| v1::Desired::decode(&bytes[..]).ok()).map(Arc::new);
    if let Some(last) = &last {
        control.resume(last, Instant::now())?;
    }
    let mut sampler = Sampler::new();
    let mut desired = shared.desired.subscribe();
    let mut tidied = Instant::now();
    loop {
        let newest = desired.borrow_and_update().clone().or_else(|| last.clone());
        let pause = control.round(newest.as_deref(), &mut sampler, Instant::now())?;
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

/// What the disk refused to keep, apart from what ends the agent.
fn refused(outcome: Result<(), ControlError>) -> Result<Option<FileError>, ControlError> {
    match outcome {
        Ok(()) => Ok(None),
        Err(ControlError::File(error) | ControlError::Generations(GenerationsError::File(error))) => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

struct Control<S> {
    executor: Executor<S>,
    /// None until something was ever wanted: then nothing is stopped either.
    wanted: Option<Wanted>,
    taken: (u64, u64),
    last: Option<v1::Desired>,
    /// Where the set taken last is kept.
    kept: PathBuf,
    disk: Disk,
    settings: Arc<Settings>,
    shared: Arc<Shared>,
}

impl<S: Supervisor> Control<S> {
    fn new(executor: Executor<S>, settings: Arc<Settings>, shared: Arc<Shared>) -> Self {
        let kept = settings.layout.agent().join("desired.pb");
        Self { executor, wanted: None, taken: (0, 0), last: None, kept, disk: Disk::default(), settings, shared }
    }

    /// Takes the set that was kept before the agent started.
    fn resume(&mut self, last: &v1::Desired, now: Instant) -> Result<(), ControlError> {
        let unkept = refused(self.take(last))?.map(|error| Unkept::new(&error, Some(last)));
        self.disk.tried(unkept, now);
        Ok(())
    }

    /// The newest set, one look, and the report of it; returns the time until the next round if nothing happens before. What the disk does not keep is left
    /// for a later round: roles, leases and heartbeats go on as they are.
    fn round(&mut self, newest: Option<&v1::Desired>, sampler: &mut Sampler, now: Instant) -> Result<Duration, ControlError> {
        let may_write = self.disk.is_due(now);
        let mut unkept = None;
        if let Some(newest) = newest.filter(|_| may_write) {
            unkept = refused(self.consider(newest))?.map(|error| Unkept::new(&error, Some(newest)));
        }
        let restless = self.turn(may_write, &mut unkept)?;
        if may_write {
            self.disk.tried(unkept, now);
        }
        self.report(sampler);
        Ok(if restless { RESTLESS } else { IDLE })
    }

    /// Takes a desired set from the leader unless it is the one taken last or an older one.
    fn consider(&mut self, newest: &v1::Desired) -> Result<(), ControlError> {
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
        replace(&self.kept, &newest.encode_to_vec())?;
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

    /// One look and the steps it asks for; returns whether another should follow soon. Our word is given only once it is kept.
    fn turn(&mut self, may_write: bool, unkept: &mut Option<Unkept>) -> Result<bool, ControlError> {
        fail_point!("agent_control::turn");
        let nothing = Wanted::default();
        let wanted = self.wanted.as_ref().unwrap_or(&nothing);
        let now = Instant::now();
        let observed = self.executor.observe(wanted);
        let mut steps = match &self.wanted {
            Some(wanted) => reconcile(&wanted.assignments, &observed, now),
            None => Vec::new(),
        };
        steps.retain(|step| may_write || !matches!(step.action, Action::Release { .. }));
        for step in &steps {
            let performed = self.executor.perform(step, wanted, now).map_err(ControlError::from);
            if let Some(error) = refused(performed)? {
                unkept.get_or_insert_with(|| Unkept::new(&error, None));
            }
        }
        Ok(self.executor.restless(&observed) || steps.iter().any(|step| !matches!(step.action, Action::Wait(_))))
    }

    fn report(&mut self, sampler: &mut Sampler) {
        fail_point!("agent_control::report");
        let nothing = Wanted::default();
        let mut report = self.executor.report(self.wanted.as_ref().unwrap_or(&nothing), Instant::now());
        report.measures = sampler.measures(self.settings.layout.root());
        self.disk.tell(&mut report.slots);
        let news = said(&report.slots) != said(&self.shared.report().slots);
        *self.shared.report() = report;
        if news {
            self.shared.reported.notify_one();
        }
    }
}

/// What is worth an early heartbeat: phases and generations, not messages.
fn said(slots: &[v1::SlotObservation]) -> BTreeMap<String, (u64, i32)> {
    let name = |o: &v1::SlotObservation| o.slot.as_ref().map(ToString::to_string).unwrap_or_default();
    slots.iter().map(|o| (name(o), (o.generation, o.phase))).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::layout::Layout;
    use crate::settings::{Aws, Buckets, Node};
    use crate::slot::Slot;
    use crate::supervisor::{Exit, Status, Unit};

    /// Nothing ever runs.
    struct Nowhere;

    impl Supervisor for Nowhere {
        fn start(&mut self, _: &Unit) -> Result<(), SupervisorError> {
            Ok(())
        }
        fn stop(&mut self, _: &Slot, _: nix::sys::signal::Signal, _: Instant) {}
        fn kill(&mut self, _: &Slot, _: Instant) {}
        fn status(&mut self, _: &Slot) -> Status {
            Status::default()
        }
        fn slots(&self) -> Vec<Slot> {
            Vec::new()
        }
        fn exits(&mut self) -> Vec<Exit> {
            Vec::new()
        }
        fn tidy(&mut self) {}
    }

    fn settings(root: PathBuf) -> Settings {
        Settings {
            cluster: "t".into(),
            region: "us-east-1".into(),
            coordinators: Vec::new(),
            root: vp_trust::RootHash::of(b""),
            lease: Duration::from_secs(4),
            aws: Aws::default(),
            buckets: Buckets::default(),
            node: Node {
                instance_id: "i-1".into(),
                address: std::net::IpAddr::from([127, 35, 1, 20]),
                zone: "us-east-1a".into(),
                instance_type: "t3.small".into(),
                vcpus: 2,
                memory_mib: 2048,
            },
            layout: Layout::new(root.clone(), root.clone()),
            image: root.clone(),
            components: root,
            identity: (String::new(), String::new()),
            environment: BTreeMap::new(),
        }
    }

    struct Bench {
        dir: tempfile::TempDir,
        control: Control<Nowhere>,
        sampler: Sampler,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let control = begin(dir.path());
            Self { dir, control, sampler: Sampler::new(), now: Instant(1_000_000_000) }
        }

        /// A folder where the file is written first: no disk would take it. Unlike a missing right this stops root too.
        fn refuse(&self, file: &str) -> PathBuf {
            let folder = self.dir.path().join("agent").join(format!("{file}.new"));
            fs::create_dir(&folder).unwrap();
            folder
        }

        /// One round, a second after the one before.
        fn round(&mut self, newest: &v1::Desired) {
            self.now = self.now.after(Duration::from_secs(1));
            self.control.round(Some(newest), &mut self.sampler, self.now).unwrap();
        }

        fn message(&self) -> String {
            self.control.shared.report().slots.first().map(|said| said.message.clone()).unwrap_or_default()
        }

        fn released(&self) -> usize {
            self.control.shared.report().released.len()
        }
    }

    fn begin(root: &std::path::Path) -> Control<Nowhere> {
        let (settings, shared) = (Arc::new(settings(root.to_owned())), Arc::new(Shared::new()));
        let generations = Generations::open(settings.layout.agent()).unwrap();
        Control::new(Executor::new(settings.clone(), catalogue::Catalogue::new(), Nowhere, generations, shared.clone()), settings, shared)
    }

    fn set(revision: u64, stop: bool) -> v1::Desired {
        let slot = Some(v1::SlotRef { role: "kafka".into(), index: 1 });
        let assignment = v1::Assignment { slot, generation: 7, fencing: "quorum".into(), stop, ..v1::Assignment::default() };
        v1::Desired { term: 1, revision, assignments: vec![assignment], ..v1::Desired::default() }
    }

    #[test]
    fn a_set_that_cannot_be_kept_is_not_taken_until_it_can() {
        for file in ["desired.pb", "generations.json"] {
            let mut bench = Bench::new();
            let obstacle = bench.refuse(file);
            bench.round(&set(1, false));
            assert!(bench.control.wanted.is_none(), "{file}");
            assert!(bench.message().starts_with("the agent's state cannot be kept"), "{file}: {}", bench.message());
            assert!(bench.control.shared.report().pairs.is_empty(), "{file}: it claims nothing that it has not kept");
            fs::remove_dir(obstacle).unwrap();
            bench.round(&set(1, false));
            assert_eq!(bench.control.taken, (1, 1), "{file}");
            assert_eq!(bench.message(), "this image has no such role", "{file}");
        }
    }

    #[test]
    fn what_was_taken_before_holds_while_a_later_set_cannot_be_kept() {
        let mut bench = Bench::new();
        bench.round(&set(1, false));
        bench.refuse("desired.pb");
        bench.round(&set(2, true));
        let pairs = bench.control.shared.report().pairs.len();
        assert_eq!((bench.control.taken, pairs, bench.released()), ((1, 1), 1, 0));
    }

    #[test]
    fn a_slot_is_not_given_back_while_that_cannot_be_kept() {
        let mut bench = Bench::new();
        bench.control.consider(&set(1, true)).unwrap();
        let obstacle = bench.refuse("generations.json");
        bench.round(&set(1, true));
        assert_eq!(bench.released(), 0);
        assert!(bench.message().starts_with("the agent's state cannot be kept"), "{}", bench.message());
        fs::remove_dir(obstacle).unwrap();
        bench.round(&set(1, true));
        assert_eq!((bench.released(), bench.message()), (1, String::new()));
    }

    #[test]
    fn an_agent_that_starts_on_a_full_disk_takes_what_it_has_kept() {
        let mut bench = Bench::new();
        bench.round(&set(1, false));
        bench.refuse("desired.pb");
        bench.refuse("generations.json");
        let mut again = begin(bench.dir.path());
        again.resume(&set(1, false), bench.now).unwrap();
        assert_eq!(again.taken, (1, 1));
    }
}
