//! Job records as they lie on S3 (contracts §5), read for people: state, progress, results; and their download, verified.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use vp_cloud::s3::StoreError;
use vp_jobs::records::{Closed, JobResult, Manifest, Output, State, Submitted};
use vp_jobs::{JobId, Plan, Progress, keys};

use crate::failure::Failure;
use crate::place::Pipeline;

/// A job as `vpctl jobs` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Job {
    pub job: String,
    /// submitted (ingest has not read it yet), ingesting, queued, processing, closing, done, failed, cancelled
    pub state: String,
    /// Name of the uploaded file, as far as the key keeps it.
    pub file: Option<String>,
    pub bucket: Option<String>,
    pub key: Option<String>,
    pub bytes: Option<u64>,
    pub recipe: Option<String>,
    pub submitted_unix_ms: Option<u64>,
    pub segments_done: u64,
    /// null until the plan is written.
    pub segments_total: Option<u64>,
    pub cancel_requested: bool,
    /// Why it failed.
    pub reason: Option<String>,
    pub closed_unix_ms: Option<u64>,
    pub outputs: Vec<Output>,
}

impl Job {
    /// True when nothing more will happen to it.
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed" | "cancelled")
    }
}

/// Reads everything known of a job. A job nobody has taken yet is `submitted`.
pub async fn read(pipeline: &Pipeline, job: &JobId) -> Result<Job, Failure> {
    let (submitted_key, closed_key) = (keys::submitted(job), keys::closed(job));
    let (submitted, closed) = tokio::try_join!(fetch::<Submitted>(pipeline, &submitted_key), fetch::<Closed>(pipeline, &closed_key))?;
    let mut view = blank(job, submitted);
    if let Some(closed) = closed {
        view.state = state_word(closed.result.state).to_owned();
        view.reason = closed.result.reason;
        view.outputs = closed.result.outputs;
        view.closed_unix_ms = Some(closed.closed_unix_ms);
        return Ok(view);
    }
    let (plan_key, result_key, cancel_key) = (keys::plan(job), keys::result(job), keys::cancel(job));
    let (plan, result, cancel) =
        tokio::try_join!(fetch::<Plan>(pipeline, &plan_key), fetch::<JobResult>(pipeline, &result_key), fetch::<serde::de::IgnoredAny>(pipeline, &cancel_key))?;
    view.cancel_requested = cancel.is_some();
    // Of a job that is done all segments are: publish takes them away one by one while it closes the job.
    let done = result.as_ref().is_some_and(|result| result.state == State::Done);
    if let Some(result) = result {
        // The stream has decided, publish has not closed it yet.
        view.state = if result.state.is_final() { "closing" } else { "processing" }.to_owned();
        view.reason = result.reason;
        view.outputs = result.outputs;
    } else if plan.is_some() {
        view.state = "queued".to_owned();
    }
    if let Some(plan) = plan {
        let listed = pipeline.store.list(&pipeline.results, &keys::segment_outputs(job)).await?;
        let progress = Progress::of(&plan, listed.iter().map(|l| l.key.as_str()));
        view.segments_done = u64::from(if done { progress.total } else { progress.done });
        view.segments_total = Some(u64::from(progress.total));
    }
    Ok(view)
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Processing => "processing",
        State::Done => "done",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
    }
}

fn blank(job: &JobId, submitted: Option<Submitted>) -> Job {
    let taken = submitted.as_ref();
    Job {
        job: job.to_string(),
        state: if taken.is_some() { "ingesting" } else { "submitted" }.to_owned(),
        file: taken.map(|s| s.key.rsplit('/').next().unwrap_or(&s.key).to_owned()),
        bucket: taken.map(|s| s.bucket.clone()),
        key: taken.map(|s| s.key.clone()),
        bytes: taken.map(|s| s.size),
        recipe: taken.map(|s| s.recipe.clone()),
        submitted_unix_ms: taken.map(|s| s.submitted_unix_ms),
        segments_done: 0,
        segments_total: None,
        cancel_requested: false,
        reason: None,
        closed_unix_ms: None,
        outputs: Vec::new(),
    }
}

async fn fetch<T: DeserializeOwned>(pipeline: &Pipeline, key: &str) -> Result<Option<T>, Failure> {
    let bytes = match pipeline.store.get(&pipeline.results, key).await {
        Ok((bytes, _)) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let malformed = |e: serde_json::Error| Failure::Malformed { what: format!("s3://{}/{key}", pipeline.results), reason: e.to_string() };
    serde_json::from_slice(&bytes).map(Some).map_err(malformed)
}

/// The full id of the job that begins with `name`.
pub async fn named(pipeline: &Pipeline, name: &str) -> Result<JobId, Failure> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Failure::Usage(format!("{name:?} is not a job id: 20 hex digits, or a beginning of them")));
    }
    let listed = pipeline.store.list(&pipeline.results, &format!("{}{}", keys::JOBS, name.to_lowercase())).await?;
    let mut found: Vec<JobId> = listed.iter().filter_map(|l| Some(keys::parse_record(&l.key)?.0)).collect();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::Missing { what: "job", name: format!("{name} (or ingest has not taken its video yet)"), look: "vpctl jobs list" }),
        _ => Err(Failure::Usage(format!("{} jobs begin with {name}: give more of the id", found.len()))),
    }
}

/// Ids of the newest jobs, newest first.
pub async fn newest(pipeline: &Pipeline, limit: usize) -> Result<Vec<JobId>, Failure> {
    let listed = pipeline.store.list(&pipeline.results, keys::JOBS).await?;
    let mut first_seen: BTreeMap<JobId, u64> = BTreeMap::new();
    for object in &listed {
        if let Some((job, _)) = keys::parse_record(&object.key) {
            let at = first_seen.entry(job).or_insert(object.modified_unix_ms);
            *at = (*at).min(object.modified_unix_ms);
        }
    }
    let mut jobs: Vec<(u64, JobId)> = first_seen.into_iter().map(|(job, at)| (at, job)).collect();
    // The newest first; of one second, the only precision there is, by id.
    jobs.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    Ok(jobs.into_iter().take(limit).map(|(_, job)| job).collect())
}

/// Downloads a done job's files into `folder` and checks each against the manifest's SHA-256. Returns their paths.
pub async fn download(pipeline: &Pipeline, job: &JobId, folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let manifest_key = keys::manifest(job);
    let manifest: Manifest = fetch(pipeline, &manifest_key)
        .await?
        .ok_or_else(|| Failure::NotNow { what: format!("job {job} has no manifest yet"), next: format!("`vpctl jobs show {job}` shows how far it is") })?;
    tokio::fs::create_dir_all(folder).await.map_err(Failure::file(folder))?;
    let mut written = Vec::new();
    for output in &manifest.outputs {
        let path = folder.join(safe_name(&output.name)?);
        // Whole and verified before it has its name: a file that is there is right.
        let partial = folder.join(format!(".{}.partial", output.name));
        pipeline.store.get_to_file(&pipeline.results, &output.key, None, &partial).await?;
        let sha256 = hash(&partial).await?;
        if sha256 != output.sha256 {
            tokio::fs::remove_file(&partial).await.map_err(Failure::file(&partial))?;
            let reason = format!("its SHA-256 is {sha256}, the manifest says {}", output.sha256);
            return Err(Failure::Malformed { what: format!("s3://{}/{}", pipeline.results, output.key), reason });
        }
        tokio::fs::rename(&partial, &path).await.map_err(Failure::file(&path))?;
        written.push(path);
    }
    Ok(written)
}

/// A manifest is data: a name that would leave the folder is refused.
fn safe_name(name: &str) -> Result<&str, Failure> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0']) {
        return Err(Failure::Malformed { what: "the manifest".to_owned(), reason: format!("{name:?} is no file name") });
    }
    Ok(name)
}

async fn hash(path: &Path) -> Result<String, Failure> {
    let mut file = tokio::fs::File::open(path).await.map_err(Failure::file(path))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 256 * 1024];
    loop {
        let n = file.read(&mut block).await.map_err(Failure::file(path))?;
        if n == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&block[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_cannot_name_a_file_outside_the_folder() {
        for wrong in ["../x", "a/b", "..", ""] {
            assert!(safe_name(wrong).is_err(), "{wrong}");
        }
        assert_eq!(safe_name("360p.mp4").expect("a name"), "360p.mp4");
    }
}
