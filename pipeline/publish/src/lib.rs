//! Publish: a job whose result is final is closed, and its outputs are described for a person's client.
//!
//! It runs on events of `jobs/JOB/result.json`. Everything it writes is written once (If-None-Match), so a second
//! event changes nothing. Then what only an open job needs (`work/JOB/`) is deleted: after `closed.json` no driver works on
//! the job. Left out: judging the result; only that the outputs it names really stand there is checked.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::{Serialize, de::DeserializeOwned};
use vp_cloud::s3::{ObjectStore, StoreError};
use vp_jobs::{
    JobId, keys,
    records::{Closed, JobResult, Manifest, Source, State, Submitted},
};

/// Intermediate objects deleted at once.
const DELETES_AT_ONCE: usize = 8;

/// Why a job was not closed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// S3 refused or did not answer.
    #[error("object store")]
    Store(#[from] StoreError),
    /// A record is not what it should be.
    #[error("s3 record {key}")]
    Record {
        /// The key.
        key: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// The result names an output that is not there as it says.
    #[error("output {key} has {found} bytes, its result says {expected}")]
    Output {
        /// The key.
        key: String,
        /// Bytes it should have.
        expected: u64,
        /// Bytes it has, or `no`.
        found: String,
    },
    /// The record belongs to another job than its key says.
    #[error("s3 record {key} speaks of job {job}")]
    Foreign {
        /// The key.
        key: String,
        /// The job inside.
        job: JobId,
    },
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The job is closed now.
    Closed(JobId),
    /// It was before.
    WasClosed(JobId),
    /// The job goes on, or the key is no job's result.
    Nothing,
}

/// The function with all it needs.
#[derive(Clone, Debug)]
pub struct Publish {
    /// Where the records are.
    pub store: ObjectStore,
    /// Bucket of records and outputs.
    pub results_bucket: String,
}

impl Publish {
    /// Handles one event of an object in the results bucket.
    ///
    /// # Errors
    /// When the store is away, or the result is not true (yet): the same call later may succeed.
    pub async fn object(&self, key: &str) -> Result<Outcome, PublishError> {
        let Some((job, "result.json")) = keys::parse_record(key) else { return Ok(Outcome::Nothing) };
        let Some(result) = self.read::<JobResult>(key).await? else { return Ok(Outcome::Nothing) };
        if result.job != job {
            return Err(PublishError::Foreign { key: key.to_owned(), job: result.job });
        }
        if !result.state.is_final() {
            return Ok(Outcome::Nothing);
        }
        for output in &result.outputs {
            let found = match self.store.head(&self.results_bucket, &output.key).await {
                Ok(head) if head.size == output.bytes && output.key == keys::output(&job, &output.name) => continue,
                Ok(head) => head.size.to_string(),
                Err(StoreError::NotFound { .. }) => "no".to_owned(),
                Err(error) => return Err(error.into()),
            };
            return Err(PublishError::Output { key: output.key.clone(), expected: output.bytes, found });
        }
        if result.state == State::Done {
            let submitted_key = keys::submitted(&job);
            let submitted: Submitted = match self.read(&submitted_key).await? {
                Some(submitted) => submitted,
                None => return Err(StoreError::NotFound { place: format!("{}/{submitted_key}", self.results_bucket) }.into()),
            };
            let manifest = Manifest {
                job: job.clone(),
                source: Source { bucket: submitted.bucket, key: submitted.key, etag: submitted.etag },
                recipe: submitted.recipe,
                outputs: result.outputs.clone(),
            };
            self.put_once(&keys::manifest(&job), &manifest).await?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let closed = Closed { result, closed_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX) };
        let written = self.put_once(&keys::closed(&job), &closed).await?;
        // Also when it was closed before: whoever closed it may have died here.
        self.clear(&job).await?;
        Ok(if written { Outcome::Closed(job) } else { Outcome::WasClosed(job) })
    }

    async fn clear(&self, job: &JobId) -> Result<(), PublishError> {
        let listed = self.store.list(&self.results_bucket, &keys::work(job)).await?;
        let deletes = futures::stream::iter(listed).map(|found| async move { self.store.delete(&self.results_bucket, &found.key).await });
        Ok(deletes.buffer_unordered(DELETES_AT_ONCE).try_collect::<()>().await?)
    }

    async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, PublishError> {
        match self.store.get(&self.results_bucket, key).await {
            Ok((bytes, _)) => serde_json::from_slice(&bytes).map(Some).map_err(|source| PublishError::Record { key: key.to_owned(), source }),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn put_once(&self, key: &str, record: &impl Serialize) -> Result<bool, PublishError> {
        let body = serde_json::to_vec(record).map_err(|source| PublishError::Record { key: key.to_owned(), source })?;
        match self.store.put_if_absent(&self.results_bucket, key, Bytes::from(body), "application/json").await {
            Ok(_) => Ok(true),
            Err(error) if error.is_precondition_failed() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
