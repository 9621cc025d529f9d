//! The job records beside the plan: submitted, result, closed, and the manifest for a person's client.

use serde::{Deserialize, Serialize};

use crate::ids::JobId;

/// `submitted.json`: an upload became a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submitted {
    /// The job.
    pub job: JobId,
    /// Bucket of the upload.
    pub bucket: String,
    /// Key of the upload.
    pub key: String,
    /// Entity tag of the upload, no quotes.
    pub etag: String,
    /// Size of the upload, bytes.
    pub size: u64,
    /// Name of the recipe.
    pub recipe: String,
    /// When, Unix milliseconds.
    pub submitted_unix_ms: u64,
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A driver has claimed it.
    Processing,
    /// All outputs are published.
    Done,
    /// It will have no outputs, for a reason.
    Failed,
    /// Someone asked to stop it.
    Cancelled,
}

impl State {
    /// True when nothing more will happen.
    pub fn is_final(self) -> bool {
        self != Self::Processing
    }
}

/// One published output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Name in the recipe.
    pub name: String,
    /// Key in the results bucket.
    pub key: String,
    /// Size, bytes.
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
    /// Content type.
    pub content_type: String,
}

/// What the video output holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoFacts {
    /// Frames.
    pub frames: u64,
    /// Seconds.
    pub duration_s: f64,
}

/// What the audio output holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioFacts {
    /// Seconds.
    pub duration_s: f64,
}

/// `result.json`: how the job stands or ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobResult {
    /// The job.
    pub job: JobId,
    /// How it stands.
    pub state: State,
    /// Generation of the driver that wrote it; 0: ingest.
    pub generation: u64,
    /// Why it failed or was cancelled: a sentence for a person.
    #[serde(default)]
    pub reason: Option<String>,
    /// The outputs, when done.
    #[serde(default)]
    pub outputs: Vec<Output>,
    /// Of the video, when done.
    #[serde(default)]
    pub video: Option<VideoFacts>,
    /// Of the audio, when done and there is audio.
    #[serde(default)]
    pub audio: Option<AudioFacts>,
}

impl JobResult {
    /// The result of a job that ended before its plan (generation 0).
    pub fn before_plan(job: JobId, state: State, reason: String) -> Self {
        Self { job, state, generation: 0, reason: Some(reason), outputs: Vec::new(), video: None, audio: None }
    }
}

/// `closed.json`: the final result and when the job was closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Closed {
    /// The final result.
    #[serde(flatten)]
    pub result: JobResult,
    /// When, Unix milliseconds.
    pub closed_unix_ms: u64,
}

/// Where a job's bytes came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// Entity tag, no quotes.
    pub etag: String,
}

/// `manifest.json`: the outputs for a person's client; no time, host or generation inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The job.
    pub job: JobId,
    /// The upload.
    pub source: Source,
    /// Name of the recipe.
    pub recipe: String,
    /// The outputs.
    pub outputs: Vec<Output>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_record_reads_back_as_written() {
        let job = JobId::of("b", "k", "e", "r");
        let result = JobResult {
            job: job.clone(),
            state: State::Done,
            generation: 7,
            reason: None,
            outputs: vec![Output { name: "a".into(), key: "results/x/a".into(), bytes: 3, sha256: "00".into(), content_type: "t".into() }],
            video: Some(VideoFacts { frames: 132, duration_s: 5.28 }),
            audio: None,
        };
        let closed = Closed { result, closed_unix_ms: 5 };
        let text = serde_json::to_string(&closed).unwrap();
        assert_eq!(serde_json::from_str::<Closed>(&text).unwrap(), closed);
    }

    #[test]
    fn a_result_with_an_unknown_field_or_state_is_refused() {
        let job = JobId::of("b", "k", "e", "r");
        for extra in [r#""state":"done","generation":1,"surprise":1"#, r#""state":"almost","generation":1"#] {
            assert!(serde_json::from_str::<JobResult>(&format!(r#"{{"job":"{job}",{extra}}}"#)).is_err());
        }
    }
}
