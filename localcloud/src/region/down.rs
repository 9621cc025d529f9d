//! Taking a region away: keeper first (so that nothing is booted any more), then instances, services, whatever else names the state
//! folder, control groups, and the folder. Works on what is left of a region whose record was never written, and a second time.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::options::network_of;
use super::record::MARK;
use super::{DownOptions, Progress, Record, RecordedProcess, RegionError, checks, lock, services};
use crate::keeper::disk::Disk;
use crate::keeper::{cgroup, config::Config};
use crate::lambda::process as lambda;
use crate::process;

/// How long a service may take to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// The steps of an `up` under way take seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes away the region whose state is in `state`, also one that a crash left half-made. Absent state is success.
///
/// # Errors
/// `Foreign` when the folder is none of a region's, `Invalid` when it is a link or another region's than the one named: nothing was touched. `File` when a process
/// cannot be ended or a file not removed.
pub async fn down(state: &Path, options: &DownOptions, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<(), RegionError> {
    if !state.exists() {
        return Ok(());
    }
    // One that hangs does not keep a region from being taken away.
    let _lock = lock::take(state, PATIENCE, progress).await?;
    let record = match Record::load(state) {
        Ok(record) => Some(record),
        Err(RegionError::Absent(_) | RegionError::Malformed { .. }) => None,
        Err(other) => return Err(other),
    };
    if !Record::is_ours(state) {
        return Err(RegionError::Foreign(state.to_path_buf()));
    }
    if let (Some(wanted), Some(record)) = (&options.name, &record)
        && *wanted != record.name
    {
        return Err(RegionError::Invalid(format!("the region in {} is {}, not {wanted}: nothing was taken away", state.display(), record.name)));
    }
    let fail = |source| RegionError::File { path: state.to_path_buf(), doing: "ending a process of the region", source };
    let known = |name: &str| record.as_ref().and_then(|record| record.services.get(name).copied());

    let mut step = Step::begin(progress, "keeper");
    let mut changed = end_all(known(services::KEEPER), &strays(state, services::marks(services::KEEPER))).await.map_err(fail)?;
    // A birth under way ends with its outer process; after the keeper is gone no other begins.
    for birth in strays(state, &["vp-localcloud", "instance-init"]) {
        changed |= process::kill(&birth).await.map_err(fail)?;
    }
    step.done(progress, changed);

    step = Step::begin(progress, "instances");
    changed = false;
    for disk in Disk::all(state) {
        if let Ok(Some(init)) = disk.init() {
            changed |= process::kill(&init).await.map_err(fail)?;
        }
    }
    step.done(progress, changed);

    step = Step::begin(progress, "services");
    changed = end_all(known(services::LAMBDA), &strays(state, services::marks(services::LAMBDA))).await.map_err(fail)?;
    if let Some(record) = &record {
        let service = lambda::service_url(network_of(record.network), checks::LAMBDA_PORT);
        let function = format!("{}={service}/", lambda::RUNTIME_API).into_bytes();
        for left in process::find(|_, environment| environment.split(|byte| *byte == 0).any(|one| one.starts_with(&function))) {
            changed |= process::kill(&left).await.map_err(fail)?;
        }
    }
    changed |= end_all(known(services::S3), &strays(state, services::marks(services::S3))).await.map_err(fail)?;
    changed |= end_all(known(services::CONTROL_API), &strays(state, services::marks(services::CONTROL_API))).await.map_err(fail)?;
    step.done(progress, changed);

    step = Step::begin(progress, "control groups");
    let name = record.as_ref().map(|record| record.name.clone()).or_else(|| Config::load(state).ok().map(|config| config.name));
    if let Some(name) = name {
        cgroup::remove_region(&name);
    }
    step.done(progress, true);

    step = Step::begin(progress, "state folder");
    changed = !options.keep && state.exists();
    if changed {
        // Record and mark go last: a removal that is cut off can be repeated.
        let remove = |path: &Path| if path.is_dir() && !path.is_symlink() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        let fail = |source| RegionError::File { path: state.to_path_buf(), doing: "removing the state folder", source };
        let last = [Record::path(state), state.join(MARK)];
        for entry in std::fs::read_dir(state).map_err(fail)?.flatten().filter(|entry| !last.contains(&entry.path())) {
            remove(&entry.path()).map_err(fail)?;
        }
        std::fs::remove_dir_all(state).map_err(fail)?;
    }
    step.done(progress, changed);
    Ok(())
}

/// Processes of ours that name the state folder, recorded or not. `marks`: words that the command line must hold.
pub(super) fn strays(state: &Path, marks: &[&str]) -> Vec<RecordedProcess> {
    process::find(|arguments, _| {
        let holds = |mark: &&str| arguments.iter().take(4).any(|argument| Path::new(argument).file_name() == Some(OsStr::new(mark)));
        marks.iter().all(holds) && process::names(arguments, state)
    })
}

async fn end_all(recorded: Option<RecordedProcess>, strays: &[RecordedProcess]) -> std::io::Result<bool> {
    let mut ended = false;
    for one in recorded.iter().chain(strays) {
        ended |= process::end(one, GRACE).await?;
    }
    Ok(ended)
}

/// A step being told of.
pub(super) struct Step {
    name: &'static str,
    began: Instant,
}

impl Step {
    pub(super) fn begin(progress: &mut (dyn FnMut(Progress) + Send), name: &'static str) -> Self {
        progress(Progress::Started { step: name });
        Self { name, began: Instant::now() }
    }

    pub(super) fn done(self, progress: &mut (dyn FnMut(Progress) + Send), changed: bool) {
        progress(Progress::Done { step: self.name, took: self.began.elapsed(), changed });
    }
}
