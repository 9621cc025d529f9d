//! Jobs as a person sees them: submitted, watched, their outputs' hashes.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::{Region, wait_until};

/// A submitted video.
#[derive(Debug, Clone, Deserialize)]
pub struct Job {
    #[serde(rename = "job")]
    pub id: String,
    pub key: String,
}

/// One output of a finished job.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Output {
    pub name: String,
    pub key: String,
    pub bytes: u64,
    pub sha256: String,
}

/// A job as `vpctl jobs show` tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct JobStatus {
    pub state: String,
    pub reason: Option<String>,
    pub segments_done: Option<u64>,
    pub segments_total: Option<u64>,
    #[serde(default)]
    pub outputs: Vec<Output>,
}

impl JobStatus {
    /// Segments done, percent; 0 before the plan is known.
    pub fn percent(&self) -> u64 {
        match (self.segments_done, self.segments_total) {
            (Some(done), Some(total)) if total > 0 => done * 100 / total,
            _ => 0,
        }
    }

    /// Nothing more will happen to it.
    pub fn ended(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed" | "cancelled")
    }

    /// Output name to hash.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        self.outputs.iter().map(|output| (output.name.clone(), output.sha256.clone())).collect()
    }
}

impl Region {
    /// Uploads a video with the default recipe.
    ///
    /// # Errors
    /// As `vpctl submit`.
    pub fn submit(&self, file: &Path) -> anyhow::Result<Job> {
        self.submit_as(file, "default")
    }

    /// Uploads a video to be processed with a recipe.
    ///
    /// # Errors
    /// As `vpctl submit`.
    pub fn submit_as(&self, file: &Path, recipe: &str) -> anyhow::Result<Job> {
        let file = file.to_str().context("a file name in UTF-8")?;
        let submitted: Vec<Job> = serde_json::from_value(self.json(&["submit", file, "--recipe", recipe])?)?;
        submitted.into_iter().next().context("nothing was submitted")
    }

    /// The job as it is now.
    ///
    /// # Errors
    /// It is not known (an upload becomes a job when its event has arrived), or S3 does not answer.
    pub fn job(&self, job: &str) -> anyhow::Result<JobStatus> {
        let answer = self.ctl(&["jobs", "show", job])?;
        serde_json::from_value(answer.json()?).with_context(|| answer.stdout.clone())
    }

    /// Percent of the job's segments that are done.
    ///
    /// # Errors
    /// As [`Region::job`].
    pub fn progress(&self, job: &str) -> anyhow::Result<u64> {
        Ok(self.job(job)?.percent())
    }

    /// Waits until at least `percent` of the job's segments are done, and gives the percentage seen.
    ///
    /// # Errors
    /// Not within `deadline`, or the job ended another way than done.
    pub fn wait_progress(&self, job: &str, percent: u64, deadline: Duration) -> anyhow::Result<u64> {
        wait_until(&format!("job {job} is at {percent} %"), deadline, || {
            let seen = self.job(job)?;
            Ok((seen.percent() >= percent).then(|| seen.percent()))
        })
    }

    /// Waits until the job has ended, however it did.
    ///
    /// # Errors
    /// Not within `deadline`.
    pub fn wait_ended(&self, job: &str, deadline: Duration) -> anyhow::Result<JobStatus> {
        wait_until(&format!("job {job} has ended"), deadline, || {
            let seen = self.job(job)?;
            if seen.ended() {
                return Ok(Some(seen));
            }
            bail!("{} at {} %", seen.state, seen.percent())
        })
    }

    /// Waits until the job is done.
    ///
    /// # Errors
    /// Not within `deadline`, or it failed.
    pub fn wait_job(&self, job: &str, deadline: Duration) -> anyhow::Result<JobStatus> {
        let ended = self.wait_ended(job, deadline)?;
        anyhow::ensure!(ended.state == "done", "job {job} is {}: {}", ended.state, ended.reason.as_deref().unwrap_or("no reason given"));
        Ok(ended)
    }
}
