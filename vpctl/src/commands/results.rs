//! Job records as they lie on S3 (contracts §5), read for people: state, progress, results; and their download, verified.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use vp_cloud::s3::StoreError;

use crate::failure::Failure;
use crate::place::Pipeline;

/// `jobs/JOB/submitted.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Submitted {
    pub bucket: String,
    pub key: String,
    pub size: u64,
    pub recipe: String,
    pub submitted_unix_ms: u64,
}

/// What progress needs of `jobs/JOB/plan.json`.
#[derive(Debug, Clone, Deserialize)]
struct PlanRecord {
    recipe: PlanRecipe,
    segments: Vec<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
struct PlanRecipe {
    outputs: Vec<PlanOutput>,
}

#[derive(Debug, Clone, Deserialize)]
struct PlanOutput {
    name: String,
}

/// `jobs/JOB/result.json` and `closed.json`.
#[derive(Debug, Clone, Deserialize)]
struct ResultRecord {
    state: String,
    reason: Option<String>,
    #[serde(default)]
    outputs: Vec<Output>,
    closed_unix_ms: Option<u64>,
}

/// One file of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    pub name: String,
    pub key: String,
    pub bytes: u64,
    pub sha256: String,
    pub content_type: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Manifest {
    outputs: Vec<Output>,
}

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

/// The id of a job: first 20 hex digits of SHA-256 over bucket, key, entity tag and recipe, with NUL between.
pub fn job_id(bucket: &str, key: &str, etag: &str, recipe: &str) -> String {
    let digest = Sha256::digest([bucket, key, etag.trim_matches('"'), recipe].join("\0"));
    hex::encode(digest)[..20].to_owned()
}

/// Reads everything known of a job. A job nobody has taken yet is `submitted`.
pub async fn read(pipeline: &Pipeline, job: &str) -> Result<Job, Failure> {
    let record = |name: &str| format!("jobs/{job}/{name}.json");
    let submitted_key = record("submitted");
    let closed_key = record("closed");
    let (submitted, closed) = tokio::try_join!(
        fetch::<Submitted>(pipeline, &submitted_key),
        fetch::<ResultRecord>(pipeline, &closed_key)
    )?;
    let mut view = blank(job, submitted);
    if let Some(closed) = closed {
        view.state = closed.state;
        view.reason = closed.reason;
        view.outputs = closed.outputs;
        view.closed_unix_ms = closed.closed_unix_ms;
        return Ok(view);
    }
    let (plan_key, result_key, cancel_key) = (record("plan"), record("result"), record("cancel"));
    let (plan, result, cancel) = tokio::try_join!(
        fetch::<PlanRecord>(pipeline, &plan_key),
        fetch::<ResultRecord>(pipeline, &result_key),
        fetch::<serde::de::IgnoredAny>(pipeline, &cancel_key)
    )?;
    view.cancel_requested = cancel.is_some();
    if let Some(result) = result {
        // The stream has decided, publish has not closed it yet.
        view.state = if result.state == "processing" {
            result.state
        } else {
            "closing".to_owned()
        };
        view.reason = result.reason;
        view.outputs = result.outputs;
    } else if plan.is_some() {
        view.state = "queued".to_owned();
    }
    if let Some(plan) = plan {
        view.segments_total = u64::try_from(plan.segments.len()).ok();
        view.segments_done = segments_done(pipeline, job, plan.recipe.outputs.len()).await?;
    }
    Ok(view)
}

fn blank(job: &str, submitted: Option<Submitted>) -> Job {
    let taken = submitted.as_ref();
    Job {
        job: job.to_owned(),
        state: if taken.is_some() {
            "ingesting"
        } else {
            "submitted"
        }
        .to_owned(),
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

async fn segments_done(pipeline: &Pipeline, job: &str, outputs: usize) -> Result<u64, Failure> {
    let prefix = format!("work/{job}/out/");
    let listed = pipeline.store.list(&pipeline.results, &prefix).await?;
    Ok(count_done(
        listed.iter().filter_map(|l| l.key.strip_prefix(&prefix)),
        outputs,
    ))
}

/// Segments (five digits) that have as many outputs as the recipe names.
fn count_done<'a>(keys: impl Iterator<Item = &'a str>, outputs: usize) -> u64 {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for key in keys {
        if let Some((segment, _)) = key.split_once('/')
            && segment.bytes().all(|b| b.is_ascii_digit())
        {
            *seen.entry(segment).or_default() += 1;
        }
    }
    seen.values().filter(|have| **have >= outputs).count() as u64
}

async fn fetch<T: DeserializeOwned>(pipeline: &Pipeline, key: &str) -> Result<Option<T>, Failure> {
    let bytes = match pipeline.store.get(&pipeline.results, key).await {
        Ok((bytes, _)) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let malformed = |e: serde_json::Error| Failure::Malformed {
        what: format!("s3://{}/{key}", pipeline.results),
        reason: e.to_string(),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(malformed)
}

/// The full id of the job that begins with `name`.
pub async fn named(pipeline: &Pipeline, name: &str) -> Result<String, Failure> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Failure::Usage(format!(
            "{name:?} is not a job id: 20 hex digits, or a beginning of them"
        )));
    }
    let listed = pipeline
        .store
        .list(&pipeline.results, &format!("jobs/{name}"))
        .await?;
    let mut found: Vec<&str> = listed
        .iter()
        .filter_map(|l| l.key.strip_prefix("jobs/")?.split('/').next())
        .collect();
    found.dedup();
    match found.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(Failure::Missing {
            what: "job",
            name: name.to_owned(),
            look: "vpctl jobs list",
        }),
        _ => Err(Failure::Usage(format!(
            "{} jobs begin with {name}: give more of the id",
            found.len()
        ))),
    }
}

/// Ids of the newest jobs, newest first.
pub async fn newest(pipeline: &Pipeline, limit: usize) -> Result<Vec<String>, Failure> {
    let listed = pipeline.store.list(&pipeline.results, "jobs/").await?;
    let mut first_seen: BTreeMap<&str, u64> = BTreeMap::new();
    for object in &listed {
        if let Some(job) = object
            .key
            .strip_prefix("jobs/")
            .and_then(|k| k.split('/').next())
        {
            let at = first_seen.entry(job).or_insert(object.modified_unix_ms);
            *at = (*at).min(object.modified_unix_ms);
        }
    }
    let mut jobs: Vec<(u64, &str)> = first_seen.into_iter().map(|(job, at)| (at, job)).collect();
    jobs.sort_unstable_by(|a, b| b.cmp(a));
    Ok(jobs
        .into_iter()
        .take(limit)
        .map(|(_, job)| job.to_owned())
        .collect())
}

/// Downloads a done job's files into `folder` and checks each against the manifest's SHA-256. Returns their paths.
pub async fn download(
    pipeline: &Pipeline,
    job: &str,
    folder: &Path,
) -> Result<Vec<PathBuf>, Failure> {
    let manifest_key = format!("results/{job}/manifest.json");
    let manifest: Manifest =
        fetch(pipeline, &manifest_key)
            .await?
            .ok_or_else(|| Failure::NotNow {
                what: format!("job {job} has no manifest yet"),
                next: format!("`vpctl jobs show {job}` shows how far it is"),
            })?;
    tokio::fs::create_dir_all(folder)
        .await
        .map_err(Failure::file(folder))?;
    let mut written = Vec::new();
    for output in &manifest.outputs {
        let path = folder.join(safe_name(&output.name)?);
        // Whole and verified before it has its name: a file that is there is right.
        let partial = folder.join(format!(".{}.partial", output.name));
        pipeline
            .store
            .get_to_file(&pipeline.results, &output.key, None, &partial)
            .await?;
        let sha256 = hash(&partial).await?;
        if sha256 != output.sha256 {
            tokio::fs::remove_file(&partial)
                .await
                .map_err(Failure::file(&partial))?;
            let reason = format!(
                "its SHA-256 is {sha256}, the manifest says {}",
                output.sha256
            );
            return Err(Failure::Malformed {
                what: format!("s3://{}/{}", pipeline.results, output.key),
                reason,
            });
        }
        tokio::fs::rename(&partial, &path)
            .await
            .map_err(Failure::file(&path))?;
        written.push(path);
    }
    Ok(written)
}

/// A manifest is data: a name that would leave the folder is refused.
fn safe_name(name: &str) -> Result<&str, Failure> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0']) {
        return Err(Failure::Malformed {
            what: "the manifest".to_owned(),
            reason: format!("{name:?} is no file name"),
        });
    }
    Ok(name)
}

async fn hash(path: &Path) -> Result<String, Failure> {
    let mut file = tokio::fs::File::open(path)
        .await
        .map_err(Failure::file(path))?;
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
    fn a_job_id_is_as_the_contract_says_and_ignores_quotes_around_the_tag() {
        // printf 'b\0k\0e\0default' | sha256sum | cut -c1-20
        assert_eq!(job_id("b", "k", "e", "default"), "0ef4f912d9d3e245017c");
        assert_eq!(
            job_id("b", "k", "\"e\"", "default"),
            job_id("b", "k", "e", "default")
        );
    }

    #[test]
    fn a_segment_counts_once_all_its_outputs_are_there_and_audio_never() {
        let keys = [
            "00000/360p.mp4",
            "00000/sheet.jpg",
            "00001/360p.mp4",
            "audio/360p.mp4",
            "audio/sheet.jpg",
        ];
        assert_eq!(count_done(keys.into_iter(), 2), 1);
    }

    #[test]
    fn a_manifest_cannot_name_a_file_outside_the_folder() {
        for wrong in ["../x", "a/b", "..", ""] {
            assert!(safe_name(wrong).is_err(), "{wrong}");
        }
        assert_eq!(safe_name("360p.mp4").expect("a name"), "360p.mp4");
    }
}
