//! One upload from event to `end` record: which job it is, what was already done, and what is left to do.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};
use vp_cloud::s3::{ObjectHead, ObjectStore, StoreError};
use vp_jobs::{
    JobId, Plan, Recipe, keys,
    plan::VERSION,
    recipe::RecipeError,
    records::{JobResult, State, Submitted},
};

use crate::{
    cut::{self, Cut},
    error::{IngestError, file},
    probe,
    produce::{self, Shipment},
    settings::Settings,
};

const JSON: &str = "application/json";
const DEFAULT_RECIPE: &str = "default";
/// An upload may be this big, bytes.
const LARGEST: u64 = 200 << 30;

/// What became of an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// Segments, plan and end are where they belong.
    Planned {
        /// The job.
        job: JobId,
        /// Video segments.
        segments: usize,
    },
    /// The job was over before: nothing was done.
    Closed {
        /// The job.
        job: JobId,
    },
    /// The upload cannot be processed; the result says why.
    Refused {
        /// The job.
        job: JobId,
        /// The sentence.
        reason: String,
    },
    /// The object is not there any more.
    Gone,
}

/// The function with all it needs.
#[derive(Clone, Debug)]
pub struct Ingest {
    /// Where uploads, records and brokers are.
    pub store: ObjectStore,
    /// The function's settings.
    pub settings: Settings,
}

impl Ingest {
    /// Ingests one object; gives up on Kafka at `deadline`.
    ///
    /// # Errors
    /// When something around it is away: the same call later carries on.
    pub async fn object(&self, bucket: &str, key: &str, deadline: Instant) -> Result<Outcome, IngestError> {
        let head = match self.store.head(bucket, key).await {
            Ok(head) => head,
            Err(StoreError::NotFound { .. }) => return Ok(Outcome::Gone),
            Err(error) => return Err(error.into()),
        };
        let recipe_name = head.metadata.get("vp-recipe").map_or(DEFAULT_RECIPE, String::as_str);
        let job = JobId::of(bucket, key, &head.etag, recipe_name);
        self.submit(&job, bucket, key, &head, recipe_name).await?;
        if self.is_over(&job).await? {
            return Ok(Outcome::Closed { job });
        }
        match self.plan(&job, bucket, key, &head, recipe_name, deadline).await {
            Ok(segments) => Ok(Outcome::Planned { job, segments }),
            Err(IngestError::BadInput(reason)) => self.end_before_plan(job, State::Failed, reason).await,
            Err(error) => Err(error),
        }
    }

    async fn submit(&self, job: &JobId, bucket: &str, key: &str, head: &ObjectHead, recipe: &str) -> Result<(), IngestError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = Submitted {
            job: job.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            etag: head.etag.clone(),
            size: head.size,
            recipe: recipe.to_owned(),
            submitted_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
        self.put_once(&keys::submitted(job), &record).await.map(drop)
    }

    /// Writes a record unless there is one; true when it was written.
    async fn put_once(&self, key: &str, record: &impl Serialize) -> Result<bool, IngestError> {
        let body = serde_json::to_vec(record).map_err(|source| IngestError::Record { key: key.to_owned(), source })?;
        match self.store.put_if_absent(&self.settings.results_bucket, key, Bytes::from(body), JSON).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_precondition_failed() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn read(&self, key: &str) -> Result<Option<Bytes>, IngestError> {
        match self.store.get(&self.settings.results_bucket, key).await {
            Ok((bytes, _)) => Ok(Some(bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn is_over(&self, job: &JobId) -> Result<bool, IngestError> {
        if self.read(&keys::closed(job)).await?.is_some() {
            return Ok(true);
        }
        let key = keys::result(job);
        let Some(bytes) = self.read(&key).await? else { return Ok(false) };
        let result: JobResult = serde_json::from_slice(&bytes).map_err(|source| IngestError::Record { key, source })?;
        Ok(result.state.is_final())
    }

    async fn end_before_plan(&self, job: JobId, state: State, reason: String) -> Result<Outcome, IngestError> {
        let result = JobResult::before_plan(job.clone(), state, reason.clone());
        self.put_once(&keys::result(&job), &result).await?;
        Ok(Outcome::Refused { job, reason })
    }

    async fn plan(&self, job: &JobId, bucket: &str, key: &str, head: &ObjectHead, recipe: &str, deadline: Instant) -> Result<usize, IngestError> {
        let stored = self.read(&keys::plan(job)).await?;
        if let Some(bytes) = &stored {
            let plan = parse(job, bytes)?;
            if self.all_segments_are_kept(&plan).await? {
                // The plan was written after the last acknowledgement and nothing is missing; only `end` may be lost.
                self.end(job, &[], bytes, deadline).await?;
                return Ok(plan.segments.len());
            }
        } else if self.read(&keys::cancel(job)).await?.is_some() {
            self.end_before_plan(job.clone(), State::Cancelled, "The job was cancelled before it was planned.".to_owned()).await?;
            return Ok(0);
        }
        let recipe = Recipe::load(&self.settings.recipes, recipe).map_err(|error| match error {
            RecipeError::Unknown { .. } => IngestError::BadInput(format!("The job cannot be planned: {error}.")),
            other => other.into(),
        })?;
        if head.size == 0 {
            return Err(IngestError::BadInput("The file is empty.".to_owned()));
        }
        if head.size > LARGEST {
            return Err(IngestError::BadInput("The file is bigger than 200 GiB.".to_owned()));
        }
        let folder = tempfile::Builder::new().prefix("ingest-").tempdir().map_err(file("make a temporary folder"))?;
        let (plan, cut) = self.cut(job, bucket, key, head, recipe, folder.path()).await?;
        let bytes = plan.to_bytes().map_err(|source| IngestError::Record { key: keys::plan(job), source })?;
        // A stored plan wins. From another version of the tools the bytes may differ: what is equal is sent again.
        let stored = match stored {
            Some(stored) => Some(stored),
            None => {
                produce::send(&self.store, &self.settings, &Shipment { job, pieces: &cut.pieces, plan_sha256: None }, deadline).await?;
                match self.store.put_if_absent(&self.settings.results_bucket, &keys::plan(job), Bytes::from(bytes.clone()), JSON).await {
                    Ok(_) => None,
                    Err(error) if error.is_precondition_failed() => self.read(&keys::plan(job)).await?,
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let Some(stored) = stored else {
            self.end(job, &[], &bytes, deadline).await?;
            return Ok(plan.segments.len());
        };
        let wanted = parse(job, &stored)?;
        let hashes: Vec<&str> =
            wanted.segments.iter().map(|segment| segment.sha256.as_str()).chain(wanted.audio.iter().map(|audio| audio.segment.sha256.as_str())).collect();
        let equal: Vec<_> = cut.pieces.iter().filter(|piece| hashes.contains(&piece.sha256.as_str())).cloned().collect();
        if equal.len() < hashes.len() {
            tracing::warn!(job = %job, equal = equal.len(), wanted = hashes.len(), "the stored plan was cut by other tools, equal segments are sent again");
        }
        self.end(job, &equal, &stored, deadline).await?;
        Ok(wanted.segments.len())
    }

    async fn all_segments_are_kept(&self, plan: &Plan) -> Result<bool, IngestError> {
        let kept = self.store.list(&self.settings.results_bucket, &keys::segments(&plan.job)).await?;
        Ok(kept.len() >= plan.segments.len() + usize::from(plan.audio.is_some()))
    }

    async fn end(&self, job: &JobId, pieces: &[cut::Piece], plan: &[u8], deadline: Instant) -> Result<(), IngestError> {
        let hash = hex::encode(Sha256::digest(plan));
        produce::send(&self.store, &self.settings, &Shipment { job, pieces, plan_sha256: Some(&hash) }, deadline).await
    }

    async fn cut(&self, job: &JobId, bucket: &str, key: &str, head: &ObjectHead, recipe: Recipe, folder: &Path) -> Result<(Plan, Cut), IngestError> {
        let begun = Instant::now();
        // The local name is ours: the upload's key is data and never a path.
        self.store.get_to_file(bucket, key, Some(&head.etag), &folder.join("source")).await?;
        let fetched = begun.elapsed();
        let source = probe::probe(folder, "source").await?;
        let cut = cut::cut(folder, "source", &source, self.settings.reference_bytes).await?;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(job = %job, segments = cut.segments.len(), frames = source.video.frames, fetch_ms = ms(fetched), total_ms = ms(begun.elapsed()), "video is cut");
        let plan = Plan {
            version: VERSION,
            job: job.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            etag: head.etag.clone(),
            recipe,
            video: source.video,
            audio: cut.audio.clone(),
            segments: cut.segments.clone(),
        };
        Ok((plan, cut))
    }
}

fn parse(job: &JobId, bytes: &[u8]) -> Result<Plan, IngestError> {
    Plan::from_bytes(bytes).map_err(|source| IngestError::Record { key: keys::plan(job), source })
}
